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
# # Fig. 4: what do the attention heads look at?
#
# A head hands every token (a gene, a mark, a lapse) a mixture of the tokens before it; its attention says how much of each. This
# notebook sums up the attention of all heads over many cells and prompts and asks four questions of each head. Does it look at transcription factors (or another gene set) more
# than at other genes *like them*? Does it behave differently in some cell types? Which heads look at the same genes? And which
# look at the context, the lapses or the query of a prompt?
#
# Without a `path` the cells are simulated (`mt.datasets.aging_atlas`), of donors that the demo model has not seen.
#
# The paper ([doi:10.64898/2026.03.30.715396](https://doi.org/10.64898/2026.03.30.715396)) says of Fig. 4, on the model with 217
# million parameters and 88 heads, that it "revealed context-specific specialization of attention heads and higher attention to central
# regulators". Summaries that we know it by say that about half of the heads look more at transcription factors than at other genes,
# that many heads are specialised in context cells, lapses or the query, and that some are in cell types, of about 60. Panel letters,
# tests, numbers of cells and what the genes were compared with are not known to us.

# %% tags=["parameters"]
path: str = ""  # .h5ad with raw counts; "" for the simulated atlas
layer: str = ""  # layer with the raw counts; "" for .X
model: str = "demo"  # "demo", the folder of a model, or "maxtoki-217m" (no time tokens, so no prompts)
tokens: str = ""  # published token dictionary (JSON), for the published weights
medians: str = ""  # published gene medians (JSON), with tokens
cell_type_key: str = "cell_type"  # column of .obs with the cell type
donor_key: str = "donor_id"  # column of .obs with the donor
time_key: str = "age_months"  # column of .obs with the time, in whole units
time_unit: str = "months"  # unit of that column
groupby: list = ["cell_type", "sex"]  # columns of .obs in which all cells of a prompt agree
cells: dict = {}  # cells to use, by columns of .obs, e.g. {"tissue": ["lung"]}; {} for all
gene_set: dict = {"TF": "TF"}  # a name, and symbols or Ensembl ids; "TF" is all human transcription factors
statistic: str = "sink"  # what to compare between cell types: "sink", "entropy", "distance" or the gene set
n_cells: int = 2  # cells of each donor and cell type to read, at most
n_permutations: int = 5000  # permutations of the gene set, and of the cell types
n_prompts: int = 120  # prompts to read; the paper's number is not known
context_size: list = [2, 3]  # fewest and most context cells a prompt
n_examples: int = 8  # prompts of which one is drawn, token by token
n_simulated: int = 5000  # simulated cells
n_donors: int = 60  # simulated donors
seed: int = 7  # seed of donors and draws; the demo model was trained on donors of seeds 0 and 1
store: str = ""  # zarr store for the sums of many genes and heads; "" to keep them in memory
output: str = ""  # folder for figures (PNG, PDF) and tables (CSV); "" for none

# %%
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display

import maxtoki_toolkit as mt
from maxtoki_toolkit.pl._style import BASELINE, MODEL, NULL, clean

mt.settings.progress = False
save = mt.reports.saver(output)


# %% [markdown]
# ## Cells
#
# Only controls of the simulation are used. Of each donor and cell type a few cells are read, so that no donor and no type counts for
# more than others.

# %%
settings = {"path": path, "model": model, "cell_type_key": cell_type_key, "donor_key": donor_key}
settings |= {"n_cells": n_cells}
if unset := [name for name, value in settings.items() if value == "unknown"]:
    raise ValueError(f"Set these parameters: {', '.join(unset)}. What the paper has there is not known.")
vocab = mt.models.Vocabulary.from_json(tokens, gene_medians=medians) if tokens else None
maxtoki = mt.load_model(model, vocab=vocab)
if path:
    adata = mt.reports.read_cells(
        path,
        layer=layer,
        time_key=time_key,
        time_unit=time_unit,
        model=maxtoki if maxtoki.is_temporal else None,
    )
else:
    adata = mt.datasets.aging_atlas(n_simulated, n_donors, seed=seed)
    adata = adata[adata.obs["condition"] == "control"].copy()
adata = adata[mt.reports.cells_with(adata, cells)].copy()
mt.pp.map_genes(adata, maxtoki)
mt.pp.rank_value_encode(adata, maxtoki, layer=layer or None)
mt.tl.attention(
    adata,
    maxtoki,
    gene_sets=gene_set,
    groupby=cell_type_key,
    donor_key=donor_key,
    n_cells=n_cells,
    path=store or None,
    rng=seed,
)
read = adata.uns["attention"]["sequences"]
print(f"{len(read):,} cells of {read['donor'].nunique()} donors and {read['group'].nunique()} cell types")
save(mt.get.attention(adata), "attention")

