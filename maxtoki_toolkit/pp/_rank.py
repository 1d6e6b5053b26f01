"""The rank kernel: expression over median, sorted within each cell, as one sparse matrix of ranks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import scipy.sparse as sp

MAX_GENES = np.iinfo(np.uint16).max

# Entries one thread works on at a time, and sorts at a time: small enough for the processor's caches.
_CHUNK = 1 << 20
_BLOCK = 1 << 17
_POSITION = np.uint64(0xFFFF)
_LAST = np.iinfo(np.uint64).max


def rank_csr(counts: sp.csr_matrix, medians: np.ndarray, *, n_jobs: int = 1) -> sp.csr_matrix:
    """Rank the genes of each cell by counts / median, highest first.

    Parameters
    ----------
    counts
        Non-negative expression, cells x genes, in canonical form.
    medians
        Median of each gene; NaN for a gene that is not to be ranked.
    n_jobs
        Threads. The result does not depend on it.

    Returns
    -------
    uint16 CSR, cells x genes: 1 for the highest, absent where the count is 0 or the gene unranked.
    Equal values are ranked in column order.
    """
    if counts.shape[0] == 0:
        return sp.csr_matrix(counts.shape, dtype=np.uint16)
    rows = np.split(np.arange(counts.shape[0]), np.flatnonzero(np.diff(counts.indptr[1:] // _CHUNK)) + 1)
    with ThreadPoolExecutor(n_jobs) as pool:
        parts = list(pool.map(lambda part: _rank_rows(counts, part[0], part[-1] + 1, medians), rows))
    ranks, indices, lengths = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    return sp.csr_matrix((ranks, indices, indptr), shape=counts.shape)


def _rank_rows(
    counts: sp.csr_matrix, first: int, last: int, medians: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ranks, columns and number of genes for the cells first..last-1."""
    entries = slice(counts.indptr[first], counts.indptr[last])
    data, indices = counts.data[entries], counts.indices[entries]
    values = data / medians[indices]
    keep = values > 0  # False for NaN, the genes without a median
    starts = np.concatenate([[0], np.cumsum(keep)])[counts.indptr[first : last + 1] - entries.start]
    values, indices = values[keep], indices[keep]
    lengths = np.diff(starts)
    if lengths.max() > MAX_GENES:
        raise ValueError(f"A cell expresses {lengths.max()} genes; at most {MAX_GENES} can be ranked.")

    # Cells of similar length are sorted together, so that little of a block is padding.
    by_length = np.argsort(lengths, kind="stable")
    blocks = np.split(by_length, np.flatnonzero(np.diff(np.cumsum(lengths[by_length]) // _BLOCK)) + 1)
    ranks = np.empty(len(values), dtype=np.uint16)
    for rows in blocks:
        _rank_block(values, starts[rows], lengths[rows], ranks)
    return ranks, indices, lengths


def _rank_block(values: np.ndarray, starts: np.ndarray, lengths: np.ndarray, ranks: np.ndarray) -> None:
    """Write the ranks of some cells into `ranks`, in place."""
    width = int(lengths.max())
    column = np.arange(width)
    inside = column < lengths[:, None]
    entry = starts[:, None] + column
    entry[~inside] = 0
    # One integer per entry: the value's leading 48 bits inverted (descending), then its position. Integers
    # sort several times faster than an argsort, and the position makes the order stable.
    keys = ~(values[entry].view(np.uint64) << np.uint64(1))
    keys &= ~_POSITION
    keys |= column.astype(np.uint64)
    keys[~inside] = _LAST
    keys.sort(axis=1)
    keys &= _POSITION
    entry = starts[:, None] + keys.view(np.int64)
    entry[~inside] = 0

    # 48 bits tell values apart to 7e-12; the few cells with a closer pair are sorted in full precision.
    ordered = values[entry]
    unordered = (ordered[:, 1:] > ordered[:, :-1]) & inside[:, 1:]
    for row in np.flatnonzero(unordered.any(axis=1)):
        start, length = starts[row], lengths[row]
        entry[row, :length] = start + np.argsort(-values[start : start + length], kind="stable")

    ranks[entry[inside]] = np.broadcast_to(column + 1, inside.shape)[inside]
