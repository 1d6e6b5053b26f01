"""Views of cells: a map beside what the model reads of one of them, in plotly and as a picture."""

from __future__ import annotations

import html

import numpy as np
import pandas as pd
from anndata import AnnData

from ..pl._style import BASELINE, MODEL, NULL, category_colors
from ._cell_tables import context_of, is_number

LIKELIHOOD = "log-likelihood of the cell (nats a gene)"
_LEFT, _RIGHT = [0.0, 0.53], [0.65, 1.0]  # the map, and beside it the readings, as shares of the width
_TABLE = "border-collapse:collapse;line-height:1.35"


def cells_figure(
    adata: AnnData,
    points: pd.DataFrame,
    *,
    basis: str,
    color: str | None,
    cell: str,
    tried: pd.DataFrame,
    before: float,
    after: float,
    gene: str,
    rank: int,
    reading: str,
    truth: float = np.nan,
) -> dict:
    """Draw the map of the cells, and what is read with one gene at other ranks.

    Parameters
    ----------
    adata
        Cells.
    points
        Places on the map (`cell_points`).
    basis
        Name of the map.
    color
        Column of `.obs`; `None` for one colour.
    cell
        Cell to mark.
    tried
        `rank` and `reading` of the gene at other ranks.
    before, after
        Reading of the cell before and after all edits.
    gene, rank
        Gene that is tried, and its rank now.
    reading
        Name of the reading, with its unit.
    truth
        True reading, where it is known.

    Returns
    -------
    A plotly figure as a dictionary; its traces with `customdata` are the cells, to be clicked.
    """
    x, y = np.asarray(adata.obsm[basis])[adata.obs_names.get_loc(cell), :2]
    ring = {"size": 15, "symbol": "circle-open", "color": "black", "line": {"width": 3}}
    common = {"type": "scatter", "mode": "markers", "showlegend": False}
    right = common | {"xaxis": "x2", "yaxis": "y2"}
    data = [
        *map_traces(adata, points, color),
        common | {"name": "ring", "x": [float(x)], "y": [float(y)], "marker": ring, "hoverinfo": "skip"},
        right
        | {
            "name": "tried",
            "x": tried["rank"].tolist(),
            "y": tried["reading"].tolist(),
            "mode": "lines+markers",
            "line": {"color": MODEL, "width": 1.2},
            "marker": {"size": 6, "color": MODEL},
            "hovertemplate": "rank %{x}: %{y:.4g}<extra></extra>",
        },
        right
        | {
            "name": "now",
            "x": [rank],
            "y": [after],
            "marker": {"size": 13, "symbol": "diamond", "color": MODEL},
            "hovertemplate": "now, rank %{x}: %{y:.4g}<extra></extra>",
        },
    ]
    shapes, notes = [], [_heading("Cells: click one", 0.0), _heading(f"{gene} at other ranks", _RIGHT[0])]
    levels = [("before edits", before, NULL, "dot"), ("true", truth, BASELINE, "dash")]
    for name, value, line, dash in levels:
        if np.isfinite(value):
            level = {"y0": value, "y1": value, "yref": "y2", "x0": 0, "x1": 1, "xref": "x2 domain"}
            shapes.append(level | {"type": "line", "line": {"color": line, "width": 1.6, "dash": dash}})
            at = {
                "x": 1,
                "xanchor": "right",
                "xref": "x2 domain",
                "y": value,
                "yanchor": "bottom",
                "yref": "y2",
            }
            notes.append(at | {"text": name, "font": {"size": 11}, "showarrow": False})
    short = basis.removeprefix("X_")
    blind = {"showticklabels": False, "zeroline": False}
    return {
        "data": data,
        "layout": {
            "template": "plotly_white",
            "height": 430,
            "margin": {"l": 40, "r": 15, "t": 30, "b": 40},
            "annotations": notes,
            "shapes": shapes,
            "width": 860,
            "clickmode": "event",
            "legend": {
                "orientation": "h",
                "x": 0,
                "y": -0.1,
                "xanchor": "left",
                "yanchor": "top",
                "font": {"size": 11},
                "itemsizing": "constant",
            },
            "xaxis": blind | {"domain": _LEFT, "anchor": "y", "title": {"text": f"{short} 1", "standoff": 4}},
            "yaxis": blind | {"anchor": "x", "title": {"text": f"{short} 2", "standoff": 4}},
            "xaxis2": {
                "domain": _RIGHT,
                "anchor": "y2",
                "type": "log",
                "dtick": 1,
                "title": {"text": "rank of the gene", "standoff": 4},
            },
            "yaxis2": {"anchor": "x2", "zeroline": False, "title": {"text": reading, "standoff": 4}},
        },
    }


def _heading(text: str, x: float) -> dict:
    at = {"x": x, "y": 1.01, "xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom"}
    return at | {"text": text, "showarrow": False, "font": {"size": 12}}


