"""Which sequences begin alike: each is computed from where it leaves another one."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .sequences import Sequences

# Below this, computing tokens again is cheaper than fetching what is known of them.
MIN_SHARED = 32


class Forest(NamedTuple):
    """From which sequence each one branches off."""

    parent: np.ndarray
    """int64: row of the sequence whose keys and values are used; -1 for none."""
    shared: np.ndarray
    """int64: leading tokens that are taken from it."""

    @property
    def n_kept(self) -> np.ndarray:
        """int64: leading tokens of each sequence that others branch off from."""
        kept = np.zeros_like(self.shared)
        has = self.parent >= 0
        np.maximum.at(kept, self.parent[has], self.shared[has])
        return kept

    @property
    def n_children(self) -> np.ndarray:
        """int64: sequences that branch off from each."""
        return np.bincount(self.parent[self.parent >= 0], minlength=len(self.parent))

    @property
    def level(self) -> np.ndarray:
        """int64: branches between each sequence and one that stands alone."""
        level, up = np.zeros_like(self.parent), self.parent
        while (has := up >= 0).any():
            level += has
            up = np.where(has, self.parent[up], -1)
        return level


def prefix_forest(sequences: Sequences, *, min_shared: int = MIN_SHARED) -> Forest:
    """Find how sequences share their first tokens.

    In order of their tokens, neighbours share most. Sets of sequences are joined from the longest shared
    start to the shortest, the smaller set branching off from the larger one, so that no sequence is more than
    log2(n) branches away from one that stands alone. The last shared token is computed again in every branch:
    what it predicts differs.

    Parameters
    ----------
    sequences
        Tokens.
    min_shared
        Shorter shared starts are computed again.
    """
    n = len(sequences)
    parent, shared = np.full(n, -1, dtype=np.int64), np.zeros(n, dtype=np.int64)
    order, common = _neighbours(sequences)
    edges = np.flatnonzero(common - 1 >= max(min_shared, 1))
    edges = edges[np.argsort(-common[edges], kind="stable")]
    trunk, size = np.arange(n), np.ones(n, dtype=np.int64)

    def find(row: int) -> int:
        while trunk[row] != row:
            trunk[row] = trunk[trunk[row]]
            row = trunk[row]
        return row

    for edge in edges:
        large, small = find(order[edge]), find(order[edge + 1])
        if size[large] < size[small]:
            large, small = small, large
        trunk[small] = parent[small] = large
        size[large] += size[small]
        shared[small] = common[edge] - 1

    # A branch that leaves its parent soon after that left its own is hung on the latter: wide is faster than
    # deep. Larger sets first, so that every parent is in place before its branches.
    for row in np.argsort(-size, kind="stable"):
        while (up := parent[row]) >= 0 and shared[row] - shared[up] < min_shared and parent[up] >= 0:
            parent[row], shared[row] = parent[up], min(shared[row], shared[up])
    return Forest(parent, shared)


def _neighbours(sequences: Sequences) -> tuple[np.ndarray, np.ndarray]:
    """Rows in the order of their tokens, and how many first tokens each shares with the next."""
    # Big-endian numbers are in order where their bytes are.
    data, at = sequences.tokens.astype(">i4").tobytes(), 4 * sequences.indptr
    keys = [data[a:b] for a, b in zip(at[:-1], at[1:], strict=True)]
    order = np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)
    common = np.zeros(max(len(order) - 1, 0), dtype=np.int64)
    for i, (a, b) in enumerate(zip(order[:-1], order[1:], strict=True)):
        n = min(len(keys[a]), len(keys[b])) // 4
        one = sequences.tokens[sequences.indptr[a] : sequences.indptr[a] + n]
        other = sequences.tokens[sequences.indptr[b] : sequences.indptr[b] + n]
        differs = one != other
        common[i] = differs.argmax() if differs.any() else n
    return order, common
