"""Reports: parameters are checked, what was made is on record, and the page needs nothing from elsewhere."""

import ast
import importlib.util
import inspect
import json
import re
import sys
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import anndata
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
import scipy.sparse

import maxtoki_toolkit as mt
from maxtoki_toolkit import cli
from maxtoki_toolkit._files import sha256
from maxtoki_toolkit.reports import _allow, _html, _jobs, _sources
from maxtoki_toolkit.reports._execute import prepare
from maxtoki_toolkit.reports._methods import methods
from maxtoki_toolkit.reports._parameters import check_parameters, read_parameters
from maxtoki_toolkit.reports._provenance import METADATA, as_text, checksum, markdown, provenance, same

# The function of that name hides the module.
run_all = sys.modules["maxtoki_toolkit.reports.run_all"]
ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
SMALL = """# %% [markdown]
# # A small notebook

# %% tags=["parameters"]
path: str = ""  # .h5ad with cells; "" for none
model: str = "demo"  # a model
share: float = 0.5  # share of something
n: int = 2  # how many
names: list = []  # names
more: dict = {  # more of it
    "a": 1
}
seed: int = 3  # seed
output: str = ""  # folder for the table

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import plotly.graph_objects as go
from IPython.display import HTML, display

if n < 0:
    raise ValueError("n is below zero")
Path(output).mkdir(parents=True)
Path(output, "n.txt").write_text(f"{n} {share} {names} {more} {Path(path).is_file()}")
plt.plot([0, 1], [0, n]);

# %%
for height in (1, 2):
    display(go.Figure(go.Bar(y=[height])))
display(HTML("<script src='https://example.org/x.js'></script><img src='https://example.org/y.png' alt='y'>"))
"""


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A notebook, and cells, in the folder that one is in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.py").write_text(SMALL)
    write_cells("cells.h5ad", 1)
    return "small.py"


def write_cells(path, value, **columns):
    entries = {key: entry if isinstance(entry, list) else [entry] * 3 for key, entry in columns.items()}
    obs = pd.DataFrame(entries, index=list("abc"))
    anndata.AnnData(np.full((3, 2), value, dtype=np.float32), obs=obs).write_h5ad(path)


class Resources(HTMLParser):
    """Addresses that a page loads, and its scripts."""

    def __init__(self, text):
        super().__init__()
        self.loaded, self.scripts, self.inside = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.inside = tag == "script"
        if tag in ("script", "img", "iframe", "link"):
            self.loaded += [value for key, value in attrs if key in ("src", "href")]

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.scripts.append(data)


def command(capsys, monkeypatch, *arguments):
    """Exit code, output and errors of `maxtoki`."""
    monkeypatch.setattr(sys, "argv", ["maxtoki", *map(str, arguments)])
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code or 0
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.slow  # three kernels
def test_report(small, capsys, monkeypatch):
    """From the command line: values arrive as their types, the record is right, the page stands alone, a batch goes on."""
    options = ["-p", "n=4", "-p", "share=1", "-p", "names=[A, B]", "-p", "path=cells.h5ad", "-o", "out"]
    code, out, err = command(capsys, monkeypatch, "report", small, *options)
    assert (code, err) == (0, "")
    assert "out/small.html" in out
    assert sorted(path.name for path in Path("out").iterdir()) == ["small.html", "small.ipynb", "small_files"]
    assert Path("out/small_files/n.txt").read_text() == "4 1 ['A', 'B'] {'a': 1} True"

    notebook = nbformat.read("out/small.ipynb", as_version=4)
    record = notebook.metadata[METADATA]
    assert record["parameters"]["n"] == 4
    assert record["parameters"]["more"] == {"a": 1}
    assert record["seed"] == 3
    assert record["files"]["path"] == {"name": "cells.h5ad", "sha256": sha256("cells.h5ad")}
    card = json.loads((ROOT / "maxtoki_toolkit/resources/demo/maxtoki.json").read_text())
    assert record["files"]["model"] == {"name": "demo", "sha256": card["weights_sha256"]}
    assert set(record["versions"]) == {
        *("python", "maxtoki_toolkit", "torch", "transformers", "anndata", "scanpy", "numpy")
    }
    assert record["versions"]["numpy"] == np.__version__
    assert 0 <= record["minutes"] < 10
    (cell,) = [cell for cell in notebook.cells if "provenance" in cell.metadata.get("tags", [])]
    for text in (sha256("cells.h5ad"), card["weights_sha256"], np.__version__, "\nn = 4\n"):
        assert text in cell.source
    assert str(Path.home()) not in json.dumps(notebook.metadata)
    assert "jupytext" not in notebook.metadata

    text = Path("out/small.html").read_text()
    page = Resources(text)
    assert not [address for address in page.loaded if not address.startswith("data:")]
    assert sum("plotly.js v" in script for script in page.scripts) == 1
    assert sum("Plotly.newPlot" in script and len(script) < 100_000 for script in page.scripts) == 2
    assert text.index("plotly.js v") < text.index("plotly-graph-div")
    assert any(address.startswith("data:image/png") for address in page.loaded)
    assert not re.search(r"cdnjs|unpkg|jsdelivr", "".join(s for s in page.scripts if len(s) < 100_000))

    # What is there already of the same cells and parameters stays; other cells are read.
    kept = {"n": 4, "share": 1.0, "names": ["A", "B"], "path": "cells.h5ad"}
    table = mt.reports.run_batch(small, "out", [kept])
    assert table["status"].tolist() == ["kept"]
    index = Path("out/index.html").read_text()
    assert 'href="small.html"' in index
    assert "data:image/png" in index
    assert not [address for address in Resources(index).loaded if not address.startswith("data:")]


