"""Reads a dataset from a file, a folder or the Hub, and writes one, without changing a value.

Knows places and formats, not what the rows mean. JSON and csv are read as the text they are: no date becomes a
timestamp, no "NA" a null, no "007" a 7. Every write is whole or not there at all, also after a kill.
"""

import csv
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import date, datetime, time
from itertools import chain, islice
from pathlib import Path
from typing import Any

from midb.errors import ColumnError

FILES = (".json", ".jsonl", ".ndjson", ".csv", ".parquet")
HUB = "hf://datasets/"
WHOLE = "_SUCCESS"  # in a folder of Parquet pieces: the run came to its end, and these are its splits; Spark's name
_BATCH = 1000
# Arrow types whose values JSON holds, or of which ISO 8601 text says all: a time zone's name it does not.
_TEXT = re.compile(
    r"null|bool|u?int\d+|halffloat|float|double|(large_)?string(_view)?|date\d+\[\w+\]|time(\d+|stamp)\[\w+\]"
)


def read_dataset(source: str, config: str | None = None, split: str | None = None, *, stream: bool = False) -> Any:
    """Read a `Dataset`, or a `DatasetDict` where there are several splits and `split` names none.

    Args:
        source: A json, jsonl, csv or parquet file, a folder, or a Hub dataset (`owner/name`).
        config: Configuration of a Hub dataset.
        split: What to take, as `load_dataset` writes it: `test`, `train[:20]`, `train[10%:20%]`, `train[:5]+test`. A
            file is the split `train`.
        stream: Read an `IterableDataset` (or `IterableDatasetDict`) with the same values, for data larger than memory.

    Raises:
        ColumnError: The file is broken, holds no rows, or has no such split or configuration.
        FileNotFoundError: There is no such place.
    """
    try:
        dataset = _load(source, config, stream)
    except UnicodeDecodeError as error:
        raise ColumnError(f"{source} is not UTF-8 ({error}); convert it first, e.g. with iconv") from error
    if split is not None:
        return _take(dataset if isinstance(dataset, dict) else {"train": dataset}, split)
    return next(iter(dataset.values())) if isinstance(dataset, dict) and len(dataset) == 1 else dataset


def check_out(
    out: str,
    dataset: Any = None,
    *,
    sources: Sequence[str] = (),
    journal: str | os.PathLike[str] | None = None,
    adds: Mapping[str, Any] | None = None,
) -> None:
    """Refuse a place that cannot be written, or cannot hold these rows, before anything is paid.

    Args:
        dataset: What will be written, or what it is made from; without it only the place is checked.
        sources: Where the rows are read from: `out` must not replace them.
        journal: Where completions are kept: neither may replace or hold the other.
        adds: Features of the columns that come in addition to those of `dataset`.

    Raises:
        ValueError: The ending is unknown, or the place is, holds or lies in the source, the journal or other things.
        OSError: Its folder does not exist or cannot be written, or the rows cannot fit on the disk.
        ColumnError: Several splits for one file, or columns that this format cannot hold.
    """
    if out.startswith(HUB):
        if out.removeprefix(HUB) in (source.removeprefix(HUB) for source in sources if not Path(source).exists()):
            raise ValueError(f"--out {out} is the source; give another name, so that the raw data stays")
    else:
        _check_place(out, dataset, sources, journal)
    if dataset is not None:
        _check_columns(out, dataset, adds or {})


def write_dataset(dataset: Any, out: str, config: str | None = None, *, rows_per_file: int = 100_000) -> None:
    """Write beside the place and rename, so that a crash leaves either the old or the new one whole.

    A stream for a folder is written as its rows come, to `part-00000.parquet` and so on, a sub-folder per split. Each
    file is whole or not there; `read_dataset` refuses the folder until the run has come to its end. The same run
    writes the same names again, and files of a longer run before it are removed at its end.

    Args:
        dataset: A `Dataset`, `DatasetDict`, `IterableDataset` or `IterableDatasetDict`.
        out: A file, a folder, or `hf://datasets/owner/name`.
        config: Configuration of a Hub dataset.
        rows_per_file: About how many rows of a stream go into one file of a folder.

    Raises:
        ColumnError: A value cannot be written in this format, or a stream's rows do not agree on the type of a column.
    """
    if out.startswith(HUB):
        dataset.push_to_hub(out.removeprefix(HUB), **({"config_name": config} if config else {}))
        return
    path = Path(out).resolve()  # of a link, the place that it stands for
    if path.suffix not in FILES and _is_stream(dataset):
        _write_pieces(dataset, path, rows_per_file)
        return
    with _beside(path) as new:
        if path.suffix not in FILES:
            dataset.save_to_disk(new)
            _recover(path)
            old = path.with_name(f"{new.name}.old")
            if path.exists():
                os.rename(path, old)
            os.rename(new, path)
            shutil.rmtree(old, ignore_errors=True)
            return
        if path.suffix == ".parquet":
            dataset.to_parquet(new)
        elif path.suffix == ".csv":
            _write_csv(dataset.with_format(None), new)
        else:
            _write_json(dataset.with_format(None), new, as_list=path.suffix == ".json")
        os.replace(new, path)


