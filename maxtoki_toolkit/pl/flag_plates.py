"""A plate, well by well, beside the tests of all plates."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from matplotlib.figure import Figure

from .. import _keys
from ..results.store import read_result, read_table
from ..stats.plates import plate_shape
from ._style import MODEL, NULL, clean, drawing

_FLAG = "#D55E00"
_LABELS = {
    "depth": "counts of a cell (median)",
    "n_cells": "cells",
    "overlap": "overlap with controls (share)",
}
_TESTS = {
    "overlap": "overlap of treated and\ncontrol cells (share)",
    "edge: cells": "border wells have more\ncells (AUROC)",
    "edge: depth": "border wells are\ndeeper (AUROC)",
    "edge: expression": "expression at the border\n(distance over its null)",
    "concordance": "concordance with other\nplates (Pearson r)",
}


@drawing
def flag_plates(
    adata: AnnData, *, plate: str | None = None, value: str = "depth", key: str = _keys.FLAG_PLATES
) -> Figure:
    """Draw a plate well by well, and the tests of all plates beside it.

    Parameters
    ----------
    {adata}
    plate
        Which plate; by default the first that is flagged, or the first.
    value
        What colours the wells: "depth", "n_cells" or "overlap".
    {key}

    Returns
    -------
    The figure: wells as circles, controls with a black rim, and a panel a test, flagged plates in orange.

    Raises
    ------
    KeyError
        If there is no such plate.
    ValueError
        If `value` is none of the three.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.drug_screen(1, 8, n_plates=4, edge_plates=[2])
    >>> mt.tl.flag_plates(adata, plate_key="plate", well_key="well", perturbation_key="drug", control="DMSO")
    >>> mt.pl.flag_plates(adata).axes[0].get_title().partition(":")[0]
    'P03'
    """
    import matplotlib.pyplot as plt

    if value not in _LABELS:
        raise ValueError(f"value must be one of {', '.join(_LABELS)}, got {value!r}.")
    plates, tests, wells = (read_table(adata, key, name) for name in ("plates", "tests", "wells"))
    params = read_result(adata, key)["params"]
    names = plates["plate"].tolist()
    if plate is None:
        plate = (plates.loc[plates["flagged"], "plate"].tolist() or names)[0]
    if plate not in names:
        raise KeyError(f"Did not find the plate {plate!r}; there are {names}.")
    about = plates.set_index("plate").loc[plate]
    part = wells[wells["plate"] == plate]
    n_rows, n_columns = plate_shape(part["row"].to_numpy(), part["column"].to_numpy())
    shown = [test for test in _TESTS if tests.loc[tests["test"] == test, "value"].notna().any()]
    height = max(4.0, 1.4 + 0.17 * len(names))
    figure, axes = plt.subplots(
        1,
        1 + len(shown),
        figsize=(6.2 + 1.7 * len(shown), height),
        width_ratios=[3.6, *[1] * len(shown)],
        layout="constrained",
    )
    axes = np.atleast_1d(axes)
    ax, area = axes[0], 12_000 / (n_columns * n_rows) if n_rows < 16 else 36
    rim = np.where(part["perturbation"] == str(params["control"]), "black", "none")
    missing = part[value].isna()
    color = ax.scatter(
        part["column"] + 1, part["row"], c=part[value], s=area, cmap="viridis", edgecolors=rim, linewidths=1.4
    )
    ax.scatter(
        part.loc[missing, "column"] + 1,
        part.loc[missing, "row"],
        s=area,
        c="#eeeeee",
        edgecolors=rim[missing],
    )
    figure.colorbar(color, ax=ax, label=_LABELS[value], shrink=0.6, pad=0.02)
    ticks = np.arange(1, n_columns + 1, 1 if n_columns < 20 else 3)
    ax.set_xticks(ticks, ticks, fontsize=8 if n_columns < 20 else 6)
    ax.set_yticks(range(n_rows), [chr(65 + i) for i in range(n_rows)], fontsize=8 if n_rows < 16 else 6)
    ax.set(xlim=(0.3, n_columns + 0.7), ylim=(n_rows - 0.4, -0.6), aspect="equal")
    ax.set_xlabel("column (number on the plate)", fontsize=8)
    ax.xaxis.set_label_position("top")
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.spines[:].set_color("#bbbbbb")
    ax.set_title(
        f"{plate}: {about['reasons'] or 'not flagged'}\n(black rim: {params['control']})", fontsize=9
    )
    place = np.arange(len(names))
    for ax, test in zip(axes[1:], shown, strict=True):
        found = tests[tests["test"] == test].set_index("plate").loc[names]
        scale = found["null"] if test == "edge: expression" else 1.0
        colors = np.where(found["flagged"], _FLAG, MODEL)
        ax.hlines(place, found["low"] / scale, found["high"] / scale, color=colors, lw=1.2)
        ax.scatter(found["value"] / scale, place, s=14, color=colors, zorder=3)
        ax.scatter(found["null"] / scale, place, s=24, marker="|", color=NULL, zorder=2)
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.set_yticks(place, names if ax is axes[1] else [""] * len(names), fontsize=7)
        ax.set_xlabel(_TESTS[test], fontsize=8)
        ax.tick_params(axis="x", labelsize=7)
        clean(ax)
    return figure
