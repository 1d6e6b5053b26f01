"""Ages read from cells, after context cells of donors whose age is known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .._recipes import Checked
from ..models.model import MaxTokiModel
from ..models.prompts import Prompts, write_prompts
from ..models.sequences import Sequences
from ..models.timelapse import read_lapses
from ..stats.mixed_model import Readings


@dataclass(frozen=True, kw_only=True)
class AgeSampling(Checked):
    """How many cells ages are read from, in `mt.tl.predict_age` and `mt.tl.age_acceleration`.

    Attributes
    ----------
    n_cells
        Cells of each donor and group, at most: the queries of an age acceleration, and the reference cells that
        predicted ages are calibrated with.
    n_contexts
        Contexts that each cell is read after, of the cell's group and never of its own donor.
    context_size
        Context cells, of donors of distinct ages.
    """

    n_cells: int = 20
    n_contexts: int = 4
    context_size: int = 3


def draw_contexts(
    rows: np.ndarray, donor: np.ndarray, time: np.ndarray, *, n: int, size: int, seed: Sequence[int]
) -> list[np.ndarray]:
    """Draw context cells of distinct donors and ages, each donor about as often as any other.

    Parameters
    ----------
    rows
        Cells to draw from, all of one group, in an order that does not depend on the file.
    donor, time
        Donor and time of every cell (not of `rows` alone).
    n, size
        Contexts, and cells of each; less where there are too few donors or ages.
    seed
        Seed.
    """
    rng = np.random.default_rng(seed)
    donors = np.unique(donor[rows])
    cells = {name: rows[donor[rows] == name] for name in donors}
    # A donor who is in every context could not be asked about.
    size = max(min(size, (len(donors) - 1) // 2, len(np.unique(time[rows]))), 1)
    contexts, waiting = [], []
    for _ in range(n if len(donors) > 1 else 0):
        context, ages = [], set()
        while len(context) < size:
            waiting = waiting or [name for name in rng.permutation(donors) if name not in context]
            name = waiting.pop()
            age = int(time[cells[name][0]])
            if age not in ages:
                context.append(name)
                ages.add(age)
        contexts.append(np.array([rng.choice(cells[name]) for name in context], dtype=np.int64))
    return contexts


def read_ages(
    model: MaxTokiModel,
    sequences: Sequences,
    asked: Iterable[tuple[np.ndarray, list[np.ndarray]]],
    donor: np.ndarray,
    time: np.ndarray,
) -> Readings:
    """Read the age of query cells (by row) after contexts, all at once, so that what prompts share is computed once.

    Parameters
    ----------
    model, sequences
        A temporal model, and all cells.
    asked
        For each group, rows of its query cells, and its contexts. A context with a cell of the query's donor is
        left out for this query.
    donor, time
        Donor and time of every cell.
    """
    contexts = [(queries, context) for queries, several in asked for context in several]
    width = max((len(context) for _, context in contexts), default=1)
    table = [np.zeros((0, width), np.int64)]
    query, number = ([np.zeros(0, np.int64)] for _ in range(2))
    for i, (queries, context) in enumerate(contexts):
        others = queries[~np.isin(donor[queries], donor[context])]
        padded = np.pad(context, (0, width - len(context)), constant_values=-1)
        table.append(np.tile(padded, (len(others), 1)))
        query.append(others)
        number.append(np.full(len(others), i))
    table, query, number = (np.concatenate(parts) for parts in (table, query, number))
    if not len(query):
        return Readings(np.zeros(0), query, number)
    known = np.where(table >= 0, time[table], 0)
    last = known[np.arange(len(table)), (table >= 0).sum(axis=1) - 1]
    steps = np.where(table[:, 1:] >= 0, np.diff(known, axis=1), 0)
    prompts = Prompts(table, query, steps, time[query] - last, np.ones(len(query), dtype=bool))
    written = write_prompts(prompts, sequences, model.vocab, max_length=model.max_length, answer=False)
    lapse, _ = read_lapses(model, written.sequences)
    return Readings(last + lapse.astype(float), query, number)
