"""Scores of predicted responses beside their baselines."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from matplotlib.figure import Figure

from .. import _keys
from ..results.store import read_table
from ._style import BASELINE, MODEL, clean, drawing

_LABELS = {
    "pearson_control": "correlation of the change\nfrom control (Pearson)",
    "pearson_control_top": "correlation of the change\nfrom control, top genes (Pearson)",
    "pearson_perturbed": "correlation of the change\nfrom mean perturbed (Pearson)",
    "spearman_control": "correlation of the change\nfrom control (Spearman)",
    "top_overlap": "top genes\nfound (share)",
    "top_direction": "top genes, right\ndirection (share)",
    "mse": "mean squared\nerror",
    "mse_top": "mean squared\nerror, top genes",
    "mse_weighted": "squared error\n(share of the variance)",
    "discrimination": "nearer to the right\nthan to others (share)",
}


@drawing
def perturbation_metrics(
    adata: AnnData, *, perturbation: str = "all", key: str = _keys.PERTURBATION_METRICS
) -> Figure:
    """Draw each score of each prediction, with its interval, beside the baselines.

    Parameters
    ----------
    {adata}
    perturbation
        Which one; "all" for the mean over all.
    {key}

    Returns
    -------
    A panel a score: predictions blue, baselines orange, with 95% intervals. Scores that are not defined are
    left out.

    Examples
    --------
    >>> import maxtoki_toolkit as mt, scanpy as sc
    >>> adata = mt.datasets.aging_atlas(300, 30)
    >>> sc.pp.normalize_total(adata)
    >>> sc.pp.log1p(adata)
    >>> adata.layers["same"] = adata.X.copy()
    >>> mt.tl.perturbation_metrics(adata, predicted="same", perturbation_key="condition", n_bootstrap=10)
    >>> len(mt.pl.perturbation_metrics(adata).axes)
    10
    """
    import matplotlib.pyplot as plt

    table = read_table(adata, key, "scores")
    if perturbation not in set(table["perturbation"]):
        raise KeyError(
            f"Did not find the perturbation {perturbation!r}; there are {table['perturbation'].unique().tolist()}."
        )
    table = table[table["perturbation"] == perturbation]
    known = table.groupby("score", sort=False)["value"].transform(lambda values: values.notna().any())
    table = table[known.to_numpy(dtype=bool)]
    methods, scores = list(table["method"].unique()), list(table["score"].unique())
    n_columns = min(4, len(scores))
    n_rows = -(-len(scores) // n_columns)
    figure, axes = plt.subplots(
        n_rows,
        n_columns,
        figsize=(1.6 + 1.9 * n_columns, n_rows * (0.9 + 0.24 * len(methods))),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    place = np.arange(len(methods))
    for ax, score in zip(axes.ravel(), scores, strict=False):
        part = table[table["score"] == score].set_index("method").loc[methods]
        color = np.where(part["is_baseline"], BASELINE, MODEL)
        ax.hlines(place, part["low"], part["high"], color=color, lw=1.6)
        ax.scatter(part["value"], place, s=22, color=color, zorder=3)
        if not score.startswith("mse"):
            ax.axvline(0.5 if score == "discrimination" else 0, color="black", lw=0.6, zorder=0)
        ax.set_xlabel(_label(score), fontsize=8)
        ax.tick_params(labelsize=8)
        clean(ax)
    for ax in axes.ravel()[len(scores) :]:
        ax.remove()
    axes[0, 0].set_yticks(place, methods)
    axes[0, 0].set_ylim(len(methods) - 0.5, -0.5)
    return figure


def _label(score: str) -> str:
    """Label of a score; those of top genes may bear a number."""
    plain = score.rstrip("0123456789")
    number = score[len(plain) :]
    label = _LABELS[plain]
    return label.replace("top genes", f"top {number} genes") if number else label
