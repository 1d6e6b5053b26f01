"""Attention heads: made by hand to look at known things, which has to be found, and nothing else."""

import dataclasses
import importlib

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

import maxtoki_toolkit as mt
from maxtoki_toolkit.models.attention import attention_statistics, stream_attention
from maxtoki_toolkit.models.prompts import write_prompts
from maxtoki_toolkit.models.sequences import Sequences
from maxtoki_toolkit.pp.sample_prompts import read_prompts
from maxtoki_toolkit.stats.matched_sets import (
    log2_ratio,
    make_strata,
    null_ratios,
    other_weights,
    permuted,
    two_sided,
    usable,
)
from maxtoki_toolkit.tl._cells import get_sequences
from maxtoki_toolkit.tl._head_sums import donor_sums
from maxtoki_toolkit.tl._tokens import could_attend, evenly_given, token_parts
from maxtoki_toolkit.tl.head_profiles import _test as profile_test
from maxtoki_toolkit.tl.head_segments import _compare

SET, LAPSES, NEARBY, FIRST, UNIFORM = range(5)
HEADS = ["L0H0", "L0H1", "L0H2", "L0H3", "L0H4", "L0H5"]
SIZE = 16  # of a head


@pytest.fixture(scope="module")
def made():
    """Cells, a gene set, and a model of one layer whose heads look at: the set, lapses, what is near, the first token, all."""
    adata = mt.datasets.aging_atlas(500, 12, n_genes=500, seed=4)
    del adata.uns["truth"]
    mt.pp.map_genes(adata)
    vocab = mt.models.Vocabulary.from_anndata(adata)
    shape = {
        "hidden_size": 96,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 6,
        "head_dim": SIZE,
        "max_position_embeddings": 96,
        # The slowest of the rotations stands still over a prompt.
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e12},
    }
    small = mt.models.build_model(shape, vocab)
    vocab = vocab.with_times(-900, 900)
    model = mt.models.extend_model(small, vocab, max_length=384)
    model = dataclasses.replace(model, time_head=mt.models.TimeHead("expectation"))
    mt.pp.rank_value_encode(adata, model)
    seen = np.flatnonzero(np.asarray((adata.layers["rank"] > 0).mean(axis=0)).ravel() > 0.15)
    members = np.random.default_rng(1).choice(seen, 30, replace=False)
    _set_by_hand(model, vocab, vocab.token_id(adata.var["ensembl_id"].iloc[members]))
    mt.pp.sample_prompts(
        adata, time_key="age_months", groupby="cell_type", n_prompts=60, donor_key="donor_id", context_size=2
    )
    return adata, model, adata.var_names[members].tolist()


def _set_by_hand(model, vocab, members):
    """Embeddings say what a token is; queries are the same for all tokens, keys pick what a head looks at."""
    hf = model.hf
    with torch.no_grad():
        embedding = torch.zeros_like(hf.model.embed_tokens.weight)
        embedding[:, 0] = 1  # what all tokens share
        feature = torch.ones(len(embedding), dtype=torch.long)
        feature[torch.as_tensor(members.astype(int))] = 2
        feature[torch.as_tensor(vocab.time_ids)] = 3
        feature[vocab["<bos>"]] = 4
        embedding[torch.arange(len(embedding)), feature] = (
            1  # all of one length, so that the norm changes nothing
        )
        hf.model.embed_tokens.weight.copy_(embedding)
        attention = hf.model.layers[0].self_attn
        for part in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
            part.weight.zero_()
        unit = (96 / 2) ** -0.5  # a feature after the norm is 1 over this
        still = SIZE // 2 - 1

        def look(head, feature, strength, dimension):
            attention.q_proj.weight[head * SIZE + dimension, 0] = unit * strength * SIZE**0.5
            attention.k_proj.weight[head * SIZE + dimension, feature] = unit

        look(SET, 2, 1.5, still)
        look(LAPSES, 3, 4.0, still)
        # The second rotation turns by 0.03 a token: 60 (1 - cos) is 3 at a distance of 10.
        look(NEARBY, 0, 60.0, 1)
        look(FIRST, 4, 9.0, still)


