"""The door of public functions: arguments are checked before anything is done.

What is checked follows from the signature: the type from the annotation, and from the name of a parameter,
which means the same everywhere, its range and whether it is a column of `.obs`, a mask or a layer.
"""

from __future__ import annotations

import functools
import inspect
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin, get_type_hints

import numpy as np
import pandas as pd

from ._errors import explain, is_of_reading, is_ours, tell
from ._names import closest
from ._warn import may_repeat

if TYPE_CHECKING:
    from anndata import AnnData

# Columns of `.obs`, given as one name or several.
COLUMNS = {
    "time_key",
    "donor_key",
    "groupby",
    "condition_key",
    "batch_key",
    "match_by",
    "covariates",
    "perturbation_key",
    "truth_key",
    "library_key",
    "subset",
}
# From and to what a number may go; a share is from 0 to 1. Numbers that count something (n_, max_) start at 1
# unless they are here.
_SHARES = (
    "alpha share min_share max_share held_out balance expected_rate top_p burn_in min_overlap dropout gene_dropout "
    "timelapse curriculum warmup hold floor teach coverage scored max_tissue_share max_overlap min_phi damping"
)
_FROM_0 = (
    "rng seed tolerance n_steps n_controls n_given n_labels n_named n_examples n_held_out top_k example head intervals freeze_layers "
    "min_cells min_genes min_prompts min_donors min_tokens temperature proposal_temperature likelihood_weight strength penalty clock "
    "running weight_decay learning_rate embedding_rate scale loss_scale resolution radius max_distance size"
)
_FROM_1 = "k cells_per_donor cells_per_shard chunk_size context_size batch_size shortest accumulate eval_every save_every rank beam_width block_size"
RANGES = (
    dict.fromkeys(_SHARES.split(), (0, 1))
    | dict.fromkeys(_FROM_0.split(), (0, math.inf))
    | dict.fromkeys(_FROM_1.split(), (1, math.inf))
)
# Where a name means something else.
_OWN_RANGES = {
    ("age_acceleration", "min_donors"): (2, math.inf),
    ("holdout_intervals", "n_permutations"): (0, math.inf),
    ("perturb", "k"): (-math.inf, math.inf),
    ("search_gene_sets", "k"): (-math.inf, math.inf),
    ("steer_cells", "k"): (-math.inf, math.inf),
}
# Words of which a parameter is one. (Those of one function are checked there.)
CHOICES = {"time_unit": ("years", "months", "weeks", "days", "hours")}
# What has a name: that is no empty text, which would pass for the default.
_NAMED = COLUMNS | {"key", "key_added", "slopes_key", "layer"}
# Columns that the cells may lack: the reference has them.
_MAY_LACK = {("predict_age", "time_key"), ("annotate", "groupby"), ("annotate", "donor_key")}
_NEED_NO_CELLS = {"map_genes"}
_WORDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
    tuple: "a pair",
    Mapping: "a dictionary",
    dict: "a dictionary",
    Callable: "a function",
    NoneType: "None",
}
# Objects, and where they come from.
_OBJECTS = {
    "AnnData": "an AnnData (anndata.read_h5ad(path))",
    "MaxTokiModel": "a model (mt.load_model)",
    "CellClassifier": "a classifier (mt.load_classifier)",
    "SparseAutoencoder": "an autoencoder (mt.load_sae)",
    "Vocabulary": "a vocabulary (model.vocab, mt.models.Vocabulary.from_json)",
}


def guard(namespace: dict[str, Any], names: Iterable[str]) -> None:
    """Put the check before the public functions of a package."""
    for name in names:
        if inspect.isfunction(namespace[name]):
            namespace[name] = checked(namespace[name])
            # Pickled by this name, as for a pool of processes.
            namespace[name].__module__ = namespace["__name__"]


