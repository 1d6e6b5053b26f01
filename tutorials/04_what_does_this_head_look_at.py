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
# # What does this head look at?
#
# MaxToki reads a cell as a list of its genes, the highest ranked first. Its *attention heads* are the only parts in which one gene can
# learn of another. In each layer, every head looks back from each gene at those ranked above it, decides how much to take from each (this is
# its **attention**, shares that add up to 1), and passes the mixture on. A head is called by layer and number: `L2H1` is in the
# third layer (counted from 0), its second.
#
# So it is tempting to ask: which head looks at transcription factors? At my pathway? At the time in the prompt? The answers are
# easy to get and easy to get wrong, because *every* head looks at *something* more than at other things. This page shows how to ask, on
# **simulated** cells and the small demo model. It runs in about a minute.

# %% tags=["parameters"]
n_simulated: int = 1500  # simulated cells
n_donors: int = 24  # simulated donors
n_cells: int = 1  # cells of each donor and cell type to read, at most
n_prompts: int = 32  # prompts to read
n_ablated: int = 24  # prompts to read again with a head taken out
n_permutations: int = 1000  # permutations of each gene set
seed: int = 7  # seed of donors and draws; the demo model was trained on donors of seeds 0 and 1

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import maxtoki_toolkit as mt
from maxtoki_toolkit.pl._style import BASELINE, MODEL, NULL, clean

mt.settings.progress = False

adata = mt.datasets.aging_atlas(n_simulated, n_donors, seed=seed)
truth = adata.uns.pop("truth")
adata = adata[adata.obs["condition"] == "control"].copy()
model = mt.load_model("demo")
mt.pp.map_genes(adata, model)
mt.pp.rank_value_encode(adata, model)
print(model)

# %% [markdown]
# ## 1. Add up what the heads look at
#
# A few cells of each donor and cell type are read, so that no donor and no type counts for more than others. The attention itself (all genes by all
# genes, for each head and cell) is never kept, only sums: what each gene received, and what tokens *at its positions* receive on
# average.
#
# We also name two gene sets. "TF" is the list of human transcription factors. The other is planted: genes that change with age in at
# least three cell types of the simulation. A model that was trained to tell time has reason to look at them.

# %%
cell_types = truth["age_genes"].groupby("ensembl_id")["cell_type"].nunique()
ageing = sorted(cell_types.index[cell_types >= 3])
mt.tl.attention(
    adata,
    model,
    gene_sets={"TF": "TF", "ageing": ageing},
    groupby="cell_type",
    donor_key="donor_id",
    n_cells=n_cells,
    rng=seed,
)
read = adata.uns["attention"]["sequences"]
print(f"{len(read)} cells of {read['donor'].nunique()} donors and {read['group'].nunique()} cell types")

# %% [markdown]
# ## 2. Place comes first
#
# The model reads from left to right: a gene is seen by all that are ranked below it. So the first genes of a cell receive much attention from any
# head, whatever they are, and the last ones next to none. Left, one head: a blue dot is a gene, at its mean rank. The orange dot at the same rank is what tokens at
# its positions receive: a head that knows nothing but places would put every blue dot on the orange one. Right, all heads: how well the rank of a
# gene alone foretells what it receives, before and after dividing by that expectation.

# %%
heads = mt.get.attention(adata)[["layer", "head", "name"]].drop_duplicates().reset_index(drop=True)
rows = []
for head in heads.itertuples():
    genes = mt.get.attention_genes(adata, layer=head.layer, head=head.head)
    genes = genes[genes["n_tokens"] >= 10]
    correlation = genes[["mean_rank", "mass", "rate"]].corr("spearman")["mean_rank"].abs()
    spread = genes["rate"].quantile([0.05, 0.95]).to_numpy()
    rows.append(
        {
            "as it is": correlation["mass"],
            "beyond place": correlation["rate"],
            "low": spread[0],
            "high": spread[1],
        }
    )
