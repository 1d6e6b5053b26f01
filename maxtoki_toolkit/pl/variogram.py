"""How unlike cells are by their distance."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from matplotlib.figure import Figure

from .. import _keys
from ..results.store import read_table
from ._style import BASELINE, MODEL, NULL, clean, drawing

_LABELS = {
    "semivariance": "semivariance (squared unit of the value)",
    "mean squared distance": "mean squared distance (in the embedding)",
}


@drawing
def variogram(adata: AnnData, *, key: str = _keys.VARIOGRAM) -> Figure:
    """Draw variograms, a panel each, those of the baselines last.

    Parameters
    ----------
    adata
        Cells with a result of `mt.tl.variogram`.
    {key}

    Returns
    -------
    The figure: points with 95% intervals over donors (or images); the band holds 95% of the permutations
    within images; a dashed line at the range, with its interval shaded.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.tissue(1000)
    >>> mt.tl.variogram(adata, keys="field", library_key="image_id", donor_key="donor_id", n_permutations=39,
    ...                 distance_unit="µm")
    >>> mt.pl.variogram(adata).axes[0].get_xlabel()
    'distance (µm)'
    """
    import matplotlib.pyplot as plt

    bins, ranges = read_table(adata, key, "bins"), read_table(adata, key, "ranges")
    n_columns = min(len(ranges), 4)
    n_rows = -(-len(ranges) // n_columns)
    figure, axes = plt.subplots(
        n_rows, n_columns, figsize=(3.1 * n_columns, 2.8 * n_rows), layout="constrained", squeeze=False
    )
    for ax, (_, row) in zip(axes.flat, ranges.iterrows(), strict=False):
        part = bins[(bins["key"] == row["key"]) & (bins["baseline"] == row["baseline"])]
        color = BASELINE if row["baseline"] else MODEL
        x = part["distance"]
        ax.fill_between(x, part["null_low"], part["null_high"], color=NULL, alpha=0.35, lw=0)
        error = [part["value"] - part["ci_low"], part["ci_high"] - part["value"]]
        error = error if part["ci_low"].notna().any() else None
        ax.errorbar(x, part["value"], yerr=error, color=color, marker="o", ms=4, lw=1, elinewidth=1)
        said = "no range: near cells are like others" if np.isnan(row["range"]) else "still rising at the end"
        if np.isfinite(row["range"]):
            ax.axvline(row["range"], color="black", ls="--", lw=0.8)
            said = f"range {row['range']:.3g} {bins.attrs['distance_unit']}"
            if np.isfinite(row["range_low"]):
                high = min(row["range_high"], bins.attrs["max_distance"])
                ax.axvspan(row["range_low"], high, color="black", alpha=0.06, lw=0)
                end = f"{row['range_high']:.3g}" if np.isfinite(row["range_high"]) else "∞"
                said += f" [{row['range_low']:.3g}, {end}]"
        name = row["key"].replace("_", " ") + (" (baseline)" if row["baseline"] else "")
        ax.set_title(f"{name}\n{said}", fontsize=9)
        ax.set_xlabel(f"distance ({bins.attrs['distance_unit']})", fontsize=9)
        ax.set_ylabel(_LABELS.get(row["measure"], row["measure"]), fontsize=9)
        ax.set_xlim(0, bins.attrs["max_distance"])
        ax.tick_params(labelsize=8)
        clean(ax)
    for ax in list(axes.flat)[len(ranges) :]:
        ax.set_visible(False)
    return figure
