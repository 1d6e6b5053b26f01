"""Recipes: settings in groups, the same objects for Python, YAML files and the command line."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Self

from ._doors import check
from ._files import read_yaml
from ._names import closest


class Checked:
    """Settings whose types and ranges are checked when they are made."""

    def __post_init__(self) -> None:
        check(type(self), {part.name: getattr(self, part.name) for part in fields(self)})

    @classmethod
    def of(cls, **settings: Any) -> Self:
        """Make a recipe of single settings by their names, whichever group they are in.

        Examples
        --------
        >>> import maxtoki_toolkit as mt
        >>> mt.train.TemporalRecipe.of(max_steps=500, teacher="ridge", running=1.0).optimization.max_steps
        500
        """
        known = cls.names()
        if unknown := [name for name in settings if name not in known]:
            raise TypeError(
                f"{cls.__name__} has no setting {unknown[0]!r}.{closest(unknown[0], known)} It has {', '.join(known)}."
            )
        made = {}
        for part in fields(cls):
            if is_dataclass(part.default_factory):
                made[part.name], _ = part.default_factory.split(settings)
            elif part.name in settings:
                made[part.name] = settings[part.name]
        return cls(**made)

    @classmethod
    def split(cls, settings: Mapping[str, Any]) -> tuple[Self, dict[str, Any]]:
        """A recipe of those settings that are its own, and the others."""
        mine = {name: settings[name] for name in cls.names() if name in settings}
        return cls.of(**mine), {name: value for name, value in settings.items() if name not in mine}

    @classmethod
    def names(cls) -> list[str]:
        """Names of all settings."""
        found = []
        for part in fields(cls):
            found += part.default_factory.names() if is_dataclass(part.default_factory) else [part.name]
        return found

    def flat(self) -> dict[str, Any]:
        """All settings by name."""
        found = {}
        for part in fields(self):
            value = getattr(self, part.name)
            found |= value.flat() if isinstance(value, Checked) else {part.name: value}
        return found


def read_call(
    path: str | Path, function: Callable, recipe: type[Checked], others: Sequence[str] = ()
) -> dict[str, Any]:
    """Arguments of a function from YAML, in which its parameters and the settings of its recipe stand side by side.

    Parameters
    ----------
    path
        The file.
    function
        It has a parameter `recipe`.
    recipe
        Class of that.
    others
        Further settings that the file may have.

    Raises
    ------
    ValueError
        If a setting is unknown or missing.
    """
    settings = read_yaml(path)
    parameters = dict(inspect.signature(function).parameters)
    del parameters["recipe"]
    known = {*parameters, *recipe.names(), *others}
    if unknown := sorted(set(map(str, settings)) - known):
        hints = [closest(name, known) for name in unknown]
        if not all(hints):
            hints = [f" It takes {', '.join([*parameters, *others])}, and the settings of {recipe.__name__}."]
        raise ValueError(f"{path} has unknown settings: {', '.join(unknown)}.{''.join(hints)}")
    needed = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    if missing := [name for name in needed if name not in settings]:
        raise ValueError(f"{path} lacks {', '.join(missing)}.")
    made, settings = recipe.split(settings)
    return {**settings, "recipe": made}
