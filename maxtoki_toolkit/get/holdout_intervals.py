"""Intervals in which genes turn over, as tidy tables."""

from __future__ import annotations

import pandas as pd
from anndata import AnnData

from .. import _keys
from .._results import read_result

_FUNCTION = "mt.pp.holdout_intervals(adata, time_key=...)"


def holdout_intervals(adata: AnnData, *, key: str = _keys.HOLDOUT_INTERVALS) -> pd.DataFrame:
    """Intervals of `mt.pp.holdout_intervals`, one row an interval and group.

    Parameters
    ----------
    adata
        Cells with a result.
    key
        Key in `.uns`.

    Returns
    -------
    The intervals:

    `group`, `first`, `last`
        Group of cells, and the interval's first and last time.
    `n_turning`, `n_peak`, `n_dip`
        Genes that turn over there (controlled over all genes, intervals and groups), and in which direction.
    `n_turning_null`
        Mean number where the samples' times are permuted.
    `p_value`
        Share of permutations with as many turning genes in any interval of any group.
    `n_cells`, `n_samples`
        Cells in the interval, and donors at a time (or cells, where donors are not known).
    `held_out`
        Whether it is held out.

    Examples
    --------
    >>> import anndata, maxtoki_toolkit as mt
    >>> try:
    ...     mt.get.holdout_intervals(anndata.AnnData())
    ... except KeyError as error:
    ...     print(error.args[0])
    Did not find .uns['holdout_intervals']. Run mt.pp.holdout_intervals(adata, time_key=...) first.
    """
    return read_result(adata, key, _FUNCTION)["intervals"].copy()


def turning_genes(adata: AnnData, *, key: str = _keys.HOLDOUT_INTERVALS) -> pd.DataFrame:
    """Genes that turn over, one row a gene, interval and group.

    Parameters
    ----------
    adata
        Cells with a result of `mt.pp.holdout_intervals`.
    key
        Key in `.uns`.

    Returns
    -------
    The genes, surest first: `gene` (`.var_names`), `group`, `first`, `last`, `direction` ("peak" or "dip"),
    `slope_before` and `slope_after` (share of the cell's ranks per unit of time), `p_value` (two lines, t tests) and
    `q_value` (Benjamini and Hochberg).

    Examples
    --------
    >>> import anndata, maxtoki_toolkit as mt
    >>> try:
    ...     mt.get.turning_genes(anndata.AnnData())
    ... except KeyError as error:
    ...     print(error.args[0])
    Did not find .uns['holdout_intervals']. Run mt.pp.holdout_intervals(adata, time_key=...) first.
    """
    return read_result(adata, key, _FUNCTION)["genes"].copy()
