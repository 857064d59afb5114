"""What midb costs beside the requests it sends: rows per second of a whole boost against bare request loops.

    python benchmarks/boost_overhead.py [--rows 1000] [--repeats 5] [--concurrency 32]

The server is `tests/fake_openai.py` in a process of its own. midb does all its work: rendering, requests, a journal on
disk with every answer committed before it is used, parsing, guards, the new dataset. The loops keep the same number of
the same requests in flight (as one ends the next starts), read the text of each reply and keep it in a list, nothing
more: the `openai` client as it comes, the same with its aiohttp transport, and aiohttp alone. Repeats are interleaved and
medians reported; each ratio is the median of the ratios within a repeat, as a shared machine drifts between them.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aiohttp
import datasets
import openai

from midb.booster import Booster
from midb.generators import Journal, OpenAIGenerator
from midb.guards import DEFAULT_GUARDS, Guard

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from fake_openai import FakeOpenAI

RESULTS = Path(__file__).parent / "results" / "boost_overhead.json"
SAMPLE = Path(__file__).parents[1] / "examples/quickstart/sample.jsonl"
SERVERS: dict[str, dict[str, Any]] = {
    "no latency": {},
    "100 ms": {"latency": 0.1},
    "100 ms, every 50th 2 s": {"latency": 0.1, "slow_every": 50, "slow": 2.0},
}


def pairs(rows: int) -> datasets.Dataset:
    """The quickstart's sample in 17 languages, over and over with another number: about 300 characters, no two alike."""
    sample = [json.loads(line) for line in SAMPLE.read_text(encoding="utf-8").splitlines()]
    spoken: dict[str, str] = {}
    for row in sample:
        spoken[row["language"]] = f"{spoken.get(row['language'], '')} {row['response']}".strip()

    def numbered(number: int) -> dict[str, str]:
        row = sample[number % len(sample)]
        response = f"{number}. {spoken[row['language']]}"
        return {
            **{name: row[name] for name in ("language", "input")},
            "instruction": f"{row['instruction']} ({number})",
            "response": response,
        }

    return datasets.Dataset.from_list([numbered(number) for number in range(rows)])


async def window(requests: list[Any], concurrency: int, ask: Callable[[Any], Any]) -> list[str]:
    """The bare loop: `concurrency` requests in flight, a new one as one ends."""
    texts, pending = [], iter(requests)

    async def work() -> None:
        for messages in pending:
            texts.append(await ask(messages))

    await asyncio.gather(*[work() for _ in range(concurrency)])
    return texts


async def openai_loop(requests: list[Any], concurrency: int, url: str, http_client: Any) -> list[str]:
    async with openai.AsyncOpenAI(base_url=url, api_key="none", http_client=http_client) as client:

        async def ask(messages: Any) -> str:
            reply = await client.chat.completions.create(
                model="tiny", messages=messages, temperature=0, max_tokens=2048
            )
            return reply.choices[0].message.content or ""

        return await window(requests, concurrency, ask)


async def aiohttp_loop(requests: list[Any], concurrency: int, url: str) -> list[str]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=concurrency)) as session:

        async def ask(messages: Any) -> str:
            body = {"model": "tiny", "messages": messages, "temperature": 0, "max_tokens": 2048}
            async with session.post(f"{url}/chat/completions", json=body) as response:
                return (await response.json())["choices"][0]["message"]["content"]

        return await window(requests, concurrency, ask)


def contestants(dataset: datasets.Dataset, concurrency: int, url: str) -> dict[str, Callable[[], int]]:
    requests = Booster(generator=OpenAIGenerator("tiny", base_url=url)).preview(dataset, len(dataset))
    asynchronous = {
        "openai": lambda: openai_loop(requests, concurrency, url, None),
        "openai + aiohttp": lambda: openai_loop(requests, concurrency, url, openai.DefaultAioHttpClient()),
        "aiohttp": lambda: aiohttp_loop(requests, concurrency, url),
    }

    def boost(guards: tuple[Guard, ...]) -> int:
        with tempfile.TemporaryDirectory() as folder:
            generator = OpenAIGenerator("tiny", base_url=url, concurrency=concurrency)
            edits = Booster(generator=Journal(generator, f"{folder}/answers.journal"), guards=guards).map(dataset)
        return sum(status == "boosted" for status in edits["boost_status"])

    midb = {"midb": lambda: boost(DEFAULT_GUARDS), "midb, no guards": lambda: boost(())}

    def loop(make: Callable[[], Any]) -> Callable[[], int]:
        return lambda: len(asyncio.run(make()))

    return midb | {name: loop(make) for name, make in asynchronous.items()}


def timed(run: Callable[[], int], rows: int) -> tuple[float, float]:
    """Rows per second, and milliseconds of this process's CPU a row."""
    wall, cpu = time.perf_counter(), time.process_time()
    answered = run()
    if answered != rows:
        raise SystemExit(f"{answered} of {rows} rows were answered; the figures would mean nothing")
    return rows / (time.perf_counter() - wall), 1000 * (time.process_time() - cpu) / rows


def measure(rows: int, repeats: int, concurrency: int, settings: dict[str, Any]) -> dict[str, Any]:
    dataset = pairs(rows)
    with FakeOpenAI(**settings) as server:
        runs = contestants(dataset, concurrency, server.url)
        warm = contestants(dataset.select(range(200)), concurrency, server.url)
        for run in warm.values():
            run()
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        for _ in range(repeats):
            for name, run in runs.items():
                taken[name].append(timed(run, rows))
    median = statistics.median
    return {
        name: {
            "rows_per_second": round(median(speed for speed, _ in times)),
            "cpu_ms_per_row": round(median(cpu for _, cpu in times), 3),
            "midb_is": round(
                median(ours / speed for (ours, _), (speed, _) in zip(taken["midb"], times, strict=True)), 2
            ),
            "all_rows_per_second": [round(speed) for speed, _ in times],
        }
        for name, times in taken.items()
    }


def hardware() -> str:
    cpu = Path("/proc/cpuinfo")
    models = (
        [line.split(":")[1].strip() for line in cpu.read_text().splitlines() if "model name" in line]
        if cpu.exists()
        else []
    )
    return f"{os.cpu_count()} cores, {models[0] if models else platform.processor()}; {platform.system()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--concurrency", type=int, default=32)
    options = parser.parse_args()
    datasets.disable_progress_bars()
    report: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/boost_overhead.py", *sys.argv[1:]]),
        "hardware": hardware(),
        "load_before": round(os.getloadavg()[0], 1),  # above the cores: others were at work too
        "versions": {name: version(name) for name in ("openai", "aiohttp", "datasets")}
        | {"python": platform.python_version()},
        **vars(options),
    }
    print(json.dumps(report, indent=2))
    report["results"] = {}
    for name, settings in SERVERS.items():
        report["results"][name] = measure(options.rows, options.repeats, options.concurrency, settings)
        print(f"\n{name:<24} {'rows/s':>8} {'CPU ms/row':>11} {'midb is':>9}")
        for who, found in report["results"][name].items():
            print(
                f"  {who:<22} {found['rows_per_second']:>8,} {found['cpu_ms_per_row']:>11.3f} {found['midb_is']:>8.2f}×"
            )
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
