"""Which groups depend on which genes: predicted for groups left out, from how genes differ between groups."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np

from .binary_scores import auroc_ap
from .gene_probe import fit_scores

PENALTY = 0.1
N_STRATA = 10


class Panel(NamedTuple):
    """What is known of genes in groups."""

    features: np.ndarray
    """Genes x groups x columns."""
    labels: np.ndarray
    """Genes x groups, 1 where the group depends on the gene, 0 where not, NaN for not known."""
    seen: np.ndarray
    """Genes x groups, whether the pair has features in every predictor."""
    others: np.ndarray
    """Genes x 2: groups without features that depend on the gene, and those of which it is known."""
    fold: np.ndarray
    """Fold of each group."""
    limits: tuple[float, float]
    """Least and largest share of the other groups that depends on a gene, for it to be a candidate."""


class Predicted(NamedTuple):
    """Candidates of one group."""

    rows: np.ndarray
    log_odds: np.ndarray
    share: np.ndarray
    labels: np.ndarray


def predict_groups(panel: Panel) -> list[Predicted]:
    """Log odds that each group depends on its candidates, by groups of the other folds."""
    y, seen = panel.labels, panel.seen
    found: list[Predicted | None] = [None] * y.shape[1]
    for i in np.unique(panel.fold):
        train, test = np.flatnonzero(panel.fold != i), np.flatnonzero(panel.fold == i)
        depends = np.nansum(y[:, train], axis=1) + panel.others[:, 0]
        known = np.isfinite(y[:, train]).sum(axis=1) + panel.others[:, 1]
        share = _share(depends, known)
        mine = np.where(seen[:, train, None], panel.features[:, train], np.nan)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # genes that no group of the training shows
            centre = np.nanmean(mine, axis=1)
        shown = seen[:, train].any(axis=1)
        # Pairs of the training: a gene's share is that of all groups but its own.
        pair = np.argwhere(seen[:, train] & np.isfinite(y[:, train]))
        gene, group = pair[:, 0], train[pair[:, 1]]
        own = y[gene, group]
        left = _share(depends[gene] - own, known[gene] - 1)
        inside = _between(left, panel.limits)
        gene, group, own, left = gene[inside], group[inside], own[inside], left[inside]
        X = _columns(panel.features[gene, group], centre[gene], left)
        asked = [np.flatnonzero(seen[:, g] & shown & _between(share, panel.limits)) for g in test]
        where = np.concatenate(asked) if asked else np.zeros(0, np.int64)
        of = np.repeat(test, [len(rows) for rows in asked])
        both = np.vstack([X, _columns(panel.features[where, of], centre[where], share[where])])
        labels = np.concatenate([own, np.zeros(len(where))])
        n = len(own)
        scores = (
            fit_scores(both, labels, np.arange(n), n + np.arange(len(where)), PENALTY)
            if panel.features.shape[2]
            else both[n:, 0]
        )
        start = 0
        for g, rows in zip(test, asked, strict=True):
            stop = start + len(rows)
            found[g] = Predicted(rows, scores[start:stop], share[rows], y[rows, g])
            start = stop
    return found


def _share(depends: np.ndarray, known: np.ndarray) -> np.ndarray:
    return np.where(known > 0, depends / np.maximum(known, 1), np.nan)


def _between(share: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Whether shares are within the limits, both included but for rounding."""
    return (share >= limits[0] - 1e-9) & (share <= limits[1] + 1e-9)


def _columns(features: np.ndarray, centre: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Share (log odds), mean over groups, and how far the group is from that."""
    share = np.clip(share, 0.01, 0.99)
    return np.hstack([np.log(share / (1 - share))[:, None], centre, features - centre])


def area_within(scores: np.ndarray, labels: np.ndarray, share: np.ndarray) -> float:
    """AUROC over pairs of genes of the same tenth of the share; NaN where no tenth has both kinds."""
    stratum = np.minimum((share * N_STRATA + 1e-9).astype(int), N_STRATA - 1)
    total = pairs = 0.0
    for i in np.unique(stratum):
        rows = stratum == i
        n_in = labels[rows].sum()
        n_pairs = n_in * (rows.sum() - n_in)
        if n_pairs:
            area = auroc_ap(scores[rows], labels[rows] > 0, np.ones((1, rows.sum())))[0][0]
            total, pairs = total + area * n_pairs, pairs + n_pairs
    return total / pairs if pairs else np.nan


def precision_of_top(scores: np.ndarray, labels: np.ndarray, n: int) -> float:
    """Share of the n highest scores that have the label; NaN where there are none."""
    top = np.argsort(-scores, kind="stable")[:n]
    return float(labels[top].mean()) if len(top) else np.nan


def shuffled_within_genes(labels: np.ndarray, seen: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Labels of each gene exchanged between the groups of which they are known and that show the gene."""
    movable = np.isfinite(labels) & seen
    keys = np.where(movable, rng.random(labels.shape), np.inf)
    order = np.argsort(keys, axis=1)
    # Each gene's movable places in their own order receive its labels in a random one.
    places = np.argsort(np.where(movable, np.arange(labels.shape[1]), np.inf), axis=1, kind="stable")
    shuffled = labels.copy()
    n = movable.sum(axis=1)
    gene, i = np.nonzero(np.arange(labels.shape[1]) < n[:, None])
    shuffled[gene, places[gene, i]] = labels[gene, order[gene, i]]
    return shuffled
