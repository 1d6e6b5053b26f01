"""Families of things that go together, whether they are found again, and whether two sets of them agree."""

from __future__ import annotations

import random

import numpy as np
from scipy.special import xlogy

METHODS = ("leiden", "hierarchical")
MIN_SIZE = 3  # two are a pair
AGREEMENT = (
    "n_features",
    "rand",
    "rand_null",
    "rand_null_high",
    "nmi",
    "nmi_null",
    "nmi_null_high",
    "p_value",
)


class Finder:
    """Finds families among features.

    Parameters
    ----------
    method
        "leiden" or "hierarchical" (average linkage of 1 - weight).
    resolution
        Of Leiden's modularity.
    cut
        Mean weight between the members of a family that the hierarchy is cut at.
    seed
        Of Leiden.
    """

    def __init__(self, method: str, resolution: float, cut: float, seed: int) -> None:
        self.method, self.resolution, self.cut, self.seed = method, resolution, cut, seed
        self.n_parts = 0

    def fit(self, phi: np.ndarray, is_edge: np.ndarray) -> np.ndarray:
        """Families by the edges; resamples are then cut into as many."""
        weight = np.where(is_edge, phi, 0)
        if self.method == "leiden":
            return named(self._leiden(weight))
        parts = self._cut(weight, "distance", 1 - self.cut)
        self.n_parts = len(np.unique(parts))
        return named(parts)

    def again(self, phi: np.ndarray, n_edges: int) -> np.ndarray:
        """Families by as many edges, the strongest."""
        weight = strongest(phi, n_edges)
        return named(
            self._leiden(weight) if self.method == "leiden" else self._cut(weight, "maxclust", self.n_parts)
        )

    def _cut(self, weight: np.ndarray, criterion: str, at: float) -> np.ndarray:
        from scipy.cluster.hierarchy import fcluster

        if len(weight) < 2:
            return np.zeros(len(weight), int)
        return fcluster(average_linkage(weight), at, criterion)

    def _leiden(self, weight: np.ndarray) -> np.ndarray:
        import igraph

        first, second = np.nonzero(np.triu(weight, 1))
        graph = igraph.Graph(n=len(weight), edges=np.column_stack([first, second]).tolist())
        igraph.set_random_number_generator(random.Random(self.seed))
        try:
            found = graph.community_leiden(
                objective_function="modularity",
                weights=weight[first, second].tolist(),
                resolution=self.resolution,
                n_iterations=-1,
            )
        finally:
            igraph.set_random_number_generator(random)
        return np.array(found.membership, dtype=int)


def average_linkage(weight: np.ndarray, *, ordered: bool = False) -> np.ndarray:
    """Average linkage of 1 - weight, rows as scipy has them; `ordered` so that neighbours are alike."""
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    distance = np.clip(1 - (weight + weight.T) / 2, 0, None)
    np.fill_diagonal(distance, 0)
    return linkage(squareform(distance, checks=False), "average", optimal_ordering=ordered)


def strongest(phi: np.ndarray, n_edges: int) -> np.ndarray:
    """The highest values above the diagonal, where they are above 0, on both sides of it; 0 elsewhere."""
    upper = np.triu_indices(len(phi), 1)
    values = phi[upper]
    weight = np.zeros(phi.shape)
    if 0 < n_edges < len(values):
        kept = np.argpartition(-values, n_edges - 1)[:n_edges]
    else:
        kept = np.arange(len(values)) if n_edges else np.zeros(0, int)
    weight[upper[0][kept], upper[1][kept]] = np.maximum(values[kept], 0)
    return weight + weight.T


def named(parts: np.ndarray) -> np.ndarray:
    """Families by number, the largest first; -1 for parts of fewer than three.

    Examples
    --------
    >>> named(np.array([5, 5, 5, 2, 7, 7, 7, 7])).tolist()
    [1, 1, 1, -1, 0, 0, 0, 0]
    """
    names, first, inverse, size = np.unique(parts, return_index=True, return_inverse=True, return_counts=True)
    order = np.lexsort((first, -size))
    place = np.full(len(names), -1)
    n = int((size >= MIN_SIZE).sum())
    place[order[:n]] = np.arange(n)
    return place[inverse]


