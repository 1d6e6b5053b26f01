"""Rank value encoding: each cell as its genes, in order of expression over the gene's median."""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from .. import _keys
from .._counts import check_counts
from .._features import gene_columns
from .._progress import progress
from .._settings import settings
from .._validate import require_unique_names
from ..models.vocabulary import Vocabulary
from ..results.store import is_ours, require_free, write_obs, write_result
from ._counts import counts_hint, get_counts, iter_csr
from ._modalities import ADT, feature_tokens, kinds_of, protein_background, rank_kind
from ._rank import rank_csr
from ._ranked_counts import sum_genes
from ._vocabulary import as_vocabulary
from .map_genes import find_tokens, map_genes


def rank_value_encode(
    adata: AnnData,
    model,
    *,
    layer: str | None = None,
    force: bool = False,
    chunk_size: int = 2048,
) -> None:
    """Rank the genes of each cell by expression over the gene's median.

    Proteins and peaks, where the vocabulary has them (`Vocabulary.with_modalities`), are ranked among
    themselves: proteins by counts per ten thousand less the protein's background over its median, open peaks
    by how rarely they are open. Genes keep the ranks that they have alone.

    Parameters
    ----------
    adata
        Cells x genes, raw counts; in memory or backed. Read `chunk_size` cells at a time. For a file whose
        ranks do not fit in memory use `mt.pp.encode_file`.
    model
        A model or a `Vocabulary`: which genes are ranked, and their medians.
    layer
        Layer that holds the raw counts, `.X` by default; "raw" for the counts in `.raw`.
    force
        Accept values that are not integers. Only right for values that are linear in expression (CPM, TPM,
        FPKM): their order within a cell is that of the counts. A logarithm changes the order.
    chunk_size
        Cells a block. The result does not depend on it.

    Returns
    -------
    Nothing. Runs `mt.pp.map_genes` if that was not done for this vocabulary, and writes

    `.layers["rank"]`
        CSR uint16, cells x genes: 1 for the highest ranked gene of the cell, absent where the gene is not
        expressed or not in the vocabulary. All genes are ranked; truncation happens when a model reads.
    `.obs["n_genes_ranked"]`, `.obs["share_ranked"]`
        Genes ranked in each cell, and the share of its counts of genes that they hold (0-1); summarised by
        `mt.get.encoding_report`.
    `.uns["rank_value_encode"]`
        Parameters.

    Raises
    ------
    ValueError
        If the input is not raw counts (negative, NaN, log-normalised), if a cell expresses no gene of the
        vocabulary, if cell names repeat, or if columns or a layer of these names are there that say something
        else. Nothing is written then.

    Notes
    -----
    The order is that of x / median, as in MaxToki's and Geneformer's tokenizer: dividing a cell by its
    total does not change it. Where this differs from the original on purpose: equal values are ranked in
    the order of the genes in `.var` (there undefined), stored zeros are not ranked (there they become the
    last tokens), columns of the same gene are summed (there repeated), and cells without genes are an
    error (there dropped).

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.load("heart_nuclei")
    >>> vocab = mt.load_model("demo").vocab
    >>> mt.pp.rank_value_encode(adata, vocab)
    >>> adata.layers["rank"].dtype
    dtype('uint16')
    """
    vocab = as_vocabulary(model)
    require_unique_names(adata)
    counts = get_counts(adata, layer)
    if not _is_mapped(adata, vocab):
        map_genes(adata, vocab)
    # The first column of a gene may have been filtered away since.
    token = find_tokens(adata.var, vocab)
    encode = _encoder(adata.var, token, vocab, force=force, hint=counts_hint(adata, layer))
    if vocab.modalities:
        token = feature_tokens(token, adata.var, vocab)
        encode = _joint_encoder(encode, counts, token, adata.var, vocab)

    blocks, shares = [], []
    with progress(total=adata.n_obs, desc="Ranking genes", unit="cell") as bar:
        for _, block in iter_csr(counts, chunk_size):
            ranks, share = encode(block)
            blocks.append(ranks)
            shares.append(share)
            bar.update(block.shape[0])
    n_ranked = np.concatenate([np.diff(block.indptr) for block in blocks])
    # Put together by hand: scipy's vstack takes as long as the ranking.
    arrays = [np.concatenate([getattr(block, name) for block in blocks]) for name in ("data", "indices")]
    ranks = sp.csr_matrix((*arrays, np.concatenate([[0], np.cumsum(n_ranked)])), shape=adata.shape)
    _refuse_empty_cells(adata.obs_names, n_ranked)

    require_free(adata, _keys.ENCODING)
    earlier = is_ours(adata, _keys.ENCODING) or _keys.N_RANKED in adata.obs
    if _keys.RANK in adata.layers and not earlier:
        raise ValueError(
            f"There is a layer {_keys.RANK!r} already, which the ranks would replace. Rename it first."
        )
    share = np.concatenate(shares).astype(np.float32)
    columns = {_keys.N_RANKED: n_ranked.astype(np.int32), _keys.SHARE_RANKED: share}
    write_obs(adata, _keys.ENCODING, columns)
    adata.var[_keys.TOKEN_ID] = token
    adata.layers[_keys.RANK] = ranks
    params = {"genes_sha256": vocab.genes_sha256, "layer": layer or "X", "force": force}
    write_result(adata, _keys.ENCODING, params)


