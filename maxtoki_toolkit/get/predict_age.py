"""Ages that were read from cells, as tidy tables."""

from __future__ import annotations

import pandas as pd
from anndata import AnnData

from .. import _keys
from ._table import read_table


def predicted_ages(adata: AnnData, *, key: str = _keys.PREDICT_AGE) -> pd.DataFrame:
    """Ages of `mt.tl.predict_age`, one row a donor and group.

    Parameters
    ----------
    adata
        Cells with a result.
    key
        Key in `.uns`.

    Returns
    -------
    The ages; the unit is in `.attrs["unit"]`:

    `donor`, `group`, `reference`
        Whose cells; whether they are reference.
    `n_cells`, `n_contexts`
        Cells, and after how many contexts of other donors each was read at most.
    `known`
        The age that the column of `.obs` has, NaN where it has none.
    `predicted`, `low`, `high`
        Mean over the cells, with an interval that holds for new donors; NaN where there is none.

    Examples
    --------
    >>> import anndata, maxtoki_toolkit as mt
    >>> try:
    ...     mt.get.predicted_ages(anndata.AnnData())
    ... except KeyError as error:
    ...     print(error.args[0])
    Did not find .uns['predict_age']. Run mt.tl.predict_age(adata, model, ...) first.
    """
    return read_table(adata, key, "donors", "mt.tl.predict_age(adata, model, ...)")


def age_calibration(adata: AnnData, *, key: str = _keys.PREDICT_AGE) -> pd.DataFrame:
    """How well the reference donors' ages are read, one row a group of cells.

    Parameters
    ----------
    adata
        Cells with a result of `mt.tl.predict_age`.
    key
        Key in `.uns`.

    Returns
    -------
    The groups; the unit is in `.attrs["unit"]`:

    `group`, `n_cells`, `n_reference_donors`, `n_reference_cells`
        Cells whose age was asked for, and donors and cells of known age.
    `slope`
        Age for each unit of age that is read.
    `r`, `r_low`
        Correlation over donors of what is read, on average over their cells, with the known ages; lower end of its 95%
        interval.
    `median_error`, `median_error_mean_age`
        Median absolute error of the donors' ages, each by the fit without that donor, and of saying the mean age of the other donors.
    `cell_reach`, `donor_reach`
        Half the width of the intervals.
    `reason`
        Why there is no age, or no interval; "" where there is.

    Examples
    --------
    >>> import anndata, maxtoki_toolkit as mt
    >>> try:
    ...     mt.get.age_calibration(anndata.AnnData())
    ... except KeyError as error:
    ...     print(error.args[0])
    Did not find .uns['predict_age']. Run mt.tl.predict_age(adata, model, ...) first.
    """
    return read_table(adata, key, "groups", "mt.tl.predict_age(adata, model, ...)")
