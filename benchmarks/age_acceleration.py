"""Is a condition's age acceleration found where it is, and not where it is not?

    python benchmarks/age_acceleration.py planted            # 20 atlases with known conditions
    python benchmarks/age_acceleration.py power              # how many donors it takes
    python benchmarks/age_acceleration.py null               # 200 conditions that mean nothing
    python benchmarks/age_acceleration.py confounded         # older patients; shallower patients
    python benchmarks/age_acceleration.py onek1k onek1k.h5ad covid.h5ad     # real blood, which does not ship

Each part is written to `results/age_acceleration.json` under its name; the others stay.
"""

from __future__ import annotations

import sys
from pathlib import Path

# This folder must not come first on the path: its tokenize.py would pass for Python's own.
sys.path[0] = str(Path(__file__).parents[1])

import argparse
import json
import tempfile
import time
import warnings
from importlib import import_module
from unittest.mock import patch

import anndata
import numpy as np
import pandas as pd
import yaml
from anndata import AnnData
from scipy import sparse

import maxtoki_toolkit as mt
from benchmarks import report
from benchmarks.temporal import FINE_TUNING, encode
from maxtoki_toolkit.stats.mixed_model import Readings, estimate_effect, permutation_p

module = import_module("maxtoki_toolkit.tl.age_acceleration")
HELD_OUT = yaml.safe_load((Path(__file__).parent / "demo_model.yaml").read_text())["stage2"]["hold_out"]
SETTINGS = {
    "condition_key": "condition",
    "control": "control",
    "time_key": "age_months",
    "donor_key": "donor_id",
    "groupby": "cell_type",
    "match_by": "sex",
    "sampling": mt.tl.AgeSampling(n_cells=5, n_contexts=2),
}
_MATCHING = ("condition_key", "control", "time_key", "donor_key", "match_by", "tolerance")
TRUTH = {"accelerated_15y": 15, "accelerated_5y": 5, "accelerated_3y": 3, "resilient": 0}
N_ATLASES = 20
N_NULL = 200
SEED = 100  # the demo model was trained on seeds 0 and 1


def atlas(n_donors: int, seed: int, *, cells_per_donor: int = 70) -> AnnData:
    """Cells of the types that age and that the demo model was trained on."""
    adata = mt.datasets.aging_atlas(n_donors * cells_per_donor, n_donors, seed=seed)
    types = set(adata.uns["truth"]["age_genes"]["cell_type"]) - set(HELD_OUT["groups"]["cell_type"])
    adata = adata[adata.obs["cell_type"].isin(types)].copy()
    adata.uns = {}
    return adata


def effects_of(adata: AnnData, model, *, n_permutations=None, **settings) -> tuple[pd.DataFrame, list[str]]:
    """Effects over all cell types, and the warnings."""
    settings = SETTINGS | settings
    matching = {name: settings.pop(name) for name in _MATCHING if name in settings}
    with (
        warnings.catch_warnings(),
        patch.object(module, "N_PERMUTATIONS", n_permutations or module.N_PERMUTATIONS),
    ):
        warnings.simplefilter("ignore", UserWarning)
        mt.pp.match_ages(adata, **matching)
        mt.tl.age_acceleration(adata, model, **settings)
    effects = mt.get.table(adata, "age_acceleration")
    return effects[effects["group"] == "all"], effects.attrs["warnings"]


def records(table: pd.DataFrame) -> list[dict]:
    """Rows as JSON, rounded."""
    return json.loads(table.round(4).to_json(orient="records"))


def share(values) -> dict:
    """A share with its 95% interval (Wilson)."""
    from statsmodels.stats.proportion import proportion_confint

    values = np.asarray(values, dtype=bool)
    low, high = proportion_confint(values.sum(), len(values), method="wilson")
    return {"share": values.mean(), "share_low": low, "share_high": high, "n": len(values)}


