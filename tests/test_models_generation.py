"""Generated cells: what the baseline without a cache writes, and only what a cell can hold."""

import numpy as np
import pytest
import torch
from scipy import stats

import maxtoki_toolkit as mt
from maxtoki_toolkit.models import generation
from maxtoki_toolkit.models.generation import generate_cells
from maxtoki_toolkit.models.sequences import Sequences

GENES = [f"ENSG{i:011d}" for i in range(40)]
SPECIALS = ["<pad>", "<mask>", "<bos>", "<eos>"]
VOCAB = mt.models.Vocabulary({t: i for i, t in enumerate([*SPECIALS, *GENES])}, dict.fromkeys(GENES, 1.0))
BOS, EOS = 2, 3


@pytest.fixture(scope="module")
def model():
    """Weights large enough that the model has strong opinions."""
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 48,
        "initializer_range": 0.3,
    }
    return mt.models.build_model(shape, VOCAB)


@pytest.fixture(scope="module")
def prompts():
    """Whole cells before an open one, open cells with and without genes."""
    rng = np.random.default_rng(0)
    context = [BOS, *rng.permutation(np.arange(4, 44))[:12], EOS]
    rows = [[BOS], [BOS, 9, 30], [*context, BOS], [*context, BOS, 7], [*context[:5], EOS, BOS, 12, 4], [BOS]]
    return Sequences.of(rows)


def split(sequences):
    return [part.tolist() for part in np.split(sequences.tokens, sequences.indptr[1:-1])]


def opened(prompt):
    return prompt[len(prompt) - 1 - prompt[::-1].index(BOS) :]


@torch.inference_mode()
def simple_way(model, prompt, *, max_genes=46):
    """Greedy, one forward pass of the whole sequence a token."""
    tokens, cell, total = list(prompt), opened(prompt), 0.0
    while len(cell) - 1 < max_genes:
        logits = model.hf(torch.tensor([tokens])).logits[0, -1]
        allowed = [g for g in range(4, 44) if g not in cell] + ([EOS] if len(cell) > 1 else [])
        of_allowed = logits[allowed].log_softmax(0)
        best = int(of_allowed.argmax())
        total += of_allowed[best].item()
        tokens.append(allowed[best])
        cell = [*cell, allowed[best]]
        if cell[-1] == EOS:
            break
    return cell, total


@pytest.mark.parametrize("max_tokens", [None, 100, 1])
def test_greedy_cells_are_those_of_the_simple_way(model, prompts, max_tokens):
    found = generate_cells(model, prompts, temperature=0, max_genes=15, max_tokens=max_tokens)
    for prompt, cell, total in zip(split(prompts), split(found.sequences), found.log_likelihood, strict=True):
        expected, log_likelihood = simple_way(model, prompt, max_genes=15)
        assert cell == expected
        assert total == pytest.approx(log_likelihood, rel=1e-4, abs=1e-4)


def test_cells_hold_genes_once_and_end(model, prompts):
    found = generate_cells(model, prompts, n_samples=20, temperature=2.0)
    starts = [opened(prompt) for prompt in split(prompts) for _ in range(20)]
    for cell, start, finished in zip(split(found.sequences), starts, found.finished, strict=True):
        assert cell[: len(start)] == start
        genes = cell[1 : len(cell) - finished]
        assert len(set(genes)) == len(genes) >= 1
        assert all(4 <= gene < 44 for gene in genes)
        assert (cell[-1] == EOS) == finished
    assert found.finished.any()
    assert len({tuple(cell) for cell in split(found.sequences)}) > 90


def test_a_seed_gives_the_same_cells_in_any_company(model, prompts):
    settings = {"n_samples": 3, "seed": 3, "max_genes": 20}
    reference = generate_cells(model, prompts, **settings)
    for max_tokens in (1, 60, 1000):
        found = generate_cells(model, prompts, max_tokens=max_tokens, **settings)
        np.testing.assert_array_equal(found.sequences.tokens, reference.sequences.tokens)
        np.testing.assert_allclose(found.log_likelihood, reference.log_likelihood, rtol=1e-4)
    more = generate_cells(model, prompts, **settings | {"n_samples": 5})
    cells = split(more.sequences)
    assert [cells[5 * p + s] for p in range(6) for s in range(3)] == split(reference.sequences)
    other = generate_cells(model, prompts, **settings | {"seed": 4})
    assert split(other.sequences) != split(reference.sequences)
    # The same prompt twice is not the same cell twice.
    assert split(reference.sequences)[:3] != split(reference.sequences)[15:]


