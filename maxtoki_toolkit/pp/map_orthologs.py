"""Human orthologues of the genes of another species, so that a human model reads its cells."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from .._features import gene_features
from .._reference import gene_table, orthologs_of_mouse, symbol_of_gene
from .._validate import require_adata
from ..results.store import write_result
from ._vocabulary import as_vocabulary
from .map_genes import name_columns, resolve_genes, write_genes

AMBIGUOUS = ("drop", "best")
KINDS = ("one_to_one", "best", "ambiguous", "none")


def map_orthologs(
    adata: AnnData,
    model=None,
    *,
    species: str = "mouse",
    orthologs: pd.DataFrame | None = None,
    ambiguous: str = "drop",
    gene_key: str | None = None,
    min_overlap: float = 0.1,
) -> None:
    """Find the human orthologue of every gene of another species, in place of `mt.pp.map_genes`.

    Parameters
    ----------
    adata
        Cells x genes.
    model
        A model or a `Vocabulary`, to find tokens as well.
    species
        "mouse", whose orthologues ship with the package; for any other give `orthologs`.
    orthologs
        Table of pairs: `gene`, the Ensembl id or symbol in the other species; `human`, the human Ensembl id;
        and perhaps `symbol`, by which the gene is found too. The best pair of a gene comes first.
    ambiguous
        What to do with a gene that has several human orthologues, or shares one with other genes: "drop" it,
        or take the "best" pair; counts of genes that share their orthologue are then summed when they are
        ranked.
    gene_key
        Column of `.var` that names the genes ("index" for `.var_names`), by default the one that names most.
    min_overlap
        Share of the genes that has to be found.

    Returns
    -------
    `None`. Writes what `mt.pp.map_genes` does, with human ids, and

    `.var["human_symbol"]`
        Symbol of the orthologue, "" where there is none.
    `.var["ortholog"]`
        "one_to_one"; "best" (one of several, taken with `ambiguous="best"`); "ambiguous" (dropped); "none"
        (no orthologue is known, or no such gene).
    `.uns["map_orthologs"]`
        The table `report`, genes of each kind (`n_genes`), and `ambiguous`, all pairs of the genes that are
        not one to one: `gene`, `human`, `symbol`, and whether the pair is `used`.

    Raises
    ------
    KeyError
        If `gene_key` is not a column of `.var`.
    ValueError
        If the species is not known and no table is given, the table lacks a column, or too few genes are
        found.

    Notes
    -----
    Mouse pairs are those of Ensembl (BioMart; GRCm39, GRCh38.p13), and for genes without one there those of
    three or more databases of HCOP (Yates et al., Nucleic Acids Res 2021): 17,444 are one to one. Upper-case
    letters do not make an orthologue: the human CD8B is mouse Cd8b1, FCGR3A is Fcgr4. Symbols that were
    renamed since (Atp5b) are not found: keep a column of Ensembl ids, as 10x files have it.

    Ranks divide by the median expression of the *human* gene in the model's corpus. A model of human cells
    reads others as if they were human; compare groups within the species, and take absolute ages from none.

    Examples
    --------
    >>> import anndata, numpy as np, maxtoki_toolkit as mt
    >>> adata = anndata.AnnData(np.ones((2, 4), dtype=np.float32))
    >>> adata.var_names = ["Actb", "Cd8b1", "Cdkn2a", "Rn18s"]
    >>> mt.pp.map_orthologs(adata)
    >>> adata.var["human_symbol"].tolist()
    ['ACTB', '', 'CDKN2A', '']
    >>> mt.pp.map_orthologs(adata, ambiguous="best")
    >>> adata.var["human_symbol"].tolist()
    ['ACTB', 'CD8B', 'CDKN2A', '']
    """
    require_adata(adata)
    if ambiguous not in AMBIGUOUS:
        raise ValueError(f"ambiguous must be one of {', '.join(AMBIGUOUS)}, got {ambiguous!r}.")
    pairs = _pairs(species, orthologs)
    names = name_columns(adata.var)
    if gene_key is not None and gene_key not in names:
        raise KeyError(f"Did not find .var[{gene_key!r}]. Columns with text: {sorted(names)}.")
    found = {key: find_pairs(column, pairs) for key, column in names.items() if gene_key in (None, key)}
    best = max(found, key=lambda key: found[key]["column"].nunique())
    table = found[best]
    human, kind = choose(table, adata.n_vars, ambiguous)

    is_gene = gene_features(adata.var)
    share = np.mean(kind[is_gene] != "none") if is_gene.any() else 0.0
    if share < min_overlap:
        examples = ", ".join(repr(name) for name in names[best].head(3))
        raise ValueError(
            f"Only {share:.1%} of {is_gene.sum()} genes have a {species} orthologue in the table (at least "
            f"{min_overlap:.0%} are needed); {'.var_names' if best == 'index' else f'.var[{best!r}]'} holds {examples}. "
            "Human genes need mt.pp.map_genes(adata, model); other species need their own table (orthologs=)."
        )
    vocab = None if model is None else as_vocabulary(model)
    var = adata.var.drop(columns=[_keys.ENSEMBL_ID, _keys.GENE_STATUS, _keys.TOKEN_ID], errors="ignore")
    var.index = human
    # How many must be found was looked at above, among orthologues rather than among all genes.
    resolved, params = resolve_genes(var, vocab, gene_key="index", min_overlap=0.0)
    write_genes(adata, resolved, params | {"gene_key": best, "species": species})
    adata.var[_keys.HUMAN_SYMBOL] = symbol_of_gene().reindex(human).fillna("").to_numpy(dtype=object)
    adata.var[_keys.ORTHOLOG] = pd.Categorical(kind, categories=KINDS)
    several = table[np.isin(kind[table["column"]], ("best", "ambiguous"))]
    report = pd.DataFrame(
        {"n_genes": [int((kind[is_gene] == name).sum()) for name in KINDS]}, index=list(KINDS)
    )
    write_result(
        adata,
        _keys.MAP_ORTHOLOGS,
        {"species": species, "ambiguous": ambiguous, "gene_key": best},
        report=report,
        ambiguous=pd.DataFrame(
            {
                "gene": names[best].to_numpy(dtype=object)[several["column"]],
                "human": several["human"].to_numpy(dtype=object),
                "symbol": symbol_of_gene().reindex(several["human"]).to_numpy(),
                "used": (human[several["column"]] == several["human"].to_numpy()),
            }
        ),
    )


def _pairs(species: str, orthologs: pd.DataFrame | None) -> pd.DataFrame:
    """Pairs of genes, the best of each gene first."""
    if orthologs is None:
        if species != "mouse":
            raise ValueError(
                f"Only the orthologues of mouse ship with the package, not those of {species!r}. Give a table of pairs with the "
                "columns gene and human (Ensembl ids), for example from Ensembl BioMart: orthologs=pd.read_csv(path)."
            )
        return orthologs_of_mouse()
    if not isinstance(orthologs, pd.DataFrame) or not {"gene", "human"} <= set(orthologs):
        found = list(orthologs) if isinstance(orthologs, pd.DataFrame) else type(orthologs).__name__
        raise ValueError(f"orthologs must be a table with the columns gene and human, got {found}.")
    pairs = orthologs[[name for name in ("gene", "symbol", "human") if name in orthologs]]
    pairs = pairs.dropna(subset=["gene", "human"]).fillna("").astype(str)
    known = pairs["human"].isin(gene_table()["ensembl_id"])
    if not known.any():
        raise ValueError(
            f"None of the {len(pairs)} ids in the column human is a human Ensembl id (first: {pairs['human'].head(1).tolist()})."
        )
    return pairs[known].drop_duplicates(["gene", "human"])


def find_pairs(names: pd.Series, pairs: pd.DataFrame) -> pd.DataFrame:
    """Pairs of each gene that is named by an id (of any version) or a symbol, one row a pair, the best first.

    `column` is the gene's place among the names. Symbols keep their case: ACTB is no mouse gene.
    """
    wanted = pd.DataFrame({"name": names.to_numpy(), "column": np.arange(len(names))})
    wanted["stem"] = names.str.replace(r"^(ENS[A-Z]*G\d{11})\.\d+$", r"\1", regex=True).to_numpy()
    by_id = wanted.merge(pairs, left_on="stem", right_on="gene")
    if "symbol" not in pairs:
        return by_id[["column", "human"]]
    rest = wanted[~wanted["column"].isin(by_id["column"]) & (wanted["name"] != "")]
    by_symbol = rest.merge(pairs, left_on="name", right_on="symbol")
    table = pd.concat([by_id, by_symbol])[["column", "human"]]
    return table.drop_duplicates().reset_index(drop=True)


def choose(table: pd.DataFrame, n_genes: int, ambiguous: str) -> tuple[np.ndarray, np.ndarray]:
    """Human id of each gene ("" for none) and of what kind it is."""
    human, kind = np.full(n_genes, "", dtype=object), np.full(n_genes, "none", dtype=object)
    first = table[~table["column"].duplicated()]
    shared = table["column"].duplicated(keep=False) | table["human"].duplicated(keep=False)
    unsure = np.isin(first["column"], table.loc[shared, "column"])
    kind[first["column"]] = np.where(unsure, {"drop": "ambiguous", "best": "best"}[ambiguous], "one_to_one")
    taken = first if ambiguous == "best" else first[~unsure]
    human[taken["column"]] = taken["human"].to_numpy()
    return human, kind
