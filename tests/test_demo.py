"""The demo model and the main job: real nuclei, and what the embedding has to reach."""

import json
import os
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

import maxtoki_toolkit as mt
from maxtoki_toolkit._files import sha256
from maxtoki_toolkit._reference import resource
from maxtoki_toolkit.demo import Demo, held_out_nuclei, run_demo


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """What the demo finds; where it has run already, MAXTOKI_DEMO is its folder."""
    if "MAXTOKI_DEMO" in os.environ:
        folder = Path(os.environ["MAXTOKI_DEMO"])
        tables = (
            pd.read_csv(folder / f"{name}.csv")
            for name in ("neighbor_purity", "timelapse_scores", "age_acceleration")
        )
        return Demo(*tables), folder
    folder = tmp_path_factory.mktemp("demo")
    mt.settings.progress = False
    return run_demo(folder), folder


pytestmark = [
    pytest.mark.slow,  # the README's first command runs it too
    pytest.mark.filterwarnings("ignore:The set_bad function:PendingDeprecationWarning"),
    # What age_acceleration has to say about the simulated donors.
    pytest.mark.filterwarnings("ignore:.*(left out|standard deviations of age|numbers of genes):UserWarning"),
]


def test_the_card_describes_the_model():
    card = json.loads((resource("demo") / "maxtoki.json").read_text())
    model = mt.load_model("demo")
    assert model.sha256 == card["weights_sha256"] == sha256(resource("demo") / "model.safetensors")
    assert model.vocab.sha256 == card["vocabulary_sha256"]
    assert model.is_temporal
    assert card["metrics"]["stage1_loss_held_out_nats"] < card["metrics"]["stage1_loss_uniform_nats"] - 2
    assert len(held_out_nuclei()) == card["recipe"]["held_out_nuclei"]


def test_embedding_beats_the_untrained_model_and_comes_near_pca(demo):
    table = demo[0].purity
    purity = table[table["cells"] == "all"].set_index("embedding")["purity"]
    assert purity["MaxToki"] > purity["untrained"] + 0.15
    assert purity["MaxToki"] > purity["PCA"] - 0.05
    unseen = table[table["cells"] != "all"].set_index("embedding")
    assert unseen.loc["untrained", "difference_low"] > 0
    assert (unseen["n_cells"] == len(held_out_nuclei())).all()


def test_numbers_are_those_of_the_card(demo):
    """The metrics on record were measured on the files that ship."""
    table = demo[0].purity
    card = json.loads((resource("demo") / "maxtoki.json").read_text())
    recorded = pd.DataFrame(card["metrics"]["neighbor_purity"])
    np.testing.assert_allclose(table["purity"], recorded["purity"], atol=0.005)


def test_it_tells_the_time_of_donors_it_never_saw(demo):
    scores = demo[0].timelapse.set_index("group").loc["all"]
    assert scores["r"] > scores["r_null_high"]
    assert scores["r_low"] > 0.3
    assert scores["p_value"] < 0.01


def test_planted_conditions_are_ranked(demo):
    """Each truth in its interval; the strongest is called, the resilient is not."""
    effects = demo[0].acceleration
    effects = effects[(effects["group"] == "all") & (effects["predictor"] == "MaxToki")].set_index(
        "condition"
    )
    assert (effects["effect_low"] < effects["planted"]).all()
    assert (effects["effect_high"] > effects["planted"]).all()
    assert effects["effect"].idxmax() == "accelerated_15y"
    assert effects.loc["accelerated_15y", "conclusion"] == "older than controls"
    assert effects.loc["resilient", "conclusion"] == "not distinguishable from controls"


def test_figures_and_tables_are_left(demo):
    folder = demo[1]
    names = {path.name for path in folder.iterdir()}
    figures = {"encoding_report", "neighbor_purity", "rank_heatmap", "timelapse", "umap"}
    figures |= {"age_acceleration", "matched_ages"}
    assert {f"{name}.{suffix}" for name in figures for suffix in ("png", "pdf")} <= names
    assert {"neighbor_purity.csv", "clusters_by_cell_type.csv", "heart_nuclei_embedded.h5ad"} <= names
    assert {"timelapse.csv", "timelapse_scores.csv", "age_acceleration.csv"} <= names
    adata = anndata.read_h5ad(folder / "heart_nuclei_embedded.h5ad")
    assert adata.n_obs == 700
    assert {"X_maxtoki", "X_umap"} <= set(adata.obsm)
    clusters = pd.read_csv(folder / "clusters_by_cell_type.csv", index_col=0)
    assert clusters.to_numpy().sum() == 700
