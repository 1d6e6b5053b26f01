"""How much of a model's states a dictionary keeps, and how well the model goes on with what it keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from .engine import Batch, run
from .hooks import edited, states_at
from .model import MaxTokiModel
from .readout import likelihood_readout
from .sae import SparseAutoencoder
from .sae_controls import gene_mask
from .sequences import Sequences


class Quality(NamedTuple):
    """Sums over the genes of each sequence, and its mean log-likelihood; float64."""

    variance: np.ndarray
    """Sequences: squared distance of the states from their mean."""
    unexplained: np.ndarray
    """Sequences x dictionaries: squared distance from what each makes of them."""
    clean: np.ndarray
    """Sequences: log-likelihood a gene, in nats."""
    without: np.ndarray
    """Sequences: the same with the mean state at every gene."""
    spliced: np.ndarray
    """Sequences x dictionaries: the same with what each dictionary makes of the states."""
    active: np.ndarray
    """Sequences x dictionaries: features active at a gene, on average."""


def measure_quality(
    model: MaxTokiModel,
    coders: Sequence[SparseAutoencoder],
    sequences: Sequences,
    mean: torch.Tensor,
    *,
    max_tokens: int | None = None,
) -> Quality:
    """Put what dictionaries make of the states of genes in their place, and read what comes next.

    Parameters
    ----------
    model
        Model.
    coders
        Dictionaries, all of one site.
    sequences
        Cells.
    mean
        Mean state of a gene.
    max_tokens
        Padded tokens a batch.
    """
    site, is_gene, mean = coders[0].site, gene_mask(model), mean.float().to(model.device)
    n, m = len(sequences), len(coders)
    # The mark at the end is not a gene.
    sequences = sequences.take(np.arange(n), np.maximum(sequences.lengths - 1, 1))
    read = likelihood_readout(model, np.full(n, 2))
    found = Quality(*(np.zeros((n, m) if wide else n) for wide in (0, 1, 0, 0, 1, 1)))

    def compute(batch: Batch) -> list[torch.Tensor]:
        there = is_gene[batch.tokens][..., None]
        states = states_at(model, batch.inputs, site)
        features = [coder.encode(states.float()) for coder in coders]
        made = [coder.decode(part) for coder, part in zip(coders, features, strict=True)]

        def distance(other: torch.Tensor) -> torch.Tensor:
            return torch.where(there, (states.float() - other) ** 2, 0).sum(dim=(1, 2))

        def likelihood(other: torch.Tensor | None = None) -> torch.Tensor:
            edits = (
                [] if other is None else [(site, lambda old: torch.where(there, other.to(old.dtype), old))]
            )
            with edited(model, edits):
                return read(model.hf.model(**batch.inputs).last_hidden_state, batch)

        n_genes = there.sum(dim=(1, 2)).clamp(min=1)
        parts = [
            distance(mean),
            torch.stack([distance(part) for part in made], dim=1),
            likelihood(),
            likelihood(mean.expand_as(states)),
            torch.stack([likelihood(part) for part in made], dim=1),
            torch.stack([((part > 0) & there).sum(dim=(1, 2)) / n_genes for part in features], dim=1),
        ]
        return [part.double().cpu() for part in parts]

    for rows, parts in run(model, sequences, compute, max_tokens=max_tokens, desc="Splicing"):
        for field, part in zip(found, parts, strict=True):
            field[rows] = part.numpy()
    return found
