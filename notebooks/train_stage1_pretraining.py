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
# # Training, stage 1: learn what cells look like
#
# A model with random weights reads cells as lists of genes, highest ranked first, and learns to predict the next gene. This
# notebook trains one in about a minute on simulated cells, draws what it has learned on donors that it never saw, and
# asks whether its embedding puts cells of one type together.
#
# The same notebook at the scale of the paper, as far as its settings are known:
# `papermill train_stage1_pretraining.ipynb out.ipynb -f presets/train_stage1_pretraining.yaml`.

# %% tags=["parameters"]
path: str = ""  # .h5ad with raw counts; "" for a small simulated atlas
held_out_path: str = ""  # cells of other donors; then path is read a block at a time. "" splits path
layer: str = ""  # layer with the raw counts; "" for .X
donor_key: str = "donor_id"  # column of .obs with the donor: a fifth of them is held out
cell_type_key: str = "cell_type"  # column of .obs with known labels, to score the embedding
tokens: str = ""  # published token dictionary (JSON); "" makes a vocabulary of the training cells
medians: str = ""  # published gene medians (JSON), with tokens
shape: (
    dict | str
) = {  # "217m", "1b" or fields of a LlamaConfig; max_position_embeddings is the tokens read of a cell
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "initializer_range": 0.05,
}
max_steps: int = 400  # optimiser steps
batch_size: int = 16  # cells a device and forward pass
accumulate: int = 1  # forward passes a step
learning_rate: float = 1e-2  # peak; tiny models take a larger one than large ones
warmup: float = 0.05  # share of the steps in which the learning rate rises; then it falls as a cosine
weight_decay: float = 0.01  # of AdamW
gene_dropout: float = 0.0  # share of the genes left out each time a cell is read; helps where cells are few
bf16: bool = False  # compute in bfloat16 (GPU)
gradient_checkpointing: bool = False  # less memory, slower
eval_every: int = 40  # steps between tests on the held-out donors
save_every: int = 400  # steps between checkpoints
n_held_out: int = 400  # held-out cells for loss and embedding
seed: int = 0  # seed of weights, order and held-out donors
output: str = ""  # folder of the run, which goes on if it was interrupted; "" for a temporary one

# %%
import json
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import maxtoki_toolkit as mt
from maxtoki_toolkit.pl._style import BASELINE, MODEL, NULL, clean

mt.settings.progress = False
settings = {"max_steps": max_steps, "batch_size": batch_size, "accumulate": accumulate}
settings |= {"learning_rate": learning_rate, "warmup": warmup, "weight_decay": weight_decay}
if unknown := [name for name, value in settings.items() if value == "unknown"]:
    raise ValueError(f"The paper does not say {', '.join(unknown)}, as far as we know: choose them.")
run = Path(output or tempfile.mkdtemp())

# %% [markdown]
# ## Cells
#
# Whole donors are held out. Held-out *cells* of training donors would share their donor's and batch's traits with the
# training, and the loss would flatter the model.

# %%
if path and held_out_path:
    test = mt.reports.read_cells(held_out_path, layer=layer)
    train = None
else:
    adata = (
        mt.reports.read_cells(path, layer=layer)
        if path
        else mt.datasets.aging_atlas(3000, 20, seed=10 + seed)
    )
    adata = adata[adata.obs[donor_key].notna()].copy()
    mt.pp.hold_out(adata, donor_key=donor_key, donors=0.2, rng=seed)
    train, test = adata[adata.obs["train"]].copy(), adata[adata.obs["held_out"]].copy()
chosen = np.random.default_rng(seed).permutation(test.n_obs)[:n_held_out]
test = test[np.sort(chosen)].copy()

if tokens:
    vocab = mt.models.Vocabulary.from_json(tokens, gene_medians=medians)
else:
    if train is None:
        raise ValueError("Give tokens and medians: a vocabulary is made of cells in memory only.")
    mt.pp.map_genes(train)
    vocab = mt.models.Vocabulary.from_anndata(train, layer=layer or None)

if train is None:
    cells = run / "train.h5ad"
    if not cells.exists():
        mt.pp.encode_file(path, cells, vocab, layer=layer or None)
else:
    cells = train
    mt.pp.map_genes(train, vocab)
    mt.pp.rank_value_encode(train, vocab, layer=layer or None)
mt.pp.map_genes(test, vocab)
mt.pp.rank_value_encode(test, vocab, layer=layer or None)
if train is not None:
    print(f"{train.n_obs:,} cells of {train.obs[donor_key].nunique()} donors to learn from.")
print(f"{test.n_obs:,} cells of {test.obs[donor_key].nunique()} other donors to test on.")
print(vocab)

# %% [markdown]
# ## Train
#
# The loop is that of Hugging Face's Trainer; its log is `log.jsonl` in the folder of the run.

