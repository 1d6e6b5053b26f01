"""Screens: what is edited, what is reported of it, and that nothing but the edit changes a reading."""

import contextlib
import dataclasses
import importlib
import json
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch

import maxtoki_toolkit as mt
from maxtoki_toolkit import _progress, _shards

KEYS = ["prompt", "gene", "k"]
module = importlib.import_module("maxtoki_toolkit.tl._screen")


@pytest.fixture(scope="module")
def model(tiny_model):
    """A model that has what it takes to tell time, but has learned nothing; it reads 40 genes of a cell."""
    times = tiny_model.vocab.with_times(-900, 900)
    longer = mt.models.extend_model(tiny_model, times, max_length=256)
    torch.manual_seed(0)
    head = mt.models.TimeHead("linear", hidden_size=16, scale=100.0)
    torch.nn.init.normal_(head.linear.weight)
    return dataclasses.replace(longer, time_head=head, cell_length=42)


@pytest.fixture
def cells(model):
    adata = mt.datasets.aging_atlas(80, 10, n_genes=500, seed=1)
    adata.uns = {}
    mt.pp.map_genes(adata, model)
    mt.pp.rank_value_encode(adata, model)
    mt.pp.sample_prompts(adata, time_key="age_months", groupby="cell_type", n_prompts=5, donor_key="donor_id")
    return adata


def screen(adata, model, **settings):
    """Effects; with settings of `mt.tl.Cells`, of single cells."""
    on, others = mt.tl.Cells.split(settings)
    if len(others) < len(settings):
        settings = {**others, "on": on}
    mt.tl.perturb(adata, model, **settings)
    return mt.get.table(adata, "perturbation")


def query_of(adata, effects, row):
    """Genes of a query cell in order, by Ensembl id."""
    ranks = mt.get.ranks(adata).loc[effects["cell"].iloc[row]].dropna().sort_values()
    return ranks.index.tolist()


def close(found, wanted):
    columns = ["effect", "value", "value_intact"]
    names = dict.fromkeys(found.select_dtypes("category"), str)
    found, wanted = (t.astype(names).sort_values(KEYS).reset_index(drop=True) for t in (found, wanted))
    np.testing.assert_allclose(found[columns], wanted[columns], atol=2e-3)
    pd.testing.assert_frame_equal(found.drop(columns=columns), wanted.drop(columns=columns))


def test_the_effect_is_that_of_the_edited_prompt(model, cells):
    """Against prompts with cells that were edited by hand, read by mt.tl.predict_timelapse."""
    effects = screen(cells, model, genes="all", mode="delete")
    assert effects["took_effect"].all()
    mt.tl.predict_timelapse(cells, model)
    intact = mt.get.table(cells, "timelapse")["predicted"]
    for i in (0, 17, 60):
        row = effects.iloc[i]
        edited = cells.copy()
        query = f"{row['cell']} edited"
        copy = cells[[row["cell"]]].copy()
        copy.obs_names = [query]
        copy.X[0, copy.var_names.get_loc(row["gene"])] = 0
        copy.X.eliminate_zeros()
        mt.pp.rank_value_encode(copy, model)
        prompts = edited.uns["prompts"]["prompts"].iloc[[row["prompt"]]].assign(query=query)
        edited.uns["prompts"]["prompts"] = prompts
        edited.uns["prompts"]["params"]["queries_elsewhere"] = True
        mt.tl.predict_timelapse(edited, model, queries=copy)
        predicted = mt.get.table(edited, "timelapse")["predicted"].iloc[0]
        # Without the gene, the cell's counts sum to less, which changes no rank.
        assert predicted == pytest.approx(row["value"], abs=2e-3)
        assert row["value_intact"] == pytest.approx(intact.iloc[row["prompt"]], abs=2e-3)
        assert row["effect"] == row["value"] - row["value_intact"]


