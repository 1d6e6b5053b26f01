"""What cells of a target state would look like: edited genes are held, and all others resampled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from .. import _keys
from .._features import symbols
from ..models.edits import ranks_to_move
from ..models.model import MaxTokiModel
from ..results.store import write_result
from ._cell_sampling import sample_ranks
from ._steering import RANKS, column_of_token, find_columns, get_steered, warn_of_chains
from .recipes import Cells, CellSampling


def steer_cells(
    adata: AnnData,
    model: MaxTokiModel,
    *,
    genes: Sequence[str] | None = None,
    mode: str = "delete",
    k: int | None = None,
    readout: str = "timelapse",
    on: Cells | None = None,
    sampling: CellSampling | None = None,
    key: str | None = None,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Edit genes in cells, hold them, and resample the order of all other genes on the way to a target state.

    Parameters
    ----------
    adata
        Rank-encoded cells.
    model
        Model; one with temporal training for `readout="timelapse"`.
    genes
        Genes that are edited and held (symbols, Ensembl ids or `.var_names`); none by default.
    mode, k
        What is done to them, and by how many ranks; see `mt.tl.search_gene_sets`.
    readout
        What the cells are led to: a shorter predicted "timelapse", the "embedding" of target cells, or what
        makes these likely ("likelihood"); see `mt.tl.search_gene_sets`.
    on
        Cells to steer, by default all but the target cells, and for "timelapse" all query cells; the target
        cells; and the donors of cells (prompts know theirs). See `mt.tl.Cells`. Target cells must not be
        cells by which the result is judged later: steered cells are led to them.
    sampling
        How many cells, chains and steps, and how genes are proposed; see `mt.tl.CellSampling`.
    key
        Key in `.uns` of the prompts, by default "prompts".
    rng
        Seed. The chains of a cell depend on it, on the cell's name and on the number of the chain, not on
        other cells.
    key_added
        Key in `.uns`, by default "steer".

    Returns
    -------
    `None`. Writes to `.uns["steer"]` the tables

    `effects`
        A row a measure and `state` ("start"; "abrupt", the edit alone; "unsteered", resampled under the edit
        but not led; "steered"); distances are in `params["unit"]`:

        `measure`
            "log_likelihood", in nats a gene, or "distance".
        `mean`, `mean_low`, `mean_high`
            Mean over cells, with its 95% interval over donors or cells.
        `difference`, `difference_low`, `difference_high`, `p_value`, `q_value`
            Paired difference from "abrupt", with the same.
        `n_units`
            Donors, or cells where no donor is known.

    `genes`
        A row a gene (`gene`, `symbol`): `level_start`, `level_abrupt`, `level_unsteered` and `level_steered`,
        means over cells of 1 for the highest rank and 0 for genes that are not read, and whether it was
        `held`. `mt.get.steer_genes` has the largest changes first.
    `cells`
        A row a `cell`, with its `donor`: the log-likelihood, nats a gene (`log_likelihood_start`,
        `log_likelihood_abrupt`, `log_likelihood_unsteered`, `log_likelihood_steered`), and distance
        (`distance_start`, `distance_abrupt`, `distance_unsteered`, `distance_steered`) of it in each state,
        of the latter two means over the kept draws; `acceptance` of proposals, and the share that `moved` the
        chain; `rhat` and `effective_size` of the log target over the steered chains; whether the edit
        `took_effect`.
    `trace`
        A row a step of a chain: `cell`, `chain`, `steered` (False for the chain that is not led), `step` (0
        is the start), `log_likelihood` in nats a gene, `distance`, and whether the step's proposal was
        `accepted`.

    and

    `.layers["steer_rank"]`
        Ranks of the steered cells, a draw: the last state of the first chain; nothing for the other cells.
    `.layers["steer_level"]`
        Mean over the kept draws of each gene's level: 1 for the highest rank, falling evenly to 0 for genes
        that the model does not read.

    Raises
    ------
    KeyError
        If the cells are not rank-encoded, or prompts, a gene or a column are not there.
    ValueError
        If a setting is unknown or has no meaning here.

    Notes
    -----
    Metropolis-Hastings draws the order x of a cell's genes with probability proportional to exp((log p(x) -
    strength d(x)) / temperature), where log p is the model's log-likelihood and d the distance to the target.
    Proposals are the model's own conditionals; one is accepted with the ratio of the target times that of the
    probabilities of the way back and of the way there, both of which are known, so that the draws are exact
    in the long run; R-hat and effective sizes (rank-normalised, Vehtari et al. 2021) say whether they have
    come that far. It is the autoregressive counterpart of the sampler of CellxPert (arXiv 2605.00930), which
    draws masked expression bins; its target, steps, blocks and number of anchors are not known to us, so ours
    are choices. Our distance for "embedding" is Euclidean, to the nearest anchor, in units of the mean
    distance of the target's own cells from theirs.

    Edits alone take a cell where no cell is. The log-likelihood of the edited cell, beside that of the cell
    as it was and of steered ones, says how far. "unsteered" is the null: a chain for each cell under the same
    edit that nothing leads.

    At temperature 1 draws are as likely as the model's own cells usually are. If it is not sure of itself, as
    after little training, that is less likely than a real cell with an edit: lower the temperature, or
    compare with "unsteered".

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.sample_prompts(adata, time_key="age_months", groupby="cell_type", n_prompts=20, donor_key="donor_id")
    >>> sampling = mt.tl.CellSampling.of(n_cells=2, n_steps=2, n_chains=1)
    >>> mt.tl.steer_cells(adata, model, genes=["FOXO3"], sampling=sampling)
    >>> mt.get.table(adata, "steer")["state"].unique().tolist()
    ['start', 'abrupt', 'unsteered', 'steered']
    """
    k = int(ranks_to_move(mode, k, RANKS)[0])
    sampling = sampling or CellSampling()
    steered = get_steered(
        adata,
        model,
        on,
        readout=readout,
        n_cells=sampling.n_cells,
        n_anchors=sampling.n_anchors,
        key=key,
        rng=rng,
    )
    held = find_columns(adata, model, () if genes is None else genes)
    token = adata.var[_keys.TOKEN_ID].to_numpy(np.int64)
    strength = sampling.chains.strength or steered.strength
    found = sample_ranks(
        steered,
        model,
        token[held],
        np.unique(token[token >= 0]),
        sampling,
        mode=mode,
        k=k,
        strength=strength,
        seed=rng,
    )
    column = column_of_token(adata, model)
    name, rows = key_added or _keys.STEER, steered.rows
    adata.layers[f"{name}_rank"] = _rank_layer(found.last, rows, column, adata.shape)
    adata.layers[f"{name}_level"] = _level_layer(found.level, rows, column, adata.shape)
    params = {
        **sampling.flat(),
        "strength": strength,
        "genes": adata.var_names[held].tolist(),
        "mode": mode,
        "k": k,
    }
    write_result(
        adata,
        _keys.STEER,
        {**model.params, **params, **steered.params},
        key_added=key_added,
        effects=found.effects,
        genes=_gene_table(adata, found.genes, column, held),
        trace=found.trace,
        cells=found.cells,
    )
    warn_of_chains(found.cells["rhat"].dropna().median())


