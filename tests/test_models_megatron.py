"""Checkpoints of the original: the same model, all of it, and nothing run on the way."""

import io
import json
import pickle
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from typer.testing import CliRunner

import maxtoki_toolkit as mt
from maxtoki_toolkit.cli import app
from maxtoki_toolkit.models._megatron_weights import join_qkv, split_qkv
from maxtoki_toolkit.models._torch_dist import (
    Chunk,
    Entry,
    _Unpickler,
    read_entries,
    read_tensor,
    write_state,
)
from maxtoki_toolkit.models.megatron import is_megatron

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
FC1 = "mlp.linear_fc1.weight"


def make_vocab(size=44, times=0):
    genes = [f"ENSG{i:011d}" for i in range(size - 4)]
    tokens = ["<pad>", "<mask>", "<bos>", "<eos>", *genes]
    vocab = mt.models.Vocabulary({t: i for i, t in enumerate(tokens)}, dict.fromkeys(genes, 1.5))
    return vocab.with_times(-times, times) if times else vocab


def make_model(vocab=None, seed=0, **shape):
    """A model with every weight its own, norms too."""
    model = mt.models.build_model(
        {**SHAPE, "max_position_embeddings": 64, **shape}, vocab or make_vocab(), seed=seed
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.hf.parameters():
            weight += 0.2 * torch.randn(weight.shape, generator=generator)
    return model


@pytest.fixture
def model():
    return make_model()


@pytest.fixture
def folder(model, tmp_path):
    mt.models.to_megatron(model, tmp_path / "nemo")
    return tmp_path / "nemo"


def same(a, b):
    """Equal configuration, weights and logits, bit for bit."""
    fields = {*SHAPE, "head_dim", "num_key_value_heads", "rms_norm_eps", "rope_parameters", "vocab_size"}
    fields |= {"tie_word_embeddings", "max_position_embeddings", "initializer_range", "pad_token_id"}
    assert {f: getattr(a.hf.config, f) for f in fields} == {f: getattr(b.hf.config, f) for f in fields}
    weights, others = a.hf.state_dict(), b.hf.state_dict()
    assert list(weights) == list(others)
    assert all(torch.equal(weight, others[name]) for name, weight in weights.items())
    tokens = torch.arange(40).view(2, 20)
    with torch.inference_mode():
        assert torch.equal(a.hf(tokens).logits, b.hf(tokens).logits)
    return True


def rewrite(folder, change):
    """Change the tensors of a checkpoint."""
    weights = folder / "weights"
    state = {key: read_tensor(weights, entry) for key, entry in read_entries(weights).items()}
    change(state)
    for path in weights.iterdir():
        path.unlink()
    write_state(weights, state)


def edit_fields(folder, **fields):
    path = folder / "context" / "model.yaml"
    content = yaml.safe_load(path.read_text())
    content["config"] |= fields
    path.write_text(yaml.safe_dump(content))


@pytest.mark.parametrize("name", ["megatron_gqa_untied", "megatron_mha_head10"])
def test_megatron_computed_these_logits(shared, name):
    """Fixtures and logits were written by megatron-core 0.16.1."""
    reference = load_file(shared / "fixtures" / name / "reference_logits.safetensors")
    rows = reference["logits"].shape[-1]
    model = mt.models.from_megatron(shared / "fixtures" / name, vocab=make_vocab(rows))
    with torch.inference_mode():
        logits = model.hf(reference["input_ids"]).logits[:, ::10]
    torch.testing.assert_close(logits, reference["logits"], atol=1e-4, rtol=0)
    assert reference["logits"].abs().max() > 1
    # Fewer tokens than rows: padding.
    cropped = mt.models.from_megatron(shared / "fixtures" / name, vocab=make_vocab(rows - 6))
    with torch.inference_mode():
        logits = cropped.hf(reference["input_ids"].clamp(max=100)).logits
        expected = model.hf(reference["input_ids"].clamp(max=100)).logits[..., : rows - 6]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"num_key_value_heads": 2, "rope_parameters": LLAMA3, "rms_norm_eps": 1e-5},
        {"num_key_value_heads": 1, "head_dim": 10, "num_hidden_layers": 1},
        {"num_attention_heads": 1, "head_dim": 14, "rope_parameters": LLAMA3 | {"rope_theta": 1234.5}},
    ],
)
def test_round_trip(tmp_path, shape, tied):
    model = make_model(tie_word_embeddings=tied, **shape)
    mt.models.to_megatron(model, tmp_path / "nemo")
    back = mt.models.from_megatron(tmp_path / "nemo")
    assert same(model, back)
    assert back.vocab.sha256 == model.vocab.sha256
    assert back.params["attention"] == "sdpa"
    assert back.time_head is None
    assert not back.hf.training
    assert (back.hf.lm_head.weight is back.hf.model.embed_tokens.weight) == tied
    # What was read can be saved as any other model.
    mt.models.save_model(back, tmp_path / "hf")
    assert same(model, mt.load_model(tmp_path / "hf", device="cpu"))


