"""Many reports, one after the other: those that are there already are left alone, and a page lists all."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from .._outputs import claim
from .._progress import hidden, progress
from ._execute import check_free, execute, is_done, prepare
from ._provenance import METADATA
from ._summary import thumbnails, write_summary

BY = "maxtoki report"
DONE, KEPT, FAILED, NOT = "done", "kept", "failed", "not possible"
OTHER = "kept as it was"  # what is there was made from something else, and is not replaced unasked


class Job(NamedTuple):
    """A report to make."""

    notebook: str | Path
    folder: Path
    parameters: Mapping[str, Any]


def run_jobs(jobs: list[Job], output: str | Path, *, overwrite: bool = False) -> pd.DataFrame:
    """Make the reports; `output`/index.html is written after each."""
    output = Path(output)
    claim(output, ["index.html"], by=BY)
    rows: list[dict[str, Any]] = []
    with progress(total=len(jobs), desc="reports", unit="report") as bar:
        for job in jobs:
            with hidden():
                row = _run(job, overwrite=overwrite)
            rows.append(row | {"images": thumbnails(row["report"])})
            write_summary(rows, len(jobs), output)
            bar.update()
    return pd.DataFrame(rows).drop(columns="images")


def _run(job: Job, *, overwrite: bool) -> dict[str, Any]:
    row = {
        "notebook": Path(job.notebook).stem
        if Path(job.notebook).suffix in (".ipynb", ".py")
        else str(job.notebook),
        "status": NOT,
        "minutes": float("nan"),
        "why": "",
        "parameters": json.dumps(dict(job.parameters), default=str),
        "report": "",
    }
    start = time.monotonic()
    try:
        task = prepare(job.notebook, job.folder, job.parameters)
    except (ValueError, OSError) as error:
        # One set of parameters may suit one notebook and not another.
        return row | {"why": str(error).split(" It has:\n")[0]}
    if is_done(task) and not overwrite:
        minutes = json.loads(task.path.read_text(encoding="utf-8"))["metadata"][METADATA]["minutes"]
        return row | {"status": KEPT, "minutes": minutes, "report": str(task.path.with_suffix(".html"))}
    try:
        check_free(task, overwrite=overwrite)
    except FileExistsError as error:
        return row | {"status": OTHER, "why": str(error)}
    except ValueError as error:
        return row | {"why": str(error)}
    try:
        execute(task)
    except RuntimeError as error:
        found = {"status": FAILED, "why": str(error), "report": str(task.partial)}
    else:
        found = {"status": DONE, "report": str(task.path.with_suffix(".html"))}
    return row | found | {"minutes": round((time.monotonic() - start) / 60, 2)}
