"""What `add_edit_distance` costs beside one bare call of rapidfuzz on the same strings, and what it holds in memory.

    python benchmarks/distance.py [--data DIR] [--rows 1000000] [--repeats 5]

The edits are the published ones (MIDB's and CoachLM's, from --data), repeated up to the number of rows and mapped from
disk as any loaded dataset is. The bare call is given the joined strings ready-made as Python lists, so the ratio holds
everything that is not the distance itself: reading, joining, decoding, storing. Repeats are interleaved and medians
reported; beside them stand the fastest repeats and CPU seconds, which say more where the machine is shared. Memory is
the peak of anonymous pages above the start, in a process of its own for each number of rows: pages of the mapped file
are the system's to take back.
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
from pathlib import Path
from typing import Any

import datasets
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cpdist

from midb.distance import add_edit_distance
from midb.release import load_coachlm, load_training
from midb.schema import PAIR, RAW


def joined(row: dict[str, str], columns: tuple[str, ...]) -> str:
    instruction, given, response = (row[column] for column in columns)
    return f"Instruction: {instruction}{f' Input: {given}' if given else ''} Response: {response}"


def anonymous_mib() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


def peak_memory(folder: str, rows: int) -> float:
    """Peak of anonymous memory above the start while `rows` edits are measured; small runs first load the libraries."""
    dataset = datasets.load_from_disk(folder)
    add_edit_distance(dataset.select(range(5_000)))
    start = peak = anonymous_mib()
    finished = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not finished.wait(0.005):
            peak = max(peak, anonymous_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    add_edit_distance(dataset.select(range(rows)))
    finished.set()
    watcher.join()
    return round(peak - start, 1)


def main() -> None:
    parser = argparse.ArgumentParser()
    shared = Path(os.environ.get("MIDB_SHARED", Path(__file__).parents[2] / "shared"))
    parser.add_argument("--data", type=Path, default=shared / "data", help="a folder with midb/ and coachlm/")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory-of", metavar="FOLDER", help="only measure the memory for --rows of this dataset")
    arguments = parser.parse_args()
    datasets.disable_caching()  # or every repeat but the first would be read from disk
    datasets.disable_progress_bars()
    if arguments.memory_of:
        print(peak_memory(arguments.memory_of, arguments.rows))
        return
    edits = datasets.concatenate_datasets(
        [load_training(arguments.data / "midb"), load_coachlm(arguments.data / "coachlm")]
    )
    rounds = -(-arguments.rows // len(edits))
    with tempfile.TemporaryDirectory() as folder:
        datasets.concatenate_datasets([edits] * rounds).select(range(arguments.rows)).save_to_disk(folder)
        dataset = datasets.load_from_disk(folder)
        # Strings of their own for each row, as they would be anywhere else: repeated objects would stay in the cache.
        before, after = (
            [joined(row, side) for _ in range(rounds) for row in edits][: arguments.rows] for side in (RAW, PAIR)
        )

        work: dict[str, Callable[[], Any]] = {
            "cpdist": lambda: cpdist(before, after, scorer=Levenshtein.distance, workers=-1),
            "add_edit_distance": lambda: add_edit_distance(dataset),
        }
        seconds: dict[str, list[float]] = {name: [] for name in work}
        cpu_seconds: dict[str, list[float]] = {name: [] for name in work}
        for _ in range(arguments.repeats):
            answers = []
            for name, function in work.items():
                start, cpu_start = time.perf_counter(), time.process_time()
                answers.append(function())
                seconds[name].append(time.perf_counter() - start)
                cpu_seconds[name].append(time.process_time() - cpu_start)
            if answers[0].tolist() != answers[1]["edit_distance"][:]:
                sys.exit("the two disagree: nothing to compare")
        length = statistics.median(map(len, before))

        counts = [arguments.rows // 16, arguments.rows // 4, arguments.rows]
        command = [sys.executable, __file__, "--memory-of", folder, "--rows"]
        memory = {rows: float(subprocess.check_output([*command, str(rows)], text=True)) for rows in counts}

    medians = {name: statistics.median(times) for name, times in seconds.items()}
    cpu_medians = {name: statistics.median(times) for name, times in cpu_seconds.items()}
    result = {
        "hardware": hardware(),
        "python": platform.python_version(),
        "command": f"python benchmarks/distance.py --rows {arguments.rows} --repeats {arguments.repeats}",
        "rows": arguments.rows,
        "median_characters": length,
        "seconds": {name: round(median, 2) for name, median in medians.items()},
        "cpu_seconds": {name: round(median, 2) for name, median in cpu_medians.items()},
        "ratio": round(medians["add_edit_distance"] / medians["cpdist"], 3),
        "cpu_ratio": round(cpu_medians["add_edit_distance"] / cpu_medians["cpdist"], 3),
        "ratio_of_fastest": round(min(seconds["add_edit_distance"]) / min(seconds["cpdist"]), 3),
        "spread": {name: round(max(times) / min(times), 2) for name, times in seconds.items()},
        "peak_mib_above_start": memory,
    }
    print(json.dumps(result, indent=1))
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / "distance.json").write_text(json.dumps(result, indent=1) + "\n")


def hardware() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {len(names)} cores, all used"


if __name__ == "__main__":
    main()
