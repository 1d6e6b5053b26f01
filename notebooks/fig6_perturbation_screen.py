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
# # Fig. 6: which genes push a cell older or younger?
#
# A gene of a cell is moved in its ranking, and the model reads the cell's age again. This notebook does that for every gene that the model
# reads, sums it up with the donor as the unit and genes of like rank, detection and expression as the null, and compares it with how each gene
# goes with age.
#
# Without a `path` the cells are simulated (`mt.datasets.aging_atlas`), so that the genes that go with age are known.
#
# The paper ([doi:10.64898/2026.03.30.715396](https://doi.org/10.64898/2026.03.30.715396)) inhibits genes in cardiac cell types (panels A to
# C), shows beside it what else speaks for the targets (E), and tests some in the laboratory (D and F to L, which are data and not made here). What exactly its inhibition does to a ranking is not known; moving the gene to the last rank
# and deleting it are both published by others. Its temporal weights and cells are not public; `presets/` has what is known of the design.

# %% tags=["parameters"]
path: str = ""  # .h5ad with raw counts, donors and ages; "" for the simulated atlas
layer: str = ""  # layer with the raw counts; "" for .X
model: str = "demo"  # "demo", or the folder of a temporal model that learned from none of these donors
time_key: str = "age_months"  # column of .obs with the age, in the whole units that the model tells
time_unit: str = "months"  # its unit
donor_key: str = "donor_id"  # column of .obs with the donor
groupby: list = ["cell_type"]  # columns of .obs in which all cells of a prompt agree
cells: dict = {}  # cells to use, by columns of .obs; {} for all, of the simulated atlas fibroblasts and monocytes
covariates: list = ["sex", "batch"]  # columns of .obs to adjust the slopes of expression for
genes: list = []  # genes to edit; [] for all that the model reads
mode: str = "inhibit"  # "inhibit", "delete", "activate" or "overexpress"
n_prompts: int = 16  # prompts; about 126 edits each with the demo model
context_size: list = [1, 1]  # fewest and most context cells a prompt
min_donors: int = 3  # donors in which an edit must have taken effect
evidence: dict = {}  # your tables on targets, name: .csv (gene, effect; group, q_value, unit where known), e.g. of telomere-shortened mice
target_group: str = ""  # group of cells in which the targets are chosen; "" for the first
doses: list = [-50, -10, 10, 50]  # ranks up, for the last figure
n_doses: int = 4  # genes in it
n_cells: int = 4000  # simulated cells
n_donors: int = 40  # simulated donors
seed: int = 8  # seed of donors and draws; the demo model was trained on donors of seeds 0 and 1
output: str = ""  # folder for figures (PNG, PDF) and tables (CSV); "" for none

# %%
from pathlib import Path

import pandas as pd
from IPython.display import display

import maxtoki_toolkit as mt

mt.settings.progress = False
save = mt.reports.saver(output)


# %% [markdown]
# ## The screen
#
# Each prompt is a few cells with their ages and one more cell, the query, which is edited. "all" is every gene among those that the model reads of
# a query; a gene that it does not read there has no effect, which is not an effect of 0.

# %%
settings = {"path": path, "model": model, "time_key": time_key, "donor_key": donor_key, "groupby": groupby}
settings |= {"target_group": target_group}
if unset := [name for name, value in settings.items() if value == "unknown"]:
    raise ValueError(
        f"Set these parameters: {', '.join(unset)}. What the paper's data call them is not known."
    )
truth = None
if path:
    adata = mt.reports.read_cells(path, layer=layer, time_key=time_key, time_unit=time_unit)
else:
    adata = mt.datasets.aging_atlas(n_cells, n_donors, seed=seed)
    truth = adata.uns.pop("truth")["age_genes"]
    cells = cells or {"cell_type": ["fibroblast", "monocyte"]}
adata = adata[mt.reports.cells_with(adata, cells)].copy()
maxtoki = mt.load_model(model)
if maxtoki.is_temporal and (unit := maxtoki.time_head.unit) != time_unit:
    raise ValueError(f"The model tells {unit}: convert .obs[{time_key!r}] from {time_unit} to {unit}.")
mt.pp.map_genes(adata, maxtoki)
mt.pp.rank_value_encode(adata, maxtoki, layer=layer or None)
mt.pp.sample_prompts(
    adata,
    time_key=time_key,
    groupby=groupby,
    donor_key=donor_key,
    n_prompts=n_prompts,
    context_size=context_size,
    sampling=mt.pp.PromptSampling(balance=1),
    rng=seed,
)
mt.tl.perturb(adata, maxtoki, genes=genes or "all", mode=mode)
effects = mt.get.table(adata, "perturbation")
print(
    f"{len(effects):,} edits of {effects['gene'].nunique():,} genes in {effects['cell'].nunique()} cells "
    f"of {effects['donor'].nunique()} donors; {effects['took_effect'].mean():.1%} changed what is read."
)

# %% tags=["answer"]
mt.tl.perturbation_stats(adata, min_donors=min_donors)
stats = mt.get.table(adata, "perturbation_stats")
names = list(dict.fromkeys(stats["group"]))
shown = next(name for name in names if name != "all") if len(names) > 1 else names[0]
save(mt.pl.perturbation(adata).figure, "fig6_ranked")

# %% [markdown]
# Grey is where the effects of genes like it lie: an edit of any gene at that rank moves the reading, and only what lies beyond is about the
# gene. The interval is over donors. Controls, which should do nothing in particular:

