"""Build maxtoki_toolkit/resources/cell_ontology.csv.gz from the tables in the wheel of cellxgene-ontology-guide.

Run `pip download --no-deps cellxgene-ontology-guide==1.11.1` and then `python benchmarks/build_cell_ontology.py WHEEL
[TERMS]`, where TERMS (default: ../shared/data/census_terms.json beside the repository) lists the cell types in use in
the CELLxGENE Census. Prints what was kept, and the size and SHA-256 for data_manifests/. The same sources give the same
bytes.
"""

from __future__ import annotations

import sys
from pathlib import Path

# This folder must not come first on the path: its tokenize.py would pass for Python's own.
sys.path[0] = str(Path(__file__).parents[1])

import gzip
import json
import zipfile

import pandas as pd
from numcodecs import Zstd

from maxtoki_toolkit._files import atomic, sha256

REPOSITORY = Path(__file__).parents[1]
OUTPUT = REPOSITORY / "maxtoki_toolkit" / "resources" / "cell_ontology.csv.gz"
FOLDER, RELEASE = "cellxgene_ontology_guide/data/", "CL-ontology-v2026-03-26.json.zst"


def main(path: Path, terms: Path) -> None:
    used = set(json.loads(terms.read_text())["cell_type_ontology_term_id"])
    with zipfile.ZipFile(path) as wheel:
        ontology = json.loads(Zstd().decode(wheel.read(FOLDER + RELEASE)))
        levels = {
            name: set(json.loads(wheel.read(f"{FOLDER}cell_{name}_list.json")))
            for name in ("class", "subclass")
        }
    rows = []
    for term, entry in sorted(ontology.items()):
        if not term.startswith("CL:"):
            continue
        parents = [other for other, distance in entry["ancestors"].items() if distance == 1]
        replaced = entry.get("replaced_by", "") if entry["deprecated"] else ""
        rows.append(
            {
                "id": term,
                "name": entry["label"],
                "synonyms": "|".join(entry.get("synonyms", [])),
                "parents": "|".join(parents),
                "replaced_by": replaced if replaced.startswith("CL:") else "",
                "obsolete": int(entry["deprecated"]),
                "used": int(term in used),
                "level": next(
                    (name for name in levels if term in levels[name] and not entry["deprecated"]), ""
                ),
            }
        )
    table = pd.DataFrame(rows)
    with atomic(OUTPUT) as temporary:
        temporary.write_bytes(gzip.compress(table.to_csv(index=False).encode(), 9, mtime=0))
    print(
        f"{len(table)} terms, {table['obsolete'].sum()} obsolete, {table['used'].sum()} of {len(used)} in use"
    )
    print(f"size: {OUTPUT.stat().st_size}\nsha256: {sha256(OUTPUT)}")


if __name__ == "__main__":
    terms = Path(sys.argv[2]) if len(sys.argv) > 2 else REPOSITORY.parent / "shared/data/census_terms.json"
    main(Path(sys.argv[1]), terms)
