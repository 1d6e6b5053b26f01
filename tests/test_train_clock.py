"""A clock from cells to a card: what is held out is not trained on, from memory as from files, and said."""

import importlib
import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import yaml

import maxtoki_toolkit as mt
from maxtoki_toolkit.train.clock import _rows_to_test, _subset

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.filterwarnings("ignore:Held out of")
SETTINGS = {"time_key": "age_months", "donor_key": "donor_id", "groupby": "cell_type"}
RECIPE = {
    "donors": 0.4,
    "groups": {"cell_type": ["T cell"]},
    "max_steps": 2,
    "batch_size": 2,
    "n_held_out": 8,
    "n_tested": 60,
    "n_fitted": 120,
}


@pytest.fixture(scope="module")
def atlas():
    return mt.datasets.aging_atlas(700, 16, n_genes=600)


@pytest.fixture(scope="module")
def made(atlas, tmp_path_factory):
    output = tmp_path_factory.mktemp("clock") / "run"
    recipe = mt.train.ClockRecipe.of(**RECIPE)
    before = atlas.copy()
    model = mt.train.clock(atlas, mt.load_model("demo"), output, **SETTINGS, recipe=recipe)
    assert list(atlas.layers) == list(before.layers)  # the given cells stay as they are
    assert atlas.obs.equals(before.obs)
    return model, output


def test_what_is_held_out_is_not_trained_on(atlas, made):
    tested = anndata.read_h5ad(made[1] / "evaluation.h5ad")
    held = set(tested.uns["held_out_donors"]["prompts"]["donor"])
    by = tested.obs.groupby("donor_id", observed=True)
    for donor in held:
        assert not by.get_group(donor)["train"].any()
    lineage = atlas.obs["cell_type"].str.contains("T cell")
    assert set(atlas.obs.loc[lineage, "cell_type"]) == {"CD4 T cell", "CD8 T cell"}
    assert not tested.obs.loc[tested.obs["cell_type"].str.contains("T cell"), "train"].any()
    # Neither context nor query of a tested prompt was trained on.
    table = tested.uns["held_out_donors"]["prompts"]
    cells = np.unique(table.filter(regex="^(context_|query)").to_numpy(dtype=str).ravel())
    assert not tested.obs.loc[cells[cells != ""], "train"].any()


def test_evaluation_and_card(made):
    model, output = made
    scores = pd.read_csv(output / "evaluation.csv")
    assert set(scores["set"]) == {"held_out_donors", "held_out_groups"}
    assert {"MaxToki", "ridge_expression", "ridge_embedding", "most_common"} <= set(scores["predictor"])
    assert (scores.loc[scores["group"] == "all", "n_prompts"] == 60).all()
    card = (output / "card.md").read_text()
    for donor in (
        anndata.read_h5ad(output / "evaluation.h5ad").uns["held_out_donors"]["prompts"]["donor"].unique()
    ):
        assert donor in card
    assert "CD4 T cell, CD8 T cell" in card
    assert model.is_temporal
    assert (output / "training" / "model").is_dir()


def test_a_finished_clock_is_not_made_again(atlas, made):
    _, output = made
    before = (output / "evaluation.csv").stat().st_mtime_ns
    mt.train.clock(atlas, mt.load_model("demo"), output, **SETTINGS, recipe=mt.train.ClockRecipe.of(**RECIPE))
    assert (output / "evaluation.csv").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="run with other settings"):
        mt.train.clock(
            atlas,
            mt.load_model("demo"),
            output,
            **SETTINGS,
            recipe=mt.train.ClockRecipe.of(**RECIPE | {"donors": 0.5}),
        )


def test_cells_from_files_are_those_in_memory(atlas, tmp_path):
    """Of two files with the genes in other orders; only ranks are in them."""
    model = mt.load_model("demo")
    halves = [atlas[:300].copy(), atlas[300:, ::-1].copy()]
    for i, half in enumerate(halves):
        half.write_h5ad(tmp_path / f"{i}.h5ad")
        mt.pp.encode_file(tmp_path / f"{i}.h5ad", tmp_path / f"e{i}.h5ad", model)
        mt.pp.rank_value_encode(half, model)
    names = atlas.obs_names[::3]
    files = _subset([tmp_path / "e0.h5ad", tmp_path / "e1.h5ad"], names, atlas.obs)
    memory = _subset(halves, names, atlas.obs)
    assert files.obs_names.tolist() == memory.obs_names.tolist()
    assert files.var_names.tolist() == memory.var_names.tolist()
    assert (files.layers["rank"] != memory.layers["rank"]).nnz == 0
    assert files.X is None
    whole = atlas.copy()
    mt.pp.rank_value_encode(whole, model)
    by_id = pd.Series(np.arange(whole.n_vars), whole.var["ensembl_id"])
    expected = whole[names].layers["rank"][:, by_id[memory.var_names]]
    order = pd.Index(names).get_indexer(memory.obs_names)
    # Ties are ranked in the order of the genes, which differs between the halves.
    assert (memory.layers["rank"][:, :] > 0).sum() == (expected[order] > 0).sum()
    first = memory.obs_names.isin(halves[0].obs_names)
    assert (memory.layers["rank"][first] != expected[order][first]).nnz == 0


