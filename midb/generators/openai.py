"""Chats over HTTP: any server that speaks the OpenAI API (vLLM, llama.cpp, OpenAI itself, ...).

Knows when to ask, how to wait and how to retry; `wire` knows what is sent and how a reply is read. The window of requests
is always full: a new one starts as one ends, so a straggler holds up its own row only.

Requests go through aiohttp and not through the `openai` package: 40 % of the CPU a request, half a second less to import,
and a reply can be cut off while it arrives. What that package adds to a request is small: `Authorization`, and
`OpenAI-Organization` and `OpenAI-Project` where the environment names them.
"""

import asyncio
import json
import os
import random
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from midb.errors import GenerationError, require_extra
from midb.generators import wire
from midb.generators.base import FieldsOnly, Sampling, collect, fingerprint
from midb.schema import Completion, Message

if TYPE_CHECKING:
    from midb.generators.endpoint import Endpoint  # loads aiohttp

REFUSED = {*range(300, 400), 401, 402, 403, 404, 405}  # all requests get this, or a gateway did not like this one
BROKEN_TRIES = 3  # a sick server may heal; a model that always answers nothing will not
SERVED_TRIES = 3
LONGEST_BACKOFF = 8.0
FEWEST_DEAD = 8  # so many requests in a row without an answer, and a whole window, may be the endpoint's fault
CANARY: list[Message] = [{"role": "user", "content": "Hi"}]  # no row's fault if this gets no answer

Finished = tuple[int, Completion]
Queue = SimpleQueue[Finished | BaseException | None]


