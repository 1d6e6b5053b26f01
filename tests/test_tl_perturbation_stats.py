"""Screens summed up: donors as units, matched nulls that hold, and genes that matter found among them."""

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy import stats
from sklearn.metrics import roc_auc_score

import maxtoki_toolkit as mt
from maxtoki_toolkit.results.store import write_result
from maxtoki_toolkit.stats.matched_null import matched_null, moderated_error, null_df, storey, two_sided_p
from maxtoki_toolkit.stats.slopes import get_residuals

N_GENES, N_DONORS, N_CELLS = 300, 20, 3
ID = [f"ENSG{i:011d}" for i in range(N_GENES)]


def screened(rng, *, planted=(), strength=0.0, noise="normal", groups=("a",), lapses=False):
    """Cells with the result of a screen that was made up: effects depend on rank, and on the donor."""
    detection = rng.uniform(0.3, 1, N_GENES)
    rank = rng.permutation(N_GENES) + 1.0
    n = N_DONORS * N_CELLS * len(groups)
    has = rng.random((n, N_GENES)) < detection
    ranks = np.where(
        has, np.argsort(np.argsort(rank + rng.normal(0, 3, (n, N_GENES)), axis=1), axis=1) + 1, 0
    )
    counts = np.where(has, rng.poisson(1000 / rank, (n, N_GENES)) + 1, 0)
    names = np.array([f"ENSG{i:011d}" for i in range(N_GENES)], dtype=object)
    obs = pd.DataFrame(index=[f"c{i}" for i in range(n)])
    obs["donor"] = [f"D{i % N_DONORS:02d}" for i in range(n)]
    obs["group"] = np.repeat(groups, N_DONORS * N_CELLS)
    adata = anndata.AnnData(sp.csr_matrix(counts.astype(np.float32)), obs=obs, var=pd.DataFrame(index=names))
    adata.var["ensembl_id"], adata.var["token_id"] = names, np.arange(N_GENES) + 4
    adata.layers["rank"] = sp.csr_matrix(ranks.astype(np.uint16))
    # What the model makes of a gene: high ranked ones matter more, whatever they are.
    draw = {"normal": rng.normal, "heavy": lambda *_: stats.t.rvs(12, size=N_GENES, random_state=rng)}[noise]
    own = 20 / np.sqrt(rank) * draw(0, 1, N_GENES)
    effect = own + strength * 20 / np.sqrt(rank) * np.isin(np.arange(N_GENES), planted)
    donor = rng.normal(0, 3, (N_DONORS, N_GENES))
    cell, gene = np.nonzero(has)
    table = pd.DataFrame({"prompt": cell, "cell": obs.index[cell], "group": obs["group"].to_numpy()[cell]})
    table["donor"] = obs["donor"].to_numpy()[cell]
    if lapses:
        table["lapse"] = np.where(cell % 2, 100.0, -100.0)
    table["gene"] = table["symbol"] = names[gene]
    table["k"] = 0
    code = cell % N_DONORS
    table["effect"] = effect[gene] + donor[code, gene] + rng.normal(0, 3, len(cell))
    table["took_effect"] = table["present"] = True
    genes = pd.DataFrame({"gene": names, "symbol": names, "members": names, "n_genes": 1, "matched_to": ""})
    genes["n_read"] = genes["n_took_effect"] = 1
    params = {"unit": "months", "path": "", "mode": "inhibit", "on": "query", "readout": "timelapse"}
    params |= {"model": "none", "model_sha256": "", "whole_vocabulary": True, "n_genes": N_GENES}
    write_result(adata, "perturbation", params, effects=table, genes=genes)
    return adata


def stats_of(adata, **settings):
    mt.tl.perturbation_stats(adata, **settings)
    return mt.get.table(adata, "perturbation_stats")


