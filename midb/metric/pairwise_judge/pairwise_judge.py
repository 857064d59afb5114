"""Whose answers does a judge prefer, and how sure is that: `midb.judging` behind the interface of `evaluate`.

Knows how `evaluate` hands over rows and what it does with a result; asks and computes nothing itself.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import datasets
import evaluate

from midb.generators import FunctionGenerator
from midb.generators.base import StreamingGenerator
from midb.judging import Judge, as_comparisons, summarize
from midb.judging.verdict import merge

_DESCRIPTION = """\
Pairwise judge: an LLM compares two systems' answers to the same questions, in both orders, and says which one is better.
Returned are the win score of `predictions` over `references` and the other common rates, each with what it rests on:
intervals that resample questions, a score at equal length, how consistent the judge was, and how much it left undecided.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: One system's answers (a): a text per row, or a list of texts, one per turn. None is no answer.
    references: The other system's answers (b), in the same form.
    questions: What was asked: a text per row, or a list of texts, one per turn. None is a row that cannot be judged.
    judge: Who judges: a `midb.judging.Judge`, any generator of `midb.generators`, or a function from chat messages to the
        judge's reply. Wrap the generator in a `Journal`, and a rerun asks only for what is missing.
    verdicts: Stored verdicts in place of a judge; nothing is asked. One per row (one per turn where a row has two turns):
        "a", "b", "tie" or None, or 1, 2, 0 or None; or a pair of these, of the order that shows a first and the one that
        shows b first, both in terms of a and b. Or the whole `Dataset` of verdict rows that `Judge.compare` returned.
    languages: Each row's language; adds `by_language` and `macro_win_score`.
    categories: Each row's category; adds `by_category`.
    question_ids: Which rows ask the same question in several languages, for the intervals; the row number by default.
    references_gold: Correct answers to show to the judge, each a text or a list, one per turn; None where there is none.
    rule: How two orders become one verdict: "conservative" (what is not unanimous is a tie), "average", "decisive".
    strict: Take only [[1]], [[2]] and [[0]] as verdicts.
    length_control: Also fit the win score at equal length.
    seed: Of the resampling.
    n_resamples: How often questions are resampled for the intervals.
    return_verdicts: Also return `verdicts`, as `verdicts=` takes them.

Returns:
    win_score: Share of the comparisons that a won, ties counted half; `win_score_ci` is its 95 % interval.
    wr2: Share that a won of those that were not ties.
    qs: Share that a won or tied.
    net_margin: Share that a won minus share that b won.
    win, tie, loss, dropped, no_verdict, n: Counts. A comparison without a verdict is in no rate; `dropped` are opposite
        verdicts, which the rule "decisive" leaves out.
    coverage: Share of the comparisons that have a verdict.
    p_value: Of no difference, by flipping the sides of whole questions.
    lc_win_score: The win score at equal length; None where it cannot be told. Over several languages their mean.
    consistency: Share of the comparisons that got the same verdict in both orders; None where one order was asked.
    judge_fit, judge_doubts: Whether nothing speaks against the judge; and what does, or was not put to the test, such as
        "controls: not run". When it is not fit, quote no score.
    macro_win_score: With several languages the mean of their win scores, each counting the same, and its interval.
    by_language, by_category: The same for each.

Examples:

    >>> import evaluate
    >>> from midb import metric
    >>> pairwise_judge = evaluate.load(metric.path("pairwise_judge"))
    >>> result = pairwise_judge.compute(
    ...     predictions=["Paris, on the Seine.", "Four.", "I do not know."],
    ...     references=["Paris.", "4", "The Nile."],
    ...     questions=["What is the capital of France?", "2 + 2?", "Which river flows through Cairo?"],
    ...     verdicts=["a", "tie", "b"],
    ... )
    >>> result["win_score"], result["win"], result["tie"], result["loss"]
    (0.5, 1, 1, 1)
