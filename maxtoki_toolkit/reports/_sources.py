"""The notebooks that there are: those of the project by name, any other by path."""

from __future__ import annotations

from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from .._files import load_yaml_file


class Source(NamedTuple):
    """A notebook before it is run."""

    name: str
    """File name without its ending."""
    folder: Path
    """Where it lies."""
    notebook: Any
    """The `NotebookNode`."""


def notebook_paths() -> dict[str, Path]:
    """The project's notebooks (their sources) by name."""
    return {path.stem: path for path in sorted(_folder().glob("*.py"))}


def preset_paths() -> dict[str, Path]:
    """Sets of parameters that come with them, by name."""
    return {path.stem: path for path in sorted((_folder() / "presets").glob("*.yaml"))}


def _folder() -> Path:
    """Where the notebooks lie: inside an installed package, beside it in a source checkout."""
    package = Path(str(files("maxtoki_toolkit")))
    places = [package / "notebooks", package.parent / "notebooks"]
    for place in places:
        if place.is_dir():
            return place
    raise FileNotFoundError(
        f"Found no notebooks in {' or '.join(map(str, places))}. Install maxtoki_toolkit again."
    )


def read_source(notebook: str | Path) -> Source:
    """Read a notebook, by the name of one of the project's or the path of an .ipynb or .py file."""
    import jupytext
    import nbformat

    path = Path(notebook)
    if path.suffix not in (".ipynb", ".py"):
        path = by_name(str(notebook), notebook_paths(), "notebook", "mt.reports.catalogue()")
    if not path.is_file():
        raise FileNotFoundError(f"Did not find the notebook {path}.")
    try:
        read = jupytext.read(path)
        # Older files have cells without ids, of which nbformat would warn.
        _, content = nbformat.validator.normalize(nbformat.v4.upgrade(read))
    except (nbformat.reader.NotJSONError, nbformat.ValidationError, KeyError) as error:
        raise ValueError(f"{path} is no notebook: {error}") from None
    # Paired with a script, the report would be written back to one.
    content.metadata.pop("jupytext", None)
    content.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return Source(path.stem, path.parent, content)


def read_preset(name: str | Path) -> Any:
    """Content of a YAML file of parameters, by path or by the name of one of the project's."""
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = by_name(str(name), preset_paths(), "preset", "the folder notebooks/presets")
    if not path.is_file():
        raise FileNotFoundError(f"Did not find the parameters {path}.")
    return load_yaml_file(path)


def by_name(name: str, known: dict[str, Path], what: str, where: str) -> Path:
    """Return the path of a name, or say which come close."""
    if name in known:
        return known[name]
    close = get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    raise ValueError(f"There is no {what} {name!r}.{hint} {where} has all {len(known)}; a path works, too.")
