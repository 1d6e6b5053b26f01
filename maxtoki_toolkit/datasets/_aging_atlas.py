"""A simulated ageing atlas whose answers are known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

import anndata as ad
import numpy as np
import pandas as pd
import yaml
from joblib import Parallel, delayed
from scipy import sparse

from maxtoki_toolkit._progress import progress
from maxtoki_toolkit._reference import gene_table, resource
from maxtoki_toolkit._settings import settings

DESIGN_SEED = 20_240_501  # fixes genes and effects, so that every seed simulates the same biology
MIN_GENES = 500
UMI_PER_GENE = 1.5  # of the median library
DOUBLET_RATE = 0.04
DOUBLET_CAPTURE = 0.8  # share of the two cells' molecules that one droplet yields
ACCELERATION = {"control": 0, "accelerated_15y": 15, "accelerated_5y": 5, "accelerated_3y": 3, "resilient": 0}
CONTROL_SHARE = 0.6
N_BATCHES = 4
REFERENCE_AGE = 50  # years at which the planted linear effects are zero
AGE_FOLD = (0.75, 2.0)  # range of the direct log2 effects
TURNOVER_WIDTH = 15  # years, the standard deviation of a turnover gene's bump
TARGETS_PER_DRIVER = 25
# Standard deviations on the log2 scale: 0.15 and 0.1 in natural logarithms, then a driver's activity in a
# cell.
DONOR_SD, BATCH_SD, ACTIVITY_SD = 0.22, 0.14, 0.7

# Clones, RNA genes, antisense and read-through names, receptor and segment families.
_NOT_A_PLAIN_GENE = (
    r"[.\-_a-z]|^ENSG|^LINC|^MIR|^SNOR|^SNHG|^SCARNA|^RNU|^RN7S|^RNA5|^RNVU|^TTTY|^OR\d|^TAS2R|^KRTAP|^DEFB|^PRAMEF"
    r"|^IG[HKL][ACDEGJMV]|^TR[ABDG][CDJV]|^LOC\d|^THCAT|^[A-Z]{1,2}\d{5,}|HG$|OS$|\d[A-Z]?P\d*$|P\d{2,}[XY]?$"
)


@dataclass(frozen=True)
class _Design:
    """What is planted: arrays over types (T), genes (G) and drivers (D), on the log2 scale."""

    panel: pd.DataFrame  # G rows: ensembl_id, symbol, role
    cell_types: dict  # name -> lineage, share, ages, markers
    drivers: list  # D symbols
    log_mean: np.ndarray  # (T, G) at the reference age
    marker_fold: np.ndarray  # (T, G), part of log_mean
    dispersion: np.ndarray  # (G,)
    sex_effect: dict  # sex -> (G,)
    slope: np.ndarray  # (T, G) fold over 60 years, not through a driver
    bump: np.ndarray  # (T, G) fold of the peak over the far ends
    peak: np.ndarray  # (G,) years
    driver_fold: np.ndarray  # (D,) fold of the activity over 60 years
    weight: np.ndarray  # (T, D, G) fold of a gene per fold of activity, 1 for the driver itself


def aging_atlas(
    n_cells: int = 20_000,
    n_donors: int = 40,
    *,
    n_genes: int = 2_000,
    seed: int = 0,
    null: bool = False,
    n_jobs: int | None = None,
) -> ad.AnnData:
    """Simulate single-cell counts from donors of every decade, with everything planted on record.

    Counts are negative binomial around a mean that multiplies cell type, donor, batch, sex and age, scaled
    to each cell's library size. All ageing follows biological age: chronological age plus the acceleration
    of the donor's condition. What is planted is invented; only the gene names are real. Ages, conditions
    and batches are balanced by design, and neither depth nor composition depends on them.

    Parameters
    ----------
    n_cells
        Cells in the atlas, at least one a donor.
    n_donors
        Donors, at least 10. About 60 % are controls; the other conditions share the rest and are matched
        to the controls in age, sex and batch.
    n_genes
        Genes, at least 500. A smaller panel is the beginning of a larger one, with the same effects, and
        the median library is 1.5 counts a gene.
    seed
        Draws the donors, the cells and all noise. **The genes, their baseline and every planted effect are
        the same for each seed**, so a model trained on one seed can be tested on another.
    null
        Plant nothing but cell types, sex and technical variation, for the same donors and cells: `age_genes`,
        `drivers` and `doublets` are empty and every acceleration is 0.
    n_jobs
        Threads, by default `settings.n_jobs`. The result does not depend on it.

    Returns
    -------
    Cells in donor order with integer counts in `X` (CSR, float32); `var_names` Ensembl ids,
    `var["symbol"]`; `obs` with `cell_type`, `donor_id`, `sex`, `age_months`, `condition`, `batch`; and
    `uns["truth"]`:

    `donors`
        One row a donor: `donor_id`, `age_months`, `sex`, `condition`, `batch`, `acceleration_years`,
        `biological_age_months`.
    `conditions`
        `condition`, `acceleration_years`, `n_donors`.
    `age_genes`
        Every gene and cell type that depends on age; all others do not. `log2_fold` is signed: over 60
        years for `direction` rise and fall (linear on the log scale), and peak (at `peak_years`) over far
        ends for turnover, negative where the gene dips (a normal curve, standard deviation 15 years).
        `driver` is the transcription factor the ageing goes through, empty where it is direct.
    `drivers`
        One row a transcription factor, target and cell type; `weight` is the target's log2 fold per log2
        fold of the factor, whose activity varies from cell to cell (log2 standard deviation 0.7) around
        its age trend.
    `markers`
        Marker genes of each cell type with their `log2_fold` over the other types.
    `doublets`
        Cells (`cell`) whose counts hold a second cell of the same type and donor.
    `activity`
        One row a cell: log2 activity of each factor, by its symbol, relative to the reference age; NaN where
        it does not act.
    `params`
        The arguments and the constants of the simulation.

    Raises
    ------
    ValueError
        If there are too few donors, cells or genes, or more genes than the reference names.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(n_cells=500, n_donors=10, n_genes=500)
    >>> adata.shape
    (500, 500)
    >>> sorted(adata.uns["truth"]["drivers"]["tf"].unique())
    ['BACH2', 'CEBPB', 'FOXO3', 'KLF2', 'MEF2A', 'RUNX1']
    """
    if n_donors < 10:
        raise ValueError(f"n_donors must be at least 10, to have each decade and condition; got {n_donors}.")
    if n_cells < n_donors:
        raise ValueError(f"n_cells must be at least n_donors; got {n_cells} cells for {n_donors} donors.")
    design = _design(n_genes)
    if null:
        design = replace(design, **{k: 0 * getattr(design, k) for k in ("slope", "bump", "weight")})

    first, *streams = np.random.SeedSequence(seed).spawn(1 + n_donors)
    rng = np.random.default_rng(first)
    donors = _donors(n_donors, rng, null=null)
    batch_effect = {f"batch{b}": rng.normal(0, BATCH_SD, n_genes) for b in range(1, N_BATCHES + 1)}
    weights = rng.lognormal(0, 0.2, n_donors)
    n_by_donor = 1 + rng.multinomial(n_cells - n_donors, weights / weights.sum())

    jobs = (
        delayed(_donor)(design, donor, batch_effect, n, np.random.default_rng(stream), null=null)
        for donor, n, stream in zip(donors.itertuples(), n_by_donor, streams, strict=True)
    )
    pool = Parallel(n_jobs=n_jobs or settings.n_jobs, prefer="threads", return_as="generator")
    results = list(progress(pool(jobs), total=n_donors, desc="aging atlas", unit="donor"))
    counts, cell_type, doublet, activity = (list(part) for part in zip(*results, strict=True))

    obs = _obs(donors, n_by_donor, np.array(list(design.cell_types))[np.concatenate(cell_type)])
    truth = _truth(design) | {
        "params": {
            "n_cells": n_cells,
            "n_donors": n_donors,
            "n_genes": n_genes,
            "seed": seed,
            "null": null,
            "design_seed": DESIGN_SEED,
            "doublet_rate": 0.0 if null else DOUBLET_RATE,
            "activity_sd_log2": ACTIVITY_SD,
            "donor_sd_log2": DONOR_SD,
            "batch_sd_log2": BATCH_SD,
            "turnover_width_years": TURNOVER_WIDTH,
        },
        "donors": donors,
        "conditions": donors.groupby("condition", as_index=False).agg(
            acceleration_years=("acceleration_years", "first"), n_donors=("donor_id", "size")
        ),
        "doublets": pd.DataFrame({"cell": obs.index[np.concatenate(doublet)].to_numpy(dtype=object)}),
        "activity": pd.DataFrame(np.concatenate(activity), index=obs.index, columns=design.drivers),
    }
    var = design.panel.set_index("ensembl_id")[["symbol"]].rename_axis(None)
    return ad.AnnData(sparse.vstack(counts, format="csr"), obs=obs, var=var, uns={"truth": truth})


def _panel(n_genes: int, spec: dict) -> pd.DataFrame:
    """Real genes with their role: the named ones, the drivers' targets, then others in a fixed order."""
    roles = dict.fromkeys((g for t in spec["cell_types"].values() for g in t["markers"]), "marker")
    roles |= dict.fromkeys((g for genes in spec["sex_genes"].values() for g in genes), "sex")
    roles |= dict.fromkeys(spec["abundant"], "abundant") | dict.fromkeys(spec["drivers"], "driver")

    table = gene_table().drop_duplicates("symbol", keep=False).set_index("symbol")
    stem = table.index.str.replace(r"P\d*$", "", regex=True)
    pseudogene = (stem != table.index) & stem.isin(table.index)
    plain = ~table.index.str.contains(_NOT_A_PLAIN_GENE) & ~pseudogene & ~table.index.isin(list(roles))
    others = np.random.default_rng(DESIGN_SEED).permutation(table.index[plain].to_numpy(dtype=object))
    if not MIN_GENES <= n_genes <= len(roles) + len(others):
        raise ValueError(
            f"n_genes must be from {MIN_GENES} (room for markers, drivers and targets) to "
            f"{len(roles) + len(others)} (protein-coding-like names in the reference); got {n_genes}."
        )
    n_targets = TARGETS_PER_DRIVER * len(spec["drivers"])
    roles |= dict.fromkeys(others[:n_targets], "target") | dict.fromkeys(others[n_targets:], "other")
    panel = pd.DataFrame({"symbol": list(roles), "role": list(roles.values())}).head(n_genes)
    panel.insert(0, "ensembl_id", table["ensembl_id"].loc[panel["symbol"]].to_numpy())
    return panel