def test_absent_genes_and_edits_of_nothing(model, cells):
    first = cells.uns["prompts"]["prompts"]["query"].iloc[0]
    genes = mt.get.ranks(cells).loc[first].sort_values()
    top, unread, absent = genes.index[0], genes.index[45], genes.index[genes.isna()][0]
    asked = [top, unread, absent]
    for mode in ("inhibit", "delete", "shift", "activate", "overexpress"):
        k = {"shift": 3, "activate": 3}.get(mode)
        found = screen(cells, model, genes=asked, mode=mode, k=k).query("prompt == 0").set_index("gene")
        inserts = mode in ("activate", "overexpress")
        assert not found.loc[absent, "present"]
        assert np.isnan(found.loc[absent, "rank_before"])
        if mode == "overexpress":
            assert found.loc[asked, "effect"].notna().all()
            # The first gene is first already; another one pushes out the last that is read.
            assert found.loc[top, "effect"] == 0
            assert not found.loc[top, "took_effect"]
            assert found.loc[[unread, absent], "n_lost"].tolist() == [1, 1]
        else:
            # The gene at rank 46 is beyond the 40 that are read, before and after.
            assert found.loc[[unread, absent], "effect"].isna().all()
            assert not found.loc[[unread, absent], "took_effect"].any()
        if mode in ("shift", "activate"):
            assert found.loc[top, "effect"] == 0
        if mode in ("inhibit", "delete"):
            assert found.loc[top, "effect"] != 0
            assert found.loc[top, "n_gained"] == 1
        assert found.loc[absent, "rank_after"] > 0 if inserts else np.isnan(found.loc[absent, "rank_after"])
    nothing = screen(cells, model, genes="all", mode="shift", k=0)
    assert (nothing.loc[nothing["effect"].notna(), "effect"] == 0).all()
    assert not nothing["took_effect"].any()


def test_neither_batches_nor_other_genes_matter(model, cells, monkeypatch):
    together = screen(cells, model, genes="all")
    with monkeypatch.context() as patched:
        patched.setattr(mt.settings, "max_tokens", 1)
        close(screen(cells, model, genes="all"), together)
    names = together["gene"].cat.categories[:6].tolist()
    few = together[together["gene"].isin(names)]
    for order in (names, names[::-1]):
        found = screen(cells, model, genes=order).dropna(subset="effect")
        close(found, few)
    monkeypatch.setattr(module, "_TOKENS", 2000)
    close(screen(cells, model, genes="all"), together)


def test_on_context_and_both(model, cells):
    genes = cells.var_names[mt.get.ranks(cells).rank(axis=1).le(20).mean().argsort()[-3:]].tolist()
    found = {
        on: screen(cells, model, genes=genes, mode="delete", on=on) for on in ("query", "context", "both")
    }
    for on in ("context", "both"):
        assert (found[on]["value_intact"] == found["query"]["value_intact"]).mean() > 0.5
        assert found[on]["took_effect"].any()
        assert not np.allclose(found[on]["effect"], found["query"]["effect"], equal_nan=True)
    # A gene that only the context has is edited there alone.
    assert (found["both"]["present"] == found["query"]["present"] | found["context"]["present"]).all()


def test_sets_and_names(model, cells):
    ids = cells.var_names[mt.get.ranks(cells).rank(axis=1).le(20).mean().argsort()[-2:]].tolist()
    symbols = cells.var.loc[ids, "symbol"].tolist()
    effects = screen(cells, model, genes=[ids[0], symbols[1], tuple(symbols)], mode="delete")
    assert effects["gene"].cat.categories.tolist() == [*ids, "+".join(symbols)]
    assert effects["symbol"].cat.categories.tolist() == [*symbols, "+".join(symbols)]
    named = screen(cells, model, genes={"both": symbols, "one": symbols[0]}, mode="delete")
    assert named["gene"].cat.categories.tolist() == ["both", "one"]
    wide = effects.pivot(index="prompt", columns="gene", values="effect")
    again = named.pivot(index="prompt", columns="gene", values="effect")
    np.testing.assert_allclose(wide["+".join(symbols)], again["both"], atol=1e-3)
    np.testing.assert_allclose(wide[ids[0]], again["one"], atol=1e-3)
    # A gene that was not measured can be put in.
    unmeasured = cells[:, [gene for gene in cells.var_names if gene != ids[0]]].copy()
    mt.pp.rank_value_encode(unmeasured, model)
    found = screen(unmeasured, model, genes=[symbols[0]], mode="overexpress")
    assert found["gene"].cat.categories.tolist() == [ids[0]]
    assert not found["present"].any()
    assert found["took_effect"].all()


