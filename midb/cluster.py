"""More rows than one run, one GPU or one disk holds: any batch function over row ranges, each kept as a Parquet shard.

Knows batch functions by what they return and their `identity()`, not what they do. One process, the driver, reads the
rows and writes the ledger; workers, which may stand on any machine, only turn one batch into another. So a ledger may be
a local folder also for a cluster that shares no disk, and a lost worker leaves nothing behind.
"""

import hashlib
import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast, runtime_checkable

from midb.actors import Step, Workers, on_actors
from midb.errors import ColumnError, MidbError, require_extra
from midb.ledger import Ledger
from midb.progress import RowBar, say
from midb.schema import AnyDataset, Batch, in_format_of, without_format

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_PER_SHARD = 4096


@runtime_checkable
class DeclaringStep(Step, Protocol):
    """A batch function that also says the types of its columns, so that a shard where all are null has them too."""

    def adds(self) -> Mapping[str, Any]:
        """Each column that a call returns, and its `datasets` feature."""


def map_on_cluster(
    dataset: AnyDataset,
    step: Step,
    ledger: str | Path,
    *,
    workers: int | Workers | None = None,
    rows_per_shard: int = ROWS_PER_SHARD,
    shard: tuple[int, int] = (0, 1),
    retry_failed: bool = False,
) -> AnyDataset:
    """Run a batch function over many rows, GPUs and machines so that whatever dies costs only what was in flight.

    Reads: whatever the step reads; for a `Booster` convert first: `as_pairs(ds)`.  Adds: what the step returns.  Rows:
    n → n, same order; other columns untouched. A dataset comes back memory-mapped from a copy of the shards in Arrow, which
    lies in the cache of `datasets` and is larger than they; a stream as a stream over the shards, which copies nothing; a
    `DatasetDict` as one, with a folder in the ledger and workers of its own for each split, one split after the other.

    The same call again does only what is missing: a shard's name holds its range, `step.identity()` and a hash of its rows,
    so that another configuration or other rows never meet old shards, and rows added at the end cost only themselves.
    All rows are read for that, a stream from its beginning; no call is made.

    Args:
        dataset: A stream may be larger than memory and disk; it must give the same rows in the same order each time.
        step: Is pickled once for each worker, without its engine. A `Journal` in it is a file on each worker's machine.
        ledger: A folder, or a URL that fsspec knows, such as `s3://bucket/run`; keys come from the environment.
        workers: None works in this process, without Ray. A number is so many Ray actors of one CPU core; `Workers` says
            more. Ray is taken as it was initialized, else the cluster that `RAY_ADDRESS` names, else this machine alone.
        rows_per_shard: Rows that are lost, and done again, when their worker dies. Several times what an engine has in
            hand at once, as each shard ends with its slowest row, and few enough for each worker to get several.
        shard: `(i, n)` does every n-th range beginning with the i-th, counted from 0: job i of a Slurm array of n. What
            comes back is these rows; the same call without it does what is missing and gives all.
        retry_failed: Ask again for the rows that failed: those where a column that the step returned, with `status`
            anywhere in its name, says `failed`.

    Raises:
        ColumnError: The step cannot read the rows; from its first batch of each split. `booster.preview(split, 0)` looks
            before.
        GenerationError: The engine is dead, on a cluster that of several workers in turn. Finished shards stay.
        MidbError: The cluster has no room for the workers, or the ledger cannot be used.
        MissingExtraError: Ray is not installed.
    """
    pool = Workers(workers) if isinstance(workers, int) else workers
    if pool is not None:
        require_extra("ray", "ray")
    if isinstance(dataset, dict):
        for split in dataset.values():  # a later one's fault is told before an earlier one is paid for
            _check(split, step, rows_per_shard, shard)
        how: dict[str, Any] = {"workers": pool, "rows_per_shard": rows_per_shard, "shard": shard}
        each = {
            name: map_on_cluster(split, step, f"{ledger}/{name}", retry_failed=retry_failed, **how)
            for name, split in dataset.items()
        }
        return cast(AnyDataset, type(dataset)(each))
    _check(dataset, step, rows_per_shard, shard)
    source = without_format(dataset)
    name = type(step).__name__
    shards = _opened(ledger, step, rows_per_shard)
    with RowBar(_row_count(source, rows_per_shard, shard), name.lower()) as bar:
        run = _Run(shards, step, source.features, retry_failed, bar)
        works = _begun(shards, name, run.missing(_ranges(source, rows_per_shard, shard)))
        results = _here(step, works) if pool is None else on_actors(step, shards.identity, works, pool)
        with closing(results):
            for work, batch in results:
                run.keep(work, batch)
    say(run.summary())
    return in_format_of(dataset, run.collected(dataset))


