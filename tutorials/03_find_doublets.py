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
# # Find doublets with MaxToki
#
# A droplet that catches two cells is counted as one. Two cells of different types give a "new" cell type that does not exist; two of the
# same type give a cell with twice the counts that no clustering shows, and that looks like an active state. Models of single cells learn
# from both, and may write both.
#
# `mt.tl.doublets` learns what doublets look like from doublets that it makes itself, out of your own cells, and gives every cell a
# probability. Here it is tried on real nuclei of a human heart, where nobody knows which are doublets, and on simulated cells, where we do.
# The page runs in about two minutes on one core.

# %%
import matplotlib.pyplot as plt
import numpy as np
import scanpy as sc

import maxtoki_toolkit as mt

mt.settings.progress = False

# %% [markdown]
# ## 1. Your cells
#
# What is needed: raw counts, and the cell type if you have it. Put your own file into `path`.

# %% tags=["parameters"]
path: str = ""  # your .h5ad with raw counts; "" for the nuclei
type_key: str = "cell_type"  # column of .obs with the cell type
donor_key: str = ""  # column of .obs with the donor or sample; "" for one
expected_rate: float = 0.05  # share of doublets that is expected
n_simulated: int = 1000  # simulated cells of section 5
seed: int = 0  # seed of doublets, folds and fits

# %%
adata = mt.pp.read_cells(path) if path else mt.datasets.load("heart_nuclei")
model = mt.load_model("demo")
mt.pp.map_genes(adata, model)
mt.pp.rank_value_encode(adata, model)
adata.obs[type_key].value_counts().head(6)

# %% [markdown]
# ## 2. Look for doublets
#
# Set `donor_key` if you have several donors or samples: two cells of different samples never share a droplet, and from three
# donors on every cell is judged by a detector that has not seen its donor. These nuclei are of one donor, so the folds are of
# cells, and what follows says nothing about other donors.
#
# How many doublets to expect depends on the loading: for 10x about 0.8% for every 1,000 cells recovered. `expected_rate` turns scores into
# probabilities; it does not change which cells score highest.
#
# `features` are what neighbours are looked for in. We leave out the embedding: on these data it adds nothing that counts and
# ranks do not have ([numbers](../benchmarks/README.md#doublets)).

# %%
mt.tl.doublets(
    adata,
    model,
    groupby=type_key,
    donor_key=donor_key or None,
    features=["ranks", "expression", "size"],
    expected_rate=expected_rate,
    rng=seed,
)
adata.obs[["doublet_probability", "doublet"]].describe(include="all").loc[
    ["count", "mean", "max", "top", "freq"]
]

# %% [markdown]
# ## 3. Is the detector any good?
#
# Before looking at the cells, look at the detector. It is scored on simulated doublets that it was not trained on, beside scrublet on the same
# doublets, and beside itself trained on permuted labels.

# %%
columns = [
    "doublets",
    "detector",
    "auroc",
    "auroc_low",
    "auroc_high",
    "average_precision",
    "calibration_error",
]
mt.get.doublet_scores(adata)[columns].round(3)

# %% [markdown]
# - `auroc`: the probability that a doublet scores higher than a cell; 0.5 is chance. Doublets of one type are the hard ones.
# - `average_precision`: with few doublets among many cells, this is nearer to what you will feel.
# - `calibration_error`: if it says 20%, is it one in five? Smaller is better.
#
# **Simulated doublets are easier than real ones.** Real droplets lose, mix and saturate in ways that nobody simulates. Where the truth was known
# from hashtags (four cell lines, Stoeckius et al. 2018), areas of 0.85 on simulated doublets became 0.68 on real ones, and scrublet's 0.78 became
# 0.61. Take these numbers as an upper bound. Here there is a second reason: these nuclei were chosen for like numbers of counts, so that
# a nucleus with twice as many stands out. Between cells of very different sizes doublets of one type are harder to see.

