"""Families of features: which are active together, and whether other cells say the same."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from .._features import symbols
from .._names import require_choice
from .._warn import warn
from ..models.coactivation import count_coactivation
from ..models.model import MaxTokiModel
from ..models.sae import SparseAutoencoder, require_sae
from ..pp._columns import find_donors
from ..pp._design import as_list, get_groups, get_labels, known_cells
from ..results.store import require_free, write_result
from ..stats.coactivity import Together, broader, resampled_phi, together
from ..stats.families import (
    AGREEMENT,
    METHODS,
    MIN_SIZE,
    Finder,
    agreement,
    average_linkage,
    member_of,
    overlap,
    stability,
)
from ..stats.fdr import benjamini_hochberg
from ._cells import count_truncated, get_sequences
from ._feature_activity import MIN_ACTIVE, Activity, read_activity, units_of
from .features import DENSE, MIN_READ

ALL = "all"
ON = ("genes", "cells")
MIN_CELLS = 20  # of a group
ALPHA = 0.05
_GENES = 10  # that stand for a family
_N_NULL = 3  # draws of independent features
_N_PERMUTATIONS = 999
# A broader feature has half of the places of a narrow one, and twice as many as expected.
_PARENT, _LIFT = 0.5, 2.0


def feature_families(
    adata: AnnData,
    model: MaxTokiModel,
    sae: SparseAutoencoder,
    *,
    on: str = "genes",
    groupby: str | Sequence[str] | None = None,
    donor_key: str | None = None,
    method: str = "leiden",
    resolution: float = 1.0,
    min_phi: float = 0.1,
    n_bootstrap: int = 20,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Find families of features that are active together, and say how far other cells would give the same.

    Parameters
    ----------
    adata
        Rank-encoded cells.
    model
        Model.
    sae
        Autoencoder of this model (`mt.train.sae`, `mt.load_sae`).
    on
        "genes": active at the same gene of the same cell, beyond being active in the same cells and at like
        ranks. "cells": active in the same cells, that is at a larger share of their genes than on average.
    groupby
        Column or columns of `.obs`, e.g. the cell type: families for each group as well, and whether they
        agree.
    donor_key
        Column of `.obs` with the donor, guessed from its name. Five or more donors are what is resampled;
        fewer, or none, leave blocks of their cells.
    method
        "leiden", on the graph of pairs that are active together, or "hierarchical", average linkage.
    resolution
        Of Leiden: the higher, the more families.
    min_phi
        Phi that a pair must have to be an edge, and at which the hierarchy is cut.
    n_bootstrap
        Samples of the units in which families are found again.
    rng
        Seed of the blocks, the samples, the null and Leiden.
    key_added
        Key in `.uns`, by default "feature_families".

    Returns
    -------
    `None`. Writes the tables of `.uns["feature_families"]`; `group` is "all", or with `groupby` a group too.

    `families`
        A row a family of three features or more, the largest of each group first:

        `group`, `family`, `size`
            Its number, from 0, and how many features it has.
        `phi`, `mean_rank`
            Mean phi of its pairs, and mean rank of the genes at which its features are active.
        `support`
            Mean over samples of its Jaccard overlap with the family most like it; `support_low` and
            `support_high` hold 95% of the samples.
        `null_support`, `null_support_high`, `supported`
            The same of families among independent features: mean over them, and what 95% of them stay
            below; whether the support is above that.
        `most_active`
            With `groupby`, the group in which its features are active at the largest share of genes.
        `top_genes`
            Symbols of the genes at which more of its features are active than elsewhere, with commas: ordered
            by how many are beyond expectation, summed over the gene's places, over the root of how many these
            are (5 at least).
    `features`
        A row a feature that was compared:

        `group`, `feature`, `family`, `place`
            Family, or -1 for none; place in the tree, families first and in them those first that have more
            to do with the others (-1 for none).
        `density`, `mean_rank`
            Share of the genes read at which it is active, and their mean rank.
        `stability`
            Mean share of its family with which it is in one family in a sample.
        `parent`, `parent_share`, `parent_null`
            A broader feature that is active at half or more of the places of this one, or -1; at which
            share, and at which if they were independent.
    `edges`
        A row a pair: `group`, `feature_1`, `feature_2`; `phi` with `phi_low` and `phi_high` (95%, over
        units); `pmi`, log2 of how often both are active over expectation; `n`, places or cells with both;
        `p_value` and `q_value`.
    `tree`
        Average linkage of the families by 1 - mean phi between them, a row a joint, as scipy has it: `group`,
        `left`, `right` (a family, or from the number of families on a joint), `height`, `n_families`.
    `agreement`
        With `groupby`, a row a pair of groups: `group_1`, `group_2`; `n_features` in families of both;
        `rand`, the adjusted Rand index of the two, and `nmi`, normalised mutual information; of permuted
        features the mean (`rand_null`, `nmi_null`) and 95th percentile (`rand_null_high`, `nmi_null_high`);
        `p_value` of the Rand index (999 permutations, one-sided) and `q_value` (Benjamini and Hochberg, over
        the pairs).

    Raises
    ------
    KeyError
        If the cells are not rank-encoded, or a column is not found.
    ValueError
        If the autoencoder is one of another model, there are fewer than 20 cells, or fewer than three
        features are active often enough.

    Notes
    -----
    Phi is the correlation of the binary activities f and g, each less its mean in the stratum: on genes, the
    ranks of like height of a cell (16 first, then half an octave each); on cells, the donor or block. With o
    places (or cells) of both, n_f and n_g of each, and N in a stratum, it is the sum over strata of
    o - n_f n_g / N, over the root of the product of the sums of n_f (1 - n_f / N) and n_g (1 - n_g / N).
    Pointwise mutual information is log2 of the sum of o over that of n_f n_g / N. This expectation is that of
    shuffling the places of each feature within strata. Whether pairs exceed it is tested over units, by a
    one-sided t test of o - n_f n_g / N (careful with pairs that are rarely together), corrected over all
    pairs of the group (Benjamini and Hochberg). Edges have q < 0.05 and at least `min_phi`.

    Features that are active at fewer than 20 places, or at more than a tenth of all, are in no family; the
    latter may be parents. Samples draw units with replacement and take as many edges as all cells give, the
    strongest, so that the null has families as well: of independent features, whose pairs are drawn with the
    mean and the variance of the shuffle. What the null does not have is that features which point alike in
    the states are active together whatever they mean.

    A parent is active at twice as many places as its child or more, at half of the child's or more, at twice
    as many of these as expected, and with q < 0.05. Of nested autoencoders (`kind="matryoshka"`),
    `params["share_parents_before"]` says which share of parents has the lower number: half, if the order of
    the features means nothing.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.load("heart_nuclei")[:50].copy()
    >>> model = mt.load_model("demo")
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.tl.feature_families(adata, model, mt.load_sae("demo"), n_bootstrap=2)
    >>> bool((mt.get.table(adata, "feature_families")["size"] >= 3).all())
    True
    """
    require_choice("on", on, ON)
    require_choice("method", method, METHODS)
    require_free(adata, key_added or _keys.FEATURE_FAMILIES)
    require_sae(sae, model)
    groupby = as_list(groupby)
    donor_key = find_donors(adata.obs, donor_key)
    cells, _ = known_cells(adata, groupby, donor_key)
    if cells.n_obs < MIN_CELLS:
        raise ValueError(
            f"Families are looked for again in samples of the cells: {MIN_CELLS} are needed, got {cells.n_obs}."
        )
    group, names = get_groups(cells, groupby)
    donor = None if donor_key is None else np.unique(get_labels(cells, donor_key), return_inverse=True)[1]
    unit = units_of(group, donor, rng)
    found = count_coactivation(model, sae, get_sequences(cells, model), unit, group)
    find = Finder(method, resolution, min_phi, rng)
    everything = {ALL: list(range(len(names)))} | (
        {name: [i] for i, name in enumerate(names)} if groupby else {}
    )
    parts, tables, labels = {}, [], {}
    for name, groups in everything.items():
        mine = np.isin(group, groups)
        if mine.sum() < MIN_CELLS:
            warn(f"{name!r} has {mine.sum()} cells and is left out; {MIN_CELLS} are needed.")
            continue
        part = read_activity(found, mine, groups, unit, donor, on=on, seed=rng)
        if (n := len(part.compared)) < MIN_SIZE:
            text = f"{n} features are active at {MIN_ACTIVE} genes or more and not nearly everywhere"
            if name == ALL:
                raise ValueError(f"{text}; {MIN_SIZE} make a family. Read more cells.")
            warn(f"{text} in {name!r}, which is left out.")
            continue
        parts[name] = part
        new, labels[name] = _find(part, find, min_phi, n_bootstrap, rng)
        new["families"]["top_genes"] = _top_genes(part, labels[name], cells)
        tables.append({key: _grouped(table, name) for key, table in new.items()})
    joined = {key: pd.concat([part[key] for part in tables], ignore_index=True) for key in tables[0]}
    if groupby:
        _add_most_active(joined["families"], parts, labels)
        joined["agreement"] = _agreement(labels, rng)
    whole = parts[ALL]
    params = {
        "on": on,
        "method": method,
        "resolution": resolution,
        "min_phi": min_phi,
        "n_bootstrap": n_bootstrap,
        "groupby": groupby,
        "donor_key": donor_key,
        "unit_of_inference": whole.unit,
        "n_units": int(whole.into.max() + 1),
        "n_cells": cells.n_obs,
        "n_truncated": count_truncated(cells, model),
        "n_compared": len(whole.compared),
        "n_dead": int((whole.n_active == 0).sum()),
        "n_rare": int(((whole.n_active > 0) & (whole.n_active < MIN_ACTIVE)).sum()),
        "n_dense": int((whole.density > DENSE).sum()),
        "seed": rng,
    }
    if sae.kind == "matryoshka":
        params["share_parents_before"] = _share_before(joined["features"])
    params = {**model.params, **sae.params, **params}
    write_result(adata, _keys.FEATURE_FAMILIES, params, key_added=key_added, **joined)


