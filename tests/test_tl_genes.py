"""Embeddings of genes, their neighbours, labels predicted from them, and dependencies of groups."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.metrics import average_precision_score, roc_auc_score

import maxtoki_toolkit as mt
from maxtoki_toolkit._features import locate_genes
from maxtoki_toolkit.models.embedding import embed_sequences, hidden_states
from maxtoki_toolkit.models.engine import run
from maxtoki_toolkit.stats import context_probe, gene_probe
from maxtoki_toolkit.tl._cells import WHOLE, get_sequences
from maxtoki_toolkit.tl._gene_families import family_name, gene_families
from maxtoki_toolkit.tl._gene_labels import label_matrix
from maxtoki_toolkit.tl._gene_vectors import in_parts


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model


@pytest.fixture(scope="module")
def encoded(model):
    adata = mt.datasets.aging_atlas(80, 10, n_genes=500, seed=2)
    mt.pp.map_genes(adata, model)
    mt.pp.rank_value_encode(adata, model)
    mt.tl.embed_genes(adata, model, context="alone")
    return adata


@pytest.fixture
def cells(encoded):
    return encoded.copy()


def with_vectors(adata, rng, direction=None):
    """Random embeddings of 8 columns in place of those of the model; labels that they hold."""
    vectors = rng.normal(size=(adata.n_vars, 8)).astype(np.float32)
    adata.varm["maxtoki"] = vectors
    del adata.uns["embed_genes"]
    label = vectors[:, 0] + 0.3 * rng.normal(size=adata.n_vars) > 0.5
    return pd.DataFrame({"gene": adata.var_names, "planted": label.astype(int)})


# Embeddings.


def test_means_over_cells_are_those_of_all_states(cells, model):
    """Against all hidden states, one a cell and gene."""
    mt.tl.embed_genes(cells, model, groupby="cell_type", layer=0)
    types = cells.obs["cell_type"].astype(str).to_numpy()
    names = cells.uns["embed_genes"]["groups"]["group"].tolist()
    assert names == sorted(set(types))
    assert cells.uns["embed_genes"]["groups"]["n_cells"].tolist() == [(types == n).sum() for n in names]
    mt.tl.embed_genes(cells, model, groupby="cell_type")
    sequences = get_sequences(cells, model)
    states = {}
    for rows, found in run(model, sequences, lambda b: hidden_states(model, b.inputs, -1)):
        states |= {row: state.numpy() for row, state in zip(rows, found, strict=True)}
    groups, token = cells.varm["maxtoki_groups"], cells.var["token_id"].to_numpy()
    assert groups.shape == (cells.n_vars, len(names), 16)
    assert groups.dtype == np.float32
    for gene in np.flatnonzero(token >= 0)[:40]:
        for place, name in enumerate(names):
            own = [
                states[row][at]
                for row in np.flatnonzero(types == name)
                for at in np.flatnonzero(sequences.tokens[sequences.owner == row] == token[gene])
            ]
            expected = np.mean(own, axis=0) if own else np.full(16, np.nan)
            np.testing.assert_allclose(groups[gene, place], expected, atol=2e-6)
    whole = embed_sequences(model, sequences, tokens=True).tokens
    np.testing.assert_allclose(cells.varm["maxtoki"], whole[token], atol=2e-6)


def test_without_cells(cells, model):
    token = cells.var["token_id"].to_numpy()
    mt.tl.embed_genes(cells, model, context="table", key_added="rows")
    weight = model.hf.get_input_embeddings().weight.detach().numpy()
    np.testing.assert_array_equal(cells.varm["rows"], weight[token])
    # A cell that expresses one gene alone is that gene alone.
    alone = cells[:3].copy()
    ranks = np.zeros((3, cells.n_vars), dtype=np.uint16)
    ranks[np.arange(3), [5, 40, 300]] = 1
    alone.layers["rank"] = sparse.csr_matrix(ranks)
    alone.obs["n_genes_ranked"] = 1
    mt.tl.embed(alone, model)
    np.testing.assert_allclose(cells.varm["maxtoki"][[5, 40, 300]], alone.obsm["X_maxtoki"], atol=2e-6)


def test_whole_cells_show_every_gene(cells, model):
    """Parts have each gene of a cell once, in order, and are no longer than the model reads."""
    sequences = get_sequences(cells, model, max_length=WHOLE)
    parts, cell = in_parts(sequences, 40)
    assert parts.lengths.max() <= 40
    assert parts.lengths.min() > 20  # none is a rest
    for row in range(10):
        mine = [parts.tokens[parts.owner == i][1:-1] for i in np.flatnonzero(cell == row)]
        genes = sequences.tokens[sequences.owner == row][1:-1]
        np.testing.assert_array_equal(np.sort(np.concatenate(mine)), np.sort(genes))
        for part in mine:
            place = [genes.tolist().index(token) for token in part]
            assert np.all(np.diff(place) > 0)
    mt.tl.embed_genes(cells, model, whole_cells=True)
    expressed = np.asarray((cells.layers["rank"] > 0).sum(axis=0)).ravel() > 0
    np.testing.assert_array_equal(np.isfinite(cells.varm["maxtoki"]).all(axis=1), expressed)
    mt.tl.embed_genes(cells, model, min_cells=5)
    assert np.isfinite(cells.varm["maxtoki"]).all(axis=1).sum() < expressed.sum()


def test_embedding_refusals(cells, model):
    with pytest.raises(ValueError, match="There is no context 'cell'; choose from cells, alone, table"):
        mt.tl.embed_genes(cells, model, context="cell")
    with pytest.raises(ValueError, match="reads no cells, so that there are no groups"):
        mt.tl.embed_genes(cells, model, context="table", groupby="cell_type")


# Neighbours.


def planted_cluster(adata, rng):
    """Twenty genes that point the same way among genes that do not."""
    vectors = rng.normal(size=(adata.n_vars, 8))
    members = rng.choice(adata.n_vars, 20, replace=False)
    vectors[members] = np.full(8, 3) + 0.3 * rng.normal(size=(20, 8))
    adata.varm["maxtoki"] = vectors.astype(np.float32)
    return members


def test_neighbours_planted_and_against_brute_force(cells):
    members = planted_cluster(cells, np.random.default_rng(0))
    expressed = np.asarray((cells.X > 0).sum(axis=0)).ravel() > 0
    members = members[expressed[members]]
    sets = {"planted": cells.var_names[members].tolist(), "other": cells.var_names[::9].tolist()}
    gene = cells.var_names[members[0]]
    mt.tl.gene_neighbors(cells, genes=gene, n_neighbors=10, gene_sets=sets, n_permutations=199)
    table = mt.get.table(cells, "gene_neighbors")
    vectors = cells.varm["maxtoki"][expressed].astype(float)
    vectors = vectors - vectors.mean(axis=0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = pd.Series(
        vectors @ vectors[np.flatnonzero(expressed) == members[0]][0], cells.var_names[expressed]
    )
    expected = cosine.drop(gene).sort_values(ascending=False)[:10]
    assert table["neighbor"].tolist() == expected.index.tolist()
    np.testing.assert_allclose(table["cosine"], expected, atol=1e-6)
    assert set(table["neighbor"]) <= set(sets["planted"])
    enriched = mt.get.table(cells, "gene_neighbors", "gene_sets").set_index("gene_set")
    assert enriched.loc["planted", "n_found"] == 10
    assert enriched.loc["planted", "q_value"] < 0.02
    assert enriched.loc["planted", "n_found"] > 3 * enriched.loc["planted", "n_controls"]
    assert enriched.loc["other", "p_value"] > 0.05


def test_neighbours_of_nothing_are_enriched_as_often_as_chance_has_it(cells):
    rng = np.random.default_rng(1)
    cells.varm["maxtoki"] = rng.normal(size=(cells.n_vars, 8)).astype(np.float32)
    sets = {f"set {i}": rng.choice(cells.var_names, 40, replace=False).tolist() for i in range(10)}
    expressed = np.asarray((cells.X > 0).sum(axis=0)).ravel() > 0
    genes = rng.choice(cells.var_names[expressed], 20, replace=False).tolist()
    mt.tl.gene_neighbors(cells, genes=genes, gene_sets=sets, n_permutations=199)
    table = mt.get.table(cells, "gene_neighbors", "gene_sets")
    assert len(table) == 200
    assert (table["p_value"] < 0.05).mean() < 0.09
    assert (table["q_value"] < 0.05).sum() <= 1


def test_neighbour_refusals(cells, model):
    with pytest.raises(KeyError, match=r"Did not find \.varm\['nothing'\]\. Run mt\.tl\.embed_genes"):
        mt.tl.gene_neighbors(cells, genes="CD4", key="nothing")
    with pytest.raises(KeyError, match="Did not find the gene 'CD44444'"):
        mt.tl.gene_neighbors(cells, genes="CD44444")
    cells.varm["maxtoki"][3] = np.nan
    with pytest.raises(ValueError, match="has no embedding"):
        mt.tl.gene_neighbors(cells, genes=cells.var_names[3])
    with pytest.raises(ValueError, match="None of the 1 gene sets has 3 genes"):
        mt.tl.gene_neighbors(cells, genes="CD4", gene_sets={"few": ["CD4", "CD2"]})


# Labels.


def test_families():
    """Paralogues by name and by their orthologue in the mouse; names given for want of a better one join nothing."""
    names = {"TMEM1": "TMEM1", "SLC2A1": "SLC", "MT-CO1": "MT-", "MT1X": "MT", "H2AC6": "H2AC", "7SK": "7SK"}
    assert {name: family_name(name) for name in names} == names
    pairs = mt._reference.orthologs_of_mouse()
    two = pairs[pairs["gene"].duplicated(keep=False)].groupby("gene")["human"].first().iloc[:1]
    humans = pairs.loc[pairs["gene"] == two.index[0], "human"].tolist()[:2]
    ids = np.array([*humans, "ENSG00000000001", "ENSG00000000002"], dtype=object)
    family = gene_families(ids, np.array(["XX1", "YY1", "RPL3", "RPL4"], dtype=object))
    assert family[0] == family[1] != family[2] == family[3]


def test_shuffling_and_folds_keep_families():
    rng = np.random.default_rng(0)
    family = np.repeat(np.arange(60), rng.integers(1, 8, 60))
    labels = (np.arange(60) % 3 == 0)[family].astype(float)[:, None]
    shuffled = labels[gene_probe.shuffled_by_family(family, rng)]
    assert shuffled.sum() == labels.sum()
    assert 0.1 < (shuffled != labels).mean() < 0.8
    # Most neighbours in a family still agree.
    by_family = pd.Series(shuffled[:, 0]).groupby(family).agg(lambda x: max(x.mean(), 1 - x.mean()))
    assert by_family.mean() > 0.85
    fold = gene_probe.family_folds(labels, family, 5, 0)
    assert pd.Series(fold).groupby(family).nunique().max() == 1
    assert pd.Series(labels[:, 0]).groupby(fold).mean().between(0.15, 0.55).all()


def test_areas_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(60, 2)), (rng.random((60, 2)) < 0.4).astype(float)
    fold = np.arange(60) % 3
    auroc, auprc = gene_probe.fold_means(scores, labels, fold)
    parts = [(labels[fold == i].ravel(), scores[fold == i].ravel()) for i in range(3)]
    assert auroc[0] == pytest.approx(np.mean([roc_auc_score(*part) for part in parts]))
    assert auprc[0] == pytest.approx(np.mean([average_precision_score(*part) for part in parts]))


def test_planted_labels_are_found_and_shuffled_ones_are_not(cells, model):
    rng = np.random.default_rng(0)
    labels = with_vectors(cells, rng)
    labels["shuffled"] = rng.permutation(labels["planted"])
    mt.tl.gene_task(cells, model, labels=labels[::2], n_folds=3, n_permutations=39)
    scores = mt.get.table(cells, "gene_task").set_index(["gene_set", "predictor"])
    planted = scores.loc[("planted", "MaxToki")]
    assert planted["auroc"] > 0.85
    assert planted["auroc_low"] < planted["auroc"] < planted["auroc_high"]
    assert planted["auprc"] > planted["null_auprc_high"] > planted["prevalence"] - 0.1
    assert planted["p_value"] == pytest.approx(1 / 40)
    assert scores.loc[("planted", "all baselines and MaxToki"), "auroc"] > 0.8
    for name in ("untrained", "expression", "detection", "PCA loadings", "all baselines"):
        row = scores.loc[("planted", name)]
        assert row["difference_low"] > 0  # the embedding is ahead
        assert row["auroc"] < 0.7
    null = scores.loc["shuffled"]
    assert null.loc["MaxToki", "auroc"] < null.loc["MaxToki", "null_auroc_high"]
    assert null["q_value"].min() > 0.05
    assert scores.loc["all sets"]["n_genes"].nunique() == 1
    genes = mt.get.table(cells, "gene_task", "genes")
    assert genes.groupby("family")["fold"].nunique().max() == 1
    own = genes[genes["gene_set"] == "planted"]
    areas = [roc_auc_score(part["label"], part["log_odds"]) for _, part in own.groupby("fold")]
    assert np.mean(areas) == pytest.approx(planted["auroc"])
    figure = mt.pl.gene_task(cells, gene_set="planted")
    assert len(figure.axes[0].get_yticklabels()) == 7
    with pytest.raises(KeyError, match="Did not find the gene set 'nope'"):
        mt.pl.gene_task(cells, gene_set="nope")


def test_p_values_of_labels_of_nothing_are_even():
    """Twenty-four tasks without an answer; the labels go by family, as real ones do."""
    rng = np.random.default_rng(3)
    family = np.repeat(np.arange(120), rng.integers(1, 4, 120))
    p_values = []
    for _ in range(24):
        X, labels = rng.normal(size=(len(family), 4)), (rng.random(120) < 0.4)[family].astype(float)[:, None]
        orders = [np.arange(len(family)), *(gene_probe.shuffled_by_family(family, rng) for _ in range(9))]
        area = []
        for y in [labels[order] for order in orders]:
            fold = gene_probe.family_folds(y, family, 3, 0)
            area.append(gene_probe.fold_means(gene_probe.out_of_fold(X, y, fold, [0.1] * 3), y, fold)[0][0])
        p_values.append((1 + (np.array(area[1:]) >= area[0]).sum()) / 10)
    # The p values are 0.1 to 1: 0.55 on average, and 0.1 in a tenth of the tasks.
    assert 0.4 < np.mean(p_values) < 0.7
    assert np.mean(np.array(p_values) <= 0.1) <= 0.25


def test_gene_length_is_a_baseline_where_it_is_known(cells, model):
    labels = with_vectors(cells, np.random.default_rng(0))
    length = np.where(labels["planted"], 9000.0, 3000.0)
    length[::50] = np.nan
    cells.var["feature_length"] = length
    mt.tl.gene_task(cells, model, labels=labels[::2], n_folds=2, n_permutations=1)
    scores = mt.get.table(cells, "gene_task").set_index("predictor")
    assert scores.loc["gene length", "auroc"] > 0.95


def test_labels_as_they_come(cells):
    """Symbols, ids with a version, sets and missing values."""
    ids, symbols = cells.var_names, cells.var["symbol"].astype(str)
    assert locate_genes(cells, [f"{ids[4]}.7", symbols.iloc[9], "nothing"]).tolist() == [4, 9, -1]
    table = pd.DataFrame({"gene": [ids[0], symbols.iloc[1], "nothing", ids[2]], "a": [1, 0, 1, np.nan]})
    matrix, names, missing = label_matrix(cells, table)
    assert (names, missing) == (["a"], 1)
    np.testing.assert_array_equal(matrix[:3, 0], [1, 0, np.nan])
    matrix, names, _ = label_matrix(cells, {"x": [ids[3]], "y": [ids[3], ids[5]]})
    assert matrix.sum(axis=0).tolist() == [1, 2]
    with pytest.raises(ValueError, match="says both 1 and 0 of the gene"):
        label_matrix(cells, pd.DataFrame({"gene": [ids[0], symbols.iloc[0]], "a": [1, 0]}))
    with pytest.raises(ValueError, match="holds 'yes': labels are 1"):
        label_matrix(cells, pd.DataFrame({"gene": [ids[0]], "a": ["yes"]}))
    with pytest.raises(ValueError, match="labels has no column 'gene'"):
        label_matrix(cells, pd.DataFrame({"symbol": [ids[0]], "a": [1]}))


def test_task_refusals(cells, model, tiny_clock):
    with pytest.raises(ValueError, match="3 have the label 'few'"):
        mt.tl.gene_task(cells, model, labels={"few": cells.var_names[:3].tolist()})
    with pytest.raises(ValueError, match="made by another model"):
        mt.tl.gene_task(cells, tiny_clock, labels={"a": cells.var_names[:30].tolist()})
    with pytest.raises(ValueError, match="n_folds must be at least 2"):
        mt.tl.gene_task(cells, model, labels={"a": cells.var_names[:30].tolist()}, n_folds=1)


# Dependencies.


def test_shuffles_within_genes():
    rng = np.random.default_rng(0)
    labels = np.where(rng.random((50, 6)) < 0.2, np.nan, (rng.random((50, 6)) < 0.5).astype(float))
    seen = rng.random((50, 6)) < 0.8
    shuffled = context_probe.shuffled_within_genes(labels, seen, rng)
    np.testing.assert_array_equal(np.isnan(shuffled), np.isnan(labels))
    np.testing.assert_array_equal(shuffled[~seen], labels[~seen])
    np.testing.assert_array_equal(np.nansum(shuffled, axis=1), np.nansum(labels, axis=1))
    assert (shuffled != labels)[np.isfinite(labels) & seen].mean() > 0.2


def test_area_within_shares():
    """Pairs of genes of the same tenth, one by one; the share itself says nothing there."""
    rng = np.random.default_rng(0)
    scores, labels, share = rng.normal(size=80), (rng.random(80) < 0.4).astype(float), rng.random(80) / 2
    tenth = np.floor(share * 10)
    pairs = [
        (scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j])
        for i in np.flatnonzero(labels == 1)
        for j in np.flatnonzero(labels == 0)
        if tenth[i] == tenth[j]
    ]
    assert context_probe.area_within(scores, labels, share) == pytest.approx(np.mean(pairs))
    assert context_probe.area_within(tenth, labels, share) == 0.5


@pytest.fixture(scope="module")
def panel(encoded, model):
    """Cells of twelve lines, in which embeddings by group say what they depend on; and the same shuffled."""
    rng = np.random.default_rng(5)
    adata = encoded.copy()
    names = [f"line {i:02d}" for i in range(12)]
    adata.obs["line"] = np.array(names)[np.arange(adata.n_obs) % 12]
    mt.tl.embed_genes(adata, model, groupby="line", whole_cells=True)
    vectors = np.repeat(rng.normal(size=(adata.n_vars, 1, 16)), 12, axis=1)
    deviation = rng.normal(size=(adata.n_vars, 12))
    vectors[:, :, 0] += deviation
    adata.varm["maxtoki_groups"] = vectors.astype(np.float32)
    depends = pd.DataFrame(deviation + 0.3 * rng.normal(size=deviation.shape) > 0.6, adata.var_names, names)
    depends = depends.iloc[:160].copy()
    depends["a line without cells"] = rng.random(160) < 0.3
    shuffled = depends.copy()
    shuffled[names] = rng.permuted(depends[names].to_numpy(), axis=1)
    return adata, depends.astype(float), shuffled.astype(float)


def test_planted_dependencies_are_found_in_lines_left_out(panel, model):
    adata, depends, shuffled = panel[0].copy(), *panel[1:]
    settings = {"min_share": 0.05, "max_share": 0.7, "n_top": 20, "n_permutations": 9}
    mt.tl.nominate_targets(adata, model, dependency=depends, **settings)
    scores = mt.get.table(adata, "nominate_targets").set_index("predictor")
    own = scores.loc["MaxToki"]
    assert own["auroc"] > 0.9
    assert own["auroc_low"] < own["auroc"] < own["auroc_high"]
    assert own["precision"] > own["prevalence"] + 0.3
    assert own["precision"] > own["null_precision_high"]
    assert own["p_value"] == 0.1
    assert 0.4 < own["null_auroc"] < 0.6
    for name in ("untrained", "expression", "PCA loadings", "other groups"):
        assert scores.loc[name, "auroc"] < 0.65
    groups = mt.get.table(adata, "nominate_targets", "groups")
    assert groups["group"].nunique() == 12
    targets = mt.get.table(adata, "nominate_targets", "targets")
    assert targets.groupby("group").size().eq(20).all()
    first = targets[targets["group"] == "line 03"]
    np.testing.assert_array_equal(first["depends"], depends.loc[first["gene"], "line 03"])
    others = depends.drop(columns=["line 03"])
    assert first["share"].between(0.05, 0.7).all()
    assert adata.uns["nominate_targets"]["params"]["n_folds"] == 5
    assert others.shape[1] == 12
    mt.tl.nominate_targets(adata, model, dependency=shuffled, **settings)
    null = mt.get.table(adata, "nominate_targets")
    assert (null["auroc"] < null["null_auroc_high"] + 0.03).all()
    assert null["q_value"].min() > 0.05


def test_one_line_is_left_out_at_a_time_and_no_interval_is_claimed(panel, model):
    """With few groups; what a group depends on does not change what is predicted of it."""
    adata, depends = panel[0].copy(), panel[1]
    few = depends[["line 00", "line 01", "line 02", "line 03", "a line without cells"]]
    settings = {"min_share": 0.0, "max_share": 1.0, "n_permutations": 1, "n_top": 400}
    mt.tl.nominate_targets(adata, model, dependency=few, **settings)
    scores = mt.get.table(adata, "nominate_targets")
    assert scores["n_groups"].eq(4).all()
    assert scores["auroc_low"].isna().all()
    before = mt.get.table(adata, "nominate_targets", "targets").query("group == 'line 00'")
    changed = few.copy()
    changed["line 00"] = 1 - changed["line 00"]
    mt.tl.nominate_targets(adata, model, dependency=changed, **settings)
    after = mt.get.table(adata, "nominate_targets", "targets").query("group == 'line 00'")
    pd.testing.assert_frame_equal(before.drop(columns="depends"), after.drop(columns="depends"))
    assert (before["depends"].to_numpy() == 1 - after["depends"].to_numpy()).all()


def test_nomination_refusals(panel, encoded, model):
    adata, depends = panel[0], panel[1]
    with pytest.raises(KeyError, match=r"embed_genes\(adata, model, groupby=\.\.\.\)"):
        mt.tl.nominate_targets(encoded.copy(), model, dependency=depends)
    with pytest.raises(ValueError, match="2 of the groups .* are columns of dependency; 3 at least"):
        mt.tl.nominate_targets(adata, model, dependency=depends[["line 00", "line 01"]])
    with pytest.raises(ValueError, match="dependency holds -2: it takes 1"):
        mt.tl.nominate_targets(adata, model, dependency=depends - 2)
    with pytest.raises(ValueError, match="min_share must be below max_share"):
        mt.tl.nominate_targets(adata, model, dependency=depends, min_share=0.6, max_share=0.5)
    with pytest.raises(ValueError, match="Widen min_share and max_share"):
        mt.tl.nominate_targets(adata, model, dependency=depends, min_share=0.98, max_share=1.0)


@pytest.mark.slow  # real cells and tables, which do not ship
def test_essential_genes_of_real_cells(source):
    """What mere expression gives is more than what the demo model gives; both are more than shuffled labels."""
    import anndata

    model = mt.load_model("demo")
    adata = anndata.read_h5ad(source / "heart_nuclei_700.h5ad")[:150].copy()
    mt.pp.map_genes(adata, model)
    mt.pp.rank_value_encode(adata, model)
    mt.tl.embed_genes(adata, model, context="table")
    files = {1: "essential_cegv2.csv", 0: "nonessential_negv1.csv"}
    tables = [pd.read_csv(source / file).assign(essential=label) for label, file in files.items()]
    labels = pd.concat(tables)[["ensembl_id", "essential"]].rename(columns={"ensembl_id": "gene"}).dropna()
    mt.tl.gene_task(adata, model, labels=labels.drop_duplicates("gene", keep=False), n_permutations=5)
    scores = mt.get.table(adata, "gene_task").set_index("predictor")
    assert scores.loc["detection", "auroc"] > 0.8
    assert scores.loc["detection", "auroc"] > scores.loc["detection", "null_auroc_high"]
