"""Ranks, and how much of the cells they hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from .._features import find_genes
from .._validate import require_rank
from ..results.store import read_result


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
    read_result(adata, _keys.ENCODING)
    rows = {
        "genes_ranked": adata.obs[_keys.N_RANKED],
        "share_of_counts_ranked": adata.obs[_keys.SHARE_RANKED],
    }
    quantiles = {"minimum": 0.0, "median": 0.5, "maximum": 1.0}
    return pd.DataFrame(
        {name: [np.quantile(values, q) for values in rows.values()] for name, q in quantiles.items()},
        index=list(rows),
    )


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
