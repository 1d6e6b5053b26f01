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
# # CellxPert, Fig. 10 and 11: cells led to a target state by Metropolis-Hastings
#
# An edit of a gene's rank takes a cell where no cell is: all other genes stay as if nothing had happened. CellxPert
# ([arXiv:2605.00930](https://arxiv.org/abs/2605.00930)) holds the perturbed genes instead, and resamples the others from the
# model, towards real cells of
# the perturbed class. Its model fills in masked expression bins. This notebook does the same with a model that writes the
# genes of a cell from the highest
# ranked on: a block of genes is drawn anew, each given those above it, and the draw is accepted or not by the exact ratio of
# Metropolis and Hastings. It shows the
# edit alone beside steered cells, and beside cells that were resampled but not led; whether the chains have arrived; and
# what temperature does.
#
# Without a `path` the cells are simulated (`mt.datasets.aging_atlas`): old cells of one type are led to young ones, with a
# planted driver of ageing taken
# out. What the simulation planted is the truth that the last figure is compared with.
#
# Of CellxPert's sampler the captions and parts of the appendices are known to us; its target density, steps, blocks and
# number of anchors are not, and its numbers
# neither. Ours are choices.

# %% tags=["parameters"]
path: str = ""  # .h5ad with raw counts; "" for the simulated atlas
layer: str = ""  # layer with the raw counts; "" for .X
model: str = "demo"  # "demo", a folder or a hub id; any model that reads cells, best one that was trained on cells of the target state
start: dict = {"cell_type": ["fibroblast"], "age": ["old"]}  # cells to lead, by columns of .obs
target: dict = {
    "cell_type": ["fibroblast"],
    "age": ["young"],
}  # cells of the target state, by columns of .obs
donor_key: str = "donor_id"  # column of .obs with the donor; "" for none
genes: list = ["RUNX1"]  # genes that are edited and held; [] for none
mode: str = "delete"  # delete, inhibit, overexpress, activate or shift
n_cells: int = 4  # cells to lead
n_anchors: int = 10  # cells that stand for the target; not known of the paper
n_steps: int = 40  # steps of each chain; not known of the paper
n_chains: int = 2  # chains of each cell
block_size: int = 16  # genes drawn anew in a step; not known of the paper
strength: float = 100.0  # nats that a unit of distance is worth
temperatures: list = [0.1, 0.5, 2.0, 4.0]  # temperatures beside 1 to compare
n_steps_temperature: int = 40  # steps of these
young_below: int = 480  # simulated atlas: age in months below which a donor is young
old_above: int = 780  # simulated atlas: age in months above which a donor is old
n_simulated: int = 1200  # simulated cells
n_donors: int = 30  # simulated donors
seed: int = 8  # seed of donors, draws and chains
output: str = ""  # folder for figures (PNG, PDF) and tables (CSV); "" for none

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import maxtoki_toolkit as mt
from maxtoki_toolkit.pl._style import BASELINE, MODEL, NULL, clean
from maxtoki_toolkit.tl._rank_features import rank_features

mt.settings.progress = False
save = mt.reports.saver(output)


def chosen(columns):
    """Cells with these values."""
    return mt.reports.cells_with(adata, columns)


# %% [markdown]
# ## Cells
#
# Anchors are chosen among the target cells of one half of the donors; those of the other half judge.

# %%
settings = {"path": path, "model": model, "start": start, "target": target, "n_steps": n_steps}
settings |= {"n_anchors": n_anchors, "block_size": block_size}
if unset := [name for name, value in settings.items() if value == "unknown"]:
    raise ValueError(f"Set these parameters: {', '.join(unset)}. What the paper used is not known.")
if path:
    adata = mt.reports.read_cells(path, layer=layer)
    truth = None
else:
    adata = mt.datasets.aging_atlas(n_simulated, n_donors, seed=seed)
    truth = adata.uns["truth"]["age_genes"]
    age = adata.obs["age_months"]
    adata.obs["age"] = np.select([age < young_below, age > old_above], ["young", "old"], "between")
