"""Reference tables that ship with the package: gene names, transcription factors, orthologues of mouse."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path

import pandas as pd


def resource(name: str) -> Path:
    """Path of a file or folder shipped in `maxtoki_toolkit/resources`.

    Parameters
    ----------
    name
        File name, such as `"gencode_v44.csv.gz"`.

    Returns
    -------
    The path of the installed file.

    Raises
    ------
    FileNotFoundError
        If the package ships no such file.

    Examples
    --------
    >>> from maxtoki_toolkit._reference import resource
    >>> resource("gencode_v44.csv.gz").name
    'gencode_v44.csv.gz'
    """
    folder = Path(str(files("maxtoki_toolkit") / "resources"))
    path = folder / name
    if not path.exists():
        shipped = sorted(file.name for file in folder.glob("*")) if folder.is_dir() else []
        raise FileNotFoundError(
            f"The package ships no file {name!r}. Found in {folder}: {', '.join(shipped) or 'nothing'}. "
            "Install maxtoki_toolkit again if a listed name was expected."
        )
    return path


@cache
def gene_table() -> pd.DataFrame:
    """Human genes of GENCODE v44, in the order of the release.

    The table is read once and shared by every caller: take a copy before changing it.

    Returns
    -------
    One row a gene: `ensembl_id` (15 characters, without version, unique) and `symbol` (a string that
    repeats for some genes, and is the Ensembl id itself where a gene has no name).

    Examples
    --------
    >>> from maxtoki_toolkit._reference import gene_table
    >>> genes = gene_table()
    >>> genes.columns.to_list()
    ['ensembl_id', 'symbol']
    >>> genes.loc[genes["symbol"] == "TTN", "ensembl_id"].to_list()
    ['ENSG00000155657']
    """
    # "NA" and the like are text here, never a missing value.
    return pd.read_csv(resource("gencode_v44.csv.gz"), dtype=str, keep_default_na=False)


@cache
def symbol_of_gene() -> pd.Series:
    """Symbol of each human gene of GENCODE v44, by its Ensembl id; shared by every caller.

    Examples
    --------
    >>> from maxtoki_toolkit._reference import symbol_of_gene
    >>> symbol_of_gene()["ENSG00000155657"]
    'TTN'
    """
    return gene_table().set_index("ensembl_id")["symbol"]


@cache
def transcription_factors() -> frozenset[str]:
    """Symbols of the 1,639 human transcription factors of Lambert et al. (Cell 2018).

    Returns
    -------
    The symbols of 2018. 17 of them, such as `ARNTL` and `T`, are no symbols of `gene_table()` any more.

    Examples
    --------
    >>> from maxtoki_toolkit._reference import transcription_factors
    >>> "TBX5" in transcription_factors()
    True
    """
    return frozenset(resource("human_tfs_lambert2018.txt").read_text(encoding="utf-8").split())


@cache
def orthologs_of_mouse() -> pd.DataFrame:
    """Mouse genes and their human orthologues, as Ensembl and HCOP have them (benchmarks/build_orthologs.py).

    Returns
    -------
    One row a pair, the best of each mouse gene first: `gene` and `human` (Ensembl ids), `symbol` of the mouse
    gene, `source`.

    Examples
    --------
    >>> from maxtoki_toolkit._reference import orthologs_of_mouse
    >>> pairs = orthologs_of_mouse()
    >>> pairs.loc[pairs["symbol"] == "Actb", "human"].tolist()
    ['ENSG00000075624']
    """
    return pd.read_csv(resource("mouse_orthologs.csv.gz"), dtype=str, keep_default_na=False)


@cache
def stage_table() -> dict[str, str]:
    """Labels of the terms of HsapDv and MmusDv, the ontologies of human and mouse stages, by their ids.

    Returns
    -------
    438 labels. The file has more columns: see `maxtoki_toolkit/resources/README.md`.

    Examples
    --------
    >>> from maxtoki_toolkit._reference import stage_table
    >>> stage_table()["HsapDv:0000139"]
    '45-year-old stage'
    """
    table = pd.read_csv(resource("developmental_stages.csv"), dtype=str, keep_default_na=False)
    return dict(zip(table["term_id"], table["label"], strict=True))
