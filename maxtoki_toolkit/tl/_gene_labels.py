"""Labels of genes as people bring them, on the genes of an AnnData."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from .._features import locate_genes
from ._gene_sets import read_gene_sets

Labels = pd.DataFrame | Mapping[str, Sequence[str]] | str | Path


def label_matrix(adata: AnnData, labels: Labels) -> tuple[np.ndarray, list[str], int]:
    """Labels by column of the AnnData, genes x sets (1, 0, NaN for not known), their names, and genes that are not there."""
    if not isinstance(labels, pd.DataFrame):
        sets = read_gene_sets(labels)
        names = list(sets)
        if not names:
            raise ValueError("labels has no gene set.")
        matrix = np.zeros((adata.n_vars, len(names)))
        flat = [(gene, j) for j, genes in enumerate(sets.values()) for gene in dict.fromkeys(genes)]
        column = locate_genes(adata, [gene for gene, _ in flat])
        there = column >= 0
        matrix[column[there], np.array([j for _, j in flat], dtype=np.int64)[there]] = 1
        return matrix, names, int((~there).sum())
    if "gene" not in labels:
        raise ValueError(
            f"labels has no column 'gene'; it has {', '.join(map(repr, labels.columns))}. Rename one: "
            "labels.rename(columns={...: 'gene'})."
        )
    names = [str(name) for name in labels.columns if name != "gene"]
    if not names:
        raise ValueError(
            "labels has no column of labels beside 'gene': 1 for genes that have the label, 0 for others."
        )
    values = labels.drop(columns="gene").apply(pd.to_numeric, errors="coerce").to_numpy(dtype=float)
    given = labels.drop(columns="gene").notna().to_numpy()
    for j, name in enumerate(names):
        if (bad := given[:, j] & ~np.isin(values[:, j], (0, 1))).any():
            found = labels.drop(columns="gene").iloc[np.flatnonzero(bad)[0], j]
            raise ValueError(
                f"The column {name!r} of labels holds {found!r}: labels are 1 (or True), 0 (or False), or missing. "
                "Give a column for each label: pd.get_dummies makes them."
            )
    column = locate_genes(adata, labels["gene"].astype(str))
    there = column >= 0
    table = pd.DataFrame(values[there]).groupby(column[there])
    if (differ := (table.max() != table.min()) & table.max().notna()).to_numpy().any():
        row, j = np.argwhere(differ.to_numpy())[0]
        gene = adata.var_names[differ.index[row]]
        raise ValueError(
            f"The column {names[j]!r} of labels says both 1 and 0 of the gene {gene!r}. Keep one."
        )
    matrix = np.full((adata.n_vars, len(names)), np.nan)
    firsts = table.max()
    matrix[firsts.index.to_numpy()] = firsts.to_numpy()
    return matrix, names, int((~there).sum())
