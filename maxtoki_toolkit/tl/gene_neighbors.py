"""Genes that are near a gene in an embedding, and what they have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from .. import _keys
from .._features import locate_genes, symbols
from .._progress import progress
from ..pp._design import known_cells
from ..results.store import write_result
from ..stats.fdr import benjamini_hochberg
from ..stats.matched_sets import make_strata, permuted
from ._gene_covariates import gene_covariates, nearest_genes
from ._gene_sets import MIN_GENES, read_gene_sets, set_members
from ._gene_vectors import pca_loadings, read_vectors

N_CONTROLS = 50  # genes like the one that is asked for


def gene_neighbors(
    adata: AnnData,
    *,
    genes: str | Sequence[str],
    key: str = _keys.GENE_EMBEDDING,
    n_neighbors: int = 20,
    gene_sets: Mapping[str, Sequence[str]] | str | Path | None = None,
    n_permutations: int = 1000,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Find the genes nearest to a gene in an embedding, and the gene sets that are enriched among them.

    Parameters
    ----------
    adata
        Rank-encoded cells with gene embeddings (`mt.tl.embed_genes`) and the raw counts that were ranked.
    genes
        Genes whose neighbours are wanted (symbols, Ensembl ids or `.var_names`).
    key
        Key of the embeddings in `.varm`.
    n_neighbors
        Neighbours of a gene.
    gene_sets
        Gene sets by name, or a file of them (.gmt, .gmt.gz); "TF" for the transcription factors. None are
        looked for by default.
    n_permutations
        Draws of the null of gene sets. A p value is no smaller than 1 / (n_permutations + 1).
    rng
        Seed of the draws and of PCA.
    key_added
        Key in `.uns`, by default "gene_neighbors".

    Returns
    -------
    `None`. Writes to `.uns["gene_neighbors"]` the tables

    `neighbors`
        A row a gene and neighbour, nearest first: `gene`, `symbol`, `neighbor`, `neighbor_symbol`, `place`
        (from 1), `cosine` (of the embeddings less their mean over genes), `null_mean`, `null_sd` and `z`: how
        near the neighbour is to 50 genes that are like the gene in rank, detection and expression, and how
        far beyond that it is to the gene; `coexpression`, the same cosine of loadings of 50 principal
        components of the cells.

    `gene_sets`
        With `gene_sets`, a row a gene and set (of 3 genes or more):

        `gene`, `symbol`, `gene_set`, `n_genes`
            Which, and genes of the set among those with an embedding.
        `n_found`, `expected`, `fold`
            Members among the neighbours, among genes that are like the neighbours in rank, detection and
            expression, and the ratio.
        `n_coexpression`, `n_controls`
            Members among as many neighbours by coexpression, and mean over the neighbourhoods of the 50 genes
            like the gene: what is as enriched there tells nothing of this gene.
        `p_value`, `q_value`
            One-sided: share of draws, of genes from the neighbours' strata of rank, detection and expression,
            with as many members or more; corrected for all sets and genes (Benjamini and Hochberg).

    Raises
    ------
    KeyError
        If there are no gene embeddings, or a gene is not known.
    ValueError
        If a gene has no embedding, or there are too few genes.

    Notes
    -----
    Single neighbours have no p value: they are chosen out of all genes for being near. Genes are the units of
    the enrichment. Those of a set go together in cells, so that neighbours come in clusters, and draws of
    single genes do not: `n_coexpression` and `n_controls` say what that alone gives.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.load("heart_nuclei")[:200].copy()
    >>> model = mt.load_model("demo")
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.tl.embed_genes(adata, model)
    >>> mt.tl.gene_neighbors(adata, genes="TTN", n_neighbors=5)
    >>> mt.get.table(adata, "gene_neighbors")["place"].tolist()
    [1, 2, 3, 4, 5]
    """
    vectors = read_vectors(adata, key)
    wanted = [genes] if isinstance(genes, str) else list(dict.fromkeys(genes))
    if not wanted:
        raise ValueError("genes is empty. Name the genes whose neighbours are wanted.")
    ids = adata.var[_keys.ENSEMBL_ID].astype(str).to_numpy(dtype=object)
    covariates = gene_covariates(adata)
    covariates = covariates[(covariates["detection"] > 0).to_numpy()].dropna()
    usable = np.isfinite(vectors).all(axis=1) & pd.Index(ids).isin(covariates.index)
    usable &= ~pd.Index(np.where(usable, ids, np.arange(len(ids)).astype(str))).duplicated()
    rows = np.flatnonzero(usable)[np.argsort(ids[usable], kind="stable")]
    column = locate_genes(adata, wanted)
    if (column < 0).any():
        missing = [gene for gene, c in zip(wanted, column, strict=True) if c < 0]
        raise KeyError(f"Did not find the gene {missing[0]!r} ({len(missing)} of {len(wanted)} are unknown).")
    asked = pd.Index(rows).get_indexer(column)
    if (asked < 0).any():
        missing = [gene for gene, a in zip(wanted, asked, strict=True) if a < 0]
        raise ValueError(
            f"The gene {missing[0]!r} has no embedding in .varm[{key!r}], or no cell expresses it. mt.tl.embed_genes(adata, "
            'model, context="alone") embeds all genes that the model knows.'
        )
    if len(rows) <= max(n_neighbors, N_CONTROLS) + 1:
        raise ValueError(
            f"{len(rows)} genes have an embedding and are expressed; more than {max(n_neighbors, N_CONTROLS) + 1} are needed. "
            "Give a smaller n_neighbors, or more cells."
        )
    names, ids = symbols(adata)[rows], ids[rows]
    covariates = covariates.loc[ids]
    unit = _unit(vectors[rows])
    loadings = _unit(pca_loadings(known_cells(adata)[0], seed=rng)[0][rows])
    controls = nearest_genes(covariates, list(ids[asked]), N_CONTROLS, exclude=set(ids[asked]))
    place_of = pd.Index(ids)
    random = np.random.default_rng(rng)
    strata = make_strata(covariates.to_numpy())
    members = None
    if gene_sets is not None:
        sets = read_gene_sets(gene_sets)
        members = set_members(pd.DataFrame({"ensembl_id": ids, "symbol": names}), sets)
        sizes = np.asarray(members.sum(axis=0)).ravel()
        if not (sizes >= MIN_GENES).any():
            raise ValueError(
                f"None of the {len(sets)} gene sets has {MIN_GENES} genes among those with an embedding. Give symbols or Ensembl ids."
            )
        set_names = np.array(list(sets), dtype=object)[sizes >= MIN_GENES]
        members = sp.csr_matrix(members[:, sizes >= MIN_GENES])
        sizes = sizes[sizes >= MIN_GENES].astype(np.int64)
    near, enriched = [], []
    for gene, others in zip(progress(asked, desc="Neighbours", unit="gene"), controls, strict=True):
        alike = place_of.get_indexer(others)
        nearest, cosine = _nearest(unit, np.array([gene]), n_neighbors)
        nearest, cosine = nearest[0], cosine[0]
        null = unit[alike] @ unit[nearest].T
        mean, sd = null.mean(axis=0), null.std(axis=0, ddof=1)
        table = pd.DataFrame({"gene": ids[gene], "symbol": names[gene], "neighbor": ids[nearest]})
        table["neighbor_symbol"], table["place"] = names[nearest], np.arange(1, len(nearest) + 1)
        table["cosine"], table["null_mean"], table["null_sd"] = cosine, mean, sd
        table["z"] = np.where(sd > 0, (cosine - mean) / np.where(sd > 0, sd, 1), np.nan)
        table["coexpression"] = loadings[nearest] @ loadings[gene]
        near.append(table)
        if members is None:
            continue
        found = np.asarray(members[nearest].sum(axis=0)).ravel()
        by_cells = _nearest(loadings, np.array([gene]), n_neighbors)[0][0]
        by_others = _nearest(unit, alike, n_neighbors)[0]
        drawn = _drawn_members(nearest, gene, strata, members, n_permutations, random)
        table = pd.DataFrame(
            {"gene": ids[gene], "symbol": names[gene], "gene_set": set_names, "n_genes": sizes}
        )
        table["n_found"], table["expected"] = found.astype(np.int64), drawn.mean(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            table["fold"] = found / drawn.mean(axis=0)
        table["n_coexpression"] = np.asarray(members[by_cells].sum(axis=0)).ravel().astype(np.int64)
        table["n_controls"] = np.asarray(members[by_others.ravel()].sum(axis=0)).ravel() / len(alike)
        table["p_value"] = (1 + (drawn >= found).sum(axis=0)) / (1 + n_permutations)
        enriched.append(table)
    params = {"genes": ids[asked].tolist(), "key": key, "n_neighbors": n_neighbors, "n_genes": len(rows)}
    params |= {"n_permutations": n_permutations, "seed": rng, "n_controls": N_CONTROLS}
    tables = {"neighbors": pd.concat(near, ignore_index=True)}
    if enriched:
        table = pd.concat(enriched, ignore_index=True)
        table["q_value"] = benjamini_hochberg(table["p_value"].to_numpy())
        order = np.lexsort((table["p_value"], pd.factorize(table["gene"])[0]))
        tables["gene_sets"] = table.iloc[order].reset_index(drop=True)
        params["test"] = "matched draws, one-sided, Benjamini and Hochberg"
    write_result(adata, _keys.GENE_NEIGHBORS, params, key_added=key_added, **tables)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors less their mean, of length 1."""
    centred = vectors - vectors.mean(axis=0)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    return centred / np.where(length > 0, length, 1)


def _nearest(unit: np.ndarray, genes: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The n nearest other genes of each, and their cosine."""
    cosine = unit[genes] @ unit.T
    cosine[np.arange(len(genes)), genes] = -np.inf
    order = np.argsort(-cosine, axis=1, kind="stable")[:, :n]
    return order, np.take_along_axis(cosine, order, axis=1)


def _drawn_members(
    nearest: np.ndarray,
    gene: int,
    strata: np.ndarray,
    members: sp.csr_matrix,
    n: int,
    random: np.random.Generator,
) -> np.ndarray:
    """Members of each set among genes drawn from the strata of the neighbours, draws x sets."""
    inside = np.zeros(len(strata), dtype=bool)
    inside[nearest] = True
    # Strata without a neighbour are not drawn from; the gene itself is none.
    pool = np.flatnonzero(np.isin(strata, strata[nearest]) & (np.arange(len(strata)) != gene))
    of_pool = np.unique(strata[pool], return_inverse=True)[1]
    parts = [drawn @ members[pool] for drawn in permuted(inside[pool], of_pool, n, random)]
    return np.concatenate([np.asarray(part) for part in parts])
