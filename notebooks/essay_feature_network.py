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
# # "Through a Glass Darkly": a network of features, and what drives it
#
# Features of an early block are scaled a little, one at a time, and features of a later block are read: each pair gives a directed, signed
# edge. PageRank on the reversed edges then ranks features by how much starts from them, the *driver features*. This notebook does both, and asks of
# each number whether a random direction of the same length would not have done as well.
#
# Without a `path` the cells are nuclei of a human heart that ship with the package, all of one donor. Edges are then tested over
# blocks of cells, which says nothing of other donors.
#
# A. Green's essay (Markov Bio, 2024) computes such a network in a model of 300 million parameters, with two passes a feature (about 32,000 for a cell,
# more than 15 minutes on an RTX 4090), and ranks features by "a variant of PageRank". Its directions, damping, null and thresholds are not known to us.

# %% tags=["parameters"]
path: str = ""  # .h5ad with raw counts; "" for the heart nuclei of the package
layer: str = ""  # layer with the raw counts; "" for .X
model: str = "demo"  # "demo", a folder or a hub id; any model that reads cells
sae: str = "demo-early"  # autoencoder of an earlier block: "demo-early", or a folder
later: str = "demo"  # autoencoder of a later block: "demo", or a folder
cells: dict = {}  # cells to use, by columns of .obs; {} for all
donor_key: str = "donor_id"  # column of .obs with the donor; "" for none
features: list = []  # numbers of the features that are scaled; [] for those with most activation
n_features: int = 60  # how many, if none are named
n_cells: int = 40  # cells to read, at most
n_named: int = 100  # cells in which the genes of features are looked up
step: float = 0.1  # by how much of itself a feature is scaled, up and down
alpha: float = 0.05  # edges up to this q value are kept
damping: float = 0.85  # of PageRank
n_shown: int = 15  # sources and targets in the picture of the network
seed: int = 0  # seed of cells and random directions
output: str = ""  # folder for figures (PNG, PDF) and tables (CSV); "" for none

# %%
import warnings

import matplotlib.pyplot as plt
import numpy as np

import maxtoki_toolkit as mt
from maxtoki_toolkit.pl._style import MODEL, NULL, clean

mt.settings.progress = False
save = mt.reports.saver(output)


# %% [markdown]
# ## Cells and edges

# %%
maxtoki = mt.load_model(model)
early, late = mt.load_sae(sae), mt.load_sae(later)
adata = mt.reports.read_cells(path, layer=layer) if path else mt.datasets.load("heart_nuclei")
adata = adata[mt.reports.cells_with(adata, cells)].copy()
most = max(n_cells, n_named)
if adata.n_obs > most:
    drawn = np.random.default_rng(seed).choice(adata.n_obs, most, replace=False)
    adata = adata[np.sort(drawn)].copy()
mt.pp.map_genes(adata, maxtoki)
mt.pp.rank_value_encode(adata, maxtoki, layer=layer or None)
donors = donor_key if donor_key and adata.obs[donor_key].nunique() > 1 else None
with warnings.catch_warnings():
    # Of cells without donors, which is said above.
    warnings.simplefilter("ignore")
    mt.tl.feature_network(
        adata,
        maxtoki,
        early,
        later=late,
        features=features or None,
        n_features=n_features,
        step=step,
        alpha=alpha,
        n_cells=n_cells,
        donor_key=donors,
        rng=seed,
    )
edges = mt.get.table(adata, "feature_network")
null = mt.get.table(adata, "feature_network", "null_edges")  # of four directions a source
sources = mt.get.table(adata, "feature_network", "sources")
targets = mt.get.table(adata, "feature_network", "targets")
said = edges.attrs
for name, part in {"edges": edges, "null_edges": null, "sources": sources, "targets": targets}.items():
    save(part, f"network_{name}")
print(early, late, sep="\n")
print(
    f"{said['n_cells']} cells ({said['n_units']} of: {said['donors']}), {len(sources)} sources, {said['n_tested']:,} pairs tested."
)

