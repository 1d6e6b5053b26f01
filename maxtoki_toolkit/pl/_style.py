"""One look for all figures, safe for colour-blind readers."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps

from matplotlib import rcParams
from matplotlib.text import Text

from ._docs import fill

# Okabe and Ito's palette, by what a colour stands for in this package.
MODEL, BASELINE, NULL = "#0072B2", "#E69F00", "#999999"
_EIGHT = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000"]
# Krzywinski's twelve colours for colour-blind readers, those alike far apart.
_TWELVE = ["#008DF9", "#FF6E3A", "#009F81", "#9F0162", "#FFC33B", "#8400CD"]
_TWELVE += ["#00FCCF", "#FF5AAF", "#00C2F9", "#E20134", "#FFB2FD", "#A40122"]


def category_colors(n: int) -> list[str]:
    """Colours for n categories; told apart without full colour vision up to twelve of them."""
    if n <= len(_EIGHT):
        return _EIGHT[:n]
    if n <= len(_TWELVE):
        return _TWELVE[:n]
    from scanpy.plotting.palettes import godsnot_102

    return [godsnot_102[i % len(godsnot_102)] for i in range(n)]


def drawing(draw: Callable) -> Callable:
    """What functions that draw have in common: shared parts of their docstrings, and text that is drawn as it is.

    (A dollar sign in a name of the user's begins no formula.)
    """
    draw.__doc__ = fill(draw)

    @wraps(draw)
    def drawn(*args, **settings):
        # Not by rc_context: the first figure of a notebook loads the backend, whose own settings have to
        # stay.
        before = rcParams["text.parse_math"]
        rcParams["text.parse_math"] = False
        try:
            result = draw(*args, **settings)
        finally:
            rcParams["text.parse_math"] = before
        figure = getattr(result, "figure", result)
        # Titles and labels of axes that were given are older; figures of plotly have no such text.
        for text in figure.findobj(Text) if hasattr(figure, "findobj") else []:
            text.set_parse_math(False)
        return result

    return drawn


def clean(ax) -> None:
    """Take away the frame's upper and right line."""
    ax.spines[["top", "right"]].set_visible(False)


def with_interval(
    value: float, low: float, high: float, *, decimals: int | None = None, join: str = " "
) -> str:
    """A value and, where it is known, its 95% interval, by default to two significant digits of the value."""
    if not math.isfinite(value):
        return "not defined"
    if decimals is None:
        decimals = max(0, 1 - math.floor(math.log10(abs(value)))) if value else 2
    interval = f"{join}[{low:.{decimals}f}, {high:.{decimals}f}]" if math.isfinite(low) else ""
    return f"{value:.{decimals}f}{interval}"
