"""Simulated doublets: who meets whom, and what is counted or ranked of both."""

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy import stats

import maxtoki_toolkit as mt
from maxtoki_toolkit.pp._doublets import add_counts, draw_pairs, merge_ranks, uniform


def simulate(adata, **settings):
    """Simulate with settings of the simulation among the others."""
    simulation, others = mt.pp.DoubletSimulation.split(settings)
    return mt.pp.simulate_doublets(adata, simulation=simulation, **others)


@pytest.fixture(scope="module")
def adata():
    return mt.datasets.aging_atlas(300, 10, n_genes=500)


def assert_same(found, expected):
    pd.testing.assert_frame_equal(found.obs, expected.obs)
    assert (found.X != expected.X).nnz == 0


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_who_meets_whom(adata, share):
    doublets = simulate(adata, groupby="cell_type", same_type=share, donor_key="donor_id")
    obs, of_cell = doublets.obs, adata.obs.astype(str)
    assert (obs["parent_1"] != obs["parent_2"]).all()
    for parent, column in (("parent_1", "type_1"), ("parent_2", "type_2")):
        assert (of_cell.loc[obs[parent], "cell_type"].to_numpy() == obs[column]).all()
        assert (of_cell.loc[obs[parent], "donor_id"].to_numpy() == obs["donor_id"]).all()
    assert ((obs["type_1"] == obs["type_2"]) == obs["same_type"]).all()
    assert obs["same_type"].sum() == pytest.approx(share * 300, abs=1)


def test_any_two_cells_meet_equally_often():
    kind = np.array([0, 0, 0, 1, 1])
    names, stratum = np.array(list("abcde")), np.zeros(5, dtype=int)
    for share, allowed in [
        (None, np.ones((5, 5)) - np.eye(5)),
        (1.0, (kind[:, None] == kind) - np.eye(5)),
        (0.0, kind[:, None] != kind),
    ]:
        first, second = draw_pairs(names, stratum, kind, 20_000, same_type=share, seed=3)
        table = np.zeros((5, 5))
        np.add.at(table, (first, second), 1)
        # Every first cell alike, then every partner alike.
        expected = 4000 * allowed / allowed.sum(axis=1, keepdims=True)
        assert (table[~allowed.astype(bool)] == 0).all()
        used = expected > 0
        assert stats.chisquare(table[used], expected[used]).pvalue > 0.001


def test_random_numbers():
    u = uniform(0, np.arange(200)[:, None], np.arange(500))
    assert stats.kstest(u.ravel(), "uniform").pvalue > 0.001
    for other in (u[:, 1:], u[1:], uniform(1, np.arange(200)[:, None], np.arange(500))):
        n, m = other.shape
        assert abs(np.corrcoef(u[:n, :m].ravel(), other.ravel())[0, 1]) < 0.015


def test_counts_are_thinned_binomially(adata):
    X = sp.csr_matrix(adata.X)[:20]
    first, second = np.zeros(2000, dtype=int), np.ones(2000, dtype=int)
    total = (X[0] + X[1]).toarray().ravel()
    drawn = add_counts(X, first, second, np.full(2000, 0.7), seed=1).toarray()
    assert (drawn == np.rint(drawn)).all()
    assert (drawn <= total).all()
    np.testing.assert_allclose(drawn.mean(axis=0), 0.7 * total, atol=0.1 * np.sqrt(total.max()))
    z = (drawn.sum(axis=1) - 0.7 * total.sum()) / np.sqrt(0.21 * total.sum())
    assert stats.kstest(z, "norm").pvalue > 0.001
    top = total.argmax()
    assert drawn[:, top].var() == pytest.approx(0.21 * total[top], rel=0.2)
    whole = add_counts(X, first[:1], second[:1], np.ones(1), seed=1)
    np.testing.assert_array_equal(whole.toarray().ravel(), total)


def test_a_doublet_depends_on_seed_and_number_alone(adata, monkeypatch):
    settings = {"groupby": "cell_type", "same_type": 0.5, "donor_key": "donor_id", "rng": 4}
    doublets = simulate(adata, **settings)
    assert_same(simulate(adata, n_doublets=40, **settings), doublets[:40].copy())
    shuffled = adata[np.random.default_rng(0).permutation(adata.n_obs)].copy()
    assert_same(simulate(shuffled, **settings), doublets)
    other = simulate(adata, **{**settings, "rng": 5})
    assert (other.obs["parent_1"] != doublets.obs["parent_1"]).mean() > 0.9
    monkeypatch.setattr("maxtoki_toolkit.pp._doublets._MOLECULES", 5000)
    assert_same(simulate(adata, **settings), doublets)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float64", "bool"])
