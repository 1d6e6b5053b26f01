"""Genes that some lines or cell types depend on and others do not, predicted for groups that were never tested."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import stats

from .. import _keys
from .._features import locate_genes, symbols
from .._progress import hidden, progress
from ..models.model import MaxTokiModel
from ..pp._design import get_groups, known_cells
from ..results.store import write_result
from ..stats.context_probe import Panel, area_within, precision_of_top, predict_groups, shuffled_within_genes
from ..stats.fdr import benjamini_hochberg
from ._embedding_baselines import untrained_twin
from ._gene_vectors import embedding_settings, gene_means, gene_vectors, pca_loadings

OTHERS = "other groups"
MIN_INTERVAL = 5  # groups
MOST_LEFT_OUT = 10  # groups that are left out one by one; five folds where there are more
MIN_CANDIDATES = 10


def nominate_targets(
    adata: AnnData,
    model: MaxTokiModel,
    *,
    dependency: pd.DataFrame,
    key: str = _keys.GENE_EMBEDDING,
    n_top: int = 100,
    min_share: float = 0.1,
    max_share: float = 0.5,
    n_permutations: int = 100,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Nominate genes that a group of cells depends on and most others do not, and score that on groups left out.

    Parameters
    ----------
    adata
        Rank-encoded cells with gene embeddings by group (`mt.tl.embed_genes` with `groupby`) and the raw
        counts that were ranked.
    model
        The model that embedded them.
    dependency
        Genes (index: symbols or Ensembl ids) x groups (columns): 1 where the group depends on the gene, 0
        where it does not, NaN where that is not known. Groups without cells may be there: they count for how
        many depend on a gene.
    key
        Key of the embeddings in `.varm`.
    n_top
        Genes that are nominated in each group.
    min_share, max_share
        Share of the other groups that depends on a gene, for it to be a candidate.
    n_permutations
        Times that dependencies are shuffled. The p value is no smaller than 1 / (n_permutations + 1).
    rng
        Seed of folds, shuffles, PCA and the untrained model.
    key_added
        Key in `.uns`, by default "nominate_targets".

    Returns
    -------
    `None`. Writes to `.uns["nominate_targets"]` the tables

    `scores`
        A row a predictor, mean over the groups: "other groups" (the share of them that depends on the gene,
        alone), and with it "expression" (of the gene in the group), "PCA loadings" (50 components, times the
        group's mean scores), "untrained" (embeddings by random weights) and "MaxToki".

        `predictor`, `n_groups`, `n_genes`
            Which; groups that were left out; mean number of candidates a group.
        `auroc`, `auroc_low`, `auroc_high`
            Area under the ROC curve among genes of like share (tenths), so that the share alone gives about
            0.5; with a 95% interval over groups (t) where there are five or more.
        `precision`, `precision_low`, `precision_high`, `prevalence`
            Share of the top genes that the group depends on, and of all candidates.
        `null_auroc`, `null_auroc_high`, `null_precision`, `null_precision_high`
            Mean and 95th percentile when each gene's dependencies are exchanged between the groups.
        `p_value`, `q_value`
            One-sided, of the AUROC: share of exchanges with one as high; corrected for the predictors
            (Benjamini and Hochberg).

    `groups`
        A row a predictor and group: `predictor`, `group`, `n_genes`, `n_positive`, `auroc`, `precision`.

    `targets`
        A row a group and nominated gene, best first: `group`, `gene`, `symbol`, `place`, `log_odds`,
        `share` (of the other groups) and `depends` (1, 0, or NaN where it is not known).

    Raises
    ------
    KeyError
        If there are no gene embeddings by group.
    ValueError
        If fewer than three groups have both cells and dependencies, or there are too few candidates.

    Notes
    -----
    Logistic regression (L2, C = 0.1) over pairs of genes and groups; what is predicted of a group is by
    regressions that saw none of it: each group is left out in turn, or in five folds where there are more
    than ten. A gene has two vectors: its mean over the groups of the training, and by how much it differs
    from that in the group. Shares leave out the group they are used for.

    Groups are the units. Each gene keeps its number of dependencies in the null, so that being needed often
    is no evidence of knowing where. (Tahoe-x1's benchmark scores random forests in strata of the share.)

    Examples
    --------
    >>> import numpy as np, pandas as pd, maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(200, 10, n_genes=500)
    >>> mt.pp.map_genes(adata)
    >>> vocab = mt.models.Vocabulary.from_anndata(adata)
    >>> mt.pp.rank_value_encode(adata, vocab)
    >>> shape = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
    ...              max_position_embeddings=128)
    >>> model = mt.models.build_model(shape, vocab)  # that has learned nothing
    >>> mt.tl.embed_genes(adata, model, groupby="cell_type")
    >>> groups = sorted(adata.obs["cell_type"].unique())
    >>> depends = np.random.default_rng(0).random((500, len(groups))) < 0.3  # of nothing
    >>> table = pd.DataFrame(depends, index=adata.var_names, columns=groups)
    >>> mt.tl.nominate_targets(adata, model, dependency=table, n_top=10, n_permutations=1)
    >>> mt.get.table(adata, "nominate_targets")["predictor"].tolist()
    ['MaxToki', 'untrained', 'expression', 'PCA loadings', 'other groups']
    """
    if not min_share < max_share:
        raise ValueError(f"min_share must be below max_share, got {min_share} and {max_share}.")
    settings = embedding_settings(adata, model, key)
    into = f"{key}_groups"
    if into not in adata.varm or not settings["groupby"]:
        raise KeyError(
            f"Did not find .varm[{into!r}]. Run mt.tl.embed_genes(adata, model, groupby=...) first."
        )
    cells, _ = known_cells(adata, settings["groupby"])
    _, names = get_groups(cells, settings["groupby"])
    vectors = np.asarray(adata.varm[into], dtype=np.float64)
    if vectors.shape[1] != len(names):
        raise ValueError(
            f".varm[{into!r}] has {vectors.shape[1]} groups, and the cells are of {len(names)} by "
            f"{', '.join(settings['groupby'])}. Run mt.tl.embed_genes again."
        )
    rows, labels, others = _align(adata, dependency, names)
    here = np.isfinite(labels).any(axis=0)
    if here.sum() < 3:
        raise ValueError(
            f"{here.sum()} of the groups ({', '.join(names[:5])} ...) are columns of dependency; 3 at least are needed. Its "
            f"columns are {', '.join(map(str, dependency.columns[:5]))} ..."
        )
    twin = gene_vectors(
        cells,
        untrained_twin(model, rng),
        **{name: settings[name] for name in ("context", "layer", "min_cells", "whole_cells", "groupby")},
    ).groups
    loadings, scores = pca_loadings(cells, seed=rng)
    of_cell, _ = get_groups(cells, settings["groupby"])
    centres = np.stack([scores[of_cell == i].mean(axis=0) for i in range(len(names))])
    features = {
        "MaxToki": vectors[rows],
        "untrained": twin[rows].astype(np.float64),
        "expression": gene_means(cells, settings["groupby"])[rows][..., None],
        "PCA loadings": loadings[rows][:, None, :] * centres[None],
        OTHERS: np.zeros((len(rows), len(names), 0)),
    }
    seen = np.isfinite(features["MaxToki"]).all(axis=2) & np.isfinite(features["untrained"]).all(axis=2)
    labels, seen = labels[:, here], seen[:, here]
    groups = np.array(names, dtype=object)[here]
    features = {name: X[:, here] for name, X in features.items()}
    fold = _folds(len(groups), rng)
    limits = (min_share, max_share)
    panels = {name: Panel(X, labels, seen, others, fold, limits) for name, X in features.items()}
    random = np.random.default_rng(rng)
    shuffles = [shuffled_within_genes(labels, seen, random) for _ in range(n_permutations)]
    tables, summary, nominated = [], [], None
    with progress(total=len(panels), desc="Predicting dependencies", unit="predictor") as bar, hidden():
        for name, panel in panels.items():
            found = predict_groups(panel)
            if not tables and (least := min((f.rows.size for f in found), default=0)) < MIN_CANDIDATES:
                raise ValueError(
                    f"A group has {least} genes that {min_share:.0%} to {max_share:.0%} of the other groups depend on and that "
                    f"have an embedding; {MIN_CANDIDATES} are needed. Widen min_share and max_share."
                )
            table = _by_group(found, groups, n_top)
            nulls = []
            for shuffled in shuffles:
                null = _by_group(predict_groups(panel._replace(labels=shuffled)), groups, n_top)
                nulls.append(null[["auroc", "precision"]].mean())
            null = pd.DataFrame(nulls)
            summary.append(_summary(name, table, null))
            tables.append(table.assign(predictor=name))
            nominated = found if name == "MaxToki" else nominated
            bar.update()
    scores = pd.DataFrame(summary)
    scores["q_value"] = benjamini_hochberg(scores["p_value"].to_numpy())
    by_group = pd.concat(tables, ignore_index=True)
    ids = adata.var[_keys.ENSEMBL_ID].astype(str).to_numpy(dtype=object)[rows]
    targets = [
        pd.DataFrame(
            {
                "group": group,
                "gene": ids[part.rows[best]],
                "symbol": symbols(adata)[rows][part.rows[best]],
                "place": np.arange(1, len(best) + 1),
                "log_odds": part.log_odds[best],
                "share": part.share[best],
                "depends": part.labels[best],
            }
        )
        for group, part in zip(groups, nominated, strict=True)
        for best in [np.argsort(-part.log_odds, kind="stable")[:n_top]]
    ]
    params = {**settings, "key": key, "n_top": n_top, "min_share": min_share, "max_share": max_share}
    params |= {"n_permutations": n_permutations, "seed": rng, "n_groups": len(groups)}
    params |= {"n_folds": int(fold.max()) + 1, "n_other_groups": int(len(dependency.columns) - len(groups))}
    params["test"] = "dependencies exchanged within genes, one-sided, Benjamini and Hochberg"
    write_result(
        adata,
        _keys.NOMINATE_TARGETS,
        {**model.params, **params},
        key_added=key_added,
        scores=scores,
        groups=by_group[["predictor", "group", "n_genes", "n_positive", "auroc", "precision"]],
        targets=pd.concat(targets, ignore_index=True),
    )