def map_traces(adata: AnnData, points: pd.DataFrame, color: str | None) -> list[dict]:
    """Cells on the map: a trace a category, or one for all."""
    # WebGL draws many points faster, but there are only so many such figures to a page.
    kind = "scatter" if len(points) <= 6000 else "scattergl"

    def trace(part: pd.DataFrame, name: str, marker: dict, hover: list | None = None) -> dict:
        return {
            "type": kind,
            "x": part["x"].tolist(),
            "y": part["y"].tolist(),
            "customdata": part["row"].tolist(),
            "text": part["name"].tolist() if hover is None else hover,
            "mode": "markers",
            "name": name,
            "marker": {"size": 6 if len(points) <= 3000 else 4, "opacity": 0.8, **marker},
            "hovertemplate": "%{text}<extra>" + html.escape(name) + "</extra>",
            "showlegend": hover is None,
        }

    if color is None:
        return [trace(points, "cells", {"color": NULL})]
    column = adata.obs[color].iloc[points["row"].to_numpy()]
    if is_number(column):
        values = column.to_numpy(dtype=float)
        # Below the map, where the legend would be.
        bar = {
            "title": {"text": color, "side": "bottom"},
            "orientation": "h",
            "thickness": 10,
            "outlinewidth": 0,
        }
        bar |= {"x": sum(_LEFT) / 2, "y": -0.12, "yanchor": "top", "len": 0.4}
        marker = {"color": values.tolist(), "colorscale": "Cividis", "showscale": True, "colorbar": bar}
        hover = [f"{name}: {value:.4g}" for name, value in zip(points["name"], values, strict=True)]
        return [trace(points, color, marker, hover)]
    text = adata.obs[color].astype(object).where(adata.obs[color].notna(), "missing").astype(str)
    label, names = text.iloc[points["row"].to_numpy()].to_numpy(), sorted(text.unique())
    return [
        trace(points[label == name], name, {"color": shade})
        for name, shade in zip(names, category_colors(len(names)), strict=True)
    ]


def gene_labels(genes: pd.DataFrame, n: int) -> list[str]:
    """Lines of the list of ranks; `n` genes are read."""
    notes = np.where(genes["edited"], "  (moved)", "") + np.where(
        np.arange(len(genes)) >= n, "  (not read)", ""
    ).astype(object)
    return [
        f"{i + 1}  {symbol}{note}"
        for i, (symbol, note) in enumerate(zip(genes["symbol"], notes, strict=True))
    ]


def reading_html(
    before: float, after: float, *, reading: str, truth: float = np.nan, edited: bool = False
) -> str:
    """What is read now and before, in words."""
    decimals = 3 if reading == LIKELIHOOD else 0
    lines = [f"<b style='font-size:1.35em'>{after:.{decimals}f}</b> {html.escape(reading)}"]
    if edited:
        change = after - before
        decimals = max(decimals, 1)
        lines.append(f"{before:.{decimals}f} before your edits: <b>{change:+.{decimals}f}</b>")
    if np.isfinite(truth):
        lines.append(f"true: {truth:.0f}")
    return "<br>".join(lines)


def prompt_html(adata: AnnData, prompt: pd.Series | None, time_key: str, unit: str) -> str:
    """Context cells of a prompt, the lapses between them, and what is asked."""
    if prompt is None:
        return ""
    names, steps = context_of(prompt)
    time = adata.obs[time_key]
    rows, lapses = [], ["", *(f"{step:+d} {html.escape(unit)}" for step in steps)]
    for name, lapse in zip(names, lapses, strict=True):
        rows.append((html.escape(name), f"{time[name]:g}", lapse))
    rows.append(
        (
            f"<b>{html.escape(str(prompt['query']))}</b>",
            "asked",
            f"? (true {prompt['lapse']:+.0f} {html.escape(unit)})",
        )
    )
    body = "".join(
        "<tr>" + "".join(f"<td style='padding-right:14px'>{v}</td>" for v in row) + "</tr>" for row in rows
    )
    whose = "" if prompt["own"] else "Drawn for another cell of this group; this one takes its place.<br>"
    head = f"<tr><td><i>cell</i></td><td style='padding-right:14px'><i>{html.escape(time_key)}</i></td><td><i>lapse</i></td></tr>"
    return f"{whose}<table style='{_TABLE}'>{head}{body}</table>"


def cell_html(adata: AnnData, cell: str, most: int = 8) -> str:
    """What `.obs` says of a cell."""
    row = adata.obs.loc[cell]
    shown = [f"{html.escape(str(k))}: <b>{html.escape(_text(v))}</b>" for k, v in row.items()][:most]
    return f"<b>{html.escape(cell)}</b><br>" + ", ".join(shown)


def _text(value) -> str:
    return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)


def cells_picture(
    adata: AnnData,
    points: pd.DataFrame,
    genes: pd.DataFrame,
    *,
    basis: str,
    color: str | None,
    cell: str,
    text: str,
):
    """The map, the highest ranked genes of the cell and what is read, in matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from ..pl._style import clean

    figure = Figure(figsize=(9, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    ax, table = figure.subplots(1, 2, width_ratios=[1.5, 1])
    for trace in map_traces(adata, points, color):
        marker = trace["marker"]
        scale = {"cmap": "cividis"} if "showscale" in marker else {}
        image = ax.scatter(
            trace["x"], trace["y"], s=5, c=marker["color"], linewidths=0, label=trace["name"], **scale
        )
        if scale:
            figure.colorbar(image, ax=ax, shrink=0.7, aspect=16, label=color).outline.set_visible(False)
    if color is not None and not scale:
        below = {"bbox_to_anchor": (0.5, -0.09), "loc": "upper center", "ncol": 4}
        ax.legend(frameon=False, fontsize=7, markerscale=2.5, **below)
    x, y = np.asarray(adata.obsm[basis])[adata.obs_names.get_loc(cell), :2]
    ax.scatter(x, y, s=110, facecolor="none", edgecolor="black", lw=2)
    short = basis.removeprefix("X_")
    ax.set(xticks=[], yticks=[], xlabel=f"{short} 1", ylabel=f"{short} 2")
    clean(ax)
    table.axis("off")
    half = 14
    for i, symbol in enumerate(genes["symbol"].head(2 * half)):
        place = (0.02 + 0.52 * (i // half), 0.8 - 0.058 * (i % half))
        table.text(*place, f"{i + 1:>2}  {symbol}", fontsize=8, transform=table.transAxes)
    table.set_title(f"{cell} (ringed)\n{text}\n\nits highest ranked genes:", fontsize=9, loc="left", y=0.86)
    return figure
