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
# # Which genes rejuvenate my cells?
#
# Take a cell, move one gene down its ranking, and let the model read the cell's age again. If it looks younger, is that gene a target?
#
# **Perhaps. This page is about what stands between the two.** Such a screen is quick and always returns a list, with genes at the top that someone has published on. So the cells here are
# **simulated**, and we can look up what is true. Section 6 is for your own file. The page runs in one to two minutes on one core.

# %%
import numpy as np
import pandas as pd

import maxtoki_toolkit as mt

mt.settings.progress = False

# %% [markdown]
# ## 1. Cells, donors, prompts
#
# Donors that the demo model was not trained on (it knows seeds 0 and 1), and one cell type. A prompt is a cell with its age and then a second cell of another age, whose age the model
# is asked for. We will edit that second one, the *query*.

# %%
adata = mt.datasets.aging_atlas(4000, 40, seed=12)
truth = adata.uns.pop("truth")["age_genes"]
adata = adata[adata.obs["cell_type"] == "fibroblast"].copy()
model = mt.load_model("demo")
mt.pp.map_genes(adata, model)
mt.pp.rank_value_encode(adata, model)
mt.pp.sample_prompts(
    adata,
    time_key="age_months",
    groupby="cell_type",
    donor_key="donor_id",
    n_prompts=14,
    context_size=1,
    rng=1,
)
mt.get.prompts(adata).head(3)

# %% [markdown]
# ## 2. One gene, looked at closely
#
# Before any list: what does an edit do? Five ways to move the same gene, in every query.

# %%
ranks = mt.get.ranks(adata)
read = (ranks <= 126).mean().nlargest(60).index[30]
rows = {}
for mode, k in [("inhibit", None), ("delete", None), ("shift", -20), ("activate", 20), ("overexpress", None)]:
    mt.tl.perturb(adata, model, genes=[read], mode=mode, k=k)
    table = mt.get.perturbation(adata)
    took = table[table["took_effect"]]
    rows[mode] = {
        "cells with the gene": int(table["present"].sum()),
        "edits that took effect": len(took),
        "rank before": took["rank_before"].median(),
        "rank after": np.nan if mode == "delete" else took["rank_after"].median(),
        "pushed out (genes a cell)": took["n_lost"].mean(),
        "mean effect (months)": took["effect"].mean(),
    }
print(adata.var.loc[read, "symbol"])
pd.DataFrame(rows).transpose().round(2)

# %% [markdown]
# Three things to read from this table.
#
# - **A gene that a cell does not have cannot be inhibited.** Such cells have no effect (NaN). Screens that put a 0 there, and average, make every rare gene look harmless.
# - **The model reads the highest ranked genes of a cell only.** Inhibition moves a gene out of that window, and the next gene comes in, so that here it does the same as deletion. Overexpression pushes the last one out.
# - **The modes need not agree, in size or in sign.** No real cell has a silenced gene at its last rank or a transcription factor at its first. If a finding holds in one mode alone, it is about the mode.
#
# ## 3. All genes

# %%
mt.tl.perturb(adata, model, genes="all", mode="inhibit")
mt.tl.perturbation_stats(adata)
stats = mt.get.perturbation_stats(adata)
ax = mt.pl.perturbation(adata, group="fibroblast")

# %% [markdown]
# A point is the mean over donors, with its 95% interval. **Grey is the part that matters:** where the effects of other genes of like rank, detection and expression lie. High ranked genes move the reading
# whatever they are.
#
# The two p values answer two questions. `p_donors` asks whether the effect is 0, and `p_value` whether it is more than matched genes do. `q_value` asks for both, of as many genes as were tested:

# %%
tested = stats[stats["p_value"].notna()]
print(f"genes tested: {len(tested)}")
print(f"p_donors < 0.05: {(tested['p_donors'] < 0.05).sum()}")
print(f"p_value < 0.05: {(tested['p_value'] < 0.05).sum()}, of which by chance: {0.05 * len(tested):.0f}")
print(f"q_value < 0.05: {(tested['q_value'] < 0.05).sum()}")

# %% [markdown]
# Do not be surprised if the last number is 0 with as few cells as here. **A top ten is not a finding: any list has one.** More prompts of more donors help; other thresholds do not.
#
# Controls come with it. Housekeeping genes should do nothing in particular, and absent genes nothing at all:

# %%
mt.get.perturbation_controls(adata).drop(columns="k").round(3)

# %% [markdown]
# ## 4. Were they the right genes?
#
# Here we can look. Of the genes that were tested, those that go with age in fibroblasts in the simulation, and whether the direction is right:

