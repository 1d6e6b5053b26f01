"""Simple predictions of a response: what a perturbation did to others, moved to a population.

Arrays are contexts x perturbations x genes, with NaN for populations that are not known.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np

BASELINES = ("no change", "treated mean", "context mean", "perturbation mean")
WAYS = ("additive", "nearest neighbours", "linear shift")


class Known(NamedTuple):
    """What predictions are made of."""

    control: np.ndarray
    """Mean of the controls, contexts x genes."""
    treated: np.ndarray
    """Mean of the treated cells, contexts x perturbations x genes."""
    described: np.ndarray | None
    """Perturbations x descriptors."""

    @property
    def change(self) -> np.ndarray:
        """Treated less control."""
        return self.treated - self.control[:, None]

    @property
    def seen(self) -> np.ndarray:
        """Which populations are known, contexts x perturbations."""
        return np.isfinite(self.treated[..., 0])


def mean_changes(known: Known) -> np.ndarray:
    """Mean change of each perturbation over contexts, perturbations x genes; see `fill_unseen` for those never seen."""
    return fill_unseen(_nan_mean(known.change, 0), known.described)


def fill_unseen(effects: np.ndarray, described: np.ndarray | None) -> np.ndarray:
    """Effects with those of unseen perturbations: from descriptors by ridge regression, else the mean of all others."""
    seen = np.isfinite(effects[:, 0])
    if seen.all() or not seen.any():
        return effects
    filled = effects.copy()
    if described is None or seen.sum() < 3:
        filled[~seen] = effects[seen].mean(axis=0)
        return filled
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # The penalty is that of the smallest error on perturbations left out one by one.
    ridge = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 4, 13)))
    filled[~seen] = ridge.fit(described[seen], effects[seen]).predict(described[~seen])
    return filled


def additive_changes(known: Known) -> np.ndarray:
    """Change as a sum of one of the context and one of the perturbation, contexts x perturbations x genes.

    By least squares over the populations that are known. A context of which none is known has the mean of the
    others.
    """
    seen = known.seen
    n_contexts, n_perturbations = seen.shape
    c, p = np.nonzero(seen)
    design = np.zeros((len(c), n_contexts + n_perturbations))
    design[np.arange(len(c)), c] = 1
    design[np.arange(len(c)), n_contexts + p] = 1
    found = np.linalg.lstsq(design, known.change[c, p], rcond=None)[0]
    of_context, of_perturbation = found[:n_contexts], found[n_contexts:]
    has = seen.any(axis=1)
    of_context[~has] = of_context[has].mean(axis=0)
    of_perturbation[~seen.any(axis=0)] = np.nan
    return of_context[:, None] + fill_unseen(of_perturbation, known.described)[None]


def own_slope(known: Known) -> float:
    """How a gene's change goes with its level in the controls, one slope for all genes; 0 where it cannot be known.

    Of each population known, change and control level less those of the other contexts of the perturbation,
    regressed through 0. Minus 1 where treated cells are alike however the controls were, 0 where the change
    is the same.
    """
    change, seen = known.change, known.seen
    n = seen.sum(axis=0)
    use = seen & (n > 1)
    if not use.any():
        return 0.0
    control = np.where(seen[..., None], known.control[:, None], 0)
    change = np.where(seen[..., None], change, 0)
    scale = np.where(n > 1, n / np.maximum(n - 1, 1), 0)[None, :, None]
    # A value less the mean of the others is n / (n - 1) times what it is less the mean of all.
    x, y = (
        (part - part.sum(axis=0) / np.maximum(n, 1)[:, None]) * scale * use[..., None]
        for part in (control, change)
    )
    total = (x * x).sum()
    return float((x * y).sum() / total) if total > 0 else 0.0


def predict(known: Known, given: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Predicted means, contexts x perturbations x genes; NaN where a way has nothing to go by.

    Parameters
    ----------
    known
        Populations that may be learned from.
    given
        Control means to begin from, contexts x genes.
    weights
        How much each context is like each other, contexts x perturbations x contexts: for each perturbation
        among those that it is known of.
    """
    seen, start = known.seen, given[:, None]
    effect = mean_changes(known)
    shape = known.treated.shape
    level = _nan_mean(known.treated, 0)
    level[~seen.any(axis=0)] = _nan_mean(level, 0)
    context = np.repeat(_nan_mean(known.treated, 1)[:, None], shape[1], axis=1)
    near = weights * seen.T[None]
    total = near.sum(axis=2)
    change = np.einsum("tpc,cpg->tpg", near, np.where(seen[..., None], known.change, 0))
    with np.errstate(invalid="ignore", divide="ignore"):
        change = change / total[..., None]
    change = np.where((total > 0)[..., None], change, effect[None])
    # The level from which a perturbation's mean change was measured.
    n = np.maximum(seen.sum(axis=0), 1)[:, None]
    origin = np.einsum("cp,cg->pg", seen, known.control) / n
    origin[~seen.any(axis=0)] = known.control.mean(axis=0)
    return {
        "no change": np.broadcast_to(start, shape),
        "treated mean": np.broadcast_to(level[None], shape),
        "context mean": context,
        "perturbation mean": start + effect[None],
        "additive": start + additive_changes(known),
        "nearest neighbours": start + change,
        "linear shift": start + effect[None] + own_slope(known) * (start - origin[None]),
    }


def _nan_mean(values: np.ndarray, axis: int) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of populations without any
        return np.nanmean(values, axis=axis)
