"""Which columns of a matrix are genes, and which of them are the same gene."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from . import _keys
from ._names import closest

if TYPE_CHECKING:  # `models` needs this module, and does without AnnData
    from anndata import AnnData

SYMBOL_KEYS = ("symbol", "gene_symbol", "gene_symbols", "feature_name", "gene_name", "gene_short_name")
# Names of the column, and values in it, without case, spaces and punctuation.
_COLUMNS = ("featuretypes", "featuretype", "modality")
_GENES = {"geneexpression", "expression", "gex", "rna", "transcriptome"}
# Only these tell of other features where nothing is called gene expression: CELLxGENE keeps biotypes in
# `feature_type`.
_OTHERS = {
    "antibody",
    "antibodies",
    "antibodycapture",
    "antigencapture",
    "adt",
    "protein",
    "proteins",
    "prot",
}
_OTHERS |= {"hto", "hashtag", "hashtags", "cmo", "multiplexingcapture", "custom", "peak", "peaks", "atac"}
_OTHERS |= {"crispr", "crisprguidecapture", "guide", "guides", "grna", "sgrna", "vdj", "vdjt", "vdjb"}
_REGION = r"(?:chr[\w.]+|\d{1,2}|[XYM]|MT|(?:GL|KI)\d+\.\d)[:_-]\d+[-_]\d+"


def type_columns(var: pd.DataFrame) -> list:
    """Columns of `var` that say what kind of feature each is."""
    return [name for name in var.columns if re.sub(r"[\W_]", "", str(name).lower()) in _COLUMNS]


def gene_features(var: pd.DataFrame) -> np.ndarray:
    """Whether each feature is a gene: no antibody, hashtag, guide or peak, by its type or by its name."""
    names = pd.Series(var.index.astype(str))
    is_gene = ~names.str.fullmatch(_REGION).to_numpy(dtype=bool)
    for column in type_columns(var):
        given = var[column].astype(object)
        given = given.where(given.notna(), "").astype(str).reset_index(drop=True)
        kind = given.str.lower().str.replace(r"[\W_]", "", regex=True)
        genes, others = kind.isin(_GENES), kind.isin(_OTHERS)
        of_genes = genes if genes.any() else ~others
        unknown = (kind == "") & is_gene
        if unknown.any() and not (of_genes | unknown).all():
            raise ValueError(
                f".var[{column!r}] is empty for {unknown.sum()} features (first: {names[unknown].iloc[0]!r}), and others are "
                f"{_listed(given[~of_genes & ~unknown])}. Say what these are, e.g. adata.var[{column!r}] = "
                f"adata.var[{column!r}].astype(object).fillna('Gene Expression')."
            )
        is_gene &= (of_genes | unknown).to_numpy()
    return is_gene


def gene_columns(var: pd.DataFrame) -> np.ndarray:
    """Column that stands for the gene of each column: the first with its Ensembl id; -1 for what is no gene."""
    own = np.arange(len(var))
    if _keys.GENE_STATUS in var:
        ids = pd.Series(var[_keys.ENSEMBL_ID].to_numpy(dtype=object))
        # Numbered as they appear, so that the first column of each number is that of its gene.
        number, _ = pd.factorize(ids.where(ids.notna(), ""))
        first = np.unique(number, return_index=True)[1][number]
        own = np.where(ids.isna() | (ids == ""), own, first)
    return np.where(gene_features(var), own, -1)


def locate_genes(adata: AnnData, genes: Sequence[str]) -> np.ndarray:
    """Column that holds the ranks of each gene, named by `.var_names`, Ensembl id (with or without version) or symbol; -1 for none."""
    genes = pd.Index(list(genes), dtype=object).astype(str)
    columns = np.full(len(genes), -1)
    # The antibody for a gene may have its name.
    into = gene_columns(adata.var)
    keys = [k for k in (_keys.ENSEMBL_ID, *SYMBOL_KEYS) if k in adata.var]
    # Where the file has no symbols, those that tables and figures show.
    for names in [adata.var_names, *(adata.var[k] for k in keys), pd.Series(symbols(adata))]:
        place = pd.Series(into, index=names.astype(str))[into >= 0]
        place = place[~place.index.duplicated()]
        for asked in (genes, genes.str.replace(r"\.\d+$", "", regex=True)):
            found = place.reindex(asked).fillna(-1).to_numpy(dtype=int)
            columns = np.where(columns < 0, found, columns)
    return columns


def find_genes(adata: AnnData, genes: Sequence[str]) -> np.ndarray:
    """Column of each gene, as of `locate_genes`; or raise with those that are not there."""
    genes = list(genes)
    columns = locate_genes(adata, genes)
    if (columns < 0).any():
        missing = [gene for gene, column in zip(genes, columns, strict=True) if column < 0]
        close = closest(missing[0], symbols(adata))
        raise KeyError(
            f"Did not find the gene {missing[0]!r} ({len(missing)} of {len(genes)} are unknown).{close}"
        )
    return columns


def symbols(adata: AnnData) -> np.ndarray:
    """Name of each gene for a figure: the symbol where `.var` has one, else from GENCODE."""
    for key in SYMBOL_KEYS:
        if key in adata.var:
            return adata.var[key].astype(str).to_numpy()
    if _keys.ENSEMBL_ID not in adata.var:
        return adata.var_names.to_numpy()
    from ._reference import symbol_of_gene

    found = symbol_of_gene().reindex(adata.var[_keys.ENSEMBL_ID]).to_numpy()
    return np.where(pd.isna(found), adata.var_names, found)


def _listed(kinds: pd.Series) -> str:
    return ", ".join(f"{name} ({n})" for name, n in kinds.value_counts().head(3).items())
