"""Which nodes of a directed network the others follow: PageRank on reversed edges, and what it has to beat."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

DAMPING = 0.85


def pagerank_drivers(weight: np.ndarray | sp.spmatrix, damping: float = DAMPING) -> np.ndarray:
    """PageRank of each node with every edge reversed, so that what starts effects scores high, not where they end.

    Parameters
    ----------
    weight
        Nodes x nodes: size of the effect of a row on a column, at least 0.
    damping
        Chance to follow an edge rather than to begin anew.

    Notes
    -----
    Brin and Page (1998), by igraph.
    """
    import igraph

    found = sp.coo_matrix(weight)
    graph = igraph.Graph(n=found.shape[0], edges=np.column_stack([found.col, found.row]), directed=True)
    return np.array(graph.pagerank(weights=found.data.tolist() or None, damping=damping))


def total_effects(weight: np.ndarray) -> np.ndarray:
    """Summed size of what a push at each node does to all others, along all paths: the truth of a linear circuit."""
    n = len(weight)
    whole = np.linalg.inv(np.eye(n) - weight) - np.eye(n)
    np.fill_diagonal(whole, 0)
    return np.abs(whole).sum(axis=1)


def permuted_targets(weight: sp.csr_matrix, rng: np.random.Generator) -> sp.csr_matrix:
    """The same weights out of each node, to targets drawn at random."""
    found = sp.csr_matrix(weight).copy()
    n = found.shape[1]
    for row in range(found.shape[0]):
        where = slice(*found.indptr[row : row + 2])
        found.indices[where] = np.sort(rng.choice(n, where.stop - where.start, replace=False))
    return found
