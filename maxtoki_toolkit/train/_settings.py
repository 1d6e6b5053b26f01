"""Settings of a training: of the right kind and size, before anything is read or written."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple


class _Rule(NamedTuple):
    """What some settings must be."""

    names: tuple[str, ...]
    what: str
    kind: type
    holds: Callable[[Any], bool]


_RULES = (
    _Rule(
        (
            "max_steps",
            "batch_size",
            "accumulate",
            "n_held_out",
            "eval_every",
            "save_every",
            "rank",
            "shortest",
        ),
        "a whole number of at least 1",
        Integral,
        lambda x: x >= 1,
    ),
    _Rule(("seed", "freeze_layers"), "a whole number of at least 0", Integral, lambda x: x >= 0),
    _Rule(
        ("learning_rate", "embedding_rate", "scale", "loss_scale", "alpha"),
        "a number above 0",
        Real,
        lambda x: 0 < x < float("inf"),
    ),
    _Rule(
        ("weight_decay", "penalty", "clock", "running"),
        "a number of at least 0",
        Real,
        lambda x: 0 <= x < float("inf"),
    ),
    _Rule(
        ("warmup", "hold", "floor", "teach", "curriculum", "timelapse", "dropout"),
        "a number from 0 to 1",
        Real,
        lambda x: 0 <= x <= 1,
    ),
)
_BY_DEFAULT = ("scale", "loss_scale", "shortest")  # None stands for what the data say, or for no such thing


def require_settings(settings: Mapping[str, Any]) -> None:
    """Raise with the name of a setting that is of the wrong kind or size; names that have no rule are left alone."""
    for rule in _RULES:
        for name in rule.names:
            if name not in settings or (settings[name] is None and name in _BY_DEFAULT):
                continue
            value = settings[name]
            if isinstance(value, bool) or not isinstance(value, rule.kind) or not rule.holds(value):
                raise ValueError(f"{name} must be {rule.what}, got {value!r}.")


def plain(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe as it reads from its file, without numbers of NumPy."""
    return json.loads(json.dumps(recipe, default=lambda value: getattr(value, "tolist", value.__str__)()))
