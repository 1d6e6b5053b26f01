"""A linear clock that says, gene by gene, how old a cell looks so far: what a model is taught before true times."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..models.sequences import Sequences
from ..stats.clocks import fit_ridge

MIN_CELLS = 100  # that a group needs for a clock of its own
MAX_CELLS = 6000  # of a group that a clock is fitted to
N_GENES = 4000  # most genes of a clock, those found in most cells
ALPHAS = np.logspace(2, 5, 7)
LAST_PLACE = 0.1  # what the last place is worth when the first is worth 1


class Teacher(NamedTuple):
    """Ridge regression of time on the places of genes, one for each group, and what of it is still to come."""

    weight: np.ndarray
    """float32, groups x tokens: what a gene adds at the first place; 0 for genes without a say."""
    start: np.ndarray
    """float32, groups: the clock before the first gene; NaN for groups without a clock."""
    rest: np.ndarray
    """float32, groups x places: what the genes from a place on add on average."""

    @property
    def worth(self) -> np.ndarray:
        """What a gene's weight is multiplied with at each place."""
        n_places = self.rest.shape[1] - 1
        return np.linspace(1, LAST_PLACE, n_places, endpoint=False, dtype=np.float32)

    def running(
        self, tokens: np.ndarray, place: np.ndarray, group: np.ndarray, is_gene: np.ndarray
    ) -> np.ndarray:
        """The clock after each of these tokens: the sum over the cell's genes so far and the average of the rest.

        Parameters
        ----------
        tokens, place, group
            Token, how many genes of its cell come before it, and group of its cell; cells end to end, each in
            order.
        is_gene
            Which of the tokens are genes; only there is the clock read.
        """
        added = np.where(
            is_gene, self.weight[group, tokens] * self.worth[np.minimum(place, self.rest.shape[1] - 2)], 0
        )
        total = np.cumsum(added, dtype=np.float64)
        first = np.flatnonzero(place == 0)
        # The sum before each cell's first gene, over all its tokens.
        before = (total - added)[first]
        cell = np.searchsorted(first, np.arange(len(tokens)), side="right") - 1
        value = (
            self.start[group]
            + (total - before[np.maximum(cell, 0)])
            + self.rest[group, np.minimum(place + 1, self.rest.shape[1] - 1)]
        )
        return np.where(is_gene, value, np.nan).astype(np.float32)


def fit_teacher(
    cells: Sequences,
    group: np.ndarray,
    time: np.ndarray,
    used: np.ndarray,
    donor: np.ndarray | None,
    *,
    n_tokens: int,
    n_groups: int,
    seed: int = 0,
) -> Teacher:
    """Fit the clocks to the cells that are trained on, and to no others.

    Parameters
    ----------
    cells
        Cells as sequences, `<bos>` genes `<eos>`.
    group, time, used, donor
        Group and time of each cell, whether it is trained on, and its donor, between whom the penalty is
        chosen (`None`: between cells).
    n_tokens, n_groups
        Size of the vocabulary, and number of groups.
    seed
        Draws the cells of groups that have more than are needed, and the folds.
    """
    n_places = int(cells.lengths.max()) - 2
    teacher = Teacher(
        np.zeros((n_groups, n_tokens), np.float32),
        np.full(n_groups, np.nan, np.float32),
        np.zeros((n_groups, n_places + 1), np.float32),
    )
    for g in range(n_groups):
        rows = np.flatnonzero(used & (group == g))
        if len(rows) < MIN_CELLS or np.ptp(time[rows]) == 0:
            continue
        rng = np.random.default_rng([seed, g])
        if len(rows) > MAX_CELLS:
            rows = np.sort(rng.choice(rows, MAX_CELLS, replace=False))
        row, place, token = _genes(cells, rows)
        tokens, n_cells = np.unique(token, return_counts=True)
        tokens = np.sort(tokens[np.argsort(-n_cells, kind="stable")[:N_GENES]])
        column = np.searchsorted(tokens, token).clip(max=len(tokens) - 1)
        kept = tokens[column] == token
        X = np.zeros((len(rows), len(tokens)), np.float32)
        X[row[kept], column[kept]] = teacher.worth[place[kept]]
        clock, _ = fit_ridge(X, time[rows], None if donor is None else donor[rows], seed, alphas=ALPHAS)
        scaler, ridge = clock[0], clock[-1]
        weight = ridge.coef_ / scaler.scale_
        teacher.weight[g, tokens] = weight
        teacher.start[g] = ridge.intercept_ - (weight * scaler.mean_).sum()
        added = np.zeros((len(rows), n_places), np.float32)
        added[row, place] = teacher.weight[g, token] * teacher.worth[place]
        still = added[:, ::-1].cumsum(axis=1)[:, ::-1]
        teacher.rest[g, :-1] = still.mean(axis=0)
    return teacher


def _genes(cells: Sequences, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every gene of some cells: which of the cells, its place from 0, and its token."""
    taken = cells.take(rows)
    place = taken.positions - 1
    genes = (place >= 0) & (place < np.repeat(taken.lengths - 2, taken.lengths))
    return taken.owner[genes], place[genes], taken.tokens[genes]
