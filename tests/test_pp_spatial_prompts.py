"""Niches as prompts: places, lapses, seeds; a model learns them, and one of months refuses them."""

import numpy as np
import pandas as pd
import pytest

import maxtoki_toolkit as mt
from maxtoki_toolkit.pp.sample_prompts import read_prompts
from maxtoki_toolkit.train._stored_prompts import StoredPrompts


@pytest.fixture(scope="module")
def section():
    adata = mt.datasets.tissue(400)
    mt.pp.map_genes(adata)
    mt.pp.rank_value_encode(adata, mt.models.Vocabulary.from_anndata(adata))
    return adata


@pytest.fixture
def cells(section):
    return section.copy()


def shape():
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return small | {"max_position_embeddings": 64}


def test_lapses_are_differences_of_distances(cells):
    mt.pp.spatial_prompts(cells, radius=300, n_prompts=200, context_size=(1, 3))
    table = mt.get.table(cells, "prompts")
    place = pd.DataFrame(cells.obsm["spatial"], cells.obs_names)
    image, donor = cells.obs["image_id"].astype(str), cells.obs["donor_id"].astype(str)
    sizes = set()
    for row in table.itertuples():
        names = [name for name in (row.context_0, row.context_1, row.context_2) if name]
        sizes.add(len(names))
        assert len({*names, row.query}) == len(names) + 1
        assert {image[name] for name in names} == {image[row.query]} == {row.group}
        assert donor[row.query] == row.donor == row.donor_0
        distance = np.linalg.norm(place.loc[names].to_numpy() - place.loc[row.query].to_numpy(), axis=1)
        assert distance.max() <= 300
        rounded = np.rint(distance)
        assert (np.diff(rounded) <= 0).all()  # from far to near
        assert row.lapse == rounded[-1]
        steps = [row.lapse_0, row.lapse_1][: len(names) - 1]
        np.testing.assert_array_equal(steps, -np.diff(rounded))
    assert sizes == {1, 2, 3}
    params = cells.uns["prompts"]["params"]
    assert (params["function"], params["distance_unit"]) == ("pp.spatial_prompts", "µm")


def test_a_prompt_depends_on_its_number_alone(cells):
    mt.pp.spatial_prompts(cells, n_prompts=1500, rng=3)
    many = mt.get.table(cells, "prompts")
    mixed = cells[np.random.default_rng(0).permutation(cells.n_obs)].copy()
    mt.pp.spatial_prompts(mixed, n_prompts=40, rng=3)
    pd.testing.assert_frame_equal(mt.get.table(mixed, "prompts"), many.head(40))
    # Every one of the nearest cells is drawn, and none is drawn more than another.
    near = many.filter(regex=r"^context_\d$").stack().value_counts()
    assert len(near[near.index != ""]) == cells.n_obs


def test_queries_are_held_out_images(cells):
    cells.obs["tested"] = cells.obs["image_id"].isin(cells.obs["image_id"].unique()[:2])
    mt.pp.spatial_prompts(cells, queries="tested", n_prompts=50)
    table = mt.get.table(cells, "prompts")
    named = np.unique(table.filter(regex="^(context|query)").to_numpy(dtype=str))
    assert cells.obs.loc[named[named != ""], "tested"].all()


def test_refusals(cells):
    fine = cells.copy()
    fine.obsm["spatial"] = fine.obsm["spatial"] / 1000
    with pytest.raises(ValueError, match="lapses are whole numbers. Give places in a finer unit"):
        mt.pp.spatial_prompts(fine, distance_unit="mm")
    with pytest.raises(ValueError, match="has 3 neighbours or more. Give a larger radius"):
        mt.pp.spatial_prompts(cells, radius=20, context_size=3)
    with pytest.raises(ValueError, match="There is no task 'time'"):
        mt.pp.spatial_prompts(cells, task="time")
    del cells.obsm["spatial"]
    with pytest.raises(KeyError, match="Did not find .obsm\\['spatial'\\]"):
        mt.pp.spatial_prompts(cells)


