"""What attention heads attend to, without ever holding a whole attention matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch

from .engine import Batch, run
from .masked import attending_by
from .model import MaxTokiModel
from .sequences import Sequences

# Bytes of attention weights at a time.
_BLOCK = 1 << 26
# Distances up to this are told apart; farther ones are taken together in steps of a quarter.
_NEAR, _STEP = 8, 1.25
STATISTICS = ("entropy", "relative_entropy", "distance", "relative_distance", "sink")
ATTENDING = ("all", "last")


class AttentionStatistics(NamedTuple):
    """Sums over the attention weights of one sequence; a weight goes from a token to one at or before it."""

    received: np.ndarray
    """float32, layers x heads x tokens: weight that each token receives, summed over all that attend."""
    to_groups: np.ndarray
    """float32, layers x heads x tokens x groups: weight that each token gives to each group of tokens."""
    entropy: np.ndarray
    """float32, layers x heads x tokens: entropy of the weights that each token gives, in nats."""
    distance: np.ndarray
    """float32, layers x heads x tokens: mean distance of what each token attends to, in tokens."""
    to_first: np.ndarray
    """float32, layers x heads x tokens: weight that each token gives to the first one."""
    last: np.ndarray
    """float32, layers x heads x tokens: weight that the last token gives to each."""
    expected: np.ndarray
    """As `to_groups`, if each token gave the tokens at a distance equal parts of what it gives to all of them."""


class HeadSums(NamedTuple):
    """Sums of some sequences, over all heads (layer by layer)."""

    at: np.ndarray
    """int64, tokens: where in `Sequences.tokens` each is."""
    received: np.ndarray
    """float32, tokens x heads: as in `AttentionStatistics`."""
    last: np.ndarray
    """float32, tokens x heads."""
    given: np.ndarray
    """float32, sequences x 2 x heads x groups: mean weight that all tokens but the first give; what the last gives."""
    expected: np.ndarray
    """As `given`, of `AttentionStatistics.expected`."""
    statistics: np.ndarray
    """float32, sequences x heads x `STATISTICS`: means over all tokens but the first, which can only see itself."""


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
    collected: list[AttentionStatistics] = []
    with torch.inference_mode():
        _attend(
            model,
            {
                "input_ids": torch.from_numpy(np.asarray(tokens, dtype=np.int64))[None].to(model.device),
                "use_cache": False,
            },
            torch.from_numpy(groups.astype(np.float32))[None].to(model.device),
            torch.tensor([len(tokens)], device=model.device),
            collected.append,
        )
    return AttentionStatistics(*(torch.cat(part).cpu().numpy() for part in zip(*collected, strict=True)))


def stream_attention(
    model: MaxTokiModel,
    sequences: Sequences,
    groups: np.ndarray,
    *,
    max_tokens: int | None = None,
    desc: str = "Reading attention",
) -> Iterator[tuple[np.ndarray, HeadSums]]:
    """Read many sequences, in batches, and sum up the attention of every head.

    Parameters
    ----------
    model
        Model.
    sequences
        What to read.
    groups
        Tokens x groups: membership of each token of `sequences.tokens`, 0 or 1.
    max_tokens
        Padded tokens a batch; halved whenever memory runs out.
    desc
        What the progress bar says.

    Yields
    ------
    Rows of `sequences` in the batch, and its sums.
    """
    if len(sequences.lengths) and (longest := sequences.lengths.max()) > model.max_length:
        raise ValueError(f"{longest} tokens are more than the {model.max_length} that the model reads.")
    if len(groups) != len(sequences.tokens):
        raise ValueError(f"groups has {len(groups)} rows, for {len(sequences.tokens)} tokens.")

    def compute(batch: Batch) -> HeadSums:
        lengths = sequences.lengths[batch.rows]
        column = np.arange(batch.tokens.shape[1])
        inside = column < lengths[:, None]
        at = (sequences.indptr[batch.rows][:, None] + column)[inside]
        padded = np.zeros((*inside.shape, groups.shape[1]), dtype=np.float32)
        padded[inside] = groups[at]
        device = batch.tokens.device
        layers: list[tuple[torch.Tensor, ...]] = []
        real = torch.from_numpy(inside).to(device)
        _attend(
            model,
            batch.inputs,
            torch.from_numpy(padded).to(device),
            batch.lengths,
            lambda statistics: layers.append(_reduced(statistics, batch.lengths, real)),
        )
        # Heads of all layers, one after the other; they are the second axis of every part.
        received, last, given, expected, statistics = (
            torch.cat(part, dim=1).cpu().numpy() for part in zip(*layers, strict=True)
        )
        return HeadSums(
            at,
            received.transpose(0, 2, 1)[inside],
            last.transpose(0, 2, 1)[inside],
            given.transpose(0, 3, 1, 2),
            expected.transpose(0, 3, 1, 2),
            statistics,
        )

    yield from run(model, sequences, compute, max_tokens=max_tokens, desc=desc)


def _attend(
    model: MaxTokiModel,
    inputs: dict,
    groups: torch.Tensor,
    lengths: torch.Tensor,
    collect: Callable[[AttentionStatistics], None],
) -> None:
    """Run the model; each layer hands over the statistics of its heads, batch x heads x tokens."""
    with attending_by(model, _streamed):
        model.hf.model(**inputs, groups=groups, lengths=lengths, collect=collect)


def _reduced(
    found: AttentionStatistics, lengths: torch.Tensor, real: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Means over the tokens of each sequence, of one layer."""
    position = torch.arange(real.shape[1], device=real.device)
    counted = (real & (position > 0)).float()
    share = counted / counted.sum(dim=1, keepdim=True).clamp(min=1)

    def mean(values: torch.Tensor) -> torch.Tensor:
        return torch.einsum("nhq...,nq->nh...", values, share)

    def both(values: torch.Tensor) -> torch.Tensor:
        of_last = values[torch.arange(len(values), device=values.device), :, lengths - 1]
        return torch.stack([mean(values), of_last], dim=3)

    # An even spread has the entropy log(tokens seen), and on average half the distance to the first token.
    seen = (position + 1).float()
    evenly = (share * position / 2).sum(dim=1).clamp(min=1e-9)
    distance = mean(found.distance)
    statistics = [
        mean(found.entropy),
        mean(found.entropy / seen.log().clamp(min=1e-9)),
        distance,
        distance / evenly[:, None],
        mean(found.to_first),
    ]
    return (
        found.received,
        found.last,
        both(found.to_groups),
        both(found.expected),
        torch.stack(statistics, dim=2),
    )