def test_failure_leaves_what_there_is(small, capsys, monkeypatch):
    code, _, err = command(capsys, monkeypatch, "report", small, "-p", "n=-1", "-o", "out")
    assert code == 1
    assert "small failed in its code cell 3, ValueError: n is below zero" in err
    assert "out/small.partial.ipynb" in err
    assert "Traceback" not in err
    assert [path.name for path in Path("out").iterdir()] == ["small.partial.ipynb"]
    partial = nbformat.read("out/small.partial.ipynb", as_version=4)
    assert any(output.output_type == "error" for cell in partial.cells for output in cell.get("outputs", []))
    assert partial.metadata[METADATA]["parameters"]["n"] == -1


@pytest.fixture
def never_run(monkeypatch):
    """Reports without a kernel: what would be run is written down."""
    ran = []

    def execute(task):
        ran.append(task)
        task.output.mkdir(parents=True, exist_ok=True)
        task.source.notebook.metadata[METADATA] = {**task.record, "minutes": 0.5}
        if task.values.get("n") == -1:
            nbformat.write(task.source.notebook, task.partial)
            raise RuntimeError("small failed in its code cell 2, ValueError: n is below zero")
        nbformat.write(task.source.notebook, task.path)
        task.path.with_suffix(".html").write_text("")
        return task.path

    monkeypatch.setattr(_jobs, "execute", execute)
    return ran


def test_batch_goes_on(small, never_run):
    write_cells("others.h5ad", 2)
    files = ["cells.h5ad", "others.h5ad"]
    sets = [{"n": 1}, {"n": -1}]
    table = mt.reports.run_batch(small, "many", sets, on=files, seed=9)
    assert table["status"].tolist() == ["done", "failed", "done", "failed"]
    assert all("n is below zero" in why for why in table["why"][[1, 3]])
    assert [(str(task.output), task.values["path"], task.values["seed"]) for task in never_run] == [
        (f"many/{Path(path).stem}/{number}", path, 9) for path in files for number in (1, 2)
    ]
    index = Path("many/index.html").read_text()
    assert index.count('class="failed"') == 2
    assert 'href="cells/1/small.html"' in index

    # Another content under the same name; the same content under another; the code of the notebook.
    never_run.clear()
    write_cells("others.h5ad", 3)
    table = mt.reports.run_batch(small, "many", sets[:1] * 2, on=files, seed=9)
    # A report that is there is replaced where that is asked for; one that failed is not in the way.
    assert table["status"].tolist() == ["kept", "done", "kept as it was", "done"]
    assert "overwrite=True" in table["why"][2]
    never_run.clear()
    table = mt.reports.run_batch(small, "many", sets[:1] * 2, on=files, seed=9, overwrite=True)
    assert table["status"].tolist() == ["done"] * 4
    Path("cells.h5ad").rename("renamed.h5ad")
    again = {"n": 1, "path": "renamed.h5ad", "seed": 9}
    assert mt.reports.run_batch(small, "many/cells/1", [again])["status"].tolist() == ["kept"]
    other = [again | {"seed": 8}]
    assert mt.reports.run_batch(small, "many/cells/1", other)["status"].tolist() == ["kept as it was"]
    assert mt.reports.run_batch(small, "many/cells/1", other, overwrite=True)["status"].tolist() == ["done"]
    Path(small).write_text(SMALL.replace("[0, n]", "[0, 2 * n]"))
    assert mt.reports.run_batch(small, "many/cells/1", other)["status"].tolist() == ["kept as it was"]
    assert mt.reports.run_batch(small, "many/cells/1", other, overwrite=True)["status"].tolist() == ["done"]


