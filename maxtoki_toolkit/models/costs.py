"""What reading or training costs: operations, memory, time and money, before anything starts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .._progress import hidden

if TYPE_CHECKING:
    from .model import MaxTokiModel


class Gpu(NamedTuple):
    """Numbers of a GPU's data sheet."""

    half: float
    """TFLOP/s in bfloat16 or float16, dense."""
    single: float
    """TFLOP/s in float32."""
    memory: float
    """GiB."""
    bandwidth: float
    """TB/s from its memory."""


GPUS = {
    "H200": Gpu(989.0, 67.0, 141.0, 4.8),
    "H100": Gpu(989.0, 67.0, 80.0, 3.35),
    "A100": Gpu(312.0, 19.5, 80.0, 2.04),
    "L40S": Gpu(362.0, 91.6, 48.0, 0.864),
    "L4": Gpu(121.0, 30.3, 24.0, 0.3),
    "RTX 4090": Gpu(165.0, 82.6, 24.0, 1.008),
    "T4": Gpu(65.0, 8.1, 16.0, 0.32),
}
# Share of the peak that small models reach; the plan says that it is an assumption.
UTILISATION = 0.3
_MEASURED = 16  # tokens that are written one at a time to see how fast that is


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


@dataclass(frozen=True)
class Work:
    """What goes through a model. Jobs are added up, and multiplied by a number.

    Attributes
    ----------
    tokens, pairs
        Tokens that go through the layers, and tokens that they see in all, each itself among them.
    scored
        Positions that are turned into scores of all genes.
    written, written_pairs
        How many of the tokens come one at a time, and what those see in all.
    steps
        Passes one after the other that they take at least, with all cells side by side.
    """

    tokens: float
    pairs: float
    scored: float = 0.0
    written: float = 0.0
    written_pairs: float = 0.0
    steps: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*map(sum, zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, n: float) -> Work:
        return Work(*(n * value for value in astuple(self)))

    @property
    def at_once(self) -> Work:
        """What is read rather than written."""
        scored = 0.0 if self.written else self.scored
        return Work(self.tokens - self.written, self.pairs - self.written_pairs, scored)


def reading(
    lengths: Sequence[int], shared: Sequence[int] | int = 0, *, scored: Sequence[int] | int = 0
) -> Work:
    """Work of reading sequences, as embeddings and screens do.

    Parameters
    ----------
    lengths
        Tokens of each sequence.
    shared
        First tokens of each that are known from another sequence, and so only looked at: what prompts and
        edits have in common is read once.
    scored
        Positions of each that are turned into scores of all genes: none for an embedding, one for a lapse.

    Returns
    -------
    The `Work`.

    Examples
    --------
    A cell of 2,000 tokens, and the same with each gene in turn moved to the end: what is before it is known.

    >>> import numpy as np
    >>> from maxtoki_toolkit.models.costs import reading
    >>> edits = reading(np.full(1998, 2000), np.arange(1998))
    >>> round((reading([2000]) + edits).tokens / (1999 * 2000), 2)  # of what it is without sharing
    0.5
    """
    lengths, shared, scored = np.broadcast_arrays(*(np.asarray(n, float) for n in (lengths, shared, scored)))
    pairs = (lengths * (lengths + 1) - shared * (shared + 1)) / 2
    return Work(float((lengths - shared).sum()), float(pairs.sum()), float(scored.sum()))


def generation(prompts: Sequence[int], n_genes: Sequence[int] | int, *, n_samples: int = 1) -> Work:
    """Work of writing cells, as `mt.tl.generate` does: a prompt at once, then one token after the other.

    Parameters
    ----------
    prompts
        Tokens of each prompt, the open cell's `<bos>` and given genes among them.
    n_genes
        Tokens that are written of each cell, its `<eos>` among them; `max_genes` for the most it can take.
    n_samples
        Cells for each prompt, which is read once.

    Returns
    -------
    The `Work`.

    Examples
    --------
    A thousand cells of 1,500 genes each after prompts of 2,000 tokens, with the published 217M weights:

    >>> from maxtoki_toolkit.models.costs import Shape, cost, generation
    >>> shape = Shape(11, 1232, 2464, 8, 8, 154, 20275, False)
    >>> work = generation([2000] * 1000, 1500)
    >>> round(cost(shape, work, batch=1 << 17, gpu="H100").hours, 2)
    0.14
    """
    prompts, n_genes = np.broadcast_arrays(*(np.asarray(n, float) for n in (prompts, n_genes)))
    # The last token is written, but not read again.
    read = np.maximum(n_genes - 1, 0)
    pairs = n_samples * float((read * prompts + read * (read + 1) / 2).sum())
    written = Work(
        n_samples * float(read.sum()),
        pairs,
        n_samples * float(n_genes.sum()),
        n_samples * float(read.sum()),
        pairs,
        float(read.max(initial=0)),
    )
    return reading(prompts) + written


