"""How well a score tells two kinds of cells apart, for many weightings of them at once."""

from __future__ import annotations

import numpy as np

_WEIGHTS = 1 << 24  # numbers held in memory at once


def auroc_ap(score: np.ndarray, positive: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Area under the ROC curve and average precision.

    Parameters
    ----------
    score
        One a cell; equal scores are one threshold.
    positive
        Whether the cell is a doublet.
    weight
        Weightings x cells, e.g. how often each cell was drawn in a bootstrap.

    Returns
    -------
    Both, one a weighting; NaN where all the weight is on one side.
    """
    order = np.argsort(-score, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(score[order]) != 0))
    step = max(1, _WEIGHTS // max(len(score), 1))
    parts = [
        _areas(weight[i : i + step, order], positive[order], starts) for i in range(0, len(weight), step)
    ]
    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))


def _areas(weight: np.ndarray, positive: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    weight = weight.astype(np.float64)
    hits = np.add.reduceat(weight * positive, starts, axis=1)
    misses = np.add.reduceat(weight * ~positive, starts, axis=1)
    n_hits, n_misses = hits.cumsum(axis=1), misses.cumsum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        # Each miss is below the hits before it, and half of those at its own threshold.
        area = ((n_hits - hits / 2) * misses).sum(axis=1) / (n_hits[:, -1] * n_misses[:, -1])
        precision = np.where(n_hits + n_misses > 0, n_hits / (n_hits + n_misses), 0)
        average = (precision * hits).sum(axis=1) / np.where(n_misses[:, -1] > 0, n_hits[:, -1], np.nan)
    return area, np.where(n_hits[:, -1] > 0, average, np.nan)


def calibration(
    probability: np.ndarray, positive: np.ndarray, weight: np.ndarray, *, n_bins: int = 10
) -> dict[str, np.ndarray]:
    """Mean probability, share of doublets and weight in bins of equal width; empty bins are left out."""
    which = np.minimum((probability * n_bins).astype(int), n_bins - 1)
    total = np.bincount(which, weight, n_bins)
    used = total > 0
    sums = [np.bincount(which, weight * x, n_bins)[used] for x in (probability, positive)]
    return {
        "predicted": sums[0] / total[used],
        "observed": sums[1] / total[used],
        "weight": total[used] / total.sum(),
    }


def calibration_error(probability: np.ndarray, positive: np.ndarray, weight: np.ndarray) -> float:
    """Expected calibration error: the mean distance of what is predicted and observed, over ten bins."""
    bins = calibration(probability, positive, weight)
    return float((bins["weight"] * np.abs(bins["predicted"] - bins["observed"])).sum())


def at_odds(probability: np.ndarray, rate: float) -> np.ndarray:
    """Probabilities that hold at even odds, for a share `rate` of doublets."""
    return rate * probability / (rate * probability + (1 - rate) * (1 - probability))


def bootstrap_weights(unit: np.ndarray | None, n: int, n_draws: int, rng: np.random.Generator) -> np.ndarray:
    """How often each of n cells is drawn, units (or else cells) with replacement; draws x cells, float32."""
    if unit is None:
        return rng.multinomial(n, np.full(n, 1 / n), n_draws).astype(np.float32)
    names, of_cell = np.unique(unit, return_inverse=True)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), n_draws)
    return drawn.astype(np.float32)[:, of_cell]
