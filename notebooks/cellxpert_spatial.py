# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Cells in tissue: neighbours, distances, patches
#
# Which cell types stand beside which, of true and of predicted types? How far apart are cells no longer alike? Which dimensions of a model's embedding, and which
# genes, lie in patches of the tissue? Each beside labels and values exchanged within images, with intervals over donors.
#
# Without a `path` the sections are simulated: endothelial cells and macrophages lie together, ten genes and one number rise along the first axis, and another
# number is alike over 250 µm.
#
# CellxPert shows neighbourhood enrichment of predicted labels on MERFISH and imaging mass cytometry data (Fig. 4) and variograms of cell classes over radii of
# 0.062 to 5.0 (Fig. 12). Its labels, radii in µm and tests are not known to us; A. Green's essay (Markov Bio, 2024) maps features on a section of intestine.

# %% tags=["parameters"]
path: str = ""  # .h5ad with raw counts and places in obsm["spatial"]; "" for simulated sections
layer: str = ""  # layer with the raw counts; "" for .X
model: str = "demo"  # "demo", a folder or a hub id; any model that reads cells
library_key: str = "image_id"  # column of .obs with the image or section; "" for one image
donor_key: str = "donor_id"  # column of .obs with the donor; "" for none
groupby: list = ["cell_type"]  # column of .obs with the cell type, in a list
keys: list = ["field", "gradient"]  # columns of .obs with numbers, or genes, to look at beside the embedding
cells: dict = {}  # cells to use, by columns of .obs; {} for all
distance_unit: str = "µm"  # unit of the places
n_neighbors: int = 6  # nearest cells that count as neighbours
radius: float = 0.0  # all cells as near as this in place of them; 0 for n_neighbors
max_distance: float = 600.0  # largest distance of the variograms; 0 for a third of the diagonal of an image
n_simulated: int = 1200  # simulated cells
n_permutations: int = 199  # orders of labels and values within each image
n_permutations_features: int = 999  # the same for Moran's I of many features, whose correction needs more
seed: int = 0  # seed of cells and permutations
output: str = ""  # folder for figures (PNG, PDF) and tables (CSV); "" for none

# %%
import warnings

import matplotlib.pyplot as plt
from IPython.display import display
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import maxtoki_toolkit as mt

mt.settings.progress = False
save = mt.reports.saver(output)


# %% [markdown]
# ## Sections

# %%
maxtoki = mt.load_model(model)
adata = (
    mt.reports.read_cells(path, layer=layer)
    if path
    else mt.datasets.tissue(n_simulated, n_genes=2000, seed=seed)
)
adata = adata[mt.reports.cells_with(adata, cells)].copy()
mt.pp.map_genes(adata, maxtoki)
mt.pp.rank_value_encode(adata, maxtoki, layer=layer or None)
mt.tl.embed(adata, maxtoki)
label = groupby[0]
where = {"library_key": library_key or None, "donor_key": donor_key or None, "distance_unit": distance_unit}
near = {"n_neighbors": n_neighbors, "radius": radius or None}
told = list(adata.uns.get("truth", {}).get("niche", [])) or None
figure = mt.pl.spatial(
    adata,
    color=label,
    groups=told,
    library_key=library_key or None,
    distance_unit=distance_unit,
    max_images=4,
)
save(figure, "sections")
display(figure)
plt.close("all")

# %% [markdown]
# ## Who stands beside whom, of true and of predicted types
#
# Types are predicted from the embedding by a logistic regression that knows no cell of the donor (or image). Enrichment is the base-2 logarithm of observed over
# expected neighbours; composition, the trivial explanation, is in the expected number. A dot marks pairs that pass both corrections: labels exchanged within
# images, and a t test over donors.

