"""What each token of cells and prompts is: which part of the sequence, at which rank of its cell."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..models.sequences import Sequences
from ..models.vocabulary import Vocabulary

FIRST, SPECIAL, LAPSES, QUERY, GENES = "first", "special", "lapses", "query", "genes"
_SEQUENCES_A_BIN = 30  # of like length, so that a mean over cells is one
_EXACT_RANKS, _RANK_STEP, _PLACES = 16, 1.1, 100


class Parts(NamedTuple):
    """One entry a token."""

    segment: np.ndarray
    """int64: which of `names`."""
    rank: np.ndarray
    """int64: place in its cell, 1 for the highest ranked gene; 0 and up for other tokens."""
    names: list[str]


def token_parts(sequences: Sequences, vocab: Vocabulary, *, prompts: bool) -> Parts:
    """Part of each token: of a cell "first", "special", "genes"; of a prompt also "lapses", "query", "context_0" and so on."""
    tokens, lengths = sequences.tokens, sequences.lengths
    start = np.repeat(sequences.indptr[:-1], lengths)
    opens = tokens == vocab["<bos>"]
    place = np.arange(len(tokens))
    rank = place - np.maximum.accumulate(np.where(opens, place, 0))
    is_gene = (vocab.gene_of_token != "")[tokens]
    if not prompts:
        segment = np.where(is_gene, 2, 1)
        segment[sequences.indptr[:-1]] = 0
        return Parts(segment, rank, [FIRST, SPECIAL, GENES])
    cell = np.cumsum(opens)
    cell = cell - cell[start]
    asks = tokens == vocab["<boq>"]
    asked = np.cumsum(asks)
    in_query = asked - asked[start] > 0
    segment = np.where(is_gene, np.where(in_query, 3, 4 + cell), 1)
    segment[np.isin(tokens, vocab.time_ids)] = 2
    segment[sequences.indptr[:-1]] = 0
    n_context = int(segment.max(initial=3)) - 3
    return Parts(segment, rank, [FIRST, SPECIAL, LAPSES, QUERY, *(f"context_{i}" for i in range(n_context))])


def position_bins(sequences: Sequences, parts: Parts, length_edges: np.ndarray) -> np.ndarray:
    """Class of each token: like ranks in the same part of sequences of like lengths, with as many cells."""
    rank = np.maximum(parts.rank, 1)
    far = _EXACT_RANKS + 1 + np.log(np.maximum(rank / _EXACT_RANKS, 1)) / np.log(_RANK_STEP)
    place = np.minimum(np.where(rank <= _EXACT_RANKS, rank, far).astype(np.int64), _PLACES - 1)
    n_context = np.maximum(np.maximum.reduceat(parts.segment, sequences.indptr[:-1]) - 3, 0)
    length = np.searchsorted(length_edges, sequences.lengths, side="right")
    n_parts = len(parts.names)
    of_sequence = np.repeat(length * _contexts(parts.names) + n_context, sequences.lengths)
    return (of_sequence * n_parts + parts.segment) * _PLACES + place


def n_position_bins(names: list[str], length_edges: np.ndarray) -> int:
    """How many classes there can be."""
    return (len(length_edges) + 1) * _contexts(names) * len(names) * _PLACES


def _contexts(names: list[str]) -> int:
    return max(len(names) - 4, 0) + 1


def length_edges(lengths: np.ndarray) -> np.ndarray:
    """Lengths at which to divide sequences, so that each class has enough of them."""
    n = min(len(lengths) // _SEQUENCES_A_BIN, 20)
    return np.unique(np.quantile(lengths, np.arange(1, n) / n)) if n > 1 else np.zeros(0)


def could_attend(sequences: Sequences) -> np.ndarray:
    """Tokens that see each token: itself and all after it."""
    return np.repeat(sequences.indptr[1:], sequences.lengths) - np.arange(len(sequences.tokens))


def evenly_received(sequences: Sequences) -> np.ndarray:
    """What each token receives from a head that attends to all tokens alike."""
    harmonic = np.append(0, np.cumsum(1 / np.arange(1, sequences.lengths.max() + 1)))
    return np.repeat(harmonic[sequences.lengths], sequences.lengths) - harmonic[sequences.positions]


def evenly_given(sequences: Sequences, groups: np.ndarray) -> np.ndarray:
    """What a head that attends to all tokens alike gives to each group, sequences x 2 x groups.

    Mean of all tokens but the first; and the last token.
    """
    lengths = sequences.lengths
    seen = sequences.positions + 1
    out = np.zeros((len(lengths), 2, groups.shape[1]))
    for column, member in enumerate(groups.T):
        total = np.cumsum(member, dtype=np.int64)
        before = (total - member)[sequences.indptr[:-1]]
        share = (total - np.repeat(before, lengths)) / seen
        out[:, 1, column] = share[sequences.indptr[1:] - 1]
        share[sequences.indptr[:-1]] = 0
        out[:, 0, column] = np.add.reduceat(share, sequences.indptr[:-1]) / np.maximum(lengths - 1, 1)
    return out
