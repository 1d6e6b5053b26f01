"""The ranks behind a change: generated cells above, true cells below."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from matplotlib.figure import Figure

from .. import _keys
from .._features import find_genes
from .._validate import require_rank
from ..results.store import read_table
from ._style import drawing
from .differential_rank import pick_group


@drawing
def differential_rank_heatmap(
    adata: AnnData,
    *,
    generated: AnnData,
    group: str | None = None,
    n_genes: int = 100,
    n_cells: int = 50,
    rng: int = 0,
    key: str = _keys.DIFFERENTIAL_RANK,
) -> Figure:
    """Draw the ranks of the genes that truly change most, in generated and in true cells.

    Parameters
    ----------
    adata
        True cells with a result of `mt.tl.differential_rank`.
    generated
        The generated cells that were compared.
    group
        Group to draw, by default the first.
    n_genes
        Genes that rise most, and as many that fall most, of those that the result counts as top.
    n_cells
        Cells of each interval, true and generated, drawn at random.
    rng
        Seed of that draw.
    {key}

    Returns
    -------
    A figure of two panels: a row a cell, those of the first interval above the line; a column a gene, from
    the one that rises most in true cells to the one that falls most. Dark is a high rank; white is not among
    the genes of the cell.

    Raises
    ------
    KeyError
        If the compared cells are not there.
    ValueError
        If the group was not compared.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(400, 20)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> some = adata[:200].copy()
    >>> mt.tl.differential_rank(
    ...     adata, model, generated=some, time_key="age_months", intervals=((240, 480), (720, 1080)))
    >>> fig = mt.pl.differential_rank_heatmap(adata, generated=some, n_genes=20)
    """
    import matplotlib.pyplot as plt
    from matplotlib.colors import LogNorm

    changes = read_table(adata, key, "genes")
    cells = read_table(adata, key, "cells")
    group = pick_group(changes["group"], group)
    changes = changes[(changes["group"] == group) & (changes["top"] != "")]
    changes = changes.sort_values("true_change", ascending=False, kind="stable")
    up, down = changes[changes["top"] == "up"][:n_genes], changes[changes["top"] == "down"][-n_genes:]
    genes = [*up["gene"], *down["gene"]]
    cells = cells[cells["group"] == group]
    draw = np.random.default_rng(rng)
    shown, sizes = [], []
    for source, where in (("generated", generated), ("true", adata)):
        require_rank(where)
        chosen = []
        for interval in (1, 2):
            names = cells.loc[
                (cells["source"] == source) & (cells["interval"] == interval), "cell"
            ].to_numpy()
            chosen.append(draw.permutation(names)[:n_cells])
        rows = where.obs_names.get_indexer(np.concatenate(chosen))
        if (rows < 0).any():
            raise KeyError(f"{(rows < 0).sum()} of the {source} cells that were compared are not there.")
        ranks = (
            sp.csr_matrix(where.layers[_keys.RANK])[rows][:, find_genes(where, genes)].toarray().astype(float)
        )
        ranks[ranks == 0] = np.nan
        shown.append(ranks)
        sizes.append([len(part) for part in chosen])

    fig, axes = plt.subplots(2, 1, figsize=(8.5, 5.2), sharex=True, layout="constrained")
    norm = LogNorm(1, max(np.nanmax(np.concatenate(shown), initial=2), 2))
    for ax, ranks, (first, second), source in zip(axes, shown, sizes, ("generated", "true"), strict=True):
        image = ax.imshow(ranks, aspect="auto", cmap="viridis", norm=norm, interpolation="none")
        ax.axhline(first - 0.5, color="black", lw=1)
        ax.axvline(len(up) - 0.5, color="black", lw=1)
        ax.set_yticks(
            [(first - 1) / 2, first + (second - 1) / 2],
            ["interval 1", "interval 2"],
            rotation=90,
            va="center",
        )
        ax.tick_params(length=0, labelsize=8)
        ax.set_ylabel(f"{source} cells", fontsize=9)
    centres = [(len(up) - 1) / 2, len(up) + (len(down) - 1) / 2]
    labels = [f"{len(up)} genes that rise in true cells", f"{len(down)} genes that fall"]
    kept = [i for i, part in enumerate((up, down)) if len(part)]
    axes[1].set_xticks([centres[i] for i in kept], [labels[i] for i in kept], fontsize=9)
    axes[0].tick_params(labelbottom=False)
    if group != "all":
        axes[0].set_title(group, fontsize=9)
    bar = fig.colorbar(image, ax=axes, shrink=0.5, pad=0.02)
    bar.set_label("rank in the cell (1: highest)", fontsize=9)
    bar.ax.yaxis.set_major_formatter("{x:,.0f}")
    bar.ax.invert_yaxis()
    plt.close(fig)  # or a notebook would show it twice
    return fig
