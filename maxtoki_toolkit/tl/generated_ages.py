"""Whether generated cells are of the age that was asked for, to a clock of true cells."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from .._progress import progress
from ..models.model import MaxTokiModel
from ..pp._design import as_list, get_times
from ..results.store import write_result
from ..stats.clocks import fit_ridge
from ..stats.fdr import benjamini_hochberg
from ..stats.lapse_scores import score_lapses
from ._expression import N_GENES
from ._prompted import asked_groups, by_prompts, features_at, other_cells, read_prompted
from ._rank_features import rank_features

SEEN = 0.05  # share of a clock's cells that a gene is read of


def generated_ages(
    adata: AnnData,
    model: MaxTokiModel,
    *,
    generated: AnnData,
    time_key: str | None = None,
    groupby: str | Sequence[str] | None = None,
    donor_key: str | None = None,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Read the age of generated cells with a clock of true cells, and compare with the age that was asked for.

    Parameters
    ----------
    adata
        Rank-encoded true cells, with the prompts: cells of the prompts' donors are compared, those of other
        donors train the clock.
    model
        The model that generated.
    generated
        Cells generated from prompts: `mt.tl.generate(adata, model)`.
    time_key
        Column of `.obs` with the age, or any time, in the unit of the lapses; by default that of the prompts.
    groupby
        Column or columns of `.obs`: a clock for each group, e.g. "cell_type"; `[]` for one clock. The context
        cells of a prompt agree in it. By default those of the prompts.
    donor_key
        Column of `.obs` with the donor, by default that of the prompts, if there is one.
    rng
        Seed of the permutations, and of the folds where there are no donors.
    key_added
        Key in `.uns`, by default "generated_ages".

    Returns
    -------
    `None`. Writes to `.uns["generated_ages"]` the tables

    `scores`
        A row a kind of cell and group, with "all" for all groups together, in `params["unit"]`. Each measure
        has `_low` and `_high`, the ends of its 95% interval over donors (NaN for fewer than three):

        `cells`, `group`
            "generated"; "query", the true cells in their place; "context", the last context cells. The group.
        `n_cells`, `n_units`, `unit`
            Cells, and how many donors (or query cells, where no donor is known) were asked for.
        `r`, `slope`
            Correlation of the age that is read with the prompted age, and slope on it: 1 is right.
        `r2`, `spread`, `bias`, `median_error`, `mean_error`
            As of `mt.tl.predict_timelapse`, for ages.
        `r_null_low`, `r_null_high`, `p_value`
            Where `r` is in 95% of permutations of the ages asked for, and its one-sided p-value.
        `q_value`
            Corrected for the groups; NaN for "all".

    `cells`
        A row a generated cell, ages in `params["unit"]`:

        `cell`, `prompt`, `group`
            Its name, its prompt, and whose clock reads it.
        `lapse`, `prompted`
            Time that was to pass since the last context cell, and the age that was asked for.
        `generated`, `query`, `context`
            Age that is read from it, from the true cell in its place (where there is one), and from the last
            context cell.

    `clocks`
        A row a fitted clock: `group`, `n_cells` and `n_donors` of its training, and `alpha`, its penalty.

    Raises
    ------
    KeyError
        If prompts or columns are missing.
    ValueError
        If the cells were not generated from prompts, all true cells are of the prompts' donors, or a group
        has too few others for a clock.

    Notes
    -----
    The prompted age is that of the last context cell and the lapse that was asked for. The clock is a ridge
    regression of age on the ranks of the genes that the model reads (1 for the highest, falling evenly to 0;
    of those in 5% of the cells the 2,000 that vary most), its penalty chosen between donors. It is no part of
    the model, and has seen no cell of any donor in the prompts (nor of the prompts, where no donor is known).
    The same clock reads, prompt by prompt:

    ``generated``
        the generated cell;
    ``query``
        the true cell of that age: the ceiling. A clock of single cells shrinks ages towards their mean, so a
        slope below 1 is to be expected here already. Left out where cells were generated after other lapses
        than those of the prompts;
    ``context``
        the last context cell: a model in which no time passes.

    Intervals leave out each donor in turn with all prompts that he or she has a part in (jackknife). The null
    permutes the prompted ages between the query donors' samples, within groups, and leaves context cells and
    readings: one-sided p of r, with donors as units; `q_value` corrects for the groups (Benjamini and
    Hochberg). Where prompted ages go with those of the context cells (time that only moves on, or the same
    lapse for all), the null does not take that away: compare with `context`.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(400, 12)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.hold_out(adata, donor_key="donor_id", donors=0.5, time_key="age_months")
    >>> mt.pp.sample_prompts(
    ...     adata, time_key="age_months", groupby="cell_type", donor_key="donor_id", task="cell", n_prompts=4,
    ...     context_size=1, contexts="held_out", queries="held_out")
    >>> cells = mt.tl.generate(adata, model, max_genes=10)
    >>> mt.tl.generated_ages(adata, model, generated=cells, groupby=[])
    >>> mt.get.table(adata, "generated_ages")["cells"].tolist()
    ['generated', 'query', 'context']
    """
    time_key, groupby, donor_key = by_prompts(
        adata, generated, time_key=time_key, groupby=groupby, donor_key=donor_key
    )
    true, generated, prompted = read_prompted(adata, model, generated, donor_key, time_key, groupby)
    if np.isnan(prompted.lapse).any():
        raise ValueError(
            "These cells go on with others, so no age was asked for. Generate from prompts: mt.tl.generate(adata, model)."
        )
    time = get_times(true, time_key).astype(float)
    group, asked, names = asked_groups(true, prompted, groupby)
    train = np.flatnonzero(other_cells(prompted) & (group >= 0))
    donor = prompted.donor
    rows = {"query": prompted.query, "context": prompted.last}
    if as_prompted := bool((prompted.lapse == prompted.asked).all()):
        _require_same_times(time, prompted)
    else:
        del rows["query"]
    features = {"generated": rank_features(generated, model)}
    features |= {name: features_at(true, model, row) for name, row in rows.items()}
    X = features_at(true, model, train)

    read = {name: np.empty(len(asked)) for name in features}
    clocks = []
    for code in progress(np.unique(asked), desc="Fitting clocks", unit="group"):
        mine, fitted = asked == code, group[train] == code
        parts = {name: values[mine] for name, values in features.items()}
        of_donor = None if donor is None else donor[train[fitted]].astype(str)
        ages, alpha = _clock(X[fitted], time[train[fitted]], of_donor, parts, rng, names[code])
        for name, values in ages.items():
            read[name][mine] = values
        n_donors = -1 if of_donor is None else len(np.unique(of_donor))
        clocks.append((names[code], int(fitted.sum()), n_donors, alpha))

    prompted_age = time[prompted.last] + prompted.lapse
    cells = pd.DataFrame(
        {
            "cell": generated.obs_names.to_numpy(dtype=object),
            "prompt": generated.obs["prompt"].astype(str).to_numpy(dtype=object),
            "group": np.array(names, dtype=object)[asked],
            "lapse": prompted.lapse,
            "prompted": prompted_age,
            **read,
        }
    )
    params = {
        "unit": model.time_head.unit if model.time_head is not None else "",
        "time_key": time_key,
        "donor_key": donor_key,
        "groupby": as_list(groupby),
        "n_train_cells": len(train),
        "seed": rng,
    }
    write_result(
        adata,
        _keys.GENERATED_AGES,
        {**model.params, **params},
        key_added=key_added,
        scores=_scores(cells, list(read), prompted, true, donor, as_prompted, rng),
        cells=cells,
        clocks=pd.DataFrame(clocks, columns=["group", "n_cells", "n_donors", "alpha"]),
    )