def test_factor_one_is_plain_rope(tmp_path):
    model = make_model(rope_parameters=LLAMA3 | {"factor": 1.0})
    mt.models.to_megatron(model, tmp_path / "nemo")
    back = mt.models.from_megatron(tmp_path / "nemo")
    assert back.hf.config.rope_parameters["rope_type"] == "default"
    frequencies = [m.hf.model.rotary_emb.inv_freq for m in (model, back)]
    torch.testing.assert_close(*frequencies, rtol=1.2e-7, atol=0)


def test_half_precision_is_kept_on_disk_and_read_as_float32(tmp_path, model):
    model.hf.to(torch.bfloat16)
    mt.models.to_megatron(model, tmp_path / "nemo")
    back = mt.models.from_megatron(tmp_path / "nemo")
    assert back.hf.dtype == torch.float32
    assert all(
        torch.equal(a.float(), b) for a, b in zip(model.hf.parameters(), back.hf.parameters(), strict=True)
    )
    shard = next((tmp_path / "nemo" / "weights").glob("*.distcp"))
    assert shard.stat().st_size < 3 * model.hf.num_parameters() + 60_000


def test_what_is_written(folder, model):
    """The layout of the fixtures: keys, shapes, padding, descriptions."""
    import torch.distributed.checkpoint as dcp

    metadata = dcp.FileSystemReader(folder / "weights").read_metadata()
    sizes = {
        key.removeprefix("module."): list(entry.size) if hasattr(entry, "size") else "bytes"
        for key, entry in metadata.state_dict_metadata.items()
    }
    linear = ("self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1", "mlp.linear_fc2")
    assert sizes == {
        "embedding.word_embeddings.weight": [128, 32],
        "output_layer.weight": [128, 32],
        "decoder.final_layernorm.weight": [32],
        "decoder.layers.self_attention.linear_qkv.layer_norm_weight": [2, 32],
        "decoder.layers.self_attention.linear_qkv.weight": [2, 96, 32],
        "decoder.layers.self_attention.linear_proj.weight": [2, 32, 32],
        "decoder.layers.mlp.linear_fc1.layer_norm_weight": [2, 32],
        "decoder.layers.mlp.linear_fc1.weight": [2, 96, 32],
        "decoder.layers.mlp.linear_fc2.weight": [2, 32, 48],
        **{f"decoder.layers.{name}._extra_state/shard_{i}_2": "bytes" for name in linear for i in (0, 1)},
    }
    assert metadata.storage_meta.checkpoint_id is None
    entries = read_entries(folder / "weights")
    embedding = read_tensor(folder / "weights", entries["module.embedding.word_embeddings.weight"])
    assert not embedding[model.vocab.size :].any()
    fc1 = read_tensor(folder / "weights", entries[f"module.decoder.layers.{FC1}"])
    mlp = model.hf.model.layers[1].mlp
    assert torch.equal(fc1[1], torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]))
    fields = yaml.safe_load((folder / "context" / "model.yaml").read_text())["config"]
    assert fields["_target_"] == "bionemo.maxtoki.model.MaxTokiConfig"
    assert fields["vocab_size"] == 128
    assert json.loads((folder / "weights" / "metadata.json").read_text())["sharded_backend"] == "torch_dist"
    assert torch.load(folder / "weights" / "common.pt", weights_only=True) == {}


