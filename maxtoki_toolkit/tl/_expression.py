"""Log-normalised expression of cells of one or several AnnData."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from ..pp._ranked_counts import ranked_counts
from ..stats.expression import log_normalize
from ._cells import match_columns

N_GENES = 2000


def log_expression(sources: list, train: np.ndarray) -> np.ndarray:
    """Log-normalised expression, cells x the genes that vary most among the training cells; float32."""
    names = sources[0][0].var_names
    blocks = []
    for adata, rows in sources:
        columns = match_columns(adata, names)
        blocks.append(log_normalize(ranked_counts(adata, rows=rows))[:, columns])
    X = sp.vstack(blocks, format="csr")
    fitted = X[train].astype(np.float64)
    variance = np.asarray(fitted.power(2).mean(axis=0) - np.square(fitted.mean(axis=0))).ravel()
    genes = np.sort(np.argsort(-variance, kind="stable")[:N_GENES])
    return X[:, genes].toarray()
