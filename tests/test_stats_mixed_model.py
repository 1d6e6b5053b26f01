"""The effect of a condition: known effects are found, nothing is found where nothing is, donors are the unit."""

import numpy as np
import pandas as pd
import pytest

from maxtoki_toolkit.stats.mixed_model import Readings, estimate_effect, fieller, permutation_p


def simulate(
    rng, *, effect, n_case=8, n_control=12, slope=0.6, donor_sd=40, cell_sd=150, n_contexts=3, n_cells=None
):
    """Months that are read from cells, after contexts that shift all readings."""
    case = np.repeat([True, False], [n_case, n_control])
    age = rng.integers(240, 1080, len(case))
    stratum = rng.choice(["female", "male"], len(case))
    level = (
        300 + slope * (age + effect * case) + 25 * (stratum == "male") + rng.normal(0, donor_sd, len(case))
    )
    n = rng.integers(3, 25, len(case)) if n_cells is None else np.full(len(case), n_cells)
    donor = np.repeat(np.arange(len(case)), n)
    cells = pd.DataFrame(
        {
            "donor": [f"d{i}" for i in donor],
            "time": age[donor].astype(float),
            "case": case[donor],
            "stratum": stratum[donor],
        }
    )
    of_cell = level[donor] + rng.normal(0, cell_sd, len(donor))
    shift = rng.normal(0, 60, n_contexts)
    cell, context = (a.ravel() for a in np.mgrid[: len(donor), :n_contexts])
    # A donor is not read after a context with his or her own cells.
    kept = context != donor[cell] % (2 * n_contexts)
    cell, context = cell[kept], context[kept]
    read = of_cell[cell] + shift[context] + rng.normal(0, 30, len(cell))
    return Readings(read, cell, context), cells


def test_a_known_effect_without_noise():
    rng = np.random.default_rng(0)
    readings, cells = simulate(rng, effect=180, donor_sd=1e-6, cell_sd=1e-6)
    effect, donors = estimate_effect(readings, cells, n_permutations=500)
    assert effect["effect"] == pytest.approx(180, abs=15)
    assert effect["raw"] == pytest.approx(0.6 * 180, abs=10)
    assert effect["age_slope"] == pytest.approx(0.6, abs=0.02)
    assert effect["p_value"] < 0.01
    assert donors.loc[donors["case"], "acceleration"].mean() == pytest.approx(180, abs=20)
    assert (effect["n_donors_condition"], effect["n_donors_control"]) == (8, 12)


def studies(effect, n, **settings):
    """What is found in so many studies of unequal numbers of cells."""
    rng = np.random.default_rng(effect)
    return pd.DataFrame(
        [
            estimate_effect(*simulate(rng, effect=effect, **settings), n_permutations=199, seed=i)[0]
            for i in range(n)
        ]
    )


@pytest.mark.parametrize("effect", [0, 180])
def test_a_few_studies_agree_with_what_is_planted(effect):
    """What 120 of each say (below), with the room that 20 leave."""
    table = studies(effect, 20)
    assert (table["method"].str.startswith("mixed model")).mean() > 0.4
    covered = (table["effect_low"] <= effect) & (table["effect_high"] >= effect)
    assert covered.mean() >= 0.8
    # The intervals are no wider than the estimates spread.
    width = (table["effect_high"] - table["effect_low"]).median()
    assert width < 9 * table["effect"].std()
    called = (table["p_value"] < 0.05).mean()
    if effect:
        assert called >= 0.7
        assert table["effect"].median() == pytest.approx(effect, rel=0.25)
    else:
        assert called <= 0.2
        assert abs(table["effect"].median()) < 50


@pytest.mark.slow
@pytest.mark.parametrize("effect", [0, 180])
def test_intervals_cover_and_nothing_is_called_too_often(effect):
    """95% intervals and tests at 5%, over 120 studies of unequal numbers of cells."""
    table = studies(effect, 120)
    covered = (table["effect_low"] <= effect) & (table["effect_high"] >= effect)
    # Three standard errors of a share of 120 are 6 points.
    assert 0.89 <= covered.mean() < 1
    called = (table["p_value"] < 0.05).mean()
    if effect:
        assert called > 0.8
        assert table["effect"].median() == pytest.approx(effect, rel=0.15)
    else:
        assert 0 < called <= 0.11


