"""How long `import midb` takes, against an empty interpreter in the same run.

python benchmarks/import_time.py
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

CASES = {
    "python alone": "pass",
    "import midb": "import midb",
    "from midb import Booster": "from midb import Booster",
    "import midb.cli": "import midb.cli",
    "import datasets": "import datasets",
}
REPEATS = 15


def seconds(code):
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def main():
    times = {name: [] for name in CASES}
    for _ in range(REPEATS):
        for name, code in CASES.items():
            times[name].append(seconds(code))
    medians = {name: statistics.median(values) for name, values in times.items()}
    floor = medians["python alone"]
    hardware = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"{hardware}; medians of {REPEATS} interleaved runs")
    for name, median in medians.items():
        print(f"  {name:26} {median:6.3f} s   {median / floor:5.1f}x an empty interpreter, {median - floor:+.3f} s")
    results = {
        "hardware": hardware,
        "command": "python benchmarks/import_time.py",
        "repeats": REPEATS,
        "median_seconds": medians,
    }
    results["import_midb_over_floor_seconds"] = medians["import midb"] - floor
    Path(__file__).with_name("results").joinpath("import_time.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
