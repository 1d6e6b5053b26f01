"""Which genes of which cells make the model say what it says? Integrated gradients."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import stats

from .. import _keys
from .._features import symbols
from .._names import require_choice
from .._warn import warn
from ..models.attribution import (
    BASELINES,
    Attributions,
    feature_readout,
    integrated_feature_gradients,
    integrated_gradients,
    require_captum,
)
from ..models.feature_edits import require_features
from ..models.hooks import captured
from ..models.layout import layout
from ..models.model import MaxTokiModel
from ..models.sae import SparseAutoencoder, require_sae
from ..pp._columns import find_donors
from ..pp._design import get_labels, known_cells
from ..results.store import write_result
from ..stats.donors import donor_mean, unit_name
from ..stats.fdr import benjamini_hochberg
from ._cells import get_sequences
from ._readings import Readings, get_prompts, get_readings, some_rows

# Share of what attributions should add up to that they may miss without a warning: the error of the steps,
# which more of them make smaller.
_TOLERANCE = 0.05
# Ranks are compared with themselves, higher ones with those up to a tenth above.
_EXACT, _STEP = 10, 1.1


def attribute(
    adata: AnnData,
    model: MaxTokiModel,
    *,
    readout: str | int = "timelapse",
    sae: SparseAutoencoder | None = None,
    key: str | None = None,
    baseline: str = "mean",
    n_steps: int = 32,
    n_prompts: int | None = 100,
    donor_key: str | None = None,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Attribute a reading to the genes, cells and lapses of each prompt, by integrated gradients.

    Needs captum: `pip install -c constraints.txt -e ".[interp]"`.

    Parameters
    ----------
    adata
        Rank-encoded cells with prompts (`mt.pp.sample_prompts`).
    model
        Model. One without time tokens reads the cells one by one, without prompts.
    readout
        "timelapse", the predicted lapse; or a gene (symbol, Ensembl id or `.var_names`): its log-probability
        at its place in the query cell, given all that comes before. Prompts whose query cell lacks it are
        left out. With `sae`, also the number of a feature: its mean activation over the genes of a cell;
        cells are then read one by one.
    sae
        Autoencoder of this model (`mt.train.sae`): a reading is then attributed to its features, in place of
        genes and segments; a feature is attributed to the genes before it.
    key
        Key in `.uns` of the prompts, by default "prompts".
    baseline
        What stands for a token that says nothing: "mean", the mean embedding of all genes, for lapses that of
        all lapses; "mask" or "pad", the embedding of that token. Marks (`<bos>`, `<eos>`, `<boq>`, `<eoq>`)
        stay and get nothing.
    n_steps
        Steps from the baseline to the prompt (Gauss-Legendre). Attributions that miss more than 5% of what
        they should add up to are warned of: take more.
    n_prompts
        Prompts to read, drawn at random where there are more; `None` for all.
    donor_key
        Column of `.obs` with the donor (guessed from its name), for a model that reads cells one by one;
        prompts know theirs.
    rng
        Seed of what is drawn.
    key_added
        Key in `.uns`, by default "attribute".

    Returns
    -------
    `None`. Writes to `.uns["attribute"]`, beside `params["relative_residual"]`, how much the attributions
    miss, the tables

    `genes`
        A row a gene and part of the prompt, the largest attribution first, in `params["unit"]`:

        `gene`, `symbol`, `part`
            Ensembl id, symbol, and "context", "query" or "cell".
        `attribution`, `attribution_low`, `attribution_high`
            Mean over the prompts that have the gene there, with its 95% interval over donors.
        `rank_alone`
            Mean attribution of all genes in the same segments at like ranks.
        `excess`, `excess_low`, `excess_high`
            What the gene has beyond that, with its interval.
        `p_value`, `q_value`
            Two-sided t test of the excess (jackknife over donors), NaN for genes of fewer than three;
            corrected for all rows.
        `mean_rank`
            Mean rank of the gene.
        `n_prompts`, `n_units`, `unit`
            Prompts with the gene there, and how many donors (or query cells) their queries are of.

    `segments`
        A row a segment, in the order of the prompt:

        `segment`
            "context_0", "lapse_0" and so on.
        `attribution`, `attribution_low`, `attribution_high`
            Sum over the segment, mean over prompts, with its 95% interval over donors.
        `share`, `share_low`, `share_high`
            Share of the size of all attributions of the prompt.
        `share_of_tokens`
            Share of the prompt's tokens: what `share` would be if all tokens were alike.
        `n_prompts`, `n_units`, `unit`
            Prompts that have the segment, and how many donors (or query cells) their queries are of.

    `features`
        With `sae` and a reading that is no feature, in place of the other tables: a row a feature:

        `feature`
            Its number.
        `attribution`, `attribution_low`, `attribution_high`
            Sum over the genes of a prompt, mean over prompts, with its 95% interval over donors.
        `gradient`
            The same by the gradient of the whole reading alone (gradient times input), which takes one pass;
            `params["gradient_residual"]` says how much it misses.
        `p_value`, `q_value`
            Two-sided t test (jackknife over donors); corrected for all features that are active.
        `n_prompts`, `n_units`, `unit`
            Prompts where it is active, and how many donors (or query cells) those are of.

    `prompts`
        The prompts with `value`, `baseline_value`, `residual` (what attributions miss) and, for each segment,
        the sum of its attributions.

    Raises
    ------
    ImportError
        If captum is not installed.
    ValueError
        If the model cannot tell time and `readout` is "timelapse".

    Notes
    -----
    Attributions of a prompt add up to its reading less that of the baseline input, but for `residual`, the
    error of the steps. `params["relative_residual"]` is the sum over prompts of its size over that of the
    difference.

    The trivial baseline is the rank alone: the mean attribution of all genes in the same segment at the same
    rank (above 10, at ranks within a tenth). It is in `rank_alone`, and `excess` is what a gene has beyond
    it: if genes did not differ, it would be 0. The interval and p value of `excess` (two-sided, t test) leave
    out each donor in turn, as those of `mt.tl.ablate_prompt` do; `q_value` corrects for all genes and parts
    (Benjamini and Hochberg). `params["rank_correlation"]` is Spearman's, over genes in prompts, of the rank
    with the size of the attribution.

    An attribution says what the model uses, not what makes cells age.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.sample_prompts(adata, time_key="age_months", groupby="cell_type", n_prompts=3, context_size=1)
    >>> try:
    ...     mt.tl.attribute(adata, model)
    ...     found = mt.get.table(adata, "attribute", "segments")["segment"].tolist()
    ... except ImportError:
    ...     found = ["captum is not installed"]
    """
    if sae is None or not isinstance(readout, str):
        require_captum()
    require_choice("baseline", baseline, BASELINES)
    if sae is not None:
        require_sae(sae, model)
    if n_steps < 1:
        raise ValueError(f"n_steps must be at least 1, got {n_steps}.")
    if readout == "likelihood":
        raise ValueError(
            'readout must be "timelapse" or a gene: the genes of a likelihood are input and output at once.'
        )
    if not isinstance(readout, str) and sae is None:
        raise ValueError("A number as readout is a feature: give its autoencoder, sae=...")
    cells, _ = known_cells(adata, donor_key)
    if isinstance(readout, str):
        drawn = get_prompts(cells, model, readout, key=key, n_prompts=n_prompts, rng=rng, donor_key=donor_key)
        readings, time_read_as = (
            get_readings(cells, model, readout, *drawn),
            drawn[0].attrs.get("time_read_as", ""),
        )
    else:
        readings, time_read_as = _cells(cells, model, sae, int(readout), n_prompts, donor_key, rng), ""
    seen, at_end = {}, None
    if isinstance(readout, str) and sae is not None:
        found, at_end = integrated_feature_gradients(
            model, sae, readings.sequences, readings.read, n_steps=n_steps
        )
        total = found.tokens.sum(axis=1)
    else:
        sites = [] if isinstance(readout, str) else [sae.site]
        with captured(model, sites) as seen:
            read = (
                readings.read if isinstance(readout, str) else feature_readout(model, sae, int(readout), seen)
            )
            found = integrated_gradients(model, readings.sequences, read, baseline=baseline, n_steps=n_steps)
        total = np.add.reduceat(found.tokens, readings.sequences.indptr[:-1])
    residual, relative = _residual(found, total)
    if relative > _TOLERANCE:
        warn(
            f"Attributions miss {relative:.0%} of what they should add up to (tolerance {_TOLERANCE:.0%}): read them with "
            f"care, or give more than n_steps={n_steps}."
        )
    if at_end is not None:
        prompts = readings.table.copy()
        prompts["value"], prompts["baseline_value"], prompts["residual"] = (
            found.value,
            found.baseline,
            residual,
        )
        tables = {"features": _features(found.tokens, at_end, readings.table, rng), "prompts": prompts}
        more = {"gradient_residual": _residual(found, at_end.sum(axis=1))[1]}
    else:
        genes, correlation = _genes(cells, model, readings, found, rng)
        prompts, segments = _segments(readings, found, residual, rng)
        tables = {"genes": genes, "segments": segments, "prompts": prompts}
        more = {"rank_correlation": correlation, "baseline": baseline}
    params = {
        "readout": readings.readout,
        "time_read_as": time_read_as,
        "unit": readings.unit,
        "n_steps": n_steps,
        "relative_residual": relative,
        **more,
        **({} if sae is None else sae.params),
        "n_prompts": len(prompts),
        "donors": unit_name(prompts),
        "seed": rng,
    }
    write_result(
        adata,
        _keys.ATTRIBUTE,
        {**model.params, **params},
        key_added=key_added,
        **tables,
    )