def _gene_table(adata: AnnData, levels: pd.DataFrame, column: np.ndarray, held: np.ndarray) -> pd.DataFrame:
    """Levels of the genes that any cell has in any state, with their names."""
    at = column[levels["token"]]
    table = levels[at >= 0].drop(columns="token").reset_index(drop=True)
    at = at[at >= 0]
    table.insert(0, "gene", adata.var_names[at].to_numpy(dtype=object))
    table.insert(1, "symbol", symbols(adata)[at])
    table["held"] = np.isin(at, held)
    return table[table.filter(like="level_").max(axis=1) > 0].reset_index(drop=True)


def _rank_layer(last: np.ndarray, rows: np.ndarray, column: np.ndarray, shape) -> sp.csr_matrix:
    """Ranks of some cells."""
    row, at = np.nonzero(last >= 0)
    values = (at + 1).astype(np.uint16)
    return sp.csr_matrix((values, (rows[row], column[last[row, at]])), shape=shape)


def _level_layer(level: sp.csr_matrix, rows: np.ndarray, column: np.ndarray, shape) -> sp.csr_matrix:
    """Levels of some cells, in the AnnData's columns."""
    level = level.tocoo()
    known = column[level.col] >= 0
    return sp.csr_matrix((level.data[known], (rows[level.row[known]], column[level.col[known]])), shape=shape)
