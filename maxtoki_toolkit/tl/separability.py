"""Can treated cells be told from controls by their neighbours? Beside PCA, depth and exchanged labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import stats

from .. import _keys
from .._progress import progress
from .._validate import require_unique_names
from .._warn import warn
from ..pp._columns import find_columns
from ..pp._design import as_list, get_groups, get_labels, known_cells
from ..pp._ranked_counts import ranked_counts
from ..results.store import write_result
from ..stats.fdr import benjamini_hochberg
from ..stats.separability import Areas, area_covariance, area_of, nearest, neighbor_areas, permutation_p
from ._embedding_baselines import N_PCS, principal_components

MIN_CELLS = 10  # of each kind
MIN_DONORS = 3


def separability(
    adata: AnnData,
    *,
    use_rep: str = _keys.EMBEDDING,
    condition_key: str | None = None,
    control: str | None = None,
    groupby: str | Sequence[str] | None = None,
    donor_key: str | None = None,
    n_neighbors: int = 15,
    n_cells: int = 500,
    n_permutations: int = 199,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Score how well the neighbours of a cell say whether it was treated.

    Parameters
    ----------
    adata
        Cells with an embedding and the raw counts that were ranked.
    use_rep
        Key in `.obsm` of the embedding (`mt.tl.embed`).
    condition_key, control
        Column of `.obs` with the treatment, and its value for controls; guessed from the names in `.obs`.
    groupby
        Columns of `.obs`: each group, such as a cell line or a cell type, is scored alone. By default all
        cells are one group.
    donor_key
        Column of `.obs` with the donor; guessed from the names in `.obs`. Without donors cells are the units.
    n_neighbors
        Neighbours a cell (Euclidean).
    n_cells
        Cells of either kind that are drawn, of each donor where there are donors; as many controls as treated
        cells, so that 0.5 is chance.
    n_permutations
        Exchanges of labels.
    rng
        Seed of the draws, of PCA and of the exchanges.
    key_added
        Key in `.uns`, by default "separability".

    Returns
    -------
    `None`. Writes the table `scores` to `.uns["separability"]`, a row a group, condition and embedding:

    `group`, `condition`, `embedding`
        What is scored; embeddings are `use_rep`, "PCA" and "depth", the total count of a cell alone.
    `auroc`, `low`, `high`
        Chance that a treated cell has a larger share of treated neighbours than a control, with its 95%
        interval.
    `difference`
        `auroc` of `use_rep` less that of the row, with its interval (`difference_low`, `difference_high`).
    `null`, `null_high`
        Mean and 95th percentile of what exchanged labels give.
    `p_value`, `q_value`
        One-sided, of the exchanges; corrected over the rows of an embedding (Benjamini and Hochberg).
    `n_treated`, `n_control`, `n_donors`, `design`
        Cells that were compared; donors (0 where they are not known), and how they were compared (see Notes).

    Raises
    ------
    KeyError
        If the embedding or a column is not there.
    ValueError
        If no group has enough cells of both kinds.

    Notes
    -----
    Cells are in two halves, each with as many treated cells as controls, and the neighbours of a cell are
    those in the other half: among all others a cell would find fewer of its own kind by chance.

    Where three donors at least have treated cells and controls (design "within donors"), each of these donors
    is scored alone, labels are exchanged among the cells of a donor, and the score is the mean over donors,
    with a t interval over them. Where donors are treated or controls, but not both ("between donors"),
    neighbours are those of all other donors, so that a donor's own look does not pass for the treatment, and
    whole donors exchange their labels; the interval is a jackknife over donors. Chance is below 0.5 then, and
    is `null`. Where donors are not known, or are fewer ("cells"), cells are the units: the interval is
    DeLong's (Biometrics 1988), and says nothing of another culture or donor.

    A group with one sample of each condition cannot tell treatment from sample: a batch separates too.

    Tahoe-x1 (bioRxiv 2025.10.23.683759) reports a separability by neighbours; how it is defined there is not
    known, and its values need not be on this scale.

    PCA is that of `mt.tl.neighbor_purity`.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.drug_screen(2, 2, n_plates=2, n_wells=24)
    >>> model = mt.load_model("demo")
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.tl.embed(adata, model)
    >>> mt.tl.separability(adata, condition_key="drug", control="DMSO", groupby="line")
    >>> scores = mt.get.table(adata, "separability")
    >>> scores.groupby("embedding")["auroc"].mean().round(1).to_dict()["PCA"] > 0.6
    True
    """
    require_unique_names(adata)
    columns = find_columns(
        adata.obs,
        optional=("donor_key",),
        condition_key=condition_key,
        control=control,
        donor_key=donor_key,
    )
    condition_key, control, donor_key = columns.values()
    if use_rep not in adata.obsm:
        raise KeyError(
            f"Did not find .obsm[{use_rep!r}]. Run mt.tl.embed(adata, model) first, or name another: use_rep=."
        )
    if use_rep in ("PCA", "depth"):
        raise ValueError(f"{use_rep!r} is the name of a baseline. Rename the embedding.")
    cells, _ = known_cells(adata, condition_key, donor_key, as_list(groupby))
    group, groups = get_groups(cells, groupby)
    label = get_labels(cells, condition_key)
    donor = None if donor_key is None else get_labels(cells, donor_key)
    if not (label == control).any():
        raise ValueError(f"No cell is a control: .obs[{condition_key!r}] is nowhere {control!r}.")
    embeddings = {use_rep: np.asarray(cells.obsm[use_rep], dtype=np.float64)}
    embeddings |= _baselines(cells, rng)

    sets, few = [], []
    for g, name in enumerate(groups):
        for condition in sorted(set(label[group == g]) - {control}):
            treated = (group == g) & (label == condition)
            drawn = _draw(treated, (group == g) & (label == control), donor, n_cells, (rng, g))
            enough = drawn is not None and all(len(rows) >= 2 * n_neighbors for rows, _ in drawn[1])
            (sets if enough else few).append((name, condition, drawn))
    if not sets:
        raise ValueError(
            f"No group has {max(MIN_CELLS, n_neighbors)} treated cells and as many controls. Group more coarsely "
            "(groupby=), or give a smaller n_neighbors."
        )
    if few:
        warn(
            f"{len(few)} of {len(few) + len(sets)} groups and conditions have too few cells of both kinds and are left out "
            f"(first: {few[0][0]}, {few[0][1]})."
        )
    rows = []
    for i, (name, condition, (design, strata, n_donors)) in enumerate(
        progress(sets, desc="Separability", unit="condition")
    ):
        exchanged = _exchange(strata, donor, design, n_permutations, np.random.default_rng([rng, i]))
        found = {
            key: _score(X, strata, donor, design, n_neighbors, exchanged) for key, X in embeddings.items()
        }
        counts = [sum(int((of == kind).sum()) for _, of in strata) for kind in (True, False)]
        about = {"group": name, "condition": condition}
        rows += [
            {**about, "embedding": key, **row, **dict(zip(("n_treated", "n_control"), counts, strict=True))}
            | {"n_donors": n_donors, "design": design}
            for key, row in _rows(found, strata, donor, design).items()
        ]
    table = pd.DataFrame(rows)
    q_values = table.groupby("embedding")["p_value"].transform(lambda p: benjamini_hochberg(p.to_numpy()))
    table.insert(table.columns.get_loc("p_value") + 1, "q_value", q_values)
    params = {
        "unit": "AUROC",
        "use_rep": use_rep,
        "condition_key": condition_key,
        "control": control,
        "groupby": as_list(groupby),
        "donor_key": donor_key,
        "n_neighbors": n_neighbors,
        "n_cells": n_cells,
        "n_permutations": n_permutations,
        "test": "labels exchanged within groups and donors, one-sided",
        "correction": "Benjamini and Hochberg over the rows of an embedding",
        "seed": rng,
    }
    write_result(adata, _keys.SEPARABILITY, params, key_added=key_added, scores=table)


