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
# # "Through a Glass Darkly": features turned up and down
#
# What a feature goes with ([essay_sae](essay_sae.ipynb)) is not what it does. This notebook multiplies one feature at a time and reads the
# model again. Three questions: does the predicted lapse move, and more than if the states are pushed as far in
# random directions? Which genes become likely? And if genes are edited, which features carry what that does to the lapse?
#
# Without a `path` the cells are simulated (`mt.datasets.aging_atlas`), of donors that the demo model has not seen.
#
# A. Green's essay (Markov Bio, 2024) raises a feature in a model of 300 million parameters and reads the change of the genes' logits: for a
# feature of tight junctions CLDN4, CLDN7, PKP1, CLCA2 and SERPINB5 go up, CX3CR1 and SIGLEC7 down. It ablates features to find the mediators of
# a perturbation. Doses, nulls and the sizes of effects are not known to us.

# %% tags=["parameters"]
path: str = ""  # .h5ad with raw counts and known ages; "" for the simulated atlas
layer: str = ""  # layer with the raw counts; "" for .X
model: str = "demo"  # "demo", or the folder of a model that mt.train.temporal wrote
sae: str = "demo"  # "demo", or the folder of an autoencoder of this model
time_key: str = "age_months"  # column of .obs with the time, in whole units
time_unit: str = "months"  # unit of that column
groupby: list = ["cell_type", "sex"]  # columns of .obs in which all cells of a prompt agree
donor_key: str = "donor_id"  # column of .obs with the donor
cells: dict = {  # cells to use, by columns of .obs; {} for all. Here: types whose time the model was taught
    "cell_type": ["fibroblast", "monocyte", "macrophage"]
}
features: list = []  # numbers of the features to turn; [] for those with the largest gradient on half of the donors
where: str = "query"  # genes at which they are turned: "all", "query" or "context"
doses: list = [0, 0.5, 2, 3]  # what a feature is multiplied with: 0 takes it out, 2 doubles it
n_prompts: int = 40  # prompts to read; where features are chosen, half of the donors are for that
n_shown: int = 4  # features whose genes are shown
n_read: int = 40  # cells in which they are turned up for that
genes: list = [
    "LMNA",
    "MRPS25",
    "DHRS7",
    "SOWAHC",
]  # genes that are edited together. Here: planted to rise with age
mode: str = "overexpress"  # what is done to them: delete, inhibit, overexpress or activate
n_mediated: int = 30  # prompts to edit them in
max_features: int = 4  # most features that are put back together
context_size: list = [2, 2]  # fewest and most context cells a prompt
n_cells: int = 3000  # simulated cells
n_donors: int = 60  # simulated donors
seed: int = 8  # seed of donors, prompts and draws; the demo model was trained on donors of seeds 0 and 1
output: str = ""  # folder for figures (PNG, PDF) and tables (CSV); "" for none

# %%
import matplotlib.pyplot as plt
import numpy as np

import maxtoki_toolkit as mt
from maxtoki_toolkit.pl._labels import label_points
from maxtoki_toolkit.pl._style import BASELINE, MODEL, NULL, clean

mt.settings.progress = False
save = mt.reports.saver(output)


# %% [markdown]
# ## Cells and prompts
#
# Only controls of the simulation are used. All cells of a prompt are of one cell type and sex.

# %%
maxtoki = mt.load_model(model)
coder = mt.load_sae(sae)
if path:
    adata = mt.reports.read_cells(path, layer=layer, time_key=time_key, time_unit=time_unit, model=maxtoki)
else:
    adata = mt.datasets.aging_atlas(n_cells, n_donors, seed=seed)
    adata = adata[adata.obs["condition"] == "control"].copy()
adata = adata[mt.reports.cells_with(adata, cells)].copy()
mt.pp.map_genes(adata, maxtoki)
mt.pp.rank_value_encode(adata, maxtoki, layer=layer or None)
mt.pp.sample_prompts(
    adata,
    time_key=time_key,
    groupby=groupby,
    donor_key=donor_key,
    n_prompts=max(n_prompts, n_mediated),
    context_size=tuple(context_size),
    rng=seed,
)
print(coder)
mt.get.table(adata, "prompts")["group"].value_counts()

