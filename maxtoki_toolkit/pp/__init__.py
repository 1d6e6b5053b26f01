"""Prepare cells: name genes, rank them within each cell, draw prompts."""

from .._doors import guard
from .encode_file import encode_file
from .encode_files import encode_files
from .harmonize_cell_types import harmonize_cell_types
from .hold_out import hold_out
from .holdout_intervals import holdout_intervals
from .import_samples import import_samples
from .join_modalities import join_modalities
from .keep_modalities import keep_modalities
from .map_genes import map_genes
from .map_orthologs import map_orthologs
from .match_ages import match_ages
from .match_queries import match_queries
from .modality_medians import modality_medians
from .parse_age import parse_age
from .rank_value_encode import rank_value_encode
from .read_cells import read_cells
from .read_dataset import read_dataset
from .read_paragraphs import read_paragraphs
from .read_predictions import read_predictions
from .sample_prompts import PromptSampling, sample_prompts
from .simulate_doublets import DoubletSimulation, simulate_doublets
from .spatial_prompts import spatial_prompts
from .write_dataset import write_dataset
from .write_paragraphs import write_paragraphs

__all__ = [
    "DoubletSimulation",
    "PromptSampling",
    "encode_file",
    "encode_files",
    "harmonize_cell_types",
    "hold_out",
    "holdout_intervals",
    "import_samples",
    "join_modalities",
    "keep_modalities",
    "map_genes",
    "map_orthologs",
    "match_ages",
    "match_queries",
    "modality_medians",
    "parse_age",
    "read_cells",
    "read_dataset",
    "read_paragraphs",
    "read_predictions",
    "rank_value_encode",
    "sample_prompts",
    "simulate_doublets",
    "spatial_prompts",
    "write_dataset",
    "write_paragraphs",
]

guard(globals(), __all__)
