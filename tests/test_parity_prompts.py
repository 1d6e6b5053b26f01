"""What the original makes of prompts, batches, losses and time heads (`data/parity.json`, and its own inputs where they are).

Each group is reproduced by the functions of this package that do its job;
where they differ on purpose, `DEVIATIONS` says how and why, and the group's test asserts it.
"""

import ast
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import maxtoki_toolkit as mt
from maxtoki_toolkit.models.prompts import Prompts, write_prompts
from maxtoki_toolkit.models.sequences import Sequences
from maxtoki_toolkit.models.time_head import TimeHead, expected_value
from maxtoki_toolkit.models.vocabulary import _as_time
from maxtoki_toolkit.pp._sampling import Sampler
from maxtoki_toolkit.train._cells import join
from maxtoki_toolkit.train._temporal_module import TemporalModule
from maxtoki_toolkit.train.corpus import IGNORED
from maxtoki_toolkit.train.prompt_stream import PromptCollator

DEVIATIONS = {
    "flatten": "",
    "timesteps": "",
    "compose_question": "",
    "clip_first_cell": "a cell always has its <eos>, so there is none to miss",
    "compose_example": "clipping cannot be switched off (it is counted); a time is in the table of the prompts",
    "collate_multitask": (
        "the ignored label is -100 and never a token; <eoq> -> <bos> and <bos> -> first gene are learned; a lapse is "
        "one token, and left out where it is read; answers are never cut off: a prompt that does not fit is an error; "
        "a question is never empty"
    ),
    "task_type": "the task is the prompt's own, and not guessed from its tokens",
    "loss_mask": "as mask_bos=False, and <eoq> -> <bos> is learned as well; one gene is an answer like any other",
    "find_eoq": "known from the lengths instead of searched for; a question is never empty",
    "find_eoq_batch": "every prompt has one, so none can be missed and no row can shift",
    "entity_position_ids": "no counterpart: the original never calls it",
    "regression_prompt": "lapses come from the cells' times, so they cannot be too many; ValueError for KeyError",
    "weighted_probs": "balance acts on the groups' shares of the cells, not on counts; no group without cells",
    "time_sampling_statistics": "",
    "regression_head": "the expectation is defined below a mass of 1e-9 as well; no most likely token is reported",
    "mixed_loss": "the tasks' weights are settings, 1 each by default, instead of 0.5 each",
    # In test_parity.py.
    "collate_pretrain": "the last gene is not trained to predict <pad>; the ignored label is -100",
    "numeric_maps": "",
    "released_vocabulary": "",
    "time_dictionary": "lapses come before the query marks, as in the authors' own dictionary; no collisions",
    "token_dict_key_conversion": "",
    "rank_genes": "",
    "tokenize_cell": "",
    "rank_value_encoding": "duplicates are summed, stored zeros are not ranked, an empty cell is an error",
}
MEGATRON = {"rope_llama3_scaling", "qkv_layout"}  # test_models_megatron.py
PERTURBATION = {  # test_parity_perturbation.py
    "knockout",
    "overexpress",
    "perturb_specs",
    "strip_wrap",
    "scoring_prompt",
    "score_logprob",
    "screen_dataset",
    "screen_predictions",
}
# Read from the development data alone: they need the published dictionaries, or the very inputs of the original's tests.
UNSHIPPED = {"clip_first_cell", "rank_value_encoding", "released_vocabulary"}


@pytest.fixture(scope="module")
def vocab(parity):
    """The dictionary of the original's tests, which all groups share."""
    return make_vocab(parity["compose_example"]["token_dictionary"])


def make_vocab(tokens):
    tokens = {_as_time(str(token)): number for token, number in tokens.items()}
    genes = [token for token in tokens if isinstance(token, str) and not token.startswith("<")]
    return mt.models.Vocabulary(tokens, dict.fromkeys(genes, 1.0))


def as_sequences(cells):
    return Sequences(
        np.array([token for cell in cells for token in cell], dtype=np.int32),
        np.cumsum([0, *(len(cell) for cell in cells)]),
    )