def test_means_over_donors():
    rng = np.random.default_rng(0)
    adata = screened(rng, groups=("a", "b"), lapses=True)
    effects, table = stats_of(adata), mt.get.table(adata, "perturbation")
    assert effects.attrs["unit"] == "years"
    assert effects["group"].drop_duplicates().tolist() == ["all", "a", "b"]
    for group in ("all", "b"):
        part = effects[effects["group"] == group].set_index("gene")
        for gene in part.index[[0, 50, 299]]:
            rows = table[(table["gene"] == gene) & ((table["group"] == group) | (group == "all"))]
            means = rows.groupby("donor", observed=True)["effect"].mean() / 12
            expected = stats.ttest_1samp(means, 0)
            interval = expected.confidence_interval()
            row = part.loc[gene]
            assert row["effect"] == pytest.approx(means.mean())
            assert (row["effect_low"], row["effect_high"]) == pytest.approx(tuple(interval))
            assert row["p_donors"] == pytest.approx(expected.pvalue)
            assert row["n_units"] == len(means)
            assert row["share_same_sign"] == pytest.approx((np.sign(means) == np.sign(means.mean())).mean())
            younger = rows.loc[rows["lapse"] > 0, "effect"].mean() / 12
            assert row["effect_younger_context"] == pytest.approx(younger)
            ranks = mt.get.ranks(adata[rows["cell"].drop_duplicates()], [gene])
            assert row["mean_rank"] == pytest.approx(ranks[gene].mean())


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["normal", "heavy"])
def test_nothing_is_found_where_nothing_is(noise):
    """40 screens in which genes differ by their rank alone: p is even, and q calls nothing."""
    shares, called = [], []
    for seed in range(40):
        effects = stats_of(screened(np.random.default_rng(seed), noise=noise))
        shares.append((effects["p_value"] < 0.05).mean())
        called.append((effects["q_value"] < 0.05).any())
    assert 0.03 <= np.mean(shares) <= 0.08
    assert np.mean(called) <= 0.05


def test_planted_genes_are_found():
    rng = np.random.default_rng(3)
    planted = rng.permutation(N_GENES)[:30]
    strength = 25.0 * np.where(rng.random(N_GENES) < 0.5, -1, 1)
    effects = stats_of(screened(rng, planted=planted, strength=strength)).set_index("gene")
    names = [f"ENSG{i:011d}" for i in planted]
    is_planted = effects.index.isin(names)
    assert roc_auc_score(is_planted, effects["z"].abs()) > 0.95
    called = effects[effects["q_value"] < 0.05]
    assert called.index.isin(names).mean() > 0.9
    assert len(called) > 15
    sign = dict(zip([f"ENSG{i:011d}" for i in range(N_GENES)], np.sign(strength), strict=True))
    true = called[called.index.isin(names)]
    assert (np.sign(true["effect"]) == true.index.map(sign)).mean() >= 0.95
    assert (effects["storey_q"] <= effects["q_value"]).all()
    # What a few donors do not agree on is not called, however far it is from other genes.
    larger = effects[["p_value", "p_donors"]].max(axis=1)
    np.testing.assert_allclose(effects["q_value"], stats.false_discovery_control(larger))


def test_controls():
    rng = np.random.default_rng(4)
    adata = screened(rng)
    names = adata.uns["perturbation"]["genes"]["gene"].tolist()
    mt.tl.perturbation_stats(adata, housekeeping=names[:5])
    controls = mt.get.table(adata, "perturbation_stats", "controls").set_index("genes")
    assert controls.loc["housekeeping", "n_genes"] == 5
    assert controls.loc["absent", "n_genes"] == 0
    assert controls.loc["all", "n_known"] == N_GENES
    # A screen of one gene with its controls: only the gene is asked about.
    table, genes = adata.uns["perturbation"]["effects"], adata.uns["perturbation"]["genes"]
    genes["matched_to"] = [""] + [names[0]] * (N_GENES - 1)
    effects = stats_of(adata)
    assert effects["q_value"].notna().sum() == 1
    assert effects["q_value"].iloc[0] == effects["p_value"].iloc[0]
    assert len(table)


def test_too_little_to_say():
    adata = screened(np.random.default_rng(5))
    part = adata.uns["perturbation"]["effects"]
    adata.uns["perturbation"]["effects"] = part[part["donor"].isin(["D00", "D01"])]
    effects = stats_of(adata)
    assert effects["p_value"].isna().all()
    assert effects["effect"].notna().any()
    adata.uns["perturbation"]["effects"] = part.assign(took_effect=False)
    with pytest.raises(ValueError, match="No edit of the screen took effect"):
        mt.tl.perturbation_stats(adata)
    adata.uns["perturbation"]["effects"] = part
    with pytest.raises(KeyError, match="not in the AnnData"):
        mt.tl.perturbation_stats(adata[10:].copy())
    with pytest.raises(ValueError, match="n_null must be"):
        mt.tl.perturbation_stats(adata, n_null=3)


