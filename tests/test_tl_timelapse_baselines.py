"""Baselines of lapses: that they find what is there, and cannot see what they are tested on."""

import dataclasses
import importlib

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

import maxtoki_toolkit as mt
from maxtoki_toolkit.pp.sample_prompts import read_prompts
from maxtoki_toolkit.tl._cells import match_columns

SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
SETTINGS = {"time_key": "age_months", "groupby": "cell_type", "donor_key": "donor_id"}
module = importlib.import_module("maxtoki_toolkit.tl.timelapse_baselines")


def plant(seed: int = 0, *, shuffled: bool = False):
    """Cells of four types whose first 100 genes rise or fall with age in all types; ages of donors shuffled."""
    adata = mt.datasets.aging_atlas(1500, 20, n_genes=500, null=True, seed=seed)
    keep = adata.obs["cell_type"].isin(["B cell", "CD4 T cell", "fibroblast", "monocyte"])
    adata = adata[keep].copy()
    rng = np.random.default_rng(seed)
    effect = np.where(np.arange(500) < 100, rng.choice([-0.5, 0.5], 500), 0)
    time = (adata.obs["age_months"].to_numpy() - 600) / 240
    mean = adata.X.toarray().mean(axis=0).clip(0.05) * np.exp(np.outer(time, effect))
    adata.X = sp.csr_matrix(rng.poisson(mean).astype(np.float32))
    if shuffled:
        ages = adata.obs.groupby("donor_id", observed=True)["age_months"].first()
        ages = dict(zip(ages.index, rng.permutation(ages), strict=True))
        adata.obs["age_months"] = adata.obs["donor_id"].map(ages).astype(int)
    return adata


def prepare(adata, **holding_out):
    """Rank, hold out, draw prompts, and predict with a model that was never trained."""
    mt.pp.map_genes(adata)
    vocab = mt.models.Vocabulary.from_anndata(adata)
    small = mt.models.build_model({**SHAPE, "max_position_embeddings": 64}, vocab)
    model = mt.models.extend_model(small, vocab.with_times(-900, 900), max_length=256)
    model = dataclasses.replace(model, time_head=mt.models.TimeHead("expectation"))
    mt.pp.rank_value_encode(adata, model)
    mt.pp.hold_out(adata, donor_key="donor_id", donors=0.4, time_key="age_months", **holding_out)
    for part, key, n in [("train", "train_prompts", 300), ("held_out", "prompts", 200)]:
        mt.pp.sample_prompts(adata, contexts=part, queries=part, key_added=key, n_prompts=n, **SETTINGS)
    mt.tl.predict_timelapse(adata, model)
    return adata, model


@pytest.fixture(scope="module")
def planted():
    """Planted cells with baselines; B cells were not trained on."""
    adata, model = prepare(plant(), groups={"cell_type": ["B cell"]})
    module.timelapse_baselines(adata, model)
    return adata, model


def overall(adata):
    return mt.get.table(adata, "timelapse_baselines").query("group == 'all'").set_index("predictor")


def test_clocks_find_planted_time(planted):
    scores = overall(planted[0])
    assert scores.index.tolist() == ["MaxToki", *module.BASELINES]
    row = scores.loc["ridge_expression"]
    assert row["r"] > 0.8
    assert row["slope"] > 0.6
    assert row["p_value"] < 0.01
    assert row["error_ratio"] > 1.5  # the model was never trained
    assert scores.loc["sgd_expression", "r"] > 0.5
    assert abs(scores.loc["MaxToki", "slope"]) < 0.1
    # A type that was never trained on is read by the clock of all types.
    clocks = planted[0].uns["timelapse_baselines"]["clocks"].query("baseline == 'ridge_expression'")
    assert "all" in clocks["group"].tolist()
    assert "B cell" not in clocks["group"].tolist()
    groups = mt.get.table(planted[0], "timelapse_baselines").set_index(["predictor", "group"])
    assert groups.loc[("ridge_expression", "B cell"), "r"] > 0.8


def test_clocks_find_nothing_in_shuffled_time():
    adata, model = prepare(plant(1, shuffled=True))
    mt.tl.timelapse_baselines(adata, model, embedding=False)
    assert "ridge_embedding" not in mt.get.table(adata, "timelapse_baselines", "prompts")
    for name in ["ridge_expression", "sgd_expression"]:
        row = overall(adata).loc[name]
        assert row["r_null_low"] < row["r"] < row["r_null_high"]
        assert row["p_value"] > 0.05


def test_clock_arithmetic(planted):
    """A feature that is the time itself gives each lapse, whatever the context."""
    adata = planted[0]
    tables = [adata.uns[key]["prompts"] for key in ("train_prompts", "timelapse")]
    training, test = (read_prompts(table, adata, adata) for table in tables)
    cells = module._cells(
        adata, training, tables[0]["group"].to_numpy(str), adata.uns["train_prompts"]["params"]
    )
    time = adata.obs["age_months"].to_numpy()
    np.testing.assert_array_equal(cells.time, time[cells.place])
    np.testing.assert_array_equal(cells.group, adata.obs["cell_type"].astype(str).to_numpy()[cells.place])
    np.testing.assert_array_equal(cells.donor, adata.obs["donor_id"].astype(str).to_numpy()[cells.place])
    X = np.column_stack([time, np.zeros(len(time))]).astype(float)
    lapse, clocks = module._clock_lapses(X, cells, test, tables[1]["group"].to_numpy(str), 0)
    np.testing.assert_allclose(lapse, test.lapse, atol=8)  # ridge shrinks by a hundredth
    assert (clocks["alpha"] == 1).all()


