"""Does what features do to each other change along a course? The entropy of their network, bin by bin."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from ..models.feature_network import feature_edges, require_later
from ..models.features import mean_activity
from ..models.model import MaxTokiModel
from ..models.sae import SparseAutoencoder, require_sae
from ..pp._columns import find_columns
from ..pp._design import as_numbers, get_labels, known_cells
from ..results.store import write_result
from ..stats.fdr import benjamini_hochberg
from ..stats.spectra import spectral_entropy as entropy_of
from ._cells import get_sequences

N_BOOTSTRAP = 200
_MIN = 3  # donors (or cells) in a bin


def spectral_entropy(
    adata: AnnData,
    model: MaxTokiModel,
    sae: SparseAutoencoder,
    *,
    later: SparseAutoencoder,
    time_key: str | None = None,
    donor_key: str | None = None,
    n_bins: int = 5,
    n_features: int = 50,
    n_cells: int | None = 200,
    n_permutations: int = 199,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Follow the entropy of the network of features along time or pseudotime.

    Parameters
    ----------
    adata
        Rank-encoded cells.
    model
        Model.
    sae, later
        Autoencoders of an earlier and a later place of this model.
    time_key
        Column of `.obs` with the time or pseudotime; guessed from its name.
    donor_key
        Column of `.obs` with the donor, guessed from its name; may be missing.
    n_bins
        Bins of the course, of like numbers of cells.
    n_features
        Features on either side of the network: those with most activation in these cells.
    n_cells
        Cells to read, drawn at random where there are more; `None` for all.
    n_permutations
        Courses whose times are exchanged: between donors, if each has one time, else between cells.
    rng
        Seed.
    key_added
        Key in `.uns`, by default "spectral_entropy".

    Returns
    -------
    `None`. Writes the table `bins` to `.uns["spectral_entropy"]`, a row a bin:

    `bin`, `time_low`, `time_high`, `n_cells`, `n_units`
        Number from 0, the times in it, cells and donors (or cells, where donors are not known).
    `entropy`, `entropy_low`, `entropy_high`
        Entropy of the singular values of the bin's mean network, nats, with its 95% interval (bootstrap over
        donors or cells).
    `null_mean`, `null_low`, `null_high`
        Mean and middle 95% of the same with times exchanged.
    `p_value`, `q_value`
        Share of the permutations in which the bin lies at least as far from their mean; corrected for the
        bins (Benjamini and Hochberg).

    `params["p_value"]` is for the course as a whole: the share of permutations whose entropies differ as much
    between bins (standard deviation).

    Raises
    ------
    ValueError
        If there are not three donors (or cells) in each bin, or all have one time.

    Notes
    -----
    The network of each cell is that of `mt.tl.feature_network`, for the most active features; a bin's is the
    mean over its donors' means. With singular values s and p = s / sum(s) the entropy is -sum(p log p): low
    where few combinations of features carry all effects, high where many do. It depends on how many networks
    are averaged, which the null shares.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.load("myoblast_timecourse")
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model, force=True)
    >>> early, late = mt.load_sae("demo-early"), mt.load_sae("demo")
    >>> mt.tl.spectral_entropy(adata, model, early, later=late, time_key="Pseudotime", n_bins=2, n_features=4,
    ...                        n_cells=12, n_permutations=19)
    >>> len(mt.get.table(adata, "spectral_entropy"))
    2
    """
    for coder in (sae, later):
        require_sae(coder, model)
    require_later(sae.site, later.site)
    columns = find_columns(adata.obs, optional=["donor_key"], time_key=time_key, donor_key=donor_key)
    time_key, donor_key = columns["time_key"], columns["donor_key"]
    cells, _ = known_cells(adata, time_key, donor_key)
    rows = np.arange(cells.n_obs)
    if n_cells is not None and n_cells < len(rows):
        rows = np.sort(np.random.default_rng(rng).choice(rows, n_cells, replace=False))
    time = as_numbers(cells.obs[time_key].iloc[rows], time_key).astype(float)
    donor = np.arange(len(rows)) if donor_key is None else get_labels(cells, donor_key)[rows]
    unit = np.unique(donor, return_inverse=True)[1]
    course = _bins(time, n_bins)
    _require_enough(course, unit, n_bins)

    sequences = get_sequences(cells, model).take(rows)
    most = [_most_active(model, coder, sequences, n_features) for coder in (sae, later)]
    effects = np.stack(
        [
            feature_edges(model, sae, later, sequences.take(np.array([i])), most[0][:, None]).effect[
                :, most[1]
            ]
            for i in range(len(rows))
        ]
    )
    found = _entropies(effects, course, unit, n_bins)
    drawn = np.array([_resampled(effects, course, unit, n_bins, [rng, i]) for i in range(N_BOOTSTRAP)])
    null = np.array(
        [
            _entropies(effects, _exchanged(course, unit, [rng, 1, i]), unit, n_bins)
            for i in range(n_permutations)
        ]
    )
    away, other = np.abs(found - null.mean(axis=0)), np.abs(null - null.mean(axis=0))
    p_value = (1 + (other >= away * (1 - 1e-9)).sum(axis=0)) / (1 + n_permutations)
    spread = (1 + (null.std(axis=1) >= found.std() * (1 - 1e-9)).sum()) / (1 + n_permutations)
    inside = [course == i for i in range(n_bins)]
    low, high = np.nanquantile(drawn, [0.025, 0.975], axis=0)
    null_low, null_high = np.quantile(null, [0.025, 0.975], axis=0)
    bins = pd.DataFrame(
        {
            "bin": np.arange(n_bins),
            "time_low": [time[part].min() for part in inside],
            "time_high": [time[part].max() for part in inside],
            "n_cells": [int(part.sum()) for part in inside],
            "n_units": [len(np.unique(unit[part])) for part in inside],
            "entropy": found,
            "entropy_low": low,
            "entropy_high": high,
            "null_mean": null.mean(axis=0),
            "null_low": null_low,
            "null_high": null_high,
            "p_value": p_value,
            "q_value": benjamini_hochberg(p_value),
        }
    )
    params = {
        "unit": "nats",
        "later": later.params["sae"],
        "time_key": time_key,
        "p_value": float(spread),
        "n_features": len(most[0]),
        "n_permutations": n_permutations,
        "exchanged": "donors" if _one_time_each(course, unit) and donor_key else "cells",
        "donors": "donor" if donor_key else "cell",
        "seed": rng,
    }
    write_result(
        adata,
        _keys.SPECTRAL_ENTROPY,
        {**model.params, **sae.params, **params},
        key_added=key_added,
        bins=bins,
    )


