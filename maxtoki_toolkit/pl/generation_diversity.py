"""Copying, precision, coverage and collapse of generated cells."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from matplotlib.figure import Figure

from .. import _keys
from ..results.store import read_table
from ._style import BASELINE, MODEL, NULL, clean, drawing

_SCORES = {
    "nearer": "nearer to training\ncells than true cells",
    "near_copies": "near copies\n(share)",
    "precision": "precision\n(share)",
    "coverage": "coverage\n(share)",
    "spread": "spread over that\nof true cells",
}
_EXPECTED = {"nearer": 0.5, "near_copies": 0.01, "spread": 1.0}
_CELLS = {
    "generated": (MODEL, "o", "generated cells"),
    "held-out": ("black", "D", "held-out true cells"),
    "copies": (BASELINE, "s", "copies of training cells"),
    "average": ("#CC79A7", "^", "average cell"),
    "shuffled": (NULL, "v", "genes shuffled"),
}


@drawing
def generation_diversity(adata: AnnData, *, key: str = _keys.DIVERSITY) -> Figure:
    """Draw how generated cells lie among training cells and true cells, group by group.

    Parameters
    ----------
    {adata}
    {key}

    Returns
    -------
    The figure: a panel a score, a row a group; generated cells between held-out true cells (what good looks
    like) and what copies, averages or shuffled cells score, with 95% intervals. A dashed line where cells
    like true ones are expected.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(400, 20)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.hold_out(adata, donor_key="donor_id", donors=0.4)
    >>> some = adata[adata.obs["held_out"]].copy()
    >>> mt.tl.generation_diversity(adata, model, generated=some, donor_key="donor_id")
    >>> len(mt.pl.generation_diversity(adata).axes)
    5
    """
    import matplotlib.pyplot as plt

    scores = read_table(adata, key, "scores")
    groups = list(dict.fromkeys(scores["group"]))
    fig, axes = plt.subplots(
        1, len(_SCORES), figsize=(10, 1.6 + 0.62 * len(groups)), sharey=True, layout="constrained"
    )
    for ax, (name, label) in zip(axes, _SCORES.items(), strict=True):
        if name in _EXPECTED:
            ax.axvline(_EXPECTED[name], color="0.6", lw=0.9, ls=(0, (4, 3)), zorder=0)
        for i, (cells, (color, marker, _)) in enumerate(_CELLS.items()):
            rows = scores[scores["cells"] == cells]
            place = np.array([groups.index(group) for group in rows["group"]]) + (i - 2) * 0.15
            known = np.isfinite(rows[f"{name}_low"].to_numpy())
            low, high = rows[f"{name}_low"].to_numpy()[known], rows[f"{name}_high"].to_numpy()[known]
            ax.hlines(place[known], low, high, color=color, lw=1.3)
            ax.scatter(rows[name], place, s=22, color=color, marker=marker, zorder=3, clip_on=False)
        top = 1.0 if name != "spread" else max(1.1, 1.1 * scores[name].max())
        ax.set(xlim=(0, top))
        ax.set_xlabel(label, fontsize=9)
        ax.tick_params(labelsize=8)
        for edge in np.arange(0.5, len(groups) - 1):
            ax.axhline(edge, color="0.9", lw=0.8, zorder=0)
        clean(ax)
    axes[0].set_yticks(range(len(groups)), groups)
    axes[0].set_ylim(len(groups) - 0.5, -0.5)
    handles = [
        plt.Line2D([], [], color=color, marker=marker, ls="-", lw=1.3, markersize=5, label=label)
        for color, marker, label in _CELLS.values()
    ]
    fig.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8)
    return fig
