"""Cells that lack a value are left out, and the order of the others does not matter: one helper for all."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from helpers import on_copy

import maxtoki_toolkit as mt
from maxtoki_toolkit.pp._design import get_labels, known_cells
from maxtoki_toolkit.tl._time_unit import check_unit
from maxtoki_toolkit.train._cells import read_cells
from maxtoki_toolkit.train.temporal import _design

SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def cells():
    adata = mt.datasets.aging_atlas(150, 10, n_genes=500)
    mt.pp.map_genes(adata)
    return adata


@pytest.fixture(scope="module")
def model(cells):
    model = mt.models.build_model(SHAPE, mt.models.Vocabulary.from_anndata(cells))
    mt.pp.rank_value_encode(cells, model)
    return model


@pytest.fixture
def moved(cells, model):
    return cells[np.random.default_rng(0).permutation(cells.n_obs)].copy()


def of_donors(values):
    names = [f"cell_{i}" for i in range(len(values))]
    return AnnData(obs=pd.DataFrame({"donor": values, "batch": "b"}, index=names))


@pytest.mark.parametrize(
    "values",
    [
        ["a", None, "b"],
        ["a", np.nan, "b"],
        ["a", "nan", "b"],
        ["a", "", "b"],
        pd.Categorical(["a", None, "b"]),
        pd.array(["a", None, "b"], dtype="string"),
        pd.array([1, None, 2], dtype="Int64"),
        [1.0, np.nan, 2.0],
    ],
)
def test_missing_values_of_all_kinds(values):
    adata = of_donors(values)
    with pytest.warns(UserWarning, match=r"1 of 3 cells have no value in .obs\['donor'\] and are left out"):
        found, rows = known_cells(adata, "batch", None, ["donor"])
    assert found.obs_names.tolist() == ["cell_0", "cell_2"]
    assert rows.tolist() == [0, 2]
    with pytest.raises(ValueError, match=r"1 of 3 cells have no value in .obs\['donor'\]. Drop them first"):
        get_labels(adata, "donor")


def test_no_cell_is_left():
    with pytest.raises(ValueError, match=r"2 of 2 cells have no value in .obs\['donor'\]"):
        known_cells(of_donors([np.nan, np.nan]), "donor")
    adata = of_donors(["a", np.nan])
    adata.obs["batch"] = [np.nan, "b"]
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(ValueError, match=r"No cell has a value in all of .obs\['donor'\], .obs\['batch'\]"),
    ):
        known_cells(adata, "donor", "batch")


def test_cells_come_in_the_order_of_their_names():
    """Whole numbers within names as one counts them, where they differ in length."""
    adata = of_donors(["a"] * 12)
    assert known_cells(adata)[0] is adata
    order = np.random.default_rng(0).permutation(12)
    found, rows = known_cells(adata[order].copy())
    assert found.obs_names.tolist() == adata.obs_names.tolist()
    np.testing.assert_array_equal(order[rows], np.arange(12))


def test_cells_without_a_donor_are_neither_trained_on_nor_held_out(cells):
    adata = cells.copy()
    lost = np.random.default_rng(0).random(adata.n_obs) < 0.3
    adata.obs["donor"] = adata.obs["donor_id"].astype(object).mask(lost, np.nan)
    with pytest.warns(UserWarning, match=f"{lost.sum()} of 150 cells have no value"):
        mt.pp.hold_out(adata, donor_key="donor", donors=0.3, time_key="age_months")
    held_out = set(adata.obs.loc[adata.obs["held_out"], "donor"])
    assert not adata.obs.loc[lost, ["train", "held_out", "held_out_donors"]].any(axis=None)
    assert not adata.obs.loc[adata.obs["train"], "donor_id"].isin(held_out).any()
    assert adata.uns["hold_out"]["params"]["n_left_out"] == lost.sum()


def test_a_donor_of_several_times_has_one_place_among_donors(cells, moved):
    """Its first time, not that of its first cell in the file."""
    for adata in (cells, moved):
        adata.obs["visit"] = adata.obs["age_months"] + 300 * (adata.obs_names.str[-1].astype(int) % 2)
    chosen = [
        on_copy(mt.pp.hold_out, adata, donor_key="donor_id", donors=0.4, time_key="visit").uns["hold_out"]
        for adata in (cells, moved)
    ]
    assert list(chosen[0]["params"]["donors"]) == list(chosen[1]["params"]["donors"])


@pytest.mark.filterwarnings("ignore:.*zarr")
def test_training_reads_cells_in_the_order_of_their_names(cells, moved, model, tmp_path):
    expected, _ = read_cells(cells, model, tmp_path, 0)
    moved.write_h5ad(tmp_path / "moved.h5ad")
    for given in (moved, tmp_path / "moved.h5ad"):
        found, table = read_cells(given, model, tmp_path, 1)
        assert table.obs_names.tolist() == cells.obs_names.tolist()
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        np.testing.assert_array_equal(found.indptr, expected.indptr)


def test_training_leaves_out_what_has_no_group_or_time(cells):
    adata = cells.copy()
    adata.obs["kind"] = adata.obs["cell_type"].astype(object).mask(np.arange(150) < 5, np.nan)
    adata.obs["age"] = adata.obs["age_months"].astype(float).mask(np.arange(150) > 146, np.nan)
    with pytest.warns(UserWarning, match="are left out"):
        group, time, used, tested = _design([adata], "age", "kind", None, None)
    assert used.tolist() == [False] * 5 + [True] * 142 + [False] * 3
    assert (group[~used] == -1).all()
    np.testing.assert_array_equal(time[used], adata.obs["age_months"][used])
    assert not tested.any()


@pytest.mark.slow
def test_training_is_the_same_for_cells_in_another_order(cells, moved, model, tmp_path):
    settings = {"time_key": "age_months", "groupby": "cell_type", "max_length": 256, "max_steps": 1}
    recipe, columns = mt.train.TemporalRecipe.split(settings | {"batch_size": 4, "device": "cpu"})
    trained = [
        mt.train.temporal(adata, model, tmp_path / name, recipe=recipe, **columns)
        for name, adata in (("a", cells), ("b", moved))
    ]
    assert trained[0].sha256 == trained[1].sha256
    shape = {**SHAPE, "max_position_embeddings": 32}
    recipe = mt.train.PretrainRecipe.of(max_steps=1, batch_size=4, device="cpu")
    trained = [
        mt.train.pretrain(adata, model.vocab, tmp_path / name, shape=shape, recipe=recipe)
        for name, adata in (("c", cells), ("d", moved))
    ]
    assert trained[0].sha256 == trained[1].sha256


def test_training_refuses_a_doubtful_unit(cells, model, tmp_path):
    adata = cells.copy()
    adata.obs["age"] = adata.obs["age_months"] // 12
    with pytest.raises(
        ValueError,
        match=r"goes from \d+ to \d+, which is taken for months. If these are years, pass time_unit='years'.",
    ):
        mt.train.temporal(
            adata,
            model,
            tmp_path / "run",
            time_key="age",
            groupby=[],
            time_unit="months",
            recipe=mt.train.TemporalRecipe.of(max_steps=1),
        )


@pytest.mark.parametrize(
    ("name", "times", "unit", "found"),
    [
        ("age", [240, 900], "months", "months, 240 to 900"),
        ("age_months", [20, 90], "months", "months, 20 to 90, as 'age_months' says"),
        ("age", [20, 90], "years", "years, 20 to 90"),
        ("age", [20, 90], "months", "If these are years"),
        ("age", [240, 900], "years", "If these are months"),
        ("age_years", [20, 90], "months", "is in years by its name"),
        ("hours", [0, 72], "hours", "hours, 0 to 72, as 'hours' says"),
        ("t", [0, 10], "months", "months, 0 to 10"),
    ],
)
def test_units(name, times, unit, found):
    if found.startswith(unit):
        assert check_unit(name, times, unit) == found
    else:
        with pytest.raises(ValueError, match=found):
            check_unit(name, times, unit)
