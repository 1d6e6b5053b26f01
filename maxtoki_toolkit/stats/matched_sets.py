"""A set of genes against others that are like them: strata, ratios, and membership permuted within strata."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.stats import rankdata

STRATUM = 16  # genes; as many or up to twice as many are compared with each other
_CHUNK = 250  # permutations at a time


def make_strata(covariates: np.ndarray, size: int = STRATUM) -> np.ndarray:
    """Stratum of each gene: halved again and again, along the covariate (by rank) that varies most.

    Parameters
    ----------
    covariates
        Genes x covariates.
    size
        Genes a stratum has at least.
    """
    ranks = np.stack([rankdata(column) for column in covariates.T], axis=1)
    strata = np.zeros(len(ranks), dtype=np.int64)
    waiting, n = [np.arange(len(ranks))], 0
    while waiting:
        rows = waiting.pop()
        if len(rows) < 2 * size:
            strata[rows] = n
            n += 1
            continue
        widest = np.ptp(ranks[rows], axis=0).argmax()
        order = rows[np.argsort(ranks[rows, widest], kind="stable")]
        waiting += [order[: len(order) // 2], order[len(order) // 2 :]]
    return strata


def usable(member: np.ndarray, strata: np.ndarray) -> np.ndarray:
    """Genes of strata that hold both members and others: no other gene can be compared."""
    n_in = np.bincount(strata, member)
    n_out = np.bincount(strata, ~member)
    return ((n_in > 0) & (n_out > 0))[strata]


def other_weights(member: np.ndarray, strata: np.ndarray) -> np.ndarray:
    """Weight that a gene has as one of the others: each stratum counts as often as it has members. Sums to 1 over them."""
    n_in = np.bincount(strata, member)
    n_out = np.bincount(strata, ~member)
    return (n_in / np.maximum(n_out, 1))[strata] / member.sum()


def log2_ratio(rates: np.ndarray, member: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Log2 ratio of the mean rate of the members to that of the others, for each head (genes x heads)."""
    known = np.isfinite(rates).all(axis=1)
    inside = rates[known & member].mean(axis=0)
    outside = np.where(known & ~member, weight, 0)
    return np.log2(inside / (outside @ np.where(known[:, None], rates, 0) / outside.sum()))


def permuted(
    member: np.ndarray, strata: np.ndarray, n: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Membership with the same number of members in each stratum, draws x genes, some draws at a time."""
    order = np.argsort(strata, kind="stable")
    sizes = np.bincount(strata)
    sizes = sizes[sizes > 0]
    width = sizes.max()
    filled = np.arange(width) < sizes[:, None]
    n_in = np.zeros(filled.shape)
    n_in[filled] = member[order]
    n_in = n_in.sum(axis=1)
    for start in range(0, n, _CHUNK):
        draws = rng.random((min(_CHUNK, n - start), *filled.shape), dtype=np.float32)
        draws[:, ~filled] = 2
        place = draws.argsort(axis=2).argsort(axis=2)
        drawn = np.empty((len(draws), len(member)), dtype=bool)
        drawn[:, order] = (place < n_in[:, None])[:, filled]
        yield drawn


def null_ratios(
    rates: np.ndarray, member: np.ndarray, strata: np.ndarray, n: int, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """Ratios (draws x heads) of permuted members, and the mean share of members that were exchanged."""
    weight = other_weights(member, strata)
    values = np.hstack([rates, weight[:, None] * rates])
    n_heads = rates.shape[1]
    total = values[:, n_heads:].sum(axis=0)
    ratios, moved = [], []
    for drawn in permuted(member, strata, n, rng):
        sums = drawn.astype(np.float64) @ values
        ratios.append(np.log2(sums[:, :n_heads] / member.sum() / (total - sums[:, n_heads:])))
        moved.append((drawn & ~member).sum(axis=1) / member.sum())
    return np.concatenate(ratios), float(np.concatenate(moved).mean())


def two_sided(
    observed: np.ndarray, null: np.ndarray, flat: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """P value of each column, and the null's mean and standard deviation; 1 where nothing varies but by rounding."""
    middle, spread = null.mean(axis=0), null.std(axis=0)
    far = np.abs(null - middle) >= np.abs(observed - middle) * (1 - 1e-9)
    p = (1 + far.sum(axis=0)) / (len(null) + 1)
    return np.where(spread < flat, 1.0, p), middle, spread
