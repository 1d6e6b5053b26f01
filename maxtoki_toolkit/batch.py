"""From files to files, a block at a time: what `maxtoki prompts`, `predict` and `generate` run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from . import _keys
from ._arrow import about, columns_of, is_dataset, lists, open_dataset, require_pyarrow, scalars_of
from ._outputs import check_output, is_made, new_output
from ._progress import hidden, progress
from ._shards import run_shards
from .models.generation import prompt_keys
from .models.model import MaxTokiModel, require_whole
from .models.prompts import write_prompts
from .models.sampling import chain_keys
from .models.sequences import Sequences, cell_sequences
from .models.timelapse import read_lapses, require_temporal
from .models.vocabulary import Vocabulary
from .pp import sample_prompts
from .pp._datasets import cells_of, open_cells, sequences_of
from .pp._datasets import write_rows as write_cells
from .pp._identity import file_identity, input_identity
from .pp._paragraphs import write_rows
from .pp._store import encoded_blocks, open_store, ranked_blocks, ranked_lengths, read_frames, write_encoded
from .pp.sample_prompts import read_prompts
from .pp.write_dataset import BY as WRITE_DATASET
from .pp.write_dataset import with_time
from .pp.write_paragraphs import plain
from .results.store import read_result
from .tl._cells import get_sequences
from .tl._time_unit import check_prompts
from .tl.generate import written_cells

PREDICT, GENERATE, PROMPTS = "maxtoki predict", "maxtoki generate", "maxtoki prompts"
FORMATS = ("h5ad", "parquet")
_READ = 2048  # cells that are encoded at a time
_GENERATED = 256  # prompts whose cells are written in one part
_LOOKED_AT = 8192  # prompts whose task is looked at together
_NONE_ASKS = (
    "No prompt of the input asks for this. maxtoki predict reads those that ask for lapses, maxtoki generate those that ask "
    "for cells."
)
_ASK = "Draw prompts first: maxtoki prompts {path} -o paragraphs, and give that folder."


class Prompted(NamedTuple):
    """Prompts of a block, as tokens."""

    sequences: Sequences
    """Each up to `<eoq>`."""
    table: pd.DataFrame
    """What is known of each, with its number as index."""


class Source(NamedTuple):
    """Prompts or cells that are read a block at a time."""

    n: int
    """How many there are."""
    identity: dict
    """What tells them from others."""
    read: Callable[[list[tuple[int, int]]], Iterator[Any]]
    """Those from one number to another, of several stretches in turn."""


def predict_file(
    path: str | Path,
    output: str | Path,
    model: MaxTokiModel,
    *,
    to: str = "h5ad",
    limit: int | None = None,
    reading: Mapping[str, Any] | None = None,
    chunk_size: int = 1024,
    share_array: bool = False,
    overwrite: bool = False,
) -> Path | None:
    """Read the lapses that prompts ask for.

    Parameters
    ----------
    path
        A folder of `datasets` with paragraphs, with or without answers; or cells (raw counts or encoded) with
        prompts in `.uns["prompts"]`.
    output
        Folder to write: `lapses.h5ad` (its `.obs`) or `lapses.parquet`, a row a prompt, with `predicted`,
        `p_non_numeric` and `unit`. It appears when everything is done.
    model
        A model with temporal training.
    to
        "h5ad" or "parquet".
    limit
        Prompts to read, the first ones; all by default.
    reading
        `layer`, `gene_key` and `force`, as in `mt.pp.rank_value_encode`, for raw counts.
    chunk_size
        Prompts a block.
    share_array
        Share the blocks out over the tasks of the SLURM array that this process is of; the processes of
        `accelerate launch` share them in any case.
    overwrite
        Replace what this function has written to `output` from something else.

    Returns
    -------
    The file; `None` where another process has to finish.

    Raises
    ------
    ValueError
        If the model cannot tell time, rows are no prompts of its vocabulary or too long for it, none asks for
        a lapse, or something else is at `output`.
    """
    require_temporal(model)
    require_whole(model)
    source = _prompts(Path(path), model, "timelapse", reading or {})
    unit = model.time_head.unit

    def compute(stretches: list[tuple[int, int]]) -> Iterator[AnnData]:
        for block in source.read(stretches):
            table = block.table.reset_index(names="prompt")
            lapse, other = (
                read_lapses(model, block.sequences) if len(table) else (np.zeros(0, np.float32),) * 2
            )
            table["predicted"], table["p_non_numeric"], table["unit"] = lapse, other, unit
            yield _as_obs(table)

    job = {"input": source.identity, **model.params, "limit": limit, "to": to}
    return in_parts(
        source.n if limit is None else min(limit, source.n),
        compute,
        lambda parts, folder, bar: _write_table(parts, folder / f"lapses.{to}", bar),
        output,
        by=PREDICT,
        job=job,
        inputs=[Path(path)],
        chunk_size=chunk_size,
        share_array=share_array,
        overwrite=overwrite,
    )


def generate_file(
    path: str | Path,
    output: str | Path,
    model: MaxTokiModel,
    *,
    n_given: int | None = None,
    sampling: Mapping[str, Any] | None = None,
    rng: int = 0,
    to: str = "h5ad",
    limit: int | None = None,
    reading: Mapping[str, Any] | None = None,
    share_array: bool = False,
    overwrite: bool = False,
) -> Path | None:
    """Write the cells that prompts ask for, or go on with cells from their first genes.

    Parameters
    ----------
    path
        As in `predict_file`; with `n_given` cells: raw counts, an encoded file, or a folder of `datasets`.
    output
        Folder to write: `cells.h5ad`, as `mt.tl.generate` returns them, or `cells.parquet`, with their tokens
        as `input_ids`.
    model
        Model; with temporal training unless `n_given` is set.
    n_given
        Genes of each cell to go on from.
    sampling
        `n_samples`, `max_genes`, `temperature`, `top_k` and `top_p` of `mt.tl.generate`, and `max_tokens`,
        whose keys and values are held at once.
    rng
        Seed; a cell is the same in whatever block or process it is written.
    to, limit, reading, share_array, overwrite
        As in `predict_file`.

    Returns
    -------
    The file; `None` where another process has to finish.

    Raises
    ------
    ValueError
        As `predict_file`, for cells.
    """
    how = {
        "n_samples": 1,
        "max_genes": None,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        **(sampling or {}),
    }
    n_samples, held = how.pop("n_samples"), how.pop("max_tokens", None)
    require_whole(model)
    if n_given is None:
        require_temporal(model)
        source = _prompts(Path(path), model, "cell", reading or {})
    else:
        source = _cells(Path(path), model.vocab, reading or {}, _GENERATED)
    params = {"seed": rng} | (
        {"prompts": str(path), "unit": model.time_head.unit} if n_given is None else {"n_given": n_given}
    )

    def compute(stretches: list[tuple[int, int]]) -> Iterator[AnnData]:
        for block in source.read(stretches):
            if n_given is not None:
                cells = get_sequences(block, model)
                n_open = np.minimum(n_given, cells.lengths - 2)
                opened, table = (
                    cells.take(np.arange(len(cells)), n_open + 1),
                    pd.DataFrame(index=block.obs_names),
                )
                keys = chain_keys(rng, block.obs_names, n_samples)
            elif not len(block.table):
                yield AnnData()
                continue
            else:
                table = block.table
                opened = _opened(block.sequences, model.vocab["<bos>"])
                n_open = np.zeros(len(table), dtype=np.int64)
                keys = prompt_keys(rng, table.index.to_numpy(), n_samples)
            yield written_cells(model, opened, table, n_open, keys, params, max_tokens=held, **how)

    job = {
        "input": source.identity,
        **model.params,
        **params,
        **how,
        "n_samples": n_samples,
        "limit": limit,
        "to": to,
    }
    write = _write_cells if to == "h5ad" else _write_token_rows
    return in_parts(
        source.n if limit is None else min(limit, source.n),
        compute,
        lambda parts, folder, bar: write(parts, folder / f"cells.{to}", bar, model),
        output,
        by=GENERATE,
        job=job,
        inputs=[Path(path)],
        chunk_size=_GENERATED,
        share_array=share_array,
        overwrite=overwrite,
    )


def prompt_file(
    path: str | Path,
    output: str | Path,
    model: MaxTokiModel,
    *,
    sampling: Mapping[str, Any],
    reading: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> int:
    """Draw prompts from the cells of a file and write them down as paragraphs, with their answers.

    Parameters
    ----------
    path
        Cells: raw counts, an encoded file, or a folder of `datasets`.
    output
        Folder of `datasets` to write, as of `mt.pp.write_paragraphs`. It appears when everything is done.
    model
        A model with a temporal vocabulary.
    sampling
        Parameters of `mt.pp.sample_prompts`.
    reading, overwrite
        As in `predict_file`.

    Returns
    -------
    How many there are.
    """
    require_pyarrow()
    path, reading = Path(path), dict(reading or {})
    # As in predict: what was asked for tells one output from another.
    job = {"input": identity_of(path), "vocabulary_sha256": model.vocab.sha256, **plain(sampling), **reading}
    obs = _obs_of(path, model.vocab)
    drawn = AnnData(obs=obs)
    if check_output(output, by=PROMPTS, job=job, overwrite=overwrite, inputs=[path]):
        return len(open_dataset(output))
    with hidden():
        sample_prompts(drawn, **sampling)
    params, table = drawn.uns[_keys.PROMPTS]["params"], drawn.uns[_keys.PROMPTS]["prompts"]
    prompts = read_prompts(table, drawn, drawn, task=params["task"])
    with new_output(output, by=PROMPTS, job=job, overwrite=overwrite, inputs=[path]) as folder:
        rows, cells = _needed(path, model, prompts, reading)
        place = np.full(drawn.n_obs, -1)
        place[rows] = np.arange(len(rows))
        prompts = prompts._replace(
            context=np.where(prompts.context < 0, -1, place[prompts.context]), query=place[prompts.query]
        )
        write_rows(folder, table, prompts, cells, model, rows=rows, params=plain(params))
    return len(table)


def encoded_to_dataset(
    path: str | Path,
    model: MaxTokiModel,
    *,
    time_key: str | None = None,
    groupby: list[str] | None = None,
    max_length: int = 4096,
    overwrite: bool = False,
) -> Path:
    """Write an encoded file as a folder of `datasets` beside it, `NAME.dataset`, a block at a time.

    Parameters
    ----------
    path
        What `mt.pp.encode_file` wrote.
    model
        The model that it was encoded for.
    time_key, groupby, max_length, overwrite
        As in `mt.pp.write_dataset`.

    Returns
    -------
    The folder. If it is there, made from this file with these settings, nothing is done.
    """
    path = Path(path)
    output = path.with_suffix(".dataset")
    settings = {"time_key": time_key, "groupby": groupby, "max_length": max_length}
    job = {"input": input_identity(path), "genes_sha256": model.vocab.genes_sha256, **settings}
    if check_output(output, by=WRITE_DATASET, job=job, overwrite=overwrite, inputs=[path]):
        return output
    with open_store(path) as store:
        obs, var = read_frames(store)
        blocks = ranked_blocks(store, obs, var)
        obs = with_time(obs, time_key, groupby)
        with (
            new_output(output, by=WRITE_DATASET, job=job, overwrite=overwrite, inputs=[path]) as folder,
            progress(total=len(obs), desc="Writing cells", unit="cell") as bar,
        ):
            write_cells(folder, blocks, obs, model.vocab, max_length=max_length, bar=bar)
    return output


def in_parts(
    n: int,
    compute: Callable[[list[tuple[int, int]]], Iterator[AnnData]],
    write: Callable[[_Parts, Path, Any], None],
    output: str | Path,
    *,
    by: str,
    job: Mapping[str, Any],
    inputs: list[Path],
    chunk_size: int,
    share_array: bool,
    overwrite: bool,
) -> Path | None:
    """Compute blocks of rows, shared out over processes and kept when the job ends early; put them together where all are there.

    Parameters
    ----------
    n
        Rows in all.
    compute
        Yields a part for each of the blocks that it is given.
    write
        Writes all parts to a folder, as one file.
    output, by, job, inputs, overwrite
        As in `_outputs.new_output`; `job["to"]` is the format.
    chunk_size
        Rows a block.
    share_array
        Whether the tasks of a SLURM array share the job.

    Returns
    -------
    The file; `None` where another process has to finish.
    """
    output, how = Path(output), {"by": by, "job": job, "overwrite": overwrite, "inputs": inputs}
    if job["to"] not in FORMATS:
        raise ValueError(f"There is no format {job['to']!r}; choose from {', '.join(FORMATS)}.")
    if job["to"] == "parquet":
        require_pyarrow()
    if output.is_file():
        raise ValueError(f"{output} is a file. Give a folder to write to.")
    if not n:
        raise ValueError(f"There is nothing to read for {output}: the input has no rows.")
    stretches = [(start, min(start + chunk_size, n)) for start in range(0, n, chunk_size)]

    def join(paths: list[Path]) -> Path:
        with new_output(output, **how) as folder, progress(total=n, desc="Writing", unit="row") as bar:
            write(_Parts(paths), folder, bar)
        return _file_in(output)

    return run_shards(
        output.with_name(f"{output.name}.shards"),
        [stop - start for start, stop in stretches],
        {**job, "n": n, "chunk_size": chunk_size},
        compute=lambda todo: compute([stretches[number] for number in todo]),
        join=join,
        find=lambda: _file_in(output) if check_output(output, **how) else None,
        made=lambda: _file_in(output) if is_made(output, by=by, job=job) else None,
        desc=by,
        unit="row",
        share_array=share_array,
        overwrite=overwrite,
    )


def _file_in(output: Path) -> Path:
    (path,) = (part for part in output.iterdir() if part.suffix[1:] in FORMATS)
    return path


class _Parts:
    """Parts that are read one after the other, without those that are empty."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def n_values(self) -> int:
        """How many ranks there are in all."""
        n = 0
        for path in self.paths:
            with open_store(path) as store:
                n += store[slot].shape[0] if (slot := f"layers/{_keys.RANK}/data") in store else 0
        return n

    def __iter__(self) -> Iterator[AnnData]:
        n = 0
        for path in self.paths:
            part = ad.read_h5ad(path)
            n += part.n_obs
            if part.n_obs:
                yield part
        if not n:
            raise ValueError(_NONE_ASKS)


