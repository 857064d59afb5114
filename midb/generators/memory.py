"""Answers under a hash of their question, in an SQLite file that the processes of one machine share.

Knows SQLite and completions; not generators, and not what the chats are about. The questions, which are several times
larger and are in the dataset anyway, are not stored.
"""

import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from midb.errors import MidbError
from midb.schema import Completion

APPLICATION_ID = int.from_bytes(b"midb")  # SQLite's own place to say whose file it is
VERSION = 2
BUSY = 60  # seconds to wait for another process
LOOKUP = 500  # questions that one SELECT looks up
TABLES = """
CREATE TABLE completions (
    key BLOB PRIMARY KEY, name TEXT NOT NULL, identity TEXT NOT NULL, created INTEGER NOT NULL,
    text TEXT NOT NULL, finish_reason TEXT NOT NULL, prompt_tokens INTEGER, completion_tokens INTEGER, logprobs TEXT,
    sent INTEGER
);
CREATE TABLE served (declared TEXT, identity TEXT, PRIMARY KEY (declared, identity)) WITHOUT ROWID;
CREATE TABLE workers (rank INTEGER PRIMARY KEY, pid INTEGER NOT NULL);
CREATE TABLE claims (key BLOB PRIMARY KEY, rank INTEGER NOT NULL) WITHOUT ROWID;
"""
ANSWER = ("text", "finish_reason", "prompt_tokens", "completion_tokens", "logprobs")
COLUMNS = ("key", *ANSWER, "name", "identity", "created")
INSERT = f"INSERT OR IGNORE INTO completions ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"


def cut_key(key: bytes, limit: int | None) -> bytes:
    """The second key of a question: of an answer that did not end by itself and so depends on `max_tokens`."""
    return hashlib.sha256(key + str(limit).encode()).digest()


def serves(tokens: int | None, limit: int | None) -> bool:
    """Whether an answer that ended by itself after so many tokens is also the answer under another `max_tokens`."""
    return tokens is None or limit is None or tokens <= limit


def completion_of(answer: Sequence[Any]) -> Completion:
    """The completion that the values of `ANSWER` stand for."""
    text, reason, asked, said, logprobs = answer
    logprobs = None if logprobs is None else json.loads(logprobs)
    return Completion(text, reason, asked, said, logprobs=logprobs, remembered=True)


