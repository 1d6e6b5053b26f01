"""Cells in tissue: where they are, in which image, of which donor; and what is mapped there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from .._names import closest
from ..stats.space import neighbor_graph
from ._columns import find_columns
from ._design import as_list, get_labels, known_cells

PLACES = "spatial"
_ALL = "all cells"


class Tissue(NamedTuple):
    """Cells with places, those of an image together, images and cells in the order of their names."""

    cells: AnnData
    places: np.ndarray
    """Cells x 2 or 3."""
    starts: np.ndarray
    """First cell of each image, and the number of cells."""
    images: list[str]
    unit: np.ndarray
    """Unit (donor, or else image) of each image."""
    units: list[str]
    params: dict
    """Columns and units as results record them."""

    def graph(self, n_neighbors: int, radius: float | None) -> sp.csr_matrix:
        """Neighbours of each cell, by the radius where there is one; or raise where there cannot be so many."""
        if radius == 0:
            raise ValueError("radius must be more than 0.")
        sizes = np.diff(self.starts)
        least = n_neighbors + 1 if radius is None else 2
        if (few := sizes < least).any():
            raise ValueError(
                f"{few.sum()} of {len(sizes)} images have fewer than {least} cells (first: {self.images[int(few.argmax())]!r}, "
                f"{sizes[few.argmax()]}). Drop them, or ask for fewer neighbours."
            )
        graph = neighbor_graph(self.places, self.starts, n_neighbors=n_neighbors, radius=radius)
        if not graph.nnz:
            raise ValueError(
                f"No two cells lie within {radius} of each other in .obsm['spatial']. Give a larger radius."
            )
        return graph


def read_tissue(
    adata: AnnData,
    *keys: str,
    library_key: str | None,
    donor_key: str | None,
    distance_unit: str = "units",
) -> Tissue:
    """Places, images and donors of the cells that have a value in each of these columns of `.obs`."""
    names = ("library_key", "donor_key")
    found = find_columns(adata.obs, optional=names, library_key=library_key, donor_key=donor_key)
    return read_images(adata, *keys, **found, distance_unit=distance_unit)


def read_images(
    adata: AnnData,
    *keys: str,
    library_key: str | None,
    donor_key: str | None = None,
    distance_unit: str = "units",
) -> Tissue:
    """The same of columns that are known."""
    read_places(adata)
    cells, _ = known_cells(adata, *keys, library_key, donor_key)
    image = (
        np.full(cells.n_obs, _ALL, dtype=object) if library_key is None else get_labels(cells, library_key)
    )
    names, code = np.unique(image.astype(str), return_inverse=True)
    together = np.argsort(code, kind="stable")
    cells, code = cells[together], code[together]
    starts = np.concatenate([[0], np.cumsum(np.bincount(code))])
    unit, units = np.arange(len(names)), names.tolist()
    if donor_key is not None:
        donor = get_labels(cells, donor_key)
        _require_one_donor(donor, starts, names, donor_key, library_key)
        units, unit = np.unique(donor[starts[:-1]].astype(str), return_inverse=True)
        units = units.tolist()
    params = {
        "library_key": library_key,
        "donor_key": donor_key,
        "units": "images" if donor_key is None else "donors",
        "n_units": len(units),
        "n_images": len(names),
        "n_cells": int(cells.n_obs),
        "distance_unit": distance_unit,
    }
    return Tissue(cells, read_places(cells), starts, names.tolist(), unit, units, params)


def _require_one_donor(
    donor: np.ndarray, starts: np.ndarray, names: np.ndarray, donor_key: str, library_key: str | None
) -> None:
    several = [len(np.unique(part.astype(str))) for part in np.split(donor, starts[1:-1])]
    if max(several) > 1:
        first = int(np.argmax(several))
        images = "library_key=" if library_key is None else f"library_key={library_key!r}"
        raise ValueError(
            f"Image {str(names[first])!r} has cells of {several[first]} donors (.obs[{donor_key!r}]), which cannot be each other's "
            f"neighbours. Name the column of the images ({images} does not tell them apart)."
        )


def read_places(adata: AnnData) -> np.ndarray:
    """Places of the cells, float64, in 2 or 3 dimensions; or raise with what is wrong with them."""
    if PLACES not in adata.obsm:
        known = sorted(adata.obsm)
        raise KeyError(
            f"Did not find .obsm['spatial'], the places of the cells (cells x 2 or 3). There is {known}.{closest(PLACES, known)}"
        )
    places = np.asarray(adata.obsm[PLACES])
    if places.ndim != 2 or places.shape[1] not in (2, 3) or places.dtype.kind not in "iuf":
        raise ValueError(
            f".obsm['spatial'] must be numbers, cells x 2 or 3, got {places.dtype} of shape {places.shape}."
        )
    if (bad := ~np.isfinite(places).all(axis=1)).any():
        raise ValueError(f"{bad.sum()} of {len(places)} cells have no place in .obsm['spatial']. Drop them.")
    return places.astype(float)


class Mapped(NamedTuple):
    """Something that each cell has."""

    name: str
    kind: str
    """"number", "class", "gene" or "embedding"."""
    values: np.ndarray
    """Numbers or codes, or cells x dimensions."""
    labels: list[str]
    """Of the codes."""


def columns_of(adata: AnnData, keys: str | Sequence[str]) -> list[str]:
    """Which of these names are columns of `.obs`."""
    return [key for key in as_list(keys) if key in adata.obs]


def read_mapped(cells: AnnData, keys: str | Sequence[str]) -> list[Mapped]:
    """What is known by these names: columns of `.obs`, matrices of `.obsm`, genes (symbols or names of `.var`).

    Genes are log1p of counts scaled to the median total.
    """
    keys = as_list(keys)
    if not keys:
        raise ValueError("Give keys=: columns of .obs, matrices of .obsm, or genes.")
    genes = _genes(cells, [key for key in keys if key not in cells.obs and key not in cells.obsm])
    return [
        _column(cells, key)
        if key in cells.obs
        else _matrix(cells, key)
        if key in cells.obsm
        else Mapped(key, "gene", genes[key], [])
        for key in keys
    ]


def _column(cells: AnnData, key: str) -> Mapped:
    column = cells.obs[key]
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        values = column.to_numpy(dtype=float)
        if not np.isfinite(values).all():
            raise ValueError(f".obs[{key!r}] has values that are infinite. Drop these cells.")
        return Mapped(key, "number", values, [])
    labels, codes = np.unique(column.astype(str).to_numpy(dtype=str), return_inverse=True)
    return Mapped(key, "class", codes, labels.tolist())


def _matrix(cells: AnnData, key: str) -> Mapped:
    matrix = cells.obsm[key]
    values = np.asarray(matrix.toarray() if sp.issparse(matrix) else matrix, dtype=float)
    values = values[:, None] if values.ndim == 1 else values
    if not np.isfinite(values).all():
        raise ValueError(f".obsm[{key!r}] has values that are missing or infinite. Drop these cells.")
    names = [str(name) for name in matrix.columns] if isinstance(matrix, pd.DataFrame) else []
    return Mapped(key, "embedding", values, names)


def _genes(cells: AnnData, names: list[str]) -> dict[str, np.ndarray]:
    if not names:
        return {}
    place = {name: i for i, name in reversed(list(enumerate(cells.var_names)))}
    if "symbol" in cells.var:
        for i, symbol in reversed(list(enumerate(cells.var["symbol"].astype(str)))):
            place.setdefault(symbol, i)
    if unknown := [name for name in names if name not in place]:
        known = [*cells.obs.columns, *cells.obsm, *place]
        raise KeyError(
            f"{unknown[0]!r} is no column of .obs, no matrix of .obsm and no gene.{closest(unknown[0], known)}"
        )
    size = _totals(cells)
    if size is None:
        raise ValueError("Genes are read from raw counts in .X, and .X has values that are no counts.")
    found = cells.X[:, [place[name] for name in names]]
    found = np.asarray(found.toarray() if sp.issparse(found) else found, dtype=float)
    scaled = np.log1p(found * (np.median(size[size > 0]) / np.maximum(size, 1))[:, None])
    return dict(zip(names, scaled.T, strict=True))


def _totals(cells: AnnData) -> np.ndarray | None:
    """Counts of each cell; `None` where `.X` does not hold counts."""
    X = cells.X
    if X is None or not cells.n_vars:
        return None
    data = X.data if sp.issparse(X) else np.asarray(X)
    if data.size == 0 or data.min() < 0 or (data != np.rint(data)).any():
        return None
    return np.asarray(X.sum(axis=1), dtype=float).ravel()


def baselines(tissue: Tissue) -> list[Mapped]:
    """What lies in any tissue: how close cells are, and how many counts they have (log1p)."""
    found = [Mapped("cell density", "number", cell_density(tissue), [])]
    size = _totals(tissue.cells)
    return (
        found
        if size is None or not np.ptp(size)
        else [*found, Mapped("library size", "number", np.log1p(size), [])]
    )


_NEAR = 10  # cells: fewer make the density of a place a matter of one of them


def cell_density(tissue: Tissue) -> np.ndarray:
    """Logarithm of the number of cells per area or volume, from the distance to the tenth nearest."""
    from scipy.spatial import cKDTree

    density = np.empty(len(tissue.places))
    for first, end in zip(tissue.starts[:-1], tissue.starts[1:], strict=True):
        places = tissue.places[first:end]
        k = min(_NEAR, len(places) - 1)
        far = cKDTree(places).query(places, [k + 1])[0][:, 0] if k else np.ones(1)
        least = far[far > 0].min() if (far > 0).any() else 1.0
        density[first:end] = -places.shape[1] * np.log(np.maximum(far, least))
    return density
