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
# # Fig. 1: how much time lies between these cells?
#
# The model reads a few cells of known age and a query cell, and says how much time lies between the last of them and the
# query. This notebook draws its answers against the truth for donors, ages and cell types that it was never trained on,
# and sets its error beside what simpler methods reach on the same prompts.
#
# Without a `path` the cells are simulated (`mt.datasets.aging_atlas`), with ages and ageing genes that are known. The
# tested donors are drawn with another seed than those that the demo model was trained on: new people, new batches, the
# same biology. The simulation makes no claim about human ageing; it shows whether the method finds what is there.
#
# The paper ([doi:10.64898/2026.03.30.715396](https://doi.org/10.64898/2026.03.30.715396)) reports r = 0.77 for held-out
# ages, r = 0.85 for held-out cell types, and a median error of 87 months, against 178 and 180 for its two baselines. We
# know these numbers from summaries of the paper; panel letters, and how the donors were split, are not known to us.

# %% tags=["parameters"]
path: str = ""  # .h5ad with raw counts and known ages; "" for the simulated atlas
layer: str = ""  # layer with the raw counts; "" for .X
model: str = "demo"  # "demo", or the folder of a model that mt.train.temporal wrote
time_key: str = "age_months"  # column of .obs with the time, in whole units
time_unit: str = "months"  # unit of that column
groupby: list = ["cell_type", "sex"]  # columns of .obs in which all cells of a prompt agree
donor_key: str = "donor_id"  # column of .obs with the donor
batch_key: str = "batch"  # column of .obs with the batch, to see whether age hides in it; "" for none
held_out_donors: list = []  # donors that the model never saw; [] holds out a fifth, for a model new to all of them
held_out_ages: list = [[480, 539], [720, 779]]  # ranges of time_key that no training donor is in
held_out_groups: dict = {  # cells that were held out of temporal training in all donors
    "cell_type": ["cardiomyocyte", "CD8 T cell", "natural killer cell", "mural cell"]
}
no_ageing: dict = {  # cells known not to age, for a control
    "cell_type": ["B cell", "natural killer cell", "mural cell"]
}
n_prompts: int = 300  # prompts tested in each panel
n_train_prompts: int = 1000  # prompts of training cells that the baselines are fitted to
context_size: list = [2, 3]  # fewest and most context cells a prompt; the paper has 2 to 3
n_cells: list = [5000, 6000]  # simulated cells: to fit the baselines to, and of new donors
n_donors: list = [200, 100]  # simulated donors: to fit the baselines to, and new ones
seed: int = 2  # seed of new donors and prompts; the demo model was trained on donors of seeds 0 and 1
output: str = ""  # folder for figures (PNG, PDF) and tables (CSV); "" for none

# %%
from pathlib import Path

import anndata
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import maxtoki_toolkit as mt
from maxtoki_toolkit.pl._style import NULL, category_colors, clean

mt.settings.progress = False


def save(figure, name):
    """Write a figure to the output folder."""
    if output:
        for ending in ("png", "pdf"):
            figure.savefig(Path(output) / f"{name}.{ending}", dpi=300, bbox_inches="tight")


if output:
    Path(output).mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## Cells, and what the model never saw
#
# The baselines need training cells, so the simulated data have two parts: donors to fit them to, and new ones. Only controls
# are used; the atlas's age-accelerated donors are for another figure. The demo model has learned from 4,800 donors and
# 140,000 cells; the baselines here see far fewer, so that this takes a minute. `benchmarks/temporal.py` gives them all.

# %%
if path:
    adata = mt.reports.read_cells(path, layer=layer, time_key=time_key, time_unit=time_unit)
else:
    parts = {
        "seen": mt.datasets.aging_atlas(n_cells[0], n_donors[0], seed=1),
        "new": mt.datasets.aging_atlas(n_cells[1], n_donors[1], seed=seed),
    }
    for name, part in parts.items():
        part.uns = {}
        for column in ("donor_id", "batch"):
            part.obs[column] = name + " " + part.obs[column].astype(str)
    adata = anndata.concat(parts, index_unique=" ", merge="same")
    adata = adata[adata.obs["condition"] == "control"].copy()
    donors = adata.obs["donor_id"].unique()
    held_out_donors = [donor for donor in donors if donor.startswith("new")]

