"""Ages from text: what can be known is, in the unit asked for, and nothing else."""

import json
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

import maxtoki_toolkit as mt
from maxtoki_toolkit._reference import resource
from maxtoki_toolkit.pp._columns import guess_columns
from maxtoki_toolkit.pp._read_age import guess_species, read_age
from maxtoki_toolkit.pp.parse_age import read_terms

BIRTH = 266
DATA = Path(__file__).parent / "data"
DAYS = {"years": 365.25, "months": 365.25 / 12, "weeks": 7.0, "days": 1.0}
ORIGIN = {"birth": 0, "fertilization": -BIRTH, "conception of a mouse": -19}


def read_csv(path):
    return pd.read_csv(path, dtype=str, keep_default_na=False)


STAGES = read_csv(resource("developmental_stages.csv"))
MET = read_csv(DATA / "ages_met.csv")
CENSUS = read_csv(DATA / "census_stages.csv")


def expected_days(row):
    """Ends of what a row of a table says, in days from birth."""
    ends = [float(end) * DAYS[row.unit] + ORIGIN[row.since] if end else np.nan for end in (row.low, row.high)]
    return ends if row.since == "birth" else [min(end, 0) for end in ends]


def months(text):
    """Age, low and high in months."""
    row = read_terms(pd.Series([text]), "months").iloc[0]
    return row["age"], row["age_low"], row["age_high"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("79-year-old human stage", (948, 948, 948)),
        ("45 year-old stage", (540, 540, 540)),
        ("11-month-old human stage", (11, 11, 11)),
        ("67y", (804, 804, 804)),
        ("67 Y.O.", (804, 804, 804)),
        ("18 mo", (18, 18, 18)),
        ("2 years, 6 months", (30, 30, 30)),
        ("40-45", (510, 480, 540)),
        ("40–45 yrs", (510, 480, 540)),
        ("25-44 year-old human stage", (414, 300, 528)),
        ("child stage (1-4 yo)", (30, 12, 48)),
        ("fifth decade human stage", (534, 480, 588)),
        ("under-1-year-old human stage", (6, 0, 12)),
        ("90+", (1080, 1080, np.nan)),
        ("80 year-old and over human stage", (960, 960, np.nan)),
        (">= 90 years", (1080, 1080, np.nan)),
    ],
)
def test_after_birth(text, expected):
    np.testing.assert_allclose(months(text), expected)


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("Carnegie stage 17", 42, 44),
        ("Carnegie stage 23", 56, 60),
        ("CS09", 19, 22),
        ("9th week post-fertilization human stage", 56, 63),
        ("22nd week post-fertilization stage", 147, 154),
        ("fourth LMP month human stage", 77, 105),
        ("sixth LMP month stage", 133, 168),
        ("ninth LMP month human stage", 231, 266),
        ("10.5 PCW", 73.5, 73.5),
        ("GW 20", 126, 126),
    ],
)
def test_before_birth(text, first, last):
    """Negative, from birth: lapses between a fetus and an adult have one origin."""
    found = read_age(text)
    np.testing.assert_allclose(found[:3], [(first + last) / 2 - BIRTH, first - BIRTH, last - BIRTH])
    assert "after fertilization" in found.read_as


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("human adult stage", "not an age"),
        ("young adult stage", "not an age"),
        ("embryonic human stage", "not an age"),
        ("67M", "months, or a male?"),
        ("60m", "months, or a male?"),
        ("12 weeks", "of age or of pregnancy?"),
        ("72-days", "of age or of pregnancy?"),
        ("E5", "of which species?"),
        ("3 dpf", "of which species?"),
        ("2 weeks (P13)", "two ages"),
        ("18-64 years", "over 25 years wide"),
        ("18+", "no upper limit"),
        ("<60", "no lower limit"),
        ("<28 days", "of age or of pregnancy?"),
        ("stage 20-25", "no unit"),
        ("adult E14.5", "not an age"),
        ("60+ m", "months, or a male?"),
        ("670 years", "not an age"),
        ("45-40", "not an age"),
        ("23", "no unit"),
        ("23.0", "no unit"),
        ("2-5", "no unit"),
        ("unknown", "missing"),
        ("", "missing"),
    ],
)
def test_what_cannot_be_known(text, why):
    found = read_age(text)
    assert found.read_as == why
    assert np.isnan(found[:3]).all()


