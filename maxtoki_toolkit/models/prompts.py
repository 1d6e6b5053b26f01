"""The grammar of prompts: `c0 t0 c1 ... <boq> query <eoq> answer`, written for many prompts at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .sequences import Sequences
from .vocabulary import Vocabulary


class Prompts(NamedTuple):
    """Which cells and lapses make up each prompt."""

    context: np.ndarray
    """int64, prompts x largest context: rows of the cells, -1 after the last one."""
    query: np.ndarray
    """int64, prompts: row of the query cell."""
    steps: np.ndarray
    """int64, prompts x (largest context - 1): lapse from each context cell to the next."""
    lapse: np.ndarray
    """int64, prompts: lapse from the last context cell to the query."""
    timelapse: np.ndarray
    """bool, prompts: the query cell is given and the lapse asked for; otherwise the reverse."""

    @property
    def context_size(self) -> np.ndarray:
        """Context cells of each prompt."""
        return (self.context >= 0).sum(axis=1)

    def __getitem__(self, rows) -> Prompts:
        """Some of the prompts."""
        return Prompts(*(field[rows] for field in tuple(self)))

    @classmethod
    def concatenate(cls, parts: Sequence[Prompts]) -> Prompts:
        """Prompts one after the other, with room for the largest context."""
        size = max(part.context.shape[1] for part in parts)
        return cls(
            np.concatenate([_widen(part.context, size, -1) for part in parts]),
            np.concatenate([part.query for part in parts]),
            np.concatenate([_widen(part.steps, size - 1, 0) for part in parts]),
            np.concatenate([part.lapse for part in parts]),
            np.concatenate([part.timelapse for part in parts]),
        )


def _widen(rows: np.ndarray, width: int, fill: int) -> np.ndarray:
    return np.pad(rows, [(0, 0), (0, width - rows.shape[1])], constant_values=fill)


class Written(NamedTuple):
    """Prompts as tokens."""

    sequences: Sequences
    """Tokens of each prompt, with its answer if asked for."""
    eoq: np.ndarray
    """int64: position of `<eoq>` in each prompt, where the answer is read."""
    n_clipped: np.ndarray
    """int64: genes of the first cell that were left out for the prompt to fit."""


def write_prompts(
    prompts: Prompts,
    cells: Sequences,
    vocab: Vocabulary,
    *,
    max_length: int,
    answer: bool | np.ndarray = True,
    queries: Sequences | None = None,
) -> Written:
    """Write prompts as tokens.

    A prompt that is too long, with its answer, loses the lowest ranked genes of its first cell.

    Parameters
    ----------
    prompts
        Cells and lapses.
    cells
        The cells as sequences, `<bos>` genes `<eos>`.
    vocab
        A temporal vocabulary.
    max_length
        Tokens that a prompt with its answer may have.
    answer
        Whether to write the answer after `<eoq>`, of all prompts or of each. It counts for the length in
        either case.
    queries
        Where the query cells are, if not among `cells`.

    Raises
    ------
    ValueError
        If a lapse has no token, or a prompt cannot be cut to `max_length` and keep `<bos>` and two genes of
        its first cell.
    """
    queries = cells if queries is None else queries
    n, size = prompts.context.shape
    context_size = prompts.context_size
    column = np.arange(size)
    # Stands where no lapse is written.
    any_lapse = vocab.time_values[0] if vocab.is_temporal else 0

    # A piece is a stretch of cells.tokens, of queries.tokens, or one token of the vocabulary (offset after
    # both).
    n_cells, n_all = len(cells.tokens), len(cells.tokens) + len(queries.tokens)
    start = np.zeros((n, 3 * size + 7), dtype=np.int64)
    length = np.zeros_like(start)

    def put(piece: int, token: np.ndarray | int, where: np.ndarray | int = 1) -> None:
        start[:, piece] = n_all + token
        length[:, piece] = where

    for i in column:
        present = prompts.context[:, i] >= 0
        row = np.where(present, prompts.context[:, i], 0)
        start[:, 3 * i] = cells.indptr[row]
        length[:, 3 * i] = np.where(present, cells.lengths[row] - 1, 0)
        put(3 * i + 1, vocab["<eos>"], present)
        if i + 1 < size:
            more = i + 1 < context_size
            put(3 * i + 2, time_token(np.where(more, prompts.steps[:, i], any_lapse), vocab), more)
    query_start = n_cells + queries.indptr[prompts.query]
    query_length = queries.lengths[prompts.query] - 1
    given, asked = prompts.timelapse, ~prompts.timelapse
    is_written = asked | np.broadcast_to(answer, n)
    lapse = time_token(np.where(is_written, prompts.lapse, any_lapse), vocab)
    after = 3 * size
    put(after, vocab["<boq>"])
    start[:, after + 1] = np.where(given, query_start, n_all + lapse)
    length[:, after + 1] = np.where(given, query_length, 1)
    put(after + 2, vocab["<eos>"], given)
    put(after + 3, vocab["<eoq>"])
    start[:, after + 4] = np.where(given, n_all + lapse, query_start)
    length[:, after + 4] = np.where(given, 1, query_length)
    put(after + 5, vocab["<eos>"], asked)

    overflow = np.maximum(length.sum(axis=1) - max_length, 0)
    if (bad := overflow > np.maximum(length[:, 0] - 3, 0)).any():
        worst = np.flatnonzero(bad)[0]
        raise ValueError(
            f"{bad.sum()} of {n} prompts have more than {max_length} tokens even without the first cell's genes "
            f"(the first: {length[worst].sum()} tokens, of which {max(length[worst, 0] - 3, 0)} can go). "
            "Use fewer context cells, or a model that reads more tokens."
        )
    length[:, 0] -= overflow
    eoq = length[:, : after + 4].sum(axis=1) - 1
    length[:, after + 4 :] *= np.broadcast_to(answer, n)[:, None]

    totals = length.sum(axis=1)
    indptr = np.concatenate([[0], np.cumsum(totals)])
    pieces = length.ravel()
    before = np.cumsum(pieces) - pieces
    source = np.arange(indptr[-1]) + np.repeat(start.ravel() - before, pieces)
    tokens = np.empty(len(source), dtype=np.int32)
    in_cells, mark = source < n_cells, source >= n_all
    in_queries = ~in_cells & ~mark
    tokens[in_cells] = cells.tokens[source[in_cells]]
    tokens[in_queries] = queries.tokens[source[in_queries] - n_cells]
    tokens[mark] = source[mark] - n_all
    return Written(Sequences(tokens, indptr), eoq, overflow)


def time_token(lapses: np.ndarray, vocab: Vocabulary) -> np.ndarray:
    """Token id of each lapse."""
    values = vocab.time_values
    if not len(values):
        raise ValueError(
            "This vocabulary has no time tokens: it is that of a model without temporal training."
        )
    place = np.searchsorted(values, lapses).clip(max=len(values) - 1)
    if (unknown := values[place] != lapses).any():
        raise ValueError(
            f"{unknown.sum()} lapses have no token (the first: {np.asarray(lapses)[unknown][0]}); the vocabulary has "
            f"{values[0]}..{values[-1]}."
        )
    return vocab.time_ids[place]
