"""Time tokens and a longer reach for a stage-1 model."""

import numpy as np
import pytest
import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import maxtoki_toolkit as mt

GENES = [f"ENSG{i:011d}" for i in range(40)]
TOKENS = {t: i for i, t in enumerate(["<pad>", "<mask>", "<bos>", "<eos>", *GENES])}
VOCAB = mt.models.Vocabulary(TOKENS, dict.fromkeys(GENES, 1.5))
TIMES = VOCAB.with_times(-50, 50)
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500_000.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.fixture(scope="module")
def model():
    return mt.models.build_model(SHAPE, VOCAB)


@pytest.fixture(scope="module")
def tokens():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 44, (3, 60)))


def frequencies(model):
    return model.hf.model.rotary_emb.inv_freq


def test_what_the_model_knew_it_still_knows(model, tokens):
    before = {name: weight.clone() for name, weight in model.hf.state_dict().items()}
    longer = mt.models.extend_model(model, TIMES, max_length=256, rope="none")
    with torch.inference_mode():
        torch.testing.assert_close(longer.hf(tokens).logits[..., :44], model.hf(tokens).logits)
    for name, weight in longer.hf.state_dict().items():
        assert torch.equal(weight[: len(before[name])], before[name])
    # The model that was given is left as it is.
    assert all(torch.equal(weight, before[name]) for name, weight in model.hf.state_dict().items())
    assert model.vocab.size == 44
    assert model.max_length == 64


def test_what_is_new(model):
    longer = mt.models.extend_model(model, TIMES, max_length=256)
    assert (longer.max_length, longer.cell_length) == (256, 64)
    assert longer.vocab is TIMES
    assert longer.hf.config.vocab_size == TIMES.size == 44 + 101 + 2
    assert longer.hf.get_input_embeddings().num_embeddings == TIMES.size
    assert longer.hf.config._attn_implementation == model.hf.config._attn_implementation
    assert not longer.hf.training
    assert longer.time_head is None
    assert not longer.is_temporal
    with torch.inference_mode():
        logits = longer.hf(torch.arange(147)[None].repeat(1, 2)[:, :256]).logits
    assert logits.shape == (1, 256, 147)
    assert torch.isfinite(logits).all()


def rows(model, name):
    return getattr(model.hf, f"get_{name}_embeddings")().weight.detach()


@pytest.mark.parametrize("name", ["input", "output"])
def test_neighbouring_lapses_are_alike(model, name):
    longer = mt.models.extend_model(model, TIMES, max_length=256)
    weights = rows(longer, name)
    times = torch.nn.functional.normalize(weights[TIMES.time_ids], dim=1)
    neighbours = (times[1:] * times[:-1]).sum(1)
    assert neighbours.min() > 0.97
    similarity = times @ times.T
    by_distance = [torch.diagonal(similarity, d).mean().item() for d in (1, 5, 20, 60)]
    assert by_distance == sorted(by_distance, reverse=True)
    assert by_distance[-1] < 0.75 < by_distance[1]
    # As long as those of genes, so that they neither drown nor drown out; an output layer of its own starts with
    # logits of about 1, from which an expectation can move.
    length = weights[4:44].std().item() if name == "input" else weights.shape[1] ** -0.5
    assert weights[TIMES.time_ids].std().item() == pytest.approx(length, rel=0.1)
    assert weights[[TIMES["<boq>"], TIMES["<eoq>"]]].std().item() == pytest.approx(length, rel=0.4)


def test_seed(model):
    def new(seed):
        longer = mt.models.extend_model(model, TIMES, max_length=128, seed=seed)
        return torch.cat([rows(longer, "input")[44:], rows(longer, "output")[44:]])

    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(new(0), new(0))
    assert torch.equal(torch.rand(1), expected)
    assert not torch.equal(new(0), new(1))


def test_one_lapse_only(model):
    alone = mt.models.extend_model(model, VOCAB.with_times(0, 0), max_length=64)
    assert torch.isfinite(rows(alone, "input")).all()
    assert alone.hf.config.rope_parameters == model.hf.config.rope_parameters


def test_tied_embeddings_stay_tied():
    tied = mt.models.build_model({**SHAPE, "tie_word_embeddings": True}, VOCAB)
    longer = mt.models.extend_model(tied, TIMES, max_length=128)
    assert longer.hf.lm_head.weight is longer.hf.model.embed_tokens.weight
    assert torch.equal(rows(longer, "output")[:44], rows(tied, "input"))


def test_lower_precision_is_kept():
    half = mt.models.build_model(SHAPE, VOCAB, dtype=torch.bfloat16)
    longer = mt.models.extend_model(half, TIMES, max_length=128)
    assert {weight.dtype for weight in longer.hf.parameters()} == {torch.bfloat16}


def test_models_read_their_time_tokens(model, tmp_path):
    longer = mt.models.extend_model(model, TIMES, max_length=256)
    mt.models.save_model(longer, tmp_path / "model")
    loaded = mt.load_model(tmp_path / "model")
    assert loaded.vocab.sha256 == TIMES.sha256
    assert (loaded.max_length, loaded.cell_length) == (256, 64)
    assert all(torch.equal(a, b) for a, b in zip(longer.hf.parameters(), loaded.hf.parameters(), strict=True))


