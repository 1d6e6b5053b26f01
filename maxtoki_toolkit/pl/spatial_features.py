"""Moran's I of features beside its null and what lies in any tissue."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes

from .. import _keys
from ..results.store import read_table
from ._style import BASELINE, MODEL, NULL, clean, drawing


@drawing
def spatial_features(
    adata: AnnData, *, key: str = _keys.SPATIAL_FEATURES, n_features: int = 20, ax: Axes | None = None
) -> Axes:
    """Draw the features with the largest Moran's I, and the baselines.

    Parameters
    ----------
    adata
        Cells with a result of `mt.tl.spatial_features`.
    {key}
    n_features
        Features to draw.
    {ax}

    Returns
    -------
    The axes: Moran's I (filled) and what is left of it without density and library size (open), with 95%
    intervals over donors (or images); grey holds 95% of the permutations.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.tissue(1000)
    >>> mt.tl.spatial_features(adata, keys=["gradient", "field"], library_key="image_id", donor_key="donor_id",
    ...                        n_permutations=99)
    >>> [label.get_text() for label in mt.pl.spatial_features(adata).get_yticklabels()]
    ['gradient', 'field', 'cell density', 'library size']
    """
    import matplotlib.pyplot as plt

    features = read_table(adata, key, "features")
    of = features.attrs
    asked = features[~features["baseline"]].dropna(subset=["morans_i"])
    asked = asked.sort_values("morans_i", ascending=False, kind="stable").head(n_features)
    shown = pd.concat([asked, features[features["baseline"]]], ignore_index=True)
    if ax is None:
        _, ax = plt.subplots(figsize=(4.6, 1.3 + 0.24 * len(shown)), layout="constrained")
    y = np.arange(len(shown))
    ax.barh(
        y,
        shown["null_high"] - shown["null_low"],
        left=shown["null_low"],
        height=0.7,
        color=NULL,
        alpha=0.35,
        lw=0,
    )
    colors = np.where(shown["baseline"], BASELINE, MODEL)
    for name, low, high, shift, filled in (
        ("morans_i", "ci_low", "ci_high", -0.12, True),
        ("adjusted", "adjusted_low", "adjusted_high", 0.16, False),
    ):
        ax.hlines(y + shift, shown[low], shown[high], color=colors, lw=1)
        ax.scatter(
            shown[name], y + shift, s=22 if filled else 16, zorder=3, lw=1,
            facecolors=colors if filled else "white", edgecolors=colors,
        )  # fmt: skip
    ax.axvline(0, color="black", lw=0.6)
    ax.set_yticks(y, shown["feature"], fontsize=8)
    ax.invert_yaxis()
    ax.set_xlabel("Moran's I (-1 to 1)", fontsize=9)
    ax.set_title(
        f"filled: as it is; open: without density and library size\nmean and 95% interval over {of['n_units']} {of['units']}; "
        f"grey: permuted",
        fontsize=8,
    )
    clean(ax)
    return ax
