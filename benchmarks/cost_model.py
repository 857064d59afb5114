"""What 832,000 generations (52,000 rows in 16 languages) take on 1, 8 and 64 GPUs: a model in which each part says whence it is.

    python benchmarks/cost_model.py [--shared DIR] [--repeats 3] [--reuse]

Measured here: the tokens of the published edits in Llama 3's vocabulary, by language (what a booster reads, and what the
expert wrote, which stands for what it writes); the one driver process of `map_on_cluster` over Ray, with workers that
only copy, so that nothing else is the limit; a look at a ledger, and gathering it. Read from `results/`: guards, the
client of a server, edit distances. Assumed: everything about GPUs, each value with a better and a worse one and its
source. Computed: how a shard ends with its slowest row, by playing the measured lengths through the engine's slots.

--reuse takes what was measured from the result file and only computes.
"""

import argparse
import heapq
import importlib.util
import json
import math
import os
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from boost_overhead import hardware
from datasets import Dataset
from midb.cluster import ROWS_PER_SHARD, map_on_cluster, rows_to_do

from midb import as_pairs, release
from midb.chat import ChatFormat
from midb.train.training_set import as_training_set, tokenize

FOLDER = Path(__file__).parent / "results"
RESULTS = FOLDER / "cost_model.json"
SHARED = Path(os.environ.get("MIDB_SHARED", Path(__file__).parents[2] / "shared"))
ROWS, LANGUAGES, GPUS = 52_000 * 16, 16, (1, 8, 64)
SIDES = {"instruction": "raw_instruction", "input": "raw_input", "response": "raw_response"}

# What nobody could measure here: (better, expected, worse) and why. An 8B Llama with a LoRA in bfloat16 on an H100.
ASSUMED: dict[str, tuple[float, float, float, str]] = {
    "decode": (17_800, 8_000, 2_500, "tokens/s written, all slots busy. Better: TensorRT-LLM's own figure for Llama 3.1 8B in FP8, 500 in and 2,000 out (perf-overview); expected: less than half, for bfloat16, vLLM and the LoRA"),
    "engine": (1.0, 0.97, 0.9, "midb's share of the bare engine's speed: the aim is 0.97"),
    "prefill": (60_000, 30_000, 15_000, "tokens/s read: 16 GFLOP a token at 50 % of 989 TFLOP/s, twice and half of that"),
    "step": (0.005, 0.008, 0.013, "seconds a token when one text is written: 16 GB of weights at 3.35 TB/s, and what an A100 shows (75 tokens/s)"),
    "slots": (256, 1024, 1024, "texts written at once: vLLM's own choice is 1,024 on an H100, 256 on smaller GPUs"),
    "length": (0.0, 1.0, 1.5, "tokens written: 0 as many as the raw pair has, 1 as the expert's, 1.5 half as many again"),
    "start": (60, 120, 300, "seconds until a worker writes: weights, compilation, graphs"),
    "mtbf": (50_000, 50_000, 24, "GPU hours between losses: Llama 3's training, 419 in 54 days on 16,384 GPUs (arXiv 2407.21783); worse: a spot instance taken away once a day"),
    "price": (2.0, 2.5, 5.0, "dollars a GPU hour: on-demand H100 in 2026, long-tail to hyperscaler"),
}  # fmt: skip


@dataclass(frozen=True)
class Assumed:
    """One choice of all that is assumed."""

    decode: float
    engine: float
    prefill: float
    step: float
    slots: float
    length: float
    start: float
    mtbf: float
    price: float

    @classmethod
    def at(cls, place: int) -> "Assumed":
        """All of them at one of the three places."""
        return cls(**{name: float(values[place]) for name, values in ASSUMED.items()})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Copy:
    """A step that costs a worker next to nothing and returns what a booster returns."""

    def identity(self) -> str:
        """It is always the same."""
        return "copy"

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """The pair, twice, and the columns beside it."""
        rows = len(batch["response"])
        pair = {name: batch[name] for name in SIDES}
        texts = {name: [""] * rows for name in ("boost_reason", "boost_reply")}
        names = {"boost_status": ["boosted"] * rows, "boosted_by": ["my-model"] * rows}
        tokens = {name: [200] * rows for name in ("boost_prompt_tokens", "boost_completion_tokens")}
        return {**pair, **{SIDES[name]: values for name, values in pair.items()}, **texts, **names, **tokens}


