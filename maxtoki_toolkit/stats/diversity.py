"""Copying, precision, coverage and collapse: how a set of cells lies among training cells and true ones."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy import stats

from .donors import jackknife_error, jackknife_weights

NEAR = 0.01  # share of true cells that count as near copies


class Cells(NamedTuple):
    """Cells, and which of them belong together."""

    ranks: sp.csr_matrix
    """float, cells x genes: 1 for the highest gene, 0 for none."""
    place: sp.csr_matrix | np.ndarray
    """float, cells x dimensions: where distances are measured."""
    unit: np.ndarray
    """str, cells: cells of one unit are no independent evidence."""


class Distances(NamedTuple):
    """A set of cells among others."""

    to_training: np.ndarray
    """float, cells: to the nearest training cell."""
    overlap: np.ndarray
    """float, cells: of the rank lists of a cell and its nearest training cell."""


def to_training(cells: Cells, training: Cells) -> Distances:
    """Distance and overlap of each cell and the training cell nearest to it."""
    from sklearn.neighbors import NearestNeighbors

    # Brute force is what scikit-learn has for sparse cells, and no slower for so many dimensions.
    found = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(training.place)
    distance, nearest = found.kneighbors(cells.place)
    return Distances(distance[:, 0], overlap(cells.ranks, training.ranks[nearest[:, 0]]))


def overlap(a: sp.csr_matrix, b: sp.csr_matrix) -> np.ndarray:
    """Weighted Jaccard index of each pair of rows: 1 for equal rank lists, 0 for lists without a common gene."""
    both, any_ = (np.asarray(m.sum(axis=1)).ravel() for m in (a.minimum(b), a.maximum(b)))
    return both / np.maximum(any_, 1e-12)


def near_copies(cells: Distances, true: Distances) -> np.ndarray:
    """Cells that overlap with a training cell more than all but 1% of the true cells do."""
    return cells.overlap > np.quantile(true.overlap, 1 - NEAR)


def exact_copies(cells: Distances) -> np.ndarray:
    """Cells with the rank list of a training cell."""
    return cells.overlap > 1 - 1e-6


def in_balls(cells: Cells, true: Cells, k: int) -> np.ndarray:
    """True cells x cells, bool: within the distance of the true cell to its k-th nearest other true cell."""
    from sklearn.metrics import pairwise_distances
    from sklearn.neighbors import NearestNeighbors

    radius = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(true.place).kneighbors()[0][:, -1]
    return pairwise_distances(true.place, cells.place) <= radius[:, None]


def nearer(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """For each pair, 1 if the first's distance is smaller, 0.5 if both are equal."""
    less, same = a[:, None] < b, np.isclose(a[:, None], b, rtol=1e-9, atol=0)
    return np.where(same, 0.5, less)


