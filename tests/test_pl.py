"""Figures: what they show, and that axes say what they are."""

import dataclasses
from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.collections import PathCollection, PolyCollection
from scipy.sparse import csr_matrix

import maxtoki_toolkit as mt
from maxtoki_toolkit.pipeline import draw_umap, set_colors
from maxtoki_toolkit.pl._labels import label_points
from maxtoki_toolkit.pl._style import drawing
from maxtoki_toolkit.results.store import write_result

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


@pytest.mark.filterwarnings(
    "ignore:The set_bad function:PendingDeprecationWarning"
)  # scanpy's use of matplotlib
@pytest.mark.parametrize(
    ("values", "dtype"),
    [([1, None, 2], "Int64"), ([True, None, False], "boolean"), (["a", None, "b"], "string")],
)
def test_columns_with_missing_values_are_drawn(cells, values, dtype):
    """As pandas and R write them."""
    adata = cells[:60].copy()
    adata.obs["grade"] = pd.array(values * 20, dtype=dtype)
    with pytest.warns(UserWarning, match=r"20 of 60 cells have no value in \.obs\['grade'\]"):
        strip = mt.pl.rank_heatmap(adata, groupby="grade", n_genes=2).axes[0]
    assert sorted(text.get_text() for text in strip.texts) == sorted(str(v) for v in values if v is not None)
    adata.obsm["X_umap"] = adata.obsm["X_maxtoki"][:, :2]
    set_colors(adata, ["grade"])
    draw_umap(adata, ["grade"])
    assert adata.obs["grade"].dtype == dtype


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
    np.testing.assert_allclose(heights, 100 * mt.get.table(cells, "neighbor_purity")["purity"])
    assert "%" in ax.get_ylabel()


