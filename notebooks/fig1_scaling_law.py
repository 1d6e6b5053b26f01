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
# # Fig. 1: do larger models read cells better?
#
# Models of several sizes are trained on the same cells for the same number of steps; the figure shows how their loss on
# donors that none of them saw falls with the number of parameters, and with the arithmetic spent.
#
# The paper reports that its loss "scaled as a power law" with the parameters. Its exponent, its sizes and its data points
# are not known to us, so there is nothing here to compare with: **five tiny models on simulated cells illustrate the
# method**, and how uncertain an exponent from five points is. What they learn first is simple, too: most counts of a cell
# are 1, and such genes are ranked by their medians alone.

# %% tags=["parameters"]
path: str = ""  # .h5ad with raw counts; "" for a small simulated atlas
layer: str = ""  # layer with the raw counts; "" for .X
donor_key: str = "donor_id"  # column of .obs with the donor: a fifth of them is held out
hidden_sizes: list = [8, 12, 16, 32, 64]  # widths of the models; at least four for a fit with a floor
n_layers: int = 2  # layers of each model
n_heads: int = 2  # attention heads of each model
max_length: int = 96  # tokens read of a cell
max_steps: int = 200  # optimiser steps of each model
batch_size: int = 16  # cells a step
learning_rate: float = 0.04  # peak learning rate is this, divided by the square root of the width
seeds: list = [0, 1]  # each size is trained once a seed
n_held_out: int = 400  # held-out cells
n_bootstrap: int = 200  # resamples for the intervals
output: str = ""  # folder for the figure (PNG, PDF), the table (CSV) and the runs; "" for none

# %%
import json
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from scipy.optimize import curve_fit

import maxtoki_toolkit as mt
from maxtoki_toolkit.pl._style import BASELINE, MODEL, category_colors, clean
from maxtoki_toolkit.train.corpus import IGNORED, Corpus, NextGeneCollator

mt.settings.progress = False
runs = Path(output or tempfile.mkdtemp())

# %% [markdown]
# ## Cells
#
# One vocabulary and one set of held-out donors for all models.

# %%
adata = (
    mt.reports.read_cells(path, layer=layer)
    if path
    else mt.datasets.aging_atlas(4000, 40, n_genes=500, seed=10)
)
mt.pp.hold_out(adata, donor_key=donor_key, donors=0.2)
train, test = adata[adata.obs["train"]].copy(), adata[adata.obs["held_out"]].copy()
test = test[np.sort(np.random.default_rng(0).permutation(test.n_obs)[:n_held_out])].copy()
mt.pp.map_genes(train)
vocab = mt.models.Vocabulary.from_anndata(train, layer=layer or None)
for part in (train, test):
    mt.pp.map_genes(part, vocab)
    mt.pp.rank_value_encode(part, vocab, layer=layer or None)
donor = pd.factorize(test.obs[donor_key].astype(str))[0]
print(
    f"{train.n_obs:,} cells to learn from; {test.n_obs:,} cells of {donor.max() + 1} other donors to test on."
)
print(vocab)

# %% [markdown]
# ## Train
#
# The loss of each held-out cell is kept, so that donors can be resampled later.


# %%
def cell_losses(model):
    """Sum of the loss of each held-out cell (nats), and its genes."""
    cells, collate = Corpus([test], model), NextGeneCollator(vocab["<pad>"], model.max_length)
    total, n = [], []
    for start in range(0, len(cells), 100):
        batch = collate([cells[i] for i in range(start, min(start + 100, len(cells)))])
        with torch.inference_mode():
            logits = model.hf(batch["input_ids"].to(model.device)).logits[:, :-1].float().cpu()
        loss = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), batch["labels"], ignore_index=IGNORED, reduction="none"
        )
        total.append(loss.sum(dim=1).numpy())
        n.append((batch["labels"] != IGNORED).sum(dim=1).numpy())
    return np.concatenate(total), np.concatenate(n)


