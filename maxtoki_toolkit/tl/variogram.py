"""How far apart are cells no longer alike? Variograms of numbers, classes and embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from .._progress import progress
from ..pp._tissue import Mapped, Tissue, baselines, columns_of, read_mapped, read_tissue
from ..results.store import write_result
from ..stats.donors import mean_of_donors
from ..stats.fdr import benjamini_hochberg
from ..stats.space import (
    Pairs,
    draw_pairs,
    fit_levels,
    mean_known,
    pair_means,
    permutation_test,
    shuffled,
    unit_means,
)

N_PAIRS = 1000  # of an image and bin: what more of them add is small beside what images differ by
N_BOOTSTRAP = 200
_MEASURES = {
    "number": "semivariance",
    "gene": "semivariance",
    "class": "share of unlike pairs",
    "embedding": "mean squared distance",
}


def variogram(
    adata: AnnData,
    *,
    keys: str | Sequence[str],
    library_key: str | None = None,
    donor_key: str | None = None,
    n_bins: int = 12,
    max_distance: float | None = None,
    n_permutations: int = 199,
    distance_unit: str = "units",
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Measure how unlike pairs of cells are by their distance, and where that levels off.

    Parameters
    ----------
    adata
        Cells with places in `.obsm["spatial"]` (cells x 2 or 3).
    keys
        What is compared: columns of `.obs` (numbers, or classes), matrices of `.obsm` (as an embedding),
        genes (names or symbols; from raw counts in `.X`).
    library_key
        Column of `.obs` with the image or section, guessed from its name; without one, all cells are in one.
    donor_key
        Column of `.obs` with the donor, guessed from its name; may be missing.
    n_bins
        Bins of distance, equally wide.
    max_distance
        Largest distance, in `distance_unit`; by default a third of the diagonal of the median image.
    n_permutations
        Orders of the cells within each image.
    distance_unit
        Unit of the places, such as "µm".
    rng
        Seed of the pairs, the permutations and the bootstrap.
    key_added
        Key in `.uns`, by default "variogram".

    Returns
    -------
    `None`. Writes two tables to `.uns["variogram"]`. `bins` has a row for each key, and baseline, and bin:

    `key`, `measure`, `baseline`
        The name; "semivariance" (half the mean squared difference) of numbers, "share of unlike pairs" of
        classes, "mean squared distance" of embeddings; and whether it is a baseline: "cell density" or, of
        counts, "library size".
    `bin`, `distance_low`, `distance_high`, `distance`
        Number from 0, its limits, and the mean of its pairs.
    `value`, `ci_low`, `ci_high`
        The measure: the mean over donors of the means over their images, with its 95% interval (t
        distribution, from three donors on); where donors are not known, over images.
    `null_mean`, `null_low`, `null_high`
        Mean and middle 95% of the same with cells exchanged within each image.
    `p_value`, `q_value`
        Two-sided, by these permutations; corrected for keys and bins (Benjamini and Hochberg).
    `n_pairs`, `n_images`, `n_units`
        Pairs, and the images and donors that they are from.

    `ranges` has a row for each key and baseline: `key`, `measure`, `baseline`,

    `nugget`, `sill`
        Measure at distance 0 and where it has levelled off, by the exponential model; an extrapolation where
        the range is infinite.
    `range`, `range_low`, `range_high`
        Distance at which 95% of the rise is done, with its 95% interval (bootstrap over donors, or images;
        from three on). Infinite where the curve still rises at the largest distance, NaN where the nearest
        cells are no more alike than others.
    `p_value`, `q_value`
        Those of the first bin, corrected for the keys: are near cells more, or less, alike than cells of the
        image at large?

    Raises
    ------
    KeyError
        If there are no places, or a name is not known.
    ValueError
        If an image has cells of several donors, or there are no pairs in the first bin.

    Notes
    -----
    Empirical variogram (Matheron, Economic Geology 1963), of at most 1,000 pairs of an image and bin, drawn
    at random; the exponential model is fitted by least squares weighted with the number of pairs. Cells are
    exchanged, not donors: the band and the p value are about these images, the intervals about other donors
    (or images). A gradient through the whole image has no range, and gives an infinite one.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.tissue(2000)
    >>> mt.tl.variogram(adata, keys=["field", "cell_type"], library_key="image_id", donor_key="donor_id",
    ...                 max_distance=600.0, n_permutations=99, distance_unit="µm")
    >>> ranges = mt.get.table(adata, "variogram", "ranges").set_index("key")
    >>> low, high = ranges.loc["field", ["range_low", "range_high"]]
    >>> bool(low < adata.uns["truth"]["range"] < high)
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
    mapped = [*read_mapped(tissue.cells, keys), *basic]
    if max_distance is None:
        max_distance = _third(tissue)
    if not max_distance > 0:
        raise ValueError("max_distance must be more than 0: cells of an image lie in one place.")
    edges = np.linspace(0, max_distance, n_bins + 1)
    pairs = draw_pairs(tissue.places, tissue.starts, edges, N_PAIRS, np.random.default_rng([rng, 0]))
    if not (pairs.bin == 0).any():
        raise ValueError(
            f"No two cells of an image lie within {edges[1]:.3g} {distance_unit} of each other. Give fewer bins (n_bins) or "
            "a larger max_distance."
        )

    def by_unit(order: np.ndarray) -> np.ndarray:
        """Units x keys x bins."""
        return np.stack([_curve(part, pairs, order, tissue, n_bins) for part in mapped], axis=1)

    found = by_unit(np.arange(len(tissue.places)))
    null = np.stack(
        [
            mean_known(by_unit(shuffled(tissue.starts, np.random.default_rng([rng, 1, i]))))
            for i in progress(range(n_permutations), desc="permutations", unit="permutation")
        ]
    )
    bins = _bin_table(mapped, len(basic), found, null, edges, pairs, tissue)
    write_result(
        adata,
        _keys.VARIOGRAM,
        {
            "unit": "",
            "keys": [keys] if isinstance(keys, str) else list(keys),
            **tissue.params,
            "n_bins": n_bins,
            "max_distance": float(max_distance),
            "n_permutations": n_permutations,
            "max_pairs": N_PAIRS,
            "seed": rng,
        },
        key_added=key_added,
        bins=bins,
        ranges=_range_table(bins, found, rng),
    )


def _third(tissue: Tissue) -> float:
    first = tissue.starts[:-1]
    extent = np.maximum.reduceat(tissue.places, first) - np.minimum.reduceat(tissue.places, first)
    return float(np.median(np.linalg.norm(extent, axis=1)) / 3)


def _curve(part: Mapped, pairs: Pairs, order: np.ndarray, tissue: Tissue, n_bins: int) -> np.ndarray:
    """Measure by unit and bin, with the values of the cells in this order."""
    left, right = order[pairs.left], order[pairs.right]
    if part.kind == "class":
        differences = (part.values[left] != part.values[right]).astype(float)
    elif part.kind == "embedding":
        differences = np.zeros(len(left))
        for column in part.values.T:
            differences += (column[left] - column[right]) ** 2
    else:
        differences = (part.values[left] - part.values[right]) ** 2 / 2
    return unit_means(pair_means(differences, pairs, len(tissue.images), n_bins), tissue.unit)


def _bin_table(mapped, n_basic: int, found, null, edges, pairs: Pairs, tissue: Tissue) -> pd.DataFrame:
    n_keys, n_bins = found.shape[1:]
    n_pairs = np.bincount(pairs.bin, minlength=n_bins)
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.bincount(pairs.bin, weights=pairs.distance, minlength=n_bins) / n_pairs
    with_pairs = np.zeros((len(tissue.images), n_bins), dtype=bool)
    with_pairs[pairs.image, pairs.bin] = True
    mean = mean_of_donors(found)
    drawn = permutation_test(mean.estimate, null)
    baseline = np.arange(n_keys) >= n_keys - n_basic
    asked = np.repeat(~baseline, n_bins)
    return pd.DataFrame(
        {
            "key": np.repeat([part.name for part in mapped], n_bins),
            "measure": np.repeat([_MEASURES[part.kind] for part in mapped], n_bins),
            "baseline": ~asked,
            "bin": np.tile(np.arange(n_bins), n_keys),
            "distance_low": np.tile(edges[:-1], n_keys),
            "distance_high": np.tile(edges[1:], n_keys),
            "distance": np.tile(distance, n_keys),
            "value": mean.estimate.ravel(),
            "ci_low": mean.low.ravel(),
            "ci_high": mean.high.ravel(),
            "null_mean": drawn.mean.ravel(),
            "null_low": drawn.low.ravel(),
            "null_high": drawn.high.ravel(),
            "p_value": drawn.p_value.ravel(),
            "q_value": benjamini_hochberg(np.where(asked, drawn.p_value.ravel(), np.nan)),
            "n_pairs": np.tile(n_pairs, n_keys),
            "n_images": np.tile(with_pairs.sum(axis=0), n_keys),
            "n_units": mean.n.ravel(),
        }
    )


def _range_table(bins: pd.DataFrame, found: np.ndarray, seed: int) -> pd.DataFrame:
    first = bins[bins["bin"] == 0].reset_index(drop=True)
    table = first[["key", "measure", "baseline"]].copy()
    n_bins = found.shape[2]
    distance, weight = (bins[name].to_numpy()[:n_bins] for name in ("distance", "n_pairs"))
    generator = np.random.default_rng([seed, 2])
    draws = generator.integers(0, len(found), (N_BOOTSTRAP, len(found)))
    rows = np.full((len(first), 5), np.nan)
    for k in range(len(first)):
        rows[k, :3] = fit_levels(distance, mean_known(found[:, k])[None], weight)[0]
        if first["p_value"][k] >= 0.05 or first["value"][k] >= first["null_mean"][k]:
            rows[k, 2] = np.nan
        elif len(found) >= 3:
            curves = mean_known(found[draws.T, k])
            reach = fit_levels(distance, curves, weight)[:, 2]
            rows[k, 3:] = np.nanquantile(reach, [0.025, 0.975], method="nearest")
    table[["nugget", "sill", "range", "range_low", "range_high"]] = rows
    table["p_value"] = first["p_value"]
    table["q_value"] = benjamini_hochberg(first["p_value"].where(~first["baseline"]))
    return table
