"""What all benchmarks share: where they ran, a table on the screen, and JSON in `results/`."""

from __future__ import annotations

import datetime
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

import pandas as pd

RESULTS = Path(os.environ.get("BENCHMARK_RESULTS", Path(__file__).parent / "results"))


def environment(device: str = "cpu") -> dict:
    """Date, machine and versions."""
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    if device == "cuda":
        import torch

        device = torch.cuda.get_device_name()
    packages = ["maxtoki_toolkit", "torch", "transformers", "numpy", "scipy", "anndata"]
    return {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "device": device,
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def write(name: str, rows: list[dict], **facts) -> None:
    """Print the rows and write them, with the environment, to `results/{name}.json`."""
    print(pd.DataFrame(rows).to_string(index=False))
    RESULTS.mkdir(exist_ok=True)
    content = {"benchmark": name, "environment": environment(), **facts, "rows": rows}
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")


def add(name: str, rows: list[dict], *, case: str, device: str, **facts) -> None:
    """Print the rows and write them to `results/{name}.json` under the name of the case; the others stay."""
    print(pd.DataFrame(rows).to_string(index=False))
    path = RESULTS / f"{name}.json"
    cases = json.loads(path.read_text())["cases"] if path.is_file() else {}
    cases[case] = {"environment": environment(device), **facts, "rows": rows}
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps({"benchmark": name, "cases": cases}, indent=2) + "\n")
