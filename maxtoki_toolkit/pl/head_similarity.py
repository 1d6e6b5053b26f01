"""Which heads look at the same genes."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes

from .. import _keys
from ..get import head_similarity as get_similarity
from ._heads import DIVERGING
from ._style import drawing


@drawing
def head_similarity(adata: AnnData, *, key: str = _keys.HEAD_SIMILARITY, ax: Axes | None = None) -> Axes:
    """Draw how alike heads are in the genes they look at, like heads side by side.

    Parameters
    ----------
    {adata}
    {key}
    {ax}

    Returns
    -------
    The axes. Below the diagonal, the similarity in all cells; above, one head in one half of the donors and
    the other in the other; on the diagonal, that of a head with itself. Grey where a head treats all genes
    alike.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.tl.attention(adata, model, donor_key="donor_id", n_cells=3)
    >>> mt.tl.head_similarity(adata)
    >>> mt.pl.head_similarity(adata).get_title(loc="left").split(":")[0]
    'lower left'
    """
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    table = get_similarity(adata, key=key)
    names = table.attrs["order"]
    n = len(names)
    values = np.full((n, n), np.nan)
    first, second = np.triu_indices(n, 1)
    values[second, first], values[first, second] = table["similarity"], table["replicated"]
    reliability = dict(zip(table["head_1"], table["reliability_1"], strict=True))
    reliability |= dict(zip(table["head_2"], table["reliability_2"], strict=True))
    values[np.arange(n), np.arange(n)] = [reliability[name] for name in names]
    if ax is None:
        side = float(np.clip(1.4 + 0.2 * n, 4.2, 14))
        _, ax = plt.subplots(figsize=(side + 1.2, side + 0.4), layout="constrained")
    cmap = mpl.colormaps[DIVERGING].with_extremes(bad="0.85")
    image = ax.imshow(values, cmap=cmap, vmin=-1, vmax=1, interpolation="none")
    size = 7.5 if n <= 40 else 5.5
    ax.set_xticks(range(n), names, rotation=90, fontsize=size)
    ax.set_yticks(range(n), names, fontsize=size)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.7, aspect=18)
    bar.set_label("Spearman correlation over genes\nof attention beyond position", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    ax.set_title(
        "lower left: all donors\nupper right, diagonal: one half against the other", fontsize=9, loc="left"
    )
    return ax
