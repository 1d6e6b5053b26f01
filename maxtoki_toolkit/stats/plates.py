"""Plates of wells: names of wells, the border, and what sets it apart."""

from __future__ import annotations

import re

import numpy as np

_NAME = re.compile(r"([A-Pa-p])[ _-]?0*(\d{1,2})")
SHAPES = ((4, 6), (8, 12), (16, 24))  # rows, columns


def read_wells(names: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of wells, from 0; or raise with what is no name of a well.

    Examples
    --------
    >>> read_wells(np.array(["A01", "H12", "p24"]))
    (array([ 0,  7, 15]), array([ 0, 11, 23]))
    """
    found = [_NAME.fullmatch(str(name).strip()) for name in names]
    bad = [
        str(name)
        for name, match in zip(names, found, strict=True)
        if match is None or not 1 <= int(match[2]) <= 24
    ]
    if bad:
        raise ValueError(
            f"{len(bad)} of {len(names)} wells have no name such as 'A01' or 'P24' (first: {bad[0]!r}). Name them by row and column."
        )
    return (
        np.array([ord(match[1].upper()) - ord("A") for match in found]),
        np.array([int(match[2]) - 1 for match in found]),
    )


def plate_shape(row: np.ndarray, column: np.ndarray) -> tuple[int, int]:
    """Rows and columns of the smallest usual plate that has these wells (24, 96 or 384)."""
    return next(shape for shape in SHAPES if row.max() < shape[0] and column.max() < shape[1])


def at_border(row: np.ndarray, column: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Which wells are in the first or last row or column."""
    return (row == 0) | (row == shape[0] - 1) | (column == 0) | (column == shape[1] - 1)


def distance_between(
    values: np.ndarray, edge: np.ndarray, n: int, rng: np.random.Generator
) -> tuple[float, np.ndarray]:
    """Squared distance of the means of border and inner wells, and the same when wells change places.

    Parameters
    ----------
    values
        Wells x dimensions, each dimension on one scale.
    edge
        Which wells are at the border.
    n
        Exchanges.
    rng
        Generator.
    """
    labels = np.concatenate([edge[None], rng.permuted(np.tile(edge, (n, 1)), axis=1)]).astype(float)
    inside = 1 - labels
    means = labels @ values / labels.sum(axis=1, keepdims=True) - inside @ values / inside.sum(
        axis=1, keepdims=True
    )
    found = (means**2).sum(axis=1)
    return float(found[0]), found[1:]