def _find(
    part: Activity, find: Finder, min_phi: float, n_bootstrap: int, seed: int
) -> tuple[dict[str, pd.DataFrame], np.ndarray]:
    """Families of some cells with their support and the null's, as tables; and the family of every feature, or -1."""
    whole = together(part.units(part.alive))
    own = np.searchsorted(part.alive, part.compared)
    among = Together(*(v[np.ix_(own, own)] if isinstance(v, np.ndarray) else v for v in whole))
    is_edge = (among.phi >= min_phi) & (among.q_value < ALPHA) & ~np.eye(len(own), dtype=bool)
    families = find.fit(among.phi, is_edge)
    n_edges = int(is_edge.sum()) // 2

    draws = np.random.default_rng([seed, 23])
    n_units = among.n_units
    weights = draws.multinomial(n_units, np.full(n_units, 1 / n_units), size=n_bootstrap)
    again = [find.again(phi, n_edges) for phi in resampled_phi(part.units(part.compared), weights)]
    support = overlap(families, again)
    null = [np.zeros(0)]
    for _ in range(_N_NULL if n_edges else 0):
        units = (unit.shuffled(draws) for unit in part.units(part.compared))
        # All units once, and then the samples.
        phis = resampled_phi(units, np.vstack([np.ones(n_units, int), weights]))
        first, *others = [find.again(phi, n_edges) for phi in phis]
        null.append(overlap(first, others).mean(axis=1))
    null = np.concatenate(null)

    parent, share, chance = (values[own] for values in broader(whole, _PARENT, _LIFT, ALPHA))
    place, tree = _tree(among.phi, families)
    features = pd.DataFrame(
        {
            "feature": part.compared,
            "family": families,
            "place": place,
            "density": part.density[part.compared],
            "mean_rank": (part.rank / np.maximum(part.n_active, 1))[part.compared],
            "stability": stability(families, again),
            "parent": np.where(parent >= 0, part.alive[parent], -1),
            "parent_share": share,
            "parent_null": chance,
        }
    )
    every = np.full(len(part.n_active), -1)
    every[part.compared] = families
    tables = {
        "families": _family_table(among.phi, features, support, null),
        "features": features,
        "edges": _edge_table(among, is_edge, part.compared),
        "tree": tree,
    }
    return tables, every


