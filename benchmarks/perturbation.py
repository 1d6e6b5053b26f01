"""Does a screen find the genes that drive age, and nothing where nothing is?

    python benchmarks/perturbation.py                  # all parts but panel, half an hour
    python benchmarks/perturbation.py planted          # one of them: planted, panel, null, models, speed
    python benchmarks/perturbation.py panel --panel runs/panel/model
    python benchmarks/perturbation.py --n-prompts 10 --n-null 4 --n-models 2      # a small run

Each part is written to `results/perturbation.json` under its name; the others stay.

planted
    A screen of all genes that the demo model reads, in cells of simulated donors that it was not trained on. The ruler is the
    simulation: genes whose expression goes with age in that cell type, against those that go with age in no cell type, and against all others,
    among which are genes that the model may take for ageing because they are elsewhere.
panel
    The same for a panel of 500 genes, of which a model reads all that a cell has, and which it was taught on two cell types only
    (`build_panel_model.py`): what a screen finds if the model knows its cells.
null
    For both. What is a null here? The demo model has learned which genes go with age, and says so of any cell, also of an atlas in which
    nothing ages: its effects are of the model, not of the atlas. So a "null atlas" is no null for the matched test. What is: the planted
    atlas's genes that do not go with age in any cell type. They are drawn anew for each of many screens of as many genes, from the
    effects on randomly chosen other donors, and tested against each other; with as many matched genes as is the default, half and twice as many.
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

PARTS = ("planted", "panel", "null", "models", "speed")
TYPES = ("fibroblast", "monocyte")
SEED = 300  # the demo model was trained on seeds 0 and 1
OFTEN = 30  # donors
MATCHED = (20, 40, 80)  # genes that each is compared with in null screens


def atlas(
    seed: int, *, n_cells: int = 16_000, n_donors: int = 250, n_genes: int = 2000, null: bool = False
) -> tuple[AnnData, pd.DataFrame]:
    """Cells of the types of the benchmark, and the genes that go with age."""
    adata = mt.datasets.aging_atlas(n_cells, n_donors, n_genes=n_genes, seed=seed, null=null)
    truth = adata.uns["truth"]["age_genes"]
    adata = adata[adata.obs["cell_type"].isin(TYPES)].copy()
    adata.uns = {}
    return adata, truth


def screen(adata: AnnData, model, n_prompts: int, seed: int) -> pd.DataFrame:
    """Effects over donors of all genes, `n_prompts` a cell type."""
    mt.pp.sample_prompts(
        adata, time_key="age_months", groupby="cell_type", n_prompts=n_prompts * len(TYPES), context_size=2,
        sampling=mt.pp.PromptSampling(balance=1), donor_key="donor_id", rng=seed,
    )  # fmt: skip
    mt.tl.perturb(adata, model, genes="all", mode="inhibit")
    mt.tl.perturbation_stats(adata)
    return mt.get.table(adata, "perturbation_stats")


def score(effects: pd.DataFrame, truth: pd.DataFrame, model: str) -> list[dict]:
    """AUROC and sign of the genes that go with age, by cell type, how often a gene is read, and what it is held against."""
    from sklearn.metrics import roc_auc_score

    rows = []
    known = truth[~truth.duplicated(["ensembl_id", "cell_type"], keep=False)]
    for group in TYPES:
        fold = known[known["cell_type"] == group].set_index("ensembl_id")
        part = effects[(effects["group"] == group) & effects["p_value"].notna()]
        part = part[part["gene"].map(fold["direction"]) != "turnover"]
        direct = part["gene"].map(fold["log2_fold"]).fillna(0)
        never = ~part["gene"].isin(truth["ensembl_id"])
        for least in (3, OFTEN):
            often = part["n_units"] >= least
            for against, others in (("of no cell type", never), ("all others", direct == 0)):
                some = often & ((direct != 0) | others)
                mine, is_planted = part[some], (direct[some] != 0).to_numpy()
                if not is_planted.any() or is_planted.all():
                    continue
                called = (mine["q_value"] < 0.05).to_numpy()
                right = np.sign(mine["effect"].to_numpy()) == -np.sign(direct[some].to_numpy())
                rows.append(
                    {
                        "model": model,
                        "group": group,
                        "read_in": least,
                        "against": against,
                        "n_genes": len(mine),
                        "n_planted": int(is_planted.sum()),
                        "auroc_z": roc_auc_score(is_planted, mine["z"].abs()),
                        "auroc_excess": roc_auc_score(is_planted, mine["excess"].abs()),
                        "n_called": int(called.sum()),
                        "planted_called": int((called & is_planted).sum()),
                        "sign_right_called": float(right[called & is_planted].mean())
                        if (called & is_planted).any()
                        else None,
                        "sign_right_planted": float(right[is_planted].mean()),
                        "null_p_below": float((mine["p_value"][~is_planted] < 0.05).mean()),
                    }
                )
    return rows


def planted(a, name: str, n_genes: int = 2000) -> tuple[list[dict], AnnData, pd.DataFrame]:
    """Genes that go with age, of donors that the model does not know."""
    model = mt.load_model(a.panel if name == "panel" else a.model, device="cpu")
    adata, truth = atlas(SEED, n_genes=n_genes)
    effects = screen(encode(adata, model), model, a.n_prompts, SEED)
    mt.tl.predict_timelapse(adata, model)
    scores = mt.get.table(adata, "timelapse", "scores").set_index("group")["r"]
    rows = score(effects, truth, name)
    return [row | {"r_of_the_model": float(scores[row["group"]])} for row in rows], adata, truth


def null(a, name: str, adata: AnnData, truth: pd.DataFrame) -> list[dict]:
    """Screens of genes that drive nothing: half of the donors at random, their labels exchanged, other genes in each."""
    ageing = set(truth["ensembl_id"])
    whole, genes = adata.uns["perturbation"]["effects"], adata.uns["perturbation"]["genes"]
    quiet = whole[~whole["gene"].isin(ageing)]
    donors = quiet["donor"].cat.categories.to_numpy()
    rows = []
    for n_null in MATCHED:
        shares, called = [], []
        for i in range(a.n_null):
            rng = np.random.default_rng(i)
            kept = rng.permutation(donors)[: -(-2 * len(donors) // 3)]
            names = rng.permutation(quiet["gene"].cat.categories.to_numpy())
            names = names[: int(0.8 * len(names))]
            part = quiet[quiet["donor"].isin(kept) & quiet["gene"].isin(names)].reset_index(drop=True)
            adata.uns["perturbation"]["effects"] = part
            adata.uns["perturbation"]["genes"] = genes[genes["gene"].isin(part["gene"].astype(str))]
            mt.tl.perturbation_stats(adata, n_null=n_null)
            effects = mt.get.table(adata, "perturbation_stats")
            effects = effects[effects["group"] != "all"]
            shares.append((effects["p_value"].dropna() < 0.05).mean())
            called.append((effects["q_value"] < 0.05).any())
        rows.append(summary(f"{name}: genes that do not go with age", n_null, shares, called))
    adata.uns["perturbation"]["effects"], adata.uns["perturbation"]["genes"] = whole, genes
    return rows


def summary(name: str, n_null: int, shares: list[float], called: list[bool]) -> dict:
    """Share of p below 0.05, and of screens with any gene called."""
    return {
        "null": name,
        "n_null": n_null,
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
    return [summary("random weights, nothing ages", 40, shares, called)]


def speed(a) -> list[dict]:
    """All genes that are read of some cells, beside one forward pass each on a few."""
    model = mt.load_model(a.model, device="cpu")
    adata, _ = atlas(SEED, n_cells=3000, n_donors=60)
    adata = encode(adata, model)
    mt.pp.sample_prompts(
        adata, time_key="age_months", groupby="cell_type", n_prompts=a.n_cells, donor_key="donor_id"
    )
    start = time.perf_counter()
    mt.tl.perturb(adata, model, genes="all", mode="inhibit")
    ours = time.perf_counter() - start
    effects = mt.get.table(adata, "perturbation")
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
    parser.add_argument("--panel", default="", help="folder of the model that build_panel_model.py trains")
    parser.add_argument("--n-prompts", type=int, default=350, help="a cell type")
    parser.add_argument("--n-null", type=int, default=40)
    parser.add_argument("--n-models", type=int, default=40)
    parser.add_argument("--n-model-prompts", type=int, default=8, help="a cell type")
    parser.add_argument("--n-cells", type=int, default=20, help="of the speed")
    a = parser.parse_args()
    mt.settings.progress = False
    if unknown := set(a.parts) - set(PARTS):
        parser.error(f"there is no part {sorted(unknown)[0]!r}")
    if "panel" in a.parts and not a.panel:
        parser.error("give --panel, the folder of the model that build_panel_model.py trains")
    parts = a.parts or PARTS
    shared = {"device": "cpu", "n_prompts": a.n_prompts, "types": list(TYPES)}
    for name, n_genes in (("planted", 2000), ("panel", 500)):
        if name not in parts or (name == "panel" and not a.panel):
            continue
        what = "panel" if name == "panel" else a.model
        rows, adata, truth = planted(a, what, n_genes)
        sha256 = adata.uns["perturbation"]["params"]["model_sha256"]
        report.add("perturbation", rows, case=name, model_sha256=sha256, **shared)
        if "null" in parts:
            found = null(a, what, adata, truth)
            report.add(
                "perturbation",
                found,
                case="null" if name == "planted" else "null_panel",
                model_sha256=sha256,
                **shared,
            )
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
        report.add("perturbation", speed(a), case="speed", device="cpu")


if __name__ == "__main__":
    main()
