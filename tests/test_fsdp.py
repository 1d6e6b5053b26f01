"""A model that two processes share out (FSDP) learns as it does in one, goes on after an interruption, and is whole in the end."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import maxtoki_toolkit as mt
from maxtoki_toolkit.models.sequences import cell_sequences
from maxtoki_toolkit.train._optimizer import require_optimizer

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SHAPE["max_position_embeddings"] = 64
# As `accelerate launch --use_fsdp` sets them.
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer",
}
BATCH = 8


def make_cells():
    adata = mt.datasets.aging_atlas(200, 10, n_genes=500)
    mt.pp.map_genes(adata)
    vocab = mt.models.Vocabulary.from_anndata(adata)
    mt.pp.rank_value_encode(adata, vocab)
    adata.obs["tested"] = np.arange(adata.n_obs) % 3 == 0
    return adata, vocab


def train(adata, vocab, folder):
    """Both stages, the batch of a step shared out over the processes."""
    size = BATCH // int(os.environ.get("WORLD_SIZE", 1))
    how = {"max_steps": 6, "batch_size": size, "save_every": 2, "eval_every": 3, "device": "cpu"}
    one = mt.train.pretrain(
        adata[~adata.obs["tested"]].copy(),
        vocab,
        folder / "one",
        shape=SHAPE,
        held_out=adata[adata.obs["tested"]].copy(),
        recipe=mt.train.PretrainRecipe.of(n_held_out=2 * BATCH, **how),
    )
    recipe = mt.train.TemporalRecipe.of(n_held_out=16, max_length=256, running=1.0, **how)
    columns = {"time_key": "age_months", "groupby": "cell_type", "donor_key": "donor_id"}
    mt.train.temporal(adata, one, folder / "two", held_out="tested", recipe=recipe, **columns)


def work(folder):
    """What each process does: both stages, the second interrupted once."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType
    from transformers import Trainer

    torch.set_num_threads(1)
    mt.settings.progress = False
    # Accelerate shards on GPUs alone; among CPUs it would drop the plugin and give each process all weights.
    begin, step, done = PartialState.__init__, Trainer.training_step, []

    def as_on_gpus(self, *args, **settings):
        begin(self, *args, **settings)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_XPU

    def stops_once(self, model, *args, **settings):
        weights = dict(model.named_parameters())
        (one, *_) = (weight for name, weight in weights.items() if name.endswith("q_proj.weight"))
        assert one.to_local().shape == (16, 32), "nothing is shared out"
        done.append(type(model).__name__)
        if done.count("FSDPTemporalModule") == 5 and len(done) == 11:
            raise InterruptedError
        return step(self, model, *args, **settings)

    PartialState.__init__, Trainer.training_step = as_on_gpus, stops_once
    adata, vocab = make_cells()
    with pytest.raises(InterruptedError):
        train(adata, vocab, folder)
    train(adata, vocab, folder)
    # It went on from the checkpoint of step 4; stage 1 was not done again.
    assert done == ["FSDPLlamaForCausalLM"] * 6 + ["FSDPTemporalModule"] * 7


def log_of(folder):
    entries = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return {(e["step"], name): e[name] for e in entries for name in ("loss", "eval_loss") if name in e}


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch without torch.distributed")
def test_two_processes_learn_as_one(tmp_path):
    """Losses of all steps, trained on and held out, to 1e-5; the saved models are whole."""
    adata, vocab = make_cells()
    train(adata, vocab, tmp_path / "alone")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    env = {**os.environ, **FSDP, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, __file__, str(tmp_path / "shared")], check=True, env=env)
    for stage in ("one", "two"):
        expected, found = (log_of(tmp_path / where / stage) for where in ("alone", "shared"))
        assert len(expected) == 8
        assert expected.keys() == found.keys()
        for key, loss in expected.items():
            assert found[key] == pytest.approx(loss, abs=1e-5), (stage, key)
        parts = [
            path.name
            for path in (tmp_path / "shared" / stage / "checkpoints").glob("*/pytorch_model_fsdp_0/*")
        ]
        assert sum(name.endswith(".distcp") for name in parts) == 4, (
            "two processes in each of two checkpoints"
        )
    tested = adata[adata.obs["tested"]].copy()
    losses = []
    for where in ("alone", "shared"):
        model = mt.load_model(tmp_path / where / "one" / "model", device="cpu")
        ranks, tokens = tested.layers["rank"].tocsr(), tested.var["token_id"].to_numpy()
        cells = cell_sequences(ranks, tokens, vocab, max_length=64)
        rows = [cells.tokens[a:b] for a, b in zip(cells.indptr[:-1], cells.indptr[1:], strict=True)]
        with torch.inference_mode():
            ids = [torch.tensor(row[None].astype(np.int64)) for row in rows[:20]]
            losses.append([model.hf(one, labels=one).loss.item() for one in ids])
        clock = mt.load_model(tmp_path / where / "two" / "model", device="cpu")
        assert clock.time_head.kind == "linear"
        assert type(clock.hf).__name__ == "LlamaForCausalLM"
    np.testing.assert_allclose(*losses, atol=1e-5)


def test_what_cannot_be_sharded(monkeypatch):
    for name, value in FSDP.items():
        monkeypatch.setenv(name, value)
    require_optimizer("adamw")
    with pytest.raises(ValueError, match="Muon needs whole matrices"):
        require_optimizer("muon")
    monkeypatch.setenv("FSDP_VERSION", "1")
    adata, vocab = make_cells()
    with pytest.raises(ValueError, match="FSDP of version 2: accelerate launch --use_fsdp --fsdp_version 2"):
        mt.train.pretrain(adata, vocab, "run", shape=SHAPE)


if __name__ == "__main__":
    from pathlib import Path

    work(Path(sys.argv[1]))
