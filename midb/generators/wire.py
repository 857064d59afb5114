"""What an OpenAI-compatible server is sent, and how what it returns is read.

Knows the API's JSON, what servers say about the model they serve, and the spellings of a key. Sends nothing.
"""

import contextlib
import html
import ipaddress
import json
import re
import time
import zlib
from base64 import b64encode
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urljoin, urlsplit

from midb.generators.base import Sampling
from midb.schema import Completion

RETRIED = {408, 409, 429}  # and every 5xx
LONGEST_RETRY_AFTER = 120.0
SMALLEST_LIMIT = 4 * 2**20  # bytes that any reply may have
BYTES_A_TOKEN = 256  # a long word, every character escaped
BYTES_A_LOGPROB = 512  # {"token": …, "logprob": …, "bytes": […]}
LONGEST_ERROR = 200  # characters
SCANNED = 20_000  # characters of an error that are searched for the key
FURTHER = {"llamacpp": ("/props", "/lora-adapters"), "sglang": ("/get_model_info",)}  # paths at the server's root
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
# One character as URLs, JSON and HTML may write it; the backslashes and blanks between characters match alone.
SPELLING = re.compile(r"%(?:25)*([0-9a-f]{2})|\\+u00([0-9a-f]{2})|(&#?\w{1,8};)|\\+[nrt]|[\\\s]+|(.)", re.IGNORECASE)
LITERAL = re.compile(r"()()()(.)")
BASE64 = str.maketrans("-_", "+/")  # the alphabet of URLs


def sampling_fields(sampling: Sampling) -> dict[str, Any]:
    """Sampling in the names of the API; a field that is None is left out of the request."""
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
        "seed": None if sampling.seed is None else sampling.seed + sampling.index,  # another sample, another seed
        "logprobs": None if sampling.logprobs is None else True,
        "top_logprobs": sampling.logprobs,
    }


def reply_limit(body: Mapping[str, Any]) -> int:
    """The size in bytes that no honest reply to this request has."""
    counts = [body.get(name) for name in ("max_tokens", "max_completion_tokens")]
    tokens = max((count for count in counts if type(count) is int), default=0)
    alternatives = body.get("top_logprobs")
    listed = 1 + (alternatives if type(alternatives) is int else 0) if body.get("logprobs") else 0
    return max(SMALLEST_LIMIT, 65536 + tokens * (BYTES_A_TOKEN + BYTES_A_LOGPROB * listed))


def decompress(data: bytes, encoding: str, limit: int) -> bytes:
    """Undo the Content-Encoding; stop one byte past `limit`. What cannot be undone becomes a sentence that says so."""
    if encoding in ("", "identity"):
        return data
    for window_bits in (47, -15) if encoding in ("gzip", "x-gzip", "deflate") else ():  # either header, or none
        with contextlib.suppress(zlib.error):
            return zlib.decompressobj(window_bits).decompress(data, limit + 1)
    return f"the reply has an encoding that was not asked for or is broken: {encoding}".encode()


def read_reply(data: bytes) -> Completion | tuple[str, str]:
    """The completion in the body of a 200, or a code and a detail of what is wrong with it."""
    match reply := parse(data):
        case {"choices": [{"message": {"content": str(text)}} as choice, *_]}:
            pass
        case {"choices": [{"message": {"content": [*parts]}} as choice, *_]}:
            text = "".join(str(part.get("text") or "") for part in parts if isinstance(part, dict))
        case {"choices": [{"message": {"content": None}, "finish_reason": "length" | "content_filter"} as choice, *_]}:
            text = ""  # reasoning took all tokens, or a filter took the text: an answer, if an empty one
        case {"choices": [] | [{"message": {"content": None}}, *_]}:
            return "empty_reply", "the reply holds no text"
        case _:
            return "broken_reply", error_message(data)
    usage = reply["usage"] if isinstance(reply.get("usage"), dict) else {}
    counts = {name: count for name, count in usage.items() if type(count) is int and 0 <= count < 2**63}
    return Completion(
        # JSON can carry half a surrogate pair (an emoji cut at max_tokens), which neither Arrow nor SQLite can hold.
        text=text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"),
        finish_reason=str(choice.get("finish_reason") or "stop"),
        prompt_tokens=counts.get("prompt_tokens"),
        completion_tokens=counts.get("completion_tokens"),
        logprobs=choice.get("logprobs"),
    )


