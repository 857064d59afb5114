"""A loopback server that speaks enough of the OpenAI API to be mistaken for a real one, good or sick.

    python tests/fake_openai.py PORT [--latency S] [--slow-every N --slow S]

Runs in its own process, so that it shares no GIL with what it tests: `with FakeOpenAI() as server: server.url`.

A fault is chosen by a marker in the last message: `[[500]]` fails always; `[[500,429:0.2,ok]]` fails the first time
with 500, the second with 429 and `Retry-After: 0.2`, then answers for good (the last word repeats). The words:

    ok        a status, as in `503` or `429:1.5` (with Retry-After)
    hang      nothing until `/heal`                  trickle   a byte now and then, for ever
    reset     the connection breaks                  garbage   no HTTP
    broken    half of the JSON                       html, list, error   a 200 that is something else
    empty     no choices                             null, tool, parts, surrogate   content that is no plain text
    length    finish_reason length                   nothought   null content, finish_reason length
    nousage   no token counts

GET `/fault/WORD` puts one on every request (`/fault/503-after-100` once so many were answered); `/heal` takes all faults
away and lets hanging requests go; `/reset` zeroes the counts. `/stats` counts requests, `/asked` says how often each last
message was [asked, answered in full].

Counts are of chats only. What other paths say is `told`, JSON or a status by path; `/stats` has how often each was read.
By default `/v1/models` lists one plain entry, as OpenAI does: it does not tell what is served, so the address counts.
"""

import argparse
import asyncio
import contextlib
import json
import re
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

MARKER = re.compile(r"\[\[(?!\d\])([a-z0-9:.,-]+)\]\]")  # one digit alone is a verdict
AUTHORIZATION = re.compile(rb"authorization: *([^\r]*)", re.IGNORECASE)
LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


class World:
    """What all connections share: counts, and whether the server is sick."""

    def __init__(self, latency: float, slow_every: int, slow: float, told: dict[str, Any] | None = None) -> None:
        self.latency, self.slow_every, self.slow = latency, slow_every, slow
        plain = {"object": "list", "data": [{"id": "fake", "object": "model", "created": 1, "owned_by": "fake"}]}
        self.told = {"/v1/models": plain} | (told or {})
        self.healed = asyncio.Event()
        self.fault = ""
        self.reset()

    def reset(self) -> None:
        self.asked: dict[str, list[int]] = {}
        self.requests = self.answered = self.connections = self.in_flight = self.max_in_flight = 0
        self.authorizations: set[str] = set()
        self.read: dict[str, int] = {}
        self.last: dict[str, Any] = {}

    def stats(self) -> dict[str, Any]:
        plain = ("requests", "answered", "connections", "in_flight", "max_in_flight", "last", "read")
        return {key: getattr(self, key) for key in plain} | {"authorizations": sorted(self.authorizations)}

    def fault_of(self, text: str, times: int) -> str:
        """The fault of this prompt when it is asked for the `times`-th time."""
        if self.healed.is_set():
            return "ok"
        fault, _, after = self.fault.partition("-after-")
        if fault and self.answered >= int(after or 0):
            return fault
        found = MARKER.search(text)
        words = found[1].split(",") if found else ["ok"]
        return words[min(times, len(words)) - 1]

    def key_of(self, request: dict[str, Any]) -> str:
        """What a request is counted under."""
        content = request["messages"][-1]["content"]
        return content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)

    def reply(self, request: dict[str, Any], key: str, fault: str) -> bytes:
        """The body of a 200."""
        return chat_reply(request, key, fault)


