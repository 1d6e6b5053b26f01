"""Results as tidy tables."""

from .._doors import guard
from .ablation import ablation
from .age_acceleration import age_acceleration, donor_acceleration
from .age_match import age_match, read_ages
from .annotation_concordance import annotation_concordance, annotation_matrix, annotation_types, annotations
from .corpus import corpus_composition, corpus_filters
from .differential_rank import compared_cells, differential_rank, differential_rank_scores
from .doublets import doublet_scores, doublets, singlet_fraction
from .gene_network import gene_network, gene_network_scores
from .gene_sets import gene_sets, gene_sets_genes, gene_sets_trace
from .generation_diversity import generation_diversity
from .heads import (
    attention,
    attention_genes,
    head_enrichment,
    head_profiles,
    head_segments,
    head_similarity,
    head_specificity,
    prompt_attention,
)
from .holdout_intervals import holdout_intervals, turning_genes
from .interventions import ablate_heads, attribute, attribute_segments, patch
from .perturbation import (
    concordant_genes,
    expression_age_slope,
    perturbation,
    perturbation_concordance,
    perturbation_controls,
    perturbation_stats,
)
from .perturbation_metrics import perturbation_metrics
from .predict_age import age_calibration, predicted_ages
from .results import encoding_report, gene_report, neighbor_purity, ranks
from .steer import steer, steer_cells, steer_genes, steer_trace
from .target_evidence import target_evidence
from .timelapse import prompts, timelapse, timelapse_scores
from .train_on_generated import train_on_generated, train_on_generated_donors

__all__ = [
    "perturbation_metrics",
    "gene_sets",
    "gene_sets_genes",
    "gene_sets_trace",
    "steer",
    "steer_cells",
    "steer_genes",
    "steer_trace",
    "target_evidence",
    "concordant_genes",
    "expression_age_slope",
    "perturbation",
    "perturbation_concordance",
    "perturbation_controls",
    "perturbation_stats",
    "generation_diversity",
    "ablate_heads",
    "attention",
    "attention_genes",
    "attribute",
    "attribute_segments",
    "head_enrichment",
    "head_profiles",
    "head_segments",
    "head_similarity",
    "head_specificity",
    "patch",
    "compared_cells",
    "corpus_composition",
    "corpus_filters",
    "differential_rank",
    "differential_rank_scores",
    "gene_network",
    "gene_network_scores",
    "holdout_intervals",
    "prompt_attention",
    "turning_genes",
    "ablation",
    "age_acceleration",
    "age_calibration",
    "age_match",
    "predicted_ages",
    "annotation_concordance",
    "annotation_matrix",
    "annotation_types",
    "annotations",
    "donor_acceleration",
    "doublet_scores",
    "doublets",
    "encoding_report",
    "gene_report",
    "neighbor_purity",
    "prompts",
    "ranks",
    "singlet_fraction",
    "read_ages",
    "timelapse",
    "timelapse_scores",
    "train_on_generated",
    "train_on_generated_donors",
]

guard(globals(), __all__)
