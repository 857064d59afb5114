"""What an evaluation set holds: questions per language, what became of their turns, and one of them in each language.

Knows the columns that `midb.release` writes. Evaluation sets are small, so they are read whole.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from midb.errors import ColumnError
from midb.hub.facts import kind_of, language_name, read_languages

if TYPE_CHECKING:
    from datasets import Dataset


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
        return language_name(self.language)


@dataclass(frozen=True)
class QuestionFacts:
    """An evaluation set in figures.

    Attributes:
        description: What the rows' own information (`info.description`) says that they are.
        languages: By name.
        ids: How many different ones.
        common: How many are in every language.
        sound: How many of these have no defect in any language.
        categories: Name → rows.
        columns: Name → type.
        split: The first one's name.
        samples: One question, in each language that has it.
    """

    description: str
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
        description=next((split.info.description for split in splits.values() if split.info.description), ""),
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