def test_results_that_are_not_there():
    empty = AnnData(np.ones((2, 2)))
    for draw, missing in [
        (mt.pl.encoding_report, "Run mt.pp.map_genes"),
        (mt.pl.rank_heatmap, "Run mt.pp.rank_value_encode"),
        (mt.pl.neighbor_purity, "Run mt.tl.neighbor_purity"),
        (mt.pl.timelapse_scatter, "Run mt.tl.predict_timelapse"),
        (mt.pl.timelapse_error, "Run mt.tl.timelapse_baselines"),
        (lambda adata: mt.get.table(adata, "prompts"), "Run mt.pp.sample_prompts"),
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
    adata.obs["age"] = adata.obs["age_months"]
    settings = {"time_key": "age", "groupby": "cell_type", "donor_key": "donor_id", "n_prompts": 60}
    for part, key in [("train", "train_prompts"), ("held_out", "prompts")]:
        mt.pp.sample_prompts(adata, contexts=part, queries=part, key_added=key, **settings)
    mt.tl.predict_timelapse(adata, model)
    mt.tl.timelapse_baselines(adata, model)
    return adata


def test_prompts_tables(told):
    prompts, predicted = mt.get.table(told, "prompts"), mt.get.table(told, "timelapse")
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
    assert (mt.get.table(told, "timelapse")["predicted"] == 0).all()
    scores = mt.get.table(told, "timelapse", "scores")
    assert scores["predictor"].unique().tolist() == ["MaxToki"]
    assert set(scores["group"]) == {"all", *prompts["group"]}
    every = mt.get.table(told, "timelapse_baselines")
    assert every["predictor"].nunique() == 5
    assert every.attrs["unit"] == "weeks"


def test_timelapse_scatter(told):
    """Every prompt is a point; the axes are alike; a constant prediction has no correlation and is drawn."""
    ax = mt.pl.timelapse_scatter(told)
    (points,) = (c for c in ax.collections if isinstance(c, PathCollection))
    table = mt.get.table(told, "timelapse")
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
    scores = mt.get.table(told, "timelapse_baselines").query("group == 'all'")
    (dots,) = (c for c in ax.collections if isinstance(c, PathCollection))
    np.testing.assert_allclose(dots.get_offsets()[:, 1], scores["median_error"])
    row = scores.iloc[0]
    assert ax.texts[0].get_text().split()[0] == f"{row['median_error']:.0f}"
    assert f"{row['n_prompts']} prompts, {row['n_units']} donors" in ax.get_title()


def extents(ax):
    """Where the names and the ticks' labels of drawn axes lie, in pixels."""
    ax.figure.canvas.draw()
    renderer = ax.figure.canvas.get_renderer()
    ticks = [text for text in ax.get_xticklabels() if text.get_text()]
    return [[text.get_window_extent(renderer) for text in texts] for texts in (ax.texts, ticks)]


def overlap(boxes):
    return any(one.overlaps(other) for one, other in combinations(boxes, 2))


class TestLabelPoints:
    @staticmethod
    def labelled(n=5000):
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=n), rng.exponential(size=n)
        # Names that would lie on each other beside their points.
        x[:8], y[:8] = 2 + 0.02 * np.arange(8), 7
        _, ax = plt.subplots(figsize=(5, 3.8), layout="constrained")
        ax.scatter(x, y, s=9)
        limits = ax.get_xlim(), ax.get_ylim()
        label_points(ax, x, y, np.where(np.arange(n) < 8, [f"GENE{i}" for i in range(n)], ""))
        assert (ax.get_xlim(), ax.get_ylim()) == limits
        return ax, np.column_stack([x, y])

    def test_names_cover_nothing(self):
        ax, points = self.labelled()
        names, _ = extents(ax)
        assert [text.get_text() for text in ax.texts] == [f"GENE{i}" for i in range(8)]
        assert not overlap(names)
        shown = ax.transData.transform(points)
        assert not any(box.count_contains(shown) for box in names)
        # Leader lines end at the points.
        ends = [patch._posA_posB[1] for patch in ax.patches]
        assert len(ends) >= 6
        assert all(any(np.allclose(end, point) for point in points[:8]) for end in ends)

    def test_the_same_points_give_the_same_figure(self):
        places = [[text.get_position() for text in self.labelled()[0].texts] for _ in range(2)]
        assert places[0] == places[1]

    def test_points_without_a_place(self):
        ax = plt.figure().gca()
        label_points(ax, [0, np.nan], [0, 1], ["", "GENE"])
        assert not ax.texts


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def screen(effect, q, *, k=0, reach=0.5):
    """A made-up result of a screen: one row a gene and dose."""
    effect, q = np.asarray(effect, dtype=float), np.asarray(q, dtype=float)
    tested = ~np.isnan(q)
    table = pd.DataFrame({"gene": [f"ENSG{i:011d}" for i in range(len(effect))], "k": k, "effect": effect})
    table["symbol"] = [f"GENE{i}" for i in range(len(effect))]
    table["effect_low"], table["effect_high"] = effect - reach, effect + reach
    table["null_low"], table["null_high"] = np.where(tested, -1, np.nan), np.where(tested, 1, np.nan)
    table["n_null"] = np.where(tested, 40, 0)
    table["p_value"], table["q_value"] = q / 2, q
    table = table.assign(group="all", matched_to="", n_units=5, unit="donor")
    adata = AnnData(np.ones((2, 2)))
    about = {"unit": "years", "mode": "shift", "on": "query", "readout": "timelapse"}
    about |= {"unit_of_inference": "donor"}
    write_result(adata, "perturbation_stats", about, effects=table, controls=pd.DataFrame({"genes": ["all"]}))
    return adata


def test_perturbation_names_what_is_drawn():
    band = "matched genes, middle 95%"
    ax = mt.pl.perturbation(screen([-2, 1, 3], [np.nan] * 3))
    assert legend(ax) == ["not tested"]
    (points,) = (c for c in ax.collections if isinstance(c, PathCollection))
    assert len(points.get_offsets()) == 3
    grey = points.get_edgecolor()
    assert legend(mt.pl.perturbation(screen([-2, 1, 3], [0.01, 0.01, 0.02]))) == [band, "q < 0.05"]
    ax = mt.pl.perturbation(screen([-2, 1, 3], [0.01, 0.5, 0.5]))
    assert legend(ax) == [band, "q < 0.05", "q ≥ 0.05"]
    assert not any(np.array_equal(c.get_edgecolor(), grey) for c in ax.collections)


