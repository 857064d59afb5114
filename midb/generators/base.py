"""The seam between midb and whatever writes text: chats in, completions out.

A generator knows nothing of datasets, pairs or verdicts. `FunctionGenerator` is the fake that ships: test your code
with the same seam that we use.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from enum import Enum
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, Protocol, runtime_checkable

from midb.errors import GenerationError
from midb.schema import Completion, Message


@dataclass(frozen=True)
class Sampling:
    """How a text is drawn. The default is greedy, so that a rerun says the same.

    Args:
        temperature: 0 is greedy.
        top_p: Nucleus size in (0, 1]; 1 keeps everything.
        max_tokens: New tokens at most; a text that reaches it ends with `finish_reason="length"`.
        seed: For engines that take one; None leaves it to the engine.
        logprobs: How many alternatives per token to report; None reports nothing.
        index: The sample index: several draws of one prompt are several journal entries.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 2048
    seed: int | None = None
    logprobs: int | None = None
    index: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.max_tokens < 1:
            raise ValueError(f"{self} cannot be sampled; use temperature >= 0, 0 < top_p <= 1 and max_tokens >= 1")


@runtime_checkable
class Generator(Protocol):
    """Anything that answers chats. `name` is for provenance columns, `identity()` for the journal.

    A generator may have more, each used where it is there: `stream` (see `StreamingGenerator`), `settings()` (see
    `settings_of`), a field `sampling` for calls that pass none, and `declared()`: a hash of what the caller configured,
    for engines whose `identity()` has to reach a server.
    """

    @property
    def name(self) -> str:
        """What made the text, for people: a model id."""

    def identity(self) -> str:
        """A hash of what answers: weights or served model, rendering, precision, extra request fields.

        Not of the sampling, which the journal keys beside it, and not of paths, concurrency or API keys.
        """

    def generate(self, prompts: Sequence[list[Message]], sampling: Sampling | None = None) -> list[Completion]:
        """Answer every prompt: same length, same order. A request that failed for good is a `Completion` with `error`.

        Raises:
            GenerationError: The engine is dead or refuses everything.
        """


@runtime_checkable
class StreamingGenerator(Generator, Protocol):
    """A generator that yields each completion as it finishes, so that it can be stored and counted at once."""

    def stream(
        self, prompts: Iterable[list[Message]], sampling: Sampling | None = None
    ) -> Iterator[tuple[int, Completion]]:
        """Yield `(position, completion)` in the order of finishing, each position once.

        Pull a prompt only when there is room to work on it (a free slot, the next batch): a journal in front looks once
        more, right before each prompt is paid for, whether another process has answered it. Positions count the prompts
        in the order pulled. The iterable may be pulled from another thread than the caller's. Closing the iterator
        cancels what is in flight.
        """


def settings_of(generator: Generator) -> dict[str, Any]:
    """How a generator makes its text, for provenance: JSON values, no path of this machine, no URL, no key.

    The generator's own `settings()`, where it has that method. Keys: `engine`, `model`, and where they apply `revision`,
    `commit`, `gguf_file`, `adapter`, `adapter_hash` (of a local folder) or `adapter_commit` (of a Hub id), `rendering`,
    `dtype`, `engine_version`, `engine_args` and `extra_body` (names of their fields only).
    """
    settings = getattr(generator, "settings", None)
    return settings() if callable(settings) else {"engine": type(generator).__name__, "model": generator.name}


def stream(
    generator: Generator, prompts: Iterable[list[Message]], sampling: Sampling | None = None
) -> Iterator[tuple[int, Completion]]:
    """Yield completions as they finish, as text that any file can hold; all at the end where there is no `stream`."""
    finished: Iterator[tuple[int, Completion]]
    if isinstance(generator, StreamingGenerator):
        finished = generator.stream(prompts, sampling)
    else:
        prompts = list(prompts)
        completions = generator.generate(prompts, sampling)
        if len(completions) != len(prompts):
            raise GenerationError(
                f"{generator.name} answered {len(completions)} of {len(prompts)} prompts; a Generator must return one "
                "Completion per prompt"
            )
        finished = enumerate(completions)
    try:
        for position, completion in finished:
            yield position, _writable(completion, generator.name)
    finally:
        if close := getattr(finished, "close", None):  # at once, and not when the garbage collector comes by
            close()


def _writable(completion: Completion, name: str) -> Completion:
    """Half a surrogate pair (an emoji cut in two) becomes U+FFFD: neither Arrow nor SQLite can hold it."""
    if not isinstance(completion, Completion) or not isinstance(completion.text, str):
        raise GenerationError(
            f"{name} answered {completion!r:.80}; a Generator must return Completions whose text is str"
        )
    said = f"{completion.text}{completion.finish_reason}{completion.error}"
    try:
        if said.isascii() or said.encode():
            return completion
    except UnicodeEncodeError:
        pass
    text, reason, error = (
        each and each.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        for each in (completion.text, completion.finish_reason, completion.error)
    )
    return replace(completion, text=text or "", finish_reason=reason or "", error=error)


