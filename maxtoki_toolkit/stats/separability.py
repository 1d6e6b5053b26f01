"""How well neighbours tell treated cells from controls: areas, what exchanged labels give, and errors."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import stats

_AT_ONCE = 1 << 22  # neighbours read at once


class Areas(NamedTuple):
    """Area under the ROC curve of one set of cells."""

    area: float
    null: np.ndarray
    """The same for each exchange of the labels."""
    parts: tuple[np.ndarray, np.ndarray]
    """Of each treated cell, the share of controls below it; of each control, the share of treated cells above it."""
    shares: tuple[np.ndarray, np.ndarray]
    """Share of treated neighbours, of treated cells and of controls."""


def nearest(X: np.ndarray, n_neighbors: int, unit: np.ndarray | None = None) -> np.ndarray:
    """The nearest other cells of each cell (Euclidean); with units, those of other units only.

    Parameters
    ----------
    X
        Cells x dimensions.
    n_neighbors
        How many.
    unit
        The donor of each cell.

    Returns
    -------
    Cells x neighbours, int.
    """
    from sklearn.neighbors import NearestNeighbors

    if unit is None:
        return NearestNeighbors(n_neighbors=n_neighbors).fit(X).kneighbors(return_distance=False)
    found = np.empty((len(X), n_neighbors), dtype=np.int64)
    for name in np.unique(unit):
        own = np.flatnonzero(unit == name)
        others = np.flatnonzero(unit != name)
        near = NearestNeighbors(n_neighbors=n_neighbors).fit(X[others])
        found[own] = others[near.kneighbors(X[own], return_distance=False)]
    return found


def neighbor_areas(neighbors: np.ndarray, treated: np.ndarray, exchanged: np.ndarray) -> Areas:
    """Area under the ROC curve of the share of treated neighbours.

    Parameters
    ----------
    neighbors
        Cells x neighbours.
    treated
        Whether each cell is treated.
    exchanged
        Exchanges x cells: the same with labels exchanged.
    """
    share = treated[neighbors].mean(axis=1)
    step = max(1, _AT_ONCE // neighbors.size)
    null = [
        _area(part[:, neighbors].mean(axis=2), part)
        for part in (exchanged[i : i + step] for i in range(0, len(exchanged), step))
    ]
    above = np.sign(share[treated][:, None] - share[~treated][None, :]) / 2 + 0.5
    return Areas(
        area=float(above.mean()),
        null=np.concatenate(null),
        parts=(above.mean(axis=1), above.mean(axis=0)),
        shares=(share[treated], share[~treated]),
    )


def area_of(treated: np.ndarray, control: np.ndarray) -> float:
    """Area of scores of two kinds of cells."""
    share, which = np.concatenate([treated, control]), np.repeat([True, False], [len(treated), len(control)])
    return float(_area(share[None], which[None])[0])


def _area(share: np.ndarray, treated: np.ndarray) -> np.ndarray:
    """Areas, one a row, from the sums of ranks; equal shares count half."""
    rank = stats.rankdata(share, axis=1)
    n = treated.sum(axis=1)
    sums = (rank * treated).sum(axis=1)
    return (sums - n * (n + 1) / 2) / (n * (treated.shape[1] - n))


def area_covariance(parts: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Covariance of areas of the same cells (DeLong, DeLong and Clarke-Pearson, Biometrics 1988)."""
    found = np.zeros((len(parts), len(parts)))
    for side in range(2):
        values = np.stack([part[side] for part in parts])
        found += np.atleast_2d(np.cov(values)) / values.shape[1]
    return found


def permutation_p(value: float, null: np.ndarray) -> float:
    """Share of exchanges that reach the value, itself among them."""
    return float((1 + (null >= value - 1e-12).sum()) / (1 + len(null)))
