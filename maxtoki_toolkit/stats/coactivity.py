"""Which of many things are active together: phi, its test over units, and what is expected of independent ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from scipy import stats

from .fdr import benjamini_hochberg


class Counts(NamedTuple):
    """Binary activity of features at places, which lie in strata, and these in units."""

    pairs: sp.csr_matrix
    """(units * features) x features: places at which both are active; on the diagonal, at which one is."""
    alone: sp.csr_matrix
    """Strata x features: places at which each is active."""
    size: np.ndarray
    """Places of each stratum."""
    unit: np.ndarray
    """Unit of each stratum."""

    def units(self, into: np.ndarray, features: np.ndarray) -> Iterator[Unit]:
        """The units, put together as `into` says (-1: left out), one after the other, with some features."""
        width = self.alone.shape[1]
        for i in range(into.max(initial=-1) + 1):
            fine = np.flatnonzero(into == i)
            observed = sum(self.pairs[k * width + features][:, features].toarray() for k in fine)
            mine = into[self.unit] == i
            n = self.alone[np.flatnonzero(mine)][:, features].toarray().astype(float)
            size = np.maximum(self.size[mine], 1)[:, None].astype(float)
            spread = n * (size - n) / size
            yield Unit(
                observed.astype(float), n.T @ (n / size), spread.T @ (spread / np.maximum(size - 1, 1))
            )


class Unit(NamedTuple):
    """Features x features, of one unit."""

    observed: np.ndarray
    """Places at which both are active."""
    expected: np.ndarray
    """The same if each were active at as many other places of each stratum, in the mean."""
    variance: np.ndarray
    """Its variance (hypergeometric)."""

    def shuffled(self, rng: np.random.Generator) -> Unit:
        """What independent features have: a draw with this mean and variance for each pair."""
        upper = np.triu_indices(len(self.expected), 1)
        mean, variance = self.expected[upper], self.variance[upper]
        # A binomial with the mean and the variance of the sum of hypergeometric ones.
        n = np.clip(np.ceil(mean**2 / np.maximum(mean - variance, 1e-9)), 1, 1 << 40)
        drawn = np.diag(np.diag(self.observed)).astype(float)
        drawn[upper] = rng.binomial(n.astype(np.int64), np.clip(mean / n, 0, 1))
        return self._replace(observed=np.maximum(drawn, drawn.T))


class Together(NamedTuple):
    """What all units say, features x features."""

    phi: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p_value: np.ndarray
    q_value: np.ndarray
    observed: np.ndarray
    expected: np.ndarray
    n_units: int


def together(units: list[Unit] | Iterator[Unit]) -> Together:
    """Phi of each two features with its interval, and whether they are active together more than expected.

    Phi is the correlation of the two activities, each less its mean in the stratum: with o places at which
    both are active, e expected, and n of each stratum's N places at which one is, the sum of o - e over the
    root of the product of both sums of n (1 - n / N). The p value is that of a t test over units of o - e,
    one-sided; the interval is of 95%, by the influence of each unit on phi.
    """
    first = second = observed = expected = 0.0
    squares = {"fg": 0.0, "ff": 0.0, "gg": 0.0, "fg ff": 0.0, "fg gg": 0.0, "ff gg": 0.0}
    n = 0
    for unit in units:
        beyond = unit.observed - unit.expected
        own = np.diag(beyond)
        first, second, n = first + beyond, second + beyond**2, n + 1
        observed, expected = observed + unit.observed, expected + unit.expected
        f, g = own[:, None], own[None, :]
        for name, part in zip(squares, (beyond**2, f**2, g**2, beyond * f, beyond * g, f * g), strict=True):
            squares[name] = squares[name] + part
    own = np.maximum(np.diag(first), 0)
    length = np.sqrt(np.outer(own, own))
    with np.errstate(divide="ignore", invalid="ignore"):
        phi = np.where(length > 0, first / length, 0)
        # Of phi, half by the first feature's own variance and half by the other's.
        a, b = phi / 2 * length / own[:, None], phi / 2 * length / own[None, :]
        influence = (
            squares["fg"]
            + a**2 * squares["ff"]
            + b**2 * squares["gg"]
            - 2 * a * squares["fg ff"]
            - 2 * b * squares["fg gg"]
            + 2 * a * b * squares["ff gg"]
        )
        error = np.sqrt(np.maximum(influence, 0) * n / max(n - 1, 1)) / length
        mean = first / n
        deviation = np.sqrt(np.maximum(second / n - mean**2, 0) * n / max(n - 1, 1))
        t = mean / deviation * np.sqrt(n)
    p_value = np.where(np.isfinite(t), stats.t.sf(t, max(n - 1, 1)), 1.0)
    upper = np.triu_indices(len(phi), 1)
    q_value = np.ones_like(phi)
    q_value[upper] = benjamini_hochberg(p_value[upper])
    reach = stats.t.ppf(0.975, max(n - 1, 1)) * error
    low, high = np.maximum(phi - reach, -1), np.minimum(phi + reach, 1)
    return Together(phi, low, high, p_value, np.minimum(q_value, q_value.T), observed, expected, n)


def resampled_phi(units: list[Unit] | Iterator[Unit], weights: np.ndarray) -> np.ndarray:
    """Phi in bootstrap samples, which have each unit `weights` (samples x units) times; float32."""
    total = 0.0
    for unit, weight in zip(units, weights.T, strict=True):
        beyond = (unit.observed - unit.expected).astype(np.float32)
        total = total + weight.astype(np.float32)[:, None, None] * beyond
    own = np.maximum(np.diagonal(total, axis1=1, axis2=2), 0)
    length = np.sqrt(own[:, :, None] * own[:, None, :])
    return np.divide(total, length, out=np.zeros_like(total), where=length > 0)


def broader(
    found: Together, least: float, lift: float, alpha: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each feature the broader one that is active at most of its places, at which share, and the share expected.

    It is active at twice as many places or more, at a share `least` of the feature's own, at `lift` times as
    many as expected, and its q value is below `alpha`. -1 and NaN for none.
    """
    n = np.diag(found.observed)
    with np.errstate(divide="ignore", invalid="ignore"):
        share, chance = found.observed / n[:, None], found.expected / n[:, None]
    able = (n >= 2 * n[:, None]) & (share >= least) & (share >= lift * chance) & (found.q_value < alpha)
    best = np.where(able, share, -1).argmax(axis=1)
    rows, some = np.arange(len(n)), able.any(axis=1)
    return (
        np.where(some, best, -1),
        np.where(some, share[rows, best], np.nan),
        np.where(some, chance[rows, best], np.nan),
    )
