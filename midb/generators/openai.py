"""Chats over HTTP: any server that speaks the OpenAI API (vLLM, llama.cpp, OpenAI itself, ...).

Knows the wire, its faults and how to wait; not what the chats are about. A bounded window of requests is always full: a
new one starts as one ends, so a straggler holds up its own row only.

The requests go through the HTTP client of the `openai` package (its aiohttp transport, its headers), not through
`chat.completions.create`: 0.3 ms of CPU a request instead of 1.5, as nothing is built and validated only to be read once.
The retries are ours, as the package has none for a reply that is broken, gives up on a long `Retry-After`, and has no
deadline for a server that trickles.
"""

import asyncio
import email.utils
import json
import os
import random
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from queue import SimpleQueue
from typing import Any
from urllib.parse import urlsplit

from midb.errors import GenerationError, require_extra
from midb.generators.base import FieldsOnly, Sampling, collect, fingerprint
from midb.schema import Completion, Message

REFUSED = {
    401: "check the API key",
    402: "check the account",
    403: "check the API key",
    404: "check the base_url and the model",
    405: "check the base_url",
}
RETRIED = {408, 409, 429}  # and every 5xx
BROKEN_TRIES = 3  # a sick server may heal; a model that always answers nothing will not
LONGEST_BACKOFF = 8.0
LONGEST_RETRY_AFTER = 120.0
FEWEST_DEAD = 8  # so many requests in a row without any answer, and at least a whole window, are a dead endpoint

Finished = tuple[int, Completion]


@dataclass(frozen=True)
class OpenAIGenerator(FieldsOnly):
    """A model behind an OpenAI-compatible server.

    The key comes from `api_key`, else from `OPENAI_API_KEY` where the work happens, else a dummy is sent, as local servers
    ask for none. It is in no identity, repr, error or log; an explicit one is pickled, since workers need it.

    Args:
        model: As the server calls it; for an adapter under vLLM the adapter's name.
        base_url: Up to and including `/v1`.
        api_key: Better left to the environment.
        sampling: Used where a call brings none. `max_tokens` is sent under that name, which all servers know.
        extra_body: Merged into every request, part of the identity; None takes a field out. A model that wants
            `max_completion_tokens`: `{"max_tokens": None, "max_completion_tokens": 4096}`.
        concurrency: Requests in flight.
        timeout: Seconds for one try, the wait in the server's queue included.
        max_retries: After 408, 409, 429, 5xx, a timeout or a lost connection. `Retry-After` is honoured up to two
            minutes, and a 429 costs no try while other requests get through.
    """

    model: str
    base_url: str = "https://api.openai.com/v1"
    api_key: str | None = field(default=None, repr=False)
    sampling: Sampling = field(default_factory=Sampling)
    extra_body: Mapping[str, Any] | None = None
    concurrency: int = 64
    timeout: float = 600.0
    max_retries: int = 5

    def __post_init__(self) -> None:
        require_extra("openai", "openai")
        require_extra("aiohttp", "openai")
        url = urlsplit(self.base_url)
        if (
            url.scheme not in ("http", "https")
            or not url.hostname
            or url.username
            or url.password
            or url.query
            or url.fragment
        ):
            raise ValueError(
                "base_url is no plain http address; give one like http://localhost:8000/v1, and a key as api_key"
            )
        if self.concurrency < 1 or self.timeout <= 0 or self.max_retries < 0:
            raise ValueError(f"{self} cannot run; use concurrency >= 1, timeout > 0 and max_retries >= 0")

    @property
    def name(self) -> str:
        """The model's id."""
        return self.model

    def identity(self) -> str:
        """Hash what the server is asked for; not how patiently."""
        url = urlsplit(self.base_url)
        address = f"{url.scheme}://{url.netloc.lower()}{url.path.rstrip('/')}"
        return fingerprint("openai", self.model, address, asdict(self.sampling), self.extra_body)

    def generate(self, prompts: Sequence[list[Message]], sampling: Sampling | None = None) -> list[Completion]:
        """Answer every prompt, in order. A request that failed for good is a `Completion` with `error`.

        Raises:
            GenerationError: The server refuses everything, or is not there after all retries.
        """
        return collect(self.stream(prompts, sampling), len(prompts))

    def stream(self, prompts: Sequence[list[Message]], sampling: Sampling | None = None) -> Iterator[Finished]:
        """Yield answers as they finish; closing the iterator cancels what is in flight."""
        engine = self._engine()
        finished: SimpleQueue[Finished | Exception | None] = SimpleQueue()
        call = _Call(engine, prompts, sampling or self.sampling, finished)
        running = asyncio.run_coroutine_threadsafe(call.run(), engine.loop)
        try:
            while (item := finished.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            running.cancel()

    def _engine(self) -> "_Engine":
        """The engine of this process. One that came along in a fork has lost its thread: it is left alone, not used."""
        engine: _Engine | None = self.__dict__.get("engine")
        if engine is None or engine.process != os.getpid():
            engine = _Engine(self)
            self.__dict__["engine"] = engine  # past the frozen fields, as cached_property does
            weakref.finalize(self, engine.close)
        return engine


class _Engine:
    """An event loop in a thread of its own, with one HTTP client: the same in a script and inside a running loop."""

    def __init__(self, generator: OpenAIGenerator) -> None:
        import httpx2  # what openai is built on
        import openai

        self.key = (generator.api_key or os.environ.get("OPENAI_API_KEY") or "none").strip()
        if not (self.key.isascii() and self.key.isprintable()):
            raise GenerationError("the API key holds characters that no HTTP header can carry; check OPENAI_API_KEY")
        self.settings = (
            generator.model,
            generator.extra_body or {},
            generator.concurrency,
            generator.timeout,
            generator.max_retries,
        )
        self.base_url = generator.base_url.rstrip("/")
        self.url = httpx2.URL(f"{self.base_url}/chat/completions")
        # Idle connections are dropped before uvicorn, under most servers, does so after 5 s: a request never meets a closing one.
        limits = httpx2.Limits(max_connections=generator.concurrency, keepalive_expiry=4.0)
        self.http = openai.DefaultAioHttpClient(
            limits=limits, timeout=httpx2.Timeout(None, connect=min(generator.timeout, 30.0))
        )
        client = openai.AsyncOpenAI(api_key=self.key, base_url=self.base_url, http_client=self.http)
        self.headers = {
            name: value for name, value in client.default_headers.items() if isinstance(value, str)
        } | client.auth_headers
        self.process = os.getpid()
        started = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self._live(started)), name="midb-openai", daemon=True)
        self.thread.start()
        started.wait()

    async def _live(self, started: threading.Event) -> None:
        self.loop, self.closing = asyncio.get_running_loop(), asyncio.Event()
        async with self.http:
            started.set()
            await self.closing.wait()

    def close(self) -> None:
        """End the thread and its sockets: when the generator goes, or at the interpreter's exit."""
        if self.process != os.getpid():
            _left_behind.append(self)  # a fork shares the parent's sockets: collecting them here would deafen it
        elif not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.closing.set)
            if threading.current_thread() is not self.thread:
                self.thread.join(5)


