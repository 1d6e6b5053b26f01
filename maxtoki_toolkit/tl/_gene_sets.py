"""Gene sets by name or by their genes."""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp

from .._reference import transcription_factors

MIN_GENES = 3
TRANSCRIPTION_FACTORS = "TF"


def find_members(genes: pd.DataFrame, wanted: str | Sequence[str], name: str) -> np.ndarray:
    """Which genes (columns `gene`, `ensembl_id`, `symbol`) are in a set; "TF" for the human transcription factors."""
    if isinstance(wanted, str):
        if wanted != TRANSCRIPTION_FACTORS:
            raise KeyError(
                f"There is no gene set {wanted!r}. Give 'TF' for the transcription factors, or the genes themselves."
            )
        wanted = transcription_factors()
    wanted = {str(gene) for gene in wanted}
    columns = [c for c in ("gene", "ensembl_id", "symbol") if c in genes]
    member = genes[columns].astype(str).isin(wanted).any(axis=1).to_numpy()
    if (n := int(member.sum())) < MIN_GENES:
        raise ValueError(
            f"The gene set {name!r} has {n} of its {len(wanted)} genes among those that the model reads of these cells; "
            f"at least {MIN_GENES} are needed. Give symbols, Ensembl ids or .var_names."
        )
    return member


def read_gene_sets(gene_sets: Mapping[str, Sequence[str]] | str | Path) -> dict[str, list[str]]:
    """Sets by their names: as they are, of a file (.gmt, .gmt.gz), or "TF" for the transcription factors."""
    if isinstance(gene_sets, Mapping):
        return {str(name): list(map(str, genes)) for name, genes in gene_sets.items()}
    if gene_sets == TRANSCRIPTION_FACTORS:
        return {"transcription factors": sorted(transcription_factors())}
    path = Path(gene_sets)
    if not path.name.endswith((".gmt", ".gmt.gz")):
        raise ValueError(
            f"There are no gene sets {str(gene_sets)!r}. Give a dictionary of names and genes, a file "
            "(.gmt, .gmt.gz), or 'TF'."
        )
    if not path.is_file():
        raise FileNotFoundError(f"Did not find {path}.")
    text = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode("utf-8")
    rows = [line.split("\t") for line in text.splitlines() if line.strip()]
    if short := [row[0] for row in rows if len(row) < 3]:
        raise ValueError(
            f"{path} is no .gmt file: the line {short[0][:40]!r} lacks a name, a description and genes "
            "with tabs between."
        )
    return {row[0]: [gene for gene in row[2:] if gene] for row in rows}


def set_members(genes: pd.DataFrame, sets: Mapping[str, Sequence[str]]) -> sp.csc_matrix:
    """Genes (columns `gene`, `ensembl_id`, `symbol`) x sets, 1 where a gene is in a set."""
    place: dict[str, list[int]] = {}
    for column in [c for c in ("gene", "ensembl_id", "symbol") if c in genes]:
        for row, name in enumerate(genes[column].astype(str)):
            place.setdefault(name, []).append(row)
    found = [
        np.unique([row for gene in set(names) for row in place.get(gene, ())]) for names in sets.values()
    ]
    sizes = np.array([len(rows) for rows in found])
    rows = np.concatenate(found).astype(np.int64) if found else np.zeros(0, np.int64)
    shape = (len(genes), len(found))
    return sp.csc_matrix((np.ones(len(rows)), (rows, np.repeat(np.arange(len(found)), sizes))), shape=shape)
