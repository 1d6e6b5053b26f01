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
# # Name my cells
#
# You have cells without names, and somebody else has cells with names: an atlas, or your own last study. MaxToki turns a cell into a list of numbers
# (an *embedding*); cells with like numbers are mostly of one type. So a name can be carried over: a small classifier learns from the named cells which numbers go with
# which name, and reads yours.
#
# Giving every cell a name is easy. This page is about the rest: are the names any good, which cells are of *none* of the types that the atlas knows, what do you do with a
# cell that could be one of two, and would you have needed a large model at all?
#
# It uses 700 nuclei of a human heart, half of them as the atlas and half as "mine", and the small demo model, all part of the package. It takes a minute.

# %% tags=["parameters"]
path: str = ""  # your cells, .h5ad with raw counts; "" for half of the heart nuclei
reference: str = ""  # named cells, .h5ad with raw counts; "" for the other half
label: str = "cell_type"  # column of .obs of the reference with the names
donor_key: str = "donor_id"  # column of .obs of the reference with the donor; "" for none
left_out: str = "myeloid cell"  # heart nuclei: a type that the reference lacks, to see whether it is missed
seed: int = 0  # seed of halves, folds and UMAP

# %%
import matplotlib.pyplot as plt
import numpy as np
import scanpy as sc

import maxtoki_toolkit as mt

mt.settings.progress = False

# %% [markdown]
# ## 1. Your cells and the reference
#
# What is needed: raw counts of both, and a column with names in the reference. Genes may differ; names of genes are mapped to Ensembl ids. Best is a reference with several
# donors. The nuclei here are of one, so everything that follows is about other *cells* of the same person.
#
# From the half that plays the reference we take one type out altogether. Nobody tells the classifier.

# %%
model = mt.load_model("demo")
if path:
    atlas, mine = mt.pp.read_cells(reference), mt.pp.read_cells(path)
else:
    nuclei = mt.datasets.load("heart_nuclei")
    half = np.random.default_rng(seed).random(nuclei.n_obs) < 0.5
    atlas, mine = nuclei[half & (nuclei.obs[label] != left_out).to_numpy()].copy(), nuclei[~half].copy()
for cells in (atlas, mine):
    mt.pp.map_genes(cells, model)
    mt.pp.rank_value_encode(cells, model)
    mt.tl.embed(cells, model)
several = bool(donor_key) and atlas.obs[donor_key].nunique() > 1
atlas.obs[label].value_counts()

# %% [markdown]
# ## 2. Name them

# %%
settings = {"reference": atlas, "groupby": label, "donor_key": donor_key if several else None, "rng": seed}
mt.tl.annotate(mine, model, **settings)
named = [f"annotated_{label}{end}" for end in ("", "_best", "_second", "_probability", "_sure")]
mine.obs[named].sample(6, random_state=seed)

# %% [markdown]
# - without an ending: the name, or "unknown";
# - `_best`, `_second`: the likeliest name, unknown or not, and the next;
# - `_probability`: of the likeliest. It is calibrated: among held-out cells called with 0.8, four in five were right;
# - `_sure`: the nearest kind of cell that it is sure of, of which more in section 5.
#
# ## 3. Are the names any good?
#
# Look here before you look at your cells. The reference was cut into five parts (by donor, where there are several), and each part was named by the others. So its cells are *held out*: their true
# name is known, and the classifier has not seen it.

# %%
columns = [
    "predictor",
    "macro_f1",
    "macro_f1_low",
    "macro_f1_high",
    "accuracy",
    "ontology_distance",
    "difference",
]
scores = mt.get.table(mine, "annotate")
scores[[*columns, "difference_low", "difference_high"]].round(2)

# %% [markdown]
# - `macro_f1`: the mean over types of how well each is found, so that a rare type counts as much as a common one. With 0.95 most types are; "permuted" is what names dealt out at random reach, "majority" what
#   you get by calling everything the commonest type.
# - `ontology_distance`: how many steps wrong names are from the true one in the Cell Ontology. Taking an endothelial cell for another endothelial cell is a smaller mistake than taking it for a lymphocyte.
# - `difference`: the first row less this one. **If it is negative beside "PCA logistic", you do not need the model for this**: logistic regression on principal components does better, as it does here, with
#   a demo model that is as small as models come. Do not skip this line because the names look plausible.

# %%
figure = mt.pl.annotate(mine)

