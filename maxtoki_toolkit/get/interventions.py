"""What heads, states and genes do to a reading, as tidy tables."""

from __future__ import annotations

import pandas as pd
from anndata import AnnData

from .. import _keys
from ._table import read_table


def ablate_heads(adata: AnnData, *, key: str = _keys.ABLATE_HEADS) -> pd.DataFrame:
    """Effects of `mt.tl.ablate_heads`, one row a head, a set of heads, or a step of the greedy search.

    Parameters
    ----------
    adata
        Cells with a result.
    key
        Key in `.uns`.

    Returns
    -------
    The effects; the unit of readings is in `.attrs["unit"]`:

    `heads`, `layer`, `head`, `n_heads`
        Which heads ("L0H1+L2H3"); layer and head, -1 for several; how many.
    `value_intact`, `change`, `change_low`, `change_high`
        Mean reading of the model as it is; mean change without the heads, with its 95% interval over donors.
    `p_value`, `q_value`
        Two-sided t test of that change with the error of the interval (jackknife over donors); corrected for all rows.
    `size`, `size_low`, `size_high`, `null_size`
        Mean size of the change, whatever its sign, with its interval; that of a change as large in a random direction.
    `excess`, `excess_low`, `excess_high`
        The difference of these two, with its interval over donors.
    `removed`
        Length of what the ablation changes in the residual stream, relative to the stream's.
    `share_changed`
        Share of the prompts that are read differently at all.
    `mean_error_intact`, `error_change`, `error_change_low`, `error_change_high`, `error_p_value`, `error_q_value`
        For "timelapse": mean absolute error, and what the ablation adds to it.
    `n_prompts`, `n_units`, `unit`
        Prompts, and how many donors (or query cells, where no donor is known) their queries are of.
    `added`, `size_chosen_on`, `random_size`, `random_low`, `random_high`, `random_p_value`, `n_random`
        For "greedy": the head added in this step; the size on the donors it was chosen on (`size` is on the others); that
        of random sets of as many heads, with the middle 95% of them, and the share of them that do as much.

    Examples
    --------
    >>> import anndata, maxtoki_toolkit as mt
    >>> try:
    ...     mt.get.ablate_heads(anndata.AnnData())
    ... except KeyError as error:
    ...     print(error.args[0])
    Did not find .uns['ablate_heads']. Run mt.tl.ablate_heads(adata, model) first.
    """
    table = read_table(adata, key, "effects", "mt.tl.ablate_heads(adata, model)")
    params = adata.uns[key]["params"]
    table.attrs |= {name: str(params[name]) for name in ("readout", "how", "search")}
    table.attrs |= {name: int(params[name]) for name in ("n_layers", "n_heads")}
    return table


def patch(adata: AnnData, *, key: str = _keys.PATCH) -> pd.DataFrame:
    """Effects of `mt.tl.patch`, one row a layer (or head) and segment of the prompt.

    Parameters
    ----------
    adata
        Cells with a result.
    key
        Key in `.uns`.

    Returns
    -------
    The effects, shares of what was lost; the unit of the readings is in `.attrs["unit"]`:

    `layer`, `head`, `segment`
        Where: blocks before it ("residual") or block, from 0; head, -1 for none; part of the prompt.
    `effect`, `effect_low`, `effect_high`
        0: the corrupted reading stays, 1: the clean one comes back; with its 95% interval over donors.
    `null`, `null_low`, `null_high`
        The same with the states of another clean prompt.
    `p_value`, `q_value`
        Two-sided t test of the difference of both (jackknife over donors); corrected for all rows. NaN where no
        prompt's reading changes at all.
    `n_prompts`, `n_units`, `unit`
        Prompts that have the segment, and how many donors (or query cells) their queries are of.

    Examples
    --------
    >>> import anndata, maxtoki_toolkit as mt
    >>> try:
    ...     mt.get.patch(anndata.AnnData())
    ... except KeyError as error:
    ...     print(error.args[0])
    Did not find .uns['patch']. Run mt.tl.patch(adata, model, corrupted=...) first.
    """
    table = read_table(adata, key, "effects", "mt.tl.patch(adata, model, corrupted=...)")
    params = adata.uns[key]["params"]
    table.attrs |= {name: str(params[name]) for name in ("readout", "corrupted", "level", "align")}
    table.attrs["mean_difference"] = float(params["mean_difference"])
    return table


def attribute(adata: AnnData, *, key: str = _keys.ATTRIBUTE) -> pd.DataFrame:
    """Attributions of `mt.tl.attribute`, one row a gene and part of the prompt.

    Parameters
    ----------
    adata
        Cells with a result.
    key
        Key in `.uns`.

    Returns
    -------
    The largest first; the unit is in `.attrs["unit"]`, and how much the attributions miss in `.attrs["relative_residual"]`:

    `gene`, `symbol`, `part`
        Ensembl id, symbol, and "context", "query" or "cell".
    `attribution`, `attribution_low`, `attribution_high`
        Mean over the prompts that have the gene there, with its 95% interval over donors.
    `rank_alone`
        Mean attribution of all genes in the same segments at like ranks.
    `excess`, `excess_low`, `excess_high`
        What the gene has beyond that, with its interval.
    `p_value`, `q_value`
        Two-sided t test of the excess (jackknife over donors), NaN for genes of fewer than three; corrected for all rows.
    `mean_rank`
        Mean rank of the gene.
    `n_prompts`, `n_units`, `unit`
        Prompts with the gene there, and how many donors (or query cells) their queries are of.

    Examples
    --------
    >>> import anndata, maxtoki_toolkit as mt
    >>> try:
    ...     mt.get.attribute(anndata.AnnData())
    ... except KeyError as error:
    ...     print(error.args[0])
    Did not find .uns['attribute']. Run mt.tl.attribute(adata, model) first.
    """
    return _attributions(adata, key, "genes")


def attribute_segments(adata: AnnData, *, key: str = _keys.ATTRIBUTE) -> pd.DataFrame:
    """Attributions of `mt.tl.attribute`, one row a segment of the prompt.

    Parameters
    ----------
    adata
        Cells with a result.
    key
        Key in `.uns`.

    Returns
    -------
    In the order of the prompt; the unit is in `.attrs["unit"]`:

    `segment`
        "context_0", "lapse_0" and so on.
    `attribution`, `attribution_low`, `attribution_high`
        Sum over the segment, mean over prompts, with its 95% interval over donors.
    `share`, `share_low`, `share_high`
        Share of the size of all attributions of the prompt.
    `share_of_tokens`
        Share of the prompt's tokens: what `share` would be if all tokens were alike.
    `n_prompts`, `n_units`, `unit`
        Prompts that have the segment, and how many donors (or query cells) their queries are of.

    Examples
    --------
    >>> import anndata, maxtoki_toolkit as mt
    >>> try:
    ...     mt.get.attribute_segments(anndata.AnnData())
    ... except KeyError as error:
    ...     print(error.args[0])
    Did not find .uns['attribute']. Run mt.tl.attribute(adata, model) first.
    """
    return _attributions(adata, key, "segments")


def _attributions(adata: AnnData, key: str, name: str) -> pd.DataFrame:
    table = read_table(adata, key, name, "mt.tl.attribute(adata, model)")
    params = adata.uns[key]["params"]
    table.attrs["readout"] = str(params["readout"])
    table.attrs |= {name: float(params[name]) for name in ("relative_residual", "rank_correlation")}
    return table
