"""Chats over HTTP: any server that speaks the OpenAI API (vLLM, llama.cpp, OpenAI itself, ...).

Knows the wire, its faults and how to wait; not what the chats are about. The window of requests is always full: a new
one starts as one ends, so a straggler holds up its own row only.

Requests go through the HTTP client of the `openai` package (its aiohttp transport, its headers) and not through
`chat.completions.create`: a fifth of the CPU, as nothing is built and validated only to be read once. The retries are
ours, as the package has none for a broken reply, gives up on a long `Retry-After` and never on a server that trickles.
"""

import asyncio
import contextlib
import json
import os
import random
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from email.utils import parsedate_to_datetime
from queue import SimpleQueue
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from midb.errors import GenerationError, require_extra
from midb.generators.base import FieldsOnly, Sampling, collect, fingerprint
from midb.schema import Completion, Message

REFUSED = {401, 402, 403, 404, 405}  # all requests get this, or a gateway did not like this one
RETRIED = {408, 409, 429}  # and every 5xx
BROKEN_TRIES = 3  # a sick server may heal; a model that always answers nothing will not
LONGEST_BACKOFF = 8.0
LONGEST_RETRY_AFTER = 120.0
FEWEST_DEAD = 8  # so many requests in a row without an answer, and a whole window, may be the endpoint's fault
CANARY: list[Message] = [{"role": "user", "content": "Hi"}]  # no row's fault if this gets no answer

Finished = tuple[int, Completion]
Queue = SimpleQueue[Finished | Exception | None]


@dataclass(frozen=True)
class OpenAIGenerator(FieldsOnly):
    """A model behind an OpenAI-compatible server.

    The key is `api_key`, else `OPENAI_API_KEY` where the work happens, else a dummy, as local servers ask for none. It
    is in no identity, repr, error or log; an explicit one is pickled, since workers need it.

    Args:
        model: As the server calls it; for an adapter under vLLM the adapter's name.
        base_url: Up to and including `/v1`.
        api_key: Better left to the environment.
        sampling: Used where a call brings none. `max_tokens` is sent under that name, which nearly all servers know.
        extra_body: Merged into every request and part of the identity; None takes a field out. For a model that wants
            another name: `{"max_tokens": None, "max_completion_tokens": 4096}`.
        concurrency: Requests in flight.
        timeout: Seconds for one try, the wait in the server's queue included.
        max_retries: After 408, 409, 429, 5xx, a timeout or a lost connection. `Retry-After` is honoured up to two
            minutes, and a 429 costs no try while other requests get through.
    """

    model: str
    base_url: str = "https://api.openai.com/v1"
    api_key: str | None = field(default=None, repr=False)
    sampling: Sampling = field(default_factory=Sampling)
    extra_body: Mapping[str, Any] = field(default_factory=dict, hash=False)
    concurrency: int = 64
    timeout: float = 600.0
    max_retries: int = 6

    def __post_init__(self) -> None:
        require_extra("openai", "openai")
        require_extra("aiohttp", "openai")
        url = urlsplit(self.base_url)
        if url.scheme not in ("http", "https") or not url.hostname or "@" in url.netloc or url.query or url.fragment:
            raise ValueError("base_url is no plain http address; use one like http://localhost:8000/v1 (key: api_key)")
        if self.concurrency < 1 or self.timeout <= 0 or self.max_retries < 0:
            raise ValueError(f"{self} cannot run; use concurrency >= 1, timeout > 0 and max_retries >= 0")

    @property
    def name(self) -> str:
        """The model's id."""
        return self.model

    def identity(self) -> str:
        """Hash what the server is asked for, not how patiently."""
        url = urlsplit(self.base_url)
        address = f"{url.scheme}://{url.netloc.lower()}{url.path.rstrip('/')}"
        return fingerprint("openai", self.model, address, asdict(self.sampling), dict(self.extra_body))

    def generate(self, prompts: Sequence[list[Message]], sampling: Sampling | None = None) -> list[Completion]:
        """Answer every prompt, in order. A request that failed for good is a `Completion` with `error`.

        Raises:
            GenerationError: The server refuses or leaves unanswered even the smallest request.
        """
        return collect(self.stream(prompts, sampling), len(prompts))

    def stream(self, prompts: Sequence[list[Message]], sampling: Sampling | None = None) -> Iterator[Finished]:
        """Yield answers as they finish; closing the iterator cancels what is in flight."""
        engine = self._engine()
        finished: Queue = SimpleQueue()
        call = _Call(self, engine, prompts, sampling or self.sampling, finished)
        running = asyncio.run_coroutine_threadsafe(call.run(), engine.loop)
        try:
            while (item := finished.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            running.cancel()

    def _engine(self) -> "_Engine":
        """The engine of this process, built on first use: one that came along in a fork has lost its thread."""
        with _building.setdefault(os.getpid(), threading.Lock()):
            engine: _Engine | None = self.__dict__.get("engine")
            if engine is None or engine.process != os.getpid():
                engine = _Engine(self)
                self.__dict__["engine"] = engine  # beside the frozen fields, where cached_property keeps its value
                weakref.finalize(self, engine.close)
            return engine


_building: dict[int, threading.Lock] = {}  # one a process: a fork may inherit a lock that nobody is left to open


class _Engine:
    """One event loop in a thread of its own, one HTTP client: the same in a script and under a running loop."""

    def __init__(self, generator: OpenAIGenerator) -> None:
        import httpx2  # what openai is built on
        import openai

        self.key = (generator.api_key or os.environ.get("OPENAI_API_KEY") or "none").strip()
        if not (self.key.isascii() and self.key.isprintable()):
            raise GenerationError("the API key holds characters that no HTTP header can carry; check OPENAI_API_KEY")
        base_url = generator.base_url.rstrip("/")
        self.url = httpx2.URL(f"{base_url}/chat/completions")
        # uvicorn, under most servers, drops idle connections after 5 s: drop them before a request meets a closing one.
        limits = httpx2.Limits(max_connections=generator.concurrency, keepalive_expiry=4.0)
        timeout = httpx2.Timeout(None, connect=min(generator.timeout, 30.0))  # the whole try has a deadline in _try
        self.http = openai.DefaultAioHttpClient(limits=limits, timeout=timeout)
        client = openai.AsyncOpenAI(api_key=self.key, base_url=base_url, http_client=self.http)
        headers = {**client.default_headers, **client.auth_headers}
        self.headers = {name: value for name, value in headers.items() if isinstance(value, str)}
        self.process, started = os.getpid(), threading.Event()
        self.thread = threading.Thread(target=asyncio.run, args=[self._live(started)], name="midb-openai", daemon=True)
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
            _left_behind.append(self)  # a fork shares its parent's sockets: collecting them would deafen the parent
        elif not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.closing.set)
            if threading.current_thread() is not self.thread:
                self.thread.join(5)


