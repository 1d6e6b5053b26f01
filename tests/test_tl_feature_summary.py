"""What features go with: planted truths are found, noise is not, and what cannot be told is said."""

import gzip
import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from scipy import stats
from sklearn.metrics import roc_auc_score

import maxtoki_toolkit as mt
from maxtoki_toolkit.stats.associations import (
    Design,
    adjusted_means,
    auroc_interval,
    label_effects,
    share_of_variance,
    sparse_spearman,
    spearman_test,
    time_effects,
    unit_aurocs,
)
from maxtoki_toolkit.stats.set_ranks import rank_sums

WIDTH, N_GENES = 40, 120
TYPE, ONE_DONOR, AGE, DEPTH, CONDITION = range(5)


def make(n_donors=12, n_cells=30, seed=0, planted=True):
    """Cells as `mt.tl.features` leaves them: five features go with something, the others are noise."""
    rng = np.random.default_rng(seed)
    n = n_donors * n_cells
    donor = np.repeat(np.arange(n_donors), n_cells)
    kind = rng.integers(0, 3, n)
    age = np.round(np.linspace(20, 80, n_donors))
    age = rng.permutation(age)[donor]
    case = (rng.permutation(n_donors) % 2)[donor]
    depth = rng.integers(20, N_GENES, n)
    activation = rng.exponential(size=(n, WIDTH)) * (rng.random((n, WIDTH)) < 0.3)
    if planted:
        activation[:, TYPE] += 2 * (kind == 1)
        activation[:, ONE_DONOR] = 3 * (donor == 4) + 0.1 * rng.random(n)
        activation[:, AGE] = age / 20 + 0.3 * rng.random(n)
        activation[:, DEPTH] = depth / 20 + 0.3 * rng.random(n)
        activation[:, CONDITION] += 1.5 * case
    ranks = rng.random((n, N_GENES)).argsort(axis=1).argsort(axis=1) + 1
    ranks[ranks > depth[:, None]] = 0
    obs = pd.DataFrame(
        {
            "donor_id": [f"d{i:02d}" for i in donor],
            "cell_type": np.array(["B", "T", "NK"])[kind],
            "age": age,
            "condition": np.where(case, "case", "control"),
            "n_genes_ranked": depth,
        },
        index=[f"c{i:05d}" for i in range(n)],
    )
    ids = [f"ENSG{i:011d}" for i in range(N_GENES)]
    names = [f"G{i}" for i in range(N_GENES)]
    var = pd.DataFrame({"ensembl_id": ids, "symbol": names, "token_id": np.arange(N_GENES)}, index=ids)
    adata = AnnData(obs=obs, var=var)
    adata.layers["rank"] = sp.csr_matrix(ranks.astype(np.uint16))
    for name in ("", "_pca", "_random"):
        values = activation if not name else rng.exponential(size=(n, 10))
        adata.obsm[f"features{name}"] = sp.csr_matrix(values.astype(np.float32))
    by_gene = rng.random((N_GENES, WIDTH)) * (rng.random((N_GENES, WIDTH)) < 0.4)
    if planted:
        by_gene[:12, TYPE] += 2
    adata.varm["features"] = sp.csr_matrix(by_gene.astype(np.float32))
    adata.varm["features_half"] = adata.varm["features"].copy()
    top = np.argsort(-by_gene, axis=0)[:3]
    genes = pd.DataFrame(
        {"feature": np.repeat(np.arange(WIDTH), 3), "symbol": np.array(names)[top.T.ravel()]}
    )
    table = pd.DataFrame(
        {
            "feature": np.arange(WIDTH),
            "density": 0.1,
            "n_cells": (activation > 0).sum(axis=0),
            "mean_rank": 30.0,
            "top_genes": [", ".join(np.array(names)[top[:, i]]) for i in range(WIDTH)],
        }
    )
    params = {"controls": ["_pca", "_random"], "donor_key": "donor_id", "seed": 0, "pool": "max"}
    params |= {"n_read": int(depth.sum()), "n_cells": n, "model": "none"}
    adata.uns["features"] = {"params": params, "features": table, "genes": genes}
    return adata


