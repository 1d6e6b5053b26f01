"""Niches as prompts: neighbours as context, and distances in place of times."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from .. import _keys
from .._validate import require_unique_names
from ..models.prompts import Prompts
from ..results.store import write_result
from ._design import get_labels, get_mask
from ._sampling import BLOCK, as_sizes, floor, skip, uniforms
from ._tissue import read_tissue
from .sample_prompts import TASKS, add_donors, name_mask, prompt_table


def spatial_prompts(
    adata: AnnData,
    *,
    library_key: str | None = None,
    donor_key: str | None = None,
    distance_unit: str = "µm",
    n_neighbors: int = 20,
    radius: float | None = None,
    task: str = "timelapse",
    n_prompts: int = 1000,
    context_size: int | tuple[int, int] = (2, 3),
    queries: str | Sequence[bool] | None = None,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Draw niches: some neighbours of a cell from far to near, and the cell itself as the query.

    The time of a cell in such a prompt is minus its distance to the query. A model that was trained on such
    prompts (`mt.train.temporal(prompts=)`) predicts the distance to a cell, or generates the cell expected at
    a location. A model of months refuses them.

    Parameters
    ----------
    adata
        Cells with spatial coordinates in `.obsm["spatial"]` (cells x 2 or 3).
    library_key
        Column of `.obs` with the image or section, guessed from its name; without one, all cells are in one.
    donor_key
        Column of `.obs` with the donor, guessed from its name, kept for donor-level intervals; may be
        missing.
    distance_unit
        Unit of the coordinates. Lapses are whole numbers of it.
    n_neighbors
        Nearest cells of the image among which the context is drawn.
    radius
        In place of `n_neighbors`: all cells as near as this, in `distance_unit`.
    task
        "timelapse": the query cell is given and its distance from the last context cell asked for; "cell":
        the reverse.
    n_prompts
        Prompts to draw.
    context_size
        Context cells a prompt, or the fewest and the most; a cell with fewer neighbours gives shorter
        prompts.
    queries
        Cells that may be the query: boolean column of `.obs`, or one boolean a cell. All by default. Hold out
        whole images: the neighbours of a cell are in its image.
    rng
        Seed. Prompt i depends on the seed, the cells and i only, not on how many are drawn or how the cells
        are ordered.
    key_added
        Key in `.uns`, by default "prompts".

    Returns
    -------
    `None`. Writes the table `prompts` as `mt.pp.sample_prompts` does:

    `lapse_0`, `lapse_1`, ...
        By how much each context cell is nearer to the query than the one before, in `distance_unit`.
    `lapse`
        Distance from the last context cell to the query.
    `group`
        The image.
    `time`
        0, where the query is.

    Raises
    ------
    KeyError
        If there are no coordinates, or a column is missing.
    ValueError
        If no cell that may be the query has enough neighbours, or these are too near for whole numbers.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.tissue(300)
    >>> mt.pp.spatial_prompts(adata, radius=200, n_prompts=20)
    >>> table = mt.get.table(adata, "prompts")
    >>> bool(table["lapse"].between(0, 200).all())
    True
    """
    require_unique_names(adata)
    if task not in TASKS:
        raise ValueError(f"There is no task {task!r}; choose from {', '.join(TASKS)}.")
    size = as_sizes(context_size)
    tissue = read_tissue(adata, library_key=library_key, donor_key=donor_key, distance_unit=distance_unit)
    cells, columns = tissue.cells, tissue.params
    graph = tissue.graph(n_neighbors, radius)
    graph.sort_indices()
    asked = get_mask(adata, queries, "queries")[adata.obs_names.get_indexer(cells.obs_names)]
    candidates = np.flatnonzero(asked & (np.diff(graph.indptr) >= size[0]))
    if not len(candidates):
        raise ValueError(
            f"None of the {asked.sum()} cells that may be the query has {size[0]} neighbours or more. Give a larger "
            "radius, or a smaller context_size."
        )
    query, context = _draw(graph, candidates, n_prompts, size, rng)
    distance = np.linalg.norm(tissue.places[context] - tissue.places[query][:, None], axis=2)
    distance = np.where(context >= 0, distance, -1.0)
    if distance.max() < 1.5:
        raise ValueError(
            f"Neighbours lie at most {distance.max():.3g} {distance_unit} apart, and lapses are whole numbers. Give places in "
            "a finer unit, such as adata.obsm['spatial'] * 1000 for µm of mm."
        )
    # From far to near; what is not there comes last. Equal distances stay in the order of the cells.
    order = np.argsort(-distance, axis=1, kind="stable")
    context, distance = (np.take_along_axis(part, order, axis=1) for part in (context, distance))
    distance = np.rint(distance).astype(np.int64)
    steps = np.where(context[:, 1:] >= 0, distance[:, :-1] - distance[:, 1:], 0)
    last = (context >= 0).sum(axis=1) - 1
    lapse = distance[np.arange(n_prompts), last]
    prompts = Prompts(context, query, steps, lapse, np.full(n_prompts, task == "timelapse"))
    table = prompt_table(prompts, cells, cells)
    image = np.searchsorted(tissue.starts, query, side="right") - 1
    table["group"] = np.array(tissue.images, dtype=object)[image]
    table["time"] = 0.0
    if columns["donor_key"] is not None:
        add_donors(table, prompts, get_labels(cells, columns["donor_key"]))
    params = {
        "time_key": "distance",
        "groupby": [] if columns["library_key"] is None else [columns["library_key"]],
        "task": task,
        "n_prompts": n_prompts,
        "n_left_out": adata.n_obs - cells.n_obs,
        "context_size": size,
        "queries": name_mask(queries),
        "library_key": columns["library_key"],
        "donor_key": columns["donor_key"],
        "distance_unit": distance_unit,
        "n_neighbors": n_neighbors,
        "radius": radius,
        "seed": rng,
        "queries_elsewhere": False,
    }
    write_result(
        adata, _keys.PROMPTS, params, key_added=key_added, function="pp.spatial_prompts", prompts=table
    )


def _draw(
    graph: sp.csr_matrix, candidates: np.ndarray, n: int, size: tuple[int, int], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Query and context (-1 for none) of each prompt; neighbours without replacement."""
    smallest, largest = size
    numbers = np.concatenate([uniforms(seed, block, 2 + largest) for block in range(-(-n // BLOCK))])[:n]
    query = candidates[floor(numbers[:, 0], len(candidates))]
    n_near = np.diff(graph.indptr)[query]
    wanted = np.minimum(smallest + floor(numbers[:, 1], largest - smallest + 1), n_near)
    taken = np.full((n, largest), np.iinfo(np.int64).max)
    for i in range(largest):
        place = skip(floor(numbers[:, 2 + i], np.maximum(n_near - i, 1)), taken[:, :i])
        taken[:, i] = np.where(i < wanted, place, taken[:, i])
    there = np.arange(largest) < wanted[:, None]
    context = graph.indices[graph.indptr[query][:, None] + np.where(there, taken, 0)]
    return query, np.where(there, context, -1)
