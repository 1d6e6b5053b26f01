"""Lapses between context cells and a query cell, as the model sees them."""

from __future__ import annotations

from anndata import AnnData

from .. import _keys
from ..models.model import MaxTokiModel
from ..models.prompts import write_prompts
from ..models.timelapse import read_lapses, require_temporal
from ..pp.sample_prompts import read_prompts
from ..results.store import read_result, write_result
from ..stats.lapse_scores import score_lapses
from ._cells import count_truncated, get_sequences
from ._time_unit import check_prompts


def predict_timelapse(
    adata: AnnData,
    model: MaxTokiModel,
    *,
    queries: AnnData | None = None,
    key: str | None = None,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Predict the lapse from the last context cell to the query cell of each prompt.

    Parameters
    ----------
    adata
        Rank-encoded cells with prompts (`mt.pp.sample_prompts`).
    model
        A model with temporal training.
    queries
        The AnnData with the query cells of `mt.pp.match_queries`, rank-encoded.
    key
        Key in `.uns` of the prompts, by default "prompts".
    rng
        Seed of the intervals; the predictions are not random.
    key_added
        Key in `.uns`, by default "timelapse".

    Returns
    -------
    `None`. Writes to `.uns["timelapse"]` the tables, in `params["unit"]`, that of the model's time head:

    `prompts`
        The prompts (columns as of `mt.pp.sample_prompts`) with `predicted`, the lapse that the model reads,
        and `p_non_numeric`, the probability (0-1) that it gives to tokens that are no lapse (NaN for a linear
        time head).
    `scores`
        A row a predictor and group, with "all" for all groups together. Each measure has `_low` and `_high`,
        the ends of its 95% interval over donors (NaN for fewer than three):

        `predictor`, `group`
            Who predicted ("MaxToki" or a baseline), and for which prompts.
        `n_prompts`, `n_units`, `unit`
            Prompts, and how many donors (or query cells, where no donor is known) their queries are of.
        `r`
            Pearson correlation of predicted and true lapse; NaN for a constant prediction.
        `slope`
            Slope of the predicted on the true lapse: 1 is right, less is a regression to the mean.
        `r2`
            1 - mean squared error / variance of the true lapses; negative if their mean were a better
            prediction.
        `spread`
            Standard deviation of the predicted over that of the true lapses.
        `bias`, `median_error`, `mean_error`
            Mean of predicted - true lapse; median and mean of its absolute value, in the unit.
        `r_null_low`, `r_null_high`, `p_value`
            Where `r` is in 95% of permutations of the query donors' times (of distances, exchanged within
            images), and the one-sided p-value of `r`.
            Contexts and predictions stay as they are, so an `r` above it is owed to the query cells; or,
            where the prompts were drawn with `zero_lapse="never"` and there are few times, to the times that
            the context has left over.

    Raises
    ------
    KeyError
        If there are no prompts, or their cells are not there.
    ValueError
        If the model has no temporal training, the prompts ask for cells, or a lapse has no token.

    Notes
    -----
    One forward pass a prompt, read at `<eoq>` with the time head that was trained with the weights. A prompt
    longer than the model reads loses the lowest ranked genes of its first cell; how many is in `params`.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.sample_prompts(adata, time_key="age_months", groupby="cell_type", n_prompts=6, donor_key="donor_id")
    >>> mt.tl.predict_timelapse(adata, model)
    >>> mt.get.table(adata, "timelapse").shape[0]
    6
    """
    require_temporal(model)
    stored = read_result(adata, key or _keys.PROMPTS, "mt.pp.sample_prompts(adata, ...)")
    params, table = stored["params"], stored["prompts"].copy()
    if params["task"] != "timelapse":
        raise ValueError(
            'These prompts ask for cells. Draw others: mt.pp.sample_prompts(..., task="timelapse").'
        )
    if params["queries_elsewhere"] and queries is None:
        raise ValueError("The query cells of these prompts are in another AnnData: pass it as queries=.")
    read_as = check_prompts(params, table, model.time_head.unit)
    cells = get_sequences(adata, model)
    query_cells = None if queries is None else get_sequences(queries, model)
    prompts = read_prompts(table, adata, adata if queries is None else queries)
    written = write_prompts(
        prompts, cells, model.vocab, max_length=model.max_length, answer=False, queries=query_cells
    )
    lapse, p_non_numeric = read_lapses(model, written.sequences)
    table["predicted"], table["p_non_numeric"] = lapse, p_non_numeric

    result = {
        "unit": model.time_head.unit,
        "time_key": params["time_key"],
        "time_read_as": read_as,
        "groupby": params["groupby"],
        "n_prompts": len(table),
        "n_clipped": int((written.n_clipped > 0).sum()),
        "n_truncated": count_truncated(adata, model)
        + (0 if queries is None else count_truncated(queries, model)),
        "seed": rng,
    }
    write_result(
        adata,
        _keys.TIMELAPSE,
        {**model.params, **result},
        key_added=key_added,
        prompts=table,
        scores=score_lapses(
            table, {"MaxToki": "predicted"}, groupby="group", distances="distance_unit" in params, seed=rng
        ),
    )
