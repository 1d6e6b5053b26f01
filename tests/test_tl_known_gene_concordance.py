"""Scores of genes beside what other studies know of them: found where planted, and called no oftener than by chance."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import maxtoki_toolkit as mt
from maxtoki_toolkit.results.store import write_result


@pytest.fixture(scope="module")
def atlas():
    adata = mt.datasets.aging_atlas(2400, 40, seed=3)
    controls = adata[adata.obs["condition"] == "control"].copy()
    mt.pp.map_genes(controls)
    mt.pp.rank_value_encode(controls, mt.models.Vocabulary.from_anndata(controls))
    mt.tl.expression_age_slope(controls, groupby="cell_type", covariates="sex")
    return controls


def test_planted_genes_are_found(atlas):
    """The ageing genes of the simulation, by symbol, in the cell type in which they age."""
    slopes = mt.get.table(atlas, "expression_age_slope")
    half = mt.datasets.aging_atlas(2400, 40, seed=4)
    half = half[half.obs["condition"] == "control"].copy()
    mt.pp.map_genes(half)
    mt.tl.expression_age_slope(half, groupby="cell_type")
    known = mt.get.table(half, "expression_age_slope").rename(columns={"slope": "value"})
    known = known.assign(gene=known["symbol"])[["gene", "group", "value"]]
    mt.tl.known_gene_concordance(atlas, known=known, n_permutations=499)
    found = mt.get.table(atlas, "known_gene_concordance").set_index("group")
    assert found.loc["fibroblast", "rho_p_value"] < 0.05
    assert found.loc["fibroblast", "rho"] > found.loc["fibroblast", "rho_null_high"]
    genes = mt.get.table(atlas, "known_gene_concordance", "genes")
    assert set(genes["group"]) == set(slopes["group"])
    # Ensembl ids say the same as symbols.
    by_id = known.assign(
        gene=slopes.set_index("symbol")["gene"].groupby(level=0).first()[known["gene"]].to_numpy()
    )
    mt.tl.known_gene_concordance(atlas, known=by_id, n_permutations=499, key_added="by_id")
    pd.testing.assert_frame_equal(mt.get.table(atlas, "by_id").set_index("group"), found)


def test_screens_and_attributions_are_read_with_their_sign(atlas):
    adata = atlas.copy()
    slopes = mt.get.table(adata, "expression_age_slope")
    mine = slopes[slopes["group"] == "fibroblast"].dropna(subset="slope")
    effects = mine[["gene", "symbol", "group"]].assign(
        effect=-mine["slope"], n_units=20, n_genes=1, matched_to="", k=0
    )
    params = {"readout": "timelapse", "min_donors": 3, "mode": "inhibit", "on": "query", "unit": "months"}
    write_result(adata, "perturbation_stats", params | {"groupby": ["cell_type"]}, effects=effects)
    known = mine[["symbol", "slope"]].set_axis(["gene", "value"], axis=1)
    mt.tl.known_gene_concordance(adata, known=known, source="perturbation_stats", n_permutations=99)
    table = mt.get.table(adata, "known_gene_concordance")
    assert table["group"].tolist() == ["fibroblast"]
    assert table["rho"].iloc[0] == pytest.approx(1)
    assert table["rho_p_value"].iloc[0] == pytest.approx(0.01)

    genes = mine[["gene", "symbol"]].assign(excess=mine["slope"], part="query")
    write_result(adata, "attribute", {"readout": "timelapse", "unit": "months"}, genes=genes)
    with pytest.raises(ValueError, match="no slopes of 'all', from which the null is made"):
        mt.tl.known_gene_concordance(adata, known=known, source="attribute", n_permutations=99)
    mt.tl.expression_age_slope(adata, key_added="whole")
    mt.tl.known_gene_concordance(
        adata, known=known, source="attribute", slopes_key="whole", n_permutations=99
    )
    assert mt.get.table(adata, "known_gene_concordance")["rho"].iloc[0] == pytest.approx(1)
    adata.uns["attribute"]["params"]["readout"] = "FOXO3"
    with pytest.raises(ValueError, match="those of the lapse have a direction"):
        mt.tl.known_gene_concordance(adata, known=known, source="attribute", slopes_key="whole")


def test_refusals(atlas):
    known = pd.DataFrame({"gene": ["FOXO3"], "value": [1.0]})
    with pytest.raises(ValueError, match="1[0-9]? genes have both a score"):
        mt.tl.known_gene_concordance(atlas, known=pd.concat([known] * 3))
    with pytest.raises(ValueError, match="known has no column 'value'; it has 'gene', 'rho'"):
        mt.tl.known_gene_concordance(atlas, known=known.rename(columns={"value": "rho"}))
    twice = pd.concat([known, known.assign(value=-1.0)])
    with pytest.raises(ValueError, match=r"1 genes of known have several values \(first: 'FOXO3'\)"):
        mt.tl.known_gene_concordance(atlas, known=twice)
    with pytest.raises(ValueError, match="of known: 'CD4T'"):
        mt.tl.known_gene_concordance(atlas, known=known.assign(group="CD4T"))
    with pytest.raises(ValueError, match="There is no source 'slopes'"):
        mt.tl.known_gene_concordance(atlas, known=known, source="slopes")
    with pytest.raises(KeyError, match="Run mt.tl.expression_age_slope"):
        mt.tl.known_gene_concordance(
            AnnData(atlas.X, obs=atlas.obs, var=atlas.var, layers=atlas.layers), known=known
        )


def test_what_ages_in_t_cells(shared):
    """Blood of 40 donors, whose ages are in doubt, against genes of CD4 T cells over several cohorts."""
    import anndata as ad

    adata = ad.read_h5ad(shared / "data" / "onek1k_4types_40donors.h5ad")
    adata = adata[adata.obs["cell_type"] == "cd4nc"].copy()
    mt.pp.map_genes(adata)
    mt.pp.rank_value_encode(adata, mt.models.Vocabulary.from_anndata(adata))
    table = pd.read_csv(shared / "data" / "ageing_genes_t_cells.csv").rename(columns={"pooled_rho": "value"})
    known = table.loc[table["cell_type"] == "CD4T", ["gene", "value"]]
    columns = {"time_key": "age", "time_unit": "years", "donor_key": "donor_id"}
    mt.tl.expression_age_slope(adata, **columns)
    mt.tl.known_gene_concordance(adata, known=known)
    found = mt.get.table(adata, "known_gene_concordance").iloc[0]
    assert found["n_genes"] > 150
    assert found["rho"] > 0  # as the source says
    assert found["rho_p_value"] > 0.05  # and no more than that
    # Ages exchanged between donors are called no oftener than they should be.
    ages = adata.obs.groupby("donor_id", observed=True)["age"].first()
    p = []
    for seed in range(20):
        exchanged = pd.Series(np.random.default_rng(seed).permutation(ages), index=ages.index)
        adata.obs["age"] = adata.obs["donor_id"].map(exchanged).astype(float)
        mt.tl.expression_age_slope(adata, **columns)
        mt.tl.known_gene_concordance(adata, known=known, n_permutations=199)
        p.append(mt.get.table(adata, "known_gene_concordance")["rho_p_value"].iloc[0])
    assert (np.array(p) < 0.05).sum() <= 4
