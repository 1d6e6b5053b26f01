"""Vectors of genes: in cells, in groups of cells, alone, or of the embedding table; and those of baselines."""

from __future__ import annotations

from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from .._progress import hidden, progress
from .._validate import require_tokens
from ..models.embedding import embed_sequences, embed_tokens
from ..models.model import MaxTokiModel, require_model
from ..models.sequences import Sequences
from ..pp._design import get_groups, known_cells
from ..pp._ranked_counts import ranked_counts
from ..stats.expression import log_normalize
from ._cells import WHOLE, get_sequences, get_tokens, require_encoding
from ._embedding_baselines import untrained_twin

N_LOADINGS = 50


class GeneVectors(NamedTuple):
    """What `gene_vectors` returns, in the order of `.var`."""

    all: np.ndarray
    """float32, genes x hidden size; NaN for genes without a token, and for those that no cell shows the model."""
    groups: np.ndarray | None
    """float32, genes x groups x hidden size."""
    table: pd.DataFrame | None
    """`group`, `n_cells`, `n_genes` (genes that have a vector in it)."""


def gene_vectors(
    adata: AnnData,
    model: MaxTokiModel,
    *,
    context: str = "cells",
    layer: int = -1,
    groupby: str | list[str] | None = None,
    min_cells: int = 1,
    whole_cells: bool = False,
) -> GeneVectors:
    """Embed genes; means over cells are running sums, of one group of cells at a time."""
    require_tokens(adata)
    require_model(model)
    token = get_tokens(adata, model)
    has = token >= 0
    vectors = np.full((adata.n_vars, model.hf.config.hidden_size), np.nan, dtype=np.float32)
    if context != "cells":
        require_encoding(adata.uns.get(_keys.ENCODING, {}), model)
        vectors[has] = embed_tokens(model, alone=context == "alone", layer=layer)[token[has]]
        return GeneVectors(vectors, None, None)
    group, names = get_groups(adata, groupby)
    if whole_cells:
        sequences, cell = in_parts(get_sequences(adata, model, max_length=WHOLE), model.cell_length)
        of_sequence = group[cell]
    else:
        sequences, of_sequence = get_sequences(adata, model), group
    total = np.zeros((has.sum(), vectors.shape[1]))
    seen = np.zeros(has.sum(), dtype=np.int64)
    parts = (
        np.full((adata.n_vars, len(names), vectors.shape[1]), np.nan, dtype=np.float32) if groupby else None
    )
    rows = []
    with progress(total=len(names), desc="Embedding genes", unit="group", disable=len(names) == 1) as bar:
        for place, name in enumerate(names):
            own = sequences.take(np.flatnonzero(of_sequence == place))
            n = np.bincount(own.tokens, minlength=model.vocab.size)[token[has]]
            # One bar is enough: that of the groups, or of the cells where there are none.
            with hidden() if groupby else nullcontext():
                means = embed_sequences(model, own, layer=layer, tokens=True).tokens
            means = means[token[has]]
            enough = n >= max(min_cells, 1)
            total[n > 0] += n[n > 0, None] * means[n > 0].astype(np.float64)
            seen += n
            if parts is not None:
                parts[np.flatnonzero(has)[enough], place] = means[enough]
            rows.append((name, int((group == place).sum()), int(enough.sum())))
            bar.update()
    enough = seen >= max(min_cells, 1)
    vectors[np.flatnonzero(has)[enough]] = total[enough] / seen[enough, None]
    table = pd.DataFrame(rows, columns=["group", "n_cells", "n_genes"]) if groupby else None
    return GeneVectors(vectors, parts, table)


