"""Age that is read from generated cells, against the age that was asked for."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from matplotlib.figure import Figure

from .. import _keys
from ..results.store import read_table
from ._style import BASELINE, MODEL, clean, drawing, with_interval

_LOOKS = {
    "generated": ("generated cells", MODEL),
    "query": ("true cells of that age", "#009E73"),
    "context": ("last context cells", BASELINE),
}


@drawing
def generated_ages(adata: AnnData, *, key: str = _keys.GENERATED_AGES) -> Figure:
    """Draw the age that a clock reads from generated cells, beside true ones.

    Parameters
    ----------
    {adata}
    {key}

    Returns
    -------
    The figure: a panel each for generated cells, the true cells in their place, and the last context cells,
    with a point a cell, a linear fit, and correlation, slope and median error with their 95% intervals over
    donors.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(400, 12)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.hold_out(adata, donor_key="donor_id", donors=0.5, time_key="age_months")
    >>> mt.pp.sample_prompts(
    ...     adata, time_key="age_months", groupby="cell_type", donor_key="donor_id", task="cell", n_prompts=4,
    ...     context_size=1, contexts="held_out", queries="held_out")
    >>> cells = mt.tl.generate(adata, model, max_genes=10)
    >>> mt.tl.generated_ages(adata, model, generated=cells, groupby=[])
    >>> len(mt.pl.generated_ages(adata).axes)
    3
    """
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    cells = read_table(adata, key, "cells")
    scores = read_table(adata, key, "scores")
    unit = cells.attrs["unit"]
    scores = scores[scores["group"] == "all"].set_index("cells")
    x = cells["prompted"].to_numpy()
    every = cells[["prompted", *scores.index]].to_numpy()
    margin = 0.04 * max(np.ptp(every), 1)
    limits = (every.min() - margin, every.max() + margin)
    figure, axes = plt.subplots(
        1,
        len(scores),
        figsize=(1.8 + 2.6 * len(scores), 4.0),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    strength = float(np.clip(12 / np.sqrt(len(x)), 0.15, 0.8))
    ticks = MaxNLocator(4, integer=True).tick_values(*limits)
    ends = np.array([x.min(), x.max()])
    for ax, (name, score) in zip(axes[0], scores.iterrows(), strict=True):
        label, color = _LOOKS[name]
        y = cells[name].to_numpy()
        ax.plot(limits, limits, color="black", lw=1, ls=(0, (4, 3)), label="read = prompted")
        ax.scatter(x, y, s=10, color=color, alpha=strength, lw=0, rasterized=True)
        ax.plot(
            ends, y.mean() + score["slope"] * (ends - x.mean()), color="black", lw=1.8, label="linear fit"
        )
        shown = {
            measure: with_interval(*score[[measure, f"{measure}_low", f"{measure}_high"]], decimals=decimals)
            for measure, decimals in [("r", 2), ("slope", 2), ("median_error", None)]
        }
        lines = [
            label,
            f"r = {shown['r']}",
            f"slope = {shown['slope']}",
            f"median error = {shown['median_error']} {unit}",
        ]
        ax.set_title("\n".join(lines), fontsize=8.5, loc="left")
        ax.set(xticks=ticks, yticks=ticks)
        ax.set(xlim=limits, ylim=limits, aspect="equal", xlabel=f"prompted age ({unit})")
        ax.tick_params(labelsize=8.5)
        clean(ax)
    axes[0, 0].set_ylabel(f"age read by the clock ({unit})")
    first = scores.iloc[0]
    figure.suptitle(
        f"{first['n_cells']:,} cells a panel, {first['n_units']:,} {first['unit']}s asked for", fontsize=9
    )
    handles, labels = axes[0, 0].get_legend_handles_labels()
    axes[0, -1].legend(handles, labels, frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
