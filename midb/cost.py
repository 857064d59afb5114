"""What a run takes, in tokens and money: the price, the estimate before it, and the most that a call can take.

Knows text and numbers; not tasks, generators or datasets.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from midb.schema import Message


class Price(NamedTuple):
    """Money per million prompt and completion tokens, and the currency's word where the user gives one."""

    prompt: float
    completion: float
    currency: str = ""

    @classmethod
    def of(cls, value: Any) -> "Price | None":
        """Read a price: None, or two numbers and an optional word.

        Raises:
            ValueError: It is none of these.
        """
        if value is None:
            return None
        try:
            price = cls(*value)
            if all(0 <= each < math.inf for each in price[:2]) and isinstance(price.currency, str):
                return price
        except TypeError:
            pass
        raise ValueError(
            f"price={value!r} is no price; use (per million prompt tokens, per million completion tokens), such as "
            "(0.15, 0.60) or (0.15, 0.60, 'USD')"
        )

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """What so many tokens cost."""
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6

    def money(self, amount: float) -> str:
        """An amount with at least two decimals and three digits."""
        decimals = 2 if not 0 < amount < 1 else 2 - math.floor(math.log10(amount))
        return f"{amount:,.{decimals}f}{self.currency and f' {self.currency}'}"


@dataclass(frozen=True)
class Estimate:
    """What a run would take, before the first call. Tokens are a rule of thumb, money is in the price's currency.

    Args:
        rows: Rows that will come out.
        calls: Requests that are certain; follow-ups to odd replies are not counted.
        remembered: Those of the calls that a journal answers.
        without_call: Rows decided without a call: status → count.
        prompt_tokens: About, without the remembered calls; from the characters of the prompts.
        completion_tokens: About, likewise.
        cost: About; None without a price.
        cost_at_most: With follow-ups, and every answer as long as `max_tokens` allows; None without a price.
        price: The price.
        sampled: Rows that were read for it, where they are fewer than `rows`.
    """

    rows: int
    calls: int
    remembered: int
    without_call: dict[str, int]
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    cost_at_most: float | None
    price: Price | None = None
    sampled: int = 0

    def __str__(self) -> str:
        notes = [f"{self.remembered:,} remembered"] if self.remembered else []
        notes += [f"{status} {count:,} without a call" for status, count in self.without_call.items()]
        noted = f" ({', '.join(notes)})" if notes else ""
        money = ""
        if self.price and self.cost is not None and self.cost_at_most is not None:
            money = f", about {self.price.money(self.cost)} (at most {self.price.money(self.cost_at_most)})"
        return (
            f"{self.rows:,} rows, {self.calls:,} calls{noted}, "
            f"about {self.prompt_tokens:,} prompt and {self.completion_tokens:,} completion tokens{money}"
            + (f"; estimated from {self.sampled:,} random rows" if self.sampled else "")
        )


def count_tokens(messages: Iterable[Message]) -> int:
    """About how many tokens: a quarter of the ASCII characters, 0.6 a character of anything else, 4 a message."""
    total = 0.0
    for message in messages:
        text = message["content"]
        plain = len(text) if text.isascii() else len(text.encode("ascii", "ignore"))
        total += 4 + plain / 4 + 0.6 * (len(text) - plain)
    return int(total) + 1


def most_tokens(messages: Iterable[Message]) -> int:
    """More tokens than any tokenizer makes of it: one a byte, and what a chat template adds."""
    return sum(len(message["content"].encode("utf-8", "replace")) + 64 for message in messages)
