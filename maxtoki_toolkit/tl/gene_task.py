"""Labels of genes predicted from their embeddings, beside what simple measurements of the genes predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from .._features import symbols
from .._progress import hidden, progress
from ..models.model import MaxTokiModel
from ..results.store import write_result
from ..stats.binary_scores import bootstrap_weights
from ..stats.fdr import benjamini_hochberg
from ..stats.gene_probe import (
    choose_penalty,
    family_folds,
    fold_means,
    inner_folds,
    out_of_fold,
    shuffled_by_family,
)
from ._gene_families import gene_families
from ._gene_labels import label_matrix
from ._gene_vectors import gene_predictors, read_vectors

MODEL, CHANCE, TOGETHER, ADDED = "MaxToki", "chance", "all baselines", "all baselines and MaxToki"
ALL_SETS = "all sets"
MIN_GENES = 10  # with a label, and without
N_BOOTSTRAP = 500


class _Scored(NamedTuple):
    """Scores of one predictor, and those of shuffled labels."""

    log_odds: np.ndarray
    null_auroc: np.ndarray
    null_auprc: np.ndarray


def gene_task(
    adata: AnnData,
    model: MaxTokiModel,
    *,
    labels: pd.DataFrame | Mapping[str, Sequence[str]] | str | Path,
    key: str = _keys.GENE_EMBEDDING,
    n_folds: int = 5,
    n_permutations: int = 100,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Predict labels of genes from gene embeddings, beside baselines, an untrained model and shuffled labels.

    Parameters
    ----------
    adata
        Rank-encoded cells with gene embeddings (`mt.tl.embed_genes`) and the raw counts that were ranked.
    model
        The model that embedded them.
    labels
        A table with a column `gene` (symbol, Ensembl id or `.var_names`) and a column of 1 and 0 for each
        label; genes that are missing there are left out. Or gene sets, by name or as a file (.gmt, .gmt.gz),
        or "TF" for the transcription factors: all other genes that have an embedding are then without the
        label.
    key
        Key of the embeddings in `.varm`.
    n_folds
        Folds over families of genes.
    n_permutations
        Times that labels are shuffled. The p value is no smaller than 1 / (n_permutations + 1).
    rng
        Seed of the folds, the shuffles, the bootstrap, PCA and the untrained model.
    key_added
        Key in `.uns`, by default "gene_task".

    Returns
    -------
    `None`. Writes to `.uns["gene_task"]` the tables

    `scores`
        A row a set and predictor: the model's embedding ("MaxToki"); those of a model of the same shape with
        random weights ("untrained"); "expression" (mean of log-normalised counts), "detection" (share of the
        cells that have the gene), "gene length" (the logarithm, where `.var` has `gene_length` or
        `feature_length`) and "PCA loadings" (50 components of the cells); "all baselines" together, without
        the untrained model; these and the embedding.

        `gene_set`, `predictor`
            Which; with several sets also "all sets", pairs of genes and sets together (micro average).
        `n_genes`, `n_positive`, `n_families`
            Genes that were predicted, those with the label, and families among them.
        `auroc`, `auprc`
            Area under the ROC curve and average precision of genes that the regression has not seen, means
            over the folds, each with a 95% interval over families (bootstrap, given the predictions).
        `prevalence`
            Share with the label: what `auprc` is by chance.
        `difference`
            AUROC of the embedding less that of the row, with its interval.
        `null_auroc`, `null_auroc_high`, `null_auprc`, `null_auprc_high`
            Mean and 95th percentile with shuffled labels.
        `p_value`, `q_value`
            One-sided: share of shuffles in which the AUROC is as high; corrected for all rows (Benjamini and
            Hochberg).

    `genes`
        A row a set and gene: `gene`, `symbol`, `gene_set`, `label`, `family`, `fold`, and `log_odds` by the
        embedding.

    Raises
    ------
    KeyError
        If there are no gene embeddings.
    ValueError
        If fewer than 10 genes have a label, or lack it, or the labels are no 1 and 0.

    Notes
    -----
    Logistic regression with an L2 penalty, chosen in the training folds alone by AUROC (over the five most
    common sets, where there are more). Genes are the units, and paralogues are not independent: genes whose
    symbols have the same stem (RPL3, RPL4), or that have a mouse orthologue in common, are a family, which is
    never in training and test at once, is drawn as one by the bootstrap, and keeps its labels together when
    they are shuffled. A gene that the model does not read has no embedding and is left out of every
    predictor, so that all are scored on the same genes.

    An embedding in cells knows how high genes rank: what it is worth shows beside "expression" and in what it
    adds to all baselines. Intervals leave out that other folds would give other regressions: they are short.

    Examples
    --------
    >>> import numpy as np, pandas as pd, maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(100, 10, n_genes=500)
    >>> mt.pp.map_genes(adata)
    >>> vocab = mt.models.Vocabulary.from_anndata(adata)
    >>> mt.pp.rank_value_encode(adata, vocab)
    >>> shape = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
    ...              max_position_embeddings=128)
    >>> model = mt.models.build_model(shape, vocab)  # that has learned nothing
    >>> mt.tl.embed_genes(adata, model)
    >>> labels = pd.DataFrame({"gene": adata.var_names, "some": np.arange(500) % 3 == 0})
    >>> mt.tl.gene_task(adata, model, labels=labels, n_folds=2, n_permutations=1)
    >>> scores = mt.get.table(adata, "gene_task").set_index("predictor")
    >>> bool(0 < scores.loc["MaxToki", "auprc"] < 1)
    True
    """
    if n_folds < 2:
        raise ValueError(f"n_folds must be at least 2, got {n_folds}.")
    read_vectors(adata, key)
    matrix, names, n_missing = label_matrix(adata, labels)
    predictors, settings = gene_predictors(adata, model, key, rng)
    ids = adata.var[_keys.ENSEMBL_ID].astype(str).to_numpy(dtype=object)
    usable = np.isfinite(matrix).any(axis=1) & np.all(
        [np.isfinite(X).all(axis=1) for X in predictors.values()], axis=0
    )
    usable &= ~pd.Index(np.where(usable, ids, np.arange(len(ids)).astype(str))).duplicated()
    # By their ids, so that the order of the columns does not matter.
    genes = np.flatnonzero(usable)[np.argsort(ids[usable], kind="stable")]
    matrix = matrix[genes]
    for j, name in enumerate(names):
        n_in, n_out = int((matrix[:, j] == 1).sum()), int((matrix[:, j] == 0).sum())
        if min(n_in, n_out) < MIN_GENES:
            raise ValueError(
                f"Of the genes with an embedding, {n_in} have the label {name!r} and {n_out} are without it; {MIN_GENES} of "
                'each are needed. More genes have one with mt.tl.embed_genes(adata, model, context="alone").'
            )
    predictors = {name: X[genes] for name, X in predictors.items()}
    gene_symbols = symbols(adata)[genes]
    family = gene_families(ids[genes], gene_symbols)
    if (n_families := int(family.max()) + 1) < 2 * n_folds:
        raise ValueError(f"{len(genes)} genes of {n_families} families are too few for {n_folds} folds.")
    fold = family_folds(matrix, family, n_folds, rng)
    inner = inner_folds(matrix, family, fold, rng)
    random = np.random.default_rng(rng)
    orders = [shuffled_by_family(family, random) for _ in range(n_permutations)]
    # Folds are balanced by the labels: those of shuffled ones have to be as well.
    shuffles = [(order, family_folds(matrix[order], family, n_folds, rng)) for order in orders]
    scored = {}
    with progress(total=len(predictors), desc="Predicting labels", unit="predictor") as bar, hidden():
        for name, X in predictors.items():
            scored[name] = _score(X, matrix, fold, inner, shuffles)
            bar.update()
    params = {**settings, "key": key, "n_folds": n_folds, "n_permutations": n_permutations, "seed": rng}
    params |= {"n_genes": len(genes), "n_families": n_families, "n_labels_not_found": n_missing}
    params |= {"n_bootstrap": N_BOOTSTRAP, "test": "shuffled labels, one-sided, Benjamini and Hochberg"}
    place = np.argwhere(np.isfinite(matrix))
    table = pd.DataFrame(
        {
            "gene": ids[genes][place[:, 0]],
            "symbol": gene_symbols[place[:, 0]],
            "gene_set": np.array(names, dtype=object)[place[:, 1]],
            "label": matrix[place[:, 0], place[:, 1]].astype(np.int64),
            "family": family[place[:, 0]],
            "fold": fold[place[:, 0]],
            "log_odds": scored[MODEL].log_odds[place[:, 0], place[:, 1]],
        }
    )
    scores = _score_table(scored, matrix, names, family, fold, rng)
    write_result(
        adata, _keys.GENE_TASK, {**model.params, **params}, key_added=key_added, scores=scores, genes=table
    )