def test_most_common():
    lapse = np.array([12, 12, -3, 24, 24, 3, -3, 5])
    fitted = np.array(["a", "a", "a", "a", "a", "b", "b", "b"])
    # a: 12 as often as 24; b: 3, -3 and 5 once each; c is unknown: -3, 12 and 24 twice each.
    np.testing.assert_array_equal(module._most_common(lapse, fitted, np.array(["a", "b", "c"])), [12, 3, -3])


def test_tested_cells_are_not_seen(planted):
    """Other counts in one tested cell change the prompts of that cell, and no other."""
    adata, model = planted[0].copy(), planted[1]
    before = mt.get.table(adata, "timelapse_baselines", "prompts")
    cell = before["query"].iloc[0]
    place = adata.obs_names.get_loc(cell)
    changed = adata.X.toarray()
    changed[place] *= np.random.default_rng(0).integers(1, 900, adata.n_vars)
    adata.layers["changed"] = sp.csr_matrix(changed)
    adata.uns["rank_value_encode"]["params"]["layer"] = "changed"
    mt.tl.timelapse_baselines(adata, model, embedding=False)
    after = mt.get.table(adata, "timelapse_baselines", "prompts")
    touched = (before[["query", "context_0", "context_1", "context_2"]] == cell).any(axis=1)
    for name in ["ridge_expression", "sgd_expression", "most_common"]:
        np.testing.assert_array_equal(after.loc[~touched, name], before.loc[~touched, name])
    assert (after.loc[touched, "ridge_expression"] != before.loc[touched, "ridge_expression"]).all()


def test_queries_elsewhere(planted):
    """Query cells in an AnnData of their own, with genes in another order, give the same."""
    adata, model = planted[0].copy(), planted[1]
    table = mt.get.table(adata, "timelapse")
    contexts = set(table[["context_0", "context_1", "context_2"]].to_numpy().ravel())
    table = table[~table["query"].isin(contexts)]
    adata.uns["timelapse"]["prompts"] = table
    mt.tl.timelapse_baselines(adata, model)
    expected = mt.get.table(adata, "timelapse_baselines", "prompts")
    away = adata.obs_names.isin(table["query"])
    queries, rest = adata[away].copy(), adata[~away].copy()
    queries = queries[:, ::-1].copy()
    mt.tl.timelapse_baselines(rest, model, queries=queries)
    found = mt.get.table(rest, "timelapse_baselines", "prompts")
    for name in module.BASELINES:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-2)
    with pytest.raises(KeyError, match="query cells are elsewhere"):
        mt.tl.timelapse_baselines(rest, model)
    with pytest.raises(ValueError, match="lack 1 of the genes"):
        mt.tl.timelapse_baselines(rest, model, queries=queries[:, 1:].copy(), embedding=False)


def test_without_donors(planted):
    adata, model = planted[0].copy(), planted[1]
    settings = {**SETTINGS, "donor_key": None, "n_prompts": 100}
    del adata.obs["donor_id"]
    mt.pp.sample_prompts(adata, contexts="train", queries="train", key_added="train_prompts", **settings)
    mt.tl.timelapse_baselines(adata, model, embedding=False)
    assert overall(adata).loc["ridge_expression", "r"] > 0.8
    assert adata.uns["timelapse_baselines"]["params"]["n_train_donors"] == ""


def test_refusals(planted):
    adata, model = planted[0].copy(), planted[1]
    settings = {**SETTINGS, "n_prompts": 100, "key_added": "train_prompts"}
    mt.pp.sample_prompts(adata, **settings)
    with pytest.raises(
        ValueError, match=r"cells of the training prompts are queries of the tested ones \(first: 'D"
    ):
        mt.tl.timelapse_baselines(adata, model)
    adata.obs["months"] = adata.obs["age_months"]
    mt.pp.sample_prompts(adata, contexts="train", queries="train", **{**settings, "time_key": "months"})
    with pytest.raises(ValueError, match=r"time_key=\['months'\], the tested ones with \['age_months'\]"):
        mt.tl.timelapse_baselines(adata, model)
    mt.pp.sample_prompts(adata, contexts="train", queries="train", **{**settings, "groupby": "sex"})
    with pytest.raises(ValueError, match=r"groupby=\['sex'\], the tested ones with \['cell_type'\]"):
        mt.tl.timelapse_baselines(adata, model)
    with pytest.raises(KeyError, match="Did not find .uns\\['nope'\\]. Run mt.pp.sample_prompts"):
        mt.tl.timelapse_baselines(adata, model, train="nope")
    with pytest.raises(KeyError, match="not predicted yet"):
        mt.tl.timelapse_baselines(adata, model, key="prompts")
    other = dataclasses.replace(model, sha256="other")
    mt.pp.sample_prompts(adata, contexts="train", queries="train", **settings)
    with pytest.raises(ValueError, match="Another model than"):
        mt.tl.timelapse_baselines(adata, other)
    del adata.uns["timelapse"]
    with pytest.raises(KeyError, match="Run mt.tl.predict_timelapse"):
        mt.tl.timelapse_baselines(adata, model)


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_queries_are_matched_by_name_where_names_repeat():
    queries = AnnData(np.zeros((1, 4)), var=pd.DataFrame(index=["B", "A", "B", "C"]))
    assert match_columns(queries, pd.Index(["A", "B", "B"])).tolist() == [1, 0, 2]
    with pytest.raises(ValueError, match="lack 1 of the genes .first: 'A-1'"):
        match_columns(queries, pd.Index(["A", "A", "B"]))
