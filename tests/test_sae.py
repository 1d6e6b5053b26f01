"""Sparse autoencoders: what they find, how they are kept, what they are refused for."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from anndata import AnnData
from helpers import on_copy
from scipy.sparse import csr_matrix
from typer.testing import CliRunner

import maxtoki_toolkit as mt
from maxtoki_toolkit import cli
from maxtoki_toolkit.models.features import pool_features
from maxtoki_toolkit.models.hooks import Site, states_at
from maxtoki_toolkit.models.sae_controls import moments, principal_directions
from maxtoki_toolkit.models.sequences import Sequences
from maxtoki_toolkit.tl._cells import get_sequences
from maxtoki_toolkit.train import _sparse_module, _stored_states
from maxtoki_toolkit.train._sparse_module import Largest, SparseModule, StateCollator, token_chances
from maxtoki_toolkit.train._stored_states import write_states
from maxtoki_toolkit.train._trainer import _Speed

SIZE, N_TRUE, N_GENES = 16, 32, 1500


@pytest.fixture(scope="module")
def planted():
    """A model whose state at a gene is the sum of few out of twice as many directions as it has dimensions; cells; the directions."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(N_TRUE, SIZE))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    has = np.zeros((N_GENES, N_TRUE))
    for gene in range(N_GENES):
        has[gene, rng.choice(N_TRUE, 2, replace=False)] = rng.uniform(1, 2, 2)
    genes = [f"ENSG{i:011d}" for i in range(N_GENES)]
    vocab = mt.models.Vocabulary(
        {token: i for i, token in enumerate(["<pad>", "<mask>", "<bos>", "<eos>", *genes])},
        dict.fromkeys(genes, 1.0),
    )
    shape = {"hidden_size": SIZE, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = mt.models.build_model({**shape, "max_position_embeddings": 64}, vocab)
    with torch.no_grad():
        for block in model.hf.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        model.hf.model.embed_tokens.weight[4:] = torch.from_numpy(has @ directions).float()
    counts = np.zeros((300, N_GENES), np.float32)
    for cell in counts:
        cell[rng.choice(N_GENES, 40, replace=False)] = rng.permutation(40) + 1
    adata = AnnData(csr_matrix(counts))
    adata.var_names = genes
    adata.obs_names = [f"cell_{i}" for i in range(300)]
    mt.pp.rank_value_encode(adata, vocab)
    return model, adata, directions, has


@pytest.fixture(scope="module")
def trained(planted, tmp_path_factory):
    """An autoencoder of it, and the folder of its run."""
    model, adata, _, _ = planted
    folder = tmp_path_factory.mktemp("sae")
    sae = mt.train.sae(
        adata[:250].copy(), model, folder, block=0, width=48, k=2, held_out=adata[250:].copy(), recipe=SHORT
    )
    return sae, folder


SHORT = mt.train.SparseRecipe.of(
    max_steps=700,
    batch_size=16,
    read=1.0,
    learning_rate=0.01,
    dead_after=20_000,
    eval_every=350,
    save_every=350,
)
FEW = mt.train.SparseRecipe.of(max_steps=6, batch_size=16, eval_every=3, save_every=3)


def test_stored_states_teach_the_same(planted, tmp_path, monkeypatch):
    """States are computed once, kept in shards, and read again by a run that goes on."""

    model, adata, _, _ = planted
    monkeypatch.setattr(_stored_states, "SHARD", 40 * 42 * SIZE)
    settings = {"max_steps": 6, "batch_size": 16, "eval_every": 100}
    plain = mt.train.sae(
        adata, model, tmp_path / "a", block=0, width=48, k=2, recipe=mt.train.SparseRecipe.of(**settings)
    )

    def refuse(*_):
        raise AssertionError("The model is run again.")

    recipe = mt.train.SparseRecipe.of(**settings, store=True)
    monkeypatch.setattr(_sparse_module, "states_at", refuse)
    stored = mt.train.sae(adata, model, tmp_path / "b", block=0, width=48, k=2, recipe=recipe)
    np.testing.assert_allclose(stored.W_dec, plain.W_dec, atol=1e-4)
    shards = sorted(path.name for path in (tmp_path / "b" / "states").glob("*.safetensors"))
    assert len(shards) == 8
    # They are read again by a run of the same cells, and those of other cells take their place.
    job = {"cells": "others"}
    sequences = get_sequences(adata, model)
    first = tmp_path / "b" / "states" / shards[0]
    for cells, is_read in ((sequences.take(np.arange(40)), False), (sequences.take(np.arange(40)), True)):
        before = first.stat().st_mtime_ns
        write_states(model, cells, Site(0, "output"), tmp_path / "b" / "states", job)
        assert (first.stat().st_mtime_ns == before) == is_read
    assert [path.name for path in (tmp_path / "b" / "states").glob("*.safetensors")] == shards[:1]


def test_planted_directions_are_found(planted, trained):
    directions = planted[2]
    found = trained[0].directions.numpy()
    best = (directions @ found.T).max(axis=1)
    assert best.mean() >= 0.95
    components = np.linalg.svd(planted[3] @ directions - (planted[3] @ directions).mean(axis=0))[2]
    assert np.abs(directions @ components.T).max(axis=1).mean() < 0.75


def test_what_is_logged_is_what_is_measured(planted, trained):
    model, adata, *_ = planted
    sae, folder = trained
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    logged = [entry["eval_loss"] for entry in log if "eval_loss" in entry][-1]
    held_out = adata[250:].copy()
    # What comes next does not depend on anything in this model.
    with pytest.warns(UserWarning, match="hardly a loss to recover"):
        mt.tl.evaluate_sae(held_out, model, sae)
    measures = mt.get.table(held_out, "evaluate_sae").set_index(["measure", "dictionary"])["value"]
    assert measures["variance explained", "sae"] == pytest.approx(1 - logged, abs=0.01)
    assert measures["variance explained", "sae"] > 0.9 > measures["variance explained", "PCA"]
    assert max(measures["variance explained", "random"], measures["variance explained", "subspace"]) < 0.5
    assert measures["loss recovered", "sae"] > 0.9
    assert measures["active features", "sae"] <= 2
    assert "tflop_per_second" in log[0]


def test_kept_and_read_again(planted, trained, tmp_path):
    sae, folder = trained
    states = torch.randn(7, SIZE)
    again = mt.load_sae(folder / "sae")
    torch.testing.assert_close(again.encode(states), sae.encode(states), rtol=0, atol=0)
    assert again.site == Site(0, "output")
    mt.models.save_sae(again, tmp_path / "copy")
    torch.testing.assert_close(mt.load_sae(tmp_path / "copy").directions, sae.directions)
    config = json.loads((folder / "sae" / "cfg.json").read_text())
    assert {"d_in": SIZE, "num_latents": 48, "k": 2, "activation": "topk"}.items() <= config.items()


def test_a_run_goes_on(planted, tmp_path, monkeypatch):
    model, adata, *_ = planted
    settings = {"block": 1, "width": 20, "k": 2, "recipe": FEW}
    whole = mt.train.sae(adata, model, tmp_path / "whole", **settings)
    steps = []
    step = SparseModule.forward

    def cut(self, *args, **kwargs):
        steps.append(1)
        if len(steps) > 4:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(SparseModule, "forward", cut)
    with pytest.raises(KeyboardInterrupt):
        mt.train.sae(adata, model, tmp_path / "cut", **settings)
    assert not (tmp_path / "cut" / "sae").exists()
    monkeypatch.setattr(SparseModule, "forward", step)
    resumed = mt.train.sae(adata, model, tmp_path / "cut", **settings)
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], weight, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"other settings \(k\)"):
        mt.train.sae(adata, model, tmp_path / "cut", **(settings | {"k": 3}))


