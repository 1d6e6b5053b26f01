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
# # Train a detector of doublets
#
# The paper asks whether generated cells are single cells or averages, with a detector that was trained on true cells against doublets of two
# cells **of one type**. This notebook trains such detectors on your cells, one for each set of features, and compares them: on
# simulated doublets that were held out, on doublets that are known (`truth_key`), and by what they say of cells that a model wrote (`generated`).
#
# Without a `path` the cells are simulated (`mt.datasets.aging_atlas`), with planted doublets of one type.
#
# How the detector of the paper ([doi:10.64898/2026.03.30.715396](https://doi.org/10.64898/2026.03.30.715396)) was built, on how many cells and how good it
# was is not known; that about 95% of the generated cells were singlets to it is from a summary.

# %% tags=["parameters"]
path: str = ""  # .h5ad with raw counts; "" for the simulated atlas
layer: str = ""  # layer with the raw counts; "" for .X
model: str = "demo"  # "demo", "demo-cells", a folder or the name of a published model
cell_type_key: str = "cell_type"  # column of .obs with the cell type; "" for any two cells
donor_key: str = (
    "donor_id"  # column of .obs with the donor or sample; "" for none, and then folds are of cells
)
truth_key: str = "planted"  # column of .obs with the known doublets; "" for none
generated: str = ""  # .h5ad of generated cells to judge; "" for none
features: list = [["ranks", "expression", "size"], ["ranks"]]  # one detector each; see mt.tl.doublets
kind: str = "counts"  # how doublets are simulated: "counts" or "ranks"
same_type: float = 1.0  # share of the simulated doublets that are of one type
expected_rate: float = 0.05  # share of doublets that is expected
n_doublets: int = 0  # doublets to simulate; 0 for as many as there are cells
n_cells: int = 600  # simulated cells
n_donors: int = 20  # simulated donors
seed: int = 5  # seed of cells, doublets, folds and fits
output: str = ""  # folder for figures (PNG, PDF), tables (CSV) and scores of the cells; "" for none

# %%
import anndata
import matplotlib.pyplot as plt
import pandas as pd

import maxtoki_toolkit as mt
from maxtoki_toolkit.pl._style import BASELINE, MODEL, NULL, clean

mt.settings.progress = False
save = mt.reports.saver(output)


# %% [markdown]
# ## Cells, and doublets made of them
#
# A doublet is the sum of two cells of one donor, of which a part of the molecules is caught, so that it is as large as real cells are.

# %%
if path:
    adata = mt.reports.read_cells(path, layer=layer)
else:
    adata = mt.datasets.aging_atlas(n_cells, n_donors, seed=seed)
    adata.obs["planted"] = adata.obs_names.isin(adata.uns["truth"]["doublets"]["cell"])
maxtoki = mt.load_model(model)
mt.pp.map_genes(adata, maxtoki)
mt.pp.rank_value_encode(adata, maxtoki, layer=layer or None)
queries = anndata.read_h5ad(generated) if generated else None
print(f"{adata.n_obs:,} cells" + (f", {queries.n_obs:,} to judge" if generated else ""))

# %% [markdown]
# ## One detector for each set of features
#
# Each is trained and scored in folds of donors: it never judges a cell, or a doublet of a cell, of a donor that it has seen.

# %% tags=["answer"]
scores, singlets = [], []
for n, used in enumerate(features):
    mt.tl.doublets(
        adata,
        maxtoki,
        queries=queries,
        groupby=cell_type_key or None,
        donor_key=donor_key or None,
        truth_key=truth_key or None,
        features=used,
        simulation=mt.pp.DoubletSimulation(
            kind=kind, n_doublets=n_doublets or None, same_type=same_type if cell_type_key else None
        ),
        expected_rate=expected_rate,
        rng=seed,
        key_added=f"doublets_{n}",
    )
    name = " + ".join(used)
    scores.append(mt.get.table(adata, f"doublets_{n}", "scores").assign(features=name))
    singlets.append(mt.get.table(adata, f"doublets_{n}", "singlets").assign(features=name))
    save(mt.get.table(adata, f"doublets_{n}"), f"cells_{n}")
scores, singlets = pd.concat(scores, ignore_index=True), pd.concat(singlets, ignore_index=True)
save(scores, "scores")
save(singlets, "singlets")
columns = ["set", "doublets", "features", "detector", "auroc", "auroc_low", "auroc_high"]
columns += ["average_precision", "calibration_error", "n_doublets", "unit"]
scores[columns].round(3)

# %% [markdown]
# `simulated` doublets are easier to tell than real ones: what counts is `truth`, where it is known. scrublet looks for cells between types,
# and is not made for doublets of one type. Areas with 95% intervals over donors:

# %% tags=["answer"]
shown = "truth" if (scores["set"] == "truth").any() else "simulated"
part = scores[(scores["set"] == shown) & (scores["doublets"] == "all")]
part = part[~part.duplicated(["detector"]) | (part["detector"] == "detector")].iloc[::-1]
colors = {"detector": MODEL, "scrublet": BASELINE}
names = [f if d == "detector" else d for d, f in zip(part["detector"], part["features"], strict=True)]
figure, ax = plt.subplots(figsize=(5.2, 0.9 + 0.34 * len(part)), layout="constrained")
for y, (_, row) in enumerate(part.iterrows()):
    color = colors.get(row["detector"], NULL)
    ax.plot([row["auroc_low"], row["auroc_high"]], [y, y], color=color, lw=2)
    ax.plot(row["auroc"], y, "o", color=color)
ax.axvline(0.5, color=NULL, lw=1, ls="--")
ax.set_yticks(range(len(names)), names)
kinds = {"truth": "known", "simulated": "simulated"}
ax.set_ylim(-0.6, len(names) - 0.4)
ax.set_xlabel(f"area under the ROC curve ({kinds[shown]} doublets)")
clean(ax)
save(figure, "doublet_detectors")

# %% [markdown]
# ## The first detector in full

# %%
save(mt.pl.doublets(adata, key="doublets_0", scored_on=shown), "doublets")

# %% [markdown]
# ## Shares of singlets
#
# Counted at even odds: of the cells, of the doublets that were simulated, and of the cells to judge, if there are any. A detector by
# which most doublets are singlets can say nothing good about generated cells.

# %%
singlets.round(3)

# %% [markdown]
# ## What would make this wrong
#
# **Doublets among the cells.** All cells are taken as singlets. A few doublets among them weaken the detector, many teach it the wrong thing.
#
# **Simulated is not real.** Real doublets differ from sums of two cells in more than is known. Scores on simulated doublets are an upper bound.
#
# **One donor.** Folds are then of cells, and say nothing about other donors.
#
# **Generated cells that differ in something else.** A detector that is asked about cells unlike any it has seen answers all the same. Look at their
# ranks and embeddings, too ([fig2_generated_cells](fig2_generated_cells.ipynb)).
