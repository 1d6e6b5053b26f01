"""Prompts in an AnnData: what is stored, that it survives a file, and what is refused."""

import datetime

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from helpers import on_copy

import maxtoki_toolkit as mt
from maxtoki_toolkit.pp._design import get_groups, get_mask, get_times
from maxtoki_toolkit.pp.sample_prompts import read_prompts


@pytest.fixture
def adata():
    rng = np.random.default_rng(0)
    n = 240
    obs = pd.DataFrame(
        {
            "age": np.repeat([10, 20, 35, 60], 60),
            "cell_type": pd.Categorical(rng.choice(["B", "T"], n)),
            "sex": rng.choice(["f", "m"], n),
            "donor": np.repeat([f"d{i}" for i in range(24)], 10),
        },
        index=[f"c{i}" for i in rng.permutation(n)],
    )
    return AnnData(np.zeros((n, 1), np.float32), obs=obs)


SETTINGS = {"time_key": "age", "groupby": ["cell_type", "sex"], "n_prompts": 60}


def sample(adata, **settings):
    mt.pp.sample_prompts(adata, **(SETTINGS | settings))
    return adata.uns[settings.get("key_added") or "prompts"]


def test_the_table_says_which_cells_and_lapses(adata):
    stored = sample(adata, donor_key="donor")
    table, obs = stored["prompts"], adata.obs
    assert table.columns.tolist() == [
        *["context_0", "context_1", "context_2", "lapse_0", "lapse_1", "query", "lapse"],
        *["group", "time", "donor", "donor_0", "donor_1", "donor_2"],
    ]
    assert len(table) == 60
    for row in table.itertuples():
        names = [name for name in (row.context_0, row.context_1, row.context_2) if name]
        cells = obs.loc[[*names, row.query]]
        lapses = [lapse for lapse in (row.lapse_0, row.lapse_1) if not np.isnan(lapse)]
        assert np.diff(cells["age"]).tolist() == [*lapses, row.lapse]
        assert set(cells["cell_type"].astype(str) + " | " + cells["sex"]) == {row.group}
        assert [*cells["donor"]] == [d for d in (row.donor_0, row.donor_1, row.donor_2) if d] + [row.donor]
        assert row.time == cells["age"].iloc[-1]
    assert (table["context_2"] == "").any()
    assert table.loc[table["context_2"] == "", ["donor_2"]].eq("").all().all()
    assert table.loc[table["context_2"] == "", "lapse_1"].isna().all()


def test_what_is_recorded(adata):
    params = sample(adata, task="cell", rng=7, context_size=2, contexts=adata.obs["age"] < 60)["params"]
    assert {key: params[key] for key in ("time_key", "task", "n_prompts", "seed", "queries_elsewhere")} == {
        "time_key": "age",
        "task": "cell",
        "n_prompts": 60,
        "seed": 7,
        "queries_elsewhere": False,
    }
    assert params["groupby"] == ["cell_type", "sex"]
    assert params["context_size"] == [2, 2]
    assert (params["contexts"], params["queries"], params["donor_key"]) == ("mask", "all", "donor")


def test_cells_are_found_again(adata):
    stored = sample(adata)
    prompts = read_prompts(stored["prompts"], adata, adata)
    ages = adata.obs["age"].to_numpy()
    size = prompts.context_size
    assert (ages[prompts.query] - ages[prompts.context[np.arange(60), size - 1]] == prompts.lapse).all()
    steps = np.diff(ages[prompts.context], axis=1)
    inside = np.arange(1, 3) < size[:, None]
    np.testing.assert_array_equal(prompts.steps, np.where(inside, steps, 0))
    assert prompts.timelapse.all()
    assert not read_prompts(stored["prompts"], adata, adata, task="cell").timelapse.any()
    single = read_prompts(sample(adata, context_size=1)["prompts"], adata, adata)
    assert single.steps.shape == (60, 0)