rows, losses, curves = [], {}, {}
lengths = np.minimum(train.obs["n_genes_ranked"] + 2, max_length)
tokens_a_step = batch_size * lengths.mean()
for width in hidden_sizes:
    shape = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": n_layers,
        "num_attention_heads": n_heads,
        "max_position_embeddings": max_length,
        "tie_word_embeddings": True,
        "initializer_range": 0.05,
    }
    for seed in seeds:
        run = runs / f"width{width}_seed{seed}"
        model = mt.train.pretrain(
            train,
            vocab,
            run,
            shape=shape,
            held_out=test[::4].copy(),
            recipe=mt.train.PretrainRecipe.of(
                max_steps=max_steps,
                batch_size=batch_size,
                learning_rate=learning_rate / width**0.5,
                warmup=0.05,
                eval_every=max(max_steps // 10, 1),
                save_every=max_steps,
                seed=seed,
            ),
        )
        losses[width, seed], n_genes = cell_losses(model)
        log = pd.DataFrame([json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()])
        curves[width, seed] = log.dropna(subset="eval_loss")[["step", "eval_loss"]]
        rows.append({"width": width, "seed": seed, "loss": losses[width, seed].sum() / n_genes.sum()})
sizes = {}
for width in hidden_sizes:
    hf = mt.models.build_model({**shape, "hidden_size": width, "intermediate_size": 2 * width}, vocab).hf
    sizes[width] = hf.num_parameters(exclude_embeddings=True), hf.num_parameters()
table = pd.DataFrame(rows)
table["parameters without embeddings"] = [sizes[width][0] for width in table["width"]]
table["all parameters"] = [sizes[width][1] for width in table["width"]]
table["training FLOPs"] = 6 * table["parameters without embeddings"] * tokens_a_step * max_steps
if output:
    table.to_csv(runs / "scaling_law.csv", index=False)
table.pivot_table(
    index=["width", "parameters without embeddings", "all parameters", "training FLOPs"],
    columns="seed",
    values="loss",
).round(3)

# %% [markdown]
# ## The law
#
# L(N) = a N⁻ᵇ + c: the loss L in nats a gene, N the parameters, b the exponent, c a floor that no size gets below (what
# is random in a cell). With few sizes b and c trade off against each other, so the fit is done with and without c.
# Intervals: donors are resampled, and for each size the seeds, and the law is fitted again. They take the law for granted;
# how far b moves when one size is left out says more.


# %% tags=["answer"]
def fit_power_law(n, loss, *, floor):
    """Fit loss = a n^-b + c by least squares; returns a, b, c (c = 0 without a floor)."""
    n, loss, middle = np.asarray(n, float), np.asarray(loss, float), np.exp(np.mean(np.log(n)))

    def law(n, excess, b, c=0.0):
        return excess * (n / middle) ** -b + c

    least = 0.9 * loss.min() * floor
    start, top = [loss.mean() - least, 0.1, least], [np.inf, 5, loss.min()]
    k = 2 + floor
    (excess, b, *c), _ = curve_fit(law, n, loss, start[:k], bounds=([0, 0, 0][:k], top[:k]), max_nfev=20_000)
    return excess * middle**b, b, *(c or [0.0])


def resampled(rng):
    """Mean loss of each size, over resampled donors and seeds."""
    weight = np.bincount(rng.integers(0, donor.max() + 1, donor.max() + 1), minlength=donor.max() + 1)[donor]
    drawn = [[losses[width, seed] for seed in rng.choice(seeds, len(seeds))] for width in hidden_sizes]
    return np.array([np.mean(loss, axis=0) @ weight / (n_genes @ weight) for loss in drawn])


rng = np.random.default_rng(0)
observed = table.groupby("width", sort=False)["loss"].mean().to_numpy()
draws = np.array([resampled(rng) for _ in range(n_bootstrap)])
axes_of = {"parameters without embeddings": 0, "all parameters": 1}
fits, rows = {}, []
for axis, column in axes_of.items():
    n = np.array([sizes[width][column] for width in hidden_sizes])
    for floor in (True, False):
        if floor and len(n) < 4:
            continue
        a, b, c = fit_power_law(n, observed, floor=floor)
        again = np.array([fit_power_law(n, loss, floor=floor) for loss in draws])
        others = [np.delete(np.arange(len(n)), i) for i in range(len(n))]
        without = [fit_power_law(n[kept], observed[kept], floor=floor)[1] for kept in others]
        low, high = np.quantile(again, [0.025, 0.975], axis=0)
        fits[axis, floor] = (a, b, c), (low, high), again, without
        residual = np.std(observed - (a * n**-b + c))
        rows.append(
            {
                "N": axis,
                "floor c": f"{c:.2f} ({low[2]:.2f} to {high[2]:.2f})" if floor else "none",
                "exponent b": f"{b:.3f} ({low[1]:.3f} to {high[1]:.3f})",
                "b without one size": f"{min(without):.3f} to {max(without):.3f}",
                "misfit (nats)": f"{residual:.3f}",
            }
        )
pd.DataFrame(rows).set_index(["N", "floor c"])

# %% [markdown]
# Left and middle: each point is a trained model, the line the fit, the band its 95% interval. Right: the loss on its way (on a
# quarter of the held-out cells), against the arithmetic spent up to then: 6 x parameters (without embeddings) x tokens read.
# Only the last point of a curve has been trained to the end of its learning rate schedule; those before lie higher than a
# model would that was trained for so long on purpose.

# %% tags=["answer"]
figure, axes = plt.subplots(1, 3, figsize=(12.8, 3.8), layout="constrained")
for ax, (axis, column) in zip(axes, axes_of.items(), strict=False):
    n = np.array([sizes[width][column] for width in hidden_sizes])
    along = np.geomspace(n.min() / 1.3, n.max() * 1.3, 100)
    # The floor is kept where the data tell it from 0.
    floor = (axis, True) in fits and fits[axis, True][1][0][2] > 0.01
    (a, b, c), (low, high), again, without = fits[axis, floor]
    lines = again[:, :1] * along ** -again[:, 1:2] + again[:, 2:]
    ax.fill_between(along, *np.quantile(lines, [0.025, 0.975], axis=0), color=BASELINE, alpha=0.3, lw=0)
    ax.plot(along, a * along**-b + c, color=BASELINE, lw=2)
    ax.scatter(table[axis], table["loss"], color=MODEL, s=22, zorder=3)
    title = f"b = {b:.2f} ({low[1]:.2f} to {high[1]:.2f}; without one size {min(without):.2f} to {max(without):.2f})"
    if floor:
        ax.axhline(c, color=BASELINE, lw=1, ls=(0, (4, 3)))
        title += f"\nc = {c:.2f} nats ({low[2]:.2f} to {high[2]:.2f}), dashed"
    ax.set(xscale="log", xlabel=axis, ylim=axes[0].get_ylim())
    ax.set_title(title, fontsize=8)
axes[0].set(ylabel="held-out loss (nats a gene)")
for width, color in zip(hidden_sizes, category_colors(len(hidden_sizes)), strict=True):
    for seed in seeds:
        curve = curves[width, seed]
        flops = 6 * sizes[width][0] * tokens_a_step * curve["step"]
        label = f"{width}, {sizes[width][0]:,}" if seed == seeds[0] else None
        axes[2].plot(flops, curve["eval_loss"], color=color, lw=1.3, marker="o", ms=2.5, label=label)
axes[2].set(xscale="log", xlabel="training FLOPs")
beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
axes[2].legend(frameon=False, fontsize=8, title="width, parameters", title_fontsize=8, **beside)
for ax in axes:
    ax.tick_params(labelsize=9)
    clean(ax)
if output:
    for ending in ("png", "pdf"):
        figure.savefig(runs / f"scaling_law.{ending}", dpi=300, bbox_inches="tight")

# %% [markdown]
# ## Would the fit find a law that is there?
#
# We plant one with the same sizes and the scatter between seeds and donors that was seen here, and fit it again and
# again. How far the exponents scatter is what these sizes can tell, if a power law holds exactly.

# %%
n = np.array([sizes[width][0] for width in hidden_sizes])
noise = np.cov(draws.T)  # a donor who is hard to read is so for all sizes
planted = {
    "exponent 0.30, floor": (10.0, 0.3, observed.min() - 0.5),
    "exponent 0.05, no floor": (8.0, 0.05, 0.0),
}
rows = {}
for name, (a, b, c) in planted.items():
    again = rng.multivariate_normal(a * n**-b + c, noise, 100)
    for floor in [True, False] if len(n) > 3 else [False]:
        found = [fit_power_law(n, loss, floor=floor)[1] for loss in again]
        rows[name, "fitted with c" if floor else "fitted without c"] = np.quantile(found, [0.5, 0.025, 0.975])
pd.DataFrame.from_dict(rows, orient="index", columns=["median of b", "2.5%", "97.5%"]).round(3)

# %% [markdown]
# ## What would make this wrong
#
# **An exponent without its floor.** Without c the exponent is far smaller, and holds for these sizes only. Which of the two
# the paper fitted is not known to us.
#
# **One learning rate for all sizes, or too few steps.** Then the curve shows which model is best trained. Here the rate
# falls with the width, by a rule of thumb and not by search, and all models are still improving when they stop.
#
# **Counting the embeddings, or not.** In tiny models most parameters are embeddings; the two axes give different exponents.
#
# **Too few data.** When large models start to memorise the cells, the held-out loss flattens or turns up, and the floor is
# that of the data, not of the model family. The paper's models read a corpus once or a few times; these read a small
# atlas about once.
#
# **Extrapolation.** Two decades of tiny models say nothing about the next three.
