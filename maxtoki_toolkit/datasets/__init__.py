"""Data: the simulated atlas with planted truth, small shipped data and the registry of public data."""

from __future__ import annotations

from .._doors import guard
from .._manifests import fetch, manifest
from ._aging_atlas import aging_atlas
from ._registry import available, load

__all__ = ["aging_atlas", "available", "fetch", "load", "manifest"]

guard(globals(), __all__)
