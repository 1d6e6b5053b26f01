"""Analyse cells with a model."""

from .ablate_prompt import ablate_prompt
from .age_acceleration import age_acceleration
from .embed import embed
from .generate import generate
from .log_likelihood import log_likelihood
from .neighbor_purity import neighbor_purity
from .predict_timelapse import predict_timelapse
from .timelapse_baselines import timelapse_baselines

__all__ = [
    "ablate_prompt",
    "age_acceleration",
    "embed",
    "generate",
    "log_likelihood",
    "neighbor_purity",
    "predict_timelapse",
    "timelapse_baselines",
]
