"""Fixtures of examples in docstrings; those of tests are in tests/conftest.py."""

import functools
from copy import deepcopy

import pytest


def made_once(function, copy):
    """The function; what it makes of the same arguments is made once and copied."""
    made = {}

    @functools.wraps(function)
    def make(*args, **settings):
        key = repr((args, sorted(settings.items())))
        if key not in made:
            made[key] = function(*args, **settings)
        return copy(made[key])

    return make


def pytest_collection_modifyitems(items):
    """Run each example once: they are found where functions are defined, and again where packages export them."""
    items[:] = [
        item
        for item in items
        if item.path.name != "__init__.py" or item.path.parent.name == "maxtoki_toolkit"
    ]


@pytest.fixture(scope="session")
def ingredients():
    """What most examples begin with."""
    import maxtoki_toolkit as mt

    return [
        (mt.datasets, "aging_atlas", made_once(mt.datasets.aging_atlas, lambda adata: adata.copy())),
        (mt, "load_model", made_once(mt.load_model, deepcopy)),
    ]


@pytest.fixture(autouse=True)
def examples_share(request, monkeypatch):
    """Examples simulate the same cells and load the same model over and over."""
    if isinstance(request.node, pytest.DoctestItem):
        import maxtoki_toolkit as mt

        monkeypatch.setattr(mt.settings, "progress", False)
        for module, name, function in request.getfixturevalue("ingredients"):
            monkeypatch.setattr(module, name, function)