def test_units_and_missing_cells():
    """Each unit, text with gaps, and counts of what was read as what."""
    obs = {"stage": pd.Categorical(["67y", None, "adult", "adult", "40-45"])}
    for unit, expected in {"years": 67, "months": 804, "weeks": 67 * 365.25 / 7, "days": 67 * 365.25}.items():
        adata = anndata.AnnData(obs=pd.DataFrame(obs, index=list("abcde")))
        with pytest.warns(UserWarning, match="ages of 2 of 5 cells.*those of 3 cannot be known"):
            mt.pp.parse_age(adata, "stage", unit=unit)
        assert adata.obs["age"].iloc[0] == pytest.approx(expected)
        assert adata.obs["age"].isna().tolist() == [False, True, True, True, False]
        assert adata.obs["age_read_as"].tolist() == [
            *("67 years", "missing", "not an age", "not an age", "40 to 45 years")
        ]
        table = adata.uns["parse_age"]["terms"].set_index("term")
        assert table["n_cells"].to_dict() == {"67y": 1, "": 1, "adult": 2, "40-45": 1}
    with pytest.raises(ValueError, match="unit must be one of years, months"):
        mt.pp.parse_age(adata, "stage", unit="year")
    with pytest.raises(ValueError, match="species must be 'human' or 'mouse'"):
        mt.pp.parse_age(adata, "stage", species="rat")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_own_columns_are_kept(tmp_path):
    adata = anndata.AnnData(
        obs=pd.DataFrame({"age": ["67y", "adult"], "stage": ["40 years", "x"]}, index=["a", "b"])
    )
    with pytest.raises(ValueError, match=r"has a column 'age' already.*key_added"):
        mt.pp.parse_age(adata, "stage")
    assert adata.obs["age"].tolist() == ["67y", "adult"]
    mt.pp.parse_age(adata, "stage", unit="years", key_added="parsed")
    mt.pp.parse_age(adata, "stage", unit="months", key_added="parsed")
    assert adata.obs["parsed"].iloc[0] == 480
    mt.pp.parse_age(adata, "age", unit="years")
    assert adata.obs["age"].iloc[0] == 67
    assert adata.obs["age_as_given"].tolist() == ["67y", "adult"]
    adata.write_h5ad(tmp_path / "cells.h5ad")
    found = anndata.read_h5ad(tmp_path / "cells.h5ad")
    pd.testing.assert_frame_equal(found.obs, adata.obs, check_categorical=False, check_dtype=False)


def test_numbers_ask_for_their_unit():
    adata = anndata.AnnData(obs=pd.DataFrame({"donor_age": [23.0, 60.0]}, index=["a", "b"]))
    with pytest.raises(
        ValueError, match=r"'23.0' 1.*without a unit.*adata.obs\['donor_age_unit'\] = 'years'"
    ):
        mt.pp.parse_age(adata, "donor_age")
    said = adata.copy()
    said.obs["donor_age_unit"] = "years"
    mt.pp.parse_age(said, "donor_age", unit="years")
    assert said.obs["age"].tolist() == [23, 60]
    for name, unit, age in [
        ("years_old", "years", 23),
        ("age_months", "years", 23 / 12),
        ("gestational_weeks", "weeks", -17),
    ]:
        adata.obs[name] = [23.0, 25.0]
        mt.pp.parse_age(adata, name, unit=unit)
        assert adata.obs["age"].iloc[0] == pytest.approx(age)


def test_all_terms_of_the_census(source):
    """Each of the 176 is read as the table has it, or refused; those are stages of life without a number."""
    terms = json.loads((source / "census_terms.json").read_text())["development_stage"]
    assert sorted(terms) == sorted(CENSUS["term"])
    refused = CENSUS[CENSUS["unit"] == ""]
    assert len(CENSUS) == 176
    assert len(refused) == 14
    for row in CENSUS.itertuples():
        found = read_age(row.term)
        if row.unit == "":
            assert np.isnan(found[:3]).all(), row
        else:
            np.testing.assert_allclose(found[1:3], expected_days(row), err_msg=row.term)
            assert found.age == pytest.approx(found.low if np.isnan(found.high) else np.mean(found[1:3]))


# A label is taken at its word: "under 1 year" begins at birth, and in the ontology after the first month.
WIDER = {"HsapDv:0000256": "under-1-year-old stage"}
# Stages of life, which have no number in them; and the one of Theiler that is all of a mouse's life.
NAMED = {"MmusDv:0000037": "Theiler stage 28"}


# How many terms are read, and compared with an end; of 260 and 178.
COUNTS = {
    ("HsapDv", "label"): (230, 198),
    ("HsapDv", "earlier"): (191, 189),
    ("HsapDv", "term_id"): (230, 198),
    ("MmusDv", "label"): (146, 134),
    ("MmusDv", "earlier"): (20, 19),
    ("MmusDv", "term_id"): (146, 134),
}