@pytest.mark.parametrize(
    "settings", [{}, {"context_size": 1}, {"context_size": (1, 4)}, {"donor_key": "donor"}]
)
def test_prompts_survive_a_file(adata, tmp_path, settings):
    stored = sample(adata, **settings)
    before = read_prompts(stored["prompts"], adata, adata)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    read = anndata.read_h5ad(tmp_path / "cells.h5ad")
    again = read.uns["prompts"]
    pd.testing.assert_frame_equal(again["prompts"], stored["prompts"], check_dtype=False)
    assert again["params"].keys() == stored["params"].keys()
    for a, b in zip(before, read_prompts(again["prompts"], read, read), strict=True):
        np.testing.assert_array_equal(a, b)


def test_more_prompts_begin_with_the_same(adata):
    few = sample(adata, n_prompts=10, rng=3)["prompts"]
    many = sample(adata, n_prompts=1500, rng=3)["prompts"]
    pd.testing.assert_frame_equal(many.iloc[:10], few)
    assert not sample(adata, n_prompts=10, rng=4)["prompts"].equals(few)


def test_masks(adata):
    adata.obs["old"] = adata.obs["age"] > 30
    table = sample(adata, contexts=~adata.obs["old"].to_numpy(), queries="old")["prompts"]
    ages = adata.obs["age"]
    assert (ages[table["query"]] > 30).all()
    assert (ages[table["context_0"]] < 30).all()
    assert (table["lapse"] > 0).all()


def test_groups_may_be_one_column_or_none(adata):
    assert set(sample(adata, groupby="sex")["prompts"]["group"]) == {"f", "m"}
    assert set(sample(adata, groupby=[])["prompts"]["group"]) == {"all"}


def test_cells_without_a_group_are_left_out(adata):
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(object)
    adata.obs.loc[adata.obs["age"] == 20, "cell_type"] = np.nan
    with pytest.warns(UserWarning, match=r"cells have no value in .obs\['cell_type'\] and are left out"):
        table = sample(adata)["prompts"]
    assert 20 not in set(adata.obs.loc[table["query"], "age"])


def test_years_are_said_at_once(adata):
    adata = adata.copy()
    adata.obs["age_years"] = adata.obs[SETTINGS["time_key"]]
    with pytest.warns(UserWarning, match=r"'age_years'\] is in years: .* \* 12"):
        sample(adata, time_key="age_years")


def test_copy_and_key(adata):
    assert mt.pp.sample_prompts(adata, **SETTINGS, key_added="mine") is None
    assert list(adata.uns) == ["mine"]
    other = on_copy(mt.pp.sample_prompts, adata, **SETTINGS)
    assert "prompts" in other.uns
    assert "prompts" not in adata.uns


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"time_key": "weeks"}, KeyError, r"Did not find \.obs\['weeks'\]. Available columns"),
        ({"groupby": "tissue"}, KeyError, r"Did not find \.obs\['tissue'\]"),
        ({"donor_key": "patient"}, KeyError, r"Did not find \.obs\['patient'\]"),
        ({"queries": "held_out"}, KeyError, r"Did not find \.obs\['held_out'\]"),
        ({"task": "both"}, ValueError, "There is no task 'both'; choose from timelapse, cell"),
        ({"n_prompts": 0}, ValueError, "n_prompts must be at least 1, got 0"),
        ({"sampling": mt.pp.PromptSampling(zero_lapse="no")}, ValueError, "no zero_lapse 'no'"),
        ({"context_size": 0}, ValueError, "context_size must be"),
        ({"groupby": "donor"}, ValueError, "No group has cells at 2 or more times"),
        (
            {"contexts": [True, False]},
            ValueError,
            r"contexts must be .* one boolean a cell \(240\), got bool of",
        ),
        ({"queries": "sex"}, ValueError, "queries must be a boolean column"),
        ({"time_key": "sex"}, ValueError, r"\.obs\['sex'\] is not numeric \(first: '[fm]'\)"),
    ],
)
def test_refusals(adata, settings, error, message):
    with pytest.raises(error, match=message):
        sample(adata, **settings)
    assert not adata.uns


