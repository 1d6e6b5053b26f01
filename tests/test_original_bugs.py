"""Each known defect of the original that concerns prompts, batches, time heads and vocabularies, one a test.

A docstring says what the original does. Defects of perturbation, generation and conversion are tested with those parts.
"""

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

import maxtoki_toolkit as mt
from maxtoki_toolkit.models.prompts import Prompts, write_prompts
from maxtoki_toolkit.models.sequences import Sequences
from maxtoki_toolkit.models.time_head import TimeHead, expected_value
from maxtoki_toolkit.models.timelapse import read_lapses
from maxtoki_toolkit.pp._sampling import Sampler
from maxtoki_toolkit.pp.sample_prompts import read_prompts
from maxtoki_toolkit.train._temporal_module import TemporalModule
from maxtoki_toolkit.train.corpus import IGNORED, Example, NextGeneCollator
from maxtoki_toolkit.train.prompt_stream import PromptCollator

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GENES = [f"ENSG{i:011d}" for i in range(12)]


@pytest.fixture(scope="module")
def base():
    tokens = ["<pad>", "<mask>", "<bos>", "<eos>", *GENES]
    return mt.models.Vocabulary({t: i for i, t in enumerate(tokens)}, dict.fromkeys(GENES, 1.0))


@pytest.fixture(scope="module")
def vocab(base):
    return base.with_times(-30, 30)


@pytest.fixture(scope="module")
def model(vocab):
    return mt.models.build_model(SHAPE, vocab)


def temporal(model, **settings):
    return mt.models.MaxTokiModel(
        model.hf, model.vocab, name="tiny", time_head=TimeHead("expectation", **settings)
    )


@pytest.fixture(scope="module")
def cells():
    """Cells of 0 to 5 genes."""
    rng = np.random.default_rng(0)
    rows = [[2, *(4 + rng.permutation(12)[:n]), 3] for n in (0, 1, 2, 3, 4, 5)]
    return Sequences.of(rows)


def make_prompts(n, *, timelapse=True, seed=0):
    rng = np.random.default_rng(seed)
    rows = np.array([rng.permutation(6)[:3] for _ in range(n)])
    steps, lapse = rng.integers(-30, 31, (n, 1)), rng.integers(-30, 31, n)
    return Prompts(rows[:, :2], rows[:, 2], steps, lapse, np.full(n, timelapse))


@pytest.fixture
def adata():
    rng = np.random.default_rng(1)
    obs = pd.DataFrame(
        {
            "age": np.repeat([10, 20, 35, 60], 15),
            "cell_type": rng.choice(["B", "T"], 60),
            "donor": np.repeat([f"d{i}" for i in range(12)], 5),
        },
        index=[f"c{i}" for i in range(60)],
    )
    return AnnData(np.zeros((60, 1), np.float32), obs=obs)


def test_prompts_can_be_written(adata, tmp_path):
    """No blueprint can be written, for it holds NumPy arrays, and a broken JSON file is left."""
    mt.pp.sample_prompts(adata, time_key="age", groupby="cell_type", n_prompts=20)
    adata.write_h5ad(tmp_path / "prompts.h5ad")
    table = anndata.read_h5ad(tmp_path / "prompts.h5ad").uns["prompts"]["prompts"]
    pd.testing.assert_frame_equal(table, adata.uns["prompts"]["prompts"], check_dtype=False)


def test_a_prompt_that_ends_at_eoq_is_read(model, cells, vocab):
    """A prompt that ends at `<eoq>` raises IndexError; users append a number, which is never read."""
    prompts = make_prompts(8)
    written = write_prompts(prompts, cells, vocab, max_length=64, answer=False).sequences
    assert (written.tokens[written.indptr[1:] - 1] == vocab["<eoq>"]).all()
    lapse, _ = read_lapses(temporal(model), written)
    assert np.isfinite(lapse).all()
    other = prompts._replace(lapse=prompts.lapse[::-1].copy())
    again = write_prompts(other, cells, vocab, max_length=64, answer=False).sequences
    np.testing.assert_array_equal(again.tokens, written.tokens)