def test_fixtures_have_the_same_layout(shared, tmp_path):
    fixture = shared / "fixtures" / "megatron_gqa_untied"
    model = mt.models.from_megatron(fixture, vocab=make_vocab(256))
    mt.models.to_megatron(model, tmp_path / "nemo")
    ours, theirs = (read_entries(folder / "weights") for folder in (tmp_path / "nemo", fixture))
    assert {key: entry.size for key, entry in ours.items()} == {k: entry.size for k, entry in theirs.items()}
    for key in theirs:
        assert torch.equal(
            read_tensor(tmp_path / "nemo" / "weights", ours[key]),
            read_tensor(fixture / "weights", theirs[key]),
        )
    fields = [
        yaml.safe_load((folder / "context" / "model.yaml").read_text())["config"]
        for folder in (tmp_path / "nemo", fixture)
    ]
    assert {**fields[0], "_target_": fields[1]["_target_"]} == {**fields[1], "init_method_std": 0.02}
    for name in ("metadata.json", "common.pt"):
        read = (
            json.loads if name == "metadata.json" else lambda b: torch.load(io.BytesIO(b), weights_only=True)
        )
        found, expected = (read((f / "weights" / name).read_bytes()) for f in (tmp_path / "nemo", fixture))
        assert found == expected


def split_fc1(state):
    for key in [key for key in state if key.endswith(FC1)]:
        weight = state.pop(key)
        gate, up = weight.chunk(2, dim=weight.ndim - 2)
        state |= {f"{key}_w": gate.contiguous(), f"{key}_v": up.contiguous()}


def unstack(state):
    for key in [key for key in state if ".layers." in key]:
        for i, weight in enumerate(state.pop(key)):
            state[key.replace(".layers.", f".layers.{i}.")] = weight.contiguous()


def add_what_is_ignored(state):
    state["optimizer.state.exp_avg.module.decoder.final_layernorm.weight"] = torch.ones(32)
    state["module.output_layer._extra_state"] = torch.zeros(3)
    state["rng_state/shard_0_1"] = ["bytes"]


@pytest.mark.parametrize("changes", [[split_fc1], [unstack], [unstack, split_fc1], [add_what_is_ignored]])
def test_layouts_of_other_versions(folder, model, changes):
    for change in changes:
        rewrite(folder, change)
    assert same(model, mt.models.from_megatron(folder))


def test_files_in_one_folder(folder, model, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in folder.glob("*/*"):
        path.rename(flat / path.name)
    assert same(model, mt.models.from_megatron(flat))
    assert is_megatron(flat)


def test_rope_parity(parity, tmp_path):
    """Inverse frequencies after reading, of Megatron's scaling and of transformers'."""
    for i, case in enumerate(parity["rope_llama3_scaling"]["cases"]):
        rope = {"rope_type": "llama3"} | {key: case[key] for key in LLAMA3 if key in case}
        model = make_model(
            head_dim=case["head_dim"],
            num_hidden_layers=1,
            rope_parameters=rope,
            max_position_embeddings=16_384,
        )
        mt.models.to_megatron(model, tmp_path / str(i))
        back = mt.models.from_megatron(tmp_path / str(i))
        found = back.hf.model.rotary_emb.inv_freq
        assert len(found) == case["n_freqs"]
        for at, expected in case["inv_freq_at"].items():
            assert found[int(at)].item() == pytest.approx(expected, rel=1e-6)
        plain = case["rope_theta"] ** -(torch.arange(0, case["head_dim"], 2) / case["head_dim"])
        assert ((found / plain - 1).abs() > 1e-4).sum() == case["n_scaled"]
        assert torch.equal(found, ROPE_INIT_FUNCTIONS["llama3"](model.hf.config, "cpu")[0])


def test_qkv_parity(parity):
    (case,) = parity["qkv_layout"]["cases"]
    heads, groups = case["num_heads"], case["num_groups"]
    rows = torch.arange(len(case["row_order"])).unsqueeze(1)
    parts = split_qkv(rows, heads, groups)
    names = [[case["row_order"][row] for row in part.flatten()] for part in parts]
    assert names == [["q0", "q1", "q2", "q3"], ["k0", "k1"], ["v0", "v1"]]
    assert torch.equal(join_qkv(*parts, groups), rows)


class Evil:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def dotted(trace):
    """A call of `os.system`, reached through an attribute of a module that metadata may name."""
    strings = [
        b"\x8c" + bytes([len(text)]) + text.encode()
        for text in ("torch.distributed.checkpoint.filesystem", "os.system", f"touch {trace}")
    ]
    return b"\x80\x04" + strings[0] + strings[1] + b"\x93" + strings[2] + b"\x85R."


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (lambda trace: pickle.dumps(Evil(trace)), r"it names io\.open, which .* could run code"),
        (dotted, "Nothing was loaded"),
    ],
)
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_malicious_metadata_is_refused(folder, tmp_path, attack, message):
    trace = tmp_path / "trace"
    (folder / "weights" / ".metadata").write_bytes(attack(trace))
    with pytest.raises(ValueError, match=rf"Cannot read .*\.metadata: .*{message}"):
        mt.models.from_megatron(folder)
    assert not trace.exists()
    # It would have worked.
    pickle.loads(attack(trace))
    assert trace.exists()