def test_perturbation_points_at_what_goes_on():
    """A triangle at the edge for each end of an interval beyond it, and none else."""
    ax = mt.pl.perturbation(screen([-2, 1, 3], [0.01, 0.5, np.nan], reach=4))
    low, high = ax.get_xlim()
    ends = [tuple(c.get_offsets()[:, 0]) for c in ax.collections if isinstance(c, PathCollection)][-2:]
    assert ends == [(low, low), (high,)]


@pytest.fixture(scope="module")
def many():
    """Encoded cells of many small groups, whose names have dollar signs."""
    rng = np.random.default_rng(0)
    sizes = [120, 40, 3, 2, 1, 1, 1, 1, 1, *[4] * 40]
    ranks = np.array([rng.permutation(12) + 1 for _ in range(sum(sizes))], dtype=np.uint16)
    names = np.repeat([f"type {i} of $\\frac$ and $x_1$" for i in range(len(sizes))], sizes)
    adata = AnnData(
        np.zeros(ranks.shape, dtype=np.float32),
        obs=pd.DataFrame({"type": names}, index=map(str, range(len(names)))),
    )
    adata.layers["rank"] = csr_matrix(ranks)
    return adata


def test_rank_heatmap_of_many_groups(many):
    """The largest, said on the axis; names neither lie on each other nor become formulas."""
    fig = mt.pl.rank_heatmap(many, groupby="type", n_genes=1)
    strip, ax = fig.axes[:2]
    assert "30 largest of 49 groups" in ax.get_xlabel()
    assert len(strip.texts) == 30
    fig.canvas.draw()
    assert all(text.get_text().endswith("of $\\frac$ and $x_1$") for text in strip.texts)
    starts = np.sort(strip.transData.transform([(text.xyann[0], 0) for text in strip.texts])[:, 0])
    assert np.diff(starts).min() > 0.16 * fig.dpi  # 8 points, at 45 degrees


def test_names_are_drawn_as_they_are():
    """In titles, ticks and axes that the caller made, too."""
    adata = screen([-2, 1, 3], [0.01, 0.5, 0.5])
    adata.uns["perturbation_stats"]["effects"]["symbol"] = "$\\frac$"
    adata.uns["perturbation_stats"]["effects"]["group"] = "$\\frac$"
    _, ax = plt.subplots()
    mt.pl.perturbation(adata, ax=ax)
    ax.figure.canvas.draw()
    assert "$\\frac$" in ax.get_title()
    assert not any(text.get_parse_math() for text in [ax.title, *ax.get_yticklabels()])


def test_settings_made_by_a_backend_stay():
    """The first figure of a notebook loads its backend, which sets that figures are shown."""
    with plt.rc_context({"interactive": False}):
        drawing(lambda: plt.ion())()
        assert plt.isinteractive()


def ages(key):
    donors = pd.DataFrame({"condition": "x", "donor": list("abcd"), "age": [300, 360, 600, 660]})
    donors = donors.assign(case=[True, False] * 2, stratum="all", n_matches=1, matched=True)
    adata = AnnData(np.ones((2, 2)))
    write_result(adata, "matched_ages", {"time_key": key}, donors=donors)
    return mt.pl.matched_ages(adata)


def test_matched_ages_are_in_years():
    ax = ages("age_months")
    assert ax.get_xlabel() == "age (years)"
    drawn = np.concatenate([c.get_offsets()[:, 0] for c in ax.collections if isinstance(c, PathCollection)])
    assert set(drawn) == {25, 30, 50, 55}
    assert ages("when").get_xlabel() == "age (.obs['when'])"


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # of scanpy
def test_umap_of_many_labels_has_no_legend():
    from maxtoki_toolkit.pipeline import draw_umap, set_colors

    donors = {"donor": [f"$d$ {i}" for i in range(100)]}
    adata = AnnData(obs=pd.DataFrame(donors, dtype="category", index=map(str, range(100))))
    adata.obs["kind"] = pd.Categorical(["$\\frac$", "b"] * 50)
    adata.obsm["X_umap"] = np.random.default_rng(0).normal(size=(100, 2))
    set_colors(adata, ["donor", "kind"])
    fig = draw_umap(adata, ["donor", "kind"])
    left, right = fig.axes
    assert left.get_legend() is None
    assert left.get_title() == "donor (100 labels, not named)"
    fig.canvas.draw()
    assert legend(right) == ["$\\frac$", "b"]


