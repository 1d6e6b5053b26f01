"""Prompts that were drawn beforehand, to train on in place of those that are drawn on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from anndata import AnnData

from ..models.prompts import Prompts
from ..pp._columns import find_unit
from ..pp.sample_prompts import read_prompts
from ..results.store import read_result

_EPOCH = 1  # beside the seed: no other stream of a training begins with it


class StoredPrompts:
    """Serves stored prompts in shuffled epochs, as a `Sampler` serves new ones.

    Parameters
    ----------
    prompts
        The prompts.
    timelapse
        Share that asks for the lapse, drawn anew in each epoch.
    seed
        Seed.
    """

    def __init__(self, prompts: Prompts, *, timelapse: float, seed: int) -> None:
        self.prompts, self.timelapse, self.seed = prompts, timelapse, seed

    def draw(self, start: int, stop: int) -> Prompts:
        """Prompts `start` to `stop`; prompt i is the same whatever else is drawn."""
        n = len(self.prompts.query)
        epochs = range(start // n, -(-stop // n))
        orders = [np.random.default_rng([self.seed, _EPOCH, epoch]).permutation(n) for epoch in epochs]
        place = slice(start - epochs.start * n, stop - epochs.start * n)
        drawn = self.prompts[np.concatenate([np.zeros(0, np.int64), *orders])[place]]
        coins = [np.random.default_rng([self.seed, _EPOCH, epoch, 1]).random(n) for epoch in epochs]
        return drawn._replace(timelapse=np.concatenate([np.zeros(0), *coins])[place] < self.timelapse)


class Stored(NamedTuple):
    """Prompts of all data sets, by rows of their cells."""

    prompts: Prompts
    unit: str
    """Unit of the lapses."""

    def among(self, kept: np.ndarray) -> Prompts:
        """Those whose cells are all among these."""
        rows = np.column_stack([self.prompts.context, self.prompts.query])
        return self.prompts[(kept[rows] | (rows < 0)).all(axis=1)]


def read_stored(
    parts: Sequence[AnnData | str | Path], tables: Sequence[AnnData], key: str, unit: str | None
) -> Stored:
    """Prompts under a key of `.uns` of each data set, and their unit; or raise if it is not known."""
    if any(not isinstance(part, AnnData) for part in parts):
        raise ValueError(
            "Prompts that were drawn beforehand are read from .uns: give cells in memory, as an AnnData."
        )
    found, offset, units = [], 0, set()
    for part, table in zip(parts, tables, strict=True):
        stored = read_result(
            part, key, "mt.pp.sample_prompts(adata, ...) or mt.pp.spatial_prompts(adata, ...)"
        )
        params = stored["params"]
        if params["queries_elsewhere"]:
            raise ValueError(
                "The query cells of these prompts are in another AnnData: draw prompts of this one."
            )
        prompts = read_prompts(stored["prompts"], table, table, task=params["task"])
        context = np.where(prompts.context >= 0, prompts.context + offset, -1)
        found.append(prompts._replace(context=context, query=prompts.query + offset))
        units.add(params.get("distance_unit") or unit or _unit_of(part, params))
        offset += table.n_obs
    if len(units) > 1:
        raise ValueError(f"The prompts are in several units: {', '.join(sorted(units))}.")
    known = units.pop()
    if unit is not None and unit != known:
        raise ValueError(f"The prompts are distances in {known}, and time_unit is {unit!r}. Leave it out.")
    return Stored(Prompts.concatenate(found), known)


def _unit_of(part: AnnData, params: Mapping[str, Any]) -> str:
    """What the column of the times says."""
    if params["time_key"] not in part.obs:
        raise ValueError(
            f"The unit of the prompts' lapses is not known: there is no .obs[{params['time_key']!r}] any more. Give time_unit=."
        )
    return find_unit(part.obs[params["time_key"]], None)
