"""Cells that were led to a target."""

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
def steer_cells(adata: AnnData, *, n_genes: int = 15, key: str = _keys.STEER) -> Figure:
    """Draw the cells that were steered, their chains, and the genes that changed most.

    Parameters
    ----------
    {adata}
    n_genes
        Genes to show.
    {key}

    Returns
    -------
    Each cell's distance and log-likelihood as it was, edited and steered; the share of accepted proposals
    along the chains; and the genes whose level changed most.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.sample_prompts(adata, time_key="age_months", groupby="cell_type", n_prompts=20, donor_key="donor_id")
    >>> sampling = mt.tl.CellSampling.of(n_cells=2, n_steps=2, n_chains=1)
    >>> mt.tl.steer_cells(adata, model, genes=["FOXO3"], sampling=sampling)
    >>> len(mt.pl.steer_cells(adata).axes)
    3
    """
    import matplotlib.pyplot as plt

    effects = read_table(adata, key)
    cells, trace = read_table(adata, key, "cells"), read_table(adata, key, "trace")
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
    rhat, size = (cells[name].dropna().median() for name in ("rhat", "effective_size"))
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
