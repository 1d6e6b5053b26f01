"""Ages that were read, against known ages."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .. import _keys
from ..results.store import read_table
from ._style import BASELINE, MODEL, clean, drawing

_ACROSS = 3  # panels in a row


@drawing
def predicted_ages(adata: AnnData, *, key: str = _keys.PREDICT_AGE) -> Figure:
    """Draw the age that is read of each donor against the known one, a panel for each group of cells.

    Parameters
    ----------
    {adata}
    {key}

    Returns
    -------
    The figure. Reference donors, each read by a fit without the donor, show how far the others can be relied
    on; donors without a known age stand at the right edge. Bars are the intervals. Groups without ages are
    named in the title.

    Raises
    ------
    KeyError
        If there is no result.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(120, 12)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.tl.predict_age(adata, model, time_key="age_months", donor_key="donor_id", groupby=[],
    ...     sampling=mt.tl.AgeSampling(n_contexts=1))
    >>> len(mt.pl.predicted_ages(adata).axes)
    1
    """
    import matplotlib.pyplot as plt

    donors, groups = (read_table(adata, key, name) for name in ("donors", "groups"))
    shown = groups[groups["group"].isin(donors.loc[donors["predicted"].notna(), "group"])]
    n = max(len(shown), 1)
    across = min(n, _ACROSS)
    down = -(-n // across)
    figure, axes = plt.subplots(
        down, across, figsize=(0.6 + 2.9 * across, 0.8 + 2.8 * down), layout="constrained", squeeze=False
    )
    for ax in axes.ravel()[n:]:
        ax.remove()
    unit = donors.attrs["unit"]
    if not len(shown):
        axes[0, 0].text(0.5, 0.5, "no age is read\nfrom any group", ha="center", va="center", fontsize=9)
        axes[0, 0].set_axis_off()
    for ax, row in zip(axes.ravel(), shown.itertuples(), strict=False):
        _panel(ax, donors[(donors["group"] == row.group) & donors["predicted"].notna()], row, unit)
    left_out = groups.loc[~groups["group"].isin(shown["group"]), "group"].tolist()
    if left_out and len(shown):
        figure.suptitle(f"No age is read from: {', '.join(left_out)}", fontsize=8, x=0.01, ha="left")
    if len(shown):
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def _panel(ax: Axes, donors: pd.DataFrame, row, unit: str) -> None:
    reach = [donors[name].to_numpy() for name in ("known", "predicted", "low", "high")]
    low, high = np.nanmin(np.concatenate(reach)), np.nanmax(np.concatenate(reach))
    margin = 0.04 * max(high - low, 1)
    limits = (low - margin, high + margin)
    ax.plot(limits, limits, color="black", lw=0.8, ls=(0, (4, 3)), label="read = known")
    edge = limits[1] - margin
    for reference, color, label in [(True, BASELINE, "reference donors"), (False, MODEL, "other donors")]:
        part = donors[donors["reference"] == reference]
        if not len(part):
            continue
        x = part["known"].fillna(edge)
        ax.vlines(x, part["low"], part["high"], color=color, lw=0.8, alpha=0.5)
        ax.scatter(x, part["predicted"], s=16, color=color, lw=0, label=label, zorder=3)
    errors = f"median error {row.median_error:.0f} {unit}, of the mean age {row.median_error_mean_age:.0f}"
    ax.set_title(f"{row.group}, r = {row.r:.2f}\n{errors}", fontsize=7.5, loc="left")
    ticks = MaxNLocator(5, integer=True).tick_values(*limits)
    ax.set(xticks=ticks, yticks=ticks)
    ax.set(
        xlim=limits, ylim=limits, aspect="equal", xlabel=f"known age ({unit})", ylabel=f"age read ({unit})"
    )
    ax.tick_params(labelsize=8)
    clean(ax)