_left_behind: list[_Engine] = []


class _Outcome(NamedTuple):
    """What came of one request, and the wait that the server asks for."""

    completion: Completion
    status: int = 0  # 0: nobody answered
    wait: float | None = None

    @property
    def lives(self) -> bool:
        """Whether somebody looked at the request, be the reply good, odd or a refusal of what it says."""
        return 0 < self.status < 500 and self.status not in REFUSED | RETRIED


@dataclass
class _Call:
    """One `stream()`: its window of requests, and whether the endpoint still lives. Runs in the engine's thread."""

    generator: OpenAIGenerator
    engine: _Engine
    prompts: Sequence[list[Message]]
    sampling: Sampling
    finished: Queue
    answered: int = 0
    unanswered_in_a_row: int = 0
    doubt: asyncio.Lock = field(default_factory=asyncio.Lock)
    dead: str = ""  # why

    async def run(self) -> None:
        pending = enumerate(self.prompts)
        try:
            async with asyncio.TaskGroup() as window:
                for _ in range(min(self.generator.concurrency, len(self.prompts))):
                    window.create_task(self._work(pending))
        except* Exception as errors:
            self.finished.put(errors.exceptions[0])
        finally:
            self.finished.put(None)

    async def _work(self, pending: Iterator[tuple[int, list[Message]]]) -> None:
        for position, messages in pending:
            # Nobody reads? Then ask no more: a caller who stops after three rows would pay for all of them, and one who
            # is killed would lose what waits here, on its way to the journal. So it is a window at most.
            while self.finished.qsize() >= self.generator.concurrency:
                await asyncio.sleep(0.002)
            outcome = await self._ask(messages, self.sampling, self.generator.max_retries + 1)
            if outcome.completion.error is None:
                self.answered, self.unanswered_in_a_row = self.answered + 1, 0
            elif not outcome.lives:
                await self._count_unanswered(outcome.status)
            self.finished.put((position, outcome.completion))

    async def _count_unanswered(self, status: int) -> None:
        """A row got nothing after all its tries: its own fault, unless the canary gets nothing either."""
        self.unanswered_in_a_row += 1
        async with self.doubt:  # one canary at a time, and no further row before its news
            window = min(self.generator.concurrency, len(self.prompts))
            suspicious = max(FEWEST_DEAD, window) if self.answered else 1 if status in REFUSED else window
            if self.unanswered_in_a_row >= suspicious and not self.dead:
                await self._send_canary()
        if self.dead:
            raise GenerationError(self.dead)

    async def _send_canary(self) -> None:
        """Ask something that any healthy endpoint answers; that counts as an answer, so the next canary is far off."""
        unanswered, answered = self.unanswered_in_a_row, self.answered
        outcome = await self._ask(CANARY, replace(self.sampling, max_tokens=1, logprobs=None), 2)
        error = outcome.completion.error
        if outcome.lives or self.answered > answered:
            self.answered, self.unanswered_in_a_row = self.answered + 1, 0
        elif outcome.status in REFUSED:
            self.dead = f"{self.engine.url} refused ({error}); check base_url, model and API key"
        else:
            self.dead = f"{unanswered} requests in a row got no answer from {self.engine.url} ({error}); "
            self.dead += "see that the server runs and start again, what a journal keeps is not asked twice"

    async def _ask(self, messages: list[Message], sampling: Sampling, most: int) -> _Outcome:
        """Try until there is an answer, a refusal for good, or no try left."""
        body = {"model": self.generator.model, **_on_the_wire(sampling), **self.generator.extra_body}
        body = {name: value for name, value in body.items() if value is not None} | {"messages": messages}
        content = json.dumps(body).encode()
        tries, pause = 0, 0.25
        while True:
            answered_before = self.answered
            outcome = await self._try(content)
            tries += 1
            worth = most if not outcome.lives else min(BROKEN_TRIES, most) if outcome.status == 200 else 1
            if outcome.completion.error is None or tries >= worth or outcome.status in REFUSED:
                return outcome
            pause = min(2 * pause, LONGEST_BACKOFF)
            wait = outcome.wait or pause * random.uniform(0.5, 0.9)
            await asyncio.sleep(wait * random.uniform(1, 1.1))
            if outcome.status == 429 and self.answered > answered_before:
                tries -= 1  # others get through: the server is well, and our turn will come

    async def _try(self, content: bytes) -> _Outcome:
        """Ask once."""
        try:
            async with asyncio.timeout(self.generator.timeout):
                response = await self.engine.http.post(self.engine.url, content=content, headers=self.engine.headers)
        except Exception as error:  # httpx2's errors, and aiohttp's own where the transport does not translate them
            cause = error
            while isinstance(cause.__cause__, Exception):
                cause = cause.__cause__
            code = "timeout" if isinstance(cause, TimeoutError) else "connection"
            return _Outcome(self._failed(code, str(cause) or type(cause).__name__))
        status, data = response.status_code, response.content
        if status == 200:
            reply = _read(data)
            return _Outcome(reply if isinstance(reply, Completion) else self._failed(*reply), status)
        return _Outcome(self._failed(f"http_{status}", _message(data)), status, _retry_after(response.headers))

    def _failed(self, code: str, detail: str) -> Completion:
        """Say it in one short line, without the key should the server have echoed it."""
        if len(self.engine.key) >= 8:
            detail = detail.replace(self.engine.key, "[key]")
        printable = "".join(character if character.isprintable() else " " for character in detail[:1000])
        return Completion("", "error", error=f"{code}: {' '.join(printable.split())[:200]}")


