"""The `vllm serve` command of a booster, so that a server asks the model as its training did.

Knows the files that a server needs and starts nothing.
"""

import json
import shlex
from pathlib import Path
from typing import NamedTuple

from midb.chat import ChatFormat
from midb.errors import require_extra
from midb.generators.adapter import AdapterRecord
from midb.generators.base import fingerprint
from midb.generators.transformers import chat_format
from midb.generators.vllm import adapter_name, lora_rank
from midb.generators.weights import adapter_folder, adapter_hash, adapter_record, is_local, model_hash, resolve_adapter
from midb.prompts import PROMPT, TAGS
from midb.schema import Message

# The renderings that are no model's own, as templates: `ChatFormat.render`, for a server.
TEMPLATES = {
    "llama3": "{{ '<|begin_of_text|>' }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + "
    "'<|end_header_id|>\n\n' + message['content'] + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    "plain": "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ raise_exception('one question only') }}{% endif %}{{ message['content'] + '\n\n' }}{% endfor %}",
}


class Served(NamedTuple):
    """How to start a server and how to ask it."""

    command: list[str]
    name: str
    base_url: str
    client: str


def serve_command(
    model_or_adapter: str | Path,
    *options: str,
    port: int = 8000,
    max_model_len: int | None = None,
    folder: str | Path | None = None,
) -> Served:
    """The `vllm serve` command for a model or an adapter, and what asks it: the same prompts, the same ends, as here.

    The server calls the booster `booster-` and a hash of its content, so that one trained anew is never taken for the old.
    Its chat template and the tokens that end an answer are written to a folder. What a server cannot do: keep control
    tokens inside messages apart. A `Booster` escapes those of the known families itself.

    Args:
        model_or_adapter: A local folder or a Hub id; an adapter is downloaded.
        options: For `vllm serve`, after ours and so before them: `"--tensor-parallel-size", "4"`.
        port: Where it listens, on this machine alone unless the options hold another `--host`.
        max_model_len: As in `VLLMGenerator`.
        folder: Where the two files go; None is one in the current folder, called like the booster.

    Raises:
        MissingExtraError: transformers is not installed.
        ValueError: vLLM cannot load the adapter, or no template gives the server the prompts of the training.
    """
    require_extra("transformers", "transformers")
    model, adapter = resolve_adapter(model_or_adapter)
    rank = lora_rank(adapter) if adapter else None
    chat = chat_format(model, adapter)
    name = adapter_name(adapter_hash(adapter) if adapter else fingerprint(model_hash(model)))
    files = Path(folder or name).resolve()
    files.mkdir(parents=True, exist_ok=True)
    (files / "chat_template.jinja").write_text(_template(chat), encoding="utf-8")
    ends = sorted({*chat.stop_ids, *_own_ends(model)})
    (files / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}) + "\n", encoding="utf-8")
    command = ["vllm", "serve", _absolute(model), "--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16"]
    command += ["--max-model-len", "auto" if max_model_len is None else str(max_model_len)]
    command += ["--chat-template", str(files / "chat_template.jinja"), "--generation-config", str(files)]
    if adapter:
        module = json.dumps({"name": name, "path": _absolute(adapter_folder(adapter))})
        command += ["--enable-lora", "--max-lora-rank", str(rank), "--max-loras", "2", "--lora-modules", module]
    else:
        command += ["--served-model-name", name]
    base_url = f"http://127.0.0.1:{port}/v1"
    return Served(
        [*command, *options], name, base_url, _client(name, base_url, adapter_record(adapter) if adapter else None)
    )


def _template(chat: ChatFormat) -> str:
    """The chat's rendering as a template of Jinja, tried out."""
    source = TEMPLATES.get(chat.rendering) or chat.template
    asked: list[list[Message]] = [
        [Message(role="user", content=" text <b> \n")],
        [Message(role="system", content="be brief"), Message(role="user", content="text")],
    ]
    for number, messages in enumerate(asked):
        try:
            made = chat.tokenizer.apply_chat_template(
                messages, chat_template=source, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:
            if number:  # a template that knows no system messages: a server refuses them, and a booster sends none
                continue
            raise ValueError(f"the chat template cannot be used by a server ({error}); use VLLMGenerator") from error
        if made != chat.render(messages):
            raise ValueError("no chat template renders as in the training; use VLLMGenerator")
    return source


def _own_ends(model: str) -> list[int]:
    """The tokens at which the model itself says that an answer ends."""
    for name in ("generation_config.json", "config.json"):
        path = Path(model, name)
        if not is_local(model):
            from huggingface_hub import hf_hub_download
            from huggingface_hub.errors import EntryNotFoundError

            try:
                path = Path(hf_hub_download(model, name))
            except EntryNotFoundError:
                continue
        if path.is_file():
            ends = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
            return [] if ends is None else ends if isinstance(ends, list) else [ends]
    return []


def _absolute(source: str) -> str:
    return str(Path(source).resolve()) if is_local(source) else source


def _client(name: str, base_url: str, record: AdapterRecord | None) -> str:
    """What asks the server as the adapter was trained: the command, or where it has no words for it, Python."""
    prompt, tags = (PROMPT, TAGS) if record is None else (record.prompt, record.tags)
    if tags != TAGS:
        return f"Booster(generator=OpenAIGenerator({name!r}, base_url={base_url!r}), prompt={prompt!r}, tags={tags!r})"
    told = [] if prompt == PROMPT else ["--prompt", prompt]
    return shlex.join(
        ["midb", "boost", "raw.jsonl", "--model", name, "--base-url", base_url, *told, "--out", "boosted.jsonl"]
    )
