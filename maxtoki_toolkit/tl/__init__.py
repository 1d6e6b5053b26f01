"""Analyse cells with a model."""

from .embed import embed
from .neighbor_purity import neighbor_purity

__all__ = ["embed", "neighbor_purity"]