def _on_the_wire(sampling: Sampling) -> dict[str, Any]:
    """Sampling as the API names it; None is left out of the request."""
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
        "seed": None if sampling.seed is None else sampling.seed + sampling.index,  # another draw, another seed
        "logprobs": None if sampling.logprobs is None else True,
        "top_logprobs": sampling.logprobs,
    }


def _read(data: bytes) -> Completion | tuple[str, str]:
    """The completion in the body of a 200, or a code and a detail of what is wrong with it."""
    match reply := _parse(data):
        case {"choices": [{"message": {"content": str(text)}} as choice, *_]}:
            pass
        case {"choices": [{"message": {"content": [*parts]}} as choice, *_]}:
            text = "".join(str(part.get("text") or "") for part in parts if isinstance(part, dict))
        case {"choices": [{"message": {"content": None}, "finish_reason": "length" | "content_filter"} as choice, *_]}:
            text = ""  # reasoning took all tokens, or a filter took the text: an answer, if an empty one
        case {"choices": [] | [{"message": {"content": None}}, *_]}:
            return "empty_reply", "the reply holds no text"
        case _:
            return "broken_reply", _message(data)
    usage = reply["usage"] if isinstance(reply.get("usage"), dict) else {}
    counts = {name: count for name, count in usage.items() if type(count) is int and 0 <= count < 2**63}
    return Completion(
        # JSON can carry half a surrogate pair (an emoji cut at max_tokens), which neither Arrow nor SQLite can hold.
        text=text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"),
        finish_reason=str(choice.get("finish_reason") or "stop"),
        prompt_tokens=counts.get("prompt_tokens"),
        completion_tokens=counts.get("completion_tokens"),
        logprobs=choice.get("logprobs"),
    )


def _message(data: bytes) -> str:
    """What an error's body says: the shapes of OpenAI, vLLM and FastAPI, else the text as it is."""
    match _parse(data):
        case {"error": {"message": str(said)}} | {"error": str(said)} | {"message": str(said)} | {"detail": str(said)}:
            return said
    return data.decode("utf-8", "replace")


def _parse(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """The wait that a server asks for, in seconds and within reason; None when it asks for none."""
    for header, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(header, "")
        with contextlib.suppress(ValueError, OverflowError):
            is_date = not value.replace(".", "").isdigit()
            seconds = parsedate_to_datetime(value).timestamp() - time.time() if is_date else float(value) * unit
            return min(max(seconds, 0.0), LONGEST_RETRY_AFTER)
    return None