def flops(shape: Shape, lengths: Sequence[int] | Work, *, training: bool = False) -> float:
    """Floating-point operations for some work, or sequences of these lengths; a multiplication and an addition are two.

    Each token sees itself and those before it. Of lengths, every position is turned into gene scores.
    Training takes a backward pass of twice the forward's operations.
    """
    work = _work(lengths)
    scores = shape.vocab * shape.hidden * work.scored
    seen = 4 * shape.layers * shape.heads * shape.head_dim * work.pairs
    forward = 2 * (n_matrix_weights(shape) * work.tokens + scores) + seen
    return float(forward * (3 if training else 1))


def _work(lengths: Sequence[int] | Work) -> Work:
    return lengths if isinstance(lengths, Work) else reading(lengths, scored=lengths)


def _moved(shape: Shape, work: Work, batch: int, size: int) -> float:
    """Bytes that writing one token at a time takes from memory: all weights a step, and keys and values of what is seen."""
    steps = max(work.steps, work.written_pairs / batch)  # as many cells side by side as a batch holds
    kv = 2 * shape.layers * shape.kv_heads * shape.head_dim
    return size * (steps * n_weights(shape) + kv * work.written_pairs)


def peak_of(device_name: str) -> float | None:
    """Peak of a device in FLOP/s in bfloat16, by what PyTorch calls it; `None` for one without an entry."""
    return next((GPUS[name].half * 1e12 for name in GPUS if name in device_name), None)


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
    # Values that autograd keeps a token, counted with torch's hooks on saved tensors
    # (tests/test_models_costs.py).
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
            "operations": _scaled(self.petaflop, "PFLOP", "TFLOP", "GFLOP", by=1000),
            "memory for a batch": _scaled(self.memory_gib, "GiB", "MiB", by=1024),
            "time": "not known" if self.hours is None else _duration(self.hours),
            "price": "not known: give the price of an hour (--hourly-price)"
            if self.price is None
            else f"{self.price:,.2f}",
            "rests on": self.rests_on,
        }
        return "\n".join(f"{name:<20}{value}" for name, value in rows.items())


def _scaled(value: float, *units: str, by: int) -> str:
    """A number in the largest unit of which there is one."""
    for unit in units[:-1]:
        if value >= 1:
            return f"{value:,.3g} {unit}"
        value *= by
    return f"{value:,.3g} {units[-1]}"


