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
# # Your own h5ad in MaxToki
#
# From the raw matrix that a 10x run leaves behind to a map of your cells, in about a minute on a laptop.
#
# MaxToki reads a cell as a **list of its genes, in order of how high each is expressed compared with what is usual for
# that gene**. So the steps are: name the genes, rank them within each cell, let the model read the list, and look at
# the vector it makes of each cell.
#
# What you need: **raw counts** (not normalised), human genes (symbols or Ensembl ids), nothing else. The model used
# here is the small demo model that comes with the package. It shows how everything works; for your results, load the
# published weights instead (last section), and score them first (section 5).

# %% tags=["parameters"]
path: str = ""  # 10x folder, 10x .h5 or .h5ad with raw counts; "" for the nuclei of the package
label: str = "cell_type"  # column of .obs with known labels, for colours and scoring only
output: str = "my_cells_maxtoki.h5ad"  # file to write
min_genes: int = 200  # cells with fewer expressed genes are taken for empty droplets

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import scanpy as sc

import maxtoki_toolkit as mt

plt.rcParams["figure.figsize"] = (4.5, 4.5)

# %% [markdown]
# ## 1. Read the raw matrix
#
# Without a `path`, we take 700 nuclei of a human heart and write them down the way Cell Ranger does: a folder with
# `matrix.mtx.gz`, `features.tsv.gz` and `barcodes.tsv.gz`, genes named by symbol.

# %%
labels = None
if not path:
    import gzip
    import tempfile

    import pandas as pd
    from scipy.io import mmwrite

    heart = mt.datasets.load("heart_nuclei")
    folder = Path(tempfile.mkdtemp())
    with gzip.open(folder / "matrix.mtx.gz", "wb") as file:
        mmwrite(file, heart.X.T.astype(int))
    features = pd.DataFrame({"id": heart.var_names, "name": heart.var["symbol"], "type": "Gene Expression"})
    features.to_csv(folder / "features.tsv.gz", sep="\t", header=False, index=False)
    pd.Series(heart.obs_names).to_csv(folder / "barcodes.tsv.gz", header=False, index=False)
    labels = heart.obs[label]
    path = str(folder)

if path.endswith(".h5ad"):
    adata = sc.read_h5ad(path)
elif path.endswith(".h5"):
    adata = sc.read_10x_h5(path)
else:
    adata = sc.read_10x_mtx(path)
adata.var_names_make_unique()
if labels is not None:
    adata.obs[label] = labels
adata

# %% [markdown]
# Empty droplets have nothing to read. This is the only filter that MaxToki itself asks for; your usual quality
# control (mitochondrial share, doublets) comes before it as always.

# %%
sc.pp.filter_cells(adata, min_genes=min_genes)
adata.n_obs

# %% [markdown]
# ## 2. Load a model and name the genes
#
# `map_genes` finds the Ensembl id of each gene, offline, and reports how many were found:
# every gene is *matched*, *versioned* (found after cutting a version such as `.5`), *retired* (an old id) or *dropped*
# (the model has no word for it; old names and RNA genes are the usual ones). *Duplicated* counts columns that name a
# gene a second time, whose counts are summed, so *in_vocabulary* is what the model can see.

# %%
model = mt.load_model("demo")
mt.pp.map_genes(adata, model)
mt.get.table(adata, "map_genes")

# %% [markdown]
# ## 3. Rank the genes of each cell
#
# A gene's rank in a cell comes from its count divided by the median of that gene in the model's training cells. So a
# gene that is high in every cell ranks lower than its counts alone would put it, and one that is unusually high
# **here** ranks first.

# %%
mt.pp.rank_value_encode(adata, model)
mt.pl.encoding_report(adata, max_genes=model.cell_length - 2)
# %% [markdown]
# The line on the right is where the model stops reading: lower ranked genes of a cell are not seen. The demo model reads
# 126 genes, the published ones 4,094.
#
# The ranks are an ordinary layer of the AnnData, and a cell is an ordinary list:

# %%
ranks = mt.get.ranks(adata[:1]).iloc[0].dropna().sort_values()
print(adata.obs_names[0], "->", ", ".join(ranks.index[:15]))

# %% [markdown]
# **If you pass the wrong matrix, you are told.** Log-normalised values would give another order of the genes, silently;
# here they are refused:

# %%
normalised = adata.copy()
sc.pp.normalize_total(normalised, target_sum=1e4)
sc.pp.log1p(normalised)
try:
    mt.pp.rank_value_encode(normalised, model)
except ValueError as error:
    print(error)

# %% [markdown]
# ## 4. Embed the cells
#
# The model reads each list; the mean over the genes it has read is the cell's vector. From here on it is plain scanpy.

# %%
mt.tl.embed(adata, model)
sc.pp.neighbors(adata, use_rep="X_maxtoki", random_state=0)
sc.tl.umap(adata, random_state=0)
sc.tl.leiden(adata, flavor="igraph", n_iterations=2, directed=False, random_state=0)

# %%
colors = ["leiden", label] if label in adata.obs else ["leiden"]
sc.pl.umap(adata, color=colors, wspace=0.3, frameon=False)

# %% [markdown]
# Which genes make a cluster? Those that rank higher in its cells than elsewhere (dark is a high rank, white is not
# expressed):

# %%
mt.pl.rank_heatmap(adata, groupby="leiden", n_genes=4)
# %% [markdown]
# ## 5. Is the embedding any good?
#
# If you know some labels, ask whether neighbours share them, and compare with what needs no such model: principal
# components of the normalised counts, and the same model before training. **PCA is a strong baseline.** If a model does
# not come near it on your cells, do not use that model's embedding for them.

# %%
if label in adata.obs:
    mt.tl.neighbor_purity(adata, model, groupby=label)
    mt.pl.neighbor_purity(adata)

# %%
mt.get.table(adata, "neighbor_purity").round(
    3
) if label in adata.obs else "no labels, so nothing to score against"

# %% [markdown]
# For the nuclei of the package this flatters the model, which was trained on 630 of the 700. On the 70 that it has not
# seen, `maxtoki demo` gives 92% (PCA: 96%); and all 700 are from one donor.
#
# ## 6. Keep the result
#
# Everything is in the AnnData: ranks in `layers["rank"]`, vectors in `obsm["X_maxtoki"]`, and in `uns` which model with
# which checksum made them.

# %%
adata.uns["embed"]["params"]

# %%
adata.write_h5ad(output, compression="gzip")

# %% [markdown]
# ## With the published weights
#
# The two published models are stage 1: they embed cells, and cannot tell time before they are trained to.
#
# ```python
# files = mt.datasets.fetch("maxtoki-dictionaries")          # token dictionary and gene medians, checked
# vocab = mt.models.Vocabulary.from_json(files["token_dictionary_v1.json"],
#                                        gene_medians=files["gene_median_dictionary_v1.json"])
# model = mt.load_model("maxtoki-217m", vocab=vocab)         # 868 MB, once; a GPU helps
# ```
#
# The rest of this page stays as it is. Without a notebook, `maxtoki embed my_cells.h5ad` names, ranks, embeds, clusters and
# draws; it reads the file a block at a time, so it may be larger than your memory, and keeps the embedding, not the counts.
