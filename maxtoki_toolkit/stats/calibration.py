"""Probabilities that mean what they say: temperature, and how often calls of a given confidence are right."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.special import log_softmax, softmax

N_BINS = 10
# Temperatures beyond these are no calibration: the calls are then right always, or no more often than by
# chance.
_LOG_RANGE = (-4.0, 4.0)


def fit_temperature(logits: np.ndarray, code: np.ndarray) -> float:
    """Temperature that makes held-out labels likeliest (Guo et al., ICML 2017).

    Parameters
    ----------
    logits
        float, cells x labels; -inf for labels that could not be called.
    code
        Label of each cell; one that could be called.
    """
    from scipy.optimize import minimize_scalar

    cells = np.arange(len(code))

    def loss(log_temperature: float) -> float:
        return -log_softmax(logits / np.exp(log_temperature), axis=1)[cells, code].mean()

    return float(np.exp(minimize_scalar(loss, bounds=_LOG_RANGE, method="bounded").x))


def probabilities(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Probability of each label, cells x labels."""
    return softmax(logits / temperature, axis=1)


def reliability(confidence: np.ndarray, right: np.ndarray) -> pd.DataFrame:
    """How often calls are right, by their confidence: ten bins of one width, without empty ones.

    Examples
    --------
    >>> reliability(np.array([0.91, 0.95, 0.15]), np.array([True, False, False]))["accuracy"].tolist()
    [0.0, 0.5]
    """
    found = np.minimum((np.asarray(confidence) * N_BINS).astype(int), N_BINS - 1)
    n_cells = np.bincount(found, minlength=N_BINS)
    there = n_cells > 0
    mean = [np.bincount(found, values, N_BINS)[there] / n_cells[there] for values in (confidence, right)]
    edges = np.arange(N_BINS)[there] / N_BINS
    return pd.DataFrame(
        {"bin_start": edges, "confidence": mean[0], "accuracy": mean[1], "n_cells": n_cells[there]}
    )


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error: mean gap between confidence and accuracy over the bins, by their cells."""
    bins = reliability(confidence, right)
    gaps = (bins["confidence"] - bins["accuracy"]).abs()
    return float(np.average(gaps, weights=bins["n_cells"]))