def in_parts(sequences: Sequences, length: int) -> tuple[Sequences, np.ndarray]:
    """Cells that are longer than `length` in as few parts as needed, each of every second (third, ...) gene.

    Returns the parts and the cell of each: a part has genes of all ranks, in order, as a cell that was
    sequenced less deeply.
    """
    n_genes = sequences.lengths - 2
    n_parts = np.maximum(-(-n_genes // (length - 2)), 1)
    owner, place = sequences.owner, sequences.positions - 1
    is_gene = (place >= 0) & (place < n_genes[owner])
    cell, place = owner[is_gene], place[is_gene]
    first = np.concatenate([[0], np.cumsum(n_parts)])
    part = first[cell] + place % n_parts[cell]
    order = np.argsort(part, kind="stable")
    lengths = np.bincount(part, minlength=first[-1]) + 2
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.empty(indptr[-1], dtype=np.int32)
    inside = np.ones(len(tokens), dtype=bool)
    inside[indptr[:-1]] = inside[indptr[1:] - 1] = False
    tokens[indptr[:-1]] = sequences.tokens[sequences.indptr[0]]
    tokens[indptr[1:] - 1] = sequences.tokens[sequences.indptr[1] - 1]
    tokens[inside] = sequences.tokens[is_gene][order]
    return Sequences(tokens, indptr), np.repeat(np.arange(len(sequences)), n_parts)


def gene_means(adata: AnnData, groupby: str | list[str] | None = None) -> np.ndarray:
    """Mean log-normalised expression, genes x groups (one where there is no `groupby`)."""
    expression = log_normalize(ranked_counts(adata), np.float64)
    group, names = get_groups(adata, groupby)
    return np.stack(
        [np.asarray(expression[group == i].mean(axis=0)).ravel() for i in range(len(names))], axis=1
    )


def pca_loadings(adata: AnnData, *, seed: int, n: int = N_LOADINGS) -> tuple[np.ndarray, np.ndarray]:
    """Principal components of log-normalised expression: genes x components, cells x components.

    Loadings are in units of standard deviations along the component, so that components that explain more
    count for more.
    """
    from sklearn.decomposition import PCA

    expression = log_normalize(ranked_counts(adata), np.float64)
    pca = PCA(min(n, adata.n_obs - 1, adata.n_vars - 1), svd_solver="arpack", random_state=seed)
    scores = pca.fit_transform(expression)
    return (pca.components_ * np.sqrt(pca.explained_variance_)[:, None]).T, scores


def read_vectors(adata: AnnData, key: str) -> np.ndarray:
    """Gene embeddings of `.varm`, or raise with what writes them."""
    if key not in adata.varm:
        raise KeyError(f"Did not find .varm[{key!r}]. Run mt.tl.embed_genes(adata, model) first.")
    vectors = np.asarray(adata.varm[key], dtype=np.float64)
    if vectors.ndim != 2:
        raise ValueError(
            f".varm[{key!r}] has the shape {vectors.shape}, and one vector a gene is needed. Give the key of the embeddings in "
            "all cells."
        )
    return vectors


def embedding_settings(adata: AnnData, model: MaxTokiModel, key: str) -> dict:
    """How embeddings were made, or raise if that was by another model."""
    own = adata.uns.get(_keys.EMBED_GENES if key == _keys.GENE_EMBEDDING else key, {})
    params = own.get("params", {}) if isinstance(own, dict) else {}
    sha = model.params.get("model_sha256")
    if params and params.get("model_sha256") != sha:
        raise ValueError(
            f".varm[{key!r}] was made by another model ({params.get('model')}) than the one given ({model.name}). Embed the "
            "genes again: mt.tl.embed_genes(adata, model)."
        )
    groupby = params.get("groupby", [])
    return {
        # Of embeddings that come from elsewhere nothing is known.
        "context": str(params.get("context", "alone")),
        "layer": int(params.get("layer", -1)),
        "min_cells": int(params.get("min_cells", 1)),
        "whole_cells": bool(params.get("whole_cells", False)),
        "groupby": [str(name) for name in groupby],
    }


def gene_length(adata: AnnData) -> np.ndarray | None:
    """Logarithm of the length of each gene, where `.var` has it; the median for genes without."""
    column = next((name for name in ("gene_length", "feature_length") if name in adata.var), None)
    if column is None:
        return None
    length = pd.to_numeric(adata.var[column], errors="coerce").to_numpy(dtype=float)
    length = np.log(np.where(length > 0, length, np.nan))
    return np.where(np.isfinite(length), length, np.nanmedian(length)) if np.isfinite(length).any() else None


def gene_predictors(
    adata: AnnData, model: MaxTokiModel, key: str, seed: int
) -> tuple[dict[str, np.ndarray], dict]:
    """What labels are predicted from, genes x columns by name, and how the embedding was made."""
    settings = embedding_settings(adata, model, key)
    vectors = read_vectors(adata, key)
    adata, _ = known_cells(adata)  # in the order of their names
    twin = gene_vectors(
        adata,
        untrained_twin(model, seed),
        **{name: settings[name] for name in ("context", "layer", "min_cells", "whole_cells")},
    ).all
    counts = ranked_counts(adata)
    baselines = {
        "expression": gene_means(adata),
        "detection": np.asarray((counts > 0).mean(axis=0)).reshape(-1, 1),
    }
    if (length := gene_length(adata)) is not None:
        baselines["gene length"] = length[:, None]
    baselines["PCA loadings"] = pca_loadings(adata, seed=seed)[0]
    together = np.hstack(list(baselines.values()))
    predictors = {"MaxToki": vectors, "untrained": twin.astype(np.float64), **baselines}
    predictors["all baselines"] = together
    predictors["all baselines and MaxToki"] = np.hstack([together, vectors])
    return predictors, {f"embedding_{name}": value for name, value in settings.items()}
