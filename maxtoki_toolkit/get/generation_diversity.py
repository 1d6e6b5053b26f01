"""Copying, precision, coverage and collapse of generated cells, as a tidy table."""

from __future__ import annotations

import pandas as pd
from anndata import AnnData

from .. import _keys
from ._table import read_table


def generation_diversity(adata: AnnData, *, key: str = _keys.DIVERSITY) -> pd.DataFrame:
    """Scores of `mt.tl.generation_diversity`, one row a group and set of cells.

    Parameters
    ----------
    adata
        Cells with a result.
    key
        Key in `.uns`.

    Returns
    -------
    The scores, each but `distinct` with `_low` and `_high` (95%):

    `group`, `cells`
        Group, or "all"; and "generated", "held-out", "copies", "average" or "shuffled".
    `nearer`
        How often a cell is nearer to a training cell than a true cell is; 0.5 for cells like true ones.
    `near_copies`, `exact_copies`
        Share of cells that overlap with a training cell as 1% of the true cells do; share with the same rank list.
    `precision`, `density`, `coverage`
        Whether cells are where true cells are; how densely; and whether there are some wherever true cells are.
    `spread`
        Distance between cells, over that between true cells.
    `distinct`
        Share of different sets of genes.
    `p_value`, `q_value`
        Of `nearer`: units exchanged with the true cells', two-sided; for the generated cells corrected over groups
        (Benjamini and Hochberg).
    `n_cells`, `n_units`, `n_true`, `n_true_units`, `n_training`
        Cells of the set, and donors (or prompts, or cells) that they are of; true cells; training cells.
    `conclusion`
        What may be said.

    Examples
    --------
    >>> import anndata, maxtoki_toolkit as mt
    >>> try:
    ...     mt.get.generation_diversity(anndata.AnnData())
    ... except KeyError as error:
    ...     print(error.args[0])
    Did not find .uns['generation_diversity']. Run mt.tl.generation_diversity(adata, model, generated=...) first.
    """
    return read_table(adata, key, "scores", "mt.tl.generation_diversity(adata, model, generated=...)")
