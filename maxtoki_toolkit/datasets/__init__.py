"""Data: the simulated atlas with planted truth, small shipped data and the registry of public data."""

from __future__ import annotations

from .._doors import guard
from .._manifests import fetch, manifest
from ._aging_atlas import aging_atlas
from ._branching_course import branching_course
from ._corpus_recipe import CellBalance, CellFilters, CorpusRecipe, StoreColumns
from ._drug_screen import drug_screen
from ._registry import available, load
from ._tissue import tissue
from .census import census, census_plan
from .paired_modalities import paired_modalities

__all__ = [
    "CellBalance",
    "CellFilters",
    "CorpusRecipe",
    "StoreColumns",
    "aging_atlas",
    "available",
    "branching_course",
    "census",
    "census_plan",
    "drug_screen",
    "fetch",
    "load",
    "manifest",
    "paired_modalities",
    "tissue",
]

guard(globals(), __all__)
