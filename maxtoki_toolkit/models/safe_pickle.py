"""Dictionaries that were written as pickles, read without running anything that is in them."""

from __future__ import annotations

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

_KINDS = (dict, list, str, int, float)
# What makes and fills these, numbers them within the file, and ends it; whatever names, builds or calls
# something is not here.
_ALLOWED = frozenset(
    "PROTO FRAME STOP MARK MEMOIZE PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET EMPTY_DICT DICT SETITEM SETITEMS EMPTY_LIST LIST "
    "APPEND APPENDS STRING BINSTRING SHORT_BINSTRING UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 INT BININT BININT1 BININT2 LONG "
    "LONG1 LONG4 FLOAT BINFLOAT".split()
)


class _Unpickler(pickle.Unpickler):
    """Refuses what the opcodes should have been refused for already."""

    def find_class(self, module: str, name: str) -> Any:
        raise ValueError(f"it names {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise ValueError("it names something outside of it")


def read_pickle(path: str | Path) -> dict:
    """Read a pickled dictionary of dict, list, str, int and float, and nothing else.

    The whole file is looked through before anything is made of it: an instruction that could name or call
    something is an error, and none has run by then.

    Raises
    ------
    ValueError
        If there is anything else in it, it is damaged, or no dictionary.

    Examples
    --------
    >>> import pickle, tempfile
    >>> from pathlib import Path
    >>> path = Path(tempfile.mkdtemp()) / "tokens.pkl"
    >>> _ = path.write_bytes(pickle.dumps({"<pad>": 0, "<mask>": 1}))
    >>> read_pickle(path)
    {'<pad>': 0, '<mask>': 1}
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"Did not find {path}.")
    content = path.read_bytes()
    try:
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name not in _ALLOWED:
                what = f" ({str(argument)[:60]})" if argument is not None else ""
                raise ValueError(f"it holds the instruction {opcode.name}{what}")
        found = _Unpickler(io.BytesIO(content)).load()
        _require_plain(found)
    except (
        ValueError,
        pickle.UnpicklingError,
        EOFError,
        IndexError,
        KeyError,
        TypeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise ValueError(
            f"{path} was not read: {error}. Only pickles of dict, list, str, int and float are, since others can run code."
        ) from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no dictionary, but a {type(found).__name__}.")
    return found


def _require_plain(value: Any) -> None:
    waiting, seen = [value], set()
    while waiting:
        one = waiting.pop()
        if type(one) not in _KINDS:
            raise ValueError(f"it holds a {type(one).__name__}")
        if isinstance(one, (dict, list)):
            if id(one) in seen:
                continue  # named twice, or within itself, which JSON refuses
            seen.add(id(one))
            waiting += [*one.keys(), *one.values()] if isinstance(one, dict) else one
