"""Questions → answers: any generator answers an evaluation set, turn after turn.

Knows the shapes in which questions come and how a conversation grows; not who asks, nor what the answers are worth.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.metadata import version
from typing import Any, ClassVar

from midb.cost import Price, most_tokens
from midb.errors import ColumnError
from midb.generators import Generator, Sampling
from midb.generators.base import fingerprint, settings_of
from midb.judging.comparisons import QUESTIONS
from midb.prompts import escape
from midb.run import Ask, Reply, Row, Task, sampling_of
from midb.schema import AnyDataset, Message, column_names, without_format

ANSWER_TOKENS = 400  # for an estimate


def answer(
    questions: AnyDataset,
    generator: Generator,
    *,
    sampling: Sampling | None = None,
    columns: Mapping[str, str] | None = None,
    price: Price | tuple[float, float] | None = None,
    max_cost: float | None = None,
) -> AnyDataset:
    """Let a generator answer every question: `Answering(...).map(questions)`.

    Reads, adds, rows, errors: as `Answering`.
    """
    task = Answering(generator=generator, sampling=sampling, columns=columns or {}, price=price)
    return task.map(questions, max_cost=max_cost)


@dataclass(frozen=True, kw_only=True)
class Answering(Task):
    """Answer questions: the first turn of all rows, then their second turns, and so on.

    Reads: `turns` (list of text), `instruction` with its `input` (joined by a newline), `question` or `prompt`, the first
    of these that is there.
    Adds: `answers` (list of text, one per turn, null where no answer came), `answer_status` (`answered`; `truncated`: an
    answer reached the length limit; `empty`: an answer has no text; `failed`: a turn got no answer and later ones were not
    asked, a rerun asks again; `not_run`: the budget was spent), `answer_error` (why it failed, else empty), `prompt_tokens`
    and `completion_tokens` (sums over the turns; null where the engine does not say), `answered_by` (the model),
    `answer_identity` (a hash of the run's settings), `answer_settings` (JSON: how the rows were made).
    Rows: n → n, same order; other columns untouched.

    Args:
        generator: Who answers; in a `Journal`, so that a rerun asks only what is missing. Text goes to it in user and
            assistant turns, with control tokens in it escaped.
        sampling: How the answers are drawn; None is the generator's own.
        columns: Our name → the dataset's name, for the columns that are read; they come out under our name.
        price: Money per million prompt and completion tokens, and a currency's word if you like.
    """

    verb: ClassVar[str] = "answer"
    counted: ClassVar[tuple[str, ...]] = ("answer_status", "answer_error")

    generator: Generator
    sampling: Sampling | None = None
    columns: Mapping[str, str] = field(default_factory=dict, hash=False)
    price: Price | tuple[float, float] | None = None

    def __post_init__(self) -> None:
        Price.of(self.price)

    def prepare(self, split: Any) -> Any:
        """One split under our column names, its questions checked before anything is paid.

        Raises:
            ColumnError: No known shape, a text that is null, or a column that an answer would overwrite.
            TypeError: No dataset.
        """
        from datasets import Dataset, IterableDataset

        if not isinstance(split, Dataset | IterableDataset):
            raise TypeError(f"a {type(split).__name__} is no dataset; make it one: Dataset.from_list(rows)")
        plain = _renamed(without_format(split), self.columns, list(self.adds()))
        kind = _kind(column_names(plain), self.columns)
        if isinstance(plain, Dataset):
            read = plain.select_columns([kind, *({"input"} & set(plain.column_names))])
            for number, row in enumerate(read):
                try:
                    _turns(row)
                except ColumnError as error:
                    raise ColumnError(f"row {number}: {error}") from error
        return plain

    def asks(self, row: Row) -> Sequence[Ask]:
        """The first turn.

        Raises:
            ColumnError: The row holds no question.
        """
        turns = _turns(row)
        room = (self.sampling or sampling_of(self.generator)).max_tokens
        asked = [most_tokens(_conversation(turns, [""] * turn)) + turn * room for turn in range(1, len(turns))]
        later = (sum(asked), room * len(asked))
        return [Ask(_conversation(turns, []), self.sampling, 0, ANSWER_TOKENS, len(asked), later)]

    def again(self, row: Row, replies: Sequence[Reply]) -> Sequence[Ask]:
        """The next turn, while there is one and every turn so far was answered."""
        turns, said = _turns(row), [reply.completion for reply in replies]
        if said[-1].error is not None or len(said) == len(turns):
            return ()
        return [Ask(_conversation(turns, [completion.text for completion in said]), self.sampling, len(said))]

    def becomes(self, row: Row, replies: Sequence[Reply]) -> Row:
        """What one row becomes."""
        turns, said = _turns(row), [reply.completion for reply in replies]
        answered = [completion for completion in said if completion.error is None]
        if said[-1].error is not None:
            status = "not_run" if said[-1].finish_reason == "not_run" else "failed"
        elif not all(completion.text.strip() for completion in answered):
            status = "empty"
        elif any(completion.finish_reason == "length" for completion in answered):
            status = "truncated"
        else:
            status = "answered"
        return {
            "answers": [completion.text for completion in answered] + [None] * (len(turns) - len(answered)),
            "answer_status": status,
            "answer_error": said[-1].error or "",
            "prompt_tokens": _sum([completion.prompt_tokens for completion in answered]),
            "completion_tokens": _sum([completion.completion_tokens for completion in answered]),
        }

    def made(self) -> dict[str, str]:
        """How the rows were made: `answered_by`, `answer_identity`, `answer_settings`."""
        return self._made

    @cached_property
    def _made(self) -> dict[str, str]:
        sampling = asdict(self.sampling or sampling_of(self.generator))
        settings = {"midb": version("midb"), "sampling": sampling, "generator": settings_of(self.generator)}
        return {
            "answered_by": self.generator.name,
            "answer_identity": fingerprint(self.generator.identity(), settings),
            "answer_settings": json.dumps(settings, sort_keys=True, ensure_ascii=False),
        }

    def adds(self) -> dict[str, Any]:
        """The columns that come out beside those that came in, with their `datasets` types."""
        from datasets import List, Value

        text, count = Value("string"), Value("int64")
        return {
            "answers": List(text), **dict.fromkeys(("answer_status", "answer_error"), text), "prompt_tokens": count,
            "completion_tokens": count, **dict.fromkeys(("answered_by", "answer_identity", "answer_settings"), text),
        }  # fmt: skip


def _renamed(plain: Any, columns: Mapping[str, str], taken: Sequence[str]) -> Any:
    """The dataset with our names for what is read; refused where something would be lost or stay unread."""
    names = column_names(plain)
    if unknown := sorted(set(columns) - {*QUESTIONS, "input"}):
        raise ColumnError(
            f"columns= names {unknown}; it takes {', '.join(QUESTIONS)} and input, each with its own name"
        )
    if missing := sorted(set(columns.values()) - set(names)):
        raise ColumnError(f"there is no column {missing}; the dataset has {names}")
    changed = {theirs: ours for ours, theirs in columns.items() if ours != theirs}
    if lost := sorted(set(changed.values()) & set(names)):
        raise ColumnError(f"{changed} would overwrite the column {lost}; remove or rename it first")
    if there := [name for name in taken if name in names]:
        raise ColumnError(
            f"the dataset has the columns {there}, which answering writes; remove them to ask again: "
            f"ds.remove_columns({there}), or rename them to keep both"
        )
    return plain.rename_columns(changed) if changed else plain


def _kind(names: list[str], columns: Mapping[str, str]) -> str:
    """The column that holds the question."""
    kind = next((name for name in QUESTIONS if name in names), None)
    if kind is None:
        raise ColumnError(
            f"the dataset has the columns {names}; a question is looked for in {', '.join(QUESTIONS)}: say which it is, "
            "e.g. columns={'question': 'text'}"
        )
    if kind not in columns and (named := [name for name in columns if name != "input"]):
        raise ColumnError(f"the dataset has {kind!r}, which is read before {named}; remove or rename it")
    return kind


def _turns(row: Row) -> list[str]:
    """The questions of one row, in order.

    Raises:
        ColumnError: There is none, or it is not text.
    """
    kind = next((name for name in QUESTIONS if name in row), None)
    asked = row[kind] if kind else None
    turns = asked if kind == "turns" else [asked]
    if kind == "instruction" and row.get("input"):
        both = isinstance(asked, str) and isinstance(row["input"], str)
        turns = ["\n".join(filter(None, (asked, row["input"])))] if both else [None]
    if not isinstance(turns, list) or not turns or not all(isinstance(text, str) for text in turns):
        raise ColumnError(
            f"{kind} is {asked!r:.80}, not {'a list of text' if kind == 'turns' else 'text'}; drop or convert such rows first"
        )
    return turns


def _conversation(turns: Sequence[str], said: Sequence[str]) -> list[Message]:
    """What was asked and answered so far, and the next question; nothing in them can end a turn."""
    messages: list[Message] = []
    for text, answered in zip(turns, said, strict=False):
        messages += [{"role": "user", "content": escape(text)}, {"role": "assistant", "content": escape(answered)}]
    return [*messages, {"role": "user", "content": escape(turns[len(said)])}]


def _sum(tokens: Sequence[int | None]) -> int | None:
    known = [count for count in tokens if count is not None]
    return sum(known) if known and len(known) == len(tokens) else None
