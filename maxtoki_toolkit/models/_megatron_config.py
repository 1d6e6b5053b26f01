"""The original's `model.yaml` and a LlamaConfig, each from the other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from ._quiet import quiet_transformers
from .model import MaxTokiModel
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import LlamaConfig

# Field of model.yaml: field of LlamaConfig, and its type.
_FIELDS = {
    "num_layers": ("num_hidden_layers", int),
    "hidden_size": ("hidden_size", int),
    "ffn_hidden_size": ("intermediate_size", int),
    "num_attention_heads": ("num_attention_heads", int),
    "num_query_groups": ("num_key_value_heads", int),
    "kv_channels": ("head_dim", int),
    "seq_length": ("max_position_embeddings", int),
    "layernorm_epsilon": ("rms_norm_eps", float),
    "init_method_std": ("initializer_range", float),
}
_ROPE = {
    "rotary_base": ("rope_theta", float),
    "scale_factor": ("factor", float),
    "low_freq_factor": ("low_freq_factor", float),
    "high_freq_factor": ("high_freq_factor", float),
    "old_context_len": ("original_max_position_embeddings", int),
}
_TIED = "share_embeddings_and_output_weights"
# What a Llama is, where model.yaml speaks of it: the weights alone would not tell.
_LLAMA = {
    "normalization": "RMSNorm",
    "gated_linear_unit": True,
    "position_embedding_type": "rope",
    "rotary_percent": 1.0,
    "rotary_interleaved": False,
    "layernorm_zero_centered_gamma": False,
    "softmax_scale": None,
    "window_size": None,
}


def read_config(path: Path, vocab: Vocabulary) -> LlamaConfig:
    """Read `model.yaml`, refusing what is no Llama."""
    from transformers import LlamaConfig

    fields = _read_fields(path)
    for name, expected in _LLAMA.items():
        if fields.get(name, expected) != expected:
            raise ValueError(f"{path} has {name}: {fields[name]!r}. MaxToki is a Llama, with {expected!r}.")
    if "silu" not in str(fields.get("activation_func") or "silu"):
        raise ValueError(f"{path} has activation_func: {fields['activation_func']!r}. A Llama has silu.")
    if not isinstance(tied := fields.get(_TIED), bool):
        raise ValueError(f"{path} needs true or false for {_TIED}, found {tied!r}.")

    heads = _number(fields, "num_attention_heads", int, path)
    defaults = {
        "num_query_groups": heads,
        "kv_channels": _number(fields, "hidden_size", int, path) // heads,
        "init_method_std": 0.02,
    }
    fields |= {name: value for name, value in defaults.items() if fields.get(name) is None}
    values, rope = (
        {ours: _number(fields, theirs, kind, path) for theirs, (ours, kind) in table.items()}
        for table in (_FIELDS, _ROPE)
    )
    if rope["factor"] == 1:
        rope = {"rope_type": "default", "rope_theta": rope["rope_theta"]}
    with quiet_transformers():
        return LlamaConfig(
            **values,
            rope_parameters={"rope_type": "llama3"} | rope,
            tie_word_embeddings=tied,
            vocab_size=vocab.size,
            bos_token_id=vocab["<bos>"],
            eos_token_id=vocab["<eos>"],
            pad_token_id=vocab["<pad>"],
            attn_implementation="sdpa",
        )


def write_config(path: Path, model: MaxTokiModel, *, rows: int) -> None:
    """Write `model.yaml` for a vocabulary padded to `rows`."""
    config = model.hf.config
    rope = dict(config.rope_parameters)
    if rope["rope_type"] == "default":
        # The original always scales; a factor of 1 leaves the frequencies as they are.
        rope |= {"rope_type": "llama3", "factor": 1.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        rope["original_max_position_embeddings"] = config.max_position_embeddings
    if rope["rope_type"] != "llama3" or config.hidden_act != "silu":
        raise ValueError(
            "The original has RoPE scaling 'llama3' or none, and the activation 'silu'; this model has "
            f"{rope['rope_type']!r} and {config.hidden_act!r} and cannot be written."
        )
    kind = "MaxTokiMultitaskFineTuneConfig" if model.is_temporal else "MaxTokiConfig"
    fields = {theirs: to(getattr(config, ours)) for theirs, (ours, to) in _FIELDS.items()}
    fields |= {theirs: to(rope[ours]) for theirs, (ours, to) in _ROPE.items()}
    if fields["rotary_base"].is_integer():
        fields["rotary_base"] = int(fields["rotary_base"])
    fields |= {
        "_target_": f"bionemo.maxtoki.model.{kind}",
        _TIED: bool(config.tie_word_embeddings),
        "vocab_size": rows,
    }
    path.write_text(yaml.safe_dump({"config": fields}))


def _read_fields(path: Path) -> dict:
    if not path.is_file():
        raise FileNotFoundError(f"Did not find {path}, which describes the model.")
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = getattr(error, "problem", None) or error
        raise ValueError(f"Cannot read {path}: {reason}. Only plain YAML is read.") from None
    fields = content.get("config", content) if isinstance(content, dict) else None
    if not isinstance(fields, dict):
        raise ValueError(f"{path} does not describe a model: `config:` with its fields was expected.")
    return fields


def _number(fields: dict, name: str, kind: type, path: Path) -> int | float:
    """Return a field as a positive number; YAML takes 1e-05 for text."""
    try:
        value = kind(float(fields[name]))
    except (KeyError, TypeError, ValueError, OverflowError):
        value = 0
    if not value > 0:
        raise ValueError(f"{path} needs a positive number for {name}, found {fields.get(name)!r}.")
    return value
