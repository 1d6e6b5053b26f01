"""A model shared out over two processes, by transformers' own plan, reads as the whole one does."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import maxtoki_toolkit as mt
from maxtoki_toolkit.models.engine import run
from maxtoki_toolkit.models.load import shared_out
from maxtoki_toolkit.models.sequences import Sequences
from maxtoki_toolkit.models.timelapse import read_lapses

# The published 1B model (reference/maxtoki_spec.md, section 5.1), with 2 layers.
WIDTHS = {
    "hidden_size": 2304,
    "intermediate_size": 4608,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 144,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "max_position_embeddings": 4096,
    "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 1.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 4096,
    },
}  # fmt: skip


def read_both(model):
    """Logits of the transformers model, and lapses by the engine, of a few prompts of unequal length."""
    rng = np.random.default_rng(0)
    genes, marks = model.vocab.gene_ids, [model.vocab["<boq>"], model.vocab["<eoq>"]]
    prompts = Sequences.of([np.array([*rng.choice(genes, n), *marks]) for n in (3, 40, 90)])
    logits = [None] * len(prompts)
    for rows, found in run(
        model, prompts, lambda batch: model.hf(**batch.inputs).logits[:, :5].float().numpy()
    ):
        for row, part in zip(rows, found, strict=True):
            logits[row] = part
    return np.stack(logits), read_lapses(model, prompts)[0]


def work(folder):
    """What each process does."""
    torch.set_num_threads(1)
    model = mt.load_model(folder, device="cpu", tensor_parallel=True)
    weight = model.hf.model.layers[0].self_attn.q_proj.weight
    assert weight.to_local().shape[0] == weight.shape[0] // 2, "nothing is shared out"
    logits, lapses = read_both(model)
    with pytest.raises(ValueError, match="needs a model that is whole"):
        mt.models.save_model(model, f"{folder}_again")
    np.savez(f"{folder}_{os.environ['RANK']}.npz", logits=logits, lapses=lapses)


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch without torch.distributed")
def test_two_processes_read_as_one(tmp_path):
    """At the widths of the 1B model, with its odd vocabulary (grouped queries, uneven output layer): 1e-4 of the largest."""
    genes = [f"ENSG{i:011d}" for i in range(20_271)]
    tokens = {token: i for i, token in enumerate(["<pad>", "<mask>", "<bos>", "<eos>", *genes])}
    vocab = mt.models.Vocabulary(tokens, dict.fromkeys(genes, 1.5)).with_times(-1500, 1499)
    assert vocab.size == 23_277
    model = mt.models.build_model(WIDTHS, vocab)
    model = dataclasses.replace(model, time_head=mt.models.TimeHead("expectation"))
    mt.models.save_model(model, tmp_path / "model")
    expected = read_both(model)
    del model
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        __file__,
        str(tmp_path / "model"),
    ]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    for rank in range(2):
        found = np.load(tmp_path / f"model_{rank}.npz")
        for name, values in zip(("logits", "lapses"), expected, strict=True):
            assert np.ptp(values) > 0.1
            np.testing.assert_allclose(found[name], values, atol=1e-4 * max(np.abs(values).max(), 1))


def test_what_cannot_be_shared_out(tiny_clock, tmp_path, monkeypatch):
    mt.models.save_model(tiny_clock, tmp_path / "model")
    with pytest.raises(ValueError, match="this process is alone"):
        mt.load_model(tmp_path / "model", tensor_parallel=True)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="2 heads of keys and values cannot be shared out over 3"):
        shared_out(tmp_path / "model", "cpu")


if __name__ == "__main__":
    work(sys.argv[1])
