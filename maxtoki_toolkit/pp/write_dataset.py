"""Cells to a folder of Hugging Face `datasets`, as the original's tokenizer writes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from anndata import AnnData

from .._arrow import require_pyarrow
from .._outputs import new_output
from .._progress import progress
from .._validate import require_obs, require_unique_names
from ._datasets import require_encoded, write_rows
from ._design import as_list
from ._vocabulary import as_vocabulary

BY = "mt.pp.write_dataset"
TIME, GROUP = "time", "time_group"
_CHUNK = 4096  # cells a record of Arrow


def write_dataset(
    adata: AnnData,
    model,
    *,
    output: str | Path,
    time_key: str | None = None,
    groupby: str | Sequence[str] | None = None,
    max_length: int = 4096,
    overwrite: bool = False,
) -> None:
    """Write rank-encoded cells as a folder of Hugging Face `datasets`, which the original's tools read.

    Parameters
    ----------
    adata
        Rank-encoded cells (`mt.pp.rank_value_encode`).
    model
        The model that they were encoded for, or its `Vocabulary`.
    output
        Folder to write. It appears when it is complete.
    time_key
        Column of `.obs` that becomes `time`, which the original's paragraphs are made by.
    groupby
        Column or columns of `.obs` whose values, joined by "_", become `time_group`.
    max_length
        Tokens of a cell, `<bos>` and `<eos>` included; lower ranked genes are left out.
    overwrite
        Replace what this function has written there. Anything else stays in any case.

    Returns
    -------
    `None`. A row of the folder is a cell:

    `input_ids`
        int32: `<bos>`, genes from the highest ranked on, `<eos>`.
    `counts`
        float64, of `.layers["log1p"]` if it is there: values of these genes, 0 at both ends.
    columns of `.obs`
        With their types; categories as text.
    `time`, `unique_cell_id`, `time_group`
        If they were asked for; the name of the cell.
    `length`
        Tokens.

    Raises
    ------
    ImportError
        If pyarrow is not installed.
    KeyError
        If cells are not rank-encoded, or a column is missing.
    ValueError
        If they were encoded for another vocabulary, a column cannot be written, or something else is at
        `output`.

    Notes
    -----
    Columns, order and types are those of the original's `tokenize`. The folder was checked against the
    documented layout of `datasets` and is read with pyarrow; `datasets` itself is not needed.

    Examples
    --------
    >>> import tempfile, maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(50, 10, n_genes=500)
    >>> model = mt.load_model("demo")
    >>> mt.pp.rank_value_encode(adata, model)
    >>> folder = tempfile.mkdtemp() + "/cells.dataset"
    >>> mt.pp.write_dataset(adata, model, output=folder, time_key="age_months", groupby=["cell_type", "sex"])
    >>> mt.pp.read_dataset(folder, model).obs["time_group"].iloc[0] == "_".join(adata.obs[["cell_type", "sex"]].iloc[0])
    True
    """
    vocab = as_vocabulary(model)
    require_pyarrow()
    require_unique_names(adata)
    require_encoded(adata, vocab)
    obs = with_time(adata.obs, time_key, groupby)
    blocks = (adata[start : start + _CHUNK] for start in range(0, adata.n_obs, _CHUNK))
    job = {"genes_sha256": vocab.genes_sha256}
    with (
        new_output(output, by=BY, job=job, overwrite=overwrite) as folder,
        progress(total=adata.n_obs, desc="Writing cells", unit="cell") as bar,
    ):
        write_rows(folder, blocks, obs, vocab, max_length=max_length, bar=bar)


def with_time(obs: pd.DataFrame, time_key: str | None, groupby: str | Sequence[str] | None) -> pd.DataFrame:
    """What is known of the cells, with the columns that the original's paragraphs are made by."""
    require_obs(AnnData(obs=obs), time_key, *as_list(groupby))
    obs = obs.copy(deep=False)
    if time_key is not None and time_key != TIME:
        obs[TIME] = obs[time_key]
    if groupby is not None:
        obs[GROUP] = obs[as_list(groupby)].astype(str).agg("_".join, axis=1) if as_list(groupby) else "all"
    return obs
