"""Naming cells by a reference and by a trained classifier: planted types, calibrated nulls, unknown cells, refusals."""

import dataclasses
import json

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from helpers import on_copy
from scipy.sparse import csr_matrix

import maxtoki_toolkit as mt
from maxtoki_toolkit import cli
from maxtoki_toolkit._errors import tell
from maxtoki_toolkit._ontology import find_term, term_distances
from maxtoki_toolkit.annotation import annotate_file
from maxtoki_toolkit.models.classifier import WEIGHTS
from maxtoki_toolkit.stats.annotation import Calibration, Calls, Regions, Truth, folds_of, score_calls
from maxtoki_toolkit.stats.calibration import calibration_error, fit_temperature, probabilities, reliability
from maxtoki_toolkit.tl._annotation import caveats, kinds_of_labels
from maxtoki_toolkit.train._classifier_module import ClassifierModule, balanced, smoothed

TYPES = [
    "T cell",
    "CD4-positive, alpha-beta T cell",
    "CD8-positive, alpha-beta T cell",
    "B cell",
    "monocyte",
    "neuron",
]
N_GENES, PER_TYPE, NEW = 300, 14, len(TYPES)
FAST = mt.train.ClassifierRecipe.of(
    max_steps=30, batch_size=16, eval_every=15, save_every=15, learning_rate=5e-3
)


def simulate(n_cells, donors, rng, profiles):
    """Cells of the types in turn, the last of which no reference has, of donors with a shift each."""
    of = np.arange(n_cells) % len(profiles)
    donor = rng.choice(donors, n_cells)
    shift = {name: np.random.default_rng(int(name[1:])).normal(0, 0.2, N_GENES) for name in donors}
    rate = np.exp(profiles[of] + np.stack([shift[name] for name in donor]))
    counts = rng.poisson(rate / rate.sum(axis=1, keepdims=True) * 600).astype(np.float32)
    adata = AnnData(csr_matrix(counts))
    adata.var_names = [f"ENSG{i:011d}" for i in range(N_GENES)]
    adata.obs_names = [f"cell_{donors[0]}_{i}" for i in range(n_cells)]
    adata.obs["donor_id"] = donor
    adata.obs["cell_type"] = np.array([*TYPES, "hepatocyte"])[of]
    adata.obs["side"] = np.where(of < 4, "lymphoid", "other")
    return adata


