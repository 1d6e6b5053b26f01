"""Labels for cells, from a reference or a trained classifier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from .._names import require_choice
from .._progress import progress
from ..models.classifier import CellClassifier, classify_sequences, load_classifier, require_classifier
from ..models.model import MaxTokiModel
from ..pp._design import known_cells
from ..pp._ranked_counts import counts_or_none
from ..results.store import write_obs, write_result
from ..stats.annotation import (
    Calibration,
    Calls,
    Regions,
    call,
    cross_call,
    cross_fit,
    fit_neighbors,
    fit_probe,
    folds_of,
)
from ..stats.back_off import Kinds, cross_back_off, fit_threshold
from ..stats.calibration import probabilities
from ._annotation import (
    PCA,
    UNKNOWN,
    Labelled,
    caveats,
    donors_of,
    embedding_of,
    find_reference_columns,
    judge,
    kinds_of_labels,
    labelled,
    named_kinds,
    together,
)
from ._cells import get_sequences
from ._embedding_baselines import N_PCS, principal_components

METHODS = ("probe", "knn")


def annotate(
    adata: AnnData,
    model: MaxTokiModel,
    *,
    reference: AnnData | None = None,
    classifier: CellClassifier | str | Path | None = None,
    groupby: str | Sequence[str] | None = None,
    donor_key: str | None = None,
    method: str = "probe",
    n_neighbors: int = 15,
    n_folds: int = 5,
    alpha: float = 0.05,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Name cells by a labelled reference, or by a classifier that was trained on one; say which are unknown, and how good the names are.

    Parameters
    ----------
    adata
        Rank-encoded cells.
    model
        Model, with or without temporal training.
    reference
        Labelled cells, rank-encoded for the same model; other genes than those of `adata` are no matter.
    classifier
        In place of a reference: what `mt.train.classify` returned, or its folder. `method`, `n_neighbors`,
        `n_folds` and `alpha` are of no use then, `groupby` picks some of its columns.
    groupby
        Column or columns of the reference's `.obs` with the labels: cell type, tissue, disease. By default
        the cell type, as the column's name gives it away.
    donor_key
        Column of the reference's `.obs` with the donor, guessed where it is `None`; where there are no
        donors, cells are the units.
    method
        "probe", logistic regression on the embedding, or "knn", the nearest neighbours' labels.
    n_neighbors
        Neighbours of a cell, for "knn".
    n_folds
        Folds of the reference, by donor, in which the labels are judged and confidence is calibrated.
    alpha
        Share of held-out reference cells that may be called unknown; and that may be of another kind than the
        one that they are said to be sure of.
    rng
        Seed of the folds, of PCA and of the permutations.
    key_added
        Prefix of the columns of `.obs`, by default "annotated", and key in `.uns`, by default "annotate".

    Returns
    -------
    `None`. Writes, for each column such as "cell_type",

    `.obs["annotated_cell_type"]`
        The label, or "unknown": a category.
    `.obs["annotated_cell_type_best"]`, `.obs["annotated_cell_type_second"]`
        The likeliest label, whether or not the cell is unknown, and the next.
    `.obs["annotated_cell_type_sure"]`
        The nearest kind of cell that it is sure of, unknown or not: the likeliest label's own term, or, where
        labels are in doubt, one above it in the Cell Ontology, such as "T cell" for a cell that is either a
        CD4 or a CD8 T cell. Labels without a term have nothing above them; "unknown" where the cell is sure
        of no more than that it is a cell.
    `.obs["annotated_cell_type_probability"]`
        Calibrated probability of the likeliest (0-1).
    `.obs["annotated_cell_type_distance"]`
        How much farther the cell is from the nearest label than from the middle of the reference (squared
        Mahalanobis distances); a cell of no label has a large one.
    `.obsm["X_annotated"]`
        With a classifier, the mean state of a cell's genes in the model as it was fine-tuned.

    and to `.uns["annotate"]` the tables

    `scores`
        How well held-out reference cells are named: a row each for the method, for logistic regression on PCA
        of log counts, the commonest label ("majority"), and the method's calls "permuted":

        `column`, `predictor`, `n_cells`, `n_units`, `unit`
            Which labels, by what, of how many held-out cells of how many donors (or cells).
        `macro_f1`, `macro_f1_low`, `macro_f1_high`
            Mean F1 of the labels, with its 95% jackknife interval over units; for "permuted" the mean and the
            central 95% of the permutations.
        `accuracy`, `ontology_distance`, `difference`, each with `_low` and `_high`
            Share of cells named right; mean steps in the Cell Ontology between called and true label, of the
            `n_in_ontology` cells both of whose labels name a term; the method's macro F1 less the row's,
            paired.
        `calibration_error`, `false_alarms`
            Expected calibration error of the probabilities, and share of these cells called unknown.
        `sure_wrong`, `sure_steps`, `sure_named`
            Of the kinds that cells are sure of: share that the true label is not of, which without stepping
            up is 1 - `accuracy`; mean steps above the likeliest label; share of cells that are sure of any.
        `p_value`, `q_value`
            Of the method's macro F1, one-sided: 999 permutations of the calls, within donors where there are
            some; Benjamini and Hochberg over columns.
        `n_unseen`, `unseen_found`
            Held-out cells whose label no other fold had, which are not in the scores above, and the share of
            them called unknown.

    `labels`
        `column`, `label`, its `term` in the Cell Ontology, `n_reference` cells, `n_donors` (0 where unknown),
        `n_scored` held-out cells, `precision`, `recall`, `f1`, and `n_called`, cells of `adata`.
    `confusion`
        `column`, `label`, `called`, `n_cells`: held-out reference cells.
    `calibration`
        `column`, `bin_start`, mean `confidence`, `accuracy`, `n_cells`: held-out reference cells by
        probability.

    Raises
    ------
    ValueError
        If neither or both of reference and classifier are given, a column has but one label, a label is in
        one donor alone with no other to judge by, or the classifier is of another model.

    Notes
    -----
    All cells of a donor are in one fold. Each held-out cell is named by what the other folds taught, its
    probability is calibrated (temperature, Guo et al., ICML 2017) and its threshold set on the other folds,
    so that `false_alarms` is no fit. A cell is unknown if it is rarer than a share `alpha` of held-out
    reference cells: by distance (relative Mahalanobis distance, Ren et al., arXiv 2106.09022, 2021), or by
    its confidence, which has to be four times as rare, since labels that overlap are uncertain without being
    unknown. A cell is sure of a kind if the calibrated probabilities of the labels of this kind come to a
    threshold, the lowest at which no more than `alpha` of the held-out cells would be of another kind
    (conformal risk control, Angelopoulos et al., ICLR 2024); cells of no label of the reference may be
    anything. Components of PCA are of all cells of the reference, without their labels, by the lines of
    `mt.tl.neighbor_purity`; the same folds are used. Labels name terms as `mt.pp.harmonize_cell_types` reads
    them; run it on the reference first to say what yours mean. Another study differs from the reference in
    more than its donors do: the scores are an upper bound there.

    An embedding in `.obsm["X_maxtoki"]` of this model (`mt.tl.embed` with its defaults) is used as it is.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> model = mt.load_model("demo")
    >>> adata = mt.datasets.load("heart_nuclei")
    >>> mt.pp.rank_value_encode(adata, model)
    >>> reference, mine = adata[:500].copy(), adata[500:].copy()
    >>> mt.tl.annotate(mine, model, reference=reference, groupby="cell_type", n_folds=3)
    >>> named = mine.obs[["cell_type", "annotated_cell_type"]].astype(str)
    >>> bool((named["cell_type"] == named["annotated_cell_type"]).mean() > 0.8)
    True
    >>> mt.get.table(mine, "annotate")["predictor"].tolist()
    ['probe', 'PCA logistic', 'majority', 'permuted']
    """
    require_choice("method", method, METHODS)
    if (reference is None) == (classifier is None):
        raise ValueError(
            "Give either reference=, labelled cells, or classifier=, what mt.train.classify wrote."
        )
    key = key_added or _keys.ANNOTATE
    cells, rows = known_cells(adata)
    states = None
    if classifier is not None:
        found, tables, params, states = _by_classifier(cells, model, classifier, groupby)
    else:
        if not 0 < alpha < 1:
            raise ValueError(f"alpha must be above 0 and below 1, got {alpha}.")
        columns, donor_key = find_reference_columns(reference, groupby, donor_key)
        settings = {
            "method": method,
            "n_neighbors": n_neighbors,
            "n_folds": n_folds,
            "alpha": alpha,
            "seed": rng,
        }
        found, tables, params = _by_reference(cells, model, reference, columns, donor_key, settings)
    prefix = key_added or _keys.ANNOTATED
    names = {}
    for column, (labels, calls, sure) in found.items():
        names |= _columns(f"{prefix}_{column}", labels, calls, sure, rows, adata.n_obs)
        n_called = pd.Series(np.where(calls.unknown, UNKNOWN, labels[calls.label])).value_counts()
        here = tables["labels"]["column"] == column
        tables["labels"].loc[here, "n_called"] = (
            tables["labels"].loc[here, "label"].map(n_called).fillna(0).astype(int)
        )
    tables["labels"]["n_called"] = tables["labels"]["n_called"].astype(int)
    write_obs(adata, key, names)
    if states is not None:
        adata.obsm[f"X_{prefix}"] = _back(states, rows, adata.n_obs)
    write_result(
        adata,
        _keys.ANNOTATE,
        {**model.params, **params, "n_cells": adata.n_obs, "warnings": caveats(tables)},
        key_added=key_added,
        **tables,
    )


