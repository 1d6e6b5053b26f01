"""Which cells stand beside which, beyond what their numbers explain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from .._progress import progress
from ..pp._columns import find_columns
from ..pp._design import as_list, get_labels
from ..pp._tissue import Tissue, read_tissue
from ..results.store import write_result
from ..stats.donors import mean_of_donors
from ..stats.fdr import benjamini_hochberg
from ..stats.space import (
    Edges,
    expected_edges,
    log2_ratio,
    mean_known,
    permutation_test,
    shuffled,
    unit_means,
)

# An image in which less is expected of a pair says next to nothing of it.
MIN_EXPECTED = 1.0  # edges


def neighborhood_enrichment(
    adata: AnnData,
    *,
    groupby: str | Sequence[str] | None = None,
    library_key: str | None = None,
    donor_key: str | None = None,
    n_neighbors: int = 6,
    radius: float | None = None,
    n_permutations: int = 999,
    distance_unit: str = "units",
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Compare how often cells of one type neighbour those of another with labels exchanged within images.

    Parameters
    ----------
    adata
        Cells with places in `.obsm["spatial"]` (cells x 2 or 3).
    groupby
        Column of `.obs` with the labels, by default the cell type as its name gives it away. Several, such as
        true and predicted types, are each tested, with the same permutations.
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
        Orders of the labels within each image.
    distance_unit
        Unit of the places, such as "µm".
    rng
        Seed of the permutations.
    key_added
        Key in `.uns`, by default "neighborhood_enrichment".

    Returns
    -------
    `None`. Writes two tables to `.uns["neighborhood_enrichment"]`. `pairs` has a row for each column and
    ordered pair of labels:

    `groupby`, `label`, `neighbor`
        The column, a cell's label, and its neighbour's.
    `log2_enrichment`, `ci_low`, `ci_high`
        Base-2 logarithm of observed over expected edges: the mean over donors of the means over their images,
        with its 95% interval (t distribution, from three donors on); where donors are not known, over images.
    `null_mean`, `null_low`, `null_high`
        Mean and middle 95% of the same with labels exchanged within each image.
    `p_value`, `q_value`
        Two-sided, by these permutations; corrected for the pairs of a column (Benjamini and Hochberg).
    `unit_p_value`, `unit_q_value`
        Two-sided t test over donors (or images) of the difference from `null_mean`, and its correction. This
        one is about other donors; the permutations are about these images.
    `n_edges`, `n_expected`, `n_images`, `n_units`
        Edges in the images that count, how many are expected there, these images, and their donors.

    `units` has a row for each donor (or image) and pair that is known there: `groupby`, `unit`, `label`,
    `neighbor`, `log2_enrichment`, `n_images`, `n_edges`, `n_expected`. `params["units"]` says what the units
    are.

    Raises
    ------
    KeyError
        If there are no places.
    ValueError
        If an image has cells of several donors or too few cells, or a column has one label.

    Notes
    -----
    An edge leads from a cell to each of its neighbours, so that with `n_neighbors` the pair (a, b) is not (b,
    a). The expected number is exact: with e edges among the n cells of an image, e n_a n_b / (n (n - 1)). It
    depends on the composition alone, which is the trivial baseline. Half an edge is added to both numbers,
    and an image counts for a pair where at least one edge is expected. Labels exchanged within images are the
    test of histoCAT (Schapiro et al., Nature Methods 2017) and of squidpy's `gr.nhood_enrichment`, which pool
    the images.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.tissue(1000)
    >>> mt.tl.neighborhood_enrichment(adata, groupby="cell_type", library_key="image_id", donor_key="donor_id",
    ...                               n_permutations=99, distance_unit="µm")
    >>> pairs = mt.get.table(adata, "neighborhood_enrichment").sort_values("log2_enrichment")
    >>> niche = adata.uns["truth"]["niche"]
    >>> set(pairs["label"].iloc[-2:]) <= set(niche)
    True
    """
    if not (groupby := as_list(groupby)):
        groupby = [find_columns(adata.obs, groupby=None)["groupby"]]
    tissue = read_tissue(
        adata, *groupby, library_key=library_key, donor_key=donor_key, distance_unit=distance_unit
    )
    edges = Edges.of(tissue.graph(n_neighbors, radius), tissue.starts)
    labels = {column: _labels(tissue, column) for column in groupby}
    parts = {column: _Part(edges, *labels[column], tissue) for column in groupby}
    null = {column: [] for column in groupby}
    unit_null = {column: np.zeros(part.found.shape) for column, part in parts.items()}
    for i in progress(range(n_permutations), desc="permutations", unit="permutation"):
        order = shuffled(tissue.starts, np.random.default_rng([rng, i]))
        for column, part in parts.items():
            drawn = part.by_unit(order)
            null[column].append(mean_known(drawn))
            unit_null[column] += drawn / n_permutations
    pairs = [_pair_table(name, part, np.array(null[name]), unit_null[name]) for name, part in parts.items()]
    units = [_unit_table(name, part, tissue) for name, part in parts.items()]
    write_result(
        adata,
        _keys.NEIGHBORHOODS,
        {
            "unit": "log2 of observed over expected",
            "groupby": groupby,
            **tissue.params,
            "n_neighbors": n_neighbors if radius is None else None,
            "radius": radius,
            "n_permutations": n_permutations,
            "seed": rng,
        },
        key_added=key_added,
        pairs=pd.concat(pairs, ignore_index=True),
        units=pd.concat(units, ignore_index=True),
    )


