"""Settings of a training as its recipe keeps them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def plain(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe as it reads from its file, without numbers of NumPy."""
    return json.loads(json.dumps(recipe, default=lambda value: getattr(value, "tolist", value.__str__)()))
