"""Models from disk and hub, and back to disk: all weights, the right ones, or an error."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import torch

from .._doors import checked
from .._files import sha256
from .._manifests import fetch, manifest, manifest_paths
from .._outputs import MARK, new_output
from .._reference import resource
from ._quiet import quiet_transformers
from .model import MaxTokiModel, require_model, require_whole
from .time_head import TimeHead
from .vocabulary import Vocabulary

CONFIG, WEIGHTS, HEAD = "config.json", "model.safetensors", "time_head.safetensors"
TOKENS, MEDIANS, CARD = "token_dictionary.json", "gene_median_dictionary.json", MARK
BY = "mt.models.save_model"
_DICTIONARIES = (
    "Pass vocab=mt.models.Vocabulary.from_json('token_dictionary_v1.json', gene_medians="
    "'gene_median_dictionary_v1.json'); mt.datasets.fetch('maxtoki-dictionaries') downloads both."
)
SHIPPED = ("demo", "demo-cells")
_ATTENTION = ("sdpa", "eager", "flash_attention_2")


@checked
def load_model(
    source: str | Path = "demo",
    *,
    vocab: Vocabulary | None = None,
    revision: str | None = None,
    checksum: str | None = None,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    attention: str = "sdpa",
    tensor_parallel: bool = False,
) -> MaxTokiModel:
    """Load a model, strictly.

    Parameters
    ----------
    source
        - "demo": the small model shipped with the package, which embeds cells and tells time; "demo-cells",
          which writes cells;
        - "maxtoki-217m" or "maxtoki-1b": the published stage-1 weights, at the revision and with the
          checksums of `data_manifests/`;
        - a folder with `config.json` and `model.safetensors` (Hugging Face layout);
        - a hub id, "owner/name" or "owner/name/subfolder", with `revision`; what `mt.models.save_for_hub`
          wrote is read with its vocabulary and time head.
    vocab
        The model's vocabulary. By default it is read from `token_dictionary.json` and
        `gene_median_dictionary.json` beside the weights. The published weights come without: get the
        dictionaries as `data_manifests/maxtoki-dictionaries.yaml` says.
    revision
        Commit of the hub repository, 40 hexadecimal digits: a branch could change under you.
    checksum
        Expected sha256 of `model.safetensors`.
    device
        "auto" (CUDA, then Apple MPS, then CPU) or a torch device.
    dtype
        "auto" is float32 on every device, so that results agree between them; or "bfloat16", on GPUs
        "float16". Small differences between cells and edited cells can round to exactly 0 in bfloat16.
    attention
        "sdpa", "eager", or "flash_attention_2" where that package is installed.
    tensor_parallel
        Share each weight matrix out over the processes of torchrun, as transformers plans it, for a model
        that is larger than one device. All processes then call the same functions with the same cells, and
        get the same; what is written to files in parts, saved or trained needs a model that is whole.

    Returns
    -------
    A `MaxTokiModel`.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ImportError
        If flash-attn is asked for and not installed.
    ValueError
        If weights are missing, left over, of another shape or not finite, if a file is corrupt or not the one
        asked for, if vocabulary and weights disagree, or if weights, vocabulary, `config.json` or time head
        are not those that the model was saved with.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> model = mt.load_model("demo")
    >>> model.is_temporal
    True
    """
    source = str(source)
    if attention not in _ATTENTION:
        raise ValueError(f"There is no attention {attention!r}; choose from {', '.join(_ATTENTION)}.")
    if attention == "flash_attention_2" and find_spec("flash_attn") is None:
        raise ImportError(
            "flash-attn is not installed. attention='sdpa', the default, gives the same results everywhere; "
            "pip install 'maxtoki_toolkit[flash-attn]' needs an NVIDIA GPU and a compiler."
        )
    folder, expected = _locate(source, revision, download=vocab is not None)
    weights = _weights_file(folder)
    found = sha256(weights)
    if (checksum := checksum or expected) and found != checksum.lower():
        raise ValueError(
            f"{weights} is not the file asked for: sha256 {found}, expected {checksum}. Download it again."
        )
    vocab = vocab or read_vocabulary(folder)
    card = read_card(folder)
    device = pick_device(device)
    how = shared_out(folder, device) if tensor_parallel else {}
    hf = _read_weights(folder, device=device, dtype=_pick_dtype(dtype, device), attention=attention, **how)
    time_head = read_time_head(folder, card)
    if time_head is not None:
        time_head.to(hf.device)
    model = MaxTokiModel(
        hf, vocab, name=source, sha256=found, time_head=time_head, cell_length=card.get("cell_length", 0)
    )
    require_as_saved(
        folder, card, weights=found, vocabulary=vocab.sha256, config=_config_sha256(folder / CONFIG)
    )
    require_model(model)
    return model


def save_model(
    model: MaxTokiModel, folder: str | Path, *, card: dict | None = None, overwrite: bool = False
) -> None:
    """Write a model as one folder that `load_model` reads; the folder appears when it is complete.

    Parameters
    ----------
    model
        The model.
    folder
        Folder to write. It must not exist, or be empty.
    card
        Further fields for `maxtoki.json`, such as the training recipe and its metrics.
    overwrite
        Replace a model that this function has written to the folder. Anything else that is there stays in any
        case.

    Raises
    ------
    ValueError
        If something is in the folder that is not to be replaced, or weights are not finite, as after a
        training that diverged.

    Examples
    --------
    >>> import tempfile, maxtoki_toolkit as mt
    >>> folder = tempfile.mkdtemp() + "/model"
    >>> mt.models.save_model(mt.load_model("demo"), folder)
    >>> mt.load_model(folder).time_head.unit
    'months'
    """
    require_model(model)
    require_whole(model)
    with new_output(folder, by=BY, overwrite=overwrite) as temporary:
        write_model(model, temporary, card)


def write_model(model: MaxTokiModel, temporary: Path, card: dict | None = None) -> None:
    """Fill an empty folder with a model; `card` has further fields for `maxtoki.json`."""
    with quiet_transformers():
        model.hf.save_pretrained(temporary, max_shard_size="100GB")
        # safetensors writes for the owner alone; a model is read by whoever reads its folder.
        shutil.copymode(temporary / CONFIG, temporary / WEIGHTS)
        model.vocab.save(temporary)
        fields = {
            "format": 1,
            "weights_sha256": sha256(temporary / WEIGHTS),
            "vocabulary_sha256": model.vocab.sha256,
            "config_sha256": _config_sha256(temporary / CONFIG),
            "cell_length": model.cell_length,
            "time_head": write_time_head(temporary, model.time_head),
            **(card or {}),
        }
        (temporary / CARD).write_text(json.dumps(fields, indent=2) + "\n")


def write_time_head(folder: Path, head: TimeHead | None) -> dict | None:
    """Write the head's weights, if it has any; return what describes it."""
    if head is None or not (weights := head.state_dict()):
        return None if head is None else head.card
    from safetensors.torch import save_file

    save_file({name: weight.cpu().float().contiguous() for name, weight in weights.items()}, folder / HEAD)
    # safetensors writes for the owner alone; a model is read by whoever reads its folder.
    shutil.copymode(folder / TOKENS, folder / HEAD)
    return {**head.card, "sha256": sha256(folder / HEAD)}