# %% [markdown]
# Left: which types are taken for which, in held-out cells. Types with a handful of cells are the ones that are missed. Right: points on the diagonal mean that probabilities can be believed.
#
# ## 4. Cells that the reference does not know
#
# "unknown" means: farther from all types, or more in doubt, than all but one in twenty of the held-out cells. By this rule one in twenty cells of known types is called unknown as well. Here we know who is who:

# %%
is_new = ~mine.obs[label].isin(atlas.obs[label]) if label in mine.obs else None
if is_new is not None:
    unknown = mine.obs[f"annotated_{label}"] == "unknown"
    print(
        f"called unknown: {unknown[is_new].mean():.0%} of the {is_new.sum()} cells of no known type, ", end=""
    )
    print(f"{unknown[~is_new].mean():.0%} of the {(~is_new).sum()} others")

# %%
sc.pp.neighbors(mine, use_rep="X_maxtoki", random_state=seed)
sc.tl.umap(mine, random_state=seed)
colors = [*([label] if label in mine.obs else []), f"annotated_{label}", f"annotated_{label}_probability"]
known = sorted({*mine.obs[f"annotated_{label}_best"], *(mine.obs[label] if label in mine.obs else [])})
palette = {name: plt.get_cmap("tab20")(i % 20) for i, name in enumerate(known)} | {"unknown": "lightgrey"}
figure, axes = plt.subplots(1, len(colors), figsize=(5.4 * len(colors), 3.8), layout="constrained")
for ax, color in zip(axes, colors, strict=True):
    look = {} if color.endswith("probability") else {"palette": palette}
    sc.pl.umap(
        mine,
        color=color,
        ax=ax,
        show=False,
        frameon=False,
        legend_fontsize=7,
        cmap="viridis",
        size=34,
        **look,
    )
plt.show()

# %% [markdown]
# Look where the unknown cells lie. A tight group of them is a type that the reference lacks, or a state (cycling, stressed). Scattered ones at the rims are cells of poor quality, doublets
# ([tutorial 3](03_find_doublets.ipynb)), or the one in twenty.
#
# ## 5. A cell that could be one of two
#
# If a cell is either a CD4 or a CD8 T cell, "T cell" is a better answer than a coin that was tossed. `_sure` goes up the Cell Ontology until the probabilities of all types of that kind together are high
# enough: so high that of the held-out cells only a share `alpha` would get a kind that they are not of. That is one in twenty by default, and these nuclei need no stepping up for that. Asked for one in a
# hundred, some do. Types of the heart have little in common but that they are cells, so that what is left is "unknown"; blood, with its many kinds of lymphocytes, has steps between.

# %%
mt.tl.annotate(mine, model, alpha=0.01, key_added="strict", **settings)
in_doubt = mine.obs[[f"strict_{label}_best", f"strict_{label}_sure"]].astype(str)
in_doubt = in_doubt[in_doubt.iloc[:, 0] != in_doubt.iloc[:, 1]]
print(f"{len(in_doubt)} of {mine.n_obs} cells are not sure of their likeliest type")
in_doubt.value_counts().rename("n_cells").reset_index().head(6)

# %% [markdown]
# Names have to mean something in the ontology for that. `mt.pp.harmonize_cell_types(atlas, ...)` tells you what yours mean, and takes corrections.
#
# ## 6. Large references, and a model that learns
#
# From the command line, for files on disk:
#
# ```bash
# maxtoki annotate my_cells.h5ad --reference atlas.h5ad --groupby cell_type --groupby tissue
# ```
#
# With thousands of named cells and a few minutes (better a GPU) the model itself can learn, and you keep the classifier:
#
# ```python
# classifier = mt.train.classify(atlas, model, "runs/types", groupby=["cell_type", "tissue"])
# mt.tl.annotate(mine, model, classifier="runs/types")
# ```
#
# Its table has the untrained model beside it. If they are alike, it was not worth the minutes. The notebook
# [cellxpert_annotation](../notebooks/cellxpert_annotation.ipynb) does that on donors that were never seen.
#
# ## What to take home
#
# - Read the table of section 3 first, the row "PCA logistic" in it most of all.
# - Held-out cells are of the same study. Your cells are of another laboratory: take the scores for an upper bound, and look at marker genes of what was named.
# - Do not make "unknown" go away. It is what you would have published as something else.
# - Names are as good as the reference: its mistakes are yours now.
