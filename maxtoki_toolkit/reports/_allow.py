"""Which notebooks a file of cells allows, and why not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ._parameters import UNKNOWN, Parameter

# Notebooks that read time with the model as it is given. The others train one first, or ask nothing about time.
READS_TIME = frozenset(
    {
        "fig1_timelapse",
        "fig2_generated_cells",
        "fig4_attention_heads",
        "fig4_head_ablation",
        "fig4a_prompt_ablation",
        "fig5_age_acceleration",
        "fig6_perturbation_screen",
    }
)
DEMO = ("demo", "demo-cells")
# What the notebooks know of their own cells, and what it is where yours have no such column.
_OPTIONAL = {"batch_key": "", "truth_key": ""}
_COLUMN, _COLUMNS = ("label", "train_donors"), ("groupby", "match_by")
_TIMES = ("age_key", "time_key")
_SHOWN = 8  # values of a column in a message
_VALUES = ("cells", "held_out_groups", "no_ageing", "start", "target")


def columns(values: Mapping[str, Any]) -> Iterator[tuple[str, str, list]]:
    """Parameters that name columns of `.obs`: parameter, column, values that have to occur in it."""
    for key, value in values.items():
        if not value or value == UNKNOWN:
            continue
        if (key.endswith("_key") or key in _COLUMN) and isinstance(value, str):
            control = values.get("control") if key == "condition_key" else None
            yield key, value, [control] if control else []
        elif key in _COLUMNS and isinstance(value, list):
            yield from ((key, column, []) for column in value)
        elif key == "groups" and isinstance(value, list) and isinstance(values.get("groupby"), str):
            yield key, values["groupby"], value
        elif key in _VALUES and isinstance(value, dict):
            for column, found in value.items():
                yield key, column, found if isinstance(found, list) else [found]


def read_cells(path: str | Path) -> tuple[pd.DataFrame, list[str]]:
    """`.obs` and the names of the layers of a file, without its counts."""
    from ..pp._store import layer_names, open_store, read_frames

    with open_store(path) as store:
        obs, _ = read_frames(store)
        return obs, layer_names(store)


def _no_counts(path: str | Path, layer: str, *, force: bool) -> str:
    """Why the first values of a matrix are no raw counts; "" if they may be."""
    from .._counts import check_counts
    from ..pp._store import counts_hint_of, first_values, open_store

    with open_store(path) as store:
        try:
            hint = counts_hint_of(store, layer or None)
            check_counts(first_values(store, layer or None), force=force, hint=hint)
        except (KeyError, ValueError) as error:
            where = f".layers[{layer!r}]" if layer else ".X"
            return (
                f"{error.args[0].rstrip('.')} (in {where}; the parameter layer says where the raw counts are)"
            )
    return ""


def fit_cells(name: str, known: Mapping[str, Parameter], given: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters for cells of one's own, without what is only true of the notebook's; or raise with what does not fit."""
    obs, layers = read_cells(given["path"])
    values = {
        key: instead
        for key, instead in _OPTIONAL.items()
        if key in known and key not in given and known[key].default not in obs
    }
    if "truth" in known and "truth" not in given:
        values["truth"] = {}
    values |= given
    why = _why_not(name, known, values, obs, layers)
    if not why and "layer" in known:
        why = _no_counts(given["path"], values.get("layer", ""), force=bool(values.get("force")))
    if why:
        raise ValueError(f"{name} cannot be run on {given['path']}: {why}.")
    return values


def _why_not(
    name: str, known: Mapping[str, Parameter], given: Mapping[str, Any], obs: pd.DataFrame, layers: list[str]
) -> str:
    """Why a notebook cannot be run on these cells; "" if it can."""
    from ..pp._design import as_times

    values = {key: parameter.default for key, parameter in known.items()} | dict(given)
    if name in READS_TIME and values.get("model") in DEMO and not values.get("train_steps"):
        teach = ", or train_steps to teach it the time of your cells" if "train_steps" in known else ""
        return f"it reads time, and the time of the demo models is that of a simulation: give model, the folder of one that mt.train.temporal has trained{teach}"
    reasons = []
    if (layer := values.get("layer")) and layer not in layers:
        reasons.append(f"there is no layer {layer!r} (layer)")
    for key, column, needed in columns(values):
        if column not in obs:
            reasons.append(f".obs has no column {column!r} ({key})")
        elif missing := [value for value in needed if str(value) not in set(obs[column].astype(str))]:
            has = ", ".join(map(repr, sorted(set(obs[column].astype(str)))[:_SHOWN]))
            reasons.append(
                f"no cell has {', '.join(map(repr, missing))} in .obs[{column!r}] ({key}), which has {has}"
            )
        elif key in _TIMES:
            try:
                as_times(obs[column].dropna().astype(object), column)
            except ValueError as error:
                reasons.append(f"{str(error).rstrip('.')} ({key})")
    if any("no column" in reason for reason in reasons):
        reasons.append(f"it has {', '.join(map(repr, obs.columns))}")
    return "; ".join(dict.fromkeys(reasons))
