"""A generator's memory: every answer is stored before anyone sees it, so that a rerun asks only for what is missing.

Knows generators and what a question's key is made of; where the answers lie is told by `memory` and `segments`.
"""

import hashlib
import json
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midb.errors import GenerationError
from midb.generators.base import FieldsOnly, Generator, Sampling, collect, settings_of, stream
from midb.generators.memory import Memory
from midb.schema import Completion, Message

if TYPE_CHECKING:
    from midb.generators.segments import Index, Shared

# What an engine may say where it gave no answer. Anything else (`stop`, `length`, ...) is stored.
BAD_ENDINGS = {"content_filter", "abort", "error", "insufficient_system_resource"}
WAIT = 0.05  # seconds between two looks for the answers that other processes are about to store
PATIENCE = 60  # seconds without any of them, after which they are asked for all the same
CREDENTIALS = re.compile(r"://[^/@:]*:(?!\d+(/|$))[^@]*@")  # user:password@; host:port/ is none


@dataclass(frozen=True)
class Journal(FieldsOnly):
    """A generator around a generator: what it answered once is not asked again, not even after a `kill -9`.

    An answer is found again by its messages, the generator's `identity()` and the sampling. One that ended by itself
    (`stop`) also serves under another `max_tokens` that has room for it; one that was cut does not. The same question
    twice in one call is asked once, and both places get the answer; for several draws of one prompt set `Sampling.index`.
    Failures are returned and not stored: a rerun asks again.

    Any number of processes may use one place at the same time: each starts at another end of the missing prompts and
    looks once more, right before it asks one, whether another process has answered it. So two processes with the same
    prompts ask for at most what is in flight twice.

    Args:
        generator: Whom to ask.
        place: A file on a local disk, for the processes of one machine; it and its folder are made when missing. Or what
            many machines share: an existing folder, a path that ends in `/`, or a URL that fsspec knows, such as
            `s3://bucket/run`. Credentials come from the environment and not from the URL.

    Raises:
        ValueError: The URL holds credentials.
    """

    generator: Generator
    place: str | Path

    def __post_init__(self) -> None:
        if CREDENTIALS.search(str(self.place)):
            raise ValueError(
                "the journal's URL holds a password; take it out, and give it to the storage library through the "
                "environment or its configuration file"
            )

    @property
    def name(self) -> str:
        """What made the text: the inner generator's name."""
        return self.generator.name

    @property
    def sampling(self) -> Sampling | None:
        """The inner generator's, for calls that pass none."""
        return getattr(self.generator, "sampling", None)

    def settings(self) -> dict[str, Any]:
        """The inner generator's: remembering changes no answer."""
        return settings_of(self.generator)

    def identity(self) -> str:
        """The inner generator's; where its server is gone, the one identity that it is known to have had here.

        Raises:
            GenerationError: The server is gone, and no identity is known here, or several are.
        """
        try:
            return self.generator.identity()
        except GenerationError as error:
            declared = self._declared()
            place = None if declared is None else self._open(create=False)
            if declared is None or place is None:
                raise
            with closing(place):
                known = place.served(declared)
            if len(known) == 1:
                return known.pop()
            if known:
                raise GenerationError(
                    f"{error}; the journal holds answers of {len(known)} different models under this name and address: start "
                    "the server, so that it can be told which of them is meant"
                ) from error
            raise

    def generate(self, prompts: Sequence[list[Message]], sampling: Sampling | None = None) -> list[Completion]:
        """Answer every prompt, from memory where it can.

        Raises:
            MidbError: The place cannot be used; nothing was asked.
            GenerationError: The inner generator gave up; what it answered before is stored.
        """
        return collect(self.stream(prompts, sampling), len(prompts))

    def remembers(self, prompts: Sequence[list[Message]], sampling: Sampling | None = None) -> list[bool]:
        """Which prompts a call would answer from memory. Asks for no text and creates nothing."""
        place = self._open(create=False)
        if place is None:
            return [False] * len(prompts)
        with closing(place):
            asked = _Asked(self.identity(), sampling or self.sampling)
            keys = [asked.key(messages) for messages in prompts]
            known = place.known(list(dict.fromkeys(keys)), asked.limit)
        return [key in known for key in keys]

    def stream(
        self, prompts: Iterable[list[Message]], sampling: Sampling | None = None
    ) -> Iterator[tuple[int, Completion]]:
        """First what is known, then what is asked as it finishes, each stored before it is yielded."""
        asked = _Asked(self.identity(), sampling or self.sampling)
        prompts = list(prompts)
        positions: dict[bytes, list[int]] = {}
        for position, messages in enumerate(prompts):
            positions.setdefault(asked.key(messages), []).append(position)
        place = self._open()
        assert place is not None
        # A connection per call and not per process: nothing to share between threads, to lose in a fork or to close.
        with closing(place):
            left, passed, moved = list(positions), dict[bytes, bool](), time.monotonic()
            while left:
                before = len(positions)
                for key, completion in place.find(left, asked.limit):
                    for position in positions.pop(key):
                        yield position, completion
                questions = {key: prompts[positions[key][0]] for key in left if key in positions}
                # Asked whatever others do: what another stored and cannot be read, and what it is too slow to store.
                late = time.monotonic() - moved > PATIENCE
                certain = {key for key in questions if late or passed.get(key)}
                passed = {}
                for key, completion in (
                    self._ask(place, asked, sampling, questions, certain, passed) if questions else ()
                ):
                    for position in positions.pop(key, ()):  # none where an engine yields an answer twice
                        yield position, completion
                if len(positions) < before:
                    moved = time.monotonic()
                elif passed:
                    time.sleep(WAIT)
                left = list(passed)

    def _ask(
        self,
        place: "Memory | Shared",
        asked: "_Asked",
        sampling: Sampling | None,
        questions: dict[bytes, list[Message]],
        certain: set[bytes],
        passed: dict[bytes, bool],
    ) -> Iterator[tuple[bytes, Completion]]:
        """Ask, but for what others ask now or (True) have answered meanwhile: that is added to `passed`."""
        pulled: list[bytes] = []
        rank = place.enlist(self._declared(), asked.identity)

        def unanswered() -> Iterator[list[Message]]:  # the engine may pull in a thread of its own
            for key in _in_order(list(questions), rank):
                if key not in certain and not place.claim(key):
                    passed[key] = False
                elif key not in certain and place.news() and place.known([key], asked.limit):
                    passed[key] = True
                    place.release(key)
                else:
                    pulled.append(key)
                    yield questions[key]

        finished = stream(self.generator, unanswered(), sampling)
        try:
            for number, completion in finished:
                key = pulled[number]
                if completion.error is None and completion.finish_reason not in BAD_ENDINGS:
                    completion = place.keep(key, asked.limit, self.name, asked.identity, completion)
                else:
                    place.release(key)
                yield key, completion
                place.tick()
        finally:
            finished.close()  # type: ignore[attr-defined]  # it is a generator

    def _declared(self) -> str | None:
        declared = getattr(self.generator, "declared", None)
        return declared() if callable(declared) else None

    def _open(self, create: bool = True) -> "Memory | Shared | None":
        """The place, ready; every way in which it is unusable shows here, before a request. None: there is none yet."""
        place = str(self.place)
        try:
            if "://" in place or place.endswith("/") or Path(place).expanduser().is_dir():
                from midb.generators.segments import Shared

                return Shared(place, self._index, create)
            return Memory(Path(place).expanduser(), create)
        except FileNotFoundError:
            return None

    @cached_property
    def _index(self) -> "Index":
        """The keys of a shared place, once per process."""
        from midb.generators.segments import Index

        return Index()


class _Asked:
    """Who is asked and how: what beside the messages makes a key."""

    def __init__(self, identity: str, sampling: Sampling | None) -> None:
        self.identity = identity
        how = None if sampling is None else asdict(sampling)
        self.limit: int | None = how.pop("max_tokens") if how else None
        self.start = json.dumps([identity, how], sort_keys=True)[:-1]

    def key(self, messages: list[Message]) -> bytes:
        """A whole SHA-256, not `fingerprint`'s 16 digits: a journal may hold millions of questions."""
        question = f"{self.start}, {json.dumps(messages, sort_keys=True)}]"  # one list: identity, sampling, messages
        return hashlib.sha256(question.encode()).digest()


def _in_order(items: list[bytes], rank: int) -> list[bytes]:
    """All items; each rank begins elsewhere, and of two that begin at one place each goes the other way."""
    start, half, steps = 0.0, 0.5, rank // 2  # van der Corput: 0, 1/2, 1/4, 3/4, 1/8, ...
    while steps:
        start, half, steps = start + half * (steps % 2), half / 2, steps // 2
    first = int(start * len(items))
    items = items[first:] + items[:first]
    return items if rank % 2 == 0 else items[::-1]
