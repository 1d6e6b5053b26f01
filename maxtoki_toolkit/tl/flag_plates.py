"""Which plates of a screen are not to be trusted: treatment without effect, borders, replicates that disagree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from scipy import stats

from .. import _keys
from .._progress import progress
from .._validate import require_unique_names
from ..pp._columns import find_columns
from ..pp._design import as_list, get_groups, get_labels, known_cells
from ..pp._ranked_counts import ranked_counts
from ..results.store import write_result
from ..stats.expression import log_normalize
from ..stats.fdr import benjamini_hochberg
from ..stats.plates import at_border, distance_between, plate_shape, read_wells
from ..stats.response_scores import pearson
from ..stats.separability import nearest, permutation_p
from ._embedding_baselines import principal_components

MIN_WELLS = 3  # of each kind
MIN_SHARED = 6  # perturbations that other plates have too
_PERMUTATIONS = 4999
_COMPONENTS = 10  # of the PCA: the others are mostly noise of single cells
# What counts as an edge effect, beside a small p value: AUROC of the border against the inside, or distance
# against its null.
_LEAST_AUROC, _LEAST_DISTANCE = 0.7, 2.0
_LEAST_DROP = 0.1  # of the concordance


def flag_plates(
    adata: AnnData,
    *,
    plate_key: str,
    well_key: str,
    perturbation_key: str | None = None,
    control: str | None = None,
    groupby: str | Sequence[str] | None = None,
    active: Sequence[str] | None = None,
    max_overlap: float = 0.3,
    n_neighbors: int = 15,
    alpha: float = 0.01,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Flag plates on which the treatment left no trace, the border differs, or replicates disagree.

    Parameters
    ----------
    adata
        Cells with raw counts.
    plate_key, well_key
        Columns of `.obs` with the plate, and the well ("A01" to "H12", or to "P24").
    perturbation_key, control
        Column of `.obs` with the perturbation of each well, and its value for controls; guessed from the
        names in `.obs`.
    groupby
        Columns of `.obs` with what else sets plates apart, such as the cell line: replicates are compared
        within a group.
    active
        Perturbations that are known to act, by which the overlap is judged; by default all. A screen in which
        most compounds do nothing needs them.
    max_overlap
        Overlap of treated and control cells (0 to 1) above which a plate is flagged.
    n_neighbors
        Neighbours a cell.
    alpha
        Largest q value of a flag.
    rng
        Seed of draws, of PCA and of exchanges.
    key_added
        Key in `.uns`, by default "flag_plates".

    Returns
    -------
    `None`. Writes to `.uns["flag_plates"]`:

    `plates`
        A row a plate: `plate`, `group`, `n_wells`, `n_cells`, `flagged`, and `reasons`, the tests that flag
        it.
    `tests`
        A row a plate and test ("overlap", "edge: cells", "edge: depth", "edge: expression", "concordance"):
        `plate`, `test`, `value` with its 95% interval (`low`, `high`; NaN where there is none), `null`, what
        is expected of a sound plate or by chance, `n`, the units of the test (wells, or perturbations),
        `p_value`, `q_value`, `flagged`.
    `wells`
        A row a well: `plate`, `well`, `row` and `column` (from 0), `edge`, `perturbation`, `n_cells`, `depth`
        (median total count) and `overlap` (share of controls among the neighbours of its cells, twice; 1 at
        most; NaN for controls).

    Raises
    ------
    KeyError
        If a column is not there.
    ValueError
        If a well has no such name or more than one perturbation, or no plate has controls and treated wells.

    Notes
    -----
    The units are wells, and for the concordance perturbations; cells of a well are averaged.

    *Overlap*: among the cells of a perturbation on a plate and as many of its controls, the share of controls
    among the neighbours of a treated cell in PCA (ten components), twice, 1 at most: 1 where treatment leaves
    no trace, 0 where all cells are set apart. One-sided t test over treated wells of a mean above
    `max_overlap`.

    *Edge*: of what is left of each well when the median of the plate's wells of the same perturbation (where
    there are four) or of all treated wells is taken away: cells and depth by the two-sided Mann-Whitney test
    of border against inner wells, `value` the chance that a border well has more; expression by the squared
    distance of the means of ten principal components, against 4,999 exchanges of places, `null` their mean.
    Flagged only if the chance is below 0.3 or above 0.7, or the distance twice its null.

    *Concordance*: correlation of the response of a perturbation (mean of its wells less that of the controls)
    with its mean on the other plates of the group, mean over perturbations, `null` that with the responses of
    other perturbations there. A plate is flagged whose perturbations agree less than on the other plates
    (paired one-sided t test over perturbations against their median there) by 0.1 or more. Of two plates that
    disagree, either may be wrong: three plates a group at least are needed.

    P values are corrected over plates, for each kind of test (Benjamini and Hochberg).

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.drug_screen(1, 8, n_plates=4, failed_plates=[2])
    >>> mt.tl.flag_plates(adata, plate_key="plate", well_key="well", perturbation_key="drug", control="DMSO")
    >>> plates = mt.get.table(adata, "flag_plates")
    >>> plates.loc[plates["flagged"], "plate"].tolist()
    ['P03']
    """
    require_unique_names(adata)
    columns = find_columns(adata.obs, perturbation_key=perturbation_key, control=control)
    perturbation_key, control = columns.values()
    cells, _ = known_cells(adata, plate_key, well_key, perturbation_key, as_list(groupby))
    group, groups = get_groups(cells, groupby)
    counts = ranked_counts(cells)
    wells, code = _wells(cells, plate_key, well_key, perturbation_key, group)
    wells["depth"] = pd.Series(np.asarray(counts.sum(axis=1)).ravel()).groupby(code).median()
    X = principal_components(cells, _COMPONENTS, rng)
    judged = set(wells["perturbation"]) - {control}
    if active is not None:
        if unknown := sorted(set(active) - judged):
            raise ValueError(
                f"active names {unknown[0]!r}, which no well has. .obs[{perturbation_key!r}] has {', '.join(sorted(judged)[:8])}."
            )
        judged = set(active)
    wells["overlap"] = np.nan
    mean_pcs = _mean_by(X, code, len(wells))
    expression = _mean_by(log_normalize(counts, np.float64), code, len(wells))
    responses = _responses(wells, expression, control)
    tests, testable = [], False
    names = sorted(wells["plate"].unique())
    for number, plate in enumerate(progress(names, desc="Plates", unit="plate")):
        on = np.flatnonzero(wells["plate"] == plate)
        stream = np.random.default_rng([rng, number])
        is_control = (wells["perturbation"].iloc[on] == control).to_numpy()
        if is_control.any() and not is_control.all():
            testable = True
            overlap = _overlap(X, code, wells["perturbation"].iloc[on], control, n_neighbors, stream)
            wells.iloc[on, wells.columns.get_loc("overlap")] = overlap
            use = np.isfinite(overlap) & wells["perturbation"].iloc[on].isin(judged).to_numpy()
            tests.append(_overlap_test(overlap[use], max_overlap))
        else:
            tests.append(_test("overlap"))
        tests += _edge_tests(wells.iloc[on], mean_pcs[on], stream)
        tests.append(_concordance_test(responses, wells, plate))
        for row in tests[-5:]:
            row["plate"] = plate
    if not testable:
        raise ValueError(
            f"No plate has both controls (.obs[{perturbation_key!r}] is {control!r}) and treated wells. Name the control: control=."
        )
    table = pd.DataFrame(tests)
    table["q_value"] = table.groupby("test")["p_value"].transform(lambda p: benjamini_hochberg(p.to_numpy()))
    table["flagged"] = (table["q_value"] <= alpha) & table.pop("large")
    table = table[["plate", "test", "value", "low", "high", "null", "n", "p_value", "q_value", "flagged"]]
    reasons = table[table["flagged"]].groupby("plate")["test"].agg(", ".join)
    plates = wells.groupby("plate", as_index=False).agg(
        group=("group", "first"), n_wells=("well", "size"), n_cells=("n_cells", "sum")
    )
    plates["group"] = [groups[g] for g in plates["group"]]
    plates["reasons"] = plates["plate"].map(reasons).fillna("")
    plates.insert(4, "flagged", plates["reasons"] != "")
    params: dict[str, Any] = {
        "unit": "share, 0 to 1",
        "plate_key": plate_key,
        "well_key": well_key,
        "perturbation_key": perturbation_key,
        "control": control,
        "groupby": as_list(groupby),
        "active": None if active is None else sorted(active),
        "max_overlap": max_overlap,
        "n_neighbors": n_neighbors,
        "alpha": alpha,
        "correction": "Benjamini and Hochberg over plates, for each kind of test",
        "seed": rng,
    }
    write_result(
        adata,
        _keys.FLAG_PLATES,
        params,
        key_added=key_added,
        plates=plates,
        tests=table,
        wells=wells.drop(columns="group"),
    )