def rows_to_do(
    dataset: AnyDataset,
    step: Step,
    ledger: str | Path,
    *,
    rows_per_shard: int = ROWS_PER_SHARD,
    shard: tuple[int, int] = (0, 1),
    retry_failed: bool = False,
) -> dict[str, int]:
    """How many rows of each shard the same call of `map_on_cluster` would give to the step: 0 for one that is done.

    Reads all rows, calls nothing and writes nothing.

    Raises:
        MidbError: The ledger cannot be read.
    """
    if isinstance(dataset, dict):
        how: dict[str, Any] = {"rows_per_shard": rows_per_shard, "shard": shard, "retry_failed": retry_failed}
        return {
            f"{split}/{name}": count
            for split, rows in dataset.items()
            for name, count in rows_to_do(rows, step, f"{ledger}/{split}", **how).items()
        }
    _check(dataset, step, rows_per_shard, shard)
    source = without_format(dataset)
    shards = _opened(ledger, step, rows_per_shard)
    with RowBar(0, "look") as bar:
        run = _Run(shards, step, source.features, retry_failed, bar)
        missing = {work.name: len(work.rows) for work in run.missing(_ranges(source, rows_per_shard, shard))}
    return dict.fromkeys(run.names, 0) | missing


def _check(dataset: Any, step: Any, rows_per_shard: int, shard: tuple[int, int]) -> None:
    """Refuse what cannot be, before a folder is made."""
    from datasets import Dataset, IterableDataset

    if rows_per_shard < 1 or not 0 <= shard[0] < shard[1]:
        raise ValueError(
            f"rows_per_shard={rows_per_shard}, shard={shard} cannot be; use rows_per_shard >= 1, and shard=(i, n) with i from 0 to n - 1"
        )
    if not isinstance(step, Step):
        raise TypeError(f"{step!r:.80} has no identity(); give a batch function that has, such as a Booster or a Judge")
    if not isinstance(dataset, Dataset | IterableDataset):
        raise TypeError(f"a {type(dataset).__name__} is no dataset; make it one first, e.g. Dataset.from_pandas(frame)")


def _opened(place: str | Path, step: Step, rows_per_shard: int) -> Ledger:
    """The step's ledger; said where it would begin anew beside others, as when this machine takes another engine."""
    ledger = Ledger.open(place, step.identity(), rows_per_shard)
    if ledger.holds_only_others():
        say(
            f"the ledger {place} holds rows of other configurations and none of this one; the same model, prompt, engine, "
            "precision and midb as theirs would find them"
        )
    return ledger


class _Work(NamedTuple):
    """A row range that has to be done, or those of its rows that failed before."""

    start: int
    name: str
    table: "pa.Table"  # all rows of the range
    rows: list[int]  # which of them to do
    batch: Batch  # those


