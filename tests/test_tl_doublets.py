"""Doublets: planted ones are found, permuted labels are not, and what is judged was not trained on."""

import importlib

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from helpers import on_copy
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

import maxtoki_toolkit as mt
from maxtoki_toolkit.stats.binary_scores import at_odds, auroc_ap, calibration_error

SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
SETTINGS = {"groupby": "cell_type", "donor_key": "donor_id"}


@pytest.fixture(autouse=True)
def few_trees(monkeypatch):
    """Enough for all but what is asked of `judged`, which is made before."""
    monkeypatch.setattr(importlib.import_module("maxtoki_toolkit.tl.doublets"), "N_TREES", 25)


def judge(adata, model, **settings):
    """Look for doublets, with settings of the simulation among the others."""
    simulation, others = mt.pp.DoubletSimulation.split(settings)
    mt.tl.doublets(adata, model, simulation=simulation, **others)


def prepare(n_cells, n_donors, **settings):
    adata = mt.datasets.aging_atlas(n_cells, n_donors, n_genes=500, **settings)
    planted = adata.obs_names.isin(adata.uns.pop("truth")["doublets"]["cell"])
    adata.obs["planted"] = planted
    mt.pp.map_genes(adata)
    vocab = mt.models.Vocabulary.from_anndata(adata)
    mt.pp.rank_value_encode(adata, vocab)
    model = mt.models.build_model({**SHAPE, "max_position_embeddings": 128}, vocab)
    mt.tl.embed(adata, model)
    return adata, model


@pytest.fixture(scope="module")
def atlas():
    return prepare(900, 12, seed=3)


@pytest.fixture(scope="module")
def judged(atlas):
    adata, model = atlas
    return on_copy(judge, adata, model, truth_key="planted", same_type=1.0, **SETTINGS)


def test_planted_doublets_are_found(judged):
    scores = mt.get.doublet_scores(judged)
    truth = scores[scores["set"] == "truth"].set_index("detector")
    assert truth.loc["detector", "auroc"] > 0.85
    assert truth.loc["scrublet", "auroc_lead_low"] > 0
    assert truth.loc["scrublet", "average_precision_lead"] > 0
    assert truth.loc["detector", "calibration_error"] < 0.05
    simulated = scores[scores["set"] == "simulated"].set_index(["doublets", "detector"])
    assert simulated.loc[("same type", "detector"), "auroc"] > 0.8
    assert simulated.loc[("same type", "scrublet"), "auroc_lead_low"] > 0
    assert simulated.loc[("same type", "detector"), "calibration_error"] < 0.07
    assert (scores["unit"] == "donor").all()
    assert (scores["n_units"] <= 12).all()
    cells = mt.get.doublets(judged).query("population == 'cells'")
    called = (cells["score"] > 0.5).groupby(cells["truth"]).mean()
    assert called["doublet"] > 0.6
    assert called["singlet"] < 0.3


def test_permuted_labels_find_nothing(judged):
    scores = mt.get.doublet_scores(judged)
    null = scores[scores["detector"] == "permuted labels"].iloc[0]
    assert null["auroc"] == pytest.approx(0.5, abs=0.06)
    assert null["auroc_low"] < 0.5 + 0.03
    assert null["calibration_error"] < 0.08
    assert null["rate"] == pytest.approx(0.5, abs=0.02)


def test_tables_agree_with_each_other(judged):
    cells, scores = mt.get.doublets(judged), mt.get.doublet_scores(judged)
    assert cells.attrs["folds"] == "donors"
    own = cells[cells["population"] == "cells"].set_index("cell").loc[judged.obs_names]
    np.testing.assert_array_equal(own["probability"], judged.obs["doublet_probability"])
    np.testing.assert_array_equal(own["probability"] > 0.5, judged.obs["doublet"])
    assert ((own["truth"] == "doublet").to_numpy() == judged.obs["planted"]).all()
    np.testing.assert_allclose(own["probability"], at_odds(own["score"].to_numpy(), 0.05))
    # A donor is in one fold, with the doublets of his or her cells.
    assert (cells.groupby("donor")["fold"].nunique() == 1).all()
    assert (own["donor"] == judged.obs["donor_id"].astype(str)).all()
    compared = cells[cells["scrublet_hidden"].notna()]
    positive = compared["population"] == "doublets"
    row = scores[(scores["set"] == "simulated") & (scores["doublets"] == "all")].set_index("detector")
    for detector, column in (("detector", "score"), ("scrublet", "scrublet_hidden")):
        assert row.loc[detector, "auroc"] == pytest.approx(roc_auc_score(positive, compared[column]))
        assert row.loc[detector, "average_precision"] == pytest.approx(
            average_precision_score(positive, compared[column])
        )
    assert row.loc["detector", "n_doublets"] == positive.sum() == 900 / 5
    weight = np.where(
        cells["population"] == "doublets", 1 / (cells["population"] == "doublets").sum(), 1 / 900
    )
    brier = brier_score_loss(cells["population"] == "doublets", cells["score"], sample_weight=weight)
    assert row.loc["detector", "brier"] == pytest.approx(brier)
    singlets = mt.get.singlet_fraction(judged).set_index("population")
    assert singlets.loc["cells", "singlet_fraction"] == pytest.approx((own["score"] < 0.5).mean())
    assert (singlets["ci_low"] <= singlets["singlet_fraction"]).all()
    assert (singlets["singlet_fraction"] <= singlets["ci_high"]).all()
    assert singlets.loc["cells", "ci_low"] > singlets.loc["same-type doublets", "ci_high"]


