"""Genes moved, taken out or put in: what becomes of the reading."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from .. import _keys
from .._digest import digest
from .._files import atomic
from .._progress import hidden, progress
from .._shards import (
    count_shards,
    drop_shards,
    job_digest,
    open_shards,
    parts_folder,
    process_index,
    shard_path,
    take_shards,
)
from ..models.edits import INSERTING, MODES, cut_cells, edit_cells
from ..models.embedding import embed_sequences
from ..models.model import MaxTokiModel, require_model
from ..models.prompts import Prompts
from ..models.sequences import Sequences
from ..models.timelapse import require_temporal
from ..pp._design import get_groups, get_labels, get_mask, known_cells
from ..pp.sample_prompts import read_prompts
from ..results.effects_file import as_categories, check_path, find_effects, read_effects, write_effects
from ..results.store import read_result, write_result
from ._asked_genes import ALL, Asked, ask_genes, make_asked
from ._cells import get_sequences
from ._edit_readouts import READOUTS, likeness, read_likelihoods, read_prompted_lapses
from ._gene_covariates import gene_covariates, nearest_genes
from ._time_unit import check_unit

ON = ("query", "context", "both")
UNITS = {"likelihood": "nats a gene", "embedding": "cosine"}
LARGEST = 1 << 28  # bytes in .uns
_RANKS = 50  # what "activate" moves a gene by, as in the original
_TOKENS = 1 << 21  # read at a time: a shard


def perturb(
    adata: AnnData,
    model: MaxTokiModel,
    *,
    genes: str | Sequence[str | Sequence[str]] | Mapping[str, str | Sequence[str]],
    mode: str = "inhibit",
    k: int | Sequence[int] | None = None,
    on: str = "query",
    readout: str = "timelapse",
    key: str | None = None,
    use: str | Sequence[bool] | None = None,
    target: str | Sequence[bool] | None = None,
    groupby: str | Sequence[str] | None = None,
    donor_key: str | None = None,
    n_controls: int = 0,
    layer: str | None = None,
    path: str | Path | None = None,
    share_array: bool = False,
    overwrite: bool = False,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Edit genes in cells and read them again: what moves the reading, and which way.

    Parameters
    ----------
    adata
        Rank-encoded cells, for the timelapse with prompts (`mt.pp.sample_prompts`).
    model
        A model; one with temporal training for the timelapse.
    genes
        Genes (symbols, Ensembl ids or `.var_names`), each edited alone; a tuple or list among them is a set whose genes are edited
        together, and {name: genes} are sets with names. "all" for every gene of the cells that the model knows.
    mode
        What is done to the ranking of a cell:

        "inhibit"
            To the last rank of the cell. Out of distribution: a gene that is not expressed has no rank at all, and the last one is
            of a gene that is barely seen.
        "delete"
            Taken out. Nearest to a cell that does not express the gene, but what the gene does to others stays.
        "activate"
            Up by `k` ranks, by default 50; an absent gene is put in k ranks above the end.
        "overexpress"
            To the first rank, put in where it is absent; a set in the order given. Far out of distribution: no cell has a
            transcription factor as its highest gene, and published screens called what this alone does.
        "shift"
            Up by `k` ranks, or down where it is negative: a dose.

        None of them changes any other gene, as a real perturbation does.
    k
        Ranks for "activate" and "shift", or several.
    on
        Which cells of a prompt are edited: its "query", all of its "context", or "both".
    readout
        "timelapse": change of the predicted lapse; from an edit of the query, positive is older.
        "likelihood": change of the mean log-probability of the genes of a `target` cell that is read after the edited one, in nats a
        gene (positive: the edited cell leads to the target), or without a target of the cell's own genes (how plausible it is).
        For models without temporal training. It is no time: two cells one after the other are not what such a model was trained on.
        "embedding": change of the cosine between a cell's embedding and the mean of the `target` cells, or without a target
        the cosine distance that the cell moves by, which has no direction.
    key
        Key in `.uns` of the prompts, by default "prompts".
    use
        Cells to edit, for the readouts of single cells: boolean column of `.obs`, or one boolean a cell. All by default.
    target
        Cells to go to, as `use`: one of the same group is drawn for each cell ("likelihood"), or their mean is taken
        ("embedding").
    groupby, donor_key
        Columns of `.obs` with the group and the donor of a single cell; prompts know their own.
    n_controls
        Also edit, for each gene or set, this many control sets of as many other genes: those most like its genes in rank,
        detection and expression. With "all", genes are each other's controls.
    layer
        Layer with the raw counts, for the expression of controls; by default what was ranked.
    path
        `.csv`, `.csv.gz` or `.parquet` to write the effects to, with their unit as `effect_unit`, for large screens. Parts are kept beside it until it is complete: a
        screen that was killed goes on where it was, and gives the same table. Processes of `accelerate launch` share the parts.
    share_array
        Share the parts out over the tasks of the SLURM array that this process is of, too.
    overwrite
        Replace a screen of other settings or cells at `path`. What else is there stays in any case.
    rng
        Seed of the target cells.
    key_added
        Key in `.uns`, by default "perturbation".

    Returns
    -------
    `None`. Writes to `.uns["perturbation"]` the tables

    `effects`
        A row a prompt (or cell) and edit, in `params["unit"]`; with `path`, in that file:

        `prompt`, `cell`, `group`, `donor`, `lapse`
            Number of the prompt (or cell), its query cell, group and donor, and its true lapse, where there
            are any.
        `gene`, `symbol`, `k`
            Ensembl id or name of the set, its symbol, and the ranks it is moved by (0 where the mode has
            none).
        `effect`
            `value` less `value_intact`; NaN where the model does not read the gene.
        `present`, `rank_before`, `rank_after`
            Whether an edited cell has the gene, and its rank there, from 1 (mean over the edited cells and
            the genes of a set; NaN where it is absent).
        `n_lost`, `n_gained`
            Other genes pushed out of what the model reads, and let in.
        `value`, `value_intact`, `took_effect`
            Readings with the edit and without; whether the edit changed what the model reads.

    `genes`
        A row a `gene` or set, with its `symbol`: its `members` and how many (`n_genes`); for a control, what
        it is `matched_to`; and in how many rows it was read (`n_read`) and its edit took effect
        (`n_took_effect`).

    Raises
    ------
    ValueError
        If the model cannot tell time and the readout is the timelapse, a setting is unknown or has no meaning here, or the effects are
        large and there is no `path`.
    KeyError
        If there are no prompts, or a gene is not known.

    Notes
    -----
    Edits are made in the whole ranking of a cell; what the model reads is cut after that. A gene that the model reads neither
    before nor after an edit has the effect NaN, never 0: nothing was seen of it. So has an absent gene, unless the mode puts it in. An edit that
    leaves what is read as it was has an effect of exactly 0 and `took_effect` False. With "all", genes that are not read in a cell
    have no row there.

    Taking a gene out of a cell that is longer than the model reads lets the next one in, and putting one in pushes the last out: `n_gained`
    and `n_lost` count them.

    The effect is what the model makes of an edit. It is not what happens to a cell: no gene answers to another here, and a gene that
    goes with age moves the reading whether or not it drives anything.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.sample_prompts(adata, time_key="age_months", groupby="cell_type", n_prompts=4, donor_key="donor_id")
    >>> mt.tl.perturb(adata, model, genes=["FOXO3", ("FOXO3", "KLF2")], mode="overexpress")
    >>> mt.get.table(adata, "perturbation").shape[0]
    8
    """
    doses = _check(model, mode, k, on, readout, key, use, target, groupby, donor_key, n_controls)
    if path is not None:
        check_path(path := Path(path))
    given, (adata, kept) = adata, known_cells(adata, groupby, donor_key)
    use, target = (
        mask if mask is None else get_mask(given, mask, name)[kept]
        for name, mask in (("use", use), ("target", target))
    )
    get = _prompts if readout == "timelapse" else _cells
    units = get(
        adata, model, key=key, on=on, use=use, target=target, groupby=groupby, donor_key=donor_key, rng=rng
    )
    asked = ask_genes(adata, model, genes)
    if n_controls:
        asked = _with_controls(adata[units.used], model, asked, units, n_controls, layer)
    whole = isinstance(genes, str) and genes == ALL
    screen = _Screen(model, units, asked, mode, doses, readout, whole=whole)

    recipe = {**model.params, "mode": mode, "k": doses.tolist(), "on": on, "readout": readout, "seed": rng}
    del recipe["device"]
    recipe |= {
        "genes": digest(asked.table),
        "cells": digest(*units.cells.arrays, units.table),
    }
    recipe["prompts"] = digest(*(units.prompts or ()), units.members, units.target)
    unit = UNITS.get(readout) or model.time_head.unit
    if path is None:
        found = [part for _, part in _read_parts(screen, range(screen.n_parts))]
        effects = screen.table(pd.concat(found, ignore_index=True))
        if (size := int(effects.memory_usage().sum())) > LARGEST:
            raise ValueError(
                f"The effects take {size / 1e9:.1f} GB, more than the {LARGEST / 1e9:.2f} GB that go to .uns. Say where to write "
                "them: path='effects.csv.gz'."
            )
    else:
        written = _in_parts(screen, path, recipe, unit, share_array=share_array, overwrite=overwrite)
        if written is None:
            return
        effects, checksum = written

    table = asked.table.copy()
    rows = effects["gene"].cat.codes.to_numpy()
    place = pd.Index(table["gene"]).get_indexer(effects["gene"].cat.categories)[rows]
    for name, column in [("n_read", effects["effect"].notna()), ("n_took_effect", effects["took_effect"])]:
        table[name] = np.bincount(place[column.to_numpy()], minlength=len(table))
    adata = given
    params = {
        "unit": unit,
        "mode": mode,
        "k": doses.tolist(),
        "on": on,
        "readout": readout,
        "whole_vocabulary": whole,
        "prompts": (key or _keys.PROMPTS) if readout == "timelapse" else "",
        "target": target is not None,
        "groupby": units.groupby,
        "donor_key": units.donor_key,
        "time_read_as": units.time_read_as,
        "n_controls": n_controls,
        "n_units": len(units.table),
        "n_edits": len(effects),
        "n_genes": len(asked.tokens),
        "n_truncated": int((units.cells.lengths > screen.max_length).sum()),
        "path": None if path is None else str(path),
        "sha256": "" if path is None else checksum,
        "seed": rng,
    }
    write_result(
        adata,
        _keys.PERTURBATION,
        {**model.params, **params},
        key_added=key_added,
        genes=table,
        **({"effects": effects} if path is None else {}),
    )


