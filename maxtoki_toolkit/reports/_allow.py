"""Which notebooks a file of cells allows, and why not."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..pp._columns import as_labels, guess_columns, guess_control, guess_unit, say_columns, suggest_columns
from ..pp._design import as_times
from ._parameters import UNKNOWN, Parameter
from .cells import whole_times

# Notebooks that read time with the model as it is given. The others train one first, or ask nothing about
# time.
READS_TIME = frozenset(
    {
        "essay_steering",
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
# What is only true of the notebooks' own cells.
_OWN = {
    "cells": {},
    "held_out_groups": {},
    "no_ageing": {},
    "truth": {},
    "held_out_ages": [],
    "start": {},
    "target": {},
}
_COLUMNS = ("groupby", "match_by", "covariates")
# What the lists of columns hold, by the name of it in the notebooks' own cells.
_LISTED = {"cell_type": "cell_type_key", "sex": "sex_key", "batch": "batch_key"}
_SHOWN = 8  # values of a column in a message
_YEARS_APART = 5  # largest difference in age of a match, where ages are in years
_VALUES = ("cells", "held_out_groups", "no_ageing", "start", "target")


def columns(values: Mapping[str, Any]) -> Iterator[tuple[str, str, list]]:
    """Parameters that name columns of `.obs`: parameter, column, values that have to occur in it."""
    for key, value in values.items():
        if not value or value == UNKNOWN:
            continue
        if (key.endswith("_key") or key == "train_donors") and isinstance(value, str):
            control = values.get("control") if key == "condition_key" else None
            yield key, value, [control] if control else []
        elif key in _COLUMNS and isinstance(value, list):
            yield from ((key, column, []) for column in value)
        elif key in _VALUES and isinstance(value, dict):
            for column, found in value.items():
                yield key, column, found if isinstance(found, list) else [found]


def read_obs(path: str | Path) -> tuple[pd.DataFrame, list[str]]:
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
    """Parameters for cells of one's own, with columns guessed from their names; or raise with what does not fit."""
    obs, layers = read_obs(given["path"])
    guessed = guess_parameters(known, given, obs)
    values = {key: instead for key, instead in _OWN.items() if key in known} | guessed | given
    _say(say_columns({key: value for key, value in _roles(obs).items() if key not in given}))
    why = _why_not(name, known, values, obs, layers)
    if not why and "layer" in known:
        why = _no_counts(given["path"], values.get("layer", ""), force=bool(values.get("force")))
    if why:
        raise ValueError(f"{name} cannot be run on {given['path']}: {why}.")
    return values


@cache
def _say(line: str) -> None:
    """Once, however many notebooks take columns of a file."""
    print(line, file=sys.stderr)


def _roles(obs: pd.DataFrame) -> dict[str, str]:
    """Columns of a file, and what goes with them."""
    found = guess_columns(obs)
    if "condition_key" in found and (control := guess_control(obs[found["condition_key"]])):
        found["control"] = control
    if "time_key" in found and (unit := guess_unit(obs[found["time_key"]])):
        found["time_unit"] = unit
    return found


def guess_parameters(
    known: Mapping[str, Parameter], given: Mapping[str, Any], obs: pd.DataFrame
) -> dict[str, Any]:
    """Names of columns that nobody gave, and what goes with them, as the file has them; "" where it has none."""
    roles = guess_columns(obs)
    found: dict[str, Any] = {}
    for key in known:
        if key in given:
            continue
        if key == "donor_key" and _is_optional(known[key]) and key in roles and obs[roles[key]].nunique() < 2:
            # One donor is none to hold out.
            found[key] = ""
        elif key in roles:
            found[key] = roles[key]
        elif key.endswith("_key"):
            found[key] = known[key].default if known[key].default in obs else ""
        elif key in _COLUMNS:
            listed = known[key].default or (["cell_type"] if key == "groupby" else [])
            columns = [roles.get(_LISTED.get(name, name), name if name in obs else None) for name in listed]
            found[key] = list(dict.fromkeys(column for column in columns if column))
    values = found | dict(given)
    if "control" in known and "control" not in given and values.get("condition_key") in obs:
        found["control"] = guess_control(obs[values["condition_key"]]) or ""
    if "time_unit" in known and "time_unit" not in given and values.get("time_key") in obs:
        found["time_unit"] = guess_unit(obs[values["time_key"]]) or known["time_unit"].default
        if "tolerance" in known and "tolerance" not in given and found["time_unit"] == "years":
            found["tolerance"] = _YEARS_APART
    return found


