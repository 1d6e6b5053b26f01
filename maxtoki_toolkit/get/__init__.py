"""Results as tidy tables."""

from .ablation import ablation
from .age_acceleration import age_acceleration, donor_acceleration
from .results import encoding_report, gene_report, neighbor_purity, ranks
from .timelapse import prompts, timelapse, timelapse_scores

__all__ = [
    "ablation",
    "age_acceleration",
    "donor_acceleration",
    "encoding_report",
    "gene_report",
    "neighbor_purity",
    "prompts",
    "ranks",
    "timelapse",
    "timelapse_scores",
]
