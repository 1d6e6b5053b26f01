"""Whether generated cells are of the type that was asked for, to a classifier of true cells."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from ..models.model import MaxTokiModel
from ..pp._design import as_list
from ..results.store import write_result
from ..stats.classification import fit_classifier, score_labels, with_share_intervals
from ..stats.donors import jackknife_interval, jackknife_weights
from ._prompted import asked_groups, by_prompts, features_at, other_cells, read_prompted
from ._rank_features import rank_features


def annotation_concordance(
    adata: AnnData,
    model: MaxTokiModel,
    *,
    generated: AnnData,
    groupby: str | Sequence[str] | None = None,
    donor_key: str | None = None,
    n_permutations: int = 1000,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Annotate generated cells with a classifier of true cells, and compare with what was asked for.

    Parameters
    ----------
    adata
        Rank-encoded true cells, with the prompts: those of their donors are asked for, those of other donors
        train the classifier.
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
        Permutations of the prompted types for chance.
    rng
        Seed of the permutations.
    key_added
        Key in `.uns`, by default "annotation_concordance".

    Returns
    -------
    `None`. Writes to `.uns["annotation_concordance"]` the tables

    `scores`
        A row a kind of cell: scores from 0 to 1, with `_low` and `_high`, the ends of their 95% interval (of
        "permuted": of 95% of the permutations):

        `cells`
            "generated"; "query", the true cells in their place; "context", the last context cells; "majority"
            and "permuted", chance.
        `accuracy`, `macro_f1`
            Share of cells annotated with the type that was asked for; mean F1 of these types.
        `difference`
            Accuracy of the generated cells less that of these, paired.
        `p_value`
            One-sided, permuting types between prompts; of generated cells only.
        `n_cells`, `n_units`, `unit`
            Generated cells; how many donors (or prompts, where no donor is known) the intervals are over.

    `types`
        A row a kind of cell and type:

        `cells`, `type`
            "generated", "query" (the true cells in their place) or "context" (the last context cells); the
            type.
        `precision`, `recall`, `f1`
            From 0 to 1, with the ends of their 95% intervals; NaN where no cell is annotated so, or none was
            asked for.
        `n_prompted`, `n_annotated`
            Cells that were asked for, and that are annotated so.

    `cells`
        A row a generated cell: `cell` and `prompt`, its name and its prompt; `prompted`, the type that was
        asked for; `annotated`, what the classifier makes of it; `probability`, how sure that is (0-1).
        Counted in `mt.get.annotation_matrix`.

    Raises
    ------
    KeyError
        If prompts or columns are missing.
    ValueError
        If all true cells are of the prompts' donors, the context cells of a prompt differ in `groupby`, or a
        prompted type has no true cell to learn it from.

    Notes
    -----
    The classifier is a logistic regression on the ranks of the genes that the model reads (1 for the highest,
    falling evenly to 0), in which each type weighs the same. It has seen no cell of any donor in the prompts
    (nor of the prompts, where no donor is known). The same classifier annotates, prompt by prompt:

    ``generated``
        the generated cell;
    ``query``
        the true cell that the prompt asks for: the ceiling;
    ``context``
        the last context cell: a model that copies it;
    ``majority``
        the most common prompted type, whatever the cell;
    ``permuted``
        the generated cell, its prompted type that of another prompt (mean and 95% range of the permutations).
        `p_value` is the share of permutations with as high an accuracy, one-sided, without correction: it is
        one test.

    **A context cell is of the prompted type by construction, so concordance alone proves nothing:** a model
    that copies its context, or writes the average cell of its type, reaches the ceiling. Whether it does
    shows `mt.tl.generation_diversity`; whether time passes shows `mt.tl.generated_ages`.

    The 95% intervals leave out each donor in turn with all prompts that he or she has a part in (jackknife,
    on the scale of the arcsine of the square root), or each prompt where no donor is known; with the
    classifier as it is. Where every cell is right, or none, they have no width; that does not make it
    certain.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(400, 12)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.hold_out(adata, donor_key="donor_id", donors=0.5, time_key="age_months")
    >>> mt.pp.sample_prompts(
    ...     adata, time_key="age_months", groupby="cell_type", donor_key="donor_id", task="cell", n_prompts=4,
    ...     context_size=1, contexts="held_out", queries="held_out")
    >>> cells = mt.tl.generate(adata, model, max_genes=10)
    >>> mt.tl.annotation_concordance(adata, model, generated=cells, groupby="cell_type")
    >>> mt.get.table(adata, "annotation_concordance")["cells"].tolist()
    ['generated', 'query', 'context', 'majority', 'permuted']
    """
    groupby, donor_key = by_prompts(adata, generated, groupby=groupby, donor_key=donor_key)
    true, generated, prompted = read_prompted(adata, model, generated, donor_key, groupby)
    group, asked, names = asked_groups(true, prompted, groupby)
    train = np.flatnonzero(other_cells(prompted) & (group >= 0))
    _require_types(group[train], asked, names)
    classifier = fit_classifier(features_at(true, model, train), group[train])
    sources = {
        "generated": rank_features(generated, model),
        "query": features_at(true, model, prompted.query),
        "context": features_at(true, model, prompted.last),
    }
    found = {name: classifier.predict(X) for name, X in sources.items()}
    probability = classifier.predict_proba(sources["generated"]).max(axis=1)
    found["majority"] = np.full_like(asked, np.bincount(asked).argmax())

    weights, n_units = jackknife_weights(prompted.units, prompted.unit, np.random.default_rng(rng))
    scores = {name: score_labels(asked, label, len(names), weights) for name, label in found.items()}
    chance = _permuted(asked, found["generated"], prompted.prompt, len(names), n_permutations, rng)
    head = {"n_cells": len(asked), "n_units": n_units, "unit": prompted.unit}
    rows = [
        {
            "cells": name,
            **with_share_intervals(n_units, accuracy=score.accuracy, macro_f1=score.macro_f1),
            **_behind(scores["generated"].accuracy, score.accuracy, n_units),
            "p_value": np.nan,
            **head,
        }
        for name, score in scores.items()
    ]
    rows[0]["p_value"] = (1 + (chance[:, 0] >= scores["generated"].accuracy[0] - 1e-9).sum()) / (
        n_permutations + 1
    )
    rows.append(_chance_row(chance, scores["generated"].accuracy[0]) | {"p_value": np.nan, **head})

    params = {
        "groupby": as_list(groupby),
        "unit": prompted.unit,
        "n_train_cells": len(train),
        "n_types": len(np.unique(group[train])),
        "n_permutations": n_permutations,
        "seed": rng,
    }
    write_result(
        adata,
        _keys.CONCORDANCE,
        {**model.params, **params},
        key_added=key_added,
        scores=pd.DataFrame(rows),
        types=_types({name: scores[name] for name in sources}, found, asked, names, n_units),
        cells=pd.DataFrame(
            {
                "cell": generated.obs_names.to_numpy(dtype=object),
                "prompt": generated.obs["prompt"].astype(str).to_numpy(dtype=object),
                "prompted": np.array(names, dtype=object)[asked],
                "annotated": np.array(names, dtype=object)[found["generated"]],
                "probability": probability,
            }
        ),
    )


