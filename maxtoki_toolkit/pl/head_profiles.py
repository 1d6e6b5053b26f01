"""What each head does in each cell type."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from matplotlib.figure import Figure

from .. import _keys
from ..results.store import read_table
from ._heads import DIVERGING
from ._style import drawing


@drawing
def head_profiles(adata: AnnData, *, key: str = _keys.HEAD_PROFILES) -> Figure:
    """Draw the profile of each head over the groups, like heads and like groups side by side.

    Parameters
    ----------
    {adata}
    {key}

    Returns
    -------
    The figure: a column a head, a row a group; the difference of the group from the donors' means, over the
    head's standard deviation between groups, with a point where q < 0.05. Above, the specificity of each
    head, filled where q < 0.05, and what permuted groups give (grey line).

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.tl.attention(adata, model, groupby="cell_type", donor_key="donor_id", n_cells=1)
    >>> mt.tl.head_profiles(adata, n_permutations=99)
    >>> len(mt.pl.head_profiles(adata).axes)
    4
    """
    import matplotlib.pyplot as plt
    from scipy.cluster.hierarchy import dendrogram

    table = read_table(adata, key, "profiles")
    heads = read_table(adata, key, "heads")
    difference = table.pivot(index="group", columns="name", values="difference").dropna(how="all")
    called = table.pivot(index="group", columns="name", values="q_value").loc[difference.index] < 0.05
    scale = difference.std(axis=0).to_numpy()
    values = difference.to_numpy() / np.where(scale > 1e-5, scale, np.inf)
    rows, columns = _tree(values), _tree(values.T)
    of_rows, of_columns = (
        np.arange(n) if tree is None else np.array(dendrogram(tree, no_plot=True)["leaves"])
        for tree, n in [(rows, values.shape[0]), (columns, values.shape[1])]
    )
    values = values[np.ix_(of_rows, of_columns)]
    names = difference.columns[of_columns]
    heads = heads.set_index("name").loc[names]

    width = float(np.clip(3.6 + 0.2 * len(names), 5.5, 18))
    figure = plt.figure(figsize=(width, 2.9 + 0.2 * len(values)), layout="constrained")
    grid = figure.add_gridspec(
        2,
        2,
        height_ratios=[1.0, 0.9 + 0.2 * len(values)],
        width_ratios=[width - 1.6, 0.5],
        wspace=0.01,
        hspace=0.02,
    )
    top = figure.add_subplot(grid[0, 0])
    significant = (heads["q_value"] < 0.05).to_numpy()
    place = np.arange(len(names))
    top.bar(
        place,
        heads["specificity"],
        0.75,
        color=np.where(significant, "#0072B2", "white"),
        edgecolor="#0072B2",
        lw=0.8,
    )
    top.step(
        np.r_[place - 0.5, place[-1] + 0.5],
        np.r_[heads["null_mean"], heads["null_mean"].iloc[-1]],
        where="post",
        color="0.4",
        lw=1,
    )
    top.set(xlim=(-0.5, len(names) - 0.5), xticks=[], ylim=(0, 1))
    top.set_ylabel("specificity", fontsize=8)
    top.tick_params(labelsize=7)
    top.spines[["top", "right"]].set_visible(False)
    top.set_title(
        f"{table.attrs['unit']}; filled, ●: q < 0.05; grey: permuted groups", fontsize=8.5, loc="left"
    )
    ax = figure.add_subplot(grid[1, 0])
    image = ax.imshow(values, cmap=DIVERGING, vmin=-2.5, vmax=2.5, aspect="auto", interpolation="none")
    at = np.nonzero(called.to_numpy()[np.ix_(of_rows, of_columns)])
    ax.scatter(at[1], at[0], s=5, c=np.where(np.abs(values[at]) > 1.7, "white", "black"), linewidths=0)
    ax.set_xticks(place, names, rotation=90, fontsize=6.5 if len(names) > 40 else 7.5)
    ax.set_yticks(range(len(values)), difference.index[of_rows], fontsize=8)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    side = figure.add_subplot(grid[1, 1])
    side.axis("off")
    if rows is not None:
        dendrogram(
            rows, orientation="right", ax=side, no_labels=True, color_threshold=0, above_threshold_color="0.4"
        )
        side.set_ylim(10 * len(values), 0)
    bar = figure.colorbar(image, ax=[ax, side], shrink=0.6, aspect=16, extend="both")
    bar.set_label("difference of the group\n(standard deviations of the head)", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    bar.outline.set_visible(False)
    plt.close(figure)  # or a notebook would show it twice
    return figure


def _tree(values: np.ndarray):
    """Rows joined by likeness; `None` where there is nothing to join."""
    from scipy.cluster.hierarchy import linkage

    return linkage(np.nan_to_num(values), "average", optimal_ordering=True) if len(values) > 2 else None
