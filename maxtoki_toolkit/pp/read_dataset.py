"""Cells of a folder of Hugging Face `datasets`, as the original's tokenizer writes them."""

from __future__ import annotations

from pathlib import Path

from anndata import AnnData

from ._datasets import cells_of, open_cells
from ._vocabulary import as_vocabulary


def read_dataset(path: str | Path, model) -> AnnData:
    """Read cells from a folder of Hugging Face `datasets` with a column `input_ids`.

    Parameters
    ----------
    path
        The folder, as `Dataset.save_to_disk`, the original's `tokenize` or `mt.pp.write_dataset` wrote it.
    model
        The model whose tokens these are, or its `Vocabulary`.

    Returns
    -------
    Rank-encoded cells with all genes of the vocabulary, without counts:

    `.layers["rank"]`
        Ranks from 1, as of `mt.pp.rank_value_encode`.
    `.layers["log1p"]`
        What the column `counts` held, if there is one: log1p of counts per 10,000, float64.
    `.obs`
        All other columns but `length`; cells are named by `unique_cell_id`, where it is there, and by their
        row otherwise.

    Raises
    ------
    ImportError
        If pyarrow is not installed.
    KeyError
        If there is no column `input_ids`.
    ValueError
        If rows are no cells of this vocabulary (`<bos>`, genes, none twice, `<eos>`), names repeat, or the
        folder is cut short, holds several splits, or rows that were selected without being written anew.

    Notes
    -----
    The package `datasets` is not needed. `mt.train.pretrain` and `mt.train.temporal` take the path of such a
    folder as it is.

    Examples
    --------
    >>> import tempfile, maxtoki_toolkit as mt
    >>> adata = mt.datasets.load("heart_nuclei")[:20].copy()
    >>> model = mt.load_model("demo")
    >>> mt.pp.rank_value_encode(adata, model)
    >>> folder = tempfile.mkdtemp() + "/cells.dataset"
    >>> mt.pp.write_dataset(adata, model, output=folder)
    >>> mt.pp.read_dataset(folder, model).n_obs
    20
    """
    vocab = as_vocabulary(model)
    table, names = open_cells(path, vocab)
    return cells_of(table, names, vocab, path)
