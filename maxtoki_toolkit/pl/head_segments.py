"""Which part of a prompt each head looks at."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from matplotlib.figure import Figure

from .. import _keys
from ..results.store import read_table
from ._heads import as_grid, draw_grid, segment_color, segment_label
from ._style import clean, drawing


@drawing
def head_segments(adata: AnnData, *, key: str = _keys.HEAD_SEGMENTS) -> Figure:
    """Draw what each head gives to the parts of prompts, and where that is more than its distance explains.

    Parameters
    ----------
    {adata}
    {key}

    Returns
    -------
    The figure. Above, a bar a head, divided by part; what is missing to 100% rests on the first token. Below,
    a grid a part: log2 of its share over that at the same distances; a point on heads that are specialised (q
    < 0.05 and a ratio of at least 1.25).

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.sample_prompts(adata, time_key="age_months", groupby="cell_type", n_prompts=6, donor_key="donor_id")
    >>> mt.tl.attention(adata, model, key="prompts")
    >>> mt.tl.head_segments(adata)
    >>> len(mt.pl.head_segments(adata).axes)
    6
    """
    import matplotlib.pyplot as plt

    table = read_table(adata, key, "heads")
    parts = list(dict.fromkeys(table["segment"]))
    names = table["name"][table["segment"] == parts[0]].tolist()
    heads_per_layer, n_layers = int(table["head"].max()) + 1, int(table["layer"].max()) + 1
    width = float(np.clip(1.6 + 0.24 * len(names), 7.2, 16))
    figure = plt.figure(figsize=(width, 3.4 + 0.26 * n_layers), layout="constrained")
    grid = figure.add_gridspec(2, len(parts), height_ratios=[2.1, 1.1 + 0.26 * n_layers])
    bars = figure.add_subplot(grid[0, :])
    below = np.zeros(len(names))
    for part in parts:
        share = 100 * table.loc[table["segment"] == part, "mass"].to_numpy()
        bars.bar(range(len(names)), share, 0.8, below, color=segment_color(part), label=segment_label(part))
        below += share
    bars.bar(range(len(names)), 100 - below, 0.8, below, color="0.9", label=segment_label("first"))
    evenly = table.groupby("segment", sort=False)["evenly"].first()
    edge = 0.0
    # What a head that attends to all tokens alike would give, at the right.
    for part in parts:
        bars.bar(len(names) + 0.7, 100 * evenly[part], 0.8, edge, color=segment_color(part))
        edge += 100 * evenly[part]
    bars.bar(len(names) + 0.7, 100 - edge, 0.8, edge, color="0.9")
    bars.set_xticks([*range(len(names)), len(names) + 0.7], [*names, "all alike"], rotation=90, fontsize=7)
    bars.set(xlim=(-0.7, len(names) + 1.3), ylim=(0, 100))
    whose = "all tokens" if table.attrs["attending"] == "all" else "the last token"
    bars.set_ylabel(f"attention of {whose} (%)", fontsize=9)
    bars.tick_params(axis="y", labelsize=8)
    clean(bars)
    bars.legend(
        frameon=False,
        fontsize=8,
        loc="lower right",
        bbox_to_anchor=(1, 0.98),
        ncol=5,
        columnspacing=1.2,
        handlelength=1.2,
    )
    first = table.iloc[0]
    bars.set_title(
        f"{first['n_prompts']:,} prompts, {first['n_units']} donors"
        if table.attrs["unit_of_inference"] == "donor"
        else f"{first['n_prompts']:,} prompts",
        fontsize=9,
        loc="left",
    )
    reach = float(np.clip(np.quantile(np.abs(table["log2_ratio"]), 0.98), 0.1, 3))
    axes = []
    for i, part in enumerate(parts):
        ax = figure.add_subplot(grid[1, i])
        mine = table[table["segment"] == part]
        image = draw_grid(ax, as_grid(mine, "log2_ratio"), as_grid(mine, "specialised").astype(bool), reach)
        if heads_per_layer > 10:
            ax.set_xticks(range(0, heads_per_layer, 4), range(0, heads_per_layer, 4))
        ax.set_title(
            f"{segment_label(part)}\n● {int(mine['specialised'].sum())} of {len(mine)} heads", fontsize=9
        )
        if i:
            ax.set(ylabel="", yticklabels=[])
        axes.append(ax)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=14, extend="both")
    bar.set_label("log2 of share over\nthat at like distances", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    plt.close(figure)  # or a notebook would show it twice
    return figure