def as_prompts(*rows):
    """Prompts from (context rows, steps, query row, lapse, task)."""
    size = max(len(row[0]) for row in rows)
    return Prompts(
        np.array([[*row[0], *[-1] * (size - len(row[0]))] for row in rows]),
        np.array([row[2] for row in rows]),
        np.array([[*row[1], *[0] * (size - 1 - len(row[1]))] for row in rows], dtype=np.int64).reshape(
            len(rows), size - 1
        ),
        np.array([row[3] for row in rows]),
        np.array([row[4] == "time" for row in rows]),
    )


def parse(paragraph, vocab):
    """Cells of a paragraph, and its prompt; a question that is empty gets the lapse 1."""
    value = dict(zip(vocab.time_ids.tolist(), vocab.time_values.tolist(), strict=True))
    cells, lapses, cell = [], [], []
    for token in paragraph:
        cell.append(token)
        if token == vocab["<eos>"]:
            cells.append(cell)
            cell = []
        elif token in value:
            lapses.append(value[token])
            cell = []
        elif token in (vocab["<boq>"], vocab["<eoq>"]):
            cell = []
    answered = paragraph[paragraph.index(vocab["<eoq>"]) + 1] == vocab["<bos>"]
    lapse = lapses.pop() if lapses else 1
    context = list(range(len(cells) - 1))
    return cells, (context, lapses, len(cells) - 1, lapse, "cell" if answered else "time")


def written_tokens(cells, prompt, vocab, **settings):
    written = write_prompts(
        as_prompts(prompt), as_sequences(cells), vocab, **{"max_length": 4096, **settings}
    )
    return written.sequences.tokens.tolist()


def next_tokens(batch, row=0):
    """Position and next token of everything that is learned, of one prompt."""
    labels = batch["labels"][row]
    return {i: int(labels[i]) for i in range(len(labels)) if labels[i] != IGNORED}


def test_flatten(parity, vocab, tmp_path):
    first, second = parity["flatten"]["cases"]
    joined = join([as_sequences([part]) for part in first["input"]], tmp_path)
    assert joined.tokens.tolist() == first["expected"]
    nothing = as_prompts(([0], [], 0, 1, "time"))[np.arange(0)]
    written = write_prompts(nothing, as_sequences([[2, 3]]), vocab, max_length=10)
    assert written.sequences.tokens.tolist() == second["expected"] == second["input"]


def test_timesteps(parity):
    for case in parity["timesteps"]["cases"]:
        times = np.array(case["input"])
        query = np.arange(len(times)) == len(times) - 1
        size = len(times) - 1
        sampler = Sampler(
            np.zeros(len(times), int),
            times,
            contexts=~query,
            queries=query,
            context_size=(size, size),
            zero_lapse="anywhere",
        )
        drawn = sampler.draw(0, 200)
        same = (times[drawn.context] == times[:-1]).all(axis=1)
        assert same.any()
        for steps, lapse in zip(drawn.steps[same], drawn.lapse[same], strict=True):
            assert [*steps.tolist(), lapse] == case["expected"]


def test_compose_question(parity):
    (case,) = parity["compose_question"]["cases"]
    bos, gene, eos = case["input"]
    marks = {"<pad>": 0, "<mask>": 9, "<bos>": bos, "<eos>": eos, "GENE": gene, "0": 50}
    vocab = make_vocab(marks | {"<boq>": case["boq"], "<eoq>": case["eoq"]})
    tokens = written_tokens([case["input"]] * 2, ([0], [], 1, 0, "time"), vocab)
    assert tokens[3:-1] == case["expected"]


