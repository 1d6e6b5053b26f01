"""What the features of a sparse autoencoder go with: kinds of cells, conditions, ages, sets of genes, depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from .. import _keys
from .._features import symbols
from .._validate import require_obs, require_rank, require_tokens
from .._warn import warn
from ..pp._columns import find_columns
from ..pp._design import as_list, as_numbers, get_groups, is_missing, known_cells
from ..pp._ranked_counts import has_counts, ranked_counts
from ..results.store import read_result, require_free, write_result
from ..stats.associations import (
    MIN_UNITS,
    Effects,
    column_chunks,
    label_effects,
    share_of_variance,
    time_effects,
    unit_correlations,
)
from ..stats.fdr import benjamini_hochberg
from ..stats.matched_sets import make_strata
from ..stats.set_ranks import rank_sums
from ._feature_design import Column, get_units, label_column, time_column
from ._gene_covariates import gene_covariates
from ._gene_sets import MIN_GENES, read_gene_sets, set_members
from .features import MIN_READ

ALPHA = 0.05
GENES = "genes"  # what single genes are called among the dictionaries
_SETS = 5  # of each feature that are kept, beside those that pass
# What is called strong: correlations, shares of the variance, of the top genes, and of a cell's length.
_DEPTH, _SHARE, _HOUSEKEEPING, _ENDS = 0.5, 0.25, 0.5, 0.1
_HOUSEKEEPING_GENE = r"(?:MT-|RP[LS]\d|RPSA|RPLP|MRP[LS]\d)"
_TESTS = {
    ("label", "within"): "t test of the donors' AUROCs",
    ("label", "between"): "Mann-Whitney test over donors",
    ("time", "within"): "t test of the donors' correlations",
    ("time", "between"): "Spearman correlation over donors",
}


def feature_summary(
    adata: AnnData,
    *,
    groupby: str | Sequence[str] | None = None,
    condition_key: str | None = None,
    time_key: str | None = None,
    donor_key: str | None = None,
    batch_key: str | None = None,
    gene_sets: Mapping[str, Sequence[str]] | str | Path | None = None,
    controls: Sequence[str] = (),
    min_effect: float = 0.2,
    key: str = _keys.FEATURES,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Say what each feature goes with, beside principal components, random directions and single genes.

    Parameters
    ----------
    adata
        Cells with a result of `mt.tl.features`.
    groupby
        Column or columns of `.obs` with labels, guessed cell type by default. All else is compared within the
        values of the first one.
    condition_key, batch_key
        Further columns with labels, guessed from their names; may be missing. The batch is also named among
        what else explains a feature.
    time_key
        Column of `.obs` with numbers such as the age, guessed from its name; may be missing.
    donor_key
        Column of `.obs` with the donor, guessed from its name; without three donors there is no p value.
    gene_sets
        Sets of genes to look for among the genes of each feature: names and genes (symbols, Ensembl ids or
        `.var_names`), a file (.gmt, .gmt.gz), or "TF" for the human transcription factors.
    controls
        Further keys of `.obsm` that are put to the same tests, such as those of an untrained model:
        `mt.tl.features(adata, twin, its_sae, key_added="untrained", controls=False)`. None below 0.
    min_effect
        How far from chance a feature has to be to pass: the AUROC's distance from 0.5, or half the
        correlation with time.
    key
        Key of the features in `.obsm`, `.varm` and `.uns`.
    rng
        Seed of the halves.
    key_added
        Key in `.uns`, by default "feature_summary".

    Returns
    -------
    `None`. Writes to `.uns["feature_summary"]` the tables

    `features`
        A row a feature:

        `feature`, `top_genes`, `density`, `n_cells`, `mean_rank`
            As of `mt.tl.features`.
        `goes_with`, `effect`, `q_value`, `passes`
            The label furthest from chance among those that pass and are active there, else among those that
            pass, else among all; with its AUROC, "(low)" where the feature is less active there, and whether it
            passes: most features go with nothing that does.
        `time_rho`, `time_q`
            Correlation with time.
        `gene_set`, `gene_set_q`
            The set with the lowest p.
        `depth_rho`, `counts_rho`
            Spearman correlation over cells with the number of genes ranked and with all counts (where the
            counts are there), within the first column's values.
        `donor_share`, `batch_share`
            Eta squared: share of the variance between donors, and between batches, within the same.
        `housekeeping`
            Share of ribosomal and mitochondrial genes among the top genes.
        `confounded`
            In words, which of these is strong: a correlation of 0.5, a quarter of the variance, half of the
            top genes, or a mean rank in the first or last tenth of what is read of a cell.

    `associations`
        A row a feature and label, and a feature and time:

        `column`, `value`, `measure`
            Which label, against all others of its column; "AUROC" or "Spearman".
        `effect`, `effect_low`, `effect_high`
            With its 95% interval.
        `p_value`, `q_value`, `test`, `n_units`
            Two-sided; corrected for all rows of the column (Benjamini and Hochberg); which test, over how
            many donors.
        `half_1`, `half_2`, `same_sign`
            The effect in two halves of the donors (of the cells, where there is no p value).
        `passes`
            Whether the effect is `min_effect` from chance, q < 0.05 (where it is known), with the same sign
            in both halves.

    `gene_sets`
        With `gene_sets`, a row a feature and set, five at least of each feature and all of q < 0.05:
        `gene_set`; `auroc`, the chance that a gene of the set activates the feature more than another gene
        like it, with the interval of the null's width around it; `p_value`, `q_value`; `n_genes`, genes of
        the set that could be compared, `n_active`, those that activate the feature.
    `dictionaries`
        A row a `dictionary` (keys of `.obsm`, and "genes": single genes) and `column` ("any" for all):
        `n_features` active in some cell, `n_pass`, `share_pass`; `n_values`, labels for which one passes;
        `values_each`, the mean number of labels that a feature which passes is high in: 1 where features are
        of one label alone; `n_units`, over how many donors the column is tested (the most of any row; 0 where
        cells are compared and not donors).
    `best`
        A row a dictionary, column and value: the best `feature` (or gene) with its `effect`, `q_value` and
        whether it `passes`; `held_out`, the effect in the second half of that which is best in the first.

    Raises
    ------
    KeyError
        If there are no features, or a control is missing.
    ValueError
        If a column has one value, or no gene set has three genes that can be compared.

    Notes
    -----
    The donor is the unit. Of a column that varies within donors (for half of them at least), such as the
    cell type, the AUROC is taken over the cells of each donor, averaged, and tested against 0.5 by a t test:
    a signed-rank test could not be significant for five donors. Of one that does not, such as sex or a
    disease, donors are compared by Mann and Whitney's test, which no donor that is far out decides, with
    Newcombe's interval (2006, method 5); three donors a side cannot be significant. A donor is the mean of
    its cells, less that of all donors, averaged over the values of the first column, so that composition does
    not matter. Times are compared by Spearman's correlation in the same way, up to seven donors by all
    permutations, with Bonett and Wright's interval (2000). The donor itself, as a column, has no p value.

    Sets of genes are compared within strata of 16 to 31 genes alike in mean rank, detection and expression,
    and membership is permuted there (`mt.tl.head_enrichment`), by its first three moments; q for all sets and
    features together. The p is for the genes, not for the donors.

    Columns are corrected one by one: where thousands of features go with cell types, a common correction
    would let pass one in twenty of them for the age. Dictionaries differ in size: `share_pass` is by feature,
    and `held_out` is free of the choice of the best.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(200, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.tl.features(adata, model, mt.load_sae("demo"))
    >>> mt.tl.feature_summary(adata, groupby="cell_type", gene_sets="TF")
    >>> mt.get.table(adata, "feature_summary", "dictionaries")["dictionary"].unique().tolist()
    ['features', 'features_pca', 'features_random', 'genes']
    """
    found = read_result(adata, key, "mt.tl.features(adata, model, sae)")
    require_free(adata, key_added or _keys.FEATURE_SUMMARY)
    require_rank(adata)
    require_tokens(adata)
    dictionaries = _dictionary_keys(adata, key, found, controls)
    given = {"groupby": groupby, "condition_key": condition_key, "time_key": time_key}
    asked = find_columns(
        adata.obs,
        optional=(*given, "donor_key", "batch_key"),
        donor_key=donor_key,
        batch_key=batch_key,
        **given,
    )
    donor_key, batch_key = asked["donor_key"], asked["batch_key"]
    cells, rows = known_cells(adata, donor_key)
    columns, stratum = _columns(cells, asked, rng, guessed=time_key is None)
    matrices = {name: sp.csr_matrix(adata.obsm[name])[rows] for name in dictionaries}
    matrices[GENES], genes = gene_scores(cells)

    results = {name: _associations(matrix, columns, min_effect) for name, matrix in matrices.items()}
    table, params = found["features"].reset_index(drop=True), found["params"]
    tables = {"associations": results[key]}
    if gene_sets is not None:
        tables["gene_sets"], n_sets = _gene_sets(adata, key, gene_sets)
    alive = {name: matrix.getnnz(axis=0) > 0 for name, matrix in matrices.items()}
    counted = [_count(name, results[name], int(alive[name].sum())) for name in results]
    best = [_best(name, results[name], genes if name == GENES else None) for name in results]
    features = _features(table, results[key], tables.get("gene_sets"))
    features = features.join(_confounders(cells, matrices[key], found, stratum, donor_key, batch_key))
    features["confounded"] = _in_words(features, int(params["n_read"]) / int(params["n_cells"]))
    settings = {
        "unit": "AUROC or Spearman correlation",
        "features": key,
        "groupby": as_list(asked["groupby"]),
        "condition_key": asked["condition_key"],
        "time_key": next((column.name for column in columns if column.is_time), None),
        "donor_key": donor_key,
        "batch_key": batch_key,
        "min_effect": min_effect,
        "alpha": ALPHA,
        "correction": "Benjamini-Hochberg, over the rows of a column and dictionary; of gene sets, over all",
        "n_tests": int(results[key]["p_value"].notna().sum()),
        "n_gene_sets": n_sets if gene_sets is not None else 0,
        "n_cells": cells.n_obs,
        "seed": rng,
    }
    names = ("model", "model_sha256", "sae_sha256", "pool")
    write_result(
        adata,
        _keys.FEATURE_SUMMARY,
        {name: params[name] for name in names if name in params} | settings,
        key_added=key_added,
        features=features,
        **tables,
        dictionaries=pd.concat(counted, ignore_index=True),
        best=pd.concat(best, ignore_index=True),
    )


