"""Which small sets of genes, edited together, move cells towards a target state."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from anndata import AnnData

from .. import _keys
from .._features import symbols
from ..models.edits import ranks_to_move
from ..models.model import MaxTokiModel
from ..results.store import write_result
from ._gene_set_search import Edits, search_sets
from ._steering import RANKS, Steered, column_of_token, find_columns, get_steered, warn_of_chains
from .recipes import Cells, GeneSetSearch


def search_gene_sets(
    adata: AnnData,
    model: MaxTokiModel,
    *,
    genes: Sequence[str] | None = None,
    mode: str = "delete",
    k: int | None = None,
    readout: str = "timelapse",
    on: Cells | None = None,
    search: GeneSetSearch | None = None,
    key: str | None = None,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Search for sets of genes whose edits, the same in all cells, move these towards a target state.

    Parameters
    ----------
    adata
        Rank-encoded cells.
    model
        Model; one with temporal training for `readout="timelapse"`.
    genes
        Candidates; by default those found in most of the cells.
    mode
        What is done to a gene: "delete", "inhibit" (to the last rank), "overexpress" (to the first),
        "activate" (up by `k` ranks) or "shift" (by `k` ranks, down where negative).
    k
        Ranks of "activate", by default 20, and of "shift".
    readout
        "timelapse": a shorter predicted lapse of the query cells of `.uns["prompts"]`, that is younger;
        "embedding": nearer to the embedding of target cells; "likelihood": target cells more likely after the
        cell (`<bos> cell <eos> <bos> target cell <eos>`; needs a model that reads two cells).
    on
        Cells to edit, by default all but the target cells, and for "timelapse" all query cells; the target
        cells; and the donors of cells (prompts know theirs). See `mt.tl.Cells`. Target cells must not be
        cells by which the result is judged later: cells are led to them.
    search
        Method, sizes and null; by default a beam search for sets of up to three genes. See
        `mt.tl.GeneSetSearch`.
    key
        Key in `.uns` of the prompts, by default "prompts".
    rng
        Seed.
    key_added
        Key in `.uns`, by default "gene_sets".

    Returns
    -------
    `None`. Writes to `.uns["gene_sets"]` the tables

    `effects`
        A row a set; distances are in `params["unit"]`:

        `kind`
            "found", in order of the search; "best singles": the genes that are best by themselves, put
            together.
        `set`, `genes`, `size`
            Symbols, names in `.var_names`, and how many.
        `frequency`
            Share of the kept draws (method "metropolis").
        `searched_shift`
            What the search went by: distance gained by the cells that it was searched with. Too good, as it
            was chosen by.
        `shift`, `shift_low`, `shift_high`, `p_value`, `q_value`
            Mean distance gained (positive: nearer to the target) by the cells held out, with its 95% interval
            and two-sided t test (jackknife over donors or cells); corrected over the sets found (Benjamini
            and Hochberg).
        `null_mean`, `null_low`, `null_high`, `p_null`
            Of random sets of the same size: mean, 2.5% and 97.5% of their shifts, and the share that do as
            well.
        `likelihood_change`
            Change of the mean log-likelihood of the edited cells, nats a gene.
        `took_effect`
            Share of the cells in which the edit changed what the model reads.
        `n_units`
            Donors, or cells where no donor is known.

    `genes`
        A row a candidate (`gene`, `symbol`): `shift` of the edit of this gene alone, in the cells that were
        searched with (NaN where it changed nothing that the model reads: `took_effect`); `inclusion`, the
        share of the draws that have it. `mt.get.steer_genes(adata, key="gene_sets")` has the largest first.
    `trace`
        Of chains, a row a step: `chain`, `step` (0 is the start), `log_target`, `size` of the set, whether
        the step's proposal was `accepted`.

    Raises
    ------
    KeyError
        If the cells are not rank-encoded, or prompts, a gene or a column are not there.
    ValueError
        If a setting is unknown, no gene takes effect, or the cells cannot be divided.

    Notes
    -----
    A set's estimate is of donors (or cells) that it was not searched with, with its interval over these
    (jackknife, t test, Benjamini and Hochberg over the sets found). Beside it are random sets of its size,
    and the best genes by themselves put together. A cell in which an edit changes nothing that the model
    reads is moved by exactly 0 and counts; `took_effect` is the share of the others. That a set moves what
    the model reads is no proof that it would move a cell.

    "metropolis" draws sets with probability proportional to exp((w l - strength d) / temperature), where l
    and d are what the edit changes of the model's log-likelihood of a cell and of its distance to the target,
    means over cells, and w is the `likelihood_weight`. R-hat and effective sizes (rank-normalised, Vehtari et
    al. 2021) say whether the chains have forgotten where they began. The distance for "embedding" is
    Euclidean, to the nearest anchor, in units of the mean distance of the target's own cells from theirs.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.sample_prompts(adata, time_key="age_months", groupby="cell_type", n_prompts=20, donor_key="donor_id")
    >>> search = mt.tl.GeneSetSearch(method="greedy", n_candidates=5, max_size=2, n_cells=6, n_null=2)
    >>> mt.tl.search_gene_sets(adata, model, search=search)
    >>> mt.get.table(adata, "gene_sets")["size"].tolist()
    [1, 2, 1, 2]
    """
    k = int(ranks_to_move(mode, k, RANKS)[0])
    search = search or GeneSetSearch()
    steered = get_steered(
        adata,
        model,
        on,
        readout=readout,
        n_cells=search.n_cells,
        n_anchors=search.n_anchors,
        key=key,
        rng=rng,
    )
    columns = (
        _most_read(adata, model, steered, search.n_candidates)
        if genes is None
        else find_columns(adata, model, genes)
    )
    if not len(columns):
        raise ValueError("There is no gene to edit.")
    strength = search.chains.strength or steered.strength
    edits = Edits(steered, model, adata.var[_keys.TOKEN_ID].to_numpy(np.int64)[columns], mode, k)
    names = adata.var_names[columns].to_numpy(dtype=object)
    found = search_sets(edits, names, symbols(adata)[columns], search, strength=strength, seed=rng)
    params = {**search.flat(), "strength": strength, "genes": names.tolist(), "mode": mode, "k": k}
    params |= steered.params | found.params
    write_result(adata, _keys.GENE_SETS, {**model.params, **params}, key_added=key_added, **found.tables)
    warn_of_chains(found.params["rhat"])


def _most_read(adata: AnnData, model: MaxTokiModel, steered: Steered, n: int) -> np.ndarray:
    """Columns of the genes that the model reads in most of the cells."""
    column = column_of_token(adata, model)
    at = steered.whole.positions
    is_read = (at > 0) & (at < model.cell_length - 1)
    times = np.bincount(steered.whole.tokens[is_read], minlength=model.vocab.size)
    times[column < 0] = 0
    most = np.argsort(-times, kind="stable")[:n]
    return column[most[times[most] > 0]]
