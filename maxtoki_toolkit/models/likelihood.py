"""How likely a model finds what it reads."""

from __future__ import annotations

import numpy as np
import torch

from .costs import Work, reading
from .engine import Batch, run
from .model import MaxTokiModel
from .prefix import Forest, prefix_forest
from .sequences import Sequences

# Logits held at a time.
_LOGITS = 1 << 25


def token_log_likelihoods(
    model: MaxTokiModel,
    sequences: Sequences,
    *,
    first: np.ndarray | None = None,
    max_tokens: int | None = None,
) -> np.ndarray:
    """Log-probability of each token, given those before it.

    Parameters
    ----------
    model
        Model.
    sequences
        Tokens.
    first
        Position in each sequence of the first token that is asked for, by default 1; those before cost no
        logits.
    max_tokens
        Padded tokens a batch.

    Returns
    -------
    float32 of the length of `sequences.tokens`, in nats; NaN for the first token of a sequence and for those
    that were not asked for.
    """
    first = np.ones(len(sequences), dtype=np.int64) if first is None else np.maximum(first, 1)
    forest = prefix_forest(sequences)
    asked, level = _asked(forest, first), forest.level
    found = np.full(len(sequences.tokens), np.nan, dtype=np.float32)
    vocab_size = model.vocab.size

    def compute(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        states = model.hf.model(**batch.inputs).last_hidden_state
        position = batch.first[:, None] + torch.arange(states.shape[1], device=states.device)
        inside = torch.arange(states.shape[1], device=states.device) < batch.lengths[:, None] - 1
        wanted = inside & (position + 1 >= torch.from_numpy(asked[batch.rows]).to(states.device)[:, None])
        following = batch.tokens.roll(-1, dims=1)[wanted]
        states, size = states[wanted], max(_LOGITS // vocab_size, 1)
        parts = [torch.zeros(0, device=states.device)]
        for start in range(0, len(states), size):
            logits = model.hf.lm_head(states[start : start + size]).float()
            chosen = logits.gather(1, following[start : start + size, None])[:, 0]
            parts.append(chosen - logits.logsumexp(dim=1))
        return wanted.cpu().numpy(), torch.cat(parts).cpu().numpy()

    for rows, (wanted, values) in run(
        model, sequences, compute, forest=forest, max_tokens=max_tokens, desc="Scoring"
    ):
        place = (sequences.indptr[rows] + forest.shared[rows])[:, None] + np.arange(wanted.shape[1]) + 1
        found[place[wanted]] = values
    for row in np.argsort(level, kind="stable"):
        if (up := forest.parent[row]) >= 0 and asked[row] <= forest.shared[row]:
            shared = np.arange(asked[row], forest.shared[row] + 1)
            found[sequences.indptr[row] + shared] = found[sequences.indptr[up] + shared]
    found[sequences.positions < np.repeat(first, sequences.lengths)] = np.nan
    return found


def next_log_probabilities(
    model: MaxTokiModel, sequences: Sequences, tokens: np.ndarray, *, max_tokens: int | None = None
) -> np.ndarray:
    """Log-probability of each of some tokens to come next, among these tokens: float32, sequences x tokens, in nats."""
    wanted = torch.from_numpy(np.asarray(tokens, dtype=np.int64)).to(model.device)
    out = np.empty((len(sequences), len(tokens)), dtype=np.float32)

    def compute(batch: Batch) -> np.ndarray:
        states = model.hf.model(**batch.inputs).last_hidden_state
        last = states[torch.arange(len(states), device=states.device), batch.lengths - 1]
        return model.hf.lm_head(last)[:, wanted].float().log_softmax(dim=1).cpu().numpy()

    for rows, values in run(model, sequences, compute, max_tokens=max_tokens, desc="Reading"):
        out[rows] = values
    return out


def work_of_log_likelihoods(sequences: Sequences, first: np.ndarray) -> Work:
    """What `token_log_likelihoods` has to do."""
    forest = prefix_forest(sequences)
    begin = np.maximum(_asked(forest, np.maximum(first, 1)) - 1, forest.shared)
    scored = np.maximum(sequences.lengths - 1 - begin, 0)
    return reading(sequences.lengths, forest.shared, scored=scored)


def _asked(forest: Forest, first: np.ndarray) -> np.ndarray:
    """From which token on each sequence answers: also for what branches off from it, the last branches first."""
    asked = first.copy()
    for row in np.argsort(-forest.level, kind="stable"):
        if (up := forest.parent[row]) >= 0 and asked[row] <= forest.shared[row]:
            asked[up] = min(asked[up], asked[row])
    return asked
