"""What each feature at one place of a model does to each feature at a later one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from .engine import Batch, run, tokens_at_once
from .feature_edits import flow, go_on, random_directions_of
from .hooks import Site, reach
from .model import MaxTokiModel
from .sae import SparseAutoencoder
from .sae_controls import gene_mask
from .sequences import Sequences


class Edges(NamedTuple):
    """Effects in one set of cells, float64: mean over cells of the mean over the genes of a cell."""

    effect: np.ndarray
    """Sources x targets: how fast a target's activation changes as the source is scaled."""
    null: np.ndarray
    """Directions x sources x targets: the same if the state is changed by as much in random directions."""
    norm: np.ndarray
    """Sources: length of what the feature adds to a cell's states."""


def require_later(source: Site, target: Site) -> None:
    """Raise if one place does not come before the other."""
    order = ("attention", "mlp", "output")
    if (source.layer, order.index(source.part)) >= (target.layer, order.index(target.part)):
        raise ValueError(
            f"Effects go from earlier to later: {source.part} of block {source.layer} does not come before {target.part} of "
            f"block {target.layer}."
        )


def feature_edges(
    model: MaxTokiModel,
    sae: SparseAutoencoder,
    later: SparseAutoencoder,
    sequences: Sequences,
    sources: Sequence[np.ndarray],
    *,
    step: float = 0.1,
    n_null: int = 0,
    seed: int = 0,
    max_tokens: int | None = None,
) -> Edges:
    """Scale each source up and down by a small step, and read all features further on.

    Only the blocks between both places are computed, for several sources at once.

    Parameters
    ----------
    model
        Model.
    sae, later
        Autoencoders of an earlier and a later place.
    sequences
        Cells.
    sources
        Numbers of the features of `sae` that are scaled: an array for each source, whose features are scaled
        together.
    step
        By how much of itself: two-sided, so that what is quadratic cancels.
    n_null
        Random directions that stand in for each source's.
    seed
        Seed of these.
    max_tokens
        Padded tokens a batch.
    """
    require_later(sae.site, later.site)
    budget = tokens_at_once(model, max_tokens)
    is_gene = gene_mask(model)
    features = np.concatenate([np.asarray(source) for source in sources])
    own = np.split(np.arange(len(features)), np.cumsum([len(source) for source in sources])[:-1])
    index = torch.from_numpy(features).to(model.device)
    directions = sae.directions[index][:, None]
    others = random_directions_of(features, n_null, directions.shape[-1], seed).to(model.device)
    directions = torch.cat([directions, others], dim=1)
    n_kinds = directions.shape[1]
    total = np.zeros((n_kinds, len(sources), later.width))
    norms = np.zeros(len(sources))

    def compute(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        known = flow(model, sae, batch, is_gene)
        active = known.active[..., index]
        genes = is_gene[batch.tokens].float()
        weight = genes / genes.sum(dim=1, keepdim=True).clamp(min=1)
        n, length, _ = known.states.shape
        found, norm = np.zeros(total.shape), np.zeros(len(sources))
        somewhere = (active > 0).any(dim=(0, 1)).cpu().numpy()
        there = np.flatnonzero([somewhere[part].any() for part in own])
        signs = torch.tensor([step, -step], device=model.device)
        at_once = max(budget // (2 * n_kinds * n * length), 1)
        for part in np.split(there, range(at_once, len(there), at_once)):
            if not len(part):
                continue
            # Sources x directions x cells x tokens x size.
            push = torch.stack(
                [torch.einsum("nlm,mks->knls", active[..., own[i]], directions[own[i]]) for i in part]
            )
            norm[part] = push[:, 0].pow(2).sum(dim=(2, 3)).sqrt().sum(dim=1).double().cpu().numpy()
            change = signs[:, None, None, None] * push[:, :, None]
            states = (known.states + change.to(known.states.dtype)).flatten(0, 3)
            copies = len(part) * n_kinds * 2
            stream = known.stream.repeat(copies, 1, 1) if sae.site.part != "output" else known.stream
            there_later = reach(model, later.site, partial(go_on, model, sae.site, stream, states))
            features = later.encode(there_later.float())
            mean = torch.einsum("slw,sl->sw", features, weight.repeat(copies, 1))
            mean = mean.reshape(len(part), n_kinds, 2, n, -1).sum(dim=3)
            slope = ((mean[:, :, 0] - mean[:, :, 1]) / (2 * step)).double().cpu().numpy()
            found[:, part] = slope.transpose(1, 0, 2)
        return found, norm

    for _, (effect, norm) in run(model, sequences, compute, max_tokens=max_tokens, desc="Following features"):
        total += effect
        norms += norm
    total, norms = total / max(len(sequences), 1), norms / max(len(sequences), 1)
    return Edges(total[0], total[1:], norms)