def planted() -> list[dict]:
    """Six donors a condition: is the truth in the interval, and is a condition called?"""
    model = mt.load_model("demo", device="cpu")
    tables = []
    for i in range(N_ATLASES):
        effects, _ = effects_of(encode(atlas(60, SEED + i), model), model, rng=i)
        tables.append(effects.assign(atlas=i))
        print(f"atlas {i + 1} of {N_ATLASES}", flush=True)
    table = pd.concat(tables)
    table["truth"] = table["condition"].map(TRUTH)
    rows = []
    for (predictor, condition), part in table.groupby(["predictor", "condition"], sort=False):
        known = part.dropna(subset="effect_low")
        covered = (known["effect_low"] <= known["truth"]) & (known["truth"] <= known["effect_high"])
        rows.append(
            {
                "predictor": predictor,
                "condition": condition,
                "truth": TRUTH[condition],
                "n_atlases": len(part),
                "n_with_interval": len(known),
                "mean_effect": known["effect"].mean(),
                "sd_effect": known["effect"].std(),
                "median_half_width": ((known["effect_high"] - known["effect_low"]) / 2).median(),
                "covered": covered.mean(),
                "called_p": (part["p_value"] < 0.05).mean(),
                "called_q": (part["q_value"] < 0.05).mean(),
                "mean_raw": part["raw"].mean(),
                "mean_slope": part["age_slope"].mean(),
            }
        )
    wide = table.pivot_table(index=["predictor", "atlas"], columns="condition", values="effect")
    for row in rows:
        mine = wide.loc[row["predictor"]]
        # Is the strongest condition first, and the resilient one below both strong ones?
        right = (mine["accelerated_15y"] == mine.max(axis=1)) & (mine["resilient"] < mine["accelerated_5y"])
        row["ranking_right"] = right.mean()
    return records(pd.DataFrame(rows))


def power() -> list[dict]:
    """Donors drawn from a large atlas, as many patients as controls; least squares on the donors' means."""
    model = mt.load_model("demo", device="cpu")
    adata = encode(atlas(480, SEED + N_ATLASES), model)
    effects_of(adata, model, tolerance=10_000, n_permutations=1)
    donors = mt.get.table(adata, "age_acceleration", "donors")
    rows = []
    for predictor in dict.fromkeys(donors["predictor"]):
        for condition in TRUTH:
            mine = donors[
                (donors["predictor"] == predictor)
                & (donors["condition"] == condition)
                & (donors["group"] == "all")
            ].reset_index(drop=True)
            sides = [np.flatnonzero(mine["case"] == side) for side in (True, False)]
            for n in (3, 4, 6, 8, 12, 16, 24, 32):
                rng = np.random.default_rng([n, 7])
                called, covered = [], []
                for i in range(300):
                    drawn = np.concatenate([rng.choice(side, n, replace=False) for side in sides])
                    part = mine.iloc[drawn].reset_index(drop=True)
                    cells = part[["donor", "time", "case"]].assign(stratum="all")
                    read = Readings(part["read"].to_numpy(), np.arange(2 * n), np.zeros(2 * n, dtype=int))
                    effect, _ = estimate_effect(read, cells, n_permutations=1, seed=i)
                    X = np.column_stack([np.ones(2 * n), part["case"], part["time"]]).astype(float)
                    called.append(permutation_p(part["read"].to_numpy(), X, 500, i) < 0.05)
                    if np.isfinite(effect["effect_low"]):
                        covered.append(effect["effect_low"] <= TRUTH[condition] <= effect["effect_high"])
                rows.append(
                    {
                        "predictor": predictor,
                        "condition": condition,
                        "donors_a_side": n,
                        "called": np.mean(called),
                        "with_interval": len(covered) / len(called),
                        "covered": np.mean(covered) if covered else np.nan,
                    }
                )
    return records(pd.DataFrame(rows))