# %% [markdown]
# ## Does the lapse move?
#
# A feature is multiplied wherever it is active in the query cell; what the autoencoder leaves unexplained stays. At dose 1 nothing changes. Features are chosen by
# gradient on the prompts of half of the donors; all that is shown is of the other half. The null are random directions of the same length at the same genes.

# %%
mt.tl.feature_effects(
    adata,
    maxtoki,
    coder,
    features=features or None,
    doses=doses,
    where=where,
    n_prompts=n_prompts,
    rng=seed,
)
effects = mt.get.table(adata, "feature_effects")
unit = effects.attrs["unit"]
save(effects, "feature_effects")
strength = (effects["effect"].abs() / effects["null_sd"]).groupby(effects["feature"]).mean()
shown = strength.nlargest(6).index
figure, axes = plt.subplots(
    1, len(shown), figsize=(1.9 * len(shown) + 0.6, 2.8), sharey=True, squeeze=False, layout="constrained"
)
for ax, feature in zip(axes[0], shown, strict=True):
    part = effects[effects["feature"] == feature].set_index("dose")
    part.loc[1.0] = dict.fromkeys(part.columns, 0.0)
    part = part.sort_index()
    ax.fill_between(part.index, -2 * part["null_sd"], 2 * part["null_sd"], color=NULL, alpha=0.35, lw=0)
    ax.plot(part.index, part["gradient"], color=BASELINE, lw=1, ls="--")
    ax.vlines(part.index, part["effect_low"], part["effect_high"], color=MODEL, lw=1.4)
    ax.plot(part.index, part["effect"], color=MODEL, marker="o", ms=4)
    ax.axhline(0, color="black", lw=0.8)
    ax.set_title(f"feature {feature}", fontsize=9)
    ax.set_xlabel("dose (times)", fontsize=9)
    ax.tick_params(labelsize=8)
    clean(ax)
axes[0, 0].set_ylabel(f"change of the lapse ({unit})", fontsize=9)
save(figure, "feature_doses")

# %% [markdown]
# Blue: mean change with its 95% interval over donors. Grey: random directions, two standard deviations to both sides. Dashed: what the
# gradient foretells. The six features with the largest effects for their null.
#
# All features and doses: the size of the effect beside the spread of random directions. On the line a feature does what any push of its
# length does. Filled: q < 0.05 against random directions and an interval over donors that excludes 0.

# %% tags=["answer"]
most = effects.loc[(effects["dose"] - 1).abs().groupby(effects["feature"]).idxmax()]
counted = (effects["q_value"] < 0.05) & (effects["effect_low"] * effects["effect_high"] > 0)
ends = np.array([effects["null_sd"].min(), effects["null_sd"].max()])
figure, ax = plt.subplots(figsize=(4.4, 3.4), layout="constrained")
ax.plot(ends, ends, color=NULL, lw=1, label="random direction (1 SD)")
ax.plot(ends, 2 * ends, color=NULL, lw=1, ls="--", label="2 SD")
faces = np.where(counted, MODEL, "white")
ax.scatter(effects["null_sd"], effects["effect"].abs(), s=22, c=faces, edgecolor=MODEL, lw=0.9)
ax.set(
    xscale="log",
    yscale="log",
    xlabel=f"spread of random directions ({unit})",
    ylabel=f"|change of the lapse| ({unit})",
)
ax.legend(frameon=False, fontsize=8, loc="lower right")
clean(ax)
save(figure, "feature_effects")

