"""Outputs: nothing that exists is replaced unless we wrote it and this was asked for; an input never.

What we write bears a mark that says which function wrote it, from what, and which files belong to it: an
attribute of an h5ad file or a zarr store, and `maxtoki.json` in a folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import __version__
from ._files import atomic, sweep

MARK, _ATTRIBUTE = "maxtoki.json", "maxtoki"
_ASK = "Give another one, or ask for it to be replaced: overwrite=True."


@contextmanager
def new_output(
    path: str | Path,
    *,
    by: str,
    job: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    inputs: Iterable[str | Path] = (),
) -> Iterator[Path]:
    """Yield a temporary path for an h5ad file, a zarr store or a folder; mark it and put it in place on success.

    Parameters
    ----------
    path
        What is written; a folder is ours as a whole.
    by
        Name of the function that writes.
    job
        What it is made from, for `check_output`.
    overwrite
        Whether an output of `by` that is there is to be replaced.
    inputs
        Files that are read.
    """
    path = Path(path)
    check_output(path, by=by, overwrite=overwrite, inputs=inputs)
    with atomic(path) as temporary:
        if path.suffix not in (".h5ad", ".zarr"):
            temporary.mkdir()
        yield temporary
        _mark(temporary, by, job, sorted(_names(temporary)))
        # Much may have happened since.
        check_output(path, by=by, overwrite=overwrite, inputs=inputs)


def check_output(
    path: str | Path,
    *,
    by: str,
    job: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    inputs: Iterable[str | Path] = (),
) -> bool:
    """Whether this very output is there already, made from `job`.

    Raises
    ------
    ValueError
        If something else is there: what `by` did not write, or, unless it is to be replaced, what it made
        from something else; if `path` is an input, or lies in one, or holds one.
    """
    path = Path(path)
    refuse_inputs(path, inputs)
    sweep(path)
    if not path.exists() or _is_empty(path):
        return False
    mark = read_mark(path, by)
    if mark is None:
        raise ValueError(f"{path} exists and was not written by {by}: it stays as it is. Give another one.")
    if others := sorted(_names(path) - {*mark["files"], MARK}):
        raise ValueError(
            f"{path} holds what {by} did not write ({_some(others)}): it stays as it is. Give another one."
        )
    if overwrite:
        return False
    if job is None:
        raise ValueError(f"{path} exists. {_ASK}")
    if changed := differences(mark["job"], job):
        raise ValueError(f"{path} was made from something else ({', '.join(changed)}). {_ASK}")
    return True


def is_made(path: str | Path, *, by: str, job: Mapping[str, Any]) -> bool:
    """Whether an output is there that `by` made from `job`."""
    mark = read_mark(path, by)
    return mark is not None and not differences(mark["job"], job)


def claim(
    folder: str | Path,
    names: Iterable[str],
    *,
    by: str,
    job: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Take names in a folder, which may hold other things, for files that `by` is about to write; see `check_names`."""
    folder, names = Path(folder), list(names)
    check_names(folder, names, by=by, job=job, overwrite=overwrite)
    mark = read_mark(folder, by) or {"files": []}
    folder.mkdir(parents=True, exist_ok=True)
    _mark(folder, by, job, sorted({*mark["files"], *names}))


def check_names(
    folder: str | Path,
    names: Iterable[str],
    *,
    by: str,
    job: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Raise if a folder holds files of these names that `by` did not write.

    And if it made them from another `job`, unless they are to be replaced.
    """
    folder = Path(folder)
    if folder.is_file():
        raise ValueError(f"{folder} is a file. Give a folder.")
    # In this order: a process beside this one marks the folder before it writes there.
    there = [name for name in names if (folder / name).exists()]
    mark = read_mark(folder, by) or {"files": [], "job": job}
    if others := sorted(set(there) - set(mark["files"])):
        raise ValueError(
            f"{folder} holds {_some(others)}, which {by} did not write and will not replace. Give another folder."
        )
    if there and not overwrite and (changed := differences(mark["job"], job)):
        raise ValueError(f"{folder} holds files made from something else ({', '.join(changed)}). {_ASK}")


def refuse_inputs(path: str | Path, inputs: Iterable[str | Path]) -> None:
    """Raise if writing `path` would touch an input."""
    to = Path(path).resolve()
    for given in inputs:
        source = Path(given).resolve()
        if to == source or to.is_relative_to(source) or source.is_relative_to(to):
            raise ValueError(f"Writing {path} would replace the input {given}. Give another output.")


def differences(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> list[str]:
    """Names of what two jobs do not have in common; one of them may come from a file."""
    old, new = (json.loads(json.dumps(dict(job or {}), default=str)) for job in (old, new))
    return sorted(key for key in {**old, **new} if old.get(key) != new.get(key))


def read_mark(path: str | Path, by: str) -> dict[str, Any] | None:
    """The mark of `by` on an output (`files`, `job`), or `None`."""
    mark = _read_marks(Path(path)).get(by)
    return mark if isinstance(mark, dict) and {"files", "job"} <= set(mark) else None


def _mark(path: Path, by: str, job: Mapping[str, Any] | None, files: list[str]) -> None:
    mark = {"version": __version__, "job": None if job is None else dict(job), "files": files}
    mark = json.loads(json.dumps(mark, default=str))
    if path.suffix == ".h5ad":
        import h5py

        with h5py.File(path, "a") as file:
            file.attrs[_ATTRIBUTE] = json.dumps({by: mark})
    elif path.suffix == ".zarr":
        import zarr

        zarr.open_group(path, mode="a").attrs[_ATTRIBUTE] = {by: mark}
    else:
        with atomic(path / MARK) as temporary:
            temporary.write_text(json.dumps({**_read_marks(path), by: mark}, indent=2) + "\n")


def _read_marks(path: Path) -> dict[str, Any]:
    """What is written on an output; {} where nothing is, or where it cannot be read."""
    try:
        if path.is_dir() and path.suffix == ".zarr":
            import zarr

            marks = zarr.open_group(path, mode="r").attrs.get(_ATTRIBUTE, {})
        elif path.is_dir():
            marks = json.loads((path / MARK).read_text()) if (path / MARK).is_file() else {}
        else:
            import h5py

            with h5py.File(path) as file:
                marks = json.loads(file.attrs.get(_ATTRIBUTE, "{}"))
    except (OSError, ValueError, KeyError):
        return {}
    return marks if isinstance(marks, dict) else {}


def _names(path: Path) -> set[str]:
    return {part.name for part in path.iterdir()} if path.is_dir() else set()


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
