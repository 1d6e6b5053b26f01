"""What searches of gene sets and the resampling of cells share: cells to steer, and how far each is from the target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from .._features import find_genes
from .._names import require_choice
from .._warn import warn
from ..models.embedding import embed_sequences
from ..models.model import MaxTokiModel
from ..models.prompts import Prompts, write_prompts
from ..models.sequences import Sequences
from ..models.timelapse import read_lapses
from ..pp._design import get_labels, get_mask
from ..stats.donors import unit_name
from ._cells import WHOLE, get_sequences, known_among
from ._edit_readouts import READOUTS, read_likelihoods
from ._lapse_prompts import lapse_prompts
from .recipes import Cells

# Nats that a unit of the distance is worth, unless given.
_STRENGTH = {"timelapse": 1.0, "embedding": 100.0, "likelihood": 100.0}
_RHAT = 1.1
RANKS = 20  # what "activate" moves a gene by, unless told


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
    strength: float
    """Nats that a unit of the distance is worth by default."""
    params: dict[str, Any]
    """What is noted of them."""


def get_steered(
    adata: AnnData,
    model: MaxTokiModel,
    on: Cells | None,
    *,
    readout: str,
    n_cells: int | None,
    n_anchors: int,
    key: str | None,
    rng: int,
) -> Steered:
    """Choose the cells, and set up the distance."""
    require_choice("readout", readout, READOUTS)
    # Prompts know their donors.
    on, adata, row_of = known_among(on, adata, guess=readout != "timelapse")
    if on.groupby is not None:
        raise ValueError("Cells are not steered group by group: groupby has no meaning here.")
    cells = get_sequences(adata, model)
    mask = get_mask(adata, on.use, "use")
    if readout == "timelapse":
        if on.target is not None:
            raise ValueError(
                'readout="timelapse" steers to a shorter lapse and has no target cells. Leave target out, or set '
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
        if on.target is None:
            raise ValueError(
                f"readout={readout!r} needs cells of the state to steer to: on=mt.tl.Cells(target=...), a boolean column "
                "of .obs."
            )
        aim = get_mask(adata, on.target, "target")
        if not aim.any():
            raise ValueError("There is no target cell.")
        if on.use is not None and (mask & aim).any():
            raise ValueError(
                f"{(mask & aim).sum()} cells are both to be steered and cells of the target state: a cell would be led to "
                "itself."
            )
        table, rows = _cells(adata, mask & ~aim, on.donor_key, n_cells, rng)
        aims = np.flatnonzero(aim)
        states = embed_sequences(model, cells.take(aims)).cells.astype(float)
        chosen = anchors_of(states, n_anchors, rng)
        n_anchors = len(chosen)
        if readout == "embedding":
            distance, unit = _embedding_distance(model, states, chosen), "spread of the target"
        else:
            distance = _likelihood_distance(model, cells.take(aims[chosen]))
            unit = "nats a gene"
    whole = get_sequences(adata[rows].copy(), model, max_length=WHOLE)
    table = table.reset_index(drop=True)
    params = {
        "readout": readout,
        "unit": unit,
        "time_read_as": table.attrs.get("time_read_as", ""),
        "n_cells": len(rows),
        "units": unit_name(table),
        "n_anchors": n_anchors,
        "seed": rng,
    }
    return Steered(table, row_of[rows], whole, distance, _STRENGTH[readout], params)


def find_columns(adata: AnnData, model: MaxTokiModel, genes: Sequence[str]) -> np.ndarray:
    """Columns of genes to edit, the first of those with their token."""
    genes = [genes] if isinstance(genes, str) else genes
    token = adata.var[_keys.TOKEN_ID].to_numpy().astype(np.int64)
    found = find_genes(adata, genes) if len(genes) else np.zeros(0, dtype=int)
    if (lost := token[found] < 0).any():
        raise ValueError(
            f"The model's vocabulary lacks the gene {np.asarray(genes)[lost][0]!r}: it cannot read it."
        )
    found = column_of_token(adata, model)[token[found]]
    if len(np.unique(found)) < len(found):
        raise ValueError("A gene is given twice.")
    return found


def column_of_token(adata: AnnData, model: MaxTokiModel) -> np.ndarray:
    """First column of each token, -1 for none."""
    token = adata.var[_keys.TOKEN_ID].to_numpy()
    column = np.full(model.vocab.size, -1)
    has = np.flatnonzero(token >= 0)[::-1]
    column[token[has]] = has
    return column


def warn_of_chains(rhat: float) -> None:
    """Chains that differ have not yet forgotten where they began."""
    if rhat > _RHAT:
        warn(
            f"The chains have not converged (R-hat {rhat:.2f}, {_RHAT} at most is asked for): what they show depends on "
            "where they began. Take more steps (n_steps)."
        )


def anchors_of(states: np.ndarray, n: int, rng: int) -> np.ndarray:
    """Cells in the middle of clusters: the nearest to each of the means of n clusters (k-means)."""
    from sklearn.cluster import KMeans

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
    table, prompts, _ = lapse_prompts(adata, model, key)
    first = ~table["query"].duplicated().to_numpy()
    rows = _draw(np.flatnonzero(first & mask[prompts.query]), n_cells, rng)
    return table.iloc[rows], prompts[rows]


def _cells(adata, mask, donor_key, n_cells, rng) -> tuple[pd.DataFrame, np.ndarray]:
    rows = _draw(np.flatnonzero(mask), n_cells, rng)
    table = pd.DataFrame({"query": adata.obs_names[rows].to_numpy(dtype=object)})
    if donor_key is not None:
        table["donor"] = get_labels(adata, donor_key)[rows]
    return table, rows


def _draw(rows: np.ndarray, n: int | None, rng: int) -> np.ndarray:
    if not len(rows):
        raise ValueError("There is no cell to steer.")
    if n is None or n >= len(rows):
        return rows
    return np.sort(np.random.default_rng(rng).permutation(rows)[:n])