@cache
def _design(n_genes: int) -> _Design:
    """Everything that is the same for each seed."""
    spec = yaml.safe_load(resource("atlas_markers.yaml").read_text(encoding="utf-8"))
    panel = _panel(n_genes, spec)
    # One stream a quantity, drawn gene by gene, so that a smaller panel is the beginning of a larger one.
    rngs = map(np.random.default_rng, np.random.SeedSequence(DESIGN_SEED).spawn(20))
    role = {name: (panel["role"] == name).to_numpy() for name in panel["role"].unique()}

    level = {"marker": -4.5, "sex": -5, "abundant": 5, "driver": -1, "target": 0.5, "other": -1.2}
    spread = {"marker": 0.5, "sex": 0.3, "abundant": 0.5, "driver": 0.3, "target": 0.8, "other": 1.8}
    noise = next(rngs).normal(size=n_genes)
    baseline = (panel["role"].map(level) + panel["role"].map(spread) * noise).to_numpy()
    is_marker = np.array([panel["symbol"].isin(t["markers"]) for t in spec["cell_types"].values()])
    marker_fold = is_marker * next(rngs).normal(5, 0.35, is_marker.T.shape).T
    log_mean = baseline + marker_fold + _programmes(spec, role["other"], rngs)
    acts = np.array([[t in d["cell_types"] for d in spec["drivers"].values()] for t in spec["cell_types"]])
    log_mean[:, role["driver"]] += 2.5 * acts  # a driver is well expressed where it acts
    dispersion = np.exp(next(rngs).normal(np.log(0.7), 0.5, n_genes))
    dispersion[role["driver"] | role["target"]] = 0.3

    # Ageing is planted where counts can show it, and not in the few genes that would move all proportions.
    slope, bump, peak = _ageing(spec, role["other"] & (baseline > -2.5) & (baseline < 3), rngs)
    return _Design(
        panel=panel,
        cell_types=spec["cell_types"],
        drivers=list(spec["drivers"]),
        log_mean=log_mean,
        marker_fold=marker_fold,
        dispersion=dispersion,
        sex_effect={s: 6.0 * panel["symbol"].isin(g).to_numpy() for s, g in spec["sex_genes"].items()},
        slope=slope,
        bump=bump,
        peak=peak,
        driver_fold=np.array([d["log2_fold"] for d in spec["drivers"].values()]),
        weight=_regulation(acts, role, rngs),
    )