def test_donors_take_turns_in_the_evaluation(monkeypatch):
    obs = pd.DataFrame({"donor_id": ["a"] * 90 + ["b"] * 10, "train": [False] * 100})
    obs["held_out"] = True
    obs.index = obs.index.astype(str)
    monkeypatch.setattr(importlib.import_module("maxtoki_toolkit.train.clock"), "_MOST_CELLS", 40)
    rows = _rows_to_test(anndata.AnnData(obs=obs), "donor_id", 0)
    assert obs.loc[rows, "donor_id"].value_counts().to_dict() == {"a": 10, "b": 10}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"donors": ["D99"]}, "has no donor 'D99'"),
        ({"groups": {"cell_type": ["hepatocyte"]}}, "none names a kind of such a cell"),
        ({"donors": 0.0}, "Nothing that is held out has prompts|held out"),
    ],
)
def test_refused_before_training(atlas, tmp_path, settings, message):
    recipe = mt.train.ClockRecipe.of(max_steps=1, batch_size=2, n_held_out=4, **settings)
    with pytest.raises(ValueError, match=message):
        mt.train.clock(atlas, mt.load_model("demo"), tmp_path / "run", **SETTINGS, recipe=recipe)
    assert not (tmp_path / "run").exists()


def test_names_that_repeat_are_refused(atlas, tmp_path):
    with pytest.raises(ValueError, match="700 names of cells repeat between the data sets"):
        mt.train.clock([atlas, atlas], mt.load_model("demo"), tmp_path / "run", **SETTINGS)


@pytest.mark.slow
def test_two_processes_make_one_clock(atlas, made, tmp_path):
    """By the command, started by accelerate: one evaluation, card and report, with the donors held out that one process holds out."""
    atlas.write_h5ad(tmp_path / "cells.h5ad")
    settings = {"cells": str(tmp_path / "cells.h5ad"), "model": "demo", "output": str(tmp_path / "out")}
    settings |= SETTINGS | RECIPE | {"batch_size": 1, "device": "cpu"}
    (tmp_path / "clock.yaml").write_text(yaml.safe_dump(settings))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launch += ["--main_process_port", "29523", "-m", "maxtoki_toolkit.cli", "clock", "-c"]
    result = subprocess.run(
        [*launch, str(tmp_path / "clock.yaml")], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert (tmp_path / "out" / "report" / "clock_report.html").is_file()
    alone, together = (
        anndata.read_h5ad(folder / "evaluation.h5ad") for folder in (made[1], tmp_path / "out")
    )
    pd.testing.assert_series_equal(alone.obs["held_out"], together.obs["held_out"])
    scores = [pd.read_csv(folder / "evaluation.csv") for folder in (made[1], tmp_path / "out")]
    same = ["set", "group", "predictor", "n_prompts"]
    pd.testing.assert_frame_equal(scores[0][same], scores[1][same])
    ridge = [table[table["predictor"] == "ridge_expression"]["r"].to_numpy() for table in scores]
    np.testing.assert_allclose(*ridge)  # whatever the network


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_plan_of_the_developing_heart(tmp_path):
    """The committed plan on simulated cells of stages before birth: weeks and lineages stay out, "embryonic" is not guessed."""
    from maxtoki_toolkit.clocks import read_settings

    settings = read_settings(ROOT / "docs" / "clock_heart_development.yaml")
    cells = mt.datasets.aging_atlas(600, 20, n_genes=600, seed=3)
    ages = cells.obs.groupby("donor_id", observed=True)["age_months"].first().sort_values()
    weeks = [
        "4th",
        "5th",
        "6th",
        "7th",
        "8th",
        "9th",
        "10th",
        "11th",
        "12th",
        "13th",
        "15th",
        "16th",
        "17th",
        "20th",
    ]
    stages = [f"{week} week post-fertilization stage" for week in weeks]
    stages = ["Carnegie stage 17", "embryonic stage", *stages, *stages][: len(ages)]
    cells.obs["development_stage"] = cells.obs["donor_id"].map(
        dict(zip(ages.index, sorted(stages), strict=True))
    )
    renamed = {
        "endothelial cell": "endothelial cell of artery",
        "mural cell": "endothelial cell of lymphatic vessel",
        "B cell": "mesothelial cell of epicardium",
    }
    cells.obs["cell_type"] = cells.obs["cell_type"].astype(str).replace(renamed)
    mt.pp.harmonize_cell_types(cells, "cell_type")
    recipe = mt.train.ClockRecipe.of(
        **settings["recipe"].flat()
        | {"max_steps": 1, "batch_size": 2, "n_held_out": 4, "n_tested": 20, "n_fitted": 60}
    )
    chosen = {name: settings[name] for name in ("time_key", "time_unit", "donor_key", "groupby")}
    with pytest.warns(UserWarning, match="Read .obs\\['development_stage'\\] as ages in days"):
        mt.train.clock(cells, mt.load_model("demo"), tmp_path / "heart", **chosen, recipe=recipe)
    tested = anndata.read_h5ad(tmp_path / "heart" / "evaluation.h5ad")
    train = tested.obs[tested.obs["train"]]
    assert not train["development_stage"].str.match("^(7th|10th|20th) ").any()
    assert {"4th", "9th", "15th"} <= set(train["development_stage"].str.split().str[0])
    assert not set(train["cell_type"]) & set(renamed.values())
    assert not tested.obs["development_stage"].eq("embryonic stage").any()
    card = (tmp_path / "heart" / "card.md").read_text()
    for name in renamed.values():
        assert name in card
    assert "-224 to -218, -203 to -197, -133 to -127 days" in card
