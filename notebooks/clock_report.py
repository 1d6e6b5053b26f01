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
# # What a clock is worth
#
# A clock is judged by cells that it was not trained on: other donors, other ages, other lineages. This page shows what was
# held out of a run of `mt.train.clock` (or `maxtoki clock`), how the training went, and how well the held-out lapses are
# predicted, beside ridge regression, SGD and the most common lapse. Without a run it trains a small one on simulated cells.

# %% tags=["parameters"]
run: str = ""  # folder of a run of mt.train.clock; "" to train a small one on simulated cells
n_cells: int = 3000  # cells of that
n_donors: int = 60  # and their donors
max_steps: int = 60  # and optimiser steps
n_tested: int = 400  # held-out prompts that are predicted
seed: int = 0  # seed of that
output: str = ""  # folder for the figures as PDF; "" for none

# %%
import json
import tempfile
from pathlib import Path

import anndata as ad
import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown, display

import maxtoki_toolkit as mt
from maxtoki_toolkit.pl._style import BASELINE, MODEL, NULL, clean

mt.settings.progress = False
if output:
    Path(output).mkdir(parents=True, exist_ok=True)
folder = Path(run) if run else Path(tempfile.mkdtemp()) / "simulated"
if not run:
    cells = mt.datasets.aging_atlas(n_cells, n_donors, seed=seed)
    cells = cells[cells.obs["condition"] == "control"].copy()
    recipe = mt.train.ClockRecipe.of(
        donors=0.3,
        max_steps=max_steps,
        batch_size=4,
        eval_every=max(max_steps // 6, 1),
        n_held_out=n_tested // 4,
        n_tested=n_tested,
        n_fitted=1000,
        seed=seed,
    )
    columns = {"time_key": "age_months", "donor_key": "donor_id", "groupby": "cell_type"}
    mt.train.clock(cells, mt.load_model("demo"), folder, **columns, recipe=recipe)
display(Markdown((folder / "card.md").read_text().split("## Settings")[0]))

# %% [markdown]
# ## What is held out

# %%
tested = ad.read_h5ad(folder / "evaluation.h5ad")
recipe = json.loads((folder / "training" / "recipe.json").read_text())
groupby = recipe["groupby"] or "held_out"
group = groupby if isinstance(groupby, str) else groupby[0]
figure = mt.pl.coverage(tested, time_key=recipe["time_key"], groupby=group)
if output:
    figure.savefig(Path(output) / "coverage.pdf")
display(figure)

# %% [markdown]
# ## How it learned
#
# The training loss is the squared error over the variance of the lapses, plus the other losses of `mt.train.temporal`. Points
# are prompts of held-out cells.

# %%
log = pd.DataFrame(
    [json.loads(line) for line in (folder / "training" / "log.jsonl").read_text().splitlines()]
)
unit = recipe["time_unit"]
figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.2), layout="constrained")
training = log.dropna(subset="loss")
axes[0].plot(training["step"], training["loss"], color=NULL, lw=1.2)
axes[0].set(ylim=(0, None), ylabel="training loss (no unit)")
axes[1].plot(training["step"], training["tokens_per_second"], color=NULL, lw=1.2)
axes[1].set(ylim=(0, None), ylabel="speed (tokens / s)")
if "eval_r" in log:
    held = log.dropna(subset="eval_r")
    axes[2].plot(held["step"], held["eval_r"], "o-", color=MODEL, ms=4)
axes[2].set(ylim=(-0.2, 1.05), ylabel="r of held-out lapses")
for ax in axes:
    ax.set(xlabel="optimiser step", xlim=(0, log["step"].max() * 1.02))
    ax.tick_params(labelsize=9)
    clean(ax)
if output:
    figure.savefig(Path(output) / "learning.pdf")

# %% [markdown]
# ## How well it tells time
#
# r between predicted and true lapses of held-out prompts, with 95% intervals over donors (jackknife). What is not better
# than ridge regression on expression is not worth a network.

# %% tags=["answer"]
scores = pd.read_csv(folder / "evaluation.csv")
whole = scores[scores["group"] == "all"]
sets = list(dict.fromkeys(whole["set"]))
figure, axes = plt.subplots(
    1, len(sets), figsize=(1.6 + 3 * len(sets), 2.6), sharey=True, squeeze=False, layout="constrained"
)
for ax, name in zip(axes[0], sets, strict=True):
    part = whole[whole["set"] == name].iloc[::-1].reset_index(drop=True)
    for i, row in part.iterrows():
        color = MODEL if row["predictor"] == "MaxToki" else BASELINE
        ax.plot([row["r_low"], row["r_high"]], [i, i], color=color, lw=1.5)
        ax.plot(row["r"], i, "o", color=color, ms=5)
    ax.axvline(0, color="0.6", lw=0.8)
    ax.set(
        xlim=(max(min(-0.6, whole["r_low"].min() - 0.05), -1.02), 1.02),
        xlabel="r, predicted on true lapse",
        title=name.replace("_", " "),
    )
    ax.set_yticks(range(len(part)), part["predictor"].str.replace("_", " "))
    ax.tick_params(labelsize=9)
    clean(ax)
if output:
    figure.savefig(Path(output) / "scores.pdf")

# %%
for name in sets:
    figure, ax = plt.subplots(figsize=(4.6, 4.2), layout="constrained")
    mt.pl.timelapse_scatter(tested, key=f"{name}_timelapse", ax=ax)
    figure.suptitle(name.replace("_", " "), fontsize=10, x=0.02, ha="left")
    if output:
        figure.savefig(Path(output) / f"{name}.pdf")
    plt.show()

# %% [markdown]
# ## By group

# %%
table = scores[(scores["group"] != "all") & scores["predictor"].isin(["MaxToki", "ridge_expression"])]
table = table.pivot_table(index=["set", "group"], columns="predictor", values=["r", "median_error"])
if output:
    table.to_csv(Path(output) / "groups.csv")
table.round(2)

# %% [markdown]
# ## What would make this wrong
#
# - Donors that share a batch, a site or a protocol with their age: hold out whole studies, and look at `mt.pl.coverage`.
# - Few donors: the intervals are over donors, and a dozen of them says little however many cells there are.
# - Ages that are known only in bands, or permuted: the most common lapse is then hard to beat for everyone.
# - A lineage that is held out in all donors, whose donors were trained on by their other cells: it says that the clock
#   reads new types, not new people.
