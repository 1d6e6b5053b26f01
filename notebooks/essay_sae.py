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
# # "Through a Glass Darkly": features of a model's states
#
# A state of the model is a mixture: hundreds of numbers a gene, none of which means anything by itself. A sparse autoencoder
# writes each state as a sum of a few out of many directions, its *features*. This notebook trains one, asks how good it is on
# held-out cells, and what its features go with. Everything stands beside the same of principal components, of random directions, and of
# single genes: these tell cell types apart as well.
#
# Without a `path` the cells are 700 nuclei of a human heart that ship with the package, all of one donor, so that there are no p values.
# With `data="aging_atlas"` they are simulated cells of many donors.
#
# A. Green's essay (Markov Bio, 2024) shows features with enriched cell types, tissues and genes, of a model of 300 million parameters with
# about 16,000 features. Its numbers on how good the autoencoder is are not known to us.

# %% tags=["parameters"]
path: str = ""  # .h5ad with raw counts; "" for shipped cells
layer: str = ""  # layer with the raw counts; "" for .X
data: str = (
    "heart_nuclei"  # shipped cells where there is no path: "heart_nuclei" or "aging_atlas" (simulated)
)
model: str = "demo"  # "demo", a folder or a hub id; any model that reads cells
sae: str = ""  # "demo", or the folder of an autoencoder of this model; "" to train one here
compare: list = [
    "demo"
]  # further autoencoders of the same states, to see which features come again; [] for none
groupby: list = ["cell_type"]  # columns of .obs with labels; all else is compared within the first
donor_key: str = "donor_id"  # column of .obs with the donor; "" for none
gene_sets: str = "TF"  # sets of genes: "TF" or a .gmt file; "" for none
block: int = 2  # transformer block whose states are read, from 0
width: int = 512  # features
k: int = 16  # features a gene
max_steps: int = 150  # steps of the training; the shipped autoencoder had 1,000
batch_size: int = 32  # cells a step
held_out: float = (
    0.2  # share of the donors that is held out; of the cells, where there are fewer than five donors
)
n_cells: int = 2000  # cells to use, at most
n_evaluated: int = 120  # held-out cells to measure the autoencoder on
n_simulated: int = 2000  # simulated cells
n_donors: int = 30  # simulated donors
seed: int = 8  # seed of donors, cells and training
output: str = ""  # folder for figures (PNG, PDF), tables (CSV) and the training; "" for none

# %%
import json
import tempfile
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import maxtoki_toolkit as mt
from maxtoki_toolkit.pl._style import BASELINE, MODEL, NULL, clean

mt.settings.progress = False
save = mt.reports.saver(output)


# %% [markdown]
# ## Cells

# %%
maxtoki = mt.load_model(model)
if path:
    adata = mt.reports.read_cells(path, layer=layer)
elif data == "heart_nuclei":
    adata = mt.datasets.load(data)
else:
    adata = mt.datasets.aging_atlas(n_simulated, n_donors, seed=seed)
    adata = adata[adata.obs["condition"] == "control"].copy()
random = np.random.default_rng(seed)
if adata.n_obs > n_cells:
    adata = adata[np.sort(random.choice(adata.n_obs, n_cells, replace=False))].copy()
mt.pp.map_genes(adata, maxtoki)
mt.pp.rank_value_encode(adata, maxtoki, layer=layer or None)
donors = adata.obs[donor_key].nunique() if donor_key else 0
known = donor_key if donors > 1 else None
if donors >= 5:
    mt.pp.hold_out(adata, donor_key=donor_key, donors=held_out, rng=seed)
    test = adata.obs["held_out"].to_numpy()
else:
    test = random.random(adata.n_obs) < held_out
print(
    f"{adata.n_obs} cells of {donors or 'unknown'} donor(s), {test.sum()} of them held out"
    + ("." if donors >= 5 else " at random: fewer than five donors are no donors to hold out.")
)

