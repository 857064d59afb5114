"""Answers that many machines share: Parquet segments in a folder or an object store.

Knows files and keys, not generators. Each machine has a file beside it (its spool, see `Memory`), in which every answer
lies before anyone sees it, and from which segments are made: a killed process loses nothing on its machine, and what was
not sent is sent by the next run there. Of what others answered a process keeps the keys, 16 bytes an answer.
"""

import fcntl
import hashlib
import io
import json
import os
import re
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from midb.errors import MidbError
from midb.generators.memory import ANSWER, COLUMNS, Memory, completion_of, cut_key, serves
from midb.schema import Completion

FORMAT = 1
ANSWERS = 1000  # of one segment at most
SEND = (
    10.0  # seconds after which what is there is sent, and the segments of others are looked for; less in a young call
)
FORGET = 600  # seconds for which a sent answer stays in the spool: by then every process here has seen its segment
STALE = 24 * 3600  # seconds after which a worker that did not sign off is taken for dead
THREADS = 16
# Where one PUT puts an object whole or not at all. Anywhere else a file is written beside its place and moved there.
OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "oci", "hf", "memory"}
WORKER = re.compile(r"worker\.(\d+)\.(\d+)\.([0-9a-f]{32})")
NUMBERS = {"prompt_tokens", "completion_tokens", "created"}
# The keys stand beside the footer, as they are read without the rest.
SCHEMA = pa.schema(
    [(name, pa.int64() if name in NUMBERS else pa.string()) for name in COLUMNS if name != "key"]
).append(pa.field("key", pa.binary(32)))
UNKNOWN = np.uint64(0xFFFFFFFF)  # in place of a count of tokens


class Index:
    """Where the answer to each key lies: of each 8 bytes of the key, and the segment's number and the tokens in 8 more.

    Sorted in a few runs of falling size, so that new segments cost no sorting of the whole.
    """

    def __init__(self) -> None:
        self.runs: list[tuple[np.ndarray, np.ndarray]] = []
        self.names: list[str] = []  # by number
        self.seen: set[str] = set()
        self.bad: set[int] = set()
        self.lock = threading.Lock()

    def add(self, prefixes: np.ndarray, places: np.ndarray) -> None:
        """Add the answers of new segments."""
        runs = [*self.runs, _sorted(prefixes, places)]
        while len(runs) > 1 and len(runs[-2][0]) < 8 * len(runs[-1][0]):
            one, two = runs.pop(), runs.pop()
            runs.append(_sorted(np.concatenate([two[0], one[0]]), np.concatenate([two[1], one[1]])))
        self.runs = runs  # at once: another thread may be reading

    def candidates(self, keys: Sequence[bytes]) -> Iterator[tuple[bytes, int, int | None]]:
        """Each key that may be here, with a segment's number and the answer's tokens; some keys several times."""
        prefixes = np.frombuffer(b"".join(key[:8] for key in keys), dtype="<u8")
        for run, places in self.runs:
            left, right = run.searchsorted(prefixes), run.searchsorted(prefixes, "right")
            for number in np.flatnonzero(right > left).tolist():
                for place in places[left[number] : right[number]].tolist():
                    if place >> 32 not in self.bad:
                        tokens = place & 0xFFFFFFFF
                        yield keys[number], place >> 32, None if tokens == int(UNKNOWN) else tokens

    def locate(self, keys: Sequence[bytes], limit: int | None) -> dict[bytes, tuple[int, bytes]]:
        """Where the answer to each question lies that has one: a segment's number and the key in it; the oldest's."""
        found: dict[bytes, tuple[int, bytes]] = {}

        def note(question: bytes, segment: int, key: bytes) -> None:
            if question not in found or self.names[segment] < self.names[found[question][0]]:
                found[question] = segment, key

        for key, segment, tokens in self.candidates(keys) if self.runs else ():
            if serves(tokens, limit):
                note(key, segment, key)
        cut = {cut_key(key, limit): key for key in keys if key not in found} if self.runs else {}
        for key, segment, _ in self.candidates(list(cut)):
            note(cut[key], segment, key)
        return found