def test_clip_first_cell(parity):
    """As many tokens before the first `<eos>` go as are too many; what comes after the contexts differs."""
    first, second, third = parity["clip_first_cell"]["cases"]
    letters = {"<bos>": 1, "G2": 2, "G3": 3, "G4": 4, "G5": 5, "<boq>": 7, "<eos>": 99}
    vocab = make_vocab(letters | {"<pad>": 0, "<mask>": 6, "<eoq>": 8, "0": 50})
    cells, prompt = [[1, 2, 3, 4, 5, 99], [1, 2, 99]], ([0], [], 1, 0, "time")
    check_clipping(first, cells, prompt, vocab, same=5)

    names = {"<pad>": 0, "<mask>": 1, "<bos>": 2, "<eos>": 3, "<boq>": 4, "<eoq>": 5, "0": 50}
    vocab = make_vocab(names | {f"G{token}": token for token in (10, 11, 12, 13, 20)})
    cells, prompt = [[2, 10, 11, 12, 13, 3], [2, 20, 3]], ([0, 1], [0], 1, 0, "time")
    check_clipping(second, cells, prompt, vocab, same=8)

    assert third["eos"] not in third["prompt"]
    assert third["expected"]["error"] == "ValueError"
    lengths = as_sequences(cells).lengths
    assert all(written_tokens(cells, prompt, vocab)[n - 1] == vocab["<eos>"] for n in lengths[:1])


def check_clipping(case, cells, prompt, vocab, *, same):
    whole = written_tokens(cells, prompt, vocab)
    assert whole[: same + 2][: len(case["prompt"])] == case["prompt"][: same + 2]
    too_many = case["total_length"] - case["model_input_size"]
    clipped = written_tokens(cells, prompt, vocab, max_length=len(whole) - too_many)
    assert clipped[:same] == case["expected"]["value"][:same]
    assert clipped[same:] == whole[same + too_many :]


def test_compose_example(parity, vocab):
    cells = parity["compose_example"]["cells"]
    errors = []
    for case in parity["compose_example"]["cases"]:
        *context, query = case["cell_indices"]
        *steps, lapse = case["timesteps"]
        assert np.diff(case["time_choices"]).tolist() == case["timesteps"]
        prompts = as_prompts((context, steps, query, lapse, case["task"]))
        settings = {"max_length": case["model_input_size"]}
        if "error" in case["expected"]:
            errors.append(case["expected"]["error"])
            if case["clip_first_cell"]:
                with pytest.raises(ValueError, match="more than 17 tokens .* of which 1 can go"):
                    write_prompts(prompts, as_sequences(cells), vocab, **settings)
            else:
                assert write_prompts(prompts, as_sequences(cells), vocab, **settings).n_clipped.tolist() == [
                    1
                ]
            continue
        expected = case["expected"]["value"]
        both = write_prompts(prompts, as_sequences(cells), vocab, **settings)
        alone = write_prompts(prompts, as_sequences(cells), vocab, **settings, answer=False)
        tokens, prompt = both.sequences.tokens.tolist(), alone.sequences.tokens.tolist()
        response = tokens[len(prompt) :]
        if case["is_train"]:
            assert [tokens, len(response)] == expected
        else:
            boq = prompt.index(vocab["<boq>"])
            room = case["model_input_size"] - len(prompt)
            parts = [prompt, prompt[:boq], prompt[boq:], response, len(response), room]
            assert parts == expected[:6]
            assert case["time_choices"][-1] == expected[6]
    assert errors == ["ValueError", "ValueError"]


