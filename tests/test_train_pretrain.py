"""Stage-1 training: collation, learning, resuming."""

import json
import sys

import numpy as np
import pytest
import torch
from anndata import AnnData
from scipy.sparse import csr_matrix

import maxtoki_toolkit as mt
from maxtoki_toolkit.models.costs import Shape, flops
from maxtoki_toolkit.train.corpus import IGNORED, Corpus, Example, NextGeneCollator
from maxtoki_toolkit.train.pretrain import _some

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
}


@pytest.fixture(scope="module")
def cells():
    """Two kinds of cells that express different genes, always in the same order."""
    rng = np.random.default_rng(0)
    counts = np.zeros((60, 40), np.float32)
    for i in range(60):
        genes = np.arange(20) + 20 * (i % 2)
        counts[i, genes] = np.arange(20, 0, -1) * 10 + rng.integers(0, 5, 20)
    adata = AnnData(csr_matrix(counts))
    adata.var_names = [f"ENSG{i:011d}" for i in range(100, 140)]
    return adata


@pytest.fixture(scope="module")
def vocab(cells):
    genes = list(cells.var_names)
    tokens = ["<pad>", "<mask>", "<bos>", "<eos>", *genes]
    return mt.models.Vocabulary({t: i for i, t in enumerate(tokens)}, dict.fromkeys(genes, 1.0))


@pytest.fixture(scope="module")
def encoded(cells, vocab):
    mt.pp.rank_value_encode(cells, vocab)
    return cells


def example(tokens, gene_dropout=0.0):
    return Example(np.array(tokens, np.int32), gene_dropout)


def test_collator_scores_every_next_token_but_no_padding():
    batch = NextGeneCollator(0, 10)([example([2, 5, 6, 3]), example([2, 7, 3])])
    assert batch["input_ids"].tolist() == [[2, 5, 6, 3], [2, 7, 3, 0]]
    assert batch["labels"].tolist() == [[5, 6, 3], [7, 3, IGNORED]]
    assert batch["logits_to_keep"].tolist() == [0, 1, 2]


def test_collator_scores_the_asked_share():
    batch = NextGeneCollator(0, 200, 0.25)([example(range(101))])
    assert batch["labels"].shape == (1, 25)
    assert torch.equal(batch["labels"][0], batch["logits_to_keep"] + 1)
    with pytest.raises(ValueError, match="share of scored positions"):
        NextGeneCollator(0, 10, 0.0)


def test_gene_dropout_keeps_order_and_marks(encoded, vocab):
    cell = example([2, *range(10, 1010), 3], 0.3)
    collator = NextGeneCollator(0, 2000)
    read = collator([cell])["input_ids"][0].tolist()
    assert read[0] == 2
    assert read[-1] == 3
    assert read[1:-1] == sorted(read[1:-1])
    assert len(read) - 2 == pytest.approx(700, abs=60)
    # The same batch is read the same way; another batch is not.
    assert collator([cell])["input_ids"][0].tolist() == read
    assert collator([cell, cell])["input_ids"][0].tolist() != read
    assert len(NextGeneCollator(0, 50)([cell])["input_ids"][0]) == 50
    model = mt.models.build_model(SHAPE | {"max_position_embeddings": 12}, vocab)
    assert len(Corpus([encoded], model, gene_dropout=0.5)[0].tokens) == 22
    with pytest.raises(ValueError, match="share of genes left out"):
        Corpus([encoded], model, gene_dropout=1.0)


def test_loss_is_the_mean_over_the_scored_tokens(encoded, vocab):
    """The labels are shifted exactly once: the loss equals cross-entropy written out."""
    model = mt.models.build_model(SHAPE, vocab)
    batch = NextGeneCollator(0, 32, 0.5)([Corpus([encoded], model)[i] for i in range(4)])
    with torch.inference_mode():
        loss = model.hf(**batch).loss
        logits = model.hf(batch["input_ids"]).logits.log_softmax(-1)
    positions = batch["logits_to_keep"]
    target = batch["input_ids"][:, positions + 1]
    kept = batch["labels"] != IGNORED
    expected = -logits[:, positions].gather(-1, target[..., None])[..., 0][kept].mean()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)


def test_repeats(encoded, vocab):
    model = mt.models.build_model(SHAPE, vocab)
    corpus = Corpus([encoded, encoded[:5].copy()], model, repeats=[1, 3])
    assert len(corpus) == 60 + 15
    np.testing.assert_array_equal(corpus[60].tokens, corpus[65].tokens)
    with pytest.raises(ValueError, match="one repeat"):
        Corpus([encoded], model, repeats=[1, 2])


def run(cells, vocab, output, **changes):
    settings = {"shape": SHAPE, "max_steps": 60, "batch_size": 8, "learning_rate": 1e-2, "device": "cpu"}
    recipe, more = mt.train.PretrainRecipe.split(settings | changes)
    return mt.train.pretrain(cells, vocab, output, recipe=recipe, **more)


def test_pretraining_learns_the_order(encoded, vocab, tmp_path):
    model = run(encoded, vocab, tmp_path / "run", held_out=encoded[:10].copy(), eval_every=5)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
    # A uniform guess is ln 44 = 3.8 nats; of a fixed order only the kind of the cell is unknown, once in 21.
    assert losses[-1] < 0.4 < 1 < losses[0]
    # What was computed: operations a token are those of the shape, for cells of 20 genes and two marks.
    steps = [entry for entry in log if "loss" in entry]
    shape = Shape.of(model.hf.config)
    for entry in steps:
        rate = entry["tokens_per_second"] * flops(shape, [22], training=True) / 22
        assert entry["tflop_per_second"] * 1e12 == pytest.approx(rate, rel=0.02, abs=1e8)
    assert model.sha256
    assert not model.hf.training
    card = json.loads((tmp_path / "run" / "model" / "maxtoki.json").read_text())
    assert card["recipe"]["max_steps"] == 60


