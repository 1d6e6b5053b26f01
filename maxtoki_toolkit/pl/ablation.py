"""What each part of the prompt is worth."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes

from .. import _keys
from ..results.store import read_table
from ._style import MODEL, clean, drawing

_LABELS = {
    "intact": "nothing changed",
    "shuffle_genes": "all genes shuffled",
    "shuffle_context": "genes of the context shuffled",
    "shuffle_query": "genes of the query shuffled",
    "mask_context": "context masked",
    "mask_query": "query masked",
    "replace_context": "other cells as context",
    "replace_query": "another cell as query",
    "shuffle_lapses": "lapses of another prompt",
    "drop_lapses": "no lapses",
    "drop_top": "highest ranked genes left out",
    "drop_bottom": "lowest ranked genes left out",
}


@drawing
def ablation(adata: AnnData, *, key: str = _keys.ABLATION, ax: Axes | None = None) -> Axes:
    """Draw by how much each ablation of the prompt changes the error.

    Parameters
    ----------
    {adata}
    {key}
    {ax}

    Returns
    -------
    The axes: a point an ablation, the mean difference in absolute error with its 95% interval over donors;
    filled where q < 0.05.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.sample_prompts(adata, time_key="age_months", groupby="cell_type", n_prompts=6, donor_key="donor_id")
    >>> mt.tl.ablate_prompt(adata, model, ablations=["shuffle_genes", "drop_bottom"])
    >>> mt.pl.ablation(adata).get_xlabel()
    'change of the mean error (months)'
    """
    import matplotlib.pyplot as plt

    effects = read_table(adata, key, "effects")
    place = np.arange(len(effects))
    if ax is None:
        _, ax = plt.subplots(figsize=(5.6, 1.0 + 0.3 * len(effects)), layout="constrained")
    ax.axvline(0, color="black", lw=0.8)
    ax.hlines(place, effects["difference_low"], effects["difference_high"], color=MODEL, lw=1.6)
    called = (effects["q_value"] < 0.05).to_numpy()
    for filled in (True, False):
        some = called == filled
        ax.scatter(
            effects["difference"][some],
            place[some],
            s=26,
            facecolor=MODEL if filled else "white",
            edgecolor=MODEL,
            zorder=3,
        )
    first = effects.iloc[0]
    ax.set_title(
        f"{first['n_prompts']:,} prompts, {first['n_units']:,} {first['unit']}s; mean error as it is: "
        f"{first['mean_error_intact']:.0f} {effects.attrs['unit']}",
        fontsize=9,
    )
    ax.set_yticks(place, [_LABELS[name] for name in effects["ablation"]], fontsize=9)
    ax.set(ylim=(len(effects) - 0.5, -0.5), xlabel=f"change of the mean error ({effects.attrs['unit']})")
    clean(ax)
    return ax
