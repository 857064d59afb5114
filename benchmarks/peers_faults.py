"""What a bad row and a `kill -9` cost with midb and with its peers: rows kept, rows lost, prompts asked again.

    python benchmarks/peers_faults.py [--rows 200] [--concurrency 32] [--repeats 3]

Two stories, each tool with what it has for going on after a failure switched on (the result file names it):

bad row   The server answers one row of all with HTTP 500, always. The tool runs, runs again over the same folder, and runs
          once more after the server has healed.
kill -9   At 250 to 750 ms a request, the tool and all its processes are killed when half of the rows have been answered; then it
          runs again over the same folder. Several times, as much hangs on the moment; medians.

The server counts how often each prompt was asked and answered in full. "answered" are rows of the tool's result that carry
an answer, "without answer" those that are in it without one, "missing" those that are not in it: all of them where there
is no result. "answered again" counts answers that the server had given before, in this run or an earlier one. A run that takes longer
than a minute is killed.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
from boost_overhead import hardware

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from server import PeersServer
from tools import (
    CURATOR,
    CURATOR_PARTIAL,
    DATATROVE,
    DISTILABEL,
    INSTALLING,
    MAP,
    MIDB,
    Tool,
    play,
    versions,
    write_rows,
)  # fmt: skip

RESULTS = Path(__file__).parent / "results" / "peers_faults.json"
TOOLS = (MIDB, DISTILABEL, CURATOR, CURATOR_PARTIAL, DATATROVE, MAP)
BAD = "[[500]]"
PATIENCE = 60  # seconds for a run; the longest that ends takes half of that
COLUMNS = ("answered", "without_answer", "missing", "good_requests", "bad_requests", "answered_again", "seconds")
REMARKS = {
    MIDB.name: "Each answer is committed to the journal before it is used; a row that got none keeps its raw pair and is "
    "asked again by the next run.",
    DISTILABEL.name: "A batch in which one request raises is filled with None as a whole. Batches and the state of the "
    "pipeline are cached after each batch. Seen by hand: a rerun after kill -9 that sends nothing does so too with "
    "LoadDataFromDicts in place of dataset=, and when left for 300 s.",
    CURATOR.name: "Each answer is appended to a file as it comes. With require_all_responses=True a row that failed for "
    "good is an exception at the end of the run.",
    CURATOR_PARTIAL.name: "As above; a row that failed for good is left out of the result.",
    DATATROVE.name: "HTTP 500 from an endpoint on localhost ends the task without a retry. Each answer goes into its "
    "request cache, and each finished document into a checkpoint.",
    MAP.name: "An exception in the function ends the map. Its cache holds whole results, written when the map has ended.",
}


def counts(asked: dict[str, list[int]], rows: set[str]) -> dict[str, int]:
    good = [each for prompt, each in asked.items() if prompt in rows and BAD not in prompt]
    return {
        "good_requests": sum(times for times, _ in good),
        "bad_requests": sum(times for prompt, (times, _) in asked.items() if BAD in prompt),
        "other_requests": sum(times for prompt, (times, _) in asked.items() if prompt not in rows),
        "answered_again": sum(max(0, answers - 1) for _, answers in good),
    }


def once(tool: Tool, server: PeersServer, rows: Path, folder: Path, concurrency: int, **how: Any) -> dict[str, Any]:
    prompts = [json.loads(line)["prompt"] for line in rows.read_text(encoding="utf-8").splitlines()]
    before, begun = counts(server.get("asked"), set(prompts)), time.monotonic()
    run = play(tool, server.url, rows, folder, concurrency, seconds=PATIENCE, **how)
    seconds = round(time.monotonic() - begun, 1)
    server.wait_until(lambda stats: stats["in_flight"] == 0)
    after = counts(server.get("asked"), set(prompts))
    found = dict(run.report["rows"])
    return {
        "end": f"killed after {PATIENCE} s" if run.end == "time" else run.end,
        "exception": run.report["error"],
        "answered": sum(text is not None for text in found.values()),
        "without_answer": sum(text is None for text in found.values()),
        "missing": len(prompts) - len(found),
        "doubled": len(run.report["rows"]) - len(found),
        **{name: after[name] - before[name] for name in after},
        "seconds": seconds,
    }


def bad_row(tool: Tool, options: argparse.Namespace) -> dict[str, Any]:
    with PeersServer() as server, tempfile.TemporaryDirectory() as place:
        rows, folder = Path(place, "rows.jsonl"), Path(place, "kept")
        write_rows(rows, options.rows, {options.rows // 2: BAD})
        told = {name: once(tool, server, rows, folder, options.concurrency) for name in ("first run", "rerun")}
        server.get("heal")
        return told | {"rerun, healed": once(tool, server, rows, folder, options.concurrency)}


def killed(tool: Tool, options: argparse.Namespace) -> dict[str, Any]:
    """Several times, as much hangs on the moment: medians, and all figures of `answered_again`."""
    repeats = [kill_once(tool, options) for _ in range(options.repeats)]
    told: dict[str, Any] = {}
    for name in repeats[0]:
        runs = [repeat[name] for repeat in repeats]
        told[name] = {
            column: statistics.median(run[column] for run in runs) if column in COLUMNS else runs[0][column]
            for column in runs[0]
        }
        told[name]["end"] = sorted({run["end"] for run in runs})
        told[name]["all_answered_again"] = [run["answered_again"] for run in runs]
    return told


def kill_once(tool: Tool, options: argparse.Namespace) -> dict[str, Any]:
    with PeersServer(latency=0.5, spread=0.5) as server, tempfile.TemporaryDirectory() as place:
        rows, folder = Path(place, "rows.jsonl"), Path(place, "kept")
        write_rows(rows, options.rows)

        def half() -> bool:
            return bool(server.get("stats")["answered"] >= options.rows // 2)

        first = once(tool, server, rows, folder, options.concurrency, kill_when=half)
        return {"killed run": first, "rerun": once(tool, server, rows, folder, options.concurrency)}


STORIES: dict[str, Callable[[Tool, argparse.Namespace], dict[str, Any]]] = {"bad row": bad_row, "kill -9": killed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3, help="of the kill")
    parser.add_argument("--note", help="something to say in the result, such as what else the machine does")
    options = parser.parse_args()
    datasets.disable_progress_bars()
    report: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/peers_faults.py", *sys.argv[1:]]),
        "hardware": hardware(),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 1),
        "versions": versions({tool.runner for tool in TOOLS}),
        "settings": {tool.name: tool.how for tool in TOOLS},
        "installing": INSTALLING,
        "remarks": REMARKS,
        **vars(options),
    }
    print(json.dumps(report, indent=2))
    with ThreadPoolExecutor(2) as pool:  # counts do not depend on who else runs
        runs = {
            (story, tool.name): pool.submit(play_it, tool, options)
            for story, play_it in STORIES.items()
            for tool in TOOLS
        }
        report["results"] = {story: {tool.name: runs[story, tool.name].result() for tool in TOOLS} for story in STORIES}
    for story, tools in report["results"].items():
        print(f"\n{story:<52}" + "".join(f"{name.replace('_', ' '):>16}" for name in COLUMNS))
        for name, found in tools.items():
            for which, each in found.items():
                print(f"  {name + ', ' + which:<50}" + "".join(f"{each[column]:>16}" for column in COLUMNS))
                if each["exception"]:
                    print(f"      {each['exception'][:120]}")
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
