"""What becomes of a reading when heads are taken out of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from .engine import Batch, run
from .hooks import Edit, Site, captured, edited, head_slice, n_layers, resume
from .layout import Layout, counterparts, place_classes
from .model import MaxTokiModel
from .readout import Readout
from .sequences import Sequences, pad

HOW = ("zero", "mean", "resample")
Heads = Sequence[tuple[int, int]]


class Ablated(NamedTuple):
    """Readings of the same sequences, float64."""

    intact: np.ndarray
    """Sequences: with nothing changed."""
    values: np.ndarray
    """Sequences x sets: without the heads of each set."""
    null: np.ndarray
    """Sequences x sets: with as much changed, in a random direction; NaN unless asked for."""
    removed: np.ndarray
    """Sequences x sets: length of what the ablation changes in the residual stream, relative to the stream's own, mean over
    tokens; NaN unless asked for."""


def mean_activations(
    model: MaxTokiModel, sequences: Sequences, classes: np.ndarray, n: int, *, max_tokens: int | None = None
) -> np.ndarray:
    """Mean of what each head hands to the output projection, float32: layers x classes of tokens x heads side by side."""
    sites = [Site(layer, "head") for layer in range(n_layers(model))]
    width = model.hf.model.layers[0].self_attn.o_proj.in_features
    total = np.zeros((len(sites), n, width))

    def compute(batch: Batch) -> np.ndarray:
        code = _padded(classes, sequences, batch)
        inside = code >= 0
        with captured(model, sites) as found:
            model.hf.model(**batch.inputs)
        sums = torch.zeros(len(sites), n, width, device=code.device)
        for layer, site in enumerate(sites):
            sums[layer].index_add_(0, code[inside], found[site][inside].float())
        return sums.cpu().double().numpy()

    for _, part in run(model, sequences, compute, max_tokens=max_tokens, desc="Averaging heads"):
        total += part
    seen = np.bincount(classes, minlength=n)
    return (total / np.maximum(seen, 1)[:, None]).astype(np.float32)


def ablate(
    model: MaxTokiModel,
    sequences: Sequences,
    parts: Layout,
    read: Readout,
    sets: Sequence[Heads],
    how: str,
    *,
    means: np.ndarray | None = None,
    partners: np.ndarray | None = None,
    null: bool = True,
    seed: int = 0,
    max_tokens: int | None = None,
) -> Ablated:
    """Read sequences with sets of heads ablated, one set at a time.

    Every pass is over whole sequences in the same batches, so that an ablation that changes nothing changes
    no bit.

    Parameters
    ----------
    model, sequences, parts
        What is read, and the segments of its tokens (`layout`).
    read
        The reading.
    sets
        Pairs of layer and head that are ablated together.
    how
        "zero"; "mean" over `means`; "resample": what the same head makes of each sequence's partner.
    means
        Of `mean_activations`, over `place_classes`; for "mean".
    partners
        For "resample": row of another sequence with the same segments.
    null
        Also read with the stream changed by as much at each token, in a direction drawn for each sequence and
        layer.
    seed
        Seed of these directions.
    max_tokens
        Padded tokens a batch.
    """
    n, config = len(sequences), model.hf.config
    classes = place_classes(sequences, parts) if how == "mean" else None
    found = Ablated(np.empty(n), *np.full((3, n, len(sets)), np.nan))
    layers = sorted({layer for heads in sets for layer, _ in heads})

    def compute(batch: Batch) -> tuple[torch.Tensor, ...]:
        with captured(model, [Site(layer, "input") for layer in layers]) as streams:
            states = model.hf.model(**batch.inputs).last_hidden_state
        intact = read(states, batch).double()

        def value(heads: Heads) -> torch.Tensor:
            first = min(layer for layer, _ in heads)
            return read(resume(model, first, streams[Site(first, "input")]), batch).double().cpu()

        replacement = _replacements(model, sequences, parts, batch, how, layers, means, classes, partners)
        values, others, removed = (
            torch.full((len(intact), len(sets)), torch.nan, dtype=torch.float64) for _ in range(3)
        )
        direction = (
            _directions(batch.rows, len(model.hf.model.layers), config.hidden_size, seed) if null else None
        )
        for i, heads in enumerate(sets):
            with edited(
                model, [(Site(layer, "head", head), _put(replacement(layer, head))) for layer, head in heads]
            ):
                values[:, i] = value(heads)
            if null:
                push = _Push(model, batch, heads, replacement, direction)
                with edited(model, push.edits):
                    others[:, i] = value(heads)
                removed[:, i] = push.removed.double().cpu()
        return intact.cpu(), values, others, removed

    for rows, result in run(model, sequences, compute, max_tokens=max_tokens, desc="Ablating heads"):
        for field, part in zip(found, result, strict=True):
            field[rows] = part.numpy()
    return found


def _put(new: torch.Tensor) -> Edit:
    return lambda old: new.to(old.dtype).expand_as(old)


def _replacements(model, sequences, parts, batch, how, layers, means, classes, partners):
    """Function of layer and head: what stands in for the head's states, batch x tokens x head size or less."""
    if how == "zero":
        return lambda layer, head: torch.zeros(1, 1, 1, device=model.device)
    if how == "mean":
        code = _padded(classes, sequences, batch).clamp(min=0)
        return lambda layer, head: torch.from_numpy(means[layer][:, head_slice(model, head)]).to(code.device)[
            code
        ]
    other = partners[batch.rows]
    at = torch.from_numpy(counterparts(parts, batch.rows, parts, other)).to(model.device)
    tokens = pad(sequences, other, model.vocab["<pad>"]).to(model.device)
    with captured(model, [Site(layer, "head") for layer in layers]) as found:
        model.hf.model(input_ids=tokens, use_cache=False)
    row = torch.arange(len(at), device=model.device)[:, None]
    return lambda layer, head: found[Site(layer, "head")][row, at][..., head_slice(model, head)]


