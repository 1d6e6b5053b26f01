"""All edits of all prompts or cells, read in parts that fit into memory and can be gone on with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from .._progress import hidden, progress
from .._shards import parts_folder, run_shards
from .._warn import warn
from ..models.costs import Work, reading
from ..models.edits import INSERTING, cut_cells, edit_cells
from ..models.embedding import embed_sequences
from ..models.likelihood import work_of_log_likelihoods
from ..models.prompts import write_prompts
from ..models.sequences import Sequences
from ..models.timelapse import read_lapses, work_of_lapses
from ..results.effects_file import as_categories, find_effects, read_effects, write_effects
from ._asked_genes import Asked
from ._edit_readouts import likeness, read_likelihoods, with_targets
from ._edited_units import Units
from .recipes import ScreenFile

_TOKENS = 1 << 21  # read at a time: a shard
_COUNTED = 6  # parts that a plan goes by
_DESC, _UNIT = "Screening", "part"


class _Part(NamedTuple):
    """Pairs of a part: what edits do, and what is read, the units as they are and then those that are edited."""

    table: pd.DataFrame
    """One row a pair."""
    read: np.ndarray
    """bool: the model reads a gene of the edit."""
    took_effect: np.ndarray
    """bool: and what the model reads is changed; these are read again."""
    intact: np.ndarray
    """Which of the sequences is the unit of each pair as it is."""
    unit: np.ndarray
    """Of each sequence."""
    sequences: Sequences
    """Prompts, or single cells."""


class Screen:
    """All pairs of a unit and an edit, in parts of bounded size."""

    def __init__(self, model, units: Units, asked: Asked, mode, doses, readout, *, whole: bool) -> None:
        self.model, self.units, self.asked, self.mode, self.doses = model, units, asked, mode, doses
        self.readout, self.whole = readout, whole
        self.max_length = model.cell_length
        self.targets = None
        if readout == "likelihood" and len(units.target):
            self.max_length = min(model.cell_length, model.max_length // 2)
        self.read_cells = cut_cells(units.cells, self.max_length)
        if readout == "likelihood" and len(units.target):
            self.targets = self.read_cells.take(units.target)
        self.unit, self.edit = self._pairs()
        length = np.where(units.members >= 0, self.read_cells.lengths[units.members], 0).sum(axis=1)
        # An edit takes the whole cell, beyond what is read of it.
        edited = np.where(units.members >= 0, units.cells.lengths[units.members], 0)[:, units.edited].sum(
            axis=1
        )
        self.cost = np.maximum(length, edited)[self.unit] * len(doses)
        # A part is as many pairs as there are in `_TOKENS` tokens.
        part = (np.cumsum(self.cost) - self.cost) // _TOKENS
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

    def _rows(self, number: int) -> slice:
        """Pairs of a part."""
        stop = self.first[number + 1] if number + 1 < self.n_parts else len(self.unit)
        return slice(self.first[number], stop)

    def _make(self, number: int) -> _Part:
        """Edit the cells of a part."""
        rows, n_doses = self._rows(number), len(self.doses)
        unit, edit = np.repeat(self.unit[rows], n_doses), np.repeat(self.edit[rows], n_doses)
        k = np.tile(self.doses, rows.stop - rows.start)

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

        # Only what is read and changed is read again; the rest is exactly 0, or not known.
        took_effect = read & changed
        run = np.flatnonzero(took_effect)
        mine, where = np.unique(unit, return_inverse=True)
        place = np.full(len(unit), -1)
        place[run] = np.arange(len(run))
        kept = np.flatnonzero(place[pair] >= 0)
        sequences, n_clipped = self._write(
            mine, unit[run], edited.sequences.take(kept), place[pair[kept]], columns[column[kept]]
        )
        # A longer prompt may leave out more of its first cell.
        table.loc[run, "n_lost"] += np.maximum(n_clipped[len(mine) :] - n_clipped[where[run]], 0)
        return _Part(table, read, took_effect, where, np.r_[mine, unit[run]], sequences)

    def part(self, number: int) -> pd.DataFrame:
        """Effects of a part."""
        part = self._make(number)
        values = self._read(part.sequences, part.unit)
        table, intact = part.table, values[part.intact]
        value = np.where(part.read, intact, np.nan)
        value[part.took_effect] = values[len(values) - part.took_effect.sum() :]
        table["value"], table["value_intact"] = value, intact
        table["effect"], table["took_effect"] = value - intact, part.took_effect
        return table[part.read] if self.whole else table

    def work(self) -> Work:
        """What reading all parts takes, from some of them."""
        numbers = np.unique(np.linspace(0, self.n_parts - 1, _COUNTED).astype(int))
        if not len(self.unit):
            return Work(0, 0)
        counted = sum(self.cost[self._rows(number)].sum() for number in numbers)
        found = sum((self._work(self._make(number)) for number in numbers), Work(0, 0))
        found *= self.cost.sum() / counted
        return found + reading(self._compared.lengths) if self.readout == "embedding" else found

    def _work(self, part: _Part) -> Work:
        if self.readout == "timelapse":
            return work_of_lapses(self.model, part.sequences)
        if self.readout == "likelihood":
            return work_of_log_likelihoods(*with_targets(part.sequences, self._targets(part.unit)))
        return reading(part.sequences.lengths)

    def _targets(self, unit: np.ndarray) -> Sequences | None:
        return None if self.targets is None else self.targets.take(unit)

    def _write(self, mine, unit, cells: Sequences, place, column) -> tuple[Sequences, np.ndarray]:
        """Units as they are, then edited ones: cells (in pair `place`, at `column` of the unit) replaced."""
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
            written = write_prompts(
                prompts,
                Sequences.concatenate([self.read_cells, cells]).take(used),
                self.model.vocab,
                max_length=self.model.max_length,
                answer=False,
            )
            return written.sequences, written.n_clipped
        sequences = Sequences.concatenate([self.read_cells.take(units.members[mine, 0]), cells])
        return sequences, np.zeros(len(sequences), dtype=np.int64)

    def _read(self, sequences: Sequences, unit: np.ndarray) -> np.ndarray:
        """Reading of each sequence."""
        if self.readout == "timelapse":
            return read_lapses(self.model, sequences)[0].astype(float)
        if self.readout == "likelihood":
            return read_likelihoods(self.model, sequences, self._targets(unit))
        cosine = likeness(self.model, sequences, self.embedding[unit])
        return cosine if len(self.units.target) else 1 - cosine

    @cached_property
    def embedding(self) -> np.ndarray:
        """What each unit's embedding is compared with: its own as it is, or the mean of the targets of its group."""
        found = embed_sequences(self.model, self._compared).cells
        if not len(self.units.target):
            return found
        group, pairs = self._group_targets
        means = np.stack([found[pairs[:, 0] == one].mean(axis=0) for one in range(group.max() + 1)])
        return means[group]

    @property
    def _compared(self) -> Sequences:
        """Cells that others are compared with."""
        units = self.units
        rows = self._group_targets[1][:, 1] if len(units.target) else units.members[:, 0]
        return self.read_cells.take(rows)

    @property
    def _group_targets(self) -> tuple[np.ndarray, np.ndarray]:
        """Group of each unit; groups with each of their targets."""
        group = pd.factorize(self.units.table["group"])[0]
        return group, np.unique(np.column_stack([group, self.units.target]), axis=0)

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