"""

_CITATION = """\
@misc{midb,
  title = {MIDB: Multilingual Instruction Data Booster for Enhancing Cultural Equality in Multilingual Instruction Synthesis},
  year = {2025},
  eprint = {2505.17671},
  archivePrefix = {arXiv}
}
"""

_INPUTS = ("predictions", "references", "questions")
_CODES = {"a": "a", "b": "b", "tie": "tie", 1: "a", 2: "b", 0: "tie", None: None}


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class PairwiseJudge(evaluate.Metric):
    """A thin shell: `midb.judging` judges and computes."""

    def _info(self) -> evaluate.MetricInfo:
        texts = datasets.List(datasets.Value("string"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(dict.fromkeys(_INPUTS, texts)),
            reference_urls=["https://arxiv.org/abs/2505.17671"],
        )

    def add_batch(self, **columns: Any) -> None:
        """Add rows of plain texts or of one text per turn, None included; a faulty row is refused and costs no other."""
        rows = {name: _texts(name, columns.get(name)) for name in _INPUTS}
        if len({len(values) for values in rows.values()}) > 1:
            raise ValueError(
                f"there are {', '.join(f'{len(rows[name])} {name}' for name in _INPUTS)}; give one per row"
            )
        for row, (one, other, asked) in enumerate(zip(*rows.values(), strict=True)):
            if asked and max(len(one), len(other)) > len(asked):
                raise ValueError(
                    f"row {row} has {len(asked)} turns and {max(len(one), len(other))} answers; give one answer per turn"
                )
        super().add_batch(**columns | rows)

    def add(self, *, prediction: Any = None, reference: Any = None, questions: Any = None) -> None:
        """Add one row; `questions` is its question."""
        self.add_batch(predictions=[prediction], references=[reference], questions=[questions])

    def _compute(
        self,
        predictions: list[list[str | None]],
        references: list[list[str | None]],
        questions: list[list[str | None]],
        judge: Any = None,
        verdicts: Any = None,
        languages: Sequence[str] | None = None,
        categories: Sequence[str] | None = None,
        question_ids: Sequence[int | str] | None = None,
        references_gold: Sequence[Any] | None = None,
        rule: Any = "conservative",
        strict: bool = False,
        length_control: bool = True,
        seed: int = 0,
        n_resamples: int = 10_000,
        return_verdicts: bool = False,
    ) -> dict[str, Any]:
        told = {"id": question_ids, "language": languages, "category": categories, "reference": references_gold}
        _check(len(questions), judge, verdicts, told)
        if isinstance(verdicts, datasets.Dataset):
            judged = verdicts
        else:
            columns = {name: values for name, values in told.items() if values is not None}
            sides = [_side(questions, answers, columns) for answers in (predictions, references)]
            judged = _as_judge(judge, strict).compare(*sides) if verdicts is None else _as_rows(verdicts, *sides)
        lengths = set() if length_control else {"len_a", "len_b"}
        kept = judged.select_columns([name for name in judged.column_names if name not in lengths])
        report = summarize(kept, rule=rule, seed=seed, n_resamples=n_resamples)
        result = _figures(report.figures)
        doubts = [*report.health.reasons, *report.health.notes]
        result |= {"judge_fit": report.health.fit, "judge_doubts": "; ".join(doubts)}
        if report.macro:
            mean = report.macro.mean
            result |= {"macro_win_score": mean.value, "macro_win_score_ci": [mean.low, mean.high]}
            at_equal_length = report.macro.length_controlled
            result["lc_win_score"] = at_equal_length.value if at_equal_length else None
        for name in ("language", "category"):
            if name in report.tables:
                result[f"by_{name}"] = {group.group: _figures(group) for group in report.tables[name]}
        if return_verdicts:
            result["verdicts"] = _as_stored(judged)
        return result


def _texts(name: str, values: Any) -> list[list[str | None]]:
    """Each row as a list of turns; an empty one where there is nothing."""
    if values is None or isinstance(values, str):
        raise ValueError(f"{name} is {values!r:.60}; give predictions, references and questions, one of each per row")
    rows = []
    for row, value in enumerate(values):
        turns = [] if value is None else [value] if isinstance(value, str) else value
        if not isinstance(turns, list | tuple) or not all(isinstance(text, str | None) for text in turns):
            raise ValueError(f"row {row}: {name} is {value!r:.60}, not text, a list of texts or None; convert it first")
        rows.append(list(turns))
    return rows


def _check(rows: int, judge: Any, verdicts: Any, told: dict[str, Sequence[Any] | None]) -> None:
    """Refuse a call that cannot be meant, before anything is asked."""
    if not rows:
        raise ValueError("there are no rows; give predictions, references and questions with one row or more")
    if (judge is None) == (verdicts is None):
        raise ValueError(
            f"there is {'no' if judge is None else 'both a'} judge and {'no' if judge is None else 'a list of'} verdicts; give "
            "one of the two: judge=Judge(generator=...), a generator or a function, or verdicts=[...] that were stored"
        )
    for name, values in told.items():
        if values is not None and len(values) != rows:
            raise ValueError(f"there are {len(values)} {name}s for {rows} rows; give one per row")
    if isinstance(verdicts, datasets.Dataset):
        if given := [name for name, values in told.items() if values is not None]:
            raise ValueError(
                f"verdict rows say {', '.join(given)} themselves; leave that out, or give a list of verdicts"
            )
        names = [name for name in ("id", "language") if name in verdicts.column_names]
        found = len(set(zip(*(verdicts[name] for name in names), strict=True)))
        if found != rows:
            raise ValueError(
                f"the verdict rows are of {found} questions and there are {rows} rows; give those of these rows"
            )


def _as_judge(judge: Any, strict: bool) -> Judge:
    if isinstance(judge, Judge):
        return replace(judge, strict=judge.strict or strict)
    if isinstance(judge, str):
        raise ValueError(f"judge={judge!r} is a name; give who answers to it: Judge(generator=OpenAIGenerator(...))")
    if callable(judge) and not isinstance(judge, StreamingGenerator):
        judge = FunctionGenerator(judge)
    return Judge(generator=judge, strict=strict)


def _side(
    questions: list[list[str | None]], answers: list[list[str | None]], told: dict[str, Sequence[Any]]
) -> datasets.Dataset:
    """One system's answers as a dataset. A question that is not there has no answers either, and so gets no verdict."""
    asked = [[text or "" for text in turns] or [""] for turns in questions]
    fit = [list(said) if turns and None not in turns else [] for said, turns in zip(answers, questions, strict=True)]
    columns: dict[str, Any] = {"id": list(range(len(asked))), **{name: list(values) for name, values in told.items()}}
    if "reference" in columns:
        columns["reference"] = [[gold] if isinstance(gold, str) else gold for gold in columns["reference"]]
    texts = datasets.List(datasets.Value("string"))
    side = datasets.Dataset.from_dict(columns)
    return side.add_column("turns", asked, feature=texts).add_column("answers", fit, feature=texts)


