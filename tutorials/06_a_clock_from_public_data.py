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
# # A clock from public data
#
# No public weights of MaxToki tell time, so the first thing to do is to train a clock: gather cells of known age from a public atlas, bring ages
# and cell types into one form, hold donors out, train, and see what the result is worth beside ridge regression.
#
# The [CELLxGENE Census](https://chanzuckerberg.github.io/cellxgene-census/) holds tens of millions of such cells in a TileDB-SOMA store. This page
# does it all on a small store of the same shape on your disk, written from simulated cells whose ageing is known, so it needs no network
# and takes about three minutes on one core. For the Census itself leave `store` out (section 2).
# It needs the extra `census`: `pip install -c constraints.txt -e ".[census,train]"`.

# %%
import tempfile
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import tiledbsoma.io
from IPython.display import Markdown, display

import maxtoki_toolkit as mt

mt.settings.progress = False
warnings.simplefilter(
    "ignore", UserWarning
)  # what they say is in the text here; keep them on for cells of yours

# %% [markdown]
# ## 1. A store of public cells
#
# `store` may be an experiment of your own: a folder, or an address in a bucket. Without one we write one: cells of two studies, with ages as CELLxGENE
# says them ("45-year-old stage"), labels that the two studies spell each in their own way, and a patient study that must be left out.

# %% tags=["parameters"]
store: str = ""  # a TileDB-SOMA experiment of yours; "" to write one of simulated cells
n_simulated: int = 4000  # cells of that
n_donors: int = 60  # and their donors
max_steps: int = 60  # optimiser steps; a clock that is to be used takes thousands
n_tested: int = 300  # held-out prompts that are predicted
seed: int = 0  # seed of cells, hold-out and training