@dataclass(frozen=True)
class OpenAIGenerator(FieldsOnly):
    """A model behind an OpenAI-compatible server.

    The key is `api_key`, else the environment variable `OPENAI_API_KEY`, else a dummy, as local servers need none. It is
    in no identity, repr, error or log. An explicit key is pickled, since workers need it.

    **What the identity tells apart.** It depends on what is served, not on the address, where the server says what it
    serves: vLLM, SGLang and llama.cpp do, and are asked once per process. A model that the server loaded from the Hub is
    the same model at any address; one loaded from a path is the same at any port of one host. Any other server is
    identified by its address, and two models served one after the other under one name at one address cannot be told
    apart. Nor can what no server tells: other weights at the same path, a revision, the precision. Set `served` then.

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
        served: Your own word for what is served, such as `"my-model, revision 3, fp8"`. It replaces the address and what
            the server says in the identity.
    """

    model: str
    base_url: str = "https://api.openai.com/v1"
    api_key: str | None = field(default=None, repr=False)
    sampling: Sampling = field(default_factory=Sampling)
    extra_body: Mapping[str, Any] = field(default_factory=dict, hash=False)
    concurrency: int = 64
    timeout: float = 600.0
    max_retries: int = 6
    served: str = ""

    def __post_init__(self) -> None:
        require_extra("aiohttp", "openai")
        try:
            url = urlsplit(self.base_url)
            plain = bool(url.hostname and url.port != 0) and url.scheme in ("http", "https")
        except ValueError:  # brackets without an IPv6 address, or a port that is none
            plain = False
        if not plain or "@" in url.netloc or url.query or url.fragment:
            raise ValueError("base_url is no plain http address; use one like http://localhost:8000/v1 (key: api_key)")
        if self.concurrency < 1 or self.timeout <= 0 or self.max_retries < 0:
            raise ValueError(f"{self} cannot run; use concurrency >= 1, timeout > 0 and max_retries >= 0")

    @property
    def name(self) -> str:
        """The model's id."""
        return self.model

    def identity(self) -> str:
        """Hash what is served; the first call in a process asks the server, unless `served` says it.

        Raises:
            GenerationError: The server does not answer.
        """
        served: Any = self.served
        if not served:
            endpoint = self._endpoint()
            if not endpoint.served:
                tries, pause = min(SERVED_TRIES, 1 + self.max_retries), min(0.5, LONGEST_BACKOFF)
                asyncio.run_coroutine_threadsafe(endpoint.find_served(self.model, tries, pause), endpoint.loop).result()
            served = endpoint.served
        return fingerprint("openai", self.model, served, dict(self.extra_body))

    def declared(self) -> str:
        """Hash what can be known of the identity without a request."""
        address = wire.address_of(self.base_url)
        return fingerprint("openai", "declared", self.model, address, dict(self.extra_body), self.served)

    def settings(self) -> dict[str, Any]:
        """How the answers were made, for people; makes no request."""
        told = {"served": self.served, "extra_body": sorted(self.extra_body)}
        return {"engine": "openai", "model": self.model} | {name: value for name, value in told.items() if value}

    def generate(self, prompts: Sequence[list[Message]], sampling: Sampling | None = None) -> list[Completion]:
        """Answer every prompt, in order. A request that failed for good is a `Completion` with `error`.

        Raises:
            GenerationError: The server refuses or leaves unanswered even the smallest request.
        """
        return collect(self.stream(prompts, sampling), len(prompts))

    def stream(self, prompts: Iterable[list[Message]], sampling: Sampling | None = None) -> Iterator[Finished]:
        """Yield answers as they finish; closing the iterator cancels what is in flight.

        A prompt is pulled right before it is sent, in the endpoint's thread, and none after the iterator is closed. What
        the iterable raises is raised here, after the answers that were in flight.
        """
        endpoint = self._endpoint()
        call = _Call(self, endpoint, iter(prompts), sampling or self.sampling)
        running = asyncio.run_coroutine_threadsafe(call.run(), endpoint.loop)
        try:
            while (item := call.finished.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            with call.pulling:
                call.exhausted = True
            running.cancel()

    def _endpoint(self) -> "Endpoint":
        """The endpoint of this process, built on first use: one that came along in a fork has lost its thread."""
        from midb.generators.endpoint import Endpoint

        with _building.setdefault(os.getpid(), threading.Lock()):
            endpoint: Endpoint | None = self.__dict__.get("endpoint")
            if endpoint is None or endpoint.process != os.getpid():
                endpoint = Endpoint(self.base_url, self.api_key, self.concurrency, self.timeout)
                self.__dict__["endpoint"] = endpoint  # beside the frozen fields, where cached_property keeps its value
                weakref.finalize(self, endpoint.close)
            return endpoint


_building: dict[int, threading.Lock] = {}  # one a process: a fork may inherit a lock that nobody is left to open


class _Outcome(NamedTuple):
    """What came of one request, and the wait that the server asks for."""

    completion: Completion
    status: int = 0  # 0: no answer
    wait: float | None = None

    @property
    def lives(self) -> bool:
        """Whether the server looked at the request, be the reply good, odd or a refusal of what it says."""
        return 0 < self.status < 500 and self.status not in REFUSED | wire.RETRIED


@dataclass
class _Call:
    """One `stream()`: its window of requests, and whether the endpoint still lives. Runs in the endpoint's thread."""

    generator: OpenAIGenerator
    endpoint: "Endpoint"
    prompts: Iterator[list[Message]]
    sampling: Sampling
    finished: Queue = field(default_factory=SimpleQueue)
    pulled: int = 0
    exhausted: bool = False
    raised: BaseException | None = None  # by the prompts
    # Reentrant: a pull may set off the garbage collection that closes this very iterator.
    pulling: threading.RLock = field(default_factory=threading.RLock)
    answered: int = 0
    unanswered_in_a_row: int = 0
    doubt: asyncio.Lock = field(default_factory=asyncio.Lock)
    dead: str = ""  # why

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as window:
                for _ in range(self.generator.concurrency):
                    if self.exhausted:
                        break
                    window.create_task(self._work())
                    await asyncio.sleep(0)  # it pulls its first prompt
            if self.raised:
                self.finished.put(self.raised)
        except* Exception as errors:
            self.finished.put(errors.exceptions[0])
        finally:
            self.finished.put(None)

    def _pull(self) -> tuple[int, list[Message]] | None:
        """The next prompt; None at the end, and once the caller has closed the iterator."""
        with self.pulling:
            try:
                if not self.exhausted:
                    messages = next(self.prompts)
                    self.pulled += 1
                    return self.pulled - 1, messages
            except StopIteration:
                pass
            except BaseException as error:  # any kind: the endpoint's thread must outlive it
                self.raised = error
            self.exhausted = True
            return None

    async def _work(self) -> None:
        while True:
            # Nobody reads? Then ask no more: a caller who stops after three rows would pay for all of them, and one who
            # is killed would lose what waits here, on its way to the journal. So it is a window at most.
            while self.finished.qsize() >= self.generator.concurrency:
                await asyncio.sleep(0.002)
            if (pulled := self._pull()) is None:
                return
            position, messages = pulled
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
            window = min(self.generator.concurrency, self.pulled)
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
            self.dead = f"{self.endpoint.url} refused ({error}); check base_url, model and API key"
        else:
            self.dead = f"{unanswered} requests in a row got no answer from {self.endpoint.url} ({error}); "
            self.dead += "see that the server runs and start again, what a journal keeps is not asked twice"

    async def _ask(self, messages: list[Message], sampling: Sampling, most: int) -> _Outcome:
        """Try until there is an answer, a refusal for good, or no try left."""
        body = {"model": self.generator.model, **wire.sampling_fields(sampling), **self.generator.extra_body}
        body = {name: value for name, value in body.items() if value is not None} | {"messages": messages}
        content, limit = json.dumps(body).encode(), wire.reply_limit(body)
        tries, pause = 0, 0.25
        while True:
            answered_before = self.answered
            outcome = await self._try(content, limit)
            tries += 1
            worth = most if not outcome.lives else min(BROKEN_TRIES, most) if outcome.status == 200 else 1
            if outcome.completion.error is None or tries >= worth or outcome.status in REFUSED:
                return outcome
            pause = min(2 * pause, LONGEST_BACKOFF)
            wait = outcome.wait or pause * random.uniform(0.5, 0.9)
            await asyncio.sleep(wait * random.uniform(1, 1.1))
            if outcome.status == 429 and self.answered > answered_before:
                tries -= 1  # others get through: the server is well, and our turn will come

    async def _try(self, content: bytes, limit: int) -> _Outcome:
        """Ask once."""
        try:
            async with asyncio.timeout(self.generator.timeout):
                status, headers, data, whole = await self.endpoint.exchange("POST", self.endpoint.url, limit, content)
        except Exception as error:
            return _Outcome(self._failed(*wire.cause(error)))
        if status == 200 and not whole:
            return _Outcome(self._failed("broken_reply", f"the reply is larger than {limit} bytes"), status)
        if status == 200:
            reply = wire.read_reply(data)
            return _Outcome(reply if isinstance(reply, Completion) else self._failed(*reply), status)
        said = wire.error_message(data)
        if 300 <= status < 400:
            said = wire.redirect_message(headers.get("Location", ""), self.endpoint.url)
        return _Outcome(self._failed(f"http_{status}", said), status, wire.retry_after(headers))

    def _failed(self, code: str, detail: str) -> Completion:
        return Completion("", "error", error=f"{code}: {wire.one_line(detail, self.endpoint.secrets)}")
