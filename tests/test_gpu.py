"""What only a GPU shows; skipped where there is none."""

import numpy as np
import pytest
import torch

import maxtoki_toolkit as mt
from maxtoki_toolkit.models.sequences import Sequences
from maxtoki_toolkit.models.timelapse import read_lapses

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
N_GENES = 400


def make_model(device: str, dtype=torch.float32, head_dim: int = 32, attention: str = "sdpa"):
    genes = [f"ENSG{i:011d}" for i in range(N_GENES)]
    tokens = ["<pad>", "<mask>", "<bos>", "<eos>", *genes]
    vocab = mt.models.Vocabulary({t: i for i, t in enumerate(tokens)}, dict.fromkeys(genes, 1.0))
    shape = {
        "hidden_size": 4 * head_dim,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "head_dim": head_dim,
        "max_position_embeddings": 512,
    }
    model = mt.models.build_model(shape, vocab)
    model = mt.models.extend_model(model, vocab.with_times(-50, 50), max_length=2048)
    head = mt.models.TimeHead("linear", scale=10.0, hidden_size=4 * head_dim)
    torch.nn.init.normal_(head.linear.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    model.hf.to(device, dtype).set_attn_implementation(attention)
    from dataclasses import replace

    return replace(model, time_head=head.to(device))


def prompts(vocab, n: int = 40, seed: int = 0) -> Sequences:
    rng = np.random.default_rng(seed)
    context = np.concatenate([[2], 4 + rng.permutation(N_GENES)[:300], [3]])
    rows = [
        np.concatenate(
            [
                context,
                [vocab["<boq>"], 2],
                4 + rng.permutation(N_GENES)[: rng.integers(100, 300)],
                [3, vocab["<eoq>"]],
            ]
        )
        for _ in range(n)
    ]
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    return Sequences(np.concatenate(rows).astype(np.int32), indptr)


def relative(found, expected) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("head_dim", [32, 144, 154])
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 2e-3), (torch.bfloat16, 5e-2)])
def test_lapses_are_those_of_the_cpu(head_dim, dtype, most):
    # Published head sizes: 154 (217M) is no multiple of 8, which flash attention kernels ask for.
    on_cpu = make_model("cpu", head_dim=head_dim)
    sequences = prompts(on_cpu.vocab)
    expected, _ = read_lapses(on_cpu, sequences)
    found, _ = read_lapses(make_model("cuda", dtype, head_dim), sequences)
    assert np.isfinite(found).all()
    assert relative(found, expected) < most


def test_batches_are_halved_when_memory_runs_out():
    model = make_model("cuda")
    sequences = prompts(model.vocab, n=400)
    expected, _ = read_lapses(model, sequences, max_tokens=4096)
    free, _ = torch.cuda.mem_get_info()
    # All but a little of the memory is taken, so that one large batch does not fit.
    torch.cuda.set_per_process_memory_fraction(
        min(0.3e9 / torch.cuda.get_device_properties(0).total_memory, 1.0)
    )
    try:
        found, _ = read_lapses(model, sequences, max_tokens=1 << 20)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert relative(found, expected) < 1e-4


def test_compiled_model_reads_the_same():
    model = make_model("cuda")
    sequences = prompts(model.vocab, n=8)
    expected, _ = read_lapses(model, sequences)
    model.hf.model.compile(dynamic=True)
    found, _ = read_lapses(model, sequences)
    assert relative(found, expected) < 1e-3


def test_flash_attention_reads_the_same():
    pytest.importorskip("flash_attn")
    sequences = prompts(make_model("cpu").vocab)
    expected, _ = read_lapses(make_model("cuda", torch.bfloat16), sequences)
    found, _ = read_lapses(make_model("cuda", torch.bfloat16, attention="flash_attention_2"), sequences)
    assert relative(found, expected) < 5e-2


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_training_in_half_precision_learns(tmp_path, precision):
    adata = mt.datasets.aging_atlas(1500, 60, seed=1)
    mt.pp.map_genes(adata)
    vocab = mt.models.Vocabulary.from_anndata(adata)
    mt.pp.rank_value_encode(adata, vocab)
    shape = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 128,
    }
    import json

    mt.train.temporal(
        adata,
        mt.models.build_model(shape, vocab),
        tmp_path / "run",
        time_key="age_months",
        groupby="cell_type",
        recipe=mt.train.TemporalRecipe.of(
            max_length=600,
            context_size=(1, 2),
            running=1.0,
            teacher="ridge",
            optimizer="muon",
            learning_rate=0.02,
            max_steps=60,
            batch_size=16,
            eval_every=20,
            save_every=60,
            device="cuda",
            **{precision: True},
        ),
    )
    losses = [
        entry["loss"]
        for entry in map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines())
        if "loss" in entry
    ]
    assert losses[-1] < 0.8 * losses[0]
