"""What generated cells were asked for: the true cells of their prompts, and of which donors these are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from .. import _keys
from .._validate import require_adata, require_rank
from ..models.model import MaxTokiModel
from ..pp._design import get_groups, get_labels, known_cells
from ..pp.sample_prompts import read_prompts
from ..results.store import read_result
from ._rank_features import rank_features


class Prompted(NamedTuple):
    """The prompt of each generated cell, by rows of the true cells."""

    prompt: np.ndarray
    """int, generated cells: number of the prompt, from 0."""
    context: np.ndarray
    """int, generated cells x most context cells: -1 after the last one; the cell that was gone on with, where there is no prompt."""
    query: np.ndarray
    """int, generated cells: the true cell that the prompt asks for."""
    lapse: np.ndarray
    """float, generated cells: time after the last context cell that was asked for, NaN where there is no prompt."""
    asked: np.ndarray
    """float, generated cells: lapse of the query cell."""
    units: pd.DataFrame
    """One row a generated cell: all donors of its prompt, or the prompt where no donor is known."""
    unit: str
    """ "donor" or "prompt"."""
    taken: np.ndarray
    """bool, true cells: of a donor in any of the prompts (or one of their cells, where no donor is known)."""
    donor: np.ndarray | None
    """str, true cells; `None` where no donor is known."""

    @property
    def last(self) -> np.ndarray:
        """Last context cell of each generated cell."""
        return self.context[np.arange(len(self.context)), (self.context >= 0).sum(axis=1) - 1]


def by_prompts(adata: AnnData, generated: AnnData, **columns) -> tuple:
    """Names of columns; those that were not given (`None`) are what the prompts of the generated cells were drawn by.

    Parameters
    ----------
    adata, generated
        True cells, with the prompts, and generated ones, which may be of none.
    columns
        Some of `time_key`, `groupby` and `donor_key`, as they were given.
    """
    require_adata(generated)
    key = generation_params(generated).get("prompts", _keys.PROMPTS)
    of_prompts = {"prompt", "lapse"} <= set(generated.obs) and key in adata.uns
    known = stored_prompts(adata, generated)["params"] if of_prompts else {}
    # In files, no donor and no group are "" and an empty array.
    known = {"groupby": list(known.get("groupby", [])) or None} | {
        name: known.get(name) or None for name in ("time_key", "donor_key")
    }
    return tuple(known[name] if value is None else value for name, value in columns.items())


def read_prompted(
    adata: AnnData,
    model: MaxTokiModel,
    generated: AnnData,
    donor_key: str | None,
    *keys: str | Sequence[str] | None,
) -> tuple[AnnData, AnnData, Prompted]:
    """Find the true cells of the prompts that cells were generated from.

    Returns
    -------
    The true cells with donors and values in the other columns, and the generated cells, both in the order of
    their names; and what belongs to what.
    """
    require_rank(adata)
    if "prompt" not in generated.obs or _keys.RANK not in generated.layers:
        raise KeyError(
            'generated= has no .obs["prompt"] or no .layers["rank"]. It should come from mt.tl.generate(adata, model).'
        )
    require_generator(generated, model)
    params = generation_params(generated)
    generated, _ = known_cells(generated)
    named = generated.obs["prompt"].astype(str).to_numpy(dtype=object)
    stored = None if "n_given" in params else stored_prompts(adata, generated)
    cells, _ = known_cells(adata, donor_key, *keys)
    if stored is None:
        context, asked = named_rows(cells, named)[:, None], np.full(len(named), np.nan)
        query, lapse = context[:, 0], asked
    else:
        table = stored["prompts"]
        row = _prompt_rows(table, generated, named)
        found = read_prompts(table, cells, cells, task="cell")
        context, query, asked = found.context[row], found.query[row], found.lapse[row].astype(float)
        lapse = generated.obs["lapse"].to_numpy(dtype=float)
    donor = None if donor_key is None else get_labels(cells, donor_key)
    units, unit, taken = _units(cells.n_obs, named, context, query, donor)
    prompted = Prompted(pd.factorize(named)[0], context, query, lapse, asked, units, unit, taken, donor)
    return cells, generated, prompted


def asked_groups(
    adata: AnnData, prompted: Prompted, groupby: str | Sequence[str]
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Group of each true cell, that which each generated cell was asked for, and the groups' names."""
    group, names = get_groups(adata, groupby)
    context = prompted.context
    asked = group[prompted.last]
    differs = ((group[context] != asked[:, None]) & (context >= 0)).any(axis=1) | (asked < 0)
    if differs.any():
        raise ValueError(
            f"The context cells of {differs.sum()} of {len(asked)} generated cells differ in {groupby!r}, or have none: what "
            "was asked for is not clear. Draw prompts by that column: mt.pp.sample_prompts(groupby=...)."
        )
    return group, asked, names


