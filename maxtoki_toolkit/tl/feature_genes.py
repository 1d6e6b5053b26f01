"""Which genes a feature makes more or less likely to come next: logit attribution."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import stats

from .. import _keys
from .._reference import symbol_of_gene
from ..models.feature_edits import GeneChanges, gene_changes, require_features
from ..models.model import MaxTokiModel
from ..models.sae import SparseAutoencoder, require_sae
from ..models.sae_controls import some
from ..pp._design import known_cells
from ..results.store import write_result
from ._cells import get_sequences

N_NULL = 4  # random directions in place of each feature's


def feature_genes(
    adata: AnnData,
    model: MaxTokiModel,
    sae: SparseAutoencoder,
    *,
    features: Sequence[int],
    dose: float = 2.0,
    n_genes: int = 10,
    n_cells: int | None = 200,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Turn features up where they are active, and see which genes become more or less likely to come next.

    Parameters
    ----------
    adata
        Rank-encoded cells.
    model
        Model.
    sae
        Autoencoder of this model.
    features
        Numbers of the features.
    dose
        What a feature is multiplied with: 2 doubles it, 0 takes it out.
    n_genes
        Genes in each direction.
    n_cells
        Cells to read, drawn at random where there are more; `None` for all.
    rng
        Seed of the cells and of the random directions.
    key_added
        Key in `.uns`, by default "feature_genes".

    Returns
    -------
    `None`. Writes the table `genes` to `.uns["feature_genes"]`, a row a feature and gene:

    `feature`, `direction`, `gene`, `symbol`
        Feature; whether the gene becomes more ("up") or less ("down") likely; Ensembl id and symbol.
    `change`
        Mean change of the log-probability, in nats, that the gene comes next, where the feature is active.
    `null_sd`, `z`
        Spread of the same if the state is changed by as much in random directions; `change` over that.
    `direct`
        What the feature's direction alone adds to the gene's logit, a unit of the feature, about the mean of
        all genes.
    `n_places`
        Places at which the feature is active.

    Raises
    ------
    ValueError
        If the autoencoder is one of another model, a feature does not exist, or none is active in these
        cells.

    Notes
    -----
    `direct` takes no pass of the model: the direction times the final norm's gains times the output layer,
    as if no block came after. `params["direct_r"]` is its mean correlation with `change`, over genes: near 1
    where features speak to the output at once, lower where later blocks read them.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.load("heart_nuclei")[:20].copy()
    >>> model = mt.load_model("demo")
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.tl.feature_genes(adata, model, mt.load_sae("demo"), features=range(20), n_genes=1)
    >>> sorted(mt.get.table(adata, "feature_genes")["direction"].unique())
    ['down', 'up']
    """
    require_sae(sae, model)
    wanted = require_features(sae, features)
    cells, _ = known_cells(adata)
    sequences = get_sequences(cells, model)
    sequences = some(sequences, n_cells or len(sequences), rng)
    changes = gene_changes(model, sae, sequences, wanted, dose, n_null=N_NULL, seed=rng)
    if not changes.n_places.any():
        raise ValueError(f"None of the {len(wanted)} features is active in these {len(sequences)} cells.")
    table, direct_r = _genes(changes, wanted, model, n_genes)
    params = {
        "dose": dose,
        "unit": "nats",
        "direct_r": direct_r,
        "n_cells": len(sequences),
        "n_null": N_NULL,
        "silent": [int(i) for i, n in zip(wanted, changes.n_places, strict=True) if not n],
        "seed": rng,
    }
    write_result(
        adata, _keys.FEATURE_GENES, {**model.params, **sae.params, **params}, key_added=key_added, genes=table
    )


def _genes(
    found: GeneChanges, features: np.ndarray, model: MaxTokiModel, n_genes: int
) -> tuple[pd.DataFrame, float]:
    """Genes that become more and less likely, and how well the direction alone says which."""
    ids = model.vocab.gene_ids
    n = np.maximum(found.n_places, 1)[:, None]
    change, direct = found.change[:, ids] / n, found.direct[:, ids]
    null_sd = np.sqrt(found.null_square[:, ids] / N_NULL) / n
    names = symbol_of_gene()
    rows, correlation = [], []
    for i, feature in enumerate(features):
        if not found.n_places[i]:
            continue
        correlation.append(stats.pearsonr(change[i], direct[i]).statistic)
        order = np.argsort(change[i], kind="stable")
        for direction, chosen in (("up", order[::-1][:n_genes]), ("down", order[:n_genes])):
            genes = model.vocab.gene_of_token[ids[chosen]]
            rows.append(
                pd.DataFrame(
                    {
                        "feature": feature,
                        "direction": direction,
                        "gene": genes,
                        "symbol": names.reindex(genes).fillna("").to_numpy(),
                        "change": change[i, chosen],
                        "null_sd": null_sd[i, chosen],
                        "z": change[i, chosen] / np.maximum(null_sd[i, chosen], 1e-12),
                        "direct": direct[i, chosen],
                        "n_places": found.n_places[i],
                    }
                )
            )
    return pd.concat(rows, ignore_index=True), float(np.mean(correlation))
