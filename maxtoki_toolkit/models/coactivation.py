"""At how many places two features of an autoencoder are active together, unit by unit."""

from __future__ import annotations

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

_MOST = 1 << 25  # activations held at a time
_MERGE = 1 << 21  # active features whose pairs are counted at a time
_FIRST = 16  # ranks that are of one height; from there, in steps of half an octave


class Coactivation(NamedTuple):
    """Where features are active: counts of places."""

    pairs: sp.csr_matrix
    """int32, (units * features) x features: places of each unit at which both are active."""
    strata: sp.csr_matrix
    """int32, strata x features: places at which each is active. Strata are ranks of like height in a cell."""
    size: np.ndarray
    """int64, places of each stratum."""
    cell: np.ndarray
    """int64, sequence of each stratum."""
    rank: np.ndarray
    """float64, groups x features: sum of the ranks, from 1, of the genes at which each is active."""
    genes: sp.csr_matrix
    """int32, (groups * tokens) x features: places of each gene in each group at which each is active."""
    n_read: np.ndarray
    """int64, groups x tokens: places at which each gene is read."""

    def genes_of(self, groups: list[int]) -> tuple[sp.csr_matrix, np.ndarray]:
        """Of some groups together, tokens x features: places at which each is active; and places of each token."""
        size = self.n_read.shape[1]
        active = sum(self.genes[group * size : (group + 1) * size] for group in groups)
        return active.tocsr(), self.n_read[groups].sum(axis=0)


def count_coactivation(
    model: MaxTokiModel,
    sae: SparseAutoencoder,
    sequences: Sequences,
    unit: np.ndarray,
    group: np.ndarray,
    *,
    max_tokens: int | None = None,
) -> Coactivation:
    """Count the places at which each two features are active, in one pass and without storing activations.

    Parameters
    ----------
    model
        Model.
    sae
        Autoencoder of it.
    sequences
        Cells, `<bos>` genes `<eos>`. Marks are not read.
    unit
        Of each sequence, from 0: pairs are counted for each.
    group
        Of each sequence, from 0: genes are counted for each.
    max_tokens
        Padded tokens a batch.
    """
    is_gene, width, size = gene_mask(model), sae.width, model.vocab.size
    max_tokens = min(tokens_at_once(model, max_tokens), max(_MOST // width, 1))
    n_units, n_groups = int(unit.max(initial=-1)) + 1, int(group.max(initial=-1)) + 1
    pairs = sp.csr_matrix((n_units * width, width), dtype=np.int32)
    height = rank_heights(sequences.positions)
    n_heights = int(height.max(initial=0)) + 1
    stratum = sequences.owner * n_heights + height
    strata = sp.csr_matrix((len(sequences) * n_heights, width), dtype=np.int32)
    ranks = np.zeros((n_groups, width))
    genes = sp.csr_matrix((n_groups * size, width), dtype=np.int32)
    waiting: list[tuple[np.ndarray, ...]] = []

    def compute(batch: Batch) -> tuple[np.ndarray, ...]:
        active = sae.encode(states_at(model, batch.inputs, sae.site).float()) > 0
        row, at, feature = (active & is_gene[batch.tokens][..., None]).nonzero(as_tuple=True)
        place = torch.unique_consecutive(row * batch.tokens.shape[1] + at, return_inverse=True)[1]
        parts = (row, at, place, feature)
        return tuple(part.cpu().numpy() for part in parts)

    def count() -> None:
        nonlocal pairs, strata, genes, ranks
        before = np.cumsum([0, *(part[2].max(initial=-1) + 1 for part in waiting)])
        row, at, feature = (np.concatenate([part[i] for part in waiting]) for i in (0, 1, 3))
        token = sequences.indptr[row] + at
        place = np.concatenate([part[2] + start for part, start in zip(waiting, before, strict=False)])
        once = np.ones(len(row), np.int32)
        pairs = pairs + count_pairs(place, feature, unit[row], n_units, width)
        strata = strata + sp.csr_matrix((once, (stratum[token], feature)), shape=strata.shape)
        rows = group[row] * size + sequences.tokens[token]
        genes = genes + sp.csr_matrix((once, (rows, feature)), shape=genes.shape)
        ranks += np.bincount(group[row] * width + feature, at, n_groups * width).reshape(ranks.shape)
        waiting.clear()

    for rows, (row, *rest) in run(
        model, sequences, compute, max_tokens=max_tokens, desc="Counting activity together"
    ):
        waiting.append((rows[row], *rest))
        if sum(len(part[0]) for part in waiting) > _MERGE:
            count()
    if waiting:
        count()
    owner, there = sequences.owner, is_gene.cpu().numpy()
    n_read = np.bincount(group[owner] * size + sequences.tokens, minlength=n_groups * size)
    n_read = n_read.reshape(n_groups, size) * there
    n_places = np.bincount(stratum[there[sequences.tokens]], minlength=strata.shape[0])
    some = np.flatnonzero(n_places)
    return Coactivation(pairs, strata[some], n_places[some], some // n_heights, ranks, genes, n_read)


def rank_heights(rank: np.ndarray) -> np.ndarray:
    """Ranks from 1, in classes of about the same height; `<bos>`, at 0, is in the first.

    Examples
    --------
    >>> rank_heights(np.array([1, 16, 17, 22, 23, 32, 33, 45, 46])).tolist()
    [0, 0, 1, 1, 2, 2, 3, 3, 4]
    """
    return np.ceil(2 * np.log2(np.maximum(rank, _FIRST) / _FIRST)).astype(np.int64)


def count_pairs(
    place: np.ndarray, feature: np.ndarray, unit: np.ndarray, n_units: int, width: int
) -> sp.csr_matrix:
    """Places of each unit at which both of two features are active, (units * features) x features.

    Parameters
    ----------
    place, feature, unit
        Of each active feature: where it is (from 0), which it is, and the unit of the place.
    n_units, width
        How many units and features there are.

    Examples
    --------
    >>> count_pairs(*np.array([[0, 0, 1], [0, 1, 1], [0, 0, 0]]), 1, 2).toarray()
    array([[1, 1],
           [1, 2]], dtype=int32)
    """
    once, n = np.ones(len(place), np.int32), int(place.max(initial=-1)) + 1
    active = sp.csr_matrix((once, (place, feature)), shape=(n, width))
    rows = unit.astype(np.int64) * width + feature
    return (sp.csr_matrix((once, (rows, place)), shape=(n_units * width, n)) @ active).tocsr()