def test_collate_multitask(parity, vocab):
    empty, two_tokens, lapse, both, cut, alone, no_eoq = parity["collate_multitask"]["cases"]
    for case in (lapse, both):
        expected = case["expected"]["value"]
        cells, prompts = [], []
        for paragraph in case["batch"]:
            found, (context, steps, query, value, task) = parse(paragraph, vocab)
            prompts.append(([i + len(cells) for i in context], steps, query + len(cells), value, task))
            cells += found
        batch = PromptCollator(as_sequences(cells), vocab, max_length=100)(as_prompts(*prompts))
        assert set(batch) == {"input_ids", "eoq", "labels", "lapse", "lapse_token", "age"}  # no position ids
        for row, paragraph in enumerate(case["batch"]):
            eoq = paragraph.index(vocab["<eoq>"])
            mask, labels = expected["loss_mask"][row], expected["labels"][row]
            learned = {i: labels[i] for i in range(len(mask)) if mask[i]}
            tokens = batch["input_ids"][row].tolist()
            assert batch["eoq"][row] == eoq
            assert expected["position_ids"][row][: len(paragraph)] == list(range(len(paragraph)))
            if prompts[row][4] == "time":
                # The lapse is learned at `<eoq>`, by the head; its token is not written.
                assert learned == {eoq: int(batch["lapse_token"][row])}
                assert batch["lapse"][row] == prompts[row][3]
                assert next_tokens(batch, row) == {}
                assert tokens[: eoq + 1] == paragraph[:-1]
                assert set(tokens[eoq + 1 :]) <= {vocab["<pad>"]}
            else:
                assert tokens == paragraph
                added = {eoq: vocab["<bos>"], eoq + 1: paragraph[eoq + 2]}
                assert next_tokens(batch, row) == added | learned
                assert not set(added) & set(learned)
                assert torch.isnan(batch["lapse"][row])
            # There, 0 is the label of all else, and also a token.
            assert {labels[i] for i in range(len(mask)) if not mask[i]} == {vocab["<pad>"]}

    # An empty question: here it holds the lapse, so all moves by one.
    cells, prompt = parse(empty["batch"][0], vocab)
    batch = PromptCollator(as_sequences(cells), vocab, max_length=100)(as_prompts(prompt))
    expected = empty["expected"]["value"]
    learned = {i + 1: label for i, label in enumerate(expected["labels"][0]) if expected["loss_mask"][0][i]}
    assert learned.items() <= next_tokens(batch).items()

    # A lapse of two tokens, of which the second is learned from the first: here it is one token, read at `<eoq>`.
    (paragraph,) = two_tokens["batch"]
    (mask,) = two_tokens["expected"]["value"]["loss_mask"]
    assert mask.index(1.0) == paragraph.index(vocab["<eoq>"]) + 1
    cells = [[2, 4, 5, 3]]
    assert written_tokens(cells, ([0], [], 0, 3, "time"), vocab)[-2:] == [vocab["<eoq>"], vocab[3]]

    # Cut to 6 tokens, without answer and without anything to learn: here it is an error.
    assert sum(cut["expected"]["value"]["loss_mask"][0]) == 0
    cells, prompt = parse(cut["batch"][0], vocab)
    with pytest.raises(ValueError, match="have more than 6 tokens"):
        PromptCollator(as_sequences(cells), vocab, max_length=6)(as_prompts(prompt))

    # A prompt alone, which is an error there, is what is read here; and every prompt has its `<eoq>`.
    assert [case["expected"]["error"] for case in (alone, no_eoq)] == ["IndexError", "ValueError"]
    tokens = written_tokens([[2, 4, 3]], ([0], [], 0, 1, "time"), vocab, answer=False)
    assert tokens[-1] == vocab["<eoq>"]


def test_task_type(parity, vocab):
    """The token after `<eoq>` tells the original what the task is; here the prompt says it, answered or not."""
    lapse, gene, nothing = parity["task_type"]["cases"]
    assert lapse["expected"]["value"] == "TimeBetweenCells"
    assert [case["expected"]["error"] for case in (gene, nothing)] == ["ValueError", "IndexError"]
    cells = as_sequences([[2, 4, 3]])
    prompts = as_prompts(([0], [], 0, 5, "time"), ([0], [], 0, 5, "cell"))
    for answer in (True, False):
        written = write_prompts(prompts, cells, vocab, max_length=100, answer=answer)
        assert len(written.sequences.lengths) == 2
    batch = PromptCollator(cells, vocab, max_length=100)(prompts)
    assert batch["lapse"].isnan().tolist() == [False, True]


