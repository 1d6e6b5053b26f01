"""Sets of genes that move cells towards a target."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from matplotlib.figure import Figure

from .. import _keys
from ..get import steer_genes
from ..results.store import read_table
from ._style import BASELINE, MODEL, NULL, clean, drawing


@drawing
def search_gene_sets(adata: AnnData, *, n_genes: int = 15, key: str = _keys.GENE_SETS) -> Figure:
    """Draw the sets that were found, and the candidates.

    Parameters
    ----------
    {adata}
    n_genes
        Candidates to show.
    {key}

    Returns
    -------
    Shifts of the sets with 95% intervals (blue; the best genes by themselves put together orange) over the
    band of random sets of their size, and the candidates.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.sample_prompts(adata, time_key="age_months", groupby="cell_type", n_prompts=20, donor_key="donor_id")
    >>> search = mt.tl.GeneSetSearch(method="greedy", n_candidates=5, max_size=2, n_cells=6, n_null=2)
    >>> mt.tl.search_gene_sets(adata, model, search=search)
    >>> len(mt.pl.search_gene_sets(adata).axes)
    2
    """
    import matplotlib.pyplot as plt

    effects = read_table(adata, key)
    genes = steer_genes(adata, key=key).dropna(subset="shift").iloc[:n_genes]
    height = 0.9 + 0.26 * max(len(effects), len(genes))
    figure, (ax, side) = plt.subplots(
        1, 2, figsize=(9.6, height), layout="constrained", width_ratios=[1.2, 1]
    )
    place = np.arange(len(effects))
    color = np.where(effects["kind"] == "found", MODEL, BASELINE)
    ax.barh(
        place,
        effects["null_high"] - effects["null_low"],
        left=effects["null_low"],
        height=0.7,
        color=NULL,
        alpha=0.35,
        label="random sets of this size, 95%",
    )
    ax.hlines(place, effects["shift_low"], effects["shift_high"], color=color, lw=1.6)
    for kind, shade in (("found", MODEL), ("best singles", BASELINE)):
        some = (effects["kind"] == kind).to_numpy()
        label = kind if kind == "found" else "best genes by themselves, together"
        ax.scatter(effects["shift"][some], place[some], s=26, color=shade, zorder=3, label=label)
    ax.axvline(0, color="black", lw=0.8)
    ax.set_yticks(place, [_short(name) for name in effects["set"]], fontsize=8)
    unit, n_units = effects.attrs["unit"], int(effects["n_units"].max())
    ax.set(ylim=(len(effects) - 0.5, -0.5), xlabel=f"nearer to the target ({unit})")
    units = effects.attrs["units"]
    ax.set_title(f"{n_units} {units}s that were not searched", fontsize=9)
    figure.legend(
        *ax.get_legend_handles_labels(), frameon=False, fontsize=8, loc="outside lower left", ncols=3
    )
    has_chains = genes["inclusion"].notna().any()
    column = "inclusion" if has_chains else "shift"
    genes = genes.sort_values(column, ascending=False, kind="stable")
    side.barh(np.arange(len(genes)), genes[column], color=MODEL, height=0.7)
    side.set_yticks(np.arange(len(genes)), genes["symbol"], fontsize=8)
    side.set_ylim(max(len(genes), 1) - 0.5, -0.5)
    side.axvline(0, color="black", lw=0.8)
    side.set_xlabel(
        "share of the draws with the gene" if has_chains else f"alone, in the cells searched ({unit})"
    )
    for one in (ax, side):
        clean(one)
    return figure


def _short(name: str) -> str:
    """A set's name that fits beside a panel."""
    return name if len(name) <= 38 else f"{name[:36]}..."