# %% tags=["answer"]
prompts = mt.get.table(adata, "prompts")
beyond = (effects["effect"].abs() > 2 * effects["null_sd"]).mean()
print(
    f"{len(effects)} features and doses on {effects['n_prompts'].iloc[0]} prompts of {effects['n_units'].iloc[0]} donors. Beyond two standard "
    f"deviations of random directions: {beyond:.0%}; q < 0.05 and an interval without 0: {counted.sum()}.\n"
    f"Largest effect: {effects['effect'].abs().max():.1f} {unit}, where lapses are {prompts['lapse'].abs().mean():.0f} {unit} on average.\n"
    f"Correlation of the effect and the length of the push: "
    f"{most['effect'].abs().corr(most['norm'], method='spearman'):.2f} (Spearman, {len(most)} features)."
)
columns = [
    "feature",
    "dose",
    "effect",
    "effect_low",
    "effect_high",
    "gradient",
    "null_sd",
    "p_value",
    "q_value",
]
effects.loc[effects["effect"].abs().nlargest(8).index, [*columns, "norm", "share_active"]].round(3).set_index(
    "feature"
)

# %% [markdown]
# The p value of a feature cannot be smaller than one over the number of random directions at its dose, four a feature, and one. With few features q < 0.05 is hard to reach: a
# lack of them does not say that there are no effects. With the defaults no row reaches it, though most effects are beyond two standard deviations of random
# directions; all are small beside the lapses themselves. Name more features, or read the intervals beside the grey band.
#
# ## Which genes become likely?
#
# The features with the largest effects are doubled in single cells, and the genes that come next are read. `change` is the mean change of a gene's log-probability where the
# feature is active. Beside it `direct`, which takes no pass of the model: the direction times the output layer, as if no block came after.

# %%
top = [int(feature) for feature in shown[:n_shown]]
mt.tl.feature_genes(
    adata, maxtoki, coder, features=top, dose=2.0, n_genes=12, n_cells=min(n_read, adata.n_obs), rng=seed
)
likely = mt.get.table(adata, "feature_genes")
save(likely, "feature_genes")
figure, axes = plt.subplots(
    1, len(top), figsize=(2.6 * len(top) + 0.4, 2.9), sharey=True, squeeze=False, layout="constrained"
)
for ax, feature in zip(axes[0], top, strict=True):
    part = likely[likely["feature"] == feature]
    ax.errorbar(
        part["direct"], part["change"], yerr=2 * part["null_sd"], fmt="none", ecolor=NULL, lw=1, alpha=0.7
    )
    ax.scatter(part["direct"], part["change"], s=14, color=MODEL, zorder=3)
    ax.axhline(0, color="black", lw=0.6)
    ax.axvline(0, color="black", lw=0.6)
    ax.set_title(f"feature {feature}", fontsize=9)
    ax.set_xlabel("direct attribution\n(logit, a unit of the feature)", fontsize=9)
    ax.tick_params(labelsize=8)
    clean(ax)
for ax, feature in zip(axes[0], top, strict=True):
    part = likely[likely["feature"] == feature]
    first = part.groupby("direction").cumcount() < 2
    label_points(ax, part["direct"], part["change"], part["symbol"].where(first, ""))
axes[0, 0].set_ylabel("change of the log-probability\n(nats)", fontsize=9)
save(figure, "feature_genes")

# %%
print(
    f"Over all genes, direct attribution and change correlate by {likely.attrs['direct_r']:.2f} (mean over features).\n"
    f"{(likely['z'].abs() > 2).sum()} of the {len(likely)} genes shown are beyond two standard deviations of random directions."
)
likely.groupby(["feature", "direction"], sort=False).head(3)[
    ["feature", "direction", "symbol", "change", "null_sd", "z", "direct", "n_places"]
].round(3).set_index("feature")

# %% [markdown]
# Grey bars: two standard deviations of what random directions do to the same gene. The genes shown are the twelve that change most, each
# way, so that some are beyond the bars by choice.
#
# ## Which features carry the effect of a gene edit?
#
# The genes of `genes` are edited in the query cells, and the lapse moves. Then features are put back to what they were: the share of the effect that goes
# away (`put_back`) is what they carry. The reverse, `put_in`, sets them in cells that are not edited. Sets are chosen on half of the donors and scored on the
# other half, beside random sets of the features that change.

