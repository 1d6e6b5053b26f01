"""Prompts: which cells, in which order, with which lapses between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from .._recipes import Checked
from .._validate import require_unique_names
from .._warn import warn
from ..models.prompts import Prompts
from ..results.store import write_result
from ._columns import find_columns, unit_in_name
from ._design import as_list, get_groups, get_labels, get_mask, get_times, known_cells
from ._sampling import Sampler, as_sizes
from .parse_age import time_in_numbers

TASKS = ("timelapse", "cell")


@dataclass(frozen=True, kw_only=True)
class PromptSampling(Checked):
    """How cells and times of a prompt are drawn; `mt.train.TemporalPrompts` has the same settings.

    Attributes
    ----------
    zero_lapse
        "never": the query's time is that of no context cell; "query": it may be; "anywhere": two cells of the
        context may also share a time. No cell is ever both context and query.
    forward
        Whether times never decrease within a prompt. Otherwise contexts are in random order, and lapses may
        be negative.
    balance
        From 0, groups are drawn as often as they have cells, to 1, all equally often.
    """

    zero_lapse: str = "query"
    forward: bool = False
    balance: float = 0.1


def sample_prompts(
    adata: AnnData,
    *,
    time_key: str | None = None,
    groupby: str | Sequence[str] | None = None,
    task: str = "timelapse",
    n_prompts: int = 1000,
    context_size: int | tuple[int, int] = (2, 3),
    contexts: str | Sequence[bool] | None = None,
    queries: str | Sequence[bool] | None = None,
    donor_key: str | None = None,
    sampling: PromptSampling | None = None,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Draw prompts: context cells of one group at several times, and a query cell of that group.

    Parameters
    ----------
    adata
        Cells.
    time_key
        Column of `.obs` with the time, in whole units (age in months, hours of a course); text is read by
        `mt.pp.parse_age` as ages in months. This, the cell type (for `groupby`) and the donor are guessed
        from the names in `.obs` where they are `None`, with a warning that says which were taken.
    groupby
        Column or columns of `.obs`: all cells of a prompt agree in them, e.g. ["cell_type", "sex"]. `[]`
        for one group. Cells without a group, a time or (with `donor_key`) a donor are left out.
    task
        "timelapse": the query cell is given and the lapse asked for; "cell": the reverse.
    n_prompts
        Prompts to draw.
    context_size
        Context cells a prompt, or the fewest and the most. They are at distinct times (see
        `mt.pp.PromptSampling`); a group with fewer times gives shorter prompts.
    contexts, queries
        Cells that may serve as context, and as query: boolean column of `.obs`, or one boolean a cell. All by
        default. With `mt.pp.hold_out`, `queries="held_out_donors"` and `contexts="held_out"` keep training
        cells out of the prompts.
    donor_key
        Column of `.obs` with the donor, kept for donor-level intervals; guessed, and none is fine.
    sampling
        How cells and times are drawn: `mt.pp.PromptSampling(balance=1)` for all groups equally often.
    rng
        Seed. Prompt i depends on the seed, the cells and i only, not on how many are drawn or how the cells
        are ordered.
    key_added
        Key in `.uns`, by default "prompts".

    Returns
    -------
    `None`. Writes the table `prompts` to `.uns["prompts"]`, a row a prompt:

    `context_0`, `context_1`, ...
        Names of the context cells, in order; "" after the last one.
    `lapse_0`, `lapse_1`, ...
        Time from each context cell to the next, in the unit of the cells' times; NaN after the last one.
    `query`
        Name of the query cell.
    `lapse`
        Time from the last context cell to the query, in the same unit; negative if the query is earlier.
    `group`
        What all cells of the prompt agree in: the values of the grouping columns, joined by " | ".
    `time`
        Time of the query cell.
    `donor`, `donor_0`, `donor_1`, ...
        Donor of the query and of each context cell, if `donor_key` was given.

    Raises
    ------
    KeyError
        If a column is missing.
    ValueError
        If times are not whole numbers, or no group has enough times and cells.

    Notes
    -----
    The prompts are those of the original's paragraph assembler, without its defects: a cell is never both
    context and query, donors can be held out, and `balance` acts on shares (there on counts, where it does
    next to nothing).

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10, n_genes=500)
    >>> mt.pp.sample_prompts(adata, time_key="age_months", groupby="cell_type", n_prompts=20)
    >>> mt.get.table(adata, "prompts").columns[:3].tolist()
    ['context_0', 'context_1', 'context_2']
    """
    require_unique_names(adata)
    if task not in TASKS:
        raise ValueError(f"There is no task {task!r}; choose from {', '.join(TASKS)}.")
    size = as_sizes(context_size)
    how = {name: getattr(sampling or PromptSampling(), name) for name in PromptSampling.names()}
    columns = find_columns(
        adata.obs, optional=("donor_key",), time_key=time_key, groupby=groupby, donor_key=donor_key
    )
    groupby, donor_key = columns["groupby"], columns["donor_key"]
    time_key = time_in_numbers(adata, columns["time_key"], "months")
    cells, rows = known_cells(adata, time_key, groupby, donor_key)
    group, names = get_groups(cells, groupby)
    time = get_times(cells, time_key)
    if unit_in_name(time_key) == "years":
        warn(
            f".obs[{time_key!r}] is in years: only a model that tells time in years reads such prompts. For months, as the demo "
            f"model: adata.obs['in_months'] = adata.obs[{time_key!r}] * 12."
        )
    sampler = Sampler(
        group,
        time,
        contexts=get_mask(adata, contexts, "contexts")[rows],
        queries=get_mask(adata, queries, "queries")[rows],
        context_size=size,
        seed=rng,
        **how,
    )
    drawn = sampler.draw(0, n_prompts)
    table = prompt_table(drawn, cells, cells)
    table["group"] = np.array(names, dtype=object)[group[drawn.query]]
    table["time"] = time[drawn.query]
    if donor_key is not None:
        add_donors(table, drawn, get_labels(cells, donor_key))
    params = {
        "time_key": time_key,
        "groupby": as_list(groupby),
        "task": task,
        "n_prompts": n_prompts,
        "n_left_out": adata.n_obs - len(rows),
        "context_size": size,
        "contexts": name_mask(contexts),
        "queries": name_mask(queries),
        **how,
        "donor_key": donor_key,
        "seed": rng,
        "queries_elsewhere": False,
    }
    write_result(adata, _keys.PROMPTS, params, key_added=key_added, prompts=table)


