"""Untrained models, of the published shapes or any other."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from .model import MaxTokiModel
from .vocabulary import Vocabulary

# Copied values of the two published config.json (see data_manifests/maxtoki-217m.yaml and -1b.yaml).
SHAPES = {
    "217m": {
        "hidden_size": 1232,
        "intermediate_size": 2464,
        "num_hidden_layers": 11,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "head_dim": 154,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "rms_norm_eps": 1e-6,
    },
    "1b": {
        "hidden_size": 2304,
        "intermediate_size": 4608,
        "num_hidden_layers": 20,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 144,
        "max_position_embeddings": 4096,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": 1.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 4096,
        },
        "rms_norm_eps": 1e-5,
    },
}


def build_model(
    shape: str | Mapping,
    vocab: Vocabulary,
    *,
    seed: int = 0,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
) -> MaxTokiModel:
    """Build a model with random weights.

    Parameters
    ----------
    shape
        "217m", "1b", or the fields of a `transformers.LlamaConfig`.
    vocab
        Its vocabulary, which sets the number of embeddings and the special tokens.
    seed
        Seed of the weights; the global generator is left as it was.
    device, dtype, attention
        As in `mt.load_model`.

    Returns
    -------
    An untrained `MaxTokiModel`: the null that a trained one has to beat.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> vocab = mt.load_model("demo").vocab
    >>> shape = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    >>> mt.models.build_model(shape, vocab).is_temporal
    False
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    if isinstance(shape, str):
        if shape not in SHAPES:
            raise ValueError(f"There is no shape {shape!r}; choose from {sorted(SHAPES)} or give the fields.")
        shape = SHAPES[shape]
    try:
        config = LlamaConfig(
            **shape,
            vocab_size=vocab.size,
            bos_token_id=vocab["<bos>"],
            eos_token_id=vocab["<eos>"],
            pad_token_id=vocab["<pad>"],
            attn_implementation=attention,
        )
    except Exception as error:
        said = str(error).strip().splitlines()[-1].strip()
        raise ValueError(f"No model has the shape {dict(shape)}: {said}") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    return MaxTokiModel(model.to(device, dtype).eval(), vocab, name="untrained")
