"""One prompt as the model reads it: cells as ranked genes, the lapses between them, and what is asked for."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from matplotlib.axes import Axes

from .. import _keys
from .._features import symbols
from .._validate import require_rank
from ..pp._columns import unit_in_name
from ..results.store import read_result
from ._style import BASELINE, MODEL, NULL, drawing

_WIDTH, _GAP, _LINE = 1.0, 0.9, 0.16  # of a cell, between cells, of a gene
_LETTERS = 11  # of a gene's name


@drawing
def prompt(
    adata: AnnData, *, number: int = 0, n_genes: int = 6, key: str = _keys.PROMPTS, ax: Axes | None = None
) -> Axes:
    """Draw a prompt: its cells, each a list of genes by rank, at their times.

    Parameters
    ----------
    {adata}
    number
        Which prompt, counted from 0.
    n_genes
        Genes to name of each cell, from the first rank on.
    {key}
    {ax}

    Returns
    -------
    The axes: context cells in the order in which they are read, with the lapses between them; the query; what
    the model is asked for is orange. Below, the times of the cells.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.sample_prompts(adata, n_prompts=5)
    >>> mt.pl.prompt(adata).get_xlabel()
    'time of the cell (months)'
    """
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    require_rank(adata)
    stored = read_result(adata, key, "mt.pp.sample_prompts(adata, ...)")
    table, params = stored["prompts"], stored["params"]
    if number >= len(table):
        raise ValueError(f"number must be below {len(table)}, the prompts of .uns[{key!r}], got {number}.")
    if params["queries_elsewhere"]:
        raise ValueError("The query cells of these prompts are in another AnnData: draw prompts of this one.")
    row = table.iloc[number]
    contexts = [row[name] for name in table.filter(regex=r"^context_\d+$") if row[name]]
    steps = [row[f"lapse_{i}"] for i in range(len(contexts) - 1)]
    cells, lapses = [*contexts, row["query"]], [*map(int, steps), int(row["lapse"])]
    times = row["time"] - np.cumsum([0, *lapses[::-1]])[::-1]
    unit = params.get("distance_unit") or unit_in_name(str(params["time_key"]))
    unit = unit or f".obs[{params['time_key']!r}]"
    asks_for_cell = params["task"] == "cell"

    n = len(cells)
    height = (n_genes + 3.2) * _LINE
    if ax is None:
        _, ax = plt.subplots(figsize=(1.75 * n + 0.6, 0.32 * (n_genes + 3) + 1.5), layout="constrained")
    left = np.arange(n) * (_WIDTH + _GAP)
    low, high = left[0], left[-1] + _WIDTH

    def along(time: np.ndarray) -> np.ndarray:
        """Where a time is on the axis."""
        return low + (time - times.min()) / max(np.ptp(times), 1) * (high - low)

    place = along(times)
    names, n_ranked = _genes(adata, cells, n_genes)
    for i in range(n):
        asked = asks_for_cell and i == n - 1
        color = BASELINE if asked else MODEL
        ax.add_patch(
            plt.Rectangle(
                (left[i], 0),
                _WIDTH,
                height,
                fill=True,
                fc="white",
                ec=color,
                lw=1.4,
                ls="--" if asked else "-",
            )
        )
        middle = left[i] + _WIDTH / 2
        what = "query" if i == n - 1 else f"context {i + 1}"
        ax.text(middle, height + 0.06, what, ha="center", va="bottom", fontsize=9, color=color, weight="bold")
        lines = ["?"] if asked else [*(f"{j + 1}  {gene}" for j, gene in enumerate(names[i])), "⋮"]
        for j, line in enumerate(lines):
            ax.text(
                left[i] + 0.08,
                height - (j + 1) * _LINE,
                line,
                fontsize=8,
                va="center",
                color=color if asked else "black",
            )
        if not asked:
            ax.text(
                middle,
                0.5 * _LINE,
                f"{n_ranked[i]:,} genes",
                ha="center",
                va="center",
                fontsize=7.5,
                color=NULL,
            )
        if i < n - 1:
            asks_for_lapse = i == n - 2 and not asks_for_cell
            ax.annotate(
                "", xy=(left[i + 1], height / 2), xytext=(left[i] + _WIDTH, height / 2),
                arrowprops={"arrowstyle": "-|>", "color": BASELINE if asks_for_lapse else "black", "lw": 1.1, "shrinkA": 2, "shrinkB": 2},
            )  # fmt: skip
            text = f"{lapses[i]:+d}" + (" ?" if asks_for_lapse else "")
            ax.text(
                left[i] + _WIDTH + _GAP / 2, height / 2 + 0.05, text, ha="center", va="bottom", fontsize=9,
                color=BASELINE if asks_for_lapse else "black", weight="bold" if asks_for_lapse else "normal",
            )  # fmt: skip
        ax.plot([middle, place[i]], [-0.06, -0.5], color=color, lw=0.8, alpha=0.7)
        ax.plot([place[i]], [-0.55], "o", color=color, ms=5, mfc="white" if asked else color)
    ax.set(xlim=(low - 0.1, high + 0.1), ylim=(-0.62, height + 0.3), yticks=[])
    shown = MaxNLocator(5, integer=True).tick_values(times.min(), times.max())
    shown = shown[(shown >= times.min()) & (shown <= times.max())] if np.ptp(times) else times[:1]
    ax.set_xticks(along(shown), [f"{t:g}" for t in shown])
    ax.set_xlabel(f"time of the cell ({unit})")
    ax.set_title(f"{row['group']}; lapses in {unit}", fontsize=10, loc="left")
    ax.spines[["top", "right", "left"]].set_visible(False)
    return ax


def _genes(adata: AnnData, cells: list[str], n_genes: int) -> tuple[list[list[str]], np.ndarray]:
    """Symbols of the first genes of each cell, and how many it has."""
    ranks = sp.csr_matrix(adata.layers[_keys.RANK][adata.obs_names.get_indexer(cells)])
    names, found = symbols(adata), []
    for i in range(len(cells)):
        part = slice(ranks.indptr[i], ranks.indptr[i + 1])
        order = np.argsort(ranks.data[part], kind="stable")[:n_genes]
        found.append([_short(str(names[j])) for j in ranks.indices[part][order]])
    return found, np.diff(ranks.indptr)


def _short(name: str) -> str:
    """A name that fits into its box."""
    return name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}…"
