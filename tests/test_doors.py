"""Arguments are checked before anything is done, and errors of libraries are told with file and step."""

import inspect
import pickle
import time
import timeit
import warnings

import h5py
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import maxtoki_toolkit as mt
from maxtoki_toolkit import _doors, cli
from maxtoki_toolkit._files import read_yaml
from maxtoki_toolkit._names import closest
from maxtoki_toolkit.models.load import read_card
from maxtoki_toolkit.reports._sources import read_preset
from maxtoki_toolkit.train.temporal import _prepare


@pytest.fixture
def adata():
    obs = pd.DataFrame({"donor_id": ["a", "b", "b"], "age_months": [400, 500, 600]}, index=["c1", "c2", "c3"])
    return AnnData(np.ones((3, 2), dtype=np.float32), obs=obs, layers={"counts": np.ones((3, 2))})


PROMPTS = {"time_key": "age_months", "groupby": []}


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"n_prompts": "many"}, TypeError, "n_prompts must be a whole number, got 'many'"),
        ({"n_prompts": 2.5}, TypeError, "n_prompts must be a whole number, got 2.5"),
        ({"n_prompts": True}, TypeError, "n_prompts must be a whole number, got True"),
        ({"context_size": (1, 2, 3)}, TypeError, "context_size must be a whole number or 2 values"),
        ({"groupby": 3}, TypeError, "groupby must be a text or a list of names or None, got 3"),
        ({"task": None}, TypeError, "task must be a text, got None"),
        ({"n_prompts": 0}, ValueError, "n_prompts must be at least 1, got 0"),
        ({"rng": -1}, ValueError, "rng must be at least 0, got -1"),
        ({"donor_key": "donor"}, KeyError, r"\['donor'\]. Available columns: .* Did you mean 'donor_id'\?"),
        ({"groupby": ["donor_id", "Age_Months"]}, KeyError, r"Did you mean 'age_months'\?"),
        ({"contexts": [True]}, ValueError, r"one boolean a cell \(3\), got bool of shape \(1,\)"),
        ({"contexts": "helt_out"}, KeyError, "Did not find .obs\\['helt_out'\\]"),
        ({"time_key": ""}, ValueError, "time_key must be a name, got ''. Leave it out"),
        ({"key_added": ""}, ValueError, "key_added must be a name, got ''. Leave it out"),
        ({"n_prompt": 3}, TypeError, "has no argument 'n_prompt'. Did you mean 'n_prompts'"),
    ],
)
def test_arguments_are_refused_before_anything_is_done(adata, given, error, message):
    with pytest.raises(error, match=message):
        mt.pp.sample_prompts(adata, **PROMPTS | given)
    assert not adata.uns


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"forward": "no"}, TypeError, "forward must be True or False, got 'no'"),
        ({"balance": 3.0}, ValueError, "balance must be between 0 and 1, got 3.0"),
        ({"balance": np.nan}, ValueError, "balance must be a finite number, got nan"),
    ],
)
def test_groups_of_settings_are_checked_when_they_are_made(given, error, message):
    with pytest.raises(error, match=message):
        mt.pp.PromptSampling(**given)


def test_missing_and_misplaced_arguments(adata):
    with pytest.raises(TypeError, match="mt.pp.match_queries needs 'queries'"):
        mt.pp.match_queries(adata)
    with pytest.raises(TypeError, match="mt.pp.sample_prompts: too many positional arguments.* by name"):
        mt.pp.sample_prompts(adata, "age_months")


def test_layers_are_looked_for_first(adata):
    with pytest.raises(
        KeyError, match=r"Did not find .layers\['count'\]. Available layers: .* Did you mean 'counts'\?"
    ):
        mt.pp.simulate_doublets(adata, layer="count")


def test_cells_are_some_and_told_apart_by_their_names(adata):
    with pytest.raises(ValueError, match=r"adata has no cells \(0 x 2\)"):
        mt.pp.sample_prompts(adata[:0], **PROMPTS)
    adata.obs_names = ["c"] * 3
    with pytest.raises(ValueError, match="2 cell names are not unique"):
        mt.tl.expression_age_slope(adata, time_key="age_months", donor_key="donor_id")