def _align(
    adata: AnnData, dependency: pd.DataFrame, names: list[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Columns of the AnnData, their labels by group, and sums over groups without cells (dependent, known)."""
    values = dependency.to_numpy(dtype=float)
    if (bad := np.isfinite(values) & ~np.isin(values, (0, 1))).any():
        raise ValueError(
            f"dependency holds {values[bad][0]:g}: it takes 1 (depends), 0 (does not) or NaN. Cut scores first, e.g. "
            "(scores < -0.5).where(scores.notna())."
        )
    if dependency.columns.has_duplicates:
        raise ValueError("dependency has a column twice. Name each group once.")
    column = locate_genes(adata, dependency.index)
    # The first row of a gene counts.
    there = (column >= 0) & ~pd.Index(np.where(column >= 0, column, -1)).duplicated()
    ids = adata.var[_keys.ENSEMBL_ID].astype(str).to_numpy(dtype=object)
    kept = np.flatnonzero(there)
    kept = kept[np.argsort(ids[column[kept]], kind="stable")]
    own = dependency.columns.astype(str).get_indexer(names)
    labels = np.full((len(kept), len(names)), np.nan)
    labels[:, own >= 0] = values[kept][:, own[own >= 0]]
    rest = np.delete(values[kept], own[own >= 0], axis=1)
    return column[kept], labels, np.stack([np.nansum(rest, axis=1), np.isfinite(rest).sum(axis=1)], axis=1)


def _folds(n_groups: int, seed: int) -> np.ndarray:
    """Fold of each group."""
    if n_groups <= MOST_LEFT_OUT:
        return np.arange(n_groups)
    return np.random.default_rng(seed).permutation(np.arange(n_groups) % 5)


def _by_group(found: list, groups: np.ndarray, n_top: int) -> pd.DataFrame:
    """AUROC among genes of like share and precision of the top genes, of each group."""
    rows = []
    for group, part in zip(groups, found, strict=True):
        known = np.isfinite(part.labels)
        rows.append(
            {
                "group": group,
                "n_genes": int(known.sum()),
                "n_positive": int(np.nansum(part.labels)),
                "auroc": area_within(part.log_odds[known], part.labels[known], part.share[known]),
                "precision": precision_of_top(part.log_odds[known], part.labels[known], n_top),
            }
        )
    return pd.DataFrame(rows)


def _summary(name: str, table: pd.DataFrame, null: pd.DataFrame) -> dict:
    """Mean over the groups, with interval and null."""
    row = {"predictor": name, "n_groups": len(table), "n_genes": float(table["n_genes"].mean())}
    for what in ("auroc", "precision"):
        values = table[what].dropna().to_numpy()
        low = high = np.nan
        if len(values) >= MIN_INTERVAL:
            reach = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
            low, high = values.mean() - reach, values.mean() + reach
        row |= {what: values.mean() if len(values) else np.nan, f"{what}_low": low, f"{what}_high": high}
        row |= {f"null_{what}": null[what].mean(), f"null_{what}_high": null[what].quantile(0.95)}
    row["prevalence"] = float(table["n_positive"].sum() / max(table["n_genes"].sum(), 1))
    row["p_value"] = (1 + (null["auroc"] >= row["auroc"]).sum()) / (1 + len(null))
    return row
