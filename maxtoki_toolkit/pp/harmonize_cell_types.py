"""Labels of cell types of many studies in one language, that of the Cell Ontology."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from .._ontology import cell_ontology, find_term, match, nearest, suggestions
from .._validate import require_obs
from .._warn import warn
from ..results.store import write_obs, write_result
from ._columns import as_labels
from ._design import is_missing

LEVELS = ("class", "subclass")


def harmonize_cell_types(
    adata: AnnData,
    key: str = "cell_type",
    *,
    level: str | Sequence[str] | None = None,
    mapping: Mapping[str, str] | None = None,
    key_added: str = "cell_ontology",
) -> None:
    """Find the Cell Ontology term of every label, and what it is at a chosen level.

    Parameters
    ----------
    adata
        Cells, of one study or several.
    key
        Column of `.obs` with the labels, or with ids of terms ("CL:0000084").
    level
        Terms, by name or id, at which cells are to be alike: each cell is given the nearest that it is a kind
        of. Or "class" or "subclass", CELLxGENE's broad and finer list of these. By default the term itself.
    mapping
        Your own term for a label, by name or id, or "" for labels that are no cell type ("doublet",
        "unknown"). It goes before anything else.
    key_added
        Column of `.obs` to write, and how the other begins.

    Returns
    -------
    `None`. Writes

    `.obs["cell_ontology"]`
        Name of the term at the level, "" where none is known: a category.
    `.obs["cell_ontology_id"]`
        Id of the term that the label names.
    `.uns["harmonize_cell_types"]`
        The table `labels`, one row a label, those to look at first: `label`, `n_cells`, `term`, `name`,
        `at_level`, `how` it was found ("mapping", "id", "name", "short form", "synonym", "replaced", "without
        markers"), `sure`, and `suggestions`, names that are spelt like it.

    Raises
    ------
    KeyError
        If there is no such column.
    ValueError
        If a term of `level` or `mapping` is not in the ontology, a label of `mapping` is not in the column,
        or no label names a term.

    Warns
    -----
    UserWarning
        Of labels that name no term, or only without their surface markers: "CD56+ NK" is read as natural
        killer cell.

    Notes
    -----
    The ontology is the release of 2026-03-26 (Diehl et al., J Biomed Semantics 2016; CC BY 4.0), as CELLxGENE
    uses it. Synonyms count where one term alone has them and that term is in use in the Census: "alpha cell"
    is a neuron of the mouse's retina as well. Nothing is guessed from spelling.

    Examples
    --------
    >>> import anndata, maxtoki_toolkit as mt
    >>> labels = ["CD14+ Monocyte", "Tregs", "NK", "B cells"]
    >>> adata = anndata.AnnData(obs={"cell_type": labels})
    >>> mt.pp.harmonize_cell_types(adata, level=["T cell", "monocyte", "lymphocyte"])
    >>> adata.obs["cell_ontology"].tolist()
    ['monocyte', 'T cell', 'lymphocyte', 'lymphocyte']
    >>> adata.obs["cell_ontology_id"].tolist()
    ['CL:0001054', 'CL:0000815', 'CL:0000623', 'CL:0000236']
    """
    require_obs(adata, key)
    column = adata.obs[key]
    labels = np.array(as_labels(column.astype(object)), dtype=object)
    labels[is_missing(column)] = ""
    table = read_labels(labels, dict(mapping or {}), key)
    tops = _tops(level)
    if not (table["term"] != "").any():
        raise ValueError(
            f"None of the {len(table)} labels in .obs[{key!r}] names a term of the Cell Ontology ({_first(table)}). "
            "Say what they mean: mapping={label: term}."
        )
    table["at_level"] = table["term"] if tops is None else nearest(table["term"].to_numpy(), tops)
    names = cell_ontology()["name"].to_dict() | {"": ""}
    table["name"], table["at_level"] = table["term"].map(names), table["at_level"].map(names)
    table = table.sort_values(["sure", "n_cells"], ascending=[True, False], kind="stable", ignore_index=True)

    of_label = table.set_index("label")
    columns = {
        key_added: pd.Categorical(of_label["at_level"].reindex(labels).fillna("")),
        f"{key_added}_id": pd.Categorical(of_label["term"].reindex(labels).fillna("")),
    }
    write_obs(adata, _keys.HARMONIZED, columns)
    params = {
        "key": key,
        "level": level if isinstance(level, str) else list(tops or []),
        "key_added": key_added,
    }
    params |= {"mapping": dict(mapping or {})}
    order = ["label", "n_cells", "term", "name", "at_level", "how", "sure", "suggestions"]
    write_result(adata, _keys.HARMONIZED, params, labels=table[order])
    _warn(table, key)


def read_labels(labels: np.ndarray, mapping: Mapping[str, str], key: str) -> pd.DataFrame:
    """Term of each label, one row a label."""
    found, n_cells = np.unique(labels[labels != ""].astype(str), return_counts=True)
    if unknown := sorted(set(mapping) - set(found)):
        raise ValueError(f"mapping has the label {unknown[0]!r}, which .obs[{key!r}] has not.")
    rows = []
    for label, n in zip(found, n_cells, strict=True):
        if label in mapping:
            term, how, sure = mapping[label] and find_term(mapping[label]), "mapping", True
        else:
            term, how, sure = match(label)
        near = "" if sure else "; ".join(suggestions(label))
        rows.append((str(label), int(n), term, how, sure, near))
    return pd.DataFrame(rows, columns=["label", "n_cells", "term", "how", "sure", "suggestions"])


def _tops(level: str | Sequence[str] | None) -> list[str] | None:
    """Ids of the terms of a level."""
    if level is None:
        return None
    if isinstance(level, str):
        if level not in LEVELS:
            raise ValueError(
                f"level must be {' or '.join(map(repr, LEVELS))} or a list of terms, got {level!r}."
            )
        of = cell_ontology()["level"]
        return of.index[of == level].tolist()
    return [find_term(name) for name in level]


def _first(table: pd.DataFrame, n: int = 5) -> str:
    """The labels of most cells."""
    most = table.sort_values("n_cells", ascending=False, kind="stable")["label"].head(n)
    return ", ".join(map(repr, most)) + (", ..." if len(table) > n else "")


def _warn(table: pd.DataFrame, key: str) -> None:
    lost = table[table["term"].eq("") & ~table["sure"]]
    wide = table[table["how"] == "without markers"]
    above = table[table["term"].ne("") & table["at_level"].eq("")]
    texts = [
        f"{len(part)} labels ({part['n_cells'].sum()} cells) {what}: {_first(part)}."
        for part, what in [
            (lost, "name no term"),
            (wide, "are read without their surface markers"),
            (above, "are no kind of any term of the level"),
        ]
        if len(part)
    ]
    if texts:
        warn(
            f"Of .obs[{key!r}], {' '.join(texts)} Look at .uns[{_keys.HARMONIZED!r}]['labels'], and say what they mean: "
            "mapping={label: term}."
        )
