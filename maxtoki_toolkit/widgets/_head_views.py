"""Views of attention heads: the same four panels in plotly, and as a picture."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from ..pl._heads import DIVERGING, as_grid, draw_grid
from ..pl._style import MODEL, NULL
from ._head_tables import (
    ALL,
    PART,
    TWO_SIDED,
    UNITS,
    HeadTables,
    grid_of,
    groups_of,
    parts_of,
    top_genes,
)

_ONE_SIDED = "Cividis"
# Where the panels are, as shares of the figure.
_LEFT, _RIGHT, _TOP, _BOTTOM = (0.0, 0.36), (0.6, 1.0), (0.5, 1.0), (0.0, 0.3)
_NONE = pd.Series(dtype=float)
_MISSING = {
    "genes": "Run mt.tl.attention(adata, model).",
    "parts": 'For this panel run<br>mt.tl.attention(adata, model, key="prompts")<br>and mt.tl.head_segments(adata).',
    "groups": 'For this panel run<br>mt.tl.attention(adata, model, groupby="cell_type")<br>with your column of cell types.',
}


class HeadState(NamedTuple):
    """What is chosen."""

    statistic: str
    of: str
    group: str
    name: str
    """Head, such as "L2H1"."""
    gene_set: str = ""
    """Whose genes are marked."""


class HeadViews(NamedTuple):
    """What the four panels show."""

    state: HeadState
    grid: pd.DataFrame
    genes: pd.DataFrame
    parts: pd.DataFrame
    groups: pd.DataFrame
    groups_of: tuple[str, str]


def choices(tables: HeadTables, statistic: str = "", of: str = "") -> list[str]:
    """Statistics there are; of what, for a statistic; in which groups, for both."""
    values = tables.values
    if not statistic:
        return [name for name in UNITS if name in set(values["statistic"])]
    values = values[values["statistic"] == statistic]
    if not of:
        return list(dict.fromkeys(values["of"]))
    groups = sorted(set(values.loc[values["of"] == of, "group"]))
    return [ALL] * (ALL in groups) + [group for group in groups if group != ALL]


def choose(
    tables: HeadTables, statistic: str = "", of: str = "", group: str = "", name: str = ""
) -> HeadState:
    """State nearest to what is wanted: what there is not is replaced; the head by the one with the largest value."""

    def nearest(wanted: str, options: list[str]) -> str:
        return wanted if wanted in options else options[0]

    statistic = nearest(statistic, choices(tables))
    of = nearest(of, choices(tables, statistic))
    group = nearest(group, choices(tables, statistic, of))
    grid = grid_of(tables, statistic, of, group)
    if name not in set(grid["name"]):
        name = str(grid["name"][np.nan_to_num(grid["value"].to_numpy(), nan=-np.inf).argmax()])
    plain = of.removesuffix(" (prompts)")
    gene_set = plain if plain in tables.gene_sets else next(iter(tables.gene_sets), "")
    return HeadState(statistic, of, group, name, gene_set)


def head_views(adata: AnnData, tables: HeadTables, state: HeadState) -> HeadViews:
    """Tables of the four panels."""
    grid = grid_of(tables, state.statistic, state.of, state.group)
    head = grid[grid["name"] == state.name].iloc[0]
    genes = top_genes(
        adata, tables, int(head["layer"]), int(head["head"]), state.group, gene_set=state.gene_set
    )
    shown, of, groups = groups_of(tables, state.name, state.statistic, state.of)
    parts = parts_of(tables, state.name, state.group)
    return HeadViews(state, grid, genes, parts, groups, (shown, of))


def reach_of(values: np.ndarray) -> float:
    """Where the colours of a two-sided statistic end."""
    return max(float(np.nanmax(np.abs(values), initial=0)), 0.05)


def titles(views: HeadViews, *, new_line: str) -> list[str]:
    """What each panel shows."""
    state = views.state
    where = "all cells" if state.group == ALL else state.group
    called = int(views.grid["called"].sum())
    tested = views.grid["q_value"].notna().any()
    statistic, of = views.groups_of
    marked = f"{new_line}filled: {state.gene_set}" if state.gene_set else ""
    dots = f"; ● q < 0.05: {called} of {len(views.grid)}" if tested else ""
    return [
        f"{state.statistic}: {state.of}{new_line}{where}{dots}",
        f"{state.name}: genes it attends to most{marked}",
        f"{state.name}: parts of prompts",
        f"{state.name} by cell type{new_line}{statistic}: {of}",
    ]


def heads_figure(views: HeadViews) -> dict:
    """Draw layer x head, and for one head its genes, its parts of prompts and the groups of cells.

    Parameters
    ----------
    views
        What to draw.

    Returns
    -------
    A plotly figure as a dictionary: traces and axes are the same ones in the same order, whatever is drawn.
    The first trace is the heatmap, to be clicked.
    """
    state, grid = views.state, views.grid
    values, two_sided = as_grid(grid, "value"), state.statistic in TWO_SIDED
    n_layers, n_heads = values.shape
    reach = reach_of(values)
    low, high = (-reach, reach) if two_sided else (np.nanmin(values), np.nanmax(values))
    heatmap = {
        "type": "heatmap",
        "z": np.where(np.isfinite(values), values, None).tolist(),
        "customdata": _hover(grid, values.shape),
        "hovertemplate": "%{customdata}<extra></extra>",
        "colorscale": DIVERGING if two_sided else _ONE_SIDED,
        "zmin": float(low),
        "zmax": float(high),
        "xgap": 2,
        "ygap": 2,
        "colorbar": {
            "title": {"text": UNITS[state.statistic], "side": "right", "font": {"size": 11}},
            "x": _LEFT[1] + 0.01,
            "y": sum(_TOP) / 2,
            "len": _TOP[1] - _TOP[0],
            "thickness": 10,
            "outlinewidth": 0,
            "tickfont": {"size": 10},
        },
    }
    called, head = grid[grid["called"]], grid[grid["name"] == state.name].iloc[0]
    share = (called["value"] - low) / max(high - low, 1e-12)
    # Light on the dark colours: both ends of the one scale, the lower one of the other.
    light = (share - 0.5).abs() > 0.35 if two_sided else share < 0.5
    dots = {
        "type": "scatter",
        "x": called["head"].tolist(),
        "y": called["layer"].tolist(),
        "mode": "markers",
        "marker": {"size": 7, "color": np.where(light, "white", "black").tolist()},
        "hoverinfo": "skip",
    }
    corner = {"type": "rect", "xref": "x", "yref": "y"}
    for name, value in [("x", head["head"]), ("y", head["layer"])]:
        corner |= {f"{name}0": float(value) - 0.5, f"{name}1": float(value) + 0.5}
    zero = {
        "type": "line",
        "y0": 0,
        "y1": 1,
        "x0": 0,
        "x1": 0,
        "line": {"color": NULL, "width": 1, "dash": "dot"},
    }
    tables = {2: views.genes, 3: views.parts, 4: views.groups}
    missing = [
        {
            "text": _MISSING[panel],
            "x": 0.5,
            "y": 0.5,
            "xref": f"x{i} domain",
            "yref": f"y{i} domain",
            "showarrow": False,
            "font": {"size": 12, "color": "#555555"},
        }
        for i, panel in zip(tables, _MISSING, strict=True)
        if not len(tables[i])
    ]
    places = [(_LEFT, _TOP), (_RIGHT, _TOP), (_LEFT, _BOTTOM), (_RIGHT, _BOTTOM)]
    headings = [
        {
            "text": text,
            "x": x[0],
            "y": y[1] + 0.01,
            "xref": "paper",
            "yref": "paper",
            "xanchor": "left",
            "yanchor": "bottom",
            "align": "left",
            "showarrow": False,
            "font": {"size": 12},
        }
        for text, (x, y) in zip(titles(views, new_line="<br>"), places, strict=True)
    ]
    layout = {
        "template": "plotly_white",
        "height": 640 + 10 * max(n_layers - 8, 0),
        "margin": {"l": 105, "r": 15, "t": 45, "b": 45},
        "width": 860,
        "showlegend": False,
        "dragmode": False,
        "annotations": headings + missing,
        "shapes": [
            corner | {"line": {"color": "white", "width": 5}},
            corner | {"line": {"color": "black", "width": 2.5}},
            *(
                zero | {"xref": f"x{i}", "yref": f"y{i} domain"}
                for i in (3, 4)
                if (tables[i].get("value", _NONE) < 0).any()
            ),
        ],
    }
    names = [
        "head",
        "log2 of attention over what rank explains",
        UNITS[PART],
        UNITS[views.groups_of[0]],
    ]
    for i, ((x, y), name) in enumerate(zip(places, names, strict=True), start=1):
        number, there = str(i) if i > 1 else "", i == 1 or len(tables[i]) > 0
        common = {"zeroline": False, "tickfont": {"size": 11}, "visible": there}
        layout[f"xaxis{number}"] = common | {
            "domain": list(x),
            "anchor": f"y{number}",
            "title": {"text": name, "font": {"size": 11}, "standoff": 4},
        }
        layout[f"yaxis{number}"] = common | {
            "domain": list(y),
            "anchor": f"x{number}",
            "autorange": "reversed",
            "dtick": 1,
        }
    layout["xaxis"] |= {"showgrid": False, "dtick": 1 if n_heads <= 16 else 2}
    layout["yaxis"] |= {"showgrid": False, "dtick": 1 if n_layers <= 12 else 2}
    layout["yaxis"]["title"] = {"text": "layer", "font": {"size": 11}}
    return {
        "data": [
            heatmap,
            dots,
            _bars(views.genes, "2"),
            _points(views.parts, "of", "3"),
            _points(views.groups, "group", "4"),
        ],
        "layout": layout,
    }


def _hover(grid: pd.DataFrame, shape: tuple[int, int]) -> list:
    def text(name: str, value: float, low: float, high: float, q: float) -> str:
        interval = f" [{low:.3g}, {high:.3g}]" if np.isfinite(low) else ""
        return f"<b>{name}</b><br>{value:.3g}{interval}" + (f"<br>q {q:.2g}" if np.isfinite(q) else "")

    columns = (grid[name] for name in ("name", "value", "low", "high", "q_value"))
    return np.array([text(*row) for row in zip(*columns, strict=True)], dtype=object).reshape(shape).tolist()


def _bars(genes: pd.DataFrame, axis: str) -> dict:
    """Genes of a head; a bar of length 0 is what rank explains."""
    return {
        "type": "bar",
        "x": genes["log2_rate"].tolist(),
        "y": genes["symbol"].tolist(),
        "orientation": "h",
        "marker": {
            "color": np.where(genes["in_set"].astype(bool), MODEL, "white").tolist(),
            "line": {"color": MODEL, "width": 1.2},
        },
        "customdata": np.exp2(genes["log2_rate"].astype(float)).tolist(),
        "hovertemplate": "%{y}: %{customdata:.2f} times<extra></extra>",
        "xaxis": f"x{axis}",
        "yaxis": f"y{axis}",
    }


def _points(table: pd.DataFrame, label: str, axis: str) -> dict:
    """A value a row, with its interval where there is one."""
    tested = table["q_value"].notna().any()
    return {
        "type": "scatter",
        "x": table["value"].tolist(),
        "y": table[label].tolist(),
        "mode": "markers",
        "marker": {
            "size": 9,
            "color": np.where(table["called"] | (not tested), MODEL, "white").tolist(),
            "line": {"color": MODEL, "width": 1.5},
        },
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": (table["high"] - table["value"]).fillna(0).tolist(),
            "arrayminus": (table["value"] - table["low"]).fillna(0).tolist(),
            "color": MODEL,
            "thickness": 1.4,
            "width": 0,
        },
        "hovertemplate": "%{y}: %{x:.3g}<extra></extra>",
        "xaxis": f"x{axis}",
        "yaxis": f"y{axis}",
    }


def heads_picture(views: HeadViews):
    """The same panels in matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from ..pl._style import clean

    state = views.state
    values, called = as_grid(views.grid, "value"), as_grid(views.grid, "called").astype(bool)
    figure = Figure(figsize=(9, 6.2 + 0.12 * max(len(values) - 8, 0)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2, height_ratios=[1.3, 1])
    grid, genes, parts, groups = axes.ravel()
    image = draw_grid(grid, values, called, reach_of(values))
    if state.statistic not in TWO_SIDED:
        image.set(cmap=_ONE_SIDED.lower(), clim=(np.nanmin(values), np.nanmax(values)))
    head = views.grid[views.grid["name"] == state.name].iloc[0]
    grid.add_patch(_square(head["head"], head["layer"]))
    bar = figure.colorbar(image, ax=grid, shrink=0.8, aspect=14)
    bar.set_label(UNITS[state.statistic], fontsize=7)
    bar.ax.tick_params(labelsize=7)
    bar.outline.set_visible(False)
    if len(views.genes):
        color = np.where(views.genes["in_set"], MODEL, "white")
        genes.barh(range(len(views.genes)), views.genes["log2_rate"], 0.7, color=color, edgecolor=MODEL)
        genes.set_yticks(range(len(views.genes)), views.genes["symbol"])
        genes.set_xlabel("log2 of attention over what rank explains", fontsize=8)
    units = [UNITS[PART], UNITS[views.groups_of[0]]]
    for ax, table, label, unit in [
        (parts, views.parts, "of", units[0]),
        (groups, views.groups, "group", units[1]),
    ]:
        if len(table):
            place = range(len(table))
            ax.hlines(place, table["low"], table["high"], color=MODEL, lw=1.4)
            full = table["called"] | (not table["q_value"].notna().any())
            ax.scatter(table["value"], place, color=np.where(full, MODEL, "white"), edgecolor=MODEL, zorder=3)
            ax.set_yticks(place, table[label])
            ax.set_xlabel(unit, fontsize=8)
            if (table["value"] < 0).any():
                ax.axvline(0, color=NULL, lw=1, ls=":")
    missing = {"genes": genes, "parts": parts, "groups": groups}
    for (panel, ax), table in zip(missing.items(), [views.genes, views.parts, views.groups], strict=True):
        if len(table):
            ax.invert_yaxis()
            clean(ax)
        else:
            ax.axis("off")
            ax.text(0.5, 0.5, _MISSING[panel].replace("<br>", "\n"), ha="center", fontsize=8, color="0.3")
        ax.tick_params(labelsize=8)
    for ax, title in zip(axes.ravel(), titles(views, new_line="\n"), strict=True):
        ax.set_title(title, fontsize=9, loc="left")
    return figure


def _square(column: float, row: float):
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="black", lw=2, zorder=4)
