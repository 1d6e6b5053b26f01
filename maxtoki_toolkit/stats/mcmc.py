"""Have chains come to the same distribution, and how much do they tell? For many groups of chains at once."""

from __future__ import annotations

import numpy as np
from scipy import fft, stats


def rhat(draws: np.ndarray) -> np.ndarray:
    """Rank-normalised split R-hat (Vehtari et al., Bayesian Analysis 2021), the larger of that of location and of spread.

    Parameters
    ----------
    draws
        ... x chains x draws.

    Returns
    -------
    float64 of the leading shape: about 1 where chains agree; NaN for fewer than 4 draws or where nothing
    varies.

    Notes
    -----
    The formulas of arviz, for all groups at once: arviz-stats takes one at a time, and seconds to import.
    """
    draws = np.asarray(draws, dtype=float)
    if draws.shape[-1] < 4:
        return np.full(draws.shape[:-2], np.nan)
    halves = _split(draws)
    folded = np.abs(halves - np.median(halves, axis=(-2, -1), keepdims=True))
    return np.fmax(_rhat(_normal_scores(halves)), _rhat(_normal_scores(folded)))


def effective_size(draws: np.ndarray) -> np.ndarray:
    """How many independent draws tell as much of the middle of the distribution (bulk ESS, Vehtari et al. 2021).

    Parameters
    ----------
    draws
        ... x chains x draws.

    Returns
    -------
    float64 of the leading shape; NaN for fewer than 4 draws or where nothing varies.
    """
    draws = np.asarray(draws, dtype=float)
    if draws.shape[-1] < 4:
        return np.full(draws.shape[:-2], np.nan)
    z = _normal_scores(_split(draws))
    m, n = z.shape[-2:]
    centred = z - z.mean(axis=-1, keepdims=True)
    spectrum = np.abs(fft.rfft(centred, 2 * n, axis=-1)) ** 2
    covariance = fft.irfft(spectrum, axis=-1)[..., :n].mean(axis=-2) / n
    within = covariance[..., :1] * n / (n - 1)
    total = within * (n - 1) / n + z.mean(axis=-1).var(axis=-1, ddof=1)[..., None]
    with np.errstate(divide="ignore", invalid="ignore"):
        rho = 1 - (within - covariance) / total
    rho[..., 0] = 1
    # Geyer (1992): sums of neighbours, up to the first that is negative, and never rising.
    pairs = rho[..., : n // 2 * 2].reshape(*rho.shape[:-1], -1, 2).sum(axis=-1)
    kept = np.logical_and.accumulate(pairs >= 0, axis=-1)
    time = -1 + 2 * np.where(kept, np.minimum.accumulate(pairs, axis=-1), 0).sum(axis=-1)
    after = np.take_along_axis(rho, np.minimum(2 * kept.sum(axis=-1), n - 1)[..., None], axis=-1)[..., 0]
    time = time + np.maximum(after, 0)
    return np.where(total[..., 0] > 0, m * n / np.maximum(time, 1 / np.log10(m * n)), np.nan)


def _split(draws: np.ndarray) -> np.ndarray:
    """Each chain as two: its first and its second half."""
    half = draws.shape[-1] // 2
    return np.concatenate([draws[..., :half], draws[..., -half:]], axis=-2)


def _normal_scores(x: np.ndarray) -> np.ndarray:
    """Ranks over all chains, as quantiles of the normal distribution (Blom)."""
    rank = stats.rankdata(x.reshape(*x.shape[:-2], -1), axis=-1).reshape(x.shape)
    return stats.norm.ppf((rank - 3 / 8) / (x.shape[-2] * x.shape[-1] + 1 / 4))


def _rhat(x: np.ndarray) -> np.ndarray:
    n = x.shape[-1]
    between = n * x.mean(axis=-1).var(axis=-1, ddof=1)
    within = x.var(axis=-1, ddof=1).mean(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.sqrt((between / within + n - 1) / n)
