"""Ages from what people write: "79-year-old human stage", "18 mo", "40-45", "11th week post-fertilization"."""

from __future__ import annotations

import re
import warnings
from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from .._validate import require_obs
from ..results.store import write_result

_DAYS = {"years": 365.25, "months": 365.25 / 12, "weeks": 7.0, "days": 1.0}
_BIRTH = 266  # days after fertilization, as in the ontology of human stages (HsapDv)
_LIFE = 130  # years; nobody is older
_ADULT = 18  # a range without a unit that reaches this is in years
# First day after fertilization of Carnegie stages 1 to 23, and the last of the last (HsapDv).
_CARNEGIE = [0, 2.5, 4.5, 5.5, 7, 13, 15, 17, 19, 22, 23, 26, 28, 31, 35, 37, 42, 44, 48, 51, 53, 54, 56, 60]
_ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split()
# Words that go with ages and say nothing of them.
_NOISE = r"\b(?:human|adult|child|juvenile|infant|newborn|stage|aged?|olds?|and|or)\b|[()]|[-_](?=[a-z])"
_NUMBER = r"(\d+(?:\.\d+)?)"
_UNITS = {
    "years": r"(?:y|yo|y/o|yrs?|years?)",
    "months": r"(?:mos?|mths?|months?)",
    "weeks": r"(?:w|wks?|weeks?)",
    "days": r"(?:d|days?)",
}
_UNIT = "(" + "|".join(_UNITS.values()) + ")"


class Reading(NamedTuple):
    """An age in days from birth (negative before it), NaN where it cannot be known, and what it was taken for."""

    age: float
    low: float
    high: float
    read_as: str


def parse_age(
    adata: AnnData,
    key: str = "development_stage",
    *,
    unit: str = "months",
    key_added: str = "age",
) -> None:
    """Read ages from text: stages of CELLxGENE, ages with units, ranges, decades, weeks before birth.

    Parameters
    ----------
    adata
        Cells.
    key
        Column of `.obs` with the ages as text.
    unit
        Unit of what is written: "years", "months", "weeks" or "days".
    key_added
        Column of `.obs` to write, and how those beside it begin. If it is `key`, the text is kept in a column that ends in
        "_as_given".

    Returns
    -------
    `None`. Writes

    `.obs["age"]`
        The age; of a range its middle, of "90+" the least. Before birth it is negative. NaN where it cannot be known.
    `.obs["age_low"]`, `.obs["age_high"]`
        Ends of what the text leaves open; the upper one of "90+" is NaN.
    `.obs["age_read_as"]`
        What the text was taken for, such as "70 to 79 years" or "no unit".
    `.uns["parse_age"]`
        The table `terms`, one row a text: `term`, `n_cells`, and `age`, `age_low`, `age_high`, `age_read_as` as above.

    Raises
    ------
    KeyError
        If there is no such column.
    ValueError
        If no age can be read, or `key_added` is a column that this function did not write.

    Notes
    -----
    A number without a unit is not read, nor is a stage of life without numbers ("adult", "child"), of which releases of the
    ontology have differing definitions. Ranges and lower limits without a unit ("40-45", "90+") are in years if they
    reach 18. Weeks, months (from the last menstrual period) and Carnegie stages before birth are those of the
    ontology of human developmental stages; birth is 266 days after fertilization.

    Examples
    --------
    >>> import anndata, maxtoki_toolkit as mt
    >>> stages = ["79-year-old human stage", "fifth decade human stage", "18 mo"]
    >>> adata = anndata.AnnData(obs={"development_stage": stages})
    >>> mt.pp.parse_age(adata, "development_stage", unit="months")
    >>> adata.obs["age"].tolist()
    [948.0, 534.0, 18.0]
    """
    require_obs(adata, key)
    if unit not in _DAYS:
        raise ValueError(f"unit must be one of {', '.join(_DAYS)}, got {unit!r}.")
    names = [key_added, f"{key_added}_low", f"{key_added}_high", f"{key_added}_read_as"]
    ours = adata.uns.get(_keys.PARSE_AGE, {}).get("params", {}).get("key_added") == key_added
    if foreign := [name for name in names if name in adata.obs and name != key and not ours]:
        raise ValueError(
            f".obs has a column {foreign[0]!r} already, which would be replaced. Give another name: key_added='parsed_age'."
        )
    table = read_terms(adata.obs[key], unit, key_added)
    found = table["n_cells"][table[key_added].notna()].sum()
    lost = table[table[key_added].isna()].sort_values("n_cells", ascending=False, kind="stable")
    if not found:
        raise ValueError(
            f"No age can be read from .obs[{key!r}] ({_first(lost)}).{_advice(lost, key, key_added)}"
        )
    if len(lost):
        n_lost = lost["n_cells"].sum()
        warnings.warn(
            f"Read the ages of {found:,} of {adata.n_obs:,} cells from .obs[{key!r}]; those of {n_lost:,} cannot be known "
            f"({_first(lost)}).{_advice(lost, key, key_added)}",
            UserWarning,
            stacklevel=2,
        )
    text = _as_text(adata.obs[key])
    if key == key_added:
        adata.obs[f"{key}_as_given"] = adata.obs[key]
    by_term = table.set_index("term")
    for name in names:
        adata.obs[name] = by_term[name].reindex(text).to_numpy()
    adata.obs[names[-1]] = adata.obs[names[-1]].astype("category")
    write_result(adata, _keys.PARSE_AGE, {"key": key, "unit": unit, "key_added": key_added}, terms=table)


