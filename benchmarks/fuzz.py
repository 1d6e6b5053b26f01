"""Wrong inputs by the thousand: whether each is refused in one clear line, and nothing is lost.

python benchmarks/fuzz.py                    # all of them, each in a process of its own; writes results/fuzz.json
python benchmarks/fuzz.py --only key --show  # one kind; prints what was not refused clearly

The inputs are made from the signatures of the public functions (other types, numbers out of range, misspelt words and columns,
unknown and missing arguments), from cells and results that are damaged, from damaged files, and from wrong commands. Outcomes are
classed by where an error was raised and by what it names:

- clear: our own one-line error, which names the argument, column, slot or file
- vague: our own error, which names none of them
- accepted, and wrongly accepted where the input cannot mean anything
- library: raised in pandas, NumPy, PyTorch, h5py ...
- python: raised by the interpreter (AttributeError, IndexError, a bare TypeError ...)
- loss: the cells or files that were given are changed after an error, or something half-written is left
- crash: the process died, or hung
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    # This folder must not come first on the path: its tokenize.py would pass for Python's own.
    sys.path[0] = str(Path(__file__).parents[1])
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")
# OpenMP ends the process of a fork that uses it again.
os.environ.setdefault("NUMBA_THREADING_LAYER", "workqueue")

import argparse
import contextlib
import dataclasses
import dis
import hashlib
import inspect
import io
import itertools
import json
import pickle
import random
import re
import shutil
import signal
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

import maxtoki_toolkit as mt
from maxtoki_toolkit import _keys, cli

PACKAGE = Path(mt.__file__).parent
SECONDS = 120  # after which an input counts as hung
EACH = 4  # damages are many, and so are functions: each function gets one in so many, each in turn
SPACES = ("pp", "tl", "pl", "get", "train", "datasets", "reports")
KINDS = {
    "type": "arguments of another type",
    "range": "numbers out of range",
    "choice": "misspelt words",
    "key": "columns, layers and results that are not there",
    "name": "unknown arguments",
    "missing": "missing arguments",
    "cells": "damaged cells",
    "results": "damaged results",
    "h5ad": "damaged h5ad files",
    "zarr": "damaged zarr stores",
    "model": "damaged model folders",
    "yaml": "damaged YAML files",
    "command": "wrong commands",
}
ON_CELLS = ("type", "range", "choice", "key", "name", "missing", "cells", "results")
OUTCOMES = ("clear", "vague", "accepted", "wrongly accepted", "library", "python", "loss", "crash")


@dataclasses.dataclass
class Input:
    """One wrong input: what to run, what a clear error names, and whether it must be refused."""

    kind: str
    label: str
    run: Callable[[World], object]
    names: tuple[str, ...]
    must_refuse: bool = True
    command: bool = False


class World:
    """Cells with results, a model and files, small enough to be read in an instant."""

    def __init__(self, folder: Path, *, results: bool = True) -> None:
        self.folder = folder
        adata = mt.datasets.aging_atlas(120, 10, n_genes=500)
        self.pairs = mt.datasets.paired_modalities(adata[:60].copy(), n_proteins=4, n_peaks=None)
        del adata.uns["truth"]
        adata.obs["development_stage"] = [f"{age // 12}-year-old stage" for age in adata.obs["age_months"]]
        adata.obsm["spatial"] = np.random.default_rng(0).uniform(high=100, size=(adata.n_obs, 2))
        counts = np.random.default_rng(0).poisson(3, (adata.n_obs, 3))
        adata.obsm["proteins"] = pd.DataFrame(counts, adata.obs_names, ["CD3", "CD19", "CD14"])
        wells = np.arange(adata.n_obs) % 8
        adata.obs["well"] = [f"{'AB'[i // 4]}{i % 4 + 1:02d}" for i in wells]
        adata.obs["drug"] = np.where(wells < 4, "DMSO", "x")
        self.raw = adata.copy()
        mt.pp.map_genes(adata)
        vocab = mt.models.Vocabulary.from_anndata(adata)
        shape = {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 128,
        }
        small = mt.models.build_model(shape, vocab)
        model = mt.models.extend_model(small, vocab.with_times(-900, 900), max_length=512)
        self.model = dataclasses.replace(model, time_head=mt.models.TimeHead("expectation"))
        mt.pp.rank_value_encode(adata, self.model)
        mt.pp.hold_out(adata, donor_key="donor_id", donors=0.4, time_key="age_months")
        for part, key, task in [
            ("train", "train_prompts", "timelapse"),
            ("held_out", "prompts", "timelapse"),
            ("held_out", "cell_prompts", "cell"),
        ]:
            mt.pp.sample_prompts(
                adata,
                contexts=part,
                queries=part,
                task=task,
                key_added=key,
                time_key="age_months",
                groupby="cell_type",
                donor_key="donor_id",
                n_prompts=12,
            )
        adata.layers["counts"] = adata.X.copy()
        self.adata = adata
        self.sae, self.later = (self._autoencoder(site) for site in ("attention", "output"))
        self.generated = adata  # until there are results
        self._write_files(small)
        if results:
            self._add_results()

    def _autoencoder(self, site: str) -> mt.models.SparseAutoencoder:
        """One that has learned nothing."""
        card = {"block": 0, "site": site, "model": self.model.name, "model_sha256": self.model.identity}
        size = self.model.hf.config.hidden_size
        return mt.models.SparseAutoencoder(size, 60, 3, card=card).eval().requires_grad_(requires_grad=False)

    def _write_files(self, small) -> None:
        files = self.folder / "files"
        files.mkdir(parents=True)
        self.raw.write_h5ad(files / "cells.h5ad")
        # In a process of its own: the threads of zarr do not survive a fork.
        ad.settings.zarr_write_format = 3
        _apart(lambda: self.raw.write_zarr(files / "cells.zarr", chunks=(40, 500)))
        mt.models.save_model(self.model, files / "model")
        encoded = self.adata.copy()
        encoded.uns = {key: encoded.uns[key] for key in ("map_genes", "rank_value_encode")}
        encoded.write_h5ad(files / "encoded.h5ad")
        (files / "screen.yaml").write_text(
            f"cells: {files / 'cells.h5ad'}\noutput: screen\nmodel: {files / 'model'}\n"
            "prompts:\n  time_key: age_months\n  groupby: cell_type\n  donor_key: donor_id\n  n_prompts: 4\n"
            "perturb:\n  genes: [FOXO3]\n"
        )
        (files / "train.yaml").write_text(
            f"cells: {files / 'encoded.h5ad'}\noutput: trained\nmodel: {files / 'model'}\n"
            "time_key: age_months\ngroupby: cell_type\nmax_steps: 1\ndevice: cpu\n"
        )
        (files / "samples.csv").write_text("path,sample\ncells.h5ad,s1\n")
        corpus = files / "corpus"
        corpus.mkdir()
        donors = {"donor": ["a", "b"], "sex": ["female", "male"], "age_years": [34.0, 71.0]}
        pd.DataFrame({**donors, "tissue": "lung", "n_cells": [9, 8]}).to_csv(
            corpus / "composition.csv", index=False
        )
        pd.DataFrame({"filter": ["all cells"], "n_cells": 17, "n_donors": 2}).to_csv(
            corpus / "filters.csv", index=False
        )
        self.files = files

    def _add_results(self) -> None:
        """Results of each analysis, with few draws."""
        self.generated = mt.tl.generate(self.adata, self.model, key="cell_prompts", max_genes=6)
        held_out = self.adata.copy()  # it would hold out other cells
        mt.pp.holdout_intervals(held_out, time_key="age_months", intervals=0, n_permutations=1)
        self.adata.uns["holdout_intervals"] = held_out.uns["holdout_intervals"]
        mt.tl.attention(self.adata, self.model, key="prompts")
        often = self.adata.var_names[np.argsort(-self.adata.layers["rank"].getnnz(axis=0))]
        regulons = pd.DataFrame({"source": np.repeat(often[:3], 5), "target": often[3:18]})
        mt.tl.gene_network(self.adata, self.model, regulons=regulons, n_permutations=99)
        vocab = self.model.vocab.with_modalities(mt.pp.modality_medians(self.pairs))
        pairs = self.pairs.copy()
        mt.pp.rank_value_encode(pairs, vocab)
        mt.tl.translate(pairs, mt.models.extend_model(self.model, vocab), donor_key="donor_id")
        self.adata.uns["translate"] = pairs.uns["translate"]
        for name in RESULTS:
            function = getattr(mt.tl if hasattr(mt.tl, name) else mt.pp, name)
            function(**arguments(function, self))


# Analyses in the order in which they build on each other.
RESULTS = (
    "match_ages embed predict_age predict_timelapse timelapse_baselines age_acceleration generated_ages ablate_prompt doublets "
    "annotation_concordance train_on_generated differential_rank generation_diversity evaluate_generated attention "
    "head_enrichment head_segments head_profiles head_similarity ablate_heads patch attribute neighbor_purity separability "
    "annotate embed_genes gene_task gene_effects predict_response flag_plates neighborhood_enrichment variogram spatial_features "
    "perturb perturbation_stats expression_age_slope perturbation_concordance search_gene_sets steer_cells perturbation_metrics "
    "features evaluate_sae feature_summary label_features feature_effects feature_genes feature_network driver_features spectral_entropy"
).split()

GENES = mt.datasets.aging_atlas(20, 10, n_genes=500).var_names.tolist()
# What is compared; without it, columns are guessed.
COMPARED = {"condition_key": "sex", "control": "female", "time_key": "age_months", "donor_key": "donor_id"}
# Valid values of what functions cannot do without, and few draws.
VALID = {
    "time_key": "age_months",
    "groupby": "cell_type",
    "donor_key": "donor_id",
    "condition_key": "sex",
    "perturbation_key": "sex",
    "columns": {"cell_type": ["fibroblast"]},
    "plate_key": "batch",
    "well_key": "cell_type",
    "labels": "TF",
    "dependency": pd.DataFrame(),
    "modalities": "rna",
    "keys": "cell_type",
    "color": "cell_type",
    "control": "female",
    "genes": "all",
    "features": [0, 1],
    "target": {0: 1.0},
    "predicted": "rank",
    "intervals": ((200, 620), (621, 1200)),
    "layer": 0,
    "head": 0,
    "name": "heart_nuclei",
    "notebook": "fig1_timelapse",
    "output": "out",
}
FEW = {
    "n_permutations": 99,
    "n_bootstrap": 5,
    "n_null": 2,
    "n_cells": 10,
    "n_steps": 4,
    "n_contexts": 1,
    "max_genes": 6,
    "max_steps": 1,
    "n_random": 2,
}
OWN = {
    "pp.holdout_intervals": {"intervals": 0, "n_permutations": 1},
    "pp.match_ages": {"tolerance": 400, **COMPARED},
    "pp.match_queries": {"tolerance": None},
    "tl.predict_age": {"sampling": mt.tl.AgeSampling(n_contexts=1, n_cells=2), "groupby": []},
    "tl.age_acceleration": {"sampling": mt.tl.AgeSampling(n_contexts=1), "groupby": []},
    "tl.ablate_heads": {"donor_key": None},
    "tl.differential_rank": {"groupby": []},
    "tl.attention": {"groupby": "cell_type"},
    "tl.separability": {"condition_key": "sex", "control": "female", "n_neighbors": 3, "n_permutations": 9},
    "tl.predict_response": {"groupby": "batch"},
    "tl.annotate": {"groupby": "cell_type", "n_folds": 2},
    "tl.gene_effects": {"n_cells": 4},
    "tl.gene_task": {"labels": {"some": GENES[::3]}, "n_folds": 2, "n_permutations": 2},
    "tl.flag_plates": {"well_key": "well", "perturbation_key": "drug", "control": "DMSO", "n_neighbors": 3},
    "tl.neighborhood_enrichment": {"library_key": "donor_id", "n_neighbors": 3},
    "pp.join_modalities": {"proteins": "proteins"},
    "tl.embed_genes": {"groupby": "cell_type"},
    "pp.spatial_prompts": {"library_key": "donor_id", "n_neighbors": 3, "n_prompts": 5},
    "tl.variogram": {"library_key": "donor_id", "n_bins": 4},
    "tl.spatial_features": {"keys": GENES[:3], "library_key": "donor_id", "n_neighbors": 3},
    "tl.search_gene_sets": {"search": mt.tl.GeneSetSearch(n_cells=10, n_candidates=4, max_size=2, n_null=2)},
    "tl.steer_cells": {"sampling": mt.tl.CellSampling.of(n_cells=10, n_steps=4)},
    "tl.perturbation_stats": {"min_donors": 2, "n_null": 10},
    "tl.generate": {"key": "cell_prompts"},
    "tl.attribute": {"n_prompts": 2, "donor_key": None},
    "tl.evaluate_sae": {"n_cells": 20},
    "tl.feature_effects": {"donor_key": None, "features": [0, 1]},
    "tl.feature_families": {"n_bootstrap": 2, "donor_key": None},
    "tl.feature_genes": {"n_cells": 20},
    "tl.feature_mediators": {"genes": ["FOXO3"], "max_features": 1},
    "tl.feature_network": {"n_cells": 40, "n_features": 10, "alpha": 1.0},
    "tl.spectral_entropy": {"n_cells": 40, "n_bins": 2, "n_features": 5, "n_permutations": 19},
    "tl.search_features": {"n_cells": 20, "n_candidates": 3},
    "pl.encoding_report": {"max_genes": None},
    "train.temporal": {
        "recipe": mt.train.TemporalRecipe.of(max_steps=1, device="cpu", max_length=512, batch_size=1)
    },
    "train.pretrain": {
        "shape": {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
        },
        "recipe": mt.train.PretrainRecipe.of(max_steps=1, device="cpu", batch_size=1),
    },
    "train.sae": {"recipe": mt.train.SparseRecipe.of(max_steps=1, device="cpu", batch_size=8)},
    "train.clock": {
        "recipe": mt.train.ClockRecipe.of(
            donors=0.4, max_steps=1, device="cpu", batch_size=1, n_held_out=2, n_tested=10, n_fitted=10
        )
    },
    "get.table": {"key": "timelapse"},
    "datasets.aging_atlas": {"n_cells": 60, "n_donors": 10, "n_genes": 500},
    "datasets.branching_course": {"n_clones": 10, "n_donors": 10, "cells_per_day": 1},
}


def public() -> dict[str, Callable]:
    """Public functions by name."""
    found = {
        f"{space}.{name}": getattr(getattr(mt, space), name)
        for space in SPACES
        for name in getattr(mt, space).__all__
        if name != "fetch"
    }
    return {k: f for k, f in found.items() if inspect.isfunction(f)} | {"load_model": mt.load_model}


def arguments(function: Callable, world: World) -> dict:
    """What a function cannot do without, and few draws."""
    name = next(name for name, other in public().items() if other is function)
    objects = {
        "adata": world.adata,
        "model": world.model,
        "sae": world.sae,
        "later": world.later,
        "queries": world.adata,
        "generated": world.generated,
        "cells": world.adata,
        "vocab": world.model.vocab,
        "output": world.folder / "out",
        "on": [world.files / "cells.h5ad"],
        "source": world.files / "corpus",
        "known": pd.DataFrame(
            {"gene": world.raw.var["symbol"].to_numpy(), "value": np.arange(world.raw.n_vars) - 250.0}
        ),
    }
    objects |= {"path": world.files / "cells.h5ad", "paths": [world.files / "cells.h5ad"]}
    objects["sheet"] = world.files / "samples.csv"
    if name in ("pp.modality_medians", "pp.keep_modalities"):
        objects["cells"] = world.pairs
    if name.startswith("get.corpus"):
        return {"path": world.files / "corpus"}
    if name == "load_model":
        return {"source": world.files / "model", "device": "cpu"}
    if name.startswith("pp.encode_file") or name == "pp.import_samples":
        objects["output"] = world.folder / ("out.h5ad" if not name.endswith("files") else "out")
    given = {}
    for key, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        if parameter.default is parameter.empty:
            own = OWN.get(name, {})
            given[key] = objects[key] if key in objects else own[key] if key in own else VALID[key]
        elif key in FEW:
            given[key] = FEW[key]
        elif key == "donor_key":
            given[key] = VALID[key]
    if name == "tl.annotate":
        given["reference"] = world.adata
    return given | OWN.get(name, {})


def _kinds_of(parameter: inspect.Parameter) -> list[str]:
    """Types that an annotation allows, as their names."""
    text = str(parameter.annotation)
    parts, depth, word = [], 0, ""
    for letter in text:
        depth += (letter == "[") - (letter == "]")
        if letter == "|" and not depth:
            parts.append(word.strip())
            word = ""
        else:
            word += letter
    return [*parts, word.strip()]


# Wrong values of each type. Each is of no type that the parameter allows; see _others.
WRONG = {
    "number": [3, 2.5],
    "text": ["no such thing"],
    "list": [[1.5, {}]],
    "mapping": [{"a": object()}],
    "bytes": [b"cells"],
    "function": [len],
    "table": [pd.DataFrame({"a": [1]})],
    "none": [None],
}


def _others(kinds: list[str], name: str) -> list:
    """Values of types that a parameter does not take."""
    text = " ".join(kinds)
    if "Any" in kinds or kinds == ["<class 'inspect._empty'>"]:
        kinds = ["MaxTokiModel"]
        text = "MaxTokiModel"
    values = []
    if not re.search(r"\bint\b|float|Any", text):
        values += [3]
    if not re.search(r"\bfloat\b", text):
        values += [2.5] if "int" in text else []
    if not re.search(r"\bstr\b|Path|Predicted|Sequence", text) or (
        "Sequence" in text and not re.search(r"\bstr\b", text)
    ):
        values += ["no such thing"]
    if not re.search(r"Sequence|Iterable|tuple|Predicted", text):
        values += [[1.5, {}]]
    if not re.search(r"Mapping|dict|Predicted", text):
        values += [{"a": 1}]
    if "Callable" not in text:
        values += [len]
    if "DataFrame" not in text:
        values += [pd.DataFrame({"a": [1]})]
    if "None" not in kinds and name != "groupby":
        values += [None]
    if "bool" in kinds:
        values = ["no", 2, None]
    return values


# Numbers that may be negative, and shares.
SIGNED = {"lapse", "intervals", "lapses", "penalty", "likelihood_weight"}
SHARES = {
    "alpha", "min_share", "share", "held_out", "balance", "same_type", "expected_rate", "top_p", "burn_in",
    "min_overlap", "dropout", "timelapse", "curriculum", "gene_dropout", "warmup", "donors",
}  # fmt: skip
COLUMNS = {
    "time_key", "donor_key", "groupby", "condition_key", "batch_key", "match_by", "covariates",
    "perturbation_key", "truth_key", "use", "target", "reference", "contexts", "queries", "subset", "known", "train",
}  # fmt: skip
# Texts that are chosen from a few.
CHOICES = {
    "task", "zero_lapse", "kind", "mode", "on", "readout", "how", "search", "baseline", "target", "space",
    "statistic", "attending", "corrupted", "level", "align", "method", "proposal", "pool", "scored_on", "measure",
    "value", "head", "loss", "rope", "device", "dtype", "attention", "time_unit", "group", "control", "part", "shape",
}  # fmt: skip


def _shown(value) -> tuple[str, ...]:
    """How a message may write a value."""
    return (repr(value), str(value)) if isinstance(value, (str, int, float)) else (repr(value),)


def signature_inputs() -> Iterator[Input]:
    """Wrong arguments of each public function; of the values of another type, each parameter has its turn."""
    turn = 0
    for name, function in public().items():
        parameters = inspect.signature(function).parameters
        for key, parameter in parameters.items():
            if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                continue
            kinds = _kinds_of(parameter)

            def wrong(kind, value, names=(), *, must=True, key=key, name=name, function=function):
                text = (
                    repr(value)
                    if not callable(value) and not isinstance(value, pd.DataFrame)
                    else type(value).__name__
                )
                return Input(
                    kind, f"mt.{name}({key}={text[:40]})", _calling(function, name, {key: value}),
                    (key, *(_shown(value) if kind in ("choice", "key") else ()), *names), must,
                )  # fmt: skip

            values = _others(kinds, key)
            turn += 1
            for value in [values[turn % len(values)]] if values else []:
                names = (
                    ("AnnData",) if key in ("adata", "generated") else ("MaxToki",) if key == "model" else ()
                )
                yield wrong("type", value, names)
            if "int" in kinds or "float" in kinds:
                if key not in SIGNED and not (key == "layer" and name == "tl.embed"):
                    yield wrong("range", -3 if "int" in kinds else -3.0)
                if "float" in kinds:
                    yield wrong("range", float("nan"))
                if key in SHARES and "float" in kinds:
                    yield wrong("range", 5.0)
                if key in ("n_neighbors", "layer", "head", "example", "k", "n_given"):
                    yield wrong("range", 10**6, must=key in ("layer", "head", "example"))
                yield wrong("range", 0, must=False)
            is_text = "str" in kinds
            if (
                is_text
                and key in CHOICES
                and not name.startswith("reports.")
                and not (key in COLUMNS and name != "tl.attribute")
            ):
                good = parameter.default if isinstance(parameter.default, str) else VALID.get(key, "all")
                for bad in (good + "x", ""):
                    yield wrong("choice", bad, must=bool(bad))
            is_column = key in COLUMNS and is_text and name.split(".")[0] in ("pp", "tl", "train", "pl")
            if is_column or key in ("layer", "key", "slopes_key", "basis", "color") and is_text:
                for bad in ("donor_idd", ""):
                    yield wrong("key", bad, names=(), must=bool(bad))
            if parameter.default is parameter.empty:
                yield Input(
                    "missing", f"mt.{name}() without {key}", _calling(function, name, {}, without=key), (key,)
                )
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            first = list(parameters)[-1] if parameters else "name"
            bad = f"{first}s"
            if bad not in parameters:
                yield Input("name", f"mt.{name}({bad}=1)", _calling(function, name, {bad: 1}), (bad,))


def _calling(
    function: Callable, name: str, wrong: dict, without: str | None = None
) -> Callable[[World], object]:
    def run(world: World):
        given = arguments(function, world) | wrong
        if without is not None:
            given.pop(without, None)
        first = [k for k, p in inspect.signature(function).parameters.items() if p.kind is p.POSITIONAL_ONLY]
        # What comes after one that is not given would be taken for it.
        positional = [given[k] for k in itertools.takewhile(given.__contains__, first)]
        given = {k: value for k, value in given.items() if k not in first}
        return function(*positional, **given)

    return run


def _set(slot: str, key: str, change: Callable) -> Callable:
    def damage(adata: ad.AnnData) -> ad.AnnData:
        frame = getattr(adata, slot)
        frame[key] = change(frame[key])
        return adata

    return damage


def _values(change: Callable) -> Callable:
    def damage(adata: ad.AnnData) -> ad.AnnData:
        adata.X = change(adata.X.copy())
        adata.layers["counts"] = adata.X.copy()
        return adata

    return damage


def _with_value(value: float) -> Callable:
    def change(matrix):
        matrix = matrix.astype(np.float32)
        matrix.data[:50] = value
        return matrix

    return change


def _drop(slot: str, key: str) -> Callable:
    def damage(adata: ad.AnnData) -> ad.AnnData:
        del getattr(adata, slot)[key]
        return adata

    return damage


def _twice(adata: ad.AnnData) -> ad.AnnData:
    adata.obs_names = ["cell"] * adata.n_obs
    return adata


def _no_x(adata: ad.AnnData) -> ad.AnnData:
    adata.X = None
    return adata


def _ranks(change: Callable) -> Callable:
    def damage(adata: ad.AnnData) -> ad.AnnData:
        adata.layers["rank"] = change(adata.layers["rank"].copy())
        return adata

    return damage


def _fill(value) -> Callable:
    return lambda column: pd.Series([value] * len(column), index=column.index)


def _some_missing(column):
    column = column.astype(object)
    column.iloc[::3] = np.nan
    return column


# What is wrong with the cells; what a message may name; whether it must be refused where it is used.
CELLS = {
    "no cells": (lambda a: a[:0].copy(), ("cell",)),
    "one cell": (lambda a: a[:1].copy(), ("cell",)),
    "no genes": (lambda a: a[:, :0].copy(), ("gene", "rank", "var")),
    "one name for all cells": (_twice, ("unique",)),
    "no ranks": (_drop("layers", "rank"), ("rank",)),
    "no encoding": (_drop("uns", "rank_value_encode"), ("rank_value_encode",)),
    "no tokens": (_drop("var", "token_id"), ("token_id", "map_genes")),
    "tokens out of range": (_set("var", "token_id", _fill(9_999_999)), ("token_id", "map_genes", "vocabulary")),
    "no token known": (_set("var", "token_id", _fill(-1)), ("token", "gene")),
    "ages as text": (_set("obs", "age_months", _fill("45 years")), ("age_months",)),
    "ages missing": (_set("obs", "age_months", _some_missing), ("age_months",)),
    "ages all missing": (_set("obs", "age_months", _fill(np.nan)), ("age_months",)),
    "ages infinite": (_set("obs", "age_months", _fill(np.inf)), ("age_months",)),
    "one age": (_set("obs", "age_months", _fill(400)), ("age_months", "time", "lapse", "age")),
    "donors missing": (_set("obs", "donor_id", _some_missing), ("donor",)),
    "donors all missing": (_set("obs", "donor_id", _fill(np.nan)), ("donor",)),
    "one donor": (_set("obs", "donor_id", _fill("d1")), ("donor",)),
    "types all missing": (_set("obs", "cell_type", _fill(np.nan)), ("cell_type", "group")),
    "types as lists": (_set("obs", "cell_type", lambda c: pd.Series([["T"]] * len(c), index=c.index)), ("cell_type", "group")),
    "counts missing": (_values(_with_value(np.nan)), ("NaN",)),
    "counts infinite": (_values(_with_value(np.inf)), ("infinite",)),
    "counts negative": (_values(_with_value(-3)), ("negative",)),
    "counts logarithmic": (_values(lambda x: x.astype(np.float32).log1p()), ("log",)),
    "counts all zero": (_values(lambda x: x * 0), ("gene", "zero", "count", "rank", "empty")),
    "no X": (_no_x, ("X",)),
    "ranks all zero": (_ranks(lambda r: sp.csr_matrix(r.shape, dtype=r.dtype)), ("rank", "gene", "cell")),
    "ranks as numbers": (_ranks(lambda r: r.astype(np.float64) / 7), ("rank",)),
    "ranks missing": (_ranks(lambda r: _with_value(np.nan)(r)), ("rank",)),
    "prompts of other cells": (_drop("uns", "prompts"), ("prompts",)),
}  # fmt: skip


def _other_cells(adata: ad.AnnData) -> ad.AnnData:
    adata.obs_names = [f"other_{i}" for i in range(adata.n_obs)]
    return adata


CELLS["prompts of other cells"] = (_other_cells, ("prompt", "cell"))


_CELLS_IN = {"adata", "cells"}


def cells_inputs() -> Iterator[Input]:
    """Valid calls on damaged cells."""
    turn = 0
    for name, function in public().items():
        if name.split(".")[0] not in ("pp", "tl", "train") or not _CELLS_IN & {
            *inspect.signature(function).parameters
        }:
            continue
        if name in ("pp.map_orthologs", "pp.modality_medians", "tl.translate"):
            continue  # whatever else is wrong with them, these are no mouse cells and have no proteins
        for what, (damage, names) in CELLS.items():
            turn += 1
            if turn % EACH:
                continue

            def run(world: World, function=function, name=name, damage=damage):
                given = arguments(function, world)
                slot = "cells" if "cells" in given else "adata"
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    world.adata = given[slot] = damage(world.adata.copy())
                    world.before = fingerprint(world.adata)
                return function(**given)

            yield Input("cells", f"mt.{name}: {what}", run, names, must_refuse=False)


RESULT_DAMAGES = {
    "a text": lambda result: "text",
    "nothing in it": lambda result: {},
    "without params": lambda result: {k: v for k, v in result.items() if k != "params"},
    "tables without rows": lambda result: {
        k: v.iloc[:0] if isinstance(v, pd.DataFrame) else v for k, v in result.items()
    },
    "tables without columns": lambda result: {
        k: v[[]] if isinstance(v, pd.DataFrame) else v for k, v in result.items()
    },
    "a table without rows": lambda result: _in_first(result, lambda table: table.iloc[:0]),
    "a table without half of its columns": lambda result: _in_first(result, lambda table: table.iloc[:, ::2]),
}


def _in_first(result: dict, change: Callable) -> dict:
    first = next((k for k, v in result.items() if isinstance(v, pd.DataFrame)), None)
    return {k: change(v) if k == first else v for k, v in result.items()}


def results_inputs() -> Iterator[Input]:
    """Functions that build on a result which is damaged."""
    turn = 0
    for name, function in public().items():
        parameters = inspect.signature(function).parameters
        if "key" not in parameters or name.split(".")[0] not in ("tl", "pl", "get"):
            continue
        if parameters["key"].default == _keys.GENE_EMBEDDING:
            continue  # it names a matrix of .varm
        for what, damage in RESULT_DAMAGES.items():
            turn += 1
            if turn % 2:
                continue

            def run(world: World, function=function, name=name, damage=damage):
                given = arguments(function, world)
                key = given.get("key") or inspect.signature(function).parameters["key"].default
                if key is None:
                    key = given["key"] = _reads(function, world)
                world.key = key
                result = world.adata.uns[key]
                if isinstance(result, pd.DataFrame):
                    result = {"table": result}
                damaged = damage(result)
                world.adata.uns[key] = (
                    damaged.get("table", {})
                    if set(result) == {"table"} and isinstance(damaged, dict)
                    else damaged
                )
                world.before = fingerprint(world.adata)
                return function(**given)

            # `.uns` is named by every message that names its slot.
            yield Input(
                "results",
                f"mt.{name}: {what}",
                run,
                ("uns", "{key}"),
                must_refuse=not what.startswith(("tables without rows", "a table")),  # it may not be read
            )


def _reads(function: Callable, world: World) -> str:
    """The result that a function of `tl` reads where no key is given."""
    name = function.__name__
    if name == "perturbation_stats":
        return "perturbation"
    if name == "timelapse_baselines":
        return "timelapse"
    if name == "perturbation_concordance":
        return "perturbation_stats"
    if name.startswith("head_"):
        return "attention" if name != "head_segments" else "prompt_attention"
    return "matched_prompts" if name == "match_queries" else "prompts"


def _edit_h5ad(edit: Callable[[h5py.File], None]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            edit(file)

    return damage


def _replace(file: h5py.File, key: str, change: Callable) -> None:
    old = file[key]
    values, attributes = old[...], dict(old.attrs)
    del file[key]
    file.create_dataset(key, data=change(values)).attrs.update(attributes)


def _remove(*keys: str) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        for key in keys:
            del file[key]

    return _edit_h5ad(edit)


def _changed(key: str, change: Callable) -> Callable[[Path], None]:
    return _edit_h5ad(lambda file: _replace(file, key, change))


def _first(value) -> Callable:
    def change(values):
        values = values.copy()
        values[:5] = value
        return values

    return change


def _flip(seed: int, n: int = 400) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        rng = np.random.default_rng(seed)
        content = bytearray(path.read_bytes())
        for place in rng.integers(0, len(content), n):
            content[place] = int(rng.integers(256))
        path.write_bytes(bytes(content))

    return damage


def _cut(share: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])

    return damage


def _cut_end(path: Path) -> None:
    path.write_bytes(path.read_bytes().rstrip()[:-1])  # a newline at the end would not be missed


def _text(content: str | bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content if isinstance(content, bytes) else content.encode())


def _to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


# name: (damage, must it be refused)
H5AD = {
    "not there": (lambda path: path.unlink(), True),
    "empty": (_text(""), True),
    "text": (_text("these are no cells\n" * 50), True),
    "a folder": (_to_folder, True),
    "no rights": (lambda path: path.chmod(0), False),
    **{f"cut to {share:.0%}": (_cut(share), True) for share in (0.001, 0.1, 0.5, 0.9, 0.999)},
    **{f"bytes changed, {seed}": (_flip(seed), False) for seed in range(12)},
    "no obs": (_remove("obs"), True),
    "no var": (_remove("var"), True),
    "no X": (_remove("X"), True),
    "no names of cells": (_remove("obs/_index"), True),
    "no names of genes": (_remove("var/_index"), True),
    "no values": (_remove("X/data"), True),
    "no pointers": (_remove("X/indptr"), True),
    "values cut": (_changed("X/data", lambda v: v[: len(v) // 2]), True),
    "pointers cut": (_changed("X/indptr", lambda v: v[: len(v) // 2]), True),
    "pointers beyond the end": (_changed("X/indptr", lambda v: v * 2), True),
    "pointers going back": (_changed("X/indptr", lambda v: np.r_[v[0], v[1:-1][::-1], v[-1]]), True),
    "columns negative": (_changed("X/indices", _first(-4)), True),
    "columns beyond the genes": (_changed("X/indices", _first(1_000_000)), True),
    "columns as fractions": (_changed("X/indices", lambda v: v + 0.5), True),
    "values missing": (_changed("X/data", lambda v: _first(np.nan)(v.astype(np.float32))), True),
    "values negative": (_changed("X/data", lambda v: _first(-3)(v.astype(np.float32))), True),
    "values as text": (_changed("X/data", lambda v: np.array([b"x"] * len(v))), True),
    "names of cells repeated": (_changed("obs/_index", _first(b"cell")), True),
    "fewer cells than rows": (_changed("obs/_index", lambda v: v[:-20]), True),
    "columns of another length": (_changed("obs/age_months", lambda v: v[:-20]), True),
    "no encoding of X": (_edit_h5ad(lambda f: f["X"].attrs.pop("encoding-type")), True),
    "shape of X": (_edit_h5ad(lambda f: f["X"].attrs.update(shape=[3, 4])), True),
    "codes of a category": (_changed("obs/cell_type/codes", lambda v: v + 100), True),
}


def _chunks(folder: Path, key: str = "X/data") -> list[Path]:
    return sorted(path for path in (folder / key / "c").rglob("*") if path.is_file())


def _chunk(change: Callable[[Path], None], key: str = "X/data", which: int = 0) -> Callable[[Path], None]:
    return lambda folder: change(_chunks(folder, key)[which])


ZARR = {
    "not there": (lambda path: shutil.rmtree(path), True),
    "nothing in it": (lambda path: (shutil.rmtree(path), path.mkdir()), True),
    "a file": (lambda path: (shutil.rmtree(path), path.write_text("zarr")), True),
    "no metadata": (lambda path: (path / "zarr.json").unlink(), True),
    "metadata cut": (lambda path: _cut(0.5)(path / "zarr.json"), True),
    "metadata of X cut": (lambda path: (_cut(0.5)(path / "X" / "zarr.json"), _plain(path)), True),
    "metadata of X empty": (lambda path: (_text("{}")(path / "X" / "zarr.json"), _plain(path)), True),
    "no obs": (lambda path: (shutil.rmtree(path / "obs"), _plain(path)), True),
    "no var": (lambda path: (shutil.rmtree(path / "var"), _plain(path)), True),
    "no X": (lambda path: (shutil.rmtree(path / "X"), _plain(path)), True),
    **{
        f"{key}: {what}": (_chunk(change, key), True)
        for key in ("X/data", "X/indices", "X/indptr")
        for what, change in {
            "chunk missing": lambda path: path.unlink(),
            "chunk empty": _text(""),
            "chunk cut": _cut(0.5),
            "chunk cut by a byte": lambda path: path.write_bytes(path.read_bytes()[:-1]),
            "chunk of zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
            "chunk of text": _text("these are no counts " * 20),
        }.items()
    },
    "names of cells: chunk missing": (_chunk(lambda path: path.unlink(), "obs/_index"), True),
    "names of cells: chunk cut": (_chunk(_cut(0.5), "obs/_index"), True),
}  # fmt: skip


def _plain(path: Path) -> None:
    """Without the consolidated metadata, which would hide the damage."""
    top = json.loads((path / "zarr.json").read_text())
    top.pop("consolidated_metadata", None)
    (path / "zarr.json").write_text(json.dumps(top))


def _json(name: str, change: Callable[[dict], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        changed = change(content)
        (folder / name).write_text(json.dumps(content if changed is None else changed))

    return damage


def _without_json(name: str, key: str) -> Callable[[Path], None]:
    return _json(name, lambda content: {k: v for k, v in content.items() if k != key})


def model_damages(folder: Path) -> dict[str, tuple[Callable, bool]]:
    """Damages of a model folder, from the files it has."""
    damages: dict[str, tuple[Callable, bool]] = {
        "not there": (lambda path: shutil.rmtree(path), True),
        "nothing in it": (lambda path: (shutil.rmtree(path), path.mkdir()), True),
        "a file": (lambda path: (shutil.rmtree(path), path.write_text("model")), True),
    }
    for file in sorted(p.name for p in folder.iterdir() if p.is_file()):
        optional = file in ("generation_config.json",) or file.endswith(".md")
        damages |= {
            # Published weights come without the card of this package.
            f"{file}: missing": (
                lambda path, file=file: (path / file).unlink(),
                not optional and file != "maxtoki.json",
            ),
            f"{file}: empty": (lambda path, file=file: (path / file).write_bytes(b""), not optional),
            f"{file}: cut": (lambda path, file=file: _cut(0.5)(path / file), not optional),
            f"{file}: cut by a byte": (lambda path, file=file: _cut_end(path / file), not optional),
            f"{file}: text": (lambda path, file=file: (path / file).write_text("no model"), not optional),
            f"{file}: bytes changed": (lambda path, file=file: _flip(1, 40)(path / file), False),
            f"{file}: a folder": (lambda path, file=file: _to_folder(path / file), not optional),
        }
        if file.endswith(".json"):
            content = json.loads((folder / file).read_text())
            damages[f"{file}: a list"] = (
                lambda path, file=file: (path / file).write_text("[1, 2]"),
                not optional,
            )
            for key in list(content)[:12] if isinstance(content, dict) else []:
                damages[f"{file}: without {key}"] = (
                    lambda path, f=file, k=key: _without_json(f, k)(path),
                    False,
                )
                damages[f"{file}: {key} is a text"] = (
                    lambda path, f=file, k=key: _json(f, lambda c: {**c, k: "no such thing"})(path), False
                )  # fmt: skip
    return damages


BAD_LINES = {
    "not there": None,
    "empty": "",
    "a list": "- a\n- b\n",
    "text": "no settings at all\n",
    "tab": "cells:\tx\n\toutput: y\n",
    "bracket": "cells: [a, b\noutput: c\n",
    "quote": 'cells: "a\noutput: c\n',
    "bytes": b"\xff\xfe\x00c\x00e",
    "alias": "cells: *nothing\n",
    "object": "cells: !!python/object/apply:os.getcwd []\n",
    "date": "cells: 2024-01-01\noutput: 2024-01-01\nmodel: demo\n",
}


def file_inputs(world: World) -> Iterator[Input]:
    """Damaged files, in the doors that read them."""
    turn = 0

    def damaged(world: World, name: str, damage: Callable) -> Path:
        folder = world.folder / "damaged"
        folder.mkdir(exist_ok=True)
        source, target = world.files / name, folder / name
        shutil.copytree(source, target) if source.is_dir() else shutil.copy2(source, target)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            damage(target)
        world.given = target
        return target

    for ending, damages in (("h5ad", H5AD), ("zarr", ZARR)):
        file = f"cells.{ending}"
        for what, (damage, must) in damages.items():

            def encode(world, file=file, damage=damage, ending=ending):
                return mt.pp.encode_file(
                    damaged(world, file, damage), world.folder / f"out.{ending}", world.model
                )

            def encode_all(world, file=file, damage=damage):
                return mt.pp.encode_files([damaged(world, file, damage)], world.folder / "out", world.model)

            def embed(world, file=file, damage=damage):
                return _command(
                    "embed", damaged(world, file, damage), "-o", world.folder / "out", "--model", world.files / "model",
                    "--device", "cpu",
                )  # fmt: skip

            def encode_command(world, file=file, damage=damage):
                return _command(
                    "encode",
                    damaged(world, file, damage),
                    "-o",
                    world.folder / "out",
                    "--model",
                    world.files / "model",
                )

            def screen(world, file=file, damage=damage):
                path = damaged(world, file, damage)
                config = world.folder / "screen.yaml"
                config.write_text(
                    (world.files / "screen.yaml")
                    .read_text()
                    .replace(str(world.files / "cells.h5ad"), str(path))
                )
                return _command("screen", "-c", config)

            def train(world, file=file, damage=damage):
                path = damaged(world, file, damage)
                return mt.train.pretrain(path, world.model.vocab, world.folder / "out", shape={"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}, recipe=mt.train.PretrainRecipe.of(max_steps=1, device="cpu", batch_size=1))  # fmt: skip

            doors = {
                "mt.pp.encode_file": (encode, False),
                "mt.pp.encode_files": (encode_all, False),
                "maxtoki embed": (embed, True),
                "maxtoki encode": (encode_command, True),
                "maxtoki screen": (screen, True),
                "mt.train.pretrain": (train, False),
            }
            turn += 1
            for number, (door, (run, is_command)) in enumerate(doors.items()):
                if number and (turn + number) % EACH:
                    continue
                yield Input(ending, f"{door} {file}: {what}", run, (file,), must, is_command)
    for what, (damage, must) in model_damages(world.files / "model").items():

        def load(world, damage=damage):
            model = mt.load_model(damaged(world, "model", damage), device="cpu")
            return mt.tl.embed(world.adata, model)

        def convert(world, damage=damage):
            return _command("convert", damaged(world, "model", damage), world.folder / "out")

        part = what.split(":")[0]
        yield Input("model", f"mt.load_model: {what}", load, ("damaged/model", part), must)
        yield Input("model", f"maxtoki convert: {what}", convert, ("damaged/model", part), must, command=True)
    yield from yaml_inputs(world)


def yaml_inputs(world: World) -> Iterator[Input]:
    """Damaged settings of a screen, of trainings and of reports."""
    doors = {
        "screen": (("screen", "-c"), "screen.yaml"),
        "temporal": (("train", "temporal", "-c"), "train.yaml"),
        "report": (("report", "fig1_timelapse", "-y"), "train.yaml"),
    }
    for door, (words, name) in doors.items():

        def with_text(text, names, what, *, must=True, words=words, name=name, door=door):
            def run(world: World):
                path = world.folder / name
                if text is not None:
                    path.write_bytes(text if isinstance(text, bytes) else text.encode())
                return _command(*words, path, *(["-o", world.folder / "out"] if door == "report" else []))

            return Input("yaml", f"maxtoki {' '.join(words)} {what}", run, (name, *names), must, command=True)

        for what, text in BAD_LINES.items():
            yield with_text(text, (), what, must=not (door == "report" and what == "empty"))
        if door == "report":
            continue
        good = (world.files / name).read_text()
        for line in good.splitlines():
            key = line.split(":")[0].strip()
            if not key or line.endswith(":"):
                continue
            yield with_text(
                good.replace(line, line.replace(key, key + "s")), (key + "s",), f"{key}s for {key}"
            )
            for value in ("[1, 2]", "{a: b}", "no such thing", "-7", "1e-4", "null", "true", "2024-01-01"):
                space = line[: len(line) - len(line.lstrip())]
                must = key in (
                    "cells",
                    "model",
                    "time_key",
                    "groupby",
                    "donor_key",
                    "n_prompts",
                    "max_steps",
                ) and not (key == "groupby" and value in ("null",) or key == "donor_key" and value == "null")
                yield with_text(
                    good.replace(line, f"{space}{key}: {value}"), (key, value), f"{key}: {value}", must=must
                )


def command_inputs(world: World) -> Iterator[Input]:
    """Wrong commands."""
    cells, model = world.files / "cells.h5ad", world.files / "model"

    def wrong(*words, names, must=True):
        shown = " ".join(str(word).replace(f"{world.folder}/", "") for word in words)
        return Input("command", f"maxtoki {shown}", lambda world: _command(*words), names, must, command=True)

    out = Path("out")  # in the folder of the input
    embed = ("embed", cells, "-o", out, "--model", model, "--device", "cpu")
    encode = ("encode", cells, "-o", out, "--model", model)
    for command, base in (("embed", embed), ("encode", encode)):
        for flag, value in [
            ("--layer", "count"),
            ("--layer", ""),
            ("--gene-key", "symbl"),
            ("--tokens", world.files / "none.json"),
            ("--medians", world.files / "none.json"),
            ("--revision", "abc"),
            ("--nothing", "1"),
            ("--model", "demoo"),
            ("--model", world.files / "none"),
            ("--model", cells),
            ("--model", ""),
        ]:
            yield wrong(
                *base,
                flag,
                value,
                names=(flag, str(value) or "model"),
                must=flag != "--revision" and value != "",
            )
        yield wrong(command, names=("argument", "PATH"))
        yield wrong(command, world.files / "none.h5ad", "-o", out, names=("none.h5ad",))
        yield wrong(command, world.files, "-o", out, "--model", model, names=("files",))
        yield wrong(command, world.files / "train.yaml", "-o", out, "--model", model, names=("train.yaml",))
        yield wrong(command, cells, "-o", cells, "--model", model, names=("cells.h5ad",))
        yield wrong(command, cells, "-o", cells / "out", "--model", model, names=("cells.h5ad",))
        yield wrong(command, cells, "-o", world.files, "--model", model, names=("files", "cells.h5ad"))
        yield wrong(command, cells, "-o", "/proc/none/out", "--model", model, names=("/proc/none",))
    for flag, value in [
        ("--color", "cell_typ"),
        ("--color", ""),
        ("--device", "gpu"),
        ("--device", "cuda:9"),
        ("--device", ""),
    ]:
        yield wrong(*embed, flag, value, names=(flag, value or flag, "color", "device"), must=value != "")
    for flag, value in [
        ("--workers", "-1"),
        ("--workers", "0"),
        ("--workers", "two"),
        ("--scheduler", "nowhere:1"),
    ]:
        yield wrong(*encode, flag, value, names=(flag, value, "workers", "scheduler"))
    for words, names in [
        (("nothing",), ("nothing",)),
        (("embedd", cells), ("embedd",)),
        (("--nothing",), ("--nothing",)),
        (("convert",), ("SOURCE",)),
        (("convert", model), ("OUTPUT",)),
        (("convert", model, out, "--to", "onnx"), ("onnx",)),
        (("convert", model, world.files), ("files",)),
        (("convert", cells, out), ("cells.h5ad",)),
        (("convert", world.files / "none", out), ("none",)),
        (("convert", world.files, out), ("files",)),
        (("convert", "demoo", out), ("demoo",)),
        (("convert", model, cells), ("cells.h5ad",)),
        (("convert", model, out, "--tokens", cells, "--medians", cells), ("cells.h5ad",)),
        (("screen",), ("config",)),
        (("screen", "-c", world.files), ("files",)),
        (("screen", "-c", cells), ("cells.h5ad",)),
        (("report",), ("notebook",)),
        (("report", "embeding"), ("embeding",)),
        (("report", "fig1_timelapse", "-p", "x"), ("NAME=VALUE", "x")),
        (("report", "fig1_timelapse", "-p", "no_such=1", "-o", out), ("no_such",)),
        (("report", "fig1_timelapse", "-y", "no_such", "-o", out), ("no_such",)),
        (("report", "fig1_timelapse", "-y", cells, "-o", out), ("cells.h5ad",)),
        (("report", "fig1_timelapse", "--on", world.files / "none.h5ad", "-o", out), ("none.h5ad",)),
        (("report", "fig1_timelapse", "-o", cells), ("cells.h5ad",)),
        (("report", "all", "--on", world.files / "none.h5ad", "-o", out), ("none.h5ad",)),
        (("report", "nothing", "--help-notebook"), ("nothing",)),
        (("train",), ("temporal",)),
        (("train", "nothing"), ("nothing",)),
        (("train", "temporal"), ("config",)),
        (("train", "pretrain", "-c", world.files / "none.yaml"), ("none.yaml",)),
        (("train", "pretrain", "-c", world.files / "train.yaml"), ("train.yaml",)),
        (("train", "temporal", "-c", cells), ("cells.h5ad",)),
        (("doctor", "--xml"), ("--xml",)),
        (("demo", "-o", cells), ("cells.h5ad",)),
    ]:
        yield wrong(*words, names=names, must=words != ("train",))


def _command(*words: object) -> tuple[int, str]:
    """Run the command line; return its exit code and what it said."""
    said = io.StringIO()
    sys.argv = ["maxtoki", *map(str, words)]
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()) as shown:
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
            return code, said.getvalue() or shown.getvalue()  # a command alone shows its help
    return 0, said.getvalue()


# What is left as it was --------------------------------------------------------------------------------------------


def fingerprint(thing) -> object:
    """Digests of all that is in an AnnData, slot by slot."""
    if isinstance(thing, ad.AnnData):
        found = {
            "X": fingerprint(thing.X),
            "names": fingerprint(thing.obs_names),
            "raw": fingerprint(thing.raw),
        }
        for slot in ("obs", "var"):
            frame = getattr(thing, slot)
            found |= {f"{slot}/{key}": fingerprint(frame[key]) for key in frame}
        for slot in ("layers", "obsm", "varm", "obsp", "varp", "uns"):
            found |= {
                f"{slot}/{key}": fingerprint(value) for key, value in dict(getattr(thing, slot)).items()
            }
        return found
    digest = hashlib.blake2b(digest_size=12)
    if sp.issparse(thing):
        for part in (thing.data, thing.indices, thing.indptr):
            digest.update(np.ascontiguousarray(part).tobytes())
    elif isinstance(thing, np.ndarray) and thing.dtype != object:
        digest.update(np.ascontiguousarray(thing).tobytes())
    elif isinstance(thing, (pd.DataFrame, pd.Series, pd.Index)):
        digest.update(pickle.dumps(thing))
    elif isinstance(thing, Mapping):
        digest.update(repr([(key, fingerprint(thing[key])) for key in sorted(thing, key=str)]).encode())
    else:
        digest.update(repr(thing).encode())
    return digest.hexdigest()


def files_below(folder: Path) -> dict[str, str]:
    """Digests of the files of a folder."""
    return {
        str(path.relative_to(folder)): hashlib.blake2b(path.read_bytes(), digest_size=12).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and os.access(path, os.R_OK)
    }


def lost(before: dict, after: dict, *, refused: bool) -> str | None:
    """What of the cells is changed, or new though the call was refused."""
    for key in before:
        ours = key.split("/")[0] in ("uns", "obsm", "varm") or key in ("layers/rank",)
        if key not in after:
            return f"{key} is gone"
        if (
            before[key] != after[key]
            and (refused or not ours)
            and not (not refused and key.startswith(("obs/", "var/")))
        ):
            return f"{key} is changed"
    if refused and (new := sorted(set(after) - set(before))):
        return f"{new[0]} is new"
    return None


# How it went -------------------------------------------------------------------------------------------------------


def classify(error: BaseException, names: tuple[str, ...]) -> tuple[str, str]:
    """The class of an error, and its message."""
    message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    shown = f"{type(error).__name__}: {message}"
    trace = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    ours = Path(code.co_filename).is_relative_to(PACKAGE)
    if not ours:
        # anndata, pandas ... have files; what has none is the interpreter's own.
        library = "site-packages" in code.co_filename
        return ("library" if library else "python"), shown
    said = dis.opname[code.co_code[trace.tb_lasti]] in ("RAISE_VARARGS", "RERAISE")
    if not said:
        c_library = isinstance(error, (RuntimeError, OSError, ValueError))
        return ("library" if c_library else "python"), shown
    return _worded(message, names), shown


def _worded(message: str, names: tuple[str, ...]) -> str:
    found = any(_names(name, message) for name in names)
    return "clear" if found and 0 < len(message.strip().splitlines()) <= 3 else "vague"


def _names(name: str, message: str) -> bool:
    word = name.lstrip("-")
    return bool(word) and re.search(rf"(?<![A-Za-z0-9]){re.escape(word)}", message, re.IGNORECASE) is not None


def outcome(one: Input, world: World) -> tuple[str, str]:
    """Run an input in this process; its class, and what was said."""
    files, raised, found = files_below(world.files), None, None
    try:
        found = one.run(world)
    except BaseException as error:  # noqa: BLE001 - that is what is asked
        raised = error
    if files_below(world.files) != files:
        return "loss", "files that were given are changed"
    names = tuple(name.replace("{key}", str(getattr(world, "key", ""))) for name in one.names)
    if one.command and raised is None:
        code, said = found
        if code == 0:
            return ("wrongly accepted" if one.must_refuse else "accepted"), ""
        if "Traceback" in said:
            return "library", said[-300:]
        last = [line for line in said.splitlines() if line.strip()]
        refused = _worded(" ".join(last[-3:]) if last else "", names)
        if left := _left(world):
            return "loss", f"{left} is left"
        return refused, " ".join(last)[-400:]
    if raised is not None:
        kind, said = classify(raised, names)
        if isinstance(raised, SystemExit):
            return "python", said
    else:
        kind, said = ("wrongly accepted" if one.must_refuse else "accepted"), ""
    if one.kind in ON_CELLS and (
        gone := lost(world.before, fingerprint(world.adata), refused=raised is not None)
    ):
        return "loss", f"{gone} ({said})"
    if raised is not None and (left := _left(world)):
        return "loss", f"{left} is left ({said})"
    return kind, said


def _left(world: World) -> str | None:
    """Outputs that are there after an error. Parts that a run goes on from are no loss."""
    for path in (world.folder / "out", world.folder / "out.h5ad", world.folder / "out.zarr"):
        if path.is_file() or (path.is_dir() and any(p.is_file() for p in path.rglob("*"))):
            return path.name
    hidden = [p for p in world.folder.iterdir() if p.name.startswith(".") and p.name.count(".") > 1]
    return hidden[0].name if hidden else None


def _apart(run: Callable[[], object]) -> None:
    """Run a function in a process of its own."""
    child = os.fork()
    if child == 0:
        try:
            run()
        finally:
            os._exit(0)
    os.waitpid(child, 0)


def try_inputs(chosen: list[Input], world: World) -> Iterator[dict]:
    """Run inputs in processes of their own: one goes on for as long as all is refused and nothing is changed."""
    done = 0
    while done < len(chosen):
        read, write = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python 3.12 warns of forks beside threads
            child = os.fork()
        if child == 0:
            os.close(read)
            with os.fdopen(write, "wb", buffering=0) as pipe:
                _work(chosen[done:], world, pipe)
            os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            found = list(_answers(pipe))
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status) or not found:
            name = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else "no answer"
            found.append(("crash", name, 0.0))
        for one, (kind, said, seconds) in zip(chosen[done:], found, strict=False):
            row = {"kind": one.kind, "input": one.label, "outcome": kind, "said": str(said)[:500]}
            yield row | {"must_refuse": one.must_refuse, "seconds": round(seconds, 2)}
        done += len(found)


def _work(chosen: list[Input], world: World, pipe) -> None:
    """Run inputs until one is not refused."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.dup2(devnull, 2)
    warnings.simplefilter("ignore")
    pristine, top = fingerprint(world.adata), world.folder
    for one in chosen:
        signal.alarm(SECONDS)
        start = time.perf_counter()
        with tempfile.TemporaryDirectory(dir=top, ignore_cleanup_errors=True) as folder:
            world.folder, world.before = Path(folder), pristine
            os.chdir(folder)
            try:
                kind, said = outcome(one, world)
            except BaseException as error:  # noqa: BLE001 - or the child would go on as a second parent
                kind, said = "crash", f"of this script: {type(error).__name__}: {error}"
            os.chdir(top)
        pickle.dump((kind, said, time.perf_counter() - start), pipe)
        if kind not in ("clear", "vague") or one.kind in ("cells", "results"):
            return


