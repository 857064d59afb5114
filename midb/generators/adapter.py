"""What an adapter says about itself: how its model must be asked, and how it was trained.

One JSON file beside the weights, written by training and read by whoever generates. Knows the file, and neither trains
nor generates. It holds no path of the machine that wrote it.
"""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from midb.chat import Rendering
from midb.prompts import check_tags

ADAPTER_FILE = "booster.json"
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class AdapterRecord:
    """The content of `booster.json`.

    Args:
        rendering: How a chat became text in training, see `ChatFormat`.
        chat_hash: `ChatFormat.hash()` of then: a tokenizer that renders otherwise has another.
        prompt: What the model was told before each pair.
        tags: The instruction, input and response tag.
        parity: Whether text went unescaped.
        model: The base model's public name: a Hub id, or of a local folder the last part of its path.
        recipe: The hyper-parameters, without the places of this machine.
        data: `fingerprint` (over all token ids and labels), `rows`, `kept`, `left_out`, `cut`, `prompt_tokens`,
            `completion_tokens`, `longest`, and `languages` (rows kept of each).
        batch: `processes`, `per_device`, `accumulated`: how the rows of a step were spread.
        metrics: What the trainer measured; empty until the training has ended.
        versions: Of the libraries that trained.
    """

    rendering: Rendering
    chat_hash: str
    prompt: str
    tags: tuple[str, str, str]
    parity: bool
    model: str
    recipe: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    batch: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def write(self, folder: str | Path) -> None:
        """Write the file whole or not at all."""
        path = Path(folder, ADAPTER_FILE)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"format": _FORMAT, **asdict(self)}, ensure_ascii=False, indent=2) + "\n"
        draft = path.with_suffix(".draft")
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)

    def differences(self, other: "AdapterRecord") -> list[str]:
        """What would make the weights of another training others: `name: here instead of there`, one line each."""
        here, there = self._settings(), other._settings()
        return [
            f"{name}: {here[name]!r} instead of {there.get(name)!r}" for name in here if here[name] != there.get(name)
        ]

    def _settings(self) -> dict[str, Any]:
        # Through JSON, so that a tuple equals the list that was read back.
        own = json.loads(json.dumps(asdict(self)))
        recipe = {name: value for name, value in own["recipe"].items() if name not in _INCIDENTAL}
        resolved = {
            name: own[name] for name in ("rendering", "chat_hash", "prompt", "tags", "parity", "model", "batch")
        }
        return {**recipe, **resolved, "data": own["data"].get("fingerprint")}


# What may change between a training and its continuation without changing a weight; of `dataset` the fingerprint counts.
_INCIDENTAL = {
    "logging_steps",
    "save_steps",
    "save_total_limit",
    "gradient_checkpointing",
    "dataset",
    "trust_remote_code",
}


def read_record(folder: str | Path) -> AdapterRecord | None:
    """The record in a folder; None where there is none, as beside adapters that midb did not train.

    Raises:
        ValueError: The file is broken, or from a midb of tomorrow.
    """
    path = Path(folder, ADAPTER_FILE)
    if not path.is_file():
        return None
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        if said["format"] != _FORMAT:
            raise ValueError(f"{path} has format {said['format']!r}, and this midb reads {_FORMAT}; upgrade midb")
        known = {each.name: said[each.name] for each in fields(AdapterRecord) if each.name in said}
        record = AdapterRecord(**{**known, "tags": tuple(said["tags"])})
        for each in fields(record):  # it may come from anyone's repository
            value = getattr(record, each.name)
            kind = bool if each.name == "parity" else dict if str(each.type).startswith("dict") else str
            if each.name == "tags":
                check_tags(value)
            elif not isinstance(value, kind):
                raise TypeError(f"{each.name} is {value!r:.40}")
        return record
    except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is broken ({error!r}); restore it, or delete it and pass rendering= yourself"
        ) from error
