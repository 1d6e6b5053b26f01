"""Scores of predicted responses, as a tidy table."""

from __future__ import annotations

import pandas as pd
from anndata import AnnData

from .. import _keys
from ._table import read_table


def perturbation_metrics(
    adata: AnnData, *, wide: bool = False, key: str = _keys.PERTURBATION_METRICS
) -> pd.DataFrame:
    """Scores of `mt.tl.perturbation_metrics`.

    Parameters
    ----------
    adata
        Cells with a result.
    wide
        One row a method and one column a score, means over perturbations, without intervals.
    key
        Key in `.uns`.

    Returns
    -------
    One row a perturbation (and "all", their mean), method and score:

    `perturbation`, `method`, `is_baseline`, `score`
        What was predicted, by whom, and how it is scored.
    `value`, `low`, `high`
        The score with its 95% interval; NaN where it is not defined.

    Examples
    --------
    >>> import anndata, maxtoki_toolkit as mt
    >>> try:
    ...     mt.get.perturbation_metrics(anndata.AnnData())
    ... except KeyError as error:
    ...     print(error.args[0])
    Did not find .uns['perturbation_metrics']. Run mt.tl.perturbation_metrics(adata, ...) first.
    """
    table = read_table(adata, key, "scores", "mt.tl.perturbation_metrics(adata, ...)")
    if not wide:
        return table
    every = table[table["perturbation"] == "all"]
    return every.pivot(index="method", columns="score", values="value").loc[
        every["method"].unique(), every["score"].unique()
    ]