def test_what_was_ranked_is_matched():
    """The layer that was ranked is found again; what is no count is not matched."""
    adata = screened(np.random.default_rng(0))
    expected = stats_of(adata)
    adata.layers["counts"] = adata.X.copy()
    adata.X = np.log1p(adata.X)
    adata.uns["rank_value_encode"] = {"params": {"layer": "counts", "force": False}}
    pd.testing.assert_frame_equal(stats_of(adata), expected)
    del adata.uns["rank_value_encode"]
    with pytest.warns(UserWarning, match="not on expression: .* looks log-normalised"):
        assert "expression" not in stats_of(adata)


def test_cells_are_no_donors():
    adata = screened(np.random.default_rng(0))
    adata.uns["perturbation"]["effects"] = adata.uns["perturbation"]["effects"].drop(columns="donor")
    with pytest.warns(UserWarning, match="No donor is known, so cells are the units"):
        assert set(stats_of(adata)["unit"]) == {"cell"}


class TestNull:
    def test_the_gene_itself_is_left_out(self):
        x = np.linspace(0, 1, 41)[:, None]
        effects = np.zeros(41)
        effects[20] = 100
        null = matched_null(effects, x, 40)
        assert null.mean[20] == 0
        assert null.n[20] == 40
        assert np.isnan(null.z[20])
        assert (null.z[:20] == 0).all()

    @pytest.mark.parametrize("n", [10, 20, 40, 80])
    @pytest.mark.parametrize("tails", [8, np.inf])
    def test_tails(self, n, tails):
        """Where no gene differs from those it is matched to, p is about uniform, also where effects have long tails."""
        rng = np.random.default_rng(0)
        p = []
        for _ in range(20):
            effects = rng.normal(size=2000) if np.isinf(tails) else rng.standard_t(tails, size=2000)
            null = matched_null(effects, rng.uniform(size=(2000, 3)), n)
            p.append(two_sided_p(null.z, null_df(null.n)))
        p = np.concatenate(p)
        assert 0.03 < (p < 0.05).mean() < 0.08
        assert (p < 0.001).mean() < 0.002

    def test_few_donors_that_agree_are_no_certainty(self):
        error = moderated_error(np.array([1.0, 0.01]), np.array([4, 4]))
        assert error[1] > 0.3

    def test_storey(self):
        p = np.r_[np.full(50, 1e-4), np.linspace(0, 1, 50)]
        assert storey(p)[0] < 1.2e-4 * 2
        assert np.isnan(storey(np.array([np.nan]))).all()


