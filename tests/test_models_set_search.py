"""Searches of sets, against all of them."""

import itertools

import numpy as np
import pytest

from maxtoki_toolkit.models.set_search import beam_search, metropolis_sets, propose

N, LARGEST = 5, 3
SETS = [s for size in range(LARGEST + 1) for s in itertools.combinations(range(N), size)]
PLACE = {s: i for i, s in enumerate(SETS)}
WEIGHTS = np.array([0.4, 0.1, 0.2, 0.05, 0.25])


def score(sets):
    """Members add up, but for a pair that only helps together and one that spoils each other."""
    worth = np.array([0.9, -0.5, 0.3, 0.2, -0.4])
    found = np.array([worth[list(s)].sum() for s in sets])
    found += np.array([2.0 * ({1, 4} <= set(s)) - 1.5 * ({0, 2} <= set(s)) for s in sets])
    return found


def test_greedy_and_beam():
    """Greedy takes the best next member, and misses the pair; a wide beam finds the best of all sets."""
    levels, singles = beam_search(score, N, max_size=3, width=1)
    np.testing.assert_allclose(singles, score([(i,) for i in range(N)]))
    assert levels[0].sets == [(0,)]
    assert levels[1].sets == [(0, 3)]
    wide, _ = beam_search(score, N, max_size=3, width=10)
    best = max(itertools.combinations(range(N), 3), key=lambda s: score([s])[0])
    assert wide[2].sets[0] == best == (0, 1, 4)
    assert [len(level.sets) for level in wide] == [5, 10, 10]
    assert (np.diff(wide[2].scores) <= 0).all()


def test_candidates_that_cannot_be_judged():
    levels, singles = beam_search(
        lambda sets: np.array([np.nan if 0 in s else 1.0 * len(s) for s in sets]), 3, max_size=5, width=2
    )
    assert np.isnan(singles[0])
    assert [len(level.sets) for level in levels] == [2, 1]  # no set of three is left
    assert not any(0 in s for level in levels for s in level.sets)
    assert beam_search(lambda sets: np.full(len(sets), np.nan), 3, max_size=2)[0] == []


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["even", "weighted"])
def test_samples_are_the_enumerated_target(weights):
    """Total variation under 0.02 over all 26 sets."""
    expected = np.exp(score(SETS) / 0.7)
    expected /= expected.sum()
    counts = np.zeros(len(SETS))
    steps = metropolis_sets(
        score, N, max_size=LARGEST, n_steps=1500, seeds=range(20), temperature=0.7, weights=weights
    )
    for i, step in enumerate(steps):
        if i > 100:
            np.add.at(counts, [PLACE[s] for s in step.sets], 1)
    assert expected.max() > 3 / len(SETS)
    assert np.abs(counts / counts.sum() - expected).sum() / 2 < 0.02


def test_detailed_balance_of_proposals():
    """The ratio is that of the probabilities of the way back and there, counted."""
    rng, n = np.random.default_rng(0), 60_000
    pairs = [((0, 1), (1, 3)), ((0, 2, 4), (0, 1, 2)), ((3,), (0,))]
    for one, other in pairs:
        ratios = set()
        hits = np.zeros(2)
        for way, (a, b) in enumerate([(one, other), (other, one)]):
            for _ in range(n // 6):
                new, ratio = propose(a, WEIGHTS, LARGEST, rng)
                if new == b:
                    hits[way] += 1
                    ratios.add((way, round(ratio, 9)))
        assert len(ratios) == 2
        there = dict(ratios)[0]
        assert dict(ratios)[1] == pytest.approx(-there)
        assert np.log(hits[1] / hits[0]) == pytest.approx(there, abs=4 * np.sqrt((1 / hits).sum()))


def test_chains_are_on_their_own():
    settings = {"max_size": LARGEST, "n_steps": 30}
    *_, together = metropolis_sets(score, N, seeds=[3, 4, 5], **settings)
    # The first chain starts with nothing, whoever it is.
    *_, apart = metropolis_sets(score, N, seeds=[9, 5], **settings)
    assert apart.sets[1] == together.sets[2]