# %%
folder = Path(tempfile.mkdtemp())
if not store:
    cells = mt.datasets.aging_atlas(n_simulated, n_donors, n_genes=1500, seed=seed)
    obs = cells.obs
    sick = obs["condition"] != "control"
    second = obs["batch"].isin(sorted(obs["batch"].unique())[2:])
    spelled = {"CD4 T cell": "CD4+ T", "CD8 T cell": "CD8+ T cells", "monocyte": "Monocytes", "B cell": "B"}
    cells.obs = pd.DataFrame(
        {
            "cell_type": obs["cell_type"]
            .astype(str)
            .where(~second, obs["cell_type"].astype(str).replace(spelled)),
            "development_stage": (obs["age_months"] // 12).astype(str) + "-year-old stage",
            "disease": np.where(sick, "a disease", "normal"),
            "donor_id": obs["donor_id"].astype(str),
            "dataset_id": np.where(second, "study B", "study A"),
            "sex": obs["sex"].astype(str),
            "tissue_general": np.where(second, "blood", "heart"),
            "tissue_type": "tissue",
            "assay": "10x 3' v3",
            "is_primary_data": True,
        },
        index=obs.index,
    )
    del cells.uns["truth"]
    store = tiledbsoma.io.from_anndata(
        str(folder / "atlas"), cells, measurement_name="RNA", X_layer_name="raw"
    )
print(Path(store).name)

# %% [markdown]
# ## 2. What will be taken
#
# By default only normal cells of tissues, each once, from droplet protocols, and at most a quarter from any tissue, as the paper says of its own
# corpora. `census_plan` writes nothing: look at it first. For the Census of CELLxGENE:
#
# ```python
# recipe = mt.datasets.CorpusRecipe.of(keep={"tissue_general": ["blood"]}, known_age=True, cells_per_donor=2000, max_tissue_share=1.0)
# mt.datasets.census_plan(recipe=recipe)
# ```

# %%
model = mt.load_model("demo")
recipe = mt.datasets.CorpusRecipe.of(known_age=True, cells_per_donor=100, max_tissue_share=0.6, seed=seed)
plan = mt.datasets.census_plan(store, recipe=recipe)
print(f"{plan.n_cells:,} cells of {plan.n_donors} donors, about {plan.gigabytes:.2f} GB")
plan.filters

# %% [markdown]
# ## 3. Gather them
#
# Cells are read a block at a time and written as rank-encoded shards, so memory does not grow with their number. Interrupted, the same call goes on.
# The ages in `.obs["age_months"]` are what `mt.pp.parse_age` reads of the stages; what it cannot know ("adult") is missing rather than guessed.

# %% tags=["answer"]
shards = mt.datasets.census(folder / "corpus", model, store=store, recipe=recipe)
mt.pl.corpus_composition(folder / "corpus")

# %% [markdown]
# ## 4. Many studies, one language
#
# Labels become terms of the [Cell Ontology](https://obofoundry.org/ontology/cl), and a level of your choice. Nothing is guessed from spelling:
# what is unsure is listed first, for you to settle with `mapping={label: term}`. Cells that are no kind of any term of the level are warned of, and left out here.

# %%
import anndata as ad

adata = ad.concat([ad.read_h5ad(path) for path in shards["path"]], merge="same", uns_merge="same")
mt.pp.harmonize_cell_types(
    adata, level=["T cell", "B cell", "monocyte", "macrophage", "fibroblast", "endothelial cell"]
)
mt.get.table(adata, "harmonize_cell_types")

# %% [markdown]
# A lineage is held out with all its spellings: with "B cell" goes what study B calls "B", and a warning says so.

# %%
adata = adata[adata.obs["cell_ontology"] != ""].copy()
mt.pp.hold_out(
    adata, donor_key="donor_id", donors=0.3, time_key="age_months", groups={"cell_type": "B cell"}, rng=seed
)
mt.pl.coverage(adata, time_key="age_months", groupby="cell_ontology", study_key="dataset_id")

# %% [markdown]
# ## 5. What it will cost
#
# Tokens, operations and memory follow from the shape of the model and the length of the prompts; the time from what this machine does in a few
# seconds. `maxtoki clock -c clock.yaml --plan` says the same for a file of settings.

# %%
from maxtoki_toolkit.models.costs import Shape, cost, measure

lengths = 4 * (adata.obs["n_genes_ranked"].clip(upper=model.cell_length - 2) + 3)
prompts = np.random.default_rng(seed).choice(lengths, 2000 * 8)
speed = measure(model, int(lengths.mean()), training=True)
print(
    cost(
        Shape.of(model.hf.config),
        prompts,
        batch=8 * int(lengths.mean()),
        training=True,
        flop_per_second=speed,
    )
)

# %% [markdown]
# ## 6. Train, and be judged
#
# `mt.train.clock` holds out donors (and ages, and lineages), trains, predicts the held-out cells, sets ridge regression, SGD and the most common lapse
# beside them, and writes a card. With so few steps the demo model has hardly moved: what the card says is about the method, not about a clock to use.

# %%
settings = mt.train.ClockRecipe.of(
    donors=0.3,
    groups={"cell_type": "B cell"},
    max_steps=max_steps,
    batch_size=4,
    n_held_out=n_tested,
    n_tested=n_tested,
    n_fitted=600,
    seed=seed,
)
trained = mt.train.clock(
    adata,
    model,
    folder / "clock",
    time_key="age_months",
    donor_key="donor_id",
    groupby="cell_ontology",
    recipe=settings,
)
display(Markdown((folder / "clock" / "card.md").read_text().split("## Settings")[0]))

# %%
tested = ad.read_h5ad(folder / "clock" / "evaluation.h5ad")
figure, ax = plt.subplots(figsize=(4.6, 4.2), layout="constrained")
mt.pl.timelapse_scatter(tested, key="held_out_donors_timelapse", ax=ax)

# %% [markdown]
# ## What would make this wrong
#
# - **Studies that differ in age.** If one study has the young donors and another the old ones, a clock learns the study. Look at the coverage, and hold
#   out whole studies: `mt.pp.hold_out(donors=[...])` with the donors of one.
# - **Donors under two names.** The Census has them unique within a data set only; `donor_id` in the shards begins with the data set.
# - **Ages in bands.** "Seventh decade" is read as its middle. Look at `age_low` and `age_high` before you trust a month.
# - **A clock that is no better than ridge.** Then use ridge: `mt.tl.timelapse_baselines` and `mt.tl.predict_age` fit it beside the model.
#
# Next: [Is my disease old?](02_is_my_disease_old.ipynb) reads patients with such a clock.
