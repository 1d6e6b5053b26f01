"""A classifier of cells by the ranks of their genes, and scores of labels with donors as units."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from .donors import jackknife_interval

# Shares are brought to where their spread does not depend on them, so that no interval leaves 0 to 1.
_SCALE = (
    lambda share: np.arcsin(np.sqrt(np.clip(share, 0, 1))),
    lambda angle: float(np.sin(np.clip(angle, 0, np.pi / 2)) ** 2),
)


class Scores(NamedTuple):
    """Scores of labels, with a row for each row of weights."""

    accuracy: np.ndarray
    """float, rows."""
    macro_f1: np.ndarray
    """float, rows: mean F1 of the types that are asked for."""
    precision: np.ndarray
    """float, rows x types; NaN where no cell is annotated so."""
    recall: np.ndarray
    """float, rows x types; NaN where none is asked for."""
    f1: np.ndarray
    """float, rows x types; NaN where neither is."""


def fit_classifier(X: sp.csr_matrix, label: np.ndarray):
    """Multinomial logistic regression (L2, C = 1) in which each label weighs the same, however many cells it has."""
    from sklearn.feature_selection import VarianceThreshold
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    # Genes that no training cell shows would get a weight of 0; without them it is many times faster.
    classifier = LogisticRegression(class_weight="balanced", max_iter=1000)
    return make_pipeline(VarianceThreshold(), classifier).fit(X, label)


def score_labels(
    asked: np.ndarray, found: np.ndarray, n_types: int, weights: np.ndarray | None = None
) -> Scores:
    """Score the labels found by those asked for.

    Parameters
    ----------
    asked, found
        Type of each cell, from 0.
    n_types
        How many types there are.
    weights
        Weight of each cell (columns) in each row of scores; by default one row in which all cells count.
    """
    weights = np.ones((1, len(asked))) if weights is None else weights
    cells = np.arange(len(asked))

    def count(label, kept=slice(None)):
        ones = np.ones(len(cells[kept]))
        return weights @ sp.csr_matrix((ones, (cells[kept], label[kept])), shape=(len(cells), n_types))

    n_asked, n_found, n_right = count(asked), count(found), count(asked, asked == found)
    with np.errstate(divide="ignore", invalid="ignore"):
        f1 = 2 * n_right / (n_asked + n_found)
        wanted = n_asked > 0
        return Scores(
            n_right.sum(axis=1) / n_asked.sum(axis=1),
            np.where(wanted, f1, 0).sum(axis=1) / wanted.sum(axis=1),
            n_right / n_found,
            n_right / n_asked,
            f1,
        )


def with_share_intervals(n_units: int, **values: np.ndarray) -> dict[str, float]:
    """Each score of all cells (its first value), with `_low` and `_high`, the ends of its 95% interval."""
    row = {}
    for name, value in values.items():
        low, high = jackknife_interval(value, n_units, *_SCALE)
        row |= {name: float(value[0]), f"{name}_low": low, f"{name}_high": high}
    return row


def shuffle_genes(X: sp.csr_matrix, rng: np.random.Generator) -> sp.csr_matrix:
    """Each cell with its genes in random order."""
    of_cell = np.repeat(np.arange(X.shape[0]), np.diff(X.indptr))
    order = np.lexsort((rng.random(X.nnz), of_cell))
    return sp.csr_matrix((X.data[order], X.indices, X.indptr), shape=X.shape)
