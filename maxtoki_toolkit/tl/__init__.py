"""Analyse cells with a model."""

from .embed import embed
from .generate import generate
from .neighbor_purity import neighbor_purity
from .predict_timelapse import predict_timelapse
from .timelapse_baselines import timelapse_baselines

__all__ = ["embed", "generate", "neighbor_purity", "predict_timelapse", "timelapse_baselines"]