# %%
fig = mt.pl.doublets(adata)

# %% [markdown]
# The lower left panel asks whether probabilities mean what they say: points on the diagonal. The lower right one shows the scores of cells beside
# those of simulated doublets: where the cells have a second, small hump under that of the doublets, there are some.
#
# ## 4. Look at the cells
#
# Doublets should lie between the types that they are made of, or have more counts than their neighbours. If the called cells are instead one whole
# cluster, that may be a real type between two others (or a cycling one): do not throw away a cluster for its scores.

# %%
adata.layers["counts"] = adata.X.copy()
sc.pp.normalize_total(adata, target_sum=1e4)
sc.pp.log1p(adata)
sc.pp.pca(adata, n_comps=20)
sc.pp.neighbors(adata, random_state=0)
sc.tl.umap(adata, random_state=0)
adata.obs["log10 counts"] = np.log10(np.asarray(adata.layers["counts"].sum(axis=1)).ravel())
fig, axes = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
for ax, color in zip(axes, [type_key, "doublet_probability", "log10 counts"], strict=True):
    sc.pl.umap(
        adata, color=color, ax=ax, show=False, frameon=False, legend_fontsize=6, cmap="viridis", size=30
    )
plt.show()

# %%
called = adata.obs[adata.obs["doublet"]]
by_type = adata.obs.groupby(type_key, observed=True)["doublet"].agg(["sum", "size", "mean"])
by_type.sort_values("mean", ascending=False).head(6).round(3)

# %% [markdown]
# Next to none, which is no surprise: published atlases have been cleaned of doublets before, and these nuclei are from one. On your own
# unfiltered cells expect more.
#
# Then leave them out, and say so in your methods: how many, at which expected rate, by which version.

# %%
kept = adata[~adata.obs["doublet"]].copy()
print(f"{adata.n_obs - kept.n_obs} of {adata.n_obs} nuclei left out")

# %% [markdown]
# ## 5. Where the truth is known
#
# The simulated atlas has planted doublets, all of two cells **of the same type**, the hard kind. Given as `truth_key` the truth is used for
# scoring only.

# %%
atlas = mt.datasets.aging_atlas(n_simulated, 20, seed=5)
atlas.obs["planted"] = atlas.obs_names.isin(atlas.uns["truth"]["doublets"]["cell"])
mt.pp.map_genes(atlas, model)
mt.pp.rank_value_encode(atlas, model)
mt.tl.doublets(
    atlas,
    model,
    groupby="cell_type",
    donor_key="donor_id",
    truth_key="planted",
    features=["ranks", "expression", "size"],
    simulation=mt.pp.DoubletSimulation(same_type=1.0),
)
truth = mt.get.doublet_scores(atlas).query("set == 'truth'")
truth[
    ["detector", "auroc", "auroc_low", "auroc_high", "average_precision", "n_doublets", "n_units", "unit"]
].round(3)

# %% [markdown]
# Here folds and intervals are over donors. scrublet looks for cells between types, and says so: doublets of one type are not what it is made for.
#
# ## 6. Cells that a model wrote
#
# The same detector judges generated cells, by ranks alone, since they have no counts. That is how
# [fig2_generated_cells](../notebooks/fig2_generated_cells.ipynb) asks whether a model writes cells or averages of cells:
#
# ```python
# cells = mt.tl.generate(adata, model)
# how = mt.pp.DoubletSimulation(kind="ranks")
# mt.tl.doublets(adata, model, queries=cells, simulation=how, features=["ranks"], groupby="cell_type")
# mt.get.singlet_fraction(adata)
# ```
#
# ## What to take home
#
# - Run it sample by sample, or name the sample in `donor_key`, on raw counts, before cells are filtered by counts.
# - Believe the order of the cells more than the threshold. The threshold is the expected rate.
# - A detector that is excellent on simulated doublets is good on real ones at best.
# - Compare with scrublet, which is in the same table: where both agree, you are on safe ground.
