"""Age acceleration: what is asked, of whom, and that planted conditions are found and nothing else."""

import dataclasses
import importlib
import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
from helpers import on_copy

import maxtoki_toolkit as mt

COLUMNS = {
    "condition_key": "condition",
    "control": "control",
    "time_key": "age_months",
    "donor_key": "donor_id",
}
TRUTH = {"accelerated_15y": 15, "accelerated_5y": 5, "accelerated_3y": 3, "resilient": 0}

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:maxtoki_toolkit", "ignore::UserWarning:tests")


def accelerate(adata, model, *, groupby="cell_type", n_cells=20, n_contexts=4, **settings):
    """Match the donors of some cells, and estimate."""
    matching = {name: settings.pop(name) for name in ("match_by", "tolerance", *COLUMNS) if name in settings}
    mt.pp.match_ages(adata, **COLUMNS | matching)
    sampling = mt.tl.AgeSampling(n_cells=n_cells, n_contexts=n_contexts)
    mt.tl.age_acceleration(adata, model, groupby=groupby, sampling=sampling, **settings)


@pytest.fixture(scope="module")
def model(tiny_clock):
    """A model that has what it takes to tell time, but has learned nothing."""
    return tiny_clock


@pytest.fixture(scope="module")
def atlas(model):
    adata = mt.datasets.aging_atlas(2400, 60, n_genes=500, seed=1)
    mt.pp.map_genes(adata, model)
    mt.pp.rank_value_encode(adata, model)
    adata.uns = {k: v for k, v in adata.uns.items() if k != "truth"} | {
        "donors": adata.uns["truth"]["donors"]
    }
    return adata


@pytest.fixture(scope="module")
def three(atlas):
    """Three of its cell types: each group takes a mixed model for each condition."""
    return atlas[atlas.obs["cell_type"].isin(["CD4 T cell", "fibroblast", "monocyte"])].copy()


@pytest.fixture
def oracle(monkeypatch):
    """Reads the biological age, shrunk to 0.6 and with noise of donors and cells; remembers what it was asked."""
    module = importlib.import_module("maxtoki_toolkit.tl._contexts")
    write, asked = module.write_prompts, []

    def listen(prompts, *args, **settings):
        asked.append(prompts)
        return write(prompts, *args, **settings)

    def answer(adata, slope=0.6, donor_sd=20.0):
        donors = adata.uns["donors"].set_index("donor_id")
        rng = np.random.default_rng(0)
        age = 200 + slope * donors["biological_age_months"] + rng.normal(0, donor_sd, len(donors))
        of_cell = age.loc[adata.obs["donor_id"]].to_numpy() + rng.normal(0, 60, adata.n_obs)
        time = adata.obs["age_months"].to_numpy()

        def read(*_, **__):
            prompts = asked[-1]
            last = prompts.context[np.arange(len(prompts.query)), prompts.context_size - 1]
            return of_cell[prompts.query] - time[last], np.zeros(len(last))

        monkeypatch.setattr(module, "read_lapses", read)
        return asked

    monkeypatch.setattr(module, "write_prompts", listen)
    return answer


def test_what_is_asked(three, model, oracle):
    asked = oracle(three)
    result = on_copy(
        accelerate,
        three,
        model,
        match_by="sex",
        n_cells=3,
        n_contexts=4,
        baselines=False,
        tolerance=60,
    )
    (prompts,) = asked
    obs = three.obs
    contexts, queries = obs.iloc[prompts.context.ravel()], obs.iloc[prompts.query]
    assert prompts.context.shape[1] == 3
    assert (contexts["condition"] == "control").all()
    assert (contexts.groupby(np.repeat(np.arange(len(queries)), 3))["age_months"].nunique() == 3).all()
    donor = obs["donor_id"].to_numpy()
    assert (donor[prompts.context] != donor[prompts.query][:, None]).all()
    kind = obs["cell_type"].to_numpy()
    assert (kind[prompts.context] == kind[prompts.query][:, None]).all()
    ages = obs["age_months"].to_numpy()
    np.testing.assert_array_equal(prompts.lapse, ages[prompts.query] - ages[prompts.context[:, -1]])
    np.testing.assert_array_equal(prompts.steps, np.diff(ages[prompts.context], axis=1))
    # Few contexts for many queries, and none favoured: what is shared is computed once.
    assert len(np.unique(prompts.context, axis=0)) == 4 * obs["cell_type"].nunique()
    per_donor = (
        queries.assign(cell=prompts.query)
        .drop_duplicates("cell")
        .groupby(["donor_id", "cell_type"], observed=True)
    )
    assert per_donor.size().max() == 3
    matching = result.uns["age_acceleration"]["matching"]
    matched = matching.loc[matching["matched"], "donor"]
    assert set(queries["donor_id"]) <= set(matched)


