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
# # Fig. 4, continued: which heads does a lapse depend on?
#
# [Where a head looks](fig4_attention_heads.ipynb) is not what it is for. This notebook takes heads out of the model, one at a time and
# together, and asks for the same lapses again; and it puts the inner states of one prompt into another, to see where in the model
# and in the prompt the difference of the two is.
#
# Without a `path` the cells are simulated (`mt.datasets.aging_atlas`), of donors that the demo model has not seen.
#
# This goes beyond what we know of the paper ([doi:10.64898/2026.03.30.715396](https://doi.org/10.64898/2026.03.30.715396)): its
# Fig. 4 has prompts ablated ([fig4a_prompt_ablation](fig4a_prompt_ablation.ipynb)) and attention shown. Whether it also has heads
# ablated or states patched is not known to us, and there is no number to compare with.

# %% tags=["parameters"]
path: str = ""  # .h5ad with raw counts and known ages; "" for the simulated atlas
layer: str = ""  # layer with the raw counts; "" for .X
model: str = "demo"  # "demo", or the folder of a model that mt.train.temporal wrote
time_key: str = "age_months"  # column of .obs with the time, in whole units
time_unit: str = "months"  # unit of that column
groupby: list = ["cell_type", "sex"]  # columns of .obs in which all cells of a prompt agree
donor_key: str = "donor_id"  # column of .obs with the donor
cells: dict = {  # cells to use, by columns of .obs; {} for all. Here: types whose time the model was taught
    "cell_type": ["fibroblast", "monocyte", "macrophage"]
}
how: str = "mean"  # what a head hands on instead: "mean", "zero" or "resample"; see mt.tl.ablate_heads
n_prompts: int = 40  # prompts to read without each head
max_heads: int = 3  # most heads to take out together
n_random: int = 8  # random sets of as many heads
n_searched: int = 28  # prompts of the search for sets, half to choose on and half to score on
corrupted: str = "replace_query"  # what is done to prompts before states are put back; see mt.tl.patch
level: str = "residual"  # states to put back: "residual", "attention", "mlp" or "head"
align: str = "tokens"  # "tokens", or "last" where replaced cells have other numbers of genes
n_patched: int = 12  # prompts to put states into
context_size: list = [2, 2]  # fewest and most context cells a prompt
n_cells: int = 5000  # simulated cells
n_donors: int = 60  # simulated donors
seed: int = 8  # seed of donors, prompts and draws; the demo model was trained on donors of seeds 0 and 1
output: str = ""  # folder for figures (PNG, PDF) and tables (CSV); "" for none

# %%
import matplotlib.pyplot as plt
import numpy as np

import maxtoki_toolkit as mt
from maxtoki_toolkit.pl._style import MODEL, NULL, clean

mt.settings.progress = False
save = mt.reports.saver(output)


# %% [markdown]
# ## Cells and prompts
#
# Only controls of the simulation are used. All cells of a prompt are of one cell type and sex.

# %%
maxtoki = mt.load_model(model)
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
    n_prompts=max(n_prompts, n_searched, n_patched),
    context_size=tuple(context_size),
    rng=seed,
)
mt.get.table(adata, "prompts")["group"].value_counts()

# %% [markdown]
# ## One head at a time
#
# What a head hands on is replaced by its mean over prompts, at tokens of the same part of the prompt and of like rank: it still adds what it
# always adds, but says nothing of this prompt. Colour: how much the mean absolute error of the lapse grows. A point: q < 0.05.

# %%
mt.tl.ablate_heads(adata, maxtoki, how=how, n_prompts=n_prompts, rng=seed)
ax = mt.pl.ablate_heads(adata)
save(ax.figure, "fig4_head_ablation")

# %% [markdown]
# The same with intervals. **Left**, the change of the error with its 95% interval over donors: each donor in turn is left out, with all prompts he or she
# is part of. Filled: q < 0.05, Benjamini and Hochberg over all heads. **Right**, by how much the lapse moves, up or down, beside what an equally
# large change in a random direction does (grey): something always happens when a model is disturbed, and heads that write
# more disturb it more. A head matters for the lapse as far as it goes beyond the grey point.

