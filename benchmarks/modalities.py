"""Are proteins and peaks read from RNA, and do they add to it?

    python benchmarks/modalities.py planted                        # data that ship
    python benchmarks/modalities.py citeseq --folder FOLDER        # citeseq_pbmc_500.h5ad, which does not ship
    python benchmarks/modalities.py a549 --folder FOLDER           # a549_dex_multiome_2641.h5ad, which does not ship

- `planted`: simulated proteins and peaks that follow their genes; a protein that alone tells two halves of a cell type
  apart; proteins of other cells in place of a cell's own. Donors held out.
- `citeseq`: 49 surface proteins of 500 blood cells; a third of the cells held out (one donor: cells are the units).
- `a549`: peaks from RNA in A549 cells, one of five plates held out.

Written to `results/modalities.json`.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # This folder must not come first on the path: its tokenize.py would pass for Python's own.
    sys.path[0] = str(Path(__file__).parents[1])

import argparse
import tempfile
import time

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from sklearn.neighbors import KNeighborsClassifier

import maxtoki_toolkit as mt
from benchmarks import report

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}
TRAINING = {"optimizer": "muon", "learning_rate": 0.02, "modality_dropout": 0.2, "eval_every": 10_000}
N_PEAKS = 500  # of those open most often


def train(adata: AnnData, vocab, steps: int, start=SHAPE, batch_size: int = 32):
    """A model of all kinds of features, from the cells that are not held out."""
    recipe = mt.train.PretrainRecipe.of(max_steps=steps, batch_size=batch_size, **TRAINING)
    learned = adata[~adata.obs["held_out"].to_numpy()].copy()
    with tempfile.TemporaryDirectory() as folder:
        return mt.train.pretrain(learned, vocab, folder, shape=start, recipe=recipe)


def translated(adata: AnnData, model, case: str, **settings) -> list[dict]:
    """Scores of a translation."""
    mt.tl.translate(adata, model, held_out="held_out", **settings)
    return [{"case": case, **row} for row in mt.get.table(adata, "translate").to_dict("records")]


def labels_kept(adata: AnnData, model, labels: pd.Series, kinds: list[str] | None) -> dict:
    """Accuracy of labels of held-out cells carried over from the others by 15 neighbours in the embedding."""
    read = adata if kinds is None else mt.pp.keep_modalities(adata, modalities=kinds)
    mt.tl.embed(read, model)
    held_out = read.obs["held_out"].to_numpy()
    values, truth = read.obsm["X_maxtoki"], labels[read.obs_names].to_numpy()
    known = KNeighborsClassifier(15).fit(values[~held_out], truth[~held_out])
    return {
        "kinds": ", ".join(kinds or ["all"]),
        "accuracy": float((known.predict(values[held_out]) == truth[held_out]).mean()),
    }


def planted(steps: int) -> None:
    """Simulated pairs; and the same with proteins of other cells."""
    rows, extra = [], []
    for exchanged in (False, True):
        joint = mt.datasets.paired_modalities(mt.datasets.aging_atlas(1200, 20, n_genes=500), n_peaks=80)
        if exchanged:
            order = np.random.default_rng(0).permutation(joint.n_obs)
            proteins = joint.var["feature_types"].to_numpy() == "Antibody Capture"
            X = joint.X.toarray()
            X[:, proteins] = X[np.ix_(order, np.flatnonzero(proteins))]
            joint.X = sp.csr_matrix(X)
        mt.pp.map_genes(joint)
        mt.pp.hold_out(joint, donor_key="donor_id", donors=0.3)
        vocab = mt.models.Vocabulary.from_anndata(joint).with_modalities(mt.pp.modality_medians(joint))
        mt.pp.rank_value_encode(joint, vocab)
        model = train(joint, vocab, steps)
        name = "proteins of other cells" if exchanged else "planted"
        for target in ("adt", "atac"):
            rows += translated(joint, model, f"{name}: {target}", target=target, donor_key="donor_id")
        if not exchanged:
            subtype = joint.obs["subtype"].astype(str)
            split = subtype.str.rstrip("+") == subtype[subtype.str.endswith("+")].iloc[0].rstrip("+")
            part = joint[split.to_numpy()].copy()
            extra = [labels_kept(part, model, subtype, kinds) for kinds in (None, ["rna"], ["adt"])]
    report.add("modalities", rows, case="planted", device="cpu", steps=steps, split_type=extra)


def citeseq(folder: Path, steps: int) -> None:
    """Proteins of blood cells, from the demo model grown by them."""
    adata = anndata.read_h5ad(folder / "citeseq_pbmc_500.h5ad")
    adata = adata[adata.obs["hto_call"].astype(str) != "doublet"].copy()
    joint = mt.pp.join_modalities(adata, proteins="protein")
    demo = mt.load_model("demo")
    vocab = demo.vocab.with_modalities(mt.pp.modality_medians(joint))
    mt.pp.rank_value_encode(joint, vocab)
    joint.obs["held_out"] = np.random.default_rng(0).permutation(joint.n_obs) % 3 == 0
    grown = mt.models.extend_model(demo, vocab)
    rows = translated(joint, grown, "before training", target="adt")
    model = train(joint, vocab, steps, start=grown, batch_size=16)
    rows += translated(joint, model, "trained", target="adt")
    features = mt.get.table(joint, "translate", "features")
    report.add(
        "modalities", rows, case="citeseq", device="cpu", steps=steps, features=features.to_dict("records")
    )


def a549(folder: Path, steps: int) -> None:
    """Peaks of A549 cells from RNA, one plate held out."""
    adata = anndata.read_h5ad(folder / "a549_dex_multiome_2641.h5ad")
    atac = sp.csr_matrix(adata.obsm["atac"])
    often = np.sort(np.argsort(-np.asarray((atac > 0).sum(axis=0)).ravel(), kind="stable")[:N_PEAKS])
    names = np.asarray(adata.uns["atac_peaks"]).astype(str)[often]
    peaks = AnnData(atac[:, often], obs=adata.obs[[]], var=pd.DataFrame(index=names))
    joint = mt.pp.join_modalities(adata, peaks=peaks)
    mt.pp.map_genes(joint)
    vocab = mt.models.Vocabulary.from_anndata(joint).with_modalities(mt.pp.modality_medians(joint))
    mt.pp.rank_value_encode(joint, vocab)
    plates = joint.obs["plate"].astype(str)
    joint.obs["held_out"] = plates == plates.unique()[-1]
    model = train(joint, vocab, steps)
    rows = translated(joint, model, "one plate held out", target="atac")
    report.add("modalities", rows, case="a549", device="cpu", steps=steps, n_peaks=N_PEAKS)


def main() -> None:
    """Run the parts that are named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="+", choices=["planted", "citeseq", "a549"])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--steps", type=int, default=600)
    a = parser.parse_args()
    mt.settings.progress = False
    pd.set_option("display.width", 220, "display.max_columns", 40)
    for part in a.parts:
        start = time.perf_counter()
        planted(a.steps) if part == "planted" else globals()[part](a.folder, a.steps)
        print(f"{part}: {time.perf_counter() - start:.0f} seconds", flush=True)


if __name__ == "__main__":
    main()
