"""What genes like this one do: where an effect would lie if the gene were no other than those it is matched to."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import stats

MIN_NULL = 10  # genes
_DF = 3.0, 8.0


class Null(NamedTuple):
    """Null of each gene."""

    mean: np.ndarray
    sd: np.ndarray
    n: np.ndarray
    """int64: genes it is made from."""
    z: np.ndarray
    """How far each gene is from the mean, in sd; NaN where the null has no spread, but 0 for what lies on it."""


def matched_null(
    effects: np.ndarray, covariates: np.ndarray, size: int = 40, *, use: np.ndarray | None = None
) -> Null:
    """Centre and spread of the effects of the genes that are nearest to each gene.

    Parameters
    ----------
    effects
        Effects of the genes, NaN for none.
    covariates
        Genes x covariates, on one scale.
    size
        Genes that each is compared with, itself left out.
    use
        Which genes may stand for others; all by default.

    Notes
    -----
    Median and half the range of the middle 68%: genes that do matter are among them. Where `MIN_NULL` are not
    to be had, NaN.
    """
    known = np.isfinite(effects) & np.isfinite(covariates).all(axis=1)
    pool = np.flatnonzero(known & (True if use is None else use))
    mean, sd = np.full((2, len(effects)), np.nan)
    n = np.zeros(len(effects), dtype=np.int64)
    if len(pool) > MIN_NULL:
        from sklearn.neighbors import NearestNeighbors

        size = min(size, len(pool) - 1)
        rows = np.flatnonzero(known)
        trend = np.ones(len(effects))
        trend[rows] = spread_trend(effects[rows], covariates[rows], np.isin(rows, pool))
        effects = effects / trend
        near = NearestNeighbors(n_neighbors=size + 1).fit(covariates[pool]).kneighbors(covariates[rows])[1]
        others = effects[pool[near]]
        # Of those found, the gene itself, or else the farthest, is left out.
        own = pool[near] == rows[:, None]
        own[~own.any(axis=1), -1] = True
        others = others[~own].reshape(len(rows), size)
        low, middle, high = np.quantile(others, [0.16, 0.5, 0.84], axis=1)
        mean[rows], sd[rows], n[rows] = middle, (high - low) / 2, size
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(sd > 0, (effects - mean) / sd, np.where(effects == mean, 0.0, np.nan))
    trend = trend if n.any() else 1.0
    return Null(mean * trend, sd * trend, n, z)


def spread_trend(effects: np.ndarray, covariates: np.ndarray, fit: np.ndarray) -> np.ndarray:
    """How the size of effects goes with the covariates (0 to 1): a curve, fitted to the logarithm of the sizes.

    The highest ranked genes have no equals: without it they would be compared with genes that do less.
    """
    size = np.abs(effects - np.median(effects[fit]))
    least = np.quantile(size[fit], 0.05)
    if not least > 0:
        return np.ones(len(effects))
    c = np.clip(covariates, 1e-3, 1 - 1e-3)
    X = np.column_stack([np.ones(len(c)), c, np.log(c), np.log(1 - c)])
    y = np.log(np.maximum(size, least))
    beta = np.linalg.lstsq(X[fit], y[fit], rcond=None)[0]
    return np.exp(X @ beta - y[fit].mean())


def null_df(n: np.ndarray) -> np.ndarray:
    """Degrees of freedom of the t distribution that z of genes follows that are no other than the n they are matched to.

    A spread estimated from few genes errs, and what models make of genes has longer tails than a normal
    distribution. A fifth of n, 8 at most, is what genes that drive nothing show
    (`benchmarks/perturbation.py`). It is not fitted to the screen at hand, where genes that matter would pass
    for tails.
    """
    return np.clip(np.asarray(n) / 5, *_DF)


def moderated_error(error: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Standard error of a mean over n donors: of its own spread and that of all genes, half each.

    Few donors agree by chance now and then; their own spread alone would make much of it.
    """
    pooled = np.nanmedian(error**2 * n) / n
    return np.sqrt((error**2 + pooled) / 2)


def two_sided_p(z: np.ndarray, df: np.ndarray) -> np.ndarray:
    """P of z, whose unit is half the middle 68% of a t distribution."""
    return 2 * stats.t.sf(np.abs(z) * stats.t.ppf(0.84, df), df)


def storey(p_values: np.ndarray) -> np.ndarray:
    """Q values as Benjamini and Hochberg's, times the share of true nulls (Storey, 2002; lambda 0.5)."""
    from .fdr import benjamini_hochberg

    known = np.isfinite(p_values)
    if not known.any():
        return benjamini_hochberg(p_values)
    share = min(1.0, ((p_values[known] > 0.5).sum() + 1) / (0.5 * known.sum()))
    return benjamini_hochberg(p_values) * share
