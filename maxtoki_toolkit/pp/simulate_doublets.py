"""Doublets whose two cells are known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from .. import _keys
from .._recipes import Checked
from .._validate import require_rank, require_unique_names
from ..results.store import write_result
from ._columns import find_donors
from ._design import get_labels, known_cells
from ._doublets import add_counts, draw_pairs, merge_ranks, uniform
from ._ranked_counts import ranked_counts, source_of

KINDS = ("counts", "ranks")


@dataclass(frozen=True, kw_only=True)
class DoubletSimulation(Checked):
    """How doublets are simulated, by `mt.pp.simulate_doublets` and for `mt.tl.doublets`.

    Attributes
    ----------
    kind
        "counts" sums the raw counts of both cells and keeps a share of the molecules; "ranks" merges the
        ranked genes of both, for cells that have no counts, as those of `mt.tl.generate`.
    n_doublets
        Doublets, by default as many as there are cells.
    same_type
        Share (0-1) of the doublets whose cells are of one type; those of the others are of two types. By
        default any two cells meet, whatever their types (in `mt.tl.doublets` it is a half where types are
        known).
    capture
        Lowest and highest share of both cells' molecules that a droplet yields; drawn evenly for each
        doublet.
    """

    kind: str = "counts"
    n_doublets: int | None = None
    same_type: float | None = None
    capture: tuple[float, float] = (0.5, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in KINDS:
            raise ValueError(f"There are no doublets of {self.kind!r}; choose from {', '.join(KINDS)}.")
        if self.same_type is not None and not 0 <= self.same_type <= 1:
            raise ValueError(f"same_type must be a share from 0 to 1, got {self.same_type}.")
        low, high = self.capture
        if not 0 < low <= high <= 1:
            raise ValueError(f"capture must be two shares, 0 < low <= high <= 1; got ({low}, {high}).")

    def shares(self, n: int, seed: int) -> np.ndarray:
        """Share of the molecules that each of n droplets yields."""
        low, high = self.capture
        return low + (high - low) * uniform(seed, np.arange(n), 2)


def simulate_doublets(
    adata: AnnData,
    *,
    groupby: str | None = None,
    donor_key: str | None = None,
    simulation: DoubletSimulation | None = None,
    layer: str | None = None,
    rng: int = 0,
) -> AnnData:
    """Put pairs of cells into one droplet.

    Parameters
    ----------
    adata
        Cells; with raw counts, or rank-encoded.
    groupby
        Column of `.obs` with the cell type.
    donor_key
        Column of `.obs` with the donor (or the sample): only its own cells meet. Guessed
        from the names in `.obs`; without one, any two cells do.
    simulation
        Of counts or ranks, how many and which: `mt.pp.DoubletSimulation(n_doublets=100, same_type=0.5)`.
    layer
        Layer that holds the raw counts; by default what was ranked, or `.X`.
    rng
        Seed. A doublet depends on it and on its number: neither on how many are simulated, nor on the order
        of the cells.

    Returns
    -------
    AnnData with one row a doublet and the genes of `adata`; `.X` holds its counts (CSR, float32,
    whole numbers), or `.layers["rank"]` its ranks, which `mt.tl.embed` reads.

    `.obs["parent_1"]`, `.obs["parent_2"]`
        Names of the two cells.
    `.obs["type_1"]`, `.obs["type_2"]`, `.obs["same_type"]`
        Their types, and whether these are the same; with `groupby`.
    `.obs[donor_key]`
        Their donor; with `donor_key`.
    `.obs["capture"]`
        Probability with which each molecule was kept; of counts.

    Raises
    ------
    KeyError
        If a column, or for ranks `.layers["rank"]`, is missing.
    ValueError
        If the values are not raw counts, a share is out of range, or no two cells can meet.

    Notes
    -----
    A droplet with two cells yields more molecules than one with a single cell, but not the sum of both: it
    has as many barcoded primers as any other, and it is sequenced no deeper. Detectors differ in what they
    assume: the sum (capture 1, Scrublet; Wolock et al., Cell Systems 2019), the mean of both cells (0.5,
    DoubletFinder; McGinnis et al., Cell Systems 2019), or some of each and what is between (scDblFinder;
    Germain et al., F1000Research 2021). Doublets that are known by two hashtags (four cell lines; Stoeckius
    et al., Genome Biology 2018) have 1.26 times the counts of a singlet (medians of 216 and 1,701 cells over
    2,000 genes), a capture of 0.63. Nothing says that another experiment is like it, hence the range.
    Thinning each gene's count binomially is what random loss of molecules does to it.

    A gene's place in the merged ranks is that of the sum, over both cells, of -log((rank - 1/2) / genes of
    the cell): expression as if it were exponentially distributed over the genes of a cell. On simulated cells
    and heart nuclei this comes closest, of the functions tried, to the ranks of doublets of the counts
    (correlation 0.92 and 0.78).

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.load("heart_nuclei")
    >>> how = mt.pp.DoubletSimulation(n_doublets=100, same_type=0.5)
    >>> doublets = mt.pp.simulate_doublets(adata, groupby="cell_type", simulation=how)
    >>> int(doublets.obs["same_type"].sum())
    50
    """
    require_unique_names(adata)
    simulation = simulation or DoubletSimulation()
    require_types(groupby, simulation.same_type)
    donor_key = find_donors(adata.obs, donor_key)
    cells, _ = known_cells(adata, groupby, donor_key)
    n, counted = simulation.n_doublets or cells.n_obs, simulation.kind == "counts"
    if not counted:
        require_rank(cells)

    types, type_names = read_codes(cells, groupby)
    donors, donor_names = read_codes(cells, donor_key)
    first, second = draw_pairs(
        cells.obs_names.to_numpy(dtype=str),
        np.zeros(cells.n_obs, dtype=np.int64) if donors is None else donors,
        types,
        n,
        same_type=simulation.same_type,
        seed=rng,
    )
    names = cells.obs_names.to_numpy()
    obs = pd.DataFrame({"parent_1": names[first], "parent_2": names[second]})
    obs.index = [f"doublet_{i}" for i in range(n)]
    if types is not None:
        obs["type_1"], obs["type_2"] = type_names[types[first]], type_names[types[second]]
        obs["same_type"] = types[first] == types[second]
    if donors is not None:
        obs[donor_key] = donor_names[donors[first]]

    if counted:
        obs["capture"] = simulation.shares(n, rng)
        counts = ranked_counts(cells, layer, whole=True)
        made = add_counts(counts, first, second, obs["capture"].to_numpy(), seed=rng)
        doublets = AnnData(made, obs=obs, var=adata.var.copy())
    else:
        ranks = merge_ranks(sp.csr_matrix(cells.layers[_keys.RANK]), first, second)
        obs[_keys.N_RANKED] = np.diff(ranks.indptr).astype(np.int32)
        doublets = AnnData(obs=obs, var=adata.var.copy(), layers={_keys.RANK: ranks})
    # What is known of the genes (and, for ranks, of the encoding) still holds.
    for key in (_keys.MAP_GENES, *([] if counted else [_keys.ENCODING])):
        if key in adata.uns:
            doublets.uns[key] = adata.uns[key]
    params = {
        "kind": simulation.kind,
        "groupby": groupby,
        "same_type": simulation.same_type,
        "donor_key": donor_key,
        "seed": rng,
    }
    if counted:
        params |= {"capture": simulation.capture, "layer": source_of(adata, layer)[0] or "X"}
    write_result(doublets, _keys.SIMULATED, params)
    return doublets


def require_types(groupby: str | None, same_type: float | None) -> None:
    """Raise if there are no types to draw a share of."""
    if same_type is not None and groupby is None:
        raise ValueError("same_type needs the cell types. Give groupby, the column of .obs that holds them.")


def read_codes(adata: AnnData, key: str | None) -> tuple[np.ndarray | None, np.ndarray | None]:
    """A column as integers in the order of its values, and these values; nothing for no column."""
    if key is None:
        return None, None
    names, codes = np.unique(get_labels(adata, key).astype(str), return_inverse=True)
    return codes, names.astype(object)
