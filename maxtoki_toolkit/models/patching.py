"""What of a clean prompt's reading comes back when some of its states are put into a corrupted one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from .engine import Batch, run, whole_batch
from .feature_edits import flow, go_on, state_gradient
from .hooks import Edit, Site, captured, edited, head_slice, n_heads, n_layers, resume
from .layout import Layout, counterparts
from .model import MaxTokiModel
from .readout import Readout
from .sae import SparseAutoencoder
from .sae_controls import gene_mask
from .sequences import Sequences

LEVELS = ("residual", "attention", "mlp", "head", "feature")
ALIGN = ("tokens", "last")


class Patched(NamedTuple):
    """Readings, float64."""

    clean: np.ndarray
    """Prompts."""
    corrupted: np.ndarray
    """Prompts."""
    values: np.ndarray
    """Prompts x sites x segments: the corrupted prompt, with the clean one's states; NaN where a prompt lacks the segment."""
    null: np.ndarray
    """The same, with the states of another clean prompt."""


def level_sites(model: MaxTokiModel, level: str) -> list[tuple[int, Site]]:
    """Sites of a level and the layer each counts as: the residual stream is after 0, 1, ... blocks, to the last."""
    last = n_layers(model) - 1
    if level == "residual":
        return [(layer, Site(layer, "input")) for layer in range(last + 1)] + [
            (last + 1, Site(last, "output"))
        ]
    if level == "head":
        return [(layer, Site(layer, "head", h)) for layer in range(last + 1) for h in range(n_heads(model))]
    return [(layer, Site(layer, level)) for layer in range(last + 1)]


def patch_states(
    model: MaxTokiModel,
    clean: Sequences,
    corrupted: Sequences,
    clean_parts: Layout,
    parts: Layout,
    clean_read: Readout,
    read: Readout,
    sites: Sequence[Site],
    *,
    align: str = "tokens",
    partners: np.ndarray | None = None,
    max_tokens: int | None = None,
) -> Patched:
    """Put states of clean prompts into corrupted ones, a site and a segment at a time.

    Parameters
    ----------
    model
        Model.
    clean, corrupted
        Prompts, of the same segments.
    clean_parts, parts
        Their segments (`layout`), under the same names.
    clean_read, read
        The reading of each.
    sites
        Where.
    align
        "tokens": all tokens of a segment; "last": its last one.
    partners
        Row of another clean prompt for each, of the same segments: the null.
    max_tokens
        Padded tokens a batch.
    """
    n, names = len(corrupted.lengths), parts.names
    shape = (n, len(sites), len(names))
    found = Patched(np.empty(n), np.empty(n), np.full(shape, np.nan), np.full(shape, np.nan))
    # All heads of a layer are read at once.
    whole = {site: Site(site.layer, site.part) for site in sites}

    def states_of(batch: Batch, rows: np.ndarray) -> tuple[dict, torch.Tensor, Batch]:
        """What flows through each site for clean prompts, token by token of the corrupted ones, and its reading."""
        own = whole_batch(model, clean, rows)
        with captured(model, dict.fromkeys(whole.values())) as states:
            value = clean_read(model.hf.model(**own.inputs).last_hidden_state, own)
        at = torch.from_numpy(counterparts(parts, batch.rows, clean_parts, rows)).to(model.device)
        row = torch.arange(len(at), device=model.device)[:, None]
        return {site: part[row, at] for site, part in states.items()}, value

    def compute(batch: Batch) -> tuple[torch.Tensor, ...]:
        with captured(model, [Site(layer, "input") for layer in {site.layer for site in sites}]) as streams:
            states = model.hf.model(**batch.inputs).last_hidden_state
        corrupted_value = read(states, batch).double().cpu()

        def value(site: Site) -> torch.Tensor:
            return read(resume(model, site.layer, streams[Site(site.layer, "input")]), batch).double().cpu()

        column = torch.arange(batch.tokens.shape[1])
        start, size = (torch.from_numpy(table[batch.rows]) for table in (parts.start, parts.size))
        source, clean_value = states_of(batch, batch.rows)
        sources = [source] if partners is None else [source, states_of(batch, partners[batch.rows])[0]]
        results = [
            torch.full((len(batch.rows), *shape[1:]), torch.nan, dtype=torch.float64) for _ in range(2)
        ]
        for segment in range(len(names)):
            place = column - start[:, segment, None]
            begins = size[:, segment, None] - 1 if align == "last" else 0
            inside = ((place >= begins) & (place < size[:, segment, None]))[..., None].to(model.device)
            has = size[:, segment] > 0
            for i, site in enumerate(sites):
                for states, result in zip(sources, results, strict=False):
                    new = states[whole[site]]
                    new = new if site.head is None else new[..., head_slice(model, site.head)]
                    with edited(model, [(site, _where(inside, new))]):
                        result[has, i, segment] = value(site)[has]
        return clean_value.double().cpu(), corrupted_value, *results

    for rows, result in run(model, corrupted, compute, max_tokens=max_tokens, desc="Patching"):
        for field, part in zip(found, result, strict=True):
            field[rows] = part.numpy()
    return found


