"""Reading lapses: both heads, their scale, their losses, and what is stored of them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import maxtoki_toolkit as mt
from maxtoki_toolkit.models.load import CARD, HEAD, WEIGHTS
from maxtoki_toolkit.models.prompts import Prompts, write_prompts
from maxtoki_toolkit.models.sequences import Sequences
from maxtoki_toolkit.models.time_head import TimeHead, expected_value
from maxtoki_toolkit.models.timelapse import read_lapses
from maxtoki_toolkit.train._temporal_module import TemporalModule
from maxtoki_toolkit.train.prompt_stream import PromptCollator

GENES = [f"ENSG{i:011d}" for i in range(20)]
TOKENS = ["<pad>", "<mask>", "<bos>", "<eos>", *GENES]
VOCAB = mt.models.Vocabulary({t: i for i, t in enumerate(TOKENS)}, dict.fromkeys(GENES, 1.0)).with_times(
    -8, 8
)
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def untrained():
    return mt.models.build_model(SHAPE, VOCAB)


@pytest.fixture(scope="module")
def cells():
    rng = np.random.default_rng(0)
    rows = [[2, *(4 + rng.permutation(20)[:n]), 3] for n in (3, 4, 5, 6, 7, 8)]
    return Sequences.of(rows)


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(1)
    rows = np.array([rng.permutation(6)[:3] for _ in range(9)])
    timelapse = np.arange(9) % 3 > 0
    return Prompts(rows[:, :2], rows[:, 2], rng.integers(-8, 9, (9, 1)), rng.integers(-8, 9, 9), timelapse)


def linear_head(**settings):
    head = TimeHead("linear", hidden_size=32, **settings)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        head.linear.weight.copy_(torch.randn(1, 32, generator=generator))
        head.linear.bias.fill_(0.25)
    return head


HEADS = {
    "linear": lambda **settings: linear_head(**settings),
    "expectation": lambda **settings: TimeHead("expectation", **settings),
}


def test_expectation_is_the_mean_of_the_values():
    logits = torch.randn(5, 3, VOCAB.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected, p_non_numeric = expected_value(logits, VOCAB)
    p = logits.softmax(-1)
    values = torch.zeros(VOCAB.size, dtype=torch.float64)
    values[VOCAB.time_ids] = torch.from_numpy(VOCAB.time_values).double()
    numeric = p[..., VOCAB.time_ids].sum(-1)
    torch.testing.assert_close(expected.double(), (p * values).sum(-1) / numeric, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(p_non_numeric.double(), 1 - numeric, rtol=1e-5, atol=1e-6)
    assert expected.dtype == torch.float32


def test_probabilities_stay_probabilities():
    """With nearly all probability on lapses or on others, differences of sums would fall below 0."""
    logits = torch.randn(2000, VOCAB.size, generator=torch.Generator().manual_seed(0))
    others = np.setdiff1d(np.arange(VOCAB.size), VOCAB.time_ids)
    for shift in (-30.0, -15.0, 30.0, 200.0):
        moved = logits.clone()
        moved[:, others] += shift
        expected, p_non_numeric = expected_value(moved, VOCAB)
        assert ((p_non_numeric >= 0) & (p_non_numeric <= 1)).all()
        # What lies outside does not matter for the mean.
        torch.testing.assert_close(expected, expected_value(logits, VOCAB)[0])
    exact = moved.double()
    exact[:, others] -= 230
    exact = exact.softmax(-1)[:, others].sum(-1)
    moved[:, others] -= 230
    torch.testing.assert_close(expected_value(moved, VOCAB)[1].double(), exact, rtol=1e-4, atol=0)


def test_gradients_reach_both_kinds_of_tokens():
    logits = torch.zeros(2, VOCAB.size, requires_grad=True)
    expected, p_non_numeric = expected_value(logits, VOCAB)
    (expected + p_non_numeric).sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[:, VOCAB.time_ids].abs().sum() > 0) & (logits.grad[:, :4].abs().sum() > 0)


def test_linear_head():
    head = TimeHead("linear", hidden_size=32, scale=7.0)
    states = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    lapse, p_non_numeric = head(states, None, VOCAB)
    assert lapse.tolist() == [0, 0, 0, 0]
    assert p_non_numeric.isnan().all()
    head = linear_head(scale=7.0)
    with torch.no_grad():
        lapse, _ = head(states, None, VOCAB)
        torch.testing.assert_close(lapse, 7 * (states @ head.linear.weight[0] + 0.25))
        half, _ = head(states.bfloat16(), None, VOCAB)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, lapse, atol=1.0, rtol=0.05)


def test_expectation_head_has_a_scale_and_no_weights(untrained):
    states = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    one, many = TimeHead("expectation"), TimeHead("expectation", scale=200)
    assert not one.state_dict()
    with torch.no_grad():
        single = one(states, untrained.hf.lm_head, VOCAB)
        scaled = many(states, untrained.hf.lm_head, VOCAB)
    torch.testing.assert_close(scaled.lapse, 200 * single.lapse)
    torch.testing.assert_close(scaled.p_non_numeric, single.p_non_numeric)
    torch.testing.assert_close(single.lapse, expected_value(untrained.hf.lm_head(states), VOCAB)[0])


def test_card():
    head = TimeHead("expectation", unit="hours", scale=200, loss="ce")
    assert head.card == {"kind": "expectation", "unit": "hours", "scale": 200.0, "loss": "ce"}
    assert TimeHead(**head.card).card == head.card
    assert repr(head) == "TimeHead(expectation, scale=200 hours, loss=ce)"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "oracle"}, "no time head 'oracle'; choose from expectation, linear"),
        ({"kind": "expectation", "loss": "l1"}, "got 'l1'"),
        ({"kind": "linear", "loss": "ce", "hidden_size": 4}, "an expectation also with \"ce\"; got 'ce'"),
        ({"kind": "linear"}, "needs the model's hidden size"),
        ({"kind": "expectation", "scale": 0}, "must be positive, got 0"),
        ({"kind": "expectation", "scale": float("nan")}, "must be positive, got nan"),
    ],
)
def test_bad_heads(settings, message):
    with pytest.raises(ValueError, match=message):
        TimeHead(**settings)


def run_module(model, head, cells, prompts, **settings):
    module = TemporalModule(
        model.hf,
        head,
        VOCAB,
        **{"loss_scale": 1.0, "penalty": 0.0, "weights": (1.0, 1.0), **settings},
    )
    return module(**PromptCollator(cells, VOCAB, max_length=64)(prompts))


def slow_losses(model, head, cells, prompts):
    """Errors of the lapses, cross entropies of their tokens, p_non_numeric, cross entropies of the cells; each alone."""
    written = write_prompts(prompts, cells, VOCAB, max_length=64)
    errors, entropies, outside, genes = [], [], [], []
    for i, timelapse in enumerate(prompts.timelapse):
        tokens = written.sequences.tokens[written.sequences.indptr[i] : written.sequences.indptr[i + 1]]
        inputs = torch.from_numpy(tokens.astype(np.int64))[None]
        with torch.no_grad():
            output = model.hf(input_ids=inputs, output_hidden_states=True)
            log_p = output.logits[0].log_softmax(-1)
            if timelapse:
                place = int(written.eoq[i])
                reading = head(output.hidden_states[-1][0, place][None], model.hf.lm_head, VOCAB)
                errors.append(reading.lapse.item() - prompts.lapse[i])
                entropies.append(-log_p[place, VOCAB[int(prompts.lapse[i])]].item())
                outside.append(reading.p_non_numeric.item())
            else:
                for place in range(written.eoq[i], len(tokens) - 1):
                    genes.append(-log_p[place, int(tokens[place + 1])].item())
    return tuple(map(np.array, (errors, entropies, outside, genes)))


@pytest.mark.parametrize("kind", HEADS)
def test_losses(untrained, cells, prompts, kind):
    head = HEADS[kind](scale=2.0)
    errors, entropies, outside, genes = slow_losses(untrained, head, cells, prompts)
    settings = {"loss_scale": 4.0, "penalty": 0.3}
    result = run_module(untrained, head, cells, prompts, weights=(0.5, 3.0), **settings)
    penalty = 0.3 * outside.mean() if kind == "expectation" else 0
    time_loss = np.mean((errors / 4) ** 2) + penalty
    assert result["loss"].item() == pytest.approx(0.5 * time_loss + 3 * genes.mean(), rel=1e-4)
    assert result["cell_loss"][0].item() == pytest.approx(genes.mean(), rel=1e-4)
    asked = prompts.timelapse
    np.testing.assert_allclose(
        result["predicted"].detach()[torch.from_numpy(asked)], prompts.lapse[asked] + errors, rtol=1e-4
    )
    assert result["predicted"][torch.from_numpy(~asked)].isnan().all()
    if kind == "expectation":
        crossed = run_module(
            untrained, TimeHead("expectation", loss="ce"), cells, prompts, weights=(1.0, 0.0), penalty=9.0
        )
        assert crossed["loss"].item() == pytest.approx(entropies.mean(), rel=1e-4)


@pytest.mark.parametrize("kind", HEADS)
def test_batches_of_one_task(untrained, cells, prompts, kind):
    """The other task adds nothing to the loss, and no gradient is NaN or missing."""
    head = HEADS[kind]()
    for asked in (True, False):
        some = prompts[prompts.timelapse == asked]
        errors, _, _, genes = slow_losses(untrained, head, cells, some)
        result = run_module(untrained, head, cells, some)
        expected = np.mean(errors**2) if asked else genes.mean()
        assert result["loss"].item() == pytest.approx(expected, rel=1e-4)
        untrained.hf.zero_grad()
        head.zero_grad()
        result["loss"].backward()
        weights = [*head.parameters(), untrained.hf.lm_head.weight, untrained.hf.model.embed_tokens.weight]
        assert all(weight.grad is not None and torch.isfinite(weight.grad).all() for weight in weights)
        assert untrained.hf.model.embed_tokens.weight.grad.abs().sum() > 0
        for parameter in head.parameters():
            assert bool(parameter.grad.abs().sum() > 0) == asked
    untrained.hf.zero_grad()


def test_a_linear_head_that_starts_at_zero_learns(untrained, cells, prompts):
    head = TimeHead("linear", hidden_size=32)
    result = run_module(untrained, head, cells, prompts[prompts.timelapse])
    result["loss"].backward()
    assert head.linear.weight.grad.abs().sum() > 0
    untrained.hf.zero_grad()


@pytest.fixture(params=HEADS)
def temporal(request, untrained, tmp_path):
    model = replace(untrained, time_head=HEADS[request.param](unit="hours", scale=1.7), cell_length=12)
    mt.models.save_model(model, tmp_path / "model", card={"stage": 2})
    return model, tmp_path / "model"


def test_save_and_load(temporal, cells, prompts):
    model, folder = temporal
    loaded = mt.load_model(folder)
    assert loaded.is_temporal
    assert loaded.cell_length == 12
    assert loaded.params["time_head"] == model.time_head.card
    for old, new in [(model.hf, loaded.hf), (model.time_head, loaded.time_head)]:
        old, new = old.state_dict(), new.state_dict()
        assert list(old) == list(new)
        assert all(torch.equal(old[name], new[name]) for name in old)
    written = write_prompts(prompts, cells, VOCAB, max_length=64, answer=False).sequences
    for before, after in zip(read_lapses(model, written), read_lapses(loaded, written), strict=True):
        np.testing.assert_array_equal(before, after)
    assert json.loads((folder / CARD).read_text())["stage"] == 2
    half = mt.load_model(folder, dtype="bfloat16")
    np.testing.assert_allclose(
        read_lapses(half, written)[0], read_lapses(model, written)[0], atol=0.5, rtol=0.1
    )


def test_exchanged_weights_are_refused(temporal):
    _, folder = temporal
    state = load_file(folder / WEIGHTS)
    state["model.norm.weight"] += 1e-3
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="was trained with other weights .* Restore the folder"):
        mt.load_model(folder)


def test_exchanged_vocabulary_is_refused(temporal):
    _, folder = temporal
    # As large, but the lapses mean something else.
    tokens = {token: number for token, number in VOCAB.tokens.items() if number < 24}
    other = mt.models.Vocabulary(tokens, VOCAB.medians).with_times(-4, 12)
    assert other.size == VOCAB.size
    with pytest.raises(ValueError, match="was trained with other vocabulary"):
        mt.load_model(folder, vocab=other)
    (folder / "token_dictionary.json").unlink()
    other.save(folder)
    with pytest.raises(ValueError, match="was trained with other vocabulary"):
        mt.load_model(folder)


@pytest.mark.parametrize("change", ["edited", "missing"])
def test_exchanged_head_is_refused(temporal, change):
    model, folder = temporal
    if model.time_head.kind == "expectation":
        assert not (folder / HEAD).exists()
        return
    if change == "missing":
        (folder / HEAD).unlink()
    else:
        save_file({"linear.weight": torch.ones(1, 32), "linear.bias": torch.zeros(1)}, folder / HEAD)
    with pytest.raises(
        ValueError, match=r"time_head\.safetensors is missing or not the time head of this model"
    ):
        mt.load_model(folder)


def test_a_model_without_temporal_training_reads_no_time(untrained, cells, prompts):
    written = write_prompts(prompts, cells, VOCAB, max_length=64, answer=False).sequences
    with pytest.raises(
        ValueError, match=r"'untrained' cannot tell time: it lacks temporal \(stage 2\) training"
    ):
        read_lapses(untrained, written)


def test_only_the_position_of_eoq_is_read(untrained, cells, prompts):
    """Padding and whatever follows `<eoq>` do not reach it."""
    model = replace(untrained, time_head=linear_head())
    written = write_prompts(prompts, cells, VOCAB, max_length=64, answer=False).sequences
    lapse, _ = read_lapses(model, written)
    assert isinstance(model.hf.lm_head, nn.Linear)
    assert len(np.unique(lapse)) == 9
    alone, _ = read_lapses(model, written, max_tokens=1)
    np.testing.assert_allclose(lapse, alone, atol=1e-4)
