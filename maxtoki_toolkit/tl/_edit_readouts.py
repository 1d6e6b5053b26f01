"""What is read of edited cells and prompts."""

from __future__ import annotations

import numpy as np

from ..models.embedding import embed_sequences
from ..models.likelihood import token_log_likelihoods
from ..models.model import MaxTokiModel
from ..models.prompts import Prompts, write_prompts
from ..models.sequences import Sequences
from ..models.timelapse import read_lapses

READOUTS = ("timelapse", "likelihood", "embedding")


def read_prompted_lapses(
    model: MaxTokiModel, prompts: Prompts, cells: Sequences
) -> tuple[np.ndarray, np.ndarray]:
    """Lapse of each prompt, and genes of its first cell that were left out for it to fit."""
    written = write_prompts(prompts, cells, model.vocab, max_length=model.max_length, answer=False)
    return read_lapses(model, written.sequences)[0].astype(float), written.n_clipped


def read_likelihoods(model: MaxTokiModel, cells: Sequences, targets: Sequences | None) -> np.ndarray:
    """Mean log-probability of the genes of a target cell after each cell, or of each cell's own genes."""
    if targets is None:
        sequences, first = cells, np.ones(len(cells), dtype=np.int64)
    else:
        n = len(cells)
        order = np.arange(2 * n).reshape(2, n).T.ravel()
        both = Sequences.concatenate([cells, targets]).take(order)
        sequences = Sequences(both.tokens, both.indptr[::2])
        first = cells.lengths + 1
    found = token_log_likelihoods(model, sequences, first=first).astype(float)
    found[sequences.indptr[1:] - 1] = np.nan  # `<eos>`
    known = np.isfinite(found)
    total = np.add.reduceat(np.where(known, found, 0), sequences.indptr[:-1])
    return total / np.add.reduceat(known.astype(float), sequences.indptr[:-1])


def likeness(model: MaxTokiModel, cells: Sequences, to: np.ndarray) -> np.ndarray:
    """Cosine of the angle between each cell's embedding and a vector of its own."""
    found = embed_sequences(model, cells).cells.astype(float)
    return (found * to).sum(axis=1) / np.sqrt((found**2).sum(axis=1) * (to**2).sum(axis=1))
