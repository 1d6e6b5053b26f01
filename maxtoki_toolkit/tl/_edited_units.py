"""What a screen edits and reads: prompts, or single cells."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from ..models.model import MaxTokiModel
from ..models.prompts import Prompts
from ..models.sequences import Sequences
from ..pp._design import get_groups, get_labels, get_mask
from ._asked_genes import Asked, make_asked
from ._cells import WHOLE, get_sequences
from ._gene_covariates import gene_covariates, nearest_genes
from ._lapse_prompts import lapse_prompts
from .recipes import Cells


class Units(NamedTuple):
    """What is edited and read: prompts, or single cells."""

    table: pd.DataFrame
    """One row a unit: `prompt`, `cell` (its query), `group`, and where known `donor`; for prompts `lapse`."""
    cells: Sequences
    """Whole cells that take part."""
    used: np.ndarray
    """Their rows in the AnnData."""
    members: np.ndarray
    """Units x cells of a unit: which of the cells, -1 for none."""
    edited: np.ndarray
    """bool, cells of a unit: which ones are edited."""
    prompts: Prompts | None
    target: np.ndarray
    """Which of the cells is the target of each unit, or units x hidden size; empty for none."""
    groupby: list[str]
    donor_key: str
    time_read_as: str = ""


def prompt_units(adata: AnnData, model: MaxTokiModel, key: str | None, on: str) -> Units:
    """Prompts that ask for the lapse, with the cells of them that are edited."""
    table, rows, params = lapse_prompts(adata, model, key)
    members = np.column_stack([rows.context, rows.query])
    used = np.unique(members[members >= 0])
    members = np.where(members >= 0, np.searchsorted(used, members), -1)
    size = rows.context.shape[1]
    units = pd.DataFrame({"prompt": np.arange(len(table)), "cell": table["query"].astype(str)})
    units["group"] = table["group"].astype(str)
    if "donor" in table:
        units["donor"] = table["donor"].astype(str)
    units["lapse"] = table["lapse"].to_numpy(float)
    return Units(
        units,
        get_sequences(adata[used], model, max_length=WHOLE),
        used,
        members,
        np.array([on != "query"] * size + [on != "context"]),
        rows._replace(context=members[:, :size], query=members[:, size]),
        np.zeros(0),
        list(params["groupby"]),
        str(params["donor_key"]),
        table.attrs["time_read_as"],
    )


def cell_units(adata: AnnData, model: MaxTokiModel, on: Cells, seed: int) -> Units:
    """Single cells, each with a target cell of its group where there are any."""
    group, names = get_groups(adata, on.groupby)
    chosen = np.flatnonzero(get_mask(adata, on.use, "use"))
    if not len(chosen):
        raise ValueError("There is no cell to edit (use=...).")
    goal = np.zeros(0, dtype=np.int64)
    if on.target is not None:
        goal = np.flatnonzero(get_mask(adata, on.target, "target"))
        _require_targets(group[chosen], group[goal], names)
    used = np.union1d(chosen, goal)
    cells = get_sequences(adata[used], model, max_length=WHOLE)
    units = pd.DataFrame({"prompt": np.arange(len(chosen)), "cell": adata.obs_names[chosen].astype(str)})
    units["group"] = np.array(names, dtype=object)[group[chosen]]
    if on.donor_key is not None:
        units["donor"] = get_labels(adata, on.donor_key)[chosen]
    row, drawn = np.searchsorted(used, chosen), goal
    if on.target is not None:
        drawn = _draw_targets(
            units["cell"], row, group[chosen], np.searchsorted(used, goal), group[goal], seed
        )
    columns = [on.groupby] if isinstance(on.groupby, str) else list(on.groupby or [])
    return Units(units, cells, used, row[:, None], np.array([True]), None, drawn, columns, on.donor_key or "")


def _require_targets(group: np.ndarray, of_goal: np.ndarray, names: list[str]) -> None:
    n = np.bincount(of_goal[of_goal >= 0], minlength=len(names))
    if (lacking := np.unique(group[n[group] < 2])).size:
        raise ValueError(
            f"The group {names[lacking[0]]!r} has {n[lacking[0]]} target cells; at least 2 are needed."
        )


def _draw_targets(
    names: pd.Series, row, group, goal: np.ndarray, of_goal: np.ndarray, seed: int
) -> np.ndarray:
    """A target cell of the same group for each, another one than itself; drawn by the cell's name."""
    number = pd.util.hash_array(
        names.to_numpy(dtype=object), hash_key=f"{seed % 10**16:016d}", categorize=False
    )
    drawn = np.empty(len(row), dtype=np.int64)
    for one in np.unique(group):
        mine, pool = np.flatnonzero(group == one), goal[of_goal == one]
        at = (number[mine] % np.uint64(len(pool))).astype(np.int64)
        itself = pool[at] == row[mine]
        drawn[mine] = pool[np.where(itself, (at + 1) % len(pool), at)]
    return drawn


def with_controls(adata: AnnData, model: MaxTokiModel, asked: Asked, units: Units, n: int) -> Asked:
    """The edits that were asked for, and for each sets of as many genes like its own."""
    edited = units.members[:, units.edited]
    weight = np.bincount(edited[edited >= 0], minlength=adata.n_obs).astype(float)
    table = gene_covariates(adata, weight=weight)
    ids = model.vocab.gene_of_token
    taken = {ids[token] for tokens in asked.tokens for token in tokens}
    names, labels, tokens, matched = (list(asked.table[c]) for c in ("gene", "symbol", "gene", "matched_to"))
    tokens = list(asked.tokens)
    for name, label, members in zip(asked.table["gene"], asked.table["symbol"], asked.tokens, strict=True):
        like = nearest_genes(table, ids[members].tolist(), n + len(members), exclude=taken)
        for number in range(n if all(like) else 0):
            # The genes of a control set differ: each is the nearest one that is not in it yet.
            chosen: list[str] = []
            for genes in like:
                chosen.append(next(gene for gene in genes[number:] if gene not in chosen))
            names.append(f"control {number + 1} of {name}")
            labels.append(f"control {number + 1} of {label}")
            tokens.append(model.vocab.token_id(chosen).astype(np.int64))
            matched.append(name)
    return make_asked(names, labels, tokens, ids, matched)
