"""Find the Ensembl id and the token of every gene."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from .._features import gene_columns, gene_features, type_columns
from .._reference import gene_table
from .._validate import require_adata
from .._warn import warn
from ..models.vocabulary import Vocabulary
from ..results.store import write_result
from ._vocabulary import as_vocabulary

_ENSEMBL = re.compile(r"(ENSG\d{11})(\.\d+)?(?:_PAR_Y)?", re.IGNORECASE)
# The report's vocabulary, in the order a reader wants it.
STATUS = ("matched", "versioned", "retired", "dropped")
# Features of another species that are no oversight.
_FEW, _SOME = 0.05, 10
_ORTHOLOGS = "Map them to human orthologues: mt.pp.map_orthologs(adata, model, species=...)."
_GENOME = r"(?i:(?:GRC[a-z]\d+|hg\d\d|mm\d\d?|rn\d)(?:[._-]\w+?)??)_+"


def map_genes(
    adata: AnnData,
    model=None,
    *,
    gene_key: str | None = None,
    mapping: Mapping[str, str] | None = None,
    min_overlap: float = 0.1,
) -> None:
    """Find the Ensembl id, and the token, of every gene.

    Gene symbols, Ensembl ids, Ensembl ids with a version, or a mixture of them are looked up offline in
    GENCODE v44. Nothing is removed and no count is changed; genes that cannot be named get the id "". So do
    features that are no genes: antibodies, hashtags, guides and peaks, by a column `feature_types`,
    `feature_type` or `modality`.

    Parameters
    ----------
    adata
        Cells x genes, human.
    model
        A model or a `Vocabulary`, to find tokens as well; without one, only Ensembl ids are found.
    gene_key
        Column of `.var` that names the genes ("index" for `.var_names`). By default, one of Ensembl ids where
        there is one, else the one that names most genes; the genes it leaves unnamed are looked up in the
        others.
    mapping
        Further names: symbol, alias or retired Ensembl id to Ensembl id. It goes before GENCODE. The
        authors' `ensembl_mapping_dict_v1.json` has this form.
    min_overlap
        Share of the genes that has to be found, in the vocabulary if one is given.

    Returns
    -------
    `None`. Writes

    `.var["ensembl_id"]`
        Ensembl id without version, "" where unknown. **Several columns may share an id**: their counts
        are summed by `mt.pp.rank_value_encode`, which stores the rank at the first of them.
    `.var["token_id"]`
        With `model`: token id, -1 for a gene outside the vocabulary and for the second and later column
        of an id (int32).
    `.var["gene_status"]`
        "matched", "versioned" (found after its version was cut), "retired" (an Ensembl id that GENCODE
        v44 no longer has; found by symbol where there is one) or "dropped" (no model sees this gene).
    `.var["ensembl_id_given"]`, ...
        What was in a column of one of these names before, where it was something else.
    `.uns["map_genes"]`
        The table `report`, a row a fate, with its `n_genes`: all "genes"; "matched", "versioned", "retired"
        and "dropped", which add up to them; "duplicated", columns that share a gene with an earlier one; and
        "in_vocabulary".

    Raises
    ------
    ValueError
        If less than `min_overlap` of the genes are found; the message names the likely cause.
    KeyError
        If `gene_key` is not a column of `.var`.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.load("heart_nuclei")
    >>> mt.pp.map_genes(adata)
    >>> adata.var["ensembl_id"].iloc[0].startswith("ENSG")
    True
    """
    require_adata(adata)
    vocab = None if model is None else as_vocabulary(model)
    earlier = adata.uns.get(_keys.MAP_GENES, {}).get("params", {})
    var, params = resolve_genes(
        adata.var,
        vocab,
        gene_key=gene_key,
        mapping=mapping,
        min_overlap=min_overlap,
        earlier=earlier,
    )
    write_genes(adata, var, params)


def write_genes(adata: AnnData, var: pd.DataFrame, params: dict) -> None:
    """Write what `resolve_genes` found, in the order of the genes; other columns of these names stay as `..._given`."""
    earlier = adata.uns.get(_keys.MAP_GENES, {}).get("params", {})
    for name in (_keys.ENSEMBL_ID, _keys.GENE_STATUS, _keys.TOKEN_ID):
        if name not in var:
            continue
        ours = earlier.get("genes_sha256") if name == _keys.TOKEN_ID else earlier
        if name in adata.var and not ours and not _as_text(adata.var[name]).equals(_as_text(var[name])):
            adata.var[f"{name}_given"] = adata.var[name]
        adata.var[name] = var[name].array
    write_result(adata, _keys.MAP_GENES, params, report=gene_report(var))


def resolve_genes(
    var: pd.DataFrame,
    vocab: Vocabulary | None,
    *,
    gene_key: str | None = None,
    mapping: Mapping[str, str] | None = None,
    min_overlap: float = 0.1,
    earlier: Mapping | None = None,
) -> tuple[pd.DataFrame, dict]:
    """Return `var` with the columns `map_genes` describes, and how they were found.

    `earlier` are the parameters with which the ids that `var` may have already were found.
    """
    if len(var) == 0:
        raise ValueError("The data have no genes.")
    if mapping is not None and not isinstance(mapping, Mapping):
        raise TypeError(
            f"mapping must be a table of names, {{name: Ensembl id}}, got {type(mapping).__name__} {str(mapping)[:60]!r}. From a "
            "JSON file: mapping=json.load(open(path))."
        )
    is_gene = gene_features(var)
    if not is_gene.any():
        by = "".join(
            f" (.var[{name!r}]: {', '.join(map(str, var[name].unique()[:3]))})" for name in type_columns(var)
        )
        raise ValueError(f"None of the {len(var)} features is a gene{by}. Gene expression is needed.")
    known = frozenset() if vocab is None else frozenset(vocab.genes)
    given = pd.Series(mapping or {}, dtype=object)
    # Ids that were given in `ensembl_id`, or by a mapping, are not looked up anew: the column is ours by now.
    earlier = earlier or {}
    keep_ids = gene_key is None and not mapping and bool(earlier.get("keep_ids", False))
    # The names of another species' genes are none of human ones, though some look like them (H19).
    fill_gaps = gene_key is None and not (keep_ids and earlier.get("species"))
    table, names, best, score = _name_genes(
        var[is_gene], known, given, gene_key, keep_ids=keep_ids, fill_gaps=fill_gaps
    )

    var = var.copy()
    ids, status = np.full(len(var), "", dtype=object), np.full(len(var), "dropped", dtype=object)
    ids[is_gene] = table["id"]
    status[is_gene] = np.select(
        [table["retired"], table["versioned"], table["id"] != ""],
        ["retired", "versioned", "matched"],
        "dropped",
    )
    seen = ids != ""
    if vocab is not None:
        seen = vocab.token_id(ids) >= 0
        status[~seen & (status != "retired")] = "dropped"
    var[_keys.ENSEMBL_ID] = ids
    var[_keys.GENE_STATUS] = pd.Categorical(status, categories=STATUS)
    if vocab is not None:
        var[_keys.TOKEN_ID] = find_tokens(var, vocab)

    if seen[is_gene].mean() < min_overlap:
        target = "GENCODE v44" if vocab is None else "the model's vocabulary"
        raise ValueError(
            f"Only {seen.sum()} of {is_gene.sum()} genes ({seen[is_gene].mean():.1%}; at least {min_overlap:.0%} are needed) "
            f"are in {target}. " + _likely_cause(names[best], best, gene_key, score, len(known))
        )
    _warn_of_species(names[best], table["id"].to_numpy() != "")
    return var, {
        "gene_key": best,
        "min_overlap": min_overlap,
        "keep_ids": keep_ids or gene_key is not None or len(given) > 0 or best == _keys.ENSEMBL_ID,
        "genes_sha256": vocab.genes_sha256 if vocab else "",
        **({"species": earlier["species"]} if keep_ids and earlier.get("species") else {}),
    }


def find_tokens(var: pd.DataFrame, vocab: Vocabulary) -> np.ndarray:
    """Token of each column with an Ensembl id, int32; -1 for the second and later column of a gene, and for no gene."""
    first = gene_columns(var) == np.arange(len(var))
    return np.where(first, vocab.token_id(var[_keys.ENSEMBL_ID]), -1).astype(np.int32)


def _name_genes(
    var: pd.DataFrame,
    known: frozenset[str],
    given: pd.Series,
    gene_key: str | None,
    *,
    keep_ids: bool,
    fill_gaps: bool,
) -> tuple[pd.DataFrame, dict[str, pd.Series], str, dict[str, int]]:
    """Ensembl id of each gene; the columns that name genes, the one that was used, and how many each names."""
    names = name_columns(var)
    if gene_key is not None and gene_key not in names:
        raise KeyError(f"Did not find .var[{gene_key!r}]. Columns with text: {sorted(names)}.")
    symbols = _symbol_table(known)
    found = {key: _lookup(column, known, symbols, given) for key, column in names.items()}
    score = {key: int((table["id"] != "").sum()) for key, table in found.items()}
    of_ids = {key: int(table["is_id"].sum()) for key, table in found.items()}
    # An id says which of the genes that share a symbol is meant.
    of_ids = {key: n for key, n in of_ids.items() if n > max(score.values()) / 2} or score
    best = gene_key or max(of_ids, key=of_ids.get)
    table = found[best]
    if _keys.GENE_STATUS in var:
        # Ids that were found before, perhaps in a column that they have taken the place of.
        before = _lookup(_as_text(var[_keys.ENSEMBL_ID]), known, symbols, pd.Series(dtype=object))
        if keep_ids:
            table, found["before"], best = before, table, _keys.ENSEMBL_ID
            names[best] = _as_text(var[_keys.ENSEMBL_ID])
            score[best] = int((before["id"] != "").sum())
        else:
            found["before"] = before
    if fill_gaps:
        for other in found.values():
            # A gene that one column cannot name may be named by another: old ids by their symbol.
            gap = table["gap"] & ~other["gap"] & (other["id"] != "")
            table.loc[gap, ["id", "by_name"]] = other.loc[gap, ["id", "by_name"]]
    if table["is_id"].mean() > 0.5:
        # Beside ids, a name that is another column's gene is something else: an antibody, or a gene that was
        # renamed.
        taken = table["by_name"] & table["id"].isin(table["id"][~table["by_name"]])
        table.loc[taken, "id"] = table["own"][taken]
    return table, names, best, score


def gene_report(var: pd.DataFrame) -> pd.DataFrame:
    """Count the genes of each fate; one row a fate."""
    n_features, var = len(var), var[gene_features(var)]
    ids = var[_keys.ENSEMBL_ID].to_numpy()
    status = var[_keys.GENE_STATUS]
    rows = {
        "genes": len(var),
        **{name: int((status == name).sum()) for name in STATUS},
        "duplicated": int((pd.Series(ids[ids != ""]).duplicated()).sum()),
    }
    if _keys.TOKEN_ID in var:
        rows["in_vocabulary"] = int((var[_keys.TOKEN_ID] >= 0).sum())
    if n_features > len(var):
        rows["no_genes"] = n_features - len(var)
    return pd.DataFrame({"n_genes": list(rows.values())}, index=list(rows))


def name_columns(var: pd.DataFrame) -> dict[str, pd.Series]:
    """All columns of `var` that may name genes, the index among them."""
    own = {_keys.ENSEMBL_ID, _keys.GENE_STATUS} if _keys.GENE_STATUS in var else set()
    columns = {"index": var.index.to_series()}
    for name in var.columns:
        column = var[name]
        if isinstance(column.dtype, pd.CategoricalDtype):
            column = column.astype(column.cat.categories.dtype)
        text = column.dtype == object or isinstance(column.dtype, pd.StringDtype)
        # What repeats (chromosome, biotype) names no genes.
        if name not in own and text and column.nunique() >= len(column) / 2:
            columns[name] = column
    return {name: _as_text(column) for name, column in columns.items()}


def _as_text(column: pd.Series) -> pd.Series:
    column = column.astype(object)
    return column.where(column.notna(), "").astype(str).reset_index(drop=True)


def _lookup(names: pd.Series, known: frozenset[str], symbols: pd.Series, mapping: pd.Series) -> pd.DataFrame:
    """Ensembl id of each name, and how it was found."""
    # "MATR3-1" is what var_names_make_unique makes of a second MATR3; without a first, it is a name of its
    # own.
    cut = names.str.replace(r"[-.]\d+$", "", regex=True)
    cut = cut.where(cut.isin(set(names)), names)
    parts, of_cut = (text.str.extract(f"^{_ENSEMBL.pattern}$", flags=re.IGNORECASE) for text in (names, cut))
    parts = parts.where(parts[0].notna(), of_cut)
    is_id = parts[0].notna()
    stem = parts[0].where(is_id, "").str.upper()
    # Sets are asked name by name: `isin` would turn them, tens of thousands of ids, into arrays at every
    # call.
    in_known = stem.map(known.__contains__).astype(bool)
    retired = is_id & ~in_known & ~stem.map(_current_ids().__contains__).astype(bool)
    by_symbol = _first(_find(symbols, names), _find(symbols, cut))

    # The authors' mapping has upper-case keys; names in mixed case must match as they are (Actb is no ACTB).
    given = _first(_find(mapping, names), _find(mapping, stem))
    # A vocabulary knows its own ids best; the mapping may merge or rename any other.
    allowed = given.map(known.__contains__).astype(bool) if known else True
    use_given = (given != "") & ~(is_id & in_known) & allowed
    ids = stem.where(is_id, by_symbol).mask(use_given, given)
    return pd.DataFrame(
        {
            "id": ids,
            "own": stem,
            "is_id": is_id,
            "by_name": (~is_id | retired) & ~use_given,
            "versioned": is_id & parts[1].notna() & ~retired,
            "retired": retired & ~use_given,
            "gap": (ids == "") | (retired & ~use_given),
        }
    )


@lru_cache(maxsize=1)
def _current_ids() -> frozenset[str]:
    """Ensembl ids of GENCODE."""
    return frozenset(gene_table()["ensembl_id"])


@lru_cache(maxsize=4)
def _symbol_table(known: frozenset[str]) -> pd.Series:
    """Symbol to Ensembl id; where a symbol names several genes, one of the vocabulary goes first."""
    genes = gene_table()
    order = np.argsort(~genes["ensembl_id"].isin(known).to_numpy(), kind="stable")
    ids, symbols = genes["ensembl_id"].to_numpy()[order], genes["symbol"].to_numpy()[order]
    # Symbols keep their case, or mouse genes (Actb) would pass as human ones; but C1orf112 is often C1ORF112.
    upper = pd.Series(symbols).str.upper().to_numpy()
    table = pd.Series(np.concatenate([ids, ids]), index=np.concatenate([symbols, upper]))
    return table[~table.index.duplicated()]


def _find(table: pd.Series, names: pd.Series) -> pd.Series:
    """Look names up, "" where there is none."""
    found = table.reindex(names).to_numpy(dtype=object)
    return pd.Series(np.where(pd.isna(found), "", found), index=names.index)


def _first(found: pd.Series, otherwise: pd.Series) -> pd.Series:
    return found.where(found != "", otherwise)


def _other_species(names: pd.Series) -> pd.Series:
    """Species of each name that is not human, "" for the others."""
    prefix = names.str.extract(r"^(ENS(?!G\d)[A-Z]{3,4})\d{11}", expand=False).fillna("")
    species = prefix.where(prefix != "ENSMUSG", "mouse")
    like_mouse = names.str.fullmatch(r"[A-Z][a-z][a-z0-9-]*\d*[a-z]*|mt-[A-Z][a-z]+\d?[a-z]?")
    return species.mask((prefix == "") & like_mouse, "mouse")


def _warn_of_species(names: pd.Series, found: np.ndarray) -> None:
    """Warn of genes of another species beside those that were found."""
    species = _other_species(names[~found])
    species = species[species != ""]
    if len(species) < max(_FEW * len(names), _SOME):
        return
    example = names[species.index[0]]
    warn(
        f"{len(species)} of {len(names)} genes are of another species ({species.mode()[0]}; e.g. {example!r}) and are not read. "
        "Its cells would be ranked by their few stray counts of human genes: leave out those with a low "
        ".obs['share_ranked'], and these genes."
    )


def _likely_cause(
    names: pd.Series, key: str, gene_key: str | None, score: dict[str, int], n_known: int
) -> str:
    """Say why so few genes were found, with the names that tell."""
    examples = ", ".join(repr(name) for name in names.head(3))
    where = ".var_names" if key == "index" else f".var[{key!r}]"
    better = max(score, key=score.get)
    if gene_key is not None and score[better] > 2 * score[gene_key] and score[better] > 0:
        place = ".var_names" if better == "index" else f".var[{better!r}]"
        return f"{where} holds {examples}; {place} names {score[better]} genes: leave gene_key out, or pass gene_key={better!r}."
    genome = names.str.extract(f"^({_GENOME})", expand=False)
    if genome.notna().mean() > 0.5:
        found = genome.value_counts().index.tolist()
        human = next((name for name in found if re.match("(?i)GRCh|hg", name)), None)
        how = (
            f"they are of no human genome. {_ORTHOLOGS}"
            if human is None
            else "keep the genes of the human genome, and the cells that are human, and cut the prefix: "
            f"adata = adata[:, adata.var_names.str.startswith({human!r})].copy(); "
            f"adata.var_names = adata.var_names.str.removeprefix({human!r})."
        )
        return f"{where} holds {examples}: names with the genome before them ({', '.join(found)}); {how}"
    species = _other_species(names)
    if (species == "mouse").mean() > 0.3:
        return f"{where} holds {examples}: these look like mouse genes. {_ORTHOLOGS}"
    if (other := species[species != ""]).size > 0.2 * len(names):
        return f"{where} holds {examples}: ids of another species ({other.mode()[0]}). {_ORTHOLOGS}"
    if names.str.fullmatch(r"\d+").mean() > 0.5:
        return (
            f"{where} holds numbers ({examples}): a numeric index or Entrez ids, and no other column names human genes. "
            "Put gene symbols or Ensembl ids into .var_names."
        )
    if score[key] >= 0.5 * len(names) and n_known:
        return f"{score[key]} of them are human genes, so this vocabulary ({n_known:,} genes) was made for other genes."
    return f"{where} holds {examples}, which are neither human gene symbols nor Ensembl ids. Pass the right column as gene_key."
