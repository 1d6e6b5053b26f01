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
# # Fig. 3: cells of times that were never seen
#
# Some genes rise and then fall. Between two times a straight line cannot know that, so the intervals in which genes turn are the hard
# test of a model of time: hold them out of the training, have the model write cells of them, and look whether the genes that turn have turned.
#
# Without a `path` the cells are 200 myoblasts that were collected 0, 24, 48 and 72 hours after they began to differentiate
# (Trapnell et al., Nature Biotechnology 2014). They are few, each time is one capture, and they are of one culture: time and
# batch are the same here. Read the result as an exercise.
#
# In the paper ([doi:10.64898/2026.03.30.715396](https://doi.org/10.64898/2026.03.30.715396)) the courses are partial reprogramming of T cells,
# fibroblasts and endothelial cells; intervals of pseudotime are held out; panel D has the 100 genes that rise most and the
# 100 that fall most, panel E 4,463 genes (certain). The correlations are not known.

# %% tags=["parameters"]
path: str = ""  # .h5ad with raw counts and known times; "" for the myoblasts
layer: str = ""  # layer with the raw counts; "" for .X
force: bool = False  # accept values that are linear in expression but no counts (FPKM, TPM)
model: str = "demo-cells"  # model to train on the other times: "demo-cells", or a folder
min_overlap: float = 0.05  # least share of the genes that the model must know; "demo-cells" knows 2,000
time_key: str = "Hours"  # column of .obs with the time, in whole units
time_unit: str = "hours"  # name of the unit
groupby: list = []  # columns of .obs in which all cells of a prompt agree, e.g. ["cell_type"]
donor_key: str = ""  # column of .obs with the donor; "" for none, and then intervals are over cells
intervals: list = []  # intervals (first, last) to hold out; [] for the one in which most genes turn
compare: list = []  # two intervals (first, last) to compare; [] for the one before that held out, and it
context_size: list = [1, 2]  # fewest and most context cells a prompt
timelapse: float = (
    0.3  # share of the prompts of the training that ask for the lapse; the others ask for the cell
)
max_steps: int = 60  # optimiser steps
batch_size: int = 12  # prompts a step
learning_rate: float = 1e-3  # peak
n_prompts: int = 150  # cells to write, and lapses to ask for
n_top: int = 100  # genes that rise most, and that fall most
temperature: float = 1.0  # 1 for the model's own distribution, less for likelier cells
seed: int = 0  # seed of prompts and draws
output: str = ""  # folder for figures (PNG, PDF) and tables (CSV); "" for none

# %%
import json
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import maxtoki_toolkit as mt
from maxtoki_toolkit.pl._style import MODEL, NULL, clean

mt.settings.progress = False
save = mt.reports.saver(output)


# %% [markdown]
# ## The interval in which most genes turn
#
# Every gene is tested in every interval that has times on both sides: do its slopes before and after differ from 0, with
# opposite signs? Beside it, how many genes would turn if the times meant nothing.

# %%
if path:
    adata = mt.reports.read_cells(path, layer=layer, time_key=time_key, time_unit=time_unit)
else:
    adata, force = mt.datasets.load("myoblast_timecourse"), True
adata.obs["time"] = adata.obs[time_key].astype(float).astype(int)
start = mt.load_model(model)
mt.pp.map_genes(adata, start, min_overlap=min_overlap)
mt.pp.rank_value_encode(adata, start, layer=layer or None, force=force)
settings = {"time_key": "time", "groupby": groupby}
mt.pp.holdout_intervals(
    adata,
    **settings,
    donor_key=donor_key or None,
    intervals=[tuple(interval) for interval in intervals] or 1,
    rng=seed,
)
save(mt.get.table(adata, "holdout_intervals"), "intervals")
mt.get.table(adata, "holdout_intervals").round(3)

# %%
held_out = [tuple(interval) for interval in adata.uns["hold_out"]["params"]["times"]]
times = np.unique(adata.obs["time"])
if not compare:
    first, last = held_out[0]
    before = times[times < first].max()
    compare = [(before - (last - first), before), (first, last)]
compare = tuple(tuple(int(end) for end in interval) for interval in compare)
print("held out:", held_out, "- compared:", compare)
turning = mt.get.table(adata, "holdout_intervals", "genes")
save(turning, "turning_genes")
turning.head()

# %% [markdown]
# Ranks of those that turn most, over time (mean of the cells, with the standard error; a high rank is up). Grey is what is held out.

# %%
shown = list(dict.fromkeys(turning["gene"]))[:6]
symbol = adata.var["symbol"] if "symbol" in adata.var else pd.Series(adata.var_names, index=adata.var_names)
figure, axes = plt.subplots(
    1,
    max(len(shown), 1),
    figsize=(1.9 * max(len(shown), 1) + 0.6, 2.4),
    sharex=True,
    layout="constrained",
    squeeze=False,
)
ranks = adata.layers["rank"]
n_ranked = np.diff(ranks.indptr)
for ax, gene in zip(axes[0], shown, strict=False):
    column = adata.var_names.get_loc(gene)
    rank = ranks[:, column].toarray().ravel()
    place = pd.Series(np.where(rank > 0, 100 * (1 - rank / (n_ranked + 1)), 0)).groupby(
        adata.obs["time"].to_numpy()
    )
    for first, last in held_out:
        ax.axvspan(first - 4, last + 4, color=NULL, alpha=0.3, lw=0)
    ax.errorbar(place.mean().index, place.mean(), place.sem(), color=MODEL, marker="o", ms=4, lw=1.2)
    ax.set_title(symbol.iloc[column], fontsize=9, style="italic")
    ax.set_xlabel(f"time ({time_unit})", fontsize=8)
    ax.tick_params(labelsize=8)
    clean(ax)
