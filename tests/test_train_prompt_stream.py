"""The stream of training prompts, and what of a prompt is learned."""

import tracemalloc

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import maxtoki_toolkit as mt
from maxtoki_toolkit.models.prompts import Prompts, write_prompts
from maxtoki_toolkit.models.sequences import Sequences
from maxtoki_toolkit.pp._sampling import Sampler
from maxtoki_toolkit.train.corpus import IGNORED
from maxtoki_toolkit.train.prompt_stream import _WINDOW, PromptCollator, PromptStream, Stage

GENES = [f"ENSG{i:011d}" for i in range(50)]
TOKENS = ["<pad>", "<mask>", "<bos>", "<eos>", *GENES]
VOCAB = mt.models.Vocabulary({t: i for i, t in enumerate(TOKENS)}, dict.fromkeys(GENES, 1.0)).with_times(
    -9, 9
)
N = 200


@pytest.fixture(scope="module")
def cells():
    rng = np.random.default_rng(0)
    rows = [[2, *(4 + rng.permutation(50)[: rng.integers(0, 50)]), 3] for _ in range(N)]
    return Sequences.of(rows)


def sampler(seed=0, **settings):
    everything = np.ones(N, bool)
    settings = {"timelapse": 0.5, **settings}
    return Sampler(
        np.arange(N) % 3, np.arange(N) % 7, contexts=everything, queries=everything, seed=seed, **settings
    )


def make_stream(cells, seed=0, *, batch_size=4, sizes=(40, 1000)):
    """A stage of single contexts, and one of two or three."""
    kinds = [sampler(seed, context_size=(1, 1), timelapse=1.0), sampler(seed)]
    return PromptStream(
        cells, [Stage(n, kind) for n, kind in zip(sizes, kinds, strict=True)], batch_size=batch_size
    )


def as_rows(prompts, width=3):
    """Prompts as tuples, so that they can be compared whatever their widest context."""
    rows = zip(*(field.tolist() for field in tuple(prompts)), strict=True)
    return [
        (tuple(c) + (-1,) * (width - len(c)), q, tuple(s) + (0,) * (width - 1 - len(s)), lapse, task)
        for c, q, s, lapse, task in rows
    ]


def read(stream, batch_size=4):
    n = len(stream)
    return [
        row
        for i in range(0, n, batch_size)
        for row in as_rows(stream.__getitems__(list(range(i, min(i + batch_size, n)))))
    ]


def test_every_prompt_is_seen_once(cells):
    stream = make_stream(cells)
    assert len(stream) == 1040
    rows = read(stream)
    for part, stage in [(rows[:40], stream.stages[0]), (rows[40:], stream.stages[1])]:
        assert sorted(part) == sorted(as_rows(stage.sampler.draw(0, stage.n_prompts)))
    assert rows[40:] != as_rows(stream.stages[1].sampler.draw(0, 1000))


def test_the_order_depends_on_the_seed_alone(cells):
    rows = read(make_stream(cells))
    assert read(make_stream(cells)) == rows
    assert sorted(read(make_stream(cells, seed=1))) != sorted(rows)
    # Not on what was read before, nor (but for the last window) on how many prompts follow.
    stream = make_stream(cells, sizes=(40, 4 * _WINDOW * 30))
    for i in (900, 44, 500, 3, 38):
        assert as_rows(stream.__getitems__([i])) == [rows[i]]


@pytest.mark.parametrize("indices", [[0, 1, 2, 3], [38, 39, 40, 41], [7], [900, 3, 170, 41], [1039, 0]])
def test_a_batch_is_its_items(cells, indices):
    stream = make_stream(cells)
    together = stream.__getitems__(indices)
    assert [as_rows(make_stream(cells).__getitems__([i]))[0] for i in indices] == as_rows(together)
    for field, shape in zip(tuple(together), [(-1,), (), (-1,), (), ()], strict=True):
        assert len(field) == len(indices)
        assert field.ndim == 1 + len(shape)
    assert together.steps.shape[1] == together.context.shape[1] - 1


