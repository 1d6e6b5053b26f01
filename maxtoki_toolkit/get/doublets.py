"""What looks like a doublet, and how far that can be trusted, as tidy tables."""

from __future__ import annotations

import pandas as pd
from anndata import AnnData

from .. import _keys
from .._results import read_result


def doublets(adata: AnnData, *, key: str = _keys.DOUBLETS) -> pd.DataFrame:
    """What `mt.tl.doublets` gave each cell, simulated doublet and query.

    Parameters
    ----------
    adata
        Cells with a result.
    key
        Key in `.uns`.

    Returns
    -------
    One row each; whether folds are of donors or of cells is in `.attrs["folds"]`:

    `cell`, `population`
        Its name, and whether it is one of the "cells", "doublets" (simulated) or "queries".
    `pair`
        "same type", "cross type", or "any" where no types are known; of doublets.
    `fold`
        Which fold's detector, trained on the others, judged it; NaN for queries, which all judged.
    `score`, `probability`
        Probability of being a doublet at even odds, and at the expected rate.
    `scrublet_hidden`
        scrublet's score, with a fifth of the doublets hidden among the cells.
    `truth`, `scrublet`
        What is known of the cell, and scrublet's score of the cells as they are; with a truth.
    `donor`
        With folds of donors.

    Examples
    --------
    >>> import anndata, maxtoki_toolkit as mt
    >>> try:
    ...     mt.get.doublets(anndata.AnnData())
    ... except KeyError as error:
    ...     print(error.args[0])
    Did not find .uns['doublets']. Run mt.tl.doublets(adata, model) first.
    """
    return _read(adata, key, "cells")


def doublet_scores(adata: AnnData, *, key: str = _keys.DOUBLETS) -> pd.DataFrame:
    """How well `mt.tl.doublets` and scrublet tell doublets.

    Parameters
    ----------
    adata
        Cells with a result.
    key
        Key in `.uns`.

    Returns
    -------
    One row a set of doublets and detector:

    `set`, `doublets`
        "simulated" (held out) or "truth"; "all", "same type" or "cross type".
    `detector`
        "detector", "scrublet", or "permuted labels", the null.
    `auroc`, `average_precision`
        Areas under the ROC and the precision-recall curve, with `_low` and `_high`, 95% bootstrap intervals over `unit`s.
        Simulated ones are those hidden from both; `rate` is the share of doublets, which is the average precision
        of chance.
    `auroc_lead`, `average_precision_lead`
        By how much the detector is ahead of the row's, from the same draws.
    `calibration_error`, `brier`
        Mean distance of probability and share of doublets over ten bins, and mean squared error; at even odds on
        all held-out doublets of the kind, at the expected rate on the truth. NaN for scrublet, which gives no probabilities.
    `rate`, `n_cells`, `n_doublets`, `n_units`, `unit`
        What was compared.

    Examples
    --------
    >>> import anndata, maxtoki_toolkit as mt
    >>> try:
    ...     mt.get.doublet_scores(anndata.AnnData())
    ... except KeyError as error:
    ...     print(error.args[0])
    Did not find .uns['doublets']. Run mt.tl.doublets(adata, model) first.
    """
    return _read(adata, key, "scores")


def singlet_fraction(adata: AnnData, *, key: str = _keys.DOUBLETS) -> pd.DataFrame:
    """Which share of cells, simulated doublets and queries are singlets.

    Parameters
    ----------
    adata
        Cells with a result of `mt.tl.doublets`.
    key
        Key in `.uns`.

    Returns
    -------
    One row a population:

    `population`
        "cells", "same-type doublets" and "cross-type doublets" (or "doublets") and "queries".
    `singlet_fraction`, `ci_low`, `ci_high`
        Share that looks more like a cell than like a doublet (at even odds), with its 95% interval: bootstrap over donors,
        Wilson's over cells where no donors are known.
    `called_singlet`
        Share that is not called a doublet at the expected rate.
    `n_cells`, `n_units`, `unit`
        Cells, and units of the interval.

    Examples
    --------
    >>> import anndata, maxtoki_toolkit as mt
    >>> try:
    ...     mt.get.singlet_fraction(anndata.AnnData())
    ... except KeyError as error:
    ...     print(error.args[0])
    Did not find .uns['doublets']. Run mt.tl.doublets(adata, model) first.
    """
    return _read(adata, key, "singlets")


def _read(adata: AnnData, key: str, name: str) -> pd.DataFrame:
    result = read_result(adata, key, "mt.tl.doublets(adata, model)")
    table = result[name].copy()
    table.attrs["folds"] = str(result["params"]["folds"])
    table.attrs["expected_rate"] = float(result["params"]["expected_rate"])
    return table