axes[0, 0].set_ylabel("rank in the cell (percentile)", fontsize=8)
save(figure, "fig3_turning_genes")

# %% [markdown]
# ## A model that has not seen the interval
#
# It starts from `model` and learns lapses and cells of the other times. The default has learned from simulated cells only, so that no myoblast
# is known to it; it reads the 126 first of the 1,400 genes that it shares with them.

# %%
run = Path(output) / "run" if output else Path(tempfile.mkdtemp())
maxtoki = mt.train.temporal(
    adata,
    start,
    run,
    time_unit=time_unit,
    use="train",
    **settings,
    recipe=mt.train.TemporalRecipe.of(
        every_cell=True,
        timelapse=timelapse,
        context_size=tuple(context_size),
        max_steps=max_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        warmup=0.1,
        eval_every=max_steps,
        save_every=max_steps,
        max_length=start.max_length if start.is_temporal else 1024,
        seed=seed,
    ),
)
log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
log = pd.DataFrame([entry for entry in log if "loss" in entry])
figure, ax = plt.subplots(figsize=(3.4, 2.4), layout="constrained")
ax.plot(log["step"], log["loss"], color=MODEL)
ax.set_xlabel("optimiser steps")
ax.set_ylabel("training loss")
clean(ax)
save(figure, "fig3_training")

# %% [markdown]
# ## Cells of the interval
#
# Contexts are of the times that were learned, queries of the two intervals that are compared. Their changes of rank from the first
# interval to the second, in cells that the model wrote and in true ones:

# %% tags=["answer"]
time = adata.obs["time"].to_numpy()
inside = np.any([(time >= first) & (time <= last) for first, last in compare], axis=0)
unseen = np.any([(time >= first) & (time <= last) for first, last in held_out], axis=0)
mt.pp.sample_prompts(
    adata,
    **settings,
    task="cell",
    n_prompts=n_prompts,
    context_size=tuple(context_size),
    contexts=~unseen,
    queries=inside,
    donor_key=donor_key or None,
    key_added="cells_to_write",
    rng=seed,
)
generated = mt.tl.generate(adata, maxtoki, key="cells_to_write", temperature=temperature, rng=seed)
mt.tl.differential_rank(
    adata,
    maxtoki,
    generated=generated,
    intervals=compare,
    known=~unseen,
    n_top=n_top,
    rng=seed,
)
save(mt.pl.differential_rank(adata).figure, "fig3_differential_rank")

# %% tags=["answer"]
save(mt.get.table(adata, "differential_rank"), "differential_rank")
save(mt.get.table(adata, "differential_rank", "scores"), "scores")
mt.get.table(adata, "differential_rank", "scores").round(2)

# %% [markdown]
# `interpolation` is what a straight line between the learned times says; `true halves` is about the best that can be reached
# with half of the cells. Genes that turn, and whether the sign of their change was met:

# %%
genes = mt.get.table(adata, "differential_rank")
top = genes[genes["top"] != ""]
pd.DataFrame(
    {
        name: {
            "genes": len(part),
            "generated": (np.sign(part["generated_change"]) == np.sign(part["true_change"])).mean(),
            "interpolation": (np.sign(part["interpolated_change"]) == np.sign(part["true_change"])).mean()
            if part["interpolated_change"].notna().any()
            else np.nan,
        }
        for name, part in (("top genes", top), ("of these, turning", top[top["turning"]]))
    }
).transpose().round(2)

# %%
save(mt.pl.differential_rank_heatmap(adata, generated=generated, n_genes=n_top, rng=seed), "fig3_heatmap")

# %% [markdown]
# ## Lapses to the interval
#
# The other question: here is a cell of the interval, how much time has passed? Beside what can be answered without the model.

# %%
mt.pp.sample_prompts(
    adata,
    **settings,
    contexts="train",
    queries="train",
    n_prompts=4 * n_prompts,
    context_size=tuple(context_size),
    key_added="train_prompts",
    donor_key=donor_key or None,
    rng=seed,
)
mt.pp.sample_prompts(
    adata,
    **settings,
    contexts="train",
    queries=unseen,
    n_prompts=n_prompts,
    context_size=tuple(context_size),
    donor_key=donor_key or None,
    rng=seed + 1,
)
mt.tl.predict_timelapse(adata, maxtoki)
mt.tl.timelapse_baselines(adata, maxtoki)
save(mt.pl.timelapse_error(adata).figure, "fig3_lapses")

# %% [markdown]
# ## What would make this wrong
#
# **An interval that was seen.** The interval is chosen with all cells, but no cell of it is trained on. Check that `model` has not been trained on
# these cells either: the default was not.
#
# **Batch for time.** Where each time is its own capture, as here, cells of one time agree in more than their time.
#
# **Few cells.** Intervals are over cells where there are no donors; they say nothing about other donors or cultures.
#
# **Genes that hardly change.** The signs of small changes are noise in true cells, too: compare with `true halves`.
