"""Stage 1: learn to predict the next gene of a cell."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from anndata import AnnData

from .._files import atomic
from .._progress import progress
from ..models._quiet import quiet_transformers
from ..models.build import build_model
from ..models.load import load_model, pick_device, save_model
from ..models.model import MaxTokiModel
from ..models.vocabulary import Vocabulary
from .corpus import Corpus, NextGeneCollator


def pretrain(
    cells: AnnData | Sequence[AnnData],
    vocab: Vocabulary,
    output: str | Path,
    *,
    shape: str | Mapping = "217m",
    max_steps: int = 10_000,
    batch_size: int = 8,
    accumulate: int = 1,
    learning_rate: float = 1e-4,
    warmup: float = 0.01,
    weight_decay: float = 0.01,
    scored: float = 1.0,
    gene_dropout: float = 0.0,
    repeats: Sequence[int] | None = None,
    held_out: AnnData | Sequence[AnnData] | None = None,
    eval_every: int = 500,
    save_every: int = 500,
    device: str = "auto",
    bf16: bool = False,
    seed: int = 0,
) -> MaxTokiModel:
    """Train a model from random weights to predict each next gene (stage 1).

    Parameters
    ----------
    cells
        Rank-encoded cells (`mt.pp.rank_value_encode(adata, vocab)`), in one or several AnnData.
    vocab
        Vocabulary.
    output
        Folder of the run: checkpoints, `log.jsonl`, and the model in `model/`. A run that was
        interrupted goes on from its last checkpoint when called again with the same settings.
    shape
        "217m", "1b", or the fields of a `transformers.LlamaConfig`; `max_position_embeddings` is the
        length, in tokens, to which cells are cut.
    max_steps, batch_size, accumulate
        Optimiser steps; cells a device and forward pass; forward passes a step.
    learning_rate, warmup, weight_decay
        Peak of a cosine schedule with linear warm-up over this share of the steps; decay of AdamW.
    scored
        Share of the positions that are scored in each batch.
    gene_dropout
        Share of the genes left out of a cell each time it is read, so that few cells go further.
    repeats
        How often each AnnData of `cells` is seen in an epoch.
    held_out, eval_every
        Cells whose loss is logged, and every how many steps.
    save_every
        Steps between checkpoints; the last two are kept.
    device
        "auto", "cpu", "cuda" or "mps".
    bf16
        Compute in bfloat16 where that is safe; the weights stay float32.
    seed
        Seed of weights, order and scored positions.

    Returns
    -------
    The trained model, as `mt.load_model(output / "model")` gives it.

    Raises
    ------
    ValueError
        If `output` holds a run with other settings.

    Notes
    -----
    The loop is that of `transformers.Trainer`. Losses are in nats a gene; a uniform guess over the
    vocabulary has ln(vocabulary size). Padding is never predicted, whereas the original trains the last
    token of each cell to predict it.

    Examples
    --------
    >>> import tempfile, maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(200, 10)
    >>> mt.pp.map_genes(adata)
    >>> vocab = mt.models.Vocabulary.from_anndata(adata)
    >>> mt.pp.rank_value_encode(adata, vocab)
    >>> shape = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
    ...              max_position_embeddings=64)
    >>> model = mt.train.pretrain(adata, vocab, tempfile.mkdtemp(), shape=shape, max_steps=2)
    >>> model.hf.config.num_hidden_layers
    1
    """
    from transformers import Trainer, TrainingArguments
    from transformers.trainer_callback import PrinterCallback
    from transformers.trainer_utils import get_last_checkpoint

    output = Path(output)
    cells = [cells] if isinstance(cells, AnnData) else list(cells)
    held_out = [held_out] if isinstance(held_out, AnnData) else list(held_out or [])
    device = pick_device(device)
    model = build_model(shape, vocab, seed=seed)
    corpus = Corpus(cells, model, repeats, gene_dropout)
    recipe = {
        "shape": shape if isinstance(shape, str) else dict(shape),
        "max_steps": max_steps,
        "batch_size": batch_size,
        "accumulate": accumulate,
        "learning_rate": learning_rate,
        "warmup": warmup,
        "weight_decay": weight_decay,
        "scored": scored,
        "gene_dropout": gene_dropout,
        "seed": seed,
        "bf16": bf16,
        "vocabulary_sha256": vocab.sha256,
        "n_examples": len(corpus),
    }
    _same_run(output / "recipe.json", recipe)

    arguments = TrainingArguments(
        output_dir=str(output / "checkpoints"),
        max_steps=max_steps,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=batch_size,
        gradient_accumulation_steps=accumulate,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(round(warmup * max_steps), 1),
        weight_decay=weight_decay,
        adam_beta2=0.98,
        bf16=bf16,
        eval_strategy="steps" if held_out else "no",
        eval_steps=eval_every,
        prediction_loss_only=True,
        save_steps=save_every,
        save_total_limit=2,
        logging_steps=max(min(eval_every, max_steps) // 10, 1),
        remove_unused_columns=False,
        dataloader_pin_memory=device == "cuda",
        use_cpu=device == "cpu",
        disable_tqdm=True,
        report_to="none",
        seed=seed,
    )
    trainer = Trainer(
        model=model.hf.train(),
        args=arguments,
        train_dataset=corpus,
        eval_dataset=Corpus(held_out, model) if held_out else None,
        data_collator=NextGeneCollator(vocab["<pad>"], model.max_length, scored),
    )
    # The log goes to a file; on the screen there is the package's own bar.
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_bar())
    last = get_last_checkpoint(arguments.output_dir) if Path(arguments.output_dir).is_dir() else None
    with quiet_transformers():
        trainer.train(resume_from_checkpoint=last)

    with atomic(output / "log.jsonl") as path:
        path.write_text("".join(json.dumps(entry) + "\n" for entry in trainer.state.log_history))
    trained = MaxTokiModel(model.hf.to(torch.float32).eval(), vocab, name=str(output / "model"))
    save_model(trained, output / "model", card={"stage": 1, "recipe": recipe})
    return load_model(output / "model", device=device)


def _bar():
    """Show the steps of a Trainer, and the last loss, in one bar."""
    from transformers import TrainerCallback

    class Bar(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            self.bar = progress(total=state.max_steps, desc="Training", unit="step")
            self.bar.update(state.global_step)

        def on_step_end(self, args, state, control, **kwargs):
            self.bar.update(1)

        def on_log(self, args, state, control, logs=None, **kwargs):
            if logs and "loss" in logs:
                self.bar.set_postfix_str(f"{float(logs['loss']):.3f} nats a gene", refresh=False)

        def on_train_end(self, args, state, control, **kwargs):
            self.bar.close()

    return Bar()


def _same_run(path: Path, recipe: dict) -> None:
    """Keep the settings of a run beside it, and refuse to go on with others."""
    if path.is_file():
        found = json.loads(path.read_text())
        changed = sorted(key for key in recipe if found.get(key) != json.loads(json.dumps(recipe[key])))
        if changed:
            raise ValueError(
                f"{path.parent} holds a run with other settings ({', '.join(changed)}). "
                "Choose another output folder, or delete this one."
            )
        return
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(recipe, indent=2) + "\n")