# %% [markdown]
# ## Do heads look at transcription factors?
#
# Each square is a head; its colour is the attention that the gene set receives over that of matched genes, on a log2 scale (0.1 is 7%
# more). Two things must not be mistaken for interest in a gene:
#
# - **Place.** Attention is causal: a token is seen only by those after it, so genes of high rank, at the start, receive more from any
#   head. Every gene is compared with what tokens at its positions receive on average.
# - **Expression.** Transcription factors are often expressed less than other genes, and so have other ranks and are in fewer cells. They
#   are compared with genes alike in rank, detection and expression, 16 to 31 at a time.

# %% tags=["answer"]
name = next(iter(gene_set))
mt.tl.head_enrichment(adata, gene_set=name, n_permutations=n_permutations, rng=seed)
ax = mt.pl.head_enrichment(adata)
save(ax.figure, "fig4_head_enrichment")

# %% tags=["answer"]
enrichment = mt.get.table(adata, "head_enrichment")
save(enrichment, "head_enrichment")
called = enrichment["q_value"] < 0.05
print(
    f"{name}: {called.sum()} of {len(enrichment)} heads differ from matched genes (q < 0.05), "
    f"{(called & (enrichment['log2_ratio'] > 0)).sum()} of them look more at the set; "
    f"smallest q {enrichment['q_value'].min():.2g}.\n"
    f"{enrichment.attrs['n_genes_compared']} genes of the set could be compared. Two halves of the donors: "
    f"r {enrichment.attrs['replication_r']:.2f} over heads, same sign in "
    f"{100 * enrichment.attrs['replication_sign']:.0f}% of them."
)
adata.uns["head_enrichment"]["balance"].round(2).set_index("covariate")

# %% [markdown]
# The table is of the matching: how far the set is from the other genes, in standard deviations, before and after. In the
# simulated cells transcription factors are hardly different from other genes to begin with; in real ones they are.
#
# ## Is it these genes, or any genes?
#
# Two kinds of uncertainty, which answer two questions. The blue line is the 95% interval over donors: the same genes in other donors. The grey band
# is what sets of other genes, drawn from the same strata, give in the middle 95%. A head can tell *these* genes from
# others very reliably in all donors, and still do so with any other set as well: genes differ, and heads tell
# genes apart. Only what leaves the band is about the gene set. Orange: without any matching.

# %%
table = enrichment.sort_values("log2_ratio", ignore_index=True)
place = np.arange(len(table))
figure, ax = plt.subplots(figsize=(5.6, 1.1 + 0.2 * len(table)), layout="constrained")
ax.barh(
    place,
    2 * 1.96 * table["null_sd"],
    0.8,
    table["null_mean"] - 1.96 * table["null_sd"],
    color=NULL,
    alpha=0.35,
    label="other genes like them, 95%",
)
ax.axvline(0, color="black", lw=0.8)
ax.scatter(table["raw"], place, s=18, facecolor="white", edgecolor=BASELINE, zorder=3, label="not matched")
ax.hlines(place, table["log2_ratio_low"], table["log2_ratio_high"], color=MODEL, lw=1.4, zorder=4)
ax.scatter(table["log2_ratio"], place, s=18, color=MODEL, zorder=5, label="matched, 95% over donors")
ax.set_yticks(place, table["name"], fontsize=8)
ax.set(ylim=(-0.7, len(table) - 0.3))
ax.tick_params(axis="x", labelsize=8)
ax.set_xlabel(f"attention that {name} genes receive, log2 of set over others", fontsize=9)
ax.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.45, 1), ncol=3)
clean(ax)
save(figure, "fig4_enrichment_null")

# %%
columns = [
    "name",
    "log2_ratio",
    "log2_ratio_low",
    "log2_ratio_high",
    "raw",
    "null_mean",
    "null_sd",
    "p_value",
]
columns += ["q_value", "half_1", "half_2"]
enrichment[columns].round(3).set_index("name")

# %% [markdown]
# With the defaults no head of the demo model is called. The model has four layers, 254 genes, and was trained on simulated cells; it
# says nothing of what larger models do on real ones.
#
# ## Do heads behave differently in some cell types?
#
# A head that rests puts its attention on the first token, where there is nothing to see; the share there ("sink") says how idle it is. Each column is a head,
# each row a cell type: how far the type is from the mean of all types *of the same donor*. Above, how much of a
# head's variance lies between cell types, beside what it is when types are permuted within donors (grey).

# %%
mt.tl.head_profiles(adata, statistic=statistic, n_permutations=n_permutations, rng=seed)
figure = mt.pl.head_profiles(adata)
save(figure, "fig4_head_profiles")
display(figure)

# %%
specificity = mt.get.table(adata, "head_profiles", "heads")
save(specificity, "head_specificity")
save(mt.get.table(adata, "head_profiles"), "head_profiles")
columns = ["name", "specificity", "null_mean", "q_value", "top_group", "r_length"]
specificity[columns].round(3).set_index("name")