def _load(source: str, config: str | None, stream: bool) -> Any:
    from datasets import load_dataset, load_from_disk

    path = Path(source)
    _recover(path)
    is_local = path.is_file() or _is_saved_dataset(path) or _is_pieces(path)
    if is_local and config is not None:
        raise ColumnError(f"{source} has no configurations, as Hub datasets do; leave out --config {config}")
    if path.is_file():
        if path.suffix not in FILES:
            raise ColumnError(f"{source} is none of {', '.join(FILES)}; convert it to one of them")
        if path.suffix == ".parquet":
            return _load_parquet([source], stream)
        return _load_csv(path, stream) if path.suffix == ".csv" else _load_json(path, stream)
    if _is_saved_dataset(path):
        saved = load_from_disk(source)
        if not stream:
            return saved
        from datasets import IterableDatasetDict

        if not isinstance(saved, dict):
            return saved.to_iterable_dataset()
        return IterableDatasetDict({name: split.to_iterable_dataset() for name, split in saved.items()})
    if is_local:
        return _load_pieces(path, stream)
    if not path.is_dir() and (path.suffix in FILES or source.startswith((".", "/", "~"))):
        raise FileNotFoundError(f"there is no {source}; give a file, a folder or a Hub dataset (owner/name)")
    return load_dataset(source.removeprefix(HUB), config, streaming=stream)


def _take(splits: Mapping[str, Any], spec: str) -> Any:
    """The part of the splits that `spec` names; a stream has no length to count from its end or in per cent."""
    from datasets import ReadInstruction, concatenate_datasets

    is_stream = _is_stream(splits)
    sizes = [10**15, 10**16] if is_stream else [0]
    try:
        parts, *others = (
            ReadInstruction.from_spec(spec).to_absolute(
                {name: size if is_stream else len(split) for name, split in splits.items()}
            )
            for size in sizes
        )
    except (ValueError, AssertionError) as error:
        raise ColumnError(
            f"--split {spec}: {error}; there is {', '.join(splits)}, and parts such as {next(iter(splits))}[:20]"
        ) from error
    taken = []
    for at, part in enumerate(parts):
        split = splits[part.splitname]
        if not is_stream:
            taken.append(split.select(range(part.from_, part.to)))
            continue
        is_open = part.to == sizes[0] and others[0][at].to == sizes[1]
        if part.from_ != others[0][at].from_ or (part.to != others[0][at].to and not is_open):
            raise ColumnError(f"--split {spec}: the length of a stream is not known; count rows from its start")
        split = split.skip(part.from_) if part.from_ else split
        taken.append(split if is_open else split.take(part.to - part.from_))
    return taken[0] if len(taken) == 1 else concatenate_datasets(taken)