def _dictionary_keys(adata: AnnData, key: str, found: dict, controls: Sequence[str]) -> list[str]:
    """Keys of `.obsm` that are compared, the features first."""
    names = [key, *(f"{key}{suffix}" for suffix in found["params"]["controls"]), *controls]
    for name in names:
        if name not in adata.obsm:
            raise KeyError(f"Did not find .obsm[{name!r}]. Available: {sorted(adata.obsm)}.")
        matrix = adata.obsm[name]
        if (matrix.data.min(initial=0) if sp.issparse(matrix) else np.min(matrix, initial=0)) < 0:
            raise ValueError(
                f".obsm[{name!r}] has values below 0: activations of a dictionary are at least 0. Give each direction "
                "as two columns, the values above 0 and those below with their sign turned."
            )
    return list(dict.fromkeys(names))


def _columns(
    cells: AnnData, asked: Mapping, seed: int, *, guessed: bool
) -> tuple[list[Column], np.ndarray | None]:
    """What features are compared by, and the strata of the cells."""
    units = get_units(cells, asked["donor_key"], seed)
    labels = [*as_list(asked["groupby"]), asked["condition_key"], asked["batch_key"]]
    labels = list(dict.fromkeys(name for name in labels if name is not None))
    require_obs(cells, *labels, asked["time_key"])
    kinds = [label_column(cells, name, units, None, asked["donor_key"]) for name in labels]
    stratum = None
    if as_list(asked["groupby"]) and kinds[0].kind != "between" and kinds[0].name != asked["donor_key"]:
        code, names = get_groups(cells, as_list(asked["groupby"])[0])
        stratum = np.where(code < 0, len(names), code)
        kinds[1:] = [label_column(cells, name, units, stratum, asked["donor_key"]) for name in labels[1:]]
    times = _times(cells, asked["time_key"], guessed=guessed)
    if times is not None:
        kinds.append(time_column(times, asked["time_key"], units, stratum))
    if not kinds:
        raise ValueError(
            "There is nothing to compare features by: give groupby=, condition_key= or time_key=, columns of .obs."
        )
    if not units.known:
        warn(
            f"Fewer than {MIN_UNITS} donors are known: effects are over cells, without p values and intervals. "
            "Cells of one donor are no independent samples."
        )
    return kinds, stratum


