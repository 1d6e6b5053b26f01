"""Types that were asked for, by types that were found."""

from __future__ import annotations

import pandas as pd
from anndata import AnnData

from .. import _keys
from ..results.store import read_table


def annotation_matrix(adata: AnnData, *, key: str = _keys.CONCORDANCE) -> pd.DataFrame:
    """Generated cells of each prompted type, by annotated type.

    Parameters
    ----------
    adata
        Cells with a result of `mt.tl.annotation_concordance`.
    key
        Key in `.uns`.

    Returns
    -------
    Numbers of cells: prompted types as rows; as columns the same types, then others that were annotated.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(400, 12)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.hold_out(adata, donor_key="donor_id", donors=0.5, time_key="age_months")
    >>> mt.pp.sample_prompts(
    ...     adata, time_key="age_months", groupby="cell_type", donor_key="donor_id", task="cell", n_prompts=4,
    ...     context_size=1, contexts="held_out", queries="held_out")
    >>> cells = mt.tl.generate(adata, model, max_genes=10)
    >>> mt.tl.annotation_concordance(adata, model, generated=cells, groupby="cell_type")
    >>> int(mt.get.annotation_matrix(adata).to_numpy().sum()) == cells.n_obs
    True
    """
    cells = read_table(adata, key, "cells")
    counts = pd.crosstab(cells["prompted"].astype(str), cells["annotated"].astype(str))
    others = [name for name in counts.columns if name not in counts.index]
    return counts.reindex(columns=[*counts.index, *others], fill_value=0)
