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
import multiprocessing
import shutil
import tempfile
import zlib
from concurrent.futures import Future, ProcessPoolExecutor
from copy import deepcopy

import anndata
import numpy as np
import pandas as pd
import torch
import yaml
from anndata import AnnData

import maxtoki_toolkit as mt
from benchmarks import report
from maxtoki_toolkit._files import atomic
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
        # The myoblasts are FPKM, which are linear in expression.
        force = name == "myoblast_timecourse"
        found = mt.models.Vocabulary.from_anndata(adata, min_cells=min_cells[name], force=force)
        medians = found.medians | medians
    tokens = ["<pad>", "<mask>", "<bos>", "<eos>", *sorted(medians)]
    return mt.models.Vocabulary({token: i for i, token in enumerate(tokens)}, medians)


def is_held_out(names: pd.Index) -> np.ndarray:
    """Half of the cells, by their names: those of the sorted blood that are never trained on."""
    return np.array([zlib.crc32(name.encode()) % 2 == 1 for name in names])


def real_cells(recipe: dict, data: Path | None) -> dict[str, AnnData]:
    """The real cells that are trained on, and the heart nuclei, those held out marked."""
    parts = {"heart_nuclei": mt.datasets.load("heart_nuclei")}
    for name in {"pbmc_facs_3874", "pbmc3k_raw"} & set(recipe["min_cells"]):
        if data is None:
            raise SystemExit(f"The recipe reads {name}, which does not ship: name its folder with --data.")
        adata = anndata.read_h5ad(data / f"{name}.h5ad")
        adata.X = adata.X.astype(np.float32)
        parts[name] = adata[~is_held_out(adata.obs_names)].copy() if name == "pbmc_facs_3874" else adata
    parts["myoblast_timecourse"] = mt.datasets.load("myoblast_timecourse")
    return {name: parts[name] for name in recipe["min_cells"] if name in parts}


def write_controls(
    simulation: dict, hold_out: dict, path: Path, vocab: mt.models.Vocabulary | int
) -> mt.models.Vocabulary:
    """Simulate controls, rank them and write them without counts, what is held out marked; once.

    `vocab` may be the number of cells that must express a gene, for a vocabulary of these cells' own.
    """
    if not isinstance(vocab, int) and path.is_file():
        return vocab
    atlas = mt.datasets.aging_atlas(**simulation)
    atlas = atlas[atlas.obs["condition"] == "control"].copy()
    atlas.uns = {}
    mt.pp.map_genes(atlas)
    if isinstance(vocab, int):
        medians = mt.models.Vocabulary.from_anndata(atlas, min_cells=vocab).medians
        tokens = ["<pad>", "<mask>", "<bos>", "<eos>", *sorted(medians)]
        vocab = mt.models.Vocabulary({token: i for i, token in enumerate(tokens)}, medians)
    mt.pp.map_genes(atlas, vocab)
    mt.pp.rank_value_encode(atlas, vocab)
    mt.pp.hold_out(atlas, donor_key="donor_id", time_key="age_months", **hold_out)
    atlas.X = None
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        atlas.write_h5ad(temporary)
    return vocab


def in_background(function, *arguments) -> Future:
    """Run in a process of its own, beside the training."""
    pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    # A thread pickles them at some later time; a vocabulary that is used meanwhile fills its caches.
    future = pool.submit(function, *deepcopy(arguments))
    pool.shutdown(wait=False)
    return future


TOY = {
    "n_cells": 1500,
    "n_donors": 60,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "max_length": 300,
    "shortest": 20,
    "context_size": [1, 2],
    "batch_size": 4,
    "max_steps": 4,
    "eval_every": 2,
    "save_every": 4,
    "n_held_out": 16,
}


def shrink(recipe: dict) -> dict:
    """The same recipe at toy size, to see that it runs."""
    return {
        name: shrink(value) if isinstance(value, dict) else TOY.get(name, value)
        for name, value in recipe.items()
    }


