"""Errors of the model beside those of the baselines."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes

from .. import _keys
from ..results.store import read_table
from ._style import BASELINE, MODEL, clean, drawing, with_interval

_LABELS = {
    "ridge_embedding": "ridge on\nembeddings",
    "ridge_expression": "ridge on\nexpression",
    "sgd_expression": "SGD on\nexpression",
    "most_common": "most common\nlapse",
}


@drawing
def timelapse_error(adata: AnnData, *, key: str = _keys.BASELINES, ax: Axes | None = None) -> Axes:
    """Draw how far off the predicted lapses are, for the model and each baseline.

    Parameters
    ----------
    {adata}
    {key}
    {ax}

    Returns
    -------
    The axes: a violin a predictor, of the absolute errors of all prompts; the median as a white dot, with its
    95% interval over donors as a black bar and in words. The axis ends at the 99th percentile of the widest
    violin.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.hold_out(adata, donor_key="donor_id", donors=0.4, time_key="age_months")
    >>> settings = dict(time_key="age_months", groupby="cell_type", donor_key="donor_id", n_prompts=10, context_size=1)
    >>> mt.pp.sample_prompts(adata, contexts="train", queries="train", key_added="train_prompts", **settings)
    >>> mt.pp.sample_prompts(adata, contexts="held_out", queries="held_out", **settings)
    >>> mt.tl.predict_timelapse(adata, model)
    >>> mt.tl.timelapse_baselines(adata, model)
    >>> mt.pl.timelapse_error(adata).get_ylabel()
    'absolute error of the lapse (months)'
    """
    import matplotlib.pyplot as plt

    table = read_table(adata, key, "prompts")
    scores = read_table(adata, key, "scores")
    scores = scores[scores["group"] == "all"].set_index("predictor")
    errors = [
        (table["predicted" if name == "MaxToki" else name] - table["lapse"]).abs().to_numpy()
        for name in scores.index
    ]
    place = np.arange(len(errors))
    if ax is None:
        _, ax = plt.subplots(figsize=(1.0 + 1.05 * len(errors), 3.6), layout="constrained")
    violins = ax.violinplot(errors, positions=place, widths=0.85, showextrema=False, points=200)
    for name, body in zip(scores.index, violins["bodies"], strict=True):
        body.set(facecolor=MODEL if name == "MaxToki" else BASELINE, edgecolor="none", alpha=0.75)

    median, low, high = (scores[f"median_error{end}"] for end in ("", "_low", "_high"))
    ax.vlines(place, low, high, color="black", lw=4)
    ax.scatter(place, median, s=22, color="white", edgecolor="black", lw=0.8, zorder=3)
    top = max(np.quantile(error, 0.99) for error in errors)
    top = top if top > 0 else 1
    for x, *values in zip(place, median, low, high, strict=True):
        ax.text(x, 1.02 * top, with_interval(*values, join="\n"), ha="center", va="bottom", fontsize=8)
    score = scores.iloc[0]
    ax.set(ylim=(0, top), ylabel=f"absolute error of the lapse ({table.attrs['unit']})")
    ax.set_title(
        f"{score['n_prompts']:,} prompts, {score['n_units']:,} {score['unit']}s; medians with 95% intervals",
        fontsize=9,
        pad=30,
    )
    ax.set_xticks(place, [_LABELS.get(name, name) for name in scores.index], fontsize=8)
    ax.tick_params(axis="y", labelsize=9)
    clean(ax)
    return ax
