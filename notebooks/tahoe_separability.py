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
# # Tahoe-x1, separability: can treated cells be told from controls, and which plates are sound?
#
# If a drug does something, the neighbours of a treated cell are treated cells. How often that is so, in each cell line and under each drug, is a score of an
# embedding, and of the screen. Beside the model's embedding stand principal components of the counts, the depth of a cell alone, and exchanged labels. Before any of
# it is believed, plates are looked at: a plate whose drugs left no trace, whose border differs or whose replicates disagree.
#
# Without a `path` the screen is simulated (`mt.datasets.drug_screen`): one plate failed and one has an edge effect, and the tables are compared with that.
#
# Tahoe-x1 reported a separability of 0.74 on Tahoe-100M and 0.73 on Parse's blood cells (from a summary); how it is defined there is not known to us, and its
# values need not be on the scale of ours. `data_manifests/tahoe_100m.yaml` and `parse_pbmc.yaml` say what can be had.

# %% tags=["parameters"]
path: str = ""  # .h5ad with raw counts of a screen; "" for a simulated one
layer: str = ""  # layer with the raw counts; "" for .X
model: str = "demo"  # "demo", a folder or a hub id; any model that reads cells
condition_key: str = "drug"  # column of .obs with the treatment
control: str = "DMSO"  # its value for controls
groupby: list = ["line"]  # columns of .obs: each group, such as a cell line, is scored alone
donor_key: str = ""  # column of .obs with the donor; "" for none
plate_key: str = "plate"  # column of .obs with the plate; "" to look at no plates
well_key: str = "well"  # column of .obs with the well, "A01"
cells: dict = {}  # cells to use, by columns of .obs; {} for all
n_neighbors: int = 15  # neighbours of a cell
n_cells: int = 100  # cells of either kind that are drawn for a group and treatment
n_permutations: int = 99  # exchanges of labels
max_overlap: float = 0.3  # overlap of treated and control cells above which a plate is flagged
n_lines: int = 2  # simulated cell lines
n_drugs: int = 5  # simulated drugs
n_plates: int = 6  # simulated plates
failed_plates: list = [2]  # simulated plates, from 0, whose drugs did nothing
edge_plates: list = [5]  # simulated plates whose border differs
cells_per_well: int = 3  # simulated cells in a well, the mean
effect: float = 1.5  # size of what simulated drugs do (log2 fold of 50 genes)
seed: int = 0  # seed of cells, draws and exchanges
output: str = ""  # folder for figures (PNG, PDF) and tables (CSV); "" for none

# %%
import matplotlib.pyplot as plt
from IPython.display import display

import maxtoki_toolkit as mt

mt.settings.progress = False
save = mt.reports.saver(output)


# %% [markdown]
# ## Plates first
#
# Wells are the units. Blue and orange: sound and flagged; a grey line is what a sound plate would have, or chance.

# %%
maxtoki = mt.load_model(model)
adata = (
    mt.reports.read_cells(path, layer=layer)
    if path
    else mt.datasets.drug_screen(
        n_lines,
        n_drugs,
        n_plates=n_plates,
        cells_per_well=cells_per_well,
        failed_plates=failed_plates,
        edge_plates=edge_plates,
        effect=effect,
        seed=seed,
    )
)
adata = adata[mt.reports.cells_with(adata, cells)].copy()
mt.pp.map_genes(adata, maxtoki)
mt.pp.rank_value_encode(adata, maxtoki, layer=layer or None)
mt.tl.embed(adata, maxtoki)
print(f"{adata.n_obs:,} cells, {adata.obs[condition_key].nunique() - 1} treatments")

# %% tags=["answer"]
sound = adata
if plate_key:
    mt.tl.flag_plates(
        adata,
        plate_key=plate_key,
        well_key=well_key,
        perturbation_key=condition_key,
        control=control,
        groupby=groupby,
        max_overlap=max_overlap,
        rng=seed,
    )
    plates = mt.get.table(adata, "flag_plates")
    save(plates, "plates")
    save(mt.get.table(adata, "flag_plates", "tests"), "plate_tests")
    figure = mt.pl.flag_plates(adata)
    save(figure, "plates")
    display(figure)
    plt.close(figure)
    flagged = plates.loc[plates["flagged"], "plate"].tolist()
    sound = adata[~adata.obs[plate_key].isin(flagged)].copy()
    print(f"flagged: {', '.join(flagged) or 'none'}; {sound.n_obs:,} cells are on other plates")

# %%
if plate_key:
    shown = plates[plates["flagged"]][["plate", "group", "n_wells", "n_cells", "reasons"]]
    if not path:
        planted = adata.uns["truth"]["plates"].set_index("plate")[["failed", "edge"]]
        shown = shown.join(planted, on="plate")
        missed = planted[planted.any(axis=1)].index.difference(flagged)
        print(f"planted and not flagged: {', '.join(missed) or 'none'}")
    display(shown)

# %% [markdown]
# ## Treated against controls, on sound plates
#
# The area under the curve with which the share of treated neighbours tells treated cells from controls; 0.5 is chance. A tick stands
# where 95% of the exchanged labels are below.

# %% tags=["answer"]
settings = {
    "condition_key": condition_key,
    "control": control,
    "groupby": groupby,
    "donor_key": donor_key or None,
    "n_neighbors": n_neighbors,
    "n_cells": n_cells,
    "n_permutations": n_permutations,
    "rng": seed,
}
mt.tl.separability(sound, **settings)
ax = mt.pl.separability(sound)
save(ax.figure, "separability")
display(ax.figure)
plt.close(ax.figure)

# %%
scores = mt.get.table(sound, "separability")
save(scores, "separability")
scores.groupby("embedding", sort=False).agg(
    mean=("auroc", "mean"),
    lowest=("auroc", "min"),
    highest=("auroc", "max"),
    null=("null", "mean"),
    separable=("q_value", lambda q: (q < 0.05).sum()),
    n=("auroc", "size"),
    lead_of_model=("difference", "mean"),
).round(3)

# %% [markdown]
# With the defaults principal components tell far more treatments from controls than the demo model's embedding does, which has seen no drug and knows a cell by
# what it is. `lead_of_model` is how far the model is ahead, on average: negative where PCA does better.
#
# ## What flagged plates would have done
#
# The same on all plates, flagged ones too: controls and treated cells of a failed plate are alike, and dilute what the others show; a border is told from the inside whatever
# was in the wells.

# %%
if plate_key and flagged:
    mt.tl.separability(adata, **settings)
    everything = mt.get.table(adata, "separability")
    both = scores.merge(everything, on=["group", "condition", "embedding"], suffixes=("_sound", "_all"))
    display(both.groupby("embedding", sort=False)[["auroc_sound", "auroc_all"]].mean().round(3))

# %% [markdown]
# ## What would make this wrong
#
# **One culture of each.** With one sample of each treatment, a batch separates as well as a drug. Where donors are known, name them: they are the units then.
#
# **Dead cells.** A drug that kills leaves fewer counts a cell. Depth is in the figure for that reason: what it reaches alone is no answer of a pathway.
#
# **Cells as units.** Intervals without donors are over cells, and say nothing of another plate.
#
# **Plates judged by drugs that do nothing.** In a screen in which most compounds do nothing all plates overlap: name those known to act (`active` of `mt.tl.flag_plates`).
