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
# # "Through a Glass Darkly": look through all features
#
# Every feature of an autoencoder with the cell types, genes and cells in which it is active: a list to search and sort in JupyterLab, and the same as one page that
# opens without a network. Beside it, what looking alone does not say: which labels pass a test over donors (or cells), and how many random directions pass as well.
#
# Without a `path` the cells are nuclei of a human heart that ship with the package, all of one donor.
#
# A. Green's essay (Markov Bio, 2024) shows a dashboard of about 16,000 features with enriched cell types, tissues, genes and GO terms, and the top cells with their genes
# in order. Its tests and pooling are not known to us.

# %% tags=["parameters"]
path: str = ""  # .h5ad with raw counts; "" for the heart nuclei of the package
layer: str = ""  # layer with the raw counts; "" for .X
model: str = "demo"  # "demo", a folder or a hub id; any model that reads cells
sae: str = "demo"  # "demo", "demo-early", or the folder of an autoencoder of this model
groupby: list = ["cell_type"]  # column of .obs with the cell type, in a list
donor_key: str = ""  # column of .obs with the donor; "" for none
cells: dict = {}  # cells to use, by columns of .obs; {} for all
basis: str = ""  # key of .obsm with a map of the cells; "" to compute a UMAP of the embedding
gene: str = "TTN"  # gene whose features are listed
n_cells: int = 700  # cells to read, at most
seed: int = 0  # seed of cells and nulls
output: str = ""  # folder for the page, figures (PNG, PDF) and tables (CSV); "" for none

# %%
import tempfile
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import scanpy as sc
from IPython.display import display

import maxtoki_toolkit as mt

mt.settings.progress = False
save = mt.reports.saver(output)

# %% [markdown]
# ## Features of the cells

# %%
maxtoki, coder = mt.load_model(model), mt.load_sae(sae)
adata = mt.reports.read_cells(path, layer=layer) if path else mt.datasets.load("heart_nuclei")
adata = adata[mt.reports.cells_with(adata, cells)].copy()
if adata.n_obs > n_cells:
    chosen = np.random.default_rng(seed).choice(adata.n_obs, n_cells, replace=False)
    adata = adata[np.sort(chosen)].copy()
mt.pp.map_genes(adata, maxtoki)
mt.pp.rank_value_encode(adata, maxtoki, layer=layer or None)
if not basis:
    mt.tl.embed(adata, maxtoki)
    sc.pp.neighbors(adata, use_rep="X_maxtoki", random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of UMAP, which says that a seed takes away its threads
        sc.tl.umap(adata, random_state=seed)
mt.tl.features(adata, maxtoki, coder)
active = np.diff(adata.obsm["features"].tocsc().indptr)
print(f"{coder.width} features, {(active > 0).sum()} of them active in some of {adata.n_obs} cells")

# %% [markdown]
# ## The features in JupyterLab
#
# Search by gene, label or number, filter by cell type or family, sort by how often a feature is active. In a notebook that nobody opens, a picture stands here.

# %% tags=["answer"]
label = groupby[0]
mt.widgets.features(adata, maxtoki, coder, groupby=label, basis=basis or "X_umap")

# %% [markdown]
# ## The same as a page
#
# One file for those who have no Python; `maxtoki report features` writes it as well.

# %%
with tempfile.TemporaryDirectory() as folder:
    page = Path(output or folder) / "features.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    mt.reports.features(
        adata,
        page,
        model=maxtoki,
        sae=coder,
        groupby=label,
        basis=basis or "X_umap",
        overwrite=True,
    )
    print(f"{page.name}: {page.stat().st_size / 2**20:.1f} MB")

# %% [markdown]
# ## Which labels pass a test
#
# An AUROC in the dashboard is one of many, and some are high by chance. Here they are corrected over all features and labels, and found again in the other half of the
# donors (or cells), beside random directions and the genes themselves.

# %% tags=["answer"]
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of cells without donors, which is said above
    mt.tl.feature_summary(adata, groupby=groupby, donor_key=donor_key or None, rng=seed)
ax = mt.pl.feature_summary(adata).axes[0]
save(ax.figure, "feature_summary")
display(ax.figure)
plt.close("all")

# %% [markdown]
# ## Features of a gene
#
# Those in which the gene is most active, with the genes that they share it with.

# %%
genes = mt.get.table(adata, "features", "genes")
mine = genes.loc[genes["symbol"] == gene, "feature"].unique()
listed = genes[genes["feature"].isin(mine)].groupby("feature")["symbol"].agg(lambda s: ", ".join(s[:6]))
listed = listed.rename("top genes").reset_index()
listed["cells"] = active[listed["feature"]]
save(listed, "features_of_gene")
display(listed.sort_values("cells", ascending=False).head(10))

# %% [markdown]
# ## What would make this wrong
#
# - A feature is named by what it goes with in these cells. In others it may go with something else.
# - Cells of one donor cannot say whether a feature is of a cell type or of this donor.
# - Features of genes that every cell reads (ribosomes, mitochondria) are active everywhere and mean depth as often as biology.
# - The page holds names of cells and values of `groupby`: mind who may read them.