def read_parts(screen: Screen) -> Iterator[pd.DataFrame]:
    """Effects of all parts, under one bar: that of the parts or, where there is one only, that of the reading."""
    is_one = screen.n_parts == 1
    for number in progress(range(screen.n_parts), desc=_DESC, unit=_UNIT, disable=is_one):
        with nullcontext() if is_one else hidden():
            part = screen.part(number)
        yield part


def run_in_parts(
    screen: Screen, file: ScreenFile, recipe: dict, unit: str
) -> tuple[pd.DataFrame, str] | None:
    """Run what is left of a screen, and put it together: table and checksum; `None` where another process has to."""
    path = Path(file.path)

    def compute(todo: list[int]) -> Iterator[AnnData]:
        for number in todo:
            part = screen.part(number)
            yield AnnData(obs=part.set_axis(part.index.astype(str)))

    def find() -> tuple[pd.DataFrame, str] | None:
        checksum = find_effects(path, recipe, overwrite=file.overwrite)
        return None if checksum is None else (read_effects(path), checksum)

    def join(shards: list[Path]) -> tuple[pd.DataFrame, str]:
        if (found := find()) is not None:  # another process was faster
            return found
        table = screen.table(pd.concat([ad.read_h5ad(shard).obs for shard in shards]))
        return table, write_effects(path, table, recipe, unit)

    found = run_shards(
        parts_folder(path),
        [1] * screen.n_parts,
        recipe,
        compute=compute,
        join=join,
        find=find,
        made=find,
        desc=_DESC,
        unit=_UNIT,
        share_array=file.share_array,
        overwrite=file.overwrite,
    )
    if found is None:
        warn(f"This process has done its share; the last one to finish writes {path}.")
    return found
