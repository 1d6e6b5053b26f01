"""Ablations change what they say and nothing else; effects are paired, with donors as units."""

import dataclasses
import importlib

import numpy as np
import pandas as pd
import pytest
from helpers import on_copy

import maxtoki_toolkit as mt
from maxtoki_toolkit.models.sequences import Sequences

module = importlib.import_module("maxtoki_toolkit.tl.ablate_prompt")
SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
}


@pytest.fixture(scope="module")
def cells():
    adata = mt.datasets.aging_atlas(400, 20, n_genes=500)
    mt.pp.map_genes(adata)
    vocab = mt.models.Vocabulary.from_anndata(adata)
    small = mt.models.build_model(SHAPE, vocab)
    longer = mt.models.extend_model(small, vocab.with_times(-900, 900), max_length=512)
    model = dataclasses.replace(longer, time_head=mt.models.TimeHead("expectation"))
    mt.pp.rank_value_encode(adata, model)
    mt.pp.sample_prompts(
        adata,
        time_key="age_months",
        groupby="cell_type",
        n_prompts=60,
        donor_key="donor_id",
        context_size=(1, 2),
    )
    return adata, model


@pytest.fixture
def written(monkeypatch):
    """The tokens of every ablation, in order."""
    found = []
    read = module.read_lapses

    def listen(model, sequences, **settings):
        found.append(np.split(sequences.tokens, sequences.indptr[1:-1]))
        return read(model, sequences, **settings)

    monkeypatch.setattr(module, "read_lapses", listen)
    return found


def parts(tokens, model):
    """Genes of the context and of the query, and lapses, of a prompt."""
    at = int(np.flatnonzero(tokens == model.vocab["<boq>"])[0])
    times = np.isin(tokens, model.vocab.time_ids)
    marks = np.isin(tokens, [model.vocab[m] for m in ("<bos>", "<eos>", "<boq>", "<eoq>")])
    gene = ~times & ~marks
    return tokens[:at][gene[:at]], tokens[at:][gene[at:]], tokens[times]


