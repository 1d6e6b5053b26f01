"""Which features, genes or predictions lie in patches of the tissue? Moran's I, beside what lies in any tissue."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from .._progress import progress
from .._warn import warn
from ..pp._tissue import Mapped, baselines, columns_of, read_mapped, read_tissue
from ..results.store import write_result
from ..stats.donors import mean_of_donors
from ..stats.fdr import benjamini_hochberg
from ..stats.space import centred, mean_known, morans_i, permutation_test, row_means, shuffled, unit_means


def spatial_features(
    adata: AnnData,
    *,
    keys: str | Sequence[str],
    library_key: str | None = None,
    donor_key: str | None = None,
    n_neighbors: int = 6,
    radius: float | None = None,
    n_permutations: int = 999,
    distance_unit: str = "units",
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Compute Moran's I of features, genes or predictions, with values exchanged within images as the null.

    Parameters
    ----------
    adata
        Cells with places in `.obsm["spatial"]` (cells x 2 or 3).
    keys
        What is mapped: matrices of `.obsm` (each column is a feature, as of `mt.tl.features` or
        `mt.tl.embed`), columns of `.obs` with numbers (as the age of `mt.tl.predict_age`), genes (names or
        symbols; from raw counts in `.X`).
    library_key
        Column of `.obs` with the image or section, guessed from its name; without one, all cells are in one.
    donor_key
        Column of `.obs` with the donor, guessed from its name; may be missing.
    n_neighbors
        Nearest cells of the image that count as neighbours of a cell.
    radius
        In place of `n_neighbors`: all cells as near as this do, in `distance_unit`. On a grid,
        where several are equally near, use this.
    n_permutations
        Orders of the values within each image.
    distance_unit
        Unit of the places, such as "µm".
    rng
        Seed of the permutations.
    key_added
        Key in `.uns`, by default "spatial_features".

    Returns
    -------
    `None`. Writes two tables to `.uns["spatial_features"]`. `features` has a row for each feature, gene or
    column, and for the baselines:

    `key`, `feature`, `baseline`
        Where it is from, its name, and whether it is a baseline: "cell density" or, of counts, "library
        size".
    `morans_i`, `ci_low`, `ci_high`
        Moran's I: the mean over donors of the means over their images, with its 95% interval (t distribution,
        from three donors on); where donors are not known, over images.
    `null_mean`, `null_low`, `null_high`
        Mean and middle 95% of the same with values exchanged within each image.
    `p_value`, `q_value`
        Two-sided, by these permutations; corrected for the rows that are no baseline (Benjamini and
        Hochberg).
    `adjusted`, `adjusted_low`, `adjusted_high`, `adjusted_p_value`, `adjusted_q_value`
        The same of what a regression on the baselines leaves in each image.
    `n_images`, `n_units`
        Images in which it varies, and their donors.

    `units` has a row for each donor (or image) and feature: `unit`, `key`, `feature`, `morans_i`, `adjusted`.
    `params["units"]` says what the units are, `params["n_replicated"]` in how many features all of them have
    the sign of the mean.

    Raises
    ------
    KeyError
        If there are no places, or a name is not known.
    ValueError
        If an image has cells of several donors or too few cells, or a column has no numbers.

    Notes
    -----
    Moran's I with weights that sum to 1 for each cell: near 1 where neighbours are alike, -1 / (n - 1)
    expected by chance (Moran, Biometrika 1950). Library size and cell density vary in nearly every tissue,
    and with them what depends on depth or on how cells are segmented: what is left without them is the claim,
    and patches of cell types are a reason as well. Cells are exchanged, not donors: the p value is about
    these images, the interval about other donors (or images). No p value is below 1 / (n_permutations + 1):
    many genes need many permutations.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.tissue(1000)
    >>> genes = adata.uns["truth"]["gradient_genes"][:3]
    >>> mt.tl.spatial_features(adata, keys=["gradient", *genes], library_key="image_id", donor_key="donor_id",
    ...                        n_permutations=99, distance_unit="µm")
    >>> features = mt.get.table(adata, "spatial_features").set_index("feature")
    >>> bool(features.loc["gradient", "ci_low"] > features.loc["gradient", "null_high"])
    True
    """
    tissue = read_tissue(
        adata,
        *columns_of(adata, keys),
        library_key=library_key,
        donor_key=donor_key,
        distance_unit=distance_unit,
    )
    basic = baselines(tissue)
    names, values = _columns([*read_mapped(tissue.cells, keys), *basic])
    names["baseline"] = np.arange(len(names)) >= len(names) - len(basic)
    weights = row_means(tissue.graph(n_neighbors, radius))

    starts, covariates = tissue.starts, np.column_stack([part.values for part in basic])
    plain, left = centred(values, starts), centred(values, starts, covariates)
    left[:, names["baseline"]] = 0
    both = np.hstack([plain, left])
    found = unit_means(morans_i(both, weights, starts), tissue.unit)
    null = np.empty((n_permutations, both.shape[1]))
    for i in progress(range(n_permutations), desc="permutations", unit="permutation"):
        order = shuffled(starts, np.random.default_rng([rng, i]))
        null[i] = mean_known(unit_means(morans_i(both, weights, starts, order), tissue.unit))

    n = len(names)
    table = _table(names, found[:, :n], found[:, n:], null[:, :n], null[:, n:])
    _say_if_too_few(table, n_permutations)
    varies = np.isfinite(morans_i(plain, weights, starts)).sum(axis=0)
    table = table.assign(n_images=varies, n_units=np.isfinite(found[:, :n]).sum(axis=0))
    same = (np.sign(found[:, :n]) == np.sign(table["morans_i"].to_numpy())).all(axis=0) & ~names["baseline"]
    unit, column = np.nonzero(np.isfinite(found[:, :n]))
    units = pd.DataFrame(
        {
            "unit": np.array(tissue.units, dtype=object)[unit],
            "key": names["key"].to_numpy()[column],
            "feature": names["feature"].to_numpy()[column],
            "morans_i": found[unit, column],
            "adjusted": found[unit, n + column],
        }
    )
    write_result(
        adata,
        _keys.SPATIAL_FEATURES,
        {
            "unit": "Moran's I",
            "keys": [keys] if isinstance(keys, str) else list(keys),
            **tissue.params,
            "n_neighbors": n_neighbors if radius is None else None,
            "radius": radius,
            "n_permutations": n_permutations,
            "n_replicated": int(same.sum()),
            "seed": rng,
        },
        key_added=key_added,
        features=table,
        units=units,
    )