class TestSlopes:
    SETTINGS = {"time_key": "age_months", "donor_key": "donor_id", "groupby": "cell_type"}

    @pytest.fixture(scope="class")
    @staticmethod
    def atlas():
        return mt.datasets.aging_atlas(4000, 30, n_genes=500, seed=2)

    def test_years_are_years(self, atlas):
        """Ages in years, whole or not, give the slopes of months; in the wrong unit they are noticed."""
        atlas.obs["years"] = atlas.obs["age_months"] / 12
        mt.tl.expression_age_slope(atlas, **self.SETTINGS)
        expected = mt.get.table(atlas, "expression_age_slope")
        years = {**self.SETTINGS, "time_key": "years"}
        mt.tl.expression_age_slope(atlas, **years, time_unit="years")
        pd.testing.assert_frame_equal(mt.get.table(atlas, "expression_age_slope"), expected)
        mt.tl.expression_age_slope(atlas, **years)  # its name says so
        pd.testing.assert_frame_equal(mt.get.table(atlas, "expression_age_slope"), expected)
        with pytest.raises(ValueError, match="by its name, but is taken for months: pass time_unit='years'"):
            mt.tl.expression_age_slope(atlas, **years, time_unit="months")

    def test_is_that_of_statsmodels(self, atlas):
        import statsmodels.formula.api as smf

        mt.tl.expression_age_slope(atlas, **self.SETTINGS, covariates=["sex", "batch"])
        slopes = mt.get.table(atlas, "expression_age_slope")
        row = slopes[slopes["group"] == "fibroblast"].set_index("gene").iloc[40]
        cells = atlas[atlas.obs["cell_type"] == "fibroblast"]
        sums = pd.DataFrame(cells.X.toarray()).groupby(cells.obs["donor_id"].astype(str).to_numpy()).sum()
        n = cells.obs["donor_id"].astype(str).value_counts().reindex(sums.index)
        level = np.log2(1e6 * sums[atlas.var_names.get_loc(row.name)] / sums.sum(axis=1) + 1)
        donors = (
            cells.obs.astype({"donor_id": str})
            .drop_duplicates("donor_id")
            .set_index("donor_id")
            .loc[sums.index]
        )
        table = donors.assign(y=level, years=donors["age_months"] / 12)[(n >= 5).to_numpy()]
        fitted = smf.ols("y ~ years + C(sex) + C(batch)", table).fit()
        assert row["slope"] == pytest.approx(fitted.params["years"])
        assert row["p_value"] == pytest.approx(fitted.pvalues["years"])
        assert [row["slope_low"], row["slope_high"]] == pytest.approx(fitted.conf_int().loc["years"].tolist())

    def test_planted_genes_are_found_and_others_not(self, atlas):
        mt.tl.expression_age_slope(atlas, **self.SETTINGS, covariates="sex")
        slopes = mt.get.table(atlas, "expression_age_slope")
        truth = atlas.uns["truth"]["age_genes"].query("direction != 'turnover'")
        both = slopes.merge(truth, left_on=["gene", "group"], right_on=["ensembl_id", "cell_type"])
        called = both[both["q_value"] < 0.05]
        assert len(called) > 20
        assert (np.sign(called["slope"]) == np.sign(called["log2_fold"])).all()
        null = mt.datasets.aging_atlas(4000, 30, n_genes=500, seed=3, null=True)
        mt.tl.expression_age_slope(null, **self.SETTINGS, covariates="sex")
        nothing = mt.get.table(null, "expression_age_slope")
        assert 0.03 < (nothing["p_value"].dropna() < 0.05).mean() < 0.08

    def test_refusals(self, atlas):
        atlas = atlas.copy()
        atlas.obs["copy"] = atlas.obs["age_months"]
        with pytest.raises(ValueError, match="Age cannot be told"):
            mt.tl.expression_age_slope(atlas, **self.SETTINGS, covariates="copy")
        with pytest.raises(ValueError, match="varies within"):
            mt.tl.expression_age_slope(
                atlas, time_key="age_months", donor_key="donor_id", covariates="cell_type"
            )
        with pytest.raises(ValueError, match="No group has 99 donors"):
            mt.tl.expression_age_slope(atlas, **self.SETTINGS, min_donors=99)
        atlas.X = np.log1p(atlas.X.toarray())
        with pytest.raises(ValueError, match="log-normalised"):
            mt.tl.expression_age_slope(atlas, **self.SETTINGS)


