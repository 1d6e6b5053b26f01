"""Responses of populations left out: planted sums and interactions, nothing planted, by hand, and refusals."""

import importlib

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy.sparse import csr_matrix

import maxtoki_toolkit as mt
from maxtoki_toolkit.models.response import energy_distance
from maxtoki_toolkit.stats.response_shifts import Known, additive_changes, fill_unseen, own_slope, predict

N_GENES, N_DIMS = 60, 6
SETTINGS = {"perturbation_key": "drug", "control": "DMSO", "groupby": "line", "use_rep": "Z"}


def screen(seed=0, *, n_lines=6, n_drugs=4, n=40, effect=1.0, interaction=0.0, slope=0.0, common=0.0):
    """Counts of lines of two kinds; with an interaction, lines of the second kind answer in other genes."""
    fixed, rng = np.random.default_rng(7), np.random.default_rng(seed)
    base = fixed.uniform(0.5, 2.5, N_GENES)
    of_line = 0.35 * fixed.normal(size=(n_lines, N_GENES))
    own = fixed.normal(size=(n_lines, N_GENES))  # what any drug does to a line
    kind = np.arange(n_lines) % 2
    of_line[kind == 1, :10] += 2.0  # so that controls show the kind
    change = effect * fixed.normal(size=(2, n_drugs, N_GENES)) * (fixed.random((2, n_drugs, N_GENES)) < 0.3)
    line, drug = (
        part.ravel() for part in np.meshgrid(np.arange(n_lines), np.arange(n_drugs + 1), indexing="ij")
    )
    line, drug = np.repeat(line, n), np.repeat(drug, n)
    mean = base + of_line[line]
    treated, d = drug > 0, np.maximum(drug - 1, 0)
    answer = np.where(
        (kind[line] == 1)[:, None],
        (1 - interaction) * change[0, d] + interaction * change[1, d],
        change[0, d],
    )
    mean += np.where(treated[:, None], answer + slope * of_line[line] + common * own[line], 0)
    counts = rng.poisson(np.exp(mean) * rng.gamma(8, 1 / 8, (len(line), 1))).astype(np.float32)
    obs = pd.DataFrame(
        {
            "line": [f"l{i}" for i in line],
            "drug": np.array(["DMSO", *[f"d{i + 1}" for i in range(n_drugs)]], dtype=object)[drug],
            "donor": [f"p{i % 4}" for i in range(len(line))],
        },
        index=[f"c{i}" for i in range(len(line))],
    )
    X = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
    axes = np.linalg.svd(X - X.mean(axis=0), full_matrices=False)[2][:N_DIMS]
    adata = AnnData(csr_matrix(counts), obs=obs, obsm={"Z": (X - X.mean(axis=0)) @ axes.T})
    adata.var_names = [f"g{i}" for i in range(N_GENES)]
    return adata


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """Resamples and exchanges take most of the time."""
    module = importlib.import_module(
        "maxtoki_toolkit.tl.predict_response"
    )  # `mt.tl.predict_response` is the function
    monkeypatch.setattr(module, "_N_BOOTSTRAP", 10)
    monkeypatch.setattr(module, "_N_NULL", 19)


def run(adata, **settings):
    mt.tl.predict_response(adata, **{**SETTINGS, **settings})
    return mt.get.table(adata, "predict_response").set_index(["method", "score"])


def test_a_sum_is_recovered():
    """Combinations of a line and a drug, both seen elsewhere: the additive model is at the ceiling."""
    found = run(screen(common=0.5), held_out="combination")
    value = found["value"].xs("pearson_control", level="score")
    assert value["additive"] > 0.8
    assert value["replicate half"] - value["additive"] < 0.05
    assert value["additive"] > value["perturbation mean"] + 0.05
    assert abs(value["shuffled labels"]) < 0.2
    assert value["perturbation mean"] > found.loc[("shuffled labels", "pearson_control"), "high"]
    assert np.isnan(value["no change"])
    error = found["value"].xs("mse_weighted", level="score")
    assert error["additive"] < error["no change"] / 3
    assert error["context mean"] > error["additive"]
    assert found["n_units"].xs("mse", level="score")["additive"] == 6