def test_loss_mask(parity, vocab):
    for case in parity["loss_mask"]["cases"]:
        cells, prompt = parse(case["seq"], vocab)
        assert prompt[4] == "cell"
        batch = PromptCollator(as_sequences(cells), vocab, max_length=100)(as_prompts(prompt))
        # The question holds the lapse here, so all moves by one.
        learned = [i - 1 for i in next_tokens(batch)]
        expected = [i for i, scored in enumerate(case["expected"]["value"]) if scored]
        assert expected[-1] == learned[-1]
        if not case["mask_bos"]:
            assert learned == [case["eoq"], *expected]
        else:
            assert learned == [case["eoq"], case["eoq"] + 1, *expected]


def test_find_eoq(parity, vocab):
    first, second = parity["find_eoq"]["cases"]
    assert second["seq"][second["expected"]["value"]] == vocab["<eoq>"]  # no paragraph
    cells, prompt = parse(first["seq"], vocab)
    written = write_prompts(as_prompts(prompt), as_sequences(cells), vocab, max_length=100)
    assert written.eoq.tolist() == [first["expected"]["value"] + 1]
    assert written.sequences.tokens[written.eoq] == first["eoq_token"]


def test_find_eoq_batch(parity, vocab):
    several, missing = parity["find_eoq_batch"]["cases"]
    assert several["expected"]["error"] == "ValueError"
    assert len(missing["expected"]["value"]) < len(missing["tokens"])
    cells = as_sequences([[2, 4, 3], [2, 5, 6, 3], [2, 3]])
    prompts = as_prompts(([0], [], 2, 5, "time"), ([1, 0], [3], 2, 5, "cell"), ([2], [], 1, 0, "cell"))
    written = write_prompts(prompts, cells, vocab, max_length=100)
    assert (written.sequences.tokens[written.sequences.indptr[:-1] + written.eoq] == vocab["<eoq>"]).all()
    assert (written.sequences.tokens == vocab["<eoq>"]).sum() == len(written.eoq) == 3


def test_entity_position_ids(parity):
    """The original never uses these, and neither the batches nor the models here have position ids of their own."""
    (case,) = parity["entity_position_ids"]["cases"]
    assert case["expected"]["value"] != list(range(len(case["seq"])))
    assert "UNUSED" in parity["entity_position_ids"]["description"]


def test_regression_prompt(parity, vocab):
    first, too_many, unknown = parity["regression_prompt"]["cases"]
    given = first["input"]
    cells = [[2, *genes, 3] for genes in [*given["context_cells"], given["question_cell"]]]
    prompt = ([0, 1, 2], given["context_timesteps"], 3, given["time_placeholder"], "time")
    assert written_tokens(cells, prompt, vocab) == first["expected"]["value"]
    # Without the number that the original needs at the end and does not read.
    assert written_tokens(cells, prompt, vocab, answer=False) == first["expected"]["value"][:-1]

    assert too_many["expected"]["error"] == "ValueError"
    assert as_prompts(prompt).steps.shape == (1, len(given["context_cells"]) - 1)
    assert unknown["expected"]["error"] == "KeyError"
    lapse = unknown["input"]["time_placeholder"]
    with pytest.raises(ValueError, match=rf"1 lapses have no token \(the first: {lapse}\)"):
        written_tokens(cells, ([0], [], 3, lapse, "time"), vocab)


def group_shares(counts, balance):
    """How often each group is drawn; its cells are at two times."""
    group = np.repeat(np.arange(len(counts)), counts)
    time = np.arange(len(group)) % 2
    everything = np.ones(len(group), dtype=bool)
    sampler = Sampler(
        group, time, contexts=everything, queries=everything, context_size=(1, 1), balance=balance
    )
    drawn = group[sampler.draw(0, 50_000).query]
    return np.bincount(drawn, minlength=len(counts)) / len(drawn)


