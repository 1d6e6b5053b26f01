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
# # CellxPert, cell types: names for cells of donors that were never seen
#
# Cells of some donors are named by what other donors taught: from a model's embedding by a linear probe and by nearest neighbours, and by a model
# that was fine-tuned for it (LoRA). How often is that right, how far off when wrong, do the probabilities mean what they say, and are cells found that are of no
# known type? Beside all of it stand logistic regression on the principal components of the counts, the commonest label, and permuted calls. A cell in doubt gets
# the nearest kind of cell that it is sure of.
#
# Without a `path` the cells are simulated (`mt.datasets.aging_atlas`): donors that the demo model has not seen. One of the ten types is
# taken out of the reference and has to be found.
#
# CellxPert shows cell types by 154 overlapping labels (Fig. 8), tissues (Fig. 9) and a UMAP after LoRA (Fig. 2, PBMC68K among the data), with class-weighted cross
# entropy (captions and an appendix, certain); no accuracy is known to us, nor the rank or the targets of LoRA. Tahoe-x1 reported 0.93 on five tissues of Tabula
# Sapiens 2 by logistic regression on embeddings (from a summary; its code reports macro F1). `data_manifests/pbmc68k.yaml` and `tabula_sapiens_2.yaml` say what
# can be had.

# %% tags=["parameters"]
path: str = ""  # .h5ad with raw counts and labels; "" for the simulated atlas
layer: str = ""  # layer with the raw counts; "" for .X
model: str = "demo"  # "demo", a folder or a hub id; any model that reads cells
groupby: list = [
    "cell_type"
]  # columns of .obs with the labels: cell type, tissue, disease; figures show the first
donor_key: str = "donor_id"  # column of .obs with the donor
cells: dict = {}  # cells to use, by columns of .obs; {} for all
unseen: list = [
    "monocyte"
]  # labels of the first column that the reference lacks and that are to be found; [] for none
held_out: float = 0.3  # share of the donors whose cells are named
n_neighbors: int = 15  # neighbours of a cell, for "knn"
max_steps: int = 150  # steps of fine-tuning; 0 for none
batch_size: int = 16  # cells a step
learning_rate: float = 0.003  # of fine-tuning; a larger model wants a smaller one
n_simulated: int = 1000  # simulated cells
n_donors: int = 30  # simulated donors
seed: int = 11  # seed of donors, folds, training and UMAP
output: str = ""  # folder for figures (PNG, PDF) and tables (CSV); "" for none

# %%
import tempfile

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc
from IPython.display import display
from sklearn.linear_model import LogisticRegression

import maxtoki_toolkit as mt
from maxtoki_toolkit.tl._rank_features import rank_features

mt.settings.progress = False
save = mt.reports.saver(output)


# %% [markdown]
# ## Donors that teach, donors that are named

# %%
maxtoki = mt.load_model(model)
adata = (
    mt.reports.read_cells(path, layer=layer)
    if path
    else mt.datasets.aging_atlas(n_simulated, n_donors, seed=seed)
)
adata = adata[mt.reports.cells_with(adata, cells)].copy()
mt.pp.map_genes(adata, maxtoki)
mt.pp.rank_value_encode(adata, maxtoki, layer=layer or None)
mt.tl.embed(adata, maxtoki)
label = groupby[0]
donors = np.random.default_rng(seed).permutation(adata.obs[donor_key].astype(str).unique())
named = adata.obs[donor_key].astype(str).isin(donors[: max(round(held_out * len(donors)), 1)]).to_numpy()
known = ~adata.obs[label].astype(str).isin(unseen).to_numpy()
reference, mine = adata[~named & known].copy(), adata[named].copy()
print(
    f"{reference.n_obs:,} cells of {reference.obs[donor_key].nunique()} donors teach {reference.obs[label].nunique()} labels; "
    f"{mine.n_obs:,} cells of {mine.obs[donor_key].nunique()} other donors are named, {(~known & named).sum()} of them of no known label"
)

