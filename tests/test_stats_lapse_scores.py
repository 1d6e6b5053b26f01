"""Scores of lapses: what they measure, and that their inference holds for donors."""

import numpy as np
import pandas as pd
import pytest

from maxtoki_toolkit.stats.lapse_scores import score_lapses


def simulate(seed, *, n_donors=10, n=300, slope=0.7, other_contexts=False, donor_sd=80, cell_sd=80):
    """Prompts of two context cells, answered by a clock that errs by donor and by cell."""
    rng = np.random.default_rng(seed)
    time, error = rng.integers(240, 1000, n_donors), rng.normal(0, donor_sd, n_donors)
    query = rng.integers(0, n_donors, n)
    n_others = 30 if other_contexts else n_donors
    their_time, their_error = time, error
    if other_contexts:
        their_time, their_error = rng.integers(240, 1000, n_others), rng.normal(0, donor_sd, n_others)
    context = rng.integers(0, n_others, (n, 2))

    def clock(time, error):
        return slope * (time - 620) + error + rng.normal(0, cell_sd, time.shape)

    last = their_time[context[:, -1]]
    before = clock(their_time[context], their_error[context]) + last[:, None] - their_time[context]
    table = pd.DataFrame({"lapse": time[query] - last, "time": time[query]})
    table["predicted"] = clock(time[query], error[query]) - before.mean(axis=1)
    table["query"] = [f"cell {i}" for i in range(n)]
    table["donor"] = [f"q{i}" for i in query]
    for i in range(2):
        table[f"donor_{i}"] = [f"{'c' if other_contexts else 'q'}{j}" for j in context[:, i]]
    return table


def score(table, **settings):
    return score_lapses(table, {"model": "predicted"}, **settings).iloc[0]


def test_measures_what_was_planted():
    table = simulate(0)
    table["predicted"] = 0.5 * table["lapse"] + 7
    error = table["predicted"] - table["lapse"]
    row = score(table)
    assert row["r"] == pytest.approx(1)
    assert row["slope"] == pytest.approx(0.5)
    assert row["spread"] == pytest.approx(0.5)
    assert row["bias"] == pytest.approx(error.mean())
    assert row["median_error"] == pytest.approx(np.median(np.abs(error)))
    assert row["mean_error"] == pytest.approx(np.abs(error).mean())
    assert row["r2"] == pytest.approx(1 - (error**2).mean() / table["lapse"].var(ddof=0))
    assert (row["n_prompts"], row["n_units"], row["unit"]) == (300, 10, "donor")
    assert row["p_value"] < 0.01
    noisy = simulate(1)
    expected = np.polyfit(noisy["lapse"], noisy["predicted"], 1)[0]
    row = score(noisy)
    assert row["slope"] == pytest.approx(expected)
    assert row["r"] == pytest.approx(np.corrcoef(noisy["lapse"], noisy["predicted"])[0, 1])


def test_interval_is_the_jackknife():
    """Against the textbook, one donor at a time."""
    from scipy import stats

    table = simulate(2, n_donors=6)
    row = score(table)
    roles = table[["donor", "donor_0", "donor_1"]]
    left = np.array(
        [table[~(roles == d).any(axis=1)].eval("predicted - lapse").mean() for d in roles["donor"].unique()]
    )
    error = np.sqrt(5 / 6 * ((left - left.mean()) ** 2).sum())
    assert row["bias_high"] - row["bias"] == pytest.approx(stats.t.ppf(0.975, 5) * error)
    assert row["bias"] - row["bias_low"] == pytest.approx(stats.t.ppf(0.975, 5) * error)


@pytest.mark.slow
@pytest.mark.parametrize("other_contexts", [False, True])
def test_intervals_cover_with_donor_effects(other_contexts):
    """95% intervals hold what infinitely many donors would give; resampling query donors alone would not."""
    truth = score(simulate(0, n_donors=3000, n=100_000))
    measures = ["bias", "slope", "r", "spread", "median_error"]
    rows = [score(simulate(seed, n_donors=12, other_contexts=other_contexts)) for seed in range(1, 201)]
    for measure in measures:
        held = [row[f"{measure}_low"] <= truth[measure] <= row[f"{measure}_high"] for row in rows]
        # 200 sets: 95% less three standard errors.
        assert np.mean(held) > 0.904, measure
    if not other_contexts:
        alone = [score(simulate(s, n_donors=12).drop(columns=["donor_0", "donor_1"])) for s in range(1, 101)]
        assert np.mean([row["slope_low"] <= truth["slope"] <= row["slope_high"] for row in alone]) < 0.9


@pytest.mark.slow
def test_null_is_calibrated_for_donors():
    """A clock that errs by donor and knows no time is significant in 5% of sets; prompts are not independent."""
    tables = [simulate(seed, slope=0.0) for seed in range(600)]
    share = np.mean([score(table)["p_value"] < 0.05 for table in tables])
    # 600 sets: 5% with three standard errors of 0.9% each way.
    assert 0.023 < share < 0.077
    naive = [score(table.drop(columns=["donor", "donor_0", "donor_1"])) for table in tables[:100]]
    assert np.mean([row["p_value"] < 0.05 for row in naive]) > 0.25
    assert naive[0]["unit"] == "query cell"


