"""Embedding cells in an AnnData."""

import numpy as np
import pytest
from helpers import on_copy

import maxtoki_toolkit as mt

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def atlas():
    adata = mt.datasets.aging_atlas(120, 10, n_genes=500, seed=1)
    mt.pp.map_genes(adata)
    vocab = mt.models.Vocabulary.from_anndata(adata)
    mt.pp.rank_value_encode(adata, vocab)
    return adata


@pytest.fixture(scope="module")
def model(atlas):
    vocab = mt.models.Vocabulary.from_anndata(atlas)
    return mt.models.build_model({**SHAPE, "max_position_embeddings": 128}, vocab)


@pytest.fixture
def cells(atlas):
    return atlas.copy()


def test_writes_where_it_says(cells, model):
    assert mt.tl.embed(cells, model, genes=True) is None
    assert cells.obsm["X_maxtoki"].shape == (120, 32)
    assert cells.obsm["X_maxtoki"].dtype == np.float32
    assert np.isfinite(cells.obsm["X_maxtoki"]).all()
    genes = cells.varm["maxtoki"]
    assert genes.shape == (cells.n_vars, 32)
    # Read at least once: genes among the first 126 of a cell.
    read = ((cells.layers["rank"].toarray() > 0) & (cells.layers["rank"].toarray() <= 126)).any(axis=0)
    np.testing.assert_array_equal(np.isfinite(genes).all(axis=1), read)
    params = cells.uns["embed"]["params"]
    assert params["n_cells"] == 120
    assert params["n_truncated"] == (cells.obs["n_genes_ranked"] > 126).sum() > 0
    assert params["vocabulary_sha256"] == model.vocab.sha256


def test_cell_order_and_company_do_not_matter(cells, model, monkeypatch):
    mt.tl.embed(cells, model)
    order = np.random.default_rng(0).permutation(cells.n_obs)[:37]
    some = cells[order].copy()
    del some.obsm["X_maxtoki"]
    monkeypatch.setattr(mt.settings, "max_tokens", 300)
    mt.tl.embed(some, model)
    np.testing.assert_allclose(some.obsm["X_maxtoki"], cells.obsm["X_maxtoki"][order], atol=2e-6)


def test_truncation_keeps_the_highest_ranked(cells, model):
    mt.tl.embed(cells, model)
    top = cells.copy()
    ranks = top.layers["rank"].toarray()
    ranks[ranks > 126] = 0
    top.layers["rank"] = type(cells.layers["rank"])(ranks)
    top.obs["n_genes_ranked"] = (ranks > 0).sum(axis=1)
    mt.tl.embed(top, model)
    np.testing.assert_allclose(top.obsm["X_maxtoki"], cells.obsm["X_maxtoki"], atol=2e-6)


def test_key_layer_and_copy(cells, model):
    result = on_copy(mt.tl.embed, cells, model, layer=0, key_added="X_tokens", genes=True)
    assert "X_tokens" not in cells.obsm
    table = model.hf.get_input_embeddings().weight.detach().numpy()
    token = cells.var["token_id"].to_numpy()
    found = result.varm["tokens"]
    seen = np.isfinite(found).all(axis=1)
    np.testing.assert_allclose(found[seen], table[token[seen]], atol=1e-6)


def test_refusals(cells, model):
    other = cells.copy()
    del other.layers["rank"]
    with pytest.raises(KeyError, match=r"Did not find \.layers\['rank'\]\. Run mt\.pp\.rank_value_encode"):
        mt.tl.embed(other, model)
    small = mt.models.Vocabulary.from_anndata(cells, min_cells=60)
    with pytest.raises(ValueError, match="encoded for another vocabulary"):
        mt.tl.embed(cells, mt.models.build_model(SHAPE, small))
    cells.obs_names = ["same"] * cells.n_obs
    with pytest.raises(ValueError, match="not unique"):
        mt.tl.embed(cells, model)
    assert "X_maxtoki" not in cells.obsm


def test_genes_lost_after_encoding_are_an_error(cells, model):
    subset = cells[:, :250].copy()
    with pytest.raises(
        ValueError, match=r"120 of 120 cells have lost ranked genes .* Subset after embedding"
    ):
        mt.tl.embed(subset, model)
    mt.pp.rank_value_encode(subset, model)
    mt.tl.embed(subset, model)


def test_wrong_types(cells, model):
    with pytest.raises(TypeError, match=r"Expected a model \(mt.load_model\), got str"):
        mt.tl.embed(cells, "demo")
    with pytest.raises(TypeError, match="Expected an AnnData .* got MaxTokiModel"):
        mt.tl.embed(model, cells)
    with pytest.raises(TypeError, match="Expected an AnnData .* got str"):
        mt.pp.map_genes("cells.h5ad", model)


def test_neighbor_purity_planted_and_null(cells, model):
    """Labels that the embedding holds are found; shuffled labels stay at chance."""
    mt.tl.embed(cells, model)
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, cells.n_obs)
    cells.obs["planted"] = np.where(label, "a", "b")
    cells.obs["shuffled"] = rng.permutation(cells.obs["planted"])
    cells.obsm["X_maxtoki"] = rng.normal(label[:, None] * 10, 1, (cells.n_obs, 32)).astype(np.float32)
    mt.tl.neighbor_purity(cells, model, groupby="planted")
    table = mt.get.table(cells, "neighbor_purity").set_index("embedding")
    assert table.loc["MaxToki", "purity"] == 1
    assert table.loc["PCA", "difference"] > 0.2
    assert table.loc["chance", "purity"] == pytest.approx(0.5, abs=0.02)
    mt.tl.neighbor_purity(cells, model, groupby="shuffled")
    table = mt.get.table(cells, "neighbor_purity").set_index("embedding")
    row = table.loc["chance"]
    assert row["difference_low"] < 0.03
    assert row["difference_high"] > -0.03


def test_neighbor_purity_counts_neighbours(cells, model):
    """Against brute force, on a subset."""
    mt.tl.embed(cells, model)
    cells.obs["part"] = np.arange(cells.n_obs) < 30
    mt.tl.neighbor_purity(cells, model, groupby="cell_type", subset="part", n_neighbors=5)
    X, labels = cells.obsm["X_maxtoki"].astype(float), cells.obs["cell_type"].to_numpy()
    distance = ((X[:, None] - X[None]) ** 2).sum(-1)
    np.fill_diagonal(distance, np.inf)
    nearest = np.argsort(distance, axis=1)[:30, :5]
    expected = (labels[nearest] == labels[:30, None]).mean()
    table = mt.get.table(cells, "neighbor_purity").set_index("embedding")
    assert table.loc["MaxToki", "purity"] == pytest.approx(expected)
    assert table.loc["MaxToki", "n_cells"] == 30
    assert table.loc["MaxToki", "ci_low"] <= expected <= table.loc["MaxToki", "ci_high"]


def test_neighbor_purity_refusals(cells, model):
    with pytest.raises(KeyError, match="Run mt.tl.embed"):
        mt.tl.neighbor_purity(cells, model, groupby="cell_type")
    mt.tl.embed(cells, model)
    with pytest.raises(KeyError, match="Available columns"):
        mt.tl.neighbor_purity(cells, model, groupby="nope")
    few = cells[:10].copy()
    with pytest.raises(ValueError, match="too few for 15 neighbours"):
        mt.tl.neighbor_purity(few, model, groupby="cell_type")
