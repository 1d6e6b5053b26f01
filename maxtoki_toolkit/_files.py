"""Files: atomic writes and checksums."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Temporary names say whose they are: host, process, and a random part.
_HOST = re.sub(r"[^A-Za-z0-9]", "", socket.gethostname())[:32] or "host"
_OWNER = r"(?P<host>[A-Za-z0-9]+)-(?P<pid>\d+)-[0-9a-f]{8}"
_LONG_AGO = 2 * 86400  # seconds; for what another machine left, whose processes cannot be seen


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it there on success, remove it on failure.

    Works for a file and for a directory (zarr store, model folder); an existing target is replaced. What a
    process that was killed has left of the same target goes.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path)
    owner = f"{_HOST}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    # The suffix stays, because writers choose their format by it.
    temporary = path.with_name(f".{path.stem}.{owner}{path.suffix}")
    try:
        yield temporary
        if temporary.is_dir() and path.is_dir():
            old = path.with_name(f".{path.name}.{owner}.old")
            path.rename(old)
            temporary.rename(path)
            shutil.rmtree(old)
        else:
            temporary.replace(path)
    finally:
        remove(temporary)


def sweep(path: Path) -> None:
    """Remove temporary files of a target whose process is no more; put back what it was about to replace."""
    if not path.parent.is_dir():
        return
    unfinished = re.compile(rf"\.{re.escape(path.stem)}\.{_OWNER}{re.escape(path.suffix)}")
    replaced = re.compile(rf"\.{re.escape(path.name)}\.{_OWNER}\.old")
    for left in list(path.parent.iterdir()):
        found = unfinished.fullmatch(left.name) or replaced.fullmatch(left.name)
        if found is None or not _is_abandoned(left, found["host"], int(found["pid"])):
            continue
        if left.name.endswith(".old") and not path.exists():
            left.rename(path)
        else:
            remove(left)


def sweep_folder(folder: Path) -> None:
    """Remove all temporary files in a folder whose process is no more."""
    temporary = re.compile(rf"\..+\.{_OWNER}(\.[^.]*)?")
    for left in list(folder.iterdir()):
        if (found := temporary.fullmatch(left.name)) and _is_abandoned(
            left, found["host"], int(found["pid"])
        ):
            remove(left)


def remove(path: Path) -> None:
    """Remove a file or a folder of ours, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_abandoned(path: Path, host: str, pid: int) -> bool:
    if host == _HOST and os.name == "posix":
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return False
    try:
        return time.time() - path.stat().st_mtime > _LONG_AGO
    except FileNotFoundError:
        return False


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_yaml(text: str) -> Any:
    """Content of YAML, in which 1e-4 is a number as in JSON and YAML 1.2, and not a text as in YAML 1.1."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    number = re.compile(r"[-+]?(\d[\d_]*(\.[\d_]*)?|\.\d[\d_]*)[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    return yaml.load(text, Loader)


def read_yaml(path: str | Path) -> dict:
    """Settings of a YAML file, by name."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"Did not find {path}.")
    settings = load_yaml_file(path)
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold settings as `name: value`.")
    return settings


def load_yaml_file(path: str | Path) -> Any:
    """Content of a YAML file, or say in one line where it is none."""
    import yaml

    try:
        return load_yaml(Path(path).read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise ValueError(
            f"{path} is not valid YAML: {error.problem} (line {mark.line + 1}, column {mark.column + 1}). Look at the "
            "indentation and the quotes there."
        ) from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from None
