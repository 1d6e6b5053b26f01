"""Labels of a reference, and tables of how well they are told: what `mt.tl.annotate` and `mt.train.classify` share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from .._ontology import cell_ontology, kinds_above, match, term_distances
from .._validate import require_obs
from ..models.embedding import embed_sequences
from ..models.model import MaxTokiModel
from ..pp._columns import find_columns
from ..pp._design import as_list, get_labels, is_missing
from ..stats.annotation import (
    Calls,
    Truth,
    confusion_table,
    label_table,
    reliability_table,
    score_calls,
)
from ..stats.back_off import NOTHING, BackedOff, Kinds
from ..stats.fdr import benjamini_hochberg
from ._cells import get_sequences

TABLES = ("scores", "labels", "confusion", "calibration")
UNKNOWN = "unknown"
PCA = "PCA logistic"
_ANY = {"cell", "eukaryotic cell"}  # kinds that say nothing of a type


class Labelled(NamedTuple):
    """Labels of the cells of a reference in one column."""

    column: str
    rows: np.ndarray
    """Cells with a label."""
    code: np.ndarray
    """int: label of each of these."""
    labels: np.ndarray
    """Names, sorted."""
    terms: list[str]
    """Term of the Cell Ontology of each label, "" for none."""


def find_reference_columns(
    reference: AnnData, groupby: str | Sequence[str] | None, donor_key: str | None
) -> tuple[list[str], str | None]:
    """Columns with the labels, and that of donors, guessed where they are `None`; one donor is none."""
    require_obs(reference, donor_key)
    obs = reference.obs
    found = find_columns(obs, optional=("donor_key",), groupby=groupby, donor_key=donor_key)
    donor_key = found["donor_key"]
    if donor_key is not None and obs[donor_key].nunique() < 2:
        donor_key = None
    columns = as_list(found["groupby"])
    if not columns:
        raise ValueError("groupby names no column: give one or several with the labels of the reference.")
    require_obs(reference, *columns)
    return columns, donor_key


def labelled(reference: AnnData, column: str) -> Labelled:
    """Labels of one column; cells without one are left out."""
    rows = np.flatnonzero(~is_missing(reference.obs[column]))
    if not len(rows):
        raise ValueError(f"No cell of the reference has a value in .obs[{column!r}].")
    labels, code = np.unique(get_labels(reference[rows], column).astype(str), return_inverse=True)
    if len(labels) < 2:
        raise ValueError(
            f"All cells of the reference have the label {str(labels[0])!r} in .obs[{column!r}]: two labels at least are needed."
        )
    if UNKNOWN in labels:
        raise ValueError(
            f".obs[{column!r}] of the reference has the label {UNKNOWN!r}, which is what cells of none of its labels are "
            f"called. Leave these cells out: reference = reference[reference.obs[{column!r}] != {UNKNOWN!r}]."
        )
    return Labelled(column, rows, code, labels, terms_of(reference, column, labels))


def terms_of(reference: AnnData, column: str, labels: np.ndarray) -> list[str]:
    """Terms that labels name; those of `mt.pp.harmonize_cell_types`, where it has read this column."""
    result = reference.uns.get(_keys.HARMONIZED, {})
    if result.get("params", {}).get("key") == column:
        table = result["labels"].set_index("label")["term"]
        return [str(table.get(label, "")) for label in labels]
    return [match(label).term for label in labels]


def kinds_of_labels(labels: np.ndarray, terms: Sequence[str]) -> Kinds:
    """What labels are kinds of in the Cell Ontology; a label without a term is of a kind of its own."""
    names = cell_ontology()["name"]
    ways = []
    for label, term in zip(labels, terms, strict=True):
        way = (
            {str(names[top]): steps for top, steps in kinds_above(term).items()} if term else {str(label): 0}
        )
        ways.append({name: steps for name, steps in way.items() if not steps or name not in _ANY})
    return Kinds.of(ways)


def named_kinds(kinds: Kinds, kind: np.ndarray) -> pd.Categorical:
    """Names of kinds, "unknown" where nothing is said."""
    return pd.Categorical.from_codes(
        np.where(kind == NOTHING, len(kinds.names), kind), [*kinds.names, UNKNOWN]
    )


def caveats(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """What stands in the way of trusting the names: a better baseline, labels of no known kind."""
    notes = []
    scores, labels = tables["scores"], tables["labels"]
    for row in scores[(scores["predictor"] == PCA) & (scores["difference_high"] < 0)].itertuples():
        notes.append(
            f"Logistic regression on principal components names held-out cells better ({row.column!r}: macro F1 {row.macro_f1:.2f}, "
            f"{row.difference:.2f} for the model): name the cells by it."
        )
    for column, part in labels.groupby("column", sort=False):
        nameless = part.loc[part["term"] == "", "label"]
        if 0 < len(nameless) < len(part):
            notes.append(
                f"{len(nameless)} of {len(part)} labels in {column!r} are no term of the Cell Ontology (first: {nameless.iloc[0]!r}): "
                "cells in doubt of these have no wider kind. mt.pp.harmonize_cell_types(reference, ..., mapping=...) says what they are."
            )
    return notes


def donors_of(reference: AnnData, donor_key: str | None) -> np.ndarray | None:
    """Donor of each cell, if they are known."""
    return None if donor_key is None else get_labels(reference, donor_key).astype(str)


def judge(
    of: Labelled,
    could: np.ndarray,
    calls: Calls,
    backed_off: BackedOff,
    donor: np.ndarray | None,
    *,
    baselines: Mapping[str, np.ndarray],
    predictor: str,
    rng: int,
) -> dict[str, pd.DataFrame]:
    """Tables of one column from calls of held-out cells.

    Parameters
    ----------
    of
        Labels of the held-out cells.
    could
        Which of them have a label that could be called: the others are scored as unknown cells.
    calls
        What is said of all of them.
    backed_off
        Kinds of those of `could`.
    donor
        Their donors.
    baselines
        Labels that others call, of all of them.
    predictor
        Name of what called.
    rng
        Seed.
    """
    steps = term_distances(of.terms)
    if len(set(of.terms) - {""}) < 2:
        steps[:] = np.nan  # one term is near nothing and far from nothing
    truth = Truth(of.code[could], of.labels, None if donor is None else donor[could], steps)
    kept = Calls(*(part[could] for part in calls))
    scores = score_calls(truth, kept, {k: v[could] for k, v in baselines.items()}, predictor, rng)
    said = backed_off.kind != NOTHING
    first = scores.index[0]
    scores.loc[first, "sure_named"] = said.mean()
    scores.loc[first, "sure_wrong"] = (said & ~backed_off.right).mean()
    scores.loc[first, "sure_steps"] = backed_off.steps[said].mean() if said.any() else np.nan
    unseen = calls.unknown[~could]
    scores["n_unseen"] = len(unseen)
    scores["unseen_found"] = np.nan
    if len(unseen):
        scores.loc[0, "unseen_found"] = unseen.mean()
    labels = label_table(truth, kept)
    labels.insert(1, "term", of.terms)
    labels.insert(2, "n_reference", np.bincount(of.code, minlength=len(of.labels)))
    if donor is not None:
        pairs = pd.DataFrame({"code": of.code, "donor": donor}).drop_duplicates()
        labels.insert(3, "n_donors", np.bincount(pairs["code"], minlength=len(of.labels)))
    else:
        labels.insert(3, "n_donors", 0)
    found = {
        "scores": scores,
        "labels": labels,
        "confusion": confusion_table(truth, kept),
        "calibration": reliability_table(truth, kept),
    }
    for table in found.values():
        table.insert(0, "column", of.column)
    return found


def together(parts: Sequence[Mapping[str, pd.DataFrame]]) -> dict[str, pd.DataFrame]:
    """Tables of several columns as one set, with q values over the columns."""
    tables = {name: pd.concat([part[name] for part in parts], ignore_index=True) for name in TABLES}
    tables["scores"]["q_value"] = benjamini_hochberg(tables["scores"]["p_value"])
    return tables


def embedding_of(cells: AnnData, model: MaxTokiModel) -> np.ndarray:
    """The embedding that is there, if it is of this model with the defaults, or a new one."""
    params = cells.uns.get(_keys.EMBED, {}).get("params", {})
    is_mine = params.get("model_sha256") == model.identity and (
        params.get("layer"),
        params.get("pool"),
        params.get("key"),
    ) == (-1, "mean", _keys.EMBEDDING)
    if is_mine and _keys.EMBEDDING in cells.obsm:
        get_sequences(cells, model)  # refuses cells that were ranked for another model since
        return np.asarray(cells.obsm[_keys.EMBEDDING])
    return embed_sequences(model, get_sequences(cells, model)).cells