def read_time_head(folder: Path, card: dict) -> TimeHead | None:
    """Read the time head that the card speaks of."""
    if (fields := card.get("time_head")) is None:
        if (folder / HEAD).is_file():
            raise ValueError(
                f"{folder / HEAD} is there, but {CARD} does not speak of it: without its scale and unit no lapse can be "
                "read. Restore the folder as it was saved."
            )
        return None
    fields = dict(fields)
    checksum = fields.pop("sha256", None)
    if checksum is None:
        return TimeHead(**fields)
    from safetensors.torch import load_file

    if not (folder / HEAD).is_file() or sha256(folder / HEAD) != checksum:
        raise ValueError(f"{folder / HEAD} is missing or not the time head of this model. Restore it.")
    weights = load_file(folder / HEAD)
    head = TimeHead(**fields, hidden_size=weights["linear.weight"].shape[1])
    head.load_state_dict(weights)
    return head


def read_card(folder: Path) -> dict:
    """What a folder says of its model; nothing where it was not saved by this package."""
    if not (path := folder / CARD).exists():
        return {}
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}. Restore the folder as it was saved.") from None
    if not isinstance(card, dict) or not isinstance(card.get("cell_length", 0), int):
        raise ValueError(f"{path} does not describe a model. Restore the folder as it was saved.")
    return card