# %% tags=["answer"]
units = adata.obs[donor_key or library_key].astype(str) if donor_key or library_key else adata.obs_names
types = adata.obs[label].astype(str)
guess = cross_val_predict(
    make_pipeline(StandardScaler(), LogisticRegression(C=0.03, max_iter=200)),
    adata.obsm["X_maxtoki"],
    types,
    groups=units,
    cv=GroupKFold(5),
)
adata.obs["predicted"] = guess
most = types.value_counts(normalize=True).iloc[0]
print(
    f"{(guess == types).mean():.0%} of the predicted types are right; {most:.0%} are of the most common type"
)
mt.tl.neighborhood_enrichment(
    adata, groupby=[label, "predicted"], n_permutations=n_permutations, rng=seed, **near, **where
)
figure = mt.pl.neighborhood_enrichment(adata)
save(figure, "neighbors")
display(figure)
plt.close("all")

# %%
pairs = mt.get.table(adata, "neighborhood_enrichment")
save(pairs, "neighbors")
both = pairs.pivot_table(index=["label", "neighbor"], columns="groupby", values="log2_enrichment").dropna()
print(
    f"enrichment of {len(both)} pairs, predicted against true types: "
    f"Pearson {both.corr().iloc[0, 1]:.2f}, Spearman {both.corr('spearman').iloc[0, 1]:.2f}"
)
display(pairs[pairs["groupby"] == label].nlargest(5, "log2_enrichment").round(3))

# %% [markdown]
# ## How far apart are cells no longer alike?
#
# Semivariance of numbers, share of unlike pairs of classes, mean squared distance in the embedding. Grey holds 95% of the permutations; a dashed line stands at
# the range, with its interval. Cell density and library size, in orange, lie in patches in most tissues.

# %% tags=["answer"]
mt.tl.variogram(
    adata,
    keys=[label, "X_maxtoki", *keys],
    max_distance=max_distance or None,
    n_permutations=n_permutations,
    rng=seed,
    **where,
)
figure = mt.pl.variogram(adata)
save(figure, "variograms")
display(figure)
plt.close("all")

# %%
ranges = mt.get.table(adata, "variogram", "ranges")
save(mt.get.table(adata, "variogram"), "variograms")
save(ranges, "ranges")
display(ranges.round(3))

# %% [markdown]
# ## What lies in patches?
#
# Moran's I of the dimensions of the embedding, of the numbers, and of genes: filled as it is, open without what density and library size explain. Of the simulated
# genes those are shown that were made to rise along the first axis.

# %% tags=["answer"]
genes = list(adata.uns.get("truth", {}).get("gradient_genes", []))
with warnings.catch_warnings():
    warnings.simplefilter("ignore", RuntimeWarning)  # of dimensions that are constant in an image
    mt.tl.spatial_features(
        adata,
        keys=["X_maxtoki", *keys, *genes],
        n_permutations=n_permutations_features,
        rng=seed,
        **near,
        **where,
    )
ax = mt.pl.spatial_features(adata)
save(ax.figure, "patches")
display(ax.figure)
plt.close("all")

# %%
features = mt.get.table(adata, "spatial_features")
save(features, "patches")
asked = features[~features["baseline"]]
by_key = asked.assign(key=asked["key"].where(asked["key"].isin(["X_maxtoki", *keys]), "genes")).groupby(
    "key", sort=False
)
display(
    by_key.agg(
        n=("feature", "size"),
        median_i=("morans_i", "median"),
        largest_i=("morans_i", "max"),
        median_adjusted=("adjusted", "median"),
        called=("q_value", lambda q: (q < 0.05).sum()),
        called_adjusted=("adjusted_q_value", lambda q: (q < 0.05).sum()),
    ).round(3)
)

# %% [markdown]
# ## What would make this wrong
#
# - Permutations exchange cells of the images that were looked at: their p values say nothing of other donors, the intervals do.
# - With one donor, intervals are over images, which are not independent.
# - A dimension or a gene lies in patches because cell types do. Compare within a type (`cells`) before anything else is concluded.
# - What follows the number of counts or the density of cells may come from the assay: look at what is left without them.
# - On a grid several cells are equally near: give a `radius`.
# - Predicted types that are right at random places dilute enrichment; types that are predicted from neighbours' RNA, spilled over, would raise it.
