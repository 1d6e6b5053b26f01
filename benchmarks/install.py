"""How long does it take from nothing to a figure, and how large is it?

    python benchmarks/install.py

Runs the README's first command in a copy of this checkout, with an empty home directory and no cache of pip's, in its two halves. What pip downloads
comes from the index that is set up for it, so its share depends on the line. Written to `results/install.json`.
"""

from __future__ import annotations

import sys
from pathlib import Path

# This folder must not come first on the path: its tokenize.py would pass for Python's own.
sys.path[0] = str(Path(__file__).parents[1])

import os
import re
import subprocess
import tempfile
import time

from benchmarks import report

ROOT = Path(__file__).parents[1]


def command() -> tuple[str, str]:
    """The README's first command: what installs, and what runs."""
    block = re.search(r"<!-- demo -->\n```bash\n(.*?)\n```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block, "the README has lost its first command"
    install, run = block[1].rsplit(" && ", 1)
    return install, run


def timed(line: str, folder: Path, home: Path) -> float:
    """Seconds of a command."""
    environment = {"HOME": str(home), "PATH": "/usr/local/bin:/usr/bin:/bin"}
    # Where packages come from is the machine's business.
    environment |= {key: value for key, value in os.environ.items() if key.startswith("PIP_")}
    environment |= {"PIP_NO_CACHE_DIR": "1", "MAXTOKI_PROGRESS": "0"}
    start = time.perf_counter()
    subprocess.run(["bash", "-euc", line], cwd=folder, env=environment, check=True)
    return time.perf_counter() - start


def size(folder: Path) -> float:
    """Megabytes of the files in a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def main() -> None:
    """Install, run, import."""
    with tempfile.TemporaryDirectory() as temporary:
        home, copy = Path(temporary) / "home", Path(temporary) / "maxtoki_toolkit"
        home.mkdir()
        subprocess.run(["git", "clone", "-q", str(ROOT), str(copy)], check=True)
        install, run = command()
        row = {"install_seconds": timed(install, copy, home)}
        row["installed_megabytes"] = size(copy / ".venv")
        row["demo_seconds"] = timed(run, copy, home)
        starts = [timed(".venv/bin/python -c 'import maxtoki_toolkit'", copy, home) for _ in range(5)]
        row["import_seconds"] = min(starts)
    report.write("install", [row])


if __name__ == "__main__":
    main()