def _check(model, mode, k, on, readout, key, use, target, groupby, donor_key, n_controls) -> np.ndarray:
    """Refuse what makes no sense; return the doses, 0 where the mode has none."""
    require_model(model)
    for name, value, known in [("mode", mode, MODES), ("on", on, ON), ("readout", readout, READOUTS)]:
        if value not in known:
            raise ValueError(f"There is no {name} {value!r}; choose from {', '.join(known)}.")
    if n_controls < 0:
        raise ValueError(f"n_controls must be at least 0, got {n_controls}.")
    if readout == "timelapse":
        require_temporal(model)
        if any(value is not None for value in (use, target, groupby, donor_key)):
            raise ValueError(
                "use, target, groupby and donor_key are for single cells (readout='likelihood' or 'embedding'); prompts have "
                "their own: mt.pp.sample_prompts(adata, ...)."
            )
    elif key is not None or on != "query":
        raise ValueError(
            f"readout={readout!r} reads single cells: there is no context, and key and on have no meaning."
        )
    if mode not in ("activate", "shift"):
        if k is not None:
            raise ValueError(f"mode={mode!r} has no k; it is for 'activate' and 'shift'.")
        return np.zeros(1, dtype=np.int64)
    if k is None and mode == "shift":
        raise ValueError("mode='shift' needs k, the ranks to move a gene up by (down where it is negative).")
    doses = np.atleast_1d(_RANKS if k is None else k)
    if doses.dtype.kind not in "iu" or not len(doses) or len(np.unique(doses)) < len(doses):
        raise ValueError(f"k must be whole numbers, each once, got {k!r}.")
    if mode == "activate" and (doses < 0).any():
        raise ValueError(f"k must not be negative for 'activate', got {k!r}; use 'shift'.")
    return doses.astype(np.int64)