def _where(inside: torch.Tensor, new: torch.Tensor) -> Edit:
    return lambda old: torch.where(inside, new, old)


def patch_features(
    model: MaxTokiModel,
    sae: SparseAutoencoder,
    clean: Sequences,
    corrupted: Sequences,
    clean_parts: Layout,
    parts: Layout,
    clean_read: Readout,
    read: Readout,
    features: np.ndarray,
    *,
    partners: np.ndarray | None = None,
    max_tokens: int | None = None,
) -> tuple[Patched, np.ndarray]:
    """Put features of clean prompts into corrupted ones, a feature and a segment at a time, token by token.

    What the autoencoder leaves unexplained, and all other features, stay those of the corrupted prompt.

    Parameters
    ----------
    model, clean, corrupted, clean_parts, parts, clean_read, read, partners, max_tokens
        As in `patch_states`.
    sae
        Autoencoder.
    features
        Their numbers; may be none.

    Returns
    -------
    Readings, with features in place of sites; and, for every feature of the autoencoder, the change of the
    corrupted reading to first order, prompts x features.
    """
    n, names, is_gene = len(corrupted), parts.names, gene_mask(model)
    shape = (n, len(features), len(names))
    found = Patched(np.empty(n), np.empty(n), np.full(shape, np.nan), np.full(shape, np.nan))
    slopes = np.zeros((n, sae.width))

    def source_of(batch: Batch, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of clean prompts, token by token of the corrupted ones, and their reading."""
        own = whole_batch(model, clean, rows)
        known = flow(model, sae, own, is_gene)
        at = torch.from_numpy(counterparts(parts, batch.rows, clean_parts, rows)).to(model.device)
        row = torch.arange(len(at), device=model.device)[:, None]
        return known.active[row, at], clean_read(known.final, own)

    def compute(batch: Batch) -> tuple[torch.Tensor, ...]:
        known = flow(model, sae, batch, is_gene)
        there = is_gene[batch.tokens][..., None]
        source, clean_value = source_of(batch, batch.rows)
        sources = [source] if partners is None else [source, source_of(batch, partners[batch.rows])[0]]
        changes = [(part - known.active) * there for part in sources]
        corrupted_value = read(known.final, batch).double().cpu()
        results = [
            torch.full((len(batch.rows), *shape[1:]), torch.nan, dtype=torch.float64) for _ in range(2)
        ]
        column = torch.arange(batch.tokens.shape[1])
        for segment in range(len(names)):
            start, size = (
                torch.from_numpy(table[batch.rows, segment]) for table in (parts.start, parts.size)
            )
            place = column - start[:, None]
            inside = ((place >= 0) & (place < size[:, None])).to(model.device)
            for i, feature in enumerate(features):
                for change, result in zip(changes, results, strict=False):
                    amount = (change[..., int(feature)] * inside)[..., None]
                    value = corrupted_value
                    if amount.any():
                        states = known.states + (amount * sae.directions[int(feature)]).to(known.states.dtype)
                        value = read(go_on(model, sae.site, known.stream, states), batch).double().cpu()
                    result[size > 0, i, segment] = value[size > 0]
        gradient = state_gradient(model, sae.site, known.stream, known.states, batch, read)
        slope = (changes[0] * (gradient @ sae.directions.T)).sum(dim=1)
        return clean_value.double().cpu(), corrupted_value, *results, slope.double().cpu()

    for rows, result in run(model, corrupted, compute, max_tokens=max_tokens, desc="Patching features"):
        for field, part in zip((*found, slopes), result, strict=True):
            field[rows] = part.numpy()
    return found, slopes