def parse(data: bytes) -> Any:
    """The JSON in `data`; None when there is none."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def error_message(data: bytes) -> str:
    """What an error's body says: the shapes of OpenAI, vLLM and FastAPI, else the text as it is."""
    match parse(data):
        case {"error": {"message": str(said)}} | {"error": str(said)} | {"message": str(said)} | {"detail": str(said)}:
            return said
    return data.decode("utf-8", "replace")


def redirect_message(location: str, url: str) -> str:
    """Where a redirect points and what to do: neither the key nor the rows follow it.

    The whole address is shown for the same host only; another host may put anything into its path.
    """
    try:
        here, there = urlsplit(url), urlsplit(urljoin(url, location))
        host, port = there.hostname or "", f":{there.port}" if there.port else ""
    except ValueError:
        host = ""
    if not host:
        return "the server redirects to no address; check base_url"
    target = f"{there.scheme}://{f'[{host}]' if ':' in host else host}{port}"
    if host == here.hostname:
        target += there.path.removesuffix("/chat/completions")
        return f"the server redirects to {target}; give that address as base_url"
    return f"the server redirects to {target}, another host; give its address as base_url if you trust it with your key"


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The wait that a server asks for, in seconds and within reason; None when it asks for none."""
    for header, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(header, "")
        with contextlib.suppress(ValueError, OverflowError):
            is_date = not value.replace(".", "").isdigit()
            seconds = parsedate_to_datetime(value).timestamp() - time.time() if is_date else float(value) * unit
            return min(max(seconds, 0.0), LONGEST_RETRY_AFTER)
    return None


def host_of(base_url: str) -> str:
    """The host without its port, in lower case; all names of this machine's loopback are `localhost`."""
    host = (urlsplit(base_url).hostname or "").removesuffix(".")
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host)
        return "localhost" if address.is_loopback or address.is_unspecified else address.compressed
    return host


def address_of(base_url: str) -> str:
    """One spelling for one address: scheme, host, port and path.

    Raises:
        ValueError: The port is no port.
    """
    url = urlsplit(base_url)
    port = url.port or {"http": 80, "https": 443}.get(url.scheme)
    return f"{url.scheme}://{host_of(base_url)}:{port}{url.path.rstrip('/')}"


def listed_model(listing: Any, model: str) -> dict[str, Any]:
    """The entry of GET /models that answers for `model`: the one of that id, or the only one; {} when there is none."""
    match listing:
        case {"data": [*found]}:
            entries = [entry for entry in found if isinstance(entry, dict)]
            return next(
                (entry for entry in entries if entry.get("id") == model), entries[0] if len(entries) == 1 else {}
            )
    return {}


def served_model(listing: Any, model: str, base_url: str, further: Mapping[str, Any]) -> list[Any] | None:
    """What the server says it serves, as far as that stays the same between starts; None when it says nothing.

    vLLM names the model it loaded (`root`), for an adapter also its base; SGLang does at /get_model_info, as its `root`
    only repeats the name; llama.cpp tells the shape, the file, the chat template and the adapters. A Hub id says what is
    served wherever that is. A path says so on one host only: many containers call their model /models/model.

    Args:
        listing: The JSON of GET /models.
        model: As the requests name it.
        base_url: Where it was asked.
        further: The JSON of the `FURTHER` paths of this kind of server.
    """
    entry = listed_model(listing, model)
    places: list[Any] = []
    facts: list[Any] = []
    parent = listed_model(listing, str(entry["parent"])) if entry.get("parent") else {}
    match entry.get("owned_by"), further:
        case "vllm", _:
            places = [entry.get("root"), *([parent.get("root")] if entry.get("parent") else [])]
        case "sglang", {"/get_model_info": {"model_path": path}}:
            places = [path, *([entry.get("root")] if entry.get("parent") else [])]
        case "llamacpp", {"/props": {"model_path": path, **props}, "/lora-adapters": adapters}:
            meta = entry["meta"] if isinstance(entry.get("meta"), dict) else {}
            shape = {
                name: meta.get(name) for name in ("vocab_type", "n_vocab", "n_ctx_train", "n_embd", "n_params", "size")
            }
            places, facts = [path], [shape, props.get("chat_template"), adapters]
    if not places or not all(isinstance(place, str) and place for place in places):
        return None
    anywhere = all(HUB_ID.fullmatch(place) for place in places)
    return [places, facts, None if anywhere else host_of(base_url)]


