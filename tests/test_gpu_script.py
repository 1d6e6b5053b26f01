"""The script for a GPU, rehearsed on a CPU at toy size."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import maxtoki_toolkit as mt

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_rehearsal_trains_and_measures(tmp_path):
    out = tmp_path / "out"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    run = subprocess.run(
        ["bash", "benchmarks/gpu.sh", "--rehearse"],
        cwd=ROOT,
        env=os.environ | {"OUT": str(out), "PATH": path},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    # What comes back: at most eight files of 16 MiB that matter, and each model can be loaded.
    for name, folder in [("demo.tar", "demo_model"), ("demo_cells.tar", "demo_cells")]:
        with tarfile.open(out / name) as packed:
            packed.extractall(tmp_path, filter="data")
        model = mt.load_model(tmp_path / folder, device="cpu")
        assert model.is_temporal
        assert model.cell_length == 64
    with tarfile.open(out / "results.tar") as packed:
        assert "./inference.json" in packed.getnames()
    assert len(list(out.iterdir())) <= 8
    assert all(path.stat().st_size < 16 << 20 for path in out.iterdir())