def test_weighted_probs(parity):
    mixed, equal, empty = parity["weighted_probs"]["cases"]
    np.testing.assert_allclose(group_shares(equal["counts"], 1.0), equal["expected"], atol=0.01)
    # A tenth of the way from 90:10 to 50:50 is 86:14; the original hardly moves.
    assert mixed["balance"] == 0.1
    np.testing.assert_allclose(mixed["expected"], [0.9, 0.1], atol=0.001)
    np.testing.assert_allclose(group_shares(mixed["counts"], 0.1), [0.86, 0.14], atol=0.01)
    np.testing.assert_allclose(group_shares([9000, 1000], 0.1), [0.86, 0.14], atol=0.01)
    # The original draws from a group without cells.
    assert empty["counts"][2] == 0
    assert empty["expected"][2] > 0
    shares = group_shares([10 * n for n in empty["counts"]], empty["balance"])
    np.testing.assert_allclose(shares, [0.625, 0.375, 0], atol=0.01)


@pytest.mark.parametrize("number", range(5))
def test_time_sampling_statistics(parity, number):
    """The cases are frequencies over 2,000 draws; ours are over 20,000."""
    case = parity["time_sampling_statistics"]["cases"][number]
    mode = {"none": "never", "question": "query", "context_and_question": "anywhere"}[case["allow_zero"]]
    time = np.repeat(case["times"], 50)
    everything = np.ones(len(time), dtype=bool)
    size = case["n_timepoints"] - 1
    sampler = Sampler(
        np.zeros(len(time), int),
        time,
        contexts=everything,
        queries=everything,
        # A group with fewer times gives shorter prompts, in both.
        context_size=(min(size, len(case["times"])), size),
        zero_lapse=mode,
        forward=not case["allow_negative"],
    )
    drawn = sampler.draw(0, 20_000)
    n_context = drawn.context_size
    context = time[drawn.context[:, : n_context[0]]]
    assert np.unique(n_context + 1).tolist() == case["length"]
    ordered = np.sort(context, axis=1)
    assert (np.diff(ordered, axis=1) > 0).all() == case["context_unique"]
    assert (context == ordered).all() == case["context_sorted_always"]
    assert (np.diff(context, axis=1) < 0).any() == case["any_negative_context_step"]
    query, last = time[drawn.query], context[:, -1]
    found = {
        "question_in_context_fraction": (context == query[:, None]).any(axis=1).mean(),
        "zero_last_lapse_fraction": (query == last).mean(),
        "negative_last_lapse_fraction": (query < last).mean(),
    }
    for name, share in found.items():
        error = np.sqrt(share * (1 - share) / 2000)
        assert abs(share - case[name]) <= 3.5 * error, name


class Given(nn.Module):
    """Stands for a model: its hidden states are what it is given, and its logits are these."""

    def __init__(self, states):
        super().__init__()
        self.states = states

    def get_decoder(self):
        return lambda **_: SimpleNamespace(last_hidden_state=self.states)

    def get_output_embeddings(self):
        return nn.Identity()


def test_regression_head(parity):
    (case,) = parity["regression_head"]["cases"]
    values = np.array(case["vocab_values"], int)
    numeric = np.array(case["numeric_mask"], bool)
    # Two more marks than the eight tokens of the case, without probability.
    others = ["<pad>", "<mask>", "<bos>", "<eos>"]
    tokens = {others.pop(0) if not is_time else str(values[i]): i for i, is_time in enumerate(numeric)}
    vocab = make_vocab(tokens | {"<boq>": 8, "<eoq>": 9})
    logits = torch.cat([torch.tensor(case["logits"]), torch.full((3, 2), -torch.inf)], dim=1)
    expected, p_non_numeric = expected_value(logits, vocab)
    np.testing.assert_allclose(expected[:2], case["expected_value"][:2], rtol=1e-5)
    np.testing.assert_allclose(p_non_numeric, case["non_numeric_mass"], rtol=1e-6)
    # All time tokens are equally likely in the third, however little: their mean. The original returns 0.
    assert case["expected_value"][2] == 0
    assert expected[2] == pytest.approx(-0.5)

    lapses = torch.tensor(case["label_values"])
    for row in case["losses"]:
        # What the original calls label_scalar is both scales here.
        scale, penalty = row["label_scalar"], row["additive_penalty"]
        module = TemporalModule(
            Given(logits[:, None]),
            TimeHead("expectation", scale=scale),
            vocab,
            loss_scale=scale,
            penalty=penalty,
            weights=(1.0, 1.0),
        )
        for i in range(3):
            module.hf.states = logits[i][None, None]
            result = module(
                torch.zeros(1, 1, dtype=torch.long),
                torch.zeros(1, dtype=torch.long),
                torch.full((1, 1), IGNORED),
                lapses[[i]],
                torch.zeros(1, dtype=torch.long),
            )
            if i < 2:
                assert result["loss"].item() == pytest.approx(row["per_token_loss"][i], rel=1e-5)
                assert result["predicted"].item() == pytest.approx(row["regression_preds"][i], rel=1e-5)
            else:
                assert result["loss"].item() == pytest.approx(
                    row["per_token_loss"][i] + (0.5 - 0 / scale) ** 2
                )
    assert set(result) == {"loss", "predicted", "cell_loss"}