def test_what_is_no_report_stays(small, never_run):
    """A notebook, page, index or folder of figures of the user's, of the name that ours would have."""
    for number, name in enumerate(
        ["small.ipynb", "small.html", "small.partial.ipynb", "small_files/a.png", "index.html"]
    ):
        theirs = Path(f"out{number}", name)
        theirs.parent.mkdir(parents=True)
        theirs.write_text("theirs")
        for overwrite in (False, True):
            if name == "index.html":
                with pytest.raises(
                    ValueError, match=r"holds index\.html, which maxtoki report did not write"
                ):
                    mt.reports.run_batch(small, f"out{number}", overwrite=overwrite)
            else:
                with pytest.raises(ValueError, match="no report"):
                    mt.reports.run(small, f"out{number}", overwrite=overwrite)
        assert theirs.read_text() == "theirs"
    assert not never_run


def test_batch_from_files(small, never_run, capsys, monkeypatch):
    Path("sets.yaml").write_text("- {n: 1}\n- {share: 1e-3}\n")
    code, out, _ = command(capsys, monkeypatch, "report", small, "-y", "sets.yaml", "-p", "seed=5", "-o", "b")
    assert code == 0
    assert [(task.values.get("n"), task.values["seed"]) for task in never_run] == [(1, 5), (None, 5)]
    assert never_run[1].values["share"] == 1e-3
    assert "small: done" in out
    Path("sets.yaml").write_text("- {n: -1}\n")
    assert command(capsys, monkeypatch, "report", small, "-y", "sets.yaml", "-o", "b")[0] == 1


def test_wrong_parameters(small):
    with pytest.raises(ValueError, match="has no parameter 'm'") as error:
        mt.reports.run(small, "out", m=1)
    for line in (
        "n: int = 2  # how many",
        'more: dict = {"a": 1}  # more of it',
        "names: list = []  # names",
    ):
        assert line in str(error.value)
    for values, message in [
        ({"n": 2.5}, r"n of small must be int \(how many\), and 2.5 is float"),
        ({"n": "many"}, "must be int .*'many' is str"),
        ({"n": True}, "must be int .*True is bool"),
        ({"names": "A"}, "names of small must be list .*'A' is str"),
        ({"more": [1]}, "must be dict .* is list"),
        ({"path": 3}, "path of small must be str .*3 is int"),
        ({"names": [{1, 2}]}, "nothing but text, numbers, lists"),
    ]:
        with pytest.raises(ValueError, match=message):
            mt.reports.run(small, "out", **values)
        with pytest.raises(ValueError, match=message):
            mt.reports.run_batch(small, "out", [{"n": 1}, values])
    assert not Path("out").exists()


def test_values_as_the_types_of_the_notebook(small):
    known = read_parameters(_sources.read_source(small).notebook)
    given = {"n": np.int64(4), "share": 1, "names": ("a",), "path": Path("x"), "more": '{"b": [1]}'}
    expected = {"n": 4, "share": 1, "names": ["a"], "path": "x", "more": {"b": [1]}}
    assert check_parameters("small", known, given) == expected
    assert check_parameters("small", known, {"share": "1e-3", "n": "unknown"}) == {
        "share": 1e-3,
        "n": "unknown",
    }
    assert known["more"].help == "more of it"


