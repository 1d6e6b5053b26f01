"""Turn features of an autoencoder up or down in a running model; what they leave unexplained stays as it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from .engine import Batch, run
from .hooks import Site, captured, edited, resume
from .model import MaxTokiModel
from .readout import Readout
from .sae import SparseAutoencoder, require_sae
from .sae_controls import gene_mask
from .sequences import Sequences, pad


@contextmanager
def edited_features(
    model: MaxTokiModel, sae: SparseAutoencoder, factors: Mapping[int, float]
) -> Iterator[None]:
    """Multiply features wherever a model is run within this context.

    Edits of genes and heads go with it: whatever is called inside reads the edited model.

    Parameters
    ----------
    model
        Model.
    sae
        Autoencoder of this model.
    factors
        What each feature is multiplied with: 0 takes it out, 1 leaves it, 2 doubles it. A feature that is not
        active at a gene stays so.

    Raises
    ------
    ValueError
        If the autoencoder is one of another model, or has no such feature.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.load("heart_nuclei")[:10].copy()
    >>> model, sae = mt.load_model("demo"), mt.load_sae("demo")
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.tl.log_likelihood(adata, model)
    >>> with mt.models.edited_features(model, sae, {5: 0.0, 7: 2.0}):
    ...     mt.tl.log_likelihood(adata, model, key_added="edited")
    >>> adata.obs[["log_likelihood", "edited"]].shape
    (10, 2)
    """
    require_sae(sae, model)
    wanted = require_features(sae, list(factors))
    change = torch.tensor([float(factors[i]) - 1 for i in factors], device=model.device)
    index = torch.from_numpy(wanted).to(model.device)
    is_gene, tokens = gene_mask(model), []

    def remember(_, args) -> None:
        tokens[:] = [args[0]]

    def edit(states: torch.Tensor) -> torch.Tensor:
        if not change.any():
            return states
        features = sae.encode(states.float())[..., index]
        if tokens and tokens[0].shape == states.shape[:2]:
            features = torch.where(is_gene[tokens[0]][..., None], features, 0)
        return states + ((features * change) @ sae.directions[index]).to(states.dtype)

    handle = model.hf.get_input_embeddings().register_forward_pre_hook(remember)
    try:
        with edited(model, [(sae.site, edit)]):
            yield
    finally:
        handle.remove()


def require_features(sae: SparseAutoencoder, wanted: Sequence[int]) -> np.ndarray:
    """Numbers of features; or raise if there are no such ones."""
    found = np.asarray(list(wanted))
    if not len(found) or found.dtype.kind not in "iu":
        raise ValueError("features must be numbers of features, such as [3, 17].")
    if (bad := (found < 0) | (found >= sae.width)).any():
        raise ValueError(f"There is no feature {found[bad][0]}; this autoencoder has 0..{sae.width - 1}.")
    return found.astype(np.int64)


class Flow(NamedTuple):
    """What is known of a batch once it has been read: everything after it can be computed again without the rest."""

    stream: torch.Tensor
    """Input of the block that the site is in."""
    states: torch.Tensor
    """What flows through the site."""
    final: torch.Tensor
    """Last states."""
    active: torch.Tensor
    """Batch x tokens x features; 0 at marks, times, and genes that are not to be edited."""


def flow(
    model: MaxTokiModel,
    sae: SparseAutoencoder,
    batch: Batch,
    is_gene: torch.Tensor,
    sequences: Sequences | None = None,
    places: np.ndarray | None = None,
) -> Flow:
    """Read a batch and keep what passes the autoencoder's site; of the sequences, some `places` may be edited alone."""
    into = Site(sae.site.layer, "input")
    with captured(model, [into, sae.site]) as found:
        final = model.hf.model(**batch.inputs).last_hidden_state
    there = is_gene[batch.tokens]
    if places is not None:
        there = there & pad(sequences.with_tokens(places), batch.rows, 0).bool().to(there.device)
    active = sae.encode(found[sae.site].float()) * there[..., None]
    return Flow(found[into], found[sae.site], final, active)