maxtoki = mt.load_model(model)
if not maxtoki.is_temporal:
    raise ValueError(
        f"{model} has no temporal training: it cannot tell time. Train it with mt.train.temporal."
    )

# The model answers in the unit that it was trained in.
unit = maxtoki.time_head.unit
factors = {(unit, unit): 1, ("years", "months"): 12, ("days", "hours"): 24, ("weeks", "days"): 7}
if (time_unit, unit) not in factors:
    raise ValueError(
        f"The model tells time in {unit}; convert .obs[{time_key!r}] from {time_unit} to {unit}."
    )
factor = factors[time_unit, unit]
adata.obs["time"] = (adata.obs[time_key].astype(float) * factor).round().astype(int)
held_out_ages = [[first * factor, last * factor] for first, last in held_out_ages]

mt.pp.map_genes(adata, maxtoki)
mt.pp.rank_value_encode(adata, maxtoki, layer=layer or None)
mt.pp.hold_out(
    adata,
    donor_key=donor_key,
    donors=held_out_donors or 0.2,
    time_key="time",
    times=held_out_ages,
    groups=held_out_groups,
)


def has(values):
    """Cells with one of these values in a column."""
    found = [mt.reports.cells_with(adata, {column: names}) for column, names in values.items()]
    return np.any(found, axis=0) if found else np.zeros(adata.n_obs, bool)


donor, time = adata.obs[donor_key].astype(str), adata.obs["time"]
unseen = ~donor.isin(donor[adata.obs["train"]]).to_numpy()
of_age = np.any([time.between(first, last) for first, last in held_out_ages] + [time < time.min()], axis=0)
control = has(no_ageing)
of_type = has(held_out_groups) & ~control
known = unseen & ~of_type & ~control
# Where the context cells and where the query cells of each panel come from. No panel uses a donor of the training.
sets = {
    "held-out donors": (known, known & ~of_age),
    "held-out ages": (known, known & of_age),
    "held-out cell types": (unseen & of_type, unseen & of_type),
    "no ageing (control)": (unseen & control, unseen & control),
}
sets = {name: cells for name, cells in sets.items() if cells[1].any()}
rows = {"training": adata.obs["train"].to_numpy()} | {name: queries for name, (_, queries) in sets.items()}
pd.DataFrame.from_dict(
    {name: (cells.sum(), donor[cells].nunique()) for name, cells in rows.items()},
    orient="index",
    columns=["cells to ask about", "donors"],
)

# %% [markdown]
# ## Prompts, predictions, baselines
#
# All cells of a prompt are of one cell type and sex; their donors differ. The baselines get the very same prompts and
# are fitted to cells of training donors:
#
# - **most common lapse** of the cell type and sex: knows the design, looks at no cell (the paper's second baseline);
# - **SGD on expression**: the lapse from the difference of the query's and the last context cell's expression (the
#   paper's first baseline is such a regression; on which features is not known);
# - **ridge on expression**: an ageing clock, the strongest simple method we know of;
# - **ridge on embeddings**: the same on the model's own cell embeddings.

# %%
prompts = {
    "time_key": "time",
    "groupby": groupby,
    "donor_key": donor_key,
    "context_size": tuple(context_size),
}
mt.pp.sample_prompts(
    adata,
    **prompts,
    n_prompts=n_train_prompts,
    contexts="train",
    queries="train",
    rng=seed,
    key_added="train_prompts",
)
for name, (contexts, queries) in sets.items():
    mt.pp.sample_prompts(adata, **prompts, n_prompts=n_prompts, contexts=contexts, queries=queries, rng=seed)
    mt.tl.predict_timelapse(adata, maxtoki, key_added=name)
    if "control" not in name:
        mt.tl.timelapse_baselines(adata, maxtoki, key=name, key_added=f"{name}, baselines")
panels = [name for name in sets if "control" not in name]

# %% [markdown]
# ## The figure
#
# Top: one point a prompt, with the fit of predicted on true lapse. A model that knows nothing of the query would give a
# flat line; one that is right, the dashed one. Below: absolute errors, medians with 95% intervals. All intervals leave out
# one donor after the other, because prompts that share a donor are not independent.