def test_each_changes_what_it_says(cells, written):
    adata, model = cells
    mt.tl.ablate_prompt(adata, model, ablations=["intact", *module.ABLATIONS], share=0.25)
    intact, noop, *changed = written
    assert all((a == b).all() for a, b in zip(intact, noop, strict=True))
    mask = model.vocab["<mask>"]
    for name, prompts in zip(module.ABLATIONS, changed, strict=True):
        context_same = query_same = lapses_same = 0
        for before, after in zip(intact, prompts, strict=True):
            (c0, q0, t0), (c1, q1, t1) = parts(before, model), parts(after, model)
            context_same += np.array_equal(c0, c1)
            query_same += np.array_equal(q0, q1)
            lapses_same += np.array_equal(t0, t1)
            if name == "shuffle_genes":
                assert sorted(c0) == sorted(c1)
                assert sorted(q0) == sorted(q1)
            if name == "mask_context":
                assert (c1 == mask).all()
                assert len(c1) == len(c0)
            if name == "mask_query":
                assert (q1 == mask).all()
            if name == "drop_lapses":
                assert len(t1) == 0
            if name == "drop_top":
                assert q1.tolist() == q0[len(q0) // 4 :].tolist()
            if name == "drop_bottom":
                assert q1.tolist() == q0[: len(q0) - len(q0) // 4].tolist()
        keeps = {
            "context": name
            in ("shuffle_query", "mask_query", "replace_query", "shuffle_lapses", "drop_lapses"),
            "query": name
            in ("shuffle_context", "mask_context", "replace_context", "shuffle_lapses", "drop_lapses"),
            "lapses": name not in ("shuffle_lapses", "drop_lapses"),
        }
        for part, same in (("context", context_same), ("query", query_same), ("lapses", lapses_same)):
            assert (same == 60) == keeps[part], (name, part)
            if not keeps[part] and part != "lapses":
                assert same < 3, (name, part)


def test_nothing_changed_is_no_effect(cells):
    adata, model = cells
    found = on_copy(mt.tl.ablate_prompt, adata, model, ablations=["intact", "shuffle_genes"])
    effects = mt.get.table(found, "ablate_prompt").set_index("ablation")
    assert effects.loc["intact", ["difference", "difference_low", "difference_high"]].tolist() == [0, 0, 0]
    assert effects.loc["intact", "p_value"] == 1
    assert effects.loc["shuffle_genes", "difference"] != 0
    assert mt.pl.ablation(found).get_title().startswith("60 prompts, ")
    # An ablation is the same beside others.
    alone = on_copy(mt.tl.ablate_prompt, adata, model, ablations=["shuffle_genes"])
    table, other = (a.uns["ablate_prompt"]["prompts"]["shuffle_genes"] for a in (found, alone))
    np.testing.assert_allclose(table, other, rtol=1e-4)


@pytest.mark.parametrize(("shift", "called"), [(0.0, False), (60.0, True)])
def test_effects_are_of_donors(cells, monkeypatch, shift, called):
    """Errors that differ between donors by chance are no effect; errors that grow for all of them are."""
    adata, model = cells
    prompts = mt.get.table(adata, "prompts")
    rng = np.random.default_rng(1)
    donor = prompts["donor"].astype("category").cat.codes.to_numpy()
    of_donor = rng.normal(0, 50, donor.max() + 1)
    error = 200 + rng.normal(0, 20, len(prompts))
    answers = iter([error, error + of_donor[donor] + shift])
    monkeypatch.setattr(
        module, "read_lapses", lambda *_, **__: (prompts["lapse"].to_numpy() + next(answers), None)
    )
    found = on_copy(mt.tl.ablate_prompt, adata, model, ablations=["mask_query"])
    (effect,) = mt.get.table(found, "ablate_prompt").to_dict("records")
    assert (effect["p_value"] < 0.05) == called
    assert (effect["difference_low"] > 0) == called


@pytest.mark.parametrize("of_donors", [0.0, 1.0])
def test_nothing_is_called_too_often(of_donors):
    """Differences of prompts by chance, and of query donors by chance: 300 times at 5%."""
    called = []
    for i in range(300):
        rng = np.random.default_rng(i)
        donors = rng.integers(0, 20, (150, 3)).astype(str)
        table = pd.DataFrame({"donor": donors[:, 0], "donor_0": donors[:, 1], "donor_1": donors[:, 2]})
        table["lapse"] = rng.integers(-300, 300, 150)
        table["intact"] = table["lapse"] + 100
        of_donor = of_donors * rng.normal(0, 20, 20)
        table["x"] = table["intact"] + rng.normal(0, 20, 150) + of_donor[donors[:, 0].astype(int)]
        called.append(module._effects(table, ["x"], 0)["p_value"].iloc[0] < 0.05)
    assert np.mean(called) < 0.08
    assert of_donors == 0 or np.mean(called) > 0.005


def test_cells_too_short_to_drop_keep_their_marks():
    cells = Sequences(np.array([2, 3, 2, 9, 3], np.int32), np.array([0, 2, 5]))
    kept = module._dropped(cells, 0.5, top=True)
    assert kept.tokens.tolist() == [2, 3, 2, 9, 3]


def test_what_is_refused(cells):
    adata, model = cells
    with pytest.raises(ValueError, match="There is no ablation 'shuffle'"):
        mt.tl.ablate_prompt(adata, model, ablations=["shuffle"])
    with pytest.raises(ValueError, match="share must be between 0 and 1"):
        mt.tl.ablate_prompt(adata, model, share=1.0)
    other = on_copy(
        mt.pp.sample_prompts, adata, time_key="age_months", groupby="cell_type", task="cell", n_prompts=5
    )
    with pytest.raises(ValueError, match="ask for the lapse"):
        mt.tl.ablate_prompt(other, model)


@pytest.mark.slow
def test_shuffling_and_masking_hurt_the_demo_model():
    """As in the paper: context and query alike."""
    model = mt.load_model("demo", device="cpu")
    adata = mt.datasets.aging_atlas(2000, 40, seed=12)
    adata = adata[adata.obs["condition"] == "control"].copy()
    mt.pp.map_genes(adata, model)
    mt.pp.rank_value_encode(adata, model)
    mt.pp.sample_prompts(
        adata, time_key="age_months", groupby=["cell_type", "sex"], donor_key="donor_id", n_prompts=500
    )
    mt.tl.ablate_prompt(
        adata, model, ablations=["shuffle_context", "shuffle_query", "mask_context", "mask_query"]
    )
    effects = mt.get.table(adata, "ablate_prompt").set_index("ablation")
    assert (effects["difference"] > 0).all()
    # Of 24 donors, masking is seen; shuffling costs the demo model less.
    masked = effects.loc[["mask_context", "mask_query"]]
    assert (masked["difference_low"] > 0).all()
    assert (masked["q_value"] < 0.05).all()
