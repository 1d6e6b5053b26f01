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
# # What does an experiment cost, at the bench and in a model?
#
# A virtual experiment is cheap, a model is not. This page counts what a screen of genes takes with this
# package's models, before anything is run, and sets it beside the price of doing it at the bench, and
# beside what two works say:
#
# - "Through a Glass Darkly" (A. Green, Markov Bio, 2024), an essay: a cell at the bench for 0.02 dollars, a
#   virtual experiment for about 0.01, on eight H100, one a second, in 100 steps, and "2.8x cheaper per
#   year".
# - Tahoe-x1 ([doi:10.1101/2025.10.23.683759](https://doi.org/10.1101/2025.10.23.683759)): models of 70
#   million to 3 billion parameters, with the shapes and the count of operations of its public code
#   (github.com/tahoebio/tahoe-x1).
#
# What a cell of the essay's experiments holds, what its training cost, and how many passes over its cells
# Tahoe-x1's training took is not known to us. Prices of hours and the share of a GPU's peak that is used
# are **assumptions**: set your own.

# %% tags=["parameters"]
path: str = ""  # .h5ad with raw counts; "" for 700 heart nuclei of the Heart Cell Atlas
layer: str = ""  # layer with the raw counts; "" for .X
gpu: str = "H100"  # a GPU of maxtoki_toolkit.models.costs.GPUS
hourly_price: float = 3.0  # dollars for an hour of it; assumed
utilisation: float = 0.3  # share of the GPU's peak that is used; assumed
wet_price: float = 0.02  # dollars for a cell at the bench; the essay's
n_genes: int = 500  # genes that are screened: those found in most cells
n_cells: int = 300  # cells that each of them is edited in, one prompt each
context_size: int = 2  # cells that are read before
seed: int = 0  # seed of the cells that are drawn
output: str = ""  # folder for the figure (PNG, PDF) and the tables (CSV); "" for none

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import maxtoki_toolkit as mt
from maxtoki_toolkit.models.costs import GPUS, Shape, Work, flops, n_matrix_weights, reading
from maxtoki_toolkit.pl._style import BASELINE, NULL, category_colors, clean

mt.settings.progress = False
folder = Path(output)
folder.mkdir(parents=True, exist_ok=True)


def save(table, name):
    """Keep a table, if anything is kept."""
    if output:
        table.to_csv(folder / f"{name}.csv")
    return table


# %% [markdown]
# ## The screen
#
# Each gene is moved to the last rank of each cell that has it, after a few context cells, and the lapse is
# read again (`mt.tl.perturb`). How long cells are, and where the genes stand in them, is taken from your
# cells; what a prompt and its edits share is read once, as the engine does.

# %%
model = mt.load_model("demo", device="cpu")
adata = mt.reports.read_cells(path, layer=layer) if path else mt.datasets.load("heart_nuclei")
mt.pp.map_genes(adata, model)
mt.pp.rank_value_encode(adata, model, layer=layer or None)
ranks = adata.layers["rank"].tocsc()
genes = np.argsort(-np.diff(ranks.indptr), kind="stable")[:n_genes]
rng = np.random.default_rng(seed)
drawn = rng.choice(adata.n_obs, (n_cells, context_size + 1))
lengths = adata.obs["n_genes_ranked"].to_numpy() + 2
ranks = ranks[drawn[:, -1]][:, genes].tocoo()
# Shapes, the tokens of a cell and those of a prompt that are read.
MODELS = {
    "demo": (Shape.of(model.hf.config), model.cell_length, model.max_length),
    "MaxToki 217M": (Shape(11, 1232, 2464, 8, 8, 154, 20275, tied=False), 4096, 4096),
    "MaxToki 1B": (Shape(20, 2304, 4608, 16, 8, 144, 20275, tied=False), 4096, 4096),
}


def screen(cell_length, max_length):
    """Work of the screen, and how many edits a model sees that reads so much."""
    length = np.minimum(lengths, cell_length)[drawn]
    # Lapses between context cells, <boq> and <eoq>; long prompts lose genes of the first cell.
    room = np.maximum(max_length - length[:, -1] - 1, 3 * context_size)
    before = np.minimum(length[:, :-1].sum(axis=1) + context_size, room)
    query, rank = ranks.row, ranks.data.astype(int)
    seen = rank <= length[query, -1] - 2
    query, rank = query[seen], rank[seen]
    whole = before + length[:, -1] + 1
    edits = reading(whole[query], before[query] + rank - 1, scored=1)
    return reading(whole, scored=1) + edits, len(query), reading(whole[query], scored=1)


# %% [markdown]
# Reading is in float32, as `mt.load_model` has it by default: the effect of one edit is small, and bfloat16
# rounds some to nothing. An experiment is one gene in so many cells, virtual in those of them that have it;
# at the bench, as many controls come once. The demo model reads 128 tokens of a cell, the published ones
# thousands; those do not tell time without further training, but their `readout="likelihood"` costs about
# the same.