def require_as_saved(folder: Path, card: dict, **found: str) -> None:
    """Raise if the checksum of a part is not the one in the card."""
    for what, actual in found.items():
        if (expected := card.get(f"{what}_sha256", actual)) != actual:
            raise ValueError(
                f"The model in {folder} was trained with other {what} (sha256 {expected} in {CARD}, found {actual}): "
                "what is read from it would be wrong. Restore the folder as it was saved."
            )


def _config_sha256(path: Path) -> str:
    """Checksum of the content, which line ends and spaces leave as it is."""
    content = json.dumps(json.loads(path.read_text(encoding="utf-8")), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def pick_device(device: str = "auto") -> str:
    """Return the device to use: CUDA (the GPU of this process, where several were launched), then Apple MPS, then the CPU."""
    if device != "auto":
        name = device.split(":")[0]
        available = {
            "cuda": torch.cuda.is_available,
            "mps": torch.backends.mps.is_available,
            "cpu": lambda: True,
        }
        if name not in available or not available[name]():
            raise ValueError(f"PyTorch finds no device {device!r} here. Leave device out, or pass 'cpu'.")
        return device
    if torch.cuda.is_available():
        return f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ else "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _pick_dtype(dtype: str | torch.dtype, device: str) -> torch.dtype:
    if dtype == "auto":
        return torch.float32
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError('dtype must be "auto", "float32", "bfloat16", "float16" or a torch dtype of these.')
    if dtype == torch.float16 and device == "cpu":
        raise ValueError(
            'float16 is for GPUs, and the device is the CPU. Give dtype="float32" or "bfloat16".'
        )
    return dtype


def _locate(source: str, revision: str | None, *, download: bool) -> tuple[Path, str | None]:
    """Folder that holds the files, fetched if need be, and the weights' checksum where it is known.

    Without `download`, what is not on disk is an error: published weights come without dictionaries, and it
    is better to hear of that before gigabytes are fetched.
    """
    if source in SHIPPED:
        folder = resource(source.replace("-", "_"))
        return folder, json.loads((folder / CARD).read_text())["weights_sha256"]
    if (path := Path(source)).is_dir():
        return path, None
    if path.is_file():
        raise ValueError(f"{source} is a file. Give the folder that holds config.json and {WEIGHTS}.")
    if source in manifest_paths():
        entry = manifest(source)
        if entry["kind"] != "checkpoint":
            raise ValueError(f"{source!r} is a {entry['kind']}, not a model.")
        if not download:
            raise ValueError(f"{source} is published without its dictionaries. {_DICTIONARIES}")
        return fetch(source)[WEIGHTS].parent, None
    parts = source.split("/")
    if len(parts) == 1:
        raise FileNotFoundError(
            f"Did not find a model {source!r}: no such folder, and neither 'demo', 'demo-cells', 'maxtoki-217m', 'maxtoki-1b' "
            "nor a hub id 'owner/name[/subfolder]'."
        )
    if len(parts) > 3 or not all(parts) or source.startswith((".", "~")):
        raise FileNotFoundError(f"Did not find the folder {source}.")
    if revision is None:
        raise FileNotFoundError(
            f"Did not find the folder {source}. If it is a model on the hub, pin its revision: pass revision= with the 40 digits "
            "of a commit, as the repository's page lists them."
        )
    if len(revision) != 40:
        raise ValueError(
            f"Pin the revision of {source}: pass revision= with the 40 digits of a commit, since a branch can "
            "change. The repository's page lists its commits."
        )
    prefix = f"{parts[2]}/" if len(parts) == 3 else ""
    return _from_hub("/".join(parts[:2]), prefix, revision, named=download), None


def _from_hub(repo: str, prefix: str, revision: str, *, named: bool) -> Path:
    """Fetch a model; what only a folder of this package has, if it is there. `named` says that the vocabulary is given."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    def fetch_one(name: str) -> Path:
        return Path(hf_hub_download(repo, prefix + name, revision=revision))

    for name in (TOKENS, MEDIANS, CARD, HEAD):
        try:
            fetch_one(name)
        except LocalEntryNotFoundError:
            raise  # no network: whether it is there is not known
        except EntryNotFoundError:
            if name == TOKENS and not named:
                # Said before gigabytes are fetched.
                raise ValueError(
                    f"{repo} has no {prefix}{TOKENS}: weights of others come without their dictionaries. {_DICTIONARIES}"
                ) from None
    fetch_one(CONFIG)
    return fetch_one(WEIGHTS).parent


def _weights_file(folder: Path) -> Path:
    if (folder / WEIGHTS).is_file():
        if not (folder / CONFIG).is_file():
            raise FileNotFoundError(f"Did not find {folder / 'config.json'}.")
        return folder / WEIGHTS
    inner = sorted(path.parent.name for path in folder.glob(f"*/{WEIGHTS}"))
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pkl") for path in folder.glob(pattern))
    raise FileNotFoundError(
        f"Did not find {folder / WEIGHTS}."
        + (f" Load one of its subfolders: {', '.join(inner)}." if inner else "")
        + (
            f" {pickled[0]} is a pickle, which can run code when read: only safetensors are loaded."
            if pickled
            else ""
        )
    )


def read_vocabulary(folder: Path) -> Vocabulary:
    """Read the two dictionaries of a folder."""
    if not (folder / TOKENS).is_file():
        raise FileNotFoundError(f"Did not find {TOKENS} beside the weights in {folder}. {_DICTIONARIES}")
    return Vocabulary.from_json(folder / TOKENS, gene_medians=folder / MEDIANS)


def shared_out(folder: Path, device: str) -> dict:
    """How transformers is told to share a model out over the processes; or raise if it cannot be."""
    from torch import distributed
    from transformers.distributed import DistributedConfig

    n = int(os.environ.get("WORLD_SIZE", "1"))
    if n < 2:
        raise ValueError(
            "tensor_parallel shares a model out over the processes of torchrun, and this process is alone. Leave it out, or run "
            "torchrun --nproc_per_node 2 your_script.py."
        )
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    if heads % n:
        raise ValueError(
            f"{heads} heads of keys and values cannot be shared out over {n} processes. Start a divisor of {heads}."
        )
    if not distributed.is_initialized():
        distributed.init_process_group("gloo" if device == "cpu" else "nccl")
    return {"distributed_config": DistributedConfig(tp_plan="auto", tp_size=n)}


def _read_weights(folder: Path, *, device: str, dtype: torch.dtype, attention: str, **how):
    """Read weights with transformers, and refuse what transformers would fill in at random."""
    from safetensors import SafetensorError
    from transformers import LlamaForCausalLM

    try:
        # What transformers would warn of is an error below.
        with quiet_transformers():
            hf, report = LlamaForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                attn_implementation=attention,
                use_safetensors=True,
                local_files_only=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **how,
            )
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS} is corrupt ({error}). Download it again.") from None
    problems = {
        name.removesuffix("_keys"): sorted(str(key) for key in report[name])
        for name in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if report.get(name)
    }
    if problems:
        what = "; ".join(f"{len(keys)} {name} (first: {keys[0]})" for name, keys in problems.items())
        raise ValueError(f"The weights in {folder} do not fit config.json: {what}. Nothing was loaded.")
    # What is shared out is where it belongs.
    return (hf if how else hf.to(device)).eval()


def vocabulary_of_settings(path: str | Path, files: object) -> Vocabulary | None:
    """Read the vocabulary of the two files that settings from `path` name, if they name any."""
    if files is None:
        return None
    if not isinstance(files, dict) or set(files) != {"tokens", "medians"}:
        raise ValueError(f"vocab in {path} must give two files: {{tokens: path, medians: path}}.")
    return Vocabulary.from_json(files["tokens"], gene_medians=files["medians"])