def test_planted_conditions_are_found(three, model, oracle):
    oracle(three)
    result = on_copy(accelerate, three, model, n_cells=10, n_contexts=2, baselines=False)
    assert "age_acceleration" not in three.uns
    effects = mt.get.age_acceleration(result)
    assert effects.attrs["unit"] == "years"
    whole = effects[effects["group"] == "all"].set_index("condition")
    for condition, years in TRUTH.items():
        assert whole.loc[condition, "effect_low"] < years < whole.loc[condition, "effect_high"]
    assert whole.loc["accelerated_15y", "conclusion"] == "older than controls"
    assert whole.loc["resilient", "conclusion"] == "not distinguishable from controls"
    assert whole["age_slope"].between(0.5, 0.7).all()
    assert whole.loc["accelerated_15y", "raw"] == pytest.approx(0.6 * 15, abs=2.5)
    donors = mt.get.donor_acceleration(result)
    mine = donors[(donors["group"] == "all") & (donors["condition"] == "accelerated_15y")]
    assert mine.groupby("case")["acceleration"].mean().diff().iloc[1] == pytest.approx(15, abs=4)
    figure = mt.pl.age_acceleration(result, truth=TRUTH)
    assert figure.axes[0].get_xlabel() == "age acceleration (years)"
    # As a reader counts, not by the alphabet.
    in_order = ["accelerated_3y", "accelerated_5y", "accelerated_15y", "resilient"]
    assert [ax.get_title().split("\n")[0] for ax in figure.axes] == in_order


def test_a_seed_gives_the_same_in_any_batches(atlas, model, monkeypatch):
    """Of a model of random weights, with all baselines."""
    obs = atlas.obs
    few = atlas[
        obs["cell_type"].isin(["fibroblast", "monocyte"])
        & obs["condition"].isin(["control", "accelerated_15y"])
    ].copy()
    found = []
    for size in (None, 2000):
        monkeypatch.setattr(mt.settings, "max_tokens", size)
        result = on_copy(accelerate, few, model, n_cells=4, n_contexts=2)
        found.append(mt.get.age_acceleration(result))
    assert set(found[0]["predictor"]) == {"MaxToki", "ridge_embedding", "ridge_expression"}
    # A model of random weights has slopes near 0, over which rounding is large.
    pd.testing.assert_frame_equal(*found, rtol=0.05, atol=0.01)
    # The clocks know more than nothing: expression tells age in the simulation.
    clock = found[0].set_index(["predictor", "condition", "group"]).loc["ridge_expression"]
    assert (clock["age_slope"] > 0).all()


def test_older_patients_are_matched(atlas, model, oracle):
    """Patients drawn from the old: without matching the ages differ, with it they do not."""
    donors = atlas.uns["donors"]
    sick = donors["condition"].isin(["accelerated_3y", "accelerated_5y", "accelerated_15y"])
    kept = donors[~sick | (donors["age_months"] > 500)]["donor_id"]
    part = atlas[atlas.obs["donor_id"].isin(kept)].copy()
    part.obs["condition"] = np.where(part.obs["condition"] == "control", "control", "sick")
    oracle(part)
    accelerate(part, model, n_cells=4, n_contexts=2, baselines=False, tolerance=24)
    balance = part.uns["age_acceleration"]["balance"].iloc[0]
    assert abs(balance["difference_after"]) < abs(balance["difference_before"])
    matching = part.uns["age_acceleration"]["matching"]
    ages = matching[matching["matched"]].groupby("case")["age"]
    assert ages.min()[False] >= ages.min()[True] - 24
    mt.pl.matched_ages(part, key="age_acceleration")


