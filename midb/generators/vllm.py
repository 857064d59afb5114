"""Text from vLLM: many prompts at once on GPUs, in this process or behind `vllm serve`.

The engine for throughput. What a chat is in tokens and where an answer ends is TransformersGenerator's word, so that the
two agree; this room keeps vLLM fed, and knows what it can load. Importing it loads neither vLLM nor torch.
"""

import json
import secrets
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from itertools import chain, count
from multiprocessing import connection
from pathlib import Path
from threading import Thread
from typing import Any

from midb.chat import ChatFormat, Rendering
from midb.errors import GenerationError, require_extra
from midb.generators.base import FieldsOnly, Sampling, collect, fingerprint
from midb.generators.transformers import Dtype, chat_format
from midb.generators.weights import (
    ADAPTER_CONFIG,
    adapter_folder,
    adapter_hash,
    check_weights,
    is_local,
    model_hash,
    weights_name,
    weights_settings,
)
from midb.schema import Completion, Message

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes as max_lora_rank
# What PEFT can train and vLLM cannot apply, or worse: would leave out without a word.
BEYOND_LORA = (
    "modules_to_save", "trainable_token_indices", "use_dora", "lora_bias", "use_qalora", "use_bdlora",
    "layer_replication", "alora_invocation_tokens",
)  # fmt: skip
PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")  # those that leave the base model's weights alone
# Where and how fast, not what: no part of the identity.
INCIDENTAL = {
    "async_scheduling", "block_size", "compilation_config", "cpu_offload_gb", "disable_custom_all_reduce",
    "disable_log_stats", "distributed_executor_backend", "download_dir", "enable_chunked_prefill", "enforce_eager",
    "kv_cache_memory_bytes", "max_num_batched_tokens", "max_parallel_loading_workers",
}  # fmt: skip
# What VLLMGenerator sets beside `_arguments`, or leaves to vLLM.
OURS = {"dtype", "seed", "max_num_seqs", "enable_lora", "max_lora_rank", "max_loras"}