place = pd.concat([heads, pd.DataFrame(rows)], axis=1)
most = place.loc[place["as it is"].idxmax()]

figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained", width_ratios=[1, 1.3])
genes = mt.get.attention_genes(adata, layer=most["layer"], head=most["head"]).query("n_tokens >= 10")
genes = genes.sort_values("mean_rank")
axes[0].scatter(genes["mean_rank"], genes["mass"], s=7, color=MODEL, alpha=0.5, label="genes")
axes[0].scatter(genes["mean_rank"], genes["expected"], s=7, color=BASELINE, label="tokens at its positions")
axes[0].set(
    xlabel="mean rank of the gene",
    ylabel=f"attention received from {most['name']}\n(a token, summed)",
    yscale="log",
)
axes[0].legend(frameon=False, fontsize=8)
position = np.arange(len(place))
axes[1].bar(position - 0.2, place["as it is"], 0.4, color=NULL, label="attention as it is")
axes[1].bar(position + 0.2, place["beyond place"], 0.4, color=MODEL, label="over that at its positions")
axes[1].set_xticks(position, place["name"], rotation=90, fontsize=8)
axes[1].set(ylabel="|Spearman's correlation|\nwith the rank of the gene", ylim=(0, 1.15))
axes[1].legend(frameon=False, fontsize=8, ncol=2, loc="upper left")
for ax in axes:
    clean(ax)

# %% [markdown]
# **The null to beat is a head that only knows places.** Grey bars near 1 are such heads, as far as ranks go. A list of "the genes with most
# attention" is then a list of highly ranked genes, and any gene set that is highly expressed looks interesting. From here on everything is
# a *rate*: attention received over that at the same positions, 1 for a head that only knows places.
#
# Rates still differ between genes. How much, in the middle 90% of the genes:

# %%
place[["name", "low", "high"]].set_index("name").round(2).T

# %% [markdown]
# ## 3. Which heads look at my genes?
#
# Three sets, the same question: do their genes receive more than genes *like them* in rank, detection and expression? Transcription factors; the
# planted ageing genes; and, because a method that always finds something is worth nothing, **genes drawn at random**.

# %%
genes = adata.uns["attention"]["genes"]
often = genes[genes["n_tokens"] >= 30]
drawn = np.random.default_rng(seed).choice(often["ensembl_id"], 60, replace=False).tolist()
sets = {"TF": "TF", "ageing": "ageing", "random": drawn}
results = {}
for name, gene_set in sets.items():
    where = f"head_enrichment_{name}"
    mt.tl.head_enrichment(adata, gene_set=gene_set, n_permutations=n_permutations, rng=seed, key_added=where)
    results[name] = mt.get.table(adata, where)

figure, axes = plt.subplots(1, 3, figsize=(11, 2.9), layout="constrained")
for ax, name in zip(axes, sets, strict=True):
    mt.pl.head_enrichment(adata, key=f"head_enrichment_{name}", ax=ax)
title = axes[2].get_title(loc="left").split(": ", 1)[1]
heading = axes[2].set_title(f"random: {title}", fontsize=9, loc="left")
# %%
pd.DataFrame(
    {
        name: {
            "genes compared": table.attrs["n_genes_compared"],
            "heads with q < 0.05": (table["q_value"] < 0.05).sum(),
            "smallest q": table["q_value"].min(),
            "heads that look more at the set": (table["log2_ratio"] > 0).sum(),
            "correlation of two halves of the donors": table.attrs["replication_r"],
        }
        for name, table in results.items()
    }
).T.round(3)

# %% [markdown]
# How to read it: each square is a head, orange if it gives the set more than matched genes get, purple if less, with a dot where q < 0.05. **Colour without a
# dot is not a finding.** Squares can be strongly coloured for the random set as well: genes differ, few of them make a set, and heads tell genes apart. The p
# value asks how often other sets of like genes do as well, and q corrects for having asked every head.
#
# The columns say what we may write. Where a head has q < 0.05: "this head attends to the set more (or less) than to matched genes". Where none has, as you may well see
# for the transcription factors: "no head was found to attend to the set more than to matched genes (n genes, n donors)". Not "the heads ignore it": the
# table does not show that, and this model is small and has seen simulated cells only. It says nothing of larger ones.
#
# ## 4. Does it replicate?
#
# Split the donors in two halves, and ask both. A dot is a head.

