"""All audits of generated cells at once, and what they come to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from .._warn import warn
from ..models.model import MaxTokiModel
from ..pp._design import as_list
from ..pp.simulate_doublets import DoubletSimulation
from ..results.store import write_result
from ._prompted import by_prompts, require_generator
from .annotation_concordance import annotation_concordance
from .differential_rank import differential_rank
from .doublets import doublets
from .generated_ages import generated_ages
from .generation_diversity import generation_diversity
from .train_on_generated import train_on_generated


class _Measure(NamedTuple):
    """Where a measure is, and what it is between."""

    part: str
    table: str
    column: str
    """Column that names what a row is of."""
    generated: str
    """Its value for generated cells, and for the worst and the best there can be."""
    worst: str
    best: str
    name: str


# Coverage is not among them: the average cell is within reach of many true ones, so nothing there is at the
# bottom.
_MEASURES = (
    _Measure("doublets", "singlets", "population", "queries", "doublets", "cells", "singlet_fraction"),
    _Measure("annotation_concordance", "scores", "cells", "generated", "permuted", "query", "accuracy"),
    _Measure("train_on_generated", "scores", "training", "generated", "labels permuted", "true", "macro_f1"),
    _Measure("generated_ages", "scores", "cells", "generated", "context", "query", "r"),
    _Measure("generation_diversity", "scores", "cells", "generated", "copies", "held-out", "nearer"),
    _Measure("generation_diversity", "scores", "cells", "generated", "average", "held-out", "spread"),
    _Measure("generation_diversity", "scores", "cells", "generated", "shuffled", "held-out", "precision"),
    _Measure("differential_rank", "scores", "predictor", "generated", "permuted", "true halves", "pearson"),
)


def evaluate_generated(
    adata: AnnData,
    model: MaxTokiModel,
    *,
    generated: AnnData,
    groupby: str | Sequence[str] | None = None,
    donor_key: str | None = None,
    train: str | Sequence[bool] = "train",
    intervals: tuple | None = None,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Audit generated cells: whether each is one cell, of the type and age asked for, and more than a copy or an average.

    Parameters
    ----------
    adata
        Rank-encoded true cells, with the prompts; of donors in the prompts, and of others to compare with.
    model
        The model that generated.
    generated
        Generated cells: `mt.tl.generate(adata, model)`.
    groupby
        Column or columns of `.obs` with the type, by default those of the prompts.
    donor_key
        Column of `.obs` with the donor, by default that of the prompts.
    train
        Which cells the model was trained on, as of `mt.pp.hold_out`: boolean column of `.obs`, or one boolean
        a cell.
    intervals
        Two intervals of time to compare, as in `mt.tl.differential_rank`; by default changes of rank are not
        looked at.
    rng
        Seed.
    key_added
        Key in `.uns` of the summary, by default "evaluate_generated".

    Returns
    -------
    `None`. Writes the results of `mt.tl.doublets` (by ranks), `mt.tl.annotation_concordance`,
    `mt.tl.train_on_generated`, `mt.tl.generated_ages`, `mt.tl.generation_diversity` and
    `mt.tl.differential_rank` where these write them, and to `.uns["evaluate_generated"]` the table `summary`,
    a row a measure. Audits that the cells do not allow are left out, with a warning; `params["left_out"]`
    says why.

    `audit`, `measure`, `group`
        The function that has it in its own result, its name there, and the group ("all" where there is a row
        for all).
    `value`, `low`, `high`
        Of generated cells, with the 95% interval.
    `worst`, `worst_is`, `best`, `best_is`
        What cells that are none and what true cells have, and which cells these are in the audit's result.
    `place`
        Where the value is between both: 0 at the worst, 1 at true cells.

    Raises
    ------
    ValueError
        If another model generated the cells, or they allow none of the audits.

    Notes
    -----
    `place` puts each measure between the worst and the best that there is: 0 is where cells are that are
    nothing (pairs of cells in one; types exchanged; context cells copied; copies, averages and cells with
    genes shuffled; intervals exchanged), 1 where true cells of the same kind are. It may go beyond both. A
    generator that is good has all of them near 1; one alone says little, since copies of the context are of
    the right type, and averages are single cells.

    Examples
    --------
    >>> import warnings, maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(400, 12)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.hold_out(adata, donor_key="donor_id", donors=0.5, time_key="age_months")
    >>> mt.pp.sample_prompts(
    ...     adata, time_key="age_months", groupby="cell_type", donor_key="donor_id", task="cell", n_prompts=8,
    ...     context_size=1, contexts="held_out", queries="held_out", sampling=mt.pp.PromptSampling(balance=1))
    >>> cells = mt.tl.generate(adata, model, max_genes=10)
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")  # so few cells do not allow all of the audits
    ...     mt.tl.evaluate_generated(adata, model, generated=cells)
    >>> mt.get.table(adata, "evaluate_generated")["measure"].tolist()[:3]
    ['singlet_fraction', 'accuracy', 'macro_f1']
    """
    require_generator(generated, model)
    groupby, donor_key = by_prompts(adata, generated, groupby=groupby, donor_key=donor_key)
    columns = as_list(groupby)
    of_cells = {"generated": generated, "groupby": groupby, "donor_key": donor_key, "rng": rng}
    audits = {
        # Doublets are told within one column of types.
        doublets: {
            "queries": generated,
            "groupby": columns[0] if len(columns) == 1 else None,
            "donor_key": donor_key,
            "features": ["ranks"],
            "simulation": DoubletSimulation(kind="ranks"),
            "rng": rng,
        },
        annotation_concordance: of_cells,
        train_on_generated: of_cells,
        generated_ages: of_cells,
        generation_diversity: {**of_cells, "train": train},
        differential_rank: {**of_cells, "intervals": intervals},
    }
    left_out, errors = {}, []
    for audit, settings in audits.items():
        name = audit.__name__
        if settings.get("intervals", ...) is None:
            left_out[name] = "No intervals were given."
            continue
        try:
            audit(adata, model, **settings)
        except (KeyError, ValueError) as error:
            left_out[name] = str(error.args[0])
            errors.append(error)
    if len(left_out) == len(audits):
        raise errors[0]
    if errors:
        reasons = " ".join(f"{name}: {reason}" for name, reason in left_out.items())
        warn(f"Left out, since the cells do not allow it. {reasons}")
    params = {
        "groupby": columns,
        "donor_key": donor_key,
        "train": train if isinstance(train, str) else "mask",
        "unit": "as in each audit",
        "left_out": left_out,
        "seed": rng,
    }
    write_result(
        adata,
        _keys.EVALUATE_GENERATED,
        {**model.params, **params},
        key_added=key_added,
        summary=_summary(adata, left_out),
    )


