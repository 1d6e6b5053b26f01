"""Runs every notebook and tutorial by papermill; fails if one fails, draws less than its .ipynb, or numbers without saying of what.

python .ci/notebooks.py FOLDER          with the parameters of .ci/quick.yaml
python .ci/notebooks.py FOLDER --full   with their defaults, as the .ipynb were made
"""

import argparse
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import kernels
import nbformat
import yaml

ROOT = Path(__file__).parents[1]
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", type=lambda name: Path(name).resolve())
parser.add_argument("--full", action="store_true")
args = parser.parse_args()
args.folder.mkdir(parents=True, exist_ok=True)
AXES = args.folder / "axes.jsonl"
# A unit stands in parentheses; or the label says that it is a number without one.
UNIT = re.compile(
    r"\(.+\)|standard deviations|predicted on true|\bt of|log2|log10|share|correlation|precision|recall|probability|specificity|F1|AUROC|activation|\br of|slope of|[Pp]seudotime|"
    r"\b(loss|spread|level|nearer|layer|head|blocks|steps?|ranks?|parameters|FLOPs|cells|genes|features?|donors|patients)\b"
)
AXES.unlink(missing_ok=True)
os.environ |= {"IPYTHONDIR": str(ROOT / ".ci" / "ipython"), "MAXTOKI_AXES": str(AXES)}

import maxtoki_toolkit as mt  # noqa: E402


def shown(path):
    """Kinds of what a notebook shows, figure by figure and table by table."""
    cells = nbformat.read(path, as_version=4).cells
    outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    return [kind for data in outputs for kind in ("image/png", "text/html") if kind in data]


sockets = tempfile.TemporaryDirectory()  # their names are limited to a hundred letters
server = kernels.start(Path(sockets.name))
quick = yaml.safe_load((ROOT / ".ci" / "quick.yaml").read_text(encoding="utf-8"))
wrong = []
start = time.monotonic()
for path in sorted(ROOT.glob("notebooks/*.ipynb")) + sorted(ROOT.glob("tutorials/*.ipynb")):
    begun, before = time.monotonic(), len(kernels.taken(Path(sockets.name)))
    status = "done"
    try:
        made = mt.reports.run(path, args.folder / path.parent.name, **({} if args.full else quick[path.stem]))
        if shown(made) != shown(path):
            status = "shows other figures and tables than its .ipynb"
    except (RuntimeError, ValueError, OSError) as error:
        status = f"failed: {error}"
    cpu = sum(kernel["cpu"] for kernel in kernels.taken(Path(sockets.name))[before:])
    minutes = (time.monotonic() - begun) / 60
    print(f"{path.stem:36} {minutes:5.2f} minutes {cpu:5.0f} s of CPU  {status}", flush=True)
    if status != "done":
        wrong.append(path.stem)
minutes = (time.monotonic() - start) / 60
server.terminate()
peak = max((kernel["memory"] for kernel in kernels.taken(Path(sockets.name))), default=0) / 2**20
print(f"All figures in {minutes:.1f} minutes; the largest notebook took {peak:.1f} GB.")
drawn = [json.loads(line) for line in AXES.read_text(encoding="utf-8").splitlines()]
bare = sorted(
    {(Path(axis["output"]).name, axis["label"]) for axis in drawn if not UNIT.search(axis["label"])}
)
print(f"{len(drawn)} axes of numbers; without a unit: {bare or 'none'}.")
sys.exit(bool(wrong) or bool(bare) or peak > 6)