def _columns(matrix: np.ndarray) -> list[np.ndarray]:
    """Each set, and all of them together where there are several."""
    own = [np.array([j]) for j in range(matrix.shape[1])]
    return own if len(own) == 1 else [*own, np.arange(len(own))]


def _score(
    X: np.ndarray,
    labels: np.ndarray,
    fold: np.ndarray,
    inner: list[np.ndarray],
    shuffles: list[tuple[np.ndarray, np.ndarray]],
) -> _Scored:
    """Predict the labels, and shuffled ones with the same penalties."""
    penalties = [choose_penalty(X, labels, part) for part in inner]
    log_odds = out_of_fold(X, labels, fold, penalties)
    nulls = []
    for order, folds in shuffles:
        shuffled = labels[order]
        scores = out_of_fold(X, shuffled, folds, penalties)
        nulls.append([fold_means(scores[:, c], shuffled[:, c], folds) for c in _columns(labels)])
    null = np.array(nulls)[..., 0]
    return _Scored(log_odds, null[..., 0], null[..., 1])


def _score_table(
    scored: dict[str, _Scored],
    labels: np.ndarray,
    names: list[str],
    family: np.ndarray,
    fold: np.ndarray,
    seed: int,
) -> pd.DataFrame:
    """Areas of each set and predictor with their intervals and nulls."""
    draws = bootstrap_weights(family, len(family), N_BOOTSTRAP, np.random.default_rng(seed))
    weight = np.vstack([np.ones(len(family), dtype=draws.dtype), draws])
    rows = []
    for place, (columns, gene_set) in enumerate(zip(_columns(labels), [*names, ALL_SETS], strict=False)):
        y = labels[:, columns]
        known = np.isfinite(y).any(axis=1)
        areas = {
            name: fold_means(part.log_odds[:, columns], y, fold, weight) for name, part in scored.items()
        }
        about = {"n_genes": int(known.sum()), "n_positive": int((y == 1).any(axis=1).sum())}
        about |= {"n_families": len(np.unique(family[known])), "prevalence": float(np.nanmean(y))}
        for name, part in scored.items():
            row = {"gene_set": gene_set, "predictor": name, **about}
            lead = areas[MODEL][0] - areas[name][0]
            for what, values in zip(("auroc", "auprc", "difference"), (*areas[name], lead), strict=True):
                low, high = np.nanquantile(values[1:], [0.025, 0.975])
                row |= {what: values[0], f"{what}_low": low, f"{what}_high": high}
            for what, null in (("auroc", part.null_auroc[:, place]), ("auprc", part.null_auprc[:, place])):
                row |= {f"null_{what}": np.nanmean(null), f"null_{what}_high": np.nanquantile(null, 0.95)}
            row["p_value"] = (1 + (part.null_auroc[:, place] >= row["auroc"]).sum()) / (1 + len(null))
            rows.append(row)
    table = pd.DataFrame(rows)
    table["q_value"] = benjamini_hochberg(table["p_value"].to_numpy())
    return table
