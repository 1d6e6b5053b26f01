"""Ages from text: stages of CELLxGENE, HsapDv and MmusDv, units, ranges, limits, time before birth."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from .._validate import require_obs
from .._warn import warn
from ..results.store import write_result
from ._columns import unit_in_name
from ._read_age import DAYS, OR_MALE, guess_species, read_age

_SPECIES = {
    "homo sapiens": "human",
    "ncbitaxon:9606": "human",
    "human": "human",
    "mus musculus": "mouse",
    "ncbitaxon:10090": "mouse",
    "mouse": "mouse",
}


def parse_age(
    adata: AnnData,
    key: str = "development_stage",
    *,
    unit: str = "months",
    species: str | None = None,
    key_added: str = "age",
) -> None:
    """Read ages from text: stages of CELLxGENE, ages with units, ranges, decades, time before birth.

    Parameters
    ----------
    adata
        Cells.
    key
        Column of `.obs` with the ages as text, or with ids of HsapDv and MmusDv. Numbers have the unit in the
        name of the column ("age_years"), or in a column beside it ("age_unit").
    unit
        Unit of what is written: "years", "months", "weeks" or "days".
    species
        "human" or "mouse". By default what `.obs["organism"]` says, or the words: a column with "E14.5",
        "P21" or a Theiler stage is of mice.
    key_added
        Column of `.obs` to write, and how those beside it begin. If it is `key`, the text is kept in a column
        that ends in "_as_given".

    Returns
    -------
    `None`. Writes

    `.obs["age"]`
        The age from birth; of a range its middle, of "90+" the least. Before birth it is negative. NaN where
        it cannot be known.
    `.obs["age_low"]`, `.obs["age_high"]`
        Ends of what the text leaves open; the upper one of "90+" is NaN.
    `.obs["age_read_as"]`
        What the text was taken for, such as "70 to 79 years" or "14.5 days after conception of a mouse", or
        why it was not read, such as "no unit".
    `.uns["parse_age"]`
        The table `terms`, one row a text: `term`, `n_cells`, and `age`, `age_low`, `age_high`, `age_read_as`
        as above.

    Raises
    ------
    KeyError
        If there is no such column.
    ValueError
        If no age can be read, `unit` or `species` is not known, or `key_added` is a column that this function
        did not write.

    Notes
    -----
    Ages are counted as people say them: "45-year-old stage", which is from 45 to 46 in the ontology, is 45,
    and the fifth decade 40 to 49. What would be a guess is not read: a number without a unit, unless the name
    of the column has one; "67M"; a stage of life without numbers ("adult", "child"), which releases of the
    ontologies define differently; weeks and days that may be of age or of pregnancy ("12 weeks") where they
    are not known to be a mouse's; limits that say little ("18+", "<60"), and ranges of more than 25 years.
    Ranges without a unit ("40-45") are in years if they begin at 18 or go beyond 36, limits ("90+") from 60
    on.

    Birth is 266 days after fertilization in humans, and 19 days after conception in mice, as HsapDv and
    MmusDv have it; E19 and later, and pregnancies that go on for longer, are birth. Gestational weeks count
    from the last menstrual period, two weeks before fertilization. The terms of both ontologies are in
    `maxtoki_toolkit/resources/developmental_stages.csv`.

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
    if unit not in DAYS:
        raise ValueError(f"unit must be one of {', '.join(DAYS)}, got {unit!r}.")
    if species not in (None, "human", "mouse"):
        raise ValueError(f"species must be 'human' or 'mouse', or None to find it, got {species!r}.")
    names = [key_added, f"{key_added}_low", f"{key_added}_high", f"{key_added}_read_as"]
    ours = adata.uns.get(_keys.PARSE_AGE, {}).get("params", {}).get("key_added") == key_added
    if foreign := [name for name in names if name in adata.obs and name != key and not ours]:
        raise ValueError(
            f".obs has a column {foreign[0]!r} already, which would be replaced. Give another name: "
            "key_added='parsed_age'."
        )
    species = species or species_of(adata.obs, adata.uns)
    column = _with_units(adata.obs, key)
    table = read_terms(column, unit, key_added, species=species)
    found = table["n_cells"][table[key_added].notna()].sum()
    lost = table[table[key_added].isna()].sort_values("n_cells", ascending=False, kind="stable")
    if not found:
        raise ValueError(
            f"No age can be read from .obs[{key!r}] ({_first(lost)}).{_advice(lost, key, key_added)}"
        )
    if len(lost):
        n_lost = lost["n_cells"].sum()
        warn(
            f"Read the ages of {found:,} of {adata.n_obs:,} cells from .obs[{key!r}]; those of {n_lost:,} "
            f"cannot be known ({_first(lost)}).{_advice(lost, key, key_added)}"
        )
    text = _as_text(column)
    if key == key_added:
        adata.obs[f"{key}_as_given"] = adata.obs[key]
    by_term = table.set_index("term")
    for name in names:
        adata.obs[name] = by_term[name].reindex(text).to_numpy()
    adata.obs[names[-1]] = adata.obs[names[-1]].astype("category")
    params = {"key": key, "unit": unit, "species": species or "", "key_added": key_added}
    write_result(adata, _keys.PARSE_AGE, params, terms=table)


