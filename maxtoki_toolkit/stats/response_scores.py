"""Scores of a predicted response to a perturbation, for many resampled truths at once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import stats

SCORES = (
    "pearson_control",
    "pearson_control_top",
    "pearson_perturbed",
    "spearman_control",
    "top_overlap",
    "top_direction",
    "mse",
    "mse_top",
)


class Truth(NamedTuple):
    """True means and variances of one perturbation, draws x genes; the first draw is the data as it is."""

    treated: np.ndarray
    control: np.ndarray
    t: np.ndarray
    """Welch's t of each gene, treated against control."""
    perturbed: np.ndarray | None
    """Mean over all perturbations; `None` where there is only one."""


def score_response(predicted: np.ndarray, truth: Truth, n_top: int) -> dict[str, np.ndarray]:
    """Scores of a predicted mean (genes) for each draw of the truth; NaN where something does not vary."""
    change, true = predicted - truth.control, truth.treated - truth.control
    top = np.argsort(-np.abs(truth.t), axis=1, kind="stable")[:, :n_top]
    guessed = np.argsort(-np.abs(change), axis=1, kind="stable")[:, :n_top]
    in_top = np.zeros(true.shape, dtype=bool)
    np.put_along_axis(in_top, top, np.ones_like(top, dtype=bool), axis=1)
    some = np.abs(change).max(axis=1) > 0  # no change has no largest changes, and no direction
    found = {
        "pearson_control": pearson(change, true),
        "pearson_control_top": pearson(np.take_along_axis(change, top, 1), np.take_along_axis(true, top, 1)),
        "pearson_perturbed": np.full(len(true), np.nan),
        "spearman_control": pearson(stats.rankdata(change, axis=1), stats.rankdata(true, axis=1)),
        "top_overlap": np.where(some, np.take_along_axis(in_top, guessed, 1).mean(axis=1), np.nan),
        "top_direction": np.where(
            some,
            (np.sign(np.take_along_axis(change, top, 1)) == np.sign(np.take_along_axis(true, top, 1))).mean(
                axis=1
            ),
            np.nan,
        ),
        "mse": ((predicted - truth.treated) ** 2).mean(axis=1),
        "mse_top": (np.take_along_axis(predicted - truth.treated, top, 1) ** 2).mean(axis=1),
    }
    if truth.perturbed is not None:
        found["pearson_perturbed"] = pearson(predicted - truth.perturbed, truth.treated - truth.perturbed)
    return found


def pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Correlation of rows; NaN where one does not vary beyond rounding."""
    size = [np.abs(part).max(axis=1, initial=0) for part in (a, b)]
    a, b = (part - part.mean(axis=1, keepdims=True) for part in (a, b))
    norm = [np.sqrt((part**2).sum(axis=1)) for part in (a, b)]
    varies = (norm[0] > 1e-9 * size[0]) & (norm[1] > 1e-9 * size[1])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(varies, (a * b).sum(axis=1) / (norm[0] * norm[1]), np.nan)


def discrimination(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Of each prediction, the share of the other perturbations whose true mean is further away than the right one.

    Parameters
    ----------
    predicted, truth
        Perturbations x genes, and draws x perturbations x genes.

    Returns
    -------
    Draws x perturbations: 1 where the right one is the nearest, 0.5 by chance; NaN for fewer than two. Ties
    count half.
    """
    n = len(predicted)
    if n < 2:
        return np.full(truth.shape[:2], np.nan)
    distance = (
        (predicted**2).sum(axis=1)[None, :, None]
        + (truth**2).sum(axis=2)[:, None, :]
        - 2 * np.einsum("pg,dqg->dpq", predicted, truth)
    )
    own = np.einsum("dpp->dp", distance)[:, :, None]
    size = 1e-9 * np.abs(distance).max()
    further, same = distance > own + size, np.abs(distance - own) <= size
    # Each is as far as itself, which is not counted.
    return (further.sum(axis=2) + (same.sum(axis=2) - 1) / 2) / (n - 1)
