"""TileDB-SOMA stores: the CELLxGENE Census, and any other experiment, read block by block."""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp

from .._manifests import manifest
from .._names import closest

if TYPE_CHECKING:
    import pyarrow as pa
    from tiledbsoma import Experiment

JOINID = "soma_joinid"
# Bytes of a reading, per column and in all: by default each column has a gigabyte. What is read does not
# depend on it, but for the table of cells it is also how many are looked at together (about two million).
_BUFFER, _BUDGET = 16 << 20, 512 << 20
_MEMORY = {"soma.init_buffer_bytes": _BUFFER, "sm.mem.total_budget": _BUDGET}
# The bucket of the Census is public.
_BUCKET = "s3://cellxgene-census-public"
_PUBLIC = {"vfs.s3.region": "us-west-2", "vfs.s3.no_sign_request": "true"}
_RELEASE = re.compile(r"\d{4}-\d\d-\d\d")
# Columns that name the genes, the likeliest first.
_GENE_NAMES = ("feature_id", "ensembl_id", "gene_id", "var_id")


def locate(store: str | Path | None) -> str:
    """Address of a store: of the pinned Census, of a release by its date, or what was given."""
    address = manifest("census")["source"]["accession"]
    if store is None:
        return address
    if _RELEASE.fullmatch(str(store)):
        return _RELEASE.sub(str(store), address)
    return str(store)


def is_remote(address: str) -> bool:
    """Whether a store is on another machine."""
    return "://" in address and not address.startswith("file://")


@contextmanager
def open_experiment(store: str | Path | None, organism: str) -> Iterator[Experiment]:
    """Open an experiment; of a Census, that of an organism.

    Raises
    ------
    ImportError, FileNotFoundError, ConnectionError, ValueError
        If the extra, the store or the network is not there, or the store is none.
    """
    try:
        import tiledbsoma
    except ImportError:
        raise ImportError(
            'Stores of TileDB-SOMA need the extra census: pip install -c constraints.txt -e ".[census]" (Linux and macOS).'
        ) from None
    address = locate(store)
    if not is_remote(address) and not Path(address.removeprefix("file://")).exists():
        raise FileNotFoundError(f"Did not find {address}.")
    public = _PUBLIC if _BUCKET in address else {}
    context = tiledbsoma.SOMATileDBContext(tiledb_config=_MEMORY | public)
    with reading(address):
        found = tiledbsoma.open(address, context=context)
    with found:
        if isinstance(found, tiledbsoma.Experiment):
            yield found
            return
        if "census_data" not in found:
            raise ValueError(
                f"{address} is neither an experiment nor a Census: it is a {type(found).__name__}."
            )
        species = list(found["census_data"])
        if organism not in species:
            raise ValueError(
                f"{address} has no organism {organism!r}.{closest(organism, species)} It has {', '.join(species)}."
            )
        with reading(address):
            experiment = found["census_data"][organism]
        yield experiment


def _give_back() -> None:
    """Give memory back that earlier readings left, or a job of days grows by some megabytes a shard."""
    gc.collect()  # readers of the engine are cycles that hold their buffers
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # glibc keeps what each of many threads has freed