def member_of(families: np.ndarray) -> np.ndarray:
    """Features x families, 0 or 1."""
    return (families[:, None] == np.arange(families.max(initial=-1) + 1)).astype(float)


def overlap(families: np.ndarray, others: list[np.ndarray]) -> np.ndarray:
    """Best Jaccard overlap of each family with those of each other set, families x sets; 0 where that has none.

    Examples
    --------
    >>> overlap(np.array([0, 0, 0, 1, 1, 1, 1]), [np.array([0, 0, 0, -1, 1, 1, 1])])
    array([[1.  ],
           [0.75]])
    """
    member = member_of(families)
    best = np.zeros((member.shape[1], len(others)))
    for i, other in enumerate(others):
        found = member_of(other)
        if found.shape[1]:
            both = member.T @ found
            either = member.sum(axis=0)[:, None] + found.sum(axis=0) - both
            best[:, i] = (both / either).max(axis=1)
    return best


def stability(families: np.ndarray, others: list[np.ndarray]) -> np.ndarray:
    """How often, in other sets, a feature is in one family with the others of its own; NaN outside of families."""
    member = member_of(families)
    size = member.sum(axis=0)
    total = np.zeros(len(families))
    for other in others:
        found = member_of(other)
        # Of each feature, members of its family that are with it, itself among them.
        with_it = (found * (member @ (member.T @ found))).sum(axis=1)
        total += with_it - found.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = total / (size[np.maximum(families, 0)] - 1 if len(size) else np.nan) / len(others)
    return np.where(families >= 0, share, np.nan)


def agreement(first: np.ndarray, second: np.ndarray, n_permutations: int, seed: int) -> dict[str, float]:
    """How far two sets of families agree on the features that are in families of both, beside permuted ones.

    Returns
    -------
    `n_features`; `rand`, adjusted for chance, and `nmi`, normalised mutual information; the mean and the
    95th percentile over permutations of the features; and `p_value`, of the adjusted Rand index, one-sided.
    """
    both = (first >= 0) & (second >= 0)
    a, b = (np.unique(part[both], return_inverse=True)[1] for part in (first, second))
    if min(a.max(initial=0), b.max(initial=0)) < 1:
        return {**dict.fromkeys(AGREEMENT, np.nan), "n_features": int(both.sum())}
    rng = np.random.default_rng(seed)
    drawn = rng.permuted(np.broadcast_to(b, (n_permutations, len(b))), axis=1)
    rand, nmi = _scores(a, np.vstack([b, drawn]))
    found = {"n_features": int(both.sum())}
    for name, (value, *null) in (("rand", rand), ("nmi", nmi)):
        found |= {name: value, f"{name}_null": np.mean(null), f"{name}_null_high": np.quantile(null, 0.95)}
    as_high = (rand[1:] >= rand[0] - 1e-12).sum()
    return {**found, "p_value": float((1 + as_high) / (1 + n_permutations))}


def _scores(first: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Adjusted Rand index and normalised mutual information of a set of families with each of others."""
    n, rows, columns = len(first), first.max() + 1, others.max() + 1
    cell = (np.arange(len(others))[:, None] * rows + first) * columns + others
    table = np.bincount(cell.ravel(), minlength=len(others) * rows * columns)
    table = table.reshape(len(others), rows, columns).astype(float)
    parts = table.sum(axis=2), table.sum(axis=1)
    pairs, *own = ((t * (t - 1)).reshape(len(others), -1).sum(axis=1) / 2 for t in (table, *parts))
    expected = own[0] * own[1] / (n * (n - 1) / 2)
    rand = (pairs - expected) / ((own[0] + own[1]) / 2 - expected)
    joint, *entropy = (xlogy(t / n, t / n).reshape(len(others), -1).sum(axis=1) for t in (table, *parts))
    return rand, 2 * (joint - entropy[0] - entropy[1]) / -(entropy[0] + entropy[1])