# %%
model = mt.train.pretrain(
    cells,
    vocab,
    run,
    shape=shape,
    held_out=test,
    recipe=mt.train.PretrainRecipe.of(
        **settings,
        gene_dropout=gene_dropout,
        eval_every=eval_every,
        save_every=save_every,
        bf16=bf16,
        gradient_checkpointing=gradient_checkpointing,
        seed=seed,
    ),
)
print(
    f"{model.hf.num_parameters():,} parameters, {model.hf.num_parameters(exclude_embeddings=True):,} without embeddings"
)

# %% [markdown]
# ## What it has learned
#
# The loss is in **nats a gene**: a loss of 7 means that the right next gene was given a probability of about e⁻⁷, one in
# 1,100.
# Two lines say what is easy:
#
# - **uniform guess**: every token of the vocabulary is as likely as any other, ln(vocabulary size);
# - **gene frequencies**: each gene is as likely as it is common in the training cells, whatever came before. Below this
#   line the model uses the cell, not only the list of common genes.

# %% tags=["answer"]
log = pd.DataFrame([json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()])
held_out = log.dropna(subset="eval_loss")
training = log.dropna(subset="loss")


def token_counts(adata):
    """How often each token is to be predicted, in cells cut as the model reads them."""
    ranks = adata.layers["rank"].tocoo()
    read = ranks.data <= model.max_length - 2
    genes = adata.var["token_id"].to_numpy()[ranks.col[read]]
    counts = np.bincount(genes, minlength=vocab.size)
    counts[vocab["<eos>"]] = adata.n_obs
    return counts


lines = {"uniform guess": np.log(vocab.size)}
if train is not None:
    share = token_counts(train) + 1
    asked = token_counts(test)
    lines["gene frequencies"] = -(asked @ np.log(share / share.sum())) / asked.sum()

figure, ax = plt.subplots(figsize=(5.2, 3.6), layout="constrained")
ax.plot(training["step"], training["loss"], color=NULL, lw=1.2, label="training cells")
ax.plot(held_out["step"], held_out["eval_loss"], "o-", color=MODEL, ms=4, label="held-out donors")
for (name, value), style in zip(lines.items(), ("--", ":"), strict=False):
    ax.axhline(value, color=BASELINE, ls=style, lw=1.5)
    ax.annotate(
        f"{name}, {value:.2f}",
        (1, value),
        (0, 3),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=8,
    )
ax.set(xlim=(0, None), xlabel="optimiser step", ylabel="loss (nats a gene)")
ax.legend(frameon=False, fontsize=8)
clean(ax)
if output:
    figure.savefig(run / "loss.pdf")

# %% tags=["answer"]
last = held_out.iloc[-1]["eval_loss"]
print(
    f"Held-out loss {last:.2f} nats a gene: the next gene is one of about {np.exp(last):.0f} equally likely ones."
)
for name, value in lines.items():
    print(f"{value - last:.2f} nats better than {name} ({value:.2f}).")

# %% [markdown]
# ## Is the embedding any good?
#
# A lower loss is not the aim. Do cells of one type come together, better than before training, and as well as with
# principal components of the counts? Scored on the held-out donors.

# %%
mt.tl.embed(test, model)
mt.tl.neighbor_purity(test, model, groupby=cell_type_key, rng=seed)
mt.get.neighbor_purity(test).to_csv(run / "neighbor_purity.csv", index=False)
mt.pl.neighbor_purity(test)
mt.get.neighbor_purity(test).round(3)

# %% [markdown]
# The model is in `model/` of the run's folder, and `mt.load_model` opens it. It knows no time: that is stage 2
# ([train_stage2_temporal](train_stage2_temporal.ipynb)).
#
# ## What would make this wrong
#
# **Held-out cells instead of held-out donors**, or the same donor under two names: the held-out loss would be too low.
#
# **A loss that is compared across vocabularies or lengths.** Nats a gene depend on how many genes there are and on how
# many of a cell are read: the first genes of a cell are harder to guess than later ones, or easier. Compare only with the
# lines in this figure, or runs with the same vocabulary and length. In the original the last gene of a cell is also
# trained to predict padding; here it is not.
#
# **A loss that falls for the wrong reason.** Most counts of a cell are 1 or 2, and genes with equal counts are ranked by
# their medians alone. That order is the first thing a model learns, and knows nothing of cell types: a low loss can come
# with an embedding no better than an untrained one. Score the embedding, too.
#
# **Held-out loss that turns up** while the training loss goes on falling: the model memorises. Real data sets of a few
# thousand cells do this; `gene_dropout` helps, more donors help more.
#
# **Simulated cells.** Their types differ in markers by design, so PCA separates them almost perfectly: the purity here
# shows that the training works, not that the model is better than PCA.
#
# **Labels that come from the same counts.** Cell types are called from clusters of expression, and PCA is close kin to that.
# Agreement with such labels is a low bar, for the model and for PCA.