class TestConcordance:
    @staticmethod
    def both(seed, *, follow):
        """A screen and slopes; with `follow`, inhibition of a rising gene makes cells younger."""
        rng = np.random.default_rng(seed)
        adata = screened(rng)
        mt.tl.perturbation_stats(adata)
        effects = mt.get.table(adata, "perturbation_stats")
        # Twenty donors: what age leaves of them makes slopes as large as those that follow nothing.
        X = np.column_stack([np.ones(20), np.arange(20.0)])
        residuals, weight = get_residuals(rng.normal(0, 1, (20, N_GENES)), X)
        residuals *= effects["effect"].std() / np.linalg.norm(weight)
        noise = weight @ residuals
        slope = (-follow * effects["effect"] + noise).to_numpy()
        table = effects[["gene", "symbol", "group"]].assign(
            slope=slope, q_value=np.where(np.abs(slope) > 0.3, 0.01, 1)
        )
        table["slope_low"], table["slope_high"] = slope - 1, slope + 1
        samples = pd.DataFrame(
            {"group": table["group"].iloc[0], "donor": [f"D{i}" for i in range(20)], "weight": weight}
        )
        made = {"slopes": table, "samples": samples, "residuals": residuals}
        write_result(adata, "expression_age_slope", {"unit": "log2 expression per year"}, **made)
        return adata

    def test_found_where_it_is(self):
        adata = self.both(0, follow=3)
        mt.tl.perturbation_concordance(adata, n_permutations=300)
        found = mt.get.table(adata, "perturbation_concordance").set_index("genes")
        assert found.loc["all", "share"] > 0.8
        assert found.loc["all", "rho"] > 0.6
        assert found.loc["ageing", "q_value"] < 0.05
        genes = mt.get.table(adata, "perturbation_concordance", "genes")
        assert (genes["concordant"] == (np.sign(genes["effect"]) != np.sign(genes["slope"]))).all()

    def test_not_found_where_it_is_not(self):
        p = []
        for seed in range(12):
            adata = self.both(seed, follow=0)
            mt.tl.perturbation_concordance(adata, n_permutations=199)
            p.append(
                mt.get.table(adata, "perturbation_concordance").set_index("genes").loc["all", "rho_p_value"]
            )
        assert (np.array(p) < 0.05).sum() <= 2
        assert stats.kstest(p, "uniform").pvalue > 0.01

    def test_refusals(self):
        adata = self.both(1, follow=0)
        adata.uns["perturbation_stats"]["params"]["readout"] = "likelihood"
        with pytest.raises(ValueError, match="no direction in age"):
            mt.tl.perturbation_concordance(adata)
        adata.uns["perturbation_stats"]["params"] |= {"readout": "timelapse", "on": "both"}
        with pytest.raises(ValueError, match="which way is older"):
            mt.tl.perturbation_concordance(adata)


def test_figures():
    import matplotlib.pyplot as plt

    adata = TestConcordance.both(2, follow=3)
    mt.tl.perturbation_concordance(adata, n_permutations=99)
    assert len(mt.pl.perturbation(adata, n_genes=10).get_yticks()) == 10
    assert mt.pl.perturbation_volcano(adata).axes[0].get_title().startswith("a: 300 genes")
    assert len(mt.pl.perturbation_heatmap(adata, n_genes=7).get_yticks()) == 7
    assert "concordant" in mt.pl.perturbation_concordance(adata).get_title()
    pytest.importorskip("plotly")
    assert len(mt.pl.perturbation_volcano(adata, interactive=True).data[0].x) == N_GENES
    with pytest.raises(KeyError, match="no group 'b'"):
        mt.pl.perturbation(adata, group="b")
    with pytest.raises(ValueError, match="several k"):
        mt.pl.perturbation_dose(adata)
    plt.close("all")


@pytest.fixture(scope="module")
def cells():
    """A screen and slopes; 20 donors, gene 7 is read in two of them in group b, gene 8 in none, gene 9 has no slope."""
    adata = screened(np.random.default_rng(0), groups=("a", "b"))
    screen = adata.uns["perturbation"]
    screen["genes"]["symbol"] = [f"SYM{i}" for i in range(N_GENES)]
    table = screen["effects"]
    rare = (table["gene"] == ID[7]) & (table["group"] == "b") & ~table["donor"].isin(["D00", "D01"])
    screen["effects"] = table[~rare & (table["gene"] != ID[8])]
    mt.tl.perturbation_stats(adata)
    slopes = mt.get.table(adata, "perturbation_stats")[["gene", "symbol", "group"]]
    slopes = slopes[slopes["group"] != "all"].assign(n_donors=N_DONORS, p_value=0.001, q_value=0.01)
    slopes["slope"] = np.where(slopes["gene"] == ID[9], np.nan, 0.5)
    slopes["slope_low"], slopes["slope_high"] = slopes["slope"] - 1, slopes["slope"] + 1
    write_result(adata, "expression_age_slope", {"unit": "log2 expression per year"}, slopes=slopes.iloc[:-1])
    return adata