def test_unknown_class_is_refused(folder):
    (folder / "weights" / ".metadata").write_bytes(pickle.dumps(Counter("a")))
    with pytest.raises(ValueError, match=r"it names collections\.Counter"):
        mt.models.from_megatron(folder)


def test_members_of_enums_as_older_pythons_write_them():
    """`getattr` of an enum of torch's is a record; of anything else it is refused."""
    name = b"ctorch.distributed.checkpoint.metadata\n_MEM_FORMAT_ENCODING\n"
    ask = b"cbuiltins\ngetattr\n(%sVTORCH_CONTIGUOUS_FORMAT\ntR."
    assert _Unpickler(io.BytesIO(ask % name)).load().args == ("TORCH_CONTIGUOUS_FORMAT",)
    for other in (b"cpathlib\nPosixPath\n(tR", b"ccollections\nOrderedDict\n", b"cbuiltins\ngetattr\n"):
        with pytest.raises(pickle.UnpicklingError, match="attribute of what is no record"):
            _Unpickler(io.BytesIO(ask % other)).load()


def test_code_in_other_files_is_not_run(folder, model, tmp_path):
    trace = tmp_path / "trace"
    rewrite(folder, lambda state: state.update({"module.decoder._extra_state/shard_0_1": Evil(trace)}))
    torch.save(Evil(trace), folder / "weights" / "common.pt")
    assert same(model, mt.models.from_megatron(folder))
    torch.save(Evil(trace), tmp_path / "evil.distcp")
    chunk = Chunk((0,), (2,), "evil.distcp", 0, (tmp_path / "evil.distcp").stat().st_size)
    with pytest.raises(ValueError, match=r"evil\.distcp is corrupt"):
        read_tensor(tmp_path, Entry((2,), [chunk]))
    assert not trace.exists()


