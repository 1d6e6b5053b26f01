"""Where there are cells: studies by time by cell type, and what is held out."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.figure import Figure

from ..pp._columns import as_labels, find_columns, guess_unit
from ..pp._design import as_numbers, known_cells
from ..pp.parse_age import time_in_numbers
from ._style import drawing

_MOST_STUDIES = 6


@drawing
def coverage(
    adata: AnnData,
    *,
    time_key: str | None = None,
    groupby: str | None = None,
    study_key: str | None = None,
    n_bins: int = 12,
) -> Figure:
    """Draw how many cells there are of each type at each time in each study, and which are held out.

    Parameters
    ----------
    adata
        Cells; after `mt.pp.hold_out` held-out ones are marked.
    time_key
        Column of `.obs` with the time; text is read by `mt.pp.parse_age`. It and the cell type are guessed
        from the names in `.obs` where they are `None`, with a warning that says which were taken.
    groupby
        Column of `.obs` with the cell type, such as "cell_ontology".
    study_key
        Column of `.obs` with the study; a panel each, the six largest at most.
    n_bins
        Stretches of time, of equal length; each time is one of its own where there are no more than these.

    Returns
    -------
    The figure: cells by colour (log scale), white where there are none; one line through a field of which
    some cells are held out, two where all are.

    Raises
    ------
    KeyError
        If a column is missing.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(400, 20, n_genes=500)
    >>> mt.pp.hold_out(adata, donor_key="donor_id", groups={"cell_type": ["macrophage"]})
    >>> fig = mt.pl.coverage(adata, time_key="age_months", groupby="cell_type", study_key="batch")
    """
    import matplotlib.pyplot as plt
    from matplotlib.colors import LogNorm

    adata = AnnData(obs=adata.obs.copy(), uns=adata.uns)
    time_key, groupby = find_columns(adata.obs, time_key=time_key, groupby=groupby).values()
    time_key = time_in_numbers(adata, time_key, "months")
    adata, _ = known_cells(adata, time_key, groupby, study_key)
    time = as_numbers(adata.obs[time_key], time_key)
    unit = guess_unit(adata.obs[time_key])
    factor = 12 if unit == "months" and np.ptp(time) > 60 else 1
    unit = "years" if factor == 12 else unit
    place, edges, ticks = _bins(time / factor, n_bins)
    table = pd.DataFrame(
        {
            "study": "all cells" if study_key is None else as_labels(adata.obs[study_key].astype(object)),
            "group": as_labels(adata.obs[groupby].astype(object)),
            "bin": place,
            "held_out": adata.obs["held_out"].to_numpy(dtype=bool) if "held_out" in adata.obs else False,
        }
    )
    sizes = table["study"].value_counts()
    studies = sorted(sizes.index[:_MOST_STUDIES])
    groups = table["group"].value_counts().index.tolist()
    shape = (len(groups), len(edges) - 1)
    fig, axes = plt.subplots(
        1,
        len(studies),
        figsize=(1.6 + max(2.2, 0.17 * shape[1]) * len(studies), 1.5 + 0.2 * shape[0]),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    norm = LogNorm(1, max(table.groupby(["study", "group", "bin"]).size().max(), 2))
    for ax, study in zip(axes[0], studies, strict=True):
        part = table[table["study"] == study]
        row = pd.Index(groups).get_indexer(part["group"])
        n, out = np.zeros(shape), np.zeros(shape)
        np.add.at(n, (row, part["bin"]), 1)
        np.add.at(out, (row, part["bin"]), part["held_out"])
        image = ax.pcolormesh(
            np.arange(shape[1] + 1) - 0.5,
            np.arange(shape[0] + 1) - 0.5,
            np.where(n > 0, n, np.nan),
            cmap="viridis",
            norm=norm,
            edgecolors="white",
            lw=0.6,
        )
        for i, j in np.argwhere(out > 0):
            # Dark fields need a light line.
            color = "white" if norm(n[i, j]) < 0.6 else "black"
            ax.plot([j - 0.4, j + 0.4], [i + 0.4, i - 0.4], color=color, lw=1.1)
            if out[i, j] == n[i, j]:
                ax.plot([j - 0.4, j + 0.4], [i - 0.4, i + 0.4], color=color, lw=1.1)
        ax.set_title(f"{study} ({len(part):,} cells)", fontsize=9)
        ax.set_xticks(*ticks, fontsize=8)
        ax.tick_params(length=2)
        ax.spines[:].set_visible(False)
    axes[0, 0].set_yticks(range(len(groups)), groups, fontsize=8)
    axes[0, 0].set_ylim(shape[0] - 0.5, -0.5)
    fig.supxlabel(
        f"{'age' if unit in ('years', 'months') else 'time'} ({unit or f'.obs[{time_key!r}]'})", fontsize=9
    )
    bar = fig.colorbar(image, ax=axes[0, -1], shrink=0.8, aspect=15)
    bar.set_label("cells", fontsize=8)
    bar.ax.yaxis.set_major_formatter("{x:,.0f}")
    bar.ax.tick_params(labelsize=8)
    notes = []
    if table["held_out"].any():
        notes.append("line: some cells held out, cross: all held out")
    if len(sizes) > len(studies):
        notes.append(f"the {len(studies)} largest of {len(sizes)} studies")
    if notes:
        fig.suptitle("; ".join(notes), fontsize=8, x=0.01, ha="left")
    plt.close(fig)  # or a notebook would show it twice
    return fig


def _bins(time: np.ndarray, n_bins: int) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, list[str]]]:
    """Stretch of each time, the ends of all, and where to write which times below them."""
    values = np.unique(time)
    if len(values) <= n_bins:
        step = max(1, -(-len(values) // 6))
        at = np.arange(0, len(values), step)
        return np.searchsorted(values, time), np.arange(len(values) + 1), (at, [f"{values[i]:g}" for i in at])
    edges = np.linspace(values[0], values[-1], n_bins + 1)
    place = np.clip(np.searchsorted(edges, time, side="right") - 1, 0, n_bins - 1)
    at = np.linspace(0, n_bins, 4)
    return place, edges, (at - 0.5, [f"{edges[0] + (edges[-1] - edges[0]) * i / n_bins:.0f}" for i in at])
