"""Runs every notebook and tutorial by papermill with its defaults; fails if one fails, or draws numbers without saying of what.

python .ci/notebooks.py FOLDER
"""

import json
import os
import re
import resource
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = Path(sys.argv[1]).resolve()
FOLDER.mkdir(parents=True, exist_ok=True)
AXES = FOLDER / "axes.jsonl"
# A unit stands in parentheses; or the label says that it is a number without one.
UNIT = re.compile(
    r"\(.+\)|standard deviations|predicted on true|\bt of|log2|log10|share|correlation|precision|recall|probability|specificity|F1|\br of|slope of|"
    r"\b(loss|spread|level|nearer|layer|head|blocks|steps?|ranks?|parameters|FLOPs|cells|genes|donors|patients)\b"
)
AXES.unlink(missing_ok=True)
os.environ |= {"IPYTHONDIR": str(ROOT / ".ci" / "ipython"), "MAXTOKI_AXES": str(AXES)}

import maxtoki_toolkit as mt  # noqa: E402

start = time.monotonic()
table = mt.reports.run_all(None, FOLDER / "notebooks")
minutes = (time.monotonic() - start) / 60
print(table[["notebook", "status", "minutes", "why"]].to_string(index=False))
for path in sorted((ROOT / "tutorials").glob("*.ipynb")):
    begun = time.monotonic()
    mt.reports.run(path, FOLDER / "tutorials")
    print(f"{path.stem}: done in {(time.monotonic() - begun) / 60:.1f} minutes")
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
print(f"All figures in {minutes:.1f} minutes; the largest notebook took {peak:.1f} GB.")
drawn = [json.loads(line) for line in AXES.read_text(encoding="utf-8").splitlines()]
bare = sorted(
    {(Path(axis["output"]).name, axis["label"]) for axis in drawn if not UNIT.search(axis["label"])}
)
print(f"{len(drawn)} axes of numbers; without a unit: {bare or 'none'}.")
sys.exit(not set(table["status"]) <= {"done"} or bool(bare) or peak > 6)
