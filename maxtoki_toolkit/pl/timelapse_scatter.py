"""Predicted against true lapse."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes

from .. import _keys
from ..results.store import read_table
from ._style import BASELINE, MODEL, category_colors, clean, drawing, with_interval

_MANY = 5000  # prompts from which on points would hide each other


@drawing
def timelapse_scatter(
    adata: AnnData, *, key: str = _keys.TIMELAPSE, color: str | None = None, ax: Axes | None = None
) -> Axes:
    """Draw predicted against true lapses, one point a prompt.

    Parameters
    ----------
    {adata}
    {key}
    color
        Column of `mt.get.table(adata, "timelapse")` to colour the points by, e.g. "group". Without it, more
        than 5,000 prompts are counted in hexagons.
    {ax}

    Returns
    -------
    The axes, with correlation, slope and median error and their 95% intervals over donors.

    Raises
    ------
    KeyError
        If there are no predictions, or no such column.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.sample_prompts(adata, time_key="age_months", groupby="cell_type", n_prompts=6, donor_key="donor_id")
    >>> mt.tl.predict_timelapse(adata, model)
    >>> mt.pl.timelapse_scatter(adata).get_xlabel()
    'true lapse (months)'
    """
    import matplotlib.pyplot as plt
    from matplotlib.colors import ListedColormap
    from matplotlib.ticker import MaxNLocator

    table = read_table(adata, key, "prompts")
    scores = read_table(adata, key, "scores")
    unit = table.attrs["unit"]
    score = scores[(scores["predictor"] == "MaxToki") & (scores["group"] == "all")].iloc[0]
    if color is not None and color not in table:
        raise KeyError(f"The prompts have no column {color!r}. Available columns: {sorted(table.columns)}.")
    counted = color is None and len(table) > _MANY
    if ax is None:
        width = 3.9 + 1.4 * (color is not None) + 0.9 * counted
        _, ax = plt.subplots(figsize=(width, 4.3), layout="constrained")
    true, predicted = table["lapse"].to_numpy(float), table["predicted"].to_numpy(float)
    low, high = min(true.min(), predicted.min()), max(true.max(), predicted.max())
    margin = 0.04 * max(high - low, 1)
    limits = (low - margin, high + margin)

    ax.axhline(0, color="0.85", lw=0.8, zorder=0)
    ax.axvline(0, color="0.85", lw=0.8, zorder=0)
    if color is not None:
        values = table[color].astype(str)
        names = sorted(values.unique())
        shuffled = np.random.default_rng(0).permutation(
            len(table)
        )  # or the last group would cover the others
        colors = dict(zip(names, category_colors(len(names)), strict=True))
        _points(ax, true[shuffled], predicted[shuffled], values.map(colors).to_numpy()[shuffled], 2)
        for name in names:
            ax.scatter([], [], s=20, color=colors[name], label=name)
    elif counted:
        blues = ListedColormap(plt.get_cmap("Blues")(np.linspace(0.25, 1, 256)))
        bins = ax.hexbin(
            true,
            predicted,
            gridsize=45,
            extent=(*limits, *limits),
            cmap=blues,
            bins="log",
            mincnt=1,
            lw=0.1,
        )
        bins.set_rasterized(True)
        bar = ax.figure.colorbar(bins, ax=ax, label="prompts", shrink=0.6, aspect=25)
        bar.ax.yaxis.set_major_formatter("{x:,.0f}")
    else:
        _points(ax, true, predicted, MODEL)
    ax.plot(limits, limits, color="black", lw=1, ls=(0, (4, 3)), label="predicted = true")
    ends = np.array([true.min(), true.max()])
    fitted = predicted.mean() + score["slope"] * (ends - true.mean())
    ax.plot(ends, fitted, color=BASELINE if color is None else "black", lw=2, label="linear fit")

    shown = {
        name: with_interval(*score[[name, f"{name}_low", f"{name}_high"]], decimals=decimals)
        for name, decimals in [("r", 2), ("slope", 2), ("median_error", None)]
    }
    lines = [
        f"r = {shown['r']}",
        f"slope = {shown['slope']}",
        f"median error = {shown['median_error']} {unit}",
        f"{score['n_prompts']:,} prompts, {score['n_units']:,} {score['unit']}s",
    ]
    ticks = MaxNLocator(5, integer=True).tick_values(*limits)
    ax.set(xticks=ticks, yticks=ticks)
    ax.set(
        xlim=limits,
        ylim=limits,
        aspect="equal",
        xlabel=f"true lapse ({unit})",
        ylabel=f"predicted lapse ({unit})",
    )
    ax.set_title("\n".join(lines), fontsize=9, loc="left")
    beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
    ax.legend(frameon=False, fontsize=8, **({"loc": "lower right"} if color is None else beside))
    ax.tick_params(labelsize=9)
    clean(ax)
    return ax


def _points(ax: Axes, x: np.ndarray, y: np.ndarray, color, strength: float = 1) -> None:
    alpha = float(np.clip(strength * 12 / np.sqrt(len(x)), 0.15, 0.8))
    ax.scatter(x, y, s=10, c=color, alpha=alpha, lw=0, rasterized=True)
