"""At which genes of a cell a feature is active."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from .. import _keys
from .._features import symbols
from ..models.engine import Batch, run, tokens_at_once
from ..models.hooks import states_at
from ..models.model import MaxTokiModel
from ..models.sae import SparseAutoencoder
from ..models.sae_controls import gene_mask
from ..models.sequences import Sequences

_MOST = 1 << 25  # activations held at a time


def active_genes(
    model: MaxTokiModel, sae: SparseAutoencoder, sequences: Sequences, wanted: np.ndarray
) -> pd.DataFrame:
    """Activations of some features in some cells, gene by gene.

    Parameters
    ----------
    model
        Model.
    sae
        Autoencoder of this model.
    sequences
        Cells, `<bos>` genes `<eos>`.
    wanted
        features x n: rows of `sequences` in which to read each feature; -1 for none.

    Returns
    -------
    `feature`, `row`, `rank` of the gene from 1, `token`, `value`; sorted by the first three, without zeros.
    """
    feature, place = np.nonzero(wanted >= 0)
    rows, row = np.unique(wanted[feature, place], return_inverse=True)
    by_row = np.argsort(row, kind="stable")
    starts = np.searchsorted(row[by_row], np.arange(len(rows) + 1))
    is_gene = gene_mask(model)
    # Ranks are counted over genes: marks are none.
    max_tokens = min(tokens_at_once(model, None), max(_MOST // sae.width, 1))

    def compute(batch: Batch) -> tuple[np.ndarray, ...]:
        there = is_gene[batch.tokens]
        found = torch.where(there[..., None], sae.encode(states_at(model, batch.inputs, sae.site).float()), 0)
        asked = torch.zeros((len(batch.rows), sae.width), dtype=torch.bool, device=found.device)
        for i, cell in enumerate(batch.rows):
            ask = feature[by_row[starts[cell] : starts[cell + 1]]]
            asked[i, torch.from_numpy(ask).to(found.device)] = True
        i, at, which = torch.where(asked[:, None], found, 0).nonzero(as_tuple=True)
        parts = (i, at, which, there.cumsum(dim=1)[i, at], batch.tokens[i, at], found[i, at, which])
        return tuple(part.cpu().numpy() for part in parts)

    frames = []
    for batch_rows, (i, _, which, rank, token, value) in run(
        model, sequences.take(rows), compute, max_tokens=max_tokens, desc="Reading genes of top cells"
    ):
        columns = {"feature": which, "row": rows[batch_rows[i]], "rank": rank, "token": token, "value": value}
        frames.append(pd.DataFrame(columns))
    names = ("feature", "row", "rank", "token", "value")
    empty = pd.DataFrame({name: np.zeros(0, float if name == "value" else int) for name in names})
    table = pd.concat(frames) if frames else empty
    return table.sort_values(["feature", "row", "rank"], ignore_index=True)


def token_symbols(adata: AnnData, size: int) -> np.ndarray:
    """Symbol of each token of a vocabulary; "" where no gene of the cells has it."""
    names = np.full(size, "", dtype=object)
    token = adata.var[_keys.TOKEN_ID].to_numpy()
    names[token[token >= 0]] = np.asarray(symbols(adata)).astype(str)[token >= 0]
    return names


def first_genes(sequences: Sequences, row: int, is_gene: np.ndarray, n: int) -> np.ndarray:
    """Tokens of the n highest ranked genes of a cell."""
    tokens = sequences.tokens[sequences.indptr[row] : sequences.indptr[row + 1]]
    return tokens[is_gene[tokens]][:n]
