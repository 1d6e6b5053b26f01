"""Ages of generated cells, as tidy tables."""

from __future__ import annotations

import pandas as pd
from anndata import AnnData

from .. import _keys
from ._table import read_table


def generated_ages(adata: AnnData, *, key: str = _keys.GENERATED_AGES) -> pd.DataFrame:
    """Scores of `mt.tl.generated_ages`.

    Parameters
    ----------
    adata
        Cells with a result.
    key
        Key in `.uns`.

    Returns
    -------
    One row a kind of cell and group, with "all" for all groups together; the unit is in `.attrs["unit"]`. Each measure has
    `_low` and `_high`, the ends of its 95% interval over donors (NaN for fewer than three):

    `cells`, `group`
        "generated"; "query", the true cells in their place; "context", the last context cells. The group.
    `n_cells`, `n_units`, `unit`
        Cells, and how many donors (or query cells, where no donor is known) were asked for.
    `r`, `slope`
        Correlation of the age that is read with the prompted age, and slope on it: 1 is right.
    `r2`, `spread`, `bias`, `median_error`, `mean_error`
        As of `mt.get.timelapse_scores`, for ages.
    `r_null_low`, `r_null_high`, `p_value`
        Where `r` is in 95% of permutations of the ages asked for, and its one-sided p-value.
    `q_value`
        Corrected for the groups; NaN for "all".

    Examples
    --------
    >>> import anndata, maxtoki_toolkit as mt
    >>> try:
    ...     mt.get.generated_ages(anndata.AnnData())
    ... except KeyError as error:
    ...     print(error.args[0])
    Did not find .uns['generated_ages']. Run mt.tl.generated_ages(adata, model, ...) first.
    """
    return read_table(adata, key, "scores", "mt.tl.generated_ages(adata, model, ...)")


def read_ages(adata: AnnData, *, key: str = _keys.GENERATED_AGES) -> pd.DataFrame:
    """Ages that `mt.tl.generated_ages` reads, cell by cell.

    Parameters
    ----------
    adata
        Cells with a result.
    key
        Key in `.uns`.

    Returns
    -------
    One row a generated cell; the unit of ages is in `.attrs["unit"]`:

    `cell`, `prompt`, `group`
        Its name, its prompt, and whose clock reads it.
    `lapse`, `prompted`
        Time that was to pass since the last context cell, and the age that was asked for.
    `generated`, `query`, `context`
        Age that is read from it, from the true cell in its place (where there is one), and from the last context cell.

    Examples
    --------
    >>> import anndata, maxtoki_toolkit as mt
    >>> try:
    ...     mt.get.read_ages(anndata.AnnData())
    ... except KeyError as error:
    ...     print(error.args[0])
    Did not find .uns['generated_ages']. Run mt.tl.generated_ages(adata, model, ...) first.
    """
    return read_table(adata, key, "cells", "mt.tl.generated_ages(adata, model, ...)")
