"""YAML as users write it."""

import pytest

from maxtoki_toolkit._files import load_yaml
from maxtoki_toolkit.reports._parameters import _load


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("-1.5e+3", -1500.0),
        (".5e3", 500.0),
        ("1.e3", 1000.0),
        ("1e", "1e"),
        ("e5", "e5"),
        ("1e4x", "1e4x"),
        ("'1e-4'", "1e-4"),
        ("[1e-4, 12]", [1e-4, 12]),
        ("{learning_rate: 1e-4}", {"learning_rate": 1e-4}),
    ],
)
def test_numbers(text, value):
    """1e-4 is a number in JSON and YAML 1.2, and a text in the YAML 1.1 of PyYAML."""
    found = load_yaml(text)
    assert (found, type(found)) == (value, type(value))
    assert _load(text) == value
