"""Train the sparse autoencoders that ship with the demo model: features of its first and third block.

    python benchmarks/build_demo_sae.py            # about twelve minutes on one core

Reads only data that ship with the package, and none of the nuclei that the demo model's card lists as held out.
Writes `maxtoki_toolkit/resources/demo_sae/` and `demo_sae_early/`.
"""

from __future__ import annotations

import sys
from pathlib import Path

# This folder must not come first on the path: its tokenize.py would pass for Python's own.
sys.path[0] = str(Path(__file__).parents[1])

import argparse
import json
import tempfile

import maxtoki_toolkit as mt
from maxtoki_toolkit.models.load import CARD
from maxtoki_toolkit.models.sae import save_sae

RESOURCES = Path(__file__).parents[1] / "maxtoki_toolkit" / "resources"
BLOCKS = {"demo_sae": 2, "demo_sae_early": 0}


def demo_cells(model: mt.models.MaxTokiModel) -> tuple[list, object]:
    """Cells to train on, and the heart nuclei held out."""
    heart = mt.datasets.load("heart_nuclei")
    atlas = mt.datasets.aging_atlas(n_cells=3000, n_donors=60, seed=7)
    myoblasts = mt.datasets.load("myoblast_timecourse")
    for adata in (atlas, myoblasts):
        mt.pp.map_genes(adata, model)
    for adata in (heart, atlas):
        mt.pp.rank_value_encode(adata, model)
    # The myoblasts are FPKM, which are linear in expression.
    mt.pp.rank_value_encode(myoblasts, model, force=True)
    held_out = heart.obs_names.isin(json.loads((RESOURCES / "demo" / CARD).read_text())["held_out"])
    return [heart[~held_out].copy(), atlas, myoblasts], heart[held_out].copy()


def main() -> None:
    """Train, save."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--target", type=Path, default=RESOURCES, help="folder of both")
    parser.add_argument("--only", choices=list(BLOCKS))
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    model = mt.load_model("demo", device="cpu")
    cells, held_out = demo_cells(model)
    for name, block in BLOCKS.items():
        if a.only not in (None, name):
            continue
        with tempfile.TemporaryDirectory() as folder:
            recipe = mt.train.SparseRecipe.of(
                max_steps=a.steps, eval_every=a.steps, save_every=a.steps, seed=a.seed
            )
            run = Path(folder) / "run"
            sae = mt.train.sae(cells, model, run, block=block, k=16, held_out=held_out, recipe=recipe)
            log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
            print(name, [entry["eval_loss"] for entry in log if "eval_loss" in entry][-1], flush=True)
        save_sae(sae, a.target / name, overwrite=True)


if __name__ == "__main__":
    main()
