"""Training throughput: bf16, SDPA and batches of similar length, beside float32, eager attention and padding.

    python benchmarks/training.py                                 # a small shape on the CPU, some minutes
    python benchmarks/training.py --shape 217m --device cuda --n-genes 4000 --batch 16

Both ways take the same optimiser steps on the same cells, which differ in length as real ones do. Adds a row to
`results/training.json`.
"""

from __future__ import annotations

import sys
from pathlib import Path

# This folder must not come first on the path: its tokenize.py would pass for Python's own.
sys.path[0] = str(Path(__file__).parents[1])

import argparse

import numpy as np
import torch

from benchmarks import report
from benchmarks.workload import Timer, random_cells, temporal_model, to_sequences
from maxtoki_toolkit.models.costs import Shape, flops, peak_of
from maxtoki_toolkit.models.engine import token_batches
from maxtoki_toolkit.models.sequences import pad

SMALL = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "max_position_embeddings": 4096,
}


def train(model, cells, batches, width: int | None, *, bf16: bool, device: str) -> float:
    """Seconds of one optimiser step a batch; all rows are padded to `width`, or to the longest of their batch."""
    optimizer = torch.optim.AdamW(model.hf.parameters(), lr=1e-5)
    pad_id = model.vocab["<pad>"]

    def step(rows: np.ndarray) -> None:
        tokens = pad(cells, rows, pad_id)
        tokens = (
            torch.nn.functional.pad(tokens, (0, (width or 0) - tokens.shape[1]), value=pad_id)
            if width
            else tokens
        )
        tokens = tokens.to(device)
        labels = tokens.masked_fill(tokens == pad_id, -100)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=bf16):
            model.hf(input_ids=tokens, labels=labels, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step(batches[0])
    with Timer(device) as timer:
        for rows in batches:
            step(rows)
    return timer.seconds


def main() -> None:
    """Time both ways."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--n-cells", type=int, default=48)
    parser.add_argument(
        "--n-genes", type=int, default=700, help="most genes of a cell; the fewest are a quarter"
    )
    parser.add_argument("--batch", type=int, default=4, help="cells of the longest length in a batch")
    a = parser.parse_args()
    rng = np.random.default_rng(0)
    sizes = rng.integers(a.n_genes // 4, a.n_genes, a.n_cells)
    cells = to_sequences([random_cells(1, size, seed=i)[0] for i, size in enumerate(sizes)])
    width = int(cells.lengths.max())
    shape = SMALL if a.shape == "small" else a.shape
    ways = {
        "float32, eager attention, padded to the longest": {
            "attention": "eager",
            "bf16": False,
            "batches": np.array_split(rng.permutation(a.n_cells), a.n_cells // a.batch),
            "width": width,
        },
        "SDPA, batches of similar length": {
            "attention": "sdpa",
            "bf16": a.device != "cpu",
            "batches": token_batches(cells.lengths, a.batch * width),
            "width": None,
        },
    }
    rows, first = [], None
    for name, way in ways.items():
        model = temporal_model(shape, device=a.device, dtype="float32")
        model.hf.train()
        model.hf.set_attn_implementation(way["attention"])
        seconds = train(model, cells, way["batches"], way["width"], bf16=way["bf16"], device=a.device)
        rate = cells.lengths.sum() / seconds
        first = first or rate
        done = flops(Shape.of(model.hf.config), cells.lengths, training=True) / seconds
        row = {
            "way": f"{name}{', bf16' if way['bf16'] else ''}",
            "tokens a second": round(rate),
            "speed-up over the baseline": round(rate / first, 1),
            "TFLOP/s": round(done / 1e12, 3),
        }
        if a.device == "cuda":
            peak = peak_of(torch.cuda.get_device_name())
            row["share of bf16 peak"] = round(done / peak, 3) if peak else None
        rows.append(row)
        del model
    report.add(
        "training",
        rows,
        case=f"{a.shape}, {a.device}",
        device=a.device,
        cells=f"{a.n_cells} cells of {a.n_genes // 4} to {a.n_genes} genes",
    )


if __name__ == "__main__":
    main()
