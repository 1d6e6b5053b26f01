"""Models from disk and hub: strict loading, checksums and refusals."""

import json
import pickle
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from anndata import AnnData
from safetensors.torch import load_file, save_file

import maxtoki_toolkit as mt
from maxtoki_toolkit import _manifests
from maxtoki_toolkit._files import sha256
from maxtoki_toolkit._reference import resource
from maxtoki_toolkit.models.build import SHAPES
from maxtoki_toolkit.models.fingerprint import fingerprint
from maxtoki_toolkit.models.load import MEDIANS, TOKENS, WEIGHTS

TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
REVISION = "21aa7b7f844c146c16fb79ffb3aa75d9b07a3d77"


def make_vocab(n_genes=40):
    genes = [f"ENSG{i:011d}" for i in range(n_genes)]
    tokens = ["<pad>", "<mask>", "<bos>", "<eos>", *genes]
    return mt.models.Vocabulary({t: i for i, t in enumerate(tokens)}, dict.fromkeys(genes, 1.5))


@pytest.fixture
def tiny():
    return mt.models.build_model({**TINY, "max_position_embeddings": 64}, make_vocab())


@pytest.fixture
def folder(tiny, tmp_path):
    mt.models.save_model(tiny, tmp_path / "model")
    return tmp_path / "model"


def published(folder, target):
    """The published layout: config and weights in a subfolder, no dictionaries."""
    target.mkdir(parents=True)
    for name in ("config.json", WEIGHTS):
        shutil.copy(folder / name, target / name)
    return target


def same_weights(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.hf.parameters(), b.hf.parameters(), strict=True))


def test_save_and_load(tiny, folder):
    model = mt.load_model(folder)
    assert same_weights(model, tiny)
    assert model.vocab.sha256 == tiny.vocab.sha256
    assert model.sha256 == sha256(folder / WEIGHTS)
    assert not model.hf.training
    assert not model.is_temporal
    tokens = torch.tensor([[2, 5, 9, 3]])
    assert torch.equal(model.hf(tokens).logits, tiny.hf(tokens).logits)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_defaults_are_float32_sdpa(folder):
    model = mt.load_model(folder, device="cpu")
    assert model.params["dtype"] == "float32"
    assert model.params["attention"] == "sdpa"
    assert mt.load_model(folder, dtype="bfloat16").hf.dtype == torch.bfloat16
    for dtype in ("float16", torch.float16):
        with pytest.raises(ValueError, match="float16 is for GPUs"):
            mt.load_model(folder, dtype=dtype, device="cpu")
    with pytest.raises(ValueError, match="dtype must be"):
        mt.load_model(folder, dtype="int8")
    with pytest.raises(ValueError, match="choose from sdpa"):
        mt.load_model(folder, attention="magic")


def test_flash_attention_is_asked_for_by_name(folder):
    from importlib.util import find_spec

    if find_spec("flash_attn") is not None:
        pytest.skip("flash-attn is installed here")
    with pytest.raises(ImportError, match="flash-attn is not installed. attention='sdpa'"):
        mt.load_model(folder, attention="flash_attention_2")


def test_published_layout_needs_a_vocabulary(folder, tiny):
    target = published(folder, folder.parent / "MaxToki" / "MaxToki-217M-HF")
    with pytest.raises(FileNotFoundError, match=r"Did not find token_dictionary\.json.*maxtoki-dictionaries"):
        mt.load_model(target)
    assert same_weights(mt.load_model(target, vocab=tiny.vocab), tiny)
    with pytest.raises(FileNotFoundError, match="Load one of its subfolders: MaxToki-217M-HF"):
        mt.load_model(target.parent)


def edit_weights(folder, change):
    state = load_file(folder / WEIGHTS)
    change(state)
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})


def test_half_loaded_weights_are_refused(folder):
    name = "model.layers.0.mlp.up_proj.weight"
    edit_weights(folder, lambda state: state.pop(name))
    with pytest.raises(ValueError, match=rf"1 missing \(first: {re.escape(name)}\)"):
        mt.load_model(folder)


