"""midb and its peers on the same requests to the same local server: rows per second, CPU and memory.

    python benchmarks/peers_overhead.py [--rows 800] [--repeats 3] [--concurrency 32]

Each tool runs in a process of its own, the peers in virtual environments of their own (`.venv-peers/`, made on first
use), with the settings that the result file names. All send the same messages, those that midb makes of the pairs of
`boost_overhead.py`, at the same number of requests in flight, and each gets a fresh folder for what it keeps. Where some
answers are slow it is half of the rows. What a tool does beside asking is its own: midb parses, guards and journals,
datatrove and curator write files, a bare loop does nothing.

"rows/s" is from the first request that reaches the server until the tool's call returns with its result; what came
before (interpreter, imports, the tool's own processes) is "to first request". What a tool loads later counts: midb's guards
load their language identification with the first answer. CPU is that of the call, children included, without imports; the
server's is not in it. Memory is the peak of the process tree (PSS, looked at every 200 ms). Repeats are interleaved and
medians reported; each ratio is the median of the ratios to the bare loop of the same repeat.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import datasets
from boost_overhead import SERVERS, hardware

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from server import PeersServer
from tools import (
    CURATOR,
    DATATROVE,
    DATATROVE_BARE,
    DISTILABEL,
    INSTALLING,
    LOOP,
    MAP,
    MIDB,
    MIDB_BARE,
    Tool,
    play,
    versions,
    write_rows,
)  # fmt: skip

RESULTS = Path(__file__).parent / "results" / "peers_overhead.json"
TOOLS = (MIDB, MIDB_BARE, DISTILABEL, CURATOR, DATATROVE, DATATROVE_BARE, MAP, LOOP)
COLUMNS = {"rows_per_second": "rows/s", "of_the_loop": "of the loop", "cpu_ms_per_row": "CPU ms/row"}
COLUMNS |= {"peak_mib": "peak MiB", "seconds_to_first_request": "s to first request"}


def once(tool: Tool, server: PeersServer, rows: Path, count: int, folder: Path, concurrency: int) -> dict[str, float]:
    server.get("reset")
    run = play(tool, server.url, rows, folder, concurrency)
    answered = {number for number, text in run.report["rows"] if text is not None}
    if run.end != "ended" or run.report["error"] or len(answered) != count:
        raise SystemExit(f"{tool.name}: {len(answered)} of {count} rows, {run.end}, {run.report['error']}\n{run.log}")
    stats = server.get("stats")
    if stats["requests"] != count or stats["max_in_flight"] > concurrency:
        raise SystemExit(f"{tool.name} sent other requests than the rest: {stats}")
    return {
        "rows_per_second": count / (run.report["ended"] - stats["first"]),
        "cpu_ms_per_row": 1000 * run.report["cpu"] / count,
        "peak_mib": run.peak_mib,
        "seconds_to_first_request": stats["first"] - run.started,
        "max_in_flight": stats["max_in_flight"],
    }


def measure(settings: dict[str, Any], count: int, options: argparse.Namespace) -> dict[str, Any]:
    taken: dict[str, list[dict[str, float]]] = {tool.name: [] for tool in TOOLS}
    with PeersServer(**settings) as server, tempfile.TemporaryDirectory() as place:
        rows = Path(place, "rows.jsonl")
        write_rows(rows, count)
        for repeat in range(options.repeats):
            for tool in TOOLS:
                folder = Path(place, f"{repeat}", tool.name)
                taken[tool.name].append(once(tool, server, rows, count, folder, options.concurrency))
    told: dict[str, Any] = {}
    for name, runs in taken.items():
        speeds = [run["rows_per_second"] for run in runs]
        floor = [run["rows_per_second"] for run in taken[LOOP.name]]
        median = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        told[name] = {
            "rows_per_second": round(median["rows_per_second"]),
            "of_the_loop": round(statistics.median(map(float.__truediv__, speeds, floor)), 3),
            "cpu_ms_per_row": round(median["cpu_ms_per_row"], 2),
            "peak_mib": round(median["peak_mib"]),
            "seconds_to_first_request": round(median["seconds_to_first_request"], 1),
            "max_in_flight": max(run["max_in_flight"] for run in runs),
            "all_rows_per_second": [round(speed) for speed in speeds],
        }
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=800, help="half of it where some are slow")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--note", help="something to say in the result, such as what else the machine does")
    options = parser.parse_args()
    datasets.disable_progress_bars()
    report: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/peers_overhead.py", *sys.argv[1:]]),
        "hardware": hardware(),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 1),  # above the cores: others were at work too
        "versions": versions({tool.runner for tool in TOOLS}),
        "settings": {tool.name: tool.how for tool in TOOLS},
        "installing": INSTALLING,
        **vars(options),
        "results": {},
    }
    print(json.dumps(report, indent=2))
    for name, settings in SERVERS.items():
        count = options.rows // 2 if "slow" in settings else options.rows
        report["results"][name] = measure(settings, count, options)
        print(f"\n{name:<30}" + "".join(f"{title:>20}" for title in COLUMNS.values()))
        for who, found in report["results"][name].items():
            print(f"  {who:<28}" + "".join(f"{found[key]:>20,}" for key in COLUMNS), flush=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