def test_metadata_of_newer_megatron(folder, model, monkeypatch):
    """Metadata of classes that only Megatron has are read as plain records."""
    name = "megatron.core.dist_checkpointing.strategies.torch"
    module = ModuleType(name)
    for part in ("MCoreMetadata", "MCoreSavePlan"):
        setattr(module, part, type(part, (), {"__module__": name}))
    path = folder / "weights" / ".metadata"
    content = pickle.loads(path.read_bytes())
    with monkeypatch.context() as patch:
        parts = name.split(".")
        for n in range(1, len(parts) + 1):
            patch.setitem(sys.modules, ".".join(parts[:n]), module)
        metadata = module.MCoreMetadata()
        vars(metadata).update(vars(content), mcore_data={"optimizer": {"shape": torch.Size([2])}})
        metadata.all_local_plans = [module.MCoreSavePlan()]
        path.write_bytes(pickle.dumps(metadata))
    assert same(model, mt.models.from_megatron(folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.storage_data.clear(), "has no place in the folder"),
        (lambda m: [setattr(p, "relative_path", "../x") for p in m.storage_data.values()], "has no place in"),
        (
            lambda m: [t.chunks.clear() for t in m.state_dict_metadata.values() if hasattr(t, "chunks")],
            "do not make",
        ),
        (
            lambda m: [setattr(p, "relative_path", "lost") for p in m.storage_data.values()],
            "Did not find .*lost",
        ),
        (lambda m: [setattr(p, "length", 50) for p in m.storage_data.values()], "is corrupt"),
        (lambda m: [setattr(p, "offset", 0) for p in m.storage_data.values()], "does not hold what"),
    ],
)
def test_metadata_that_do_not_fit_the_files(folder, change, message):
    path = folder / "weights" / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    change(metadata)
    path.write_bytes(pickle.dumps(metadata))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        mt.models.from_megatron(folder)


def test_metadata_that_are_cut_short_or_lost(folder):
    path = folder / "weights" / ".metadata"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match="Cannot read"):
        mt.models.from_megatron(folder)
    path.write_bytes(pickle.dumps({"no": "metadata"}))
    with pytest.raises(ValueError, match="Cannot read"):
        mt.models.from_megatron(folder)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="hidden file: copy the folder as a whole"):
        mt.models.from_megatron(folder)


KEYS = [
    "embedding.word_embeddings.weight",
    "output_layer.weight",
    "decoder.final_layernorm.weight",
    "decoder.layers.self_attention.linear_qkv.weight",
    f"decoder.layers.{FC1}",
]


@pytest.mark.parametrize("key", KEYS)
def test_missing_weight(folder, key):
    rewrite(folder, lambda state: state.pop(f"module.{key}"))
    with pytest.raises(ValueError, match=rf"lacks module\.{key}: the checkpoint is incomplete"):
        mt.models.from_megatron(folder)


@pytest.mark.parametrize("key", ["module.decoder.layers.self_attention.linear_qkv.bias", "head.weight"])
def test_left_over_weight(folder, key):
    rewrite(folder, lambda state: state.update({key: torch.zeros(2, 96)}))
    with pytest.raises(ValueError, match=rf"holds 1 weights that .* has no place for \(first: {key}\)"):
        mt.models.from_megatron(folder)


def test_weights_and_description_that_disagree(folder):
    edit_fields(folder, num_layers=3)
    with pytest.raises(ValueError, match=r"has the shape \[2, 32\], model.yaml asks for \[3, 32\]"):
        mt.models.from_megatron(folder)
    edit_fields(folder, num_layers=2, share_embeddings_and_output_weights=True)
    with pytest.raises(ValueError, match=r"first: module\.output_layer\.weight"):
        mt.models.from_megatron(folder)


def test_wrong_vocabulary(folder, model):
    with pytest.raises(
        ValueError, match="The checkpoint has 128 token embeddings, the vocabulary 129 tokens"
    ):
        mt.models.from_megatron(folder, vocab=make_vocab(129))
    (folder / "context" / "token_dictionary.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"Did not find token_dictionary\.json"):
        mt.models.from_megatron(folder)
    assert same(model, mt.models.from_megatron(folder, vocab=model.vocab))


def test_more_rows_than_padding_explains(tmp_path):
    mt.models.to_megatron(make_model(make_vocab(1400), tie_word_embeddings=True), tmp_path / "nemo")
    with pytest.warns(UserWarning, match="1,208 of 1,408 token embeddings lie beyond the vocabulary"):
        mt.models.from_megatron(tmp_path / "nemo", vocab=make_vocab(200))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_layers": None}, "needs a positive number for num_layers, found None"),
        ({"rotary_base": "ten"}, "needs a positive number for rotary_base, found 'ten'"),
        ({"hidden_size": 0}, "needs a positive number for hidden_size, found 0"),
        ({"num_attention_heads": float("inf")}, "needs a positive number for num_attention_heads"),
        ({"share_embeddings_and_output_weights": None}, "needs true or false for share_embeddings"),
        ({"normalization": "LayerNorm"}, "has normalization: 'LayerNorm'. MaxToki is a Llama"),
        ({"layernorm_zero_centered_gamma": True}, "has layernorm_zero_centered_gamma: True"),
        ({"activation_func": {"_target_": "torch.nn.functional.gelu"}}, "A Llama has silu"),
    ],
)
def test_description_that_is_no_llama(folder, fields, message):
    edit_fields(folder, **fields)
    with pytest.raises(ValueError, match=message):
        mt.models.from_megatron(folder)


