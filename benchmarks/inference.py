"""Reading time: many queries of one context, beside one padded forward pass each.

    python benchmarks/inference.py                               # 217M shape on the CPU, some minutes
    python benchmarks/inference.py --device cuda --dtype bfloat16 --n-genes 1000 --padded 4096

The baseline is the original's: every prompt is padded to the same length, and logits are computed for all
tokens. It is timed on some of the prompts, whose answers have to agree. Adds a row to `results/inference.json`.
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
from benchmarks.workload import Timer, prompts, random_cells, temporal_model
from maxtoki_toolkit.models.sequences import Sequences, pad
from maxtoki_toolkit.models.timelapse import read_lapses


@torch.inference_mode()
def baseline(model, sequences: Sequences, rows: np.ndarray, padded: int) -> np.ndarray:
    """One forward pass a prompt, padded, with the logits of all tokens."""
    lapses = []
    for row in rows:
        tokens = pad(sequences, np.array([row]), model.vocab["<pad>"]).to(model.device)
        length = tokens.shape[1]
        tokens = torch.nn.functional.pad(tokens, (0, max(padded - length, 0)), value=model.vocab["<pad>"])
        states = []
        hook = model.hf.model.register_forward_hook(
            lambda _m, _i, out, at=states: at.append(out.last_hidden_state)
        )
        model.hf(input_ids=tokens, use_cache=False)
        hook.remove()
        reading = model.time_head(states[0][:, length - 1], model.hf.lm_head, model.vocab)
        lapses.append(reading.lapse.item())
    return np.array(lapses)


def main() -> None:
    """Time both ways."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", default="217m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--n-queries", type=int, default=200)
    parser.add_argument("--n-genes", type=int, default=250)
    parser.add_argument("--padded", type=int, default=2048, help="the original's default sequence length")
    parser.add_argument("--n-baseline", type=int, default=5, help="prompts that the baseline is timed on")
    a = parser.parse_args()
    model = temporal_model(a.shape, device=a.device, dtype=a.dtype)
    context = random_cells(3, a.n_genes)
    sequences = prompts([context] * a.n_queries, random_cells(a.n_queries, a.n_genes, seed=1), model.vocab)
    rows = np.linspace(0, a.n_queries - 1, a.n_baseline).astype(int)
    baseline(model, sequences, rows[:1], a.padded)
    with Timer(a.device) as padded:
        expected = baseline(model, sequences, rows, a.padded)
    with Timer(a.device) as bare:
        baseline(model, sequences, rows, 0)
    with Timer(a.device) as ours:
        lapses, _ = read_lapses(model, sequences)
    difference = np.abs(lapses[rows] - expected).max() / np.abs(expected).max()
    seconds = {
        f"one forward each, padded to {a.padded}, all logits": padded.seconds / a.n_baseline,
        "one forward each, not padded, all logits": bare.seconds / a.n_baseline,
        "mt.tl.predict_timelapse": ours.seconds / a.n_queries,
    }
    first = padded.seconds / a.n_baseline
    report.add(
        "inference",
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
        prompts=f"{a.n_queries} queries, one context of 3 cells, {a.n_genes} genes a cell",
        tokens_a_prompt=int(sequences.lengths.mean()),
    )


if __name__ == "__main__":
    main()