@contextmanager
def reading(address: str, hint: str = "") -> Iterator[None]:
    """Say of what the engine raises which store it was reading, and what to do."""
    from tiledbsoma import SOMAError

    try:
        yield
    except (SOMAError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        if hint:
            raise ValueError(
                f"{hint} ({reason}). Write it like \"tissue_general == 'lung' and sex == 'female'\"."
            ) from error
        if is_remote(address):
            raise ConnectionError(
                f"{address} cannot be read ({reason}). Check the connection and, for a bucket of yours, region and credentials in "
                "the environment (AWS_REGION, AWS_ACCESS_KEY_ID ...). What is written is kept: the same call goes on."
            ) from error
        raise ValueError(
            f"{address} cannot be read as a TileDB-SOMA store ({reason}). tiledbsoma.io.from_anndata writes one."
        ) from error


def require_columns(experiment: Experiment, needed: dict[str, str]) -> None:
    """Raise if columns of the cells are missing; `needed` says of each what asks for it."""
    there = [field.name for field in experiment.obs.schema]
    missing = {column: why for column, why in needed.items() if column not in there}
    if missing:
        listed = "; ".join(f"{column!r} ({why}){closest(column, there)}" for column, why in missing.items())
        filters = [(why.split(":")[0], column) for column, why in missing.items() if ": " in why]
        without = (
            f" A filter is taken out by null: {filters[0][0]}: {{{filters[0][1]}: null}}." if filters else ""
        )
        raise KeyError(
            f"The cells of {experiment.uri} have no column {listed}. They have {', '.join(there)}.{without}"
        )


def read_obs(
    experiment: Experiment, columns: Sequence[str], value_filter: str | None = None
) -> Iterator[pa.Table]:
    """Yield columns of the cells, as many cells at a time as the engine's buffer holds."""
    # The engine looks at the filter before it reads anything.
    with reading(experiment.uri, f"value_filter {value_filter!r} cannot be read" if value_filter else ""):
        blocks = experiment.obs.read(column_names=[JOINID, *columns], value_filter=value_filter)
    while True:
        with reading(experiment.uri):
            block = next(blocks, None)
        if block is None:
            return
        yield block


def as_labels(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    """A column as numbers of labels, -1 where there is none, and the labels."""
    import pyarrow as pa

    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    column = pa.chunked_array(column.unify_dictionaries().chunks, column.type).combine_chunks()
    column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    codes = column.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return codes.astype(np.int64), [str(value) for value in column.dictionary.to_pylist()]


def is_number(kind: pa.DataType) -> bool:
    """Whether a column holds numbers."""
    import pyarrow as pa

    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def read_genes(experiment: Experiment, measurement: str) -> pd.DataFrame:
    """Table of the genes, in the order of the columns of the matrix."""
    with reading(experiment.uri):
        var = experiment.ms[measurement].var.read().concat().to_pandas()
    if not np.array_equal(var.pop(JOINID), np.arange(len(var))):
        raise ValueError(f"The genes of {experiment.uri} are not numbered from 0 on: write the store again.")
    names = next((name for name in _GENE_NAMES if name in var), None)
    return var if names is None else var.set_index(names, drop=False).rename_axis(None)


def require_matrix(experiment: Experiment, measurement: str, layer: str) -> None:
    """Raise if the counts are not there."""
    if measurement not in experiment.ms:
        raise KeyError(
            f"{experiment.uri} has no measurement {measurement!r}. It has {', '.join(experiment.ms)}."
        )
    layers = experiment.ms[measurement].X if "X" in experiment.ms[measurement] else []
    if layer not in layers:
        raise KeyError(
            f"{experiment.uri} has no X[{layer!r}] in {measurement}.{closest(layer, layers)} It has {', '.join(layers) or 'none'}."
        )


def read_cells_of(
    experiment: Experiment, joinids: np.ndarray, measurement: str, layer: str, chunk_size: int
) -> tuple[pd.DataFrame, Iterator[sp.csr_matrix]]:
    """The table of some cells, and their counts in blocks of `chunk_size` cells, in ascending order of their numbers."""
    import tiledbsoma

    query = experiment.axis_query(measurement, obs_query=tiledbsoma.AxisQuery(coords=(joinids,)))
    with reading(experiment.uri):
        obs = query.obs().concat().to_pandas().sort_values(JOINID, ignore_index=True)
    if not np.array_equal(obs[JOINID], joinids):
        raise ValueError(f"{experiment.uri} has changed: {len(joinids) - len(obs)} of its cells are gone.")

    def blocks() -> Iterator[sp.csr_matrix]:
        with query:
            _give_back()
            found = query.X(layer).blockwise(axis=0, size=chunk_size).scipy(compress=True)
            while True:
                with reading(experiment.uri):
                    block = next(found, None)
                if block is None:
                    return
                yield block[0]

    return obs, blocks()
