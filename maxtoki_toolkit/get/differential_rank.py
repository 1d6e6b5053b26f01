"""Which genes change rank, in generated and in true cells, as tidy tables."""

from __future__ import annotations

import pandas as pd
from anndata import AnnData

from .. import _keys
from ._table import read_table

_FUNCTION = "mt.tl.differential_rank(adata, model, generated=..., time_key=..., intervals=...)"


def differential_rank(adata: AnnData, *, key: str = _keys.DIFFERENTIAL_RANK) -> pd.DataFrame:
    """Changes of `mt.tl.differential_rank`, one row a gene and group.

    Parameters
    ----------
    adata
        Cells with a result.
    key
        Key in `.uns`.

    Returns
    -------
    The changes in ranks, positive for genes that move up:

    `group`, `gene`
        Group of cells, and Ensembl id.
    `true_change`, `true_low`, `true_high`
        Mean rank in the second interval against the first in true cells, with its 95% interval over units.
    `true_p_value`, `true_q_value`
        Wilcoxon rank sum test, two-sided; corrected over the genes of the group (Benjamini and Hochberg).
    `generated_change`, ...
        The same for generated cells.
    `interpolated_change`
        Change that a straight line between the known times has.
    `trend`
        Slope over all times, in ranks per unit of time.
    `top`
        "up", "down", or "" for genes that change less.
    `turning`
        Whether a gene on top changes against its trend.

    Examples
    --------
    >>> import anndata, maxtoki_toolkit as mt
    >>> try:
    ...     mt.get.differential_rank(anndata.AnnData())
    ... except KeyError as error:
    ...     print(error.args[0][:39])
    Did not find .uns['differential_rank'].
    """
    return read_table(adata, key, "genes", _FUNCTION)


def differential_rank_scores(adata: AnnData, *, key: str = _keys.DIFFERENTIAL_RANK) -> pd.DataFrame:
    """How well the true changes are met, one row a predictor and group.

    Parameters
    ----------
    adata
        Cells with a result of `mt.tl.differential_rank`.
    key
        Key in `.uns`.

    Returns
    -------
    The scores, each with `_low` and `_high` (95%):

    `group`, `predictor`
        "generated", "permuted", "interpolation", "no change" and "true halves".
    `pearson`, `spearman`
        Correlation with the true changes over all genes; NaN for no change.
    `sign_up`, `sign_down`, `sign_top`
        Share of the genes that truly rise most, fall most, and of both, whose change has the true sign.
    `sign_turning`
        The same for the genes among them that change against their trend; NaN where there are none.
    `rms_error`
        Root of the mean squared difference to the true changes, in ranks.
    `p_value`, `q_value`
        Of the generated cells' correlation: permutation test, one-sided; corrected over groups (Benjamini and Hochberg).
    `n_genes`, `n_top`, `n_turning`
        Genes compared, on top, and turning.
    `unit_true`, `n_true_first`, `n_true_second`, `unit_generated`, ...
        What was resampled, and how many there are in either interval.

    Examples
    --------
    >>> import anndata, maxtoki_toolkit as mt
    >>> try:
    ...     mt.get.differential_rank_scores(anndata.AnnData())
    ... except KeyError as error:
    ...     print(error.args[0][:39])
    Did not find .uns['differential_rank'].
    """
    return read_table(adata, key, "scores", _FUNCTION)


def compared_cells(adata: AnnData, *, key: str = _keys.DIFFERENTIAL_RANK) -> pd.DataFrame:
    """Cells that `mt.tl.differential_rank` compared.

    Parameters
    ----------
    adata
        Cells with a result.
    key
        Key in `.uns`.

    Returns
    -------
    One row a `cell` with its `source` ("true" or "generated"), `interval` (1 or 2) and `group`.

    Examples
    --------
    >>> import anndata, maxtoki_toolkit as mt
    >>> try:
    ...     mt.get.compared_cells(anndata.AnnData())
    ... except KeyError as error:
    ...     print(error.args[0][:39])
    Did not find .uns['differential_rank'].
    """
    return read_table(adata, key, "cells", _FUNCTION)