def test_same_seed_same_weights_and_other_settings_are_refused(encoded, vocab, tmp_path):
    a = run(encoded, vocab, tmp_path / "a", max_steps=5)
    b = run(encoded, vocab, tmp_path / "b", max_steps=5)
    assert a.sha256 == b.sha256
    with pytest.raises(ValueError, match=r"other settings \(learning_rate\)"):
        run(encoded, vocab, tmp_path / "a", max_steps=5, learning_rate=1e-3)


def test_interrupted_run_resumes_to_the_same_weights(encoded, vocab, tmp_path, monkeypatch):
    from transformers import TrainerCallback
    from transformers.trainer import Trainer

    whole = run(encoded, vocab, tmp_path / "whole", max_steps=8, save_every=4, scored=0.5, gene_dropout=0.2)

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 6:
                raise KeyboardInterrupt

    original = Trainer.__init__
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "__init__", lambda self, **kw: original(self, **kw, callbacks=[Stop()]))
        with pytest.raises(KeyboardInterrupt):
            run(encoded, vocab, tmp_path / "cut", max_steps=8, save_every=4, scored=0.5, gene_dropout=0.2)
    assert not (tmp_path / "cut" / "model").exists()
    resumed = run(encoded, vocab, tmp_path / "cut", max_steps=8, save_every=4, scored=0.5, gene_dropout=0.2)
    assert resumed.sha256 == whole.sha256


def test_as_many_cells_are_held_out_as_asked(encoded, vocab, tmp_path):
    """The loss of 3 of 20 cells, the same 3 every time, and not of those left out of them."""
    held_out = encoded[:20].copy()
    how = {"max_steps": 4, "eval_every": 2, "n_held_out": 3, "held_out": held_out}
    model = run(encoded, vocab, tmp_path / "run", **how)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log if "eval_loss" in entry] == [2, 4]
    read = _some(Corpus([held_out], model), mt.train.PretrainRecipe.of(n_held_out=3).run)
    with torch.inference_mode():
        losses = [
            model.hf(**NextGeneCollator(0, 32)([read[i] for i in rows])).loss for rows in ([0, 1, 2], [0])
        ]
    found = log[-2 if "eval_loss" in log[-2] else -1]["eval_loss"]
    assert found == pytest.approx(losses[0].item(), abs=1e-5)
    assert found != pytest.approx(losses[1].item(), abs=1e-5)
    assert len(_some(Corpus([held_out], model), mt.train.PretrainRecipe().run)) == 20


WANDB = """
run, calls, config = None, [], {}

class Run:
    id, name, url, summary = "1", "run", "", {}
    def _label(self, **_): pass

def init(**how):
    global run
    run = Run()
    calls.append(("init", how))

def log(values):
    calls.append(("log", values))
"""


def test_trackers_of_transformers(encoded, vocab, tmp_path, monkeypatch):
    """Weights & Biases is told each loss, with the run's name and settings; nothing is sent that was not asked for."""
    package = tmp_path / "site" / "wandb" / "sdk" / "lib"
    package.mkdir(parents=True)
    (tmp_path / "site" / "wandb" / "__init__.py").write_text(WANDB)
    (package / "config_util.py").write_text("class ConfigError(Exception): pass\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("WANDB_PROJECT", "clocks")
    for name in [name for name in sys.modules if name.partition(".")[0] == "wandb"]:
        monkeypatch.delitem(sys.modules, name)
    how = {"max_steps": 4, "eval_every": 2, "held_out": encoded[:4].copy(), "learning_rate": 2e-3}
    run(encoded, vocab, tmp_path / "quiet", **how)
    assert "wandb" not in sys.modules
    run(encoded, vocab, tmp_path / "told", report_to="wandb", **how)
    wandb = sys.modules.pop("wandb")
    assert wandb.calls[0] == ("init", {"project": "clocks", "name": "told"})
    assert wandb.config["learning_rate"] == 2e-3
    told = [values["train/loss"] for what, values in wandb.calls if what == "log" and "train/loss" in values]
    log = [json.loads(line) for line in (tmp_path / "told" / "log.jsonl").read_text().splitlines()]
    assert told == [entry["loss"] for entry in log if "loss" in entry]
    assert any("eval/loss" in values for what, values in wandb.calls if what == "log")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"fp16": True}, ValueError, "fp16 needs a GPU, and the device is the CPU"),
        ({"fp16": True, "bf16": True}, ValueError, "bf16 and fp16 exclude each other"),
        ({"report_to": "wandbb"}, ValueError, "no tracker 'wandbb'; choose from .*tensorboard.*wandb"),
        ({"report_to": "mlflow"}, ImportError, "report_to='mlflow' .*pip install mlflow"),
    ],
)
def test_what_a_run_cannot_do_is_refused_first(
    encoded, vocab, tmp_path, monkeypatch, settings, error, message
):
    trackers = "transformers.integrations.integration_utils.get_available_reporting_integrations"
    monkeypatch.setattr(trackers, lambda: ["tensorboard"])
    with pytest.raises(error, match=message):
        run(encoded, vocab, tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()