def test_each_cell_carries_its_own_time(cells):
    """The age of a cell stands at its `<eos>`, in prompts of both tasks, and nowhere else."""
    age = np.arange(len(cells.lengths)) * 10.0
    prompts = make_stream(cells).__getitems__(list(range(40)))
    batch = PromptCollator(cells, VOCAB, max_length=300, age=age)(prompts)
    assert torch.equal(~batch["age"].isnan(), batch["input_ids"] == VOCAB["<eos>"])
    for i in range(40):
        cells_of = [*prompts.context[i][prompts.context[i] >= 0], prompts.query[i]]
        assert batch["age"][i][~batch["age"][i].isnan()].tolist() == age[cells_of].tolist()
    assert PromptCollator(cells, VOCAB, max_length=300)(prompts)["age"].isnan().all()


def prompt_lengths(stream, rows):
    lengths = stream.cells.lengths
    return np.array([sum(lengths[c] for c in row[0] if c >= 0) + lengths[row[1]] for row in rows])


def padding(lengths, batch_size):
    batches = lengths[: len(lengths) // batch_size * batch_size].reshape(-1, batch_size)
    return 1 - batches.sum() / (batches.max(axis=1) * batch_size).sum()


@pytest.mark.parametrize("batch_size", [4, 16])
def test_prompts_of_a_batch_are_of_similar_length(cells, batch_size):
    n = 2 * _WINDOW * batch_size
    stream = make_stream(cells, batch_size=batch_size, sizes=(0, n))
    lengths = prompt_lengths(stream, read(stream, batch_size))
    unsorted = prompt_lengths(stream, as_rows(stream.stages[1].sampler.draw(0, n)))
    assert padding(lengths, batch_size) < 0.05 < 0.2 < padding(unsorted, batch_size)
    # The batches themselves come in random order: no run from short to long.
    means = lengths.reshape(-1, batch_size).mean(axis=1)[:_WINDOW]
    assert abs(np.corrcoef(means, np.arange(_WINDOW))[0, 1]) < 0.5
    assert np.corrcoef(np.sort(means), np.arange(_WINDOW))[0, 1] > 0.9


def test_it_works_in_a_loader(cells):
    stream = make_stream(cells)
    collator = PromptCollator(cells, VOCAB, max_length=300)
    loader = DataLoader(stream, batch_size=4, collate_fn=collator)
    batches = list(loader)
    assert len(batches) == 260
    expected = [row[3] if row[4] else np.nan for row in read(stream)]
    np.testing.assert_array_equal(torch.cat([batch["lapse"] for batch in batches]), expected)


def test_prompts_are_not_kept(cells):
    """A thousand million prompts: nothing is drawn before it is read, and one window is held."""
    tracemalloc.start()
    stream = make_stream(cells, batch_size=8, sizes=(4, 10**9))
    assert len(stream) == 10**9 + 4
    for start in [*range(0, 1200, 8), 10**9 - 8]:
        stream.__getitems__(list(range(start, start + 8)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000
    assert len(stream._window[1].query) == _WINDOW * 8


def one_prompt(cells, prompts, i):
    """Tokens up to `<eoq>` and the answer, of one prompt."""
    one = prompts[np.array([i])]
    parts = [
        write_prompts(one, cells, VOCAB, max_length=300, answer=answer).sequences.tokens.tolist()
        for answer in (False, True)
    ]
    return parts[0], parts[1][len(parts[0]) :]


@pytest.mark.parametrize("timelapse", [0.0, 0.5, 1.0])
def test_labels(cells, timelapse):
    """Of a cell, each of its tokens is learned from the one before; of a lapse, none, and it is not written."""
    prompts = sampler(timelapse=timelapse).draw(0, 64)
    batch = PromptCollator(cells, VOCAB, max_length=300)(prompts)
    width = batch["input_ids"].shape[1]
    longest = 0
    for i, asked in enumerate(prompts.timelapse):
        prompt, answer = one_prompt(cells, prompts, i)
        tokens = prompt if asked else prompt + answer
        longest = max(longest, len(tokens))
        padded = tokens + [VOCAB["<pad>"]] * (width - len(tokens))
        labels = [IGNORED] * width
        if not asked:
            labels[len(prompt) - 1 : len(tokens) - 1] = answer
        assert batch["input_ids"][i].tolist() == padded
        assert batch["labels"][i].tolist() == labels
        assert batch["eoq"][i] == len(prompt) - 1
        assert batch["lapse_token"][i] == VOCAB[int(prompts.lapse[i])]
        if asked:
            assert batch["lapse"][i] == prompts.lapse[i]
        else:
            assert batch["lapse"][i].isnan()
    assert width == longest
    assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64
    assert batch["lapse"].dtype == torch.float32


def test_every_cell_is_learned_from_those_before(cells):
    prompts = sampler(timelapse=0.5).draw(0, 64)
    answers = PromptCollator(cells, VOCAB, max_length=300)(prompts)
    batch = PromptCollator(cells, VOCAB, max_length=300, every_cell=True)(prompts)
    tokens, labels = batch["input_ids"], batch["labels"]
    assert torch.equal(tokens, answers["input_ids"])
    of_cell = torch.from_numpy(VOCAB.gene_of_token != "")[tokens] | (tokens == VOCAB["<eos>"])
    # Every gene and end of a cell is the label of the token before it; and what was learned anyway.
    assert torch.equal(labels[:, :-1][of_cell[:, 1:]], tokens[:, 1:][of_cell[:, 1:]])
    learned = answers["labels"] != IGNORED
    assert torch.equal(labels[learned], answers["labels"][learned])
    others = labels[:, :-1][~of_cell[:, 1:] & ~learned[:, :-1]]
    assert (others == IGNORED).all()


def test_long_prompts_lose_genes_of_their_first_cell(cells):
    prompts = sampler(context_size=(3, 3)).draw(0, 64)
    longest = write_prompts(prompts, cells, VOCAB, max_length=300).sequences.lengths
    clipped = longest > 170
    assert clipped.any()
    kept = prompts[cells.lengths[prompts.context[:, 0]] - 4 >= longest - 170]
    batch = PromptCollator(cells, VOCAB, max_length=170)(kept)
    assert batch["input_ids"].shape[1] <= 170
    rows = np.arange(len(kept.query))
    assert (batch["input_ids"][rows, batch["eoq"]] == VOCAB["<eoq>"]).all()
    with pytest.raises(ValueError, match="have more than 30 tokens"):
        PromptCollator(cells, VOCAB, max_length=30)(prompts)


def test_gene_dropout(cells):
    prompts = sampler().draw(0, 200)
    whole = PromptCollator(cells, VOCAB, max_length=300)(prompts)
    collator = PromptCollator(cells, VOCAB, max_length=300, gene_dropout=0.4)
    batch = collator(prompts)
    is_gene = (VOCAB.gene_of_token != "")[whole["input_ids"]]
    kept_genes = (VOCAB.gene_of_token != "")[batch["input_ids"]]
    assert kept_genes.sum() / is_gene.sum() == pytest.approx(0.6, abs=0.02)
    for before, after, genes, kept in zip(
        whole["input_ids"], batch["input_ids"], is_gene, kept_genes, strict=True
    ):
        marks = [token for token in before[~genes].tolist() if token != VOCAB["<pad>"]]
        assert [token for token in after[~kept].tolist() if token != VOCAB["<pad>"]] == marks
        remaining = iter(before.tolist())
        assert all(token in remaining for token in after.tolist() if token != VOCAB["<pad>"])
    rows = torch.arange(200)
    assert (batch["input_ids"][rows, batch["eoq"]] == VOCAB["<eoq>"]).all()
    # What is learned is what is left.
    for i in np.flatnonzero(~prompts.timelapse):
        eoq = int(batch["eoq"][i])
        answer = [token for token in batch["input_ids"][i, eoq + 1 :].tolist() if token != VOCAB["<pad>"]]
        assert batch["labels"][i, eoq : eoq + len(answer)].tolist() == answer
        assert (batch["labels"][i] != IGNORED).sum() == len(answer)
    assert torch.equal(collator(prompts)["input_ids"], batch["input_ids"])
    for share in (1.0, -0.1):
        with pytest.raises(ValueError, match=r"left out must be in \[0, 1\)"):
            PromptCollator(cells, VOCAB, max_length=300, gene_dropout=share)


def test_a_lapse_without_a_token(cells):
    prompts = Prompts(*map(np.array, ([[0, 1]], [2], [[3]], [99], [True])))
    with pytest.raises(ValueError, match=r"1 lapses have no token \(the first: 99\)"):
        PromptCollator(cells, VOCAB, max_length=300)(prompts)