@pytest.fixture(scope="module")
def planted():
    """A model that has learned nothing, a reference of known types, and cells of these and of one more."""
    rng = np.random.default_rng(0)
    own = np.zeros((NEW + 1, N_GENES))
    for i in range(NEW + 1):
        own[i, i * PER_TYPE : (i + 1) * PER_TYPE] = 2.2
    own[1] += own[0]  # kinds of T cells
    own[2] += own[0]
    vocab = mt.models.Vocabulary(
        {
            token: i
            for i, token in enumerate(
                ["<pad>", "<mask>", "<bos>", "<eos>", *(f"ENSG{i:011d}" for i in range(N_GENES))]
            )
        },
        {f"ENSG{i:011d}": 1.0 for i in range(N_GENES)},
    )
    shape = {"hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = mt.models.build_model({**shape, "max_position_embeddings": 64}, vocab)
    reference = simulate(420, [f"d{i}" for i in range(8)], rng, own[:-1])
    query = simulate(280, ["d20", "d21", "d22"], rng, own)
    for adata in (reference, query):
        mt.pp.map_genes(adata, model)
        mt.pp.rank_value_encode(adata, model)
    return model, reference, query


@pytest.fixture(scope="module")
def annotated(planted):
    model, reference, query = planted
    return on_copy(
        mt.tl.annotate, query, model, reference=reference, groupby=["cell_type", "side"], donor_key="donor_id"
    )


@pytest.fixture(scope="module")
def trained(planted, tmp_path_factory):
    """A classifier of two columns, and the folder of its run."""
    model, reference, _ = planted
    folder = tmp_path_factory.mktemp("classify") / "run"
    found = mt.train.classify(
        reference, model, folder, groupby=["cell_type", "side"], donor_key="donor_id", recipe=FAST
    )
    return found, folder


def test_planted_types_are_named_and_new_ones_found(annotated):
    known = (annotated.obs["cell_type"] != "hepatocyte").to_numpy()
    right = annotated.obs["annotated_cell_type_best"].astype(str) == annotated.obs["cell_type"].astype(str)
    assert right[known].mean() > 0.9
    unknown = (annotated.obs["annotated_cell_type"] == "unknown").to_numpy()
    assert unknown[~known].mean() >= 0.7
    assert unknown[known].mean() < 0.12
    scores = mt.get.table(annotated, "annotate").query("column == 'cell_type'").set_index("predictor")
    assert list(scores.index) == ["probe", "PCA logistic", "majority", "permuted"]
    assert scores.loc["probe", "macro_f1"] > 0.9 > 0.4 > scores.loc["permuted", "macro_f1_high"]
    assert scores.loc["majority", "macro_f1"] < 0.15
    assert scores.loc["probe", "q_value"] <= 0.002
    assert scores.loc["probe", "false_alarms"] < 0.1
    assert (scores["unit"].iloc[0], scores["n_units"].iloc[0]) == ("donor", 8)
    # Steps count how wrong a call is, not only whether it is.
    assert scores.loc["probe", "ontology_distance"] < 0.5 < scores.loc["majority", "ontology_distance"]
    assert annotated.obs["annotated_side_best"].isin(["lymphoid", "other"]).all()
    params = annotated.uns["annotate"]["params"]
    assert params["groupby"] == ["cell_type", "side"]
    assert params["calibration_of"]["cell_type"]["threshold"] < 0.2


def test_cells_are_sure_of_a_kind_that_holds_their_type(annotated):
    """A label or what it is a kind of; no more are wrong than was asked for, on held-out cells and on new donors."""
    known = (annotated.obs["cell_type"] != "hepatocyte").to_numpy()
    best, sure = (annotated.obs[f"annotated_cell_type_{name}"].astype(str) for name in ("best", "sure"))
    kinds = kinds_of_labels(np.array(TYPES), [find_term(name) for name in TYPES])
    place, label = list(kinds.names), {name: i for i, name in enumerate(TYPES)}
    said = (sure != "unknown").to_numpy()
    assert all(kinds.holds[label[a], place.index(b)] for a, b in zip(best[said], sure[said], strict=True))
    right = [
        kinds.holds[label[a], place.index(b)]
        for a, b in zip(annotated.obs["cell_type"][known & said], sure[known & said], strict=True)
    ]
    assert np.mean(right) > 0.93
    scores = mt.get.table(annotated, "annotate").query("predictor == 'probe'").set_index("column")
    assert scores.loc["cell_type", "sure_wrong"] < 0.07
    assert scores.loc["cell_type", "sure_named"] > 0.8
    assert scores.loc["cell_type", "sure_steps"] >= 0
    # Labels without a term have nothing above them.
    assert scores.loc["side", "sure_steps"] == 0
    assert set(annotated.obs["annotated_side_sure"]) <= {"lymphoid", "other", "unknown"}


def test_second_best_and_probability_are_of_this_cell(annotated):
    obs = annotated.obs
    assert (
        obs["annotated_cell_type_best"].astype(str) != obs["annotated_cell_type_second"].astype(str)
    ).all()
    assert obs["annotated_cell_type_probability"].between(1 / len(TYPES), 1).all()


def test_tables_agree_with_each_other(annotated):
    labels, confusion, bins = (
        mt.get.table(annotated, "annotate", name) for name in ("labels", "confusion", "calibration")
    )
    mine = confusion[confusion["column"] == "cell_type"]
    assert mine["n_cells"].sum() == bins.query("column == 'cell_type'")["n_cells"].sum() == 420
    row = labels.query("column == 'cell_type' and label == 'B cell'").iloc[0]
    here = mine[mine["label"] == "B cell"]
    assert row["recall"] == here.loc[here["called"] == "B cell", "n_cells"].sum() / here["n_cells"].sum()
    assert (row["term"], row["n_donors"]) == (find_term("B cell"), 8)
    assert row["n_called"] == (annotated.obs["annotated_cell_type"] == "B cell").sum()
    assert labels.query("column == 'side'")["term"].eq("").all()
    assert mt.get.table(annotated, "annotate").query("column == 'side'")["ontology_distance"].isna().all()


def test_labels_that_mean_nothing_stay_inside_the_null(planted):
    model, reference, query = planted
    reference = reference.copy()
    mt.tl.embed(reference, model)
    reference.X = None  # without counts there is no baseline to wait for
    names = [f"shuffled_{i}" for i in range(12)]
    for i, name in enumerate(names):
        rng = np.random.default_rng(i)
        reference.obs[name] = reference.obs.groupby("donor_id")["cell_type"].transform(
            lambda x, rng=rng: rng.permutation(x)
        )
    found = on_copy(
        mt.tl.annotate,
        query[:10],
        model,
        reference=reference,
        groupby=names,
        donor_key="donor_id",
        method="knn",
    )
    scores = mt.get.table(found, "annotate")
    p_values = scores["p_value"].dropna()
    assert len(p_values) == 12
    assert (p_values < 0.05).sum() <= 3
    assert p_values.max() > 0.4
    assert scores["q_value"].min() > 0.01
    inside = scores[scores["predictor"] == "knn"]["macro_f1"].to_numpy() < 0.3
    assert inside.all()


def test_permutation_p_values_are_uniform_under_the_null():
    rng = np.random.default_rng(1)
    donor = np.repeat(np.arange(6), 25)
    p_values = []
    for seed in range(40):
        # Labels and calls both go with the donor, and with nothing else.
        code, called = (rng.integers(0, 3, 150) + donor % 2 for _ in range(2))
        truth = Truth(code, np.array(list("abcd")), donor, np.full((4, 4), np.nan))
        calls = Calls(called, called, np.full(150, 0.5), np.zeros(150), np.zeros(150, bool))
        p_values.append(score_calls(truth, calls, {}, "calls", seed).loc[0, "p_value"])
    assert 0.35 < np.mean(p_values) < 0.65
    assert np.mean(np.array(p_values) < 0.05) < 0.14


def test_neighbors_and_probe_agree_where_it_is_easy(planted, annotated):
    model, reference, query = planted
    found = on_copy(
        mt.tl.annotate, query, model, reference=reference, groupby="side", donor_key="donor_id", method="knn"
    )
    known = (query.obs["cell_type"] != "hepatocyte").to_numpy()
    same = found.obs["annotated_side_best"].astype(str) == annotated.obs["annotated_side_best"].astype(str)
    assert same[known].mean() > 0.9
    assert found.uns["annotate"]["params"]["method"] == "knn"


def test_a_label_of_one_donor_is_unknown_to_the_others(planted):
    model, reference, query = planted
    reference = reference.copy()
    alone = (reference.obs["donor_id"] == "d3") & (reference.obs["cell_type"] == "neuron")
    reference = reference[(reference.obs["cell_type"] != "neuron") | alone].copy()
    found = on_copy(
        mt.tl.annotate, query[:5], model, reference=reference, groupby="cell_type", donor_key="donor_id"
    )
    scores = mt.get.table(found, "annotate").iloc[0]
    assert scores["n_unseen"] == alone.sum() > 0
    assert scores["unseen_found"] > 0.5
    assert scores["n_cells"] == reference.n_obs - alone.sum()
    row = mt.get.table(found, "annotate", "labels").query("label == 'neuron'").iloc[0]
    assert (row["n_scored"], row["n_reference"], row["n_donors"]) == (0, alone.sum(), 1)


def test_folds_keep_donors_together_and_do_not_depend_on_names():
    rng = np.random.default_rng(0)
    donor, code = rng.integers(0, 9, 200), rng.integers(0, 4, 200)
    fold = folds_of(code, donor, 5, 0)
    assert all(len(np.unique(fold[donor == one])) == 1 for one in range(9))
    assert len(np.unique(folds_of(code, donor % 2, 5, 0))) == 2
    assert len(np.unique(folds_of(code, None, 5, 0))) == 5


def test_temperature_and_calibration_error():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 5)) * 2
    shares = probabilities(logits, 1.0)
    code = (shares.cumsum(axis=1) > rng.random((4000, 1))).argmax(axis=1)
    assert fit_temperature(logits * 3, code) == pytest.approx(3, rel=0.1)
    confidence, right = shares.max(axis=1), shares.argmax(axis=1) == code
    assert (
        calibration_error(confidence, right)
        < 0.03
        < calibration_error(np.minimum(confidence + 0.2, 1), right)
    )
    bins = reliability(confidence, right)
    assert bins["n_cells"].sum() == 4000
    assert (bins["bin_start"] <= bins["confidence"]).all()


