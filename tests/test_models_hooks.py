"""Hooks: an edit changes what it says, where it says, and is gone afterwards."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

import maxtoki_toolkit as mt
from maxtoki_toolkit.models.ablation import ablate, mean_activations
from maxtoki_toolkit.models.engine import last_states, run
from maxtoki_toolkit.models.hooks import PARTS, Site, captured, edited, head_slice, n_heads, n_layers, resume
from maxtoki_toolkit.models.layout import counterparts, layout, n_classes, place_classes
from maxtoki_toolkit.models.prefix import prefix_forest
from maxtoki_toolkit.models.readout import likelihood_readout, logits_readout, token_readout
from maxtoki_toolkit.models.sequences import Sequences

GENES = [f"ENSG{i:011d}" for i in range(60)]
VOCAB = mt.models.Vocabulary(
    {t: i for i, t in enumerate(["<pad>", "<mask>", "<bos>", "<eos>", *GENES])}, dict.fromkeys(GENES, 1.0)
)
TOKENS = torch.tensor([[2, 9, 14, 30, 3], [2, 50, 8, 21, 3]])


def build(kv=2, tied=False, attention="sdpa"):
    """Four heads of 6 in a hidden size of 20: head_dim is not hidden / heads."""
    shape = {
        "hidden_size": 20,
        "head_dim": 6,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": kv,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
        "tie_word_embeddings": tied,
    }
    return mt.models.build_model(shape, VOCAB, attention=attention)


@pytest.fixture(scope="module", params=[(4, False), (2, True)], ids=["untied", "grouped_tied"])
def model(request):
    return build(*request.param)


def join(rows):
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    return Sequences(np.concatenate(rows).astype(np.int32), indptr)


@pytest.fixture(scope="module")
def sequences():
    rng = np.random.default_rng(0)
    return join([[2, *rng.permutation(np.arange(4, 64))[: 5 + 3 * i], 3] for i in range(12)])


def logits(model, edits=()):
    with torch.inference_mode(), edited(model, edits):
        return model.hf(TOKENS).logits


def n_hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.hf.modules())


def all_sites(model):
    sites = [Site(layer, part) for layer in range(n_layers(model)) for part in PARTS]
    return sites + [Site(layer, "head", h) for layer in range(n_layers(model)) for h in range(n_heads(model))]


def test_zero_delta_edit_is_the_clean_run_bit_by_bit(model):
    """An edit that changes nothing does not change the result."""
    clean = logits(model)
    for site in all_sites(model):
        assert torch.equal(logits(model, [(site, lambda x: x)]), clean), site
        assert torch.equal(logits(model, [(site, lambda x: x + 0)]), clean), site
        assert torch.equal(logits(model, [(site, lambda x: x.clone())]), clean), site


def test_scaling_by_one_is_nothing_and_by_two_is_not(model):
    """Steering with alpha = 1 is a no-op."""
    clean = logits(model)
    for site in all_sites(model):
        assert torch.equal(logits(model, [(site, lambda x: 1.0 * x)]), clean)
        changed = not torch.equal(logits(model, [(site, lambda x: 2.0 * x + 0.1)]), clean)
        assert changed, site


def test_two_edits_compose(model):
    """AB is not B. In one list, and context within context; the order counts."""
    site = Site(1, "output")
    double, shift = (site, lambda x: 2 * x), (site, lambda x: x + torch.linspace(0, 1, x.shape[-1]))
    both = logits(model, [double, shift])
    with edited(model, [double]):
        assert torch.equal(logits(model, [shift]), both)
    assert not torch.equal(both, logits(model, [shift]))
    assert not torch.equal(both, logits(model, [shift, double]))
    heads = [(Site(0, "head", h), torch.zeros_like) for h in range(4)]
    assert torch.equal(logits(model, heads), logits(model, [(Site(0, "head"), torch.zeros_like)]))


def test_an_edit_at_one_layer_changes_the_next(model):
    """No empty layer after the source; and the input of block l + 1 is the output of block l."""
    sites = [Site(layer, part) for layer in range(3) for part in ("input", "output")]
    with torch.inference_mode():
        with captured(model, sites) as clean:
            model.hf(TOKENS)
        with edited(model, [(Site(1, "attention"), lambda x: x + 1)]), captured(model, sites) as found:
            model.hf(TOKENS)
    for layer in range(2):
        assert torch.equal(clean[Site(layer, "output")], clean[Site(layer + 1, "input")])
    assert torch.equal(found[Site(1, "input")], clean[Site(1, "input")])
    assert not torch.equal(found[Site(2, "input")], clean[Site(2, "input")])
    # What is added lands in the stream as it is (the MLP adds its own to it).
    with (
        torch.inference_mode(),
        edited(model, [(Site(1, "mlp"), lambda x: x + 1)]),
        captured(model, sites) as found,
    ):
        model.hf(TOKENS)
    torch.testing.assert_close(found[Site(2, "input")], clean[Site(2, "input")] + 1)


def test_all_heads_ablated_is_no_attention(model):
    heads = [(Site(1, "head", h), torch.zeros_like) for h in range(4)]
    with torch.inference_mode(), edited(model, heads), captured(model, [Site(1, "attention")]) as seen:
        model.hf(TOKENS)
    assert (seen[Site(1, "attention")] == 0).all()


def test_a_head_is_its_slice_of_the_output_projection(model):
    """Against weights set to 0: what the head writes, and nothing else, is gone."""
    for layer, head in [(0, 0), (1, 3), (2, 2)]:
        other = dataclasses.replace(model, hf=copy.deepcopy(model.hf))
        assert head_slice(model, head) == slice(6 * head, 6 * head + 6)
        with torch.no_grad():
            other.hf.model.layers[layer].self_attn.o_proj.weight[:, head_slice(model, head)] = 0
        ablated = logits(model, [(Site(layer, "head", head), torch.zeros_like)])
        torch.testing.assert_close(ablated, logits(other))
        assert not torch.equal(ablated, logits(model))
        # In the other model this head writes nothing: to ablate it is nothing, exactly.
        assert torch.equal(logits(other, [(Site(layer, "head", head), torch.zeros_like)]), logits(other))


def test_direct_paths_add_up(model):
    """What heads and MLPs write, and the embedding, are the stream before the final norm."""
    parts = [Site(layer, part) for layer in range(3) for part in ("attention", "mlp")]
    with torch.inference_mode(), captured(model, [Site(0, "input"), Site(2, "output"), *parts]) as found:
        model.hf(TOKENS)
    total = found[Site(0, "input")] + sum(found[site] for site in parts)
    torch.testing.assert_close(total, found[Site(2, "output")])


def test_hooks_are_gone_also_after_errors(model):
    assert n_hooks(model) == 0
    clean = logits(model)

    def fail(_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        logits(model, [(Site(0, "mlp"), torch.zeros_like), (Site(2, "attention"), fail)])
    assert n_hooks(model) == 0
    with pytest.raises(ValueError, match="There is no layer 3"):
        logits(model, [(Site(0, "mlp"), torch.zeros_like), (Site(3, "mlp"), torch.zeros_like)])
    assert n_hooks(model) == 0
    blocks = model.hf.model.layers
    with pytest.raises(RuntimeError):
        resume(model, 1, torch.zeros(1, 2, 7))
    assert model.hf.model.layers is blocks
    assert torch.equal(logits(model), clean)


def test_edits_do_not_leak_into_what_they_were_given(model):
    with torch.inference_mode(), captured(model, [Site(1, "head")]) as kept:
        model.hf(TOKENS)
        before = kept[Site(1, "head")].clone()
        states = kept[Site(1, "head")]
        with edited(model, [(Site(1, "head", 2), torch.zeros_like)]):
            model.hf(TOKENS)
    assert torch.equal(states, before)


def test_what_edits_are_refused(model):
    with pytest.raises(ValueError, match="There is no part 'heads'"):
        logits(model, [(Site(0, "heads"), torch.zeros_like)])
    with pytest.raises(ValueError, match="There is no head 4"):
        logits(model, [(Site(0, "head", 4), torch.zeros_like)])
    with pytest.raises(ValueError, match="There is no head 0 of 'mlp'"):
        logits(model, [(Site(0, "mlp", 0), torch.zeros_like)])
    with pytest.raises(ValueError, match=r"must return a tensor of shape \(2, 5, 20\), got NoneType"):
        logits(model, [(Site(0, "mlp"), lambda x: None)])
    with pytest.raises(ValueError, match=r"of shape \(2, 5, 6\), got \(2, 5, 1\)"):
        logits(model, [(Site(0, "head", 1), lambda x: x[..., :1])])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_going_on_from_a_block_is_the_whole_pass(attention):
    model = build(attention=attention)
    with torch.inference_mode(), captured(model, [Site(layer, "input") for layer in range(3)]) as streams:
        whole = model.hf.model(TOKENS, use_cache=False).last_hidden_state
    with torch.inference_mode():
        for layer in range(3):
            assert torch.equal(resume(model, layer, streams[Site(layer, "input")]), whole)


def test_uniform_edits_agree_with_shared_prefixes(model):
    """An edit that is the same for all tokens gives the same where sequences share their start."""
    rng = np.random.default_rng(1)
    start = [2, *rng.permutation(np.arange(4, 64))[:40]]
    sequences = join([[*start, *rng.permutation(np.arange(4, 64))[: 3 + i], 3] for i in range(6)])
    edits = [(Site(0, "head", 1), torch.zeros_like), (Site(2, "mlp"), lambda x: 0.5 * x)]

    def states(forest):
        found = np.zeros((6, 20), np.float32)

        def compute(batch):
            return last_states(model.hf.model(**batch.inputs).last_hidden_state, batch)

        with edited(model, edits):
            for rows, part in run(model, sequences, compute, forest=forest):
                found[rows] = part.numpy()
        return found

    forest = prefix_forest(sequences)
    assert (forest.shared > 30).sum() == 5
    np.testing.assert_allclose(states(forest), states(None), atol=2e-5)


@pytest.mark.parametrize("how", ["zero", "mean", "resample"])
def test_any_batch_any_order(model, sequences, how):
    """Of sequences of different lengths, alone, together and in another order."""
    order = np.random.default_rng(2).permutation(12)
    shuffled = join([sequences.tokens[slice(*sequences.indptr[i : i + 2])] for i in order])
    partners = np.roll(np.arange(12), 1)
    place = np.argsort(order)

    def values(some, max_tokens, partners):
        parts = layout(some, VOCAB)
        classes, n = place_classes(some, parts), n_classes(parts)
        means = mean_activations(model, some, classes, n, max_tokens=max_tokens)
        read = likelihood_readout(model, np.ones(12, int))
        sets = [[(0, 1)], [(2, 3), (1, 0)]]
        given = {"means": means, "partners": partners, "null": False, "max_tokens": max_tokens}
        return ablate(model, some, parts, read, sets, how, **given)

    alone, together = values(sequences, 1, partners), values(sequences, 10_000, partners)
    other = values(shuffled, 90, place[partners[order]])
    assert np.ptp(alone.values - alone.intact[:, None]) > 1e-3
    for field in ("intact", "values"):
        a, b, c = (getattr(found, field) for found in (alone, together, other))
        np.testing.assert_allclose(a, b, atol=2e-5)
        np.testing.assert_allclose(a[order], c, atol=2e-5)


def test_out_of_memory_halves_the_batch(model, sequences, monkeypatch):
    parts, read = layout(sequences, VOCAB), token_readout(model, 9)
    expected = ablate(model, sequences, parts, read, [[(0, 0)]], "zero")
    calls = []

    def tight(states, batch):
        calls.append(len(batch.rows))
        if len(batch.rows) > 3:
            raise torch.OutOfMemoryError
        return read(states, batch)

    found = ablate(model, sequences, parts, tight, [[(0, 0)]], "zero", max_tokens=10_000)
    assert max(calls) == 12
    np.testing.assert_allclose(found.values, expected.values, atol=2e-5)
    # The random directions belong to sequences, not to batches.
    np.testing.assert_allclose(found.null, expected.null, atol=2e-5)
    assert n_hooks(model) == 0


def test_the_null_changes_as_much_elsewhere(model, sequences):
    """The null moves. And it is of the same size."""
    parts, read = layout(sequences, VOCAB), token_readout(model, 9)
    found = ablate(model, sequences, parts, read, [[(1, 2)], [(0, 0), (0, 1)]], "zero", seed=3)
    assert ((found.null - found.intact[:, None]) != 0).all()
    assert (found.null != found.values).all()
    other = ablate(model, sequences, parts, read, [[(1, 2)]], "zero", seed=4)
    assert (other.null[:, 0] != found.null[:, 0]).all()
    assert (other.values[:, 0] == found.values[:, 0]).all()
    with torch.inference_mode(), captured(model, [Site(1, "attention"), Site(1, "input")]) as clean:
        model.hf(torch.from_numpy(sequences.tokens[: sequences.indptr[1]].astype(np.int64))[None])
        states = dict(clean)
        with edited(model, [(Site(1, "head", 2), torch.zeros_like)]):
            model.hf(torch.from_numpy(sequences.tokens[: sequences.indptr[1]].astype(np.int64))[None])
        added = states[Site(1, "attention")] - clean[Site(1, "attention")]
    relative = (added.norm(dim=2) / states[Site(1, "input")].norm(dim=2)).mean()
    np.testing.assert_allclose(found.removed[0, 0], relative, rtol=1e-4)


def test_means_are_means(model, sequences):
    parts = layout(sequences, VOCAB)
    classes = place_classes(sequences, parts)
    means = mean_activations(model, sequences, classes, n_classes(parts), max_tokens=50)
    states = []
    for i in range(12):
        tokens = torch.from_numpy(sequences.tokens[slice(*sequences.indptr[i : i + 2])].astype(np.int64))
        with torch.inference_mode(), captured(model, [Site(2, "head")]) as found:
            model.hf(tokens[None])
        states.append(found[Site(2, "head")][0].numpy())
    states = np.concatenate(states)
    for code in np.unique(classes):
        np.testing.assert_allclose(means[2][code], states[classes == code].mean(axis=0), atol=1e-5)


def test_readouts(model, sequences):
    tokens = [sequences.tokens[slice(*sequences.indptr[i : i + 2])] for i in range(12)]
    first = np.full(12, 3)
    likelihood = np.zeros(12)
    last = np.zeros((2, 12))
    for read, out in [
        (likelihood_readout(model, first), likelihood),
        (token_readout(model, 9), last[0]),
        (logits_readout(model, lambda x: x.log_softmax(dim=1)[:, 9]), last[1]),
    ]:
        for rows, part in run(
            model, sequences, lambda b, read=read: read(model.hf.model(**b.inputs).last_hidden_state, b)
        ):
            out[rows] = part.numpy()
    for i, row in enumerate(tokens):
        with torch.inference_mode():
            log_p = model.hf(torch.tensor(row.astype(np.int64))[None]).logits[0].log_softmax(dim=1).numpy()
        np.testing.assert_allclose(
            likelihood[i], np.mean([log_p[p - 1, row[p]] for p in range(3, len(row))]), rtol=1e-4
        )
        np.testing.assert_allclose(last[:, i], log_p[-1, 9], rtol=1e-4)
    bad = logits_readout(model, lambda x: x)
    with pytest.raises(ValueError, match="must return one number a prompt"):
        list(run(model, sequences, lambda b: bad(model.hf.model(**b.inputs).last_hidden_state, b)))


TEMPORAL = VOCAB.with_times(-5, 5)


def prompt(*cells, asks="query"):
    """Cells of so many genes, lapses between them."""
    rng = np.random.default_rng(sum(cells))
    boq, eoq, lapse = TEMPORAL["<boq>"], TEMPORAL["<eoq>"], TEMPORAL[3]
    made = [[2, *rng.permutation(np.arange(4, 64))[:n], 3] for n in cells]
    tokens = made[0]
    for cell in made[1:-1]:
        tokens = [*tokens, lapse, *cell]
    return [*tokens, boq, *made[-1], eoq] if asks == "query" else [*tokens, boq, lapse, eoq, *made[-1]]


def test_segments_of_prompts():
    sequences = join([prompt(4, 6, 5), prompt(3, 2)])
    parts = layout(sequences, TEMPORAL)
    assert parts.names == ["context_0", "lapse_0", "context_1", "boq", "query", "eoq"]
    assert parts.size.tolist() == [[6, 1, 8, 1, 7, 1], [5, 0, 0, 1, 4, 1]]
    assert parts.start[0].tolist() == [0, 6, 7, 15, 16, 23]
    assert (np.bincount(parts.segment) == parts.size.sum(axis=0)).all()
    asked = layout(join([prompt(4, 6, asks="cell")]), TEMPORAL)
    assert asked.names == ["context_0", "boq", "lapse", "eoq", "query"]
    assert asked.size.tolist() == [[6, 1, 1, 1, 8]]
    cells = layout(join([[2, 9, 3], [2, 8, 7, 3]]), VOCAB)
    assert cells.names == ["cell"]
    assert cells.size.tolist() == [[3], [4]]


def test_classes_and_counterparts():
    sequences = join([prompt(9, 4, 5), prompt(3, 6, 5)])
    parts = layout(sequences, TEMPORAL)
    classes = place_classes(sequences, parts)
    assert classes[:11].tolist() == [0, 1, 1, 2, 2, 2, 2, 3, 3, 3, 19]
    assert classes.max() < n_classes(parts)
    at = counterparts(parts, np.array([0, 1]), parts, np.array([1, 0]))
    # A cell of 9 genes onto one of 3: beyond them, its last gene; marks onto marks.
    assert at[0, :11].tolist() == [0, 1, 2, 3, 3, 3, 3, 3, 3, 3, 4]
    assert at[1, :5].tolist() == [0, 1, 2, 3, 10]
    rows = [sequences.tokens[slice(*sequences.indptr[i : i + 2])] for i in range(2)]
    marks = np.isin(rows[0], [2, 3, *TEMPORAL.time_ids, TEMPORAL["<boq>"], TEMPORAL["<eoq>"]])
    assert (rows[1][at[0, : len(rows[0])]][marks] == rows[0][marks]).all()
    same = counterparts(parts, np.array([0]), parts, np.array([0]))
    assert same[0].tolist() == list(range(len(rows[0])))
