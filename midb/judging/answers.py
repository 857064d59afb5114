"""Questions → answers: any generator answers an evaluation set, turn after turn.

Knows the shapes in which questions come and how a conversation grows; not who asks, nor what the answers are worth.
"""

import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from midb.errors import ColumnError
from midb.generators.base import Generator, Sampling, collect, stream
from midb.judging.comparisons import QUESTIONS
from midb.progress import RowBar, say
from midb.prompts import escape
from midb.schema import Completion, Message, in_format_of, mapped, without_format

if TYPE_CHECKING:
    from datasets import Dataset, Features


def answer(
    questions: "Dataset",
    generator: Generator,
    *,
    sampling: Sampling | None = None,
    columns: Mapping[str, str] | None = None,
) -> "Dataset":
    """Let a generator answer every question: the first turn of all rows, then their second turns, and so on.

    Reads: `turns` (list of text), `instruction` with its `input` (joined by a newline), `question` or `prompt`, the first
    of these that is there.
    Adds: `answers` (list of text, one per turn, null where no answer came), `answer_status` (`answered`; `truncated`: an
    answer reached the length limit; `empty`: an answer has no text; `failed`: a turn got no answer and later ones were not
    asked, a rerun asks again), `answer_error` (why it failed, else empty), `prompt_tokens` and `completion_tokens` (sums
    over the turns; null where the engine does not say), `answered_by`.
    Rows: n → n, same order; other columns untouched.

    It always asks. Wrap the generator in a `Journal`, and a rerun asks only for what is missing.

    Args:
        generator: Who answers. Text goes to it in user and assistant turns, control tokens in it disarmed.
        sampling: How the answers are drawn; None leaves it to the generator.
        columns: Our name → the dataset's name, for the columns that are read; they come out under our name.

    Raises:
        ColumnError: No known shape, a text that is null, or a column that an answer would overwrite; nothing was asked.
        GenerationError: The engine is dead or refuses everything; what was answered is safe in the journal.
    """
    from datasets import Dataset

    if not isinstance(questions, Dataset):
        raise TypeError(
            f"a {type(questions).__name__} is no Dataset; choose a split, e.g. ds['train'], or make one: Dataset.from_list(rows)"
        )
    plain = _renamed(without_format(questions), columns or {})
    turns = _turns(plain, _kind(plain.column_names, columns or {}))
    completions: list[list[Completion]] = [[] for _ in turns]
    with RowBar(sum(map(len, turns)), "answer", "answers") as bar:
        for turn in range(max(map(len, turns), default=0)):
            still = [row for row, said in enumerate(completions) if turn < len(turns[row]) and not _failed(said)]
            prompts = [_conversation(turns[row], completions[row]) for row in still]
            finished = _counted(stream(generator, prompts, sampling), bar)
            for row, completion in zip(still, collect(finished, len(prompts)), strict=True):
                completions[row].append(completion)
        rows = [_row(len(asked), said, generator.name) for asked, said in zip(turns, completions, strict=True)]
        answered = mapped(
            plain,
            lambda _, at: {name: [rows[row][name] for row in at] for name in _features()},
            _features(),
            with_indices=True,
            load_from_cache_file=False,
            new_fingerprint=uuid.uuid4().hex,  # what is computed from these rows must not be served to a later run
        )
    _say(answered)
    return in_format_of(questions, answered)


