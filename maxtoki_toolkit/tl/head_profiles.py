"""Which heads behave differently in some cell types."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import stats

from .. import _keys
from ..results.head_sums import head_table
from ..results.store import write_result
from ..stats.fdr import benjamini_hochberg
from ._head_sums import FLAT, read_attention
from ._tokens import FIRST

# What is compared, and where it is among the statistics of a sequence.
_COLUMNS = {"sink": "sink", "entropy": "relative_entropy", "distance": "relative_distance"}
_FLOOR = 1e-6  # share of the attention below which a ratio says nothing
MIN_DONORS = 3


def head_profiles(
    adata: AnnData,
    *,
    statistic: str = "sink",
    n_permutations: int = 2000,
    key: str | None = None,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Profile each head over the groups of cells, and find those that are specific to some.

    Parameters
    ----------
    adata
        Cells with a result of `mt.tl.attention` with `groupby`.
    statistic
        What is compared: "sink", the share on the first token beyond that of an even spread (a head that
        rests is idle); "entropy" or "distance", over those of an even spread; or the name of a gene set of
        `mt.tl.attention`, for the log2 ratio of its share to that of tokens at the same distances.
    n_permutations
        Permutations of the groups.
    key
        Key in `.uns` of the attention, by default "attention".
    rng
        Seed.
    key_added
        Key in `.uns`, by default "head_profiles".

    Returns
    -------
    `None`. Writes to `.uns["head_profiles"]` the tables

    `profiles`
        A row a head and group; what is compared is `params["statistic"]`, in `params["unit"]`:

        `layer`, `head`, `name`, `group`
            Which head and group.
        `value`
            The statistic, without what the number of tokens and the donors explain.
        `difference`, `difference_low`, `difference_high`
            Its difference from the donors' means, with the 95% interval over donors.
        `p_value`, `q_value`
            Two-sided, permuting groups within donors; corrected for all heads and groups.
        `n_units`
            Donors (or cells, where none is known) with cells of the group.

    `heads`
        A row a head: `specificity`, the share of variance between groups (0-1), with `null_mean` and
        `null_sd` of permuted groups, `p_value` (one-sided) and `q_value` (corrected for the heads);
        `top_group`, which differs most; `r_length`, the correlation of the uncorrected profile with the log
        of the groups' number of tokens.

    Raises
    ------
    KeyError
        If there is no attention, or no such statistic.
    ValueError
        If there are fewer than two groups, or fewer than three donors with two of them.

    Notes
    -----
    The mean of each donor and group counts once. What the number of tokens explains within groups is taken
    out (a common slope), and then the donor's mean over his or her groups. The difference of a group is the
    mean over donors of what is left; specificity is the share of its variance that lies between groups. Nulls
    permute the groups of each donor; where no donors are known, those of all cells. p values are two-sided
    for differences, corrected for all heads and groups, and one-sided for specificity, corrected for the
    heads (Benjamini and Hochberg). `r_length` is the correlation of the uncorrected profile with the log of
    the groups' number of tokens: the trivial explanation.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.tl.attention(adata, model, groupby="cell_type", donor_key="donor_id", n_cells=1)
    >>> mt.tl.head_profiles(adata, n_permutations=99)
    >>> mt.get.table(adata, "head_profiles", "heads").shape[0]
    16
    """
    if n_permutations < 99:
        raise ValueError(f"n_permutations must be at least 99, got {n_permutations}.")
    result = read_attention(adata, key or _keys.ATTENTION)
    params, sequences = result["params"], result["sequences"].reset_index(drop=True)
    values = _values(result, statistic)
    groups = sorted(sequences["group"].astype(str).unique())
    if len(groups) < 2:
        raise ValueError(
            f"All cells are of one group ({groups[0]!r}). Run mt.tl.attention(adata, model, groupby=...) first."
        )
    known = bool(params["donors_known"])
    # Where no donor is known each cell stands for itself, and groups are permuted among all of them.
    unit = np.arange(len(sequences)) if not known else sequences["unit"].to_numpy()
    code, first = np.unique(unit, return_index=True)
    place = np.searchsorted(code, unit)
    size = np.bincount(place)
    mean = np.stack([np.bincount(place, column) / size for column in values.T], axis=1)
    length = np.bincount(place, np.log(sequences["n_tokens"].to_numpy(dtype=float))) / size
    group = np.searchsorted(groups, sequences["group"].astype(str).to_numpy()[first])
    donor = (
        pd.factorize(sequences["donor"].astype(str).to_numpy()[first])[0]
        if known
        else np.zeros(len(code), int)
    )

    adjusted = _without_length(mean, length, group)
    several = np.bincount(donor)[donor] > 1
    n_donors = len(np.unique(donor[several]))
    if known and n_donors < MIN_DONORS:
        raise ValueError(
            f"{n_donors} donors have cells of more than one group; at least {MIN_DONORS} are needed to compare groups within "
            "donors. Read more groups and donors, or give mt.tl.attention no donor_key (cells then stand for themselves)."
        )
    centred = adjusted[several] - _means(adjusted[several], donor[several])[donor[several]]
    heads = head_table(params)
    profiles, specificity = _test(centred, group[several], donor[several], len(groups), n_permutations, rng)
    overall = adjusted.mean(axis=0)
    of_group = _means(mean, group)
    tables = []
    for i, name in enumerate(groups):
        part = pd.DataFrame({column: values[i] for column, values in profiles.items()})
        part.insert(0, "value", overall + part["difference"])
        part["n_units"] = int((group[several] == i).sum())
        tables.append(pd.concat([heads, part], axis=1).assign(group=name))
    table = pd.concat(tables, ignore_index=True)
    of_heads = heads.assign(**specificity)
    of_heads["top_group"] = np.array(groups, dtype=object)[
        np.nan_to_num(np.abs(profiles["difference"]), nan=-1).argmax(axis=0)
    ]
    of_heads["r_length"] = _correlations(of_group, _means(length[:, None], group)[:, 0])

    settings = {
        "unit": {
            "sink": "share on the first token, beyond an even spread",
            "entropy": "entropy over that of an even spread",
            "distance": "distance over that of an even spread",
        }.get(statistic, "log2 ratio"),
        "statistic": statistic,
        "attention": key or _keys.ATTENTION,
        "n_permutations": n_permutations,
        "n_donors": n_donors if known else 0,
        "unit_of_inference": "donor" if known else "cell",
        "seed": rng,
    }
    write_result(
        adata,
        _keys.HEAD_PROFILES,
        settings,
        key_added=key_added,
        profiles=_corrected(table),
        heads=_corrected(of_heads),
    )


