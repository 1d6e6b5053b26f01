"""Two cells in one droplet: which two, and what is counted or ranked of them."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from ._rank import rank_csr

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MOLECULES = 1 << 23  # held in memory at once


def draw_pairs(
    names: np.ndarray,
    stratum: np.ndarray,
    kind: np.ndarray | None,
    n: int,
    *,
    same_type: float | None,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw n pairs of different cells of one stratum.

    Parameters
    ----------
    names
        Names of the cells; the pairs do not depend on their order.
    stratum
        What both cells share, e.g. the donor, as integers.
    kind
        Type of each cell, as integers; `None` where no type is known.
    n
        Pairs.
    same_type
        Share of pairs of one type, spread evenly; the others are of two types. `None` for any two cells.
    seed
        Seed. A pair depends on it and on its number, not on how many are drawn.
    """
    group = np.zeros(len(names), dtype=np.int64) if kind is None else kind
    order = np.lexsort((names, group, stratum))
    of_stratum, of_group = (
        _run(np.column_stack(keys)) for keys in ([stratum[order]], [stratum[order], group[order]])
    )
    number = np.arange(n)
    if same_type is None:
        wanted = np.full(n, "any")
    else:
        same = np.floor((number + 1) * same_type + 1e-9) > np.floor(number * same_type + 1e-9)
        wanted = np.where(same, "same", "other")
    # Partners of the cell at each place: a range without itself, or its stratum without its own type.
    own = np.arange(len(order))
    without = {
        "any": (of_stratum, (own, own + 1)),
        "same": (of_group, (own, own + 1)),
        "other": (of_stratum, of_group),
    }
    u = np.column_stack([uniform(seed, number, stream) for stream in (0, 1)])
    first, second = np.empty((2, n), dtype=np.int64)
    for what in np.unique(wanted):
        (start, stop), (skip, resume) = without[what]
        n_partners = (stop - start) - (resume - skip)
        able = np.flatnonzero(n_partners)
        if not len(able):
            raise ValueError(
                {
                    "any": "No cell has another cell to pair with: each donor has one.",
                    "same": "No cell has another cell of its own type (and donor) to pair with. Lower same_type.",
                    "other": "No cell has a cell of another type (and its own donor) to pair with: same_type=1.0 draws "
                    "pairs of one type only.",
                }[what]
            )
        rows = wanted == what
        a = able[(u[rows, 0] * len(able)).astype(np.int64)]
        b = start[a] + (u[rows, 1] * n_partners[a]).astype(np.int64)
        b += np.where(b >= skip[a], (resume - skip)[a], 0)
        first[rows], second[rows] = order[a], order[b]
    return first, second


def add_counts(
    counts: sp.csr_matrix, first: np.ndarray, second: np.ndarray, share: np.ndarray, *, seed: int
) -> sp.csr_matrix:
    """Sum the counts of the pairs, and keep each molecule with the pair's probability: binomial thinning."""
    counts = counts.astype(np.int64)
    n_molecules = np.asarray(counts.sum(axis=1)).ravel()
    rows = np.cumsum(n_molecules[first] + n_molecules[second]) // _MOLECULES
    blocks = np.split(np.arange(len(first)), np.flatnonzero(np.diff(rows)) + 1)
    thinned = [_thin(counts[first[b]] + counts[second[b]], b, share[b], seed) for b in blocks]
    return sp.vstack(thinned, format="csr").astype(np.float32)


def merge_ranks(ranks: sp.csr_matrix, first: np.ndarray, second: np.ndarray) -> sp.csr_matrix:
    """Rank the genes of the pairs by the sum of what stands for expression in both cells: -log of the place, 0 if absent."""
    n_genes = np.diff(ranks.indptr)
    values = ranks.astype(np.float64)
    values.data = -np.log((values.data - 0.5) / np.repeat(n_genes, n_genes))
    merged = (values[first] + values[second]).tocsr()
    merged.sort_indices()
    return rank_csr(merged, np.ones(ranks.shape[1]))


def uniform(seed: int, number: np.ndarray, stream: int | np.ndarray) -> np.ndarray:
    """Random numbers in [0, 1), each from the seed, a number and its place in a stream alone."""
    return _uniform(_keys(seed, number), stream)


def _keys(seed: int, number: np.ndarray) -> np.ndarray:
    return _hash(_hash(np.array([seed], dtype=np.uint64)) + np.asarray(number, dtype=np.uint64))


def _uniform(key: np.ndarray, stream: int | np.ndarray) -> np.ndarray:
    return (_hash(key + np.asarray(stream, dtype=np.uint64)) >> np.uint64(11)) * 2.0**-53


def _thin(total: sp.csr_matrix, number: np.ndarray, share: np.ndarray, seed: int) -> sp.csr_matrix:
    """Keep each molecule of row i with probability share[i]."""
    total.eliminate_zeros()
    total.sort_indices()
    n = total.data
    row = np.repeat(np.repeat(np.arange(len(number)), np.diff(total.indptr)), n)
    entry = np.concatenate([[0], np.cumsum(n)])
    place = np.arange(entry[-1]) - entry[total.indptr[:-1]][row]
    # The first streams are those of the pair and its share.
    kept = _uniform(_keys(seed, number)[row], place + 8) < share[row]
    if len(n):
        total.data = np.add.reduceat(kept, entry[:-1], dtype=np.int64)
    total.eliminate_zeros()
    return total


def _run(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and last (exclusive) place of the run of equal rows that each place is in."""
    starts = np.flatnonzero(np.append(True, (keys[1:] != keys[:-1]).any(axis=1)))
    stops = np.append(starts[1:], len(keys))
    of_place = np.repeat(np.arange(len(starts)), stops - starts)
    return starts[of_place], stops[of_place]


def _hash(number: np.ndarray) -> np.ndarray:
    """SplitMix64 (Steele et al., OOPSLA 2014): numbers that follow each other get unrelated ones."""
    number = (number + np.uint64(1)) * _GOLDEN
    number = (number ^ (number >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    number = (number ^ (number >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return number ^ (number >> np.uint64(31))