def _ranges(source: Any, size: int, shard: tuple[int, int]) -> Iterator[tuple[int, "pa.Table"]]:
    """The rows, so many at a time, each time with the number of the first."""
    from datasets import Dataset

    index, count = shard
    arrow = source.with_format("arrow")
    if isinstance(arrow, Dataset):
        for start in range(index * size, len(arrow), count * size):
            yield start, arrow[start : start + size]
    else:
        for number, table in enumerate(arrow.iter(batch_size=size)):
            if number % count == index:
                yield number * size, table


def _row_count(source: Any, size: int, shard: tuple[int, int]) -> int:
    """How many rows `_ranges` gives; 0 where nobody knows."""
    from datasets import Dataset

    index, count = shard
    if not isinstance(source, Dataset):
        return 0
    return sum(
        len(range(len(source))[start : start + size]) for start in range(index * size, len(source), count * size)
    )


@dataclass
class _Run:
    """One call: which shards there are so far in row order, what columns they have, and how many rows failed."""

    ledger: Ledger
    step: Step
    features: Any  # of the source; None for a stream that does not say
    retry: bool
    bar: RowBar
    names: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)  # a shard's name → which writing of it this is
    schema: Any = None
    returned: set[str] = field(default_factory=set)
    rows: int = 0
    made: int = 0
    failed: int = 0

    def __post_init__(self) -> None:
        self.declared = dict(self.step.adds()) if isinstance(self.step, DeclaringStep) else {}

    def missing(self, ranges: Iterator[tuple[int, "pa.Table"]]) -> Iterator[_Work]:
        """Go through all ranges in order; what has its shard is counted, the rest is work."""
        for start, table in ranges:
            batch = table.to_pydict()
            name = self.ledger.name(start, table.num_rows, self._digest(table, batch))
            self.names.append(name)
            found = self.ledger.find(name)
            if found is None:
                yield _Work(start, name, table, list(range(table.num_rows)), batch)
            elif found[0]["failed"] and self.retry:
                rows = found[0]["failed"]
                asked = {column: [values[row] for row in rows] for column, values in batch.items()}
                yield _Work(start, name, table, rows, asked)
            else:
                self._agree(start, found[1])
                self._count(name, found[0], table.num_rows)

    def keep(self, work: _Work, result: Batch) -> None:
        """Put what the step made of a range into the ledger. What others put there since stays, but for failures."""
        import pyarrow as pa

        table = self._joined(work, result)
        failed = {work.rows[row] for row in _failed(result, len(work.rows))}
        there = self.ledger.read(work.name)  # not as it was when this process looked for work, which may be hours ago
        if there is not None:
            about, old = there
            still = set(about["failed"])
            places = list(range(old.num_rows))
            for new, row in enumerate(work.rows):
                if row in still:
                    places[row] = old.num_rows + new
            table = pa.concat_tables([old, table], promote_options="permissive").take(places)
            failed = (still - set(work.rows)) | (still & failed)
        elif len(work.rows) < work.table.num_rows:
            raise MidbError(
                f"rows {work.start:,} and on: their shard {work.name} went away while those that had failed were asked again; "
                "the same call makes it anew"
            )
        self._agree(work.start, table.schema)
        about = self.ledger.write(work.name, table, {"failed": sorted(failed), "returned": sorted(result)})
        self.made += 1
        self._count(work.name, about, table.num_rows, _tokens(result))

    def summary(self) -> str:
        """One line for people."""
        text = f"{self.rows:,} rows in {len(self.names):,} shards, {self.made:,} of them made now; {self.failed:,} rows failed"
        return text + ("; retry_failed=True asks for those alone" if self.failed and not self.retry else "")

    def collected(self, dataset: Any) -> Any:
        """The rows of all shards, in order."""
        from datasets import Dataset, Features, IterableDataset, config

        whole = isinstance(dataset, Dataset)
        if not self.names:
            features = Features({**(self.features or {}), **self.declared})
            empty = Dataset.from_dict({name: [] for name in features}, features=features, split=dataset.split)
            return empty if whole else empty.to_iterable_dataset()
        # What the source or the step says of a column counts; the rest is what the shards agree on.
        said = {name: kind for name, kind in (self.features or {}).items() if name not in self.returned} | self.declared
        features = Features(
            {name: said.get(name, kind) for name, kind in Features.from_arrow_schema(self.schema).items()}
        )
        urls = [self.ledger.url(name) for name in self.names]
        if not whole:
            return IterableDataset.from_parquet(urls, features=features)
        # `datasets` keeps what it read by its place and would go on giving rows that have been healed since.
        read = hashlib.sha256(json.dumps([[name, self.versions[name]] for name in self.names]).encode()).hexdigest()[
            :16
        ]
        rows = Dataset.from_parquet(urls, features=features, cache_dir=f"{config.HF_DATASETS_CACHE}/ledger/{read}")
        return Dataset(rows.data, info=rows.info, split=dataset.split)

    def _digest(self, table: "pa.Table", batch: Batch) -> str:
        """A hash of the rows and their types, the same however a dataset lies in memory, files or caches."""
        kinds = self.features.to_dict() if self.features else {each.name: str(each.type) for each in table.schema}
        return hashlib.sha256(json.dumps([kinds, batch], default=repr).encode()).hexdigest()[:16]

    def _joined(self, work: _Work, result: Batch) -> "pa.Table":
        """The rows' own columns and those of the step."""
        import pyarrow as pa
        from datasets import Features

        for name, values in result.items():
            if len(values) != len(work.rows):
                raise MidbError(
                    f"{type(self.step).__name__} returned {len(values)} rows in {name!r} for {len(work.rows)}; a batch function must "
                    "return each row, in order"
                )
        kinds = Features(self.declared).arrow_schema
        columns = dict(zip(work.table.column_names, work.table.take(work.rows).columns, strict=True))
        for name, values in result.items():
            try:
                columns[name] = pa.array(values, type=kinds.field(name).type if name in self.declared else None)
            except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                raise ColumnError(
                    f"rows {work.start:,} and on: {type(self.step).__name__} returned values in {name!r} that are not of one type "
                    f"({error}); make them one"
                ) from error
        return pa.table(columns)

    def _agree(self, start: int, schema: "pa.Schema") -> None:
        """Refuse a shard that could not stand in one dataset with those before."""
        import pyarrow as pa

        try:
            self.schema = schema if self.schema is None else pa.unify_schemas(
                [self.schema, schema], promote_options="permissive"
            )  # fmt: skip
        except pa.ArrowTypeError as error:
            raise ColumnError(
                f"rows {start:,} and on have other types than those before ({error}); cast the dataset, or let "
                f"{type(self.step).__name__} say its types with adds()"
            ) from error

    def _count(self, name: str, about: Mapping[str, Any], rows: int, tokens: int = 0) -> None:
        self.versions[name] = about["made"]
        self.rows += rows
        self.failed += len(about["failed"])
        self.returned.update(about["returned"])
        self.bar.count(tokens, len(about["failed"]), rows)


def _failed(result: Batch, rows: int) -> list[int]:
    """Rows to which no answer came: any status says so."""
    statuses = [values for name, values in result.items() if "status" in name]
    return [row for row in range(rows) if any(values[row] == "failed" for values in statuses)]


def _tokens(result: Batch) -> int:
    """Tokens written, where the step counts them."""
    return sum(each or 0 for name, values in result.items() if name.endswith("completion_tokens") for each in values)


def _begun(ledger: Ledger, maker: str, works: Iterator[_Work]) -> Iterator[_Work]:
    """The same work, and before the first of it a ledger that can be written; one that is whole need not be."""
    for number, work in enumerate(works):
        if number == 0:
            ledger.begin(maker)
        yield work


def _here(step: Step, works: Iterator[_Work]) -> Generator[tuple[_Work, Batch]]:
    """Work in this process, one range after the other."""
    for work in works:
        yield work, step(work.batch)
