"""The main job on data and model that ship with the package: what `maxtoki demo` runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from anndata import AnnData

from . import _keys, get, pl, pp, tl
from ._outputs import check_names, claim
from ._reference import resource
from .datasets import aging_atlas, load
from .models.load import CARD, load_model
from .models.model import MaxTokiModel
from .pipeline import cluster, draw_umap, save_figures, set_colors

BY = "maxtoki demo"
_TABLES = ("clusters_by_cell_type", "neighbor_purity", "timelapse", "timelapse_scores", "age_acceleration")
_FIGURES = (
    "encoding_report",
    "rank_heatmap",
    "neighbor_purity",
    "umap",
    "timelapse",
    "matched_ages",
    "age_acceleration",
)
_EMBEDDED = "heart_nuclei_embedded.h5ad"
WRITTEN = [
    *(f"{name}.csv" for name in _TABLES),
    *(f"{name}.{ending}" for name in _FIGURES for ending in ("png", "pdf")),
    _EMBEDDED,
]
# Acceleration in years that the simulation plants in its conditions.
PLANTED = {"accelerated_15y": 15, "accelerated_5y": 5, "accelerated_3y": 3, "resilient": 0}


class Demo(NamedTuple):
    """What the main job found."""

    purity: pd.DataFrame
    """Purity of the neighbours for the demo model, an untrained one, PCA and chance: on all nuclei, and on those that
    the demo model never saw."""
    timelapse: pd.DataFrame
    """Scores of the lapses, as `mt.get.table(adata, "timelapse", "scores")` has them."""
    acceleration: pd.DataFrame
    """Effects of the conditions, as `mt.get.table(adata, "age_acceleration")` has them, with the `planted` years."""


def run_demo(output: str | Path) -> Demo:
    """Embed and plot real heart nuclei; tell the time of simulated cells, and which conditions look older.

    Parameters
    ----------
    output
        Folder to write figures and tables to.
    """
    output = Path(output)
    check_names(output, WRITTEN, by=BY)
    model = load_model("demo")
    adata = load("heart_nuclei")
    pp.map_genes(adata, model)
    pp.rank_value_encode(adata, model)
    tl.embed(adata, model, genes=True)
    purity = score(adata, model, groupby="cell_type", held_out=held_out_nuclei())
    cluster(adata)
    atlas = compare_ages(model)
    controls = tell_time(atlas, model)

    claim(output, WRITTEN, by=BY)
    set_colors(adata, ["cell_type", _keys.LEIDEN])
    sizes = pd.crosstab(adata.obs["cell_type"], "cluster " + adata.obs[_keys.LEIDEN].astype(str))
    sizes.to_csv(output / "clusters_by_cell_type.csv")
    effects = get.table(atlas, "age_acceleration")
    found = Demo(
        purity,
        get.table(controls, "timelapse", "scores"),
        effects.assign(planted=effects["condition"].map(PLANTED)),
    )
    tables = {
        "neighbor_purity": found.purity.round(4),
        "timelapse": get.table(controls, "timelapse"),
        "timelapse_scores": found.timelapse,
        "age_acceleration": found.acceleration,
    }
    for name, table in tables.items():
        table.to_csv(output / f"{name}.csv", index=False)
    figures = {
        "encoding_report": pl.encoding_report(adata, max_genes=model.cell_length - 2),
        "rank_heatmap": pl.rank_heatmap(adata, groupby="cell_type"),
        "neighbor_purity": pl.neighbor_purity(adata).figure,
        "umap": draw_umap(adata, ["cell_type", _keys.LEIDEN]),
        "timelapse": pl.timelapse_scatter(controls).figure,
        "matched_ages": pl.matched_ages(atlas, key="age_acceleration").figure,
        "age_acceleration": pl.age_acceleration(atlas, truth=PLANTED),
    }
    save_figures(figures, output)
    adata.write_h5ad(output / _EMBEDDED, compression="gzip")
    return found


def compare_ages(model: MaxTokiModel) -> AnnData:
    """Simulated cells of donors that the demo model never saw, with the effects in `.uns["age_acceleration"]`."""
    adata = aging_atlas(2400, 60, seed=7)
    adata = adata[adata.obs["cell_type"].isin(["CD4 T cell", "fibroblast", "macrophage", "monocyte"])].copy()
    pp.map_genes(adata, model)
    pp.rank_value_encode(adata, model)
    pp.match_ages(
        adata, condition_key="condition", control="control", time_key="age_months", donor_key="donor_id"
    )
    tl.age_acceleration(adata, model, groupby="cell_type", sampling=tl.AgeSampling(n_cells=8, n_contexts=2))
    return adata


def tell_time(adata: AnnData, model: MaxTokiModel) -> AnnData:
    """The controls, with lapses predicted in `.uns["timelapse"]`."""
    adata = adata[adata.obs["condition"] == "control"].copy()
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
    every = get.table(adata, "neighbor_purity")
    unseen = get.table(adata, "neighbor_purity_held_out")
    return pd.concat(
        [every.assign(cells="all"), unseen.assign(cells="held out of training")], ignore_index=True
    )


def held_out_nuclei() -> list[str]:
    """Names of the shipped nuclei that the demo model was not trained on."""
    return json.loads((resource("demo") / CARD).read_text())["held_out"]