def checked(function: Callable) -> Callable:
    """The function, with its arguments checked first."""
    signature = inspect.signature(function)
    on_file = next(iter(signature.parameters), "") in ("path", "paths", "source")

    @functools.wraps(function)
    def door(*args, **kwargs):
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(_misfit(function, signature, kwargs, str(error))) from None
        check(function, given)
        may_repeat()
        try:
            return function(*args, **kwargs)
        except Exception as error:
            if is_of_reading(error) or (on_file and not is_ours(error)):
                raise ValueError(explain(error)) from error
            if on_file and type(error) in (KeyError, ValueError):
                raise type(error)(tell(error)) from error
            if not is_ours(error) and (lacking := _lacking(function, signature, given, error)):
                raise ValueError(f"{lacking} ({type(error).__name__}). Run the analysis again.") from error
            raise

    return door


def _lacking(
    function: Callable, signature: inspect.Signature, given: Mapping[str, Any], error: Exception
) -> str:
    """What the result that is drawn or read lacks, where an error of a library comes of that; or nothing."""
    if _space(function) not in ("pl", "get"):
        return ""
    key = given.get("key") or getattr(signature.parameters.get("key"), "default", None)
    result = getattr(given.get("adata"), "uns", {}).get(key)
    parts = result.items() if isinstance(result, Mapping) else ()
    tables = {name: part for name, part in parts if isinstance(part, pd.DataFrame)}
    if empty := [name for name, table in tables.items() if table.empty]:
        return f".uns[{key!r}][{empty[0]!r}] has no rows"
    return f"The tables of .uns[{key!r}] lack {error}" if tables and isinstance(error, KeyError) else ""


def check(function: Callable, given: Mapping[str, Any]) -> None:
    """Raise on the first argument that a function cannot mean."""
    kinds = _kinds(function)
    for name, value in given.items():
        if name in kinds and not fits(value, kinds[name]):
            raise TypeError(_mistyped(name, value, kinds[name]))
        _check_range(function.__name__, name, value, kinds.get(name))
        if name in CHOICES and value is not None and value not in CHOICES[name]:
            known = ", ".join(CHOICES[name])
            raise ValueError(f"{name} must be one of {known}, got {value!r}.{closest(value, CHOICES[name])}")
        if name in _NAMED and isinstance(value, str) and value == "" != _default(function, name):
            raise ValueError(f"{name} must be a name, got ''. Leave it out for the default.")
        if hasattr(value, "obs_names"):
            _check_cells(function, name, value)
    adata = given.get("adata", given.get("cells"))
    if hasattr(adata, "obs_names"):
        _check_keys(function.__name__, adata, given, kinds)


def _default(function: Callable, name: str) -> Any:
    return inspect.signature(function).parameters[name].default


def _check_cells(function: Callable, name: str, adata: AnnData) -> None:
    """Cells of which something is computed are some; and results are matched to them by name."""
    from ._validate import require_unique_names

    space = _space(function)
    if space in ("pp", "tl", "train") and not adata.n_obs and function.__name__ not in _NEED_NO_CELLS:
        raise ValueError(
            f"{name} has no cells ({adata.n_obs} x {adata.n_vars}). Look at what they were subset by."
        )
    if space == "tl":
        require_unique_names(adata)


def _check_keys(function: str, adata: AnnData, given: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    from ._validate import require_layer, require_obs  # `models` has doors, and does not load AnnData

    for name, value in given.items():
        if name in COLUMNS and value is not None and (function, name) not in _MAY_LACK:
            require_obs(adata, *([value] if isinstance(value, str) else value))
        elif name == "layer" and isinstance(value, str):
            require_layer(adata, value)
        elif isinstance(value, str) and Sequence[bool] in get_args(kinds.get(name)):
            require_obs(adata, value)  # a mask


@functools.cache
def _kinds(function: Callable) -> dict[str, Any]:
    """Types of the parameters that say theirs."""
    kinds = get_type_hints(function)
    parameters = inspect.signature(function).parameters.values()
    return {p.name: kinds[p.name] for p in parameters if p.name in kinds and p.kind is not p.VAR_KEYWORD}


def fits(value: object, kind: Any) -> bool:
    """Whether a value is of a type, in the way in which people give it: a list is a tuple, an array a list.

    Examples
    --------
    >>> fits(np.int64(3), int), fits(3, float), fits(True, int), fits(["a"], str | Sequence[str])
    (True, True, False, True)
    """
    origin, parts = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in parts)
    if origin is Any:
        return True
    if origin is bool:
        return isinstance(value, (bool, np.bool_))
    if origin in (int, float):
        number = Integral if origin is int else Real
        return isinstance(value, number) and not isinstance(value, (bool, np.bool_))
    if origin is Path:
        return isinstance(value, os.PathLike)
    if origin is tuple:
        if not isinstance(value, (tuple, list, np.ndarray)):
            return False
        if not parts or parts[-1] is Ellipsis:
            return not parts or all(fits(item, parts[0]) for item in value)
        return len(value) == len(parts) and all(map(fits, value, parts))
    if origin is Mapping or origin is dict:
        return isinstance(value, Mapping) and (
            not parts or all(fits(k, parts[0]) and fits(v, parts[1]) for k, v in value.items())
        )
    if origin in (Sequence, Iterable, list, np.ndarray):
        parts = () if origin is np.ndarray else parts
        return _is_list(value) and (not parts or _holds(value, parts[0]))
    return isinstance(value, origin)


