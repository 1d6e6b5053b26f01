"""A container of widgets, with a picture for wherever no widgets are."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable

import ipywidgets
import plotly.graph_objects as go

WIDGET = "application/vnd.jupyter.widget-view+json"
PLOTLY = "application/vnd.plotly.v1+json"


class Container(ipywidgets.VBox):
    """Widgets one above the other; elsewhere (exported HTML, GitHub, PDF) a picture of how they began."""

    def __init__(self, children: list, bundle: dict) -> None:
        super().__init__(children)
        self._bundle = bundle

    def _repr_mimebundle_(self, **kwargs) -> dict:
        return (super()._repr_mimebundle_(**kwargs) if is_attended() else {}) | self._bundle


def is_attended() -> bool:
    """Whether somebody can click: a front end that executes a notebook from start to end takes no input either."""
    from IPython import get_ipython

    kernel = getattr(get_ipython(), "kernel", None)
    return kernel is None or kernel._allow_stdin


def static_bundle(picture, figure: dict | None, text: str) -> dict:
    """What is shown where no widgets are: the plotly figure, if any, where that can be drawn, else the picture.

    Parameters
    ----------
    picture
        matplotlib figure.
    figure
        plotly figure, as a dictionary; `None` for none.
    text
        What a terminal shows.
    """
    buffer = io.BytesIO()
    picture.savefig(buffer, format="png", dpi=110)
    drawn = {} if figure is None else {PLOTLY: json.loads(go.Figure(figure).to_json())}
    return {"text/plain": text, "image/png": base64.b64encode(buffer.getvalue()).decode(), **drawn}


def picture_only(bundle: dict) -> Container:
    """Container for a notebook that nobody attends: without the megabytes that live figures take in a notebook."""
    return Container([ipywidgets.Image(value=base64.b64decode(bundle["image/png"]), format="png")], bundle)


def live_figure(figure: dict) -> go.FigureWidget:
    """A figure that can be clicked, without plotly's buttons, which would lie on the titles."""
    live = go.FigureWidget(figure)
    live._config = {"displayModeBar": False}
    return live


def refresh(live: go.FigureWidget, old: dict, new: dict) -> bool:
    """Turn one figure into another, and send only what differs; tell whether its traces are others now."""
    with live.batch_update():
        other = [trace.get("name") for trace in old["data"]] != [trace.get("name") for trace in new["data"]]
        if other:
            live.data = ()
            live.add_traces(new["data"])
        else:
            for trace, before, after in zip(live.data, old["data"], new["data"], strict=True):
                for name in after.keys() - {"type"}:
                    if before.get(name) != after[name]:
                        trace[name] = after[name]
        for name, value in new["layout"].items():
            if old["layout"].get(name) != value:
                live.layout[name] = value
    return other


def quietly(control: ipywidgets.Widget, handler: Callable, value, options: list | None = None) -> None:
    """Set what a control offers and shows, without calling its handler."""
    control.unobserve(handler, "value")
    if options is not None and list(control.options) != options:
        control.options = options
    if control.value != value:
        control.value = value
    control.observe(handler, "value")
