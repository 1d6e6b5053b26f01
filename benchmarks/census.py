"""A store as the Census is, of 200,000 simulated cells, to shards: cells a second, peak memory, killed and gone on with.

    python benchmarks/census.py [--cells 200000] [--path STORE, which is written if it is not there]

Real gene ids, the 28 columns of the Census, some 250 genes a cell. Each row runs in a process of its own; `tiledbsoma` alone
reads the same cells in the same blocks with the same buffers and does nothing with them.
"""

from __future__ import annotations

import sys
from pathlib import Path

# This folder must not come first on the path: the benchmark tokenize would pass for Python's own module.
sys.path[0] = str(Path(__file__).parents[1])

import argparse
import hashlib
import json
import os
import signal
import subprocess
import tempfile
import time

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

import maxtoki_toolkit as mt
from benchmarks import report
from benchmarks.tokenize import peak_mb
from maxtoki_toolkit._reference import gene_table

N_GENES, N_EXPRESSED = 20_000, 250
CELLS_PER_DONOR, PER_SHARD = 500, 16_384
WAYS = ("tiledbsoma alone", "census to shards")
# Terms and their ids, as in the Census.
TISSUES = {
    "blood": "UBERON:0000178",
    "brain": "UBERON:0000955",
    "heart": "UBERON:0000948",
    "kidney": "UBERON:0002113",
    "liver": "UBERON:0002107",
    "lung": "UBERON:0002048",
}
CELL_TYPES = {
    "T cell": "CL:0000084",
    "fibroblast": "CL:0000057",
    "macrophage": "CL:0000235",
    "malignant cell": "CL:0001064",
}
ASSAYS = {"10x 3' v2": "EFO:0009899", "10x 3' v3": "EFO:0009922", "Smart-seq2": "EFO:0008931"}
DISEASES = {"normal": "PATO:0000461", "COVID-19": "MONDO:0100096"}
SEXES = {"female": "PATO:0000383", "male": "PATO:0000384"}


def genes() -> list[str]:
    return gene_table()["ensembl_id"].drop_duplicates().head(N_GENES).tolist()


def vocabulary() -> mt.models.Vocabulary:
    """Real genes, with medians spread as the published ones are."""
    medians = np.exp(np.random.default_rng(1).normal(0.1, 0.8, N_GENES)).tolist()
    tokens = ["<pad>", "<mask>", "<bos>", "<eos>", *genes()]
    return mt.models.Vocabulary(
        {token: i for i, token in enumerate(tokens)}, dict(zip(genes(), medians, strict=True))
    )


