"""Draw results.

A function of one panel returns matplotlib axes and takes `ax`; one of several returns a figure, which a
notebook shows where it is the last line of a cell, and a script saves with `fig.savefig`.
"""

from .._doors import guard
from .ablate_heads import ablate_heads
from .ablation import ablation
from .age_acceleration import age_acceleration
from .annotate import annotate
from .annotation_concordance import annotation_concordance
from .attribute import attribute
from .corpus_composition import corpus_composition
from .coverage import coverage
from .differential_rank import differential_rank
from .differential_rank_heatmap import differential_rank_heatmap
from .doublets import doublets
from .driver_features import driver_features
from .encoding_report import encoding_report
from .evaluate_generated import evaluate_generated
from .evaluate_sae import evaluate_sae
from .feature_effects import feature_effects
from .feature_families import feature_families
from .feature_summary import feature_summary
from .flag_plates import flag_plates
from .gene_effects import gene_effects
from .gene_network import gene_network
from .gene_task import gene_task
from .generated_ages import generated_ages
from .generation_diversity import generation_diversity
from .head_enrichment import head_enrichment
from .head_profiles import head_profiles
from .head_segments import head_segments
from .head_similarity import head_similarity
from .matched_ages import matched_ages
from .neighbor_purity import neighbor_purity
from .neighborhood_enrichment import neighborhood_enrichment
from .patch import patch
from .perturbation import perturbation
from .perturbation_concordance import perturbation_concordance
from .perturbation_dose import perturbation_dose
from .perturbation_heatmap import perturbation_heatmap
from .perturbation_metrics import perturbation_metrics
from .perturbation_volcano import perturbation_volcano
from .predict_response import predict_response
from .predicted_ages import predicted_ages
from .prompt import prompt
from .prompt_attention import prompt_attention
from .rank_heatmap import rank_heatmap
from .search_gene_sets import search_gene_sets
from .separability import separability
from .spatial import spatial
from .spatial_features import spatial_features
from .spectral_entropy import spectral_entropy
from .steer_cells import steer_cells
from .target_evidence import target_evidence
from .timelapse_error import timelapse_error
from .timelapse_scatter import timelapse_scatter
from .train_on_generated import train_on_generated
from .translate import translate
from .variogram import variogram

__all__ = [
    "ablate_heads",
    "ablation",
    "age_acceleration",
    "annotate",
    "annotation_concordance",
    "attribute",
    "corpus_composition",
    "coverage",
    "differential_rank",
    "differential_rank_heatmap",
    "doublets",
    "driver_features",
    "encoding_report",
    "evaluate_generated",
    "evaluate_sae",
    "feature_effects",
    "feature_families",
    "feature_summary",
    "flag_plates",
    "gene_effects",
    "gene_network",
    "gene_task",
    "generated_ages",
    "generation_diversity",
    "head_enrichment",
    "head_profiles",
    "head_segments",
    "head_similarity",
    "matched_ages",
    "neighbor_purity",
    "neighborhood_enrichment",
    "patch",
    "perturbation",
    "perturbation_concordance",
    "perturbation_dose",
    "perturbation_heatmap",
    "perturbation_metrics",
    "perturbation_volcano",
    "predict_response",
    "predicted_ages",
    "prompt",
    "prompt_attention",
    "rank_heatmap",
    "search_gene_sets",
    "separability",
    "spatial",
    "spatial_features",
    "spectral_entropy",
    "steer_cells",
    "target_evidence",
    "timelapse_error",
    "timelapse_scatter",
    "train_on_generated",
    "translate",
    "variogram",
]

guard(globals(), __all__)
