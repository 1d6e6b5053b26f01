"""Sequences, batches, memory back-off and hidden states."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

import maxtoki_toolkit as mt
from maxtoki_toolkit.models import engine
from maxtoki_toolkit.models.embedding import embed_sequences, hidden_states
from maxtoki_toolkit.models.sequences import Sequences, cell_sequences, pad

GENES = [f"ENSG{i:011d}" for i in range(50)]
VOCAB = mt.models.Vocabulary(
    {t: i for i, t in enumerate(["<pad>", "<mask>", "<bos>", "<eos>", *GENES])}, dict.fromkeys(GENES, 1.0)
)


@pytest.fixture(scope="module")
def model():
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    return mt.models.build_model({**shape, "max_position_embeddings": 64}, VOCAB)


@pytest.fixture
def sequences():
    rng = np.random.default_rng(0)
    cells = [[2, *rng.permutation(np.arange(4, 54))[:n], 3] for n in rng.integers(1, 50, 40)]
    return Sequences.of(cells)


def split(sequences):
    return [part.tolist() for part in np.split(sequences.tokens, sequences.indptr[1:-1])]


def test_cells_are_written_in_rank_order():
    ranks = csr_matrix(np.array([[2, 0, 1, 3], [0, 1, 0, 0], [3, 2, 4, 1]], np.uint16))
    token = np.array([10, 11, 12, 13], np.int32)
    assert split(cell_sequences(ranks, token, VOCAB, max_length=64)) == [
        [2, 12, 10, 13, 3],
        [2, 11, 3],
        [2, 13, 11, 10, 12, 3],
    ]
    assert split(cell_sequences(ranks, token, VOCAB, max_length=4)) == [
        [2, 12, 10, 3],
        [2, 11, 3],
        [2, 13, 11, 3],
    ]


def test_gaps_in_the_ranks_are_closed():
    """A subset of the genes, a gene without a token, and a cell with nothing left."""
    ranks = csr_matrix(np.array([[7, 0, 3], [0, 9, 0], [0, 0, 0], [5, 2, 1]], np.uint16))
    token = np.array([10, -1, 12], np.int32)
    assert split(cell_sequences(ranks, token, VOCAB, max_length=64)) == [
        [2, 12, 10, 3],
        [2, 3],
        [2, 3],
        [2, 12, 10, 3],
    ]


def test_padding_is_on_the_right(sequences):
    batch = pad(sequences, np.array([3, 0]), 0)
    lengths = sequences.lengths[[3, 0]]
    assert batch.shape == (2, lengths.max())
    for row, i, length in zip(batch, [3, 0], lengths, strict=True):
        assert row[:length].tolist() == split(sequences)[i]
        assert (row[length:] == 0).all()


def test_token_batches_keep_the_budget():
    lengths = np.random.default_rng(0).integers(1, 100, 500)
    batches = engine.token_batches(lengths, 400)
    assert sorted(np.concatenate(batches).tolist()) == list(range(500))
    assert max(len(rows) * lengths[rows].max() for rows in batches) <= 400
    assert lengths[batches[0]].max() == lengths.max()
    # A sequence longer than the budget is alone; nothing is lost.
    assert [len(rows) for rows in engine.token_batches(np.array([1000, 5]), 400)] == [1, 1]
    assert engine.token_batches(np.array([], dtype=int), 400) == []


def test_results_do_not_depend_on_batches_or_order(model, sequences):
    one_by_one = embed_sequences(model, sequences, max_tokens=1).cells
    for max_tokens in (64, 500, 100_000):
        np.testing.assert_allclose(
            embed_sequences(model, sequences, max_tokens=max_tokens).cells, one_by_one, atol=2e-6
        )
    order = np.random.default_rng(1).permutation(40)
    parts = np.split(sequences.tokens, sequences.indptr[1:-1])
    shuffled = Sequences(
        np.concatenate([parts[i] for i in order]), np.concatenate([[0], np.cumsum(sequences.lengths[order])])
    )
    np.testing.assert_allclose(embed_sequences(model, shuffled).cells, one_by_one[order], atol=2e-6)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")]
)
def test_memory_back_off_gives_the_same_results(model, sequences, error, monkeypatch):
    expected = embed_sequences(model, sequences).cells
    sizes = []
    forward = model.hf.model.forward

    def limited(input_ids, **kwargs):
        sizes.append(input_ids.numel())
        if input_ids.numel() > 300:
            raise error
        return forward(input_ids=input_ids, **kwargs)

    monkeypatch.setattr(model.hf.model, "forward", limited)
    np.testing.assert_allclose(embed_sequences(model, sequences).cells, expected, atol=2e-6)
    # Halved until it fits, and not tried larger again.
    failed = [size > 300 for size in sizes]
    assert failed == sorted(failed, reverse=True)
    assert 1 <= sum(failed) <= 4


def test_other_errors_are_not_swallowed(model, sequences, monkeypatch):
    def broken(**kwargs):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(model.hf.model, "forward", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        embed_sequences(model, sequences)


def test_a_single_cell_that_does_not_fit_is_an_error(model, sequences, monkeypatch):
    def full(**kwargs):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(model.hf.model, "forward", full)
    with pytest.raises(torch.OutOfMemoryError):
        embed_sequences(model, sequences)


def test_hidden_states_are_those_of_transformers(model):
    tokens = torch.tensor([[2, 7, 9, 30, 3]])
    inputs = {"input_ids": tokens}
    with torch.inference_mode():
        states = model.hf(tokens, output_hidden_states=True).hidden_states
        for layer in range(4):
            assert torch.equal(hidden_states(model, inputs, layer), states[layer])
        # The last entry has passed the final norm: it is what the LM head reads.
        assert torch.equal(hidden_states(model, inputs, -1), states[-1])
        assert torch.equal(model.hf.lm_head(states[-1]), model.hf(tokens).logits)
    with pytest.raises(ValueError, match=r"layer must be -1 or 0\.\.3"):
        hidden_states(model, inputs, 4)
    assert not model.hf.model.layers[1]._forward_pre_hooks


def test_pooling(model):
    cell = np.array([2, 7, 9, 30, 3], np.int32)
    sequences = Sequences(np.concatenate([cell, cell[[0, 1, 4]]]), np.array([0, 5, 8]))
    with torch.inference_mode():
        states = hidden_states(model, {"input_ids": torch.tensor(cell)[None].long()}, -1)[0]
    mean = embed_sequences(model, sequences).cells[0]
    np.testing.assert_allclose(mean, states[1:4].mean(0), atol=1e-6)
    eos = embed_sequences(model, sequences, pool="eos").cells[0]
    np.testing.assert_allclose(eos, states[4], atol=1e-6)
    with pytest.raises(ValueError, match="choose from mean, eos"):
        embed_sequences(model, sequences, pool="max")


def test_gene_embeddings_are_means_over_cells(model, sequences):
    found = embed_sequences(model, sequences, tokens=True, max_tokens=200).tokens
    gene = 11
    states = []
    for cell in split(sequences):
        if gene in cell:
            with torch.inference_mode():
                found_states = hidden_states(model, {"input_ids": torch.tensor([cell])}, -1)[0]
                states.append(found_states[cell.index(gene)].numpy())
    np.testing.assert_allclose(found[gene], np.mean(states, axis=0), atol=1e-5)
    # Marks and padding are no genes.
    assert np.isnan(found[:4]).all()


@pytest.mark.parametrize("shape", ["217m", "1b"])
def test_rope_of_the_published_shapes(shape, parity):
    """Inverse frequencies equal those of the original's own scaling (parity group rope_llama3_scaling)."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    from maxtoki_toolkit.models.build import SHAPES

    for case in parity["rope_llama3_scaling"]["cases"]:
        if case["head_dim"] != SHAPES[shape]["head_dim"]:
            continue
        keys = (
            "rope_theta",
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        )
        rope = {"rope_type": "llama3"} | {key: case[key] for key in keys}
        config = LlamaConfig(**{**SHAPES[shape], "max_position_embeddings": 16384, "rope_parameters": rope})
        inverse, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
        assert len(inverse) == case["n_freqs"]
        for i, value in case["inv_freq_at"].items():
            assert inverse[int(i)].item() == pytest.approx(value, rel=1e-5)


def test_half_precision_reads_the_same_time():
    """bfloat16 weights and states, against float32: 8 bits of precision, so a few months in lapses of decades."""
    adata = mt.datasets.aging_atlas(200, 10)
    exact, half = (mt.load_model("demo", device="cpu", dtype=name) for name in ("float32", "bfloat16"))
    mt.pp.map_genes(adata, exact)
    mt.pp.rank_value_encode(adata, exact)
    mt.pp.sample_prompts(adata, time_key="age_months", groupby="cell_type", n_prompts=20)
    found = []
    for model in (exact, half):
        mt.tl.predict_timelapse(adata, model)
        found.append(mt.get.table(adata, "timelapse")["predicted"].to_numpy())
    assert half.hf.dtype == torch.bfloat16
    assert np.corrcoef(*found)[0, 1] > 0.999
    assert np.abs(found[0] - found[1]).max() < 0.05 * np.abs(found[0]).max()
