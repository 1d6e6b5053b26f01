"""Prepare cells: name genes, rank them within each cell."""

from .encode_file import encode_file
from .map_genes import map_genes
from .rank_value_encode import rank_value_encode

__all__ = ["encode_file", "map_genes", "rank_value_encode"]
