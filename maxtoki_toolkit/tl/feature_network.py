"""Which features make which others: a directed network across the blocks of a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import stats

from .. import _keys
from ..models.feature_edits import require_features
from ..models.feature_network import feature_edges, require_later
from ..models.features import mean_activity
from ..models.model import MaxTokiModel
from ..models.sae import SparseAutoencoder, require_sae
from ..pp._columns import find_donors
from ..pp._design import get_labels, known_cells
from ..results.store import write_result
from ..stats.fdr import benjamini_hochberg
from ._cells import get_sequences
from .feature_effects import N_NULL

_BLOCKS = 20  # of cells, where donors are not known


def feature_network(
    adata: AnnData,
    model: MaxTokiModel,
    sae: SparseAutoencoder,
    *,
    later: SparseAutoencoder,
    features: Sequence[int] | Sequence[Sequence[int]] | None = None,
    n_features: int = 200,
    step: float = 0.1,
    alpha: float = 0.05,
    n_cells: int | None = 200,
    donor_key: str | None = None,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Scale features at one place of the model and read those at a later place: directed, signed edges.

    Parameters
    ----------
    adata
        Rank-encoded cells.
    model
        Model.
    sae, later
        Autoencoders of an earlier and a later place of this model.
    features
        Numbers of the features of `sae` that are scaled. Lists of numbers, such as families of
        `mt.tl.feature_families`, are each scaled together, as one source: as many fewer passes as there are
        fewer sources.
    n_features
        If none are named, how many: those with most activation in these cells.
    step
        By how much of itself a feature is scaled, up and down.
    alpha
        Edges up to this q value are kept.
    n_cells
        Cells to read, drawn at random where there are more; `None` for all.
    donor_key
        Column of `.obs` with the donor, guessed from its name; without one, cells are taken in 20 blocks.
    rng
        Seed of the cells and of the random directions.
    key_added
        Key in `.uns`, by default "feature_network".

    Returns
    -------
    `None`. Writes to `.uns["feature_network"]` the tables

    `edges`
        A row an edge, the largest first:

        `source`, `target`
            Number of a feature of `sae` (of a list, from 0, if lists were given) and of a feature of `later`.
        `effect`, `effect_low`, `effect_high`
            How fast the target's activation, averaged over all genes of a cell, changes as the source is
            scaled (in units of the activation; at 1, doubling the source would add 1); mean over donors, with
            its 95% interval.
        `p_value`, `q_value`
            Two-sided t test over donors; corrected for all pairs of features (Benjamini and Hochberg).
        `null_share`
            Share of the random directions' effects, for their length, that are at least as large.
    `null_edges`
        The edges (`source`, `target`, `effect`) of random directions in place of the sources', four of each
        (`direction`), kept by the same rule: `mt.tl.driver_features` compares with them.
    `sources`
        A row a feature of `sae` that was scaled, or a list: `feature` (its number), `features` (which were
        scaled together), `activation` (mean over genes), `norm` (length of what it adds to a cell),
        `n_edges`, `strength` (sum of the sizes of its effects, also of those that are not kept) and
        `null_strength` (mean of the random directions of its length).
    `targets`
        A row a feature of `later`: `feature`, `activation`, `n_edges`, `strength`.

    Raises
    ------
    ValueError
        If the autoencoders are of another model, or `later` is not of a later place.

    Notes
    -----
    Each source is scaled to 1 + step and 1 - step of itself at all genes of a cell at once; half the
    difference over the step is its effect. Only the blocks between both places are computed. Four directions
    drawn at random for each source, as long at the same genes, are the null of what any change would do:
    donors agree on those effects, too, so that the p value says that an edge is there, and `null_share`
    whether it is more than a push of that length.

    Families, as sources: `found = mt.get.table(adata, "feature_families", "features").query("family >= 0")`,
    and `features=found.groupby("family")["feature"].agg(list).tolist()`.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.load("heart_nuclei")[:20].copy()
    >>> model = mt.load_model("demo")
    >>> mt.pp.rank_value_encode(adata, model)
    >>> early, late = mt.load_sae("demo-early"), mt.load_sae("demo")
    >>> mt.tl.feature_network(adata, model, early, later=late, n_features=20, n_cells=10)
    >>> len(mt.get.table(adata, "feature_network", "sources"))
    20
    """
    for coder in (sae, later):
        require_sae(coder, model)
    require_later(sae.site, later.site)
    if not step:
        raise ValueError("step must be above 0: nothing would be scaled.")
    donor_key = find_donors(adata.obs, donor_key)
    cells, _ = known_cells(adata, donor_key)
    rows = np.arange(cells.n_obs)
    if n_cells is not None and n_cells < len(rows):
        rows = np.sort(np.random.default_rng(rng).choice(rows, n_cells, replace=False))
    unit = np.arange(len(rows)) % _BLOCKS if donor_key is None else get_labels(cells, donor_key)[rows]
    sequences = get_sequences(cells, model).take(rows)
    activity = [mean_activity(model, coder, sequences) for coder in (sae, later)]
    if features is None:
        features = np.sort(np.argsort(-activity[0], kind="stable")[:n_features])
    sources, number = _sources(sae, features)

    names = np.unique(unit)
    total, squares = np.zeros((2, len(sources), later.width))
    null_total, null_squares = np.zeros((2, N_NULL, len(sources), later.width))
    norm = np.zeros(len(sources))
    for name in names:
        mine = np.flatnonzero(unit == name)
        found = feature_edges(
            model, sae, later, sequences.take(mine), sources, step=step, n_null=N_NULL, seed=rng
        )
        total, squares = total + found.effect, squares + found.effect**2
        null_total, null_squares = null_total + found.null, null_squares + found.null**2
        norm += found.norm * len(mine) / len(rows)
    n = len(names)
    mean, null = total / n, null_total / n
    edges = _edges(mean, squares, n, null, norm, number, alpha)
    null_edges = pd.concat(
        [
            _edges(one, square, n, null, norm, number, alpha).assign(direction=i)
            for i, (one, square) in enumerate(zip(null, null_squares, strict=True))
        ],
        ignore_index=True,
    )
    kept = [edges[name].value_counts() for name in ("source", "target")]
    tables = {
        "edges": edges,
        "null_edges": null_edges[["source", "target", "effect", "direction"]],
        "sources": pd.DataFrame(
            {
                "feature": number,
                "features": [", ".join(map(str, source)) for source in sources],
                "activation": [activity[0][source].sum() for source in sources],
                "norm": norm,
                "n_edges": kept[0].reindex(number).fillna(0).astype(int).to_numpy(),
                "strength": np.abs(mean).sum(axis=1),
                "null_strength": np.abs(null).sum(axis=2).mean(axis=0),
            }
        ),
        "targets": pd.DataFrame(
            {
                "feature": np.arange(later.width),
                "activation": activity[1],
                "n_edges": kept[1].reindex(np.arange(later.width)).fillna(0).astype(int).to_numpy(),
                "strength": np.abs(mean).sum(axis=0),
            }
        ),
    }
    params = {
        "unit": "activation",
        "later": later.params["sae"],
        "step": step,
        "alpha": alpha,
        "n_tested": int((mean != 0).sum()),
        "n_null": N_NULL,
        "n_cells": len(rows),
        "n_units": n,
        "donors": "donor" if donor_key else "block of cells",
        "seed": rng,
    }
    write_result(
        adata, _keys.FEATURE_NETWORK, {**model.params, **sae.params, **params}, key_added=key_added, **tables
    )


