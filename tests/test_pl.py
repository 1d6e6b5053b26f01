"""Figures: what they show, and that axes say what they are."""

import numpy as np
import pytest

import maxtoki_toolkit as mt

SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def cells():
    adata = mt.datasets.aging_atlas(200, 10, n_genes=500)
    mt.pp.map_genes(adata)
    vocab = mt.models.Vocabulary.from_anndata(adata)
    mt.pp.rank_value_encode(adata, vocab)
    model = mt.models.build_model(SHAPE, vocab)
    mt.tl.embed(adata, model)
    mt.tl.neighbor_purity(adata, model, groupby="cell_type")
    return adata


def test_rank_heatmap_finds_the_markers(cells):
    """The typical genes of a group are mostly its planted markers."""
    fig = mt.pl.rank_heatmap(cells, groupby="cell_type", n_genes=3)
    ax = fig.axes[1]
    shown = [label.get_text() for label in ax.get_yticklabels()]
    n_types = cells.obs["cell_type"].nunique()
    assert len(shown) == len(set(shown)) == 3 * n_types
    markers = set(cells.uns["truth"]["markers"]["symbol"])
    assert np.mean([gene in markers for gene in shown]) > 0.7
    assert "cells" in ax.get_xlabel()
    assert ax.child_axes[0].get_ylabel() == "rank in the cell (1: highest)"


def test_rank_heatmap_of_chosen_genes(cells):
    genes = [cells.var["symbol"].iloc[0], cells.var_names[5]]
    image = mt.pl.rank_heatmap(cells, genes=genes, n_cells=1000).axes[1].images[0].get_array()
    expected = mt.get.ranks(cells, genes).to_numpy().T
    # Cells are drawn in random order.
    np.testing.assert_array_equal(
        np.sort(np.nan_to_num(image.filled(0)), axis=1), np.sort(np.nan_to_num(expected), axis=1)
    )
    with pytest.raises(KeyError, match="Did not find the gene 'NOPE'"):
        mt.pl.rank_heatmap(cells, genes=["NOPE"])
    with pytest.raises(KeyError, match="Available columns"):
        mt.pl.rank_heatmap(cells, groupby="nope")


def test_encoding_report(cells):
    left, right = mt.pl.encoding_report(cells, max_genes=100).axes
    assert left.get_xlabel() == "genes"
    assert right.get_xlabel() == "genes ranked in a cell"
    assert right.get_ylabel() == "cells"
    assert sum(patch.get_height() for patch in right.patches) == 200
    assert "100" in right.get_legend().get_texts()[0].get_text()


def test_neighbor_purity(cells):
    ax = mt.pl.neighbor_purity(cells)
    heights = [patch.get_height() for patch in ax.patches]
    np.testing.assert_allclose(heights, 100 * mt.get.neighbor_purity(cells)["purity"])
    assert "%" in ax.get_ylabel()


def test_results_that_are_not_there():
    from anndata import AnnData

    empty = AnnData(np.ones((2, 2)))
    for draw, missing in [
        (mt.pl.encoding_report, "Run mt.pp.map_genes"),
        (mt.pl.rank_heatmap, "Run mt.pp.rank_value_encode"),
        (mt.pl.neighbor_purity, "Run mt.tl.neighbor_purity"),
    ]:
        with pytest.raises(KeyError, match=missing):
            draw(empty)


def test_ranks_table(cells):
    table = mt.get.ranks(cells)
    assert table.shape == (200, (cells.var["token_id"] >= 0).sum())
    assert (table.min(axis=1) == 1).all()
    np.testing.assert_array_equal(table.notna().sum(axis=1), cells.obs["n_genes_ranked"])