# %% tags=["answer"]
rows = {}
for name, (shape, cell_length, max_length) in MODELS.items():
    work, n_edits, unshared = screen(cell_length, max_length)
    seconds = flops(shape, work) / (GPUS[gpu].single * 1e12 * utilisation)
    price = seconds / 3600 * hourly_price / n_genes
    rows[name] = {
        "edits": n_edits,
        "tokens (millions)": work.tokens / 1e6,
        "share of the operations without sharing": flops(shape, work) / flops(shape, unshared),
        "operations (PFLOP)": flops(shape, work) / 1e15,
        f"hours on one {gpu}": seconds / 3600,
        "price of the screen (dollars)": price * n_genes,
        "price of an experiment (dollars)": price,
    }
virtual = save(pd.DataFrame(rows).T.rename_axis("model"), "virtual_screen")
wet = wet_price * n_cells
print(
    f"{n_genes} genes in {n_cells} cells each. At the bench: {wet:,.2f} dollars an experiment, "
    f"{wet * (n_genes + 1):,.0f} for the screen with its controls."
)
virtual.map("{:,.3g}".format)

# %% [markdown]
# ## What the essay says
#
# One experiment a second on eight GPUs for 0.01 dollars implies the price of an hour of one of them; the
# essay's price and its speed agree with each other at that price.

# %%
second = 8 * hourly_price / 3600
essay = {
    "cell at the bench": ("0.02", f"{wet_price:g}"),
    "virtual experiment": ("about 0.01", f"{second:.4f} (a second of eight GPUs)"),
    "hour of a GPU": (f"{0.01 * 3600 / 8:.2f} (follows from the line above)", f"{hourly_price:g}"),
    "cells at the bench for one virtual experiment": ("0.5", f"{second / wet_price:.2g}"),
}
save(pd.DataFrame.from_dict(essay, orient="index", columns=["essay (dollars)", "here (dollars)"]), "essay")

# %% [markdown]
# ## Where it breaks even
#
# A model has to be trained before its experiments cost next to nothing. The paper's models read "nearly 1
# trillion gene tokens" (caption, certain), here taken as cells of 2,048, in bfloat16. So many experiments
# at the bench cost as much as training one; fewer are cheaper done there, unless the weights are public, as
# these are, or the model is used for more than one question. That they answer as the bench would is not
# part of the price, and has to be shown.

# %% tags=["answer"]
TOKENS, CELL = 1e12, 2048
training = {}
for name in ("MaxToki 217M", "MaxToki 1B"):
    operations = flops(MODELS[name][0], [CELL], training=True) * TOKENS / CELL
    hours = operations / (GPUS[gpu].half * 1e12 * utilisation) / 3600
    saved = wet - virtual.loc[name, "price of an experiment (dollars)"]
    training[name] = {
        "training (FLOP)": operations,
        f"training (hours of one {gpu})": hours,
        "training (dollars)": hours * hourly_price,
        "experiments to break even": (hours * hourly_price + wet) / saved if saved > 0 else np.nan,
    }
training = save(pd.DataFrame(training).T.rename_axis("model"), "break_even")
training.map("{:,.3g}".format)

# %% tags=["answer"]
figure, axes = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
colors = dict(zip(training.index, np.array(category_colors(4))[[0, 2]], strict=True))
number = np.geomspace(1, 1e6, 200)
ax = axes[0]
ax.plot(number, wet * (number + 1), color=BASELINE, lw=2.5, label=f"bench, {n_cells} cells a gene")
ax.plot(number, 0.01 * number, color=NULL, lw=1.5, ls=(0, (4, 2)), label="essay's virtual experiment")
for name in training.index:
    each, fixed = (
        virtual.loc[name, "price of an experiment (dollars)"],
        training.loc[name, "training (dollars)"],
    )
    ax.plot(number, each * number, color=colors[name], lw=1.2, ls=":", label=f"{name}, public weights")
    ax.plot(number, fixed + each * number, color=colors[name], lw=2, label=f"{name}, trained first")
    even = training.loc[name, "experiments to break even"]
    if np.isfinite(even):
        ax.plot(even, wet * (even + 1), "o", color=colors[name], ms=6, zorder=4)
        ax.annotate(
            f"{even:,.0f}",
            (even, wet * (even + 1)),
            xytext=(-6, 6),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color=colors[name],
        )
ax.set(xscale="log", yscale="log", xlim=(1, 1e6), xlabel="experiments (number)", ylabel="cost (dollars)")
ax.set_title("Cost of a number of experiments; points: break-even", fontsize=9)

share = np.geomspace(0.02, 0.6, 100)
ax = axes[1]
for name, color in colors.items():
    price = virtual.loc[name, "price of an experiment (dollars)"] * utilisation / share
    ax.plot(share, price, color=color, lw=1.2, ls=":")
    ax.plot(utilisation, virtual.loc[name, "price of an experiment (dollars)"], "o", color=color, ms=6)