def test_units_of_time_are_those_that_are_known():
    function = inspect.unwrap(mt.tl.expression_age_slope)
    _doors.check(function, {"time_unit": "weeks"})
    with pytest.raises(
        ValueError, match=r"one of years, months, .*, got 'monthsx'\. Did you mean 'months'\?"
    ):
        _doors.check(function, {"time_unit": "monthsx"})


def test_stretching_is_checked_though_the_model_needs_none():
    demo = mt.load_model("demo", device="cpu")
    with pytest.raises(ValueError, match="no RoPE scaling 'llama3x'; choose from"):
        _prepare(demo, None, mt.train.Adaptation(rope="llama3x"), 0)


def test_one_name_has_one_range_unless_it_says_so():
    _doors.check(inspect.unwrap(mt.pp.holdout_intervals), {"n_permutations": 0})
    with pytest.raises(ValueError, match="alpha must be between 0 and 1"):
        _doors.check(inspect.unwrap(mt.tl.perturbation_concordance), {"alpha": 16.0})
    with pytest.raises(TypeError, match="source must be a text or a path, got 3"):
        mt.load_model(3)


@pytest.mark.parametrize("space", ["pp", "tl", "pl", "get", "train", "datasets", "reports"])
def test_every_public_function_has_a_door(space):
    """It can be looked into and pickled like the function, and the types of all parameters are known."""
    for name in getattr(mt, space).__all__:
        function = getattr(getattr(mt, space), name)
        if not inspect.isfunction(function):
            continue
        inner = inspect.unwrap(function)
        assert inner is not function, name
        assert inspect.getdoc(function) == inspect.getdoc(inner)
        assert inspect.signature(function) == inspect.signature(inner)
        assert pickle.loads(pickle.dumps(function)) is function
        assert _doors._kinds(inner) is not None


def test_a_door_costs_nothing_to_speak_of(adata):
    given = {"adata": adata, **PROMPTS, "n_prompts": 3, "balance": 0.1, "contexts": None, "rng": 0}
    function = inspect.unwrap(mt.pp.sample_prompts)
    _doors.check(function, given)
    clock = timeit.Timer(lambda: _doors.check(function, given), timer=time.process_time)
    assert min(clock.repeat(5, 100)) / 100 < 0.002


def test_each_call_warns_anew_and_at_the_callers_line():
    adata = mt.datasets.aging_atlas(60, 10, n_genes=500)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            mt.pp.hold_out(adata)
    assert ["donor_key='donor_id'" in str(warning.message) for warning in caught] == [True] * 3
    assert {warning.filename for warning in caught} == {__file__}


def test_closest_names_what_may_have_been_meant():
    assert closest("Donor", ["cell_type", "donor_id"]) == " Did you mean 'donor_id'?"
    assert closest("xyz", ["cell_type", "donor_id"]) == ""


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("text", r"\.uns\['timelapse'\] is not what mt.tl.predict_timelapse"),
        ({}, "is not what mt.tl.predict_timelapse"),
        ({"params": {}}, "lacks 'prompts', which mt.tl.predict_timelapse"),
        ({"params": {}, "prompts": pd.DataFrame()}, "is not what mt.tl.predict_timelapse"),
        ({"params": {}, "prompts": pd.DataFrame({"a": []})}, r"\.uns\['timelapse'\] have no rows. Run mt.tl"),
        ({"params": {}, "prompts": pd.DataFrame({"a": [1]})}, "lacks 'unit', which mt.tl.predict_timelapse"),
    ],
)
def test_results_that_are_none_are_told(adata, result, message):
    adata.uns["timelapse"] = result
    with pytest.raises((KeyError, ValueError), match=message):
        mt.get.table(adata, "timelapse")
    with pytest.raises(KeyError, match=r"Did you mean 'timelapse'\?"):
        mt.get.table(adata, "timelaps", "prompts")


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (
            {"lapse": [], "predicted": []},
            r"\.uns\['timelapse'\]\['prompts'\] has no rows \(.*Run the analysis again",
        ),
        ({"lapse": [1.0]}, r"tables of \.uns\['timelapse'\] lack .*'predicted'.* \(KeyError\)"),
    ],
)
def test_figures_say_what_a_table_lacks(adata, prompts, message):
    scores = pd.DataFrame({"group": ["all"], "predictor": ["MaxToki"]})
    adata.uns["timelapse"] = {
        "params": {"unit": "months"},
        "prompts": pd.DataFrame(prompts),
        "scores": scores,
    }
    with pytest.raises(ValueError, match=message):
        mt.pl.timelapse_scatter(adata)