def _distance_edges(length: int) -> np.ndarray:
    """Smallest distance of each class of distances, and one beyond all."""
    edges = list(range(min(_NEAR, length) + 1))
    while edges[-1] < length:
        edges.append(max(int(edges[-1] * _STEP), edges[-1] + 1))
    return np.array(edges)


def _streamed(_module, query, key, value, attention_mask, *, scaling, groups, lengths, collect, **_):
    """Causal attention, a block of tokens at a time, with its statistics; sequences are padded on the right."""
    n, n_heads, length, _ = query.shape
    device = query.device
    # Heads that share keys and values.
    key, value = (part.repeat_interleave(n_heads // part.shape[1], dim=1) for part in (key, value))
    out = torch.empty_like(query)
    received, last = (torch.zeros(n, n_heads, length, device=device) for _ in range(2))
    entropy, distance, to_first = (torch.empty(n, n_heads, length, device=device) for _ in range(3))
    to_groups, expected = (torch.empty(n, n_heads, length, groups.shape[2], device=device) for _ in range(2))
    size = max(_BLOCK // (4 * n * n_heads * length), 1)
    position = torch.arange(length, device=device)
    edges = torch.from_numpy(_distance_edges(length)).to(device)
    before = torch.nn.functional.pad(groups.cumsum(dim=1), (0, 0, 1, 0))
    for start in range(0, length, size):
        rows = slice(start, min(start + size, length))
        seen, at = rows.stop, position[rows]
        scores = (query[:, :, rows] @ key[:, :, :seen].transpose(2, 3)).float() * scaling
        scores.masked_fill_(position[:seen] > at[:, None], -torch.inf)
        log_sum = scores.logsumexp(dim=3, keepdim=True)
        weights = (scores - log_sum).exp_()
        # -sum p log p = log of the sum - mean score; hidden tokens have weight 0 and a score that is no number.
        scores.masked_fill_(weights == 0, 0)
        entropy[:, :, rows] = log_sum[..., 0] - torch.einsum("nhqk,nhqk->nhq", weights, scores)
        del scores
        out[:, :, rows] = weights.to(value.dtype) @ value[:, :, :seen]
        to_first[:, :, rows] = weights[..., 0]
        distance[:, :, rows] = at - weights @ position[:seen].float()
        to_groups[:, :, rows] = weights @ groups[:, None, :seen]
        if groups.shape[2]:
            expected[:, :, rows] = _spread(weights, groups, before, at, edges)
        ends = torch.nonzero((lengths > rows.start) & (lengths <= rows.stop))[:, 0]
        last[ends, :, :seen] = weights[ends, :, lengths[ends] - 1 - start]
        # What padding attends to does not count.
        weights *= (at < lengths[:, None])[:, None, :, None]
        received[:, :, :seen] += weights.sum(dim=2)
    collect(AttentionStatistics(received, to_groups, entropy, distance, to_first, last, expected))
    return out.transpose(1, 2), None


def _spread(
    weights: torch.Tensor, groups: torch.Tensor, before: torch.Tensor, at: torch.Tensor, edges: torch.Tensor
) -> torch.Tensor:
    """Weight that groups would have if all tokens at like distances had equal parts of what they have together.

    The first token, where heads rest that have nothing to attend to, is a class of its own.
    """
    # Classes are stretches of tokens: from each bound (left out) down to the next (included).
    bound = (at[:, None] + 1 - edges).clamp(min=1)
    summed = weights.cumsum(dim=3)
    upto = summed.gather(3, (bound - 1).expand(*weights.shape[:2], *bound.shape))
    in_class = upto[..., :-1] - upto[..., 1:]
    n = (bound[:, :-1] - bound[:, 1:]).clamp(min=1)
    share = (before[:, bound[:, :-1]] - before[:, bound[:, 1:]]) / n[..., None]
    return torch.einsum("nhqb,nqbg->nhqg", in_class, share) + weights[..., :1] * groups[:, None, :1]