# %% tags=["answer"]
controls = mt.get.table(adata, "perturbation_stats", "controls")
if output:
    Path(output).mkdir(parents=True, exist_ok=True)
    stats.to_csv(Path(output) / "stats.csv", index=False)
    controls.to_csv(Path(output) / "controls.csv", index=False)
controls.drop(columns="k").round(3)

# %% [markdown]
# ## C: across cell types

# %%
save(mt.pl.perturbation_heatmap(adata).figure, "fig6c_heatmap")

# %%
if stats["p_value"].notna().any():
    save(mt.pl.perturbation_volcano(adata), "fig6_volcano")

# %% [markdown]
# ## A and B: effect against the slope of expression with age
#
# A gene is concordant if its inhibition makes the cell look younger and its expression rises with age, or the other way round. The null exchanges the slopes
# between matched genes.

# %%
mt.tl.expression_age_slope(
    adata,
    time_key=time_key,
    donor_key=donor_key,
    groupby=groupby,
    covariates=covariates,
    time_unit=time_unit,
)
try:
    mt.tl.perturbation_concordance(adata, n_permutations=500, rng=seed)
    concordance = mt.get.table(adata, "perturbation_concordance")
    save(mt.pl.perturbation_concordance(adata).figure, "fig6a_concordance")
except ValueError as error:
    print(error)
    concordance = None

# %%
if concordance is not None:
    if output:
        concordance.to_csv(Path(output) / "concordance.csv", index=False)
        mt.get.table(adata, "perturbation_concordance", "genes").to_csv(
            Path(output) / "genes.csv", index=False
        )
    print(concordance.round(3).set_index(["group", "genes"]).transpose().to_string())

# %% [markdown]
# ## E: evidence for targets
#
# The genes whose edits do most beside genes like them in `target_group`, from those that make cells older to those that make them younger: what the edit does, how
# their expression goes with age, and what tables of your own say (`evidence`; the paper shows mice with shortened telomeres, whose
# data are not public). A gene that the model reads in too few donors of a group has a cross there, which is not an effect of 0. In the
# simulation the third block is what was planted: the change in 60 years, 0 for genes that do not go with age.
#
# The genes were chosen by the first block, so its q values flatter; the other blocks had no say in the choice.

# %%
tables = {name: pd.read_csv(table) for name, table in evidence.items()}
if truth is not None:
    planted = truth[truth["direction"] != "turnover"].drop_duplicates(["ensembl_id", "cell_type"])
    planted = planted.pivot(index="ensembl_id", columns="cell_type", values="log2_fold")
    planted = planted.reindex(index=stats["gene"].unique(), columns=[n for n in names if n != "all"] or names)
    planted = planted.fillna(0).rename_axis(index="gene", columns="group")
    tables["planted"] = (
        planted.melt(ignore_index=False, value_name="effect")
        .reset_index()
        .assign(unit="log2 fold in 60 years")
    )
target = {"group": target_group or shown, "tables": tables}
panel = mt.pl.target_evidence(adata, **target)
save(panel, "fig6e_target_evidence")
if output:
    mt.get.target_evidence(adata, **target).to_csv(Path(output) / "target_evidence.csv", index=False)
display(panel)

# %% [markdown]
# ## Was it right?
#
# In the simulation it is known which genes go with age. The area under the ROC curve says how well the effects tell them from all others
# that are read: 0.5 is a coin. Which genes go with age is the truth here; which of them *drive* it is a word that only the simulation has.

# %%
if truth is not None:
    from sklearn.metrics import roc_auc_score

    rows = []
    for group, part in stats[stats["n_units"] >= min_donors].groupby("group", sort=False):
        planted = truth[(truth["cell_type"] == group) & (truth["direction"] != "turnover")]
        planted = planted.drop_duplicates("ensembl_id").set_index("ensembl_id")["log2_fold"]
        is_planted = part["gene"].isin(planted.index)
        if group == "all" or not 0 < is_planted.sum() < len(part):
            continue
        found = part[is_planted]
        same = (found["effect"] < 0) == (found["gene"].map(planted) > 0)
        rows.append(
            {
                "group": group,
                "genes": len(part),
                "planted": int(is_planted.sum()),
                "AUROC": roc_auc_score(is_planted, part["effect"].abs()),
                "sign right": same.mean() if mode in ("inhibit", "delete") else 1 - same.mean(),
            }
        )
    print(pd.DataFrame(rows).round(2).to_string(index=False))

# %% [markdown]
# ## Dose
#
# The genes with the largest effects, moved up or down by a number of ranks.

# %%
largest = stats[(stats["group"] == shown) & (stats["n_units"] >= min_donors)]
largest = largest.loc[largest["effect"].abs().nlargest(n_doses).index, "gene"].tolist()
if largest:
    mt.tl.perturb(adata, maxtoki, genes=largest, mode="shift", k=doses, key_added="doses")
    mt.tl.perturbation_stats(adata, key="doses", min_donors=2, key_added="dose_stats")
    save(mt.pl.perturbation_dose(adata, group=shown, key="dose_stats").figure, "fig6_dose")

# %% [markdown]
# ## What would make this wrong
#
# **Association.** The model has learned which genes go with age. An effect says that it answers to the gene; a marker of age that does nothing has one as well.
#
# **Nothing answers.** No other gene moves when one is edited. A transcription factor without its targets is not what an experiment makes.
#
# **Out of distribution.** No cell ranks a silenced gene last or a transcription factor first. Compare modes and doses; distrust what one of them alone shows.
#
# **Genes that are read seldom.** `n_units` says in how many donors. Few donors make large effects.
#
# **Genes chosen and tested on the same donors.** Test what you pick on others.