def read_terms(column: pd.Series, unit: str, key_added: str = "age") -> pd.DataFrame:
    """One row a text of a column, in the order of their first cells, with its age in `unit`."""
    counts = _as_text(column).value_counts(sort=False)
    readings = [read_age(term) for term in counts.index]
    table = pd.DataFrame({"term": counts.index, "n_cells": counts.to_numpy()})
    for name, place in ((key_added, 0), (f"{key_added}_low", 1), (f"{key_added}_high", 2)):
        table[name] = np.array([reading[place] for reading in readings], dtype=float) / _DAYS[unit]
    return table.assign(**{f"{key_added}_read_as": [reading.read_as for reading in readings]})


def _as_text(column: pd.Series) -> pd.Series:
    """Text of each cell, "" where there is none."""
    text = column.astype(object)
    return text.where(text.notna(), "").astype(str)


def _first(lost: pd.DataFrame, n: int = 3) -> str:
    """The most frequent texts without an age, with their numbers of cells."""
    shown = ", ".join(f"{row.term!r} {row.n_cells:,}" for row in lost.head(n).itertuples())
    return shown + (f", and {len(lost) - n} more" if len(lost) > n else "")


def _advice(lost: pd.DataFrame, key: str, key_added: str) -> str:
    if not (lost[f"{key_added}_read_as"] == "no unit").any():
        return ""
    return (
        f" A number without a unit may be years or months: write it, e.g. adata.obs[{key!r}] = "
        f"adata.obs[{key!r}].astype(str) + ' years'."
    )


def read_age(text: str) -> Reading:
    """Read one age.

    Examples
    --------
    >>> read_age("40-45").read_as
    '40 to 45 years'
    >>> read_age("adult").read_as
    'not an age'
    """
    text = " ".join(text.lower().replace("–", "-").replace("—", "-").split())
    if text in ("", "nan", "none", "na", "n/a", "unknown", "not available"):
        return _unknown("missing")
    if found := re.fullmatch(r"newborn(?: human)?(?: stage)?(?: \(0-28 days\))?", text):
        return _interval(0, 28, "days")
    text = " ".join(re.sub(_NOISE, " ", re.sub(r"(?<=[a-z])\.", "", text)).split())
    for pattern, read in _PATTERNS:
        if found := re.fullmatch(pattern, text):
            return read(*found.groups())
    return _unknown("not an age")


def _unknown(why: str) -> Reading:
    return Reading(np.nan, np.nan, np.nan, why)


def _unit_of(word: str | None) -> str | None:
    return next((name for name, pattern in _UNITS.items() if re.fullmatch(pattern, word or "")), None)


