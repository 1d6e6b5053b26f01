"""Cells in tissue: what is planted is found, what is shuffled is not, and numbers are those counted one by one."""

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from helpers import on_copy
from scipy.spatial.distance import cdist

import maxtoki_toolkit as mt
from maxtoki_toolkit.pp._tissue import cell_density, read_images
from maxtoki_toolkit.stats import space

COLUMNS = {"library_key": "image_id", "donor_key": "donor_id"}
NICHE = ["endothelial cell", "macrophage"]


def cells_at(places, image=None, donor=None, counts=None, **columns) -> AnnData:
    """Cells at places, of one image and donor unless said."""
    obs = pd.DataFrame(dict(columns))
    obs["image_id"] = "one" if image is None else image
    if donor is not None:
        obs["donor_id"] = donor
    obs.index = [f"cell_{i}" for i in range(len(places))]
    adata = AnnData(None if counts is None else counts.astype(np.float32), obs=obs)
    adata.obsm["spatial"] = np.asarray(places)
    return adata


def random_cells(n_images: int, n: int, seed: int, n_dims: int = 2, n_donors: int | None = None) -> AnnData:
    """Images of cells at random places, with labels that know nothing of them."""
    rng = np.random.default_rng(seed)
    image = np.repeat(np.arange(n_images), n)
    donor = None if n_donors is None else (image % n_donors).astype(str)
    return cells_at(
        rng.uniform(0, 100, (n_images * n, n_dims)),
        np.char.add("image_", image.astype(str)),
        donor,
        label=rng.choice(["a", "b", "c"], n_images * n, p=[0.5, 0.3, 0.2]),
    )


@pytest.fixture(scope="module")
def tissue():
    return mt.datasets.tissue(1200)


# Neighbours.


@pytest.mark.parametrize("n_dims", [2, 3])
@pytest.mark.parametrize("by", [{"n_neighbors": 5}, {"radius": 15.0}, {"radius": 40.0}])
def test_edges_are_those_counted_one_by_one(n_dims, by):
    """200 cells in two images that lie upon each other."""
    adata = random_cells(2, 100, seed=1, n_dims=n_dims)
    mt.tl.neighborhood_enrichment(adata, groupby="label", library_key="image_id", n_permutations=9, **by)
    pairs = mt.get.table(adata, "neighborhood_enrichment").set_index(["label", "neighbor"])
    label, counted = adata.obs["label"].to_numpy(), pd.Series(0, pairs.index)
    for image in adata.obs["image_id"].unique():
        rows = np.flatnonzero(adata.obs["image_id"] == image)
        for i in rows:
            away = {
                j: np.linalg.norm(adata.obsm["spatial"][i] - adata.obsm["spatial"][j]) for j in rows if j != i
            }
            near = sorted(away, key=away.get)[: by.get("n_neighbors", len(away))]
            for j in near:
                if away[j] <= by.get("radius", np.inf):
                    counted[label[i], label[j]] += 1
    # An image in which less than one edge is expected of a pair does not count for it.
    full = pairs["n_images"] == 2
    assert full.sum() >= 6
    assert pairs["n_edges"][full].tolist() == counted[full].tolist()


def test_expected_edges_are_the_mean_over_all_orders():
    adata = random_cells(2, 30, seed=2)
    starts = np.array([0, 30, 60])
    codes = np.unique(adata.obs["label"], return_inverse=True)[1]
    graph = space.neighbor_graph(adata.obsm["spatial"], starts, n_neighbors=4, radius=None)
    edges = space.Edges.of(graph, starts)
    expected = space.expected_edges(edges, codes, 3, starts)
    rng = np.random.default_rng(0)
    drawn = np.array([edges.count(codes[space.shuffled(starts, rng)], 3) for _ in range(2000)])
    assert np.abs(drawn.mean(axis=0) - expected).max() < 5 * (drawn.std(axis=0) / 2000**0.5).max()
    assert expected.sum() == pytest.approx(4 * 60)


