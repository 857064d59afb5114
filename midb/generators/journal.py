"""A generator's memory: every answer is on disk before anyone sees it, so that a rerun asks only for what is missing.

Knows generators and SQLite, not what the chats are about. The file holds answers under a hash of their question; the
questions, which are several times larger and are in the dataset anyway, are not kept.
"""

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from midb.errors import MidbError
from midb.generators.base import FieldsOnly, Generator, Sampling, collect, settings_of, stream
from midb.schema import Completion, Message

APPLICATION_ID = int.from_bytes(b"midb")  # SQLite's own place to say whose file it is
VERSION = 1
BUSY = 60  # seconds to wait for another process
LOOKUP = 500  # questions a SELECT looks up at once
TABLE = """
CREATE TABLE completions (
    key BLOB PRIMARY KEY, name TEXT NOT NULL, identity TEXT NOT NULL, created INTEGER NOT NULL,
    text TEXT NOT NULL, finish_reason TEXT NOT NULL, prompt_tokens INTEGER, completion_tokens INTEGER, logprobs TEXT
)
"""
ANSWER = "text, finish_reason, prompt_tokens, completion_tokens, logprobs"


@dataclass(frozen=True)
class Journal(FieldsOnly):
    """A generator around a generator: what it answered once is not asked again, not even after a `kill -9`.

    An answer is found again by its messages, the generator's `identity()` and the sampling. The same question twice in
    one call is asked once, and both places get the answer; for several draws of one prompt set `Sampling.index`.
    Failures are handed on and not kept: a rerun asks again.

    Processes of one machine may share the file. SQLite does not live on network file systems: one file per machine.

    Args:
        generator: Whom to ask.
        path: The file; it and its folder are made when missing.
    """

    generator: Generator
    path: str | Path

    @property
    def name(self) -> str:
        """Who made the text: the inner generator, the journal only remembers."""
        return self.generator.name

    def identity(self) -> str:
        """The inner generator's: remembering changes no answer."""
        return self.generator.identity()

    def settings(self) -> dict[str, Any]:
        """The inner generator's."""
        return settings_of(self.generator)

    def generate(self, prompts: Sequence[list[Message]], sampling: Sampling | None = None) -> list[Completion]:
        """Answer every prompt, from the file where it can.

        Raises:
            MidbError: The file cannot be used; nothing was asked.
            GenerationError: The inner generator gave up; what it answered before is kept.
        """
        return collect(self.stream(prompts, sampling), len(prompts))

    def stream(
        self, prompts: Iterable[list[Message]], sampling: Sampling | None = None
    ) -> Iterator[tuple[int, Completion]]:
        """First what is known, then what is asked as it finishes, each on disk before it is yielded."""
        identity = self.identity()
        sampling = sampling or getattr(self.generator, "sampling", None)
        positions: dict[bytes, list[int]] = {}
        asked_how = json.dumps([identity, None if sampling is None else asdict(sampling)], sort_keys=True)
        prompts = list(prompts)
        for position, messages in enumerate(prompts):
            positions.setdefault(_key(messages, asked_how), []).append(position)
        # A connection per call and not per process: nothing to share between threads, to lose in a fork or to close.
        with closing(self._open()) as database:
            keys = list(positions)
            for start in range(0, len(keys), LOOKUP):
                with self._explained():
                    found = _look_up(database, keys[start : start + LOOKUP])
                for key, completion in found:
                    for position in positions.pop(key):
                        yield position, completion
            missing = list(positions)
            questions = [prompts[positions[key][0]] for key in missing]
            for number, completion in stream(self.generator, questions, sampling) if questions else ():
                if completion.error is None:
                    with self._explained():
                        completion = _store(database, missing[number], self.name, identity, completion)
                for position in positions[missing[number]]:
                    yield position, completion

    def _open(self) -> sqlite3.Connection:
        """Connect to the file, made when missing; every way in which it is unusable shows here, before a request."""
        with self._explained():
            path = Path(self.path).expanduser()
            path.parent.mkdir(parents=True, exist_ok=True)
            # Autocommit: one small transaction per answer. An iterator may be closed in another thread than it ran in.
            database = sqlite3.connect(path, timeout=BUSY, isolation_level=None, check_same_thread=False)
            try:
                _prepare(database)
            except BaseException:
                database.close()
                raise
        return database

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what SQLite or the file system says into an error that names the file and a way out."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise MidbError(
                f"the journal {self.path} cannot be used: {error}; give a path on a local disk that has space and can be "
                "written, and move a file away that is no journal"
            ) from error


def _prepare(database: sqlite3.Connection) -> None:
    """Make the table in a new file; refuse a file that is not ours."""
    # NORMAL loses nothing when a process dies; only when the machine does may the last answers be asked again.
    database.execute("PRAGMA synchronous=NORMAL")
    mode = _wal(database)
    if mode != "wal":
        raise OSError(f"this file system has no shared memory for SQLite (journal mode {mode!r})")
    database.execute("BEGIN IMMEDIATE")  # one process makes the table, and a file that is read-only is found out now
    [application] = database.execute("PRAGMA application_id").fetchone()
    [version] = database.execute("PRAGMA user_version").fetchone()
    [tables] = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if not tables:
        database.execute(TABLE)
        database.execute(f"PRAGMA application_id={APPLICATION_ID}")
        database.execute(f"PRAGMA user_version={VERSION}")
    elif application != APPLICATION_ID:
        raise OSError("it is an SQLite database of something else")
    elif version != VERSION:
        raise OSError(f"its format is {version} and this midb writes {VERSION}, so another release made it")
    database.execute("COMMIT")


def _wal(database: sqlite3.Connection) -> str:
    """Switch to a write-ahead log, the one thing at which SQLite may refuse at once instead of waiting for another."""
    deadline = time.monotonic() + BUSY
    while True:
        try:
            return str(database.execute("PRAGMA journal_mode=WAL").fetchone()[0])
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _look_up(database: sqlite3.Connection, keys: list[bytes]) -> list[tuple[bytes, Completion]]:
    places = ",".join("?" * len(keys))
    rows = database.execute(f"SELECT key, {ANSWER} FROM completions WHERE key IN ({places})", keys).fetchall()
    return [
        (
            key,
            Completion(
                text,
                reason,
                asked,
                answered,
                logprobs=None if logprobs is None else json.loads(logprobs),
                remembered=True,
            ),
        )
        for key, text, reason, asked, answered, logprobs in rows
    ]


def _store(database: sqlite3.Connection, key: bytes, name: str, identity: str, completion: Completion) -> Completion:
    """Keep an answer; return the one that is kept, as another process may have asked the same question meanwhile."""
    logprobs = None if completion.logprobs is None else json.dumps(completion.logprobs)
    answer = completion.text, completion.finish_reason, completion.prompt_tokens, completion.completion_tokens, logprobs
    added = database.execute(
        f"INSERT OR IGNORE INTO completions (key, name, identity, created, {ANSWER}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (key, name, identity, int(time.time()), *answer),
    )
    return completion if added.rowcount else _look_up(database, [key])[0][1]


def _key(messages: list[Message], asked_how: str) -> bytes:
    """A whole SHA-256, not `fingerprint`'s 16 digits: a journal may hold millions of questions."""
    question = f"{asked_how[:-1]}, {json.dumps(messages, sort_keys=True)}]"  # one list: identity, sampling, messages
    return hashlib.sha256(question.encode()).digest()