def simulate(path: Path, n_cells: int) -> None:
    """Write a store with the columns of the Census."""
    import tiledbsoma.io

    rng = np.random.default_rng(0)
    lengths = rng.poisson(N_EXPRESSED, n_cells)
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    # Evenly over the genes, without repeats in a cell: each takes one gene of each of equal stretches.
    step = N_GENES / np.repeat(lengths, lengths)
    position = np.arange(len(step)) - np.repeat(indptr[:-1], lengths)
    indices = ((position + rng.random(len(step))) * step).astype(np.int32).clip(0, N_GENES - 1)
    counts = sp.csr_matrix(
        (rng.geometric(0.4, len(step)).astype(np.float32), indices, indptr), shape=(n_cells, N_GENES)
    )
    counts.sum_duplicates()
    donor = np.arange(n_cells) // CELLS_PER_DONOR
    age = 20 + donor * 7 % 70
    nnz, total = np.diff(counts.indptr), np.asarray(counts.sum(axis=1)).ravel()

    def drawn(
        terms: dict[str, str], name: str, p: list[float] | None = None, of: np.ndarray | None = None
    ) -> dict:
        code = rng.choice(len(terms), n_cells, p=p) if of is None else of % len(terms)
        return {
            name: pd.Categorical.from_codes(code, list(terms)),
            f"{name}_ontology_term_id": pd.Categorical.from_codes(code, list(terms.values())),
        }

    obs = {
        "dataset_id": pd.Categorical([f"{n:08x}-0000-4000-8000-000000000000" for n in donor // 20]),
        **drawn(ASSAYS, "assay", [0.4, 0.55, 0.05]),
        **drawn(CELL_TYPES, "cell_type", [0.4, 0.3, 0.28, 0.02]),
        "development_stage": pd.Categorical([f"{a}-year-old stage" for a in age]),
        "development_stage_ontology_term_id": pd.Categorical([f"HsapDv:{94 + a:07d}" for a in age]),
        **drawn(DISEASES, "disease", [0.95, 0.05]),
        "donor_id": pd.Categorical([f"D{n % 20}" for n in donor]),
        "is_primary_data": rng.random(n_cells) < 0.95,
        "observation_joinid": [hashlib.md5(str(i).encode()).hexdigest()[:10] for i in range(n_cells)],
        **drawn({"unknown": "unknown", "European": "HANCESTRO:0005"}, "self_reported_ethnicity"),
        **drawn(SEXES, "sex", of=donor),
        "suspension_type": pd.Categorical(rng.choice(["cell", "nucleus"], n_cells)),
        **drawn(TISSUES, "tissue", of=donor),
        "tissue_type": pd.Categorical(np.where(rng.random(n_cells) < 0.98, "tissue", "organoid")),
        **drawn(TISSUES, "tissue_general", of=donor),
        "raw_sum": total.astype(float),
        "nnz": nnz,
        "raw_mean_nnz": total / nnz,
        "raw_variance_nnz": rng.random(n_cells),
        "n_measured_vars": np.full(n_cells, N_GENES),
    }
    table = pd.DataFrame(obs, index=[str(i) for i in range(n_cells)])
    var = pd.DataFrame({"feature_id": genes()}, index=[str(i) for i in range(N_GENES)])
    with_names = {"measurement_name": "RNA", "X_layer_name": "raw"}
    tiledbsoma.io.from_anndata(str(path), anndata.AnnData(counts, obs=table, var=var), **with_names)


def clocks() -> np.ndarray:
    """Seconds on the wall and of the processor: other work on the machine only ever slows the first."""
    return np.array([time.perf_counter(), time.process_time()])


def read_alone(path: Path, value_filter: str) -> tuple[int, np.ndarray]:
    """The same cells, by the engine's own iterator; their number and the seconds it took."""
    from maxtoki_toolkit.datasets._census import _CELLS, _VALUES, genes_per_cell, select
    from maxtoki_toolkit.pp._soma import open_experiment, read_cells_of

    n_read = 0
    with open_experiment(path, "homo_sapiens") as experiment:
        recipe = mt.datasets.CorpusRecipe()
        joinids = select(experiment, value_filter, recipe).joinids
        start = clocks()
        chunk_size = int(np.clip(_VALUES // genes_per_cell(experiment, joinids, recipe), *_CELLS))
        for first in range(0, len(joinids), PER_SHARD):
            _, blocks = read_cells_of(
                experiment, joinids[first : first + PER_SHARD], "RNA", "raw", chunk_size
            )
            n_read += sum(block.shape[0] for block in blocks)
    return n_read, clocks() - start


def measure(way: str, path: Path, output: Path, n_cells: int) -> dict:
    """One row, in this process."""
    mt.settings.progress = False
    value_filter = f"soma_joinid < {n_cells}"
    begun = peak_mb()
    if way == WAYS[0]:
        n_written, seconds = read_alone(path, value_filter)
        selecting = np.full(2, np.nan)
    else:
        vocab = vocabulary()
        import tiledbsoma  # noqa: F401 - loading takes as long as selecting

        import maxtoki_toolkit.pp  # noqa: F401

        start = clocks()
        mt.datasets.census_plan(path, value_filter=value_filter)
        selecting = clocks() - start
        shards = mt.datasets.census(
            output, vocab, store=path, value_filter=value_filter, cells_per_shard=PER_SHARD
        )
        n_written, seconds = int(shards["n_cells"].sum()), clocks() - start - selecting
    return {
        "way": way,
        "cells_in_the_store": n_cells,
        "cells": n_written,
        "seconds_to_select": None if np.isnan(selecting[0]) else round(selecting[0], 1),
        "cells_per_second": round(n_written / seconds[0]),
        "cells_per_processor_second": round(n_written / seconds[1]),
        "memory_at_start_mb": round(begun),
        "peak_memory_mb": round(peak_mb()),
    }


def digests(folder: Path) -> dict[str, str]:
    """Checksums of the shards."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.glob("shards/[0-9]*.h5ad"))
    }


def kill_and_go_on(command: list[str], output: Path) -> int:
    """Kill a run after its first shards, run it to the end; return how many shards there were."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and len(digests(output)) < 2:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    n_there = len(digests(output))
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return n_there


def main() -> None:
    """Write the store, run all rows, report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cells", type=int, default=200_000)
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--path", type=Path)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(measure(arguments.way, arguments.path, arguments.output, arguments.cells)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.path or Path(folder) / "store"
        if not path.exists():
            simulate(path, arguments.cells)
        rows = []

        def command(way: str, n_cells: int, output: str) -> list[str]:
            given = ["--way", way, "--path", path, "--cells", n_cells, "--output", Path(folder) / output]
            return [sys.executable, __file__, *map(str, given)]

        for n_cells in (arguments.cells // 4, arguments.cells):
            for way in WAYS:
                found = subprocess.run(
                    command(way, n_cells, f"corpus{n_cells}"), capture_output=True, text=True, check=True
                )
                rows.append(json.loads(found.stdout.splitlines()[-1]))
                print(rows[-1], flush=True)
            for unit in ("second", "processor_second"):
                ratio = rows[-1][f"cells_per_{unit}"] / rows[-2][f"cells_per_{unit}"]
                rows[-1][f"of_reading_alone_per_{unit}"] = round(ratio, 2)
        whole = digests(Path(folder) / f"corpus{arguments.cells}")
        n_kept = kill_and_go_on(command(WAYS[1], arguments.cells, "killed"), Path(folder) / "killed")
        again = digests(Path(folder) / "killed")
    if list(whole.values()) != list(again.values()):
        raise SystemExit("Killed and gone on with, it gave other shards.")
    import tiledbsoma

    report.write(
        "census",
        rows,
        threads=mt.settings.n_jobs,
        tiledbsoma=tiledbsoma.__version__,
        expressed_genes=N_EXPRESSED,
        shards=len(whole),
        shards_when_killed=n_kept,
        same_shards_after=True,
    )


if __name__ == "__main__":
    main()
