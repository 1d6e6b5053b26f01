"""Sums of `mt.tl.attention`, read back and put together by donor."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from ..results.head_sums import gene_sums
from ..results.store import read_result

FLAT = 1e-5  # what differs by less does so by rounding


class DonorSums(NamedTuple):
    """Sums of the genes for each donor (or block of cells)."""

    mass: np.ndarray
    """float64, donors x genes x heads."""
    expected: np.ndarray
    n_tokens: np.ndarray
    """float64, donors x genes."""
    could_attend: np.ndarray
    donors: list[str]

    def total(self, rows=slice(None)) -> DonorSums:
        """Sums of some donors together, as one."""
        parts = (part[rows].sum(axis=0, keepdims=True) for part in self[:4])
        return DonorSums(*parts, ["all"])

    @property
    def rates(self) -> np.ndarray:
        """Mass over that of tokens at the same positions; NaN for genes that are not seen."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.expected > 0, self.mass / self.expected, np.nan)

    def halves(self, seed: int) -> list[np.ndarray]:
        """Two random halves of the donors."""
        order = np.random.default_rng([seed, 7]).permutation(len(self.donors))
        return [np.sort(order[::2]), np.sort(order[1::2])]


def read_attention(adata: AnnData, key: str, *, prompts: bool = False) -> dict:
    """Result of `mt.tl.attention`, or say that it has to be run."""
    return read_result(adata, key, f"mt.tl.attention(adata, model{', key=...' if prompts else ''})")


def donor_sums(result: dict, group: str | None) -> DonorSums:
    """Sums of each donor, over all groups or of one."""
    units, sums = result["units"], gene_sums(result)
    used = np.arange(len(units))
    if group is not None:
        used = np.flatnonzero((units["group"].astype(str) == group).to_numpy())
        if not len(used):
            raise ValueError(
                f"There is no group {group!r}; there are {', '.join(sorted(set(units['group'])))}."
            )
    code, names = pd.factorize(units["donor"].astype(str).to_numpy()[used], sort=True)
    parts = [np.zeros((len(names), *part.shape[1:])) for part in sums]
    for unit, donor in zip(used, code, strict=True):
        for total, part in zip(parts, sums, strict=True):
            total[donor] += part[unit]
    return DonorSums(*parts, list(names))


def unit_name(params: dict) -> str:
    """What is resampled."""
    return "donor" if params["donors_known"] else "block of cells"
