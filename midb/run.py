"""Row → prompts → completions → row, for every task: the one loop that asks.

A task says what to ask about a row and what the row becomes. This room does the rest for all tasks alike: datasets,
splits and streams, rounds, preview, cost estimate, budget, progress, failed rows, token counts, early stop, provenance.
Knows generators and datasets; not what a task asks, nor what its answers are worth.
"""

import hashlib
import math
import random
import uuid
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar, NamedTuple

from midb.cost import Estimate, Price, count_tokens, most_tokens
from midb.errors import ColumnError, GenerationError, MidbError
from midb.generators import Completion, Generator, Journal, Sampling
from midb.generators.base import stream
from midb.progress import RowBar, say
from midb.schema import AnyDataset, Batch, Message, in_format_of, mapped, without_format

Row = dict[str, Any]

BATCH_ROWS, STREAM_ROWS = 16_384, 64  # rows asked together; a batch ends with its slowest row
ESTIMATED_ROWS = 20_000  # an estimate of more rows comes from a random sample of so many
EARLY = 16  # so many first requests refused in the same words are the fault of the set-up, and not of the rows
NOT_RUN = Completion("", "not_run", error="budget: the money was spent before this row was asked")


class Ask(NamedTuple):
    """One prompt.

    Args:
        messages: The chat.
        sampling: How the text is drawn; None is the generator's own.
        key: Anything by which the task recognises the reply.
        expects: Completion tokens to expect, for an estimate; None is as many as the prompt has.
        turns: Calls that surely follow from this one, each with the conversation so far; for an estimate.
        later: Prompt and completion tokens of all that `again` may ask because of this reply, at most. A budget sets
            them aside before the first call of a row, so that a row is finished once it is begun.
    """

    messages: list[Message]
    sampling: Sampling | None = None
    key: Any = None
    expects: int | None = None
    turns: int = 0
    later: tuple[int, int] = (0, 0)


class Reply(NamedTuple):
    """One prompt and what came back; `completion.error` says that nothing did."""

    ask: Ask
    completion: Completion