# %% [markdown]
# ## Is an edge more than a push?
#
# **Left**, the sizes of the edges that were kept (q up to `alpha`), the largest first; grey: those of random directions, one in place of each source, as long at
# the same genes, kept by the same rule. Random directions make edges, too, and nearly as many: q says that the effect is the same in all units, not that it is
# special. **Right**, each source by the sum of its effects beside that of its four random directions, on average. On the line, it does no more than a push.

# %% tags=["answer"]
figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
once = null[null["direction"] == 0]
for part, color, label in ((once, NULL, "random directions"), (edges, MODEL, "features")):
    size = np.sort(part["effect"].abs())[::-1]
    axes[0].plot(np.arange(1, len(size) + 1), size, color=color, label=f"{label}: {len(size):,} edges")
axes[0].set(
    xscale="log", yscale="log", xlabel="rank of the edge", ylabel="|effect| (activation of the target)"
)
axes[0].legend(frameon=False, fontsize=8)
ends = [
    sources[["strength", "null_strength"]].to_numpy().min(),
    sources[["strength", "null_strength"]].to_numpy().max(),
]
axes[1].plot(ends, ends, color=NULL, lw=1)
axes[1].scatter(sources["null_strength"], sources["strength"], s=16, color=MODEL, alpha=0.8)
axes[1].set(
    xlabel="strength of random directions (mean, activation)", ylabel="strength of the source (activation)"
)
for ax in axes:
    clean(ax)
save(figure, "network_edges")

# %% tags=["answer"]
ratio = sources["strength"] / sources["null_strength"]
print(
    f"{len(edges):,} edges of features, {len(once):,} of random directions, one in place of each. Median |effect| {edges['effect'].abs().median():.3f} against "
    f"{null['effect'].abs().median():.3f}; largest {edges['effect'].abs().max():.2f} against {null['effect'].abs().max():.2f}.\n"
    f"{(edges['null_share'] < 0.05).sum():,} edges ({(edges['null_share'] < 0.05).mean():.0%}) are larger than 95% of the effects of random directions "
    f"of their length.\n"
    f"Sources are {ratio.median():.1f} times as strong as random directions (median; {(ratio > 1).mean():.0%} of them stronger).\n"
    f"{(edges['effect'] > 0).mean():.0%} of the edges are positive."
)

# %% [markdown]
# ## The strongest edges
#
# Rows: features of the earlier block; columns: features of the later one; the strongest of both. Orange: the target rises with the source; purple: it falls. Only edges that
# are larger than 95% of random directions' effects are coloured. Genes: those at which the feature is most active.

# %%
named = {}
looked = adata[: min(n_named, adata.n_obs)].copy()
for name, coder in {"source": early, "target": late}.items():
    mt.tl.features(looked, maxtoki, coder, controls=False, n_genes=3, rng=seed)
    top = mt.get.table(looked, "features").set_index("feature")["top_genes"]
    named[name] = top.str.split(", ").str[:2].str.join(", ").fillna("")
strong = edges[edges["null_share"] < 0.05]
strong = strong if len(strong) else edges
weight = strong["effect"].abs()
rows = weight.groupby(strong["source"]).sum().nlargest(n_shown).index
columns = weight.groupby(strong["target"]).sum().nlargest(n_shown).index
matrix = strong.pivot(index="source", columns="target", values="effect").reindex(index=rows, columns=columns)
limit = np.nanpercentile(matrix.abs(), 95) if matrix.notna().any(axis=None) else 1
figure, ax = plt.subplots(figsize=(2.6 + 0.32 * len(columns), 2.2 + 0.26 * len(rows)), layout="constrained")
image = ax.imshow(matrix, cmap="PuOr_r", vmin=-limit, vmax=limit, aspect="auto")
ax.set_yticks(range(len(rows)), [f"{f}  {named['source'][f]}" for f in rows], fontsize=7.5)
ax.set_xticks(range(len(columns)), [f"{f}  {named['target'][f]}" for f in columns], fontsize=7.5, rotation=90)
ax.set_ylabel(f"feature of block {early.card['block']}", fontsize=9)
ax.set_xlabel(f"feature of block {late.card['block']}", fontsize=9)
bar = figure.colorbar(image, ax=ax, shrink=0.7, extend="both")
bar.set_label("effect (activation of the target)", fontsize=8)
bar.ax.tick_params(labelsize=8)
save(figure, "network_matrix")

