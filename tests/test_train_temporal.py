"""Stage-2 training: learning, resuming, several processes, adapters, files, YAML."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from anndata import AnnData, read_h5ad
from scipy.sparse import csr_matrix
from typer.testing import CliRunner

import maxtoki_toolkit as mt
from maxtoki_toolkit.train._temporal_module import TemporalModule
from maxtoki_toolkit.train.from_yaml import train_from_yaml

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 26,
    "initializer_range": 0.05,
}
SETTINGS = {
    "time_key": "hours",
    "time_unit": "hours",
    "groupby": [],
    "max_length": 128,
    "max_steps": 6,
    "batch_size": 8,
    "learning_rate": 1e-2,
    "device": "cpu",
}
LEARNING = {
    "held_out": "test",
    "max_steps": 150,
    "eval_every": 150,
    "warmup": 0.1,
    "timelapse": 1.0,
    "n_held_out": 256,
    "batch_size": 32,
    "context_size": (1, 2),
}


@pytest.fixture(scope="module")
def cells():
    """Cells in which half the genes rise and half fall with time."""
    rng = np.random.default_rng(0)
    hours = rng.integers(0, 7, 400) * 10
    slope = np.repeat([1, -1], 12)
    rate = 20 * np.exp(0.03 * slope * (hours[:, None] - 30) + rng.normal(0, 0.2, (400, 24)))
    adata = AnnData(csr_matrix(rng.poisson(rate).astype(np.float32)))
    adata.var_names = [f"ENSG{i:011d}" for i in range(100, 124)]
    adata.obs["hours"] = hours
    adata.obs["kind"] = np.where(rng.random(400) < 0.5, "a", "b")
    adata.obs["test"] = np.arange(400) < 80
    tokens = ["<pad>", "<mask>", "<bos>", "<eos>", *adata.var_names]
    vocab = mt.models.Vocabulary({t: i for i, t in enumerate(tokens)}, dict.fromkeys(adata.var_names, 1.0))
    mt.pp.rank_value_encode(adata, vocab)
    return adata


@pytest.fixture(scope="module")
def model(cells):
    tokens = {t: i for i, t in enumerate(["<pad>", "<mask>", "<bos>", "<eos>", *cells.var_names])}
    return mt.models.build_model(SHAPE, mt.models.Vocabulary(tokens, dict.fromkeys(cells.var_names, 1.0)))


def log_of(output):
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def train(cells, model, output, **changes):
    recipe, columns = mt.train.TemporalRecipe.split(SETTINGS | changes)
    return mt.train.temporal(cells, model, output, recipe=recipe, **columns)


@pytest.mark.parametrize(
    ("head", "loss", "r"),
    [
        ("linear", "mse", 0.5),
        # Head and loss are each in one of the others.
        pytest.param("expectation", "mse", 0.3, marks=pytest.mark.slow),
        pytest.param("expectation", "ce", 0.3, marks=pytest.mark.slow),
    ],
)
def test_learns_to_tell_time(cells, model, tmp_path, head, loss, r):
    trained = train(cells, model, tmp_path, head=head, loss=loss, **LEARNING)
    last = [entry for entry in log_of(tmp_path) if "eval_r" in entry][-1]
    assert last["eval_r"] > r
    assert last["eval_slope"] > 0.2
    assert (trained.time_head.kind, trained.time_head.loss, trained.time_head.unit) == (head, loss, "hours")
    assert trained.max_length == 128
    assert trained.cell_length == 26


@pytest.mark.slow
def test_shuffled_times_teach_nothing(cells, model, tmp_path):
    shuffled = cells.copy()
    shuffled.obs["hours"] = np.random.default_rng(1).permutation(shuffled.obs["hours"])
    # A single context cell, so that the lapses between context cells do not tell their times.
    train(shuffled, model, tmp_path, **LEARNING | {"context_size": (1, 1)})
    last = [entry for entry in log_of(tmp_path) if "eval_r" in entry][-1]
    assert abs(last["eval_r"]) < 0.35


def test_both_tasks_are_learned(cells, model, tmp_path):
    """With the cell task the loss of the answered genes falls below a uniform guess over the genes."""
    settings = {"timelapse": 0.0, "curriculum": 0, "clock": 0, "max_steps": 60, "context_size": (1, 1)}
    trained = train(cells, model, tmp_path, **settings)
    assert log_of(tmp_path)[-2]["loss"] < np.log(24) < log_of(tmp_path)[0]["loss"]
    assert trained.is_temporal


def test_the_model_given_is_left_alone(cells, model, tmp_path):
    before = {name: weight.clone() for name, weight in model.hf.state_dict().items()}
    trained = train(cells, model, tmp_path / "a")
    again = train(cells, trained, tmp_path / "b", lapses=None)
    assert all(torch.equal(before[name], weight) for name, weight in model.hf.state_dict().items())
    assert not model.is_temporal
    assert again.vocab.sha256 == trained.vocab.sha256
    assert again.sha256 != trained.sha256


def test_frozen_layers_stay(cells, model, tmp_path):
    trained = train(cells, model, tmp_path, freeze_layers=1)
    old, new = model.hf.model.layers, trained.hf.model.layers
    assert torch.equal(old[0].mlp.up_proj.weight, new[0].mlp.up_proj.weight)
    assert not torch.equal(old[1].mlp.up_proj.weight, new[1].mlp.up_proj.weight)
    with pytest.raises(ValueError, match=r"freeze_layers must be 0\.\.2"):
        train(cells, model, tmp_path / "x", freeze_layers=3)


def test_interrupted_run_resumes_to_the_same_weights(cells, model, tmp_path, monkeypatch):
    from transformers import TrainerCallback
    from transformers.trainer import Trainer

    settings = {"max_steps": 8, "save_every": 3, "gene_dropout": 0.2}
    whole = train(cells, model, tmp_path / "whole", **settings)

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5:
                raise KeyboardInterrupt

    original = Trainer.__init__
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "__init__", lambda self, **kw: original(self, **kw, callbacks=[Stop()]))
        with pytest.raises(KeyboardInterrupt):
            train(cells, model, tmp_path / "cut", **settings)
    assert not (tmp_path / "cut" / "model").exists()
    resumed = train(cells, model, tmp_path / "cut", **settings)
    assert resumed.sha256 == whole.sha256
    head, other = resumed.time_head.state_dict(), whole.time_head.state_dict()
    assert all(torch.equal(head[name], other[name]) for name in other)
    with pytest.raises(ValueError, match=r"other settings \(learning_rate\)"):
        train(cells, model, tmp_path / "cut", **settings | {"learning_rate": 1e-3})


def test_adapters_train_little_and_are_merged(cells, model, tmp_path):
    trained = train(cells, model, tmp_path, lora_rank=2, learning_rate=1e-2)
    old, new = model.hf.model, trained.hf.model
    n_genes = model.vocab.size
    assert torch.equal(old.embed_tokens.weight, new.embed_tokens.weight[:n_genes])
    assert torch.equal(old.layers[0].input_layernorm.weight, new.layers[0].input_layernorm.weight)
    change = new.layers[0].self_attn.q_proj.weight - old.layers[0].self_attn.q_proj.weight
    assert 0 < torch.linalg.matrix_rank(change, rtol=1e-3) <= 2
    assert trained.is_temporal


@pytest.mark.slow
def test_replayed_cells_are_not_forgotten(cells, model, tmp_path):
    """Cells without times keep the loss that they had, where training on prompts alone loses it."""
    other = cells[:100].copy()
    other.X = other.X[:, ::-1]
    mt.pp.rank_value_encode(other, model)
    del other.obs["hours"]
    start = mt.train.pretrain(
        other,
        model.vocab,
        tmp_path / "s",
        shape=SHAPE,
        recipe=mt.train.PretrainRecipe.of(max_steps=80, learning_rate=1e-2, device="cpu"),
    )

    def loss(trained):
        tokens = torch.from_numpy(np.stack([r[:26] for r in rows_of(other, trained)])).long()
        with torch.inference_mode():
            return trained.hf(tokens, labels=tokens).loss.item()

    settings = {"max_steps": 60, "timelapse": 0.5}
    alone = train(cells, start, tmp_path / "a", **settings)
    replayed = train(cells, start, tmp_path / "b", replay=other, **settings)
    assert loss(start) < loss(replayed) + 0.5
    assert loss(replayed) < loss(alone) - 0.1


def rows_of(adata, model):
    from maxtoki_toolkit.tl._cells import get_sequences

    cells = get_sequences(adata, model)
    width = cells.lengths.min()
    return [cells.tokens[a : a + width] for a in cells.indptr[:-1]]


def test_cells_from_a_file_train_as_in_memory(cells, model, tmp_path):
    raw = AnnData(cells.X, obs=cells.obs[["hours", "kind", "test"]], var=cells.var[[]])
    raw.write_h5ad(tmp_path / "raw.h5ad")
    mt.pp.encode_file(tmp_path / "raw.h5ad", tmp_path / "ranks.h5ad", model)
    in_memory = train(cells, model, tmp_path / "a")
    from_file = train(tmp_path / "ranks.h5ad", model, tmp_path / "b")
    assert from_file.sha256 == in_memory.sha256
    both = train([tmp_path / "ranks.h5ad", cells[:50].copy()], model, tmp_path / "c")
    assert both.sha256 == train([cells, cells[:50].copy()], model, tmp_path / "e").sha256
    assert both.sha256 != in_memory.sha256
    with pytest.raises(KeyError, match=r"holds no layers\['rank'\]"):
        train(tmp_path / "raw.h5ad", model, tmp_path / "d")


def test_other_data_in_the_folder_of_a_run(cells, model, tmp_path):
    """Whatever changes what is learned: times, start model, cells that are read again."""
    settings = {"max_steps": 2, "scale": 10.0, "loss_scale": 10.0, "replay": cells[:20].copy()}
    first = train(cells, model, tmp_path, **settings)
    assert train(cells, model, tmp_path, **settings).sha256 == first.sha256
    permuted = cells.copy()
    permuted.obs["hours"] = np.random.default_rng(1).permutation(permuted.obs["hours"])
    other = mt.models.build_model(SHAPE, model.vocab, seed=99)
    for change, data, start in [
        ("cells", permuted, model),
        ("cells, n_cells", cells[:300].copy(), model),
        ("model", cells, other),
        ("cells, model, replay", cells, replace(model, cell_length=20)),
    ]:
        with pytest.raises(ValueError, match=rf"other settings \({change}\)"):
            train(data, start, tmp_path, **settings)
    with pytest.raises(ValueError, match=r"other settings \(replay\)"):
        train(cells, model, tmp_path, **settings | {"replay": cells[20:40].copy()})


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_damaged_encodings_are_not_trained_on(cells, model, tmp_path):
    """From a file as in memory: genes were subset, or ranks are none."""
    raw = AnnData(cells.X, obs=cells.obs[["hours"]], var=cells.var[[]])
    raw.write_h5ad(tmp_path / "raw.h5ad")
    mt.pp.encode_file(tmp_path / "raw.h5ad", tmp_path / "ranks.h5ad", model)
    whole = read_h5ad(tmp_path / "ranks.h5ad")

    def refused(error, change, message):
        damaged = whole.copy()
        damaged = change(damaged) or damaged
        damaged.write_h5ad(tmp_path / "damaged.h5ad")
        with pytest.raises(error, match=message):
            train(tmp_path / "damaged.h5ad", model, tmp_path / "run")
        assert not (tmp_path / "run" / "recipe.json").exists()

    message = "400 of 400 cells have lost ranked genes since they were encoded"
    refused(ValueError, lambda a: a[:, ::2].copy(), message)
    with pytest.raises(ValueError, match=message):
        train(whole[:, ::2].copy(), model, tmp_path / "memory")

    def unknown(a):
        a.var["token_id"] = -1

    def by_gene(a):
        a.layers["rank"] = a.layers["rank"].tocsc()

    def repeated(a):
        a.obs_names = ["cell", *a.obs_names[1:-1], "cell"]

    refused(ValueError, unknown, "ranks are not 1, 2, 3 .* of genes of the vocabulary")
    refused(ValueError, by_gene, "not stored by cell")
    refused(ValueError, repeated, "1 cell names are not unique")
    refused(ValueError, lambda a: a.uns.clear(), "rank-encoded for another vocabulary")
    refused(KeyError, lambda a: a.obs.drop(columns="n_genes_ranked", inplace=True), "n_genes_ranked")
    refused(KeyError, lambda a: a.var.drop(columns="token_id", inplace=True), "token_id")


def test_missing_task_does_not_halve_the_other(cells, model):
    """S5 and the halved single-task batches of the original: each task's mean is weighted as told."""
    temporal = mt.models.extend_model(model, model.vocab.with_times(-60, 60), max_length=128)
    head = mt.models.TimeHead("linear", scale=10.0, hidden_size=32)
    module = TemporalModule(
        temporal.hf, head, temporal.vocab, loss_scale=10.0, penalty=0.0, weights=(3.0, 1.0)
    )
    tokens = torch.randint(4, 28, (2, 9))
    labels = torch.full_like(tokens, -100)
    lapse = torch.tensor([20.0, -10.0])
    age = torch.full(tokens.shape, torch.nan)
    output = module(tokens, torch.tensor([8, 6]), labels, lapse, torch.tensor([0, 0]), age)
    # A linear head starts at 0, so the errors are the lapses.
    assert output["loss"].item() == pytest.approx(3 * (2**2 + 1**2) / 2, abs=1e-5)
    assert output["predicted"].tolist() == [0, 0]


