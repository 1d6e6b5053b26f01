"""Labels carried from a reference to other cells: classifiers, what is unknown to them, and how good they are.

Labels are whole numbers from 0. A classifier gives logits, cells x labels, -inf for labels that it never saw.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp

from .calibration import calibration_error, fit_temperature, probabilities, reliability
from .classification import score_labels, with_share_intervals
from .donors import jackknife_interval, jackknife_weights

Logits = Callable[[np.ndarray], np.ndarray]

# Inverse strength of the penalty: on standardised columns, 0.1 did better than 1 or 0.01 for many labels of
# few cells, for embeddings and for principal components alike.
_C = 0.1
# How much rarer a low confidence has to be than a large distance to make a cell unknown: labels that overlap
# are uncertain without being unknown.
_RARER = 4
N_PERMUTATIONS = 999
# Steps are brought to where no interval goes below 0.
_ROOT = (np.sqrt, lambda root: float(max(root, 0.0) ** 2))


class Probe(NamedTuple):
    """A linear map of standardised columns to logits."""

    center: np.ndarray
    spread: np.ndarray
    weight: np.ndarray
    """float, labels that were seen x columns."""
    bias: np.ndarray
    seen: np.ndarray
    """int: these labels."""


def solve_probe(X: np.ndarray, code: np.ndarray) -> Probe:
    """Logistic regression (L2) on standardised columns, each label with the same weight."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(X)
    fitted = LogisticRegression(C=_C, class_weight="balanced", max_iter=1000).fit(scaler.transform(X), code)
    weight, bias = fitted.coef_, fitted.intercept_
    if len(fitted.classes_) == 2:
        weight, bias = np.vstack([0 * weight, weight]), np.append(0, bias)
    return Probe(scaler.mean_, scaler.scale_, weight, bias, fitted.classes_)


def fit_probe(X: np.ndarray, code: np.ndarray, n_labels: int) -> Logits:
    """The logits of `solve_probe`."""
    probe = solve_probe(X, code)

    def logits(Y: np.ndarray) -> np.ndarray:
        return spread((Y - probe.center) / probe.spread @ probe.weight.T + probe.bias, probe.seen, n_labels)

    return logits


def fit_neighbors(X: np.ndarray, code: np.ndarray, n_labels: int, *, n_neighbors: int) -> Logits:
    """Nearest neighbours on standardised columns: logarithms of the shares of their labels, none of them 0."""
    from sklearn.neighbors import NearestNeighbors
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(X)
    seen, place = np.unique(code, return_inverse=True)
    k = min(n_neighbors, len(X))
    nearest = NearestNeighbors(n_neighbors=k).fit(scaler.transform(X))

    def logits(Y: np.ndarray) -> np.ndarray:
        found = place[nearest.kneighbors(scaler.transform(Y), return_distance=False)]
        at = (np.arange(len(Y))[:, None] * len(seen) + found).ravel()
        votes = np.bincount(at, minlength=len(Y) * len(seen)).reshape(len(Y), len(seen))
        return spread(np.log((votes + 1 / len(seen)) / (k + 1)), seen, n_labels)

    return logits


def spread(found: np.ndarray, seen: np.ndarray, n_labels: int) -> np.ndarray:
    """Columns of the labels that were seen, among those of all."""
    logits = np.full((len(found), n_labels), -np.inf)
    logits[:, seen] = found
    return logits


@dataclass(frozen=True, eq=False)
class Regions:
    """Where the labels of a reference lie: Gaussians of one shape, and one Gaussian of all cells."""

    means: np.ndarray
    """float, labels + 1 x columns; the last is the mean of all cells."""
    within: np.ndarray
    """float, columns x columns: a root of the precision within labels."""
    overall: np.ndarray
    """float, columns x columns: a root of the precision of all cells."""

    @classmethod
    def fit(cls, X: np.ndarray, code: np.ndarray) -> Regions:
        """Means of the labels, and precisions after Ledoit and Wolf's shrinkage."""
        from sklearn.covariance import LedoitWolf

        X = X.astype(np.float64)
        _, place = np.unique(code, return_inverse=True)
        size = np.bincount(place)
        of_label = sp.csr_matrix((np.ones(len(place)), (place, np.arange(len(place)))))
        means = (of_label @ X) / size[:, None]
        # Shrinkage is towards columns of one size.
        scale = X.std(axis=0)
        scale[scale == 0] = 1.0
        roots = [
            np.linalg.cholesky(LedoitWolf().fit(part / scale).precision_) / scale[:, None]
            for part in (X - means[place], X - X.mean(axis=0))
        ]
        return cls(np.vstack([means, X.mean(axis=0)]), *roots)

    def distance(self, X: np.ndarray) -> np.ndarray:
        """How much farther a cell is from the nearest label than from the middle of all (squared Mahalanobis distances)."""
        from scipy.spatial.distance import cdist

        X = X.astype(np.float64)
        to_labels = cdist(X @ self.within, self.means[:-1] @ self.within, "sqeuclidean")
        to_middle = np.square((X - self.means[-1]) @ self.overall).sum(axis=1)
        return to_labels.min(axis=1) - to_middle


