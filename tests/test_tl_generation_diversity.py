"""Copying, coverage and collapse: each is caught where it is planted, and not where it is not."""

import importlib

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from helpers import on_copy
from scipy import stats

import maxtoki_toolkit as mt
from maxtoki_toolkit.stats import diversity as kernel

SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 512,
}
SETS = ["generated", "held-out", "copies", "average", "shuffled"]
SETTINGS = {"groupby": "cell_type", "donor_key": "donor_id"}
module = importlib.import_module("maxtoki_toolkit.tl.generation_diversity")


@pytest.fixture(scope="module", autouse=True)
def few_draws():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "N_CELLS", 150)
        patch.setattr(module, "N_PERMUTATIONS", 199)
        yield


@pytest.fixture(scope="module")
def atlas():
    adata = mt.datasets.aging_atlas(3600, 45, n_genes=500, seed=3)
    adata = adata[adata.obs["cell_type"].isin(["fibroblast", "monocyte"])].copy()
    mt.pp.map_genes(adata)
    return adata


@pytest.fixture(scope="module")
def model(atlas):
    return mt.models.build_model(SHAPE, mt.models.Vocabulary.from_anndata(atlas))


@pytest.fixture(scope="module")
def cells(atlas, model):
    """A third of the donors to train on, a third held out, and a third that stands for generated cells."""
    adata = atlas.copy()
    mt.pp.rank_value_encode(adata, model)
    part = np.arange(45)[adata.obs["donor_id"].cat.codes] % 3
    generated = adata[part == 2].copy()
    adata = adata[part != 2].copy()
    adata.obs["train"] = part[part != 2] == 0
    adata.uns["generated"] = generated.obs_names.tolist()
    return adata, generated


def score(cells, model, generated, **changed):
    result = on_copy(mt.tl.generation_diversity, cells[0], model, generated=generated, **SETTINGS | changed)
    return mt.get.generation_diversity(result).set_index(["group", "cells"])


@pytest.fixture(scope="module")
def scores(cells, model):
    return score(cells, model, cells[1])


def test_true_cells_are_like_true_cells(scores):
    assert scores.index.get_level_values("group").unique().tolist() == ["all", "fibroblast", "monocyte"]
    for group in ("all", "fibroblast", "monocyte"):
        assert scores.loc[group].index.tolist() == SETS
        for kind in ("generated", "held-out"):
            row = scores.loc[group, kind]
            assert row["nearer_low"] < 0.5 < row["nearer_high"]
            assert row["near_copies_low"] < 0.05
            assert row["exact_copies"] == 0
            assert row["precision"] > 0.6
            assert row["spread"] == pytest.approx(1, abs=0.05)
            assert row["distinct"] == 1
        assert "copies" not in scores.loc[group, "generated"]["conclusion"]
        assert "collapsed" not in scores.loc[group, "generated"]["conclusion"]


def test_references_are_caught(scores):
    """In the same call: copying, collapse, and cells that are none."""
    for group in ("all", "fibroblast", "monocyte"):
        rows = scores.loc[group]
        assert rows.loc["copies", "exact_copies"] == rows.loc["copies", "nearer"] == 1
        assert rows.loc["copies", "conclusion"] == "copies of training cells"
        assert "collapsed" in rows.loc["average", "conclusion"]
        assert rows.loc["average", "spread"] < 0.6
        assert "unlike true cells" in rows.loc["shuffled", "conclusion"]
        assert rows.loc["shuffled", "precision"] < 0.2 < 0.6 < rows.loc["held-out", "precision"]
        assert rows.loc["copies", "p_value"] <= 0.02


@pytest.mark.parametrize("kind", ["average", "copies"])
def test_a_bad_generator_is_caught(cells, model, kind):
    adata, made = cells[0], cells[1].copy()
    training = adata[adata.obs["train"]]
    take = np.zeros(made.n_obs, dtype=int)
    for name in ("fibroblast", "monocyte"):
        mine = np.flatnonzero(made.obs["cell_type"] == name)
        theirs = np.flatnonzero(training.obs["cell_type"] == name)
        take[mine] = np.resize(theirs, len(mine)) if kind == "copies" else theirs[0]
    made.layers["rank"] = training.layers["rank"][take]
    made.obs["n_genes_ranked"] = training.obs["n_genes_ranked"].to_numpy()[take]
    rows = score(cells, model, made).xs("generated", level="cells")
    found = "collapsed" if kind == "average" else "copies of training cells"
    each = rows if kind == "copies" else rows.drop(index="all")
    assert each["conclusion"].str.contains(found).all()
    assert (rows["exact_copies"] == 1).all()