def weights_without(unit: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """Weights of cells (columns) without each unit (rows), all cells in the first row; and the number of units."""
    return jackknife_weights(pd.DataFrame({"unit": unit}), "unit", rng)


def mean_with_error(values: np.ndarray, weights: np.ndarray, n_units: int) -> tuple[float, float, int]:
    """Mean, its jackknife standard error, and degrees of freedom."""
    mean = weights @ values / np.maximum(weights.sum(axis=1), 1e-12)
    return (float(mean[0]), *jackknife_error(mean, n_units))


def share_interval(is_so: np.ndarray, weights: np.ndarray, n_units: int) -> tuple[float, float, float]:
    """A share with its 95% interval (Clopper and Pearson), for as many cells as the units are worth (Korn and Graubard, 1998)."""
    share, error, _ = mean_with_error(is_so.astype(float), weights, n_units)
    n = len(is_so)
    # A share of 0 or 1 does not say how alike the cells of a unit are: then each unit counts once.
    worth = n_units if not error > 0 else min(share * (1 - share) / error**2, n)
    hits = share * worth
    low = stats.beta.ppf(0.025, hits, worth - hits + 1) if hits > 0 else 0.0
    high = stats.beta.ppf(0.975, hits + 1, worth - hits) if hits < worth else 1.0
    return share, float(low), float(high)


def nearer_interval(pairs: np.ndarray, left: list[tuple[np.ndarray, int]]) -> tuple[float, float, float]:
    """Mean of the pairs with its 95% interval, both sides' units left out one by one."""
    sides = [
        mean_with_error(pairs.mean(axis=1 - axis), *weights)
        for axis, weights in zip((0, 1), left, strict=True)
    ]
    return (sides[0][0], *_reach(sides[0][0], sides, (0, 1)))


def spread(cells: Cells) -> float:
    """Root mean square distance between two of the cells."""
    return float(_spreads(cells, np.ones((1, len(cells.unit))))[0])


def spread_ratio(cells: Cells, true: Cells, left: list[tuple[np.ndarray, int]]) -> tuple[float, float, float]:
    """Spread of the cells over that of true cells, with its 95% interval."""
    values = [_spreads(one, weights) for one, (weights, _) in zip((cells, true), left, strict=True)]
    if not values[0][0] > 1e-6 * values[1][0]:
        return 0.0, 0.0, 0.0
    with np.errstate(divide="ignore"):
        logs = [np.log(value) for value in values]
    sides = [(0.0, *jackknife_error(log, n)) for log, (_, n) in zip(logs, left, strict=True)]
    log = logs[0][0] - logs[1][0]
    return (float(np.exp(log)), *(float(np.exp(end)) for end in _reach(log, sides, (-np.inf, np.inf))))


def _spreads(cells: Cells, weights: np.ndarray) -> np.ndarray:
    """Spread for each row of weights 0 and 1."""
    X = cells.place
    square = np.asarray(X.multiply(X).sum(axis=1)).ravel() if sp.issparse(X) else (X**2).sum(axis=1)
    total = (X.T @ weights.T).T
    n = weights.sum(axis=1)
    inner = np.maximum(weights @ square - (total**2).sum(axis=1) / np.maximum(n, 1), 0)
    return np.sqrt(2 * inner / np.maximum(n - 1, 1))


def _reach(value: float, sides: list[tuple[float, float, int]], limits) -> tuple[float, float]:
    """Ends of the 95% interval of what has an error from two sides; NaN where one is not known."""
    error = np.hypot(sides[0][1], sides[1][1])
    if not np.isfinite(error):
        return np.nan, np.nan
    reach = stats.t.ppf(0.975, min(df for _, _, df in sides)) * error
    return float(max(value - reach, limits[0])), float(min(value + reach, limits[1]))


def permutation_p(
    a: np.ndarray, b: np.ndarray, units: tuple[np.ndarray, np.ndarray], n: int, rng: np.random.Generator
) -> float:
    """Two-sided p of how often the first distances are smaller, by exchanging units between the two sets."""
    names = np.concatenate([np.char.add(f"{i} ", unit.astype(str)) for i, unit in enumerate(units)])
    unique, code = np.unique(names, return_inverse=True)
    rank = np.bincount(code, stats.rankdata(np.concatenate([a, b])))
    size = np.bincount(code).astype(float)
    mine = np.array([name[0] == "0" for name in unique])
    drawn = np.vstack([mine, rng.permuted(np.tile(mine, (n, 1)), axis=1)]).astype(float)
    n_mine = drawn @ size
    below = (drawn @ rank - n_mine * (n_mine + 1) / 2) / (n_mine * (size.sum() - n_mine))
    away = np.abs(below - 0.5)
    return float((away >= away[0] - 1e-12).mean())


def distinct_lists(ranks: sp.csr_matrix) -> float:
    """Share of different gene sets among the cells."""
    sets = {ranks.indices[a:b].tobytes() for a, b in zip(ranks.indptr[:-1], ranks.indptr[1:], strict=True)}
    return len(sets) / ranks.shape[0]
