"""The grammar that all public functions share, and that their results can be written."""

import dataclasses
import functools
import inspect
import re
import subprocess
import sys
from collections.abc import Mapping

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
import zarr
from anndata import AnnData
from scipy.sparse import issparse

import maxtoki_toolkit as mt
from maxtoki_toolkit import _keys
from maxtoki_toolkit.results.schema import SCHEMA
from maxtoki_toolkit.results.store import writable, write_result

NAMESPACES = {"pp": mt.pp, "tl": mt.tl, "pl": mt.pl, "get": mt.get}
FUNCTIONS = {
    f"{space}.{name}": getattr(module, name)
    for space, module in NAMESPACES.items()
    for name in module.__all__
}
ON_ANNDATA = {
    name: f for name, f in FUNCTIONS.items() if next(iter(inspect.signature(f).parameters)) == "adata"
}
# Functions whose result is cells of their own.
NEW_CELLS = {"pp.simulate_doublets", "tl.generate"}
EVERYTHING = (
    FUNCTIONS
    | {
        f"{space}.{name}": getattr(getattr(mt, space), name)
        for space in ("datasets", "models", "train")
        for name in getattr(mt, space).__all__
    }
    | {"load_model": mt.load_model}
)


def test_every_public_function_is_seen():
    assert {"pp.map_genes", "pp.rank_value_encode", "tl.embed", "pl.rank_heatmap", "get.ranks"} <= set(
        ON_ANNDATA
    )


@pytest.mark.parametrize("name", ON_ANNDATA)
def test_signature(name):
    signature = inspect.signature(FUNCTIONS[name])
    parameters = list(signature.parameters.values())
    assert parameters[0].annotation == "AnnData"
    positional = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    allowed = {"pp": ["model", "queries", "key"], "tl": ["model"], "get": ["genes"], "pl": []}[
        name.split(".")[0]
    ]
    if name == "get.table":
        allowed, positional = ["key"], positional[:2]  # and the table's name
    assert [p.name for p in positional[1:]] in ([], *([second] for second in allowed), ["model", "sae"])
    assert not any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)
    assert "copy" not in signature.parameters  # adata.copy() is the one way
    if name in NEW_CELLS:
        assert signature.return_annotation == "AnnData"
    elif name.startswith(("pp.", "tl.")):
        assert signature.return_annotation in ("None", None)
    if name.startswith("pl."):
        assert signature.return_annotation in ("Axes", "Figure")
        assert not {"save", "show"} & set(signature.parameters)


@pytest.mark.parametrize("name", EVERYTHING)
def test_docstring(name):
    """Every parameter is described, in order, and there is an example."""
    function = EVERYTHING[name]
    text = inspect.getdoc(function)
    assert text, name
    assert ">>> " in text or inspect.isclass(function), "no example"
    if inspect.isclass(function):
        return
    signature = inspect.signature(function)
    if not signature.parameters:
        return
    section = re.search(r"Parameters\n-+\n(.*?)(\n\n[A-Z]\w+\n-+\n|\Z)", text, re.DOTALL)
    assert section, "no Parameters"
    described = [
        key.strip()
        for line in section[1].splitlines()
        if line and not line.startswith(" ")
        for key in line.split(",")
    ]
    assert sorted(described) == sorted(signature.parameters)


def assert_equal(found, expected):
    """Compare two AnnData, or anything that is stored in one."""
    if isinstance(expected, AnnData):
        for slot in ("X", "obs", "var", "layers", "obsm", "varm", "obsp", "uns"):
            assert_equal(getattr(found, slot), getattr(expected, slot))
    elif isinstance(expected, pd.DataFrame):
        pd.testing.assert_frame_equal(found, expected, check_dtype=False, check_categorical=False)
    elif isinstance(expected, Mapping):
        assert set(found) == set(expected)
        for key in expected:
            assert_equal(found[key], expected[key])
    elif issparse(expected):
        assert found.dtype == expected.dtype
        assert (found != expected).nnz == 0
    else:
        np.testing.assert_array_equal(found, expected)


SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
PROMPTS = {"time_key": "age_months", "groupby": "cell_type", "donor_key": "donor_id", "n_prompts": 12}
# Arguments that a function cannot do without.
COMPARISON = {
    "condition_key": "sex",
    "control": "female",
    "time_key": "age_months",
    "donor_key": "donor_id",
    "tolerance": 400,
}
FEW = mt.tl.AgeSampling(n_contexts=1, n_cells=2)
GENES = mt.datasets.aging_atlas(20, 10, n_genes=500).var
GROUPS = ["fibroblast", "endothelial cell", "CD8 T cell", "CD4 T cell", "monocyte", "somewhere else"]
ARGUMENTS = {
    "pp.map_orthologs": {"orthologs": pd.DataFrame({"gene": GENES["symbol"], "human": GENES.index})},
    "tl.perturb": {"genes": "all"},
    "tl.expression_age_slope": {"time_key": "age_months", "donor_key": "donor_id"},
    "tl.perturbation_concordance": {"n_permutations": 99},
    "tl.known_gene_concordance": {
        "known": pd.DataFrame({"gene": GENES["symbol"], "value": np.arange(len(GENES)) - 99.5}),
        "n_permutations": 99,
    },
    "tl.search_gene_sets": {"search": mt.tl.GeneSetSearch(n_cells=4, n_candidates=4, max_size=2, n_null=2)},
    "tl.steer_cells": {"sampling": mt.tl.CellSampling.of(n_cells=4, n_steps=4)},
    "tl.perturbation_metrics": {
        "predicted": "rank",
        "perturbation_key": "sex",
        "control": "female",
        "n_bootstrap": 5,
    },
    "tl.separability": {
        "condition_key": "sex",
        "control": "female",
        "use_rep": "X_maxtoki",
        "n_neighbors": 3,
        "n_permutations": 9,
    },
    "tl.flag_plates": {
        "plate_key": "batch",
        "well_key": "well",
        "perturbation_key": "drug",
        "control": "DMSO",
        "n_neighbors": 3,
    },
    "tl.predict_response": {"groupby": "batch", "perturbation_key": "sex", "control": "female"},
    "pp.hold_out": {"donor_key": "donor_id"},
    "pp.match_ages": COMPARISON,
    "pp.match_queries": {"tolerance": None},
    "pp.parse_age": {"key": "stage"},
    "pp.sample_prompts": PROMPTS,
    "tl.predict_age": {
        "time_key": "age_months",
        "donor_key": "donor_id",
        "groupby": [],
        "sampling": FEW,
    },
    "tl.age_acceleration": {"sampling": FEW},
    "tl.train_on_generated": {"n_permutations": 2},
    "pp.holdout_intervals": {"time_key": "age_months", "intervals": 0, "n_permutations": 1},
    "tl.evaluate_generated": {"train": "train"},
    "tl.differential_rank": {"intervals": ((200, 620), (621, 1200)), "groupby": []},
    "tl.attention": {"n_cells": 10, "key_added": "heads"},
    "tl.gene_effects": {"genes": GENES["symbol"].tolist()[:200], "n_cells": 5},
    "tl.generate": {"n_given": 3, "max_genes": 6},
    "tl.feature_effects": {"features": [0, 3], "doses": [2.0]},
    "tl.feature_families": {"n_bootstrap": 2},
    "tl.feature_genes": {"features": [0, 3], "n_genes": 2, "n_cells": 20},
    "tl.feature_mediators": {"genes": list(GENES["symbol"][:1]), "max_features": 1},
    "tl.feature_network": {"n_features": 10, "n_cells": 20, "alpha": 1.0},
    "tl.evaluate_sae": {"n_cells": 20},
    "tl.search_features": {"target": {0: 1.0}, "n_candidates": 3, "max_size": 2, "n_cells": 20},
    "tl.spectral_entropy": {
        "time_key": "age_months",
        "n_bins": 2,
        "n_features": 5,
        "n_cells": 30,
        "n_permutations": 9,
    },
    "tl.neighbor_purity": {"groupby": "cell_type"},
    "tl.neighborhood_enrichment": {"library_key": "donor_id", "n_neighbors": 3, "n_permutations": 9},
    "tl.spatial_features": {
        "keys": list(GENES.index[:3]),
        "library_key": "donor_id",
        "n_neighbors": 3,
        "n_permutations": 9,
    },
    "pp.spatial_prompts": {"library_key": "donor_id", "n_neighbors": 3, "n_prompts": 10},
    "tl.variogram": {"keys": "cell_type", "library_key": "donor_id", "n_bins": 4, "n_permutations": 9},
    "tl.gene_neighbors": {
        "genes": list(GENES["symbol"][:2]),
        "n_neighbors": 5,
        "gene_sets": {"some": GENES["symbol"].tolist()[:60]},
        "n_permutations": 19,
    },
    "tl.gene_task": {
        "labels": pd.DataFrame({"gene": GENES["symbol"], "label": np.arange(len(GENES)) % 2}),
        "n_folds": 2,
        "n_permutations": 2,
    },
    "tl.nominate_targets": {
        "dependency": pd.DataFrame(
            np.random.default_rng(0).random((len(GENES), 6)) < 0.4, index=GENES.index
        ).set_axis(GROUPS, axis=1),
        "max_share": 0.9,
        "n_permutations": 2,
    },
    "tl.annotate": {"groupby": "cell_type", "donor_key": "donor_id", "n_folds": 2},
}