class _Units(NamedTuple):
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


def _prompts(adata: AnnData, model: MaxTokiModel, *, key, on, **_) -> _Units:
    stored = read_result(adata, key or _keys.PROMPTS, "mt.pp.sample_prompts(adata, ...)")
    params, table = stored["params"], stored["prompts"].reset_index(drop=True)
    if params["task"] != "timelapse" or params["queries_elsewhere"]:
        raise ValueError("A screen needs prompts that ask for the lapse to query cells of the same AnnData.")
    read_as = check_unit(params["time_key"], table["time"], model.time_head.unit)
    rows = read_prompts(table, adata, adata)
    members = np.column_stack([rows.context, rows.query])
    used = np.unique(members[members >= 0])
    members = np.where(members >= 0, np.searchsorted(used, members), -1)
    size = rows.context.shape[1]
    units = pd.DataFrame({"prompt": np.arange(len(table)), "cell": table["query"].astype(str)})
    units["group"] = table["group"].astype(str)
    if "donor" in table:
        units["donor"] = table["donor"].astype(str)
    units["lapse"] = table["lapse"].to_numpy(float)
    return _Units(
        units,
        get_sequences(adata[used], model, max_length=1 << 30),
        used,
        members,
        np.array([on != "query"] * size + [on != "context"]),
        rows._replace(context=members[:, :size], query=members[:, size]),
        np.zeros(0),
        list(params["groupby"]),
        str(params["donor_key"]),
        read_as,
    )


