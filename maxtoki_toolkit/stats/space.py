"""Cells at places: neighbours, pairs at distances, autocorrelation, and permutations within images.

Cells of an image stand together: `starts` has the first cell of each image and, at the end, their number.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

_HALF = 0.5  # of an edge
_DRAWN = 200_000  # distances looked at in an image
_CHUNK = 256  # columns at a time


def neighbor_graph(
    places: np.ndarray, starts: np.ndarray, *, n_neighbors: int, radius: float | None
) -> sp.csr_matrix:
    """Neighbours of each cell (row) among those of its image: the nearest, or all within a radius.

    A cell is no neighbour of itself, also where another lies in the same place.
    """
    from sklearn.neighbors import NearestNeighbors

    blocks = []
    for first, end in zip(starts[:-1], starts[1:], strict=True):
        found = NearestNeighbors(n_neighbors=n_neighbors, radius=radius or 1.0).fit(places[first:end])
        blocks.append(found.radius_neighbors_graph() if radius is not None else found.kneighbors_graph())
    return sp.block_diag(blocks, format="csr")


def image_of(starts: np.ndarray) -> np.ndarray:
    """Image of each cell."""
    return np.repeat(np.arange(len(starts) - 1), np.diff(starts))


def shuffled(starts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An order of the cells in which each image has its own, in random places."""
    return np.concatenate(
        [first + rng.permutation(end - first) for first, end in zip(starts[:-1], starts[1:], strict=True)]
    )


class Edges(NamedTuple):
    """Edges of a graph within images."""

    source: np.ndarray
    target: np.ndarray
    image: np.ndarray
    n_images: int

    @classmethod
    def of(cls, graph: sp.csr_matrix, starts: np.ndarray) -> Edges:
        """All edges of a graph."""
        source = np.repeat(np.arange(graph.shape[0]), np.diff(graph.indptr))
        return cls(source, graph.indices, image_of(starts)[source], len(starts) - 1)

    def count(self, labels: np.ndarray, n_labels: int) -> np.ndarray:
        """Edges from a label to a label: images x labels x labels."""
        cell = (self.image * n_labels + labels[self.source]) * n_labels + labels[self.target]
        size = self.n_images * n_labels**2
        return np.bincount(cell, minlength=size).reshape(self.n_images, n_labels, n_labels)


def expected_edges(edges: Edges, labels: np.ndarray, n_labels: int, starts: np.ndarray) -> np.ndarray:
    """Mean of the counts over all orders of the labels within each image."""
    n_images = len(starts) - 1
    cells = np.bincount(image_of(starts) * n_labels + labels, minlength=n_images * n_labels)
    cells = cells.reshape(n_images, n_labels).astype(float)
    size = np.diff(starts).astype(float)
    pairs = cells[:, :, None] * cells[:, None, :]
    pairs[:, np.arange(n_labels), np.arange(n_labels)] -= cells
    n_edges = np.bincount(edges.image, minlength=n_images)
    return pairs * (n_edges / np.maximum(size * (size - 1), 1))[:, None, None]


