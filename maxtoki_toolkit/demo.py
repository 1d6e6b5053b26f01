"""The main job on data and model that ship with the package: what `maxtoki demo` runs."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
from anndata import AnnData

from . import get, pl, pp, tl
from ._reference import resource
from .datasets import aging_atlas, load
from .models.load import CARD, load_model
from .models.model import MaxTokiModel
from .pipeline import cluster, draw_umap, save_figures, set_colors


def run_demo(output: str | Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Encode, embed, cluster and plot real heart nuclei; tell the time of simulated cells; write figures and tables.

    Parameters
    ----------
    output
        Folder to write to.

    Returns
    -------
    Purity of the neighbours for the demo model, an untrained one, PCA and chance: on all nuclei, and on
    those that the demo model never saw. And the scores of the lapses, as `mt.get.timelapse_scores` has them.
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    model = load_model("demo")
    adata = load("heart_nuclei")
    pp.map_genes(adata, model)
    pp.rank_value_encode(adata, model)
    tl.embed(adata, model, genes=True)
    table = score(adata, model, groupby="cell_type", held_out=held_out_nuclei())
    cluster(adata)

    atlas = tell_time(model)
    scores = get.timelapse_scores(atlas)

    set_colors(adata, ["cell_type", "leiden"])
    table.round(4).to_csv(output / "neighbor_purity.csv", index=False)
    sizes = pd.crosstab(adata.obs["cell_type"], "cluster " + adata.obs["leiden"].astype(str))
    sizes.to_csv(output / "clusters_by_cell_type.csv")
    figures = {
        "encoding_report": pl.encoding_report(adata, max_genes=model.max_length - 2),
        "rank_heatmap": pl.rank_heatmap(adata, groupby="cell_type"),
        "neighbor_purity": pl.neighbor_purity(adata).figure,
        "umap": draw_umap(adata, ["cell_type", "leiden"]),
        "timelapse": pl.timelapse_scatter(atlas).figure,
    }
    get.timelapse(atlas).to_csv(output / "timelapse.csv", index=False)
    scores.to_csv(output / "timelapse_scores.csv", index=False)
    save_figures(figures, output)
    adata.write_h5ad(output / "heart_nuclei_embedded.h5ad", compression="gzip")
    return table, scores


def tell_time(model: MaxTokiModel) -> AnnData:
    """Simulated cells of donors that the demo model never saw, with lapses predicted in `.uns["timelapse"]`."""
    adata = aging_atlas(1500, 30, seed=3)
    adata = adata[adata.obs["condition"] == "control"].copy()
    pp.map_genes(adata, model)
    pp.rank_value_encode(adata, model)
    pp.sample_prompts(
        adata,
        time_key="age_months",
        groupby=["cell_type", "sex"],
        donor_key="donor_id",
        n_prompts=400,
        context_size=(1, 3),
    )
    tl.predict_timelapse(adata, model)
    return adata


def score(adata: AnnData, model: MaxTokiModel, *, groupby: str, held_out: list[str]) -> pd.DataFrame:
    """Neighbour purity on all cells, and on those that were held out of the training."""
    adata.obs["held_out"] = adata.obs_names.isin(held_out)
    tl.neighbor_purity(adata, model, groupby=groupby)
    tl.neighbor_purity(adata, model, groupby=groupby, subset="held_out", key_added="neighbor_purity_held_out")
    every = get.neighbor_purity(adata)
    unseen = get.neighbor_purity(adata, key="neighbor_purity_held_out")
    return pd.concat(
        [every.assign(cells="all"), unseen.assign(cells="held out of training")], ignore_index=True
    )


def held_out_nuclei() -> list[str]:
    """Names of the shipped nuclei that the demo model was not trained on."""
    return json.loads((resource("demo") / CARD).read_text())["held_out"]
