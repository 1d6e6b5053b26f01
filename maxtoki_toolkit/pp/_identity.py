"""What tells one input from another, without reading it all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from ._store import open_store, read_frames

# Where counts may be in a file.
_MATRICES = ("X", "raw", "raw.X", "layers", "matrix")
_WHOLE, _SLICES, _SLICE = 1 << 20, 32, 1 << 15  # bytes read of an array: all, or so many slices of it


def input_identity(path: str | Path) -> dict[str, int | str]:
    """Size, time, and checksums of cells and genes and of a sample of the counts.

    A file that was copied has another time, and is taken for another input: better once too often than once
    too few.
    """
    path = Path(path)
    files = [part for part in path.rglob("*") if part.is_file()] if path.is_dir() else [path]
    with open_store(path) as store:
        obs, var = read_frames(store)
        counts = hashlib.sha256()
        for key in _MATRICES:
            if key in store:
                for part in _sample(store[key], key):
                    counts.update(part)
        found = [part.stat() for part in files]
        return {
            "size": sum(part.st_size for part in found),
            "time_ns": max(part.st_mtime_ns for part in found),
            "cells_sha256": _digest(obs),
            "genes_sha256": _digest(var),
            "counts_sha256": counts.hexdigest(),
        }


def file_identity(path: str | Path) -> dict[str, int | str]:
    """The same of a folder of other files, by size, time, and their first and last bytes."""
    files = sorted(part for part in Path(path).rglob("*") if part.is_file())
    content = hashlib.sha256()
    for part in files:
        with part.open("rb") as file:
            content.update(part.name.encode() + file.read(_WHOLE))
            file.seek(max(part.stat().st_size - _WHOLE, 0))
            content.update(file.read())
    found = [part.stat() for part in files]
    return {
        "size": sum(part.st_size for part in found),
        "time_ns": max(part.st_mtime_ns for part in found),
        "content_sha256": content.hexdigest(),
    }


def _digest(table: pd.DataFrame) -> str:
    digest = hashlib.sha256(repr([*map(str, table.columns)]).encode())
    digest.update(pd.util.hash_pandas_object(table).to_numpy().tobytes())
    return digest.hexdigest()


def _sample(stored, name: str) -> Iterator[bytes]:
    """Name, shape and evenly spaced slices of all arrays of a group."""
    if hasattr(stored, "keys"):
        for key in sorted(stored.keys()):
            yield from _sample(stored[key], f"{name}/{key}")
        return
    yield f"{name} {stored.shape} {stored.dtype}".encode()
    if not stored.shape or stored.dtype.kind not in "biuf":
        return
    n = stored.shape[0]
    width = max(int(np.prod(stored.shape[1:])) * stored.dtype.itemsize, 1)
    if n * width <= _WHOLE:
        yield np.ascontiguousarray(stored[:]).tobytes()
        return
    rows = max(_SLICE // width, 1)
    for start in np.unique(np.linspace(0, max(n - rows, 0), _SLICES).astype(int)):
        yield np.ascontiguousarray(stored[start : start + rows]).tobytes()
