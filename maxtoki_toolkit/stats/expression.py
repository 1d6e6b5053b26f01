"""Counts of a cell in proportion to all its counts."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

PER = 10_000


def per_ten_thousand(counts: sp.spmatrix, dtype: type = np.float32) -> sp.csr_matrix:
    """Counts to 10,000 a cell; a cell without counts stays without."""
    X = sp.csr_matrix(counts, dtype=dtype, copy=True)
    total = np.asarray(X.sum(axis=1)).ravel()
    X.data *= np.repeat(PER / np.maximum(total, 1e-12), np.diff(X.indptr)).astype(dtype)
    return X


def log_normalize(counts: sp.spmatrix, dtype: type = np.float32) -> sp.csr_matrix:
    """Natural logarithm of one more than the counts to 10,000 a cell."""
    return per_ten_thousand(counts, dtype).log1p()
