"""R-hat and effective sizes, against those of arviz."""

import numpy as np
import pytest

from maxtoki_toolkit.stats.mcmc import effective_size, rhat


def chains(seed, phi, shift, *, n=250, m=4):
    """Autoregressive chains, whose means may differ."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(m, n))
    x = np.zeros((m, n))
    x[:, 0] = noise[:, 0]
    for i in range(1, n):
        x[:, i] = phi * x[:, i - 1] + noise[:, i]
    return x + shift * np.arange(m)[:, None]


# arviz-stats 0.8.0: array_stats.rhat(x), array_stats.ess(x).
KNOWN = [
    ((0, 0, 0), {}, 1.00066931545702, 1008.3401816381428),
    ((1, 0.6, 0), {}, 1.0177523149783, 271.4856884598083),
    ((2, 0.9, 0), {}, 1.050400169281869, 99.86827227786979),
    ((3, 0.3, 0.5), {}, 1.1459506142029603, 19.69607564521304),
    ((4, -0.4, 0), {}, 0.9996087835139573, 2619.0711409432784),
    ((5, 0.5, 2), {}, 2.1271157400859257, 5.382248129360752),
    ((6, 0.5, 0), {"n": 31, "m": 2}, 1.077890978628923, 27.679048971485408),
]


@pytest.mark.parametrize(("args", "size", "expected_rhat", "expected_size"), KNOWN)
def test_against_arviz(args, size, expected_rhat, expected_size):
    x = chains(*args, **size)
    assert rhat(x) == pytest.approx(expected_rhat, rel=1e-9)
    # Where no sum turns negative, arviz leaves the last ones out.
    assert effective_size(x) == pytest.approx(expected_size, rel=1e-9 if expected_size > 25 else 0.02)


def test_many_at_once():
    x = np.stack([chains(seed, 0.5, 0) for seed in range(6)]).reshape(2, 3, 4, 250)
    for function in (rhat, effective_size):
        found = function(x)
        assert found.shape == (2, 3)
        assert found[1, 2] == pytest.approx(function(x[1, 2]))


def test_what_cannot_be_known():
    for function in (rhat, effective_size):
        assert np.isnan(function(np.zeros((4, 50))))
        assert np.isnan(function(np.random.default_rng(0).normal(size=(4, 3))))
