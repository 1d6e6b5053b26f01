"""Effect against the ranks that a gene is moved by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes

from .. import _keys
from ..results.store import read_table
from ._style import NULL, category_colors, clean, drawing
from .perturbation import effect_label, pick


@drawing
def perturbation_dose(
    adata: AnnData,
    *,
    genes: Sequence[str] | None = None,
    group: str | None = None,
    key: str = _keys.PERTURBATION_STATS,
    ax: Axes | None = None,
) -> Axes:
    """Draw the effects of genes that were moved by several numbers of ranks.

    Parameters
    ----------
    adata
        Cells with a result of `mt.tl.perturbation_stats`, of a screen with several `k`.
    genes
        Symbols, Ensembl ids or names of sets; by default the five with the largest effects.
    group
        Group of cells; by default "all", or the first.
    {key}
    {ax}

    Returns
    -------
    The axes: a line a gene, with 95% intervals over donors; 0 ranks is no edit, and has no effect.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.sample_prompts(adata, time_key="age_months", groupby=[], n_prompts=2, context_size=1, donor_key="donor_id")
    >>> mt.tl.perturb(adata, model, genes=["CD74", "FTL"], mode="shift", k=[-50, 0, 50])
    >>> mt.tl.perturbation_stats(adata, min_donors=2)
    >>> mt.pl.perturbation_dose(adata).get_xlabel()
    'ranks up'
    """
    import matplotlib.pyplot as plt

    effects = read_table(adata, key, "effects")
    group = pick(effects, group)["group"].iloc[0]
    part = effects[(effects["group"] == group) & (effects["matched_to"] == "")]
    if part["k"].nunique() < 2:
        raise ValueError(
            "A dose needs several k: mt.tl.perturb(adata, model, mode='shift', k=[-100, -20, 20, 100], ...)."
        )
    if genes is None:
        size = part.groupby("gene", sort=False)["effect"].agg(lambda e: e.abs().max())
        genes = size.nlargest(5).index.tolist()
    if ax is None:
        _, ax = plt.subplots(figsize=(4.6, 3.2), layout="constrained")
    ax.axhline(0, color="black", lw=0.8)
    ax.axvline(0, color=NULL, lw=0.8)
    # Genes stand side by side, so that no interval covers another, but never as far as the next dose.
    doses = np.unique(part["k"])
    gaps = np.diff(doses)
    room = np.minimum(np.r_[gaps[0], gaps], np.r_[gaps, gaps[-1]])
    step = pd.Series(np.minimum(0.012 * np.ptp(doses), 0.6 * room / len(genes)), index=doses)
    for i, (name, color) in enumerate(zip(genes, category_colors(len(genes)), strict=True)):
        mine = part[(part["gene"] == name) | (part["symbol"] == name)].sort_values("k")
        if not len(mine):
            raise KeyError(f"There is no gene {name!r} in the screen.")
        # No ranks are no edit, which takes no effect and so has no estimate.
        effect = mine["effect"].where(mine["k"] != 0, 0.0)
        known = effect.notna()
        at = mine["k"] + (i - (len(genes) - 1) / 2) * mine["k"].map(step)
        ax.vlines(at[known], mine["effect_low"][known], mine["effect_high"][known], color=color, lw=1)
        label = mine["symbol"].iloc[0] + ("" if mine["effect"].notna().any() else " (no edit took effect)")
        ax.plot(at[known], effect[known], marker="o", ms=4, lw=1, color=color, label=label)
    ax.set(xlabel="ranks up", ylabel=effect_label(effects), title=group)
    ax.title.set_size(9)
    ax.yaxis.label.set_size(9)
    ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    clean(ax)
    return ax
