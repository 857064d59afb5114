"""Text from a model that this process loads itself with transformers: on the CPU or one GPU, with or without a LoRA.

The slow and exact engine: what the others are compared with. For throughput use vLLM or an endpoint.
"""

import hashlib
import json
import secrets
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from itertools import chain, islice
from typing import Any, Literal

from midb.chat import ChatFormat, Rendering
from midb.errors import require_extra
from midb.generators.base import FieldsOnly, Sampling, collect, fingerprint
from midb.generators.weights import (
    adapter_folder,
    adapter_hash,
    adapter_record,
    check_weights,
    model_hash,
    weights_name,
    weights_settings,
)
from midb.schema import Completion, Message

Dtype = Literal["float32", "bfloat16", "float16"]
AHEAD = 16  # batches whose prompts are pulled, and sorted by length, at a time


@dataclass(frozen=True)
class TransformersGenerator(FieldsOnly):
    """A causal language model of `transformers` as a generator.

    Greedy unless `sampling` says otherwise; the model's own sampling defaults (top-k, repetition penalty) are not used.
    In float32 the text of a prompt does not depend on its neighbours in a batch; in bfloat16 rounding does, so there a
    rerun with another batch size or on other hardware may word a row differently.

    Args:
        model: A local folder or a Hub id.
        adapter: A PEFT adapter, local folder or Hub id. (`resolve_adapter` finds the base of one.)
        merge: Merge the adapter into the weights (faster) or keep it beside them (exact in bfloat16 too).
        revision: Branch, tag or commit of a Hub model; a branch is resolved to its commit in `identity`.
        gguf_file: The weights are this GGUF file of `model`, dequantised.
        dtype: None is float32 on the CPU and bfloat16 on a GPU.
        device: None is the GPU where there is one.
        batch_size: Prompts at a time; halved where memory runs out.
        rendering: How a chat becomes text, see `ChatFormat`; `auto` is how the adapter was trained, where it says so.
        sampling: For calls that bring none of their own. With a seed, a prompt's draw does not depend on its batch.
        parity: Let control tokens inside messages be control tokens, as the reference implementation does.
        trust_remote_code: Run Python code that comes with a Hub model.

    Raises:
        MissingExtraError: transformers, torch or (with an adapter) peft is not installed.
        FileNotFoundError: A local folder is missing or is no model.
        ValueError: A setting that cannot be, or a model folder that is an adapter.
    """

    model: str
    adapter: str | None = None
    merge: bool = True
    revision: str | None = None
    gguf_file: str | None = None
    dtype: Dtype | None = None
    device: str | None = None
    batch_size: int = 8
    rendering: Rendering = "auto"
    sampling: Sampling = field(default_factory=Sampling)
    parity: bool = False
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Find a caller's mistake before minutes of loading."""
        require_extra("transformers", "transformers")
        require_extra("torch", "transformers")
        if self.adapter is not None:
            require_extra("peft", "transformers")
        if self.gguf_file is not None:
            require_extra("gguf", "quickstart")
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; use at least 1")
        if self.dtype not in (None, "float32", "bfloat16", "float16"):
            raise ValueError(f"dtype is {self.dtype!r}; use 'float32', 'bfloat16', 'float16' or None")
        check_weights(self.model, self.adapter, self.gguf_file)

    @property
    def name(self) -> str:
        """The model and its adapter, without the paths of this machine."""
        return weights_name(self.model, self.adapter, self.gguf_file)

    def identity(self) -> str:
        """Hash of the weights' content, chat rendering, precision and transformers' version.

        Not of the batch size and the device, although both can change a bfloat16 text: moving to another machine must
        not throw a journal away.
        """
        return self._identity

    @cached_property
    def _identity(self) -> str:
        """Once per process: the weights are read whole for it."""
        return fingerprint(
            "transformers",
            version("transformers"),
            model_hash(self.model, self.revision, self.gguf_file),
            [adapter_hash(self.adapter), self.merge] if self.adapter else None,
            self._chat.hash(),
            self.parity,
            self._placement[1],
        )

    def settings(self) -> dict[str, Any]:
        """See `settings_of`."""
        return {
            "engine": "transformers",
            "engine_version": version("transformers"),
            **weights_settings(self.model, self.adapter, self.revision, self.gguf_file),
            "rendering": self._chat.rendering,
            "dtype": self._placement[1],
        }

    def generate(self, prompts: Sequence[list[Message]], sampling: Sampling | None = None) -> list[Completion]:
        """Answer every prompt, in order."""
        return collect(self.stream(prompts, sampling), len(prompts))

    def stream(
        self, prompts: Iterable[list[Message]], sampling: Sampling | None = None
    ) -> Iterator[tuple[int, Completion]]:
        """Answer batch by batch; of every `AHEAD` batches the longest prompts first.

        So memory runs out at the start of such a group or never, and there is little padding. A prompt that leaves no
        room for `max_tokens` is not cut and not sent: its completion has the error `too_long`.

        Raises:
            ValueError: `max_tokens` alone fills the model's context, or the model cannot render chats.
        """
        waiting: Iterator[tuple[int, list[Message]]] = enumerate(prompts)
        first = next(waiting, None)
        if first is None:
            return
        sampling = sampling or self.sampling
        chat, context = self._chat, self._context  # a model that cannot render chats shows before its weights load
        if context is not None and sampling.max_tokens >= context:
            raise ValueError(
                f"max_tokens={sampling.max_tokens} leaves no room for a prompt in the model's context of {context}; "
                "lower Sampling.max_tokens"
            )
        waiting = chain([first], waiting)
        while group := list(islice(waiting, AHEAD * self.batch_size)):
            yield from self._answer_group(group, sampling, chat, context)

    def _answer_group(
        self, group: list[tuple[int, list[Message]]], sampling: Sampling, chat: ChatFormat, context: int | None
    ) -> Iterator[tuple[int, Completion]]:
        import torch

        ids: dict[int, list[int]] = {}
        for position, messages in group:
            try:
                ids[position] = chat.encode(messages)
            except ValueError as error:
                yield position, _failed("unrenderable", str(error))
                continue
            if context is not None and len(ids[position]) + sampling.max_tokens > context:
                count = len(ids.pop(position))
                why = f"{count} prompt tokens and max_tokens={sampling.max_tokens} exceed the context of {context}"
                yield position, _failed("too_long", why, count)
        longest_first = sorted(ids, key=lambda position: -len(ids[position]))
        yield from _in_batches(
            longest_first,
            self.batch_size,
            lambda positions: self._answer([ids[position] for position in positions], sampling),
            torch.OutOfMemoryError,
        )

    def _answer(self, prompts: list[list[int]], sampling: Sampling) -> list[Completion]:
        """One left-padded batch through the model."""
        import torch
        from transformers import LogitsProcessorList

        (model, stop), tokenizer = self._engine, self._chat.tokenizer
        width = max(len(ids) for ids in prompts)
        pad = stop[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        padded = [[pad] * (width - len(ids)) + ids for ids in prompts]
        mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]
        draw = _Draw(sampling, prompts, self._placement[0])
        with torch.inference_mode():
            output = model.generate(
                input_ids=torch.tensor(padded, device=self._placement[0]),
                attention_mask=torch.tensor(mask, device=self._placement[0]),
                max_new_tokens=sampling.max_tokens,
                do_sample=False,  # chance, where there is any, comes from `draw`
                eos_token_id=stop,
                pad_token_id=pad,
                logits_processor=LogitsProcessorList([draw] if draw.needed else []),
            )
        completions = []
        for row, written in enumerate(output[:, width:].tolist()):
            end = next((place for place, token in enumerate(written) if token in stop), None)
            count = len(written) if end is None else end + 1  # as engines count: the stop token is one
            completions.append(
                Completion(
                    text=tokenizer.decode(written[:end], skip_special_tokens=True),
                    finish_reason="length" if end is None else "stop",
                    prompt_tokens=len(prompts[row]),
                    completion_tokens=count,
                    logprobs=draw.logprobs(row, count, tokenizer),
                )
            )
        return completions

    @property
    def _source(self) -> dict[str, Any]:
        source = {"revision": self.revision or "main", "trust_remote_code": self.trust_remote_code}
        return {**source, "gguf_file": self.gguf_file} if self.gguf_file else source

    @cached_property
    def _placement(self) -> tuple[str, str]:
        """Device and precision, chosen where the work happens."""
        import torch

        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        return device, self.dtype or ("float32" if device == "cpu" else "bfloat16")

    @cached_property
    def _chat(self) -> ChatFormat:
        return chat_format(self.model, self.adapter, self.rendering, self.parity, **self._source)

    @cached_property
    def _engine(self) -> tuple[Any, list[int]]:
        """The model, and the tokens at which an answer ends."""
        from transformers import AutoModelForCausalLM, GenerationConfig

        extra: dict[str, Any] = {}
        if self.gguf_file:
            from transformers import GgufConfig

            extra = {"quantization_config": GgufConfig(dequantize=True)}
        device, dtype = self._placement
        model = AutoModelForCausalLM.from_pretrained(self.model, dtype=dtype, **self._source, **extra)
        stop = model.generation_config.eos_token_id
        stop = [] if stop is None else stop if isinstance(stop, list) else [stop]
        model.generation_config = GenerationConfig()  # generate() would fill in whatever we leave open from the model's
        if self.adapter:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, adapter_folder(self.adapter))
            model = model.merge_and_unload() if self.merge else model
        return model.to(device).eval(), sorted({*stop, *self._chat.stop_ids})

    @cached_property
    def _context(self) -> int | None:
        """How many tokens the model can attend to; None where its configuration sets no limit."""
        config = self._engine[0].config.get_text_config().to_dict()
        return config.get("max_position_embeddings") or config.get("n_positions")


