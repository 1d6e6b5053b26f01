"""Treated cells against controls by their neighbours: planted effects, none, donors, and refusals."""

import importlib

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.sparse import csr_matrix

import maxtoki_toolkit as mt
from maxtoki_toolkit.stats.separability import area_covariance, nearest, neighbor_areas


def cells(seed=0, *, shift=0.0, n=60, donors=0, nested=False, donor_sd=0.0):
    """Cells of two groups; in group "g1" treated cells are moved along one of five axes."""
    rng = np.random.default_rng(seed)
    n_all = 4 * n
    obs = pd.DataFrame(
        {
            "group": np.repeat(["g1", "g2"], 2 * n),
            "drug": np.tile(np.repeat(["DMSO", "x"], n), 2),
        },
        index=[f"c{i}" for i in range(n_all)],
    )
    Z = rng.normal(size=(n_all, 5))
    Z[:, 0] += shift * ((obs["drug"] == "x") & (obs["group"] == "g1"))
    if donors:
        number = np.arange(n_all) % donors
        if nested:
            number = number // 2 * 2 + (obs["drug"] == "x")
        obs["donor_id"] = [f"d{i}" for i in number]
        Z += donor_sd * rng.normal(size=(donors + 1, 5))[number]
    counts = csr_matrix(rng.poisson(3, (n_all, 40)).astype(np.float32))
    return AnnData(counts, obs=obs, obsm={"Z": Z})


SETTINGS = {
    "use_rep": "Z",
    "condition_key": "drug",
    "control": "DMSO",
    "groupby": "group",
    "n_permutations": 99,
}


def run(adata, **settings):
    mt.tl.separability(adata, **{**SETTINGS, **settings})
    return mt.get.table(adata, "separability").set_index(["group", "embedding"])


def test_planted_effect():
    """It is found where it was planted, by the embedding that has it alone."""
    found = run(cells(shift=2.5))
    assert found.loc[("g1", "Z"), "low"] > 0.8
    assert found.loc[("g1", "Z"), "q_value"] < 0.05
    assert found.loc[("g1", "PCA"), "difference_low"] > 0.1
    assert found.loc[("g2", "Z"), "q_value"] > 0.05
    assert found.loc[("g1", "depth"), "q_value"] > 0.05
    assert (found["design"] == "cells").all()
    assert found["null"].between(0.47, 0.53).all()


@pytest.fixture
def no_pca(monkeypatch):
    """PCA takes most of the time, and is another's."""
    module = importlib.import_module(
        "maxtoki_toolkit.tl.separability"
    )  # `mt.tl.separability` is the function
    monkeypatch.setattr(
        module, "principal_components", lambda cells, n, seed: np.asarray(cells.obsm["Z"])[:, 1:]
    )


@pytest.mark.usefixtures("no_pca")
@pytest.mark.parametrize("design", [{}, {"donors": 4}])
def test_nothing_to_find(design):
    """P values are as often small as they should be, and intervals hold chance."""
    p_values, covered = [], []
    for seed in range(20):
        found = run(cells(seed, n=40, donor_sd=1.0, **design), n_neighbors=5, n_permutations=49)
        p_values += found["p_value"].tolist()
        covered += ((found["low"] <= 0.5) & (0.5 <= found["high"])).tolist()
    # 120 p values, three by three of the same cells.
    assert (np.array(p_values) <= 0.1).mean() < 0.2
    assert 0.35 < np.mean(p_values) < 0.65
    assert np.mean(covered) > 0.87


@pytest.mark.usefixtures("no_pca")
def test_donors_are_the_units():
    found = run(cells(shift=2.5, n=100, donors=5, donor_sd=3.0), n_neighbors=7)
    assert (found["design"] == "within donors").all()
    assert (found["n_donors"] == 5).all()
    # However different donors are, within each the drug is seen.
    assert found.loc[("g1", "Z"), "low"] > 0.75
    assert found.loc[("g2", "Z"), "q_value"] > 0.05


@pytest.mark.usefixtures("no_pca")
def test_a_donor_s_look_is_no_treatment():
    """Treated and control donors differ from one another, and the drug does nothing."""
    p_values = []
    for seed in range(8):
        found = run(cells(seed, n=80, donors=10, nested=True, donor_sd=3.0), n_neighbors=7)
        assert (found["design"] == "between donors").all()
        p_values += found.xs("Z", level="embedding")["p_value"].tolist()
    assert np.mean(np.array(p_values) < 0.05) <= 0.2
    planted = run(cells(1, n=80, donors=10, nested=True, donor_sd=0.3, shift=4.0), n_neighbors=7)
    assert planted.loc[("g1", "Z"), "p_value"] <= 0.05
    assert planted.loc[("g1", "Z"), "auroc"] > planted.loc[("g1", "Z"), "null_high"]


def test_areas_against_scikit_learn():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    X, treated = rng.normal(size=(60, 3)), np.arange(60) < 25
    X[treated] += 0.7
    neighbors = nearest(X, 9, np.arange(60) % 2)
    assert ((neighbors % 2) != (np.arange(60) % 2)[:, None]).all()
    exchanged = rng.permuted(np.tile(treated, (20, 1)), axis=1)
    found = neighbor_areas(neighbors, treated, exchanged)
    share = treated[neighbors].mean(axis=1)
    assert found.area == pytest.approx(roc_auc_score(treated, share))
    by_hand = [roc_auc_score(labels, labels[neighbors].mean(axis=1)) for labels in exchanged]
    np.testing.assert_allclose(found.null, by_hand)
    drawn = []
    for _ in range(400):
        rows = np.concatenate(
            [rng.choice(np.flatnonzero(treated), 25), rng.choice(np.flatnonzero(~treated), 35)]
        )
        drawn.append(roc_auc_score(treated[rows], share[rows]))
    assert np.sqrt(area_covariance([found.parts])[0, 0]) == pytest.approx(np.std(drawn), rel=0.2)


@pytest.mark.usefixtures("no_pca")
def test_refusals():
    adata = cells()
    with pytest.raises(KeyError, match=r"obsm\['X_maxtoki'\].*mt.tl.embed"):
        run(adata, use_rep="X_maxtoki")
    with pytest.raises(ValueError, match="No cell is a control"):
        run(adata, control="vehicle")
    with pytest.raises(ValueError, match="No group has 60 treated"):
        run(cells(n=20), n_neighbors=60)
    few = cells()
    few = few[
        ~((few.obs["group"] == "g2") & (few.obs["drug"] == "x") & (np.arange(few.n_obs) % 10 > 0))
    ].copy()
    with pytest.warns(UserWarning, match=r"1 of 2 groups and conditions have too few .* \(first: g2, x\)"):
        assert run(few).index.get_level_values("group").unique().tolist() == ["g1"]


@pytest.mark.usefixtures("no_pca")
def test_figure():
    adata = cells(shift=2.0)
    run(adata)
    ax = mt.pl.separability(adata)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["g1: x", "g2: x"]
    assert ax.get_legend() is not None
