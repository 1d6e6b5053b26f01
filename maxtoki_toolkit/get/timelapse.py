"""Prompts and lapses as tidy tables."""

from __future__ import annotations

import pandas as pd
from anndata import AnnData

from .. import _keys
from .._results import read_result
from ._table import read_table


def prompts(adata: AnnData, *, key: str = _keys.PROMPTS) -> pd.DataFrame:
    """Prompts of `mt.pp.sample_prompts` or `mt.pp.match_queries`.

    Parameters
    ----------
    adata
        Cells with prompts.
    key
        Key in `.uns`, e.g. "matched_prompts".

    Returns
    -------
    One row a prompt:

    `context_0`, `context_1`, ...
        Names of the context cells, in order; "" after the last one.
    `lapse_0`, `lapse_1`, ...
        Time from each context cell to the next, in the unit of the cells' times; NaN after the last one.
    `query`
        Name of the query cell.
    `lapse`
        Time from the last context cell to the query, in the same unit; negative if the query is earlier.
    `group`
        What all cells of the prompt agree in: the values of the grouping columns, joined by " | ".
    `time`
        Time of the query cell.
    `donor`, `donor_0`, `donor_1`, ...
        Donor of the query and of each context cell, if `donor_key` was given.
    `prompt`, `old_query`, `old_lapse`
        Only of `mt.pp.match_queries`: row, query and lapse of the prompt before.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10, n_genes=500)
    >>> mt.pp.sample_prompts(adata, time_key="age_months", groupby="cell_type", n_prompts=20)
    >>> mt.get.prompts(adata).shape[0]
    20
    """
    return read_result(adata, key, "mt.pp.sample_prompts(adata, ...)")["prompts"].copy()


def timelapse(adata: AnnData, *, key: str = _keys.TIMELAPSE) -> pd.DataFrame:
    """Predicted lapses of `mt.tl.predict_timelapse` or `mt.tl.timelapse_baselines`.

    Parameters
    ----------
    adata
        Cells with predicted prompts.
    key
        Key in `.uns`; "timelapse_baselines" for the baselines' predictions as well.

    Returns
    -------
    The prompts (`mt.get.prompts`), and in the unit of the model's time head, which is in `.attrs["unit"]`:

    `predicted`
        Lapse that the model reads.
    `p_non_numeric`
        Probability (0-1) that the model gives to tokens that are no lapse; NaN for a linear time head.
    `ridge_embedding`, `ridge_expression`, `sgd_expression`, `most_common`
        Lapse that each baseline predicts (only `key="timelapse_baselines"`).

    Examples
    --------
    >>> import anndata, maxtoki_toolkit as mt
    >>> try:
    ...     mt.get.timelapse(anndata.AnnData())
    ... except KeyError as error:
    ...     print(error.args[0])
    Did not find .uns['timelapse']. Run mt.tl.predict_timelapse(adata, model) first.
    """
    return _read(adata, key, "prompts")


def timelapse_scores(adata: AnnData, *, key: str = _keys.TIMELAPSE) -> pd.DataFrame:
    """Scores of predicted lapses.

    Parameters
    ----------
    adata
        Cells with predicted prompts.
    key
        Key in `.uns`; "timelapse_baselines" for the model beside the baselines.

    Returns
    -------
    One row a predictor and group, with "all" for all groups together; the unit is in `.attrs["unit"]`. Each measure
    has `_low` and `_high`, the ends of its 95% interval over donors (NaN for fewer than three):

    `predictor`, `group`
        Who predicted ("MaxToki" or a baseline), and for which prompts.
    `n_prompts`, `n_units`, `unit`
        Prompts, and how many donors (or query cells, where no donor is known) their queries are of.
    `r`
        Pearson correlation of predicted and true lapse; NaN for a constant prediction.
    `slope`
        Slope of the predicted on the true lapse: 1 is right, less is a regression to the mean.
    `r2`
        1 - mean squared error / variance of the true lapses; negative if their mean were a better prediction.
    `spread`
        Standard deviation of the predicted over that of the true lapses.
    `bias`, `median_error`, `mean_error`
        Mean of predicted - true lapse; median and mean of its absolute value, in the unit.
    `r_null_low`, `r_null_high`, `p_value`
        Where `r` is in 95% of permutations of the query donors' times, and the one-sided p-value of `r`. Contexts and
        predictions stay as they are, so an `r` above it is owed to the query cells; or, where the prompts were drawn
        with `zero_lapse="never"` and there are few times, to the times that the context has left over.
    `error_ratio`
        Median error of the model over that of the predictor: below 1, the model is better (only
        `key="timelapse_baselines"`). Its interval is of the paired ratio.

    Examples
    --------
    >>> import anndata, maxtoki_toolkit as mt
    >>> try:
    ...     mt.get.timelapse_scores(anndata.AnnData(), key="timelapse_baselines")
    ... except KeyError as error:
    ...     print(error.args[0])
    Did not find .uns['timelapse_baselines']. Run mt.tl.timelapse_baselines(adata, model) first.
    """
    return _read(adata, key, "scores")


def _read(adata: AnnData, key: str, table: str) -> pd.DataFrame:
    function = "timelapse_baselines" if key == _keys.BASELINES else "predict_timelapse"
    return read_table(adata, key, table, f"mt.tl.{function}(adata, model)")
