"""Which labels neighbour which: a heat map for each column of labels."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from matplotlib.figure import Figure

from .. import _keys
from ..results.store import read_table
from ._style import drawing


@drawing
def neighborhood_enrichment(adata: AnnData, *, key: str = _keys.NEIGHBORHOODS, alpha: float = 0.05) -> Figure:
    """Draw the log2 enrichment of pairs of labels; a dot marks those that pass both corrections.

    Parameters
    ----------
    adata
        Cells with a result of `mt.tl.neighborhood_enrichment`.
    {key}
    alpha
        False discovery rate of the dots, by the permutations and, where there are three or more, over donors
        (or images).

    Returns
    -------
    The figure: a panel a column of labels, rows the cells and columns their neighbours; pairs that no image
    tells of are grey.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.tissue(1000)
    >>> mt.tl.neighborhood_enrichment(adata, groupby="cell_type", library_key="image_id", donor_key="donor_id",
    ...                               n_permutations=99, distance_unit="µm")
    >>> len(mt.pl.neighborhood_enrichment(adata).axes)
    2
    """
    import matplotlib.pyplot as plt

    pairs = read_table(adata, key, "pairs")
    columns = list(dict.fromkeys(pairs["groupby"]))
    shown = pairs["log2_enrichment"].abs()
    limit = float(shown[np.isfinite(shown)].max()) if np.isfinite(shown).any() else 1.0
    most = max(pairs.loc[pairs["groupby"] == column, "label"].nunique() for column in columns)
    side = 1.2 + 0.27 * most
    figure, axes = plt.subplots(
        1,
        len(columns),
        figsize=(len(columns) * (side + 1) + 0.6, side + 1),
        layout="constrained",
        squeeze=False,
    )
    colors = plt.get_cmap("RdBu_r").with_extremes(bad="#dddddd")
    called = pairs["q_value"] < alpha
    if pairs["unit_q_value"].notna().any():
        called &= pairs["unit_q_value"] < alpha
    for ax, column in zip(axes[0], columns, strict=True):
        part = pairs[pairs["groupby"] == column]
        names = list(dict.fromkeys(part["label"]))
        table = part["log2_enrichment"].to_numpy().reshape(len(names), -1)
        drawn = ax.imshow(table, cmap=colors, vmin=-limit, vmax=limit)
        rows, others = np.nonzero(called[part.index].to_numpy().reshape(table.shape))
        dark = np.abs(table[rows, others]) > 0.6 * limit
        ax.scatter(others, rows, s=7, c=np.where(dark, "white", "black"), lw=0)
        ax.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
        ax.set_yticks(range(len(names)), names, fontsize=8)
        ax.set_xlabel("neighbour", fontsize=9)
        ax.set_ylabel("cell", fontsize=9)
        ax.set_title(column.replace("_", " "), fontsize=10)
    bar = figure.colorbar(drawn, ax=axes[0], shrink=0.7)
    bar.set_label("observed / expected neighbours (log2)", fontsize=9)
    of = pairs.attrs
    figure.suptitle(
        f"mean over {of['n_units']} {of['units'] if of['n_units'] > 1 else of['units'][:-1]}; dots: q < {alpha:g}",
        fontsize=9,
    )
    return figure
