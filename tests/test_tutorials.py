"""The tutorials, run on data that their readers may bring."""

from pathlib import Path

import anndata
import numpy as np
import pytest

TUTORIALS = Path(__file__).parents[1] / "tutorials"


def run(name, executed, **parameters):
    import papermill

    papermill.execute_notebook(
        TUTORIALS / f"{name}.ipynb",
        executed,
        parameters=parameters,
        kernel_name="python3",
        progress_bar=False,
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize(("data", "chance"), [("pbmc3k_raw", None), ("pbmc_facs_3874", 0.1)])
def test_your_own_h5ad(shared, tmp_path, data, chance):
    """Raw 10x blood cells; sorted ones are scored against their sorted labels."""
    path = tmp_path / "mine.h5ad"
    cells = anndata.read_h5ad(shared / "data" / f"{data}.h5ad")
    cells[np.random.default_rng(0).permutation(cells.n_obs)[:1000]].copy().write_h5ad(path)
    run(
        "01_your_own_h5ad",
        tmp_path / "out.ipynb",
        path=str(path),
        output=str(tmp_path / "cells.h5ad"),
    )
    adata = anndata.read_h5ad(tmp_path / "cells.h5ad")
    assert {"X_maxtoki", "X_umap"} <= set(adata.obsm)
    assert adata.obs["leiden"].nunique() > 3
    if chance is not None:
        scores = adata.uns["neighbor_purity"]["scores"].set_index("embedding")
        # The demo model has seen no blood but simulated: well above chance is what can be asked.
        assert scores.loc["MaxToki", "purity"] > 2 * scores.loc["chance", "purity"]
