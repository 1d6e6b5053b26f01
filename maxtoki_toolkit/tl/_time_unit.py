"""Whether the times of cells are in the unit that they are taken for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from ..pp._columns import LIFE, UNITS

# What makes one unit of another, as a user writes it.
_FACTORS = {
    ("years", "months"): " * 12",
    ("months", "years"): " / 12",
    ("weeks", "days"): " * 7",
    ("days", "hours"): " * 24",
}


def check_unit(time_key: str, times: np.ndarray, unit: str, *, may_name: bool = False) -> str:
    """What a column is read as, in words; or raise if it may be in another unit: all would be wrong by a factor.

    With `may_name` the advice is to name the unit, else to convert the column.
    """
    low, high = (float(end) for end in (np.min(times), np.max(times)))
    words = re.split(r"[^a-z]+", time_key.lower())
    named = [name for name, pattern in UNITS.items() if any(re.fullmatch(pattern, word) for word in words)]
    if named and unit not in UNITS:
        raise ValueError(f".obs[{time_key!r}] is in {named[0]} by its name, and the model reads {unit}.")
    if named and unit not in named:
        advice = _advice(time_key, named[0], unit, may_name=may_name)
        raise ValueError(
            f".obs[{time_key!r}] is in {named[0]} by its name, but is taken for {unit}: {advice}"
        )
    if not named:
        other = {"months": 18 <= high <= LIFE, "years": LIFE < high <= 12 * LIFE}.get(unit, False)
        if other:
            likely = "years" if unit == "months" else "months"
            raise ValueError(
                f".obs[{time_key!r}] goes from {low:g} to {high:g}, which is taken for {unit}. If these are {likely}, "
                f"{_advice(time_key, likely, unit, may_name=may_name)} If they are {unit}, say so in the column's name: "
                f"adata.obs['{time_key}_{unit}'] = adata.obs[{time_key!r}]."
            )
    return f"{unit}, {low:g} to {high:g}" + (f", as {time_key!r} says" if named else "")


def check_prompts(params: Mapping[str, Any], table: pd.DataFrame, unit: str) -> str:
    """The same of prompts that a model is to read; distances have their unit with them."""
    given = params.get("distance_unit")
    if given is None:
        return check_unit(params["time_key"], table["time"], unit)
    if given != unit:
        raise ValueError(
            f"The lapses of these prompts are distances in {given}, and the model reads {unit}. Teach a model such prompts first: "
            "mt.train.temporal(..., prompts=...)."
        )
    return f"{unit}, {table['lapse'].min():g} to {table['lapse'].max():g}"


def _advice(time_key: str, given: str, wanted: str, *, may_name: bool) -> str:
    if may_name:
        return f"pass time_unit={given!r}."
    if (given, wanted) in _FACTORS:
        how = f"adata.obs['in_{wanted}'] = (adata.obs[{time_key!r}]{_FACTORS[given, wanted]}).round()"
        return f"convert the column to {wanted}, {how}, and go on from there."
    return f"convert the column to {wanted}, and go on from there."
