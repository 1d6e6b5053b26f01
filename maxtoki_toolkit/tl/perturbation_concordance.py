"""Whether what an edit does and how the gene goes with age say the same of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from ..results.store import read_result, read_table, write_result
from ..stats.concordance import MIN_GENES, concordance
from ..stats.fdr import benjamini_hochberg
from ..stats.matched_sets import make_strata
from ._gene_covariates import COVARIATES
from .expression_age_slope import draw_null_slopes

_DIRECTION = {"inhibit": -1, "delete": -1, "activate": 1, "overexpress": 1}


def perturbation_concordance(
    adata: AnnData,
    *,
    key: str | None = None,
    slopes_key: str | None = None,
    alpha: float = 0.05,
    n_permutations: int = 2000,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Compare the effects of a screen with the slopes of expression with age.

    A gene is concordant if taking it down makes the cell look younger and its expression rises with age, or
    older and it falls; for activation the other way round.

    Parameters
    ----------
    adata
        Cells with results of `mt.tl.perturbation_stats` and `mt.tl.expression_age_slope`.
    key, slopes_key
        Their keys in `.uns`, by default "perturbation_stats" and "expression_age_slope". Groups are compared
        by name.
    alpha
        q below which a gene is "ageing" (by its slope) or "called" (by its effect).
    n_permutations
        Exchanges of the donors.
    rng
        Seed.
    key_added
        Key in `.uns`, by default "perturbation_concordance".

    Returns
    -------
    `None`. Writes to `.uns["perturbation_concordance"]` the tables

    `concordance`
        A row a group and set of genes:

        `group`, `genes`
            Group of cells; "all" genes, those with a slope of q < 0.05 ("ageing"), those whose effect has q <
            0.05 ("called").
        `share`, `share_low`, `share_high`
            Share of the genes that are concordant: what the edit does to the cell's age is what the slope
            says; with a 95% interval over genes (bootstrap).
        `null_low`, `null_high`, `p_value`
            Middle 95% of that share, around that of matched genes, when slopes are noise, and its two-sided
            p.
        `rho`, `rho_null_low`, `rho_null_high`, `rho_p_value`
            The same for Spearman's correlation of slope and effect, its sign turned so that concordance is
            positive.
        `q_value`
            `p_value`, corrected for the rows (Benjamini and Hochberg).
        `n_genes`
            How many.

    `genes`
        A row a gene and group; effects in `params["unit"]`, slopes in `params["slope_unit"]`:

        `gene`, `symbol`, `group`
            Which gene, in which group of cells.
        `effect`, `effect_low`, `effect_high`, `effect_q`
            Effect of the edit.
        `slope`, `slope_low`, `slope_high`, `slope_q`
            Slope of the expression with age.
        `concordant`
            Whether both say the same of the gene.

    Raises
    ------
    ValueError
        If the screen is of no lapses or of sets, moves genes up and down, or no group has `MIN_GENES` genes
        with both.

    Notes
    -----
    The slopes of the null are noise: what age and covariates do not explain, exchanged between donors, so
    that genes go together as they do in the cells. What is tested is the difference from genes alike in rank,
    detection and expression (16 to 31 of them), so that what depth or rank do to both is taken off. Effects
    of an edit of the context count the other way round.

    Both sides look at the same association of expression with age, one through the model. That they agree
    says that the model has learned it, not that the gene does anything. The interval of the
    share treats genes as independent, which they are not: it is too short where genes go together.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(600, 12)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.sample_prompts(adata, time_key="age_months", groupby=[], n_prompts=2, context_size=1, donor_key="donor_id")
    >>> mt.tl.perturb(adata, model, genes="all")
    >>> mt.tl.perturbation_stats(adata, min_donors=2)
    >>> mt.tl.expression_age_slope(adata, time_key="age_months", donor_key="donor_id")
    >>> mt.tl.perturbation_concordance(adata, n_permutations=200)
    >>> mt.get.table(adata, "perturbation_concordance")["genes"].tolist()[:1]
    ['all']
    """
    if n_permutations < 99:
        raise ValueError(f"n_permutations must be at least 99, got {n_permutations}.")
    key, slopes_key = key or _keys.PERTURBATION_STATS, slopes_key or _keys.AGE_SLOPE
    params, effects = signed_effects(adata, key)
    slopes = read_table(adata, slopes_key, "slopes")
    slope_unit, unit = slopes.attrs["unit"], effects.attrs["unit"]
    kept = ["gene", "group", "slope", "slope_low", "slope_high", "q_value"]
    slopes = slopes[kept].drop_duplicates(["gene", "group"]).rename(columns={"q_value": "slope_q"})
    table = effects.rename(columns={"q_value": "effect_q"}).merge(slopes, on=["gene", "group"])
    table = table.dropna(subset=["effect", "slope", "mean_rank"]).reset_index(drop=True)
    table["concordant"] = np.sign(table["effect"]) * table["direction"] == np.sign(table["slope"])

    rows = []
    for group, part in table.groupby("group", sort=False):
        if len(part) < 2 * MIN_GENES:
            continue
        columns = [name for name in COVARIATES if name in part]
        strata = make_strata(part[columns].to_numpy(float))
        sets = {
            "all": np.ones(len(part), bool),
            "ageing": part["slope_q"] < alpha,
            "called": part["effect_q"] < alpha,
        }
        null = draw_null_slopes(
            adata, slopes_key, group, part["gene"], n_permutations, np.random.default_rng(rng)
        )
        signed = part["effect"].to_numpy() * part["direction"].to_numpy()
        for name, some in sets.items():
            some = np.asarray(some)
            if some.sum() >= MIN_GENES:
                values = concordance(signed, part["slope"].to_numpy(), null, strata, some=some, seed=rng)
                rows.append({"group": group, "genes": name, **values})
    if not rows:
        raise ValueError(
            f"No group of .uns[{key!r}] has {2 * MIN_GENES} genes with an effect and a slope. Were both made with the same groups "
            "(groupby)?"
        )
    found = pd.DataFrame(rows)
    found["q_value"] = benjamini_hochberg(found["p_value"])
    settings = {
        "unit": unit,
        "slope_unit": slope_unit,
        "mode": params["mode"],
        "on": params["on"],
        "alpha": alpha,
    }
    settings |= {"n_permutations": n_permutations, "seed": rng, "effects": key, "slopes": slopes_key}
    shown = ["gene", "symbol", "group", "effect", "effect_low", "effect_high", "effect_q"]
    shown += ["slope", "slope_low", "slope_high", "slope_q", "concordant"]
    write_result(
        adata,
        _keys.PERTURBATION_CONCORDANCE,
        settings,
        key_added=key_added,
        concordance=found,
        genes=table[shown],
    )


def signed_effects(adata: AnnData, key: str) -> tuple[dict[str, Any], pd.DataFrame]:
    """Parameters of a screen, and its effects with `direction`: 1 where the edit puts the gene up in the query."""
    params = read_result(adata, key, "mt.tl.perturbation_stats(adata)")["params"]
    if params["readout"] != "timelapse":
        raise ValueError(
            f"The screen read {params['readout']!r}, which has no direction in age. Screen with readout='timelapse'."
        )
    effects = read_table(adata, key, "effects")
    unit = effects.attrs["unit"]
    effects = effects[effects["n_units"] >= int(params["min_donors"])]
    effects = effects[(effects["n_genes"] == 1) & (effects["matched_to"] == "")]
    direction = _DIRECTION.get(str(params["mode"]), np.sign(effects["k"]))
    if params["on"] == "both":
        raise ValueError(
            "Context and query were edited together: which way is older is not known. Screen with on='query'."
        )
    effects = effects.assign(direction=direction * (-1 if params["on"] == "context" else 1))
    if effects["k"].nunique() > 1:
        raise ValueError("The screen has several k; compare one of them.")
    effects.attrs["unit"] = unit
    return params, effects
