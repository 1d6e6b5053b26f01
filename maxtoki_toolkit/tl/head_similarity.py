"""Which heads look at the same genes."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.stats import rankdata

from .. import _keys
from ..results.head_sums import head_table
from ..results.store import write_result
from ._head_sums import FLAT, DonorSums, donor_sums, read_attention, unit_name


def head_similarity(
    adata: AnnData,
    *,
    group: str | None = None,
    min_tokens: int = 10,
    key: str | None = None,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Correlate heads by how much of their attention each gene receives beyond its position.

    Parameters
    ----------
    adata
        Cells with a result of `mt.tl.attention`.
    group
        A group of cells to look at; all by default.
    min_tokens
        How often a gene has to be among the tokens.
    key
        Key in `.uns` of the attention, by default "attention".
    rng
        Seed of the halves.
    key_added
        Key in `.uns`, by default "head_similarity".

    Returns
    -------
    `None`. Writes `.uns["head_similarity"]`, of which `mt.get.head_similarity` makes a table of pairs:

    `heads`
        A row a head: `layer`, `head`, `name`; `order`, in which like heads come together; `reliability`, its
        likeness with itself over halves of the donors.
    `similarity`, `raw`, `replicated`
        Heads x heads: Spearman correlation of the genes they look at, without position, with it, and of one
        head in one half of the donors with the other in the other.

    Raises
    ------
    ValueError
        If fewer than ten genes are seen often enough.

    Notes
    -----
    The rate of a gene is the attention it receives over what tokens at the same positions receive; the
    similarity is Spearman's correlation of the rates over genes. `raw` is the same without taking out the
    position, which alone makes heads alike. `replicated` correlates one head in one half of the donors with
    the other in the other half, so that the same cells cannot make them alike; its diagonal is `reliability`,
    which no similarity can much exceed. A head whose rates do not differ between genes has none. Heads are
    ordered by hierarchical clustering (average linkage of 1 - similarity, optimal leaf order).

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.tl.attention(adata, model, donor_key="donor_id", n_cells=3)
    >>> mt.tl.head_similarity(adata)
    >>> mt.get.head_similarity(adata).shape[0]
    120
    """
    result = read_attention(adata, key or _keys.ATTENTION)
    params = result["params"]
    sums = donor_sums(result, group)
    often = sums.total().n_tokens[0] >= min_tokens
    if often.sum() < 10:
        raise ValueError(
            f"{int(often.sum())} genes are seen {min_tokens} times; at least 10 are needed. Read more cells (n_cells of "
            "mt.tl.attention), or lower min_tokens."
        )
    sums = DonorSums(*(part[:, often] for part in sums[:4]), sums.donors)
    total = sums.total()
    similarity = _correlate(total.rates[0], total.rates[0])
    raw = total.mass[0] / total.n_tokens[0][:, None]
    replicated = np.full(similarity.shape, np.nan)
    if len(sums.donors) > 1:
        one, other = (sums.total(rows).rates[0] for rows in sums.halves(rng))
        both = np.isfinite(one).all(axis=1) & np.isfinite(other).all(axis=1)
        if both.sum() >= 10:
            cross = _correlate(one[both], other[both])
            replicated = (cross + cross.T) / 2
    heads = head_table(params)
    names = heads["name"].tolist()
    order = _leaf_order(similarity)
    heads["order"] = np.argsort(order)
    heads["reliability"] = np.diag(replicated)

    settings = {
        "unit": "Spearman correlation",
        "group": group,
        "attention": key or _keys.ATTENTION,
        "min_tokens": min_tokens,
        "n_genes": int(often.sum()),
        "n_units": len(sums.donors),
        "unit_of_inference": unit_name(params),
        "seed": rng,
    }
    write_result(
        adata,
        _keys.HEAD_SIMILARITY,
        settings,
        key_added=key_added,
        heads=heads,
        similarity=pd.DataFrame(similarity, columns=names),
        raw=pd.DataFrame(_correlate(raw, raw), columns=names),
        replicated=pd.DataFrame(replicated, columns=names),
    )


def _correlate(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's correlation of the columns of two tables; NaN where one does not vary but by rounding."""
    ranks = []
    for values in (a, b):
        centred = rankdata(values, axis=0) - (len(values) + 1) / 2
        scale = np.sqrt((centred**2).sum(axis=0))
        flat = values.std(axis=0) < FLAT * np.abs(values).mean(axis=0)
        ranks.append(np.where(flat, np.nan, centred / np.where(scale > 0, scale, 1)))
    return ranks[0].T @ ranks[1]


def _leaf_order(similarity: np.ndarray) -> np.ndarray:
    """Heads from left to right; those without a similarity are alike with none."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    if len(similarity) < 3:
        return np.arange(len(similarity))
    distance = np.maximum(1 - np.nan_to_num(similarity), 0)
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform((distance + distance.T) / 2, checks=False), "average", optimal_ordering=True)
    return leaves_list(tree)
