"""Which learning rates suit the recipe of the demo model: equal steps on a small atlas, the last held-out r of each.

    python benchmarks/rates.py --device cuda --steps 300

Writes `results/rates.json`.
"""

from __future__ import annotations

import sys
from pathlib import Path

# This folder must not come first on the path: its tokenize.py would pass for Python's own.
sys.path[0] = str(Path(__file__).parents[1])

import argparse
import tempfile

import yaml

import maxtoki_toolkit as mt
from benchmarks import report
from benchmarks.build_demo_model import read_log, shrink, write_controls

RECIPE = Path(__file__).parent / "demo_model_gpu.yaml"
# (matrices, embeddings and heads)
RATES = [(0.02, 0.01), (0.02, 0.003), (0.01, 0.01), (0.02, 0.03)]


def main() -> None:
    """Train with each pair of rates."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--pairs", type=int, default=len(RATES))
    parser.add_argument("--toy", action="store_true")
    a = parser.parse_args()
    recipe = yaml.safe_load(RECIPE.read_text())
    if a.toy:
        recipe = shrink(recipe)
    training = recipe["stage2"]["training"] | {
        "max_steps": a.steps,
        "eval_every": a.steps,
        "save_every": a.steps,
    }
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        simulation = recipe["stage2"]["aging_atlas"] | {
            "n_cells": 1500 if a.toy else 40_000,
            "n_donors": 60 if a.toy else 1000,
        }
        vocab = write_controls(simulation, recipe["stage2"]["hold_out"], folder / "controls.h5ad", 20)
        model = mt.models.build_model(recipe["shape"], vocab)
        for matrices, others in RATES[: a.pairs]:
            settings, columns = mt.train.TemporalRecipe.split(
                training
                | {"learning_rate": matrices, "embedding_rate": others}
                | {"device": a.device, "bf16": a.device == "cuda"}
            )
            mt.train.temporal(
                folder / "controls.h5ad",
                model,
                folder / f"{matrices} {others}",
                time_key="age_months",
                groupby=["cell_type", "sex"],
                use="train",
                held_out="held_out_donors",
                recipe=settings,
                **columns,
            )
            log = read_log(folder / f"{matrices} {others}")
            held_out = next(e for e in log if "eval_r" in e)
            seconds = next(e["train_runtime"] for e in log if "train_runtime" in e)
            rows.append(
                {
                    "matrices": matrices,
                    "embeddings": others,
                    "steps": a.steps,
                    "loss": round([e["loss"] for e in log if "loss" in e][-1], 3),
                    "r": round(held_out["eval_r"], 3),
                    "slope": round(held_out["eval_slope"], 3),
                    "seconds a step": round(seconds / a.steps, 4),
                }
            )
            report.add("rates", rows, case=a.device, device=a.device)


if __name__ == "__main__":
    main()
