"""What steering found."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from matplotlib.figure import Figure

from .. import _keys
from ..get import steer_genes
from ..results.store import read_table
from ._style import BASELINE, MODEL, NULL, clean, drawing

_COLORS = {"start": "black", "abrupt": BASELINE, "unsteered": NULL, "steered": MODEL}
_LABELS = {
    "start": "as it was",
    "abrupt": "edit alone",
    "unsteered": "resampled, not led",
    "steered": "steered",
}


@drawing
def steer(adata: AnnData, *, n_genes: int = 15, key: str = _keys.STEER) -> Figure:
    """Draw the sets that were found, or the cells that were steered.

    Parameters
    ----------
    {adata}
    n_genes
        Genes to show.
    {key}

    Returns
    -------
    Of sets: their shifts with 95% intervals (blue; the best genes by themselves put together orange) over the band of
    random sets of
    their size, and the candidates. Of "ranks": each cell's distance and log-likelihood as it was, edited and steered;
    the share of accepted proposals along
    the chains; and the genes whose level changed most.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.sample_prompts(adata, time_key="age_months", groupby="cell_type", n_prompts=20, donor_key="donor_id")
    >>> mt.tl.steer(adata, model, method="greedy", n_candidates=5, max_size=2, n_cells=6, n_null=2)
    >>> len(mt.pl.steer(adata).axes)
    2
    """
    effects = read_table(adata, key, "effects")
    if effects.attrs["method"] == "ranks":
        return _ranks(adata, effects, n_genes, key)
    return _sets(adata, effects, n_genes, key)


def _sets(adata: AnnData, effects, n_genes: int, key: str) -> Figure:
    import matplotlib.pyplot as plt

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


def _ranks(adata: AnnData, effects, n_genes: int, key: str) -> Figure:
    import matplotlib.pyplot as plt

    cells = read_table(adata, key, "cells")
    trace = read_table(adata, key, "trace")
    genes = steer_genes(adata, key=key).iloc[:n_genes]
    figure, (ax, middle, side) = plt.subplots(
        1, 3, figsize=(11.5, max(3.4, 0.9 + 0.2 * len(genes))), layout="constrained", width_ratios=[1.2, 1, 1]
    )
    for _, cell in cells.iterrows():
        ax.plot(
            cell[["distance_abrupt", "distance_steered"]],
            cell[["log_likelihood_abrupt", "log_likelihood_steered"]],
            color=NULL,
            lw=0.6,
            zorder=1,
        )
    for state, color in _COLORS.items():
        x, y = cells[f"distance_{state}"], cells[f"log_likelihood_{state}"]
        ax.scatter(x, y, s=16, color=color, label=_LABELS[state], zorder=2)
    ax.set(
        xlabel=f"distance from the target ({effects.attrs['unit']})", ylabel="log-likelihood (nats a gene)"
    )
    figure.legend(
        *ax.get_legend_handles_labels(), frameon=False, fontsize=8, loc="outside lower left", ncols=4
    )
    ax.set_title(f"{len(cells)} cells; lines from the edit alone", fontsize=9)
    for steered, color, label in ((True, MODEL, "steered"), (False, NULL, "not led")):
        part = trace[(trace["steered"] == steered) & (trace["step"] > 0)]
        rate = part.groupby("step")["accepted"].mean()
        middle.plot(rate.index, rate.expanding().mean(), color=color, lw=1.4, label=label)
    middle.set(xlabel="step", ylabel="accepted so far (share)", ylim=(0, 1.02))
    rhat, size = cells["rhat"].median(), cells["effective_size"].median()
    middle.set_title(f"medians: R-hat {rhat:.2f}, effective size {size:.0f}", fontsize=9)
    place = np.arange(len(genes))
    side.hlines(place, genes["level_start"], genes["level_steered"], color=NULL, lw=1)
    for state in ("start", "abrupt", "steered"):
        side.scatter(genes[f"level_{state}"], place, s=16, color=_COLORS[state], zorder=2)
    names = [
        f"{name} (held)" if held else name for name, held in zip(genes["symbol"], genes["held"], strict=True)
    ]
    side.set_yticks(place, names, fontsize=8)
    side.set(ylim=(max(len(genes), 1) - 0.5, -0.5), xlabel="mean level (1: highest rank, 0: not read)")
    for one in (ax, middle, side):
        clean(one)
    return figure