def _sorted(prefixes: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = prefixes.argsort(kind="stable")  # which is fast where two sorted runs follow each other
    return prefixes[order], places[order]


class Shared(Memory):
    """One call's view of a shared place: this machine's file, and the segments.

    Raises:
        MidbError: The place cannot be used.
        FileNotFoundError: It is missing and is not to be made.
    """

    def __init__(self, place: str, index: Index, create: bool = True) -> None:
        self.place, self.index, self.worker, self.shared_rank = place, index, "", -1
        with self.explained():
            try:
                self.files, folder = fsspec.url_to_fs(place if "://" in place else str(Path(place).expanduser()))
            except (ImportError, ValueError) as error:  # the store's own library is not here, or no library knows it
                raise MidbError(
                    f"the journal {place} cannot be used: {error}; give a folder, or a URL whose fsspec library is "
                    "installed, such as s3fs for s3://"
                ) from error
            self.folder = folder.rstrip("/")
            if create:
                self.files.makedirs(self.folder, exist_ok=True)
            elif not self.files.exists(self.folder):
                raise FileNotFoundError(place)
            name = hashlib.sha256(self.files.unstrip_protocol(self.folder).encode()).hexdigest()[:32]
            spool = _private_folder() / name
            self.refresh()
        super().__init__(spool, called=f"{place} (its file on this machine is {spool})")
        self.sent = self.looked = self.began = time.monotonic()
        self.waiting, self.sends, self.segments = 0, create, len(index.names)

    def close(self) -> None:
        """Send what is left, sign off."""
        try:
            if self.worker:
                with suppress(OSError):
                    self.files.rm_file(f"{self.folder}/{self.worker}")
            if self.sends:
                self.send(last=True)
        finally:
            super().close()

    def news(self) -> bool:
        """As in the file, of all machines."""
        return len(self.index.names) != self.segments or super().news()

    def known(self, keys: Sequence[bytes], limit: int | None) -> set[bytes]:
        """As in the file, of all machines; the store is not asked."""
        here = super().known(keys, limit)
        return here | self.index.locate([key for key in keys if key not in here], limit).keys()

    def find(self, keys: Sequence[bytes], limit: int | None) -> Iterator[tuple[bytes, Completion]]:
        """As in the file, of all machines; each segment is read once."""
        missing = dict.fromkeys(keys)
        for key, completion in super().find(keys, limit):
            del missing[key]
            yield key, completion
        while located := self.index.locate(list(missing), limit):
            segments: dict[int, dict[bytes, bytes]] = {}
            for question, (segment, key) in located.items():
                segments.setdefault(segment, {})[key] = question
            numbers = list(segments)
            with ThreadPoolExecutor(THREADS) as pool:
                for start in range(0, len(numbers), THREADS):
                    some = numbers[start : start + THREADS]
                    for number, rows in zip(some, pool.map(self._segment, some), strict=True):
                        if rows is None:
                            continue  # it is in no index any more, and the next round looks elsewhere
                        for key, question in segments[number].items():
                            del missing[question]
                            if key in rows:
                                yield question, completion_of(rows[key])

    def keep(self, key: bytes, limit: int | None, name: str, identity: str, completion: Completion) -> Completion:
        """As in the file."""
        self.waiting += 1
        return super().keep(key, limit, name, identity, completion)

    def tick(self) -> None:
        """After each answer: send what is due, look at what others have sent."""
        now = time.monotonic()
        pause = min(SEND, 0.5 + (now - self.began) / 10)
        if self.waiting >= ANSWERS or now - self.sent >= pause:
            self.send()
        if now - self.looked >= pause:
            with suppress(OSError):  # the next time, then
                self.refresh()
            self.looked = time.monotonic()

    def refresh(self) -> None:
        """Read the keys of new segments."""
        with self.index.lock:
            new = [name for name in self._names() if name.endswith(".parquet") and name not in self.index.seen]
            with ThreadPoolExecutor(THREADS) as pool:
                for start in range(0, len(new), 1000):
                    some = new[start : start + 1000]
                    prefixes, places = [], []
                    for name, found in zip(some, pool.map(self._keys, some), strict=True):
                        self.index.seen.add(name)
                        if found is not None:
                            prefixes.append(found[0])
                            places.append(found[1] | np.uint64(len(self.index.names) << 32))
                            self.index.names.append(name)
                    if prefixes:
                        self.index.add(np.concatenate(prefixes), np.concatenate(places))

    def _names(self) -> list[str]:
        self.files.invalidate_cache()  # fsspec may remember, for the whole process, a listing without what others added
        try:
            return sorted(path.rpartition("/")[2] for path in self.files.ls(self.folder, detail=False))
        except FileNotFoundError:  # an object store knows no empty folder
            return []

    def _keys(self, name: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Of each answer in a segment the start of its key and its tokens; None where it is no whole segment of ours."""
        with self._named(name):
            with self.files.open(f"{self.folder}/{name}", "rb", block_size=1 << 16) as file:
                table = _whole(file).read(columns=["key", "completion_tokens"])
            keys = np.frombuffer(b"".join(table["key"].to_pylist()), dtype="<u8")[::4].copy()
            return keys, table["completion_tokens"].fill_null(int(UNKNOWN)).to_numpy().astype(np.uint64)
        return None

    def _segment(self, number: int) -> dict[bytes, list[Any]] | None:
        """The answers of a segment; None where it is damaged, which takes it out of the index."""
        with self._named(self.index.names[number]):
            content = io.BytesIO(self.files.cat_file(f"{self.folder}/{self.index.names[number]}"))
            columns = _whole(content).read().select(["key", *ANSWER])
            return {key: answer for key, *answer in zip(*(column.to_pylist() for column in columns), strict=True)}
        self.index.bad.add(number)
        return None

    @contextmanager
    def _named(self, name: str) -> Iterator[None]:
        """Name a segment that cannot be used, and go on without it."""
        try:
            yield
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            warnings.warn(
                f"{name!r} in the journal {self.place} is no whole segment of answers ({type(error).__name__}: "
                f"{str(error)[:200]!r}); it is passed over and its answers are asked for again; move it away",
                stacklevel=2,
            )

    def send(self, last: bool = False) -> None:
        """Make segments of what this machine has answered; what cannot be sent now stays in the file."""
        self.sent, self.waiting = time.monotonic(), 0
        with self.path.with_suffix(".lock").open("wb") as turn:
            try:  # one process at a time; the lock goes with the process
                fcntl.flock(turn, fcntl.LOCK_EX if last else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            try:
                while rows := self._unsent():
                    put(
                        self.files, f"{self.folder}/{time.time_ns() // 10**6:014}-{uuid4().hex}.parquet", _segment(rows)
                    )
                    self._mark_sent([row[0] for row in rows])
            except Exception as error:  # also what a storage library raises; the answers are safe
                warnings.warn(
                    f"the journal {self.place} takes no answers now ({type(error).__name__}: {str(error)[:200]!r}); they stay "
                    f"in {self.path}, from where the next run on this machine sends them",
                    stacklevel=2,
                )

    def _unsent(self) -> list[tuple[Any, ...]]:
        with self.turn():
            select = f"SELECT {', '.join(COLUMNS)} FROM completions WHERE sent IS NULL LIMIT ?"
            return self.database.execute(select, [ANSWERS]).fetchall()

    def _mark_sent(self, keys: Sequence[bytes]) -> None:
        now = int(time.time())
        with self.turn(), self.database:
            self.database.execute("BEGIN IMMEDIATE")
            self.database.executemany("UPDATE completions SET sent = ? WHERE key = ?", [(now, key) for key in keys])
            self.database.execute("DELETE FROM completions WHERE sent < ?", [now - FORGET])

    def enlist(self, declared: str | None, identity: str) -> int:
        """As in the file, among all machines, by the names of empty files."""
        if self.worker:
            return self.shared_rank
        super().enlist(declared, identity)
        with self.explained():
            if declared is not None and f"served.{declared}.{identity}" not in self._names():
                put(self.files, f"{self.folder}/served.{declared}.{identity}", b"")
            me = uuid4().hex
            while True:
                rank = next(rank for rank, taken in enumerate([*self._workers(), None]) if taken is None)
                self.worker = f"worker.{rank}.{int(time.time())}.{me}"
                put(self.files, f"{self.folder}/{self.worker}", b"")
                if self._workers()[rank] == self.worker:
                    self.shared_rank = rank
                    return rank
                self.files.rm_file(f"{self.folder}/{self.worker}")  # another machine took it at the same moment

    def _workers(self) -> list[str | None]:
        """By rank the file of the oldest living process that has it."""
        found: dict[int, tuple[int, str]] = {}
        for name in self._names():
            if (match := WORKER.fullmatch(name)) and int(match[2]) > time.time() - STALE:
                rank = int(match[1])
                found[rank] = min(found.get(rank, (1 << 62, "")), (int(match[2]), name))
        return [found[rank][1] if rank in found else None for rank in range(max(found, default=-1) + 1)]

    def served(self, declared: str) -> set[str]:
        """As in the file, of all machines."""
        start = f"served.{declared}."
        return {name.removeprefix(start) for name in self._names() if name.startswith(start)}

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Errors of the store name the place and a way out."""
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise MidbError(
                f"the journal {self.place} cannot be used: {type(error).__name__}: {error}; give a folder or URL that can be "
                "read and written and has space"
            ) from error


def put(files: Any, path: str, content: bytes) -> None:
    """Write a file in one atomic step where there is one: no one ever reads half a file."""
    protocols = {files.protocol} if isinstance(files.protocol, str) else set(files.protocol)
    if protocols & OBJECT_STORES:
        files.pipe_file(path, content)
        return
    folder, _, name = path.rpartition("/")
    draft, local = f"{folder}/.{name}.{uuid4().hex}", "file" in protocols
    try:
        with files.open(draft, "wb") as file:
            file.write(content)
            if local:  # else a power cut may keep the name and lose the content
                file.flush()
                os.fsync(file.fileno())
        (os.replace if local else files.mv)(draft, path)
    except BaseException:
        if files.exists(draft):
            files.rm_file(draft)
        raise


def _segment(rows: list[tuple[Any, ...]]) -> bytes:
    """The file that holds rows of `COLUMNS`, and says what it is."""
    columns = dict(zip(COLUMNS, zip(*rows, strict=True), strict=True))
    says = json.dumps({"format": FORMAT, "midb": version("midb"), "answers": len(rows)})
    table = pa.table([pa.array(columns[name], SCHEMA.field(name).type) for name in SCHEMA.names], SCHEMA)
    content = io.BytesIO()
    with pq.ParquetWriter(content, SCHEMA, compression="zstd", write_page_checksum=True) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"midb": says})
    return content.getvalue()


def _whole(file: Any) -> pq.ParquetFile:
    """A segment, opened; raise where a Parquet file is none, or lacks answers."""
    parquet = pq.ParquetFile(file, page_checksum_verification=True)
    says, there = json.loads(parquet.metadata.metadata[b"midb"]), parquet.metadata.num_rows
    if (says["format"], says["answers"]) != (FORMAT, there):
        raise ValueError(
            f"it says that it holds {says['answers']} answers in format {says['format']}, and there are {there}"
        )
    if not parquet.schema_arrow.equals(SCHEMA):
        raise ValueError(f"its columns are {parquet.schema_arrow.names}")
    return parquet


def _private_folder() -> Path:
    """A folder of this user under the system's temporary one, that no other user can read or has made."""
    folder = Path(tempfile.gettempdir(), f"midb-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    stat = folder.lstat()
    if stat.st_uid != os.getuid() or stat.st_mode & 0o077 or folder.is_symlink():
        raise OSError(f"{folder} belongs to another user, or others may write to it; remove it, or set TMPDIR")
    return folder
