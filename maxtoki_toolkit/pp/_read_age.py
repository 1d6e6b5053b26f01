"""One age from what people write: "79-year-old human stage", "18 mo", "P21", "40-45", "90+".

An age is read when the words fix it, to within what they leave open. A wrong age is worse than none: "23"
could be years or months, "67M" a man or months, "10 weeks" a mouse or a fetus, and none of them is read
unless something else says which.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from .._reference import stage_table

DAYS = {"years": 365.25, "months": 365.25 / 12, "weeks": 7.0, "days": 1.0}
# Days of pregnancy, as HsapDv and MmusDv say of their prenatal stages.
BIRTH = {"human": 266, "mouse": 19}
_LIFE = {"human": 130, "mouse": 5}  # years; none is older
_WIDEST = 25  # years; what is wider says nothing of an age
_LATE = {
    "years": 60,
    "months": 18,
}  # of lower limits: "18+" is a rule for who may take part, "90+" hides an age
_EARLY = 5 * DAYS["years"]  # of upper limits
_MALE = 36  # months; "60m" is a man
_GROWN = 18  # a range without a unit from here on is in years
# First day after fertilization of Carnegie stages 1 to 23, and the last of the last (HsapDv).
_CARNEGIE = [0, 2.5, 4.5, 5.5, 7, 13, 15, 17, 19, 22, 23, 26, 28, 31, 35, 37, 42, 44, 48, 51, 53, 54, 56, 60]
# Days after conception within which mouse embryos of Theiler stages 1 to 26 are found (MmusDv).
_THEILER = (
    "0-2.5 1-2.5 1-3.5 2-4 3-5.5 4-5.5 4.5-6 5-6.5 6.25-7.25 6.5-7.75 7.25-8 7.5-8.75 8-9.25 8.5-9.75 "
    "9-10.25 9.5-10.75 10-11.25 10.5-11.25 11-12.25 11.5-13 12.5-14 13.5-15 15-16 16-17 17-18 18-19"
).split()
# Weeks after fertilization at which months 3 to 9 from the last menstrual period begin, and birth (HsapDv).
_LMP_MONTHS = [8, 11, 15, 19, 24, 28, 33, 38]
_ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split()
_MISSING = {
    *(
        "",
        "nan",
        "none",
        "na",
        "n/a",
        "null",
        "nd",
        "-",
        "--",
        "?",
        ".",
        "unknown",
        "missing",
        "missing or unknown",
    ),
    *("not available", "not applicable", "not collected", "not provided", "not reported", "not determined"),
    *("unspecified", "restricted access", "unknown age"),
}

_NUMBER = r"(\d+(?:\.\d+)?)"
_UNITS = {
    "years": r"(?:y|yo|y/o|yrs?|years?)",
    "months": r"(?:m|mos?|mons?|mths?|months?)",
    "weeks": r"(?:w|wks?|weeks?)",
    "days": r"(?:d|days?)",
}
_UNIT = "(?:" + "|".join(_UNITS.values()) + ")"
_AMOUNT = rf"(?:\d+(?:\.\d+)?\s?{_UNIT}(?:[ ,]+(?:and )?|(?=\d)|$))+"
_ORDINAL = "(" + "|".join(_ORDINALS) + ")"
_NTH = r"(\d+)(?:st|nd|rd|th)"
# Who has been born, and words that say nothing.
_BORN = (
    r"\b(?:olds?|aged|post ?natal(?:ly)?|after birth|of age|neonat\w*|newborns?|infants?|child(?:ren)?|"
    r"juveniles?|toddlers?|adults?|elderly|mature|nursing|pups?)\b"
)
_NOISE = r"\b(?:human|mouse|mice|stage|age|male|female|and|about|approximately|approx|ca|circa)\b|[()~:]"
_CONCEPTION = r"(?:post|after)[ -]?(?:conception(?:al)?|fertili[sz]ation|ovulation)"
_WEEKS_AFTER = rf"(?:{_CONCEPTION} weeks?|pcw|wpc|wpf)"
_GESTATION = r"(?:gw|gestational weeks?|weeks? gestation)"
_EMBRYO = r"(?:e|ed|embryonic days?)"
_COITUM = rf"(?:dpc|pcd|days? (?:post coit(?:um|al)|{_CONCEPTION}))"
_MOUSE = (
    r"\b(?:mouse|mice|theiler|ts ?\d+|mmusdv|(?:e|ed|embryonic day) ?\d+\.\d|(?:p|pnd|postnatal day) ?\d+)\b"
)
_HUMAN = r"\b(?:human|hsapdv|carnegie|gestational)\b|\b(?:cs|pcw|wpc|gw) ?\d|\d ?(?:pcw|wpc|gw)\b|weeks? post"


class Reading(NamedTuple):
    """An age in days from birth, NaN where it cannot be known, and what it was taken for."""

    age: float
    low: float
    high: float
    read_as: str


OR_MALE = Reading(np.nan, np.nan, np.nan, "months, or a male?")


def read_age(text: str, species: str | None = None) -> Reading:
    """Read one age; `species` is "human", "mouse", another name, or `None` where only the words can tell.

    Examples
    --------
    >>> read_age("40-45").read_as
    '40 to 45 years'
    >>> read_age("E14.5")
    Reading(age=-4.5, low=-4.5, high=-4.5, read_as='14.5 days after conception of a mouse')
    >>> [read_age("8 weeks", species).read_as for species in ("mouse", None)]
    ['8 weeks', 'of age or of pregnancy?']
    >>> read_age("adult").read_as
    'not an age'
    """
    text = " ".join(str(text).split())
    if text.lower() in _MISSING:
        return _unknown("missing")
    if found := re.fullmatch(r"((?:HsapDv|MmusDv)[:_]\d{7})", text):
        key = found[1].replace("_", ":")
        species = "human" if key.startswith("H") else "mouse"
        table = stage_table()
        return read_age(table[key], species) if key in table else _unknown("not an age")
    if re.fullmatch(r"\d+(?:\.\d+)?\s?M", text):
        return OR_MALE
    text = _plain(text)
    if re.search(r"\bmouse\b|\bmice\b", text):
        species = species or "mouse"
    if twice := re.fullmatch(r"([^()]*\d[^()]*)\(([^()]*\d[^()]*)\)", text):
        # "embryonic day 16.5 (E16.5)" is one age, "16 years (16 yr 63 d)" two.
        first, second = (_read(part.strip(), species) for part in twice.groups())
        if first[:3] == second[:3]:
            return first
        if not np.isnan([first.age, second.age]).all():
            return _unknown("two ages")
    if named := re.fullmatch(r"([^()]+)\((?:at )?birth\)", text):
        found = _read(named[1].strip(), species)
        return found if found.age == 0 else _unknown("two ages")
    return _read(text, species)


def guess_species(texts: Iterable[str]) -> str | None:
    """Return the species that a column of ages is of, if the words of one say so and none of the other."""
    plain = [_plain(str(text)) for text in texts]
    mouse = any(re.search(_MOUSE, text) for text in plain)
    human = any(re.search(_HUMAN, text) or _is_grown(text) for text in plain)
    return None if mouse == human else "mouse" if mouse else "human"


def _is_grown(text: str) -> bool:
    """Whether this is an age in years that no mouse has."""
    found = re.match(rf"(\d+)[ -]?{_UNITS['years']}\b", text)
    return bool(found) and int(found[1]) > _LIFE["mouse"]


def _plain(text: str) -> str:
    """Lower case, one kind of dash and of limits, no abbreviation marks."""
    text = text.lower().replace("≥", ">=").replace("≤", "<=")
    text = re.sub(r"[‐-―−]", "-", text)
    text = re.sub(r"(?<=\d)_(?=\d)", "-", text).replace("_", " ")
    text = re.sub(r"(?<=[a-z])\.(?!\d)", "", text)
    # A band as pandas and R cut it.
    text = re.sub(r"^[\[(](\d+), ?(\d+)[\])]$", r"\1-\2", text)
    return " ".join(text.split())


def _read(text: str, species: str | None) -> Reading:
    if re.fullmatch(r"(?:term )?(?:newborn|neonate|neonatal)", text):
        return _interval(0, 28, "days")
    if re.fullmatch(r"newborn(?: human)? stage", text):
        return _interval(0, 31, "days")
    if re.fullmatch(r"(?:at )?birth|day of birth", text):
        return _exact(0, "days")
    if found := re.fullmatch(r"p(?:(\d+)y)?(?:(\d+)m)?(?:(\d+)w)?(?:(\d+)d)?", text):
        # ISO 8601, as phenopackets have it.
        parts = [(float(n), unit) for n, unit in zip(found.groups(), DAYS, strict=True) if n]
        if parts:
            return _sum(parts)
    if (ends := _split(text)) is not None:
        return _range(*ends, species)
    return _point(text, species)


def _point(text: str, species: str | None) -> Reading:
    """Read an age that is no range."""
    born = bool(re.search(_BORN, text))
    core = re.sub(r"[-](?=[a-z])|(?<=[a-z])-(?=\d)", " ", text)
    core = " ".join(re.sub(_NOISE, " ", re.sub(_BORN, " ", core)).split()).strip(",; ")
    if found := _in_pregnancy(core, species):
        return _unknown("not an age") if born and "after" in found.read_as else found
    # "postnatal day 3" has lost its first word.
    if found := re.fullmatch(rf"(?:p|pn|pnd|pd) ?{_NUMBER}|{_NUMBER} ?(?:dpp|dpn)", core):
        return _exact(float(found[1] or found[2]), "days")
    if born and (found := re.fullmatch(rf"days? {_NUMBER}", core)):
        return _exact(float(found[1]), "days")
    if found := _limit(core, species, born=born):
        return found
    if re.fullmatch(_AMOUNT, core):
        return _amount(core, species, born=born)
    return _unknown("no unit" if re.fullmatch(rf"-?{_NUMBER}", core) else "not an age")


def _in_pregnancy(text: str, species: str | None) -> Reading | None:
    """Read stages and times before birth, and what else has a word of its own."""
    for pattern, read in _POINTS:
        if found := re.fullmatch(pattern, text):
            return read(*found.groups())
    if found := re.fullmatch(rf"{_EMBRYO} ?{_NUMBER}", text):
        return _after_conception(found[1], species)
    if found := re.fullmatch(rf"{_NUMBER} ?{_COITUM}|dpc ?{_NUMBER}", text):
        days = found[1] or found[2]
        # Later than the birth of a mouse or a rat.
        return _after_conception(days, species or ("human" if float(days) > 21 else None))
    if found := re.fullmatch(rf"{_NUMBER} ?dpf", text):
        # Of fishes, as a rule.
        return _after_conception(found[1], species) if species else _unknown("of which species?")
    return None


def _unknown(why: str) -> Reading:
    return Reading(np.nan, np.nan, np.nan, why)


def _unit_of(word: str) -> str:
    return next(name for name, pattern in _UNITS.items() if re.fullmatch(pattern, word))


def _interval(low: float, high: float, unit: str, *, after: str = "", of: str = "human") -> Reading:
    """Between two numbers of a unit from birth, or from the beginning of pregnancy."""
    if low > high:
        return _unknown("not an age")
    ends = [end * DAYS[unit] for end in (low, high)]
    span = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    span += f" {unit.removesuffix('s') if high == 1 else unit}"
    if after:
        # Pregnancies that are longer end at birth.
        ends = [min(end - BIRTH[of], 0) for end in ends]
        span = f"{span} after {after}"
    elif ends[1] > _LIFE["human"] * DAYS["years"]:
        return _unknown("not an age")
    return Reading(sum(ends) / 2, *ends, span)


def _exact(number: float, unit: str) -> Reading:
    return _interval(number, number, unit)


def _sum(parts: list[tuple[float, str]]) -> Reading:
    """Read years, months, weeks and days together."""
    days = sum(number * DAYS[unit] for number, unit in parts)
    found = _exact(days, "days")
    said = " ".join(f"{number:g} {unit.removesuffix('s') if number == 1 else unit}" for number, unit in parts)
    return found if np.isnan(found.age) else found._replace(read_as=said)


def _amount(text: str, species: str | None, *, born: bool) -> Reading:
    """Read numbers with units after birth, if birth is what they count from."""
    pairs = re.findall(rf"{_NUMBER}\s?({_UNIT})(?![a-z])", text)
    parts = [(float(number), _unit_of(word)) for number, word in pairs]
    for (_, larger), (number, smaller) in zip(parts, parts[1:], strict=False):
        if number * DAYS[smaller] >= DAYS[larger]:
            return _unknown("not an age")
    if _may_be_of_pregnancy(parts[0][1], species, born=born) and any(number for number, _ in parts):
        return _unknown("of age or of pregnancy?")
    if pairs == [(pairs[0][0], "m")] and parts[0][0] > _MALE:
        return OR_MALE
    found = _sum(parts)
    if species == "mouse" and found.age > _LIFE["mouse"] * DAYS["years"]:
        return _unknown("not an age")
    return found


def _may_be_of_pregnancy(unit: str, species: str | None, *, born: bool) -> bool:
    # "12 weeks" is a grown mouse and a human fetus.
    return unit in ("weeks", "days") and not born and species in (None, "human")


def _split(text: str) -> tuple[str, str] | None:
    """Both ends of a range, each with its words: "GW17-18" is "gw17" and "gw18"."""
    dash = re.fullmatch(
        r"(.*?)(\d+(?:\.\d+)?)([a-z/ ]*?)\s?(?:-|\bto\b)\s?([a-z ]*?)(\d+(?:\.\d+)?)(.*)", text
    )
    if dash is None:
        return None
    before, low, unit, again, high, after = dash.groups()
    before = re.sub(r"[(]", " ", before)
    after = re.sub(r"[)]", " ", after)
    return f"{before}{low}{unit or after}".strip(), f"{again or before}{high}{after or unit}".strip()


def _range(low: str, high: str, species: str | None) -> Reading:
    ends = _point(low, species), _point(high, species)
    bare = [re.fullmatch(rf"(?:aged? ?:? ?)?{_NUMBER}", end) for end in (low, high)]
    if all(bare):
        # Nobody counts to 37 months in a band.
        first, last = (float(found[1]) for found in bare)
        if species != "mouse" and (first >= _GROWN or last > _MALE):
            ends = _exact(first, "years"), _exact(last, "years")
    bad = next((end for end in ends if np.isnan(end.age) or np.isnan(end.high)), None)
    if bad is not None:
        return bad if np.isnan(bad.age) else _unknown("not an age")
    first, last = ends[0].low, ends[1].high
    if first > last:
        return _unknown("not an age")
    if last - first > _WIDEST * DAYS["years"]:
        return _unknown(f"over {_WIDEST} years wide")
    return Reading((first + last) / 2, first, last, _join(ends[0].read_as, ends[1].read_as))


def _join(first: str, last: str) -> str:
    """Say "40 years" and "45 years" as one range."""
    a, b = re.match(r"([\d.]+)(?: to [\d.]+)? (.*)", first), re.match(r"(?:[\d.]+ to )?([\d.]+) (.*)", last)
    same = a and b and a[2].replace("s", "") == b[2].replace("s", "")
    return f"{a[1]} to {b[1]} {b[2]}" if same else f"{first} to {last}"


def _limit(text: str, species: str | None, *, born: bool) -> Reading | None:
    """Read limits: "90+", ">89", "under 1 year"."""
    number = rf"{_NUMBER} ?({_UNIT})?"
    above = (
        rf"{number} ?(?:\+|(?:or )?(?:over|above|older|more|up))",
        rf"{_NUMBER} ?\+ ?({_UNIT})?",
        rf"(?:>=?|over|above|at least|older than|more than) ?{number}",
    )
    for pattern in above:
        if found := re.fullmatch(pattern, text):
            return OR_MALE if found[2] == "m" else _at_least(float(found[1]), found[2])
    if found := re.fullmatch(rf"(?:<=?|under|below|younger than|less than) ?{_NUMBER} ?({_UNIT})", text):
        unit = _unit_of(found[2])
        if _may_be_of_pregnancy(unit, species, born=born):
            return _unknown("of age or of pregnancy?")
        wide = float(found[1]) * DAYS[unit] > _EARLY
        return _unknown("no lower limit") if wide else _interval(0, float(found[1]), unit)
    if re.fullmatch(rf"(?:<=?|under|below) ?{_NUMBER}", text):
        return _unknown("no lower limit")
    return None


def _at_least(number: float, word: str | None) -> Reading:
    unit = _unit_of(word) if word else "years" if number >= _LATE["years"] else None
    if unit is None or unit not in _LATE or number < _LATE[unit]:
        return _unknown("no upper limit")
    found = _exact(number, unit)
    if np.isnan(found.age):
        return found
    return found._replace(high=np.nan, read_as=f"at least {found.read_as}")


def _after_conception(number: str, species: str | None) -> Reading:
    """Read days of pregnancy; of a mouse if nothing says otherwise."""
    days = float(number)
    if species is None:
        # Human embryos before implantation are told in whole days up to 7.
        if "." not in number and days < 8:
            return _unknown("of which species?")
        species = "mouse"
    if species == "mouse":
        if days > BIRTH["mouse"] + 1:
            return _unknown("not an age")
        return _interval(days, days, "days", after="conception of a mouse", of="mouse")
    if species != "human":
        return _unknown("of which species?")
    if days > BIRTH["human"] + 14:
        return _unknown("not an age")
    return _interval(days, days, "days", after="fertilization")


def _weeks_after(weeks: str, days: str | None = None) -> Reading:
    total = float(weeks) * 7 + float(days or 0)
    if total > 40 * 7:
        return _unknown("not an age")
    if days:
        return _interval(total, total, "days", after="fertilization")
    return _interval(float(weeks), float(weeks), "weeks", after="fertilization")


def _gestational(weeks: str, days: str | None = None) -> Reading:
    # Counted from the last menstrual period, two weeks before.
    return _weeks_after(str(float(weeks) - 2), days) if 2 <= float(weeks) <= 42 else _unknown("not an age")


def _nth_week(number: str, shift: int = 0) -> Reading:
    # The tenth week is the one after nine weeks.
    last = int(number) - shift
    return (
        _interval(last - 1, last, "weeks", after="fertilization")
        if 1 <= last <= 40
        else _unknown("not an age")
    )


def _lmp_month(word: str) -> Reading:
    month = _ORDINALS.index(word) + 1
    if not 3 <= month <= 9:
        return _unknown("not an age")
    return _interval(_LMP_MONTHS[month - 3], _LMP_MONTHS[month - 2], "weeks", after="fertilization")


def _carnegie(number: str) -> Reading:
    stage = int(number)
    if not 1 <= stage < len(_CARNEGIE):
        return _unknown("not an age")
    return _interval(_CARNEGIE[stage - 1], _CARNEGIE[stage], "days", after="fertilization")


def _theiler(number: str) -> Reading:
    stage = int(number)
    if stage == len(_THEILER) + 1:
        return _interval(0, 3, "days")
    if not 1 <= stage <= len(_THEILER):
        return _unknown("not an age")
    low, high = map(float, _THEILER[stage - 1].split("-"))
    return _interval(low, high, "days", after="conception of a mouse", of="mouse")


def _decade(first: int) -> Reading:
    return _interval(first, first + 9, "years")


_POINTS = [
    (rf"{_NUMBER} ?(?:weeks? {_CONCEPTION}|{_WEEKS_AFTER})", _weeks_after),
    (rf"{_NUMBER} weeks? {_NUMBER} days? {_CONCEPTION}", _weeks_after),
    (rf"{_WEEKS_AFTER} ?{_NUMBER}", _weeks_after),
    (rf"{_NUMBER} ?{_GESTATION}", _gestational),
    (rf"{_GESTATION} ?{_NUMBER}(?:\+([0-6]))?", _gestational),
    (rf"{_NUMBER} ?(?:w|wks?|weeks?) (?:of )?(?:gestation(?:al)?|pregnancy|ga)", _gestational),
    (rf"(?:gestational|ga) ?{_NUMBER}(?:\+([0-6]))? ?(?:w|wks?|weeks?)", _gestational),
    (rf"{_NTH} week {_CONCEPTION}(?: over)?", _nth_week),
    (rf"{_NTH} (?:gestational week|week of (?:gestation|pregnancy))", lambda number: _nth_week(number, 2)),
    (rf"{_ORDINAL} lmp month", _lmp_month),
    (r"(?:carnegie|cs) ?(\d+)[a-c]?", _carnegie),
    (r"(?:theiler|ts) ?(\d+)[a-d]?", _theiler),
    (rf"{_ORDINAL} decade", lambda word: _decade(10 * _ORDINALS.index(word))),
    (r"(?:in (?:his|her|their) )?(?:early |mid |late )?([2-9]0)s", lambda number: _decade(int(number))),
    (r"centenarian", lambda: _at_least(100, "years")),
]
