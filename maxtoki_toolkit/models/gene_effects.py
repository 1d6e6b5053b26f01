"""What a gene adds to the probability of the genes that may still come: the cell is read with it and without it."""

from __future__ import annotations

import numpy as np
import torch

from .engine import Batch, run
from .model import MaxTokiModel
from .sequences import Sequences

# Logits held at a time.
_LOGITS = 1 << 25


def deletion_effects(
    model: MaxTokiModel,
    sequences: Sequences,
    targets: np.ndarray,
    row: np.ndarray,
    position: np.ndarray,
    *,
    max_tokens: int | None = None,
) -> np.ndarray:
    """Mean change of log-probabilities as a gene is read, over the places where a target may still come.

    Parameters
    ----------
    model
        Model.
    sequences
        Cells, cut to what the model reads.
    targets
        Tokens of T genes, each once.
    row, position
        D: the cell that each deletion is made in, and the place of the gene that is taken out (from 1).
    max_tokens
        Padded tokens a batch.

    Returns
    -------
    float32, D x T, in nats: with the gene less without it, at the same places and otherwise the same genes
    before. Places count from the gene on until the target is read, or to the end of a cell without it; NaN
    where there are none.
    """
    row, position = np.asarray(row, dtype=np.int64), np.asarray(position, dtype=np.int64)
    stop = stops(sequences, targets, model.vocab.size)
    own = stop[row]
    n = np.maximum(own - position[:, None], 0)
    found = _sums(model, sequences, targets, stop, row, position, max_tokens, "Reading")
    taken = sequences.take(row)
    rest = taken.keep(taken.positions != np.repeat(position, taken.lengths))
    # Without the gene, what came after it stands one place earlier.
    own = own - (own > position[:, None])
    found -= _sums(model, rest, targets, own, np.arange(len(row)), position - 1, max_tokens, "Deleting")
    return np.where(n > 0, found / np.maximum(n, 1), np.nan).astype(np.float32)


def stops(sequences: Sequences, targets: np.ndarray, size: int) -> np.ndarray:
    """Place of each target in each cell, or of the mark at the end of a cell without it."""
    column = np.full(size, -1)
    column[targets] = np.arange(len(targets))
    own = column[sequences.tokens]
    out = np.repeat(sequences.lengths[:, None] - 1, len(targets), axis=1)
    out[sequences.owner[own >= 0], own[own >= 0]] = sequences.positions[own >= 0]
    return out


def _sums(model, sequences, targets, stop, row, first, max_tokens, desc: str) -> np.ndarray:
    """Log-probabilities of the targets, summed from a place of a cell until each is read: asked for x targets."""
    least = np.full(len(sequences), np.iinfo(np.int64).max)
    np.minimum.at(least, row, first)
    wanted = torch.from_numpy(np.asarray(targets, dtype=np.int64)).to(model.device)
    order = np.argsort(row, kind="stable")
    begin = np.searchsorted(row[order], np.arange(len(sequences) + 1))
    out = np.zeros((len(row), len(targets)), dtype=np.float32)

    # The states that answer: from the first that a cell is asked at to where its last target is read.
    reach = torch.from_numpy(np.stack([least, stop.max(axis=1)]))
    stop = torch.from_numpy(stop)

    def compute(batch: Batch) -> torch.Tensor:
        states = model.hf.model(**batch.inputs).last_hidden_state
        place = torch.arange(states.shape[1], device=states.device)[None]
        low, high = reach[:, batch.rows].to(states.device)[:, :, None]
        asked = (place >= low) & (place < high)
        flat, size = states[asked], max(_LOGITS // model.vocab.size, 1)
        parts = [flat.new_zeros(0, len(wanted), dtype=torch.float32)]
        for start in range(0, len(flat), size):
            logits = model.hf.lm_head(flat[start : start + size]).float()
            parts.append(logits[:, wanted] - logits.logsumexp(dim=1, keepdim=True))
        found = states.new_zeros(*states.shape[:2], len(wanted), dtype=torch.float32)
        found[asked] = torch.cat(parts)
        found *= place[:, :, None] < stop[batch.rows].to(states.device)[:, None, :]
        # From each place to the end.
        return found.flip(1).cumsum(1).flip(1).cpu()

    for rows, found in run(model, sequences, compute, max_tokens=max_tokens, desc=desc):
        asked = [order[begin[r] : begin[r + 1]] for r in rows]
        of = np.repeat(np.arange(len(rows)), [len(a) for a in asked])
        asked = np.concatenate(asked)
        out[asked] = found[torch.from_numpy(of), torch.from_numpy(first[asked])].numpy()
    return out
