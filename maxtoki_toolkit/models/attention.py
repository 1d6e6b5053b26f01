"""What attention heads attend to, without ever holding a whole attention matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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


class PairSums(NamedTuple):
    """Sums over pairs of tokens of some sequences; a weight is the sum of those of the chosen heads."""

    units: np.ndarray
    """int64: units that the sequences belong to."""
    pairs: np.ndarray
    """float32, units x genes x genes: weight that tokens of a gene (first axis) give to earlier ones of another."""
    places: np.ndarray
    """float64, 2 x units x classes of places: weight over that of an even spread, and number, of all pairs of genes."""


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
        Tokens x groups: membership of each token, 0 or 1 (a gene set, a cell of the prompt), or a weight;
        none by default.
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
    if len(sequences) and (longest := sequences.lengths.max()) > model.max_length:
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


def stream_pairs(
    model: MaxTokiModel,
    sequences: Sequences,
    genes: np.ndarray,
    n_genes: int,
    unit: np.ndarray,
    *,
    heads: Sequence[tuple[int, int]],
    max_tokens: int | None = None,
    desc: str = "Reading attention",
) -> Iterator[PairSums]:
    """Read many sequences, in batches, and sum up the attention between each two genes.

    Parameters
    ----------
    model
        Model.
    sequences
        What to read.
    genes
        Gene of each token of `sequences.tokens`: 0 and up, `n_genes` for any other gene, -1 for what is no
        gene.
    n_genes
        Genes whose pairs are told apart.
    unit
        Unit of each sequence; sums are by unit.
    heads
        Pairs of layer and head, whose weights are added.
    max_tokens
        Padded tokens a batch; halved whenever memory runs out.
    desc
        What the progress bar says.

    Yields
    ------
    Sums of a batch.
    """
    if len(sequences) and (longest := sequences.lengths.max()) > model.max_length:
        raise ValueError(f"{longest} tokens are more than the {model.max_length} that the model reads.")
    if len(genes) != len(sequences.tokens):
        raise ValueError(f"genes has {len(genes)} entries, for {len(sequences.tokens)} tokens.")
    heads_of: dict[int, list[int]] = {}
    for layer, head in heads:
        heads_of.setdefault(layer, []).append(head)
    steps = torch.from_numpy(place_steps(model.max_length)).to(model.device)
    # Sums of many numbers, where the device has them.
    exact = torch.float32 if model.device.type == "mps" else torch.float64

    def compute(batch: Batch) -> PairSums:
        device = batch.tokens.device
        units, local = np.unique(unit[batch.rows], return_inverse=True)
        column = np.arange(batch.tokens.shape[1])
        inside = column < sequences.lengths[batch.rows][:, None]
        padded = np.full(inside.shape, -1)
        padded[inside] = genes[(sequences.indptr[batch.rows][:, None] + column)[inside]]
        code, of = (torch.from_numpy(part).to(device) for part in (padded, local))
        position = torch.arange(inside.shape[1], device=device)
        member = torch.nn.functional.one_hot(of, len(units)).T.float()
        pairs = torch.zeros(len(units) * n_genes**2, device=device)
        places = torch.zeros(2, len(units), n_pair_classes(steps), dtype=exact, device=device)

        def add(layer: int, rows: slice, weights: torch.Tensor) -> None:
            if layer not in heads_of:
                return
            given = weights[:, heads_of[layer]].sum(dim=1)
            later, earlier = code[:, rows, None], code[:, None, : rows.stop]
            at, before = position[rows, None], position[: rows.stop]
            counted = (later >= 0) & (earlier >= 0) & (before < at)
            named = counted & (later < n_genes) & (earlier < n_genes)
            which, q, k = torch.nonzero(named, as_tuple=True)
            index = (of[which] * n_genes + code[which, rows.start + q]) * n_genes + code[which, k]
            pairs.index_add_(0, index, given[named])
            classes = pair_classes(at, torch.minimum(at, before), steps).flatten()
            sums = [given * (at + 1) * counted]
            if layer == min(heads_of):
                sums.append(counted.float())
            for i, values in enumerate(sums):
                places[i].index_add_(1, classes, (member @ values.flatten(1)).to(exact))

        with attending_by(model, _by_block):
            model.hf.model(**batch.inputs, collect=add)
        return PairSums(
            units,
            pairs.reshape(-1, n_genes, n_genes).cpu().numpy(),
            places.cpu().double().numpy(),
        )

    for _, sums in run(model, sequences, compute, max_tokens=max_tokens, desc=desc):
        yield sums


def place_steps(length: int) -> np.ndarray:
    """Class of each place or distance below a length: exact up to 8, then in steps of a quarter."""
    return np.searchsorted(_distance_edges(length), np.arange(length), side="right") - 1


def pair_classes(later, earlier, steps):
    """Class of pairs of places: the later one with their distance or the earlier one, whichever is smaller.

    The third of the three is then known about as well. Arrays or tensors.
    """
    distance = later - earlier
    near = (distance < earlier) * 1
    smaller = near * distance + (1 - near) * earlier
    return (2 * steps[later] + near) * (int(steps[-1]) + 1) + steps[smaller]


def n_pair_classes(steps) -> int:
    """How many classes of pairs there can be."""
    return 2 * (int(steps[-1]) + 1) ** 2


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


def _blocks(query: torch.Tensor) -> Iterator[slice]:
    """Stretches of tokens whose weights fit in a block."""
    n, n_heads, length, _ = query.shape
    size = max(_BLOCK // (4 * n * n_heads * length), 1)
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


def _scores(query: torch.Tensor, key: torch.Tensor, rows: slice, scaling: float) -> torch.Tensor:
    """Scores of some tokens with all up to the last of them, -inf for those that come later."""
    position = torch.arange(rows.stop, device=query.device)
    scores = (query[:, :, rows] @ key[:, :, : rows.stop].transpose(2, 3)).float() * scaling
    return scores.masked_fill_(position > position[rows, None], -torch.inf)


def _by_block(module, query, key, value, attention_mask, *, scaling, collect, **_):
    """Causal attention, a block of tokens at a time, whose weights are handed over; padding is on the right."""
    key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], dim=1) for part in (key, value))
    out = torch.empty_like(query)
    for rows in _blocks(query):
        weights = _scores(query, key, rows, scaling).softmax(dim=3)
        out[:, :, rows] = weights.to(value.dtype) @ value[:, :, : rows.stop]
        collect(module.layer_idx, rows, weights)
    return out.transpose(1, 2), None


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
    position = torch.arange(length, device=device)
    edges = torch.from_numpy(_distance_edges(length)).to(device)
    before = torch.nn.functional.pad(groups.cumsum(dim=1), (0, 0, 1, 0))
    for rows in _blocks(query):
        seen, at = rows.stop, position[rows]
        scores = _scores(query, key, rows, scaling)
        log_sum = scores.logsumexp(dim=3, keepdim=True)
        weights = (scores - log_sum).exp_()
        # -sum p log p = log of the sum - mean score; hidden tokens have weight 0 and a score that is no
        # number.
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
        last[ends, :, :seen] = weights[ends, :, lengths[ends] - 1 - rows.start]
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
