"""One server over HTTP: its session, its limits, and what it says it serves.

Knows connections, proxies and certificates; not when a chat is worth another try. Replies are read up to a limit, no
redirect is followed, and nothing is kept between requests but the connection.
"""

import asyncio
import os
import threading
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from midb.errors import GenerationError
from midb.generators import wire

ERROR_LIMIT = 65536  # bytes of an error's body that are read
LISTING_LIMIT = 16 * 2**20  # providers list thousands of models


class Reply(NamedTuple):
    """What came back; `whole` unless it was larger than the limit."""

    status: int
    headers: Mapping[str, str]
    data: bytes
    whole: bool


class Endpoint:
    """One event loop in a thread of its own, one HTTP session: the same in a script and under a running loop."""

    def __init__(self, base_url: str, api_key: str | None, concurrency: int, timeout: float) -> None:
        given = (api_key or "").strip() or os.environ.get("OPENAI_API_KEY", "").strip()
        if not (given.isascii() and given.isprintable()):
            raise GenerationError("the API key holds characters that no HTTP header can carry; check OPENAI_API_KEY")
        self.base_url = base_url.rstrip("/")
        self.url = f"{self.base_url}/chat/completions"
        self.patience = min(timeout, 30.0)  # to connect, and to say what is served
        self.proxy = _proxy(self.base_url)  # once: aiohttp would look it up for each request
        self.secrets = [secret for secret in (given, self.proxy and urlsplit(self.proxy).password) if secret]
        self.headers = {
            "Authorization": f"Bearer {given or 'none'}",
            "Content-Type": "application/json",
            "Accept-Encoding": "gzip, deflate",  # what `wire.decompress` undoes
            "User-Agent": f"midb/{version('midb')}",
        }
        for header, variable in (("OpenAI-Organization", "OPENAI_ORG_ID"), ("OpenAI-Project", "OPENAI_PROJECT_ID")):
            if value := os.environ.get(variable, "").strip():
                self.headers[header] = value
        self.served: Any = None
        self.process, started = os.getpid(), threading.Event()
        live = self._live(concurrency, _certificates(self.base_url), started)
        self.thread = threading.Thread(target=asyncio.run, args=[live], name="midb-openai", daemon=True)
        self.thread.start()
        started.wait()

    async def _live(self, concurrency: int, certificates: Any, started: threading.Event) -> None:
        self.loop, self.closing, self.asking = asyncio.get_running_loop(), asyncio.Event(), asyncio.Lock()
        # uvicorn, under most servers, drops idle connections after 5 s: drop them before a request meets a closing one.
        connector = aiohttp.TCPConnector(limit=concurrency, keepalive_timeout=4.0, ssl=certificates)
        self.http = aiohttp.ClientSession(
            connector=connector,
            headers=self.headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self.patience),  # a try has a deadline of its own
            auto_decompress=False,
        )
        async with self.http:
            started.set()
            await self.closing.wait()

    async def exchange(self, method: str, url: str, limit: int, content: bytes | None = None) -> Reply:
        """Send one request and read what comes back, up to a limit; then the connection is dropped."""
        async with self.http.request(method, url, data=content, allow_redirects=False, proxy=self.proxy) as response:
            if response.status != 200:
                limit = min(limit, ERROR_LIMIT)
            parts, size = [], 0
            async for part in response.content.iter_any():
                parts.append(part)
                size += len(part)
                if size > limit:
                    response.close()
                    break
        data = wire.decompress(b"".join(parts), response.headers.get("Content-Encoding", "").strip().lower(), limit)
        return Reply(response.status, response.headers, data, size <= limit and len(data) <= limit)

    async def find_served(self, model: str, tries: int, pause: float) -> None:
        """Ask the server once what it serves; where it does not say, the address stands for it."""
        async with self.asking:
            if self.served:
                return
            listing = await self._get(f"{self.base_url}/models", tries, pause)
            owner = str(wire.listed_model(listing, model).get("owned_by"))
            root = self.base_url.removesuffix("/v1")
            further = {path: await self._get(root + path, tries, pause) for path in wire.FURTHER.get(owner, ())}
            told = wire.served_model(listing, model, self.base_url, further)
            self.served = told or [wire.address_of(self.base_url)]

    async def _get(self, url: str, tries: int, pause: float) -> Any:
        """The JSON at an address; None where the server has none."""
        for attempt in range(tries):
            if attempt:
                await asyncio.sleep(pause * attempt)
            try:
                async with asyncio.timeout(self.patience):
                    reply = await self.exchange("GET", url, LISTING_LIMIT)
            except Exception as error:
                detail = wire.cause(error)[1]
                continue
            if reply.status not in wire.RETRIED and (reply.status < 500 or reply.status == 501):
                return wire.parse(reply.data) if reply.status == 200 and reply.whole else None
            detail = f"http_{reply.status}: {wire.error_message(reply.data)}"
        raise GenerationError(
            f"{url} does not tell what is served ({wire.one_line(detail, self.secrets)}); see that the server runs, or say "
            "it yourself: OpenAIGenerator(..., served='my model')"
        )

    def close(self) -> None:
        """End the thread and its sockets: when the generator goes, or at the interpreter's exit."""
        if self.process != os.getpid():
            _left_behind.append(self)  # a fork shares its parent's sockets: collecting them would deafen the parent
        elif not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.closing.set)
            if threading.current_thread() is not self.thread:
                self.thread.join(5)


_left_behind: list[Endpoint] = []


def _proxy(base_url: str) -> str | None:
    """The proxy that the environment sets for an address."""
    url, proxies = urlsplit(base_url), getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(url.netloc):
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    if urlsplit(proxy).scheme not in ("http", "https"):
        raise GenerationError(
            f"the environment sets a proxy for {url.scheme} that is no http proxy; set NO_PROXY={url.hostname} or "
            f"{url.scheme.upper()}_PROXY"
        )
    return proxy


def _certificates(base_url: str) -> Any:
    """The certificates that the Hub's client trusts: the system's, or those that SSL_CERT_FILE names."""
    if not base_url.startswith("https:"):
        return True
    import httpx2

    return httpx2.create_ssl_context()
