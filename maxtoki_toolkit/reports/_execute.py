"""One report: what is to be run, whether that was done already, and doing it."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from .._files import atomic
from .._outputs import refuse_inputs
from .._progress import progress
from ._allow import fit_cells
from ._html import to_html
from ._methods import methods
from ._parameters import check_parameters, read_parameters
from ._provenance import METADATA, as_text, markdown, provenance, same
from ._sources import Source, notebook_paths, read_source

_ENGINE = "maxtoki_toolkit"


class Task(NamedTuple):
    """A notebook with checked parameters, and where its report goes."""

    source: Source
    values: dict[str, Any]
    """Parameters that are not left as they are."""
    record: dict[str, Any]
    """How the report is made."""
    output: Path

    @property
    def path(self) -> Path:
        """The finished notebook."""
        return self.output / f"{self.source.name}.ipynb"

    @property
    def partial(self) -> Path:
        """The notebook as far as it got."""
        return self.path.with_suffix(".partial.ipynb")


def prepare(notebook: str | Path, output: str | Path, parameters: Mapping[str, Any]) -> Task:
    """Check everything that can be checked before the notebook runs."""
    source = read_source(notebook)
    known = read_parameters(source.notebook)
    if parameters.get("path") and "path" not in known:
        raise ValueError(f"{source.name} takes no cells of yours.")
    values = check_parameters(source.name, known, parameters)
    if values.get("path") and source.name in notebook_paths():
        values = fit_cells(source.name, known, values)
    output = Path(output)
    if output.is_file():
        raise ValueError(f"{output} is a file. Give a folder.")
    if "output" in known and not values.get("output"):
        values["output"] = str(output / f"{source.name}_files")
    task = Task(source, values, provenance(source.name, source.notebook, known, values), output)
    if task.path.resolve() == (source.folder / task.path.name).resolve() and task.path.exists():
        raise ValueError(f"The report would replace the notebook {task.path}. Give another folder.")
    return task


def is_done(task: Task) -> bool:
    """Whether the report is there, of the same notebook, parameters, data and model."""
    if not (task.path.is_file() and task.path.with_suffix(".html").is_file()):
        return False
    record = _read_record(task.path)
    return record is not None and same(record, task.record)


def check_free(task: Task, *, overwrite: bool) -> None:
    """Raise if the report would replace what is no report of ours, or another one unless that is asked for."""
    refuse_inputs(task.path, [task.values["path"]] if task.values.get("path") else [])
    records = [_read_record(path) for path in (task.path, task.partial) if path.exists()]
    page = task.path.with_suffix(".html")
    if None in records or (page.exists() and not task.path.exists()):
        raise ValueError(f"{task.output} holds a {task.path.stem} that is no report. Give another folder.")
    # Figures and tables lie in a folder of their own, which a report that was begun has taken.
    files = task.values.get("output")
    begun = [record["parameters"].get("output") for record in records]
    if files and Path(files).is_dir() and any(Path(files).iterdir()) and files not in begun:
        raise ValueError(f"{files} is not empty, and of no report in {task.output}. Give another folder.")
    if task.path.exists() and not overwrite and not same(records[0], task.record):
        raise FileExistsError(
            f"{task.path} is there, made with other parameters, data, model or code. Give another folder, or ask for it to be "
            "replaced: overwrite=True."
        )


def _read_record(path: Path) -> dict[str, Any] | None:
    """How a report was made; `None` for what is no report."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["metadata"][METADATA]
    except (KeyError, TypeError, ValueError, OSError):
        return None


def execute(task: Task) -> Path:
    """Run the notebook in the folder of the caller; a failure leaves what there is of it."""
    import nbformat
    from nbclient.exceptions import CellControlSignal
    from papermill import execute_notebook
    from papermill.exceptions import PapermillExecutionError

    task.output.mkdir(parents=True, exist_ok=True)
    notebook = task.source.notebook
    _insert(notebook, task.record)
    # papermill fills braces in paths with parameters.
    partial = str(task.partial).replace("{", "{{").replace("}", "}}")
    nbformat.write(notebook, task.partial)
    try:
        with _quiet(), progress(total=len(notebook.cells), desc=task.source.name, unit="step") as bar:
            _register(bar)
            done = execute_notebook(
                partial,
                partial,
                parameters=task.values,
                engine_name=_ENGINE,
                kernel_name="python3",
                progress_bar=False,
                # The kernel tells the terminal of its connection, and of the interrupt that ends it.
                extra_arguments=["--log-level=CRITICAL"],
            )
    except PapermillExecutionError as error:
        raise RuntimeError(
            f"{task.source.name} failed in its code cell {error.exec_count}, {error.ename}: {error.evalue}\n"
            f"What there is of it is in {task.partial}."
        ) from None
    except (CellControlSignal, RuntimeError) as error:
        raise RuntimeError(
            f"{task.source.name} was ended from outside ({error}), often because memory ran out: take fewer cells. "
            f"What there is of it is in {task.partial}."
        ) from None
    _finish(task, done)
    return task.path


def _insert(notebook: Any, record: Mapping[str, Any]) -> None:
    """Say how the report is made, under the parameters."""
    import nbformat

    cell = nbformat.v4.new_markdown_cell(markdown(record), metadata={"tags": ["provenance"]})
    tagged = [i for i, c in enumerate(notebook.cells) if "parameters" in c.metadata.get("tags", [])]
    notebook.cells.insert(tagged[0] + 1 if tagged else len(notebook.cells), cell)
    if text := methods(record):
        notebook.cells.append(nbformat.v4.new_markdown_cell(text, metadata={"tags": ["methods"]}))
    notebook.metadata[METADATA] = dict(record)


def _finish(task: Task, notebook: Any) -> None:
    """Write page and notebook; the notebook last, because it says that the report is there."""
    import nbformat

    run = notebook.metadata.pop("papermill")
    notebook.metadata[METADATA]["minutes"] = round(run["duration"] / 60, 2)
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
    if text := _tables(task):
        notebook.cells.append(nbformat.v4.new_markdown_cell(text, metadata={"tags": ["tables"]}))
    page = to_html(notebook, title=task.source.name, folder=task.source.folder)
    with atomic(task.path.with_suffix(".html")) as temporary:
        temporary.write_text(page, encoding="utf-8")
    nbformat.write(notebook, task.partial)
    task.partial.replace(task.path)


def _tables(task: Task) -> str:
    """Links to the tables that a notebook wrote, beside the page."""
    folder = Path(task.values["output"]) if "output" in task.values else None
    found = sorted(folder.rglob("*.csv")) if folder is not None and folder.is_dir() else []
    links = [
        f"- [{as_text(path.relative_to(folder).as_posix())}]({quote(Path(os.path.relpath(path, task.output)).as_posix())})"
        for path in found
    ]
    return "\n".join(["## Tables", "", *links]) if links else ""


def _register(bar: Any) -> None:
    """Have papermill tell this bar which cells are done."""
    from papermill.engines import NBClientEngine, papermill_engines

    class Engine(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, nb_man, kernel_name, **options):
            nb_man.pbar = bar
            return super().execute_managed_notebook(nb_man, kernel_name, **options)

    papermill_engines.register(_ENGINE, Engine)


@contextmanager
def _quiet() -> Iterator[None]:
    """No log of papermill; and figures in the notebook, whatever backend is set for scripts."""
    logger = logging.getLogger("papermill")
    before, backend = logger.level, os.environ.pop("MPLBACKEND", None)
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            # Of the event loop and of nbformat, which nobody here can do anything about.
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
