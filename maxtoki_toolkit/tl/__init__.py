"""Analyse cells with a model."""

from .._doors import guard
from ._contexts import AgeSampling
from .ablate_heads import ablate_heads
from .ablate_prompt import ablate_prompt
from .age_acceleration import age_acceleration
from .annotate import annotate
from .annotation_concordance import annotation_concordance
from .attention import attention
from .attribute import attribute
from .differential_rank import differential_rank
from .doublets import doublets
from .driver_features import driver_features
from .embed import embed
from .embed_genes import embed_genes
from .evaluate_generated import evaluate_generated
from .evaluate_sae import evaluate_sae
from .expression_age_slope import expression_age_slope
from .feature_effects import feature_effects
from .feature_families import feature_families
from .feature_genes import feature_genes
from .feature_mediators import feature_mediators
from .feature_network import feature_network
from .feature_summary import feature_summary
from .features import features
from .flag_plates import flag_plates
from .gene_effects import gene_effects
from .gene_neighbors import gene_neighbors
from .gene_network import gene_network
from .gene_task import gene_task
from .generate import generate
from .generated_ages import generated_ages
from .generation_diversity import generation_diversity
from .head_enrichment import head_enrichment
from .head_profiles import head_profiles
from .head_segments import head_segments
from .head_similarity import head_similarity
from .known_gene_concordance import known_gene_concordance
from .label_features import label_features
from .log_likelihood import log_likelihood
from .neighbor_purity import neighbor_purity
from .neighborhood_enrichment import neighborhood_enrichment
from .nominate_targets import nominate_targets
from .patch import patch
from .perturb import perturb
from .perturbation_concordance import perturbation_concordance
from .perturbation_metrics import perturbation_metrics
from .perturbation_stats import perturbation_stats
from .predict_age import predict_age
from .predict_response import predict_response
from .predict_timelapse import predict_timelapse
from .recipes import Cells, CellSampling, Chains, GeneSetSearch, ScreenFile
from .search_features import search_features
from .search_gene_sets import search_gene_sets
from .separability import separability
from .spatial_features import spatial_features
from .spectral_entropy import spectral_entropy
from .steer_cells import steer_cells
from .timelapse_baselines import timelapse_baselines
from .train_on_generated import train_on_generated
from .translate import translate
from .variogram import variogram

__all__ = [
    "AgeSampling",
    "CellSampling",
    "Cells",
    "Chains",
    "GeneSetSearch",
    "ScreenFile",
    "ablate_heads",
    "ablate_prompt",
    "age_acceleration",
    "annotate",
    "annotation_concordance",
    "attention",
    "attribute",
    "differential_rank",
    "doublets",
    "driver_features",
    "embed",
    "embed_genes",
    "evaluate_generated",
    "evaluate_sae",
    "expression_age_slope",
    "feature_effects",
    "feature_families",
    "feature_genes",
    "feature_mediators",
    "feature_network",
    "feature_summary",
    "features",
    "flag_plates",
    "gene_effects",
    "gene_neighbors",
    "gene_network",
    "gene_task",
    "generate",
    "generated_ages",
    "generation_diversity",
    "head_enrichment",
    "head_profiles",
    "head_segments",
    "head_similarity",
    "known_gene_concordance",
    "label_features",
    "log_likelihood",
    "neighbor_purity",
    "neighborhood_enrichment",
    "nominate_targets",
    "patch",
    "perturb",
    "perturbation_concordance",
    "perturbation_metrics",
    "perturbation_stats",
    "predict_age",
    "predict_response",
    "predict_timelapse",
    "search_features",
    "search_gene_sets",
    "separability",
    "spatial_features",
    "spectral_entropy",
    "steer_cells",
    "timelapse_baselines",
    "train_on_generated",
    "translate",
    "variogram",
]

guard(globals(), __all__)