def _bins(time: np.ndarray, n: int) -> np.ndarray:
    """Bin of each cell; cells of one time are in one bin."""
    if np.ptp(time) == 0:
        raise ValueError("All cells have one time: there is no course.")
    edges = np.unique(np.quantile(time, np.linspace(0, 1, n + 1)))
    return np.searchsorted(edges[1:-1], time, side="right")


def _require_enough(course: np.ndarray, unit: np.ndarray, n_bins: int) -> None:
    n = [len(np.unique(unit[course == i])) for i in range(n_bins)]
    if min(n) < _MIN:
        raise ValueError(
            f"Bin {int(np.argmin(n))} of the course has {min(n)} donors (or cells); {_MIN} are needed. Take fewer bins (n_bins), "
            "or more cells (n_cells)."
        )


def _most_active(model: MaxTokiModel, coder: SparseAutoencoder, sequences, n: int) -> np.ndarray:
    return np.sort(np.argsort(-mean_activity(model, coder, sequences), kind="stable")[:n])


def _entropies(effects: np.ndarray, course: np.ndarray, unit: np.ndarray, n_bins: int) -> np.ndarray:
    """Entropy of each bin's network, the mean over its donors."""
    key = course * (unit.max() + 1) + unit
    names, of = np.unique(key, return_inverse=True)
    flat = effects.reshape(len(effects), -1)
    means = np.zeros((len(names), flat.shape[1]))
    np.add.at(means, of, flat)
    means /= np.bincount(of)[:, None]
    bin_of = names // (unit.max() + 1)
    networks = np.stack([means[bin_of == i].mean(axis=0) for i in range(n_bins)])
    return entropy_of(networks.reshape(n_bins, *effects.shape[1:]))


def _resampled(effects, course, unit, n_bins: int, seed: list[int]) -> np.ndarray:
    """The same with donors drawn anew in each bin."""
    generator = np.random.default_rng(seed)
    rows, new_course, new_unit = [], [], []
    for i in range(n_bins):
        mine = np.unique(unit[course == i])
        for number, name in enumerate(generator.choice(mine, len(mine))):
            found = np.flatnonzero((course == i) & (unit == name))
            rows.append(found)
            new_course.append(np.full(len(found), i))
            new_unit.append(np.full(len(found), number))
    rows = np.concatenate(rows)
    return _entropies(effects[rows], np.concatenate(new_course), np.concatenate(new_unit), n_bins)


def _one_time_each(course: np.ndarray, unit: np.ndarray) -> bool:
    return len(np.unique(np.column_stack([course, unit]), axis=0)) == len(np.unique(unit))


def _exchanged(course: np.ndarray, unit: np.ndarray, seed: list[int]) -> np.ndarray:
    """Bins given to other donors, if each has one, or to other cells."""
    generator = np.random.default_rng(seed)
    if not _one_time_each(course, unit):
        return generator.permutation(course)
    _, first, of = np.unique(unit, return_index=True, return_inverse=True)
    return generator.permutation(course[first])[of]