_left_behind: list[_Engine] = []


class _Call:
    """One `stream()`: the window of requests, and whether the endpoint still lives. Runs in the engine's thread."""

    def __init__(
        self,
        engine: _Engine,
        prompts: Sequence[list[Message]],
        sampling: Sampling,
        finished: "SimpleQueue[Finished | Exception | None]",
    ) -> None:
        self.engine, self.prompts, self.finished = engine, prompts, finished
        self.model, self.extra, self.concurrency, self.timeout, self.max_retries = engine.settings
        self.options = _wire(sampling)
        self.answered = self.unanswered_in_a_row = 0

    async def run(self) -> None:
        pending = iter(enumerate(self.prompts))
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self.concurrency, len(self.prompts))):
                    group.create_task(self._work(pending))
        except* Exception as errors:
            self.finished.put(errors.exceptions[0])
        finally:
            self.finished.put(None)

    async def _work(self, pending: Iterator[tuple[int, list[Message]]]) -> None:
        for position, messages in pending:
            # Nobody reads: then nothing more is asked, or a caller who stops after three rows pays for all of them.
            while self.finished.qsize() > max(self.concurrency, 64):
                await asyncio.sleep(0.01)
            body = {"model": self.model, "messages": messages, **self.options, **self.extra}
            text = json.dumps({name: value for name, value in body.items() if value is not None})
            self.finished.put((position, await self._ask(text.encode())))

    async def _ask(self, body: bytes) -> Completion:
        """Try until there is an answer, a refusal for good, or no try left."""
        tries = 0
        while True:
            answered_before = self.answered
            completion, worth, wait = await self._try(body)
            tries += 1
            if completion.error is None:
                self.answered += 1
                self.unanswered_in_a_row = 0
                return completion
            if tries >= worth:
                if worth > 1:
                    self._lose_hope(completion.error, tries)
                return completion
            backoff = random.uniform(0.5, 1) * min(0.5 * 2**tries, LONGEST_BACKOFF)
            await asyncio.sleep(backoff if wait is None else wait * random.uniform(1, 1.1))
            if completion.error.startswith("http_429") and self.answered > answered_before:
                tries -= 1  # others get through, so the server is well and our turn will come

    async def _try(self, body: bytes) -> tuple[Completion, int, float | None]:
        """Ask once: what came of it, how many tries such an outcome is worth, and the wait that the server asks for."""
        try:
            async with asyncio.timeout(self.timeout):
                response = await self.engine.http.post(self.engine.url, content=body, headers=self.engine.headers)
        except (
            Exception
        ) as error:  # httpx2's errors, and aiohttp's own where the transport between them knows no better
            cause = _root(error)
            code = "timeout" if isinstance(cause, TimeoutError) else "connection"
            return self._failed(code, str(cause) or type(cause).__name__), self.max_retries + 1, None
        status, data = response.status_code, response.content
        if status == 200:
            reply = _read(data)
            return (
                (reply if isinstance(reply, Completion) else self._failed(*reply)),
                min(BROKEN_TRIES, self.max_retries + 1),
                None,
            )
        completion = self._failed(f"http_{status}", _message(data))
        if status in REFUSED:
            raise GenerationError(
                f"{self.engine.base_url} refuses {self.model!r} ({completion.error}); {REFUSED[status]}"
            )
        return (
            completion,
            self.max_retries + 1 if status in RETRIED or status >= 500 else 1,
            _retry_after(response.headers),
        )

    def _lose_hope(self, error: str, tries: int) -> None:
        """Count a request that got nothing after all its tries; when nobody gets anything any more, the endpoint is dead."""
        self.unanswered_in_a_row += 1
        dead = self.unanswered_in_a_row >= max(self.concurrency, FEWEST_DEAD)
        # Rows can make a server answer 500, so a handful of them is not held against it; no row can make it unreachable.
        unreachable = (
            error.startswith("connection") and not self.answered and self.unanswered_in_a_row >= len(self.prompts)
        )
        if dead or unreachable:
            raise GenerationError(
                f"{self.unanswered_in_a_row} requests in a row got no answer from {self.engine.base_url}, each tried {tries} times, the last "
                f"with {error}; see that the server runs and run again: what a journal keeps is not asked twice"
            )

    def _failed(self, code: str, detail: str) -> Completion:
        """Say it in one short line, without the key should the server have echoed it."""
        detail = " ".join(detail.replace(self.engine.key, "[key]").split())
        return Completion("", "error", error=f"{code}: {detail[:200]}")