def collect(finished: Iterable[tuple[int, Completion]], count: int) -> list[Completion]:
    """Put streamed completions back in the order of their prompts.

    Raises:
        GenerationError: Not every one of the `count` prompts was answered.
    """
    by_position = dict(finished)
    if by_position.keys() != set(range(count)):
        raise GenerationError(
            f"{len(by_position)} of {count} prompts were answered; a Generator must answer each position once"
        )
    return [by_position[position] for position in range(count)]


def fingerprint(*parts: object) -> str:
    """Hash JSON-able parts to 16 hex digits: the one way identities and journal keys are made."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def stable_form(value: Any) -> list[Any]:
    """What a value is, for `fingerprint`: the same in every process, on every machine and at any place in a file.

    A function is its name, code, defaults and what it closes over, a callable object its type's name, the code of
    `__call__` and its fields. What either calls or reads from its module is not seen.

    Raises:
        TypeError: Nothing that can be read tells this value from others of its type.
    """
    kind: type = type(value)
    call = kind.__call__ if callable(value) and not isinstance(value, type) else None
    content: Any
    match value:
        case Enum():
            content = value.name
        case None | bool() | int() | float() | str():
            content = value
        case bytes():
            content = value.hex()
        case list() | tuple():
            content = [stable_form(each) for each in value]
        case dict():
            content = [stable_form(each) for each in value.items()]
        case set() | frozenset():  # whose order is the process's own
            content = sorted(fingerprint(stable_form(each)) for each in value)
        case re.Pattern():
            content = stable_form((value.pattern, value.flags))
        case partial():
            content = stable_form((value.func, value.args, value.keywords))
        case FunctionType():
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            bound = stable_form((value.__defaults__, value.__kwdefaults__, cells))
            content = [_name(value), _code(value.__code__), bound]
        case BuiltinFunctionType() | MethodType():
            content = [value.__name__, stable_form(value.__self__)]
        case ModuleType():
            content = value.__name__
        case type():
            content = _name(value)
        case _ if is_dataclass(value):
            content = {each.name: stable_form(getattr(value, each.name)) for each in fields(value)}
        case _ if isinstance(call, FunctionType):
            content = stable_form(value.__getstate__())
        case _:
            raise TypeError(f"a {_name(kind)}")
    return [_name(kind), content, stable_form(call) if isinstance(call, FunctionType) else None]


class FieldsOnly:
    """Mixin for frozen dataclasses that build an engine on first use: it is never pickled, only the fields are."""

    def __getstate__(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)}  # type: ignore[arg-type]


@dataclass(frozen=True)
class FunctionGenerator:
    """A plain function as a generator: for tests, dry runs and engines of your own.

    Args:
        function: Takes the messages of one prompt, returns its text or a whole `Completion`.
        name: Provenance and identity. What a function closes over or calls is not seen: when its answers change for
            such a reason, give another name, or a journal will remember the old ones.
        sampling: Part of the journal's keys only; the function does not see it.
    """

    function: Callable[[list[Message]], str | Completion]
    name: str = "function"
    sampling: Sampling = field(default_factory=Sampling)

    def identity(self) -> str:
        """Hash the name and the function's own code."""
        code = _code(self.function.__code__) if isinstance(self.function, FunctionType) else None
        return fingerprint("function", self.name, code)

    def settings(self) -> dict[str, Any]:
        """See `settings_of`."""
        return {"engine": "function", "model": self.name}

    def generate(self, prompts: Sequence[list[Message]], sampling: Sampling | None = None) -> list[Completion]:
        """Call the function once per prompt."""
        return collect(self.stream(prompts, sampling), len(prompts))

    def stream(
        self, prompts: Iterable[list[Message]], sampling: Sampling | None = None
    ) -> Iterator[tuple[int, Completion]]:
        """Call the function prompt by prompt; what it raises passes through."""
        for position, messages in enumerate(prompts):
            answer = self.function(messages)
            yield position, answer if isinstance(answer, Completion) else Completion(text=answer)


def _code(code: CodeType) -> list[object]:
    """What a function does, without where it stands."""
    return [
        code.co_code.hex(),
        code.co_exceptiontable.hex(),
        code.co_names,
        [_constant(each) for each in code.co_consts],
    ]


def _constant(value: object) -> object:
    if isinstance(value, CodeType):
        return _code(value)
    return sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)


def _name(named: Any) -> str:
    return f"{named.__module__}.{named.__qualname__}"
