"""What benchmarks/mixing.py scores, on cells whose truth is known."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score

N_TYPES, N_EACH, N_DIMENSIONS = 3, 120, 8


@pytest.fixture(scope="module")
def script():
    path = Path(__file__).parents[1] / "benchmarks" / "mixing.py"
    spec = importlib.util.spec_from_file_location("mixing", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.N_DRAWS = 50
    return module


def cells(shift: float, *, types: float = 8.0):
    """Two studies of the same types; the second is moved by a constant."""
    rng = np.random.default_rng(0)
    cell_type = np.repeat(np.arange(N_TYPES), N_EACH)
    study = np.array(["sorted", "query"])[rng.permutation(len(cell_type)) % 2]
    X = rng.normal(size=(len(cell_type), N_DIMENSIONS))
    X[np.arange(len(X)), cell_type] += types
    X[study == "query", -1] += shift
    unit = [f"donor {i % 10}" if one == "query" else f"cell {i}" for i, one in enumerate(study)]
    return X, pd.DataFrame({"study": study, "cell_type": cell_type.astype(str), "unit": unit})


def test_same_cells_mix_at_chance(script):
    """The labels of the studies are drawn at random, so every score of mixing is what chance gives."""
    pytest.importorskip("harmonypy")
    found = script.mixing(*cells(0.0))
    assert found["lisi"] == pytest.approx(found["lisi_chance"], abs=0.05)
    assert 1.8 < found["lisi_chance"] <= 2
    assert found["other_study_low"] < 1 < found["other_study_high"]
    assert found["same_type"] > 0.95


def test_studies_apart_do_not_mix(script):
    """A constant shift keeps the types and parts the studies; Harmony undoes it."""
    pytest.importorskip("harmonypy")
    X, obs = cells(6.0)
    found = script.mixing(X, obs)
    assert found["lisi"] < 1.05
    assert found["other_study_high"] < 0.05
    assert found["same_type"] > 0.95
    undone = script.mixing(script.harmony(X, obs), obs)
    assert undone["other_study"] > 0.8
    assert undone["same_type"] > 0.95


def test_mixing_without_biology_shows(script):
    """Types that are nowhere to be seen: studies mix all the same, neighbours are of any type."""
    pytest.importorskip("harmonypy")
    found = script.mixing(*cells(0.0, types=0.0))
    assert found["other_study_low"] < 1 < found["other_study_high"]
    assert found["same_type"] == pytest.approx(1 / N_TYPES, abs=0.05)


def test_labels_carry_over(script):
    """Well parted types are told rightly, types that are not seen by chance, the commonest type for a third."""
    X, obs = cells(0.0)
    found = script.transfer(X, obs, script.CLASSIFIERS)
    assert min(found["knn_f1"], found["logistic_f1"], found["knn_accuracy"]) > 0.98
    unseen = script.transfer(*cells(0.0, types=0.0), script.CLASSIFIERS)
    assert unseen["knn_accuracy_low"] < 1 / N_TYPES + 0.05
    assert unseen["knn_accuracy"] == pytest.approx(1 / N_TYPES, abs=0.1)
    common = script.majority(obs)
    assert common["knn_accuracy"] == pytest.approx(1 / N_TYPES, abs=0.1)
    assert common["knn_f1"] == common["logistic_f1"] < 0.2


def test_types_that_the_query_lacks_are_wrong(script):
    true, guess = np.array([0, 0, 1, 1, 1, 1]), np.array([0, 2, 1, 1, 0, 3])
    expected = f1_score(true, guess, labels=[0, 1], average="macro")
    assert script.macro_f1(true, guess) == pytest.approx(expected)


def test_studies_are_balanced_type_by_type(script):
    study = np.repeat(["a", "b"], [50, 30])
    cell_type = np.array(["x"] * 40 + ["y"] * 10 + ["x"] * 5 + ["y"] * 20 + ["z"] * 5)
    rows = script.balanced(study, cell_type, np.random.default_rng(0))
    table = pd.crosstab(cell_type[rows], study[rows])
    assert table.to_dict("index") == {"x": {"a": 5, "b": 5}, "y": {"a": 10, "b": 10}}
    assert len(set(rows)) == len(rows)


def test_donors_are_drawn_whole(script):
    """Whoever is drawn comes with all of their cells, and no study grows at the other's cost."""
    unit = np.array(["d1"] * 3 + ["d2"] * 3 + list("uvwxyz"))
    study = np.repeat(["query", "sorted"], 6)
    for rows in script.draws(unit, study, np.random.default_rng(0)):
        assert (study[rows] == "query").sum() == 6
        assert all((unit[rows] == donor).sum() % 3 == 0 for donor in ("d1", "d2"))


def test_proteins_that_disagree_give_no_type(script):
    of_one_type = [{"CD5": 50, "CD4": 300}, {"CD5": 50, "CD8": 300}, {"CD19": 100}, {"CD14": 30, "CD4": 40}]
    of_none = [{"CD5": 50, "CD4": 300, "CD8": 300}, {"CD19": 100, "CD14": 30}, {"CD5": 50}]
    protein = pd.DataFrame([*of_one_type, *of_none], columns=list(script.GATES)).fillna(0)
    assert script.gated(protein).tolist() == [script.CD4, script.CD8, "B cell", "monocyte", "", "", ""]
