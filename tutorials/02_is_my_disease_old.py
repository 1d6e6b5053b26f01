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
# # Do the cells of my patients look older?
#
# You have an h5ad with raw counts of patients and controls, and the age of every donor. Do the cells of the patients look
# older than they should, and by how many years?
#
# The model is shown a few cells of controls with their ages, then one more cell, and says how much time lies between. We ask this of
# cells of patients and of controls **of the same age**. What the model adds for patients is the *age acceleration*.
#
# Most of this page is about what can go wrong, because most of it goes wrong before the model is loaded. So the cells here are
# **simulated**: we know the truth, and can break the design on purpose. Section 5 is for your own file. The page runs in
# one to two minutes on one core.

# %% tags=["parameters"]
n_simulated: int = 7000  # simulated cells of sections 1 to 4
n_read: int = 6  # cells of each donor and cell type to read there
path: str = ""  # .h5ad with raw counts; "" to skip section 5
own_model: str = "runs/clock/model"  # folder of a temporal model that was trained on none of these donors
condition_key: str = "condition"  # column of .obs with the condition of each donor
control: str = "control"  # its value for controls
time_key: str = "age_months"  # column of .obs with the age
donor_key: str = "donor_id"  # column of .obs with the donor: a person, not a sample or a lane
groupby: str = "cell_type"  # column of .obs in which all cells of a prompt agree
match_by: list = ["sex"]  # columns of .obs in which patients and their controls agree; [] for none
batch_key: str = "batch"  # column of .obs with the batch; "" for none
tolerance: int = 60  # largest difference in age between a patient and a control, in the unit of time_key
output: str = "age_acceleration.csv"  # table to write

# %%
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy import stats

import maxtoki_toolkit as mt
from maxtoki_toolkit.pl._style import BASELINE, MODEL, clean

mt.settings.progress = False

# %% [markdown]
# ## 1. The design, before the model
#
# 100 donors: 60 controls, and 10 of each of four conditions, whose cells are 15, 5, 3 and 0 years older than their donors. The demo
# model was trained on donors of seeds 0 and 1, so we draw others. We keep three cell types; B cells were simulated without ageing.

# %%
adata = mt.datasets.aging_atlas(n_simulated, 100, seed=3)
truth = adata.uns.pop("truth")["conditions"].set_index("condition")["acceleration_years"].to_dict()
adata = adata[adata.obs["cell_type"].isin(["fibroblast", "monocyte", "B cell"])].copy()
truth

# %% [markdown]
# **Count donors, not cells.** One row a donor, and three questions: how many on each side, of what age and sex, in which batches?

# %%
donors = adata.obs.drop_duplicates("donor_id").set_index("donor_id")
ages = (donors["age_months"] / 12).groupby(donors["condition"], observed=True)
pd.concat(
    [
        ages.agg(["count", "min", "median", "max"]).round(0).astype(int),
        pd.crosstab(donors["condition"], donors["sex"]),
        pd.crosstab(donors["condition"], donors["batch"]),
    ],
    axis=1,
)

# %% [markdown]
# What you want to see: ages of both sides overlap, both sexes on both sides, and **every batch holds patients and controls**. This
# design has it all. Yours may not; section 4 shows what happens then.
#
# Now match. A donor is kept if there is a donor of the other side of the same sex within five years:

# %%
columns = {
    "condition_key": "condition",
    "control": "control",
    "time_key": "age_months",
    "donor_key": "donor_id",
    "match_by": "sex",
}
mt.pp.match_ages(adata, **columns, tolerance=60)
ax = mt.pl.matched_ages(adata)
# %%
adata.uns["matched_ages"]["balance"].round(2).set_index("condition").transpose()

# %% [markdown]
# Hollow donors have nobody to be compared with and are left out. `difference` is that of the mean ages in standard deviations; below
# 0.25 after matching is good.
#
# Where ages hardly overlap, in this order: look for more controls (a public atlas of the same tissue and **the same protocol**); match
# by less; raise `tolerance`, at the price of leaning on the model's slope of age. If all patients are older than all controls, stop:
# no analysis replaces the missing donors.
#
# ## 2. The model
#
# Name and rank the genes, as in the [first tutorial](01_your_own_h5ad.ipynb), then one call. We ask for fewer cells and contexts than by
# default (20 and 4), to be fast.

