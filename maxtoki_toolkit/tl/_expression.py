"""Log-normalised expression of cells of one or several AnnData."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from .. import _keys
from ..pp._ranked_counts import has_counts, ranked_counts
from ..stats.expression import log_normalize
from ..stats.turnover import rank_scores
from ._cells import match_columns

N_GENES = 2000


def reads_ranks(*cells: AnnData) -> bool:
    """Whether cells have no counts any more, as those of encoded files: their ranks take the place of expression."""
    return all(adata.X is None and not has_counts(adata, None) for adata in cells)


def log_expression(sources: list, train: np.ndarray) -> np.ndarray:
    """Log-normalised expression, cells x the genes that vary most among the training cells; float32."""
    names, by_rank = sources[0][0].var_names, reads_ranks(*(adata for adata, _ in sources))
    blocks = []
    for adata, rows in sources:
        columns = match_columns(adata, names)
        if by_rank:
            block = rank_scores(sp.csr_matrix(adata.layers[_keys.RANK])[rows]).astype(np.float32)
        else:
            block = log_normalize(ranked_counts(adata, rows=rows))
        blocks.append(block[:, columns])
    X = sp.vstack(blocks, format="csr")
    fitted = X[train].astype(np.float64)
    variance = np.asarray(fitted.power(2).mean(axis=0) - np.square(fitted.mean(axis=0))).ravel()
    genes = np.sort(np.argsort(-variance, kind="stable")[:N_GENES])
    return X[:, genes].toarray()