def _sources(sae: SparseAutoencoder, wanted: Sequence) -> tuple[list[np.ndarray], np.ndarray]:
    """Features of each source, and its number: the feature's own, or that of the list."""
    if not any(np.ndim(one) for one in wanted):
        number = require_features(sae, wanted)
        return list(number[:, None]), number
    sources = [require_features(sae, np.atleast_1d(one)) for one in wanted]
    found = pd.Series(np.concatenate(sources))
    if (again := found[found.duplicated()]).size:
        raise ValueError(f"Feature {again.iloc[0]} is given twice. A feature belongs to one list.")
    return sources, np.arange(len(sources))


def _edges(
    mean: np.ndarray,
    squares: np.ndarray,
    n: int,
    null: np.ndarray,
    norm: np.ndarray,
    sources: np.ndarray,
    alpha: float,
) -> pd.DataFrame:
    """Edges that donors agree on."""
    p_value, reach = np.full(mean.shape, np.nan), np.full(mean.shape, np.nan)
    there = mean != 0
    if n > 2:
        error = np.sqrt(np.maximum(squares / n - mean**2, 0) / (n - 1))
        with np.errstate(divide="ignore"):
            p_value[there] = 2 * stats.t.sf(np.abs(mean[there]) / error[there], n - 1)
        reach = stats.t.ppf(0.975, n - 1) * error
    q_value = benjamini_hochberg(p_value.ravel()).reshape(mean.shape)
    kept = (q_value <= alpha) if n > 2 else there
    i, j = np.nonzero(kept)
    with np.errstate(divide="ignore", invalid="ignore"):
        size, others = np.abs(mean) / norm[:, None], np.abs(null) / norm[:, None]
    others = np.sort(others[np.isfinite(others)])
    at_least = len(others) - np.searchsorted(others, size[i, j] * (1 - 1e-9))
    edges = pd.DataFrame(
        {
            "source": sources[i],
            "target": j,
            "effect": mean[i, j],
            "effect_low": (mean - reach)[i, j],
            "effect_high": (mean + reach)[i, j],
            "p_value": p_value[i, j],
            "q_value": q_value[i, j],
            "null_share": (1 + at_least) / (1 + len(others)),
        }
    )
    return edges.sort_values("effect", key=np.abs, ascending=False, ignore_index=True)
