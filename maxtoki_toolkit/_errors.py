"""Errors of libraries, told with the file and the step in which they came."""

from __future__ import annotations

import traceback
from pathlib import Path

_PACKAGE = Path(__file__).parent
# Libraries that read files: what they raise is about the file that they were reading.
_READERS = {"anndata", "h5py", "json", "numcodecs", "safetensors", "yaml", "zarr"}
# Variables that hold the file at work, the likeliest first.
_FILES = ("cells", "path", "source", "config", "paths", "notebook", "output", "folder")


def is_ours(error: BaseException) -> bool:
    """Whether we raised this error, so that its message says what to do."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return is_here(last.filename) and (last.line or "").startswith("raise")


def is_of_reading(error: BaseException) -> bool:
    """Whether a library raised this error because of a file."""
    below: list[str] = []
    for frame in traceback.extract_tb(error.__traceback__):
        below = [] if is_here(frame.filename) else [*below, frame.filename]
    return any(not _READERS.isdisjoint(Path(filename).parts) for filename in below)


def explain(error: BaseException) -> str:
    """One line that names the file and the step, and what the library said."""
    said = " ".join(str(error).split()) or "no message"
    step, file = _where(error)
    about = f"{file}: " if file else ""
    hint = (
        " The file may be cut short or damaged: copy, download or write it again."
        if is_of_reading(error)
        else ""
    )
    return f"{about}{step} failed ({type(error).__name__}: {said[:300]}).{hint}"


def tell(error: BaseException) -> str:
    """What the command line says of an error: our own message, with the file that it is about, or `explain`."""
    if not is_ours(error):
        return explain(error)
    message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    _, file = _where(error)
    return message if not file or Path(file).name in message else f"{file}: {message}"


def _where(error: BaseException) -> tuple[str, str]:
    """The innermost of our functions, and the file that it was at."""
    step = "the command"
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        if not is_here(frame.f_code.co_filename):
            continue
        if step == "the command":
            step = frame.f_code.co_name.strip("_<>").replace("_", " ")
        if frame.f_code.co_filename.endswith("cli.py"):
            continue  # what is wrong there is a flag
        found = (frame.f_locals.get(name) for name in _FILES)
        known = [str(value) for value in found if isinstance(value, (str, Path)) and Path(value).exists()]
        if known:
            return step, known[0]
    return step, ""


def is_here(filename: str) -> bool:
    return Path(filename).is_relative_to(_PACKAGE)
