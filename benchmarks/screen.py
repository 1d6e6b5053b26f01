"""A screen: one gene at a time taken out of query cells that share a context, beside one forward pass each.

    python benchmarks/screen.py --n-cells 2         # 217M shape on the CPU, some minutes
    python benchmarks/screen.py --device cuda --dtype bfloat16 --n-genes 1000

The baseline is timed on some of the prompts, whose answers have to agree. Adds a row to `results/screen.json`.
"""

from __future__ import annotations

import sys
from pathlib import Path

# This folder must not come first on the path: its tokenize.py would pass for Python's own.
sys.path[0] = str(Path(__file__).parents[1])

import argparse

import numpy as np

from benchmarks import report
from benchmarks.inference import baseline
from benchmarks.workload import Timer, prompts, random_cells, temporal_model
from maxtoki_toolkit.models.timelapse import read_lapses


def main() -> None:
    """Time both ways."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", default="217m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--n-cells", type=int, default=20)
    parser.add_argument("--n-edits", type=int, default=200)
    parser.add_argument("--n-genes", type=int, default=250)
    parser.add_argument("--padded", type=int, default=2048, help="the original's default sequence length")
    parser.add_argument("--n-baseline", type=int, default=10, help="prompts that the baseline is timed on")
    a = parser.parse_args()
    model = temporal_model(a.shape, device=a.device, dtype=a.dtype)
    context, cells = random_cells(3, a.n_genes), random_cells(a.n_cells, a.n_genes, seed=1)
    rng = np.random.default_rng(2)
    edited = []
    for cell in cells:
        genes = rng.permutation(np.arange(1, len(cell) - 1))[: a.n_edits]
        edited += [cell, *(np.delete(cell, gene) for gene in genes)]
    sequences = prompts([context] * len(edited), edited, model.vocab)
    rows = np.linspace(0, len(edited) - 1, a.n_baseline).astype(int)
    baseline(model, sequences, rows[:1], 0)
    with Timer(a.device) as padded:
        baseline(model, sequences, rows[::2], a.padded)
    with Timer(a.device) as plain:
        expected = baseline(model, sequences, rows, 0)
    with Timer(a.device) as ours:
        lapses, _ = read_lapses(model, sequences)
    difference = np.abs(lapses[rows] - expected).max() / np.abs(expected).max()
    first = padded.seconds / len(rows[::2])
    seconds = {
        f"one forward each, padded to {a.padded}, all logits": first,
        "one forward each, not padded, all logits": plain.seconds / a.n_baseline,
        "mt.tl.predict_timelapse": ours.seconds / len(edited),
    }
    report.add(
        "screen",
        [
            {
                "way": way,
                "seconds a prompt": round(value, 4),
                "speed-up over the baseline": round(first / value, 1),
                "largest relative difference": float(f"{difference:.1e}"),
            }
            for way, value in seconds.items()
        ],
        case=f"{a.shape}, {a.dtype}, {a.device}",
        device=a.device,
        prompts=f"{a.n_edits} edits of {a.n_cells} cells, one context of 3 cells, {a.n_genes} genes a cell",
        tokens_a_prompt=int(sequences.lengths.mean()),
    )


if __name__ == "__main__":
    main()
