"""Differential ranking: planted turns are met by cells that have them, not by a line, and by nothing else."""

import importlib

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from helpers import on_copy
from scipy import stats

import maxtoki_toolkit as mt
from maxtoki_toolkit.stats.rank_change import contrast, interpolate
from maxtoki_toolkit.tl._generated import about_generated

SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 512,
}
N_TURNING = 30
SETTINGS = {"time_key": "time", "donor_key": "donor", "intervals": ((20, 34), (42, 58)), "n_top": 20}


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """Enough for all but what is asked of `compared`, which is made before."""
    module = importlib.import_module("maxtoki_toolkit.tl.differential_rank")
    monkeypatch.setattr(module, "N_BOOTSTRAP", 5)
    monkeypatch.setattr(module, "N_PERMUTATIONS", 99)


@pytest.fixture(scope="module")
def names():
    return mt.datasets.aging_atlas(20, 10, n_genes=500).var_names[:250]


def simulate(names, *, planted=True, seed=0, n_donors=40, n_cells=12):
    """Cells of donors from 0 to 100, whose first genes peak or dip at 50 and whose next ones rise or fall."""
    rng = np.random.default_rng(seed)
    donor = np.repeat(np.arange(n_donors), n_cells)
    time = np.linspace(0, 100, n_donors).astype(int)[donor]
    # The same genes for all seeds.
    log_mean = np.random.default_rng(9).normal(0.3, 1, len(names)) + rng.normal(
        0, 0.15, (n_donors, len(names))
    ).take(donor, axis=0)
    if planted:
        sign = np.resize([1, -1], N_TURNING)
        log_mean[:, :N_TURNING] = 0.5 + 1.6 * sign * np.exp(-(((time - 50) / 15) ** 2) / 2)[:, None]
        # A little of a trend the other way, which is all that a line from end to end can see.
        log_mean[:, :N_TURNING] -= 0.6 * sign * time[:, None] / 100
        log_mean[:, N_TURNING : 2 * N_TURNING] += 0.8 * sign * (time[:, None] - 50) / 50
    counts = rng.poisson(np.exp(log_mean)).astype(np.float32)
    obs = pd.DataFrame(
        {
            "time": time,
            "donor": donor.astype(str),
            "kind": np.resize(["a", "b"], len(donor)),
            "stage": pd.Categorical(np.where(time < 20, "early", np.where(time < 42, "middle", "late"))),
        },
        index=[f"c{i}" for i in range(len(donor))],
    )
    return AnnData(counts, obs=obs, var=pd.DataFrame(index=names))


@pytest.fixture(scope="module")
def model(names):
    adata = on_copy(mt.pp.map_genes, simulate(names))
    return mt.models.build_model(SHAPE, mt.models.Vocabulary.from_anndata(adata))


@pytest.fixture(scope="module")
def cells(names, model):
    adata = simulate(names)
    mt.pp.rank_value_encode(adata, model)
    return adata


@pytest.fixture(scope="module")
def others(names, model):
    """Cells of other donors: a perfect generator."""
    adata = simulate(names, seed=1)
    mt.pp.rank_value_encode(adata, model)
    adata.obs_names = "other " + adata.obs_names
    return adata


@pytest.fixture(scope="module")
def compared(cells, others, model):
    known = ~cells.obs["time"].between(10, 90)
    return on_copy(mt.tl.differential_rank, cells, model, generated=others, known=known, **SETTINGS)


