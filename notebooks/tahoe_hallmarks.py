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
# # Tahoe-x1, gene sets: do gene embeddings know what genes do together?
#
# A model that reads genes has a vector for each of them. If genes of a pathway have like vectors, a simple classifier finds the other members
# of the pathway from some of them. This notebook does that for any gene sets, and puts beside it what needs no model: how high genes are
# expressed, in how many cells, their loadings on the principal components of the cells; a model of the same shape with random weights; and
# shuffled labels.
#
# The 50 hallmark sets (MSigDB) are read by path: give `gene_sets`, the .gmt file (`data_manifests/hallmarks.yaml`). Without it the set is that of the
# human transcription factors, which ships. The cells are nuclei of a human heart that ship as well; genes are the units.
#
# Tahoe-x1 reported a micro average precision of 0.31 for the 50 hallmark sets (from a summary), by a perceptron chosen among 24 settings, on 20% of the
# genes, three seeds (certain, from its code). Which genes were in and what the other models reached is not known to us. The same protocol with the
# demo model is in `benchmarks/gene_tasks.py`.

# %% tags=["parameters"]
path: str = ""  # .h5ad with raw counts; "" for the heart nuclei of the package
layer: str = ""  # layer with the raw counts; "" for .X
model: str = "demo"  # "demo", a folder or a hub id; any model that reads cells
gene_sets: str = "TF"  # a .gmt file of gene sets; "TF" for the human transcription factors
context: str = "table"  # "cells", "alone" or "table": what the genes are read in
genes: list = ["TTN", "VWF"]  # genes whose neighbours are shown
n_cells: int = 150  # cells to read, at most
n_genes: int = 1200  # genes to predict, at most: as many without any set as with one, drawn
n_folds: int = 5  # folds over families of genes
n_permutations: int = 19  # shuffles of the labels
seed: int = 0  # seed of draws, folds and shuffles
output: str = ""  # folder for figures (PNG, PDF) and tables (CSV); "" for none

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import display

import maxtoki_toolkit as mt
from maxtoki_toolkit.tl._gene_labels import label_matrix

mt.settings.progress = False
save = mt.reports.saver(output)


# %% [markdown]
# ## Cells and labels

# %%
maxtoki = mt.load_model(model)
adata = mt.reports.read_cells(path, layer=layer) if path else mt.datasets.load("heart_nuclei")
random = np.random.default_rng(seed)
if adata.n_obs > n_cells:
    adata = adata[np.sort(random.choice(adata.n_obs, n_cells, replace=False))].copy()
mt.pp.map_genes(adata, maxtoki)
mt.pp.rank_value_encode(adata, maxtoki, layer=layer or None)
mt.tl.embed_genes(adata, maxtoki, context=context, whole_cells=context == "cells")
matrix, names, missing = label_matrix(adata, gene_sets)
known = np.isfinite(adata.varm["maxtoki"]).all(axis=1)
some = known & (matrix > 0).any(axis=1)
drawn = [random.permutation(np.flatnonzero(rows))[: n_genes // 2] for rows in (some, known & ~some)]
rows = np.sort(np.concatenate(drawn))
labels = pd.DataFrame(matrix[rows], columns=names)
labels = labels.loc[:, labels.sum() >= 10].assign(gene=adata.var_names[rows])
print(
    f"{len(names)} sets, {some.sum():,} of their genes have an embedding ({missing:,} are not in the cells); "
    f"{len(rows):,} genes are predicted, {labels.shape[1] - 1} sets have 10 of them or more"
)

# %% [markdown]
# ## Found again, or not
#
# Each gene is predicted by a logistic regression that saw neither it nor its paralogues. Bars are 95% intervals over families of genes;
# the grey band is where shuffled labels lie.

# %% tags=["answer"]
mt.tl.gene_task(adata, maxtoki, labels=labels, n_folds=n_folds, n_permutations=n_permutations, rng=seed)
figure = mt.pl.gene_task(adata)
save(figure, "gene_sets")
display(figure)
plt.close(figure)

# %%
scores = mt.get.table(adata, "gene_task")
save(scores, "scores")
shown = scores[scores["gene_set"] == scores["gene_set"].iloc[-1]].set_index("predictor")
shown[
    ["n_genes", "n_positive", "auroc", "auprc", "prevalence", "difference", "null_auroc_high", "p_value"]
].round(3)

# %% [markdown]
# With the defaults nothing is found: transcription factors are of few large families, and none of the rows knows more than its neighbours in the figure. That
# is an answer too, and what a null is for.
#
# `difference` is the AUROC of the embedding less that of the row: where it is negative, a simpler measurement does better. "All baselines and
# MaxToki" above "all baselines" would say that the embedding knows something that they do not.
#
# ## Set by set

# %% tags=["answer"]
by_set = scores.pivot_table(index="gene_set", columns="predictor", values="auroc", sort=False)
by_set.sort_values("MaxToki", ascending=False).round(2).head(15)

# %% [markdown]
# ## Neighbours
#
# The genes nearest to some genes, by the cosine of the embeddings; `z` compares that with genes that are like the first in rank, detection and expression.
# `coexpression` is the same cosine of loadings.

# %%
asked = [gene for gene in genes if gene in set(adata.var.get("symbol", adata.var_names).astype(str))]
if asked:
    mt.tl.gene_neighbors(adata, genes=asked, n_neighbors=8, gene_sets=gene_sets, n_permutations=199, rng=seed)
    neighbors = mt.get.table(adata, "gene_neighbors")
    save(neighbors, "neighbors")
    display(neighbors[["symbol", "neighbor_symbol", "cosine", "z", "coexpression"]].round(2))
    display(mt.get.table(adata, "gene_neighbors", "gene_sets").drop(columns="gene").head(10).round(3))

# %% [markdown]
# ## What would make this wrong
#
# **Expression.** Genes of a set are often expressed alike. An embedding that only knew how high genes rank would do well; its row stands beside those of expression
# and detection.
#
# **Paralogues.** Members of one family have like embeddings and the same label. Families, by symbol and by mouse orthologue, are never in training and
# test at once; paralogues with other names, of long ago, are missed.
#
# **Which genes are without a label.** They are drawn from all that the model knows. Non-coding genes make any set of proteins easy: with a table that has
# protein-coding genes alone, numbers are lower.
#
# **The vocabulary.** The demo model knows the genes that its training cells express.
