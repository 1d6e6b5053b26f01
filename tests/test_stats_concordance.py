"""Two scores of genes that go together: called where they agree, and no oftener than by chance where they do not."""

import numpy as np

from maxtoki_toolkit.stats.concordance import concordance
from maxtoki_toolkit.stats.matched_sets import make_strata
from maxtoki_toolkit.stats.slopes import fit_slopes, get_residuals, null_slopes

N_GENES, N_DONORS = 300, 24


def genes_together(rng, slope=None):
    """Expression of donors in which genes go together in modules, and ages that have no part in it but for `slope`."""
    module = rng.normal(size=(N_DONORS, 6)) @ rng.normal(size=(6, N_GENES))
    level = module + rng.normal(size=(N_DONORS, N_GENES))
    age = rng.uniform(20, 90, N_DONORS)
    if slope is not None:
        level += np.outer((age - age.mean()) / age.std(), slope)
    return level, np.column_stack([np.ones(N_DONORS), age])


def compare(level, X, known, rng, n=199):
    slope = fit_slopes(level, X)["slope"].to_numpy()
    null = null_slopes(*get_residuals(level, X), np.arange(N_DONORS), n, rng)
    strata = make_strata(level.mean(axis=0)[:, None])
    return concordance(known, slope, null, strata, seed=0)


def test_null_slopes_are_slopes_of_permuted_ages():
    """Without covariates, least squares on permuted ages itself."""
    rng = np.random.default_rng(0)
    level, X = genes_together(rng)
    drawn = null_slopes(*get_residuals(level, X), np.arange(N_DONORS), 3000, np.random.default_rng(1))
    by_hand = []
    for _ in range(3000):
        age = rng.permutation(X[:, 1])
        by_hand.append(np.polyfit(age, level, 1)[0])
    by_hand = np.array(by_hand)
    np.testing.assert_allclose(drawn.std(axis=0), by_hand.std(axis=0), rtol=0.12)
    found, expected = np.corrcoef(drawn.T), np.corrcoef(by_hand.T)
    assert np.abs(found - expected).mean() < 0.04
    assert np.abs(expected[np.triu_indices(N_GENES, 1)]).mean() > 0.3  # genes do go together


def test_donors_of_several_samples_are_exchanged_whole():
    donor = np.repeat(["a", "b", "c", "d"], [2, 2, 1, 1])
    weight = np.array([1, 2, 3, 4, 5, 6.0])
    drawn = null_slopes(np.eye(6, dtype=np.float32), weight, donor, 200, np.random.default_rng(0))
    assert {tuple(row) for row in drawn[:, :4]} == {(1, 2, 3, 4), (3, 4, 1, 2)}
    assert {tuple(row) for row in drawn[:, 4:]} == {(5, 6), (6, 5)}


def test_null_is_calibrated_though_genes_go_together():
    """Known values with the modules of the cells, as those of another study of them are, but of no age."""
    p = {"p_value": [], "rho_p_value": []}
    for seed in range(120):
        rng = np.random.default_rng(seed)
        level, X = genes_together(rng)
        known = rng.normal(size=N_DONORS) @ level
        found = compare(level, X, known, rng)
        for name in p:
            p[name].append(found[name])
    for values in p.values():
        assert 0.01 <= (np.array(values) < 0.05).mean() <= 0.11


def test_agreement_is_found_though_genes_go_together():
    rng = np.random.default_rng(5)
    truth = rng.normal(size=N_GENES)
    found = compare(*genes_together(rng, 2 * truth), truth + rng.normal(size=N_GENES), rng, n=999)
    assert found["rho_p_value"] < 0.01
    assert found["share_low"] > found["null_high"]


def test_what_strata_make_of_both_is_taken_off():
    """Two scores that both go with the place of the gene, and with nothing else."""
    rng = np.random.default_rng(0)
    place = np.linspace(-1, 1, N_GENES)
    p = []
    for _ in range(60):
        level, X = genes_together(rng)
        slope = fit_slopes(level, X)["slope"].to_numpy()
        null = null_slopes(*get_residuals(level, X), np.arange(N_DONORS), 199, rng)
        shift = 3 * slope.std() * place
        known = place + rng.normal(0, 0.3, N_GENES)
        found = concordance(known, slope + shift, null, make_strata(place[:, None]), seed=0)
        assert found["rho"] > 0.3
        p.append(found["rho_p_value"])
    assert (np.array(p) < 0.05).mean() <= 0.12
