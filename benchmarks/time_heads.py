"""Which time head trains best? The same small model, cells and steps, with each published form and ours.

    python benchmarks/time_heads.py        # forty minutes on one core

Writes `results/time_heads.json`: held-out donors of the planted atlas, two seeds each.
"""

from __future__ import annotations

import sys
from pathlib import Path

# This folder must not come first on the path: its tokenize.py would pass for Python's own.
sys.path[0] = str(Path(__file__).parents[1])

import json
import tempfile
import time

import maxtoki_toolkit as mt
from benchmarks import report

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 66,
    "initializer_range": 0.05,
}
# 1,000 months is the longest lapse that has a token.
HEADS = {
    "linear, scale of the lapses": {"head": "linear"},
    "linear, authors' fine-tuning code (raw months, error / 100)": {
        "head": "linear",
        "scale": 1.0,
        "loss_scale": 100.0,
    },
    "expectation, tokens and lapses on one scale": {"head": "expectation"},
    "expectation, cross entropy": {"head": "expectation", "loss": "ce"},
    "expectation, original (lapse / 200 against face values, penalty 10)": {
        "head": "expectation",
        "scale": 200.0,
        "loss_scale": 200.0,
        "penalty": 10.0,
    },
}


def main() -> None:
    """Train each head twice."""
    atlas = mt.datasets.aging_atlas(30_000, 1000, n_genes=800, seed=5)
    atlas = atlas[atlas.obs["condition"] == "control"].copy()
    ageing = atlas.uns["truth"]["age_genes"]["cell_type"].unique()
    atlas = atlas[atlas.obs["cell_type"].isin(ageing)].copy()
    mt.pp.map_genes(atlas)
    vocab = mt.models.Vocabulary.from_anndata(atlas)
    mt.pp.rank_value_encode(atlas, vocab)
    mt.pp.hold_out(atlas, donor_key="donor_id", time_key="age_months", donors=0.1)
    rows = []
    for name, head in HEADS.items():
        for seed in (0, 1):
            model = mt.models.build_model(SHAPE, vocab, seed=seed)
            start = time.time()
            with tempfile.TemporaryDirectory() as folder:
                mt.train.temporal(
                    atlas,
                    model,
                    folder,
                    time_key="age_months",
                    groupby="cell_type",
                    use="train",
                    held_out="held_out_donors",
                    recipe=mt.train.TemporalRecipe.of(
                        lapses=(-1000, 1000),
                        max_length=512,
                        context_size=(1, 2),
                        timelapse=1.0,
                        curriculum=0.5,
                        max_steps=900,
                        batch_size=32,
                        learning_rate=2e-3,
                        warmup=0.05,
                        n_held_out=1000,
                        eval_every=300,
                        device="cpu",
                        seed=seed,
                        **head,
                    ),
                )
                log = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
            seconds = time.time() - start
            for entry in log:
                if "eval_r" in entry:
                    measures = {
                        k.removeprefix("eval_"): round(v, 3) for k, v in entry.items() if "month" in k
                    }
                    rows.append(
                        {
                            "head": name,
                            "seed": seed,
                            "step": entry["step"],
                            "r": round(entry["eval_r"], 3),
                            "slope": round(entry["eval_slope"], 3),
                            **measures,
                            "seconds": round(seconds),
                        }
                    )
            print(rows[-1], flush=True)
    report.write("time_heads", rows)


if __name__ == "__main__":
    main()