def _family_table(
    phi: np.ndarray, features: pd.DataFrame, support: np.ndarray, null: np.ndarray
) -> pd.DataFrame:
    member = member_of(features["family"].to_numpy())
    size = member.sum(axis=0)
    inside = (member * (phi @ member)).sum(axis=0) - member.T @ np.diag(phi)
    # Where independent features make no family, any that is found again is more than that.
    mean, high = (null.mean(), np.quantile(null, 0.95)) if len(null) else (0.0, 0.0)
    value = support.mean(axis=1)
    return pd.DataFrame(
        {
            "family": np.arange(len(size)),
            "size": size.astype(int),
            "phi": inside / (size * (size - 1)),
            "mean_rank": features["mean_rank"].to_numpy() @ member / size,
            "support": value,
            "support_low": np.quantile(support, 0.025, axis=1),
            "support_high": np.quantile(support, 0.975, axis=1),
            "null_support": mean,
            "null_support_high": high,
            "supported": value > high,
        }
    )


def _edge_table(among: Together, is_edge: np.ndarray, features: np.ndarray) -> pd.DataFrame:
    first, second = np.nonzero(np.triu(is_edge, 1))
    order = np.lexsort((second, first, -among.phi[first, second]))
    at = first[order], second[order]
    return pd.DataFrame(
        {
            "feature_1": features[at[0]],
            "feature_2": features[at[1]],
            "phi": among.phi[at],
            "phi_low": among.low[at],
            "phi_high": among.high[at],
            "pmi": np.log2(among.observed[at] / among.expected[at]),
            "n": among.observed[at].astype(int),
            "p_value": among.p_value[at],
            "q_value": among.q_value[at],
        }
    )