def null() -> list[dict]:
    """Random case and control splits of controls, and the same readings with cells as units (pseudoreplication)."""
    model = mt.load_model("demo", device="cpu")
    # Few donors of many cells, as studies are.
    adata = atlas(40, SEED + N_ATLASES + 1, cells_per_donor=300)
    adata = encode(adata[adata.obs["condition"] == "control"].copy(), model)
    adata = adata[adata.obs["cell_type"] == adata.obs["cell_type"].mode()[0]].copy()
    names = adata.obs["donor_id"].astype(str).unique()
    # People are a few years older or younger than their chronological age; simulated donors are not, so ages are changed.
    years = np.random.default_rng(19).normal(0, 6, len(names))
    shift = dict(zip(names, (12 * years).round().astype(int), strict=True))
    adata.obs["age_months"] += adata.obs["donor_id"].astype(str).map(shift).astype(int)
    settings = {"match_by": None, "tolerance": 10_000, "sampling": mt.tl.AgeSampling(n_contexts=1)}
    settings |= {"baselines": False, "n_permutations": 999}
    pooled = []

    def both(readings, cells, **settings):
        as_donors = cells.assign(donor=np.arange(len(cells)))
        pooled.append(estimate_effect(readings, as_donors, **settings)[0]["p_value"])
        return estimate_effect(readings, cells, **settings)

    tables = []
    with patch.object(module, "estimate_effect", both):
        for i in range(N_NULL):
            cases = np.random.default_rng([i, 11]).choice(names, len(names) // 2, replace=False)
            is_case = adata.obs["donor_id"].astype(str).isin(cases)
            adata.obs["condition"] = np.where(is_case, "case", "control")
            before = len(pooled)
            effects, _ = effects_of(adata, model, rng=i, **settings)
            tables.append(effects.assign(pooled_p=pooled[before]))
            if i % 20 == 19:
                print(f"condition {i + 1} of {N_NULL}", flush=True)
    table = pd.concat(tables)
    zero = (table["effect_low"] <= 0) & (0 <= table["effect_high"])
    return records(
        pd.DataFrame(
            [
                {"unit": "donors", **share(table["p_value"] < 0.05)},
                {"unit": "cells as units (pseudoreplication)", **share(table["pooled_p"] < 0.05)},
                {"unit": "donors, 0 outside the interval", **share(~zero[table["effect_low"].notna()])},
            ]
        )
    )


def confounded() -> list[dict]:
    """Patients older than controls; patients with half the counts: what is done about it, and what it gives."""
    model = mt.load_model("demo", device="cpu")
    rows = []
    for i in range(5):
        whole = atlas(120, SEED + N_ATLASES + 10 + i)
        rng = np.random.default_rng([i, 13])
        condition, age = whole.obs["condition"], whole.obs["age_months"]
        # Patients of 50 years and more; of controls this old every third is left.
        donors = whole.obs.groupby("donor_id", observed=True)["age_months"].first()
        lucky = set(donors.index[rng.random(len(donors)) < 1 / 3])
        old = age >= 600
        kept = np.where(condition == "control", ~old | whole.obs["donor_id"].isin(lucky), old)
        older = encode(whole[kept].copy(), model)
        effects, notes = effects_of(older, model, rng=i, baselines=False)
        unmatched, _ = effects_of(older, model, rng=i, baselines=False, tolerance=10_000)
        naive = _difference(older)
        for name in TRUTH:
            rows.append(_row(i, "older patients", name, effects, unmatched, naive, notes))
        X = sparse.csr_matrix(whole.X)
        half = condition.to_numpy() != "control"
        thin = X[half]
        thin.data = rng.binomial(thin.data.astype(int), 0.5).astype(np.float32)
        thin.eliminate_zeros()
        shallow = whole.copy()
        shallow.X = sparse.vstack([thin, X[~half]], format="csr")[
            np.argsort(np.argsort(~half, kind="stable"))
        ]
        encode(shallow, model)
        effects, notes = effects_of(shallow, model, rng=i, baselines=False)
        with patch.object(module, "_DEPTHS", 1):
            unmatched, _ = effects_of(shallow, model, rng=i, baselines=False)
            naive = _difference(shallow)
        for name in TRUTH:
            rows.append(_row(i, "half the counts", name, effects, unmatched, naive, notes))
        print(f"designs {i + 1} of 5", flush=True)
    return records(pd.DataFrame(rows))


def _difference(adata: AnnData) -> dict[str, float]:
    """Mean age read of the patients less that of the controls, over the slope; as if ages did not matter."""
    donors = mt.get.table(adata, "age_acceleration", "donors")
    effects = mt.get.table(adata, "age_acceleration")
    slope = effects[effects["group"] == "all"].set_index("condition")["age_slope"]
    mine = donors[donors["group"] == "all"]
    return {
        name: (part.loc[part["case"], "read"].mean() - part.loc[~part["case"], "read"].mean()) / slope[name]
        for name, part in mine.groupby("condition")
    }


def _row(i, design, name, effects, unmatched, naive, notes) -> dict:
    ours = effects[effects["condition"] == name]
    other = unmatched[unmatched["condition"] == name]
    if not len(ours):
        return {"atlas": i, "design": design, "condition": name, "truth": TRUTH[name], "refused": True}
    ours, other = ours.iloc[0], other.iloc[0]
    return {
        "atlas": i,
        "design": design,
        "condition": name,
        "truth": TRUTH[name],
        "refused": False,
        "difference_of_means": naive[name],
        "not_matched": other["effect"],
        "effect": ours["effect"],
        "effect_low": ours["effect_low"],
        "effect_high": ours["effect_high"],
        "covered": bool(ours["effect_low"] <= TRUTH[name] <= ours["effect_high"]),
        "q_value": ours["q_value"],
        "warned": sum(note.startswith(name) or "numbers of genes" in note for note in notes),
    }


def onek1k(path: str, covid: str) -> list[dict]:
    """Blood: a model of half of the donors, random halves of the others, and COVID-19 patients."""
    adata = anndata.read_h5ad(path)
    demo = mt.load_model("demo", device="cpu")
    adata = encode(adata, demo)
    names = np.random.default_rng(0).permutation(adata.obs["donor_id"].astype(str).unique())
    adata.obs["train"] = adata.obs["donor_id"].astype(str).isin(names[:20])
    with tempfile.TemporaryDirectory() as folder:
        model = mt.train.temporal(
            adata,
            demo,
            folder,
            use="train",
            time_key="age",
            time_unit="years",
            groupby="cell_type",
            recipe=mt.train.TemporalRecipe.of(
                context_size=(1, 3),
                max_steps=200,
                batch_size=16,
                device="cpu",
                **FINE_TUNING,
            ),
        )
    rest = adata[~adata.obs["train"].to_numpy()].copy()
    settings = {"time_key": "age", "donor_key": "donor_id", "match_by": None, "tolerance": 10}
    tables = []
    for i in range(100):
        cases = np.random.default_rng([i, 17]).choice(names[20:], 10, replace=False)
        rest.obs["condition"] = np.where(rest.obs["donor_id"].astype(str).isin(cases), "case", "control")
        effects, notes = effects_of(rest, model, rng=i, baselines=False, n_permutations=999, **settings)
        tables.append(effects)
    table = pd.concat(tables)
    rows = [
        {"cells": "OneK1K, random halves", "what": "p below 0.05", **share(table["p_value"] < 0.05)},
        {
            "cells": "OneK1K, random halves",
            "what": "older or younger concluded",
            **share(table["conclusion"].str.contains("er than")),
        },
    ]
    patients = anndata.read_h5ad(covid)
    try:
        rows += covid_rows(patients, model)
    except (ValueError, KeyError) as error:
        rows.append({"cells": "COVID-19", "what": f"refused: {error}"})
    return records(pd.DataFrame(rows))


def covid_rows(patients: AnnData, model) -> list[dict]:
    """Severity against mild cases, as far as ages overlap."""
    encode(patients, model)
    found = patients.obs.drop_duplicates("donor_id")[["donor_id", "disease_severity", "age_yr"]]
    print(found.to_string())
    patients.obs["age"] = patients.obs["age_yr"].astype(float).round().astype(int)
    settings = {
        "time_key": "age",
        "donor_key": "donor_id",
        "match_by": None,
        "tolerance": 10,
        "groupby": None,
    }
    control = "mild"  # there are no healthy donors
    effects, notes = effects_of(
        patients, model, condition_key="disease_severity", **settings | {"control": control}
    )
    rows = [{"cells": "COVID-19", "what": note} for note in notes]
    columns = ["condition", "predictor", "effect", "effect_low", "effect_high", "p_value", "q_value"]
    return rows + [
        {"cells": "COVID-19", "what": row["conclusion"], **row[columns].to_dict()}
        for _, row in effects.iterrows()
    ]


PARTS = {f.__name__: f for f in (planted, power, null, confounded, onek1k)}


def main() -> None:
    """Run one part and write it beside the others."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("paths", nargs="*")
    arguments = parser.parse_args()
    mt.settings.progress = False
    start = time.time()
    rows = PARTS[arguments.part](*arguments.paths)
    facts = {"minutes": round((time.time() - start) / 60, 1)}
    facts["model_sha256"] = mt.load_model("demo", device="cpu").sha256
    report.add("age_acceleration", rows, case=arguments.part, device="cpu", **facts)


if __name__ == "__main__":
    main()