# %% [markdown]
# ## Training
#
# The loss is the share of the states' variance that the features leave unexplained. Abundant genes, which are much alike, are read less
# often than they come. Where `sae` names an autoencoder, nothing is trained.

# %%
folder = Path(output or tempfile.mkdtemp())
if sae:
    coder = mt.load_sae(sae)
else:
    recipe = mt.train.SparseRecipe.of(
        max_steps=max_steps, batch_size=batch_size, eval_every=max(max_steps // 5, 1), seed=seed
    )
    coder = mt.train.sae(
        adata[~test].copy(),
        maxtoki,
        folder / "training",
        block=block,
        width=width,
        k=k,
        held_out=adata[test].copy(),
        recipe=recipe,
    )
    log = pd.DataFrame(json.loads(line) for line in (folder / "training" / "log.jsonl").open())
    figure, ax = plt.subplots(figsize=(4.6, 2.8), layout="constrained")
    for column, color, marker, label in (
        ("loss", NULL, "", "training cells"),
        ("eval_loss", MODEL, "o", "held-out cells"),
    ):
        part = log.dropna(subset=[column])
        ax.plot(part["step"], 100 * part[column], color=color, marker=marker, ms=4, label=label)
    ax.set(xlabel="step", ylabel="variance left unexplained (%)", ylim=(0, None))
    ax.legend(frameon=False, fontsize=8)
    clean(ax)
    save(figure, "sae_training")
print(coder)

# %% [markdown]
# ## How good is it?
#
# On held-out cells. Left, the variance of the states that is explained; right, how well the model predicts the next gene if its states are replaced by
# what the features make of them: 100% is the model as it is, 0% a model whose states are all the mean. Beside: the `k` of the principal components that are largest at
# a gene, and `k` of as many random directions. Of a single donor the bars are over cells, and too narrow.
# With the defaults and so short a training features explain a little more variance than the components, and recover no more of the loss.

# %% tags=["answer"]
tested = adata[test].copy()
others = [mt.load_sae(other) for other in compare if other != sae and (other != "demo" or model == "demo")]
others = [other for other in others if other.site == coder.site and not sae]
mt.tl.evaluate_sae(tested, maxtoki, coder, others=others, n_cells=n_evaluated, donor_key=known, rng=seed)
figure = mt.pl.evaluate_sae(tested)
save(figure, "sae_quality")

# %% tags=["answer"]
measures = mt.get.table(tested, "evaluate_sae")
save(measures, "sae_quality")
order = list(dict.fromkeys(measures["measure"]))
measures.pivot(index="measure", columns="dictionary", values="value").loc[order].round(3)

# %% [markdown]
# "subspace" are the `k` best directions, the same at every gene: features that are chosen anew should beat them. "nearest direction" is how alike the
# features are among themselves (cosine), and "found again" how like the most similar feature of the autoencoders in `compare` is. The random
# column says what dimensions alone make of it. The shipped autoencoder was trained on more cells and for longer, so that not all of the difference is chance.
#
# A random dictionary that recovers much of the next-gene loss says that this measure is lenient: some direction always lies near.
#
# ## Features and their genes
#
# The features that tell the labels best, with the genes at which each is most active. `density` is the share of the genes read at
# which it is active.

# %%
mt.tl.features(adata, maxtoki, coder, donor_key=known, rng=seed)
with warnings.catch_warnings():
    # Of fewer than three donors, which is said above.
    warnings.simplefilter("ignore")
    mt.tl.feature_summary(adata, groupby=groupby, donor_key=known, gene_sets=gene_sets or None, rng=seed)
features = mt.get.table(adata, "features")
genes = mt.get.table(adata, "features", "genes")
best = mt.get.table(adata, "feature_summary", "best")
best = best[best["column"] == groupby[0]]
shown = best[best["dictionary"] == "features"].astype({"feature": int})
shown = shown.merge(features[["feature", "density", "mean_rank", "top_genes"]], on="feature")
columns = ["value", "feature", "effect", "q_value", "held_out", "density", "mean_rank", "top_genes"]
save(features, "features")
save(genes, "feature_genes")
shown[columns].round(3).set_index("value")

# %% [markdown]
# ## What features go with, beside the controls
#
# **Left**, features by labels, coloured by the AUROC with which the feature tells the label's cells from all others; a point: the association passes (0.2
# from chance, in both halves, and q < 0.05 where there are donors). **Right**, the honest comparison: the best of each dictionary is chosen in one half
# of the donors (or cells) and scored in the other. Grey: random directions, principal components, single genes.

# %% tags=["answer"]
figure = mt.pl.feature_summary(adata)
save(figure, "feature_summary")

# %% tags=["answer"]
dictionaries = mt.get.table(adata, "feature_summary", "dictionaries").query("column == @groupby[0]")
held = best.groupby("dictionary")["held_out"].agg(["mean", "min"]).add_prefix("held-out AUROC, ")
save(best, "feature_summary_best")
save(mt.get.table(adata, "feature_summary"), "feature_summary")
summary = dictionaries.set_index("dictionary").drop(columns="column").join(held)
save(summary.reset_index(), "feature_summary_dictionaries")
summary.round(3)

# %% [markdown]
# `share_pass` is the share of a dictionary's directions that go with some label. Nearly all random directions do: states of different cell types
# differ everywhere. With the defaults the best random direction, chosen in one half, tells cell types in the other half as well as the best feature
# (mean AUROC about 0.98 for both), and a single gene is not far behind. So these associations are no evidence that a feature means a cell type.
# `values_each` is the number of labels that a direction is high in: it does not set features apart, either. What does is how much of the states so few of them hold.
#
# ## Do the labels hold in other cells?
#
# Each feature gets a label, and the genes that go with it in one half of the donors (or cells) have to say where it is active in the other: the rank correlation of
# their mean rank with the feature's activation. The null exchanges labels.

# %% tags=["answer"]
mt.tl.label_features(adata, rng=seed)
labels = mt.get.table(adata, "feature_labels")
save(labels, "feature_labels")
figure, ax = plt.subplots(figsize=(4.6, 2.8), layout="constrained")
bins = np.linspace(-1, 1, 41)
for column, color, label in (
    ("null_mean", NULL, "genes of other features (mean)"),
    ("score", MODEL, "its own genes"),
):
    ax.hist(labels[column], bins=bins, color=color, alpha=0.7, label=label)
ax.axvline(labels["score"].mean(), color=BASELINE, lw=1.2, label="mean of its own")
ax.set(xlabel="rank correlation in the other half", ylabel="number of features (n)", xlim=(-0.6, 1))
ax.legend(frameon=False, fontsize=8)
clean(ax)
save(figure, "feature_labels")
says = labels.attrs
print(
    f"Of {len(labels)} features {says['share_predicted']:.0%} have q < 0.05 and {says['share_p05']:.0%} p < 0.05 (5% by chance).\n"
    f"Mean correlation {says['mean_score']:.2f}; with labels exchanged {says['exchanged_mean']:.2f} (p {says['exchanged_p']:.3f})."
)

# %%
labels.nlargest(10, "score")[["feature", "label", "score", "null_mean", "p_value", "q_value"]].round(
    3
).set_index("feature")

# %% [markdown]
# ## What would make this wrong
#
# **No controls.** Features separate cell types; so do random directions and single genes. Say by how much features are better, in
# cells that they were not chosen on.
#
# **Cells of one donor.** Of one donor nothing can be said of others: no p values, and intervals over cells are too narrow. Nuclei
# of one donor on both sides of a split are alike.
#
# **Cells that the autoencoder was trained on.** It explains them better. With `sae="demo"` most of the heart nuclei are such cells.
#
# **Depth and rank.** A feature that is active at the first ranks is high in cells of few genes. `confounded` in the table
# `feature_summary` names what else explains a feature.
#
# **A label is a guess.** The genes of a feature are scored, not the words that were made of them.
#
# **One seed.** Another seed finds other features. "found again" says how many of them.
