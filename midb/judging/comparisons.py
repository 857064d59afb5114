"""Two datasets → comparisons: one row per question, language and turn, joined by id and never by row number.

Knows the shapes in which questions and answers come; not what a judge is told or says.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from midb.errors import ColumnError
from midb.judging.controls import plan_controls
from midb.languages import language_code
from midb.schema import PAIR, RAW, Batch, as_pairs, without_format

if TYPE_CHECKING:
    from datasets import Dataset, Features

Mode = Literal["auto", "answers", "pairs"]
Missing = Literal["keep", "error", "forfeit"]

QUESTIONS = ("turns", "instruction", "question", "prompt")  # where a question may stand, the first that is there
_ANSWERS = ("answers", "answer", "response", "output", "completion")
_CATEGORIES = ("category", "subset")
COLUMNS = ("id", "language", "category", "turn", "mode", "question", "answer_a", "answer_b", "reference", "planned")
_READ_ROWS = 1_000


def as_comparisons(
    dataset_a: "Dataset",
    dataset_b: "Dataset | None" = None,
    *,
    on: str = "id",
    mode: Mode = "auto",
    missing: Missing = "keep",
    controls: int = 8,
    seed: int = 0,
) -> "Dataset":
    """Join two datasets by id, and language where both say it, into the rows that a `Judge` reads.

    Reads, on both sides: the column `on`; the question in `turns` (a list), `instruction` (with its `input`), `question` or
    `prompt`; the answer in `answers` (a list, one per turn), `answer`, `response`, `output` or `completion`; and where they
    are there `language`, `category` or `subset`, and `reference` (text or a list, one per turn).
    Adds: `id, language, category, turn, mode, question, answer_a, answer_b, reference`, the last four lists, and `planned`: the
    controls that a judge gets with this row, so that every way of judging the rows asks them (`kind, answer_a, answer_b`).
    Rows: one per question and language, two where the question has exactly two turns and a side answered both, in
    dataset a's order; then those that only dataset b has.

    Args:
        dataset_a: One system's answers, or one version of a training set.
        dataset_b: The other's. None takes edits: dataset a's rows against their own raw side.
        on: The column that names a question.
        mode: `answers` compares two answers to one question; `pairs` two versions of a training row, whose instructions
            may differ. `auto` is `answers`, and `pairs` where both sides are pairs and an instruction differs.
        missing: What becomes of a row that only one side has: `keep` gives it no verdict, `forfeit` gives the other side
            the point, `error` refuses.
        controls: Comparisons of each kind whose outcome is known, made from answers of these rows; 0 for none.
        seed: Chooses the answers that controls are made from.

    Raises:
        ColumnError: A column is missing, an id stands twice, nothing matches, or the two sides ask different questions.
        TypeError: A side is no `Dataset`.
    """
    if mode not in ("auto", "answers", "pairs") or missing not in ("keep", "error", "forfeit"):
        raise ValueError(
            f"mode={mode!r}, missing={missing!r} is not a choice; mode is 'auto', 'answers' or 'pairs', and missing is 'keep', "
            "'error' or 'forfeit'"
        )
    if dataset_b is None:
        dataset_a, dataset_b = _both_sides(dataset_a, on)
    a, b = _Side.of(dataset_a, "a", on), _Side.of(dataset_b, "b", on)
    by_language = a.language is not None and b.language is not None
    keys_a, keys_b = a.keys(by_language), b.keys(by_language)
    matched: list[tuple[int | None, int | None]] = [(row, keys_b.get(key)) for key, row in keys_a.items()]
    matched += [(None, row) for key, row in keys_b.items() if key not in keys_a]
    lonely = [pair for pair in matched if None in pair]
    if len(lonely) == len(matched):
        raise ColumnError(
            f"no row of dataset a has a partner in dataset b by {on!r}{' and language' if by_language else ''} (for example "
            f"{next(iter(keys_a), None)!r} and {next(iter(keys_b), None)!r}); give both the same ids, of the same type"
        )
    if lonely and missing == "error":
        raise ColumnError(
            f"{len(lonely)} rows have no partner, the first is {_name(lonely[0], a, b)}; leave them out, or choose missing='keep'"
        )
    mode = _settled(mode, a, b, matched)
    if mode == "answers":
        _warn_of_many_turns(a)
    join = _Join(a, b, mode, forfeit=missing == "forfeit")
    return _with_controls(_built(join, matched), controls, seed)


def _both_sides(edits: "Dataset", on: str) -> tuple["Dataset", "Dataset"]:
    """Edits as two datasets: boosted is a, raw is b. One row holds both, so a row number is an id here."""
    _check_dataset(edits, "a")
    if absent := [name for name in RAW if name not in edits.column_names]:
        raise ColumnError(f"there is one dataset and it lacks {absent}; give edits, or two datasets to compare")
    if on not in edits.column_names:
        edits = edits.add_column(on, range(len(edits)))
    raw = as_pairs(edits, columns=dict(zip(PAIR, RAW, strict=True)))
    return as_pairs(edits), raw


@dataclass(frozen=True)
class _Side:
    """One dataset, and which of its columns is what."""

    rows: Any
    name: str
    on: str
    question: str
    answer: str
    language: str | None
    category: str | None
    is_pair: bool

    @classmethod
    def of(cls, dataset: Any, name: str, on: str) -> "_Side":
        _check_dataset(dataset, name)
        names = dataset.column_names
        question = next((each for each in QUESTIONS if each in names), None)
        answer = next((each for each in _ANSWERS if each in names and each != question), None)
        if on not in names or question is None or answer is None:
            hints = [
                (
                    on in names,
                    f"an id in {on!r}",
                    f"name it with on=, or number the rows: ds.add_column({on!r}, range(len(ds)))",
                ),
                (question, f"a question in {', '.join(QUESTIONS)}", "rename it: ds.rename_column('text', 'question')"),
                (
                    answer,
                    f"an answer in {', '.join(_ANSWERS)}",
                    "rename it, or ask for some: midb.judging.answer(ds, generator)",
                ),
            ]
            lacking = [what for there, what, _ in hints if not there]
            raise ColumnError(
                f"dataset {name} has the columns {names} and lacks {' and '.join(lacking)}; "
                f"{'; '.join(hint for there, _, hint in hints if not there)}"
            )
        category = next((each for each in _CATEGORIES if each in names), None)
        is_pair = question == "instruction" and answer in ("response", "output")
        language = "language" if "language" in names else None
        return cls(without_format(dataset), name, on, question, answer, language, category, is_pair)

    def keys(self, by_language: bool) -> dict[tuple[Any, str], int]:
        """(id, language) → row."""
        ids = self.rows[self.on][:]
        languages = list(map(_code, self.rows["language"][:])) if by_language else [""] * len(ids)
        found: dict[tuple[Any, str], int] = {}
        for row, key in enumerate(zip(ids, languages, strict=True)):
            if key[0] is None or isinstance(key[0], list | dict):
                raise ColumnError(
                    f"dataset {self.name}, row {row}: {self.on} is {key[0]!r:.60}; give every row a plain id"
                )
            if (first := found.setdefault(key, row)) != row:
                raise ColumnError(
                    f"dataset {self.name}: rows {first} and {row} have the same {self.on} {key[0]!r}{f' in {key[1]!r}' if key[1] else ''}; "
                    "an id must name one question"
                    + ("" if by_language else ", and a language where both datasets have a column 'language'")
                )
        return found

    def read(self, rows: list[int | None]) -> list["_Read | None"]:
        """What the rows ask and answer; None where there is no row."""
        wanted = [row for row in rows if row is not None]
        columns: Batch = self.rows[wanted] if wanted else {}
        found = iter([self._row({name: values[at] for name, values in columns.items()}) for at in range(len(wanted))])
        return [None if row is None else next(found) for row in rows]

    def _row(self, row: dict[str, Any]) -> "_Read":
        asked, answered = row[self.question], row[self.answer]
        questions = asked if isinstance(asked, list) else [asked]
        if self.question == "instruction" and row.get("input"):
            questions = [f"{asked}\n{row['input']}"]
        answers = answered if isinstance(answered, list) else [answered]
        reference = row.get("reference")
        texts: list[Any] = [*questions, *(each for each in answers if each is not None)]
        if not questions or not all(isinstance(each, str) for each in texts):
            raise ColumnError(
                f"dataset {self.name}, {self.on} {row[self.on]!r}: the question is {asked!r:.60} and the answer {answered!r:.60}; "
                "both must be text, or lists of text with one answer per turn"
            )
        references = reference if isinstance(reference, list) else [reference]
        return _Read(
            id=row[self.on],
            language=_code(row[self.language]) if self.language else "",
            category=str(row[self.category] or "") if self.category else "",
            questions=questions,
            answers=answers or [None],
            pair=[row["instruction"], row.get("input") or "", answers[0]] if self.is_pair else None,
            references=[each or "" for each in references] if any(references) else None,
        )


@dataclass(frozen=True)
class _Read:
    """One row of one side."""

    id: Any
    language: str
    category: str
    questions: list[str]
    answers: list[str | None]
    pair: list[str | None] | None
    references: list[str] | None


@dataclass(frozen=True)
class _Join:
    """Rows of both sides → comparisons."""

    a: _Side
    b: _Side
    mode: Mode
    forfeit: bool

    def __call__(self, batch: Batch) -> Batch:
        rows = [
            comparison
            for one, other in zip(self.a.read(batch["row_a"]), self.b.read(batch["row_b"]), strict=True)
            for comparison in self._compared(one, other)
        ]
        return {name: [row[name] for row in rows] for name in _kinds(self.a)}

    def _compared(self, one: _Read | None, other: _Read | None) -> Iterator[dict[str, Any]]:
        known = [each for each in (one, other) if each is not None]
        first = known[0]
        row: dict[str, Any] = {
            "id": first.id,
            "language": next((each.language for each in known if each.language), ""),
            "category": next((each.category for each in known if each.category), ""),
            "mode": self.mode,
        }
        if self.mode == "pairs":
            sides = [self._nothing(3) if each is None else each.pair for each in (one, other)]
            yield row | {"turn": 1, "question": [], "answer_a": sides[0], "answer_b": sides[1], "reference": None}
            return
        told = {tuple(each.references) for each in known if each.references}
        if len(told) > 1:
            raise ColumnError(f"{self.a.on} {first.id!r} has two different references; keep the right one on one side")
        references: list[str] | None = list(*told) or None
        second = len(first.questions) == 2 and any(len(each.answers) > 1 for each in known)
        for turn in (1, 2) if second else (1,):
            sides = [
                self._nothing(turn) if each is None else (each.answers[:turn] + [None] * turn)[:turn]
                for each in (one, other)
            ]
            shown = references[:turn] if references and all(references[:turn]) and len(references) >= turn else None
            yield row | {
                "turn": turn, "question": first.questions[:turn], "answer_a": sides[0], "answer_b": sides[1], "reference": shown,
            }  # fmt: skip

    def _nothing(self, count: int) -> list[str] | None:
        return [""] * count if self.forfeit else None


def _settled(mode: Mode, a: _Side, b: _Side, matched: list[tuple[int | None, int | None]]) -> Mode:
    """Decide between answers and pairs, and refuse two different questions under one id."""
    if mode == "pairs":
        if not (a.is_pair and b.is_pair):
            raise ColumnError(
                "mode='pairs' compares training rows; give both sides instruction and response (as_pairs)"
            )
        return mode
    partners = [(row_a, row_b) for row_a, row_b in matched if row_a is not None and row_b is not None]
    for start in range(0, len(partners), _READ_ROWS):
        some = partners[start : start + _READ_ROWS]
        for one, other in zip(a.read([each[0] for each in some]), b.read([each[1] for each in some]), strict=True):
            if one is not None and other is not None and one.questions != other.questions:
                if mode == "auto" and a.is_pair and b.is_pair:
                    return "pairs"
                raise ColumnError(
                    f"{a.on} {one.id!r} asks {one.questions[0]!r:.60} in dataset a and {other.questions[0]!r:.60} in dataset b; "
                    "check that the ids mean the same rows"
                    + ("; for two versions of training data use mode='pairs'" if a.is_pair and b.is_pair else "")
                )
    return "answers"


def _warn_of_many_turns(side: _Side) -> None:
    if side.question != "turns":
        return
    ids = side.rows[side.on][:]
    many = [row for row, turns in enumerate(side.rows["turns"][:]) if isinstance(turns, list) and len(turns) > 2]
    if many:
        warnings.warn(
            f"{len(many)} questions have more than two turns, the first is {side.on} {ids[many[0]]!r}; only their first turn is "
            "judged",
            stacklevel=4,
        )


def _built(join: _Join, matched: list[tuple[int | None, int | None]]) -> "Dataset":
    import uuid

    from datasets import Dataset, Features, Value

    kinds = _kinds(join.a)
    rows = Features({"row_a": Value("int64"), "row_b": Value("int64")})
    pairs = Dataset.from_dict({"row_a": [each[0] for each in matched], "row_b": [each[1] for each in matched]}, rows)
    return pairs.map(
        join, batched=True, batch_size=_READ_ROWS, features=kinds, remove_columns=["row_a", "row_b"],
        load_from_cache_file=False, new_fingerprint=uuid.uuid4().hex, desc="join",
    )  # fmt: skip


def _with_controls(comparisons: "Dataset", per_kind: int, seed: int) -> "Dataset":
    """The comparisons with the controls that are made from them, each at its row."""
    from datasets import List, Value

    planned: list[list[dict[str, Any]]] = [[] for _ in range(len(comparisons))]
    for control in plan_controls(comparisons, per_kind, seed):
        answers = {side: control.comparison[side] for side in ("answer_a", "answer_b")}
        planned[control.row].append({"kind": control.kind, **answers})
    texts = List(Value("string"))
    kind = List({"kind": Value("string"), "answer_a": texts, "answer_b": texts})
    return comparisons.add_column("planned", planned, feature=kind)


def _kinds(side: _Side) -> "Features":
    from datasets import Features, List, Value

    texts = List(Value("string"))
    return Features(
        {
            "id": side.rows.features[side.on], "language": Value("string"), "category": Value("string"), "turn": Value("int64"),
            "mode": Value("string"), "question": texts, "answer_a": texts, "answer_b": texts, "reference": texts,
        }
    )  # fmt: skip


def _check_dataset(dataset: Any, name: str) -> None:
    from datasets import Dataset

    if not isinstance(dataset, Dataset):
        hint = (
            "choose a split, e.g. ds['train']"
            if isinstance(dataset, dict)
            else "make it one, e.g. Dataset.from_list(rows)"
        )
        raise TypeError(f"dataset {name} is a {type(dataset).__name__}, not a Dataset; {hint}")


@lru_cache
def _code(language: Any) -> str:
    """The ISO code; what is no language name stays what it is, since it only tells rows apart."""
    if language is None:
        return ""
    try:
        return language_code(str(language))
    except ValueError:
        return str(language)


def _name(pair: tuple[int | None, int | None], a: _Side, b: _Side) -> str:
    side, row = (a, pair[0]) if pair[0] is not None else (b, pair[1])
    return f"{side.on} {side.rows[row][side.on]!r} of dataset {side.name}"
