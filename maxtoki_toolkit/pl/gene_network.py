"""How well attention, or effects, find known targets, beside what is simpler."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from matplotlib.figure import Figure

from .. import _keys
from ..results.store import read_table
from ._style import BASELINE, MODEL, NULL, clean, drawing

_LABELS = {
    "attention": "attention over expectation",
    "attention_sum": "attention, uncorrected sum",
    "attention_marginal": "attention of both genes with all",
    "effect": "size of the effect",
    "effect_marginal": "size of both genes' effects",
    "coexpression": "coexpression",
    "order": "target ranks below source",
    "target_rank": "rank of the target",
    "target_variance": "variance of the target",
    "expression": "product of mean expression",
}
_COLUMNS = 4


@drawing
def gene_network(adata: AnnData, *, key: str = _keys.GENE_NETWORK) -> Figure:
    """Draw the AUROC of attention, or of effects, and of the baselines against known regulons.

    Parameters
    ----------
    adata
        Cells with a result of `mt.tl.gene_network(adata, model, regulons=...)`, or of `mt.tl.gene_effects`
        (`key="gene_effects"`).
    {key}

    Returns
    -------
    The figure: a panel a group, a row a predictor; AUROC with its 95% interval over sources, filled where q <
    0.05. Grey: 95% of permuted regulons.

    Examples
    --------
    >>> import numpy as np, pandas as pd, maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> often = adata.var_names[np.argsort(-adata.layers["rank"].getnnz(axis=0))]
    >>> regulons = pd.DataFrame({"source": np.repeat(often[:3], 5), "target": often[3:18]})
    >>> mt.tl.gene_network(adata, model, donor_key="donor_id", n_cells=5, regulons=regulons, n_permutations=99)
    >>> len(mt.pl.gene_network(adata).axes)
    1
    """
    import matplotlib.pyplot as plt

    table = read_table(adata, key, "scores")
    groups = read_table(adata, key, "groups")[["group", "n_cells", "n_donors"]]
    table = table.merge(groups, on="group", how="left")
    groups, predictors = (list(dict.fromkeys(table[c])) for c in ("group", "predictor"))
    columns = min(len(groups), _COLUMNS)
    lines = -(-len(groups) // columns)
    figure, axes = plt.subplots(
        lines,
        columns,
        figsize=(2.5 + 2.15 * columns, 0.75 + lines * (0.9 + 0.21 * len(predictors))),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    shown = table[["auroc_low", "auroc_high", "null_auroc_low", "null_auroc_high"]].to_numpy()
    reach = min(max(float(np.abs(shown - 0.5).max()) * 1.08, 0.1), 0.52)
    place = np.arange(len(predictors))
    for ax, group in zip(axes.flat, groups, strict=False):
        mine = table[table["group"] == group].set_index("predictor").loc[predictors]
        ax.axvline(0.5, color="black", lw=0.8, ls=(0, (4, 3)), zorder=0)
        ax.barh(
            place,
            mine["null_auroc_high"] - mine["null_auroc_low"],
            0.62,
            mine["null_auroc_low"],
            color=NULL,
            alpha=0.35,
            lw=0,
            zorder=1,
        )
        color = np.where(mine.index.str.startswith(("attention", "effect")), MODEL, BASELINE)
        ax.hlines(place, mine["auroc_low"], mine["auroc_high"], color=color, lw=1.5, zorder=2)
        called = (mine["q_value"] < 0.05).to_numpy()
        ax.scatter(
            mine["auroc"], place, s=24, c=np.where(called, color, "white"), edgecolors=color, lw=1.2, zorder=3
        )
        first = mine.iloc[0]
        donors = f" of {first['n_donors']} donors" if first["n_donors"] else ""
        ax.set_title(
            f"{group}, {first['n_cells']:,} cells{donors}\n{first['n_sources']} sources, {first['n_edges']:,} of "
            f"{first['n_pairs']:,} pairs",
            fontsize=8,
            loc="left",
        )
        ax.tick_params(labelsize=8)
        ax.tick_params(axis="y", length=0)
        clean(ax)
    for ax in axes.flat[len(groups) :]:
        ax.set_visible(False)
    axes[0, 0].set_yticks(place, [_LABELS[p] for p in predictors])
    axes[0, 0].set(xlim=(0.5 - reach, 0.5 + reach), ylim=(len(predictors) - 0.5, -0.5))
    # The lowest panel of each column has the axis.
    for j in range(columns):
        lowest = axes[(len(groups) - 1 - j) // columns, j]
        lowest.set_xlabel("AUROC, mean over sources", fontsize=8.5)
        lowest.xaxis.set_tick_params(labelbottom=True)
    handles = [
        plt.Line2D([], [], color=MODEL, marker="o", markersize=4.5, label=predictors[0]),
        plt.Line2D([], [], color=BASELINE, marker="o", markersize=4.5, label="baseline"),
        plt.Line2D(
            [], [], color="black", marker="o", mfc="white", ls="", markersize=4.5, label="hollow: q ≥ 0.05"
        ),
        plt.Rectangle((0, 0), 1, 1, color=NULL, alpha=0.35, lw=0, label="permuted regulons, 95%"),
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=4 if columns > 1 else 2, frameon=False, fontsize=8
    )
    plt.close(figure)  # or a notebook would show it twice
    return figure
