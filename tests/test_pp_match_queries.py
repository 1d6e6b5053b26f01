"""The same contexts with other queries: of the same group, near in time."""

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from helpers import on_copy

import maxtoki_toolkit as mt
from maxtoki_toolkit.pp.sample_prompts import read_prompts


def make_cells(n, ages, prefix, seed=0, types=("B", "T")):
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame(
        {
            "age": rng.choice(ages, n),
            "cell_type": rng.choice(types, n),
            "donor": [f"{prefix}{i}" for i in rng.integers(0, 6, n)],
        },
        index=[f"{prefix}{i}" for i in range(n)],
    )
    return AnnData(np.zeros((n, 1), np.float32), obs=obs)


@pytest.fixture
def healthy():
    adata = make_cells(200, np.arange(0, 500, 25), "h")
    mt.pp.sample_prompts(adata, time_key="age", groupby="cell_type", n_prompts=80, donor_key="donor")
    return adata


@pytest.fixture
def sick():
    return make_cells(150, np.arange(110, 310, 15), "s", seed=1)


def matched(adata, queries, **settings):
    mt.pp.match_queries(adata, queries, **settings)
    return adata.uns[settings.get("key_added") or "matched_prompts"]


@pytest.mark.parametrize("tolerance", [0, 10, 60, None])
def test_matches_are_near_and_of_the_same_group(healthy, sick, tolerance):
    """Against a search for each prompt."""
    stored = matched(healthy, sick, tolerance=tolerance)
    old, new = healthy.uns["prompts"]["prompts"], stored["prompts"].set_index("prompt")
    for prompt, row in old.iterrows():
        near = np.abs(sick.obs["age"] - row["time"]) <= (np.inf if tolerance is None else tolerance)
        allowed = sick.obs_names[near & (sick.obs["cell_type"] == row["group"])]
        assert (prompt in new.index) == (len(allowed) > 0)
        if prompt in new.index:
            found = new.loc[prompt]
            assert found["query"] in allowed
            assert found["time"] == sick.obs.loc[found["query"], "age"]
            assert found["lapse"] - found["old_lapse"] == found["time"] - row["time"]
            assert found["donor"] == sick.obs.loc[found["query"], "donor"]
            assert (found["old_query"], found["old_lapse"]) == (row["query"], row["lapse"])
            assert (
                found[["context_0", "context_1", "group"]] == row[["context_0", "context_1", "group"]]
            ).all()
    params = stored["params"]
    assert params["n_unmatched"] == len(old) - len(new)
    assert params["n_prompts"] == len(new)
    assert params["queries_elsewhere"]
    assert params["tolerance"] == ("" if tolerance is None else tolerance)
    assert (params["n_unmatched"] > 0) == (tolerance is not None)


def test_any_time_means_any(healthy):
    """However far the queries' times are from the prompts'."""
    for ages in ([3000, 3001], [-900, -899]):
        far = make_cells(30, ages, "f")
        assert matched(healthy, far, tolerance=None)["params"]["n_unmatched"] == 0
        with pytest.raises(ValueError, match="within 300 of the old query's age"):
            matched(healthy, far, tolerance=300)


def test_matches_are_equally_likely(healthy):
    mt.pp.sample_prompts(healthy, time_key="age", groupby="cell_type", n_prompts=4000)
    few = make_cells(12, [100, 120], "f", types=("B",))
    table = matched(healthy, few, tolerance=None)["prompts"]
    counts = table["query"].value_counts().reindex(few.obs_names).to_numpy()
    expected = len(table) / 12
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()


def test_groups_that_the_queries_lack(healthy, sick):
    part = sick[sick.obs["cell_type"] == "T"].copy()
    table = matched(healthy, part, tolerance=None)["prompts"]
    assert set(table["group"]) == {"T"}
    other = sick.copy()
    other.obs["cell_type"] = "Glia"
    with pytest.raises(
        ValueError, match=r"No prompt has a matching query: no cell of the same group \(cell_type\)"
    ):
        matched(healthy, other, tolerance=None)