def test_an_interaction_is_not_a_sum():
    """Two kinds of lines answer in different genes: who looks at the controls sees which kind a line is."""
    adata = screen(interaction=1.0)
    for held_out in ("context", "combination"):
        found = run(adata, held_out=held_out)
        value = found["value"].xs("pearson_control", level="score")
        assert value["nearest neighbours"] > 0.7
        assert value["additive"] < value["nearest neighbours"] - 0.1
        near = found.loc[("nearest neighbours", "pearson_control")]
        assert near["difference_low"] > 0
        assert near["q_value"] < 0.05


def test_the_transformer_sees_an_interaction():
    """It departs from the mean shift, which it begins as, in the direction of the kind of line."""
    pytest.importorskip("accelerate")
    adata = screen(interaction=1.0, n_drugs=2)
    recipe = mt.train.ResponseRecipe.of(
        max_steps=60, batch_size=8, set_size=24, hidden_size=32, n_layers=1, learning_rate=3e-3
    )
    adata = adata[adata.obs["line"].isin(["l0", "l1", "l2", "l3"])].copy()
    found = run(adata, recipe=recipe)
    value = found["value"].xs("pearson_control", level="score")
    assert value["set transformer"] > value["additive"] + 0.1
    assert adata.uns["predict_response"]["params"]["recipe"]["max_steps"] == 60


def test_how_much_a_gene_s_level_matters():
    """Treated lines come nearer to one another: a slope of -0.6 is found, and is ahead of the mean shift."""
    found = run(screen(slope=-0.6, n_drugs=2))
    value = found["value"].xs("pearson_control", level="score")
    assert value["linear shift"] > value["perturbation mean"] + 0.05
    assert value["linear shift"] > value["treated mean"]
    rng = np.random.default_rng(0)
    control = rng.normal(size=(8, 200))
    treated = 0.4 * control[:, None] + rng.normal(size=(1, 3, 200))
    assert own_slope(Known(control, treated, None)) == pytest.approx(-0.6)
    assert own_slope(Known(control, control[:, None] + rng.normal(size=(1, 3, 200)), None)) == pytest.approx(
        0
    )
    assert own_slope(Known(control[:1], treated[:1], None)) == 0


def test_nothing_to_predict():
    """Drugs that do nothing: no way correlates with what is seen, and no lead is found."""
    p_values, values = [], []
    for seed in range(6):
        found = run(screen(seed, effect=0.0, n_lines=4, n_drugs=2, n=24))
        r = found.xs("pearson_control", level="score")
        values.append(r.loc[["perturbation mean", "additive", "nearest neighbours", "linear shift"], "value"])
        # Errors are another matter: a way that predicts less is nearer to nothing.
        p_values += r["p_value"].dropna().tolist()
        assert (
            r.loc["shuffled labels", "low"] - 0.15
            < r.loc["perturbation mean", "value"]
            < r.loc["shuffled labels", "high"] + 0.15
        )
    assert np.abs(np.mean(values, axis=0)).max() < 0.15
    assert len(p_values) >= 6
    assert np.mean(np.array(p_values) < 0.05) <= 0.2


