"""Attention under a mask, whatever attention the model was loaded with."""

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

import maxtoki_toolkit as mt
from maxtoki_toolkit.models.engine import last_states, run
from maxtoki_toolkit.models.generation import generate_cells
from maxtoki_toolkit.models.masked import attending_by, masked, one_by_one
from maxtoki_toolkit.models.prefix import prefix_forest
from maxtoki_toolkit.models.sequences import Sequences

GENES = [f"ENSG{i:011d}" for i in range(100)]
VOCAB = mt.models.Vocabulary(
    {t: i for i, t in enumerate(["<pad>", "<mask>", "<bos>", "<eos>", *GENES])}, dict.fromkeys(GENES, 1.0)
)


def build(attention):
    # Heads of 10: not a size that fast kernels take under a mask.
    shape = {
        "hidden_size": 40,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 130,
        "initializer_range": 0.2,
    }
    return mt.models.build_model(shape, VOCAB, attention=attention)


@pytest.fixture(scope="module")
def sequences():
    """Two contexts of 60 genes, five queries each."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(2):
        context = [2, *rng.permutation(np.arange(4, 104))[:60], 3]
        rows += [[*context, 2, *rng.permutation(np.arange(4, 104))[: 20 + i], 3] for i in range(5)]
    return Sequences.of(rows)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_shared_tokens_with_any_attention(attention, sequences):
    model = build(attention)

    def states(**settings):
        found = np.zeros((10, 40), np.float32)
        parts = run(
            model,
            sequences,
            lambda batch: last_states(model.hf.model(**batch.inputs).last_hidden_state, batch),
            **settings,
        )
        for rows, part in parts:
            found[rows] = part.numpy()
        return found

    forest = prefix_forest(sequences)
    assert (forest.shared > 50).sum() == 8
    whole = states()
    assert np.abs(states(forest=forest) - whole).max() < 1e-5 * np.abs(whole).max()
    assert model.hf.config._attn_implementation == attention


def test_written_cells_with_any_attention(sequences):
    opened = [[*row[:-1].tolist()] for row in np.split(sequences.tokens, sequences.indptr[1:-1])]
    prompts = Sequences.of(opened)
    sdpa, eager = (generate_cells(build(name), prompts, seed=1, max_genes=40) for name in ("sdpa", "eager"))
    assert sdpa.sequences.tokens.tolist() == eager.sequences.tokens.tolist()
    np.testing.assert_allclose(sdpa.log_likelihood, eager.log_likelihood, rtol=1e-5)


def test_one_token_at_a_time_is_the_same_attention():
    rng = torch.Generator().manual_seed(0)
    query = torch.randn(3, 4, 1, 10, generator=rng)
    key, value = torch.randn(2, 3, 2, 9, 10, generator=rng)
    seen = torch.arange(9)[None, None, None] < torch.tensor([9, 4, 1])[:, None, None, None]
    found, _ = one_by_one(None, query, key, value, seen, scaling=0.3)
    also, _ = masked(None, query, key, value, seen, scaling=0.3)
    expected = scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(found, expected.transpose(1, 2))
    torch.testing.assert_close(also, expected.transpose(1, 2))


def test_an_error_leaves_the_models_own_attention():
    model = build("eager")

    def fail(*_, **__):
        assert model.hf.config._attn_implementation == "maxtoki_fail"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), attending_by(model, fail):
        model.hf(torch.tensor([[2, 3]]))
    assert model.hf.config._attn_implementation == "eager"
