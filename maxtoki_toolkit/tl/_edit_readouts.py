"""What is read of edited cells and prompts."""

from __future__ import annotations

import numpy as np

from ..models.embedding import embed_sequences
from ..models.likelihood import token_log_likelihoods
from ..models.model import MaxTokiModel
from ..models.sequences import Sequences

READOUTS = ("timelapse", "likelihood", "embedding")


def with_targets(cells: Sequences, targets: Sequences | None) -> tuple[Sequences, np.ndarray]:
    """Cells, each with its target after it, and the position of the first token whose probability is wanted."""
    if targets is None:
        return cells, np.ones(len(cells), dtype=np.int64)
    n = len(cells)
    order = np.arange(2 * n).reshape(2, n).T.ravel()
    both = Sequences.concatenate([cells, targets]).take(order)
    return Sequences(both.tokens, both.indptr[::2]), cells.lengths + 1


def read_likelihoods(model: MaxTokiModel, cells: Sequences, targets: Sequences | None) -> np.ndarray:
    """Mean log-probability of the genes of a target cell after each cell, or of each cell's own genes."""
    sequences, first = with_targets(cells, targets)
    found = token_log_likelihoods(model, sequences, first=first).astype(float)
    found[sequences.indptr[1:] - 1] = np.nan  # `<eos>`
    known = np.isfinite(found)
    total = np.add.reduceat(np.where(known, found, 0), sequences.indptr[:-1])
    return total / np.add.reduceat(known.astype(float), sequences.indptr[:-1])


def likeness(model: MaxTokiModel, cells: Sequences, to: np.ndarray) -> np.ndarray:
    """Cosine of the angle between each cell's embedding and a vector of its own."""
    found = embed_sequences(model, cells).cells.astype(float)
    return (found * to).sum(axis=1) / np.sqrt((found**2).sum(axis=1) * (to**2).sum(axis=1))