def test_wrong_notebooks(small, tmp_path):
    for name, error, message in [
        ("fig1_timelaps", ValueError, "Did you mean 'fig1_timelapse'"),
        ("none.py", FileNotFoundError, "Did not find the notebook none.py"),
        ("bad.ipynb", ValueError, "bad.ipynb is no notebook"),
    ]:
        Path("bad.ipynb").write_text("not json")
        with pytest.raises(error, match=message):
            mt.reports.run(name, "out")
    with pytest.raises(ValueError, match="cells.h5ad is a file"):
        mt.reports.run(small, "cells.h5ad")
    nbformat.write(_sources.read_source(small).notebook, "small.ipynb")
    with pytest.raises(ValueError, match="would replace the notebook"):
        mt.reports.run("small.ipynb", ".")
    with pytest.raises(FileNotFoundError, match=r"Did not find none\.h5ad"):
        mt.reports.run_batch(small, "out", on=["none.h5ad"])
    with pytest.raises(ValueError, match="Sets of parameters are a list"):
        mt.reports.run_batch(small, "out", [])


@pytest.mark.filterwarnings("ignore:.*zarr")
def test_counts_are_looked_at_first(tmp_path):
    """Log-normalised cells are refused before anything runs, and the layer with the counts is not."""
    obs = pd.DataFrame({"donor_id": ["d", "e"] * 20}, index=[f"cell {i}" for i in range(40)])
    cells = anndata.AnnData(np.random.default_rng(0).poisson(2, (40, 30)).astype(np.float32), obs=obs)
    cells.layers["counts"] = cells.X.copy()
    cells.X = np.log1p(cells.X)
    for kind in (np.asarray, scipy.sparse.csr_matrix):
        cells.X, cells.layers["counts"] = kind(cells.X), kind(cells.layers["counts"])
        for name in ("mine.h5ad", "mine.zarr"):
            path = str(tmp_path / name)
            cells.write_h5ad(path) if name.endswith("h5ad") else cells.write_zarr(path)
            with pytest.raises(ValueError, match=r"mine.*looks log-normalised.*in \.X; the parameter layer"):
                prepare("fig1_scaling_law", tmp_path / "out", {"path": path})
            prepare("fig1_scaling_law", tmp_path / "out", {"path": path, "layer": "counts"})


def test_groups_that_are_not_there(tmp_path):
    """A list of groups is held against the column that it is of; without one, all groups are used."""
    known = read_parameters(_sources.read_source("fig6_perturbation_screen").notebook)
    obs = pd.DataFrame({"kind": ["B cell", "T cell"]})
    given = {"groupby": ["kind"], "donor_key": "kind", "time_key": "kind", "covariates": [], "model": "mine"}
    cells = {"kind": ["T cells"]}
    why = _allow._why_not("fig6_perturbation_screen", known, {**given, "cells": cells}, obs, [])
    assert "no cell has 'T cells' in .obs['kind'] (cells), which has 'B cell', 'T cell'" in why
    assert "(cells)" not in _allow._why_not("fig6_perturbation_screen", known, given, obs, [])


