"""Which part of its prompt each token is."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .sequences import Sequences
from .vocabulary import Vocabulary

# Places of a segment that are told apart: octaves of the rank, and the segment's last token.
_PLACES = 20


class Layout(NamedTuple):
    """Segments of sequences: cells, lapses and marks."""

    names: list[str]
    """Segments that occur, in the order of the prompt: "context_0", "lapse_0", "context_1" and so on, "boq", "query", "eoq";
    in prompts that ask for a cell "boq", "lapse", "eoq", "query"; "cell" for a cell by itself."""
    segment: np.ndarray
    """int64, tokens: which segment each token is of."""
    start: np.ndarray
    """int64, sequences x segments: place in its sequence of the segment's first token."""
    size: np.ndarray
    """int64, sequences x segments: tokens of each; 0 where a sequence has no such segment."""


def layout(sequences: Sequences, vocab: Vocabulary) -> Layout:
    """Find the segments of prompts, or of cells by themselves."""
    tokens, n = sequences.tokens, len(sequences)
    of = np.repeat(np.arange(n), sequences.lengths)
    is_time = np.isin(tokens, vocab.time_ids)
    boq, eoq = (
        tokens == vocab[mark] if vocab.is_temporal else np.zeros(len(tokens), bool)
        for mark in ("<boq>", "<eoq>")
    )
    opens = (tokens == vocab["<bos>"]) | is_time | boq | eoq
    first = np.flatnonzero(opens)
    prompt = of[first]
    # Pieces that come after the prompt's <boq>.
    asked = np.cumsum(boq)[first] - np.append(0, np.cumsum(boq))[sequences.indptr[prompt]] > 0
    is_cell = ~(is_time | boq | eoq)[first]
    alone = ~np.bincount(of, boq, minlength=n).astype(bool)[prompt]

    def number(which: np.ndarray) -> np.ndarray:
        before = np.cumsum(which) - which
        return before - before[np.searchsorted(prompt, prompt)]

    name = np.empty(len(first), dtype=object)
    name[is_cell] = np.where(asked, "query", [f"context_{i}" for i in number(is_cell & ~asked)])[is_cell]
    name[is_time[first]] = np.where(asked, "lapse", [f"lapse_{i}" for i in number(is_time[first] & ~asked)])[
        is_time[first]
    ]
    name[boq[first]], name[eoq[first]] = "boq", "eoq"
    name[is_cell & alone] = "cell"

    most = max((int(x.rpartition("_")[2]) + 1 for x in set(name) if "_" in x), default=0)
    order = [f"{what}_{i}" for i in range(most) for what in ("context", "lapse")]
    order += ["cell", "boq", "lapse", "eoq", "query"] if "lapse" in name else ["cell", "boq", "query", "eoq"]
    names = [x for x in order if x in set(name)]
    code = np.array([names.index(x) for x in name], dtype=np.int64)
    length = np.diff(np.append(first, len(tokens)))
    start, size = np.zeros((2, n, len(names)), dtype=np.int64)
    start[prompt, code] = first - sequences.indptr[prompt]
    size[prompt, code] = length
    return Layout(names, np.repeat(code, length), start, size)


def place_classes(sequences: Sequences, parts: Layout) -> np.ndarray:
    """Class of each token: its segment, and in it the octave of its place (0, 1-2, 3-6, 7-14, ...) or the last token."""
    of = sequences.owner
    place = np.arange(len(sequences.tokens)) - sequences.indptr[of] - parts.start[of, parts.segment]
    octave = np.floor(np.log2(place + 1)).astype(np.int64)
    last = place == parts.size[of, parts.segment] - 1
    return parts.segment * _PLACES + np.where(last, _PLACES - 1, octave)


def n_classes(parts: Layout) -> int:
    """How many classes `place_classes` can give."""
    return len(parts.names) * _PLACES


def counterparts(parts: Layout, rows: np.ndarray, others: Layout, partners: np.ndarray) -> np.ndarray:
    """Place in its partner of each token of some sequences, padded with 0: sequences x longest.

    A token's counterpart is of the same segment and at the same place in it; the last token's is the last,
    and where the partner's segment is shorter, the counterpart of what lies beyond is its last but one.
    """
    start, size = parts.start[rows], parts.size[rows]
    lengths = size.sum(axis=1)
    column = np.arange(lengths.max(initial=0))
    found = np.zeros((len(rows), len(column)), dtype=np.int64)
    for segment in range(len(parts.names)):
        n, m = size[:, segment, None], others.size[partners][:, segment, None]
        place = column - start[:, segment, None]
        other = np.where(place == n - 1, m - 1, np.minimum(place, np.maximum(m - 2, 0)))
        inside = (place >= 0) & (place < n)
        found[inside] = (others.start[partners][:, segment, None] + other)[inside]
    return found