def test_types_of_counts(adata, dtype):
    few = adata[:50].copy()
    few.X = few.X.minimum(1 if dtype == "bool" else 250).astype(dtype)
    doublets = simulate(few, capture=(1, 1), n_doublets=30)
    names = few.obs_names
    X = few.X.astype(int)
    expected = sum(X[names.get_indexer(doublets.obs[f"parent_{i}"])] for i in (1, 2))
    assert (doublets.X != expected).nnz == 0
    dense = few.copy()
    dense.X = few.X.toarray()
    assert_same(simulate(dense, capture=(1, 1), n_doublets=30), doublets)


def test_ranks_are_merged():
    ranks = sp.csr_matrix(np.array([[1, 2, 3, 0], [0, 1, 0, 2]], dtype=np.uint16))
    found = merge_ranks(ranks, np.array([0]), np.array([1])).toarray()
    # -log of (1/6, 3/6, 5/6) and of (1/4, 3/4): gene 1 is high in both.
    np.testing.assert_array_equal(found, [[2, 1, 4, 3]])
    assert found.dtype == np.uint16
    alone = merge_ranks(ranks, np.array([0]), np.array([0])).toarray()
    np.testing.assert_array_equal(alone, ranks[:1].toarray())


def test_merged_ranks_are_close_to_those_of_counts(adata):
    cells = adata.copy()
    mt.pp.map_genes(cells)
    vocab = mt.models.Vocabulary.from_anndata(cells)
    mt.pp.rank_value_encode(cells, vocab)
    counted = simulate(cells, n_doublets=50, capture=(1, 1))
    mt.pp.rank_value_encode(counted, vocab)
    ranked = simulate(cells, n_doublets=50, kind="ranks")
    assert (ranked.obs["parent_1"] == counted.obs["parent_1"]).all()
    single = cells.layers["rank"][cells.obs_names.get_indexer(ranked.obs["parent_1"])].toarray()
    for row, (merged, true, one) in enumerate(
        zip(ranked.layers["rank"].toarray(), counted.layers["rank"].toarray(), single, strict=True)
    ):
        np.testing.assert_array_equal(merged > 0, true > 0)
        assert ranked.obs["n_genes_ranked"].iloc[row] == (merged > 0).sum() == merged.max()
        some = (one > 0) & (true > 0)
        r = stats.spearmanr(merged[some], true[some]).statistic
        assert r > 0.7
        assert r > stats.spearmanr(one[some], true[some]).statistic
    model = mt.models.build_model(
        {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}, vocab
    )
    mt.tl.embed(ranked, model)
    assert np.isfinite(ranked.obsm["X_maxtoki"]).all()


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
@pytest.mark.filterwarnings("ignore:.*zarr")
def test_round_trip(adata, suffix, tmp_path):
    doublets = simulate(adata, n_doublets=20, groupby="cell_type", donor_key="donor_id")
    path = tmp_path / f"doublets.{suffix}"
    getattr(doublets, f"write_{suffix}")(path)
    read = getattr(anndata, f"read_{suffix}")(path)
    assert (read.X != doublets.X).nnz == 0
    pd.testing.assert_frame_equal(read.obs, doublets.obs, check_dtype=False, check_categorical=False)
    assert read.uns["simulate_doublets"]["params"]["groupby"] == "cell_type"


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"kind": "sums"}, ValueError, "no doublets of 'sums'; choose from counts, ranks"),
        ({"groupby": "lineage"}, KeyError, r"Did not find \.obs\['lineage'\]"),
        ({"same_type": 0.5}, ValueError, "Give groupby"),
        ({"groupby": "cell_type", "same_type": 1.5}, ValueError, "must be a share from 0 to 1, got 1.5"),
        ({"groupby": "sex", "same_type": 0.0, "donor_key": "donor_id"}, ValueError, "cell of another type"),
        ({"capture": (0.0, 1.0)}, ValueError, "capture must be two shares"),
        ({"n_doublets": 0}, ValueError, "at least 1, got 0"),
        ({"kind": "ranks"}, KeyError, r"Run mt.pp.rank_value_encode"),
        ({"layer": "counts"}, KeyError, r"Did not find \.layers\['counts'\]"),
    ],
)
def test_refusals(adata, settings, error, message):
    with pytest.raises(error, match=message):
        simulate(adata, **settings)


def test_refuses_what_is_no_counts(adata):
    logged = adata[:30].copy()
    logged.X = logged.X.log1p()
    with pytest.raises(ValueError, match="looks log-normalised"):
        simulate(logged)
    missing = adata[:30].copy()
    missing.obs["cell_type"] = missing.obs["cell_type"].where(np.arange(30) > 0)
    with pytest.warns(UserWarning, match=r"1 of 30 cells have no value in .obs\['cell_type'\]"):
        doublets = simulate(missing, groupby="cell_type")
    assert missing.obs_names[0] not in set(doublets.obs[["parent_1", "parent_2"]].to_numpy().ravel())
    with pytest.raises(ValueError, match="No cell has another cell"):
        simulate(adata[:1].copy())