# %% [markdown]
# ## What the reference says of itself
#
# Each donor of the reference is named by what the other folds of donors taught. Left: which labels are taken for which. Right: calls of a probability, and how often
# they are right.

# %% tags=["answer"]
of = {"reference": reference, "groupby": groupby, "donor_key": donor_key, "rng": seed}
mt.tl.annotate(mine, maxtoki, **of)
mt.tl.annotate(mine, maxtoki, method="knn", n_neighbors=n_neighbors, key_added="knn", **of)
figure = mt.pl.annotate(mine)
save(figure, "probe")
display(figure)
plt.close(figure)

# %%
columns = [
    "column",
    "predictor",
    "macro_f1",
    "macro_f1_low",
    "macro_f1_high",
    "ontology_distance",
    "difference",
]
columns += ["difference_low", "difference_high", "calibration_error", "false_alarms", "q_value", "n_units"]
scores = mt.get.table(mine, "annotate")
neighbors = mt.get.table(mine, "knn")
scores = pd.concat([scores, neighbors[neighbors["predictor"] == "knn"]]).sort_values("column", kind="stable")
save(scores, "scores")
scores[columns].round(3)

# %% [markdown]
# `difference` is the macro F1 of the first row less that of the row, paired over donors (that of "knn" is of itself). Where it is negative, simpler is better.
#
# ## Fine-tuned
#
# Adapters are trained beside all matrices of the model, and heads that begin as the probe. A fifth of the donors of the reference is held out and judges; all rows
# of the table are of these donors.

# %% tags=["answer"]
tuned = None
if max_steps:
    recipe = mt.train.ClassifierRecipe.of(
        max_steps=max_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        eval_every=max_steps,
        save_every=max_steps,
        seed=seed,
    )
    with tempfile.TemporaryDirectory() as folder:
        tuned = mt.train.classify(
            reference, maxtoki, folder, groupby=groupby, donor_key=donor_key, recipe=recipe
        )
    mt.tl.annotate(mine, maxtoki, classifier=tuned, key_added="tuned")
    figure = mt.pl.annotate(mine, key="tuned")
    save(figure, "fine_tuned")
    display(figure)
    plt.close(figure)

# %%
if tuned is not None:
    save(tuned.tables["scores"], "scores_fine_tuned")
    display(tuned.tables["scores"][columns].round(3))

# %% [markdown]
# ## The donors that no one has seen
#
# Of cells of known labels: right, called unknown by mistake; of cells of no known label: found.
# "what the model reads" is a logistic regression on the levels of the genes that the model reads: what it does better than the probe is in the ranking, and lost on the way to the embedding.
# `backed_off` is the share of the former whose nearest kind that they are sure of is wider than the likeliest label; the table below says which.

# %% tags=["answer"]
is_known = mine.obs[label].astype(str).isin(reference.obs[label].astype(str)).to_numpy()
truth = mine.obs[label].astype(str).to_numpy()
of_method = {"probe": "annotated", "knn": "knn", "fine-tuned": "tuned"}
rows = []
for method, prefix in of_method.items():
    if f"{prefix}_{label}" not in mine.obs:
        continue
    best, called = (mine.obs[f"{prefix}_{label}{end}"].astype(str).to_numpy() for end in ("_best", ""))
    sure = mine.obs[f"{prefix}_{label}_sure"].astype(str).to_numpy()
    rows.append(
        {
            "method": method,
            "right": (best == truth)[is_known].mean(),
            "false_alarms": (called == "unknown")[is_known].mean(),
            "unknown_found": (called == "unknown")[~is_known].mean() if (~is_known).any() else np.nan,
            "backed_off": (sure != best)[is_known].mean(),
        }
    )
