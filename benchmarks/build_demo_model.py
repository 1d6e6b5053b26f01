"""Train the demo model that ships with the package, by its committed recipe.

    python benchmarks/build_demo_model.py            # about an hour and a half on 2 cores

Reads only data that ship with the package. Stage 1 learns the next gene of heart nuclei, myoblasts and simulated
cells; stage 2 learns to tell time from the simulated ageing atlas, whose answers are known. Writes
`maxtoki_toolkit/resources/demo/`: weights (float16), vocabulary, time head, `maxtoki.json` with recipe and metrics,
and the model card. An interrupted run goes on where it was.
"""

from __future__ import annotations

import sys
from pathlib import Path

# This folder must not come first on the path: its tokenize.py would pass for Python's own.
sys.path[0] = str(Path(__file__).parents[1])

import argparse
import json
import shutil

import numpy as np
import torch
import yaml
from anndata import AnnData

import maxtoki_toolkit as mt
from maxtoki_toolkit.demo import score
from maxtoki_toolkit.models.load import save_model

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "maxtoki_toolkit" / "resources" / "demo"
RECIPE = ROOT / "benchmarks" / "demo_model.yaml"


def vocabulary(parts: dict[str, AnnData], min_cells: dict[str, int]) -> mt.models.Vocabulary:
    """Genes of all parts; medians from the first part that has the gene, so real counts go first."""
    medians = {}
    for name, adata in parts.items():
        mt.pp.map_genes(adata)
        found = mt.models.Vocabulary.from_anndata(adata, min_cells=min_cells[name])
        medians = found.medians | medians
    tokens = ["<pad>", "<mask>", "<bos>", "<eos>", *sorted(medians)]
    return mt.models.Vocabulary({token: i for i, token in enumerate(tokens)}, medians)


def stage1(recipe: dict, work: Path) -> tuple[mt.models.MaxTokiModel, AnnData, list[AnnData]]:
    """Learn the next gene; return the model, the heart nuclei, those held out marked, and the real cells learned of."""
    heart = mt.datasets.load("heart_nuclei")
    parts = {
        "heart_nuclei": heart,
        "aging_atlas": mt.datasets.aging_atlas(**recipe["stage1"]["aging_atlas"]),
        "myoblast_timecourse": mt.datasets.load("myoblast_timecourse"),
    }
    vocab = vocabulary(parts, recipe["min_cells"])
    for name, adata in parts.items():
        # The myoblasts are FPKM, which are linear in expression.
        mt.pp.rank_value_encode(adata, vocab, force=name == "myoblast_timecourse")
    held_out = np.random.default_rng(recipe["seed"]).permutation(heart.n_obs)[: recipe["held_out_nuclei"]]
    heart.obs["held_out"] = np.isin(np.arange(heart.n_obs), held_out)
    parts["heart_nuclei"] = heart[~heart.obs["held_out"]].copy()
    model = mt.train.pretrain(
        list(parts.values()),
        vocab,
        work,
        shape=recipe["shape"],
        repeats=[recipe["stage1"]["repeats"][name] for name in parts],
        held_out=heart[heart.obs["held_out"]].copy(),
        seed=recipe["seed"],
        device="cpu",
        **recipe["stage1"]["training"],
    )
    return model, heart, [parts["heart_nuclei"], parts["myoblast_timecourse"]]


def stage2(
    recipe: dict, model: mt.models.MaxTokiModel, real: list[AnnData], work: Path
) -> mt.models.MaxTokiModel:
    """Learn to tell time from the atlas's controls; donors, ages and cell types are held out."""
    atlas = mt.datasets.aging_atlas(**recipe["stage2"]["aging_atlas"])
    atlas = atlas[atlas.obs["condition"] == "control"].copy()
    mt.pp.map_genes(atlas, model)
    mt.pp.rank_value_encode(atlas, model)
    mt.pp.hold_out(atlas, donor_key="donor_id", time_key="age_months", **recipe["stage2"]["hold_out"])
    # Predicted on the way: donors held out, of the types that are learned.
    return mt.train.temporal(
        atlas,
        model,
        work,
        time_key="age_months",
        groupby=["cell_type", "sex"],
        use="train",
        held_out="held_out_donors",
        replay=real,
        seed=recipe["seed"],
        device="cpu",
        **recipe["stage2"]["training"],
    )


def read_log(work: Path) -> list[dict]:
    """Entries of a run's log."""
    return [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "demo", help="folder of the runs")
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--target", type=Path, default=DEMO, help="folder of the model")
    arguments = parser.parse_args()
    recipe = yaml.safe_load(arguments.recipe.read_text())

    model, heart, real = stage1(recipe, arguments.work / "stage1")
    model = stage2(recipe, model, real, arguments.work / "stage2")
    logs = {stage: read_log(arguments.work / stage) for stage in ("stage1", "stage2")}

    # float16 halves the download; what is measured is what is shipped. Saved twice, because the measurement
    # reads the shipped files, and the card holds the measurement.
    card = {"stage": 2, "recipe": recipe, "held_out": list(heart.obs_names[heart.obs["held_out"]])}
    model.hf.half()
    save_model(model, arguments.target, card=card, overwrite=True)
    shipped = mt.load_model(arguments.target, device="cpu")
    mt.tl.embed(heart, shipped)
    last = [entry for entry in logs["stage2"] if "eval_r" in entry][-1]
    card["metrics"] = {
        "stage1_loss_held_out_nats": [e["eval_loss"] for e in logs["stage1"] if "eval_loss" in e][-1],
        "stage1_loss_uniform_nats": float(np.log(shipped.vocab.size)),
        "stage2_held_out_donors": {
            name.removeprefix("eval_"): last[name] for name in last if name.startswith("eval_")
        },
        "minutes": {
            stage: round(sum(e.get("train_runtime", 0) for e in log) / 60, 1) for stage, log in logs.items()
        },
        "threads": torch.get_num_threads(),
        "neighbor_purity": score(heart, shipped, groupby="cell_type", held_out=card["held_out"]).to_dict(
            "records"
        ),
    }
    print(json.dumps(card["metrics"], indent=2))
    save_model(model, arguments.target, card=card, overwrite=True)
    shutil.copy(ROOT / "benchmarks" / "demo_model_card.md", arguments.target / "README.md")


if __name__ == "__main__":
    main()
