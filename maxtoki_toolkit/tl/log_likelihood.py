"""How likely a model finds each cell."""

from __future__ import annotations

import numpy as np
from anndata import AnnData

from .. import _keys
from ..models.likelihood import token_log_likelihoods
from ..models.model import MaxTokiModel
from ..results.store import require_free, write_result
from ._cells import count_truncated, get_sequences


def log_likelihood(
    adata: AnnData,
    model: MaxTokiModel,
    *,
    key_added: str | None = None,
) -> None:
    """Score how likely a model finds the order of the genes in each cell.

    Parameters
    ----------
    adata
        Rank-encoded cells.
    model
        Model.
    key_added
        Column of `.obs` and key in `.uns`, by default "log_likelihood".

    Returns
    -------
    `None`. Writes `.obs["log_likelihood"]`, the mean over the genes that the model reads of a cell of the
    log-probability of each, given those ranked above it, in nats a gene. Guessing among all genes would give
    -log(their number).

    Raises
    ------
    KeyError
        If the cells are not rank-encoded.
    ValueError
        If they were encoded for another vocabulary.

    Notes
    -----
    Depth and number of genes move it as well as cell type, so compare cells of like depth. Cells that were
    trained on score higher than others of their kind.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.load("heart_nuclei")[:20].copy()
    >>> model = mt.load_model("demo")
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.tl.log_likelihood(adata, model)
    >>> bool((adata.obs["log_likelihood"] > -9.8).all())  # -9.8: one of 17,905 genes by chance
    True
    """
    key = key_added or _keys.LOG_LIKELIHOOD
    require_free(adata, key, [key])
    sequences = get_sequences(adata, model)
    found = token_log_likelihoods(model, sequences)
    # Neither `<bos>`, which nothing predicts, nor `<eos>`.
    found[sequences.indptr[1:] - 1] = np.nan
    total = np.add.reduceat(np.nan_to_num(found), sequences.indptr[:-1])
    adata.obs[key] = (total / (sequences.lengths - 2)).astype(np.float32)
    params = {"unit": "nats a gene", "n_cells": adata.n_obs, "n_truncated": count_truncated(adata, model)}
    write_result(adata, _keys.LOG_LIKELIHOOD, {**model.params, **params}, key_added=key)