def test_figures(judged):
    for scored_on in ("simulated", "truth"):
        fig = mt.pl.doublets(judged, scored_on=scored_on)
        roc, pr, reliability, histogram = fig.axes
        assert roc.get_xlabel() == "share of cells called"
        assert pr.get_ylabel() == "precision"
        assert "at " in reliability.get_xlabel()
        assert histogram.get_ylabel() == "cells (%)"
        rows = mt.get.doublet_scores(judged).query("set == @scored_on and detector == 'detector'")
        area = rows.iloc[-1]["auroc"]
        (line,) = [x for x in roc.lines if str(x.get_label()).startswith("detector")]
        assert np.trapezoid(line.get_ydata(), line.get_xdata()) == pytest.approx(area)


def test_neither_order_nor_what_is_judged_beside_matters(atlas):
    adata, model = atlas
    few = adata[:150].copy()
    settings = {**SETTINGS, "donor_key": None, "features": ["ranks", "size"]}
    found = on_copy(judge, few, model, **settings)
    order = np.random.default_rng(0).permutation(150)
    shuffled = on_copy(judge, few[order].copy(), model, **settings)
    np.testing.assert_array_equal(
        shuffled.obs["doublet_probability"], found.obs["doublet_probability"].to_numpy()[order]
    )
    assert mt.get.doublets(found).attrs["folds"] == "cells"
    assert set(mt.get.doublet_scores(found)["unit"]) == {"cell"}


@pytest.mark.parametrize("counted", [pytest.param(True, marks=pytest.mark.slow), False])
def test_queries(atlas, counted):
    """Doublets among queries are told from cells, by ranks alone where they have no counts."""
    adata, model = atlas
    few, other = adata[:300].copy(), adata[300:400].copy()
    other.obs_names = "other " + other.obs_names
    made = mt.pp.simulate_doublets(
        other, groupby="cell_type", simulation=mt.pp.DoubletSimulation(same_type=0.0)
    )
    mt.pp.rank_value_encode(made, model)
    queries = AnnData(
        sp.vstack([other.X, made.X], format="csr"),
        obs=pd.concat([other.obs[["n_genes_ranked"]], made.obs[["n_genes_ranked"]]]),
        var=adata.var,
        layers={"rank": sp.vstack([other.layers["rank"], made.layers["rank"]], format="csr")},
        uns={"rank_value_encode": adata.uns["rank_value_encode"]},
    )
    if not counted:
        queries.X = None
    result = on_copy(judge, few, model, groupby="cell_type", queries=queries)
    used = result.uns["doublets"]["params"]["features"]
    assert used == (["embedding", "ranks", "expression", "size"] if counted else ["embedding", "ranks"])
    asked = mt.get.doublets(result).query("population == 'queries'")
    assert asked["cell"].tolist() == queries.obs_names.tolist()
    assert asked["fold"].isna().all()
    assert roc_auc_score(np.arange(200) >= 100, asked["score"]) > (0.85 if counted else 0.75)
    singlets = mt.get.singlet_fraction(result).set_index("population").loc["queries"]
    assert singlets["n_cells"] == 200
    assert singlets["unit"] == "cell"
    assert singlets["singlet_fraction"] == (asked["score"] < 0.5).mean()
    if counted:
        return
    with pytest.raises(ValueError, match="The queries have no counts, so 'size' is not known"):
        judge(few, model, queries=queries, features=["ranks", "size"])
    with pytest.raises(ValueError, match="300 queries have the name of a cell"):
        judge(few, model, queries=few)


def test_cells_with_ranks_alone(atlas):
    adata, model = atlas
    few = AnnData(
        X=None, obs=adata.obs[:100].copy(), var=adata.var, layers={"rank": adata.layers["rank"][:100]}
    )
    few.uns = {"rank_value_encode": adata.uns["rank_value_encode"]}
    judge(few, model, kind="ranks", groupby="cell_type")
    assert set(mt.get.doublet_scores(few)["detector"]) == {"detector", "permuted labels"}
    assert len(mt.pl.doublets(few).axes) == 4


