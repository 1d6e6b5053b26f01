"""Prompts that begin alike: the shared part is computed once, and the answers stay the same."""

import numpy as np
import pytest
import torch

import maxtoki_toolkit as mt
from maxtoki_toolkit.models import engine
from maxtoki_toolkit.models.likelihood import token_log_likelihoods
from maxtoki_toolkit.models.prefix import prefix_forest
from maxtoki_toolkit.models.sequences import Sequences

GENES = [f"ENSG{i:011d}" for i in range(300)]
VOCAB = mt.models.Vocabulary(
    {t: i for i, t in enumerate(["<pad>", "<mask>", "<bos>", "<eos>", *GENES])}, dict.fromkeys(GENES, 1.0)
)


@pytest.fixture(scope="module")
def model():
    """Grouped key-value heads and weights large enough for differences to show."""
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 260,
        "initializer_range": 0.2,
    }
    return mt.models.build_model(shape, VOCAB)


def to_sequences(rows):
    return Sequences.of(rows)


@pytest.fixture(scope="module")
def rows():
    """Three contexts with seven queries each, six edits of each query; a copy, a beginning, and a loner; shuffled."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(3):
        context = [2, *rng.permutation(np.arange(4, 304))[:120], 3]
        for _ in range(7):
            query = [2, *rng.permutation(np.arange(4, 304))[: rng.integers(20, 90)], 3]
            rows.append(context + query)
            rows += [context + query[:r] + query[r + 1 :] for r in rng.integers(1, len(query) - 1, 6)]
    rows += [rows[5], rows[5][:150], [2, 5, 3]]
    return [rows[i] for i in rng.permutation(len(rows))]


@pytest.mark.parametrize("min_shared", [1, 8, 32])
def test_what_is_shared_is_the_same(rows, min_shared):
    forest = prefix_forest(to_sequences(rows), min_shared=min_shared)
    has = np.flatnonzero(forest.parent >= 0)
    for row in has:
        n, parent = forest.shared[row], forest.parent[row]
        # One more is the same: the last shared token is computed again, as its successor differs.
        assert rows[row][: n + 1] == rows[parent][: n + 1]
        assert min_shared <= n < len(rows[row])
    assert (forest.shared[forest.parent < 0] == 0).all()
    assert forest.level.max() <= np.log2(len(rows))
    assert (forest.level[has] == forest.level[forest.parent[has]] + 1).all()
    kept, children = forest.n_kept, forest.n_children
    assert ((kept > 0) == (children > 0)).all()
    assert children.sum() == len(has)


def test_few_tokens_are_computed_twice(rows):
    """Against the number of different beginnings, which is the least that there is to compute."""
    forest = prefix_forest(to_sequences(rows), min_shared=1)
    computed = (np.array([len(row) for row in rows]) - forest.shared).sum()
    least = len({tuple(row[: n + 1]) for row in rows for n in range(len(row))})
    assert least <= computed <= least + 2 * len(rows)
    assert computed < sum(len(row) for row in rows) / 4


def test_nothing_shared_is_nothing_lost():
    forest = prefix_forest(to_sequences([[2, 5, 3], [2, 7, 9, 3], [2, 3]]))
    assert (forest.parent == -1).all()
    assert not forest.shared.any()
    empty = prefix_forest(Sequences(np.zeros(0, np.int32), np.zeros(1, np.int64)))
    assert len(empty.parent) == 0


def states_of(model, sequences, **settings):
    found = np.full((len(sequences.lengths), 32), np.nan, np.float32)

    def compute(batch):
        return engine.last_states(model.hf.model(**batch.inputs).last_hidden_state, batch)

    for at, states in engine.run(model, sequences, compute, **settings):
        assert np.isnan(found[at]).all()
        found[at] = states.numpy()
    return found


@pytest.mark.parametrize("max_tokens", [None, 1000, 10])
@pytest.mark.parametrize("min_shared", [1, 32])
def test_states_are_those_of_whole_sequences(model, rows, max_tokens, min_shared):
    sequences = to_sequences(rows)
    whole = states_of(model, sequences)
    with torch.inference_mode():
        alone = model.hf.model(torch.tensor([rows[7]])).last_hidden_state[0, -1]
    np.testing.assert_allclose(whole[7], alone, atol=1e-5)
    forest = prefix_forest(sequences, min_shared=min_shared)
    shared = states_of(model, sequences, forest=forest, max_tokens=max_tokens)
    assert np.abs(shared - whole).max() < 1e-4 * np.abs(whole).max()


def test_little_is_kept_in_memory(model, rows, monkeypatch):
    """No more tokens than the budget, and one sequence a level."""
    sequences = to_sequences(rows)
    forest = prefix_forest(sequences)
    held = []
    make = engine._batch

    def watch(model, sequences, rows, forest, known, keep):
        held.append(sum(prefix.keys[0].shape[1] for prefix in known.values()))
        return make(model, sequences, rows, forest, known, keep)

    monkeypatch.setattr(engine, "_batch", watch)
    states_of(model, sequences, forest=forest, max_tokens=300)
    depth = forest.level.max() + 1
    assert 120 <= max(held) <= 300 + depth * sequences.lengths.max()
    assert held[-1] < 260


def test_memory_back_off_with_shared_tokens(model, rows, monkeypatch):
    sequences = to_sequences(rows)
    forest = prefix_forest(sequences)
    expected = states_of(model, sequences, forest=forest)
    forward = model.hf.model.forward

    def limited(input_ids, **inputs):
        if input_ids.numel() > 400:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(input_ids=input_ids, **inputs)

    monkeypatch.setattr(model.hf.model, "forward", limited)
    found = states_of(model, sequences, forest=forest)
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_log_likelihoods_are_those_of_whole_sequences(model, rows):
    sequences = to_sequences(rows)
    expected = np.full(len(sequences.tokens), np.nan)
    for row, start in zip(rows, sequences.indptr, strict=False):
        with torch.inference_mode():
            p = model.hf(torch.tensor([row])).logits[0].log_softmax(dim=1)
        expected[start + 1 : start + len(row)] = p[torch.arange(len(row) - 1), row[1:]]
    found = token_log_likelihoods(model, sequences)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    first = np.random.default_rng(0).integers(1, sequences.lengths)
    wanted = np.arange(len(found)) - np.repeat(sequences.indptr[:-1], sequences.lengths)
    wanted = wanted >= np.repeat(first, sequences.lengths)
    part = token_log_likelihoods(model, sequences, first=first, max_tokens=300)
    np.testing.assert_allclose(part[wanted], expected[wanted], rtol=1e-4, atol=1e-4)
    assert np.isnan(part[~wanted]).all()
