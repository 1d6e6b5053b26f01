"""Straight lines through many genes at once, and genes that turn over between two of them."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy import stats


def rank_scores(ranks: sp.csr_matrix) -> sp.csr_matrix:
    """Cells x genes, float64: 1 for a cell's highest gene, falling evenly to 0 for genes that it does not express."""
    scores = sp.csr_matrix(ranks, dtype=np.float64)
    length = np.diff(scores.indptr)
    scores.data = 1 - (scores.data - 1) / np.repeat(length, length)
    return scores


def sample_means(X: sp.csr_matrix, sample: np.ndarray) -> sp.csr_matrix:
    """Mean row of each sample, in the order of their codes."""
    n = np.bincount(sample)
    member = sp.csr_matrix((1 / n[sample], (sample, np.arange(len(sample)))), shape=(len(n), len(sample)))
    return sp.csr_matrix(member @ X)


def fit_lines(
    Y: sp.csr_matrix | np.ndarray, time: np.ndarray, donor: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, int]:
    """Slope of each gene on time by least squares, its t statistic, and the degrees of freedom.

    Donors that are seen at several times have an intercept each.
    """
    centred = time - time.mean()
    level = np.ones((len(time), 1))
    if donor is not None and len(np.unique(donor)) < len(donor):
        level = (donor[:, None] == np.unique(donor)).astype(float)
    # What the intercepts explain of time explains no slope.
    basis, _ = np.linalg.qr(level)
    rest = centred - basis @ (basis.T @ centred)
    size, df = rest @ rest, len(time) - level.shape[1] - 1
    slope, t = np.zeros(Y.shape[1]), np.zeros(Y.shape[1])
    if size < 1e-9 * max(centred @ centred, 1e-9) or df < 1:
        return slope, t, 0
    slope = (Y.T @ rest) / size
    total = np.asarray((Y.multiply(Y) if sp.issparse(Y) else Y * Y).sum(axis=0)).ravel()
    explained = ((Y.T @ basis) ** 2).sum(axis=1) + slope**2 * size
    error = np.sqrt(np.maximum(total - explained, 0) / df / size)
    known = error > 1e-9 * np.sqrt(np.maximum(total, 1e-30) / size)
    t[known] = slope[known] / error[known]
    return slope, t, df


def two_lines(
    Y: sp.csr_matrix | np.ndarray,
    time: np.ndarray,
    first: float,
    last: float,
    donor: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Slopes of each gene up to the end of an interval and from its beginning, and whether they differ in sign.

    The p value is two-sided, for either direction the larger of the two slopes' one-sided ones (t tests):
    both have to differ from 0. Lines with intercepts of their own find no turn in what only levels off
    (Simonsohn, 2018).
    """
    sides = []
    for part in (time <= last, time >= first):
        rows = np.flatnonzero(part)
        slope, t, df = fit_lines(Y[rows], time[rows], None if donor is None else donor[rows])
        rises = stats.t.sf(t, df) if df else np.ones(Y.shape[1])
        falls = stats.t.cdf(t, df) if df else np.ones(Y.shape[1])
        sides.append((slope, rises, falls))
    (before, up_before, down_before), (after, up_after, down_after) = sides
    peak, dip = np.maximum(up_before, down_after), np.maximum(down_before, up_after)
    return before, after, np.minimum(1, 2 * np.minimum(peak, dip))
