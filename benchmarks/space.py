"""Cells in tissue: is what is planted found, is what is shuffled not, and what do real sections show?

    python benchmarks/space.py planted                           # simulated sections, minutes on one core
    python benchmarks/space.py breast islets --folder FOLDER     # real sections, which do not ship

- `planted`: niche, gradients and the range of a field on simulated sections, and on those with nothing planted.
- `breast`: Moran's I and variograms of genes, the demo model's embedding and its autoencoder's features on four sections
  of one breast tumour (breast_st_1031.h5ad; Stahl et al. 2016). There is one donor: intervals are over sections.
- `islets`: neighbours of 253,777 cells in 120 images of 12 donors (islet_t1d_types_120images.h5ad; Damond et al.
  2019), by the stage of diabetes; beside a count one by one, and beside squidpy's z scores where it is installed.

Each part is written to `results/space.json` under its name; the others stay.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # This folder must not come first on the path: its tokenize.py would pass for Python's own.
    sys.path[0] = str(Path(__file__).parents[1])

import argparse
import importlib.util
import time

import anndata
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import stats

import maxtoki_toolkit as mt
from benchmarks import report
from maxtoki_toolkit.pp._tissue import read_images
from maxtoki_toolkit.stats import space
from maxtoki_toolkit.stats.donors import mean_of_donors

PARTS = ("planted", "breast", "islets")
KEYS = {"library_key": "image_id", "donor_key": "donor_id", "distance_unit": "µm"}
STAGES = ("Non-diabetic", "Onset", "Long-duration")
# Endocrine cells among themselves, beta cells beside T cells and acini, T cells beside each other.
PAIRS = (
    ("beta", "beta"),
    ("beta", "alpha"),
    ("beta", "Tc"),
    ("alpha", "alpha"),
    ("Tc", "Th"),
    ("beta", "acinar"),
)


def rounded(**values) -> dict:
    """Numbers with four digits, `None` for those that are not known, as JSON has them."""
    return {
        name: (None if np.isnan(value) else str(value) if np.isinf(value) else round(float(value), 4))
        if isinstance(value, (float, np.floating))
        else value
        for name, value in values.items()
    }


def planted(n: int) -> None:
    """Rows of planted and free sections: how often what is there is found, and what is not is called."""
    rows = []
    for null in (False, True):
        ranges, inside, niche, genes, called = [], [], [], [], []
        for seed in range(n):
            adata = mt.datasets.tissue(2000, seed=seed, null=null)
            truth = mt.datasets.tissue(600).uns["truth"] if null else adata.uns["truth"]
            mt.tl.neighborhood_enrichment(adata, groupby="cell_type", n_permutations=199, rng=seed, **KEYS)
            pairs = mt.get.table(adata, "neighborhood_enrichment")
            both = pairs["label"].isin(truth["niche"]) & pairs["neighbor"].isin(truth["niche"])
            niche.append(
                ((pairs["q_value"] < 0.05) & (pairs["unit_q_value"] < 0.05) & (pairs["log2_enrichment"] > 0))[
                    both
                ].mean()
            )
            called.append([(pairs[name] < 0.05).mean() for name in ("p_value", "unit_p_value")])
            mt.tl.spatial_features(
                adata,
                keys=["gradient", "field", *truth["gradient_genes"]],
                n_permutations=199,
                rng=seed,
                **KEYS,
            )
            features = mt.get.table(adata, "spatial_features").query("~baseline")
            genes.append((features["q_value"] < 0.05).mean())
            mt.tl.variogram(adata, keys="field", max_distance=600.0, n_permutations=59, rng=seed, **KEYS)
            field = mt.get.table(adata, "variogram", "ranges").iloc[0]
            ranges.append(field["range"])
            inside.append(field["range_low"] <= 250 <= field["range_high"])
        rows.append(
            rounded(
                sections="nothing planted" if null else "planted",
                n_tissues=n,
                niche_pairs_called=np.mean(niche),
                pairs_with_p_below_05=np.mean([p for p, _ in called]),
                pairs_with_unit_p_below_05=np.mean([p for _, p in called]),
                features_called=np.mean(genes),
                ranges_found=int(np.isfinite(ranges).sum()),
                range_median=float(np.nanmedian(ranges)) if np.isfinite(ranges).any() else np.nan,
                intervals_that_hold_the_range=np.nan if null else np.mean(inside),
            )
        )
    report.add("space", rows, case="planted", device="cpu", planted_range=250, n_donors=10, n_cells=2000)


def breast(folder: Path, n_permutations: int) -> None:
    """Rows of genes, dimensions and features on four sections of one tumour."""
    adata = anndata.read_h5ad(folder / "breast_st_1031.h5ad")
    adata.obs["section"] = "section " + adata.obs["slice"].astype(float).astype(int).astype(str)
    counts = np.asarray(adata.X.sum(axis=1)).ravel()
    scaled = adata.X.tocsr().astype(float)
    scaled = scaled.multiply((np.median(counts) / counts)[:, None]).tocsr().log1p()
    spread = np.asarray(scaled.power(2).mean(axis=0)).ravel() - np.asarray(scaled.mean(axis=0)).ravel() ** 2
    most = np.sort(np.argsort(-spread, kind="stable")[:300])
    adata.obsm["PCA"] = components(scaled[:, most].toarray())
    model, sae = mt.load_model("demo"), mt.load_sae("demo")
    mt.pp.map_genes(adata, model)
    mt.pp.rank_value_encode(adata, model)
    mt.tl.embed(adata, model)
    mt.tl.features(adata, model, sae)
    names = list(dict.fromkeys(["COL1A1", "GNAS", *adata.var["symbol"].iloc[most]]))
    keys = [name for name in names if name in set(adata.var["symbol"])]
    settings = {
        "library_key": "section",
        "radius": 1.3,
        "n_permutations": n_permutations,
        "distance_unit": "spots",
    }
    mt.tl.spatial_features(adata, keys=[*keys, "X_maxtoki", "features", "PCA"], **settings)
    table = mt.get.table(adata, "spatial_features")
    table["kind"] = table["key"].where(
        table["key"].isin(["X_maxtoki", "features", "PCA"]) | table["baseline"], "genes"
    )
    rows = []
    for kind, part in table.groupby("kind", sort=False):
        known = part.dropna(subset=["morans_i"])
        called = {name: (known[name] < 0.05).mean() for name in ("q_value", "adjusted_q_value")}
        if known["baseline"].any():
            called = dict.fromkeys(called, np.nan)
        rows.append(
            rounded(
                what=kind,
                n=len(known),
                morans_i_median=known["morans_i"].median(),
                morans_i_largest=known["morans_i"].max(),
                adjusted_median=known["adjusted"].median(),
                share_called=called["q_value"],
                share_called_adjusted=called["adjusted_q_value"],
                null_mean=known["null_mean"].mean(),
            )
        )
    one = table[table["feature"].isin(["COL1A1", "GNAS"])]
    wanted = [
        "feature",
        "morans_i",
        "ci_low",
        "ci_high",
        "null_low",
        "null_high",
        "p_value",
        "q_value",
        "adjusted",
    ]
    genes = [rounded(**row) for row in one[wanted].to_dict("records")]
    units = mt.get.table(adata, "spatial_features", "units")
    for gene in genes:
        found = units[units["feature"] == gene["feature"]]["morans_i"]
        gene["by_section"] = [round(float(value), 4) for value in found]
    mt.tl.variogram(
        adata, keys=["COL1A1", "GNAS", "X_maxtoki", "PCA"], library_key="section", n_bins=9, max_distance=12.0,
        n_permutations=199, distance_unit="spots",
    )  # fmt: skip
    ranges = [rounded(**row) for row in mt.get.table(adata, "variogram", "ranges").to_dict("records")]
    print(pd.DataFrame(genes), pd.DataFrame(ranges), sep="\n")
    report.add(
        "space", rows, case="breast", device="cpu", data="breast_st_1031.h5ad", genes=genes, ranges=ranges,
        units="4 sections of one tumour", n_permutations=n_permutations, spots=int(adata.n_obs),
    )  # fmt: skip


def components(values: np.ndarray) -> np.ndarray:
    """Twenty principal components."""
    values = values - values.mean(axis=0)
    left, size, _ = np.linalg.svd(values, full_matrices=False)
    return left[:, :20] * size[:20]


def islets(folder: Path, n_permutations: int) -> None:
    """Rows of pairs of cell types, over all donors and by stage; how much is left of beta cells."""
    whole = anndata.read_h5ad(folder / "islet_t1d_types_120images.h5ad")
    adata = AnnData(obs=whole.obs, obsm={"spatial": whole.obsm["spatial"]})
    settings = {"groupby": "cell_type", **KEYS, "n_neighbors": 6}
    same = brute_force(adata, settings)
    start = time.process_time()
    mt.tl.neighborhood_enrichment(adata, n_permutations=n_permutations, **settings)
    seconds = time.process_time() - start
    pairs = mt.get.table(adata, "neighborhood_enrichment")
    units = mt.get.table(adata, "neighborhood_enrichment", "units")
    stage = adata.obs.drop_duplicates("donor_id").set_index("donor_id")["stage"].astype(str)
    units["stage"] = units["unit"].map({str(donor): name for donor, name in stage.items()})
    known = pairs.dropna(subset=["log2_enrichment"])
    rows = []
    for label, neighbor in PAIRS:
        row = known[(known["label"] == label) & (known["neighbor"] == neighbor)].iloc[0]
        found = units[(units["label"] == label) & (units["neighbor"] == neighbor)]
        by_stage = {}
        for name in STAGES:
            values = found[found["stage"] == name]["log2_enrichment"].to_numpy()
            mean = mean_of_donors(values) if len(values) else mean_of_donors(np.array([np.nan]))
            by_stage[name] = rounded(
                mean=float(mean.estimate), low=float(mean.low), high=float(mean.high), n_donors=int(mean.n)
            )
        columns = [
            "log2_enrichment",
            "ci_low",
            "ci_high",
            "null_low",
            "null_high",
            "q_value",
            "unit_q_value",
            "n_edges",
        ]
        rows.append(
            rounded(
                pair=f"{label} - {neighbor}",
                **{name: row[name].item() for name in columns},
                n_donors=int(row["n_units"]),
            )
            | {"by_stage": by_stage}
        )
    called = (known["q_value"] < 0.05), (known["q_value"] < 0.05) & (known["unit_q_value"] < 0.05)
    report.add(
        "space", rows, case="islets", device="cpu", data="islet_t1d_types_120images.h5ad", beta_share=beta_share(adata),
        n_cells=int(adata.n_obs), n_images=120, n_permutations=n_permutations, cpu_seconds=round(seconds, 1),
        pairs_known=len(known), pairs_called=int(called[0].sum()), pairs_called_over_donors_too=int(called[1].sum()),
        edges_equal_to_a_count_one_by_one_on_200_cells=same, squidpy=squidpy(adata, pairs),
    )  # fmt: skip


def brute_force(adata: AnnData, settings: dict) -> bool:
    """Whether all edges of 200 cells of two images are those counted one by one."""
    rows = [
        np.flatnonzero(adata.obs["image_id"] == name)[:100]
        for name in sorted(adata.obs["image_id"].unique())[:2]
    ]
    few = adata[np.concatenate(rows)].copy()
    tissue = read_images(few, library_key="image_id")
    names, codes = np.unique(tissue.cells.obs["cell_type"].astype(str), return_inverse=True)
    graph = tissue.graph(settings["n_neighbors"], None)
    counted = np.zeros((2, len(names), len(names)), int)
    for image, (first, end) in enumerate(zip(tissue.starts[:-1], tissue.starts[1:], strict=True)):
        for i in range(first, end):
            away = [
                (np.linalg.norm(tissue.places[i] - tissue.places[j]), j) for j in range(first, end) if j != i
            ]
            # Of cells that are equally far, those that the graph took.
            taken = set(graph.indices[graph.indptr[i] : graph.indptr[i + 1]])
            away.sort(key=lambda pair: (pair[0], pair[1] not in taken))
            for _, j in away[: settings["n_neighbors"]]:
                counted[image, codes[i], codes[j]] += 1
    found = space.Edges.of(graph, tissue.starts).count(codes, len(names))
    return bool((found == counted).all())


def beta_share(adata: AnnData) -> dict:
    """Share of beta cells among endocrine ones by stage, over donors, and its rank correlation with the stage."""
    obs = adata.obs[adata.obs["cell_type"].isin(["alpha", "beta", "delta", "gamma"])]
    share = obs.assign(beta=obs["cell_type"] == "beta").groupby("donor_id", observed=True)["beta"].mean()
    stage = obs.drop_duplicates("donor_id").set_index("donor_id")["stage"].astype(str).loc[share.index]
    order = stage.map({name: i for i, name in enumerate(STAGES)}).to_numpy()
    test = stats.permutation_test(
        (order,), lambda x: stats.spearmanr(x, share.to_numpy()).statistic,
        permutation_type="pairings", n_resamples=9999, rng=np.random.default_rng(0),
    )  # fmt: skip
    found = {}
    for name in STAGES:
        mean = mean_of_donors(share[stage == name].to_numpy())
        found[name] = rounded(
            mean=float(mean.estimate), low=float(mean.low), high=float(mean.high), n_donors=int(mean.n)
        )
    return {**found, "spearman_with_stage": round(float(test.statistic), 3), "p_value": round(float(test.pvalue), 4),
            "test": "9,999 permutations of 12 donors, two-sided"}  # fmt: skip


def squidpy(adata: AnnData, pairs: pd.DataFrame) -> str | dict:
    """Correlation with squidpy's z scores, if it is installed."""
    if importlib.util.find_spec("squidpy") is None:
        return "not installed"
    import squidpy as sq

    adata = adata.copy()
    adata.obs[["image_id", "cell_type"]] = adata.obs[["image_id", "cell_type"]].astype("category")
    sq.gr.spatial_neighbors(adata, library_key="image_id", n_neighs=6, coord_type="generic")
    sq.gr.nhood_enrichment(
        adata, cluster_key="cell_type", library_key="image_id", seed=0, show_progress_bar=False
    )
    counts = adata.uns["cell_type_nhood_enrichment"]["count"]
    ours = pairs.pivot(index="label", columns="neighbor", values="n_edges").to_numpy()
    return {"counts_equal": bool((counts == ours).all()), "version": sq.__version__}


def main() -> None:
    """Run the parts that are named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--folder", type=Path, help="where the real sections are")
    parser.add_argument(
        "--tissues", type=int, default=20, help="simulated ones, with and without what is planted"
    )
    parser.add_argument("--permutations", type=int, default=499)
    a = parser.parse_args()
    mt.settings.progress = False
    pd.set_option("display.width", 220, "display.max_columns", 40)
    calls = {
        "planted": lambda: planted(a.tissues),
        "breast": lambda: breast(a.folder, a.permutations),
        "islets": lambda: islets(a.folder, a.permutations),
    }
    for part in dict.fromkeys(a.parts):
        start = time.perf_counter()
        calls[part]()
        print(f"{part}: {time.perf_counter() - start:.0f} seconds", flush=True)


if __name__ == "__main__":
    main()
