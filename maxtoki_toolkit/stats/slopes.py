"""Slopes of expression with age over samples of donors, and what they are where age has no part in them."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from .fdr import benjamini_hochberg

AGE = 1  # column of the design


def fit_slopes(level: np.ndarray, X: np.ndarray) -> pd.DataFrame:
    """Least squares of each column of `level` (samples x genes) on X, whose second column is age."""
    inverse = np.linalg.pinv(X.T @ X)
    beta = inverse @ (X.T @ level)
    df = len(X) - np.linalg.matrix_rank(X)
    error = np.sqrt(((level - X @ beta) ** 2).sum(axis=0) / df * inverse[AGE, AGE])
    slope, reach = beta[AGE], stats.t.ppf(0.975, df) * error
    # A gene without counts has no slope.
    varies = np.ptp(level, axis=0) > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        p = np.where(varies, 2 * stats.t.sf(np.abs(slope) / error, df), np.nan)
    slope, reach = np.where(varies, slope, np.nan), np.where(varies, reach, np.nan)
    return pd.DataFrame(
        {
            "slope": slope,
            "slope_low": slope - reach,
            "slope_high": slope + reach,
            "p_value": p,
            "q_value": benjamini_hochberg(p),
            "mean_expression": level.mean(axis=0),
        }
    )


def get_residuals(level: np.ndarray, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What X leaves of `level`, as large as what it would leave without age (float32); and the samples' weights in a slope."""
    rank = np.linalg.matrix_rank(X)
    inflated = np.sqrt((len(X) - rank + 1) / (len(X) - rank))
    residuals = level - X @ np.linalg.lstsq(X, level, rcond=None)[0]
    return (inflated * residuals).astype(np.float32), np.linalg.pinv(X)[AGE]


def null_slopes(
    residuals: np.ndarray, weight: np.ndarray, donor: np.ndarray, n: int, rng: np.random.Generator
) -> np.ndarray:
    """Slopes of noise: residuals exchanged between donors, all genes alike, so that genes go together as they do.

    Parameters
    ----------
    residuals, weight
        As `get_residuals` gives them: samples x genes, and one a sample.
    donor
        Of each sample. Donors are exchanged with those of as many samples.
    n
        Draws.
    rng
        Generator.

    Returns
    -------
    Draws x genes, float32.

    Notes
    -----
    Residuals of the whole model are permuted (ter Braak, in Bootstrapping and Related Techniques, 1992). With
    those of the model without age, a strong effect of age would be part of every draw, as much as its ages
    happen to go with the true ones; and rank correlations do not see that it is less of it.
    """
    _, code = np.unique(donor, return_inverse=True)
    size = np.bincount(code)
    rows = np.split(np.argsort(code, kind="stable"), np.cumsum(size)[:-1])
    drawn = np.empty((n, len(weight)), dtype=np.float32)
    for k in np.unique(size):
        block = np.stack([rows[i] for i in np.flatnonzero(size == k)])
        order = np.argsort(rng.random((n, len(block))), axis=1)
        drawn[:, block.ravel()] = weight[block][order].reshape(n, -1)
    return drawn @ residuals