def test_left_over_weights_are_refused(folder):
    edit_weights(folder, lambda state: state.update(extra=torch.zeros(2)))
    with pytest.raises(ValueError, match=r"1 unexpected \(first: extra\)"):
        mt.load_model(folder)


def test_resized_weights_are_refused(folder):
    edit_weights(folder, lambda state: state.update({"model.norm.weight": torch.zeros(31)}))
    with pytest.raises(ValueError, match="1 mismatched"):
        mt.load_model(folder)


def test_corrupt_weights(folder):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"model\.safetensors is corrupt .*Download it again"):
        mt.load_model(folder)


def test_wrong_checksum(folder):
    with pytest.raises(ValueError, match="is not the file asked for: sha256 .* expected 000"):
        mt.load_model(folder, checksum="0" * 64)
    assert mt.load_model(folder, checksum=sha256(folder / WEIGHTS)).sha256


def test_vocabulary_and_weights_that_disagree(folder):
    with pytest.raises(ValueError, match="44 token embeddings, the vocabulary 45 tokens"):
        mt.load_model(folder, vocab=make_vocab(41))


def test_pickle_pretending_to_be_a_dictionary(folder):
    (folder / TOKENS).write_bytes(pickle.dumps({"<pad>": 0}))
    with pytest.raises(ValueError, match="is a Python pickle, which can run code"):
        mt.load_model(folder)
    # Protocol 0 is text, and no JSON.
    (folder / TOKENS).write_bytes(pickle.dumps({"<pad>": 0}, protocol=0))
    with pytest.raises(ValueError, match="is not valid JSON"):
        mt.load_model(folder)


def test_pickled_weights_are_never_opened(folder):
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="only safetensors are loaded"):
        mt.load_model(folder)


def test_the_vocabulary_is_asked_for_before_the_download(hub):
    with pytest.raises(ValueError, match="maxtoki-217m is published without its dictionaries. Pass vocab="):
        mt.load_model("maxtoki-217m")
    with pytest.raises(
        ValueError, match="has no token_dictionary.json: weights of others come without their dictionaries"
    ):
        mt.load_model("lab/model", revision=REVISION)
    files = {entry.rpartition("/")[2] for entry in hub.asked if "/resolve/" in entry}
    assert files == {"token_dictionary.json"}


def test_device_that_is_not_there(folder):
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="PyTorch finds no device 'cuda' here"):
            mt.load_model(folder, device="cuda")
    with pytest.raises(ValueError, match="no device 'abacus'"):
        mt.load_model(folder, device="abacus")


def test_unknown_source():
    with pytest.raises(FileNotFoundError, match="neither 'demo', 'demo-cells'"):
        mt.load_model("no_such_model")


@pytest.mark.parametrize("source", ["lab/model", "runs/clock/model"])
def test_folder_or_hub_id_that_is_not_there(source):
    with pytest.raises(
        FileNotFoundError, match=rf"Did not find the folder {source}\. If .* pin its revision"
    ):
        mt.load_model(source)


@pytest.mark.parametrize("source", ["./runs/model", "../model", "/no/such", "~/model", "a/b/c/d", "runs/"])
def test_folder_that_is_not_there(source):
    with pytest.raises(FileNotFoundError, match=rf"^Did not find the folder {re.escape(source)}\.$"):
        mt.load_model(source, revision=REVISION)


def test_missing_medians(folder):
    (folder / MEDIANS).unlink()
    with pytest.raises(FileNotFoundError, match="Did not find the gene medians"):
        mt.load_model(folder)


def test_hub_model_needs_a_pinned_revision(hub, folder, tiny):
    target = published(folder, folder.parent / "pub")
    for path in target.iterdir():
        hub.files[f"lab/model/resolve/{REVISION}/small/{path.name}"] = path.read_bytes()
    with pytest.raises(ValueError, match="Pin the revision of lab/model"):
        mt.load_model("lab/model/small", vocab=tiny.vocab, revision="main")
    model = mt.load_model("lab/model/small", vocab=tiny.vocab, revision=REVISION, checksum=tiny_sum(target))
    assert same_weights(model, tiny)
    with pytest.raises(ValueError, match="is not the file asked for"):
        mt.load_model("lab/model/small", vocab=tiny.vocab, revision=REVISION, checksum="1" * 64)


