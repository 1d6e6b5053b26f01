"""One notebook on many files, or with many sets of parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ._jobs import Job, run_jobs
from ._parameters import check_parameters, read_parameters
from ._require import require_reports
from ._sources import read_preset, read_source
from .run_all import folders


def run_batch(
    notebook: str | Path,
    output: str | Path,
    /,
    sets: str | Path | Iterable[Mapping[str, Any]] | None = None,
    *,
    on: str | Path | Iterable[str | Path] | None = None,
    overwrite: bool = False,
    **parameters: Any,
) -> pd.DataFrame:
    """Run a notebook on each of many files, with each of many sets of parameters.

    Called again, it makes what is missing: a report of the same notebook, parameters, data and model stays. A
    report that fails does not stop the others.

    Parameters
    ----------
    notebook
        As in `mt.reports.run`.
    output
        Folder to write: a folder for each file and set, and index.html.
    sets
        Sets of parameters, or a YAML file with a list of them.
    on
        Files of cells, for the parameter `path`.
    overwrite
        As in `mt.reports.run`.
    **parameters
        Parameters of all; those of a set come first.

    Returns
    -------
    As of `mt.reports.run_all`.

    Raises
    ------
    FileNotFoundError
        If a file is not there.
    ImportError
        If the extra "notebook" is not installed.
    ValueError
        If there is no such notebook or parameter in any set, or a value is of another type.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> mt.reports.run_batch("fig1_timelapse", "reports", [{"seed": 1}, {"seed": "two"}])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: seed of fig1_timelapse must be int (...), and 'two' is str.
    """
    require_reports()
    source = read_source(notebook)
    known = read_parameters(source.notebook)
    listed = read_preset(sets) if isinstance(sets, (str, Path)) else [{}] if sets is None else list(sets)
    if not isinstance(listed, list) or not listed or not all(isinstance(one, Mapping) for one in listed):
        raise ValueError(
            "Sets of parameters are a list, each of them `name: value`; this is no such list, or empty."
        )
    jobs = []
    for path, folder in folders(on, Path(output)):
        given = {} if path is None else {"path": str(path)}
        for number, one in enumerate(listed, start=1):
            # Nothing is run before all sets are known to be right.
            values = check_parameters(source.name, known, {**parameters, **given, **one})
            place = folder if len(listed) == 1 else folder / f"{number:0{len(str(len(listed)))}d}"
            jobs.append(Job(notebook, place, values))
    return run_jobs(jobs, output, overwrite=overwrite)