@pytest.mark.parametrize("kind", ["batchtopk", "matryoshka"])
def test_features_chosen_over_a_batch(planted, tmp_path, kind):
    model, adata, directions, _ = planted
    recipe = mt.train.SparseRecipe.of(
        kind=kind,
        max_steps=300,
        batch_size=16,
        read=1.0,
        learning_rate=0.01,
        dead_after=20_000,
        save_every=300,
    )
    sae = mt.train.sae(adata, model, tmp_path, block=0, width=48, k=2, recipe=recipe)
    assert sae.threshold > 0
    sums = pool_features(model, [sae], cells_of(adata, model))[0]
    assert sums.active.sum() / sums.n_read.sum() == pytest.approx(2, abs=0.5)
    assert (directions @ sae.directions.numpy().T).max(axis=1).mean() > 0.85
    if kind == "matryoshka":
        # The first features alone say less, but they say something.
        states = states_at(model, {"input_ids": torch.arange(4, 900)[None]}, sae.site)[0].detach()
        features = sae.encode(states)
        left = [float((states - sae.decode(features, n)).pow(2).mean()) for n in sae.prefixes]
        assert sae.prefixes == [3, 6, 12, 24, 48]
        assert (np.diff(left) < 0).all()


def cells_of(adata, model):
    return Sequences.of(
        [np.concatenate([[2], row.indices[np.argsort(row.data)] + 4, [3]]) for row in adata.layers["rank"]]
    )


