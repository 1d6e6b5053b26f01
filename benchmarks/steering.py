"""Is a real response predicted by leading control cells towards perturbed ones, or by edits alone?

    python benchmarks/steering.py pbmc_ifnb_2000.h5ad
    python benchmarks/steering.py pbmc_ifnb_2000.h5ad --chains   # have they arrived, and what would it take?

Blood cells without and with interferon-beta (Kang et al., Nature Biotechnology 2018). The file does not ship: 1,000 control and 1,000 stimulated
cells, raw counts, symbols in `.var_names`, `obs["stim"]` "ctrl" or "stim". Half of each trains a small stage-1 model, gives the anchors, the edited
genes and the perturbation mean; the other half is the truth. Written to `results/steering.json`.

With `--chains`, some cells and many steps of several samplers: R-hat of the log-likelihood and of the distance, the larger of both, after
so many steps; written to `results/steering_chains.json`.
"""

from __future__ import annotations

import sys
from pathlib import Path

# This folder must not come first on the path: its tokenize.py would pass for Python's own.
sys.path[0] = str(Path(__file__).parents[1])

import argparse
import json
import tempfile
import time

import anndata
import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.metrics import roc_auc_score

import maxtoki_toolkit as mt
from benchmarks import report
from maxtoki_toolkit.stats.mcmc import rhat
from maxtoki_toolkit.tl._rank_features import rank_features

# Genes that any textbook names for interferon-beta; none was chosen from these cells.
KNOWN = (
    "ISG15 ISG20 IFI6 IFIT1 IFIT2 IFIT3 IFITM1 IFITM2 IFITM3 IFI35 IFI44 IFI44L IFI16 MX1 MX2 OAS1 OAS2 OAS3 OASL RSAD2 IRF7 STAT1 "
    "LY6E BST2 XAF1 EIF2AK2 HERC5 USP18 TNFSF10 CXCL10 CXCL11 CCL8 DDX58 IFIH1 PLSCR1 SAMD9 SAMD9L EPSTI1 TRIM22 NT5C3A"
).split()
N_GENES = 1500
N_HELD = 10
N_TOP = 50
CELL_LENGTH = 96
SHAPE = {
    "hidden_size": 160,
    "intermediate_size": 320,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CELL_LENGTH,
}
TRAINING = {"max_steps": 350, "batch_size": 16, "learning_rate": 2e-3, "warmup": 0.1, "gene_dropout": 0.1}
STEERING = {"n_cells": 24, "n_steps": 80, "n_chains": 2, "block_size": 16, "strength": 100.0, "n_anchors": 10}


LONG = {"n_cells": 4, "n_steps": 1600, "n_chains": 3, "n_anchors": 10}
SAMPLERS = (
    {"proposal": "block", "block_size": 16, "strength": 100.0},
    {"proposal": "suffix", "strength": 10.0},
    {"proposal": "block", "block_size": 4, "strength": 100.0},
    {"proposal": "block", "block_size": 16, "strength": 10.0},
)


