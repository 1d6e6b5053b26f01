"""Whether sets of genes have high values among genes that are like them: rank sums within strata, all sets at once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from scipy import stats

MIN_ACTIVE = 3  # genes of a set that must have a value for it to be called high


class SetRanks(NamedTuple):
    """Sets x scores."""

    auroc: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p_value: np.ndarray
    n_active: np.ndarray
    """Genes of the set with a value above 0."""


def rank_sums(values: np.ndarray, member: np.ndarray | sp.spmatrix, strata: np.ndarray) -> SetRanks:
    """Compare the genes of each set with the others of their strata.

    Parameters
    ----------
    values
        Genes x scores, none below 0, most of them 0.
    member
        Genes x sets, 1 (or true) for members.
    strata
        Of each gene.

    Returns
    -------
    The chance that a gene of the set has a higher value than another one of its stratum (equal ones count
    half), with a 95% interval of the null's width, and two-sided p values: membership permuted within the
    strata, whose first three moments give a Pearson distribution of type III. Such a curve does not know
    counts of one or two genes: with fewer than three active genes a set is not called high (p = 1).
    """
    strata = np.unique(strata, return_inverse=True)[1]
    n_strata = int(strata.max()) + 1
    ranks = np.empty(values.shape)
    for one in range(n_strata):
        rows = strata == one
        ranks[rows] = stats.rankdata(values[rows], axis=0)
    into = sp.csr_matrix((np.ones(len(strata)), (strata, np.arange(len(strata)))))
    n = np.bincount(strata).astype(float)[:, None]
    middle = (n + 1) / 2
    centred = ranks - middle[strata]
    second, third = into @ centred**2 / n, into @ centred**3 / n
    inside = sp.csr_matrix(member, dtype=np.float64)
    m = (into @ inside).toarray()
    out = n - m
    above = inside.T @ centred
    with np.errstate(invalid="ignore", divide="ignore"):
        of_variance = np.where(n > 1, m * out / (n - 1), 0)
        of_skew = np.where(n > 2, m * out * (out - m) / ((n - 1) * (n - 2)), 0)
        sd = np.sqrt(of_variance.T @ second)
        z = np.where(sd > 0, above / sd, 0)
        skew = np.where(sd > 0, (of_skew.T @ third) / sd**3, 0)
        pairs = (m * out).sum(axis=0)[:, None]
        area = 0.5 + above / pairs
        reach = stats.norm.ppf(0.975) * sd / pairs
    upper, lower = _tails(z, skew)
    n_active = np.asarray(inside.T @ (values > 0)).astype(int)
    p = np.clip(2 * np.minimum(upper, lower), 0, 1)
    p = np.where((z > 0) & (n_active < MIN_ACTIVE), 1.0, p)
    p = np.where((sd > 0) & (pairs > 0), p, np.nan)
    return SetRanks(area, np.clip(area - reach, 0, 1), np.clip(area + reach, 0, 1), p, n_active)


def _tails(z: np.ndarray, skew: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Chances above and below of a gamma distribution with this skewness, shifted to mean 0 and variance 1."""
    upper, lower = stats.norm.sf(z), stats.norm.cdf(z)
    skewed = np.abs(skew) > 1e-3
    shape = 4 / np.where(skewed, skew, 1) ** 2
    at = shape + np.sign(skew) * z * np.sqrt(shape)
    above, below = stats.gamma.sf(at, shape), stats.gamma.cdf(at, shape)
    right = skew > 0
    upper = np.where(skewed, np.where(right, above, below), upper)
    lower = np.where(skewed, np.where(right, below, above), lower)
    return upper, lower
