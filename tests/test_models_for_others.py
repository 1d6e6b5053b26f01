"""Models for others: folders for the hub, and a clock that needs PyTorch alone."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml

import maxtoki_toolkit as mt
from maxtoki_toolkit.models.sequences import Sequences
from maxtoki_toolkit.models.timelapse import read_lapses

REVISION = "a" * 40
CARD = {"title": "A clock", "license": "cc-by-4.0", "trained_on": "Simulated cells; of no use for real ones."}


def with_head(model, kind):
    head = mt.models.TimeHead(kind, hidden_size=model.hf.config.hidden_size)
    if kind == "linear":
        with torch.no_grad():
            head.linear.weight.copy_(torch.linspace(-9, 9, head.linear.weight.numel())[None])
    return dataclasses.replace(model, time_head=head)


def prompts_for(model, lengths=(5, 9, 60, 300)):
    rng = np.random.default_rng(0)
    genes, marks = model.vocab.gene_ids, [model.vocab[mark] for mark in ("<boq>", "<eoq>")]
    return Sequences.of([np.array([*rng.choice(genes, n - 2), *marks]) for n in lengths])


@pytest.mark.parametrize("kind", ["linear", "expectation"])
def test_a_folder_for_the_hub_is_read_back_from_it(hub, tiny_clock, tmp_path, kind):
    """Weights, vocabulary, lengths and head, from the folder and from the hub; transformers reads it alone."""
    from transformers import AutoModelForCausalLM

    model = with_head(tiny_clock, kind)
    mt.models.save_for_hub(model, tmp_path / "clock", **CARD)
    for path in (tmp_path / "clock").iterdir():
        hub.files[f"lab/clock/resolve/{REVISION}/{path.name}"] = path.read_bytes()
    prompts = prompts_for(model)
    expected = read_lapses(model, prompts)
    for source, settings in [(tmp_path / "clock", {}), ("lab/clock", {"revision": REVISION})]:
        found = mt.load_model(source, device="cpu", **settings)
        assert found.time_head.card == model.time_head.card
        assert found.cell_length == model.cell_length
        for one, other in zip(read_lapses(found, prompts), expected, strict=True):
            np.testing.assert_array_equal(one, other)
    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "clock")
    assert alone.num_parameters() == model.hf.num_parameters()


def test_the_card_says_what_it_is(tiny_clock, tiny_model, tmp_path):
    mt.models.save_for_hub(tiny_clock, tmp_path / "clock", **CARD)
    _, front, text = (tmp_path / "clock" / "README.md").read_text().split("---\n", 2)
    front = yaml.safe_load(front)
    assert (front["license"], front["library_name"]) == ("cc-by-4.0", "maxtoki_toolkit")
    assert "of no use for real ones" in text
    assert f"| parameters | {tiny_clock.hf.num_parameters():,} |" in text
    assert "lapses -900 to 900" in text
    mt.models.save_for_hub(tiny_model, tmp_path / "plain", **CARD)
    text = (tmp_path / "plain" / "README.md").read_text()
    assert "cannot tell time" in text
    assert "ageing clock" not in text
    # Once more, replaced by what the same function or save_model writes; and nothing of the user's.
    mt.models.save_for_hub(tiny_clock, tmp_path / "plain", overwrite=True, **CARD)
    mt.models.save_model(tiny_clock, tmp_path / "plain", overwrite=True)
    assert not (tmp_path / "plain" / "README.md").exists()
    with pytest.raises(ValueError, match="trained_on is empty"):
        mt.models.save_for_hub(tiny_clock, tmp_path / "no", **{**CARD, "trained_on": " "})
    assert not (tmp_path / "no").exists()


def reads_the_same(model, code, path):
    """What a process prints that runs code on a file and rows of tokens is what the engine reads."""
    prompts = prompts_for(model)
    expected, _ = read_lapses(model, prompts)
    rows = [
        prompts.tokens[a:b].tolist() for a, b in zip(prompts.indptr[:-1], prompts.indptr[1:], strict=True)
    ]
    words = [sys.executable, "-c", code, str(path), str(rows)]
    text = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, cwd=path.parent).stdout
    found = np.array(yaml.safe_load(text))
    assert np.ptp(expected) > 1e-3
    np.testing.assert_allclose(found, expected, atol=1e-4 * max(np.abs(expected).max(), 1))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["linear", "expectation"])
def test_an_exported_clock_reads_the_same(tiny_clock, tmp_path, kind):
    """At lengths that it was not written with, in a process that has PyTorch alone."""
    model = with_head(tiny_clock, kind)
    path = tmp_path / "clock.pt2"
    mt.models.export_clock(model, path)
    code = (
        "import sys, json, torch\n"
        "clock = torch.export.load(sys.argv[1]).module()\n"
        "print(json.dumps([clock(torch.tensor([row])).item() for row in json.loads(sys.argv[2])]))\n"
        "assert 'maxtoki_toolkit' not in sys.modules"
    )
    reads_the_same(model, code, path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["linear", "expectation"])
def test_a_clock_in_onnx_reads_the_same(tiny_clock, tmp_path, kind):
    """At lengths that it was not written with, in a process that has ONNX alone."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    model = with_head(tiny_clock, kind)
    path = tmp_path / "clock.onnx"
    mt.models.export_clock(model, path)
    code = (
        "import sys, json, numpy as np, onnxruntime\n"
        "clock = onnxruntime.InferenceSession(sys.argv[1])\n"
        "read = lambda row: clock.run(['lapse'], {'input_ids': np.array([row])})[0].item()\n"
        "print(json.dumps([read(row) for row in json.loads(sys.argv[2])]))\n"
        "assert not {'maxtoki_toolkit', 'torch'} & set(sys.modules)"
    )
    reads_the_same(model, code, path)


def test_what_cannot_be_exported(tiny_model, tiny_clock, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="cannot tell time"):
        mt.models.export_clock(tiny_model, tmp_path / "clock.pt2")
    with pytest.raises(ValueError, match=r"a \.pt2 or a \.onnx"):
        mt.models.export_clock(tiny_clock, tmp_path / "clock.pt")
    (tmp_path / "there.pt2").write_text("mine")
    with pytest.raises(ValueError, match="exists"):
        mt.models.export_clock(tiny_clock, tmp_path / "there.pt2")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setitem(sys.modules, "onnx", sys)
    with pytest.raises(ImportError, match=r'extra "onnx": pip install .*\.\[onnx\]'):
        mt.models.export_clock(tiny_clock, tmp_path / "clock.onnx")
    monkeypatch.setitem(sys.modules, "onnxscript", sys)
    monkeypatch.setattr(sys.modules["maxtoki_toolkit.models.export_clock"], "_MOST", 1000)
    with pytest.raises(ValueError, match=r"ONNX file holds 1\.6 GB.*Write a \.pt2"):
        mt.models.export_clock(tiny_clock, tmp_path / "clock.onnx")
