"""Attention to shared and cached tokens: which token sees which is said by a mask, on every device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from .model import MaxTokiModel

# CUDA's fast kernels take masks only with head sizes that are multiples of this; the 217M model has 154.
_ALIGNED = 8


@contextmanager
def attending_by(model: MaxTokiModel, attend: Callable) -> Iterator[None]:
    """Let the model attend by a function instead of its own attention."""
    name = f"maxtoki_{attend.__name__.strip('_')}"
    AttentionInterface.register(name, attend)
    # Without a mask function of its own, an attention function gets no mask at all.
    AttentionMaskInterface.register(name, sdpa_mask)
    before = model.hf.config._attn_implementation
    model.hf.set_attn_implementation(name)
    try:
        yield
    finally:
        model.hf.set_attn_implementation(before)


def masked(_module, query, key, value, attention_mask, *, scaling, **_):
    """Attention under a boolean mask (batch x 1 x queries x keys), or causal where there is none.

    Neither eager attention (which adds its mask) nor flash-attn (which takes none) can do it.
    """
    size = query.shape[-1]
    # Heads that share keys and values: kernels that know of this take no masks.
    key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], dim=1) for part in (key, value))
    if query.is_cuda and attention_mask is not None and size % _ALIGNED:
        query, key, value = (pad(part, (0, -size % _ALIGNED)) for part in (query, key, value))
    out = scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attention_mask,
        is_causal=attention_mask is None and query.shape[2] > 1,
        scale=scaling,
    )
    return out[..., :size].transpose(1, 2).contiguous(), None


def one_by_one(_module, query, key, value, attention_mask, *, scaling, **_):
    """Attention of one token a sequence to all before it, as two products: there is no square matrix to avoid."""
    n, heads, _, size = query.shape
    # Heads that share keys and values are asked together.
    query = query.reshape(n, key.shape[1], -1, size)
    scores = (query @ key.transpose(2, 3)).float() * scaling
    weights = scores.masked_fill(~attention_mask, -torch.inf).softmax(dim=3)
    return (weights.to(value.dtype) @ value).reshape(n, 1, heads, size), None
