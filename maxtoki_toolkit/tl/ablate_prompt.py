"""What in a prompt the model uses: change one thing at a time and see what becomes of its error."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import stats

from .. import _keys
from ..models.model import MaxTokiModel
from ..models.prompts import Prompts, write_prompts
from ..models.sequences import Sequences
from ..models.timelapse import read_lapses
from ..models.vocabulary import Vocabulary
from ..pp._design import known_cells
from ..results.store import write_result
from ..stats.donors import jackknife_error, jackknife_interval, left_out, unit_name
from ..stats.fdr import benjamini_hochberg
from ._cells import get_sequences
from ._lapse_prompts import lapse_prompts

INTACT = "intact"
ABLATIONS = (
    "shuffle_genes",
    "shuffle_context",
    "shuffle_query",
    "mask_context",
    "mask_query",
    "replace_context",
    "replace_query",
    "shuffle_lapses",
    "drop_lapses",
    "drop_top",
    "drop_bottom",
)


def ablate_prompt(
    adata: AnnData,
    model: MaxTokiModel,
    *,
    ablations: Sequence[str] = ABLATIONS,
    share: float = 0.25,
    key: str | None = None,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Predict the lapses of the same prompts with parts of them shuffled, masked, replaced or left out.

    Parameters
    ----------
    adata
        Rank-encoded cells with prompts (`mt.pp.sample_prompts`).
    model
        A model with temporal training.
    ablations
        What to do, each by itself:

        "shuffle_genes", "shuffle_context", "shuffle_query"
            Genes in random order, in all cells of the prompt, those of the context, or the query.
        "mask_context", "mask_query"
            All genes replaced by `<mask>`.
        "replace_context", "replace_query"
            Other cells of the AnnData, drawn at random, in their places; lapses stay.
        "shuffle_lapses", "drop_lapses"
            The lapses between the context cells of another prompt of as many; none at all.
        "drop_top", "drop_bottom"
            The highest, the lowest ranked genes of each cell left out.
        "intact"
            Nothing: changes nothing, exactly.
    share
        Share of a cell's genes that "drop_top" and "drop_bottom" leave out.
    key
        Key in `.uns` of the prompts, by default "prompts".
    rng
        Seed.
    key_added
        Key in `.uns`, by default "ablate_prompt".

    Returns
    -------
    `None`. Writes to `.uns["ablate_prompt"]` the tables

    `effects`
        A row an ablation; errors are in `params["unit"]`:

        `ablation`
            What was done.
        `mean_error`, `mean_error_intact`
            Mean absolute error of the lapse with the ablation and without.
        `difference`, `difference_low`, `difference_high`
            Mean of the paired differences (positive: the ablation hurts), with its 95% interval over donors.
        `r`, `r_intact`
            Correlation of predicted and true lapses, with the ablation and without.
        `p_value`, `q_value`
            Two-sided t test with the error of that interval (jackknife over donors); corrected for the
            ablations.
        `n_prompts`, `n_units`, `unit`
            Prompts, and how many donors (or query cells, where no donor is known) their queries are of.

    `prompts`
        The prompts, with a column of predictions for "intact" and each ablation.

    Raises
    ------
    ValueError
        If an ablation is unknown, `share` is not between 0 and 1, or the prompts ask for cells.

    Notes
    -----
    Effects are paired: the absolute error of each prompt with the ablation, less that of the prompt as it is.
    Intervals and p values (two-sided, t test) leave out each donor in turn, with all prompts he or she is
    part of, which is on the safe side; `q_value` corrects for the ablations (Benjamini and Hochberg). The
    paper shuffles genes and masks context and query; how many prompts, and its test, are not known to us.

    Prompts that are too long for the model lose genes of their first cell; of a shuffled cell these are
    random ones.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.sample_prompts(adata, time_key="age_months", groupby="cell_type", n_prompts=6, donor_key="donor_id")
    >>> mt.tl.ablate_prompt(adata, model, ablations=["intact", "shuffle_genes"])
    >>> mt.get.table(adata, "ablate_prompt").set_index("ablation").loc["intact", "difference"]
    np.float64(0.0)
    """
    if unknown := [name for name in ablations if name not in (*ABLATIONS, INTACT)]:
        raise ValueError(f"There is no ablation {unknown[0]!r}; choose from {', '.join(ABLATIONS)}.")
    if not 0 < share < 1:
        raise ValueError(f"share must be between 0 and 1, got {share}.")
    known, _ = known_cells(adata)
    table, prompts, params = lapse_prompts(known, model, key)
    cells = get_sequences(known, model)
    table[INTACT] = _predict(model, prompts, cells, cells)
    for name in dict.fromkeys(ablations):
        # Each has numbers of its own, whatever else is asked for.
        seed = [rng, (*ABLATIONS, INTACT).index(name)]
        changed = ablated(name, prompts, cells, model.vocab, share, np.random.default_rng(seed))
        table[name] = _predict(model, *changed, lapses=name != "drop_lapses")

    result = {
        "unit": model.time_head.unit,
        "ablations": list(ablations),
        "share": share,
        "time_key": params["time_key"],
        "time_read_as": table.attrs["time_read_as"],
        "groupby": params["groupby"],
        "n_prompts": len(table),
        "seed": rng,
    }
    write_result(
        adata,
        _keys.ABLATION,
        {**model.params, **result},
        key_added=key_added,
        prompts=table,
        effects=_effects(table, list(dict.fromkeys(ablations)), rng),
    )


