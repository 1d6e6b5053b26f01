"""From a file of settings to a corpus: what `maxtoki corpus` runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from . import datasets, pl
from ._files import atomic
from ._outputs import claim
from ._recipes import read_call
from .datasets.census import CorpusPlan, census, census_start
from .models.load import load_model, vocabulary_of_settings

BY = "maxtoki corpus"
FIGURES = [f"corpus_composition.{ending}" for ending in ("png", "pdf")]
_OF_FLAGS = ("share_array", "overwrite")
_ABOUT_STORE = ("store", "organism", "value_filter", "recipe")


def read_settings(path: str | Path) -> dict[str, Any]:
    """Arguments of `mt.datasets.census` from YAML, all of them known; `model` a name or a folder, or `vocab` in its place.

    Raises
    ------
    ValueError
        If a setting is unknown or missing.
    """
    settings = read_call(path, census, datasets.CorpusRecipe, ["model", "vocab"])
    if flags := [name for name in _OF_FLAGS if name in settings]:
        raise ValueError(f"{flags[0]} in {path} has no meaning: give --{flags[0].replace('_', '-')}.")
    if "model" not in settings and "vocab" not in settings:
        raise ValueError(
            f"{path} lacks model: a name or a folder as in mt.load_model, or vocab: {{tokens: path, medians: path}}."
        )
    for name in ("output", "store"):
        if settings.get(name) is not None:
            settings[name] = str(settings[name])  # a release is a date, to YAML
    return settings


def run_corpus(
    path: str | Path, *, plan: bool = False, share_array: bool = False, overwrite: bool = False
) -> pd.DataFrame | None:
    """Say what a corpus will hold, then write its shards, or go on with them, and a figure of its composition.

    Parameters
    ----------
    path
        YAML; see `read_settings`.
    plan
        Only say it; nothing is written.
    share_array, overwrite
        As in `mt.datasets.census`.

    Returns
    -------
    One row a shard that is there; `None` with `plan`.
    """
    settings = read_settings(path)
    vocab, name = vocabulary_of_settings(path, settings.pop("vocab", None)), settings.pop("model", None)
    if plan:
        about = {key: settings[key] for key in _ABOUT_STORE if key in settings}
        print(in_words(datasets.census_plan(**about)))
        return None
    if name is not None:
        vocab = load_model(name, vocab=vocab, device="cpu").vocab
    folder = Path(settings.pop("output"))
    print(in_words(census_start(folder, vocab, overwrite=overwrite, **settings)), flush=True)
    shards = datasets.census(folder, vocab, share_array=share_array, overwrite=overwrite, **settings)
    claim(folder, FIGURES, by=BY, overwrite=True)
    figure = pl.corpus_composition(folder)
    for ending in FIGURES:
        with atomic(folder / ending) as temporary:
            figure.savefig(temporary, dpi=200, bbox_inches="tight")
    return shards


def in_words(plan: CorpusPlan) -> str:
    """A plan as text: what each filter leaves, and what that takes on disk."""
    table = plan.filters.rename(columns={"filter": "", "n_cells": "cells", "n_donors": "donors"})
    table[""] = table[""].str.slice(0, 90)
    counts = dict.fromkeys(("cells", "donors"), "{:,}".format)
    counts["donors"] = lambda n: "" if pd.isna(n) else f"{n:,}"
    left = {"": lambda text: f"{text:<{table[''].str.len().max()}}"}
    size = f"{plan.gigabytes:,.1f} GB" if plan.gigabytes >= 1 else f"{1000 * plan.gigabytes:,.1f} MB"
    lines = table.to_string(index=False, formatters=left | counts, na_rep="")
    return f"{lines}\n\n{plan.n_cells:,} cells of {plan.n_donors:,} donors, about {size} on disk."
