"""`maxtoki convert`: pickles without running them, and models that say what they said before."""

import json
import os
import pickle
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_cli import run
from test_models_megatron import make_vocab

import maxtoki_toolkit as mt
from maxtoki_toolkit import sanity
from maxtoki_toolkit.models.safe_pickle import read_pickle

TOKENS = {
    "<pad>": 0,
    "<mask>": 1,
    "<bos>": 2,
    "<eos>": 3,
    "ENSG00000000003": 4,
    -3: 5,
    "0": 6,
    "x": [1, 2.5, {"y": -1}],
}


class Exploit:
    """What makes a pickle run code as it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_dictionaries_of_all_protocols(tmp_path, protocol):
    path = tmp_path / "d.pkl"
    path.write_bytes(pickle.dumps(TOKENS, protocol))
    assert read_pickle(path) == TOKENS
    medians = dict(zip(map(str, range(3000)), np.random.default_rng(0).random(3000).tolist(), strict=True))
    path.write_bytes(pickle.dumps(medians, protocol))
    assert read_pickle(path) == medians


def exploits(mark):
    """Pickles that would leave a mark, each in its own way."""
    plain = [pickle.dumps({"a": Exploit(mark)}, protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    touch = f"touch {mark}".encode()
    return [
        *plain,
        b"cposix\nsystem\n(S'" + touch + b"'\ntR.",
        b"(S'" + touch + b"'\niposix\nsystem\n.",  # INST names and calls at once
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c" + bytes([len(touch)]) + touch + b"\x85R.",
        # Harmless at first sight: the dictionary comes first, the call after it.
        pickle.dumps(TOKENS)[:-1] + b"0" + plain[2][2:],
        b"}(\x8c\x01a\x8c\x01bu" + plain[0][:-1] + b"0.",
    ]


def test_an_exploit_does_not_run(tmp_path, capsys):
    """Nor does what it would be read with: the file is looked through before anything is made of it."""
    mark = tmp_path / "mark"
    for i, content in enumerate(exploits(mark)):
        path = tmp_path / f"{i}.pkl"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="others can run code"):
            read_pickle(path)
        code, _, err = run(capsys, "convert", path, tmp_path / "out.json")
        assert code == 1
        assert "can run code" in err
        assert len(err.strip().splitlines()) == 1
        assert not (tmp_path / "out.json").exists()
    assert not mark.exists()
    # The exploit is one: read as usual, it leaves its mark.
    pickle.loads(exploits(mark)[2])
    assert mark.exists() or sys.platform == "win32"


def test_other_things_are_refused(tmp_path):
    path = tmp_path / "d.pkl"
    loop = {}
    loop["me"] = loop
    others = [
        {"a": None},
        {"a": True},
        {"a": (1, 2)},
        {"a": {1}},
        {"a": b"x"},
        {"a": np.float64(1)},
        {1 + 2j: 0},
    ]
    for other in others:
        path.write_bytes(pickle.dumps(other))
        with pytest.raises(ValueError, match="was not read"):
            read_pickle(path)
    path.write_bytes(pickle.dumps(loop))
    assert read_pickle(path)["me"]  # of plain things; as JSON it is refused
    for content in (pickle.dumps([1, 2]), pickle.dumps(TOKENS)[:-9], b"", b"{}", b"\x80\xff."):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="was not read|no dictionary"):
            read_pickle(path)


def test_a_pickle_becomes_json(tmp_path, capsys):
    path, output = tmp_path / "token_dictionary.pkl", tmp_path / "token_dictionary.json"
    path.write_bytes(pickle.dumps(TOKENS))
    code, out, err = run(capsys, "convert", path, output)
    assert (code, err) == (0, "")
    assert "8 entries" in out
    assert json.loads(output.read_text()) == {str(key): value for key, value in TOKENS.items()}
    assert run(capsys, "convert", path, output)[0] == 1  # it is there
    assert run(capsys, "convert", path, tmp_path / "folder")[0] == 1
    path.write_bytes(pickle.dumps({1: 0, "1": 2}))
    code, _, err = run(capsys, "convert", path, tmp_path / "b.json")
    assert code == 1
    assert "keys that are one in JSON" in err


@pytest.fixture(scope="module")
def checked(tmp_path_factory, tiny_clock):
    """A model, and cells that it reads."""
    path = tmp_path_factory.mktemp("sanity")
    mt.models.save_model(tiny_clock, path / "model")
    adata = mt.datasets.aging_atlas(20, 10, n_genes=500)
    adata.write_h5ad(path / "cells.h5ad")
    mt.pp.rank_value_encode(adata, tiny_clock)
    mt.pp.write_dataset(adata, tiny_clock, output=path / "cells.dataset")
    return path


@pytest.mark.parametrize("cells", ["cells.h5ad", "cells.dataset"])
def test_logits_before_and_after(checked, capsys, tmp_path, cells):
    code, out, err = run(
        capsys, "convert", checked / "model", tmp_path / "out", "--sanity-check", checked / cells
    )
    assert code == 0, err
    assert "The logits agree: at most 0 apart" in out
    assert "of 8 cells" in out


def test_a_changed_model_fails_the_check(checked, capsys, tmp_path, monkeypatch):
    """One weight of one block, changed on the way; and the table of time tokens, which no gene reads, is compared, too."""
    save = mt.models.to_megatron

    def spoilt(model, folder):
        weight = dict(model.hf.named_parameters())["model.layers.0.mlp.down_proj.weight"]
        with torch.no_grad():
            weight[0, 0] += 3
            save(model, folder)
            weight[0, 0] -= 3

    monkeypatch.setattr(mt.models, "to_megatron", spoilt)
    command = ["convert", checked / "model", tmp_path / "out", "--sanity-check", checked / "cells.h5ad"]
    code, out, _ = run(capsys, *command)
    assert code == 1
    assert "The logits differ" in out
    code, out, _ = run(capsys, *command[:2], tmp_path / "loose", *command[3:], "--tolerance", 100)
    assert code == 0


def test_no_numbers_are_no_agreement(checked, tiny_clock, monkeypatch):
    """NaN is beyond any tolerance."""
    monkeypatch.setattr(sanity, "load_model", lambda *_, **__: tiny_clock)
    forward = tiny_clock.hf.forward

    def broken(*args, **kwargs):
        found = forward(*args, **kwargs)
        found.logits[0, 0, 0] = float("nan")
        return found

    monkeypatch.setattr(tiny_clock.hf, "forward", broken)
    assert sanity.compare_logits(tiny_clock, checked / "model", checked / "cells.h5ad").largest == np.inf


@pytest.mark.parametrize("name", ["megatron_gqa_untied", "megatron_mha_head10"])
def test_against_logits_of_the_original(shared, capsys, tmp_path, name):
    """Fixtures that megatron-core 0.16.1 wrote: the check passes, and fails where the logits are of another model."""
    fixture = shared / "fixtures" / name
    reference = fixture / "reference_logits.safetensors"
    tensors = load_file(reference)
    vocab = make_vocab(tensors["logits"].shape[-1])
    vocab.save(tmp_path)
    files = [
        "--tokens",
        tmp_path / "token_dictionary.json",
        "--medians",
        tmp_path / "gene_median_dictionary.json",
    ]
    code, out, err = run(capsys, "convert", fixture, tmp_path / "out", *files, "--sanity-check", reference)
    assert code == 0, err
    assert "at 40 positions of 2 cells" in out
    tensors["logits"][1, 7, 5] += 0.1
    save_file(tensors, tmp_path / "other.safetensors")
    code, out, _ = run(
        capsys, "convert", fixture, tmp_path / "2", *files, "--sanity-check", tmp_path / "other.safetensors"
    )
    assert code == 1
    assert "The logits differ: at most 0.1 apart" in out