def cost(
    shape: Shape,
    lengths: Sequence[int] | Work,
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
        What is read or written (`reading`, `generation`); or the tokens of every sequence, each of which is
        turned into gene scores.
    batch
        Tokens a batch; of what is written one token at a time, those that are held at once.
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
    work = _work(lengths)
    operations, hours = flops(shape, work, training=training), None
    rests_on = "nothing was measured and no GPU named"
    if flop_per_second is not None:
        rests_on = f"{flop_per_second / 1e12:.3g} TFLOP/s measured here"
        hours = operations / flop_per_second / 3600 / n_devices
    elif gpu is not None:
        require_gpu(gpu)
        peak, bandwidth = GPUS[gpu].half if half else GPUS[gpu].single, GPUS[gpu].bandwidth
        moved = _moved(shape, work, batch, 2 if half else 4)
        at_once = flops(shape, work.at_once, training=training)
        # One token at a time, a GPU waits for its memory.
        computes, waits = (operations - at_once) / (peak * 1e12), moved / (bandwidth * 1e12)
        hours = (at_once / (peak * 1e12) + max(computes, waits)) / UTILISATION / 3600 / n_devices
        speed = f"{peak:g} TFLOP/s" + (f" and {bandwidth:g} TB/s" if waits > computes else "")
        kind = "bfloat16" if half else "float32"
        rests_on = f"{UTILISATION:.0%} of the {speed} of {gpu} in {kind}: assumed, not measured"
    held = memory(shape, batch, training=training, half=half) / 2**30
    if gpu in GPUS and held > GPUS[gpu].memory:
        rests_on += f"; a batch of {batch:,} tokens does not fit into the {GPUS[gpu].memory:g} GiB of {gpu}"
    return Cost(
        tokens=round(work.tokens),
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


def require_gpu(gpu: str | None) -> None:
    """Raise if there are no numbers for a GPU that was named."""
    if gpu is not None and gpu not in GPUS:
        raise ValueError(f"There are no numbers for {gpu!r}; there are for {', '.join(GPUS)}.")


def plan(
    model: MaxTokiModel,
    work: Work,
    *,
    gpu: str | None = None,
    n_devices: int = 1,
    hourly_price: float | None = None,
) -> Cost:
    """Say what a model takes for some work, in the batches and the precision that it would be done in.

    Parameters
    ----------
    model
        The model.
    work
        What it is to do: `reading` for embeddings, `generation` for cells that are written.
    gpu, n_devices, hourly_price
        As in `cost`; without a GPU, the model is measured for a few seconds where it is.

    Returns
    -------
    The `Cost`.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> from maxtoki_toolkit.models.costs import generation, plan
    >>> print(plan(mt.load_model("demo"), generation([500] * 100_000, 126), gpu="L4", hourly_price=0.8))
    tokens              62,500,000
    operations          186 TFLOP
    memory for a batch  1.14 GiB
    time                6 min
    price               0.08
    rests on            30% of the 30.3 TFLOP/s and 0.3 TB/s of L4 in float32: assumed, not measured
    """
    from .engine import DEFAULT_TOKENS, tokens_at_once
    from .generation import HELD_TOKENS

    require_gpu(gpu)
    budget = HELD_TOKENS if work.written else DEFAULT_TOKENS
    return cost(
        Shape.of(model.hf.config),
        work,
        batch=budget["cuda"] if gpu else tokens_at_once(model, None, budget),
        half=model.hf.dtype.itemsize == 2,
        gpu=gpu,
        n_devices=n_devices,
        flop_per_second=None if gpu else measure_work(model, work),
        hourly_price=hourly_price,
    )


def measure(model: MaxTokiModel, length: int, *, training: bool = False, seconds: float = 3.0) -> float:
    """FLOP/s that the model's device does on sequences of a length, every position of which is turned into gene scores.

    Batches of them are computed for a few seconds.
    """
    import torch

    rows, device = max(1, 4096 // length), model.hf.device
    tokens = torch.zeros((rows, length), dtype=torch.long, device=device)

    def compute() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            out = model.hf(input_ids=tokens, labels=tokens if training else None, use_cache=False)
        if training:
            out.loss.backward()
            model.hf.zero_grad(set_to_none=True)

    with torch.set_grad_enabled(training):
        done = flops(_shape(model), [length] * rows, training=training)
        return done / _time(model, compute, seconds)


def measure_work(model: MaxTokiModel, work: Work, *, seconds: float = 3.0) -> float:
    """FLOP/s that the model's device does on such work, from a little of it that is done as the engine does it."""
    from .embedding import embed_sequences
    from .engine import tokens_at_once
    from .generation import HELD_TOKENS, generate_cells
    from .sequences import Sequences

    shape, spent = _shape(model), 0.0

    def some(n: int, length: float) -> Sequences:
        length = int(np.clip(length, 2, model.max_length - _MEASURED - 2))
        tokens = np.random.default_rng(0).choice(model.vocab.gene_ids, (n, length))
        tokens[:, -1] = model.vocab["<bos>"]  # an open cell, to go on with
        return Sequences.of(list(tokens))

    at_once = work.at_once
    if at_once.tokens:
        length = 2 * at_once.pairs / at_once.tokens  # such tokens see as many as those of the work
        cells = some(max(int(tokens_at_once(model, None) / length), 1), length)
        lasts = _time(model, lambda: embed_sequences(model, cells), seconds)
        spent += flops(shape, at_once) / flops(shape, reading(cells.lengths)) * lasts
    if work.written:
        length = work.written_pairs / work.written
        held = tokens_at_once(model, None, HELD_TOKENS) / length
        n, start = max(int(min(held, work.written / work.steps)), 1), some(1, length)

        def write(n_genes: int) -> float:
            return _time(
                model, lambda: generate_cells(model, start, n_samples=n, max_genes=n_genes), seconds / 2
            )

        n_written = min(_MEASURED, model.cell_length - 2)
        # The first token takes no pass of its own.
        spent += work.written / (n * (n_written - 1)) * max(write(n_written) - write(1), 0)
    return flops(shape, work) / spent


def _shape(model: MaxTokiModel) -> Shape:
    return Shape.of(model.hf.config)


def _time(model: MaxTokiModel, compute: Callable[[], object], seconds: float) -> float:
    """Seconds that something takes, from doing it over and over for so long."""
    import torch

    def once() -> float:
        start = time.perf_counter()
        with hidden():
            compute()
        if model.hf.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    once()  # the first batch sets things up
    times = [once()]
    while sum(times) < seconds:
        times.append(once())
    return sum(times) / len(times)
