"""Pairs → edits: what goes to the model, what comes back, and what each row becomes.

Knows no engine (a `Generator` answers chats), no loop (`run.py` asks) and no rule of quality (guards judge an edit).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Literal

from midb.cost import Price, count_tokens
from midb.errors import ColumnError
from midb.generators import Generator, Journal, TransformersGenerator, VLLMGenerator
from midb.generators.base import fingerprint, settings_of
from midb.generators.vllm import is_preferred
from midb.generators.weights import adapter_record, resolve_adapter
from midb.guards import DEFAULT_GUARDS, Guard, check, guard_name, try_guards
from midb.languages import language_code
from midb.prompts import PROMPT, TAGS, check_tags, parse_pair, render_messages
from midb.run import Ask, Reply, Row, Task, sampling_of
from midb.schema import PAIR, PROVENANCE, RAW, Pair, as_pairs, column_names, without_format

TRIED_ROWS = 100  # on which guards of the user's own are tried before the first call


@dataclass(frozen=True, kw_only=True)
class Booster(Task):
    """Rewrite pairs with an LLM, row by row: n rows in, n rows out, same order, nothing lost.

    `booster.map(ds)` takes a dataset, splits or a stream; `booster.estimate(ds)` and `booster.preview(ds)` say before what
    it takes and sends. A booster is also a batch function, for `Dataset.map(batched=True)` and Ray Data.

    Reads: any shape that `as_pairs` takes, and `language` where there is one; a batch: `instruction`, `input`, `response`.
    Adds: `raw_instruction`, `raw_input`, `raw_response` (the pair as it came), `boost_status` (`boosted`; `unchanged`: the
    model left it so; `rejected`: the answer does not parse or a guard refused it; `failed`: no answer came, a rerun asks
    again; `not_run`: the budget was spent), `boost_reason` (`code: detail`, empty where the edit stands), `boost_reply` (the
    model's text where it was rejected), `boost_prompt_tokens` and `boost_completion_tokens` (null where the engine does not
    say), `boosted_by` (the model), `boost_identity` (a hash of the run's settings), `boost_settings` (JSON: how the rows were
    made). A row that is not `boosted` keeps its raw pair.
    Rows: n → n.

    Args:
        generator: Who answers; wrap it in a `Journal` and a rerun asks only for what failed.
        guards: Each may refuse an edit; the first reason counts. Text that does not parse never stands.
        fields: `"all"`, or `"response"` to keep instruction and input as they came.
        prompt: The instruction to the model, before the pair. The published prompt, in English for every language.
        tags: The instruction, input and response tag.
        parity: Send text unescaped, as the reference does; for comparisons on data you trust.
        language: The language of a dataset without a `language` column; None lets the guards judge from each row.
        price: Money per million prompt and completion tokens, and a currency's word if you like; for `estimate`,
            `max_cost` and the summary.

    Source: MIDB (arXiv 2505.17671); the prompt and tags are the published ones, the guards are ours.
    """

    verb: ClassVar[str] = "boost"
    counted: ClassVar[tuple[str, ...]] = ("boost_status", "boost_reason")

    generator: Generator
    guards: tuple[Guard, ...] = DEFAULT_GUARDS
    fields: Literal["all", "response"] = "all"
    prompt: str = PROMPT
    tags: tuple[str, str, str] = TAGS
    parity: bool = False
    language: str | None = None
    price: Price | tuple[float, float] | None = None

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
        Price.of(self.price)

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

    def prepare(self, split: Any) -> Any:
        """One split as pairs, checked before anything is paid.

        Raises:
            ColumnError: The shape is not known, a text is null, a language is none, or the rows are edits already.
            ValueError: A guard of yours does not work.
        """
        from datasets import Dataset, IterableDataset

        if not isinstance(split, Dataset | IterableDataset):
            raise TypeError(
                f"a {type(split).__name__} is no dataset; make it one first, e.g. Dataset.from_pandas(frame)"
            )
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
        tried = pairs.take(min(TRIED_ROWS, len(pairs))) if isinstance(pairs, Dataset) else []
        try_guards(self.guards, [_pair(row) for row in tried] or [Pair("a", "", "b")], self.language)
        return pairs

    def asks(self, row: Row) -> Sequence[Ask]:
        """One prompt: the pair between its tags, under the instruction.

        Raises:
            ColumnError: A text is missing, or the language is none.
        """
        raw = _pair(row)
        _code(row.get("language", self.language))
        messages = render_messages(raw, self.prompt, tags=self.tags, parity=self.parity)
        return [Ask(messages, expects=count_tokens([{"role": "assistant", "content": "\n".join(raw)}]))]

    def becomes(self, row: Row, replies: Sequence[Reply]) -> Row:
        """What one row becomes."""
        raw, completion = _pair(row), replies[0].completion
        new = parse_pair(completion.text, tags=self.tags, parity=self.parity)
        if new is not None and self.fields == "response":
            new = Pair(raw.instruction, raw.input, new.response)
        if completion.error is not None:
            status, reason = "not_run" if completion.finish_reason == "not_run" else "failed", completion.error
        elif new is not None and [text.strip() for text in new] == [text.strip() for text in raw]:
            status, reason = "unchanged", ""
        else:
            language = _code(row.get("language", self.language))
            reason = check(self.guards, raw, new, language, completion) or ""
            status = "rejected" if reason else "boosted"
        stands = new if status == "boosted" and new is not None else raw
        return {
            **dict(zip(PAIR, stands, strict=True)), **dict(zip(RAW, raw, strict=True)), "boost_status": status, "boost_reason": reason,
            "boost_reply": completion.text if status == "rejected" else "", "boost_prompt_tokens": completion.prompt_tokens,
            "boost_completion_tokens": completion.completion_tokens,
        }  # fmt: skip

    def made(self) -> dict[str, str]:
        """How the rows were made: `boosted_by`, `boost_identity`, `boost_settings`."""
        return self._made

    @cached_property
    def _made(self) -> dict[str, str]:
        """Once for a booster: an engine may read weights for it."""
        settings = {
            "midb": version("midb"), "prompt": self.prompt, "tags": self.tags, "fields": self.fields, "parity": self.parity,
            "language": self.language, "guards": [guard_name(guard) for guard in self.guards],
            "sampling": asdict(sampling_of(self.generator)), "generator": settings_of(self.generator),
        }  # fmt: skip
        return {
            "boosted_by": self.generator.name,
            "boost_identity": fingerprint(self.generator.identity(), settings),
            "boost_settings": json.dumps(settings, sort_keys=True, ensure_ascii=False),
        }

    def adds(self) -> dict[str, Any]:
        """The columns that come out beside those that came in, with their `datasets` types."""
        from datasets import Value

        counts = ("boost_prompt_tokens", "boost_completion_tokens")
        return {name: Value("int64" if name in counts else "string") for name in (*PAIR, *RAW, *PROVENANCE)}


def _pair(row: Row) -> Pair:
    """The pair that a row holds.

    Raises:
        ColumnError: It holds none.
    """
    pair = Pair(row.get("instruction"), row.get("input") or "", row.get("response"))  # type: ignore[arg-type]
    if not all(isinstance(text, str) for text in pair):
        raise ColumnError(f"{pair!r:.80} is no pair of text; convert the dataset first: as_pairs(ds)")
    return pair


def _check_language(pairs: Any) -> None:
    """Read every language of the dataset before anything is paid for."""
    from datasets import Dataset, Value

    kind = pairs.features["language"]
    if not isinstance(kind, Value):
        raise ColumnError(
            f"the column 'language' is {kind}, not text; turn it into ISO codes such as 'fr', or rename it"
        )
    for name in pairs.unique("language") if isinstance(pairs, Dataset) else ():
        _code(name)


@lru_cache
def _code(name: Any) -> str | None:
    """The ISO code of a language; None of none.

    Raises:
        ColumnError: It is no language.
    """
    try:
        return language_code(name) if name else None
    except (ValueError, AttributeError) as error:
        raise ColumnError(
            f"the column 'language' holds {name!r}; use ISO 639 codes such as 'fr', or rename the column if it means something else"
        ) from error
