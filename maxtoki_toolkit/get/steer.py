"""What steering found, as tidy tables."""

from __future__ import annotations

import pandas as pd
from anndata import AnnData

from .. import _keys
from .._results import read_result
from ._table import read_table

_FUNCTION = "mt.tl.steer(adata, model, ...)"


def steer(adata: AnnData, *, key: str = _keys.STEER) -> pd.DataFrame:
    """Effects of `mt.tl.steer`: one row a set of genes, or (method "ranks") one a measure and state.

    Parameters
    ----------
    adata
        Cells with a result.
    key
        Key in `.uns`.

    Returns
    -------
    The effects; the unit of distances is in `.attrs["unit"]`, the method in `.attrs["method"]`. Of sets:

    `kind`
        "found", in order of the search; "best singles": the genes that are best by themselves, put together.
    `set`, `genes`, `size`
        Symbols, names in `.var_names`, and how many.
    `frequency`
        Share of the kept draws (method "sets").
    `searched_shift`
        What the search went by: distance gained by the cells that it was searched with. Too good, as it was chosen by.
    `shift`, `shift_low`, `shift_high`, `p_value`, `q_value`
        Mean distance gained (positive: nearer to the target) by the cells held out, with its 95% interval and
        two-sided t test (jackknife
        over donors or cells); corrected over the sets found (Benjamini and Hochberg).
    `null_mean`, `null_low`, `null_high`, `p_null`
        Of random sets of the same size: mean, 2.5% and 97.5% of their shifts, and the share that do as well.
    `likelihood_change`
        Change of the mean log-likelihood of the edited cells, nats a gene.
    `took_effect`
        Share of the cells in which the edit changed what the model reads.
    `n_units`
        Donors, or cells where no donor is known.

    Of states ("start"; "abrupt", the edit alone; "unsteered", resampled under the edit but not led; "steered"):

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
    Did not find .uns['steer']. Run mt.tl.steer(adata, model, ...) first.
    """
    table = read_table(adata, key, "effects", _FUNCTION)
    table.attrs["method"] = str(adata.uns[key]["params"]["method"])
    return table


def steer_genes(adata: AnnData, *, key: str = _keys.STEER) -> pd.DataFrame:
    """Genes of `mt.tl.steer`: the candidates of a search, or (method "ranks") all that steered cells have.

    Parameters
    ----------
    adata
        Cells with a result.
    key
        Key in `.uns`.

    Returns
    -------
    Of a search, one row a candidate: `shift` of the edit of this gene alone, in the cells that were searched with (NaN
    where it changed
    nothing that the model reads: `took_effect`); `inclusion`, the share of the draws that have it (method "sets").

    Of "ranks", one row a gene, the largest changes first: `level_start`, `level_abrupt`, `level_unsteered` and
    `level_steered`, means over
    cells of 1 for the highest rank and 0 for genes that are not read; `change`, steered less start; and whether it was
    `held`.

    Examples
    --------
    >>> import anndata, maxtoki_toolkit as mt
    >>> try:
    ...     mt.get.steer_genes(anndata.AnnData())
    ... except KeyError as error:
    ...     print(error.args[0])
    Did not find .uns['steer']. Run mt.tl.steer(adata, model, ...) first.
    """
    table = read_table(adata, key, "genes", _FUNCTION)
    if "level_steered" in table:
        table["change"] = table["level_steered"] - table["level_start"]
        order = table["change"].abs().sort_values(ascending=False, kind="stable").index
        return table.loc[order].reset_index(drop=True)
    return table.sort_values("shift", ascending=False, kind="stable", ignore_index=True)


def steer_cells(adata: AnnData, *, key: str = _keys.STEER) -> pd.DataFrame:
    """Steered cells of `mt.tl.steer(method="ranks")`, one row each.

    Parameters
    ----------
    adata
        Cells with a result.
    key
        Key in `.uns`.

    Returns
    -------
    `log_likelihood` (nats a gene) and `distance` of each cell, with `_start`, `_abrupt`, `_unsteered`, `_steered` (the
    latter two means over the kept draws);
    `acceptance` of proposals, and the share that `moved` the chain; `rhat` and `effective_size` of the log target over
    the steered chains; whether the
    edit `took_effect`.

    Examples
    --------
    >>> import anndata, maxtoki_toolkit as mt
    >>> try:
    ...     mt.get.steer_cells(anndata.AnnData())
    ... except KeyError as error:
    ...     print(error.args[0])
    Did not find .uns['steer']. Run mt.tl.steer(adata, model, ...) first.
    """
    return _of_chains(
        adata, key, "cells", 'Sets have no steered cells. Run mt.tl.steer(..., method="ranks").'
    )


def steer_trace(adata: AnnData, *, key: str = _keys.STEER) -> pd.DataFrame:
    """Every step of every chain of `mt.tl.steer(method="ranks")` or "sets".

    Parameters
    ----------
    adata
        Cells with a result.
    key
        Key in `.uns`.

    Returns
    -------
    `chain`, `step` (0 is the start), whether the step's proposal was `accepted`; of sets `log_target` and `size`; of
    ranks `cell`, `steered` (False for the
    chain that is not led), `log_likelihood` in nats a gene and `distance`.

    Examples
    --------
    >>> import anndata, maxtoki_toolkit as mt
    >>> try:
    ...     mt.get.steer_trace(anndata.AnnData())
    ... except KeyError as error:
    ...     print(error.args[0])
    Did not find .uns['steer']. Run mt.tl.steer(adata, model, ...) first.
    """
    return _of_chains(
        adata,
        key,
        "trace",
        'A greedy or beam search has no chains. Run mt.tl.steer(..., method="sets") or "ranks".',
    )


def _of_chains(adata: AnnData, key: str, name: str, otherwise: str) -> pd.DataFrame:
    if name not in read_result(adata, key, _FUNCTION):
        raise ValueError(otherwise)
    return read_table(adata, key, name, _FUNCTION)
