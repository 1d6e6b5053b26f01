"""Widgets: what they show, what a click does, and what is left where nobody can click."""

import base64
import dataclasses
import sys

import ipywidgets
import nbformat
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

import maxtoki_toolkit as mt
from maxtoki_toolkit.widgets import _cell_tables as cells
from maxtoki_toolkit.widgets import _cell_views, _container, _head_tables, _head_views
from maxtoki_toolkit.widgets._container import PLOTLY, WIDGET

SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
WHERE = {"groupby": "cell_type", "donor_key": "donor_id"}


@pytest.fixture(scope="module")
def made():
    """Cells with a map, prompts and all results on heads, and a model of two layers that tells time."""
    adata = mt.datasets.aging_atlas(120, 10, n_genes=500)
    del adata.uns["truth"]
    mt.pp.map_genes(adata)
    vocab = mt.models.Vocabulary.from_anndata(adata)
    small = mt.models.build_model({**SHAPE, "max_position_embeddings": 64}, vocab)
    model = mt.models.extend_model(small, vocab.with_times(-900, 900), max_length=256)
    model = dataclasses.replace(model, time_head=mt.models.TimeHead("expectation"))
    mt.pp.rank_value_encode(adata, model)
    mt.pp.sample_prompts(adata, time_key="age_months", n_prompts=12, **WHERE)
    adata.obsm["X_map"] = np.random.default_rng(0).normal(size=(adata.n_obs, 2))
    mt.tl.attention(adata, model, n_cells=2, **WHERE)
    mt.tl.attention(adata, model, key="prompts")
    mt.tl.head_enrichment(adata, n_permutations=99, min_tokens=1)
    genes = adata.uns["attention"]["genes"]["gene"][:40].tolist()
    mt.tl.head_enrichment(
        adata, gene_set=genes, n_permutations=99, min_tokens=1, key_added="head_enrichment_mine"
    )
    mt.tl.head_segments(adata)
    mt.tl.head_profiles(adata, n_permutations=99)
    return adata, model


@pytest.fixture
def unattended(monkeypatch):
    for module in (_container,):
        monkeypatch.setattr(module, "is_attended", lambda: False)


def only(adata, *keys):
    """The cells with some of the results."""
    part = adata.copy()
    for key in list(part.uns):
        if _head_tables.kind_of(part.uns[key]) and key not in keys:
            del part.uns[key]
    return part


def menus(explorer):
    return dict(zip(("statistic", "of", "group", "name"), explorer.children[0].children, strict=True))


def parts(explorer):
    """Controls of the cell explorer by name."""
    top, card, figure, bottom = explorer.children
    color, name, prompt = top.children
    genes, buttons, text = bottom.children
    up, down, place, move, out, undo = buttons.children
    result, context = text.children
    names = "card figure color name prompt genes up down place move out undo result context"
    values = (card, figure, color, name, prompt, genes, up, down, place, move, out, undo, result, context)
    return dict(zip(names.split(), values, strict=True))


def click(trace, point):
    """What a front end does when a point is clicked."""
    for handler in trace._click_callbacks:
        handler(trace, go.FigureWidget and type("Points", (), {"point_inds": [point]})(), None)


