"""`maxtoki age`: from a file as it comes to ages, tables and a figure."""

import sys

import anndata
import numpy as np
import pandas as pd
import pytest

import maxtoki_toolkit as mt
from maxtoki_toolkit import cli


@pytest.fixture(scope="module")
def census(tmp_path_factory):
    """Cells as CELLxGENE has them: ages as stages, counts in X, controls called normal."""
    adata = mt.datasets.aging_atlas(420, 30, seed=4)
    adata = adata[adata.obs["cell_type"].isin(["fibroblast", "monocyte"])].copy()
    years = adata.obs["age_months"] // 12
    obs = adata.obs[["cell_type", "donor_id", "sex"]].copy()
    obs["development_stage"] = pd.Categorical(years.astype(str) + "-year-old stage")
    obs["disease"] = np.where(adata.obs["condition"] == "control", "normal", "COVID-19")
    path = tmp_path_factory.mktemp("census") / "cells.h5ad"
    anndata.AnnData(adata.X, obs=obs, var=adata.var).write_h5ad(path)
    return path, years * 12


def run(capsys, *arguments):
    old, sys.argv = sys.argv, ["maxtoki", *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as stop:
            cli.main()
    finally:
        sys.argv = old
    out, err = capsys.readouterr()
    return stop.value.code or 0, out, err


def test_a_file_of_cellxgene_needs_no_settings(census, tmp_path, capsys, recwarn):
    path, months = census
    out = tmp_path / "out"
    code, said, _ = run(capsys, "age", path, "-o", out, "--n-contexts", 2, "--device", "cpu")
    assert code == 0
    assert any("time_key='development_stage'" in str(w.message) for w in recwarn)
    assert any("Read .obs['development_stage'] as ages in months, into" in str(w.message) for w in recwarn)
    assert "the time that the demo model tells is that of a simulation" in said
    cells = pd.read_csv(out / "cells.csv", index_col="cell")
    assert cells["known_age_months"].to_numpy() == pytest.approx(months.to_numpy())
    groups = pd.read_csv(out / "groups.csv", keep_default_na=False, na_values=[""])
    assert set(groups["group"]) == {"fibroblast", "monocyte"}
    assert groups["n_reference_donors"].max() <= 18  # controls alone
    donors = pd.read_csv(out / "donors.csv")
    assert donors.loc[donors["reference"], "donor"].nunique() <= 18
    assert {"ages.png", "ages.pdf", "ages.h5ad"} <= {p.name for p in out.iterdir()}
    # Called again it has nothing to do; other settings do not replace what is there.
    before = (out / "cells.csv").stat().st_mtime_ns
    assert run(capsys, "age", path, "-o", out, "--n-contexts", 2, "--device", "cpu")[0] == 0
    assert (out / "cells.csv").stat().st_mtime_ns == before
    code, _, error = run(capsys, "age", path, "-o", out, "--n-contexts", 1, "--device", "cpu")
    assert code == 1
    assert "--overwrite" in error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda obs: obs.drop(columns="donor_id"), "Give --donor-key: no column was found for it"),
        (lambda obs: obs.assign(development_stage="adult"), "Give --time-key: no column was found for it"),
    ],
)
def test_what_is_missing_is_named(census, tmp_path, capsys, change, message):
    adata = anndata.read_h5ad(census[0])
    adata.obs = change(adata.obs)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    code, _, error = run(capsys, "age", tmp_path / "cells.h5ad", "-o", tmp_path / "out", "--device", "cpu")
    assert code == 1
    assert message in error
    assert not (tmp_path / "out").exists()