def _baselines(cells: AnnData, seed: int) -> dict[str, np.ndarray]:
    total = np.asarray(ranked_counts(cells).sum(axis=1), dtype=np.float64).reshape(-1, 1)
    return {"PCA": principal_components(cells, N_PCS, seed), "depth": np.log1p(total)}


def _draw(treated, control, donor, n_cells, seed):
    """How cells are compared, and of each stratum the rows and which of them are treated; `None` for too few."""
    stream = np.random.default_rng(seed)

    def some(where: list[np.ndarray]):
        n = min(n_cells, *(mask.sum() for mask in where))
        if n < MIN_CELLS:
            return None
        n -= n % 2  # for two halves
        rows = [stream.permutation(np.flatnonzero(mask))[:n] for mask in where]
        return np.concatenate(rows), np.repeat([True, False], n)

    if donor is None:
        stratum = some([treated, control])
        return None if stratum is None else ("cells", [stratum], 0)
    both = sorted(set(donor[treated]) & set(donor[control]))
    strata = [some([treated & (donor == name), control & (donor == name)]) for name in both]
    strata = [stratum for stratum in strata if stratum is not None]
    if len(strata) >= MIN_DONORS:
        return "within donors", strata, len(strata)
    kinds = [set(donor[mask]) for mask in (treated, control)]
    if not both and min(map(len, kinds)) >= MIN_DONORS:
        # As many cells of each donor, so that none decides alone.
        few = min(
            (donor[mask] == name).sum()
            for mask, names in zip((treated, control), kinds, strict=True)
            for name in names
        )
        each = min(n_cells, max(int(few), MIN_CELLS))
        rows = [
            [stream.permutation(np.flatnonzero(mask & (donor == name)))[:each] for name in sorted(names)]
            for mask, names in zip((treated, control), kinds, strict=True)
        ]
        rows = [np.concatenate(part) for part in rows]
        return (
            "between donors",
            [(np.concatenate(rows), np.repeat([True, False], list(map(len, rows))))],
            sum(map(len, kinds)),
        )
    stratum = some([treated, control])
    return None if stratum is None else ("cells", [stratum], len(set(donor[treated | control])))


