"""Results in `uns`: one shape for all functions, and only what h5ad and zarr can hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from . import __version__
from ._names import closest


def write_result(adata: AnnData, key: str, params: Mapping[str, Any], **tables: Any) -> None:
    """Store `{"params": ..., "<table>": DataFrame}` in `uns[key]`, where nothing of the user's may be."""
    require_free(adata, key)
    adata.uns[key] = writable({"params": {**params, "version": __version__}, **tables})


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


def read_result(adata: AnnData, key: str, function: str) -> dict[str, Any]:
    """Return `uns[key]`, or say which function writes it."""
    if key not in adata.uns:
        raise KeyError(f"Did not find .uns[{key!r}]. Run {function} first.{closest(key, adata.uns)}")
    result = adata.uns[key]
    is_result = isinstance(result, Mapping) and isinstance(result.get("params"), Mapping)
    if not is_result or any(_is_bare(part) for part in result.values()):
        raise ValueError(f".uns[{key!r}] is not what {function} writes. Run it again, or give another key.")
    tables = [part for part in result.values() if isinstance(part, pd.DataFrame)]
    if tables and not any(map(len, tables)):  # one of several may have none
        raise ValueError(f"The tables of .uns[{key!r}] have no rows. Run {function} again.")
    return _Stored(key, function, {**result, "params": _Stored(key, function, result["params"])})


def _is_bare(part: object) -> bool:
    return isinstance(part, pd.DataFrame) and part.columns.empty


class _Stored(dict):
    """A result that says which of its parts is missing, and what writes it."""

    def __init__(self, key: str, function: str, parts: Mapping[str, Any]) -> None:
        super().__init__(parts)
        self._key, self._function = key, function

    def __missing__(self, name: str) -> None:
        raise KeyError(f".uns[{self._key!r}] lacks {name!r}, which {self._function} writes. Run it again.")


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