def cause(error: Exception) -> tuple[str, str]:
    """A code and the words for a request without a reply."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    return "timeout" if isinstance(error, TimeoutError) else "connection", str(error) or type(error).__name__


def one_line(detail: str, secrets: list[str]) -> str:
    """An error in one short line, without the secrets that a server may have put into it."""
    shown = "".join(character if character.isprintable() else " " for character in detail[:SCANNED])
    for secret in secrets:
        shown = mask(shown, secret)
        if len(detail) > SCANNED:  # a secret may have been cut in two
            shown = shown[: -8 * len(secret)]
    return " ".join(shown.split())[:LONGEST_ERROR]


def mask(text: str, secret: str) -> str:
    """Put `[key]` wherever the secret stands, however it is written.

    Found in any case of letters, URL-quoted, escaped for JSON or HTML, in base64 at any alignment, split by blanks. A
    secret of fewer than four characters is found where it stands alone, as it may be a part of any word.
    """
    short = len(secret) < 4
    spans = [match.span() for match in re.finditer(re.escape(secret), text)]
    read, bare = _letters(text), _letters(text, read=False)
    keys = {
        _joined(_letters(secret)),
        _joined(_letters(secret, read=False)),
    }  # a key may hold what looks like a spelling
    needles = [(letters, key, 0) for letters in (read, bare) for key in keys if key]
    encoded = [(letter.translate(BASE64), start, end) for letter, start, end in read]
    for before in range(1 if short else 3):
        code = b64encode(b"\0" * before + secret.encode()).decode().rstrip("=").lower()
        # Characters that also hold bits of a neighbour differ with it: they are left out, and masked beside the rest.
        inner = code if short else code[(0, 2, 3)[before] : (before + len(secret)) * 8 // 6]
        needles.append((encoded, inner, 0 if short else 1))
    for letters, needle, beside in needles:
        for match in re.finditer(f"(?={re.escape(needle)})", _joined(letters)):  # they may overlap
            first, end = max(match.start() - beside, 0), min(match.start() + len(needle) + beside, len(letters))
            spans.append((letters[first][1], letters[end - 1][2]))
    masked, position = "", 0
    for start, end in sorted(spans):
        if short and (text[:start][-1:].isalnum() or text[end:][:1].isalnum()):
            continue
        if end > position:
            masked += text[position:start] + "[key]" if start >= position else ""
            position = end
    return masked + text[position:]


def _letters(text: str, read: bool = True) -> list[tuple[str, int, int]]:
    """The characters that a text spells, in lower case, without blanks; and where each spelling starts and ends."""
    letters = []
    for match in (SPELLING if read else LITERAL).finditer(text):
        quoted, escaped, entity, plain = match.groups()
        letter = chr(int(quoted or escaped, 16)) if quoted or escaped else html.unescape(entity) if entity else plain
        for each in letter or "":
            if not each.isspace() and each != "\\":
                lower = each.lower() if each.isascii() else each  # others may become two letters
                letters.append((lower, *match.span()))
    return letters


def _joined(letters: list[tuple[str, int, int]]) -> str:
    return "".join(letter for letter, _, _ in letters)
