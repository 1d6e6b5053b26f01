"""Which heads look at a set of genes more than at others like them, and by how much."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import stats

from .. import _keys
from ..results.head_sums import head_table
from ..results.store import write_result
from ..stats.fdr import benjamini_hochberg
from ..stats.matched_sets import log2_ratio, make_strata, null_ratios, other_weights, two_sided, usable
from ._gene_sets import MIN_GENES, TRANSCRIPTION_FACTORS, find_members
from ._head_sums import FLAT, DonorSums, donor_sums, read_attention, unit_name

COVARIATES = ("mean_rank", "detection", "expression")


def head_enrichment(
    adata: AnnData,
    *,
    gene_set: str | Sequence[str] = TRANSCRIPTION_FACTORS,
    group: str | None = None,
    min_tokens: int = 10,
    n_permutations: int = 5000,
    key: str | None = None,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Compare the attention that a gene set receives from each head with that of matched genes.

    Parameters
    ----------
    adata
        Cells with a result of `mt.tl.attention`.
    gene_set
        "TF" for the human transcription factors, the name of a set that `mt.tl.attention` was given, or genes
        (symbols, Ensembl ids or `.var_names`).
    group
        A group of cells to look at; all by default.
    min_tokens
        How often a gene has to be among the tokens.
    n_permutations
        Permutations of the membership. The smallest p is one over as many, so that few of them hide a single
        head among many.
    key
        Key in `.uns` of the attention, by default "attention".
    rng
        Seed of the permutations and of the halves.
    key_added
        Key in `.uns`, by default "head_enrichment".

    Returns
    -------
    `None`. Writes to `.uns["head_enrichment"]`, beside how well the heads replicate over donor halves (in
    `params`: `replication_r`, the correlation over heads, and `replication_sign`, the share of equal signs),
    the tables

    `heads`
        A row a head:

        `layer`, `head`, `name`
            Which head.
        `log2_ratio`, `log2_ratio_low`, `log2_ratio_high`
            Log2 ratio of the set's mean rate to that of matched genes, with its 95% interval over donors.
        `raw`
            Log2 ratio of mean attention per token, without matching anything.
        `null_mean`, `null_sd`, `p_value`, `q_value`
            Ratios of permuted members; two-sided p; corrected for the heads.
        `half_1`, `half_2`, `same_sign`
            The ratio in two halves of the donors.

    `genes`
        A row a gene (`gene`, `ensembl_id`, `symbol`): whether it is `in_set`, its `stratum` of the matching,
        and by what it was matched: `mean_rank`, `detection` and `expression`.
    `balance`
        A row a `covariate`: mean difference of the set from all other genes (`difference_before`) and from
        the matched ones (`difference_after`), in standard deviations, by rank.

    Raises
    ------
    KeyError
        If there is no attention, or no such set.
    ValueError
        If fewer than three genes of the set can be compared.

    Notes
    -----
    The rate of a gene is the attention it receives over what tokens at the same positions receive. The effect
    is the log2 ratio of the mean rate of the set to that of other genes in the same strata: of 16 to 31 genes
    alike in mean rank, detection and expression in these cells. Its interval leaves out each donor (or block
    of cells) in turn (jackknife, t distribution); it says how the effect varies between donors, for these
    genes.

    The p value is for the genes: membership is permuted within the strata, two-sided, and corrected for the
    heads (Benjamini and Hochberg). A head whose rates do not differ between genes has p = 1. `raw` is what
    would be found without matching: the ratio of mean attention per token.

    Replication takes the same genes in two random halves of the donors. A gene set that means nothing
    replicates as well, if its genes differ from others: the p value, not the replication, says whether the
    set matters.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.tl.attention(adata, model, donor_key="donor_id", n_cells=3)
    >>> mt.tl.head_enrichment(adata, n_permutations=99)
    >>> mt.get.table(adata, "head_enrichment").shape[0]
    16
    """
    if n_permutations < 99:
        raise ValueError(f"n_permutations must be at least 99, got {n_permutations}.")
    result = read_attention(adata, key or _keys.ATTENTION)
    params, genes = result["params"], result["genes"].reset_index(drop=True)
    name = gene_set if isinstance(gene_set, str) else "genes"
    known = [str(s) for s in params["gene_sets"]]
    if isinstance(gene_set, str) and gene_set in known:
        wanted = np.asarray(result["membership"])[:, known.index(gene_set)].astype(bool)
    else:
        wanted = find_members(genes, gene_set, name)
    sums = donor_sums(result, group)
    total = sums.total()
    often = total.n_tokens[0] >= min_tokens
    rows = np.flatnonzero(often)
    covariates = genes[list(COVARIATES)].to_numpy(dtype=float)
    strata = make_strata(covariates[rows])
    compared = usable(wanted[rows], strata)
    kept = rows[compared]
    member, strata = wanted[kept], strata[compared]
    if member.sum() < MIN_GENES:
        raise ValueError(
            f"{int(member.sum())} genes of the set {name!r} are seen {min_tokens} times and have others like them "
            f"({int(wanted.sum())} are in the set); at least {MIN_GENES} are needed. Read more cells (n_cells of "
            "mt.tl.attention), or lower min_tokens."
        )

    heads, replication = _heads(sums, kept, member, strata, n_permutations, rng)
    table = pd.concat([head_table(params), heads], axis=1)
    settings = {
        "unit": "log2 ratio",
        "gene_set": name,
        "group": group,
        "attention": key or _keys.ATTENTION,
        "min_tokens": min_tokens,
        "n_permutations": n_permutations,
        "n_genes_set": int(wanted.sum()),
        "n_genes_compared": int(member.sum()),
        "n_genes_others": int((~member).sum()),
        "n_units": len(sums.donors),
        "unit_of_inference": unit_name(params),
        "seed": rng,
        **replication,
    }
    write_result(
        adata,
        _keys.HEAD_ENRICHMENT,
        settings,
        key_added=key_added,
        heads=table,
        genes=genes.loc[kept, ["gene", "ensembl_id", "symbol", *COVARIATES]].assign(
            in_set=member, stratum=strata
        ),
        balance=_balance(covariates[rows], wanted[rows], covariates[kept], member, strata),
    )