def _as_rows(verdicts: Sequence[Any], side_a: datasets.Dataset, side_b: datasets.Dataset) -> datasets.Dataset:
    """Stored verdicts as the rows that a judge would have made, as far as they are known."""
    comparisons = as_comparisons(side_a, side_b)
    if len(verdicts) != len(comparisons):
        raise ValueError(
            f"there are {len(verdicts)} verdicts for {len(comparisons)} comparisons; give one per row, and two for a row of "
            "two turns"
        )
    pairs = [_read(row, stored) for row, stored in enumerate(verdicts)]
    columns = {
        "verdict": [single if orders is None else merge(*orders) for single, orders in pairs],
        "verdict_ab": [orders and orders[0] for _, orders in pairs],
        "verdict_ba": [orders and orders[1] for _, orders in pairs],
    }
    for name, values in columns.items():
        comparisons = comparisons.add_column(name, values, feature=datasets.Value("string"))
    for side in ("a", "b"):
        lengths = [len((texts or [""])[-1] or "") for texts in comparisons[f"answer_{side}"]]
        comparisons = comparisons.add_column(f"len_{side}", lengths)
    return comparisons


def _read(row: int, stored: Any) -> tuple[Any, tuple[Any, Any] | None]:
    """A verdict, or those of both orders."""
    orders = tuple(stored) if isinstance(stored, list | tuple) else (stored,)
    if len(orders) not in (1, 2) or any(isinstance(each, list | dict | bool) or each not in _CODES for each in orders):
        raise ValueError(
            f"verdict {row} is {stored!r:.60}; give 'a', 'b', 'tie' or None, or 1, 2, 0 or None, or a pair of these"
        )
    codes = [_CODES[each] for each in orders]
    return (codes[0], None) if len(codes) == 1 else (None, (codes[0], codes[1]))


def _as_stored(judged: datasets.Dataset) -> list[Any]:
    """The verdict of each comparison, or of both its orders where the judge was asked in both."""
    both = all(name in judged.column_names for name in ("verdict_ab", "verdict_ba"))
    found = []
    for row in judged.select_columns([name for name in judged.column_names if name.startswith(("verdict", "status"))]):
        orders = [row["verdict_ab"], row["verdict_ba"]] if both else [None]
        asked = row.get("status_ab", "ok") == row.get("status_ba", "ok") == "ok"
        found.append(orders if asked and None not in orders else row["verdict"])
    return found


def _figures(group: Any) -> dict[str, Any]:
    """A group of a report in the types that `evaluate.save` writes."""
    counts = group.counts
    return {
        "win_score": group.win_score.value,
        "win_score_ci": [group.win_score.low, group.win_score.high],
        "wr2": group.wr2.value,
        "qs": group.qs.value,
        "net_margin": group.net_margin.value,
        "win": counts.win,
        "tie": counts.tie,
        "loss": counts.loss,
        "dropped": counts.dropped,
        "no_verdict": sum(counts.no_verdict.values()),
        "coverage": counts.coverage,
        "p_value": group.p_permutation,
        "lc_win_score": group.length.win_score if group.length else None,
        "consistency": group.orders.consistent if group.orders else None,
        "n": counts.comparisons,
    }