def test_samples_have_the_probabilities_of_the_model(model):
    """First genes of many cells, against the softmax; and with temperature, top-k and top-p."""
    start = Sequences(np.array([BOS, 9], np.int32), np.array([0, 2]))
    with torch.inference_mode():
        logits = model.hf(torch.tensor([[BOS, 9]])).logits[0, -1].double()
    allowed = np.array([EOS, *[g for g in range(4, 44) if g != 9]])
    n = 4000
    for settings in ({}, {"temperature": 3.0}, {"top_k": 5}, {"top_p": 0.6}):
        p = (logits[allowed] / settings.get("temperature", 1.0)).softmax(0).numpy()
        order = np.argsort(-p)
        if "top_k" in settings:
            p[order[5:]] = 0
        if "top_p" in settings:
            p[order[1:]] *= np.cumsum(p[order])[:-1] < 0.6
        p /= p.sum()
        found = generate_cells(model, start, n_samples=n, max_genes=2, seed=1, **settings)
        second = np.array([cell[2] for cell in split(found.sequences)])
        count = (second[:, None] == allowed).sum(axis=0)
        assert count.sum() == n
        assert not count[p == 0].any()
        common = n * p > 5
        seen, expected = (
            np.append(count[common], count[~common].sum()),
            np.append(p[common], p[~common].sum()),
        )
        keep = expected > 0
        assert stats.chisquare(seen[keep], n * expected[keep] / expected[keep].sum()).pvalue > 1e-3


def test_numbers_are_uniform_and_unrelated():
    number = generation.scrambled(torch.arange(200_000))
    assert len(number.unique()) == 200_000
    uniform = ((number >> 40) & 0xFFFFFF).double().numpy() / (1 << 24)
    assert stats.kstest(uniform, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(uniform[:-1], uniform[1:])[0, 1]) < 0.01
    # The published first output of SplitMix64 from the state 0.
    assert generation.scrambled(torch.tensor([0])).item() & (2**64 - 1) == 0xE220A8397B1DCDAF


def test_memory_back_off_gives_the_same_cells(model, prompts, monkeypatch):
    expected = generate_cells(model, prompts, n_samples=4)
    forward, sizes = model.hf.model.forward, []

    def limited(input_ids, **inputs):
        sizes.append(len(input_ids))
        if len(input_ids) > 7:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(input_ids=input_ids, **inputs)

    monkeypatch.setattr(model.hf.model, "forward", limited)
    found = generate_cells(model, prompts, n_samples=4)
    np.testing.assert_array_equal(found.sequences.tokens, expected.sequences.tokens)
    assert max(sizes) > 7


def test_what_cannot_be_gone_on_with_is_refused(model):
    def one(*tokens):
        return Sequences(np.array(tokens, np.int32), np.array([0, len(tokens)]))

    with pytest.raises(ValueError, match="do not end in an open cell"):
        generate_cells(model, one(BOS, 5, EOS))
    with pytest.raises(ValueError, match="do not end in an open cell"):
        generate_cells(model, one(5, 6))
    with pytest.raises(ValueError, match="no room for a gene"):
        generate_cells(model, one(BOS, *range(4, 44), EOS, BOS, 4, 5, 6, 7))
    with pytest.raises(ValueError, match="no room for a gene"):
        generate_cells(model, one(BOS, 5, 6), max_genes=2)
    for wrong in ({"temperature": -1}, {"top_p": 0}, {"top_k": -1}, {"n_samples": 0}):
        with pytest.raises(ValueError, match="must be at least 0"):
            generate_cells(model, one(BOS), **wrong)