class _Push:
    """Edits that change the stream by as much as an ablation would, in another direction."""

    def __init__(self, model, batch, heads, replacement, direction) -> None:
        self.direction = direction.to(model.device)
        self.inside = torch.arange(batch.tokens.shape[1], device=model.device) < batch.lengths[:, None]
        self.removed = torch.zeros(len(batch.rows), device=model.device)
        self.length: dict[int, torch.Tensor] = {}
        self.stream: dict[int, torch.Tensor] = {}
        self.edits = []
        for layer in sorted({layer for layer, _ in heads}):
            some = [head for of, head in heads if of == layer]
            self.edits += [
                (Site(layer, "input"), self._note(layer)),
                (Site(layer, "head"), self._measure(model, layer, {h: replacement(layer, h) for h in some})),
                (Site(layer, "attention"), self._push(layer)),
            ]

    def _note(self, layer: int) -> Edit:
        def edit(states: torch.Tensor) -> torch.Tensor:
            self.stream[layer] = states.float().norm(dim=2)
            return states

        return edit

    def _measure(self, model: MaxTokiModel, layer: int, new: dict[int, torch.Tensor]) -> Edit:
        weight = model.hf.model.layers[layer].self_attn.o_proj.weight

        def edit(states: torch.Tensor) -> torch.Tensor:
            change = sum(
                (part.to(states.dtype) - states[..., head_slice(model, head)])
                @ weight[:, head_slice(model, head)].T
                for head, part in new.items()
            )
            self.length[layer] = change.float().norm(dim=2)
            relative = torch.where(self.inside, self.length[layer] / self.stream[layer].clamp(min=1e-12), 0)
            self.removed += relative.sum(dim=1) / self.inside.sum(dim=1)
            return states

        return edit

    def _push(self, layer: int) -> Edit:
        return lambda out: (
            out + (self.length[layer][..., None] * self.direction[:, layer, None]).to(out.dtype)
        )


def _directions(rows: np.ndarray, layers: int, size: int, seed: int) -> torch.Tensor:
    """A unit vector for each sequence and layer, whatever batch they are in."""
    drawn = np.stack([np.random.default_rng([seed, row]).normal(size=(layers, size)) for row in rows])
    return torch.from_numpy((drawn / np.linalg.norm(drawn, axis=2, keepdims=True)).astype(np.float32))


def _padded(values: np.ndarray, sequences: Sequences, batch: Batch) -> torch.Tensor:
    """One number a token, batch x longest, -1 beyond each sequence."""
    return pad(sequences.with_tokens(values), batch.rows, -1).to(batch.tokens.device)