class Task(ABC):
    """What to ask about a row, and what the row becomes. A subclass says these and gets the rest.

    Subclass it as a frozen dataclass with the fields `generator` and, for money, `price`. An instance is also a batch
    function, `dict[str, list]` → `dict[str, list]`, as Ray Data's `map_batches` and `Dataset.map(batched=True)` take.

    Attributes:
        verb: The word before the progress bar.
        counted: Columns of `becomes` for the summary: the status, the reason, and more whose values are counted.
        drops: Columns of the rows that the result does not hold.
    """

    generator: Generator
    price: Price | tuple[float, float] | None

    verb: ClassVar[str] = "ask"
    counted: ClassVar[tuple[str, ...]] = ()
    drops: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def asks(self, row: Row) -> Sequence[Ask]:
        """The prompts for a row; none where the row is decided without a call."""

    def again(self, row: Row, replies: Sequence[Reply]) -> Sequence[Ask]:
        """More prompts, given all replies so far: the next turn, a follow-up, a repair. None ends the row."""
        return ()

    @abstractmethod
    def becomes(self, row: Row, replies: Sequence[Reply]) -> Row:
        """The columns that the row gets. Rows that the budget leaves out have replies with `finish_reason="not_run"`."""

    def decided(self, row: Row) -> str:
        """The status of a row that needs no call; empty where it needs one."""
        return ""

    @abstractmethod
    def made(self) -> dict[str, str]:
        """How the rows of this run were made: constant columns."""

    @abstractmethod
    def adds(self) -> dict[str, Any]:
        """All columns of `becomes` and `made`, with their `datasets` types."""

    def prepare(self, split: Any) -> Any:
        """Check one split before anything is paid, and convert it to the rows that `asks` reads."""
        return without_format(split)

    def first(self, split: Any) -> Collection[int]:
        """Rows that a budget must reach before any other."""
        return ()

    def map(
        self,
        dataset: AnyDataset,
        *,
        max_cost: float | None = None,
        batch_size: int | None = None,
        **map_arguments: Any,
    ) -> AnyDataset:
        """Ask about every row: n rows in, n rows out, same order, other columns untouched.

        Prints a summary at the end, but for a stream, which is asked as it is read. It always runs and never serves a
        cached result, which would keep failed rows: a journal makes a rerun free.

        Args:
            dataset: A `Dataset`, `DatasetDict`, `IterableDataset` or `IterableDatasetDict`.
            max_cost: Stop before more than this is spent, in the currency of `price`. Every call is counted as long as
                `max_tokens` allows before it is made, so the limit holds as long as the engine keeps to `max_tokens`.
                Remembered answers cost nothing. Rows left out are `not_run`: a random part of the rows, in every split
                and language; of a stream its end.
            batch_size: Rows asked together. Default: 16,384; 64 for a stream.
            map_arguments: For `Dataset.map`, such as `num_proc`.

        Raises:
            ColumnError: The rows have a shape that the task does not read; nothing was asked.
            GenerationError: The engine is dead or refuses everything; what was answered is safe in the journal.
        """
        prepared = self._prepared(dataset)
        run = Run(self, max_cost)
        processes = (map_arguments.get("num_proc") or 1) > 1
        if processes and max_cost is not None:
            raise ValueError(
                "max_cost holds for one process; leave out num_proc, or give each shard a budget of its own"
            )
        sizes = [len(split) if hasattr(split, "__len__") else 0 for split in _splits(prepared).values()]
        left, done = sum(sizes), {}
        with nullcontext() if processes or not left else RowBar(left, self.verb) as bar:
            run.bar = bar
            for (name, split), rows in zip(_splits(prepared).items(), sizes, strict=True):
                run.limit(rows / left if left else 1.0)
                how = {"batch_size": batch_size, **map_arguments}
                done[name] = in_format_of(_splits(dataset)[name], run.over(split, processes, how))
                left -= rows
        if run.rows:
            say(run.summary())
        return type(dataset)(done) if isinstance(dataset, dict) else done[""]

    def estimate(self, dataset: Any) -> Estimate:
        """Say what `map` would take; calls nothing.

        Raises:
            ColumnError: As `map`.
            TypeError: A stream, whose length is not known.
        """
        return _estimate(self, list(_splits(self._prepared(dataset)).values()))

    def requests(self, dataset: Any) -> Iterator[Ask]:
        """The exact first prompts of all rows, in their order; calls nothing.

        Raises:
            ColumnError: As `map`.
        """
        for split in _splits(self._prepared(dataset)).values():
            for row in split:
                yield from self.asks(row)

    def preview(self, dataset: Any, n: int | None = 3) -> list[list[Message]]:
        """The exact messages of the first `n` prompts (None: of all); calls nothing.

        Raises:
            ColumnError: As `map`.
        """
        return [ask.messages for ask in islice(self.requests(dataset), n)]

    def __call__(self, batch: Batch) -> Batch:
        """Ask about one batch of columns; all columns come back, and the new ones."""
        return {**_plain(batch), **Run(self).batch(batch)}

    def _prepared(self, dataset: Any) -> Any:
        if not isinstance(dataset, dict):
            return self.prepare(dataset)
        prepared = {}
        for name, split in dataset.items():
            try:
                prepared[name] = self.prepare(split)
            except ColumnError as error:
                raise ColumnError(f"split {name!r}: {error}") from error
        return prepared


@dataclass
class _Open:
    """A row whose answers are not all there yet."""

    row: Row
    asks: Sequence[Ask]
    known: bool = False  # a journal answers its first prompts
    reserved: float = 0.0  # of the budget
    answers: list[Completion | None] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    result: Row = field(default_factory=dict)