def test_cells_in_one_place_are_neighbours_and_no_cell_is_its_own():
    graph = space.neighbor_graph(np.zeros((4, 2)), np.array([0, 4]), n_neighbors=2, radius=None)
    assert graph.diagonal().sum() == 0
    assert graph.sum() == 8
    graph = space.neighbor_graph(np.zeros((4, 2)), np.array([0, 4]), n_neighbors=1, radius=1.0)
    assert graph.diagonal().sum() == 0
    assert graph.sum() == 12


def test_a_planted_neighbourhood_is_found(tissue):
    adata = tissue.copy()
    mt.tl.neighborhood_enrichment(adata, groupby="cell_type", n_permutations=199, **COLUMNS)
    pairs = mt.get.table(adata, "neighborhood_enrichment")
    inside = pairs["label"].isin(NICHE) & pairs["neighbor"].isin(NICHE)
    across = pairs["label"].isin(NICHE) ^ pairs["neighbor"].isin(NICHE)
    assert (pairs.loc[inside, "ci_low"] > 0.8).all()
    assert (pairs.loc[inside, ["q_value", "unit_q_value"]] < 0.05).all(axis=None)
    assert (pairs.loc[across, "log2_enrichment"] < -0.2).all()
    assert pairs.attrs["units"] == "donors"
    # The same cells at places that know nothing of them.
    free = mt.datasets.tissue(1200, null=True)
    mt.tl.neighborhood_enrichment(free, groupby="cell_type", n_permutations=199, **COLUMNS)
    found = mt.get.table(free, "neighborhood_enrichment")
    assert (found["q_value"] < 0.05).sum() == 0
    assert found["log2_enrichment"].abs().max() < 0.7


def test_shuffled_labels_are_inside_the_null():
    """Of 40 tissues in which there is nothing, p values of the permutations and over donors are as often small as they say."""
    drawn, over_donors, covered = [], [], []
    for seed in range(40):
        adata = random_cells(6, 30, seed=100 + seed, n_donors=6)
        mt.tl.neighborhood_enrichment(adata, groupby="label", n_permutations=39, **COLUMNS)
        # Pairs of one tissue depend on each other: one of each.
        row = mt.get.table(adata, "neighborhood_enrichment").iloc[seed % 9]
        drawn.append(row["p_value"])
        over_donors.append(row["unit_p_value"])
        covered.append(row["null_low"] <= row["log2_enrichment"] <= row["null_high"])
    for values in (np.array(drawn), np.array(over_donors)):
        assert (values <= 0.05).sum() <= 6  # 2 expected, 7 with p = 0.003
        assert 0.35 < values.mean() < 0.65
    assert np.mean(covered) > 0.75  # 39 permutations hold some 90%


def test_donors_count_once_however_many_images_they_have():
    adata = random_cells(5, 60, seed=3)
    image = adata.obs["image_id"].str[-1].astype(int)
    adata.obs["donor_id"] = np.where(image < 3, "x", image.astype(str))
    mt.tl.neighborhood_enrichment(adata, groupby="label", n_permutations=9, **COLUMNS)
    found = mt.get.table(adata, "neighborhood_enrichment").set_index(["label", "neighbor"])
    alone = on_copy(
        mt.tl.neighborhood_enrichment,
        AnnData(obs=adata.obs.drop(columns="donor_id"), obsm=dict(adata.obsm)),
        groupby="label", library_key="image_id", n_permutations=9,
    )  # fmt: skip
    units = mt.get.table(alone, "neighborhood_enrichment", "units")
    assert mt.get.table(alone, "neighborhood_enrichment").attrs["units"] == "images"
    units["donor"] = units["unit"].str[-1].map(lambda i: "x" if int(i) < 3 else i)
    by_donor = units.groupby(["label", "neighbor", "donor"])["log2_enrichment"].mean()
    expected = by_donor.groupby(level=[0, 1]).mean()
    pd.testing.assert_series_equal(found["log2_enrichment"], expected[found.index], check_names=False)
    assert (found["n_units"] == 3).all()


