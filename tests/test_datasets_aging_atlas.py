"""The planted-truth atlas: what it says it plants is in the counts, and nothing else is."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.stats import rankdata
from scipy.stats import t as student
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict

from maxtoki_toolkit._reference import gene_table, transcription_factors
from maxtoki_toolkit.datasets import aging_atlas

AGEING = [
    "CD4 T cell", "CD8 T cell", "monocyte", "macrophage", "fibroblast", "endothelial cell", "cardiomyocyte",
]  # fmt: skip
SMALL = {"n_cells": 1_500, "n_donors": 20, "n_genes": 600}
TABLES = ("age_genes", "drivers", "markers")


@pytest.fixture(scope="module")
def small():
    return aging_atlas(**SMALL)


@pytest.fixture(scope="module")
def atlas():
    return aging_atlas(8_000, n_genes=1_000, seed=3)


@pytest.fixture(scope="module")
def null():
    return aging_atlas(8_000, n_genes=1_000, seed=3, null=True)


def totals(adata):
    return np.asarray(adata.X.sum(axis=1)).ravel()


def log_norm(adata):
    x = adata.X.toarray()
    return np.log1p(1e4 * x / x.sum(axis=1, keepdims=True))


def pseudobulk(adata, cell_type):
    """Log2 counts a million by donor over the genes with counts to see, and biological age in years."""
    adata = adata[adata.obs["cell_type"] == cell_type]
    donors = adata.uns["truth"]["donors"].set_index("donor_id")
    donors = donors.loc[donors.index.isin(adata.obs["donor_id"])]
    member = (donors.index.to_numpy()[:, None] == adata.obs["donor_id"].astype(str).to_numpy()).astype(float)
    counts = pd.DataFrame(member @ adata.X.toarray(), index=donors.index, columns=adata.var_names)
    counts = counts.loc[:, counts.mean() >= 5]
    million = 1e6 * counts.div((member @ totals(adata)), axis=0)
    return np.log2(million + 100), donors["biological_age_months"] / 12


def spearman(table, values):
    """Spearman correlation of each column with `values`, and its two-sided p-value."""
    x, y = rankdata(table.to_numpy(), axis=0), rankdata(values)
    x, y = x - x.mean(axis=0), y - y.mean()
    rho = y @ x / np.sqrt((x**2).sum(axis=0) * (y**2).sum())
    n = len(y)
    return rho, 2 * student.sf(np.abs(rho) * np.sqrt((n - 2) / (1 - rho**2)), n - 2)


def planted(adata, cell_type):
    genes = adata.uns["truth"]["age_genes"]
    return genes[genes["cell_type"] == cell_type].set_index("ensembl_id")


def test_shape_and_columns(small):
    assert small.shape == (1_500, 600)
    assert list(small.obs) == ["cell_type", "donor_id", "sex", "age_months", "condition", "batch"]
    assert small.obs["age_months"].dtype.kind == "i"
    assert all(isinstance(small.obs[c].dtype, pd.CategoricalDtype) for c in set(small.obs) - {"age_months"})
    assert small.obs["cell_type"].nunique() == 10
    assert set(small.obs["donor_id"]) == {f"D{i:02d}" for i in range(1, 21)}
    assert small.obs_names.is_unique
    assert small.obs_names.str.fullmatch(r"D\d\d_\d{5}").all()


def test_counts_are_integers_with_realistic_depth_and_sparsity():
    adata = aging_atlas(1_500, 20)
    assert isinstance(adata.X, sparse.csr_matrix | sparse.csr_array)
    assert adata.X.dtype == np.float32
    assert adata.X.data.min() >= 1
    assert np.array_equal(adata.X.data, np.round(adata.X.data))
    assert 2_400 < np.median(totals(adata)) < 3_600
    assert 700 < np.median(np.diff(adata.X.indptr)) < 1_000


@pytest.mark.parametrize("n_donors", [10, 11, 23, 40, 101])
def test_donors_span_every_decade_and_are_balanced(n_donors):
    donors = aging_atlas(n_donors, n_donors, n_genes=500).uns["truth"]["donors"]
    assert set(donors["age_months"] // 120) == set(range(2, 9))
    assert len(donors) == n_donors
    assert abs((donors["sex"] == "female").sum() - n_donors / 2) <= 2.5
    assert set(donors["batch"]) == {"batch1", "batch2", "batch3", "batch4"}
    assert 0.55 <= (donors["condition"] == "control").mean() <= 0.65
    years = {"control": 0, "accelerated_15y": 15, "accelerated_5y": 5, "accelerated_3y": 3, "resilient": 0}
    assert donors["acceleration_years"].tolist() == donors["condition"].map(years).tolist()
    shift = donors["biological_age_months"] - donors["age_months"]
    assert (shift == 12 * donors["acceleration_years"]).all()


def test_conditions_are_matched_in_age_sex_and_batch(atlas):
    donors = atlas.uns["truth"]["donors"]
    by_condition = donors.groupby("condition")
    assert by_condition["age_months"].mean().between(51 * 12, 59 * 12).all()
    assert (pd.crosstab(donors["condition"], donors["sex"], normalize="index") == 0.5).all(axis=None)
    assert (by_condition["batch"].nunique() == 4).all()
    assert pd.crosstab(donors["condition"], donors["batch"]).loc["control"].eq(6).all()
    assert donors.groupby("batch")["age_months"].mean().between(50 * 12, 60 * 12).all()
    assert atlas.uns["truth"]["conditions"]["n_donors"].sum() == 40


def test_obs_repeats_the_donor_table(small):
    donors = small.uns["truth"]["donors"].set_index("donor_id")
    for column in ("age_months", "sex", "condition", "batch"):
        expected = donors[column].loc[small.obs["donor_id"].astype(str)]
        assert small.obs[column].astype(expected.dtype).tolist() == expected.tolist()


def test_genes_are_real_and_drivers_are_transcription_factors(atlas):
    symbol = gene_table().set_index("ensembl_id")["symbol"]
    assert symbol[atlas.var_names].tolist() == atlas.var["symbol"].tolist()
    assert atlas.var["symbol"].is_unique
    truth = atlas.uns["truth"]
    drivers = truth["drivers"]
    assert set(drivers["tf"]) <= transcription_factors()
    assert symbol[drivers["tf_ensembl_id"]].tolist() == drivers["tf"].tolist()
    assert symbol[drivers["target_ensembl_id"]].tolist() == drivers["target"].tolist()
    assert (drivers.groupby(["tf", "cell_type"]).size() == 25).all()
    assert {"XIST", "RPS4Y1", "DDX3Y", "KDM5D", "UTY", "EIF1AY"} <= set(atlas.var["symbol"])


def test_age_genes_are_complete_and_consistent():
    genes = aging_atlas(10, 10).uns["truth"]["age_genes"]
    assert set(genes["cell_type"]) == set(AGEING)
    assert not genes.duplicated(["ensembl_id", "cell_type"]).any()
    assert genes.groupby("cell_type").size().between(0.06 * 2_000, 0.1 * 2_000).all()
    direction = np.where(genes["log2_fold"] > 0, "rise", "fall")
    turnover = genes["direction"] == "turnover"
    assert (genes["direction"] == direction)[~turnover].all()
    assert (genes["peak_years"].between(45, 55) == turnover).all()
    n_types = genes.groupby("ensembl_id")["cell_type"].nunique()
    assert (n_types == 1).any()
    assert (n_types > 2).any()


def test_targets_age_through_their_driver(small):
    genes = small.uns["truth"]["age_genes"].set_index(["cell_type", "symbol"])
    drivers = small.uns["truth"]["drivers"]
    tf = genes.loc[list(zip(drivers["cell_type"], drivers["tf"], strict=True)), "log2_fold"].to_numpy()
    target = genes.loc[list(zip(drivers["cell_type"], drivers["target"], strict=True))]
    np.testing.assert_allclose(target["log2_fold"], tf * drivers["weight"].to_numpy())
    assert target["driver"].tolist() == drivers["tf"].tolist()


def test_result_does_not_depend_on_threads(small):
    other = aging_atlas(**SMALL, n_jobs=3)
    assert (small.X != other.X).nnz == 0
    pd.testing.assert_frame_equal(small.obs, other.obs)
    for key in (*TABLES, "donors", "doublets"):
        pd.testing.assert_frame_equal(small.uns["truth"][key], other.uns["truth"][key])


def test_seed_changes_cells_but_not_what_is_planted(small):
    other = aging_atlas(**SMALL, seed=1)
    assert not small.obs["age_months"].equals(other.obs["age_months"])
    assert (small.X != other.X).nnz > 0.1 * small.X.nnz
    pd.testing.assert_frame_equal(small.var, other.var)
    for key in TABLES:
        pd.testing.assert_frame_equal(small.uns["truth"][key], other.uns["truth"][key])


def test_smaller_panel_is_the_beginning_of_a_larger_one(small, atlas):
    assert atlas.var_names[:600].equals(small.var_names)
    for key in TABLES:
        table = atlas.uns["truth"][key]
        column = "target_ensembl_id" if key == "drivers" else "ensembl_id"
        table = table[table[column].isin(small.var_names)].reset_index(drop=True)
        pd.testing.assert_frame_equal(table, small.uns["truth"][key])


@pytest.mark.parametrize("empty", [False, True])
def test_h5ad_round_trip(tmp_path, empty):
    adata = aging_atlas(100, 10, n_genes=500, null=empty)
    adata.write_h5ad(tmp_path / "atlas.h5ad")
    back = ad.read_h5ad(tmp_path / "atlas.h5ad")
    assert (back.X != adata.X).nnz == 0
    pd.testing.assert_frame_equal(back.obs, adata.obs)
    for key in (*TABLES, "donors", "conditions", "doublets"):
        table, read = adata.uns["truth"][key], back.uns["truth"][key]
        assert list(read) == list(table)
        assert read.shape == table.shape
        assert all(read[c].tolist() == table[c].tolist() for c in table if c != "peak_years")
    assert dict(back.uns["truth"]["params"]) == adata.uns["truth"]["params"]


def test_planted_age_genes_separate_from_the_rest(atlas):
    for cell_type in AGEING:
        table, age = pseudobulk(atlas, cell_type)
        rho, _ = spearman(table, age)
        truth = planted(atlas, cell_type)
        keep = ~table.columns.isin(truth.index[truth["direction"] == "turnover"])
        is_planted = table.columns.isin(truth.index)
        assert roc_auc_score(is_planted[keep], np.abs(rho[keep])) > 0.9
        rising = table.columns.isin(truth.index[truth["direction"] == "rise"])
        assert (np.sign(rho) == np.where(rising, 1, -1))[is_planted & keep].mean() > 0.9


def test_effect_sizes_are_the_planted_ones(atlas):
    estimated, expected = [], []
    for cell_type in AGEING:
        table, age = pseudobulk(atlas, cell_type)
        table = table.loc[:, table.median() > 10]
        truth = planted(atlas, cell_type).query("direction != 'turnover'")
        genes = table.columns.intersection(truth.index)
        fit = LinearRegression().fit(age.to_frame(), table[genes])
        estimated.extend(60 * fit.coef_.ravel())
        expected.extend(truth.loc[genes, "log2_fold"])
    assert len(expected) > 100
    assert np.corrcoef(estimated, expected)[0, 1] > 0.95
    assert 0.85 < np.polyfit(expected, estimated, 1)[0] < 1.1


def test_turnover_genes_peak_in_the_middle(atlas):
    agreement = []
    for cell_type in AGEING:
        table, age = pseudobulk(atlas, cell_type)
        truth = planted(atlas, cell_type).query("direction == 'turnover'")
        for gene in table.columns.intersection(truth.index):
            distance = (age - truth.loc[gene, "peak_years"]) / 15
            bump = np.exp(-(distance**2) / 2)
            agreement.append(np.corrcoef(table[gene], bump)[0, 1] * np.sign(truth.loc[gene, "log2_fold"]))
    assert len(agreement) > 20
    assert np.mean(agreement) > 0.5


def test_nothing_else_depends_on_age(atlas, null):
    quiet = [t for t in atlas.obs["cell_type"].cat.categories if t not in AGEING]
    assert len(quiet) == 3
    p_values = []
    for cell_type in quiet:
        table, age = pseudobulk(atlas, cell_type)
        p_values.append(spearman(table, age)[1])
    assert 0.03 < np.mean(np.concatenate(p_values) < 0.05) < 0.08
    p_values = []
    for cell_type in null.obs["cell_type"].cat.categories:
        table, age = pseudobulk(null, cell_type)
        p_values.append(spearman(table, age)[1])
    assert 0.03 < np.mean(np.concatenate(p_values) < 0.05) < 0.08


def test_null_keeps_the_cells_and_plants_nothing(atlas, null):
    pd.testing.assert_frame_equal(null.obs, atlas.obs)
    truth = null.uns["truth"]
    for key in ("age_genes", "drivers", "doublets"):
        assert len(truth[key]) == 0
        assert list(truth[key]) == list(atlas.uns["truth"][key])
    assert (truth["donors"]["acceleration_years"] == 0).all()
    assert (truth["conditions"]["acceleration_years"] == 0).all()
    assert truth["donors"]["biological_age_months"].equals(truth["donors"]["age_months"])
    pd.testing.assert_frame_equal(truth["markers"], atlas.uns["truth"]["markers"])


def within_donor_correlation(adata, cell_type):
    adata = adata[adata.obs["cell_type"] == cell_type]
    x = pd.DataFrame(log_norm(adata), columns=adata.var_names)
    x -= x.groupby(adata.obs["donor_id"].to_numpy()).transform("mean")
    return lambda a, b: np.array([np.corrcoef(x[i], x[j])[0, 1] for i, j in zip(a, b, strict=True)])


def test_targets_follow_their_driver_from_cell_to_cell(atlas, null):
    # Cells are compared within a donor, so age plays no part.
    drivers = atlas.uns["truth"]["drivers"]
    for (tf, cell_type), table in drivers.groupby(["tf", "cell_type"]):
        pairs = table["tf_ensembl_id"], table["target_ensembl_id"]
        r = within_donor_correlation(atlas, cell_type)(*pairs) * np.sign(table["weight"])
        assert r.mean() > 0.08, (tf, cell_type)
        r = within_donor_correlation(null, cell_type)(*pairs) * np.sign(table["weight"])
        assert abs(r.mean()) < 0.04, (tf, cell_type)


def test_activities_are_those_of_the_cells(atlas, null):
    activity = atlas.uns["truth"]["activity"]
    assert activity.index.equals(atlas.obs_names)
    assert null.uns["truth"]["activity"].isna().all(axis=None)
    x = pd.DataFrame(log_norm(atlas), columns=atlas.var["symbol"].to_numpy(), index=atlas.obs_names)
    acts = atlas.uns["truth"]["drivers"].groupby("tf")["cell_type"].unique()
    for tf, values in activity.items():
        there = values.notna()
        assert set(atlas.obs["cell_type"][there]) == set(acts[tf])
        assert np.corrcoef(x.loc[there, tf], values[there])[0, 1] > 0.2


def test_doublets_hold_more_counts(atlas):
    cells = atlas.uns["truth"]["doublets"]["cell"]
    doublet = atlas.obs_names.isin(cells)
    assert doublet.sum() == len(cells)
    assert 0.03 < doublet.mean() < 0.05
    ratio = np.log(totals(atlas)) - pd.Series(np.log(totals(atlas))).groupby(
        atlas.obs["donor_id"].to_numpy()
    ).transform("median")
    assert 1.4 < np.exp(ratio[doublet].median()) < 1.9


def test_markers_are_highest_in_their_type(atlas):
    adata = atlas[~atlas.obs_names.isin(atlas.uns["truth"]["doublets"]["cell"])]
    mean = pd.DataFrame(np.expm1(log_norm(adata)), columns=adata.var_names)
    mean = mean.groupby(adata.obs["cell_type"].to_numpy()).mean()
    for gene, table in atlas.uns["truth"]["markers"].groupby("ensembl_id"):
        inside = mean.index.isin(table["cell_type"])
        assert mean.loc[inside, gene].min() > 4 * mean.loc[~inside, gene].max()


def test_sex_genes(atlas):
    female = (atlas.obs["sex"] == "female").to_numpy()
    mean = pd.DataFrame(log_norm(atlas), columns=atlas.var["symbol"]).groupby(female).mean()
    assert mean.loc[True, "XIST"] > 10 * mean.loc[False, "XIST"]
    for gene in ("RPS4Y1", "DDX3Y", "KDM5D", "UTY", "EIF1AY"):
        assert mean.loc[False, gene] > 10 * mean.loc[True, gene]


def test_depth_tells_nothing_of_age(atlas):
    donors = atlas.uns["truth"]["donors"].set_index("donor_id")
    depth = pd.Series(totals(atlas)).groupby(atlas.obs["donor_id"].astype(str).to_numpy()).median()
    rho, p = spearman(depth[donors.index].to_frame(), donors["biological_age_months"])
    assert p[0] > 0.01


def test_donors_look_as_much_older_as_their_acceleration(atlas):
    # A clock from the planted linear genes: slopes from the controls, then each donor's least-squares age.
    donors = atlas.uns["truth"]["donors"].set_index("donor_id")
    years = donors["age_months"] / 12
    control = donors.index[donors["condition"] == "control"]
    gaps = []
    for cell_type in AGEING:
        table, _ = pseudobulk(atlas, cell_type)
        table = table[
            table.columns.intersection(planted(atlas, cell_type).query("direction != 'turnover'").index)
        ]
        train = table.index.intersection(control)
        fit = LinearRegression().fit(years[train].to_frame(), table.loc[train])
        slope = fit.coef_.ravel()
        gaps.append((table - fit.intercept_) @ slope / (slope @ slope) - years[table.index])
    gap = pd.concat(gaps, axis=1).mean(axis=1).groupby(donors["condition"]).mean()
    expected = donors.groupby("condition")["acceleration_years"].first()
    np.testing.assert_allclose(gap, expected[gap.index], atol=2.5)


@pytest.mark.slow
def test_cells_tell_age_at_the_default_size():
    adata = aging_atlas()
    age = adata.obs["age_months"].to_numpy() / 12
    control = (adata.obs["condition"] == "control").to_numpy()
    for cell_type in AGEING:
        keep = control & (adata.obs["cell_type"] == cell_type).to_numpy()
        x = log_norm(adata[keep])
        donor = adata.obs["donor_id"][keep].astype(str)
        predicted = cross_val_predict(Ridge(alpha=300), x, age[keep], groups=donor, cv=GroupKFold(6))
        assert 0.65 < np.corrcoef(predicted, age[keep])[0, 1] < 0.92


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_donors": 9}, "n_donors must be at least 10.*got 9"),
        ({"n_cells": 39}, "at least n_donors; got 39 cells for 40 donors"),
        ({"n_genes": 499}, "n_genes must be from 500.*got 499"),
        ({"n_genes": 60_000}, "n_genes must be from 500.*got 60000"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        aging_atlas(**arguments)