def test_description_as_nemo_writes_it(folder, model):
    """Further fields, targets as text, no key for what is derived, and floats that YAML takes for text."""
    edit_fields(
        folder,
        activation_func={"_target_": "torch.nn.functional.silu", "_call_": False},
        normalization="RMSNorm",
        num_query_groups=None,
        kv_channels=None,
        init_method_std=None,
        hidden_dropout=0.0,
    )
    path = folder / "context" / "model.yaml"
    path.write_text(path.read_text().replace("1.0e-06", "1e-06"))
    assert yaml.safe_load(path.read_text())["config"]["layernorm_epsilon"] == "1e-06"
    assert same(model, mt.models.from_megatron(folder))


@pytest.mark.parametrize(
    "text", ["config: !!python/object/apply:os.getcwd []", "config: !new {}", "a: [", "- 1"]
)
def test_description_that_is_not_plain(folder, text):
    (folder / "context" / "model.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"Cannot read .*model\.yaml|does not describe a model"):
        mt.models.from_megatron(folder)


def test_missing_description(folder, tmp_path):
    (folder / "context" / "model.yaml").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.yaml, which describes the model"):
        mt.models.from_megatron(folder)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        mt.models.from_megatron(tmp_path / "nowhere", vocab=make_vocab())


def temporal(tmp_path, rows, name="nemo"):
    """A checkpoint with trained genes, and these embeddings of lapses and marks."""
    vocab = make_vocab(times=12)
    model = make_model(vocab, hidden_size=64)
    with torch.no_grad():
        model.hf.model.embed_tokens.weight[44:] = torch.as_tensor(rows, dtype=torch.float32)
    mt.models.to_megatron(model, tmp_path / name)
    return tmp_path / name


def draw(seed=0, std=0.02):
    return np.random.default_rng(seed).normal(scale=std, size=(27, 64))


NEVER = r"27 token embeddings, of the time tokens -12\.\.12, <boq> and <eoq>, were never trained: they are {}"


@pytest.mark.parametrize("seed", range(3))
def test_noise_is_noticed(tmp_path, seed):
    folder = temporal(tmp_path, draw(seed))
    with pytest.warns(UserWarning, match=NEVER.format("random")) as caught:
        model = mt.models.from_megatron(folder)
    assert caught[0].filename == __file__
    assert not model.is_temporal
    with pytest.raises(ValueError, match=NEVER.format("random") + ".*Leave time_head out"):
        mt.models.from_megatron(folder, time_head=mt.models.TimeHead("expectation"))


def test_padding_instead_of_time_tokens_is_noticed(folder):
    with pytest.warns(UserWarning, match=NEVER.format("zero")):
        mt.models.from_megatron(folder, vocab=make_vocab(times=12))


def one_trained_mark():
    rows = draw()
    rows[-1] *= 3
    return rows


def trained_together():
    """As long as noise, but with a direction in common."""
    rows = draw()
    rows += 0.01 * np.random.default_rng(1).choice([-1, 1], size=64)
    return rows * 0.02 / rows.std()


@pytest.mark.parametrize(
    "rows", [draw(std=0.03), draw(std=0.015), draw() + 0.005, one_trained_mark(), trained_together()]
)
def test_trained_rows_are_not_flagged(tmp_path, rows):
    head = mt.models.TimeHead("expectation", scale=200)
    model = mt.models.from_megatron(temporal(tmp_path, rows), time_head=head)
    assert model.time_head is head
    assert model.is_temporal


def test_extended_models_are_not_flagged(tmp_path, model):
    """Their new embeddings are smooth from the start."""
    longer = mt.models.extend_model(model, model.vocab.with_times(-12, 12), max_length=128)
    mt.models.to_megatron(longer, tmp_path / "nemo")
    assert same(longer, mt.models.from_megatron(tmp_path / "nemo"))


def test_initial_spread_of_the_checkpoint_counts(tmp_path):
    folder = temporal(tmp_path, draw(std=0.05))
    assert mt.models.from_megatron(folder).time_head is None
    edit_fields(folder, init_method_std=0.05)
    with pytest.warns(UserWarning, match="never trained"):
        mt.models.from_megatron(folder)


def test_temporal_checkpoints_say_so(tmp_path):
    head = mt.models.TimeHead("expectation", scale=200)
    model = mt.models.from_megatron(temporal(tmp_path, draw(std=0.1)), time_head=head)
    mt.models.to_megatron(model, tmp_path / "again")
    fields = yaml.safe_load((tmp_path / "again" / "context" / "model.yaml").read_text())["config"]
    assert fields["_target_"].endswith("MaxTokiMultitaskFineTuneConfig")


@pytest.mark.parametrize("kind", ["linear", "expectation"])
def test_the_time_head_travels(tmp_path, kind):
    """There and back, by Python and by the command line: lapses, unit and scale stay what they were."""
    head = mt.models.TimeHead(kind, unit="hours", scale=7.5, hidden_size=64)
    for weight in head.parameters():
        torch.nn.init.normal_(weight)
    model = replace(
        mt.models.from_megatron(temporal(tmp_path, draw(std=0.1))), time_head=head, cell_length=20
    )
    mt.models.save_model(model, tmp_path / "hf")
    for source, target in [("hf", "there"), ("there", "back")]:
        result = CliRunner().invoke(app, ["convert", str(tmp_path / source), str(tmp_path / target)])
        assert result.exit_code == 0, result.output
        assert "temporal" in result.output
    for back in (mt.models.from_megatron(tmp_path / "there"), mt.load_model(tmp_path / "back", device="cpu")):
        assert same(model, back)
        assert (back.time_head.card, back.cell_length) == (head.card, 20)
        old, new = head.state_dict(), back.time_head.state_dict()
        assert list(old) == list(new)
        assert all(torch.equal(old[name], new[name]) for name in old)


def test_time_head_of_other_weights_or_lapses(tmp_path):
    folder = temporal(tmp_path, draw(std=0.1))
    head = mt.models.TimeHead("linear", hidden_size=64)
    model = replace(mt.models.from_megatron(folder), time_head=head)
    mt.models.to_megatron(model, tmp_path / "head")
    moved = mt.models.Vocabulary(make_vocab().tokens, make_vocab().medians).with_times(-13, 11)
    with pytest.raises(ValueError, match="was trained with other vocabulary"):
        mt.models.from_megatron(tmp_path / "head", vocab=moved)
    # A head that is given is the caller's business.
    assert mt.models.from_megatron(tmp_path / "head", vocab=moved, time_head=head).time_head is head
    rewrite(tmp_path / "head", lambda state: state["module.decoder.final_layernorm.weight"].add_(1e-3))
    with pytest.raises(ValueError, match="was trained with other weights"):
        mt.models.from_megatron(tmp_path / "head")
    (tmp_path / "head" / "context" / "maxtoki.json").unlink()
    with pytest.raises(
        ValueError, match=r"time_head\.safetensors is there, but maxtoki\.json does not speak of it"
    ):
        mt.models.from_megatron(tmp_path / "head")


def test_parts_of_two_checkpoints(tmp_path, folder, model):
    """As large, and of other genes or another training."""
    ids = dict(zip(model.vocab.genes, np.roll(model.vocab.gene_ids, 1).tolist(), strict=True))
    (folder / "context" / "token_dictionary.json").unlink()
    mt.models.Vocabulary({**model.vocab.tokens, **ids}, model.vocab.medians).save(folder / "context")
    with pytest.raises(ValueError, match="was trained with other vocabulary"):
        mt.models.from_megatron(folder)
    (folder / "context" / "token_dictionary.json").unlink()
    model.vocab.save(folder / "context")
    assert same(model, mt.models.from_megatron(folder))
    mt.models.to_megatron(make_model(seed=1), tmp_path / "other")
    (tmp_path / "other" / "weights").replace(tmp_path / "weights")
    (folder / "weights").rename(tmp_path / "old")
    (tmp_path / "weights").rename(folder / "weights")
    with pytest.raises(ValueError, match="was trained with other weights"):
        mt.models.from_megatron(folder)


def test_checkpoint_of_a_training_that_diverged(folder, model):
    rewrite(folder, lambda state: state["module.decoder.final_layernorm.weight"].fill_(np.nan))
    with pytest.raises(ValueError, match="weights that are NaN or infinite"):
        mt.models.from_megatron(folder)
    model.hf.model.norm.weight.data.fill_(np.nan)
    with pytest.raises(ValueError, match="weights that are NaN or infinite"):
        mt.models.to_megatron(model, folder.parent / "diverged")
    assert not (folder.parent / "diverged").exists()


def test_nothing_is_overwritten(folder, model):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for target in (folder, folder / "context" / "model.yaml"):
        with pytest.raises(ValueError, match="exists and is not empty"):
            mt.models.to_megatron(model, target)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    (folder.parent / "empty").mkdir()
    mt.models.to_megatron(model, folder.parent / "empty")
    assert same(model, mt.models.from_megatron(folder.parent / "empty"))


def test_nothing_is_left_behind(tmp_path, model, monkeypatch):
    import torch.distributed.checkpoint as dcp

    def fail(*_, **__):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(dcp, "save", fail)
        with pytest.raises(OSError, match="disk full"):
            mt.models.to_megatron(model, tmp_path / "nemo")
    dynamic = mt.models.extend_model(model, model.vocab.with_times(-2, 2), max_length=128, rope="dynamic")
    with pytest.raises(ValueError, match="RoPE scaling 'llama3' or none.*'dynamic' and 'silu'"):
        mt.models.to_megatron(dynamic, tmp_path / "nemo")
    model.hf.register_parameter("adapter", torch.nn.Parameter(torch.zeros(2)))
    with pytest.raises(ValueError, match=r"no place for 1 weights of the model \(first: adapter\)"):
        mt.models.to_megatron(model, tmp_path / "nemo")
    assert list(tmp_path.iterdir()) == []


def test_other_models_are_refused(tmp_path, model):
    del model.hf.model.layers[0].mlp.up_proj
    with pytest.raises(
        ValueError, match=r"lacks model\.layers\.0\.mlp\.up_proj\.weight: it is no plain Llama"
    ):
        mt.models.to_megatron(model, tmp_path / "nemo")
    assert not (tmp_path / "nemo").exists()


def test_layouts_are_told_apart(folder, tmp_path, model):
    mt.models.save_model(model, tmp_path / "hf")
    assert is_megatron(folder)
    assert not is_megatron(tmp_path / "hf")
    assert not is_megatron(Path("maxtoki-217m"))


@pytest.mark.slow
def test_published_shape(tmp_path):
    """The 217M model with the published temporal vocabulary's 3,002 new rows, as the checkpoint has them."""
    vocab = make_vocab(20_275).with_times(-1500, 1499)
    model = mt.models.build_model("217m", vocab)
    mt.models.to_megatron(model, tmp_path / "nemo")
    with pytest.warns(UserWarning, match=r"3,002 token embeddings, of the time tokens -1500\.\.1499"):
        back = mt.models.from_megatron(tmp_path / "nemo")
    assert all(torch.equal(a, b) for a, b in zip(model.hf.parameters(), back.hf.parameters(), strict=True))
    with pytest.warns(UserWarning, match=r"3,021 of 23,296 token embeddings lie beyond"):
        mt.models.from_megatron(tmp_path / "nemo", vocab=make_vocab(20_275))