RUN = """
import sys, yaml
from pathlib import Path
from maxtoki_toolkit.train.from_yaml import train_from_yaml
train_from_yaml("temporal", sys.argv[1])
"""


@pytest.mark.slow
def test_two_processes_train_as_one(cells, model, tmp_path):
    """The same prompts, shared out over two processes, give the same losses and almost the same weights."""
    raw = AnnData(cells.X, obs=cells.obs[["hours"]], var=cells.var[[]])
    raw.write_h5ad(tmp_path / "raw.h5ad")
    mt.pp.encode_file(tmp_path / "raw.h5ad", tmp_path / "ranks.h5ad", model)
    mt.models.save_model(model, tmp_path / "stage1")
    (tmp_path / "run.py").write_text(RUN)
    outputs = {}
    for n, batch_size in [(1, 8), (2, 4)]:
        settings = SETTINGS | {
            "cells": str(tmp_path / "ranks.h5ad"),
            "model": str(tmp_path / "stage1"),
            "output": str(tmp_path / f"on{n}"),
            "batch_size": batch_size,
            "max_steps": 12,
        }
        (tmp_path / f"{n}.yaml").write_text(yaml.safe_dump(settings))
        launch = [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--multi_gpu",
            "--num_processes",
            str(n),
        ]
        launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        launch += ["--main_process_port", "29511"]
        launch = launch if n > 1 else [sys.executable]
        result = subprocess.run(
            [*launch, str(tmp_path / "run.py"), str(tmp_path / f"{n}.yaml")],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
        assert result.returncode == 0, result.stderr[-2000:]
        outputs[n] = mt.load_model(tmp_path / f"on{n}" / "model")
    losses = {n: [e["loss"] for e in log_of(tmp_path / f"on{n}") if "loss" in e] for n in (1, 2)}
    assert len(losses[1]) == len(losses[2]) >= 6
    np.testing.assert_allclose(losses[1], losses[2], rtol=1e-3)
    for name, weight in outputs[1].hf.state_dict().items():
        torch.testing.assert_close(weight, outputs[2].hf.state_dict()[name], rtol=1e-2, atol=1e-3)


def test_yaml_and_command_line(cells, model, tmp_path):
    raw = AnnData(cells.X, obs=cells.obs[["hours"]], var=cells.var[[]])
    raw.write_h5ad(tmp_path / "raw.h5ad")
    mt.pp.encode_file(tmp_path / "raw.h5ad", tmp_path / "ranks.h5ad", model)
    mt.models.save_model(model, tmp_path / "stage1")
    settings = SETTINGS | {
        "cells": str(tmp_path / "ranks.h5ad"),
        "model": str(tmp_path / "stage1"),
        "output": str(tmp_path / "run"),
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(settings))
    from maxtoki_toolkit.cli import app

    result = CliRunner().invoke(app, ["train", "temporal", "-c", str(path)])
    assert result.exit_code == 0, result.output
    assert "temporal" in result.output
    assert mt.load_model(tmp_path / "run" / "model").is_temporal

    # As everyone writes it, and no number in YAML 1.1.
    path.write_text(yaml.safe_dump(settings | {"output": str(tmp_path / "rate")}) + "learning_rate: 1e-2\n")
    assert train_from_yaml("temporal", path).sha256 == mt.load_model(tmp_path / "run" / "model").sha256
    path.write_text(yaml.safe_dump(settings | {"batch_size": 0}))
    result = CliRunner().invoke(app, ["train", "temporal", "-c", str(path)])
    assert "batch_size must be at least 1, got 0" in str(result.exception)

    path.write_text(yaml.safe_dump(settings | {"lerning_rate": 1}))
    with pytest.raises(ValueError, match="unknown settings: lerning_rate"):
        train_from_yaml("temporal", path)
    path.write_text(yaml.safe_dump({"model": "demo"}))
    with pytest.raises(ValueError, match="lacks cells, output"):
        train_from_yaml("temporal", path)
    path.write_text("!!python/object/apply:os.system ['true']")
    with pytest.raises(ValueError, match="is not valid YAML: could not determine a constructor"):
        train_from_yaml("temporal", path)
    folder = Path(tmp_path / "stage1")
    path.write_text(
        yaml.safe_dump(
            {
                "cells": str(tmp_path / "ranks.h5ad"),
                "vocab": {
                    "tokens": str(folder / "token_dictionary.json"),
                    "medians": str(folder / "gene_median_dictionary.json"),
                },
                "output": str(tmp_path / "stage1_run"),
                "shape": SHAPE,
                "max_steps": 2,
                "device": "cpu",
            }
        )
    )
    assert not train_from_yaml("pretrain", path).is_temporal