@pytest.fixture
def broken(tmp_path):
    """An h5ad whose names of cells are gone."""
    path = tmp_path / "cells.h5ad"
    AnnData(np.ones((3, 2), dtype=np.float32)).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        del file["obs/_index"]
    return path


def test_errors_of_readers_name_the_file_and_the_step(broken, tmp_path):
    with pytest.raises(ValueError, match=r"cells.h5ad cannot be read .*damaged") as raised:
        mt.pp.encode_file(broken, tmp_path / "out.h5ad", mt.load_model("demo", device="cpu"))
    assert "\n" not in str(raised.value)
    assert raised.value.__cause__ is not None
    assert not (tmp_path / "out.h5ad").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [("X/data", "cells.h5ad.* NaN or infinite"), ("X/indices", "cells.h5ad is damaged: .* no whole numbers")],
)
def test_our_own_errors_name_the_file(tmp_path, values, message):
    path = tmp_path / "cells.h5ad"
    mt.datasets.aging_atlas(100, 10, n_genes=500).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        kept = file[values][...].astype(float)
        del file[values]
        file[values] = kept + (np.nan if values == "X/data" else 0.5)
    with pytest.raises(ValueError, match=message) as raised:
        mt.pp.encode_file(path, tmp_path / "out.h5ad", mt.load_model("demo", device="cpu"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["sets.yaml", "settings.yaml"])
def test_parameters_that_are_no_yaml_are_told_in_one_line(tmp_path, name):
    path = tmp_path / name
    path.write_text('cells: "a\noutput: b\n')
    with pytest.raises(ValueError, match=rf"{name} is not valid YAML: .*line \d") as raised:
        read_preset(path) if name == "sets.yaml" else read_yaml(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("card", [None, "[1]", '{"cell_length": "long"}'])
def test_cards_that_are_none_are_told(tmp_path, card):
    path = tmp_path / "maxtoki.json"
    path.mkdir() if card is None else path.write_text(card)
    with pytest.raises(ValueError, match="maxtoki.json .*Restore the folder"):
        read_card(tmp_path)


def run(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["maxtoki", *map(str, words)])
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    cli.main()


def test_commands_end_in_one_line(monkeypatch, capsys, broken, tmp_path):
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "encode", broken, "-o", tmp_path / "out")
    assert stop.value.code == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("maxtoki: ")
    assert "cells.h5ad" in line


def test_empty_options_are_refused(monkeypatch, capsys, tmp_path):
    with pytest.raises(SystemExit):
        run(monkeypatch, "encode", "cells.h5ad", "-o", tmp_path / "out", "--layer", "")
    assert "maxtoki: --layer is followed by an empty text" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [AttributeError("no x"), RuntimeError("CUDA"), IndexError("4"), MemoryError()]
)
def test_any_error_ends_in_one_line_with_its_step(monkeypatch, capsys, error):
    """Also those that nobody expects; the traceback is there for the asking."""

    def available(kind=None):
        raise error

    monkeypatch.setattr("maxtoki_toolkit._doctor.doctor", available)
    with pytest.raises(SystemExit):
        run(monkeypatch, "doctor", "--json")
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("maxtoki: doctor failed")
    assert type(error).__name__ in line
    assert "--debug" in line
    with pytest.raises(type(error)):
        run(monkeypatch, "doctor", "--json", "--debug")
    monkeypatch.setattr(mt.settings, "debug", True)
    with pytest.raises(type(error)):
        run(monkeypatch, "doctor", "--json")