def test_a_vocabulary_without_times(base, cells):
    """The base dictionary with prompts raises `KeyError: '<eoq>'`; here the message says what is missing."""
    with pytest.raises(
        ValueError, match="has no time tokens: it is that of a model without temporal training"
    ):
        write_prompts(make_prompts(2), cells, base, max_length=64)


def test_times_are_added_once(vocab):
    """Adding lapses to a dictionary that has them gives one id to several tokens."""
    with pytest.raises(ValueError, match="has time tokens already"):
        vocab.with_times(-1, 1)
    with pytest.raises(ValueError, match="one id to several tokens"):
        mt.models.Vocabulary({**vocab.tokens, "<boq>": vocab[0]}, vocab.medians)


def one_loss(model, cells, vocab, prompts, *, loss="mse", scale=1.0, **settings):
    module = TemporalModule(
        model.hf,
        TimeHead("expectation", scale=scale, loss=loss),
        vocab,
        **{"loss_scale": 1.0, "penalty": 0.0, "weights": (1.0, 1.0), **settings},
    )
    with torch.no_grad():
        return module(**PromptCollator(cells, vocab, max_length=64)(prompts))


def test_scale_and_penalty_are_used_and_stored(model, cells, vocab, tmp_path):
    """The scale and the penalty that are set do nothing, and what was trained with "ce" is read times 200."""
    prompts = make_prompts(4)
    plain = one_loss(model, cells, vocab, prompts)
    lapse = torch.from_numpy(prompts.lapse).float()
    assert plain["loss"].item() == pytest.approx(((plain["predicted"] - lapse) ** 2).mean().item(), rel=1e-5)
    divided = one_loss(model, cells, vocab, prompts, loss_scale=10.0)
    assert divided["loss"].item() == pytest.approx(plain["loss"].item() / 100, rel=1e-5)
    tripled = one_loss(model, cells, vocab, prompts, scale=3.0)["predicted"]
    torch.testing.assert_close(tripled, 3 * plain["predicted"])
    assert one_loss(model, cells, vocab, prompts, penalty=7.0)["loss"] > plain["loss"]

    trained = temporal(model, loss="ce", unit="hours")
    mt.models.save_model(trained, tmp_path / "model")
    loaded = mt.load_model(tmp_path / "model")
    assert loaded.time_head.card == {"kind": "expectation", "unit": "hours", "scale": 1.0, "loss": "ce"}
    written = write_prompts(prompts, cells, vocab, max_length=64, answer=False).sequences
    np.testing.assert_allclose(read_lapses(loaded, written)[0], plain["predicted"], rtol=1e-5)


def test_positions_are_stretched_as_in_training(base, tmp_path):
    """Predictions are made with a RoPE factor of 8, whatever the model was trained with."""
    longer = mt.models.extend_model(
        mt.models.build_model(SHAPE, base), base.with_times(-1, 1), max_length=192
    )
    mt.models.save_model(longer, tmp_path / "model")
    loaded = mt.load_model(tmp_path / "model")
    assert loaded.hf.config.rope_parameters["factor"] == 3
    torch.testing.assert_close(loaded.hf.model.rotary_emb.inv_freq, longer.hf.model.rotary_emb.inv_freq)


def test_the_first_tokens_of_an_answer_are_learned(cells, vocab):
    """`<eoq>` -> `<bos>` and `<bos>` -> first gene are never trained, though generation starts there."""
    prompts = make_prompts(20, timelapse=False)
    batch = PromptCollator(cells, vocab, max_length=64)(prompts)
    for row, query in enumerate(prompts.query):
        eoq = int(batch["eoq"][row])
        answer = cells.tokens[cells.indptr[query] : cells.indptr[query + 1]].tolist()
        assert batch["labels"][row, eoq : eoq + len(answer)].tolist() == answer
        assert (batch["labels"][row] != IGNORED).sum() == len(answer)


def test_a_prompt_that_does_not_fit_keeps_its_answer(cells, vocab):
    """Prompts that are too long are cut on the right: the answer is lost and nothing is learned."""
    prompts = Prompts(*(np.array(field) for field in ([[5, 4]], [3], [[1]], [2], [False])))
    whole = write_prompts(prompts, cells, vocab, max_length=64).sequences.tokens.tolist()
    clipped = write_prompts(prompts, cells, vocab, max_length=len(whole) - 3)
    assert clipped.n_clipped.tolist() == [3]
    assert clipped.sequences.tokens.tolist() == whole[:3] + whole[6:]
    with pytest.raises(ValueError, match="Use fewer context cells, or a model that reads more tokens"):
        PromptCollator(cells, vocab, max_length=len(whole) - 4)(prompts)


