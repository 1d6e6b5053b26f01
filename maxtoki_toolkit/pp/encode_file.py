"""Rank value encoding from file to file, for data larger than memory."""

from __future__ import annotations

from pathlib import Path

import scipy.sparse as sp

from .._outputs import check_output, new_output
from .._progress import progress
from ..models.vocabulary import Vocabulary
from ._identity import input_identity
from ._store import count_values, encoded_blocks, open_store, read_frames, write_encoded
from ._vocabulary import as_vocabulary

BY = "mt.pp.encode_file"


def encode_file(
    path: str | Path,
    output: str | Path,
    model,
    *,
    layer: str | None = None,
    gene_key: str | None = None,
    min_overlap: float = 0.1,
    force: bool = False,
    chunk_size: int = 2048,
    overwrite: bool = False,
) -> None:
    """Rank-encode an h5ad or zarr file into another, a block of cells at a time.

    Memory does not grow with the number of cells, except by `.obs`.

    Parameters
    ----------
    path
        Raw counts: `.h5ad`, `.zarr`, or what `mt.pp.read_cells` reads. What is stored by gene (CSC), in 10x files or by anndata
        before 0.7 is read into memory.
    output
        `.h5ad` or `.zarr` to write: `.obs`, `.var`, `.layers["rank"]` and `.uns`, no counts. It appears when
        it is complete; a failure leaves nothing behind. If it is there already, from this input with these settings, nothing is
        done.
    model
        A model or a `Vocabulary`.
    layer, force, chunk_size
        As in `mt.pp.rank_value_encode`.
    gene_key, min_overlap
        As in `mt.pp.map_genes`.
    overwrite
        Replace what this function has written to `output` from another input or with other settings. Anything else that is there
        stays in any case.

    Raises
    ------
    ValueError
        If something else is at `output`, or `output` is the input, the file is cut short, holds no raw counts, or a cell expresses no gene of the vocabulary.

    Examples
    --------
    >>> import tempfile, anndata, maxtoki_toolkit as mt
    >>> folder = tempfile.mkdtemp()
    >>> mt.datasets.aging_atlas(200, 10).write_h5ad(f"{folder}/counts.h5ad")
    >>> model = mt.load_model("demo")
    >>> mt.pp.encode_file(f"{folder}/counts.h5ad", f"{folder}/ranks.h5ad", model)
    >>> anndata.read_h5ad(f"{folder}/ranks.h5ad").layers["rank"].shape[0]
    200
    """
    vocab = as_vocabulary(model)
    job = encoding_job(path, vocab, layer=layer, gene_key=gene_key, min_overlap=min_overlap, force=force)
    if check_output(output, by=BY, job=job, overwrite=overwrite, inputs=[path]):
        return
    with open_store(path) as store:
        obs, var = read_frames(store, layer)
        index = sp.get_index_dtype(maxval=count_values(store, layer))  # ranks are no more than counts
        blocks = encoded_blocks(
            store,
            obs,
            var,
            vocab,
            layer=layer,
            gene_key=gene_key,
            min_overlap=min_overlap,
            force=force,
            chunk_size=chunk_size,
        )
        with (
            new_output(output, by=BY, job=job, overwrite=overwrite, inputs=[path]) as temporary,
            progress(total=len(obs), desc="Ranking genes", unit="cell") as bar,
        ):
            write_encoded(temporary, blocks, index, bar)


def encoding_job(path: str | Path, vocab: Vocabulary, **settings) -> dict:
    """What an encoded file is made from."""
    return {"input": input_identity(path), **settings, "genes_sha256": vocab.genes_sha256}
