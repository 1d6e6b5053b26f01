"""What recipes and other groups of settings are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Any, Self

from ._doors import check
from ._names import closest


class Checked:
    """Settings that belong together: frozen dataclasses whose types and ranges are checked when they are made."""

    def __post_init__(self) -> None:
        check(type(self), {part.name: getattr(self, part.name) for part in fields(self)})

    @classmethod
    def of(cls, **settings: Any) -> Self:
        """Make a recipe of single settings by their names, whichever group they are in.

        Examples
        --------
        >>> from maxtoki_toolkit.train import TemporalRecipe
        >>> TemporalRecipe.of(max_steps=500, teacher="ridge", running=1.0).optimization.max_steps
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
        for name, value in asdict(self).items():
            found |= value if is_dataclass(getattr(self, name)) else {name: value}
        return found
