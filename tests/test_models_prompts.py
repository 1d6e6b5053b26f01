"""Writing prompts as tokens, against one that writes them one at a time."""

import numpy as np
import pytest

import maxtoki_toolkit as mt
from maxtoki_toolkit.models.prompts import Prompts, time_token, write_prompts
from maxtoki_toolkit.models.sequences import Sequences

GENES = [f"ENSG{i:011d}" for i in range(30)]
VOCAB = mt.models.Vocabulary(
    {t: i for i, t in enumerate(["<pad>", "<mask>", "<bos>", "<eos>", *GENES])}, dict.fromkeys(GENES, 1.0)
).with_times(-20, 20)


def random_cells(rng, n=12):
    rows = [[2, *(4 + rng.permutation(30)[: rng.integers(0, 15)]), 3] for _ in range(n)]
    return Sequences.of(rows)


def random_prompts(rng, n, largest, n_cells=12, n_queries=12):
    """Contexts of 0 to `largest` cells, in the first columns."""
    size = rng.integers(0, largest + 1, n)
    inside = np.arange(largest) < size[:, None]
    return Prompts(
        np.where(inside, rng.integers(0, n_cells, (n, largest)), -1),
        rng.integers(0, n_queries, n),
        np.where(inside[:, 1:], rng.integers(-20, 21, (n, largest - 1)), 0),
        rng.integers(-20, 21, n),
        rng.random(n) < 0.5,
    )


def one_cell(cells, row):
    return cells.tokens[cells.indptr[row] : cells.indptr[row + 1]].tolist()


def write_one(prompts, i, cells, queries, max_length, answer):
    """Tokens, place of `<eoq>` and clipped genes of one prompt; `None` if it cannot be cut to fit."""
    contexts = [one_cell(cells, row) for row in prompts.context[i] if row >= 0]
    query = one_cell(queries, prompts.query[i])
    lapse = [VOCAB[int(prompts.lapse[i])]]
    given, asked = (query, lapse) if prompts.timelapse[i] else (lapse, query)

    def assemble():
        tokens = []
        for j, cell in enumerate(contexts):
            tokens += [*([VOCAB[int(prompts.steps[i, j - 1])]] if j else []), *cell]
        return [*tokens, VOCAB["<boq>"], *given, VOCAB["<eoq>"]]

    n_clipped = 0
    while len(assemble()) + len(asked) > max_length:
        if not contexts or len(contexts[0]) <= 4:
            return None
        del contexts[0][-2]
        n_clipped += 1
    tokens = assemble()
    return tokens + (asked if answer else []), len(tokens) - 1, n_clipped


@pytest.mark.parametrize("seed", range(30))
def test_as_one_at_a_time(seed):
    rng = np.random.default_rng(seed)
    cells = random_cells(rng)
    queries = random_cells(rng, 5) if seed % 3 == 0 else None
    prompts = random_prompts(rng, 20, 1 + seed % 4, n_queries=12 if queries is None else 5)
    answer = (True, False, rng.random(20) < 0.5)[seed % 5 % 3]
    # From no clipping to some that is impossible.
    max_length = int(rng.integers(15, 80))
    expected = [
        write_one(
            prompts,
            i,
            cells,
            cells if queries is None else queries,
            max_length,
            np.broadcast_to(answer, 20)[i],
        )
        for i in range(20)
    ]
    settings = {"max_length": max_length, "queries": queries}
    if n_bad := expected.count(None):
        with pytest.raises(ValueError, match=rf"^{n_bad} of 20 prompts have more than {max_length} tokens"):
            write_prompts(prompts, cells, VOCAB, answer=answer, **settings)
    kept = np.array([item is not None for item in expected])
    if np.ndim(answer):
        answer = answer[kept]
    written = write_prompts(prompts[kept], cells, VOCAB, answer=answer, **settings)
    parts = np.split(written.sequences.tokens, written.sequences.indptr[1:-1]) if kept.any() else []
    found = [
        (part.tolist(), eoq, clipped)
        for part, eoq, clipped in zip(parts, written.eoq, written.n_clipped, strict=True)
    ]
    assert found == [item for item in expected if item is not None]


def test_the_cases_above_clip_and_refuse():
    """What the random cases are made of: all kinds of prompts, clipped ones, and ones that cannot be."""
    outcomes = set()
    for seed in range(30):
        rng = np.random.default_rng(seed)
        cells = random_cells(rng)
        prompts = random_prompts(rng, 20, 4)
        for i in range(20):
            one = write_one(prompts, i, cells, cells, 18 + seed % 2 * 27, answer=True)
            clipped = "refused" if one is None else "clipped" if one[2] else "whole"
            outcomes.add((clipped, bool(prompts.timelapse[i]), int(prompts.context_size[i])))
    # Without context there is nothing to clip.
    assert len(outcomes) == 3 * 2 * 4 + 2 * 2