class TestHeads:
    def test_values_are_those_of_the_results(self, made):
        adata, _ = made
        tables = _head_tables.head_tables(adata)
        grid = _head_tables.grid_of(tables, _head_tables.ENRICHMENT, "TF", "all")
        expected = mt.get.table(adata, "head_enrichment")
        np.testing.assert_allclose(grid["value"], expected["log2_ratio"])
        assert (grid["called"] == (expected["q_value"] < 0.05)).all()
        sink = _head_tables.grid_of(tables, _head_tables.SINK, "single cells", "B cell")
        found = mt.get.attention(adata).query("group == 'B cell' and part == 'first'")
        np.testing.assert_allclose(sink["value"], found["sink"])
        lapses = _head_tables.grid_of(tables, _head_tables.PART, "lapses", "all")
        np.testing.assert_allclose(
            lapses["value"], mt.get.table(adata, "head_segments").query("segment == 'lapses'")["log2_ratio"]
        )
        # A list of genes is called by its key.
        assert _head_views.choices(tables, _head_tables.ENRICHMENT) == ["TF", "mine"]
        assert len(tables.gene_sets["mine"]) > 10

    def test_genes_are_ranked_beyond_position(self, made):
        adata, _ = made
        tables = _head_tables.head_tables(adata)
        found = _head_tables.top_genes(adata, tables, 1, 0, "all", gene_set="TF", n=5)
        expected = mt.get.attention_genes(adata, layer=1, head=0).query("n_tokens >= 10")
        assert found["gene"].tolist() == expected["gene"][:5].tolist()
        np.testing.assert_allclose(2 ** found["log2_rate"], expected["rate"][:5])

    @pytest.mark.parametrize(
        ("keys", "missing"),
        [
            (["attention"], {"parts"}),
            (["prompt_attention"], set()),
            (["head_enrichment"], {"genes", "parts", "groups"}),
            (["head_segments"], {"genes", "groups"}),
            (["head_profiles"], {"genes", "parts"}),
        ],
    )
    def test_some_of_the_results_will_do(self, made, keys, missing):
        adata = only(made[0], *keys)
        tables = _head_tables.head_tables(adata)
        views = _head_views.head_views(adata, tables, _head_views.choose(tables))
        assert {name for name in ("genes", "parts", "groups") if not len(getattr(views, name))} == missing
        figure = _head_views.heads_figure(views)
        said = " ".join(note["text"] for note in figure["layout"]["annotations"])
        assert all(_head_views._MISSING[name] in said for name in missing)
        go.Figure(figure)  # raises where plotly does not know a property
        _head_views.heads_picture(views)

    def test_refusals(self, made):
        adata, model = made
        with pytest.raises(KeyError, match=r"Run mt\.tl\.attention"):
            mt.widgets.heads(only(adata))
        with pytest.raises(KeyError, match=r"no result on heads.*attention"):
            mt.widgets.heads(adata, key="rank_value_encode")
        with pytest.raises(TypeError, match="AnnData"):
            mt.widgets.heads(model)

    def test_menus_and_clicks(self, made):
        explorer = mt.widgets.heads(made[0])
        assert isinstance(explorer, ipywidgets.VBox)
        figure, chosen = explorer.children[1], menus(explorer)
        click(figure.data[0], (1, 0))
        assert chosen["name"].value == "L1H0"
        assert figure.layout.annotations[2].text == "L1H0: parts of prompts"
        assert figure.layout.shapes[0].y0 == 0.5
        before = figure.data[0].z
        chosen["statistic"].value = _head_tables.ENTROPY
        assert chosen["of"].options == ("single cells", "prompts")
        chosen["of"].value = "prompts"
        chosen["group"].value = "fibroblast"
        expected = mt.get.attention(made[0], key="prompt_attention").query("group == 'fibroblast'")
        expected = expected[expected["part"] == "query"]["relative_entropy"]
        np.testing.assert_allclose(np.ravel(figure.data[0].z), expected)
        assert not np.array_equal(figure.data[0].z, before)
        assert chosen["name"].value == "L1H0"
        # What the other statistic does not have falls back to what it has.
        chosen["statistic"].value = _head_tables.SPECIFICITY
        assert (chosen["of"].value, chosen["group"].value) == ("sink", "all")

    def test_what_was_shown_before_comes_back(self, made):
        """Only differences are sent: after a way round the figure is the one it was."""
        explorer = mt.widgets.heads(made[0])
        figure, chosen = explorer.children[1], menus(explorer)
        before = figure.to_dict()
        start = {name: menu.value for name, menu in chosen.items()}
        for statistic in (*chosen["statistic"].options, start["statistic"]):
            chosen["statistic"].value = statistic
        for name, value in start.items():
            chosen[name].value = value
        after = figure.to_dict()
        assert after["layout"] == before["layout"]
        for one, other in zip(before["data"], after["data"], strict=True):
            assert {**one, "uid": 0} == {**other, "uid": 0}


