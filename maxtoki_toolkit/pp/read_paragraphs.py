"""Prompts from the original's paragraphs: its blueprint, or the folder that was assembled from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from .._arrow import about, is_dataset, lists_of, open_dataset
from .._validate import require_unique_names
from ..results.store import write_result
from ._design import as_list, get_groups, get_labels, get_times
from ._paragraphs import ANSWER, DATASET, GROUP, INDICES, NO_GROUP, STEPS, TIMES, as_prompts, ragged
from .sample_prompts import TASKS, prompt_table

_ZERO_LAPSE = {"question": "query", "none": "never", "context_and_question": "anywhere"}


def read_paragraphs(
    adata: AnnData,
    *,
    path: str | Path,
    time_key: str | None = None,
    groupby: str | Sequence[str] | None = None,
    donor_key: str | None = None,
    task: str | None = None,
    key_added: str | None = None,
) -> None:
    """Read the original's paragraphs as prompts.

    Parameters
    ----------
    adata
        The cells that paragraphs were made of, in the same order: `mt.pp.read_dataset` of the folder, less
        the rows that were filtered out.
    path
        `..._cell_paragraph_blueprint.json`; or the folder of `datasets` that was assembled from it, or that
        `mt.pp.write_paragraphs` or `maxtoki prompts` wrote.
    time_key
        Column of `.obs` with the times, by default "time". They must be those of the paragraphs, or these are
        of other cells.
    groupby
        Column or columns of `.obs` in which the cells of a paragraph agree; by default the groups are named
        as in the file.
    donor_key
        Column of `.obs` with the donor.
    task
        "timelapse" or "cell". A blueprint does not say what was asked for: all of it is read as this, by
        default "timelapse". Of a folder, which may hold both, the paragraphs of this task are read; by
        default of the only one that is there.
    key_added
        Key in `.uns`, by default "prompts".

    Returns
    -------
    `None`. Writes prompts to `.uns["prompts"]`, as `mt.pp.sample_prompts` does. Of a folder that this package
    wrote, columns and settings are taken from there and may be left out.

    Raises
    ------
    KeyError
        If a column is missing, of `.obs` or of the file.
    ValueError
        If cells are not there or are of other times or several groups, paragraphs are of several data sets,
        or there are none of the task.

    Notes
    -----
    The time dictionary that the original writes beside its blueprint is read by
    `mt.models.Vocabulary.from_json`.

    Examples
    --------
    >>> import json, tempfile, maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(100, 10, n_genes=500)
    >>> time = adata.obs["age_months"].tolist()
    >>> blueprint = {"dataset_order": [0], "timegroup_order": ["__NO_TIME_GROUP__"], "cell_indices": [[3, 8]],
    ...              "time_choices": [[time[3], time[8]]], "timesteps": [[time[8] - time[3]]]}
    >>> path = tempfile.mkdtemp() + "/a_cell_paragraph_blueprint.json"
    >>> with open(path, "w") as file:
    ...     json.dump(blueprint, file)
    >>> mt.pp.read_paragraphs(adata, path=path, time_key="age_months")
    >>> bool((mt.get.table(adata, "prompts")["query"] == adata.obs_names[8]).all())
    True
    """
    require_unique_names(adata)
    if task is not None and task not in TASKS:
        raise ValueError(f"There is no task {task!r}; choose from {', '.join(TASKS)}.")
    read = _from_folder if is_dataset(path) else _from_blueprint
    found, task, params = read(Path(path), task)

    def complain(what: str) -> ValueError:
        return ValueError(f"{path}: {what}. Give the cells and the file that belong together.")

    if len(np.unique(found[DATASET])) > 1:
        raise complain("its paragraphs are of several data sets, whose cells the rows do not tell apart")
    prompts = as_prompts(found[INDICES], found[STEPS], timelapse=task == "timelapse", complain=complain)
    rows, lengths = found[INDICES]
    if rows.min() < 0 or rows.max() >= adata.n_obs:
        raise complain(f"it speaks of cell {rows.max()}, and there are {adata.n_obs:,} cells")
    time_key = time_key or params.get("time_key", "time")
    groupby = as_list(params.get("groupby", []) if groupby is None else groupby)
    donor_key = donor_key or params.get("donor_key")
    time = get_times(adata, time_key)
    if (other := time[rows] != found[TIMES][0]).any():
        first = int(np.flatnonzero(other)[0])
        raise complain(
            f"{other.sum()} of {len(rows)} cells have another {time_key} than there (cell {rows[first]}: {time[rows[first]]}, "
            f"not {found[TIMES][0][first]})"
        )
    table = prompt_table(prompts, adata, adata)
    table["group"] = np.where(found[GROUP] == NO_GROUP, "all", found[GROUP])
    if groupby:
        code, names = get_groups(adata, groupby)
        if (strange := (code[rows] != np.repeat(code[prompts.query], lengths)) | (code[rows] < 0)).any():
            raise complain(
                f"{strange.sum()} cells are of another {' and '.join(groupby)} than the query of their paragraph"
            )
        table["group"] = np.array(names, dtype=object)[code[prompts.query]]
    table["time"] = time[prompts.query]
    if donor_key:
        donor = np.append(get_labels(adata, donor_key), "")
        table["donor"] = donor[prompts.query]
        for i, context in enumerate(prompts.context.T):
            table[f"donor_{i}"] = donor[context]
    size = prompts.context_size
    settings = {
        "n_left_out": 0,
        "context_size": (int(size.min()), int(size.max())),
        "contexts": "all",
        "queries": "all",
        "queries_elsewhere": False,
        **(params or {"source": str(path)}),
        "time_key": time_key,
        "groupby": groupby,
        "donor_key": donor_key,
        "task": task,
        "n_prompts": len(table),
    }
    settings = {name: value for name, value in settings.items() if name not in ("function", "version")}
    write_result(adata, _keys.PROMPTS, settings, key_added=key_added, prompts=table)


def _from_folder(path: Path, task: str | None) -> tuple[dict, str, dict]:
    """Lists of a folder, what is asked for, and how the prompts were drawn, if that is known."""
    table = open_dataset(path)
    needed = [DATASET, GROUP, INDICES, STEPS, TIMES, ANSWER]
    if missing := [name for name in needed if name not in table.column_names]:
        raise KeyError(f"{path} has no column {missing[0]!r}: it holds no paragraphs.")
    # A lapse is one token; a cell has three at least.
    is_lapse = table[ANSWER].to_numpy() == 1
    there = {"timelapse": is_lapse, "cell": ~is_lapse}
    task = task or ("timelapse" if is_lapse.all() else "cell" if not is_lapse.any() else None)
    if task is None:
        raise ValueError(
            f"{path} asks for lapses and for cells. Say which to read: task='timelapse' or task='cell'."
        )
    if not there[task].any():
        raise ValueError(f"{path} holds no paragraph of the task {task!r}.")
    table = table.take(np.flatnonzero(there[task]))
    found = {name: lists_of(table, name, path) for name in (INDICES, STEPS, TIMES)}
    found |= {DATASET: table[DATASET].to_numpy(), GROUP: _texts(table[GROUP].to_pylist())}
    return found, task, about(table).get("prompts", {})


def _from_blueprint(path: Path, task: str | None) -> tuple[dict, str, dict]:
    """The same of a blueprint."""
    try:
        content = json.loads(path.read_text())
        found = {name: ragged(content[name], name, path) for name in (INDICES, STEPS, TIMES)}
        found |= {DATASET: np.array(content[DATASET]), GROUP: _texts(content[GROUP])}
    except KeyError as error:
        raise KeyError(f"{path} has no {error}: it is no blueprint of paragraphs.") from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read as a blueprint of paragraphs ({error}).") from None
    if (
        len(
            {
                len(found[INDICES][1]),
                len(found[STEPS][1]),
                len(found[TIMES][1]),
                len(found[GROUP]),
                len(found[DATASET]),
            }
        )
        > 1
    ):
        raise ValueError(f"{path} has lists of unequal length: it is cut short, or damaged.")
    given, names = content.get("args") or {}, {"seed": "seed", "balance": "balance_timegroups"}
    params = {name: given[theirs] for name, theirs in names.items() if theirs in given}
    if given.get("allow_zero_timelapses") in _ZERO_LAPSE:
        params["zero_lapse"] = _ZERO_LAPSE[given["allow_zero_timelapses"]]
    if "allow_negative_timelapses" in given:
        params["forward"] = not given["allow_negative_timelapses"]
    return found, task or "timelapse", params | {"source": str(path)}


def _texts(values: list) -> np.ndarray:
    return pd.Series(values, dtype=object).astype(str).to_numpy(dtype=object)
