"""The shapes that cross rooms, and how a foreign dataset becomes ours and goes back.

A *pair* is `instruction, input, response`. An *edit* is a pair together with the pair it came from (`raw_` twins).
Knows columns, not what anyone does with them. Every `as_*` verb takes a `Dataset`, `DatasetDict`, `IterableDataset` or
`IterableDatasetDict`, returns the same kind, and leaves columns that it does not read untouched.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypedDict, TypeVar

from midb.errors import ColumnError

Batch = dict[str, list[Any]]
AnyDataset = TypeVar(
    "AnyDataset"
)  # Dataset | DatasetDict | IterableDataset | IterableDatasetDict: out comes what went in


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
        remembered: From a journal, so that it cost nothing now.
    """

    text: str
    finish_reason: str = "stop"
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    error: str | None = None
    logprobs: Any = None
    remembered: bool = field(default=False, compare=False)


PAIR = Pair._fields
RAW = tuple(f"raw_{column}" for column in PAIR)
# What a booster adds beside the raw_ twins, and what `as_pairs` therefore takes off again.
PROVENANCE = (
    "boost_status", "boost_reason", "boost_reply", "boost_prompt_tokens", "boost_completion_tokens", "boosted_by",
    "boost_identity", "boost_settings",
)  # fmt: skip

_SHAPES = (
    {"instruction": "instruction", "input": "input", "response": "response"},
    {"instruction": "instruction", "input": "input", "response": "output"},  # alpaca
    {"instruction": "inputs", "response": "targets"},  # P3, Aya
    {"instruction": "prompt", "response": "completion"},  # TRL
)
_KNOWN = (
    "instruction/input/response, instruction/input/output (alpaca), prompt/completion, inputs/targets "
    "and single-turn chat messages; for any other, say which column is which: "
    "as_pairs(ds, columns={'instruction': ..., 'response': ...})"
)


def as_pairs(dataset: AnyDataset, *, columns: Mapping[str, str] | None = None) -> AnyDataset:
    """Convert any single-turn instruction dataset to pairs.

    Reads: alpaca (`instruction, input, output`), `instruction, response`, `prompt, completion` (text or messages),
    `inputs, targets`, chat `messages`, or the columns that `columns` names.
    Adds: `instruction, input, response` (text, never null) in place of what was read; `system` from chats (`""` without one).
    Rows: n → n. Edits lose their `raw_` twins and provenance, and so can be boosted again; their raw side is
    `as_pairs(edits, columns={"instruction": "raw_instruction", "input": "raw_input", "response": "raw_response"})`.

    Args:
        columns: Our name → the dataset's name, for `instruction`, `response`, `input` and `language`.

    Raises:
        ColumnError: No known shape, a multi-turn chat, or a null or non-text value where text is needed.
    """
    return _each_split(dataset, lambda split: _split_as_pairs(split, columns))


def as_edits(dataset: AnyDataset, *, columns: Mapping[str, str] | None = None) -> AnyDataset:
    """Convert data that holds texts before and after a revision to edits.

    Reads: columns named `raw_*` or `Raw *` (before) and `revised_*` or `Revised *` (after), where a side that is not
    there is the plain column: `instruction, input, output, revised_output` is alpaca data with revised responses.
    Adds: `instruction, input, response` (after) and `raw_instruction, raw_input, raw_response` (before), never null.
    Rows: n → n.

    Args:
        columns: Our name → the dataset's name, for those that the rule above does not find; one column may serve twice.

    Raises:
        ColumnError: A side has no instruction or no response, or a value is null or not text.
    """
    return _each_split(dataset, lambda split: _split_as_edits(split, columns or {}))


def as_alpaca(dataset: AnyDataset) -> AnyDataset:
    """Give pairs or edits the column names of alpaca: `response` becomes `output`.

    Reads: the pair columns.  Rows: n → n.

    Raises:
        ColumnError: A pair column is missing, or another column is called `output`.
    """
    return _each_split(dataset, lambda split: _renamed(_with_pair_columns(split), {"output": "response"}))