def test_threshold_gives_the_false_alarms_that_were_asked_for():
    rng = np.random.default_rng(0)
    logits, distance = rng.normal(size=(2, 3000, 4)), rng.normal(size=(2, 3000))
    code = rng.integers(0, 4, 3000)
    found = Calibration.fit(logits[0], code, distance[0], 0.05)
    shares = [probabilities(some, found.temperature).max(axis=1) for some in logits]
    assert found.is_unknown(shares[0], distance[0]).mean() == pytest.approx(0.05, abs=0.002)
    assert found.is_unknown(shares[1], distance[1]).mean() == pytest.approx(0.05, abs=0.015)
    assert found.is_unknown(shares[1], distance[1] + 10).all()


def test_regions_tell_far_cells_whatever_the_scale():
    rng = np.random.default_rng(0)
    code = rng.integers(0, 3, 600)
    X = rng.normal(size=(600, 8)) + 6 * np.eye(8)[code]
    far = rng.normal(size=(50, 8)) + 9 * np.eye(8)[7]
    found = Regions.fit(X, code)
    assert found.distance(far).min() > np.quantile(found.distance(X), 0.99)
    scale = 10.0 ** np.arange(8)
    np.testing.assert_allclose(
        Regions.fit(X * scale, code).distance(far * scale), found.distance(far), rtol=1e-6
    )


