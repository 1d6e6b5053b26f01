"""What each part of the prompt is worth, as a tidy table."""

from __future__ import annotations

import pandas as pd
from anndata import AnnData

from .. import _keys
from ._table import read_table


def ablation(adata: AnnData, *, key: str = _keys.ABLATION) -> pd.DataFrame:
    """Effects of `mt.tl.ablate_prompt`, one row an ablation.

    Parameters
    ----------
    adata
        Cells with a result.
    key
        Key in `.uns`.

    Returns
    -------
    The effects; the unit of errors is in `.attrs["unit"]`:

    `ablation`
        What was done.
    `mean_error`, `mean_error_intact`
        Mean absolute error of the lapse with the ablation and without.
    `difference`, `difference_low`, `difference_high`
        Mean of the paired differences (positive: the ablation hurts), with its 95% interval over donors.
    `r`, `r_intact`
        Correlation of predicted and true lapses, with the ablation and without.
    `p_value`, `q_value`
        Two-sided t test with the error of that interval (jackknife over donors); corrected for the ablations.
    `n_prompts`, `n_units`, `unit`
        Prompts, and how many donors (or query cells, where no donor is known) their queries are of.

    Examples
    --------
    >>> import anndata, maxtoki_toolkit as mt
    >>> try:
    ...     mt.get.ablation(anndata.AnnData())
    ... except KeyError as error:
    ...     print(error.args[0])
    Did not find .uns['ablate_prompt']. Run mt.tl.ablate_prompt(adata, model) first.
    """
    return read_table(adata, key, "effects", "mt.tl.ablate_prompt(adata, model)")
