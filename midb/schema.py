"""The shapes that cross rooms, and how a foreign dataset becomes ours and goes back.

A *pair* is `instruction, input, response`. An *edit* is a pair together with the pair it came from (`raw_` twins).
Knows columns, not what anyone does with them. Every `as_*` verb takes a `Dataset`, `DatasetDict`, `IterableDataset` or
`IterableDatasetDict`, returns the same kind, and leaves columns that it does not read untouched.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict, TypeVar

from midb.errors import ColumnError

Batch = dict[str, list[Any]]
AnyDataset = TypeVar("AnyDataset")  # Dataset | DatasetDict | IterableDataset | IterableDatasetDict: out comes what went in


class Pair(NamedTuple):
    """An instruction, its input (`""` when there is none, never null) and the response."""

    instruction: str
    input: str
    response: str


class Message(TypedDict):
    """One turn of a chat: role `system`, `user` or `assistant`, and its text."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Completion:
    """What came back for one prompt.

    Args:
        text: The model's text, untouched; `""` when the request failed.
        finish_reason: `stop`, `length`, or what the engine said; `error` when the request failed.
        prompt_tokens: As counted by the engine; None when it does not say.
        completion_tokens: As counted by the engine; None when it does not say.
        error: Why the request failed for good, as `code: detail`; None when it was answered.
        logprobs: The engine's own structure, JSON-able, when `Sampling.logprobs` asked for it.
    """

    text: str
    finish_reason: str = "stop"
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    error: str | None = None
    logprobs: Any = None


PAIR = Pair._fields
RAW = tuple(f"raw_{column}" for column in PAIR)