# %%
figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.1), layout="constrained")
for ax, (name, table) in zip(axes, results.items(), strict=True):
    called = table["q_value"] < 0.05
    ax.axhline(0, color="0.8", lw=0.8, zorder=0)
    ax.axvline(0, color="0.8", lw=0.8, zorder=0)
    ax.scatter(
        table["half_1"], table["half_2"], s=26, facecolor=np.where(called, MODEL, "white"), edgecolor=MODEL
    )
    ax.set_title(f"{name}: r {table.attrs['replication_r']:.2f}", fontsize=9, loc="left")
    ax.set_xlabel("one half of the donors (log2 ratio)")
    clean(ax)
axes[0].set_ylabel("the other half (log2 ratio)")
note = axes[0].annotate("filled: q < 0.05", (0.03, 0.93), xycoords="axes fraction", fontsize=8)

# %% [markdown]
# **Replication is necessary, and not enough.** Look at the random set: what a head makes of a fixed list of genes is the same in other
# donors, because it is the same model, even if the list means nothing. Replication says that there were enough cells; the permutation
# of genes (section 3) says whether the list matters. A finding needs both.
#
# ## 5. Context, time or query?
#
# Asked for a time, the model reads a *prompt*: a few cells with the lapses between them, then a query cell. Which heads look at which part?
# Again place comes first. The query is the last cell, so a head that looks at its neighbours gives it most without
# knowing what a query is. The bars show the shares; the squares compare with a head that gives as much to *each distance*.

# %%
mt.pp.sample_prompts(
    adata,
    time_key="age_months",
    groupby="cell_type",
    donor_key="donor_id",
    n_prompts=n_prompts,
    context_size=2,
    rng=seed,
)
mt.tl.attention(adata, model, key="prompts", gene_sets=None, rng=seed)
mt.tl.head_segments(adata, rng=seed)
mt.pl.head_segments(adata)

# %%
segments = mt.get.table(adata, "head_segments")
segments.groupby("segment", sort=False).agg(
    heads=("name", "size"),
    specialised=("specialised", "sum"),
    largest=("log2_ratio", "max"),
    evenly=("evenly", "first"),
).round(2)

# %% [markdown]
# `specialised` heads have q < 0.05 over donors and give at least 1.25 times what distance explains. Read a square with its bar: lapses and marks are few
# tokens (`evenly` is their share of what can be seen), and a large ratio of next to nothing is next to nothing.
#
# ## 6. Does it matter? Take a head out
#
# Attention says where a head reads, not what it does with it, nor whether anything downstream listens. The test is to take the head
# out (its output is replaced by its mean) and read the same prompts again. We take the head that gives most to the lapses beyond distance, the
# one with the largest ratio for the ageing genes, and the one that is nearest to doing nothing with either, for comparison.

# %%
lapses = segments[segments["segment"] == "lapses"].set_index("name")["log2_ratio"]
marked = results["ageing"].set_index("name")["log2_ratio"]
dull = (lapses.abs().rank() + marked.abs().rank()).drop([lapses.idxmax(), marked.idxmax()], errors="ignore")
chosen = {"lapses": lapses.idxmax(), "ageing": marked.idxmax(), "neither": dull.idxmin()}
pairs = [
    tuple(heads.set_index("name").loc[name, ["layer", "head"]]) for name in dict.fromkeys(chosen.values())
]
mt.tl.ablate_heads(adata, model, heads=pairs, n_prompts=n_ablated, rng=seed)
effects = mt.get.table(adata, "ablate_heads")
effects.insert(
    0,
    "looks at",
    [" and ".join(k for k, v in chosen.items() if v == name) for name in dict.fromkeys(chosen.values())],
)

