"""Predicted responses of populations left out, beside baselines, the ceiling and the null."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from anndata import AnnData
from matplotlib.figure import Figure

from .. import _keys
from ..results.store import read_table
from ._style import BASELINE, MODEL, NULL, clean, drawing
from .perturbation_metrics import _label

_COLORS = {"ceiling": "#009E73", "way": MODEL, "baseline": BASELINE, "null": NULL}


@drawing
def predict_response(
    adata: AnnData,
    *,
    scores: Sequence[str] = ("pearson_control", "pearson_control_top20", "mse_weighted"),
    key: str = _keys.PREDICT_RESPONSE,
) -> Figure:
    """Draw each way to predict a response with its units, beside baselines, ceiling and null.

    Parameters
    ----------
    {adata}
    scores
        A panel each.
    {key}

    Returns
    -------
    The figure: means with 95% intervals over units, small points for the units, the ceiling green, ways blue,
    baselines orange, shuffled labels grey.

    Raises
    ------
    KeyError
        If there is no such score.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.drug_screen(4, 2, n_wells=24, cells_per_well=8)
    >>> adata.obsm["X_some"] = adata.X[:, :50].toarray()
    >>> columns = {"perturbation_key": "drug", "control": "DMSO", "groupby": "line"}
    >>> mt.tl.predict_response(adata, use_rep="X_some", **columns)
    >>> len(mt.pl.predict_response(adata).axes)
    3
    """
    import matplotlib.pyplot as plt

    summary, table = (read_table(adata, key, name) for name in ("summary", "scores"))
    unit = str(summary.attrs["units"])
    if unknown := [name for name in scores if name not in set(summary["score"])]:
        raise KeyError(
            f"Did not find the score {unknown[0]!r}; there are {sorted(summary['score'].unique())}."
        )
    order = ["ceiling", "way", "baseline", "null"]
    methods = summary.drop_duplicates("method").sort_values(
        "kind", key=lambda kinds: kinds.map(order.index), kind="stable"
    )
    known = [
        name for name in methods["method"] if summary.loc[summary["method"] == name, "value"].notna().any()
    ]
    kind = methods.set_index("method")["kind"]
    figure, axes = plt.subplots(
        1,
        len(scores),
        figsize=(1.6 + 2.3 * len(scores), 0.9 + 0.28 * len(known)),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    place = np.arange(len(known))
    color = [_COLORS[kind[name]] for name in known]
    for ax, score in zip(axes[0], scores, strict=True):
        part = summary[summary["score"] == score].set_index("method").reindex(known)
        units = table[table["score"] == score].groupby(["method", unit])["value"].mean()
        for i, name in enumerate(known):
            if name in units.index:
                values = units[name].to_numpy()
                ax.scatter(values, np.full(len(values), i), s=9, color=color[i], alpha=0.35, linewidths=0)
        ax.hlines(place, part["low"], part["high"], color=color, lw=1.6)
        ax.scatter(part["value"], place, s=26, color=color, zorder=3)
        if "mse" not in score:
            ax.axvline(0, color="black", lw=0.6, zorder=0)
        ax.set_xlabel(_label(score), fontsize=8)
        ax.tick_params(labelsize=8)
        clean(ax)
    axes[0, 0].set_yticks(place, known)
    axes[0, 0].set_ylim(len(known) - 0.5, -0.5)
    n = int(summary["n_units"].max())
    figure.suptitle(
        f"left out: {summary.attrs['held_out']}; means over {n} {unit}s, bars: 95% interval over them",
        fontsize=9,
    )
    return figure