def test_context_alone_is_not_significant():
    """Whoever answers with the mean time less the last context's correlates with the lapse, as the null says."""
    table = simulate(3)
    table["predicted"] = 600 - (table["time"] - table["lapse"])
    row = score(table)
    assert row["r"] > 0.5
    assert row["r_null_low"] < row["r"] < row["r_null_high"]
    assert row["p_value"] > 0.05


def test_group_alone_is_not_significant():
    """Groups of different times: the group, which the context shows, tells much of the time."""
    young, old = simulate(4), simulate(5)
    old[["lapse", "time"]] += 2000
    old[["donor", "donor_0", "donor_1"]] = "o" + old[["donor", "donor_0", "donor_1"]]
    table = pd.concat([young.assign(group="young"), old.assign(group="old")], ignore_index=True)
    table["predicted"] = np.where(table["group"] == "old", 2000.0, 0.0)
    row = score(table, groupby="group")
    assert row["r"] > 0.9
    assert row["p_value"] > 0.05
    assert score(table)["p_value"] < 0.05


def test_few_donors_cannot_be_significant():
    """Three donors have six orders, so one in six is as good as the best."""
    table = simulate(6, n_donors=3)
    table["predicted"] = table["lapse"].astype(float)
    assert score(table)["p_value"] > 0.1
    two = table[table["donor"] != "q0"]
    row = score(two)
    assert np.isnan([row["r_low"], row["bias_high"]]).all()
    assert row["p_value"] > 0.4


@pytest.mark.parametrize("n", [1, 2, 300])
def test_constants_do_not_crash(n):
    table = simulate(7).head(n)
    table["predicted"] = 0.1 + 0.2
    row = score(table)
    assert np.isnan([row["r"], row["r_low"], row["r_null_low"], row["p_value"]]).all()
    assert row["median_error"] == pytest.approx(np.median(np.abs(0.3 - table["lapse"])))
    table["lapse"], table["predicted"] = 5, np.arange(n) / 7
    row = score(table)
    assert np.isnan([row["r"], row["slope"], row["r2"], row["spread"]]).all()
    assert row["bias"] == pytest.approx((np.arange(n) / 7).mean() - 5)


def test_groups_missing_values_and_many_units():
    table = simulate(8, n_donors=150, n=900)
    table["group"] = np.where(np.arange(900) % 3, "a", "b")
    table["other"] = table["predicted"].where(table["group"] == "a")
    scores = score_lapses(table, {"model": "predicted", "other": "other"}, groupby="group")
    assert list(zip(scores["predictor"], scores["group"], strict=True)) == [
        ("model", "all"), ("model", "a"), ("model", "b"), ("other", "all"), ("other", "a"),
    ]  # fmt: skip
    assert scores["n_prompts"].tolist() == [900, 600, 300, 600, 600]
    assert scores["n_units"].max() > 140
    measures = ["r", "slope", "r2", "spread", "bias", "median_error", "mean_error"]
    for measure in measures:
        assert (scores[f"{measure}_low"] < scores[measure]).all()
        assert (scores[measure] < scores[f"{measure}_high"]).all()
    pd.testing.assert_frame_equal(
        scores, score_lapses(table, {"model": "predicted", "other": "other"}, groupby="group")
    )


def test_error_ratio_is_paired():
    """Two predictors that share the donors' errors are told apart though their own intervals overlap."""
    table = simulate(9, n_donors=20, donor_sd=150, cell_sd=20)
    rng = np.random.default_rng(0)
    table["worse"] = (
        table["lapse"] + 1.3 * (table["predicted"] - table["lapse"]) + rng.normal(0, 5, len(table))
    )
    scores = score_lapses(table, {"model": "predicted", "worse": "worse"}, reference="model").set_index(
        "predictor"
    )
    assert scores.loc["model", "error_ratio"] == 1
    row = scores.loc["worse"]
    assert row["error_ratio"] == pytest.approx(scores.loc["model", "median_error"] / row["median_error"])
    assert row["error_ratio_high"] < 1
    assert row["median_error_low"] < scores.loc["model", "median_error_high"]


def distances(rng, slope, n=400, n_queries=60):
    """Prompts of cells in ten images, some of which lie in denser places than others."""
    query = rng.integers(0, n_queries, n)
    density = rng.normal(0, 20, n_queries)
    lapse = 100 + density[query] + rng.normal(0, 20, n)
    own = rng.normal(0, 20, n_queries)  # what a model reads of a cell whatever is asked
    table = pd.DataFrame({"lapse": lapse, "time": 0.0, "query": [f"cell {i}" for i in query]})
    table["predicted"] = slope * lapse + own[query] + rng.normal(0, 20, n)
    table["donor"] = table["group"] = [f"image {i % 10}" for i in query]
    return table


def test_distances_have_a_null_of_their_own():
    found = score(distances(np.random.default_rng(0), 0.5), groupby="group", distances=True)
    assert found["r"] > found["r_null_high"] > found["r_null_low"]
    assert found["p_value"] < 0.01


def test_null_of_distances_is_calibrated():
    """Though prompts of a query cell are alike in both."""
    p_values = [
        score(distances(np.random.default_rng([1, i]), 0.0, n=200), distances=True)["p_value"]
        for i in range(60)
    ]
    assert 0.35 < np.mean(p_values) < 0.65
    assert np.mean(np.array(p_values) < 0.05) <= 0.15