def test_a_model_of_months_refuses_distances(cells, tiny_clock):
    mt.pp.rank_value_encode(cells, tiny_clock)
    mt.pp.spatial_prompts(cells, n_prompts=10)
    with pytest.raises(ValueError, match="are distances in µm, and the model reads months"):
        mt.tl.predict_timelapse(cells, tiny_clock)
    mt.pp.spatial_prompts(cells, n_prompts=10, task="cell")
    with pytest.raises(ValueError, match="are distances in µm, and the model reads months"):
        mt.tl.generate(cells, tiny_clock, n_samples=1)


def test_stored_prompts_are_dealt_out_evenly(cells):
    mt.pp.spatial_prompts(cells, n_prompts=30)
    prompts = read_prompts(mt.get.table(cells, "prompts"), cells, cells)
    dealer = StoredPrompts(prompts, timelapse=0.5, seed=1)
    two = dealer.draw(0, 60)
    for epoch in (two[:30], two[30:]):
        np.testing.assert_array_equal(np.sort(epoch.lapse), np.sort(prompts.lapse))
    part = dealer.draw(25, 47)
    for field, whole in zip(tuple(part), tuple(two), strict=True):
        np.testing.assert_array_equal(field, whole[25:47])
    assert 0.2 < dealer.draw(0, 600).timelapse.mean() < 0.8


def test_a_model_learns_distances(cells, tmp_path):
    """Which are read, and generated from, in micrometres; ages are then refused."""
    model = mt.models.build_model(shape(), mt.models.Vocabulary.from_anndata(cells))
    mt.pp.spatial_prompts(cells, radius=200, n_prompts=60, context_size=2)
    cells.obs["tested"] = cells.obs["image_id"].isin(cells.obs["image_id"].unique()[:3])
    recipe = mt.train.TemporalRecipe.of(max_length=256, max_steps=2, batch_size=4, n_held_out=8)
    with pytest.raises(ValueError, match="leave out time_key"):
        mt.train.temporal(
            cells, model, tmp_path / "a", prompts="prompts", time_key="age_months", recipe=recipe
        )
    reader = mt.train.temporal(
        cells, model, tmp_path / "b", prompts="prompts", held_out="tested", recipe=recipe
    )
    assert reader.time_head.unit == "µm"
    longest = mt.get.table(cells, "prompts")[["lapse", "lapse_0"]].max().max()
    assert reader.vocab.time_values.max() == longest
    mt.tl.predict_timelapse(cells, reader)
    scores = mt.get.table(cells, "timelapse", "scores")
    assert np.isfinite(scores["median_error"]).all()
    whole = scores.set_index("group").loc["all"]
    assert whole["r_null_low"] < 0 < whole["r_null_high"]
    mt.pp.sample_prompts(cells, time_key="age_months", groupby="cell_type", n_prompts=5)
    with pytest.raises(ValueError, match="is in months by its name, and the model reads µm"):
        mt.tl.predict_timelapse(cells, reader)


@pytest.mark.slow
def test_planted_lapses_of_stored_prompts_are_learned(cells, tmp_path):
    """The lapse is what the query's cell type says, and nothing else does."""
    kinds = ["fibroblast", "CD4 T cell"]
    model = mt.models.build_model(shape(), mt.models.Vocabulary.from_anndata(cells))
    cells = cells[cells.obs["cell_type"].isin(kinds)].copy()
    mt.pp.spatial_prompts(cells, radius=1500, n_prompts=400, context_size=1)
    table = cells.uns["prompts"]["prompts"]
    planted = (cells.obs["cell_type"] == kinds[0]).astype(int)
    table["lapse"] = 10 + 80 * planted.loc[table["query"]].to_numpy()
    cells.obs["tested"] = cells.obs["image_id"].isin(cells.obs["image_id"].unique()[:3])
    recipe = mt.train.TemporalRecipe.of(
        max_length=160, max_steps=120, batch_size=16, learning_rate=1e-2, timelapse=1.0
    )
    reader = mt.train.temporal(
        cells, model, tmp_path / "run", prompts="prompts", held_out="tested", recipe=recipe
    )
    mt.tl.predict_timelapse(cells, reader)
    found = mt.get.table(cells, "timelapse")
    tested = cells.obs.loc[found["query"], "tested"].to_numpy()
    assert np.corrcoef(found.loc[tested, "lapse"], found.loc[tested, "predicted"])[0, 1] > 0.8
