"""Folders of Hugging Face `datasets`, by pyarrow alone: a stream of Arrow records, and two JSON files that describe it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

STATE, INFO, SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
_DATA = "data-00000-of-00001.arrow"
_ABOUT = b"maxtoki"
# What `datasets` calls the types of Arrow.
_NAMES = {"double": "float64", "float": "float32", "halffloat": "float16"}


def require_pyarrow():
    """Import pyarrow, or say how to get it."""
    try:
        import pyarrow
    except ImportError:
        raise ImportError(
            'Folders of `datasets` and parquet files need pyarrow: pip install -c constraints.txt -e ".[files]".'
        ) from None
    return pyarrow


def is_dataset(path: str | Path) -> bool:
    """Whether this is a folder that `datasets` wrote, or one of several splits."""
    path = Path(path)
    return path.is_dir() and ((path / STATE).is_file() or (path / SPLITS).is_file())


def open_dataset(path: str | Path):
    """The table of a folder, mapped into memory and not read.

    Raises
    ------
    ValueError
        If there are several splits, rows were selected or shuffled without being written anew, or a file is
        cut short.
    """
    pa, path = require_pyarrow(), Path(path)
    if (path / SPLITS).is_file():
        names = json.loads((path / SPLITS).read_text())["splits"]
        raise ValueError(
            f"{path} holds several splits. Give one of them: {', '.join(str(path / name) for name in names)}."
        )
    try:
        state = json.loads((path / STATE).read_text())
        names = [file["filename"] for file in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path / STATE} cannot be read ({error}). Copy or write the folder again."
        ) from None
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise ValueError(
            f"{path} holds an order of rows beside the rows. Write it anew with `datasets`: flatten_indices(), save_to_disk()."
        )
    tables = []
    for name in names:
        try:
            with pa.memory_map(str(path / name)) as source, pa.ipc.open_stream(source) as reader:
                tables.append(reader.read_all())
        except (OSError, pa.ArrowInvalid) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"{path / name} cannot be read ({reason}). Copy or write the folder again."
            ) from None
    if not tables:
        raise ValueError(f"{path} has no rows.")
    return pa.concat_tables(tables)


def about(table) -> dict[str, str]:
    """What this package wrote about a table; nothing where another wrote it."""
    return json.loads((table.schema.metadata or {}).get(_ABOUT, b"{}"))


def lists_of(table, name: str, path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """All numbers in a column of lists, end to end, and how many are in each."""
    pa = require_pyarrow()
    if name not in table.column_names:
        raise KeyError(f"{path} has no column {name!r}; it has {', '.join(table.column_names)}.")
    column = table[name].combine_chunks()
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    is_list = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    if not is_list or column.null_count or column.flatten().null_count:
        raise ValueError(
            f"{name} in {path} is no column of lists of numbers ({column.type}), or some are missing."
        )
    return column.flatten().to_numpy(), column.value_lengths().to_numpy().astype(np.int64)


def scalars_of(table) -> pd.DataFrame:
    """All columns but lists, with their types; whole numbers of which some are missing stay whole."""
    pa = require_pyarrow()
    nullable = {
        getattr(pa, name.lower())(): getattr(pd, f"{name}Dtype")()
        for name in ("Int8", "Int16", "Int32", "Int64")
    }
    columns = {}
    for field in table.schema:
        if not pa.types.is_nested(field.type):
            column = table[field.name]
            mapper = nullable.get if column.null_count else None
            columns[field.name] = column.to_pandas(types_mapper=mapper).array
    return pd.DataFrame(columns, index=pd.RangeIndex(len(table)))


def columns_of(frame: pd.DataFrame) -> dict:
    """Columns of a table as Arrow arrays; text and categories as strings."""
    pa = require_pyarrow()
    found = {}
    for name, values in frame.items():
        if isinstance(values.dtype, pd.CategoricalDtype):
            values = (
                values.astype(values.cat.categories.dtype)
                if not values.isna().any()
                else values.astype(object)
            )
        try:
            column = pa.array(
                values, from_pandas=values.dtype.kind in ("O", "T") or not isinstance(values.dtype, np.dtype)
            )
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise ValueError(
                f"The column {name!r} holds values of several kinds ({error}). Make it text or numbers."
            ) from None
        if pa.types.is_large_string(column.type) or pa.types.is_null(column.type):
            column = column.cast(pa.string())
        found[str(name)] = column
    return found


def lists(values: np.ndarray, lengths: np.ndarray):
    """A column of lists, from all numbers end to end and how many are in each."""
    pa = require_pyarrow()
    ends = np.concatenate([[0], np.cumsum(lengths)])
    if ends[-1] >= 1 << 31:
        raise ValueError("A block has 2^31 numbers or more. Write smaller blocks.")
    return pa.ListArray.from_arrays(pa.array(ends.astype(np.int32)), pa.array(values))


@contextmanager
def dataset_writer(folder: Path, schema, note: Mapping[str, object]) -> Iterator[Callable]:
    """Yield the function that adds a table to the folder, which is described when all are there.

    Parameters
    ----------
    folder
        An empty folder.
    schema
        Names and types.
    note
        What this package will want to know of it; `about` returns it.
    """
    pa = require_pyarrow()
    info = {"features": {field.name: _feature(field.type) for field in schema}}
    metadata = {"huggingface": json.dumps({"info": info}), _ABOUT: json.dumps(dict(note))}
    schema = schema.with_metadata(metadata)
    with pa.OSFile(str(folder / _DATA), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        yield lambda table: writer.write_table(table.cast(schema))
    with (folder / _DATA).open("rb") as file:
        fingerprint = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    state = {
        "_data_files": [{"filename": _DATA}],
        "_fingerprint": fingerprint,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    info = {"citation": "", "description": "", **info, "homepage": "", "license": ""}
    (folder / INFO).write_text(json.dumps(info, indent=2))
    (folder / STATE).write_text(json.dumps(state, indent=2))


def _feature(kind) -> dict:
    """What `datasets` calls a type."""
    pa = require_pyarrow()
    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "Sequence"}
    return {"dtype": _NAMES.get(str(kind), str(kind)), "_type": "Value"}
