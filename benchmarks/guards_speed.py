"""How many rows a second the default guards judge on one core, beside two floors measured in the same run.

    python benchmarks/guards_speed.py [--shared DIR] [--rows 4000] [--repeats 5]

Rows are the published raw → revised edits (an equal share of each file, seeded). Floors: `iterate` only compares the
three fields; `identify` only asks the language identifier once per row for the first 480 characters of the response.
The repeats of all three are interleaved; medians are reported.
"""

import argparse
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from guards_accuracy import SHARED, STOP, load
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from midb.guards import DEFAULT_GUARDS, check
from midb.schema import Pair

Row = tuple[str, Pair, Pair]


def cpu() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, one used"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shared", type=Path, default=SHARED, help="the folder that holds data/")
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    good, _ = load(arguments.shared)
    dice = random.Random(0)
    rows: list[Row] = [
        (code, *edit) for code, edits in good.items() for edit in dice.sample(edits, arguments.rows // len(good))
    ]
    identify = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True).classify

    def iterate(code: str, raw: Pair, new: Pair) -> object:
        return raw == new

    def identify_once(code: str, raw: Pair, new: Pair) -> object:
        return identify(new.response[:480])

    def judge(code: str, raw: Pair, new: Pair) -> object:
        return check(DEFAULT_GUARDS, raw, new, code, STOP)

    work: dict[str, Callable[[str, Pair, Pair], object]] = {
        "iterate": iterate,
        "identify": identify_once,
        "guards": judge,
    }
    work |= {
        guard.__name__: lambda code, raw, new, guard=guard: guard(raw, new, code, STOP) for guard in DEFAULT_GUARDS
    }
    judge(*rows[0])  # loads the identifier
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(arguments.repeats):
        for name, function in work.items():
            start = time.perf_counter()
            for row in rows:
                function(*row)
            seconds[name].append(time.perf_counter() - start)
    speed = {name: len(rows) / statistics.median(times) for name, times in seconds.items()}
    result = {
        "hardware": cpu(),
        "python": platform.python_version(),
        "command": " ".join(["python benchmarks/guards_speed.py", *sys.argv[1:]]),
        "rows": len(rows),
        "rows_per_second": {name: round(rate) for name, rate in speed.items()},
        "guards_to_identify": round(speed["guards"] / speed["identify"], 3),
        "spread": {name: round(max(times) / min(times), 2) for name, times in seconds.items()},
    }
    print(json.dumps(result, indent=1))
    (Path(__file__).parent / "results/guards_speed.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