def test_published_grammar():
    """`c0 t0 c1 <boq> query <eoq> lapse`, and with question and answer exchanged."""
    cells = Sequences(np.array([2, 4, 5, 6, 3, 2, 7, 3, 2, 8, 9, 3], np.int32), np.array([0, 5, 8, 12]))
    time = VOCAB[3], VOCAB[-4]
    boq, eoq = VOCAB["<boq>"], VOCAB["<eoq>"]
    context, query = [2, 4, 5, 6, 3, time[0], 2, 7, 3], [2, 8, 9, 3]
    prompts = Prompts(np.array([[0, 1]] * 2), np.array([2, 2]), np.array([[3]] * 2), np.array([-4, -4]), None)
    prompts = prompts._replace(timelapse=np.array([True, False]))
    written = write_prompts(prompts, cells, VOCAB, max_length=16)
    assert written.sequences.tokens.tolist() == [
        *[*context, boq, *query, eoq, time[1]],
        *[*context, boq, time[1], eoq, *query],
    ]
    assert written.eoq.tolist() == [14, 11]
    assert written.sequences.tokens.dtype == np.int32


def test_some_prompts():
    prompts = random_prompts(np.random.default_rng(0), 10, 3)
    some = prompts[np.array([7, 2])]
    assert some.query.tolist() == prompts.query[[7, 2]].tolist()
    assert some.context.shape == (2, 3)
    np.testing.assert_array_equal(some.context_size, (some.context >= 0).sum(axis=1))


def test_no_prompts():
    nothing = random_prompts(np.random.default_rng(0), 3, 2)[np.arange(0)]
    written = write_prompts(nothing, random_cells(np.random.default_rng(0)), VOCAB, max_length=10)
    assert written.sequences.indptr.tolist() == [0]
    assert len(written.eoq) == 0


def test_lapses_without_a_token():
    assert time_token(np.array([-20, 0, 20]), VOCAB).tolist() == [VOCAB[-20], VOCAB[0], VOCAB[20]]
    with pytest.raises(ValueError, match=r"2 lapses have no token \(the first: 21\); .* has -20\.\.20"):
        time_token(np.array([3, 21, -99]), VOCAB)
    rng = np.random.default_rng(0)
    prompts = random_prompts(rng, 4, 3)
    for field in ("lapse", "steps"):
        prompts.context[:] = 0
        far = prompts._replace(**{field: np.full_like(getattr(prompts, field), 500)})
        with pytest.raises(ValueError, match="have no token"):
            write_prompts(far, random_cells(rng), VOCAB, max_length=400)


def test_lapses_with_gaps():
    """A dictionary need not have a token for 0, if no prompt needs one."""
    tokens = {
        "<pad>": 0,
        "<mask>": 1,
        "<bos>": 2,
        "<eos>": 3,
        GENES[0]: 4,
        5: 5,
        9: 6,
        "<boq>": 7,
        "<eoq>": 8,
    }
    vocab = mt.models.Vocabulary(tokens, {GENES[0]: 1.0})
    cells = Sequences(np.array([2, 4, 3], np.int32), np.array([0, 3]))
    prompts = Prompts(
        np.array([[0, -1], [0, 0]]),
        np.array([0, 0]),
        np.array([[0], [5]]),
        np.array([9, 9]),
        np.array([True, True]),
    )
    tokens = write_prompts(prompts, cells, vocab, max_length=20).sequences.tokens.tolist()
    assert tokens == [2, 4, 3, 7, 2, 4, 3, 8, 6] + [2, 4, 3, 5, 2, 4, 3, 7, 2, 4, 3, 8, 6]
    with pytest.raises(ValueError, match=r"1 lapses have no token \(the first: 7\)"):
        time_token(np.array([7]), vocab)


def test_stage_one_vocabulary():
    tokens = {token: number for token, number in VOCAB.tokens.items() if number < 34}
    base = mt.models.Vocabulary(tokens, VOCAB.medians)
    rng = np.random.default_rng(0)
    for largest in (1, 3):
        with pytest.raises(ValueError, match="This vocabulary has no time tokens"):
            write_prompts(random_prompts(rng, 2, largest), random_cells(rng), base, max_length=100)
