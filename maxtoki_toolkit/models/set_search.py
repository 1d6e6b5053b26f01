"""Search for small sets that score well: greedy, beam, and Metropolis-Hastings. What a score means is the caller's affair."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

Set = tuple[int, ...]
# Of many sets at once, each ascending numbers of its members: one number a set, more is better.
Score = Callable[[Sequence[Set]], np.ndarray]


class Level(NamedTuple):
    """The best sets of one size, best first."""

    sets: list[Set]
    scores: np.ndarray


class SetStep(NamedTuple):
    """All chains after a step."""

    sets: list[Set]
    scores: np.ndarray
    accepted: np.ndarray
    """bool: the proposal was taken. One that leaves the space, or the set as it is, is not."""


def beam_search(score: Score, n: int, *, max_size: int, width: int = 1) -> tuple[list[Level], np.ndarray]:
    """Grow sets by one member at a time, from the `width` best of each size; 1 is greedy.

    Parameters
    ----------
    score
        Score of sets; NaN for those that cannot be judged.
    n
        Candidates, numbered from 0.
    max_size
        Largest size.
    width
        Sets to go on from.

    Returns
    -------
    The best sets of each size, and the scores of all sets of one.
    """
    singles = np.asarray(score([(i,) for i in range(n)]), dtype=float)
    usable = np.flatnonzero(np.isfinite(singles))
    levels, grown, scores = [], [(int(i),) for i in usable], singles[usable]
    while grown:
        best = np.argsort(-scores, kind="stable")[:width]
        levels.append(Level([grown[i] for i in best], scores[best]))
        if len(levels) == max_size:
            break
        grown = sorted({tuple(sorted((*s, int(i)))) for s in levels[-1].sets for i in usable if i not in s})
        scores = np.asarray(score(grown), dtype=float) if grown else np.zeros(0)
    return levels, singles


def metropolis_sets(
    score: Score,
    n: int,
    *,
    max_size: int,
    n_steps: int,
    seeds: Sequence[int],
    temperature: float = 1.0,
    weights: np.ndarray | None = None,
) -> Iterator[SetStep]:
    """Sample sets of at most `max_size` with probability proportional to exp(score / temperature), one chain a seed.

    Parameters
    ----------
    score
        Score of sets, the empty one too.
    n
        Candidates.
    max_size
        Largest size.
    n_steps
        Steps.
    seeds
        Seeds of the chains. A chain's random numbers depend on its own alone.
    temperature
        Of the target.
    weights
        How often each candidate is proposed, above 0; by default all alike.

    Yields
    ------
    The chains as they start (the first with nothing, the others with random sets), and then after each step.

    Notes
    -----
    Half of the proposals put a candidate in or, if it is in, out; the other half exchange a member for a
    candidate that is not in. Candidates are drawn by their weights, whose ratio there and back is part of the
    acceptance (`propose`). There are far more large sets than small ones: at a high temperature most draws
    have `max_size` members.
    """
    weights = np.full(n, 1 / n) if weights is None else np.asarray(weights, dtype=float) / np.sum(weights)
    generators = [np.random.default_rng(abs(int(seed))) for seed in seeds]
    sets: list[Set] = []
    for i, rng in enumerate(generators):
        size = 0 if i == 0 else int(rng.integers(min(max_size, n) + 1))
        sets.append(tuple(sorted(rng.choice(n, size, replace=False).tolist())))
    scores = np.asarray(score(sets), dtype=float)
    yield SetStep(list(sets), scores.copy(), np.zeros(len(sets), dtype=bool))
    for _ in range(n_steps):
        proposed = [propose(s, weights, max_size, rng) for s, rng in zip(sets, generators, strict=True)]
        new_scores = np.asarray(score([new for new, _ in proposed]), dtype=float)
        log_ratio = np.array([ratio for _, ratio in proposed])
        drawn = np.array([rng.random() for rng in generators])
        stays = np.array([new == old for (new, _), old in zip(proposed, sets, strict=True)])
        accepted = ~stays & (np.log(drawn) < (new_scores - scores) / temperature + log_ratio)
        sets = [new if yes else old for (new, _), old, yes in zip(proposed, sets, accepted, strict=True)]
        scores = np.where(accepted, new_scores, scores)
        yield SetStep(list(sets), scores.copy(), accepted)


def propose(members: Set, weights: np.ndarray, max_size: int, rng: np.random.Generator) -> tuple[Set, float]:
    """Another set, and the log of the ratio of the probabilities of the way back and of the way there."""
    if rng.random() < 0.5:
        # There and back the same candidate is drawn: the ratio is 1.
        chosen = int(rng.choice(len(weights), p=weights))
        if chosen in members:
            return tuple(i for i in members if i != chosen), 0.0
        return (tuple(sorted((*members, chosen))) if len(members) < max_size else members), 0.0
    if not members or len(members) == len(weights):
        return members, 0.0
    others = weights.copy()
    others[list(members)] = 0
    leaving = members[int(rng.integers(len(members)))]
    entering = int(rng.choice(len(weights), p=others / others.sum()))
    changed = tuple(sorted({*members, entering} - {leaving}))
    back = others.sum() - weights[entering] + weights[leaving]
    return changed, float(np.log(weights[leaving] / back) - np.log(weights[entering] / others.sum()))
