"""What the results on attention heads say, in one table: a row a statistic, group of cells and head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import get
from ..pl._heads import segment_label

ENRICHMENT, SHARE, PART = "gene set, against matched genes", "gene set, share", "part of a prompt"
SPECIFICITY, PROFILE = "differs between cell types", "cell type, against the donor's mean"
ENTROPY, DISTANCE, SINK = "entropy", "distance", "rest on the first token"
ALL, CELLS, PROMPTS = "all", "single cells", "prompts"
# What each statistic is, on an axis; those without a middle are not of two sides.
UNITS = {
    ENRICHMENT: "log2 of set over matched genes",
    SHARE: "log2 of share over that at like distances",
    PART: "log2 of share over that at like distances",
    SPECIFICITY: "share of variance between cell types",
    PROFILE: "difference from the donor's mean",
    ENTROPY: "entropy over that of an even spread",
    DISTANCE: "distance over that of an even spread",
    SINK: "share of the attention",
}
TWO_SIDED = {ENRICHMENT, SHARE, PART, PROFILE}
_INDEX = ["statistic", "of", "group", "layer", "head", "name"]
_VALUES = ["value", "low", "high", "q_value", "called"]
_MIN_TOKENS = 10


class HeadTables(NamedTuple):
    """What there is to explore."""

    values: pd.DataFrame
    """`statistic`, what it is `of`, `group` of cells, `layer`, `head`, `name`; `value`, `low`, `high`, `q_value`, `called`."""
    gene_sets: dict[str, set[str]]
    """Genes (`.var_names`) of each gene set."""
    genes_key: str
    """Key in `.uns` of the attention whose genes can be listed; "" for none."""
    groups: list[str]
    """Groups of cells in it."""


def head_tables(adata: AnnData, keys: Sequence[str] | None = None) -> HeadTables:
    """Find the results on heads in `.uns`, by what is in them.

    Parameters
    ----------
    adata
        Cells with a result of `mt.tl.attention`, and possibly more.
    keys
        Keys in `.uns`; all by default.

    Raises
    ------
    KeyError
        If there is none.
    """
    if missing := [key for key in keys or () if kind_of(adata.uns.get(key)) is None]:
        found = [key for key in adata.uns if kind_of(adata.uns[key])]
        raise KeyError(
            f"Did not find .uns[{missing[0]!r}], or it is no result on heads. There are: {', '.join(found) or 'none'}."
        )
    kinds = {key: kind_of(adata.uns[key]) for key in (adata.uns if keys is None else keys)}
    order = ["enrichment", "segments", "profiles", "attention"]
    parts = [_READERS[kind](adata, key) for kind in order for key, found in kinds.items() if found == kind]
    if not parts:
        raise KeyError("Did not find .uns['attention']. Run mt.tl.attention(adata, model) first.")
    values = pd.concat(parts, ignore_index=True)
    # The same of two results: the one with intervals comes first.
    values = values.drop_duplicates(_INDEX, ignore_index=True)

    attention = [key for key, kind in kinds.items() if kind == "attention"]
    attention.sort(key=lambda key: bool(adata.uns[key]["params"]["prompts"]))
    genes_key = attention[0] if attention else ""
    groups = sorted(set(adata.uns[genes_key]["units"]["group"].astype(str))) if genes_key else []
    sets: dict[str, set[str]] = {}
    for key in attention:
        result = adata.uns[key]
        for i, name in enumerate(result["params"]["gene_sets"]):
            member = np.asarray(result["membership"])[:, i].astype(bool)
            sets.setdefault(str(name), set()).update(result["genes"].loc[member, "gene"].astype(str))
    for key, kind in kinds.items():
        if kind == "enrichment":
            genes = adata.uns[key]["genes"]
            name = enrichment_name(key, adata.uns[key]["params"])
            sets.setdefault(name, set(genes.loc[genes["in_set"].astype(bool), "gene"].astype(str)))
    return HeadTables(values, sets, genes_key, groups if groups != [ALL] else [])


def kind_of(result) -> str | None:
    """Which function a result is of; `None` for anything that is not about heads."""
    if not isinstance(result, dict) or "params" not in result:
        return None
    if {"sequences", "given", "statistics"} <= set(result):
        return "attention"
    if {"profiles", "heads"} <= set(result):
        return "profiles"
    columns = set(getattr(result.get("heads"), "columns", ()))
    if {"log2_ratio", "segment"} <= columns:
        return "segments"
    return "enrichment" if {"log2_ratio", "half_1"} <= columns else None


def enrichment_name(key: str, params: dict) -> str:
    """What to call a gene set: a list of genes has no name but that of its result."""
    name = str(params["gene_set"])
    return key.removeprefix("head_enrichment_") if name == "genes" else name


def _rows(table: pd.DataFrame, statistic: str, of, group, **columns) -> pd.DataFrame:
    rows = table[["layer", "head", "name"]].assign(statistic=statistic, of=of, group=group, **columns)
    for name in ("low", "high", "q_value"):
        if name not in rows:
            rows[name] = np.nan
    rows["called"] = rows["called"] if "called" in rows else rows["q_value"] < 0.05
    return rows[_INDEX + _VALUES]


def _enrichment(adata: AnnData, key: str) -> pd.DataFrame:
    table, params = get.table(adata, key), adata.uns[key]["params"]
    return _rows(
        table,
        ENRICHMENT,
        enrichment_name(key, params),
        params["group"] or ALL,
        value=table["log2_ratio"],
        low=table["log2_ratio_low"],
        high=table["log2_ratio_high"],
        q_value=table["q_value"],
    )


def _segments(adata: AnnData, key: str) -> pd.DataFrame:
    table, params = get.table(adata, key), adata.uns[key]["params"]
    seen = ", by the last token" if params["attending"] == "last" else ""
    return _rows(
        table,
        PART,
        table["segment"].map(segment_label) + seen,
        params["group"] or ALL,
        value=table["log2_ratio"],
        low=table["log2_ratio_low"],
        high=table["log2_ratio_high"],
        q_value=table["q_value"],
        called=table["specialised"].astype(bool),
    )


def _profiles(adata: AnnData, key: str) -> pd.DataFrame:
    table, heads = get.table(adata, key), get.table(adata, key, "heads")
    of = str(table.attrs["statistic"])
    return pd.concat(
        [
            _rows(heads, SPECIFICITY, of, ALL, value=heads["specificity"], q_value=heads["q_value"]),
            _rows(
                table,
                PROFILE,
                of,
                table["group"].astype(str),
                value=table["difference"],
                low=table["difference_low"],
                high=table["difference_high"],
                q_value=table["q_value"],
            ),
        ]
    )


def _attention(adata: AnnData, key: str) -> pd.DataFrame:
    table = get.attention(adata, key=key)
    read = PROMPTS if adata.uns[key]["params"]["prompts"] else CELLS
    once = table[table["part"] == table["part"].iloc[0]]
    whole = {ENTROPY: "relative_entropy", DISTANCE: "relative_distance", SINK: "sink"}
    tables = [
        _rows(once, statistic, read, once["group"], value=once[column]) for statistic, column in whole.items()
    ]
    kinds = {SHARE: table["kind"] == "gene set"}
    if read == PROMPTS:
        kinds[PART] = (table["kind"] == "segment") & (table["part"] != "first")
    for statistic, wanted in kinds.items():
        mine = table[wanted]
        ratio = np.log2(np.maximum(mine["mass"], 1e-12) / np.maximum(mine["expected"], 1e-12))
        of = mine["part"].map(segment_label) if statistic == PART else mine["part"]
        of = of + f" ({PROMPTS})" if statistic == SHARE and read == PROMPTS else of
        tables.append(_rows(mine, statistic, of, mine["group"], value=ratio))
    return pd.concat(tables)


_READERS = {
    "enrichment": _enrichment,
    "segments": _segments,
    "profiles": _profiles,
    "attention": _attention,
}


def grid_of(tables: HeadTables, statistic: str, of: str, group: str) -> pd.DataFrame:
    """One row a head: the statistic in a group of cells."""
    values = tables.values
    mine = (values["statistic"] == statistic) & (values["of"] == of) & (values["group"] == group)
    return values[mine].sort_values(["layer", "head"], ignore_index=True)


def top_genes(
    adata: AnnData, tables: HeadTables, layer: int, head: int, group: str, *, gene_set: str = "", n: int = 15
) -> pd.DataFrame:
    """Genes that receive most from a head beyond what their rank explains: `symbol`, `log2_rate`, `in_set`."""
    if not tables.genes_key:
        return pd.DataFrame(columns=["gene", "symbol", "log2_rate", "n_tokens", "in_set"])
    found = get.attention_genes(
        adata, layer=layer, head=head, group=group if group in tables.groups else None, key=tables.genes_key
    )
    found = found[found["n_tokens"] >= _MIN_TOKENS].head(n).reset_index(drop=True)
    found["log2_rate"] = np.log2(found["rate"])
    found["in_set"] = found["gene"].astype(str).isin(tables.gene_sets.get(gene_set, set()))
    return found[["gene", "symbol", "log2_rate", "n_tokens", "in_set"]]


def parts_of(tables: HeadTables, name: str, group: str) -> pd.DataFrame:
    """What a head gives to the parts of prompts beyond their distance, in a group of cells or in all."""
    values = tables.values[(tables.values["statistic"] == PART) & (tables.values["name"] == name)]
    values = values[~values["of"].str.endswith("by the last token")]
    for wanted in (group, ALL):
        mine = values[values["group"] == wanted]
        # Those that were tested, where there are any: they say the same of all context cells together.
        mine = mine[mine["q_value"].notna()] if mine["q_value"].notna().any() else mine
        if len(mine):
            return mine.reset_index(drop=True)
    return values.iloc[:0]


def groups_of(tables: HeadTables, name: str, statistic: str, of: str) -> tuple[str, str, pd.DataFrame]:
    """A head in each group of cells: the statistic or, where that is of all cells alone, one that is near to it."""
    near = {ENRICHMENT: [(SHARE, of)], SPECIFICITY: [(PROFILE, of)]}.get(statistic, [])
    for wanted, of_what in [(statistic, of), *near, (SINK, CELLS), (SINK, PROMPTS)]:
        values = tables.values
        mine = (values["statistic"] == wanted) & (values["of"] == of_what) & (values["name"] == name)
        found = values[mine & (values["group"] != ALL)].sort_values("group", ignore_index=True)
        if len(found) > 1:
            return wanted, of_what, found
    return statistic, of, found.iloc[:0]