# %%
edges.assign(
    source_genes=edges["source"].map(named["source"]), target_genes=edges["target"].map(named["target"])
).head(10)[
    [
        "source",
        "source_genes",
        "target",
        "target_genes",
        "effect",
        "effect_low",
        "effect_high",
        "q_value",
        "null_share",
    ]
].round(4).set_index("source")

# %% [markdown]
# ## Which features drive it?
#
# **Left**, PageRank on the reversed edges beside the mean score of four random directions of the same length. **Middle and right**, beside what is simpler: the sum of a feature's
# effects, and how active it is. Filled: q < 0.05 against all random directions.

# %% tags=["answer"]
mt.tl.driver_features(adata, damping=damping)
drivers = mt.get.table(adata, "driver_features")
save(drivers, "driver_features")
filled = np.where(drivers["q_value"] < 0.05, MODEL, "white")
figure, axes = plt.subplots(1, 3, figsize=(10, 3.2), sharey=True, layout="constrained")
for ax, column, label in (
    (axes[0], "null_pagerank", "score of random directions (mean, share)"),
    (axes[1], "strength", "sum of the sizes of its effects (activation)"),
    (axes[2], "activation", "mean activation (unit of the states)"),
):
    ax.scatter(drivers[column], drivers["pagerank"], s=20, c=filled, edgecolor=MODEL, lw=0.9)
    for row in drivers.head(3).itertuples():
        ax.annotate(
            row.feature, (getattr(row, column), row.pagerank), (4, -3), textcoords="offset points", fontsize=7
        )
    ax.set_xlabel(label, fontsize=9)
    ax.tick_params(labelsize=8)
    clean(ax)
ends = [drivers["null_pagerank"].min(), drivers["null_pagerank"].max()]
axes[0].plot(ends, ends, color=NULL, lw=1)
axes[0].set_ylabel("PageRank of the feature (share)", fontsize=9)
for ax, key in ((axes[1], "r_strength"), (axes[2], "r_activation")):
    ax.set_title(f"rank correlation {drivers.attrs[key]:.2f}", fontsize=9)
save(figure, "driver_features")

# %% tags=["answer"]
print(
    f"{(drivers['q_value'] < 0.05).sum()} of {len(drivers)} features have q < 0.05 against random directions, "
    f"{(drivers['p_value'] < 0.05).sum()} p < 0.05 ({0.05 * len(drivers):.0f} by chance).\n"
    f"Rank correlation of the score with strength {drivers.attrs['r_strength']:.2f}, with activation {drivers.attrs['r_activation']:.2f}, with the number "
    f"of edges {drivers.attrs['r_n_edges']:.2f}."
)
drivers.assign(genes=drivers["feature"].map(named["source"])).head(10)[
    [
        "feature",
        "genes",
        "pagerank",
        "null_pagerank",
        "p_value",
        "q_value",
        "n_edges",
        "strength",
        "activation",
    ]
].round(4).set_index("feature")

# %% [markdown]
# Where the correlations are high, the ranking says which features are active and write much, and PageRank adds little. "Driver" is then a large word for a long vector.
#
# ## What would make this wrong
#
# **No random directions.** Every push makes edges on which all cells agree. A count of significant edges says nothing without that of random directions.
#
# **A driver is not a regulator.** Edges are of the model's states: that a feature of early blocks changes one of later blocks says how the
# model computes, not which gene regulates which.
#
# **Long features.** A feature that is active at many genes and adds a long vector changes much. Compare it with directions of its length, and the score with strength.
#
# **Two autoencoders.** Both are approximations, each from one seed. What they leave unexplained goes on through the blocks and is nobody's edge.
#
# **Small steps.** A step of a tenth is nearly the derivative. What happens if a feature is taken out can be otherwise: `mt.tl.feature_effects`.
#
# **Cells of one donor.** Blocks of cells are no donors. Effects that agree in them may be of this donor.