def test_a_cell_of_one_gene_is_a_cell(model, cells, vocab):
    """An answer of one gene is taken for a lapse (as whatever has one learned token or none)."""
    for row in (0, 1):
        prompts = Prompts(*(np.array(field) for field in ([[5, 4]], [row], [[1]], [2], [False])))
        batch = PromptCollator(cells, vocab, max_length=64)(prompts)
        assert (batch["labels"] != IGNORED).sum() == 2 + row
        assert batch["lapse"].isnan().all()
        result = one_loss(model, cells, vocab, prompts, weights=(1000.0, 1.0))
        assert result["loss"] == result["cell_loss"][0] > 0


def test_balance_acts_on_shares():
    """Balance mixes counts of cells with shares, so it does next to nothing unless it is 1."""

    def share(counts, balance):
        group = np.repeat([0, 1], counts)
        time = np.arange(len(group)) % 2
        both = np.ones(len(group), bool)
        sampler = Sampler(group, time, contexts=both, queries=both, context_size=(1, 1), balance=balance)
        return (group[sampler.draw(0, 20_000).query] == 1).mean()

    assert share([900, 100], 0.0) == pytest.approx(0.1, abs=0.01)
    assert share([900, 100], 0.5) == pytest.approx(0.3, abs=0.015)
    assert share([90_000, 10_000], 0.5) == pytest.approx(0.3, abs=0.015)
    assert share([900, 100], 1.0) == pytest.approx(0.5, abs=0.015)


def test_prompts_know_their_cells_by_name(adata):
    """A blueprint made by data set is filled from the data sets in a row. It holds rows of a filtered table.

    Both give wrong cells without a word. Here cells are found by name, and missed where they are gone.
    """
    mt.pp.sample_prompts(adata, time_key="age", groupby="cell_type", n_prompts=30)
    table = adata.uns["prompts"]["prompts"]
    prompts = read_prompts(table, adata, adata)
    shuffled = adata[np.random.default_rng(2).permutation(60)].copy()
    moved = read_prompts(table, shuffled, shuffled)
    assert not np.array_equal(moved.query, prompts.query)
    assert (adata.obs_names[prompts.query] == shuffled.obs_names[moved.query]).all()
    ages = shuffled.obs["age"].to_numpy()
    last = moved.context[np.arange(30), moved.context_size - 1]
    assert (ages[moved.query] - ages[last] == moved.lapse).all()
    gone = adata[adata.obs_names != table["query"].iloc[0]].copy()
    with pytest.raises(KeyError, match="are not in the AnnData"):
        read_prompts(table, gone, gone)


def test_no_cell_is_context_and_query():
    """A cell can be context and query of one prompt, which is then copied; donors are not held out."""
    time = np.array([1, 1, 2, 2, 3])
    both = np.ones(5, bool)
    for mode in ("query", "anywhere"):
        sampler = Sampler(np.zeros(5, int), time, contexts=both, queries=both, zero_lapse=mode)
        drawn = sampler.draw(0, 5000)
        assert (time[drawn.context] == time[drawn.query][:, None]).any()
        assert (drawn.context != drawn.query[:, None]).all()


def test_donors_are_held_out(adata):
    """Donors are not held out; here prompts keep to one side."""
    mt.pp.hold_out(adata, donor_key="donor", donors=0.5)
    sets = [set(adata.obs.loc[adata.obs[side], "donor"]) for side in ("train", "held_out_donors")]
    assert not sets[0] & sets[1]
    mt.pp.sample_prompts(
        adata, time_key="age", groupby=[], queries="held_out_donors", contexts="train", n_prompts=50
    )
    drawn = read_prompts(adata.uns["prompts"]["prompts"], adata, adata)
    assert adata.obs["train"].to_numpy()[drawn.context[drawn.context >= 0]].all()
    assert adata.obs["held_out_donors"].to_numpy()[drawn.query].all()


