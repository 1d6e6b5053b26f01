"""Ages from text: what can be known is, in the unit asked for, and nothing else."""

import json

import anndata
import numpy as np
import pandas as pd
import pytest

import maxtoki_toolkit as mt
from maxtoki_toolkit.pp._read_age import read_age
from maxtoki_toolkit.pp.parse_age import read_terms

BIRTH = 266


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
        ("ninth LMP month human stage", 217, 245),
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
        ("67M", "not an age"),
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
    adata = anndata.AnnData(obs=pd.DataFrame({"years_old": [23.0, 60.0]}, index=["a", "b"]))
    with pytest.raises(ValueError, match=r"'23.0' 1.*without a unit may be years or months.*\+ ' years'"):
        mt.pp.parse_age(adata, "years_old")


def test_all_terms_of_the_census(source):
    """Only stages of life without numbers have no age; all others lie between their bounds."""
    terms = json.loads((source / "census_terms.json").read_text())["development_stage"]
    table = read_terms(pd.Series(terms), "months").set_index("term")
    unread = set(table.index[table["age"].isna()])
    assert not [
        term for term in unread if any(c.isdigit() for c in term) or "decade" in term or "LMP" in term
    ]
    assert {"human adult stage", "embryonic human stage", "unknown"} < unread
    assert len(unread) == 14
    known = table.drop(index=list(unread))
    assert (known["age_low"] <= known["age"]).all()
    assert ((known["age"] <= known["age_high"]) | known["age_high"].isna()).all()
    prenatal = known.index.str.contains("Carnegie|week|LMP")
    assert (known["age"][prenatal] < 0).all()
    assert (known["age"][~prenatal] >= 0).all()
    assert known.loc["97-year-old human stage", "age"] == 97 * 12


def test_a_census_table(source):
    obs = pd.read_csv(source / "census_obs_200.csv").astype({"soma_joinid": str}).set_index("soma_joinid")
    adata = anndata.AnnData(obs=obs)
    mt.pp.parse_age(adata, key="development_stage", unit="months")
    found = adata.obs.groupby("donor_id")["age"].unique().str[0]
    assert found.to_dict() == {"C53ctr": 948, "H22": 660, "face_forehead5": 876}
