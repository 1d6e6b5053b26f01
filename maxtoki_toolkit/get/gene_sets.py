"""What a search of gene sets found, as tidy tables."""

from __future__ import annotations

import pandas as pd
from anndata import AnnData

from .. import _keys
from .._results import read_result
from ._table import read_table

_FUNCTION = "mt.tl.search_gene_sets(adata, model, ...)"


def gene_sets(adata: AnnData, *, key: str = _keys.GENE_SETS) -> pd.DataFrame:
    """Sets of genes that `mt.tl.search_gene_sets` found, one row each.

    Parameters
    ----------
    adata
        Cells with a result.
    key
        Key in `.uns`.

    Returns
    -------
    The sets; the unit of distances is in `.attrs["unit"]`:

    `kind`
        "found", in order of the search; "best singles": the genes that are best by themselves, put together.
    `set`, `genes`, `size`
        Symbols, names in `.var_names`, and how many.
    `frequency`
        Share of the kept draws (method "metropolis").
    `searched_shift`
        What the search went by: distance gained by the cells that it was searched with. Too good, as it was chosen by.
    `shift`, `shift_low`, `shift_high`, `p_value`, `q_value`
        Mean distance gained (positive: nearer to the target) by the cells held out, with its 95% interval and two-sided
        t test (jackknife over donors or cells); corrected over the sets found (Benjamini and Hochberg).
    `null_mean`, `null_low`, `null_high`, `p_null`
        Of random sets of the same size: mean, 2.5% and 97.5% of their shifts, and the share that do as well.
    `likelihood_change`
        Change of the mean log-likelihood of the edited cells, nats a gene.
    `took_effect`
        Share of the cells in which the edit changed what the model reads.
    `n_units`
        Donors, or cells where no donor is known.

    Examples
    --------
    >>> import anndata, maxtoki_toolkit as mt
    >>> try:
    ...     mt.get.gene_sets(anndata.AnnData())
    ... except KeyError as error:
    ...     print(error.args[0])
    Did not find .uns['gene_sets']. Run mt.tl.search_gene_sets(adata, model, ...) first.
    """
    return read_table(adata, key, "effects", _FUNCTION)


def gene_sets_genes(adata: AnnData, *, key: str = _keys.GENE_SETS) -> pd.DataFrame:
    """Candidates of `mt.tl.search_gene_sets`, one row each, the best first.

    Parameters
    ----------
    adata
        Cells with a result.
    key
        Key in `.uns`.

    Returns
    -------
    `shift` of the edit of this gene alone, in the cells that were searched with (NaN where it changed nothing that the
    model reads: `took_effect`); `inclusion`, the share of the draws that have it (method "metropolis").

    Examples
    --------
    >>> import anndata, maxtoki_toolkit as mt
    >>> try:
    ...     mt.get.gene_sets_genes(anndata.AnnData())
    ... except KeyError as error:
    ...     print(error.args[0])
    Did not find .uns['gene_sets']. Run mt.tl.search_gene_sets(adata, model, ...) first.
    """
    table = read_table(adata, key, "genes", _FUNCTION)
    return table.sort_values("shift", ascending=False, kind="stable", ignore_index=True)


def gene_sets_trace(adata: AnnData, *, key: str = _keys.GENE_SETS) -> pd.DataFrame:
    """Every step of every chain of `mt.tl.search_gene_sets` with the method "metropolis".

    Parameters
    ----------
    adata
        Cells with a result.
    key
        Key in `.uns`.

    Returns
    -------
    `chain`, `step` (0 is the start), `log_target`, `size` of the set, whether the step's proposal was `accepted`.

    Examples
    --------
    >>> import anndata, maxtoki_toolkit as mt
    >>> try:
    ...     mt.get.gene_sets_trace(anndata.AnnData())
    ... except KeyError as error:
    ...     print(error.args[0])
    Did not find .uns['gene_sets']. Run mt.tl.search_gene_sets(adata, model, ...) first.
    """
    if "trace" not in read_result(adata, key, _FUNCTION):
        raise ValueError(
            'A greedy or beam search has no chains. Search with mt.tl.GeneSetSearch(method="metropolis").'
        )
    return read_table(adata, key, "trace", _FUNCTION)
