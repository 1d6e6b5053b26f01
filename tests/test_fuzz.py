"""Wrong inputs are refused in one clear line, and nothing is lost: the inputs of benchmarks/fuzz.py."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork"),
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def fuzz():
    spec = importlib.util.spec_from_file_location("fuzz", ROOT / "benchmarks" / "fuzz.py")
    module = sys.modules["fuzz"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["fuzz"]


def rates(fuzz, chosen, world):
    """Rows that were not clear, and the counts."""
    rows = list(fuzz.try_inputs(chosen, world))
    assert len(rows) == len(chosen)
    unclear = [(row["outcome"], row["input"], row["said"]) for row in rows if row["outcome"] != "clear"]
    return unclear, fuzz.count(rows)[-1]


def test_a_sample_is_refused_clearly(fuzz, tmp_path):
    """Arguments alone: those need no results."""
    world = fuzz.World(tmp_path, results=False)
    chosen = [
        one for one in fuzz.signature_inputs() if one.must_refuse and one.kind in ("type", "name", "missing")
    ]
    unclear, found = rates(fuzz, chosen[::12], world)
    assert found["clear_share"] >= 0.98, unclear
    assert found["loss"] == found["crash"] == 0, unclear


@pytest.mark.slow
def test_every_kind_is_refused_clearly(fuzz, tmp_path):
    """One in twenty of all; the whole takes a quarter of an hour."""
    world = fuzz.World(tmp_path)
    every = list(fuzz.inputs(world))
    assert len(every) >= 1000
    unclear, found = rates(fuzz, every[::20], world)
    # 98% alone; behind other tests in one process, libraries add a SystemError or two.
    assert found["clear_share"] >= 0.96, unclear
    assert found["loss"] == found["crash"] == 0, unclear