def _residual(found: Attributions, total: np.ndarray) -> tuple[np.ndarray, float]:
    """What attributions miss, prompt by prompt, and as a share of what they should add up to."""
    residual = found.value - found.baseline - total
    difference = np.abs(found.value - found.baseline).sum()
    return residual, float(np.abs(residual).sum() / difference) if difference else 0.0


def _cells(
    cells: AnnData,
    model: MaxTokiModel,
    sae: SparseAutoencoder,
    feature: int,
    n_cells: int | None,
    donor_key: str | None,
    seed: int,
) -> Readings:
    """Cells by themselves, for the activation of a feature."""
    require_features(sae, [feature])
    table = pd.DataFrame({"query": cells.obs_names})
    if (donor_key := find_donors(cells.obs, donor_key)) is not None:
        table["donor"] = get_labels(cells, donor_key)
    rows = some_rows(len(table), n_cells, seed)
    sequences = get_sequences(cells, model).take(rows)
    parts = layout(sequences, model.vocab)
    return Readings(table.iloc[rows], sequences, parts, None, f"feature {feature}", "activation", rows)


def _features(found: np.ndarray, at_end: np.ndarray, table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Attribution of each feature, the largest first."""
    mean = donor_mean(found, table, seed=seed)
    active = (at_end != 0).any(axis=0)
    p_value = np.where(active, mean["p_value"], np.nan)
    features = pd.DataFrame(
        {
            "feature": np.arange(found.shape[1]),
            "attribution": mean["estimate"],
            "attribution_low": mean["low"],
            "attribution_high": mean["high"],
            "gradient": at_end.mean(axis=0),
            "p_value": p_value,
            "q_value": benjamini_hochberg(p_value),
            "n_prompts": (at_end != 0).sum(axis=0),
            "n_units": mean["n_units"],
            "unit": unit_name(table),
        }
    )
    return features.sort_values("attribution", key=np.abs, ascending=False, ignore_index=True)


def _genes(
    adata: AnnData, model: MaxTokiModel, readings: Readings, found: Attributions, seed: int
) -> tuple[pd.DataFrame, float]:
    """Attribution of each gene, beside that of its rank alone; and how size goes with rank."""
    sequences, parts = readings.sequences, readings.parts
    of = sequences.owner
    # A rank: genes of a cell from 1, after `<bos>`.
    rank = np.arange(len(of)) - sequences.indptr[of] - parts.start[of, parts.segment]
    is_gene = model.vocab.gene_of_token[sequences.tokens] != ""
    names = np.array([name.partition("_")[0] for name in parts.names], dtype=object)
    tokens = pd.DataFrame(
        {
            "prompt": of,
            "token": sequences.tokens,
            "part": names[parts.segment],
            "rank": rank,
            "place": np.where(
                rank <= _EXACT, rank, _EXACT + np.log(np.maximum(rank, 1) / _EXACT) // np.log(_STEP)
            ),
            "segment": parts.segment,
            "attribution": found.tokens,
        }
    )[is_gene]
    tokens["rank_alone"] = tokens.groupby(["segment", "place"])["attribution"].transform("mean")
    tokens["excess"] = tokens["attribution"] - tokens["rank_alone"]
    varies = tokens["attribution"].abs().nunique() > 1 and tokens["rank"].nunique() > 1
    correlation = stats.spearmanr(tokens["rank"], tokens["attribution"].abs()).statistic if varies else np.nan

    # Of several context cells with the gene, the mean.
    tokens["column"] = tokens.groupby(["part", "token"]).ngroup()
    each = tokens.groupby(["prompt", "column"])[["attribution", "rank_alone", "excess"]].mean().reset_index()
    shape = (len(sequences), tokens["column"].max() + 1)
    wide = {name: np.full(shape, np.nan) for name in ("attribution", "rank_alone", "excess")}
    for name, values in wide.items():
        values[each["prompt"], each["column"]] = each[name]
    effect, excess = (donor_mean(wide[name], readings.table, seed=seed) for name in ("attribution", "excess"))
    first = tokens.drop_duplicates("column").sort_values("column")
    ensembl = model.vocab.gene_of_token[first["token"]]
    table = pd.DataFrame(
        {
            "gene": ensembl,
            "symbol": _symbols(adata).reindex(ensembl).fillna("").to_numpy(),
            "part": first["part"].to_numpy(),
            "attribution": effect["estimate"],
            "attribution_low": effect["low"],
            "attribution_high": effect["high"],
            "rank_alone": np.nanmean(wide["rank_alone"], axis=0),
            "excess": excess["estimate"],
            "excess_low": excess["low"],
            "excess_high": excess["high"],
            "p_value": excess["p_value"],
            "q_value": benjamini_hochberg(excess["p_value"]),
            "mean_rank": tokens.groupby("column")["rank"].mean().to_numpy(),
            "n_prompts": np.isfinite(wide["attribution"]).sum(axis=0),
            "n_units": effect["n_units"],
            "unit": unit_name(readings.table),
        }
    )
    return table.sort_values("attribution", key=np.abs, ascending=False, ignore_index=True), float(
        correlation
    )


def _symbols(adata: AnnData) -> pd.Series:
    """Name of each gene, by Ensembl id."""
    names = pd.Series(symbols(adata), index=adata.var[_keys.ENSEMBL_ID].astype(str).to_numpy())
    return names[~names.index.duplicated()]


def _segments(
    readings: Readings, found: Attributions, residual: np.ndarray, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Sum of the attributions of each segment, prompt by prompt and on average."""
    sequences, parts = readings.sequences, readings.parts
    of = sequences.owner
    shape = parts.size.shape
    total, size = np.zeros((2, *shape))
    np.add.at(total, (of, parts.segment), found.tokens)
    np.add.at(size, (of, parts.segment), np.abs(found.tokens))
    has = parts.size > 0
    mean = donor_mean(np.where(has, total, np.nan), readings.table, seed=seed)
    with np.errstate(invalid="ignore"):
        share = np.nan_to_num(size / size.sum(axis=1, keepdims=True))
    share = donor_mean(np.where(has, share, np.nan), readings.table, seed=seed)
    of_tokens = parts.size / sequences.lengths[:, None]
    segments = pd.DataFrame(
        {
            "segment": parts.names,
            "attribution": mean["estimate"],
            "attribution_low": mean["low"],
            "attribution_high": mean["high"],
            "share": share["estimate"],
            "share_low": share["low"],
            "share_high": share["high"],
            "share_of_tokens": [
                column[there].mean() for column, there in zip(of_tokens.T, has.T, strict=True)
            ],
            "n_prompts": has.sum(axis=0),
            "n_units": mean["n_units"],
            "unit": unit_name(readings.table),
        }
    )
    prompts = readings.table.copy()
    prompts["value"], prompts["baseline_value"], prompts["residual"] = found.value, found.baseline, residual
    for i, name in enumerate(parts.names):
        prompts[f"attribution_{name}"] = np.where(has[:, i], total[:, i], np.nan)
    return prompts, segments