def _require_types(known: np.ndarray, asked: np.ndarray, names: list[str]) -> None:
    """Raise if there is nothing to tell apart, or a type that no true cell shows."""
    if len(missing := np.setdiff1d(asked, known)):
        raise ValueError(
            f"{len(missing)} prompted types (first: {names[missing[0]]!r}) have no true cell of donors without a part in the "
            "prompts: the classifier cannot learn them. Hold out fewer donors, or leave these generated cells out."
        )
    if len(np.unique(known)) < 2:
        raise ValueError(
            f"All true cells are of one type ({names[known[0]]!r}): there is nothing to tell apart."
        )


def _behind(generated: np.ndarray, other: np.ndarray, n_units: int) -> dict[str, float]:
    """By how much generated cells are ahead in accuracy, with the interval of the paired difference."""
    low, high = jackknife_interval(generated - other, n_units)
    return {"difference": generated[0] - other[0], "difference_low": low, "difference_high": high}


def _permuted(
    asked: np.ndarray, found: np.ndarray, prompt: np.ndarray, n_types: int, n: int, seed: int
) -> np.ndarray:
    """Accuracy and macro-F1 when prompts exchange their types, permutations x 2."""
    rng = np.random.default_rng(seed)
    of_prompt = asked[np.unique(prompt, return_index=True)[1]]
    drawn = [score_labels(rng.permutation(of_prompt)[prompt], found, n_types) for _ in range(n)]
    return np.array([(score.accuracy[0], score.macro_f1[0]) for score in drawn])


def _chance_row(chance: np.ndarray, accuracy: float) -> dict:
    row = {"cells": "permuted"}
    for name, values in zip(("accuracy", "macro_f1"), chance.T, strict=True):
        low, high = np.quantile(values, [0.025, 0.975])
        row |= {name: values.mean(), f"{name}_low": low, f"{name}_high": high}
    ahead = accuracy - chance[:, 0]
    low, high = np.quantile(ahead, [0.025, 0.975])
    return row | {"difference": ahead.mean(), "difference_low": low, "difference_high": high}


def _types(scores, found, asked: np.ndarray, names: list[str], n_units: int) -> pd.DataFrame:
    """Precision, recall and F1 of each type that was asked for, or annotated."""
    rows = []
    for name, score in scores.items():
        for code in np.unique(np.concatenate([asked, found[name]])):
            values = {m: getattr(score, m)[:, code] for m in ("precision", "recall", "f1")}
            rows.append(
                {
                    "cells": name,
                    "type": names[code],
                    **with_share_intervals(n_units, **values),
                    "n_prompted": int((asked == code).sum()),
                    "n_annotated": int((found[name] == code).sum()),
                }
            )
    return pd.DataFrame(rows)