def _programmes(spec: dict, eligible: np.ndarray, rngs: Iterator[np.random.Generator]) -> np.ndarray:
    """Moderate folds (types, genes) of about 70 genes a type, half of them shared by its lineage."""
    shape = len(eligible), len(spec["cell_types"])
    lineage = pd.factorize(np.array([t["lineage"] for t in spec["cell_types"].values()], dtype=object))[0]
    member = (next(rngs).random(shape)[:, lineage] < 0.02) | (next(rngs).random(shape) < 0.02)
    return (eligible[:, None] & member).T * next(rngs).uniform(1, 2.6, len(eligible))


def _ageing(
    spec: dict, eligible: np.ndarray, rngs: Iterator[np.random.Generator]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Direct effects: slope and bump (types, genes), peak (genes); a gene has one effect in all its types."""
    n_genes, shape = len(eligible), (len(eligible), len(spec["cell_types"]))
    in_most = (next(rngs).random(n_genes) < 0.055)[:, None] & (next(rngs).random(shape) < 0.7)
    in_one = next(rngs).random(shape) < 0.055
    ages = (np.outer(eligible, [t["ages"] for t in spec["cell_types"].values()]) & (in_most | in_one)).T
    fold = ages * next(rngs).uniform(*AGE_FOLD, n_genes) * next(rngs).choice([-1, 1], n_genes)
    turnover = next(rngs).random(n_genes) < 0.2
    return fold * ~turnover, fold * turnover, next(rngs).uniform(45, 55, n_genes)


def _regulation(acts: np.ndarray, role: dict, rngs: Iterator[np.random.Generator]) -> np.ndarray:
    """Weights (types, drivers, genes): 1 for the driver itself, +-0.6 to 1.2 for targets, 70 % activated."""
    n_types, n_drivers = acts.shape
    n_genes = len(role["driver"])
    response = next(rngs).uniform(0.6, 1.2, n_genes) * next(rngs).choice([-1, 1], n_genes, p=[0.3, 0.7])
    weight = np.zeros((n_types, n_drivers, n_genes))
    targets = np.flatnonzero(role["target"]).reshape(n_drivers, TARGETS_PER_DRIVER)
    for d, (tf, genes) in enumerate(zip(np.flatnonzero(role["driver"]), targets, strict=True)):
        weight[acts[:, d], d, tf] = 1
        weight[np.ix_(acts[:, d], [d], genes)] = response[genes]
    return weight


def _donors(n_donors: int, rng: np.random.Generator, *, null: bool) -> pd.DataFrame:
    """Donors stratified by condition, decade, sex and batch, in random order."""
    n_control = round(CONTROL_SHARE * n_donors)
    others = np.array_split(np.arange(n_donors - n_control), len(ACCELERATION) - 1)
    rows = []
    for c, (condition, size) in enumerate(zip(ACCELERATION, [n_control, *map(len, others)], strict=True)):
        # Ranks by age: evenly spaced over seven decades, sexes F M M F, batches rotating from four to four.
        for rank in range(size):
            decade = int((rank + 0.5) * 7 / size)
            sex = ("female", "male")[(rank % 4 in (1, 2)) ^ (c % 2)]
            rows.append(
                (condition, 240 + 120 * decade, sex, f"batch{(rank + rank // 4 + c) % N_BATCHES + 1}")
            )
    donors = pd.DataFrame(rows, columns=["condition", "age_months", "sex", "batch"])
    donors["age_months"] += rng.integers(0, 120, n_donors)
    donors["acceleration_years"] = 0 if null else donors["condition"].map(ACCELERATION)
    donors["biological_age_months"] = donors["age_months"] + 12 * donors["acceleration_years"]
    donors = donors.iloc[rng.permutation(n_donors)].reset_index(drop=True)
    width = max(2, len(str(n_donors)))
    donors.insert(0, "donor_id", [f"D{i:0{width}d}" for i in range(1, n_donors + 1)])
    return donors[
        ["donor_id", "age_months", "sex", "condition", "batch", "acceleration_years", "biological_age_months"]
    ]


def _obs(donors: pd.DataFrame, n_by_donor: np.ndarray, cell_type: np.ndarray) -> pd.DataFrame:
    """Cell table in donor order, the donors' columns repeated."""
    columns = ["donor_id", "sex", "age_months", "condition", "batch"]
    obs = donors.loc[np.repeat(donors.index, n_by_donor), columns]
    obs.insert(0, "cell_type", cell_type)
    number = np.concatenate([np.arange(n) for n in n_by_donor])
    obs.index = [f"{donor}_{i:05d}" for donor, i in zip(obs["donor_id"], number, strict=True)]
    return obs.astype({c: "category" for c in obs if c != "age_months"})


def _donor(
    design: _Design, donor, batch_effect: dict, n: int, rng: np.random.Generator, *, null: bool
) -> tuple[sparse.csr_matrix, np.ndarray, np.ndarray, np.ndarray]:
    """Counts, cell types, doublet flags and activities of one donor's cells."""
    n_genes = len(design.panel)
    age = donor.biological_age_months / 12
    own = rng.normal(0, DONOR_SD, n_genes) + batch_effect[donor.batch] + design.sex_effect[donor.sex]
    shares = rng.dirichlet(60 * np.array([t["share"] for t in design.cell_types.values()]))
    cell_type = rng.choice(len(shares), n, p=shares)
    library = UMI_PER_GENE * n_genes * np.exp(rng.normal(0, 0.2) + rng.normal(0, 0.35, n))
    doublet = (rng.random(n) < DOUBLET_RATE) & (not null)

    order = np.argsort(cell_type, kind="stable")
    blocks, activity = [], np.full((n, len(design.drivers)), np.nan)
    for t in np.unique(cell_type):
        cells = np.flatnonzero(cell_type == t)
        pairs = np.flatnonzero(doublet[cells])
        log_mean = design.log_mean[t] + own + _age_effect(design, t, age)
        depth = np.concatenate([library[cells], rng.permutation(library[cells])[: len(pairs)]])
        counts, drawn = _counts(design, t, age, log_mean, depth, rng)
        acts = design.weight[t].any(axis=1)
        activity[np.ix_(cells, acts)] = drawn[: len(cells), acts]
        counts[pairs] = rng.binomial(counts[pairs] + counts[len(cells) :], DOUBLET_CAPTURE)
        blocks.append(sparse.csr_matrix(counts[: len(cells)], dtype=np.float32))
    return sparse.vstack(blocks, format="csr")[np.argsort(order)], cell_type, doublet, activity


def _age_effect(design: _Design, t: int, age: float) -> np.ndarray:
    """Direct log2 effect of biological age (years) on each gene of cell type `t`."""
    distance = (age - design.peak) / TURNOVER_WIDTH
    return design.slope[t] * (age - REFERENCE_AGE) / 60 + design.bump[t] * np.exp(-(distance**2) / 2)


def _counts(
    design: _Design, t: int, age: float, log_mean: np.ndarray, depth: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Negative binomial counts (cells, genes) of cell type `t`, and the activity of each driver in each cell."""
    trend = design.driver_fold * (age - REFERENCE_AGE) / 60
    activity = trend + rng.normal(0, ACTIVITY_SD, (len(depth), len(design.drivers)))
    # Not `@`, whose last digit may depend on the threads of the BLAS library.
    mean = np.exp2((log_mean + np.einsum("cd,dg->cg", activity, design.weight[t])).astype(np.float32))
    # Depth is technical: a cell's expected total does not depend on its age or type.
    mean *= (depth / mean.sum(axis=1)).astype(np.float32)[:, None]
    shape = np.broadcast_to((1 / design.dispersion).astype(np.float32), mean.shape)
    mean *= rng.standard_gamma(shape, dtype=np.float32) * design.dispersion.astype(np.float32)
    return rng.poisson(mean), activity


def _truth(design: _Design) -> dict[str, pd.DataFrame]:
    """Tables of what is planted, read from the arrays that are simulated from."""
    id_of = design.panel.set_index("symbol")["ensembl_id"]
    age = [_table(design, fold).assign(driver="") for fold in (design.slope, design.bump)]
    age[0]["direction"] = np.where(age[0]["log2_fold"] > 0, "rise", "fall")
    age[1]["direction"] = "turnover"
    drivers = []
    for d, tf in enumerate(design.drivers):
        regulated = _table(design, design.weight[:, d])
        is_tf = regulated["symbol"] == tf
        drivers.append(regulated[~is_tf].assign(tf=tf, tf_ensembl_id=id_of[tf]))
        ageing = regulated.assign(
            log2_fold=regulated["log2_fold"] * design.driver_fold[d], driver=np.where(is_tf, "", tf)
        )
        age.append(ageing.assign(direction=np.where(ageing["log2_fold"] > 0, "rise", "fall")))
    age = pd.concat(age, ignore_index=True)
    peak = age["ensembl_id"].map(pd.Series(design.peak, index=design.panel["ensembl_id"]))
    age["peak_years"] = peak.where(age["direction"] == "turnover")
    drivers = pd.concat(drivers, ignore_index=True).rename(
        columns={"symbol": "target", "ensembl_id": "target_ensembl_id", "log2_fold": "weight"}
    )
    return {
        "age_genes": age[
            ["ensembl_id", "symbol", "cell_type", "direction", "log2_fold", "peak_years", "driver"]
        ],
        "drivers": drivers[["tf", "tf_ensembl_id", "target", "target_ensembl_id", "cell_type", "weight"]],
        "markers": _table(design, design.marker_fold),
    }


def _table(design: _Design, fold: np.ndarray) -> pd.DataFrame:
    """Non-zero entries of a (types, genes) array, one a row."""
    t, g = np.nonzero(fold)
    table = design.panel.loc[g, ["ensembl_id", "symbol"]].reset_index(drop=True)
    return table.assign(cell_type=np.array(list(design.cell_types), dtype=object)[t], log2_fold=fold[t, g])
