"""What speaks for a gene: its edit, its expression with age, and tables of the user's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from ..results.store import read_table
from ..stats.fdr import benjamini_hochberg

PERTURBATION, EXPRESSION = "perturbation", "expression"
_VALUES = ["effect", "effect_low", "effect_high", "p_value", "q_value", "n"]
_VERSION = r"(?<=\d{11})\.\d+$"


def target_evidence(
    adata: AnnData,
    *,
    genes: Sequence[str] | None = None,
    n_genes: int = 15,
    group: str | None = None,
    k: int | None = None,
    tables: Mapping[str, pd.DataFrame] | None = None,
    key: str = _keys.PERTURBATION_STATS,
    slopes_key: str = _keys.AGE_SLOPE,
) -> pd.DataFrame:
    """Put side by side what is known of the top genes of a screen, in each group of cells.

    Parameters
    ----------
    adata
        Cells with results of `mt.tl.perturbation_stats` and `mt.tl.expression_age_slope`.
    genes
        Symbols or Ensembl ids of screened genes (or names of sets), in the order to show them. By default the
        `n_genes` that lie furthest from matched genes (largest size of `z`) in `group`, those that make cells
        older first. Where no gene has a null, as in a screen of few genes, those with the largest effects.
    n_genes
        How many genes, where none are given.
    group
        Group of cells in which the genes are chosen; by default "all", or the first.
    k
        Ranks, where there are several; by default the most.
    tables
        Further evidence, a table a name, for example differential expression in telomere-shortened mice.
        Needed columns: `gene` (symbol or Ensembl id as in the screen; for another species, of the human
        orthologue) and `effect`. Optional: `group` (as in the screen; without it the table is of all cells),
        `p_value` or `q_value`, `unit` (of the effect), `effect_low`, `effect_high`, `n`.
    key, slopes_key
        Keys in `.uns` of the two results.

    Returns
    -------
    One row a gene, group and evidence; `.attrs` are those of the effects:

    `gene`, `symbol`, `group`
        Which gene, in which group of cells: those of the screen, and "all" for evidence that knows no groups.
    `evidence`
        "perturbation", "expression" (with age), or the name of a table.
    `effect`, `effect_low`, `effect_high`, `unit`
        Effect of the edit, slope with age, or the table's own, with a 95% interval and the unit. NaN where it
        was not tested: the model reads the gene in too few donors, the expression has no slope, the table has
        no such row.
    `p_value`, `q_value`
        Of an edit against matched genes, and of a slope; a table's own, its p values corrected over all its
        rows of a group (Benjamini and Hochberg) where it has no q values.
    `n`
        Donors (or what else is the unit).

    Raises
    ------
    KeyError
        If an analysis has not been run, a gene was not screened, or there is no such group or `k`.
    ValueError
        If a table lacks a column, has two rows for a gene in a group, or shares no gene or group with the
        screen.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.sample_prompts(adata, time_key="age_months", groupby=[], n_prompts=2, context_size=1, donor_key="donor_id")
    >>> mt.tl.perturb(adata, model, genes=["CD74", "FTL", "TPT1"])
    >>> mt.tl.perturbation_stats(adata, min_donors=2)
    >>> mt.tl.expression_age_slope(adata, time_key="age_months", donor_key="donor_id")
    >>> evidence = mt.get.target_evidence(adata, genes=["CD74", "FTL"])
    >>> evidence[["symbol", "evidence"]].drop_duplicates().to_numpy().tolist()
    [['CD74', 'perturbation'], ['FTL', 'perturbation'], ['CD74', 'expression'], ['FTL', 'expression']]
    """
    effects = read_table(adata, key, "effects")
    slopes = read_table(adata, slopes_key, "slopes")
    about, slope_unit = dict(effects.attrs), slopes.attrs["unit"]
    effects = _screened(effects, k, int(adata.uns[key]["params"]["min_donors"]))
    names = effects.drop_duplicates("gene").set_index("gene")["symbol"]
    chosen = _strongest(effects, group, n_genes) if genes is None else _find(names, genes)

    evidence = {
        PERTURBATION: effects.rename(columns={"n_units": "n"}).assign(unit=about["unit"]),
        EXPRESSION: slopes.rename(columns={"n_donors": "n"} | _like_effect("slope")).assign(unit=slope_unit),
    }
    if tables is not None and not isinstance(tables, Mapping):
        raise TypeError(f"tables must map names to DataFrames, got a {type(tables).__name__}.")
    for name, table in (tables or {}).items():
        if name in evidence:
            raise ValueError(f"A table cannot be named {name!r}, which is evidence of its own. Rename it.")
        evidence[name] = _own_table(name, table, names, chosen)
    # Without groups in the screen, those of the first evidence that has any.
    groups = next((own for own in map(_groups, evidence.values()) if own), ["all"])
    found = pd.concat(
        [_fill(name, rows, chosen, groups) for name, rows in evidence.items()], ignore_index=True
    )
    found.insert(1, "symbol", found["gene"].map(names))
    found.attrs = about
    return found


def _like_effect(name: str) -> dict[str, str]:
    """Names of a quantity and its interval, as if it were the effect."""
    return {f"{name}{end}": f"effect{end}" for end in ("", "_low", "_high")}


def _screened(effects: pd.DataFrame, k: int | None, min_donors: int) -> pd.DataFrame:
    """Rows of a `k` that were asked for, with effects only where enough donors have one."""
    known = sorted(effects["k"].unique())
    k = known[-1] if k is None else k
    if k not in known:
        raise KeyError(f"There is no k = {k}; there are {', '.join(map(str, known))}.")
    effects = effects[(effects["k"] == k) & (effects["matched_to"] == "")].copy()
    effects.loc[effects["n_units"] < min_donors, ["effect", "effect_low", "effect_high"]] = np.nan
    return effects


def _strongest(effects: pd.DataFrame, group: str | None, n_genes: int) -> list[str]:
    """Genes furthest from matched ones in a group, in the order of their effects."""
    known = list(dict.fromkeys(effects["group"]))
    group = group or ("all" if "all" in known else known[0])
    if group not in known:
        raise KeyError(f"There is no group {group!r}; there are {', '.join(known)}.")
    mine = effects[(effects["group"] == group) & effects["effect"].notna()].set_index("gene")
    if not len(mine):
        raise ValueError(
            f"No gene was tested in {group!r}. Screen more prompts, or lower min_donors in mt.tl.perturbation_stats."
        )
    size = mine["z"] if mine["z"].notna().any() else mine["effect"]
    top = size.abs().dropna().sort_values(ascending=False, kind="stable").index[:n_genes]
    return mine.loc[top, "effect"].sort_values(ascending=False, kind="stable").index.tolist()


def _find(names: pd.Series, genes: Sequence[str]) -> list[str]:
    """Screened genes by id or symbol, each once."""
    genes = [genes] if isinstance(genes, str) else list(genes)
    by_symbol = pd.Series(names.index, index=names.to_numpy())
    by_symbol = by_symbol[~by_symbol.index.duplicated()]
    found = {gene: gene if gene in names.index else by_symbol.get(gene) for gene in genes}
    if missing := [gene for gene, name in found.items() if name is None]:
        raise KeyError(
            f"The screen has no gene {missing[0]!r} ({len(missing)} of {len(genes)} are not in it). Screen it with mt.tl.perturb, or "
            "leave it out."
        )
    if not found:
        raise ValueError("genes is empty. Name at least one, or leave it out for the strongest.")
    return list(dict.fromkeys(found.values()))


def _own_table(name: str, table: pd.DataFrame, names: pd.Series, chosen: list[str]) -> pd.DataFrame:
    """A user's table with the screen's ids, checked."""
    if missing := [column for column in ("gene", "effect") if column not in table]:
        raise ValueError(
            f"The table {name!r} has no column {missing[0]!r}; it has {', '.join(map(str, table.columns))}. Rename what it has: gene "
            "(symbol or Ensembl id) and effect are needed; group, p_value, q_value, unit, effect_low, effect_high and n are optional."
        )
    rows = table[table["gene"].notna()].reset_index(drop=True)
    rows["named"] = rows.pop("gene").astype(str).str.replace(_VERSION, "", regex=True)
    rows["group"] = rows["group"].astype(str) if "group" in rows else "all"
    for column in [column for column in _VALUES if column in rows]:
        try:
            rows[column] = pd.to_numeric(rows[column]).astype(float)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"The column {column!r} of the table {name!r} has no numbers: {error}."
            ) from None
        if column in ("p_value", "q_value") and not rows[column].dropna().between(0, 1).all():
            raise ValueError(f"The table {name!r} has a {column} that is not between 0 and 1.")
    if "q_value" not in rows and "p_value" in rows:
        rows["q_value"] = rows.groupby("group")["p_value"].transform(benjamini_hochberg)
    rows["unit"] = rows["unit"].astype(str) if "unit" in rows else "effect"
    if rows["unit"].nunique() > 1:
        raise ValueError(
            f"The effects of the table {name!r} have several units ({', '.join(rows['unit'].unique())}). Give one table a unit."
        )
    ids = pd.concat([pd.Series(names.index), names], ignore_index=True)
    ids = pd.DataFrame({"named": ids.astype(str), "gene": [*names.index, *names.index]}).drop_duplicates()
    matched = rows.merge(ids, on="named")
    if not len(matched):
        first = f"its first is {rows['named'].iloc[0]!r}" if len(rows) else "it is empty"
        raise ValueError(
            f"No gene of the table {name!r} was screened: {first}, the screen has {names.index[0]!r} ({names.iloc[0]}). Name human genes "
            "by symbol or Ensembl id; for another species, the human orthologues."
        )
    twice = matched[matched["gene"].isin(chosen)].duplicated(["gene", "group"])
    if twice.any():
        first = matched.loc[twice.index[twice][0]]
        raise ValueError(
            f"The table {name!r} has several rows for {first['named']!r} in {first['group']!r} ({twice.sum()} too many). Keep one."
        )
    return matched


def _groups(rows: pd.DataFrame) -> list[str]:
    """Groups other than all cells."""
    return [group for group in dict.fromkeys(rows["group"]) if group != "all"]


def _fill(name: str, rows: pd.DataFrame, chosen: list[str], groups: list[str]) -> pd.DataFrame:
    """Every chosen gene in every group, with NaN where there is nothing."""
    own = _groups(rows)
    if own and not set(own) & set(groups):
        raise ValueError(
            f"The evidence {name!r} has none of the groups {', '.join(groups)}; it has {', '.join(own)}. Make or name them alike, "
            "or leave its groups out."
        )
    index = pd.MultiIndex.from_product([chosen, groups if own else ["all"]], names=["gene", "group"])
    values = rows.drop_duplicates(["gene", "group"]).set_index(["gene", "group"])
    found = values.reindex(index=index, columns=_VALUES).astype(float).reset_index()
    found.insert(2, "evidence", name)
    found.insert(6, "unit", rows["unit"].iloc[0])
    return found
