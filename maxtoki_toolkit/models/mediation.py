"""Which features carry what an edit of cells does to a reading: put back as they were, or put in alone."""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import NamedTuple

import numpy as np
import torch

from .engine import Batch, run, whole_batch
from .feature_edits import flow, go_on, state_gradient
from .model import MaxTokiModel
from .readout import Readout
from .sae import SparseAutoencoder
from .sae_controls import gene_mask
from .sequences import Sequences, pad


class Mediated(NamedTuple):
    """Readings, float64."""

    before: np.ndarray
    """Sequences: not edited."""
    after: np.ndarray
    """Sequences: edited."""
    put_back: np.ndarray
    """Sequences x sets: edited, with these features as they were before."""
    put_in: np.ndarray
    """Sequences x sets: not edited, with these features as they are after."""
    slope: np.ndarray
    """Sequences x features: change of the reading, to first order, if a feature is put back."""


def match_places(
    before: Sequences, after: Sequences, segment: np.ndarray, other_segment: np.ndarray
) -> np.ndarray:
    """Where each token of `after` stands in `before`: the same token in the same segment; -1 for none.

    Parameters
    ----------
    before, after
        Sequences, row by row of the same prompts; no token twice in a segment.
    segment, other_segment
        Segment of each token of `before` and of `after`.

    Returns
    -------
    int64, tokens of `after`: place in its sequence.
    """
    width = 1 + int(max(before.tokens.max(initial=0), after.tokens.max(initial=0)))
    n_segments = 1 + int(max(segment.max(initial=0), other_segment.max(initial=0)))

    def key(sequences: Sequences, of: np.ndarray) -> np.ndarray:
        return (sequences.owner * n_segments + of) * width + sequences.tokens

    keys, wanted = key(before, segment), key(after, other_segment)
    order = np.argsort(keys, kind="stable")
    at = np.searchsorted(keys[order], wanted).clip(max=max(len(keys) - 1, 0))
    found = order[at]
    return np.where(keys[found] == wanted, before.positions[found], -1)


def mediate(
    model: MaxTokiModel,
    sae: SparseAutoencoder,
    before: Sequences,
    after: Sequences,
    places: np.ndarray,
    read_before: Readout,
    read: Readout,
    sets: Many[Many[int]],
    *,
    slopes: bool = False,
    max_tokens: int | None = None,
) -> Mediated:
    """Exchange features between sequences before and after an edit.

    A feature is put back at every gene as it was there before, at genes that were not there to 0; it is put
    in at the genes that are in both. What the autoencoder leaves unexplained stays.

    Parameters
    ----------
    model, sae
        Model and its autoencoder.
    before, after
        Sequences, row by row.
    places
        Of `match_places`.
    read_before, read
        The reading of each.
    sets
        Features that are exchanged together.
    slopes
        Also estimate every single feature by a gradient.
    max_tokens
        Padded tokens a batch.
    """
    is_gene, n, m = gene_mask(model), len(after), len(sets)
    found = Mediated(
        np.empty(n),
        np.empty(n),
        np.empty((n, m)),
        np.empty((n, m)),
        np.full((n, sae.width if slopes else 0), np.nan),
    )
    index = [torch.tensor(list(some), device=model.device, dtype=torch.long) for some in sets]

    def compute(batch: Batch) -> tuple[torch.Tensor, ...]:
        known = flow(model, sae, batch, is_gene)
        own = whole_batch(model, before, batch.rows)
        other = flow(model, sae, own, is_gene)
        at = pad(after.with_tokens(places), batch.rows, -1).to(model.device)
        both = (at >= 0) & is_gene[batch.tokens]
        row = torch.arange(len(at), device=at.device)[:, None]
        # Change of each feature by the edit, at the places of the edited sequence, and at those of the other.
        there = known.active - torch.where(both[..., None], other.active[row, at.clamp(min=0)], 0)
        here = torch.zeros_like(other.active)
        where = torch.nonzero(both, as_tuple=True)
        here[where[0], at[where]] = there[where]
        intact = [read_before(other.final, own).double().cpu(), read(known.final, batch).double().cpu()]
        back, put = torch.empty(len(at), m, dtype=torch.float64), torch.empty(len(at), m, dtype=torch.float64)
        for i, chosen in enumerate(index):
            directions = sae.directions[chosen]
            states = known.states - (there[..., chosen] @ directions).to(known.states.dtype)
            back[:, i] = read(go_on(model, sae.site, known.stream, states), batch).double().cpu()
            states = other.states + (here[..., chosen] @ directions).to(known.states.dtype)
            put[:, i] = read_before(go_on(model, sae.site, other.stream, states), own).double().cpu()
        slope = torch.empty(len(at), 0, dtype=torch.float64)
        if slopes:
            gradient = state_gradient(model, sae.site, known.stream, known.states, batch, read)
            slope = -(there * (gradient @ sae.directions.T)).sum(dim=1).double().cpu()
        return *intact, back, put, slope

    for rows, parts in run(model, after, compute, max_tokens=max_tokens, desc="Exchanging features"):
        for field, part in zip(found, parts, strict=True):
            field[rows] = part.numpy()
    return found
