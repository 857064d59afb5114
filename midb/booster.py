"""Pairs → edits: what goes to the model, what comes back, and what each row becomes.

Knows no engine (a `Generator` answers chats) and no rule of quality (guards judge an edit); it joins the two to a dataset.
"""

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

from midb.errors import ColumnError
from midb.generators import Completion, Generator, Journal, TransformersGenerator, VLLMGenerator
from midb.generators.base import fingerprint, stable_form, stream
from midb.generators.vllm import is_preferred
from midb.generators.weights import adapter_record, resolve_adapter
from midb.guards import DEFAULT_GUARDS, Guard, check
from midb.languages import language_code
from midb.progress import RowBar, say
from midb.prompts import PROMPT, TAGS, check_tags, parse_pair, render_messages
from midb.review import summarize
from midb.schema import (
    PROVENANCE,
    RAW,
    AnyDataset,
    Batch,
    Message,
    Pair,
    as_pairs,
    column_names,
    in_format_of,
    mapped,
    without_format,
)  # fmt: skip


class Edit(NamedTuple):
    """One row as the booster leaves it: the pair, the pair it came from, and how it went."""

    instruction: str
    input: str
    response: str
    raw_instruction: str
    raw_input: str
    raw_response: str
    boost_status: str
    boost_reason: str
    boost_reply: str
    boost_prompt_tokens: int | None
    boost_completion_tokens: int | None
    boosted_by: str


