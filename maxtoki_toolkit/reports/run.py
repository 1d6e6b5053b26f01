"""Run one notebook."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ._execute import check_free, execute, is_done, prepare
from ._require import require_reports


def run(notebook: str | Path, output: str | Path, /, *, overwrite: bool = False, **parameters: Any) -> Path:
    """Run a notebook with other parameters, and make a page of it.

    Relative paths, in parameters too, are those of the folder you are in. The notebook says under its
    parameters with which versions, model, data and seed it was made, with checksums, and holds the same in
    its metadata.

    Parameters
    ----------
    notebook
        Name of one of the project's notebooks (`mt.reports.catalogue()`), or path of an .ipynb or .py file.
    output
        Folder to write: NAME.ipynb (executed), NAME.html (one file that opens offline), and in NAME_files the
        figures and tables that the notebook writes. A report of the same notebook, parameters, data and model
        that is there stays.
    overwrite
        Run it again nevertheless, and replace another report of the notebook. What is no report stays in any
        case.
    **parameters
        Parameters of the notebook (`mt.reports.parameters(notebook)`), those not given as they are.

    Returns
    -------
    Path of the executed notebook; the page is beside it.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ImportError
        If the extra "notebook" is not installed.
    ValueError
        If there is no such notebook or parameter, or a value is of another type; if something else is
        at `output`.
    RuntimeError
        If a cell fails; NAME.partial.ipynb holds what was done until then.
    FileExistsError
        If a report made with other parameters, data, model or code is there, unless `overwrite`.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> mt.reports.run("fig5_age_acceleration", "report", n_cels=100)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: fig5_age_acceleration has no parameter 'n_cels'. It has:...
    """
    require_reports()
    task = prepare(notebook, output, parameters)
    if is_done(task) and not overwrite:
        return task.path
    check_free(task, overwrite=overwrite)
    return execute(task)
