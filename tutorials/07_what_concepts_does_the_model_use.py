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
# # What concepts does the model use?
#
# While MaxToki reads a cell, it keeps a list of numbers for every gene, its *state*: what it has made of the gene and of those above it.
# A single one of these numbers means nothing. A **sparse autoencoder** takes the state apart: it writes it as a sum of a few
# *features*, chosen out of some hundreds. A feature is a direction that comes back, in many genes and cells, and often one that a
# biologist can name: "genes of the heart muscle", "long genes in nuclei", "the first ranks of a cell".
#
# This page shows how to list the features in your cells, find out what they go with, look at them one by one, and turn one up to see which genes
# become likely. It also shows what *not* to conclude. It uses 700 nuclei of a human heart, the small demo model and its autoencoder, all part of the package. It
# takes about two minutes.

# %% tags=["parameters"]
path: str = ""  # .h5ad with raw counts; "" for the heart nuclei of the package
label: str = "cell_type"  # column of .obs with labels of the cells
donor_key: str = "donor_id"  # column of .obs with the donor; "" for none
n_cells: int = 700  # cells to read, at most, drawn at random
n_turned: int = 150  # cells in which a feature is turned up
n_evaluated: int = 60  # cells on which the autoencoder is measured
page: str = ""  # file to write the page with all features to, such as "features.html"; "" for none
seed: int = 0  # seed of what is drawn

# %%
import warnings

import matplotlib.pyplot as plt
import numpy as np
import scanpy as sc

import maxtoki_toolkit as mt
from maxtoki_toolkit.pl._style import MODEL, NULL, clean

mt.settings.progress = False

model = mt.load_model("demo")
sae = mt.load_sae("demo")
adata = mt.pp.read_cells(path) if path else mt.datasets.load("heart_nuclei")
if adata.n_obs > n_cells:
    drawn = np.random.default_rng(seed).choice(adata.n_obs, n_cells, replace=False)
    adata = adata[np.sort(drawn)].copy()
mt.pp.map_genes(adata, model)
mt.pp.rank_value_encode(adata, model)
n_known = adata.obs[donor_key].nunique() if donor_key else 0
donors = donor_key if n_known > 1 else None
print(sae)
print(f"{adata.n_obs} cells of {n_known or 'unknown'} donor(s)")

# %% [markdown]
# The autoencoder reads the output of the third block (counted from 0: `block 2`). At every gene 16 of its 512 features are active.
#
# ## 1. Does the autoencoder describe the states at all?
#
# Before looking at features, ask how much of the states they hold. Left, how much of the variance; right, how well the model still predicts the
# next gene if it has to go on with what the features say. The **random** row is a dictionary of directions that were drawn with a die.

# %%
mt.tl.evaluate_sae(adata, model, sae, n_cells=n_evaluated, donor_key=donors, rng=seed)
figure = mt.pl.evaluate_sae(adata)

# %% [markdown]
# The autoencoder should beat principal components, by a distance that the bars do not bridge. Note how well the random directions do on the right. Most of what it takes to
# go on is easy to keep. (The demo autoencoder was trained on most of these nuclei. For your own model,
# measure it on donors that it has not seen.)
#
# ## 2. Read the features
#
# One call. Each cell gets a number for every feature (by default the largest activation among its genes), and each feature its genes.

