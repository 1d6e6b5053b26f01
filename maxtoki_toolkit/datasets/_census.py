"""A corpus from a TileDB-SOMA store: which cells, and their shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp

from .._files import atomic
from .._outputs import check_names, claim, is_made, new_output
from .._progress import progress
from .._shards import job_digest, open_shards, shard_path
from ..pp._columns import unit_in_name
from ..pp._corpus import (
    NO_DONOR,
    UNKNOWN,
    balance_donors,
    decade_of,
    largest_share,
    lots,
    lowest_of_each,
    matches,
)
from ..pp._soma import (
    JOINID,
    as_labels,
    is_number,
    is_remote,
    read_cells_of,
    read_genes,
    read_obs,
    reading,
    require_columns,
    require_matrix,
)
from ..pp._store import block_encoder, open_store, write_encoded
from ..pp.parse_age import read_terms
from ._corpus_recipe import CorpusRecipe

if TYPE_CHECKING:
    from anndata import AnnData
    from tiledbsoma import Experiment

    from ..models.vocabulary import Vocabulary

BY = "mt.datasets.census"
FILTERS, COMPOSITION, CELLS, SHARDS = "filters.csv", "composition.csv", "cells.npy", "shards"
_IN_YEARS = {"years": 1.0, "months": 1 / 12, "weeks": 7 / 365.25, "days": 1 / 365.25, "hours": 1 / 8766}
# A rank and its column on disk, and the row of a cell in the table.
_BYTES_OF_GENE, _BYTES_OF_CELL = 6, 150
# Values and cells that are read and ranked at a time; the result does not depend on it.
_VALUES, _CELLS = 5_000_000, (256, 8192)
_SAMPLE = 512  # cells that are read to see how many genes they have
_N_GENES = "nnz"
# What tells cells apart in every release of the Census (with the data set), and in what tiledbsoma.io writes.
_CELL_NAMES = ("observation_joinid", "obs_id")


class Selection(NamedTuple):
    """The cells of a corpus."""

    joinids: np.ndarray
    """Their numbers in the store, ascending; int64."""
    filters: pd.DataFrame
    """What each filter left."""
    composition: pd.DataFrame
    """One row a donor and tissue."""


def describe_job(
    experiment: Experiment, organism: str, value_filter: str | None, recipe: CorpusRecipe
) -> dict:
    """What a selection is made from."""
    columns = recipe.columns
    require_matrix(experiment, columns.measurement, columns.layer)
    counts = experiment.ms[columns.measurement].X[columns.layer]
    with reading(experiment.uri):
        store = {"address": experiment.uri, "n_cells": experiment.obs.count, "n_values": counts.nnz}
    if not is_remote(experiment.uri):
        found = [
            part.stat() for part in Path(experiment.uri.removeprefix("file://")).rglob("*") if part.is_file()
        ]
        store |= {
            "size": sum(part.st_size for part in found),
            "time_ns": max(part.st_mtime_ns for part in found),
        }
    settings = {**recipe.flat(), "keep": None, "drop": None, "rules": recipe.filters.rules}
    return {"store": store, "organism": organism, "value_filter": value_filter, **settings}


def prepare(
    experiment: Experiment,
    folder: Path,
    vocab: Vocabulary,
    *,
    organism: str,
    value_filter: str | None,
    recipe: CorpusRecipe,
    cells_per_shard: int,
    overwrite: bool,
) -> tuple[Selection, dict]:
    """The cells of a corpus, as they are in its folder or chosen and written there; and what they are made from."""
    job = describe_job(experiment, organism, value_filter, recipe)
    job |= {"cells_per_shard": cells_per_shard, "genes_sha256": vocab.genes_sha256}
    selection = kept_selection(folder, job, overwrite=overwrite)
    if selection is None:
        selection = select(experiment, value_filter, recipe)
        keep_selection(folder, selection, job, overwrite=overwrite)
    return selection, job


def select(experiment: Experiment, value_filter: str | None, recipe: CorpusRecipe) -> Selection:
    """Read the table of the cells, filter and balance it."""
    cells, donors, filters = _filter(experiment, value_filter, recipe)
    balance = recipe.balance
    kept = np.ones(len(cells.joinids), dtype=bool)

    def note(step: str, kept: np.ndarray) -> None:
        filters.append((step, kept.sum(), donors["donor"].iloc[np.unique(cells.donor[kept])].nunique()))

    if balance.balance_sex or balance.max_donors:
        there = np.bincount(cells.donor, minlength=len(donors)) > 0
        drawn = np.zeros(len(donors), dtype=bool)
        drawn[there] = balance_donors(
            donors[there],
            balance_sex=balance.balance_sex,
            max_donors=balance.max_donors,
            lot=lots(donors["key"][there], balance.seed),
        )
        kept &= drawn[cells.donor]
        asked = ["as many women as men"] if balance.balance_sex else []
        asked += [f"at most {balance.max_donors} of a sex"] if balance.max_donors else []
        note(f"donors of each decade: {', '.join(asked)}", kept)
    if balance.cells_per_donor:
        rows = np.flatnonzero(kept)
        kept[rows] = lowest_of_each(cells.donor[rows], cells.lot[rows], balance.cells_per_donor)
        note(f"at most {balance.cells_per_donor:,} cells of a donor", kept)
    if balance.max_tissue_share < 1:
        n_cells = np.bincount(cells.tissue[kept], minlength=len(cells.tissues))
        most = largest_share(n_cells[n_cells > 0], balance.max_tissue_share)
        if kept.any() and most == 0:
            n_tissues = (n_cells > 0).sum()
            raise ValueError(
                f"No tissue can have at most {balance.max_tissue_share:.0%} of the cells where there are {n_tissues} of them: give "
                "a larger max_tissue_share, or 1 for any."
            )
        for tissue in np.flatnonzero(n_cells > most):
            rows = np.flatnonzero(kept & (cells.tissue == tissue))
            kept[rows] = lowest_of_each(np.zeros(len(rows)), cells.lot[rows], most)
        note(f"at most {balance.max_tissue_share:.0%} of any tissue", kept)
    table = pd.DataFrame(filters, columns=["filter", "n_cells", "n_donors"]).astype({"n_donors": "Int64"})
    if not kept.any():
        raise ValueError(_say_empty(table, cells.seen))
    rows = np.flatnonzero(kept)
    order = np.argsort(cells.joinids[rows], kind="stable")
    return Selection(cells.joinids[rows][order], table, _compose(cells, donors, rows))


class _Cells(NamedTuple):
    """Cells that passed the filters."""

    joinids: np.ndarray
    donor: np.ndarray
    tissue: np.ndarray
    lot: np.ndarray
    tissues: list[str]
    seen: dict[str, list[str]]
    """Values of each column that was asked for."""


def _filter(
    experiment: Experiment, value_filter: str | None, recipe: CorpusRecipe
) -> tuple[_Cells, pd.DataFrame, list]:
    """Cells that pass, their donors, and how many cells and donors each filter left."""
    columns, filters, balance = recipe.columns, recipe.filters, recipe.balance
    there = {field.name for field in experiment.obs.schema}
    needed = {columns.donor_key: "donor_key"}
    needed |= {column: f"{'keep' if kept else 'drop'}: {column}" for column, _, kept in filters.rules}
    if filters.min_genes:
        needed[_N_GENES] = "min_genes"
    if filters.known_age or balance.balance_sex or balance.max_donors:
        needed[columns.time_key] = "time_key"
    if balance.balance_sex or balance.max_donors:
        needed[columns.sex_key] = "sex_key"
    if balance.max_tissue_share < 1:
        needed[columns.tissue_key] = "tissue_key, for max_tissue_share; 1 does without"
    require_columns(experiment, needed)
    optional = [columns.dataset_key, columns.sex_key, columns.time_key, columns.tissue_key, *_CELL_NAMES]
    read = list(dict.fromkeys([*needed, *(name for name in optional if name in there)]))
    cell_name = next((name for name in _CELL_NAMES if name in there), None)
    asked = {column for column, _, _ in filters.rules}
    labelled = [name for name in read if name in asked or name not in (_N_GENES, *_CELL_NAMES)]

    steps = ["in the store" if value_filter is None else f"value_filter: {value_filter}"]
    steps += [
        f"{'keep' if kept else 'drop'} {column}: {_listed(values)}" for column, values, kept in filters.rules
    ]
    steps += [f"at least {filters.min_genes} genes"] if filters.min_genes else []
    steps += ["donor known"] + (["age known"] if filters.known_age else [])
    n_cells, donors_left = np.zeros(len(steps), dtype=int), [set() for _ in steps]
    donors = _Donors(experiment, columns.time_key)
    tissues: dict[str, int] = {}
    seen: dict[str, dict] = {column: {} for column in asked}
    parts: list[tuple[np.ndarray, ...]] = []
    with progress(total=experiment.obs.count, desc="Looking for cells", unit="cell") as bar:
        for block in read_obs(experiment, read, value_filter):
            labels = {name: as_labels(block[name]) for name in labelled}
            unknown = np.full(len(block), -1), [UNKNOWN]
            donor = donors.number(
                *(
                    labels.get(key, unknown)
                    for key in (columns.dataset_key, columns.donor_key, columns.sex_key, columns.time_key)
                )
            )
            masks = []
            for column, values, kept in filters.rules:
                codes, names = labels[column]
                seen[column] |= dict.fromkeys(names)
                found = np.append(matches(names, values), False)[codes]
                masks.append(found if kept else ~found)
            if filters.min_genes:
                masks.append(block[_N_GENES].to_numpy() >= filters.min_genes)
            masks.append(donors.known[donor])
            if filters.known_age:
                masks.append(np.isfinite(donors.age[donor]))
            passed = np.ones(len(block), dtype=bool)
            for step, mask in enumerate([passed, *masks]):
                passed = passed & mask
                n_cells[step] += passed.sum()
                donors_left[step] |= set(np.flatnonzero(np.bincount(donor[passed])))
            rows = np.flatnonzero(passed)
            codes, names = labels.get(columns.tissue_key, unknown)
            place = np.array([tissues.setdefault(name, len(tissues)) for name in [*names, UNKNOWN]])
            joinids = block[JOINID].to_numpy()[rows]
            named = joinids.astype(str) if cell_name is None else block[cell_name].take(rows).to_pandas()
            lot = lots(named, balance.seed) ^ donors.lots(balance.seed)[donor[rows]]
            parts.append((joinids, donor[rows].astype(np.int32), place[codes[rows]].astype(np.int32), lot))
            bar.update(len(block))
    joined = (
        [np.concatenate(arrays) for arrays in zip(*parts, strict=True)] if parts else [np.zeros(0, int)] * 4
    )
    table = donors.table()
    left = [table["donor"].iloc[sorted(numbers)].nunique() for numbers in donors_left]
    cells = _Cells(*joined, list(tissues), {column: list(values) for column, values in seen.items()})
    found = list(zip(steps, n_cells, left, strict=True))
    return (
        cells,
        table,
        found if value_filter is None else [("in the store", experiment.obs.count, pd.NA), *found],
    )


class _Donors:
    """Donors, numbered as they are met; one who is of two ages is two."""

    def __init__(self, experiment: Experiment, time_key: str) -> None:
        fields = {field.name: field.type for field in experiment.obs.schema}
        self._unit = unit_of(time_key, is_text=time_key not in fields or not is_number(fields[time_key]))
        self._numbers: dict[tuple[str, str, str, str], int] = {}
        self.known, self.age, self._lots = np.zeros(0, bool), np.zeros(0), np.zeros(0, np.uint64)

    def number(self, *columns: tuple[np.ndarray, list[str]]) -> np.ndarray:
        """Number of the donor of each cell, from data set, donor, sex and age."""
        key = np.zeros(len(columns[0][0]), dtype=np.int64)
        for codes, names in columns:
            key = key * (len(names) + 1) + codes + 1
        found, first = np.unique(key, return_index=True)
        names = [[*names, UNKNOWN] for _, names in columns]
        people = [
            tuple(part[codes[row]] for part, (codes, _) in zip(names, columns, strict=True)) for row in first
        ]
        new = [person for person in people if person not in self._numbers]
        for person in new:
            self._numbers[person] = len(self._numbers)
        if new:
            self.known = np.append(self.known, [person[1].lower() not in NO_DONOR for person in new])
            self.age = np.append(self.age, years_of([person[3] for person in new], self._unit))
            self._lots = np.zeros(0, np.uint64)
        numbers = np.array([self._numbers[person] for person in people], dtype=np.int64)
        return numbers[np.searchsorted(found, key)]

    def lots(self, seed: int) -> np.ndarray:
        """What was drawn for each donor."""
        if len(self._lots) < len(self._numbers):
            self._lots = lots(["/".join(person) for person in self._numbers], seed)
        return self._lots

    def table(self) -> pd.DataFrame:
        """One row a donor, in the order of their numbers."""
        people = pd.DataFrame(list(self._numbers), columns=["dataset", "donor", "sex", "time"])
        return pd.DataFrame(
            {
                "key": ["/".join(person) for person in self._numbers],
                "donor": unique_donors(people["dataset"], people["donor"]),
                "sex": people["sex"],
                "age_years": self.age,
                "decade": [decade_of(age) for age in self.age],
            }
        )


def unique_donors(dataset: pd.Series, donor: pd.Series) -> pd.Series:
    """Names of donors that no two data sets share."""
    dataset, donor = dataset.astype(str), donor.astype(str)
    return donor.where(dataset == UNKNOWN, dataset + "/" + donor)


def unit_of(time_key: str, *, is_text: bool) -> str | None:
    """Unit of a column of numbers, from its name; `None` for text, which has its own."""
    if is_text:
        return None
    if (unit := unit_in_name(time_key)) is None:
        raise ValueError(
            f"Whether the numbers of {time_key!r} are years or months is not known: name the column with its unit, e.g. "
            "'age_years', or give another time_key."
        )
    return unit


def years_of(labels: Sequence[str], unit: str | None) -> np.ndarray:
    """Ages in years from text, or from numbers in a unit; NaN where they are not known."""
    labels = pd.Series(labels, dtype=object)
    if unit is not None:
        return pd.to_numeric(labels, errors="coerce").to_numpy(dtype=float) * _IN_YEARS[unit]
    return (
        read_terms(labels, "years", species="human")
        .set_index("term")["age"]
        .reindex(labels)
        .to_numpy(dtype=float)
    )


def _compose(cells: _Cells, donors: pd.DataFrame, rows: np.ndarray) -> pd.DataFrame:
    """Cells of each donor and tissue."""
    pairs = pd.DataFrame({"donor": cells.donor[rows], "tissue": cells.tissue[rows]})
    counts = pairs.groupby(["donor", "tissue"]).size().reset_index(name="n_cells")
    table = donors.iloc[counts["donor"]][["donor", "sex", "age_years"]].reset_index(drop=True)
    table["tissue"] = [cells.tissues[i] for i in counts["tissue"]]
    table["n_cells"] = counts["n_cells"]
    by = ["donor", "age_years", "tissue"]
    return table.sort_values(by, ignore_index=True)


def _listed(values: object) -> str:
    return ", ".join(map(str, values)) if isinstance(values, (list, tuple)) else str(values)


def _say_empty(table: pd.DataFrame, seen: dict[str, list[str]]) -> str:
    """Which filter left no cell, and what its column holds."""
    at = int(np.flatnonzero(table["n_cells"] == 0)[0])
    step, before = table["filter"][at], table["n_cells"][at - 1] if at else 0
    column = step.split(":")[0].partition(" ")[2]
    values = sorted(seen.get(column, []))
    held = (
        f" The column holds {', '.join(map(repr, values[:8]))}{f' and {len(values) - 8} more' if len(values) > 8 else ''}."
        if values
        else ""
    )
    return f"No cells are left: {step!r} keeps none of {before:,}.{held} Change that filter."


def estimate_bytes(experiment: Experiment, joinids: np.ndarray, recipe: CorpusRecipe) -> float:
    """About how much the shards will take on disk."""
    return len(joinids) * (_BYTES_OF_GENE * genes_per_cell(experiment, joinids, recipe) + _BYTES_OF_CELL)


def genes_per_cell(experiment: Experiment, joinids: np.ndarray, recipe: CorpusRecipe) -> float:
    """Mean number of genes of some of the cells, evenly spaced."""
    sample = joinids[np.unique(np.linspace(0, len(joinids) - 1, _SAMPLE).astype(int))]
    columns = recipe.columns
    if _N_GENES in (field.name for field in experiment.obs.schema):
        with reading(experiment.uri):
            table = experiment.obs.read(coords=(sample,), column_names=[_N_GENES]).concat()
        return float(table[_N_GENES].to_numpy().mean())
    _, blocks = read_cells_of(experiment, sample, columns.measurement, columns.layer, _SAMPLE)
    return sum(block.nnz for block in blocks) / len(sample)


def kept_selection(folder: Path, job: dict, *, overwrite: bool) -> Selection | None:
    """The selection that is in a folder, made from `job`; raise if it holds another, unless that is to be replaced."""
    names = [FILTERS, COMPOSITION, CELLS]
    check_names(folder, names, by=BY, job=job, overwrite=overwrite)
    if not is_made(folder, by=BY, job=job) or not all((folder / name).is_file() for name in names):
        return None
    return Selection(
        np.load(folder / CELLS), read_filters(folder / FILTERS), pd.read_csv(folder / COMPOSITION)
    )


def read_filters(path: Path) -> pd.DataFrame:
    """The table of filters; how many donors there are is not known of a store that is not read in full."""
    return pd.read_csv(path, dtype={"n_donors": "Int64"})


def keep_selection(folder: Path, selection: Selection, job: dict, *, overwrite: bool) -> None:
    """Write a selection, the numbers of its cells last."""
    claim(folder, [FILTERS, COMPOSITION, CELLS], by=BY, job=job, overwrite=overwrite)
    for name, table in ((FILTERS, selection.filters), (COMPOSITION, selection.composition)):
        with atomic(folder / name) as temporary:
            table.to_csv(temporary, index=False)
    with atomic(folder / CELLS) as temporary:
        np.save(temporary, selection.joinids)


def write_shards(
    experiment: Experiment,
    selection: Selection,
    folder: Path,
    vocab: Vocabulary,
    job: dict,
    *,
    recipe: CorpusRecipe,
    cells_per_shard: int,
    share_array: bool,
    overwrite: bool,
) -> pd.DataFrame:
    """Rank-encode the cells of a selection, a shard at a time; those that are there stay."""
    shards = np.split(selection.joinids, np.arange(cells_per_shard, len(selection.joinids), cells_per_shard))
    digest = job_digest(len(shards), job)
    paths = [shard_path(folder / SHARDS, number, digest) for number in range(len(shards))]
    var = read_genes(experiment, recipe.columns.measurement)
    chunk_size = int(
        np.clip(_VALUES // max(genes_per_cell(experiment, selection.joinids, recipe), 1), *_CELLS)
    )
    encode = block_encoder(var, vocab, drop_empty=True, chunk_size=chunk_size)
    with (
        open_shards(
            folder / SHARDS, len(shards), job, share_array=share_array, overwrite=overwrite
        ) as numbers,
        progress(total=sum(len(shards[i]) for i in numbers), desc="Ranking genes", unit="cell") as bar,
    ):
        for number in numbers:
            joinids = shards[number]
            obs, blocks = read_cells_of(
                experiment, joinids, recipe.columns.measurement, recipe.columns.layer, chunk_size
            )
            index = sp.get_index_dtype(maxval=len(joinids) * len(var))
            encoded = _encoded(encode, _with_ages(obs, recipe), blocks)
            with new_output(paths[number], by=BY, job={"shard": number, "digest": digest}) as temporary:
                write_encoded(temporary, encoded, index, bar)
    there = [path for path in paths if path.is_file()]
    return pd.DataFrame({"path": map(str, there), "n_cells": [_count(path) for path in there]})


def _encoded(encode, obs: pd.DataFrame, blocks: Iterator[sp.csr_matrix]) -> Iterator[AnnData]:
    start = 0
    for block in blocks:
        cells = encode(block, obs.iloc[start : start + block.shape[0]])
        start += block.shape[0]
        if cells.n_obs:
            yield cells


def _with_ages(obs: pd.DataFrame, recipe: CorpusRecipe) -> pd.DataFrame:
    """The table of a shard: donors named once and for all, ages in months, text as categories."""
    columns = recipe.columns
    names = obs["obs_id"] if "obs_id" in obs and obs["obs_id"].is_unique else obs[JOINID]
    obs = obs.set_index(pd.Index(names.astype(str), name=None))
    if columns.dataset_key in obs:
        obs[columns.donor_key] = unique_donors(obs[columns.dataset_key], obs[columns.donor_key])
    if columns.time_key in obs and "age_months" not in obs:
        column = obs[columns.time_key]
        unit = unit_of(columns.time_key, is_text=not pd.api.types.is_numeric_dtype(column))
        number, labels = pd.factorize(column.astype(str))
        obs["age_months"] = (12 * years_of(labels, unit)[number]).round(2)
    for name, column in obs.items():
        if isinstance(column.dtype, pd.CategoricalDtype):
            obs[name] = column.cat.remove_unused_categories()
        elif not pd.api.types.is_numeric_dtype(column) and column.nunique() < len(column) / 2:
            obs[name] = column.astype("category")
    return obs


def _count(path: Path) -> int:
    with open_store(path) as store:
        return len(store["obs"][store["obs"].attrs["_index"]])