def test_pools_against_one_cell_at_a_time(planted, trained):
    model, adata, *_ = planted
    sae, sequences = trained[0], cells_of(adata[:9], model)
    each = []
    for i in range(9):
        tokens = torch.from_numpy(
            sequences.tokens[sequences.indptr[i] + 1 : sequences.indptr[i + 1] - 1].astype(int)
        )
        each.append((tokens, sae.encode(states_at(model, {"input_ids": tokens[None]}, sae.site)[0].detach())))
    pooled = {
        "max": [part.amax(dim=0) for _, part in each],
        "mean": [part.topk(5, dim=0).values.mean(dim=0) for _, part in each],
        "count": [(part > 0).sum(dim=0).float() for _, part in each],
    }
    for pool, expected in pooled.items():
        for budget in (50, 1000):
            found = pool_features(model, [sae], sequences, pool=pool, max_tokens=budget)[0]
            np.testing.assert_allclose(
                found.cells.toarray(), torch.stack(expected).numpy(), rtol=1e-5, atol=1e-6
            )
    total, active = np.zeros((2, model.vocab.size, sae.width))
    place = np.zeros((2, sae.width))
    for tokens, part in each:
        np.add.at(total, tokens.numpy(), part.numpy())
        np.add.at(active, tokens.numpy(), part.numpy() > 0)
        at = np.arange(1, len(tokens) + 1)[:, None]
        place += (part.numpy() > 0).sum(axis=0), ((part.numpy() > 0) * at).sum(axis=0)
    np.testing.assert_allclose(found.genes.toarray(), total, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.active.toarray(), active)
    there = place[0] > 0
    np.testing.assert_allclose(found.place[there], place[1][there] / place[0][there])


def test_top_genes_are_those_that_have_the_feature(planted, trained):
    model, adata, directions, has = planted
    sae = trained[0]
    read = on_copy(mt.tl.features, adata, model, sae, n_genes=5)
    true = (directions @ sae.directions.numpy().T).argmax(axis=1)
    genes = mt.get.table(read, "features", "genes")
    feature = mt.get.table(read, "features").set_index("feature")
    for i in range(8):
        mine = genes[genes["feature"] == true[i]]
        assert (has[adata.var_names.get_indexer(mine["gene"]), i] > 0).all()
        assert (mine["mean"].diff().dropna() <= 0).all()
        assert (mine["lift"] > 5).all()
        assert 0 < feature.loc[true[i], "density"] < 2 * 2 / N_TRUE
    # Cells in another order are read the same.
    order = np.random.default_rng(1).permutation(adata.n_obs)
    shuffled = on_copy(mt.tl.features, adata[order].copy(), model, sae, controls=False)
    np.testing.assert_allclose(
        shuffled.obsm["features"].toarray(), read.obsm["features"][order].toarray(), atol=1e-5
    )
    assert "features_pca" not in shuffled.obsm
    assert read.obsm["features_random"].shape == read.obsm["features"].shape


def test_controls_are_what_they_say(planted, trained):
    model, adata, *_ = planted
    found = moments(model, cells_of(adata, model), trained[0].site)
    states = states_at(
        model,
        {"input_ids": torch.from_numpy(cells_of(adata, model).tokens.astype(int))[None]},
        trained[0].site,
    )[0]
    genes = states[cells_of(adata, model).tokens >= 4].double()
    torch.testing.assert_close(found.mean, genes.mean(dim=0))
    torch.testing.assert_close(found.covariance, torch.cov(genes.T, correction=0))
    principal = principal_directions(trained[0], found)
    assert principal.width == 2 * SIZE
    every = principal_directions(replace_k(trained[0], SIZE), found)
    torch.testing.assert_close(every.decode(every.encode(genes.float())), genes.float(), rtol=1e-3, atol=1e-3)


def replace_k(sae, k):
    return mt.models.SparseAutoencoder(SIZE, sae.width, k, card=sae.card)


