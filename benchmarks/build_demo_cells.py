"""Train the demo model that writes cells, by its committed recipe.

    python benchmarks/build_demo_cells.py            # about an hour on one core

All is learned from controls of the simulated ageing atlas, whose truth is known: first the next gene of single cells, then
the cells of prompts, each from those before it. Writes `maxtoki_toolkit/resources/demo_cells/`. An interrupted run goes
on where it was.
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

import torch
import yaml
from anndata import AnnData

import maxtoki_toolkit as mt
from benchmarks.build_demo_model import read_log
from maxtoki_toolkit.models.load import save_model

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "maxtoki_toolkit" / "resources" / "demo_cells"
RECIPE = ROOT / "benchmarks" / "demo_cells.yaml"


def cells_to_learn(recipe: dict) -> tuple[AnnData, mt.models.Vocabulary]:
    """Rank-encoded controls, with what is held out marked, and their vocabulary."""
    atlas = mt.datasets.aging_atlas(**recipe["aging_atlas"])
    atlas = atlas[atlas.obs["condition"] == "control"].copy()
    mt.pp.map_genes(atlas)
    medians = mt.models.Vocabulary.from_anndata(atlas, min_cells=recipe["min_cells"]).medians
    tokens = ["<pad>", "<mask>", "<bos>", "<eos>", *sorted(medians)]
    vocab = mt.models.Vocabulary({token: i for i, token in enumerate(tokens)}, medians)
    mt.pp.map_genes(atlas, vocab)
    mt.pp.rank_value_encode(atlas, vocab)
    mt.pp.hold_out(atlas, donor_key="donor_id", time_key="age_months", **recipe["hold_out"])
    atlas.X = None
    return atlas, vocab


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "demo_cells", help="folder of the runs")
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--target", type=Path, default=TARGET, help="folder of the model")
    arguments = parser.parse_args()
    recipe = yaml.safe_load(arguments.recipe.read_text())
    atlas, vocab = cells_to_learn(recipe)
    common = {"seed": recipe["seed"], "device": "cpu"}
    model = mt.train.pretrain(
        atlas[atlas.obs["train"]].copy(),
        vocab,
        arguments.work / "stage1",
        shape=recipe["shape"],
        held_out=atlas[atlas.obs["held_out_donors"]][:500].copy(),
        **common,
        **recipe["stage1"],
    )
    whole = model.cell_length
    for name, phase in recipe["stage2"]["phases"].items():
        phase = dict(phase)
        model = mt.train.temporal(
            atlas,
            replace(model, cell_length=phase.pop("cell_length")),
            arguments.work / name,
            time_key="age_months",
            groupby=["cell_type", "sex"],
            use="train",
            held_out="held_out_donors",
            **common,
            **recipe["stage2"]["training"],
            **phase,
        )
    logs = {name: read_log(arguments.work / name) for name in ("stage1", *recipe["stage2"]["phases"])}
    card = {
        "stage": 2,
        "recipe": recipe,
        "metrics": {
            name: {
                # No lapse is learned in the short phase, and none measured.
                key: value
                for key, value in [e for e in log if "eval_loss" in e][-1].items()
                if key in ("eval_loss", "eval_r", "eval_slope") and value == value
            }
            for name, log in logs.items()
        },
        "minutes": {
            name: round(sum(e.get("train_runtime", 0) for e in log) / 60, 1) for name, log in logs.items()
        },
        "threads": torch.get_num_threads(),
    }
    assert model.cell_length == whole, "the last phase reads whole cells"
    # float16 halves the download.
    model.hf.half()
    save_model(model, arguments.target, card=card, overwrite=True)
    print(json.dumps(card["metrics"], indent=2))
    shutil.copy(ROOT / "benchmarks" / "demo_cells_card.md", arguments.target / "README.md")


if __name__ == "__main__":
    main()
