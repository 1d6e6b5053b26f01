"""Does a screen find the genes that drive age, and nothing where nothing is?

    python benchmarks/perturbation.py                  # all parts, some minutes
    python benchmarks/perturbation.py planted          # one of them: planted, null, models, speed
    python benchmarks/perturbation.py --n-prompts 10 --n-null 4 --n-models 2      # a small run

Each part is written to `results/perturbation.json` under its name; the others stay.

planted
    A screen of all genes that the demo model reads, in cells of simulated donors that it was not trained on. The ruler is the
    simulation: genes whose expression goes with age in that cell type, against all others.
null
    What is a null here? The demo model has learned which genes go with age, and says so of any cell, also of an atlas in which
    nothing ages: its effects are of the model, not of the atlas. So a "null atlas" is no null for the matched test. What is: the planted
    atlas's genes that do not go with age in any cell type. They are drawn anew for each of many screens of as many genes, from the
    effects on other donors by lot, and tested against each other.
models
    Models that learned nothing (random weights), each on an atlas in which nothing ages: no gene drives age, whatever is called is false.
speed
    Seconds a prompt, beside one forward pass each.
"""

from __future__ import annotations

import sys
from pathlib import Path

# This folder must not come first on the path: its tokenize.py would pass for Python's own.
sys.path[0] = str(Path(__file__).parents[1])

import argparse
import dataclasses
import time

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

import maxtoki_toolkit as mt
from benchmarks import report
from benchmarks.temporal import encode

PARTS = ("planted", "null", "models", "speed")
TYPES = ("fibroblast", "monocyte")
SEED = 300  # the demo model was trained on seeds 0 and 1
OFTEN = 10  # donors


def atlas(
    seed: int, *, n_cells: int = 3000, n_donors: int = 60, null: bool = False
) -> tuple[AnnData, pd.DataFrame]:
    """Cells of the types of the benchmark, and the genes that go with age."""
    adata = mt.datasets.aging_atlas(n_cells, n_donors, seed=seed, null=null)
    truth = adata.uns["truth"]["age_genes"]
    adata = adata[adata.obs["cell_type"].isin(TYPES)].copy()
    adata.uns = {}
    return adata, truth


def screen(adata: AnnData, model, n_prompts: int, seed: int) -> pd.DataFrame:
    """Effects over donors of all genes, `n_prompts` a cell type."""
    mt.pp.sample_prompts(
        adata, time_key="age_months", groupby="cell_type", n_prompts=n_prompts * len(TYPES), context_size=2,
        balance=1.0, donor_key="donor_id", rng=seed,
    )  # fmt: skip
    mt.tl.perturb(adata, model, genes="all", mode="inhibit")
    mt.tl.perturbation_stats(adata)
    return mt.get.perturbation_stats(adata)


def score(effects: pd.DataFrame, truth: pd.DataFrame, model: str) -> list[dict]:
    """AUROC and sign of the genes that go with age, by cell type and how often a gene is read."""
    from sklearn.metrics import roc_auc_score

    rows = []
    known = truth[~truth.duplicated(["ensembl_id", "cell_type"], keep=False)]
    for group in TYPES:
        fold = known[known["cell_type"] == group].set_index("ensembl_id")
        part = effects[(effects["group"] == group) & effects["p_value"].notna()]
        direct = part["gene"].map(fold["log2_fold"]).fillna(0).to_numpy()
        turns = (part["gene"].map(fold["direction"]) == "turnover").to_numpy()
        for name, some in [
            ("all read in 3 donors", part["n_units"] > 0),
            (f"read in {OFTEN} donors", part["n_units"] >= OFTEN),
        ]:
            some = some.to_numpy() & ~turns
            is_planted = direct[some] != 0
            mine = part[some]
            called = (mine["q_value"] < 0.05).to_numpy()
            right = np.sign(mine["effect"]) == -np.sign(direct[some])
            both = called & is_planted
            size, effect = mine["z"].abs(), mine["effect"].abs()
            enough = is_planted.any() and not is_planted.all()
            rows.append(
                {
                    "model": model,
                    "group": group,
                    "genes": name,
                    "n_genes": int(some.sum()),
                    "n_planted": int(is_planted.sum()),
                    "auroc_matched": roc_auc_score(is_planted, size) if enough else None,
                    "auroc_effect": roc_auc_score(is_planted, effect) if enough else None,
                    "n_called": int(called.sum()),
                    "planted_called": int(both.sum()),
                    "sign_right_called": float(right[both].mean()) if both.any() else None,
                    "sign_right_planted": float(right[is_planted].mean()) if enough else None,
                    "null_p_below": float((mine["p_value"][~is_planted] < 0.05).mean()),
                }
            )
    return rows


def planted(a) -> tuple[list[dict], pd.DataFrame, AnnData]:
    """Genes that go with age against all others."""
    model = mt.load_model(a.model, device="cpu")
    adata, truth = atlas(SEED)
    effects = screen(encode(adata, model), model, a.n_prompts, SEED)
    return score(effects, truth, a.model), adata, truth


