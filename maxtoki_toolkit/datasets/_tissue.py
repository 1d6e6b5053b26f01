"""Simulated sections of tissue: the cells of the simulated atlas at places whose order is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from scipy.spatial.distance import cdist

from ._aging_atlas import aging_atlas

SIDE = 1000.0  # µm, of a section
DEPTH = 200.0  # µm, of a block in three dimensions
NICHE = ("endothelial cell", "macrophage")
N_CENTRES = 3  # of niches in a section
RANGE, NOISE = 250.0, 0.2  # µm at which 95% of the correlation is gone; share of the variance without any
N_GRADIENT_GENES = 10
LEAST = 0.2  # share of the counts that gradient genes keep at the low end
GRADIENT_SD = 0.2


def tissue(
    n_cells: int = 2_000,
    n_donors: int = 10,
    *,
    n_sections: int = 1,
    n_dims: int = 2,
    n_genes: int = 500,
    seed: int = 0,
    null: bool = False,
) -> AnnData:
    """Simulate sections of tissue with a niche, a gradient and a field of known range.

    The cells are those of `mt.datasets.aging_atlas`; what is planted in space is invented.

    Parameters
    ----------
    n_cells
        Cells in all sections, 20 a section at least.
    n_donors
        Donors, at least 10.
    n_sections
        Sections of each donor, among which its cells are dealt out.
    n_dims
        2 for sections of 1,000 µm by 1,000 µm; 3 for blocks that are 200 µm deep.
    n_genes
        Genes, at least 500. The demo model has learned from 2,000, and knows types by fewer badly.
    seed
        Seed.
    null
        Plant nothing: all cells at random places, numbers that do not depend on them.

    Returns
    -------
    Cells as of `aging_atlas`, with places in `obsm["spatial"]` (µm), and in `obs` `image_id`, `gradient` (a
    number that rises from 0 to 1 along the first axis, with noise of standard deviation 0.2) and `field`
    (Gaussian, variance 1, of which 0.2 is noise). `uns["truth"]` has beside what the atlas has:

    `niche`
        Two cell types that lie together around three centres of each section; the others lie anywhere else.
    `gradient_genes`
        Ids of 10 abundant genes, of whose counts a share remains that rises from 0.2 to 1 along the first
        axis.
    `range`
        Distance at which 95% of the correlation of `field` is gone (exponential), in µm.

    Raises
    ------
    ValueError
        If there are too few cells for the sections, or `n_dims` is neither 2 nor 3.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.tissue(600)
    >>> adata.obsm["spatial"].shape, adata.obs["image_id"].nunique()
    ((600, 2), 10)
    >>> adata.uns["truth"]["niche"].tolist()
    ['endothelial cell', 'macrophage']
    """
    if n_dims not in (2, 3):
        raise ValueError(f"n_dims must be 2 or 3, got {n_dims}.")
    if n_cells < 20 * n_donors * n_sections:
        raise ValueError(
            f"{n_cells} cells are too few for {n_donors * n_sections} sections: n_cells must be at least "
            f"{20 * n_donors * n_sections}."
        )
    adata = aging_atlas(n_cells, n_donors, n_genes=n_genes, seed=seed)
    rng = np.random.default_rng([seed, n_donors, n_sections])
    donors = adata.obs["donor_id"].astype(str).to_numpy()
    # Dealt out in turn, from a random start: the cells of a donor stand in random order.
    section = pd.Series(donors).groupby(donors).cumcount().to_numpy() % n_sections
    image = np.char.add(np.char.add(donors.astype(str), "_s"), (section + 1).astype(str))
    size = np.array([SIDE, SIDE, DEPTH][:n_dims])
    places, field = np.empty((n_cells, n_dims)), np.empty(n_cells)
    cell_type = adata.obs["cell_type"].astype(str).to_numpy()
    for name in np.unique(image):
        rows = np.flatnonzero(image == name)
        free = rng.uniform(0, 1, (len(rows), n_dims)) * size
        order = rng.permutation(len(rows))
        if not null:
            centres = rng.uniform(0.15, 0.85, (N_CENTRES, n_dims)) * size
            nearest = np.argsort(cdist(free, centres).min(axis=1))
            inside = np.isin(cell_type[rows][order], NICHE)
            order = np.concatenate([order[inside], order[~inside]])
            free = free[nearest]
        places[rows[order]] = free
        field[rows] = _field(places[rows], rng, null=null)
    x = places[:, 0] / SIDE
    noise = rng.normal(0, GRADIENT_SD, n_cells)
    adata.obs["image_id"] = pd.Categorical(image)
    adata.obs["gradient"] = noise + (rng.permutation(x) if null else x)
    adata.obs["field"] = field
    adata.obsm["spatial"] = places
    totals = np.asarray(adata.X.sum(axis=0)).ravel()
    genes = np.sort(np.argsort(-totals, kind="stable")[:N_GRADIENT_GENES])
    if not null:
        adata.X = _thinned(adata.X, genes, LEAST + (1 - LEAST) * x, rng)
    adata.uns["truth"] |= {
        "niche": np.array([] if null else NICHE, dtype=object),
        "gradient_genes": np.array([] if null else adata.var_names[genes], dtype=object),
        "range": 0.0 if null else RANGE,
    }
    return adata


def _field(places: np.ndarray, rng: np.random.Generator, *, null: bool) -> np.ndarray:
    """A Gaussian field with exponential correlation, and noise."""
    noise = rng.normal(size=len(places))
    if null:
        return noise
    covariance = np.exp(-3 * cdist(places, places) / RANGE) + 1e-9 * np.eye(len(places))
    smooth = np.linalg.cholesky(covariance) @ rng.normal(size=len(places))
    return np.sqrt(1 - NOISE) * smooth + np.sqrt(NOISE) * noise


def _thinned(
    counts: sparse.csr_matrix, genes: np.ndarray, share: np.ndarray, rng: np.random.Generator
) -> sparse.csr_matrix:
    """Counts of which, for these genes, a share of each cell's is kept."""
    counts = counts.tocoo()
    hit = np.isin(counts.col, genes)
    data = counts.data.copy()
    data[hit] = rng.binomial(data[hit].astype(np.int64), share[counts.row[hit]])
    kept = data > 0
    return sparse.csr_matrix(
        (data[kept], (counts.row[kept], counts.col[kept])), shape=counts.shape, dtype=counts.data.dtype
    )
