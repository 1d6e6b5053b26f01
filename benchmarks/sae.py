"""Sparse autoencoders: do they find what is there, are they found again, and how fast are they?

    python benchmarks/sae.py toy drivers speed network families branch programmes    # data that ship, 40 minutes on one core
    python benchmarks/sae.py cells longer --folder FOLDER_OF_DATA       # forty minutes; sorted blood does not ship

- `toy`: models whose states are sums of a few out of twice as many directions as there are dimensions.
- `drivers`: PageRank on reversed edges, and simpler scores, against all that each node of a known circuit does;
  networks of two layers in which there is nothing to find.
- `cells`: autoencoders of heart nuclei and of sorted blood (pbmc_facs_3874.h5ad, where it is), beside those of other
  seeds, of the other half of the cells, of a model of random weights, and beside directions nobody learned.
- `longer`: the same autoencoders of other seeds and cells after 1,000 and 4,000 steps.
- `speed`: reading and training, the latter beside sparsify's SparseCoder on the same states, whose wheel
  `pip download` fetches and nobody installs.
- `network`: effects of 1,024 features on those of a later block, beside full passes of the model.
- `families`: the same effects of families, whose features are scaled together.
- `branch`: small models that learn which branch clones of a simulated course take, and whether the top drivers among
  their features before the branch change the branch more than features that are matched to them.
- `programmes`: cell types and activities of factors in simulated donors that no model has seen, beside single genes, principal
  components and an untrained model.

Each part is written to `results/sae.json` under its name, cells under that of their set; the others stay.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # This folder must not come first on the path: its tokenize.py would pass for Python's own.
    sys.path[0] = str(Path(__file__).parents[1])

import argparse
import copy
import importlib
import statistics
import subprocess
import tempfile
import time
import types
import warnings
import zipfile
from collections.abc import Callable
from unittest import mock

import anndata
import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import stats
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csgraph, csr_matrix
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F

import maxtoki_toolkit as mt
from benchmarks import report
from maxtoki_toolkit.models.engine import run, tokens_at_once
from maxtoki_toolkit.models.feature_edits import random_directions_of, scale_features
from maxtoki_toolkit.models.feature_network import feature_edges
from maxtoki_toolkit.models.features import mean_features, pool_features
from maxtoki_toolkit.models.hooks import Site, edited, states_at
from maxtoki_toolkit.models.prompts import write_prompts
from maxtoki_toolkit.models.readout import logits_readout
from maxtoki_toolkit.models.sae_controls import gene_mask, moments, principal_directions
from maxtoki_toolkit.models.sequences import Sequences
from maxtoki_toolkit.pp.sample_prompts import read_prompts
from maxtoki_toolkit.results.store import write_result
from maxtoki_toolkit.stats.associations import unit_aurocs, unit_correlations
from maxtoki_toolkit.stats.drivers import pagerank_drivers, total_effects
from maxtoki_toolkit.tl._cells import get_sequences
from maxtoki_toolkit.tl._embedding_baselines import untrained_twin
from maxtoki_toolkit.tl.feature_effects import N_NULL
from maxtoki_toolkit.tl.feature_summary import gene_scores
from maxtoki_toolkit.train import _sparse_module
from maxtoki_toolkit.train._sparse_module import SparseModule

KINDS = ("topk", "batchtopk", "matryoshka")
PARTS = ("toy", "drivers", "cells", "longer", "speed", "network", "families", "branch", "programmes")
BLOOD = "pbmc_facs_3874.h5ad"
SPARSIFY = "eai-sparsify==1.3.3"
NEEDED = ("einops", "natsort", "simple-parsing", "docstring-parser")  # by its SparseCoder, beside torch


def spread(name: str, values) -> dict:
    """A mean with its 95% interval (t)."""
    values = np.asarray(values, float)
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    mean = values.mean()
    return {
        key: round(float(value), 4)
        for key, value in ((name, mean), (f"{name}_low", mean - half), (f"{name}_high", mean + half))
    }


def nearest(directions: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Cosine of each direction with the one most like it among those found; all have length 1."""
    return (directions @ found.T).max(axis=1)


def unit(directions: np.ndarray) -> np.ndarray:
    """The same, of length 1."""
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)


# Toy superposition.

SIZE, N_TRUE, N_ACTIVE, WIDTH, N_GENES, N_CELLS, LENGTH = 32, 64, 3, 96, 4000, 400, 60
TOY = {"max_steps": 800, "batch_size": 16, "read": 1.0, "learning_rate": 0.01, "dead_after": 20_000}


