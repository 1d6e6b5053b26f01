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
# # Fig. 2: are generated cells real ones?
#
# A prompt of a few cells of one kind ends with a lapse, and the model writes the cell that follows. This notebook looks at such
# cells as one would look at a new data set: is each of them one cell, is it of the type that was asked for, can others learn that type from
# it, is it of the age that was asked for, and is it more than a copy or an average of what the model was trained on?
# Each answer stands beside that for true cells, and beside that for trivial cells.
#
# Without a `path` the cells are simulated (`mt.datasets.aging_atlas`), of donors that the model has not seen. The contexts are of half of
# them, and all comparisons are with cells of the other half.
#
# In the paper ([doi:10.64898/2026.03.30.715396](https://doi.org/10.64898/2026.03.30.715396)), 95% of the generated cells were singlets to a
# detector of doublets, and 82% were annotated as the type of their prompt; a classifier that was trained on generated cells knew true ones.
# (From summaries of the paper; cells, intervals and classifiers are not known.)

# %% tags=["parameters"]
path: str = ""  # .h5ad with raw counts and known ages; "" for the simulated atlas
layer: str = ""  # layer with the raw counts; "" for .X
model: str = "demo-cells"  # "demo-cells", or the folder of a model that mt.train.temporal wrote
time_key: str = "age_months"  # column of .obs with the time, in whole units
time_unit: str = "months"  # unit of that column
cell_type_key: str = "cell_type"  # column of .obs with the cell type
groupby: list = ["cell_type", "sex"]  # columns of .obs in which all cells of a prompt agree
donor_key: str = "donor_id"  # column of .obs with the donor
cells: dict = {"condition": ["control"]}  # cells to use, by columns of .obs; {} for all
train_donors: str = ""  # boolean column of .obs: donors that the model was trained on; "" for none of them
donors: float = 0.5  # share of the (other) donors that the contexts are drawn from
context_size: list = [2, 3]  # fewest and most context cells a prompt
n_prompts: int = 150  # prompts
n_samples: int = 2  # cells to write after each prompt
temperature: float = 0.8  # 1 for the model's own distribution, less for likelier cells
n_cells: int = 4000  # simulated cells
n_donors: int = 40  # simulated donors
seed: int = 8  # seed of donors, prompts and draws; the demo models were trained on donors of seeds 0 and 1
output: str = ""  # folder for figures (PNG, PDF), tables (CSV) and the cells (h5ad); "" for none

# %%
from pathlib import Path

import maxtoki_toolkit as mt

mt.settings.progress = False
save = mt.reports.saver(output)


# %% [markdown]
# ## Prompts, and the cells that follow

# %%
maxtoki = mt.load_model(model)
if path:
    adata = mt.reports.read_cells(path, layer=layer, time_key=time_key, time_unit=time_unit, model=maxtoki)
else:
    adata = mt.datasets.aging_atlas(n_cells, n_donors, seed=seed)
adata = adata[mt.reports.cells_with(adata, cells)].copy()
mt.pp.map_genes(adata, maxtoki)
mt.pp.rank_value_encode(adata, maxtoki, layer=layer or None)
if train_donors:
    learned = adata[adata.obs[train_donors]].copy()
    adata = adata[~adata.obs[train_donors]].copy()
mt.pp.hold_out(adata, donor_key=donor_key, donors=donors, rng=seed)
mt.pp.sample_prompts(
    adata,
    time_key=time_key,
    groupby=groupby,
    donor_key=donor_key,
    task="cell",
    n_prompts=n_prompts,
    context_size=context_size,
    contexts="held_out",
    queries="held_out",
    sampling=mt.pp.PromptSampling(balance=1),
    rng=seed,
)
generated = mt.tl.generate(adata, maxtoki, n_samples=n_samples, temperature=temperature, rng=seed)
if output:
    Path(output).mkdir(parents=True, exist_ok=True)
    generated.write_h5ad(Path(output) / "generated_cells.h5ad")
