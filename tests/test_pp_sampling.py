"""Drawing prompts: the right ones, as often as they should be, and the same ones again."""

import bisect
import itertools
import random
import time as clock

import numpy as np
import pytest

from maxtoki_toolkit.pp._sampling import BLOCK, ZERO_LAPSES, Sampler

MODES = [(mode, forward) for mode in ZERO_LAPSES for forward in (False, True)]
FIELDS = ("context", "query", "steps", "lapse", "timelapse")


def make_sampler(group, time, *, contexts=None, queries=None, **settings):
    everything = np.ones(len(time), dtype=bool)
    return Sampler(
        np.asarray(group),
        np.asarray(time),
        contexts=everything if contexts is None else contexts,
        queries=everything if queries is None else queries,
        **settings,
    )


def context_times(drawn, time):
    """Times of the contexts of each prompt, -1 where there is none."""
    return np.where(drawn.context >= 0, time[drawn.context], -1)


def random_design(rng):
    """Groups of few and many cells and times, some cells in no group, masks that overlap or not."""
    n = int(rng.integers(40, 400))
    group = rng.integers(-1, 5, n)
    time = rng.integers(0, rng.integers(6, 15), n) * 7 - 20
    kind = rng.integers(3)
    contexts, queries = rng.random((2, n)) < 0.7
    if kind == 0:
        contexts = queries = np.ones(n, dtype=bool)
    elif kind == 1:
        queries = ~contexts
    return group, time, contexts, queries


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("mode", "forward"), MODES)
def test_every_prompt_is_what_was_asked_for(seed, mode, forward):
    rng = np.random.default_rng([seed, len(mode), forward])
    group, time, contexts, queries = random_design(rng)
    smallest = int(rng.integers(1, 4))
    sizes = (smallest, smallest + int(rng.integers(0, 3)))
    sampler = make_sampler(
        group,
        time,
        contexts=contexts,
        queries=queries,
        context_size=sizes,
        zero_lapse=mode,
        forward=forward,
        timelapse=0.5,
        seed=seed,
    )
    drawn = sampler.draw(0, 300)
    assert drawn.context.shape == (300, sizes[1])
    for context, query, steps, lapse in zip(*tuple(drawn)[:4], strict=True):
        rows = context[context >= 0]
        assert sizes[0] <= len(rows) <= sizes[1]
        assert (context[len(rows) :] == -1).all()
        assert len({*rows, query}) == len(rows) + 1
        assert len(set(group[[*rows, query]])) == 1
        assert group[query] >= 0
        assert contexts[rows].all()
        assert queries[query]
        times = time[[*rows, query]]
        assert [*steps[: len(rows) - 1], lapse] == np.diff(times).tolist()
        assert (steps[len(rows) - 1 :] == 0).all()
        _, copies = np.unique(times[:-1], return_counts=True)
        assert copies.max() <= (2 if mode == "anywhere" else 1)
        if mode == "never":
            assert times[-1] not in times[:-1]
        elif mode == "anywhere":
            assert np.unique(times, return_counts=True)[1].max() <= 2
        if forward:
            assert (np.diff(times) >= 0).all()