# %%
mt.tl.features(adata, model, sae, donor_key=donors, rng=seed)
features = mt.get.table(adata, "features")
found = features[features["n_cells"] > 0]
print(f"{len(found)} of {len(features)} features are active somewhere in these cells.")
found[["feature", "density", "n_cells", "mean_rank", "top_genes"]].sort_values("density").iloc[
    [len(found) // 4, len(found) // 2, -20, -1]
].round(3).set_index("feature")

# %% [markdown]
# `density` is the share of the genes read at which the feature is active. The last one is active everywhere: it says "this is a gene" and
# nothing else. `mean_rank` says where in the cell's list the feature lives. A feature of the first ranks tells high from low, not heart from muscle.
#
# ## 3. What do they go with?
#
# For each label, the features that tell its cells best. The colour is the AUROC: 0.5 is a coin, 1 is never wrong. On the right the same contest in a fair way: the best is
# chosen in one half and scored in the other. Donors make the halves, where there are donors.

# %%
with warnings.catch_warnings():
    # Of a single donor nothing can be tested, and the package says so.
    warnings.simplefilter("ignore")
    mt.tl.feature_summary(adata, groupby=label, donor_key=donors, gene_sets="TF", rng=seed)
figure = mt.pl.feature_summary(adata)

# %%
dictionaries = mt.get.table(adata, "feature_summary", "dictionaries").query("column == @label")
best = mt.get.table(adata, "feature_summary", "best").query("column == @label")
dictionaries.set_index("dictionary")[["n_features", "n_pass", "share_pass", "n_values", "values_each"]].join(
    best.groupby("dictionary")["held_out"].mean().rename("mean held-out AUROC")
).round(3)

# %% [markdown]
# **Read the grey rows before you are pleased.** Nearly every *random* direction goes with some cell type (`share_pass`), and the best
# of them tells cell types apart almost as well as the best feature. So does the best single gene. "This feature separates cardiomyocytes with an AUROC of 0.99" is
# therefore not evidence that the model has a concept of cardiomyocytes. The lead of the features is small: with another seed and a shorter training
# ([essay_sae](../notebooks/essay_sae.ipynb)) random directions do as well. What features can have over random directions is that they hold the states (section 1)
# and that few of them do so.
#
# With one donor there are no p values either: cells of one person are not independent of each other.
#
# Other explanations are named in `confounded`: how many genes a cell has, its counts, its donor, ranks, housekeeping genes.

# %%
summary = mt.get.table(adata, "feature_summary")
summary["confounded"].replace("", "nothing that was looked for").value_counts().head(8).to_frame()

# %% [markdown]
# ## 4. Give them names, and test the names
#
# A name is a guess from the top genes and labels. It can be tested: the genes that go with a feature in one half of the cells should say where
# it is active in the other half. The grey bars ask the same of the genes of *other* features.

# %%
mt.tl.label_features(adata, rng=seed)
labels = mt.get.table(adata, "feature_labels")
figure, ax = plt.subplots(figsize=(5, 2.8), layout="constrained")
bins = np.linspace(-0.6, 1, 33)
ax.hist(labels["null_mean"], bins=bins, color=NULL, alpha=0.7, label="genes of other features (mean)")
ax.hist(labels["score"], bins=bins, color=MODEL, alpha=0.7, label="its own genes")
ax.set(xlabel="rank correlation in the other half of the cells", ylabel="number of features (n)")
ax.legend(frameon=False, fontsize=8)
clean(ax)

# %%
says = labels.attrs
print(
    f"{says['share_p05']:.0%} of the features have p < 0.05 (5% by chance), {says['share_predicted']:.0%} q < 0.05. "
    f"Mean correlation {says['mean_score']:.2f}, with names exchanged {says['exchanged_mean']:.2f}."
)
labels.nlargest(8, "score")[["feature", "label", "score", "p_value", "q_value"]].round(3).set_index("feature")

# %% [markdown]
# The names say something on the whole: exchanged, they foretell nothing. Of single names be careful. Each is compared with the genes of all other features, so that p is never below one over their
# number, and after correction for all of them (q) none may be left, as here. Many features are not foretold by their genes. Do not use the name of such a one.
#
# ## 5. Look for yourself
#
# In JupyterLab the next cell is a dashboard: search features by gene, label or number, and see for each its genes, its cells on a map, and the cells in which it
# is most active with their genes in order. On a page that nobody executes by hand there is a picture of it. The map is a t-SNE of the
# features.

# %%
adata.obsm["X_concepts"] = adata.obsm["features"].toarray()
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    sc.tl.tsne(adata, use_rep="X_concepts", random_state=seed)
named = best[best["dictionary"] == "features"].astype({"feature": int})
named = named.sort_values("held_out", ascending=False)
chosen = int(named["feature"].iloc[0])
mt.widgets.features(adata, model, sae, groupby=label, basis="X_tsne", feature=chosen)

# %% [markdown]
# The same as a page, one file that opens without a network: `mt.reports.features(adata, "features.html", model=model, sae=sae)`, or from a
# terminal `maxtoki report features my_cells.h5ad --model demo --sae demo -o features.html`.

# %%
if page:
    mt.reports.features(adata, page, model=model, sae=sae, groupby=label)

# %% [markdown]
# ## 6. Turn one up
#
# So far we have only looked. The stronger question: does the model *use* the feature? We double it wherever it is active and ask which genes the model
# then expects next. Blue: genes that become more or less likely. Grey: what random directions of the same length do to the same gene, two standard
# deviations to both sides. Every disturbance changes something.

# %%
turned = list(dict.fromkeys(named["feature"]))[:3]
mt.tl.feature_genes(
    adata, model, sae, features=turned, dose=2.0, n_genes=6, n_cells=min(n_turned, adata.n_obs), rng=seed
)
changes = mt.get.table(adata, "feature_genes")
figure, axes = plt.subplots(
    1, len(turned), figsize=(3.6 * len(turned), 3.4), squeeze=False, layout="constrained"
)
for ax, feature in zip(axes[0], turned, strict=True):
    part = changes[changes["feature"] == feature].sort_values("change", ignore_index=True)
    place = np.arange(len(part))
    ax.barh(place, 4 * part["null_sd"], left=-2 * part["null_sd"], color=NULL, alpha=0.5, height=0.7)
    ax.scatter(part["change"], place, color=MODEL, s=26, zorder=3)
    ax.axvline(0, color="black", lw=0.8)
    ax.set_yticks(place, part["symbol"], fontsize=8)
    goes = named.loc[named["feature"] == feature, "value"].iloc[0]
    ax.set_title(f"feature {feature}: {goes}", fontsize=9)
    ax.set_xlabel("change of the log-probability (nats)", fontsize=9)
    ax.tick_params(axis="x", labelsize=8)
    clean(ax)

# %%
print(
    f"{(changes['z'].abs() > 2).sum()} of {len(changes)} changes are beyond two standard deviations of random directions.\n"
    f"Correlation with what the direction says to the output by itself: {changes.attrs['direct_r']:.2f}."
)
changes[["feature", "direction", "symbol", "change", "null_sd", "z", "direct", "n_places"]].round(3).groupby(
    "feature", sort=False
).head(4).set_index("feature")

# %% [markdown]
# These genes were picked because they change most, out of all genes. So a few of them beyond two standard deviations are what chance gives, too. Look whether they make sense *as a set*, and whether they are
# the genes that the feature is active at (which would be trivial) or others. Where the last correlation is near 1, later blocks add little: the
# feature speaks to the output at once.
#
# To ask what a feature does to a predicted time, not to genes: `mt.tl.feature_effects`, in [essay_steering](../notebooks/essay_steering.ipynb).
#
# ## 7. What you may conclude
#
# | you saw | you may write | you may not write |
# |---|---|---|
# | a feature has AUROC 0.99 for a cell type | this direction tells the cell type, as some random directions do | the model has a concept of this cell type; this is the feature of it |
# | top genes that make sense | the feature is active at these genes in these cells | the feature is the pathway |
# | its genes foretell it in the other half of the donors | the description holds in other donors | the words of the label are right |
# | of one donor, all of it | in this donor | anything with a p value |
# | turning it up makes genes likely, beyond random directions | the model's prediction depends on it | raising these genes in cells would do so |
# | the autoencoder explains 90% of the variance | it describes the states | what is left does not matter |
# | any of it in one autoencoder | in this autoencoder of this model | another seed would find it |
#
# For your own cells: set `path`, and use a model that knows such cells. An autoencoder belongs to one model and one block:
# `mt.train.sae(adata, model, "sae_run", block=...)` trains one, and [essay_sae](../notebooks/essay_sae.ipynb) does it step by step.
