"""Ablated heads, patched states and attributions find what was planted in a model, and nothing where nothing was."""

import builtins
import copy
import dataclasses
import importlib
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import on_copy

import maxtoki_toolkit as mt
from maxtoki_toolkit.models.attribution import Attributions
from maxtoki_toolkit.models.hooks import head_slice
from maxtoki_toolkit.stats.donors import donor_mean
from maxtoki_toolkit.stats.fdr import benjamini_hochberg

module = importlib.import_module("maxtoki_toolkit.tl.attribute")
needs_captum = pytest.mark.skipif(
    find_spec("captum") is None, reason='captum is not installed (extra "interp")'
)
LAYERS, HEADS, SIZE = 3, 4, 6
SCALE = 1000.0


def plant(vocab, carriers, silent=(2, 0), tied=False, kv=4, gene=None):
    """A model that is as good as linear.

    Embeddings have a large constant, so that norms change nothing, and in one dimension +1 or -1 for half of the
    genes. Heads attend to all tokens alike; those of `carriers` write the mean of that dimension into another one, which the time
    head reads. Others write it where nothing reads, and `silent` writes nothing.
    """
    shape = {
        "hidden_size": 16,
        "head_dim": SIZE,
        "intermediate_size": 8,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": kv,
        "max_position_embeddings": 16,
        "tie_word_embeddings": tied,
    }
    model = mt.models.extend_model(
        mt.models.build_model(shape, vocab), vocab.with_times(-900, 900), max_length=64
    )
    hf, constant = model.hf, 200.0
    rms = constant / 4
    rng = np.random.default_rng(0)
    feature = np.zeros(model.vocab.size, np.float32)
    genes = rng.permutation(vocab.gene_ids)
    feature[genes[: len(genes) // 4]], feature[genes[len(genes) // 4 : len(genes) // 2]] = 1, -1
    head = mt.models.TimeHead("linear", hidden_size=16, scale=SCALE)
    with torch.no_grad():
        embeddings = hf.model.embed_tokens.weight
        embeddings.zero_()
        embeddings[:, 0] = constant
        embeddings[:, 1] = torch.from_numpy(feature)
        if not tied:
            hf.lm_head.weight.zero_()
            hf.lm_head.weight[vocab[gene or vocab.genes[0]], 2] = 5.0
        for layer, block in enumerate(hf.model.layers):
            attention = block.self_attn
            for part in (
                attention.q_proj,
                attention.k_proj,
                attention.v_proj,
                attention.o_proj,
                block.mlp.down_proj,
            ):
                part.weight.zero_()
            block.input_layernorm.weight.fill_(rms)
            block.post_attention_layernorm.weight.fill_(rms)
            attention.v_proj.weight[::SIZE, 1] = 1.0
            for h in range(HEADS):
                where = head_slice(model, h).start
                to, weight = (2, carriers[layer, h]) if (layer, h) in carriers else (5 + h, 0.5)
                attention.o_proj.weight[to, where] = 0.0 if (layer, h) == silent else weight
        hf.model.norm.weight.fill_(rms)
        head.linear.weight[0, 2] = 1.0
    return dataclasses.replace(model, time_head=head, cell_length=16), feature


@pytest.fixture(scope="module")
def cells():
    adata = mt.datasets.aging_atlas(200, 12, n_genes=500, seed=1)
    del adata.uns["truth"]
    mt.pp.map_genes(adata)
    vocab = mt.models.Vocabulary.from_anndata(adata)
    mt.pp.rank_value_encode(adata, vocab)
    mt.pp.sample_prompts(
        adata,
        time_key="age_months",
        groupby="cell_type",
        n_prompts=40,
        donor_key="donor_id",
        context_size=(1, 2),
    )
    return adata, vocab


def common_gene(adata):
    """A gene that the model reads of most cells, though not as the first."""
    ranks = adata.layers["rank"].toarray()
    return adata.var["ensembl_id"].iloc[((ranks > 1) & (ranks <= 14)).sum(axis=0).argmax()]


@pytest.fixture(scope="module", params=[(False, 4), (True, 2)], ids=["untied", "grouped_tied"])
def one(request, cells):
    """One head, L1H2, carries the time."""
    tied, kv = request.param
    return plant(cells[1], {(1, 2): 1.0}, tied=tied, kv=kv)[0]


@pytest.fixture(scope="module")
def plain(cells):
    """The same, of the plainest shape."""
    return plant(cells[1], {(1, 2): 1.0})[0]


@pytest.fixture(scope="module")
def two(cells):
    """L0H1 and L1H2 do."""
    return plant(cells[1], {(0, 1): 0.6, (1, 2): 1.0})


@pytest.mark.parametrize("how", ["zero", "mean", "resample"])
def test_planted_head_is_found_and_no_other(cells, one, how):
    """A positive control for every detector."""
    adata, model = cells[0], one
    mt.tl.ablate_heads(adata, model, how=how, key_added=how)
    effects = mt.get.table(adata, how).set_index("heads")
    assert effects["size"].idxmax() == "L1H2"
    others = effects.drop("L1H2")
    assert effects.loc["L1H2", "size"] > 100 * others["size"].max()
    assert effects.loc["L1H2", "excess_low"] > 0
    assert effects.loc["L1H2", ["n_prompts", "share_changed"]].tolist() == [40, 1]
    if how == "zero":
        # All that is read comes through this head.
        np.testing.assert_allclose(
            effects.loc["L1H2", "change"], -effects.loc["L1H2", "value_intact"], rtol=1e-3, atol=0.02
        )
    # A head whose slice of the output projection is 0 has no effect, exactly.
    silent = effects.loc["L2H0"]
    assert (
        silent[["change", "change_low", "change_high", "size", "null_size", "excess", "removed"]].eq(0).all()
    )
    assert silent[["error_change", "error_change_low", "error_change_high", "share_changed"]].eq(0).all()
    assert silent[["p_value", "error_p_value"]].eq(1).all()
    assert effects.loc["L1H2", "removed"] > 0


def test_paired_effects_are_those_of_single_prompts(cells, two):
    """Change and error, from predictions with the weights themselves set to 0."""
    adata, (model, _) = cells[0], two
    mt.tl.ablate_heads(adata, model, how="zero", heads=[(0, 1), [(1, 2), (0, 1)]])
    effects = mt.get.table(adata, "ablate_heads")
    assert effects["heads"].tolist() == ["L0H1", "L0H1+L1H2"]
    other = dataclasses.replace(model, hf=copy.deepcopy(model.hf))
    with torch.no_grad():
        other.hf.model.layers[0].self_attn.o_proj.weight[:, head_slice(model, 1)] = 0
    before, after = (
        mt.get.table(on_copy(mt.tl.predict_timelapse, adata, m), "timelapse") for m in (model, other)
    )
    change = after["predicted"] - before["predicted"]
    np.testing.assert_allclose(effects["change"].iloc[0], change.mean(), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(effects["size"].iloc[0], change.abs().mean(), rtol=1e-3, atol=1e-3)
    error = (after["predicted"] - after["lapse"]).abs() - (before["predicted"] - before["lapse"]).abs()
    np.testing.assert_allclose(effects["error_change"].iloc[0], error.mean(), rtol=1e-3, atol=1e-3)
    assert (effects["change_low"] < effects["change_high"]).all()


def test_direct_effects_add_up_to_the_total(cells, two):
    """In a linear model, head by head and together; by ablation and by patching."""
    adata, (model, _) = cells[0], two
    mt.tl.ablate_heads(adata, model, how="zero", heads=[(0, 1), (1, 2), [(0, 1), (1, 2)]])
    first, second, both = mt.get.table(adata, "ablate_heads")["change"]
    np.testing.assert_allclose(first + second, both, rtol=1e-3)
    np.testing.assert_allclose(first / second, 0.6, rtol=1e-3)
    mt.tl.patch(adata, model, corrupted="mask_query", level="head")
    effects = mt.get.table(adata, "patch")
    np.testing.assert_allclose(effects["effect"].sum(), 1, atol=1e-3)
    read = effects[(effects["segment"] == "eoq")].set_index(["layer", "head"])["effect"]
    np.testing.assert_allclose([read[0, 1], read[1, 2]], [0.375, 0.625], atol=1e-3)
    assert read.drop([(0, 1), (1, 2)]).abs().max() < 1e-3
    assert effects.loc[effects["segment"] != "eoq", "effect"].abs().max() < 1e-3


def test_patching_recovers_the_planted_path(cells, one):
    """The query cell's tokens, before block 1; `<eoq>` after it; through attention, and not the MLPs."""
    adata, model = cells[0], one
    mt.tl.patch(adata, model, corrupted="mask_query", level="residual")
    effects = mt.get.table(adata, "patch")
    table = effects.pivot(index="layer", columns="segment", values="effect")
    assert table.shape == (LAYERS + 1, 6)
    np.testing.assert_allclose(table["query"], [1, 1, 0, 0], atol=2e-3)
    np.testing.assert_allclose(table["eoq"], [0, 0, 1, 1], atol=2e-3)
    assert table[["context_0", "lapse_0", "context_1", "boq"]].abs().max().max() < 2e-3
    # States before the query are the same in both prompts, so that nothing is tested there.
    before = effects["segment"].isin(["context_0", "lapse_0", "context_1", "boq"])
    assert effects.loc[before, "p_value"].isna().all()
    assert effects.loc[~before & (effects["layer"] < LAYERS), "q_value"].notna().any()
    here = effects[(effects["layer"] == 2) & (effects["segment"] == "eoq")].iloc[0]
    np.testing.assert_allclose(here[["effect_low", "effect_high"]].astype(float), 1, atol=2e-3)
    assert here["null"] < 0.9
    mt.tl.patch(adata, model, corrupted="mask_query", level="mlp")
    assert mt.get.table(adata, "patch")["effect"].abs().max() < 1e-6
    mt.tl.patch(adata, model, corrupted="mask_query", level="attention", align="last")
    table = mt.get.table(adata, "patch").pivot(index="layer", columns="segment", values="effect")
    np.testing.assert_allclose(table["eoq"], [0, 1, 0], atol=2e-3)


def test_context_is_told_from_query(cells, plain):
    """Corrupted contexts come back with the contexts."""
    adata, model = cells[0], plain
    mt.tl.patch(adata, model, corrupted="mask_context")
    table = mt.get.table(adata, "patch")
    first = table[table["layer"] == 0].set_index("segment")["effect"]
    assert abs(first["query"]) < 2e-3
    assert first["context_0"] > 0.4


def test_other_prompts_as_corrupted(cells, plain):
    """Those of match_queries, which may be fewer; and cells of other lengths are refused or aligned by last tokens."""
    adata, model = cells[0].copy(), plain
    mt.pp.match_queries(adata, adata, tolerance=60, rng=3)
    n = len(mt.get.table(adata, "matched_prompts"))
    mt.tl.patch(adata, model, corrupted="matched_prompts", queries=adata, n_prompts=None)
    effects = mt.get.table(adata, "patch")
    assert effects["n_prompts"].max() == n
    layers = effects.pivot(index="layer", columns="segment", values="effect")
    np.testing.assert_allclose(layers["query"], [1, 1, 0, 0], atol=5e-3)
    np.testing.assert_allclose(layers["eoq"], [0, 0, 1, 1], atol=5e-3)

    with pytest.raises(ValueError, match=r'segments of another length .*Pass align="last"'):
        mt.tl.patch(adata, model, corrupted="drop_top")
    mt.tl.patch(adata, model, corrupted="drop_top", align="last")
    layers = mt.get.table(adata, "patch").pivot(index="layer", columns="segment", values="effect")
    np.testing.assert_allclose(layers["eoq"], [0, 0, 1, 1], atol=5e-3)
    adata.uns["few"] = {"params": {}, "prompts": mt.get.table(adata, "prompts").head(3)}
    with pytest.raises(ValueError, match="3 prompts, for 40 clean ones"):
        mt.tl.patch(adata, model, corrupted="few")
    shorter = mt.get.table(adata, "prompts")
    shorter.loc[shorter["context_1"] != "", "context_1"] = ""
    adata.uns["shorter"] = {"params": {}, "prompts": shorter}
    with pytest.raises(ValueError, match="have other segments than the clean ones"):
        mt.tl.patch(adata, model, corrupted="shorter")


def test_nothing_lost_is_refused(cells, plain):
    """An effect needs a difference. The planted model does not see the order of genes."""
    adata = cells[0].copy()
    adata.uns["same"] = adata.uns["prompts"]
    with pytest.raises(ValueError, match="all read alike"):
        mt.tl.patch(adata, plain, corrupted="same")


@pytest.mark.parametrize("metric", ["gene", "likelihood", "function"])
def test_other_readings(cells, metric):
    """A gene's log-probability, the cell's, and a function of the logits all lead to the planted head."""
    adata, vocab = cells
    gene = common_gene(adata)
    model, _ = plant(vocab, {(1, 2): 1.0}, gene=gene)
    token = model.vocab[gene]

    def log_odds(logits):
        return logits[:, token] - logits.mean(dim=1)

    mt.tl.ablate_heads(
        adata, model, readout={"gene": gene, "function": log_odds}.get(metric, metric), how="zero"
    )
    effects = mt.get.table(adata, "ablate_heads").set_index("heads")
    assert effects["size"].idxmax() == "L1H2"
    assert effects["size"].drop("L1H2").max() < 0.02 * effects["size"].max()
    assert "error_change" not in effects
    name, unit = {
        "gene": (gene, "nats"),
        "likelihood": ("likelihood", "nats a gene"),
        "function": ("log_odds",) * 2,
    }[metric]
    assert effects.attrs["readout"] == name
    assert effects.attrs["unit"] == unit
    assert (effects["n_prompts"].iloc[0] < 40) == (metric == "gene")
    if metric == "gene":
        adata = adata.copy()
        settings = {"time_key": "age_months", "groupby": "cell_type", "n_prompts": 40, "context_size": 1}
        mt.pp.sample_prompts(adata, **settings)
        mt.tl.patch(adata, model, corrupted="mask_context", readout=gene)
        # The prompt ends before the gene.
        table = mt.get.table(adata, "patch").pivot(index="layer", columns="segment", values="effect")
        assert table.columns.tolist() == ["boq", "context_0", "query"]
        np.testing.assert_allclose(table["context_0"], [1, 1, 0, 0], atol=0.02)


def test_greedy_finds_the_planted_set(cells, two):
    """Chosen on some donors, scored on others, and beyond random sets of as many heads."""
    adata, (model, _) = cells[0], two
    mt.tl.ablate_heads(adata, model, how="zero", max_heads=3, n_random=40)
    steps = mt.get.table(adata, "ablate_heads")
    assert steps["added"].tolist()[:2] == ["L1H2", "L0H1"]
    assert steps["heads"].tolist()[1] == "L0H1+L1H2"
    assert steps["n_heads"].tolist() == [1, 2, 3]
    assert (steps["size"] >= steps["random_low"]).all()
    assert steps["random_p_value"].iloc[1] < 0.1
    assert np.ptp(steps["random_high"]) > 0
    assert steps["n_prompts"].iloc[0] < 40
    assert not np.allclose(steps["size"], steps["size_chosen_on"])
    assert mt.pl.ablate_heads(adata).get_xlabel() == "heads ablated together"
    with pytest.raises(ValueError, match="makes sets itself"):
        mt.tl.ablate_heads(adata, model, max_heads=2, heads=[[(0, 1), (0, 2)]])


@pytest.mark.slow
def test_prompts_beside_others_are_read_the_same(cells, two, monkeypatch):
    """With any batches, and in any order."""
    adata, (model, _) = cells[0].copy(), two
    heads = [(1, 2), (0, 1)]
    for name, tokens in [("a", 1), ("b", 10_000)]:
        monkeypatch.setattr(mt.settings, "max_tokens", tokens)
        mt.tl.ablate_heads(adata, model, heads=heads, key_added=name)
        mt.tl.patch(adata, model, level="attention", key_added=f"patch_{name}", n_prompts=5)
    a, b = (mt.get.table(adata, name) for name in "ab")
    np.testing.assert_allclose(a["change"], b["change"], atol=2e-2)
    np.testing.assert_allclose(a["null_size"], b["null_size"], atol=2e-2)
    a, b = (mt.get.table(adata, f"patch_{name}")[["effect", "null"]] for name in "ab")
    np.testing.assert_allclose(a, b, atol=1e-3)
    table = adata.uns["prompts"]["prompts"]
    adata.uns["prompts"] = {**adata.uns["prompts"], "prompts": table.iloc[::-1]}
    mt.tl.ablate_heads(adata, model, heads=heads, key_added="c")
    b, c = (mt.get.table(adata, name) for name in "bc")
    np.testing.assert_allclose(b["change"], c["change"], atol=2e-2)
    np.testing.assert_allclose(b["change_low"], c["change_low"], atol=2e-2)


@needs_captum
def test_attributions_are_the_planted_weights(cells, plain):
    """In a linear model they are the weights: feature x scale / length of the prompt, and nothing is missed."""
    adata, model = cells[0], plain
    mt.tl.attribute(adata, model, n_steps=8)
    params = adata.uns["attribute"]["params"]
    assert params["relative_residual"] < 1e-2
    genes = mt.get.table(adata, "attribute")
    token = np.array([model.vocab[gene] for gene in genes["gene"]])
    feature = model.hf.model.embed_tokens.weight[token, 1].detach().numpy()
    assert genes.loc[feature > 0, "attribution"].min() > 0
    assert genes.loc[feature < 0, "attribution"].max() < 0
    large, small = (
        genes[feature != 0]["attribution"].abs().min(),
        genes[feature == 0]["attribution"].abs().max(),
    )
    assert large > 3 * small
    tested = genes["q_value"].notna() & (genes["n_units"] >= 8)
    assert (genes["q_value"][tested & (feature != 0)] < 0.05).mean() > 0.9
    assert set(genes["part"]) == {"context", "query"}
    # What is attributed is what is read, but for the residual.
    prompts = adata.uns["attribute"]["prompts"]
    sums = prompts.filter(like="attribution_").sum(axis=1)
    np.testing.assert_allclose(
        prompts["value"] - prompts["baseline_value"], sums + prompts["residual"], rtol=1e-6, atol=1e-6
    )
    segments = mt.get.table(adata, "attribute", "segments").set_index("segment")
    assert segments.loc[["boq", "eoq"], "attribution"].eq(0).all()
    # All tokens count alike here: shares are those of the tokens, but for marks and genes without weight.
    assert abs(segments.loc["query", "share"] / segments.loc["query", "share_of_tokens"] - 1) < 0.4
    assert abs(params["rank_correlation"]) < 0.2
    assert mt.pl.attribute(adata, part="query", min_prompts=3).get_ylabel() == ""


@needs_captum
def test_a_genes_attributions(cells):
    """The log-probability of a gene: of what stands before it, and of nothing after."""
    adata, vocab = cells
    gene = common_gene(adata)
    model, feature = plant(vocab, {(1, 2): 1.0}, gene=gene)
    mt.tl.attribute(adata, model, readout=gene, n_steps=8)
    genes = mt.get.table(adata, "attribute")
    assert genes.attrs["unit"] == "nats"
    assert not ((genes["gene"] == gene) & (genes["part"] == "query")).any()
    sign = np.sign(feature[[model.vocab[name] for name in genes["gene"]]])
    assert (np.sign(genes["attribution"])[sign != 0] == sign[sign != 0]).all()
    with pytest.raises(KeyError, match="Did not find the gene 'no gene'"):
        mt.tl.attribute(adata, model, readout="no gene")


@needs_captum
@pytest.mark.slow
def test_attributions_that_do_not_add_up_are_said(cells, monkeypatch):
    """Completeness is checked, not assumed."""
    adata, vocab = cells
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"max_position_embeddings": 16, "initializer_range": 0.8}
    small = mt.models.build_model(shape, vocab)
    model = mt.models.extend_model(small, vocab.with_times(-900, 900), max_length=64)
    model = dataclasses.replace(model, time_head=mt.models.TimeHead("expectation"))
    with pytest.warns(UserWarning, match=r"Attributions miss .* of what they should add up to"):
        mt.tl.attribute(adata, model, n_steps=1, n_prompts=4)
    rough = adata.uns["attribute"]["params"]["relative_residual"]
    monkeypatch.setattr(module, "_TOLERANCE", rough / 2)
    mt.tl.attribute(adata, model, n_steps=200, n_prompts=4)
    assert adata.uns["attribute"]["params"]["relative_residual"] < rough / 2
    monkeypatch.setattr(module, "_TOLERANCE", 100)
    for baseline in ("mask", "pad"):
        mt.tl.attribute(adata, model, n_steps=2, n_prompts=3, baseline=baseline)


@needs_captum
def test_rank_alone_is_not_called_a_gene(cells, plain, monkeypatch):
    """Attributions that go with the rank and the donor only: the trivial baseline says so, and no gene is called."""
    adata = cells[0]
    rng = np.random.default_rng(0)

    def fake(model, sequences, read, **_):
        n = len(sequences.lengths)
        place = np.arange(len(sequences.tokens)) - np.repeat(sequences.indptr[:-1], sequences.lengths)
        values = 1 / (1 + place % 16) + 0.05 * rng.normal(size=len(place))
        return Attributions(values, np.add.reduceat(values, sequences.indptr[:-1]), np.zeros(n))

    monkeypatch.setattr(module, "integrated_gradients", fake)
    mt.tl.attribute(adata, plain)
    genes = mt.get.table(adata, "attribute")
    assert genes.attrs["rank_correlation"] < -0.5
    tested = genes[genes["p_value"].notna()]
    assert len(tested) > 60
    assert (tested["q_value"] < 0.05).mean() < 0.02
    np.testing.assert_allclose(genes["attribution"] - genes["rank_alone"], genes["excess"], atol=1e-9)


def test_nothing_is_called_too_often():
    """Changes by chance, of prompts and of donors: 100 heads, 5 times, at 5%."""
    called, found = [], []
    for i in range(5):
        rng = np.random.default_rng(i)
        donors = rng.integers(0, 20, (150, 2))
        table = pd.DataFrame({"donor": donors[:, 0].astype(str), "donor_0": donors[:, 1].astype(str)})
        values = rng.normal(size=(150, 100)) + rng.normal(size=(20, 100))[donors[:, 0]]
        p_values = donor_mean(values, table)["p_value"]
        called.append((p_values < 0.05).mean())
        found.append((benjamini_hochberg(p_values) < 0.05).sum())
    assert 0.005 < np.mean(called) < 0.08
    assert sum(found) <= 5


def test_units_are_donors_and_few_are_not_tested():
    """Not tested is not negative: prompts of two donors give no p value, however many."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"donor": np.repeat(["a", "b"], 50), "query": [f"cell{i}" for i in range(100)]})
    few = donor_mean(rng.normal(1, 0.1, (100, 1)), table)
    assert few["n_units"].tolist() == [2]
    assert few[["low", "high", "p_value"]].isna().all().all()
    assert np.isnan(benjamini_hochberg(few["p_value"])).all()
    by_cell = donor_mean(rng.normal(1, 0.1, (100, 1)), table[["query"]])
    assert by_cell["p_value"].iloc[0] < 1e-6
    # What is known of some prompts only is a mean over those.
    values = np.column_stack([np.arange(100.0), np.where(np.arange(100) < 10, 5.0, np.nan)])
    assert donor_mean(values, table)["estimate"].tolist() == [49.5, 5.0]
    assert donor_mean(values, table)["n_units"].tolist() == [2, 1]


def test_models_that_cannot_tell_time(cells):
    """Refused for time; the likelihood of cells, one by one, is read instead."""
    adata, vocab = cells[0].copy(), cells[1]
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    stage_1 = mt.models.build_model({**shape, "max_position_embeddings": 16}, vocab)
    untrained = mt.models.extend_model(stage_1, vocab.with_times(-900, 900), max_length=64)
    for model in (stage_1, untrained):
        for function in (
            mt.tl.ablate_heads,
            mt.tl.patch,
            *([mt.tl.attribute] if find_spec("captum") else []),
        ):
            with pytest.raises(ValueError, match="cannot tell time|reads no prompts"):
                function(adata, model)
    mt.tl.ablate_heads(adata, stage_1, readout="likelihood", donor_key="donor_id", n_prompts=20)
    effects = mt.get.table(adata, "ablate_heads")
    assert effects["unit"].tolist() == ["donor", "donor"]
    assert effects["n_prompts"].tolist() == [20, 20]
    score = on_copy(mt.tl.log_likelihood, adata, stage_1).obs["log_likelihood"]
    known = adata.copy()
    del adata.obs["donor_id"]
    mt.tl.ablate_heads(adata, stage_1, readout="likelihood", n_prompts=None)
    np.testing.assert_allclose(
        mt.get.table(adata, "ablate_heads")["value_intact"].iloc[0], score.mean(), rtol=1e-5
    )
    assert mt.get.table(adata, "ablate_heads")["unit"].iloc[0] == "query cell"
    with pytest.raises(ValueError, match="reads no prompts, so key="):
        mt.tl.ablate_heads(adata, stage_1, readout="likelihood", key="prompts")
    with pytest.raises(ValueError, match="donor_key is for models"):
        mt.tl.ablate_heads(known, untrained, readout="likelihood", donor_key="donor_id")


def test_prompts_that_ask_for_cells(cells, two):
    adata, (model, _) = cells[0].copy(), two
    settings = {"time_key": "age_months", "groupby": "cell_type", "donor_key": "donor_id", "n_prompts": 12}
    mt.pp.sample_prompts(adata, task="cell", context_size=1, **settings)
    with pytest.raises(ValueError, match="ask for cells"):
        mt.tl.ablate_heads(adata, model)
    mt.tl.ablate_heads(adata, model, readout="likelihood", heads=[(1, 2)])
    assert mt.get.table(adata, "ablate_heads")["change"].abs().iloc[0] > 0


def test_what_is_refused(cells, two):
    adata, (model, _) = cells[0], two
    with pytest.raises(ValueError, match="There is no how 'none'"):
        mt.tl.ablate_heads(adata, model, how="none")
    with pytest.raises(
        ValueError, match=r"There is no head \(0, 4\); this model has layers 0..2 and heads 0..3"
    ):
        mt.tl.ablate_heads(adata, model, heads=[(0, 4)])
    with pytest.raises(ValueError, match="heads is empty"):
        mt.tl.ablate_heads(adata, model, heads=[])
    with pytest.raises(ValueError, match="n_prompts must be at least 2"):
        mt.tl.ablate_heads(adata, model, n_prompts=1)
    with pytest.raises(ValueError, match="There is no level 'heads'"):
        mt.tl.patch(adata, model, level="heads")
    with pytest.raises(KeyError, match="neither an ablation"):
        mt.tl.patch(adata, model, corrupted="nothing")
    with pytest.raises(ValueError, match="takes segments out"):
        mt.tl.patch(adata, model, corrupted="drop_lapses")
    with pytest.raises(TypeError, match="Expected a model"):
        mt.tl.ablate_heads(adata, "demo")
    lone = adata.copy()
    one_longer = lone.uns["prompts"]["prompts"].sort_values("context_1").iloc[[0, 1, -1]]
    lone.uns["prompts"] = {**lone.uns["prompts"], "prompts": one_longer}
    with pytest.raises(ValueError, match="no other with as many context cells"):
        mt.tl.ablate_heads(lone, model, how="resample")


def test_without_captum_the_extra_is_named(cells, two, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **settings):
        if name.partition(".")[0] == "captum":
            raise ImportError(name)
        return real(name, *args, **settings)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r'pip install -c constraints.txt -e "\.\[interp\]"'):
        mt.tl.attribute(cells[0], two[0])


def test_figures(cells, two):
    adata, (model, _) = cells[0], two
    mt.tl.ablate_heads(adata, model, how="zero", n_prompts=20)
    ax = mt.pl.ablate_heads(adata)
    grid = ax.images[0].get_array()
    assert grid.shape == (LAYERS, HEADS)
    effects = mt.get.table(adata, "ablate_heads").set_index(["layer", "head"])
    assert grid[1, 2] == effects.loc[(1, 2), "error_change"]
    assert (
        mt.pl.ablate_heads(adata, value="change").images[0].get_array()[0, 1] == effects.loc[(0, 1), "change"]
    )
    with pytest.raises(ValueError, match="There is no value='p_value'"):
        mt.pl.ablate_heads(adata, value="p_value")
    mt.tl.ablate_heads(adata, model, heads=[[(0, 1), (1, 2)], (0, 0)], n_prompts=20)
    ax = mt.pl.ablate_heads(adata)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["L0H1+L1H2", "L0H0"]
    mt.tl.patch(adata, model, level="head", n_prompts=20)
    ax = mt.pl.patch(adata)
    assert ax.images[0].get_array().shape == (LAYERS * HEADS, 6)
    assert "<eoq>" in [label.get_text() for label in ax.get_xticklabels()]