def test_predictions_come_in_the_order_of_the_prompts(model, cells, vocab):
    """A row without `<eoq>` shifts all that follow, and files of predictions are put in alphabetical order."""
    written = write_prompts(make_prompts(25), cells, vocab, max_length=64, answer=False).sequences
    together, _ = read_lapses(temporal(model), written, max_tokens=60)
    for i in range(25):
        tokens = written.tokens[written.indptr[i] : written.indptr[i + 1]]
        alone, _ = read_lapses(temporal(model), Sequences(tokens, np.array([0, len(tokens)])))
        assert together[i] == pytest.approx(alone[0], abs=1e-4)


def test_there_are_no_padded_columns(model, vocab):
    """Embeddings are padded to a multiple of 128, and the columns without a token count as non-numeric."""
    logits = torch.zeros(1, vocab.size)
    _, p_non_numeric = expected_value(logits, vocab)
    assert p_non_numeric.item() == pytest.approx(1 - len(vocab.time_ids) / vocab.size)
    with pytest.raises(ValueError, match="They were not made for each other"):
        mt.models.MaxTokiModel(model.hf, vocab_with_gap(vocab), name="padded")


def vocab_with_gap(vocab):
    return mt.models.Vocabulary({**vocab.tokens, "<eoq>": vocab.size + 5}, vocab.medians)


def test_predictions_are_lapses_one_a_prompt(model, cells, vocab):
    """Mean predictions are divided by all positions, and "time tokens" are ids, joined along a wrong axis."""
    written = write_prompts(make_prompts(7), cells, vocab, max_length=64, answer=False).sequences
    lapse, p_non_numeric = read_lapses(temporal(model), written)
    assert lapse.shape == p_non_numeric.shape == (7,)
    assert (np.abs(lapse) <= 30).all()
    prompts = make_prompts(7)._replace(timelapse=np.arange(7) < 3)
    predicted = one_loss(model, cells, vocab, prompts)["predicted"]
    assert predicted.isnan().tolist() == [False] * 3 + [True] * 4


def test_pad_is_never_a_label(cells, vocab):
    """0 is the label that is ignored, and also what the last gene is trained to predict."""
    prompts = make_prompts(20)._replace(timelapse=np.arange(20) % 2 == 0)
    labels = PromptCollator(cells, vocab, max_length=64)(prompts)["labels"]
    assert vocab["<pad>"] not in labels
    assert IGNORED in labels
    examples = [Example(cells.tokens[a:b], 0.0) for a, b in zip(cells.indptr, cells.indptr[1:], strict=False)]
    labels = NextGeneCollator(0, 10)(examples)["labels"]
    assert 0 not in labels
    assert (labels != IGNORED).sum() == len(cells.tokens) - len(examples)


def test_ids_need_not_be_in_order(base):
    """The number of tokens is taken for the next id and for the size of the embedding."""
    shuffled = {token: 3 * number + 1 for token, number in reversed(base.tokens.items())}
    vocab = mt.models.Vocabulary(shuffled, base.medians)
    times = vocab.with_times(-2, 2)
    assert vocab.size == max(shuffled.values()) + 1 > len(shuffled)
    assert times.time_ids.tolist() == list(range(vocab.size, vocab.size + 5))
    assert len(set(times.tokens.values())) == len(times.tokens)
    longer = mt.models.extend_model(mt.models.build_model(SHAPE, vocab), times, max_length=64)
    assert longer.hf.get_input_embeddings().num_embeddings == times.size


def test_tasks_depend_on_the_seed_alone(adata):
    """The task of a prompt is drawn from a global generator when it is written, and not recorded."""
    group, time = np.zeros(60, int), adata.obs["age"].to_numpy()
    both = np.ones(60, bool)

    def draw():
        sampler = Sampler(group, time, contexts=both, queries=both, timelapse=0.5, seed=3)
        return sampler.draw(0, 2000).timelapse

    first = draw()
    np.random.seed(99)  # noqa: NPY002
    np.testing.assert_array_equal(draw(), first)
    assert first.mean() == pytest.approx(0.5, abs=0.05)
    mt.pp.sample_prompts(adata, time_key="age", groupby=[], task="cell", n_prompts=5)
    assert adata.uns["prompts"]["params"]["task"] == "cell"
