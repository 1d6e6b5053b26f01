"""Which columns of `.obs` hold the donor, the age, the cell type and the condition: guessed by name, said in one line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from .._warn import warn

# The names of CELLxGENE's schema and other common ones, the likeliest first; case and separators do not
# count.
_NAMES = {
    "donor_key": "donor_id donor donor_name patient_id patient individual_id individual subject_id subject participant_id participant embryo_id",
    "time_key": "age_months age_in_months age_years age_in_years age_yrs age_yr development_stage developmental_stage development_stage_ontology_term_id age donor_age age_at_collection age_weeks age_days hours days weeks timepoint time_point time",
    "cell_type_key": "cell_type cell_types cell_type_name cell_ontology_class cell_annotation annotation cell_label inferred_cell_type predicted_cell_type majority_voting",
    "condition_key": "condition disease disease_state disease_status diagnosis case_control status treatment stim",
    "sex_key": "sex gender donor_sex sex_inferred",
    "perturbation_key": "perturbation perturbations target_gene gene_target guide_identity guide sgrna treatment drug compound condition stim",
    "batch_key": "batch batch_id library_id library chip assay dataset_id",
    "library_key": "image_id image library_id library section_id section slice slide_id slide brain_section_label fov",
}
# Guessed only where it is asked for: most cells lie in no image.
_OF_ALL = tuple(role for role in _NAMES if role != "library_key")
# Of these a column with one value says nothing.
_DIFFER = ("time_key", "condition_key", "perturbation_key", "batch_key")
_CONTROLS = (
    "control controls ctrl normal healthy healthycontrol unaffected none vehicle pbs dmso mock sham untreated unstimulated "
    "nontargeting wt wildtype"
)
# Words that mean a control wherever they stand.
_SURE = {"control", "ctrl", "vehicle", "dmso", "pbs", "mock", "untreated", "unstimulated"}
_MOST = 0.9  # of the cells that the best column knows the time of
# What the column of a parameter holds, where its name does not say it.
_ROLES = {"groupby": "cell_type_key"}
UNITS = {
    "years": r"years?|yrs?",
    "months": r"months?|mos?",
    "weeks": r"weeks?|wks?",
    "days": r"days?",
    "hours": r"hours?|hrs?",
}
LIFE = 120  # years; ages of people in months go further
# Columns that this package writes.
_OURS = frozenset(
    "n_genes_ranked share_ranked train held_out held_out_groups held_out_times held_out_donors".split()
)
_SHOWN = 12  # names of columns in a message


def guess_columns(obs: pd.DataFrame, roles: Iterable[str] = _OF_ALL) -> dict[str, str]:
    """Return the likely column of each role, without those that there are none for.

    Examples
    --------
    >>> import pandas as pd
    >>> obs = pd.DataFrame({"donor_id": ["a", "b"], "development_stage": ["40-year-old human stage", "adult"]})
    >>> guess_columns(obs)
    {'donor_key': 'donor_id'}
    >>> guess_columns(obs.assign(Age=[40, 60]))
    {'donor_key': 'donor_id', 'time_key': 'Age'}
    """
    found = {role: _candidates(obs, role) for role in roles}
    return {role: columns[0] for role, columns in found.items() if columns}


def _candidates(obs: pd.DataFrame, role: str) -> list[str]:
    """Columns that may have a role, the likeliest first."""
    places: dict[str, str] = {}
    for column in obs.columns:
        places.setdefault(_plain(column), column)
    columns = [places[_plain(name)] for name in _NAMES[role].split() if _plain(name) in places]
    usable = [column for column in columns if _is_usable(obs, column, role)]
    if role == "time_key" and len(usable) > 1:
        # A column that says little ("adult") stands back behind one that says more.
        n_known = {column: _n_timed(obs, column) for column in usable}
        usable.sort(key=lambda column: n_known[column] < _MOST * max(n_known.values()))
    elif role in ("condition_key", "perturbation_key"):
        usable.sort(key=lambda column: guess_control(obs[column]) is None)
    elif role == "donor_key":
        usable.sort(key=lambda column: _n_values(obs[column]) < 2)
    return usable


def guess_control(column: pd.Series) -> str | None:
    """Return the value that controls have, if there is one that is called so, or has such a word in it."""
    values = {_plain(value): str(value) for value in column.dropna().unique()}
    if found := next((values[name] for name in _CONTROLS.split() if name in values), None):
        return found
    worded = [
        value
        for value in values.values()
        if _SURE & {_plain(word) for word in re.split(r"[^A-Za-z]+", value)}
    ]
    return worded[0] if len(worded) == 1 else None


def guess_unit(column: pd.Series) -> str | None:
    """Return the unit of a column of times, from its name or, of people's ages, from their range; of text, months."""
    named = unit_in_name(str(column.name))
    if named or not pd.api.types.is_numeric_dtype(column):
        return named or "months"
    if _plain(column.name) not in ("age", "donorage"):
        return None
    if column.max() > 12 * LIFE:
        # Bands such as "31-35" that lost their dash, or days.
        return None
    return "years" if column.max() <= LIFE else "months"