def _wells(cells: AnnData, plate_key, well_key, perturbation_key, group) -> tuple[pd.DataFrame, np.ndarray]:
    """A row a well, and the well of each cell."""
    frame = pd.DataFrame(
        {
            "plate": get_labels(cells, plate_key),
            "well": get_labels(cells, well_key),
            "perturbation": get_labels(cells, perturbation_key),
            "group": group,
        }
    )
    by = frame.groupby(["plate", "well"], sort=True)
    for name, what in (("perturbation", "perturbations"), ("group", "groups")):
        if (several := by[name].nunique() > 1).any():
            plate, well = several.index[several.to_numpy()][0]
            raise ValueError(
                f"{several.sum()} wells have more than one of the {what} (first: {well} of {plate}). A well is treated in one way."
            )
    wells = by.agg(
        perturbation=("perturbation", "first"), group=("group", "first"), n_cells=("group", "size")
    ).reset_index()
    row, column = read_wells(wells["well"].to_numpy())
    wells.insert(2, "row", row)
    wells.insert(3, "column", column)
    wells.insert(4, "edge", at_border(row, column, plate_shape(row, column)))
    return wells, by.ngroup().to_numpy()


def _mean_by(X, code: np.ndarray, n: int) -> np.ndarray:
    """Means of the cells of each well, wells x columns."""
    gather = sp.csr_matrix((np.ones(len(code)), (code, np.arange(len(code)))), shape=(n, len(code)))
    found = gather @ X
    return (
        np.asarray(found.todense() if sp.issparse(found) else found) / np.bincount(code, minlength=n)[:, None]
    )


