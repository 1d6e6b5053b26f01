"""Kinds of features beside genes: which columns they are, and what their values are ranked by."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import scipy.sparse as sp

from .._features import gene_features, type_columns
from ..models.vocabulary import MODALITIES, RNA, Vocabulary
from ..stats.expression import per_ten_thousand
from ._rank import rank_csr

ADT, ATAC = MODALITIES[1:]
_ADT = {"antibody", "antibodies", "antibodycapture", "adt", "protein", "proteins", "prot"}
_ATAC = {"peak", "peaks", "atac"}
_DEVIATIONS = 2  # of the log, above the mean of cells without a protein
_MOST_READ = 20_000  # cells that the background of a protein is read from


def kinds_of(var: pd.DataFrame) -> np.ndarray:
    """Kind of each column: "rna", "adt", "atac", or "" for what is none of them."""
    kind = np.where(gene_features(var), RNA, "").astype(object)
    names = var.index.astype(str)
    for other in MODALITIES[1:]:
        kind[names.str.startswith(f"{other}:")] = other
    for column in type_columns(var):
        said = var[column].astype(str).str.lower().map(lambda text: re.sub(r"[\W_]", "", text))
        kind[(said.isin(_ADT) & (kind != RNA)).to_numpy()] = ADT
        kind[(said.isin(_ATAC) & (kind != RNA)).to_numpy()] = ATAC
    return kind


def names_of(var: pd.DataFrame, kinds: np.ndarray) -> pd.Index:
    """Names of features as a vocabulary has them: their kind, a colon, and the name in `.var_names`."""
    bare = [name.removeprefix(f"{kind}:") for name, kind in zip(var.index.astype(str), kinds, strict=True)]
    return pd.Index([f"{kind}:{name}" for name, kind in zip(bare, kinds, strict=True)])


def feature_tokens(token: np.ndarray, var: pd.DataFrame, vocab: Vocabulary) -> np.ndarray:
    """Tokens of the genes, with those of the features of other kinds."""
    kinds = kinds_of(var)
    others = np.isin(kinds, MODALITIES[1:])
    return np.where(others, vocab.token_id(names_of(var, kinds)), token).astype(np.int32)


def protein_background(counts: sp.csr_matrix) -> np.ndarray:
    """Counts per ten thousand up to which each protein may be background: mean log and two standard deviations of the lower class.

    The two classes of cells are those whose means lie furthest apart for their sizes (Otsu, IEEE Trans. Syst.
    Man Cybern. 1979).
    """
    some = np.unique(np.linspace(0, counts.shape[0] - 1, min(_MOST_READ, counts.shape[0])).astype(int))
    values = np.sort(np.log1p(per_ten_thousand(counts[some], np.float64).toarray()), axis=0)
    below = np.arange(1, len(values))[:, None]
    above = len(values) - below
    total, squares = values.cumsum(axis=0), (values**2).cumsum(axis=0)
    low = total[:-1] / below
    apart = below * above * (low - (total[-1] - total[:-1]) / above) ** 2
    if not len(apart):
        return np.zeros(counts.shape[1])
    sd = np.sqrt(np.maximum(squares[:-1] / below - low**2, 0))
    at = apart.argmax(axis=0)[None]
    return np.expm1(np.take_along_axis(low + _DEVIATIONS * sd, at, axis=0)[0])


def values_of(kind: str, counts: sp.csr_matrix, background: np.ndarray | None) -> sp.csr_matrix:
    """What is ranked: proteins above their background, peaks that are open."""
    if kind == ATAC:
        return sp.csr_matrix(counts > 0, dtype=np.float64)
    values = per_ten_thousand(counts, np.float64).toarray() - background
    return sp.csr_matrix(np.maximum(values, 0))


def rank_kind(
    kind: str, counts: sp.csr_matrix, medians: np.ndarray, background: np.ndarray | None
) -> sp.csr_matrix:
    """Ranks of the features of one kind in each cell, from 1."""
    values = values_of(kind, counts, background)
    values.sort_indices()
    return rank_csr(values, medians)