def test_planted_turns_are_met(compared, names):
    genes = mt.get.differential_rank(compared)
    planted = genes["gene"].isin(names[:N_TURNING])
    assert genes["turning"].sum() >= 10
    assert (planted & genes["turning"]).sum() >= 0.8 * genes["turning"].sum()
    top = genes[planted & (genes["top"] != "")]
    assert len(top) >= 20
    truth = np.where(names.get_indexer(top["gene"]) % 2 == 0, 1, -1)
    assert (np.sign(top["generated_change"]) == truth).mean() >= 0.8
    assert (np.sign(top["interpolated_change"]) == truth).mean() <= 0.5
    scores = mt.get.differential_rank_scores(compared).set_index("predictor")
    ours, line = scores.loc["generated"], scores.loc["interpolation"]
    assert ours["pearson_low"] > line["pearson_high"]
    assert ours["p_value"] == pytest.approx(0.002)
    assert ours["sign_turning"] >= 0.8 > 0.5 >= line["sign_turning"]
    assert ours["pearson_low"] < ours["pearson"] < ours["pearson_high"]
    assert ours["unit_true"] == ours["unit_generated"] == "donor"
    # Half the cells tell less.
    assert scores.loc["true halves", "pearson"] < ours["pearson"]
    assert abs(scores.loc["permuted", "pearson"]) < 0.1
    assert np.isnan(scores.loc["no change", "pearson"])
    assert scores.loc["no change", "sign_top"] == 0
    assert ours["rms_error"] < scores.loc["no change", "rms_error"]


def test_changes_are_those_of_the_ranks(cells, others, model):
    """Against ranks counted out, cell by cell."""
    params = on_copy(
        mt.tl.differential_rank,
        cells,
        model,
        generated=others,
        **SETTINGS | {"donor_key": None},
    )
    table = mt.get.differential_rank(params).set_index("gene")
    absent = params.uns["differential_rank"]["params"]["absent_rank"]
    dense = cells.layers["rank"].toarray().astype(int)
    dense[(dense == 0) | (dense > absent)] = absent
    time = cells.obs["time"]
    early, late = (dense[time.between(*interval).to_numpy()] for interval in SETTINGS["intervals"])
    for gene in table.index[:40]:
        g = cells.var_names.get_loc(gene)
        a, b = early[:, g], late[:, g]
        row = table.loc[gene]
        assert row["true_change"] == pytest.approx(a.mean() - b.mean(), abs=1e-3)
        fit = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
        assert (row["true_low"], row["true_high"]) == pytest.approx((fit.low, fit.high), rel=0.01, abs=0.05)
        assert row["true_p_value"] == pytest.approx(
            stats.mannwhitneyu(a, b, method="asymptotic").pvalue, rel=0.05
        )
    q = stats.false_discovery_control(table["true_p_value"])
    np.testing.assert_allclose(table["true_q_value"], q)


def test_nothing_planted_nothing_found(names, model):
    called = p_values = 0
    for seed in range(5):
        true, made = (simulate(names, planted=False, seed=2 * seed + i, n_cells=6) for i in (0, 1))
        for adata in (true, made):
            mt.pp.rank_value_encode(adata, model)
        mt.tl.differential_rank(true, model, generated=made, **SETTINGS)
        called += (mt.get.differential_rank(true)["true_q_value"] < 0.05).any()
        p_values += mt.get.differential_rank_scores(true)["p_value"].iloc[0] <= 0.05
    assert called <= 1
    assert p_values <= 1


@pytest.mark.parametrize("kind", ["average", "copies"])
def test_cells_that_do_not_change_are_seen(cells, model, kind):
    """A generator that writes the same cells at all times."""
    some = cells[cells.obs["time"].between(40, 60)]
    take = np.zeros(200, int) if kind == "average" else np.random.default_rng(0).integers(0, some.n_obs, 200)
    made = AnnData(obs=pd.DataFrame(index=[f"m{i}" for i in range(200)]), var=some.var)
    made.layers["rank"] = some.layers["rank"][take]
    made.obs["n_genes_ranked"] = some.obs["n_genes_ranked"].to_numpy()[take]
    made.obs["time"] = np.resize([25, 50], 200)
    made.uns = {"rank_value_encode": cells.uns["rank_value_encode"]}
    found = on_copy(mt.tl.differential_rank, cells, model, generated=made, **SETTINGS)
    ours = mt.get.differential_rank_scores(found).set_index("predictor").loc["generated"]
    assert ours["unit_generated"] == "cell"
    if kind == "average":
        assert np.isnan(ours["pearson"])
        assert ours["sign_turning"] == 0
    else:
        assert ours["p_value"] > 0.05
        assert ours["sign_turning"] < 0.8


