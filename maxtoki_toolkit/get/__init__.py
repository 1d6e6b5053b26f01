"""Results as tidy tables."""

from .results import encoding_report, gene_report, neighbor_purity, ranks
from .timelapse import prompts, timelapse, timelapse_scores

__all__ = [
    "encoding_report",
    "gene_report",
    "neighbor_purity",
    "prompts",
    "ranks",
    "timelapse",
    "timelapse_scores",
]