def _times(cells: AnnData, name: str | None, *, guessed: bool) -> np.ndarray | None:
    """Times, NaN where there is none; nothing if a column that nobody named holds no numbers."""
    if name is None:
        return None
    there = ~is_missing(cells.obs[name])
    times = np.full(cells.n_obs, np.nan)
    try:
        times[there] = as_numbers(cells.obs[name][there], name)
    except ValueError as error:
        if not guessed:
            raise
        warn(f"Times are left out: {error}")
        return None
    return times


def gene_scores(cells: AnnData) -> tuple[sp.csr_matrix, np.ndarray]:
    """Single genes as a dictionary: 1 for the first of a cell, falling to 0 for what it does not have."""
    column = np.flatnonzero(cells.var[_keys.TOKEN_ID].to_numpy() >= 0)
    ranks = sp.csr_matrix(cells.layers[_keys.RANK])[:, column].astype(np.float64)
    n = np.repeat(cells.obs[_keys.N_RANKED].to_numpy(), np.diff(ranks.indptr))
    ranks.data = (n - ranks.data + 1) / n
    return ranks, np.asarray(symbols(cells)).astype(str)[column]


def _associations(matrix: sp.csr_matrix, columns: list[Column], min_effect: float) -> pd.DataFrame:
    """A row a feature that is active somewhere, and label or time."""
    alive = np.flatnonzero(matrix.getnnz(axis=0) > 0)
    parts = [_of_column(matrix[:, alive], column) for column in columns]
    table = pd.concat([part for part, _ in parts], ignore_index=True)
    table.insert(0, "feature", np.concatenate([np.tile(alive, n) for _, n in parts]))
    chance = np.where(table["measure"] == "AUROC", 0.5, 0.0)
    scale = np.where(table["measure"] == "AUROC", 1.0, 0.5)
    away = [(table[name] - chance) * scale for name in ("effect", "half_1", "half_2")]
    table["q_value"] = table.groupby("column", sort=False)["p_value"].transform(
        lambda part: benjamini_hochberg(part.to_numpy())
    )
    table["same_sign"] = np.sign(away[1]) * np.sign(away[2]) > 0
    called = (table["q_value"] < ALPHA) | table["p_value"].isna() & (table["test"] == "")
    table["passes"] = called & (away[0].abs() >= min_effect) & table["same_sign"]
    first = [
        "feature",
        "column",
        "value",
        "measure",
        "effect",
        "effect_low",
        "effect_high",
        "p_value",
        "q_value",
    ]
    return table[[*first, *(name for name in table if name not in first)]]


