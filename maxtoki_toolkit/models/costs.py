"""What reading or training costs: operations, memory, time and money, before anything starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# Dense bfloat16 TFLOP/s and memory (GiB), as in the makers' data sheets.
GPUS = {
    "H200": (989.0, 141.0),
    "H100": (989.0, 80.0),
    "A100": (312.0, 80.0),
    "L40S": (362.0, 48.0),
    "L4": (121.0, 24.0),
    "RTX 4090": (165.0, 24.0),
    "T4": (65.0, 16.0),
}
# Share of the peak that small models reach; the plan says that it is an assumption.
UTILISATION = 0.3


class Shape(NamedTuple):
    """The sizes of a Llama model that its costs depend on."""

    layers: int
    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool

    @classmethod
    def of(cls, config) -> Shape:
        """Sizes of a `transformers.LlamaConfig`."""
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            config.num_hidden_layers,
            config.hidden_size,
            config.intermediate_size,
            config.num_attention_heads,
            config.num_key_value_heads or config.num_attention_heads,
            head_dim,
            config.vocab_size,
            bool(config.tie_word_embeddings),
        )


def n_matrix_weights(shape: Shape) -> int:
    """Weights that every token is multiplied with, without embeddings and the output layer."""
    attention = shape.hidden * shape.head_dim * (2 * shape.heads + 2 * shape.kv_heads)
    return shape.layers * (attention + 3 * shape.hidden * shape.mlp)


def n_weights(shape: Shape) -> int:
    """All weights: matrices, norms, embeddings and, where it is not tied to them, the output layer."""
    norms = shape.hidden * (2 * shape.layers + 1)
    return n_matrix_weights(shape) + norms + shape.vocab * shape.hidden * (1 if shape.tied else 2)


def flops(shape: Shape, lengths: Sequence[int], *, training: bool = False) -> float:
    """Floating-point operations for sequences of these lengths; a multiplication and an addition are two.

    Each token sees itself and those before it, and every position is turned into gene scores. Training takes
    a backward pass of twice the forward's operations.
    """
    lengths = np.asarray(lengths, dtype=float)
    seen = (lengths * (lengths + 1) / 2).sum()
    return flops_of_sums(shape, lengths.sum(), seen, training=training)


def flops_of_sums(shape: Shape, tokens: float, pairs: float, *, training: bool = False) -> float:
    """Operations for so many tokens that see so many tokens in all; see `flops`."""
    weights = n_matrix_weights(shape) + shape.vocab * shape.hidden
    forward = 2 * weights * tokens + 4 * shape.layers * shape.heads * shape.head_dim * pairs
    return float(forward * (3 if training else 1))


def peak_of(device_name: str) -> float | None:
    """Peak of a device in FLOP/s, by what PyTorch calls it; `None` for one without an entry."""
    return next((GPUS[name][0] * 1e12 for name in GPUS if name in device_name), None)


def memory(shape: Shape, tokens: int, *, training: bool = False, half: bool = False) -> float:
    """Bytes that are held at once for a batch of so many tokens.

    Training: weights, gradients and two moments in float32, and what the backward pass reads (in bfloat16
    half of it). Otherwise: weights, keys and values, and one block's activations.
    """
    kv = shape.kv_heads * shape.head_dim
    size = 2 if half else 4
    if not training:
        activations = size * tokens * (4 * shape.hidden + 3 * shape.mlp)
        return float(size * n_weights(shape) + size * tokens * 2 * shape.layers * kv + activations)
    # Values that autograd keeps a token, counted with torch's hooks on saved tensors (tests/test_models_costs.py).
    block = 8 * shape.heads * shape.head_dim + 2 * kv + 4 * shape.mlp + 6
    kept = size * tokens * (shape.layers * block + 3 * shape.hidden)
    scores = 4 * tokens * 2 * shape.vocab  # and their gradient, always float32
    return float(16 * n_weights(shape) + kept + scores)


@dataclass(frozen=True)
class Cost:
    """What a job takes.

    Attributes
    ----------
    tokens, petaflop
        Tokens that are read, and operations (1e15).
    memory_gib
        Held at once for one batch.
    hours, price
        On the device that was asked about, `n_devices` of them; `None` where nothing says how fast it is or
        what an hour costs.
    rests_on
        What the hours rest on.
    """

    tokens: int
    petaflop: float
    memory_gib: float
    hours: float | None
    price: float | None
    rests_on: str

    def __str__(self) -> str:
        rows = {
            "tokens": f"{self.tokens:,}",
            "operations": f"{self.petaflop:,.3g} PFLOP",
            "memory for a batch": f"{self.memory_gib:.1f} GiB",
            "time": "not known" if self.hours is None else _duration(self.hours),
            "price": "give the price of an hour" if self.price is None else f"{self.price:,.2f}",
            "rests on": self.rests_on,
        }
        return "\n".join(f"{name:<20}{value}" for name, value in rows.items())


def cost(
    shape: Shape,
    lengths: Sequence[int],
    *,
    batch: int,
    training: bool = False,
    half: bool = False,
    gpu: str | None = None,
    n_devices: int = 1,
    flop_per_second: float | None = None,
    hourly_price: float | None = None,
) -> Cost:
    """Put operations, memory, hours and money together.

    Parameters
    ----------
    shape
        Sizes of the model.
    lengths
        Tokens of every sequence that is read.
    batch
        Tokens a batch.
    training, half
        Whether weights are trained; whether in bfloat16.
    gpu
        A name in `GPUS`, for hours at an assumed share of its peak.
    n_devices
        How many of them.
    flop_per_second
        What one device was measured to do; it goes before `gpu`.
    hourly_price
        Of one device, in any currency.

    Returns
    -------
    The `Cost`.

    Examples
    --------
    >>> from maxtoki_toolkit.models.costs import Shape, cost
    >>> shape = Shape(11, 1232, 2464, 8, 8, 154, 20275, True)
    >>> round(cost(shape, [4096] * 1000, batch=4096, gpu="H100", half=True).hours, 3)
    0.002
    """
    operations = flops(shape, lengths, training=training)
    rests_on = "nothing was measured and no GPU named"
    if flop_per_second is not None:
        rests_on = f"{flop_per_second / 1e12:.3g} TFLOP/s measured here"
    elif gpu is not None:
        if gpu not in GPUS:
            raise ValueError(f"There are no numbers for {gpu!r}; there are for {', '.join(GPUS)}.")
        flop_per_second = GPUS[gpu][0] * 1e12 * UTILISATION
        rests_on = f"{UTILISATION:.0%} of the {GPUS[gpu][0]:g} TFLOP/s of {gpu}: assumed, not measured"
    hours = None if flop_per_second is None else operations / flop_per_second / 3600 / n_devices
    held = memory(shape, batch, training=training, half=half) / 2**30
    if gpu in GPUS and held > GPUS[gpu][1]:
        rests_on += f"; a batch of {batch:,} tokens does not fit into the {GPUS[gpu][1]:g} GiB of {gpu}"
    return Cost(
        tokens=int(np.sum(lengths)),
        petaflop=operations / 1e15,
        memory_gib=held,
        hours=hours,
        price=None if hours is None or hourly_price is None else hours * n_devices * hourly_price,
        rests_on=rests_on,
    )


def _duration(hours: float) -> str:
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s"
    if hours < 2:
        return f"{hours * 60:.0f} min"
    return f"{hours:,.1f} h" if hours < 48 else f"{hours / 24:,.1f} days"


def measure(model, length: int, *, training: bool = False, seconds: float = 3.0) -> float:
    """FLOP/s that the model's device does on sequences of a length: batches of it are computed for a few seconds."""
    import time

    import torch

    rows, device = max(1, 4096 // length), model.hf.device
    tokens = torch.zeros((rows, length), dtype=torch.long, device=device)

    def compute() -> float:
        start = time.perf_counter()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            out = model.hf(input_ids=tokens, labels=tokens if training else None, use_cache=False)
        if training:
            out.loss.backward()
            model.hf.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    with torch.set_grad_enabled(training):
        compute()  # the first batch sets things up
        times = [compute()]
        while sum(times) < seconds:
            times.append(compute())
    done = flops(Shape.of(model.hf.config), [length] * rows, training=training) * len(times)
    return done / sum(times)
