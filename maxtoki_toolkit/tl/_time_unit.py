"""Whether the times of cells are in the unit that they are taken for."""

from __future__ import annotations

import re
import warnings

import numpy as np

_WORDS = {
    "years": r"years?|yrs?",
    "months": r"months?|mos?",
    "weeks": r"weeks?|wks?",
    "days": r"days?",
    "hours": r"hours?|hrs?",
}
_LIFE = 120  # years; ages of people in months go further


def warn_of_unit(time_key: str, times: np.ndarray, unit: str, advice: str = "") -> None:
    """Warn if a column seems to be in another unit than that of the model, or the one given: all would be wrong by a factor."""
    times = np.asarray(times)
    words = re.split(r"[^a-z]+", time_key.lower())
    named = [name for name, pattern in _WORDS.items() if any(re.fullmatch(pattern, word) for word in words)]
    advice = advice or f"convert the column to {unit}, and go on from there."
    if named and unit in _WORDS and unit not in named:
        text = f".obs[{time_key!r}] is in {named[0]} by its name, but is taken for {unit}: {advice}"
    elif not named and unit == "months" and 18 <= np.max(times, initial=0) <= _LIFE:
        text = (
            f".obs[{time_key!r}] goes from {np.min(times):g} to {np.max(times):g}, which is taken for months. If "
            f"these are years, {advice}"
        )
    else:
        return
    warnings.warn(text, UserWarning, stacklevel=3)
