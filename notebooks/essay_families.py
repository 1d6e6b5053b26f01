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
# # "Through a Glass Darkly": families of features
#
# Features that are active together may be parts of one thing. This notebook groups them twice, by the genes and by the cells in which they are active together;
# says which families come back in other samples of the cells, beside families of independent features; and whether cell types agree on them.
#
# Without a `path` the cells are nuclei of a human heart that ship with the package, all of one donor: blocks of cells are resampled, which says
# nothing of other donors.
#
# A. Green's essay (Markov Bio, 2024) shows hierarchies of features by co-activation at genes and in cells, by cell type. Its measure,
# thresholds and support are not known to us.

# %% tags=["parameters"]
path: str = ""  # .h5ad with raw counts; "" for the heart nuclei of the package
layer: str = ""  # layer with the raw counts; "" for .X
model: str = "demo"  # "demo", a folder or a hub id; any model that reads cells
sae: str = "demo"  # "demo", "demo-early", or the folder of an autoencoder of this model
groupby: list = ["cell_type"]  # columns of .obs, for families of each group; [] for none
donor_key: str = "donor_id"  # column of .obs with the donor; "" for none
cells: dict = {}  # cells to use, by columns of .obs; {} for all
min_cells: int = 70  # fewest cells of a group; smaller groups are only in "all"
method: str = "leiden"  # "leiden" or "hierarchical"
resolution: float = 1.0  # of Leiden: the higher, the more families
min_phi: float = 0.1  # phi that a pair must have to be an edge
n_bootstrap: int = 20  # samples in which families are found again
n_cells: int = 700  # cells to read, at most
seed: int = 0  # seed of cells, samples and null
output: str = ""  # folder for figures (PNG, PDF) and tables (CSV); "" for none

# %%
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import display

import maxtoki_toolkit as mt
from maxtoki_toolkit.pl._style import BASELINE, MODEL, NULL, clean

mt.settings.progress = False
save = mt.reports.saver(output)


def find(on, cells, groupby=None):
    """Families of these cells, in `.uns` under the name of what they are on."""
    with warnings.catch_warnings():
        # Of cells without donors, which is said above.
        warnings.simplefilter("ignore")
        mt.tl.feature_families(
            cells,
            maxtoki,
            coder,
            on=on,
            groupby=groupby,
            donor_key=donors,
            method=method,
            resolution=resolution,
            min_phi=min_phi,
            n_bootstrap=n_bootstrap,
            rng=seed,
            key_added=on,
        )


# %% [markdown]
# ## Cells

# %%
maxtoki = mt.load_model(model)
coder = mt.load_sae(sae)
adata = mt.reports.read_cells(path, layer=layer) if path else mt.datasets.load("heart_nuclei")
adata = adata[mt.reports.cells_with(adata, cells)].copy()
if adata.n_obs > n_cells:
    drawn = np.random.default_rng(seed).choice(adata.n_obs, n_cells, replace=False)
    adata = adata[np.sort(drawn)].copy()
mt.pp.map_genes(adata, maxtoki)
mt.pp.rank_value_encode(adata, maxtoki, layer=layer or None)
donors = donor_key if donor_key and adata.obs[donor_key].nunique() > 1 else None
print(coder)
print(f"{adata.n_obs} cells of {adata.obs[donor_key].nunique() if donor_key else 'unknown'} donor(s)")

# %% [markdown]
# ## Families by genes
#
# Features are alike if they are active at the same gene of the same cell, beyond being active in the same cells and at like ranks. Left, the tree: joints lie at
# the mean phi (correlation of the activities) between two branches. Middle, support: the mean overlap of a family with the one most like it in each bootstrap
# sample, with what 95% of the samples have; grey, below which 95% of the families of independent features lie. Right, size and genes.

# %% tags=["answer"]
find("genes", adata)
figure = mt.pl.feature_families(adata, key="genes")
save(figure, "families_genes")
display(figure)

# %% [markdown]
# ## Families by cells
#
# Now features are alike if they are active in the same cells. Of cells of many types
# such families may be no more than the types.

# %% tags=["answer"]
find("cells", adata)
figure = mt.pl.feature_families(adata, key="cells")
save(figure, "families_cells")
display(figure)

# %%
columns = [
    "family",
    "size",
    "phi",
    "mean_rank",
    "support",
    "support_low",
    "support_high",
    "null_support_high",
]
families = {}
for on in ("genes", "cells"):
    families[on] = mt.get.table(adata, on)
    for name in ("families", "features", "edges"):
        save(mt.get.table(adata, on, name), f"{name}_{on}")
pd.concat({on: table[[*columns, "supported", "top_genes"]] for on, table in families.items()}).round(2)

# %% [markdown]
# ## How strong, and how stable?
#
# **Left**, phi of the pairs that are edges. Families are of weak pairs, most of them little above `min_phi`. **Right**, `stability` of each feature in a family: the share of its
# family with which it is in one family in a sample.

# %%
figure, axes = plt.subplots(1, 2, figsize=(7.6, 2.9), layout="constrained")
for on, color in (("genes", MODEL), ("cells", BASELINE)):
    edges = mt.get.table(adata, on, "edges")
    of = mt.get.table(adata, on, "features").query("family >= 0")
    style = {"histtype": "step", "lw": 1.5, "color": color}
    axes[0].hist(edges["phi"], bins=np.linspace(0, 1, 51), label=f"by {on}: {len(edges):,} edges", **style)
    axes[1].hist(of["stability"], bins=np.linspace(0, 1, 26), label=f"by {on}: {len(of)} features", **style)