def test_unseen_perturbations_by_descriptors():
    """Effects are linear in two numbers: from these they are known, from other perturbations they are not."""
    rng = np.random.default_rng(1)
    loading = rng.normal(size=(2, 30))
    described = rng.normal(size=(12, 2))
    effects = described @ loading
    hidden = effects.copy()
    hidden[[2, 5]] = np.nan
    found = fill_unseen(hidden, described)
    assert np.corrcoef(found[[2, 5]].ravel(), effects[[2, 5]].ravel())[0, 1] > 0.99
    known = np.isfinite(hidden[:, 0])
    np.testing.assert_allclose(fill_unseen(hidden, None)[2], effects[known].mean(axis=0))
    adata = screen(n_lines=2, n_drugs=5, n=24)
    table = pd.DataFrame(np.eye(5), index=[f"d{i + 1}" for i in range(5)])
    found = run(adata, held_out="perturbation", descriptors=table)
    assert found["n_units"].xs("mse", level="score")["additive"] == 5
    with pytest.raises(ValueError, match="descriptors have no row for 'd5'"):
        run(adata, held_out="perturbation", descriptors=table.iloc[:4])


def test_by_hand():
    """Each way on small arrays."""
    rng = np.random.default_rng(0)
    control, treated = rng.normal(size=(3, 5)), rng.normal(size=(3, 2, 5))
    treated[2] = np.nan
    treated[1, 1] = np.nan
    known = Known(control, treated, None)
    weights = np.array([[0, 1, 0], [1, 0, 0], [0.25, 0.75, 0]])
    found = predict(known, control, np.repeat(weights[:, None], 2, axis=1))
    change = treated - control[:, None]
    np.testing.assert_allclose(found["no change"][2, 0], control[2])
    np.testing.assert_allclose(found["treated mean"][2, 0], treated[:2, 0].mean(axis=0))
    np.testing.assert_allclose(found["context mean"][0, 1], treated[0].mean(axis=0))
    assert np.isnan(found["context mean"][2]).all()
    np.testing.assert_allclose(found["perturbation mean"][2, 0], control[2] + change[:2, 0].mean(axis=0))
    np.testing.assert_allclose(
        found["nearest neighbours"][2, 0], control[2] + 0.25 * change[0, 0] + 0.75 * change[1, 0]
    )
    # Only the first context knows the second perturbation.
    np.testing.assert_allclose(found["nearest neighbours"][2, 1], control[2] + change[0, 1])
    np.testing.assert_allclose(
        found["additive"][1, 1], control[1] + change[0, 1] + change[1, 0] - change[0, 0]
    )
    np.testing.assert_allclose(additive_changes(known)[0, 0], change[0, 0])
    mean = control[:2].mean(axis=0)
    x, y = control[:2] - mean, change[:2, 0] - change[:2, 0].mean(axis=0)
    slope = (x * y).sum() / (x * x).sum()
    np.testing.assert_allclose(
        found["linear shift"][2, 0], control[2] + change[:2, 0].mean(axis=0) + slope * (control[2] - mean)
    )


def test_energy_distance():
    """0 for two samples of one distribution, twice the distance of two points."""
    rng = torch.Generator().manual_seed(0)
    a, b = torch.randn(64, 40, 3, generator=rng), torch.randn(64, 40, 3, generator=rng)
    assert abs(float(energy_distance(a, b).mean())) < 0.02
    assert float(energy_distance(a, b + 1).mean()) > 0.5
    points = torch.zeros(1, 2, 3)
    assert float(energy_distance(points, points + 1)) == pytest.approx(2 * 3**0.5)
    points.requires_grad_()
    energy_distance(points, points.detach() + 1).sum().backward()
    assert torch.isfinite(points.grad).all()


def test_what_is_held_out_is_not_learned_from():
    """Other treated cells in a context that is left out change no prediction for it."""
    adata = screen(n_lines=3, n_drugs=2, n=24)
    run(adata)
    before = adata.uns["predict_response"]
    other = adata.copy()
    mine = ((other.obs["line"] == "l1") & (other.obs["drug"] != "DMSO")).to_numpy()
    counts = other.X.toarray()
    counts[mine] = counts[mine][:, ::-1]
    other.X = csr_matrix(counts)
    run(other)
    after = other.uns["predict_response"]
    of = (before["populations"]["context"] == "l1").to_numpy()
    np.testing.assert_array_equal(after["means"][:, of], before["means"][:, of])
    assert not np.allclose(np.nan_to_num(after["means"][:, ~of]), np.nan_to_num(before["means"][:, ~of]))


