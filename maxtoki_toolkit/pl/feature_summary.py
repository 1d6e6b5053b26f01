"""What features go with, and whether that is more than what the controls go with."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.figure import Figure

from .. import _keys
from ..results.store import read_result, read_table
from ._dictionaries import dictionary_styles
from ._heads import DIVERGING
from ._style import clean, drawing

_MOST = 14  # labels that are drawn of a column


@drawing
def feature_summary(
    adata: AnnData, *, column: str | None = None, n_features: int = 2, key: str = _keys.FEATURE_SUMMARY
) -> Figure:
    """Draw the features that tell each label best, with the controls beside.

    Parameters
    ----------
    {adata}
    column
        Column of `.obs` whose labels are drawn; by default the first. At most 14 of them.
    n_features
        Features of each label: those of the highest AUROC that pass, else of the highest.
    {key}

    Returns
    -------
    Two panels: features x labels, coloured by AUROC, with a point where the association passes; and the best
    of each dictionary for each label, chosen in one half of the donors (or cells) and scored in the other.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(200, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.tl.features(adata, model, mt.load_sae("demo"))
    >>> mt.tl.feature_summary(adata, groupby="cell_type")
    >>> mt.pl.feature_summary(adata).axes[1].get_xlabel()
    'AUROC in the other half'
    """
    import matplotlib.pyplot as plt

    result = read_result(adata, key)
    found = read_table(adata, key, "associations")
    params = found.attrs
    column = column or str(found["column"].iloc[0])
    found = found[found["column"] == column]
    if found.empty:
        known = ", ".join(map(repr, result["associations"]["column"].unique()))
        raise KeyError(f"Nothing was compared by {column!r}. Columns of the summary: {known}.")
    is_time = found["measure"].iloc[0] == "Spearman"
    best = read_table(adata, key, "best")
    best = best[best["column"] == column]
    values = list(dict.fromkeys(found["value"][found["effect"].notna()]))[:_MOST]
    shown = _shown(found, values, n_features, is_time=is_time)
    drawn = found[found["feature"].isin(shown)]
    effect, passes = (
        drawn.pivot(index="feature", columns="value", values=name).reindex(index=shown, columns=values)
        for name in ("effect", "passes")
    )
    effect, passes = effect.to_numpy(dtype=float), passes.to_numpy(dtype=bool)
    genes = read_table(adata, key, "features").set_index("feature")["top_genes"]

    left, right = 1.9 + 0.42 * len(values), 3.5
    height = 1.9 + max(0.24 * len(shown), 0.36 * len(values))
    figure, (ax, side) = plt.subplots(
        1, 2, figsize=(left + right, height), layout="constrained", width_ratios=[left, right]
    )
    counts = read_table(adata, key, "dictionaries").set_index(["dictionary", "column"])
    ends = (-1, 1) if is_time else (0, 1)
    image = ax.imshow(effect, cmap=DIVERGING, vmin=ends[0], vmax=ends[1], aspect="auto", interpolation="none")
    at = np.argwhere(passes)
    middle = sum(ends) / 2
    dark = np.abs(effect[passes] - middle) > 0.35 * (ends[1] - ends[0])
    ax.scatter(at[:, 1], at[:, 0], s=13, c=np.where(dark, "white", "black"), linewidths=0)
    labels = [column.replace("_", " ")] if is_time else [_short(value) for value in values]
    ax.set_xticks(range(len(values)), labels, rotation=40, ha="right", rotation_mode="anchor", fontsize=8)
    names = [f"{feature}  {', '.join(genes[feature].split(', ')[:2])}" for feature in shown]
    ax.set_yticks(range(len(shown)), names, fontsize=8)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=ax, location="top", shrink=0.9, aspect=22, pad=0.02)
    measure = "Spearman correlation with time" if is_time else "AUROC, label against the rest"
    n_units = int(counts.loc[(str(params["features"]), column), "n_units"])
    over = f"up to {n_units} donors" if n_units else "cells, no donors"
    bar.set_label(f"{measure} ({over}; {'● passes' if len(at) else 'none passes'})", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)

    styles = dictionary_styles(list(dict.fromkeys(best["dictionary"])), str(params["features"]))
    step = min(0.7 / max(len(styles), 1), 0.16)
    for i, (name, (label, color, marker)) in enumerate(styles.items()):
        part = best[best["dictionary"] == name].set_index("value").reindex(values)
        count = counts.loc[(name, column)]
        text = f"{label}: {int(count['n_pass']):,} of {int(count['n_features']):,} pass"
        offset = (i - (len(styles) - 1) / 2) * step
        side.scatter(
            part["held_out"],
            np.arange(len(values)) + offset,
            s=22,
            color=color,
            marker=marker,
            label=text,
            lw=0,
        )
    side.axvline(middle if is_time else 0.5, color="0.6", lw=0.8, ls="--", zorder=0)
    for place in np.arange(len(values) - 1) + 0.5:
        side.axhline(place, color="0.9", lw=0.6, zorder=0)
    side.set_yticks(range(len(values)), labels, fontsize=8)
    side.set_ylim(len(values) - 0.5, -0.5)
    side.tick_params(labelsize=8)
    side.set_xlabel(f"{'correlation' if is_time else 'AUROC'} in the other half", fontsize=9)
    side.set_title("best feature of one half", fontsize=9, loc="left")
    clean(side)
    handles = side.get_legend_handles_labels()
    figure.legend(*handles, frameon=False, fontsize=8, loc="outside lower right", ncols=1)
    return figure


def _shown(found: pd.DataFrame, values: list[str], n: int, *, is_time: bool) -> list[int]:
    """Features to draw: the first of each label that no earlier label has, in the order of the labels."""
    size = found["effect"].abs() if is_time else found["effect"]
    order = found.assign(size=size).sort_values(["passes", "size"], ascending=False, kind="stable")
    if is_time:
        return order["feature"].head(max(n, 12)).tolist()
    # One that passes since it is low in a label does not tell it.
    order = order.assign(passes=order["passes"] & (order["size"] > 0.5))
    order = order.sort_values(["passes", "size"], ascending=False, kind="stable")
    shown: list[int] = []
    for value in values:
        of_value = order.loc[order["value"] == value, "feature"]
        shown += of_value[~of_value.isin(shown)].head(n).tolist()
    return shown


def _short(value: str) -> str:
    return value if len(value) <= 24 else f"{value[:22]}..."