def test_controls_are_like_their_genes(model, cells):
    ranks = mt.get.ranks(cells)
    gene = ranks.notna().mean().nlargest(60).index[30]
    mt.tl.perturb(cells, model, genes={"set": [gene, ranks.notna().mean().idxmax()]}, n_controls=5)
    table = cells.uns["perturbation"]["genes"]
    assert table["matched_to"].tolist() == ["", *["set"] * 5]
    assert (table["n_genes"] == 2).all()
    members = [m.split(";") for m in table["members"]]
    assert all(len(set(m)) == 2 and not set(m) & set(members[0]) for m in members[1:])
    detection = ranks.notna().mean()
    wanted, found = detection[members[0]].mean(), [detection[m].mean() for m in members[1:]]
    assert np.abs(np.array(found) - wanted).max() < 0.3


@pytest.mark.parametrize("path", [None, "effects.csv"])
@pytest.mark.parametrize("tokens", [4000, 1 << 21])
def test_one_bar(model, cells, tmp_path, monkeypatch, tokens, path):
    """That of the parts, from those that were done; where there is one part, that of the reading in it."""
    monkeypatch.setattr(module, "_TOKENS", tokens)
    bars, n_made, part = [], [], module.Screen.part

    def progress(iterable=None, *, total=None, initial=0, disable, **_):
        bars.append((initial, total or len(iterable), disable))
        return contextlib.nullcontext(Mock()) if iterable is None else iterable

    def stopped(self, number):
        assert _progress._hidden == (self.n_parts > 1)
        if len(n_made) == 2:
            raise KeyboardInterrupt
        n_made.append(self.n_parts)
        return part(self, number)

    monkeypatch.setattr(module, "progress", progress)
    monkeypatch.setattr(_shards, "progress", progress)
    monkeypatch.setattr(module.Screen, "part", stopped)
    ask = {"genes": "all", "path": path and tmp_path / path}
    if tokens == 4000:
        with pytest.raises(KeyboardInterrupt):
            mt.tl.perturb(cells, model, **ask)
        monkeypatch.setattr(module.Screen, "part", part)
    mt.tl.perturb(cells, model, **ask)
    n_parts, again = n_made[0], 2 if path else 0
    expected = [(0, 1, True)] if tokens > 4000 else [(0, n_parts, False), (again, n_parts, False)]
    assert bars == expected


@pytest.mark.parametrize("suffix", ["csv.gz", "parquet"])
def test_a_killed_screen_goes_on(model, cells, tmp_path, monkeypatch, suffix):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    monkeypatch.setattr(module, "_TOKENS", 4000)
    whole = screen(cells, model, genes="all", path=tmp_path / f"whole.{suffix}")
    path, made = tmp_path / f"effects.{suffix}", []
    part = module.Screen.part

    def killed(self, number):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(number)
        return part(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(module.Screen, "part", killed)
        with pytest.raises(KeyboardInterrupt):
            mt.tl.perturb(cells, model, genes="all", path=path)
    folder = tmp_path / f"effects.{suffix}.parts"
    assert all(list(folder.glob(f"{number:06d}.*.h5ad")) for number in made)
    assert not path.exists()
    with pytest.raises(ValueError, match=r"other settings \(mode\)"):
        mt.tl.perturb(cells, model, genes="all", mode="delete", path=path)
    # Nor are parts adopted of which nothing says what they are.
    (folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"other settings \(not known\)"):
        mt.tl.perturb(cells, model, genes="all", mode="delete", path=path)
    after = []
    monkeypatch.setattr(
        module.Screen, "part", lambda self, number: after.append(number) or part(self, number)
    )
    found = screen(cells, model, genes="all", path=path)
    assert not set(after) & set(made)
    pd.testing.assert_frame_equal(found, whole)
    assert not folder.exists()
    # The unit is in the file alone; in Python it is an attribute.
    read = pd.read_parquet if suffix == "parquet" else pd.read_csv
    assert set(read(path)["effect_unit"]) == {"months"}
    assert "effect_unit" not in found
    # Once complete it is read; with other settings it is left alone.
    after.clear()
    pd.testing.assert_frame_equal(screen(cells, model, genes="all", path=path), whole)
    assert not after
    with pytest.raises(ValueError, match=r"other settings or data \(.*genes"):
        mt.tl.perturb(cells, model, genes=["FOXO3"], path=path)
    assert json.loads((tmp_path / f"effects.{suffix}.json").read_text())["recipe"]["mode"] == "inhibit"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="has changed"):
        mt.get.table(cells, "perturbation")


