"""A model or an adapter, given as a local folder or a Hub id: what it is, what to call it, and what is inside.

Shared by the generators that load weights themselves. Loads no weights and knows no engine.
huggingface_hub (a fifth of a second) is imported where a Hub id is met.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from midb.errors import require_extra
from midb.generators.adapter import ADAPTER_FILE, AdapterRecord, read_record

ADAPTER_CONFIG = "adapter_config.json"

# What can change a model's output. Optimizer states, logs and cards lie in the same folders and do not.
_SUFFIXES = {".json", ".jinja", ".model", ".txt", ".tiktoken", ".py", ".safetensors", ".bin"}
_TRAINING = {"trainer_state.json", "training_args.bin", "optimizer.bin", "all_results.json", "train_results.json"}
# Where a folder came from is no part of what is in it: these hold paths of the machine that saved it.
_PATH_KEYS = {"_name_or_path", "name_or_path", "base_model_name_or_path"}

_WHOLE = 1 << 30  # bytes; up to here a file is hashed whole: every adapter, and small models
_BLOCK, _BLOCKS = 1 << 16, 256


def resolve_adapter(model_or_adapter: str | Path) -> tuple[str, str | None]:
    """Tell an adapter from a model: `(base model, adapter)`, or `(model, None)`.

    Args:
        model_or_adapter: A local folder or a Hub id.

    Raises:
        MissingExtraError: transformers is not installed.
        FileNotFoundError: It is neither a folder nor shaped like a Hub id.
        ValueError: The adapter does not name its base model.
    """
    require_extra("transformers", "transformers")  # before the Hub is asked
    model_or_adapter = str(model_or_adapter)
    if is_local(model_or_adapter):
        config = Path(model_or_adapter, ADAPTER_CONFIG)
        if not config.is_file():
            return model_or_adapter, None
    else:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        try:
            config = Path(hf_hub_download(model_or_adapter, ADAPTER_CONFIG))
        except EntryNotFoundError:  # also offline, when no adapter of this name was ever downloaded
            return model_or_adapter, None
    base = json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise ValueError(f"{config} names no base model; pass model= and adapter= to a generator yourself")
    return base, model_or_adapter


def is_local(source: str) -> bool:
    """True for a folder that exists, False for what may be a Hub id.

    Raises:
        FileNotFoundError: Neither.
    """
    if Path(source).is_dir():
        return True
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(source)) and not str(source).startswith("."):
        return False
    raise FileNotFoundError(f"no folder {str(source)!r}, and it is not a Hub id; pass a folder or 'owner/name'")


def check_weights(model: str, adapter: str | None, gguf_file: str | None = None) -> None:
    """Look at local folders before anything loads; a Hub id is left to the Hub.

    Raises:
        FileNotFoundError: A folder is missing or lacks the file that makes it a model or an adapter.
        ValueError: The model folder is an adapter.
    """
    if is_local(model):
        if Path(model, ADAPTER_CONFIG).is_file():
            raise ValueError(
                f"{model!r} holds an adapter; pass it as adapter= and its base as model= (resolve_adapter finds both)"
            )
        wanted = gguf_file or "config.json"
        if not Path(model, wanted).is_file():
            raise FileNotFoundError(f"{model!r} holds no {wanted}; pass a folder written by save_pretrained")
    if adapter is not None and is_local(adapter) and not Path(adapter, ADAPTER_CONFIG).is_file():
        raise FileNotFoundError(
            f"{adapter!r} holds no {ADAPTER_CONFIG}; pass a folder written by PEFT's save_pretrained"
        )


def weights_name(model: str, adapter: str | None = None, gguf_file: str | None = None) -> str:
    """What to write into provenance columns: Hub ids, and of local folders only the last part of the path."""
    name = Path(gguf_file).stem if gguf_file else Path(model).resolve().name if is_local(model) else model
    if adapter is None:
        return name
    return f"{name}+{Path(adapter).resolve().name if is_local(adapter) else adapter}"


def model_hash(model: str, revision: str | None = None, gguf_file: str | None = None) -> str:
    """Id and commit of a Hub model; a hash of a local folder's content."""
    if is_local(model):
        folder = Path(model)
        return content_hash([folder / gguf_file] if gguf_file else folder.iterdir())
    return f"{model}@{commit(model, gguf_file or 'config.json', revision)}{':' + gguf_file if gguf_file else ''}"


def commit(source: str, file: str, revision: str | None = None) -> str:
    """The commit of a Hub id that is used here; a branch is resolved, from the cache where the Hub is not reached."""
    from huggingface_hub import hf_hub_download

    found = Path(hf_hub_download(source, file, revision=revision)).parts
    return found[found.index("snapshots") + 1]


def weights_settings(
    model: str, adapter: str | None, revision: str | None = None, gguf_file: str | None = None
) -> dict[str, Any]:
    """What `settings_of` says of weights: Hub ids with their commits, local folders by name and the adapter's hash."""
    said: dict[str, Any] = {"model": weights_name(model), "revision": revision, "gguf_file": gguf_file}
    if not is_local(model):
        said["commit"] = commit(model, gguf_file or "config.json", revision)
    if adapter is not None:
        said["adapter"] = weights_name(adapter)
        if is_local(adapter):
            said["adapter_hash"] = adapter_hash(adapter)
        else:
            said["adapter_commit"] = commit(adapter, ADAPTER_CONFIG)
    return {key: value for key, value in said.items() if value is not None}


def adapter_folder(adapter: str) -> str:
    """The local folder of an adapter, downloaded where it is a Hub id."""
    if is_local(adapter):
        return adapter
    from huggingface_hub import snapshot_download

    return snapshot_download(adapter, allow_patterns=["adapter_*", ADAPTER_FILE])


def adapter_record(adapter: str) -> AdapterRecord | None:
    """What the adapter says of its training; None for one that midb did not train."""
    return read_record(adapter_folder(adapter))


def adapter_hash(adapter: str) -> str:
    """A hash of an adapter's content: the same for a local folder and its copy on the Hub."""
    return content_hash(Path(adapter_folder(adapter)).glob("adapter_*"))


def content_hash(paths: Iterable[Path]) -> str:
    """Hash files by name and content.

    A file above 1 GiB is judged by its size, its head (in safetensors: names and shapes of all tensors) and 256 blocks
    of 64 KiB spread evenly: training changes every large tensor, and reading a 70B model would take minutes.
    """
    digest = hashlib.sha256()
    for path in sorted(paths):
        if path.suffix not in _SUFFIXES | {".gguf"} or path.name in _TRAINING or not path.is_file():
            continue
        digest.update(f"\0{path.name}\0".encode())
        if path.name.endswith("config.json"):
            config = json.loads(path.read_text(encoding="utf-8"))
            kept = {key: value for key, value in config.items() if key not in _PATH_KEYS}
            digest.update(json.dumps(kept, sort_keys=True).encode())
            continue
        size = path.stat().st_size
        with path.open("rb") as file:
            if size <= _WHOLE:
                digest.update(hashlib.file_digest(file, "sha256").digest())
                continue
            digest.update(str(size).encode() + file.read(1 << 20))
            for block in range(_BLOCKS):
                file.seek((size - _BLOCK) * block // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()[:16]