def _say_if_too_few(table: pd.DataFrame, n_permutations: int) -> None:
    """Warn where features lie beyond all permutations, of which there are too few for the correction."""
    beyond = ~table["baseline"] & (table["p_value"] * (n_permutations + 1) < 1.5)
    if beyond.any() and not (table["q_value"] < 0.05).any():
        warn(
            f"{beyond.sum()} of {(~table['baseline']).sum()} features lie beyond all {n_permutations} permutations, and yet no q value is "
            "below 0.05, since no p value can be small enough. Give more permutations (n_permutations), or fewer features."
        )


def _columns(mapped: list[Mapped]) -> tuple[pd.DataFrame, np.ndarray]:
    """Names and values of all features, cells x features."""
    rows, parts = [], []
    for part in mapped:
        if part.kind == "class":
            raise ValueError(
                f".obs[{part.name!r}] has classes, and Moran's I is of numbers: mt.tl.neighborhood_enrichment and "
                "mt.tl.variogram take classes."
            )
        if part.kind == "embedding":
            labels = part.labels or [f"{part.name}_{i}" for i in range(part.values.shape[1])]
            rows += [(part.name, label) for label in labels]
        else:
            rows.append((part.name, part.name))
        parts.append(part.values.reshape(len(part.values), -1))
    return pd.DataFrame(rows, columns=["key", "feature"]), np.hstack(parts)


def _table(
    names: pd.DataFrame, found: np.ndarray, left: np.ndarray, null: np.ndarray, left_null: np.ndarray
) -> pd.DataFrame:
    mean, rest = mean_of_donors(found), mean_of_donors(left)
    drawn, drawn_rest = permutation_test(mean.estimate, null), permutation_test(rest.estimate, left_null)
    asked = ~names["baseline"].to_numpy()
    return names.assign(
        morans_i=mean.estimate,
        ci_low=mean.low,
        ci_high=mean.high,
        null_mean=drawn.mean,
        null_low=drawn.low,
        null_high=drawn.high,
        p_value=drawn.p_value,
        q_value=benjamini_hochberg(np.where(asked, drawn.p_value, np.nan)),
        adjusted=rest.estimate,
        adjusted_low=rest.low,
        adjusted_high=rest.high,
        adjusted_p_value=drawn_rest.p_value,
        adjusted_q_value=benjamini_hochberg(np.where(asked, drawn_rest.p_value, np.nan)),
    )