def _heads(
    sums: DonorSums, kept: np.ndarray, member: np.ndarray, strata: np.ndarray, n: int, seed: int
) -> tuple[pd.DataFrame, dict]:
    """Effect on each head, and how well it replicates."""
    sums = DonorSums(*(part[:, kept] for part in sums[:4]), sums.donors)
    weight = other_weights(member, strata)
    total = sums.total()
    effect = log2_ratio(total.rates[0], member, weight)
    null, moved = null_ratios(total.rates[0], member, strata, n, np.random.default_rng(seed))
    p, middle, spread = two_sided(effect, null, FLAT)
    mass = total.mass[0] / total.n_tokens[0][:, None]
    low, high = _interval(effect, _left_out(sums, total, member, weight))
    table = pd.DataFrame(
        {
            "log2_ratio": effect,
            "log2_ratio_low": low,
            "log2_ratio_high": high,
            "raw": np.log2(mass[member].mean(axis=0) / mass[~member].mean(axis=0)),
            "null_mean": middle,
            "null_sd": spread,
            "p_value": p,
            "q_value": benjamini_hochberg(p),
        }
    )
    replication = {"share_exchanged": moved, "replication_r": np.nan, "replication_sign": np.nan}
    for i, rows in enumerate(sums.halves(seed)):
        rates = sums.total(rows).rates[0] if len(rows) else np.full(mass.shape, np.nan)
        known = np.isfinite(rates).all(axis=1)
        enough = (known & member).any() and (known & ~member).any()
        table[f"half_{i + 1}"] = log2_ratio(rates, member, weight) if enough else np.nan
    halves = table[["half_1", "half_2"]].to_numpy()
    table["same_sign"] = (np.sign(halves).prod(axis=1) > 0) & (spread >= FLAT)
    varies = (spread >= FLAT) & np.isfinite(halves).all(axis=1)
    if varies.any():
        replication["replication_sign"] = float(table["same_sign"][varies].mean())
    if varies.sum() > 2:
        replication["replication_r"] = float(np.corrcoef(halves[varies].T)[0, 1])
    return table, replication


def _left_out(sums: DonorSums, total: DonorSums, member: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Effects without each donor in turn."""
    effects = []
    for donor in range(len(sums.donors)):
        with np.errstate(divide="ignore", invalid="ignore"):
            seen = (total.n_tokens[0] - sums.n_tokens[donor] > 0.5)[:, None]
            rates = (total.mass[0] - sums.mass[donor]) / (total.expected[0] - sums.expected[donor])
        effects.append(log2_ratio(np.where(seen, rates, np.nan), member, weight))
    return np.array(effects)


def _interval(effect: np.ndarray, left_out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95% jackknife interval; NaN for fewer than three donors."""
    n = len(left_out)
    if n < 3:
        return np.full(len(effect), np.nan), np.full(len(effect), np.nan)
    reach = stats.t.ppf(0.975, n - 1) * np.sqrt((n - 1) * left_out.var(axis=0))
    return effect - reach, effect + reach


def _balance(
    before: np.ndarray, wanted: np.ndarray, after: np.ndarray, member: np.ndarray, strata: np.ndarray
) -> pd.DataFrame:
    """Differences of the set from the others, before and after matching, in standard deviations of the ranks."""
    weight = other_weights(member, strata)
    rows = []
    for i, name in enumerate(COVARIATES):
        ranks = stats.rankdata(before[:, i])
        scale = ranks.std() or 1.0
        of = np.interp(after[:, i], np.sort(before[:, i]), np.sort(ranks))
        matched = np.average(of[~member], weights=weight[~member])
        rows.append(
            {
                "covariate": name,
                "difference_before": (ranks[wanted].mean() - ranks[~wanted].mean()) / scale,
                "difference_after": (of[member].mean() - matched) / scale,
            }
        )
    return pd.DataFrame(rows)