def test_what_cannot_be_concluded_is_said(atlas, model, oracle):
    part = atlas.copy()
    old = part.obs["age_months"] > 900
    part.obs["condition"] = np.where(
        part.obs["condition"] == "control", "control", np.where(old, "sick", "well")
    )
    part = part[(part.obs["condition"] != "control") | ~old].copy()
    part.obs["batch"] = np.where(part.obs["condition"] == "well", "new", "old")
    oracle(part, slope=0.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        accelerate(part, model, batch_key="batch", n_cells=3, n_contexts=2, baselines=False, tolerance=60)
    text = " ".join(part.uns["age_acceleration"]["params"]["warnings"])
    assert text == " ".join(str(w.message) for w in caught if w.category is UserWarning)
    assert "have no control of like age" in text
    assert "are in batches without any control" in text
    assert "The age of controls is not read from" in text
    effects = mt.get.age_acceleration(part)
    assert effects["effect_low"].isna().mean() > 0.8
    assert not effects["conclusion"].str.contains("older").any()


def test_depth_is_matched(atlas, model, oracle):
    """Patients' cells that were sequenced less deeply are compared with controls' cells of as many genes."""
    part = atlas[atlas.obs["cell_type"] == "fibroblast"].copy()
    part.obs["condition"] = np.where(part.obs["condition"] == "control", "control", "sick")
    genes, sick = part.obs["n_genes_ranked"], part.obs["condition"] == "sick"
    part = part[~sick | (genes < genes.quantile(0.6))].copy()
    asked = oracle(part)
    accelerate(part, model, n_cells=4, n_contexts=2, baselines=False)
    queries = part.obs.iloc[np.unique(asked[0].query)]
    depth = queries.groupby("condition", observed=True)["n_genes_ranked"].mean()
    before = part.obs.groupby("condition", observed=True)["n_genes_ranked"].mean()
    assert abs(depth.diff().iloc[1]) < 0.5 * abs(before.diff().iloc[1])


def test_what_is_refused(atlas, model, oracle):
    oracle(atlas)
    few = atlas.uns["donors"].groupby("condition").head(2)["donor_id"]
    part = atlas[atlas.obs["donor_id"].isin(few)].copy()
    with pytest.raises(ValueError, match="No condition has 3 donors and 3 controls of like age"):
        accelerate(part, model, tolerance=2000)
    with pytest.raises(ValueError, match="min_donors must be at least 2"):
        accelerate(part, model, min_donors=1)
    with pytest.raises(ValueError, match="Need donors of condition 'healthy'"):
        accelerate(atlas, model, control="healthy")
    with pytest.raises(ValueError, match="has several ages, conditions or strata"):
        accelerate(atlas, model, match_by="cell_type")
    stage1 = dataclasses.replace(model, time_head=None)
    with pytest.raises(ValueError, match="cannot tell time"):
        accelerate(atlas, stage1)


def test_matching_alone():
    adata = mt.datasets.aging_atlas(400, 40, n_genes=500)
    mt.pp.match_ages(adata, **COLUMNS, match_by=["sex"], tolerance=36)
    donors = adata.uns["matched_ages"]["donors"]
    ages = donors.set_index(["condition", "donor"])
    for row in donors[donors["case"]].itertuples():
        controls = donors[(donors["condition"] == row.condition) & ~donors["case"]]
        like = controls[(controls["stratum"] == row.stratum) & ((controls["age"] - row.age).abs() <= 36)]
        assert row.n_matches == len(like)
        assert row.matched == (len(like) > 0)
        assert ages.loc[row.condition].loc[like["donor"], "matched"].all()
    balance = adata.uns["matched_ages"]["balance"]
    assert (balance["n_condition_after"] <= balance["n_condition_before"]).all()
    with pytest.raises(ValueError, match="tolerance must be at least 0"):
        mt.pp.match_ages(adata, **COLUMNS, tolerance=-1)


@pytest.mark.slow
def test_the_demo_model_ranks_the_conditions():
    """New donors of the planted atlas: each truth in its interval, the strongest called, the resilient not."""
    model = mt.load_model("demo", device="cpu")
    adata = mt.datasets.aging_atlas(4000, 80, seed=11)
    mt.pp.map_genes(adata, model)
    mt.pp.rank_value_encode(adata, model)
    accelerate(adata, model, n_cells=6, n_contexts=2, baselines=False)
    effects = mt.get.age_acceleration(adata)
    whole = effects[(effects["group"] == "all") & (effects["predictor"] == "MaxToki")].set_index("condition")
    for condition, years in TRUTH.items():
        assert whole.loc[condition, "effect_low"] < years < whole.loc[condition, "effect_high"]
    assert whole["effect"].idxmax() == "accelerated_15y"
    assert whole.loc["accelerated_15y", "q_value"] < 0.01
    assert whole.loc["resilient", "conclusion"] == "not distinguishable from controls"
    unread = effects[effects["conclusion"].str.startswith("none") & (effects["predictor"] == "MaxToki")]
    assert {"B cell", "mural cell", "natural killer cell"} <= set(unread["group"])


def test_results_survive_a_file(three, model, oracle, tmp_path):
    oracle(three)
    result = on_copy(accelerate, three, model, n_cells=2, n_contexts=2, baselines=False)
    result.write_h5ad(tmp_path / "cells.h5ad")
    read = mt.get.age_acceleration(anndata.read_h5ad(tmp_path / "cells.h5ad"))
    pd.testing.assert_frame_equal(read, mt.get.age_acceleration(result))