def llama3() -> Any:
    """The vocabulary as on the Hub, from the one that Meta's package carries."""
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    found = importlib.util.find_spec("llama_models")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("Llama 3's vocabulary is not here; pip install llama-models")
    vocabulary = Path(found.submodule_search_locations[0]) / "llama3" / "tokenizer.model"
    named = {0: "begin_of_text", 1: "end_of_text", 6: "start_header_id", 7: "end_header_id", 9: "eot_id"}
    special = [f"<|{named.get(number, f'reserved_special_token_{number}')}|>" for number in range(256)]
    backend = TikTokenConverter(str(vocabulary), extra_special_tokens=special).converted()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def count_tokens(edits: Dataset) -> dict[str, Any]:
    """Tokens a row by language, and the spread of those written."""
    chat = ChatFormat(llama3(), "llama3")
    lengths: dict[str, Any] = {}
    written: list[int] = []
    for language in edits.unique("language"):
        own = edits.select([row for row, each in enumerate(edits["language"]) if each == language])
        unchanged = Dataset.from_dict(
            {name: own[side] for name, side in SIDES.items()} | {side: own[side] for side in SIDES.values()}
        )
        rows = tokenize(as_training_set(own), chat, max_length=100_000).dataset
        same = tokenize(as_training_set(unchanged), chat, max_length=100_000).dataset
        labels = [np.asarray(row) for row in rows["labels"]]
        completions = [int((row != -100).sum()) for row in labels]
        written += completions
        lengths[language] = {
            "rows": len(own),
            "prompt": round(
                statistics.mean(len(row) - count for row, count in zip(labels, completions, strict=True)), 1
            ),
            "completion": round(statistics.mean(completions), 1),
            "completion_if_unchanged": round(
                statistics.mean(int((np.asarray(row) != -100).sum()) for row in same["labels"]), 1
            ),
        }
    spread = np.percentile(written, [1, 5, 25, 50, 75, 95, 99, 99.9, 100])
    shares = np.linspace(0, 100, 201)
    return {
        "by_language": lengths,
        "mean": {
            name: round(statistics.mean(each[name] for each in lengths.values()), 1)
            for name in ("prompt", "completion", "completion_if_unchanged")
        },
        "written_percentiles": dict(
            zip(["1", "5", "25", "50", "75", "95", "99", "99.9", "max"], spread.tolist(), strict=True)
        ),
        "written_quantiles": np.percentile(written, shares).round().astype(int).tolist(),
    }


def measure_driver(edits: Dataset, repeats: int) -> dict[str, Any]:
    """Rows a second through the driver, its CPU time a row, and what a rerun and the gathering take."""
    import ray

    pairs = as_pairs(edits, columns=SIDES).select_columns(["id", "language", *SIDES])
    ray.init(address="local", log_to_driver=False)
    found: dict[str, list[float]] = {}
    try:
        for repeat in range(repeats + 1):  # the first loads libraries and is not counted
            with tempfile.TemporaryDirectory() as ledger, tempfile.TemporaryDirectory() as cache:
                datasets.config.HF_DATASETS_CACHE = Path(cache)
                few = pairs.select(range(512))
                takes: list[tuple[float, float]] = []
                for rows, folder in ((few, f"{ledger}/few"), (pairs, f"{ledger}/all")):
                    stream = rows.to_iterable_dataset()  # comes back without being gathered
                    wall, cpu = time.perf_counter(), time.process_time()
                    map_on_cluster(stream, Copy(), folder, workers=2, rows_per_shard=512)
                    takes.append((time.perf_counter() - wall, time.process_time() - cpu))
                more = len(pairs) - len(few)
                (few_wall, few_cpu), (all_wall, all_cpu) = takes
                begun = time.perf_counter()
                left = sum(rows_to_do(pairs, Copy(), f"{ledger}/all", rows_per_shard=512).values())
                look = time.perf_counter() - begun
                begun = time.perf_counter()
                whole = map_on_cluster(pairs, Copy(), f"{ledger}/all", rows_per_shard=512)
                gather = time.perf_counter() - begun
                if left or len(whole) != len(pairs):
                    raise SystemExit("the ledger is not whole; the figures would mean nothing")
                size = sum(path.stat().st_size for path in Path(ledger, "all").iterdir())
                del whole
            if repeat:
                figures = {
                    "rows_per_second": more / (all_wall - few_wall),
                    "cpu_us_per_row": 1e6 * (all_cpu - few_cpu) / more,
                    "look_rows_per_second": len(pairs) / look,
                    "gather_rows_per_second": len(pairs) / gather,
                    "bytes_per_row": size / len(pairs),
                }
                for name, value in figures.items():
                    found.setdefault(name, []).append(value)
    finally:
        ray.shutdown()
    medians = {name: round(statistics.median(values), 1) for name, values in found.items()}
    return {"rows": len(pairs), "rows_per_shard": 512, "repeats": repeats, **medians}