axes[0].set(xlabel="phi of an edge (correlation)", ylabel="number of edges (n)", yscale="log")
axes[1].set(xlabel="stability of a feature (share)", ylabel="number of features (n)")
for ax in axes:
    ax.legend(frameon=False, fontsize=8, loc="upper right" if ax is axes[0] else "upper left")
    clean(ax)
save(figure, "families_strength")

# %%
both = mt.get.table(adata, "genes", "features")[["feature", "family"]].merge(
    mt.get.table(adata, "cells", "features")[["feature", "family"]],
    on="feature",
    suffixes=("_genes", "_cells"),
)
both = both[(both["family_genes"] >= 0) & (both["family_cells"] >= 0)]
parents = {on: (mt.get.table(adata, on, "features")["parent"] >= 0).sum() for on in ("genes", "cells")}
print(
    "\n".join(
        f"By {on}: {len(table)} families of {table['size'].sum()} features, {table['supported'].sum()} supported (support {table['support'].min():.2f} to "
        f"{table['support'].max():.2f}; independent features stay below {table['null_support_high'].max():.2f}). Mean phi within families "
        f"{table['phi'].min():.2f} to {table['phi'].max():.2f}. {parents[on]} features have a broader one as parent."
        for on, table in families.items()
    )
)
pd.crosstab(both["family_genes"], both["family_cells"])

# %% [markdown]
# The table counts features by their family by genes (rows) and by cells (columns).
#
# ## Do cell types agree?
#
# Families by genes once more, in each group of at least `min_cells` cells. The adjusted Rand index of two groups is 1 where they have the same families, 0 by
# chance; grey: the mean, and below which 95% lie, if features are permuted.

# %% tags=["answer"]
label = adata.obs[groupby].astype(str).agg(" / ".join, axis=1) if groupby else pd.Series(dtype=str)
sizes = label.value_counts()
compared = sizes.index[sizes >= min_cells]
if len(compared) < 2:
    print(f"Fewer than two groups have {min_cells} cells: nothing to compare.")
else:
    adata.obs["group_of_cells"] = pd.Categorical(label)
    large = adata[label.isin(compared)].copy()
    find("genes", large, groupby="group_of_cells")
    agreement = mt.get.table(large, "genes", "agreement").sort_values("rand", ignore_index=True)
    save(agreement, "families_agreement")
    place = np.arange(len(agreement))
    figure, ax = plt.subplots(figsize=(6.4, 1.3 + 0.32 * len(agreement)), layout="constrained")
    ax.hlines(place, agreement["rand_null"], agreement["rand_null_high"], color=NULL, lw=6, alpha=0.6)
    faces = np.where(agreement["q_value"] < 0.05, MODEL, "white")
    ax.scatter(agreement["rand"], place, s=30, c=faces, edgecolor=MODEL, zorder=3)
    pairs = agreement["group_1"].astype(str) + " and " + agreement["group_2"].astype(str)
    ax.set_yticks(place, pairs, fontsize=8)
    ax.set(
        xlabel="agreement of families (adjusted Rand index, share)",
        xlim=(min(-0.05, agreement["rand"].min() - 0.05), 1),
        ylim=(-0.7, len(agreement) - 0.3),
    )
    ax.axvline(0, color="black", lw=0.8)
    clean(ax)
    save(figure, "families_agreement")

# %% tags=["answer"]
if len(compared) > 1:
    groups = mt.get.table(large, "genes").groupby("group", sort=False)
    counted = groups.agg(
        families=("family", "size"), supported=("supported", "sum"), features=("size", "sum")
    )
    counted.insert(0, "cells", [sizes.get(group, large.n_obs) for group in counted.index])
    print(counted.to_string(), end="\n\n")
    print(
        agreement[
            ["group_1", "group_2", "n_features", "rand", "rand_null_high", "nmi", "nmi_null_high", "q_value"]
        ]
        .round(3)
        .to_string(index=False)
    )

# %% [markdown]
# Agreement needs features that are in families of both groups, `n_features`. Where few are, or groups are small, no agreement is not the same as
# different families. With the defaults the three largest cell types agree far beyond chance. That is less than it seems: all groups share one model and one autoencoder, and features that point alike in the states are active together in any cells.
#
# ## What would make this wrong
#
# **Ranks.** Features of the first ranks are active together because they are of the first ranks. Expectations are within strata of rank; a family whose `mean_rank` is
# extreme is still to be looked at.
#
# **Support without a null.** Any clustering comes back to some extent. Here the null has as many edges, of independent features.
#
# **Directions that are alike.** Two features with a large cosine are active together by construction, whatever they mean. The null does not have that.
#
# **Cells of one donor.** Blocks of cells of one donor are alike; support over them is not support over donors.
#
# **Cell types.** Families by cells depend on the cell types of the sample: other proportions, other families. Use `cells` for one type, or families by genes.
#
# **Names.** A family's genes are those at which more of its features are active than elsewhere. That they are a pathway would have to be tested.