class TestCell:
    def test_ranked_genes(self, made):
        adata, _ = made
        name = adata.obs_names[3]
        genes = cells.ranked_genes(adata, name)
        ranks = mt.get.ranks(adata).loc[name].dropna().sort_values()
        assert genes["gene"].tolist() == ranks.index.tolist()

    def test_edits(self):
        genes = pd.DataFrame({"token": [5, 6, 7, 8], "edited": False})
        assert cells.move_gene(genes, 8, 1)["token"].tolist() == [8, 5, 6, 7]
        assert cells.move_gene(genes, 5, 3)["token"].tolist() == [6, 7, 5, 8]
        assert cells.move_gene(genes, 5, 99)["token"].tolist() == [6, 7, 8, 5]
        assert cells.move_gene(genes, 5, 3)["edited"].tolist() == [False, False, True, False]
        assert cells.move_gene(genes, 6, 2) is genes
        assert cells.delete_gene(genes, 6)["token"].tolist() == [5, 7, 8]
        with pytest.raises(ValueError, match="at least two"):
            cells.delete_gene(genes[:2], 5)
        assert cells.places_to_try(126) == [1, 2, 5, 10, 20, 50, 100, 126]

    def test_time_is_that_of_predict_timelapse(self, made):
        adata, model = made
        mt.tl.predict_timelapse(adata, model)
        for row in mt.get.table(adata, "timelapse").head(4).itertuples():
            prompt = cells.cell_prompts(adata, row.query, "prompts").loc[int(row.Index)]
            assert prompt["own"]
            assert prompt["lapse"] == row.lapse
            tokens = cells.ranked_genes(adata, row.query)["token"].to_numpy()
            assert cells.read_time(adata, model, prompt, [tokens])[0] == pytest.approx(
                row.predicted, rel=1e-4
            )

    def test_borrowed_contexts(self, made):
        """Of the same group, without the cell itself; the lapse is to this cell."""
        adata, _ = made
        queries = set(mt.get.table(adata, "prompts")["query"])
        grouped = set(mt.get.table(adata, "prompts")["group"])
        name = next(n for n in adata.obs_names if n not in queries and adata.obs["cell_type"][n] in grouped)
        found = cells.cell_prompts(adata, name, "prompts")
        assert len(found)
        assert not found["own"].any()
        for _, prompt in found.iterrows():
            names, _ = cells.context_of(prompt)
            assert name not in names
            assert (adata.obs.loc[names, "cell_type"] == adata.obs["cell_type"][name]).all()
            assert prompt["lapse"] == adata.obs["age_months"][name] - adata.obs["age_months"][names[-1]]

    def test_likelihood_is_that_of_log_likelihood(self, made):
        adata, model = made
        mt.tl.log_likelihood(adata, model)
        names = adata.obs_names[:3]
        tokens = [cells.ranked_genes(adata, name)["token"].to_numpy() for name in names]
        found = cells.read_likelihood(model, tokens)
        np.testing.assert_allclose(found, adata.obs["log_likelihood"][names], rtol=1e-5)

    def test_an_edit_that_the_model_does_not_read_changes_nothing(self, made):
        adata, model = made
        query = mt.get.table(adata, "prompts")["query"].iloc[0]
        prompt = cells.cell_prompts(adata, query, "prompts").iloc[0]
        genes = cells.ranked_genes(adata, query)
        n = cells.n_read(model)
        assert len(genes) > n + 3
        tokens = genes["token"]
        below = cells.move_gene(genes, tokens.iloc[-1], n + 2)
        before, after, tried = cells.read_versions(adata, model, prompt, genes, below, tokens[0])
        assert before == after
        assert tried["reading"][0] == before
        # One that is read does change it.
        moved = cells.move_gene(genes, tokens[n - 1], 1)
        before, after, _ = cells.read_versions(adata, model, prompt, genes, moved, None)
        assert before != after

    def test_map(self, made):
        adata, _ = made
        assert cells.embedding_key(adata, None) == "X_map"
        with pytest.raises(KeyError, match=r"X_none.*X_map"):
            cells.embedding_key(adata, "X_none")
        assert len(cells.cell_points(adata, "X_map", 50)) == 50
        points = cells.cell_points(adata, "X_map", 1000)
        for color, n in [("cell_type", adata.obs["cell_type"].nunique()), ("age_months", 1), (None, 1)]:
            traces = _cell_views.map_traces(adata, points, color)
            assert len(traces) == n
            assert sorted(sum((trace["customdata"] for trace in traces), [])) == list(range(adata.n_obs))


