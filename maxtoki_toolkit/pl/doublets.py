"""Doublets told from cells."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.figure import Figure

from .. import _keys
from ..results.store import read_table
from ..stats.binary_scores import at_odds, calibration
from ._style import BASELINE, MODEL, NULL, clean, drawing

_COLORS = {"detector": MODEL, "scrublet": BASELINE, "permuted labels": NULL}
_STYLES = {"all": "-", "any": "-", "same type": "-", "cross type": (0, (4, 2))}
_FEW = 0.005  # share of the cells that a bin needs to be drawn
_POPULATIONS = {"cells": "0.25", "doublets": "#D55E00", "queries": "#009E73"}


@drawing
def doublets(adata: AnnData, *, scored_on: str = "simulated", key: str = _keys.DOUBLETS) -> Figure:
    """Draw how well doublets are told, and which cells look like them.

    Parameters
    ----------
    {adata}
    scored_on
        "simulated" doublets (held out), or the "truth".
    {key}

    Returns
    -------
    The figure: ROC and precision-recall curves of the detector and of scrublet, with areas and 95% intervals;
    the share of doublets against the probability (points as large as their share of cells, from 0.5% on);
    scores of cells, simulated doublets and queries. Doublets of one type are solid lines, of two types
    dashed.

    Raises
    ------
    ValueError
        If there is no such set of doublets.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.load("heart_nuclei")[:100].copy()
    >>> model = mt.load_model("demo")
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.tl.doublets(adata, model, groupby="cell_type", features=["ranks"])
    >>> [ax.get_title(loc="left") for ax in mt.pl.doublets(adata).axes]
    ['ROC', 'precision and recall', 'calibration', 'scores']
    """
    import matplotlib.pyplot as plt

    cells = read_table(adata, key, "cells")
    scores = read_table(adata, key, "scores")
    scores = scores[(scores["set"] == scored_on) & (scores["detector"] != "permuted labels")]
    if scores.empty:
        raise ValueError(f"Nothing was scored on {scored_on!r}. Give truth_key to mt.tl.doublets.")
    fig, axes = plt.subplots(2, 2, figsize=(8.4, 8.6), layout="constrained")
    (roc, pr), (reliability, histogram) = axes
    types = [name for name in scores["doublets"].unique() if name != "all"] or ["all"]
    for pair in types:
        for row in scores[scores["doublets"] == pair].to_dict("records"):
            score, positive = _compared(
                cells, row["detector"], pair, scored_on, counted="scrublet" in set(scores["detector"])
            )
            false, true, precision = _curves(score, positive)
            style = {"color": _COLORS[row["detector"]], "ls": _STYLES[pair], "lw": 1.8}
            for ax, x, y, measure in (
                (roc, false, true, "auroc"),
                (pr, true, precision, "average_precision"),
            ):
                low, high = row[f"{measure}_low"], row[f"{measure}_high"]
                label = f"{row['detector']}{'' if pair == 'all' else ', ' + pair}: {row[measure]:.2f} [{low:.2f}, {high:.2f}]"
                ax.plot(x, y, label=label, **style)
        pr.axhline(row["rate"], color=NULL, lw=1, ls=_STYLES[pair], zorder=0)
    roc.plot([0, 1], [0, 1], color=NULL, lw=1, zorder=0)
    unit = scores.iloc[0]
    over = f"{unit['n_units']:,} {unit['unit']}s"
    roc.set(xlabel="share of cells called", ylabel="share of doublets called", xlim=(0, 1), ylim=(0, 1.01))
    pr.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.01))
    roc.set_title("ROC", loc="left", fontsize=10)
    pr.set_title("precision and recall", loc="left", fontsize=10)
    for ax, what in ((roc, "AUROC"), (pr, "average precision")):
        legend = {"frameon": False, "fontsize": 8, "title_fontsize": 8, "alignment": "left"}
        ax.legend(
            title=f"{what} [95% over {over}]",
            loc="upper center",
            bbox_to_anchor=(0.5, -0.16),
            **legend,
        )

    _reliability(reliability, cells, scores, types, scored_on, cells.attrs["expected_rate"])
    reliability.set_title("calibration", loc="left", fontsize=10)

    edges = np.linspace(0, 1, 26)
    for name, color in _POPULATIONS.items():
        own = cells.loc[cells["population"] == name, "score"].to_numpy()
        if len(own):
            weights = np.full(len(own), 100 / len(own))
            label = {"cells": "cells", "doublets": "simulated doublets", "queries": "queries"}[name]
            histogram.hist(
                own,
                edges,
                weights=weights,
                histtype="step",
                color=color,
                lw=1.8,
                label=f"{label} ({len(own):,})",
            )
    histogram.axvline(0.5, color=NULL, lw=1)
    histogram.set(xlabel="probability at even odds", ylabel="cells (%)", xlim=(0, 1))
    histogram.set_title("scores", loc="left", fontsize=10)
    histogram.legend(frameon=False, fontsize=8, loc="upper center")
    for ax in axes.flat:
        ax.tick_params(labelsize=9)
        clean(ax)
    return fig


def _compared(
    cells: pd.DataFrame, detector: str, pair: str, scored_on: str, *, counted: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of what was compared, and which are doublets."""
    if scored_on == "truth":
        part = cells[cells["truth"].ne("")]
        positive, column = part["truth"].eq("doublet"), "scrublet"
    else:
        part = cells[cells["population"].ne("queries")]
        positive, column = part["population"].eq("doublets"), "scrublet_hidden"
        kept = ~positive | (part["pair"].eq(pair) if pair != "all" else True)
        if counted:
            kept &= ~positive | part["scrublet_hidden"].notna()
        part, positive = part[kept], positive[kept]
    score = part["score" if detector == "detector" else column]
    return score.fillna(score.min()).to_numpy(), positive.to_numpy()


