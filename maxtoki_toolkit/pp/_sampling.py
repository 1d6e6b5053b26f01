"""Which cells make up a prompt: drawn for many prompts at once, each from its own stream of numbers."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy.special import comb

from ..models.prompts import Prompts

ZERO_LAPSES = ("never", "query", "anywhere")
BLOCK = 1024  # prompts that share a stream; only the size of the loop
_ATTEMPTS = 64
_NONE = np.iinfo(np.int64).max


def as_sizes(context_size: int | tuple[int, int]) -> tuple[int, int]:
    """Fewest and most context cells of a prompt, where one number may be given for both."""
    sizes = (context_size, context_size) if isinstance(context_size, int) else tuple(context_size)
    smallest, largest = sizes
    if not 1 <= smallest <= largest:
        raise ValueError(f"context_size must be (smallest, largest) from 1 on, got {context_size}.")
    return sizes


def uniforms(seed: int, block: int, n: int, *, attempt: int = 0) -> np.ndarray:
    """Uniform numbers of a block of prompts, n each: the same whatever other blocks are drawn."""
    stream = np.random.Philox(key=[seed, attempt], counter=[0, block, 0, 0])
    return np.random.Generator(stream).random((BLOCK, n))


class Pool(NamedTuple):
    """Cells sorted by group and time; a bin is one group at one time."""

    cells: np.ndarray
    """Rows of the cells, sorted."""
    place: np.ndarray
    """Where each row is in `cells`, -1 for nowhere."""
    bin_start: np.ndarray
    """Where each bin starts in `cells`, and the end."""
    bin_time: np.ndarray
    """Time of each bin."""
    group_start: np.ndarray
    """First bin of each group, and the end."""

    @classmethod
    def build(cls, group: np.ndarray, time: np.ndarray, n_groups: int, use: np.ndarray) -> Pool:
        """Sort the cells that may be used; those in no group (-1) are not."""
        rows = np.flatnonzero(use & (group >= 0))
        cells = rows[np.lexsort((rows, time[rows], group[rows]))]
        place = np.full(len(group), -1)
        place[cells] = np.arange(len(cells))
        new = np.ones(len(cells), dtype=bool)
        new[1:] = (np.diff(group[cells]) != 0) | (np.diff(time[cells]) != 0)
        first = np.flatnonzero(new)
        group_start = np.searchsorted(group[cells[first]], np.arange(n_groups + 1))
        return cls(cells, place, np.append(first, len(cells)), time[cells[first]], group_start)

    @property
    def n_times(self) -> np.ndarray:
        """Distinct times of each group."""
        return np.diff(self.group_start)

    @property
    def n_cells(self) -> np.ndarray:
        """Cells of each group."""
        return np.diff(self.bin_start[self.group_start])

    @property
    def bin_group(self) -> np.ndarray:
        """Group of each bin."""
        return np.repeat(np.arange(len(self.n_times)), self.n_times)


class Sampler:
    """Draws prompts; prompt i is the same whatever else is drawn.

    Parameters
    ----------
    group, time
        Group (-1 for none) and time of each cell.
    contexts, queries
        Which cells may serve as context and as query.
    context_size
        Smallest and largest number of context cells, at distinct times.
    timelapse
        Share of prompts that ask for the lapse; the others ask for the cell.
    zero_lapse
        "never": query time differs from all context times; "query": it is any time; "anywhere": also
        context times may repeat, each time twice in all.
    forward
        Times never decrease within a prompt.
    balance
        0: groups as often as they have context cells; 1: all equally often.
    seed
        Seed.

    Notes
    -----
    With "query", context times are drawn, and then the query time among those that remain. Otherwise all
    choices of times are equally likely (a time that may repeat counts as two): the query time is drawn by
    the number of contexts that go with it.
    """

    def __init__(
        self,
        group: np.ndarray,
        time: np.ndarray,
        *,
        contexts: np.ndarray,
        queries: np.ndarray,
        context_size: tuple[int, int] = (2, 3),
        timelapse: float = 1.0,
        zero_lapse: str = "query",
        forward: bool = False,
        balance: float = 0.1,
        seed: int = 0,
    ) -> None:
        if zero_lapse not in ZERO_LAPSES:
            raise ValueError(f"There is no zero_lapse {zero_lapse!r}; choose from {', '.join(ZERO_LAPSES)}.")
        smallest, largest = as_sizes(context_size)
        for name, share in [("The share of timelapse prompts", timelapse), ("balance", balance)]:
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {share}.")
        n_groups = int(group.max(initial=-1)) + 1
        self.time, self.group = time, group
        self._earliest, self._latest = time.min(initial=0), time.max(initial=0)
        self.contexts = Pool.build(group, time, n_groups, contexts)
        self.queries = Pool.build(group, time, n_groups, queries)
        self.smallest, self.largest = smallest, largest
        self.timelapse, self.query_first, self.forward = timelapse, zero_lapse != "query", forward
        self.balance, self.seed = balance, seed
        self.copies = 2 if zero_lapse == "anywhere" else 1

    @cached_property
    def eligible(self) -> np.ndarray:
        """Groups with enough times and cells."""
        # A group whose cells are all of one time teaches nothing of time.
        n_times = self.contexts.n_times + np.bincount(
            self.queries.bin_group, ~self._shared, minlength=len(self.contexts.n_times)
        )
        return np.flatnonzero((self._capacity >= self.smallest) & (n_times > 1))

    @cached_property
    def _capacity(self) -> np.ndarray:
        """Most context cells that a prompt of each group can have."""
        either = (self.contexts.place >= 0) | (self.queries.place >= 0)
        n_cells = np.bincount(self.group[either], minlength=len(self._largest_room))
        return np.minimum(self._largest_room, np.minimum(n_cells - 1, self.contexts.n_cells))

    @cached_property
    def _group_cdf(self) -> np.ndarray:
        n = self.contexts.n_cells[self.eligible]
        return np.cumsum((1 - self.balance) * n / n.sum() + self.balance / len(n))

    # A slot is a time of a group or, where times may repeat, one of its two copies.

    @cached_property
    def _before(self) -> np.ndarray:
        """Context times of the same group before each query bin."""
        place = np.searchsorted(self._context_keys, self._query_keys)
        return place - self.contexts.group_start[self.queries.bin_group]

    @cached_property
    def _shared(self) -> np.ndarray:
        """Whether the time of each query bin is a context time."""
        return np.isin(self._query_keys, self._context_keys)

    @cached_property
    def _room(self) -> np.ndarray:
        """Slots left to the contexts by each slot of the query, bins of queries x copies."""
        shared, copy = self._shared[:, None], np.arange(self.copies)
        if self.forward:
            return self._before[:, None] * self.copies + shared * (copy + (not self.query_first))
        n_slots = self.contexts.n_times[self.queries.bin_group] * self.copies
        return n_slots[:, None] - shared * np.full(self.copies, self.query_first)

    @cached_property
    def _largest_room(self) -> np.ndarray:
        """Largest of these of each group."""
        largest = np.zeros(len(self.queries.n_times), dtype=np.int64)
        np.maximum.at(largest, self.queries.bin_group, self._room.max(axis=1, initial=0))
        return largest

    @cached_property
    def _query_cdf(self) -> np.ndarray:
        """For each context size in turn: the number of choices of contexts, by slot of the query, summed up."""
        n_groups = len(self.queries.n_times)
        group = np.repeat(self.queries.bin_group, self.copies)
        cdf = [np.zeros(1)]
        for size in range(self.smallest, self.largest + 1):
            ways = comb(self._room.ravel(), size)
            total = np.bincount(group, ways, minlength=n_groups)
            cdf.append(ways / np.where(total > 0, total, 1)[group])
        return np.cumsum(np.concatenate(cdf))

    def draw(self, start: int, stop: int) -> Prompts:
        """Prompts `start` to `stop`."""
        if not len(self.eligible):
            most = [int(side.n_times.max(initial=0)) for side in (self.contexts, self.queries)]
            raise ValueError(
                f"No group has cells at {self.smallest} or more times to be context and others to be the query (at most, "
                f"one has context cells at {most[0]} and query cells at {most[1]}): group by fewer columns, use smaller "
                "contexts, or take donors of more ages."
            )
        blocks = range(start // BLOCK, -(-stop // BLOCK))
        drawn = [self._draw_block(block) for block in blocks]
        joined = Prompts.concatenate(drawn)
        offset = blocks.start * BLOCK
        return joined[np.arange(start - offset, stop - offset)]

    def _draw_block(self, block: int) -> Prompts:
        """Draw a block, and what came out impossible again."""
        missing = np.arange(BLOCK)
        for attempt in range(_ATTEMPTS):
            numbers = uniforms(self.seed, block, 5 + 2 * self.largest, attempt=attempt)
            if attempt == 0:
                group_number = numbers[:, 0]
            elif attempt < _ATTEMPTS // 2:
                # The same group again: its share must not suffer from how few cells it has at a time.
                numbers[:, 0] = group_number
            prompts, valid = self._attempt(numbers[missing])
            if attempt == 0:
                result = prompts
            for field, value in zip(tuple(result), tuple(prompts), strict=True):
                field[missing[valid]] = value[valid]
            missing = missing[~valid]
            if not len(missing):
                return result
        raise ValueError(
            f"{len(missing)} of {BLOCK} prompts could not be drawn in {_ATTEMPTS} attempts: too few cells, or too "
            "few times, for contexts and queries of different cells. Group by fewer columns, or use smaller contexts."
        )

    def _attempt(self, numbers: np.ndarray) -> tuple[Prompts, np.ndarray]:
        """One draw for each row of uniform numbers, and whether it is a prompt."""
        n = len(numbers)
        last_group = len(self.eligible) - 1
        group = self.eligible[
            np.searchsorted(self._group_cdf, numbers[:, 0], side="right").clip(max=last_group)
        ]
        size = self.smallest + floor(numbers[:, 1], self.largest - self.smallest + 1)
        size = np.minimum(size, self._capacity[group])
        if self.query_first:
            query_bin, room, taken = self._query_slot(group, size, numbers[:, 2])
        else:
            room, taken = self._largest_room[group], np.full(n, _NONE)

        # Context times: slots without replacement.
        slots = np.full((n, 1 + self.largest), _NONE)
        slots[:, 0] = taken
        for i in range(self.largest):
            slot = skip(floor(numbers[:, 5 + i], np.maximum(room - i, 1)), slots[:, : i + 1])
            slots[:, i + 1] = np.where(i < size, slot, _NONE)
        slots = slots[:, 1:]
        if self.forward:
            slots = np.sort(slots, axis=1)
        used = slots != _NONE
        bins = self.contexts.group_start[group][:, None] + np.where(used, slots, 0) // self.copies
        context = np.full((n, self.largest), -1)
        valid = room >= size
        for i in range(self.largest):
            cell, free = self._cell(
                self.contexts, bins[:, i], numbers[:, 5 + self.largest + i], context[:, :i]
            )
            context[:, i] = np.where(used[:, i], cell, -1)
            valid &= free | ~used[:, i]

        times = self.time[context]
        last = times[np.arange(n), size - 1]
        if not self.query_first:
            query_bin, free = self._query_bin_after(group, context, last, numbers[:, 2])
            valid &= free
        query, free = self._cell(self.queries, query_bin, numbers[:, 3], context)
        steps = np.where(used[:, 1:], np.diff(times, axis=1), 0)
        timelapse = numbers[:, 4] < self.timelapse
        return Prompts(context, query, steps, self.time[query] - last, timelapse), valid & free

    def _query_slot(self, group, size, number):
        """Bins of queries drawn before the contexts; slots left to these, and the slot that is taken."""
        queries, copies = self.queries, self.copies
        base = (size - self.smallest) * len(queries.bin_time) * copies
        start, end = (base + queries.group_start[group + i] * copies for i in (0, 1))
        low, high = self._query_cdf[start], self._query_cdf[end]
        slot = np.searchsorted(self._query_cdf, low + number * (high - low), side="right") - 1
        bins, copy = np.divmod(slot.clip(start, end - 1) - base, copies)
        taken = np.where(self._shared[bins], self._before[bins] * copies + copy, _NONE)
        return bins, self._room[bins, copy], taken

    def _query_bin_after(self, group, context, last, number):
        """Bins of queries drawn after the contexts, and whether there was one."""
        begin, end = self.queries.group_start[group], self.queries.group_start[group + 1]
        if self.forward:
            begin = np.searchsorted(self._query_keys, self._key(group, last))
        # A bin is used up when its only cell is context.
        bins = self._query_bin[context]
        alone = np.diff(self.queries.bin_start)[bins] == 1
        used_up = alone & (context >= 0) & (self.queries.place[context] >= 0) & (bins >= begin[:, None])
        taken = np.where(used_up, bins - begin[:, None], _NONE)
        n_free = end - begin - used_up.sum(axis=1)
        bins = begin + skip(floor(number, np.maximum(n_free, 1)), taken)
        return bins.clip(max=end - 1), n_free > 0

    def _cell(self, pool, bins, number, taken):
        """A cell of each bin, none of those taken, and whether there was one."""
        start, end = pool.bin_start[bins][:, None], pool.bin_start[bins + 1][:, None]
        place = np.where(taken >= 0, pool.place[taken], -1)
        inside = (place >= start) & (place < end)
        n_free = (end - start).ravel() - inside.sum(axis=1)
        chosen = start.ravel() + skip(
            floor(number, np.maximum(n_free, 1)), np.where(inside, place - start, _NONE)
        )
        return pool.cells[chosen.clip(max=len(pool.cells) - 1)], n_free > 0

    def _key(self, group: np.ndarray, time: np.ndarray) -> np.ndarray:
        """One number that sorts by group, then time."""
        return group * (self._latest - self._earliest + 1) + time - self._earliest

    @cached_property
    def _context_keys(self) -> np.ndarray:
        return self._key(self.contexts.bin_group, self.contexts.bin_time)

    @cached_property
    def _query_keys(self) -> np.ndarray:
        return self._key(self.queries.bin_group, self.queries.bin_time)

    @cached_property
    def _query_bin(self) -> np.ndarray:
        """Bin of the queries with each cell's group and time; any where there is none."""
        place = np.searchsorted(self._query_keys, self._key(self.group, self.time))
        return place.clip(max=len(self._query_keys) - 1)


def floor(number: np.ndarray, n: np.ndarray | int) -> np.ndarray:
    """A whole number below n from a uniform one below 1."""
    return np.minimum((number * n).astype(np.int64), np.asarray(n) - 1)


def skip(chosen: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """Turn the k-th free place into a place, given the taken ones of each row."""
    chosen = chosen.copy()
    for place in np.sort(taken, axis=1).T:
        chosen += (place != _NONE) & (chosen >= place)
    return chosen
