"""Which genes rise or fall with the age of the donor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from .. import _keys
from .._features import gene_columns, symbols
from .._validate import require_obs
from ..pp._columns import find_columns, find_unit
from ..pp._design import as_list, as_numbers, get_groups, get_labels, get_mask, known_cells
from ..pp._ranked_counts import ranked_counts
from ..pp.parse_age import time_in_numbers
from ..results.schema import SCHEMA
from ..results.store import read_result, write_result
from ..stats.slopes import fit_slopes, get_residuals, null_slopes
from ._time_unit import check_unit


def expression_age_slope(
    adata: AnnData,
    *,
    time_key: str | None = None,
    donor_key: str | None = None,
    groupby: str | Sequence[str] | None = None,
    covariates: str | Sequence[str] | None = None,
    use: str | Sequence[bool] | None = None,
    time_unit: str | None = None,
    min_cells: int = 5,
    min_donors: int = 6,
    layer: str | None = None,
    key_added: str | None = None,
) -> None:
    """Regress the expression of each gene on age, over donors.

    Parameters
    ----------
    adata
        Cells with raw counts.
    time_key, donor_key
        Columns of `.obs` with the age (of text, `mt.pp.parse_age` makes numbers) and the donor; guessed from
        the names in `.obs`. A donor of several ages is one sample at each.
    groupby
        Columns of `.obs` with the group of cells, e.g. "cell_type"; slopes are those of a group.
    covariates
        Columns of `.obs` to adjust for, such as sex and batch: numbers as they are, anything else as
        categories. They belong to a sample, so all of its cells must agree.
    use
        Cells to use: boolean column of `.obs`, or one boolean a cell. All by default.
    time_unit
        Unit of `time_key`: "years", "months", "weeks", "days" or "hours"; by default what its name or the
        range of the ages says, or months. Months become years.
    min_cells
        Fewest cells of a group for a sample to count.
    min_donors
        Fewest donors of a group; others have no slopes.
    layer
        Layer with the raw counts; by default what was ranked, or `.X`.
    key_added
        Key in `.uns`, by default "expression_age_slope".

    Returns
    -------
    `None`. Writes the table `slopes` to `.uns["expression_age_slope"]`, a row a gene and group, in
    `params["unit"]`:

    `gene`, `symbol`, `group`
        Ensembl id (or the name in `.var`), symbol, group of cells.
    `slope`, `slope_low`, `slope_high`
        Change of log2 expression with age, and its 95% interval over donors.
    `p_value`, `q_value`
        Two-sided t test; corrected for the genes of a group (Benjamini and Hochberg).
    `mean_expression`, `detection`, `n_donors`
        Mean log2 counts per million over donors, share of the donors' cells with the gene, donors.

    Beside it are `samples`, a row a `group`, `donor` and `time` with `n_cells`, the covariates and the
    `weight` in a slope; and `residuals`, samples x genes, what age and covariates leave of log2 expression.
    From these others make slopes that are noise.

    Raises
    ------
    ValueError
        If these are no counts, no group has enough donors, or age cannot be told from the covariates.

    Notes
    -----
    The counts of a sample's cells are summed (pseudobulk), turned into log2 of counts per million + 1, and
    regressed on age and covariates by least squares; tests are two-sided t tests over samples. A line misses
    genes that turn over with age.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(1000, 20, n_genes=500)
    >>> mt.tl.expression_age_slope(adata, time_key="age_months", donor_key="donor_id", covariates=["sex"])
    >>> mt.get.table(adata, "expression_age_slope").attrs["unit"]
    'log2 expression per year'
    """
    columns = as_list(covariates)
    time_key, donor_key = find_columns(adata.obs, time_key=time_key, donor_key=donor_key).values()
    require_obs(adata, time_key)
    time_unit = find_unit(adata.obs[time_key], time_unit)
    time_key = time_in_numbers(adata, time_key, time_unit)
    cells, kept = known_cells(adata, time_key, donor_key, groupby, columns)
    group, names = get_groups(cells, groupby)
    time = as_numbers(cells.obs[time_key], time_key)
    read_as = check_unit(time_key, time, time_unit, may_name=True)
    rows = np.flatnonzero(get_mask(adata, use, "use")[kept])
    # One row a gene: columns of the same gene are summed in the first of them.
    column = np.flatnonzero(gene_columns(adata.var) == np.arange(adata.n_vars))
    counts = ranked_counts(cells, layer, rows)[:, column]
    unit, factor = ("year", 12.0) if time_unit == "months" else (time_unit.removesuffix("s"), 1.0)

    obs = cells.obs.iloc[rows]
    samples = pd.DataFrame(
        {"group": group[rows], "donor": get_labels(cells, donor_key)[rows], "time": time[rows] / factor}
    )
    number = samples.groupby(["group", "donor", "time"], sort=False).ngroup().to_numpy()
    for name in columns:
        samples[name] = obs[name].to_numpy()
        if (varies := samples[name].groupby(number).nunique(dropna=False) > 1).any():
            raise ValueError(
                f".obs[{name!r}] varies within {varies.sum()} samples; a covariate belongs to the donor."
            )
    n_samples = int(number.max(initial=-1)) + 1
    member = sp.csr_matrix(
        (np.ones(len(number)), (number, np.arange(len(number)))), shape=(n_samples, len(number))
    )
    total = np.asarray((member @ counts).todense(), dtype=float)
    seen = np.asarray((member @ (counts > 0).astype(float)).todense())
    samples = samples.assign(number=number).groupby("number").agg(lambda column: column.iloc[0])
    samples["n_cells"] = np.bincount(number, minlength=n_samples)
    level = np.log2(1e6 * total / np.maximum(total.sum(axis=1, keepdims=True), 1) + 1)

    ids = adata.var[_keys.ENSEMBL_ID] if _keys.ENSEMBL_ID in adata.var else adata.var_names
    head = pd.DataFrame(
        {"gene": np.asarray(ids, dtype=str).astype(object), "symbol": symbols(adata).astype(object)}
    )
    head = head.iloc[column].reset_index(drop=True)
    tables, kept_samples, residuals, few = [], [], [], {}
    for number_of, name in enumerate(names):
        mine = np.flatnonzero((samples["group"] == number_of) & (samples["n_cells"] >= min_cells))
        n_donors = samples["donor"].iloc[mine].nunique()
        if n_donors < min_donors:
            few[name] = n_donors
            continue
        X = _design(samples.iloc[mine], columns)
        table = pd.concat([head, fit_slopes(level[mine], X)], axis=1)
        table.insert(2, "group", name)
        table["detection"] = seen[mine].sum(axis=0) / samples["n_cells"].iloc[mine].sum()
        table["n_donors"] = n_donors
        tables.append(table)
        rest, weight = get_residuals(level[mine], X)
        residuals.append(rest)
        kept_samples.append(samples.iloc[mine].assign(group=name, weight=weight))
    if not tables:
        raise ValueError(f"No group has {min_donors} donors with {min_cells} cells each (donors: {few}).")

    params = {
        "unit": f"log2 expression per {unit}",
        "time_key": time_key,
        "time_read_as": read_as,
        "donor_key": donor_key,
        "groupby": as_list(groupby),
        "covariates": columns,
        "min_cells": min_cells,
        "min_donors": min_donors,
        "groups_left_out": list(few),
        "n_left_out": adata.n_obs - len(kept),
    }
    write_result(
        adata,
        _keys.AGE_SLOPE,
        params,
        key_added=key_added,
        slopes=pd.concat(tables, ignore_index=True),
        samples=pd.concat(kept_samples, ignore_index=True),
        residuals=np.concatenate(residuals),
    )


def draw_null_slopes(
    adata: AnnData, key: str, group: str, genes: Sequence[str], n: int, rng: np.random.Generator
) -> np.ndarray:
    """Null slopes of some genes (Ensembl ids) in a group, draws x genes: residuals exchanged between donors; 0 for others."""
    result = read_result(adata, key, SCHEMA[_keys.AGE_SLOPE].call)
    if "residuals" not in result:
        raise KeyError(f".uns[{key!r}] has no residuals. Run mt.tl.expression_age_slope again.")
    mine = (result["samples"]["group"] == group).to_numpy()
    if not mine.any():
        raise ValueError(
            f".uns[{key!r}] has no slopes of {group!r}, from which the null is made. Run mt.tl.expression_age_slope with the groups "
            "of what is compared."
        )
    samples, slopes = result["samples"][mine], result["slopes"]
    known = pd.Index(slopes.loc[slopes["group"] == group, "gene"])
    place = pd.Series(np.arange(len(known)), index=known)[~known.duplicated()].reindex(genes)
    found = place.notna().to_numpy()
    residuals = np.asarray(result["residuals"])[mine][:, place[found].astype(int)]
    drawn = np.zeros((n, len(place)), dtype=np.float32)
    drawn[:, found] = null_slopes(
        residuals, samples["weight"].to_numpy(), samples["donor"].to_numpy(str), n, rng
    )
    return drawn


def _design(samples: pd.DataFrame, columns: list[str]) -> np.ndarray:
    """Intercept, age, covariates."""
    parts = [np.ones(len(samples)), samples["time"].to_numpy(float)]
    for name in columns:
        if pd.api.types.is_numeric_dtype(samples[name]) and not pd.api.types.is_bool_dtype(samples[name]):
            parts.append(samples[name].to_numpy(float))
        else:
            parts += list(pd.get_dummies(samples[name].astype(str), drop_first=True).to_numpy(float).T)
    X = np.column_stack(parts)
    others = np.delete(X, 1, axis=1)
    if np.linalg.matrix_rank(X) == np.linalg.matrix_rank(others) or len(X) <= np.linalg.matrix_rank(X):
        raise ValueError(
            f"Age cannot be told from the covariates ({', '.join(columns) or 'none'}) in {len(samples)} samples: they give it "
            "away, or there are too few samples. Adjust for less."
        )
    return X