def _of_column(matrix: sp.csr_matrix, column: Column) -> tuple[pd.DataFrame, int]:
    if column.is_time:
        there = np.isfinite(column.code)
        unit = np.unique(column.design.unit[there], return_inverse=True)
        cells = column.kind == "cells"
        design = column.design._replace(
            unit=unit[1],
            stratum=column.design.stratum[there],
            half=column.design.half[there if cells else unit[0]],
        )
        found, values = time_effects(matrix[there], column.code[there], design, column.kind), [""]
    else:
        found = label_effects(matrix, column.code, len(column.values), column.design, column.kind)
        values = column.values
    return _as_table(found, column, values, matrix.shape[1]), len(values)


def _as_table(found: Effects, column: Column, values: list[str], width: int) -> pd.DataFrame:
    fields = {name: part.ravel() for name, part in found._asdict().items()}
    return pd.DataFrame(
        {
            "column": column.name,
            "value": np.repeat(np.array(values, dtype=object), width),
            "measure": "Spearman" if column.is_time else "AUROC",
            "effect": fields["effect"],
            "effect_low": fields["low"],
            "effect_high": fields["high"],
            "p_value": fields["p_value"],
            "test": _TESTS.get(("time" if column.is_time else "label", column.kind), ""),
            "n_units": fields["n_units"].astype(int),
            "half_1": fields["half_1"],
            "half_2": fields["half_2"],
        }
    )


class _Sets(NamedTuple):
    names: np.ndarray
    member: sp.csc_matrix
    strata: np.ndarray
    row: np.ndarray