def test_steps_in_the_ontology():
    terms = [find_term(name) for name in ("T cell", "CD8-positive, alpha-beta T cell", "lymphocyte")]
    steps = term_distances([*terms, ""])
    np.testing.assert_array_equal(steps[:3, :3], steps[:3, :3].T)
    assert steps[0, 2] == 1
    assert steps[1, 2] == steps[1, 0] + steps[0, 2]
    assert np.isnan(steps[3]).all()


def test_wanted_labels_are_smoothed_over_neighbours_alone():
    steps = np.array([[0, 1, 2, 6], [1, 0, 1, 5], [2, 1, 0, 6], [6, 5, 6, 0.0]])
    wanted = smoothed(steps, 0.2)
    np.testing.assert_allclose(wanted.sum(axis=1), 1)
    np.testing.assert_allclose(wanted[0], [0.8, 0.2 * 2 / 3, 0.2 / 3, 0])  # half as much at two steps
    np.testing.assert_array_equal(wanted[3], [0, 0, 0, 1])  # no neighbour
    np.testing.assert_array_equal(smoothed(np.full((3, 3), np.nan), 0.2), np.eye(3))
    weight = balanced(np.array([0, 0, 0, 1, -1]), 3)
    np.testing.assert_allclose(weight * [3, 1, 0], [2, 2, 0])


def test_a_classifier_names_cells_of_other_donors(planted, trained):
    model, reference, query = planted
    classifier, _ = trained
    scores = classifier.tables["scores"].query("column == 'cell_type'").set_index("predictor")
    assert list(scores.index) == ["fine-tuned", "probe", "PCA logistic", "majority", "permuted"]
    assert scores.loc["fine-tuned", "macro_f1"] > 0.85
    assert scores.loc["fine-tuned", "p_value"] <= 0.002
    assert set(classifier.card["held_out_donors"]) < set(reference.obs["donor_id"])
    assert len(classifier.adapters) == 7
    assert any(outer.abs().max() > 0 for _, outer in classifier.adapters.values())
    before = on_copy(mt.tl.embed, query, model).obsm["X_maxtoki"]
    found = on_copy(mt.tl.annotate, query, model, classifier=classifier)
    known = (query.obs["cell_type"] != "hepatocyte").to_numpy()
    right = found.obs["annotated_cell_type_best"].astype(str) == query.obs["cell_type"].astype(str)
    assert right[known].mean() > 0.9
    assert (found.obs["annotated_cell_type"] == "unknown").to_numpy()[~known].mean() > 0.7
    sure = found.obs["annotated_cell_type_sure"].astype(str)
    assert (sure == found.obs["annotated_cell_type_best"].astype(str))[known].mean() > 0.7
    # The fine-tuned embedding comes with it, in the order of the file.
    shuffled = on_copy(mt.tl.annotate, query[::-1].copy(), model, classifier=classifier)
    np.testing.assert_allclose(
        shuffled.obsm["X_annotated"][::-1], found.obsm["X_annotated"], rtol=1e-3, atol=1e-4
    )
    # The model is as it was.
    np.testing.assert_array_equal(on_copy(mt.tl.embed, query, model).obsm["X_maxtoki"], before)


def test_a_classifier_is_read_as_it_was_written(planted, trained, tmp_path):
    model, _, query = planted
    classifier, folder = trained
    assert sorted(path.name for path in (folder / "classifier").iterdir()) == [
        "classifier.json",
        "classifier.safetensors",
        "maxtoki.json",
    ]
    read = mt.load_classifier(folder)
    for name, table in classifier.tables.items():
        pd.testing.assert_frame_equal(read.tables[name], table)
    by_path, by_object = (
        on_copy(mt.tl.annotate, query, model, classifier=one, groupby="side")
        for one in (str(folder), classifier)
    )
    pd.testing.assert_frame_equal(by_path.obs, by_object.obs)
    assert "annotated_cell_type" not in by_path.obs
    by_path.write_h5ad(tmp_path / "cells.h5ad")
    again = anndata.read_h5ad(tmp_path / "cells.h5ad")
    assert mt.get.table(again, "annotate")["predictor"].iloc[0] == "fine-tuned"


