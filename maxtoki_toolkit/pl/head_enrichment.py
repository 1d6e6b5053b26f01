"""Which heads look at a gene set, layer by layer."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes

from .. import _keys
from ..results.store import read_table
from ._heads import as_grid, draw_grid
from ._style import drawing


@drawing
def head_enrichment(adata: AnnData, *, key: str = _keys.HEAD_ENRICHMENT, ax: Axes | None = None) -> Axes:
    """Draw how much more each head looks at a gene set than at matched genes.

    Parameters
    ----------
    {adata}
    {key}
    {ax}

    Returns
    -------
    The axes: a square a head, coloured by its log2 ratio; a point where q < 0.05.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.tl.attention(adata, model, donor_key="donor_id", n_cells=3)
    >>> mt.tl.head_enrichment(adata, n_permutations=99)
    >>> mt.pl.head_enrichment(adata).get_xlabel()
    'head'
    """
    import matplotlib.pyplot as plt

    table = read_table(adata, key, "heads")
    values = as_grid(table, "log2_ratio")
    called = as_grid(table, "q_value") < 0.05
    if ax is None:
        n_layers, n_heads = values.shape
        _, ax = plt.subplots(figsize=(2.6 + 0.32 * n_heads, 1.6 + 0.32 * n_layers), layout="constrained")
    image = draw_grid(ax, values, called, max(float(np.abs(values).max()), 0.05))
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.8, aspect=14)
    bar.set_label("attention received,\nlog2 of set over matched genes", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    ax.set_title(
        f"{table.attrs['gene_set']}: {table.attrs['n_genes_compared']} genes, {table.attrs['n_units']} "
        f"{_plural(str(table.attrs['unit_of_inference']))}\n● q < 0.05: {int(called.sum())} of {called.size} heads",
        fontsize=9,
        loc="left",
    )
    return ax


def _plural(unit: str) -> str:
    return "blocks of cells" if unit.startswith("block") else f"{unit}s"