# %%
model = mt.load_model("demo")
mt.pp.map_genes(adata, model)
mt.pp.rank_value_encode(adata, model)


def accelerate(cells, *, n_cells=n_read, batch_key=None, baselines=False, **changes):
    """Match and run with our settings, put the warnings into the table, not on the screen, and return it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mt.pp.match_ages(cells, **(columns | changes))
        mt.tl.age_acceleration(
            cells,
            model,
            groupby="cell_type",
            batch_key=batch_key,
            baselines=baselines,
            sampling=mt.tl.AgeSampling(n_cells=n_cells, n_contexts=1),
            rng=3,
        )
    return mt.get.table(cells, "age_acceleration")


effects = accelerate(adata, batch_key="batch", baselines=True)
figure = mt.pl.age_acceleration(adata, truth=truth)
# %% [markdown]
# A row a cell type and one for all together; a dot and its 95% interval for the model and for two simple clocks (ridge regression of age on
# expression, and on the model's embedding); dashed: the truth. **The clocks are there to keep the model honest.** If only the
# model sees an effect, be careful.
#
# Then read the caveats. They are a warning when you run the function, and kept with the result:

# %%
for note in effects.attrs["warnings"]:
    print("-", note)

# %% [markdown]
# B cells do not age here, so nothing can be read from them. The model says so, rather than "no effect".
#
# **Look at the donors.** A point is a donor: the age that is read from the cells, against the true age. Is it all patients, or one?

# %%
table = mt.get.table(adata, "age_acceleration", "donors")
table = table[(table["predictor"] == "MaxToki") & (table["group"] == "fibroblast")]
figure, axes = plt.subplots(1, len(truth) - 1, figsize=(10, 2.9), sharey=True, layout="constrained")
conditions = sorted(set(truth) - {"control"}, key=truth.get)
for ax, condition in zip(axes, conditions, strict=True):
    part = table[table["condition"] == condition]
    for case, color, label in ((False, BASELINE, "control"), (True, MODEL, "patient")):
        side = part[part["case"] == case]
        ax.scatter(side["time"], side["read"], s=16, color=color, label=label)
    controls = part[~part["case"]]
    slope, level = np.polyfit(controls["time"], controls["read"], 1)
    ends = np.array([part["time"].min(), part["time"].max()])
    ax.plot(ends, level + slope * ends, color=BASELINE, lw=1)
    ax.set_title(f"{condition} (planted: {truth[condition]:g})", fontsize=9)
    ax.set_xlabel("age (years)")
    clean(ax)
axes[0].set_ylabel("age read from fibroblasts\n(years)")
legend = axes[0].legend(frameon=False, fontsize=8)
# %% [markdown]
# ## 3. How to read the result

# %%
shown = ["condition", "group", "raw", "age_slope", "effect", "effect_low", "effect_high"]
shown += ["p_value", "q_value", "n_donors_condition", "n_donors_control", "conclusion"]
ours = effects[effects["predictor"] == "MaxToki"]
ours[shown].set_index(["condition", "group"]).round(3)

# %% [markdown]
# | column | what it is |
# |---|---|
# | `raw` | how many years more the model says of patients than of controls of the same age |
# | `age_slope` | how many years more the model says when a control is one year older; a perfect clock has 1 |
# | `effect` | `raw` / `age_slope`: **how much older a control would have to be to be read like the patients** |
# | `effect_low`, `effect_high` | 95% interval over donors (Fieller's, which counts the uncertainty of the slope too; so it need not be symmetric) |
# | `p_value` | how often a difference as large comes up when donors are permuted (2,000 times; two-sided) |
# | `q_value` | the p corrected for having asked several times, over the groups of all conditions (the rows "all" by themselves) |
# | `n_donors_...` | matched donors, the n of all of this |
#
# **Why not `raw`?** Every clock pulls towards the middle: shown ages 30 and 70, it may say 40 and 64. The same pull makes a difference of 15
# years come out as 9. `age_slope` measures the pull on controls, whose ages are known, and the division undoes it. The paper
# reports raw differences.
#
# `conclusion` can say four things:
#
# | `conclusion` | when | what you may write |
# |---|---|---|
# | older than controls | q < 0.05, effect above 0 | the cells look older by `effect` years (interval, n donors), in this tissue, read by this model |
# | younger than controls | q < 0.05, effect below 0 | the same, younger |
# | not distinguishable from controls | q not below 0.05 | **not** "no effect": give the interval; effects inside it are not excluded |
# | none: age is not read from the controls (...) | the interval of `age_slope` reaches 0 | nothing, in either direction: the clock does not run in this cell type, or too few controls of too few ages are left to see it run |
#
# The p value permutes donors and the interval comes from a mixed model, so at the border they may differ. The conclusion goes by q.
#
# Here, +15 years is found in all cells together and in fibroblasts. In monocytes it is *not distinguishable*: q is just above 0.05, though the interval holds 15
# and not 0. So "not distinguishable" is not "no effect", even where we know that there is one. +5 and +3 are too small for ten patients of this
# noise; the intervals of all three overlap, so **do not rank conditions by their effects**. This cohort is one of three that we looked at. Another `seed` above is another cohort of
# the same diseases, and what is called near the border will differ.
#
# **What it does not mean.**
# - Not that patients age *faster*: this is one difference at one time.
# - Not that ageing causes the disease, or the disease ageing. Inflammation that moves the same genes looks alike.
# - Not a diagnosis: one donor's value, or one cell's, is far too noisy.
# - Not a fact beyond the model. It is what is read from genes that age in *its* training cells.
#
# ### How many donors?
#
# The same +15 years with fewer patients (`use=` says which cells to use; fibroblasts only, to be fast). Three cohorts of three
# different patients each, two of five, and all ten:

# %%
fibroblasts = adata[adata.obs["cell_type"] == "fibroblast"].copy()
obs = fibroblasts.obs
is_control = obs["condition"] == "control"
rng = np.random.default_rng(0)
patients = rng.permutation(donors.index[donors["condition"] == "accelerated_15y"].to_numpy())
cohorts = [patients[:3], patients[3:6], patients[6:9], patients[:5], patients[5:], patients]
fewer = pd.concat(
    [accelerate(fibroblasts[is_control | obs["donor_id"].isin(cohort)].copy()) for cohort in cohorts],
    ignore_index=True,
)

figure, ax = plt.subplots(figsize=(5, 2.8), layout="constrained")
ax.axhline(0, color="black", lw=0.8)
ax.axhline(truth["accelerated_15y"], color="black", lw=1, ls=(0, (4, 3)), label="planted")
for place, row in enumerate(fewer.itertuples()):
    if np.isfinite(row.effect):
        ax.plot([place, place], [row.effect_low, row.effect_high], color=MODEL, lw=1.6)
        color = MODEL if row.q_value < 0.05 else "white"
        ax.scatter(place, row.effect, s=26, facecolor=color, edgecolor=MODEL, zorder=3)
    else:
        ax.text(place, 1, "age not read", color="0.4", fontsize=8, ha="center", va="bottom", rotation=90)
ax.set_xticks(range(len(fewer)), [len(cohort) for cohort in cohorts])
ax.set(xlabel="patients in the cohort", ylabel="age acceleration (years)")
ax.legend(frameon=False, fontsize=8, loc="upper right")
clean(ax)

# %%
spans = [donors.loc[cohort, "age_months"].agg(["min", "max"]) / 12 for cohort in cohorts]
fewer["ages"] = [f"{low:.0f} to {high:.0f}" for low, high in spans]
fewer["half_width"] = (fewer["effect_high"] - fewer["effect_low"]) / 2
fewer[
    ["n_donors_condition", "ages", "n_donors_control", "age_slope", *shown[4:8], "half_width", "conclusion"]
].round(3)

# %% [markdown]
# With three patients you get 10 years, 22, or nothing. The third cohort happens to be of one age, and so are its matched controls: in so few
# years, no slope can be seen, and without it a difference cannot be put into years (p is still there). **"The age of controls is not
# read" may be due to the cells, as in the B cells, or to few controls in a narrow range of ages.** Look at `n_donors_control`
# and at the ages.
#
# Of effects as large as the half width, every second is missed. The numbers depend on the tissue and on the model, so get yours from a
# pilot. With fewer than three on a side, you are refused:

# %%
two = is_control | obs["donor_id"].isin(patients[:2])
try:
    accelerate(fibroblasts[two].copy())
except ValueError as error:
    print(error)

# %% [markdown]
# ### Why cells are not donors
#
# Cells of one donor share genes, life and tube. Ten thousand cells of three patients are three patients.
#
# To see it, take 30 healthy donors, and give them what people have and this simulation lacks: cells that are
# a few years older or younger than their chronological age (standard deviation 6 years; it is enough to shift the recorded ages). Then call half of them
# "patients", at random. **There is nothing to find.** First by donor, then with each cell passed off as a donor of its own. Never do the latter:

# %%
rng = np.random.default_rng(0)
healthy = donors.index[donors["condition"] == "control"].to_numpy()
healthy = rng.permutation(healthy)[:30]
people = adata[adata.obs["donor_id"].isin(healthy) & (adata.obs["cell_type"] != "B cell")].copy()
owner = people.obs["donor_id"].astype(str)
shift = dict(zip(healthy, rng.normal(0, 6 * 12, len(healthy)).round().astype(int), strict=True))
people.obs["age_months"] += owner.map(shift).astype(int)
people.obs["condition"] = np.where(owner.isin(healthy[:15]), "called patients", "control")
people.obs["cell"] = people.obs_names

everyone = {"tolerance": 12 * 100, "match_by": None, "n_cells": 100}
by_donor = accelerate(people, **everyone).query("group == 'all'")
by_cell = accelerate(people, **everyone, donor_key="cell").query("group == 'all'")
pd.concat([by_donor.assign(unit="donor"), by_cell.assign(unit="cell")]).set_index("unit")[shown[2:]].round(3)

# %% [markdown]
# The same cells, a much narrower interval, and an n that is many times larger: all for nothing. How often does this mislead? Draw the
# "patients" anew, 300 times, and test. 5% should have p < 0.05:

# %%
cells = (
    mt.get.table(people, "age_acceleration", "donors").query("group == 'all'").sample(frac=1, random_state=0)
)
cells["owner"] = owner.reindex(cells["donor"]).to_numpy()
false_calls = []
for n_cells in (1, 3, 7, 14):
    few = cells.groupby("owner").head(n_cells)
    means = few.groupby("owner")["acceleration"].mean()
    units = {
        "cells": (few["acceleration"].to_numpy(), few["owner"].to_numpy()),
        "donors": (means.to_numpy(), means.index.to_numpy()),
    }
    for _ in range(300):
        fake = rng.choice(healthy, 15, replace=False)
        for unit, (values, of) in units.items():
            chosen = np.isin(of, fake)
            test = stats.ttest_ind(values[chosen], values[~chosen])
            false_calls.append({"unit": unit, "n_cells": n_cells, "false": 100 * (test.pvalue < 0.05)})
false_calls = pd.DataFrame(false_calls).groupby(["n_cells", "unit"])["false"].mean().unstack()

figure, ax = plt.subplots(figsize=(4.4, 2.6), layout="constrained")
for unit, color in (("cells", MODEL), ("donors", BASELINE)):
    ax.plot(false_calls.index, false_calls[unit], color=color, marker="o", ms=4, label=f"test over {unit}")
ax.axhline(5, color="black", lw=1, ls=(0, (4, 3)), label="5%")
ax.set(xlabel="cells a donor, at most", ylabel="healthy against healthy:\np < 0.05 (%)", ylim=(0, None))
ax.legend(frameon=False, fontsize=8)
clean(ax)
false_calls.round(1)

# %% [markdown]
# **The more cells, the worse it gets**, and your donors may have hundreds each: the noise between cells averages out, the differences
# between people do not.
#
# ## 4. Confounding, by making it happen
#
# ### Patients are older than controls
#
# The resilient patients look as old as they are. We take those over 45, and leave out two of three controls over 50. Patients
# are now older, as in most clinics. The naive comparison of the ages that the model reads, over donors:

# %%
age = donors["age_months"] / 12
old = donors.index[(donors["condition"] == "control") & (age > 50)]
old = donors.loc[old].sort_values("age_months").index
too_few = [name for i, name in enumerate(old) if i % 3]
young = donors.index[(donors["condition"] == "resilient") & (age < 45)]
obs = adata.obs
clinic = obs["condition"].isin(["control", "resilient"]) & ~obs["donor_id"].isin([*too_few, *young])
clinic &= obs["cell_type"] != "B cell"

patients = adata[clinic].copy()
everybody = accelerate(patients, tolerance=12 * 100)  # nobody is left out
read = mt.get.table(patients, "age_acceleration", "donors").query("group == 'all'")
sides = read.groupby("case")[["time", "read"]].mean().round(1)
sides.index = ["controls", "patients"]
sides.columns = ["mean age", "mean age read"]
print(f"naive difference: {sides['mean age read'].diff().iloc[1]:+.1f} years,", end=" ")
by_case = [part["read"] for _, part in read.groupby("case")]
print(f"p = {stats.ttest_ind(*by_case, equal_var=False).pvalue:.3f} (Welch's t test over donors)")
sides

# %% [markdown]
# A fine effect, and all of it is age: nothing was planted. Now with the function, without and with matching:

# %%
matched = accelerate(patients)
mt.pl.matched_ages(patients)
both = pd.concat([everybody.assign(tolerance="none"), matched.assign(tolerance="5 years")])
both = both[both["group"] == "all"]
both.set_index("tolerance")[["raw", *shown[4:]]].round(3)

# %%
for name, result in (("no matching", everybody), ("matched", matched)):
    for note in result.attrs["warnings"] or ["no warning"]:
        print(f"{name}: {note}")

# %% [markdown]
# The naive difference is gone in both, because age is also adjusted for. But without matching, the answer leans on the
# slope of age being the same straight line at all ages, and you are told so. Matching asks for less, and costs donors.
#
# Where nobody is of like age, there is nothing to be had:

# %%
years = obs["age_months"] / 12
apart = ((obs["condition"] == "control") & (years < 50)) | ((obs["condition"] == "resilient") & (years > 60))
try:
    accelerate(adata[apart].copy())
except ValueError as error:
    print(error)

# %% [markdown]
# ### Patients were sequenced less deeply
#
# A cell with fewer counts shows fewer genes, and other ranks. We thin the counts of the resilient patients' cells to a half and to a quarter: every molecule
# is kept with that probability.

# %%
fibroblasts = fibroblasts[fibroblasts.obs["condition"].isin(["control", "resilient"])].copy()
shallow = fibroblasts.copy()
is_patient = (shallow.obs["condition"] == "resilient").to_numpy()
counts = shallow.X.tocsr().copy()
of_patient = np.repeat(is_patient, np.diff(counts.indptr))
rows = []
for kept in (1.0, 0.5, 0.25):
    thinned = counts.copy()
    thinned.data = rng.binomial(counts.data.astype(int), np.where(of_patient, kept, 1.0)).astype(np.float32)
    thinned.eliminate_zeros()
    shallow.X = thinned
    mt.pp.rank_value_encode(shallow, model)
    row = accelerate(shallow).assign(kept=kept)
    genes = shallow.obs["n_genes_ranked"].groupby(is_patient).median()
    row["genes, patients"], row["genes, controls"] = genes[True], genes[False]
    row["warning"] = " ".join(row.attrs["warnings"]) or "none"
    rows.append(row)
depth = pd.concat(rows).set_index("kept")
for kept, note in depth["warning"].items():
    print(f"{kept:.0%} of the counts: {note}")
columns_shown = [
    "genes, patients",
    "genes, controls",
    "n_cells_condition",
    "effect",
    "effect_low",
    "effect_high",
]
depth[[*columns_shown, "n_donors_condition", "q_value", "conclusion"]].round(3)

# %% [markdown]
# Nothing about age has changed, and yet the effect moves by years. The function compares cells with like numbers of genes: it leaves out cells
# of a depth that the other side does not have. That helps, and is no cure: few of the patients' cells are left, the interval
# widens, and those left are the deepest of the patients beside the shallowest of the controls, not a fair sample of either. **Take this warning seriously,
# whatever q says.**
#
# It cannot give back what was not sequenced. If depths differ much, thin the deeper side too (`sc.pp.downsample_counts`), before ranking.
#
# ### All patients were in one batch
#
# The resilient patients are now processed on a day of their own. The day changes each gene by a random factor (typically twofold: a bad
# day), and nothing else. Three such days, of nine that we tried:

# %%
batch = fibroblasts.copy()
batch.obs["batch"] = np.where(is_patient, "patients' day", "controls' day")
rows = [depth.loc[[1.0]].assign(day="none")]
for day in (2, 4, 6):
    rng = np.random.default_rng(day)
    factor = np.exp2(rng.normal(0, 1, batch.n_vars))
    changed = counts.copy()
    drawn = rng.poisson(counts.data * factor[counts.indices])
    changed.data = np.where(of_patient, drawn, counts.data).astype(np.float32)
    changed.eliminate_zeros()
    batch.X = changed
    mt.pp.rank_value_encode(batch, model)
    rows.append(accelerate(batch, batch_key="batch").assign(day=str(day)))
for note in rows[-1].attrs["warnings"]:
    print("-", note)
pd.concat(rows).set_index("day")[shown[2:]].round(3)

# %% [markdown]
# The truth is 0. Of the nine days (seeds 1 to 9), five were called, four as older and one as younger. What comes out
# is that of the day and of the condition, and **nothing in the data tells the two apart**: not the interval, not q, not the
# number of donors. The warning is all there is, and it only comes if you
# pass `batch_key`. Correcting the counts for batch first does not help: with the batch, it takes out the condition.
#
# ### What no method can remove
#
# - **Treatment.** Patients are treated, controls are not. Compare with untreated patients, or with controls on the same drug.
# - **How the tissue was taken.** Surgery against autopsy, hours on ice, the dissociation protocol, nuclei against cells. Stress genes react within minutes.
# - **Who becomes a control.** Donors who died of something else are not healthy.
# - **Composition.** "T cell" may be other T cells in patients. Annotate more finely, and run each type by itself.
#
# Only the design helps: patients and controls of one centre, one protocol, mixed over batches. If yours is not so, say it next to the number.
#
# ## 5. Your own data
#
# **The model.** It must have been trained to tell time, on **none of these donors**, patients or controls. The published weights cannot tell
# time: they are stage 1, and no public MaxToki weights can. The demo model tells the time of a simulation, and **its years mean nothing on real cells**. So train one first, on
# controls of other donors: [Tell time](../docs/how_to.md#tell-time) says how. Then check that it tells the age of held-out controls.
#
# Edit the parameters at the top of the page. Ages are whole numbers in the unit that the model was trained on.

# %%
if path:
    mine = mt.pp.read_cells(path)
    clock = mt.load_model(own_model)
    mt.pp.map_genes(mine, clock)
    mt.pp.rank_value_encode(mine, clock)  # refuses normalised values
    mt.pp.match_ages(
        mine,
        condition_key=condition_key,
        control=control,
        time_key=time_key,
        donor_key=donor_key,
        match_by=match_by,
        tolerance=tolerance,
    )
    mt.pl.matched_ages(mine)
    mt.tl.age_acceleration(mine, clock, groupby=groupby, batch_key=batch_key or None)
    mt.pl.age_acceleration(mine)
    mt.get.table(mine, "age_acceleration").to_csv(output, index=False)

# %% [markdown]
# A model that cannot tell time is refused. The published weights get this message, and so does any without temporal training:

# %%
shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
untrained = mt.models.build_model(shape, model.vocab)
try:
    mt.tl.age_acceleration(adata, untrained, groupby="cell_type")
except ValueError as error:
    print(error)

# %% [markdown]
# **Before you write it up**: n of donors on both sides; ages before and after matching; effect with interval and q; `age_slope`; what the ridge
# clocks say; every warning; which batches; which model, with checksum (`adata.uns["age_acceleration"]["params"]`), trained on whom.
#
# Without editing a page, [fig5_age_acceleration](../notebooks/fig5_age_acceleration.ipynb) does the same with papermill and writes the figures.
