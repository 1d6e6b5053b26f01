"""Package-wide settings, read from MAXTOKI_* environment variables at import."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path


def _flag(name: str, *, default: bool) -> bool:
    return os.environ.get(name, str(int(default))).strip().lower() not in {"0", "false", "no", "off"}


def _cores() -> int:
    # The cores this process may use, which on a cluster node are fewer than the node has.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class Settings:
    """What applies to every call.

    Attributes
    ----------
    progress
        Show progress bars on work of more than two seconds (`MAXTOKI_PROGRESS`).
    cache_dir
        Where downloaded data sets are kept (`MAXTOKI_CACHE`).
    n_jobs
        Threads for encoding and simulation (`MAXTOKI_JOBS`); the results do not depend on it.
    max_tokens
        Padded tokens that a model reads at once (`MAXTOKI_MAX_TOKENS`), by default what suits the device;
        halved whenever memory runs out. The results do not depend on it beyond rounding (about 1e-6).
    debug
        Show the traceback of an error of a command (`MAXTOKI_DEBUG`, or `--debug`).
    """

    progress: bool = field(default_factory=lambda: _flag("MAXTOKI_PROGRESS", default=True))
    cache_dir: Path = field(
        default_factory=lambda: Path(os.environ.get("MAXTOKI_CACHE", "~/.cache/maxtoki_toolkit")).expanduser()
    )
    n_jobs: int = field(default_factory=lambda: int(os.environ.get("MAXTOKI_JOBS", "0")) or _cores())
    max_tokens: int | None = field(
        default_factory=lambda: int(os.environ.get("MAXTOKI_MAX_TOKENS", "0")) or None
    )
    debug: bool = field(default_factory=lambda: _flag("MAXTOKI_DEBUG", default=False))


settings = Settings()