# %%
planted = truth[(truth["cell_type"] == "fibroblast") & (truth["direction"] != "turnover")]
planted = planted.drop_duplicates("ensembl_id").set_index("ensembl_id")
tested = tested.assign(fold=tested["gene"].map(planted["log2_fold"]).fillna(0.0))
top = tested.reindex(tested["z"].abs().sort_values(ascending=False).index).head(15)
print(
    f"planted among all tested: {(tested['fold'] != 0).mean():.0%}; among the top 15: {(top['fold'] != 0).mean():.0%}"
)
right = top[top["fold"] != 0]
print(
    f"of these, direction right: {(np.sign(right['effect']) == -np.sign(right['fold'])).sum()} of {len(right)}"
)
top[["symbol", "effect", "effect_low", "effect_high", "z", "q_value", "n_units", "fold"]].round(2)

# %% [markdown]
# `fold` is the planted change over 60 years, 0 for genes that do not go with age. **A 0 at the top is a gene that the model is wrong about**, or that was seen in few donors (`n_units`). With your
# cells that column is missing.
#
# ## 5. Association, twice
#
# A common argument: "the screen says that inhibiting this gene rejuvenates, *and* its expression rises with age; two lines of evidence". Compare:

# %%
mt.tl.expression_age_slope(
    adata, time_key="age_months", donor_key="donor_id", groupby="cell_type", covariates=["sex", "batch"]
)
mt.tl.perturbation_concordance(adata, n_permutations=500)
ax = mt.pl.perturbation_concordance(adata)

# %%
columns = ["group", "genes", "n_genes", "share", "null_low", "null_high", "p_value", "rho", "rho_p_value"]
mt.get.perturbation_concordance(adata)[columns].round(3)

# %% [markdown]
# Where they agree, that is **one** line of evidence, seen twice: the model learned its ages from the same rise and fall of expression. Agreement says that the model has learned. It does not say that
# the gene does anything: grey hair rises with age too, and dyeing it makes nobody younger.
#
# In the simulation this can be shown. Most ageing genes are targets of a few transcription factors. Editing a target moves the reading, though only its factor drives anything:

# %%
through = tested["gene"].map(planted["driver"]).fillna("")
kinds = np.where(
    tested["fold"] == 0,
    "does not age",
    np.where(through != "", "follows a factor", "ages by itself, or is a factor"),
)
tested.groupby(kinds)["z"].agg(genes="size", median_size=lambda z: z.abs().median()).round(2)

# %% [markdown]
# ### What you can and cannot claim
#
# | You may say | You may not say |
# |---|---|
# | The model reads cells as younger when this gene is moved down, more than for matched genes (q, donors, mode) | Inhibiting this gene rejuvenates cells |
# | The effect has the same sign in so many donors, cell types and modes | The gene is a driver of ageing |
# | This gene is a candidate for an experiment | The gene is a target |
# | No effect was seen in cells that have the gene | The gene has no effect (in a cell that lacks it, nothing was tested) |
#
# Only an experiment moves one thing and sees all others answer. In this screen **no other gene answers**: the rest of the ranking stays as it was.
#
# ## 6. Your own data
#
# You need a model that tells the time of **your** cells and was trained on none of these donors: the published weights cannot, and the demo model's years mean nothing outside the simulation. [Tell
# time](../docs/how_to.md#tell-time) says how to train one. Without it, `readout="likelihood"` or `readout="embedding"` with target cells (`on=mt.tl.Cells(target="young")`, say) asks whether an edit leads towards these; that is no time.
#
# On a cluster, or for all genes of many cells: `maxtoki screen -c screen.yaml`, which goes on where it was stopped.

# %% tags=["parameters"]
path: str = ""  # .h5ad with raw counts; "" to skip this section
own_model: str = "runs/clock/model"  # folder of a temporal model that was trained on none of these donors
time_key: str = "age_months"  # column of .obs with the age, in the unit of the model
groupby: str = "cell_type"  # column of .obs with the cell type
donor_key: str = "donor_id"  # column of .obs with the donor: a person, not a sample or a lane
n_prompts: int = 500  # prompts; more give narrower intervals
output: str = "screen.csv.gz"  # effects to write; a stopped screen goes on from there

# %%
if path:
    mine = mt.pp.read_cells(path)
    clock = mt.load_model(own_model)
    mt.pp.map_genes(mine, clock)
    mt.pp.rank_value_encode(mine, clock)  # refuses normalised values
    mt.pp.sample_prompts(mine, time_key=time_key, groupby=groupby, donor_key=donor_key, n_prompts=n_prompts)
    mt.tl.perturb(mine, clock, genes="all", mode="inhibit", path=output)
    mt.tl.perturbation_stats(mine)
    mt.get.perturbation_stats(mine).to_csv("screen_stats.csv", index=False)
    mt.pl.perturbation(mine)
    mt.pl.perturbation_volcano(mine)

# %% [markdown]
# A model that cannot tell time is refused:

# %%
shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
untrained = mt.models.build_model(shape, model.vocab)
try:
    mt.tl.perturb(adata, untrained, genes="all")
except ValueError as error:
    print(error)

# %% [markdown]
# **Before you write it up**: mode and what is edited; how many genes were read, in how many cells and donors; the null and n of matched genes; q and not p; what housekeeping genes do; another mode; other donors; which model,
# with checksum (`adata.uns["perturbation"]["params"]`), trained on whom.