def other_cells(prompted: Prompted) -> np.ndarray:
    """Which true cells are of donors without a part in the prompts."""
    if (apart := ~prompted.taken).any():
        return apart
    what = "is of a donor" if prompted.unit == "donor" else "is a cell"
    raise ValueError(
        f"Each of the {len(apart):,} true cells {what} of the prompts: none is left to compare with. Generate from prompts "
        'of donors that are held out: mt.pp.hold_out, then mt.pp.sample_prompts(contexts="held_out", '
        'queries="held_out", task="cell", ...).'
    )


def features_at(adata: AnnData, model: MaxTokiModel, rows: np.ndarray) -> sp.csr_matrix:
    """Rank features of some rows, which may repeat."""
    unique, place = np.unique(rows, return_inverse=True)
    return rank_features(adata[unique], model)[place]


def generation_params(generated: AnnData) -> dict:
    """What `mt.tl.generate` noted of these cells, if it wrote them."""
    return generated.uns.get(_keys.GENERATE, {}).get("params", {})


def require_generator(generated: AnnData, model: MaxTokiModel) -> None:
    """Raise if another model generated the cells, as far as they say."""
    if generation_params(generated).get("model_sha256", model.identity) != model.identity:
        raise ValueError(f"Another model than {model.name!r} generated these cells. Pass that one.")


def stored_prompts(adata: AnnData, generated: AnnData) -> dict:
    """Result of `mt.pp.sample_prompts` that the cells were generated from."""
    key = generation_params(generated).get("prompts", _keys.PROMPTS)
    return read_result(adata, key, 'mt.pp.sample_prompts(adata, task="cell", ...)')


def named_rows(adata: AnnData, named: np.ndarray) -> np.ndarray:
    """Rows of the cells named."""
    rows = adata.obs_names.get_indexer(named)
    if (missing := rows < 0).any():
        raise KeyError(
            f"{missing.sum()} cells of the prompts are not in the AnnData, or are without a donor, a group or a time "
            f"(first: {named[missing][0]!r})."
        )
    return rows


def _prompt_rows(table: pd.DataFrame, generated: AnnData, named: np.ndarray) -> np.ndarray:
    """Row of the prompt of each generated cell."""
    row = pd.Index(np.arange(len(table)).astype(str)).get_indexer(named)
    same = (row >= 0).all() and "lapse" in generated.obs
    if same and "group" in generated.obs:
        same = (table["group"].astype(str).to_numpy()[row] == generated.obs["group"].astype(str)).all()
    if not same:
        raise ValueError("The cells were not generated from these prompts. Generate again.")
    return row


def _units(
    n_cells: int, named: np.ndarray, context: np.ndarray, query: np.ndarray, donor: np.ndarray | None
) -> tuple[pd.DataFrame, str, np.ndarray]:
    """What intervals leave out, and the true cells that have a part in it."""
    taken = np.zeros(n_cells, dtype=bool)
    members = np.column_stack([context, query])
    if donor is None:
        taken[members[members >= 0]] = True
        return pd.DataFrame({"prompt": named}), "prompt", taken
    taken = np.isin(donor.astype(str), np.unique(donor[members[members >= 0]].astype(str)))
    named_donor = np.append(donor, "")[members]
    columns = ["donor", *(f"donor_{i}" for i in range(context.shape[1]))]
    return pd.DataFrame(np.roll(named_donor, 1, axis=1), columns=columns), "donor", taken
