"""Cells on the tissue, several images at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from anndata import AnnData
from matplotlib.figure import Figure

from ..pp._columns import find_columns
from ..pp._tissue import Mapped, columns_of, read_images, read_mapped
from ._style import category_colors, drawing

_GREY = "#bbbbbb"
_OTHERS = "other"


@drawing
def spatial(
    adata: AnnData,
    *,
    color: str,
    library_key: str | None = None,
    images: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    distance_unit: str = "units",
    max_images: int = 8,
    size: float | None = None,
) -> Figure:
    """Draw cells at their places in 2 or 3 dimensions, a panel an image, all at one scale of colour.

    Parameters
    ----------
    adata
        Cells with places in `.obsm["spatial"]` (cells x 2 or 3).
    color
        Column of `.obs` (numbers or classes), gene (from raw counts in `.X`), or a column of a matrix of
        `.obsm`, as in "features/3".
    library_key
        Column of `.obs` with the image or section, guessed from its name; without one, all cells are in one.
    images
        Images to draw, in this order; by default the first by name.
    groups
        Classes to tell apart; the others are grey.
    distance_unit
        Unit of the places, such as "µm", for the scale bar.
    max_images
        Images to draw where none are named.
    size
        Area of a point, in points squared; by default by the number of cells.

    Returns
    -------
    The figure. A scale bar stands in each panel; the first axis points right and the second down, as in
    images.

    Raises
    ------
    KeyError
        If there are no places, or no such column, gene or image.
    ValueError
        If a matrix is named without one of its columns.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.tissue(1000)
    >>> figure = mt.pl.spatial(adata, color="cell_type", library_key="image_id", max_images=2,
    ...                        groups=adata.uns["truth"]["niche"], distance_unit="µm")
    >>> [ax.get_title() for ax in figure.axes]
    ['D01_s1', 'D02_s1']
    """
    import matplotlib.pyplot as plt

    found = find_columns(adata.obs, optional=("library_key",), library_key=library_key)
    tissue = read_images(adata, *columns_of(adata, color), **found)
    mapped = _one(tissue.cells, color)
    wanted = tissue.images[:max_images] if images is None else [str(name) for name in images]
    if unknown := [name for name in wanted if name not in tissue.images]:
        raise KeyError(f"There is no image {unknown[0]!r}. There are {tissue.images[:12]}.")
    parts = [slice(*tissue.starts[i : i + 2]) for i in map(tissue.images.index, wanted)]
    colors, legend, scale = _colors(mapped, groups, parts)
    n_dims = tissue.places.shape[1]
    n_columns = min(len(wanted), 4)
    n_rows = -(-len(wanted) // n_columns)
    figure, axes = plt.subplots(
        n_rows,
        n_columns,
        figsize=(2.7 * n_columns + 1.6, 2.7 * n_rows + 0.3),
        layout="constrained",
        squeeze=False,
        subplot_kw={"projection": "3d"} if n_dims == 3 else {},
    )
    for ax, name, part in zip(axes.flat, wanted, parts, strict=False):
        places = tissue.places[part]
        area = size or float(np.clip(6000 / len(places), 0.4, 30))
        # Cells that are told apart lie above the others, low numbers below high ones.
        above = np.argsort(colors.order[part], kind="stable")
        drawn = (places[above, i] for i in range(n_dims))
        ax.scatter(
            *drawn, c=colors.rgba[part][above], s=area, lw=0, **({"depthshade": False} if n_dims == 3 else {})
        )
        ax.set_title(name, fontsize=9)
        _scale_bar(ax, places, distance_unit)
    for ax in list(axes.flat)[len(wanted) :]:
        ax.set_visible(False)
    if scale is not None:
        bar = figure.colorbar(scale, ax=axes, shrink=0.6, aspect=25)
        bar.set_label(f"{color} (log1p of scaled counts)" if mapped.kind == "gene" else color, fontsize=9)
    else:
        handles = [plt.Line2D([], [], marker="o", ls="", color=c, label=name) for name, c in legend.items()]
        figure.legend(
            handles=handles,
            title=color.replace("_", " "),
            loc="outside right center",
            frameon=False,
            fontsize=8,
        )
    return figure


def _one(cells: AnnData, color: str) -> Mapped:
    """A column, a gene, or one column of a matrix."""
    matrix, _, column = color.rpartition("/")
    if color in cells.obs or matrix not in cells.obsm:
        mapped = read_mapped(cells, color)[0]
        if mapped.kind == "embedding":
            raise ValueError(f"Name a column of .obsm[{color!r}], as in color='{color}/0'.")
        return mapped
    whole = read_mapped(cells, matrix)[0]
    names = whole.labels or [str(i) for i in range(whole.values.shape[1])]
    if column not in names:
        raise KeyError(f".obsm[{matrix!r}] has no column {column!r}. It has {names[:12]}.")
    return Mapped(color, "number", whole.values[:, names.index(column)], [])


class _Colors(NamedTuple):
    """Of the cells, and the order to draw them in."""

    rgba: np.ndarray
    order: np.ndarray


def _colors(mapped: Mapped, groups: Sequence[str] | None, parts: list[slice]):
    """Colours of the cells; legend of classes; scale of numbers."""
    import matplotlib.pyplot as plt
    from matplotlib.colors import to_rgba_array

    if mapped.kind == "class":
        told = mapped.labels if groups is None else [str(name) for name in groups]
        if unknown := [name for name in told if name not in mapped.labels]:
            raise KeyError(f".obs[{mapped.name!r}] has no {unknown[0]!r}. It has {mapped.labels[:20]}.")
        legend = dict(zip(told, category_colors(len(told)), strict=True))
        if len(told) < len(mapped.labels):
            legend[_OTHERS] = _GREY
        rgba = to_rgba_array([legend.get(name, _GREY) for name in mapped.labels])
        is_told = np.isin(mapped.labels, told)
        return _Colors(rgba[mapped.values], is_told[mapped.values].astype(float)), legend, None
    if groups is not None:
        raise ValueError(f"groups= are classes, and {mapped.name!r} has numbers.")
    seen = np.concatenate([mapped.values[part] for part in parts])
    # One cell far out would take all colours.
    low, high = np.quantile(seen, [0.01, 0.99])
    if low == high:
        low, high = seen.min(), max(seen.max(), seen.min() + 1e-9)
    scale = plt.cm.ScalarMappable(plt.Normalize(low, high), "viridis")
    return _Colors(scale.to_rgba(mapped.values), mapped.values), {}, scale


def _scale_bar(ax, places: np.ndarray, unit: str) -> None:
    """A bar of a round length below the cells, and axes without ticks."""
    low, high = places.min(axis=0), places.max(axis=0)
    extent = np.maximum(high - low, 1e-9)
    length = _round_length(0.3 * extent[0])
    label = f"{length:g} {unit}"
    if places.shape[1] == 3:
        y = high[1] + 0.12 * extent[1]
        ax.plot([low[0], low[0] + length], [y, y], [low[2]] * 2, color="black", lw=2)
        ax.text(low[0] + length / 2, y + 0.12 * extent[1], low[2], label, fontsize=8, ha="right", va="top")
        ax.grid(visible=False)
        ax.set_box_aspect(extent / extent.max())
        ax.set(xticklabels=[], yticklabels=[], zticklabels=[])
        ax.invert_yaxis()
        return
    y = high[1] + 0.06 * extent[1]
    ax.plot([low[0], low[0] + length], [y, y], color="black", lw=2, solid_capstyle="butt")
    ax.text(low[0] + length / 2, y + 0.03 * extent[1], label, fontsize=8, ha="center", va="top")
    ax.set_aspect("equal")
    ax.set_ylim(high[1] + 0.2 * extent[1], low[1] - 0.03 * extent[1])
    ax.set_axis_off()


def _round_length(length: float) -> float:
    """The largest of 1, 2 and 5 times a power of ten that is no longer."""
    power = 10.0 ** np.floor(np.log10(length))
    return float(power * max(step for step in (1, 2, 5) if step * power <= length * (1 + 1e-9)))