class TestTargetEvidence:
    """Edits, slopes and own tables side by side."""

    @staticmethod
    def own(**columns):
        return pd.DataFrame({"gene": ["SYM3", f"{ID[7]}.12", "SYM299", "OTHER", None], **columns})

    def test_values_are_those_of_the_analyses(self, cells):
        found = mt.get.target_evidence(cells)
        effects = mt.get.table(cells, "perturbation_stats")
        all_cells = effects[effects["group"] == "all"].set_index("gene")
        top = all_cells.loc[found["gene"].unique()]
        assert set(top.index) == set(all_cells["z"].abs().nlargest(15).index)
        assert top["effect"].is_monotonic_decreasing
        assert len(found) == 15 * 2 * 2
        both = found[found["evidence"] == "perturbation"].merge(effects, on=["gene", "symbol", "group"])
        assert len(both) == 30
        for name in ("effect", "effect_low", "effect_high", "p_value", "q_value"):
            np.testing.assert_array_equal(both[f"{name}_x"], both[f"{name}_y"])
        np.testing.assert_array_equal(both["n"], both["n_units"])
        units = found.groupby("evidence", sort=False)["unit"].unique()
        assert units.explode().tolist() == ["years", "log2 expression per year"]
        chosen = mt.get.target_evidence(cells, group="b", n_genes=1)["gene"].iloc[0]
        assert chosen == effects[effects["group"] == "b"].set_index("gene")["z"].abs().idxmax()

    def test_what_was_not_tested_is_not_known(self, cells):
        """Too few donors, in no cell, without counts, not in the table: NaN, and no q value."""
        genes = ["SYM3", ID[7], "SYM8", "SYM9", "SYM299", "SYM3"]
        found = mt.get.target_evidence(cells, genes=genes).set_index(["evidence", "gene", "group"])
        assert found.index.unique("gene").tolist() == [ID[i] for i in (3, 7, 8, 9, 299)]
        lacking = found.index[found["effect"].isna()].tolist()
        edits = [("perturbation", ID[7], "b"), ("perturbation", ID[8], "a"), ("perturbation", ID[8], "b")]
        slopes = [("expression", ID[9], "a"), ("expression", ID[9], "b"), ("expression", ID[299], "b")]
        assert lacking == edits + slopes
        assert found.loc[edits, "q_value"].isna().all()
        assert found.loc[edits[0], "n"] == 2

    def test_own_tables_by_symbol_and_id(self, cells):
        effect = [1.0, 0.0, 3.0, 4.0, 5.0]
        plain = self.own(effect=effect)
        tested = self.own(effect=effect, group="a", p_value=[0.01, 0.02, 0.04, np.nan, 1], unit="fold", n=4)
        given = self.own(effect=effect, group=["a", "b", "a", "a", "a"], q_value=0.5, p_value=0.1)
        found = mt.get.target_evidence(
            cells, genes=["SYM3", "SYM7", "SYM10"], tables={"plain": plain, "tested": tested, "given": given}
        )
        found = found.set_index(["evidence", "group", "gene"]).sort_index()
        np.testing.assert_array_equal(found.loc[("plain", "all"), "effect"], [1, 0, np.nan])
        assert found.loc["plain", "q_value"].isna().all()
        assert found.loc["plain", "unit"].eq("effect").all()
        # Corrected over the table's three genes with a p value, shown or not.
        np.testing.assert_allclose(found.loc[("tested", "a"), "q_value"], [0.03, 0.03, np.nan])
        np.testing.assert_array_equal(found.loc[("tested", "a"), "n"], [4, 4, np.nan])
        assert found.loc["tested", "unit"].eq("fold").all()
        assert found.loc[("tested", "b"), "effect"].isna().all()
        np.testing.assert_array_equal(found.loc[("given", "a"), "q_value"], [0.5, np.nan, np.nan])
        np.testing.assert_array_equal(found.loc[("given", "b"), "effect"], [np.nan, 0, np.nan])

    def test_groups_of_a_table_where_the_screen_has_none(self):
        adata = screened(np.random.default_rng(0), groups=("all",))
        mt.tl.perturbation_stats(adata)
        slopes = mt.get.table(adata, "perturbation_stats")[["gene", "symbol", "group"]].assign(slope=1.0)
        write_result(adata, "expression_age_slope", {"unit": "log2 expression per year"}, slopes=slopes)
        table = pd.DataFrame({"gene": ID[:2], "effect": 1.0, "group": ["x", "y"]})
        found = mt.get.target_evidence(adata, tables={"own": table})
        assert found.groupby("evidence")["group"].unique().map(list).to_dict() == {
            "perturbation": ["all"],
            "expression": ["all"],
            "own": ["x", "y"],
        }

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ({}, "'mice' has no column 'effect'; it has gene. Rename"),
            ({"effect": "up"}, "The column 'effect' of the table 'mice' has no numbers"),
            ({"effect": 1, "p_value": 20}, "p_value that is not between 0 and 1"),
            ({"effect": 1, "unit": list("aabab")}, "several units"),
            (
                {"effect": 1, "gene": "Trp53"},
                "No gene of the table 'mice' was screened: its first is 'Trp53'",
            ),
            ({"effect": 1, "gene": "SYM3"}, "several rows for 'SYM3' in 'all' .4 too many"),
            ({"effect": 1, "group": "heart"}, "'mice' has none of the groups a, b; it has heart"),
        ],
    )
    def test_tables_refused(self, cells, columns, message):
        with pytest.raises(ValueError, match=message):
            mt.get.target_evidence(cells, genes=["SYM3"], tables={"mice": self.own().assign(**columns)})

    def test_refused(self, cells):
        get = mt.get.target_evidence
        with pytest.raises(KeyError, match="no gene 'NOPE' .1 of 2 are not in it"):
            get(cells, genes=["SYM3", "NOPE"])
        with pytest.raises(ValueError, match="genes is empty"):
            get(cells, genes=[])
        with pytest.raises(KeyError, match="no group 'c'; there are all, a, b"):
            get(cells, group="c")
        with pytest.raises(KeyError, match="no k = 5; there are 0"):
            get(cells, k=5)
        with pytest.raises(TypeError, match="tables must be a dictionary or None, got DataFrame"):
            get(cells, tables=self.own(effect=1))
        with pytest.raises(ValueError, match="cannot be named 'expression'"):
            get(cells, tables={"expression": self.own(effect=1)})
        without = cells.copy()
        del without.uns["expression_age_slope"]
        with pytest.raises(KeyError, match="Run mt.tl.expression_age_slope"):
            mt.pl.target_evidence(without)

    def test_figure(self, cells):
        """A dot for what has a q value, a square for what has none, a cross for what was not tested; white is 0."""
        genes, tables = ["SYM3", "SYM7", "SYM8"], {"mice": self.own(effect=[-2.0, 1, 1, 1, 1])}
        figure = mt.pl.target_evidence(cells, genes=genes, tables=tables)
        edit, slope, mice = figure.axes[:3]
        assert [t.get_text() for t in edit.get_yticklabels()] == genes
        assert [t.get_text() for t in edit.get_xticklabels()] == ["a", "b"]
        assert [t.get_text() for t in mice.get_xticklabels()] == ["all cells"]
        drawn = [[len(marks.get_offsets()) for marks in ax.collections] for ax in (edit, slope, mice)]
        assert drawn == [[3, 0, 3], [6, 0, 0], [0, 2, 1]]
        # The first gene is at the top.
        assert edit.get_ylim()[0] > edit.get_ylim()[1]
        for ax in (edit, slope, mice):
            low, high = ax.collections[0].get_clim()
            assert low == -high
        assert mice.collections[1].get_clim() == (-2, 2)
        labels = [ax.get_title(loc="left") for ax in figure.axes[3:6]]
        assert labels[0] == "change of the age read on\ninhibition (years)"
        assert labels[1:] == ["log2 expression per year", "mice\neffect"]
        legend = [t.get_text() for t in figure.axes[6].get_legend().get_texts()]
        assert legend == ["1", "0.1", "0.01", "0.001", "≤ 0.0001", "no q value", "not tested"]
        q = mt.get.target_evidence(cells, genes=genes).query("evidence == 'perturbation' and effect.notna()")
        np.testing.assert_array_equal(
            np.argsort(edit.collections[0].get_sizes(), kind="stable"),
            np.argsort(-q["q_value"].to_numpy(), kind="stable"),
        )
