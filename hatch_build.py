"""Puts the sources of the notebooks, without what they once showed, into an installed package."""

from __future__ import annotations

from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NotebookSources(BuildHookInterface):
    """Adds `notebooks/*.py` and the presets to the wheel."""

    def initialize(self, version: str, build_data: dict) -> None:
        """Name the files; an editable installation finds them where they are."""
        if version == "editable":
            return
        root = Path(self.root)
        for path in [*root.glob("notebooks/*.py"), *root.glob("notebooks/presets/*.yaml")]:
            build_data["force_include"][str(path)] = f"maxtoki_toolkit/{path.relative_to(root).as_posix()}"
