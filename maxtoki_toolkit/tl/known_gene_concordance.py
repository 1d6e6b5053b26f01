"""Whether scores of genes agree with what is known of them from elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from .._validate import require_rank, require_tokens
from ..pp._design import get_groups
from ..results.schema import SCHEMA
from ..results.store import read_result, read_table, write_result
from ..stats.concordance import MIN_GENES, concordance
from ..stats.fdr import benjamini_hochberg
from ..stats.matched_sets import make_strata
from ._gene_covariates import COVARIATES, gene_covariates
from .expression_age_slope import draw_null_slopes
from .perturbation_concordance import signed_effects

_SOURCES = (_keys.AGE_SLOPE, _keys.PERTURBATION_STATS, _keys.ATTRIBUTE)


def known_gene_concordance(
    adata: AnnData,
    *,
    known: pd.DataFrame,
    source: str = _keys.AGE_SLOPE,
    key: str | None = None,
    slopes_key: str | None = None,
    n_permutations: int = 2000,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Compare the scores of genes with a table of what they do with age in other studies.

    Parameters
    ----------
    adata
        Rank-encoded cells with the result.
    known
        Columns `gene` (symbol or Ensembl id) and `value`, positive for a gene that rises with age: a
        correlation, a slope, a log fold change. With a column `group` each group of cells is compared with
        its own genes; the names are those of the result. Without it a gene has one value.
    source
        Scores to compare: "expression_age_slope", the slopes; "perturbation_stats", the effects of a screen
        on the lapse, with the sign of what raising the gene does; or "attribute", what the gene in the query
        cell adds to the lapse beyond others at its rank.
    key
        Key of the result in `.uns`, by default the name of the source.
    slopes_key
        Key of the slopes (`mt.tl.expression_age_slope`, with the same groups) that the null is made from, by
        default "expression_age_slope"; of slopes, their own.
    n_permutations
        Exchanges of the donors.
    rng
        Seed.
    key_added
        Key in `.uns`, by default "known_gene_concordance".

    Returns
    -------
    `None`. Writes to `.uns["known_gene_concordance"]` the tables

    `concordance`
        A row a group:

        `group`, `n_genes`
            Group of cells, and genes with both a score and a known value.
        `share`, `share_low`, `share_high`
            Share of the genes whose score and known value have the same sign, with a 95% interval over genes
            (bootstrap).
        `null_low`, `null_high`, `p_value`
            Middle 95% of that share, around that of matched genes, when slopes are noise, and its two-sided
            p.
        `rho`, `rho_null_low`, `rho_null_high`, `rho_p_value`
            The same for Spearman's correlation.
        `q_value`
            `rho_p_value`, corrected for the groups (Benjamini and Hochberg).

    `genes`
        A row a gene and group: `gene`, `symbol`, `group`, `score`, `known`.

    Raises
    ------
    ValueError
        If the source is unknown, or no group has enough of the genes.

    Notes
    -----
    A `rho` above `rho_null_high` says that genes which rise with age elsewhere have higher scores here than
    genes like them, more than in cells in which nothing goes with age. Genes without a token, or that none of
    the cells of a group has, are left out.

    The null is slopes that are noise: what age and covariates do not explain, exchanged between donors, so
    that genes go together as they do in the cells. It stands in for the slopes, or, where a screen or
    attributions are compared, for the known values. What is tested is the difference from genes alike in
    rank, detection and expression (16 to 31 of them), so that what depth or rank do to both is taken off. The
    interval of the share treats genes as independent: it is too short.

    Examples
    --------
    >>> import pandas as pd, maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(600, 12)
    >>> mt.pp.map_genes(adata)
    >>> mt.pp.rank_value_encode(adata, mt.models.Vocabulary.from_anndata(adata))
    >>> mt.tl.expression_age_slope(adata, time_key="age_months", donor_key="donor_id")
    >>> slopes = mt.get.table(adata, "expression_age_slope")
    >>> known = pd.DataFrame({"gene": slopes["symbol"], "value": slopes["slope"]})
    >>> mt.tl.known_gene_concordance(adata, known=known, n_permutations=99)
    >>> float(mt.get.table(adata, "known_gene_concordance")["rho"].round(2).iloc[0])
    1.0
    """
    if n_permutations < 99:
        raise ValueError(f"n_permutations must be at least 99, got {n_permutations}.")
    if missing := sorted({"gene", "value"} - set(known.columns)):
        raise ValueError(
            f"known has no column {missing[0]!r}; it has {', '.join(map(repr, known.columns))}. Rename one: "
            f"known.rename(columns={{...: {missing[0]!r}}})."
        )
    require_rank(adata)
    require_tokens(adata)
    key = key or source
    slopes_key = key if source == _keys.AGE_SLOPE else slopes_key or _keys.AGE_SLOPE
    scores, params = _scores(adata, source, key)
    scores = scores.dropna(subset="score")
    known = known.dropna(subset=["gene", "value"])
    on = ["gene", "group"] if "group" in known else ["gene"]
    known = known.drop_duplicates([*on, "value"])[[*on, "value"]].rename(columns={"value": "known"})
    if (repeated := known.duplicated(on)).any():
        raise ValueError(
            f"{repeated.sum()} genes of known have several values (first: {known['gene'][repeated].iloc[0]!r}). Keep the rows of one cell "
            "type, or name their groups in a column 'group', as the result does."
        )
    by_symbol = scores.assign(id=scores["gene"], gene=scores["symbol"]).merge(known, on=on)
    by_id = scores.assign(id=scores["gene"]).merge(known, on=on)
    both = pd.concat([by_id, by_symbol.assign(gene=by_symbol["id"])]).drop(columns="id")
    both = both.drop_duplicates(["gene", "group"]).sort_values(["group", "gene"], ignore_index=True)

    codes, names = get_groups(adata, params["groupby"])
    rows = []
    for group, part in both.groupby("group", sort=True):
        cells = adata[codes == names.index(group)] if group in names else adata
        covariates = gene_covariates(cells).reindex(part["gene"])
        columns = [name for name in COVARIATES if name in covariates]
        able = covariates[columns].notna().all(axis=1).to_numpy()
        part = part[able]
        if len(part) < 2 * MIN_GENES:
            continue
        strata = make_strata(covariates.loc[able, columns].to_numpy(float))
        null = draw_null_slopes(
            adata, slopes_key, group, part["gene"], n_permutations, np.random.default_rng(rng)
        )
        score, value = part["score"].to_numpy(float), part["known"].to_numpy(float)
        if source == _keys.AGE_SLOPE:
            score, value = value, score
        found = concordance(score, value, null, strata, seed=rng)
        rows.append({"group": group, **found})
    if not rows:
        groups = ""
        if len(on) > 1:
            theirs, own = (", ".join(map(repr, sorted(set(part["group"])))) for part in (scores, known))
            groups = f" (groups of the result: {theirs}; of known: {own})"
        raise ValueError(
            f"{len(both)} genes have both a score in .uns[{key!r}] and a known value{groups}; at least {2 * MIN_GENES} of a group "
            "are needed."
        )
    table = pd.DataFrame(rows)
    table["q_value"] = benjamini_hochberg(table["rho_p_value"])
    settings = {"source": source, "scores": key, "unit": params["unit"], "n_permutations": n_permutations}
    write_result(
        adata,
        _keys.KNOWN_GENES,
        {**settings, "seed": rng},
        key_added=key_added,
        concordance=table,
        genes=both[["gene", "symbol", "group", "score", "known"]],
    )


def _scores(adata: AnnData, source: str, key: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    """`gene`, `symbol`, `group` and `score` of a result; and its `unit` and `groupby`."""
    if source not in _SOURCES:
        raise ValueError(f"There is no source {source!r}; choose from {', '.join(_SOURCES)}.")
    if source == _keys.PERTURBATION_STATS:
        params, table = signed_effects(adata, key)
        table = table.assign(score=table["effect"] * table["direction"])
    elif source == _keys.ATTRIBUTE:
        params, table = (
            read_result(adata, key, SCHEMA[source].call)["params"],
            read_table(adata, key, "genes"),
        )
        if params["readout"] != "timelapse":
            raise ValueError(
                f"The attributions are of {params['readout']!r}; those of the lapse have a direction in age."
            )
        table = table[table["part"] == "query"].assign(score=table["excess"], group="all")
    else:
        params, table = (
            read_result(adata, key, SCHEMA[source].call)["params"],
            read_table(adata, key, "slopes"),
        )
        table = table.assign(score=table["slope"])
    groupby = list(params.get("groupby") or [])
    unit = str(params.get("unit", ""))
    return table[["gene", "symbol", "group", "score"]], {"unit": unit, "groupby": groupby}
