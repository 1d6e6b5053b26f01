"""The doctor finds what is broken, and names nobody."""

import getpass
import json
import shutil
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

import maxtoki_toolkit as mt
from maxtoki_toolkit import _doctor, _manifests, cli

ROOT = Path(__file__).parents[1]


def rows(check):
    return {row[0]: row for row in _doctor._run("check", check)}


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["maxtoki", "doctor", *arguments])
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code or 0
    return code, capsys.readouterr().out


def test_every_check_is_made(monkeypatch):
    monkeypatch.setattr("maxtoki_toolkit.models.load.SHIPPED", ("demo",))
    table = mt.doctor()
    assert list(table.columns) == ["check", "status", "found", "advice"]
    assert set(table["check"]) >= {
        *("python", "packages", "extra notebook", "device", "threads", "memory", "cache", "working folder"),
        *("attention", "shipped data", "model demo", "jupyter kernel"),
    }
    assert set(table["status"]) <= {"ok", "slow", "broken"}
    broken = table[table["status"] == "broken"]
    assert broken.empty, broken.to_string()
    assert (table.loc[table["status"] == "slow", "advice"] != "").all()


def test_nobody_is_named(monkeypatch):
    monkeypatch.setattr(getpass, "getuser", lambda: "maria")
    monkeypatch.setattr(Path, "home", lambda: Path("/home/maria"))
    assert _doctor.anonymous("/home/maria/x and /scratch/maria/y") == "~/x and /scratch/USER/y"
    monkeypatch.setattr(mt.settings, "cache_dir", Path("/home/maria/.cache"))
    assert "maria" not in str(rows(_doctor._disk))


@pytest.mark.parametrize(("status", "expected"), [("ok", 0), ("slow", 0), ("broken", 1)])
def test_exit_code(status, expected, monkeypatch, capsys):
    monkeypatch.setattr(_doctor, "CHECKS", {"a": lambda: iter([("a", status, "found", "do this")])})
    code, out = run(monkeypatch, capsys)
    assert code == expected
    assert out.split() == [status, "a", "found", "do", "this"]
    code, out = run(monkeypatch, capsys, "--json")
    assert code == expected
    assert json.loads(out) == [{"check": "a", "status": status, "found": "found", "advice": "do this"}]


def test_packages_that_are_missing_or_old(monkeypatch):
    needed = ["numpy>=99", "not_there>=1", "scipy>=1", "peft>=99; extra == 'train'"]
    monkeypatch.setattr(metadata, "requires", lambda name: needed)
    found = rows(_doctor._packages)
    assert found["packages"][1] == "broken"
    assert '"numpy>=99" "not_there>=1"' in found["packages"][3]
    assert "scipy" not in found["packages"][3]
    # What is optional breaks nothing.
    assert found["extra train"][1] == "ok"
    assert "peft>=99" in found["extra train"][2]


def test_threads(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8), raising=False)
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    assert "There are 8 cores" in rows(_doctor._threads)["threads"][3]
    monkeypatch.setattr("torch.get_num_threads", lambda: 6)
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    assert "NUMBA_NUM_THREADS is not set" in rows(_doctor._threads)["threads"][3]
    monkeypatch.setenv("NUMBA_NUM_THREADS", "6")
    assert rows(_doctor._threads)["threads"][1] == "ok"


def test_old_python(monkeypatch):
    monkeypatch.setattr("platform.python_version", lambda: "3.9.1")
    assert rows(_doctor._python)["python"][1] == "broken"


def test_damaged_data(tmp_path, monkeypatch):
    real = _manifests.resource

    def damaged(name):
        if not name.startswith("human_tfs"):
            return real(name)
        (tmp_path / name).write_text("cut")
        return tmp_path / name

    monkeypatch.setattr(_manifests, "resource", damaged)
    (row,) = rows(_doctor._data).values()
    assert row[1:3] == ("broken", "damaged: human_tfs")


def test_damaged_model(tmp_path, monkeypatch):
    from maxtoki_toolkit.models import load

    shutil.copytree(ROOT / "maxtoki_toolkit/resources/demo", tmp_path / "demo")
    with (tmp_path / "demo" / "model.safetensors").open("ab") as file:
        file.write(b"x")
    monkeypatch.setattr(load, "SHIPPED", ("demo",))
    monkeypatch.setattr(load, "resource", lambda name: tmp_path / name)
    assert rows(_doctor._models)["model demo"][1] == "broken"


def test_folders_that_cannot_be_used(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mt.settings, "cache_dir", tmp_path / "not" / "yet")
    monkeypatch.setattr(_doctor, "_writable", lambda folder: False)
    found = rows(_doctor._disk)
    assert found["cache"][1] == "broken"
    assert "MAXTOKI_CACHE" in found["cache"][3]
    monkeypatch.undo()
    monkeypatch.setattr(mt.settings, "cache_dir", tmp_path / "not" / "yet")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**30))
    assert rows(_doctor._disk)["cache"][1] == "slow"
    assert list(tmp_path.iterdir()) == []


def test_a_check_that_cannot_be_made_is_broken():
    def fails():
        raise RuntimeError("no driver")
        yield

    (row,) = _doctor._run("device", fails)
    assert row[:3] == ("device", "broken", "RuntimeError: no driver")


def test_another_python_behind_the_kernel(tmp_path, monkeypatch):
    from jupyter_client.kernelspec import KernelSpecManager

    other = tmp_path / "python"
    other.write_text("")
    spec = SimpleNamespace(argv=[str(other)])
    monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", lambda self, name: spec)
    (row,) = rows(_doctor._jupyter).values()
    assert row[1] == "broken"
    assert "ipykernel install" in row[3]


def test_the_quoted_numbers_are_on_record():
    """The fastest way on the CPU, as the benchmarks left it."""
    for seconds, file in _doctor.MEASURED.values():
        case = json.loads((ROOT / "benchmarks/results" / file).read_text())["cases"]["217m, float32, cpu"]
        (unit,) = [key for key in case["rows"][-1] if key.startswith("seconds a")]
        assert case["rows"][-1][unit] == seconds
        assert case["environment"]["cores"] == 2


def test_it_is_part_of_the_package():
    assert "doctor" in dir(mt)
    assert mt.doctor is _doctor.doctor
