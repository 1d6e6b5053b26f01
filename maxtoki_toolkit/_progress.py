"""One progress bar for the whole package."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from ._settings import settings

_hidden = False


def progress(
    iterable=None,
    *,
    total: int | None = None,
    initial: int = 0,
    desc: str = "",
    unit: str = "it",
    disable: bool = False,
):
    """Text progress bar: silent for two seconds, off by `settings.progress`; `initial` was done before.

    Text rather than a widget, because a widget leaves a dead placeholder in a papermill output.
    """
    return tqdm(
        iterable,
        total=total,
        initial=initial,
        desc=desc,
        unit=unit,
        unit_scale=True,
        delay=2,
        # A log file or a notebook keeps every refresh, so refresh it rarely.
        mininterval=0.5 if sys.stderr.isatty() else 10,
        disable=disable or _hidden or not settings.progress,
        leave=False,
    )


@contextmanager
def hidden() -> Iterator[None]:
    """Show no bars inside: for steps whose caller shows one over all of them."""
    global _hidden
    before, _hidden = _hidden, True
    try:
        yield
    finally:
        _hidden = before
