"""Attention statistics of a long prompt, beside holding the whole attention matrix.

    python benchmarks/attention.py                    # 217M shape, 16,384 tokens, on the CPU: some minutes
    python benchmarks/attention.py --device cuda

The baseline keeps the attention matrices of all layers, as transformers returns them; where they would not fit, its
memory is what they take by their size. On a short prompt both have to agree. Extra memory is the peak above
that of a plain forward pass. Adds a row to `results/attention.json`.
"""

from __future__ import annotations

import sys
from pathlib import Path

# This folder must not come first on the path: its tokenize.py would pass for Python's own.
sys.path[0] = str(Path(__file__).parents[1])

import argparse
import multiprocessing
import resource

import numpy as np
import torch

from benchmarks import report
from benchmarks.workload import Timer, random_cells, temporal_model
from maxtoki_toolkit.models.attention import attention_statistics

SHORT = 512


def peak(way: str, shape: str, device: str, length: int) -> tuple[float, float]:
    """Peak memory in bytes and seconds of one way, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (way, shape, device, length))


def prompt(length: int) -> np.ndarray:
    """Cells until the length is reached."""
    return np.concatenate(random_cells(length // 3600 + 1, 4000))[:length]


def _peak(way: str, shape: str, device: str, length: int) -> tuple[float, float]:
    model = temporal_model(shape, device=device, dtype="float32")
    tokens = prompt(length)
    with Timer(device) as timer, torch.inference_mode():
        if way == "statistics":
            attention_statistics(model, tokens, np.eye(4)[np.arange(length) % 4])
        else:
            model.hf.model(input_ids=torch.from_numpy(tokens)[None].to(device), use_cache=False)
    if device == "cuda":
        return torch.cuda.max_memory_allocated(), timer.seconds
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, timer.seconds


def disagreement(shape: str, device: str) -> float:
    """Largest difference from eager attention, in what a token receives, relative to the largest."""
    model = temporal_model(shape, device=device, dtype="float32")
    tokens = prompt(SHORT)
    found = attention_statistics(model, tokens)
    model.hf.set_attn_implementation("eager")
    with torch.inference_mode():
        inputs = torch.from_numpy(tokens)[None].to(device)
        eager = model.hf.model(input_ids=inputs, use_cache=False, output_attentions=True).attentions
    expected = torch.stack(eager)[:, 0].sum(dim=2).cpu().numpy()
    return float(np.abs(found.received - expected).max() / np.abs(expected).max())


def main() -> None:
    """Measure memory and time."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", default="217m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--length", type=int, default=16_384)
    a = parser.parse_args()
    plain, plain_seconds = peak("plain", a.shape, a.device, a.length)
    ours, seconds = peak("statistics", a.shape, a.device, a.length)
    config = temporal_model(a.shape, device="cpu", dtype="float32").hf.config
    matrices = 4 * config.num_hidden_layers * config.num_attention_heads * a.length**2
    report.add(
        "attention",
        [
            {"way": "all attention matrices, by their size", "peak extra memory, MB": round(matrices / 1e6)},
            {
                "way": "attention_statistics",
                "peak extra memory, MB": round(max(ours - plain, 0) / 1e6),
                "speed-up over the baseline": round(matrices / max(ours - plain, 1)),
                "seconds": round(seconds),
                "seconds of a plain forward pass": round(plain_seconds),
            },
        ],
        case=f"{a.shape}, float32, {a.device}",
        device=a.device,
        tokens=a.length,
        largest_relative_difference_from_eager=disagreement(a.shape, a.device),
    )


if __name__ == "__main__":
    main()