def _check_place(out: str, dataset: Any, sources: Sequence[str], journal: str | os.PathLike[str] | None) -> None:
    path = Path(out).resolve()
    kept = None if journal is None or "://" in os.fspath(journal) else Path(journal)
    _recover(path)
    if path.suffix and path.suffix not in FILES and not path.is_dir():
        raise ValueError(
            f"--out {out} has an unknown ending; use {', '.join(FILES)}, a folder without an ending, or {HUB}owner/name"
        )
    for source in map(Path, sources):
        if source.exists() and _overlap(path, source):
            raise ValueError(f"--out {out} is the source or holds it; give another place, so that the raw data stays")
        if kept and _is_same(kept, source):
            raise ValueError(f"--journal {kept} is the source; give the journal a place of its own")
    if kept and _overlap(path, kept):
        raise ValueError(f"--out {out} and --journal {kept} lie in one place; give the journal a place of its own")
    if not path.parent.is_dir():
        what = "is a file" if path.parent.exists() else "does not exist"
        raise FileNotFoundError(f"the folder {path.parent} of --out {out} {what}; make it, or give another place")
    if path.exists() and (path.suffix in FILES) == path.is_dir():
        kind = "folder, and its ending is that of a file" if path.is_dir() else "file, and without an ending"
        raise ValueError(f"--out {out} is a {kind}; give another place")
    if path.is_dir() and any(path.iterdir()) and not _is_pieces(path) and not _is_saved_dataset(path):
        raise ValueError(
            f"--out {out} is a folder with other things in it; give a new one, or one a dataset was saved to"
        )
    if _is_stream(dataset) and _is_saved_dataset(path):
        raise ValueError(f"--out {out} holds a dataset that is no stream's; give another folder for the stream")
    if os.path.ismount(path) and not _is_stream(dataset):
        raise ValueError(f"--out {out} is a mount point, which cannot be replaced; give a folder inside it")
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(f"--out {out} is read-only; make it writable, or give another place")
    try:
        with _beside(path) as probe:
            probe.write_bytes(bytes(4096))
    except OSError as error:
        raise OSError(f"--out {out} cannot be written ({error.strerror}); give another place, or make room") from error
    needed, free = (
        sum(_least_bytes(split, path.suffix) for split in _each(dataset)),
        shutil.disk_usage(path.parent).free,
    )
    if needed > free:
        raise OSError(
            f"--out {out} takes at least {needed / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free; make room, or give another place"
        )


