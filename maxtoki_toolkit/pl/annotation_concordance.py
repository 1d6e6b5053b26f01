"""What type generated cells are, by the type that was asked for."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes

from .. import _keys
from ..get import annotation_matrix
from ..results.store import read_table
from ._style import drawing, with_interval

_FEW = 16  # types up to which there is room for numbers


@drawing
def annotation_concordance(adata: AnnData, *, key: str = _keys.CONCORDANCE, ax: Axes | None = None) -> Axes:
    """Draw the types that a classifier gives to generated cells.

    Parameters
    ----------
    {adata}
    {key}
    {ax}

    Returns
    -------
    The axes: a row a prompted type, with its number of cells, and the share of them that is annotated with
    each type. Above, the accuracy with its 95% interval, of the true cells in their place, of the context
    cells, and by chance.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(400, 12)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.hold_out(adata, donor_key="donor_id", donors=0.5, time_key="age_months")
    >>> mt.pp.sample_prompts(
    ...     adata, time_key="age_months", groupby="cell_type", donor_key="donor_id", task="cell", n_prompts=4,
    ...     context_size=1, contexts="held_out", queries="held_out")
    >>> cells = mt.tl.generate(adata, model, max_genes=10)
    >>> mt.tl.annotation_concordance(adata, model, generated=cells, groupby="cell_type")
    >>> mt.pl.annotation_concordance(adata).get_xlabel()
    'annotated cell type'
    """
    import matplotlib.pyplot as plt

    scores = read_table(adata, key, "scores").set_index("cells")
    counts = annotation_matrix(adata, key=key)
    percent = 100 * counts.div(counts.sum(axis=1), axis=0).to_numpy()
    n_rows, n_columns = counts.shape
    if ax is None:
        size = (3.4 + 0.36 * n_columns, 2.6 + 0.36 * n_rows)
        _, ax = plt.subplots(figsize=size, layout="constrained")
    image = ax.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    if max(n_rows, n_columns) <= _FEW:
        for i, j in np.argwhere(counts.to_numpy() > 0):
            ink = "white" if percent[i, j] > 60 else "black"
            ax.text(j, i, f"{percent[i, j]:.0f}", ha="center", va="center", fontsize=7.5, color=ink)
    total = counts.sum(axis=1)
    ax.set_xticks(range(n_columns), counts.columns, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(n_rows), [f"{name} ({n:,})" for name, n in zip(counts.index, total, strict=True)])
    what = " and ".join(name.replace("_", " ") for name in scores.attrs["groupby"])
    ax.set(xlabel=f"annotated {what}", ylabel=f"prompted {what} (cells)")
    ax.tick_params(labelsize=8.5, length=0)
    ax.set_xticks(np.arange(n_columns + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(n_rows + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="0.9", lw=0.6)
    ax.tick_params(which="minor", length=0)
    ax.spines[:].set_visible(False)
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.6, aspect=22)
    bar.set_label("cells of the row (%)", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)

    shown = {
        name: with_interval(
            *100 * row[["accuracy", "accuracy_low", "accuracy_high"]].astype(float), decimals=0
        )
        for name, row in scores.iterrows()
    }
    unit = scores.iloc[0]["unit"]
    lines = [
        f"as prompted: {shown['generated']}% of {scores.iloc[0]['n_cells']:,} generated cells, "
        f"{scores.iloc[0]['n_units']:,} {unit}s",
        f"true cells in their place {shown['query']}%, last context cells {shown['context']}%",
        f"types permuted {shown['permuted']}%, majority {100 * scores.loc['majority', 'accuracy']:.0f}%",
    ]
    ax.set_title("\n".join(lines), fontsize=8.5, loc="left")
    return ax