@dataclass(frozen=True, eq=False)
class Calibration:
    """What held-out cells of the reference say of confidence and distance."""

    temperature: float
    confidence: np.ndarray
    """float, held-out cells, sorted."""
    distance: np.ndarray
    """float, held-out cells, sorted."""
    threshold: float
    """A cell that is rarer than this is unknown."""

    @classmethod
    def fit(cls, logits: np.ndarray, code: np.ndarray, distance: np.ndarray, alpha: float) -> Calibration:
        """From held-out cells whose label could have been called; a share `alpha` of them would be unknown."""
        temperature = fit_temperature(logits, code)
        confidence = probabilities(logits, temperature).max(axis=1)
        whole = cls(temperature, np.sort(confidence), np.sort(distance), 0.0)
        threshold = float(np.quantile(whole.rarity(confidence, distance), alpha, method="lower"))
        return cls(temperature, whole.confidence, whole.distance, threshold)

    def rarity(self, confidence: np.ndarray, distance: np.ndarray) -> np.ndarray:
        """Share of the held-out cells that are as far, or (times a constant) as doubtful; the smaller one."""
        n = len(self.confidence)
        as_far = (1 + n - np.searchsorted(self.distance, distance, side="left")) / (n + 1)
        as_doubtful = (1 + np.searchsorted(self.confidence, confidence, side="right")) / (n + 1)
        return np.minimum(as_far, _RARER * as_doubtful)

    def is_unknown(self, confidence: np.ndarray, distance: np.ndarray) -> np.ndarray:
        """Which cells are of no label of the reference, as far as confidence and distance tell."""
        return self.rarity(confidence, distance) <= self.threshold


class Calls(NamedTuple):
    """What is said of cells."""

    label: np.ndarray
    """int: the likeliest label."""
    second: np.ndarray
    """int: the next."""
    probability: np.ndarray
    """float: of the likeliest."""
    distance: np.ndarray
    """float: see `Regions.distance`."""
    unknown: np.ndarray
    """bool."""


def call(logits: np.ndarray, distance: np.ndarray, calibration: Calibration) -> Calls:
    """Labels with their probabilities, and which cells are unknown."""
    shares = probabilities(logits, calibration.temperature)
    first, second = np.argsort(-shares, axis=1, kind="stable")[:, :2].T
    confidence = shares[np.arange(len(shares)), first]
    return Calls(first, second, confidence, distance, calibration.is_unknown(confidence, distance))


def folds_of(code: np.ndarray, donor: np.ndarray | None, n_folds: int, seed: int) -> np.ndarray:
    """Fold of each cell, alike in labels: all cells of a donor in one; of cells, where there are no donors."""
    import warnings

    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    n_units = len(code) if donor is None else len(np.unique(donor))
    split = StratifiedKFold if donor is None else StratifiedGroupKFold
    # No label has to be in more folds than the commonest can be in.
    n_folds = min(n_folds, n_units, int(np.unique(code, return_counts=True)[1].max()))
    if n_folds < 2:
        return np.zeros(len(code), dtype=int)
    fold = np.empty(len(code), dtype=int)
    with warnings.catch_warnings():
        # A label of fewer cells than folds is in some of them, which is as well as it can be.
        warnings.simplefilter("ignore", UserWarning)
        parts = split(n_folds, shuffle=True, random_state=seed)
        for i, (_, tested) in enumerate(parts.split(np.zeros(len(code)), code, donor)):
            fold[tested] = i
    return fold


def cross_fit(
    X: np.ndarray, code: np.ndarray, fold: np.ndarray, fit: Callable[..., Logits], n_labels: int, step=None
):
    """Logits and distances of each cell, by what was fitted to the other folds; `step` is called after each."""
    logits, distance = np.empty((len(X), n_labels)), np.empty(len(X))
    for i in np.unique(fold):
        here, there = fold == i, fold != i
        logits[here] = fit(X[there], code[there], n_labels)(X[here])
        distance[here] = Regions.fit(X[there], code[there]).distance(X[here])
        if step is not None:
            step()
    return logits, distance


def cross_call(
    logits: np.ndarray, distance: np.ndarray, code: np.ndarray, fold: np.ndarray, alpha: float
) -> Calls:
    """Calls of held-out cells, each calibrated on the other folds (on all, where there is but one)."""
    parts = [np.empty(len(code), kind) for kind in (int, int, float, float, bool)]
    for i in (folds := np.unique(fold)):
        here = fold == i
        others = ~here if len(folds) > 1 else here
        found = call(
            logits[here],
            distance[here],
            Calibration.fit(logits[others], code[others], distance[others], alpha),
        )
        for part, values in zip(parts, found, strict=True):
            part[here] = values
    return Calls(*parts)


