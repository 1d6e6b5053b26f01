"""One number a sequence, read from a model's last states: what interventions are measured by."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from .engine import Batch, last_states
from .model import MaxTokiModel
from .timelapse import require_temporal

# Of the final states (batch x tokens x hidden size) and their batch: one number a sequence.
Readout = Callable[[torch.Tensor, Batch], torch.Tensor]

# Logits held at a time.
_LOGITS = 1 << 25


def lapse_readout(model: MaxTokiModel) -> Readout:
    """The predicted lapse, of prompts that end with `<eoq>`."""
    require_temporal(model)

    def read(states: torch.Tensor, batch: Batch) -> torch.Tensor:
        return model.time_head(last_states(states, batch), model.hf.lm_head, model.vocab).lapse

    return read


def token_readout(model: MaxTokiModel, token: int) -> Readout:
    """The log-probability, in nats, that a token comes next."""

    def read(states: torch.Tensor, batch: Batch) -> torch.Tensor:
        logits = model.hf.lm_head(last_states(states, batch)).float()
        return logits[:, token] - logits.logsumexp(dim=1)

    return read


def logits_readout(model: MaxTokiModel, metric: Callable[[torch.Tensor], torch.Tensor]) -> Readout:
    """A function of the logits (batch x vocabulary) of what comes next."""

    def read(states: torch.Tensor, batch: Batch) -> torch.Tensor:
        found = metric(model.hf.lm_head(last_states(states, batch)).float())
        if not isinstance(found, torch.Tensor) or found.shape != (len(states),):
            raise ValueError(
                "A metric must return one number a prompt: a tensor as long as the logits it is given."
            )
        return found

    return read


def likelihood_readout(model: MaxTokiModel, first: np.ndarray) -> Readout:
    """Mean log-probability, in nats, of a sequence's tokens from `first` on, each given those before it."""

    def read(states: torch.Tensor, batch: Batch) -> torch.Tensor:
        column = torch.arange(states.shape[1], device=states.device)
        begin = torch.from_numpy(first[batch.rows]).to(states.device)[:, None] - 1
        wanted = (column >= begin) & (column < batch.lengths[:, None] - 1)
        following, row = batch.tokens.roll(-1, dims=1)[wanted], wanted.nonzero()[:, 0]
        states, size = states[wanted], max(_LOGITS // model.vocab.size, 1)
        total = torch.zeros(len(wanted), device=states.device)
        for at in range(0, len(states), size):
            logits = model.hf.lm_head(states[at : at + size]).float()
            chosen = logits.gather(1, following[at : at + size, None])[:, 0] - logits.logsumexp(dim=1)
            total.index_add_(0, row[at : at + size], chosen)
        return total / wanted.sum(dim=1)

    return read
