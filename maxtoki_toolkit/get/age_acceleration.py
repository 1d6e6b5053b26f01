"""Effects of conditions on the age that is read, as tidy tables."""

from __future__ import annotations

import pandas as pd
from anndata import AnnData

from .. import _keys
from ._table import read_table


def age_acceleration(adata: AnnData, *, key: str = _keys.AGE_ACCELERATION) -> pd.DataFrame:
    """Age acceleration of `mt.tl.age_acceleration`, one row a predictor, condition and group.

    Parameters
    ----------
    adata
        Cells with a result.
    key
        Key in `.uns`.

    Returns
    -------
    The effects; the unit is in `.attrs["unit"]`, and what stands in the way of a conclusion in `.attrs["warnings"]`:

    `predictor`, `condition`, `group`
        "MaxToki" or a baseline; the condition; the group of cells, "all" for all together.
    `effect`, `effect_low`, `effect_high`
        Years by which controls would have to be older to be read alike, with its 95% interval over donors; NaN
        where no age is read from the controls.
    `raw`
        Difference in the age that is read, at the same age: shrunk by `age_slope`.
    `age_slope`, `age_slope_low`, `age_slope_high`
        Age read per age, 1 for a perfect clock, with its 95% interval.
    `p_value`, `q_value`
        Two-sided, permuting donors; corrected for the groups (or, for "all", the conditions) of a predictor.
    `context_sd`
        Standard deviation of the effect between contexts (NaN for "all" and the baselines, which have none).
    `n_donors_condition`, `n_donors_control`, `n_cells_condition`, `n_cells_control`
        Matched donors and their query cells.
    `method`, `conclusion`
        How it was estimated, and what may be said.

    Examples
    --------
    >>> import anndata, maxtoki_toolkit as mt
    >>> try:
    ...     mt.get.age_acceleration(anndata.AnnData())
    ... except KeyError as error:
    ...     print(error.args[0])
    Did not find .uns['age_acceleration']. Run mt.tl.age_acceleration(adata, model, ...) first.
    """
    return _read(adata, key, "effects")


def donor_acceleration(adata: AnnData, *, key: str = _keys.AGE_ACCELERATION) -> pd.DataFrame:
    """Age acceleration donor by donor.

    Parameters
    ----------
    adata
        Cells with a result of `mt.tl.age_acceleration`.
    key
        Key in `.uns`.

    Returns
    -------
    One row a predictor, condition, group and donor, controls included; the unit is in `.attrs["unit"]`:

    `predictor`, `condition`, `group`, `donor`, `case`
        Whose effect, of which comparison; whether the donor has the condition.
    `time`, `read`
        Age of the donor, and the mean age that is read from the cells.
    `acceleration`
        How much older the donor looks than a control of that age.
    `n_cells`
        Query cells.

    Examples
    --------
    >>> import anndata, maxtoki_toolkit as mt
    >>> try:
    ...     mt.get.donor_acceleration(anndata.AnnData())
    ... except KeyError as error:
    ...     print(error.args[0])
    Did not find .uns['age_acceleration']. Run mt.tl.age_acceleration(adata, model, ...) first.
    """
    return _read(adata, key, "donors")


def _read(adata: AnnData, key: str, name: str) -> pd.DataFrame:
    table = read_table(adata, key, name, "mt.tl.age_acceleration(adata, model, ...)")
    table.attrs["warnings"] = list(adata.uns[key]["params"]["warnings"])
    return table
