"""What all trainings share: the Trainer, its log, its bar, and going on after an interruption."""

from __future__ import annotations

import copy
import functools
import inspect
import json
import math
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset

from .._files import atomic
from .._outputs import claim
from .._progress import progress
from ..models._quiet import quiet_transformers
from ..models.costs import Shape, Work, flops, peak_of
from ..models.load import pick_device
from ..models.model import require_finite
from ._checkpoints import drop_unfinished, finish, last_checkpoint, unfinished, writing
from ._optimizer import MuonAdamW, is_sharded
from .recipe import Run

MOST_WORKERS = 8  # processes that write batches while a GPU computes
N_HELD_OUT = 512  # prompts or cells that are predicted while a training runs, if nobody says how many
# Settings of a run that change no result: a run with others goes on.
NOT_RECORDED = tuple(name for name in Run.names() if name not in ("bf16", "fp16", "seed"))

# What is written to the folder of a run, if all is asked for.
_FILES = (
    "recipe.json",
    "log.jsonl",
    "checkpoints",
    "model",
    "sae",
    "classifier",
    "response",
    "cells",
    "held_out",
    "replay",
    "states",
    "tensorboard",
)


def fit(
    module: nn.Module,
    output: Path,
    *,
    dataset: Dataset,
    collator: Callable,
    recipe: dict,
    held_out: Dataset | None,
    run: Run,
    device: str,
    metric: str,
    sequential: bool = False,
    compute_metrics: Callable | None = None,
    held_out_collator: Callable | None = None,
    labels: str | None = None,
    folder: str = "model",
) -> nn.Module | None:
    """Train `module`, from the last checkpoint in `output` if there is one, and return it, in this process whole.

    `None` where there is nothing to save: the run in `output` is finished, or another process has the
    weights.

    Raises
    ------
    ValueError
        If `output` holds a run of other settings or data, or the training diverges.
    OSError
        If a checkpoint cannot be written.

    Parameters
    ----------
    module
        A transformers model, or a module whose forward returns {"loss": ...}.
    output
        Folder of the run; gets `recipe.json`, `log.jsonl`, `checkpoints/` and `tensorboard/`.
    dataset, collator, held_out
        What is trained on, how it is batched, and what is evaluated.
    recipe
        `plain` settings of the run, and checksums of what is trained on: a run with others is not continued.
        Among them max_steps, batch_size, accumulate, learning_rate, warmup, weight_decay, bf16, fp16 and
        seed, which are used here, and optimizer, embedding_rate, hold and floor.
    run
        Steps between evaluations and checkpoints, and how the work is done.
    device
        "cpu", "cuda" or "mps"; of several processes each takes its own.
    metric
        What the loss is measured in, for the bar.
    sequential
        Examples come in the dataset's own order.
    compute_metrics
        As in `transformers.Trainer`.
    labels
        The input that says what is scored, if it is none that transformers knows by name.
    held_out_collator
        How what is evaluated is batched, if not as what is trained on.
    folder
        Where the caller puts what was trained; once it is there, the run is finished.
    """
    from transformers import Trainer, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    checkpoints = output / "checkpoints"
    _same_run(output, checkpoints, recipe, folder)
    if (output / folder).is_dir():
        return None
    # transformers 5 takes this folder from the environment alone.
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(output / "tensorboard")
    max_steps = recipe["max_steps"]
    warmup = max(round(recipe["warmup"] * max_steps), 1)
    n_workers = min(MOST_WORKERS, (os.cpu_count() or 1) - 1) if device.startswith("cuda") else 0
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=max_steps,
        per_device_train_batch_size=recipe["batch_size"],
        per_device_eval_batch_size=recipe["batch_size"],
        gradient_accumulation_steps=recipe["accumulate"],
        learning_rate=recipe["learning_rate"],
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={
            "num_decay_steps": max_steps - warmup - round(recipe.get("hold", 0) * (max_steps - warmup)),
            "min_lr_ratio": recipe.get("floor", 0.0),
        },
        warmup_steps=warmup,
        weight_decay=recipe["weight_decay"],
        adam_beta2=0.98,
        bf16=recipe["bf16"],
        fp16=recipe["fp16"],
        eval_strategy="steps" if held_out is not None else "no",
        eval_steps=run.eval_every,
        prediction_loss_only=compute_metrics is None,
        label_names=None if labels is None else [labels],
        # Also short runs, which may take hours on a laptop, go on from where they were.
        save_steps=run.save_every or max(min(500, max_steps // 10), 1),
        # Else a loss that is no number is logged as the mean of those before it.
        logging_nan_inf_filter=False,
        logging_steps=max(min(run.eval_every, max_steps) // 10, 1),
        train_sampling_strategy="sequential" if sequential else "random",
        remove_unused_columns=False,
        dataloader_pin_memory=device.startswith("cuda"),
        dataloader_num_workers=n_workers,
        dataloader_persistent_workers=n_workers > 0,
        use_cpu=device == "cpu",
        ddp_backend="gloo" if device == "cpu" and n_processes() > 1 else None,
        disable_tqdm=True,
        report_to=run.report_to or "none",
        run_name=output.name,
        seed=recipe["seed"],
    )
    # Several GPUs take several processes (accelerate launch); in one process the first is used.
    arguments._n_gpu = min(arguments.n_gpu, 1)

    class _Trainer(Trainer):
        def _get_output_dir(self, trial=None):
            return str(unfinished(checkpoints))

        def _save_checkpoint(self, model, trial):
            require_finite(module, "The model in training")
            with writing(checkpoints):
                super()._save_checkpoint(model, trial)
                # Each process writes a part of it.
                wait_for_all()
                if self.is_world_process_zero():
                    finish(checkpoints, self.state.global_step)
            wait_for_all()

        def _save(self, output_dir=None, state_dict=None):
            if state_dict is None and not hasattr(self.model, "save_pretrained"):
                # safetensors refuses one tensor under two names; a tied output layer is the embedding.
                state_dict = _without_tied(self.model)
            super()._save(output_dir, state_dict)

        def get_eval_dataloader(self, eval_dataset=None):
            if held_out_collator is None:
                return super().get_eval_dataloader(eval_dataset)
            self.data_collator = held_out_collator
            try:
                return super().get_eval_dataloader(eval_dataset)
            finally:
                self.data_collator = collator

        def training_step(self, model, inputs, *args, **kwargs):
            speed.count(inputs)
            return super().training_step(model, inputs, *args, **kwargs)

        def log(self, logs, *args, **kwargs):
            super().log(logs | (speed.take() if "loss" in logs else {}), *args, **kwargs)

    hf = getattr(module, "hf", module)
    speed = _Speed(hf.config, training=any(part is hf for part in module.modules()))
    if run.gradient_checkpointing:
        # The newer name of transformers, or the older.
        (getattr(hf, "activation_checkpointing_enable", None) or hf.gradient_checkpointing_enable)()
    optimizer = None
    if recipe.get("optimizer") == "muon":
        optimizer = MuonAdamW(
            module.to(arguments.device),
            recipe["learning_rate"],
            recipe["embedding_rate"],
            recipe["weight_decay"],
        )
    trainer = _Trainer(
        model=module.train(),
        optimizers=(optimizer, None),
        args=arguments,
        train_dataset=dataset,
        eval_dataset=held_out,
        data_collator=collator,
        compute_metrics=compute_metrics,
    )
    # The log goes to a file; on the screen there is the package's own bar.
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_log(output / "log.jsonl", metric))
    if is_first_process():
        drop_unfinished(checkpoints)
    last = last_checkpoint(checkpoints)
    whole = _without_weights(module) if trainer.is_fsdp_enabled else None
    with quiet_transformers():
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    module.eval()
    if whole is not None:
        # Each process has a part of the weights; all give theirs, and the first one gets them.
        weights = trainer.accelerator.get_state_dict(trainer.model)
        module = _with_weights(whole, weights) if is_first_process() else None
    return module if is_first_process() else None


def require_run(run: Run) -> str:
    """The device of a training; raise if it cannot be done there as asked for."""
    from transformers.integrations import integration_utils

    device, known = pick_device(run.device), integration_utils.INTEGRATION_TO_CALLBACK
    if run.bf16 and run.fp16:
        raise ValueError("bf16 and fp16 exclude each other. Leave one out.")
    if run.fp16 and device == "cpu":
        raise ValueError("fp16 needs a GPU, and the device is the CPU. Leave it out, or give bf16=True.")
    if is_sharded() and os.environ.get("FSDP_VERSION") != "2":
        raise ValueError(
            "Models are sharded by FSDP of version 2: accelerate launch --use_fsdp --fsdp_version 2."
        )
    if run.report_to is not None and run.report_to not in known:
        raise ValueError(f"There is no tracker {run.report_to!r}; choose from {', '.join(sorted(known))}.")
    if (
        run.report_to is not None
        and run.report_to not in integration_utils.get_available_reporting_integrations()
    ):
        raise ImportError(
            f"report_to={run.report_to!r} needs a package that is not installed: pip install {run.report_to}."
        )
    return device


def claim_run(output: Path) -> None:
    """Take the folder of a run; raise if it holds files of these names that no training wrote.

    Every process does, since any may be the first to write there, and those of another machine may have a
    disk of their own.
    """
    claim(output, _FILES, by="mt.train")


def leaves_nothing(train: Callable) -> Callable:
    """The training, whose folder goes again if it is refused before it begins."""
    signature = inspect.signature(train)

    @functools.wraps(train)
    def attempt(*args, **settings):
        output = Path(signature.bind(*args, **settings).arguments["output"])
        before = output.exists()
        try:
            return train(*args, **settings)
        except Exception:
            if not before and is_first_process() and not (output / "recipe.json").exists():
                shutil.rmtree(output, ignore_errors=True)
            raise

    return attempt


def n_processes() -> int:
    """Processes that train together, as torchrun and `accelerate launch` say."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_first_process() -> bool:
    """Whether this process writes the files that all share."""
    return int(os.environ.get("RANK", 0)) == 0


def wait_for_all() -> None:
    """Wait until the other processes are here."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def _without_weights(module: nn.Module) -> nn.Module:
    """A copy that has no memory for its weights."""
    empty = {
        id(weight): nn.Parameter(torch.empty_like(weight, device="meta"), requires_grad=weight.requires_grad)
        for weight in module.parameters()
    }
    return copy.deepcopy(module, empty)


def _with_weights(module: nn.Module, weights: dict[str, torch.Tensor]) -> nn.Module:
    """The module with these weights for its own."""
    module.load_state_dict(weights, assign=True)
    if hasattr(module, "tie_weights"):
        module.tie_weights()
    return module


def _without_tied(module: nn.Module) -> dict[str, torch.Tensor]:
    seen, state = set(), {}
    for name, tensor in module.state_dict().items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            state[name] = tensor
    return state


class _Speed:
    """What a process computes between two entries of the log."""

    def __init__(self, config, *, training: bool) -> None:
        self.training = training
        self.shape, self.pad = Shape.of(config), config.pad_token_id or 0
        self.tokens, self.pairs, self.since = 0, 0, time.perf_counter()

    def count(self, inputs: dict) -> None:
        """Add a batch. The sums stay on its device: to read them would wait for it."""
        for name in ("input_ids", "replay_ids"):
            if (batch := inputs.get(name)) is not None:
                length = (batch != self.pad).sum(dim=1).double()
                self.tokens = self.tokens + length.sum()
                self.pairs = self.pairs + (length * (length + 1) / 2).sum()

    def take(self) -> dict[str, float]:
        """Tokens a second, TFLOP/s and, where the device's peak is known, its share; then begin anew."""
        now = time.perf_counter()
        seconds, tokens, pairs = now - self.since, float(self.tokens), float(self.pairs)
        rate = (
            flops(self.shape, Work(tokens, pairs, scored=tokens * self.training), training=self.training)
            / seconds
        )
        entry = {"tokens_per_second": round(tokens / seconds, 1), "tflop_per_second": round(rate / 1e12, 4)}
        if torch.cuda.is_available() and (peak := peak_of(torch.cuda.get_device_name())):
            entry["mfu"] = round(rate / peak, 4)
        self.tokens, self.pairs, self.since = 0, 0, now
        return entry


def _log(path: Path, metric: str):
    """Write the log as it grows, and show the steps and the last loss in one bar."""
    from transformers import TrainerCallback

    class Log(TrainerCallback):
        bar = None

        def on_train_begin(self, args, state, control, **kwargs):
            self.bar = progress(
                total=state.max_steps, desc="Training", unit="step", disable=not state.is_world_process_zero
            )
            self.bar.update(state.global_step)

        def on_step_end(self, args, state, control, **kwargs):
            self.bar.update(1)

        def on_log(self, args, state, control, logs=None, **kwargs):
            if logs and not math.isfinite(float(logs.get("loss", 0))):
                raise ValueError(
                    f"The training has diverged: the loss is {logs['loss']} at step {state.global_step}. Choose a lower "
                    "learning_rate or a longer warmup, and another output folder."
                )
            if logs and "loss" in logs:
                self.bar.set_postfix_str(f"{float(logs['loss']):.3f} {metric}", refresh=False)
            if state.is_world_process_zero:
                with atomic(path) as temporary:
                    temporary.write_text("".join(json.dumps(entry) + "\n" for entry in state.log_history))

        def on_train_end(self, args, state, control, **kwargs):
            self.bar.close()

    return Log()


def _same_run(output: Path, checkpoints: Path, recipe: dict, folder: str) -> None:
    """Keep the settings of a run beside it, and refuse to go on with others once anything was trained."""
    path = output / "recipe.json"
    if (output / folder).exists() or last_checkpoint(checkpoints) is not None:
        if not path.is_file():
            raise ValueError(
                f"{output} holds a model or checkpoints without {path.name}: what they were trained on is not known. Choose "
                "another output folder."
            )
        found = json.loads(path.read_text())
        if changed := sorted(key for key in recipe if found.get(key) != recipe[key]):
            raise ValueError(
                f"{output} holds a run with other settings ({', '.join(changed)}). "
                "Choose another output folder, or delete this one."
            )
        return
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(recipe, indent=2) + "\n")