def _check_columns(out: str, dataset: Any, adds: Mapping[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Features

    suffix = "" if out.startswith(HUB) else Path(out).suffix
    if suffix in FILES and isinstance(dataset, dict):
        raise ColumnError(
            f"the dataset has the splits {', '.join(dataset)}, and {out} is one file; choose one with --split, or a folder"
        )
    for split in _each(dataset):
        schema = Features({**(split.features or {}), **adds}).arrow_schema
        if suffix in ("", ".parquet"):
            try:
                if suffix or out.startswith(HUB) or _is_stream(dataset):
                    pq.write_table(schema.empty_table(), pa.BufferOutputStream())
            except pa.ArrowException as error:
                raise ColumnError(f"Parquet cannot hold these columns ({error}); remove the one it names") from error
            continue
        lost = {field.name: str(field.type) for field in schema if not all(map(_TEXT.fullmatch, _leaves(field.type)))}
        if suffix == ".csv":
            lost |= {field.name: str(field.type) for field in schema if [*_leaves(field.type)] != [str(field.type)]}
        if lost:
            columns = ", ".join(f"{name!r} ({kind:.60})" for name, kind in lost.items())
            raise ColumnError(f"{suffix} cannot hold the columns {columns} as they are; use .parquet or a folder")


def _leaves(kind: Any) -> Iterator[str]:
    """The types of the values inside an Arrow type."""
    import pyarrow as pa

    if isinstance(kind, pa.BaseExtensionType):
        yield from _leaves(kind.storage_type)
    elif pa.types.is_nested(kind):
        for at in range(kind.num_fields):
            yield from _leaves(kind.field(at).type)
    else:
        yield str(kind)


def _least_bytes(split: Any, suffix: str) -> int:
    """What a dataset takes on the disk for certain: Arrow's own size, or that of its text; unknown for Parquet."""
    from datasets import Dataset

    if not isinstance(split, Dataset) or suffix == ".parquet" or len(split) != split.data.num_rows:
        return 0
    table = split.data.table
    names = [name for name in table.column_names if not suffix or str(table.schema.field(name).type) == "string"]
    return int(table.select(names).nbytes)


def _overlap(one: Path, other: Path) -> bool:
    """Whether two places are one, or one lies in the other; links are followed."""
    resolved = one.resolve(), other.resolve()
    return resolved[0].is_relative_to(resolved[1]) or resolved[1].is_relative_to(resolved[0]) or _is_same(one, other)


def _is_same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve() or (one.exists() and other.exists() and one.samefile(other))


def _each(dataset: Any) -> list[Any]:
    return [] if dataset is None else list(dataset.values()) if isinstance(dataset, dict) else [dataset]


def _is_stream(dataset: Any) -> bool:
    from datasets import IterableDataset

    return any(isinstance(split, IterableDataset) for split in _each(dataset))


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A hidden name beside `path` to write to; what is left there is removed, also what killed processes left."""
    for left, is_old in _leftovers(path):
        if not is_old or path.exists():  # else it is the only whole one: `_recover` takes it
            _remove(left)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield new
    finally:
        _remove(new)


def _recover(path: Path) -> None:
    """Put back a folder whose writer was killed after it moved the old one away and before the new one took its name."""
    if path.suffix not in FILES and not path.exists():
        for left, is_old in _leftovers(path):
            if is_old:
                os.rename(left, path)
                return


def _leftovers(path: Path) -> list[tuple[Path, bool]]:
    """What dead processes left beside `path`, and whether it is the folder that stood there before."""
    pattern = re.compile(re.escape(f".{path.name}.") + r"(\d+)(\.old)?")
    entries = path.parent.iterdir() if path.parent.is_dir() else ()
    found = [(entry, owner) for entry in entries if (owner := pattern.fullmatch(entry.name))]
    return [(entry, owner[2] is not None) for entry, owner in found if not _is_alive(int(owner[1]))]


def _is_alive(process: int) -> bool:
    if process == os.getpid():
        return False  # a name left by an earlier process of the same number
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _write_pieces(stream: Any, folder: Path, rows_per_file: int) -> None:
    splits = stream if isinstance(stream, dict) else {"": stream}
    written: set[Path] = set()
    for name, split in splits.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        batches = _tables(split, min(_BATCH, rows_per_file))
        for number, table in enumerate(batches):
            path = folder / name / f"part-{number:05}.parquet"
            with _beside(path) as new:
                _write_piece(chain([table], batches), table.schema, new, rows_per_file)
                (folder / WHOLE).unlink(missing_ok=True)  # from here on the folder is no longer the run before
                os.replace(new, path)
            written.add(path)
    for path in [*folder.glob("part-*.parquet"), *folder.glob("*/part-*.parquet")]:
        if path not in written:
            path.unlink()
    for path in folder.iterdir():
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    with _beside(folder / WHOLE) as new:
        new.write_text("".join(f"{name}\n" for name in splits if name), encoding="utf-8")
        os.replace(new, folder / WHOLE)


def _write_piece(tables: Iterator[Any], schema: Any, path: Path, rows_per_file: int) -> None:
    import pyarrow.parquet as pq

    rows = 0
    with pq.ParquetWriter(path, schema) as writer:
        for table in tables:
            writer.write_table(table)
            rows += len(table)
            if rows >= rows_per_file:
                return


def _tables(stream: Any, batch_size: int) -> Iterator[Any]:
    """The rows as Arrow tables of one schema, an empty one if there are no rows: as declared, else as the first are."""
    import pyarrow as pa
    from datasets import Features

    features, has_rows = stream.features, False
    for batch in stream.with_format("arrow" if features else None).iter(batch_size=batch_size):
        if not features:  # with the metadata that `datasets` reads
            features = Features.from_arrow_schema(pa.table(batch).schema)
        schema, has_rows = features.arrow_schema, True
        try:
            if set(batch) - set(schema.names) if isinstance(batch, dict) else False:
                raise ValueError(f"{sorted(set(batch) - set(schema.names))} came later")
            yield pa.table(batch, schema=schema) if isinstance(batch, dict) else batch.cast(schema)
        except (pa.ArrowException, ValueError, KeyError) as error:
            raise ColumnError(
                f"a row of the stream has other columns than its first rows ({error}); declare its features"
            ) from error
    if not features:
        raise ColumnError("the stream holds no rows and does not say its columns; give one that has rows")
    if not has_rows:
        yield features.arrow_schema.empty_table()


def _is_pieces(folder: Path) -> bool:
    """Whether a folder holds Parquet pieces and sub-folders of them, begun or whole, and nothing else."""
    if not folder.is_dir() or not (entries := list(folder.iterdir())):
        return False
    return all(
        not any(path.iterdir()) or _is_pieces(path)
        if path.is_dir()
        else re.fullmatch(rf"\.?(part-\d{{5,}}\.parquet|{WHOLE})(\.\d+)?", path.name)
        for path in entries
    )


def _load_pieces(folder: Path, stream: bool) -> Any:
    from datasets import DatasetDict, IterableDatasetDict

    if not (folder / WHOLE).exists():
        raise ColumnError(
            f"{folder} holds a part of a run that has not come to its end; run the command that writes it again"
        )
    splits = (folder / WHOLE).read_text(encoding="utf-8").splitlines()
    files = {name: sorted(map(str, (folder / name).glob("part-*.parquet"))) for name in splits or [""]}
    loaded = {name: _load_parquet(each, stream) for name, each in files.items()}
    return loaded[""] if not splits else IterableDatasetDict(loaded) if stream else DatasetDict(loaded)


def _load_parquet(files: list[str], stream: bool) -> Any:
    import pyarrow.parquet as pq
    from datasets import Dataset, Features, load_dataset

    if not stream and not any(pq.read_metadata(file).num_rows for file in files):  # `load_dataset` refuses no rows
        features = Features.from_arrow_schema(pq.read_schema(files[0]))
        return Dataset.from_dict({name: [] for name in features}, features=features)
    return load_dataset("parquet", data_files=files, split="train", streaming=stream, batch_size=10_000)


def _is_saved_dataset(folder: Path) -> bool:
    return (folder / "state.json").exists() or (folder / "dataset_dict.json").exists()


def _load_csv(path: Path, stream: bool) -> Any:
    from datasets import Features, Value, load_dataset

    with path.open(newline="", encoding="utf-8-sig") as file:
        names = next(csv.reader(file), [])
        if not file.readline().strip():
            raise ColumnError(f"{path} holds no rows; give a csv with a header and rows")
    features = Features({name: Value("string") for name in names})
    return load_dataset(
        "csv", data_files=str(path), split="train", features=features, keep_default_na=False, streaming=stream
    )


def _load_json(path: Path, stream: bool) -> Any:
    """Two readings: one for the types of all rows, one for the rows. `load_dataset` would turn dates into timestamps."""
    import pyarrow as pa
    from datasets import Dataset, Features, IterableDataset

    schema = pa.schema([])
    rows = _json_rows(str(path))
    try:
        while chunk := list(islice(rows, 10_000)):
            columns = dict.fromkeys(name for row in chunk for name in row)
            found = pa.table({name: pa.array([row.get(name) for row in chunk]) for name in columns}).schema
            schema = pa.unify_schemas([schema, found], promote_options="permissive")
    except pa.ArrowException as error:
        raise ColumnError(f"{path}: the rows do not agree on the type of a column ({error}); make them one") from error
    if not schema.names:
        raise ColumnError(f"{path} holds no rows; give a list of objects, or one object a line")
    features = Features.from_arrow_schema(schema)
    if stream:
        rows_of = {"path": str(path.resolve()), "columns": tuple(schema.names)}
        return IterableDataset.from_generator(_json_rows, features=features, gen_kwargs=rows_of)
    state = path.stat()  # part of the cache's key: another content under the same name is another dataset
    how = {"path": str(path.resolve()), "stamp": f"{state.st_mtime_ns} {state.st_size}"}
    return Dataset.from_generator(_json_rows, features=features, gen_kwargs=how)


def _json_rows(path: str, columns: Sequence[str] = (), stamp: str = "") -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8-sig") as file:
        start = file.read(1)
        while start.isspace():
            start = file.read(1)
        file.seek(0)
        lines: Any = [(1, file.read())] if start == "[" else enumerate(file, 1)
        for number, line in lines:
            if not line.strip():
                continue
            try:
                content = json.loads(line)
            except json.JSONDecodeError as error:
                raise ColumnError(f"{path}, line {number}: not JSON ({error}); mend or remove it") from error
            for row in content if isinstance(content, list) else [content]:
                if not isinstance(row, dict):
                    raise ColumnError(f"{path}, line {number}: {row!r:.60} is not an object; each row is one")
                yield {name: row.get(name) for name in columns} if columns else row


def _write_csv(dataset: Any, path: Path) -> None:
    rows = iter(dataset)
    first: dict[str, Any] = next(rows, {})
    names = list(dataset.column_names or first)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows([row.get(name) for name in names] for row in chain([first] if first else [], rows))


def _write_json(dataset: Any, path: Path, *, as_list: bool) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write("[" if as_list else "")
        for number, row in enumerate(dataset):
            file.write((",\n" if number else "\n") if as_list else "")
            file.write(json.dumps(row, ensure_ascii=False, default=_plain) + ("" if as_list else "\n"))
        file.write("\n]\n" if as_list else "")


def _plain(value: Any) -> str:
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    raise ColumnError(f"JSON cannot hold a {type(value).__name__}; use .parquet or a folder")
