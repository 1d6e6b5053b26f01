"""Results in `uns`: one shape for all functions, and only what h5ad and zarr can hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from . import __version__
from ._names import closest


def write_result(adata: AnnData, key: str, params: Mapping[str, Any], **tables: Any) -> None:
    """Store `{"params": ..., "<table>": DataFrame}` in `uns[key]`."""
    adata.uns[key] = writable({"params": {**params, "version": __version__}, **tables})


def read_result(adata: AnnData, key: str, function: str) -> dict[str, Any]:
    """Return `uns[key]`, or say which function writes it."""
    if key not in adata.uns:
        raise KeyError(f"Did not find .uns[{key!r}]. Run {function} first.{closest(key, adata.uns)}")
    result = adata.uns[key]
    is_result = isinstance(result, Mapping) and isinstance(result.get("params"), Mapping)
    if not is_result or any(_is_bare(part) for part in result.values()):
        raise ValueError(f".uns[{key!r}] is not what {function} writes. Run it again, or give another key.")
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