def _cells(adata: AnnData, model: MaxTokiModel, *, use, target, groupby, donor_key, rng, **_) -> _Units:
    group, names = get_groups(adata, groupby)
    chosen = np.flatnonzero(get_mask(adata, use, "use") & (group >= 0))
    if not len(chosen):
        raise ValueError("There is no cell to edit (use=...).")
    goal = (
        np.zeros(0, dtype=np.int64) if target is None else np.flatnonzero(get_mask(adata, target, "target"))
    )
    if target is not None:
        _require_targets(group[chosen], group[goal], names)
    used = np.union1d(chosen, goal)
    cells = get_sequences(adata[used], model, max_length=1 << 30)
    units = pd.DataFrame({"prompt": np.arange(len(chosen)), "cell": adata.obs_names[chosen].astype(str)})
    units["group"] = np.array(names, dtype=object)[group[chosen]]
    if donor_key is not None:
        units["donor"] = get_labels(adata, donor_key)[chosen]
    row = np.searchsorted(used, chosen)
    drawn = (
        goal
        if target is None
        else _draw_targets(units["cell"], row, group[chosen], np.searchsorted(used, goal), group[goal], rng)
    )
    columns = [groupby] if isinstance(groupby, str) else list(groupby or [])
    return _Units(units, cells, used, row[:, None], np.array([True]), None, drawn, columns, donor_key or "")


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


def _with_controls(adata: AnnData, model, asked: Asked, units: _Units, n: int, layer) -> Asked:
    """The edits that were asked for, and for each sets of as many genes like its own."""
    edited = units.members[:, units.edited]
    weight = np.bincount(edited[edited >= 0], minlength=adata.n_obs).astype(float)
    table = gene_covariates(adata, layer, weight=weight)
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