@pytest.mark.parametrize(("ontology", "name"), list(COUNTS))
def test_terms_of_the_ontologies(ontology, name):
    """Every term, by its names of today and of 2021 and by its id, is as its definition says."""
    species = {"HsapDv": "human", "MmusDv": "mouse"}[ontology]
    table = STAGES[STAGES["term_id"].str.startswith(ontology) & (STAGES[name] != "")]
    n_read = n_compared = 0
    for row in table.itertuples():
        found = read_age(getattr(row, name), species)
        if np.isnan(found.age):
            assert not any(c.isdigit() for c in row.label) or row.term_id in NAMED, row
            assert "decade" not in row.label, row
            assert "LMP" not in row.label, row
            continue
        n_read += 1
        if row.start and row.term_id not in WIDER:
            # Definitions of months and weeks round by days.
            tolerance = 2.5 if found.low >= 0 else 1e-6
            assert found.low == pytest.approx(float(row.start), abs=tolerance), row
        if row.end:
            # "45" is until 46.
            unit = next((unit for unit in DAYS if found.read_as.endswith((unit, unit[:-1]))), None)
            step = DAYS[unit] if found.low >= 0 and "under" not in row.label else 0
            assert found.high + step == pytest.approx(float(row.end), abs=2.5 if step else 1e-6), row
            n_compared += 1
    assert (n_read, n_compared) == COUNTS[ontology, name]


def test_terms_without_bounds_of_their_own():
    """Carnegie's stages follow each other; parts of a stage are read as the whole."""
    carnegie = [read_age(f"Carnegie stage {stage:02d}") for stage in range(1, 24)]
    assert carnegie[0].low == -BIRTH
    assert all(first.high == last.low for first, last in zip(carnegie, carnegie[1:], strict=False))
    assert read_age("Carnegie stage 05b") == read_age("CS5") == carnegie[4]
    assert read_age("Theiler stage 11c") == read_age("TS11")


@pytest.mark.parametrize("row", list(MET.itertuples()), ids=lambda row: row.text)
def test_ages_met_in_public_files(row):
    """A wrong age counts as ten refusals: there is none, and what should be read is."""
    found = read_age(row.text, row.species or None)
    if row.unit == "":
        assert np.isnan(found[:3]).all()
    else:
        np.testing.assert_allclose(found[1:3], expected_days(row))


def test_the_ages_met():
    """At least 100, each with where it was met, and ten of each of the kinds that go wrong."""
    assert MET["text"].is_unique
    assert (MET["met"] != "").all()
    assert ((MET["unit"] == "") == (MET["why"] != "")).all()
    kinds = MET["kind"].value_counts()
    assert len(MET) >= 100
    assert kinds[["birth", "range", "censored", "bare number"]].min() >= 10


@pytest.mark.parametrize(
    ("text", "age", "read_as"),
    [
        ("E14.5", -4.5, "14.5 days after conception of a mouse"),
        ("E10.5-E12.5", -7.5, "10.5 to 12.5 days after conception of a mouse"),
        ("Theiler stage 20", -6.75, "11.5 to 13 days after conception of a mouse"),
        ("E19.5", 0, "19.5 days after conception of a mouse"),
        ("P0", 0, "0 days"),
        ("P21", 21, "21 days"),
        ("8-week-old", 56, "8 weeks"),
    ],
)
def test_mice(text, age, read_as):
    """On an axis of their own birth."""
    for species in (None, "mouse"):
        found = read_age(text, species)
        assert (found.age, found.read_as) == (pytest.approx(age), read_as)


def test_birth_is_one_point():
    """Of both sides of it, in both species."""
    human = [read_age(text).age for text in ("37 PCW", "38 PCW", "birth", "1 month")]
    mouse = [read_age(text, "mouse").age for text in ("E18.5", "E19", "P0", "P1")]
    for before, *at, after in (human, mouse):
        assert before < 0 < after
        assert at == [0, 0]


