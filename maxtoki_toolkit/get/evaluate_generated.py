"""What all audits of generated cells come to, as a tidy table."""

from __future__ import annotations

import pandas as pd
from anndata import AnnData

from .. import _keys
from ._table import read_table


def evaluate_generated(adata: AnnData, *, key: str = _keys.EVALUATE_GENERATED) -> pd.DataFrame:
    """Summary of `mt.tl.evaluate_generated`, one row a measure.

    Parameters
    ----------
    adata
        Cells with a result.
    key
        Key in `.uns`.

    Returns
    -------
    One row a measure:

    `audit`, `measure`, `group`
        The function that has it in its own result, its name there, and the group ("all" where there is a row for all).
    `value`, `low`, `high`
        Of generated cells, with the 95% interval.
    `worst`, `worst_is`, `best`, `best_is`
        What cells that are none and what true cells have, and which cells these are in the audit's result.
    `place`
        Where the value is between both: 0 at the worst, 1 at true cells.

    Examples
    --------
    >>> import anndata, maxtoki_toolkit as mt
    >>> try:
    ...     mt.get.evaluate_generated(anndata.AnnData())
    ... except KeyError as error:
    ...     print(error.args[0])
    Did not find .uns['evaluate_generated']. Run mt.tl.evaluate_generated(adata, model, ...) first.
    """
    return read_table(adata, key, "summary", "mt.tl.evaluate_generated(adata, model, ...)")
