"""From files to files: many cells through a one-layer model in flat memory, and the demo model beside a plain transformers loop.

python benchmarks/files.py                                 # about 10 minutes of CPU
"""

from __future__ import annotations

import sys
from pathlib import Path

# This folder must not come first on the path: its tokenize.py would pass for Python's own.
sys.path[0] = str(Path(__file__).parents[1])

import argparse
import dataclasses
import json
import os
import subprocess
import tempfile
import threading
import time

import numpy as np
import pandas as pd
import torch

import maxtoki_toolkit as mt
from benchmarks import report
from maxtoki_toolkit import batch
from maxtoki_toolkit.models.sequences import Sequences, pad
from maxtoki_toolkit.models.timelapse import read_lapses

_BATCH = 8  # prompts that the plain loop reads at a time


def clock_of(cells) -> mt.models.MaxTokiModel:
    """A model of one layer that has learned nothing, and reads cells of 30 genes."""
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vocab = mt.models.Vocabulary.from_anndata(cells)
    small = mt.models.build_model({**shape, "max_position_embeddings": 32}, vocab)
    longer = mt.models.extend_model(small, vocab.with_times(-900, 900), max_length=128)
    return dataclasses.replace(longer, time_head=mt.models.TimeHead("expectation"))


def resident() -> float:
    """Memory of the process beyond files that are mapped, in MB."""
    text = Path("/proc/self/status").read_text()
    return int(text.split("RssAnon:")[1].split()[0]) / 1e3


class Memory:
    """The largest `resident`, looked at while the process works."""

    def __enter__(self) -> Memory:
        self.peak, self.going = 0.0, True
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while self.going:
            self.peak = max(self.peak, resident())
            time.sleep(0.05)

    def __exit__(self, *_) -> None:
        self.going = False
        self.thread.join()


def paragraphs(model, folder: Path, n: int, *, n_genes: int) -> Path:
    """Prompts of two cells each, of simulated cells."""
    cells = mt.datasets.aging_atlas(2000, 20, n_genes=n_genes)
    mt.pp.rank_value_encode(cells, model)
    one = {"n_prompts": n, "context_size": (1, 1), "donor_key": "donor_id"}
    mt.pp.sample_prompts(cells, time_key="age_months", groupby="cell_type", **one)
    mt.pp.write_paragraphs(cells, model, output=folder / "paragraphs")
    return folder / "paragraphs"


def small_clock() -> mt.models.MaxTokiModel:
    """The model of the plumbing."""
    atlas = mt.datasets.aging_atlas(200, 10, n_genes=500)
    mt.pp.map_genes(atlas)
    return clock_of(atlas)


def draw(n: int, folder: Path) -> list:
    """Write what the plumbing reads."""
    paragraphs(small_clock(), folder, n, n_genes=500)
    return []


def plumbing(n: int, folder: Path) -> dict:
    """Speed and memory of `maxtoki predict` where the model costs next to nothing."""
    # Drawn in another process: what that takes stays with it.
    subprocess.run([sys.executable, __file__, "--stage", "draw", str(n), folder], check=True)
    path, model = folder / "paragraphs", small_clock()
    with Memory() as memory:
        before, begin = resident(), clocks()
        found = batch.predict_file(path, folder / "out", model, to="parquet")
        spent = clocks() - begin
    table = pd.read_parquet(found)
    assert table["prompt"].tolist() == list(range(n)), "rows are missing or misplaced"
    assert table["predicted"].notna().all()
    return {
        "job": "maxtoki predict, one layer",
        "prompts": n,
        "cells": 2 * n,
        "peak_mb": round(memory.peak),
        **rates(n, *spent),
        "parquet_mb": round(found.stat().st_size / 1e6, 1),
        "before_mb": round(before),
    }


def clocks() -> np.ndarray:
    """Time on the wall, and on a core."""
    return np.array([time.perf_counter(), time.process_time()])


def rates(n: int, wall: float, cpu: float) -> dict:
    """Cells a second, two of them a prompt, by the clock on the wall and by time on a core."""
    return {
        "cells_per_second": round(2 * n / wall, 1),
        "cells_per_cpu_second": round(2 * n / cpu, 1),
        "seconds": round(wall, 1),
    }


@torch.inference_mode()
def plain(model, prompts: Sequences) -> np.ndarray:
    """What one writes with transformers alone: batches in the order of the file, padded to the longest."""
    found = []
    for start in range(0, len(prompts), _BATCH):
        rows = np.arange(start, min(start + _BATCH, len(prompts)))
        ids = pad(prompts, rows, model.vocab["<pad>"])
        mask = torch.from_numpy(np.arange(ids.shape[1]) < prompts.lengths[rows][:, None])
        states = model.hf.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        last = states[torch.arange(len(rows)), torch.from_numpy(prompts.lengths[rows] - 1)]
        found.append(model.time_head(last, model.hf.lm_head, model.vocab).lapse.numpy())
    return np.concatenate(found)


def demo(n: int, folder: Path) -> list[dict]:
    """The demo model: `maxtoki predict`, and after each of its blocks the plain loop on the same prompts.

    In turns, so that what else the machine does weighs on both alike.
    """
    model = mt.load_model("demo", device="cpu")
    path = paragraphs(model, folder, n, n_genes=18_000)
    expected, spent = [], np.zeros(2)

    def read(model, prompts: Sequences):
        nonlocal spent
        found, begin = read_lapses(model, prompts), clocks()
        expected.append(plain(model, prompts))
        spent += clocks() - begin
        return found

    batch.read_lapses = read
    with Memory() as memory:
        begin = clocks()
        found = batch.predict_file(path, folder / "out", model, to="parquet")
        ours = clocks() - begin - spent
    table = pd.read_parquet(found)
    assert table["prompt"].tolist() == list(range(n)), "rows are missing or misplaced"
    apart = float(np.abs(table["predicted"].to_numpy() - np.concatenate(expected)).max())
    both = {"prompts": n, "cells": 2 * n}
    return [
        {
            **{"job": "maxtoki predict, demo", **both, "peak_mb": round(memory.peak), **rates(n, *ours)},
            **{"largest_difference": apart, "unit": model.time_head.unit},
        },
        {"job": f"transformers loop, demo, batches of {_BATCH}", **both, **rates(n, *spent)},
    ]


def alone(name: str, n: int) -> list[dict]:
    """Measure in a process of its own, so that memory is not that of what came before."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, __file__, "--stage", name, str(n), folder]
        text = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, env=os.environ).stdout
    rows = json.loads(text.strip().splitlines()[-1])
    return rows if isinstance(rows, list) else [rows]


def main() -> None:
    """Measure both, the first at two sizes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--plumbing", type=int, default=1_000_000)
    parser.add_argument("--demo", type=int, default=20_000)
    parser.add_argument("--stage", nargs=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    mt.settings.progress = False
    if arguments.stage:
        name, n, folder = arguments.stage
        print(json.dumps({"draw": draw, "plumbing": plumbing, "demo": demo}[name](int(n), Path(folder))))
        return
    # A prompt has two cells.
    n_plumbing, n_demo = arguments.plumbing // 2, arguments.demo // 2
    rows = [*alone("plumbing", max(n_plumbing // 10, 10)), *alone("plumbing", n_plumbing)]
    report.write("files", rows)  # what is there, if the rest is stopped
    rows += alone("demo", n_demo)
    report.write("files", rows, threads=1, load=round(os.getloadavg()[0], 1))


if __name__ == "__main__":
    main()
