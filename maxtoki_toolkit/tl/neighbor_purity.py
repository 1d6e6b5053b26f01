"""Does an embedding put cells of one label together? Scored beside what needs no training."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from ..models.embedding import embed_sequences
from ..models.model import MaxTokiModel
from ..pp._columns import find_columns
from ..pp._design import get_labels, get_mask, known_cells
from ..results.store import write_result
from ._cells import get_sequences
from ._embedding_baselines import N_PCS, N_TOP_GENES, principal_components, untrained_twin


def neighbor_purity(
    adata: AnnData,
    model: MaxTokiModel,
    *,
    groupby: str | None = None,
    subset: str | None = None,
    n_neighbors: int = 15,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Score the embedding by its neighbours' labels, beside PCA and an untrained model.

    The purity of a cell is the share of its nearest neighbours that have its label; chance is what
    neighbours drawn at random would reach.

    Parameters
    ----------
    adata
        Embedded cells (`mt.tl.embed`), with the raw counts that were ranked.
    model
        The model that embedded them.
    groupby
        Column of `.obs` with the label, by default the cell type as its name gives it away. It is used for
        scoring only.
    subset
        Boolean column of `.obs`: score these cells only, with neighbours among all.
    n_neighbors
        Neighbours a cell (Euclidean).
    rng
        Seed of the untrained model, of PCA and of the bootstrap.
    key_added
        Key in `.uns`, by default "neighbor_purity".

    Returns
    -------
    `None`. Writes the table `scores` to `.uns["neighbor_purity"]`: a row each for the model, a model of the
    same shape with random weights ("untrained"), PCA, and chance:

    `embedding`, `n_cells`
        Which, and how many cells were scored.
    `purity`, `ci_low`, `ci_high`
        Share of neighbours of the same label (0-1), with its 95% bootstrap interval over cells.
    `difference`, `difference_low`, `difference_high`
        The model's purity less the row's, with the interval of the paired difference.

    Notes
    -----
    PCA is that of log-normalised counts: 50 components of the 2,000 most variable genes, as in scanpy's
    tutorials.

    Cells are resampled one by one, so the intervals say how well these cells are scored, not how another
    donor would be.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.load("heart_nuclei")[:100].copy()
    >>> model = mt.load_model("demo")
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.tl.embed(adata, model)
    >>> mt.tl.neighbor_purity(adata, model, groupby="cell_type")
    >>> mt.get.table(adata, "neighbor_purity")["embedding"].tolist()
    ['MaxToki', 'untrained', 'PCA', 'chance']
    """
    groupby = find_columns(adata.obs, groupby=groupby)["groupby"]
    cells, rows = known_cells(adata, groupby)
    scored = get_mask(adata, subset, "subset")[rows]
    if _keys.EMBEDDING not in adata.obsm:
        raise KeyError(f"Did not find .obsm[{_keys.EMBEDDING!r}]. Run mt.tl.embed(adata, model) first.")
    labels = get_labels(cells, groupby).astype(str)
    if cells.n_obs <= n_neighbors:
        raise ValueError(
            f"{cells.n_obs} cells are too few for {n_neighbors} neighbours each: give a smaller n_neighbors."
        )

    settings = adata.uns.get(_keys.EMBED, {}).get("params", {})
    embeddings = {
        "MaxToki": cells.obsm[_keys.EMBEDDING],
        "untrained": embed_sequences(
            untrained_twin(model, rng),
            get_sequences(cells, model),
            layer=settings.get("layer", -1),
            pool=settings.get("pool", "mean"),
        ).cells,
        "PCA": principal_components(cells, N_PCS, rng),
    }
    purity = {name: _purity(X, labels, n_neighbors)[scored] for name, X in embeddings.items()}
    counts = pd.Series(labels).value_counts()
    purity["chance"] = ((counts[labels].to_numpy() - 1) / (len(labels) - 1))[scored]

    params = {"groupby": groupby, "subset": subset, "n_neighbors": n_neighbors}
    params |= {"n_top_genes": N_TOP_GENES, "n_pcs": N_PCS, "seed": rng, "n_cells": int(scored.sum())}
    write_result(
        adata,
        _keys.PURITY,
        {**model.params, **params},
        key_added=key_added,
        scores=_score_table(purity, np.random.default_rng(rng)),
    )


def _purity(X: np.ndarray, labels: np.ndarray, n_neighbors: int) -> np.ndarray:
    """Share of each cell's nearest other cells that have its label."""
    from sklearn.neighbors import NearestNeighbors

    # Without an argument, a point is not its own neighbour.
    neighbors = NearestNeighbors(n_neighbors=n_neighbors).fit(X).kneighbors(return_distance=False)
    return (labels[neighbors] == labels[:, None]).mean(axis=1)


def _score_table(purity: dict[str, np.ndarray], rng: np.random.Generator) -> pd.DataFrame:
    """Mean purity of each embedding and the model's lead over it, with bootstrap intervals."""
    values = np.stack(list(purity.values()))
    leads = purity["MaxToki"] - values
    n = values.shape[1]
    # One draw at a time: all of them together would be larger than the cells themselves.
    draws = (rng.integers(0, n, n) for _ in range(1000))
    drawn = np.array([(values[:, rows].mean(axis=1), leads[:, rows].mean(axis=1)) for rows in draws])
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    rows = [
        (name, values[i].mean(), low[0, i], high[0, i], leads[i].mean(), low[1, i], high[1, i], n)
        for i, name in enumerate(purity)
    ]
    columns = ["embedding", "purity", "ci_low", "ci_high", "difference", "difference_low", "difference_high"]
    return pd.DataFrame(rows, columns=[*columns, "n_cells"])