def expected_times(context, query, size, mode, forward):
    """Probability of each choice of context times and query time, by listing them all."""
    copies = 2 if mode == "anywhere" else 1
    slots = [(t, copy) for t in sorted(context) for copy in range(copies)]
    query_slots = [(t, copy) for t in sorted(query) for copy in range(copies)]
    table = {}

    def add(contexts, q, weight):
        key = (tuple(t for t, _ in contexts), q[0])
        table[key] = table.get(key, 0) + weight

    if mode == "query":
        usable = [slot for slot in slots if not forward or slot[0] <= max(query)]
        chosen = list((itertools.combinations if forward else itertools.permutations)(usable, size))
        for contexts in chosen:
            after = [q for q in query_slots if not forward or q[0] >= contexts[-1][0]]
            for q in after:
                add(contexts, q, 1 / len(chosen) / len(after))
        return table
    for q in query_slots:
        usable = [slot for slot in slots if slot != q and (not forward or slot < q)]
        for contexts in (itertools.combinations if forward else itertools.permutations)(usable, size):
            add(contexts, q, 1)
    total = sum(table.values())
    return {key: weight / total for key, weight in table.items()}


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize(
    ("context", "query"),
    [
        ([10, 20, 35, 60], [10, 20, 35, 60]),
        ([10, 20, 35, 60], [20, 60, 70]),
        ([10, 20, 35, 60, 80], [35]),
        ([20, 35, 50], [10, 40, 60]),
    ],
)
@pytest.mark.parametrize(("mode", "forward"), MODES)
def test_times_are_drawn_as_documented(context, query, size, mode, forward):
    """Against a list of all choices of times. Bins hold many cells, so cells are never short."""
    expected = expected_times(context, query, size, mode, forward)
    time = np.repeat([*context, *query], 30)
    is_query = np.arange(len(time)) >= 30 * len(context)
    sampler = make_sampler(
        np.zeros(len(time), int),
        time,
        contexts=~is_query,
        queries=is_query,
        context_size=(size, size),
        zero_lapse=mode,
        forward=forward,
    )
    if not expected:
        with pytest.raises(ValueError, match="No group has cells"):
            sampler.draw(0, 1)
        return
    n = 10 * BLOCK
    drawn = sampler.draw(0, n)
    keys = np.column_stack([context_times(drawn, time), time[drawn.query]]).tolist()
    found = {}
    for *contexts, q in keys:
        found[tuple(contexts), q] = found.get((tuple(contexts), q), 0) + 1
    assert set(found) <= set(expected)
    for key, p in expected.items():
        assert abs(found.get(key, 0) / n - p) <= 5 * np.sqrt(p * (1 - p) / n) + 1e-9, key


@pytest.mark.parametrize(("mode", "forward"), MODES)
def test_cells_of_a_bin_are_equally_likely(mode, forward):
    time = np.repeat([1, 2, 3], 10)
    sampler = make_sampler(np.zeros(30, int), time, context_size=(2, 2), zero_lapse=mode, forward=forward)
    drawn = sampler.draw(0, 30_000)
    for rows in (drawn.query, *drawn.context.T):
        counts = np.bincount(rows, minlength=30)
        expected = np.bincount(time[rows], minlength=4)[time] / 10
        assert (np.abs(counts - expected) <= 5 * np.sqrt(expected) + 1e-9).all()


@pytest.mark.parametrize(("mode", "forward"), MODES)
@pytest.mark.parametrize("balance", [0.0, 0.3, 1.0])
def test_groups_are_drawn_by_balance(mode, forward, balance):
    """Also a group of few times, which leaves fewer choices to the contexts, has its share."""
    group = np.repeat([0, 1, 2], [60, 300, 640])
    time = np.concatenate([np.repeat([1, 2, 3], 20), np.repeat(np.arange(10), 30), np.arange(640) % 64])
    sampler = make_sampler(group, time, zero_lapse=mode, forward=forward, balance=balance)
    n = 10 * BLOCK
    found = np.bincount(group[sampler.draw(0, n).query], minlength=3) / n
    shares = (1 - balance) * np.array([0.06, 0.3, 0.64]) + balance / 3
    assert (np.abs(found - shares) < 5 * np.sqrt(shares / n)).all()


def test_balance_counts_the_cells_that_may_be_context():
    group, time = np.repeat([0, 1], 100), np.tile(np.arange(10), 20)
    contexts = (group == 0) | (np.arange(200) % 100 < 20)
    drawn = make_sampler(group, time, contexts=contexts, balance=0.0).draw(0, 20_000)
    assert (group[drawn.query] == 1).mean() == pytest.approx(20 / 120, abs=0.015)


