"""The entropy of the network of features along a course."""

from __future__ import annotations

from anndata import AnnData
from matplotlib.axes import Axes

from .. import _keys
from ..results.store import read_table
from ._style import NULL, clean, drawing


@drawing
def spectral_entropy(adata: AnnData, *, key: str = _keys.SPECTRAL_ENTROPY, ax: Axes | None = None) -> Axes:
    """Draw the entropy of each bin of a course, beside that of courses with times exchanged.

    Parameters
    ----------
    adata
        Cells with a result of `mt.tl.spectral_entropy`.
    {key}
    {ax}

    Returns
    -------
    The axes: a point a bin with its 95% interval (bootstrap); the band holds 95% of the permutations.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.load("myoblast_timecourse")
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model, force=True)
    >>> early, late = mt.load_sae("demo-early"), mt.load_sae("demo")
    >>> mt.tl.spectral_entropy(adata, model, early, later=late, time_key="Pseudotime", n_bins=2, n_features=4,
    ...                        n_cells=12, n_permutations=19)
    >>> mt.pl.spectral_entropy(adata).get_xlabel()
    'Pseudotime'
    """
    import matplotlib.pyplot as plt

    bins = read_table(adata, key, "bins")
    if ax is None:
        _, ax = plt.subplots(figsize=(4.2, 3.0), layout="constrained")
    middle = (bins["time_low"] + bins["time_high"]) / 2
    ax.fill_between(
        middle, bins["null_low"], bins["null_high"], color=NULL, alpha=0.35, lw=0, label="times exchanged"
    )
    ax.hlines(bins["entropy"], bins["time_low"], bins["time_high"], color="black", lw=0.8)
    ax.vlines(middle, bins["entropy_low"], bins["entropy_high"], color="black", lw=1)
    ax.plot(middle, bins["entropy"], marker="o", ms=5, lw=1, color="black", label="network of features")
    ax.set(
        xlabel=bins.attrs["time_key"],
        ylabel="entropy of the singular values (nats)",
        title=f"p = {bins.attrs['p_value']:.2g} ({bins.attrs['n_permutations']} permutations of {bins.attrs['exchanged']})",
    )
    for text in (ax.title, ax.yaxis.label):
        text.set_size(9)
    ax.margins(y=0.25)
    ax.legend(frameon=False, fontsize=8, ncols=2, loc="upper center")
    clean(ax)
    return ax