@pytest.fixture(scope="module")
def read(made):
    """The attention of cells and prompts."""
    adata, model, members = made
    adata = adata.copy()
    settings = {"gene_sets": {"planted": members, "TF": "TF"}}
    mt.tl.attention(
        adata, model, groupby="cell_type", donor_key="donor_id", n_cells=4, n_examples=1, **settings
    )
    mt.tl.attention(adata, model, key="prompts", **settings)
    return adata


def test_a_head_made_for_a_gene_set_is_found_and_no_other(read, made):
    mt.tl.head_enrichment(read, gene_set="planted")
    table = mt.get.table(read, "head_enrichment")
    assert table["name"].tolist() == HEADS
    assert table.index[table["q_value"] < 0.05].tolist() == [SET]
    row = table.loc[SET]
    # exp(1.5) for a member. The mean at a position has members in it, which takes a little off.
    assert row["log2_ratio"] == pytest.approx(1.5 / np.log(2), rel=0.1)
    assert row["log2_ratio_low"] > 1.8
    assert row["same_sign"]
    np.testing.assert_allclose(table.loc[[UNIFORM, 5], "log2_ratio"], 0, atol=1e-4)
    assert (table.loc[[UNIFORM, 5], "p_value"] == 1).all()
    assert abs(table.loc[NEARBY, "log2_ratio"]) < 0.1
    # The same genes, given by name.
    mt.tl.head_enrichment(read, gene_set=made[2], key_added="again")
    pd.testing.assert_frame_equal(mt.get.table(read, "again"), table, check_exact=False, rtol=1e-12)
    ax = mt.pl.head_enrichment(read)
    assert "1 of 6 heads" in ax.get_title(loc="left")


def test_a_head_made_for_lapses_is_found_and_no_other(read):
    for attending in ("all", "last"):
        mt.tl.head_segments(read, attending=attending)
        table = mt.get.table(read, "head_segments").set_index(["segment", "head"])
        found = table.index[table["specialised"]].tolist()
        # `<bos>` of the later cells is one of the marks.
        assert set(found) - {("special", FIRST)} == {("lapses", LAPSES)}
        # What is near, or uniform, is what distance explains.
        for head in (NEARBY, UNIFORM, 5):
            mine = table.xs(head, level="head")
            assert ((mine["mass"] - mine["expected"]).abs() < 0.01).all()
            assert (mine.loc[mine["mass"] > 1e-3, "log2_ratio"].abs() < np.log2(1.25)).all()
    # Against a uniform head, one that looks nearby would pass for one that reads the query.
    assert table.loc[("query", NEARBY), "log2_evenly"] > 0.5
    figure = mt.pl.head_segments(read)
    assert [ax.get_title().split("\n")[0] for ax in figure.axes if "1 of 6 heads" in ax.get_title()] == [
        "lapses",
        "marks",
    ]


def test_statistics_of_heads_made_by_hand(read):
    table = mt.get.attention(read).query("group == 'all' and part == 'genes'").set_index("head")
    assert table.loc[FIRST, "sink"] > 0.98
    assert table.loc[FIRST, "relative_entropy"] < 0.1
    np.testing.assert_allclose(
        table.loc[[UNIFORM, 5], ["relative_entropy", "relative_distance"]], 1, atol=1e-4
    )
    assert table.loc[NEARBY, "distance"] < 12 < table.loc[UNIFORM, "distance"]
    np.testing.assert_allclose(
        table.loc[UNIFORM, ["mass", "expected"]].astype(float), table.loc[UNIFORM, "evenly"], atol=1e-5
    )
    whole = (
        mt.get.attention(read).query("kind == 'segment'").groupby(["name", "group"])[["mass", "last"]].sum()
    )
    np.testing.assert_allclose(whole, 1, atol=1e-4)
    genes = mt.get.attention_genes(read, layer=0, head=UNIFORM)
    np.testing.assert_allclose(genes["rate"], 1, atol=0.2)
    # A high rank alone makes for more mass, from any head; matched on position, it does not.
    assert np.corrcoef(genes["mean_rank"], genes["mass"])[0, 1] < -0.5
    assert abs(np.corrcoef(genes["mean_rank"], genes["rate"])[0, 1]) < 0.3


