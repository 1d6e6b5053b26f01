"""The nearest kind of cell that a cell is sure of: from a doubtful label up the Cell Ontology.

Labels are whole numbers from 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .calibration import fit_temperature, probabilities

# Thresholds that are tried; one above 1 is never reached, and nothing is said then.
_TRIED = np.append(np.linspace(0, 1, 201), np.inf)
NOTHING = -1


@dataclass(frozen=True, eq=False)
class Kinds:
    """What labels are kinds of."""

    names: np.ndarray
    """Names of the kinds."""
    holds: np.ndarray
    """bool, labels x kinds: whether a label is of a kind."""
    above: np.ndarray
    """int, labels x longest way up: kinds of a label from its own upward, `NOTHING` at the end."""
    steps: np.ndarray
    """int, the same: steps from the label's own."""

    @classmethod
    def of(cls, ways: Sequence[Mapping[str, int]]) -> Kinds:
        """From the kinds of each label with the steps up to them; of those equally near the one first that fewest labels are of."""
        # A kind of the same labels as one further down is never stopped at.
        of = {name: frozenset(i for i, way in enumerate(ways) if name in way) for name in set().union(*ways)}
        kept = [
            list({of[name]: name for name in sorted(way, key=lambda n: (-way[n], -len(of[n]), n))}.values())
            for way in ways
        ]
        names = np.array(sorted(set().union(*kept)), dtype=str)
        place = {name: i for i, name in enumerate(names)}
        holds = np.zeros((len(ways), len(names)), dtype=bool)
        above = np.full((len(ways), max(map(len, kept))), NOTHING)
        steps = np.zeros_like(above)
        for name, i in place.items():
            holds[list(of[name]), i] = True
        for label, (way, names_up) in enumerate(zip(ways, kept, strict=True)):
            order = sorted(names_up, key=lambda name: (way[name], len(of[name]), name))
            above[label, : len(order)] = [place[name] for name in order]
            steps[label, : len(order)] = [way[name] for name in order]
        return cls(names, holds, above, steps)

    def climb(self, shares: np.ndarray) -> Climb:
        """How sure each cell is of the kinds of its likeliest label."""
        label = shares.argmax(axis=1)
        way = self.above[label]
        sure = np.take_along_axis(shares @ self.holds, np.maximum(way, 0), axis=1)
        return Climb(label, way, np.where(way == NOTHING, -np.inf, sure))


class Climb(NamedTuple):
    """The ways up from the likeliest labels of cells."""

    label: np.ndarray
    way: np.ndarray
    """int, cells x longest way up: kinds, as in `Kinds.above`."""
    sure: np.ndarray
    """float, the same: probability that the cell is of the kind."""

    def stop(self, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """Where on its way a cell is first as sure as this, and the kind that is there; `NOTHING` where it never is."""
        enough = self.sure >= threshold
        place = enough.argmax(axis=1)
        kind = np.where(
            enough.any(axis=1), np.take_along_axis(self.way, place[:, None], axis=1)[:, 0], NOTHING
        )
        return place, kind


def fit_threshold(climb: Climb, code: np.ndarray, kinds: Kinds, alpha: float) -> float:
    """The lowest probability with which at most a share `alpha` of the kinds that are named would be wrong.

    Conformal risk control (Angelopoulos et al., ICLR 2024); saying nothing is not wrong.
    """
    n, low = len(code), np.inf
    for threshold in _TRIED[::-1]:
        kind = climb.stop(threshold)[1]
        wrong = (kind != NOTHING) & ~kinds.holds[code, kind]
        if (wrong.sum() + 1) / (n + 1) > alpha:
            break
        low = threshold
    return float(low)


class BackedOff(NamedTuple):
    """Kinds of held-out cells."""

    kind: np.ndarray
    """int: `NOTHING` where nothing is said."""
    right: np.ndarray
    """bool: the true label is of this kind."""
    steps: np.ndarray
    """float: how far above the likeliest label it stands; NaN where nothing is said."""


def cross_back_off(
    logits: np.ndarray, code: np.ndarray, fold: np.ndarray, kinds: Kinds, alpha: float
) -> BackedOff:
    """Kinds of held-out cells, temperature and threshold each of the other folds (of all, where there is but one)."""
    kind, steps = np.empty(len(code), int), np.empty(len(code))
    for i in (folds := np.unique(fold)):
        here = fold == i
        others = ~here if len(folds) > 1 else here
        temperature = fit_temperature(logits[others], code[others])
        threshold = fit_threshold(
            kinds.climb(probabilities(logits[others], temperature)), code[others], kinds, alpha
        )
        climb = kinds.climb(probabilities(logits[here], temperature))
        place, kind[here] = climb.stop(threshold)
        steps[here] = np.where(kind[here] == NOTHING, np.nan, kinds.steps[climb.label, place])
    return BackedOff(kind, (kind != NOTHING) & kinds.holds[code, kind], steps)