def test_perturbation_volcano_names_what_is_drawn():
    band = "matched genes, middle 95%"
    ax = mt.pl.perturbation_volcano(screen([-2, 1, 3], [0.01, 0.5, 0.6]), n_labels=2).axes[0]
    assert legend(ax) == [band, "q < 0.05, lower", "q ≥ 0.05"]
    assert [text.get_text() for text in ax.texts] == ["GENE0", "GENE1"]
    ax = mt.pl.perturbation_volcano(screen([2, 1, 3], [0.01, 0.02, 0.03])).axes[0]
    assert legend(ax) == [band, "q < 0.05, higher"]
    with pytest.raises(ValueError, match=r"screen more genes, or set n_controls of mt.tl.perturb"):
        mt.pl.perturbation_volcano(screen([-2, 1], [np.nan, np.nan]))


def test_perturbation_of_groups_that_differ_in_what_is_known():
    """The first group has no effect, the second no p value, the third both; no ranks, no effect."""
    adata = screen([np.nan] * 2 + [1, 2] + [-2, 3] + [np.nan] * 6, [np.nan] * 4 + [0.01, 0.5] + [np.nan] * 6)
    table = adata.uns["perturbation_stats"]["effects"]
    table["group"] = np.tile(np.repeat(["a", "b", "c"], 2), 2)
    table["k"] = np.repeat([-100, 0], 6)
    table["gene"] = table["symbol"] = ["A", "B"] * 6
    table["z"] = table["effect"]
    assert mt.pl.perturbation(adata).get_title().startswith("b: 2 genes")
    assert mt.pl.perturbation_volcano(adata).axes[0].get_title().startswith("c: 2 genes")
    assert mt.pl.perturbation_dose(adata).get_title() == "b"
    assert [label.get_text() for label in mt.pl.perturbation_heatmap(adata).get_yticklabels()] == ["A", "B"]
    for function, group, message in [
        (mt.pl.perturbation, "a", "No edit of 'a' took effect"),
        (mt.pl.perturbation_dose, "a", "No edit of 'a' took effect"),
        (mt.pl.perturbation_volcano, "b", "No gene of 'b' has a p value"),
    ]:
        with pytest.raises(ValueError, match=message):
            function(adata, group=group)
    with pytest.raises(KeyError, match="There is no k 5; there are -100, 0"):
        mt.pl.perturbation(adata, k=5)


def test_perturbation_dose_keeps_genes_apart():
    doses = [-100, -10, 10, 100]
    adata = screen([1, 1, 1, 1] * 3, [np.nan] * 12, k=doses * 3)
    table = adata.uns["perturbation_stats"]["effects"]
    table["symbol"] = table["gene"] = np.repeat(["A", "B", "C"], 4)
    table.loc[table["gene"] == "C", "effect"] = np.nan
    ax = mt.pl.perturbation_dose(adata, genes=["A", "B", "C"])
    assert legend(ax) == ["A", "B", "C (no edit took effect)"]
    a, b = (line.get_xdata() for line in ax.lines if line.get_label() in ("A", "B"))
    assert (a < b).all()
    # In order of the doses, and each nearer to its own than to the next.
    assert (np.abs(np.stack([a, b]) - doses) < 10).all()
    ends = [segment[0, 0] for c in ax.collections for segment in c.get_segments()]
    np.testing.assert_allclose(ends, np.r_[a, b])