levels = LogisticRegression(C=1.0, max_iter=500).fit(
    rank_features(reference, maxtoki), reference.obs[label].astype(str)
)
rows.append(
    {
        "method": "what the model reads",
        "right": (levels.predict(rank_features(mine, maxtoki)) == truth)[is_known].mean(),
    }
)
commonest = reference.obs[label].astype(str).value_counts().index[0]
rows.append({"method": "majority", "right": (truth == commonest)[is_known].mean()})
unseen_donors = pd.DataFrame(rows)
save(unseen_donors, "unseen_donors")
unseen_donors.round(3)

# %%
doubt = mine.obs[is_known][[label, f"annotated_{label}_best", f"annotated_{label}_sure"]].astype(str)
doubt = doubt[doubt.iloc[:, 1] != doubt.iloc[:, 2]]
doubt.value_counts().rename("n_cells").reset_index().head(8)

# %% [markdown]
# ## Before and after
#
# The same cells in the embedding of the model as it was and as it was fine-tuned, and in principal components. A UMAP
# shows neighbours and no more; beside each stands the share of the 15 nearest neighbours of a cell that have its label, and chance. None of these donors was trained on.


# %% tags=["answer"]
def neighbors_alike(X):
    """Share of the nearest neighbours of a cell that have its label."""
    from sklearn.neighbors import NearestNeighbors

    found = NearestNeighbors(n_neighbors=min(15, len(X) - 1)).fit(X).kneighbors(return_distance=False)
    return (truth[found] == truth[:, None]).mean()


counts = mine.copy()
sc.pp.normalize_total(counts, target_sum=1e4)
sc.pp.log1p(counts)
sc.pp.pca(counts, n_comps=min(50, counts.n_obs - 1, counts.n_vars - 1), random_state=seed)
shown = {"before": mine.obsm["X_maxtoki"]}
if tuned is not None:
    shown["fine-tuned"] = mine.obsm["X_tuned"]
shown["PCA"] = counts.obsm["X_pca"]
share = mine.obs[label].astype(str).value_counts(normalize=True)
figure, axes = plt.subplots(1, len(shown), figsize=(3.9 * len(shown) + 1.6, 3.7), layout="constrained")
for ax, (name, X) in zip(axes, shown.items(), strict=True):
    drawn = sc.AnnData(obs=mine.obs[[label]].astype(str).astype("category"), obsm={"X": np.asarray(X)})
    sc.pp.neighbors(drawn, use_rep="X", random_state=seed)
    sc.tl.umap(drawn, random_state=seed)
    last = name == list(shown)[-1]
    sc.pl.umap(
        drawn,
        color=label,
        ax=ax,
        show=False,
        frameon=False,
        size=26,
        legend_loc="right margin" if last else None,
    )
    ax.set_title(
        f"{name}\n{neighbors_alike(X):.0%} of neighbours alike (chance {(share**2).sum():.0%})", fontsize=9
    )
save(figure, "umap")
display(figure)
plt.close(figure)

# %% [markdown]
# ## What would make this wrong
#
# **Donors that are in both.** A cell of a donor that was trained on is named too well. Where a donor has several samples, name the donor and not the sample.
#
# **Another study.** Donors of one study are more alike than studies are: scores of held-out donors are an upper bound for other laboratories.
#
# **Labels that came from expression.** Most labels are clusters of the same counts, so that a regression on principal components is close to what made
# them. Here the simulation made types with markers of their own, which it finds without error.
#
# **A model that has seen little.** The demo model is tiny and was trained on few cells: what it loses here a larger one need not lose.
#
# **Too few steps, or too small ones.** Fine-tuning begins at the probe. With a tenth of this learning rate this model hardly leaves it; if "fine-tuned" and "probe" are alike, look
# at the losses first (`log.jsonl` in the folder of the run).
#
# **Unknown is a rule.** It is set so that few cells of known labels fall under it. A new type that lies between known ones is not found by distance or doubt.
#
# **A kind that a cell is sure of** is right for cells of the reference's labels. A cell of no known label may get any.
