"""Labels of genes predicted from vectors of them: logistic regression, folds over families, nulls and intervals."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from .binary_scores import auroc_ap

PENALTIES = (0.001, 0.01, 0.1, 1.0)  # C of scikit-learn: how little weights are held back
INNER = 3
MOST_SETS = 5  # that a penalty is chosen on


def family_folds(labels: np.ndarray, family: np.ndarray, n_folds: int, seed: int) -> np.ndarray:
    """Fold of each gene: families stay together, and each fold has its share of genes with a label.

    Parameters
    ----------
    labels
        Genes x sets, 1, 0 or NaN.
    family
        Family of each gene.
    n_folds
        How many.
    seed
        Of the order in which families are dealt out.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    fold = np.empty(len(family), dtype=np.int64)
    some = (np.nan_to_num(labels) > 0).any(axis=1)
    split = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # fewer genes with a label than folds
        for i, (_, test) in enumerate(split.split(family[:, None], some, family)):
            fold[test] = i
    return fold


def shuffled_by_family(family: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Which gene's labels each gene gets: dealt out family by family, so that those of a family mostly stay together.

    The genes stand family by family in one random order, and the labels in another.
    """
    orders = []
    for _ in range(2):
        place = rng.permutation(family.max() + 1)
        orders.append(np.lexsort((rng.random(len(family)), place[family])))
    source = np.empty(len(family), dtype=np.int64)
    source[orders[0]] = orders[1]
    return source


def fit_scores(
    X: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray, penalty: float
) -> np.ndarray:
    """Log odds of the tested rows by a logistic regression on standardised columns; the prior where all are alike."""
    from sklearn import config_context
    from sklearn.linear_model import LogisticRegression

    n, n_in = len(train), float(y[train].sum())
    if n_in in (0, n):
        return np.full(len(test), np.log((n_in + 0.5) / (n - n_in + 0.5)))
    centre, spread = X[train].mean(axis=0), X[train].std(axis=0)
    spread = np.where(spread > 1e-12, spread, 1)
    # Thousands of small fits: checks of what is known to be right would take three quarters of the time.
    with config_context(skip_parameter_validation=True, assume_finite=True):
        fitted = LogisticRegression(C=penalty, solver="newton-cholesky", max_iter=50).fit(
            (X[train] - centre) / spread, y[train] > 0
        )
        return fitted.decision_function((X[test] - centre) / spread)


def inner_folds(labels: np.ndarray, family: np.ndarray, fold: np.ndarray, seed: int) -> list[np.ndarray]:
    """Folds within the training genes of each fold, -1 for the genes that are tested there."""
    folds = []
    for i in range(fold.max() + 1):
        inner = np.full(len(fold), -1)
        train = fold != i
        inner[train] = family_folds(labels[train], family[train], INNER, seed)
        folds.append(inner)
    return folds


def choose_penalty(X: np.ndarray, labels: np.ndarray, inner: np.ndarray) -> float:
    """The penalty with the best mean AUROC in folds within the training genes, over the most common sets."""
    train = inner >= 0
    X, inner, labels = X[train], inner[train], labels[train]
    common = np.argsort(-np.nansum(labels, axis=0), kind="stable")[:MOST_SETS]
    means = []
    for penalty in PENALTIES:
        scores = out_of_fold(X, labels[:, common], inner, [penalty] * INNER)
        areas = [fold_means(scores[:, [i]], labels[:, [j]], inner)[0][0] for i, j in enumerate(common)]
        means.append(np.nanmean(areas) if np.isfinite(areas).any() else -np.inf)
    return PENALTIES[int(np.argmax(means))]


def out_of_fold(
    X: np.ndarray, labels: np.ndarray, fold: np.ndarray, penalties: Sequence[float]
) -> np.ndarray:
    """Log odds, genes x sets: of each gene by what the other folds say. A penalty a fold."""
    scores = np.full(labels.shape, np.nan)
    for i, penalty in enumerate(penalties):
        for j in range(labels.shape[1]):
            known = np.isfinite(labels[:, j])
            train, test = np.flatnonzero(known & (fold != i)), np.flatnonzero(known & (fold == i))
            if len(train) and len(test):
                scores[test, j] = fit_scores(X, labels[:, j], train, test, penalty)
    return scores


def fold_means(
    scores: np.ndarray, labels: np.ndarray, fold: np.ndarray, weight: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """AUROC and average precision, pooled over the sets and averaged over folds, one a weighting of the genes.

    Folds in which all genes are of one kind are left out.
    """
    weight = np.ones((1, len(fold))) if weight is None else weight
    parts = []
    for i in np.unique(fold):
        genes, sets = np.nonzero((fold == i)[:, None] & np.isfinite(labels))
        positive = labels[genes, sets] > 0
        if positive.any() and not positive.all():
            parts.append(auroc_ap(scores[genes, sets], positive, weight[:, genes]))
    if not parts:
        return (np.full(len(weight), np.nan),) * 2
    auroc, precision = np.array(parts).transpose(1, 0, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a draw in which no fold has both kinds
        return np.nanmean(auroc, axis=0), np.nanmean(precision, axis=0)