@dataclass(frozen=True)
class VLLMGenerator(FieldsOnly):
    """A causal language model in vLLM, with or without a LoRA.

    A window of twice `max_num_seqs` requests is always full: a new one starts as one ends, so that a straggler holds up
    its own row only. One thread at a time may ask. Prefixes are cached. vLLM starts a process for each engine, so a script
    needs `if __name__ == "__main__":`. On the CPU `VLLM_ENABLE_V1_MULTIPROCESSING=0` (no such process, and so one engine at a
    time) and `VLLM_CPU_OMP_THREADS_BIND=nobind` in the environment save much time, and merging the adapter beforehand more.

    Greedy unless `sampling` says otherwise; the model's own sampling defaults are not used. In float32 the text is that of
    `TransformersGenerator`; in bfloat16 rounding depends on a row's neighbours, and a rerun may word it differently.

    For several copies of the model: a process each with a shard of the rows and one journal (`midb boost --shard i/n`), Ray
    Data, or `midb serve-command ... --data-parallel-size COPIES` and `OpenAIGenerator`.

    Args:
        model: A local folder or a Hub id.
        adapter: A LoRA of PEFT, local folder or Hub id. (`resolve_adapter` finds the base of one.)
        revision: Branch, tag or commit of a Hub model.
        dtype: None is bfloat16 on a GPU and float32 elsewhere; name it where driver and workers differ.
        rendering: How a chat becomes text, see `ChatFormat`; `auto` is how the adapter was trained, where it says so.
        sampling: For calls that bring none of their own. With a seed, a prompt's draw does not depend on its batch.
        parity: Let control tokens inside messages be control tokens, as the reference implementation does.
        max_model_len: Tokens of a prompt and its answer together. None is what the model can attend to, or less where
            the memory cannot hold one such text. Memory is taken by the page, so a long limit costs short rows nothing.
        max_num_seqs: Texts written at the same time; None is vLLM's own choice.
        tensor_parallel_size: GPUs that share each layer.
        pipeline_parallel_size: Groups of GPUs that share the layers.
        gpu_memory_utilization: The share of each GPU that vLLM may fill.
        engine_args: Further arguments of `vllm.EngineArgs`, such as `kv_cache_memory_bytes` or `quantization`. Part of the
            identity, except those that change no text (`INCIDENTAL`).

    Raises:
        MissingExtraError: vLLM is not installed.
        FileNotFoundError: A local folder is missing or is no model.
        ValueError: A setting that cannot be, a model folder that is an adapter, or an adapter that vLLM cannot load.
    """

    model: str
    adapter: str | None = None
    revision: str | None = None
    dtype: Dtype | None = None
    rendering: Rendering = "auto"
    sampling: Sampling = field(default_factory=Sampling)
    parity: bool = False
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    gpu_memory_utilization: float = 0.9
    engine_args: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        """Find a caller's mistake before minutes of loading."""
        check_weights(self.model, self.adapter)
        if self.adapter is not None and is_local(self.adapter):
            lora_rank(self.adapter)
        counts = (
            self.tensor_parallel_size,
            self.pipeline_parallel_size,
            self.max_num_seqs or 1,
            self.max_model_len or 1,
        )
        if min(counts) < 1 or not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError(f"{self} cannot run; use sizes of at least 1 and 0 < gpu_memory_utilization <= 1")
        if self.dtype not in (None, "float32", "bfloat16", "float16"):
            raise ValueError(f"dtype is {self.dtype!r}; use 'float32', 'bfloat16', 'float16' or None")
        if "data_parallel_size" in self.engine_args:
            raise ValueError(
                "vLLM has no data parallelism within one process; start a process for each copy (midb boost --shard i/n), or "
                "`midb serve-command ... --data-parallel-size COPIES` and use OpenAIGenerator"
            )
        if ours := sorted((self._arguments.keys() | OURS) & self.engine_args.keys()):
            raise ValueError(f"engine_args holds {ours}, which VLLMGenerator sets itself; use its own fields")
        try:
            fingerprint(self._telling_args)
        except TypeError as error:
            raise ValueError(
                f"engine_args={self._telling_args!r:.200} cannot be remembered ({error}); write a class as 'module:Class', and the "
                "rest as numbers, text, lists and dicts of these"
            ) from error
        require_extra("vllm", "vllm")

    @property
    def name(self) -> str:
        """The model and its adapter, without the paths of this machine."""
        return weights_name(self.model, self.adapter)

    def identity(self) -> str:
        """Hash of the weights' content, chat rendering, precision and vLLM's version.

        Not of lengths, batches and parallelism, although the last two can change a bfloat16 text: moving to other
        hardware must not throw a journal away.
        """
        return self._identity

    @cached_property
    def _identity(self) -> str:
        """Once per process: the weights are read whole for it."""
        return fingerprint(
            "vllm",
            version("vllm"),
            model_hash(self.model, self.revision),
            adapter_hash(self.adapter) if self.adapter else None,
            self._chat.hash(),
            self.parity,
            self._dtype,
            self._telling_args,
        )

    def settings(self) -> dict[str, Any]:
        """See `settings_of`."""
        arguments = {"engine_args": sorted(self._telling_args)} if self._telling_args else {}  # values may be paths
        return {
            "engine": "vllm",
            "engine_version": version("vllm"),
            **weights_settings(self.model, self.adapter, self.revision),
            "rendering": self._chat.rendering,
            "dtype": self._dtype,
            **arguments,
        }

    def generate(self, prompts: Sequence[list[Message]], sampling: Sampling | None = None) -> list[Completion]:
        """Answer every prompt, in order."""
        return collect(self.stream(prompts, sampling), len(prompts))

    def stream(
        self, prompts: Iterable[list[Message]], sampling: Sampling | None = None
    ) -> Iterator[tuple[int, Completion]]:
        """Yield answers as they finish; closing the iterator cancels what is in flight.

        A prompt that leaves no room for `max_tokens` is not cut and not sent: its completion has the error `too_long`.

        Raises:
            GenerationError: The engine died, or cannot be built; the next call builds a new one.
            ValueError: `max_tokens` alone fills the model's context, or the model cannot render chats.
        """
        waiting = enumerate(prompts)
        first = next(waiting, None)
        if first is None:
            return
        sampling = sampling or self.sampling
        chat, engine = self._chat, self._engine  # a model that cannot render chats shows before its weights load
        if sampling.max_tokens >= engine.context:
            raise ValueError(
                f"max_tokens={sampling.max_tokens} leaves no room for a prompt in the model's context of {engine.context}; "
                "lower Sampling.max_tokens"
            )
        chance = secrets.randbits(63) if sampling.seed is None else sampling.seed
        rest, answered = chain([first], waiting), deque[tuple[str, Any]]()
        asked: dict[str, int] = {}  # a request's number → its prompt's position
        try:
            while True:
                for position, messages in rest if len(asked) < engine.window else ():
                    ids = self._encode(messages, engine.context - sampling.max_tokens)
                    if isinstance(ids, Completion):
                        yield position, ids
                        continue
                    seed = int(fingerprint(chance, sampling.index, ids)[:12], 16) if sampling.temperature else None
                    with self._alive():
                        asked[engine.ask(ids, sampling, seed, chat.stop_ids, answered)] = position
                    if len(asked) == engine.window:
                        break
                if not asked:
                    return
                if not answered:
                    with self._alive():
                        engine.step()
                while answered:
                    number, output = answered.popleft()
                    yield asked.pop(number), self._completion(output, sampling)
        finally:
            if self.__dict__.get("_engine") is engine:  # it still lives
                engine.cancel(asked)

    @contextmanager
    def _alive(self) -> Iterator[None]:
        """Turn the end of the engine into an error that says what to do, and forget it."""
        try:
            yield
        except ValueError:  # vLLM refuses a request: the caller's mistake
            raise
        except Exception as error:
            self.__dict__.pop("_engine", None)
            raise GenerationError(
                f"vLLM's engine died ({type(error).__name__}: {error}; its log above may say more); run again, and if memory ran "
                "out with a lower max_num_seqs, max_model_len or gpu_memory_utilization"
            ) from error

    def _encode(self, messages: list[Message], room: int) -> list[int] | Completion:
        """The tokens of a prompt, or why it is not asked."""
        try:
            ids = self._chat.encode(messages)
        except ValueError as error:
            return Completion(text="", finish_reason="error", error=f"unrenderable: {error}")
        if len(ids) <= room:
            return ids
        context = self._engine.context
        why = f"{len(ids)} prompt tokens and max_tokens={context - room} exceed the context of {context}"
        return Completion(text="", finish_reason="error", prompt_tokens=len(ids), error=f"too_long: {why}")

    def _completion(self, output: Any, sampling: Sampling) -> Completion:
        """What vLLM answered; the text is decoded here, as TransformersGenerator does."""
        (answer,) = output.outputs
        written, reason, prompt = list(answer.token_ids), answer.finish_reason, len(output.prompt_token_ids)
        if reason not in ("stop", "length"):
            return Completion(text="", finish_reason="error", prompt_tokens=prompt, error=f"{reason}: by vLLM")
        tokenizer = self._chat.tokenizer
        return Completion(
            text=tokenizer.decode(written[:-1] if reason == "stop" else written, skip_special_tokens=True),
            finish_reason=reason,
            prompt_tokens=prompt,
            completion_tokens=len(written),
            logprobs=_logprobs(written, answer.logprobs, sampling.logprobs, tokenizer),
        )

    @cached_property
    def _chat(self) -> ChatFormat:
        source = {"revision": self.revision or "main", "trust_remote_code": False}
        return chat_format(self.model, self.adapter, self.rendering, self.parity, **source)

    @cached_property
    def _dtype(self) -> Dtype:
        """Chosen where the work happens."""
        return self.dtype or ("bfloat16" if _sees_gpu() else "float32")

    @property
    def _arguments(self) -> dict[str, Any]:
        """What the fields are in vLLM's words, as far as that is known anywhere."""
        sizes = {} if self.max_num_seqs is None else {"max_num_seqs": self.max_num_seqs}
        return {
            "model": self.model,
            "revision": self.revision,
            "tokenizer_revision": self.revision,
            "max_model_len": self.max_model_len or -1,  # -1: as much of the model's own as the memory can hold
            "max_logprobs": -1,
            "enable_prefix_caching": True,
            "tensor_parallel_size": self.tensor_parallel_size,
            "pipeline_parallel_size": self.pipeline_parallel_size,
            "gpu_memory_utilization": self.gpu_memory_utilization,
            **sizes,
        }

    @property
    def _telling_args(self) -> dict[str, Any]:
        """The engine's arguments that can change a text."""
        return {key: value for key, value in self.engine_args.items() if key not in INCIDENTAL}

    @cached_property
    def _engine(self) -> "_Engine":
        arguments = {**self._arguments, "dtype": self._dtype, "seed": secrets.randbits(31), **self.engine_args}
        adapter = None
        if self.adapter:
            folder, digest = adapter_folder(self.adapter), adapter_hash(self.adapter)
            adapter = adapter_name(digest), int(digest[:7], 16) + 1, str(Path(folder).resolve())
            # One more than there are: with max_loras=1 vLLM 0.32 on the CPU gives the adapter also to rows that ask for none.
            arguments |= {"enable_lora": True, "max_lora_rank": lora_rank(self.adapter), "max_loras": 2}
        try:
            return _Engine(arguments, adapter)
        except ValueError:  # vLLM refuses a setting: the caller's mistake
            raise
        except Exception as error:
            raise GenerationError(
                f"vLLM's engine cannot be built ({type(error).__name__}: {error}; its log above may say more); if memory is short, "
                "lower max_model_len or max_num_seqs, and set gpu_memory_utilization to what other processes leave free"
            ) from error


