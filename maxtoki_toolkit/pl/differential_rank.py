"""How genes change rank in generated cells, against how they do in true ones."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes

from .. import _keys
from .._features import symbols
from ..results.store import read_table
from ._labels import label_points
from ._style import NULL, clean, drawing, with_interval

# Blue and vermilion are told apart without full colour vision.
_TOP = {"up": "#D55E00", "down": "#0072B2"}


@drawing
def differential_rank(
    adata: AnnData,
    *,
    group: str | None = None,
    n_named: int = 3,
    key: str = _keys.DIFFERENTIAL_RANK,
    ax: Axes | None = None,
) -> Axes:
    """Draw the change of each gene in generated cells against that in true cells.

    Parameters
    ----------
    {adata}
    group
        Group to draw, by default the first.
    n_named
        Genes to name on either side, those that truly change most.
    {key}
    {ax}

    Returns
    -------
    The axes: a point a gene. Coloured are the genes that truly rise and fall most, ringed those of them that
    change against their trend over all times. The title has the correlation with its 95% interval, beside
    interpolation.

    Raises
    ------
    ValueError
        If the group was not compared.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(400, 20)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.tl.differential_rank(
    ...     adata, model, generated=adata[:200].copy(), time_key="age_months", intervals=((240, 480), (720, 1080)))
    >>> mt.pl.differential_rank(adata).get_xlabel()
    'change in true cells (ranks)'
    """
    import matplotlib.pyplot as plt

    changes = read_table(adata, key, "genes")
    scores = read_table(adata, key, "scores")
    group = pick_group(changes["group"], group)
    changes = changes[changes["group"] == group]
    scores = scores[scores["group"] == group].set_index("predictor")
    if ax is None:
        _, ax = plt.subplots(figsize=(4.8, 4.8), layout="constrained")
    x, y = changes["true_change"].to_numpy(), changes["generated_change"].to_numpy()
    top = changes["top"].to_numpy()
    ax.axhline(0, color="0.8", lw=0.8, zorder=0)
    ax.axvline(0, color="0.8", lw=0.8, zorder=0)
    ax.scatter(
        x[top == ""], y[top == ""], s=5, color=NULL, alpha=0.6, lw=0, label="other genes", rasterized=True
    )
    for side, color in _TOP.items():
        here = top == side
        ax.scatter(x[here], y[here], s=12, color=color, lw=0, label=f"{here.sum()} most {side} in true cells")
    turning = changes["turning"].to_numpy(dtype=bool)
    if turning.any():
        ax.scatter(
            x[turning],
            y[turning],
            s=42,
            facecolor="none",
            edgecolor="black",
            lw=0.9,
            label="against their trend",
        )
    ours = scores.loc["generated"]
    title = f"r = {with_interval(ours['pearson'], ours['pearson_low'], ours['pearson_high'], decimals=2)}"
    if "interpolation" in scores.index:
        title += f"; interpolation {with_interval(scores.loc['interpolation', 'pearson'], np.nan, np.nan, decimals=2)}"
    ax.set_title(f"{'' if group == 'all' else group + chr(10)}{title}; {len(changes):,} genes", fontsize=9)
    ax.set(xlabel="change in true cells (ranks)", ylabel="change in generated cells (ranks)")
    # Below the axes nothing is covered, however the points lie.
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False, fontsize=7.5)
    clean(ax)
    ax.margins(0.1)  # room for names
    named = np.zeros(len(x), dtype=bool)
    if n_named:
        named[np.r_[np.argsort(x)[:n_named], np.argsort(x)[-n_named:]]] = True
    label_points(ax, x, y, np.where(named, _names(adata, changes["gene"]), ""))
    return ax


def pick_group(groups, group: str | None) -> str:
    """The group asked for, or the first."""
    there = list(dict.fromkeys(groups))
    if group is not None and group not in there:
        raise ValueError(f"No group {group!r} was compared; there are {there}.")
    return there[0] if group is None else group


def _names(adata: AnnData, genes) -> np.ndarray:
    """Symbols of Ensembl ids, where `.var` has them."""
    if _keys.ENSEMBL_ID not in adata.var:
        return np.asarray(genes, dtype=object)
    known = dict(zip(adata.var[_keys.ENSEMBL_ID].astype(str), symbols(adata), strict=True))
    return np.array([known.get(gene, gene) for gene in genes], dtype=object)