def as_messages(dataset: AnyDataset) -> AnyDataset:
    """Write pairs or edits as chats, for trainers and chat templates.

    Reads: the pair columns, and `system` where there is one.
    Adds: `messages` in their place: system turn if any, user turn (instruction and input joined by a newline), assistant turn.
    Rows: n → n.

    Raises:
        ColumnError: A pair column is missing.
    """

    def convert(split: Any) -> Any:
        from datasets import List, Value

        read = [*PAIR, *({"system"} & set(column_names(split)))]
        kind = List({"role": Value("string"), "content": Value("string")})
        return mapped(_with_pair_columns(split), _write_messages, {"messages": kind}, read)

    return _each_split(dataset, convert)


def _each_split(dataset: Any, convert: Callable[[Any], Any]) -> Any:
    if isinstance(dataset, dict):  # DatasetDict and IterableDatasetDict
        return type(dataset)({name: _each_split(split, convert) for name, split in dataset.items()})
    return in_format_of(dataset, convert(without_format(dataset)))


def without_format(dataset: Any) -> Any:
    """The dataset giving plain Python values, whatever its caller set it to."""
    from datasets import Dataset

    plain = isinstance(dataset, Dataset) and dataset.format["type"] is None
    return dataset if plain else dataset.with_format(None)


def in_format_of(before: Any, after: Any) -> Any:
    """Give a dataset that was worked on as Python lists the caller's format again; a stream has none to give."""
    from datasets import Dataset

    if not isinstance(before, Dataset) or before.format["type"] is None:
        return after
    return after.with_format(before.format["type"], **before.format["format_kwargs"])


def mapped(
    split: Any, step: Callable[..., Batch], added: Mapping[str, Any], removed: Iterable[str] = (), **how: Any
) -> Any:
    """`map` that says beforehand which columns come out: a stream keeps its features, an empty dataset gets them."""
    from datasets import Dataset, Features

    features = None
    if split.features is not None:
        features = Features({**{name: kind for name, kind in split.features.items() if name not in removed}, **added})
        if isinstance(split, Dataset) and not len(split):
            return Dataset.from_dict({name: [] for name in features}, features=features, split=split.split)
    return split.map(step, batched=True, features=features, remove_columns=sorted(removed), **how)


def _split_as_pairs(split: Any, columns: Mapping[str, str] | None) -> Any:
    columns = dict(columns or {})
    if unknown := set(columns) - {*PAIR, "language"}:
        raise ColumnError(
            f"columns= names {sorted(unknown)}; it takes {', '.join(PAIR)} and language, each with the dataset's own name"
        )
    if "language" in columns:
        split = _renamed(split, {"language": columns.pop("language")})
    names = set(column_names(split))
    if columns and set(columns.values()) <= set(RAW) <= names:  # the raw side of edits takes the place of the other
        split = split.remove_columns([name for name in (*PAIR, *PROVENANCE) if name in names])
        shape = dict(zip(PAIR, RAW, strict=True))
    elif columns:
        shape = {ours: columns.get(ours, ours) for ours in PAIR if ours in columns or ours in names}
    elif set(RAW) <= names:
        split = split.remove_columns([name for name in (*RAW, *PROVENANCE) if name in names])
        shape = dict(zip(PAIR, PAIR, strict=True))
    elif "messages" in names and not any(set(shape.values()) - {"input"} <= names for shape in _SHAPES):
        return _chat_as_pairs(split, ["messages"], names)
    else:
        found = [shape for shape in _SHAPES if set(shape.values()) - {"input"} <= names]
        if not found:
            raise ColumnError(f"the dataset has the columns {sorted(names)}; known shapes are {_KNOWN}")
        shape = {ours: theirs for ours, theirs in found[0].items() if theirs in names}
        if shape["instruction"] == "prompt" and not isinstance(_first_row(split).get("prompt"), str | None):
            return _chat_as_pairs(split, ["prompt", "completion"], names)
    return _text_columns(_renamed(split, shape), PAIR)


