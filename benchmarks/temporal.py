"""Can it tell time? The demo model on planted truth, and fine-tuned on real donors and a real time course.

    python benchmarks/temporal.py planted             # minutes
    python benchmarks/temporal.py myoblasts           # cells that ship with the package
    python benchmarks/temporal.py onek1k path.h5ad    # cells that do not
    python benchmarks/temporal.py pancreas path.h5ad
    python benchmarks/temporal.py megatron folder ... # checkpoints with reference logits

Each part is written to `results/temporal.json` under its name; the others stay.
"""

from __future__ import annotations

import sys
from pathlib import Path

# This folder must not come first on the path: its tokenize.py would pass for Python's own.
sys.path[0] = str(Path(__file__).parents[1])

import argparse
import json
import tempfile
import time

import anndata
import numpy as np
import pandas as pd
import yaml
from anndata import AnnData

import maxtoki_toolkit as mt
from benchmarks import report
from maxtoki_toolkit.stats.lapse_scores import score_lapses

RECIPE = Path(__file__).parent / "demo_model.yaml"
PREDICTORS = {
    "MaxToki": "predicted",
    "most common lapse": "most_common",
    "SGD, expression": "sgd_expression",
    "ridge clock, expression": "ridge_expression",
    "ridge clock, embedding": "ridge_embedding",
}


def encode(adata: AnnData, model, *, force: bool = False) -> AnnData:
    """Map the genes and rank them."""
    mt.pp.map_genes(adata, model)
    mt.pp.rank_value_encode(adata, model, force=force)
    return adata


def rows_of(scores: pd.DataFrame, **facts) -> list[dict]:
    """Scores over all groups, rounded, as JSON."""
    scores = scores[scores["group"] == "all"].drop(columns="group")
    return [{**facts, **row} for row in json.loads(scores.round(4).to_json(orient="records"))]


def planted() -> list[dict]:
    """A new atlas: donors that nobody was trained on; held-out ages and cell types; types that do not age."""
    recipe = yaml.safe_load(RECIPE.read_text())["stage2"]
    model = mt.load_model("demo", device="cpu")
    seen = mt.datasets.aging_atlas(**recipe["aging_atlas"])
    mt.pp.hold_out(seen, donor_key="donor_id", time_key="age_months", **recipe["hold_out"])
    seen = seen[(seen.obs["condition"] == "control") & seen.obs["train"]]
    # Cells of all donors that the model was trained on, for the baselines to draw their 10,000 prompts from.
    some = np.random.default_rng(0).choice(seen.n_obs, min(seen.n_obs, 60_000), replace=False)
    seen = seen[np.sort(some)].copy()
    new = mt.datasets.aging_atlas(12_000, 60, seed=2)
    truth = new.uns["truth"]
    new = new[new.obs["condition"] == "control"].copy()
    new.obs["donor_id"] = "new " + new.obs["donor_id"].astype(str)
    for part in (seen, new):
        part.uns = {}
    adata = anndata.concat({"seen": seen, "new": new}, label="atlas", index_unique=" ", merge="first")
    encode(adata, model)
    is_new = (adata.obs["atlas"] == "new").to_numpy()
    ageing = adata.obs["cell_type"].isin(truth["age_genes"]["cell_type"]).to_numpy()
    held_out_type = adata.obs["cell_type"].isin(recipe["hold_out"]["groups"]["cell_type"]).to_numpy()
    months = adata.obs["age_months"].to_numpy()
    held_out_age = np.any([(months >= a) & (months <= b) for a, b in recipe["hold_out"]["times"]], axis=0)
    settings = {"time_key": "age_months", "groupby": ["cell_type", "sex"], "donor_key": "donor_id"}
    mt.pp.sample_prompts(
        adata,
        **settings,
        n_prompts=10_000,
        contexts=~is_new,
        queries=~is_new,
        rng=1,
        key_added="train_prompts",
    )
    known = is_new & ageing & ~held_out_type
    sets = {
        "held-out donors": (known, known & ~held_out_age),
        "held-out donors and ages": (known, known & held_out_age),
        "held-out cell types": (is_new & held_out_type, is_new & held_out_type),
        "cell types that do not age": (is_new & ~ageing, is_new & ~ageing),
    }
    rows = []
    for name, (contexts, queries) in sets.items():
        mt.pp.sample_prompts(adata, **settings, n_prompts=2000, contexts=contexts, queries=queries, rng=2)
        mt.tl.predict_timelapse(adata, model)
        mt.tl.timelapse_baselines(adata, model)
        rows += rows_of(mt.get.table(adata, "timelapse_baselines"), set=name, time_unit="months")
    # The same cells with the donors' ages permuted: nothing can be right.
    ages = adata.obs.loc[is_new].groupby("donor_id", observed=True)["age_months"].first()
    shuffled = ages.copy()
    shuffled[:] = np.random.default_rng(0).permutation(ages)
    adata.obs["shuffled_months"] = adata.obs["donor_id"].map(shuffled).astype(float).fillna(0).astype(int)
    settings["time_key"] = "shuffled_months"
    mt.pp.sample_prompts(adata, **settings, n_prompts=2000, contexts=known, queries=known, rng=2)
    mt.tl.predict_timelapse(adata, model)
    rows += rows_of(mt.get.table(adata, "timelapse", "scores"), set="shuffled ages", time_unit="months")
    return rows