def test_sums_are_those_of_the_whole_matrices(made, read):
    """In batches with padding, to 1e-5 of eager attention."""
    adata, _, members = made
    shape = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 384,
        "initializer_range": 0.4,
    }
    model = mt.models.build_model(shape, made[1].vocab)
    model = dataclasses.replace(model, time_head=mt.models.TimeHead("expectation"), cell_length=60)
    prompts = read_prompts(adata.uns["prompts"]["prompts"].iloc[:5], adata, adata)
    sequences = write_prompts(
        prompts, get_sequences(adata, model), model.vocab, max_length=180, answer=False
    ).sequences
    # Of unequal lengths.
    cut = np.minimum([120, 180, 90, 150, 60], sequences.lengths)
    kept = np.arange(len(sequences.tokens)) - np.repeat(sequences.indptr[:-1], sequences.lengths) < np.repeat(
        cut, sequences.lengths
    )
    sequences = Sequences(sequences.tokens[kept], np.append(0, np.cumsum(cut)))
    groups = (np.random.default_rng(0).random((len(sequences.tokens), 2)) < 0.3).astype(np.uint8)
    found = list(stream_attention(model, sequences, groups))
    assert max(len(rows) for rows, _ in found) > 1
    model.hf.set_attn_implementation("eager")
    for rows, sums in found:
        for i, row in enumerate(rows):
            mine = slice(sequences.indptr[row], sequences.indptr[row + 1])
            with torch.inference_mode():
                whole = model.hf(
                    torch.tensor(sequences.tokens[mine].astype(int))[None], output_attentions=True
                )
            weights = torch.cat(whole.attentions).flatten(0, 1).double().numpy()
            at = (sums.at >= mine.start) & (sums.at < mine.stop)
            np.testing.assert_allclose(sums.received[at], weights.sum(axis=1).T, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(sums.last[at], weights[:, -1].T, atol=1e-5)
            to_groups = weights @ groups[mine]
            np.testing.assert_allclose(sums.given[i, 0], to_groups[:, 1:].mean(axis=1), atol=1e-5)
            np.testing.assert_allclose(sums.given[i, 1], to_groups[:, -1], atol=1e-5)
            place = np.arange(weights.shape[1])
            distance = (weights * (place[:, None] - place)).sum(axis=2)
            entropy = -(weights * np.log(np.where(weights > 0, weights, 1))).sum(axis=2)
            expected = [
                entropy[:, 1:].mean(axis=1),
                (entropy[:, 1:] / np.log(place[1:] + 1)).mean(axis=1),
                distance[:, 1:].mean(axis=1),
                distance[:, 1:].mean(axis=1) / (place[1:] / 2).mean(),
                weights[:, 1:, 0].mean(axis=1),
            ]
            np.testing.assert_allclose(sums.statistics[i].T, expected, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(
                sums.expected[i, 0], _spread(weights, groups[mine])[:, 1:].mean(axis=1), atol=1e-5
            )
    model.hf.set_attn_implementation("sdpa")


def _spread(weights, groups):
    """The expectation by distance, said as slowly as possible."""
    edges = mt.models.attention._distance_edges(weights.shape[1])
    out = np.zeros((*weights.shape[:2], groups.shape[1]))
    for q in range(weights.shape[1]):
        out[:, q] = weights[:, q, :1] * groups[0]
        for low, high in zip(edges, edges[1:], strict=False):
            keys = np.arange(max(q - high + 1, 1), q - low + 1)
            if len(keys):
                out[:, q] += weights[:, q, keys].sum(axis=1)[:, None] * groups[keys].mean(axis=0)
    return out


def test_neither_batches_nor_order_nor_other_cells_change_the_result(made, read, monkeypatch):
    adata, model, members = made
    order = np.random.default_rng(0).permutation(adata.n_obs)
    other = adata[order].copy()
    settings = {"gene_sets": {"planted": members, "TF": "TF"}}
    monkeypatch.setattr(mt.settings, "max_tokens", 200)
    mt.tl.attention(
        other,
        model,
        groupby="cell_type",
        donor_key="donor_id",
        n_cells=4,
        n_examples=1,
        **settings,
    )
    one, two = read.uns["attention"], other.uns["attention"]
    pd.testing.assert_frame_equal(one["sequences"], two["sequences"])
    pd.testing.assert_frame_equal(one["genes"], two["genes"])
    for name in (
        "mass",
        "expected",
        "given",
        "given_expected",
        "given_evenly",
        "statistics",
        "received",
        "last",
    ):
        np.testing.assert_allclose(one[name], two[name], rtol=1e-4, atol=1e-5)
    # A part of the cells has the same draw.
    kinds = adata.obs["cell_type"].unique()[:2]
    part = adata[adata.obs["cell_type"].isin(kinds)].copy()
    mt.tl.attention(part, model, groupby="cell_type", donor_key="donor_id", n_cells=4)
    drawn = one["sequences"].query("group in @kinds")["name"].tolist()
    assert part.uns["attention"]["sequences"]["name"].tolist() == drawn


def test_sums_of_genes_are_put_together_from_tokens(made, read):
    """Of two units, again and one sequence at a time; and the expectation is the mean at a position."""
    adata, model, _ = made
    result = read.uns["attention"]
    sequences = get_sequences(adata, model)
    genes = result["genes"]["gene"].tolist()
    gene_of = dict(zip(adata.var["token_id"], adata.var_names, strict=True))
    unit = int(result["units"]["n_sequences"].argmax())
    expected = np.zeros(result["mass"].shape[1:])
    count = np.zeros(len(genes))
    for name in result["sequences"].query("unit == @unit")["name"]:
        row = adata.obs_names.get_loc(name)
        tokens = sequences.tokens[sequences.indptr[row] : sequences.indptr[row + 1]]
        received = attention_statistics(model, tokens).received[0]
        for place, token in enumerate(tokens[1:-1], start=1):
            expected[genes.index(gene_of[token])] += received[:, place]
            count[genes.index(gene_of[token])] += 1
    np.testing.assert_allclose(result["mass"][unit], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(result["n_tokens"][unit], count)
    # Over all genes, what is expected is what is received.
    np.testing.assert_allclose(
        result["mass"].sum(axis=(0, 1)), result["expected"].sum(axis=(0, 1)), rtol=1e-4
    )


def test_parts_of_tokens(made):
    adata, model, _ = made
    vocab = model.vocab
    prompts = read_prompts(adata.uns["prompts"]["prompts"].iloc[:3], adata, adata)
    sequences = write_prompts(
        prompts, get_sequences(adata, model), vocab, max_length=384, answer=False
    ).sequences
    parts = token_parts(sequences, vocab, prompts=True)
    assert parts.names == ["first", "special", "lapses", "query", "context_0", "context_1"]
    texts = {number: token for token, number in vocab.tokens.items()}
    for row in range(3):
        mine = slice(sequences.indptr[row], sequences.indptr[row + 1])
        cell, asked = -1, False
        for i in range(mine.start, mine.stop):
            token = texts[sequences.tokens[i]]
            asked |= token == "<boq>"
            if token == "<bos>":
                cell += 1
                rank = 0
            if isinstance(token, int):
                expected = "lapses"
            elif token.startswith("<"):
                expected = "first" if i == mine.start else "special"
            else:
                expected = "query" if asked else f"context_{cell}"
                rank += 1
                assert parts.rank[i] == rank
            assert parts.names[parts.segment[i]] == expected
    groups = parts.segment[:, None] == np.arange(6)
    found = evenly_given(sequences, groups)
    for row in range(3):
        mine = slice(sequences.indptr[row], sequences.indptr[row + 1])
        share = np.cumsum(groups[mine], axis=0) / np.arange(1, sequences.lengths[row] + 1)[:, None]
        np.testing.assert_allclose(found[row], [share[1:].mean(axis=0), share[-1]])
    np.testing.assert_array_equal(could_attend(sequences)[:3], sequences.lengths[0] - np.arange(3))


def test_the_null_really_moves(read):
    """Membership is exchanged, within strata alone, and the null has a spread (L033: a null that never shuffled)."""
    mt.tl.head_enrichment(read, gene_set="planted")
    assert read.uns["head_enrichment"]["params"]["share_exchanged"] > 0.7
    table = mt.get.table(read, "head_enrichment")
    assert table.loc[SET, "null_sd"] > 0.1
    rng = np.random.default_rng(0)
    strata = make_strata(rng.normal(size=(300, 3)))
    member = rng.random(300) < 0.2
    kept = usable(member, strata)
    member, strata = member[kept], strata[kept]
    drawn = np.concatenate(list(permuted(member, strata, 600, rng)))
    assert drawn.shape == (600, kept.sum())
    for stratum in np.unique(strata):
        assert (drawn[:, strata == stratum].sum(axis=1) == member[strata == stratum].sum()).all()
    # Every gene of a stratum is as often a member as any other.
    expected = np.array([member[strata == s].mean() for s in strata])
    np.testing.assert_allclose(drawn.mean(axis=0), expected, atol=0.1)
    assert (drawn != member).any(axis=1).all()


def test_what_position_and_expression_explain_is_not_called():
    """A set of highly ranked genes: much raw mass, and a ratio of 1 among genes like them."""
    rng = np.random.default_rng(0)
    rank = rng.random(1000)
    rates = np.exp(-1.5 * rank)[:, None] * rng.lognormal(0, 0.2, (1000, 6))
    member = rng.random(1000) < 0.6 * (1 - rank) ** 2
    strata = make_strata(np.stack([rank, rng.random(1000)], axis=1))
    assert np.bincount(strata).min() >= 16
    kept = usable(member, strata)
    rates, member, strata = rates[kept], member[kept], strata[kept]
    found = log2_ratio(rates, member, other_weights(member, strata))
    raw = np.log2(rates[member].mean(axis=0) / rates[~member].mean(axis=0))
    assert (raw > 0.3).all()
    assert (np.abs(found) < 0.1).all()
    null, _ = null_ratios(rates, member, strata, 500, rng)
    assert (two_sided(found, null, 1e-5)[0] > 0.01).all()
    # The ratio said slowly.
    outside = [rates[~member & (strata == s)].mean(axis=0) for s in strata[member]]
    np.testing.assert_allclose(found, np.log2(rates[member].mean(axis=0) / np.mean(outside, axis=0)))


def test_a_head_that_treats_all_genes_alike_is_no_finding(read):
    """It has p = 1, not a small or missing one from rounding."""
    for gene_set in ("planted", "TF"):
        mt.tl.head_enrichment(read, gene_set=gene_set, n_permutations=199)
        assert (mt.get.table(read, "head_enrichment").loc[[UNIFORM, 5], "p_value"] == 1).all()
    mt.tl.head_profiles(read, n_permutations=199)
    heads = mt.get.table(read, "head_profiles", "heads")
    assert (heads.loc[[UNIFORM, 5], "p_value"] == 1).all()
    assert heads["p_value"].notna().all()
    mt.tl.head_similarity(read)
    assert mt.get.head_similarity(read).query("head_1 == 'L0H1' or head_2 == 'L0H1'").shape == (5, 7)


def test_donors_are_the_units(read):
    """Many prompts of two donors that differ say less than the prompts suggest."""
    rng = np.random.default_rng(0)
    by_donor = np.repeat(rng.normal(0, 0.05, 8), 50)[:, None]
    given = np.clip(0.3 + by_donor + rng.normal(0, 0.01, (400, 1)), 0.01, None)
    expected = np.full((400, 1), 0.3)
    donor = np.repeat(np.arange(8), 50)
    by_prompts = np.vstack([np.ones(400), 1 - np.eye(400)])
    by_donors = np.vstack([np.ones(400), donor != np.arange(8)[:, None]])
    narrow, wide = (
        _compare(given, expected, expected[:, 0], w, n).iloc[0]
        for w, n in [(by_prompts, 400), (by_donors, 8)]
    )
    assert wide["log2_ratio_high"] - wide["log2_ratio_low"] > 4 * (
        narrow["log2_ratio_high"] - narrow["log2_ratio_low"]
    )
    assert narrow["p_value"] < 0.05 or wide["p_value"] > narrow["p_value"]


def test_profiles_find_a_group_that_differs():
    rng = np.random.default_rng(0)
    donor, group = (x.ravel() for x in np.meshgrid(np.arange(12), np.arange(5), indexing="ij"))
    values = rng.normal(0, 1, (60, 4))
    values[:, 0] += np.where(group == 2, 2.5, 0)
    values -= np.array([values[donor == d].mean(axis=0) for d in donor])
    profiles, heads = profile_test(values, group, donor, 5, 999, 0)
    assert heads["p_value"][0] < 0.005
    assert (heads["p_value"][1:] > 0.01).all()
    assert profiles["difference"][:, 0].argmax() == 2
    assert profiles["difference_low"][2, 0] > 1
    assert heads["null_sd"].min() > 0.01


def test_similar_heads(read):
    """Heads that look at the same genes are alike; uniform ones are like none; order brings likes together."""
    mt.tl.head_similarity(read)
    table = mt.get.head_similarity(read)
    assert len(table) == 15
    assert set(table.attrs["order"]) == set(HEADS)
    heads = read.uns["head_similarity"]["heads"].set_index("name")
    assert heads.loc["L0H0", "reliability"] > 0.25
    ax = mt.pl.head_similarity(read)
    assert [t.get_text() for t in ax.get_xticklabels()] == table.attrs["order"]


def test_one_prompt(read):
    table = mt.get.prompt_attention(read, layer=0, head=LAPSES)
    lapses = table["segment"] == "lapses"
    assert lapses.sum() == 1
    assert table["last"].idxmax() == lapses.idxmax()
    assert table["last"].sum() == pytest.approx(1, abs=1e-5)
    n = len(table)
    assert table["received"].sum() == pytest.approx(n, rel=1e-4)
    figure = mt.pl.prompt_attention(read, layer=0, head=LAPSES)
    assert figure.axes[1].get_xlabel() == "position in the sequence (tokens)"
    mt.pl.prompt_attention(read, layer=0, head=SET, key="attention")
    with pytest.raises(ValueError, match="There is no example 7"):
        mt.pl.prompt_attention(read, layer=0, head=0, example=7)
    with pytest.raises(ValueError, match="1 layers of 6 heads"):
        mt.pl.prompt_attention(read, layer=1, head=0)


def test_profiles_of_a_gene_set_and_their_figure(read):
    mt.tl.head_profiles(read, statistic="planted", n_permutations=199)
    table = mt.get.table(read, "head_profiles")
    assert table.attrs == table.attrs | {"unit": "log2 ratio", "statistic": "planted"}
    assert len(table) == 6 * read.obs["cell_type"].nunique()
    figure = mt.pl.head_profiles(read)
    assert figure.axes[0].get_ylabel() == "specificity"


def test_large_sums_go_to_a_store(made, tmp_path, monkeypatch):
    adata, model, members = made
    adata = adata[adata.obs["cell_type"].isin(adata.obs["cell_type"].unique()[:3])].copy()
    whole = adata.copy()
    settings = {
        "groupby": "cell_type",
        "donor_key": "donor_id",
        "n_cells": 4,
        "gene_sets": {"planted": members, "TF": "TF"},
    }
    mt.tl.attention(whole, model, **settings)
    module = importlib.import_module("maxtoki_toolkit.tl.attention")
    monkeypatch.setattr(module, "LARGEST", 1000)
    with pytest.raises(ValueError, match=r"path='attention.zarr'"):
        mt.tl.attention(adata, model, **settings)
    # In several rounds.
    monkeypatch.setattr(module, "_TOKENS", 5000)
    path = tmp_path / "sums.zarr"
    mt.tl.attention(adata, model, path=path, **settings)
    assert "mass" not in adata.uns["attention"]
    one, two = (donor_sums(a.uns["attention"], None) for a in (whole, adata))
    for a, b in zip(one[:4], two[:4], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    mt.tl.head_enrichment(adata, gene_set="planted", n_permutations=99)
    pd.testing.assert_frame_equal(
        mt.get.attention_genes(adata, layer=0, head=SET),
        mt.get.attention_genes(whole, layer=0, head=SET),
        rtol=1e-4,
    )
    path.rename(tmp_path / "moved.zarr")
    with pytest.raises(FileNotFoundError, match="put them back"):
        mt.tl.head_enrichment(adata)
    # Sums of something else.
    mt.tl.attention(adata, model, path=path, key_added="other", **settings | {"n_cells": 1})
    with pytest.raises(ValueError, match="holds other sums"):
        mt.tl.head_enrichment(adata)


def test_results_survive_a_file(read, tmp_path):
    read = read.copy()
    mt.tl.head_enrichment(read, n_permutations=99)
    mt.tl.head_segments(read)
    read.write_h5ad(tmp_path / "cells.h5ad")
    again = anndata.read_h5ad(tmp_path / "cells.h5ad")
    pd.testing.assert_frame_equal(mt.get.attention(again), mt.get.attention(read), check_dtype=False)
    for key in ("head_enrichment", "head_segments"):
        found, expected = (mt.get.table(adata, key) for adata in (again, read))
        pd.testing.assert_frame_equal(found, expected, check_dtype=False)
        assert found.attrs == expected.attrs
    mt.tl.head_enrichment(again, n_permutations=99)
    pd.testing.assert_frame_equal(
        mt.get.table(again, "head_enrichment"), mt.get.table(read, "head_enrichment"), check_dtype=False
    )
    params = again.uns["attention"]["params"]
    assert {"model", "model_sha256", "seed", "version", "n_truncated", "n_cells", "dtype"} <= set(params)


def test_without_donors_cells_are_in_blocks(made):
    adata, model, members = made
    adata = adata.copy()
    adata.obs = adata.obs.drop(columns="donor_id")
    mt.tl.attention(adata, model, n_cells=80, gene_sets={"planted": members})
    assert adata.uns["attention"]["units"].shape == (20, 3)
    mt.tl.head_enrichment(adata, gene_set="planted", n_permutations=199)
    table = mt.get.table(adata, "head_enrichment")
    assert table.attrs["unit_of_inference"] == "block of cells"
    assert table["log2_ratio_low"].notna().all()
    assert table["p_value"].idxmin() == SET
    with pytest.raises(ValueError, match="All cells are of one group"):
        mt.tl.head_profiles(adata)


def test_what_is_refused(made, read):
    adata, model, members = made
    stage1 = mt.models.build_model(
        {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        mt.models.Vocabulary.from_anndata(adata),
    )
    with pytest.raises(ValueError, match="cannot tell time"):
        mt.tl.attention(adata, stage1, key="prompts")
    with pytest.raises(KeyError, match=r"Run mt.pp.sample_prompts"):
        mt.tl.attention(adata, model, key="nothing")
    with pytest.raises(KeyError, match="Available columns"):
        mt.tl.attention(adata, model, groupby="nothing")
    with pytest.raises(ValueError, match="'few' has 2 of its 3 genes"):
        mt.tl.attention(adata, model, gene_sets={"few": [*members[:2], "NOGENE"]})
    with pytest.raises(KeyError, match="There is no gene set 'KINASES'"):
        mt.tl.attention(adata, model, gene_sets="KINASES")
    with pytest.raises(ValueError, match="n_cells must be at least 1"):
        mt.tl.attention(adata, model, n_cells=0)
    assert "attention" not in adata.uns
    with pytest.raises(ValueError, match="neither context nor lapses"):
        mt.tl.head_segments(read, key="attention")
    with pytest.raises(ValueError, match="attending must be one of all, last"):
        mt.tl.head_segments(read, attending="eoq")
    with pytest.raises(ValueError, match="has 1 of its 1 genes"):
        mt.tl.head_enrichment(read, gene_set=members[:1])
    with pytest.raises(KeyError, match="There is no gene set 'KINASES'"):
        mt.tl.head_enrichment(read, gene_set="KINASES")
    with pytest.raises(ValueError, match="lower min_tokens"):
        mt.tl.head_enrichment(read, gene_set="planted", min_tokens=10**6)
    with pytest.raises(ValueError, match="There is no group 'nothing'"):
        mt.tl.head_enrichment(read, group="nothing")
    with pytest.raises(KeyError, match="There is no statistic 'rank'"):
        mt.tl.head_profiles(read, statistic="rank")
    empty = adata.copy()
    with pytest.raises(KeyError, match="Run mt.tl.attention"):
        mt.tl.head_enrichment(empty)
    with pytest.raises(KeyError, match="Run mt.tl.attention"):
        mt.tl.head_segments(empty)


@pytest.mark.slow
def test_nothing_planted_is_called_at_the_stated_rate(read):
    """Sets drawn within strata, groups permuted within donors, and differences of donors around none."""
    rng = np.random.default_rng(0)
    genes = read.uns["attention"]["genes"]
    total = donor_sums(read.uns["attention"], None).total()
    often = total.n_tokens[0] >= 10
    rates = np.hstack(
        [total.rates[0][often][:, [SET, NEARBY, LAPSES]], rng.lognormal(0, 0.5, (often.sum(), 3))]
    )
    strata = make_strata(genes.loc[often, ["mean_rank", "detection", "expression"]].to_numpy())
    called = []
    for _ in range(150):
        member = np.zeros(len(strata), bool)
        member[rng.choice(len(strata), 40, replace=False)] = True
        kept = usable(member, strata)
        m, s = member[kept], strata[kept]
        observed = log2_ratio(rates[kept], m, other_weights(m, s))
        null, _ = null_ratios(rates[kept], m, s, 199, rng)
        called += (two_sided(observed, null, 1e-5)[0] <= 0.05).tolist()
    assert 0.03 <= np.mean(called) <= 0.08

    donor, group = (x.ravel() for x in np.meshgrid(np.arange(8), np.arange(4), indexing="ij"))
    called = []
    for seed in range(40):
        values = rng.normal(0, 1, (32, 20)) + rng.normal(0, 1, (8, 20))[donor]
        values -= np.array([values[donor == d].mean(axis=0) for d in donor])
        called += (profile_test(values, group, donor, 4, 199, seed)[1]["p_value"] <= 0.05).tolist()
    assert 0.03 <= np.mean(called) <= 0.08

    donor = np.repeat(np.arange(12), 10)
    weights = np.vstack([np.ones(120), donor != np.arange(12)[:, None]])
    given = 0.3 * np.exp(rng.normal(0, 0.1, (12, 1000))[donor] + rng.normal(0, 0.05, (120, 1000)))
    even = np.full(given.shape, 0.3 * np.exp((0.1**2 + 0.05**2) / 2))
    assert 0.03 <= (_compare(given, even, even[:, 0], weights, 12)["p_value"] <= 0.05).mean() <= 0.08


@pytest.mark.slow
def test_what_the_demo_model_does_replicates_between_donors():
    model = mt.load_model("demo", device="cpu")
    adata = mt.datasets.aging_atlas(1200, 20, seed=21)
    mt.pp.map_genes(adata, model)
    mt.pp.rank_value_encode(adata, model)
    mt.tl.attention(adata, model, donor_key="donor_id", n_cells=40)
    mt.tl.head_similarity(adata)
    assert adata.uns["head_similarity"]["heads"]["reliability"].median() > 0.7
    mt.tl.head_enrichment(adata)
    table = mt.get.table(adata, "head_enrichment")
    assert table.attrs["replication_r"] > 0.5
    assert table.attrs["replication_sign"] > 0.6
    assert table.loc[table["q_value"] < 0.05, "same_sign"].all()
