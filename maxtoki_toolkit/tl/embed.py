"""Cell and gene embeddings."""

from __future__ import annotations

import numpy as np
from anndata import AnnData

from .. import _keys
from ..models.embedding import embed_sequences
from ..models.model import MaxTokiModel
from ..results.store import write_result
from ._cells import count_truncated, get_sequences


def embed(
    adata: AnnData,
    model: MaxTokiModel,
    *,
    layer: int = -1,
    pool: str = "mean",
    genes: bool = False,
    key_added: str | None = None,
) -> None:
    """Embed each cell, and each gene if wanted.

    Parameters
    ----------
    adata
        Rank-encoded cells.
    model
        Model, with or without temporal training.
    layer
        Which hidden states: 0 for the token embeddings, l for those after l blocks, -1 for the last block
        and the final norm.
    pool
        "mean" over the cell's genes, or "eos", the last token, which has read them all.
    genes
        Also write gene embeddings: the mean of a gene's hidden state over the cells that express it.
    key_added
        Key in `.obsm`, by default "X_maxtoki"; that of the gene embeddings is without the `X_`.

    Returns
    -------
    `None`. Writes

    `.obsm["X_maxtoki"]`
        Cell embeddings, float32, cells x hidden size.
    `.varm["maxtoki"]`
        With `genes`: float32, genes x hidden size; NaN for genes that no cell expresses.
    `.uns["embed"]`
        Parameters, among them the number of cells that were truncated: a model reads at most
        `model.max_length` - 2 genes of a cell, the highest ranked.

    Raises
    ------
    KeyError
        If the cells are not rank-encoded.
    ValueError
        If they were encoded for another vocabulary.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.load("heart_nuclei")[:50].copy()
    >>> model = mt.load_model("demo")
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.tl.embed(adata, model)
    >>> adata.obsm["X_maxtoki"].shape == (50, model.hf.config.hidden_size)
    True
    """
    key = key_added or _keys.EMBEDDING
    result = embed_sequences(
        model,
        get_sequences(adata, model),
        layer=layer,
        pool=pool,
        tokens=genes,
    )
    adata.obsm[key] = result.cells
    if genes:
        token = adata.var[_keys.TOKEN_ID].to_numpy()
        vectors = np.where((token >= 0)[:, None], result.tokens[token], np.float32(np.nan))
        adata.varm[key.removeprefix("X_")] = vectors
    params = {
        "layer": layer,
        "pool": pool,
        "key": key,
        "n_cells": adata.n_obs,
        "n_truncated": count_truncated(adata, model),
    }
    write_result(adata, _keys.EMBED, {**model.params, **params})