class _Screen:
    """All pairs of a unit and an edit, in parts of bounded size."""

    def __init__(self, model, units: _Units, asked: Asked, mode, doses, readout, *, whole: bool) -> None:
        self.model, self.units, self.asked, self.mode, self.doses = model, units, asked, mode, doses
        self.readout, self.whole = readout, whole
        self.max_length = model.cell_length
        self.targets = None
        if readout == "likelihood" and len(units.target):
            self.max_length = min(model.cell_length, model.max_length // 2)
        self.read_cells = cut_cells(units.cells, self.max_length)
        if readout == "likelihood" and len(units.target):
            self.targets = self.read_cells.take(units.target)
        if readout == "embedding":
            self.embedding = self._embeddings()
        self.unit, self.edit = self._pairs()
        length = np.where(units.members >= 0, self.read_cells.lengths[units.members], 0).sum(axis=1)
        edited = np.where(units.members >= 0, units.cells.lengths[units.members], 0)[:, units.edited].sum(
            axis=1
        )
        cost = np.maximum(length, edited)[self.unit] * len(doses)
        part = (np.cumsum(cost) - cost) // _TOKENS
        self.first = (
            np.flatnonzero(np.r_[True, np.diff(part) > 0]) if len(part) else np.zeros(1, dtype=np.int64)
        )

    @property
    def n_parts(self) -> int:
        """Parts, each a call of the engine."""
        return len(self.first)

    def _pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Unit and edit of each pair, unit by unit."""
        n_units, n_edits = len(self.units.table), len(self.asked.tokens)
        if not self.whole or self.mode in INSERTING:
            return np.repeat(np.arange(n_units), n_edits), np.tile(np.arange(n_edits), n_units)
        # Of all genes, those that the cells have.
        cells = self.units.cells if self.mode == "shift" else self.read_cells
        edited = self.units.members[:, self.units.edited]
        unit, column = np.nonzero(edited >= 0)
        of_unit = sp.csr_matrix(
            (np.ones(len(unit)), (unit, edited[unit, column])), shape=(n_units, len(cells))
        )
        has = sp.csr_matrix(
            (np.ones(len(cells.tokens)), cells.tokens, cells.indptr),
            shape=(len(cells), self.model.vocab.size),
        )
        token = np.array([tokens[0] for tokens in self.asked.tokens])
        pairs = sp.csr_matrix((of_unit @ has)[:, token])
        pairs.sort_indices()
        return np.repeat(np.arange(n_units), np.diff(pairs.indptr)), pairs.indices.astype(np.int64)

    def part(self, number: int) -> pd.DataFrame:
        """Effects of a part."""
        stop = self.first[number + 1] if number + 1 < self.n_parts else len(self.unit)
        rows = slice(self.first[number], stop)
        n_doses = len(self.doses)
        unit, edit = np.repeat(self.unit[rows], n_doses), np.repeat(self.edit[rows], n_doses)
        k = np.tile(self.doses, stop - self.first[number])

        # One edited cell for each pair and cell of the unit that is edited.
        columns = np.flatnonzero(self.units.edited)
        member = self.units.members[unit][:, columns]
        pair, column = np.nonzero(member >= 0)
        sizes = np.array([len(tokens) for tokens in self.asked.tokens])[edit[pair]]
        tokens = np.concatenate([np.zeros(0, np.int64), *(self.asked.tokens[i] for i in edit[pair])])
        of_cell = np.repeat(np.arange(len(pair)), sizes)
        edited = edit_cells(
            self.units.cells,
            member[pair, column],
            of_cell,
            tokens,
            self.mode,
            max_length=self.max_length,
            k=k[pair],
        )

        def over(values: np.ndarray, of: np.ndarray) -> np.ndarray:
            return np.bincount(of, values, minlength=len(unit))

        read, changed = over(edited.read, pair) > 0, over(edited.changed, pair) > 0
        table = pd.DataFrame(
            {"unit": unit, "edit": edit, "k": k, "present": over(edited.before > 0, pair[of_cell]) > 0}
        )
        for name, ranks in [("rank_before", edited.before), ("rank_after", edited.after)]:
            with np.errstate(invalid="ignore"):
                table[name] = over(ranks, pair[of_cell]) / over(ranks > 0, pair[of_cell])
        table["n_lost"], table["n_gained"] = over(edited.lost, pair), over(edited.gained, pair)

        run = np.flatnonzero(read & changed)
        mine, where = np.unique(unit, return_inverse=True)
        place = np.full(len(unit), -1)
        place[run] = np.arange(len(run))
        kept = np.flatnonzero(place[pair] >= 0)
        values, clipped = self._read(
            mine, unit[run], edited.sequences.take(kept), place[pair[kept]], columns[column[kept]]
        )
        intact = values[where]
        value = np.where(read, intact, np.nan)
        value[run] = values[len(mine) :]
        table["value"], table["value_intact"] = value, intact
        table["effect"] = value - intact
        table["took_effect"] = read & changed
        # A longer prompt may leave out more of its first cell.
        table.loc[run, "n_lost"] += np.maximum(clipped[len(mine) :] - clipped[where[run]], 0)
        return table[read] if self.whole else table

    def _read(self, mine, unit, cells: Sequences, place, column) -> tuple[np.ndarray, np.ndarray]:
        """Readings of units as they are, then of edited ones: cells (in pair `place`, at `column` of the unit) replaced."""
        units, n = self.units, len(mine)
        if self.readout == "timelapse":
            members = units.members[np.r_[mine, unit]]
            members[n + place, column] = len(units.cells) + np.arange(len(place))
            used = np.unique(members[members >= 0])
            members = np.where(members >= 0, np.searchsorted(used, members), -1)
            size = members.shape[1] - 1
            prompts = units.prompts[np.r_[mine, unit]]._replace(
                context=members[:, :size], query=members[:, size]
            )
            return read_prompted_lapses(
                self.model,
                prompts,
                Sequences.concatenate([self.read_cells, cells]).take(used),
            )
        sequences = Sequences.concatenate([self.read_cells.take(units.members[mine, 0]), cells])
        of = np.r_[mine, unit]
        none = np.zeros(len(of), dtype=np.int64)
        if self.readout == "likelihood":
            targets = None if self.targets is None else self.targets.take(of)
            return read_likelihoods(self.model, sequences, targets), none
        cosine = likeness(self.model, sequences, self.embedding[of])
        return (cosine if len(units.target) else 1 - cosine), none

    def _embeddings(self) -> np.ndarray:
        """What each unit's embedding is compared with: its own as it is, or the mean of the targets of its group."""
        units = self.units
        if not len(units.target):
            return embed_sequences(self.model, self.read_cells.take(units.members[:, 0])).cells
        group = pd.factorize(units.table["group"])[0]
        pairs = np.unique(np.column_stack([group, units.target]), axis=0)
        found = embed_sequences(self.model, self.read_cells.take(pairs[:, 1])).cells
        means = np.stack([found[pairs[:, 0] == one].mean(axis=0) for one in range(group.max() + 1)])
        return means[group]

    def table(self, found: pd.DataFrame) -> pd.DataFrame:
        """Effects with the names of units and genes."""
        found = found.reset_index(drop=True)
        unit, edit = found.pop("unit").to_numpy(), found.pop("edit").to_numpy()
        table = self.units.table.iloc[unit].reset_index(drop=True)
        for name in ("gene", "symbol"):
            table[name] = self.asked.table[name].to_numpy(dtype=object)[edit]
        table = pd.concat([table, found], axis=1)
        for name in ("n_lost", "n_gained", "k"):
            table[name] = table[name].astype(np.int64)
        first = [
            c
            for c in ("prompt", "cell", "group", "donor", "lapse", "gene", "symbol", "k", "effect")
            if c in table
        ]
        return as_categories(table[[*first, *(c for c in table if c not in first)]])


def _read_parts(screen: _Screen, todo: Sequence[int], n_done: int = 0) -> Iterator[tuple[int, pd.DataFrame]]:
    """Number and effects of parts, under one bar: that of the parts or, where there is one only, that of the reading."""
    is_one = screen.n_parts == 1
    total = n_done + len(todo)
    for number in progress(todo, total=total, initial=n_done, desc="Screening", unit="part", disable=is_one):
        with nullcontext() if is_one else hidden():
            part = screen.part(number)
        yield number, part


def _in_parts(
    screen: _Screen, path: Path, recipe: dict, unit: str, *, share_array: bool, overwrite: bool
) -> tuple[pd.DataFrame, str] | None:
    """Run what is left of a screen, and put it together: table and checksum; `None` where another process has to."""
    folder, n = parts_folder(path), screen.n_parts
    digest, shared = job_digest(n, recipe), process_index(share_array=share_array)[1] > 1
    if checksum := find_effects(path, recipe, overwrite=overwrite):
        drop_shards(folder, digest)
        return read_effects(path), checksum
    with open_shards(folder, n, recipe, share_array=share_array, overwrite=overwrite) as todo:
        n_done, _ = count_shards(folder)
        for number, part in _read_parts(screen, todo, n_done):
            part.index = part.index.astype(str)
            with atomic(shard_path(folder, number, digest)) as temporary:
                AnnData(obs=part).write_h5ad(temporary)
    with take_shards(folder, n, recipe, wait=not shared) as shards:
        if shards is not None and not find_effects(path, recipe, overwrite=overwrite):
            table = screen.table(pd.concat([ad.read_h5ad(shard).obs for shard in shards]))
            return table, write_effects(path, table, recipe, unit)
    if checksum := find_effects(path, recipe, overwrite=overwrite):  # another process was faster
        drop_shards(folder, digest)
        return read_effects(path), checksum
    if not shared:
        raise ValueError(
            f"Parts of the job in {folder} have gone meanwhile. Run it again: it makes what is missing."
        )
    warnings.warn(f"This process has done its share; the last one to finish writes {path}.", stacklevel=3)
    return None
