"""Tables of results.

`table` reads any of them, `results` lists what there is. The others compute something, or choose.
"""

from .._doors import guard
from .annotation_matrix import annotation_matrix
from .corpus import corpus_composition, corpus_filters
from .heads import attention, attention_genes, head_similarity, prompt_attention
from .ranks import encoding_report, ranks
from .steer_genes import steer_genes
from .table import results, table
from .target_evidence import target_evidence

__all__ = [
    "table",
    "results",
    "annotation_matrix",
    "attention",
    "attention_genes",
    "corpus_composition",
    "corpus_filters",
    "encoding_report",
    "head_similarity",
    "prompt_attention",
    "ranks",
    "steer_genes",
    "target_evidence",
]

guard(globals(), __all__)