class Memory:
    """The file, for one call; the thread that pulls prompts may use it beside the one that stores answers.

    Processes that ask at the same time each claim a prompt before they ask it. Claims of a process that died are void.

    Args:
        path: The file.
        create: Make it and its folder where it is missing.
        called: What errors call it.

    Raises:
        MidbError: The file cannot be used, or is no journal of this format.
        FileNotFoundError: It is missing and is not to be made.
    """

    def __init__(self, path: Path, create: bool = True, called: str = "") -> None:
        self.path, self.called = path, called or str(path)
        self.lock, self.closed, self.rank = threading.RLock(), False, -1
        with self.turn():
            if create:
                path.parent.mkdir(parents=True, exist_ok=True)
            elif not path.exists():
                raise FileNotFoundError(path)
            # Autocommit: one small transaction per answer. An iterator may be closed in another thread than it ran in.
            self.database = sqlite3.connect(path, timeout=BUSY, isolation_level=None, check_same_thread=False)
            try:
                _prepare(self.database)
            except BaseException:
                self.database.close()
                raise
            self.version = self._version()

    def _version(self) -> int:
        """A number that changes when another connection writes, and not when this one does."""
        return int(self.database.execute("PRAGMA data_version").fetchone()[0])

    def news(self) -> bool:
        """Whether anyone else has written since this call began: if not, what was not found is not there."""
        with self.turn():
            return not self.closed and self._version() != self.version

    def close(self) -> None:
        """Take back what `enlist` and `claim` noted, and close the connection: not while another thread reads from it."""
        with self.turn():
            self.closed = True
            with closing(self.database):
                for table in ("claims", "workers") if self.rank >= 0 else ():
                    self.database.execute(f"DELETE FROM {table} WHERE rank = ?", [self.rank])

    @contextmanager
    def turn(self) -> Iterator[None]:
        """One thread at a time; errors of SQLite and the file system name the file and a way out."""
        try:
            with self.lock:
                yield
        except FileNotFoundError:
            raise
        except (sqlite3.Error, OSError) as error:
            raise MidbError(
                f"the journal {self.called} cannot be used: {error}; give a path on a local disk that has space and can be "
                "written, and move a file away that is no journal"
            ) from error

    def known(self, keys: Sequence[bytes], limit: int | None) -> set[bytes]:
        """Which questions have an answer."""
        with self.turn():
            ended = {key for key, said in self._select(["completion_tokens"], keys) if serves(said, limit)}
            cut = {cut_key(key, limit): key for key in keys if key not in ended}
            return ended | {cut[key] for key, *_ in self._select([], list(cut))}

    def find(self, keys: Sequence[bytes], limit: int | None) -> Iterator[tuple[bytes, Completion]]:
        """Each question that has an answer, with its answer."""
        for start in range(0, len(keys), LOOKUP):
            missing = dict.fromkeys(keys[start : start + LOOKUP])
            with self.turn():
                found = [each for each in self._read(list(missing)) if serves(each[1].completion_tokens, limit)]
                for key, _ in found:
                    del missing[key]
                cut = {cut_key(key, limit): key for key in missing}
                found += [(cut[key], completion) for key, completion in self._read(list(cut))]
            yield from found

    def keep(self, key: bytes, limit: int | None, name: str, identity: str, completion: Completion) -> Completion:
        """Store an answer; return the one that is stored, as another process may have answered meanwhile."""
        logprobs = None if completion.logprobs is None else json.dumps(completion.logprobs)
        row = [getattr(completion, column) for column in ANSWER[:-1]] + [logprobs, name, identity, int(time.time())]
        with self.turn(), self.database:
            self.database.execute("BEGIN IMMEDIATE")
            self.database.execute("DELETE FROM claims WHERE key = ?", [key])
            # An engine may count more tokens than it was allowed: such an answer serves this `max_tokens` alone.
            ended = completion.finish_reason == "stop" and serves(completion.completion_tokens, limit)
            for own in (*([key] if ended else ()), cut_key(key, limit)):
                if self.database.execute(INSERT, [own, *row]).rowcount:
                    break
                [(_, stored)] = self._read([own])
                if own != key or serves(stored.completion_tokens, limit):
                    return stored
        return completion

    def enlist(self, declared: str | None, identity: str) -> int:
        """Note, once a call, that this process asks now, and whom; return the smallest rank that no other has."""
        with self.turn(), self.database:
            if self.rank < 0:
                self.database.execute("BEGIN IMMEDIATE")
                taken = dict(self.database.execute("SELECT rank, pid FROM workers"))
                self.rank = next(rank for rank in range(len(taken) + 1) if not _lives(taken.get(rank)))
                self.database.execute("INSERT OR REPLACE INTO workers VALUES (?, ?)", [self.rank, os.getpid()])
                self.database.execute("DELETE FROM claims WHERE rank = ?", [self.rank])
                if declared is not None:
                    self.database.execute("INSERT OR IGNORE INTO served VALUES (?, ?)", [declared, identity])
        return self.rank

    def claim(self, key: bytes) -> bool:
        """Whether this call is to ask: False where another process that lives does so now."""
        with self.turn():
            if self.closed:
                return False
            if self.database.execute("INSERT OR IGNORE INTO claims VALUES (?, ?)", [key, self.rank]).rowcount:
                return True
            owner = "SELECT pid FROM claims JOIN workers USING (rank) WHERE key = ?"
            [pid] = self.database.execute(owner, [key]).fetchone() or [None]
            return pid == os.getpid() or not _lives(pid)  # the same process might wait for itself

    def release(self, key: bytes) -> None:
        """Give a claim back, as there is no answer to store."""
        with self.turn():
            self.database.execute("DELETE FROM claims WHERE key = ?", [key])

    def served(self, declared: str) -> set[str]:
        """The identities that a server of this declaration had."""
        with self.turn():
            rows = self.database.execute("SELECT identity FROM served WHERE declared = ?", [declared])
            return {identity for (identity,) in rows}

    def tick(self) -> None:
        """Called after each answer; a file has nothing to send."""

    def _read(self, keys: Sequence[bytes]) -> list[tuple[bytes, Completion]]:
        return [(key, completion_of(answer)) for key, *answer in self._select(ANSWER, keys)]

    def _select(self, columns: Sequence[str], keys: Sequence[bytes]) -> list[Any]:
        found: list[Any] = []
        for start in range(0, len(keys), LOOKUP):
            some = keys[start : start + LOOKUP]
            where = f"WHERE key IN ({','.join('?' * len(some))})"
            found += self.database.execute(f"SELECT {', '.join(['key', *columns])} FROM completions {where}", some)
        return found


def _prepare(database: sqlite3.Connection) -> None:
    """Make the tables in a new file; refuse a file that is not ours."""
    # NORMAL loses nothing when a process dies; only when the machine does may the last answers be asked again.
    database.execute("PRAGMA synchronous=NORMAL")
    mode = _wal(database)
    if mode != "wal":
        raise OSError(f"this file system has no shared memory for SQLite (journal mode {mode!r})")
    database.execute("BEGIN IMMEDIATE")  # one process makes the tables, and a file that is read-only is found out now
    [application] = database.execute("PRAGMA application_id").fetchone()
    [version] = database.execute("PRAGMA user_version").fetchone()
    [tables] = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if not tables:
        for table in TABLES.split(";"):
            database.execute(table)
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


def _lives(pid: int | None) -> bool:
    if pid is None:
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except ProcessLookupError:
        return False
    return True
