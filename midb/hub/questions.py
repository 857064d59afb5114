"""What an evaluation set holds: questions per language, what became of their turns, and one of them in each language.

Knows the columns that `midb.release` writes. Evaluation sets are small, so they are read whole.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from midb.errors import ColumnError
from midb.hub.facts import kind_of, read_languages
from midb.languages import BY_CODE

if TYPE_CHECKING:
    from datasets import Dataset

# Sets that are told by their texts: title, and what they are.
PUBLISHED = {
    "": ("Questions", ""),
    "mt-bench": (
        "MT-Bench",
        "They are MIDB's published MT-Bench files of these languages as midb reads them: machine translations of the 80 English questions, most of two "
        "turns.",
    ),
    "alpaca-eval": (
        "AlpacaEval",
        "They are MIDB's published AlpacaEval files of these languages as midb reads them: machine translations of the 805 English instructions.",
    ),
}
# What `_hash` gives of the ids and turns that `midb.release` reads from each published file.
_HASHES = {
    "mt-bench": {
        "it": "a3ee377daaa66543", "es": "fa39d4a7c0fed1d4", "fr": "e1989923ccf766d2", "de": "712a5ca3b89e075e",
        "ru": "2861251959535a87", "ar": "ae61b12aba19cead", "tr": "d27ad58cb7e6946f", "ja": "f5d35e63e29c9893",
        "ko": "aaacbbee6074bbc2", "pt": "e183a6392ae101cd", "cs": "00aa6e62c00cf2e3", "el": "9f36d8fe0a06e0e1",
        "id": "cedd5c3af25bc549", "th": "1814b408669b7d02", "vi": "7b60b537b2b66839", "ms": "a8ac20634c98a378",
    },
    "alpaca-eval": {
        "it": "15fd15c17db42345", "es": "ac80f3b908bbc366", "fr": "f1607b87bfa1dc5a", "de": "e20db9de9d27f38f",
        "ru": "1edb78216602f874", "ar": "fea3a1992c99f10e", "tr": "b8d49d422a94a6de", "ja": "ab08bb3db21ad771",
        "ko": "538c0acdc064265d", "pt": "a657dc322997a11e", "cs": "cd7b53c84c6dc099", "el": "aa5b623a16e3e704",
        "id": "2bab4de6474e0280", "th": "19ac2501a6c8aa1f", "vi": "db71b2895fe906d9", "ms": "4d8a69e779e90e8a",
    },
}  # fmt: skip


class Question(NamedTuple):
    """A question in one language."""

    language: str
    id: Any
    turns: list[str]


@dataclass
class LanguageQuestions:
    """The questions in one language."""

    language: str
    rows: int = 0
    several_turns: int = 0
    repaired: int = 0
    defects: Counter[str] = field(default_factory=Counter)
    sound_ids: set[Any] = field(default_factory=set)
    ids: set[Any] = field(default_factory=set)
    missing: list[Any] = field(default_factory=list)

    @property
    def name(self) -> str:
        """In English where the table of languages has it."""
        return BY_CODE[self.language].name if self.language in BY_CODE else self.language or "not stated"


@dataclass(frozen=True)
class QuestionFacts:
    """An evaluation set in figures.

    Attributes:
        published: `mt-bench` or `alpaca-eval` where each language has the very questions that `midb.release` gives; else empty.
        languages: By name.
        ids: How many different ones.
        common: How many are in every language.
        sound: How many of these have no defect in any language.
        categories: Name → rows.
        columns: Name → type.
        split: The first one's name.
        samples: One question, in each language that has it.
    """

    published: str
    languages: tuple[LanguageQuestions, ...]
    rows: int
    ids: int
    common: int
    sound: int
    categories: dict[str, int]
    columns: dict[str, str]
    split: str
    samples: tuple[Question, ...]


def read_questions(splits: Mapping[str, "Dataset"]) -> QuestionFacts:
    """Count the questions of an evaluation set.

    Raises:
        ColumnError: It lacks a column, holds turns that are no lists of text, or a language that is none.
    """
    from datasets import List

    split_name, first = next(iter(splits.items()))
    missing = [name for name in ("id", "turns") if name not in first.column_names]
    if missing or not isinstance(first.features["turns"], List):
        raise ColumnError(
            f"an evaluation set has an id and turns (a list of texts) in each row, and this has {', '.join(first.column_names)}; "
            "load one with midb.release, or push edits with push_dataset"
        )
    codes, places = read_languages(splits, None)
    languages = [LanguageQuestions(code) for code in codes]
    categories: Counter[str] = Counter()
    texts: dict[Any, dict[str, list[str]]] = {}
    for name, split in splits.items():
        for row, place in zip(split, places[name], strict=True):
            of, turns = languages[place], [turn or "" for turn in row["turns"] or []]
            of.rows += 1
            of.several_turns += len(turns) > 1
            of.ids.add(row["id"])
            if defect := row.get("defect"):
                of.defects[defect] += 1
            else:
                of.sound_ids.add(row["id"])
            of.repaired += bool(row.get("repair"))
            categories[row.get("category") or ""] += 1
            texts.setdefault(row["id"], {}).setdefault(of.language, turns)
    languages = sorted((each for each in languages if each.rows), key=lambda each: each.name)
    for each in languages:
        each.missing = [id_ for id_ in texts if id_ not in each.ids]
    common = set.intersection(*(each.ids for each in languages))
    shown = next((id_ for id_ in texts if id_ in common), next(iter(texts)))
    return QuestionFacts(
        published=_published(languages, texts),
        languages=tuple(languages),
        rows=sum(map(len, splits.values())),
        ids=len(texts),
        common=len(common),
        sound=len(set.intersection(*(each.sound_ids for each in languages))),
        categories=dict(categories.most_common()) if set(categories) != {""} else {},
        columns={name: kind_of(kind) for name, kind in first.features.items()},
        split=split_name,
        samples=tuple(
            Question(each.language, shown, texts[shown][each.language]) for each in languages if shown in each.ids
        ),
    )


def _published(languages: Sequence[LanguageQuestions], texts: Mapping[Any, Mapping[str, list[str]]]) -> str:
    """Which published set these are, told by the texts: anyone may have such ids and columns."""
    found = {
        each.language: _hash({id_: said[each.language] for id_, said in texts.items() if each.language in said})
        for each in languages
        if each.rows == len(each.ids)
    }
    for name, hashes in _HASHES.items():
        if len(found) == len(languages) and found.items() <= hashes.items():
            return name
    return ""


def _hash(questions: Mapping[Any, list[str]]) -> str:
    lines = sorted(json.dumps([id_, turns], default=str) for id_, turns in questions.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