def test_predicted_labels_beside_true_ones(tissue):
    adata = tissue.copy()
    rng = np.random.default_rng(0)
    wrong = rng.random(adata.n_obs) < 0.5
    types = adata.obs["cell_type"].astype(str).to_numpy()
    adata.obs["predicted"] = np.where(wrong, rng.permutation(types), types)
    mt.tl.neighborhood_enrichment(adata, groupby=["cell_type", "predicted"], n_permutations=19, **COLUMNS)
    pairs = mt.get.table(adata, "neighborhood_enrichment").set_index(["groupby", "label", "neighbor"])
    value = pairs["log2_enrichment"]
    assert 0 < value["predicted", NICHE[0], NICHE[1]] < value["cell_type", NICHE[0], NICHE[1]]
    assert len(mt.pl.neighborhood_enrichment(adata).axes) == 3


# Moran's I.


def test_morans_i_is_that_of_scanpy():
    rng = np.random.default_rng(0)
    places, values = rng.uniform(size=(80, 2)), rng.normal(size=(80, 3))
    values[:, 0] += 3 * places[:, 0]
    starts = np.array([0, 80])
    weights = space.row_means(space.neighbor_graph(places, starts, n_neighbors=6, radius=None))
    found = space.morans_i(space.centred(values, starts), weights, starts)[0]
    np.testing.assert_allclose(found, sc.metrics.morans_i(weights, values.T), atol=1e-10)
    assert found[0] > 0.2


def test_planted_gradients_are_found_and_others_are_not(tissue):
    adata = tissue.copy()
    genes = list(adata.uns["truth"]["gradient_genes"])
    mt.tl.spatial_features(adata, keys=["gradient", "field", *genes], n_permutations=199, **COLUMNS)
    found = mt.get.table(adata, "spatial_features").set_index("feature")
    assert (found.loc[["gradient", "field"], "ci_low"] > found.loc[["gradient", "field"], "null_high"]).all()
    assert (found.loc[["gradient", "field"], ["q_value", "adjusted_q_value"]] < 0.05).all(axis=None)
    assert (found.loc[genes, "q_value"] < 0.05).mean() >= 0.6
    assert found["baseline"].sum() == 2
    free = mt.datasets.tissue(1200, null=True)
    mt.tl.spatial_features(free, keys=["gradient", "field", *genes], n_permutations=199, **COLUMNS)
    none = mt.get.table(free, "spatial_features").set_index("feature")
    assert (none["q_value"] < 0.05).sum() == 0
    assert none.loc[genes, "morans_i"].mean() < found.loc[genes, "morans_i"].mean() / 3


@pytest.mark.filterwarnings("ignore:.*beyond all")
def test_random_features_are_inside_the_null():
    adata = random_cells(4, 40, seed=5)
    adata.obsm["X"] = np.random.default_rng(1).exponential(size=(160, 200))
    mt.tl.spatial_features(adata, keys="X", library_key="image_id", n_permutations=99)
    found = mt.get.table(adata, "spatial_features").query("~baseline")
    for name in ("p_value", "adjusted_p_value"):
        assert (found[name] <= 0.05).sum() <= 20  # 10 expected of 200
        assert 0.43 < found[name].mean() < 0.57
    assert abs(found["morans_i"].mean() + 1 / 39) < 0.01


def test_what_follows_the_density_of_cells_is_told_from_what_does_not():
    rng = np.random.default_rng(0)
    places = np.vstack([rng.normal(0, 4, (150, 2)), rng.uniform(-50, 50, (150, 2))])
    adata = cells_at(places, x=places[:, 0] / 50 + rng.normal(0, 0.3, 300))
    tissue_ = read_images(adata, library_key=None)
    density = pd.Series(cell_density(tissue_), tissue_.cells.obs_names)
    adata.obs["crowded"] = density[adata.obs_names] + rng.normal(0, 0.5, 300)
    mt.tl.spatial_features(adata, keys=["x", "crowded"], n_permutations=99)
    found = mt.get.table(adata, "spatial_features").set_index("feature")
    assert (found.loc[["x", "crowded"], "p_value"] == 0.01).all()
    assert found.loc["x", "adjusted_p_value"] == 0.01
    assert found.loc["crowded", "adjusted_p_value"] > 0.05
    # One image is one unit, of which there is no interval.
    assert found["ci_low"].isna().all()


