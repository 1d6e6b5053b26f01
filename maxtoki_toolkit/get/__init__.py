"""Results as tidy tables."""

from .results import encoding_report, gene_report, neighbor_purity, ranks

__all__ = ["encoding_report", "gene_report", "neighbor_purity", "ranks"]
