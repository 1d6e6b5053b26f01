"""The screen of a file of settings: tables, figures, and refusals of what is not known."""

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

import maxtoki_toolkit as mt
from maxtoki_toolkit.cli import app
from maxtoki_toolkit.screen import read_settings


@pytest.fixture
def settings(tmp_path):
    """Settings of a small screen, and how to write them."""
    mt.datasets.aging_atlas(120, 10, n_genes=500).write_h5ad(tmp_path / "cells.h5ad")
    prompts = {
        "time_key": "age_months",
        "groupby": "cell_type",
        "donor_key": "donor_id",
        "n_prompts": 4,
        "context_size": 1,
    }
    perturb = {"genes": ["FOXO3", "KLF2", "CD74"], "mode": "overexpress"}
    return {
        "cells": str(tmp_path / "cells.h5ad"),
        "output": str(tmp_path / "out"),
        "prompts": prompts,
        "perturb": perturb,
        "stats": {"min_donors": 2},
    }


def write(settings, tmp_path):
    path = tmp_path / "screen.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.mark.filterwarnings("ignore:No gene could be compared")
def test_screen(settings, tmp_path):
    path = write(settings, tmp_path)
    result = CliRunner().invoke(app, ["screen", "-c", str(path)])
    assert result.exit_code == 0, result.output
    assert "3 genes read" in result.output
    out = tmp_path / "out"
    assert {"effects.csv.gz", "stats.csv", "controls.csv", "ranked.png", "ranked.pdf"} <= {
        p.name for p in out.iterdir()
    }
    effects = pd.read_csv(out / "effects.csv.gz")
    assert len(effects) == 12
    # Called again, it reads what is there.
    before = (out / "effects.csv.gz").stat().st_mtime_ns
    assert CliRunner().invoke(app, ["screen", "-c", str(path)]).exit_code == 0
    assert (out / "effects.csv.gz").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cell": "x"}, "unknown settings: cell"),
        ({"perturb": {"genes": "all", "modes": "delete"}}, "perturb has unknown settings: modes"),
        ({"perturb": {}}, "lacks perturb: genes"),
        ({"prompts": {}}, "lacks prompts: time_key"),
        ({"perturb": {"genes": "all", "readout": "embedding"}}, "has no meaning"),
        ({"stats": ["n_null"]}, "stats in"),
    ],
)
def test_refusals(settings, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        read_settings(write(settings | change, tmp_path))
