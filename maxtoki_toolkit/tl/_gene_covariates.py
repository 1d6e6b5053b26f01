"""What genes are like in some cells: the covariates that controls are matched on."""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from scipy.stats import rankdata

from .. import _keys
from ..pp._ranked_counts import counts_or_none
from ..stats.expression import per_ten_thousand

COVARIATES = ("mean_rank", "detection", "expression")


def gene_covariates(adata: AnnData, *, weight: np.ndarray | None = None) -> pd.DataFrame:
    """Covariates of the genes that have a token, by Ensembl id.

    Parameters
    ----------
    adata
        Rank-encoded cells.
    weight
        How often each cell counts.

    Returns
    -------
    `mean_rank` in the cells that have the gene (NaN for none), `detection` (share of the cells), `expression`
    (mean counts per 10,000 of what was ranked; left out where that is not there, or no counts).
    """
    weight = np.ones(adata.n_obs) if weight is None else weight
    column = np.flatnonzero(adata.var[_keys.TOKEN_ID].to_numpy() >= 0)
    ids = adata.var[_keys.ENSEMBL_ID].astype(str).to_numpy(dtype=object)[column]
    column = column[~pd.Index(ids).duplicated()]
    ranks = sp.csr_matrix(adata.layers[_keys.RANK])[:, column].astype(np.float64)
    seen = ranks.copy()
    seen.data[:] = 1
    n, total = weight @ seen, weight @ ranks
    table = pd.DataFrame(
        index=pd.Index(adata.var[_keys.ENSEMBL_ID].astype(str).to_numpy(dtype=object)[column], name="gene")
    )
    table["mean_rank"] = np.where(n > 0, total / np.maximum(n, 1), np.nan)
    table["detection"] = n / weight.sum()
    counts = counts_or_none(adata, instead="Genes are matched on rank and detection, not on expression")
    if counts is not None:
        table["expression"] = (weight @ per_ten_thousand(counts, np.float64))[column] / weight.sum()
    return table


def of_sets(table: pd.DataFrame, members: list[list[str]]) -> pd.DataFrame:
    """Mean covariates of sets of genes; NaN where no gene is known."""
    sizes = [len(genes) for genes in members]
    flat = table.reindex([gene for genes in members for gene in genes])
    means = flat.reset_index(drop=True).groupby(np.repeat(np.arange(len(members)), sizes)).mean()
    return means.reset_index(drop=True)


def standardised(table: pd.DataFrame) -> np.ndarray:
    """Covariates as ranks from 0 to 1, genes x covariates."""
    ranks = np.stack([rankdata(table[name]) for name in table], axis=1)
    return (ranks - 0.5) / len(table)


def nearest_genes(table: pd.DataFrame, wanted: list[str], n: int, *, exclude: set[str]) -> list[list[str]]:
    """The n genes most like each wanted one; none for a gene that no cell has."""
    known = table.dropna()
    place = standardised(known)
    others = np.flatnonzero(~known.index.isin(list(exclude)))
    if len(others) < n:
        raise ValueError(
            f"Only {len(others)} other genes are in these cells; {n} controls were asked for. Ask for fewer (n_controls)."
        )
    found = []
    for gene in wanted:
        if gene not in known.index:
            found.append([])
            continue
        distance = ((place[others] - place[known.index.get_loc(gene)]) ** 2).sum(axis=1)
        found.append(known.index[others[np.argsort(distance, kind="stable")[:n]]].tolist())
    return found