def steps_in(minutes: float, train, work: Path, settings: dict) -> int:
    """Steps that take this long on this machine, from a short run that is thrown away."""
    n = 60
    with tempfile.TemporaryDirectory(dir=work.parent) as folder:
        short = settings | {
            "max_steps": n,
            "eval_every": n,
            "save_every": n,
            "n_held_out": 8,
            "curriculum": 0.0,
        }
        train(Path(folder) / "run", short)
        times = [e["train_runtime"] for e in read_log(Path(folder) / "run") if "train_runtime" in e]
    # Start-up counts as a third of so short a run.
    return max(int(minutes * 60 / (times[-1] / n)), 200)


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "demo", help="folder of the runs")
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--target", type=Path, default=DEMO, help="folder of the model")
    parser.add_argument("--data", type=Path, help="folder of pbmc3k_raw.h5ad and pbmc_facs_3874.h5ad")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--minutes", type=float, help="length of stage 2, in place of the recipe's steps")
    parser.add_argument("--toy", action="store_true", help="at toy size, to see that it runs")
    arguments = parser.parse_args()
    recipe = yaml.safe_load(arguments.recipe.read_text())
    if arguments.toy:
        recipe = shrink(recipe)
    work = arguments.work
    common = {"seed": recipe["seed"], "device": arguments.device, "bf16": arguments.device == "cuda"}

    parts = real_cells(recipe, arguments.data)
    parts["aging_atlas"] = mt.datasets.aging_atlas(**recipe["stage1"]["aging_atlas"])
    parts = {name: parts[name] for name in recipe["min_cells"]}
    vocab = vocabulary(parts, recipe["min_cells"])
    controls = work / "controls.h5ad"
    written = in_background(
        write_controls, recipe["stage2"]["aging_atlas"], recipe["stage2"]["hold_out"], controls, vocab
    )
    for name, adata in parts.items():
        # The myoblasts are FPKM, which are linear in expression.
        mt.pp.rank_value_encode(adata, vocab, force=name == "myoblast_timecourse")
    heart = parts["heart_nuclei"]
    held_out = np.random.default_rng(recipe["seed"]).permutation(heart.n_obs)[: recipe["held_out_nuclei"]]
    heart.obs["held_out"] = np.isin(np.arange(heart.n_obs), held_out)
    parts["heart_nuclei"] = heart[~heart.obs["held_out"]].copy()
    model = mt.train.pretrain(
        list(parts.values()),
        vocab,
        work / "stage1",
        shape=recipe["shape"],
        held_out=heart[heart.obs["held_out"]].copy(),
        recipe=mt.train.PretrainRecipe.of(
            repeats=[recipe["stage1"]["repeats"][name] for name in parts],
            **common,
            **recipe["stage1"]["training"],
        ),
    )
    real = [adata for name, adata in parts.items() if name != "aging_atlas"]
    written.result()

    def train(folder: Path, settings: dict) -> mt.models.MaxTokiModel:
        recipe, columns = mt.train.TemporalRecipe.split(common | settings)
        # Predicted on the way: donors held out, of the types that are learned.
        return mt.train.temporal(
            controls,
            model,
            folder,
            time_key="age_months",
            groupby=["cell_type", "sex"],
            use="train",
            held_out="held_out_donors",
            replay=real,
            recipe=recipe,
            **columns,
        )

    training = recipe["stage2"]["training"]
    if arguments.minutes:
        training["max_steps"] = steps_in(arguments.minutes, train, work / "stage2", training)
        print(f"{training['max_steps']} steps", flush=True)
    model = train(work / "stage2", training)
    logs = {stage: read_log(work / stage) for stage in ("stage1", "stage2")}

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
        "environment": report.environment("cuda" if torch.cuda.is_available() else "cpu"),
        "neighbor_purity": score(heart, shipped, groupby="cell_type", held_out=card["held_out"]).to_dict(
            "records"
        ),
    }
    print(json.dumps(card["metrics"], indent=2))
    save_model(model, arguments.target, card=card, overwrite=True)
    shutil.copy(ROOT / "benchmarks" / "demo_model_card.md", arguments.target / "README.md")


def read_log(work: Path) -> list[dict]:
    """Entries of a run's log."""
    return [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]


if __name__ == "__main__":
    main()
