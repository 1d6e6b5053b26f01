"""Settings of a training in groups, the same objects for Python, YAML files and the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .._recipes import Checked
from ..pp.sample_prompts import PromptSampling


@dataclass(frozen=True, kw_only=True)
class Optimization(Checked):
    """How the weights are found.

    Attributes
    ----------
    max_steps, batch_size, accumulate
        Optimiser steps; prompts (cells in stage 1) a device and forward pass; forward passes a step. Prompts
        of one step are of similar length.
    optimizer, learning_rate, embedding_rate
        "adamw"; or "muon", for the matrices of the blocks, with AdamW at `embedding_rate` for embeddings and
        heads.
    warmup, hold, floor
        The learning rate rises linearly over the share `warmup` of the steps, is held for the share `hold` of
        the rest and falls by a cosine to the share `floor` of the peak.
    weight_decay
        Decay of AdamW.
    """

    max_steps: int = 10_000
    batch_size: int = 8
    accumulate: int = 1
    optimizer: str = "adamw"
    learning_rate: float = 1e-4
    embedding_rate: float = 0.01
    warmup: float = 0.01
    hold: float = 0.0
    floor: float = 0.0
    weight_decay: float = 0.01


@dataclass(frozen=True, kw_only=True)
class SparseOptimization(Optimization):
    """As `Optimization`, with other defaults: for an autoencoder, which has one layer."""

    max_steps: int = 1000
    batch_size: int = 32
    learning_rate: float = 2e-3
    warmup: float = 0.05
    hold: float = 0.5
    floor: float = 0.05
    weight_decay: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ClassifierOptimization(Optimization):
    """As `Optimization`, with other defaults: for adapters and heads, which begin at a linear probe."""

    max_steps: int = 500
    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup: float = 0.05


@dataclass(frozen=True, kw_only=True)
class Run(Checked):
    """How a training runs and what it leaves; only `bf16`, `fp16` and `seed` change the result.

    Attributes
    ----------
    n_held_out, eval_every, save_every
        Prompts to predict (by default 512), in stage 1 cells held out to read (by default all), and steps
        between predictions and between checkpoints (by default every tenth of the run, at most 500 steps);
        the last two are kept.
    device
        "auto", "cpu", "cuda" or "mps".
    bf16, fp16
        Compute in bfloat16, or on GPUs in float16 with a scaled loss, where that is safe; the weights stay
        float32.
    gradient_checkpointing
        Recompute activations instead of keeping them: slower, with less memory.
    report_to
        Also log to "tensorboard" (in `output/tensorboard`), "wandb" or another tracker that transformers
        knows.
    seed
        Seed of new weights and of what is drawn.
    """

    n_held_out: int | None = None
    eval_every: int = 500
    save_every: int | None = None
    device: str = "auto"
    bf16: bool = False
    fp16: bool = False
    gradient_checkpointing: bool = False
    report_to: str | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class TemporalPrompts(PromptSampling):
    """Which prompts are drawn and how they are written.

    Attributes
    ----------
    context_size, zero_lapse, forward, balance
        As in `mt.pp.sample_prompts` and `mt.pp.PromptSampling`.
    timelapse
        Share of the prompts that ask for the lapse; the others ask for the cell.
    curriculum
        Share of the steps that come first and ask only for the lapse from a single context cell.
    shortest
        Cut the cells of half of the prompts to a number of genes from this one on, so that shallow cells are
        read too.
    gene_dropout
        Share of the genes left out of a cell each time it is read, so that few cells go further.
    every_cell
        Learn to predict every cell of a prompt from those before it, and not the answer alone: a model that
        is to generate cells is taught several times as much by each prompt. (The original learns answers
        alone.)
    """

    context_size: tuple[int, int] = (2, 3)
    timelapse: float = 0.5
    curriculum: float = 0.3
    shortest: int | None = None
    gene_dropout: float = 0.0
    every_cell: bool = False


@dataclass(frozen=True, kw_only=True)
class TimeObjective(Checked):
    """How a lapse is read and what its loss is.

    Attributes
    ----------
    head
        How a lapse is read: "linear" from the hidden state at `<eoq>`, or "expectation" over the time tokens.
    loss
        "mse", or for an expectation "ce", the cross entropy of the lapse's token.
    scale, loss_scale
        What the head's output is multiplied with to be in the unit of time (by default 1 for an expectation,
        so that token values and lapses share one scale, and `loss_scale` for a linear head), and what errors
        are divided by before they are squared (by default the standard deviation of the lapses). The original
        has 200 for both.
    penalty
        Weight of the probability of tokens that are no lapse, with an expectation trained by "mse" (original:
        10).
    task_weights
        Weights of the two tasks, lapse and cell, each a mean of its own.
    clock
        Weight of a further loss: the time of each cell since the first time of its group, read at the cell's
        `<eos>` by a linear layer that is not kept. It tells the model what to look for in a cell, which
        lapses alone, differences of two unknowns, do too faintly: small models were seen to stay at r 0
        without it.
    running
        Weight of the same, and of the lapse, read at every gene of a cell rather than at its end alone.
    teacher, teach
        "ridge": for the share `teach` of the steps the running clock follows ridge regressions of time on the
        places of genes, one for each group, fitted to the cells that are trained on: the sum over the genes
        read so far, and what the others add on average. Such labels are without noise and there is one at
        every gene. True times take over then. The penalty is chosen between donors where `donor_key` names
        their column.
    """

    head: str = "linear"
    loss: str = "mse"
    scale: float | None = None
    loss_scale: float | None = None
    penalty: float = 0.1
    task_weights: tuple[float, float] = (1.0, 1.0)
    clock: float = 1.0
    running: float = 0.0
    teacher: str | None = None
    teach: float = 0.7


@dataclass(frozen=True, kw_only=True)
class Adaptation(Checked):
    """What of a stage-1 model is extended, and what is trained.

    Attributes
    ----------
    lapses
        Lowest and highest lapse to make tokens for, if the model has none; by default what the cells span, in
        both directions.
    max_length, rope, rope_factor
        Tokens that the temporal model reads, how positions are stretched to that, and by how much, if not by
        the ratio of the lengths; see `mt.models.extend_model`.
    freeze_layers
        First blocks whose weights stay as they are.
    lora_rank, lora_alpha, lora_dropout
        With a rank, low-rank adapters (LoRA, Hu et al., ICLR 2022) on all projections of attention and MLP
        are trained in place of the weights, beside the embeddings of time tokens, `<boq>` and `<eoq>` and the
        time head, and are merged afterwards. They take less memory and a larger learning rate, such as 1e-3.
    """

    lapses: tuple[int, int] | None = None
    max_length: int = 16_384
    rope: str = "llama3"
    rope_factor: float | None = None
    freeze_layers: int = 0
    lora_rank: int | None = None
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0


@dataclass(frozen=True, kw_only=True)
class PretrainRecipe(Checked):
    """Settings of `mt.train.pretrain`, apart from cells and shape.

    Attributes
    ----------
    scored
        Share of the positions that are scored in each batch.
    gene_dropout
        Share of the genes left out of a cell each time it is read, so that few cells go further.
    modality_dropout
        For cells with proteins or peaks beside genes: how often each kind is left out of a cell, and those
        that stay come in random order, so that any can be read from any other. `None`: all, in one order.
    repeats
        How often each AnnData of the cells is seen in an epoch.
    optimization, run
        See `Optimization` and `Run`.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> mt.train.PretrainRecipe.of(max_steps=100, learning_rate=3e-4).optimization.learning_rate
    0.0003
    """

    scored: float = 1.0
    gene_dropout: float = 0.0
    modality_dropout: float | None = None
    repeats: Sequence[int] | None = None
    optimization: Optimization = field(default_factory=Optimization)
    run: Run = field(default_factory=Run)


@dataclass(frozen=True, kw_only=True)
class SparseRecipe(Checked):
    """Settings of `mt.train.sae`, apart from cells, model and size.

    Attributes
    ----------
    kind
        "topk", "batchtopk" or "matryoshka"; see `mt.models.SparseAutoencoder`.
    read
        Share of the genes whose states are read of a batch of cells; neighbours in a cell are alike.
    flatten
        How much less often abundant genes are read: at 0 as often as they come, at 1 each gene as often as
        any other.
    revive, dead_after
        Weight of the loss by which dead features learn what the living leave out, and how many states
        without it make a feature dead.
    store
        Compute the states of all cells once and keep them in `states/` (safetensors, 4 bytes a number: a
        million genes of a model with states of size 1,000 are 4 GB), where training reads them: for many
        passes over the same cells.
    optimization, run
        See `Optimization` and `Run`.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> mt.train.SparseRecipe.of(kind="matryoshka", max_steps=300).optimization.max_steps
    300
    """

    kind: str = "topk"
    read: float = 0.5
    flatten: float = 0.5
    revive: float = 1 / 32
    dead_after: int = 100_000
    store: bool = False
    optimization: SparseOptimization = field(default_factory=SparseOptimization)
    run: Run = field(default_factory=Run)


@dataclass(frozen=True, kw_only=True)
class ResponseOptimization(Optimization):
    """As `Optimization`, with other defaults: for a small network that learns from few populations."""

    max_steps: int = 300
    batch_size: int = 16
    learning_rate: float = 1e-3
    warmup: float = 0.05
    hold: float = 0.5
    floor: float = 0.05


@dataclass(frozen=True, kw_only=True)
class ResponseRecipe(Checked):
    """Settings of `mt.train.response`, apart from cells and their columns.

    Attributes
    ----------
    hidden_size, n_layers, n_heads
        Size of the states, blocks, and attention heads of the transformer.
    set_size
        Cells of a population that are read together.
    optimization, run
        See `Optimization` and `Run`.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> mt.train.ResponseRecipe.of(set_size=32, max_steps=100).optimization.max_steps
    100
    """

    hidden_size: int = 64
    n_layers: int = 2
    n_heads: int = 4
    set_size: int = 64
    optimization: ResponseOptimization = field(default_factory=ResponseOptimization)
    run: Run = field(default_factory=Run)


@dataclass(frozen=True, kw_only=True)
class ClassifierRecipe(Checked):
    """Settings of `mt.train.classify`, apart from cells and their columns.

    Attributes
    ----------
    smoothing
        Share of what is asked for that goes to neighbours of the label in the Cell Ontology.
    lora_rank, lora_alpha, lora_dropout
        As in `Adaptation`; without a rank the model stays as it is, and heads alone are trained.
    optimization, run
        See `ClassifierOptimization` and `Run`.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> mt.train.ClassifierRecipe.of(lora_rank=None, max_steps=300).optimization.max_steps
    300
    """

    smoothing: float = 0.1
    lora_rank: int | None = 8
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0
    optimization: ClassifierOptimization = field(default_factory=ClassifierOptimization)
    run: Run = field(default_factory=Run)


@dataclass(frozen=True, kw_only=True)
class TemporalRecipe(Checked):
    """Settings of `mt.train.temporal`, apart from cells and their columns.

    Attributes
    ----------
    prompts, objective, adaptation, optimization, run
        See `TemporalPrompts`, `TimeObjective`, `Adaptation`, `Optimization` and `Run`.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> recipe = mt.train.TemporalRecipe(optimization=mt.train.Optimization(max_steps=100))
    >>> recipe == mt.train.TemporalRecipe.of(max_steps=100)
    True
    """

    prompts: TemporalPrompts = field(default_factory=TemporalPrompts)
    objective: TimeObjective = field(default_factory=TimeObjective)
    adaptation: Adaptation = field(default_factory=Adaptation)
    optimization: Optimization = field(default_factory=Optimization)
    run: Run = field(default_factory=Run)