# %% tags=["answer"]
heads = mt.get.table(adata, "ablate_heads")
save(heads, "ablate_heads")
unit = heads.attrs["unit"]
table = heads.sort_values("size", ignore_index=True)
place = np.arange(len(table))
figure, axes = plt.subplots(1, 2, figsize=(7.6, 1.1 + 0.2 * len(table)), sharey=True, layout="constrained")
filled = {"error_change": table["error_q_value"] < 0.05, "size": table["excess_low"] > 0}
for ax, column in zip(axes, filled, strict=True):
    ax.hlines(place, table[f"{column}_low"], table[f"{column}_high"], color=MODEL, lw=1.4)
    faces = np.where(filled[column], MODEL, "white")
    ax.scatter(table[column], place, s=20, c=faces, edgecolor=MODEL, zorder=3, label="head, 95% over donors")
    ax.tick_params(labelsize=8)
    clean(ax)
axes[0].axvline(0, color="black", lw=0.8)
axes[0].set_xlabel(f"change of the mean error ({unit})", fontsize=9)
axes[1].scatter(table["null_size"], place, s=14, color=NULL, label="as large, random direction")
axes[1].set_xlabel(f"size of the change of the lapse ({unit})", fontsize=9)
axes[1].legend(frameon=False, fontsize=8, loc="lower right")
axes[0].set_yticks(place, table["heads"])
save(figure, "fig4_head_ablation_intervals")

# %% tags=["answer"]
called = heads["error_q_value"] < 0.05
lapses = mt.get.table(adata, "prompts")["lapse"]
guess = (lapses - lapses.median()).abs().mean()
print(
    f"Mean error of the model as it is: {heads['mean_error_intact'].iloc[0]:.0f} {unit} (of the median lapse for all: "
    f"{guess:.0f}); {heads['n_prompts'].iloc[0]} prompts, {heads['n_units'].iloc[0]} donors.\n"
    f"{(called & (heads['error_change'] > 0)).sum()} of {len(heads)} heads make it worse without them (q < 0.05), "
    f"{(called & (heads['error_change'] < 0)).sum()} better.\n"
    f"{(heads['q_value'] < 0.05).sum()} shift the lapse one way; {(heads['excess_low'] > 0).sum()} move it further than a "
    f"change in a random direction (interval above 0).\n"
    f"What a head writes and how far the lapse moves: Spearman {heads['removed'].corr(heads['size'], method='spearman'):.2f}."
)
columns = ["heads", "error_change", "error_change_low", "error_change_high", "error_q_value", "change"]
columns += ["size", "null_size", "removed"]
heads.nlargest(8, "size")[columns].round(3).set_index("heads")

# %% [markdown]
# On the right filled points are those whose interval of the difference to the grey point (`excess`) is above 0. `removed` is the trivial
# explanation, how long a vector the ablation changes, relative to the stream it is added to.
#
# With the defaults most heads move the lapse, up in some prompts and down in others, by more than a random change does. Whether the
# errors grow is not settled by so few prompts: none of the intervals on the left excludes 0 after correction. Raise `n_prompts` to find out.
#
# ## Heads that do it together
#
# Two heads can stand in for each other: neither is missed alone. The search adds one head at a time, the one that moves
# the lapse most. It chooses on the prompts of half the donors; the curve is of the other half, as a curve on the same prompts would reward the
# choice itself. Grey: random sets of as many heads.

# %%
mt.tl.ablate_heads(
    adata,
    maxtoki,
    how=how,
    max_heads=max_heads,
    n_random=n_random,
    n_prompts=n_searched,
    rng=seed,
    key_added="greedy",
)
ax = mt.pl.ablate_heads(adata, key="greedy")
save(ax.figure, "fig4_head_sets")

# %%
sets = mt.get.table(adata, "greedy")
save(sets, "head_sets")
columns = ["heads", "size_chosen_on", "size", "size_low", "size_high", "random_size", "random_high"]
sets[[*columns, "random_p_value"]].round(3).set_index("heads")

# %% [markdown]
# `random_p_value` is the share of random sets that do as much, and cannot be smaller than one over their number and one.
#
# ## Where is what was lost?
#
# Prompts are spoiled: with `replace_query` the query is another cell, drawn from all. Then states of the
# original prompt are put back, in one part of the prompt and at one depth. 0: the lapse of the spoiled prompt stays; 1: that of the original
# comes back. A point, where there is one: more, or less, than states of yet another prompt bring back, q < 0.05 over donors.
#
# Row 0 is a trivial baseline: it puts back the genes themselves, before any block. Going down, what was in the genes of the query has moved on to
# where it is read, the last token.

