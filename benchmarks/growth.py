"""Whether rows per second and memory stay flat from a thousand rows to a million.

    python benchmarks/growth.py [--parts "map,cluster"] [--rows 1000,10000,100000,1000000] [--repeats 3]

The model is a function that gives the pair back a little longer, so that what is measured is midb. The rows, about 400
characters each and no two alike, lie in a mapped file. Parts:

loop     the floor: a bare loop over the same rows that calls the same function
map      `Booster.map` with a journal on disk, no guards
guards   the same with all guards (up to 100,000 rows: their cost is one of rows, see `guards_speed.py`)
cluster  `map_on_cluster` from a stream into a ledger on disk, in this process

Each part runs at each size in a process of its own, after 200 rows that load the libraries. Memory is the peak of anonymous
pages above the start: pages of mapped files are the system's to take back. A million rows are run once, fewer rows
--repeats times, interleaved, and medians reported. CPU is steadier than rows per second where others use the machine. Parts
and sizes that are not run keep their figures in the result file, with the note and the load under which they were taken.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from boost_overhead import hardware, pairs
from distance import anonymous_mib
from midb.cluster import map_on_cluster

from midb.booster import Booster
from midb.generators import FunctionGenerator, Journal
from midb.guards import DEFAULT_GUARDS, Guard
from midb.schema import Message

RESULTS = Path(__file__).parent / "results" / "growth.json"
TAG = "<|instruction|>"
MOST = {"guards": 100_000}
CHUNK = 50_000


def longer(messages: list[Message]) -> str:
    """The model."""
    return f"{TAG}{messages[-1]['content'].partition(TAG)[2]} (2026)"


def write_rows(path: Path, rows: int) -> None:
    """`pairs` over and over with another number, a chunk at a time."""
    base = pairs(170)[:]
    schema = pa.schema({name: pa.string() for name in base})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for start in range(0, rows, CHUNK):
            numbers = range(start, min(start + CHUNK, rows))
            columns = {name: [values[number % 170] for number in numbers] for name, values in base.items()}
            for name in ("instruction", "response"):
                columns[name] = [f"{text} [{number}]" for number, text in zip(numbers, columns[name], strict=True)]
            writer.write_table(pa.table(columns, schema=schema), max_chunksize=1000)


def loop(rows: datasets.Dataset, folder: Path) -> int:
    answered = 0
    for row in rows:
        text = f"{TAG}{row['instruction']}\n<|input|>{row['input']}\n<|response|>{row['response']}"
        answered += bool(longer([{"role": "user", "content": text}]))
    return answered


def mapped(guards: tuple[Guard, ...]) -> Callable[[datasets.Dataset, Path], int]:
    def run(rows: datasets.Dataset, folder: Path) -> int:
        generator = Journal(FunctionGenerator(longer), folder / "answers.journal")
        edits = Booster(generator=generator, guards=guards).map(rows)
        return sum(
            batch["boost_status"].count("boosted")
            for batch in edits.select_columns("boost_status").iter(batch_size=10_000)
        )

    return run


def cluster(rows: datasets.Dataset, folder: Path) -> int:
    booster = Booster(generator=FunctionGenerator(longer), guards=())
    map_on_cluster(rows.to_iterable_dataset(), booster, folder / "ledger")
    return sum(int(name.name.split(".")[0].split("-")[1]) - int(name.name.split("-")[0]) for name in shards(folder))


def shards(folder: Path) -> list[Path]:
    return list((folder / "ledger").glob("*.parquet"))


PARTS: dict[str, Callable[[datasets.Dataset, Path], int]] = {
    "loop": loop,
    "map": mapped(()),
    "guards": mapped(DEFAULT_GUARDS),
    "cluster": cluster,
}


def measure(part: str, path: Path) -> dict[str, float]:
    """One part at one size, in this process."""
    rows = datasets.Dataset.from_file(str(path))
    run = PARTS[part]
    with tempfile.TemporaryDirectory(dir=path.parent) as warm, tempfile.TemporaryDirectory(dir=path.parent) as folder:
        run(rows.select(range(200)), Path(warm))
        start = peak = anonymous_mib()
        finished = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not finished.wait(0.02):
                peak = max(peak, anonymous_mib())

        watcher = threading.Thread(target=watch)
        watcher.start()
        wall, cpu = time.perf_counter(), time.process_time()
        done = run(rows, Path(folder))
        seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
        finished.set()
        watcher.join()
    if done != len(rows):
        raise SystemExit(f"{part}: {done} of {len(rows)} rows; the figures would mean nothing")
    return {
        "rows_per_second": len(rows) / seconds,
        "cpu_us_per_row": 1e6 * cpu_seconds / len(rows),
        "peak_mib_above_start": peak - start,
        "start_mib": start,
        "load": os.getloadavg()[0],  # above the cores: others were at work too
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--rows", default="1000,10000,100000,1000000")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--note", help="something to say in the result, such as what else the machine does")
    parser.add_argument("--one", nargs=2, metavar=("PART", "FILE"), help="only measure this, in this process")
    options = parser.parse_args()
    datasets.disable_progress_bars()
    if options.one:
        print(json.dumps(measure(options.one[0], Path(options.one[1]))))
        return
    report: dict[str, Any] = {
        "command": "python benchmarks/growth.py",
        "run_last": " ".join(sys.argv[1:]),
        "hardware": hardware(),
        "versions": {name: version(name) for name in ("datasets", "pyarrow")} | {"python": platform.python_version()},
        "results": json.loads(RESULTS.read_text())["results"] if RESULTS.exists() else {},
    }
    print(json.dumps({name: value for name, value in report.items() if name != "results"}, indent=2))
    for rows in map(int, options.rows.split(",")):
        parts = [part for part in options.parts.split(",") if rows <= MOST.get(part, rows)]
        taken: dict[str, list[dict[str, float]]] = {part: [] for part in parts}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "rows.arrow")
            write_rows(path, rows)
            for _ in range(options.repeats if rows < 1_000_000 else 1):
                for part in parts:
                    command = [sys.executable, __file__, "--one", part, str(path)]
                    taken[part].append(json.loads(subprocess.check_output(command, text=True)))
        for part, runs in taken.items():
            found = {name: round(statistics.median(run[name] for run in runs), 1) for name in runs[0]}
            found["all_rows_per_second"] = [round(run["rows_per_second"]) for run in runs]
            for name in ("rows_per_second", "cpu_us_per_row") if "loop" in taken else ():
                ratios = [run[name] / floor[name] for run, floor in zip(runs, taken["loop"], strict=True)]
                found[f"{name}_of_the_loop"] = round(statistics.median(ratios), 3)
            report["results"].setdefault(part, {})[f"{rows}"] = found | {"note": options.note}
            print(
                f"{part:<8} {rows:>9,} rows: {', '.join(f'{name} {value}' for name, value in found.items())}",
                flush=True,
            )
        RESULTS.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