def read_terms(
    column: pd.Series, unit: str, key_added: str = "age", *, species: str | None = None
) -> pd.DataFrame:
    """One row a text of a column, in the order of their first cells, with its age in `unit`."""
    counts = _as_text(column).value_counts(sort=False)
    named = _unit_of_numbers(str(column.name))
    texts = [f"{term} {named}" if re.fullmatch(r"\d+(\.\d+)?", term) else term for term in counts.index]
    species = species or guess_species(texts)
    readings = [read_age(text, species) for text in texts]
    if any(re.fullmatch(r"\d+ ?f", text.lower()) for text in texts):
        # Beside "24f", "20m" is a man.
        readings = [
            OR_MALE if re.fullmatch(r"\d+ ?m", text.lower()) else reading
            for text, reading in zip(texts, readings, strict=True)
        ]
    table = pd.DataFrame({"term": counts.index, "n_cells": counts.to_numpy()})
    for name, place in ((key_added, 0), (f"{key_added}_low", 1), (f"{key_added}_high", 2)):
        table[name] = np.array([reading[place] for reading in readings], dtype=float) / DAYS[unit]
    return table.assign(**{f"{key_added}_read_as": [reading.read_as for reading in readings]})


def time_in_numbers(adata: AnnData, time_key: str, unit: str) -> str:
    """Name of a column of times in whole numbers: `time_key`, or one made of its text in `unit`, and said."""
    require_obs(adata, time_key)
    column = adata.obs[time_key]
    if pd.to_numeric(column.astype(object), errors="coerce").notna().any() or unit not in DAYS:
        return time_key
    if not read_terms(column, unit, species=species_of(adata.obs, adata.uns))["age"].notna().any():
        return time_key
    name = f"{time_key}_{unit}"
    parse_age(adata, time_key, unit=unit, key_added=name)
    adata.obs[name] = adata.obs[name].round()
    warn(
        f"Read .obs[{time_key!r}] as ages in {unit}, into .obs[{name!r}]; .obs[{name + '_read_as'!r}] says "
        "what each was taken for."
    )
    return name


def species_of(obs: pd.DataFrame, uns: Mapping[str, Any] | None = None) -> str | None:
    """Return the species of all cells, as CELLxGENE has it: "human", "mouse", or the name of another."""
    for name in ("organism", "organism_ontology_term_id", "species"):
        values = obs[name].dropna().astype(str).unique() if name in obs else [(uns or {}).get(name)]
        if len(values) == 1 and isinstance(values[0], str):
            value = values[0].strip().lower()
            return _SPECIES.get(value, value) or None
    return None


def _with_units(obs: pd.DataFrame, key: str) -> pd.Series:
    """Ages with what a column beside them says of their unit: `age` and `age_unit`."""
    beside = next(
        (name for name in obs if re.fullmatch(rf"{re.escape(key)}[ _.]?units?", str(name), re.IGNORECASE)),
        None,
    )
    if beside is None:
        return obs[key]
    ages, units = _as_text(obs[key]), _as_text(obs[beside])
    bare = ages.str.fullmatch(r"\d+(\.\d+)?") & (units != "")
    return ages.where(~bare, ages + " " + units)


def _unit_of_numbers(name: str) -> str:
    """Unit of numbers in a column of this name ("age_years", "gestational_weeks"); "" if it does not say."""
    plain = re.sub(r"[^a-z]+", " ", name.lower())
    if re.search(r"\bgestation", plain):
        return "weeks gestation"
    if re.search(r"\bpcw\b|\bpost ?conception", plain):
        return "pcw"
    unit = unit_in_name(name)
    return unit if unit in DAYS else ""


def _as_text(column: pd.Series) -> pd.Series:
    """Text of each cell, "" where there is none."""
    text = column.astype(object)
    return text.where(text.notna(), "").astype(str)


def _first(lost: pd.DataFrame, n: int = 3) -> str:
    """The most frequent texts without an age, with their numbers of cells."""
    shown = ", ".join(f"{row.term!r} {row.n_cells:,}" for row in lost.head(n).itertuples())
    return shown + (f", and {len(lost) - n} more" if len(lost) > n else "")


def _advice(lost: pd.DataFrame, key: str, key_added: str) -> str:
    why = set(lost[f"{key_added}_read_as"])
    text = ""
    if "no unit" in why:
        text += (
            f" A number without a unit may be years or months: say which in a column beside it, adata.obs['{key}_unit'] = "
            "'years' (unit= is the unit of what is written)."
        )
    if why & {"of age or of pregnancy?", "of which species?"}:
        text += (
            " Days and weeks may be of age or of pregnancy: say species='mouse', '12 weeks old', or "
            "'12 weeks post-conception'."
        )
    return text