def test_sizes_are_equally_likely_and_shorter_where_times_are_few():
    group = np.repeat([0, 1], 100)
    time = np.concatenate([np.arange(100) % 2, np.arange(100) % 50])
    drawn = make_sampler(group, time, context_size=(2, 4), balance=1.0).draw(0, 20_000)
    few = group[drawn.query] == 0
    assert set(drawn.context_size[few]) == {2}
    counts = np.bincount(drawn.context_size[~few])[2:]
    assert len(counts) == 3
    assert (np.abs(counts / counts.sum() - 1 / 3) < 0.02).all()
    # If the query's time must be another, one more time is needed.
    never = make_sampler(group, time, context_size=(2, 4), balance=1.0, zero_lapse="never").draw(0, 100)
    assert (group[never.query] == 1).all()


def test_tasks_have_their_share():
    time = np.arange(100) % 5
    for share in (0.0, 0.25, 1.0):
        drawn = make_sampler(np.zeros(100, int), time, timelapse=share).draw(0, 10_000)
        assert drawn.timelapse.mean() == pytest.approx(share, abs=0.02 if 0 < share < 1 else 0)


@pytest.mark.parametrize(("mode", "forward"), MODES)
def test_a_prompt_depends_on_seed_and_number_alone(mode, forward):
    rng = np.random.default_rng(0)
    group, time = rng.integers(0, 3, 200), rng.integers(0, 5, 200)

    def sampler(seed=4):
        return make_sampler(group, time, zero_lapse=mode, forward=forward, timelapse=0.5, seed=seed)

    whole = sampler().draw(0, 3 * BLOCK + 10)
    for start, stop in [(0, 5), (7, 8), (BLOCK - 3, BLOCK + 3), (2 * BLOCK, 3 * BLOCK + 10)]:
        part = sampler().draw(start, stop)
        for name in FIELDS:
            np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[start:stop], err_msg=name)
    other = sampler(seed=5).draw(0, 50)
    assert (other.query != whole.query[:50]).any()
    far = sampler().draw(10**12, 10**12 + 2)
    assert far.query.shape == (2,)


def test_blocks_differ():
    drawn = make_sampler(np.zeros(1000, int), np.arange(1000) % 10).draw(0, 4 * BLOCK)
    blocks = drawn.query.reshape(4, BLOCK)
    assert all((a != b).mean() > 0.9 for a, b in itertools.combinations(blocks, 2))


@pytest.mark.parametrize(("mode", "forward"), MODES)
def test_one_cell_at_each_time(mode, forward):
    time = np.arange(6)
    drawn = make_sampler(np.zeros(6, int), time, zero_lapse=mode, forward=forward).draw(0, 3000)
    times = context_times(drawn, time)
    assert not (times == time[drawn.query][:, None]).any()
    assert set(drawn.context_size) == {2, 3}


def test_a_cell_at_each_of_two_times_is_too_few():
    for mode in ("query", "anywhere"):
        with pytest.raises(
            ValueError, match=r"at 2 or more times.*context cells at 2 and query cells at 2\)"
        ):
            make_sampler([0, 0], [1, 2], zero_lapse=mode).draw(0, 1)
    assert make_sampler([0, 0], [1, 2], context_size=(1, 1)).draw(0, 4).lapse.size == 4


@pytest.mark.parametrize(
    ("group", "time", "settings"),
    [
        ([-1, -1, -1], [1, 2, 3], {}),
        ([], [], {}),
        ([0, 1, 2], [1, 2, 3], {}),
        ([0] * 9, [4] * 9, {"context_size": (1, 1)}),
        ([0] * 9, [4] * 9, {"zero_lapse": "anywhere"}),
        ([0] * 9, [1, 2, 3] * 3, {"context_size": (4, 4)}),
        ([0] * 9, [1, 2, 3] * 3, {"context_size": (3, 3), "zero_lapse": "never"}),
        ([0] * 9, [1, 2, 3] * 3, {"queries": np.zeros(9, bool)}),
        ([0] * 9, [1, 2, 3] * 3, {"contexts": np.zeros(9, bool)}),
        # The query would have to be before the contexts.
        (
            [0] * 9,
            [1, 2, 3] * 3,
            {"queries": np.arange(9) % 3 == 0, "contexts": np.arange(9) % 3 > 0, "forward": True},
        ),
    ],
)
def test_impossible_designs(group, time, settings):
    with pytest.raises(ValueError, match="group by fewer columns, use smaller contexts"):
        make_sampler(np.array(group, int), np.array(time, int), **settings).draw(0, 5)


