"""What attention heads attend to, without ever holding a whole attention matrix."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from .masked import attending_by
from .model import MaxTokiModel

# Bytes of attention weights at a time.
_BLOCK = 1 << 27


class AttentionStatistics(NamedTuple):
    """Sums over the attention weights of one sequence; a weight goes from a token to one at or before it."""

    received: np.ndarray
    """float32, layers x heads x tokens: weight that each token receives, summed over all that attend."""
    to_groups: np.ndarray
    """float32, layers x heads x tokens x groups: weight that each token gives to each group of tokens."""
    entropy: np.ndarray
    """float32, layers x heads x tokens: entropy of the weights that each token gives, in nats."""


def attention_statistics(
    model: MaxTokiModel, tokens: np.ndarray, groups: np.ndarray | None = None
) -> AttentionStatistics:
    """Read one sequence and sum up the attention of every head.

    Weights are computed for a block of tokens at a time and are summed at once: memory grows with the
    length of the sequence, not with its square.

    Parameters
    ----------
    model
        Model.
    tokens
        Token ids of one sequence.
    groups
        Tokens x groups: membership of each token, 0 or 1 (a gene set, a cell of the prompt), or a weight; none
        by default.
    """
    groups = np.zeros((len(tokens), 0)) if groups is None else np.asarray(groups)
    if len(groups) != len(tokens):
        raise ValueError(f"groups has {len(groups)} rows, for {len(tokens)} tokens.")
    if len(tokens) > model.max_length:
        raise ValueError(f"{len(tokens)} tokens are more than the {model.max_length} that the model reads.")
    device = model.device
    collected: list[tuple[torch.Tensor, ...]] = []
    with torch.inference_mode(), attending_by(model, _streamed):
        model.hf.model(
            input_ids=torch.from_numpy(np.asarray(tokens, dtype=np.int64))[None].to(device),
            use_cache=False,
            groups=torch.from_numpy(groups.astype(np.float32)).to(device),
            collected=collected,
        )
    return AttentionStatistics(*(torch.stack(part).cpu().numpy() for part in zip(*collected, strict=True)))


def _streamed(module, query, key, value, attention_mask, *, scaling, groups, collected, **_):
    """Causal attention of one sequence, a block of tokens at a time, with its statistics."""
    query, key, value = query[0], key[0], value[0]
    n_heads, length, _ = query.shape
    # Heads that share keys and values.
    key, value = (part.repeat_interleave(n_heads // len(part), dim=0) for part in (key, value))
    out = torch.empty_like(query)
    received = torch.zeros(n_heads, length, device=query.device)
    to_groups = torch.empty(n_heads, length, groups.shape[1], device=query.device)
    entropy = torch.empty(n_heads, length, device=query.device)
    size = max(_BLOCK // (4 * n_heads * length), 1)
    position = torch.arange(length, device=query.device)
    for start in range(0, length, size):
        rows = slice(start, min(start + size, length))
        seen = rows.stop
        scores = (query[:, rows] @ key[:, :seen].transpose(1, 2)).float() * scaling
        scores.masked_fill_(position[:seen] > position[rows, None], -torch.inf)
        log_sum = scores.logsumexp(dim=2, keepdim=True)
        weights = (scores - log_sum).exp_()
        # -sum p log p = log of the sum - mean score; hidden tokens have weight 0 and a score that is no number.
        scores.masked_fill_(weights == 0, 0)
        entropy[:, rows] = log_sum[..., 0] - torch.einsum("hqk,hqk->hq", weights, scores)
        received[:, :seen] += weights.sum(dim=1)
        to_groups[:, rows] = weights @ groups[:seen]
        out[:, rows] = weights.to(value.dtype) @ value[:, :seen]
    collected.append((received, to_groups, entropy))
    return out.transpose(0, 1)[None], None
