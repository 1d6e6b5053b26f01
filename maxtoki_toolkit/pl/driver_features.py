"""Which features start what others follow."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes

from .. import _keys
from ..results.store import read_table
from ._labels import label_points
from ._style import NULL, clean, drawing


@drawing
def driver_features(
    adata: AnnData, *, n_labels: int = 8, key: str = _keys.DRIVER_FEATURES, ax: Axes | None = None
) -> Axes:
    """Draw the score of each feature against that of a random direction of its length.

    Parameters
    ----------
    adata
        Cells with a result of `mt.tl.driver_features`.
    n_labels
        Features whose numbers are written, those with the highest scores.
    {key}
    {ax}

    Returns
    -------
    The axes: a point a feature; on the line it starts no more than any change of its size would.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.load("heart_nuclei")[:20].copy()
    >>> model = mt.load_model("demo")
    >>> mt.pp.rank_value_encode(adata, model)
    >>> early, late = mt.load_sae("demo-early"), mt.load_sae("demo")
    >>> mt.tl.feature_network(adata, model, early, later=late, n_features=20, n_cells=10)
    >>> mt.tl.driver_features(adata)
    >>> mt.pl.driver_features(adata).get_ylabel()
    'PageRank on reversed edges (share)'
    """
    import matplotlib.pyplot as plt

    table = read_table(adata, key, "features")
    if ax is None:
        _, ax = plt.subplots(figsize=(3.8, 3.6), layout="constrained")
    ends = [
        table[["pagerank", "null_pagerank"]].min().min(),
        table[["pagerank", "null_pagerank"]].max().max(),
    ]
    ax.plot(ends, ends, color=NULL, lw=1, zorder=0)
    ax.scatter(table["null_pagerank"], table["pagerank"], s=14, color="black", lw=0)
    ax.set(
        xlabel="the same for random directions, mean (share)",
        ylabel="PageRank on reversed edges (share)",
        title=f"rank correlation with strength {table.attrs['r_strength']:.2f}",
    )
    for text in (ax.title, ax.xaxis.label, ax.yaxis.label):
        text.set_size(9)
    ax.locator_params(nbins=5)
    named = table["pagerank"].rank(ascending=False) <= n_labels
    names = np.where(named, table["feature"].astype(str), "")
    clean(ax)
    label_points(ax, table["null_pagerank"], table["pagerank"], names)
    return ax
