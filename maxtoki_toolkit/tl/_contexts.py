"""Context cells of donors whose age is known."""

from __future__ import annotations

from zlib import crc32

import numpy as np


def draw_contexts(
    rows: np.ndarray,
    donor: np.ndarray,
    time: np.ndarray,
    names: np.ndarray,
    *,
    group: str,
    n: int,
    size: int,
    seed: int,
) -> list[np.ndarray]:
    """Draw context cells of distinct donors and ages, each donor about as often as any other.

    Draws depend on the seed and the names of group, donors and cells, not on the order of the cells.

    Parameters
    ----------
    rows
        Cells to draw from, all of one group.
    donor, time, names
        Donor, time and name of every cell (not of `rows` alone).
    group
        Name of the group.
    n, size
        Contexts, and cells of each; less where there are too few donors or ages.
    seed
        Seed.
    """
    rng = np.random.default_rng([seed, crc32(group.encode())])
    rows = rows[np.argsort(names[rows].astype(str), kind="stable")]
    donors = np.unique(donor[rows])
    cells = {name: rows[donor[rows] == name] for name in donors}
    # A donor who is in every context could not be asked about.
    size = max(min(size, (len(donors) - 1) // 2, len(np.unique(time[rows]))), 1)
    contexts, waiting = [], []
    for _ in range(n if len(donors) > 1 else 0):
        context, ages = [], set()
        while len(context) < size:
            waiting = waiting or [name for name in rng.permutation(donors) if name not in context]
            name = waiting.pop()
            age = int(time[cells[name][0]])
            if age not in ages:
                context.append(name)
                ages.add(age)
        contexts.append(np.array([rng.choice(cells[name]) for name in context], dtype=np.int64))
    return contexts
