"""aiohttp alone, as a loop (the floor) or inside `Dataset.map` with an async function, as the docs of `datasets` do it."""

import asyncio
from typing import Any

import aiohttp
import datasets
from job import Job, Rows, play


async def ask(session: aiohttp.ClientSession, url: str, messages: list[dict[str, str]]) -> str:
    body = {"model": "tiny", "messages": messages, "temperature": 0, "max_tokens": 2048}
    async with session.post(f"{url}/chat/completions", json=body) as response:
        response.raise_for_status()
        text: str = (await response.json())["choices"][0]["message"]["content"]
        return text


async def loop(job: Job) -> list[tuple[int, str | None]]:
    """`concurrency` requests in flight, a new one as one ends; nothing is kept but the texts."""
    answered: list[tuple[int, str | None]] = []
    pending = iter(job.read())

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=job.concurrency)) as session:

        async def work() -> None:
            for row in pending:
                answered.append((row["number"], await ask(session, job.url, row["messages"])))

        await asyncio.gather(*[work() for _ in range(job.concurrency)])
    return answered


def mapped(job: Job) -> Rows:
    """`Dataset.map` keeps its result in a file when it has gone through, and finds it by a hash of rows and function."""
    rows = datasets.Dataset.from_json(job.rows, cache_dir=f"{job.folder}/datasets")
    url, concurrency = job.url, job.concurrency
    opened: list[aiohttp.ClientSession] = []  # a session belongs to a running loop, and `map` makes its own

    async def answer(row: dict[str, Any]) -> dict[str, str]:
        if not opened:
            opened.append(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=concurrency)))
        return {"text": await ask(opened[0], url, row["messages"])}

    result = rows.map(answer)
    return ((row["number"], row["text"]) for row in result)


if __name__ == "__main__":
    datasets.disable_progress_bars()
    play(lambda job: mapped(job) if job.settings.get("map") else asyncio.run(loop(job)))