def _values(result: dict, statistic: str) -> np.ndarray:
    """One value a sequence and head."""
    params = result["params"]
    names, sets = ([str(name) for name in params[slot]] for slot in ("statistics", "gene_sets"))
    if statistic in _COLUMNS:
        values = np.asarray(result["statistics"])[:, :, names.index(_COLUMNS[statistic])].astype(np.float64)
        if statistic == "sink":
            # The first token of a short cell has more from any head.
            first = [str(name) for name in params["segments"]].index(FIRST)
            values -= np.asarray(result["given_evenly"])[:, 0, [first]]
        return values
    if statistic not in sets:
        raise KeyError(f"There is no statistic {statistic!r}; choose from {', '.join([*_COLUMNS, *sets])}.")
    column = len(params["segments"]) + sets.index(statistic)
    given, expected = (
        np.asarray(result[slot])[:, 0, :, column].astype(np.float64) for slot in ("given", "given_expected")
    )
    return np.log2((given + _FLOOR) / (expected + _FLOOR))


def _means(values: np.ndarray, code: np.ndarray) -> np.ndarray:
    """Mean of each class, classes x columns; NaN for an empty one."""
    size = np.bincount(code)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.stack([np.bincount(code, column, len(size)) for column in values.T], axis=1) / size[:, None]


def _without_length(values: np.ndarray, length: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Without what the log number of tokens explains within groups."""
    within = length - _means(length[:, None], group)[group, 0]
    spread = within @ within
    if spread < 1e-6 * len(length):
        return values
    slope = within @ values / spread
    return values - (length - length.mean())[:, None] * slope


def _correlations(values: np.ndarray, with_: np.ndarray) -> np.ndarray:
    """Correlation of each column; NaN where either is constant."""
    x, y = with_ - with_.mean(), values - values.mean(axis=0)
    scale = np.sqrt((x @ x) * (y**2).sum(axis=0))
    flat = (np.ptp(with_) < 1e-9) | (np.ptp(values, axis=0) < FLAT)
    return np.where(flat, np.nan, x @ y / np.where(flat | (scale == 0), 1, scale))


def _test(
    centred: np.ndarray, group: np.ndarray, donor: np.ndarray, n_groups: int, n: int, seed: int
) -> tuple[dict, dict]:
    """Differences of the groups (groups x heads) and specificity of each head, with permutations within donors."""
    size = np.bincount(group, minlength=n_groups)
    member = (group == np.arange(n_groups)[:, None]) / np.maximum(size, 1)[:, None]
    total = (centred**2).sum(axis=0)
    # A head that is the same everywhere, but for rounding.
    flat = np.sqrt(total / len(centred)) < FLAT
    total = np.where(flat, 1, total)

    def statistics(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        difference = member @ values
        return difference, size @ difference**2 / total

    difference, specificity = statistics(centred)
    spread = np.sqrt(np.maximum(member @ centred**2 - difference**2, 0) / np.maximum(size - 1, 1)[:, None])
    reach = np.where(size > 1, stats.t.ppf(0.975, np.maximum(size - 1, 1)), np.nan)[:, None] * spread
    rng = np.random.default_rng(seed)
    slots = np.argsort(donor, kind="stable")
    far, above = np.zeros_like(difference), np.zeros(len(total))
    null = np.zeros((n, len(total)))
    shuffled = np.empty_like(centred)
    for i in range(n):
        shuffled[slots] = centred[np.lexsort((rng.random(len(donor)), donor))]
        drawn, null[i] = statistics(shuffled)
        far += np.abs(drawn) >= np.abs(difference) * (1 - 1e-9)
        above += null[i] >= specificity * (1 - 1e-9)
    missing = (size == 0)[:, None] | np.zeros_like(flat)
    difference = np.where(missing, np.nan, difference)
    profiles = {
        "difference": difference,
        "difference_low": difference - reach,
        "difference_high": difference + reach,
        "p_value": np.where(missing, np.nan, np.where(flat, 1.0, (1 + far) / (n + 1))),
    }
    heads = {
        "specificity": np.where(flat, 0.0, specificity),
        "null_mean": np.where(flat, 0.0, null.mean(axis=0)),
        "null_sd": np.where(flat, 0.0, null.std(axis=0)),
        "p_value": np.where(flat, 1.0, (1 + above) / (n + 1)),
    }
    return profiles, heads


def _corrected(table: pd.DataFrame) -> pd.DataFrame:
    """With q values for all rows that have a p."""
    table["q_value"] = benjamini_hochberg(table["p_value"])
    return table
