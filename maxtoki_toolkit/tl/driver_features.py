"""Which features start what others follow: PageRank on the reversed network of features."""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from .. import _keys
from ..results.store import read_result, write_result
from ..stats.drivers import DAMPING, pagerank_drivers, replaced_rows, square
from ..stats.fdr import benjamini_hochberg


def driver_features(
    adata: AnnData,
    *,
    key: str | None = None,
    damping: float = DAMPING,
    key_added: str | None = None,
) -> None:
    """Rank the features of a network by how much starts from them.

    Parameters
    ----------
    adata
        Cells with a result of `mt.tl.feature_network`.
    key
        Key in `.uns` of the network, by default "feature_network".
    damping
        Of PageRank.
    key_added
        Key in `.uns`, by default "driver_features".

    Returns
    -------
    `None`. Writes the table `features` to `.uns["driver_features"]`, a row a source, the highest score first:

    `feature`, `pagerank`
        Number, and score: all add up to 1 with those of the targets.
    `null_pagerank`
        Score if the feature's edges are those of a random direction of its length; mean over its directions.
    `p_value`, `q_value`
        Share of all random directions, `params["n_null"]` of them, whose score is at least as high; corrected
        for the features (Benjamini and Hochberg).
    `n_edges`, `strength`, `activation`
        What is simpler: how many edges start there, the sum of their sizes, how active the feature is.
    `null_strength`
        Mean strength of random directions of the same length.

    Raises
    ------
    KeyError
        If there is no network.
    ValueError
        If it has no edges.

    Notes
    -----
    Edges are reversed, so that what starts effects scores high and not where they end; their weights are the
    sizes of the effects. No p is below 1 / (1 + n_null): with n features, 20 n / (1 + n_null) have to exceed
    all random directions before they have q < 0.05, that is five of any number. `params["r_strength"]`,
    `params["r_activation"]` and `params["r_n_edges"]` are the rank correlations of the score with the simpler
    ones: near 1, the score says no more than they do.

    On random linear circuits with cycles, whose true drivers are known, the strength is the better guide:
    rank correlation 0.87 with the total effect, PageRank 0.75 (`benchmarks/sae.py`).

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.load("heart_nuclei")[:20].copy()
    >>> model = mt.load_model("demo")
    >>> mt.pp.rank_value_encode(adata, model)
    >>> early, late = mt.load_sae("demo-early"), mt.load_sae("demo")
    >>> mt.tl.feature_network(adata, model, early, later=late, n_features=20, n_cells=10)
    >>> mt.tl.driver_features(adata)
    >>> len(mt.get.table(adata, "driver_features"))
    20
    """
    result = read_result(
        adata, key or _keys.FEATURE_NETWORK, "mt.tl.feature_network(adata, model, sae, later=...)"
    )
    edges, sources, targets = result["edges"], result["sources"], result["targets"]
    if not len(edges):
        raise ValueError(
            "The network has no edges: no effect that donors agree on. Read more cells, or raise alpha in mt.tl.feature_network."
        )
    weight, others = _weights(edges, sources, targets), result["null_edges"]
    score = pagerank_drivers(square(weight), damping)[: len(sources)]
    null = np.array(
        [
            replaced_rows(weight, _weights(others[others["direction"] == i], sources, targets), damping)
            for i in range(int(result["params"]["n_null"]))
        ]
    )
    at_least = null.size - np.searchsorted(np.sort(null, axis=None), score * (1 - 1e-9))
    p_value = (1 + at_least) / (1 + null.size)
    table = pd.DataFrame(
        {
            "feature": sources["feature"].to_numpy(),
            "pagerank": score,
            "null_pagerank": null.mean(axis=0),
            "p_value": p_value,
            "q_value": benjamini_hochberg(p_value),
        }
    )
    for name in ("n_edges", "strength", "activation", "null_strength"):
        table[name] = sources[name].to_numpy()
    params = {"damping": damping, "n_null": null.size}
    for name in ("strength", "activation", "n_edges"):
        varies = table["pagerank"].nunique() > 1 and table[name].nunique() > 1
        params[f"r_{name}"] = (
            float(table["pagerank"].corr(table[name], method="spearman")) if varies else np.nan
        )
    table = table.sort_values("pagerank", ascending=False, ignore_index=True)
    write_result(adata, _keys.DRIVER_FEATURES, params, key_added=key_added, features=table)


def _weights(edges: pd.DataFrame, sources: pd.DataFrame, targets: pd.DataFrame) -> sp.csr_matrix:
    """Sizes of the effects, sources x targets."""
    row = pd.Index(sources["feature"]).get_indexer(edges["source"])
    column = pd.Index(targets["feature"]).get_indexer(edges["target"])
    size = np.abs(edges["effect"].to_numpy(dtype=float))
    return sp.csr_matrix((size, (row, column)), shape=(len(sources), len(targets)))