def _renamed(plain: "Dataset", columns: Mapping[str, str]) -> "Dataset":
    """The dataset with our names for what is read; refused where something would be lost or stay unread."""
    names = plain.column_names
    if unknown := sorted(set(columns) - {*QUESTIONS, "input"}):
        raise ColumnError(
            f"columns= names {unknown}; it takes {', '.join(QUESTIONS)} and input, each with its own name"
        )
    if missing := sorted(set(columns.values()) - set(names)):
        raise ColumnError(f"there is no column {missing}; the dataset has {names}")
    changed = {theirs: ours for ours, theirs in columns.items() if ours != theirs}
    if taken := sorted(set(changed.values()) & set(names)):
        raise ColumnError(f"{changed} would overwrite the column {taken}; remove or rename it first")
    if taken := [name for name in _features() if name in names]:
        raise ColumnError(
            f"the dataset has the columns {taken}, which answering writes; remove them to ask again: "
            f"ds.remove_columns({taken}), or rename them to keep both"
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


def _turns(plain: "Dataset", kind: str) -> list[list[str]]:
    asked = plain[kind][:]
    if kind == "instruction" and "input" in plain.column_names:
        asked = [
            "\n".join(filter(None, both)) if isinstance(both[0], str) and isinstance(both[1], str | None) else both
            for both in zip(asked, plain["input"][:], strict=True)
        ]
    turns = asked if kind == "turns" else [[text] for text in asked]
    for row, texts in enumerate(turns):
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise ColumnError(
                f"row {row}: {kind} is {asked[row]!r:.80}, not {'a list of text' if kind == 'turns' else 'text'}; drop or "
                "convert such rows first"
            )
    return turns


def _conversation(turns: list[str], said: list[Completion]) -> list[Message]:
    """What was asked and answered so far, and the next question; nothing in them can end a turn."""
    messages: list[Message] = []
    for text, completion in zip(turns, said, strict=False):
        messages += [
            {"role": "user", "content": escape(text)},
            {"role": "assistant", "content": escape(completion.text)},
        ]
    return [*messages, {"role": "user", "content": escape(turns[len(said)])}]


def _counted(finished: Iterable[tuple[int, Completion]], bar: RowBar) -> Iterator[tuple[int, Completion]]:
    for position, completion in finished:
        bar.count(completion.completion_tokens, completion.error is not None)
        yield position, completion


def _failed(said: list[Completion]) -> bool:
    return bool(said) and said[-1].error is not None


def _row(turns: int, said: list[Completion], name: str) -> dict[str, Any]:
    """What is known of one row after the last round."""
    answered = [completion for completion in said if completion.error is None]
    if _failed(said):
        status = "failed"
    elif not all(completion.text.strip() for completion in answered):
        status = "empty"
    elif any(completion.finish_reason == "length" for completion in answered):
        status = "truncated"
    else:
        status = "answered"
    return {
        "answers": [completion.text for completion in answered] + [None] * (turns - len(answered)),
        "answer_status": status,
        "answer_error": said[-1].error or "",
        "prompt_tokens": _sum([completion.prompt_tokens for completion in answered]),
        "completion_tokens": _sum([completion.completion_tokens for completion in answered]),
        "answered_by": name,
    }


def _sum(tokens: list[int | None]) -> int | None:
    known = [count for count in tokens if count is not None]
    return sum(known) if known and len(known) == len(tokens) else None


def _features() -> "Features":
    from datasets import Features, List, Value

    text, count = Value("string"), Value("int64")
    return Features(
        {
            "answers": List(text), "answer_status": text, "answer_error": text, "prompt_tokens": count,
            "completion_tokens": count, "answered_by": text,
        }
    )  # fmt: skip


def _say(answered: "Dataset") -> None:
    """Print what became of the questions."""
    statuses = Counter(answered["answer_status"])
    errors = Counter(error.partition(":")[0] for error in answered["answer_error"] if error)
    reasons = ", ".join(f"{code} {count:,}" for code, count in errors.most_common())
    tokens = [sum(filter(None, answered[name])) for name in ("prompt_tokens", "completion_tokens")]
    counts = ", ".join(f"{statuses[status]:,} {status}" for status in ("answered", "truncated", "empty", "failed"))
    say(
        f"{len(answered):,} rows: {counts}{f' ({reasons})' if reasons else ''}; {tokens[0]:,} prompt and {tokens[1]:,} "
        "completion tokens, remembered answers included"
    )