def test_perturbation_concordance_is_legible():
    rng = np.random.default_rng(0)
    slope = rng.normal(0, 0.004, 60)
    genes = pd.DataFrame({"symbol": [f"GENE{i}" for i in range(60)], "slope": slope, "effect": -300 * slope})
    genes = genes.assign(group="all", concordant=True)
    scores = pd.DataFrame({"group": ["all"], "genes": ["all"], "share": [1.0], "n_genes": [60]})
    scores["null_low"], scores["null_high"] = 0.4, 0.6
    adata = AnnData(np.ones((2, 2)))
    about = {"mode": "inhibit", "on": "query", "unit": "years", "slope_unit": "log2 expression per year"}
    write_result(adata, "perturbation_concordance", about, genes=genes, concordance=scores)
    ax = mt.pl.perturbation_concordance(adata)
    assert legend(ax) == ["concordant"]
    names, ticks = extents(ax)
    assert len(names) == 8
    assert not overlap(names)
    assert not overlap([box.padded(2) for box in ticks])


def test_names_of_perturbation_metrics_stand_apart():
    adata = mt.datasets.aging_atlas(300, 30, n_genes=500)
    adata.X = adata.X.log1p()
    adata.layers["same"] = adata.X.copy()
    mt.tl.perturbation_metrics(adata, predicted="same", perturbation_key="condition", n_bootstrap=10)
    axes = mt.pl.perturbation_metrics(adata).axes
    for ax in axes:
        ax.figure.canvas.draw()
        assert not overlap([label.get_window_extent() for label in ax.get_yticklabels()])


def test_features_and_their_controls():
    """Labels x features, the best of each dictionary beside; and what the autoencoder keeps, with its interval."""
    adata = AnnData(np.ones((2, 2)))
    found = pd.DataFrame(
        {"feature": np.tile(np.arange(4), 3), "column": "type", "value": np.repeat(["B", "NK", "T"], 4)}
    )
    found["effect"] = [0.9, 0.2, 0.5, 0.6, 0.3, 0.95, 0.5, 0.4, *[np.nan] * 4]
    found["measure"], found["passes"] = "AUROC", found["effect"].gt(0.8)
    best = pd.DataFrame({"dictionary": np.repeat(["features", "features_pca", "genes"], 2), "column": "type"})
    best["value"], best["held_out"] = ["B", "NK"] * 3, [0.9, 0.8, 0.7, 0.6, 0.95, 0.85]
    counts = pd.DataFrame(
        {"dictionary": ["features", "features_pca", "genes"], "column": "type", "n_pass": 2}
    )
    genes = pd.DataFrame({"feature": np.arange(4), "top_genes": "A, B, C"})
    tables = {
        "features": genes,
        "associations": found,
        "best": best,
        "dictionaries": counts.assign(n_features=4, n_units=12),
    }
    write_result(adata, "feature_summary", {"features": "features", "unit": "AUROC"}, **tables)
    ax, side, bar = mt.pl.feature_summary(adata, n_features=1).axes
    assert "12 donors" in bar.get_xlabel()
    assert [label.get_text() for label in ax.get_xticklabels()] == ["B", "NK"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0  A, B", "1  A, B"]
    np.testing.assert_allclose(ax.images[0].get_array(), [[0.9, 0.3], [0.2, 0.95]])
    assert side.get_xlabel() == "AUROC in the other half"
    np.testing.assert_allclose(side.collections[0].get_offsets()[:, 0], [0.9, 0.8])
    with pytest.raises(KeyError, match="Nothing was compared by 'age'"):
        mt.pl.feature_summary(adata, column="age")

    measures = pd.DataFrame({"dictionary": ["sae", "PCA", "random"] * 2})
    measures["measure"] = np.repeat(["variance explained", "loss recovered"], 3)
    measures["value"], measures["low"], measures["high"] = 0.5, 0.4, 0.6
    measures["n_units"], measures["unit"] = 12, "donor"
    about = {"sae": {"width": 8, "k": 2, "block": 1, "site": "output"}, "n_cells": 40}
    write_result(adata, "evaluate_sae", about, measures=measures)
    figure = mt.pl.evaluate_sae(adata)
    assert [text.get_text() for text in figure.axes[0].texts] == ["50.0"] * 3
    assert "40 cells of 12 donors" in figure.get_suptitle()
