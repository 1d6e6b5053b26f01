"""Settings of searches, chains and screens that few need to change, in groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .._names import require_choice
from .._recipes import Checked
from ..models.sampling import PROPOSALS

SEARCHES = ("greedy", "beam", "metropolis")


# No equality: masks may be arrays, which have none that is True or False.
@dataclass(frozen=True, kw_only=True, eq=False)
class Cells(Checked):
    """Cells to edit, and cells of the state that they are to go to.

    Attributes
    ----------
    use
        Cells to edit: boolean column of `.obs`, or one boolean a cell. All by default; where cells are
        steered, all but those of the target state.
    target
        Cells of the target state, given in the same way.
    groupby, donor_key
        Columns of `.obs` with the group and the donor of a cell; that of the donor is guessed from its name.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> mt.tl.Cells(target="young", donor_key="donor_id").donor_key
    'donor_id'
    """

    use: str | Sequence[bool] | None = None
    target: str | Sequence[bool] | None = None
    groupby: str | Sequence[str] | None = None
    donor_key: str | None = None


@dataclass(frozen=True, kw_only=True)
class Chains(Checked):
    """Chains of Metropolis-Hastings.

    Attributes
    ----------
    n_steps, n_chains, burn_in
        Steps; chains (of each cell, where cells are resampled); share of the steps that is left out.
    temperature
        Of the target distribution.
    strength
        Nats that a unit of the distance is worth: by default 1 for "timelapse" (a unit of time), 100 for the
        other readouts.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> mt.tl.Chains(n_steps=1000).burn_in
    0.5
    """

    n_steps: int = 200
    n_chains: int = 4
    burn_in: float = 0.5
    temperature: float = 1.0
    strength: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.burn_in == 1:
            raise ValueError("burn_in must be below 1: no step would be left.")
        if self.temperature == 0:
            raise ValueError("temperature must be above 0.")
        if self.strength == 0:
            raise ValueError("strength must be above 0. The chains that are not led come with the result.")


@dataclass(frozen=True, kw_only=True)
class GeneSetSearch(Checked):
    """How sets of genes are searched, and how what was found is judged.

    Attributes
    ----------
    method
        "greedy" or "beam": the gene that helps most is added to the best set, or to the `beam_width` best.
        "metropolis": Metropolis-Hastings over sets.
    max_size, beam_width
        Largest set; sets of each size that "beam" goes on from.
    n_candidates
        Genes that are tried, those found in most of the cells, where none are named.
    n_cells
        Cells to edit at most, drawn at random; `None` for all.
    n_anchors
        Cells that stand for the target state: real cells nearest to the means of so many clusters (k-means)
        of their embeddings.
    held_out
        Share of the donors (cells, where no donor is known) that are not searched but give the estimates.
    n_null
        Random sets of each size, drawn from the candidates.
    likelihood_weight
        Weight of the edited cells' log-likelihood in the score; 0 for the distance alone.
    chains
        Those of "metropolis", see `Chains`; their `strength` also says what a unit of distance is worth
        beside the log-likelihood.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> mt.tl.GeneSetSearch.of(method="metropolis", n_steps=500).chains.n_steps
    500
    """

    method: str = "beam"
    max_size: int = 3
    beam_width: int = 5
    n_candidates: int = 50
    n_cells: int | None = 20
    n_anchors: int = 10
    held_out: float = 0.5
    n_null: int = 50
    likelihood_weight: float = 0.0
    chains: Chains = field(default_factory=Chains)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("method", self.method, SEARCHES)
        if self.held_out == 1:
            raise ValueError("held_out must be below 1: no cell would be left to search with.")


@dataclass(frozen=True, kw_only=True)
class CellSampling(Checked):
    """How the genes of cells are resampled.

    Attributes
    ----------
    n_cells
        Cells to steer at most, drawn at random; `None` for all.
    n_anchors
        Cells that stand for the target state, see `GeneSetSearch`.
    proposal, block_size
        "block" draws up to `block_size` neighbouring genes anew, "suffix" all to the end, "position" one,
        which changes places with the gene it replaces.
    proposal_temperature
        Of the conditionals that are proposed from, which leaves the target distribution as it is.
    chains
        See `Chains`.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> mt.tl.CellSampling.of(n_cells=4, n_steps=1000).chains.n_steps
    1000
    """

    n_cells: int | None = 20
    n_anchors: int = 10
    proposal: str = "block"
    block_size: int = 8
    proposal_temperature: float = 1.0
    chains: Chains = field(default_factory=Chains)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("proposal", self.proposal, PROPOSALS)
        if self.proposal_temperature == 0:
            raise ValueError("proposal_temperature must be above 0.")


@dataclass(frozen=True, kw_only=True)
class ScreenFile(Checked):
    """Where the effects of a large screen are written.

    Attributes
    ----------
    path
        `.csv`, `.csv.gz` or `.parquet`.
    share_array
        Share the parts out over the tasks of the SLURM array that this process is of, too.
    overwrite
        Replace a screen of other settings or cells. What else is there stays in any case.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> mt.tl.ScreenFile(path="effects.parquet").overwrite
    False
    """

    path: str | Path
    share_array: bool = False
    overwrite: bool = False