generated.obs.head(3)

# %% [markdown]
# What a generated cell is: an order of genes. `log_likelihood_per_token` is how likely the model found what it wrote, and
# `finished` whether it ended the cell itself. Each row below is a gene, each column a cell.

# %%
generated.obs.groupby("finished").agg(
    cells=("n_genes_ranked", "size"),
    genes=("n_genes_ranked", "median"),
    log_likelihood_per_token=("log_likelihood_per_token", "median"),
)

# %%
generated.obs["asked for"] = generated.obs["group"].astype(str)
save(mt.pl.rank_heatmap(generated, groupby="asked for", n_genes=3, n_cells=20), "fig2_ranks")

# %% [markdown]
# ## Is each of them one cell?
#
# The detector learns true cells from doublets that are made of two of them, of other donors, and then judges the generated
# cells. `expected_rate` is the share of doublets that it takes for granted.

# %% tags=["answer"]
# All audits at once; what each of them found is shown below.
mt.tl.evaluate_generated(
    adata,
    maxtoki,
    generated=generated,
    groupby=cell_type_key,
    donor_key=donor_key,
    train="held_out",
    rng=seed,
)
save(mt.get.table(adata, "evaluate_generated"), "summary")
save(mt.get.table(adata, "doublets", "singlets"), "singlets")
mt.get.table(adata, "doublets", "singlets").round(3)

# %%
save(mt.pl.doublets(adata), "fig2_doublets")

# %% [markdown]
# ## Are they of the type that was asked for?
#
# A classifier of true cells annotates generated ones. `true cells` are cells of donors that it has not seen: no
# generated cell can be expected to do better. `context cells` are those of the prompts.

# %%
save(mt.get.table(adata, "annotation_concordance"), "concordance")
mt.get.table(adata, "annotation_concordance").round(3)

# %% tags=["answer"]
save(mt.pl.annotation_concordance(adata).figure, "fig2_concordance")

# %% [markdown]
# ## Can the types be learned from them?
#
# The other way round: a classifier learns from generated cells and is tested on true ones of other donors. Beside it the same
# with as many true cells, and with bags of genes: generated cells whose genes were put in random order.

# %%
save(mt.get.table(adata, "train_on_generated"), "train_on_generated")
mt.get.table(adata, "train_on_generated").round(3)

# %%
save(mt.pl.train_on_generated(adata).figure, "fig2_train_on_generated")

# %% [markdown]
# ## Are they of the age that was asked for?
#
# A clock (ridge regression, fitted to true cells of other donors) reads the age of the generated cells.

# %%
save(mt.get.table(adata, "generated_ages"), "generated_ages")
mt.get.table(adata, "generated_ages").round(3)

# %%
save(mt.pl.generated_ages(adata), "fig2_generated_ages")

# %% [markdown]
# ## Copies, averages, or cells?
#
# A model can write good cells by writing one of the cells that it was trained on, or the same safe cell over and over. Here the
# cells of the contexts' donors stand for what could be copied.

# %%
save(mt.get.table(adata, "generation_diversity"), "diversity")
mt.get.table(adata, "generation_diversity").round(3)

# %%
save(mt.pl.generation_diversity(adata), "fig2_diversity")

# %% [markdown]
# ## What would make this wrong
#
# **The judges are of the same data.** Detector, classifier and clock see ranks of the same cells that the contexts come from. They can tell
# whether a cell is like these, not whether it could live.
#
# **Types that are far apart.** Where any ten genes tell two types apart, all concordances are near 100%. Look at the confusion of neighbours.
#
# **Easy temperatures.** A lower temperature makes cells more typical: fewer doublets, higher concordance, less diversity. Read these together.
#
# **Donors in both halves.** With `train_donors` empty the notebook takes it that the model has seen none of these donors. If it has, copies
# count as good cells.
