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
# # Fig. 4A: what in a prompt does the model use?
#
# A prompt is a few cells with the time between them, and a query cell. This notebook changes one thing at a time, asks for
# the same lapses again, and draws by how much the error grows: genes in random order ("a bag of genes"), cells hidden or replaced,
# lapses shuffled or left out, the highest or the lowest ranked genes dropped.
#
# Without a `path` the cells are simulated (`mt.datasets.aging_atlas`), of donors and of cell types that the demo model was not
# trained to tell the time of. The paper ([doi:10.64898/2026.03.30.715396](https://doi.org/10.64898/2026.03.30.715396)) reports
# that shuffling the genes "significantly" damaged the lapses of held-out cell types, and, in summaries that we know it by,
# that masking the context or the query damaged them "significantly and equivalently". Its numbers, and its test, are not known to us.

# %% tags=["parameters"]
path: str = ""  # .h5ad with raw counts and known ages; "" for the simulated atlas
layer: str = ""  # layer with the raw counts; "" for .X
model: str = "demo"  # "demo", or the folder of a model that mt.train.temporal wrote
time_key: str = "age_months"  # column of .obs with the time, in whole units
time_unit: str = "months"  # unit of that column
groupby: list = ["cell_type", "sex"]  # columns of .obs in which all cells of a prompt agree
donor_key: str = "donor_id"  # column of .obs with the donor
cells: dict = {  # cells to use, by columns of .obs; {} for all. Here: two types whose time nobody taught, and two taught ones
    "cell_type": ["cardiomyocyte", "CD8 T cell", "fibroblast", "monocyte"]
}
ablations: list = [  # what to do; see mt.tl.ablate_prompt
    "intact",
    "shuffle_genes",
    "shuffle_context",
    "shuffle_query",
    "mask_context",
    "mask_query",
    "replace_context",
    "replace_query",
    "shuffle_lapses",
    "drop_lapses",
    "drop_top",
    "drop_bottom",
]
share: float = 0.25  # share of a cell's genes that the last two leave out
n_prompts: int = 400  # prompts; the paper's number is not known
context_size: list = [2, 3]  # fewest and most context cells a prompt
n_cells: int = 5000  # simulated cells
n_donors: int = 60  # simulated donors
seed: int = 4  # seed of donors and prompts; the demo model was trained on donors of seeds 0 and 1
output: str = ""  # folder for the figure (PNG, PDF) and the table (CSV); "" for none

# %%
from pathlib import Path

import numpy as np

import maxtoki_toolkit as mt

mt.settings.progress = False

# %% [markdown]
# ## Cells and prompts
#
# Only controls of the simulation are used. All cells of a prompt are of one cell type and sex.

# %%
maxtoki = mt.load_model(model)
if path:
    adata = mt.reports.read_cells(path, layer=layer, time_key=time_key, time_unit=time_unit, model=maxtoki)
else:
    adata = mt.datasets.aging_atlas(n_cells, n_donors, seed=seed)
    adata = adata[adata.obs["condition"] == "control"].copy()
adata = adata[mt.reports.cells_with(adata, cells)].copy()
mt.pp.map_genes(adata, maxtoki)
mt.pp.rank_value_encode(adata, maxtoki, layer=layer or None)
mt.pp.sample_prompts(
    adata,
    time_key=time_key,
    groupby=groupby,
    donor_key=donor_key,
    n_prompts=n_prompts,
    context_size=tuple(context_size),
    rng=seed,
)
mt.get.table(adata, "prompts")["group"].value_counts()

# %% [markdown]
# ## The figure
#
# Each point is the mean, over the same prompts, of the absolute error with the ablation less that without, with its 95%
# interval over donors: one donor after the other is left out, with all prompts he or she is part of. Filled where q < 0.05.

# %% tags=["answer"]
mt.tl.ablate_prompt(adata, maxtoki, ablations=ablations, share=share, rng=seed)
ax = mt.pl.ablation(adata)
if output:
    Path(output).mkdir(parents=True, exist_ok=True)
    for ending in ("png", "pdf"):
        ax.figure.savefig(Path(output) / f"fig4a_prompt_ablation.{ending}", dpi=300, bbox_inches="tight")

# %% tags=["answer"]
effects = mt.get.table(adata, "ablate_prompt")
if output:
    effects.to_csv(Path(output) / "ablation.csv", index=False)
columns = [
    "ablation",
    "mean_error",
    "difference",
    "difference_low",
    "difference_high",
    "r",
    "p_value",
    "q_value",
]
effects[columns].round(3).set_index("ablation")

# %% [markdown]
# ## Context and query, equally?
#
# "Equivalently" is more than two significant effects: it is a statement about their difference, which has an interval too.

# %% tags=["answer"]
table = adata.uns["ablate_prompt"]["prompts"]
pairs = [
    ("shuffle_context", "shuffle_query"),
    ("mask_context", "mask_query"),
    ("replace_context", "replace_query"),
]
for first, second in pairs:
    if not {first, second} <= set(table):
        continue
    gap = (table[first] - table["lapse"]).abs() - (table[second] - table["lapse"]).abs()
    by_donor = gap.groupby(table["donor"]).mean()
    error = by_donor.std(ddof=1) / np.sqrt(len(by_donor))
    low, high = by_donor.mean() - 2 * error, by_donor.mean() + 2 * error
    print(
        f"{first} less {second}: {by_donor.mean():+.0f} ({low:+.0f} to {high:+.0f}) {maxtoki.time_head.unit}, "
        f"mean of {len(by_donor)} query donors"
    )

# %% [markdown]
# ## What would make this wrong
#
# **Prompts that the model was never shown.** It has learned from whole cells: `<mask>` in place of every gene, or a prompt
# without lapses, is nothing that it knows. A large effect says that the answer changes, not how the model uses what was hidden.
# Shuffled and replaced cells are closer to what it knows.
#
# **A model that does not tell time.** If the error of the prompts as they are is that of a guess, nothing can make it
# worse: look at `r_intact` and at the [timelapse figure](fig1_timelapse.ipynb) first.
#
# **Errors that cannot grow.** Answers that collapse to 0 have a bounded error; that of a wild answer has no bound. So the order of the points says
# less than their signs.
#
# **Prompts as if they were independent.** Prompts share donors. The intervals and p values here are of donors.
