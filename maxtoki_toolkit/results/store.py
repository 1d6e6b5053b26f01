"""Results in `uns`: one shape for all functions, and only what h5ad and zarr can hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import __version__
from .._names import closest
from .effects_file import read_effects
from .schema import SCHEMA, Result, result_of


def write_result(
    adata: AnnData,
    key: str,
    params: Mapping[str, Any],
    *,
    key_added: str | None = None,
    function: str | None = None,
    **tables: Any,
) -> None:
    """Store `{"params": ..., "<table>": DataFrame}` in `uns[key_added or key]`, where nothing of the user's may be.

    Tables are those that the schema has for `key`; `params` say which function wrote them, wherever they are: that of
    the schema, or another one that writes the same.
    """
    into, result = key_added or key, SCHEMA[key]
    frames = {name for name, part in tables.items() if isinstance(part, pd.DataFrame)}
    if unknown := frames - set(result.tables):
        raise KeyError(f"results/schema.py has no table {min(unknown)!r} of {key!r}.")
    require_free(adata, into)
    about = {**params, "function": function or result.function, "version": __version__}
    adata.uns[into] = writable({"params": about, **tables})


def is_ours(adata: AnnData, key: str) -> bool:
    """Whether `uns[key]` is a result of this package."""
    found = adata.uns.get(key)
    return isinstance(found, Mapping) and isinstance(found.get("params"), Mapping)


def require_free(adata: AnnData, key: str, names: Iterable[str] = ()) -> None:
    """Raise if `uns[key]` is no result, or columns of `.obs` that belong to the result are there without it.

    They are the user's then.
    """
    if is_ours(adata, key):
        return
    if key in adata.uns:
        raise ValueError(
            f".uns[{key!r}] holds something of yours, which the result would replace. Rename it first."
        )
    if taken := [name for name in names if name in adata.obs]:
        raise ValueError(
            f".obs has {', '.join(map(repr, taken))} already, which the result would replace. Rename "
            f"{'it' if len(taken) == 1 else 'them'} first: adata.obs = adata.obs.rename(columns={{{taken[0]!r}: ...}})."
        )


def write_obs(adata: AnnData, key: str, columns: Mapping[str, np.ndarray]) -> None:
    """Write columns of the result `key` to `.obs`; one of the user's that says something else is an error."""
    there = {name: adata.obs[name] for name in columns if name in adata.obs}
    # All of them, of these types, are of an earlier result: anndata.concat drops `.uns`.
    earlier = len(there) == len(columns) and all(there[name].dtype == columns[name].dtype for name in there)
    different = [name for name, column in there.items() if not _same(column, columns[name])]
    require_free(adata, key, [] if earlier else different)
    for name, values in columns.items():
        adata.obs[name] = values


def _same(column: pd.Series, values: np.ndarray) -> bool:
    values = np.asarray(values)
    try:
        return bool((column.to_numpy().astype(values.dtype) == values).all())
    except (TypeError, ValueError):
        return False


def read_result(adata: AnnData, key: str, call: str = "") -> dict[str, Any]:
    """Return `uns[key]`, or say which call writes it: by default, the one that usually does."""
    known = call or result_of(key).call
    call = known or "the analysis"
    if key not in adata.uns:
        meant = closest(key, adata.uns if known else [*adata.uns, *SCHEMA])
        raise KeyError(f"Did not find .uns[{key!r}]. Run {call} first.{meant}")
    result = adata.uns[key]
    if not is_ours(adata, key) or any(_is_bare(part) for part in result.values()):
        raise ValueError(f".uns[{key!r}] is not what {call} writes. Run it again, or give another key.")
    tables = [part for part in result.values() if isinstance(part, pd.DataFrame)]
    if tables and not any(map(len, tables)):  # one of several may have none
        raise ValueError(f"The tables of .uns[{key!r}] have no rows. Run {call} again.")
    return _Stored(key, call, {**result, "params": _Stored(key, call, result["params"])})


def read_table(adata: AnnData, key: str, table: str | None = None) -> pd.DataFrame:
    """A copy of a table of `uns[key]`, with the settings that it was made with as `.attrs`."""
    result = read_result(adata, key)
    params, known = result["params"], result_of(key, result["params"])
    there = table_names(result, known)
    if table is None and not (there or known.tables):
        raise ValueError(f".uns[{key!r}] has no tables. What was done is in .uns[{key!r}]['params'].")
    table = table or [*there, *known.tables][0]
    if table not in there:
        has = f" It has {', '.join(there)}.{closest(table, there)}" if there else ""
        if rows := known.tables.get(table):
            raise KeyError(f".uns[{key!r}] lacks {table!r}, which {known.call} writes ({rows}).{has}")
        raise KeyError(f".uns[{key!r}] has no table {table!r}.{has}")
    in_file = table not in result
    found = read_effects(Path(params["path"]), str(params["sha256"])) if in_file else result[table].copy()
    if found.index.equals(pd.RangeIndex(len(found)).astype(str)):  # as numbers are written
        found = found.reset_index(drop=True)
    found.attrs = _plain(dict(params))
    if known.tables:
        found.attrs["unit"] = known.units[table] if table in known.units else str(params["unit"])
    return found


def table_names(result: Mapping[str, Any], known: Result) -> list[str]:
    """Tables that there are, the one that is read by default first."""
    there = [name for name, part in result.items() if isinstance(part, pd.DataFrame)]
    if "effects" in known.tables and result["params"].get("path"):
        there.append("effects")  # in a file of their own
    return [name for name in known.tables if name in there] or there


def _plain(value: Any) -> Any:
    """Settings as Python's own types: a file turns lists into arrays."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def _is_bare(part: object) -> bool:
    return isinstance(part, pd.DataFrame) and part.columns.empty


class _Stored(dict):
    """A result that says which of its parts is missing, and what writes it."""

    def __init__(self, key: str, call: str, parts: Mapping[str, Any]) -> None:
        super().__init__(parts)
        self._key, self._call = key, call

    def __missing__(self, name: str) -> None:
        raise KeyError(f".uns[{self._key!r}] lacks {name!r}, which {self._call} writes. Run it again.")


def writable(value: Any) -> Any:
    """Turn a value into one that `write_h5ad` accepts, or say that there is none.

    Examples
    --------
    >>> writable({"shape": (3, 4), 5: None})
    {'shape': [3, 4], '5': ''}
    """
    if isinstance(value, Mapping):
        return {str(key): writable(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return [writable(item) for item in sorted(value)]
    if isinstance(value, (list, tuple)):
        return [writable(item) for item in value]
    if isinstance(value, pd.DataFrame):
        table = value.copy()
        table.index = table.index.astype(str)
        for name in table.select_dtypes(include=["object", "string"]):
            table[name] = table[name].where(table[name].notna(), "").astype(str)
        return table
    if value is None:
        return ""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (bool, int, float, str, np.ndarray)):
        return value
    raise TypeError(f"Cannot store a {type(value).__name__} in .uns.")