def _is_mapped(adata: AnnData, vocab: Vocabulary) -> bool:
    """Whether the genes are mapped for this vocabulary."""
    params = adata.uns.get(_keys.MAP_GENES, {}).get("params", {})
    columns = (_keys.ENSEMBL_ID, _keys.TOKEN_ID, _keys.GENE_STATUS)
    return params.get("genes_sha256") == vocab.genes_sha256 and all(
        name in adata.var and adata.var[name].notna().all() for name in columns
    )


def _encoder(var: pd.DataFrame, token: np.ndarray, vocab: Vocabulary, *, force: bool, hint: str):
    """Return the function that turns a block of counts into ranks and each cell's share of counts ranked."""
    medians = np.where(token >= 0, vocab.median_of_token[token], np.nan)
    into = gene_columns(var)

    def encode(block: sp.csr_matrix) -> tuple[sp.csr_matrix, np.ndarray]:
        check_counts(block, force=force, hint=hint)
        block = sum_genes(block, into)
        ranks = rank_csr(block, medians, n_jobs=settings.n_jobs)
        totals = np.asarray(block.sum(axis=1)).ravel()
        ranked = block @ (~np.isnan(medians)).astype(np.float32)
        return ranks, ranked / np.maximum(totals, 1e-30)

    return encode


def _joint_encoder(encode, counts, token: np.ndarray, var: pd.DataFrame, vocab: Vocabulary):
    """Return the function that ranks genes as ever, and the features of each other kind among themselves."""
    medians = np.where(token >= 0, vocab.median_of_token[token], np.nan)
    kinds = kinds_of(var)
    columns = {kind: np.flatnonzero((kinds == kind) & (token >= 0)) for kind in vocab.modalities[1:]}
    columns = {kind: own for kind, own in columns.items() if len(own)}
    background = {}
    if ADT in columns:
        background[ADT] = protein_background(sp.csr_matrix(counts[:, columns[ADT]]))

    def encode_all(block: sp.csr_matrix) -> tuple[sp.csr_matrix, np.ndarray]:
        ranks, share = encode(block)
        for kind, own in columns.items():
            one = rank_kind(kind, block[:, own], medians[own], background.get(kind)).tocoo()
            ranks = ranks + sp.csr_matrix(
                (one.data, (one.row, own[one.col])), shape=ranks.shape, dtype=np.uint16
            )
        return ranks, share

    return encode_all


def _refuse_empty_cells(obs_names: pd.Index, n_ranked: np.ndarray) -> None:
    """Raise if a cell has nothing to rank."""
    if (empty := n_ranked == 0).any():
        raise ValueError(
            f"{empty.sum()} of {len(n_ranked)} cells express no gene of the vocabulary (first: "
            f"{obs_names[empty][0]!r}). Remove them, e.g. with sc.pp.filter_cells(adata, min_genes=200)."
        )
