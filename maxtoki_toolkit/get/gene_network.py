"""Which genes attend to which, and how well that agrees with known regulons, as tidy tables."""

from __future__ import annotations

import pandas as pd
from anndata import AnnData

from .. import _keys
from .._results import read_result
from ._table import read_table

_FUNCTION = "mt.tl.gene_network(adata, model)"


def gene_network(adata: AnnData, *, group: str | None = None, key: str = _keys.GENE_NETWORK) -> pd.DataFrame:
    """Highest edges of `mt.tl.gene_network`.

    Parameters
    ----------
    adata
        Cells with a result.
    group
        A group of cells; all by default.
    key
        Key in `.uns`.

    Returns
    -------
    One row an edge, the highest of each group first:

    `group`, `source`, `target`, `source_symbol`, `target_symbol`
        Group of cells and genes (`.var_names`, symbols). Where the network is undirected, each pair is there once, in no
        meaningful order (`.attrs["directed"]`).
    `log2_ratio`, `half_1`, `half_2`
        Log2 of attention over what tokens at the same places have; the same in two halves of the donors (or cells), NaN where a
        half sees the pair too rarely.
    `mass`, `expected`
        Sums over cells, whose ratio it is.
    `coexpression`
        Spearman correlation in the same cells.
    `n_cells`
        Cells in which the pair is seen.
    `known`
        Whether the edge is in the regulons, if there were any.

    Raises
    ------
    KeyError
        If there is no result, or no such group.

    Examples
    --------
    >>> import anndata, maxtoki_toolkit as mt
    >>> try:
    ...     mt.get.gene_network(anndata.AnnData())
    ... except KeyError as error:
    ...     print(error.args[0])
    Did not find .uns['gene_network']. Run mt.tl.gene_network(adata, model) first.
    """
    table = read_table(adata, key, "edges", _FUNCTION)
    table.attrs["directed"] = bool(adata.uns[key]["params"]["directed"])
    if group is None:
        return table
    known = sorted(adata.uns[key]["groups"]["group"].astype(str))
    if group not in known:
        raise KeyError(f"There is no group {group!r}. Available: {known}.")
    return table[table["group"] == group].reset_index(drop=True)


def gene_network_scores(adata: AnnData, *, key: str = _keys.GENE_NETWORK) -> pd.DataFrame:
    """How well attention and its baselines find the targets of known regulons.

    Parameters
    ----------
    adata
        Cells with a result of `mt.tl.gene_network(adata, model, regulons=...)`.
    key
        Key in `.uns`.

    Returns
    -------
    One row a group and predictor; means over sources, each with `_low` and `_high` (95%):

    `group`, `predictor`
        Group of cells; see the notes of `mt.tl.gene_network`.
    `auroc`, `average_precision`
        Targets of a source against targets of other sources.
    `difference`
        AUROC less that of coexpression, over the same sources.
    `null_auroc`, `null_auroc_low`, `null_auroc_high`, `null_average_precision`
        Mean over permuted regulons, and the range of 95% of them.
    `p_value`, `q_value`
        Permutation test of the AUROC, two-sided; corrected over all rows (Benjamini and Hochberg).
    `n_sources`, `n_targets`, `n_edges`, `n_pairs`
        Sources and targets that could be scored, edges among them, and pairs that were compared.
    `share_exchanged`
        Share of the edges that a permutation exchanges.
    `n_cells`, `n_donors`
        Of the group.

    Raises
    ------
    KeyError
        If there is no result, or it has no regulons.

    Examples
    --------
    >>> import anndata, maxtoki_toolkit as mt
    >>> try:
    ...     mt.get.gene_network_scores(anndata.AnnData())
    ... except KeyError as error:
    ...     print(error.args[0])
    Did not find .uns['gene_network']. Run mt.tl.gene_network(adata, model, regulons=...) first.
    """
    function = "mt.tl.gene_network(adata, model, regulons=...)"
    if "scores" not in read_result(adata, key, function):
        raise KeyError(f".uns[{key!r}] was made without regulons. Run {function} first.")
    table = read_table(adata, key, "scores", function)
    table.attrs["unit"] = "AUROC"
    groups = adata.uns[key]["groups"][["group", "n_cells", "n_donors"]]
    return table.merge(groups, on="group", how="left")
