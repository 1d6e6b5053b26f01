"""What embeddings are compared with: principal components, and a model that has learned nothing."""

from __future__ import annotations

import numpy as np
from anndata import AnnData

from ..models.build import build_model
from ..models.model import MaxTokiModel
from ..pp._ranked_counts import ranked_counts

# Those of scanpy's tutorials.
N_TOP_GENES, N_PCS = 2000, 50


def untrained_twin(model: MaxTokiModel, seed: int) -> MaxTokiModel:
    """A model of the same shape and vocabulary with random weights."""
    config = model.hf.config.to_diff_dict()
    for name in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "dtype", "architectures"):
        config.pop(name, None)
    return build_model(config, model.vocab, seed=seed, device=str(model.device), dtype=model.hf.dtype)


def principal_components(adata: AnnData, n_pcs: int, seed: int) -> np.ndarray:
    """Principal components of log-normalised counts, the way scanpy's tutorials compute them."""
    import scanpy as sc

    plain = AnnData(ranked_counts(adata).astype(np.float32), obs=adata.obs[[]], var=adata.var[[]])
    sc.pp.normalize_total(plain, target_sum=1e4)
    sc.pp.log1p(plain)
    # A small panel is used whole.
    few = np.count_nonzero(plain.X.sum(axis=0)) <= N_TOP_GENES
    if not few:
        sc.pp.highly_variable_genes(plain, n_top_genes=N_TOP_GENES)
    n_used = plain.n_vars if few else N_TOP_GENES
    sc.pp.pca(
        plain,
        n_comps=min(n_pcs, plain.n_obs - 1, n_used - 1),
        mask_var=None if few else "highly_variable",
        random_state=seed,
    )
    return plain.obsm["X_pca"]