def test_abundant_genes_are_read_less_often():
    sequences = Sequences.of([np.array([2, *range(4, 8), 3])] * 50 + [np.array([2, 4, 8, 3])] * 150)
    chance = token_chances(sequences, np.arange(4, 10), 10, 1.0)
    assert chance.tolist() == pytest.approx([0, 0, 0, 0, 1, 4, 4, 4, 200 / 150, 0])
    batch = StateCollator(sequences, 0, chance, 0.25)(list(range(200)))
    tokens = batch["input_ids"][batch["chosen"]]
    assert len(tokens) == round(0.25 * 500)
    assert (tokens >= 4).all()
    assert (tokens == 4).float().mean() < 200 / 500 / 1.5
    everything = StateCollator(sequences, 0, token_chances(sequences, np.arange(4, 10), 10, 0.0), 1.0)(
        [0, 199]
    )
    assert everything["chosen"].sum() == 6


def test_few_features_are_gathered_as_they_are_decoded(trained):
    sae, states = trained[0], torch.randn(40, SIZE)
    values, indices = sae.drives(states).topk(sae.k)
    torch.testing.assert_close(sae.gather(values, indices), sae.decode(sae.encode(states)))


def test_gradients_of_the_largest_are_those_of_all():
    torch.manual_seed(0)
    found = []
    for own in (True, False):
        torch.manual_seed(1)
        states, weight, bias = torch.randn(30, 5), torch.randn(12, 5), torch.randn(12)
        parts = [part.requires_grad_() for part in (states, weight, bias)]
        values, _ = (
            Largest.apply(*parts, 3) if own else (states @ weight.T + bias).relu().topk(3, sorted=False)
        )
        values.pow(2).sum().backward()
        found.append([part.grad for part in parts])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_dead_features_are_revived(planted):
    model, adata, *_ = planted
    sae = mt.models.SparseAutoencoder(SIZE, 40, 2)
    with torch.no_grad():
        sae.encoder.bias[:20] = -100.0
        # Driven at times, and never among the two largest.
        sae.encoder.bias[20:30] = -1.0
        sae.encoder.bias[30:] = 5.0
    module = SparseModule(sae.train(), model, Site(0, "output"), scale=1.0, revive=1.0, dead_after=10)
    batch = StateCollator(
        cells_of(adata, model), 0, token_chances(cells_of(adata, model), np.arange(4, 1504), 1504, 0), 1.0
    )(range(32))
    module(**batch)
    assert (module.idle[:20] > 10).all()
    before = sae.W_dec.grad
    module(**batch)["loss"].backward()
    assert before is None
    assert (sae.encoder.weight.grad[20:30].abs().sum(dim=1) > 0).any()


def test_speed_counts_no_training_of_the_model(planted):
    config = planted[0].hf.config
    tokens = {"input_ids": torch.full((2, 30), 5)}
    rates = []
    for training in (True, False):
        speed = _Speed(config, training=training)
        speed.count(tokens)
        speed.since -= 1
        rates.append(speed.take()["tflop_per_second"])
    assert rates[0] >= 3 * rates[1]


def test_from_the_command_line(planted, tmp_path, monkeypatch):
    model, adata, *_ = planted
    monkeypatch.chdir(tmp_path)
    mt.models.save_model(model, tmp_path / "model")
    adata[:, :].copy().write_h5ad(tmp_path / "raw.h5ad")
    mt.pp.encode_file(tmp_path / "raw.h5ad", tmp_path / "ranks.h5ad", model)
    settings = {"cells": "ranks.h5ad", "model": "model", "output": "run", "block": 0, "width": 20, "k": 2}
    (tmp_path / "sae.yaml").write_text(yaml.safe_dump(settings | {"max_steps": 2, "batch_size": 8}))
    result = CliRunner().invoke(cli.app, ["train", "sae", "-c", "sae.yaml"])
    assert result.exit_code == 0, result.output
    assert "mt.load_sae('run/sae') opens it" in result.output
    assert mt.load_sae("run/sae").width == 20


