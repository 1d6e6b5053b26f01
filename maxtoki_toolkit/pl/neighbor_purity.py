"""Purity of the neighbours, beside baselines and chance."""

from __future__ import annotations

from anndata import AnnData
from matplotlib.axes import Axes

from .. import _keys
from ..results.store import read_table
from ._style import BASELINE, MODEL, NULL, clean, drawing


@drawing
def neighbor_purity(adata: AnnData, *, key: str = _keys.PURITY, ax: Axes | None = None) -> Axes:
    """Draw the scores of `mt.tl.neighbor_purity`.

    Parameters
    ----------
    adata
        Scored cells.
    {key}
    {ax}

    Returns
    -------
    The axes.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.load("heart_nuclei")[:100].copy()
    >>> model = mt.load_model("demo")
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.tl.embed(adata, model)
    >>> mt.tl.neighbor_purity(adata, model, groupby="cell_type")
    >>> mt.pl.neighbor_purity(adata).get_ylabel()
    'neighbours of the same cell type (%)'
    """
    import matplotlib.pyplot as plt

    table = read_table(adata, key, "scores")
    params = table.attrs
    if ax is None:
        _, ax = plt.subplots(figsize=(3.6, 3.4), layout="constrained")
    color = {"MaxToki": MODEL, "PCA": BASELINE}
    percent = 100 * table["purity"]
    error = 100 * table[["ci_low", "ci_high"]].sub(table["purity"], axis=0).abs().T.to_numpy()
    bars = ax.bar(table["embedding"], percent, color=[color.get(name, NULL) for name in table["embedding"]])
    ax.errorbar(table["embedding"], percent, yerr=error, fmt="none", color="black", capsize=3)
    ax.bar_label(bars, labels=[f"{value:.1f}" for value in percent], label_type="center", color="white")
    ax.set(
        ylim=(0, 100),
        ylabel=f"neighbours of the same {params['groupby'].replace('_', ' ')} (%)",
        title=f"{params['n_neighbors']} nearest neighbours, {params['n_cells']:,} cells\n(bars: 95% interval over cells)",
    )
    ax.title.set_fontsize(10)
    clean(ax)
    return ax
