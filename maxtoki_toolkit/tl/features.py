"""Which features of a sparse autoencoder are active in which cells and at which genes."""

from __future__ import annotations

from zlib import crc32

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from .. import _keys
from .._features import symbols
from .._names import require_choice
from .._warn import warn
from ..models.features import POOLS, FeatureSums, pool_features
from ..models.model import MaxTokiModel
from ..models.sae import SparseAutoencoder, require_sae
from ..models.sae_controls import moments, principal_directions, random_directions, some
from ..pp._columns import find_donors
from ..pp._design import is_missing, known_cells
from ..results.store import require_free, write_result
from ._cells import count_truncated, get_sequences

MIN_READ = 5  # places at which a gene has to be read before it can be a top gene of a feature
DENSE = 0.1  # share of the places above which a feature is active nearly everywhere
_CELLS = 1000  # whose states give the principal components


def features(
    adata: AnnData,
    model: MaxTokiModel,
    sae: SparseAutoencoder,
    *,
    pool: str = "max",
    n_genes: int = 10,
    controls: bool = True,
    donor_key: str | None = None,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Read the features of each cell, and the genes at which each feature is active.

    Parameters
    ----------
    adata
        Rank-encoded cells.
    model
        Model.
    sae
        Autoencoder of this model (`mt.train.sae`, `mt.load_sae`).
    pool
        Of the genes of a cell: "max", the "mean" of the five largest activations, or the "count" of genes at
        which the feature is active.
    n_genes
        Top genes of a feature.
    controls
        Also read principal components and random directions, as many of which count at a gene:
        `mt.tl.feature_summary` compares with them.
    donor_key
        Column of `.obs` with the donor, guessed from its name; may be missing. The genes of each feature are
        also found in a random half of the donors (of the cells, where donors are not known), so that
        `mt.tl.label_features` can ask the other half.
    rng
        Seed of the random directions and of the halves.
    key_added
        Key in `.obsm` and `.uns`, by default "features".

    Returns
    -------
    `None`. Writes

    `.obsm["features"]`
        Pooled activations, sparse float32, cells x features, in the unit of the states; and the same of the
        controls in `.obsm["features_pca"]` and `.obsm["features_random"]`.
    `.varm["features"]`, `.varm["features_half"]`
        Mean activation over all places of each gene, sparse float32, genes x features; the same of one half
        of the donors. Genes read at fewer than 5 places have none.
    `.uns["features"]`
        The tables

        `features`
            A row a feature:

            `feature`
                Its number.
            `density`, `n_cells`
                Share of the genes read at which it is active, and in how many cells.
            `mean_active`, `max_active`
                Mean of its activations where it is active; largest pooled one.
            `mean_rank`
                Mean rank of the genes at which it is active.
            `n_genes`
                Genes at which it is active at least once.
            `top_genes`
                Symbols of the top genes, with commas.
        `genes`
            A row a feature and top gene (`feature`, `gene`, `symbol`): `mean`, the mean activation over all
            places of the gene; `share` of its places at which the feature is active; `lift`, the mean over
            that of all genes; `n_read`, its places. Genes read at fewer than 5 places are left out.

    Raises
    ------
    KeyError
        If the cells are not rank-encoded.
    ValueError
        If the autoencoder is one of another model, or the cells were encoded for another vocabulary.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.load("heart_nuclei")[:50].copy()
    >>> model = mt.load_model("demo")
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.tl.features(adata, model, mt.load_sae("demo"), n_genes=3)
    >>> int(mt.get.table(adata, "features")["top_genes"].str.count(",").max())
    2
    """
    require_choice("pool", pool, POOLS)
    key = key_added or _keys.FEATURES
    require_free(adata, key)
    cells, rows = known_cells(adata)
    sequences = get_sequences(cells, model)
    require_sae(sae, model)
    coders = {"": sae}
    if controls:
        found = moments(model, some(sequences, _CELLS, rng), sae.site)
        coders |= {"_pca": principal_directions(sae, found)}
        coders |= {"_random": random_directions(sae, found.mean, rng)}
    donor_key = find_donors(adata.obs, donor_key)
    first = in_first_half(cells, donor_key, rng)
    sums = pool_features(model, list(coders.values()), sequences, pool=pool, first=first)
    for name, part in zip(coders, sums, strict=True):
        adata.obsm[key + name] = part.cells[np.argsort(rows)]
    for name, total, n_read in (
        ("", sums[0].genes, sums[0].n_read),
        ("_half", sums[0].first, sums[0].n_first),
    ):
        adata.varm[key + name] = _by_gene(adata, sp_divide(total, n_read, n_read >= MIN_READ))
    tables = feature_tables(sums[0], adata, n_genes)
    params = {
        "pool": pool,
        "controls": list(coders)[1:],
        "n_cells": adata.n_obs,
        "n_truncated": count_truncated(adata, model),
        "n_read": int(sums[0].n_read.sum()),
        "n_dead": int((tables["features"]["density"] == 0).sum()),
        "n_dense": int((tables["features"]["density"] > DENSE).sum()),
        "donor_key": donor_key or "",
        "seed": rng,
    }
    write_result(
        adata, _keys.FEATURES, {**model.params, **sae.params, **params}, key_added=key_added, **tables
    )


def in_first_half(adata: AnnData, donor_key: str | None, seed: int) -> np.ndarray:
    """Which cells are of a random half of the donors; of a random half of the cells, where donors are not known.

    Depends on names and the seed alone. Cells without a donor are in neither half.
    """
    if donor_key is None or adata.obs[donor_key].nunique() < 2:
        return np.array([crc32(f"{seed} {name}".encode()) % 2 == 0 for name in adata.obs_names], dtype=bool)
    missing = is_missing(adata.obs[donor_key])
    if missing.any():
        warn(
            f"{missing.sum()} of {adata.n_obs} cells have no value in .obs[{donor_key!r}] and are left out "
            "of the halves."
        )
    donor = adata.obs[donor_key].astype(str).to_numpy(dtype=object)
    names = np.unique(donor[~missing].astype(str))
    order = np.random.default_rng([seed, 7]).permutation(len(names))
    return np.isin(donor.astype(str), names[order[::2]]) & ~missing


def _by_gene(adata: AnnData, of_token: sp.csr_matrix) -> sp.csr_matrix:
    """Rows of tokens as rows of `.var`: of a gene with several columns, the first."""
    token = adata.var[_keys.TOKEN_ID].to_numpy()
    row = np.flatnonzero((token >= 0) & ~pd.Series(token).duplicated().to_numpy())
    pick = sp.csr_matrix((np.ones(len(row)), (row, token[row])), shape=(adata.n_vars, of_token.shape[0]))
    return (pick @ of_token).tocsr().astype(np.float32)


def feature_tables(sums: FeatureSums, adata: AnnData, n_genes: int) -> dict[str, pd.DataFrame]:
    """What is known of each feature, and its top genes."""
    n_read, width = sums.n_read, sums.cells.shape[1]
    n_active = np.asarray(sums.active.sum(axis=0)).ravel()
    total = np.asarray(sums.genes.sum(axis=0)).ravel()
    genes = _top_genes(sums, adata, total / max(n_read.sum(), 1), n_genes)
    with np.errstate(invalid="ignore"):
        mean_active = np.where(n_active > 0, total / np.maximum(n_active, 1), np.nan)
    largest = sums.cells.max(axis=0).toarray().ravel() if sums.cells.shape[0] else np.zeros(width)
    table = pd.DataFrame(
        {
            "feature": np.arange(width),
            "density": n_active / max(n_read.sum(), 1),
            "n_cells": sums.cells.getnnz(axis=0),
            "mean_active": mean_active,
            "max_active": largest,
            "mean_rank": sums.place,
            "n_genes": sums.active.getnnz(axis=0),
        }
    )
    names = genes.groupby("feature")["symbol"].agg(", ".join)
    table["top_genes"] = names.reindex(table["feature"]).fillna("").to_numpy()
    return {"features": table, "genes": genes}


def _top_genes(sums: FeatureSums, adata: AnnData, overall: np.ndarray, n_genes: int) -> pd.DataFrame:
    """Genes with the largest mean activation, feature by feature."""
    often = sums.n_read >= MIN_READ
    each = sp_divide(sums.genes, sums.n_read, often)
    share = sp_divide(sums.active, sums.n_read, often).tocsc()
    each = each.tocsc()
    feature = np.repeat(np.arange(each.shape[1]), np.diff(each.indptr))
    order = np.lexsort((each.indices, -each.data, feature))
    place = np.arange(len(order)) - each.indptr[feature[order]]
    kept = order[place < n_genes]
    feature, token = feature[kept], each.indices[kept]
    ids = adata.var[_keys.TOKEN_ID].to_numpy()
    column = np.full(len(sums.n_read), -1)
    column[ids[ids >= 0]] = np.flatnonzero(ids >= 0)
    column = column[token]
    with np.errstate(divide="ignore", invalid="ignore"):
        lift = each.data[kept] / overall[feature]
    return pd.DataFrame(
        {
            "feature": feature,
            "gene": adata.var[_keys.ENSEMBL_ID].to_numpy().astype(str)[column],
            "symbol": np.asarray(symbols(adata)).astype(str)[column],
            "mean": each.data[kept],
            "share": np.asarray(share[token, feature]).ravel(),
            "lift": lift,
            "n_read": sums.n_read[token],
        }
    )


def sp_divide(sums: sp.csr_matrix, n_read: np.ndarray, often: np.ndarray) -> sp.csr_matrix:
    """Rows of a sparse matrix over how often each was read; others are left out."""
    weight = np.where(often, 1 / np.maximum(n_read, 1), 0)
    found = sp.diags(weight) @ sums
    found.eliminate_zeros()
    return found.tocsr()