def test_all_says_why_not(tmp_path, capsys, monkeypatch, never_run):
    monkeypatch.chdir(tmp_path)
    several = {"donor_id": ["d", "e", "f"], "age_months": [3, 4, 5]}
    write_cells("mine.h5ad", 1, cell_type="B cell", sex="male", **several)
    table = mt.reports.run_all("mine.h5ad", "out", donor_key="donor_id").set_index("notebook")
    assert len(table) == len(_sources.notebook_paths())
    for name in _allow.READS_TIME:
        assert table.loc[name, "status"] == "not possible"
        assert "demo models is that of a simulation: give model" in table.loc[name, "why"]
    assert "or train_steps to teach it" in table.loc["fig5_age_acceleration", "why"]
    assert "hold conditions, controls among them (condition_key)" in table.loc["fig5_age_acceleration", "why"]
    # Times and donors are taken from the file, and cell types of the atlas are not asked for.
    assert table.loc["train_stage2_temporal", "status"] == "done"
    assert not table["why"].str.contains("cardiomyocyte|natural killer|Hours").any()
    assert table.loc["cellxpert_mcmc_steering", "status"] == "not possible"
    assert table.loc["fig1_scaling_law", "status"] == "done"
    # The known doublets of the atlas are not asked of other cells.
    assert table.loc["doublet_detector_training", "status"] == "done"
    (task,) = [task for task in never_run if task.source.name == "doublet_detector_training"]
    assert task.values["truth_key"] == ""
    assert task.values["path"] == "mine.h5ad"
    index = (tmp_path / "out" / "index.html").read_text()
    assert "columns of .obs: -p &#x27;start=" in index
    assert index.count("<tr><td>") == len(table)

    paths = _sources.notebook_paths()
    few = ("doublet_detector_training", "fig1_timelapse", "fig5_age_acceleration")
    monkeypatch.setattr(run_all, "notebook_paths", lambda: {name: paths[name] for name in few})
    own = {"model": "runs/mine", "condition_key": "sex", "control": "female", "layer": "counts"}
    table = mt.reports.run_all("mine.h5ad", "own", **own).set_index("notebook")
    why = table.loc["fig5_age_acceleration", "why"]
    assert "no cell has 'female' in .obs['sex'] (condition_key), which has 'male'" in why
    assert "no layer 'counts'" in why
    assert "batch" not in why
    assert "'natural killer cell'" not in table.loc["fig1_timelapse", "why"]
    write_cells("half.h5ad", 1, cell_type="B cell", sex="male", donor_id="d", age_months=[3.5, 4, 5])
    table = mt.reports.run_all("half.h5ad", "own", **own).set_index("notebook")
    assert "no whole numbers (first: 3.5)" in table.loc["fig5_age_acceleration", "why"]
    # One value may be of the type of one notebook and not of another.
    options = ["--on", "mine.h5ad", "-p", "n_cells=[300, 300]", "-o", "typed"]
    code, out, _ = command(capsys, monkeypatch, "report", "all", *options)
    assert code == 1  # none was made
    assert "doublet_detector_training: not possible. n_cells of doublet_detector_training must be int" in out
    assert "typed/index.html" in out
    with pytest.raises(ValueError, match="No notebook has a parameter 'sed'"):
        mt.reports.run_all("mine.h5ad", "out", sed=1)


def test_all_without_data(tmp_path, monkeypatch, never_run):
    paths = dict(list(_sources.notebook_paths().items())[:2])
    monkeypatch.setattr(run_all, "notebook_paths", lambda: paths)
    table = mt.reports.run_all(None, tmp_path)
    assert table["status"].tolist() == ["done", "done"]
    assert [task.source.name for task in never_run] == list(paths)
    assert all(set(task.values) == {"output"} for task in never_run)
    assert set(mt.reports.run_all(None, tmp_path)["status"]) == {"kept"}


def test_catalogue(capsys, monkeypatch):
    table = mt.reports.catalogue()
    sources = {path.stem for path in (ROOT / "notebooks").glob("*.py")}
    assert set(table["notebook"]) == sources
    assert table["title"].str.len().min() > 10
    assert set(_allow.READS_TIME) <= sources
    code, out, _ = command(capsys, monkeypatch, "report", "--list")
    assert code == 0
    assert all(name in out for name in sources)
    code, out, _ = command(capsys, monkeypatch, "report", "fig4_attention_heads", "--help-notebook")
    assert code == 0
    assert 'gene_set: dict = {"TF": "TF"}\n    a name, and symbols' in out
    assert command(capsys, monkeypatch, "report")[0] == 1
    assert command(capsys, monkeypatch, "report", "fig1_timelapse", "-p", "seed")[0] == 1


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.py")), ids=lambda path: path.stem)
def test_notebooks_that_read_time_are_known(path):
    """A notebook that asks a model for time, and trains none unless it is told to, is refused with the demo models on other cells."""
    text = path.read_text()
    tree = ast.parse(text)
    used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    asks = {
        *("mt.tl.predict_timelapse", "mt.tl.age_acceleration", "mt.tl.ablate_prompt", "mt.tl.ablate_heads"),
        *("mt.tl.patch", "mt.tl.generate", "mt.tl.head_segments", "mt.tl.perturb"),
        *("mt.tl.feature_effects", "mt.tl.feature_mediators"),
    }
    trains = {"mt.train.temporal"}
    assert (path.stem in _allow.READS_TIME) == (
        bool(used & asks) and ("train_steps" in text or not used & trains)
    )


