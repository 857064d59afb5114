"""Edits → what a booster learns from: prompt and completion, then token ids with the prompt masked.

The prompt is what a booster sends for the raw pair, the completion what it should answer: the new pair between tags.
Knows texts and counts; not the model, the trainer (`trainer.py`) or the recipe (`recipe.py`). Every row is counted before
any is cut, so that the report says what a length limit costs, in rows and per language.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from midb.chat import ChatFormat
from midb.distance import check_edit_columns, left_out_line
from midb.errors import ColumnError
from midb.prompts import PROMPT, TAGS, check_tags, render_messages, render_pair
from midb.schema import PAIR, RAW, AnyDataset, Batch, Pair, as_edits, column_names, in_format_of, mapped, without_format

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

Overlong = Literal["leave_out", "cut", "refuse"]

MASKED = -100  # the label that no loss sees: torch's and the trainers' own


def as_training_set(
    edits: AnyDataset, *, prompt: str = PROMPT, tags: tuple[str, str, str] = TAGS, parity: bool = False
) -> AnyDataset:
    """Write edits as chats to learn from: the conversational prompt-completion data that TRL's trainers take.

    Reads: the pair columns and their `raw_` twins.
    Adds: in their place `prompt` (one user message: what a booster sends for the raw pair) and `completion` (one
    assistant message: the new pair between tags).
    Rows: n → n. A boosted row whose edit does not stand has its raw pair as the completion. `lora_trainer` leaves those
    out; for another trainer drop them first: `edits.filter(lambda row: row["boost_status"] == "boosted")`.

    Args:
        edits: Stored or streamed, in splits or not.
        prompt: The instruction above the pair; the booster must send the same.
        tags: The instruction, input and response tag.
        parity: No escaping, as the reference does.

    Raises:
        ColumnError: A text column is missing, null or not text, or a column already has one of the new names.
        ValueError: Tags that text could forge.

    Source: MIDB, assets/MEB_dataset_template.
    """
    check_tags(tags)
    step = _AsChats(prompt, tags, parity)
    if isinstance(edits, dict):  # DatasetDict and IterableDatasetDict
        return type(edits)({name: _split_as_chats(split, step) for name, split in edits.items()})
    return _split_as_chats(edits, step)


def _split_as_chats(split: Any, step: "_AsChats") -> Any:
    from datasets import Dataset, List, Value

    names = column_names(split)
    check_edit_columns(names)
    if taken := sorted({"prompt", "completion"} & set(names)):
        raise ColumnError(f"the edits already have a column {', '.join(taken)}; remove or rename it first")
    # Each column by its own name: this checks the texts, and takes no other column for one of them.
    edits = as_edits(without_format(split), columns={name: name for name in (*PAIR, *RAW)})
    chat = List({"role": Value("string"), "content": Value("string")})
    how = (
        {"load_from_cache_file": False} if isinstance(split, Dataset) else {}
    )  # a cache would not notice that `escape` changed
    return in_format_of(split, mapped(edits, step, {"prompt": chat, "completion": chat}, (*PAIR, *RAW), **how))


@dataclass(frozen=True)
class _AsChats:
    """Batch function: edits as one question and its answer."""

    prompt: str
    tags: tuple[str, str, str]
    parity: bool

    def __call__(self, batch: Batch) -> Batch:
        how: Any = {"tags": self.tags, "parity": self.parity}
        before, after = (map(Pair, *(batch[name] for name in side)) for side in (RAW, PAIR))
        return {
            "prompt": [render_messages(pair, self.prompt, **how) for pair in before],
            "completion": [[{"role": "assistant", "content": render_pair(pair, **how)}] for pair in after],
        }


@dataclass(frozen=True)
class Counts:
    """What a length limit did to rows.

    Args:
        rows: As they came.
        kept: To be trained on.
        left_out: Longer than the limit, and not trained on.
        cut: Longer than the limit, and trained on in part.
        prompt_tokens: Read in an epoch.
        completion_tokens: Trained in an epoch, end tokens included.
        longest: Tokens of the longest row as it came, prompt and completion together.
    """

    rows: int
    kept: int
    left_out: int
    cut: int
    prompt_tokens: int
    completion_tokens: int
    longest: int


@dataclass(frozen=True)
class TokenizedSet:
    """Rows as a trainer reads them, and what was counted on the way; `str()` is the report.

    Args:
        dataset: `input_ids` and `labels`: the ids, and the ids with the prompt's masked.
        counts: Of all rows.
        languages: Of each language, where the rows have that column.
        max_length: The limit, in tokens of prompt and completion together.
        overlong_rows: The numbers of the first ten rows that are longer.
        fingerprint: 16 hex digits over all ids and labels in order: the same data has the same on any machine.
        not_standing: Status → boosted rows that were left out before, as their edit does not stand; they are not in `counts`.
    """

    dataset: "Dataset"
    counts: Counts
    languages: dict[str, Counts]
    max_length: int
    overlong_rows: tuple[int, ...]
    fingerprint: str
    not_standing: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        """A table of the counts, a line each on rows without a standing edit and rows that are too long, the fingerprint."""
        table = [("language", *(each.name.replace("_", " ") for each in fields(Counts)))]
        for language, counts in (*self.languages.items(), ("all", self.counts)):
            table.append((language, *(f"{number:,}" for number in astuple(counts))))
        first, *others = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            line[0].ljust(first) + "".join(cell.rjust(width + 2) for cell, width in zip(line[1:], others, strict=True))
            for line in table
        ]
        if self.not_standing:
            lines.append(left_out_line(self.not_standing))
        if over := self.counts.left_out + self.counts.cut:
            rows = ", ".join(map(str, self.overlong_rows)) + (", …" if over > len(self.overlong_rows) else "")
            lines.append(f"longer than {self.max_length:,} tokens: {over:,} (row {rows})")
        return "\n".join([*lines, f"fingerprint {self.fingerprint}"])


def tokenize(
    rows: "Dataset", chat: ChatFormat, *, max_length: int = 4096, overlong: Overlong = "leave_out"
) -> TokenizedSet:
    """Encode what a booster reads and what it should write, and count before anything is cut.

    Reads: `prompt` and `completion` (of `as_training_set`), `language` where there is one.
    Adds: `input_ids` and `labels`, and nothing else stays.  Rows: n → n, less those left out.

    Args:
        rows: One stored split.
        chat: The rendering that the booster will use.
        max_length: Tokens of prompt and completion together.
        overlong: What becomes of longer rows. `leave_out` trains without them; `cut` cuts both sides from the right as
            the reference does, so that the completion has no end token; `refuse` raises.

    Raises:
        ColumnError: The rows are not of `as_training_set`.
        TypeError: The rows are streamed, or several splits.
        ValueError: Rows are too long and `overlong` is `refuse`; no row is left; an option is unknown.
    """
    import numpy as np
    from datasets import Features, List, Value

    if overlong not in ("leave_out", "cut", "refuse"):
        raise ValueError(f"overlong={overlong!r} is unknown; use 'leave_out', 'cut' or 'refuse'")
    check_stored(rows, "rows")
    if missing := {"prompt", "completion"} - set(rows.column_names):
        raise ColumnError(
            f"no column {', '.join(sorted(missing))}; write the edits as chats first: as_training_set(edits)"
        )
    if not len(rows):
        raise ValueError("there is no row to train on; look at what filtered the edits")
    rows, ids, number = without_format(rows), List(Value("int32")), Value("int64")
    tokens = rows.map(
        _Tokens(chat, max_length),
        batched=True,
        with_indices=True,
        input_columns=["prompt", "completion"],
        remove_columns=rows.column_names,
        features=Features({"input_ids": ids, "labels": ids, "prompt_tokens": number, "completion_tokens": number}),
        load_from_cache_file=False,  # a cache would not notice another midb or tokenizers
        desc="Tokens",
    )
    counted = tokens.with_format("numpy", columns=["prompt_tokens", "completion_tokens"])[:]
    source, target = counted["prompt_tokens"].copy(), counted["completion_tokens"].copy()
    length = source + target
    over = np.flatnonzero(length > max_length)
    if len(over) and overlong == "refuse":
        raise ValueError(
            f"{len(over):,} of {len(rows):,} rows are longer than max_length={max_length}, the longest has {length.max()} tokens; "
            f"max_length={length.max()} holds all, overlong='leave_out' trains without them"
        )
    for row in over:
        left = infer_seqlen(int(source[row]), int(target[row]), max_length) if overlong == "cut" else (0, 0)
        source[row], target[row] = left
    kept = target > 0  # not a prompt that was cut down to no completion either: it teaches nothing
    if not kept.any():
        raise ValueError(
            f"none of {len(rows):,} rows fits max_length={max_length}, the shortest has {length.min()} tokens; "
            "give a larger max_length"
        )
    dataset = tokens.select_columns(["input_ids", "labels"])
    if not kept.all():
        dataset = dataset.select(np.flatnonzero(kept))

    def count(which: "np.ndarray") -> Counts:
        stays = which & kept
        numbers = (
            which.sum(), stays.sum(), (which & ~kept).sum(), (stays & (length > max_length)).sum(),
            source[stays].sum(), target[stays].sum(), length[which].max(),
        )  # fmt: skip
        return Counts(*map(int, numbers))

    named = np.array([str(each) for each in rows["language"]] if "language" in rows.column_names else [])
    return TokenizedSet(
        dataset,
        counts=count(np.ones(len(rows), bool)),
        languages={language: count(named == language) for language in dict.fromkeys(named.tolist())},
        max_length=max_length,
        overlong_rows=tuple(map(int, over[:10])),
        fingerprint=_fingerprint(dataset),
    )


def check_stored(rows: Any, name: str) -> None:
    """Raise TypeError unless the rows are one stored split."""
    from datasets import Dataset

    if not isinstance(rows, Dataset):
        raise TypeError(f"{name} are a {type(rows).__name__}; give one stored split, e.g. dataset['train']")


@dataclass(frozen=True)
class _Tokens:
    """Batch function: chats as ids and labels, cut where they are too long, and the counts from before that."""

    chat: ChatFormat
    max_length: int

    def __call__(self, prompts: list[Any], completions: list[Any], rows: list[int]) -> Batch:
        batch: Batch = {"input_ids": [], "labels": [], "prompt_tokens": [], "completion_tokens": []}
        for prompt, completion, row in zip(prompts, completions, rows, strict=True):
            is_chat = not isinstance(prompt, str) and not isinstance(completion, str)
            if not is_chat or [message["role"] for message in completion] != ["assistant"]:
                raise ColumnError(
                    f"row {row}: prompt and completion are not a chat and one assistant message; write them with as_training_set(edits)"
                )
            source, target = self.chat.encode(prompt), self.chat.encode_answer(completion[0]["content"])
            batch["prompt_tokens"].append(len(source))
            batch["completion_tokens"].append(len(target))
            if len(source) + len(target) > self.max_length:
                kept_source, kept_target = infer_seqlen(len(source), len(target), self.max_length)
                source, target = source[:kept_source], target[:kept_target]
            batch["input_ids"].append(source + target)
            batch["labels"].append([MASKED] * len(source) + target)
        return batch


def infer_seqlen(source: int, target: int, cutoff: int) -> tuple[int, int]:
    """Return how many tokens of a prompt and of its completion the reference keeps.

    Source: LLaMA-Factory, with which MIDB was trained: a side below half the limit stays whole, else both give way.
    """
    if target * 2 < cutoff:
        most = cutoff
    elif source * 2 < cutoff:
        most = cutoff - source
    else:
        most = int(cutoff * (target / (source + target)))
    kept = min(most, target)
    return min(max(cutoff - kept, 0), source), kept


def show_tokens(input_ids: Sequence[int], labels: Sequence[int], tokenizer: Any) -> str:
    """Format a row token by token: place, id, whether it is trained, text.

    Text is quoted as in Python, part of a character as bytes: spaces show, and control characters are escaped.
    """
    lines = [
        f"{place:6}  {number:7}  {'trained' if label != MASKED else '':7}  {_spelled(number, tokenizer)}"
        for place, (number, label) in enumerate(zip(input_ids, labels, strict=True))
    ]
    trained = sum(label != MASKED for label in labels)
    return "\n".join([f"{len(lines):,} tokens, {trained:,} of them trained", " place       id           text", *lines])


def _spelled(number: int, tokenizer: Any) -> str:
    text: str = tokenizer.decode([number], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    piece = str(tokenizer.convert_ids_to_tokens(number))
    if "\N{REPLACEMENT CHARACTER}" in text and _BYTES.keys() >= set(piece):
        return repr(bytes(_BYTES[each] for each in piece))
    if piece.startswith("▁"):  # SentencePiece's space, which decoding takes from a first token
        text = piece.replace("▁", " ")
    return repr(text)


# How byte-level vocabularies write bytes, since GPT-2: printable ones as themselves, the others from U+0100 on.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_BYTES = {chr(byte): byte for byte in _PRINTABLE}
_BYTES |= {chr(0x100 + at): byte for at, byte in enumerate(sorted({*range(0x100)} - {*_PRINTABLE}))}


def _fingerprint(dataset: "Dataset") -> str:
    """Hash lengths, ids and labels, each as a stream of its own, so that no way of batching shows."""
    streams = [hashlib.sha256() for _ in range(3)]
    for table in dataset.with_format("arrow").iter(batch_size=1000):
        ids, labels = (table[name].combine_chunks() for name in ("input_ids", "labels"))
        for stream, values in zip(streams, (ids.value_lengths(), ids.flatten(), labels.flatten()), strict=True):
            stream.update(values.to_numpy().astype("<i4").tobytes())
    return hashlib.sha256(b"".join(stream.digest() for stream in streams)).hexdigest()[:16]
