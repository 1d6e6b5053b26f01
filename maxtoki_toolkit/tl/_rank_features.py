"""Cells as the ranks of their genes: what generated and true cells have in common."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from ..models.model import MaxTokiModel
from ._cells import get_sequences


def rank_features(adata: AnnData, model: MaxTokiModel) -> sp.csr_matrix:
    """Cells x genes of the model, float32: 1 for a cell's highest gene, falling evenly to 0 for genes that are not read of it.

    Only as many genes as the model reads of a cell count, so that a long true cell and a generated one are
    alike.
    """
    cells = get_sequences(adata, model)
    room = model.cell_length - 2
    column = np.full(model.vocab.size, -1)
    column[model.vocab.gene_ids] = np.arange(len(model.vocab.gene_ids))
    is_gene = column[cells.tokens] >= 0
    # Each sequence is `<bos>` genes `<eos>`: a gene's place in it is its rank.
    place = cells.positions
    n_genes = np.add.reduceat(is_gene, cells.indptr[:-1])
    values = 1 - (place[is_gene] - 1) / room
    features = sp.csr_matrix(
        (values.astype(np.float32), column[cells.tokens[is_gene]], np.concatenate([[0], np.cumsum(n_genes)])),
        shape=(adata.n_obs, len(model.vocab.gene_ids)),
    )
    features.sort_indices()
    return features