def mixed_batch(case, vocab, *, mse):
    """States whose losses are those of the case."""
    gene, other, zero = vocab["GENE0"], vocab["GENE1"], vocab[0]
    entropy = torch.tensor(case["ce_per_token"])
    squared = torch.tensor(case["mse_per_token"])
    states = torch.full((*entropy.shape, vocab.size), -torch.inf)
    labels = torch.full(entropy.shape, IGNORED)
    eoq = torch.zeros(len(entropy), dtype=torch.long)
    lapse = torch.full((len(entropy),), torch.nan)
    for row, (mask, task) in enumerate(zip(case["loss_mask"], case["task"], strict=True)):
        for i in np.flatnonzero(mask):
            right = gene if task == "NextCell" else zero
            states[row, i, right] = 0
            if task == "NextCell":
                labels[row, i] = gene
            else:
                eoq[row], lapse[row] = int(i), squared[row, i].sqrt()
            if task == "NextCell" or not mse:
                states[row, i, other] = torch.log(torch.expm1(entropy[row, i]))
    lapse_token = torch.full((len(entropy),), zero)
    return states, (torch.zeros_like(labels), eoq, labels, lapse, lapse_token)


@pytest.mark.parametrize("mode", ["mse", "ce"])
def test_mixed_loss(parity, vocab, mode):
    for case in parity["mixed_loss"]["cases"]:
        states, batch = mixed_batch(case, vocab, mse=mode == "mse")

        def loss(weights, states=states, batch=batch):
            head = TimeHead("expectation", loss=mode)
            settings = {"loss_scale": 1.0, "penalty": 0.0, "weights": weights}
            return TemporalModule(Given(states), head, vocab, **settings)(*batch)["loss"].item()

        ratio = case[f"{mode}_mode"]["ratio"]
        assert loss((0.5, 0.5)) == pytest.approx(ratio, rel=1e-5)
        # A batch of one task has its whole loss by default, and half of it in the original.
        assert loss((1.0, 1.0)) == pytest.approx(2 * ratio, rel=1e-5)
        only = {"TimeBetweenCells": (1.0, 0.0), "NextCell": (0.0, 1.0)}
        parts = [loss(only[task]) for task in case["task"]]
        assert sum(parts) / 2 == pytest.approx(ratio, rel=1e-5)


def test_every_group_is_accounted_for(parity):
    """A group is tested where a test names it; others are listed with their file."""
    named = set()
    for name in ("test_parity.py", "test_parity_prompts.py"):
        tree = ast.parse((Path(__file__).parent / name).read_text())
        for function in tree.body:
            if isinstance(function, ast.FunctionDef):
                named |= {node.value for node in ast.walk(function) if isinstance(node, ast.Constant)}
    assert named & (set(parity) | UNSHIPPED) == set(DEVIATIONS)
    assert set(parity) | UNSHIPPED == set(DEVIATIONS) | MEGATRON | PERTURBATION