@dataclass(frozen=True, kw_only=True)
class Booster:
    """Rewrite pairs with a tuned LLM, row by row: n rows in, n rows out, same order, nothing lost.

    A batch function: `booster(batch)` takes and returns a dict of columns, so `Dataset.map(batched=True)`, streams and
    Ray take it as it is. `booster.map(ds)` is what most people want.

    Reads: `instruction`, `input`, `response`, and `language` where there is one.
    Adds: `raw_instruction`, `raw_input`, `raw_response` (the pair as it came), `boost_status` (`boosted`; `unchanged`: the
    model left it so; `rejected`: the answer does not parse or a guard refused it; `failed`: no answer came, a rerun asks
    again), `boost_reason` (`code: detail`, empty where the edit stands), `boost_reply` (the model's text where it was
    rejected), `boost_prompt_tokens` and `boost_completion_tokens` (null where the engine does not say), `boosted_by` (who
    was asked). A row that is not `boosted` keeps its raw pair.

    Args:
        generator: Who answers; wrap it in a `Journal` and a rerun asks only for what failed.
        guards: Each may refuse an edit; the first reason counts. Text that does not parse never stands. A guard's code,
            settings and closure are part of the identity; what it calls is not: when that changes, take another ledger.
        fields: `"all"`, or `"response"` to keep instruction and input as they came.
        prompt: What the model is told, before the pair. The published prompt, and English for every language.
        tags: The instruction, input and response tag.
        parity: Send text unescaped, as the reference does; for comparisons on data you trust.
        language: The language of a dataset without a `language` column; None lets the guards judge from each row.

    Source: MIDB (arXiv 2505.17671); the prompt and tags are the published ones, the guards are ours.
    """

    generator: Generator
    guards: tuple[Guard, ...] = DEFAULT_GUARDS
    fields: Literal["all", "response"] = "all"
    prompt: str = PROMPT
    tags: tuple[str, str, str] = TAGS
    parity: bool = False
    language: str | None = None

    def __post_init__(self) -> None:
        if self.fields not in ("all", "response"):
            raise ValueError(f"fields={self.fields!r} is not a choice; use 'all' or 'response'")
        if not isinstance(self.guards, tuple) or not all(map(callable, self.guards)):
            raise ValueError(
                f"guards={self.guards!r:.80} is no tuple of functions; write guards=(*DEFAULT_GUARDS, my_guard)"
            )
        check_tags(self.tags)
        if self.language is not None:
            language_code(self.language)

    @classmethod
    def from_pretrained(
        cls,
        model_or_adapter: str | Path,
        *,
        journal: str | Path | None = None,
        engine: Literal["vllm", "transformers"] | None = None,
    ) -> "Booster":
        """Boost with a model or a LoRA adapter from a folder or the Hub, on this machine.

        An adapter that midb trained is asked as in its training: same prompt, tags and rendering. Text is escaped also
        where the training's was not, which a warning says.

        Args:
            model_or_adapter: A causal language model, or an adapter that names its base model.
            journal: A file that keeps every completion, so that a rerun is free.
            engine: None is vLLM where it is installed and sees a GPU, else transformers.

        Raises:
            MissingExtraError: The engine, transformers or torch is not installed.
        """
        if engine not in (None, "vllm", "transformers"):
            raise ValueError(f"engine={engine!r} is not a choice; use 'vllm', 'transformers' or None")
        model, adapter = resolve_adapter(model_or_adapter)
        on_vllm = engine == "vllm" or (engine is None and is_preferred())
        generator: Generator = (VLLMGenerator if on_vllm else TransformersGenerator)(model, adapter=adapter)
        record = adapter_record(adapter) if adapter else None
        asked: dict[str, Any] = {} if record is None else {"prompt": record.prompt, "tags": record.tags}
        return cls(generator=generator if journal is None else Journal(generator, journal), **asked)

    def identity(self) -> str:
        """A hash over everything that can change a row, and nothing else.

        Raises:
            ValueError: A guard holds what cannot be told from another of its kind.
        """
        guards = [_form(guard) for guard in self.guards]
        own = [guards, self.fields, self.prompt, self.tags, self.parity, self.language]
        return fingerprint("booster", version("midb"), self.generator.identity(), *own)

    def adds(self) -> dict[str, Any]:
        """The columns that come out beside those that came in, with their `datasets` types."""
        return _edit_features()

    def preview(self, dataset: Any, n: int = 3) -> list[list[Message]]:
        """The exact messages of the first `n` rows; calls nothing.

        Reads: as `map`.

        Raises:
            ColumnError: As `map`.
        """
        split = next(iter(dataset.values())) if isinstance(dataset, dict) else dataset
        rows = _checked(split).take(n)
        return [self._messages(Pair(row["instruction"], row["input"], row["response"])) for row in rows]

    def map(self, dataset: AnyDataset, *, batch_size: int | None = None, **map_arguments: Any) -> AnyDataset:
        """Boost every row of a dataset, with one progress bar and a summary at the end.

        Reads: any shape that `as_pairs` takes.  Adds: the columns of `Booster`.  Rows: n → n, same order; other columns untouched.

        It always runs and never serves a cached result, which would keep `failed` rows forever: the journal makes a rerun free.

        Args:
            batch_size: Rows scheduled together; a batch ends with its slowest row. Default: 16,384; 64 for a streamed dataset.
            map_arguments: For `Dataset.map`, such as `num_proc`.

        Raises:
            ColumnError: The dataset's shape is not known, a text is null, or it has been boosted before.
            GenerationError: The engine is dead or refuses everything; what was answered is safe in the journal.
        """
        from datasets import Dataset

        if isinstance(dataset, dict):
            for name, split in dataset.items():  # a later split's fault is told before an earlier one is paid for
                try:
                    _checked(split)
                except ColumnError as error:
                    raise ColumnError(f"split {name!r}: {error}") from error
            return type(dataset)(
                {name: self.map(split, batch_size=batch_size, **map_arguments) for name, split in dataset.items()}
            )
        pairs = _checked(dataset)
        added = _edit_features()
        if not isinstance(pairs, Dataset):
            return mapped(pairs, self, added, batch_size=batch_size or 64, **map_arguments)
        # A fresh fingerprint: what is computed from these rows must not be served to a later run that healed some of them.
        how = {"load_from_cache_file": False, "new_fingerprint": uuid.uuid4().hex, **map_arguments}
        how["batch_size"] = batch_size or 16_384
        if (map_arguments.get("num_proc") or 1) > 1:
            edits = mapped(pairs, self, added, desc="boost", **how)
        else:
            with RowBar(len(pairs), "boost") as bar:

                def count(edit: Edit) -> None:
                    bar.count(edit.boost_completion_tokens, edit.boost_status == "failed")

                edits = mapped(pairs, lambda batch: self._boost(batch, count), added, **how)
        say(summarize(edits))
        return in_format_of(dataset, edits)

    def __call__(self, batch: Batch) -> Batch:
        """Boost one batch of columns."""
        return self._boost(batch, lambda edit: None)

    def _boost(self, batch: Batch, finished: Callable[[Edit], None]) -> Batch:
        raws = _read_pairs(batch)
        languages = _read_languages(batch, self.language)
        edits: list[Any] = [None] * len(raws)
        for position, completion in stream(self.generator, [self._messages(raw) for raw in raws]):
            edits[position] = self._edit(raws[position], languages[position], completion)
            finished(edits[position])
        return {column: [edit[at] for edit in edits] for at, column in enumerate(Edit._fields)}

    def _messages(self, raw: Pair) -> list[Message]:
        return render_messages(raw, self.prompt, tags=self.tags, parity=self.parity)

    def _edit(self, raw: Pair, language: str | None, completion: Completion) -> Edit:
        """What one row becomes."""
        new = parse_pair(completion.text, tags=self.tags, parity=self.parity)
        if new is not None and self.fields == "response":
            new = Pair(raw.instruction, raw.input, new.response)
        if completion.error is not None:
            status, reason = "failed", completion.error
        elif new is not None and [text.strip() for text in new] == [text.strip() for text in raw]:
            status, reason = "unchanged", ""
        else:
            reason = check(self.guards, raw, new, language, completion) or ""
            status = "rejected" if reason else "boosted"
        stands = new if status == "boosted" and new is not None else raw
        reply = completion.text if status == "rejected" else ""
        tokens = (completion.prompt_tokens, completion.completion_tokens)
        return Edit(*stands, *raw, status, reason, reply, *tokens, self.generator.name)