def _columns(
    prefix: str, labels: np.ndarray, calls: Calls, sure: pd.Categorical, rows: np.ndarray, n_cells: int
) -> dict[str, object]:
    """Columns of `.obs` of one column of labels, in the order of the file."""

    def back(values: np.ndarray) -> np.ndarray:
        return _back(values, rows, n_cells)

    best, second = (back(labels[code].astype(object)) for code in (calls.label, calls.second))
    unknown = back(calls.unknown)
    return {
        prefix: pd.Categorical(np.where(unknown, UNKNOWN, best), categories=[*labels, UNKNOWN]),
        f"{prefix}_best": pd.Categorical(best, categories=labels),
        f"{prefix}_second": pd.Categorical(second, categories=labels),
        f"{prefix}_sure": pd.Categorical.from_codes(back(sure.codes), dtype=sure.dtype),
        f"{prefix}_probability": back(calls.probability),
        f"{prefix}_distance": back(calls.distance),
    }


def _back(values: np.ndarray, rows: np.ndarray, n_cells: int) -> np.ndarray:
    """Values in the order of the file."""
    placed = np.empty((n_cells, *values.shape[1:]), dtype=values.dtype)
    placed[rows] = values
    return placed


def _by_reference(cells, model, reference, columns, donor_key, settings):
    """Calls of the cells and tables of the reference, for each column of its labels."""
    reference, _ = known_cells(reference, donor_key)
    # What labels mean was said of the whole; a subset of an AnnData keeps `.uns`.
    X, Y = embedding_of(reference, model), embedding_of(cells, model)
    donor, rng = donors_of(reference, donor_key), settings["seed"]
    components = None
    counts = counts_or_none(reference, instead="Logistic regression on PCA is left out")
    if counts is not None:
        components = principal_components(reference, N_PCS, rng)
    fit = (
        fit_probe
        if settings["method"] == "probe"
        else partial(fit_neighbors, n_neighbors=settings["n_neighbors"])
    )
    parts, found, thresholds = [], {}, {}
    targets = [labelled(reference, column) for column in columns]
    with progress(total=len(targets) * (settings["n_folds"] + 1), desc="Annotating", unit="fit") as bar:
        for of in targets:
            here = None if donor is None else donor[of.rows]
            kinds = kinds_of_labels(of.labels, of.terms)
            calibration, sure, tables = _cross_validated(
                of,
                kinds,
                X[of.rows],
                None if components is None else components[of.rows],
                here,
                fit,
                settings,
                bar.update,
            )
            regions = Regions.fit(X[of.rows], of.code)
            logits = fit(X[of.rows], of.code, len(of.labels))(Y)
            found[of.column] = _found(of.labels, logits, regions.distance(Y), calibration, kinds, sure)
            thresholds[of.column] = {
                "temperature": calibration.temperature,
                "threshold": calibration.threshold,
                "sure": sure,
            }
            parts.append(tables)
            bar.update()
    params = {
        "groupby": columns,
        "donor_key": donor_key,
        **settings,
        "n_reference": reference.n_obs,
        "n_reference_donors": 0 if donor is None else len(np.unique(donor)),
        "unknown": f"rarer than {settings['alpha']:g} of held-out reference cells, by distance or confidence",
        "calibration_of": thresholds,
    }
    return found, together(parts), params


