"""Corpora from a real TileDB-SOMA store: which cells, which shards, and what is refused."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time

import anndata
import numpy as np
import pandas as pd
import pytest

import maxtoki_toolkit as mt
from maxtoki_toolkit.datasets._corpus_recipe import DROP
from maxtoki_toolkit.pp._corpus import balance_donors, largest_share, lots, lowest_of_each, matches

Recipe = mt.datasets.CorpusRecipe
N_CELLS = 1200


# --- kernels -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_the_largest_share_is_the_largest(seed):
    """Beside a search over all sizes."""
    rng = np.random.default_rng(seed)
    n_cells, share = rng.integers(1, 60, rng.integers(1, 9)), float(rng.choice([0.25, 0.3, 1 / 3, 0.5, 0.9]))
    left = [np.minimum(n_cells, most) for most in range(n_cells.max() + 1)]
    fine = [most for most, n in enumerate(left) if n.sum() and n.max() <= share * n.sum() + 1e-9]
    found = largest_share(n_cells, share)
    expected = max(fine, default=0)
    assert np.minimum(n_cells, found).sum() == np.minimum(n_cells, expected).sum()


def test_the_lowest_lots_of_each_group():
    rng = np.random.default_rng(0)
    group, lot = rng.integers(0, 5, 200), rng.permutation(200).astype(np.uint64)
    kept = lowest_of_each(group, lot, 7)
    for one in range(5):
        assert set(lot[kept & (group == one)]) == set(np.sort(lot[group == one])[:7])


def test_lots_are_fair_and_seeded():
    names = [f"cell{i}" for i in range(4000)]
    drawn = lots(names, 3)
    assert np.array_equal(drawn, lots(names[::-1], 3)[::-1])
    assert not np.array_equal(drawn, lots(names, 4))
    assert abs((drawn > np.uint64(1 << 63)).mean() - 0.5) < 0.03
    assert abs(np.corrcoef(drawn.astype(float), lots(names, 4).astype(float))[0, 1]) < 0.05


def test_donors_are_balanced():
    donors = pd.DataFrame(
        {
            "sex": ["female"] * 5 + ["male"] * 2 + ["unknown"] + ["male"] * 3,
            "decade": ["40-49"] * 8 + ["50-59"] * 3,
        }
    )
    lot = np.arange(11, dtype=np.uint64)
    kept = balance_donors(donors, balance_sex=True, max_donors=None, lot=lot)
    assert np.flatnonzero(kept).tolist() == [0, 1, 5, 6]
    assert np.flatnonzero(balance_donors(donors, balance_sex=False, max_donors=1, lot=lot)).tolist() == [
        0,
        5,
        7,
        8,
    ]


def test_terms_of_the_census_that_are_dropped(source):
    """Malignant cells, and nothing else."""
    import json

    terms = json.loads((source / "census_terms.json").read_text())["cell_type"]
    found = [term for term, drop in zip(terms, matches(terms, DROP["cell_type"]), strict=True) if drop]
    assert found
    assert set(found) <= {"malignant cell", "neoplastic cell"}


# --- a store ------------------------------------------------------------------------------------------


def cells() -> anndata.AnnData:
    """Simulated cells with the columns of the Census that are asked for."""
    adata = mt.datasets.aging_atlas(N_CELLS, 24, n_genes=500)
    del adata.uns["truth"]
    rng = np.random.default_rng(0)

    def drawn(values, p):
        return pd.Categorical(rng.choice(values, N_CELLS, p=p))

    adata.obs["dataset_id"] = drawn(["atlas", "study"], [0.5, 0.5])
    adata.obs["development_stage"] = pd.Categorical(
        (adata.obs.pop("age_months") // 12).astype(str) + "-year-old stage"
    )
    adata.obs["disease"] = drawn(["normal", "COVID-19", "COVID-19 || normal"], [0.8, 0.1, 0.1])
    adata.obs["is_primary_data"] = rng.random(N_CELLS) < 0.9
    adata.obs["tissue_type"] = drawn(["tissue", "cell line"], [0.95, 0.05])
    adata.obs["tissue_general"] = drawn(
        ["blood", "heart", "lung", "brain", "skin", "liver"], [0.5, 0.2, 0.1, 0.1, 0.05, 0.05]
    )
    adata.obs["assay"] = drawn(["10x 3' v3", "10x multiome", "Smart-seq2"], [0.6, 0.3, 0.1])
    adata.obs["cell_type"] = adata.obs["cell_type"].cat.add_categories("malignant cell")
    adata.obs.loc[rng.random(N_CELLS) < 0.05, "cell_type"] = "malignant cell"
    adata.obs["nnz"] = np.diff(adata.X.indptr)
    # One donor of nobody, and a cell without a gene of the vocabulary.
    adata.obs["donor_id"] = adata.obs["donor_id"].cat.rename_categories({"D01": "pooled"})
    return adata


def write(adata, path) -> str:
    import tiledbsoma.io

    tiledbsoma.io.from_anndata(str(path), adata, measurement_name="RNA", X_layer_name="raw")
    return str(path)


@pytest.fixture(scope="module")
def adata():
    return cells()


@pytest.fixture(scope="module")
def store(adata, tmp_path_factory):
    pytest.importorskip("tiledbsoma", reason="needs the extra census")
    return write(adata, tmp_path_factory.mktemp("soma") / "store")


@pytest.fixture(scope="module")
def vocab(adata):
    known = adata[:, :490].copy()
    mt.pp.map_genes(known)
    return mt.models.Vocabulary.from_anndata(known)


def asked_for(obs: pd.DataFrame) -> np.ndarray:
    """The default filters, said once more."""
    return (
        obs["is_primary_data"]
        & (obs["disease"] == "normal")
        & (obs["tissue_type"] == "tissue")
        & obs["assay"].isin(["10x 3' v3", "10x multiome"])
        & (obs["cell_type"] != "malignant cell")
        & (obs["donor_id"] != "pooled")
    ).to_numpy()


def names(shards: pd.DataFrame) -> list[str]:
    return [name for path in shards["path"] for name in anndata.read_h5ad(path).obs_names]


def test_the_cells_that_were_asked_for_and_their_ranks(adata, store, vocab, tmp_path):
    recipe = Recipe.of(max_tissue_share=1.0)
    shards = mt.datasets.census(tmp_path / "corpus", vocab, store=store, recipe=recipe, cells_per_shard=256)
    expected = adata[asked_for(adata.obs)].copy()
    assert names(shards) == expected.obs_names.tolist()
    assert shards["n_cells"].tolist()[:-1] == [256] * (len(shards) - 1)
    mt.pp.rank_value_encode(expected, vocab)
    found = anndata.concat([anndata.read_h5ad(path) for path in shards["path"]])
    assert (found.layers["rank"] != expected.layers["rank"]).nnz == 0
    donors = expected.obs["dataset_id"].astype(str) + "/" + expected.obs["donor_id"].astype(str)
    assert found.obs["donor_id"].astype(str).tolist() == donors.tolist()
    years = expected.obs["development_stage"].str.extract(r"(\d+)")[0].astype(float)
    np.testing.assert_allclose(found.obs["age_months"], 12 * years)
    for name in ("disease", "cell_type", "assay"):
        assert found.obs[name].astype(str).tolist() == expected.obs[name].astype(str).tolist()


def test_what_each_filter_left(adata, store):
    plan = mt.datasets.census_plan(store, recipe=Recipe.of(min_genes=100, known_age=True))
    table = plan.filters.set_index("filter")
    obs = adata.obs
    primary = obs["is_primary_data"]
    assert table.loc["in the store"].tolist() == [
        N_CELLS,
        len(set(zip(obs["dataset_id"], obs["donor_id"], strict=True))),
    ]
    assert table.loc["keep is_primary_data: True", "n_cells"] == primary.sum()
    assert table.loc["keep disease: normal", "n_cells"] == (primary & (obs["disease"] == "normal")).sum()
    assert table.loc["age known", "n_cells"] == (asked_for(obs) & (obs["nnz"] >= 100)).sum()
    assert table["n_cells"].is_monotonic_decreasing
    assert table["n_cells"].iloc[-1] == plan.n_cells == plan.composition["n_cells"].sum()
    assert table["n_donors"].iloc[-1] == plan.n_donors == plan.composition["donor"].nunique()
    by_tissue = plan.composition.groupby("tissue")["n_cells"].sum()
    assert by_tissue.max() <= 0.25 * plan.n_cells
    assert 0.2 < plan.gigabytes * 1e9 / (plan.n_cells * 6 * obs["nnz"].mean()) < 5


def test_cells_by_name(adata, store):
    wanted = adata.obs_names[asked_for(adata.obs)][:7].tolist()
    recipe = Recipe.of(keep={"obs_id": wanted}, max_tissue_share=1.0)
    assert mt.datasets.census_plan(store, recipe=recipe).n_cells == 7


def test_balance(store):
    recipe = Recipe.of(balance_sex=True, max_donors=2, cells_per_donor=15, max_tissue_share=1.0)
    table = mt.datasets.census_plan(store, recipe=recipe).composition
    assert table.groupby("donor")["n_cells"].sum().max() == 15
    donors = table.drop_duplicates("donor")
    n = donors.groupby([donors["age_years"] // 10, "sex"]).size().unstack(fill_value=0)
    assert (n["female"] == n["male"]).all()
    assert n.to_numpy().max() <= 2


def test_the_same_cells_whatever_the_order_and_the_blocks(adata, store, vocab, tmp_path):
    """Lots are by names: another order in the store, and other buffers, do not matter; another seed does."""
    moved = write(adata[np.random.default_rng(1).permutation(N_CELLS)].copy(), tmp_path / "moved")
    settings = {"max_donors": 3, "cells_per_donor": 10}
    first = mt.datasets.census(tmp_path / "a", vocab, store=store, recipe=Recipe.of(**settings))
    second = mt.datasets.census(tmp_path / "b", vocab, store=moved, recipe=Recipe.of(**settings))
    assert set(names(first)) == set(names(second))
    with pytest.MonkeyPatch.context() as patch:
        from maxtoki_toolkit.datasets import _census
        from maxtoki_toolkit.pp import _soma

        patch.setattr(_soma, "_MEMORY", {"soma.init_buffer_bytes": 4096})
        patch.setattr(_census, "_CELLS", (64, 64))
        third = mt.datasets.census(tmp_path / "c", vocab, store=store, recipe=Recipe.of(**settings))
    assert names(third) == names(first)
    one, other = (anndata.read_h5ad(table["path"][0]) for table in (first, third))
    assert (one.layers["rank"] != other.layers["rank"]).nnz == 0
    fourth = mt.datasets.census(tmp_path / "d", vocab, store=store, recipe=Recipe.of(seed=1, **settings))
    assert set(names(fourth)) != set(names(first))


def test_training_takes_the_shards(store, vocab, tmp_path):
    from maxtoki_toolkit.train._cells import read_together

    recipe = Recipe.of(max_tissue_share=1.0)
    shards = mt.datasets.census(tmp_path / "corpus", vocab, store=store, recipe=recipe, cells_per_shard=300)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = mt.models.build_model({**shape, "max_position_embeddings": 64}, vocab)
    (tmp_path / "train").mkdir()
    sequences, tables = read_together(shards["path"].tolist(), model, tmp_path / "train")
    assert len(sequences) == shards["n_cells"].sum() == sum(table.n_obs for table in tables)


def test_cells_without_a_gene_of_the_vocabulary_are_left_out(adata, store, tmp_path):
    few = adata[:, np.asarray((adata.X > 0).mean(axis=0)).ravel().argsort()[10:70]].copy()
    mt.pp.map_genes(few)
    vocab = mt.models.Vocabulary.from_anndata(few)
    recipe = Recipe.of(max_tissue_share=1.0)
    expressed = np.asarray((few.X > 0).sum(axis=1)).ravel() > 0
    n_lost = (asked_for(adata.obs) & ~expressed).sum()
    assert 0 < n_lost < asked_for(adata.obs).sum()
    with pytest.warns(UserWarning, match=rf"{n_lost} of [\d,]+ cells express no gene"):
        shards = mt.datasets.census(tmp_path / "corpus", vocab, store=store, recipe=recipe)
    assert names(shards) == adata.obs_names[asked_for(adata.obs) & expressed].tolist()


def digests(folder) -> list[str]:
    return [
        hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("shards/[0-9]*.h5ad"))
    ]


@pytest.mark.slow
def test_killed_and_gone_on_with_it_gives_the_same_shards(store, vocab, tmp_path):
    vocab_at = tmp_path / "model"
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    mt.models.save_model(mt.models.build_model({**shape, "max_position_embeddings": 64}, vocab), vocab_at)
    for name in ("whole", "killed"):
        lines = {"output": tmp_path / name, "model": vocab_at, "store": store, "cells_per_shard": 25}
        (tmp_path / f"{name}.yaml").write_text("".join(f"{key}: {value}\n" for key, value in lines.items()))
    command = [sys.executable, "-m", "maxtoki_toolkit.cli", "corpus", "-c"]
    subprocess.run([*command, tmp_path / "whole.yaml"], check=True, capture_output=True)
    process = subprocess.Popen(
        [*command, tmp_path / "killed.yaml"], stdout=subprocess.DEVNULL, start_new_session=True
    )
    while process.poll() is None and len(digests(tmp_path / "killed")) < 2:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    there = {
        path.name: path.stat().st_mtime_ns for path in (tmp_path / "killed" / "shards").glob("[0-9]*.h5ad")
    }
    subprocess.run([*command, tmp_path / "killed.yaml"], check=True, capture_output=True)
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")
    assert all((tmp_path / "killed" / "shards" / name).stat().st_mtime_ns == at for name, at in there.items())


def test_tasks_of_an_array_share_the_shards(store, vocab, tmp_path, monkeypatch):
    recipe = Recipe.of(max_tissue_share=1.0)
    settings = {"store": store, "recipe": recipe, "cells_per_shard": 150}
    whole = mt.datasets.census(tmp_path / "whole", vocab, **settings)
    for name, value in {"COUNT": 2, "MIN": 0, "MAX": 1, "STEP": 1}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    for task in range(2):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
        shards = mt.datasets.census(tmp_path / "shared", vocab, share_array=True, **settings)
        assert len(shards) == (len(whole) if task else -(-len(whole) // 2))
    assert digests(tmp_path / "shared") == digests(tmp_path / "whole")


def test_a_corpus_is_not_mixed_with_another(store, vocab, tmp_path):
    recipe = Recipe.of(cells_per_donor=5)
    first = mt.datasets.census(tmp_path / "corpus", vocab, store=store, recipe=recipe)
    written = digests(tmp_path / "corpus")
    with pytest.raises(ValueError, match=r"made from something else \(cells_per_donor\)"):
        mt.datasets.census(tmp_path / "corpus", vocab, store=store, recipe=Recipe.of(cells_per_donor=6))
    assert digests(tmp_path / "corpus") == written
    assert mt.datasets.census(tmp_path / "corpus", vocab, store=store, recipe=recipe).equals(first)
    other = mt.datasets.census(
        tmp_path / "corpus", vocab, store=store, recipe=Recipe.of(cells_per_donor=6), overwrite=True
    )
    assert len(list((tmp_path / "corpus" / "shards").glob("*.h5ad"))) == len(other)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"value_filter": "sex == 'nobody'"},
            ValueError,
            "No cells are left: \"value_filter: sex == 'nobody'\" keeps none of 1,200",
        ),
        ({"value_filter": "sex = male"}, ValueError, "value_filter 'sex = male' cannot be read"),
        ({"value_filter": "colour == 'red'"}, ValueError, "value_filter .* cannot be read"),
        (
            {"keep": {"disease": "healthy"}},
            ValueError,
            "'keep disease: healthy' keeps none of .*'COVID-19', .*'normal'",
        ),
        ({"keep": {"tissue_general": "blood"}}, ValueError, "at most 25% of the cells where there are 1"),
        ({"keep": {"diagnosis": "normal"}}, KeyError, r"no column 'diagnosis' \(keep: diagnosis\).* null"),
        ({"time_key": "age", "known_age": True}, KeyError, r"no column 'age' \(time_key\)"),
        ({"layer": "counts"}, KeyError, r"no X\['counts'\].* It has raw"),
        ({"measurement": "ATAC"}, KeyError, "no measurement 'ATAC'.* RNA"),
        ({"time_key": "nnz", "known_age": True}, ValueError, "years or months is not known"),
    ],
)
def test_what_cannot_be_is_refused(store, vocab, tmp_path, settings, error, message):
    settings = dict(settings)
    value_filter = settings.pop("value_filter", None)
    with pytest.raises(error, match=message):
        mt.datasets.census(
            tmp_path / "x", vocab, store=store, value_filter=value_filter, recipe=Recipe.of(**settings)
        )
    assert not list(tmp_path.iterdir())


def test_what_is_no_store_is_refused(store, vocab, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        mt.datasets.census_plan(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="cannot be read as a TileDB-SOMA store"):
        mt.datasets.census_plan(tmp_path / "folder")
    with pytest.raises(ValueError, match="neither an experiment nor a Census"):
        mt.datasets.census_plan(f"{store}/ms")


def test_a_store_as_the_census_is(adata, tmp_path):
    """A collection that holds an experiment for each organism."""
    tiledbsoma = pytest.importorskip("tiledbsoma", reason="needs the extra census")
    with tiledbsoma.Collection.create(str(tmp_path / "census")) as census:
        census.add_new_collection("census_data")
    write(adata, tmp_path / "census" / "census_data" / "homo_sapiens")
    with tiledbsoma.open(str(tmp_path / "census" / "census_data"), "w") as data:
        data["homo_sapiens"] = tiledbsoma.open(str(tmp_path / "census" / "census_data" / "homo_sapiens"))
    assert mt.datasets.census_plan(tmp_path / "census").n_cells
    with pytest.raises(ValueError, match="no organism 'homo_sapien'. Did you mean 'homo_sapiens'"):
        mt.datasets.census_plan(tmp_path / "census", organism="homo_sapien")


def test_a_store_that_is_cut_short(store, vocab, tmp_path):
    """What is read of it is no half corpus."""
    damaged = tmp_path / "store"
    shutil.copytree(store, damaged)
    fragments = sorted((damaged / "ms" / "RNA" / "X" / "raw" / "__fragments").iterdir())
    data = max((path for path in fragments[0].iterdir()), key=lambda path: path.stat().st_size)
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    with pytest.raises(ValueError, match="cannot be read"):
        mt.datasets.census(tmp_path / "corpus", vocab, store=damaged)
    assert not list((tmp_path / "corpus").glob("shards/*.h5ad"))


def test_a_store_that_cannot_be_reached(monkeypatch):
    pytest.importorskip("tiledbsoma", reason="needs the extra census")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(ConnectionError, match="Check the connection"):
        mt.datasets.census_plan("s3://maxtoki-no-such-bucket/store")


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tiledbsoma", None)
    with pytest.raises(ImportError, match=r'pip install -c constraints.txt -e "\.\[census\]"'):
        mt.datasets.census_plan()


def test_a_release_is_an_address():
    from maxtoki_toolkit.pp._soma import locate

    assert locate(None) == "s3://cellxgene-census-public-us-west-2/cell-census/2025-11-08/soma/"
    assert locate("2024-07-01") == "s3://cellxgene-census-public-us-west-2/cell-census/2024-07-01/soma/"
    assert locate("my/store") == "my/store"


@pytest.mark.network
def test_the_pinned_census():
    recipe = Recipe.of(max_tissue_share=1.0, cells_per_donor=10)
    plan = mt.datasets.census_plan(value_filter="tissue_general == 'tongue'", recipe=recipe)
    assert plan.n_cells
    assert plan.filters["n_cells"][0] == 162_025_130


# --- command and figure -------------------------------------------------------------------------------


def test_the_command(store, vocab, tmp_path, capsys, monkeypatch):
    from maxtoki_toolkit.corpus import run_corpus

    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    mt.models.save_model(
        mt.models.build_model({**shape, "max_position_embeddings": 64}, vocab), tmp_path / "model"
    )
    config = tmp_path / "corpus.yaml"
    text = f"output: {tmp_path}/corpus\nmodel: {tmp_path}/model\nstore: {store}\ncells_per_donor: 8\nkeep: {{disease: null}}\n"
    config.write_text(text)
    assert run_corpus(config, plan=True) is None
    said = capsys.readouterr().out
    assert "at most 8 cells of a donor" in said
    assert "keep disease" not in said
    assert not (tmp_path / "corpus").exists()
    shards = run_corpus(config)
    assert capsys.readouterr().out == said
    files = {path.name for path in (tmp_path / "corpus").iterdir()}
    assert {
        "shards",
        "filters.csv",
        "composition.csv",
        "corpus_composition.png",
        "corpus_composition.pdf",
    } <= files
    assert mt.get.corpus_composition(tmp_path / "corpus")["n_cells"].sum() == shards["n_cells"].sum()
    assert mt.get.corpus_filters(tmp_path / "corpus")["n_cells"].iloc[-1] == shards["n_cells"].sum()
    for line, message in [
        ("cells_per_doner: 8", "unknown settings: cells_per_doner. Did you mean 'cells_per_donor'"),
        ("overwrite: true", "overwrite in .* has no meaning: give --overwrite"),
    ]:
        config.write_text(f"{text}{line}\n")
        with pytest.raises(ValueError, match=message):
            run_corpus(config)
    config.write_text(f"output: {tmp_path}/corpus\n")
    with pytest.raises(ValueError, match="lacks model"):
        run_corpus(config)


def test_the_figure_shows_the_table():
    table = pd.DataFrame(
        {
            "donor": ["a", "b", "c", "d", "d"],
            "sex": ["female", "male", "unknown", "female", "female"],
            "age_years": [3.0, 47.0, np.nan, -0.4, -0.4],
            "tissue": ["lung", "lung", "heart", "skin", "blood"],
            "n_cells": [100, 50, 30, 15, 5],
        }
    )
    figure = mt.pl.corpus_composition(table, n_tissues=2)
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["lung", "heart", "other tissues (2)"]
    assert [bar.get_width() for bar in left.patches] == [150, 30, 20]
    drawn = {}
    for container in right.containers:
        sex = container.get_label().split(",")[0]
        drawn[sex] = {
            round(bar.get_x() + bar.get_width() / 2, 1): bar.get_height()
            for bar in container
            if bar.get_height()
        }
    assert drawn == {"female": {0.5: 1, -1.2: 1}, "male": {4.5: 1}, "sex not known": {6.2: 1}}
    with pytest.raises(KeyError, match="lacks n_cells"):
        mt.pl.corpus_composition(table.drop(columns="n_cells"))
    with pytest.raises(ValueError, match="no rows"):
        mt.pl.corpus_composition(table.iloc[:0])


@pytest.mark.slow
def test_a_clock_of_a_public_data_set_by_its_name(adata, tmp_path, monkeypatch, capsys):
    """Cells of the data set alone, gathered, split as the manifest says, trained on and judged."""
    from maxtoki_toolkit import clocks, reports

    monkeypatch.setattr(reports, "run", lambda *args, **kwargs: None)
    pytest.importorskip("tiledbsoma", reason="needs the extra census")
    ours = mt.datasets.manifest("aida")["clock"]["corpus"]["keep"]["dataset_id"][0]
    renamed = adata.copy()
    renamed.obs["dataset_id"] = renamed.obs["dataset_id"].cat.rename_categories({"atlas": ours})
    config = tmp_path / "clock.yaml"
    lines = {
        "cells": "aida",
        "store": write(renamed, tmp_path / "store"),
        "model": "demo",
        "output": str(tmp_path / "out"),
    }
    lines |= {
        "times": [],
        "max_steps": 1,
        "batch_size": 2,
        "n_held_out": 4,
        "n_tested": 20,
        "n_fitted": 40,
        "device": "cpu",
    }
    config.write_text("\n".join(f"{key}: {value}" for key, value in lines.items()))
    assert not clocks.read_settings(config)["recipe"].flat()["times"]  # the file goes before the manifest
    cost = clocks.plan_clock(config, gpu="H100")
    assert "cells of" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    clocks.run_clock(config)
    model = mt.load_model("demo")
    assert cost.tokens == 2 * min(4 * (model.cell_length + 1) + 3, model.max_length)  # two prompts at most
    tested = anndata.read_h5ad(tmp_path / "out" / "evaluation.h5ad")
    assert set(tested.obs["dataset_id"]) == {ours}
    assert set(tested.obs["disease"]) == {"normal"}
    held_out = tested.obs.groupby("donor_id", observed=True)["held_out"].first().mean()
    assert 0.1 < held_out < 0.5
    assert (tmp_path / "out" / "card.md").is_file()


def test_public_clocks_are_said_where_there_is_none(tmp_path):
    from maxtoki_toolkit import clocks

    config = tmp_path / "clock.yaml"
    config.write_text("cells: kang2018\nmodel: demo\noutput: out\n")
    with pytest.raises(ValueError, match="'kang2018' says of no clock; those of .*aida.* do"):
        clocks.read_settings(config)
    config.write_text("cells: aidaa\nmodel: demo\noutput: out\n")
    with pytest.raises(ValueError, match="did not find aidaa. Did you mean 'aida'"):
        clocks.read_settings(config)
    config.write_text("cells: mine.h5ad\nstore: here\nmodel: demo\noutput: out\n")
    with pytest.raises(ValueError, match="store has a meaning only where cells is a public data set"):
        clocks.read_settings(config)