def _require_same_times(time: np.ndarray, prompted) -> None:
    """Raise if ages and lapses are not of one column."""
    if (wrong := time[prompted.query] != time[prompted.last] + prompted.lapse).any():
        raise ValueError(
            f"The lapses of {wrong.sum()} of {len(wrong)} generated cells are not the differences in time_key between the cells of "
            "their prompts. Give the time_key that the prompts were drawn with."
        )


def _clock(X, time: np.ndarray, donor: np.ndarray | None, parts: dict, seed: int, name: str) -> tuple:
    """Age of some cells by a clock of others, and its penalty."""
    n_units = len(time) if donor is None else len(np.unique(donor))
    if n_units < 3 or len(np.unique(time)) < 2:
        what = "cells" if donor is None else "donors"
        raise ValueError(
            f"Group {name!r} has {n_units} {what} without a part in the prompts, of {len(np.unique(time))} ages; a clock needs 3, of "
            "different ages. Use a coarser groupby, hold out fewer donors, or leave its generated cells out."
        )
    mean = np.asarray(X.mean(axis=0)).ravel()
    variance = np.asarray(X.multiply(X).mean(axis=0)).ravel() - mean**2
    # Scaled to one variance, a gene of few cells would decide alone on the age of a cell that has it.
    variance[X.getnnz(axis=0) < SEEN * X.shape[0]] = 0
    genes = np.argsort(-variance, kind="stable")[:N_GENES]
    genes = np.sort(genes[variance[genes] > 1e-9])
    if not len(genes):
        raise ValueError(f"Group {name!r}: no gene is read of {SEEN:.0%} of the cells for the clock.")
    clock, alpha = fit_ridge(X[:, genes].toarray().astype(float), time, donor, seed)
    return {part: clock.predict(values[:, genes].toarray()) for part, values in parts.items()}, alpha


def _scores(cells, columns: list[str], prompted, true, donor, as_prompted, seed: int) -> pd.DataFrame:
    """Scores of the ages that were read, as of lapses from nothing."""
    units = prompted.units.copy()
    if donor is None:
        units = pd.DataFrame({"query": true.obs_names.to_numpy(dtype=object)[prompted.query]})
    elif not as_prompted:
        # The age asked for is then no longer that of the query's donor, but goes with the last context cell.
        units["donor"] = donor[prompted.last]
    table = units.assign(
        lapse=cells["prompted"], time=cells["prompted"], group=cells["group"], **cells[columns]
    )
    groupby = "group" if table["group"].nunique() > 1 else None
    scores = score_lapses(table, {name: name for name in columns}, groupby=groupby, seed=seed)
    scores["q_value"] = np.nan
    for rows in scores[scores["group"] != "all"].groupby("predictor").groups.values():
        scores.loc[rows, "q_value"] = benjamini_hochberg(scores.loc[rows, "p_value"])
    return scores.rename(columns={"predictor": "cells", "n_prompts": "n_cells"})
