"""Rank value encoding of many files at once, on one machine or on a Dask cluster."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import anndata as ad
import pandas as pd

from .._files import atomic
from .._outputs import differences, read_mark, refuse_inputs
from .._progress import hidden, progress
from ..models.vocabulary import Vocabulary
from ._formats import H5AD, ZARR, kind_of, stem_of
from ._store import open_store
from ._vocabulary import as_vocabulary
from .encode_file import BY as ENCODE_FILE
from .encode_file import encode_file, encoding_job

BY, MANIFEST = "mt.pp.encode_files", "manifest.json"


def encode_files(
    paths: Sequence[str | Path],
    output: str | Path,
    model,
    *,
    scheduler: str | None = None,
    n_workers: int = 1,
    layer: str | None = None,
    gene_key: str | None = None,
    min_overlap: float = 0.1,
    force: bool = False,
    overwrite: bool = False,
) -> pd.DataFrame:
    """Rank-encode a collection of files of cells, each into one of the same name.

    Files are encoded side by side, each a block of cells at a time. What is there already, from the same file
    with the same settings, is not encoded again, so an interrupted collection goes on when it is called
    again. A file whose content has changed since is encoded again.

    Parameters
    ----------
    paths
        Files of cells with raw counts, as `mt.pp.read_cells` reads.
    output
        Folder to write the encoded files and `manifest.json` to.
    model
        A model or a `Vocabulary`.
    scheduler
        Address of a Dask cluster, e.g. "tcp://10.0.0.1:8786"; all its workers must see the files. By default
        a cluster of `n_workers` processes on this machine is started.
    n_workers
        Processes on this machine; 1 does without Dask.
    layer, gene_key, min_overlap, force
        As in `mt.pp.encode_file`.
    overwrite
        Replace encoded files of other settings, or from elsewhere. What this function did not write stays in
        any case.

    Returns
    -------
    One row a file: `source`, `encoded` (its path), `n_cells`. `mt.train.pretrain` and `mt.train.temporal`
    take the paths.

    Raises
    ------
    ValueError
        If `output` holds files of something else, two files have one name, or a file cannot be encoded. The
        others are finished first.

    Examples
    --------
    >>> import tempfile, maxtoki_toolkit as mt
    >>> folder = tempfile.mkdtemp()
    >>> for seed in (0, 1):
    ...     mt.datasets.aging_atlas(100, 10, seed=seed).write_h5ad(f"{folder}/{seed}.h5ad")
    >>> model = mt.load_model("demo")
    >>> files = mt.pp.encode_files([f"{folder}/0.h5ad", f"{folder}/1.h5ad"], f"{folder}/encoded", model)
    >>> files["n_cells"].tolist()
    [100, 100]
    """
    vocab, output = as_vocabulary(model), Path(output)
    paths = [Path(path) for path in paths]
    names = Counter(stem_of(path) for path in paths)
    if repeated := [name for name, n in names.items() if n > 1]:
        raise ValueError(f"Several files are named {repeated[0]!r}; their results would replace each other.")
    if missing := [path for path in paths if not path.exists()]:
        raise FileNotFoundError(f"Did not find {missing[0]} ({len(missing)} of {len(paths)} files).")
    settings = {"layer": layer, "gene_key": gene_key, "min_overlap": min_overlap, "force": force}
    settings["overwrite"] = overwrite
    known = _read_manifest(output)
    targets = {path: output / f"{stem_of(path)}.{ZARR if kind_of(path) == ZARR else H5AD}" for path in paths}
    for target in targets.values():
        refuse_inputs(target, paths)
    output.mkdir(parents=True, exist_ok=True)
    jobs = [(path, target, known.get(stem_of(path), {}).get("source")) for path, target in targets.items()]
    cells, failed = {}, {}
    run = _on_dask if scheduler or n_workers > 1 else _here
    with progress(total=len(paths), desc="Encoding files", unit="file") as bar:
        for path, n_cells, error in run(jobs, vocab, settings, scheduler, n_workers):
            if error:
                failed[path] = error
            else:
                cells[path] = n_cells
                entry = {"source": str(path.resolve()), "encoded": str(targets[path]), "n_cells": n_cells}
                known[stem_of(path)] = entry
                with atomic(output / MANIFEST) as temporary:
                    temporary.write_text(json.dumps({"made_by": BY, "files": known}, indent=2))
            bar.update()
    if failed:
        path, error = next(iter(failed.items()))
        raise ValueError(f"{len(failed)} of {len(paths)} files were not encoded. {path}: {error}")
    return pd.DataFrame([{"source": str(p), "encoded": str(targets[p]), "n_cells": cells[p]} for p in paths])


def _read_manifest(output: Path) -> dict:
    """What is known of encoded files; raise if the manifest is somebody else's."""
    path = output / MANIFEST
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text())
        if content["made_by"] == BY:
            return content["files"]
    except (ValueError, KeyError, TypeError, OSError):
        pass
    raise ValueError(f"{path} exists and was not written by {BY}: it stays as it is. Give another output.")


def _encode(
    path: Path, target: Path, source: str | None, vocab: Vocabulary, settings: dict
) -> tuple[Path, int, str]:
    """Encode one file, whose encoding of before came from `source`; return its number of cells, or what was wrong."""
    try:
        if source == str(path.resolve()) and (mark := read_mark(target, ENCODE_FILE)):
            of_result = {k: v for k, v in settings.items() if k != "overwrite"}
            if differences(mark["job"], encoding_job(path, vocab, **of_result)) == ["input"]:
                # What has changed is the file itself, not what is asked for.
                settings = {**settings, "overwrite": True}
        with hidden():
            encode_file(path, target, vocab, **settings)
        with open_store(target) as store:
            return path, len(ad.io.read_elem(store["obs"])), ""
    except (ValueError, KeyError, OSError) as error:
        return path, 0, str(error.args[0] if error.args else error)


def _here(jobs, vocab, settings, _scheduler, _n_workers):
    for job in jobs:
        yield _encode(*job, vocab, settings)


def _on_dask(jobs, vocab, settings, scheduler, n_workers):
    try:
        from dask.distributed import Client, LocalCluster, as_completed
    except ImportError:
        raise ImportError(
            'Several workers need Dask: pip install -c constraints.txt -e ".[distributed]".'
        ) from None
    cluster = (
        nullcontext()
        if scheduler
        # Workers that are slow to stop are no news.
        else LocalCluster(
            n_workers=n_workers, threads_per_worker=1, dashboard_address=None, silence_logs=logging.ERROR
        )
    )
    with cluster as local, Client(scheduler or local) as client:
        shared = client.scatter(vocab, broadcast=True)
        futures = [client.submit(_encode, *job, shared, settings, pure=False) for job in jobs]
        for future in as_completed(futures):
            yield future.result()