def tiny_sum(folder):
    return sha256(folder / WEIGHTS)


@pytest.fixture
def catalogue(hub, folder, tmp_path, monkeypatch):
    """A manifest of a checkpoint on the loopback hub."""
    target = published(folder, tmp_path / "pub")
    entry = mt.datasets.manifest("maxtoki-217m") | {"name": "toy"}
    entry["files"] = [
        {"name": p.name, "repo": "lab/model", "path": p.name, "size": p.stat().st_size, "sha256": sha256(p)}
        for p in target.iterdir()
    ]
    for path in target.iterdir():
        hub.files[f"lab/model/resolve/{entry['revision']}/{path.name}"] = path.read_bytes()
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "toy.yaml").write_text(yaml.safe_dump(entry))
    monkeypatch.setattr(_manifests, "_folder", lambda: tmp_path / "manifests")
    return hub


def test_checkpoint_of_a_manifest(catalogue, tiny):
    assert same_weights(mt.load_model("toy", vocab=tiny.vocab), tiny)


def test_checkpoint_that_was_tampered_with(catalogue, tiny):
    key = next(key for key in catalogue.files if key.endswith("config.json"))
    catalogue.files[key] = b"{}"
    with pytest.raises(ValueError, match="is not the file that the registry knows, and was not kept"):
        mt.load_model("toy", vocab=tiny.vocab)
    assert not [path for path in catalogue.cache.rglob("config.json") if path.exists()]


def test_manifests_pin_both_published_checkpoints():
    for name in ("maxtoki-217m", "maxtoki-1b"):
        entry = mt.datasets.manifest(name)
        assert entry["revision"] == REVISION
        assert all(len(file["sha256"]) == 64 for file in entry["files"])


@pytest.mark.parametrize(("shape", "millions"), [("217m", 216.95), ("1b", 1049.0)])
def test_published_shapes_have_the_published_size(shape, millions):
    """Parameters counted without memory; the published files are float32 of this many (spec of the weights)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        n = LlamaForCausalLM(LlamaConfig(**SHAPES[shape], vocab_size=20_275)).num_parameters()
    assert n / 1e6 == pytest.approx(millions, rel=5e-4)
    weights = mt.datasets.manifest(f"maxtoki-{shape}")["files"][0]["size"]
    assert 4 * n == pytest.approx(weights, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["217m", "1b"])
def test_published_shapes_build_save_load_and_run(shape, tmp_path):
    model = mt.models.build_model(shape, make_vocab(20_271))
    tokens = torch.from_numpy(np.random.default_rng(0).integers(4, 20_275, (1, 64)))
    with torch.inference_mode():
        before = model.hf(tokens).logits
    mt.models.save_model(model, tmp_path / "model")
    del model
    loaded = mt.load_model(tmp_path / "model")
    with torch.inference_mode():
        assert torch.equal(loaded.hf(tokens).logits, before)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["head_dim"] == SHAPES[shape]["head_dim"]


def test_build_model_is_seeded_and_leaves_the_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    a = mt.models.build_model(TINY, make_vocab(), seed=1)
    assert torch.equal(torch.rand(1), expected)
    assert same_weights(a, mt.models.build_model(TINY, make_vocab(), seed=1))
    assert not same_weights(a, mt.models.build_model(TINY, make_vocab(), seed=2))
    with pytest.raises(ValueError, match="choose from"):
        mt.models.build_model("3b", make_vocab())


def shuffled(vocab):
    """As many genes, under each other's ids."""
    ids = dict(zip(vocab.genes, np.roll(vocab.gene_ids, 1).tolist(), strict=True))
    return mt.models.Vocabulary({**vocab.tokens, **ids}, vocab.medians)


