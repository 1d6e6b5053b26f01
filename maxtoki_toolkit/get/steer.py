"""What steered cells are like, as tidy tables."""

from __future__ import annotations

import pandas as pd
from anndata import AnnData

from .. import _keys
from ._table import read_table

_FUNCTION = "mt.tl.steer_cells(adata, model, ...)"


def steer(adata: AnnData, *, key: str = _keys.STEER) -> pd.DataFrame:
    """Where `mt.tl.steer_cells` led cells, one row a measure and state.

    Parameters
    ----------
    adata
        Cells with a result.
    key
        Key in `.uns`.

    Returns
    -------
    A table of states ("start"; "abrupt", the edit alone; "unsteered", resampled under the edit but not led; "steered");
    the unit of distances is in `.attrs["unit"]`:

    `measure`
        "log_likelihood", in nats a gene, or "distance".
    `mean`, `mean_low`, `mean_high`
        Mean over cells, with its 95% interval over donors or cells.
    `difference`, `difference_low`, `difference_high`, `p_value`, `q_value`
        Paired difference from "abrupt", with the same.

    Examples
    --------
    >>> import anndata, maxtoki_toolkit as mt
    >>> try:
    ...     mt.get.steer(anndata.AnnData())
    ... except KeyError as error:
    ...     print(error.args[0])
    Did not find .uns['steer']. Run mt.tl.steer_cells(adata, model, ...) first.
    """
    return read_table(adata, key, "effects", _FUNCTION)


def steer_genes(adata: AnnData, *, key: str = _keys.STEER) -> pd.DataFrame:
    """Genes of the cells of `mt.tl.steer_cells`, one row each, the largest changes first.

    Parameters
    ----------
    adata
        Cells with a result.
    key
        Key in `.uns`.

    Returns
    -------
    `level_start`, `level_abrupt`, `level_unsteered` and `level_steered`, means over cells of 1 for the highest rank and 0
    for genes that are not read; `change`, steered less start; and whether the gene was `held`.

    Examples
    --------
    >>> import anndata, maxtoki_toolkit as mt
    >>> try:
    ...     mt.get.steer_genes(anndata.AnnData())
    ... except KeyError as error:
    ...     print(error.args[0])
    Did not find .uns['steer']. Run mt.tl.steer_cells(adata, model, ...) first.
    """
    table = read_table(adata, key, "genes", _FUNCTION)
    table["change"] = table["level_steered"] - table["level_start"]
    order = table["change"].abs().sort_values(ascending=False, kind="stable").index
    return table.loc[order].reset_index(drop=True)


def steer_cells(adata: AnnData, *, key: str = _keys.STEER) -> pd.DataFrame:
    """Steered cells of `mt.tl.steer_cells`, one row each.

    Parameters
    ----------
    adata
        Cells with a result.
    key
        Key in `.uns`.

    Returns
    -------
    `log_likelihood` (nats a gene) and `distance` of each cell, with `_start`, `_abrupt`, `_unsteered`, `_steered` (the
    latter two means over the kept draws); `acceptance` of proposals, and the share that `moved` the chain; `rhat` and
    `effective_size` of the log target over the steered chains; whether the edit `took_effect`.

    Examples
    --------
    >>> import anndata, maxtoki_toolkit as mt
    >>> try:
    ...     mt.get.steer_cells(anndata.AnnData())
    ... except KeyError as error:
    ...     print(error.args[0])
    Did not find .uns['steer']. Run mt.tl.steer_cells(adata, model, ...) first.
    """
    return read_table(adata, key, "cells", _FUNCTION)


def steer_trace(adata: AnnData, *, key: str = _keys.STEER) -> pd.DataFrame:
    """Every step of every chain of `mt.tl.steer_cells`.

    Parameters
    ----------
    adata
        Cells with a result.
    key
        Key in `.uns`.

    Returns
    -------
    `cell`, `chain`, `steered` (False for the chain that is not led), `step` (0 is the start), `log_likelihood` in nats a
    gene, `distance`, and whether the step's proposal was `accepted`.

    Examples
    --------
    >>> import anndata, maxtoki_toolkit as mt
    >>> try:
    ...     mt.get.steer_trace(anndata.AnnData())
    ... except KeyError as error:
    ...     print(error.args[0])
    Did not find .uns['steer']. Run mt.tl.steer_cells(adata, model, ...) first.
    """
    return read_table(adata, key, "trace", _FUNCTION)
