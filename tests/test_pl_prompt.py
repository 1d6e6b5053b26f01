"""A prompt drawn as it is read."""

import numpy as np
import pytest

import maxtoki_toolkit as mt


@pytest.fixture(scope="module")
def adata():
    adata = mt.datasets.aging_atlas(200, 10, n_genes=500)
    mt.pp.map_genes(adata)
    mt.pp.rank_value_encode(adata, mt.models.Vocabulary.from_anndata(adata))
    mt.pp.sample_prompts(adata, n_prompts=6, context_size=2)
    mt.pp.sample_prompts(adata, n_prompts=6, context_size=2, task="cell", key_added="cells")
    return adata


def texts(ax):
    return [text.get_text() for text in ax.texts]


def test_cells_genes_and_lapses_are_those_of_the_prompt(adata):
    row = adata.uns["prompts"]["prompts"].iloc[3]
    ax = mt.pl.prompt(adata, number=3, n_genes=4)
    shown = texts(ax)
    assert f"{int(row['lapse_0']):+d}" in shown
    assert f"{int(row['lapse']):+d} ?" in shown  # what is asked for
    ranks = adata[row["context_0"]].layers["rank"].toarray()[0]
    first = adata.var["symbol"].iloc[np.flatnonzero(ranks == 1)[0]]
    assert f"1  {first}" in shown
    assert f"{(ranks > 0).sum():,} genes" in shown
    assert ax.get_title("left") == f"{row['group']}; lapses in months"


def test_a_cell_that_is_asked_for_is_not_shown(adata):
    shown = texts(mt.pl.prompt(adata, key="cells"))
    assert shown.count("?") == 1
    assert not any(text.endswith(" ?") for text in shown)
    assert sum(text.endswith(" genes") for text in shown) == 2


def test_refusals(adata):
    with pytest.raises(ValueError, match="number must be below 6"):
        mt.pl.prompt(adata, number=6)
    with pytest.raises(KeyError, match="sample_prompts"):
        mt.pl.prompt(adata, key="others")
