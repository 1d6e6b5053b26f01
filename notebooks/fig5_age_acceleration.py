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
# # Fig. 5: do the cells of a condition look older?
#
# Cells of controls, with their ages, are the context; a cell of a patient, or of another control of the same age, is the query. The
# model says how much time lies between. If it sees more time to patients than to controls of the same age, the condition
# looks like ageing. This notebook matches donors by age, estimates the difference in years for each cell type, with the donor as the unit,
# and lists caveats.
#
# Without a `path` the cells are simulated (`mt.datasets.aging_atlas`): three conditions with a planted acceleration of 15, 5 and 3 years,
# and a resilient one without.
#
# The paper ([doi:10.64898/2026.03.30.715396](https://doi.org/10.64898/2026.03.30.715396)) has 5,000 prompts for mucous
# secretory cells of heavy smokers, lung fibroblasts in pulmonary fibrosis, and microglia in Alzheimer's disease, mild cognitive impairment
# and resilience (a second data set: 2,507). Summaries that we know it by say +5 years for smoking, +15 for fibrosis, +3 for
# Alzheimer's disease and none for the last two. Those cells need access agreements, and its temporal weights are not public;
# `presets/` has the designs.

# %% tags=["parameters"]
path: str = ""  # .h5ad with raw counts, conditions, donors and ages; "" for the simulated atlas
layer: str = ""  # layer with the raw counts; "" for .X
model: str = "demo"  # "demo", or the folder of a temporal model that learned from none of these donors
train_steps: int = (
    0  # steps to teach the model the ages of these cells first, on half of the controls; 0 for none
)
time_unit: str = (
    "months"  # unit of time_key, "months" or "years"; a model that is not taught first must tell it
)
condition_key: str = "condition"  # column of .obs with the condition of each donor
control: str = "control"  # its value for controls
time_key: str = "age_months"  # column of .obs with the age, in whole units
donor_key: str = "donor_id"  # column of .obs with the donor
groupby: list = ["cell_type"]  # columns of .obs in which all cells of a prompt agree
match_by: list = ["sex"]  # columns of .obs in which donors and their controls agree
batch_key: str = "batch"  # column of .obs with the batch, to warn of; "" for none
cells: dict = {}  # cells to use, by columns of .obs, e.g. {"cell_type": ["fibroblast"]}; {} for all
tolerance: int = 60  # largest difference in age between a donor and a control, in the unit of time_key
n_queries: int = 8  # query cells of each donor and group, at most
n_contexts: int = 2  # contexts that each query cell is read after
context_size: int = 3  # context cells, of controls of distinct ages
min_donors: int = 3  # fewest donors on either side
truth: dict = {  # known effects in years, to draw; {} where there are none
    "accelerated_15y": 15,
    "accelerated_5y": 5,
    "accelerated_3y": 3,
    "resilient": 0,
}
n_cells: int = 4000  # simulated cells
n_donors: int = 60  # simulated donors
seed: int = 6  # seed of donors and draws; the demo model was trained on donors of seeds 0 and 1
output: str = ""  # folder for figures (PNG, PDF) and tables (CSV); "" for none

# %%
import tempfile
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import maxtoki_toolkit as mt
from maxtoki_toolkit.pl._style import BASELINE, MODEL, clean

mt.settings.progress = False
save = mt.reports.saver(output)


# %% [markdown]
# ## Donors of like age
#
# A model that does not know the time of these cells is taught first, if `train_steps` says so, on half of the controls; they are then
# left out, because a model knows the donors that it has learned from.
#
# Filled: donors with a control of their age (and sex), and these controls. The others are left out.

# %%
settings = {"path": path, "model": model, "condition_key": condition_key, "control": control}
settings |= {"time_key": time_key, "donor_key": donor_key}
if unset := [name for name, value in settings.items() if value == "unknown"]:
    raise ValueError(
        f"Set these parameters: {', '.join(unset)}. What the paper's data call them is not known."
    )
if path:
    adata = mt.reports.read_cells(path, layer=layer, time_key=time_key, time_unit=time_unit)
else:
    adata = mt.datasets.aging_atlas(n_cells, n_donors, seed=seed)
adata = adata[mt.reports.cells_with(adata, cells)].copy()
maxtoki = mt.load_model(model)
if maxtoki.is_temporal and not train_steps and (unit := maxtoki.time_head.unit) != time_unit:
    raise ValueError(
        f"The model tells {unit}, and .obs[{time_key!r}] is in {time_unit} (time_unit): convert one of them."
    )
mt.pp.map_genes(adata, maxtoki)
mt.pp.rank_value_encode(adata, maxtoki, layer=layer or None)
if train_steps:
    is_control = mt.reports.cells_with(adata, {condition_key: [control]})
    taught = adata[is_control].copy()
    mt.pp.hold_out(taught, donor_key=donor_key, time_key=time_key, donors=0.5, rng=seed)
    maxtoki = mt.train.temporal(
        taught,
        maxtoki,
        Path(output or tempfile.mkdtemp()) / "training",
        time_key=time_key,
        time_unit=time_unit,
        groupby=groupby,
        use="train",
        held_out="held_out",
        recipe=mt.train.TemporalRecipe.of(
            context_size=(1, context_size),
            timelapse=1.0,
            max_steps=train_steps,
            batch_size=16,
            learning_rate=1e-3,
            warmup=0.1,
            n_held_out=128,
            eval_every=train_steps,
            save_every=train_steps,
            seed=seed,
        ),
    )
    learned = set(taught.obs.loc[taught.obs["train"], donor_key])
    adata = adata[~adata.obs[donor_key].isin(learned)].copy()
    print(f"The model has learned from {len(learned)} controls, which are left out of what follows.")