def _tree(phi: np.ndarray, families: np.ndarray) -> tuple[np.ndarray, pd.DataFrame]:
    """Place of each feature in the tree of the families, and its joints."""
    from scipy.cluster.hierarchy import leaves_list

    member = member_of(families)
    share = member / np.maximum(member.sum(axis=0), 1)
    between = share.T @ phi @ share
    n = len(between)
    joints = average_linkage(between, ordered=True) if n > 1 else np.zeros((0, 4))
    leaves = leaves_list(joints) if n > 1 else np.arange(n)
    at = np.append(np.argsort(leaves), n)[families]
    near = (member * (phi @ share)).sum(axis=1)
    place = np.argsort(np.lexsort((np.arange(len(at)), -near, at)))
    tree = pd.DataFrame(joints, columns=["left", "right", "height", "n_families"])
    whole = ["left", "right", "n_families"]
    return np.where(families >= 0, place, -1), tree.astype(dict.fromkeys(whole, int))


def _top_genes(part: Activity, every: np.ndarray, cells: AnnData) -> list[str]:
    """Genes of each family: where more of its features are active than elsewhere, and often."""
    active = part.genes @ member_of(every)
    often = np.flatnonzero(part.n_read >= MIN_READ)
    n = part.n_read[often, None]
    beyond = (active[often] - n * active.sum(axis=0) / max(part.n_read.sum(), 1)) / np.sqrt(n)
    ids = cells.var[_keys.TOKEN_ID].to_numpy()
    name = np.full(len(part.n_read), "", dtype=object)
    name[ids[ids >= 0]] = np.asarray(symbols(cells)).astype(str)[ids >= 0]
    first = np.argsort(-beyond, axis=0, kind="stable")[:_GENES]
    return [", ".join(name[often[column[beyond[column, i] > 0]]]) for i, column in enumerate(first.T)]


def _grouped(table: pd.DataFrame, name: str) -> pd.DataFrame:
    table.insert(0, "group", name)
    return table


def _add_most_active(
    families: pd.DataFrame, parts: dict[str, Activity], labels: dict[str, np.ndarray]
) -> None:
    """The group in which the features of each family are active at the largest share of genes."""
    groups = [name for name in parts if name != ALL]
    density = np.column_stack([parts[name].density for name in groups]) if groups else np.zeros((0, 0))
    found = []
    for name in dict.fromkeys(families["group"]):
        best = (member_of(labels[name]).T @ density).argmax(axis=1) if groups else []
        found += [groups[i] for i in best] if groups else [""] * int((families["group"] == name).sum())
    families.insert(families.columns.get_loc("top_genes"), "most_active", found)


def _agreement(labels: dict[str, np.ndarray], seed: int) -> pd.DataFrame:
    """Whether the families of each two groups are the same."""
    rows = [
        {"group_1": a, "group_2": b, **agreement(labels[a], labels[b], _N_PERMUTATIONS, seed)}
        for a, b in combinations([name for name in labels if name != ALL], 2)
    ]
    table = pd.DataFrame(rows, columns=["group_1", "group_2", *AGREEMENT])
    table["q_value"] = benjamini_hochberg(table["p_value"].to_numpy(dtype=float))
    return table


def _share_before(features: pd.DataFrame) -> float:
    """Share of the parents that have a lower number than their child, among all cells."""
    own = features[(features["group"] == ALL) & (features["parent"] >= 0)]
    return float((own["parent"] < own["feature"]).mean())
