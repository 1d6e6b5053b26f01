"""Train models. Needs the extra `train`."""

from .._doors import guard
from .clock import ClockRecipe, HoldOut, clock
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
    "ClockRecipe",
    "HoldOut",
    "Optimization",
    "PretrainRecipe",
    "Run",
    "TemporalPrompts",
    "TemporalRecipe",
    "TimeObjective",
    "clock",
    "pretrain",
    "temporal",
]

guard(globals(), __all__)
