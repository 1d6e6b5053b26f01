"""What tells a doublet from a cell: its neighbours among cells and simulated doublets, and its size."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

N_GENES = 2000
N_COMPONENTS = 30
NEIGHBORS = (5, 15, 50)
_PENALTY = 20.0


def size_features(counts: sp.csr_matrix) -> np.ndarray:
    """Logarithms of the counts and of the genes of a cell; cells x 2."""
    total = np.asarray(counts.sum(axis=1)).ravel()
    return np.log(np.column_stack([np.maximum(total, 1), np.maximum(counts.getnnz(axis=1), 1)]))


def features(
    spaces: dict[str, np.ndarray | sp.csr_matrix],
    size: np.ndarray | None,
    reference: np.ndarray,
    items: np.ndarray,
    is_cell: np.ndarray,
    labels: np.ndarray,
    *,
    seed: int,
) -> list[np.ndarray]:
    """Describe some items by a reference that none of them is part of.

    Parameters
    ----------
    spaces
        Where neighbours are looked for: an array that is used as it is, or a sparse one that is reduced to
        the principal directions of the reference cells; items x features.
    size
        `size_features`, or `None`.
    reference, items
        Rows of the reference, and of what is described.
    is_cell
        Which rows are cells; the spaces are fitted to those of the reference.
    labels
        1 for doublets, 0 for cells; one row for each labelling, e.g. the true one and one that is permuted.
    seed
        Seed of the decomposition.

    Returns
    -------
    One array for each labelling, items x features: for each space the share of doublets among the nearest 5,
    15 and 50, the same weighted by nearness, and a linear score; with `size`, the size, and by how much it is
    above that of the nearest cells.
    """
    found = [[] for _ in labels]
    for X in spaces.values():
        coordinates = _reduce(X, reference[is_cell[reference]], seed)
        near, distance = _neighbors(coordinates[reference], coordinates[items])
        linear = _linear_scores(coordinates[reference], labels[:, reference], coordinates[items])
        for columns, label, score in zip(found, labels, linear, strict=True):
            label_near = label[reference][near]
            columns += [label_near[:, :k].mean(axis=1) for k in NEIGHBORS if k <= near.shape[1]]
            weight = 1 / (distance + distance.mean(axis=1, keepdims=True) * 0.1 + 1e-12)
            columns.append((label_near * weight).sum(axis=1) / weight.sum(axis=1))
            columns.append(score)
            if size is not None:
                # Of the neighbours only the cells: a doublet is larger than the cells that it looks like.
                cells = 1 - label_near
                with np.errstate(invalid="ignore"):
                    usual = (cells[..., None] * size[reference][near]).sum(axis=1) / cells.sum(axis=1)[
                        :, None
                    ]
                columns += list((size[items] - usual).T)
    if size is not None:
        for columns in found:
            columns += list(size[items].T)
    return [np.column_stack(columns).astype(np.float32) for columns in found]


def _reduce(X: np.ndarray | sp.csr_matrix, fitted: np.ndarray, seed: int) -> np.ndarray:
    """Coordinates in which distances are meant, fitted to the given rows."""
    from sklearn.decomposition import TruncatedSVD

    if not sp.issparse(X):
        scale = X[fitted].std(axis=0)
        return (X - X[fitted].mean(axis=0)) / np.where(scale > 0, scale, 1)
    own = X[fitted]
    mean = np.asarray(own.mean(axis=0)).ravel()
    variance = np.asarray(own.multiply(own).mean(axis=0)).ravel() - mean**2
    genes = np.sort(np.argsort(-variance, kind="stable")[:N_GENES])
    n = min(N_COMPONENTS, len(fitted) - 1, np.count_nonzero(variance > 0) - 1)
    svd = TruncatedSVD(max(n, 1), n_iter=4, random_state=seed).fit(own[:, genes])
    return np.ascontiguousarray(svd.transform(X[:, genes]), dtype=np.float32)


def _neighbors(reference: np.ndarray, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nearest rows of the reference and their distances, nearest first."""
    from sklearn.neighbors import NearestNeighbors

    n = min(NEIGHBORS[-1], len(reference))
    distance, near = NearestNeighbors(n_neighbors=n).fit(reference).kneighbors(items)
    return near, distance


def _linear_scores(X: np.ndarray, labels: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Ridge regression of each labelling on standardised coordinates; labellings x items."""
    from sklearn.linear_model import Ridge

    mean, scale = X.mean(axis=0), X.std(axis=0)
    scale = np.where(scale > 0, scale, 1)
    fitted = Ridge(_PENALTY, solver="cholesky").fit((X - mean) / scale, labels.T.astype(X.dtype))
    return fitted.predict((items - mean) / scale).T