def null(a, adata: AnnData, truth: pd.DataFrame) -> list[dict]:
    """Screens of genes that drive nothing: half of the donors by lot, their labels exchanged, other genes in each."""
    ageing = set(truth["ensembl_id"])
    whole, genes = adata.uns["perturbation"]["effects"], adata.uns["perturbation"]["genes"]
    quiet = whole[~whole["gene"].isin(ageing)]
    donors = quiet["donor"].cat.categories.to_numpy()
    shares, called = [], []
    for i in range(a.n_null):
        rng = np.random.default_rng(i)
        kept = rng.permutation(donors)[: -(-2 * len(donors) // 3)]
        names = rng.permutation(quiet["gene"].cat.categories.to_numpy())[: int(0.8 * quiet["gene"].nunique())]
        part = quiet[quiet["donor"].isin(kept) & quiet["gene"].isin(names)].reset_index(drop=True)
        adata.uns["perturbation"]["effects"] = part
        adata.uns["perturbation"]["genes"] = genes[genes["gene"].isin(part["gene"].astype(str))]
        mt.tl.perturbation_stats(adata)
        effects = mt.get.perturbation_stats(adata)
        effects = effects[effects["group"] != "all"]
        shares.append((effects["p_value"].dropna() < 0.05).mean())
        called.append((effects["q_value"] < 0.05).any())
    adata.uns["perturbation"]["effects"], adata.uns["perturbation"]["genes"] = whole, genes
    return [summary(f"{a.model}: genes that do not go with age", shares, called)]


def summary(name: str, shares: list[float], called: list[bool]) -> dict:
    """Share of p below 0.05, and of screens with any gene called."""
    return {
        "null": name,
        "n_screens": len(shares),
        "share_p_below": float(np.mean(shares)),
        "lowest": float(np.min(shares)),
        "highest": float(np.max(shares)),
        "screens_with_a_call": float(np.mean(called)),
    }


def models(a) -> list[dict]:
    """Models that learned nothing on atlases in which nothing ages."""
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    demo = mt.load_model("demo", device="cpu")
    shares, called = [], []
    for i in range(a.n_models):
        torch.manual_seed(i)
        small = mt.models.build_model({**shape, "max_position_embeddings": 512}, demo.vocab)
        head = mt.models.TimeHead("linear", hidden_size=16, scale=100.0)
        torch.nn.init.normal_(head.linear.weight)
        model = dataclasses.replace(small, time_head=head, cell_length=demo.cell_length)
        adata, _ = atlas(SEED + 1 + i, n_cells=800, n_donors=40, null=True)
        effects = screen(encode(adata, model), model, a.n_model_prompts, i)
        effects = effects[effects["group"] != "all"]
        shares.append((effects["p_value"].dropna() < 0.05).mean())
        called.append((effects["q_value"] < 0.05).any())
    return [summary("random weights, nothing ages", shares, called)]


def speed(a) -> list[dict]:
    """All genes that are read of some cells, beside one forward pass each on a few."""
    model = mt.load_model(a.model, device="cpu")
    adata, _ = atlas(SEED)
    adata = encode(adata, model)
    mt.pp.sample_prompts(
        adata, time_key="age_months", groupby="cell_type", n_prompts=a.n_cells, donor_key="donor_id"
    )
    start = time.perf_counter()
    mt.tl.perturb(adata, model, genes="all", mode="inhibit")
    ours = time.perf_counter() - start
    effects = mt.get.perturbation(adata)
    mt.tl.predict_timelapse(adata, model)
    # One prompt a call: nothing to share.
    prompts = adata.uns["prompts"]["prompts"]
    start = time.perf_counter()
    for i in range(len(prompts)):
        adata.uns["prompts"]["prompts"] = prompts.iloc[[i]]
        mt.tl.predict_timelapse(adata, model)
    each = (time.perf_counter() - start) / len(prompts)
    return [
        {
            "cells": len(prompts),
            "genes": int(effects["gene"].nunique()),
            "edits": len(effects),
            "seconds": ours,
            "seconds_an_edit": ours / len(effects),
            "times_one_call_each": each * len(effects) / ours,
        }
    ]


def main() -> None:
    """Run some of the parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help=f"{', '.join(PARTS)}; all by default")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--n-prompts", type=int, default=60, help="a cell type")
    parser.add_argument("--n-null", type=int, default=40)
    parser.add_argument("--n-models", type=int, default=40)
    parser.add_argument("--n-model-prompts", type=int, default=8, help="a cell type")
    parser.add_argument("--n-cells", type=int, default=20, help="of the speed")
    a = parser.parse_args()
    mt.settings.progress = False
    if unknown := set(a.parts) - set(PARTS):
        parser.error(f"there is no part {sorted(unknown)[0]!r}")
    parts = a.parts or PARTS
    facts = {
        "model_sha256": mt.load_model(a.model, device="cpu").sha256,
        "n_prompts": a.n_prompts,
        "types": list(TYPES),
    }
    if {"planted", "null"} & set(parts):
        rows, adata, truth = planted(a)
        report.add("perturbation", rows, case="planted", device="cpu", **facts)
    if "null" in parts:
        report.add("perturbation", null(a, adata, truth), case="null", device="cpu", **facts)
    if "models" in parts:
        report.add(
            "perturbation",
            models(a),
            case="models",
            device="cpu",
            n_prompts=a.n_model_prompts,
            types=list(TYPES),
        )
    if "speed" in parts:
        report.add("perturbation", speed(a), case="speed", device="cpu", model_sha256=facts["model_sha256"])


if __name__ == "__main__":
    main()
