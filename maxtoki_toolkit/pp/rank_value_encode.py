"""Rank value encoding: each cell as its genes, in order of expression over the gene's median."""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from .. import _keys
from .._progress import progress
from .._results import is_ours, require_free, write_obs, write_result
from .._settings import settings
from .._validate import require_unique_names
from ..models.vocabulary import Vocabulary
from ._counts import check_counts, counts_hint, get_counts, iter_csr
from ._rank import rank_csr
from ._vocabulary import as_vocabulary
from .map_genes import map_genes


def rank_value_encode(
    adata: AnnData,
    model,
    *,
    layer: str | None = None,
    force: bool = False,
    chunk_size: int = 2048,
    copy: bool = False,
) -> AnnData | None:
    """Rank the genes of each cell by expression over the gene's median.

    Parameters
    ----------
    adata
        Cells x genes, raw counts; in memory or backed. Read `chunk_size` cells at a time. For a file whose
        ranks do not fit in memory use `mt.pp.encode_file`.
    model
        A model or a `Vocabulary`: which genes are ranked, and their medians.
    layer
        Layer that holds the raw counts, `.X` by default.
    force
        Accept values that are not integers. Only right for values that are linear in expression (CPM, TPM,
        FPKM): their order within a cell is that of the counts. A logarithm changes the order.
    chunk_size
        Cells a block. The result does not depend on it.
    copy
        Return a copy instead of writing to `adata`.

    Returns
    -------
    `None`, or the copy. Runs `mt.pp.map_genes` if that was not done for this vocabulary, and writes

    `.layers["rank"]`
        CSR uint16, cells x genes: 1 for the highest ranked gene of the cell, absent where the gene is not
        expressed or not in the vocabulary. All genes are ranked; truncation happens when a model reads.
    `.obs["n_genes_ranked"]`, `.obs["share_ranked"]`
        Genes ranked in each cell, and the share of its counts that they hold (0-1); summarised by
        `mt.get.encoding_report`.
    `.uns["rank_value_encode"]`
        Parameters.

    Raises
    ------
    ValueError
        If the input is not raw counts (negative, NaN, log-normalised), if a cell expresses no gene of the
        vocabulary, if cell names repeat, or if columns or a layer of these names are there that say something else. Nothing is
        written then.

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
    adata = adata.copy() if copy else adata
    if adata.uns.get(_keys.MAP_GENES, {}).get("params", {}).get("genes_sha256") != vocab.genes_sha256:
        map_genes(adata, vocab)
    encode = _encoder(adata.var, vocab, force=force, hint=counts_hint(adata))

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
    adata.layers[_keys.RANK] = ranks
    params = {"genes_sha256": vocab.genes_sha256, "layer": layer or "X", "force": force}
    write_result(adata, _keys.ENCODING, params)
    return adata if copy else None


def _encoder(var: pd.DataFrame, vocab: Vocabulary, *, force: bool, hint: str):
    """Return the function that turns a block of counts into ranks and each cell's share of counts ranked."""
    token = var[_keys.TOKEN_ID].to_numpy()
    medians = np.where(token >= 0, vocab.median_of_token[token], np.nan)
    ids = pd.Series(var[_keys.ENSEMBL_ID].to_numpy())
    # Column that each column is summed into: the first with its Ensembl id, itself where there is no id.
    first = ids.drop_duplicates().reset_index().set_index(0)["index"]
    into = np.where(ids == "", np.arange(len(ids)), first.reindex(ids).to_numpy())
    merges = (into != np.arange(len(ids))).any()

    def encode(block: sp.csr_matrix) -> tuple[sp.csr_matrix, np.ndarray]:
        check_counts(block, force=force, hint=hint)
        if merges:
            block = sp.csr_matrix((block.data, into[block.indices], block.indptr), shape=block.shape)
        if not block.has_canonical_format:
            block = block.copy()
            block.sum_duplicates()
        ranks = rank_csr(block, medians, n_jobs=settings.n_jobs)
        totals = np.asarray(block.sum(axis=1)).ravel()
        ranked = block @ (~np.isnan(medians)).astype(np.float32)
        return ranks, ranked / np.maximum(totals, 1e-30)

    return encode


def _refuse_empty_cells(obs_names: pd.Index, n_ranked: np.ndarray) -> None:
    """Raise if a cell has nothing to rank."""
    if (empty := n_ranked == 0).any():
        raise ValueError(
            f"{empty.sum()} of {len(n_ranked)} cells express no gene of the vocabulary (first: "
            f"{obs_names[empty][0]!r}). Remove them, e.g. with sc.pp.filter_cells(adata, min_genes=200)."
        )
