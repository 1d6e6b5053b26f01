"""The sampler of gene orders: the enumerated target, detailed balance, clamps, and chains that know nothing of each other."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

import maxtoki_toolkit as mt
from maxtoki_toolkit.models import sampling
from maxtoki_toolkit.models.sampling import (
    Chains,
    as_cells,
    as_genes,
    chain_keys,
    gene_log_likelihoods,
    metropolis,
)

GENES = [f"ENSG{i:011d}" for i in range(5)]
SPECIALS = ["<pad>", "<mask>", "<bos>", "<eos>"]
VOCAB = mt.models.Vocabulary({t: i for i, t in enumerate([*SPECIALS, *GENES])}, dict.fromkeys(GENES, 1.0))
TOKENS = list(VOCAB.gene_ids)
SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "initializer_range": 0.22,
}
LENGTH = 3
STATES = np.array(list(itertools.permutations(TOKENS, LENGTH)))


@pytest.fixture(scope="module")
def model():
    return mt.models.build_model(SHAPE, VOCAB, seed=3)


# Batches as large as all chains.
ALL = 1 << 16


def code(genes):
    """One number a state."""
    return genes @ (VOCAB.size ** np.arange(genes.shape[1]))


def index(genes):
    """Place of each state among all."""
    order = np.argsort(code(STATES))
    return order[np.searchsorted(code(STATES)[order], code(genes))]


def start(n, *, state=STATES[7], clamped=(), excluded=(), seed=0):
    free = np.ones((n, LENGTH), dtype=bool)
    free[:, list(clamped)] = False
    allowed = np.zeros((n, VOCAB.size), dtype=bool)
    allowed[:, TOKENS] = True
    allowed[:, list(excluded)] = False
    keys = chain_keys(seed, [str(i) for i in range(n)], 1)[:, 0]
    return Chains(np.tile(state, (n, 1)), free, allowed, keys)


def distance(cells, rows):
    """Some energy: the place of one gene, which the model knows nothing of."""
    genes = as_genes(cells)
    return 0.8 * (genes == TOKENS[2]) @ np.arange(genes.shape[1])


def target(model, *, energy=None, temperature=1.0, kept=slice(None)):
    states = STATES[kept]
    log_p = gene_log_likelihoods(model, states).sum(axis=1)
    if energy is not None:
        log_p = log_p - energy(as_cells(states, model), np.arange(len(states)))
    p = np.zeros(len(STATES))
    p[kept] = np.exp((log_p - log_p.max()) / temperature)
    return p / p.sum()


def sampled(model, chains, **settings):
    """Share of each state, over all chains, after a fifth of the steps."""
    n_steps = settings.pop("n_steps")
    counts = np.zeros(len(STATES))
    for i, step in enumerate(metropolis(model, chains, n_steps=n_steps, max_tokens=ALL, **settings)):
        if i > n_steps // 5:
            counts += np.bincount(index(step.genes), minlength=len(STATES))
    return counts / counts.sum()


def test_likelihoods_are_those_of_the_model(model):
    """Against a plain forward pass, from any gene on."""
    genes = np.array([[*STATES[5]], [STATES[9][0], STATES[9][1], -1]])
    found = gene_log_likelihoods(model, genes)
    with torch.inference_mode():
        for row, tokens in zip(found, genes, strict=True):
            tokens = tokens[tokens >= 0]
            logits = model.hf(torch.tensor([[VOCAB["<bos>"], *tokens]])).logits[0].log_softmax(1)
            expected = logits[np.arange(len(tokens)), tokens].numpy()
            np.testing.assert_allclose(row[: len(tokens)], expected, atol=1e-5)
            assert (row[len(tokens) :] == 0).all()
    later = gene_log_likelihoods(model, genes[:1], first=np.array([1]))
    np.testing.assert_allclose(later[0, 1:], found[0, 1:], atol=1e-5)
    assert later[0, 0] == 0
    np.testing.assert_array_equal(as_genes(as_cells(genes, model)), genes)


CASES = {
    "block": {"proposal": "block", "block_size": 2},
    "suffix": {"proposal": "suffix"},
    "position": {"proposal": "position"},
    "warm": {"proposal": "block", "block_size": 2, "temperature": 2.0, "proposal_temperature": 1.5},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_samples_are_the_enumerated_target(model, case):
    """Total variation under 0.02 with 60 states, an energy and temperatures."""
    settings = CASES[case]
    expected = target(model, energy=distance, temperature=settings.get("temperature", 1.0))
    assert expected.max() > 3 / len(STATES)  # far from even: an even sampler would fail
    found = sampled(model, start(1500), energy=distance, n_steps=150, **settings)
    assert np.abs(found - expected).sum() / 2 < 0.02


def test_clamped_and_excluded_genes(model):
    """The target given that genes stand where they stand, and that another is out."""
    state = np.array([TOKENS[4], TOKENS[1], TOKENS[3]])
    chains = start(800, state=state, clamped=[1], excluded=[TOKENS[1], TOKENS[0]])
    kept = (STATES[:, 1] == TOKENS[1]) & ~(STATES == TOKENS[0]).any(axis=1)
    for proposal in sampling.PROPOSALS:
        steps = list(metropolis(model, chains, n_steps=20, proposal=proposal, block_size=2, max_tokens=ALL))
        seen = np.stack([step.genes for step in steps])
        assert (seen[:, :, 1] == TOKENS[1]).all()
        assert not (seen == TOKENS[0]).any()
        assert all(len(set(row)) == LENGTH for row in seen[-1])
        found = np.bincount(index(seen[6:].reshape(-1, LENGTH)), minlength=len(STATES)) / seen[6:, :, 0].size
        assert np.abs(found - target(model, kept=kept)).sum() / 2 < 0.02


@pytest.mark.parametrize("case", CASES)
def test_detailed_balance(model, case):
    """pi(x) P(x -> y) = pi(y) P(y -> x): flows between all pairs of states, from starts drawn from the target itself."""
    settings = CASES[case]
    expected = target(model, energy=distance, temperature=settings.get("temperature", 1.0))
    n = 10_000
    began = np.random.default_rng(0).choice(len(STATES), size=n, p=expected)
    chains = start(n)._replace(genes=STATES[began])
    *_, step = metropolis(model, chains, n_steps=1, energy=distance, max_tokens=ALL, **settings)
    flow = np.zeros((len(STATES),) * 2)
    np.add.at(flow, (began, index(step.genes)), 1)
    there, back = flow[np.triu_indices_from(flow, 1)], flow.T[np.triu_indices_from(flow, 1)]
    used = there + back >= 20
    assert used.sum() > 30
    z = (there - back)[used] / np.sqrt((there + back)[used])
    # As even as coins are.
    assert stats.chi2.sf((z**2).sum(), len(z)) > 1e-3


def test_ratios_are_needed(model, monkeypatch):
    """Without the ratio of the proposals the target is missed: the test of the target can fail."""
    plain = sampling._propose
    monkeypatch.setattr(sampling, "_propose", lambda *a: (plain(*a)[0], 0 * plain(*a)[1]))
    found = sampled(model, start(1000), energy=distance, n_steps=40, proposal="block", block_size=2)
    assert np.abs(found - target(model, energy=distance)).sum() / 2 > 0.05


def test_the_model_agrees_with_its_own_suffixes(model):
    """Without an energy, cells redrawn from the model are nearly always taken; with one they are not."""
    free = list(metropolis(model, start(300), n_steps=20, proposal="suffix"))
    bound = list(metropolis(model, start(300), n_steps=20, proposal="suffix", energy=distance, weight=5))
    rate = [np.mean([step.accepted for step in steps[1:]]) for steps in (free, bound)]
    assert rate[0] > rate[1] + 0.1
    assert all((step.moved <= step.accepted).all() for step in free)


@pytest.mark.parametrize("proposal", sampling.PROPOSALS)
def test_chains_are_on_their_own(model, proposal):
    """A chain takes the same way whatever its company, its place in it, and the size of batches."""
    chains = start(12, seed=4)
    lengths = np.array([3, 2] * 6)
    genes = np.where(np.arange(LENGTH) < lengths[:, None], chains.genes, -1)
    chains = chains._replace(genes=genes, free=genes >= 0)
    settings = {"n_steps": 12, "proposal": proposal, "block_size": 2, "energy": distance}
    *_, together = metropolis(model, chains, **settings)
    rows = np.array([7, 2, 11])
    *_, apart = metropolis(model, Chains(*(part[rows] for part in chains)), max_tokens=8, **settings)
    np.testing.assert_array_equal(apart.genes, together.genes[rows])
    np.testing.assert_allclose(apart.log_likelihood, together.log_likelihood[rows], atol=1e-4)
    *_, again = metropolis(model, chains._replace(key=chain_keys(5, range(12), 1)[:, 0]), **settings)
    assert (again.genes != together.genes).any()


def test_nothing_to_change(model):
    """All clamped: the start, at every step."""
    chains = start(3, clamped=range(LENGTH))
    for step in metropolis(model, chains, n_steps=3):
        np.testing.assert_array_equal(step.genes, chains.genes)
        assert not step.moved.any()


def test_refusals(model):
    with pytest.raises(ValueError, match="no proposal"):
        next(metropolis(model, start(1), n_steps=1, proposal="gibbs"))
    with pytest.raises(ValueError, match="above 0"):
        next(metropolis(model, start(1), n_steps=1, temperature=0))
    with pytest.raises(ValueError, match="not allowed"):
        next(metropolis(model, start(1, excluded=[STATES[7][0]]), n_steps=1))


def test_seeds_of_chains():
    keys = chain_keys(0, ["a", "b"], 3)
    assert len(np.unique(keys)) == 6
    np.testing.assert_array_equal(chain_keys(0, ["b"], 2)[0], keys[1, :2])
    numbers = np.concatenate([sampling.uniform(keys.ravel(), step, 0) for step in range(2000)])
    assert abs(numbers.mean() - 0.5) < 0.01
    assert abs(numbers.var() - 1 / 12) < 0.005
    assert ((numbers > 0) & (numbers < 1)).all()
