"""A folder in which finished row ranges lie as Parquet shards: local, shared, or an object store.

Knows files and names, not what made the rows. Any number of processes may use one folder: a shard says itself what it
holds, what belongs to another configuration or to other rows has another name, and half a shard never counts as one, as
Parquet ends with what is in it.

On a disk, sftp and the object stores a shard is there whole or not at all, and gives way to a new one in one step. Other
file systems do what fsspec's `mv` does there, often a copy: a shard may be seen half, or be gone for a moment, which costs
its rows once more; some (webhdfs, smb) rename nothing onto another file, so that rows which failed are never healed there.
"""

import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from midb.errors import MidbError

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 1
# Where one PUT puts an object whole or not at all. Anywhere else a shard is written beside its place and moved there.
OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "oci", "hf", "memory"}


@dataclass(frozen=True)
class Ledger:
    """The shards of one configuration; `Ledger.open` makes it.

    Beside the shards lies `IDENTITY.json`: for people, and for the one thing that must not change between runs.

    Args:
        files: An fsspec file system.
        folder: A path in it.
        identity: The hash of whatever makes the rows what they are.
        rows_per_shard: Shards of another size would not be found.
    """

    files: Any
    folder: str
    identity: str
    rows_per_shard: int

    @classmethod
    def open(cls, place: str | Path, identity: str, rows_per_shard: int) -> "Ledger":
        """Look at a folder, which need not be there yet; nothing is written.

        Args:
            place: A folder, or a URL that fsspec knows; keys come from the environment.
            identity: As above.
            rows_per_shard: As above.

        Raises:
            MidbError: The place cannot be read.
            ValueError: It was begun with another `rows_per_shard`.
        """
        import fsspec

        with _explained(place):
            try:
                files, folder = fsspec.url_to_fs(str(place))
            except (ImportError, ValueError) as error:  # the store's own library is not here, or nobody knows it
                raise MidbError(
                    f"the ledger {place} cannot be used: {error}; give a folder, or a URL whose fsspec library is installed, "
                    "such as s3fs for s3://"
                ) from error
            files.invalidate_cache()  # fsspec may remember, for the whole process, a listing without what others have added
            ledger = cls(files, folder.rstrip("/"), identity, rows_per_shard)
            try:
                begun = json.loads(files.cat_file(ledger._path(f"{identity}.json")))
            except FileNotFoundError:
                return ledger
        if (begun["format"], begun["rows_per_shard"]) != (FORMAT, rows_per_shard):
            raise ValueError(
                f"the ledger {place} was begun with shards of {begun['rows_per_shard']:,} rows in format {begun['format']}, and "
                f"rows_per_shard={rows_per_shard:,} in format {FORMAT} would find none of them; use the same, or another folder"
            )
        return ledger

    def begin(self, maker: str) -> None:
        """Make the folder when missing and write to it; a place that takes no shard shows here, before anything is paid for.

        Args:
            maker: What makes the rows, for people.

        Raises:
            MidbError: The place cannot be made or written.
        """
        about = {"format": FORMAT, "midb": version("midb"), "maker": maker, "rows_per_shard": self.rows_per_shard}
        with _explained(self.folder):
            self.files.makedirs(self.folder, exist_ok=True)
            self._put(f"{self.identity}.json", json.dumps(about).encode())

    def holds_only_others(self) -> bool:
        """Whether shards lie here, and this configuration has never begun any."""
        if self.files.exists(self._path(f"{self.identity}.json")):
            return False
        try:
            names = self.files.ls(self.folder, detail=False)
        except OSError:  # nothing is there, or it may not be listed, which nothing else needs
            return False
        self.files.invalidate_cache()  # as in `open`
        return any(name.endswith(".parquet") for name in names)

    def name(self, start: int, rows: int, digest: str) -> str:
        """What the shard of a range is called: names sort in row order."""
        return f"{start:012}-{start + rows:012}.{self.identity}.{digest}.parquet"

    def find(self, name: str) -> tuple[dict[str, Any], "pa.Schema"] | None:
        """What a shard says of itself, and its columns; None where it is not there, or was cut off by another hand.

        Raises:
            MidbError: It is refused.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        with _explained(self.folder):
            try:
                with self.files.open(self._path(name), "rb") as file:
                    schema = pq.read_schema(file)
            except (FileNotFoundError, pa.ArrowInvalid):
                return None
        return json.loads(schema.metadata[b"midb"]), schema.remove_metadata()

    def read(self, name: str) -> tuple[dict[str, Any], "pa.Table"] | None:
        """What a shard says of itself, and its rows; None as with `find`.

        Raises:
            MidbError: It is refused.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        with _explained(self.folder):
            try:
                table = pq.read_table(io.BytesIO(self.files.cat_file(self._path(name))))
            except (FileNotFoundError, pa.ArrowInvalid):
                return None
        return json.loads(table.schema.metadata[b"midb"]), table.replace_schema_metadata()

    def write(self, name: str, table: "pa.Table", about: Mapping[str, Any]) -> dict[str, Any]:
        """Put a shard, and what it says of itself, into its place; one of the same name gives way. Return what it says.

        Raises:
            MidbError: The place cannot be written.
        """
        import pyarrow.parquet as pq

        says = {"format": FORMAT, "midb": version("midb"), "made": uuid4().hex, **about}
        content = io.BytesIO()
        pq.write_table(table.replace_schema_metadata({"midb": json.dumps(says)}), content, compression="zstd")
        with _explained(self.folder):
            self._put(name, content.getvalue())
        return says

    def url(self, name: str) -> str:
        """Where a shard lies, for `datasets`, which takes a path for a pattern."""
        import glob

        return str(self.files.unstrip_protocol(glob.escape(self._path(name))))

    def _put(self, name: str, content: bytes) -> None:
        """In one atomic step where there is one: nobody ever sees half a file, and of two writers one wins whole."""
        protocols = {self.files.protocol} if isinstance(self.files.protocol, str) else set(self.files.protocol)
        if protocols & OBJECT_STORES:
            self.files.pipe_file(self._path(name), content)
            return
        draft, local = self._path(f".{name}.{uuid4().hex}"), "file" in protocols
        try:
            with self.files.open(draft, "wb") as file:
                file.write(content)
                if local:  # else a power cut may keep the name and lose the rows
                    file.flush()
                    os.fsync(file.fileno())
            (os.replace if local else self.files.mv)(draft, self._path(name))
        except BaseException:
            if self.files.exists(draft):
                self.files.rm_file(draft)
            raise

    def _path(self, name: str) -> str:
        return f"{self.folder}/{name}"


@contextmanager
def _explained(place: object) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MidbError(
            f"the ledger {place} cannot be used: {type(error).__name__}: {error}; give a folder or URL that can be "
            "read and written and has space; finished shards stay, and the same call goes on from them"
        ) from error
