"""Checkpoints of a training: complete, or not there."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .._warn import warn

_KEPT = 2
_FILES = "files.json"


def unfinished(folder: Path) -> Path:
    """Where a checkpoint is until it is complete."""
    return folder / ".unfinished"


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Leave nothing half-written in `unfinished(folder)` if a checkpoint cannot be written, as where the disk is full."""
    try:
        yield
    except BaseException as error:
        drop_unfinished(folder)
        if not isinstance(error, Exception):
            raise
        last = last_checkpoint(folder)
        raise OSError(
            f"A checkpoint could not be written to {folder} ({str(error).splitlines()[0] if str(error) else error!r}). "
            f"{'None is there yet' if last is None else f'{last.name} is kept'}: make room there and give the same call "
            "again, which goes on from it."
        ) from error


def finish(folder: Path, step: int) -> None:
    """Put the checkpoint of a step, written in `unfinished(folder)`, in its place, and drop all but the last two."""
    written = unfinished(folder) / f"checkpoint-{step}"
    sizes = _sizes(written)
    (written / _FILES).write_text(json.dumps(sizes, indent=2))
    # It must not be in its place on the disk before its content is.
    for name in (*sizes, _FILES):
        with (written / name).open("rb+") as file:
            os.fsync(file.fileno())
    shutil.rmtree(folder / written.name, ignore_errors=True)
    written.rename(folder / written.name)
    for old in _checkpoints(folder)[:-_KEPT]:
        # Out of its place at once: half of it must not be taken for the whole.
        old.rename(unfinished(folder) / old.name)
    drop_unfinished(folder)


def drop_unfinished(folder: Path) -> None:
    """Remove what a training that was killed has left."""
    shutil.rmtree(unfinished(folder), ignore_errors=True)


def last_checkpoint(folder: Path) -> Path | None:
    """The latest complete checkpoint, if there is one."""
    for path in reversed(_checkpoints(folder)):
        if _is_complete(path):
            return path
        warn(f"{path} is incomplete: it is left out.")
    return None


def _checkpoints(folder: Path) -> list[Path]:
    """Folders of checkpoints, by step."""
    steps = {path: re.fullmatch(r"checkpoint-(\d+)", path.name) for path in folder.glob("checkpoint-*")}
    return sorted((path for path, step in steps.items() if step), key=lambda path: int(steps[path][1]))


def _is_complete(path: Path) -> bool:
    try:
        expected = json.loads((path / _FILES).read_text())
    except (OSError, ValueError):
        return False
    found = _sizes(path)
    return bool(expected) and all(found.get(name) == size for name, size in expected.items())


def _sizes(path: Path) -> dict[str, int]:
    files = (file for file in path.rglob("*") if file.is_file())
    return {file.relative_to(path).as_posix(): file.stat().st_size for file in sorted(files)}
