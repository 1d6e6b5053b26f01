"""Warnings that show the caller's line, however deep inside the package they arise."""

from __future__ import annotations

import sys
import warnings

from ._errors import is_here

# What was said since a public function was called: Python shows a warning of one line once.
_said: dict = {}


def warn(message: str) -> None:
    """Warn, with the line outside this package that led here."""
    frame = sys._getframe(1)
    while frame.f_back is not None and is_here(frame.f_code.co_filename):
        frame = frame.f_back
    warnings.warn_explicit(
        message,
        UserWarning,
        frame.f_code.co_filename,
        frame.f_lineno,
        module=frame.f_globals.get("__name__"),
        registry=_said,
    )


def may_repeat() -> None:
    """Let each call of a public function warn anew."""
    _said.clear()
