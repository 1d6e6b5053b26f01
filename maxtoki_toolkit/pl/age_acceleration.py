"""By how many years conditions look older."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from matplotlib.figure import Figure

from .. import _keys
from ..results.store import read_table
from ._style import BASELINE, MODEL, NULL, clean, drawing

_LABELS = {
    "MaxToki": "MaxToki",
    "ridge_embedding": "ridge on embeddings",
    "ridge_expression": "ridge on expression",
}
_NOTE = {"fontsize": 7, "va": "center", "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.5}}
_COLORS = {"MaxToki": MODEL, "ridge_embedding": NULL, "ridge_expression": BASELINE}


@drawing
def age_acceleration(
    adata: AnnData, *, truth: dict[str, float] | None = None, key: str = _keys.AGE_ACCELERATION
) -> Figure:
    """Draw the effects of each condition, group by group.

    Parameters
    ----------
    {adata}
    truth
        Effect of each condition, where it is known, as in a simulation.
    {key}

    Returns
    -------
    The figure: a panel a condition, a row a group; effects with 95% intervals over donors, of the model and
    the baselines. Filled where q < 0.05; "age not read" where there is no effect; a dashed line at the truth;
    a triangle at the edge where an interval goes on.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(400, 40)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.match_ages(
    ...     adata, condition_key="condition", control="control", time_key="age_months", donor_key="donor_id")
    >>> mt.tl.age_acceleration(adata, model, sampling=mt.tl.AgeSampling(n_cells=2, n_contexts=1), baselines=False)
    >>> len(mt.pl.age_acceleration(adata).axes)
    4
    """
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    effects = read_table(adata, key, "effects")
    unit = effects.attrs["unit"]
    conditions, groups, predictors = (
        list(dict.fromkeys(effects[c])) for c in ("condition", "group", "predictor")
    )
    # Room for the effects and most of their intervals; a few wide ones leave the figure.
    known = effects.dropna(subset="effect_low")
    points = [
        *known["effect"].abs(),
        *(abs(truth[name]) for name in conditions if truth and name in truth),
        0.0,
    ]
    ends = known[["effect_low", "effect_high"]].abs().to_numpy()
    reach = 1.1 * max(1.3 * np.quantile(points, 0.95), np.quantile(ends, 0.8) if len(ends) else 1.0)
    height = 1.5 + len(groups) * (0.14 + 0.13 * len(predictors))
    figure, axes = plt.subplots(
        1,
        len(conditions),
        figsize=(1.4 + 2.3 * len(conditions), height),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for ax, condition in zip(axes[0], conditions, strict=True):
        ax.axvline(0, color="black", lw=0.8)
        if truth is not None and condition in truth:
            ax.axvline(truth[condition], color="black", lw=1, ls=(0, (4, 3)))
        n_read = effects[effects["condition"] == condition].groupby("group")["effect"].count()
        unread = set(n_read.index[n_read == 0])
        for i, predictor in enumerate(predictors):
            rows = effects[(effects["condition"] == condition) & (effects["predictor"] == predictor)]
            place = np.array([groups.index(group) for group in rows["group"]], dtype=float)
            place += (i - (len(predictors) - 1) / 2) * 0.6 / max(len(predictors), 2)
            known = np.isfinite(rows["effect_low"].to_numpy())
            called = (rows["q_value"] < 0.05).to_numpy()
            color = _COLORS[predictor]
            ax.hlines(
                place[known], rows["effect_low"][known], rows["effect_high"][known], color=color, lw=1.4
            )
            # What lies beyond the axis is pointed at.
            for end, beyond, marker in (
                (-reach, rows["effect_low"] < -reach, 4),
                (reach, rows["effect_high"] > reach, 5),
            ):
                some = known & beyond.to_numpy()
                ax.scatter(
                    np.full(some.sum(), end), place[some], s=26, color=color, marker=marker, clip_on=False
                )
            for filled in (True, False):
                some = known & (called == filled)
                ax.scatter(
                    rows["effect"][some],
                    place[some],
                    s=20,
                    facecolor=color if filled else "white",
                    edgecolor=color,
                    zorder=3,
                )
            for y in place[(rows["effect"].isna() & ~rows["group"].isin(unread)).to_numpy()]:
                ax.text(0, y, "  age not read", color=color, **_NOTE)
        for group in unread:
            ax.text(0, groups.index(group), "  age not read", color="0.5", **_NOTE)
        first = effects[(effects["condition"] == condition) & (effects["group"] == groups[0])].iloc[0]
        ax.set_title(
            f"{condition}\n{first['n_donors_condition']} against {first['n_donors_control']} donors",
            fontsize=9,
        )
        ax.set(xlim=(-reach, reach), xlabel=f"age acceleration ({unit})")
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.xaxis.label.set_size(9)
        ax.tick_params(labelsize=8)
        clean(ax)
    axes[0, 0].set_yticks(range(len(groups)), groups)
    axes[0, 0].set_ylim(len(groups) - 0.5, -0.5)
    handles = [
        plt.Line2D([], [], color=_COLORS[name], marker="o", markersize=4.5, label=_LABELS[name])
        for name in predictors
    ]
    handles.append(
        plt.Line2D(
            [], [], color="black", marker="o", mfc="white", ls="", markersize=4.5, label="hollow: q ≥ 0.05"
        )
    )
    if truth is not None:
        handles.append(plt.Line2D([], [], color="black", lw=1, ls=(0, (4, 3)), label="planted"))
    columns = min(len(handles), int(figure.get_figwidth() / 1.5))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
    return figure
