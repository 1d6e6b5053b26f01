"""What an autoencoder has to beat: directions that nothing was learned for, and the principal ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from .engine import Batch, run
from .hooks import Site, states_at
from .model import MaxTokiModel
from .sae import SparseAutoencoder
from .sequences import Sequences


class Moments(NamedTuple):
    """Mean and covariance of states, float64."""

    mean: torch.Tensor
    covariance: torch.Tensor
    n: int


def gene_mask(model: MaxTokiModel) -> torch.Tensor:
    """Which tokens are genes."""
    mask = torch.zeros(model.vocab.size, dtype=torch.bool, device=model.device)
    mask[torch.from_numpy(model.vocab.gene_ids).to(model.device)] = True
    return mask


def moments(model: MaxTokiModel, sequences: Sequences, site: Site) -> Moments:
    """Mean and covariance of the states at all genes."""
    is_gene = gene_mask(model)
    size = model.hf.config.hidden_size
    n, total, outer = 0, torch.zeros(size, dtype=torch.double), torch.zeros(size, size, dtype=torch.double)

    def compute(batch: Batch) -> tuple[int, torch.Tensor, torch.Tensor]:
        states = states_at(model, batch.inputs, site)[is_gene[batch.tokens]].float()
        return len(states), states.sum(dim=0).double().cpu(), (states.T @ states).double().cpu()

    for _, (count, part, square) in run(model, sequences, compute, desc="Looking at states"):
        n, total, outer = n + count, total + part, outer + square
    if not n:
        raise ValueError("The cells have no genes that the model reads: there are no states.")
    mean = total / n
    return Moments(mean, outer / n - torch.outer(mean, mean), n)


def random_directions(sae: SparseAutoencoder, mean: torch.Tensor, seed: int) -> SparseAutoencoder:
    """As many random directions, of which as many count at a gene."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(sae.width, len(mean), generator=generator)
    return _directions(F.normalize(drawn, dim=1), mean, sae.k, sae.card)


def principal_directions(sae: SparseAutoencoder, found: Moments) -> SparseAutoencoder:
    """The principal components, each in both directions, of which as many count at a gene."""
    components = torch.linalg.eigh(found.covariance).eigenvectors.flip(1).T.float()
    both = torch.cat([components, -components])
    return _directions(both, found.mean, min(sae.k, len(components)), sae.card)


def share_of_components(found: Moments, k: int) -> float:
    """Share of the variance on the first k principal components."""
    values = torch.linalg.eigvalsh(found.covariance).flip(0).clamp(min=0)
    return float(values[:k].sum() / values.sum())


def _directions(
    directions: torch.Tensor, mean: torch.Tensor, k: int, card: Mapping[str, Any]
) -> SparseAutoencoder:
    card = {name: card[name] for name in ("block", "site", "model", "model_sha256")}
    made = SparseAutoencoder(directions.shape[1], len(directions), k, card=card)
    with torch.no_grad():
        made.encoder.weight.copy_(directions)
        made.W_dec.copy_(directions)
        made.b_dec.copy_(mean)
    return made.eval().requires_grad_(requires_grad=False)


def some(sequences: Sequences, n: int, seed: int) -> Sequences:
    """At most n of the sequences, drawn at random."""
    rows = np.random.default_rng(seed).permutation(len(sequences))[:n]
    return sequences.take(np.sort(rows))