class Run:
    """One run of a task: what it has asked and spent, over all its batches and splits.

    Args:
        task: The task.
        max_cost: The budget; None is no limit.

    Raises:
        ValueError: The budget is no amount, or there is no price to count it by.
    """

    def __init__(self, task: Task, max_cost: float | None = None) -> None:
        self.task, self.max_cost = task, max_cost
        self.price = Price.of(task.price)
        if max_cost is not None and not 0 <= max_cost < math.inf:
            raise ValueError(f"max_cost={max_cost} is no amount; give 0 or more, in the currency of price")
        if max_cost and self.price is None:
            raise ValueError(
                "max_cost needs a price; give price=(per million prompt tokens, per million completion tokens)"
            )
        self.bar: RowBar | None = None
        self.spent, self.reserved, self.ceiling = 0.0, 0.0, math.inf if max_cost is None else max_cost
        self.rows = self.left_out = self.calls = self.remembered = self.prompt_tokens = self.completion_tokens = 0
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.counts: dict[str, Counter[str]] = {name: Counter() for name in task.counted[2:]}
        self.refusals: Counter[str] = Counter()
        self.answered = self.streams = False

    def limit(self, share: float) -> None:
        """Let the next split spend this share of what is left."""
        if self.max_cost is not None:
            self.ceiling = self.spent + (self.max_cost - self.spent) * share

    def over(self, split: Any, processes: bool, how: dict[str, Any]) -> Any:
        """Ask about one prepared split."""
        from datasets import Dataset

        adds, drops = self.task.adds(), self.task.drops
        stored = isinstance(split, Dataset)
        how["batch_size"] = how["batch_size"] or (BATCH_ROWS if stored else STREAM_ROWS)
        self.streams = not stored
        if not stored:
            return mapped(split, self.batch, adds, drops, **how)
        # A new fingerprint: what is computed from these rows must not be served to a later run that healed some of them.
        how = {"load_from_cache_file": False, "new_fingerprint": uuid.uuid4().hex, **how}
        if processes:
            return mapped(split, _Batches(self.task), adds, drops, **how)
        if self.max_cost is None:
            return mapped(split, self.batch, adds, drops, **how)
        order = _drawn(split, self.task.first(split))
        done = mapped(split.select(order), self.batch, adds, drops, **how)
        return done.select(sorted(range(len(order)), key=order.__getitem__)).flatten_indices()

    def batch(self, batch: Batch) -> Batch:
        """The new columns of one batch."""
        task, rows = self.task, []
        for number, row in enumerate(_as_rows(batch)):
            try:
                rows.append(_Open(row, list(task.asks(row))))
            except ColumnError as error:
                raise ColumnError(f"row {number} of the batch: {error}") from error
        made, names = task.made(), list(task.adds())
        self._ask(rows)
        results = [{**each.result, **made} for each in rows]
        if results and set(results[0]) != set(names):
            raise MidbError(
                f"{type(task).__name__} makes the columns {sorted(results[0])} and declares {sorted(names)}; let adds() "
                "name each column of becomes() and made()"
            )
        return {name: [result[name] for result in results] for name in names}

    def summary(self) -> str:
        """What became of the rows, what was asked, and what it cost."""
        by_status: dict[str, Counter[str]] = {}
        for (status, code), count in self.outcomes.most_common():
            by_status.setdefault(status, Counter())[code] += count
        parts = []
        for status, codes in by_status.items():
            reasons = ", ".join(f"{code} {count:,}" for code, count in codes.most_common() if code)
            parts.append(f"{status} {codes.total():,}{f' ({reasons})' if reasons else ''}")
        for name, values in self.counts.items():
            parts[-1] += f"; {name} {', '.join(f'{value} {count:,}' for value, count in values.most_common())}"
        spent = f", {self.price.money(self.spent)} spent" if self.price else ""
        text = (
            f"{self.rows:,} rows: {', '.join(parts)}; {self.calls:,} calls, {self.remembered:,} of them remembered; "
            f"{self.prompt_tokens:,} prompt and {self.completion_tokens:,} completion tokens, remembered answers included{spent}"
        )
        return f"{text}; {ended}" if (ended := self.ended()) else text

    def ended(self) -> str:
        """That the budget ended the run; empty where it did not."""
        if not self.left_out or self.max_cost is None:
            return ""
        budget = self.price.money(self.max_cost) if self.price else "0"
        return (
            f"the budget of {budget} ended the run: {self.left_out:,} of {self.rows:,} rows were not asked; a higher max_cost "
            "goes on from here"
        )

    def _ask(self, rows: list[_Open]) -> None:
        """Answer rows within the budget. Each step takes what is certain to fit, so the last of a budget goes in small steps."""
        if self.max_cost is not None:
            self._look_up(rows)
        while rows:
            taken, rest, stopped = [], [], False
            for each in rows:
                cost = 0.0 if self.max_cost is None or each.known or not each.asks else self._most(each.asks, True)
                stopped = stopped or cost > self.ceiling - self.spent - self.reserved
                if stopped and cost:
                    rest.append(each)
                    continue
                each.reserved, self.reserved = cost, self.reserved + cost
                taken.append(each)
            if not taken:
                break
            self._rounds(taken)
            rows = rest
        for each in rows:
            self._leave_out(each)

    def _rounds(self, rows: list[_Open]) -> None:
        """Ask, then whatever the replies call for, until every row is finished."""
        asking = []
        for each in rows:
            asking += self._begin(each, each.asks)
        while asking:
            more = []
            by_sampling: dict[Sampling | None, list[tuple[_Open, int, Ask]]] = {}
            for question in asking:
                by_sampling.setdefault(question[2].sampling, []).append(question)
            for sampling, group in by_sampling.items():
                answered = bytearray(len(group))
                for position, completion in stream(
                    self.task.generator, [ask.messages for _, _, ask in group], sampling
                ):
                    each, at, ask = group[position]
                    if answered[position]:
                        raise GenerationError(
                            f"{self.task.generator.name} answered prompt {position} twice; a Generator must answer each position once"
                        )
                    answered[position], each.answers[at] = True, completion
                    self._count(each, ask, completion)
                    if None not in each.answers:
                        each.replies += map(Reply, each.asks, each.answers)  # type: ignore[arg-type]
                        more += self._next(each)
                if not all(answered):
                    raise GenerationError(
                        f"{self.task.generator.name} answered {sum(answered)} of {len(group)} prompts; a Generator must answer "
                        "each position once"
                    )
            asking = more

    def _begin(self, each: _Open, asks: Sequence[Ask]) -> list[tuple[_Open, int, Ask]]:
        each.asks, each.answers = asks, [None] * len(asks)
        if not asks:
            self._finish(each)
        return [(each, at, ask) for at, ask in enumerate(asks)]

    def _next(self, each: _Open) -> list[tuple[_Open, int, Ask]]:
        """The next round of a row, or its end."""
        asks = list(self.task.again(each.row, each.replies))
        if asks and self.max_cost is not None:
            cost = self._most(asks, False)
            if cost > each.reserved + self.ceiling - self.spent - self.reserved:
                if not all(_remembered(self.task.generator, asks)):
                    self._leave_out(each)  # more than the task set aside; what it got is in the journal
                    return []
                cost = each.reserved
            self.reserved += max(0.0, cost - each.reserved)
            each.reserved = max(cost, each.reserved)
        return self._begin(each, asks)

    def _finish(self, each: _Open) -> None:
        """Let the task say what the row becomes."""
        each.result = self.task.becomes(each.row, each.replies)
        self.reserved -= each.reserved
        failed = (
            any(reply.completion.error is not None for reply in each.replies) and each.replies[0].completion != NOT_RUN
        )
        tokens = sum(reply.completion.completion_tokens or 0 for reply in each.replies)
        self.rows += 1
        if counted := self.task.counted:
            self.outcomes[str(each.result[counted[0]]), str(each.result[counted[1]] or "").partition(":")[0]] += 1
            for name, values in self.counts.items():
                values[str(each.result[name])] += 1
        if self.bar:
            self.bar.count(tokens, failed, self.price.money(self.spent) if self.price else "")

    def _leave_out(self, each: _Open) -> None:
        """Finish a row that the budget does not reach."""
        self.left_out += 1
        each.replies = [Reply(ask, NOT_RUN) for ask in each.asks]
        self._finish(each)
        if self.left_out == 1 and self.streams:
            say("the budget is spent: the rows of the stream from here on are not asked")

    def _look_up(self, rows: list[_Open]) -> None:
        """Mark the rows whose first prompts a journal answers: they cost nothing."""
        asks = [ask for each in rows for ask in each.asks]
        known = iter(_remembered(self.task.generator, asks))
        for each in rows:
            each.known = all(list(islice(known, len(each.asks))))

    def _most(self, asks: Sequence[Ask], later: bool) -> float:
        """What the calls cost at most."""
        if self.price is None:
            return math.inf
        total = 0.0
        for ask in asks:
            prompt, completion = most_tokens(ask.messages), sampling_of(self.task.generator, ask).max_tokens
            total += self.price.cost(prompt + later * ask.later[0], completion + later * ask.later[1])
        return total

    def _count(self, each: _Open, ask: Ask, completion: Completion) -> None:
        """Count one reply, and stop where the first ones are all refused alike."""
        self.calls += 1
        self.remembered += completion.remembered
        if completion.error is not None:
            if not self.answered and completion.error.startswith("http_"):
                self.refusals[completion.error] += 1
                if self.refusals.total() == self.refusals[completion.error] == EARLY:
                    raise GenerationError(
                        f"the first {EARLY} requests to {self.task.generator.name} were all refused in the same words "
                        f"({completion.error}); mend what they name, then run again"
                    )
            return
        self.answered = True
        asked, said = completion.prompt_tokens, completion.completion_tokens
        self.prompt_tokens += asked or 0
        self.completion_tokens += said or 0
        if self.price and not completion.remembered:
            asked = count_tokens(ask.messages) if asked is None else asked
            said = count_tokens([{"role": "assistant", "content": completion.text}]) if said is None else said
            cost = self.price.cost(asked, said)
            self.spent += cost
            released = min(each.reserved, self._most([ask], False)) if self.max_cost is not None else 0.0
            each.reserved, self.reserved = each.reserved - released, self.reserved - released


