"""Where cells are steered to: cells, and how far each is from the target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from ..models.embedding import embed_sequences
from ..models.model import MaxTokiModel, require_model
from ..models.prompts import Prompts, write_prompts
from ..models.sequences import Sequences
from ..models.timelapse import read_lapses, require_temporal
from ..pp._design import get_labels, get_mask
from ..pp.sample_prompts import read_prompts
from ..results.store import read_result
from ._cells import get_sequences
from ._edit_readouts import read_likelihoods
from ._time_unit import check_unit

READOUTS = ("timelapse", "embedding", "likelihood")
# Nats that a unit of the distance is worth, unless given.
STRENGTH = {"timelapse": 1.0, "embedding": 100.0, "likelihood": 100.0}
_WHOLE = 1 << 30  # tokens: no cell is longer


class Steered(NamedTuple):
    """Cells to steer."""

    table: pd.DataFrame
    """One row a cell: `query`, its name, and `donor` where known."""
    rows: np.ndarray
    """int64: rows in the AnnData."""
    whole: Sequences
    """All genes of the cells, not only those that the model reads."""
    distance: Callable[[Sequences, np.ndarray], np.ndarray]
    """Distance of cells, in place of the cells of these numbers, from the target; float64."""
    unit: str
    """Of the distance."""
    n_anchors: int


def get_steered(
    adata: AnnData,
    model: MaxTokiModel,
    *,
    readout: str,
    use: str | Sequence[bool] | None,
    reference: str | Sequence[bool] | None,
    n_cells: int | None,
    n_anchors: int,
    key: str | None,
    donor_key: str | None,
    rng: int,
) -> Steered:
    """Choose the cells, and set up the distance."""
    require_model(model)
    if readout not in READOUTS:
        raise ValueError(f"There is no readout {readout!r}; choose from {', '.join(READOUTS)}.")
    cells = get_sequences(adata, model)
    mask = get_mask(adata, use, "use")
    if readout == "timelapse":
        if reference is not None:
            raise ValueError(
                'readout="timelapse" steers to a shorter lapse and has no reference cells. Leave reference out, or set '
                'readout="embedding".'
            )
        table, prompts = _prompts(adata, model, mask, key, n_cells, rng)
        rows = prompts.query

        def distance(changed: Sequences, of: np.ndarray) -> np.ndarray:
            asked = prompts[of]._replace(query=np.arange(len(of)))
            written = write_prompts(
                asked, cells, model.vocab, max_length=model.max_length, answer=False, queries=changed
            )
            return read_lapses(model, written.sequences)[0].astype(float)

        unit, n_anchors = model.time_head.unit, 0
    else:
        if reference is None:
            raise ValueError(
                f"readout={readout!r} needs cells of the state to steer to: reference=, a boolean column of .obs."
            )
        aim = get_mask(adata, reference, "reference")
        if not aim.any():
            raise ValueError("There is no reference cell.")
        if use is not None and (mask & aim).any():
            raise ValueError(
                f"{(mask & aim).sum()} cells are both to be steered and cells of the target state: a cell would be led to itself."
            )
        table, rows = _cells(adata, mask & ~aim, donor_key, n_cells, rng)
        aims = np.flatnonzero(aim)
        states = embed_sequences(model, cells.take(aims)).cells.astype(float)
        chosen = anchors_of(states, n_anchors, rng)
        n_anchors = len(chosen)
        if readout == "embedding":
            distance, unit = _embedding_distance(model, states, chosen), "spread of the target"
        else:
            distance = _likelihood_distance(model, cells.take(aims[chosen]))
            unit = "nats a gene"
    whole = get_sequences(adata[rows].copy(), model, max_length=_WHOLE)
    return Steered(table.reset_index(drop=True), rows, whole, distance, unit, n_anchors)


def anchors_of(states: np.ndarray, n: int, rng: int) -> np.ndarray:
    """Cells in the middle of clusters: the nearest to each of the means of n clusters (k-means)."""
    from sklearn.cluster import KMeans

    if n < 1:
        raise ValueError(f"n_anchors must be at least 1, got {n}.")
    if len(states) <= n:
        return np.arange(len(states))
    centres = KMeans(n, n_init=4, random_state=rng).fit(states).cluster_centers_
    return np.unique(_squared(centres, states).argmin(axis=1))


def _squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distances between rows."""
    found = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
    return np.maximum(found, 0)


def _embedding_distance(model: MaxTokiModel, states: np.ndarray, chosen: np.ndarray):
    anchors = states[chosen]
    others = np.delete(states, chosen, axis=0)
    near = (
        np.sqrt(_squared(others, anchors).min(axis=1)) if len(others) else np.sqrt(_squared(anchors, anchors))
    )
    scale = float(near.mean()) or 1.0

    def distance(changed: Sequences, of: np.ndarray) -> np.ndarray:
        found = embed_sequences(model, changed).cells.astype(float)
        return np.sqrt(_squared(found, anchors).min(axis=1)) / scale

    return distance


def _likelihood_distance(model: MaxTokiModel, anchors: Sequences):
    n = len(anchors)
    if model.cell_length + anchors.lengths.max() > model.max_length:
        raise ValueError(
            f"{model.name!r} reads {model.max_length} tokens at once, too few for two cells of {model.cell_length}: "
            'set readout="embedding".'
        )

    def distance(changed: Sequences, of: np.ndarray) -> np.ndarray:
        cell = np.repeat(np.arange(len(of)), n)
        after = anchors.take(np.tile(np.arange(n), len(of)))
        return -read_likelihoods(model, changed.take(cell), after).reshape(-1, n).mean(axis=1)

    return distance


def _prompts(adata, model, mask, key, n_cells, rng) -> tuple[pd.DataFrame, Prompts]:
    """Prompts of distinct query cells."""
    require_temporal(model)
    stored = read_result(adata, key or _keys.PROMPTS, "mt.pp.sample_prompts(adata, ...)")
    params, table = stored["params"], stored["prompts"]
    if params["task"] != "timelapse" or params["queries_elsewhere"]:
        raise ValueError(
            "Steering to a time needs prompts that ask for the lapse to query cells of the same AnnData."
        )
    read_as = check_unit(params["time_key"], table["time"], model.time_head.unit)
    first = ~table["query"].duplicated().to_numpy()
    used = np.flatnonzero(first & mask[adata.obs_names.get_indexer(table["query"]).clip(min=0)])
    table = table.iloc[_draw(used, n_cells, rng)].copy()
    table.attrs["time_read_as"] = read_as
    return table, read_prompts(table, adata, adata)


def _cells(adata, mask, donor_key, n_cells, rng) -> tuple[pd.DataFrame, np.ndarray]:
    rows = _draw(np.flatnonzero(mask), n_cells, rng)
    table = pd.DataFrame({"query": adata.obs_names[rows].to_numpy(dtype=object)})
    if donor_key is not None:
        table["donor"] = get_labels(adata, donor_key)[rows]
    return table, rows


def _draw(rows: np.ndarray, n: int | None, rng: int) -> np.ndarray:
    if not len(rows):
        raise ValueError("There is no cell to steer.")
    if n is not None and n < 1:
        raise ValueError(f"n_cells must be at least 1, got {n}.")
    if n is None or n >= len(rows):
        return rows
    return np.sort(np.random.default_rng(rng).permutation(rows)[:n])
