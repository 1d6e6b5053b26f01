"""The ranks themselves, cells by genes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from matplotlib.figure import Figure

from .. import _keys
from .._features import find_genes, symbols
from .._validate import require_rank
from ..pp._design import known_cells
from ._style import category_colors, drawing

_MOST_GROUPS = 30  # more have no room for their names


@drawing
def rank_heatmap(
    adata: AnnData,
    *,
    groupby: str | None = None,
    genes: Sequence[str] | None = None,
    n_genes: int = 5,
    n_cells: int = 40,
    rng: int = 0,
) -> Figure:
    """Draw the rank of genes in single cells, group by group.

    Parameters
    ----------
    adata
        Rank-encoded cells.
    groupby
        Column of `.obs` that groups the cells.
    genes
        Genes to show: symbols, Ensembl ids or `.var_names`. By default, the `n_genes` of each group that
        are ranked highest there compared with the other groups.
    n_genes
        Genes a group.
    n_cells
        Cells a group, drawn at random.
    rng
        Seed of that draw.

    Returns
    -------
    A figure: a row a gene, a column a cell. Dark is a high rank; white is not expressed.

    Raises
    ------
    KeyError
        If `groupby` or a gene is not found.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.load("heart_nuclei")
    >>> mt.pp.rank_value_encode(adata, mt.load_model("demo"))
    >>> fig = mt.pl.rank_heatmap(adata, groupby="cell_type", n_genes=3)
    """
    import matplotlib.pyplot as plt
    from matplotlib.colors import ListedColormap, LogNorm

    require_rank(adata)
    adata, _ = known_cells(adata, groupby)
    if groupby is None:
        labels, groups = np.full(adata.n_obs, "all cells"), ["all cells"]
    else:
        column = adata.obs[groupby].astype("category").cat.remove_unused_categories()
        groups = [str(group) for group in column.cat.categories]
        labels = np.array([*groups, None], dtype=object)[column.cat.codes]  # None where it is missing
    # The colours that scanpy's plots give the same groups, where they are known.
    colors = list(adata.uns.get(f"{groupby}_colors", []))
    colors = colors if len(colors) == len(groups) else category_colors(len(groups))
    every = len(groups)
    if every > _MOST_GROUPS:
        sizes = column.value_counts(sort=False).to_numpy()
        largest = np.sort(np.argsort(-sizes, kind="stable")[:_MOST_GROUPS])
        groups, colors = [groups[i] for i in largest], [colors[i] for i in largest]
    ranks = sp.csr_matrix(adata.layers[_keys.RANK])
    columns = _typical_genes(ranks, labels, groups, n_genes) if genes is None else find_genes(adata, genes)

    generator = np.random.default_rng(rng)
    cells = [np.flatnonzero(labels == group) for group in groups]
    cells = [generator.permutation(rows)[:n_cells] for rows in cells]
    sizes = [len(rows) for rows in cells]
    shown = ranks[np.concatenate(cells)][:, columns].toarray().T.astype(float)
    shown[shown == 0] = np.nan

    height = 0.16 * len(columns) + 1.6
    fig, (strip, ax) = plt.subplots(
        2, 1, figsize=(8.5, height), height_ratios=[0.18, height - 1.4], sharex=True, layout="constrained"
    )
    strip.imshow(
        np.repeat(np.arange(len(groups)), sizes)[None],
        aspect="auto",
        cmap=ListedColormap(colors),
        interpolation="none",
    )
    edges = np.cumsum([0, *sizes])
    strip.set(yticks=[], xticks=[])
    middles = (edges[:-1] + edges[1:] - 1) / 2
    # Names at this angle need a fifth of an inch each, of about six.
    apart = _spread(middles, gap=0.21 * edges[-1] / 6.2)
    for middle, place, right, group in zip(middles, apart, edges[1:], groups, strict=True):
        strip.annotate(
            group,
            (middle, -0.5),
            (place, -1.2),
            ha="left",
            va="bottom",
            rotation=45,
            rotation_mode="anchor",
            fontsize=8,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": "0.5", "lw": 0.6, "shrinkA": 0, "shrinkB": 0},
        )
        ax.axvline(right - 0.5, color="black", lw=0.5)
    image = ax.imshow(
        shown, aspect="auto", cmap="viridis", norm=LogNorm(1, max(np.nanmax(shown), 2)), interpolation="none"
    )
    ax.set_yticks(range(len(columns)), symbols(adata)[columns], fontsize=7)
    which = f" ({len(groups)} largest of {every} groups)" if len(groups) < every else ""
    ax.set(xticks=[], xlabel=f"cells, {n_cells} at most of each group" + which)
    bar = fig.colorbar(image, cax=ax.inset_axes((1.02, 0.35, 0.02, 0.3)))
    bar.set_label("rank in the cell (1: highest)")
    bar.ax.yaxis.set_major_formatter("{x:,.0f}")
    bar.ax.invert_yaxis()
    plt.close(fig)  # or a notebook would show it twice
    return fig


def _spread(places: np.ndarray, gap: float) -> np.ndarray:
    """Rising places moved apart, as little to the right as is needed."""
    steps = gap * np.arange(len(places))
    return np.maximum.accumulate(places - steps) + steps


def _typical_genes(ranks: sp.csr_matrix, labels: np.ndarray, groups: list[str], n_genes: int) -> np.ndarray:
    """Columns that rank higher in each group than elsewhere, group by group, none twice."""
    # A score that is 1 for the first gene, falls to 0 for the last, and is 0 for genes not expressed.
    length = np.diff(ranks.indptr)
    score = ranks.astype(np.float32)
    score.data = 1 - (score.data - 1) / np.repeat(length, length)
    member = sp.csr_matrix(np.array([labels == group for group in groups], dtype=np.float32))
    size = np.asarray(member.sum(axis=1))
    inside = (member @ score).toarray()
    outside = (np.asarray(score.sum(axis=0)) - inside) / np.maximum(len(labels) - size, 1)
    lead = inside / size - (outside if len(groups) > 1 else 0)
    chosen: list[int] = []
    for row in lead:
        best = [
            column
            for column in np.argsort(-row, kind="stable")[: n_genes + len(chosen)]
            if column not in chosen
        ]
        chosen += best[:n_genes]
    return np.array(chosen)
