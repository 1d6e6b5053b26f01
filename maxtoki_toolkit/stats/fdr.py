"""One correction for many tests."""

from __future__ import annotations

import numpy as np


def benjamini_hochberg(p_values: np.ndarray) -> np.ndarray:
    """Q values of the p values that are known (Benjamini and Hochberg); NaN for the others.

    Examples
    --------
    >>> benjamini_hochberg([0.01, float("nan"), 0.5])
    array([0.02,  nan, 0.5 ])
    """
    from statsmodels.stats.multitest import multipletests

    p_values = np.asarray(p_values, dtype=float)
    q_values = np.full(len(p_values), np.nan)
    if (known := np.isfinite(p_values)).any():
        q_values[known] = multipletests(p_values[known], method="fdr_bh")[1]
    return q_values
