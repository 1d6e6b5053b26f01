"""Cells as token sequences of unequal length, in one flat array."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch

from .vocabulary import MARKS, MODALITIES, Vocabulary


@dataclass(frozen=True, eq=False, slots=True)
class Sequences:
    """Token sequences of unequal length, end to end."""

    tokens: np.ndarray
    """All tokens, int32."""
    indptr: np.ndarray
    """Where each sequence starts and the last one ends, int64, one more than there are sequences."""

    @classmethod
    def of(cls, parts: Sequence[np.ndarray]) -> Sequences:
        """Sequences from an array of tokens each."""
        tokens = np.concatenate([np.zeros(0, np.int32), *parts]).astype(np.int32)
        return cls.split(tokens, np.array([len(part) for part in parts], dtype=np.int64))

    @classmethod
    def split(cls, tokens: np.ndarray, lengths: np.ndarray) -> Sequences:
        """Tokens end to end, cut into sequences of these lengths."""
        return cls(tokens, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))

    @classmethod
    def concatenate(cls, parts: Sequence[Sequences]) -> Sequences:
        """All sequences of several sets, one set after the other."""
        return cls.split(
            np.concatenate([part.tokens for part in parts]), np.concatenate([part.lengths for part in parts])
        )

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """What they are made of, for checksums."""
        return self.tokens, self.indptr

    def __len__(self) -> int:
        return len(self.indptr) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sequence."""
        return np.diff(self.indptr)

    @property
    def owner(self) -> np.ndarray:
        """Which sequence each token is of."""
        return np.repeat(np.arange(len(self)), self.lengths)

    @property
    def positions(self) -> np.ndarray:
        """Place of each token in its sequence, from 0."""
        return np.arange(len(self.tokens)) - np.repeat(self.indptr[:-1], self.lengths)

    def take(self, rows: np.ndarray, lengths: np.ndarray | None = None) -> Sequences:
        """Some of the sequences, each whole or to its first `lengths` tokens."""
        lengths = self.lengths[rows] if lengths is None else np.asarray(lengths)
        indptr = np.concatenate([[0], np.cumsum(lengths)])
        at = np.arange(indptr[-1]) + np.repeat(self.indptr[rows] - indptr[:-1], lengths)
        return Sequences(self.tokens[at], indptr)

    def keep(self, kept: np.ndarray) -> Sequences:
        """The sequences with some of their tokens, one boolean a token."""
        return Sequences(self.tokens[kept], np.concatenate([[0], np.cumsum(kept)])[self.indptr])

    def with_tokens(self, tokens: np.ndarray) -> Sequences:
        """Other tokens at the same places."""
        return Sequences(tokens, self.indptr)


def cell_sequences(
    ranks: sp.csr_matrix, token_of_gene: np.ndarray, vocab: Vocabulary, *, max_length: int
) -> Sequences:
    """Write each cell as `<bos>`, its genes from the highest ranked on, `<eos>`.

    Parameters
    ----------
    ranks
        Ranks from 1, cells x genes, as `mt.pp.rank_value_encode` writes them; gaps (a subset of the genes)
        are closed.
    token_of_gene
        Token id of each column, -1 for none.
    vocab
        Where `<bos>` and `<eos>` are.
    max_length
        Longest sequence, marks included: the lowest ranked genes beyond it are left out.
    """
    if vocab.modalities:
        return _joint_sequences(ranks, token_of_gene, vocab, max_length)
    return _of_one_kind(ranks, token_of_gene, vocab["<bos>"], vocab["<eos>"], max_length)


def _of_one_kind(
    ranks: sp.csr_matrix, token_of_gene: np.ndarray, first: int, last: int, max_length: int
) -> Sequences:
    """Write each cell as a mark, its features from the highest ranked on, and another mark."""
    rank = ranks.data.astype(np.int64)
    token = token_of_gene[ranks.indices]
    lowest = (
        np.maximum.reduceat(np.append(rank, 0), ranks.indptr[:-1])
        if ranks.nnz
        else np.zeros(len(ranks.indptr) - 1, np.int64)
    )
    lowest[np.diff(ranks.indptr) == 0] = 0
    # A place for every rank up to the cell's lowest; places that stay empty are closed afterwards.
    starts = np.concatenate([[0], np.cumsum(lowest)])
    placed = np.full(starts[-1], -1, dtype=np.int32)
    cell = np.repeat(np.arange(ranks.shape[0]), np.diff(ranks.indptr))
    placed[starts[cell] + rank - 1] = token
    filled = placed >= 0
    order = np.concatenate([[0], np.cumsum(filled)])
    n_genes = np.diff(order[starts])
    position = order[:-1] - np.repeat(order[starts[:-1]], lowest)
    kept = filled & (position < max_length - 2)

    lengths = np.minimum(n_genes, max_length - 2) + 2
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.empty(indptr[-1], dtype=np.int32)
    mark = np.zeros(len(tokens), dtype=bool)
    mark[indptr[:-1]] = mark[indptr[1:] - 1] = True
    tokens[~mark] = placed[kept]
    tokens[indptr[:-1]] = first
    tokens[indptr[1:] - 1] = last
    return Sequences(tokens, indptr)


