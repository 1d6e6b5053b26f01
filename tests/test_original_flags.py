"""docs/original.md: each flag of the original has the counterpart that the table says."""

import dataclasses
import inspect
import re
from pathlib import Path

import pytest
import typer

import maxtoki_toolkit as mt
from maxtoki_toolkit import cli

PAGE = Path(__file__).parents[1] / "docs" / "original.md"
# The original's flags (reference/maxtoki_spec.md, section 9), without those that do nothing there, or set up its container.
FLAGS = {
    "predict": "data-path output-dir tokenizer-path initial-ckpt-path precision num-gpus seq-length micro-batch-size generate-next-cell "
    "write-interval top-k top-p temperature buffer-size-gb max-tokens-to-generate using-pretrain-dataset limit-predict-batches-to-n",
    "tokenize": "data-directory output-directory gene-median-file token-dictionary-file custom-attrs nproc model-input-size use-h5ad-index "
    "keep-counts",
    "assemble-paragraphs": "data-directory output-directory token-dictionary-file num-examples min-timepoints max-timepoints task-ratio "
    "time-group-columns seed",
    "train": "train-data-path val-data-path seq-length rope-scaling-factor output-weights tokenizer-path precision lr cosine-rampup-frac "
    "cosine-hold-frac num-gpus num-nodes num-steps val-check-interval log-every-n-steps limit-val-batches micro-batch-size "
    "accumulate-grad-batches result-dir experiment-name save-top-k resume-if-exists create-tensorboard-logger wandb-project num-layers "
    "hidden-size ffn-hidden-size num-attention-heads tensor-model-parallel-size pretrain initial-ckpt-path "
    "freeze-params-until-key-suffix timelapse-loss label-scalar additive-penalty",
    "export": "model-path output-path tokenizer-path sanity-check data-path",
}
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.read_text().split("## Flag by flag")[1].splitlines()
    if line.startswith("| `")
]


def parameters_of(command):
    """Options and arguments of a command of ours, by name."""
    found = typer.main.get_command(cli.app)
    for word in command.split():
        found = found.commands[word]
    options = {flag for parameter in found.params for flag in getattr(parameter, "opts", [])}
    return options, {parameter.name.upper() for parameter in found.params}


def check(text):
    """That a command has an option or argument, and a function or a class exists; say what was looked at."""
    words = text.split()
    if words[0] == "maxtoki":
        command = [word for word in words[1:] if not word.startswith("--") and not word.isupper()]
        options, arguments = parameters_of(" ".join(command))
        for word in words[1:]:
            if word.startswith("--"):
                assert word in options, text
            elif word.isupper():
                assert word in arguments, text
        return True
    if text.startswith("mt."):
        name = text.partition("(")[0]
        owner, last = name.rsplit(".", 1)
        found = mt
        for part in owner.split(".")[1:]:
            found = getattr(found, part)
        if dataclasses.is_dataclass(found):
            assert last in {field.name for field in dataclasses.fields(found)}, text
            return True
        given = re.findall(r"(\w+)=", text)
        assert hasattr(found, last), text
        if given:
            assert set(given) <= set(inspect.signature(getattr(found, last)).parameters), text
        return True
    return False


@pytest.mark.parametrize(("theirs", "ours"), ROWS, ids=[row[0] for row in ROWS])
def test_counterpart(theirs, ours):
    named = re.findall(r"`([^`]+)`", ours)
    looked_at = [check(text) for text in named]
    assert any(looked_at) or ours.startswith(("not needed", "known from the model", "all columns")), theirs


def test_no_flag_is_forgotten():
    there = {
        "predict": set(),
        "tokenize": set(),
        "assemble-paragraphs": set(),
        "train": set(),
        "export": set(),
    }
    for theirs, _ in ROWS:
        command = theirs.strip("`").split()[0]
        there.setdefault(command, set()).update(re.findall(r"--([\w-]+)", theirs))
    for command, flags in FLAGS.items():
        assert set(flags.split()) <= there[command], set(flags.split()) - there[command]


def test_a_wrong_row_would_fail():
    """The test can tell: an option, an argument, a parameter and a field that are not there."""
    for text in (
        "maxtoki predict --nothing",
        "maxtoki predict PLACE",
        "mt.pp.match_queries(adata, x=1)",
        "mt.train.Run.nothing",
    ):
        with pytest.raises(AssertionError):
            check(text)
