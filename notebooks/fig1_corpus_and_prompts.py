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
# # Fig. 1: what the model is trained on, and how it is asked
#
# Fig. 1 of the paper ([doi:10.64898/2026.03.30.715396](https://doi.org/10.64898/2026.03.30.715396)) introduces the corpora and the
# prompts. This notebook draws both for cells of yours: tissues, ages and sexes; cell types by age, with what is held out; and a
# prompt that asks for a lapse beside one that asks for a cell. The panels are drawn from data and are no copies of the paper's.
#
# Without a `path` the cells are simulated (`mt.datasets.aging_atlas`). Give `corpus` for a folder that `maxtoki corpus` wrote.

# %% tags=["parameters"]
path: str = ""  # .h5ad with raw counts and known ages; "" for the simulated atlas
layer: str = ""  # layer with the raw counts; "" for .X
corpus: str = ""  # folder that `maxtoki corpus` wrote, for the first panel; "" for the cells of `path`
model: str = "demo"  # whose vocabulary and length the cells are ranked for
time_key: str = "age_months"  # column of .obs with the age, in whole units
time_unit: str = "months"  # unit of that column
cell_type_key: str = "cell_type"  # column of .obs with the cell type
donor_key: str = "donor_id"  # column of .obs with the donor
sex_key: str = "sex"  # column of .obs with the sex; "" for none
tissue_key: str = ""  # column of .obs with the tissue; "" for the cell type in its place
held_out: float = 0.2  # share of the donors to hold out
context_size: int = 3  # context cells of the prompts that are drawn
n_genes: int = 6  # genes to name of each cell
n_cells: int = 5000  # simulated cells
n_donors: int = 60  # simulated donors
seed: int = 4  # seed of donors, hold-out and prompts
output: str = ""  # folder for the figures (PNG, PDF) and the table (CSV); "" for none

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

import maxtoki_toolkit as mt

mt.settings.progress = False


def save(figure, name):
    """Write a figure as PNG and PDF, and show it once."""
    plt.close(figure)
    if output:
        Path(output).mkdir(parents=True, exist_ok=True)
        for ending in ("png", "pdf"):
            figure.savefig(Path(output) / f"{name}.{ending}", dpi=300, bbox_inches="tight")
    return figure


# %%
maxtoki = mt.load_model(model)
if path:
    adata = mt.reports.read_cells(path, layer=layer, time_key=time_key, time_unit=time_unit, model=maxtoki)
else:
    adata = mt.datasets.aging_atlas(n_cells, n_donors, seed=seed)
mt.pp.map_genes(adata, maxtoki)
mt.pp.rank_value_encode(adata, maxtoki, layer=layer or None)
# Times are in the unit of the model from here on, and the name of the column says so.
unit = maxtoki.time_head.unit
adata.obs[f"age_{unit}"] = adata.obs[time_key]
time_key = f"age_{unit}"
print(f"{adata.n_obs:,} cells, {adata.obs[donor_key].nunique()} donors")

# %% [markdown]
# ## What there is
#
# Left, cells by tissue (by cell type where no tissue is known). Right, donors by age, each once: a corpus in which one sex or one decade is
# rare teaches little of it.

# %% tags=["answer"]
per_year = {"years": 1, "months": 12, "weeks": 365.25 / 7, "days": 365.25}.get(unit)
sexes = adata.obs[sex_key].astype(str).str.lower() if sex_key else pd.Series("unknown", index=adata.obs_names)
table = pd.DataFrame(
    {
        "donor": adata.obs[donor_key].astype(str),
        "sex": sexes.replace({"f": "female", "m": "male"}).where(
            lambda sex: sex.isin(["female", "male"]), "unknown"
        ),
        "age_years": adata.obs[time_key].astype(float) / per_year if per_year else float("nan"),
        "tissue": adata.obs[tissue_key or cell_type_key].astype(str),
    }
)
table = table.groupby(list(table), dropna=False, observed=True).size().rename("n_cells").reset_index()
if output:
    Path(output).mkdir(parents=True, exist_ok=True)
    table.to_csv(Path(output) / "composition.csv", index=False)
figure = mt.pl.corpus_composition(corpus or table)
if not (corpus or tissue_key):
    figure.axes[0].set_title(figure.axes[0].get_title().replace("tissue", "cell type"))
save(figure, "fig1_composition")

# %% [markdown]
# ## What is held out
#
# Donors are held out whole, spread over the ages. One line through a field: some of its cells are held out; two: all are.

# %% tags=["answer"]
mt.pp.hold_out(adata, donor_key=donor_key, donors=held_out, time_key=time_key, rng=seed)
save(mt.pl.coverage(adata, time_key=time_key, groupby=cell_type_key), "fig1_coverage")

# %% [markdown]
# ## How it is asked
#
# A prompt is a few cells of one type, each a list of genes from the highest rank on, with the time from each to the next as a
# token. Asked for a lapse, the model is shown the query cell too; asked for a cell, it is told the lapse. Orange is what it has to say
# (with the true lapse).

# %% tags=["answer"]
settings = {
    "time_key": time_key,
    "groupby": cell_type_key,
    "donor_key": donor_key,
    "context_size": context_size,
    "n_prompts": 1,
    "rng": seed,
}
mt.pp.sample_prompts(adata, **settings)
save(mt.pl.prompt(adata, n_genes=n_genes).figure, "fig1_prompt_timelapse")

# %% tags=["answer"]
mt.pp.sample_prompts(adata, **settings, task="cell", key_added="cell_prompts")
save(mt.pl.prompt(adata, n_genes=n_genes, key="cell_prompts").figure, "fig1_prompt_cell")

# %% [markdown]
# ## What would make this wrong
#
# **Cells pass for donors.** The left panel counts cells and the right one donors: thousands of cells of three donors are three people.
#
# **Ages that are no ages.** Text such as "adult", or a year of birth, is not an age: see `mt.pp.parse_age`, which says of each value what it was read as.