def test_values_and_groups(cells, others, model):
    found = on_copy(
        mt.tl.differential_rank,
        cells,
        model,
        generated=others,
        time_key="stage",
        intervals=("middle", "late"),
        groupby="kind",
        donor_key="donor",
    )
    scores = mt.get.differential_rank_scores(found)
    assert scores["group"].unique().tolist() == ["a", "b"]
    # Values have no order: no trend, and no line.
    assert "interpolation" not in set(scores["predictor"])
    assert scores["sign_turning"].isna().all()
    cells_compared = mt.get.compared_cells(found)
    late = cells_compared[(cells_compared["source"] == "true") & (cells_compared["interval"] == 2)]["cell"]
    assert set(cells.obs.loc[late, "stage"]) == {"late"}
    assert cells_compared["group"].value_counts().index.tolist() in (["a", "b"], ["b", "a"])


def test_what_prompts_say_of_generated_cells(cells):
    adata = cells.copy()
    mt.pp.sample_prompts(
        adata,
        time_key="time",
        groupby="kind",
        donor_key="donor",
        task="cell",
        context_size=(1, 3),
        n_prompts=20,
    )
    table = mt.get.prompts(adata)
    obs = table[["lapse", "group", "donor"]].copy()
    obs.insert(0, "prompt", np.arange(20).astype(str))
    obs["lapse"] += 5
    made = AnnData(obs=obs.set_index(np.array([f"{i}_0" for i in range(20)])))
    about = about_generated(made, adata, time_key="time", groupby="kind", donor_key="donor")
    np.testing.assert_array_equal(about.time, table["time"] + 5)
    assert about.group.tolist() == table["group"].tolist()
    contexts = table.filter(like="context_").to_numpy()
    last = [[name for name in row if name][-1] for row in contexts]
    assert about.donor.tolist() == adata.obs.loc[last, "donor"].tolist()
    with pytest.raises(ValueError, match="The prompts do not say which .obs\\['stage'\\]"):
        about_generated(made, adata, time_key="time", groupby="stage")
    # Cells that were gone on with are of the cell's time.
    given = AnnData(obs=pd.DataFrame({"prompt": adata.obs_names[:5]}, index=list("vwxyz")))
    about = about_generated(given, adata, time_key="time", donor_key="donor")
    np.testing.assert_array_equal(about.time, adata.obs["time"][:5])
    assert about.donor.tolist() == adata.obs["donor"][:5].tolist()


def test_a_line_between_neighbours():
    time = np.array([0, 0, 10, 30, 40, 90.0])
    Y = np.stack([time, np.ones(6)], axis=1)
    import scipy.sparse as sp

    Y = sp.csr_matrix(Y)
    np.testing.assert_allclose(interpolate(Y, time, [(12, 14), (22, 24)]), [10, 0])
    np.testing.assert_allclose(interpolate(Y, time, [(40, 40), (95, 99)]), [50, 0])  # level after the last
    assert interpolate(Y[:0], time[:0], [(0, 1), (2, 3)]) is None
    np.testing.assert_allclose(contrast(np.array([True, False, True])), [[0.5, -1, 0.5]])


def test_what_is_refused(cells, others, model):
    def run(**changed):
        mt.tl.differential_rank(cells, model, **{"generated": others, **SETTINGS, **changed})

    for intervals, message in [
        (((0, 50), (40, 60)), "overlap"),
        (((0, 5), (5, 3)), "overlap, or end before"),
        (((0, 5),), "must be two"),
        (("late", "late"), "are the same"),
        (((0, 5), (200, 300)), "No group has 3 true and 3 generated cells"),
    ]:
        with pytest.raises(ValueError, match=message):
            run(intervals=intervals)
    with pytest.raises(ValueError, match="n_top must be at least 1"):
        run(n_top=0)
    with pytest.raises(TypeError, match="Expected an AnnData .* for generated"):
        run(generated="cells.h5ad")
    with pytest.raises(KeyError, match="Did not find .obs\\['time'\\] of the generated cells"):
        run(generated=AnnData(obs=others.obs[["donor"]]))
    with pytest.raises(KeyError, match="Did not find .uns\\['differential_rank'\\]"):
        mt.get.differential_rank(cells)