def test_a_test_of_donors_is_not_one_of_cells():
    """Nothing planted: donors are called at the stated rate, cells as if they were independent far more often."""
    rng = np.random.default_rng(0)
    by_donors, by_cells = [], []
    for i in range(100):
        readings, cells = simulate(rng, effect=0, donor_sd=80)
        X = np.column_stack([np.ones(len(cells)), cells["case"], cells["time"], cells["stratum"] == "male"])
        mean = pd.Series(readings.age).groupby(readings.cell).mean()
        X = X[mean.index].astype(float)
        beta, *_ = np.linalg.lstsq(X, mean.to_numpy(), rcond=None)
        residual = mean.to_numpy() - X @ beta
        error = np.sqrt(residual @ residual / (len(X) - 4) * np.linalg.inv(X.T @ X)[1, 1])
        by_cells.append(abs(beta[1] / error) > 1.96)
        donor = cells["donor"].to_numpy()[mean.index]
        whole = pd.DataFrame(X).assign(y=mean.to_numpy()).groupby(donor).mean()
        p = permutation_p(whole["y"].to_numpy(), whole[[0, 1, 2, 3]].to_numpy(), 199, i)
        by_donors.append(p < 0.05)
    assert np.mean(by_donors) <= 0.14
    assert np.mean(by_cells) > 2 * np.mean(by_donors)


def test_without_a_slope_there_is_no_interval():
    rng = np.random.default_rng(3)
    effect, _ = estimate_effect(*simulate(rng, effect=300, slope=0.0), n_permutations=99)
    assert np.isnan(effect["effect_low"])
    assert effect["age_slope_low"] < 0 < effect["age_slope_high"]


def test_contexts_shift_all_cells_alike():
    """A context that only some donors follow does not pass for an effect."""
    rng = np.random.default_rng(4)
    readings, cells = simulate(rng, effect=0, donor_sd=1e-6, cell_sd=1e-6, n_contexts=2)
    case = cells["case"].to_numpy()[readings.cell]
    # Controls are read after context 1 but for one donor, patients after both.
    kept = case | (readings.context == 1) | (cells["donor"].to_numpy()[readings.cell] == "d15")
    age = readings.age + np.where(readings.context == 0, 500, 0)
    part = Readings(age[kept], readings.cell[kept], readings.context[kept])
    effect, _ = estimate_effect(part, cells, n_permutations=99)
    assert abs(effect["effect"]) < 40


def test_one_cell_a_donor_is_least_squares():
    rng = np.random.default_rng(5)
    readings, cells = simulate(rng, effect=100, n_cells=1, n_contexts=1)
    effect, _ = estimate_effect(
        Readings(readings.age, readings.cell, 0 * readings.context), cells, n_permutations=99
    )
    assert effect["method"] == "least squares on the donors' means"


def test_fieller_is_the_set_of_ratios_that_are_not_rejected():
    pair, covariance, t = np.array([2.0, 5.0]), np.array([[0.5, 0.1], [0.1, 0.6]]), 2.2
    ratio, low, high = fieller(pair, covariance, t)
    assert low < ratio == 0.4 < high
    for end in (low, high):
        error = np.sqrt(covariance[0, 0] - 2 * end * covariance[0, 1] + end**2 * covariance[1, 1])
        assert abs(pair[0] - end * pair[1]) / error == pytest.approx(t)
    assert np.isnan(fieller(np.array([2.0, 1.0]), covariance, t)[1])
    assert np.isnan(fieller(np.array([2.0, -5.0]), covariance, t)[0])


def test_permutation_p_with_few_donors():
    """Three against three: 20 ways, of which the extreme one and its mirror image are as far."""
    X = np.column_stack([np.ones(6), [1, 1, 1, 0, 0, 0]])
    p = permutation_p(np.array([11.0, 12, 13, 1, 2, 3]), X, 4000, 0)
    assert p == pytest.approx(0.1, abs=0.02)
    assert np.isnan(permutation_p(np.arange(6.0), np.column_stack([X[:, 1], X[:, 1]]), 99, 0))
