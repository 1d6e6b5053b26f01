"""Train the demo model that ships with the package, by its committed recipe.

    python benchmarks/build_demo_model.py            # about half an hour on 2 cores

Reads only data that ship with the package. Writes `maxtoki_toolkit/resources/demo/`: weights (float16),
vocabulary, `maxtoki.json` with recipe and metrics, and the model card.
"""

from __future__ import annotations

import sys
from pathlib import Path

# This folder must not come first on the path: its tokenize.py would pass for Python's own.
sys.path[0] = str(Path(__file__).parents[1])

import argparse
import json
import shutil
import time

import numpy as np
import torch
import yaml

import maxtoki_toolkit as mt
from maxtoki_toolkit.demo import score
from maxtoki_toolkit.models.load import save_model

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "maxtoki_toolkit" / "resources" / "demo"


def vocabulary(parts: dict, min_cells: dict) -> mt.models.Vocabulary:
    """Genes of all parts; medians from the first part that has the gene, so real counts go first."""
    medians = {}
    for name, adata in parts.items():
        mt.pp.map_genes(adata)
        found = mt.models.Vocabulary.from_anndata(adata, min_cells=min_cells[name])
        medians = found.medians | medians
    tokens = ["<pad>", "<mask>", "<bos>", "<eos>", *sorted(medians)]
    return mt.models.Vocabulary({token: i for i, token in enumerate(tokens)}, medians)


def main() -> None:
    """Build vocabulary and corpus, train, measure, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "demo", help="folder of the run")
    parser.add_argument("--recipe", type=Path, default=ROOT / "benchmarks" / "demo_model.yaml")
    parser.add_argument("--target", type=Path, default=DEMO, help="folder of the model")
    parser.add_argument("--steps", type=int, help="fewer steps, for a trial")
    arguments = parser.parse_args()
    recipe = yaml.safe_load(arguments.recipe.read_text())
    start = time.time()

    heart = mt.datasets.load("heart_nuclei")
    parts = {
        "heart_nuclei": heart,
        "aging_atlas": mt.datasets.aging_atlas(**recipe["aging_atlas"]),
        "myoblast_timecourse": mt.datasets.load("myoblast_timecourse"),
    }
    vocab = vocabulary(parts, recipe["min_cells"])
    print(vocab)
    for name, adata in parts.items():
        # The myoblasts are FPKM, which are linear in expression.
        mt.pp.rank_value_encode(adata, vocab, force=name == "myoblast_timecourse")
    held_out = np.random.default_rng(recipe["seed"]).permutation(heart.n_obs)[: recipe["held_out_nuclei"]]
    heart.obs["held_out"] = np.isin(np.arange(heart.n_obs), held_out)
    parts["heart_nuclei"] = heart[~heart.obs["held_out"]].copy()

    training = dict(recipe["training"])
    if arguments.steps:
        training["max_steps"] = arguments.steps
    model = mt.train.pretrain(
        list(parts.values()),
        vocab,
        arguments.work,
        shape=recipe["shape"],
        repeats=[recipe["repeats"][name] for name in parts],
        held_out=heart[heart.obs["held_out"]].copy(),
        seed=recipe["seed"],
        device="cpu",
        **training,
    )
    log = [json.loads(line) for line in (arguments.work / "log.jsonl").read_text().splitlines()]

    # float16 halves the download; what is measured is what is shipped. Saved twice, because the measurement
    # reads the shipped files, and the card holds the measurement.
    card = {"stage": 1, "recipe": recipe, "held_out": list(heart.obs_names[heart.obs["held_out"]])}
    model.hf.half()
    save_model(model, arguments.target, card=card)
    shipped = mt.load_model(arguments.target, device="cpu")
    mt.tl.embed(heart, shipped)
    card["metrics"] = {
        "loss_held_out_nats": [entry["eval_loss"] for entry in log if "eval_loss" in entry][-1],
        "loss_uniform_nats": float(np.log(vocab.size)),
        "minutes": round((time.time() - start) / 60, 1),
        "threads": torch.get_num_threads(),
        "neighbor_purity": score(heart, shipped, groupby="cell_type", held_out=card["held_out"]).to_dict(
            "records"
        ),
    }
    print(json.dumps(card["metrics"], indent=2))
    save_model(model, arguments.target, card=card)
    shutil.copy(ROOT / "benchmarks" / "demo_model_card.md", arguments.target / "README.md")


if __name__ == "__main__":
    main()