def _answers(pipe) -> Iterator[tuple]:
    while True:
        try:
            yield pickle.load(pipe)
        except EOFError:
            return


def inputs(world: World) -> list[Input]:
    """All inputs."""
    return [
        *signature_inputs(),
        *cells_inputs(),
        *results_inputs(),
        *file_inputs(world),
        *command_inputs(world),
    ]


def count(rows: list[dict]) -> list[dict]:
    """Outcomes by kind, and the share that is clear of what was, or should have been, refused."""
    table = []
    for kind, what in [*KINDS.items(), (None, "all")]:
        mine = [row for row in rows if kind is None or row["kind"] == kind]
        found = Counter(row["outcome"] for row in mine)
        refused = len(mine) - found["accepted"]
        if mine:
            table.append(
                {"inputs": what, "n": len(mine)}
                | {name: found[name] for name in OUTCOMES}
                | {"clear_share": found["clear"] / refused if refused else None}
            )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=KINDS, action="append", help="kinds to run, by default all")
    parser.add_argument("--match", default="", help="run the inputs whose label has this")
    parser.add_argument("--sample", type=int, help="how many to draw, by default all")
    parser.add_argument("--show", action="store_true", help="print what was not refused clearly")
    asked = parser.parse_args()
    from benchmarks import report

    mt.settings.progress = False
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        chosen = [
            one
            for one in inputs(world)
            if (not asked.only or one.kind in asked.only) and asked.match in one.label
        ]
        total = len(chosen)
        if asked.sample is not None:
            chosen = random.Random(0).sample(chosen, min(asked.sample, total))
        rows = []
        for row in try_inputs(chosen, world):
            rows.append(row)
            if asked.show and row["outcome"] not in ("clear", "accepted"):
                print(f"{row['outcome']:<16} {row['input']}\n      {row['said'][:300]}", flush=True)
    table = count(rows)
    print(pd.DataFrame(table).to_string(index=False))
    if not (asked.only or asked.match):
        unclear = [row for row in rows if row["outcome"] not in ("clear", "accepted")]
        report.write("fuzz", table, n_inputs=total, unclear=unclear)


if __name__ == "__main__":
    main()
