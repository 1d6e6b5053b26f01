"""Features: the data behind their page and widget, the page in a browser, and what is left where nobody can click."""

import base64
import copy
import gzip
import importlib.util
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from sklearn.metrics import roc_auc_score

import maxtoki_toolkit as mt
from maxtoki_toolkit import cli
from maxtoki_toolkit.widgets import _container, _feature_blocks
from maxtoki_toolkit.widgets._container import WIDGET
from maxtoki_toolkit.widgets._feature_cells import active_genes
from maxtoki_toolkit.widgets._feature_front import FeatureReader, first_feature
from maxtoki_toolkit.widgets._feature_tables import MOST_GROUPS, compare_groups, feature_tables, top_cells

BAD = "</script><img src=x onerror=document.title='harmed'>"


def chromium():
    path = Path(__file__).parents[1] / "benchmarks" / "chromium.py"
    spec = importlib.util.spec_from_file_location("chromium", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def made(tiny_model):
    """Cells with features of an autoencoder that learned nothing, and names that try to be code."""
    adata = mt.datasets.aging_atlas(60, 10, n_genes=500)
    del adata.uns["truth"]
    mt.pp.map_genes(adata)
    mt.pp.rank_value_encode(adata, tiny_model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        card = {"model_sha256": tiny_model.identity, "block": 0, "site": "output", "sha256": "mine"}
        sae = mt.models.SparseAutoencoder(16, 40, 3, card=card).eval()
    adata.obsm["X_umap"] = np.random.default_rng(0).normal(size=(adata.n_obs, 2))
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(str).replace({"B cell": f"B {BAD}"})
    adata.obs_names = [f"{BAD}{i}" for i in range(adata.n_obs)]
    adata.var["symbol"] = [BAD, *adata.var["symbol"].astype(str)[1:]]
    mt.tl.features(adata, tiny_model, sae, controls=False)
    width = np.arange(40)
    labels = pd.DataFrame({"feature": width[::-1], "label": [f"label {i} {BAD}" for i in width[::-1]]})
    adata.uns["feature_labels"] = {"params": {"sae": {"sha256": "mine"}}, "labels": labels}
    families = pd.DataFrame({"feature": width, "family": width // 8 + 3})
    adata.uns["feature_families"] = {"params": {}, "features": families}
    return adata, tiny_model, sae


@pytest.fixture(scope="module")
def reader(made):
    return FeatureReader(*made, n_cells=4)


def unpack(block):
    """A block, as the front end reads it."""
    raw = gzip.decompress(block)
    at = 4 + int.from_bytes(raw[:4], "little")
    head = json.loads(raw[4:at])
    found = {"meta": head["meta"]}
    for name, kind, length in head["arrays"]:
        size = np.dtype(kind).itemsize
        planes = np.frombuffer(raw, np.uint8, length * size, at).reshape(size, length)
        found[name] = np.ascontiguousarray(planes.T).view(f"<{kind}").ravel()
        at += length * size
    assert at == len(raw)
    return found


class TestTables:
    def test_groups_are_compared_as_elsewhere(self):
        rng = np.random.default_rng(1)
        dense = rng.integers(0, 4, (50, 7)) * (rng.random((50, 7)) < 0.5)
        dense[:, 3] = 0
        group = rng.integers(-1, 3, 50)
        auroc, means = compare_groups(sp.csc_matrix(dense, dtype=np.float32), group, 3)
        for feature in range(7):
            for number in range(3):
                mine = group == number
                assert auroc[feature, number] == pytest.approx(roc_auc_score(mine, dense[:, feature]))
                assert means[feature, number] == pytest.approx(dense[mine, feature].mean())

    def test_a_group_of_no_or_all_cells_has_no_auroc(self):
        auroc, means = compare_groups(sp.csc_matrix(np.eye(3, dtype=np.float32)), np.zeros(3, int), 2)
        assert np.isnan(auroc).all()
        assert np.isnan(means[:, 1]).all()

    def test_top_cells(self, reader):
        dense = reader.tables.pooled.toarray()
        rows, values = top_cells(reader.tables.pooled, 4)
        for feature in range(reader.tables.width):
            order = np.argsort(-dense[:, feature], kind="stable")[:4]
            there = dense[order, feature] > 0
            assert rows[feature].tolist() == np.where(there, order, -1).tolist()
            np.testing.assert_array_equal(values[feature], dense[order, feature])

    def test_what_others_wrote_on_the_features(self, made):
        tables = feature_tables(made[0])
        assert tables.features["label"][7] == f"label 7 {BAD}"
        assert tables.features["family_name"][[0, 7, 8]].tolist() == ["3", "3", "4"]
        assert tables.groupby == "cell_type"
        adata = made[0].copy()
        adata.uns["feature_labels"]["params"]["sae"]["sha256"] = "another one"
        adata.uns["feature_families"] = "of the user"
        tables = feature_tables(adata)
        assert set(tables.features["label"]) == {""}
        assert set(tables.features["family"]) == {-1}

    def test_maps(self, made):
        adata = made[0].copy()
        adata.obsm["spatial"] = adata.obsm["X_umap"] * 100
        adata.obsm["X_pca"] = np.ones((adata.n_obs, 5))
        assert list(feature_tables(adata).maps) == ["umap", "spatial"]
        assert list(feature_tables(adata, basis="X_pca").maps) == ["pca"]
        del adata.obsm["X_umap"], adata.obsm["spatial"]
        assert feature_tables(adata).maps == {}
        with pytest.raises(KeyError, match=r"X_umap.*there are: none"):
            feature_tables(adata, basis="X_umap")

    def test_many_and_unknown_groups(self, made):
        adata = made[0].copy()
        adata.obs["many"] = [None, None, *(f"g{min(i, 45)}" for i in range(adata.n_obs - 2))]
        tables = feature_tables(adata, groupby="many")
        assert len(tables.groups) == MOST_GROUPS
        assert "g45" in tables.groups
        assert (tables.group[:2] == -1).all()


class TestGenes:
    def test_activations_are_those_that_were_pooled(self, made, reader):
        adata, model, sae = made
        found = active_genes(model, sae, reader.sequences, reader.top)
        largest = found.groupby(["feature", "row"])["value"].max()
        for (feature, row), value in largest.items():
            assert value == pytest.approx(reader.tables.pooled[row, feature], rel=1e-5)
        assert len(largest) == (reader.top >= 0).sum()
        # The rank is that of the gene in its cell.
        ranks = np.asarray(adata.layers["rank"].todense())
        column = {token: i for i, token in enumerate(adata.var["token_id"])}
        for one in found.sample(50, random_state=0).itertuples():
            assert ranks[one.row, column[one.token]] == one.rank

    def test_one_feature_is_read_as_all_are(self, reader):
        block = unpack(reader.blocks("x")["genes"])
        cells = unpack(reader.blocks("x")["cells"])
        feature = int(np.flatnonzero((reader.top >= 0).all(axis=1))[0])
        kept = block["meta"]["n_kept"]
        assert kept == 4
        counts = block["count"].reshape(-1, kept)
        at = counts.ravel()[: feature * kept].sum()
        for place, cell in enumerate(reader.genes_of(feature)):
            n = counts[feature, place]
            assert block["rank"][at : at + n].tolist() == [mark["rank"] for mark in cell["marks"]]
            values = block["value"][at : at + n] / block["meta"]["levels"] * block["scale"][feature]
            expected = [mark["value"] for mark in cell["marks"]]
            np.testing.assert_allclose(values, expected, atol=block["scale"][feature] / 60)
            name = cells["meta"]["names"][cells["top"][feature * 4 + place]]
            row = block["meta"]["cells"].index(name)
            first = block["first"][block["n_first"][:row].sum() :][: block["n_first"][row]]
            assert [block["meta"]["symbols"][g] for g in first] == cell["first"]
            assert block["length"][row] == cell["length"]
            later = [i for i in range(n) if block["rank"][at + i] > len(first)]
            symbols = [block["meta"]["symbols"][block["gene"][at + i]] for i in later]
            assert symbols == [cell["marks"][i]["symbol"] for i in later]
            at += n
        assert reader.genes_of(feature) is reader.genes_of(feature)


class TestBlocks:
    def test_core(self, made, reader):
        block, tables = unpack(reader.blocks("A title", for_page=False)["core"]), reader.tables
        expected = mt.get.table(made[0], "features")
        for name in ("density", "mean_active", "max_active", "mean_rank"):
            np.testing.assert_allclose(block[name], expected[name], rtol=1e-3)
        np.testing.assert_array_equal(block["n_cells"], expected["n_cells"])
        auroc = block["auroc"].reshape(tables.auroc.shape) / 254
        np.testing.assert_allclose(auroc, tables.auroc, atol=0.002)
        genes = mt.get.table(made[0], "features", "genes")
        at = np.cumsum(block["n_top"], dtype=int) - block["n_top"]
        for feature, part in genes.groupby("feature"):
            mine = slice(at[feature], at[feature] + block["n_top"][feature])
            assert [block["meta"]["symbols"][g] for g in block["gene"][mine]] == part["symbol"].tolist()
            mean = block["gene_mean"][mine] / 255 * block["largest_mean"][feature]
            np.testing.assert_allclose(mean, part["mean"], atol=part["mean"].max() / 200)
            np.testing.assert_allclose(mean / block["overall"][feature], part["lift"], rtol=0.05)

    def test_cells(self, reader):
        block, tables = unpack(reader.blocks("x", for_page=False)["cells"]), reader.tables
        dense, at = np.zeros(tables.pooled.shape), 0
        for feature, n in enumerate(block["count"].tolist()):
            rows = np.cumsum(block["step"][at : at + n], dtype=int)
            level = block["level"][at : at + n] / block["meta"]["levels"]
            dense[rows, feature] = level * block["scale"][feature]
            at += n
        np.testing.assert_array_equal(dense > 0, tables.pooled.toarray() > 0)
        assert np.abs(dense - tables.pooled.toarray()).max() < block["scale"].max() / 30
        span = np.ptp(tables.maps["umap"], axis=0)
        shape = np.array(block["meta"]["maps"]["umap"])
        np.testing.assert_allclose(shape, span / span.max())
        np.testing.assert_allclose(block["umap.x"].max() / 65534, shape[0], atol=1e-3)

    def test_of_large_data_some_are_shown(self, reader, monkeypatch):
        monkeypatch.setattr(_feature_blocks, "_MOST_VALUES", reader.tables.pooled.nnz // 3)
        monkeypatch.setattr(_feature_blocks, "_MOST_MARKS", 100)
        blocks = {name: unpack(block) for name, block in reader.blocks("x").items()}
        cells = blocks["cells"]
        assert cells["meta"]["n_shown"] == 20
        assert len(cells["umap.x"]) == 20
        assert blocks["genes"]["meta"]["n_kept"] == 1
        # A widget has room for all of them.
        assert unpack(reader.blocks("x", for_page=False)["cells"])["meta"]["n_shown"] == 60
        # Top cells are named, on the map or not.
        top = cells["top"].reshape(reader.top.shape)
        names = np.append(cells["meta"]["names"], "")
        expected = np.append(reader.tables.names, "")
        np.testing.assert_array_equal(names[top], expected[reader.top])

    def test_nothing_is_active(self, made):
        adata = made[0].copy()
        adata.obsm["features"] = sp.csr_matrix(adata.obsm["features"].shape, dtype=np.float32)
        blocks = FeatureReader(adata, *made[1:]).blocks("x")
        assert unpack(blocks["cells"])["count"].sum() == 0
        assert unpack(blocks["genes"])["count"].sum() == 0


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


@pytest.fixture(scope="module")
def page(made, tmp_path_factory):
    adata, model, sae = made
    path = tmp_path_factory.mktemp("page") / "features.html"
    return mt.reports.features(adata, path, model=model, sae=sae, title=f"Mine {BAD}", n_cells=4)


class TestPage:
    def test_names_stay_text_and_nothing_is_loaded(self, page):
        text = page.read_text()
        assert BAD not in text
        tags = Tags(text).found
        assert [tag for tag, _ in tags].count("script") == 4
        assert not any({"src", "href"} & set(attributes) for _, attributes in tags)
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
        block = re.search(r'id="mt-core">([^<]+)<', text)[1]
        assert unpack(base64.b64decode(block))["meta"]["title"] == f"Mine {BAD}"
        assert page.stat().st_size < 120_000

    def test_in_a_browser(self, page):
        if not chromium().find_chromium():
            pytest.skip("needs Chromium, which is not installed")
        with chromium().Page() as browser:
            browser.open(page)
            browser.wait("document.querySelectorAll('.mt-strip').length")

            def number(script):
                return browser.run(script)

            explorer = "document.querySelector('#mt-root').explorer"
            assert number(f"{explorer}.order.length") == 40
            assert number("document.querySelectorAll('.mt-row').length") < 30
            assert number("document.querySelectorAll('.mt-cell').length") == 4
            title = "document.querySelector('.mt-title').textContent"
            browser.run(f"{explorer}.choose(7)")
            assert browser.run(title) == f"label 7 {BAD}feature 7"
            set_value = "e => { e.value = '%s'; e.dispatchEvent(new Event('input')) }"
            typed = f"({set_value})(document.querySelector('.mt-search'))"
            gene = browser.run("document.querySelector('.mt-gene').textContent")
            browser.run(typed % json.dumps(gene)[1:-1].replace("'", "\\'"))
            assert 1 <= number(f"{explorer}.order.length") < 40
            browser.run(typed % "#12")
            assert number(f"[...{explorer}.order].includes(12) && {explorer}.order.length < 40")
            browser.run(f"{explorer}.set({{query: '', family: 2}})")
            assert browser.run(f"[...{explorer}.order].sort((a, b) => a - b)") == list(range(8, 16))
            browser.run(f"{explorer}.set({{family: 0, sort: 'density'}})")
            order = browser.run(f"[...{explorer}.order].map((f) => {explorer}.core.density[f])")
            assert order == sorted(order, reverse=True)
            browser.run(f"{explorer}.set({{group: 0}})")
            assert browser.run(f"[...{explorer}.order].every((f) => {explorer}.auroc(f, 0) >= 0.7)")
            assert browser.run("document.title") == f"Mine {BAD}"
            assert number("document.querySelectorAll('.mt-features img').length") == 0
            assert browser.problems() == []

    def test_from_a_file_of_counts(self, made, tmp_path, monkeypatch, capsys):
        adata, model, sae = made
        mt.models.save_model(model, tmp_path / "model")
        model = mt.load_model(tmp_path / "model")
        sae = copy.deepcopy(sae)
        sae.card["model_sha256"] = model.identity
        mt.models.save_sae(sae, tmp_path / "sae")
        raw = anndata.AnnData(adata.X, adata.obs[["cell_type"]], adata.var[["symbol", "ensembl_id"]])
        raw.write_h5ad(tmp_path / "cells.h5ad")
        monkeypatch.chdir(tmp_path)
        words = "maxtoki report features cells.h5ad --model model --sae sae -o out/features.html --title Mine"
        monkeypatch.setattr("sys.argv", words.split())
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code == 0
        assert "out/features.html is there" in capsys.readouterr().out
        text = (tmp_path / "out/features.html").read_text()
        core = unpack(base64.b64decode(re.search(r'id="mt-core">([^<]+)<', text)[1]))
        expected = mt.get.table(adata, "features")["density"]
        np.testing.assert_allclose(core["density"], expected, rtol=1e-3)

    def test_refusals(self, made, page, tmp_path):
        adata, model, sae = made
        with pytest.raises(ValueError, match="overwrite=True"):
            mt.reports.features(adata, page)
        before = page.read_bytes()
        mt.reports.features(adata, page, overwrite=True)  # without a model, without genes
        assert len(page.read_bytes()) < len(before)
        page.write_bytes(before)
        (tmp_path / "mine.html").write_text("mine")
        with pytest.raises(ValueError, match="not written by mt.reports.features"):
            mt.reports.features(adata, tmp_path / "mine.html", overwrite=True)
        bare = adata.copy()
        del bare.uns["features"]
        with pytest.raises(ValueError, match=r"no \.uns\['features'\].*Give model and sae"):
            mt.reports.features(bare, tmp_path / "a.html")
        with pytest.raises(ValueError, match="together"):
            mt.reports.features(adata, tmp_path / "a.html", model=model)
        other = mt.models.SparseAutoencoder(16, 40, 3, card={**sae.card, "sha256": "other"}).eval()
        with pytest.raises(ValueError, match="read with another autoencoder"):
            mt.reports.features(adata, tmp_path / "a.html", model=model, sae=other)
        with pytest.raises(KeyError, match="nothing"):
            mt.reports.features(adata, tmp_path / "a.html", groupby="nothing")
        bare = adata.copy()
        bare.obsm["features"] = bare.obsm["features"][:, :3]
        with pytest.raises(ValueError, match=r"\.obsm\['features'\] has 3 features"):
            mt.reports.features(bare, tmp_path / "a.html")
        assert [path.name for path in tmp_path.iterdir()] == ["mine.html"]
        assert "features" in adata.uns

    def test_what_was_given_stays_as_it_is(self, made, tmp_path):
        adata, model, sae = made
        bare = adata.copy()
        del bare.uns["features"], bare.obsm["features"]
        mt.reports.features(bare, tmp_path / "a.html", model=model, sae=sae)
        assert "features" not in bare.uns
        assert "features" not in bare.obsm


class TestWidget:
    def test_genes_are_read_when_they_are_asked_for(self, made, reader, monkeypatch):
        explorer = mt.widgets.features(*made, n_cells=4)
        (widget,) = explorer.children
        assert widget.feature == first_feature(reader.tables)
        assert WIDGET in explorer._repr_mimebundle_()
        assert unpack(widget.core)["meta"]["width"] == 40
        sent = []
        monkeypatch.setattr(type(widget), "send", lambda self, content: sent.append(content))
        widget._handle_custom_msg({"feature": 5}, [])
        assert sent == [{"feature": 5, "cells": reader.genes_of(5)}]
        json.dumps(sent, allow_nan=False)

    def test_without_a_model(self, made):
        (widget,) = mt.widgets.features(made[0], feature=3).children
        assert (widget.feature, widget.reads_genes) == (3, False)
        with pytest.raises(ValueError, match="no feature 40"):
            mt.widgets.features(made[0], feature=40)

    def test_unattended(self, made, monkeypatch):
        monkeypatch.setattr(_container, "is_attended", lambda: False)
        bundle = mt.widgets.features(made[0])._repr_mimebundle_()
        assert WIDGET not in bundle
        assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
