"""Train models. Needs the extra `train`."""

from .._doors import guard
from .classify import classify
from .clock import ClockRecipe, HoldOut, clock
from .pretrain import pretrain
from .recipe import (
    Adaptation,
    ClassifierOptimization,
    ClassifierRecipe,
    Optimization,
    PretrainRecipe,
    ResponseOptimization,
    ResponseRecipe,
    Run,
    SparseOptimization,
    SparseRecipe,
    TemporalPrompts,
    TemporalRecipe,
    TimeObjective,
)
from .response import response
from .sae import sae
from .temporal import temporal

__all__ = [
    "Adaptation",
    "ClassifierOptimization",
    "ClassifierRecipe",
    "ClockRecipe",
    "HoldOut",
    "Optimization",
    "PretrainRecipe",
    "ResponseOptimization",
    "ResponseRecipe",
    "Run",
    "SparseOptimization",
    "SparseRecipe",
    "TemporalPrompts",
    "TemporalRecipe",
    "TimeObjective",
    "classify",
    "clock",
    "pretrain",
    "response",
    "sae",
    "temporal",
]

guard(globals(), __all__)
