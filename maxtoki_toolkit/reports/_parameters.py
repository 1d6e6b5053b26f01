"""The parameters of a notebook: read from its cell tagged `parameters`, and checked before anything runs."""

from __future__ import annotations

import ast
import io
import json
import tokenize
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from .._files import load_yaml

# What a preset says where the paper does not; the notebook asks for it.
UNKNOWN = "unknown"
_CHECKS = {
    "str": lambda value: isinstance(value, str),
    "int": lambda value: type(value) is int,
    "float": lambda value: type(value) in (int, float),
    "bool": lambda value: isinstance(value, bool),
    "list": lambda value: isinstance(value, list),
    "dict": lambda value: isinstance(value, dict),
    "None": lambda value: value is None,
}


class Parameter(NamedTuple):
    """One line of the cell."""

    type: str
    """As annotated, or the type of the default."""
    default: Any
    help: str
    """The comment."""


def read_parameters(notebook: Any) -> dict[str, Parameter]:
    """Return the parameters of a notebook by name, in its order."""
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if not cells:
        return {}
    text = cells[0].source
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT
    }
    found = {}
    for statement in ast.parse(text).body:
        target = statement.targets[0] if isinstance(statement, ast.Assign) else statement
        target = target.target if isinstance(target, ast.AnnAssign) else target
        if not isinstance(target, ast.Name) or statement.value is None:
            continue
        default = _literal(statement.value)
        annotated = getattr(statement, "annotation", None)
        # A comment may stand on any line of a value that spans several.
        lines = range(statement.lineno, statement.end_lineno + 1)
        found[target.id] = Parameter(
            ast.unparse(annotated) if annotated else type(default).__name__,
            default,
            next((comments[line] for line in lines if line in comments), ""),
        )
    return found


def _literal(node: ast.expr) -> Any:
    """Value of a default, or its source where it is computed."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)


def check_parameters(name: str, known: Mapping[str, Parameter], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the given values as the notebook's types, or raise with the parameters that there are."""
    if unknown := [key for key in given if key not in known]:
        close = get_close_matches(unknown[0], known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        # Again at the end, where it is seen below a long list.
        raise ValueError(
            f"{name} has no parameter {', '.join(map(repr, unknown))}. It has:\n{listing(known)}\n"
            f"{name} has no parameter {unknown[0]!r}.{hint}"
        )
    return {key: _value(name, key, known[key], value) for key, value in given.items()}


def listing(known: Mapping[str, Parameter]) -> str:
    """Return the parameters with types, defaults and help, one a line."""
    return "\n".join(
        f"  {key}: {parameter.type} = {json.dumps(parameter.default)}"
        + (f"  # {parameter.help}" if parameter.help else "")
        for key, parameter in known.items()
    )


def _value(name: str, key: str, parameter: Parameter, value: Any) -> Any:
    given = value
    value = value.item() if isinstance(value, np.generic) else value
    value = str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
    # list[int] is checked as list; a type that is not known here is the notebook's business.
    types = [part.split("[")[0].strip() for part in parameter.type.split("|")]
    checks = [_CHECKS[kind] for kind in types if kind in _CHECKS]
    # From the command line everything comes as text.
    for candidate in (value, _load(value)) if isinstance(value, str) else (value,):
        if value == UNKNOWN or len(checks) < len(types) or any(check(candidate) for check in checks):
            if not _is_plain(candidate):
                raise ValueError(f"{key} of {name} must hold nothing but text, numbers, lists and mappings.")
            return candidate
    about = f" ({parameter.help})" if parameter.help else ""
    raise ValueError(
        f"{key} of {name} must be {parameter.type}{about}, and {given!r} is {type(given).__name__}."
    )


def _load(text: str) -> Any:
    """Value of a text in YAML."""
    try:
        return load_yaml(text)
    except (yaml.YAMLError, ValueError):
        return text


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True
