"""How often two judges agree, or a judge and people: `midb.judging.agreement` behind the interface of `evaluate`."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from midb.judging.agreement import agreement

_DESCRIPTION = """\
Judge agreement: how often two raters gave the same verdict on the same comparisons, with ties, without ties, and beyond
what chance would give. A rater may be a judge, a person, the same judge in another language or on another day.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions1: One rater's verdicts: "a", "b", "tie" or None, or 1, 2, 0 or None. None is no verdict.
    predictions2: The other rater's, on the same comparisons in the same order.
    languages: Each comparison's language; adds `by_language`.
    question_ids: Which comparisons ask the same question, for the interval; each its own by default.
    seed: Of the resampling.
    n_resamples: How often questions are resampled for the interval.

Returns:
    agreement: Share of the same verdict among the `n` comparisons on which both have one (chance: 1 in 3).
    agreement_ci: Its 95 % interval.
    agreement_without_ties: The same where neither says tie, `n_without_ties` comparisons (chance: 1 in 2).
    kappa: Cohen's; None where one rater always says the same.
    kappa_linear: The same, with a tie half way between a and b.
    n, n_without_ties, no_verdict: Counts; `no_verdict` are those that are in no rate.
    by_language: The same for each.

Examples:

    >>> import evaluate
    >>> from midb import metric
    >>> judge_agreement = evaluate.load(metric.path("judge_agreement"))
    >>> result = judge_agreement.compute(
    ...     predictions1=["a", "a", "b", "tie", None],
    ...     predictions2=["a", "b", "b", "tie", "a"],
    ... )
    >>> result["agreement"], result["n"], round(result["kappa"], 3)
    (0.75, 4, 0.636)
"""

_CITATION = ""

_RATERS = ("predictions1", "predictions2")
_CODES = {"a": "a", "b": "b", "tie": "tie", 1: "a", 2: "b", 0: "tie", None: ""}


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class JudgeAgreement(evaluate.Comparison):
    """A thin shell: `midb.judging.agreement` computes."""

    def _info(self) -> evaluate.ComparisonInfo:
        return evaluate.ComparisonInfo(
            module_type="comparison",
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(dict.fromkeys(_RATERS, datasets.Value("string"))),
        )

    def add_batch(self, **columns: Any) -> None:
        """Add verdicts of both raters, also None, which `evaluate` would not take in the first row."""
        super().add_batch(
            **{name: _coded(name, values) if name in _RATERS else values for name, values in columns.items()}
        )

    def add(self, **row: Any) -> None:
        """Add one verdict of both raters."""
        self.add_batch(**{name: [value] for name, value in row.items()})

    def _compute(
        self,
        predictions1: list[str],
        predictions2: list[str],
        languages: Sequence[str] | None = None,
        question_ids: Sequence[int | str] | None = None,
        seed: int = 0,
        n_resamples: int = 10_000,
    ) -> dict[str, Any]:
        rows = [(one or None, other or None) for one, other in zip(predictions1, predictions2, strict=True)]
        if not rows:
            raise ValueError("there are no verdicts; give predictions1 and predictions2 with one row or more")
        for name, values in {"languages": languages, "question_ids": question_ids}.items():
            if values is not None and len(values) != len(rows):
                raise ValueError(f"{name} has {len(values)} rows and predictions1 has {len(rows)}; give one each")
        ids = range(len(rows)) if question_ids is None else question_ids
        told = [(one, other, str(id_)) for (one, other), id_ in zip(rows, ids, strict=True)]
        result = _agreed(told, seed, n_resamples)
        if languages is not None:
            result["by_language"] = {
                language: _agreed(
                    [row for row, each in zip(told, languages, strict=True) if each == language], seed, n_resamples
                )
                for language in dict.fromkeys(languages)
            }
        return result


def _coded(name: str, verdicts: Any) -> list[str]:
    """The verdicts as text, with an empty one for none."""
    if verdicts is None:
        raise ValueError(f"{name} is missing; give both raters' verdicts")
    for row, verdict in enumerate(verdicts):
        if isinstance(verdict, (list, dict, bool)) or verdict not in _CODES:
            raise ValueError(f"row {row}: {name} is {verdict!r:.60}; give 'a', 'b', 'tie' or None, or 1, 2, 0 or None")
    return [_CODES[verdict] for verdict in verdicts]


def _agreed(told: Sequence[tuple[str | None, str | None, str]], seed: int, n_resamples: int) -> dict[str, Any]:
    ones, others, ids = (list(each) for each in zip(*told, strict=True))
    every = agreement(ones, others, clusters=ids, seed=seed, n_resamples=n_resamples)
    decided = agreement(ones, others, ties=False)
    return {
        "agreement": every.share,
        "agreement_ci": [every.low, every.high],
        "agreement_without_ties": decided.share,
        "kappa": every.kappa(),
        "kappa_linear": every.kappa("linear"),
        "n": every.n,
        "n_without_ties": decided.n,
        "no_verdict": len(told) - every.n,
    }
