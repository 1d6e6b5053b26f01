"""Scores of a predicted response to a perturbation, for many resampled truths at once."""

from __future__ import annotations

from collections.abc import Sequence
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
    "mse_weighted",
)
OF_TOP = ("pearson_control_top", "top_overlap", "top_direction", "mse_top")


class Truth(NamedTuple):
    """True means and variances of one perturbation, draws x genes; the first draw is the data as it is."""

    treated: np.ndarray
    control: np.ndarray
    t: np.ndarray
    """Welch's t of each gene, treated against control."""
    perturbed: np.ndarray | None
    """Mean over all perturbations; `None` where there is only one."""
    variance: np.ndarray
    """Variance of each gene between cells, within treated and control cells."""


def score_names(n_top: Sequence[int]) -> list[str]:
    """Names of the scores; those of the top genes bear their number where there are several."""
    many = len(n_top) > 1
    return [
        name if not (many and name in OF_TOP) else f"{name}{n}"
        for name in SCORES
        for n in (n_top if many and name in OF_TOP else n_top[:1])
    ]


def score_response(
    predicted: np.ndarray, truth: Truth, n_top: Sequence[int], *, given: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Scores of a predicted mean (genes) for each draw of the truth; NaN where something does not vary.

    Parameters
    ----------
    predicted
        Genes.
    truth
        What is true.
    n_top
        Numbers of top genes.
    given
        Control mean that the prediction began from, where that of the truth is of other cells: predicted
        changes are from there.
    """
    change = predicted - (truth.control if given is None else given[None])
    true = truth.treated - truth.control
    change = np.broadcast_to(change, true.shape)
    ranked = np.argsort(-np.abs(truth.t), axis=1, kind="stable")
    guessed = np.argsort(-np.abs(change), axis=1, kind="stable")
    some = np.abs(change).max(axis=1) > 0  # no change has no largest changes, and no direction
    error = (predicted - truth.treated) ** 2
    varies = truth.variance > 0
    found = {
        "pearson_control": pearson(change, true),
        "pearson_perturbed": np.full(len(true), np.nan),
        "spearman_control": pearson(stats.rankdata(change, axis=1), stats.rankdata(true, axis=1)),
        "mse": error.mean(axis=1),
        "mse_weighted": (error[:, varies] / truth.variance[varies]).mean(axis=1),
    }
    if truth.perturbed is not None:
        found["pearson_perturbed"] = pearson(predicted - truth.perturbed, truth.treated - truth.perturbed)
    for n in n_top:
        top, suffix = ranked[:, :n], str(n) if len(n_top) > 1 else ""
        in_top = np.zeros(true.shape, dtype=bool)
        np.put_along_axis(in_top, top, np.ones_like(top, dtype=bool), axis=1)
        own, real = np.take_along_axis(change, top, 1), np.take_along_axis(true, top, 1)
        found |= {
            f"pearson_control_top{suffix}": pearson(own, real),
            f"top_overlap{suffix}": np.where(
                some, np.take_along_axis(in_top, guessed[:, :n], 1).mean(axis=1), np.nan
            ),
            f"top_direction{suffix}": np.where(some, (np.sign(own) == np.sign(real)).mean(axis=1), np.nan),
            f"mse_top{suffix}": np.take_along_axis(error, top, 1).mean(axis=1),
        }
    return {name: found[name] for name in score_names(n_top)}


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