def folds(units: np.ndarray, n: int, seed: int = 0) -> list[np.ndarray]:
    """Units (donors or cells) in n random parts."""
    return np.array_split(np.random.default_rng(seed).permutation(np.unique(units)), n)


def cross_validate(
    adata: AnnData,
    parts: list[np.ndarray],
    unit: np.ndarray,
    *,
    name: str,
    contexts: str,
    n_prompts: int,
    **settings,
) -> list[dict]:
    """Fine-tune the demo model on all parts but one, predict that one; score all predictions together.

    `contexts` says where the context cells of the tested prompts come from: the same part ("held out") or, where it
    has a single time, the training cells ("train"), whose times are known.
    """
    demo = mt.load_model("demo", device="cpu")
    columns = {key: settings[key] for key in ("time_key", "groupby")}
    donor_key = settings.pop("donor_key", None)
    tables, start = [], time.time()
    for i, part in enumerate(parts):
        tested = np.isin(unit, part)
        adata.obs["train"], adata.obs["test"] = ~tested, tested
        recipe, more = mt.train.TemporalRecipe.split({"device": "cpu", "seed": i} | settings)
        with tempfile.TemporaryDirectory() as folder:
            model = mt.train.temporal(
                adata,
                demo,
                folder,
                use="train",
                recipe=recipe,
                **more,
            )
        mt.pp.sample_prompts(
            adata,
            **columns,
            n_prompts=4000,
            donor_key=donor_key,
            context_size=settings["context_size"],
            contexts="train",
            queries="train",
            rng=i,
            key_added="train_prompts",
        )
        mt.pp.sample_prompts(
            adata,
            **columns,
            n_prompts=n_prompts,
            donor_key=donor_key,
            context_size=settings["context_size"],
            contexts="test" if contexts == "held out" else "train",
            queries="test",
            rng=100 + i,
        )
        mt.tl.predict_timelapse(adata, model)
        mt.tl.timelapse_baselines(adata, model)
        tables.append(mt.get.table(adata, "timelapse_baselines", "prompts").assign(fold=i))
        print(f"{name}: fold {i + 1} of {len(parts)} after {time.time() - start:.0f} s", flush=True)
    return rows_of(
        score_lapses(pd.concat(tables, ignore_index=True), PREDICTORS),
        set=name,
        time_unit=settings["time_unit"],
        folds=len(parts),
        contexts=contexts,
    )


FINE_TUNING = {
    "curriculum": 0.3,
    "timelapse": 1.0,
    "learning_rate": 1e-3,
    "warmup": 0.1,
    "eval_every": 1000,
    "save_every": 1000,
    "gene_dropout": 0.2,
}


