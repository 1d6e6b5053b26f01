"""How spread out what a network does is: the entropy of its singular values."""

from __future__ import annotations

import numpy as np


def spectral_entropy(effects: np.ndarray) -> np.ndarray:
    """Entropy of the singular values, each as its share of their sum, in nats.

    Parameters
    ----------
    effects
        ... x sources x targets.

    Returns
    -------
    One number a matrix: 0 if one direction carries everything, the log of the smaller side if all are alike;
    NaN for a matrix of zeros.
    """
    values = np.linalg.svd(effects, compute_uv=False)
    total = values.sum(axis=-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(total > 0, values / total, np.nan)
        return -np.where(share > 0, share * np.log(share), np.where(np.isnan(share), np.nan, 0)).sum(axis=-1)
