"""Genes by how much steering moves them."""

from __future__ import annotations

import pandas as pd
from anndata import AnnData

from .. import _keys
from ..results.store import read_table


def steer_genes(adata: AnnData, *, key: str = _keys.STEER) -> pd.DataFrame:
    """Genes of `mt.tl.steer_cells` by how far they moved, or of `mt.tl.search_gene_sets` by what each does alone.

    Parameters
    ----------
    adata
        Cells with a result.
    key
        Key in `.uns`.

    Returns
    -------
    The table `genes`: of cells by the size of `change`, which is `level_steered` less `level_start`; of a
    search (`key="gene_sets"`) by `shift`.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.sample_prompts(adata, time_key="age_months", groupby="cell_type", n_prompts=20, donor_key="donor_id")
    >>> search = mt.tl.GeneSetSearch(method="greedy", n_candidates=5, max_size=2, n_cells=6, n_null=2)
    >>> mt.tl.search_gene_sets(adata, model, search=search)
    >>> len(mt.get.steer_genes(adata, key="gene_sets"))
    5
    """
    table = read_table(adata, key, "genes")
    if "level_steered" in table:
        table["change"] = table["level_steered"] - table["level_start"]
        return table.sort_values("change", key=abs, ascending=False, kind="stable", ignore_index=True)
    return table.sort_values("shift", ascending=False, kind="stable", ignore_index=True)