def test_half_the_copies_are_counted(cells, model, monkeypatch):
    monkeypatch.setattr(module, "N_CELLS", 500)
    adata, made = cells
    training = adata[adata.obs["train"]][: made.n_obs // 2].copy()
    mixed = anndata.concat([made[: training.n_obs], training])
    mixed.var, mixed.uns = made.var, made.uns
    mixed.obs_names_make_unique()
    row = score(cells, model, mixed, groupby=[]).loc[("all", "generated")]
    assert row["exact_copies"] == pytest.approx(0.5, abs=0.1)
    assert row["exact_copies_low"] < 0.5 < row["exact_copies_high"]
    assert row["conclusion"] == "copies of training cells"


def test_embedding_space(cells, model, monkeypatch):
    monkeypatch.setattr(module, "N_CELLS", 40)
    few = score(cells, model, cells[1], space="embedding", groupby=[])
    assert few.loc[("all", "copies"), "nearer"] == 1
    assert few.loc[("all", "average"), "spread"] < 0.8


def test_kernels():
    from sklearn.neighbors import NearestNeighbors

    rng = np.random.default_rng(0)
    a, b = (sp.random(30, 12, 0.5, "csr", rng=rng) for _ in range(2))
    one, other = kernel.Cells(a, a, np.arange(30).astype(str)), kernel.Cells(b, b, np.arange(30).astype(str))
    x, y = a.toarray(), b.toarray()
    distance = np.linalg.norm(y[:, None] - x[None], axis=2)
    radius = NearestNeighbors(n_neighbors=4).fit(y).kneighbors()[0][:, -1]
    np.testing.assert_array_equal(kernel.in_balls(one, other, 4), distance <= radius[:, None])
    np.testing.assert_allclose(kernel.to_training(one, other).to_training, distance.min(axis=0))
    pairs = np.linalg.norm(x[:, None] - x[None], axis=2)
    assert kernel.spread(one) == pytest.approx(np.sqrt((pairs**2).sum() / (30 * 29)))
    np.testing.assert_allclose(kernel.overlap(a, a), 1)
    assert kernel.overlap(a[:1], sp.csr_matrix((1, 12)))[0] == 0
    less = kernel.nearer(x[:, 0], y[:, 0])
    assert less.mean() == pytest.approx(stats.mannwhitneyu(y[:, 0], x[:, 0]).statistic / 900)
    # Without clusters, a share's interval is Clopper and Pearson's, or nearly.
    hit = np.arange(30) < 9
    share, low, high = kernel.share_interval(hit, *kernel.weights_without(one.unit, rng))
    exact = stats.binomtest(9, 30).proportion_ci()
    assert (share, low, high) == pytest.approx((0.3, exact.low, exact.high), abs=0.01)
    assert kernel.share_interval(hit & False, *kernel.weights_without(one.unit, rng))[1] == 0


def test_exchange_is_at_its_level():
    """No difference, units of several cells: p is small no more often than it says."""
    rng = np.random.default_rng(0)
    unit = np.repeat(np.arange(8), 10).astype(str)
    p = [
        kernel.permutation_p(
            *(rng.normal(size=8)[np.repeat(np.arange(8), 10)] for _ in "ab"), (unit, unit), 99, rng
        )
        for _ in range(200)
    ]
    assert np.mean(np.array(p) <= 0.1) <= 0.16
    assert 0.4 < np.mean(p) < 0.6


def test_what_is_refused(cells, model):
    adata, made = cells

    def run(**changed):
        mt.tl.generation_diversity(adata, model, **{"generated": made, **changed})

    with pytest.raises(ValueError, match="There is no space 'pca'"):
        run(space="pca")
    with pytest.raises(ValueError, match="0 of .* cells are training cells"):
        run(train=np.zeros(adata.n_obs, bool))
    with pytest.raises(ValueError, match="No group has 12 held-out cells"):
        run(generated=made[:3].copy())
    with pytest.raises(KeyError, match="Did not find .obs\\['taught'\\]"):
        run(train="taught")
    few = made[(made.obs["cell_type"] == "fibroblast")].copy()
    with pytest.warns(UserWarning, match="Left out.*monocyte"):
        run(generated=few, groupby="cell_type")
    del adata.uns["generation_diversity"]


def test_figure_and_file(cells, model, tmp_path):
    result = on_copy(mt.tl.generation_diversity, cells[0], model, generated=cells[1], **SETTINGS)
    figure = mt.pl.generation_diversity(result)
    assert len(figure.axes) == 5
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["all", "fibroblast", "monocyte"]
    result.write_h5ad(tmp_path / "cells.h5ad")
    read = anndata.read_h5ad(tmp_path / "cells.h5ad")
    pd.testing.assert_frame_equal(mt.get.generation_diversity(read), mt.get.generation_diversity(result))