def _split_as_edits(split: Any, columns: Mapping[str, str]) -> Any:
    names = set(column_names(split))
    if unknown := set(columns) - {*PAIR, *RAW}:
        raise ColumnError(
            f"columns= names {sorted(unknown)}; it takes {', '.join((*PAIR, *RAW))}, each with the dataset's own name"
        )
    sources = {}
    for side, prefix, marks in (("", "after", ("revised", "Revised")), ("raw_", "before", ("raw", "Raw"))):
        for column in PAIR:
            fields = (column, "output") if column == "response" else (column,)
            candidates = [columns[side + column]] if side + column in columns else [
                *(f"{marks[0]}_{name}" for name in fields), *(f"{marks[1]} {name.title()}" for name in fields), *fields,
            ]  # fmt: skip
            source = next((name for name in candidates if name in names), None)
            if source is None and (column != "input" or side + column in columns):
                raise ColumnError(
                    f"no column holds the {column} {prefix} the revision (looked for {', '.join(candidates)} among "
                    f"{sorted(names)}); say which does: as_edits(ds, columns={{'{side + column}': ...}})"
                )
            if source is not None:
                sources[side + column] = source
    if sources["instruction"] == sources["raw_instruction"] and sources["response"] == sources["raw_response"]:
        raise ColumnError(
            f"both sides of the revision would be the columns {sources['instruction']!r} and {sources['response']!r}; name the "
            "column that holds the revised text: as_edits(ds, columns={'response': ...})"
        )
    consumed = set(sources.values()) - set(sources)
    if any(ours != theirs for ours, theirs in sources.items()):
        kinds = {ours: split.features[theirs] for ours, theirs in sources.items()} if split.features else {}
        split = mapped(split, _Copy(tuple(sources.items())), kinds, consumed)
    return _text_columns(split, (*PAIR, *RAW))


@dataclass(frozen=True)
class _Copy:
    """Batch function: columns under new names; the same one may serve twice."""

    sources: tuple[tuple[str, str], ...]

    def __call__(self, batch: Batch) -> Batch:
        return {ours: batch[theirs] for ours, theirs in self.sources}


def _chat_as_pairs(split: Any, read: list[str], names: set[str]) -> Any:
    if taken := names & {*PAIR, "system"}:
        raise ColumnError(
            f"the dataset has {', '.join(read)} and also {sorted(taken)}; remove or rename those, so that the chat has one meaning"
        )
    from datasets import Value

    added = {name: Value("string") for name in ("system", *PAIR)}
    return mapped(split, _read_messages, added, read, with_indices=True, input_columns=read)


def _read_messages(*batch_and_rows: list[Any]) -> Batch:
    *columns, rows = batch_and_rows
    chats = [[message for part in parts for message in part or []] for parts in zip(*columns, strict=True)]
    read = [_read_chat(chat, row) for chat, row in zip(chats, rows, strict=True)]
    return {name: [each[at] for each in read] for at, name in enumerate(("system", *PAIR))}


def _read_chat(chat: list[Any], row: int) -> tuple[str, str, str, str]:
    for message in chat:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str) or "role" not in message:
            raise ColumnError(
                f"row {row}: a message is not a role with text content ({str(message)[:80]}); keep text chats only"
            )
    roles = [message["role"] for message in chat]
    if roles not in (["user", "assistant"], ["system", "user", "assistant"]):
        raise ColumnError(
            f"row {row}: the chat's turns are {roles[:6]}; midb boosts one user turn and its answer, with or without a system "
            "turn before: filter the others out, or cut each chat into single turns"
        )
    system = chat[0]["content"] if roles[0] == "system" else ""
    return system, chat[-2]["content"], "", chat[-1]["content"]


def _write_messages(batch: Batch) -> Batch:
    systems = batch.get("system", [""] * len(batch["instruction"]))
    return {
        "messages": [
            [{"role": "system", "content": system}] * bool(system)
            + [
                {"role": "user", "content": "\n".join(filter(None, (instruction, input_)))},
                {"role": "assistant", "content": response},
            ]
            for system, instruction, input_, response in zip(systems, *(batch[name] for name in PAIR), strict=True)
        ]
    }