def _checked(split: Any) -> Any:
    """The split as pairs of plain Python text; refused where a boost would fail, or overwrite what another one said."""
    from datasets import Dataset, IterableDataset

    if not isinstance(split, Dataset | IterableDataset):
        raise TypeError(f"a {type(split).__name__} is no dataset; make it one first, e.g. Dataset.from_pandas(frame)")
    names = column_names(split)
    if taken := [name for name in (*RAW, *PROVENANCE) if name in names]:
        raise ColumnError(
            f"the dataset has the columns {taken}, which a boost writes; rename them, or, if these are edits, say which side "
            "to boost: booster.map(as_pairs(edits)), or the raw one with as_pairs(edits, columns={'instruction': "
            "'raw_instruction', 'input': 'raw_input', 'response': 'raw_response'})"
        )
    pairs = without_format(as_pairs(split))
    if "language" in names and pairs.features is not None:
        _check_language(pairs)
    return pairs


def _check_language(pairs: Any) -> None:
    """Read every language of the dataset before anything is paid for."""
    from datasets import Dataset, Value

    kind = pairs.features["language"]
    if not isinstance(kind, Value):
        raise ColumnError(
            f"the column 'language' is {kind}, not text; turn it into ISO codes such as 'fr', or rename it"
        )
    for name in pairs.unique("language") if isinstance(pairs, Dataset) else ():
        if name:
            _code(name)


def _read_pairs(batch: Batch) -> list[Pair]:
    if missing := [name for name in ("instruction", "response") if name not in batch]:
        raise ColumnError(f"the batch lacks {missing}; convert the dataset first: as_pairs(ds)")
    inputs = batch["input"] if "input" in batch else [None] * len(batch["instruction"])
    pairs = [
        Pair(instruction, input_ or "", response)
        for instruction, input_, response in zip(batch["instruction"], inputs, batch["response"], strict=True)
    ]
    for row, pair in enumerate(pairs):
        if not all(isinstance(text, str) for text in pair):
            raise ColumnError(
                f"row {row} of a batch holds {pair!r:.80}, where text is needed; convert the dataset first: as_pairs(ds)"
            )
    return pairs


def _read_languages(batch: Batch, default: str | None) -> list[str | None]:
    said = batch["language"] if "language" in batch else [default] * len(batch["instruction"])
    codes: dict[str | None, str | None] = {None: None, "": None}
    for name in said:
        if name not in codes:
            codes[name] = _code(name)
    return [codes[name] for name in said]


def _code(name: Any) -> str:
    try:
        return language_code(name)
    except (ValueError, AttributeError) as error:
        raise ColumnError(
            f"the column 'language' holds {name!r}; use ISO 639 codes such as 'fr', or rename the column if it means something else"
        ) from error


def _edit_features() -> dict[str, Any]:
    from datasets import Value

    integers = ("boost_prompt_tokens", "boost_completion_tokens")
    return {name: Value("int64" if name in integers else "string") for name in Edit._fields}


def _form(guard: Guard) -> list[Any]:
    try:
        return stable_form(guard)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"the guard {guard!r:.80} holds what cannot be told from another of its kind ({error}), so that rows made with "
            "another could pass for its own; make it a function or a frozen dataclass that holds numbers, text, tuples and "
            "such functions only, and let it load the rest in a cached_property"
        ) from error
