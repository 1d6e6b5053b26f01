"""What becomes of a reading when features are turned up or down."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes

from .. import _keys
from ..results.store import read_table
from ._style import NULL, category_colors, clean, drawing

N_FEATURES = 6
_FAR = 5  # times the median feature's reach; what goes further does not set the axis


@drawing
def feature_effects(
    adata: AnnData,
    *,
    features: Sequence[int] | None = None,
    key: str = _keys.FEATURE_EFFECTS,
    ax: Axes | None = None,
) -> Axes:
    """Draw the effect of features against their dose.

    Parameters
    ----------
    adata
        Cells with a result of `mt.tl.feature_effects`.
    features
        Numbers of features; by default the six with the largest effects for their spread in random
        directions.
    {key}
    {ax}

    Returns
    -------
    The axes: a line a feature with 95% intervals over donors, through no effect at dose 1; the band is what
    the widest of the random directions do (two standard deviations). A feature that does more than five times
    what the median one does leaves the axes: a triangle at the edge, with its effect.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.sample_prompts(adata, time_key="age_months", groupby="cell_type", n_prompts=4, context_size=1)
    >>> mt.tl.feature_effects(adata, model, mt.load_sae("demo"), features=[3, 17], doses=[0, 2, 3])
    >>> mt.pl.feature_effects(adata).get_xlabel()
    'dose (1: as it is)'
    """
    import matplotlib.pyplot as plt

    effects = read_table(adata, key, "effects")
    if features is None:
        size = (
            (effects["effect"].abs() / effects["null_sd"].replace(0, np.nan))
            .groupby(effects["feature"])
            .max()
        )
        features = (
            size.nlargest(N_FEATURES).index.tolist() or effects["feature"].unique()[:N_FEATURES].tolist()
        )
    if missing := [i for i in features if i not in set(effects["feature"])]:
        raise KeyError(f"Feature {missing[0]} was not edited: mt.tl.feature_effects(..., features=[...]).")
    if ax is None:
        _, ax = plt.subplots(figsize=(4.6, 3.2), layout="constrained")
    part = effects[effects["feature"].isin(features)]
    null = 2 * part.groupby("dose")["null_sd"].max()
    null.loc[1.0] = 0.0
    null = null.sort_index()
    ax.fill_between(null.index, -null, null, color=NULL, alpha=0.35, lw=0, label="random directions")
    ax.axhline(0, color="black", lw=0.8)
    for i, (feature, color) in enumerate(zip(features, category_colors(len(features)), strict=True)):
        mine = part[part["feature"] == feature].set_index("dose")[["effect", "effect_low", "effect_high"]]
        mine.loc[1.0] = 0.0
        mine = mine.sort_index()
        at = mine.index + (i - (len(features) - 1) / 2) * 0.012 * np.ptp(mine.index)
        ax.vlines(at, mine["effect_low"], mine["effect_high"], color=color, lw=1)
        ax.plot(at, mine["effect"], marker="o", ms=4, lw=1, color=color, label=f"feature {feature}")
    what = effects.attrs.get("readout", "reading")
    name = "change of the predicted lapse" if what == "timelapse" else f"change of {what}"
    ax.set(xlabel="dose (1: as it is)", ylabel=f"{name} ({effects.attrs['unit']})")
    ax.yaxis.label.set_size(9)
    _mark_far(ax, part, list(features))
    ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    clean(ax)
    return ax


def _mark_far(ax: Axes, effects: pd.DataFrame, features: list[int]) -> None:
    """Let most features set the limits, and mark what lies beyond."""
    reach = (
        effects[["effect", "effect_low", "effect_high"]].abs().max(axis=1).groupby(effects["feature"]).max()
    )
    is_far = reach > _FAR * reach.median()
    if not is_far.any():
        return
    limit = 1.2 * reach[~is_far].max()
    ax.set_ylim(-limit, limit)
    colors = dict(zip(features, category_colors(len(features)), strict=True))
    for row in effects[effects["feature"].isin(reach.index[is_far])].itertuples():
        if abs(row.effect) > limit:
            up = row.effect > 0
            marker, edge = ("^", 0.96 * limit) if up else ("v", -0.96 * limit)
            ax.plot(row.dose, edge, marker=marker, ms=6, color=colors[row.feature], clip_on=False)
            where = {"xytext": (0, -5 if up else 5), "va": "top" if up else "bottom"}
            ax.annotate(
                f"{row.effect:.3g}",
                (row.dose, edge),
                textcoords="offset points",
                ha="center",
                fontsize=7,
                **where,
            )
