"""Train the demo model that writes cells, by its committed recipe.

    python benchmarks/build_demo_cells.py --minutes 3          # on a GPU; days on two cores

All is learned from controls of the simulated ageing atlas, whose truth is known: the cells of prompts, each from those
before it, and the clock at every gene. Writes `maxtoki_toolkit/resources/demo_cells/`. An interrupted run goes on where it was.
"""

from __future__ import annotations

import sys
from pathlib import Path

# This folder must not come first on the path: its tokenize.py would pass for Python's own.
sys.path[0] = str(Path(__file__).parents[1])

import argparse
import json
import shutil

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
    model = mt.models.build_model(recipe["shape"], vocab, seed=recipe["seed"])

    def train(folder: Path, settings: dict) -> mt.models.MaxTokiModel:
        return mt.train.temporal(
            controls,
            model,
            folder,
            time_key="age_months",
            groupby=["cell_type", "sex"],
            use="train",
            held_out="held_out_donors",
            seed=recipe["seed"],
            device=arguments.device,
            bf16=arguments.device == "cuda",
            **settings,
        )

    training = recipe["stage2"]
    if arguments.minutes:
        training["max_steps"] = steps_in(arguments.minutes, train, work / "stage2", training)
        print(f"{training['max_steps']} steps", flush=True)
    model = train(work / "stage2", training)
    log = read_log(work / "stage2")
    last = [e for e in log if "eval_loss" in e][-1]
    card = {
        "stage": 2,
        "recipe": recipe,
        "metrics": {name: last[name] for name in ("eval_loss", "eval_r", "eval_slope")},
        "minutes": round(sum(e.get("train_runtime", 0) for e in log) / 60, 1),
        "environment": report.environment("cuda" if torch.cuda.is_available() else "cpu"),
    }
    # float16 halves the download.
    model.hf.half()
    save_model(model, arguments.target, card=card)
    print(json.dumps(card["metrics"], indent=2))
    shutil.copy(ROOT / "benchmarks" / "demo_cells_card.md", arguments.target / "README.md")


if __name__ == "__main__":
    main()
