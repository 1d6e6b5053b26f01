"""Edits of single cells: genes moved, taken out or put in, in the whole ranking of a cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .._names import require_choice
from .sequences import Sequences

MODES = ("inhibit", "delete", "activate", "overexpress", "shift")
# Modes that put a gene in where it is absent; the others leave a cell without it alone.
INSERTING = ("activate", "overexpress")
_FAR = 1 << 40  # ranks


def ranks_to_move(mode: str, k: int | Sequence[int] | None, usual: int) -> np.ndarray:
    """Ranks to move genes by, one or several doses: `usual` for "activate"; 0 where the mode moves none."""
    require_choice("mode", mode, MODES)
    if mode not in ("activate", "shift"):
        if k is not None:
            raise ValueError(f"mode={mode!r} has no k; it is for 'activate' and 'shift'.")
        return np.zeros(1, dtype=np.int64)
    if k is None and mode == "shift":
        raise ValueError("mode='shift' needs k, the ranks to move a gene up by (down where it is negative).")
    doses = np.atleast_1d(usual if k is None else k)
    if doses.dtype.kind not in "iu" or not len(doses) or len(np.unique(doses)) < len(doses):
        raise ValueError(f"k must be whole numbers, each once, got {k!r}.")
    if mode == "activate" and (doses < 0).any():
        raise ValueError(f"k must not be negative for 'activate', got {k!r}; use 'shift'.")
    return doses.astype(np.int64)


class Edited(NamedTuple):
    """Edited cells, and what each edit did: one entry an edit (E), or one a gene that was asked for (T)."""

    sequences: Sequences
    """E cells, cut to what the model reads."""
    before: np.ndarray
    """int64, T: rank from 1 in the whole cell; 0 where it is absent."""
    after: np.ndarray
    """int64, T: the same after the edit."""
    read: np.ndarray
    """bool, E: the model reads one of the genes, before or after."""
    changed: np.ndarray
    """bool, E: what the model reads is not the same."""
    lost: np.ndarray
    """int64, E: other genes that are pushed out of what the model reads."""
    gained: np.ndarray
    """int64, E: other genes that come into what the model reads."""


def edit_cells(
    cells: Sequences,
    rows: np.ndarray,
    edit: np.ndarray,
    token: np.ndarray,
    mode: str,
    *,
    max_length: int,
    k: np.ndarray | int = 0,
) -> Edited:
    """Make many edits, each of one cell, of one gene or several together.

    Parameters
    ----------
    cells
        Whole cells, `<bos>` genes `<eos>`, not cut to what a model reads.
    rows
        E: the cell that each edit is made in.
    edit, token
        T: the edits' genes, in order of the edits; no gene twice in one edit.
    mode
        "inhibit" (to the last ranks), "delete", "activate" (up by k; an absent gene k above the end),
        "overexpress" (to the first ranks, in the given order), "shift" (up by k, or down where k is
        negative). Genes of one edit keep their order among each other, but for "overexpress"; the ends of the
        ranking stop them.
    max_length
        Tokens of a cell that the model reads, marks included.
    k
        Ranks, of each edit.
    """
    require_choice("mode", mode, MODES)
    edit, token = np.asarray(edit, dtype=np.int64), np.asarray(token, dtype=np.int64)
    rows, k = np.asarray(rows, dtype=np.int64), np.broadcast_to(k, len(rows))
    n_genes = cells.lengths[rows] - 2
    before = _find(cells, rows[edit], token)
    present = before > 0
    placed = {"delete": np.zeros_like(present)}.get(mode, present | (mode in INSERTING))

    # Where the genes would be if nothing stopped them; the absent ones come from behind the last.
    start = np.searchsorted(edit, np.arange(len(rows)))
    n_absent = np.cumsum(~present) - ~present
    place = np.where(present, before - 1, n_genes[edit] + n_absent - n_absent[start[edit]])
    up = {"inhibit": -_FAR, "overexpress": _FAR}.get(mode)
    order = np.flatnonzero(placed)
    if mode != "overexpress":
        order = order[np.lexsort((place[order], edit[order]))]
    number = np.arange(len(order)) - np.searchsorted(edit[order], edit[order])
    n_placed = np.bincount(edit[order], minlength=len(rows))
    n_left = n_genes - np.bincount(edit[present], minlength=len(rows))
    n_out = n_left + n_placed
    target = place[order] - (k[edit[order]] if up is None else up)
    after = np.zeros_like(before)
    after[order] = 1 + np.clip(target, number, n_left[edit[order]] + number)

    n_read = max_length - 2
    in_window = [np.where((rank > 0) & (rank <= n_read), rank, 0) for rank in (before, after)]
    moved, seen = in_window[0] != in_window[1], (in_window[0] > 0) | (in_window[1] > 0)
    others = [
        np.minimum(n, n_read) - np.bincount(edit[rank > 0], minlength=len(rows))
        for n, rank in zip((n_genes, n_out), in_window, strict=True)
    ]
    return Edited(
        _cut(_write(cells, rows, edit, token, before, after, n_out), max_length),
        before,
        after,
        np.bincount(edit[seen], minlength=len(rows)) > 0,
        (np.bincount(edit[moved], minlength=len(rows)) > 0) | (others[0] != others[1]),
        np.maximum(others[0] - others[1], 0),
        np.maximum(others[1] - others[0], 0),
    )


def _find(cells: Sequences, row: np.ndarray, token: np.ndarray) -> np.ndarray:
    """Rank of a gene in a cell, 0 where it is absent."""
    width = 1 + max(cells.tokens.max(initial=0), token.max(initial=0))
    keys = cells.owner * np.int64(width) + cells.tokens
    order = np.argsort(keys)
    keys, wanted = keys[order], row * np.int64(width) + token
    at = np.searchsorted(keys, wanted).clip(max=max(len(keys) - 1, 0))
    # `<bos>` is at 0, so that the position of a gene is its rank.
    return np.where(keys[at] == wanted, order[at] - cells.indptr[row], 0)


def _write(cells, rows, edit, token, before, after, n_out) -> Sequences:
    """The genes at their new ranks, all other tokens around them in their order."""
    taken = cells.take(rows)
    first, source = taken.indptr, taken.tokens
    others = np.ones(len(source), dtype=bool)
    others[(first[edit] + before)[before > 0]] = False
    indptr = np.concatenate([[0], np.cumsum(n_out + 2)])
    tokens, free = np.empty(indptr[-1], dtype=np.int32), np.ones(indptr[-1], dtype=bool)
    at, placed = (indptr[edit] + after)[after > 0], token[after > 0]
    tokens[at], free[at] = placed, False
    tokens[free] = source[others]
    return Sequences(tokens, indptr)


def _cut(sequences: Sequences, max_length: int) -> Sequences:
    """The first tokens of each cell, and its `<eos>`."""
    at, lengths = sequences.positions, sequences.lengths
    return sequences.keep((at < max_length - 1) | (at == np.repeat(lengths - 1, lengths)))


def cut_cells(cells: Sequences, max_length: int) -> Sequences:
    """Whole cells as a model reads them."""
    return _cut(cells, max_length)