@pytest.mark.parametrize("target", [None, "young"])
@pytest.mark.parametrize("readout", ["likelihood", "embedding"])
def test_single_cells(model, cells, readout, target):
    cells.obs["young"] = cells.obs["age_months"] < cells.obs["age_months"].median()
    genes = mt.get.ranks(cells).iloc[0].dropna().nsmallest(2).index.tolist()
    settings = {"genes": genes, "mode": "delete", "readout": readout, "target": target}
    settings |= {"use": cells.obs_names.isin(cells.obs_names[:9]), "donor_key": "donor_id"}
    found = screen(cells, model, **settings)
    assert found.shape[0] == 18
    assert found.attrs["unit"] == {"likelihood": "nats a gene", "embedding": "cosine"}[readout]
    assert (found["effect"].notna() <= found["present"]).all()
    assert found.loc[found["took_effect"], "effect"].abs().max() > 0
    if target is None:
        intact = found.drop_duplicates("cell").set_index("cell")["value_intact"]
        if readout == "likelihood":
            mt.tl.log_likelihood(cells, model)
            np.testing.assert_allclose(intact, cells.obs["log_likelihood"][intact.index], atol=1e-4)
        else:
            np.testing.assert_allclose(intact, 0, atol=1e-6)
            assert (found["effect"].dropna() >= -1e-6).all()


def test_a_model_without_time(model, cells):
    stage1 = dataclasses.replace(model, time_head=None)
    with pytest.raises(ValueError, match="cannot tell time"):
        mt.tl.perturb(cells, stage1, genes="all")
    few = mt.tl.Cells(use=cells.obs_names.isin(cells.obs_names[:3]))
    mt.tl.perturb(cells, stage1, genes="all", readout="likelihood", on=few)
    assert cells.uns["perturbation"]["params"]["readout"] == "likelihood"


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"mode": "knockout"}, ValueError, "no mode 'knockout'"),
        ({"mode": "shift"}, ValueError, "needs k"),
        ({"mode": "shift", "k": [1, 1]}, ValueError, "each once"),
        ({"mode": "activate", "k": -1}, ValueError, "use 'shift'"),
        ({"k": 3}, ValueError, "has no k"),
        ({"genes": ["NOGENE"]}, KeyError, "Did not find the gene 'NOGENE'"),
        (
            {"genes": ["Foxo3", ("KLF22", "KLF2"), "NOGENE"]},
            KeyError,
            r"Did not find these genes: 'Foxo3' \(FOXO3\?\), 'KLF22' \(KLF2\?\), 'NOGENE', neither .* human symbols",
        ),
        ({"genes": []}, ValueError, "no gene to edit"),
        ({"genes": [("FOXO3", "FOXO3")]}, ValueError, "one gene twice"),
        ({"genes": ["FOXO3", "FOXO3"]}, ValueError, "asked for twice"),
        ({"on": mt.tl.Cells(target="sex")}, ValueError, "are for single cells"),
        ({"readout": "embedding", "on": "both"}, ValueError, "no context"),
        ({"key": "nothing"}, KeyError, "sample_prompts"),
        ({"path": "effects.txt"}, ValueError, "must end with"),
    ],
)
def test_refusals(model, cells, settings, error, message):
    with pytest.raises(error, match=message):
        mt.tl.perturb(cells, model, **{"genes": "all", **settings})
    assert "perturbation" not in cells.uns


@pytest.mark.parametrize(
    ("name", "divided_by", "message"),
    [
        ("age_months", 1, None),
        ("years", 12, r"'years'\] is in years by its name, but is taken for months: convert"),
        ("age", 12, r"'age'\] goes from \d+ to \d+, which is taken for months. If these are years, convert"),
    ],
)
def test_ages_in_years_are_noticed(model, name, divided_by, message):
    """A model that tells months would be wrong by a factor of 12."""
    cells = mt.datasets.aging_atlas(300, 10)
    cells.obs[name] = cells.obs["age_months"] // divided_by
    mt.pp.map_genes(cells, model)
    mt.pp.rank_value_encode(cells, model)
    early = pytest.warns(UserWarning, match="is in years") if name == "years" else contextlib.nullcontext()
    with early:
        mt.pp.sample_prompts(cells, time_key=name, groupby="cell_type", n_prompts=20, context_size=1)
    expected = contextlib.nullcontext() if message is None else pytest.raises(ValueError, match=message)
    for read in (mt.tl.predict_timelapse, lambda *a: mt.tl.perturb(*a, genes=["FOXO3"])):
        with expected:
            read(cells, model)
