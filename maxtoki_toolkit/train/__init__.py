"""Train models. Needs the extra `train`."""

from .._doors import guard
from .pretrain import pretrain
from .recipe import (
    Adaptation,
    Optimization,
    PretrainRecipe,
    Run,
    TemporalPrompts,
    TemporalRecipe,
    TimeObjective,
)
from .temporal import temporal

__all__ = [
    "Adaptation",
    "Optimization",
    "PretrainRecipe",
    "Run",
    "TemporalPrompts",
    "TemporalRecipe",
    "TimeObjective",
    "pretrain",
    "temporal",
]

guard(globals(), __all__)
