"""What midb costs beside the questions that it puts to a judge: judgments per second, asked and remembered.

    python benchmarks/judge_throughput.py [--rows 1000] [--repeats 5] [--concurrency 32] [--alpaca-eval PYTHON]

A judgment is one call; each comparison takes two, one in each order. The judge is `tests/fake_judge.py` in a process of its
own, without latency, and its replies are an explanation and a verdict. midb does all its work: the join by id, the prompts,
requests, a journal on disk with every answer committed before it is used, parsing, the merge of both orders, lengths and
edit distances, and a look whether each answer is in its language (a line without that says what it takes). The loops keep
the same number of the same requests in flight and read the text of each reply, nothing more. What is remembered is measured
against the journal alone, which finds the same answers and does nothing with them.

alpaca_eval, in an environment of its own (the interpreter is the option's), judges the same pairs with the same prompt in
both orders, with as many threads as midb has requests in flight, and parses with its regex parser; its second run answers
from its file. Imports are not timed. Repeats are interleaved and medians reported; each ratio is the median of the ratios
within a repeat, as a shared machine drifts between them. The CPU is this process's own, which other work moves less.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import openai
from boost_overhead import SAMPLE, aiohttp_loop, hardware, openai_loop

from midb.generators import Journal, OpenAIGenerator
from midb.judging import Judge

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from fake_judge import FakeJudge, Played, answered

RESULTS = Path(__file__).parent / "results" / "judge_throughput.json"
AIMS = {"midb": 500, "midb, remembered": 20_000}
ALPACA_EVAL = """
import json, os, sys, time
url, folder, concurrency = sys.argv[1:]
os.environ |= {"OPENAI_API_KEYS": "none", "OPENAI_API_BASE": url, "OPENAI_MAX_CONCURRENCY": concurrency}
from importlib.metadata import version
import yaml
from alpaca_eval.annotators import PairwiseAnnotator
how = {
    "prompt_template": f"{folder}/prompt.txt", "fn_completions": "openai_completions", "batch_size": 1,
    "completions_kwargs": {"model_name": "played", "max_tokens": 4096, "temperature": 0, "price_per_token": 0},
    "fn_completion_parser": "regex_parser",
    "completion_parser_kwargs": {"outputs_to_match": {1: r"\\[\\[1\\]\\]", 2: r"\\[\\[2\\]\\]"}},
}
os.mkdir(f"{folder}/judge")
yaml.safe_dump({"played": how}, open(f"{folder}/judge/configs.yaml", "w"))
pairs = json.load(open(f"{folder}/pairs.json", encoding="utf-8"))
found = {"versions": {name: version(name) for name in ("alpaca_eval", "openai", "pandas")}}
for name in ("asked", "remembered"):
    begun = time.perf_counter()
    judge = PairwiseAnnotator(annotators_config="judge", base_dir=folder, caching_path=f"{folder}/kept.json")
    told = judge(pairs)
    found[name] = time.perf_counter() - begun
    found[f"{name} verdicts"] = sum(each["preference"] in (1, 2) for each in told)
print(json.dumps(found))
"""
TURN = "<|im_start|>{role}\n{content}\n<|im_end|>"


class Taken(NamedTuple):
    """Seconds: of the clock, and of this process's CPU."""

    wall: float
    cpu: float | None


