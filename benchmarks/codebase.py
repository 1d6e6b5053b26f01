"""How large is the package, how is it written, and what does it ask of its callers, beside three others?

    python benchmarks/codebase.py

scanpy and decoupler are measured as they are installed here, sparsify from its wheel, which `pip download` fetches and nobody installs.
Written to `results/codebase.json`; `tables.py` makes the table of `docs/architecture.md` of it.

- Parameters: those in the signatures of public functions of `pp` and `tl`, the first (`adata`) among them; decoupler's methods (`mt`) are objects, and
  what they are called with counts; sparsify has no such folders, and all functions of its modules count.
- Comments, long lines and code: all `.py` files. Code is lines that hold something other than a comment, a docstring or nothing.
- Files of one analysis: files of the package with a function that runs during one call, without what runs as modules are imported; those of the network
  (`models/`) are counted again by themselves, as the others have none.
- Import: the fastest of five fresh interpreters, without their start.
"""

from __future__ import annotations

import sys
from pathlib import Path

# This folder must not come first on the path: its tokenize.py would pass for Python's own.
sys.path[0] = str(Path(__file__).parents[1])

import ast
import importlib
import inspect
import io
import statistics
import subprocess
import tempfile
import tokenize
import warnings
import zipfile
from collections.abc import Callable
from importlib.metadata import version

from benchmarks import report

MANY, LONG = 10, 110  # parameters of a function, characters of a line
IMPORTS = """
import time
start = time.perf_counter()
import {}
print(time.perf_counter() - start)
"""


def parameters(package, spaces: list[str]) -> dict[str, int]:
    """Number of parameters of each public function of some namespaces."""
    counts = {}
    for space in spaces:
        module = getattr(package, space)
        for name in vars(module).get("__all__") or dir(module):
            function = getattr(module, name)
            ours = (getattr(function, "__module__", None) or "").startswith(package.__name__)
            if name.startswith("_") or not callable(function) or inspect.isclass(function) or not ours:
                continue
            counts[f"{space}.{name}"] = len(inspect.signature(function).parameters)
    return counts


def written_parameters(folder: Path) -> dict[str, int]:
    """The same of all public functions of the modules in a folder, which are read and not imported."""
    counts = {}
    for path in folder.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                arguments = [part for part in ast.walk(node.args) if isinstance(part, ast.arg)]
                counts[f"{path.stem}.{node.name}"] = len(arguments)
    return counts


def docstring_lines(text: str) -> set[int]:
    """Numbers of the lines that docstrings take."""
    lines: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(getattr(first.value, "value", None), str):
                lines |= set(range(first.lineno, first.end_lineno + 1))
    return lines


def measure_lines(folder: Path) -> dict:
    """Lines of the Python files of a folder, by what they hold."""
    layout = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    files = sorted(folder.rglob("*.py"))
    total = comments = long = code = 0
    for path in files:
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        total += len(lines)
        long += sum(len(line) > LONG for line in lines)
        held: set[int] = set()
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            comments += token.type == tokenize.COMMENT
            if token.type not in layout | {tokenize.COMMENT}:
                held |= set(range(token.start[0], token.end[0] + 1))
        code += len(held - docstring_lines(text))
    return {
        "files": len(files),
        "code_lines": code,
        "comments_per_100_lines": 100 * comments / total,
        "share_of_long_lines": long / total,
    }


def files_of(call: Callable[[], object], folder: Path) -> list[str]:
    """Files of a folder of which a function runs during a call."""
    files: set[str] = set()
    importing = 0  # depth of modules that are being imported

    def watch(frame, event, _):
        nonlocal importing
        if event not in ("call", "return"):
            return
        if frame.f_code.co_name == "<module>":
            importing += 1 if event == "call" else -1
        elif not importing:
            files.add(frame.f_code.co_filename)

    sys.setprofile(watch)
    try:
        call()
    finally:
        sys.setprofile(None)
    inside = [Path(name) for name in files if Path(name).is_relative_to(folder)]
    return sorted(str(path.relative_to(folder)) for path in inside)


def age_acceleration() -> Callable[[], object]:
    """Ours: conditions of simulated donors, with the demo model, its statistics and its baselines."""
    import maxtoki_toolkit as mt

    adata, model = mt.datasets.aging_atlas(400, 40), mt.load_model("demo")
    mt.pp.map_genes(adata, model)
    mt.pp.rank_value_encode(adata, model)
    sampling = mt.tl.AgeSampling(n_cells=2, n_contexts=1)

    def call() -> None:
        mt.pp.match_ages(adata)
        mt.tl.age_acceleration(adata, model, sampling=sampling)

    return call


def rank_genes_groups() -> Callable[[], object]:
    """Of scanpy: its own small blood data."""
    import scanpy as sc

    adata = sc.datasets.pbmc68k_reduced()
    return lambda: sc.tl.rank_genes_groups(adata, "bulk_labels", method="wilcoxon")


def ulm() -> Callable[[], object]:
    """Of decoupler: its own toy data."""
    import decoupler as dc

    adata, net = dc.ds.toy(verbose=False)
    return lambda: dc.mt.ulm(adata, net, tmin=3)


# Package, its namespaces, and the analysis that is watched.
PACKAGES = {
    "maxtoki_toolkit": (["pp", "tl"], "mt.pp.match_ages, mt.tl.age_acceleration", age_acceleration),
    "scanpy": (["pp", "tl"], "sc.tl.rank_genes_groups", rank_genes_groups),
    "decoupler": (["pp", "tl", "mt"], "dc.mt.ulm", ulm),
}


def summary(counts: dict[str, int]) -> dict:
    """Parameters in short."""
    most = max(counts, key=counts.get)
    return {
        "public_functions": len(counts),
        "median_parameters": statistics.median(counts.values()),
        "most_parameters": counts[most],
        "function_with_most": most,
        "share_with_many": sum(n > MANY for n in counts.values()) / len(counts),
    }


def installed(name: str) -> dict:
    """All measures of a package that can be imported."""
    spaces, called, prepare = PACKAGES[name]
    package = importlib.import_module(name)
    folder = Path(package.__file__).parent
    files = files_of(prepare(), folder)
    command = [sys.executable, "-W", "ignore", "-c", IMPORTS.format(name)]
    seconds = [
        float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(5)
    ]
    return {
        "package": name,
        "version": version(name),
        **summary(parameters(package, spaces)),
        **measure_lines(folder),
        "analysis": called,
        "files_of_analysis": len(files),
        "files_of_network": sum(file.startswith("models/") for file in files),
        "which_files": files,
        "import_seconds": min(seconds),
    }


def downloaded(name: str, wheel: str) -> dict:
    """What can be measured of a package in its wheel."""
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
        subprocess.run([*command, "-d", temporary, wheel], check=True)
        (path,) = Path(temporary).glob("*.whl")
        with zipfile.ZipFile(path) as archive:
            archive.extractall(temporary)
        folder = Path(temporary) / name
        return {
            "package": name,
            "version": path.name.split("-")[1],
            **summary(written_parameters(folder)),
            **measure_lines(folder),
        }


def main() -> None:
    """Measure all four."""
    warnings.simplefilter("ignore")
    rows = [installed(name) for name in PACKAGES]
    rows.append(downloaded("sparsify", "eai-sparsify"))
    report.write("codebase", rows)


if __name__ == "__main__":
    main()
