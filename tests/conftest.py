"""Fixtures shared by all tests."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from maxtoki_toolkit import settings

if "PYTEST_XDIST_WORKER" in os.environ:
    # Side by side, each test takes one core. NumPy looks at this when it is loaded, so nothing above may load it. Numba
    # would give every library as many threads as there are cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("NUMBA_NUM_THREADS", "1")
# nbformat imports jsonschema, which builds a grammar of web addresses for seconds, in every process. Without it, it goes on without.
sys.modules.setdefault("rfc3987_syntax", None)
SHARED = Path(__file__).parents[2] / "shared"


def pytest_configure():
    import matplotlib

    matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """No progress bars, and no figure left open."""
    monkeypatch.setattr(settings, "progress", False)
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


@pytest.fixture(scope="session")
def tiny_model():
    """A model of one block that has learned nothing and reads 126 of the 500 genes of a small atlas."""
    import maxtoki_toolkit as mt

    adata = mt.datasets.aging_atlas(200, 10, n_genes=500)
    mt.pp.map_genes(adata)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape["max_position_embeddings"] = 128
    return mt.models.build_model(shape, mt.models.Vocabulary.from_anndata(adata))


@pytest.fixture(scope="session")
def tiny_clock(tiny_model):
    """The same with what it takes to tell time."""
    import maxtoki_toolkit as mt

    times = tiny_model.vocab.with_times(-900, 900)
    longer = mt.models.extend_model(tiny_model, times, max_length=512)
    return replace(longer, time_head=mt.models.TimeHead("expectation"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the development data, which a user's machine does not have."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"needs the development data, and there is no {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def source(shared) -> Path:
    """The data among them."""
    return shared / "data"


class Groups(dict):
    """Groups of parity cases by name; a test of one that may not be shipped skips."""

    def __missing__(self, name):
        pytest.skip(f"needs the original's dictionaries or inputs, which do not ship: {name}")


@pytest.fixture(scope="session", params=["ours", "the original's"])
def parity(request) -> Groups:
    """Inputs and what the original makes of them: ours, which ship, and its own, of the development data."""
    path = Path(__file__).parent / "data" / "parity.json"
    if request.param != "ours":
        path = request.getfixturevalue("shared") / "reference" / "parity_cases.json"
    return Groups({group["id"]: group for group in json.loads(path.read_text())["groups"]})


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hugging Face hub on loopback, with an empty cache: put files into `hub.files["repo/resolve/rev/path"]`."""
    from huggingface_hub import constants

    files: dict[str, bytes] = {}
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, *, body: bool):
            key = self.path.lstrip("/").split("?")[0]
            asked.append(f"{self.command} {key}")
            content = files.get(key)
            self.send_response(404 if content is None else 200)
            if content is None:
                self.send_header("X-Error-Code", "EntryNotFound")
            content = content or b""
            self.send_header("ETag", hashlib.sha256(content).hexdigest())
            if "/resolve/" in key:
                self.send_header("X-Repo-Commit", key.split("/")[3])
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    yield SimpleNamespace(files=files, asked=asked, cache=tmp_path / "hub")
    server.shutdown()
    server.server_close()