def _as_obs(table: pd.DataFrame) -> AnnData:
    return AnnData(obs=table.set_axis(table["prompt"].astype(str)).rename_axis(None))


def _plain_table(obs: pd.DataFrame) -> pd.DataFrame:
    """The table of a part, with text as text: categories differ between parts."""
    return obs.astype({name: object for name in obs if isinstance(obs[name].dtype, pd.CategoricalDtype)})


def _write_table(parts: Iterable[AnnData], path: Path, bar) -> None:
    if path.suffix == ".h5ad":
        tables = []
        for part in parts:
            tables.append(_plain_table(part.obs))
            bar.update(part.n_obs)
        AnnData(obs=pd.concat(tables)).write_h5ad(path)
        return
    _write_parquet(path, (columns_of(_plain_table(part.obs)) for part in parts), bar)


def _write_parquet(path: Path, blocks: Iterable[dict], bar) -> None:
    """Write columns block by block, each a group of rows."""
    pa = require_pyarrow()
    from pyarrow import parquet

    writer = None
    try:
        for columns in blocks:
            table = pa.table(columns)
            writer = writer or parquet.ParquetWriter(path, table.schema)
            writer.write_table(table.cast(writer.schema))
            bar.update(len(table))
    finally:
        if writer is not None:
            writer.close()