def chat_reply(request: dict[str, Any], text: str, fault: str) -> bytes:
    """The body of a 200 reply, as broken as `fault` wants it."""
    _, tag, pair = text.partition("<|instruction|>")  # a request to boost gets its pair back, a little longer
    content: Any = (
        "[[1]]"
        if "JUDGE" in text or "[The Start of " in text
        else f"{tag}{pair} (2026)"
        if tag
        else "REVISED: " + text[-400:]
    )
    parts = [{"type": "thinking", "thinking": []}, {"type": "text", "text": "two "}, {"type": "text", "text": "parts"}]
    odd = {"null": None, "nothought": None, "parts": parts, "tool": 7, "surrogate": "cut \ud83d"}
    content = odd.get(fault, content)
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": content},
        "finish_reason": "length" if fault in ("length", "nothought") else "stop",
        "logprobs": {"content": [{"token": "R", "logprob": -0.5, "top_logprobs": []}]}
        if request.get("logprobs")
        else None,
    }
    reply: dict[str, Any] = {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": request.get("model"),
        "choices": [] if fault == "empty" else [choice],
        "usage": {"prompt_tokens": len(text) // 4, "completion_tokens": 100, "total_tokens": 100 + len(text) // 4},
    }
    if fault == "nousage":
        del reply["usage"]
    if fault == "list":
        return b"[1, 2]"
    if fault == "error":
        return b'{"error": {"message": "no provider"}}'
    if fault == "html":
        return b"<html>It works!</html>"
    body = json.dumps(reply).encode()
    return body[: len(body) // 2] if fault == "broken" else body


class Connection(asyncio.Protocol):
    """One keep-alive HTTP/1.1 connection, without pipelining. A Protocol, as it costs a fifth of asyncio's streams."""

    def __init__(self, world: World) -> None:
        self.world, self.buffer = world, bytearray()
        self.waiting: asyncio.Task[None] | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.world.connections += 1

    def connection_lost(self, error: Exception | None) -> None:
        if self.waiting and not self.waiting.done():
            self.waiting.cancel()
            self.world.in_flight -= 1

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head_end = self.buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return
        head = bytes(self.buffer[:head_end])
        found = LENGTH.search(head)
        end = head_end + 4 + (int(found[1]) if found else 0)
        if len(self.buffer) < end:
            return
        body = bytes(self.buffer[head_end + 4 : end])
        del self.buffer[:end]
        path = head.split(b" ", 2)[1].decode()
        if path.endswith("/chat/completions"):
            self.chat(head, body)
        else:
            self.admin(path)

    def admin(self, path: str) -> None:
        world, verb = self.world, path.rsplit("/", 1)[-1]
        if verb == "heal":
            world.healed.set()
        elif verb == "reset":
            world.reset()
        elif "/fault/" in path:
            world.fault = verb
            world.healed.clear()
        elif path in world.told:
            world.read[path] = world.read.get(path, 0) + 1
            told = world.told[path]
            self.send(told if isinstance(told, int) else 200, json.dumps(told).encode())
            return
        known = verb in ("heal", "reset", "stats", "asked", "health") or "/fault/" in path
        self.send(200 if known else 404, json.dumps(world.asked if verb == "asked" else world.stats()).encode())

    def chat(self, head: bytes, body: bytes) -> None:
        world = self.world
        request = json.loads(body)
        text = world.key_of(request)
        counts = world.asked.setdefault(text, [0, 0])
        counts[0] += 1
        world.requests += 1
        world.in_flight += 1
        world.max_in_flight = max(world.max_in_flight, world.in_flight)
        world.last = request
        found = AUTHORIZATION.search(head)
        self.key = found[1].decode() if found else ""
        if len(world.authorizations) < 10:
            world.authorizations.add(self.key)
        fault = world.fault_of(text, counts[0])
        slow = world.slow_every and world.requests % world.slow_every == 0
        if fault == "hang":
            self.waiting = asyncio.get_running_loop().create_task(self.hang(request, text, counts))
        elif fault == "trickle":
            self.waiting = asyncio.get_running_loop().create_task(self.trickle())
        elif delay := world.slow if slow else world.latency:
            asyncio.get_running_loop().call_later(delay, self.answer, request, text, counts, fault)
        else:
            self.answer(request, text, counts, fault)

    async def hang(self, request: dict[str, Any], text: str, counts: list[int]) -> None:
        await self.world.healed.wait()
        self.answer(request, text, counts, "ok")

    async def trickle(self) -> None:
        self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        while True:
            self.transport.write(b" ")
            await asyncio.sleep(0.05)

    def answer(self, request: dict[str, Any], text: str, counts: list[int], fault: str) -> None:
        self.world.in_flight -= 1
        if self.transport.is_closing():
            return
        status, _, wait = fault.partition(":")
        if fault == "reset":
            linger = struct.pack("ii", 1, 0)  # closing with zero linger sends RST, as a crashed server does
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.transport.abort()
        elif fault == "garbage":
            self.transport.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
        elif status.isdigit():  # the key comes back, as from servers that say which one is wrong
            body = {"error": {"message": f"{status} for the key {self.key}\n", "type": "fake", "code": None}}
            self.send(int(status), json.dumps(body).encode(), f"Retry-After: {wait}\r\n" if wait else "")
        else:
            if fault != "broken":  # which is no answer in full
                counts[1] += 1
                self.world.answered += 1
            self.send(200, self.world.reply(request, text, fault))

    def send(self, status: int, body: bytes, headers: str = "") -> None:
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
        self.transport.write(head.encode() + body)


async def serve(port: int, world: World) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(world), "127.0.0.1", port, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


class FakeOpenAI:
    """The server as a context manager, in a process of its own.

    Args:
        latency: Seconds before each answer.
        slow_every: Every so-many-th request is a straggler.
        slow: Seconds that a straggler takes.
        port: 0 takes a free one.
        told: What paths other than chats say.
    """

    def __init__(
        self,
        latency: float = 0.0,
        slow_every: int = 0,
        slow: float = 0.0,
        port: int = 0,
        told: dict[str, Any] | None = None,
    ) -> None:
        options = [str(port), "--latency", str(latency), "--slow-every", str(slow_every), "--slow", str(slow)]
        options += ["--told", json.dumps(told or {})]
        self.command = [sys.executable, str(Path(__file__).resolve()), *options]

    def __enter__(self) -> "FakeOpenAI":
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        self.port = int(self.process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}/v1"
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """Die at once: whoever asks now is refused."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdout
        self.process.stdout.close()

    def get(self, path: str) -> Any:
        """GET an admin path: `stats`, `asked`, `heal`, `reset`, `fault/503`."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/{path}", timeout=10) as reply:
            return json.load(reply)

    def wait_until(self, condition: Callable[[dict[str, Any]], bool], seconds: float = 20.0) -> dict[str, Any]:
        """Poll `/stats` until `condition` holds; tests wait for facts, not for the clock."""
        deadline = time.monotonic() + seconds
        while not condition(stats := self.get("stats")):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the server never got there; its last counts: {stats}")
            time.sleep(0.01)
        return stats


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--slow-every", type=int, default=0)
    parser.add_argument("--slow", type=float, default=0.0)
    parser.add_argument("--told", type=json.loads, default={})
    options = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(options.port, World(options.latency, options.slow_every, options.slow, options.told)))
