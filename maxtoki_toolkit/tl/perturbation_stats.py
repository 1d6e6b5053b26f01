"""What an edit does over donors, beside what the same edit does to genes like it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import stats

from .. import _keys
from .._warn import warn
from ..results.effects_file import as_categories
from ..results.store import read_result, read_table, write_result
from ..stats.fdr import benjamini_hochberg
from ..stats.matched_null import MIN_NULL, matched_null, moderated_error, null_df, storey, two_sided_p
from ._gene_covariates import COVARIATES, gene_covariates, of_sets, standardised

# Those of Eisenberg and Levanon (Trends in Genetics 2013), and the most used ones.
HOUSEKEEPING = (
    "C1orf43", "CHMP2A", "EMC7", "GPI", "PSMB2", "PSMB4", "RAB7A", "REEP5", "SNRPD3", "VCP", "VPS29",
    "ACTB", "B2M", "GAPDH", "HPRT1", "PGK1", "PPIA", "RPL13A", "RPLP0", "SDHA", "TBP", "UBC", "YWHAZ",
)  # fmt: skip


def perturbation_stats(
    adata: AnnData,
    *,
    key: str | None = None,
    n_null: int = 40,
    min_donors: int = 3,
    housekeeping: Sequence[str] = HOUSEKEEPING,
    key_added: str | None = None,
) -> None:
    """Summarise a screen: effect of each gene over donors, and whether it is more than matched genes do.

    Parameters
    ----------
    adata
        Cells with a result of `mt.tl.perturb`.
    key
        Key in `.uns` of the screen, by default "perturbation".
    n_null
        Genes that each gene is compared with: those nearest to it in mean rank, detection and, where the
        counts that were ranked are there, expression.
    min_donors
        Donors (or cells, where no donor is known) in which an edit must have taken effect to be tested.
    housekeeping
        Symbols or Ensembl ids of genes that should do nothing in particular; see
        `mt.get.table(adata, "perturbation_stats", "controls")`.
    key_added
        Key in `.uns`, by default "perturbation_stats".

    Returns
    -------
    `None`. Writes to `.uns["perturbation_stats"]` the tables; months become years:

    `effects`
        A row a gene, group and `k`, in `params["unit"]`:

        `gene`, `symbol`, `group`, `k`, `matched_to`
            Gene or set, group of cells ("all" for all together), ranks; for a control, what it is matched to.
        `effect`, `effect_low`, `effect_high`, `p_donors`
            Mean over the cells of a donor and then over donors, with its 95% interval over donors, and p of a
            two-sided t test that it is 0.
        `null_mean`, `null_sd`, `null_low`, `null_high`, `n_null`
            Where the effects of matched genes lie: centre, standard deviation and middle 95%; how many genes.
        `excess`, `z`, `p_value`, `q_value`, `storey_q`
            Effect less the centre of the null, in its standard deviations, two-sided p; the larger of
            `p_value` and `p_donors`, corrected for the genes of a group.
        `share_same_sign`
            Share of the donors whose own mean has the sign of the effect.
        `effect_younger_context`, `effect_older_context`
            From the prompts whose context ends before the query's time, and after it.
        `n_cells`, `n_units`, `unit`
            Cells or prompts in which the edit took effect, and how many donors (or cells) they are of.
        `mean_rank`, `detection`, `expression`, `control`
            What genes are matched on; whether it is a "housekeeping" gene, an "absent" one, or "".

    `controls`
        What genes do that should do nothing in particular. A row a `group`, `k` and kind of `genes`: "all"
        that were screened, "housekeeping" genes, and "absent" ones (in none of the cells; an edit that does
        not put them in must give nothing at all):

        `n_genes`, `n_known`
            How many, and how many of them have an effect at all.
        `mean_effect`, `mean_size`
            Mean effect, and its mean size whatever the sign.
        `share_p_below`, `n_called`
            Share of the p values below 0.05, and genes with q < 0.05.

    Raises
    ------
    KeyError
        If there is no screen, or its cells are no longer there.
    ValueError
        If no edit took effect.

    Notes
    -----
    Two questions, two tests. `p_donors`: is the mean over donors 0? Nearly no edit leaves a model alone, so
    with enough donors nearly every gene passes: it says that the effect is stable, not that the gene matters.
    `p_value`: is the effect further from those of matched genes than these are from each other? A gene is
    called if both are: `q_value` corrects the larger p of the two (the intersection-union test of Berger,
    Technometrics 1982) for the genes of a group (Benjamini and Hochberg), and `storey_q` is that times the
    estimated share of genes without an effect.

    Compared with matched genes are effects over their error (that of the gene and that of all genes, half
    each), since an effect seen in few donors is large by chance. The centre of the null is the median of the
    matched genes, its spread half the range of their middle 68%, so that genes that matter among them hardly
    count; its tails are those of a t distribution with a fifth as many degrees of freedom as there are
    matched genes (3 to 8), which is what genes that drive nothing show. A model whose effects have longer
    tails calls some genes for no other reason: look at the controls
    (`mt.get.table(adata, "perturbation_stats", "controls")`).

    A small p says that the **model** answers to this gene more than to others like it. It may be right or
    not, and what it has learned is association.

    Only edits that took effect count. The donors are those of the query cells; a context cell is in several
    prompts, which intervals do not know.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.sample_prompts(adata, time_key="age_months", groupby=[], n_prompts=2, context_size=1, donor_key="donor_id")
    >>> mt.tl.perturb(adata, model, genes="all")
    >>> mt.tl.perturbation_stats(adata)
    >>> mt.get.table(adata, "perturbation_stats").attrs["unit"]
    'years'
    """
    if n_null < MIN_NULL or min_donors < 2:
        raise ValueError(
            f"n_null must be at least {MIN_NULL} and min_donors at least 2, got {n_null} and {min_donors}."
        )
    key = key or _keys.PERTURBATION
    params = read_result(adata, key, "mt.tl.perturb(adata, model, genes=...)")["params"]
    genes = adata.uns[key]["genes"].reset_index(drop=True)
    table = as_categories(read_table(adata, key, "effects"))
    if not table["took_effect"].any():
        raise ValueError(
            "No edit of the screen took effect: the model reads none of these genes in these cells."
        )
    unit, factor = ("years", 12.0) if params["unit"] == "months" else (str(params["unit"]), 1.0)
    is_known = "donor" in table
    if not is_known:
        warn(
            "No donor is known, so cells are the units: those of one donor are alike, and p and intervals are too small. Screen "
            "prompts with donors (donor_key=)."
        )
    owner = table["donor" if is_known else "cell"]
    groups = list(table["group"].cat.categories)
    parts = [("all", np.ones(len(table), dtype=bool))] if len(groups) > 1 or groups == ["all"] else []
    parts += [(name, (table["group"] == name).to_numpy()) for name in groups if name != "all"]
    wanted = {str(name) for name in housekeeping}
    is_housekeeping = genes["gene"].isin(wanted) | genes["symbol"].isin(wanted)

    effects = []
    for group, mine in parts:
        covariates = _covariates(adata, table[mine], genes)
        for k in np.unique(table["k"]):
            rows = table[mine & (table["k"] == k).to_numpy()]
            found = pd.concat(
                [genes, _over_donors(rows, owner[rows.index], genes, factor), covariates], axis=1
            )
            found = _against_matched(found, n_null, min_donors)
            found.insert(2, "group", group)
            found.insert(3, "k", k)
            effects.append(found)
    effects = _test(pd.concat(effects, ignore_index=True))
    lacking = effects["detection"].fillna(0) == 0
    effects["control"] = np.where(lacking, "absent", "")
    effects.loc[effects["gene"].isin(genes["gene"][is_housekeeping]), "control"] = "housekeeping"
    controls = []
    for (group, k), part in effects.groupby(["group", "k"], sort=False):
        controls += [{"group": group, "k": k, **row} for row in _controls(part)]
    effects = effects.drop(columns=["members", "n_read", "n_took_effect"])
    unit_of_inference = "donor" if is_known else "cell"
    effects["unit"] = unit_of_inference

    settings = {
        "unit": unit,
        "unit_of_inference": unit_of_inference,
        "screen": key,
        "n_null": n_null,
        "min_donors": min_donors,
        "covariates": [name for name in COVARIATES if name in effects],
        **{
            name: params[name]
            for name in ("model", "model_sha256", "mode", "on", "readout", "whole_vocabulary", "n_genes")
        },
    }
    write_result(
        adata,
        _keys.PERTURBATION_STATS,
        settings,
        key_added=key_added,
        effects=effects,
        controls=pd.DataFrame(controls),
    )


def _covariates(adata: AnnData, table: pd.DataFrame, genes: pd.DataFrame) -> pd.DataFrame:
    """What the genes are like in the query cells of some rows."""
    cells = table.drop_duplicates("prompt")["cell"].astype(str)
    rows = adata.obs_names.get_indexer(cells)
    if (missing := rows < 0).any():
        raise KeyError(
            f"{missing.sum()} cells of the screen are not in the AnnData (first: {cells.iloc[missing.argmax()]!r})."
        )
    used, times = np.unique(rows, return_counts=True)
    measured = gene_covariates(adata[used], weight=times.astype(float))
    return of_sets(measured, [str(members).split(";") for members in genes["members"]])


def _over_donors(rows: pd.DataFrame, owner: pd.Series, genes: pd.DataFrame, factor: float) -> pd.DataFrame:
    """Mean of each donor, then over donors, for each gene."""
    took = rows["took_effect"].to_numpy(dtype=bool)
    rows, owner = rows[took], owner[took]
    place = pd.Index(genes["gene"]).get_indexer(rows["gene"].cat.categories)
    gene, value = place[rows["gene"].cat.codes], rows["effect"].to_numpy() / factor
    donor, names = pd.factorize(owner)
    shape, cell = (len(genes), max(len(names), 1)), gene * max(len(names), 1) + donor
    n = np.bincount(cell, minlength=np.prod(shape)).reshape(shape)
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # genes that no donor has
        means = np.bincount(cell, value, minlength=np.prod(shape)).reshape(shape) / n
        n_donors = (n > 0).sum(axis=1)
        effect = np.nanmean(means, axis=1)
        error = np.nanstd(means, axis=1, ddof=1) / np.sqrt(n_donors)
        df = np.maximum(n_donors - 1, 1)
        reach = np.where(n_donors > 1, stats.t.ppf(0.975, df) * error, np.nan)
        p = np.where(
            error > 0, 2 * stats.t.sf(np.abs(effect) / error, df), np.where(effect == 0, 1.0, np.nan)
        )
        same = ((np.sign(means) == np.sign(effect)[:, None]) & (n > 0)).sum(axis=1) / n_donors
    found = pd.DataFrame(
        {
            "effect": effect,
            "effect_low": effect - reach,
            "effect_high": effect + reach,
            "error": error,
            "p_donors": np.where(n_donors > 1, p, np.nan),
            "share_same_sign": same,
        }
    )
    lapse = rows["lapse"].to_numpy(float) if "lapse" in rows else np.full(len(rows), np.nan)
    for name, some in [("younger", lapse > 0), ("older", lapse < 0)]:
        with np.errstate(invalid="ignore"):
            mean = np.bincount(gene[some], value[some], len(genes)) / np.bincount(
                gene[some], minlength=len(genes)
            )
        found[f"effect_{name}_context"] = mean
    found["n_cells"], found["n_units"] = n.sum(axis=1), n_donors
    return found


def _against_matched(found: pd.DataFrame, n_null: int, min_donors: int) -> pd.DataFrame:
    """Where the effects of matched genes lie, in the order of the rows: centre, spread, z and error."""
    tested = (found["n_units"] >= min_donors).to_numpy()
    effect = np.where(tested, found["effect"], np.nan)
    columns = [name for name in COVARIATES if name in found]
    is_control = (found["matched_to"] != "").to_numpy()
    new = {name: np.full(len(found), np.nan) for name in ("null_mean", "null_sd", "z")}
    new["n_null"] = np.zeros(len(found), dtype=np.int64)
    # A set of many genes does more than one of few.
    for size in found["n_genes"].unique():
        known = np.isfinite(effect) & found[columns].notna().all(axis=1)
        rows = np.flatnonzero((found["n_genes"] == size) & known)
        if len(rows) <= MIN_NULL:
            continue
        use = is_control[rows] if is_control.any() else None
        error = moderated_error(found["error"].to_numpy()[rows], found["n_units"].to_numpy()[rows])
        null = matched_null(effect[rows] / error, standardised(found.iloc[rows][columns]), n_null, use=use)
        new["null_mean"][rows], new["null_sd"][rows] = null.mean * error, null.sd * error
        new["z"][rows], new["n_null"][rows] = null.z, null.n
    found = found.drop(columns="error").assign(**new)
    return found.assign(excess=found["effect"] - found["null_mean"])


def _test(found: pd.DataFrame) -> pd.DataFrame:
    """P and q of all genes, group by group."""
    df = null_df(found["n_null"])
    reach = found["null_sd"] * stats.t.ppf(0.975, df) / stats.t.ppf(0.84, df)
    found["null_low"], found["null_high"] = found["null_mean"] - reach, found["null_mean"] + reach
    found["p_value"] = two_sided_p(found["z"].to_numpy(), df)
    for name in ("q_value", "storey_q"):
        found[name] = np.nan
    # Both hypotheses have to fall for a gene to be called.
    both = np.fmax(found["p_value"], found["p_donors"])
    asked = both.where((found["matched_to"] == "") & found["p_value"].notna())
    for rows in found.groupby(["group", "k"], sort=False).groups.values():
        found.loc[rows, "q_value"] = benjamini_hochberg(asked[rows])
        found.loc[rows, "storey_q"] = storey(asked[rows].to_numpy())
    return found


def _controls(found: pd.DataFrame) -> list[dict]:
    """What kinds of genes do."""
    rows = []
    kinds = {"all": np.ones(len(found), dtype=bool)}
    kinds |= {name: (found["control"] == name).to_numpy() for name in ("housekeeping", "absent")}
    if (found["matched_to"] != "").any():
        kinds["matched"] = (found["matched_to"] != "").to_numpy()
        kinds["all"] = ~kinds["matched"]
    for kind, some in kinds.items():
        part = found[some]
        known, p = part["effect"].dropna(), part["p_value"].dropna()
        rows.append(
            {
                "genes": kind,
                "n_genes": len(part),
                "n_known": len(known),
                "mean_effect": known.mean(),
                "mean_size": known.abs().mean(),
                "share_p_below": (p < 0.05).mean() if len(p) else np.nan,
                "n_called": int((part["q_value"] < 0.05).sum()),
            }
        )
    return rows
