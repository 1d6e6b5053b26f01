"""Train the demo model that writes cells, by its committed recipe.

    python benchmarks/build_demo_cells.py                # about an hour on one core

All is learned from controls of the simulated ageing atlas, whose truth is known: first the next gene of single cells, if
the recipe has a stage 1, then the cells of prompts, each from those before it. Writes `maxtoki_toolkit/resources/demo_cells/`. An interrupted run goes on where it was.
"""

from __future__ import annotations

import sys
from pathlib import Path

# This folder must not come first on the path: its tokenize.py would pass for Python's own.
sys.path[0] = str(Path(__file__).parents[1])

import argparse
import json
import shutil
from dataclasses import replace

import anndata
import torch
import yaml

import maxtoki_toolkit as mt
from benchmarks import report
from benchmarks.build_demo_model import read_log, shrink, steps_in, write_controls
from maxtoki_toolkit.models.load import save_model

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "maxtoki_toolkit" / "resources" / "demo_cells"
RECIPE = ROOT / "benchmarks" / "demo_cells.yaml"


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "demo_cells", help="folder of the runs")
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--target", type=Path, default=TARGET, help="folder of the model")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--minutes", type=float, help="length of the training, in place of the recipe's steps"
    )
    parser.add_argument("--prepare", action="store_true", help="write the cells, and train later")
    parser.add_argument("--toy", action="store_true", help="at toy size, to see that it runs")
    arguments = parser.parse_args()
    recipe = yaml.safe_load(arguments.recipe.read_text())
    if arguments.toy:
        recipe = shrink(recipe)
    work, controls = arguments.work, arguments.work / "controls.h5ad"
    names = [work / "token_dictionary.json", work / "gene_median_dictionary.json"]
    if not all(path.is_file() for path in [controls, *names]):
        vocab = write_controls(recipe["aging_atlas"], recipe["hold_out"], controls, recipe["min_cells"])
        for path, content in zip(names, (vocab.tokens, vocab.medians), strict=True):
            path.write_text(json.dumps({str(k): v for k, v in content.items()}))
    if arguments.prepare:
        return
    vocab = mt.models.Vocabulary.from_json(names[0], gene_medians=names[1])
    common = {"seed": recipe["seed"], "device": arguments.device, "bf16": arguments.device == "cuda"}
    phases = recipe["stage2"]["phases"]
    if "stage1" in recipe:
        atlas = anndata.read_h5ad(controls)
        model = mt.train.pretrain(
            atlas[atlas.obs["train"]].copy(),
            vocab,
            work / "stage1",
            shape=recipe["shape"],
            held_out=atlas[atlas.obs["held_out_donors"]][:500].copy(),
            recipe=mt.train.PretrainRecipe.of(**common, **recipe["stage1"]),
        )
    else:
        model = mt.models.build_model(recipe["shape"], vocab, seed=recipe["seed"])
    whole = model.cell_length

    for name, phase in phases.items():
        settings = recipe["stage2"]["training"] | phase
        start = replace(model, cell_length=settings.pop("cell_length", whole))

        def train(folder: Path, settings: dict, start=start) -> mt.models.MaxTokiModel:
            recipe, columns = mt.train.TemporalRecipe.split(common | settings)
            return mt.train.temporal(
                controls,
                start,
                folder,
                time_key="age_months",
                groupby=["cell_type", "sex"],
                use="train",
                held_out="held_out_donors",
                recipe=recipe,
                **columns,
            )

        if arguments.minutes:
            # Each phase gets as much of the time as it has steps.
            share = phase["max_steps"] / sum(p["max_steps"] for p in phases.values())
            phase["max_steps"] = settings["max_steps"] = steps_in(
                share * arguments.minutes, train, work / name, settings
            )
            print(f"{name}: {phase['max_steps']} steps", flush=True)
        model = train(work / name, settings)
    assert model.cell_length == whole, "the last phase reads whole cells"
    logs = {name: read_log(work / name) for name in phases}
    card = {
        "stage": 2,
        "recipe": recipe,
        "metrics": {
            name: {
                # Where no lapse is learned, none is measured.
                key: value
                for key, value in [e for e in log if "eval_loss" in e][-1].items()
                if key in ("eval_loss", "eval_r", "eval_slope") and value == value
            }
            for name, log in logs.items()
        },
        "minutes": {
            name: round(sum(e.get("train_runtime", 0) for e in log) / 60, 1) for name, log in logs.items()
        },
        "environment": report.environment("cuda" if torch.cuda.is_available() else "cpu"),
    }
    # float16 halves the download.
    model.hf.half()
    save_model(model, arguments.target, card=card, overwrite=True)
    print(json.dumps(card["metrics"], indent=2))
    shutil.copy(ROOT / "benchmarks" / "demo_cells_card.md", arguments.target / "README.md")


if __name__ == "__main__":
    main()
