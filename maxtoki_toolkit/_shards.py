"""Long jobs in shards: shared out over processes and machines, and gone on with after an interruption."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ._files import atomic, sha256


def process_index() -> tuple[int, int]:
    """Number of this process, and how many there are.

    As `accelerate launch` and torchrun say, or the task of a SLURM array.
    """
    env = os.environ
    if "WORLD_SIZE" in env:
        return int(env.get("RANK", 0)), int(env["WORLD_SIZE"])
    if "SLURM_ARRAY_TASK_COUNT" in env:
        first = int(env.get("SLURM_ARRAY_TASK_MIN", 0))
        return int(env["SLURM_ARRAY_TASK_ID"]) - first, int(env["SLURM_ARRAY_TASK_COUNT"])
    return 0, 1


def shard_path(folder: Path, number: int) -> Path:
    """Where a shard is, or will be."""
    return folder / f"{number:06d}.h5ad"


def parts_folder(path: Path) -> Path:
    """Where the shards of a file are until it is complete."""
    return path.with_name(f"{path.name}.parts")


def count_shards(folder: Path) -> tuple[int, int]:
    """How many shards of an interrupted job are kept, and of how many; 0 of 0 where there is no job."""
    if not (folder / "manifest.json").is_file():
        return 0, 0
    n_shards = json.loads((folder / "manifest.json").read_text())["n_shards"]
    return sum(shard_path(folder, i).is_file() for i in range(n_shards)), n_shards


@contextmanager
def open_shards(folder: Path, n_shards: int, recipe: dict) -> Iterator[list[int]]:
    """Make or find the folder of the shards; yield the numbers of those that this process has to make.

    If that fails before there is any shard, the folder goes.

    Raises
    ------
    ValueError
        If the folder holds shards that were made from something else.
    """
    taken = _taken(folder)
    if taken.is_dir() and not folder.exists():
        # Whoever took them to put them together was interrupted.
        taken.rename(folder)
    # As it reads from the file.
    manifest = json.loads(json.dumps({"n_shards": n_shards, "recipe": recipe}))
    path = folder / "manifest.json"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with atomic(path) as temporary:
            temporary.write_text(json.dumps(manifest, indent=2))
    found = json.loads(path.read_text())
    if found != manifest:
        old, new = found.get("recipe", {}), manifest["recipe"]
        changed = [key for key in {**old, **new} if old.get(key) != new.get(key)] or ["n_shards"]
        raise ValueError(
            f"{folder} holds parts of a job with other settings ({', '.join(sorted(changed))}). Delete the folder, or "
            "choose another output."
        )
    index, count = process_index()
    try:
        yield [i for i in range(index, n_shards, count) if not shard_path(folder, i).is_file()]
    except BaseException:
        if not any(shard_path(folder, i).is_file() for i in range(n_shards)):
            shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def take_shards(folder: Path, n_shards: int) -> Iterator[list[Path] | None]:
    """Yield the paths of all shards to the process that finds them complete first, and delete them afterwards.

    Others get `None`. If what is done with them fails, they stay.
    """
    if not all(shard_path(folder, i).is_file() for i in range(n_shards)):
        yield None
        return
    taken = _taken(folder)
    try:
        # Only one process can do this.
        folder.rename(taken)
    except FileNotFoundError:
        yield None
        return
    try:
        yield [shard_path(taken, i) for i in range(n_shards)]
    except BaseException:
        taken.rename(folder)
        raise
    shutil.rmtree(taken)


def _taken(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.joining")


def file_identity(path: Path) -> dict:
    """What tells one input from another without reading it all: size, and checksum where that is quick."""
    path = Path(path)
    if path.is_dir():
        return {"path": str(path.resolve())}
    size = path.stat().st_size
    return {"size": size} | ({"sha256": sha256(path)} if size < 1 << 28 else {"path": str(path.resolve())})