# %% tags=["answer"]
mt.tl.feature_mediators(
    adata,
    maxtoki,
    coder,
    genes=genes,
    mode=mode,
    max_features=max_features,
    n_prompts=n_mediated,
    rng=seed,
)
carried = mt.get.table(adata, "feature_mediators")
save(carried, "feature_mediators")
figure, axes = plt.subplots(1, 2, figsize=(7.8, 3.4), sharey=True, layout="constrained")
single = carried[carried["kind"] == "single"]
single = single.loc[single["put_back"].abs().nlargest(12).index].reset_index(drop=True)
axes[0].vlines(single.index, single["put_back_low"], single["put_back_high"], color=MODEL, lw=1.4)
faces = np.where(single["q_value"] < 0.05, MODEL, "white")
axes[0].scatter(single.index, single["put_back"], s=24, c=faces, edgecolor=MODEL, zorder=3)
axes[0].set_xticks(single.index, single["features"], rotation=90, fontsize=8)
axes[0].set_xlabel("feature put back by itself", fontsize=9)
for kind, color, label in (("random", NULL, "random sets"), ("greedy", MODEL, "greedy sets")):
    part = carried[carried["kind"] == kind]
    axes[1].fill_between(
        part["size"], part["put_back_low"], part["put_back_high"], color=color, alpha=0.25, lw=0
    )
    axes[1].plot(part["size"], part["put_back"], color=color, marker="o", ms=4, label=f"{label}, put back")
    axes[1].plot(
        part["size"],
        part["put_in"],
        color=color,
        marker="s",
        ms=4,
        mfc="white",
        ls=":",
        label=f"{label}, put in",
    )
axes[1].set_xticks(sorted(set(part["size"])))
axes[1].set_xlabel("number of features", fontsize=9)
axes[1].legend(frameon=False, fontsize=8)
axes[0].set_ylabel("share of the edit's effect", fontsize=9)
for ax in axes:
    ax.axhline(0, color="black", lw=0.8)
    ax.tick_params(axis="y", labelsize=8)
    clean(ax)
save(figure, "feature_mediators")

# %% tags=["answer"]
said = carried.attrs
alone = carried[carried["kind"] == "single"]
print(
    f"Edit: {mode} {', '.join(genes)}. It moves the lapse by {said['effect']:.1f} {said['effect_unit']} on average "
    f"({carried['n_prompts'].iloc[0]} prompts, {carried['n_units'].iloc[0]} donors).\n"
    f"{(alone['q_value'] < 0.05).sum()} of {len(alone)} single features have q < 0.05."
)
columns = [
    "kind",
    "features",
    "put_back",
    "put_back_low",
    "put_back_high",
    "put_in",
    "put_in_low",
    "put_in_high",
]
carried.loc[carried["kind"] != "single", [*columns, "p_value", "q_value"]].round(3).set_index("kind")

# %% [markdown]
# A small share that is put back, with an interval around 0, says that no few features carry the edit: it is spread over many of them, or over what the
# autoencoder leaves unexplained, or passes by the block that it reads. With the defaults it is so: the edit moves the lapse by many months, no feature has q < 0.05, and the greedy
# sets put back less than a hundredth of it, like random ones. No mediator was found.
#
# ## What would make this wrong
#
# **A model that does not tell time.** Look at the [timelapse figure](fig1_timelapse.ipynb) first, and use cell types that it can date.
#
# **No random directions.** To change a state changes the answer. A long feature changes it much. What counts is beyond random directions of the same
# length; and these are not states that occur, either.
#
# **Doses that no cell has.** A feature three times as high as in any cell takes the model where it has not been. If the curve bends away from the gradient there, it
# says how the model breaks.
#
# **Choosing and scoring on the same prompts.** Features and sets are chosen on half of the donors here. Where `features` names them, that
# is no longer so.
#
# **Genes picked as the most changed.** Of thousands, some always change much. Look at all of them, or at sets named before.
#
# **Mistaking the model for cells.** That a feature moves the prediction says nothing of what its genes do in a cell.
