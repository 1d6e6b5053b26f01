"""Where the features of an autoencoder are active: cell by cell, and gene by gene."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch

from .engine import Batch, run, tokens_at_once
from .hooks import states_at
from .model import MaxTokiModel
from .sae import SparseAutoencoder
from .sae_controls import gene_mask
from .sequences import Sequences

POOLS = ("max", "mean", "count")
N_TOP = 5  # genes of a cell whose activations are averaged by "mean"
_MOST = 1 << 25  # activations held at a time
_MERGE = 1 << 22  # entries that are added up at a time


class FeatureSums(NamedTuple):
    """Activations, pooled."""

    cells: sp.csr_matrix
    """float32, sequences x features."""
    genes: sp.csr_matrix
    """float64, tokens x features: sum of the activations at each gene."""
    active: sp.csr_matrix
    """float64, tokens x features: at how many of the gene's places the feature is active."""
    n_read: np.ndarray
    """int64, tokens: places at which each gene was read."""
    place: np.ndarray
    """float64, features: mean place, from 1, of the genes where it is active; NaN for none."""
    first: sp.csr_matrix | None = None
    """`genes` of the sequences in the first half alone."""
    n_first: np.ndarray | None = None
    """`n_read` of these."""


def pool_features(
    model: MaxTokiModel,
    coders: Sequence[SparseAutoencoder],
    sequences: Sequences,
    *,
    pool: str = "max",
    first: np.ndarray | None = None,
    max_tokens: int | None = None,
) -> list[FeatureSums]:
    """Activations of several dictionaries that read the same place, in one pass.

    Parameters
    ----------
    model
        Model.
    coders
        Dictionaries, all of one site.
    sequences
        Cells, `<bos>` genes `<eos>`. Marks are not read.
    pool
        Of the genes of a cell: "max", the "mean" of the five largest, or the "count" of those at which the
        feature is active.
    first
        Which sequences are in a first half, whose genes are also summed up alone.
    max_tokens
        Padded tokens a batch.
    """
    if pool not in POOLS:
        raise ValueError(f"There is no pooling {pool!r}; choose from {', '.join(POOLS)}.")
    site, is_gene = coders[0].site, gene_mask(model)
    widest = max(coder.width for coder in coders)
    max_tokens = min(tokens_at_once(model, max_tokens), max(_MOST // widest, 1))
    n, size = len(sequences), model.vocab.size
    cells = [[] for _ in coders]
    genes = [_Sums((size, coder.width)) for coder in coders]
    active = [_Sums((size, coder.width)) for coder in coders]
    halves = [_Sums((size, coder.width)) for coder in coders]
    place = [np.zeros((2, coder.width)) for coder in coders]

    def compute(batch: Batch) -> list[tuple[np.ndarray, ...]]:
        states = states_at(model, batch.inputs, site).float()
        there = is_gene[batch.tokens][..., None]
        found = []
        for coder in coders:
            features = torch.where(there, coder.encode(states), 0)
            if pool == "max":
                pooled = features.amax(dim=1)
            elif pool == "mean":
                pooled = features.topk(min(N_TOP, features.shape[1]), dim=1).values.mean(dim=1)
            else:
                pooled = (features > 0).sum(dim=1).float()
            row, at, feature = features.nonzero(as_tuple=True)
            parts = (pooled, row, batch.tokens[row, at], at, feature, features[row, at, feature])
            found.append(tuple(part.cpu().numpy() for part in parts))
        return found

    order = []
    for rows, found in run(model, sequences, compute, max_tokens=max_tokens, desc="Reading features"):
        order.append(rows)
        for i, (pooled, row, token, at, feature, value) in enumerate(found):
            cells[i].append(sp.csr_matrix(pooled))
            genes[i].add(token, feature, value)
            if first is not None:
                early = first[rows][row]
                halves[i].add(token[early], feature[early], value[early])
            active[i].add(token, feature, np.ones(len(value)))
            width = coders[i].width
            place[i] += np.bincount(feature, at, width), np.bincount(feature, minlength=width)
    back = np.argsort(np.concatenate(order)) if order else np.zeros(0, np.int64)
    some = [sequences] if first is None else [sequences, sequences.take(np.flatnonzero(first))]
    n_read = [np.bincount(part.tokens, minlength=size) * is_gene.cpu().numpy() for part in some]
    sums = []
    for i, coder in enumerate(coders):
        whole = sp.vstack(cells[i]).tocsr()[back] if n else sp.csr_matrix((0, coder.width))
        with np.errstate(invalid="ignore"):
            mean_place = place[i][0] / np.where(place[i][1] > 0, place[i][1], np.nan)
        found = FeatureSums(
            whole.astype(np.float32), genes[i].total(), active[i].total(), n_read[0], mean_place
        )
        if first is not None:
            found = found._replace(first=halves[i].total(), n_first=n_read[1])
        sums.append(found)
    return sums


class _Sums:
    """A sparse matrix that entries are added to."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.found, self.parts, self.n = sp.csr_matrix(shape), [], 0

    def add(self, rows: np.ndarray, columns: np.ndarray, values: np.ndarray) -> None:
        self.parts.append((values.astype(np.float64), (rows, columns)))
        self.n += len(values)
        if self.n > _MERGE:
            self.total()

    def total(self) -> sp.csr_matrix:
        for values, at in self.parts:
            self.found = self.found + sp.csr_matrix((values, at), shape=self.found.shape)
        self.parts, self.n = [], 0
        return self.found


def mean_activity(model: MaxTokiModel, coder: SparseAutoencoder, sequences: Sequences) -> np.ndarray:
    """Mean activation of each feature over all genes of all sequences."""
    sums = pool_features(model, [coder], sequences)[0]
    return np.asarray(sums.genes.sum(axis=0)).ravel() / max(sums.n_read.sum(), 1)


def mean_features(
    model: MaxTokiModel, sae: SparseAutoencoder, sequences: Sequences, *, max_tokens: int | None = None
) -> np.ndarray:
    """Mean activation of each feature over the genes of each cell: float64, sequences x features."""
    is_gene, found = gene_mask(model), np.zeros((len(sequences), sae.width))

    def compute(batch: Batch) -> torch.Tensor:
        there = is_gene[batch.tokens]
        active = sae.encode(states_at(model, batch.inputs, sae.site).float()) * there[..., None]
        return active.sum(dim=1) / there.sum(dim=1, keepdim=True).clamp(min=1)

    for rows, part in run(model, sequences, compute, max_tokens=max_tokens, desc="Reading features"):
        found[rows] = part.double().cpu().numpy()
    return found


def embedding_slopes(
    model: MaxTokiModel,
    sae: SparseAutoencoder,
    sequences: Sequences,
    weight: np.ndarray,
    *,
    max_tokens: int | None = None,
) -> np.ndarray:
    """How the weighted mean activations of a cell change with the embedding at each of its tokens: float32, tokens x size.

    Parameters
    ----------
    model, sae, sequences
        Cells.
    weight
        Of each feature.
    max_tokens
        Padded tokens a batch.
    """
    is_gene = gene_mask(model)
    weight = torch.from_numpy(weight).float().to(model.device)
    found = np.zeros((len(sequences.tokens), model.hf.config.hidden_size), dtype=np.float32)

    def compute(batch: Batch) -> torch.Tensor:
        there = is_gene[batch.tokens]
        with torch.inference_mode(mode=False), torch.enable_grad():
            table = model.hf.get_input_embeddings().weight.detach()
            embeddings = table[batch.tokens.clone()].clone().requires_grad_()
            states = states_at(model, {"inputs_embeds": embeddings, "use_cache": False}, sae.site)
            active = sae.encode(states.float()) * there.clone()[..., None]
            mean = active.sum(dim=1) / there.sum(dim=1, keepdim=True).clamp(min=1)
            (slope,) = torch.autograd.grad((mean @ weight).sum(), embeddings)
        return slope.float().cpu()

    for rows, part in run(model, sequences, compute, max_tokens=max_tokens, desc="Following gradients"):
        for i, row in enumerate(rows):
            where = slice(*sequences.indptr[row : row + 2])
            found[where] = part[i, : where.stop - where.start].numpy()
    return found