# %% tags=["answer"]
figure = plt.figure(figsize=(5.4 * len(panels), 8.4), layout="constrained")
columns = np.atleast_1d(figure.subfigures(1, len(panels), wspace=0.04))
for i, (name, column) in enumerate(zip(panels, columns, strict=True)):
    column.suptitle(f"{'abc'[i]}   {name}", fontsize=12, fontweight="bold", x=0.02, ha="left")
    top, bottom = column.subplots(2, 1, height_ratios=(1.35, 1))
    mt.pl.timelapse_scatter(adata, key=name, ax=top)
    mt.pl.timelapse_error(adata, key=f"{name}, baselines", ax=bottom)
save(figure, "fig1_timelapse")

# %% [markdown]
# Correlation alone hides a model that has collapsed to the mean, so it comes with the **slope** of predicted on true
# lapse (1 is right), the **spread** (standard deviation of predicted over true lapses; 1 is right), and the **bias** (mean
# of predicted less true). `null of r` is where 95% of correlations are when the ages of the query donors are permuted
# among them: what lies inside is owed to the context cells and their known ages, not to reading the query. In
# `error ratio` the model's median error is divided by the predictor's; below 1 the model is better.

# %% tags=["answer"]
LABELS = {
    "most_common": "most common lapse",
    "sgd_expression": "SGD on expression",
    "ridge_expression": "ridge on expression",
    "ridge_embedding": "ridge on embeddings",
}


MEASURES = {"r": "r", "slope": "slope", "spread": "spread", "error_ratio": "error ratio"}
MEASURES |= {"median_error": f"median error ({unit})", "bias": f"bias ({unit})"}


def table(scores):
    """Scores with their 95% intervals, as text."""
    rows = []
    for score in scores.to_dict("records"):
        row = {"cells": score["group"], "predictor": LABELS.get(score["predictor"], score["predictor"])}
        for measure, label in MEASURES.items():
            if measure == "error_ratio" and score["predictor"] == "MaxToki":
                continue
            if np.isfinite(score.get(measure, np.nan)):
                ends = (score[f"{measure}{end}"] for end in ("", "_low", "_high"))
                text = "{:.0f} ({:.0f} to {:.0f})" if unit in label else "{:.2f} ({:.2f} to {:.2f})"
                row[label] = text.format(*ends).replace(" (nan to nan)", "")
        if np.isfinite(score["r_null_low"]):
            row["null of r"] = f"{score['r_null_low']:.2f} to {score['r_null_high']:.2f}"
        rows.append({**row, "prompts": score["n_prompts"], f"{score['unit']}s": score["n_units"]})
    return pd.DataFrame(rows).fillna("")


pooled = []
for name in panels:
    scores = mt.get.timelapse_scores(adata, key=f"{name}, baselines")
    pooled.append(scores[scores["group"] == "all"].assign(group=name))
pooled = pd.concat(pooled, ignore_index=True)
best = pooled[pooled["predictor"] != "MaxToki"].sort_values("median_error").groupby("group").first()
for name in panels:
    baseline, ratio, low, high = best.loc[
        name, ["predictor", "error_ratio", "error_ratio_low", "error_ratio_high"]
    ]
    verdict = "worse" if low > 1 else "better" if high < 1 else "these donors cannot tell them apart"
    print(
        f"{name}: the best baseline is {LABELS[baseline]}; the model's median error is {ratio:.2f} ({low:.2f} to "
        f"{high:.2f}) times as large: {verdict}."
    )
if output:
    pooled.to_csv(Path(output) / "scores.csv", index=False)
table(pooled).set_index(["cells", "predictor"])

# %% [markdown]
# ## Cell type by cell type
#
# Grey: where r is by chance (the null above). Points that stay in the grey tell nothing of the query's age. The control has
# nothing to find: its cell types do not age in the simulation, and must come out at chance. (B cells were trained on, so
# that the model could learn to say nothing of them; natural killer and mural cells were not.)