@pytest.mark.filterwarnings("ignore:.*beyond all")
def test_a_feature_that_is_constant_says_nothing():
    adata = random_cells(3, 20, seed=6)
    values = np.random.default_rng(0).normal(size=(60, 2))
    values[:, 1] = 0.1
    values[:20, 0] = 7.3
    adata.obsm["X"] = values
    mt.tl.spatial_features(adata, keys="X", library_key="image_id", n_permutations=9)
    found = mt.get.table(adata, "spatial_features")
    assert found["n_images"].tolist()[:2] == [2, 0]
    assert np.isnan(found["q_value"][1])


# Variograms.


def test_variograms_are_those_of_all_pairs():
    rng = np.random.default_rng(0)
    places, z, label = rng.uniform(0, 10, (50, 2)), rng.normal(size=50), rng.choice(["a", "b"], 50)
    adata = cells_at(places, z=z, label=label)
    adata.obsm["E"] = rng.normal(size=(50, 3))
    mt.tl.variogram(adata, keys=["z", "label", "E"], n_bins=4, max_distance=8.0, n_permutations=9)
    bins = mt.get.table(adata, "variogram").set_index(["key", "bin"])
    left, right = np.triu_indices(50, 1)
    away = cdist(places, places)[left, right]
    expected = {
        "z": (z[left] - z[right]) ** 2 / 2,
        "label": (label[left] != label[right]).astype(float),
        "E": ((adata.obsm["E"][left] - adata.obsm["E"][right]) ** 2).sum(axis=1),
    }
    for i in range(4):
        inside = (away >= 2 * i) & (away < 2 * i + 2)
        for key, values in expected.items():
            assert bins.loc[(key, i), "n_pairs"] == inside.sum()
            assert bins.loc[(key, i), "value"] == pytest.approx(values[inside].mean())


def test_no_pair_is_drawn_twice_where_there_are_too_many(monkeypatch):
    monkeypatch.setattr(space, "_DRAWN", 40 * 10)
    places = np.random.default_rng(0).uniform(size=(40, 2))
    pairs = space.draw_pairs(places, np.array([0, 40]), np.array([0, 1, 2]), 300, np.random.default_rng(0))
    names = {tuple(sorted(pair)) for pair in zip(pairs.left, pairs.right, strict=True)}
    assert len(names) == len(pairs.left)
    assert len(set(pairs.left)) == 10
    assert np.bincount(pairs.bin).max() <= 300


def test_a_known_curve_has_its_range():
    distance, weight = np.linspace(10, 600, 12), np.ones(12)
    curve = 0.2 + 0.8 * space.exponential(distance, np.array(250.0))
    flat, line = np.full(12, 0.5), distance / 100
    nugget, sill, reach = space.fit_levels(distance, np.stack([curve, flat, line]), weight).T
    assert nugget[0] == pytest.approx(0.2, abs=0.02)
    assert sill[0] == pytest.approx(1, abs=0.02)
    assert reach[0] == pytest.approx(250, rel=0.03)
    assert sill[1] == pytest.approx(0.5)
    assert reach[2] == np.inf
    assert np.isnan(space.fit_levels(distance[:3], curve[None, :3], weight[:3])).all()


def test_the_planted_range_is_found():
    adata = mt.datasets.tissue(2000, seed=1)
    keys = ["field", "cell_type", "gradient"]
    mt.tl.variogram(adata, keys=keys, max_distance=600.0, n_permutations=59, distance_unit="µm", **COLUMNS)
    found = mt.get.table(adata, "variogram", "ranges").set_index("key")
    low, reach, high = found.loc["field", ["range_low", "range", "range_high"]]
    assert low < reach < high
    assert reach == pytest.approx(adata.uns["truth"]["range"], rel=0.4)
    assert found.loc["field", "nugget"] == pytest.approx(0.2, abs=0.15)
    assert found.loc["gradient", "range"] == np.inf  # all the way through the section
    assert (found.loc[keys, "q_value"] < 0.05).all()
    assert mt.get.table(adata, "variogram").attrs["distance_unit"] == "µm"