def test_cells_need_names_of_their_own(adata):
    adata.obs_names = ["c"] * 240
    with pytest.raises(ValueError, match="239 cell names are not unique"):
        sample(adata)


def test_prompts_of_cells_that_are_gone(adata):
    table = sample(adata)["prompts"]
    part = adata[:100].copy()
    with pytest.raises(
        KeyError, match=r"cells of the prompts are not in the AnnData .* Draw the prompts again"
    ):
        read_prompts(table, part, part)


def obs_of(values):
    return AnnData(obs=pd.DataFrame({"t": values}, index=[f"c{i}" for i in range(len(values))]))


@pytest.mark.parametrize(
    "values",
    [
        [12, 24, -3],
        [12.0, 24.0, -3.0],
        ["12", "24", "-3"],
        pd.Categorical([12, 24, -3]),
        pd.Categorical(["12", "24", "-3"]),
        pd.array([12, 24, -3], dtype="Int64"),
    ],
)
def test_times_of_all_kinds(values):
    times = get_times(obs_of(values), "t")
    assert times.tolist() == [12, 24, -3]
    assert times.dtype == np.int64


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.5, 2.0, 3.25], r"2 of 3 times .* are no whole numbers \(first: 1.5\).*years \* 12"),
        ([1.0, np.nan, 3.0], "1 of 3 cells have no time"),
        ([1.0, np.inf, 3.0], "1 of 3 cells have no time"),
        (pd.array([1, None, 3], dtype="Int64"), "1 of 3 cells have no time"),
        (["1", "two", "3"], "is not numeric"),
        (["1", "90+", "90+"], r"is not numeric \(first: '90\+'\): 2 of 3 values are no numbers"),
        (pd.Categorical(["1", "90+", None]), r"is not numeric \(first: '90\+'\): 1 of 3"),
        ([1, None, "3"], "1 of 3 cells have no time"),
        (pd.to_datetime(["2020-01-31", "2020-02-01", None]), r"holds dates \(first: 2020-01-31.*dt\.days"),
        (pd.Categorical(pd.to_datetime(["2020-01-31", "2020-02-01"])), "holds dates"),
        ([datetime.date(2020, 1, 31), None], "holds dates"),
        (pd.period_range("2020-01", periods=3, freq="M"), "holds dates"),
        (pd.to_timedelta([1, 2, None], unit="D"), r"holds durations \(first: 1 days"),
        ([20200131, 20200201], "look like dates or time stamps written as numbers"),
        ([1.58e9, 1.6e9], "look like dates or time stamps"),
    ],
)
def test_bad_times(values, message):
    with pytest.raises(ValueError, match=message):
        get_times(obs_of(values), "t")


def test_groups():
    adata = obs_of([1] * 5)
    adata.obs["a"] = pd.Categorical(["y", "x", None, "x", "y"])
    adata.obs["b"] = [2, 1, 1, 1, 2]
    group, names = get_groups(adata, ["a", "b"])
    assert names == ["x | 1", "y | 2"]
    assert group.tolist() == [1, 0, -1, 0, 1]
    assert get_groups(adata, "b")[1] == ["1", "2"]
    assert get_groups(adata, None)[0].tolist() == [0] * 5
    adata.obs["empty"] = np.nan
    group, names = get_groups(adata, "empty")
    assert (group.tolist(), names) == ([-1] * 5, [])


def test_masks_of_all_kinds():
    adata = obs_of([1, 2])
    adata.obs["m"] = [True, False]
    for use in ("m", [True, False], np.array([True, False]), adata.obs["m"]):
        assert get_mask(adata, use, "use").tolist() == [True, False]
    assert get_mask(adata, None, "use").tolist() == [True, True]
    with pytest.raises(ValueError, match=r"use must be .* got int64 of shape \(2,\)"):
        get_mask(adata, [1, 0], "use")
