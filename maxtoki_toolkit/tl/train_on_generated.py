"""Whether a classifier that has seen generated cells only knows true ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from .._progress import progress
from ..models.model import MaxTokiModel
from ..pp._design import as_list
from ..results.store import write_result
from ..stats.classification import (
    Scores,
    fit_classifier,
    score_labels,
    shuffle_genes,
    with_share_intervals,
)
from ..stats.donors import jackknife_interval, jackknife_weights
from ._prompted import asked_groups, by_prompts, features_at, other_cells, read_prompted
from ._rank_features import rank_features


def train_on_generated(
    adata: AnnData,
    model: MaxTokiModel,
    *,
    generated: AnnData,
    groupby: str | Sequence[str] | None = None,
    donor_key: str | None = None,
    n_permutations: int = 50,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Train a classifier of types on generated cells, and test it on true cells of other donors.

    Parameters
    ----------
    adata
        Rank-encoded true cells, with the prompts: cells of the prompts' donors are for training, those of
        other donors for testing.
    model
        The model that generated.
    generated
        Generated cells: `mt.tl.generate(adata, model)`.
    groupby
        Column or columns of `.obs` with the type, by default those of the prompts. The context cells of a
        prompt agree in it; that is the prompted type.
    donor_key
        Column of `.obs` with the donor, by default that of the prompts.
    n_permutations
        Trainings with permuted labels.
    rng
        Seed of the draws of training cells, of the shuffled genes and of the permutations.
    key_added
        Key in `.uns`, by default "train_on_generated".

    Returns
    -------
    `None`. Writes to `.uns["train_on_generated"]` the tables

    `scores`
        A row a training: scores on true cells of other donors, from 0 to 1, with `_low` and `_high`, the ends
        of their 95% interval over donors (of "labels permuted": of 95% of the permutations):

        `training`
            What the classifier was trained on.
        `accuracy`, `macro_f1`
            Share of cells given their type; mean F1 of the types.
        `difference`
            Macro-F1 less that of the training on true cells, paired.
        `p_value`
            One-sided, permuting labels; of the training on generated cells only.
        `n_train_cells`, `n_test_cells`, `n_donors`
            Cells of each training, cells tested, and their donors.

    `donors`
        A row a `training` and tested `donor`: `accuracy` and `macro_f1` of the `n_cells` of this donor, the
        latter over the types that he or she has.

    Raises
    ------
    KeyError
        If prompts or columns are missing.
    ValueError
        If all true cells are of the prompts' donors, or fewer than two types have cells on both sides.

    Notes
    -----
    The classifier is a logistic regression on the ranks of the genes that the model reads (1 for the highest,
    falling evenly to 0), in which each type weighs the same. It is trained, each time with the same number of
    cells of each type, on

    ``true``
        true cells of the prompts' donors: the ceiling;
    ``true, genes shuffled``
        the same, the genes within each cell in random order: what the set of genes is worth without their
        ranks;
    ``generated``
        generated cells with the type that was asked for;
    ``generated, genes shuffled``
        the same, in random order ("bag of genes");
    ``context``
        the last context cells of the same prompts: a model that copies them. Where prompts share context
        cells, these are fewer than they seem;
    ``labels permuted``
        generated cells, the types exchanged between them: chance (mean and 95% range over the permutations).
        `p_value` is the share of permutations with as high a macro-F1, one-sided, without correction: it is
        one test.

    All are tested on the same true cells, of donors without a part in the prompts and of the types that were
    generated. That the model itself was not trained on these donors is up to the prompts: hold them out
    (`mt.pp.hold_out`). The 95% intervals leave out each tested donor in turn (jackknife, on the scale of the
    arcsine of the square root); they hold for these training cells. **A model that copies its context cells
    does as well as they do**, see `mt.tl.generation_diversity`.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(400, 12)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.hold_out(adata, donor_key="donor_id", donors=0.5, time_key="age_months")
    >>> mt.pp.sample_prompts(
    ...     adata, time_key="age_months", groupby="cell_type", donor_key="donor_id", task="cell", n_prompts=6,
    ...     context_size=1, contexts="held_out", queries="held_out",
    ...     sampling=mt.pp.PromptSampling(balance=1))
    >>> cells = mt.tl.generate(adata, model, max_genes=10)
    >>> mt.tl.train_on_generated(
    ...     adata, model, generated=cells, groupby="cell_type", donor_key="donor_id", n_permutations=2)
    >>> mt.get.table(adata, "train_on_generated")["training"].tolist()[:3]
    ['true', 'true, genes shuffled', 'generated']
    """
    groupby, donor_key = by_prompts(adata, generated, groupby=groupby, donor_key=donor_key)
    if donor_key is None:
        raise ValueError("Give donor_key: the prompts do not say which column of .obs holds the donor.")
    cells, generated, prompted = read_prompted(adata, model, generated, donor_key, groupby)
    group, asked, names = asked_groups(cells, prompted, groupby)
    apart, ours = other_cells(prompted), prompted.taken
    types = np.intersect1d(np.intersect1d(asked, group[ours]), group[apart])
    if len(types) < 2:
        raise ValueError(
            f"Need two types with generated cells, true cells of the prompts' donors and true cells of other donors; found "
            f"{[names[code] for code in types]}. Generate cells of more types."
        )
    random = np.random.default_rng(rng)
    made, true, left = _draw_alike(asked, group, ours, types, random)
    label = asked[made]
    features = {
        "true": features_at(cells, model, true),
        "generated": rank_features(generated, model)[made],
        "context": features_at(cells, model, prompted.last[made]),
    }
    training = {
        "true": features["true"],
        "true, genes shuffled": shuffle_genes(features["true"], random),
        "generated": features["generated"],
        "generated, genes shuffled": shuffle_genes(features["generated"], random),
        "context": features["context"],
    }
    test = np.flatnonzero(apart & np.isin(group, types))
    X, answer = features_at(cells, model, test), group[test]
    donor = prompted.donor[test]
    weights, n_donors = jackknife_weights(pd.DataFrame({"donor": donor}), "donor", np.random.default_rng(rng))
    by_donor, tested = (np.unique(donor.astype(str)) == donor[:, None]).T.astype(float), np.unique(donor)

    scores, donors = {}, []
    for name, features_of in training.items():
        found = fit_classifier(features_of, label).predict(X)
        scores[name] = score_labels(answer, found, len(names), weights)
        each = score_labels(answer, found, len(names), by_donor)
        donors.append(
            pd.DataFrame(
                {
                    "training": name,
                    "donor": tested,
                    "accuracy": each.accuracy,
                    "macro_f1": each.macro_f1,
                    "n_cells": by_donor.sum(axis=1).astype(int),
                }
            )
        )
    chance = []
    for _ in progress(range(n_permutations), desc="Permuting labels", unit="training"):
        found = fit_classifier(features["generated"], random.permutation(label)).predict(X)
        score = score_labels(answer, found, len(names))
        chance.append((score.accuracy[0], score.macro_f1[0]))

    params = {
        "groupby": as_list(groupby),
        "donor_key": donor_key,
        "types": [names[code] for code in types],
        "types_left_out": [names[code] for code in np.setdiff1d(asked, types)],
        "n_generated_left_out": left,
        "n_permutations": n_permutations,
        "seed": rng,
    }
    write_result(
        adata,
        _keys.TRAIN_ON_GENERATED,
        {**model.params, **params},
        key_added=key_added,
        scores=_score_table(scores, np.array(chance), n_donors).assign(
            n_train_cells=len(label), n_test_cells=len(test), n_donors=n_donors
        ),
        donors=pd.concat(donors, ignore_index=True),
    )


