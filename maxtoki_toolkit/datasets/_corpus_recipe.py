"""Settings of a corpus from a store of cells, in groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .._recipes import Checked

# What is known of the corpora of the paper: normal cells, no cell lines, no malignant cells; and each cell
# once.
KEEP = {
    "is_primary_data": True,
    "disease": "normal",
    "tissue_type": "tissue",
    "assay": ("10x*", "Drop-seq", "inDrop", "Seq-Well*"),
}
DROP = {"cell_type": ("malignant cell", "neoplastic cell", "*cancer*", "*tumor*")}


@dataclass(frozen=True, kw_only=True)
class CellFilters(Checked):
    """Which cells are taken.

    Attributes
    ----------
    keep
        Values that a column has to have, one or a list; "10x*" is all that begins so. Beside those of
        `mt.datasets.KEEP`: primary data, disease "normal", from tissues (no cell lines, organoids or
        cultures), droplet protocols. `None` (null) takes a column out of them.
    drop
        Values that a column may not have. Beside those of `mt.datasets.DROP`: malignant cells.
    min_genes
        Fewest genes of a cell, by the column `nnz` of the Census.
    known_age
        Leave out cells whose age cannot be known.
    """

    keep: Mapping[str, Any] = field(default_factory=dict)
    drop: Mapping[str, Any] = field(default_factory=dict)
    min_genes: int | None = None
    known_age: bool = False

    @property
    def rules(self) -> list[tuple[str, Any, bool]]:
        """Column, values, and whether they are kept, in the order in which they are asked for."""
        keep, drop = {**KEEP, **self.keep}, {**DROP, **self.drop}
        rules = [(column, values, True) for column, values in keep.items()]
        rules += [(column, values, False) for column, values in drop.items()]
        return [rule for rule in rules if rule[1] is not None]


@dataclass(frozen=True, kw_only=True)
class CellBalance(Checked):
    """How many cells and donors of a kind are taken; which ones is random. A donor who is of two ages counts as two.

    Attributes
    ----------
    balance_sex
        As many women as men in each decade of age.
    max_donors
        Most donors of one sex and decade.
    cells_per_donor
        Most cells of a donor.
    max_tissue_share
        Largest share of the cells that one tissue may have; the paper's is 25%. 1 for any.
    seed
        Seed of the random choice.
    """

    balance_sex: bool = False
    max_donors: int | None = None
    cells_per_donor: int | None = None
    max_tissue_share: float = 0.25
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class StoreColumns(Checked):
    """Where things are in the store; the defaults are those of the Census.

    Attributes
    ----------
    donor_key, dataset_key
        Columns of donors and of data sets; donors of two data sets are never the same one. `dataset_key` may
        be missing.
    sex_key, time_key, tissue_key
        Columns of sex, of age (text as `mt.pp.parse_age` reads it, or numbers with the unit in the column's
        name) and of tissue.
    measurement, layer
        Where the raw counts are: `ms[measurement].X[layer]`.
    """

    donor_key: str = "donor_id"
    dataset_key: str = "dataset_id"
    sex_key: str = "sex"
    time_key: str = "development_stage"
    tissue_key: str = "tissue_general"
    measurement: str = "RNA"
    layer: str = "raw"


@dataclass(frozen=True, kw_only=True)
class CorpusRecipe(Checked):
    """Settings of `mt.datasets.census`, apart from the store and where it is written to.

    Attributes
    ----------
    filters, balance, columns
        See `CellFilters`, `CellBalance` and `StoreColumns`.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> recipe = mt.datasets.CorpusRecipe.of(keep={"tissue_general": ["heart", "lung"]}, max_tissue_share=0.5)
    >>> recipe.balance.max_tissue_share
    0.5
    """

    filters: CellFilters = field(default_factory=CellFilters)
    balance: CellBalance = field(default_factory=CellBalance)
    columns: StoreColumns = field(default_factory=StoreColumns)