def _exchange(strata, donor, design, n, stream) -> list[np.ndarray]:
    """Exchanged labels of each stratum, exchanges x cells: of cells, or of whole donors."""
    if design != "between donors":
        return [_exchange_in_halves(treated, n, stream) for _, treated in strata]
    ((rows, treated),) = strata
    code, names = pd.factorize(donor[rows], sort=True)
    of_donor = np.zeros(len(names), dtype=bool)
    of_donor[code[treated]] = True
    return [stream.permuted(np.tile(of_donor, (n, 1)), axis=1)[:, code]]


def _exchange_in_halves(treated: np.ndarray, n: int, stream) -> np.ndarray:
    labels, half = np.tile(treated, (n, 1)), _halves(treated)
    for part in range(2):
        labels[:, half == part] = stream.permuted(labels[:, half == part], axis=1)
    return labels


def _score(X, strata, donor, design, n_neighbors, exchanged) -> list[Areas]:
    return [
        neighbor_areas(
            nearest(X[rows], n_neighbors, donor[rows] if design == "between donors" else _halves(treated)),
            treated,
            labels,
        )
        for (rows, treated), labels in zip(strata, exchanged, strict=True)
    ]


def _halves(treated: np.ndarray) -> np.ndarray:
    """The half of each cell; a half has as many treated cells as controls (rows are in random order)."""
    return (np.arange(len(treated)) - (~treated) * treated.sum()) % 2


def _rows(found: dict[str, list[Areas]], strata, donor, design) -> dict[str, dict[str, float]]:
    """Score of each embedding with its interval, its null, and the lead of the first over it."""
    area = np.array([[part.area for part in parts] for parts in found.values()])  # embeddings x strata
    value = area.mean(axis=1)
    if design == "within donors":
        reach = stats.t.ppf(0.975, area.shape[1] - 1) / np.sqrt(area.shape[1])
        error = area.std(axis=1, ddof=1) * reach
        lead_error = (area[0] - area).std(axis=1, ddof=1) * reach
    elif design == "between donors":
        error, lead_error = _jackknife(found, strata, donor)
    else:
        covariance = area_covariance([parts[0].parts for parts in found.values()])
        variance = np.diag(covariance)
        error = 1.96 * np.sqrt(variance)
        lead_error = 1.96 * np.sqrt(np.maximum(variance[0] + variance - 2 * covariance[0], 0))
    rows = {}
    for i, (name, parts) in enumerate(found.items()):
        null = np.mean([part.null for part in parts], axis=0)
        lead = value[0] - value[i]
        rows[name] = {
            "auroc": value[i],
            "low": max(value[i] - error[i], 0.0),
            "high": min(value[i] + error[i], 1.0),
            "difference": lead,
            "difference_low": lead - lead_error[i],
            "difference_high": lead + lead_error[i],
            "null": null.mean(),
            "null_high": np.quantile(null, 0.95),
            "p_value": permutation_p(value[i], null),
        }
    return rows


def _jackknife(found, strata, donor) -> tuple[np.ndarray, np.ndarray]:
    """Reach of 95% intervals of the areas, and of the lead of the first, when donors are left out one by one."""
    ((rows, treated),) = strata
    kinds, units = (donor[rows][treated], donor[rows][~treated]), np.unique(donor[rows])
    left = np.array(
        [
            [
                area_of(*(share[names != unit] for share, names in zip(parts[0].shares, kinds, strict=True)))
                for parts in found.values()
            ]
            for unit in units
        ]
    )
    reach = stats.t.ppf(0.975, len(units) - 1) * np.sqrt(len(units) - 1)
    return reach * left.std(axis=0), reach * (left[:, :1] - left).std(axis=0)