def budgets(n_features: dict[str, int], max_length: int) -> dict[str, int]:
    """Features of each kind that a cell of this length has room for: an even share, and what the smaller kinds leave."""
    room = max_length - 2 - len(n_features)
    out = {}
    for i, (kind, n) in enumerate(sorted(n_features.items(), key=lambda item: item[1])):
        out[kind] = max(min(n, room // (len(n_features) - i)), 0)
        room -= out[kind]
    return out


def _joint_sequences(
    ranks: sp.csr_matrix, token: np.ndarray, vocab: Vocabulary, max_length: int
) -> Sequences:
    """Write each cell as `<bos>`, its kinds of features, each behind its mark, `<eos>`; what a cell lacks is left out."""
    kind_of = np.where(token >= 0, vocab.modality_of_token[token], -1)
    # What was not measured takes no room.
    there = [kind for kind in vocab.modalities if MODALITIES.index(kind) in kind_of]
    room = budgets({kind: int((kind_of == MODALITIES.index(kind)).sum()) for kind in there}, max_length)
    parts = []
    for kind in there:
        columns = np.flatnonzero(kind_of == MODALITIES.index(kind))
        length = room[kind] + 2
        one = _of_one_kind(ranks[:, columns], token[columns], vocab[MARKS[kind]], vocab["<eos>"], length)
        # Only `<eos>` of the whole cell stays.
        keep = (one.lengths > 2)[one.owner] & (one.positions < one.lengths[one.owner] - 1)
        parts.append(one.keep(keep))
    n = ranks.shape[0]
    ends = [
        Sequences.split(np.full(n, vocab[mark], np.int32), np.ones(n, int)) for mark in ("<bos>", "<eos>")
    ]
    parts = [ends[0], *parts, ends[1]]
    order = np.arange(len(parts) * n).reshape(len(parts), n).T.ravel()
    joined = Sequences.concatenate(parts).take(order)
    return Sequences(joined.tokens, joined.indptr[:: len(parts)])


def pad(
    sequences: Sequences, rows: np.ndarray, pad_id: int, *, first: np.ndarray | None = None
) -> torch.Tensor:
    """Gather some sequences, each from its `first` token on, as one int64 tensor, padded on the right.

    Attention is causal, so what follows a sequence cannot reach it and no attention mask is needed.
    """
    start = sequences.indptr[rows] + (0 if first is None else first)
    lengths = sequences.indptr[rows + 1] - start
    column = np.arange(lengths.max(initial=0))
    inside = column < lengths[:, None]
    batch = np.full(inside.shape, pad_id, dtype=np.int64)
    batch[inside] = sequences.tokens[(start[:, None] + column)[inside]]
    return torch.from_numpy(batch)


def cell_ranks(cells: Sequences, vocab: Vocabulary) -> sp.csr_matrix:
    """Ranks from 1 of the genes of each cell, cells x genes in the vocabulary's order, uint16: what `cell_sequences` reads.

    What is no gene, such as the marks, has no rank.
    """
    column = np.full(vocab.size, -1)
    column[vocab.gene_ids] = np.arange(len(vocab.gene_ids))
    is_gene = column[cells.tokens] >= 0
    n_genes = np.diff(np.concatenate([[0], np.cumsum(is_gene)])[cells.indptr])
    indptr = np.concatenate([[0], np.cumsum(n_genes)])
    rank = np.arange(indptr[-1]) - np.repeat(indptr[:-1], n_genes) + 1
    ranks = sp.csr_matrix(
        (rank.astype(np.uint16), column[cells.tokens[is_gene]].astype(np.int32), indptr),
        shape=(len(n_genes), len(vocab.gene_ids)),
    )
    ranks.sort_indices()
    return ranks


def require_cells(cells: Sequences, vocab: Vocabulary, path: object) -> None:
    """Raise unless each sequence is `<bos>`, genes of the vocabulary, none twice, and `<eos>`."""
    tokens, long = cells.tokens, cells.lengths > 2
    first, last = cells.indptr[:-1][long], cells.indptr[1:][long] - 1
    framed = np.zeros(len(cells), dtype=bool)
    framed[long] = (tokens[first] == vocab["<bos>"]) & (tokens[last] == vocab["<eos>"])
    known = np.zeros(vocab.size, dtype=bool)
    known[vocab.gene_ids] = True
    fits = (tokens >= 0) & (tokens < vocab.size)
    strange = ~(fits & known[np.where(fits, tokens, 0)])
    strange[first] = strange[last] = False
    n_strange = np.diff(np.concatenate([[0], np.cumsum(strange)])[cells.indptr])
    if (bad := ~framed | (n_strange > 0)).any():
        row = int(np.flatnonzero(bad)[0])
        shown = tokens[cells.indptr[row] : cells.indptr[row + 1]][:6].tolist()
        raise ValueError(
            f"{bad.sum()} of {len(cells)} rows of {path} are no cells of this vocabulary: <bos> ({vocab['<bos>']}), genes, <eos> "
            f"({vocab['<eos>']}). The first is row {row}, which begins {shown}. Give the model or dictionary that they were made with."
        )
    order = np.sort(cells.owner * np.int64(vocab.size) + tokens)
    if (twice := order[1:][np.diff(order) == 0] // vocab.size).size:
        raise ValueError(
            f"{len(np.unique(twice))} rows of {path} have a gene twice (the first is row {twice[0]}), as the original writes them "
            "where a gene is in the data twice. Rank the counts again: mt.pp.rank_value_encode."
        )
