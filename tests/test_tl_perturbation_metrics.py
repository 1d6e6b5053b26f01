"""Scores of predicted responses: by hand, with planted truths, and with nothing to predict."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import stats

import maxtoki_toolkit as mt
from maxtoki_toolkit.stats.response_scores import discrimination

N_GENES, EACH = 60, 80
NAMES = ["control", "a", "b", "c"]


def simulate(seed=0, *, common=1.0, own=1.0, noise=0.5):
    """Perturbations that share a change, and have one of their own in six genes each."""
    rng = np.random.default_rng(seed)
    base = np.random.default_rng(99).normal(size=N_GENES) * 2 + 5
    shared = np.zeros(N_GENES)
    shared[40:] = common
    effects = {"control": np.zeros(N_GENES)}
    for i, name in enumerate(NAMES[1:]):
        effects[name] = shared.copy()
        effects[name][6 * i : 6 * i + 6] += own * np.array([2, -2, 1.5, -1.5, 2, 2])
    label = np.repeat(NAMES, EACH)
    X = np.stack([base + effects[name] for name in label]) + rng.normal(size=(len(label), N_GENES)) * noise
    obs = pd.DataFrame(
        {
            "drug": label,
            "donor": [f"d{i % 8}" for i in range(len(label))],
            "train": np.arange(len(label)) % 2 == 0,
        },
        index=[f"c{i}" for i in range(len(label))],
    )
    true = ad.AnnData(X.astype(np.float32), obs=obs)
    perfect = ad.AnnData(
        np.stack([base + effects[name] for name in NAMES[1:]]).astype(np.float32),
        obs=pd.DataFrame({"drug": NAMES[1:]}, index=NAMES[1:]),
        var=true.var,
    )
    return true, perfect


def scores(adata, perturbation="all"):
    table = mt.get.table(adata, "perturbation_metrics")
    return table[table["perturbation"] == perturbation].set_index(["method", "score"])


SETTINGS = {"perturbation_key": "drug", "control": "control", "n_bootstrap": 60, "n_top": 6}


def test_against_scipy():
    """Each score of one prediction, by its definition."""
    true, perfect = simulate()
    rng = np.random.default_rng(1)
    guess = perfect.copy()
    guess.X = guess.X + rng.normal(size=guess.shape).astype(np.float32)
    mt.tl.perturbation_metrics(true, predicted=guess, **SETTINGS)
    table = mt.get.table(true, "perturbation_metrics")
    found = table[(table["method"] == "prediction") & (table["perturbation"] == "b")].set_index("score")[
        "value"
    ]
    X, drug = true.X.astype(float), true.obs["drug"].to_numpy()
    mean = {name: X[drug == name].mean(axis=0) for name in NAMES}
    p, m, c = guess.X[1].astype(float), mean["b"], mean["control"]
    o = np.mean([mean[name] for name in NAMES[1:]], axis=0)
    t = np.abs(stats.ttest_ind(X[drug == "b"], X[drug == "control"], equal_var=False).statistic)
    top = np.argsort(-t)[:6]
    assert found["pearson_control"] == pytest.approx(stats.pearsonr(p - c, m - c)[0], abs=1e-6)
    assert found["pearson_control_top"] == pytest.approx(
        stats.pearsonr((p - c)[top], (m - c)[top])[0], abs=1e-6
    )
    assert found["pearson_perturbed"] == pytest.approx(stats.pearsonr(p - o, m - o)[0], abs=1e-6)
    assert found["spearman_control"] == pytest.approx(stats.spearmanr(p - c, m - c)[0], abs=1e-6)
    assert found["mse"] == pytest.approx(((p - m) ** 2).mean())
    assert found["mse_top"] == pytest.approx(((p - m)[top] ** 2).mean())
    guessed = np.argsort(-np.abs(p - c))[:6]
    assert found["top_overlap"] == pytest.approx(len(set(top) & set(guessed)) / 6)
    assert found["top_direction"] == pytest.approx((np.sign(p - c)[top] == np.sign(m - c)[top]).mean())
    d = [np.sum((p - mean[name]) ** 2) for name in NAMES[1:]]
    assert found["discrimination"] == pytest.approx(np.mean([d[i] > d[1] for i in (0, 2)]))


def test_the_truth_wins_and_the_mean_does_not_see_what_is_own():
    """What all share earns the perturbation mean a good r against the control, and none against the mean perturbed."""
    true, perfect = simulate()
    mt.tl.perturbation_metrics(
        true, predicted={"perfect": perfect}, train="train", donor_key="donor", **SETTINGS
    )
    found = scores(true)
    assert true.uns["perturbation_metrics"]["params"]["resampled"] == "donors"
    assert found.loc[("perfect", "pearson_control"), "low"] > 0.97
    assert found.loc[("perfect", "pearson_perturbed"), "low"] > 0.95
    assert found.loc[("perfect", "discrimination"), "value"] == 1
    assert found.loc[("perfect", "top_overlap"), "value"] > 0.9
    assert found.loc[("perturbation mean", "pearson_control"), "value"] > 0.5
    assert abs(found.loc[("perturbation mean", "pearson_perturbed"), "value"]) < 0.3
    assert found.loc[("perturbation mean", "discrimination"), "value"] == pytest.approx(0.5, abs=0.01)
    assert abs(found.loc[("no change", "top_direction"), "value"] - 0.5) < 0.4
    assert found.loc[("perfect", "mse"), "high"] < found.loc[("no change", "mse"), "low"]
    assert found["is_baseline"].groupby("method").first().to_dict() == {
        "perfect": False,
        "perturbation mean": True,
        "no change": True,
    }


def test_nothing_to_predict():
    """No perturbation does anything: no score is good, and the interval of r that is by chance covers 0 at its rate."""
    covered = []
    rng = np.random.default_rng(5)
    for seed in range(12):
        true, perfect = simulate(seed, common=0, own=0)
        guess = perfect.copy()
        guess.X = (
            true.X[true.obs["drug"] == "control"].mean(axis=0) + 0.1 * rng.normal(size=guess.shape)
        ).astype(np.float32)
        mt.tl.perturbation_metrics(true, predicted=guess, train="train", **SETTINGS)
        found = scores(true).loc[("prediction", "pearson_perturbed")]
        covered.append(found["low"] <= 0 <= found["high"])
        assert abs(found["value"]) < 0.4
    assert np.mean(covered) >= 0.75


def test_one_perturbation_and_no_change():
    """What is not defined is NaN: the mean perturbed of one, its baseline without training cells, no change without direction."""
    true, perfect = simulate()
    true, perfect = true[true.obs["drug"].isin(["control", "a"])].copy(), perfect[["a"]].copy()
    with pytest.warns(UserWarning, match="'perturbation mean' is not known: there is no other"):
        mt.tl.perturbation_metrics(true, predicted=perfect, **SETTINGS)
    found = scores(true)
    assert np.isnan(found.loc[("prediction", "pearson_perturbed"), "value"])
    assert np.isnan(found.loc[("prediction", "discrimination"), "value"])
    assert np.isnan(found.loc[("perturbation mean", "mse"), "value"])
    for name in ("pearson_control", "spearman_control", "top_overlap", "top_direction"):
        assert np.isnan(found.loc[("no change", name), "value"])
    assert found.loc[("no change", "mse"), "value"] > 0
    mt.tl.perturbation_metrics(true, predicted=perfect, train="train", **SETTINGS)
    assert scores(true).loc[("perturbation mean", "pearson_control"), "value"] > 0.95


def test_layers_and_rows_agree():
    """Cell by cell in a layer, or as means: the same; the order of the cells does not matter."""
    true, perfect = simulate()
    rows = np.maximum(pd.Index(NAMES[1:]).get_indexer(true.obs["drug"]), 0)
    true.layers["guess"] = perfect.X[rows]
    mt.tl.perturbation_metrics(true, predicted={"layer": "guess", "rows": perfect}, train="train", **SETTINGS)
    wide = by_method(true)
    np.testing.assert_allclose(wide.loc["layer"], wide.loc["rows"], rtol=1e-5)
    order = np.random.default_rng(0).permutation(true.n_obs)
    mixed = true[order].copy()
    mt.tl.perturbation_metrics(
        mixed, predicted={"layer": "guess", "rows": perfect}, train="train", **SETTINGS
    )
    np.testing.assert_allclose(by_method(mixed), wide, rtol=1e-5)


def by_method(adata):
    table = mt.get.table(adata, "perturbation_metrics").query("perturbation == 'all'")
    return table.pivot(index="method", columns="score", values="value")


def test_discrimination_by_hand():
    truth = np.array([[[0.0], [1.0], [5.0]]])
    np.testing.assert_allclose(discrimination(np.array([[0.1], [4.0], [3.0]]), truth), [[1, 0.5, 0.75]])
    np.testing.assert_allclose(discrimination(np.full((3, 1), 2.0), truth).mean(), 0.5)
    assert np.isnan(discrimination(np.ones((1, 1)), truth[:, :1])).all()


def test_refusals():
    true, perfect = simulate()
    with pytest.raises(ValueError, match=r"0 controls .* The column has 'a', 'b', 'c'"):
        mt.tl.perturbation_metrics(true, predicted=perfect, perturbation_key="drug", control="dmso")
    with pytest.raises(ValueError, match="other genes"):
        mt.tl.perturbation_metrics(true, predicted=perfect[:, ::-1].copy(), **SETTINGS)
    with pytest.raises(ValueError, match="Nothing is predicted for 'c'"):
        mt.tl.perturbation_metrics(true, predicted=perfect[["a", "b"]].copy(), **SETTINGS)
    with pytest.raises(KeyError, match="layers"):
        mt.tl.perturbation_metrics(true, predicted="nothing", **SETTINGS)
    with pytest.raises(ValueError, match="baseline"):
        mt.tl.perturbation_metrics(true, predicted={"no change": perfect}, **SETTINGS)
    with pytest.raises(KeyError, match="drugs"):
        mt.tl.perturbation_metrics(true, predicted=perfect, perturbation_key="drugs", control="control")
    with pytest.raises(KeyError, match=r"Run mt.tl.perturbation_metrics"):
        mt.get.table(true, "perturbation_metrics")


def test_scales_that_differ_are_noticed():
    """Counts scored against logarithms, as happens with two AnnData of one experiment."""
    true, perfect = simulate()
    true.X, perfect.X = np.abs(true.X), np.abs(perfect.X) * 100
    with pytest.warns(UserWarning, match="'prediction' has a mean of .* they are not on one scale"):
        mt.tl.perturbation_metrics(true, predicted=perfect, **SETTINGS)


def test_figure():
    true, perfect = simulate()
    mt.tl.perturbation_metrics(true, predicted={"perfect": perfect}, train="train", **SETTINGS)
    axes = mt.pl.perturbation_metrics(true).axes
    assert len(axes) == 10
    assert [text.get_text() for text in axes[0].get_yticklabels()] == [
        "perfect",
        "perturbation mean",
        "no change",
    ]
    with pytest.raises(KeyError, match="'z'"):
        mt.pl.perturbation_metrics(true, perturbation="z")


def test_several_numbers_of_top_genes_and_weighted_errors():
    """By their definitions, beside what one number gives."""
    true, perfect = simulate()
    guess = perfect.copy()
    guess.X = guess.X + np.random.default_rng(1).normal(size=guess.shape).astype(np.float32)
    mt.tl.perturbation_metrics(true, predicted=guess, **SETTINGS)
    one = scores(true, "b")["value"]
    mt.tl.perturbation_metrics(true, predicted=guess, **{**SETTINGS, "n_top": (6, 20)})
    found = scores(true, "b")["value"]
    for name in ("pearson_control_top", "top_overlap", "top_direction", "mse_top"):
        assert found["prediction", f"{name}6"] == pytest.approx(one["prediction", name])
        assert ("prediction", f"{name}20") in found.index
        assert ("prediction", name) not in found.index
    X, drug = true.X.astype(float), true.obs["drug"].to_numpy()
    variance = (X[drug == "b"].var(axis=0) + X[drug == "control"].var(axis=0)) / 2
    error = (guess.X[1] - X[drug == "b"].mean(axis=0)) ** 2
    assert found["prediction", "mse_weighted"] == pytest.approx((error / variance).mean(), rel=1e-4)
    assert {label.get_xlabel() for label in mt.pl.perturbation_metrics(true).axes} >= {
        "mean squared\nerror, top 20 genes",
        "top 6 genes\nfound (share)",
    }
    with pytest.raises(ValueError, match="n_top must be numbers of genes"):
        mt.tl.perturbation_metrics(true, predicted=guess, **{**SETTINGS, "n_top": (0, 20)})