def test_no_cell_is_judged_by_what_it_had_a_part_in(atlas, monkeypatch):
    """References and training sets of a fold hold neither its cells nor doublets of them."""
    adata, model = atlas
    module = importlib.import_module("maxtoki_toolkit.tl.doublets")
    seen, describe, cross_fit = [], module.describe, module._cross_fit

    def listen(spaces, size, reference, items, is_cell, labels, *, seed):
        seen.append((reference, items))
        return describe(spaces, size, reference, items, is_cell, labels, seed=seed)

    def remember(spaces, size, items, seed):
        seen.append(items)
        return cross_fit(spaces, size, items, seed)

    monkeypatch.setattr(module, "describe", listen)
    monkeypatch.setattr(module, "_cross_fit", remember)
    result = on_copy(judge, adata[:200].copy(), model, features=["ranks"], donor_key="donor_id")
    items, *described = seen
    n = 200
    assert len(described) == items.fold.max() * (items.fold.max() + 1) / 2
    for reference, judged in described:
        assert not set(items.fold[reference]) & set(items.fold[judged])
        assert not set(items.donor[reference]) & set(items.donor[judged])
    assert len(items.fold) == n + result.uns["doublets"]["params"]["n_doublets"]


def test_areas_are_those_of_sklearn():
    rng = np.random.default_rng(0)
    score, positive = rng.integers(0, 30, 300) / 30, rng.random(300) < 0.3
    weight = rng.integers(0, 3, (4, 300)).astype(float)
    areas, averages = auroc_ap(score, positive, weight)
    for w, area, average in zip(weight, areas, averages, strict=True):
        assert area == pytest.approx(roc_auc_score(positive, score, sample_weight=w))
        assert average == pytest.approx(average_precision_score(positive, score, sample_weight=w))
    assert np.isnan(auroc_ap(score, positive, 1.0 * positive[None])).all()
    calibrated = rng.random(20_000)
    assert calibration_error(calibrated, rng.random(20_000) < calibrated, np.ones(20_000)) < 0.02
    assert calibration_error(calibrated**2, rng.random(20_000) < calibrated, np.ones(20_000)) > 0.1


def test_truth_is_used_for_scoring_only(atlas):
    adata, model = atlas
    few = adata[:60].copy()
    few.obs["label"] = pd.Categorical(np.array(["Singlet", "Doublet", "Negative"])[np.arange(60) % 3])
    settings = {"features": ["ranks"], "groupby": "cell_type"}
    plain = on_copy(judge, few, model, **settings)
    known = on_copy(judge, few, model, **settings, truth_key="label")
    np.testing.assert_array_equal(plain.obs["doublet_probability"], known.obs["doublet_probability"])
    scores = mt.get.doublet_scores(known).query("set == 'truth'")
    assert (scores["n_doublets"] == 20).all()
    assert (scores["n_cells"] == 20).all()
    with pytest.raises(ValueError, match="Nothing was scored on 'truth'"):
        mt.pl.doublets(plain, scored_on="truth")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"groupby": "lineage"}, KeyError, r"Did not find \.obs\['lineage'\]"),
        ({"truth_key": "sex"}, ValueError, "must be boolean, or name both 'singlet' and 'doublet'"),
        ({"same_type": 0.5}, ValueError, "Give groupby"),
        ({"features": ["depth"]}, ValueError, "no features 'depth'; choose from embedding"),
        ({"features": ["size"]}, ValueError, "'size' alone has no neighbours"),
        ({"kind": "ranks", "features": ["size"]}, ValueError, "Doublets of ranks have no counts"),
        ({"kind": "sums"}, ValueError, "no doublets of 'sums'"),
        ({"expected_rate": 1.0}, ValueError, "between 0 and 1, got 1.0"),
        ({"capture": (0.9, 0.1)}, ValueError, "capture must be two shares"),
    ],
)
def test_refusals(atlas, settings, error, message):
    adata, model = atlas
    few = adata[:60].copy()
    with pytest.raises(error, match=message):
        judge(few, model, **settings)
    assert "doublets" not in few.uns
    assert "doublet" not in few.obs


def test_too_few(atlas):
    adata, model = atlas
    with pytest.raises(ValueError, match="40 cells are too few"):
        judge(adata[:40].copy(), model)
    logged = adata[:60].copy()
    logged.X = logged.X.log1p()
    with pytest.raises(ValueError, match="looks log-normalised"):
        judge(logged, model)


@pytest.mark.slow
def test_hashtags(source, monkeypatch):
    """Real doublets of four cell lines: at least as good as scrublet, which is told nothing either."""
    import anndata

    monkeypatch.undo()
    adata = anndata.read_h5ad(source / "hto_doublets_2000.h5ad")
    adata.var_names = adata.var["ensembl_id"].astype(str)
    model = mt.load_model("demo")
    mt.pp.map_genes(adata, model, min_overlap=0.0)
    mt.pp.rank_value_encode(adata, model)
    judge(
        adata,
        model,
        truth_key="doublet_true_labels",
        features=["ranks", "expression", "size"],
        expected_rate=0.1,
    )
    scores = mt.get.doublet_scores(adata).query("set == 'truth'").set_index("detector")
    assert scores.loc["scrublet", "auroc_lead_low"] > 0
    assert scores.loc["scrublet", "average_precision_lead"] > 0
