"""Edits of genes and what they do, as tidy tables."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from anndata import AnnData

from .. import _keys
from .._results import read_result
from ._effects_file import as_categories, read_effects
from ._table import read_table


def perturbation(adata: AnnData, *, key: str = _keys.PERTURBATION) -> pd.DataFrame:
    """Effects of `mt.tl.perturb`, one row a prompt (or cell) and gene.

    Parameters
    ----------
    adata
        Cells with a result.
    key
        Key in `.uns`.

    Returns
    -------
    The effects; `.attrs` has their `unit`, the `mode`, `on` and the `readout`:

    `prompt`, `cell`, `group`, `donor`, `lapse`
        Number of the prompt (or cell), its query cell, group and donor, and its true lapse, where there are any.
    `gene`, `symbol`, `k`
        Ensembl id or name of the set, its symbol, and the ranks it is moved by (0 where the mode has none).
    `effect`
        `value` less `value_intact`; NaN where the model does not read the gene.
    `present`, `rank_before`, `rank_after`
        Whether an edited cell has the gene, and its rank there, from 1 (mean over the edited cells and the genes of a set; NaN where
        it is absent).
    `n_lost`, `n_gained`
        Other genes pushed out of what the model reads, and let in.
    `value`, `value_intact`, `took_effect`
        Readings with the edit and without; whether the edit changed what the model reads.

    Examples
    --------
    >>> import anndata, maxtoki_toolkit as mt
    >>> try:
    ...     mt.get.perturbation(anndata.AnnData())
    ... except KeyError as error:
    ...     print(error.args[0])
    Did not find .uns['perturbation']. Run mt.tl.perturb(adata, model, genes=...) first.
    """
    result = read_result(adata, key, "mt.tl.perturb(adata, model, genes=...)")
    params = result["params"]
    if params["path"]:
        table = read_effects(Path(str(params["path"])), str(params["sha256"]))
    else:
        table = as_categories(result["effects"].copy())
    table.attrs |= {name: str(params[name]) for name in ("unit", "mode", "on", "readout")}
    return table


def perturbation_stats(adata: AnnData, *, key: str = _keys.PERTURBATION_STATS) -> pd.DataFrame:
    """Effects of genes over donors, of `mt.tl.perturbation_stats`, one row a gene, group and `k`.

    Parameters
    ----------
    adata
        Cells with a result.
    key
        Key in `.uns`.

    Returns
    -------
    The effects; `.attrs` has their `unit`, the `mode`, `on`, the `readout` and the `unit_of_inference`:

    `gene`, `symbol`, `group`, `k`, `matched_to`
        Gene or set, group of cells ("all" for all together), ranks; for a control, what it is matched to.
    `effect`, `effect_low`, `effect_high`, `p_donors`
        Mean over the cells of a donor and then over donors, with its 95% interval over donors, and p of a two-sided t test that it is 0.
    `null_mean`, `null_low`, `null_high`, `n_null`
        Where the effects of matched genes lie: centre and middle 95%; how many genes.
    `excess`, `z`, `p_value`, `q_value`, `storey_q`
        Effect less the centre of the null, in its standard deviations, two-sided p; the larger of `p_value` and `p_donors`,
        corrected for the genes of a group.
    `share_same_sign`
        Share of the donors whose own mean has the sign of the effect.
    `effect_younger_context`, `effect_older_context`
        From the prompts whose context ends before the query's time, and after it.
    `n_cells`, `n_units`, `unit`
        Cells or prompts in which the edit took effect, and how many donors (or cells) they are of.
    `mean_rank`, `detection`, `expression`, `control`
        What genes are matched on; whether it is a "housekeeping" gene, an "absent" one, or "".

    Examples
    --------
    >>> import anndata, maxtoki_toolkit as mt
    >>> try:
    ...     mt.get.perturbation_stats(anndata.AnnData())
    ... except KeyError as error:
    ...     print(error.args[0])
    Did not find .uns['perturbation_stats']. Run mt.tl.perturbation_stats(adata) first.
    """
    return _stats(adata, key, "effects")


def perturbation_controls(adata: AnnData, *, key: str = _keys.PERTURBATION_STATS) -> pd.DataFrame:
    """Controls of a screen: what genes do that should do nothing in particular.

    Parameters
    ----------
    adata
        Cells with a result of `mt.tl.perturbation_stats`.
    key
        Key in `.uns`.

    Returns
    -------
    One row a group, `k` and kind of gene: "all" that were screened, "housekeeping" genes, and "absent" ones (in none of the cells;
    an edit that does not put them in must give nothing at all):

    `n_genes`, `n_known`
        How many, and how many of them have an effect at all.
    `mean_effect`, `mean_size`
        Mean effect, and its mean size whatever the sign.
    `share_p_below`, `n_called`
        Share of the p values below 0.05, and genes with q < 0.05.

    Examples
    --------
    >>> import anndata, maxtoki_toolkit as mt
    >>> try:
    ...     mt.get.perturbation_controls(anndata.AnnData())
    ... except KeyError as error:
    ...     print(error.args[0])
    Did not find .uns['perturbation_stats']. Run mt.tl.perturbation_stats(adata) first.
    """
    return _stats(adata, key, "controls")


def _stats(adata: AnnData, key: str, name: str) -> pd.DataFrame:
    table = read_table(adata, key, name, "mt.tl.perturbation_stats(adata)")
    params = adata.uns[key]["params"]
    table.attrs |= {name: str(params[name]) for name in ("mode", "on", "readout", "unit_of_inference")}
    return table


def expression_age_slope(adata: AnnData, *, key: str = _keys.AGE_SLOPE) -> pd.DataFrame:
    """Slopes of expression with age, of `mt.tl.expression_age_slope`, one row a gene and group.

    Parameters
    ----------
    adata
        Cells with a result.
    key
        Key in `.uns`.

    Returns
    -------
    The slopes; their unit is in `.attrs["unit"]`:

    `gene`, `symbol`, `group`
        Ensembl id (or the name in `.var`), symbol, group of cells.
    `slope`, `slope_low`, `slope_high`
        Change of log2 expression with age, and its 95% interval over donors.
    `p_value`, `q_value`
        Two-sided t test; corrected for the genes of a group (Benjamini and Hochberg).
    `mean_expression`, `detection`, `n_donors`
        Mean log2 counts per million over donors, share of the donors' cells with the gene, donors.

    Examples
    --------
    >>> import anndata, maxtoki_toolkit as mt
    >>> try:
    ...     mt.get.expression_age_slope(anndata.AnnData())
    ... except KeyError as error:
    ...     print(error.args[0])
    Did not find .uns['expression_age_slope']. Run mt.tl.expression_age_slope(adata, time_key=..., donor_key=...) first.
    """
    return read_table(adata, key, "slopes", "mt.tl.expression_age_slope(adata, time_key=..., donor_key=...)")


def perturbation_concordance(adata: AnnData, *, key: str = _keys.PERTURBATION_CONCORDANCE) -> pd.DataFrame:
    """How far effects of edits and slopes of expression point the same way, of `mt.tl.perturbation_concordance`.

    Parameters
    ----------
    adata
        Cells with a result.
    key
        Key in `.uns`.

    Returns
    -------
    One row a group and set of genes:

    `group`, `genes`
        Group of cells; "all" genes, those with a slope of q < 0.05 ("ageing"), those whose effect has q < 0.05 ("called").
    `share`, `share_low`, `share_high`
        Share of the genes that are concordant: what the edit does to the cell's age is what the slope says; with a 95% interval over
        genes (bootstrap).
    `null_low`, `null_high`, `p_value`
        Middle 95% of that share when slopes are exchanged between matched genes, and its two-sided p.
    `rho`, `rho_null_low`, `rho_null_high`, `rho_p_value`
        The same for Spearman's correlation of slope and effect, its sign turned so that concordance is positive.
    `q_value`
        `p_value`, corrected for the rows (Benjamini and Hochberg).
    `n_genes`
        How many.

    Examples
    --------
    >>> import anndata, maxtoki_toolkit as mt
    >>> try:
    ...     mt.get.perturbation_concordance(anndata.AnnData())
    ... except KeyError as error:
    ...     print(error.args[0])
    Did not find .uns['perturbation_concordance']. Run mt.tl.perturbation_concordance(adata) first.
    """
    return _concordance(adata, key, "concordance")


def concordant_genes(adata: AnnData, *, key: str = _keys.PERTURBATION_CONCORDANCE) -> pd.DataFrame:
    """Effect and slope of each gene, side by side.

    Parameters
    ----------
    adata
        Cells with a result of `mt.tl.perturbation_concordance`.
    key
        Key in `.uns`.

    Returns
    -------
    One row a gene and group:

    `gene`, `symbol`, `group`
        Which gene, in which group of cells.
    `effect`, `effect_low`, `effect_high`, `effect_q`
        Effect of the edit.
    `slope`, `slope_low`, `slope_high`, `slope_q`
        Slope of the expression with age.
    `concordant`
        Whether both say the same of the gene.

    Examples
    --------
    >>> import anndata, maxtoki_toolkit as mt
    >>> try:
    ...     mt.get.concordant_genes(anndata.AnnData())
    ... except KeyError as error:
    ...     print(error.args[0])
    Did not find .uns['perturbation_concordance']. Run mt.tl.perturbation_concordance(adata) first.
    """
    return _concordance(adata, key, "genes")


def _concordance(adata: AnnData, key: str, name: str) -> pd.DataFrame:
    table = read_table(adata, key, name, "mt.tl.perturbation_concordance(adata)")
    params = adata.uns[key]["params"]
    table.attrs |= {name: str(params[name]) for name in ("slope_unit", "mode", "on")}
    return table