def test_an_interrupted_training_goes_on_to_the_same_weights(planted, trained, tmp_path, monkeypatch):
    model, reference, _ = planted
    whole, folder = trained
    settings = {"groupby": ["cell_type", "side"], "donor_key": "donor_id"}
    step, seen = ClassifierModule.forward, []

    def cut(self, *args, **kwargs):
        seen.append(self.training)
        if sum(seen) > 20:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(ClassifierModule, "forward", cut)
        with pytest.raises(KeyboardInterrupt):
            mt.train.classify(reference, model, tmp_path / "cut", **settings, recipe=FAST)
    resumed = mt.train.classify(reference, model, tmp_path / "cut", **settings, recipe=FAST)
    for name, factors in whole.adapters.items():
        # Sums on a CPU may differ in their last digit from one process state to the next.
        torch.testing.assert_close(resumed.adapters[name], factors, rtol=0, atol=1e-6)
    # A finished run is read, not run again; other settings need another folder.
    monkeypatch.setattr(ClassifierModule, "forward", None)
    assert mt.train.classify(reference, model, folder, **settings, recipe=FAST).card == whole.card
    with pytest.raises(ValueError, match="smoothing"):
        mt.train.classify(
            reference, model, folder, **settings, recipe=dataclasses.replace(FAST, smoothing=0.3)
        )


def test_heads_alone_begin_at_the_probe(planted, tmp_path):
    """Without adapters and with hardly a step, what is fine-tuned is the probe."""
    model, reference, _ = planted
    recipe = mt.train.ClassifierRecipe.of(max_steps=1, learning_rate=1e-9, lora_rank=None, batch_size=4)
    found = mt.train.classify(
        reference, model, tmp_path, groupby="cell_type", donor_key="donor_id", recipe=recipe
    )
    assert not found.adapters
    scores = found.tables["scores"].set_index("predictor")
    assert scores.loc["fine-tuned", "macro_f1"] == scores.loc["probe", "macro_f1"]
    assert scores.loc["probe", "difference"] == 0