def _draw_alike(
    asked: np.ndarray, group: np.ndarray, ours: np.ndarray, types: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, int]:
    """As many generated as true cells of each type, in the same order of types; and how many generated are left out."""
    made, true = [], []
    for code in types:
        pools = [np.flatnonzero(asked == code), np.flatnonzero(ours & (group == code))]
        n = min(map(len, pools))
        for chosen, pool in zip((made, true), pools, strict=True):
            chosen.append(random.permutation(pool)[:n])
    made, true = np.concatenate(made), np.concatenate(true)
    return made, true, len(asked) - len(made)


def _score_table(scores: dict[str, Scores], chance: np.ndarray, n_donors: int) -> pd.DataFrame:
    """One row a training, with its paired difference to true cells in macro-F1."""
    rows = []
    for name, score in scores.items():
        behind = score.macro_f1 - scores["true"].macro_f1
        low, high = jackknife_interval(behind, n_donors)
        rows.append(
            {
                "training": name,
                **with_share_intervals(n_donors, accuracy=score.accuracy, macro_f1=score.macro_f1),
                "difference": behind[0],
                "difference_low": low,
                "difference_high": high,
                "p_value": np.nan,
            }
        )
        if name == "generated":
            as_high = (chance[:, 1] >= score.macro_f1[0] - 1e-9).sum()
            rows[-1]["p_value"] = (1 + as_high) / (len(chance) + 1)
    row = {"training": "labels permuted"}
    for name, values in zip(("accuracy", "macro_f1"), chance.T, strict=True):
        low, high = np.quantile(values, [0.025, 0.975])
        row |= {name: values.mean(), f"{name}_low": low, f"{name}_high": high}
    row["difference"] = row["macro_f1"] - scores["true"].macro_f1[0]
    return pd.DataFrame([*rows, row])
