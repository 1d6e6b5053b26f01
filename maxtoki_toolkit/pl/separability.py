"""How well neighbours tell treated cells from controls, beside PCA, depth and exchanged labels."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes

from .. import _keys
from ..results.store import read_table
from ._style import BASELINE, MODEL, NULL, clean, drawing

_MOST = 30  # conditions that fit on a page


@drawing
def separability(adata: AnnData, *, key: str = _keys.SEPARABILITY, ax: Axes | None = None) -> Axes:
    """Draw the scores of `mt.tl.separability`.

    Parameters
    ----------
    {adata}
    {key}
    {ax}

    Returns
    -------
    The axes: a row a group and condition, the best first (30 at most); grey ticks are the 95th percentiles of
    exchanged labels.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.drug_screen(2, 2, n_plates=2, n_wells=24)
    >>> adata.obsm["X"] = adata.X.toarray()
    >>> mt.tl.separability(adata, use_rep="X", condition_key="drug", control="DMSO", groupby="line")
    >>> mt.pl.separability(adata).get_xlabel()
    'treated against control cells, AUROC of 15 neighbours'
    """
    import matplotlib.pyplot as plt

    table = read_table(adata, key, "scores")
    params = table.attrs
    several = table["group"].nunique() > 1
    table["row"] = table["group"] + ": " + table["condition"] if several else table["condition"]
    best = table.groupby("row")["auroc"].max().sort_values(ascending=False)
    rows = best.index[:_MOST]
    names = list(table["embedding"].unique())
    color = {params["use_rep"]: MODEL, "PCA": BASELINE, "depth": NULL}
    if ax is None:
        _, ax = plt.subplots(figsize=(5.2, 1.3 + 0.34 * len(rows)), layout="constrained")
    for i, name in enumerate(names):
        part = table[table["embedding"] == name].set_index("row").loc[rows]
        place = np.arange(len(rows)) + 0.22 * (i - (len(names) - 1) / 2)
        label = "MaxToki" if name == _keys.EMBEDDING else "depth alone" if name == "depth" else name
        ax.hlines(place, part["low"], part["high"], color=color[name], lw=1.6)
        ax.scatter(part["auroc"], place, s=22, color=color[name], zorder=3, label=label)
        ax.scatter(part["null_high"], place, s=40, marker="|", color="#555555", zorder=2)
    ax.axvline(0.5, color="black", lw=0.6, zorder=0)
    ax.set_yticks(np.arange(len(rows)), rows)
    units = (
        "donors"
        if (table["design"] != "cells").all()
        else "cells"
        if (table["design"] == "cells").all()
        else "donors or cells"
    )
    left_out = f"\n{len(best) - len(rows)} more conditions not shown" if len(best) > len(rows) else ""
    ax.set(
        xlabel=f"treated against control cells, AUROC of {params['n_neighbors']} neighbours",
        ylim=(len(rows) - 0.5, -0.5),
        title=f"bars: 95% interval over {units}\nticks: 95% of exchanged labels are below{left_out}",
    )
    ax.title.set_fontsize(8)
    ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    clean(ax)
    return ax