@pytest.mark.parametrize(
    "path", sorted((ROOT / "notebooks/presets").glob("*.yaml")), ids=lambda path: path.stem
)
def test_presets_are_of_the_right_types(path):
    name = path.stem.split(".")[0]
    known = read_parameters(_sources.read_source(name).notebook)
    assert check_parameters(name, known, mt.reports.preset(path.stem))


def test_what_is_the_same(small):
    """A record differs by what changes results, and by nothing else."""
    source = _sources.read_source(small)
    known = read_parameters(source.notebook)

    def record(**values):
        return provenance("small", source.notebook, known, values)

    assert same(record(), record(output="elsewhere", n=2))
    assert same(record(path="cells.h5ad"), record(path=str(Path("cells.h5ad").resolve())))
    assert not same(record(), record(path="cells.h5ad"))
    assert not same(record(), record(more={"a": 2}))
    assert not same(record(), record(model="maxtoki-217m"))


def test_checksums(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    assert checksum("model", str(folder)) == sha256(folder / "model.safetensors")
    assert checksum("model", "maxtoki-217m").startswith("9da1fbf8")
    assert checksum("model", "somebody/model") == "unknown"
    store = tmp_path / "cells.zarr"
    (store / "X").mkdir(parents=True)
    (store / "X" / "0").write_bytes(b"1")
    before = checksum("path", str(store))
    (store / "X" / "0").write_bytes(b"22")
    assert len(before) == 64
    assert checksum("path", str(store)) != before
    assert checksum("control", "control") == ""
    assert checksum("text", "x" * 5000) == ""


def test_page_without_widgets_and_copies():
    """Widgets leave their text, and figures with a copy of plotly.js of their own share one."""
    import plotly.graph_objects as go

    figure = go.Figure(go.Bar(y=[1]))
    outputs = [
        nbformat.v4.new_output("display_data", {_html.WIDGET: {"model_id": "1"}, "text/plain": "a slider"}),
        nbformat.v4.new_output("display_data", {"text/html": figure.to_html(full_html=False)}),
        nbformat.v4.new_output("display_data", {_html.PLOTLY: json.loads(figure.to_json())}),
    ]
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("1", outputs=outputs)], metadata={"widgets": {}}
    )
    page = Resources(text := _html.to_html(notebook, title="<b>", folder=ROOT))
    assert "a slider" in text
    assert "widget-view" not in text
    assert sum("plotly.js v" in script for script in page.scripts) == 1
    assert text.count('class="plotly-graph-div"') == 2
    assert "&lt;b&gt;" in text
    assert _html.WIDGET in notebook.cells[0].outputs[0].data


HOSTILE = "x<img src=x onerror=alert(1)>`[a](javascript:b)`|$.csv"