def _why_not(
    name: str, known: Mapping[str, Parameter], given: Mapping[str, Any], obs: pd.DataFrame, layers: list[str]
) -> str:
    """Why a notebook cannot be run on these cells; "" if it can."""
    values = {key: parameter.default for key, parameter in known.items()} | dict(given)
    reasons = []
    if (layer := values.get("layer")) and layer not in layers:
        reasons.append(f"there is no layer {layer!r} (layer)")
    reasons += [f"{what} ({key}); {suggest_columns(obs, key)}" for key, what in _missing(known, values)]
    for key, column, needed in columns(values):
        if column not in obs:
            reasons.append(f".obs has no column {column!r} ({key}); {suggest_columns(obs, key)}")
        elif missing := [
            value for value in as_labels(needed) if value not in as_labels(obs[column].astype(object))
        ]:
            has = ", ".join(map(repr, sorted(set(as_labels(obs[column].astype(object))))[:_SHOWN]))
            reasons.append(
                f"no cell has {', '.join(map(repr, missing))} in .obs[{column!r}] ({key}), which has {has}"
            )
        elif key == "time_key":
            reasons += _bad_times(obs, column, values.get("time_unit", "months"))
        elif key == "donor_key" and not _is_optional(known[key]) and obs[column].nunique() < 2:
            reasons.append(
                f"all cells are of one donor in .obs[{column!r}] ({key}), and others have to be held out"
            )
    if "start" in known and not (values["start"] and values["target"]):
        roles = _roles(obs)
        column, control = roles.get("condition_key", "COLUMN"), roles.get("control", "VALUE")
        other = next((str(value) for value in obs.get(column, []) if str(value) != control), "VALUE")
        reasons.append(
            f"start and target say which cells are led, and to which, by columns of .obs: -p 'start={{{column}: [{other}]}}' "
            f"-p 'target={{{column}: [{control}]}}'; {suggest_columns(obs, 'condition_key')}"
        )
    if (
        name in READS_TIME
        and values.get("model") in DEMO
        and not values.get("train_steps")
        and values["time_key"] in obs
    ):
        teach = ", or train_steps to teach it the time of your cells" if "train_steps" in known else ""
        reasons.append(
            "it reads time, and the time of the demo models is that of a simulation: give model, the folder of one that "
            f"mt.train.temporal has trained (train_stage2_temporal writes one){teach}"
        )
    return "; ".join(dict.fromkeys(reasons))


def _missing(known: Mapping[str, Parameter], values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Columns that a notebook cannot do without and that none was found for: parameter, and what to say."""
    asked = {
        "time_key": "no column of .obs was found to hold ages or times",
        "condition_key": "no column of .obs was found to hold conditions, controls among them",
        "donor_key": "no column of .obs was found to hold donors",
        "cell_type_key": "no column of .obs was found to hold cell types",
    }
    for key, what in asked.items():
        if key in known and not values[key] and not _is_optional(known[key]):
            yield key, what
    if "control" in known and values.get("condition_key") and not values["control"]:
        yield (
            "control",
            f"no value of .obs[{values['condition_key']!r}] is called control, healthy or normal: say which controls have",
        )


def _is_optional(parameter: Parameter) -> bool:
    """Whether a notebook can do without the column, as its help says."""
    return '""' in parameter.help


def _bad_times(obs: pd.DataFrame, time_key: str, unit: str) -> list[str]:
    """Why a column holds no times."""
    column = obs[time_key]
    try:
        times = whole_times(obs, time_key, unit)
        times = times[np.isfinite(times)]
        if not len(times):
            return [f"no age can be read from .obs[{column.name!r}] (first: {column.iloc[0]!r}) (time_key)"]
        as_times(pd.Series(times), column.name)
    except ValueError as error:
        return [f"{str(error).rstrip('.')} (time_key)"]
    if len(np.unique(times)) < 2:
        return [f"all cells are of one time in .obs[{column.name!r}] (time_key)"]
    return []