def test_prompts_that_are_never_free_of_their_contexts():
    """Times and cells are enough in number, but the only query cell would always be context as well."""
    time = np.array([1, 1, 1, 1, 2])
    only = np.arange(5) == 4
    sampler = make_sampler(np.zeros(5, int), time, queries=only, context_size=(2, 2))
    with pytest.raises(ValueError, match="could not be drawn in 64 attempts: too few cells"):
        sampler.draw(0, 5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"zero_lapse": "sometimes"}, "no zero_lapse 'sometimes'; choose from never, query, anywhere"),
        ({"context_size": (0, 2)}, r"from 1 on, got \(0, 2\)"),
        ({"context_size": (3, 2)}, r"from 1 on, got \(3, 2\)"),
        ({"balance": 1.5}, "balance must be between 0 and 1, got 1.5"),
        ({"timelapse": -0.1}, "share of timelapse prompts must be between 0 and 1, got -0.1"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        make_sampler([0, 0], [1, 2], **settings)


def test_many_groups_and_large_contexts():
    """Numbers of choices that would overflow or swamp each other in one sum."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(40), 120)
    time = np.where(group % 2 == 0, np.tile(np.arange(120), 40), rng.integers(0, 12, 40 * 120))
    for forward in (False, True):
        sampler = make_sampler(
            group, time, context_size=(1, 11), zero_lapse="never", forward=forward, balance=1.0
        )
        drawn = sampler.draw(0, 20_000)
        counts = np.bincount(group[drawn.query], minlength=40)
        assert (np.abs(counts - 500) < 5 * np.sqrt(500)).all()
        sizes = np.bincount(drawn.context_size, minlength=12)[1:] / 20_000
        assert (np.abs(sizes - 1 / 11) < 0.015).all()
        assert not (context_times(drawn, time) == time[drawn.query][:, None]).any()


def one_at_a_time(group, time, n):
    """The default prompts, drawn with a loop."""
    bins = {}
    for cell, (g, t) in enumerate(zip(group.tolist(), time.tolist(), strict=True)):
        bins.setdefault(g, {}).setdefault(t, []).append(cell)
    cumulative = np.cumsum(np.bincount(group)).tolist()
    prompts = []
    for _ in range(n):
        g = bisect.bisect(cumulative, random.random() * cumulative[-1])
        times = random.sample(sorted(bins[g]), random.randint(2, 3))
        context = [random.choice(bins[g][t]) for t in times]
        last = random.choice(list(bins[g]))
        query = random.choice([cell for cell in bins[g][last] if cell not in context])
        prompts.append((context, query, [b - a for a, b in itertools.pairwise([*times, last])]))
    return prompts


def test_drawing_is_faster_than_a_loop():
    rng = np.random.default_rng(0)
    group, time = rng.integers(0, 20, 20_000), rng.integers(0, 40, 20_000)
    sampler = make_sampler(group, time)
    sampler.draw(0, 1)

    def seconds(function):
        start = clock.perf_counter()
        function()
        return clock.perf_counter() - start

    vectorised = min(seconds(lambda: sampler.draw(0, 10 * BLOCK)) for _ in range(5))
    loop = min(seconds(lambda: one_at_a_time(group, time, BLOCK)) for _ in range(3))
    assert vectorised / (10 * BLOCK) < loop / BLOCK / 2