def _found(labels, logits, distance, calibration, kinds: Kinds, sure: float):
    """Labels, calls, and names of the nearest kinds that cells are sure of."""
    kind = kinds.climb(probabilities(logits, calibration.temperature)).stop(sure)[1]
    return labels, call(logits, distance, calibration), named_kinds(kinds, kind)


def _cross_validated(
    of: Labelled,
    kinds: Kinds,
    X: np.ndarray,
    components: np.ndarray | None,
    donor: np.ndarray | None,
    fit: Callable,
    settings: dict,
    step: Callable,
) -> tuple[Calibration, float, dict[str, pd.DataFrame]]:
    """What held-out cells calibrate, how sure is sure enough, and tables."""
    n = len(of.labels)
    if donor is not None and len(np.unique(donor)) < 2:
        donor = None
    fold = folds_of(of.code, donor, settings["n_folds"], settings["seed"])
    if len(np.unique(fold)) < 2:
        raise ValueError(f"{len(fold)} cells are too few to judge the labels of .obs[{of.column!r}] by.")
    for i in np.unique(fold):
        if len(np.unique(of.code[fold != i])) < 2:
            raise ValueError(
                f"Without some donors all cells have one label in .obs[{of.column!r}]: labels and donors cannot be told "
                "apart. Give a reference in which donors share labels."
            )
    logits, distance = cross_fit(X, of.code, fold, fit, n, step)
    cells = np.arange(len(fold))
    could = np.isfinite(logits[cells, of.code])
    if not could.any():
        raise ValueError(
            f"No label of .obs[{of.column!r}] is in two donors: what is called of a donor cannot be judged by others."
        )
    # Cells of labels that could not be called teach nothing of confidence.
    calls = Calls(*(np.empty(len(fold), kind) for kind in (int, int, float, float, bool)))
    kept = cross_call(logits[could], distance[could], of.code[could], fold[could], settings["alpha"])
    calibration = Calibration.fit(logits[could], of.code[could], distance[could], settings["alpha"])
    shares = probabilities(logits[could], calibration.temperature)
    sure = fit_threshold(kinds.climb(shares), of.code[could], kinds, settings["alpha"])
    backed_off = cross_back_off(logits[could], of.code[could], fold[could], kinds, settings["alpha"])
    others = call(logits[~could], distance[~could], calibration)
    for part, inside, outside in zip(calls, kept, others, strict=True):
        part[could], part[~could] = inside, outside
    baselines = {}
    if components is not None:
        plain, _ = cross_fit(components, of.code, fold, fit_probe, n)
        baselines[PCA] = plain.argmax(axis=1)
    majority = np.empty(len(fold), int)
    for i in np.unique(fold):
        majority[fold == i] = np.bincount(of.code[fold != i]).argmax()
    baselines["majority"] = majority
    tables = judge(
        of,
        could,
        calls,
        backed_off,
        donor,
        baselines=baselines,
        predictor=settings["method"],
        rng=settings["seed"],
    )
    return calibration, sure, tables