# %%
shown = [name for name in sets if name != "held-out ages"]
by_group = pd.concat(
    [mt.get.timelapse_scores(adata, key=name).assign(set=name) for name in shown], ignore_index=True
)
by_group = by_group[by_group["group"] != "all"].reset_index(drop=True)
place = len(by_group) - 1 - np.arange(len(by_group))
colors = dict(zip(["held-out donors", "held-out cell types"], category_colors(2), strict=True))
colors["no ageing (control)"] = NULL
color = by_group["set"].map(colors)
figure, axes = plt.subplots(1, 3, figsize=(11, 0.8 + 0.24 * len(by_group)), sharey=True, layout="constrained")
low, high = by_group["r_null_low"], by_group["r_null_high"]
axes[0].barh(place, high - low, left=low, height=0.9, color="0.88")
for ax, measure, best in zip(axes, ("r", "slope", "bias"), (1, 1, 0), strict=True):
    ax.axvline(best, color="black", lw=1, ls=(0, (4, 3)))
    ax.hlines(place, by_group[f"{measure}_low"], by_group[f"{measure}_high"], color=color, lw=1.5)
    ax.scatter(by_group[measure], place, color=color, s=18, zorder=3)
    ax.tick_params(labelsize=8)
    ax.set_ylim(-0.7, len(by_group) - 0.3)
    clean(ax)
axes[0].set(xlim=(-1, 1.03), xlabel="r of predicted and true lapse")
axes[1].set(xlim=(-1, 2), xlabel="slope of predicted on true lapse")
axes[2].set(xlabel=f"bias ({unit})")
axes[0].set_yticks(place, by_group["group"], fontsize=8)
for name in shown:
    axes[2].scatter([], [], color=colors[name], label=name, s=18)
axes[2].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
save(figure, "fig1_by_cell_type")

# %%
if output:
    by_group.to_csv(Path(output) / "scores_by_cell_type.csv", index=False)
table(by_group).drop(columns="predictor").assign(set=by_group["set"]).set_index(["set", "cells"])

# %% [markdown]
# ## What would make this wrong
#
# **A collapse to the mean.** The same predictions, shrunk to a tenth: r is as good as before, and nobody could read an age
# from them. Hence slope and spread.

# %%
answers = mt.get.timelapse(adata, key=panels[0])
true, predicted = answers["lapse"], answers["predicted"]
rows = {}
for name, values in {"as predicted": predicted, "shrunk to a tenth": predicted / 10}.items():
    rows[name] = {
        "r": np.corrcoef(true, values)[0, 1],
        "slope": np.polyfit(true, values, 1)[0],
        f"median error ({unit})": (values - true).abs().median(),
    }
pd.DataFrame.from_dict(rows, orient="index").round(2)

# %% [markdown]
# **Ages that hide in batches.** If old and young donors were processed apart, a model can read the batch and be right about
# the age. The share of the variance of the donors' ages that the batch explains should lie inside what permuted ages
# give; if it lies above, neither this figure nor any other from these cells can tell age from batch.

# %%
if batch_key:
    people = adata.obs[~control].groupby(donor_key, observed=True)[[batch_key, "time"]].first()
    batch = pd.factorize(people[batch_key])[0]

    def explained(ages):
        """Share of the variance of ages that lies between batches."""
        mean = (np.bincount(batch, ages) / np.bincount(batch))[batch]
        return mean.var() / ages.var()

    rng = np.random.default_rng(seed)
    ages = people["time"].to_numpy(float)
    null = np.quantile([explained(rng.permutation(ages)) for _ in range(1000)], [0.025, 0.975])
    print(
        f"The batch explains {explained(ages):.0%} of the variance of {len(ages)} donors' ages; permuted ages: "
        f"{null[0]:.0%} to {null[1]:.0%}."
    )
else:
    print("No batch is known (batch_key): whether age hides in it cannot be told.")

# %% [markdown]
# **Leaks.** A donor of the training among the tested ones, or a cell that is context and query at once. Here no tested donor
# was trained on and no cell has two roles; with your own cells this holds only if `held_out_donors`, `held_out_ages` and
# `held_out_groups` are what the *model* was trained without. A model cannot be asked afterwards.
#
# **Baselines that were not given a chance.** Simulated training cells are far fewer here than the model had
# (`benchmarks/demo_model.yaml`), to be quick: raise `n_cells` and `n_train_prompts` before you conclude that the model is better.
#
# **Few donors.** Hundreds of prompts of five donors are five donors. The intervals know; the points do not.
#
# **Held-out cell types were held out of temporal training only.** In stage 1 the demo model has read such cells, without
# their ages.
