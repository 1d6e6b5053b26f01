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
# # Genes, proteins and peaks in one model
#
# Cells with several kinds of features become one ranked list a kind, `<rna> ... <adt> ... <atac> ...`, each ranked by its own medians, so that one model reads them all.
# This notebook trains a small one that often sees only some kinds of a cell. It then asks whether proteins (or peaks) are read from the other kinds beyond ridge
# regression and exchanged cells, and whether all kinds together know cell types better than RNA alone, beside principal components of the same counts.
#
# Without a `path`, cells are simulated: proteins and peaks follow their genes with noise, and one protein, of which no gene tells, splits a cell type.
#
# CellxPert reads RNA, proteins, accessibility and places in one backbone (Fig. 5). Its splits, baselines and intervals are not known to us.

# %% tags=["parameters"]
path: str = ""  # .h5ad with raw counts and feature_types as 10x writes them, or with proteins in .obsm; "" for simulated cells
proteins: str = (
    ""  # key of .obsm with the counts of proteins (a DataFrame); "" if they are among the features
)
model: str = ""  # folder of a trained model that knows these features; "" to train a small one here
groupby: list = ["subtype"]  # column of .obs with the cell type, in a list
donor_key: str = "donor_id"  # column of .obs with the donor; "" for none
cells: dict = {}  # cells to use, by columns of .obs; {} for all
target: str = "adt"  # kind that is read from the others: "adt", "atac" or "rna"
held_out: float = 0.3  # share of the donors (or cells, without donors) that are scored and never trained on
n_simulated: int = 800  # simulated cells
n_peaks: int = 60  # simulated peaks
max_steps: int = 250  # steps of the training
batch_size: int = 32  # cells a step
learning_rate: float = 0.02  # of the matrices (Muon)
modality_dropout: float = 0.3  # how often a kind of a cell is left out in training
n_neighbors: int = 15  # neighbours that carry labels over
n_permutations: int = 199  # exchanges of the cells
seed: int = 0  # seed of cells, training and permutations
output: str = ""  # folder for figures (PNG, PDF) and tables (CSV); "" for none

# %%
import tempfile

import anndata
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc
from IPython.display import display
from sklearn.metrics import f1_score
from sklearn.neighbors import KNeighborsClassifier

import maxtoki_toolkit as mt
from maxtoki_toolkit.pl._style import BASELINE, MODEL, clean
from maxtoki_toolkit.pp._modalities import kinds_of

mt.settings.progress = False
save = mt.reports.saver(output)
NAMES = {"rna": "genes", "adt": "proteins", "atac": "peaks"}

# %% [markdown]
# ## Cells
#
# Proteins count above the background of the cells that lack them, peaks by how rarely they are open. Genes have the ranks that they have alone.

# %%
if path:
    joint = anndata.read_h5ad(path)
    joint = mt.pp.join_modalities(joint, proteins=proteins) if proteins else joint
else:
    atlas = mt.datasets.aging_atlas(n_simulated, 20, n_genes=500, seed=seed)
    joint = mt.datasets.paired_modalities(atlas, n_peaks=n_peaks, seed=seed)
joint = joint[mt.reports.cells_with(joint, cells)].copy()
label, donor_key = groupby[0], donor_key or None
if donor_key:
    mt.pp.hold_out(joint, donor_key=donor_key, donors=held_out, rng=seed)
    column = "held_out_donors" if "held_out_donors" in joint.obs else "held_out"
else:
    column = "held_out"
    joint.obs[column] = np.random.default_rng(seed).random(joint.n_obs) < held_out
test = joint.obs[column].to_numpy()
mt.pp.map_genes(joint)
if model:
    reader = mt.load_model(model)
    vocab = reader.vocab
else:
    medians = mt.pp.modality_medians(joint[~test].copy())
    vocab = mt.models.Vocabulary.from_anndata(joint[~test].copy()).with_modalities(medians)
mt.pp.rank_value_encode(joint, vocab)
kinds = [kind for kind in NAMES if kind in vocab.modalities]
parts = {kind: mt.pp.keep_modalities(joint, modalities=kind) for kind in kinds}
display(
    pd.DataFrame(
        {
            "kind": [NAMES[kind] for kind in kinds],
            "features": [part.n_vars for part in parts.values()],
            "ranked a cell (median)": [int(part.obs["n_genes_ranked"].median()) for part in parts.values()],
            "cells that have any": [part.n_obs for part in parts.values()],
        }
    )
)

# %% [markdown]
# ## Training
#
# Kinds are left out and put in random order from cell to cell, so that each is learned from any others.

# %%
if not model:
    shape = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
    }
    recipe = mt.train.PretrainRecipe.of(
        max_steps=max_steps,
        batch_size=batch_size,
        optimizer="muon",
        learning_rate=learning_rate,
        modality_dropout=modality_dropout,
        eval_every=max_steps,
        seed=seed,
    )
    with tempfile.TemporaryDirectory() as folder:
        reader = mt.train.pretrain(joint[~test].copy(), vocab, folder, shape=shape, recipe=recipe)
print(f"trained on {(~test).sum()} cells, scored on {test.sum()}")