def _interval(low: float, high: float, unit: str, *, after: str = "birth") -> Reading:
    """Between two numbers of a unit after birth, or after fertilization."""
    shift = 0 if after == "birth" else -_BIRTH
    ends = [end * _DAYS[unit] + shift for end in (low, high)]
    if low > high or ends[1] > _LIFE * _DAYS["years"]:
        return _unknown("not an age")
    span = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    span += f" {unit.removesuffix('s') if high == 1 else unit}"
    return Reading(sum(ends) / 2, *ends, span if after == "birth" else f"{span} after {after}")


def _exact(number: str, word: str) -> Reading:
    return _interval(float(number), float(number), _unit_of(word))


def _years_months(years: str, _: str, months: str, __: str) -> Reading:
    total = 12 * float(years) + float(months)
    return _interval(total, total, "months")


def _range(low: str, high: str, word: str | None = None) -> Reading:
    unit = _unit_of(word) or ("years" if float(high) >= _ADULT else None)
    return _interval(float(low), float(high), unit) if unit else _unknown("no unit")


def _at_least(number: str, word: str | None = None) -> Reading:
    unit = _unit_of(word) or ("years" if float(number) >= _ADULT else None)
    if unit is None:
        return _unknown("no unit")
    found = _interval(float(number), float(number), unit)
    return (
        found._replace(high=np.nan, read_as=f"at least {found.read_as}") if found.age == found.age else found
    )


def _below(number: str, word: str) -> Reading:
    return _interval(0, float(number), _unit_of(word))


def _decade(word: str) -> Reading:
    first = 10 * _ORDINALS.index(word)
    return _interval(first, first + 9, "years")


def _conceptional_week(number: str) -> Reading:
    # The tenth week is the one after nine weeks.
    return _interval(int(number) - 1, int(number), "weeks", after="fertilization")


def _weeks_after_fertilization(number: str) -> Reading:
    return _interval(float(number), float(number), "weeks", after="fertilization")


def _gestational_weeks(number: str) -> Reading:
    # Counted from the last menstrual period, two weeks before.
    return _interval(float(number) - 2, float(number) - 2, "weeks", after="fertilization")


def _lmp_month(word: str) -> Reading:
    # Of four weeks each; the ontology has the fourth begin eleven weeks after fertilization.
    first = 11 + 4 * (_ORDINALS.index(word) - 3)
    return _interval(first, first + 4, "weeks", after="fertilization")


def _carnegie(number: str) -> Reading:
    stage = int(number)
    if not 1 <= stage < len(_CARNEGIE):
        return _unknown("not an age")
    return _interval(_CARNEGIE[stage - 1], _CARNEGIE[stage], "days", after="fertilization")


_ORDINAL = "(" + "|".join(_ORDINALS) + ")"
_PATTERNS = [
    (rf"{_NUMBER}[ -]?{_UNIT}", _exact),
    (rf"{_NUMBER} ?({_UNITS['years']}),? ?{_NUMBER} ?({_UNITS['months']}|m)", _years_months),
    (rf"{_NUMBER} ?(?:-|to) ?{_NUMBER}(?:[ -]?{_UNIT})?", _range),
    (rf"{_NUMBER}[ -]?{_UNIT}? ?(?:\+|over|above|older|more)", _at_least),
    (rf"{_NUMBER} ?\+ ?{_UNIT}?", _at_least),
    (rf"(?:>=?|≥|over|above|at least) ?{_NUMBER}(?:[ -]?{_UNIT})?", _at_least),
    (rf"(?:<|under|below)[ -]?{_NUMBER}[ -]?{_UNIT}", _below),
    (rf"{_ORDINAL} decade", _decade),
    (r"(\d+)(?:st|nd|rd|th) week post ?fertilization(?: over)?", _conceptional_week),
    (rf"{_NUMBER} ?(?:weeks? post ?(?:fertilization|conception)|pcw|wpc|wpf)", _weeks_after_fertilization),
    (rf"(?:pcw|wpc|wpf) ?{_NUMBER}", _weeks_after_fertilization),
    (rf"(?:gw|gestational weeks?) ?{_NUMBER}", _gestational_weeks),
    (rf"{_NUMBER} ?(?:gw|gestational weeks?|weeks? gestation)", _gestational_weeks),
    (rf"{_ORDINAL} lmp month", _lmp_month),
    (r"(?:carnegie|cs) ?(\d+)[a-c]?", _carnegie),
    (_NUMBER, lambda number: _unknown("no unit")),
]