@dataclass(frozen=True)
class _Batches:
    """The new columns of a batch, in a process of its own."""

    task: Task

    def __call__(self, batch: Batch) -> Batch:
        return Run(self.task).batch(batch)


def sampling_of(generator: Generator, ask: Ask | None = None) -> Sampling:
    """How a text is drawn: as the prompt says, else as the generator does."""
    while isinstance(generator, Journal):
        generator = generator.generator
    own = getattr(generator, "sampling", None)
    return (ask and ask.sampling) or (own if isinstance(own, Sampling) else Sampling())


def _estimate(task: Task, splits: list[Any]) -> Estimate:
    from datasets import Dataset

    for split in splits:
        if not isinstance(split, Dataset):
            raise TypeError(
                "a stream has no known length; estimate a part of it: Dataset.from_list(list(stream.take(1000)))"
            )
    price, total = Price.of(task.price), sum(map(len, splits))
    factor = max(1.0, total / ESTIMATED_ROWS)
    calls = known = asked = said = 0
    most = 0.0
    statuses: Counter[str] = Counter()
    for split in splits:
        some = split
        if factor > 1:
            some = split.select(sorted(random.Random(0).sample(range(len(split)), math.ceil(len(split) / factor))))
        for batch in some.iter(batch_size=1000):
            asks: list[Ask] = []
            for row in _as_rows(batch):
                mine = task.asks(row)
                asks += mine
                if status := task.decided(row):
                    statuses[status] += 1
            remembered = _remembered(task.generator, asks)
            known += sum(remembered)
            for ask, free in zip(asks, remembered, strict=True):
                calls += 1 + ask.turns
                if free:
                    continue
                tokens, longest = count_tokens(ask.messages), sampling_of(task.generator, ask).max_tokens
                reply = min(tokens if ask.expects is None else ask.expects, longest)
                said += reply * (1 + ask.turns)
                asked += sum(turn * tokens + (turn - 1) * reply for turn in range(1, ask.turns + 2))
                if price:
                    most += price.cost(most_tokens(ask.messages) + ask.later[0], longest + ask.later[1])

    def all_rows(count: float) -> int:
        return round(count * factor)

    return Estimate(
        total, all_rows(calls), all_rows(known), {status: all_rows(count) for status, count in statuses.items()},
        all_rows(asked), all_rows(said), price and factor * price.cost(asked, said), price and factor * most, price,
        ESTIMATED_ROWS if factor > 1 else 0,
    )  # fmt: skip


