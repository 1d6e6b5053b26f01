"""Generating whole cells, beside the baseline, which reads everything again for every gene.

    python benchmarks/generation.py                # 217M shape on the CPU, some minutes
    python benchmarks/generation.py --device cuda --dtype bfloat16 --n-genes 4094 --n-cells 256

The baseline is timed at some lengths on its way through one cell and integrated over all; the genes that it draws
there have to be the same. Adds a row to `results/generation.json`.
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
from maxtoki_toolkit.models.generation import generate_cells


@torch.inference_mode()
def next_gene(model, tokens: np.ndarray, n_open: int) -> int:
    """The likeliest gene that the open cell, the last `n_open` tokens, does not have."""
    logits = model.hf(torch.from_numpy(tokens.astype(np.int64))[None].to(model.device)).logits[0, -1].float()
    allowed = torch.full_like(logits, -torch.inf)
    allowed[torch.from_numpy(model.vocab.gene_ids)] = 0
    allowed[torch.from_numpy(tokens[len(tokens) - n_open :].astype(np.int64))] = -torch.inf
    return int((logits + allowed).argmax())


def main() -> None:
    """Time both ways."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", default="217m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--n-cells", type=int, default=16)
    parser.add_argument("--n-genes", type=int, default=512)
    parser.add_argument("--n-baseline", type=int, default=5, help="lengths that the baseline is timed at")
    a = parser.parse_args()
    model = temporal_model(a.shape, device=a.device, dtype=a.dtype)
    bos, boq, eoq = (model.vocab[mark] for mark in ("<bos>", "<boq>", "<eoq>"))
    contexts = random_cells(a.n_cells, a.n_genes)
    rows = [np.concatenate([cell, [boq, model.vocab.tokens[120], eoq, bos]]) for cell in contexts]
    sequences = to_sequences(rows)
    generate_cells(model, to_sequences(rows[:1]), max_genes=4, temperature=0)
    with Timer(a.device) as ours:
        found = generate_cells(model, sequences, max_genes=a.n_genes, temperature=0)
    n_written = int(found.sequences.lengths.sum()) - a.n_cells
    first = found.sequences.tokens[: found.sequences.lengths[0]]
    # Written tokens at which the baseline is timed, evenly over the cell.
    at = np.linspace(0, len(first) - 2, a.n_baseline).astype(int)
    same, times = [], []
    for n in at:
        tokens = np.concatenate([rows[0][:-1], first[: n + 1]])
        with Timer(a.device) as plain:
            gene = next_gene(model, tokens, n + 1)
        same.append(gene == first[n + 1])
        times.append(plain.seconds)
    seconds_a_cell = float(np.trapezoid(times, at))
    ours_a_cell = ours.seconds / a.n_cells
    report.add(
        "generation",
        [
            {
                "way": "no cache, one cell at a time",
                "seconds a cell": round(seconds_a_cell, 1),
                "speed-up over the baseline": 1.0,
            },
            {
                "way": "mt.tl.generate",
                "seconds a cell": round(ours_a_cell, 2),
                "speed-up over the baseline": round(seconds_a_cell / ours_a_cell),
                "tokens a second": round(n_written / ours.seconds),
            },
        ],
        case=f"{a.shape}, {a.dtype}, {a.device}",
        device=a.device,
        cells=f"{a.n_cells} cells of up to {a.n_genes} genes after one of as many",
        tokens_a_cell=n_written / a.n_cells,
        share_of_checked_genes_that_agree=float(np.mean(same)),
    )


if __name__ == "__main__":
    main()