def _summary(adata: AnnData, left_out: dict[str, str]) -> pd.DataFrame:
    """One row a measure (and a group, where there is no row of all groups)."""
    rows = []
    for measure in _MEASURES:
        if measure.part in left_out:
            continue
        table = adata.uns[measure.part][measure.table]
        # Simulated doublets of two types are easier to tell than those of one, and both are the worst there
        # can be.
        names = table[measure.column].replace(
            {"same-type doublets": "doublets", "cross-type doublets": "doublets"}
        )
        table = table.assign(**{measure.column: names})
        if "group" not in table:
            table = table.assign(group="all")
        elif (table["group"] == "all").any():
            table = table[table["group"] == "all"]
        for group, part in table.groupby("group", sort=False):
            part = part.drop_duplicates(measure.column).set_index(measure.column)
            rows.append(
                {"audit": measure.part, "measure": measure.name, "group": group, **_row(part, measure)}
            )
    return pd.DataFrame(rows)


def _row(table: pd.DataFrame, measure: _Measure) -> dict:
    """A measure of generated cells, with its interval and its place between the worst and the best."""
    value = table[measure.name]
    ends = [f"{measure.name}_low", f"{measure.name}_high"]
    ours = table.loc[measure.generated, ends if ends[0] in table else ["ci_low", "ci_high"]]
    worst, best = (float(value.get(name, np.nan)) for name in (measure.worst, measure.best))
    found = float(value[measure.generated])
    return {
        "value": found,
        "low": float(ours.iloc[0]),
        "high": float(ours.iloc[1]),
        "worst": worst,
        "worst_is": measure.worst,
        "best": best,
        "best_is": measure.best,
        "place": (found - worst) / (best - worst) if best != worst else np.nan,
    }
