"""A dataset from a file, a folder or the Hub, and back to one, without changing a value on the way.

Knows places and formats, not what the rows mean. JSON and csv are read as the text they are: no date becomes a
timestamp, no "NA" a null, no "007" a 7.
"""

import csv
import json
import os
import shutil
from collections.abc import Iterator
from datetime import date, datetime, time
from itertools import islice
from pathlib import Path
from typing import Any

from midb.errors import ColumnError

FILES = (".json", ".jsonl", ".ndjson", ".csv", ".parquet")
HUB = "hf://datasets/"


def read_dataset(source: str, config: str | None = None, split: str | None = None) -> Any:
    """Read a `Dataset`, or a `DatasetDict` where there are several splits and `split` names none.

    Args:
        source: A json, jsonl, csv or parquet file, a folder saved to disk, or a Hub dataset (`owner/name`).
        config: Configuration of a Hub dataset.
        split: The split to take.

    Raises:
        ColumnError: The file is broken, holds no rows, or has no such split.
        FileNotFoundError: There is no such place.
    """
    try:
        dataset = _load(source, config)
    except UnicodeDecodeError as error:
        raise ColumnError(f"{source} is not UTF-8 ({error}); convert it first, e.g. with iconv") from error
    if not isinstance(dataset, dict):
        return dataset
    if split is not None:
        if split not in dataset:
            raise ColumnError(f"there is no split {split!r}; the dataset has {', '.join(dataset)}")
        return dataset[split]
    return next(iter(dataset.values())) if len(dataset) == 1 else dataset


def check_destination(out: str, source: str = "") -> None:
    """Refuse a place that cannot be written, or where something would be lost, before anything is paid for.

    Raises:
        ValueError: The ending is unknown, or the place holds the source or other things.
        FileNotFoundError: Its folder does not exist.
    """
    if out.startswith(HUB):
        return
    path = Path(out).absolute()
    if path.suffix and path.suffix not in FILES and not path.is_dir():
        raise ValueError(
            f"--out {out} has an unknown ending; use {', '.join(FILES)}, a folder without an ending, or {HUB}owner/name"
        )
    origin = Path(source).resolve() if source and Path(source).exists() else None
    if origin and (origin.is_relative_to(path.resolve()) or path.resolve().is_relative_to(origin)):
        raise ValueError(f"--out {out} is the source or holds it; give another place, so that the raw data stays")
    if path.is_dir() and any(path.iterdir()) and not _is_saved_dataset(path):
        raise ValueError(
            f"--out {out} is a folder with other things in it; give a new one, or one a dataset was saved to"
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent}; make it first")


def check_fits(dataset: Any, out: str) -> None:
    """Refuse a dataset that the file at `out` could not hold.

    Raises:
        ColumnError: Several splits for one file, or nested columns for csv.
    """
    suffix = "" if out.startswith(HUB) else Path(out).suffix
    if suffix in FILES and isinstance(dataset, dict):
        raise ColumnError(
            f"the dataset has the splits {', '.join(dataset)}, and {out} is one file; choose one with --split, or a folder"
        )
    if suffix == ".csv":
        from datasets import Value

        if nested := [name for name, kind in dataset.features.items() if not isinstance(kind, Value)]:
            raise ColumnError(
                f"csv cannot hold the columns {nested}, which are not plain values; use .jsonl or .parquet"
            )


def write_dataset(dataset: Any, out: str, config: str | None = None) -> None:
    """Write beside the place and rename, so that a crash leaves either the old or the new one whole."""
    if out.startswith(HUB):
        dataset.push_to_hub(out.removeprefix(HUB), **({"config_name": config} if config else {}))
        return
    path = Path(out)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    if path.suffix not in FILES:
        dataset.save_to_disk(new)
        if path.exists():
            shutil.rmtree(path)
        new.rename(path)
        return
    if path.suffix == ".parquet":
        dataset.to_parquet(new)
    elif path.suffix == ".csv":
        with new.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(dataset.column_names)
            writer.writerows(row.values() for row in dataset)
    else:
        with new.open("w", encoding="utf-8") as file:
            _write_json(dataset, file, as_list=path.suffix == ".json")
    new.replace(path)


def _load(source: str, config: str | None) -> Any:
    from datasets import load_dataset, load_from_disk

    path = Path(source)
    if path.is_dir() and _is_saved_dataset(path):
        return load_from_disk(source)
    if path.is_file():
        if path.suffix not in FILES:
            raise ColumnError(
                f"{source} is none of {', '.join(FILES)}; convert it, or load it in Python and call booster.map"
            )
        if path.suffix == ".parquet":
            return load_dataset("parquet", data_files=source, split="train")
        return _load_csv(path) if path.suffix == ".csv" else _load_json(path)
    if not path.is_dir() and (path.suffix in FILES or source.startswith((".", "/", "~"))):
        raise FileNotFoundError(f"there is no {source}; give a file, a folder or a Hub dataset (owner/name)")
    return load_dataset(source.removeprefix(HUB), config)


def _is_saved_dataset(folder: Path) -> bool:
    return (folder / "state.json").exists() or (folder / "dataset_dict.json").exists()


def _load_csv(path: Path) -> Any:
    from datasets import Features, Value, load_dataset

    with path.open(newline="", encoding="utf-8-sig") as file:
        names = next(csv.reader(file), [])
        if not file.readline().strip():
            raise ColumnError(f"{path} holds no rows; give a csv with a header and rows")
    features = Features({name: Value("string") for name in names})
    return load_dataset("csv", data_files=str(path), split="train", features=features, keep_default_na=False)


def _load_json(path: Path) -> Any:
    """Two readings: one for the types of all rows, one for the rows. `load_dataset` would turn dates into timestamps."""
    import pyarrow as pa
    from datasets import Dataset, Features

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
    state = path.stat()  # part of the cache's key: another content under the same name is another dataset
    stamp = f"{state.st_mtime_ns} {state.st_size}"
    features = Features.from_arrow_schema(schema)
    return Dataset.from_generator(
        _json_rows, features=features, gen_kwargs={"path": str(path.resolve()), "stamp": stamp}
    )


def _json_rows(path: str, stamp: str = "") -> Iterator[dict[str, Any]]:
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
                yield row


def _write_json(dataset: Any, file: Any, *, as_list: bool) -> None:
    for number, row in enumerate(dataset):
        file.write(("[\n" if number == 0 else ",\n") if as_list else "")
        file.write(json.dumps(row, ensure_ascii=False, default=_plain) + ("" if as_list else "\n"))
    if as_list:
        file.write("\n]\n" if len(dataset) else "[]\n")


def _plain(value: Any) -> str:
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    raise ColumnError(f"JSON cannot hold a {type(value).__name__}; use .parquet or a folder")
