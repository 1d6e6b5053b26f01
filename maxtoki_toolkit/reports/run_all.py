"""Every notebook that the data allow."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from ._allow import read_obs
from ._jobs import Job, run_jobs
from ._parameters import read_parameters
from ._require import require_reports
from ._sources import notebook_paths, read_source


def run_all(
    on: str | Path | Iterable[str | Path] | None,
    output: str | Path,
    /,
    *,
    overwrite: bool = False,
    **parameters: Any,
) -> pd.DataFrame:
    """Run every notebook of the project that the data allow, and say of the others why not.

    Called again, it makes what is missing: a report of the same notebook, parameters, data and model stays.

    Parameters
    ----------
    on
        Your cells (.h5ad or .zarr with raw counts), one file or several; `None` for the notebooks' own cells.
        Columns are guessed from the names of CELLxGENE's schema and other common ones, which is said in a
        line; parameters that you give overrule that. Notebooks that read time are not run on your cells with
        a demo model, whose time is that of a simulation: give `model`.
    output
        Folder to write: the reports (in a folder for each file, if there are several) and index.html.
    overwrite
        As in `mt.reports.run`.
    **parameters
        Parameters for all notebooks that have them.

    Returns
    -------
    One row a report: `notebook`, `status` ("done"; "kept", which was there already; "kept as it was", which
    was there, made from something else; "failed" or "not possible"), `minutes`, `why` (where it was not
    made), `parameters` (as JSON) and `report` (path of the page).

    Raises
    ------
    FileNotFoundError
        If a file of cells is not there.
    ImportError
        If the extra "notebook" is not installed.
    ValueError
        If a file is none of cells, or no notebook has a parameter.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> mt.reports.run_all(None, "reports", sed=1)
    Traceback (most recent call last):
    ValueError: No notebook has a parameter 'sed'. mt.reports.catalogue() lists those that there are.
    """
    require_reports()
    known = {name: read_parameters(read_source(name).notebook) for name in notebook_paths()}
    if unknown := [key for key in parameters if not any(key in entry for entry in known.values())]:
        raise ValueError(
            f"No notebook has a parameter {', '.join(map(repr, unknown))}. mt.reports.catalogue() lists those that there are."
        )
    jobs = []
    for path, folder in folders(on, Path(output)):
        if path:
            # What is no file of cells is no reason for a notebook alone.
            read_obs(path)
        for name, entry in known.items():
            given = {key: value for key, value in parameters.items() if key in entry}
            jobs.append(Job(name, folder, given | ({"path": str(path)} if path else {})))
    return run_jobs(jobs, output, overwrite=overwrite)


def folders(
    on: str | Path | Iterable[str | Path] | None, output: Path
) -> list[tuple[str | Path | None, Path]]:
    """Files of cells, with a folder of its own for each where there are several."""
    paths = [on] if on is None or isinstance(on, (str, Path)) else list(on)
    if not paths:
        raise ValueError("Give at least one file of cells, or None for the notebooks' own.")
    if missing := [str(path) for path in paths if path is not None and not Path(path).exists()]:
        raise FileNotFoundError(f"Did not find {', '.join(missing)}.")
    if len(paths) == 1:
        return [(paths[0], output)]
    stems = [Path(path).stem for path in paths]
    # Files of one name in several folders are numbered.
    return [
        (path, output / (stem if stems.count(stem) == 1 else f"{stem}_{number}"))
        for number, (path, stem) in enumerate(zip(paths, stems, strict=True), start=1)
    ]