def _labels(tissue: Tissue, column: str) -> tuple[np.ndarray, np.ndarray]:
    names, codes = np.unique(get_labels(tissue.cells, column).astype(str), return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"All cells with places have one label in .obs[{column!r}]: {names[0]!r}.")
    return names, codes


class _Part:
    """Labels of one column, and what is counted of them."""

    def __init__(self, edges: Edges, names: np.ndarray, codes: np.ndarray, tissue: Tissue) -> None:
        self.edges, self.names, self.codes, self.unit = edges, names, codes, tissue.unit
        self.expected = expected_edges(edges, codes, len(names), tissue.starts)
        self.counts = self.expected >= MIN_EXPECTED
        self.observed = edges.count(codes, len(names))
        self.found = self.by_unit(np.arange(len(codes)))

    def by_unit(self, order: np.ndarray) -> np.ndarray:
        """Units x labels x labels, with the labels in this order."""
        ratio = log2_ratio(self.edges.count(self.codes[order], len(self.names)), self.expected)
        return unit_means(np.where(self.counts, ratio, np.nan), self.unit)


def _pair_table(column: str, part: _Part, null: np.ndarray, unit_null: np.ndarray) -> pd.DataFrame:
    names, mean = part.names, mean_of_donors(part.found)
    over_units = mean_of_donors(part.found - unit_null).p_value.ravel()
    drawn = permutation_test(mean.estimate, null)
    table = pd.DataFrame(
        {
            "groupby": column,
            "label": np.repeat(names, len(names)),
            "neighbor": np.tile(names, len(names)),
            "log2_enrichment": mean.estimate.ravel(),
            "ci_low": mean.low.ravel(),
            "ci_high": mean.high.ravel(),
            "null_mean": drawn.mean.ravel(),
            "null_low": drawn.low.ravel(),
            "null_high": drawn.high.ravel(),
            "p_value": drawn.p_value.ravel(),
        }
    )
    table["q_value"] = benjamini_hochberg(table["p_value"])
    table["unit_p_value"], table["unit_q_value"] = over_units, benjamini_hochberg(over_units)
    for name, values in (("n_edges", part.observed), ("n_expected", part.expected)):
        table[name] = np.where(part.counts, values, 0).sum(axis=0).ravel()
    return table.assign(n_images=part.counts.sum(axis=0).ravel(), n_units=mean.n.ravel())


def _unit_table(column: str, part: _Part, tissue: Tissue) -> pd.DataFrame:
    member = (np.arange(len(tissue.units))[:, None] == tissue.unit).astype(float)
    unit, a, b = np.nonzero(np.isfinite(part.found))
    sums = {
        name: np.tensordot(member, np.where(part.counts, values, 0), 1)[unit, a, b]
        for name, values in (("n_images", 1), ("n_edges", part.observed), ("n_expected", part.expected))
    }
    table = pd.DataFrame(
        {
            "groupby": column,
            "unit": np.array(tissue.units, dtype=object)[unit],
            "label": part.names[a],
            "neighbor": part.names[b],
            "log2_enrichment": part.found[unit, a, b],
            **sums,
        }
    )
    return table.astype({"n_images": int, "n_edges": int})