def _by_classifier(cells, model, classifier, groupby):
    """Calls of the cells, and the tables of when the classifier was trained."""
    if not isinstance(classifier, CellClassifier):
        classifier = load_classifier(classifier, device=str(model.device))
    require_classifier(classifier, model)
    columns = classifier.pick(groupby)
    read = classify_sequences(classifier, model, get_sequences(cells, model))
    found = {}
    for column in columns:
        stored, card = classifier.arrays[column], classifier.card
        regions = Regions(*(stored[name] for name in ("means", "within", "overall")))
        calibration = Calibration(
            card["temperature"][column], stored["confidence"], stored["distance"], card["threshold"][column]
        )
        labels = classifier.labels[column]
        kinds = kinds_of_labels(labels, _terms(classifier, column))
        distance = regions.distance(read.states)
        found[column] = _found(
            labels, read.logits[column], distance, calibration, kinds, card["sure"][column]
        )
    tables = {
        name: table[table["column"].isin(columns)].reset_index(drop=True)
        for name, table in classifier.tables.items()
    }
    params = {"groupby": columns, "method": "fine-tuned", "classifier": classifier.name} | {
        name: classifier.card[name]
        for name in ("classifier_sha256", "donor_key", "alpha", "n_reference", "n_reference_donors")
    }
    return found, tables, params, read.states


def _terms(classifier: CellClassifier, column: str) -> list[str]:
    """Terms of the labels that it knows."""
    table = classifier.tables["labels"]
    terms = table[table["column"] == column].set_index("label")["term"]
    return terms[classifier.labels[column]].tolist()