def systems(rows: int) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Two systems' answers, 100 to 1,500 characters, to the quickstart's instructions over and over with another number."""
    sample = [json.loads(line) for line in SAMPLE.read_text(encoding="utf-8").splitlines()]
    asked = [sample[number % len(sample)] | {"number": number} for number in range(rows)]
    questions = datasets.Dataset.from_list(
        [
            {
                "id": row["number"],
                "language": row["language"],
                "turns": [f"{row['instruction']} ({row['number']}) {row['input']}"],
            }
            for row in asked
        ]
    )
    return answered(questions, "A"), answered(questions, "B")


def judge_of(url: str, journal: Path, concurrency: int) -> Judge:
    generator = OpenAIGenerator("played", base_url=url, concurrency=concurrency)
    return Judge(generator=Journal(generator, journal), controls=0)


def clock() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def since(begun: tuple[float, float]) -> Taken:
    wall, cpu = clock()
    return Taken(wall - begun[0], cpu - begun[1])


def check(count: int, expected: int) -> None:
    if count != expected:
        raise SystemExit(f"{count} of {expected} judgments came; the figures would mean nothing")


def contestants(one: Any, other: Any, url: str, folder: Path, concurrency: int) -> dict[str, Callable[[], Taken]]:
    """Who is measured; each returns what it took."""
    judgments, kept = 2 * len(one), folder / "kept.journal"
    judge = judge_of(url, kept, concurrency)
    chats = list(judge.preview(one, other, n=None))

    def midb(remembered: bool, **how: Any) -> Taken:
        if not remembered:
            kept.unlink(missing_ok=True)
        begun = clock()
        verdicts = replace(judge, **how).compare(one, other)
        taken = since(begun)
        check(sum(each is not None for name in ("verdict_ab", "verdict_ba") for each in verdicts[name]), judgments)
        check(sum(verdicts["remembered"]), judgments if remembered else 0)
        return taken

    def journal() -> Taken:
        begun = clock()
        found = judge.generator.generate(chats, judge.sampling)
        taken = since(begun)
        check(sum(each.remembered for each in found), judgments)
        return taken

    def loop(make: Callable[[], Any]) -> Taken:
        begun = clock()
        texts = asyncio.run(make())
        taken = since(begun)
        check(len(texts), judgments)
        return taken

    return {
        "midb": lambda: midb(False),
        "midb, remembered": lambda: midb(True),
        "midb, no language check": lambda: midb(False, check_language=False),
        "midb, no language check, remembered": lambda: midb(True, check_language=False),
        "the journal alone, remembered": journal,
        "openai": lambda: loop(lambda: openai_loop(chats, concurrency, url, None)),
        "openai + aiohttp": lambda: loop(lambda: openai_loop(chats, concurrency, url, openai.DefaultAioHttpClient())),
        "aiohttp": lambda: loop(lambda: aiohttp_loop(chats, concurrency, url)),
    }


def alpaca_eval(python: str, one: Any, other: Any, url: str, concurrency: int) -> dict[str, Any]:
    """Seconds that alpaca_eval took to judge both orders of every pair, and then to find them again; or why it did not."""
    form = Judge(generator=OpenAIGenerator("played", base_url=url)).prompts.answers
    user = form.user.replace("{question}", "{instruction}").replace("{answer_", "{output_")
    user = user.replace("{output_a}", "{output_1}").replace("{output_b}", "{output_2}")
    pairs = []
    for a, b in zip(one, other, strict=True):
        for first, second in ((a, b), (b, a)):
            said = {"output_1": first["answers"][0], "output_2": second["answers"][0]}
            pairs.append({"instruction": a["turns"][0], **said})
    with tempfile.TemporaryDirectory() as folder:
        turns = [TURN.format(role=role, content=text) for role, text in (("system", form.system), ("user", user))]
        Path(folder, "prompt.txt").write_text("\n".join(turns), encoding="utf-8")
        Path(folder, "pairs.json").write_text(json.dumps(pairs), encoding="utf-8")
        command = [python, "-c", ALPACA_EVAL, url, folder, str(concurrency)]
        ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        return {"error": ended.stderr.strip().splitlines()[-1]}
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    check(found["asked verdicts"] + found["remembered verdicts"], 2 * len(pairs))
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    one, other = systems(options.rows)
    taken: dict[str, list[Taken]] = {}
    found: dict[str, Any] = {}
    with FakeJudge(Played(win=0.5, tie=0.0)) as server, tempfile.TemporaryDirectory() as folder:
        few = [each.select(range(min(100, options.rows))) for each in (one, other)]
        for run in contestants(*few, server.url, Path(folder), options.concurrency).values():
            run()
        runs = contestants(one, other, server.url, Path(folder), options.concurrency)
        for _ in range(options.repeats):
            for name, run in runs.items():
                taken.setdefault(name, []).append(run())
            if options.alpaca_eval and "error" not in found:
                found = alpaca_eval(options.alpaca_eval, one, other, server.url, options.concurrency)
                if "error" not in found:
                    taken.setdefault("alpaca_eval", []).append(Taken(found["asked"], None))
                    taken.setdefault("alpaca_eval, remembered", []).append(Taken(found["remembered"], None))
    told: dict[str, Any] = {}
    for name, times in taken.items():
        ours = taken["midb, remembered" if name.endswith("remembered") else "midb"]
        walls, cpus = [each.wall for each in times], [each.cpu for each in times if each.cpu is not None]
        told[name] = {
            "judgments_per_second": round(2 * options.rows / statistics.median(walls)),
            "midb_is": round(
                statistics.median(each.wall / mine.wall for each, mine in zip(times, ours, strict=True)), 2
            ),
            "cpu_ms_per_judgment": round(500 * statistics.median(cpus) / options.rows, 3) if cpus else None,
            "all_judgments_per_second": [round(2 * options.rows / each) for each in walls],
        }
    for name, aim in AIMS.items():
        told[name] |= {"aim": aim, "reached": told[name]["judgments_per_second"] >= aim}
    if "error" in found:
        told["alpaca_eval"] = {"not measured": found["error"]}
    return {"alpaca_eval": found.get("versions"), "results": told}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--alpaca-eval", metavar="PYTHON", help="an interpreter that has alpaca_eval")
    options = parser.parse_args()
    datasets.disable_progress_bars()
    report: dict[str, Any] = {
        "command": f"python benchmarks/judge_throughput.py --rows {options.rows} --repeats {options.repeats} "
        f"--concurrency {options.concurrency}{' --alpaca-eval PYTHON' if options.alpaca_eval else ''}",
        "hardware": hardware(),
        "load_before": round(os.getloadavg()[0], 1),  # above the cores: others were at work too
        "versions": {name: version(name) for name in ("openai", "aiohttp", "datasets")}
        | {"python": platform.python_version()},
    }
    measured = measure(options)
    report |= {
        "alpaca_eval": measured["alpaca_eval"],
        "load_after": round(os.getloadavg()[0], 1),
        "results": measured["results"],
    }
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps({name: value for name, value in report.items() if name != "results"}, indent=2))
    print(f"\n{'':<38} {'judgments/s':>11} {'midb is':>9} {'CPU ms each':>12}")
    for name, each in report["results"].items():
        if "not measured" in each:
            print(f"  {name:<36} {'not measured':>11}: {each['not measured']}")
        else:
            cpu = each["cpu_ms_per_judgment"] or "not measured"
            print(f"  {name:<36} {each['judgments_per_second']:>11,} {each['midb_is']:>8.2f}× {cpu:>12}")


if __name__ == "__main__":
    main()