def _renamed(split: Any, shape: Mapping[str, str]) -> Any:
    """Rename the dataset's columns to ours, refusing to lose a column that already has our name."""
    names = set(column_names(split))
    if missing := set(shape.values()) - names:
        raise ColumnError(f"there is no column {sorted(missing)}; the dataset has {sorted(names)}")
    changed = {theirs: ours for ours, theirs in shape.items() if theirs != ours}
    if taken := set(changed.values()) & names:
        raise ColumnError(f"{changed} would overwrite the column {sorted(taken)}; remove or rename it first")
    return split.rename_columns(changed) if changed else split


def _with_pair_columns(split: Any) -> Any:
    if missing := [name for name in PAIR if name not in column_names(split)]:
        raise ColumnError(f"the dataset lacks {missing}; convert it first: as_pairs(ds)")
    return split


def _text_columns(split: Any, columns: Iterable[str]) -> Any:
    """Text in every row: an absent or null input becomes `""`, anything else that is null or not text is refused."""
    from datasets import Dataset, Value

    missing = [name for name in columns if name not in column_names(split)]
    inputs = tuple(name for name in columns if name.endswith("input"))
    if required := [name for name in missing if name not in inputs]:
        raise ColumnError(f"the dataset lacks {required}; it has {sorted(column_names(split))}")
    texts = {name: Value("string") for name in columns}
    if not isinstance(split, Dataset):  # a stream is checked as it flows
        return mapped(split, _Text(tuple(columns)), texts, with_indices=True)
    present = [name for name in columns if name not in missing]
    nulls = _nulls(split, present)
    if hollow := next((name for name in present if nulls[name] is not None and name not in inputs), None):
        raise ColumnError(
            f"row {nulls[hollow]}: {hollow} is null; drop such rows first, e.g. ds.filter(lambda row: row[{hollow!r}] is not None)"
        )
    if missing or any(nulls[name] is not None for name in present):
        split = mapped(split, _Text(tuple(columns)), texts, with_indices=True)
    return split


def _nulls(split: Any, columns: list[str]) -> dict[str, int | None]:
    """The first null row of each column, read in Arrow without making a Python string."""
    import pyarrow.compute as pc
    from datasets import Value

    for name in columns:
        kind = split.features[name]
        if not isinstance(kind, Value) or kind.dtype not in ("string", "large_string", "string_view", "null"):
            raise ColumnError(
                f"column {name!r} holds {kind}, not text; cast it first, e.g. ds.cast_column({name!r}, Value('string'))"
            )
    first: dict[str, int | None] = dict.fromkeys(columns)
    row = 0
    for table in split.select_columns(columns).with_format("arrow").iter(batch_size=10_000):
        for name in columns:
            if first[name] is None and table[name].null_count:
                first[name] = row + pc.index(table[name].is_null(), True).as_py()
        row += table.num_rows
    return first


@dataclass(frozen=True)
class _Text:
    """Batch function: the named columns as text in every row."""

    columns: tuple[str, ...]

    def __call__(self, batch: Batch, rows: list[int]) -> Batch:
        texts = {}
        for name in self.columns:
            values = batch[name] if name in batch else [None] * len(rows)
            if name.endswith("input"):
                values = ["" if value is None else value for value in values]
            for value, row in zip(values, rows, strict=True):
                if not isinstance(value, str):
                    raise ColumnError(
                        f"row {row}: {name} is {'null' if value is None else type(value).__name__}, not text; drop or convert such rows first"
                    )
            texts[name] = values
        return texts


def column_names(split: Any) -> list[str]:
    """The columns of a dataset, or of a stream, which may have to read a row to know."""
    return list(split.column_names or _first_row(split))  # a stream may not know its columns before its first row


def _first_row(split: Any) -> dict[str, Any]:
    return next(iter(split.take(1)), {})