def _remembered(generator: Generator, asks: Sequence[Ask]) -> list[bool]:
    """Which of the prompts a journal answers."""
    found = [False] * len(asks)
    if isinstance(generator, Journal):
        by_sampling: dict[Sampling | None, list[int]] = {}
        for at, ask in enumerate(asks):
            by_sampling.setdefault(ask.sampling, []).append(at)
        for sampling, places in by_sampling.items():
            for at, is_known in zip(
                places, generator.remembers([asks[at].messages for at in places], sampling), strict=True
            ):
                found[at] = is_known
    return found


def _drawn(split: Any, first: Collection[int]) -> list[int]:
    """The rows in a random order, those with one `id` together, and the urgent ones at the front."""
    ids = split["id"] if "id" in split.column_names else range(len(split))
    draws = [hashlib.sha256(repr(each).encode()).digest() for each in ids]
    return sorted(range(len(draws)), key=lambda row: (row not in first, draws[row]))


def _splits(dataset: Any) -> Mapping[str, Any]:
    return dataset if isinstance(dataset, dict) else {"": dataset}


def _plain(batch: Mapping[str, Any]) -> Batch:
    """Columns as lists, also where Ray gives arrays."""
    return {
        name: values if isinstance(values, list) else list(getattr(values, "tolist", values.__iter__)())
        for name, values in batch.items()
    }


def _as_rows(batch: Mapping[str, Any]) -> Iterator[Row]:
    columns = _plain(batch)
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))
