"""Paragraphs: prompts written down as the original assembles them, and read from what its runs leave."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from test_datasets_folders import save
from test_parity_prompts import make_vocab

import maxtoki_toolkit as mt
from maxtoki_toolkit._arrow import open_dataset


@pytest.fixture(scope="module")
def cells(tiny_clock):
    adata = mt.datasets.aging_atlas(120, 10, n_genes=500)
    mt.pp.rank_value_encode(adata, tiny_clock)
    return adata


SETTINGS = {
    "time_key": "age_months",
    "groupby": ["cell_type", "sex"],
    "donor_key": "donor_id",
    "n_prompts": 30,
}


@pytest.mark.parametrize("task", ["timelapse", "cell"])
def test_prompts_to_paragraphs_and_back(cells, tiny_clock, tmp_path, task):
    """Table and settings, bit by bit; and what a model reads of both."""
    adata = cells.copy()
    mt.pp.sample_prompts(adata, task=task, context_size=(1, 3), rng=3, **SETTINGS)
    mt.pp.write_paragraphs(adata, tiny_clock, output=tmp_path / "a")
    other = cells.copy()
    mt.pp.read_paragraphs(other, path=tmp_path / "a")
    found, expected = other.uns["prompts"], adata.uns["prompts"]
    pd.testing.assert_frame_equal(found["prompts"], expected["prompts"])
    assert set(found["params"]) == set(expected["params"])
    for name, value in expected["params"].items():
        np.testing.assert_array_equal(found["params"][name], value, err_msg=name)
    mt.pp.write_paragraphs(other, tiny_clock, output=tmp_path / "b")
    assert open_dataset(tmp_path / "a").to_pydict() == open_dataset(tmp_path / "b").to_pydict()


def test_parity_compose_example(parity, tmp_path):
    """`compose_example` (training): tokens and lengths of answers, from the cells in a folder to the paragraphs in one."""
    group = parity["compose_example"]
    vocab = make_vocab(group["token_dictionary"])
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    n_checked = 0
    for i, case in enumerate(group["cases"]):
        value = case["expected"].get("value") if isinstance(case["expected"], dict) else case["expected"]
        if value is None or case["model_input_size"] < 18:
            continue
        input_ids, n_answer = value if case["is_train"] else (value[0] + value[3], value[4])
        n_cells = len(case["cell_indices"])
        table = pa.table(
            {"input_ids": pa.array([group["cells"][j] for j in case["cell_indices"]], pa.list_(pa.int32()))}
        )
        adata = mt.pp.read_dataset(save(table, tmp_path / f"cells{i}", n_files=1), vocab)
        adata.obs["time"] = case["time_choices"]
        blueprint = {
            "dataset_order": [0],
            "timegroup_order": ["__NO_TIME_GROUP__"],
            "cell_indices": [list(range(n_cells))],
            "timesteps": [case["timesteps"]],
            "time_choices": [case["time_choices"]],
        }
        path = tmp_path / f"{i}_cell_paragraph_blueprint.json"
        path.write_text(json.dumps(blueprint))
        mt.pp.read_paragraphs(adata, path=path, task={"time": "timelapse", "cell": "cell"}[case["task"]])
        model = mt.models.build_model({**shape, "max_position_embeddings": case["model_input_size"]}, vocab)
        mt.pp.write_paragraphs(adata, model, output=tmp_path / f"paragraphs{i}")
        found = open_dataset(tmp_path / f"paragraphs{i}")
        assert found["input_ids"].to_pylist() == [input_ids]
        assert found["response_len"].to_pylist() == [n_answer]
        assert found["n_clipped"].to_pylist() == [int(case["model_input_size"] == 18)]
        assert found["timesteps"].to_pylist() == [case["timesteps"]]
        assert found["time_choices"].to_pylist() == [case["time_choices"]]
        n_checked += 1
    assert n_checked >= 3


def blueprint_of(adata, n=6):
    """As the original draws one: any cells, at any times."""
    time = adata.obs["age_months"].to_numpy()
    rng = np.random.default_rng(0)
    indices = [rng.choice(adata.n_obs, size, replace=False).tolist() for size in rng.integers(3, 5, n)]
    return {
        "dataset_order": [0] * n,
        "timegroup_order": ["__NO_TIME_GROUP__"] * n,
        "cell_indices": indices,
        "time_choices": [time[rows].tolist() for rows in indices],
        "timesteps": [np.diff(time[rows]).tolist() for rows in indices],
        "args": {
            "seed": 42,
            "allow_zero_timelapses": "none",
            "allow_negative_timelapses": True,
            "balance_timegroups": 0.1,
        },
    }


def test_blueprint(cells, tiny_clock, tmp_path):
    """Cells by their rows, lapses with their sign, and settings under our names; the prompts can be read at once."""
    adata, blueprint = cells.copy(), blueprint_of(cells)
    path = tmp_path / "x_cell_paragraph_blueprint.json"
    path.write_text(json.dumps(blueprint))
    mt.pp.read_paragraphs(adata, path=path, time_key="age_months", donor_key="donor_id")
    table = mt.get.table(adata, "prompts")
    for row, indices, steps in zip(
        table.itertuples(), blueprint["cell_indices"], blueprint["timesteps"], strict=True
    ):
        assert row.query == adata.obs_names[indices[-1]]
        assert [getattr(row, f"context_{i}") for i in range(len(indices) - 1)] == adata.obs_names[
            indices[:-1]
        ].tolist()
        assert [getattr(row, f"lapse_{i}") for i in range(len(steps) - 1)] == steps[:-1]
        assert row.lapse == steps[-1]
        assert row.donor == adata.obs["donor_id"].iloc[indices[-1]]
    params = adata.uns["prompts"]["params"]
    assert (params["seed"], params["zero_lapse"], params["forward"], params["balance"]) == (
        42,
        "never",
        False,
        0.1,
    )
    mt.tl.predict_timelapse(adata, tiny_clock)
    assert mt.get.table(adata, "timelapse")["predicted"].notna().all()


def test_cells_that_do_not_belong_are_refused(cells, tmp_path):
    path = tmp_path / "b.json"
    good = blueprint_of(cells)
    first = good["cell_indices"][0]
    far = {**good, "cell_indices": [[*first[:-1], 500], *good["cell_indices"][1:]]}
    uneven = {**good, "timesteps": [[1] * 7, *good["timesteps"][1:]]}
    cases = {
        "it speaks of cell 500, and there are 120": (far, cells),
        "do not fit together": (uneven, cells),
        "several data sets": ({**good, "dataset_order": [0, 1, 0, 0, 0, 0]}, cells),
        "unequal length": ({**good, "dataset_order": [0]}, cells),
        "have another age_months than there": (good, cells[::-1].copy()),
        "has no 'timesteps'": ({k: v for k, v in good.items() if k != "timesteps"}, cells),
        "cells are of another cell_type": (good, cells),
    }
    for message, (blueprint, adata) in cases.items():
        path.write_text(json.dumps(blueprint))
        groupby = "cell_type" if "another cell_type" in message else None
        with pytest.raises((ValueError, KeyError), match=message):
            mt.pp.read_paragraphs(adata, path=path, time_key="age_months", groupby=groupby)
    path.write_text('{"cell_indices": [[0')
    with pytest.raises(ValueError, match="cannot be read as a blueprint"):
        mt.pp.read_paragraphs(cells, path=path, time_key="age_months")


def test_folder_of_both_tasks(cells, tiny_clock, tmp_path):
    parts = []
    for task in ("timelapse", "cell"):
        adata = cells.copy()
        mt.pp.sample_prompts(adata, task=task, **SETTINGS)
        mt.pp.write_paragraphs(adata, tiny_clock, output=tmp_path / task)
        parts.append(open_dataset(tmp_path / task).replace_schema_metadata())
    both = save(
        pa.concat_tables([parts[0].slice(0, 5), parts[1].slice(0, 7), parts[0].slice(5, 3)]),
        tmp_path / "both",
    )
    adata = cells.copy()
    with pytest.raises(ValueError, match="asks for lapses and for cells"):
        mt.pp.read_paragraphs(adata, path=both, time_key="age_months")
    mt.pp.read_paragraphs(adata, path=both, time_key="age_months", task="timelapse")
    assert mt.get.table(adata, "prompts")["lapse"].tolist() == parts[0]["lapse"].to_pylist()[:8]
    mt.pp.read_paragraphs(adata, path=both, time_key="age_months", task="cell", key_added="asked")
    assert mt.get.table(adata, "asked")["query"].tolist() == parts[1]["query"].to_pylist()[:7]
    with pytest.raises(ValueError, match="no paragraph of the task 'cell'"):
        mt.pp.read_paragraphs(adata, path=tmp_path / "timelapse", task="cell")
