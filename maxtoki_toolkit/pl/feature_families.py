"""Families of features as a tree, with how far each would be found again."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.figure import Figure

from .. import _keys
from ..results.store import read_table
from ._style import MODEL, NULL, clean, drawing

_N_GENES = 5
_LONGEST = 24  # letters of a group's name


@drawing
def feature_families(adata: AnnData, *, key: str = _keys.FEATURE_FAMILIES, group: str = "all") -> Figure:
    """Draw the tree of the families of features, with their size, support and genes.

    Parameters
    ----------
    {adata}
    {key}
    group
        Group of cells, where there are several (`groupby`).

    Returns
    -------
    The figure, a row a family. Left, the tree: joints lie at the mean phi between two branches, ends at that
    within a family. Middle, the mean best overlap with the families of bootstrap samples and what 95% of the
    samples have; filled where it is above the grey range, below which 95% of the families of independent
    features lie. Right, number of features, where they are most active if there are groups, and genes.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.load("heart_nuclei")[:50].copy()
    >>> model = mt.load_model("demo")
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.tl.feature_families(adata, model, mt.load_sae("demo"), n_bootstrap=2)
    >>> len(mt.pl.feature_families(adata).axes)
    2
    """
    import matplotlib.pyplot as plt

    families, tree = (read_table(adata, key, name) for name in ("families", "tree"))
    groups = list(dict.fromkeys(read_table(adata, key, "features")["group"]))
    if group not in groups:
        raise ValueError(f"There is no group {group!r}; choose from {', '.join(groups)}.")
    families = families[families["group"] == group].sort_values("family")
    tree = tree[tree["group"] == group]
    if families.empty:
        raise ValueError(f"There are no families in {group!r}: no three features are active together.")
    n = len(families)
    row, lines = _layout(tree, families["phi"].to_numpy())
    figure, (left, right) = plt.subplots(
        1,
        2,
        figsize=(9.2, 1.25 + 0.27 * n),
        sharey=True,
        layout="constrained",
        gridspec_kw={"width_ratios": [1.5, 1]},
    )
    for x, y in lines:
        left.plot(x, y, color="0.35", lw=1, solid_capstyle="round", zorder=1)
    size = families["size"].to_numpy()
    left.scatter(families["phi"], row, s=10 + 60 * size / size.max(), color=MODEL, lw=0, zorder=2)
    left.set_xlabel("mean phi, between branches\nand (dot) within a family", fontsize=8.5)
    left.margins(x=0.06)

    null = float(families["null_support_high"].iloc[0])
    right.axvspan(0, null, color=NULL, alpha=0.35, lw=0, zorder=0)
    right.hlines(row, families["support_low"], families["support_high"], color=MODEL, lw=1.5, zorder=2)
    face = np.where(families["supported"], MODEL, "white")
    right.scatter(families["support"], row, s=26, c=face, edgecolors=MODEL, lw=1.2, zorder=3)
    right.set_xlim(0, 1.02)
    right.set_xlabel("support (grey: families of\nindependent features, 95%)", fontsize=8.5)
    right.set_ylim(n - 0.5, -0.5)
    for ax in (left, right):
        clean(ax)
        ax.spines["left"].set_visible(False)
        ax.tick_params(labelsize=8)
        ax.tick_params(axis="y", length=0, labelleft=False)
    right.yaxis.tick_right()
    right.set_yticks(row, _labels(families), fontsize=8)
    right.tick_params(axis="y", length=0, labelright=True, pad=8)
    style = {"xytext": (8, 4), "textcoords": "offset points", "fontsize": 8, "color": "0.35"}
    head = f"family (features)  {'most active in: ' if _by_group(families) else ''}genes"
    right.annotate(head, (1, 1), xycoords="axes fraction", **style)
    params = families.attrs
    where = "" if group == "all" else f"{group}: "
    left.set_title(
        f"{where}{size.sum():,} features in {n} {'family' if n == 1 else 'families'}, active together "
        f"{'at genes' if params['on'] == 'genes' else 'in cells'}",
        fontsize=9,
        loc="left",
    )
    plt.close(figure)  # or a notebook would show it twice
    return figure


def _labels(families: pd.DataFrame) -> list[str]:
    """Number, size, group and genes of each family."""
    labels, several = [], _by_group(families)
    for row in families.itertuples():
        genes = ", ".join(row.top_genes.split(", ")[:_N_GENES])
        where = ""
        if several and row.most_active:
            short = row.most_active[: _LONGEST - 1] + "…" * (len(row.most_active) >= _LONGEST)
            where = f"{short}: "
        labels.append(f"{row.family} ({row.size})  {where}{genes}")
    return labels


def _by_group(families: pd.DataFrame) -> bool:
    """Whether it is known in which group each is most active."""
    return "most_active" in families and (families["group"] == "all").all()


def _layout(tree: pd.DataFrame, within: np.ndarray) -> tuple[np.ndarray, list[tuple[list, list]]]:
    """Row of each family, and the lines of the tree."""
    n = len(within)
    joints = tree[["left", "right"]].to_numpy(dtype=int)
    below = [[i] for i in range(n)]
    for a, b in joints:
        below.append([*below[a], *below[b]])
    row = np.argsort(below[-1])
    x, y, lines = [*within, *(1 - tree["height"])], [*row.astype(float)], []
    for at, (a, b) in enumerate(joints, n):
        lines.append(([x[a], x[at], x[at], x[b]], [y[a], y[a], y[b], y[b]]))
        y.append((y[a] + y[b]) / 2)
    return row, lines