@pytest.fixture(scope="module")
def planted():
    adata = make(n_donors=16)
    sets = {"planted": [f"G{i}" for i in range(12)], "others": [f"G{i}" for i in range(40, 52)]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mt.tl.feature_summary(adata, gene_sets=sets)
    return adata


def row(table, feature, **where):
    table = table[(table["feature"] == feature)]
    for column, value in where.items():
        table = table[table[column] == value]
    assert len(table) == 1
    return table.iloc[0]


def test_planted_truths_are_found(planted):
    found = mt.get.table(planted, "feature_summary", "associations")
    kind = row(found, TYPE, column="cell_type", value="T")
    assert kind["passes"]
    assert kind["effect"] > 0.8
    assert kind["effect_low"] < kind["effect"] < kind["effect_high"]
    assert kind["n_units"] == 16
    assert kind["test"] == "t test of the donors' AUROCs"
    age = row(found, AGE, column="age")
    assert age["measure"] == "Spearman"
    assert age["effect"] > 0.9
    assert age["passes"]
    case = row(found, CONDITION, column="condition", value="case")
    assert case["effect"] == 1
    assert case["passes"]
    assert case["test"] == "Mann-Whitney test over donors"
    assert 0.5 < case["effect_low"] < case["effect_high"] == 1
    summary = mt.get.table(planted, "feature_summary").set_index("feature")
    assert summary["goes_with"][TYPE] == "cell_type: T"
    assert summary["gene_set"][TYPE] == "planted"
    assert summary["gene_set_q"][TYPE] < 1e-4
    assert summary["confounded"][[ONE_DONOR, DEPTH]].tolist() == ["donor", "depth"]
    assert summary["donor_share"][ONE_DONOR] > 0.9
    assert not found[(found["feature"] == ONE_DONOR) & (found["column"] != "age")]["passes"].any()
    assert summary["confounded"].iloc[5:].eq("").all()
    assert not found[found["feature"] > CONDITION]["passes"].any()


def test_dictionaries_are_compared(planted):
    counts = mt.get.table(planted, "feature_summary", "dictionaries").set_index(["dictionary", "column"])
    assert counts["n_pass"]["features", "cell_type"] == 1
    assert counts["n_pass"]["features", "any"] >= 3
    assert counts["n_features"]["genes", "any"] == N_GENES
    assert counts["n_units"]["features", "cell_type"] == planted.obs["donor_id"].nunique()
    assert (counts["n_pass"].drop(index="features", level=0) <= 1).all()
    best = mt.get.table(planted, "feature_summary", "best").set_index(["dictionary", "column", "value"])
    assert best["feature"]["features", "cell_type", "T"] == str(TYPE)
    assert best["held_out"]["features", "cell_type", "T"] > 0.8
    # What is best by chance in one half is not in the other.
    noise = best.loc[["features_pca", "features_random"]].query("measure == 'AUROC'")
    assert abs(noise["held_out"].mean() - 0.5) < 0.1


def test_noise_is_not_called():
    """Per design, about 5% of p below 0.05, with other labels and other donors; also of gene sets."""
    rng = np.random.default_rng(0)
    values = sp.random(900, 1500, 0.15, format="csr", random_state=1)
    unit = np.arange(900) % 15
    design = Design(unit, rng.integers(0, 2, 900), rng.permutation(15) % 2, has_units=True)
    label, of_unit = rng.integers(0, 2, 900), rng.permutation(15) % 2
    found = [
        label_effects(values, label, 2, design, "within"),
        label_effects(values, of_unit[unit], 2, design, "between"),
        time_effects(values, rng.normal(size=15)[unit], design, "between"),
        time_effects(values, rng.normal(size=900), design, "within"),
    ]
    for effects in found:
        assert 0.02 < (effects.p_value[-1] < 0.05).mean() < 0.08
        low, high = effects.low[-1], effects.high[-1]
        chance = 0.5 if effects is found[0] or effects is found[1] else 0.0
        assert 0.9 < ((low <= chance) & (chance <= high)).mean() < 0.99
    strata = np.repeat(np.arange(30), 20)
    member = np.stack([rng.permutation(600) < size for size in rng.integers(5, 60, 40)], axis=1)
    p = rank_sums(sp.random(600, 200, 0.4, random_state=2).toarray(), member, strata).p_value
    assert 0.03 < (p < 0.05).mean() < 0.07
    assert (p < 0.001).mean() < 0.002
    sparse = rank_sums(sp.random(600, 200, 0.01, random_state=2).toarray(), member, strata).p_value
    assert (sparse < 0.05).mean() < 0.05


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_permuted_donors_give_nothing():
    adata = make(planted=False, seed=3)
    mt.tl.feature_summary(adata)
    assert not mt.get.table(adata, "feature_summary", "associations")["passes"].any()
    mt.tl.label_features(adata)
    table = mt.get.table(adata, "feature_labels")
    assert not (table["q_value"] < 0.05).any()
    assert adata.uns["feature_labels"]["params"]["exchanged_p"] > 0.01
    assert (table["p_value"] < 0.05).mean() < 0.2


def test_numbers_are_those_of_others():
    rng = np.random.default_rng(0)
    values = sp.random(300, 8, 0.3, format="csr", random_state=0)
    values.data = np.round(values.data, 1)
    dense, label, none = values.toarray(), rng.integers(0, 3, 300), np.zeros(300, dtype=int)
    expected = [[roc_auc_score(label == i, column) for column in dense.T] for i in range(3)]
    np.testing.assert_allclose(unit_aurocs(values, label, 3, none, none)[0], expected)
    time = rng.normal(size=300)
    expected = [stats.spearmanr(time, column)[0] for column in dense.T]
    np.testing.assert_allclose(sparse_spearman(values, time[:, None])[0], expected)
    # Eta squared is that of a one-way analysis of variance.
    x = [dense[label == i, 0] for i in range(3)]
    f = stats.f_oneway(*x).statistic
    eta = 2 * f / (2 * f + 297)
    np.testing.assert_allclose(share_of_variance(values, label, none)[0], eta)
    # All orders of five donors: the most extreme two are one in sixty.
    rho, p = spearman_test(np.arange(5.0)[:, None], np.arange(5.0))
    np.testing.assert_allclose([rho[0], p[0]], [1, 2 / 120])
    # Newcombe (2006): at 1 the interval has one end.
    low, high = auroc_interval(np.array([1.0, 0.5]), 10, 10)
    assert high[0] == 1
    assert 0.7 < low[0] < 0.9
    np.testing.assert_allclose(low[1] + high[1], 1, atol=1e-6)


def test_composition_does_not_matter():
    """Donors with other shares of two kinds of cells are alike, if the kinds are."""
    unit = np.repeat([0, 1], 100)
    kind = np.concatenate([np.arange(100) < 80, np.arange(100) < 20]).astype(int)
    means = adjusted_means(sp.csr_matrix(kind[:, None] * 2.0), unit, kind)
    np.testing.assert_allclose(means, 0, atol=1e-12)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_condition_within_donors_is_paired():
    adata = make()
    rng = np.random.default_rng(1)
    treated = rng.random(adata.n_obs) < 0.5
    adata.obs["stim"] = np.where(treated, "stim", "ctrl")
    values = adata.obsm["features"].toarray()
    values[:, 9] += treated
    adata.obsm["features"] = sp.csr_matrix(values)
    mt.tl.feature_summary(adata, condition_key="stim")
    found = row(mt.get.table(adata, "feature_summary", "associations"), 9, column="stim", value="stim")
    assert found["test"] == "t test of the donors' AUROCs"
    assert found["passes"]


def test_few_donors_have_no_p_value():
    adata = make(n_donors=2)
    with pytest.warns(UserWarning, match="Fewer than 3 donors are known: effects are over cells"):
        mt.tl.feature_summary(adata)
    found = mt.get.table(adata, "feature_summary", "associations")
    assert found["p_value"].isna().all()
    assert row(found, TYPE, column="cell_type", value="T")["effect"] > 0.8
    assert set(found["test"]) == {""}


def test_gene_sets_of_files(planted, tmp_path):
    lines = "planted\tfrom here\t" + "\t".join(f"G{i}" for i in range(12)) + "\n"
    (tmp_path / "a.gmt").write_text(lines)
    with gzip.open(tmp_path / "b.gmt.gz", "wt") as file:
        file.write(lines)
    tables = []
    for path in ("a.gmt", "b.gmt.gz"):
        adata = planted.copy()
        mt.tl.feature_summary(adata, gene_sets=tmp_path / path, key_added="again")
        tables.append(mt.get.table(adata, "again", "gene_sets"))
    pd.testing.assert_frame_equal(*tables)
    best = row(tables[0], TYPE, gene_set="planted")
    assert best["auroc"] > 0.95
    assert (best["n_genes"], best["n_active"]) == (12, 12)


def test_labels_and_their_source(planted):
    """Where a feature is active in cells that have its genes, the genes of the others do worse."""
    adata = planted.copy()
    scores = 1.0 / np.maximum(adata.layers["rank"].toarray(), 1) * (adata.layers["rank"].toarray() > 0)
    best = np.argsort(-adata.varm["features_half"].toarray(), axis=0)[:10]
    adata.obsm["features"] = sp.csr_matrix(
        np.stack([scores[:, genes].mean(axis=1) for genes in best.T], axis=1)
    )
    mt.tl.label_features(adata)
    table = mt.get.table(adata, "feature_labels")
    assert table["label"][TYPE].startswith("T; ")
    assert table["label"][TYPE].endswith("; planted")
    assert (table["score"] > table["null_mean"] + 0.2).mean() > 0.9
    assert table.attrs["share_predicted"] > 0.9
    assert table.attrs["exchanged_p"] == 0.001
    assert (table["n_units"] == 8).all()

    def mine(summary):
        return f"{summary['feature']}: {summary['top_genes'][0]}"

    mt.tl.label_features(adata, label=mine, key_added="mine")
    named = mt.get.table(adata, "mine")
    assert named["label"][3].startswith("3: G")
    assert named.attrs["label"].endswith("mine")
    assert len(named.attrs["label_sha256"]) == len(named.attrs["summary_sha256"]) == 64
    with pytest.raises(TypeError, match="label must return text, got int"):
        mt.tl.label_features(adata, label=lambda summary: summary["feature"], key_added="other")
    assert "other" not in adata.uns


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_refusals(planted, tmp_path):
    with pytest.raises(KeyError, match=r"Run mt.tl.features\(adata, model, sae\) first"):
        mt.tl.feature_summary(AnnData(np.ones((2, 2))))
    with pytest.raises(KeyError, match=r"Run mt.tl.feature_summary\(adata\) first"):
        mt.tl.label_features(make(n_donors=2))
    adata = planted.copy()
    with pytest.raises(KeyError, match=r"Did not find .obsm\['twin'\]"):
        mt.tl.feature_summary(adata, controls=["twin"])
    adata.obsm["twin"] = np.full((adata.n_obs, 2), -1.0)
    with pytest.raises(ValueError, match="has values below 0"):
        mt.tl.feature_summary(adata, controls=["twin"])
    adata.obs["same"] = "x"
    with pytest.raises(ValueError, match=r"\.obs\['same'\] has one value, 'x'"):
        mt.tl.feature_summary(adata, groupby="same")
    with pytest.raises(ValueError, match="No gene set has 3 of its genes among the 120"):
        mt.tl.feature_summary(adata, gene_sets={"none": ["X1", "X2", "X3"]})
    with pytest.raises(ValueError, match="There are no gene sets 'hallmark'"):
        mt.tl.feature_summary(adata, gene_sets="hallmark")
    with pytest.raises(FileNotFoundError, match="sets.gmt"):
        mt.tl.feature_summary(adata, gene_sets=tmp_path / "sets.gmt")
    (tmp_path / "sets.gmt").write_text("a line\n")
    with pytest.raises(ValueError, match="is no .gmt file"):
        mt.tl.feature_summary(adata, gene_sets=tmp_path / "sets.gmt")
    adata.obs = adata.obs[["n_genes_ranked"]]
    with pytest.raises(ValueError, match="There is nothing to compare features by"):
        mt.tl.feature_summary(adata)