# %% [markdown]
# ## One kind from the others
#
# A dot a feature: Spearman correlation, over held-out cells, of the model's log-probability of reading the feature first with what was measured, beside ridge
# regression on principal components of what is given. Dotted: 95% of what exchanged cells give the model's mean.
#
# After so short a training the model reads more than exchanged cells allow, and much less than ridge regression: train longer (`max_steps`), or start from a
# model that knows such cells (`model`).

# %% tags=["answer"]
mt.tl.translate(
    joint,
    reader,
    target=target,
    held_out=column,
    donor_key=donor_key,
    n_permutations=n_permutations,
    rng=seed,
)
ax = mt.pl.translate(joint)
save(ax.figure, "translate")
display(ax.figure)
plt.close("all")

# %%
scores = mt.get.table(joint, "translate")
save(scores, "translate")
save(mt.get.table(joint, "translate", "features"), "translate_features")
display(scores.round(3))

# %% [markdown]
# ## Cell types from each kind
#
# Labels of held-out cells are carried over from the others by nearest neighbours, in the embedding of each kind alone and of all, and in 20 principal components of
# the log-normalised counts of the same features. F1 is the mean over labels; bars are 95% bootstrap intervals over donors (or cells, without donors).


# %% tags=["answer"]
def components(part):
    """Principal components of log-normalised counts, each kind scaled by itself."""
    blocks = []
    for kind in kinds:
        if (here := kinds_of(part.var) == kind).any():
            block = anndata.AnnData(part.X[:, here].astype(np.float32))
            sc.pp.normalize_total(block, target_sum=1e4)
            sc.pp.log1p(block)
            sc.pp.pca(block, n_comps=min(20, block.n_vars - 1), random_state=seed)
            found = block.obsm["X_pca"]
            blocks.append(found / found[:, 0].std())
    return np.hstack(blocks)


def carried(values, names):
    """Labels of held-out cells by their neighbours among the others."""
    known, asked = ~joint.obs.loc[names, column].to_numpy(), joint.obs.loc[names, column].to_numpy()
    truth = joint.obs.loc[names, label].astype(str).to_numpy()
    neighbors = KNeighborsClassifier(n_neighbors).fit(values[known], truth[known])
    return pd.DataFrame({"true": truth[asked], "called": neighbors.predict(values[asked])}, names[asked])


def f1_with_interval(calls):
    """Mean F1 over labels, and its interval."""
    units = joint.obs.loc[calls.index, donor_key].astype(str) if donor_key else calls.index
    groups = [part for _, part in calls.groupby(np.asarray(units))]
    draws = np.random.default_rng(seed)
    found = [
        f1_score(again["true"], again["called"], average="macro")
        for again in (
            pd.concat([groups[i] for i in draws.integers(0, len(groups), len(groups))]) for _ in range(200)
        )
    ]
    return f1_score(calls["true"], calls["called"], average="macro"), *np.quantile(found, [0.025, 0.975])


rows = []
for read in [[kind] for kind in kinds] + [kinds]:
    part = mt.pp.keep_modalities(joint, modalities=read)
    mt.tl.embed(part, reader)
    for method, values in (("model", part.obsm["X_maxtoki"]), ("PCA", components(part))):
        f1, low, high = f1_with_interval(carried(values, part.obs_names))
        rows.append({"kinds": " + ".join(NAMES[kind] for kind in read), "method": method})
        rows[-1] |= {"f1": f1, "low": low, "high": high}
common = joint.obs.loc[~test, label].astype(str).mode()[0]
truth = joint.obs.loc[test, label].astype(str)
trivial = f1_score(truth, [common] * len(truth), average="macro")
known = pd.DataFrame(rows)
save(known, "labels")
figure, ax = plt.subplots(figsize=(6.2, 0.5 * len(known["kinds"].unique()) + 1.2), layout="constrained")
for method, color, shift in (("model", MODEL, -0.12), ("PCA", BASELINE, 0.12)):
    part = known[known["method"] == method].reset_index(drop=True)
    place = part.index + shift
    ax.errorbar(
        part["f1"], place, xerr=[part["f1"] - part["low"], part["high"] - part["f1"]], fmt="o", color=color,
        ms=5, lw=1.2, label=method,
    )  # fmt: skip
ax.axvline(trivial, color="0.6", lw=0.8, ls=":")
ax.text(trivial, -0.75, "most common label", color="0.4", fontsize=8, ha="left")
ax.set_yticks(range(len(known["kinds"].unique())), known["kinds"].unique())
ax.set(xlabel=f"mean F1 of {label} in held-out cells", xlim=(0, 1.02), ylim=(len(known) / 2 - 0.5, -0.9))
ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
clean(ax)
save(figure, "labels")
display(figure)
plt.close("all")

# %% [markdown]
# ## What would make this wrong
#
# - Proteins and RNA of a doublet agree with each other: take doublets out first, or the kinds are read from each other through mixtures.
# - Depth is shared by all kinds of a cell. Ranks within a kind do not see it, but how many features are ranked does.
# - A protein that is read from RNA may only tell the cell type. Compare within a type (`cells`) before anything is said of regulation.
# - Labels that were made from one kind of features favour that kind.
# - Without donors, cells are the units: intervals then say nothing of other people.
