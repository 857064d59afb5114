"""Calls → replies: all at once, within a budget, and once more where a reply holds no verdict.

Knows the words of a verdict and what asking costs; not what is compared.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from midb.generators import Completion, Generator, Sampling
from midb.generators.base import stream
from midb.judging.prompts import FOLLOW_UP, relabel
from midb.judging.verdict import Parsed, Verdict, parse_verdict, preference, unswap
from midb.prompts import escape
from midb.schema import Message

ASKED_AGAIN = {"missing", "invalid", "ambiguous"}  # in the same conversation: a question, not another roll of the dice
FOLLOW_UP_TOKENS = 16
ALTERNATIVES = 20  # for each token of a reply, with log-probabilities: the most that OpenAI gives


class Call(NamedTuple):
    """One question to the judge: the chat, which word in its answer means what, and whether dataset b is shown first."""

    messages: list[Message]
    labels: Mapping[str, Verdict] | None
    swapped: bool


@dataclass(slots=True)
class Reply:
    """What came of one call, in terms of the datasets."""

    verdict: Verdict | None = None
    status: str = "not_run"
    text: str = ""
    follow_up: str = ""
    error: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    calls: int = 0
    remembered: int = 0
    cost: float = 0.0
    p_a: float | None = None
    mass: float | None = None


@dataclass
class Asker:
    """Asks for one run, and remembers what it has spent.

    Args:
        orders: How many calls, one after the other, belong to one comparison and are never parted by the budget.
        price: Money per million prompt and completion tokens.
        max_cost: The budget; None is none.
    """

    generator: Generator
    sampling: Sampling
    orders: int
    strict: bool
    follow_up: bool
    logprobs: bool
    price: tuple[float, float] | None = None
    max_cost: float | None = None
    parity: bool = False
    spent: float = 0.0

    def ask(
        self, calls: Sequence[Call], finished: Callable[[int | None, bool], None] = lambda tokens, failed: None
    ) -> list[Reply]:
        """A reply for every call; those that the budget does not reach stay `not_run`.

        Args:
            finished: Told of each comparison as it comes in: its completion tokens, and whether it failed.
        """
        replies = [Reply() for _ in calls]
        came_in = [0] * (len(calls) // self.orders)

        def count(place: int) -> None:
            row = place // self.orders
            came_in[row] += 1
            if came_in[row] == self.orders:
                each = replies[row * self.orders :][: self.orders]
                finished(sum(reply.completion_tokens or 0 for reply in each), any(reply.error for reply in each))

        start = 0
        while stop := self._affords(calls, start):
            self._ask_now(calls, range(start, stop), replies, count)
            self.spent += sum(reply.cost for reply in replies[start:stop])
            start = stop
        for place in range(start, len(calls)):
            count(place)
        return replies

    def _affords(self, calls: Sequence[Call], start: int) -> int:
        """Up to which call, whole comparisons only, the budget lasts for certain; 0 where it does not reach the next.

        Each as if its answer were as long as it may be, and its follow-up too: what is asked in truth costs less, and the
        next look goes further. So the last of a budget is spent in ever smaller steps.
        """
        if start == len(calls):
            return 0
        if self.max_cost is None or self.price is None:
            return len(calls)
        left, stop = (self.max_cost - self.spent) * 1e6, start
        room = self.sampling.max_tokens
        for call in calls[start:]:
            asked, said = _most_tokens(call.messages), room
            if self.follow_up:
                asked, said = 2 * asked + room + 100, said + max(FOLLOW_UP_TOKENS, 2 * room)
            left -= asked * self.price[0] + said * self.price[1]
            if left < 0:
                break
            stop += 1
        stop -= (stop - start) % self.orders
        return stop if stop > start else 0

    def _ask_now(
        self, calls: Sequence[Call], places: range, replies: list[Reply], count: Callable[[int], None]
    ) -> None:
        sampling = replace(self.sampling, logprobs=ALTERNATIVES) if self.logprobs else self.sampling
        for at, completion in stream(self.generator, [calls[place].messages for place in places], sampling):
            place = places[at]
            self._read(replies[place], calls[place], completion)
            count(place)
        if not self.follow_up:
            return
        again: dict[Sampling, list[tuple[int, list[Message]]]] = {}
        for place in places:
            if question := self._again(replies[place], calls[place], sampling):
                again.setdefault(question[0], []).append((place, question[1]))
        for how, asked in again.items():
            for at, completion in stream(self.generator, [messages for _, messages in asked], how):
                place = asked[at][0]
                self._read_again(replies[place], calls[place], completion)

    def _again(self, reply: Reply, call: Call, sampling: Sampling) -> tuple[Sampling, list[Message]] | None:
        """The one follow-up that this reply deserves."""
        if reply.status in ASKED_AGAIN:
            said = reply.text if self.parity else escape(reply.text)
            answer: Message = {"role": "assistant", "content": said}
            question: Message = {"role": "user", "content": relabel(FOLLOW_UP, call.labels)}
            return replace(sampling, max_tokens=FOLLOW_UP_TOKENS), [*call.messages, answer, question]
        if reply.status == "truncated":
            return replace(sampling, max_tokens=2 * sampling.max_tokens), call.messages
        if reply.status == "empty":
            return replace(sampling, index=sampling.index + 1), call.messages
        return None

    def _read(self, reply: Reply, call: Call, completion: Completion) -> None:
        self._count(reply, call.messages, completion)
        if completion.error is not None:
            reply.status, reply.error = "failed", completion.error
            return
        reply.text = completion.text
        self._take(reply, call, completion, self._parsed(call, completion))

    def _read_again(self, reply: Reply, call: Call, completion: Completion) -> None:
        self._count(reply, call.messages, completion)
        if completion.error is not None:  # the first status stands; a journal keeps no failure, so a rerun asks again
            reply.error = completion.error
            return
        reply.follow_up = completion.text
        if (parsed := self._parsed(call, completion)).verdict is not None:
            self._take(reply, call, completion, parsed)

    def _parsed(self, call: Call, completion: Completion) -> Parsed:
        return parse_verdict(completion.text, completion.finish_reason, strict=self.strict, labels=call.labels)

    def _take(self, reply: Reply, call: Call, completion: Completion, parsed: Parsed) -> None:
        """Set what this completion says, in terms of the datasets."""
        reply.verdict, reply.status = unswap(parsed.verdict) if call.swapped else parsed.verdict, parsed.status
        if not self.logprobs:
            return
        found = preference(completion.logprobs, *((call.labels,) if call.labels else ()))
        if found is not None:
            reply.p_a, reply.mass = 1 - found.p_first if call.swapped else found.p_first, found.mass

    def _count(self, reply: Reply, messages: list[Message], completion: Completion) -> None:
        reply.calls += 1
        reply.remembered += completion.remembered
        asked, said = completion.prompt_tokens, completion.completion_tokens
        if asked is not None:
            reply.prompt_tokens = (reply.prompt_tokens or 0) + asked
        if said is not None:
            reply.completion_tokens = (reply.completion_tokens or 0) + said
        if self.price and not completion.remembered and completion.error is None:
            asked = count_tokens(messages) if asked is None else asked
            said = count_tokens([{"role": "assistant", "content": completion.text}]) if said is None else said
            reply.cost += (asked * self.price[0] + said * self.price[1]) / 1e6


def count_tokens(messages: Sequence[Message]) -> int:
    """About how many tokens: a quarter of the ASCII characters, 0.6 a character of anything else, 4 a message."""
    total = 0.0
    for message in messages:
        text = message["content"]
        plain = len(text) if text.isascii() else len(text.encode("ascii", "ignore"))
        total += 4 + plain / 4 + 0.6 * (len(text) - plain)
    return int(total) + 1


def _most_tokens(messages: Sequence[Message]) -> int:
    """More tokens than any tokenizer makes of it: one a byte, and what a chat template adds."""
    return sum(len(message["content"].encode("utf-8", "replace")) + 64 for message in messages)
