"""Effects of genes in each group of cells."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes

from .. import _keys
from ..results.store import read_table
from ._style import drawing
from .perturbation import effect_label


@drawing
def perturbation_heatmap(
    adata: AnnData,
    *,
    k: int | None = None,
    n_genes: int = 25,
    key: str = _keys.PERTURBATION_STATS,
    ax: Axes | None = None,
) -> Axes:
    """Draw the effects of the strongest genes in all groups of cells.

    Parameters
    ----------
    {adata}
    {k}
    n_genes
        Genes to draw: those that lie furthest from matched genes in any group.
    {key}
    {ax}

    Returns
    -------
    The axes: genes x groups; a dot where q < 0.05, grey where the model does not read the gene.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.sample_prompts(adata, time_key="age_months", groupby="cell_type", n_prompts=4, donor_key="donor_id")
    >>> mt.tl.perturb(adata, model, genes=["CD74", "FTL", "TPT1"])
    >>> mt.tl.perturbation_stats(adata, min_donors=2)
    >>> mt.pl.perturbation_heatmap(adata).get_title()
    'dot: q < 0.05, grey: not read'
    """
    import matplotlib.pyplot as plt

    effects = read_table(adata, key, "effects")
    effects = effects[effects["matched_to"] == ""]
    if k is not None and k not in set(effects["k"]):
        raise KeyError(f"There is no k {k!r}; there are {', '.join(map(str, dict.fromkeys(effects['k'])))}.")
    # No ranks are no edit, which has no effect.
    k = effects.loc[effects["effect"].notna(), "k"].max() if k is None else k
    effects = effects[effects["k"] == k]
    groups = [name for name in dict.fromkeys(effects["group"]) if name != "all"] or ["all"]
    wide = {
        c: effects.pivot(index="gene", columns="group", values=c)[groups] for c in ("effect", "q_value", "z")
    }
    size = (
        wide["z"].abs().max(axis=1).fillna(-1)
        if wide["z"].notna().any(axis=None)
        else wide["effect"].abs().max(axis=1)
    )
    chosen = (
        size[wide["effect"].notna().any(axis=1)].sort_values(ascending=False, kind="stable").index[:n_genes]
    )
    if not len(chosen):
        raise ValueError("No gene has an effect in any group.")
    shown = wide["effect"].loc[chosen]
    shown = shown.loc[shown.mean(axis=1).sort_values(kind="stable").index]
    names = effects.drop_duplicates("gene").set_index("gene")["symbol"].reindex(shown.index)
    if ax is None:
        _, ax = plt.subplots(figsize=(2.6 + 0.45 * len(groups), 1.6 + 0.2 * len(shown)), layout="constrained")
    values = shown.to_numpy()
    reach = np.nanquantile(np.abs(values), 0.98) or 1.0
    ax.set_facecolor("0.85")
    image = ax.imshow(values, cmap="RdBu_r", vmin=-reach, vmax=reach, aspect="auto")
    row, column = np.nonzero(wide["q_value"].loc[shown.index].to_numpy() < 0.05)
    ax.scatter(column, row, s=9, color="black", lw=0)
    ax.set_xticks(range(len(groups)), groups, rotation=45, ha="right", fontsize=8)
    ax.set_yticks(range(len(shown)), names.astype(str), fontsize=7.5)
    ax.set_title("dot: q < 0.05, grey: not read", fontsize=8)
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.7, aspect=25)
    bar.set_label(effect_label(effects), fontsize=8)
    bar.ax.tick_params(labelsize=7.5)
    return ax