@pytest.fixture(scope="module")
def encoded():
    """Cells with all that functions build on, and a model of one layer that tells time."""
    adata = mt.datasets.aging_atlas(120, 10, n_genes=500)
    del adata.uns["truth"]  # many columns, and each takes zarr a while
    adata.obs["stage"] = (adata.obs["age_months"] // 12).astype(str) + "-year-old human stage"
    adata.obsm["spatial"] = np.random.default_rng(0).uniform(high=100, size=(120, 2))
    wells = np.arange(adata.n_obs) % 8
    adata.obs["well"] = [f"{'AB'[i // 4]}{i % 4 + 1:02d}" for i in wells]
    adata.obs["drug"] = np.where(wells < 4, "DMSO", "x")
    mt.pp.map_genes(adata)
    vocab = mt.models.Vocabulary.from_anndata(adata)
    small = mt.models.build_model({**SHAPE, "max_position_embeddings": 128}, vocab)
    model = mt.models.extend_model(small, vocab.with_times(-900, 900), max_length=512)
    model = dataclasses.replace(model, time_head=mt.models.TimeHead("expectation"))
    mt.pp.rank_value_encode(adata, model)
    mt.pp.hold_out(adata, donor_key="donor_id", donors=0.4, time_key="age_months")
    mt.pp.match_ages(adata, **COMPARISON)
    for part, key in [("train", "train_prompts"), ("held_out", "prompts")]:
        mt.pp.sample_prompts(adata, contexts=part, queries=part, key_added=key, **PROMPTS)
    mt.pp.sample_prompts(
        adata, contexts="held_out", queries="held_out", task="cell", key_added="cell_prompts", **PROMPTS
    )
    return adata, model


# Functions of what heads look at.
ON_ATTENTION = {"tl.head_enrichment", "tl.head_profiles", "tl.head_segments", "tl.head_similarity"}

# Functions of features of an autoencoder.
ON_FEATURES = {"tl.driver_features", "tl.feature_summary", "tl.label_features"}

# Functions of an embedding that have donors.
ON_EMBEDDING = {"tl.predict_response", "tl.separability"}

# Functions of cells with proteins.
ON_PAIRS = {"tl.translate"}

# Functions of a screen.
ON_SCREEN = {"tl.perturbation_stats", "tl.perturbation_concordance", "tl.known_gene_concordance"}


def with_slow(names, quick):
    """Names as parameters, all but the quick ones for the slow tests."""
    return [name if name.startswith(quick) else pytest.param(name, marks=pytest.mark.slow) for name in names]


# Functions that draw, and that have donors. (Prompts and paragraphs know their own; a temporal model reads nothing else.)
SEEDED = [
    name
    for name, function in ON_ANNDATA.items()
    if "rng" in inspect.signature(function).parameters and name.split(".")[0] in ("pp", "tl")
]
BY_DONOR = [
    name
    for name, function in ON_ANNDATA.items()
    if "donor_key" in inspect.signature(function).parameters
    and name not in ("tl.ablate_heads", "tl.attribute", "tl.feature_effects", "tl.translate")
    and name not in ("pp.read_paragraphs", "tl.ablate_heads", "tl.attribute", "tl.feature_effects")
]
# Functions that read time, and what they need for it.
READ_TIME = [
    "tl.ablate_heads",
    "tl.ablate_prompt",
    "tl.age_acceleration",
    "tl.attention",
    "tl.generate",
    "tl.patch",
    "tl.perturb",
    "tl.predict_timelapse",
    "tl.search_gene_sets",
    "tl.steer_cells",
]
TIMED = {
    "tl.attention": {"key": "prompts"},
    "tl.perturb": {"genes": "all"},
    "tl.search_gene_sets": ARGUMENTS["tl.search_gene_sets"],
}


def built_for(name):
    """The fixture with the cells that a function builds on."""
    on = {"attended": ON_ATTENTION, "featured": ON_FEATURES, "screened": ON_SCREEN, "paired": ON_PAIRS}
    return next((fixture for fixture, names in on.items() if name in names), "read")


def read_heads(adata, model):
    """Write the attention that these build on."""
    mt.tl.attention(adata, model, groupby="cell_type", donor_key="donor_id", n_cells=2)
    mt.tl.attention(adata, model, key="prompts")


@functools.cache
def coder_of(model, site):
    """An autoencoder that has learned nothing."""
    if not isinstance(model, mt.models.MaxTokiModel):
        return None
    card = {"block": 0, "site": site, "model": model.name, "model_sha256": model.identity}
    # Enough features a gene that each varies between cells, few enough that none is active nearly everywhere.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        coder = mt.models.SparseAutoencoder(16, 60, 8, card=card)
    return coder.eval().requires_grad_(requires_grad=False)


def call(name, adata, model, **settings):
    """Call a function of an AnnData with what it cannot do without."""
    if name in ON_PAIRS:
        model = paired_model(adata)
    second = {
        "model": model,
        "queries": adata,
        "sae": coder_of(model, "attention"),
        "later": coder_of(model, "output"),
    }
    wanted = inspect.signature(FUNCTIONS[name]).parameters
    required = {
        key: second[key] for key in second if key in wanted and wanted[key].default is inspect.Parameter.empty
    }
    if name == "tl.annotate":
        required["reference"] = adata.copy()
    if "generated" in wanted:
        required["generated"] = mt.tl.generate(adata, model, key="cell_prompts", max_genes=6)
    return FUNCTIONS[name](adata, **required, **{**ARGUMENTS.get(name, {}), **settings})


def call_on_copy(name, adata, model):
    """Call a function with a copy of the cells: it writes into them, or returns new ones."""
    copied = adata.copy()
    found = call(name, copied, model)
    assert (found is None) == (name not in NEW_CELLS)
    return copied if found is None else found


@pytest.fixture(scope="module")
def read(encoded):
    """The cells of `encoded` with an embedding and lapses, which many functions build on."""
    adata, model = encoded[0].copy(), encoded[1]
    mt.tl.embed(adata, model)
    mt.tl.embed_genes(adata, model, groupby="cell_type")
    mt.tl.predict_timelapse(adata, model)
    return adata


@pytest.fixture(scope="module")
def attended(read, encoded):
    """The attention of these, for the functions of what heads look at."""
    adata = read.copy()
    read_heads(adata, encoded[1])
    return adata


@pytest.fixture(scope="module")
def screened(read, encoded):
    """A screen of these, summed up, and slopes of expression with age."""
    adata = read.copy()
    mt.tl.perturb(adata, encoded[1], genes="all")
    mt.tl.perturbation_stats(adata, min_donors=2)
    mt.tl.expression_age_slope(adata, time_key="age_months", donor_key="donor_id")
    return adata


@pytest.fixture(scope="module")
def paired():
    """Cells with proteins."""
    adata = mt.datasets.paired_modalities(
        mt.datasets.aging_atlas(60, 10, n_genes=500), n_proteins=6, n_peaks=None
    )
    del adata.uns["truth"]
    mt.pp.rank_value_encode(adata, paired_model(adata).vocab)
    return adata


def paired_model(adata):
    """A model of genes and of the proteins of these cells that has learned nothing."""
    cells = adata[np.sort(adata.obs_names)].copy()
    mt.pp.map_genes(cells)
    vocab = mt.models.Vocabulary.from_anndata(cells).with_modalities(mt.pp.modality_medians(cells))
    return mt.models.build_model({**SHAPE, "max_position_embeddings": 128}, vocab)


@pytest.fixture(scope="module")
def featured(read, encoded):
    """Features of these, what they go with, and a network of them."""
    adata = read.copy()
    for name in ("tl.features", "tl.feature_summary", "tl.feature_network"):
        call(name, adata, encoded[1])
    return adata


# Tables that functions write with these settings only.
OPTIONAL = {
    ("tl.attribute", "features"): None,  # in place of others: tests/test_feature_circuits.py
    ("tl.embed_genes", "groups"): {"groupby": "cell_type"},
    ("tl.gene_network", "scores"): {"n_permutations": 99},
    ("tl.gene_effects", "scores"): {"n_permutations": 99, "n_cells": 4},
    ("tl.gene_effects", "signs"): {"n_permutations": 99, "n_cells": 4},
    ("tl.feature_families", "agreement"): {"groupby": "sex", "n_bootstrap": 2},
    ("tl.feature_summary", "gene_sets"): {"gene_sets": {"some": GENES["symbol"].tolist()[:60]}},
    ("tl.search_gene_sets", "trace"): {
        "search": mt.tl.GeneSetSearch(
            method="metropolis",
            n_cells=4,
            n_candidates=4,
            max_size=2,
            n_null=2,
            chains=mt.tl.Chains(n_steps=6),
        )
    },
}
# Columns whose names come from the data: of these tables, or that look like this.
FROM_DATA = {
    ("tl.ablate_prompt", "prompts"),
    ("tl.attribute", "prompts"),
    ("tl.head_similarity", "similarity"),
    ("tl.head_similarity", "raw"),
    ("tl.head_similarity", "replicated"),
}
NUMBERED = re.compile(r"_[1-9]\d*$")


def described_columns(name):
    """Names that the docstring of a function has in code style, and those of functions that it says it is like."""
    text = inspect.getdoc(FUNCTIONS[name])
    others = re.findall(r"as of\s+`mt\.([\w.]+)`", text)
    return set(re.findall(r"`(\w+)`", text)).union(*map(described_columns, others))


def check_schema(name, result, optional=()):
    """A result has the tables and units that the schema says, and columns that the docstring of its function describes."""
    params = result["params"]
    assert params["function"] == name
    known = next(r for r in SCHEMA.values() if r.function == name)
    tables = {key: table for key, table in result.items() if isinstance(table, pd.DataFrame)}
    assert set(tables) | {table for f, table in OPTIONAL if f == name} - set(optional) == set(known.tables)
    assert set(known.units) <= set(known.tables)
    assert all(table in known.units or params["unit"] for table in tables)
    described, lacking = described_columns(name), {}
    for table in [table for table in tables if (name, table) not in FROM_DATA]:
        columns = {column.removesuffix("_low").removesuffix("_high") for column in tables[table]}
        lacking[table] = {c for c in columns if not described & {c, f"{c}_low", NUMBERED.sub("_0", c)}}
    assert not any(lacking.values())


def test_the_schema_knows_functions_that_there_are():
    assert {result.function for result in SCHEMA.values()} <= set(FUNCTIONS)
    assert set(SCHEMA) <= {value for key, value in vars(_keys).items() if isinstance(value, str)}


@pytest.mark.parametrize("name", [n for n in ON_ANNDATA if n.startswith("tl.")])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*zarr")
def test_results_survive_a_round_trip(request, encoded, name, tmp_path):
    """To h5ad with the cells that it is of, to zarr alone: each column takes that a while."""
    adata, model = encoded
    if name not in ("tl.embed", "tl.embed_genes", "tl.predict_timelapse"):
        adata = request.getfixturevalue(built_for(name)).copy()
        adata.uns.pop(_keys.FEATURE_SUMMARY if name == "tl.feature_summary" else "", None)
        for key in (_keys.PERTURBATION_STATS, _keys.PERTURBATION_CONCORDANCE):
            if name == f"tl.{key}":
                adata.uns.pop(key, None)
    if name in NEW_CELLS:
        result = call(name, adata, model)
        new = set(result.uns)
    else:
        result = call_on_copy(name, adata, model)
        new = (set(result.uns) | set(result.obsm)) - set(adata.uns) - set(adata.obsm)
    assert new
    for key in new & set(result.uns) - {_keys.ENCODING}:
        # An audit of audits writes theirs as well.
        check_schema(result.uns[key]["params"]["function"], result.uns[key])
    for slot in (result.uns, result.obsm):
        for key in set(slot) - new:
            del slot[key]
    result.write_h5ad(tmp_path / "cells.h5ad")
    found = anndata.read_h5ad(tmp_path / "cells.h5ad")
    assert_equal(found, result)
    assert found.layers["rank"].dtype == np.uint16
    alone = AnnData(
        obs=result.obs[[]],
        obsm={key: value for key, value in result.obsm.items() if key in new},
        uns={key: value for key, value in result.uns.items() if key in new},
    )
    store = zarr.storage.MemoryStore()
    alone.write_zarr(store)
    assert_equal(anndata.read_zarr(store), alone)


@pytest.mark.parametrize("name", sorted({name for (name, _), given in OPTIONAL.items() if given}))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tables_that_some_settings_give_are_in_the_schema(request, encoded, name):
    adata, model = request.getfixturevalue(built_for(name)).copy(), encoded[1]
    settings = next(given for (function, _), given in OPTIONAL.items() if function == name)
    if name in ("tl.gene_network", "tl.gene_effects"):
        genes = adata.var_names[
            np.asarray((adata.layers["rank"] > 0).sum(axis=0)).ravel().argsort()[::-1][:24]
        ]
        settings = settings | {
            "regulons": pd.DataFrame({"source": np.repeat(genes[:4], 5), "target": list(genes[4:])})
        }
    call(name, adata, model, key_added="mine", **settings)
    check_schema(name, adata.uns["mine"], {table for function, table in OPTIONAL if function == name})
    listed = mt.get.results(adata).query("key == 'mine'")
    assert set(listed["table"]) == {k for k, v in adata.uns["mine"].items() if isinstance(v, pd.DataFrame)}
    for table, n_rows in zip(listed["table"], listed["n_rows"], strict=True):
        found = mt.get.table(adata, "mine", table)
        assert (len(found), found.attrs["function"]) == (n_rows, name)


@pytest.mark.parametrize(
    "name", sorted({r.function for r in SCHEMA.values() if r.function.startswith("pp.")})
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_results_of_preprocessing_are_in_the_schema(encoded, name):
    adata, model = encoded[0].copy(), encoded[1]
    for key in [key for key in adata.uns if adata.uns[key]["params"]["function"] == name]:
        if name != "pp.sample_prompts":  # others read them
            del adata.uns[key]
    found = call(name, adata, model)
    mine = [r for r in (adata if found is None else found).uns.values() if r["params"]["function"] == name]
    assert mine
    for result in mine:
        check_schema(name, result)


def test_many_results_survive_a_round_trip_together(screened, tmp_path):
    screened.write_h5ad(tmp_path / "cells.h5ad")
    assert_equal(anndata.read_h5ad(tmp_path / "cells.h5ad"), screened)


@pytest.mark.parametrize("name", with_slow(SEEDED, ("pp.", "tl.age_acceleration", "tl.generate")))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_order_of_the_cells_does_not_matter(request, encoded, name):
    """Draws depend on the names of cells and donors and the seed, never on places in the file."""
    adata, model = request.getfixturevalue(built_for(name)), encoded[1]
    moved = adata[np.random.default_rng(0).permutation(adata.n_obs)].copy()
    expected, found = (call_on_copy(name, cells, model) for cells in (adata, moved))
    assert_equal(found[expected.obs_names].copy(), expected)


@pytest.mark.parametrize("name", with_slow(BY_DONOR, ("pp.", "tl.predict_age", "tl.expression")))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_cells_without_a_donor_are_left_out(request, encoded, name):
    """They are no donor of their own, called "nan", and how many they are is said."""
    adata, model = encoded[0].copy(), encoded[1]
    if name in ON_FEATURES:
        adata = request.getfixturevalue("featured").copy()
    if name in ON_EMBEDDING:
        adata = request.getfixturevalue("read").copy()
    asked = np.unique(
        np.concatenate(
            [
                adata.uns[key]["prompts"].filter(regex="^(query|context_.)$").to_numpy().ravel()
                for key in ("prompts", "train_prompts", "cell_prompts")
            ]
        ).astype(str)
    )
    lost = adata.obs_names.difference(asked)[:6]
    adata.obs["donor_id"] = adata.obs["donor_id"].astype(object).mask(adata.obs_names.isin(lost), np.nan)
    with pytest.warns(
        UserWarning, match=r"6 of 120 cells have no value in .obs\['donor_id'\] and are left out"
    ):
        result = call(name, adata, model, donor_key="donor_id")
    tables = [
        table
        for value in (adata if result is None else result).uns.values()
        for table in value.values()
        if isinstance(table, pd.DataFrame)
    ]
    assert not any(
        table[column].astype(str).eq("nan").any()
        for table in tables
        for column in table.select_dtypes(["object", "string", "category"])
    )


@pytest.mark.parametrize("name", READ_TIME)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_doubtful_unit_is_refused(encoded, name):
    """Ages in years, for a model that tells months, would make all answers wrong by a factor."""
    adata, model = encoded[0].copy(), encoded[1]
    adata.obs["age"] = adata.obs["age_months"] // 12
    task = "cell" if name == "tl.generate" else "timelapse"
    mt.pp.sample_prompts(adata, **{**PROMPTS, "time_key": "age", "task": task, "n_prompts": 40})
    mt.pp.match_ages(adata, **{**COMPARISON, "time_key": "age", "tolerance": 40})
    before = set(adata.uns)
    with pytest.raises(ValueError, match=r"\.obs\['age'\] goes from \d+ to \d+, which is taken for months"):
        FUNCTIONS[name](adata, model, **TIMED.get(name, {}))
    assert set(adata.uns) == before


def test_the_unit_is_listed_in_the_result(read):
    assert re.fullmatch(
        r"months, \d+ to \d+, as 'age_months' says", read.uns["timelapse"]["params"]["time_read_as"]
    )


@pytest.mark.filterwarnings("ignore:.*zarr")
def test_encoded_cells_survive_zarr(encoded, tmp_path):
    adata = encoded[0]
    adata.write_zarr(tmp_path / "cells.zarr")
    found = anndata.read_zarr(tmp_path / "cells.zarr")
    assert_equal(found, adata)
    assert found.layers["rank"].dtype == np.uint16


def test_results_hold_only_what_can_be_written(tmp_path):
    table = pd.DataFrame({"a": ["x", None], "b": [1.0, np.nan]})
    params = {
        "tuple": (1, 2),
        "set": {"b", "a"},
        "none": None,
        5: np.float32(1.5),
        "path": tmp_path,
        "t": {"k": (1,)},
    }
    adata = AnnData(np.ones((1, 1)))
    write_result(adata, _keys.MAP_GENES, params, key_added="test", report=table)
    adata.write_h5ad(tmp_path / "a.h5ad")
    read = anndata.read_h5ad(tmp_path / "a.h5ad").uns["test"]
    assert read["params"]["set"].tolist() == ["a", "b"]
    assert read["params"]["5"] == 1.5
    assert read["report"]["a"].tolist() == ["x", ""]
    with pytest.raises(TypeError, match="Cannot store a object"):
        writable({"x": object()})


def test_import_is_light():
    """Importing the package loads neither torch nor scanpy; they come with the first use."""
    code = "import sys, maxtoki_toolkit; print(any(m in sys.modules for m in ('torch', 'scanpy', 'transformers')))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


@pytest.mark.slow  # a process of its own, which imports PyTorch and Transformers
def test_models_know_nothing_of_anndata():
    code = (
        "import sys, maxtoki_toolkit.models as m; m.build_model, m.load_model, m.Vocabulary; "
        "import maxtoki_toolkit.models.embedding; print('anndata' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