def test_folder_with_the_dictionary_of_another_model(tiny, folder):
    other = shuffled(tiny.vocab)
    with pytest.raises(ValueError, match="was trained with other vocabulary .* Restore the folder"):
        mt.load_model(folder, vocab=other)
    (folder / "token_dictionary.json").unlink()
    other.save(folder)
    with pytest.raises(ValueError, match="was trained with other vocabulary"):
        mt.load_model(folder)
    (folder / "token_dictionary.json").unlink()
    tiny.vocab.save(folder)
    assert same_weights(mt.load_model(folder), tiny)


def test_folder_with_other_weights(folder):
    edit_weights(folder, lambda state: state["model.norm.weight"].add_(1e-3))
    with pytest.raises(ValueError, match="was trained with other weights"):
        mt.load_model(folder)


def test_folder_with_another_config(folder):
    """What no shape of a weight would tell; spaces and the order of fields are nothing."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(dict(sorted(config.items(), reverse=True))))
    assert mt.load_model(folder).hf.config.num_attention_heads == 4
    path.write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    with pytest.raises(ValueError, match="was trained with other config"):
        mt.load_model(folder)


def test_card_that_is_cut_short(folder):
    path = folder / "maxtoki.json"
    path.write_text(path.read_text()[:40])
    with pytest.raises(ValueError, match=r"maxtoki\.json is not valid JSON.*Restore the folder"):
        mt.load_model(folder)


def test_shipped_models_have_all_checksums():
    for name in ("demo", "demo_cells"):
        card = json.loads((resource(name) / "maxtoki.json").read_text())
        assert all(len(card[f"{part}_sha256"]) == 64 for part in ("weights", "vocabulary", "config"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(tiny, folder, value):
    """Refused when loaded, saved and read with: a training that diverged leaves nothing to read."""
    name = "model.layers.1.mlp.up_proj.weight"
    message = rf"weights that are NaN or infinite \(1 of its tensors, the first {re.escape(name)}\)"
    target = published(folder, folder.parent / "published")
    edit_weights(target, lambda state: state[name].view(-1)[3:4].fill_(value))
    with pytest.raises(ValueError, match=message):
        mt.load_model(target, vocab=tiny.vocab)
    tiny.hf.get_parameter(name).data[0, 3] = value
    with pytest.raises(ValueError, match=message):
        mt.models.save_model(tiny, folder.parent / "diverged")
    assert not (folder.parent / "diverged").exists()
    cells = AnnData(np.ones((2, 40), np.float32))
    cells.var_names = tiny.vocab.genes
    mt.pp.rank_value_encode(cells, tiny)
    with pytest.raises(ValueError, match=message):
        mt.tl.embed(cells, tiny)
    assert "X_maxtoki" not in cells.obsm


def test_fingerprint_is_of_the_content(tiny, folder):
    """Of what was saved and what was not; of all that results depend on."""
    assert fingerprint(mt.load_model(folder)) == fingerprint(tiny)
    others = [
        replace(tiny, vocab=shuffled(tiny.vocab)),
        replace(tiny, cell_length=10),
        replace(tiny, time_head=mt.models.TimeHead("linear", hidden_size=32)),
        replace(tiny, time_head=mt.models.TimeHead("linear", scale=2, hidden_size=32)),
        mt.models.build_model({**TINY, "max_position_embeddings": 64}, tiny.vocab, seed=1),
        mt.models.build_model({**TINY, "max_position_embeddings": 32}, tiny.vocab),
    ]
    head = mt.models.TimeHead("linear", hidden_size=32)
    torch.nn.init.ones_(head.linear.bias)
    others.append(replace(tiny, time_head=head))
    found = {fingerprint(tiny), *map(fingerprint, others)}
    assert len(found) == 1 + len(others)
    # Results say which of the models that were never saved they are of, and of the others the file.
    assert {model.params["model_sha256"] for model in (tiny, *others)} == found
    assert mt.load_model(folder).params["model_sha256"] == sha256(folder / WEIGHTS)
    tiny.hf.model.norm.weight.data[0] += 1e-3
    assert fingerprint(tiny) not in found
