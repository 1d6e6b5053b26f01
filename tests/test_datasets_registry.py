"""The registry: every manifest, the shipped data, and downloads that go right and wrong."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import anndata
import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.sparse import csr_matrix

from maxtoki_toolkit import _manifests, datasets, settings
from maxtoki_toolkit._files import sha256
from maxtoki_toolkit._reference import gene_table, resource

NAMES = sorted(_manifests.manifest_paths())
SHIPPED = ["heart_nuclei", "myoblast_timecourse"]


def valid() -> dict:
    return {
        "name": "toy",
        "kind": "dataset",
        "title": "A toy",
        "description": "Three cells.",
        "source": {"citation": "nobody", "accession": "unknown"},
        "licence": "CC0",
        "revision": "1",
        "shipped": False,
        "download": "automatic",
        "files": [{"name": "toy.h5ad", "url": "http://127.0.0.1/toy.h5ad", "size": 5, "sha256": "0" * 64}],
        "columns": {"cell_type": "cell_type"},
        "genes": "Ensembl ids",
    }


# --- manifests ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_manifest_is_valid(name):
    assert datasets.manifest(name)["name"] == name


@pytest.mark.parametrize("name", [*SHIPPED, "gencode_v44", "human_tfs", "mouse_orthologs", "cell_ontology"])
def test_shipped_file_is_the_one_in_its_manifest(name):
    entry = datasets.manifest(name)
    assert entry["shipped"]
    for file in entry["files"]:
        path = resource(file["name"])
        assert (path.stat().st_size, sha256(path)) == (file["size"], file["sha256"])


def test_shipped_data_is_small():
    shipped = [datasets.manifest(name) for name in NAMES]
    assert sum(file["size"] for entry in shipped if entry["shipped"] for file in entry["files"]) < 5_500_000


def test_a_valid_manifest_passes():
    assert _manifests.check(valid()) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": "red"}, "unknown field 'colour'"),
        ({"title": ""}, "title must be text"),
        ({"revision": 3}, "revision must be text"),
        ({"name": "../toy"}, "name must be lower-case"),
        ({"kind": "table"}, "kind must be one of"),
        ({"kind": "checkpoint"}, "use must say how.*columns belong to a data set"),
        ({"source": {"citation": "nobody"}}, "citation and accession"),
        ({"notes": 3}, "notes must be text"),
        ({"shipped": "no"}, "true or false"),
        ({"shipped": True}, "download has no place.*needs no url"),
        ({"download": "maybe"}, "automatic or manual"),
        ({"files": "unknown"}, "files must be a list"),
        ({"files": []}, "files must be a list"),
        ({"columns": {"age": "age"}}, "unknown column role 'age'"),
        ({"columns": {"time": "age"}}, "go together"),
        ({"columns": None}, "columns must name"),
    ],
)
def test_check_names_what_is_wrong(change, message):
    with pytest.raises(ValueError, match=f"manifest of .* is not valid.*{message}"):
        _manifests.check(valid() | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../toy.h5ad"}, "plain file name"),
        ({"name": "toy.pkl"}, r"one \.h5ad file"),
        ({"size": "unknown"}, "number of bytes"),
        ({"size": 0}, "number of bytes"),
        ({"size": True}, "number of bytes"),
        ({"sha256": "unknown"}, "64 lower-case"),
        ({"sha256": "A" * 64}, "64 lower-case"),
        ({"sha256": 0}, "64 lower-case"),
        ({"url": "file:///etc/passwd"}, "must start with https"),
        ({"url": None}, "must be text"),
        ({"repo": "lab/model"}, "either url, or repo and path"),
        ({"md5": "0"}, "unknown field 'md5'"),
    ],
)
def test_check_names_what_is_wrong_with_a_file(change, message):
    entry = valid()
    entry["files"][0] |= change
    with pytest.raises(ValueError, match=message):
        _manifests.check(entry)


def test_check_refuses_two_files_of_one_name():
    entry = valid()
    entry["files"] *= 2
    with pytest.raises(ValueError, match="same name"):
        _manifests.check(entry)


def test_check_accepts_unknown_files_only_where_the_user_brings_them():
    _manifests.check(valid() | {"download": "manual", "files": "unknown"})
    entry = valid() | {"download": "manual"}
    entry["files"][0] |= {"size": "unknown", "sha256": "unknown", "url": "unknown"}
    _manifests.check(entry)


def test_check_refuses_what_is_no_mapping():
    with pytest.raises(ValueError, match="but this one is a list"):
        _manifests.check([])


# --- the list ----------------------------------------------------------------------------------------


def test_available():
    table = datasets.available().set_index("name")
    assert table.columns.to_list() == ["kind", "title", "size_mb", "licence", "shipped", "can_load"]
    assert table.index.to_list() == NAMES
    assert table.index[table["can_load"]].to_list() == SHIPPED
    assert table.loc["maxtoki-217m", "size_mb"] == pytest.approx(867.8, abs=0.01)
    assert np.isnan(table.loc["oskm_reprogramming", "size_mb"])


@pytest.mark.parametrize("kind", ["dataset", "checkpoint", "reference"])
def test_available_by_kind(kind):
    table, everything = datasets.available(kind), datasets.available()
    pd.testing.assert_frame_equal(table, everything[everything["kind"] == kind].reset_index(drop=True))
    assert len(table) > 1


def test_available_refuses_an_unknown_kind():
    with pytest.raises(ValueError, match="No kind 'model'"):
        datasets.available("model")


# --- shipped data ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape"), [("heart_nuclei", (700, 17_952)), ("myoblast_timecourse", (200, 20_267))]
)
def test_load_shipped(name, shape):
    adata = datasets.load(name)
    assert adata.shape == shape
    assert isinstance(adata.X, csr_matrix)
    assert adata.X.dtype == np.float32
    assert adata.X.has_canonical_format
    assert (adata.X.data > 0).all()
    assert adata.obs_names.is_unique
    assert adata.var_names.is_unique
    columns = datasets.manifest(name)["columns"]
    assert {column for role, column in columns.items() if role != "time_unit"} <= set(adata.obs)
    assert adata.uns["source"].keys() == {"title", "citation", "licence", "origin", "values", "changes"}
    # Every gene is found in at least three cells, the most widely found one first.
    cells = np.diff(adata.X.tocsc().indptr)
    assert cells.min() >= 3
    assert (np.diff(cells) <= 0).all()


def test_heart_holds_counts():
    adata = datasets.load("heart_nuclei")
    assert (adata.X.data == np.round(adata.X.data)).all()
    assert adata.var_names.str.fullmatch(r"ENSG\d{11}").all()
    assert adata.var_names.isin(gene_table()["ensembl_id"]).mean() > 0.99
    assert adata.var.loc["ENSG00000155657", "symbol"] == "TTN"
    assert adata.obs["cell_type"].nunique() == 9
    # The biology survives: titin marks the muscle cells.
    titin = pd.Series(adata[:, "ENSG00000155657"].X.toarray().ravel(), adata.obs_names)
    assert (
        titin.groupby(adata.obs["cell_type"], observed=True).mean().idxmax()
        == "regular atrial cardiac myocyte"
    )


def test_plain_anndata_reads_shipped_counts_as_small_integers():
    adata = anndata.read_h5ad(resource("heart_nuclei.h5ad"))
    assert adata.X.dtype == np.uint16
    assert adata.X.sum() == pytest.approx(datasets.load("heart_nuclei").X.sum(dtype=np.float64))


def test_shipped_data_survives_writing(tmp_path):
    adata = datasets.load("myoblast_timecourse")
    adata.write_h5ad(tmp_path / "copy.h5ad")
    again = anndata.read_h5ad(tmp_path / "copy.h5ad")
    assert (again.X != adata.X).nnz == 0
    assert again.uns["source"] == adata.uns["source"]


def test_heart_equals_its_source(source):
    adata = datasets.load("heart_nuclei")
    full = anndata.read_h5ad(source / "heart_nuclei_700.h5ad")
    same = full[adata.obs_names, adata.var_names]
    assert (adata.X != same.X).nnz == 0
    assert adata.var["symbol"].to_list() == same.var["feature_name"].to_list()
    assert adata.X.sum() / full.X.sum() > 0.997
    for column in adata.obs:
        assert adata.obs[column].to_list() == same.obs[column].to_list()


def test_myoblasts_keep_the_order_of_their_source(source):
    adata = datasets.load("myoblast_timecourse")
    same = anndata.read_h5ad(source / "myoblast_timecourse_200.h5ad")[adata.obs_names, adata.var_names]
    exact, rounded = same.X.toarray(), adata.X.toarray()
    kept = exact >= 0.1
    assert (rounded[~kept] == 0).all()
    np.testing.assert_allclose(rounded[kept], exact[kept], rtol=0.008)
    for before, after in zip(exact[::20], rounded[::20], strict=True):
        # Rounding may tie two genes but never swaps them.
        assert (np.diff(after[np.argsort(before)]) >= 0).all()
    for column in ("Hours", "Media", "Pseudotime", "State"):
        assert adata.obs[column].to_list() == same.obs[column].to_list()


def test_damaged_shipped_file_is_refused(monkeypatch, tmp_path):
    path = tmp_path / "heart_nuclei.h5ad"
    path.write_bytes(resource("heart_nuclei.h5ad").read_bytes()[:-1])
    monkeypatch.setattr(_manifests, "resource", lambda name: path)
    with pytest.raises(ValueError, match=r"heart_nuclei\.h5ad is damaged: its SHA-256 is .* Install"):
        datasets.load("heart_nuclei")


# --- what cannot be loaded ---------------------------------------------------------------------------


def test_unknown_name_suggests_close_ones():
    with pytest.raises(ValueError, match="No entry 'hart_nuclei'.*Did you mean 'heart_nuclei'"):
        datasets.load("hart_nuclei")
    with pytest.raises(ValueError, match=r"No entry 'zzz' in the registry\. mt\.datasets\.available"):
        datasets.load("zzz")


def test_name_never_becomes_a_path():
    with pytest.raises(ValueError, match="No entry"):
        datasets.manifest("../data_manifests/heart_nuclei")


@pytest.mark.parametrize("name", ["lung_fibrosis", "pbmc3k", "trapnell2014"])
def test_manual_entry_says_what_is_known(name):
    entry = datasets.manifest(name)
    with pytest.raises(FileNotFoundError) as error:
        datasets.load(name)
    message = str(error.value)
    assert entry["title"] in message
    assert entry["source"]["accession"] in message
    assert entry["licence"] in message
    assert "anndata.read_h5ad" in message


def test_checkpoint_is_not_a_data_set():
    with pytest.raises(
        ValueError, match=r"'maxtoki-217m' holds no cells but is a checkpoint.*mt\.load_model"
    ):
        datasets.load("maxtoki-217m")


def test_fetch_shipped():
    assert datasets.fetch("human_tfs") == {"human_tfs_lambert2018.txt": resource("human_tfs_lambert2018.txt")}


# --- downloads from a server on this machine ----------------------------------------------------------


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        self.server.asked.append(self.path)
        super().do_GET()


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server on loopback; its folder holds the manifests, `www` the data, and the cache starts empty."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(settings, "cache_dir", tmp_path / "cache")
    monkeypatch.setattr(settings, "progress", False)
    monkeypatch.setattr(_manifests, "_folder", lambda: tmp_path)
    www = tmp_path / "www"
    www.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=www)) as http:
        http.asked, http.www, http.cache = [], www, tmp_path / "cache"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield http
        http.shutdown()
        thread.join()


@pytest.fixture
def toy(server):
    """Three cells on the server, as float64 CSC, and the manifest that describes them."""
    path = server.www / "toy.h5ad"
    X = np.array([[0, 1.0, 2.0, 0], [3.0, 0, 0, 0], [0, 0, 4.0, 5.0]])
    anndata.AnnData(
        csr_matrix(X).tocsc(), obs=pd.DataFrame({"cell_type": list("aab")}, index=list("xyz"))
    ).write_h5ad(path)
    return describe(server, path), X


def describe(server, path, **changes):
    entry = valid()
    url = f"http://127.0.0.1:{server.server_port}/{path.name}"
    entry["files"][0] |= {"url": url, "size": path.stat().st_size, "sha256": sha256(path)} | changes
    (server.www.parent / "toy.yaml").write_text(yaml.safe_dump(entry))
    return entry


def test_download_loads_once(server, toy):
    _, X = toy
    assert datasets.available()["can_load"].to_list() == [True]
    for _ in range(2):
        adata = datasets.load("toy")
        assert isinstance(adata.X, csr_matrix)
        assert adata.X.dtype == np.float32
        np.testing.assert_array_equal(adata.X.toarray(), X)
    assert server.asked == ["/toy.h5ad"]
    assert [path.name for path in server.cache.rglob("*")] == ["toy", "toy.h5ad"]


def test_download_with_a_progress_bar(server, toy, monkeypatch):
    monkeypatch.setattr(settings, "progress", True)
    assert datasets.load("toy").n_obs == 3


def test_dense_data_becomes_sparse(server):
    path = server.www / "toy.h5ad"
    anndata.AnnData(np.eye(3)).write_h5ad(path)
    describe(server, path)
    adata = datasets.load("toy")
    assert isinstance(adata.X, csr_matrix)
    assert adata.X.nnz == 3


def test_wrong_checksum_leaves_nothing(server, toy):
    describe(server, server.www / "toy.h5ad", sha256="0" * 64)
    with pytest.raises(
        ValueError, match=r"toy\.h5ad is not the file that the registry knows, and was not kept"
    ):
        datasets.load("toy")
    assert list(server.cache.rglob("*")) == []


def test_damaged_cache_is_replaced(server, toy):
    (path,) = datasets.fetch("toy").values()
    path.write_bytes(b"damaged")
    assert datasets.load("toy").n_obs == 3
    assert server.asked == ["/toy.h5ad"] * 2


def test_damaged_cache_is_not_kept_when_the_download_fails(server, toy):
    (path,) = datasets.fetch("toy").values()
    path.write_bytes(b"damaged")
    (server.www / "toy.h5ad").write_bytes(b"also damaged")
    with pytest.raises(ValueError, match="was not kept"):
        datasets.load("toy")
    assert list(server.cache.rglob("*")) == []


def test_missing_file_on_the_server(server, toy):
    (server.www / "toy.h5ad").unlink()
    with pytest.raises(ConnectionError, match=r"Could not download http://127\.0\.0\.1.*404"):
        datasets.load("toy")
    assert list(server.cache.rglob("*")) == []


def test_no_server(server, toy, free_port):
    entry, _ = toy
    describe(server, server.www / "toy.h5ad", url=f"http://127.0.0.1:{free_port}/toy.h5ad")
    with pytest.raises(ConnectionError, match="Check the connection"):
        datasets.load("toy")


@pytest.fixture
def free_port():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        port = http.server_port
    return port


def test_file_put_in_place_by_hand_is_used(server, toy):
    path = server.cache / "toy" / "toy.h5ad"
    path.parent.mkdir(parents=True)
    path.write_bytes((server.www / "toy.h5ad").read_bytes())
    assert datasets.load("toy").n_obs == 3
    assert server.asked == []


def test_truncated_h5ad(server, toy):
    path = server.www / "toy.h5ad"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    describe(server, path)
    with pytest.raises(ValueError, match=r"toy\.h5ad is not a readable h5ad file: .*truncated.*Delete it"):
        datasets.load("toy")


def test_pickle_is_never_opened(server, toy):
    path = server.www / "toy.h5ad"
    # Raises when unpickled.
    path.write_bytes(b"cbuiltins\neval\n(V1/0\ntR.")
    describe(server, path)
    with pytest.raises(ValueError, match="not a readable h5ad file"):
        datasets.load("toy")


def test_dictionaries_are_pinned_to_the_published_bytes(source):
    for file in datasets.manifest("maxtoki-dictionaries")["files"]:
        path = source / file["name"]
        assert (path.stat().st_size, sha256(path)) == (file["size"], file["sha256"])


def test_broken_manifest(tmp_path, monkeypatch):
    monkeypatch.setattr(_manifests, "_folder", lambda: tmp_path)
    (tmp_path / "toy.yaml").write_text("name: [")
    with pytest.raises(ValueError, match=r"toy\.yaml is not valid YAML"):
        datasets.manifest("toy")
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(valid() | {"name": "other"}))
    with pytest.raises(ValueError, match=r"toy\.yaml names 'other'"):
        datasets.manifest("toy")
    (tmp_path / "toy.yaml").write_text("!!python/object/apply:os.getcwd []")
    with pytest.raises(ValueError, match="not valid YAML"):
        datasets.manifest("toy")


def test_manifests_are_found_in_an_installed_package(monkeypatch, tmp_path):
    monkeypatch.setattr(_manifests, "files", lambda name: tmp_path / "site" / name)
    with pytest.raises(FileNotFoundError, match="Found no manifests in"):
        _manifests._folder()
    (tmp_path / "site" / "data_manifests").mkdir(parents=True)
    assert _manifests._folder() == tmp_path / "site" / "data_manifests"
    (tmp_path / "site" / "maxtoki_toolkit" / "data_manifests").mkdir(parents=True)
    assert _manifests._folder() == tmp_path / "site" / "maxtoki_toolkit" / "data_manifests"


def test_clocks_of_manifests_are_settings_that_there_are():
    import maxtoki_toolkit as mt
    from maxtoki_toolkit.clocks import public_clocks

    assert {"aida", "onek1k", "human_lung_cell_atlas"} <= set(public_clocks())
    for name in public_clocks():
        plan = mt.datasets.manifest(name)["clock"]
        mt.datasets.CorpusRecipe.of(**plan["corpus"])
        mt.train.ClockRecipe.of(**plan["split"])
        assert plan["split"].keys() <= {"donors", "times", "groups"}
