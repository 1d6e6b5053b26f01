"""Prompts written down as the original's paragraphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from .. import _keys
from .._arrow import require_pyarrow
from .._outputs import new_output
from .._validate import require_unique_names
from ..models.model import require_model
from ..models.sequences import cell_sequences
from ..results.store import read_result
from ._datasets import require_encoded
from ._paragraphs import write_rows
from .sample_prompts import read_prompts

BY = "mt.pp.write_paragraphs"


def write_paragraphs(
    adata: AnnData, model, *, output: str | Path, key: str | None = None, overwrite: bool = False
) -> None:
    """Write prompts with their answers as a folder of Hugging Face `datasets`, as the original assembles paragraphs.

    Parameters
    ----------
    adata
        Rank-encoded cells with prompts (`mt.pp.sample_prompts`).
    model
        Model with a temporal vocabulary; a longer prompt than it reads loses genes of its first cell.
    output
        Folder to write. It appears when it is complete.
    key
        Key in `.uns` of the prompts, by default "prompts".
    overwrite
        Replace what this function has written there. Anything else stays in any case.

    Returns
    -------
    `None`. A row of the folder is a prompt:

    `dataset_order`, `timegroup_order`, `cell_indices`, `timesteps`, `time_choices`
        0; the group; rows of the cells, the query last; lapses between them; their times.
    `input_ids`, `response_len`
        int32: the prompt and its answer, so that both can be trained on and predicted; tokens of the answer.
    `n_clipped`
        Genes of the first cell that were left out for the prompt to fit.
    `query`, `lapse`, `donor`
        Name of the query cell, lapse to it, and its donor, if it is known.

    Raises
    ------
    ImportError
        If pyarrow is not installed.
    KeyError
        If there are no prompts.
    ValueError
        If the cells were encoded for another vocabulary, a lapse has no token, a prompt cannot be cut to what
        the model reads, or something else is at `output`.

    Notes
    -----
    What is beyond the columns of the original, its tools do not look at. How the prompts were drawn is in the
    folder: `mt.pp.read_paragraphs` brings them back as they are. `maxtoki prompts` does the same for a file.

    Examples
    --------
    >>> import tempfile, maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(100, 10, n_genes=500)
    >>> model = mt.load_model("demo")
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.sample_prompts(adata, time_key="age_months", groupby="cell_type", donor_key="donor_id", n_prompts=5)
    >>> folder = tempfile.mkdtemp() + "/paragraphs.dataset"
    >>> mt.pp.write_paragraphs(adata, model, output=folder)
    >>> before = mt.get.table(adata, "prompts")
    >>> mt.pp.read_paragraphs(adata, path=folder)
    >>> mt.get.table(adata, "prompts").equals(before)
    True
    """
    require_model(model)
    require_pyarrow()
    require_unique_names(adata)
    require_encoded(adata, model.vocab)
    stored = read_result(adata, key or _keys.PROMPTS, "mt.pp.sample_prompts(adata, ...)")
    if stored["params"]["queries_elsewhere"]:
        raise ValueError(
            "The query cells of these prompts are in another AnnData. Paragraphs are of one data set."
        )
    table = stored["prompts"]
    prompts = read_prompts(table, adata, adata, task=stored["params"]["task"])
    cells = cell_sequences(
        sp.csr_matrix(adata.layers[_keys.RANK]),
        adata.var[_keys.TOKEN_ID].to_numpy(),
        model.vocab,
        max_length=model.cell_length,
    )
    job = {"vocabulary_sha256": model.vocab.sha256}
    with new_output(output, by=BY, job=job, overwrite=overwrite) as folder:
        rows = np.arange(adata.n_obs)
        write_rows(folder, table, prompts, cells, model, rows=rows, params=plain(stored["params"]))


def plain(params) -> dict:
    """Settings as JSON has them."""
    found = {}
    for name, value in dict(params).items():
        value = value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
        found[name] = list(value) if isinstance(value, tuple) else value
    return found
