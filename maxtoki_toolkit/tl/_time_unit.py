"""Whether the times of cells are in the unit that they are taken for."""

from __future__ import annotations

import re

import numpy as np

from ..pp._columns import LIFE, UNITS


def check_unit(time_key: str, times: np.ndarray, unit: str, advice: str = "") -> str:
    """What a column is read as, in words; or raise if it may be in another unit: all would be wrong by a factor."""
    low, high = (float(end) for end in (np.min(times), np.max(times)))
    words = re.split(r"[^a-z]+", time_key.lower())
    named = [name for name, pattern in UNITS.items() if any(re.fullmatch(pattern, word) for word in words)]
    advice = advice or f"convert the column to {unit}, and go on from there."
    if named and unit in UNITS and unit not in named:
        raise ValueError(
            f".obs[{time_key!r}] is in {named[0]} by its name, but is taken for {unit}: {advice}"
        )
    if not named:
        other = {"months": 18 <= high <= LIFE, "years": LIFE < high <= 12 * LIFE}.get(unit, False)
        if other:
            likely = "years" if unit == "months" else "months"
            raise ValueError(
                f".obs[{time_key!r}] goes from {low:g} to {high:g}, which is taken for {unit}. If these are {likely}, "
                f"{advice} If they are {unit}, say so in the column's name: "
                f"adata.obs['{time_key}_{unit}'] = adata.obs[{time_key!r}]."
            )
    return f"{unit}, {low:g} to {high:g}" + (f", as {time_key!r} says" if named else "")