def _gene_sets(adata: AnnData, key: str, wanted: Mapping | str | Path) -> tuple[pd.DataFrame, int]:
    """Sets among the genes of each feature, and how many sets were tested."""
    if key not in adata.varm:
        raise KeyError(f"Did not find .varm[{key!r}]. Run mt.tl.features(adata, model, sae) first.")
    sets = _usable_sets(adata, wanted)
    activation = sp.csc_matrix(adata.varm[key])[sets.row]
    n_sets = len(sets.names)
    alive = np.flatnonzero(activation.getnnz(axis=0) > 0)
    parts = [
        rank_sums(activation[:, alive[at]].toarray(), sets.member, sets.strata)
        for at in column_chunks(len(alive), len(sets.row) + 8 * n_sets)
    ]
    auroc, low, high, p, n_active = (
        np.concatenate(part, axis=1) if parts else np.zeros((n_sets, 0)) for part in zip(*parts, strict=True)
    )
    q = benjamini_hochberg(p.ravel()).reshape(p.shape)
    place = np.nan_to_num(p, nan=2).argsort(axis=0, kind="stable").argsort(axis=0)
    at = np.argwhere((place < _SETS).T | (q < ALPHA).T)
    at = at[np.lexsort((place[at[:, 1], at[:, 0]], at[:, 0]))]
    feature, one = at.T
    size = np.asarray(sets.member.sum(axis=0)).ravel().astype(int)
    table = pd.DataFrame({"feature": alive[feature], "gene_set": sets.names[one]})
    for name, values in (
        ("auroc", auroc),
        ("auroc_low", low),
        ("auroc_high", high),
        ("p_value", p),
        ("q_value", q),
    ):
        table[name] = values[one, feature]
    table["n_genes"], table["n_active"] = size[one], n_active[one, feature]
    return table, n_sets


def _usable_sets(adata: AnnData, wanted: Mapping | str | Path) -> _Sets:
    """Sets with genes that can be compared, and the strata of all genes."""
    sets = read_gene_sets(wanted)
    covariates = gene_covariates(adata)
    ids = pd.Series(adata.var[_keys.ENSEMBL_ID].astype(str).to_numpy(dtype=object))
    is_first = ((adata.var[_keys.TOKEN_ID].to_numpy() >= 0) & ~ids.duplicated().to_numpy()).nonzero()[0]
    covariates = covariates.reindex(ids.iloc[is_first])
    often = (covariates["detection"].to_numpy() * adata.n_obs) > MIN_READ - 0.5
    row = is_first[often]
    genes = pd.DataFrame(
        {
            "gene": adata.var_names[row].astype(str),
            "ensembl_id": ids.iloc[row].to_numpy(),
            "symbol": np.asarray(symbols(adata)).astype(str)[row],
        }
    )
    strata = make_strata(covariates.to_numpy()[often]) if len(row) else np.zeros(0, dtype=np.int64)
    member = set_members(genes, sets)
    known = np.asarray(member.sum(axis=0)).ravel() >= MIN_GENES
    if not known.any():
        raise ValueError(
            f"No gene set has {MIN_GENES} of its genes among the {len(row)} that are read {MIN_READ} times in these "
            "cells. Give symbols, Ensembl ids or .var_names."
        )
    return _Sets(np.array(list(sets), dtype=object)[known], member[:, known], strata, row)


def _count(name: str, table: pd.DataFrame, n_features: int) -> pd.DataFrame:
    """How many features of a dictionary pass, by column and for any."""
    rows = []
    passing = table[table["passes"]]
    for column in [*table["column"].unique(), "any"]:
        part = passing if column == "any" else passing[passing["column"] == column]
        n_pass = part["feature"].nunique()
        n_values = len(part[["column", "value"]].drop_duplicates())
        high = part[(part["measure"] != "AUROC") | (part["effect"] > 0.5)]
        each = len(high) / high["feature"].nunique() if len(high) else np.nan
        of_column = table if column == "any" else table[table["column"] == column]
        n_units = int(of_column["n_units"].where(of_column["test"] != "", 0).max())
        share = n_pass / max(n_features, 1)
        rows.append((name, column, n_features, n_pass, share, n_values, each, n_units))
    names = [
        "dictionary",
        "column",
        "n_features",
        "n_pass",
        "share_pass",
        "n_values",
        "values_each",
        "n_units",
    ]
    return pd.DataFrame(rows, columns=names)


def _best(name: str, table: pd.DataFrame, symbol: np.ndarray | None) -> pd.DataFrame:
    """The feature that tells each label best, and how well the best of one half tells it in the other."""
    is_label = (table["measure"] == "AUROC").to_numpy()
    # Of a time, also what falls; of a label, what is active there.
    table = table.assign(
        score=np.where(is_label, table["effect"], table["effect"].abs()),
        chosen=np.where(is_label, table["half_1"], table["half_1"].abs()),
    )
    by = table.groupby(["column", "value"], sort=False)
    top = table.loc[by["score"].idxmax().dropna().astype(int)]
    fields = ["column", "value", "measure", "feature", "effect", "q_value", "passes"]
    best = top[fields].reset_index(drop=True)
    halves = table.dropna(subset="chosen").groupby(["column", "value"], sort=False)["chosen"].idxmax()
    chosen = table.loc[halves.astype(int)].set_index(["column", "value"])
    # A correlation counts by the sign that it had in the first half.
    sign = np.where(chosen["measure"] == "AUROC", 1, np.sign(chosen["half_1"]))
    held_out = (chosen["half_2"] * sign).reindex(pd.MultiIndex.from_frame(best[["column", "value"]]))
    best.insert(6, "held_out", held_out.to_numpy())
    best["feature"] = best["feature"].astype(str) if symbol is None else symbol[best["feature"]]
    best.insert(0, "dictionary", name)
    return best