class _Engine:
    """vLLM in this process, and which stream waits for which answer."""

    def __init__(self, arguments: dict[str, Any], adapter: tuple[str, int, str] | None) -> None:
        from vllm import LLM
        from vllm.lora.request import LoRARequest
        from vllm.v1.engine.core_client import SyncMPClient

        self.llm = LLM(**arguments)
        self.vllm = self.llm.llm_engine
        if isinstance(self.vllm.engine_core, SyncMPClient):  # in a process of its own
            _watch(self.vllm.engine_core)
        self.lora = None if adapter is None else LoRARequest(*adapter)
        self.context: int = self.vllm.model_config.max_model_len
        self.window: int = 2 * self.vllm.vllm_config.scheduler_config.max_num_seqs
        self.numbers = count()
        self.waiting: dict[str, deque[tuple[str, Any]]] = {}

    def ask(
        self, ids: list[int], sampling: Sampling, seed: int | None, stop: list[int], answers: deque[tuple[str, Any]]
    ) -> str:
        """Queue one prompt; its number and its answer will be put to `answers` by a step."""
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        how = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            seed=seed,
            logprobs=sampling.logprobs,
            stop_token_ids=stop,  # beside the model's own, which vLLM adds
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        number = str(next(self.numbers))
        self.vllm.add_request(number, tokens_input(ids), how, lora_request=self.lora)
        self.waiting[number] = answers
        return number

    def step(self) -> None:
        """Write one more token of each running text, or wait for the process that does."""
        for output in self.vllm.step():
            if output.finished and output.request_id in self.waiting:
                self.waiting.pop(output.request_id).append((output.request_id, output))

    def cancel(self, numbers: Iterable[str]) -> None:
        """Forget requests, so that the engine is clean for the next."""
        for number in numbers:
            self.waiting.pop(number, None)
        self.vllm.abort_request(list(numbers))