def test_variograms_of_random_numbers_are_inside_the_null():
    adata = random_cells(4, 60, seed=7)
    values = np.random.default_rng(2).normal(size=(240, 80))
    names = [f"n{i}" for i in range(80)]
    adata.obs[names] = values
    mt.tl.variogram(adata, keys=names, library_key="image_id", n_bins=4, n_permutations=39)
    found = mt.get.table(adata, "variogram", "ranges").query("~baseline")
    assert (found["p_value"] <= 0.05).sum() <= 11  # 4 expected of 80
    assert 0.4 < found["p_value"].mean() < 0.6
    assert found["range"].notna().sum() <= 8


# What all of them share.

CALLS = {
    "neighborhood_enrichment": {"groupby": "label"},
    "spatial_features": {"keys": "z"},
    "variogram": {"keys": ["z", "label"], "n_bins": 4},
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.filterwarnings("ignore:.*beyond all")
def test_three_dimensions_and_the_order_of_cells(name):
    adata = random_cells(3, 30, seed=8, n_dims=3)
    adata.obs["z"] = adata.obsm["spatial"][:, 2]
    function = getattr(mt.tl, name)
    settings = {**CALLS[name], "library_key": "image_id", "n_permutations": 9}
    found = on_copy(function, adata, **settings).uns[name]
    moved = on_copy(function, adata[np.random.default_rng(0).permutation(90)], **settings).uns[name]
    for table in [key for key in found if isinstance(found[key], pd.DataFrame)]:
        pd.testing.assert_frame_equal(found[table], moved[table])


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_would_be_wrong_is_refused(name):
    adata = random_cells(3, 30, seed=9, n_donors=3)
    adata.obs["z"] = 1.0 + np.arange(90)
    call = getattr(mt.tl, name)
    settings = {**CALLS[name], "n_permutations": 9}
    bad = adata.copy()
    bad.obsm["spatial"][4] = np.nan
    with pytest.raises(ValueError, match=r"1 of 90 cells have no place in \.obsm\['spatial'\]"):
        call(bad, **settings)
    bad.obsm["spatial"] = np.zeros((90, 4))
    with pytest.raises(ValueError, match=r"cells x 2 or 3, got float64 of shape \(90, 4\)"):
        call(bad, **settings)
    del bad.obsm["spatial"]
    with pytest.raises(KeyError, match=r"Did not find \.obsm\['spatial'\]"):
        call(bad, **settings)
    bad = adata.copy()
    del bad.obs["image_id"]
    with pytest.raises(ValueError, match="Image 'all cells' has cells of 3 donors"):
        call(bad, **settings)
    if name != "variogram":
        few = adata[:64].copy()
        with pytest.raises(
            ValueError, match=r"1 of 3 images have fewer than 7 cells \(first: 'image_2', 4\)"
        ):
            call(few, **settings)
        with pytest.raises(ValueError, match="No two cells lie within 1e-09"):
            call(adata, radius=1e-9, **settings)
    else:
        with pytest.raises(ValueError, match=r"No two cells of an image lie within 3e-08"):
            call(adata, max_distance=1.2e-7, **settings)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_names_that_cannot_be_mapped_are_refused(tissue):
    with pytest.raises(KeyError, match=r"'gradientt' is no column of \.obs.*Did you mean 'gradient'"):
        mt.tl.spatial_features(tissue.copy(), keys="gradientt", **COLUMNS)
    with pytest.raises(ValueError, match="has classes, and Moran's I is of numbers"):
        mt.tl.spatial_features(tissue.copy(), keys="cell_type", **COLUMNS)
    logged = tissue.copy()
    logged.X = logged.X * 0.5
    with pytest.raises(ValueError, match="raw counts in .X"):
        mt.tl.spatial_features(logged, keys=tissue.var["symbol"].iloc[0], **COLUMNS)
    one = random_cells(2, 20, seed=0)
    one.obs["label"] = "a"
    with pytest.raises(ValueError, match="one label"):
        mt.tl.neighborhood_enrichment(one, groupby="label", library_key="image_id")


def test_too_few_permutations_for_the_correction_are_told():
    adata = random_cells(3, 30, seed=4)
    adata.obsm["X"] = np.random.default_rng(0).normal(size=(90, 30))
    adata.obsm["X"][:, 0] = adata.obsm["spatial"][:, 0]
    with pytest.warns(UserWarning, match="of 30 features lie beyond all 39 permutations.*Give more"):
        mt.tl.spatial_features(adata, keys="X", library_key="image_id", n_permutations=39)


@pytest.mark.filterwarnings("ignore:.*beyond all")
def test_symbols_and_ids_are_one_gene(tissue):
    adata = tissue.copy()
    gene, symbol = adata.var_names[3], adata.var["symbol"].iloc[3]
    mt.tl.spatial_features(adata, keys=[gene, symbol], n_permutations=9, **COLUMNS)
    found = mt.get.table(adata, "spatial_features")
    assert found["morans_i"][0] == found["morans_i"][1]


# Simulated tissue and figures.


@pytest.mark.parametrize("settings", [{}, {"n_sections": 2}, {"n_dims": 3}])
def test_simulated_sections_have_what_is_planted(settings):
    adata = mt.datasets.tissue(600, **settings)
    assert adata.obs.groupby("image_id", observed=True)["donor_id"].nunique().eq(1).all()
    assert adata.obs["image_id"].nunique() == 10 * settings.get("n_sections", 1)
    x = adata.obsm["spatial"][:, 0] / 1000
    assert np.corrcoef(x, adata.obs["gradient"])[0, 1] > 0.7
    genes = adata[:, list(adata.uns["truth"]["gradient_genes"])].X.toarray().sum(axis=1)
    assert np.corrcoef(x, genes / adata.X.sum(axis=1).A1 if hasattr(adata.X, "A1") else genes)[0, 1] > 0.25
    pd.testing.assert_frame_equal(mt.datasets.tissue(600, **settings).obs, adata.obs)
    with pytest.raises(ValueError, match="n_cells must be at least 200"):
        mt.datasets.tissue(100)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_figures_of_tissue(tissue):
    import matplotlib.pyplot as plt

    from maxtoki_toolkit.pl.spatial import _round_length

    assert [_round_length(x) for x in (300, 0.07, 5, 1.99)] == [200, 0.05, 5, 1]
    settings = {"library_key": "image_id", "distance_unit": "µm"}
    figure = mt.pl.spatial(tissue, color="cell_type", groups=NICHE, max_images=3, **settings)
    assert len(figure.axes) == 3
    texts = {text.get_text() for text in figure.axes[0].texts}
    assert texts == {"200 µm"}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*NICHE, "other"]
    figure = mt.pl.spatial(tissue, color=tissue.var["symbol"].iloc[0], images=["D02_s1"], **settings)
    assert figure.axes[-1].get_ylabel().endswith("(log1p of scaled counts)")
    solid = mt.datasets.tissue(400, n_dims=3)
    solid.obsm["features"] = np.random.default_rng(0).random((400, 4))
    figure = mt.pl.spatial(solid, color="features/3", images=["D01_s1", "D02_s1"], **settings)
    assert figure.axes[0].name == "3d"
    with pytest.raises(ValueError, match="color='features/0'"):
        mt.pl.spatial(solid, color="features", **settings)
    with pytest.raises(KeyError, match="no image 'D99'"):
        mt.pl.spatial(tissue, color="gradient", images=["D99"], **settings)
    with pytest.raises(ValueError, match="groups= are classes"):
        mt.pl.spatial(tissue, color="gradient", groups=["a"], **settings)
    plt.close("all")