mt.pp.match_ages(
    adata,
    condition_key=condition_key,
    control=control,
    time_key=time_key,
    donor_key=donor_key,
    match_by=match_by,
    tolerance=tolerance,
)
save(mt.pl.matched_ages(adata).figure, "fig5_matched_ages")
adata.uns["matched_ages"]["balance"].round(2).set_index("condition").transpose()

# %% [markdown]
# `difference` is that of the mean ages, in standard deviations. What is left of it after matching is adjusted for by the
# slope of age in the controls.
#
# ## The figure
#
# The effect is the number of years by which controls would have to be older to be read alike. Beside the model: the same with
# the ages that ridge regression reads from expression, or from the model's embedding of the cell, by clocks that are fitted to controls, never to
# the donor who is read.

# %% tags=["answer"]
with warnings.catch_warnings(record=True):
    warnings.simplefilter("always")
    mt.tl.age_acceleration(
        adata,
        maxtoki,
        groupby=groupby,
        batch_key=batch_key or None,
        min_donors=min_donors,
        sampling=mt.tl.AgeSampling(n_cells=n_queries, n_contexts=n_contexts, context_size=context_size),
        rng=seed,
    )
save(mt.pl.age_acceleration(adata, truth=truth or None), "fig5_age_acceleration")

# %% tags=["answer"]
effects = mt.get.table(adata, "age_acceleration")
whole = effects[effects["group"] == "all"]
for row in whole[whole["predictor"] == "MaxToki"].itertuples():
    interval = f"{row.effect:.1f} {effects.attrs['unit']} ({row.effect_low:.1f} to {row.effect_high:.1f})"
    donors = f"{row.n_donors_condition} donors, {row.n_donors_control} controls"
    print(f"{row.condition}: {row.conclusion}. {interval}, q = {row.q_value:.2g}; {donors}.")

# %% [markdown]
# Caveats:

# %% tags=["answer"]
for note in effects.attrs["warnings"] or ["nothing that was looked for"]:
    print("-", note)

# %%
columns = ["effect", "effect_low", "effect_high", "raw", "age_slope", "p_value", "q_value"]
columns += ["n_donors_condition", "n_donors_control", "conclusion"]
if output:
    effects.to_csv(Path(output) / "effects.csv", index=False)
    mt.get.table(adata, "age_acceleration", "donors").to_csv(Path(output) / "donors.csv", index=False)
whole.set_index(["condition", "predictor"])[columns].map(
    lambda x: float(f"{x:.3g}") if isinstance(x, float) else x
)

# %% [markdown]
# `raw` is the difference in years that the model *says*; it reads age with the slope `age_slope`, and shrinks every
# difference by it. The paper reports raw differences.
#
# ## Donor by donor
#
# Each point is a donor: the mean age that is read from the cells against the true age, over all groups, with the line of
# the controls. A condition that rests on one donor is seen here.

# %%
table = mt.get.table(adata, "age_acceleration", "donors")
table = table[(table["predictor"] == "MaxToki") & (table["group"] == "all")]
conditions = list(dict.fromkeys(table["condition"]))
figure, axes = plt.subplots(
    1,
    len(conditions),
    figsize=(2.6 * len(conditions) + 0.6, 3),
    sharey=True,
    squeeze=False,
    layout="constrained",
)
for ax, condition in zip(axes[0], conditions, strict=True):
    part = table[table["condition"] == condition]
    for case, color, label in ((False, BASELINE, "control"), (True, MODEL, "condition")):
        side = part[part["case"] == case]
        ax.scatter(side["time"], side["read"], s=16, color=color, label=label)
    side = part[~part["case"]]
    if side["time"].nunique() > 1:
        slope, level = np.polyfit(side["time"], side["read"], 1)
        ends = np.array([part["time"].min(), part["time"].max()])
        ax.plot(ends, level + slope * ends, color=BASELINE, lw=1)
    ax.set_title(condition, fontsize=9, parse_math=False)
    ax.set_xlabel(f"age ({effects.attrs['unit']})", fontsize=9)
    clean(ax)
axes[0, 0].set_ylabel(f"age that is read ({effects.attrs['unit']})", fontsize=9)
names = axes[0, 0].get_legend_handles_labels()
figure.legend(*names, frameon=False, fontsize=8, loc="outside lower center", ncols=2)
save(figure, "fig5_donors")

# %% [markdown]
# ## Does it depend on the context?
#
# Every query is read after the same few contexts. The standard deviation of the effect between them, in years, beside the
# half width of the interval over donors:

# %%
ours = effects[(effects["predictor"] == "MaxToki") & (effects["group"] != "all")].dropna(subset="effect_low")
spread = ours.assign(half_width=(ours["effect_high"] - ours["effect_low"]) / 2)
spread.groupby("condition")[["context_sd", "half_width"]].median().round(1)

# %% [markdown]
# ## What would make this wrong
#
# **All that goes with the condition.** The effect is that of the condition and of its treatment, of how the tissue was taken, of the centre, and
# of the batch. Matching by age and sex removes none of these; the list above says where batches give it away.
#
# **Pseudoreplication: cells as units.** Thousands of prompts of three patients are three patients. The intervals and p values here are of
# donors; with `min_donors = 2` you can look, but not conclude.
#
# **A model that knows the controls.** Use donors that it was not trained on, on both sides: from donors that it has learned it reads
# their age better, and the slope of the controls is then not that of the patients.
#
# **Depth.** Cells of fewer genes have other ranks. Query cells are drawn so that both sides have cells of like numbers of genes; where they hardly
# overlap, the list above says so.
#
# **Ageing that is not this ageing.** A condition that moves the same genes for another reason looks like ageing. The model cannot tell
# why.