ax.axhline(wet, color=BASELINE, lw=2.5)
ax.axhline(wet_price, color=BASELINE, lw=1, ls=":", label="bench, one cell")
ax.axhline(0.01, color=NULL, lw=1.5, ls=(0, (4, 2)))
ax.set(
    xscale="log",
    yscale="log",
    xlabel=f"share of the peak of the {gpu} that is used (assumed: points)",
    ylabel="price of an experiment (dollars)",
)
ax.set_xticks([0.02, 0.05, 0.1, 0.2, 0.5], ["2%", "5%", "10%", "20%", "50%"])
ax.minorticks_off()
ax.set_title(f"Price of one experiment at {hourly_price:g} dollars an hour", fontsize=9)
figure.legend(frameon=False, fontsize=8, loc="outside right center")
for ax in axes:
    ax.tick_params(labelsize=9)
    clean(ax)
if output:
    for ending in ("png", "pdf"):
        figure.savefig(folder / f"break_even.{ending}", dpi=300, bbox_inches="tight")

# %% [markdown]
# ## Is the count right? Tahoe-x1's training
#
# Tahoe-x1 counts a training step as 3 (2 N L + 4 layers d L²) operations a cell, with N parameters and L
# tokens, each of which sees all others (its code, certain). Our count of the same shapes differs in two
# ways that are meant: N is named after all weights, while embeddings multiply nothing; and in our models a
# token sees only those before it. With all tokens seen and the named N, both are the same; the other
# columns show what each way is worth. Shapes are those of the public configurations (70M and 3B certain;
# 1.3B trained on cells of 1,024 there, a summary says 2,048); an MLP has two matrices of four times the
# width.

# %%
TAHOE = {"70M": (12, 512, 8, 70e6), "1.3B": (24, 2048, 16, 1.3e9), "3B": (32, 2560, 20, 3e9)}
L, rows = 1024, {}
for name, (layers, d, heads, named) in TAHOE.items():
    shape = Shape(layers, d, 8 * d // 3, heads, heads, d // heads, 0, tied=True)
    theirs = 3 * (2 * named * L + 4 * layers * d * L**2)
    rows[name] = {
        "parameters, named (millions)": named / 1e6,
        "weights of the layers, ours (millions)": n_matrix_weights(shape) / 1e6,
        "theirs (TFLOP a cell)": theirs / 1e12,
        "ours, all tokens seen (TFLOP a cell)": flops(shape, Work(L, L**2), training=True) / 1e12,
        "ours, those before (TFLOP a cell)": flops(shape, Work(L, L * (L + 1) / 2), training=True) / 1e12,
    }
    rows[name]["ours / theirs, all seen"] = rows[name]["ours, all tokens seen (TFLOP a cell)"] / (
        theirs / 1e12
    )
    embeddings = 6 * (named - n_matrix_weights(shape)) * L
    rows[name]["the same with the named N"] = (
        flops(shape, Work(L, L**2), training=True) + embeddings
    ) / theirs
tahoe = save(pd.DataFrame(rows).T.rename_axis("Tahoe-x1"), "tahoe_x1")
tahoe.map("{:,.3g}".format)

# %% [markdown]
# How long the largest took is told in two ways that do not agree: a blog says 128 H200 for 3.2 days and
# "128k GPU hours"; the product is below. At the share of the peak that is reported (about 0.43, from a
# summary) that is so many passes over the 269 million cells of its first stage; its configuration allows
# four.

# %%
hours = 128 * 3.2 * 24
spent = hours * 3600 * GPUS["H200"].half * 1e12 * 0.43
a_pass = 269e6 * tahoe.loc["3B", "theirs (TFLOP a cell)"] * 1e12
told = {
    "GPU hours": hours,
    "operations (FLOP)": spent,
    "tokens of a pass": 269e6 * L,
    "operations of a pass (FLOP)": a_pass,
    "passes that this pays for": spent / a_pass,
    f"price at {hourly_price:g} dollars an hour (dollars)": hours * hourly_price,
}
save(pd.Series(told, name="Tahoe-x1 3B").to_frame(), "tahoe_x1_training").map("{:,.3g}".format)

# %% [markdown]
# ## What would make this wrong
#
# **A price is not a value.** A virtual experiment tells what a model makes of an edit, an experiment at the
# bench what a cell does. Cells at the bench are not replaced one for one, and the comparison holds only as
# far as a model's effects have been shown to be those of cells.
#
# **The share of the peak.** It is assumed. `maxtoki screen -c screen.yaml --plan` measures your machine
# instead; small models and short cells use less of a GPU than is assumed here, and the demo model, which
# reads 128 tokens of a cell, far less.
#
# **What is left out.** At the bench: people, perturbations and their failures, time. For the model: the
# cells that it was trained on, which somebody has paid for, tries before the training that succeeded,
# storage, idle GPUs, and people.
#
# **Other experiments.** The essay's experiment takes 100 steps of a diffusion model for a cell; ours reads
# a lapse of edited cells. They share a word.
#
# **Prices change.** "2.8x cheaper per year" is quoted; of what is not known to us, and it is not used here.
