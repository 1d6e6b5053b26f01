"""Edits of cells against what they should do, gene by gene."""

import numpy as np
import pytest

from maxtoki_toolkit.models.edits import MODES, cut_cells, edit_cells
from maxtoki_toolkit.models.sequences import Sequences


def as_sequences(cells):
    return Sequences(
        np.array([t for cell in cells for t in (2, *cell, 3)], dtype=np.int32),
        np.cumsum([0, *(len(cell) + 2 for cell in cells)]),
    )


def cell_of(sequences, i):
    return sequences.tokens[sequences.indptr[i] : sequences.indptr[i + 1]].tolist()


def expected(genes, targets, mode, k):
    """The edited ranking, in the plainest way."""
    rest = [g for g in genes if g not in targets]
    own = [g for g in genes if g in targets]
    if mode == "delete":
        return rest
    if mode == "overexpress":
        return list(targets) + rest
    if mode == "inhibit":
        return rest + own
    place = {g: genes.index(g) for g in own}
    if mode == "activate":
        place |= {g: len(genes) + j for j, g in enumerate(t for t in targets if t not in genes)}
    moved = sorted(place, key=place.get)
    found = [None] * (len(rest) + len(moved))
    for i, g in enumerate(moved):
        found[min(max(place[g] - k, i), len(rest) + i)] = g
    others = iter(rest)
    return [next(others) if g is None else g for g in found]


@pytest.mark.parametrize("mode", MODES)
def test_edits_are_those_of_the_plain_way(mode):
    rng = np.random.default_rng(MODES.index(mode))
    for _ in range(60):
        cells = [rng.permutation(np.arange(4, 24))[: rng.integers(1, 15)].tolist() for _ in range(3)]
        rows = rng.integers(0, 3, 6)
        targets = [rng.permutation(np.arange(4, 24))[: rng.integers(1, 4)].tolist() for _ in range(6)]
        k = rng.integers(-6 if mode == "shift" else 0, 7, 6)
        length = int(rng.integers(4, 18))
        sizes = [len(t) for t in targets]
        sequences = as_sequences(cells)
        found = edit_cells(
            sequences,
            rows,
            np.repeat(np.arange(6), sizes),
            np.concatenate(targets),
            mode,
            k=k,
            max_length=length,
        )
        base = cut_cells(sequences, length)
        at = 0
        for e in range(6):
            genes, wanted = cells[rows[e]], expected(cells[rows[e]], targets[e], mode, k[e])
            got, before = cell_of(found.sequences, e), cell_of(base, rows[e])
            assert got == [2, *wanted[: length - 2], 3]
            assert found.changed[e] == (got != before)
            assert found.read[e] == bool((set(got) | set(before)) & set(targets[e]))
            assert found.lost[e] == len(set(before) - set(got) - set(targets[e]))
            assert found.gained[e] == len(set(got) - set(before) - set(targets[e]))
            for gene in targets[e]:
                assert found.before[at] == (genes.index(gene) + 1 if gene in genes else 0)
                assert found.after[at] == (wanted.index(gene) + 1 if gene in wanted else 0)
                at += 1


def test_overexpression_alone_depends_on_the_order_of_a_set():
    cells = as_sequences([[5, 6, 7, 8]])
    for mode in MODES:
        one, other = (
            cell_of(edit_cells(cells, [0], [0, 0], pair, mode, k=2, max_length=20).sequences, 0)
            for pair in ([6, 8], [8, 6])
        )
        assert (one == other) == (mode != "overexpress")


def test_unknown_mode():
    with pytest.raises(ValueError, match="no mode 'knockout'"):
        edit_cells(as_sequences([[5]]), [0], [0], [5], "knockout", max_length=9)
