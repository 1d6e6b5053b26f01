"""How well labels are told: what is taken for what, and whether probabilities hold."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.figure import Figure

from .. import _keys
from .._names import closest
from ..results.store import read_table
from ._style import MODEL, clean, drawing, with_interval

_FEW, _MANY = 12, 45  # labels up to which shares are written, and names
_CALLED = {"probe": "linear probe", "knn": "nearest neighbours", "fine-tuned": "fine-tuned model"}


@drawing
def annotate(adata: AnnData, *, column: str | None = None, key: str = _keys.ANNOTATE) -> Figure:
    """Draw which labels held-out reference cells were called, and how often calls of a probability were right.

    Parameters
    ----------
    {adata}
    column
        Which labels, where there are several columns; by default the first.
    {key}

    Returns
    -------
    The figure.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> model = mt.load_model("demo")
    >>> adata = mt.datasets.load("heart_nuclei")[:250].copy()
    >>> mt.pp.rank_value_encode(adata, model)
    >>> reference, mine = adata[:200].copy(), adata[200:].copy()
    >>> mt.tl.annotate(mine, model, reference=reference, groupby="cell_type", n_folds=3)
    >>> mt.pl.annotate(mine).axes[0].get_ylabel()
    'cell type (held-out cells)'
    """
    import matplotlib.pyplot as plt

    tables = {name: read_table(adata, key, name) for name in ("scores", "labels", "confusion", "calibration")}
    known = tables["scores"]["column"].unique().tolist()
    column = column or known[0]
    if column not in known:
        raise ValueError(
            f"There are no labels {column!r}.{closest(column, known)} There are {', '.join(known)}."
        )
    scores, labels, confusion, bins = (part[part["column"] == column] for part in tables.values())
    names = labels.loc[labels["n_scored"] > 0, "label"].tolist()
    called = [name for name in labels["label"] if name in set(names) | set(confusion["called"])]
    counts = confusion.pivot_table(
        index="label", columns="called", values="n_cells", fill_value=0, aggfunc="sum"
    )
    counts = counts.reindex(index=names, columns=called, fill_value=0)
    side = 2.4 + min(0.34 * len(called), 9)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(side + 5.2, max(side - 0.6, 3.8)), width_ratios=[side + 1.4, 3.4], layout="constrained"
    )
    what = column.replace("_", " ")
    _draw_confusion(left, counts, what)
    _draw_reliability(right, bins, scores.iloc[0])
    figure.suptitle(_summary(scores), fontsize=9, x=0.01, ha="left")
    return figure


def _draw_confusion(ax, counts: pd.DataFrame, what: str) -> None:
    percent = 100 * counts.div(counts.sum(axis=1), axis=0).to_numpy()
    image = ax.imshow(percent, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    if max(counts.shape) <= _FEW:
        for i, j in np.argwhere(counts.to_numpy() > 0):
            ink = "white" if percent[i, j] > 60 else "black"
            ax.text(j, i, f"{percent[i, j]:.0f}", ha="center", va="center", fontsize=7.5, color=ink)
    if max(counts.shape) <= _MANY:
        ax.set_xticks(range(counts.shape[1]), counts.columns, rotation=45, ha="right", rotation_mode="anchor")
        total = counts.sum(axis=1)
        ax.set_yticks(
            range(counts.shape[0]), [f"{name} ({n:,})" for name, n in zip(counts.index, total, strict=True)]
        )
    else:
        ax.set_xticks([])
        ax.set_yticks([])
    ax.tick_params(labelsize=8, length=0)
    ax.spines[:].set_visible(False)
    many = "" if max(counts.shape) <= _MANY else f", {counts.shape[0]} labels in alphabetical order"
    ax.set(xlabel=f"called {what}", ylabel=f"{what} (held-out cells{many})")
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.6, aspect=22)
    bar.set_label("cells of the row (%)", fontsize=8.5)
    bar.ax.tick_params(labelsize=7.5)
    bar.outline.set_visible(False)


def _draw_reliability(ax, bins: pd.DataFrame, scores: pd.Series) -> None:
    ax.plot([0, 1], [0, 1], color="0.6", lw=0.8, ls="--", zorder=1)
    size = 15 + 185 * bins["n_cells"] / bins["n_cells"].max()
    ax.plot(bins["confidence"], bins["accuracy"], color=MODEL, lw=1.2, zorder=2)
    ax.scatter(bins["confidence"], bins["accuracy"], s=size, color=MODEL, edgecolor="white", zorder=3)
    ax.set(
        xlim=(-0.03, 1.05),
        ylim=(-0.03, 1.05),
        xlabel="probability of the called label",
        ylabel="share of calls that are right",
    )
    ax.set_box_aspect(1)
    ax.set_title(
        f"calibration error {scores['calibration_error']:.3f}\narea: cells, {bins['n_cells'].max():,} at most",
        fontsize=8.5,
        loc="left",
    )
    ax.tick_params(labelsize=8)
    clean(ax)


def _summary(scores: pd.DataFrame) -> str:
    """The scores in words."""
    first = scores.iloc[0]
    rows = scores.set_index("predictor")

    def of(name: str, measure: str) -> str:
        row = rows.loc[name]
        return with_interval(*(float(row[f"{measure}{end}"]) for end in ("", "_low", "_high")), decimals=2)

    others = [name for name in rows.index[1:] if name != "permuted"]
    of_units = "" if first["unit"] == "cell" else f" of {first['n_units']:,} {first['unit']}s"
    named = _CALLED.get(first["predictor"], first["predictor"])
    lines = [
        f"macro F1 of {first['n_cells']:,} held-out cells{of_units} (95% interval over {first['unit']}s): "
        f"{named} {of(first['predictor'], 'macro_f1')}",
        "; ".join(
            [
                *(f"{name} {of(name, 'macro_f1')}" for name in others),
                f"calls permuted {of('permuted', 'macro_f1')}",
            ]
        ),
    ]
    if np.isfinite(first["ontology_distance"]):
        lines.append(
            f"steps in the Cell Ontology from called to true label: {of(first['predictor'], 'ontology_distance')}; "
            f"called unknown: {100 * first['false_alarms']:.1f}%"
        )
    return "\n".join(lines)