# %%
mt.tl.patch(adata, maxtoki, corrupted=corrupted, level=level, align=align, n_prompts=n_patched, rng=seed)
ax = mt.pl.patch(adata)
save(ax.figure, "fig4_patching")

# %%
patched = mt.get.table(adata, "patch")
save(patched, "patching")
columns = ["layer", "segment", "effect", "effect_low", "effect_high", "null", "null_low", "null_high"]
print(
    f"{(patched['q_value'] < 0.05).sum()} of {len(patched)} differ from states of another prompt (q < 0.05)."
)
patched.nlargest(8, "effect")[[*columns, "p_value", "q_value"]].round(3).set_index(["layer", "segment"])

# %% [markdown]
# The parts where something comes back, with 95% intervals over donors. Grey: states of another original prompt in the same place, which
# bring some other lapse. Bands that leave the figure go on. With the defaults the blue intervals are narrow and the grey ones are not: the lapse
# passes from the query to the last token between the first block and the third, but that it takes this prompt's states, rather than any, is not settled by so few
# prompts. Raise `n_patched`.

# %%
parts = [part for part, of in patched.groupby("segment", sort=False) if (of["effect"].abs() > 0.05).any()]
figure, axes = plt.subplots(
    1,
    len(parts),
    figsize=(2.8 * len(parts) + 0.6, 2.9),
    sharey=True,
    squeeze=False,
    layout="constrained",
)
for ax, part in zip(axes[0], parts, strict=True):
    of = patched[patched["segment"] == part].reset_index(drop=True)
    for column, color, label in (
        ("null", NULL, "another prompt's states"),
        ("effect", MODEL, "its own states"),
    ):
        ax.fill_between(of.index, of[f"{column}_low"], of[f"{column}_high"], color=color, alpha=0.25, lw=0)
        ax.plot(of.index, of[column], color=color, marker="o", ms=4, label=label)
    labels = of["layer"] if level != "head" else "L" + of["layer"].astype(str) + "H" + of["head"].astype(str)
    ax.set_xticks(of.index, labels, rotation=90 if level == "head" else 0)
    ax.axhline(0, color="black", lw=0.8)
    ax.set_title("<eoq>, the last token" if part == "eoq" else part.replace("_", " "), fontsize=9)
    ax.set_xlabel("blocks before" if level == "residual" else "layer", fontsize=9)
    ax.tick_params(labelsize=8)
    clean(ax)
axes[0, 0].set_ylim(patched["effect"].min() - 0.8, patched["effect"].max() + 0.8)
axes[0, 0].set_ylabel("share of the lapse that comes back", fontsize=9)
figure.legend(
    *axes[0, 0].get_legend_handles_labels(), frameon=False, fontsize=8, loc="outside upper center", ncol=2
)
save(figure, "fig4_patching_by_depth")

# %% [markdown]
# ## What would make this wrong
#
# **A model that does not tell time.** If its error is that of a guess, nothing that is taken out can make it worse. Look at the
# [timelapse figure](fig1_timelapse.ipynb) first, and use cell types that it can date.
#
# **States that the model never has.** A head that is set to zero or to its mean leaves the model in a state it was not trained in; an
# effect says that the answer changes, not how the model works when nothing is taken out. That is what the random
# direction and the random sets are for. `how="resample"`, with what the head makes of another prompt, is closer to states that occur.
#
# **Heads that stand in for each other.** No effect of one head alone does not mean that it is not used.
#
# **Choosing and scoring on the same prompts.** The best of many sets is better than it is, on the prompts that it was chosen on
# (`size_chosen_on`). Donors of context cells can still be on both sides.
#
# **Prompts as if they were independent.** Prompts share donors. Intervals and p values here are of donors; those of the random
# sets are of sets.
#
# **Effects that are one by construction.** To put back the whole stream of the last token after the last block gives back the lapse, whatever the
# model is. What is to be learned is in which layer, and from which part of the prompt, it gets there.