def load(path: Path) -> AnnData:
    """The cells, with their halves."""
    if not path.is_file():
        raise SystemExit(
            f"Did not find {path}. This benchmark needs the cells of Kang et al. (2018) as the harmony package ships them; they do not ship "
            "with this project."
        )
    adata = anndata.read_h5ad(path)
    mt.pp.map_genes(adata)
    stim = adata.obs["stim"].astype(str).to_numpy()
    train = np.zeros(adata.n_obs, dtype=bool)
    rng = np.random.default_rng(0)
    for value in np.unique(stim):
        of = np.flatnonzero(stim == value)
        train[rng.permutation(of)[: len(of) // 2]] = True
    adata.obs["train"], adata.obs["anchor"] = train, train & (stim == "stim")
    adata.obs["steered"] = ~train & (stim == "ctrl")
    return adata


def vocabulary(adata: AnnData) -> mt.models.Vocabulary:
    """The genes that most training cells have, and the known ones that three of them have."""
    train = adata[adata.obs["train"]]
    whole = mt.models.Vocabulary.from_anndata(train)
    n_cells = np.asarray((train.X > 0).sum(axis=0)).ravel()
    most = adata.var["ensembl_id"].astype(str).to_numpy()[np.argsort(-n_cells, kind="stable")]
    known = adata.var["ensembl_id"].astype(str)[adata.var_names.isin(KNOWN)]
    genes = [gene for gene in most if gene in whole.medians][:N_GENES]
    genes = sorted({*genes, *(gene for gene in known if gene in whole.medians)})
    tokens = ["<pad>", "<mask>", "<bos>", "<eos>", *genes]
    return mt.models.Vocabulary(
        {token: i for i, token in enumerate(tokens)}, {g: whole.medians[g] for g in genes}
    )


def with_levels(adata: AnnData, model) -> AnnData:
    """Cells by the genes of the model, in `.X` the level of each: 1 for the highest rank, 0 for genes that are not read."""
    has = np.flatnonzero((adata.var["token_id"] >= 0) & ~adata.var["token_id"].duplicated())
    place = pd.Index(model.vocab.gene_ids).get_indexer(adata.var["token_id"].iloc[has])
    return AnnData(rank_features(adata, model)[:, place], obs=adata.obs, var=adata.var.iloc[has])


def predictions(adata: AnnData, levels: AnnData, model, held: list[str]) -> tuple[dict[str, AnnData], dict]:
    """Predicted levels of stimulated cells, and how the chains fared."""
    found, facts = {}, {}
    for name, genes in {f"{len(held)} genes held": held, "nothing held": None}.items():
        mt.tl.steer_cells(
            adata,
            model,
            genes=genes,
            mode="overexpress",
            readout="embedding",
            on=mt.tl.Cells(use="steered", target="anchor"),
            sampling=mt.tl.CellSampling.of(**STEERING),
        )
        table = mt.get.steer_genes(adata).set_index("gene").reindex(levels.var_names).fillna(0)
        for state in ("abrupt", "unsteered", "steered"):
            if state == "abrupt" and genes is None:
                continue
            label = f"edit alone ({len(held)} genes)" if state == "abrupt" else f"{state}, {name}"
            mean = table[f"level_{state}"].to_numpy(dtype=np.float32)[None]
            found[label] = AnnData(mean, obs=pd.DataFrame({"stim": ["stim"]}, index=[label]), var=levels.var)
        cells = mt.get.table(adata, "steer", "cells")
        facts[name] = {
            "effects": json.loads(mt.get.table(adata, "steer").round(4).to_json(orient="records")),
            "median_rhat": float(cells["rhat"].median()),
            "median_effective_size": float(cells["effective_size"].median()),
            "mean_acceptance": float(cells["acceptance"].mean()),
        }
        start = table["level_start"].to_numpy()
    return found, {"chains": facts, "start": start}


def rows_of(levels: AnnData, found: dict[str, AnnData], start: np.ndarray, held: list[str]) -> list[dict]:
    """Scores over all genes and over those that were not edited, with the known genes among the largest rises."""
    still, train = levels.obs["stim"] == "ctrl", levels.obs["train"]
    mean = {
        "perturbation mean": np.asarray(levels.X[(train & ~still).to_numpy()].mean(axis=0)).ravel(),
        "no change": np.asarray(levels.X[(train & still).to_numpy()].mean(axis=0)).ravel(),
        "(truth)": np.asarray(levels.X[(~train & ~still).to_numpy()].mean(axis=0)).ravel(),
    }
    control = np.asarray(levels.X[(~train & still).to_numpy()].mean(axis=0)).ravel()
    rows = []
    for which, genes in {
        "all genes": np.ones(levels.n_vars, bool),
        "genes not edited": ~levels.var_names.isin(held),
    }.items():
        part = levels[:, genes].copy()
        mt.tl.perturbation_metrics(
            part,
            predicted={name: value[:, genes].copy() for name, value in found.items()},
            perturbation_key="stim",
            control="ctrl",
            train="train",
        )
        table = mt.get.table(part, "perturbation_metrics")
        table = table[table["perturbation"] == "all"]
        known = part.var_names.isin(KNOWN)
        for method in [*table["method"].unique(), "(truth)"]:
            if method in found:
                change = found[method].X[0] - start
            else:
                change = mean[method] - control
            change = change[genes]
            row = {"genes": which, "method": method}
            for name in (
                "pearson_control",
                "pearson_control_top",
                "spearman_control",
                "top_overlap",
                "top_direction",
                "mse",
            ):
                one = table[(table["method"] == method) & (table["score"] == name)]
                row[name] = round(float(one["value"].iloc[0]), 4) if len(one) else None
                if name == "pearson_control" and len(one):
                    row["r_low"], row["r_high"] = (round(float(one[c].iloc[0]), 3) for c in ("low", "high"))
            row["known_in_top"] = int(known[np.argsort(-change, kind="stable")[:N_TOP]].sum())
            row["n_known"] = int(known.sum())
            row["known_auroc"] = round(float(roc_auc_score(known, change)), 3)
            rows.append(row)
    return rows


def arrived(adata: AnnData, model, held: list[str], n_steps: int) -> list[dict]:
    """How far the chains of several samplers have come after so many steps."""
    rows = []
    for sampler in SAMPLERS:
        began = time.process_time()
        mt.tl.steer_cells(
            adata,
            model,
            genes=held,
            mode="overexpress",
            readout="embedding",
            on=mt.tl.Cells(use="steered", target="anchor"),
            sampling=mt.tl.CellSampling.of(**LONG | {"n_steps": n_steps} | sampler),
        )
        seconds = time.process_time() - began
        cells = mt.get.table(adata, "steer", "cells")
        row = {**sampler, "temperature": 1.0, "n_steps": n_steps}
        row |= {f"rhat_{n}": value for n, value in rhat_after(mt.get.table(adata, "steer", "trace")).items()}
        row |= {
            "cells_below_1.1": int((cells["rhat"] < 1.1).sum()),
            "effective_size": cells["effective_size"].median(),
            "acceptance": cells["acceptance"].mean(),
            "distance": cells["distance_steered"].mean(),
            "distance_not_led": cells["distance_unsteered"].mean(),
            "distance_start": cells["distance_start"].mean(),
            "log_likelihood": cells["log_likelihood_steered"].mean(),
            "log_likelihood_start": cells["log_likelihood_start"].mean(),
            "seconds": seconds,
        }
        rows.append({k: round(float(v), 4) if isinstance(v, float) else v for k, v in row.items()})
        print(rows[-1], flush=True)
    return rows


def rhat_after(trace: pd.DataFrame) -> dict[int, float]:
    """Median over cells of R-hat after so many steps, the first half of which is left out: the larger of both measures."""
    led = trace[trace["steered"]]
    found = {}
    for n in (100, 200, 400, 800, 1600, 3200, 6400):
        if n > led["step"].max():
            break
        kept = led[(led["step"] > n // 2) & (led["step"] <= n)]
        both = [
            rhat(
                kept.pivot_table(index=["cell", "chain"], columns="step", values=value)
                .to_numpy()
                .reshape(led["cell"].nunique(), -1, n - n // 2)
            )
            for value in ("log_likelihood", "distance")
        ]
        found[n] = float(np.nanmedian(np.fmax(*both)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path)
    parser.add_argument(
        "--chains", action="store_true", help="how many steps it takes until the chains have arrived"
    )
    parser.add_argument("--steps", type=int, default=LONG["n_steps"])
    arguments = parser.parse_args()
    adata = load(arguments.path)
    mt.settings.progress = False
    began = time.process_time()
    vocab = vocabulary(adata)
    mt.pp.rank_value_encode(adata, vocab)
    train, test = (adata[adata.obs["train"] == value].copy() for value in (True, False))
    with tempfile.TemporaryDirectory() as folder:
        model = mt.train.pretrain(
            train,
            vocab,
            folder,
            shape=SHAPE,
            recipe=mt.train.PretrainRecipe.of(device="cpu", seed=0, **TRAINING),
        )
    trained = time.process_time() - began
    for part in (train, test):
        mt.tl.log_likelihood(part, model)
    levels = with_levels(adata, model)
    stimulated = levels.obs["anchor"].to_numpy()
    still = (levels.obs["train"] & (levels.obs["stim"] == "ctrl")).to_numpy()
    gap = np.asarray(levels.X[stimulated].mean(axis=0) - levels.X[still].mean(axis=0)).ravel()
    held = levels.var_names[np.argsort(-gap)[:N_HELD]].tolist()
    if arguments.chains:
        rows = arrived(adata, model, held, arguments.steps)
        report.write(
            "steering_chains",
            rows,
            shape=SHAPE,
            training=TRAINING,
            sampling=LONG | {"n_steps": arguments.steps},
            held=held,
        )
        return
    found, facts = predictions(adata, levels, model, held)
    rows = rows_of(levels, found, facts.pop("start"), held)
    pd.set_option("display.width", 220, "display.max_columns", 30)
    report.write(
        "steering",
        rows,
        cells="Kang et al. 2018, 500 + 500 cells to train with and 500 + 500 held out",
        value="mean level of each gene: 1 for the highest rank of a cell, 0 for genes below rank "
        f"{CELL_LENGTH - 2}; Welch's t chooses the top 20 genes",
        n_genes=len(vocab.genes),
        n_parameters=model.hf.num_parameters(),
        log_likelihood={
            name: round(float(part.obs["log_likelihood"].mean()), 3)
            for name, part in {"train": train, "held out": test}.items()
        },
        shape=SHAPE,
        training=TRAINING,
        steering=STEERING,
        held=held,
        known_in_top_of=N_TOP,
        training_cpu_seconds=round(trained),
        cpu_seconds=round(time.process_time() - began),
        **facts,
    )


if __name__ == "__main__":
    main()
