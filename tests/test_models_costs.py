"""Costs against PyTorch's own counts: weights, operations, and what autograd keeps."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from maxtoki_toolkit.models.costs import GPUS, UTILISATION, Shape, cost, flops, memory, n_weights

SHAPES = [
    (64, 128, 2, 4, 4, 500, False),
    (96, 160, 3, 4, 2, 300, True),
    (128, 256, 1, 8, 4, 200, False),
]


def build(hidden, mlp, layers, heads, kv, vocab, tied, attention="sdpa"):
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        vocab_size=vocab,
        tie_word_embeddings=tied,
        attn_implementation=attention,
    )
    return LlamaForCausalLM(config), Shape.of(config)


@pytest.mark.parametrize("sizes", SHAPES)
def test_weights_are_those_of_the_model(sizes):
    model, shape = build(*sizes)
    assert n_weights(shape) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("sizes", SHAPES)
@pytest.mark.parametrize("training", [False, True])
def test_operations_are_those_that_torch_counts(sizes, training):
    """Torch counts attention to later tokens as well, which is left out here, and no fused attention of the CPU."""
    model, shape = build(*sizes, attention="eager")
    n, length = 3, 40
    tokens = torch.randint(0, shape.vocab, (n, length))
    with FlopCounterMode(display=False) as counter:
        loss = model(tokens, labels=tokens).loss
        if training:
            loss.backward()
    later = 4 * shape.layers * shape.heads * shape.head_dim * n * length * (length - 1) / 2
    found = flops(shape, [length] * n, training=training)
    assert counter.get_total_flops() == pytest.approx(found + later * (3 if training else 1), rel=0.01)


@pytest.mark.parametrize("sizes", SHAPES)
def test_memory_of_training_is_what_autograd_keeps(sizes):
    model, shape = build(*sizes)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept, alive = {}, []

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    tokens = torch.randint(0, shape.vocab, (2, 64))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(tokens, labels=tokens)
    held = 16 * n_weights(shape) + sum(kept.values()) + 4 * tokens.numel() * shape.vocab  # their gradient
    assert memory(shape, tokens.numel(), training=True) == pytest.approx(held, rel=0.05)


def test_costs_add_up():
    shape = build(*SHAPES[0])[1]
    one = cost(shape, [100] * 10, batch=1000, gpu="H100", hourly_price=2.0)
    many = cost(shape, [100] * 1000, batch=1000, gpu="H100", n_devices=4, hourly_price=2.0)
    assert many.petaflop == pytest.approx(100 * one.petaflop)
    assert many.hours == pytest.approx(25 * one.hours)
    assert many.price == pytest.approx(100 * one.price)
    assert one.hours * 3600 == pytest.approx(one.petaflop * 1e15 / (GPUS["H100"].single * 1e12 * UTILISATION))
    assert "assumed, not measured" in one.rests_on
    measured = cost(shape, [100] * 10, batch=1000, gpu="H100", flop_per_second=1e12)
    assert measured.hours * 3600 == pytest.approx(one.petaflop * 1e3)
    assert "measured here" in str(measured)
    assert "not known" in str(cost(shape, [100], batch=100))
    with pytest.raises(ValueError, match="no numbers for 'H300'"):
        cost(shape, [100], batch=100, gpu="H300")
    large = Shape(80, 8192, 28672, 64, 8, 128, 20_000, False)
    assert (
        "does not fit into the 24 GiB of L4"
        in cost(large, [100], batch=100, gpu="L4", training=True).rests_on
    )


def test_longer_sequences_cost_more_a_token():
    shape = build(*SHAPES[0])[1]
    per_token = [flops(shape, [n]) / n for n in (16, 256, 4096)]
    assert (np.diff(per_token) > 0).all()