def _predict(
    model: MaxTokiModel, prompts: Prompts, cells: Sequences, queries: Sequences, *, lapses=True
) -> np.ndarray:
    written = write_prompts(
        prompts, cells, model.vocab, max_length=model.max_length, answer=False, queries=queries
    ).sequences
    if not lapses:
        written = written.keep(~np.isin(written.tokens, model.vocab.time_ids))
    return read_lapses(model, written)[0].astype(float)


def ablated(
    name: str,
    prompts: Prompts,
    cells: Sequences,
    vocab: Vocabulary,
    share: float,
    rng: np.random.Generator,
) -> tuple[Prompts, Sequences, Sequences]:
    """Prompts, context cells and query cells with one thing changed."""
    if name.startswith("shuffle_") and name != "shuffle_lapses":
        changed = _shuffled(cells, rng)
        return (
            prompts,
            cells if name == "shuffle_query" else changed,
            cells if name == "shuffle_context" else changed,
        )
    if name == "mask_context":
        return prompts, _masked(cells, vocab), cells
    if name == "mask_query":
        return prompts, cells, _masked(cells, vocab)
    if name == "replace_context":
        others = rng.integers(0, len(cells), prompts.context.shape)
        return prompts._replace(context=np.where(prompts.context >= 0, others, -1)), cells, cells
    if name == "replace_query":
        return prompts._replace(query=rng.integers(0, len(cells), len(prompts.query))), cells, cells
    if name == "shuffle_lapses":
        steps = prompts.steps.copy()
        size = prompts.context_size
        for n in np.unique(size):
            rows = np.flatnonzero(size == n)
            steps[rows] = steps[rng.permutation(rows)]
        return prompts._replace(steps=steps), cells, cells
    if name in ("drop_top", "drop_bottom"):
        changed = _dropped(cells, share, top=name == "drop_top")
        return prompts, changed, changed
    return prompts, cells, cells


def _genes(cells: Sequences) -> np.ndarray:
    """Which tokens are genes: all but the first and the last of each cell."""
    is_gene = np.ones(len(cells.tokens), dtype=bool)
    is_gene[cells.indptr[:-1]] = is_gene[cells.indptr[1:] - 1] = False
    return is_gene


def _shuffled(cells: Sequences, rng: np.random.Generator) -> Sequences:
    """Genes of each cell in random order."""
    is_gene, of_cell = _genes(cells), cells.owner
    at = np.flatnonzero(is_gene)
    order = np.lexsort((rng.random(len(at)), of_cell[at]))
    tokens = cells.tokens.copy()
    tokens[at] = tokens[at[order]]
    return cells.with_tokens(tokens)


def _masked(cells: Sequences, vocab: Vocabulary) -> Sequences:
    """`<mask>` in place of each gene."""
    return cells.with_tokens(np.where(_genes(cells), vocab["<mask>"], cells.tokens).astype(np.int32))


def _dropped(cells: Sequences, share: float, *, top: bool) -> Sequences:
    """Cells without their highest or lowest ranked genes."""
    place = cells.positions - 1
    n_genes = np.repeat(cells.lengths - 2, cells.lengths)
    n_lost = np.floor(share * n_genes)
    lost = place < n_lost if top else place >= n_genes - n_lost
    return cells.keep(~(lost & _genes(cells)))


def _effects(table: pd.DataFrame, names: list[str], seed: int) -> pd.DataFrame:
    """Difference that each ablation makes to the error, with donors as units."""
    true = table["lapse"].to_numpy(float)
    unit = "donor" if "donor" in table else "query"
    n_units = table[unit].nunique()
    weights = left_out(table, unit, np.random.default_rng(seed))
    intact = np.abs(table[INTACT].to_numpy() - true)
    rows = []
    for name in names:
        error = np.abs(table[name].to_numpy() - true)
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = weights @ (error - intact) / weights.sum(axis=1)
        low, high = jackknife_interval(mean, n_units)
        of_mean, df = jackknife_error(mean, n_units)
        varies = table[name].std() > 0
        rows.append(
            {
                "ablation": name,
                "mean_error": error.mean(),
                "mean_error_intact": intact.mean(),
                "difference": mean[0],
                "difference_low": low,
                "difference_high": high,
                "r": np.corrcoef(true, table[name])[0, 1] if varies else np.nan,
                "r_intact": np.corrcoef(true, table[INTACT])[0, 1],
                "p_value": float(2 * stats.t.sf(abs(mean[0]) / of_mean, df)) if of_mean > 0 else 1.0,
                "n_prompts": len(table),
                "n_units": n_units,
                "unit": unit_name(table),
            }
        )
    effects = pd.DataFrame(rows)
    effects["q_value"] = benjamini_hochberg(effects["p_value"])
    return effects