@pytest.mark.slow
def test_two_processes_make_one_autoencoder(planted, tmp_path):
    model, adata, directions, _ = planted
    mt.models.save_model(model, tmp_path / "model")
    adata.copy().write_h5ad(tmp_path / "raw.h5ad")
    mt.pp.encode_file(tmp_path / "raw.h5ad", tmp_path / "ranks.h5ad", model)
    settings = {"cells": "ranks.h5ad", "model": "model", "output": "run", "block": 0, "width": 48, "k": 2}
    settings |= {"max_steps": 400, "batch_size": 8, "read": 1.0, "learning_rate": 0.01, "dead_after": 20_000}
    (tmp_path / "sae.yaml").write_text(yaml.safe_dump(settings))
    launch = (
        "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no"
    )
    launch += " --dynamo_backend no --main_process_port 29517 -m maxtoki_toolkit.cli train sae -c sae.yaml"
    result = subprocess.run(
        [sys.executable, *launch.split()], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr[-2000:]
    found = mt.load_sae(tmp_path / "run" / "sae").directions.numpy()
    assert (directions @ found.T).max(axis=1).mean() > 0.9


REFUSED = {
    "another model": (
        lambda m, a, s: mt.tl.features(a, replace_model(m), s),
        "trained on the states of another model",
    ),
    "no model": (
        lambda m, a, s: mt.tl.features(a, m, mt.models.SparseAutoencoder(SIZE, 8, 2)),
        "not trained on a model",
    ),
    "no autoencoder": (lambda m, a, s: mt.tl.features(a, m, m), "an autoencoder"),
    "block": (lambda m, a, s: mt.train.sae(a, m, "x", block=7), r"no block 7; this model has 0\.\.1"),
    "site": (lambda m, a, s: mt.train.sae(a, m, "x", site="head"), "no site 'head'"),
    "k": (lambda m, a, s: mt.train.sae(a, m, "x", width=4, k=5), r"k must be 1\.\.4"),
    "pool": (lambda m, a, s: mt.tl.features(a, m, s, pool="sum"), "pool"),
    "kind": (
        lambda m, a, s: mt.train.sae(a, m, "x", recipe=mt.train.SparseRecipe.of(kind="relu")),
        "no kind 'relu'",
    ),
    "muon": (
        lambda m, a, s: mt.train.sae(a, m, "x", recipe=mt.train.SparseRecipe.of(optimizer="muon")),
        "muon",
    ),
    "prompts": (lambda m, a, s: mt.train.sae(a, m, "x", key="prompts"), "sample_prompts"),
    "folder": (lambda m, a, s: mt.load_sae("nowhere"), "Did not find nowhere"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(planted, trained, what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, said = REFUSED[what]
    with pytest.raises((ValueError, TypeError, KeyError, FileNotFoundError), match=said):
        call(planted[0], planted[1].copy(), trained[0])
    assert not (tmp_path / "x").exists()


def replace_model(model):
    return replace(model, sha256="5" * 64)


@pytest.mark.parametrize("damage", ["weights", "config", "card", "shape"])
def test_damaged_folders_are_refused(trained, tmp_path, damage):
    mt.models.save_sae(trained[0], folder := tmp_path / "sae")
    if damage == "weights":
        path = folder / "sae.safetensors"
        path.write_bytes(path.read_bytes()[:-8])
    elif damage == "shape":
        config = json.loads((folder / "cfg.json").read_text())
        (folder / "cfg.json").write_text(json.dumps(config | {"num_latents": 47}))
    else:
        (folder / {"config": "cfg.json", "card": "sae.json"}[damage]).write_text("[1")
    with pytest.raises(ValueError, match="Restore the folder|does not fit"):
        mt.load_sae(folder)


def test_the_autoencoder_that_ships_is_of_the_demo_model():
    model, sae = mt.load_model("demo"), mt.load_sae("demo")
    heart = mt.datasets.load("heart_nuclei")[:60].copy()
    mt.pp.rank_value_encode(heart, model)
    mt.tl.evaluate_sae(heart, model, sae, n_cells=30)
    measures = mt.get.table(heart, "evaluate_sae").set_index(["measure", "dictionary"])["value"]
    assert measures["variance explained", "sae"] > measures["variance explained", "PCA"]
    assert measures["dead features", "sae"] < 0.5  # some are of other tissues


def test_sparsify_reads_what_we_write(trained, tmp_path):
    pytest.importorskip("sparsify", reason="EleutherAI's sparsify is not installed")
    sae, folder = trained
    script = (
        "import sys, torch; from sparsify import SparseCoder; coder = SparseCoder.load_from_disk(sys.argv[1]); "
        "torch.save(coder(torch.load(sys.argv[2])).sae_out, sys.argv[3])"
    )
    torch.save(states := torch.randn(9, SIZE), tmp_path / "in.pt")
    subprocess.run(
        [sys.executable, "-c", script, str(folder / "sae"), tmp_path / "in.pt", tmp_path / "out.pt"],
        check=True,
    )
    torch.testing.assert_close(
        torch.load(tmp_path / "out.pt"), sae.decode(sae.encode(states)), rtol=1e-4, atol=1e-4
    )
