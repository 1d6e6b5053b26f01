"""Which genes are paralogues, from what ships: the stem of the symbol, and a common orthologue in the mouse."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components

from .._reference import orthologs_of_mouse

# Names given for want of a better one: genes that share them are not related.
_PLACEHOLDERS = {"TMEM", "CCDC", "FAM", "KIAA", "LINC", "LOC", "ORF", "MIR", "SNHG", "SMIM", "PRR", "LRRC"}
_OPEN_FRAME = re.compile(r"C(?:\d+|X|Y)ORF\d+", re.IGNORECASE)


def family_name(symbol: str) -> str:
    """Stem of a gene's symbol; the symbol itself where it names no family.

    Examples
    --------
    >>> [family_name(s) for s in ("RPL3L", "ZNF101", "B4GALT1", "HLA-DRA", "FAM20A", "C1orf43", "TTN")]
    ['RPL', 'ZNF', 'B4GALT', 'HLA', 'FAM20', 'C1orf43', 'TTN']
    """
    if symbol.startswith("ENSG") or _OPEN_FRAME.fullmatch(symbol):
        return symbol
    head = symbol.split("-")[0]
    if "-" in symbol and len(head) > 1 and head.isalpha():
        return f"{head}-" if head == "MT" else head
    stem = re.match(r"[A-Za-z]*", symbol)[0]
    if stem.upper() in _PLACEHOLDERS:
        return re.match(r"[A-Za-z]+\d*", symbol)[0]
    if len(stem) == 1:
        stem = re.match(r"[A-Za-z]\d+[A-Za-z]*", symbol)
        return stem[0] if stem else symbol
    return stem or symbol


def gene_families(ids: np.ndarray, symbols: np.ndarray) -> np.ndarray:
    """Family of each gene, int64 from 0 in the order of first appearance.

    Two genes are of one family where the stems of their symbols are the same, where they have a mouse
    orthologue in common (Ensembl, HCOP), or where others join them so. Too large a family costs little: its
    genes are never in training and test at once.
    """
    genes = pd.Index(ids.astype(str))
    pairs = orthologs_of_mouse()
    pairs = pairs[pairs["human"].isin(genes)]
    stem = pd.factorize(np.array([family_name(str(symbol)) for symbol in symbols], dtype=object))[0]
    mouse = pd.factorize(pairs["gene"])[0]
    n, n_stems = len(genes), stem.max(initial=-1) + 1
    rows = np.concatenate([np.arange(n), genes.get_indexer_for(pairs["human"])])
    columns = np.concatenate([n + stem, n + n_stems + mouse])
    size = n + n_stems + mouse.max(initial=-1) + 1
    graph = sp.coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(size, size))
    return pd.factorize(connected_components(graph, directed=False)[1][:n])[0].astype(np.int64)
