"""What a classifier learns from generated cells, as tidy tables."""

from __future__ import annotations

import pandas as pd
from anndata import AnnData

from .. import _keys
from .._results import read_result


def train_on_generated(adata: AnnData, *, key: str = _keys.TRAIN_ON_GENERATED) -> pd.DataFrame:
    """Scores of `mt.tl.train_on_generated`, one row a training.

    Parameters
    ----------
    adata
        Cells with a result.
    key
        Key in `.uns`.

    Returns
    -------
    Scores on true cells of other donors, from 0 to 1, with `_low` and `_high`, the ends of their 95% interval over donors
    (of "labels permuted": of 95% of the permutations):

    `training`
        What the classifier was trained on.
    `accuracy`, `macro_f1`
        Share of cells given their type; mean F1 of the types.
    `difference`
        Macro-F1 less that of the training on true cells, paired.
    `p_value`
        One-sided, permuting labels; of the training on generated cells only.
    `n_train_cells`, `n_test_cells`, `n_donors`
        Cells of each training, cells tested, and their donors.

    Examples
    --------
    >>> import anndata, maxtoki_toolkit as mt
    >>> try:
    ...     mt.get.train_on_generated(anndata.AnnData())
    ... except KeyError as error:
    ...     print(error.args[0])
    Did not find .uns['train_on_generated']. Run mt.tl.train_on_generated(adata, model, ...) first.
    """
    return _read(adata, key, "scores")


def train_on_generated_donors(adata: AnnData, *, key: str = _keys.TRAIN_ON_GENERATED) -> pd.DataFrame:
    """Scores of `mt.tl.train_on_generated` donor by donor.

    Parameters
    ----------
    adata
        Cells with a result.
    key
        Key in `.uns`.

    Returns
    -------
    One row a `training` and tested `donor`: `accuracy` and `macro_f1` of the `n_cells` of this donor, the latter over the
    types that he or she has.

    Examples
    --------
    >>> import anndata, maxtoki_toolkit as mt
    >>> try:
    ...     mt.get.train_on_generated_donors(anndata.AnnData())
    ... except KeyError as error:
    ...     print(error.args[0])
    Did not find .uns['train_on_generated']. Run mt.tl.train_on_generated(adata, model, ...) first.
    """
    return _read(adata, key, "donors")


def _read(adata: AnnData, key: str, name: str) -> pd.DataFrame:
    return read_result(adata, key, "mt.tl.train_on_generated(adata, model, ...)")[name].copy()