# %% [markdown]
# Filled bars and points are not rare: cells of different types hold different genes, and whatever reads them differs. "q < 0.05" says that
# the head is not the same in all types, `specificity` how much of its variance that is. `r_length` is the trivial explanation, the
# correlation with how many genes cells of a type have; it is empty where all cells fill the model's window, as they do here.
#
# ## Which heads look at the same genes?
#
# Heads side by side are alike in which genes they look at beyond place. Below the diagonal all donors are used; above, one half of
# the donors for one head and the other half for the other, so that they cannot be alike because they have read the same
# cells. The diagonal, a head with itself in other donors, is the most that can be expected.

# %%
mt.tl.head_similarity(adata, rng=seed)
ax = mt.pl.head_similarity(adata)
save(ax.figure, "fig4_head_similarity")

# %%
similarity = mt.get.head_similarity(adata)
save(similarity, "head_similarity")
reliability = adata.uns["head_similarity"]["heads"]["reliability"]
print(
    f"Median correlation of two heads: {similarity['similarity'].median():.2f}; with place left in, "
    f"{similarity['raw'].median():.2f}. Reliability {reliability.min():.2f} to {reliability.max():.2f}."
)
similarity.nlargest(5, "replicated").round(2)

# %% [markdown]
# ## Context, lapses or query?
#
# For this the model reads prompts: context cells with the lapses between them, and a query. Bars: what share of its attention
# a head gives to each part, at the right that of a head which attends to all tokens alike. A query is the last cell, so a head that looks at its neighbours gives it
# more than its share without knowing what a query is. The squares therefore compare with a head that gives as much to each
# distance, shared evenly among the tokens there. A point: at least 1.25 times that, q < 0.05 over donors.

# %%
if maxtoki.is_temporal:
    mt.pp.sample_prompts(
        adata,
        time_key=time_key,
        groupby=groupby,
        donor_key=donor_key,
        n_prompts=n_prompts,
        context_size=tuple(context_size),
        rng=seed,
    )
    mt.tl.attention(adata, maxtoki, key="prompts", gene_sets=None, n_examples=n_examples, rng=seed)
    mt.tl.head_segments(adata, rng=seed)
    save(mt.get.table(adata, "head_segments"), "head_segments")
    figure = mt.pl.head_segments(adata)
    save(figure, "fig4_head_segments")
    display(figure)
else:
    print("This model has no time tokens: it reads no prompts.")

# %% [markdown]
# The same for the last token alone, `<eoq>`, from which the lapse is read. What it does not look at can still reach it, through
# tokens of the query that have looked there in an earlier layer.

# %%
if maxtoki.is_temporal:
    mt.tl.head_segments(adata, attending="last", rng=seed, key_added="head_segments_last")
    last = mt.get.table(adata, "head_segments_last")
    save(last, "head_segments_last")
    figure = mt.pl.head_segments(adata, key="head_segments_last")
    save(figure, "fig4_head_segments_last")
    display(figure)

# %% [markdown]
# A ratio is large where next to nothing is expected: read the squares with the bars above them.
#
# One head along one prompt, token by token: the one that gives most to the lapses when the last token reads, in that of a few
# prompts in which it does so most.

# %%
if maxtoki.is_temporal:
    lapses = last[last["segment"] == "lapses"].sort_values(["specialised", "mass"]).iloc[-1]
    which = {"layer": int(lapses["layer"]), "head": int(lapses["head"])}
    examples = [mt.get.prompt_attention(adata, **which, example=i) for i in range(n_examples)]
    given = [example.loc[example["segment"] == "lapses", "last"].sum() for example in examples]
    figure = mt.pl.prompt_attention(adata, **which, example=int(np.argmax(given)))
    save(figure, "fig4_one_prompt")
    display(figure)

# %% [markdown]
# ## What would make this wrong
#
# **Place in place of content.** In a causal model the first tokens are seen by all others and the last by none. Whatever stands early,
# highly ranked genes or the first context cell, receives more from any head. The rates, `log2_ratio` and the squares are free of it; bare
# shares of attention (`raw`, `mass`) are not.
#
# **Rank in place of function.** Transcription factors are often expressed less than other genes. Matching takes out rank, detection and expression, as far as the table of
# differences shows; it does not take out how many cell types a gene is in, or how much it varies. Genes that are in few
# cell types are also read in few.
#
# **Pseudoreplication: cells, or tokens, as units.** A million tokens of 30 donors are 30 donors. Intervals here leave out donors; the p value of the gene set is
# of genes, because it is a statement about genes. A test with tokens as units has millions of them and calls the smallest
# difference.
#
# **Replication that means less than it seems.** Any set of genes replicates over donors when heads tell genes apart. Look at the grey
# band first.
#
# **Attention in place of effect.** Where a head looks is not what it does with it, nor whether anything depends on it:
# [heads taken out](fig4_head_ablation.ipynb) say more about that.
#
# **Few cells of a type.** A type that is in few donors has a wide interval in `mt.get.table(adata, "head_profiles")`, not a profile.
