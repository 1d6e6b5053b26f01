"""Cells with some of their kinds of features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from .. import _keys
from .._validate import require_rank, require_tokens
from ..models.vocabulary import MODALITIES
from ._modalities import kinds_of


def keep_modalities(cells: AnnData, *, modalities: str | Sequence[str]) -> AnnData:
    """Take some kinds of features of rank-encoded cells, for functions that are to read these alone.

    Parameters
    ----------
    cells
        Rank-encoded cells with several kinds of features.
    modalities
        "rna", "adt", "atac", or several of them.

    Returns
    -------
    The cells that have any, with these features; ranks within each kind stay as they are.

    Raises
    ------
    ValueError
        If there is no such kind, or no cell has any.

    Examples
    --------
    >>> import pandas as pd, maxtoki_toolkit as mt
    >>> adata = mt.datasets.load("heart_nuclei")[:3].copy()
    >>> counts = pd.DataFrame({"CD3": [50, 3, 20], "CD19": [4, 70, 9]}, index=adata.obs_names)
    >>> joint = mt.pp.join_modalities(adata, proteins=counts)
    >>> vocab = mt.load_model("demo").vocab.with_modalities({"adt": {"CD3": 2.5, "CD19": 1.0}})
    >>> mt.pp.rank_value_encode(joint, vocab)
    >>> mt.pp.keep_modalities(joint, modalities="adt").var_names.tolist()
    ['adt:CD3', 'adt:CD19']
    """
    require_rank(cells)
    require_tokens(cells)
    wanted = [modalities] if isinstance(modalities, str) else list(modalities)
    kinds = kinds_of(cells.var)
    for kind in wanted:
        if kind not in MODALITIES or kind not in kinds:
            there = [k for k in MODALITIES if k in kinds]
            raise ValueError(f"There are no features of kind {kind!r}; there are {', '.join(there)}.")
    part = cells[:, np.isin(kinds, wanted)].copy()
    n = np.diff(sp.csr_matrix(part.layers[_keys.RANK]).indptr)
    if not n.any():
        raise ValueError(f"No cell has ranked features of {' or '.join(wanted)}.")
    part.obs[_keys.N_RANKED] = n.astype(np.int32)
    return part[n > 0].copy()