def log2_ratio(observed: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Base-2 logarithm of observed over expected edges, with half an edge added to both."""
    return np.log2((observed + _HALF) / (expected + _HALF))


def unit_means(values: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """Mean over the images of each unit (donor) in which a value is known: units x anything; NaN where none is."""
    n_units = unit.max() + 1
    known = np.isfinite(values)
    member = sp.csr_matrix((np.ones(len(unit)), (unit, np.arange(len(unit)))), (n_units, len(unit)))
    flat = np.where(known, values, 0).reshape(len(values), -1)
    n = member @ known.reshape(len(values), -1).astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        return ((member @ flat) / n).reshape(n_units, *values.shape[1:])


def mean_known(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is known; NaN where nothing is."""
    known = np.isfinite(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(known, values, 0).sum(axis=0) / known.sum(axis=0)


class Permuted(NamedTuple):
    """What permutations say of values."""

    p_value: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def permutation_test(found: np.ndarray, null: np.ndarray) -> Permuted:
    """Two-sided p values, and mean and middle 95% of the permutations (first axis of `null`).

    The share of all orders, the observed among them, that lie at least as far from the mean of all of them:
    exact where the orders are exchangeable.
    """
    everything = np.concatenate([found[None], null])
    away = np.abs(everything - everything.mean(axis=0))
    p_value = (away >= away[0] * (1 - 1e-9)).mean(axis=0)
    low, high = np.quantile(null, [0.025, 0.975], axis=0)
    return Permuted(np.where(np.isfinite(found), p_value, np.nan), null.mean(axis=0), low, high)


# Autocorrelation.


def row_means(graph: sp.csr_matrix) -> sp.csr_matrix:
    """The graph with the weights of each row that has any divided by their sum."""
    degree = np.maximum(np.diff(graph.indptr), 1)
    return (sp.diags(1 / degree) @ graph).tocsr()


def centred(values: np.ndarray, starts: np.ndarray, covariates: np.ndarray | None = None) -> np.ndarray:
    """Values less their mean in each image or, with covariates, less what a regression on these predicts there."""
    left = np.empty(values.shape)
    for first, end in zip(starts[:-1], starts[1:], strict=True):
        part = slice(first, end)
        X = np.ones((end - first, 1))
        if covariates is not None:
            X = np.column_stack([X, covariates[part] - covariates[part].mean(axis=0)])
        left[part] = values[part] - X @ (np.linalg.pinv(X) @ values[part])
    # What is constant in an image is so but for rounding.
    scale = np.maximum.reduceat(np.abs(values), starts[:-1])[image_of(starts)]
    return np.where(np.abs(left) <= 1e-9 * scale, 0, left)


def morans_i(
    values: np.ndarray, weights: sp.csr_matrix, starts: np.ndarray, order: np.ndarray | None = None
) -> np.ndarray:
    """Moran's I of centred values: images x columns; NaN where a column is constant. `order` puts the cells elsewhere."""
    first = starts[:-1]
    sizes = np.diff(starts)[:, None]
    total = np.add.reduceat(np.asarray(weights.sum(axis=1)).ravel(), first)[:, None]
    found = np.empty((len(first), values.shape[1]))
    for begin in range(0, values.shape[1], _CHUNK):
        part = values[:, begin : begin + _CHUNK]
        part = part if order is None else part[order]
        together = np.add.reduceat(part * (weights @ part), first)
        with np.errstate(divide="ignore", invalid="ignore"):
            found[:, begin : begin + _CHUNK] = sizes / total * together / np.add.reduceat(part**2, first)
    return found


# Variograms.


class Pairs(NamedTuple):
    """Pairs of cells of one image, with their bin of distance."""

    left: np.ndarray
    right: np.ndarray
    image: np.ndarray
    bin: np.ndarray
    distance: np.ndarray


def draw_pairs(
    places: np.ndarray, starts: np.ndarray, edges: np.ndarray, n_pairs: int, rng: np.random.Generator
) -> Pairs:
    """Draw up to so many pairs for each image and bin of distance, each pair once."""
    parts = []
    for image, (first, end) in enumerate(zip(starts[:-1], starts[1:], strict=True)):
        n = end - first
        anchors = np.sort(rng.permutation(n)[: max(_DRAWN // n, 1)])
        between = np.linalg.norm(places[first + anchors, None] - places[None, first:end], axis=2)
        row, right = np.nonzero(between <= edges[-1])
        left = anchors[row]
        # A pair of two anchors stands here twice.
        once = (left < right) | ~np.isin(right, anchors)
        row, left, right = row[once], left[once], right[once]
        distance = between[row, right]
        place = np.clip(np.searchsorted(edges, distance, side="right") - 1, 0, len(edges) - 2)
        by_bin = np.lexsort((rng.random(len(place)), place))
        counts = np.bincount(place, minlength=len(edges) - 1)
        rank = np.arange(len(place)) - np.repeat(np.cumsum(counts) - counts, counts)
        kept = by_bin[rank < n_pairs]
        parts.append(
            (first + left[kept], first + right[kept], np.full(len(kept), image), place[kept], distance[kept])
        )
    return Pairs(*map(np.concatenate, zip(*parts, strict=True)))


def pair_means(differences: np.ndarray, pairs: Pairs, n_images: int, n_bins: int) -> np.ndarray:
    """Mean over the pairs of each image and bin; NaN where there are none."""
    place = pairs.image * n_bins + pairs.bin
    n = np.bincount(place, minlength=n_images * n_bins)
    with np.errstate(divide="ignore", invalid="ignore"):
        means = np.bincount(place, weights=differences, minlength=n_images * n_bins) / n
    return means.reshape(n_images, n_bins)


_REACHES = 300  # on a logarithmic scale: steps of 2%, far below what intervals tell apart


def exponential(distance: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """Rise of the exponential model from 0 to 1; at `reach` 95% of it is done."""
    return 1 - np.exp(-3 * distance / reach)


def fit_levels(distance: np.ndarray, values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Fit the exponential model to curves by weighted least squares.

    Parameters
    ----------
    distance
        Of the points.
    values
        Curves x points, NaN where not known.
    weight
        Of the points.

    Returns
    -------
    Nugget, sill and range of each curve (columns). The range is infinite where it is more than the largest
    distance, and all are NaN where fewer than four points are known.

    Notes
    -----
    For a given reach the model is linear in nugget and rise, neither of them negative, so that all curves are
    fitted at once for each of 300 reaches, and the best is taken.
    """
    known = np.isfinite(values) & np.isfinite(distance) & (weight > 0)
    x = np.where(np.isfinite(distance), distance, 0)
    w, y = np.where(known, weight, 0.0), np.where(known, values, 0.0)
    w = w / np.maximum(w.sum(axis=1, keepdims=True), 1e-300)
    farthest = x[weight > 0].max()
    reaches = np.geomspace(x[weight > 0].min() / 2, 20 * farthest, _REACHES)
    f = exponential(x, reaches[:, None])  # reaches x points
    Ef, Eff, Ey, Eyy = w @ f.T, w @ (f**2).T, (w * y).sum(axis=1)[:, None], (w * y**2).sum(axis=1)[:, None]
    Efy = (w * y) @ f.T
    with np.errstate(divide="ignore", invalid="ignore"):
        free = (Efy - Ef * Ey) / (Eff - Ef**2)
        alone = Efy / Eff
    rise = np.stack([free, np.nan_to_num(alone), np.zeros_like(free)])
    nugget = np.stack([Ey - free * Ef, np.zeros_like(free), np.broadcast_to(Ey, free.shape)])
    error = Eyy + nugget**2 + rise**2 * Eff + 2 * nugget * rise * Ef - 2 * nugget * Ey - 2 * rise * Efy
    error = np.where((rise >= 0) & (nugget >= 0), error, np.inf).transpose(1, 0, 2).reshape(len(y), -1)
    best = np.argmin(error, axis=1)
    way, place = np.divmod(best, _REACHES)
    curve = np.arange(len(y))
    nugget, rise, reach = nugget[way, curve, place], rise[way, curve, place], reaches[place]
    found = np.column_stack([nugget, nugget + rise, np.where(reach <= farthest, reach, np.inf)])
    return np.where(known.sum(axis=1)[:, None] >= 4, found, np.nan)