def myoblasts() -> list[dict]:
    """200 cells of a differentiation course, five folds by cell; settings of notebooks/train_stage2_temporal.py."""
    adata = encode(mt.datasets.load("myoblast_timecourse"), mt.load_model("demo", device="cpu"), force=True)
    adata.obs["hours"] = adata.obs["Hours"].astype(int)
    names = adata.obs_names.to_numpy()
    return cross_validate(
        adata,
        folds(names, 5),
        names,
        name="myoblast course, 5 folds by cell",
        contexts="held out",
        n_prompts=400,
        time_key="hours",
        time_unit="hours",
        groupby=[],
        context_size=(1, 2),
        max_steps=160,
        batch_size=12,
        **FINE_TUNING | {"gene_dropout": 0.0},
    )


def onek1k(path: str) -> list[dict]:
    """Blood of 40 donors whose ages may be permuted in this copy: a negative control, five folds by donor."""
    adata = encode(anndata.read_h5ad(path), mt.load_model("demo", device="cpu"))
    return cross_validate(
        adata,
        folds(adata.obs["donor_id"].astype(str).to_numpy(), 5),
        adata.obs["donor_id"].astype(str).to_numpy(),
        name="OneK1K blood, 5 folds by donor",
        contexts="held out",
        n_prompts=1000,
        donor_key="donor_id",
        time_key="age",
        time_unit="years",
        groupby="cell_type",
        context_size=(1, 3),
        max_steps=200,
        batch_size=16,
        **FINE_TUNING,
    )


def pancreas(path: str) -> list[dict]:
    """Acinar cells of eight donors, leaving one donor out."""
    adata = encode(anndata.read_h5ad(path), mt.load_model("demo", device="cpu"))
    donor = adata.obs["donor_age"].astype(str).to_numpy()
    adata.obs["donor"], adata.obs["years"] = donor, adata.obs["donor_age"].astype(int)
    return cross_validate(
        adata,
        [np.array([name]) for name in np.unique(donor)],
        donor,
        name="pancreas acinar cells, leave one donor out",
        contexts="train",
        n_prompts=300,
        donor_key="donor",
        time_key="years",
        time_unit="years",
        groupby=[],
        context_size=(1, 3),
        max_steps=120,
        batch_size=16,
        **FINE_TUNING,
    )


def megatron(*folders: str) -> list[dict]:
    """Checkpoints written by Megatron-core against its own logits."""
    import torch
    from safetensors.torch import load_file

    rows = []
    for folder in map(Path, folders):
        config = yaml.safe_load((folder / "context" / "model.yaml").read_text())["config"]
        names = [f"ENSG{i:011d}" for i in range(config["vocab_size"] - 4)]
        tokens = {token: i for i, token in enumerate(["<pad>", "<mask>", "<bos>", "<eos>", *names])}
        vocab = mt.models.Vocabulary(tokens, dict.fromkeys(names, 1.0))
        reference = load_file(folder / "reference_logits.safetensors")
        model = mt.models.from_megatron(folder, vocab=vocab)
        with tempfile.TemporaryDirectory() as written:
            mt.models.to_megatron(model, Path(written) / "copy")
            again = mt.models.from_megatron(Path(written) / "copy", vocab=vocab)
        with torch.inference_mode():
            logits = model.hf(reference["input_ids"]).logits[:, ::10]
        same = all(
            torch.equal(weight, again.hf.state_dict()[name]) for name, weight in model.hf.state_dict().items()
        )
        largest = (logits - reference["logits"]).abs().max().item()
        rows.append(
            {"checkpoint": folder.name, "largest_logit_difference": largest, "round_trip_exact": same}
        )
    return rows


PARTS = {f.__name__: f for f in (planted, myoblasts, onek1k, pancreas, megatron)}


def main() -> None:
    """Run one part and write it beside the others."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("paths", nargs="*")
    arguments = parser.parse_args()
    start = time.time()
    rows = PARTS[arguments.part](*arguments.paths)
    minutes = round((time.time() - start) / 60, 1)
    path = report.RESULTS / "temporal.json"
    parts = json.loads(path.read_text())["parts"] if path.is_file() else {}
    parts[arguments.part] = {"minutes": minutes, "environment": report.environment(), "rows": rows}
    report.write("temporal", rows, model_sha256=mt.load_model("demo", device="cpu").sha256, parts=parts)


if __name__ == "__main__":
    main()