def go_on(model: MaxTokiModel, site: Site, stream: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """Last states if other ones flow through a site; what comes before it is not computed again."""
    if site.part == "output":
        return resume(model, site.layer + 1, states)
    with edited(model, [(site, lambda _: states)]):
        return resume(model, site.layer, stream)


def state_gradient(
    model: MaxTokiModel,
    site: Site,
    stream: torch.Tensor,
    states: torch.Tensor,
    batch: Batch,
    read: Readout,
) -> torch.Tensor:
    """Gradient of a reading with respect to the states at a site, float32."""
    with torch.inference_mode(mode=False), torch.enable_grad():
        # Copies: tensors of a pass without gradients cannot be part of one with them.
        states = states.clone().requires_grad_()
        whole = batch._replace(tokens=batch.tokens.clone(), lengths=batch.lengths.clone())
        value = read(go_on(model, site, stream.clone(), states), whole).double().sum()
        return torch.autograd.grad(value, states)[0].float()


def random_directions_of(features: np.ndarray, n: int, size: int, seed: int) -> torch.Tensor:
    """Random directions in place of each feature's, features x n x size; those of a feature do not depend on the others."""
    drawn = [np.random.default_rng([seed, int(i)]).normal(size=(n, size)) for i in features]
    return F.normalize(torch.from_numpy(np.array(drawn)).float().reshape(len(features), n, size), dim=-1)


class FeatureChanges(NamedTuple):
    """Readings of the same sequences, float64."""

    intact: np.ndarray
    """Sequences: with nothing changed."""
    values: np.ndarray
    """Sequences x features x doses."""
    null: np.ndarray
    """Sequences x features x doses x random directions: the stream changed by as much at every gene."""
    norm: np.ndarray
    """Sequences x features: length of what the feature adds, over all genes of the sequence."""


def scale_features(
    model: MaxTokiModel,
    sae: SparseAutoencoder,
    sequences: Sequences,
    read: Readout,
    features: np.ndarray,
    doses: Sequence[float],
    *,
    places: np.ndarray | None = None,
    n_null: int = 0,
    seed: int = 0,
    max_tokens: int | None = None,
) -> FeatureChanges:
    """Read sequences with features multiplied, one at a time.

    Parameters
    ----------
    model, sae
        Model and its autoencoder.
    sequences, read
        What is read, and how.
    features
        Their numbers.
    doses
        What they are multiplied with. At 1 nothing changes, to the bit.
    places
        Which tokens of the sequences may be edited; all genes by default.
    n_null
        Random directions that stand in for each feature's.
    seed
        Seed of these.
    max_tokens
        Padded tokens a batch.
    """
    n, shape, size = len(sequences), (len(features), len(doses)), sae.b_dec.shape[0]
    is_gene, site = gene_mask(model), sae.site
    index = torch.from_numpy(features).to(model.device)
    directions = sae.directions[index]
    others = random_directions_of(features, n_null, size, seed).to(model.device)
    found = FeatureChanges(
        np.empty(n), np.empty((n, *shape)), np.empty((n, *shape, n_null)), np.empty((n, len(features)))
    )

    def compute(batch: Batch) -> tuple[torch.Tensor, ...]:
        known = flow(model, sae, batch, is_gene, sequences, places)
        active = known.active[..., index]
        intact = read(known.final, batch).double()
        values = intact[:, None, None].repeat(1, *shape)
        null = intact[:, None, None, None].repeat(1, *shape, n_null)
        for i in range(len(features)):
            amount = active[..., i, None]
            if not amount.any():
                continue
            for j, dose in enumerate(doses):
                if dose == 1:
                    continue
                for k, direction in enumerate([directions[i], *others[i]]):
                    states = known.states + ((dose - 1) * amount * direction).to(known.states.dtype)
                    value = read(go_on(model, site, known.stream, states), batch).double()
                    (values[:, i, j] if k == 0 else null[:, i, j, k - 1]).copy_(value)
        norm = active.pow(2).sum(dim=1).sqrt().double()
        return tuple(part.cpu() for part in (intact, values, null, norm))

    for rows, parts in run(model, sequences, compute, max_tokens=max_tokens, desc="Editing features"):
        for field, part in zip(found, parts, strict=True):
            field[rows] = part.numpy()
    return found


def feature_gradients(
    model: MaxTokiModel,
    sae: SparseAutoencoder,
    sequences: Sequences,
    read: Readout,
    *,
    places: np.ndarray | None = None,
    max_tokens: int | None = None,
) -> np.ndarray:
    """How fast a reading changes as each feature is scaled: sequences x features, float64.

    The change at a dose is, to first order, the dose less 1 times this: one backward pass for all features.
    """
    is_gene, site = gene_mask(model), sae.site
    found = np.empty((len(sequences), sae.width))

    def compute(batch: Batch) -> torch.Tensor:
        known = flow(model, sae, batch, is_gene, sequences, places)
        slope = state_gradient(model, site, known.stream, known.states, batch, read)
        return (known.active * (slope @ sae.directions.T)).sum(dim=1).double().cpu()

    for rows, part in run(model, sequences, compute, max_tokens=max_tokens, desc="Following gradients"):
        found[rows] = part.numpy()
    return found


class GeneChanges(NamedTuple):
    """Change of the log-probability of each token as the next gene, where features are active; float64."""

    change: np.ndarray
    """Features x tokens: sum over places."""
    null_square: np.ndarray
    """Features x tokens: the same of random directions, squared and summed over directions, place sums first."""
    n_places: np.ndarray
    """Features: places at which each is active."""
    direct: np.ndarray
    """Features x tokens: what the feature's direction alone adds to the logits, about their mean."""


def gene_changes(
    model: MaxTokiModel,
    sae: SparseAutoencoder,
    sequences: Sequences,
    features: np.ndarray,
    dose: float,
    *,
    n_null: int = 4,
    seed: int = 0,
    max_tokens: int | None = None,
) -> GeneChanges:
    """What features make of the next gene, at the places where they are active.

    Parameters
    ----------
    model, sae, sequences, features
        As in `scale_features`.
    dose
        What a feature is multiplied with.
    n_null, seed, max_tokens
        As there.
    """
    is_gene, site, size = gene_mask(model), sae.site, sae.b_dec.shape[0]
    directions = sae.directions[torch.from_numpy(features).to(model.device)]
    vocab = model.vocab.size
    change, n_places = np.zeros((len(features), vocab)), np.zeros(len(features), dtype=np.int64)
    null = np.zeros((n_null, len(features), vocab))
    others = random_directions_of(features, n_null, size, seed).to(model.device)

    def compute(batch: Batch) -> list[tuple[int, int, int, np.ndarray]]:
        known = flow(model, sae, batch, is_gene)
        found = []
        for i, feature in enumerate(features):
            amount = known.active[..., int(feature), None]
            places = amount[..., 0] > 0
            if not places.any():
                continue
            before = model.hf.lm_head(known.final[places]).float().log_softmax(dim=-1)
            for k, direction in enumerate([directions[i], *others[i]]):
                states = known.states + ((dose - 1) * amount * direction).to(known.states.dtype)
                after = model.hf.lm_head(go_on(model, site, known.stream, states)[places]).float()
                total = (after.log_softmax(dim=-1) - before).sum(dim=0).double().cpu().numpy()
                found.append((i, k, int(places.sum()), total))
        return found

    for _, parts in run(model, sequences, compute, max_tokens=max_tokens, desc="Reading genes"):
        for i, k, n, total in parts:
            if k == 0:
                change[i] += total
                n_places[i] += n
            else:
                null[k - 1, i] += total
    with torch.no_grad():
        gain = model.hf.model.norm.weight.float()
        direct = (directions * gain) @ model.hf.lm_head.weight.float().T
        direct = (direct - direct.mean(dim=1, keepdim=True)).double().cpu().numpy()
    return GeneChanges(change, (null**2).sum(axis=0), n_places, direct)