figure, ax = plt.subplots(figsize=(6, 1.2 + 0.42 * len(effects)), layout="constrained")
for i, row in enumerate(effects.itertuples()):
    ax.plot([row.size_low, row.size_high], [i, i], color=MODEL, lw=1.6)
    ax.scatter(row.size, i, color=MODEL, s=34, zorder=3, label="head taken out" if i == 0 else None)
    ax.scatter(
        row.null_size,
        i,
        facecolor="white",
        edgecolor=NULL,
        s=34,
        zorder=3,
        label="as large a change, random direction" if i == 0 else None,
    )
ax.set_yticks(
    range(len(effects)), [f"{h} ({w})" for h, w in zip(effects["heads"], effects["looks at"], strict=True)]
)
ax.set(
    ylim=(len(effects) - 0.5, -0.5),
    xlim=(0, None),
    xlabel="mean size of the change of the predicted lapse (months)",
)
ax.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.4, 1), ncol=2)
clean(ax)

# %%
shown = [
    "looks at",
    "heads",
    "size",
    "size_low",
    "size_high",
    "null_size",
    "excess",
    "excess_low",
    "excess_high",
]
shown += ["error_change", "error_change_low", "error_change_high", "n_prompts", "n_units"]
effects[shown].set_index("heads").round(2).T

# %% [markdown]
# - `size`: by how much a prediction moves, in months, whatever its sign. Everything moves a little.
# - `null_size`: by how much it moves if the stream of the model is disturbed *as strongly, in a random direction*. This is the baseline: heads
#   that write much do much when they are taken out.
# - `excess`: the difference, with its interval over donors. If the interval holds 0, the head does no more than a disturbance of
#   its size.
# - `error_change`: whether predictions become *worse*. A head can move predictions without making them better.
#
# Compare the three. Nothing forces the head that looks most at the lapses to matter most. With so few prompts the intervals are
# wide; [fig4_head_ablation](../notebooks/fig4_head_ablation.ipynb) takes out all heads, alone and together.
#
# ## 7. What you may conclude
#
# | you saw | you may write | you may not write |
# |---|---|---|
# | a gene is high in a head's list | it receives more than tokens at its positions, in these cells | the head is "for" this gene; the gene regulates the others |
# | q < 0.05 for a set, halves agree | this head attends to the set more than to genes like them in rank, detection and expression | the model has learned the pathway; the set causes anything |
# | no head with q < 0.05 | none was found, with n genes and n donors | heads ignore the set |
# | the halves agree, q is not below 0.05 | the measurement is stable | the set is special |
# | specialised in a part of prompts | it gives that part more than distance explains | it computes time |
# | taking it out moves predictions by more than the null | the prediction depends on this head, for these prompts | the head's *attention pattern* is why |
# | any of it in one model | in this model | in MaxToki, or in cells |
#
# And three rules. Decide on the gene set before you look. Count donors, not tokens: a million tokens of 20 donors are 20 donors. If you look
# through many sets, cell types and statistics until a dot appears, say how many.
#
# ## 8. Look for yourself
#
# In JupyterLab the next cell is a widget: choose a statistic, a gene set and a cell type, click a head, and see its genes, its parts of
# prompts and the cell types beside it. On a page that nobody executes by hand there is a picture of it. It shows all results
# that are in `adata`, and the last rule above holds for it in particular.

# %%
mt.widgets.heads(adata)

# %% [markdown]
# For your own cells, start from [Your own h5ad in MaxToki](01_your_own_h5ad.ipynb), then run `mt.tl.attention` with your columns. A model
# that cannot tell time reads cells one by one: all but sections 5 and 6 works, and `mt.tl.ablate_heads(..., readout="likelihood")`
# takes heads out of it. [fig4_attention_heads](../notebooks/fig4_attention_heads.ipynb) does this page with papermill, for larger models.
