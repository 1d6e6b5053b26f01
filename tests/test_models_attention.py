"""Attention statistics: those of the whole matrix, without it."""

import numpy as np
import pytest
import torch

import maxtoki_toolkit as mt
from maxtoki_toolkit.models import attention
from maxtoki_toolkit.models.attention import attention_statistics

GENES = [f"ENSG{i:011d}" for i in range(60)]
VOCAB = mt.models.Vocabulary(
    {t: i for i, t in enumerate(["<pad>", "<mask>", "<bos>", "<eos>", *GENES])}, dict.fromkeys(GENES, 1.0)
)


@pytest.fixture(scope="module", params=[4, 2])
def model(request):
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": request.param,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
    }
    return mt.models.build_model(shape, VOCAB)


@pytest.mark.parametrize("block", [1, 4 * 4 * 50 * 7, 1 << 27])
def test_statistics_are_those_of_the_whole_matrix(model, block, monkeypatch):
    monkeypatch.setattr(attention, "_BLOCK", block)
    rng = np.random.default_rng(0)
    tokens = np.array([2, *rng.permutation(np.arange(4, 64))[:48], 3])
    groups = rng.random((50, 3)) < [0.1, 0.5, 1.0]
    found = attention_statistics(model, tokens, groups)
    before = model.hf.config._attn_implementation
    model.hf.set_attn_implementation("eager")
    with torch.inference_mode():
        whole = model.hf(torch.tensor(tokens)[None], output_attentions=True).attentions
    model.hf.set_attn_implementation(before)
    assert len(whole) == 3
    weights = torch.cat(whole).double().numpy()
    np.testing.assert_allclose(found.received, weights.sum(axis=2), atol=1e-5)
    np.testing.assert_allclose(found.to_groups, weights @ groups, atol=1e-5)
    np.testing.assert_allclose(found.to_groups[..., 2], 1, atol=1e-5)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.nansum(weights * np.log(weights), axis=3)
    np.testing.assert_allclose(found.entropy, entropy, atol=1e-5)


def test_the_model_is_left_as_it_was(model):
    tokens = torch.tensor([[2, 5, 9, 3]])
    with torch.inference_mode():
        before = model.hf(tokens).logits
        attention_statistics(model, tokens[0].numpy())
        assert torch.equal(model.hf(tokens).logits, before)
    with pytest.raises(ValueError, match="rows, for 4 tokens"):
        attention_statistics(model, tokens[0].numpy(), np.zeros((3, 1)))
    with pytest.raises(ValueError, match="more than the 64"):
        attention_statistics(model, np.full(65, 5))
    assert model.hf.config._attn_implementation == "sdpa"


@pytest.mark.slow
def test_long_prompts_take_little_memory():
    """16,384 tokens: a whole matrix would have 1 GB a head."""
    import resource

    shape = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 16_384,
    }
    model = mt.models.build_model(shape, VOCAB)
    tokens = np.random.default_rng(0).integers(4, 64, 16_384)
    attention_statistics(model, tokens[:512])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = attention_statistics(model, tokens, np.ones((16_384, 1)))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 1000
    np.testing.assert_allclose(found.to_groups, 1, atol=1e-4)
    np.testing.assert_allclose(found.received.sum(axis=2), 16_384, rtol=1e-3)
