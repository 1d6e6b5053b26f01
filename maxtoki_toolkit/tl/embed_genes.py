"""Gene embeddings: in all cells, in groups of cells, or without cells."""

from __future__ import annotations

from collections.abc import Sequence

from anndata import AnnData

from .. import _keys
from ..models.embedding import CONTEXTS
from ..models.model import MaxTokiModel
from ..pp._design import as_list, known_cells
from ..results.store import write_result
from ._cells import count_truncated
from ._gene_vectors import gene_vectors


def embed_genes(
    adata: AnnData,
    model: MaxTokiModel,
    *,
    groupby: str | Sequence[str] | None = None,
    context: str = "cells",
    layer: int = -1,
    min_cells: int = 1,
    whole_cells: bool = False,
    key_added: str | None = None,
) -> None:
    """Embed each gene: as it is in the cells, in each group of them, alone, or as the embedding table has it.

    Parameters
    ----------
    adata
        Rank-encoded cells.
    model
        Model, with or without temporal training.
    groupby
        Columns of `.obs`: also embed each gene in each group of cells.
    context
        "cells", a gene's mean hidden state over the cells that show it to the model (expression-aware);
        "alone", its hidden state in a cell that has no other gene (context-free); "table", its row of the
        embedding table.
    layer
        Which hidden states: l for those after l blocks, -1 for the last block and the final norm. Of no
        account for "table".
    min_cells
        Cells that a mean takes, at least.
    whole_cells
        Read all genes of cells that have more than the model reads at once: in parts, each of every second
        (third, and so on) gene, as of a cell that was sequenced less deeply. By default a cell is its highest
        ranked genes.
    key_added
        Key in `.varm`, by default "maxtoki".

    Returns
    -------
    `None`. Writes

    `.varm["maxtoki"]`
        float32, genes x hidden size; NaN for genes without a token, and, with "cells", for those that too few
        cells show.
    `.varm["maxtoki_groups"]`
        With `groupby`: float32, genes x groups x hidden size, in the order of the table.
    `.uns["embed_genes"]`
        Parameters and, with `groupby`, the table `groups`: a row a `group`, with `n_cells` and `n_genes`, the
        genes that have a vector there. With `key_added`, under that key.

    Raises
    ------
    KeyError
        If the cells are not rank-encoded.
    ValueError
        If there is no such context, or groups are asked for where no cells are read.

    Notes
    -----
    A model reads at most `model.max_length` - 2 genes of a cell, the highest ranked: a gene that is never
    among them has no vector in cells, whatever its expression. It has one with `whole_cells`, alone and in
    the table.

    States are summed while the cells are read, one group after the other: what is held is a vector a gene and
    group, never one a gene and cell. Tahoe-x1 has the same three kinds of gene embeddings (expression-aware,
    context-free, gene encoder).

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.load("heart_nuclei")[:100].copy()
    >>> model = mt.load_model("demo")
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.tl.embed_genes(adata, model, groupby="cell_type")
    >>> adata.varm["maxtoki"].shape == (adata.n_vars, 128)
    True
    >>> adata.varm["maxtoki_groups"].shape[1] == adata.obs["cell_type"].nunique()
    True
    """
    if context not in CONTEXTS:
        raise ValueError(f"There is no context {context!r}; choose from {', '.join(CONTEXTS)}.")
    if groupby and context != "cells":
        raise ValueError(
            f"context={context!r} reads no cells, so that there are no groups. Leave groupby out."
        )
    key = key_added or _keys.GENE_EMBEDDING
    columns = as_list(groupby)
    cells, _ = known_cells(adata, columns)
    found = gene_vectors(
        cells,
        model,
        context=context,
        layer=layer,
        groupby=columns,
        min_cells=min_cells,
        whole_cells=whole_cells,
    )
    settings = {"context": context, "layer": layer, "min_cells": min_cells, "groupby": columns, "key": key}
    settings["whole_cells"] = whole_cells
    params = settings | {"n_cells": cells.n_obs, "n_truncated": count_truncated(cells, model)}
    tables = {} if found.table is None else {"groups": found.table}
    write_result(adata, _keys.EMBED_GENES, {**model.params, **params}, key_added=key_added, **tables)
    adata.varm[key] = found.all
    adata.varm.pop(f"{key}_groups", None)
    if found.groups is not None:
        adata.varm[f"{key}_groups"] = found.groups