def _write_cells(parts: _Parts, path: Path, bar, model: MaxTokiModel) -> None:
    def blocks() -> Iterator[AnnData]:
        for part in parts:
            part.obs = _plain_table(part.obs)
            yield part

    write_encoded(path, blocks(), sp.get_index_dtype(maxval=parts.n_values()), bar)


def _write_token_rows(parts: Iterable[AnnData], path: Path, bar, model: MaxTokiModel) -> None:
    def blocks() -> Iterator[dict]:
        for part in parts:
            ranks, token = sp.csr_matrix(part.layers[_keys.RANK]), part.var[_keys.TOKEN_ID].to_numpy()
            cells = cell_sequences(ranks, token, model.vocab, max_length=model.cell_length)
            yield {"input_ids": lists(cells.tokens, cells.lengths), **columns_of(_plain_table(part.obs))}

    _write_parquet(path, blocks(), bar)


def identity_of(path: Path) -> dict:
    """What tells an input from others."""
    return file_identity(path) if is_dataset(path) else input_identity(path)


def cell_blocks(
    path: str | Path,
    vocab: Vocabulary,
    *,
    chunk_size: int = _READ,
    numbers: Iterable[int] | None = None,
    **reading,
) -> Iterator[AnnData]:
    """Cells of a file as rank-encoded blocks, all or those with these numbers.

    From raw counts, an encoded file, or a folder of `datasets`.
    """
    if is_dataset(path):
        table, names = open_cells(path, vocab)
        for number in range(-(-len(table) // chunk_size)) if numbers is None else numbers:
            rows = slice(number * chunk_size, (number + 1) * chunk_size)
            yield cells_of(table.slice(rows.start, chunk_size), names[rows], vocab, path)
        return
    with open_store(path) as store:
        obs, var = read_frames(store, reading.get("layer"))
        if ranked_lengths(store, vocab) is not None:
            yield from ranked_blocks(store, obs, var, chunk_size=chunk_size, numbers=numbers)
        else:
            yield from encoded_blocks(
                store, obs, var, vocab, chunk_size=chunk_size, numbers=numbers, **reading
            )


def _obs_of(path: Path, vocab: Vocabulary) -> pd.DataFrame:
    if is_dataset(path):
        table, names = open_cells(path, vocab)
        return scalars_of(table).set_axis(names)
    with open_store(path) as store:
        return read_frames(store)[0]


def _cells(path: Path, vocab: Vocabulary, reading: Mapping[str, Any], chunk_size: int) -> Source:
    n = len(_obs_of(path, vocab))

    def read(stretches: list[tuple[int, int]]) -> Iterator[AnnData]:
        numbers = [start // chunk_size for start, _ in stretches]
        blocks = cell_blocks(path, vocab, chunk_size=chunk_size, numbers=numbers, **reading)
        for (start, stop), block in zip(stretches, blocks, strict=True):
            yield block[: stop - start]

    return Source(n, identity_of(path) | dict(reading), read)


def _prompts(path: Path, model: MaxTokiModel, task: str, reading: Mapping[str, Any]) -> Source:
    n, one = _paragraphs(path, model, task) if is_dataset(path) else _drawn(path, model, task, reading)
    return Source(n, identity_of(path) | dict(reading), lambda stretches: (one(*ends) for ends in stretches))


def _paragraphs(path: Path, model: MaxTokiModel, task: str) -> tuple[int, Callable]:
    """Prompts of a folder of `datasets`."""
    paragraphs, vocab = open_dataset(path), model.vocab
    if about(paragraphs).get("vocabulary_sha256", vocab.sha256) != vocab.sha256:
        raise ValueError(
            f"{path} was written for another vocabulary than that of {model.name!r}. Give the model that it was made for (--model)."
        )

    def read(start: int, stop: int) -> Prompted:
        table = paragraphs.slice(start, stop - start)
        asked, timelapse = _cut(sequences_of(table, path), model, path, start)
        mine = np.flatnonzero(timelapse == (task == "timelapse"))
        known = scalars_of(table).set_axis(np.arange(start, stop))
        return Prompted(asked.take(mine), known.iloc[mine])

    # Before anything is written; as a rule the first rows tell.
    starts = range(0, len(paragraphs), _LOOKED_AT)
    if len(paragraphs) and not any(len(read(i, min(i + _LOOKED_AT, len(paragraphs))).table) for i in starts):
        raise ValueError(f"{path}: {_NONE_ASKS}")
    return len(paragraphs), read


def _cut(rows: Sequences, model: MaxTokiModel, path: Path, start: int) -> tuple[Sequences, np.ndarray]:
    """Each row up to `<eoq>`, and whether it asks for a lapse; or raise if rows are no prompts."""
    vocab, tokens = model.vocab, rows.tokens
    place, owner = rows.positions, rows.owner

    def only(mark: str) -> np.ndarray:
        is_mark = tokens == vocab[mark]
        n = np.bincount(owner[is_mark], minlength=len(rows))
        if (wrong := n != 1).any():
            row = int(np.flatnonzero(wrong)[0])
            advice = f" They may be cells: {_ASK.format(path=path)}" if not n.any() else ""
            raise ValueError(
                f"{wrong.sum()} of {len(rows)} rows of {path} from row {start} on have not one {mark} (row {start + row} has "
                f"{n[row]}): they are no prompts of this vocabulary.{advice}"
            )
        return place[is_mark]

    boq, eoq = only("<boq>"), only("<eoq>")
    first = rows.indptr[:-1]
    asked = tokens[first + np.minimum(boq + 1, rows.lengths - 1)]
    timelapse, lapse = asked == vocab["<bos>"], np.isin(asked, vocab.time_ids)
    strange = (tokens < 0) | (tokens >= vocab.size)
    bad = (eoq < boq + 2) | ~(timelapse | lapse) | (np.bincount(owner[strange], minlength=len(rows)) > 0)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise ValueError(
            f"{bad.sum()} of {len(rows)} rows of {path} from row {start} on are no prompts of this vocabulary, with a cell or a lapse "
            f"between <boq> and <eoq> (the first is row {start + row}). Give the model or dictionary that they were made with."
        )
    if (long := eoq + 1 + lapse > model.max_length).any():
        row = int(np.flatnonzero(long)[0])
        raise ValueError(
            f"{long.sum()} of {len(rows)} rows of {path} from row {start} on are longer than the {model.max_length:,} tokens that the "
            f"model reads (row {start + row}: {eoq[row] + 1:,}). Write them for this model: maxtoki prompts."
        )
    return rows.take(np.arange(len(rows)), eoq + 1), timelapse


def _drawn(path: Path, model: MaxTokiModel, task: str, reading: Mapping[str, Any]) -> tuple[int, Callable]:
    """Prompts that were drawn in a file of cells."""
    with open_store(path) as store:
        slot = f"uns/{_keys.PROMPTS}"
        if slot not in store:
            raise ValueError(f"{path} has no prompts in uns[{_keys.PROMPTS!r}]. {_ASK.format(path=path)}")
        cells = AnnData(obs=read_frames(store)[0], uns={_keys.PROMPTS: ad.io.read_elem(store[slot])})
    stored = read_result(cells, _keys.PROMPTS)
    params, table = stored["params"], stored["prompts"].reset_index(drop=True)
    if params["task"] != task or params["queries_elsewhere"]:
        what = (
            "the query cells are elsewhere"
            if params["queries_elsewhere"]
            else f"they ask for {params['task']}s"
        )
        raise ValueError(f"The prompts of {path} are of another kind: {what}. {_ASK.format(path=path)}")
    check_prompts(params, table, model.time_head.unit)
    prompts = read_prompts(table, cells, cells, task=task)
    names = [name for name in ("query", "lapse", "group", "time", "donor") if name in table]
    found: list = []

    def read(start: int, stop: int) -> Prompted:
        if not found:
            rows, sequences = _needed(path, model, prompts, reading)
            place = np.full(cells.n_obs, -1)
            place[rows] = np.arange(len(rows))
            context = np.where(prompts.context < 0, -1, place[prompts.context])
            found.extend((sequences, prompts._replace(context=context, query=place[prompts.query])))
        max_length = model.max_length - (task == "cell")
        written = write_prompts(
            found[1][start:stop], found[0], model.vocab, max_length=max_length, answer=False
        )
        return Prompted(written.sequences, table[names].iloc[start:stop])

    return len(table), read


def _needed(
    path: Path, model: MaxTokiModel, prompts, reading: Mapping[str, Any]
) -> tuple[np.ndarray, Sequences]:
    """Rows of the cells that prompts are of, and these cells as sequences."""
    rows = np.unique(np.concatenate([prompts.context.ravel(), prompts.query]))
    rows = rows[rows >= 0]
    numbers = np.unique(rows // _READ)
    parts = []
    with progress(total=len(rows), desc="Reading cells", unit="cell") as bar:
        for number, block in zip(
            numbers, cell_blocks(path, model.vocab, numbers=numbers, **reading), strict=True
        ):
            mine = rows[rows // _READ == number] - number * _READ
            with hidden():
                parts.append(get_sequences(block, model).take(mine))
            bar.update(len(mine))
    return rows, Sequences.concatenate(parts)


def _opened(prompts: Sequences, bos: int) -> Sequences:
    """Prompts with `<bos>` after them."""
    tokens = np.insert(prompts.tokens, prompts.indptr[1:], bos).astype(np.int32)
    return Sequences(tokens, prompts.indptr + np.arange(len(prompts.indptr)))