def _is_list(value: object) -> bool:
    others = (str, bytes, Mapping, pd.DataFrame)
    return hasattr(value, "__len__") and hasattr(value, "__iter__") and not isinstance(value, others)


def _holds(values: Sequence, kind: Any) -> bool:
    if kind is bool and hasattr(values, "dtype"):
        return values.dtype == bool
    return all(fits(value, kind) for value in values)


def _check_range(function: str, name: str, value: object, kind: Any) -> None:
    if not isinstance(value, Real) or isinstance(value, (bool, np.bool_)):
        return
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value}.")
    counts = name.startswith(("n_", "max_")) and kind is not None
    low, high = _OWN_RANGES.get((function, name), RANGES.get(name, (1 if counts else -math.inf, math.inf)))
    if low <= value <= high:
        return
    wanted = f"at least {low}" if high == math.inf else f"between {low} and {high}"
    raise ValueError(f"{name} must be {wanted}, got {value}.")


def _mistyped(name: str, value: object, kind: Any) -> str:
    shown = repr(value) if isinstance(value, (str, int, float, type(None))) else type(value).__name__
    if len(shown) > 80:
        shown = f"{shown[:80]}..."
    if wanted := _OBJECTS.get(getattr(kind, "__name__", "")):
        return f"Expected {wanted}, got {type(value).__name__} for {name}."
    return f"{name} must be {' or '.join(dict.fromkeys(_words(kind)))}, got {shown}."


def _words(kind: Any) -> list[str]:
    """What a type is called in a message."""
    origin, parts = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, UnionType):
        return [word for part in parts for word in _words(part)]
    if origin in (Sequence, Iterable, list, np.ndarray):
        inner = {str: "names", bool: "one boolean a cell", int: "whole numbers"}.get(
            parts[0] if parts else None
        )
        return [inner if inner and parts[0] is bool else f"a list of {inner}" if inner else "a list"]
    if origin is tuple and parts and Ellipsis not in parts:
        return [f"{len(parts)} values ({', '.join(word for part in parts for word in _words(part)[:1])})"]
    name = getattr(origin, "__name__", str(origin))
    return [_WORDS.get(origin) or _OBJECTS.get(name) or f"a{'n' * (name[:1] in 'AEIOU')} {name}"]


def _space(function: Callable) -> str:
    """Package in which a public function is, such as "tl"; none for those of `mt` itself."""
    parts = function.__module__.split(".")
    return parts[1] if len(parts) > 2 and not parts[1].startswith("_") else ""


def _misfit(function: Callable, signature: inspect.Signature, given: Mapping[str, Any], error: str) -> str:
    """What is wrong with the names of arguments."""
    space = _space(function)
    name = f"mt.{space}.{function.__name__}" if space else f"mt.{function.__name__}"
    known = [p.name for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    if unknown := [key for key in given if key not in known]:
        return (
            f"{name} has no argument {unknown[0]!r}.{closest(unknown[0], known)} It has {', '.join(known)}."
        )
    if "missing" in error:
        return f"{name} needs {error.split()[-1]}, which was not given."
    return f"{name}: {error}. After the first arguments, give the others by name: {', '.join(known)}."