def test_halves_of_donors_and_cells():
    adata = screen(n_lines=3, n_drugs=2, n=24)
    found = run(adata, donor_key="donor")
    assert adata.uns["predict_response"]["params"]["resampled"] == "donors"
    assert found.loc[("replicate half", "pearson_control"), "value"] > 0.5
    flattering = run(adata, held_out="cells")
    assert flattering.loc[("replicate half", "pearson_control"), "value"] > 0.5
    order = np.random.default_rng(0).permutation(adata.n_obs)
    mixed = run(adata[order].copy(), held_out="cells")
    np.testing.assert_allclose(mixed["value"], flattering["value"], rtol=1e-6)


def test_a_model_is_saved_and_read(tmp_path):
    pytest.importorskip("accelerate")
    adata = screen(n_lines=2, n_drugs=2, n=20)
    recipe = mt.train.ResponseRecipe.of(max_steps=2, batch_size=2, set_size=8, hidden_size=16, n_layers=1)
    columns = {
        "perturbation_key": "drug",
        "control": "DMSO",
        "groupby": "line",
        "use_rep": "Z",
        "recipe": recipe,
    }
    model = mt.train.response(adata, tmp_path / "run", **columns)
    assert sorted(path.name for path in (tmp_path / "run" / "response").iterdir()) == [
        "maxtoki.json",
        "response.json",
        "response.safetensors",
    ]
    controls = adata.obsm["Z"][(adata.obs["drug"] == "DMSO").to_numpy()]
    again = mt.models.load_response(tmp_path / "run" / "response").predict(controls, "d1")
    np.testing.assert_array_equal(again, model.predict(controls, "d1"))
    with pytest.raises(KeyError, match="does not know 'd9'"):
        model.predict(controls, "d9")
    with pytest.raises(ValueError, match="other settings|another run|different"):
        mt.train.response(adata[: adata.n_obs // 2].copy(), tmp_path / "run", **columns)
    weights = tmp_path / "run" / "response" / "response.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8] + b"12345678")
    with pytest.raises(ValueError, match="not the file that response.json speaks of"):
        mt.models.load_response(tmp_path / "run" / "response")
    with pytest.raises(FileNotFoundError, match="Did not find"):
        mt.models.load_response(tmp_path)


def test_refusals(tmp_path):
    adata = screen(n_lines=2, n_drugs=1, n=20)
    with pytest.raises(ValueError, match="held_out must be one of"):
        run(adata, held_out="drug")
    with pytest.raises(ValueError, match="needs a second perturbation"):
        run(adata, held_out="perturbation")
    with pytest.raises(ValueError, match="needs a second context"):
        run(adata[adata.obs["line"] == "l0"].copy())
    with pytest.raises(KeyError, match=r"obsm\['X_maxtoki'\]"):
        run(adata, use_rep="X_maxtoki")
    with pytest.raises(ValueError, match="There are 0 controls"):
        run(adata, control="vehicle")
    for settings, match in [
        ({"set_size": 1}, "set_size"),
        ({"hidden_size": 30}, "multiple of n_heads"),
        ({"optimizer": "muon"}, "too small"),
    ]:
        with pytest.raises(ValueError, match=match):
            mt.train.response(
                adata, tmp_path / "run", recipe=mt.train.ResponseRecipe.of(**settings), **SETTINGS
            )
    assert not (tmp_path / "run").exists()


def test_figure():
    adata = screen(n_lines=4, n_drugs=2, n=24)
    run(adata)
    figure = mt.pl.predict_response(adata)
    assert figure.axes[0].get_xlabel().startswith("correlation of the change")
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names[0] == "replicate half"
    assert "shuffled labels" in names