def test_use(healthy, sick):
    sick.obs["severe"] = np.arange(150) % 2 == 0
    for use in ("severe", sick.obs["severe"].to_numpy()):
        table = matched(healthy, sick, tolerance=60, use=use)["prompts"]
        assert sick.obs.loc[table["query"], "severe"].all()
    with pytest.raises(KeyError, match=r"Did not find \.obs\['mild'\]"):
        matched(healthy, sick, use="mild")
    with pytest.raises(ValueError, match="use must be a boolean column"):
        matched(healthy, sick, use=[True])


def test_no_cell_is_left(healthy, sick):
    with pytest.raises(ValueError, match="No cell of the queries is left"):
        matched(healthy, sick, use=np.zeros(150, bool))
    sick.obs["cell_type"] = np.nan
    with pytest.raises(ValueError, match=r"150 of 150 cells have no value in .obs\['cell_type'\]"):
        matched(healthy, sick)


def test_the_seed_chooses(healthy, sick):
    first = matched(healthy, sick, tolerance=60)["prompts"]
    pd.testing.assert_frame_equal(matched(healthy, sick, tolerance=60)["prompts"], first)
    other = matched(healthy, sick, tolerance=60, rng=1)["prompts"]
    assert (other["query"] != first["query"]).any()
    # A prompt keeps its match when fewer are asked.
    mt.pp.sample_prompts(healthy, time_key="age", groupby="cell_type", n_prompts=20, donor_key="donor")
    few = matched(healthy, sick, tolerance=60)["prompts"]
    pd.testing.assert_frame_equal(few, first.iloc[: len(few)])


def test_prompts_survive_a_file_and_are_found_again(healthy, sick, tmp_path):
    stored = matched(healthy, sick, tolerance=20)
    healthy.write_h5ad(tmp_path / "cells.h5ad")
    read = anndata.read_h5ad(tmp_path / "cells.h5ad")
    table = read.uns["matched_prompts"]["prompts"]
    pd.testing.assert_frame_equal(table, stored["prompts"], check_dtype=False)
    prompts = read_prompts(table, read, sick)
    contexts, queries = healthy.obs["age"].to_numpy(), sick.obs["age"].to_numpy()
    last = prompts.context[np.arange(len(table)), prompts.context_size - 1]
    assert (queries[prompts.query] - contexts[last] == prompts.lapse).all()
    with pytest.raises(KeyError, match=r"or the query cells are elsewhere \(queries=...\)"):
        read_prompts(table, read, read)


def test_without_groups_and_donors(healthy, sick):
    del healthy.obs["donor"]
    mt.pp.sample_prompts(healthy, time_key="age", groupby=[], n_prompts=20, key_added="mine")
    del sick.obs["donor"], sick.obs["cell_type"]
    table = matched(healthy, sick, tolerance=None, key="mine", key_added="out")["prompts"]
    assert len(table) == 20
    assert "donor" not in table
    assert "prompts" in healthy.uns


def test_copy_and_missing_columns(healthy, sick):
    other = on_copy(mt.pp.match_queries, healthy, sick, tolerance=60)
    assert "matched_prompts" in other.uns
    assert "matched_prompts" not in healthy.uns
    for column in ("age", "cell_type", "donor"):
        part = sick.copy()
        del part.obs[column]
        with pytest.raises(KeyError, match=rf"Did not find \.obs\['{column}'\]"):
            matched(healthy, part)
    with pytest.raises(KeyError, match=r"Did not find \.uns\['prompts'\]. Run mt\.pp\.sample_prompts"):
        mt.pp.match_queries(sick, sick)
    sick.obs_names = ["s"] * 150
    with pytest.raises(ValueError, match="149 cell names are not unique"):
        mt.pp.match_queries(healthy, sick)
