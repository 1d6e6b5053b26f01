"""From an AnnData to what a model reads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from anndata.utils import make_index_unique

from .. import _keys
from .._validate import require_rank, require_tokens, require_unique_names
from ..models.model import MaxTokiModel, require_model
from ..models.sequences import Sequences, cell_sequences
from ..pp._columns import find_donors
from ..pp._design import get_mask, known_cells
from .recipes import Cells

WHOLE = 1 << 30  # tokens: no cell is longer


def known_among(on: Cells | None, adata: AnnData, *, guess: bool = True) -> tuple[Cells, AnnData, np.ndarray]:
    """Which cells, as booleans of those whose group and donor are known; the latter, and their rows."""
    on = on or Cells()
    if guess:
        on = replace(on, donor_key=find_donors(adata.obs, on.donor_key))
    known, rows = known_cells(adata, on.groupby, on.donor_key)
    masks = {name: mask for name in ("use", "target") if (mask := getattr(on, name)) is not None}
    masks = {name: get_mask(adata, mask, name)[rows] for name, mask in masks.items()}
    return replace(on, **masks), known, rows


def get_sequences(adata: AnnData, model: MaxTokiModel, *, max_length: int | None = None) -> Sequences:
    """Cells as token sequences, at most as long as the model reads one (or `max_length`)."""
    require_unique_names(adata)
    require_rank(adata)
    require_tokens(adata)
    require_model(model)
    require_encoding(adata.uns.get(_keys.ENCODING, {}), model)
    ranks = sp.csr_matrix(adata.layers[_keys.RANK])
    require_all_ranked(np.diff(ranks.indptr), adata.obs[_keys.N_RANKED].to_numpy())
    return cell_sequences(
        ranks, get_tokens(adata, model), model.vocab, max_length=max_length or model.cell_length
    )


def get_tokens(adata: AnnData, model: MaxTokiModel) -> np.ndarray:
    """Tokens of the genes, -1 for none; or raise if the model has no such tokens."""
    token = adata.var[_keys.TOKEN_ID].to_numpy()
    if token.max() >= model.vocab.size:
        raise ValueError(
            f".var[{_keys.TOKEN_ID!r}] has tokens up to {token.max()}, and the model {model.vocab.size:,} of them. Run "
            "mt.pp.map_genes(adata, model), with this model."
        )
    return token


def require_all_ranked(n_found: np.ndarray, n_ranked: np.ndarray) -> None:
    """Raise if cells have fewer ranked genes than when they were encoded."""
    if (lost := n_found != n_ranked).any():
        raise ValueError(
            f"{lost.sum()} of {len(n_ranked)} cells have lost ranked genes since they were encoded (the first: "
            f"{n_found[lost][0]} of {n_ranked[lost][0]} are left), as when the genes are subset. Subset after "
            "embedding, or encode again: mt.pp.rank_value_encode(adata, model)."
        )


def require_encoding(result: dict, model: MaxTokiModel) -> None:
    """Raise if `.uns["rank_value_encode"]` is not of the model's genes and medians."""
    if result.get("params", {}).get("genes_sha256") != model.vocab.genes_sha256:
        raise ValueError(
            "The cells were rank-encoded for another vocabulary. Run mt.pp.rank_value_encode(adata, model) "
            "with this model."
        )


def count_truncated(adata: AnnData, model: MaxTokiModel) -> int:
    """Cells with more genes than the model can read."""
    return int((adata.obs[_keys.N_RANKED] > model.cell_length - 2).sum())


def match_columns(queries: AnnData, genes: pd.Index) -> np.ndarray:
    """Column of each gene in the queries; where a name repeats, the second is the second, and so on."""
    names = make_index_unique(genes.astype(str))
    columns = make_index_unique(queries.var_names).get_indexer(names)
    if (absent := columns < 0).any():
        raise ValueError(
            f"The queries lack {absent.sum()} of the genes (first: {names[absent][0]!r}). Give both the same genes."
        )
    return columns