def _features(table: pd.DataFrame, associations: pd.DataFrame, sets: pd.DataFrame | None) -> pd.DataFrame:
    """What is known of each feature, and what it goes with most."""
    found = table[["feature", "top_genes", "density", "n_cells", "mean_rank"]].copy()
    labels = associations[associations["measure"] == "AUROC"]
    high = labels["effect"] > 0.5
    # A feature is known by where it is active, and only then by where it is not.
    labels = labels.assign(away=(labels["effect"] - 0.5).abs(), tells=labels["passes"] & high)
    labels = labels.sort_values(["tells", "passes", "away"], ascending=False, kind="stable")
    labels = labels.drop_duplicates("feature").set_index("feature").reindex(found["feature"])
    side = np.where(labels["effect"] < 0.5, " (low)", "")
    found["goes_with"] = (labels["column"] + ": " + labels["value"] + side).fillna("").to_numpy()
    found["effect"], found["q_value"] = labels["effect"].to_numpy(), labels["q_value"].to_numpy()
    found["passes"] = labels["passes"].isin([True]).to_numpy()
    times = associations[associations["measure"] == "Spearman"].set_index("feature").reindex(found["feature"])
    found["time_rho"], found["time_q"] = times["effect"].to_numpy(), times["q_value"].to_numpy()
    found["gene_set"], found["gene_set_q"] = "", np.nan
    if sets is not None:
        first = sets.drop_duplicates("feature").set_index("feature").reindex(found["feature"])
        found["gene_set"] = first["gene_set"].fillna("").to_numpy()
        found["gene_set_q"] = first["q_value"].to_numpy()
    return found


def _confounders(
    cells: AnnData,
    matrix: sp.csr_matrix,
    found: Mapping,
    stratum: np.ndarray | None,
    donor_key: str | None,
    batch_key: str | None,
) -> pd.DataFrame:
    """What else may explain each feature."""
    stratum = np.zeros(cells.n_obs, dtype=np.int64) if stratum is None else stratum
    one = np.zeros(cells.n_obs, dtype=np.int64)
    table = pd.DataFrame(index=range(matrix.shape[1]))
    depth = cells.obs[_keys.N_RANKED].to_numpy(dtype=float)
    table["depth_rho"] = unit_correlations(matrix, depth, one, stratum)[0, 0]
    table["counts_rho"] = np.nan
    if has_counts(cells):
        total = np.asarray(ranked_counts(cells).sum(axis=1)).ravel()
        table["counts_rho"] = unit_correlations(matrix, total, one, stratum)[0, 0]
    for name, key in (("donor_share", donor_key), ("batch_share", batch_key)):
        table[name] = np.nan
        if key is not None:
            code, _ = get_groups(cells, key)
            table[name] = share_of_variance(matrix[code >= 0], code[code >= 0], stratum[code >= 0])
    genes = found["genes"]
    is_housekeeping = genes["symbol"].astype(str).str.upper().str.match(_HOUSEKEEPING_GENE)
    table["housekeeping"] = is_housekeeping.groupby(genes["feature"]).mean().reindex(table.index)
    return table


def _in_words(table: pd.DataFrame, length: float) -> np.ndarray:
    """Which confounders of each feature are strong."""
    strong = {
        "depth": (table[["depth_rho", "counts_rho"]].abs() >= _DEPTH).any(axis=1),
        "donor": table["donor_share"] >= _SHARE,
        "batch": table["batch_share"] >= _SHARE,
        "first ranks": table["mean_rank"] <= _ENDS * length,
        "last ranks": table["mean_rank"] >= (1 - _ENDS) * length,
        "housekeeping genes": table["housekeeping"] >= _HOUSEKEEPING,
    }
    words = np.full(len(table), "", dtype=object)
    for name, is_strong in strong.items():
        sep = np.where(words == "", "", ", ")
        words = np.where(is_strong, words + sep + name, words)
    return words