def test_figures_and_files(compared, others, tmp_path):
    ax = mt.pl.differential_rank(compared)
    assert ax.get_title().startswith("r = 0.")
    assert "ranks" in ax.get_xlabel()
    assert [c.get_label() for c in ax.collections][-1] == "against their trend"
    fig = mt.pl.differential_rank_heatmap(compared, generated=others, n_genes=15, n_cells=20)
    upper, lower = fig.axes[:2]
    assert upper.images[0].get_array().shape == lower.images[0].get_array().shape == (40, 30)
    assert upper.get_ylabel() == "generated cells"
    # The ranks are those of the cells: the first gene, which rises, is higher in the second interval.
    for ax in (upper, lower):
        first = np.nan_to_num(ax.images[0].get_array().filled(np.nan)[:, 0], nan=300)
        assert np.median(first[20:]) < np.median(first[:20])
    with pytest.raises(ValueError, match="No group 'b' was compared"):
        mt.pl.differential_rank(compared, group="b")
    with pytest.raises(KeyError, match="generated cells that were compared are not there"):
        mt.pl.differential_rank_heatmap(compared, generated=others[:5].copy())
    compared.write_h5ad(tmp_path / "cells.h5ad")
    read = anndata.read_h5ad(tmp_path / "cells.h5ad")
    pd.testing.assert_frame_equal(mt.get.differential_rank(read), mt.get.differential_rank(compared))


@pytest.mark.slow
def test_the_planted_atlas():
    """Genes that turn over with age in seven cell types; all other donors' cells as generated ones."""
    adata = mt.datasets.aging_atlas(12_000, 100, n_genes=1000, seed=1)
    truth = adata.uns["truth"]
    ages = truth["donors"].set_index("donor_id")["biological_age_months"]
    adata.obs["age"] = ages.loc[adata.obs["donor_id"].astype(str)].to_numpy()
    planted = truth["age_genes"].query("direction == 'turnover'")
    mt.pp.map_genes(adata)
    vocab = mt.models.Vocabulary.from_anndata(adata)
    model = mt.models.build_model({**SHAPE, "max_position_embeddings": 1024}, vocab)
    mt.pp.rank_value_encode(adata, model)
    half = adata.obs["donor_id"].isin(ages.sort_values().index[::2])
    adata, others = adata[~half].copy(), adata[half].copy()
    mt.tl.differential_rank(
        adata,
        model,
        generated=others,
        time_key="age",
        donor_key="donor_id",
        groupby="cell_type",
        intervals=((340, 460), (540, 680)),
        known=~adata.obs["age"].between(340, 899),
        n_top=50,
    )
    genes = mt.get.differential_rank(adata).merge(
        planted, left_on=["gene", "group"], right_on=["ensembl_id", "cell_type"]
    )
    top = genes[genes["top"] != ""]
    assert len(top) >= 15
    sign = np.sign(top["log2_fold"])
    assert (np.sign(top["generated_change"]) == sign).mean() >= 0.8
    assert (np.sign(top["interpolated_change"]) == sign).mean() < 0.7


@pytest.mark.slow
def test_myoblasts():
    """Halves of real cells, with 24 hours held out."""
    adata = mt.datasets.load("myoblast_timecourse")
    mt.pp.map_genes(adata)
    common = adata.var["ensembl_id"].to_numpy() != ""
    adata = adata[:, common & (adata.X.getnnz(axis=0) >= 40)].copy()
    mt.pp.map_genes(adata)
    # FPKM, which are linear in expression.
    vocab = mt.models.Vocabulary.from_anndata(adata, force=True)
    model = mt.models.build_model({**SHAPE, "max_position_embeddings": 4096}, vocab)
    mt.pp.rank_value_encode(adata, model, force=True)
    half = np.random.default_rng(0).random(adata.n_obs) < 0.5
    adata, others = adata[~half].copy(), adata[half].copy()
    mt.tl.differential_rank(
        adata,
        model,
        generated=others,
        time_key="Hours",
        intervals=(24, 48),
        known=(adata.obs["Hours"] != 24).to_numpy(),
    )
    scores = mt.get.differential_rank_scores(adata).set_index("predictor")
    assert scores.loc["generated", "p_value"] <= 0.01
    assert scores.loc["generated", "pearson"] > scores.loc["interpolation", "pearson"]