class TestExplore:
    def test_pick_edit_undo(self, made):
        adata, model = made
        explorer = mt.widgets.explore(adata, model)
        p = parts(explorer)
        start = p["result"].value
        assert "predicted lapse (months)" in start
        assert p["name"].value == mt.get.table(adata, "prompts")["query"].iloc[0]
        token = p["genes"].value
        p["place"].value = 40
        p["move"].click()
        assert p["genes"].value == token
        assert p["genes"].options[39][1] == token
        assert "(moved)" in p["genes"].options[39][0]
        assert "before your edits" in p["result"].value
        assert p["figure"].data[-1].x == (40,)
        p["up"].click()
        assert p["genes"].options[38][1] == token
        p["down"].click()
        p["out"].click()
        assert token not in [value for _, value in p["genes"].options]
        p["undo"].click()
        assert p["result"].value == start
        click(p["figure"].data[0], 1)
        row = p["figure"].data[0].customdata[1]
        assert p["name"].value == adata.obs_names[row]
        p["color"].value = "age_months"
        click(p["figure"].data[0], 7)
        assert p["name"].value == adata.obs_names[7]
        p["name"].value = "nobody"
        assert "no cell 'nobody'" in p["card"].value

    @pytest.mark.parametrize("why", ["no temporal training", "no prompts"])
    def test_without_time(self, made, why):
        adata, model = made
        if why == "no prompts":
            adata = adata.copy()
            del adata.uns["prompts"]
        else:
            model = dataclasses.replace(model, time_head=None)
        p = parts(mt.widgets.explore(adata, model, cell=adata.obs_names[5]))
        assert "log-likelihood of the cell" in p["result"].value
        assert "lapse" not in p["result"].value
        assert why in p["context"].value
        assert "<b>not</b> a time" in p["context"].value

    def test_refusals(self, made):
        adata, model = made
        with pytest.raises(KeyError, match="Did not find the cell 'nobody'"):
            mt.widgets.explore(adata, model, cell="nobody")
        with pytest.raises(KeyError, match="obs"):
            mt.widgets.explore(adata, model, color="nothing")
        with pytest.raises(ValueError, match="another vocabulary"):
            mt.widgets.explore(adata, mt.load_model("demo"))


def export(bundle):
    """A notebook with this output, as HTML."""
    from nbconvert import HTMLExporter

    output = nbformat.v4.new_output("display_data", data=bundle)
    cell = nbformat.v4.new_code_cell("widget", execution_count=1, outputs=[output])
    return HTMLExporter().from_notebook_node(nbformat.v4.new_notebook(cells=[cell]))[0]


class TestExport:
    def test_attended_output_has_a_picture_too(self, made):
        """As saved by JupyterLab, which by default keeps no state of widgets."""
        bundle = mt.widgets.heads(made[0])._repr_mimebundle_()
        assert {WIDGET, PLOTLY, "image/png", "text/plain"} <= set(bundle)
        page = export(bundle)
        assert bundle["image/png"][:60] in page
        assert bundle[WIDGET]["model_id"] not in page

    @pytest.mark.parametrize("name", ["heads", "explore"])
    def test_unattended(self, made, unattended, name):
        """Executed by nbconvert or papermill: no dead placeholder, and no megabytes of state."""
        explorer = mt.widgets.heads(made[0]) if name == "heads" else mt.widgets.explore(*made)
        bundle = explorer._repr_mimebundle_()
        assert WIDGET not in bundle
        assert not any(isinstance(w, go.FigureWidget) for w in explorer.children)
        assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
        assert len(str(bundle)) < 600_000
        assert bundle["image/png"][:60] in export(bundle)
        assert go.Figure(bundle[PLOTLY]).data

    def test_who_attends(self, monkeypatch):
        import IPython

        for stdin, attended in [(True, True), (False, False)]:
            kernel = type("Kernel", (), {"_allow_stdin": stdin})
            monkeypatch.setattr(
                IPython, "get_ipython", lambda kernel=kernel: type("Shell", (), {"kernel": kernel})
            )
            assert _container.is_attended() is attended


@pytest.mark.parametrize("name", ["ipywidgets", "plotly", "anywidget"])
def test_a_plain_installation_is_told_what_to_install(made, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"need {name}.*\.\[notebook\]"):
        mt.widgets.heads(made[0])


def test_signatures():
    """Keyword-only beyond AnnData and model, and an example in each."""
    import inspect

    for function in (mt.widgets.heads, mt.widgets.explore):
        first, *others = inspect.signature(function).parameters.values()
        assert first.annotation == "AnnData"
        assert all(p.kind is p.KEYWORD_ONLY for p in others if p.name != "model")
        assert inspect.signature(function).return_annotation == "VBox"
        text = inspect.getdoc(function)
        assert ">>> " in text
        assert all(f"\n{p.name}\n" in text for p in (first, *others))