def test_refusals(planted, trained, tmp_path):
    model, reference, query = planted
    classifier, folder = trained
    cells = query[:10].copy()

    def refused(match, error=ValueError, **settings):
        with pytest.raises(error, match=match):
            mt.tl.annotate(cells, model, **settings)

    refused("Give either reference=")
    refused("Give either reference=", reference=reference, classifier=classifier)
    refused("There is no method 'svm'", reference=reference, method="svm", donor_key="donor_id")
    refused("Did not find .obs", KeyError, reference=reference, groupby="celltype", donor_key="donor_id")
    refused("Did not find .obs", KeyError, reference=reference, groupby="cell_type", donor_key="who")
    one = reference[reference.obs["cell_type"] == "neuron"].copy()
    refused(
        "All cells of the reference have the label 'neuron'",
        reference=one,
        groupby="cell_type",
        donor_key="donor_id",
    )
    named = reference.copy()
    named.obs["cell_type"] = named.obs["cell_type"].astype(str).replace("neuron", "unknown")
    refused("has the label 'unknown'", reference=named, groupby="cell_type", donor_key="donor_id")
    apart = reference.copy()
    apart.obs["cell_type"] = np.where(apart.obs["donor_id"] == "d0", "a", "b")
    refused(
        "labels and donors cannot be told apart", reference=apart, groupby="cell_type", donor_key="donor_id"
    )
    refused("was not trained on 'tissue'", classifier=classifier, groupby="tissue")
    refused("Did not find", FileNotFoundError, classifier=tmp_path)
    other = mt.models.build_model(
        {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
        model.vocab,
        seed=1,
    )
    with pytest.raises(ValueError, match="trained on another model"):
        mt.tl.annotate(cells, other, classifier=classifier)
    with pytest.raises(ValueError, match="holds files|checksum|settings|was|other"):
        mt.train.classify(reference, other, folder, groupby="cell_type", donor_key="donor_id", recipe=FAST)
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in (folder / "classifier").iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    (broken / WEIGHTS).write_bytes((broken / WEIGHTS).read_bytes()[:-8])
    refused("is not the file that", classifier=broken)
    content = json.loads((broken / "classifier.json").read_text())
    del content["card"]
    (broken / "classifier.json").write_text(json.dumps(content))
    refused("does not describe a classifier", classifier=broken)
    assert "annotated_cell_type" not in cells.obs


def test_without_counts_the_baseline_is_left_out_and_said(planted):
    model, reference, query = planted
    bare = reference.copy()
    bare.X = None
    found = on_copy(
        mt.tl.annotate, query[:5], model, reference=bare, groupby="side", donor_key="donor_id", method="knn"
    )
    assert "PCA logistic" not in mt.get.table(found, "annotate")["predictor"].tolist()


def test_figure(annotated):
    figure = mt.pl.annotate(annotated)
    left, right = figure.axes[:2]
    assert left.get_ylabel() == "cell type (held-out cells)"
    assert len(left.get_yticklabels()) == len(TYPES)
    assert right.get_xlabel() == "probability of the called label"
    assert "8 donors" in figure._suptitle.get_text()
    assert mt.pl.annotate(annotated, column="side").axes[0].get_xlabel() == "called side"
    with pytest.raises(ValueError, match="There are no labels 'sides'. Did you mean 'side'"):
        mt.pl.annotate(annotated, column="sides")


def test_command(planted, trained, tmp_path, monkeypatch, capsys):
    model, reference, query = planted
    _, folder = trained
    monkeypatch.chdir(tmp_path)
    mt.models.save_model(model, "model")
    for name, adata in {"ref": reference, "mine": query}.items():
        AnnData(adata.X, obs=adata.obs[["cell_type", "donor_id"]], var=adata.var[[]]).write_h5ad(
            f"{name}.h5ad"
        )
    words = [
        "maxtoki",
        "annotate",
        "mine.h5ad",
        "--reference",
        "ref.h5ad",
        "--groupby",
        "cell_type",
        "--model",
        "model",
    ]
    monkeypatch.setattr("sys.argv", [*words, "--donor-key", "donor_id", "--method", "knn"])
    cli.app(standalone_mode=False)
    said = capsys.readouterr().out
    assert "Macro F1 of 420 held-out reference cells (95% interval over donors): knn 0." in said
    out = tmp_path / "mine_annotated"
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["annotated.h5ad", "calibration.csv", "cell_type.pdf", "cell_type.png", "cells.csv"]
        + ["confusion.csv", "labels.csv", "maxtoki.json", "scores.csv"]
    )
    table = pd.read_csv(out / "cells.csv", index_col="cell")
    assert len(table) == query.n_obs
    written = anndata.read_h5ad(out / "annotated.h5ad")
    assert (written.obs["annotated_cell_type"].astype(str) == table["annotated_cell_type"]).all()
    # Another method is other work, which replaces nothing unasked.
    with pytest.raises(ValueError, match="was made from something else"):
        annotate_file(
            "mine.h5ad",
            out,
            mt.load_model("model"),
            reference="ref.h5ad",
            groupby="cell_type",
            donor_key="donor_id",
        )
    with pytest.raises(ValueError, match="Give either a reference or a classifier"):
        annotate_file("mine.h5ad", "other", model)
    # What is wrong with the reference is said of its file.
    with pytest.raises(KeyError, match="Did not find") as missing:
        annotate_file("mine.h5ad", "other", mt.load_model("model"), reference="ref.h5ad", groupby="celltype")
    assert tell(missing.value).startswith("ref.h5ad: Did not find .obs['celltype']")


def test_a_better_baseline_and_labels_of_no_known_kind_are_said():
    scores = pd.DataFrame({"column": "type", "predictor": ["probe", "PCA logistic"], "macro_f1": [0.5, 0.7]})
    scores = scores.assign(difference=[0, -0.2], difference_high=[0, -0.1])
    labels = pd.DataFrame({"column": "type", "label": ["B cell", "CD34+"], "term": ["CL:0000236", ""]})
    better, nameless = caveats({"scores": scores, "labels": labels})
    assert "better ('type': macro F1 0.70, -0.20 for the model)" in better
    assert "1 of 2 labels in 'type' are no term of the Cell Ontology (first: 'CD34+')" in nameless
    scores["difference_high"] = [0, 0.1]
    # Labels that are no kinds of cells at all, such as donors, are nothing to say.
    assert caveats({"scores": scores, "labels": labels.assign(term="")}) == []
