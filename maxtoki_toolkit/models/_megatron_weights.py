"""Weights by Megatron's keys and by Llama's, each from the other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .._warn import warn
from ._torch_dist import read_entries, read_tensor

if TYPE_CHECKING:
    from transformers import LlamaConfig

PADDED_TO = 128
# 128 times the largest tensor parallelism within one machine.
_MOST_PADDING = 1024
_QKV, _FC1 = "self_attention.linear_qkv.weight", "mlp.linear_fc1.weight"
_SAME = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "self_attention.linear_proj.weight": "self_attn.o_proj.weight",
    "mlp.linear_fc1.layer_norm_weight": "post_attention_layernorm.weight",
    "mlp.linear_fc2.weight": "mlp.down_proj.weight",
}
_LINEAR = ("self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1", "mlp.linear_fc2")


def read_weights(folder: Path, config: LlamaConfig) -> dict[str, torch.Tensor]:
    """Read all weights by Llama's names; one that is missing, left over or of another shape is an error."""
    entries = {
        key: entry
        for key, entry in read_entries(folder).items()
        if "_extra_state" not in key and "optimizer" not in key.split(".")
    }

    def take(key: str, *shape: int | None) -> torch.Tensor:
        entry = entries.pop(f"module.{key}", None)
        if entry is None:
            raise ValueError(f"{folder} lacks module.{key}: the checkpoint is incomplete, or no MaxToki.")
        if len(shape) != len(entry.size) or any(
            n not in (None, found) for n, found in zip(shape, entry.size, strict=True)
        ):
            expected = ["any" if n is None else n for n in shape]
            raise ValueError(
                f"module.{key} in {folder} has the shape {list(entry.size)}, model.yaml asks for {expected}: "
                "they belong to different checkpoints."
            )
        return read_tensor(folder, entry)

    def take_layers(name: str, *shape: int) -> torch.Tensor:
        """One weight of all layers: stacked, a key for each layer, or the two halves of fc1 apart."""
        if {f"module.decoder.layers.{name}_w", f"module.decoder.layers.0.{name}_w"} & set(entries):
            halves = [take_layers(name + half, shape[0] // 2, *shape[1:]) for half in ("_w", "_v")]
            return torch.cat(halves, dim=1)
        n = config.num_hidden_layers
        if f"module.decoder.layers.0.{name}" in entries:
            return torch.stack([take(f"decoder.layers.{layer}.{name}", *shape) for layer in range(n)])
        return take(f"decoder.layers.{name}", n, *shape)

    weights = {}
    for ours, theirs in _rows(config).items():
        weights[ours] = _crop(take(theirs, None, config.hidden_size), config.vocab_size)
    weights["model.norm.weight"] = take("decoder.final_layernorm.weight", config.hidden_size)
    for name, shape in _layer_shapes(config).items():
        for layer, weight in enumerate(take_layers(name, *shape)):
            for ours, part in _split(name, weight, config).items():
                # A copy of its own, so that the stacked tensor can go.
                weights[f"model.layers.{layer}.{ours}"] = part.clone(memory_format=torch.contiguous_format)
    if entries:
        raise ValueError(
            f"{folder} holds {len(entries)} weights that the model of model.yaml has no place for "
            f"(first: {min(entries)})."
        )
    return weights


def arrange_weights(weights: dict[str, torch.Tensor], config: LlamaConfig) -> dict[str, object]:
    """Arrange Llama's weights as Megatron saves them: layers stacked, vocabulary padded with zeros."""
    weights = {name: weight.detach().cpu() for name, weight in weights.items()}
    n = config.num_hidden_layers
    if config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    state: dict[str, object] = {}
    try:
        for ours, theirs in _rows(config).items():
            rows = weights.pop(ours)
            state[theirs] = torch.nn.functional.pad(rows, (0, 0, 0, -len(rows) % PADDED_TO))
        state["decoder.final_layernorm.weight"] = weights.pop("model.norm.weight")
        for name in _layer_shapes(config):
            layers = [_join(name, weights, f"model.layers.{layer}.", config) for layer in range(n)]
            state[f"decoder.layers.{name}"] = torch.stack(layers)
    except KeyError as error:
        raise ValueError(f"The model lacks {error.args[0]}: it is no plain Llama.") from None
    if weights:
        raise ValueError(
            f"The original has no place for {len(weights)} weights of the model (first: {min(weights)}). "
            "If they are adapters, merge them first."
        )
    for name in _LINEAR:
        for layer in range(n):
            state[f"decoder.layers.{name}._extra_state/shard_{layer}_{n}"] = [None]
    return {f"module.{key}": value for key, value in state.items()}


def split_qkv(weight: torch.Tensor, heads: int, groups: int) -> tuple[torch.Tensor, ...]:
    """Split rows of `linear_qkv` into those of queries, keys and values.

    Rows go by query group: the group's query heads, its key head, its value head.
    """
    parts = weight.unflatten(0, (groups, heads // groups + 2, -1))
    return parts[:, :-2].flatten(0, 2), parts[:, -2].flatten(0, 1), parts[:, -1].flatten(0, 1)


def join_qkv(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, groups: int) -> torch.Tensor:
    """Join what `split_qkv` splits."""
    return torch.cat([part.unflatten(0, (groups, -1)) for part in (query, key, value)], dim=1).flatten(0, 1)


def _rows(config: LlamaConfig) -> dict[str, str]:
    """Weights with a row for each token."""
    rows = {"model.embed_tokens.weight": "embedding.word_embeddings.weight"}
    return rows if config.tie_word_embeddings else rows | {"lm_head.weight": "output_layer.weight"}


def _crop(rows: torch.Tensor, size: int) -> torch.Tensor:
    beyond = len(rows) - size
    if beyond < 0:
        raise ValueError(
            f"The checkpoint has {len(rows):,} token embeddings, the vocabulary {size:,} tokens. "
            "Give the dictionary that the model was trained with."
        )
    if beyond >= _MOST_PADDING:
        warn(
            f"{beyond:,} of {len(rows):,} token embeddings lie beyond the vocabulary and are left out, more than "
            "padding explains. If the checkpoint has time tokens, give the dictionary that has them."
        )
    return rows[:size].clone()


def _layer_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    hidden, inner, width = config.hidden_size, config.intermediate_size, config.head_dim
    return {
        "self_attention.linear_qkv.layer_norm_weight": (hidden,),
        _QKV: ((config.num_attention_heads + 2 * config.num_key_value_heads) * width, hidden),
        "self_attention.linear_proj.weight": (hidden, config.num_attention_heads * width),
        "mlp.linear_fc1.layer_norm_weight": (hidden,),
        _FC1: (2 * inner, hidden),
        "mlp.linear_fc2.weight": (hidden, inner),
    }


def _split(name: str, weight: torch.Tensor, config: LlamaConfig) -> dict[str, torch.Tensor]:
    """Turn a layer's weight into Llama's."""
    if name == _QKV:
        parts = split_qkv(weight, config.num_attention_heads, config.num_key_value_heads)
        return {f"self_attn.{letter}_proj.weight": part for letter, part in zip("qkv", parts, strict=True)}
    if name == _FC1:
        return dict(zip(("mlp.gate_proj.weight", "mlp.up_proj.weight"), weight.chunk(2), strict=True))
    return {_SAME[name]: weight}


def _join(name: str, weights: dict[str, torch.Tensor], prefix: str, config: LlamaConfig) -> torch.Tensor:
    """Take a layer's weights out of Llama's and make Megatron's of them."""
    if name == _QKV:
        parts = [weights.pop(f"{prefix}self_attn.{letter}_proj.weight") for letter in "qkv"]
        return join_qkv(*parts, config.num_key_value_heads)
    if name == _FC1:
        return torch.cat([weights.pop(f"{prefix}mlp.{half}_proj.weight") for half in ("gate", "up")])
    return weights.pop(prefix + _SAME[name])