class Truth(NamedTuple):
    """Labels of held-out cells, and what their errors are counted by."""

    code: np.ndarray
    """int: label of each cell."""
    labels: np.ndarray
    """Names of the labels."""
    donor: np.ndarray | None
    """Donor of each cell; cells are the units without."""
    steps: np.ndarray
    """float, labels x labels: distances in the ontology; NaN where a label has no term."""

    @property
    def unit(self) -> str:
        """What the units are."""
        return "cell" if self.donor is None else "donor"

    @property
    def units(self) -> pd.DataFrame:
        """The unit of each cell."""
        name = np.arange(len(self.code)) if self.donor is None else self.donor
        return pd.DataFrame({self.unit: name.astype(str)})


def score_calls(
    truth: Truth, calls: Calls, baselines: dict[str, np.ndarray], predictor: str, seed: int
) -> pd.DataFrame:
    """Scores of calls of held-out cells beside those of baselines and chance: a row each.

    Parameters
    ----------
    truth
        True labels.
    calls
        Calls of the same cells.
    baselines
        Labels that others call, by their names.
    predictor
        Name of what called.
    seed
        Seed of the permutations, and of blocks of units.
    """
    rng = np.random.default_rng(seed)
    weights, n_units = jackknife_weights(truth.units, truth.unit, rng)
    n = len(truth.labels)
    found = {predictor: calls.label, **baselines}
    scores = {name: score_labels(truth.code, label, n, weights) for name, label in found.items()}
    rows = []
    for name, label in found.items():
        row = {"predictor": name, "n_cells": len(label), "n_units": n_units, "unit": truth.unit}
        shares = {"macro_f1": scores[name].macro_f1, "accuracy": scores[name].accuracy}
        row |= with_share_intervals(n_units, **shares)
        row["n_in_ontology"] = int(np.isfinite(truth.steps[truth.code, label]).sum())
        row |= _interval("ontology_distance", _mean_steps(truth, label, weights), n_units, *_ROOT)
        row |= _interval("difference", scores[predictor].macro_f1 - scores[name].macro_f1, n_units)
        if name == predictor:
            right = label == truth.code
            row["calibration_error"] = calibration_error(calls.probability, right)
            row["false_alarms"] = float(calls.unknown.mean())
        rows.append(row)
    chance = _permuted(truth, calls.label, rng)
    low, high = np.quantile(chance, [0.025, 0.975])
    rows[0]["p_value"] = float((1 + (chance >= rows[0]["macro_f1"]).sum()) / (1 + len(chance)))
    rows.append(
        {"predictor": "permuted", "n_cells": len(truth.code), "n_units": n_units, "unit": truth.unit}
        | {"macro_f1": float(chance.mean()), "macro_f1_low": float(low), "macro_f1_high": float(high)}
    )
    return pd.DataFrame(rows)


def _interval(name: str, values: np.ndarray, n_units: int, *scale) -> dict[str, float]:
    low, high = jackknife_interval(values, n_units, *scale)
    return {name: float(values[0]), f"{name}_low": low, f"{name}_high": high}


def _mean_steps(truth: Truth, label: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean steps between called and true label of the cells both of whose labels are terms, for each row of weights."""
    steps = truth.steps[truth.code, label]
    known = np.isfinite(steps)
    if not known.any():
        return np.full(len(weights), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (weights[:, known] @ steps[known]) / weights[:, known].sum(axis=1)


def _permuted(truth: Truth, label: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Macro F1 of calls that were permuted, within donors where there are some."""
    n = len(truth.labels)
    donor = (
        np.zeros(len(label), int) if truth.donor is None else np.unique(truth.donor, return_inverse=True)[1]
    )
    order = np.argsort(donor, kind="stable")
    code, label, donor = truth.code[order], label[order], donor[order]
    size = np.bincount(code, minlength=n)
    called = np.bincount(label, minlength=n)
    wanted = size > 0
    found = np.empty(N_PERMUTATIONS)
    for i in range(N_PERMUTATIONS):
        moved = label[np.lexsort((rng.random(len(label)), donor))]
        hits = np.bincount(code[code == moved], minlength=n)
        found[i] = (2 * hits[wanted] / (size[wanted] + called[wanted])).mean()
    return found


def label_table(truth: Truth, calls: Calls) -> pd.DataFrame:
    """Scores of each label, of held-out cells."""
    scores = score_labels(truth.code, calls.label, len(truth.labels))
    return pd.DataFrame(
        {
            "label": truth.labels,
            "n_scored": np.bincount(truth.code, minlength=len(truth.labels)),
            "precision": scores.precision[0],
            "recall": scores.recall[0],
            "f1": scores.f1[0],
        }
    )


def confusion_table(truth: Truth, calls: Calls) -> pd.DataFrame:
    """How many held-out cells of each label are called what; pairs that occur."""
    pairs = pd.DataFrame({"label": truth.labels[truth.code], "called": truth.labels[calls.label]})
    return pairs.groupby(["label", "called"], sort=True).size().rename("n_cells").reset_index()


def reliability_table(truth: Truth, calls: Calls) -> pd.DataFrame:
    """How often calls of held-out cells are right, by their probability."""
    return reliability(calls.probability, calls.label == truth.code)