def _test(test: str, **found) -> dict[str, Any]:
    empty = dict.fromkeys(("value", "low", "high", "null", "p_value"), np.nan)
    return {"test": test, **empty, "n": 0, "large": False, **found}


def _overlap(X, code, perturbation: pd.Series, control: str, n_neighbors: int, stream) -> np.ndarray:
    """Of each well of a plate, how far its cells lie among controls; NaN for controls.

    One perturbation at a time: cells of several would make way for the controls between them.
    """
    place = pd.Series(np.arange(len(perturbation)), index=perturbation.index)
    rows = np.flatnonzero(np.isin(code, perturbation.index))
    well = place[code[rows]].to_numpy()
    of = perturbation.to_numpy()[well]
    controls = np.flatnonzero(of == control)
    found = np.full(len(perturbation), np.nan)
    for name in sorted(set(of) - {control}):
        treated = np.flatnonzero(of == name)
        n = min(len(treated), len(controls))
        k = min(n_neighbors, n // 2)
        if k < 1:
            continue
        both = np.concatenate([stream.permutation(treated)[:n], stream.permutation(controls)[:n]])
        near = nearest(X[rows[both]], k)[:n]
        # A cell is not its own neighbour, so that the other kind has one more to give.
        share = (near >= n).mean(axis=1) * (2 * n - 1) / n
        part = pd.Series(share).groupby(well[both[:n]]).mean()
        found[part.index] = np.minimum(part, 1)
    return found


def _overlap_test(overlap: np.ndarray, limit: float) -> dict[str, Any]:
    n = len(overlap)
    if n < MIN_WELLS:
        return _test("overlap", value=overlap.mean() if n else np.nan, null=limit, n=n)
    mean, error = overlap.mean(), overlap.std(ddof=1) / np.sqrt(n)
    reach = stats.t.ppf(0.975, n - 1) * error
    p_value = float(stats.t.sf((mean - limit) / error, n - 1)) if error > 0 else float(mean <= limit)
    return _test(
        "overlap",
        value=mean,
        low=max(mean - reach, 0),
        high=min(mean + reach, 1),
        null=limit,
        n=n,
        p_value=p_value,
        large=mean > limit,
    )


def _edge_tests(wells: pd.DataFrame, pcs: np.ndarray, stream) -> list[dict[str, Any]]:
    """Border against inner wells, of what their perturbations leave unexplained."""
    edge = wells["edge"].to_numpy()
    kinds = ("edge: cells", "edge: depth", "edge: expression")
    if min(edge.sum(), (~edge).sum()) < MIN_WELLS:
        return [_test(kind) for kind in kinds]
    values = np.column_stack([np.log(wells["n_cells"]), np.log1p(wells["depth"]), pcs])
    # A perturbation of few wells shares its median with the others, lest nothing be left of it.
    of = wells["perturbation"].where(wells.groupby("perturbation")["well"].transform("size") >= 4, "")
    left = pd.DataFrame(values).sub(pd.DataFrame(values).groupby(of.to_numpy()).transform("median"))
    left = left.to_numpy()
    found = []
    for i, kind in enumerate(kinds[:2]):
        result = stats.mannwhitneyu(left[edge, i], left[~edge, i])
        area = float(result.statistic / (edge.sum() * (~edge).sum()))
        error = 1.96 * np.sqrt((len(edge) + 1) / (12 * edge.sum() * (~edge).sum()))
        found.append(
            _test(
                kind,
                value=area,
                low=max(area - error, 0),
                high=min(area + error, 1),
                null=0.5,
                n=len(edge),
                p_value=float(result.pvalue),
                large=abs(area - 0.5) >= _LEAST_AUROC - 0.5,
            )
        )
    distance, null = distance_between(left[:, 2:], edge, _PERMUTATIONS, stream)
    found.append(
        _test(
            kinds[2],
            value=distance,
            null=float(null.mean()),
            n=len(edge),
            p_value=permutation_p(distance, null),
            large=distance >= _LEAST_DISTANCE * null.mean(),
        )
    )
    return found


def _responses(wells: pd.DataFrame, expression: np.ndarray, control: str) -> pd.DataFrame:
    """Agreement of each perturbation of a plate with the other plates of its group; `r`, and `null` with other perturbations there."""
    rows = []
    for _, of_group in wells.groupby("group"):
        plates = sorted(of_group["plate"].unique())
        if len(plates) < 3:
            continue
        still = of_group["perturbation"] == control
        base = {
            plate: expression[of_group.index[still & (of_group["plate"] == plate)]].mean(axis=0)
            for plate in plates
            if (still & (of_group["plate"] == plate)).any()
        }
        treated = of_group[~still & of_group["plate"].isin(list(base))]
        keys = treated.groupby(["perturbation", "plate"]).groups
        response = {
            (drug, plate): expression[index].mean(axis=0) - base[plate]
            for (drug, plate), index in keys.items()
        }
        drugs = sorted({drug for drug, _ in response})
        for plate in base:
            own = [drug for drug in drugs if (drug, plate) in response]
            others = {
                drug: [response[drug, p] for p in base if p != plate and (drug, p) in response]
                for drug in own
            }
            own = [drug for drug in own if others[drug]]
            if len(own) < 2:
                continue
            here = np.stack([response[drug, plate] for drug in own])
            there = np.stack([np.mean(others[drug], axis=0) for drug in own])
            r = np.stack([pearson(here, np.tile(row, (len(here), 1))) for row in there], axis=1)
            n = len(own)
            null = (r.sum(axis=1) - np.diag(r)) / (n - 1)
            rows += [
                {"plate": plate, "perturbation": drug, "r": r[i, i], "null": null[i]}
                for i, drug in enumerate(own)
            ]
    return pd.DataFrame(rows, columns=["plate", "perturbation", "r", "null"])


def _concordance_test(responses: pd.DataFrame, wells: pd.DataFrame, plate: str) -> dict[str, Any]:
    own = responses[responses["plate"] == plate].set_index("perturbation")
    if len(own) < MIN_SHARED:
        return _test("concordance", n=len(own))
    group = wells.loc[wells["plate"] == plate, "group"].iloc[0]
    peers = set(wells.loc[wells["group"] == group, "plate"]) - {plate}
    rest = responses[responses["plate"].isin(peers)].groupby("perturbation")["r"].median()
    drop = (own["r"] - rest.reindex(own.index)).dropna()
    mean, n = own["r"].mean(), len(own)
    reach = stats.t.ppf(0.975, n - 1) * own["r"].std(ddof=1) / np.sqrt(n)
    p_value = (
        float(stats.ttest_1samp(drop, 0, alternative="less").pvalue) if len(drop) >= MIN_SHARED else np.nan
    )
    return _test(
        "concordance",
        value=mean,
        low=mean - reach,
        high=min(mean + reach, 1),
        null=own["null"].mean(),
        n=n,
        p_value=p_value,
        large=bool(drop.mean() <= -_LEAST_DROP),
    )
