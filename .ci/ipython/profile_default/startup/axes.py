"""Started with every kernel that `.ci/run` starts: notes the labels of all axes that show numbers."""

import json
import os
import sys
from pathlib import Path

from matplotlib import backend_bases

# plotly imports nbformat, and that a grammar of web addresses, which takes seconds; it goes on without.
sys.modules.setdefault("rfc3987_syntax", None)


def _number(text):
    try:
        float(text.replace("\N{MINUS SIGN}", "-").replace("%", "").replace(",", ""))
    except ValueError:
        return "mathdefault" in text
    return True


def _row(axes):
    place = axes.get_subplotspec()
    return place and (id(place.get_gridspec()), place.rowspan.start)


def _labels(figure):
    """Label of each axis with numbers: its own, that of the first axes in the row, or that of the figure."""
    shared = {"x": figure.get_supxlabel(), "y": figure.get_supylabel()}
    rows = {}
    for axes in figure.axes:
        for name, axis in {"x": axes.xaxis, "y": axes.yaxis}.items():
            ticks = [tick.get_text() for tick in axis.get_ticklabels() if tick.get_visible()]
            label = axis.get_label_text() or shared[name]
            if name == "y" and (row := _row(axes)):
                label = label or rows.get(row, "")
                rows.setdefault(row, label)
            if hasattr(axes, "_colorbar"):
                label = label or axes.get_title("left") or axes.get_title()
                # scanpy writes what is coloured above the map.
                label = label or getattr(axes._colorbar.mappable.axes, "get_title", str)()
            if (
                axes.get_visible()
                and axes.axison
                and axis.get_visible()
                and any(map(_number, filter(None, ticks)))
            ):
                yield label


def _print_figure(canvas, *args, **kwargs):
    result = _original(canvas, *args, **kwargs)
    names = get_ipython().user_ns  # noqa: F821
    with Path(os.environ["MAXTOKI_AXES"]).open("a", encoding="utf-8") as file:
        for label in _labels(canvas.figure):
            file.write(json.dumps({"output": str(names.get("output", "")), "label": label}) + "\n")
    return result


if "MAXTOKI_AXES" in os.environ:
    _original = backend_bases.FigureCanvasBase.print_figure
    backend_bases.FigureCanvasBase.print_figure = _print_figure