def shard_seconds(lengths: np.ndarray, prompt: float, rows: int, a: Assumed) -> tuple[float, float]:
    """How long a worker takes for a shard, and how long it would at full speed to the end.

    The slots take the next row as one is done. A step writes one token in each busy slot and takes `step` seconds and a
    share of the rest that grows with the busy slots.
    """
    slots = int(min(a.slots, rows))
    own = np.random.default_rng(0).permutation(np.resize(lengths, rows))
    ends = np.empty(rows, dtype=np.int64)
    free = [0] * slots
    for row, length in enumerate(own.tolist()):
        ends[row] = free[0] + length
        heapq.heapreplace(free, free[0] + length)
    changes = np.zeros(int(ends.max()) + 2)
    np.add.at(changes, ends - own, 1)
    np.add.at(changes, ends, -1)
    busy = np.cumsum(changes)[: int(ends.max())]
    full = a.slots / a.decode
    writing = float((a.step + (full - a.step) * busy / a.slots).sum())
    reading = rows * prompt / a.prefill
    ideal = reading + float(own.sum()) / a.decode
    return (reading + writing) / a.engine, ideal / a.engine


def estimate(measured: dict[str, Any], gpus: int, rows_per_shard: int, a: Assumed) -> dict[str, float]:
    """Hours by part, GPU hours and money."""
    tokens, driver = measured["tokens"], measured["driver"]
    mean = tokens["mean"]
    unchanged = mean["completion_if_unchanged"] / mean["completion"]
    stretch = unchanged + (1 - unchanged) * a.length if a.length <= 1 else a.length
    lengths = np.maximum(1, np.round(np.array(tokens["written_quantiles"]) * stretch)).astype(np.int64)
    shard, ideal = shard_seconds(lengths, mean["prompt"], rows_per_shard, a)
    ranges = ROWS / rows_per_shard
    rounds = math.ceil(math.ceil(ranges) / gpus)
    busy = ranges * shard  # GPU seconds of work
    losses = (busy / 3600 + gpus * a.start / 3600) / a.mtbf
    lost = losses * (shard / 2 + a.start)
    guards = ROWS / measured["read"]["guards_rows_per_second"]
    hand_out = min(gpus, ranges) * rows_per_shard / driver["rows_per_second"]
    parts = {
        "writing at full speed": ranges * ideal / gpus,
        "each shard's tail": ranges * (shard - ideal) / gpus,
        "guards, on one core of each worker": guards / gpus,
        "the last round, not all at work": rounds * shard - ranges * shard / gpus,
        "start of the engines": a.start,
        "lost workers": lost / gpus,
        "first hand-out by the driver": hand_out,
    }
    wall = max(sum(parts.values()), ROWS / driver["rows_per_second"])
    return {
        **{name: seconds / 3600 for name, seconds in parts.items()},
        "hours": wall / 3600,
        "gathering (no GPU)": ROWS / driver["gather_rows_per_second"] / 3600,
        "gpu_hours": gpus * wall / 3600,
        "dollars": gpus * wall / 3600 * a.price,
        "rows_per_second": ROWS / wall,
        "one_lost_worker_gpu_minutes": (shard / 2 + a.start) / 60,
        "losses": losses,
        "gpus_at_which_the_driver_is_the_limit": driver["rows_per_second"] / (rows_per_shard / shard),
        "... were it alone on its core": 1e6 / driver["cpu_us_per_row"] / (rows_per_shard / shard),
    }


def read_results() -> dict[str, float]:
    """What other scripts have measured."""
    guards = json.loads((FOLDER / "guards_speed.json").read_text())
    client = json.loads((FOLDER / "boost_overhead.json").read_text())
    distance = json.loads((FOLDER / "distance.json").read_text())
    found = {
        "guards_rows_per_second": guards["rows_per_second"]["guards"],
        "client_rows_per_second": client["results"]["no latency"]["midb"]["rows_per_second"],
        "distance_rows_per_second": round(distance["rows"] / distance["seconds"]["add_edit_distance"]),
    }
    growth = FOLDER / "growth.json"
    if growth.exists():  # how the same driver goes without Ray, at the most rows measured
        rows, figures = max(json.loads(growth.read_text())["results"]["cluster"].items(), key=lambda each: int(each[0]))
        found |= {"growth_rows": int(rows), "growth_cpu_us_per_row": figures["cpu_us_per_row"]}
    return found