def find_unit(column: pd.Series, time_unit: str | None) -> str:
    """Return the unit of a column of times: the one that was named, or that its name or, of ages, their range give away."""
    if time_unit is not None:
        return time_unit
    unit = guess_unit(column)
    if unit is not None and unit_in_name(str(column.name)) is None:
        warn(f"Read .obs[{column.name!r}] as {unit}, by its range. Pass time_unit= to overrule this.")
    return unit or "months"


def unit_in_name(name: str) -> str | None:
    """Return the unit that the name of a column has in it."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((unit for unit, word in UNITS.items() if any(re.fullmatch(word, w) for w in words)), None)


def say_columns(found: Mapping[str, str]) -> str:
    """One line that says what was guessed."""
    if not found:
        return "No column of .obs has a name that says what it holds. Name them: donor_key, time_key, cell_type_key, condition_key."
    return f"Taken from the names in .obs: {', '.join(f'{key}={value!r}' for key, value in found.items())}. Name others to overrule this."


def find_columns(obs: pd.DataFrame, *, optional: Iterable[str] = (), **given: Any) -> dict[str, Any]:
    """Fill in what is `None` from the names of columns, and say so in a line; or raise with what could be named.

    Parameters
    ----------
    obs
        What is known of the cells.
    optional
        Names that stay `None` where no column is called so.
    given
        Columns by the names of parameters: `groupby` is the cell type, `control` a value of `condition_key`
        or `perturbation_key`.

    Returns
    -------
    `given`, filled in.

    Examples
    --------
    >>> import pandas as pd
    >>> obs = pd.DataFrame({"donor_id": ["a", "b"], "disease": ["normal", "asthma"]})
    >>> import warnings
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")
    ...     find_columns(obs, donor_key=None, condition_key="disease", control=None)
    {'donor_key': 'donor_id', 'condition_key': 'disease', 'control': 'normal'}
    """
    missing = [name for name, value in given.items() if value is None]
    roles = {name: _ROLES.get(name, name) for name in missing if name != "control"}
    guessed = guess_columns(obs, dict.fromkeys(roles.values()))
    found = {name: guessed[role] for name, role in roles.items() if role in guessed}
    for name in ("condition_key", "perturbation_key"):
        if name in found and given.get("control") is not None:
            with_it = [
                c for c in _candidates(obs, name) if given["control"] in as_labels(obs[c].dropna().unique())
            ]
            found[name] = with_it[0] if with_it else found[name]
    for name, role in roles.items():
        if name in optional and name in found and obs[found[name]].nunique() < 2:
            del found[name]  # one donor is none
        if name not in found and name not in optional:
            or_none = ", or groupby=[] for one group" if name == "groupby" else ""
            raise ValueError(
                f"Give {name}=: no column was found for it; {suggest_columns(obs, role)}{or_none}."
            )
    if "control" in missing:
        key = next(name for name in ("condition_key", "perturbation_key") if name in given)
        _find_control(obs, key, given[key], found, optional)
    if found:
        warn(say_columns(found))
    return {**given, **found}


def find_donors(obs: pd.DataFrame, donor_key: str | None) -> str | None:
    """Return the column of donors: the one that was named, or the one that its name gives away, if any."""
    return find_columns(obs, optional=("donor_key",), donor_key=donor_key)["donor_key"]


def _find_control(
    obs: pd.DataFrame, key: str, column: str | None, found: dict[str, str], optional: Iterable[str]
) -> None:
    """Add the control of a column to what was found; without one, a column that nobody named is none."""
    name = column or found.get(key)
    if name not in obs:
        return
    if control := guess_control(obs[name]):
        found["control"] = control
    elif column is None and key in optional:
        del found[key]
    else:
        has = ", ".join(sorted(map(repr, as_labels(obs[name].dropna().unique()))))
        guessed = f" (or {key}=, which was taken from the names)" if column is None else ""
        raise ValueError(f"Give control={guessed}: .obs[{name!r}] has {has}.")


def suggest_columns(obs: pd.DataFrame, role: str) -> str:
    """What could be named for a role that no column was found for: the columns that can be."""
    theirs = [name for name in obs.columns if name not in _OURS]
    if role == "time_key":
        able = [
            name
            for name in theirs
            if pd.api.types.is_numeric_dtype(obs[name]) and not pd.api.types.is_bool_dtype(obs[name])
        ]
    else:
        able = [name for name in theirs if 1 < _n_values(obs[name]) < max(len(obs), 3)]
    able = able or theirs
    more = f" and {len(able) - _SHOWN} more" if len(able) > _SHOWN else ""
    return f".obs has {', '.join(map(repr, able[:_SHOWN]))}{more}" if able else ".obs has no columns"


def as_labels(values: Iterable) -> list[str]:
    """Values of a column as text that can be compared: clusters are text in files, and whole numbers as parameters.

    Examples
    --------
    >>> as_labels([0, 1.0, "1", True, 0.5])
    ['0', '1', '1', 'True', '0.5']
    """
    return [
        str(int(value)) if isinstance(value, (float, np.floating)) and value.is_integer() else str(value)
        for value in values
    ]


def has_values(obs: pd.DataFrame, columns: Mapping[str, object]) -> np.ndarray:
    """Which cells have one of the given values in every column, numbers and text alike.

    Examples
    --------
    >>> import pandas as pd
    >>> has_values(pd.DataFrame({"leiden": ["0", "1", "2"]}), {"leiden": [0, 1]}).tolist()
    [True, True, False]
    """
    mask = np.ones(len(obs), dtype=bool)
    for column, values in columns.items():
        if column not in obs:
            raise KeyError(f"Did not find .obs[{column!r}]. Available columns: {sorted(obs.columns)}.")
        wanted = values if isinstance(values, (list, tuple)) else [values]
        mask &= np.isin(as_labels(obs[column].astype(object)), as_labels(wanted))
    return mask


def _plain(name: object) -> str:
    return re.sub(r"[^a-z0-9]", "", str(name).lower())


def _is_usable(obs: pd.DataFrame, column: str, role: str) -> bool:
    if role == "time_key":
        return _times(obs, column).nunique() > 1
    return _n_values(obs[column]) > (role in _DIFFER)


def _n_values(column: pd.Series) -> int:
    """How many values there are; none of a column of lists or the like."""
    try:
        return column.nunique()
    except TypeError:
        return 0


def _times(obs: pd.DataFrame, name: str) -> pd.Series:
    """Times of a column of numbers, or of text that has ages in it."""
    column = obs[name]
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        return column.dropna()
    if pd.api.types.is_datetime64_any_dtype(column):
        return pd.Series(dtype=float)
    return _terms(obs, name)["age"].dropna()


def _n_timed(obs: pd.DataFrame, name: str) -> int:
    """How many cells have a time, as a number or in text."""
    if pd.api.types.is_numeric_dtype(obs[name]):
        return int(obs[name].notna().sum())
    terms = _terms(obs, name)
    return int(terms.loc[terms["age"].notna(), "n_cells"].sum())


def _terms(obs: pd.DataFrame, name: str) -> pd.DataFrame:
    """Texts of a column with the ages in them."""
    from .parse_age import read_terms, species_of

    return read_terms(obs[name], "months", species=species_of(obs))