def _wire(sampling: Sampling) -> dict[str, Any]:
    """Sampling as the API names it; None is left out of the request."""
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
        "seed": None if sampling.seed is None else sampling.seed + sampling.index,  # another draw needs another seed
        "logprobs": None if sampling.logprobs is None else True,
        "top_logprobs": sampling.logprobs,
    }


def _read(data: bytes) -> Completion | tuple[str, str]:
    """The completion in the body of a 200, or a code and a detail of what is wrong with it."""
    try:
        reply = json.loads(data)
    except (ValueError, RecursionError):
        return "broken_reply", f"no JSON but {_message(data)!r}"
    match reply:
        case {"choices": [{"message": {"content": str(text)}} as choice, *_]}:
            pass
        case {"choices": [{"message": {"content": [*parts]}} as choice, *_]}:
            text = "".join(
                part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)
            )
        case {"choices": [{"message": {"content": None}, "finish_reason": "length" | "content_filter"} as choice, *_]}:
            text = ""  # all tokens went into reasoning, or a filter took the text: an answer, if an empty one
        case {"choices": [] | [{"message": {"content": None}}, *_]}:
            return "empty_reply", "the reply holds no text"
        case _:
            return "broken_reply", _message(data)
    usage = reply["usage"] if isinstance(reply.get("usage"), dict) else {}
    return Completion(
        # JSON can carry half a surrogate pair (an emoji cut at max_tokens), which neither Arrow nor SQLite can hold.
        text=text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"),
        finish_reason=str(choice.get("finish_reason") or "stop"),
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
        logprobs=choice.get("logprobs"),
    )


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _message(data: bytes) -> str:
    """What an error's body says: the shapes of OpenAI, vLLM and FastAPI, else the text as it is."""
    text = data.decode("utf-8", "replace")
    try:
        reply = json.loads(text)
    except (ValueError, RecursionError):
        return text
    match reply:
        case {"error": {"message": str(said)}} | {"error": str(said)} | {"message": str(said)} | {"detail": str(said)}:
            return said
    return text


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """The wait that a server asks for, in seconds, between 0 and two minutes; None when it asks for none."""
    for header, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return min(max(float(headers[header]) * unit, 0.0), LONGEST_RETRY_AFTER)
        except (KeyError, ValueError):
            continue
    try:
        moment = email.utils.parsedate_to_datetime(headers["retry-after"]).timestamp()
    except (KeyError, ValueError):
        return None
    return min(max(moment - time.time(), 0.0), LONGEST_RETRY_AFTER)


def _root(error: BaseException) -> BaseException:
    return error if error.__cause__ is None else _root(error.__cause__)
