"""Results as tidy tables: what `mt.pl` draws, and what goes into a supplement."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from .._features import gene_columns
from .._results import read_result
from .._validate import require_rank

SYMBOL_KEYS = ("symbol", "gene_symbol", "gene_symbols", "feature_name", "gene_name", "gene_short_name")


def gene_report(adata: AnnData) -> pd.DataFrame:
    """What became of the genes in `mt.pp.map_genes`.

    Parameters
    ----------
    adata
        Cells whose genes are mapped.

    Returns
    -------
    One row a fate, `n_genes` genes: all "genes"; "matched", "versioned", "retired" and "dropped", which add
    up to them; "duplicated", columns that share a gene with an earlier one; and "in_vocabulary".

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.load("heart_nuclei")
    >>> mt.pp.map_genes(adata)
    >>> int(mt.get.gene_report(adata).loc["genes", "n_genes"])
    17952
    """
    return read_result(adata, _keys.MAP_GENES, "mt.pp.map_genes(adata)")["report"].copy()


def encoding_report(adata: AnnData) -> pd.DataFrame:
    """How much of each cell was ranked by `mt.pp.rank_value_encode`.

    Parameters
    ----------
    adata
        Rank-encoded cells.

    Returns
    -------
    Minimum, median and maximum over cells of "genes_ranked" and of "share_of_counts_ranked" (0-1).

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.load("heart_nuclei")
    >>> mt.pp.rank_value_encode(adata, mt.load_model("demo"))
    >>> mt.get.encoding_report(adata).columns.tolist()
    ['minimum', 'median', 'maximum']
    """
    read_result(adata, _keys.ENCODING, "mt.pp.rank_value_encode(adata, model)")
    rows = {
        "genes_ranked": adata.obs[_keys.N_RANKED],
        "share_of_counts_ranked": adata.obs[_keys.SHARE_RANKED],
    }
    quantiles = {"minimum": 0.0, "median": 0.5, "maximum": 1.0}
    return pd.DataFrame(
        {name: [np.quantile(values, q) for values in rows.values()] for name, q in quantiles.items()},
        index=list(rows),
    )


def neighbor_purity(adata: AnnData, *, key: str = _keys.PURITY) -> pd.DataFrame:
    """Scores of `mt.tl.neighbor_purity`.

    Parameters
    ----------
    adata
        Scored cells.
    key
        Key in `.uns`.

    Returns
    -------
    One row an embedding: `purity` with `ci_low` and `ci_high`, the model's `difference` to it with
    `difference_low` and `difference_high`, `n_cells`.

    Examples
    --------
    >>> import anndata, maxtoki_toolkit as mt
    >>> try:
    ...     mt.get.neighbor_purity(anndata.AnnData())
    ... except KeyError as error:
    ...     print(error.args[0])
    Did not find .uns['neighbor_purity']. Run mt.tl.neighbor_purity(adata, model, groupby=...) first.
    """
    function = "mt.tl.neighbor_purity(adata, model, groupby=...)"
    return read_result(adata, key, function)["scores"].copy()


def ranks(adata: AnnData, genes: Sequence[str] | None = None) -> pd.DataFrame:
    """Ranks as a table, cells x genes.

    Parameters
    ----------
    adata
        Rank-encoded cells.
    genes
        Symbols, Ensembl ids or `.var_names`; all ranked genes by default.

    Returns
    -------
    float32: 1 for the highest ranked gene of a cell, NaN where the cell does not express the gene.

    Raises
    ------
    KeyError
        If a gene is not found.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.load("heart_nuclei")
    >>> mt.pp.rank_value_encode(adata, mt.load_model("demo"))
    >>> mt.get.ranks(adata, ["TTN", "DCN"]).shape
    (700, 2)
    """
    require_rank(adata)
    if genes is None:
        columns = np.flatnonzero(adata.var[_keys.TOKEN_ID] >= 0)
        genes = adata.var_names[columns]
    else:
        columns = find_genes(adata, genes)
    dense = adata.layers[_keys.RANK][:, columns].toarray().astype(np.float32)
    dense[dense == 0] = np.nan
    return pd.DataFrame(dense, index=adata.obs_names, columns=list(genes))


def find_genes(adata: AnnData, genes: Sequence[str]) -> np.ndarray:
    """Column that holds the ranks of each gene, named by `.var_names`, Ensembl id or symbol."""
    genes = list(genes)
    columns = np.full(len(genes), -1)
    # The antibody for a gene may have its name.
    into = gene_columns(adata.var)
    for names in [adata.var_names] + [
        adata.var[k] for k in (_keys.ENSEMBL_ID, *SYMBOL_KEYS) if k in adata.var
    ]:
        place = pd.Series(into, index=names.astype(str))[into >= 0]
        found = place[~place.index.duplicated()].reindex(genes).fillna(-1).to_numpy(dtype=int)
        columns = np.where(columns < 0, found, columns)
    if (columns < 0).any():
        missing = [gene for gene, column in zip(genes, columns, strict=True) if column < 0]
        raise KeyError(f"Did not find the gene {missing[0]!r} ({len(missing)} of {len(genes)} are unknown).")
    return columns


def symbols(adata: AnnData) -> np.ndarray:
    """Name of each gene for a figure: the symbol where `.var` has one, else from GENCODE."""
    for key in SYMBOL_KEYS:
        if key in adata.var:
            return adata.var[key].astype(str).to_numpy()
    if _keys.ENSEMBL_ID not in adata.var:
        return adata.var_names.to_numpy()
    from .._reference import gene_table

    table = gene_table().set_index("ensembl_id")["symbol"]
    found = table.reindex(adata.var[_keys.ENSEMBL_ID]).to_numpy()
    return np.where(pd.isna(found), adata.var_names, found)
