"""Sums of `mt.tl.attention` by unit and gene: in `.uns`, or in a zarr store of their own."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from .._keys import head_name


class Shape(NamedTuple):
    """How many units, genes and heads there are."""

    units: int
    genes: int
    heads: int


class Sums(NamedTuple):
    """Sums by unit and gene, in memory or in a zarr store."""

    mass: np.ndarray
    expected: np.ndarray
    n_tokens: np.ndarray
    could_attend: np.ndarray

    @classmethod
    def make(cls, shape: Shape, path: Path | None) -> Sums:
        """Zeros."""
        sizes = [tuple(shape)] * 2 + [tuple(shape[:2])] * 2
        if path is None:
            return cls(*(np.zeros(size, dtype=np.float32) for size in sizes))
        import zarr

        store = zarr.open_group(path, mode="w")
        return cls(
            *(
                store.create_array(name, shape=size, chunks=(1, *size[1:]), dtype="float32")
                for name, size in zip(cls._fields, sizes, strict=True)
            )
        )


def checksum_of(sums: Sums) -> str:
    """Checksum of all values, unit by unit."""
    digest = hashlib.sha256()
    for unit in range(sums.mass.shape[0]):
        for part in sums:
            digest.update(np.ascontiguousarray(part[unit]).tobytes())
    return digest.hexdigest()


def head_table(params: dict) -> pd.DataFrame:
    """One row a head: `layer`, `head`, `name`."""
    n_layers, n_heads = int(params["n_layers"]), int(params["n_heads"])
    table = pd.DataFrame(
        {"layer": np.repeat(np.arange(n_layers), n_heads), "head": np.tile(np.arange(n_heads), n_layers)}
    )
    table["name"] = [head_name(row.layer, row.head) for row in table.itertuples()]
    return table


def gene_sums(result: dict) -> Sums:
    """Sums by unit and gene, from `.uns` or from their zarr store."""
    path = result["params"]["path"]
    if not path:
        return Sums(*(result[name] for name in Sums._fields))
    if not Path(path).exists():
        raise FileNotFoundError(
            f"Did not find the sums of the genes at {path}. They were written there by mt.tl.attention(..., path=...): put them "
            "back, or run it again."
        )
    import zarr

    store = zarr.open_group(path, mode="r")
    sums = Sums(*(store[name] for name in Sums._fields))
    if checksum_of(sums) != result["params"]["sha256"]:
        raise ValueError(
            f"{path} holds other sums than this result was written with. Run mt.tl.attention again."
        )
    return sums
