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


def replaced_rows(weight: sp.csr_matrix, other: sp.csr_matrix, damping: float = DAMPING) -> np.ndarray:
    """Score of each source with its own edges replaced by other ones, one source at a time.

    Parameters
    ----------
    weight, other
        Sources x targets, at least 0.
    damping
        As in `pagerank_drivers`.

    Notes
    -----
    Of two layers PageRank has a closed form: all targets, which nothing leads to, have the same score b, and
    a source has b (1 + damping * sum over targets of its share of their edges).
    """
    own, new = weight.toarray(), other.toarray()
    rest = np.maximum(own.sum(axis=0) - own, 0)
    reached = ((own > 0).sum(axis=0) - (own > 0) + (new > 0) > 0).sum(axis=1)
    share = np.divide(new, rest + new, out=np.zeros_like(new), where=new > 0)
    return (1 + damping * share.sum(axis=1)) / (sum(own.shape) + damping * reached)


def square(weight: sp.spmatrix) -> sp.csr_matrix:
    """A network of sources and targets as one of nodes, the sources first."""
    n, m = weight.shape
    found = sp.coo_matrix(weight)
    return sp.csr_matrix((found.data, (found.row, found.col + n)), shape=(n + m, n + m))
