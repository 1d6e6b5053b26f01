"""Genes, sets of genes, or all of them, as the tokens that an edit moves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from .._features import SYMBOL_KEYS, gene_columns, symbols
from .._reference import symbol_of_gene
from ..models.model import MaxTokiModel

ALL = "all"
_SHOWN = 5  # genes in a message
Genes = str | Sequence[str | Sequence[str]] | Mapping[str, str | Sequence[str]]


class Asked(NamedTuple):
    """Edits that were asked for: one gene each, or several together."""

    table: pd.DataFrame
    """One row an edit: `gene` (Ensembl id, or the name of a set), `symbol`, `members`, `n_genes`, `matched_to`."""
    tokens: list[np.ndarray]
    """Of each edit."""


def ask_genes(adata: AnnData, model: MaxTokiModel, genes: Genes) -> Asked:
    """Look up what is to be edited."""
    known = _Known(adata, model)
    if isinstance(genes, str) and genes == ALL:
        column = known.token[known.token >= 0]
        tokens = column[np.sort(np.unique(column, return_index=True)[1])]
        return make_asked(
            known.ids[tokens], known.names[tokens], [np.array([token]) for token in tokens], known.ids
        )
    if isinstance(genes, str):
        genes = [genes]
    named = isinstance(genes, Mapping)
    wanted = list(genes.items()) if named else [(None, one) for one in genes]
    if not wanted:
        raise ValueError("There is no gene to edit.")
    known.require(gene for _, one in wanted for gene in ([one] if isinstance(one, str) else map(str, one)))
    names, labels, tokens = [], [], []
    for name, one in wanted:
        members = [one] if isinstance(one, str) else [str(gene) for gene in one]
        found = np.array([known.find(gene) for gene in members], dtype=np.int64)
        if not len(found) or len(np.unique(found)) < len(found):
            raise ValueError(f"The set {name or members!r} has no gene, or one gene twice.")
        alone = len(found) == 1 and not named
        names.append(known.ids[found[0]] if alone else name or "+".join(members))
        labels.append(known.names[found[0]] if alone else names[-1])
        tokens.append(found)
    if repeated := pd.Index(names)[pd.Index(names).duplicated()].tolist():
        raise ValueError(f"{repeated[0]!r} is asked for twice.")
    return make_asked(names, labels, tokens, known.ids)


def make_asked(names, labels, tokens: list[np.ndarray], ids: np.ndarray, matched_to=None) -> Asked:
    """Table and tokens of edits."""
    table = pd.DataFrame(
        {
            "gene": np.asarray(names, dtype=object),
            "symbol": np.asarray(labels, dtype=object),
            "members": [";".join(ids[token]) for token in tokens],
            "n_genes": [len(token) for token in tokens],
            "matched_to": np.asarray([""] * len(tokens) if matched_to is None else matched_to, dtype=object),
        }
    )
    return Asked(table, tokens)


class _Known:
    """Names of genes, in the AnnData first and then in the vocabulary."""

    def __init__(self, adata: AnnData, model: MaxTokiModel) -> None:
        self.token = adata.var[_keys.TOKEN_ID].to_numpy()
        into = gene_columns(adata.var)
        vocab = model.vocab
        self.ids = np.full(vocab.size, "", dtype=object)
        self.ids[vocab.gene_ids] = vocab.gene_of_token[vocab.gene_ids]
        self.names = self.ids.copy()
        reference = symbol_of_gene()
        symbol = reference.reindex(self.ids[vocab.gene_ids]).to_numpy(dtype=object)
        self.names[vocab.gene_ids] = np.where(pd.isna(symbol), self.ids[vocab.gene_ids], symbol)
        self._vocabulary = {name: token for token, name in enumerate(self.names) if name}
        self._vocabulary |= {name: token for token, name in enumerate(self.ids) if name}
        own = symbols(adata)
        has = self.token >= 0
        self.names[self.token[has][::-1]] = own[has][::-1]
        columns = [adata.var[key] for key in (*SYMBOL_KEYS[::-1], _keys.ENSEMBL_ID) if key in adata.var]
        self._measured = {}
        # By any name of a gene: not by those of antibodies, and for each of its columns.
        is_gene, token = into >= 0, np.where(into >= 0, self.token[into], -1)
        for names in [*columns, adata.var_names]:
            names = names.astype(str)[is_gene][::-1]
            self._measured |= dict(zip(names, token[is_gene][::-1], strict=True))

    def require(self, genes: Iterable[str]) -> None:
        """Raise with all genes that are not known, and with what is nearly one of them."""
        missing = [gene for gene in genes if gene not in self._measured and gene not in self._vocabulary]
        if not missing:
            return
        names = [name for name in {**self._measured, **self._vocabulary} if not name.startswith("ENSG")]
        close = [get_close_matches(gene.upper(), names, n=1, cutoff=0.8) for gene in missing[:_SHOWN]]
        asked = [
            f"{gene!r}" + (f" ({found[0]}?)" if found else "")
            for gene, found in zip(missing, close, strict=False)
        ]
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise KeyError(
            f"Did not find {'the gene' if len(missing) == 1 else 'these genes:'} {', '.join(asked)}{more}, neither in the AnnData nor "
            "in the model's vocabulary. Give human symbols, Ensembl ids or .var_names."
        )

    def find(self, gene: str) -> int:
        """Token of a gene."""
        token = self._measured.get(gene, self._vocabulary.get(gene))
        if token < 0:
            raise ValueError(f"The model's vocabulary lacks the gene {gene!r}: it cannot read it.")
        return int(token)
