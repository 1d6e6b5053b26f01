"""In which cells and at which genes features are active together, by the units that are resampled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from ..models.coactivation import Coactivation, count_pairs
from ..stats.coactivity import Counts, Unit
from .features import DENSE

MIN_ACTIVE = 20  # places at which a feature has to be active to be compared
_MIN_DONORS = 5  # fewer say little when they are resampled
_MOST_DONORS = 50
_BLOCKS, _BLOCK = 25, 5  # blocks of cells, and cells of one at least


class Activity(NamedTuple):
    """What is known of the features in some cells."""

    counts: Counts
    into: np.ndarray
    """Of each unit of the counts, the one that is resampled."""
    unit: str
    """What that is."""
    genes: sp.csr_matrix
    """Tokens x features: places at which each is active."""
    n_read: np.ndarray
    """Places of each token."""
    rank: np.ndarray
    """Sum of the ranks of the places of each feature."""

    @property
    def n_active(self) -> np.ndarray:
        """Places at which each feature is active."""
        return np.asarray(self.genes.sum(axis=0)).ravel()

    @property
    def density(self) -> np.ndarray:
        """The same as a share of all."""
        return self.n_active / max(self.n_read.sum(), 1)

    @property
    def alive(self) -> np.ndarray:
        """Features that are active often enough."""
        return np.flatnonzero(self.n_active >= MIN_ACTIVE)

    @property
    def compared(self) -> np.ndarray:
        """Those of them that are not active nearly everywhere."""
        return np.flatnonzero((self.n_active >= MIN_ACTIVE) & (self.density <= DENSE))

    def units(self, features: np.ndarray) -> Iterator[Unit]:
        """Activity together of some features, unit by unit."""
        return self.counts.units(self.into, features)


def units_of(group: np.ndarray, donor: np.ndarray | None, seed: int) -> np.ndarray:
    """Unit of each cell, whose pairs are counted: a donor or a block of cells within a group."""
    unit, n = np.zeros(len(group), np.int64), 0
    for i in range(group.max() + 1):
        mine = np.flatnonzero(group == i)
        unit[mine] = n + resampled_units(len(mine), None if donor is None else donor[mine], seed)[0]
        n = unit.max() + 1
    return unit


def resampled_units(n: int, donor: np.ndarray | None, seed: int) -> tuple[np.ndarray, str]:
    """Unit of each of n cells, from 0, and what it is: the donor, or a block of cells that share theirs."""
    rng = np.random.default_rng([seed, 17])
    names, code = np.unique(np.zeros(n, int) if donor is None else donor, return_inverse=True)
    if len(names) >= _MIN_DONORS:
        return np.unique((rng.permutation(len(names)) % _MOST_DONORS)[code], return_inverse=True)[1], "donor"
    unit, before = np.zeros(n, np.int64), 0
    for i in range(len(names)):
        mine = np.flatnonzero(code == i)
        n_blocks = max(min(len(mine) // _BLOCK, round(_BLOCKS * len(mine) / n)), 1)
        unit[mine] = before + rng.permutation(len(mine)) % n_blocks
        before += n_blocks
    return unit, "block of cells"


def read_activity(
    found: Coactivation,
    cells: np.ndarray,
    groups: list[int],
    unit: np.ndarray,
    donor: np.ndarray | None,
    *,
    on: str,
    seed: int,
) -> Activity:
    """Activity together in the cells of some groups.

    Parameters
    ----------
    found
        What was counted.
    cells
        Which cells, bool.
    groups
        Their groups.
    unit
        Unit of each cell in which pairs were counted.
    donor
        Of each cell, if known.
    on
        "genes", whose strata are ranks of cells; or "cells", whose strata are the units that are resampled.
    seed
        Of the blocks.
    """
    mine = np.flatnonzero(cells)
    resampled, name = resampled_units(len(mine), None if donor is None else donor[mine], seed)
    genes, n_read = found.genes_of(groups)
    about = (name, genes, n_read, found.rank[groups].sum(axis=0))
    if on == "genes":
        into = np.full(unit.max() + 1, -1)
        into[unit[mine]] = resampled if name == "donor" else np.unique(unit[mine], return_inverse=True)[1]
        return Activity(Counts(found.pairs, found.strata, found.size, unit[found.cell]), into, *about)
    n_genes = np.bincount(found.cell, found.size, len(cells))[mine]
    of_cell = sp.csr_matrix((np.ones(len(found.cell)), (found.cell, np.arange(len(found.cell)))))
    active = (of_cell @ found.strata)[mine].tocoo()
    # At a larger share of the cell's genes than of all.
    n_active = np.asarray(genes.sum(axis=0)).ravel()
    often = active.data * float(n_read.sum()) > n_active[active.col] * n_genes[active.row]
    cell, feature = active.row[often], active.col[often]
    n, width = resampled.max() + 1, active.shape[1]
    alone = sp.csr_matrix((np.ones(len(cell), np.int32), (resampled[cell], feature)), shape=(n, width))
    pairs = count_pairs(cell, feature, resampled[cell], n, width)
    size = np.bincount(resampled, minlength=n)
    return Activity(Counts(pairs, alone, size, np.arange(n)), np.arange(n), *about)
