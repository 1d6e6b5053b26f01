"""What speaks for the top genes of a screen, in each group of cells."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.figure import Figure

from .. import _keys
from ..get import target_evidence as get_evidence
from ..get.target_evidence import EXPRESSION, PERTURBATION
from ._style import drawing
from .perturbation import WORDS, effect_label

_CELL = 0.27  # inches between dots
_FEWEST = 3  # columns that a block is at least wide, for its title
_RIGHT, _LEGEND = 1.8, 2.3  # inches of the colour bars across, and of the sizes of dots down
_SMALLEST, _LARGEST = 12, 190  # areas of dots, in square points
_CAP = 4  # -log10 q of the largest dot


@drawing
def target_evidence(
    adata: AnnData,
    *,
    genes: Sequence[str] | None = None,
    n_genes: int = 15,
    group: str | None = None,
    k: int | None = None,
    tables: Mapping[str, pd.DataFrame] | None = None,
    key: str = _keys.PERTURBATION_STATS,
    slopes_key: str = _keys.AGE_SLOPE,
) -> Figure:
    r"""Draw edits, expression with age and tables of one's own side by side, for the top genes of a screen.

    Parameters
    ----------
    adata
        Cells with results of `mt.tl.perturbation_stats` and `mt.tl.expression_age_slope`.
    genes
        Symbols or Ensembl ids of screened genes, from the top; by default the `n_genes` that lie furthest
        from matched genes in `group`.
    n_genes
        How many genes, where none are given.
    group
        Group of cells in which the genes are chosen; by default "all", or the first.
    {k}
    tables
        Further evidence, a table a name; see `mt.get.target_evidence`.
    key, slopes_key
        Keys in `.uns` of the two results.

    Returns
    -------
    The figure: a row a gene, a block of columns an evidence, a column a group. Colour is the effect, on a
    scale of the block; the area of a dot is -log10 q, up to q = 0.0001, and its rim is black where q < 0.05.
    Squares have no q value, crosses were not tested.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(600, 12)
    >>> mice = adata.uns["truth"]["age_genes"].query("cell_type == 'fibroblast'")
    >>> mice = mice.rename(columns={"symbol": "gene", "log2_fold": "effect"})[["gene", "effect"]].assign(unit="log2 fold")
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.sample_prompts(adata, time_key="age_months", groupby=[], n_prompts=2, context_size=1, donor_key="donor_id")
    >>> mt.tl.perturb(adata, model, genes="all")
    >>> mt.tl.perturbation_stats(adata, min_donors=2)
    >>> mt.tl.expression_age_slope(adata, time_key="age_months", donor_key="donor_id")
    >>> figure = mt.pl.target_evidence(adata, tables={"shortened telomeres": mice})
    >>> [ax.get_title() for ax in figure.axes[:3]]
    ['inhibition\nin silico', 'expression\nwith age', 'shortened\ntelomeres']
    """
    import matplotlib.pyplot as plt

    table = get_evidence(
        adata, genes=genes, n_genes=n_genes, group=group, k=k, tables=tables, key=key, slopes_key=slopes_key
    )
    blocks = dict(list(table.groupby("evidence", sort=False)))
    symbols = table.drop_duplicates("gene").set_index("gene")["symbol"].astype(str)
    columns = {name: list(dict.fromkeys(part["group"])) for name, part in blocks.items()}
    widths = [_CELL * (max(len(own), _FEWEST) + 0.4) for own in columns.values()]
    titles, labels = zip(*[_words(name, table, part) for name, part in blocks.items()], strict=True)
    # Sizes in inches, so that dots of neighbours never meet, whatever is drawn.
    names = 0.2 + 0.08 * symbols.str.len().max()
    below = 0.075 * max(len(name) for own in columns.values() for name in own)
    bars = sum(0.5 + 0.13 * label.count("\n") for label in labels)
    height = max(_CELL * len(symbols) + 0.8 + below, bars + _LEGEND)
    figure = plt.figure(
        figsize=(names + sum(widths) + 0.1 * len(blocks) + _RIGHT, height), layout="constrained"
    )
    figure.get_layout_engine().set(w_pad=0.06)
    left, right = figure.add_gridspec(1, 2, width_ratios=[names + sum(widths), _RIGHT])
    left = left.subgridspec(1, len(blocks), width_ratios=widths)
    right = right.subgridspec(len(blocks) + 1, 1, height_ratios=[0.3] * len(blocks) + [height - bars])
    axes = [figure.add_subplot(place) for place in left]
    for number, (name, part) in enumerate(blocks.items()):
        image = _draw(axes[number], part, symbols.index, columns[name])
        axes[number].set_title(_wrap(titles[number], widths[number] / 0.075), fontsize=8)
        bar_ax = figure.add_subplot(right[number], box_aspect=0.07, anchor="NW")
        figure.colorbar(image, cax=bar_ax, orientation="horizontal", ticks=plt.MaxNLocator(4, symmetric=True))
        bar_ax.set_title(labels[number], fontsize=7.5, loc="left")
        bar_ax.tick_params(labelsize=7)
    axes[0].set_yticks(range(len(symbols)), symbols, fontsize=8)
    _legend(figure.add_subplot(right[-1]), table)
    plt.close(figure)  # or a notebook would show it twice
    return figure


def _words(name: str, table: pd.DataFrame, part: pd.DataFrame) -> tuple[str, str]:
    """Title of a block, and what its colours are."""
    unit = part["unit"].iloc[0]
    if name == PERTURBATION:
        return f"{WORDS[table.attrs['mode']]} in silico", _wrap(effect_label(table))
    if name == EXPRESSION:
        return "expression with age", _wrap(unit)
    return name, f"{_wrap(name)}\n{_wrap(unit)}"


def _wrap(text: str, letters: float = 28) -> str:
    return "\n".join(textwrap.wrap(text, int(letters)))


def _area(q_values):
    """Area of a dot: -log10 q, up to a cap."""
    with np.errstate(divide="ignore"):
        return _SMALLEST + (_LARGEST - _SMALLEST) * np.clip(-np.log10(q_values), 0, _CAP) / _CAP


def _rim(q_values):
    return np.where(np.asarray(q_values) < 0.05, "black", "0.65")


def _draw(ax, part: pd.DataFrame, genes: pd.Index, groups: list[str]):
    """One block: a dot, a square or a cross for each gene and group."""
    column, row = pd.Index(groups).get_indexer(part["group"]), genes.get_indexer(part["gene"])
    effect, q_value = part["effect"].to_numpy(), part["q_value"].to_numpy()
    known, sized = np.isfinite(effect), np.isfinite(effect) & np.isfinite(q_value)
    reach = np.abs(effect[known]).max(initial=0) or 1.0
    color = {"cmap": "RdBu_r", "vmin": -reach, "vmax": reach}
    image = ax.scatter(
        column[sized], row[sized], _area(q_value[sized]), effect[sized], edgecolors=_rim(q_value[sized]), linewidths=0.8, **color
    )  # fmt: skip
    bare = known & ~sized
    ax.scatter(
        column[bare], row[bare], 70, effect[bare], marker="s", edgecolors="0.65", linewidths=0.8, **color
    )
    ax.scatter(column[~known], row[~known], 12, "0.7", marker="x", linewidths=0.8)
    middle, half = (len(groups) - 1) / 2, (max(len(groups), _FEWEST) + 0.4) / 2
    ax.set(xlim=(middle - half, middle + half), ylim=(len(genes) - 0.3, -0.7), yticks=[])
    names = ["all cells" if name == "all" else name for name in groups]
    ax.set_xticks(range(len(groups)), names, rotation=90, fontsize=8)
    ax.tick_params(length=0)
    return image


def _legend(ax, table: pd.DataFrame) -> None:
    """Sizes of dots and other marks, in axes of their own."""
    ax.set_axis_off()
    levels = {"1": 1.0, "0.1": 0.1, "0.01": 0.01, "0.001": 0.001, "≤ 0.0001": 0.0001}
    for name, q_value in levels.items():
        ax.scatter([], [], _area(q_value), "white", edgecolors=[str(_rim(q_value))], lw=0.8, label=name)
    known = table["effect"].notna()
    if (known & table["q_value"].isna()).any():
        ax.scatter([], [], 70, "white", marker="s", edgecolors="0.65", lw=0.8, label="no q value")
    if not known.all():
        ax.scatter([], [], 12, "0.7", marker="x", lw=0.8, label="not tested")
    ax.legend(
        title="q value (area: −log10 q;\nblack rim: q < 0.05)", title_fontsize=7.5, fontsize=7.5, frameon=False, loc="upper left",
        alignment="left", labelspacing=1.1, handletextpad=0.9, borderaxespad=0,
    )  # fmt: skip