maxtoki = mt.load_model(model)
mt.pp.map_genes(adata, maxtoki)
mt.pp.rank_value_encode(adata, maxtoki, layer=layer or None)
adata.obs["led"], aim = chosen(start), chosen(target)
units = (adata.obs[donor_key] if donor_key else adata.obs_names.to_series()).astype(str)
drawn = np.random.default_rng(seed).permutation(units[aim].unique())
adata.obs["aim"] = aim & units.isin(drawn[: (len(drawn) + 1) // 2])
adata.obs["judges"] = aim & ~adata.obs["aim"]
adata.obs[["led", "aim", "judges"]].sum()

# %% [markdown]
# ## The figure
#
# Left: each cell by its distance from the nearest of the anchors (real cells of the target state; 1 is how far these cells
# are from the anchors
# themselves) and by how likely the model finds it. Middle: how many proposals are accepted. Right: the genes whose level
# changes most, over all cells.

# %% tags=["answer"]
common = {
    "genes": genes or None,
    "mode": mode,
    "readout": "embedding",
    "on": mt.tl.Cells(use="led", target="aim", donor_key=donor_key or None),
    "rng": seed,
}
few = {"n_cells": n_cells, "n_anchors": n_anchors, "block_size": block_size, "strength": strength}
sampling = mt.tl.CellSampling.of(n_steps=n_steps, n_chains=n_chains, **few)
mt.tl.steer_cells(adata, maxtoki, sampling=sampling, **common)
figure = mt.pl.steer_cells(adata)
save(figure, "steering")

# %% tags=["answer"]
effects = mt.get.table(adata, "steer")
columns = [
    "measure",
    "state",
    "mean",
    "difference",
    "difference_low",
    "difference_high",
    "p_value",
    "n_units",
]
effects[columns].round(3)

# %% [markdown]
# `difference` is that from the edit alone, with its 95% interval over donors (jackknife; two-sided t test). "unsteered" is
# the null: the same edit and the same proposals, but nothing that
# leads. What it does as well is not steering, but the model's own idea of a likely cell.
#
# ## Have the chains arrived?
#
# R-hat near 1 says that the chains of a cell agree; the effective size is how many independent draws the kept half of all
# its chains is worth. With the few steps of the defaults they have *not*
# arrived: such draws show the way, not the target distribution. Give more steps for a result.

# %%
cells = mt.get.table(adata, "steer", "cells")
cells[["cell", "acceptance", "rhat", "effective_size", "took_effect"]].round(2)

# %%
trace = mt.get.table(adata, "steer", "trace")
shown = trace["cell"].unique()[:5]
figure, axes = plt.subplots(
    2,
    len(shown),
    figsize=(2.4 * len(shown), 4),
    sharex=True,
    sharey="row",
    squeeze=False,
    layout="constrained",
)
for column, cell in zip(axes.T, shown, strict=True):
    for _, part in trace[trace["cell"] == cell].groupby("chain"):
        color = MODEL if part["steered"].iloc[0] else NULL
        for ax, measure in zip(column, ("distance", "log_likelihood"), strict=True):
            ax.plot(part["step"], part[measure], color=color, lw=0.9)
            clean(ax)
    column[0].set_title(cell, fontsize=8)
    column[1].set_xlabel("step", fontsize=9)
axes[0, 0].set_ylabel("distance\n(spread of the target)", fontsize=9)
axes[1, 0].set_ylabel("log-likelihood\n(nats a gene)", fontsize=9)
save(figure, "steering_traces")

# %% [markdown]
# Blue: steered; grey: not led.
#
# ## Temperature
#
# The caption of Fig. 10 says that CellxPert's metrics rise with the temperature from 0.1 to about 2 and then stay. Whether its
# temperature is that of the target or of the proposals is not known to
# us; here it is that of the target. The metric is the correlation over genes of the predicted with the true change of the mean level, from the cells that are led
# to target cells of donors that gave no anchors. Dashed: the mean of the cells that anchors are chosen from, which is a prediction too; grey: chains that are not led.

# %% tags=["answer"]
levels = rank_features(adata, maxtoki)
place = {gene: i for i, gene in enumerate(maxtoki.vocab.gene_ids)}
at = [place[token] for token in adata.var["token_id"] if token in place]
gene_names = adata.var_names[[token in place for token in adata.var["token_id"]]]


def mean_level(which):
    """Mean level of each gene in some cells."""
    return pd.Series(np.asarray(levels[adata.obs[which].to_numpy()].mean(axis=0)).ravel()[at], gene_names)


true_mean, anchors_mean = mean_level("judges"), mean_level("aim")
edited = set(mt.get.steer_genes(adata).query("held")["gene"])


def pearson_delta(table, state):
    """r of predicted and true change over genes that were not edited."""
    table = table[~table["gene"].isin(edited)].set_index("gene")
    began = table["level_start"]
    guess = anchors_mean[began.index] if state == "perturbation mean" else table[f"level_{state}"]
    return np.corrcoef(guess - began, true_mean[began.index] - began)[0, 1]


rows = []
for temperature in sorted({*temperatures, 1.0}):
    sampling = mt.tl.CellSampling.of(n_steps=n_steps_temperature, n_chains=1, temperature=temperature, **few)
    mt.tl.steer_cells(adata, maxtoki, sampling=sampling, key_added="at_temperature", **common)
    part = mt.get.table(adata, "at_temperature").set_index(["state", "measure"])["mean"]
    of_genes = mt.get.steer_genes(adata, key="at_temperature")
    rows.append(
        {
            "temperature": temperature,
            "acceptance": mt.get.table(adata, "at_temperature", "cells")["acceptance"].mean(),
            "distance": part["steered", "distance"],
            "log_likelihood": part["steered", "log_likelihood"],
            "pearson_delta": pearson_delta(of_genes, "steered"),
            "not_led": pearson_delta(of_genes, "unsteered"),
            "edit_alone": pearson_delta(of_genes, "abrupt"),
            "perturbation_mean": pearson_delta(of_genes, "perturbation mean"),
        }
    )
sweep = pd.DataFrame(rows)
figure, axes = plt.subplots(1, 2, figsize=(7, 2.8), layout="constrained")
axes[0].plot(sweep["temperature"], sweep["pearson_delta"], "o-", color=MODEL)
axes[0].plot(sweep["temperature"], sweep["not_led"], "o-", color=NULL)
axes[0].axhline(sweep["perturbation_mean"].iloc[0], color=BASELINE, ls="--", lw=1)
axes[0].set_ylabel("Pearson correlation of\npredicted and true change", fontsize=9)
axes[1].plot(sweep["temperature"], sweep["acceptance"], "o-", color=MODEL)
axes[1].set_ylabel("share of proposals accepted", fontsize=9)
for ax in axes:
    ax.set_xscale("log")
    ax.set_xlabel("temperature (of the target, log10)", fontsize=9)
    clean(ax)
save(figure, "steering_temperature")

# %%
sweep.round(3)

# %% [markdown]
# With the defaults the correlation does not rise with the temperature; being led adds little to what the model's own resampling does, and the mean of the cells that the anchors are chosen from
# is far ahead of both: it is an average over cells and donors, where a chain begins at one cell and, as R-hat says, has not forgotten it.

# %% [markdown]
# ## Are these the genes that were planted?
#
# In the simulation it is known which genes age in this cell type: led from old to young, those that rise with age should
# fall, and the reverse. Beside the steered cells: those that were not
# led.

# %%
table = mt.get.steer_genes(adata)
if truth is not None:
    own = truth[truth["cell_type"].isin(target["cell_type"]) & truth["direction"].isin(["rise", "fall"])]
    fold = own.groupby("ensembl_id")["log2_fold"].sum().reindex(table["gene"]).to_numpy()
    known = np.isfinite(fold) & ~table["held"].to_numpy()
    figure, axes = plt.subplots(1, 2, figsize=(7.4, 3.2), sharex=True, sharey=True, layout="constrained")
    for ax, state, color in zip(axes, ("steered", "unsteered"), (MODEL, BASELINE), strict=True):
        change = (table[f"level_{state}"] - table["level_start"]).to_numpy()[known]
        ax.axhline(0, color="black", lw=0.6)
        ax.axvline(0, color="black", lw=0.6)
        ax.scatter(fold[known], change, s=14, color=color)
        right = np.mean(np.sign(change) == -np.sign(fold[known])) if known.any() else np.nan
        ax.set_title(f"{state}: {right:.0%} of {known.sum()} genes the right way", fontsize=9)
        ax.set_xlabel("planted change with age (log2, 60 years)", fontsize=9)
        clean(ax)
    axes[0].set_ylabel("change of the mean level", fontsize=9)
    save(figure, "steering_planted")

# %%
if output:
    for name, part in {"effects": effects, "cells": cells, "genes": table, "temperatures": sweep}.items():
        part.to_csv(Path(output) / f"steering_{name}.csv", index=False)

# %% [markdown]
# ## What would make this wrong
#
# **Anchors from the cells that are to be predicted.** Steered cells are led to the anchors: a comparison with the anchors
# themselves, or with cells of their donors, shows nothing. Keep the cells that
# are compared with out of `target`. For a perturbation that no cell has had there are no anchors, and this method says nothing.
#
# **A target that differs in more than the perturbation.** Nearer to the target means nearer in all respects: donor, depth,
# batch and cell type too. Lead cells to cells of their own type.
#
# **A model that has not seen such cells.** The log-likelihood is the model's opinion. A model without cells of the perturbed
# state finds them unlikely, and holds the chains back.
#
# **Chains that have not arrived.** They start from the edited cell. An R-hat far above 1, or an acceptance near 0, says that
# the draws still tell of the start: more steps, smaller blocks or a smaller `strength`.
#
# **A simpler prediction.** With cells of the perturbed state at hand, their mean is a prediction too, and often the better
# one: `mt.tl.perturbation_metrics` has it beside every method.
