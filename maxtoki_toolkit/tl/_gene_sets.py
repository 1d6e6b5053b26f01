"""Gene sets by name or by their genes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from .._reference import transcription_factors

MIN_GENES = 3
TRANSCRIPTION_FACTORS = "TF"


def find_members(genes: pd.DataFrame, wanted: str | Sequence[str], name: str) -> np.ndarray:
    """Which genes (columns `gene`, `ensembl_id`, `symbol`) are in a set; "TF" for the human transcription factors."""
    if isinstance(wanted, str):
        if wanted != TRANSCRIPTION_FACTORS:
            raise KeyError(
                f"There is no gene set {wanted!r}. Give 'TF' for the transcription factors, or the genes themselves."
            )
        wanted = transcription_factors()
    wanted = {str(gene) for gene in wanted}
    columns = [c for c in ("gene", "ensembl_id", "symbol") if c in genes]
    member = genes[columns].astype(str).isin(wanted).any(axis=1).to_numpy()
    if (n := int(member.sum())) < MIN_GENES:
        raise ValueError(
            f"The gene set {name!r} has {n} of its {len(wanted)} genes among those that the model reads of these cells; "
            f"at least {MIN_GENES} are needed. Give symbols, Ensembl ids or .var_names."
        )
    return member
