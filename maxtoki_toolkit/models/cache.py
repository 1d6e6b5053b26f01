"""Keys and values of the tokens that sequences share."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Prefix(NamedTuple):
    """What the layers computed for the first tokens of one sequence."""

    keys: list[torch.Tensor]
    """One a layer: heads x tokens x head dimension."""
    values: list[torch.Tensor]


class SharedCache:
    """The cache of one batch: prefixes before its tokens, and what is to be kept of them.

    It stands in for a transformers cache: layers hand in the keys and values of the batch's tokens and attend
    to what they get back.

    Parameters
    ----------
    prefixes
        Of each sequence, or `None` where it has none.
    shared
        Tokens of the prefix that are used, for each sequence.
    keep
        First tokens to keep of each sequence, prefix included.
    """

    is_compileable = False

    def __init__(self, prefixes: list[Prefix | None], shared: list[int], keep: list[int]) -> None:
        self.width = max(shared, default=0)
        self.shared, self.keep = shared, keep
        self.prefixes = prefixes
        rows = {}
        for row, prefix in enumerate(prefixes):
            if prefix is not None:
                rows.setdefault(id(prefix), (prefix, []))[1].append(row)
        self.groups = list(rows.values())
        self.kept = {row: Prefix([], []) for row, n in enumerate(keep) if n}

    def update(self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, *_, **__):
        """Put the prefixes before the keys and values of a layer."""
        for row, kept in self.kept.items():
            kept.keys.append(self._head(row, layer_idx, key, 0))
            kept.values.append(self._head(row, layer_idx, value, 1))
        if not self.width:
            return key, value
        return self._join(layer_idx, key, 0), self._join(layer_idx, value, 1)

    def _head(self, row: int, layer: int, own: torch.Tensor, kind: int) -> torch.Tensor:
        n_shared, n = self.shared[row], self.keep[row]
        if not n_shared:
            return own[row, :, :n].clone()
        return torch.cat([self.prefixes[row][kind][layer][:, :n_shared], own[row, :, : n - n_shared]], dim=1)

    def _join(self, layer: int, own: torch.Tensor, kind: int) -> torch.Tensor:
        n, heads, length, size = own.shape
        # Zeros and not whatever was in memory: 0 x NaN is NaN, even where the mask hides it.
        joined = own.new_zeros(n, heads, self.width + length, size)
        for prefix, rows in self.groups:
            known = prefix[kind][layer][:, : self.width]
            joined[rows, :, : known.shape[1]] = known
        joined[:, :, self.width :] = own
        return joined

    def mask(self, length: int, device: torch.device) -> torch.Tensor | None:
        """Which of the prefix's and the batch's tokens each token sees; `None` for plain causal attention."""
        if not self.width:
            return None
        shared = torch.tensor(self.shared, device=device)
        before = torch.arange(self.width, device=device) < shared[:, None, None]
        own = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        n = len(self.shared)
        return torch.cat([before.expand(n, length, -1), own.expand(n, -1, -1)], dim=2)[:, None]

    # What transformers asks a cache about, to make a mask where none is given.
    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens before the batch."""
        return self.width

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Position of the batch's first token among the keys."""
        return self.width

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Number of keys, and position of the first."""
        return self.width + query_length, 0
