"""The server of the tests as the peers need it, and with the time of the first request in its `/stats`.

    python benchmarks/peers/server.py PORT [--latency S] [--spread SHARE] [--slow-every N --slow S]

With a spread each answer takes its own time around the latency, so that answers do not come in waves of the concurrency.
curator asks about limits with a request that has no messages, and datatrove reads each answer until the server closes.
"""

import argparse
import asyncio
import contextlib
import random
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from fake_openai import Connection, FakeOpenAI, World


class PeersWorld(World):
    """Counts as the tests' server does, and says when the first request came."""

    def __init__(self, latency: float, slow_every: int, slow: float, spread: float) -> None:
        self.spread, self.random = spread, random.Random(0)
        super().__init__(latency, slow_every, slow)

    @property
    def latency(self) -> float:  # type: ignore[override]
        """Of the next answer."""
        return self.around * self.random.uniform(1 - self.spread, 1 + self.spread)

    @latency.setter
    def latency(self, seconds: float) -> None:
        self.around = seconds

    def reset(self) -> None:
        """Zero the counts."""
        super().reset()
        self.first: float | None = None

    def stats(self) -> dict[str, Any]:
        """The counts."""
        return super().stats() | {"first": self.first}


class PeersConnection(Connection):
    """Closes after its answer where it is asked to, and counts no question about limits."""

    world: PeersWorld

    def chat(self, head: bytes, body: bytes) -> None:
        """Take a request."""
        self.closes = b"connection: close" in head.lower()
        if b'"messages": []' in body or b'"messages":[]' in body:
            self.send(400, b'{"error": {"message": "no messages"}}')
            return
        if self.world.first is None:
            self.world.first = time.time()
        super().chat(head, body)

    def send(self, status: int, body: bytes, headers: str = "") -> None:
        """Send an answer."""
        super().send(status, body, headers)
        if getattr(self, "closes", False):
            self.transport.close()


class PeersServer(FakeOpenAI):
    """The server as a context manager, in a process of its own."""

    def __init__(self, latency: float = 0.0, slow_every: int = 0, slow: float = 0.0, spread: float = 0.0) -> None:
        super().__init__(latency, slow_every, slow)
        self.command[1] = str(Path(__file__).resolve())
        self.command += ["--spread", str(spread)]


async def serve(port: int, world: PeersWorld) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: PeersConnection(world), "127.0.0.1", port, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--slow-every", type=int, default=0)
    parser.add_argument("--slow", type=float, default=0.0)
    parser.add_argument("--spread", type=float, default=0.0)
    options = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(options.port, PeersWorld(options.latency, options.slow_every, options.slow, options.spread)))