def name_mask(mask: str | Sequence[bool] | None) -> str:
    """What parameters say of a mask, which would be too long for them."""
    return mask if isinstance(mask, str) else "all" if mask is None else "mask"


def add_donors(table: pd.DataFrame, prompts: Prompts, donor: np.ndarray) -> None:
    """Donor of the query and of each context cell; "" after the last one."""
    donor = np.append(donor, "")
    table["donor"] = donor[prompts.query]
    for i, context in enumerate(prompts.context.T):
        table[f"donor_{i}"] = donor[context]


def prompt_table(prompts: Prompts, adata: AnnData, queries: AnnData) -> pd.DataFrame:
    """Prompts with cell names; "" and NaN after the last context cell."""
    names = np.append(adata.obs_names.to_numpy(dtype=object), "")
    columns = {f"context_{i}": names[rows] for i, rows in enumerate(prompts.context.T)}
    size = prompts.context_size
    for i, steps in enumerate(prompts.steps.T):
        columns[f"lapse_{i}"] = np.where(i + 1 < size, steps.astype(float), np.nan)
    columns["query"] = queries.obs_names.to_numpy(dtype=object)[prompts.query]
    columns["lapse"] = prompts.lapse
    return pd.DataFrame(columns)


def read_prompts(
    table: pd.DataFrame, adata: AnnData, queries: AnnData, *, task: str = "timelapse"
) -> Prompts:
    """Prompts with cell rows, from their table."""
    n_context = sum(name.startswith("context_") for name in table.columns)
    needed = [f"context_{i}" for i in range(n_context)] + [f"lapse_{i}" for i in range(n_context - 1)]
    if missing := [name for name in [*needed, "query", "lapse"] if name not in table]:
        raise KeyError(f"The prompts lack the column {missing[0]!r}. Draw them again: mt.pp.sample_prompts.")
    context = np.stack([_rows(table[f"context_{i}"], adata) for i in range(n_context)], axis=1)
    steps = [table[f"lapse_{i}"].fillna(0).to_numpy().astype(np.int64) for i in range(n_context - 1)]
    return Prompts(
        context,
        _rows(table["query"], queries),
        np.stack(steps, axis=1) if steps else np.zeros((len(table), 0), np.int64),
        table["lapse"].to_numpy().astype(np.int64),
        np.full(len(table), task == "timelapse"),
    )


def _rows(names: pd.Series, adata: AnnData) -> np.ndarray:
    names = names.to_numpy(dtype=object)
    rows = adata.obs_names.get_indexer(names)
    if (missing := (rows < 0) & (names != "")).any():
        raise KeyError(
            f"{missing.sum()} cells of the prompts are not in the AnnData (first: {names[missing][0]!r}): it was subset "
            "since, they lack a donor, group or time, or the query cells are elsewhere (queries=...). Draw the prompts again: mt.pp.sample_prompts."
        )
    return rows.astype(np.int64)
