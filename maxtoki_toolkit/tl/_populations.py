"""Populations of cells: one context (a line, a type, a donor) under one perturbation."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from .._validate import require_unique_names
from ..models.response import described_names
from ..pp._design import get_groups, get_labels, known_cells
from ..pp._ranked_counts import ranked_counts
from ..stats.expression import log_normalize


class Populations(NamedTuple):
    """Cells by context and perturbation."""

    rows: np.ndarray
    """Rows of the AnnData, in the order in which the cells are read here."""
    context: np.ndarray
    """Number of the context of each cell."""
    label: np.ndarray
    """0 for controls, else 1 and the number of the perturbation."""
    contexts: list[str]
    perturbations: list[str]
    embedding: np.ndarray
    """float64, cells x dimensions."""
    expression: sp.csr_matrix
    """Log-normalised expression, cells x genes."""


def read_populations(
    adata: AnnData,
    perturbation_key: str,
    control: str,
    groupby: list[str],
    use_rep: str,
    layer: str | None,
    *others: str | None,
) -> Populations:
    """Read cells with a context and a perturbation, in the order of their names; or raise if there are no controls."""
    require_unique_names(adata)
    if use_rep not in adata.obsm:
        raise KeyError(
            f"Did not find .obsm[{use_rep!r}]. Run mt.tl.embed(adata, model) first, or name another: use_rep=."
        )
    cells, rows = known_cells(adata, perturbation_key, groupby, *others)
    context, contexts = get_groups(cells, groupby)
    name = get_labels(cells, perturbation_key)
    perturbations = sorted(set(name) - {control})
    if not (name == control).any() or not perturbations:
        raise ValueError(
            f"There are {(name == control).sum()} controls (.obs[{perturbation_key!r}] is {control!r}) and {len(perturbations)} "
            "perturbations; both are needed."
        )
    return Populations(
        rows=rows,
        context=context,
        label=pd.Index([control, *perturbations]).get_indexer(name),
        contexts=contexts,
        perturbations=perturbations,
        embedding=np.asarray(cells.obsm[use_rep], dtype=np.float64),
        expression=log_normalize(ranked_counts(cells, layer), np.float64),
    )


def read_descriptors(table: pd.DataFrame | None, perturbations: list[str]) -> tuple[np.ndarray, list[str]]:
    """Descriptors, perturbations x columns, and the names of the perturbations; each its own where none are given."""
    if table is None:
        return described_names(perturbations), perturbations
    names = table.index.astype(str)
    if missing := [name for name in perturbations if name not in names]:
        raise ValueError(
            f"descriptors have no row for {missing[0]!r} ({len(missing)} of {len(perturbations)} perturbations). Their index names perturbations."
        )
    if not names.is_unique:
        raise ValueError(f"descriptors name {names[names.duplicated()][0]!r} more than once.")
    values = table.to_numpy()
    if values.dtype.kind not in "biuf" or not np.isfinite(values.astype(float)).all():
        raise ValueError("descriptors must be numbers, without missing values.")
    spread = values.std(axis=0)
    # On one scale: a network reads them as they are.
    values = (values - values.mean(axis=0)) / np.where(spread > 0, spread, 1)
    return values.astype(np.float32), names.tolist()


def mean_of(expression: sp.csr_matrix, code: np.ndarray, n: int) -> np.ndarray:
    """Means of the cells of each number, n x genes; NaN for those of no cell, and cells of number -1 are left out."""
    rows = np.flatnonzero(code >= 0)
    count = np.bincount(code[rows], minlength=n)
    gather = sp.csr_matrix((np.ones(len(rows)), (code[rows], rows)), shape=(n, len(code)))
    with np.errstate(invalid="ignore"):
        return np.asarray((gather @ expression).todense()) / np.where(count > 0, count, np.nan)[:, None]