@pytest.mark.parametrize("rope", ["llama3", "linear", "dynamic", "none"])
def test_positions_are_stretched_as_in_transformers(model, tokens, rope, tmp_path):
    longer = mt.models.extend_model(model, TIMES, max_length=256, rope=rope)
    mt.models.save_model(longer, tmp_path / "model")
    loaded = mt.load_model(tmp_path / "model")
    plain = 1 / 10_000 ** (torch.arange(0, 16, 2) / 16)
    if rope == "none":
        expected = plain
        assert loaded.hf.config.rope_parameters == model.hf.config.rope_parameters
    else:
        expected, _ = ROPE_INIT_FUNCTIONS[rope](loaded.hf.config, "cpu")
        assert loaded.hf.config.rope_parameters["factor"] == 4
    for found in (longer, loaded):
        torch.testing.assert_close(frequencies(found), expected)
    with torch.inference_mode():
        torch.testing.assert_close(loaded.hf(tokens).logits, longer.hf(tokens).logits)
    if rope == "linear":
        torch.testing.assert_close(expected, plain / 4)
    if rope == "llama3":
        # The shortest waves stay as they are, the longest are four times as long.
        torch.testing.assert_close(expected[[0, -1]], plain[[0, -1]] / torch.tensor([1.0, 4.0]))
    if rope == "dynamic":
        # transformers stretches only what is longer than the model reads: up to there it is "none".
        torch.testing.assert_close(expected, plain)
        loaded.hf(torch.zeros(1, 256, dtype=torch.long))
        torch.testing.assert_close(frequencies(loaded), plain)


def test_a_stretched_model_is_stretched_further():
    """As a checkpoint that was trained with a factor of 8 already."""
    config = {**LLAMA3, "factor": 8.0, "original_max_position_embeddings": 32}
    stretched = mt.models.build_model({**SHAPE, "rope_parameters": config}, VOCAB)
    longer = mt.models.extend_model(stretched, TIMES, max_length=128)
    assert longer.hf.config.rope_parameters == {**config, "factor": 16.0}
    same = mt.models.extend_model(stretched, TIMES, max_length=64)
    torch.testing.assert_close(frequencies(same), frequencies(stretched))
    kept = mt.models.extend_model(stretched, TIMES, max_length=128, rope="none")
    torch.testing.assert_close(frequencies(kept), frequencies(stretched))
    with pytest.raises(ValueError, match="stretched already: pass rope='llama3' to stretch them further"):
        mt.models.extend_model(stretched, TIMES, max_length=128, rope="linear")
    # The published 1B model has a factor of 1, which is none.
    config = {**LLAMA3, "factor": 1.0, "original_max_position_embeddings": 64}
    plain = mt.models.build_model({**SHAPE, "rope_parameters": config}, VOCAB)
    longer = mt.models.extend_model(plain, TIMES, max_length=128)
    assert longer.hf.config.rope_parameters == {**config, "factor": 2.0}
    assert mt.models.extend_model(plain, TIMES, max_length=128, rope="linear").max_length == 128


@pytest.mark.parametrize(
    ("vocab", "settings", "message"),
    [
        (TIMES, {"rope": "yarn"}, "no RoPE scaling 'yarn'; choose from llama3, dynamic, linear, none"),
        (TIMES, {"max_length": 32}, "The model reads 64 tokens already; max_length is 32"),
        (VOCAB, {}, r"must be the model's own with time tokens added, model\.vocab\.with_times"),
        (
            mt.models.Vocabulary({**TOKENS, GENES[0]: 5, GENES[1]: 4}, VOCAB.medians).with_times(-1, 1),
            {},
            "own",
        ),
        (
            mt.models.Vocabulary(
                {t: i for t, i in TOKENS.items() if t != GENES[3]}, VOCAB.medians
            ).with_times(-1, 1),
            {},
            "own",
        ),
    ],
)
def test_refusals(model, vocab, settings, message):
    with pytest.raises(ValueError, match=message):
        mt.models.extend_model(model, vocab, **settings)


def test_a_temporal_model_is_not_extended_again(model):
    longer = mt.models.extend_model(model, TIMES, max_length=128)
    with pytest.raises(ValueError, match="own with time tokens added"):
        mt.models.extend_model(longer, TIMES, max_length=256)


def test_lapses_in_a_gap_of_the_ids_are_refused():
    """They would have rows of the old embedding, which nobody made for them."""
    gap = {**TOKENS, GENES[-1]: 50}
    model = mt.models.build_model(SHAPE, mt.models.Vocabulary(gap, VOCAB.medians))
    inside = mt.models.Vocabulary({**gap, 0: 43, 1: 44, "<boq>": 51, "<eoq>": 52}, VOCAB.medians)
    with pytest.raises(ValueError, match="own with time tokens added"):
        mt.models.extend_model(model, inside)


@pytest.mark.parametrize("rope", ["llama3", "linear"])
def test_an_explicit_factor(model, rope):
    """Frequencies are those of transformers at this factor, of another length too, and 1 leaves them as they are."""
    longer = mt.models.extend_model(model, TIMES, max_length=256, rope=rope, rope_factor=3.0)
    assert longer.hf.config.rope_parameters["factor"] == 3
    assert longer.max_length == 256
    expected, _ = ROPE_INIT_FUNCTIONS[rope](longer.hf.config, "cpu")
    torch.testing.assert_close(longer.hf.model.rotary_emb.inv_freq, expected)
    plain = mt.models.extend_model(model, TIMES, max_length=256, rope=rope)
    assert not torch.equal(longer.hf.model.rotary_emb.inv_freq, plain.hf.model.rotary_emb.inv_freq)
    same = mt.models.extend_model(model, TIMES, max_length=256, rope=rope, rope_factor=1.0)
    torch.testing.assert_close(same.hf.model.rotary_emb.inv_freq, model.hf.model.rotary_emb.inv_freq)


def test_a_factor_that_makes_no_sense(model):
    for rope, factor in [("none", 2.0), ("llama3", 0.5)]:
        with pytest.raises(ValueError, match="rope_factor is 1 or more"):
            mt.models.extend_model(model, TIMES, max_length=256, rope=rope, rope_factor=factor)