def compute(measured: dict[str, Any]) -> dict[str, Any]:
    places = {"better": 0, "expected": 1, "worse": 2}
    expected = Assumed.at(1)
    sensitivity = {
        field.name: {
            name: {
                key: round(value, 2)
                for key, value in estimate(
                    measured, 8, ROWS_PER_SHARD, replace(expected, **{field.name: float(ASSUMED[field.name][place])})
                ).items()
                if key in ("hours", "dollars")
            }
            for name, place in places.items()
            if name != "expected"
        }
        for field in fields(Assumed)
    }
    sizes = (512, 1024, 2048, 4096, 8192, 16_384)
    return {
        "estimates": {
            name: {
                str(gpus): {
                    key: round(value, 4)
                    for key, value in estimate(measured, gpus, ROWS_PER_SHARD, Assumed.at(place)).items()
                }
                for gpus in GPUS
            }
            for name, place in places.items()
        },
        "sensitivity_at_8_gpus": sensitivity,
        "hours_by_rows_per_shard": {
            str(gpus): {str(size): round(estimate(measured, gpus, size, expected)["hours"], 2) for size in sizes}
            for gpus in GPUS
        },
    }


def show(report: dict[str, Any]) -> None:
    measured, computed = report["measured"], report["computed"]
    print("\nmeasured: tokens a row, Llama 3's vocabulary")
    for language, each in measured["tokens"]["by_language"].items():
        print(
            f"  {language:<3} prompt {each['prompt']:>6}  expert's edit {each['completion']:>6}  raw pair {each['completion_if_unchanged']:>6}"
        )
    print(
        f"  mean {measured['tokens']['mean']}; assumed for the {LANGUAGES - len(measured['tokens']['by_language'])} languages that are not here"
    )
    print(f"measured: driver {measured['driver']}\nread from results/: {measured['read']}")
    print("\nassumed (better, expected, worse)")
    for name, (better, expected, worse, why) in ASSUMED.items():
        print(f"  {name:<8} {better:>8,g} {expected:>8,g} {worse:>8,g}  {why}")
    print(f"\nhours, as expected, {ROWS_PER_SHARD:,} rows a shard" + "".join(f"{gpus:>12} GPU" for gpus in GPUS))
    expected = computed["estimates"]["expected"]
    for name in expected["1"]:
        print(f"  {name:<46}" + "".join(f"{expected[str(gpus)][name]:>16,.3f}" for gpus in GPUS))
    for name in ("better", "worse"):
        found = computed["estimates"][name]
        for key in ("hours", "dollars", "gpus_at_which_the_driver_is_the_limit"):
            print(f"  {f'{key}, all {name}':<46}" + "".join(f"{found[str(gpus)][key]:>16,.1f}" for gpus in GPUS))
    print("\n8 GPUs, one assumption at a time: hours (dollars), better and worse")
    for name, found in computed["sensitivity_at_8_gpus"].items():
        print(f"  {name:<8}" + "".join(f"{each['hours']:>10.2f} ({each['dollars']:,.0f})" for each in found.values()))
    print("\nhours by rows a shard")
    for gpus, found in computed["hours_by_rows_per_shard"].items():
        print(f"  {gpus:>2} GPU  " + "  ".join(f"{int(size):,}: {hours}" for size, hours in found.items()))
    print("\nnot measured: no GPU was at hand. Every figure above that holds GPU time rests on the assumed values.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED, help="the folder that holds data/")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--reuse", action="store_true")
    options = parser.parse_args()
    datasets.disable_progress_bars()
    if options.reuse:
        report = json.loads(RESULTS.read_text())
    else:
        edits = release.load_training(str(options.shared / "data/midb"))
        report = {
            "command": " ".join(["python", "benchmarks/cost_model.py", *sys.argv[1:]]),
            "hardware": hardware(),
            "load_before": round(os.getloadavg()[0], 1),  # above the cores: others were at work too
            "versions": {name: version(name) for name in ("datasets", "pyarrow", "ray")}
            | {"python": platform.python_version()},
            "gpu": "not measured: no GPU was at hand",
            "rows": ROWS,
            "measured": {"driver": measure_driver(edits, options.repeats), "tokens": count_tokens(edits)},
        }
    report["measured"]["read"] = read_results()
    report["assumed"] = {
        name: {"better": better, "expected": expected, "worse": worse, "source": why}
        for name, (better, expected, worse, why) in ASSUMED.items()
    }
    report["computed"] = compute(report["measured"])
    show(report)
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