def _watch(client: Any) -> None:
    """Wake the one who waits for an engine's process that was killed: vLLM 0.32 would let him wait for ever."""
    from vllm.v1.engine.exceptions import EngineDeadError

    answers, ends = client.outputs_queue, [process.sentinel for process in client.resources.engine_manager.processes]

    def wait() -> None:
        connection.wait(ends)
        answers.put(EngineDeadError())

    Thread(target=wait, name="midb-vllm-watch", daemon=True).start()


def lora_rank(adapter: str) -> int:
    """The smallest `max_lora_rank` of vLLM that holds an adapter.

    Raises:
        ValueError: vLLM cannot load the adapter, or would leave out a part of it.
    """
    path = Path(adapter_folder(adapter), ADAPTER_CONFIG)
    said = json.loads(path.read_text(encoding="utf-8"))
    found = [f"{key}={said[key]!r}" for key in BEYOND_LORA if said.get(key)]
    found += [f"peft_type={said['peft_type']!r}"] if said.get("peft_type", "LORA") != "LORA" else []
    found += [f"bias={said['bias']!r}"] if said.get("bias", "none") != "none" else []
    init = said.get("init_lora_weights")
    found += [f"init_lora_weights={init!r}"] if isinstance(init, str) and init.lower() not in PLAIN_INITS else []
    rank = max([said.get("r", 0), *(said.get("rank_pattern") or {}).values()])
    found += [f"r={rank}"] if not 1 <= rank <= RANKS[-1] else []
    if found:
        raise ValueError(
            f"the adapter {adapter!r} has {', '.join(found)}, which vLLM cannot load; merge it (PEFT's merge_and_unload(), then "
            "save_pretrained() of model and tokenizer to one folder) and give that folder as the model, or use "
            "TransformersGenerator"
        )
    return next(each for each in RANKS if each >= rank)


def adapter_name(digest: str) -> str:
    """What vLLM calls an adapter: another name for other content."""
    return f"booster-{digest[:12]}"


def is_preferred() -> bool:
    """True where vLLM is installed and sees a GPU. Imports nothing heavy where it is not installed."""
    return find_spec("vllm") is not None and _sees_gpu()


def _sees_gpu() -> bool:
    # vLLM's own word and not torch.cuda's, which would spoil the fork in which vLLM starts its engine.
    from vllm.platforms import current_platform

    return bool(current_platform.is_cuda_alike())


def _logprobs(written: list[int], steps: Any, asked: int | None, tokenizer: Any) -> dict[str, Any] | None:
    """What vLLM noted of each token, in the shape of OpenAI's `logprobs`."""
    if asked is None:
        return None
    content = []
    for token, likely in zip(written, steps, strict=True):
        others = sorted((each.rank, other, each.logprob) for other, each in likely.items() if each.rank <= asked)
        content.append(
            {
                "token": tokenizer.decode([token]),
                "logprob": likely[token].logprob,
                "top_logprobs": [{"token": tokenizer.decode([other]), "logprob": value} for _, other, value in others],
            }
        )
    return {"content": content}
