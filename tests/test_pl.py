"""Figures: what they show, and that axes say what they are."""

import dataclasses

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.collections import PathCollection, PolyCollection

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
        (mt.pl.timelapse_scatter, "Run mt.tl.predict_timelapse"),
        (mt.pl.timelapse_error, "Run mt.tl.timelapse_baselines"),
        (mt.get.prompts, "Run mt.pp.sample_prompts"),
    ]:
        with pytest.raises(KeyError, match=missing):
            draw(empty)


def test_ranks_table(cells):
    table = mt.get.ranks(cells)
    assert table.shape == (200, (cells.var["token_id"] >= 0).sum())
    assert (table.min(axis=1) == 1).all()
    np.testing.assert_array_equal(table.notna().sum(axis=1), cells.obs["n_genes_ranked"])


@pytest.fixture(scope="module")
def told():
    """Cells whose lapses were predicted, by a head that gives every prompt the same one."""
    adata = mt.datasets.aging_atlas(300, 10, n_genes=500)
    mt.pp.map_genes(adata)
    vocab = mt.models.Vocabulary.from_anndata(adata)
    small = mt.models.build_model({**SHAPE, "max_position_embeddings": 64}, vocab)
    model = mt.models.extend_model(small, vocab.with_times(-900, 900), max_length=256)
    head = mt.models.TimeHead("linear", unit="weeks", hidden_size=SHAPE["hidden_size"])
    model = dataclasses.replace(model, time_head=head)
    mt.pp.rank_value_encode(adata, model)
    mt.pp.hold_out(adata, donor_key="donor_id", donors=0.5, time_key="age_months")
    settings = {"time_key": "age_months", "groupby": "cell_type", "donor_key": "donor_id", "n_prompts": 60}
    for part, key in [("train", "train_prompts"), ("held_out", "prompts")]:
        mt.pp.sample_prompts(adata, contexts=part, queries=part, key_added=key, **settings)
    mt.tl.predict_timelapse(adata, model)
    mt.tl.timelapse_baselines(adata, model)
    return adata


def test_prompts_tables(told):
    prompts, predicted = mt.get.prompts(told), mt.get.timelapse(told)
    assert predicted.columns[: len(prompts.columns)].tolist() == prompts.columns.tolist()
    time, donor = told.obs["age_months"], told.obs["donor_id"].astype(str)
    for row in prompts.to_dict("records"):
        context = [row[f"context_{i}"] for i in range(3) if row[f"context_{i}"]]
        assert row["lapse"] == time[row["query"]] - time[context[-1]]
        assert row["lapse_0"] == time[context[1]] - time[context[0]]
        assert row["donor"] == donor[row["query"]]
        assert [row[f"donor_{i}"] for i in range(len(context))] == donor[context].tolist()
    assert predicted.attrs["unit"] == "weeks"
    assert (predicted["predicted"] == 0).all()
    # What is returned is a copy.
    predicted["predicted"] = 1.0
    assert (mt.get.timelapse(told)["predicted"] == 0).all()
    scores = mt.get.timelapse_scores(told)
    assert scores["predictor"].unique().tolist() == ["MaxToki"]
    assert set(scores["group"]) == {"all", *prompts["group"]}
    every = mt.get.timelapse_scores(told, key="timelapse_baselines")
    assert every["predictor"].nunique() == 5
    assert every.attrs["unit"] == "weeks"


def test_timelapse_scatter(told):
    """Every prompt is a point; the axes are alike; a constant prediction has no correlation and is drawn."""
    ax = mt.pl.timelapse_scatter(told)
    (points,) = (c for c in ax.collections if isinstance(c, PathCollection))
    table = mt.get.timelapse(told)
    np.testing.assert_allclose(points.get_offsets(), table[["lapse", "predicted"]])
    assert ax.get_xlim() == ax.get_ylim()
    assert ax.get_aspect() == 1
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("true lapse (weeks)", "predicted lapse (weeks)")
    title = ax.get_title(loc="left")
    assert "r = not defined" in title
    assert f"60 prompts, {table['donor'].nunique()} donors" in title


def test_timelapse_scatter_fit_and_colors(told):
    adata = told.copy()
    table = adata.uns["timelapse"]["prompts"]
    table["predicted"] = 0.5 * table["lapse"] + 20
    adata.uns["timelapse"]["scores"].loc["0", ["r", "slope"]] = [1.0, 0.5]
    ax = mt.pl.timelapse_scatter(adata, color="group", ax=plt.figure().gca())
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == [*sorted(set(table["group"])), "predicted = true", "linear fit"]
    (fit,) = (line for line in ax.lines if line.get_label() == "linear fit")
    np.testing.assert_allclose(fit.get_ydata(), 0.5 * fit.get_xdata() + 20)
    with pytest.raises(KeyError, match="no column 'nope'"):
        mt.pl.timelapse_scatter(adata, color="nope")


def test_timelapse_scatter_counts_many(told):
    adata = told.copy()
    table = adata.uns["timelapse"]["prompts"]
    adata.uns["timelapse"]["prompts"] = table.iloc[np.arange(6000) % len(table)]
    ax = mt.pl.timelapse_scatter(adata)
    (bins,) = (c for c in ax.collections if isinstance(c, PolyCollection))
    assert bins.get_array().sum() == 6000
    assert ax.figure.axes[1].get_ylabel() == "prompts"


def test_timelapse_error(told):
    ax = mt.pl.timelapse_error(told)
    assert ax.get_ylabel() == "absolute error of the lapse (weeks)"
    names = [text.get_text().replace("\n", " ") for text in ax.get_xticklabels()]
    assert names == [
        "MaxToki", "ridge on embeddings", "ridge on expression", "SGD on expression", "most common lapse",
    ]  # fmt: skip
    scores = mt.get.timelapse_scores(told, key="timelapse_baselines").query("group == 'all'")
    (dots,) = (c for c in ax.collections if isinstance(c, PathCollection))
    np.testing.assert_allclose(dots.get_offsets()[:, 1], scores["median_error"])
    row = scores.iloc[0]
    assert ax.texts[0].get_text().split()[0] == f"{row['median_error']:.0f}"
    assert f"{row['n_prompts']} prompts, {row['n_units']} donors" in ax.get_title()