class Tags(HTMLParser):
    """Tags of a page that could run something."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if "onerror" in attrs or "javascript" in (attrs.get("href") or ""):
            self.found.append(tag)


def test_text_of_a_user_is_no_html(small):
    """Names of files, values of parameters and titles are shown as they are."""
    Path(HOSTILE).write_text("a")
    source = _sources.read_source(small)
    known = read_parameters(source.notebook)
    record = provenance("small", source.notebook, known, {"path": HOSTILE, "names": [HOSTILE]})
    assert record["files"]["path"]["name"] == HOSTILE
    cells = [nbformat.v4.new_markdown_cell(text) for text in (markdown(record), as_text(HOSTILE))]
    page = _html.to_html(nbformat.v4.new_notebook(cells=cells), title=HOSTILE, folder=ROOT)
    assert not Tags(page).found
    assert page.count(escape(HOSTILE, quote=False)) >= 2


def test_the_answer_comes_first():
    """Under the title: what tagged cells print, then draw; code is folded."""
    image = nbformat.v4.new_output("display_data", {"image/png": "aGVsbG8=", "text/plain": "figure"})
    words = nbformat.v4.new_output("stream", name="stdout", text="older than controls")
    cells = [
        nbformat.v4.new_markdown_cell("# Is it old?\n\nA long introduction."),
        nbformat.v4.new_code_cell("draw()", outputs=[image], metadata={"tags": ["answer"]}),
        nbformat.v4.new_code_cell("say()", outputs=[words], metadata={"tags": ["answer"]}),
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    text = _html.to_html(notebook, title="t", folder=ROOT)
    body = text[text.index("<body") :]
    places = [
        body.index(part) for part in ("Is it old?", "older than controls", "aGVsbG8=", "A long introduction")
    ]
    assert places == sorted(places)
    assert body.count("<details><summary>code</summary>") == 2
    assert [cell.source for cell in notebook.cells] == [cell.source for cell in cells]


@pytest.mark.parametrize("name", sorted(_sources.notebook_paths()))
def test_pages_have_an_answer_methods_and_tables(name):
    """Each notebook says which cells answer its question, how that was done with which works, and writes tables."""
    source = _sources.read_source(name)
    code = [cell for cell in source.notebook.cells if cell.cell_type == "code"]
    assert any("answer" in cell.metadata.get("tags", []) for cell in code)
    text = "\n".join(cell.source for cell in code)
    assert "to_csv(" in text or "mt.reports.saver(" in text
    known = read_parameters(source.notebook)
    paragraph = methods(provenance(name, source.notebook, known, {}))
    assert paragraph.startswith("## Methods")
    assert "{" not in paragraph
    assert "1. MaxToki" in paragraph
    assert "with maxtoki_toolkit " in paragraph
    assert methods(provenance("small", source.notebook, known, {})) == ""


def test_missing_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "papermill", None)
    with pytest.raises(ImportError, match=r'papermill, of the extra "notebook": pip install'):
        mt.reports.run("fig1_timelapse", "out")


def test_notebooks_are_found_in_an_installation(tmp_path, monkeypatch):
    """Inside the package first, beside it in a checkout."""
    monkeypatch.setattr(_sources, "files", lambda name: tmp_path / "site" / name)
    with pytest.raises(FileNotFoundError, match="Install maxtoki_toolkit again"):
        _sources.notebook_paths()
    (tmp_path / "site" / "notebooks").mkdir(parents=True)
    assert _sources._folder() == tmp_path / "site" / "notebooks"
    (tmp_path / "site" / "maxtoki_toolkit" / "notebooks").mkdir(parents=True)
    assert _sources._folder() == tmp_path / "site" / "maxtoki_toolkit" / "notebooks"


def test_wheel_has_the_sources(tmp_path):
    """All of them, without the executed notebooks; an editable installation has them beside it."""
    pytest.importorskip("hatchling", reason="needs hatchling, which builds the package")
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    hook = module.NotebookSources(str(ROOT), {}, None, None, str(tmp_path), "wheel")
    for version, expected in [
        ("standard", {*_sources.notebook_paths(), *_sources.preset_paths()}),
        ("editable", set()),
    ]:
        hook.initialize(version, data := {"force_include": {}})
        found = {Path(path).stem for path in data["force_include"].values()}
        assert found == expected
        assert all(path.startswith("maxtoki_toolkit/notebooks/") for path in data["force_include"].values())


@pytest.mark.parametrize("function", [getattr(mt.reports, name) for name in mt.reports.__all__] + [mt.doctor])
def test_docstring(function):
    """Every parameter is described, in order, and there is an example."""
    text = inspect.getdoc(function)
    assert ">>> " in text
    expected = list(inspect.signature(function).parameters)
    section = re.search(r"Parameters\n-+\n(.*?)\n\n[A-Z]\w+\n-+\n", text, re.DOTALL)
    lines = section[1].splitlines() if section else []
    assert [line.strip("*") for line in lines if line and not line.startswith(" ")] == expected


def test_saver_writes_figures_and_tables(tmp_path):
    """And nothing where a notebook has no folder."""
    figure, table = plt.figure(), pd.DataFrame({"group": ["fibroblast"], "years": [4.5]})
    save = mt.reports.saver(tmp_path / "new")
    save(figure, "ages")
    save(table, "ages")
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"ages.png", "ages.pdf", "ages.csv"}
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "new" / "ages.csv"), table)
    nothing = mt.reports.saver("")
    nothing(figure, "ages")
    nothing(table, "ages")