def chat_format(
    model: str, adapter: str | None, rendering: Rendering = "auto", parity: bool = False, **source: Any
) -> ChatFormat:
    """How a model is asked: as its adapter was trained, where that says so, else by its tokenizer.

    Args:
        model: A local folder or a Hub id.
        adapter: Likewise.
        rendering: As in `TransformersGenerator`.
        parity: Likewise.
        source: For the tokenizer's `from_pretrained`.

    Raises:
        ValueError: The tokenizer cannot render chats, or not as in the adapter's training.

    Warns:
        UserWarning: The adapter is asked otherwise than it was trained, as the caller wished.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, **source)
    record = adapter_record(adapter) if adapter else None
    if record is None:
        return ChatFormat(tokenizer, rendering, parity)
    if record.parity and not parity:
        warnings.warn(
            "the adapter was trained on unescaped text and is asked with escaped text, which differs where a text holds "
            "control tokens or tags; pass parity=True to generator and Booster if you trust the data",
            stacklevel=3,
        )
    chat = ChatFormat(tokenizer, record.rendering if rendering == "auto" else rendering, parity)
    if chat.hash() != record.chat_hash:
        found = (
            f"the adapter was trained with the rendering {record.rendering!r} ({record.chat_hash}) and the model's "
            f"tokenizer gives {chat.rendering!r} ({chat.hash()})"
        )
        if rendering == "auto":
            raise ValueError(
                f"{found}; use the model it was trained on ({record.model}), at the same revision, or pass rendering= "
                "to go on regardless"
            )
        warnings.warn(f"{found}; its text may be much worse than in training", stacklevel=3)
    return chat


class _Draw:
    """A logits processor that draws each row's next token itself, and notes how likely it was.

    With the Gumbel-max trick the greedy choice among disturbed scores is an exact draw, and each row's disturbance
    comes from a generator of its own: `generate` alone would draw for the whole batch at once, so that a row's text
    hung on its neighbours.
    """

    def __init__(self, sampling: Sampling, prompts: list[list[int]], device: str) -> None:
        import torch
        from transformers import TopPLogitsWarper

        self.sampling = sampling
        self.needed = sampling.temperature > 0 or sampling.logprobs is not None
        self.nucleus = TopPLogitsWarper(sampling.top_p)
        self.steps: list[tuple[list[int], list[float], list[list[int]], list[list[float]]]] = []
        chance = secrets.randbits(63) if sampling.seed is None else sampling.seed
        self.generators = [torch.Generator(device).manual_seed(_seed(chance, sampling.index, ids)) for ids in prompts]

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        import torch

        likely = scores.float().log_softmax(-1)
        drawn = likely
        if self.sampling.temperature > 0:
            drawn = self.nucleus(input_ids, likely / self.sampling.temperature)
            noise = torch.empty_like(drawn)
            for row, generator in zip(noise, self.generators, strict=True):
                row.exponential_(generator=generator)
            drawn = drawn - noise.log()
        if self.sampling.logprobs is not None:
            chosen = drawn.argmax(-1, keepdim=True)
            values, tokens = likely.topk(self.sampling.logprobs)
            self.steps.append(
                (chosen[:, 0].tolist(), likely.gather(-1, chosen)[:, 0].tolist(), tokens.tolist(), values.tolist())
            )
        return drawn

    def logprobs(self, row: int, count: int, tokenizer: Any) -> dict[str, Any] | None:
        """What was noted of the first `count` tokens of a row, in the shape of OpenAI's `logprobs`."""
        if self.sampling.logprobs is None:
            return None
        content = []
        for tokens, values, other_tokens, other_values in self.steps[:count]:
            others = zip(other_tokens[row], other_values[row], strict=True)
            content.append(
                {
                    "token": tokenizer.decode([tokens[row]]),
                    "logprob": values[row],
                    "top_logprobs": [{"token": tokenizer.decode([token]), "logprob": value} for token, value in others],
                }
            )
        return {"content": content}


def _seed(*parts: Any) -> int:
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:7])


def _failed(code: str, detail: str, prompt_tokens: int | None = None) -> Completion:
    return Completion(text="", finish_reason="error", prompt_tokens=prompt_tokens, error=f"{code}: {detail}")


def _in_batches(
    positions: list[int],
    size: int,
    answer: Callable[[list[int]], list[Completion]],
    out_of_memory: type[Exception],
) -> Iterator[tuple[int, Completion]]:
    """Answer slices of `positions`; where memory runs out, half as many at a time, and then more again."""
    now, start = size, 0
    while start < len(positions):
        batch = positions[start : start + now]
        try:
            completions = answer(batch)
        except out_of_memory as error:
            if len(batch) > 1:
                now = len(batch) // 2
                continue
            completions = [_failed("out_of_memory", str(error).partition("\n")[0])]
        yield from zip(batch, completions, strict=True)
        start += len(batch)
        now = min(size, now * 2)
