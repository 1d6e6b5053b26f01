"""Types of generated cells, as tidy tables."""

from __future__ import annotations

import pandas as pd
from anndata import AnnData

from .. import _keys
from .._results import read_result


def annotation_concordance(adata: AnnData, *, key: str = _keys.CONCORDANCE) -> pd.DataFrame:
    """Scores of `mt.tl.annotation_concordance`, one row a kind of cell.

    Parameters
    ----------
    adata
        Cells with a result.
    key
        Key in `.uns`.

    Returns
    -------
    Scores from 0 to 1, with `_low` and `_high`, the ends of their 95% interval (of "permuted": of 95% of the permutations):

    `cells`
        "generated"; "query", the true cells in their place; "context", the last context cells; "majority" and "permuted",
        chance.
    `accuracy`, `macro_f1`
        Share of cells annotated with the type that was asked for; mean F1 of these types.
    `difference`
        Accuracy of the generated cells less that of these, paired.
    `p_value`
        One-sided, permuting types between prompts; of generated cells only.
    `n_cells`, `n_units`, `unit`
        Generated cells; how many donors (or prompts, where no donor is known) the intervals are over.

    Examples
    --------
    >>> import anndata, maxtoki_toolkit as mt
    >>> try:
    ...     mt.get.annotation_concordance(anndata.AnnData())
    ... except KeyError as error:
    ...     print(error.args[0])
    Did not find .uns['annotation_concordance']. Run mt.tl.annotation_concordance(adata, model, ...) first.
    """
    return _read(adata, key, "scores")


def annotation_types(adata: AnnData, *, key: str = _keys.CONCORDANCE) -> pd.DataFrame:
    """Scores of `mt.tl.annotation_concordance` type by type.

    Parameters
    ----------
    adata
        Cells with a result.
    key
        Key in `.uns`.

    Returns
    -------
    One row a kind of cell and type:

    `cells`, `type`
        "generated", "query" (the true cells in their place) or "context" (the last context cells); the type.
    `precision`, `recall`, `f1`
        From 0 to 1, with the ends of their 95% intervals; NaN where no cell is annotated so, or none was asked for.
    `n_prompted`, `n_annotated`
        Cells that were asked for, and that are annotated so.

    Examples
    --------
    >>> import anndata, maxtoki_toolkit as mt
    >>> try:
    ...     mt.get.annotation_types(anndata.AnnData())
    ... except KeyError as error:
    ...     print(error.args[0])
    Did not find .uns['annotation_concordance']. Run mt.tl.annotation_concordance(adata, model, ...) first.
    """
    return _read(adata, key, "types")


def annotations(adata: AnnData, *, key: str = _keys.CONCORDANCE) -> pd.DataFrame:
    """Type of each generated cell.

    Parameters
    ----------
    adata
        Cells with a result of `mt.tl.annotation_concordance`.
    key
        Key in `.uns`.

    Returns
    -------
    One row a generated cell: `cell` and `prompt`, its name and its prompt; `prompted`, the type that was asked for;
    `annotated`, what the classifier makes of it; `probability`, how sure that is (0-1).

    Examples
    --------
    >>> import anndata, maxtoki_toolkit as mt
    >>> try:
    ...     mt.get.annotations(anndata.AnnData())
    ... except KeyError as error:
    ...     print(error.args[0])
    Did not find .uns['annotation_concordance']. Run mt.tl.annotation_concordance(adata, model, ...) first.
    """
    return _read(adata, key, "cells")


def annotation_matrix(adata: AnnData, *, key: str = _keys.CONCORDANCE) -> pd.DataFrame:
    """Generated cells of each prompted type, by annotated type.

    Parameters
    ----------
    adata
        Cells with a result of `mt.tl.annotation_concordance`.
    key
        Key in `.uns`.

    Returns
    -------
    Numbers of cells: prompted types as rows; as columns the same types, then others that were annotated.

    Examples
    --------
    >>> import anndata, maxtoki_toolkit as mt
    >>> try:
    ...     mt.get.annotation_matrix(anndata.AnnData())
    ... except KeyError as error:
    ...     print(error.args[0])
    Did not find .uns['annotation_concordance']. Run mt.tl.annotation_concordance(adata, model, ...) first.
    """
    cells = _read(adata, key, "cells")
    counts = pd.crosstab(cells["prompted"].astype(str), cells["annotated"].astype(str))
    others = [name for name in counts.columns if name not in counts.index]
    return counts.reindex(columns=[*counts.index, *others], fill_value=0)


def _read(adata: AnnData, key: str, name: str) -> pd.DataFrame:
    return read_result(adata, key, "mt.tl.annotation_concordance(adata, model, ...)")[name].copy()
