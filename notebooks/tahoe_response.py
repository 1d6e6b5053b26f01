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
# # Tahoe-x1, response: what would a drug do to cells that have not had it?
#
# The treated cells of a cell line, type or donor are left out and predicted from its controls and from what the drug did elsewhere: by a sum of two effects, by the
# lines whose controls are alike, by a slope on how the controls differ, and by a small transformer that moves sets of cells (in the manner of State). Beside
# them stand the mean change, the mean of treated cells, and no change at all; the ceiling is what one half of the treated cells says of the other; the null
# exchanges labels.
#
# Without a `path` the screen is simulated (`mt.datasets.drug_screen`): `interaction` says how much of its answer a line has in genes of its own.
#
# Tahoe-x1 reported, for lines left out of Tahoe-100M, a correlation of the change of 0.41 with its embedding, 0.49 with highly variable genes and 0.40 for the perturbation
# mean (Fig. 6B, as quoted in a summary), and 0.59 for donors left out of Parse's blood cells (from a summary). Lines and donors left out, the size of the sets (256, 512)
# and steps are certain (its code). `data_manifests/tahoe_100m.yaml` and `parse_pbmc.yaml` say what can be had.

# %% tags=["parameters"]
path: str = ""  # .h5ad with raw counts; "" for a simulated screen
layer: str = ""  # layer with the raw counts; "" for .X
model: str = "demo"  # "demo", a folder or a hub id; any model that reads cells
embedding: str = "PCA"  # "PCA" or "model": what neighbours and the transformer read
perturbation_key: str = "drug"  # column of .obs with the perturbation
control: str = "DMSO"  # its value for controls
groupby: list = ["line"]  # columns of .obs with the context: cell line, cell type or donor
held_out: list = [
    "context",
    "combination",
]  # what is left out: "context", "combination", "perturbation", "cells"
donor_key: str = ""  # column of .obs with the donor, where contexts hold several; "" for none
cells: dict = {}  # cells to use, by columns of .obs; {} for all
max_steps: int = 20  # steps of the transformer, for each fold; 0 for none
set_size: int = 64  # cells that it reads together
n_lines: int = 6  # simulated cell lines
n_drugs: int = 3  # simulated drugs
cells_per_well: int = 3  # simulated cells in a well, the mean
effect: float = 2.0  # size of what simulated drugs do (log2 fold of 50 genes)
interaction: float = 0.5  # share of a drug's effect that half of the lines have on other genes
seed: int = 0  # seed of cells, halves, folds and networks
output: str = ""  # folder for figures (PNG, PDF) and tables (CSV); "" for none

# %%
import matplotlib.pyplot as plt
import pandas as pd
import scanpy as sc
from IPython.display import display

import maxtoki_toolkit as mt

mt.settings.progress = False
save = mt.reports.saver(output)


# %% [markdown]
# ## Cells

# %%
maxtoki = mt.load_model(model)
adata = (
    mt.reports.read_cells(path, layer=layer)
    if path
    else mt.datasets.drug_screen(
        n_lines,
        n_drugs,
        n_plates=n_lines,
        cells_per_well=cells_per_well,
        effect=effect,
        interaction=interaction,
        seed=seed,
    )
)
adata = adata[mt.reports.cells_with(adata, cells)].copy()
mt.pp.map_genes(adata, maxtoki)
mt.pp.rank_value_encode(adata, maxtoki, layer=layer or None)
if embedding == "model":
    mt.tl.embed(adata, maxtoki)
    use_rep = "X_maxtoki"
else:
    levels = adata.copy()
    if layer:
        levels.X = levels.layers[layer].copy()
    sc.pp.normalize_total(levels, target_sum=1e4)
    sc.pp.log1p(levels)
    sc.pp.pca(levels, n_comps=min(30, adata.n_obs - 1, adata.n_vars - 1), random_state=seed)
    adata.obsm["X_levels"] = levels.obsm["X_pca"]
    use_rep = "X_levels"
table = pd.crosstab(adata.obs[groupby[0]], adata.obs[perturbation_key])
print(f"{adata.n_obs:,} cells; fewest of a context and perturbation: {table.to_numpy().min()}")

# %% [markdown]
# ## How well, and against what?
#
# One figure for each way to leave cells out: a new context altogether, then combinations both parts of which were seen. Points are contexts, the unit, bars their 95% intervals: blue
# the ways, orange baselines, green the other half of the treated cells, grey exchanged labels. With few cells a half is noisy, and a smooth prediction scores above it.

# %% tags=["answer"]
recipe = mt.train.ResponseRecipe.of(max_steps=max_steps, set_size=set_size) if max_steps else None
parts = []
for how in held_out:
    mt.tl.predict_response(
        adata,
        groupby=groupby,
        held_out=how,
        perturbation_key=perturbation_key,
        control=control,
        donor_key=donor_key or None,
        use_rep=use_rep,
        layer=layer or None,
        recipe=recipe,
        rng=seed,
        key_added=how,
    )
    figure = mt.pl.predict_response(adata, key=how)
    figure.suptitle(f"left out: {how}", fontsize=10, x=0.01, ha="left")
    save(figure, f"response_{how}")
    display(figure)
    plt.close(figure)
    parts.append(mt.get.table(adata, how).assign(held_out=how))

# %%
summary = pd.concat(parts, ignore_index=True)
save(summary, "response")
of = summary[summary["score"] == "pearson_control"]
columns = [
    "held_out",
    "method",
    "kind",
    "value",
    "low",
    "high",
    "difference",
    "difference_low",
    "difference_high",
]
of[[*columns, "q_value", "n_units"]].round(3)

# %% [markdown]
# `difference` is to the perturbation mean, paired over contexts; `q_value` that of a paired t test, corrected over the ways. The transformer begins as the perturbation mean, and with
# the few steps of the defaults hardly leaves it; with `max_steps=0` it is left out.
#
# ## Which contexts?
#
# The correlation of predicted and true change, of each context. In the simulation lines with even numbers have answers of their own: the others'
# mean misses what lines like them show.

# %% tags=["answer"]
by_context = mt.get.table(adata, held_out[0], "scores").query("score == 'pearson_control'")
by_context = by_context.pivot_table(index="method", columns="context", values="value", sort=False)
save(by_context.reset_index(), "by_context")
by_context.round(2)

# %% [markdown]
# ## What would make this wrong
#
# **Controls on both sides.** A change that is predicted and measured from the same controls shares their noise. Here each comes from its own half.
#
# **Cells left out at random** are of a population that was seen: `held_out=["cells"]` flatters every way, and is no prediction.
#
# **A ceiling that is low.** With few cells a replicate half is noisy, and a smooth prediction can score above it.
#
# **All genes count the same** in a correlation; top genes and errors weighted by variance are in the table and may order the ways otherwise.
#
# **A drug without likeness.** A perturbation that was seen nowhere is predicted from descriptors (`descriptors` of `mt.tl.predict_response`) or as the mean of
# the others, which is no prediction of it.
