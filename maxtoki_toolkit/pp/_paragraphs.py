"""Prompts as the original's paragraphs: tokens, and which cells at which times they are of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from .._arrow import columns_of, dataset_writer, lists, require_pyarrow
from .._progress import progress
from ..models.model import MaxTokiModel
from ..models.prompts import Prompts, write_prompts
from ..models.sequences import Sequences

NO_GROUP = "__NO_TIME_GROUP__"
INDICES, STEPS, TIMES = "cell_indices", "timesteps", "time_choices"
DATASET, GROUP, ANSWER, CLIPPED = "dataset_order", "timegroup_order", "response_len", "n_clipped"
_BLOCK = 1024  # paragraphs a record of Arrow


def write_rows(
    folder: Path,
    table: pd.DataFrame,
    prompts: Prompts,
    cells: Sequences,
    model: MaxTokiModel,
    *,
    rows: np.ndarray,
    params: Mapping[str, object],
) -> None:
    """Write paragraphs with their answers as a folder of `datasets`.

    Parameters
    ----------
    folder
        An empty folder.
    table
        The prompts, as of `mt.pp.sample_prompts`.
    prompts
        The same, with rows of `cells`.
    cells
        The cells as sequences.
    model
        Its tokens, and how many it reads.
    rows
        Row of each cell in the data that paragraphs refer to.
    params
        How the prompts were drawn.
    """
    pa = require_pyarrow()
    known = pa.table(columns_of(table[["query", "lapse", *(["donor"] if "donor" in table else [])]]))
    n, size = len(table), prompts.context_size
    every = np.concatenate([prompts.context, prompts.query[:, None]], axis=1) >= 0
    indices = np.concatenate([prompts.context, prompts.query[:, None]], axis=1)
    steps = np.concatenate([prompts.steps, np.zeros((n, 1), np.int64)], axis=1)
    steps[np.arange(n), size - 1] = prompts.lapse
    among = np.arange(steps.shape[1]) < size[:, None]
    # The time of a cell is that of the query less all lapses after it.
    until = np.cumsum((steps * among)[:, ::-1], axis=1)[:, ::-1]
    times = table["time"].to_numpy().astype(np.int64)[:, None] - np.concatenate(
        [until, np.zeros((n, 1), np.int64)], axis=1
    )
    types = {
        DATASET: pa.int64(),
        GROUP: pa.string(),
        **dict.fromkeys((INDICES, STEPS, TIMES), pa.list_(pa.int64())),
    }
    types |= {"input_ids": pa.list_(pa.int32()), ANSWER: pa.int64(), CLIPPED: pa.int64()}
    schema = pa.schema([*types.items(), *known.schema.remove_metadata()])
    note = {"vocabulary_sha256": model.vocab.sha256, "prompts": dict(params)}
    with (
        dataset_writer(folder, schema, note) as writer,
        progress(total=n, desc="Writing paragraphs", unit="prompt") as bar,
    ):
        for start in range(0, n, _BLOCK):
            part = slice(start, start + _BLOCK)
            written = write_prompts(prompts[part], cells, model.vocab, max_length=model.max_length)
            length = written.sequences.lengths
            columns = {
                DATASET: pa.array(np.zeros(len(length), np.int64)),
                GROUP: pa.array(table["group"].iloc[part].astype(str).to_numpy(dtype=object), pa.string()),
                INDICES: lists(rows[indices[part][every[part]]].astype(np.int64), size[part] + 1),
                STEPS: lists(steps[part][among[part]], size[part]),
                TIMES: lists(times[part][every[part]], size[part] + 1),
                "input_ids": lists(written.sequences.tokens, length),
                ANSWER: pa.array(length - written.eoq - 1),
                CLIPPED: pa.array(written.n_clipped),
            }
            columns |= {name: known[name].slice(start, _BLOCK) for name in known.column_names}
            writer(pa.table(columns))
            bar.update(len(length))


def ragged(parts: list, name: str, path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Lists of whole numbers, one after the other, and their lengths."""
    lengths = np.array([len(part) for part in parts], dtype=np.int64)
    flat = np.array([value for part in parts for value in part])
    if flat.dtype.kind not in "iu" and len(flat):
        raise ValueError(f"{name} in {path} are no whole numbers.")
    return flat.astype(np.int64), lengths


def as_prompts(
    indices: tuple[np.ndarray, np.ndarray],
    steps: tuple[np.ndarray, np.ndarray],
    *,
    timelapse: bool,
    complain: Callable,
) -> Prompts:
    """Prompts of lists of cells, the last of each the query, and of lapses between them."""
    n_cells = indices[1]
    if (n_cells < 2).any() or not np.array_equal(steps[1], n_cells - 1):
        raise complain(
            f"{INDICES} and {STEPS} do not fit together: n cells, 2 or more, have n - 1 lapses between them"
        )
    width = int(n_cells.max())
    cells = np.full((len(n_cells), width), -1, dtype=np.int64)
    lapses = np.zeros((len(n_cells), width - 1), dtype=np.int64)
    cells[np.arange(width) < n_cells[:, None]] = indices[0]
    lapses[np.arange(width - 1) < (n_cells - 1)[:, None]] = steps[0]
    row, last = np.arange(len(n_cells)), n_cells - 1
    query, lapse = cells[row, last], lapses[row, last - 1]
    cells[row, last], lapses[row, last - 1] = -1, 0
    return Prompts(cells[:, :-1], query, lapses[:, :-1], lapse, np.full(len(query), timelapse))
