"""Parameters that many figures have, described once.

A docstring names them in braces, each on a line of its own: {adata}, {key}, {k}, {ax}.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable

from ..results.schema import SCHEMA

_PARTS = {
    "adata": "Cells with a result of `mt.{function}`.",
    "key": "Key in `.uns`, if the result is not where `mt.{function}` usually puts it.",
    "k": "Ranks, where there are several; by default the most.",
    "ax": "Axes to draw on; by default those of a new figure.",
}


def fill(draw: Callable) -> str | None:
    """The docstring of a function with the shared parts in it; the result that it draws is known by its default key."""
    key = inspect.signature(draw).parameters.get("key")
    function = SCHEMA[key.default].function if key else ""

    def part(found: re.Match) -> str:
        indent, name = found.groups()
        return f"{indent}{name}\n{indent}    {_PARTS[name].format(function=function)}"

    return draw.__doc__ and re.sub(r"^( *)\{(\w+)\}$", part, draw.__doc__, flags=re.MULTILINE)
