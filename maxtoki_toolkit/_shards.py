"""Long jobs in parts: shared out over processes and machines, and gone on with after an interruption."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TypeVar

from anndata import AnnData
from filelock import FileLock, Timeout

from ._files import atomic, remove, sweep_folder
from ._outputs import differences
from ._progress import hidden, progress
from ._warn import warn

Result = TypeVar("Result")

_MANIFEST, _LOCK = "manifest.json", "lock"
_SHARD = re.compile(r"\d{6}\.[0-9a-f]{16}\.h5ad")


def process_index(*, share_array: bool = False) -> tuple[int, int]:
    """Number of this process, and how many share the job.

    As `accelerate launch` and torchrun say, and, if that is asked for, the task of a SLURM array.

    Raises
    ------
    ValueError
        If this is no task of an array, or of one with gaps: nobody would make what falls into them.
    """
    env = os.environ
    rank, size = (int(env["RANK"]), int(env["WORLD_SIZE"])) if {"RANK", "WORLD_SIZE"} <= set(env) else (0, 1)
    task, n_tasks = _array_index() if share_array else (0, 1)
    return task * size + rank, n_tasks * size


def _array_index() -> tuple[int, int]:
    env = os.environ
    if "SLURM_ARRAY_TASK_ID" not in env:
        raise ValueError(
            "share_array (--share-array) is for the tasks of a SLURM array: this process is none. Leave it out."
        )
    task, count, first, last, step = (
        int(env.get(f"SLURM_ARRAY_TASK_{name}", default))
        for name, default in (
            ("ID", 0),
            ("COUNT", 1),
            ("MIN", 0),
            ("MAX", env["SLURM_ARRAY_TASK_ID"]),
            ("STEP", 1),
        )
    )
    numbers = range(first, last + 1, step)
    if len(numbers) != count or task not in numbers:
        raise ValueError(
            f"The SLURM array has {count} tasks between {first} and {last}: with gaps in the list, parts of the job would be "
            f"nobody's. Give --array=0-{count - 1}, or run the command once without share_array (--share-array): it makes what "
            "is left."
        )
    return numbers.index(task), count


def job_digest(n_shards: int, recipe: dict) -> str:
    """What all parts of one job, and no others, have in their names."""
    text = json.dumps([n_shards, recipe], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def shard_path(folder: Path, number: int, digest: str) -> Path:
    """Where a part of a job is, or will be."""
    return folder / f"{number:06d}.{digest}.h5ad"


def parts_folder(path: Path) -> Path:
    """Where the parts of a file are until it is complete."""
    return path.with_name(f"{path.name}.parts")


def count_shards(folder: Path) -> tuple[int, int]:
    """How many parts of an interrupted job are kept, and of how many; 0 of 0 where there is no job."""
    if (manifest := _read_manifest(folder)) is None:
        return 0, 0
    n_shards = manifest["n_shards"]
    digest = job_digest(n_shards, manifest["recipe"])
    return sum(shard_path(folder, i, digest).is_file() for i in range(n_shards)), n_shards


def run_shards(
    folder: Path,
    sizes: Sequence[int],
    recipe: dict,
    *,
    compute: Callable[[list[int]], Iterator[AnnData]],
    join: Callable[[list[Path]], Result],
    find: Callable[[], Result | None],
    made: Callable[[], Result | None],
    desc: str,
    unit: str,
    share_array: bool = False,
    overwrite: bool = False,
) -> Result | None:
    """Make the parts of a job that are left, and put them together where all are there.

    Parameters
    ----------
    folder, recipe, share_array, overwrite
        As in `open_shards`.
    sizes
        Of each part, in `unit`.
    compute
        Yields the parts of these numbers, in their order.
    join
        Makes the result of the paths of all parts.
    find, made
        The result, if it is there: before anything is done, where another one may be refused or is to be
        replaced, and at the end, where another process had the same to do.
    desc, unit
        What the progress bar says; a part that is alone shows its own.

    Returns
    -------
    The result; `None` where another process has to finish.
    """
    n, digest = len(sizes), job_digest(len(sizes), recipe)
    shared = process_index(share_array=share_array)[1] > 1
    if (found := find()) is not None:
        drop_shards(folder, digest)
        return found
    with open_shards(folder, n, recipe, share_array=share_array, overwrite=overwrite) as todo:
        done = sum(size for i, size in enumerate(sizes) if shard_path(folder, i, digest).is_file())
        total = done + sum(sizes[number] for number in todo)
        with progress(total=total, initial=done, desc=desc, unit=unit, disable=n == 1) as bar:
            parts = compute(todo)
            for number in todo:
                with nullcontext() if n == 1 else hidden():
                    part = next(parts)
                with atomic(shard_path(folder, number, digest)) as temporary:
                    part.write_h5ad(temporary)
                bar.update(sizes[number])
    with take_shards(folder, n, recipe, wait=not shared) as paths:
        if paths is not None:
            return join(paths)
    if (found := made()) is not None:
        drop_shards(folder, digest)
        return found
    if shared:
        return None
    raise ValueError(
        f"Parts of the job in {folder} have gone meanwhile. Run it again: it makes what is missing."
    )


@contextmanager
def open_shards(
    folder: Path, n_shards: int, recipe: dict, *, share_array: bool = False, overwrite: bool = False
) -> Iterator[list[int]]:
    """Make or find the folder of the parts; yield the numbers of those that this process has to make.

    If that fails before there is any part, the folder goes.

    Parameters
    ----------
    folder
        Folder of the parts.
    n_shards, recipe
        What tells this job from others.
    share_array
        Whether the tasks of a SLURM array share the job.
    overwrite
        Whether parts of another job that are there are to go.

    Raises
    ------
    ValueError
        If the folder holds parts of another job, or anything else.
    """
    index, count = process_index(share_array=share_array)
    digest = job_digest(n_shards, recipe)
    others = _others(folder, n_shards, recipe, overwrite=overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder, wait=False) if count == 1 else nullcontext(enter_result=True) as mine:
        if not mine:
            raise ValueError(
                f"Another process is at work in {folder}. Wait for it, or choose another output."
            )
        for path in others:
            remove(path)
        if not (folder / _MANIFEST).is_file():
            with atomic(folder / _MANIFEST) as temporary:
                temporary.write_text(
                    json.dumps({"n_shards": n_shards, "recipe": recipe}, indent=2, default=str)
                )
        try:
            yield [i for i in range(index, n_shards, count) if not shard_path(folder, i, digest).is_file()]
        except BaseException:
            if not any(shard_path(folder, i, digest).is_file() for i in range(n_shards)):
                drop_shards(folder, digest)
            raise


@contextmanager
def take_shards(
    folder: Path, n_shards: int, recipe: dict, *, wait: bool = True
) -> Iterator[list[Path] | None]:
    """Yield the paths of all parts, if they are there, and delete them afterwards; no other process has them meanwhile.

    If what is done with them fails, they stay. `None` where parts are missing, or were put together by
    another process; without `wait` also while another is at it.
    """
    digest = job_digest(n_shards, recipe)
    paths = [shard_path(folder, i, digest) for i in range(n_shards)]
    if not all(path.is_file() for path in paths):
        yield None
        return
    with _locked(folder, wait=wait) as mine:
        if mine and all(path.is_file() for path in paths):
            yield paths
        else:
            mine = False
            yield None
    if mine:
        drop_shards(folder, digest)


def drop_shards(folder: Path, digest: str) -> None:
    """Delete the parts of one job, and the folder if nothing else is in it."""
    if not folder.is_dir():
        return
    for path in folder.glob(f"[0-9]*.{digest}.h5ad"):
        path.unlink(missing_ok=True)
    sweep_folder(folder)
    if {path.name for path in folder.iterdir()} <= {_MANIFEST, _LOCK}:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(folder: Path, *, wait: bool) -> Iterator[bool]:
    """Whether this process, and no other, is at work in the folder; gone with the process, however it ends."""
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            yield False
            return
        warn(f"Waiting for another process that is at work in {folder}.")
        lock.acquire()
    except OSError as error:
        warn(f"{folder} cannot be locked ({error}): run one process only.")
    try:
        yield True
    finally:
        lock.release()


def _others(folder: Path, n_shards: int, recipe: dict, *, overwrite: bool) -> list[Path]:
    """What is to be removed of other jobs; raise if that was not asked for, or there is anything else."""
    if not folder.exists():
        return []
    digest = job_digest(n_shards, recipe)
    found = [path for path in folder.iterdir() if not path.name.startswith(".") and path.name != _LOCK]
    manifest = _read_manifest(folder)
    strange = [path.name for path in found if not (_is_shard(path) or (path.name == _MANIFEST and manifest))]
    if strange:
        raise ValueError(f"{folder} holds what is no part of a job ({strange[0]}). Choose another output.")
    changed = [] if manifest is None else differences(manifest["recipe"], recipe)
    if manifest is not None and manifest["n_shards"] != n_shards:
        changed.append("n_shards")
    others = [path for path in found if _is_shard(path) and not _is_shard(path, digest)]
    if (others or changed) and not overwrite:
        raise ValueError(
            f"{folder} holds parts of a job with other settings ({', '.join(changed) or 'not known'}). Delete the folder, or "
            "choose another output."
        )
    return others + ([folder / _MANIFEST] if changed else [])


def _is_shard(path: Path, digest: str = "") -> bool:
    return _SHARD.fullmatch(path.name) is not None and digest in path.name


def _read_manifest(folder: Path) -> dict | None:
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
    return manifest if isinstance(manifest, dict) and {"n_shards", "recipe"} <= set(manifest) else None