def _curves(score: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """False and true positive rates and precision at each threshold."""
    order = np.argsort(-score, kind="stable")
    last = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
    hits, misses = np.cumsum(positive[order])[last], np.cumsum(~positive[order])[last]
    precision = hits / (hits + misses)
    return (
        np.append(0, misses / misses[-1]),
        np.append(0, hits / hits[-1]),
        np.append(precision[0], precision),
    )


def _reliability(
    ax, cells: pd.DataFrame, scores: pd.DataFrame, types: list, scored_on: str, rate: float
) -> None:
    """Share of doublets against what was predicted."""
    ax.plot([0, 1], [0, 1], color=NULL, lw=1, zorder=0)
    for pair in types:
        score, positive = _compared(cells, "detector", pair, scored_on, counted=False)
        if scored_on == "truth":
            score, weight = at_odds(score, rate), np.ones(len(score))
        else:
            weight = np.where(positive, 0.5 / positive.mean(), 0.5 / (1 - positive.mean()))
        bins = calibration(score, positive, weight)
        enough = bins["weight"] >= _FEW
        bins = {name: values[enough] for name, values in bins.items()}
        row = scores[(scores["doublets"] == pair) & (scores["detector"] == "detector")].iloc[0]
        label = f"{'' if pair == 'all' else pair + ': '}calibration error {row['calibration_error']:.3f}"
        filled = pair != "cross type"
        ax.plot(bins["predicted"], bins["observed"], color=MODEL, lw=1.2, ls=_STYLES[pair])
        ax.scatter(
            bins["predicted"],
            bins["observed"],
            s=15 + 200 * bins["weight"],
            facecolor=MODEL if filled else "white",
            edgecolor=MODEL,
            zorder=3,
            label=label,
        )
    odds = "even odds" if scored_on == "simulated" else f"a rate of {rate:g}"
    ax.set(
        xlabel=f"predicted probability (at {odds})",
        ylabel="share of doublets",
        xlim=(-0.03, 1.03),
        ylim=(-0.03, 1.05),
    )
    legend = ax.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    for handle in legend.legend_handles:
        handle.set_sizes([30])