def toy_model(rng: np.random.Generator) -> tuple[mt.models.MaxTokiModel, np.ndarray, np.ndarray]:
    """A model whose state at a gene is a sum of few directions; the directions; the states of all genes."""
    directions = unit(rng.normal(size=(N_TRUE, SIZE)))
    has = np.zeros((N_GENES, N_TRUE))
    for row in has:
        row[rng.choice(N_TRUE, N_ACTIVE, replace=False)] = rng.uniform(1, 2, N_ACTIVE)
    genes = [f"ENSG{i:011d}" for i in range(N_GENES)]
    tokens = ["<pad>", "<mask>", "<bos>", "<eos>", *genes]
    vocab = mt.models.Vocabulary({token: i for i, token in enumerate(tokens)}, dict.fromkeys(genes, 1.0))
    shape = {"hidden_size": SIZE, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = mt.models.build_model({**shape, "max_position_embeddings": 64}, vocab)
    with torch.no_grad():
        for block in model.hf.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        model.hf.model.embed_tokens.weight[4:] = torch.from_numpy(has @ directions).float()
    return model, directions, has @ directions


def toy_cells(model: mt.models.MaxTokiModel, rng: np.random.Generator) -> AnnData:
    """Cells of genes drawn at random."""
    counts = np.zeros((N_CELLS, N_GENES), np.float32)
    for cell in counts:
        cell[rng.choice(N_GENES, LENGTH, replace=False)] = rng.permutation(LENGTH) + 1
    adata = AnnData(csr_matrix(counts))
    adata.var_names = model.vocab.genes
    mt.pp.rank_value_encode(adata, model)
    return adata


def toy(n_seeds: int) -> None:
    """Planted directions, found again or not."""
    from sklearn.decomposition import PCA, FastICA

    found: dict[str, list[np.ndarray]] = {}
    for seed in range(n_seeds):
        rng = np.random.default_rng(seed)
        model, directions, states = toy_model(rng)
        cells = toy_cells(model, rng)
        for kind in KINDS:
            recipe = mt.train.SparseRecipe.of(
                **TOY, kind=kind, seed=seed, eval_every=TOY["max_steps"], save_every=TOY["max_steps"]
            )
            with tempfile.TemporaryDirectory() as folder:
                sae = mt.train.sae(cells, model, folder, block=0, width=WIDTH, k=N_ACTIVE, recipe=recipe)
            found.setdefault(kind, []).append(nearest(directions, sae.directions.numpy()))
        components = PCA(SIZE).fit(states).components_
        sources = unit(FastICA(SIZE, max_iter=1000, tol=1e-3, random_state=seed).fit(states).mixing_.T)
        for name, both in (("PCA", components), ("ICA", sources)):
            found.setdefault(name, []).append(nearest(directions, np.concatenate([both, -both])))
        found.setdefault("random", []).append(nearest(directions, unit(rng.normal(size=(WIDTH, SIZE)))))
    rows = [
        {
            "dictionary": name,
            "seeds": len(parts),
            **spread("cosine", [part.mean() for part in parts]),
            "least": round(float(min(part.mean() for part in parts)), 4),
            "found": round(float(np.mean([(part > 0.9).mean() for part in parts])), 4),
        }
        for name, parts in found.items()
    ]
    shape = {"size": SIZE, "n_true": N_TRUE, "n_active": N_ACTIVE, "width": WIDTH, "n_genes": N_GENES}
    report.add("sae", rows, case="toy", device="cpu", **shape, recipe=TOY)


# Drivers.

N_NODES, DENSITY = 40, 0.1
N_SOURCES_LAYERED, N_LAYERED = 100, 40  # sources and as many targets, networks


def circuit(rng: np.random.Generator) -> np.ndarray:
    """A linear circuit with cycles, whose effects die away."""
    while True:
        weight = rng.normal(size=(N_NODES, N_NODES)) * (rng.random((N_NODES, N_NODES)) < DENSITY)
        np.fill_diagonal(weight, 0)
        radius = np.abs(np.linalg.eigvals(weight)).max()
        n_parts, part = csgraph.connected_components(csr_matrix(weight != 0), connection="strong")
        if np.bincount(part).max() > 1 and radius > 0.1:
            return weight * rng.uniform(0.3, 0.9) / radius


def layered(rng: np.random.Generator, strong: int) -> AnnData:
    """A network of two layers as `mt.tl.feature_network` writes it; some sources have stronger edges than chance."""
    n = m = N_SOURCES_LAYERED

    def drawn(direction: int, strong: int = 0) -> pd.DataFrame:
        weight = rng.normal(size=(n, m)) * (rng.random((n, m)) < DENSITY)
        weight[:strong] *= 3
        source, target = weight.nonzero()
        table = pd.DataFrame({"source": source, "target": target, "effect": weight[source, target]})
        return table.assign(direction=direction)

    tables = {"edges": drawn(0, strong), "null_edges": pd.concat([drawn(i) for i in range(N_NULL)])}
    sources = pd.DataFrame({"feature": np.arange(n), "activation": 1.0})
    for name, edges, times in (("strength", "edges", 1), ("null_strength", "null_edges", N_NULL)):
        size = np.abs(tables[edges]["effect"])
        sources[name] = np.bincount(tables[edges]["source"], size, n) / times
    sources["n_edges"] = np.bincount(tables["edges"]["source"], minlength=n)
    adata = AnnData(np.zeros((2, 1), np.float32))
    write_result(
        adata,
        "feature_network",
        {"n_null": N_NULL},
        **tables,
        sources=sources,
        targets=pd.DataFrame({"feature": np.arange(m)}),
    )
    return adata


def drivers(n_circuits: int) -> None:
    """Scores against the truth of known circuits, and what is called where there is nothing."""
    rng = np.random.default_rng(0)
    found: dict[str, list[float]] = {}
    for _ in range(n_circuits):
        weight = circuit(rng)
        size, truth = np.abs(weight), total_effects(weight)
        scores = {
            "PageRank": pagerank_drivers(size),
            "strength": size.sum(axis=1),
            "edges": (size > 0).sum(axis=1),
            "random": rng.random(len(size)),
        }
        for name, score in scores.items():
            found.setdefault(name, []).append(stats.spearmanr(score, truth).statistic)
    rows = [{"score": name, **spread("rho", values)} for name, values in found.items()]
    for name in ("strength", "edges"):
        lead = np.subtract(found["PageRank"], found[name])
        row = {"score": f"PageRank less {name}", **spread("rho", lead)}
        rows.append(row | {"share_better": round(float((lead > 0).mean()), 4)})
    nulls = []
    for strong in (0, 10, 30):
        tables = []
        for _ in range(N_LAYERED):
            adata = layered(rng, strong)
            mt.tl.driver_features(adata)
            table = mt.get.table(adata, "driver_features")
            tables.append(table.assign(planted=table["feature"] < strong))
        others = [table[~table["planted"]] for table in tables]
        row = {
            "planted": strong,
            "networks": N_LAYERED,
            **spread("p_below", [(table["p_value"] < 0.05).mean() for table in others]),
            "networks_with_a_call": float(np.mean([(table["q_value"] < 0.05).any() for table in others])),
            "r_strength": float(
                np.mean([table["pagerank"].corr(table["strength"], method="spearman") for table in tables])
            ),
        }
        if strong:
            planted = [table[table["planted"]] for table in tables]
            for name, column in (("planted_p_below", "p_value"), ("planted_called", "q_value")):
                row[name] = float(np.mean([(table[column] < 0.05).mean() for table in planted]))
        nulls.append({key: round(value, 4) for key, value in row.items()})
    facts = {"n_circuits": n_circuits, "n_nodes": N_NODES, "density": DENSITY}
    report.add("sae", rows, case="drivers", device="cpu", **facts, layered=nulls)


# Real cells.

CELLS = {"max_steps": 300, "batch_size": 8, "read": 1.0}
K, N_FEATURES, N_SCORED = 16, 256, 150


def heart(model: mt.models.MaxTokiModel, _) -> AnnData:
    """Nuclei that ship, of one donor."""
    adata = mt.datasets.load("heart_nuclei")
    mt.pp.rank_value_encode(adata, model)
    return adata


def blood(model: mt.models.MaxTokiModel, folder: Path | None) -> AnnData | None:
    """Sorted blood that no demo model is trained on, if it is there."""
    from benchmarks.build_demo_model import is_held_out

    if folder is None or not (folder / BLOOD).is_file():
        print(f"Without {BLOOD}, which does not ship: give its folder with --folder.")
        return None
    adata = anndata.read_h5ad(folder / BLOOD)
    adata = adata[is_held_out(adata.obs_names)].copy()
    rows = np.random.default_rng(0).permutation(adata.n_obs)[:800]
    adata = adata[np.sort(rows)].copy()
    mt.pp.map_genes(adata, model)
    mt.pp.rank_value_encode(adata, model)
    return adata


def trained(
    cells: AnnData, model: mt.models.MaxTokiModel, seed: int, **settings
) -> mt.models.SparseAutoencoder:
    """A small autoencoder of some cells."""
    recipe = mt.train.SparseRecipe.of(
        **(CELLS | settings.pop("recipe", {})), seed=seed, eval_every=10_000, save_every=10_000
    )
    with tempfile.TemporaryDirectory() as folder:
        return mt.train.sae(cells, model, folder, recipe=recipe, k=K, **({"width": N_FEATURES} | settings))


def again(directions: np.ndarray, others: np.ndarray) -> dict:
    """How alike two dictionaries are."""
    cosine = nearest(directions, others)
    return {"cosine": round(float(cosine.mean()), 4), "partner": round(float((cosine > 0.7).mean()), 4)}


def compare(name: str, adata: AnnData, model: mt.models.MaxTokiModel) -> list[dict]:
    """Autoencoders of the same and of other cells, of the same states and of those of random weights."""
    order = np.random.default_rng(0).permutation(adata.n_obs)
    half, other = (adata[np.sort(part)].copy() for part in np.array_split(order, 2))
    twin = untrained_twin(model, 0)
    rows = []
    for of, network in (("demo model", model), ("same shape, untrained", twin)):
        # Each has its own seed: those of the same seed begin with the same directions.
        first, second = (trained(half, network, seed) for seed in (0, 1))
        alike = {"the same cells, another seed": second}
        if network is model:
            alike["other cells, another seed"] = trained(other, network, 2)
        width, size = first.W_dec.shape
        for what, sae in alike.items():
            rows.append({"compared with": what, **again(first.directions.numpy(), sae.directions.numpy())})
        rng = np.random.default_rng(0)
        covariance = moments(network, get_sequences(half, network), first.site).covariance.numpy()
        for what, root in {
            "random directions": np.eye(size),
            "random directions, spread as the states are": np.linalg.cholesky(
                covariance + 1e-9 * np.trace(covariance) * np.eye(size)
            ),
        }.items():
            drawn = [unit(rng.normal(size=(width, size)) @ root.T) for _ in range(2)]
            rows.append({"compared with": f"{what}, with others", **again(*drawn)})
        mt.tl.evaluate_sae(other, network, first, n_cells=N_SCORED)
        measures = mt.get.table(other, "evaluate_sae")
        for measure in ("variance explained", "loss recovered", "dead features", "active features"):
            for _, one in measures[measures["measure"] == measure].iterrows():
                row = {"measure": measure, "dictionary": one["dictionary"]}
                values = {"value": one["value"], "value_low": one["low"], "value_high": one["high"]}
                rows.append(
                    row | {key: round(float(value), 4) for key, value in values.items() if pd.notna(value)}
                )
        params = other.uns["evaluate_sae"]["params"]
        rows.append(
            {"measure": "loss with nothing changed, nats a gene", "value": round(params["clean_loss"], 4)}
        )
        rows.append({"measure": "loss with the mean state", "value": round(params["mean_state_loss"], 4)})
        for row in rows:
            row.setdefault("of", of)
    sizes = {"n_trained_on": half.n_obs, "n_scored": min(other.n_obs, N_SCORED)}
    return [{"cells": name, **sizes, **row} for row in rows]


SETS = {"heart nuclei": heart, "sorted blood": blood}


def cells(names: list[str], folder: Path | None) -> None:
    """Heart nuclei and sorted blood."""
    model = mt.load_model("demo", device="cpu")
    for name in names:
        adata = SETS[name](model, folder)
        if adata is not None:
            rows = compare(name, adata, model)
            facts = {"model_sha256": model.sha256, "recipe": CELLS, "k": K, "block": 2, "width": N_FEATURES}
            report.add("sae", rows, case=name, device="cpu", **facts)


LONGER = 1000, 4000  # steps


def longer(names: list[str], folder: Path | None) -> None:
    """Are more features found again after a longer training?"""
    model = mt.load_model("demo", device="cpu")
    for name in names:
        adata = SETS[name](model, folder)
        if adata is None:
            continue
        order = np.random.default_rng(0).permutation(adata.n_obs)
        half, other = (adata[np.sort(part)].copy() for part in np.array_split(order, 2))
        beside = {"the same cells, another seed": (half, 1), "other cells, another seed": (other, 2)}
        rows = []
        for steps in LONGER:
            first = trained(half, model, 0, recipe={"max_steps": steps})
            for what, (part, seed) in beside.items():
                found = trained(part, model, seed, recipe={"max_steps": steps})
                row = {"cells": f"{name}, {steps:,} steps", "of": "demo model", "compared with": what}
                rows.append(row | again(first.directions.numpy(), found.directions.numpy()))
        facts = {"model_sha256": model.sha256, "recipe": CELLS, "steps": LONGER, "k": K, "width": N_FEATURES}
        report.add("sae", rows, case=f"{name}, longer", device="cpu", block=2, **facts)


# Speed.

N_STATES = 2048
WIDTHS = (512, 4096)


def seconds(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each way, which take turns: processor time of one thread, which other work does not add to."""
    torch.set_num_threads(1)
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for call in ways.values():
        call()
    for _ in range(repeats):
        for name, call in ways.items():
            start = time.process_time()
            call()
            taken[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in taken.items()}


def sparsify_from_wheel(folder: Path) -> tuple[types.ModuleType, types.ModuleType]:
    """Modules `config` and `sparse_coder` of sparsify, without those that train on text."""
    pip = [sys.executable, "-m", "pip"]
    command = [*pip, "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(folder), SPARSIFY]
    subprocess.run(command, check=True)
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    subprocess.run(
        [*pip, "install", "-q", "--no-deps", "--target", str(folder / "needed"), *NEEDED], check=True
    )
    sys.path.append(str(folder / "needed"))
    package = types.ModuleType("sparsify")
    package.__path__ = [str(folder / "sparsify")]
    sys.modules["sparsify"] = package
    return tuple(importlib.import_module(f"sparsify.{name}") for name in ("config", "sparse_coder"))


def our_step(states: torch.Tensor, width: int, model: mt.models.MaxTokiModel) -> Callable[[], None]:
    """A step of our training on states that are there."""
    size = states.shape[1]
    sae = mt.models.SparseAutoencoder(size, width, K)
    module = SparseModule(sae, model, Site(0, "output"), scale=1.0, revive=1 / 32, dead_after=10**9).train()
    optimizer = torch.optim.AdamW(sae.parameters(), lr=1e-3, weight_decay=0.0)
    tokens, chosen = (
        torch.zeros(1, len(states), dtype=torch.long),
        torch.ones(1, len(states), dtype=torch.bool),
    )

    def step() -> None:
        with mock.patch.object(_sparse_module, "states_at", return_value=states[None]):
            module(tokens, chosen)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def sparsify_step(states: torch.Tensor, width: int, sparsify: tuple) -> Callable[[], None]:
    """The same of sparsify's, with what its trainer does to the directions before and after."""
    config, sparse_coder = sparsify
    coder = sparse_coder.SparseCoder(states.shape[1], config.SparseCoderConfig(num_latents=width, k=K))
    optimizer = torch.optim.AdamW(coder.parameters(), lr=1e-3, weight_decay=0.0)

    def step() -> None:
        coder.set_decoder_norm_to_unit_norm()
        coder(states).fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()

    return step


def decodes(width: int, size: int) -> dict[str, Callable[[], None]]:
    """Two ways from features to states, forwards and backwards: all features, or those that are active alone."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(width, size, generator=generator).requires_grad_()
    values = torch.rand(N_STATES, K, generator=generator).requires_grad_()
    index = torch.rand(N_STATES, width, generator=generator).topk(K).indices

    def dense() -> None:
        features = torch.zeros(N_STATES, width).scatter(-1, index, values)
        (features @ directions).pow(2).sum().backward()

    def gathered() -> None:
        made = F.embedding_bag(index, directions, per_sample_weights=values, mode="sum")
        made.pow(2).sum().backward()

    return {"all": dense, "active alone": gathered}


def speed(repeats: int) -> None:
    """Reading, training and decoding."""
    model = mt.load_model("demo", device="cpu")
    adata = heart(model, None)
    sequences = get_sequences(adata, model).take(np.arange(100))
    site, size = Site(2, "output"), model.hf.config.hidden_size
    is_gene = gene_mask(model)
    n_genes = int(is_gene[torch.from_numpy(sequences.tokens.astype(np.int64))].sum())
    parts = run(
        model, sequences, lambda batch: states_at(model, batch.inputs, site)[is_gene[batch.tokens]].float()
    )
    states = torch.cat([part for _, part in parts])[:N_STATES].clone()
    states = (states - states.mean(dim=0)) / states.std()
    card = {"block": 2, "site": "output", "model": model.name, "model_sha256": model.identity}
    found = []
    with tempfile.TemporaryDirectory() as folder:
        sparsify = sparsify_from_wheel(Path(folder))
        for width in WIDTHS:
            torch.manual_seed(0)
            sae = (
                mt.models.SparseAutoencoder(size, width, K, card=card)
                .eval()
                .requires_grad_(requires_grad=False)
            )
            read = seconds(
                {"features": lambda sae=sae: pool_features(model, [sae], sequences)}, min(repeats, 5)
            )
            steps = seconds(
                {
                    "ours": our_step(states, width, model),
                    "sparsify": sparsify_step(states, width, sparsify),
                },
                repeats,
            )
            ways = seconds(decodes(width, size), repeats)
            found.append(
                {
                    "width": width,
                    "k": K,
                    "states_read_a_second": round(n_genes / read["features"]),
                    "activations_a_second": round(K * n_genes / read["features"]),
                    "trained_a_second": round(N_STATES / steps["ours"]),
                    "sparsify_trained_a_second": round(N_STATES / steps["sparsify"]),
                    "times_sparsify": round(steps["sparsify"] / steps["ours"], 3),
                    "decode_dense_ms": round(1000 * ways["all"], 2),
                    "decode_gathered_ms": round(1000 * ways["active alone"], 2),
                }
            )
    report.add("sae", found, case="speed", device="cpu", size=size, states_a_step=N_STATES, sparsify=SPARSIFY)


# Network.

N_SOURCES, N_NUCLEI, STEP = 1024, 5, 0.1


def full_passes(
    model, sae, later, tokens: torch.Tensor, active: torch.Tensor, there: np.ndarray, n_at_once: int
) -> np.ndarray:
    """The same edges the simple way: the whole model twice for each feature, some features at once."""
    genes = gene_mask(model)[tokens[0]].float()
    slopes = np.zeros((len(there), later.width))
    for start in range(0, len(there), n_at_once):
        part = torch.from_numpy(there[start : start + n_at_once])
        # Each copy has its own feature: up in the first half, down in the second.
        change = STEP * active[0, :, part].T[..., None] * sae.directions[part][:, None]
        change, reached = torch.cat([change, -change]), []

        def scale(states: torch.Tensor, change=change) -> torch.Tensor:
            return states + change

        def keep(states: torch.Tensor, reached=reached) -> torch.Tensor:
            reached.append(states)
            return states

        with torch.inference_mode(), edited(model, [(sae.site, scale), (later.site, keep)]):
            model.hf.model(input_ids=tokens.repeat(len(change), 1), use_cache=False)
            features = later.encode(reached[0].float())
            mean = torch.einsum("slw,l->sw", features, genes / genes.sum())
        up, down = mean.split(len(part))
        slopes[start : start + n_at_once] = ((up - down) / (2 * STEP)).numpy()
    return slopes


def agreement(large: np.ndarray, small: np.ndarray) -> dict:
    """How alike slopes of two steps are, on 1,000 edges that are not 0 in both."""
    edges = np.argwhere((large != 0) | (small != 0))
    drawn = edges[np.random.default_rng(0).permutation(len(edges))[:1000]]
    one, other = (values[drawn[:, 0], drawn[:, 1]] for values in (large, small))
    found = {
        "r": np.corrcoef(one, other)[0, 1],
        "rho": stats.spearmanr(one, other).statistic,
        "same_sign": (np.sign(one) == np.sign(other)).mean(),
        "within_tenth": (np.abs(one - other) <= 0.1 * np.abs(one)).mean(),
    }
    return {"edges": len(edges), **{name: round(float(value), 4) for name, value in found.items()}}


def network() -> None:
    """From features of the first block to those of the third, in one nucleus."""
    model = mt.load_model("demo", device="cpu")
    adata = heart(model, None)
    sae = trained(adata, model, 0, block=0, width=N_SOURCES, recipe={"max_steps": 150})
    later = mt.load_sae("demo")
    every = get_sequences(adata, model)
    one, some = every.take(np.arange(1)), every.take(np.arange(N_NUCLEI))
    sources, length = np.arange(N_SOURCES), int(one.lengths[0])
    tokens = torch.from_numpy(one.tokens.astype(np.int64))[None]
    with torch.inference_mode():
        states = states_at(model, {"input_ids": tokens}, sae.site)
        active = sae.encode(states.float()) * gene_mask(model)[tokens][..., None]
    there = np.flatnonzero((active > 0).any(dim=(0, 1)).numpy())
    n_at_once = max(tokens_at_once(model, None) // (2 * length), 1)
    answers: dict[str, np.ndarray] = {}

    def ours() -> None:
        answers["ours"] = feature_edges(model, sae, later, one, sources[:, None]).effect

    def simple() -> None:
        answers["simple"] = full_passes(model, sae, later, tokens, active, there, n_at_once)

    taken = seconds({"ours": ours, "simple": simple}, 3)
    row = {
        "sources": N_SOURCES,
        "active_sources": len(there),
        "targets": later.width,
        "n_genes": length - 2,
        "seconds": round(taken["ours"], 2),
        "seconds_a_thousand_active": round(1000 * taken["ours"] / len(there), 2),
        "simple_seconds": round(taken["simple"], 2),
        "times_simple": round(taken["simple"] / taken["ours"], 2),
        "largest_difference": float(np.abs(answers["ours"][there] - answers["simple"]).max()),
        "largest_effect": float(np.abs(answers["ours"]).max()),
    }
    rows = [row]
    for cells in (one, some):
        large, small = (
            feature_edges(model, sae, later, cells, sources[:, None], step=step).effect
            for step in (STEP, STEP / 10)
        )
        rows.append({"nuclei": len(cells), **agreement(large, small)})
    report.add("sae", rows, case="network", device="cpu", step=STEP, small_step=STEP / 10)


def families() -> None:
    """Families of the first block's features, as one source each, beside all their features one by one."""
    model, sae, later = mt.load_model("demo", device="cpu"), mt.load_sae("demo-early"), mt.load_sae("demo")
    adata = heart(model, None)[:100].copy()
    mt.tl.feature_families(adata, model, sae, n_bootstrap=2)
    table = mt.get.table(adata, "feature_families", "features").query("family >= 0")
    groups = [part.to_numpy() for _, part in table.groupby("family")["feature"]]
    alone, cells = np.concatenate(groups), get_sequences(adata, model).take(np.arange(N_NUCLEI))
    answers: dict[str, np.ndarray] = {}

    def one_by_one() -> None:
        answers["alone"] = feature_edges(model, sae, later, cells, alone[:, None]).effect

    def together() -> None:
        answers["together"] = feature_edges(model, sae, later, cells, groups).effect

    taken = seconds({"alone": one_by_one, "together": together}, 3)
    ends = np.cumsum([len(part) for part in groups])[:-1]
    summed = np.array([part.sum(axis=0) for part in np.split(answers["alone"], ends)]).ravel()
    found, there = answers["together"].ravel(), (answers["together"].ravel() != 0) | (summed != 0)
    row = {
        "families": len(groups),
        "features": len(alone),
        "nuclei": N_NUCLEI,
        "seconds": round(taken["together"], 2),
        "seconds_one_by_one": round(taken["alone"], 2),
        "times": round(taken["alone"] / taken["together"], 1),
        "r_with_sum": round(float(np.corrcoef(found[there], summed[there])[0, 1]), 4),
    }
    report.add("sae", [row], case="families", device="cpu")


# A course with a branch.

COURSE = {"n_clones": 600, "n_donors": 20}
TEST = {"n_clones": 100, "n_donors": 20}
COURSE_MODEL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
COURSE_MODEL |= {"max_position_embeddings": 100, "initializer_range": 0.05}
TEMPORAL = {
    "max_steps": 700,
    "batch_size": 16,
    "learning_rate": 3e-3,
    "warmup": 0.05,
    "hold": 0.5,
    "floor": 0.05,
}
TEMPORAL |= {"timelapse": 0.0, "curriculum": 0.0, "clock": 0.0, "context_size": (1, 1), "max_length": 512}
TEMPORAL |= {"forward": True, "zero_lapse": "never", "balance": 0.0, "eval_every": 10_000}
COURSE_SAE = {"max_steps": 200, "batch_size": 16}
COURSE_WIDTH = 128
N_DRIVERS, UP, N_PROMPTS = 20, 3.0, 200
BEFORE, LAST = 3, 5  # first day after the branch, last day
RANDOM = "random directions, as long as the top drivers"


def course_cells(model=None, **settings) -> tuple[AnnData, object]:
    """Encoded cells of a course, and the vocabulary."""
    adata = mt.datasets.branching_course(**settings)
    mt.pp.map_genes(adata, model)
    vocab = mt.models.Vocabulary.from_anndata(adata) if model is None else model.vocab
    mt.pp.rank_value_encode(adata, vocab)
    return adata, vocab


def draw_course(adata: AnnData, n_prompts: int, seed: int) -> None:
    """Prompts: a cell before the branch, and one of its clone on the last day."""
    day = adata.obs["day"].to_numpy()
    mt.pp.sample_prompts(
        adata,
        time_key="day",
        groupby="clone",
        task="cell",
        n_prompts=n_prompts,
        context_size=1,
        contexts=day < BEFORE,
        queries=day == LAST,
        donor_key="donor_id",
        sampling=mt.pp.PromptSampling(forward=True, zero_lapse="never"),
        rng=seed,
    )


def branch_prompts(adata: AnnData, model) -> tuple[pd.DataFrame, Sequences, np.ndarray, Callable]:
    """Prompts up to the first gene of the cell that is asked for, tokens of the context, and the log odds that this gene is one
    that branch A turns on rather than one that B does."""
    table = mt.get.table(adata, "prompts")
    prompts = read_prompts(table, adata, adata, task="cell")
    written = write_prompts(prompts, get_sequences(adata, model), model.vocab, max_length=model.max_length)
    sequences = written.sequences.take(np.arange(len(table)), written.eoq + 2)
    places = (sequences.positions < sequences.lengths[sequences.owner] - 4).astype(np.int32)
    genes = adata.uns["truth"]["programmes"].query("weight > 0")
    index = {
        branch: torch.tensor([model.vocab[gene] for gene in part["ensembl_id"] if gene in model.vocab.tokens])
        for branch, part in genes.groupby("role")
    }

    def odds(logits: torch.Tensor) -> torch.Tensor:
        return logits[:, index["A"]].logsumexp(dim=1) - logits[:, index["B"]].logsumexp(dim=1)

    return table, sequences, places, logits_readout(model, odds)


def matched_features(drivers: pd.DataFrame, norm: pd.Series, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The n top drivers, and as many of the others whose length is nearest, each once."""
    top, rest = np.split(drivers["feature"].to_numpy(), [n])
    apart = np.abs(np.log(norm[top].to_numpy())[:, None] - np.log(norm[rest].to_numpy())[None])
    row, column = linear_sum_assignment(apart)
    return top[row], rest[column]


def elsewhere(sae: mt.models.SparseAutoencoder, seed: int) -> mt.models.SparseAutoencoder:
    """The same features, each of which adds as much in a random direction."""
    other = copy.deepcopy(sae)
    with torch.no_grad():
        other.W_dec.copy_(random_directions_of(np.arange(sae.width), 1, sae.W_dec.shape[1], seed)[:, 0])
    return other


def shares_moved(model, sae, sequences, read, sign: pd.Series, middle: float) -> np.ndarray:
    """1 for prompts of branch A if all features are turned towards it, less the same if towards B."""
    found = np.zeros((2, len(sequences)))
    for i, towards in enumerate((1, -1)):
        factors = {int(feature): UP if way == towards else 0.0 for feature, way in sign.items()}
        with mt.models.edited_features(model, sae, factors):
            parts = run(
                model,
                sequences,
                lambda batch: read(model.hf.model(**batch.inputs).last_hidden_state, batch).double(),
            )
            for rows, part in parts:
                found[i, rows] = part.numpy() > middle
    return found[0] - found[1]


def branch_case(seed: int, *, null: bool) -> list[dict]:
    """A model of one course, features of its first block, and what they do to the branch of other clones."""
    course, vocab = course_cells(**COURSE, seed=1000 + seed, null=null)
    model = mt.models.build_model(COURSE_MODEL, vocab)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        recipe = mt.train.TemporalRecipe.of(**TEMPORAL, seed=seed)
        columns = {"time_key": "day", "time_unit": "days", "groupby": "clone", "donor_key": "donor_id"}
        model = mt.train.temporal(course, model, folder, recipe=recipe, **columns)
    draw_course(course, 3000, seed)
    sae, later = (
        trained(course, model, seed, block=block, width=COURSE_WIDTH, key="prompts", recipe=COURSE_SAE)
        for block in (0, 1)
    )
    test, _ = course_cells(model, **TEST, seed=2000 + seed, null=null)
    draw_course(test, N_PROMPTS, seed)
    table, sequences, places, read = branch_prompts(test, model)
    early = test[test.obs["day"] < BEFORE].copy()
    mt.tl.feature_network(
        early,
        model,
        sae,
        later=later,
        n_features=COURSE_WIDTH,
        n_cells=40,
        donor_key="donor_id",
        rng=seed,
    )
    mt.tl.driver_features(early)
    sources = mt.get.table(early, "feature_network", "sources").set_index("feature")
    sources = sources[sources["norm"] > 0]
    drivers = mt.get.table(early, "driver_features").query("feature in @sources.index")
    top, matched = matched_features(drivers, sources["norm"], N_DRIVERS)

    clone = test.obs["clone"].astype(str)
    truth = test.uns["truth"]["clones"].set_index("clone")
    activity = mean_features(model, sae, get_sequences(early, model))[:, sources.index]
    rho = {
        name: pd.Series(
            np.nan_to_num(
                stats.spearmanr(activity, truth.loc[clone[early.obs_names], name]).statistic[-1, :-1]
            ),
            sources.index,
        ).abs()
        for name in ("driver", "bystander")
    }
    sets = {"top drivers": top, "matched to them": matched}
    sets |= {
        f"most like the {name} programme": rho[name].nlargest(N_DRIVERS).index.to_numpy() for name in rho
    }
    sets |= {RANDOM: top}

    donors = table["donor"].to_numpy()
    learn = np.isin(
        donors, np.unique(donors)[::2]
    )  # which way each feature goes; how far is read in the others
    is_a = test.obs["branch"].astype(str)[table["query"]].to_numpy() == "A"
    rows, effects, shares = [], {}, {}
    about = {"course": "driver decides nothing" if null else "driver decides", "seed": seed}
    for name, chosen in sets.items():
        used = elsewhere(sae, seed) if name == RANDOM else sae
        found = scale_features(model, used, sequences, read, chosen, [0.0, UP], places=places)
        middle = np.median(found.intact)
        change = pd.DataFrame(found.values[..., 1] - found.values[..., 0], columns=chosen)
        sign = np.sign(change[learn].mean())
        effects[name] = (sign * change[~learn].groupby(donors[~learn]).mean()).mean(axis=1)
        moved = shares_moved(model, used, sequences, read, sign, middle)[~learn]
        shares[name] = pd.Series(moved).groupby(donors[~learn]).mean()
        rows.append(
            about
            | {"set": name, **spread("effect", effects[name]), **spread("moved", shares[name])}
            | {"norm": round(float(sources.loc[chosen, "norm"].mean()), 4)}
            | {"rho_driver": round(float(rho["driver"][chosen].mean()), 4)}
        )
    for other in ("matched to them", RANDOM):
        lead = {
            key: part["top drivers"] - part[other] for key, part in (("effect", effects), ("moved", shares))
        }
        row = about | {"set": f"top drivers less {other}"}
        for key, values in lead.items():
            row |= spread(key, values) | {f"{key}_p": float(stats.ttest_1samp(values, 0).pvalue)}
        rows.append(row)
    driver = truth.loc[clone[table["context_0"]], "driver"]
    facts = {
        "auroc": roc_auc_score(is_a, found.intact),
        "r_driver": np.corrcoef(found.intact, driver)[0, 1],
        "sd_log_odds": found.intact.std(),
        "r_strength": mt.get.table(early, "driver_features").attrs["r_strength"],
    }
    facts = {key: round(float(value), 4) for key, value in facts.items()}
    return [about | {"set": "model", **facts, "donors_read": len(np.unique(donors[~learn]))}, *rows]


def branch(n_seeds: int) -> None:
    """Courses in which the driver decides, and one in which it does not; each is written when it is done."""
    facts = {"train": COURSE, "test": TEST, "n_prompts": N_PROMPTS, "doses": [0, UP], "sae": COURSE_SAE}
    rows = []
    for seed, null in [(0, False), (0, True), *((seed, False) for seed in range(1, n_seeds))]:
        rows += branch_case(seed, null=null)
        report.add(
            "sae", rows, case="branch", device="cpu", width=COURSE_WIDTH, k=K, model=COURSE_MODEL, **facts
        )


# Planted programmes.

ATLAS = {"n_cells": 1500, "n_donors": 10}
TWIN_STEPS = 150


def encoded_atlas(model, **settings) -> AnnData:
    """Simulated cells, encoded."""
    adata = mt.datasets.aging_atlas(**settings)
    mt.pp.map_genes(adata, model)
    mt.pp.rank_value_encode(adata, model)
    return adata


def as_found(first: np.ndarray, second: np.ndarray, chance: float) -> tuple[int, float]:
    """Which score is furthest from chance in the first half of the donors, and what it is in the second, by the sign of the first."""
    best = int(np.nanargmax(np.abs(first - chance)))
    way = np.sign(first[best] - chance)
    return best, float(chance + way * (second[best] - chance))


def programmes() -> None:
    """What is planted in donors of their own, told by the best score of half of them in the other half."""
    model = mt.load_model("demo", device="cpu")
    twin = untrained_twin(model, 0)
    adata = encoded_atlas(model, **ATLAS, seed=77)
    sequences, sae = get_sequences(adata, model), mt.load_sae("demo")
    twin_sae = trained(
        encoded_atlas(model, n_cells=300, n_donors=10, seed=78),
        twin,
        0,
        width=sae.width,
        recipe={"max_steps": TWIN_STEPS},
    )
    pca = principal_directions(sae, moments(model, sequences.take(np.arange(0, len(sequences), 5)), sae.site))
    found = pool_features(model, [sae, pca], sequences, pool="mean")
    scores = {"features": found[0].cells, "PCA": found[1].cells}
    scores["untrained"] = pool_features(twin, [twin_sae], sequences, pool="mean")[0].cells
    scores["genes"], symbol = gene_scores(adata)

    donor = pd.factorize(adata.obs["donor_id"], sort=True)[0]
    kind, kinds = pd.factorize(adata.obs["cell_type"], sort=True)
    halves = [donor % 2 == i for i in range(2)]
    drivers, activity = adata.uns["truth"]["drivers"], adata.uns["truth"]["activity"]
    rows = []

    def aurocs(values, rows: np.ndarray) -> np.ndarray:
        one = np.zeros(rows.sum(), dtype=np.int64)
        return unit_aurocs(values[rows], kind[rows], len(kinds), one, donor[rows])[0]

    def correlations(values, rows: np.ndarray, time: np.ndarray) -> np.ndarray:
        one = np.zeros(rows.sum(), dtype=np.int64)
        return unit_correlations(values[rows], time[rows], one, donor[rows])[0, 0]

    for name, values in scores.items():
        values = csr_matrix(values)
        first, second = (aurocs(values, half) for half in halves)
        for i, label in enumerate(kinds):
            best, value = as_found(first[i], second[i], 0.5)
            rows.append(
                {"dictionary": name, "programme": label, "measure": "AUROC", "best": best, "value": value}
            )
        for (tf, label), table in drivers.groupby(["tf", "cell_type"]):
            there, time = kind == list(kinds).index(label), activity[tf].to_numpy()
            first, second = (correlations(values, half & there, time) for half in halves)
            best, value = as_found(first, second, 0.0)
            rows.append(
                {
                    "dictionary": name,
                    "programme": f"{tf}, {label}",
                    "measure": "rho",
                    "best": best,
                    "value": value,
                }
            )
            if name == "genes":
                weight = table.set_index("target")["weight"].reindex(symbol).fillna(0).to_numpy()
                known = {
                    "the factor's gene": values[:, symbol == tf],
                    "its targets, known": values @ weight[:, None],
                }
                for what, score in known.items():
                    score = csr_matrix(score - min(score.min(), 0))
                    value = float(correlations(score, halves[1] & there, time)[0])
                    rows.append(
                        {
                            "dictionary": what,
                            "programme": f"{tf}, {label}",
                            "measure": "rho",
                            "best": -1,
                            "value": value,
                        }
                    )
    table = pd.DataFrame(rows)
    together = [
        {"dictionary": name, "measure": measure, "programmes": len(part), **spread("value", part["value"])}
        | {"least": round(float(part["value"].min()), 4)}
        for (measure, name), part in table.groupby(["measure", "dictionary"], sort=False)
    ]
    each = [row | {"value": round(row["value"], 4)} for row in rows]
    report.add(
        "sae",
        together,
        case="programmes",
        device="cpu",
        **ATLAS,
        twin_steps=TWIN_STEPS,
        each=each,
        pool="mean",
    )


def main() -> None:
    """Run the parts that are named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="of cells")
    parser.add_argument("--folder", type=Path, help="where sorted blood is")
    parser.add_argument("--seeds", type=int, default=5, help="toy models; of a course, two at most")
    parser.add_argument("--circuits", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=15, help="of each timing")
    a = parser.parse_args()
    mt.settings.progress = False
    pd.set_option("display.width", 220, "display.max_columns", 40)
    calls = {
        "toy": lambda: toy(a.seeds),
        "drivers": lambda: drivers(a.circuits),
        "cells": lambda: cells(a.sets, a.folder),
        "longer": lambda: longer(a.sets, a.folder),
        "speed": lambda: speed(a.repeats),
        "network": network,
        "families": families,
        "branch": lambda: branch(min(a.seeds, 2)),
        "programmes": programmes,
    }
    for part in dict.fromkeys(a.parts):
        start = time.perf_counter()
        calls[part]()
        print(f"{part}: {time.perf_counter() - start:.0f} seconds", flush=True)


if __name__ == "__main__":
    main()