def test_the_species_comes_from_the_cells_or_the_words():
    assert guess_species(["E14.5", "8 weeks"]) == "mouse"
    assert guess_species(["GW20", "8 weeks"]) == guess_species(["45-year-old stage", "8 weeks"]) == "human"
    assert guess_species(["8 weeks"]) is guess_species(["E14.5", "GW20"]) is None
    names = list("ab")
    for obs, species, expected in [
        ({"organism": ["Mus musculus"] * 2}, None, 84),
        ({"organism_ontology_term_id": ["NCBITaxon:10090"] * 2}, None, 84),
        ({}, "mouse", 84),
        ({"organism": ["Rattus norvegicus"] * 2}, None, 84),
        ({"organism": ["Homo sapiens"] * 2}, None, np.nan),
    ]:
        obs = pd.DataFrame({"stage": ["12 weeks", "18 months"]} | obs, index=names)
        adata = anndata.AnnData(obs=obs)
        if np.isnan(expected):
            with pytest.warns(UserWarning, match="1 cannot be known.*'12 weeks' 1.*say species='mouse'"):
                mt.pp.parse_age(adata, "stage", unit="days", species=species)
        else:
            mt.pp.parse_age(adata, "stage", unit="days", species=species)
        np.testing.assert_allclose(adata.obs["age"].iloc[0], expected)
    # Days of pregnancy have no birth in a species whose pregnancy is not known.
    assert read_age("E14", "rattus norvegicus").read_as == "of which species?"
    assert read_age("E5", "human").age == 5 - BIRTH


def test_units_beside_the_numbers():
    """As recount-brain and curatedMetagenomicData have them."""
    units = ["Years", "Months", "Post Conception Weeks", "", "Weeks"]
    obs = pd.DataFrame({"Age": ["51", "3", "19", "7", "18.5"], "Age Units": units}, index=list("abcde"))
    adata = anndata.AnnData(obs=obs)
    with pytest.warns(UserWarning, match="those of 2 cannot be known.*'7' 1.*'18.5 Weeks' 1"):
        mt.pp.parse_age(adata, "Age", unit="days")
    expected = [51 * 365.25, 3 * 365.25 / 12, 19 * 7 - BIRTH, np.nan, np.nan]
    np.testing.assert_allclose(adata.obs["age"], expected)


def test_men_are_not_months():
    adata = anndata.AnnData(obs=pd.DataFrame({"who": ["20m", "24f", "40 years"]}, index=list("abc")))
    with pytest.warns(UserWarning, match="those of 2 cannot be known"):
        mt.pp.parse_age(adata, "who")
    assert read_age("20m").read_as == "20 months"


def test_ids_are_read_as_their_terms(source):
    census = json.loads((source / "census_terms.json").read_text())
    ids = pd.Series(census["development_stage_ontology_term_id"], name="development_stage_ontology_term_id")
    labels = dict(zip(STAGES["term_id"], STAGES["label"], strict=True))
    by_id = read_terms(ids, "months").set_index("term")
    assert set(ids) - {"unknown"} <= set(labels)
    for term, row in by_id.drop(index="unknown").iterrows():
        np.testing.assert_array_equal(
            row["age"], read_terms(pd.Series([labels[term]]), "months")["age"].iloc[0]
        )
    assert by_id["age"].notna().sum() > 150


def test_a_census_table(source):
    obs = pd.read_csv(source / "census_obs_200.csv").astype({"soma_joinid": str}).set_index("soma_joinid")
    adata = anndata.AnnData(obs=obs)
    mt.pp.parse_age(adata, key="development_stage", unit="months")
    found = adata.obs.groupby("donor_id")["age"].unique().str[0]
    assert found.to_dict() == {"C53ctr": 948, "H22": 660, "face_forehead5": 876}


@pytest.mark.filterwarnings("ignore:Taken from the names:UserWarning")
def test_stages_are_found_where_a_time_is_asked_for():
    """Read into a column of its own, said, and nothing of the user's is replaced."""
    adata = mt.datasets.aging_atlas(400, 40, n_genes=500)
    months = adata.obs["age_months"].to_numpy()
    stage = pd.Series([f"{age // 12}-year-old human stage" for age in months], index=adata.obs_names)
    adata.obs = adata.obs.drop(columns="age_months").assign(development_stage=stage.astype("category"))
    assert guess_columns(adata.obs)["time_key"] == "development_stage"
    with pytest.warns(UserWarning, match=r"Read .obs\['development_stage'\] as ages in months, into"):
        mt.pp.match_ages(adata)
    assert adata.uns["matched_ages"]["params"]["time_key"] == "development_stage_months"
    assert (adata.obs["development_stage_months"] == months // 12 * 12).all()
    assert adata.obs["development_stage"].astype(str).equals(stage)
    # Again, with what this wrote; but never over a column of the user's.
    with pytest.warns(UserWarning, match="as ages in months"):
        mt.pp.match_ages(adata, time_key="development_stage")
    del adata.uns["parse_age"]
    with pytest.raises(ValueError, match="has a column 'development_stage_months' already"):
        mt.pp.match_ages(adata, time_key="development_stage")
