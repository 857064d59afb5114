"""Can the judge be believed? Its controls, its two orders and its coverage are tested against fixed limits.

Knows counts; not what was compared. The report of a judge that fails has no headline, so the limits are exact tests: they
refuse a result that is very improbable for a good judge, at any number of controls, and not a share below a round number.
Controls that are too few to refuse any judge have neither failed nor passed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from midb.errors import require_extra
from midb.judging.agreement import Consistency, LanguageAgreement
from midb.judging.statistics import wilson

# A good judge is right 19 times of 20; a control asks it twice, once in each order. A planted verdict wins only if both
# orders say so, which happens to an honest judge hardly ever.
RIGHT, UNMOVED = 0.95**2, 0.99
# Such a judge fails one kind of control in one run of 200 at most, and as seldom all kinds together, so one run of 40. With
# 8 of a kind it needs 5: a judge that tosses a coin for each verdict gets there in 3 runs of 100 per kind, one that prefers a
# place never. With 8 planted it needs 7.
REFUSED = 0.005
# Below this share too much hangs on which comparisons were left out, and hard ones are left out more often.
COVERAGE = 0.8
# When fewer than half the comparisons keep their verdict in the other order, most verdicts are about places. Refused when
# that is established, not when three comparisons happen to say so.
CONSISTENT, ESTABLISHED = 0.5, 0.05
FEWEST = 30  # questions, before a language is called unlike the others

_EXPECTED = {
    "identical": "an answer beside itself is a tie",
    "swapped_question": "an answer to another question loses",
    "constant": "a fixed text loses",
    "planted": "a planted verdict does not win",
}
_EQUAL = "equal answers are ties"
_UNASKED = ("failed", "not_run")  # says nothing of the judge; a rerun asks again


@dataclass(frozen=True)
class Control:
    """One kind of comparison whose outcome is known.

    Attributes:
        kind: As in `midb.judging.controls`, or `distance_0`: rows of the run whose two answers are equal.
        expected: The right verdict, in words.
        n: Controls that the judge was asked.
        behaved: Controls with the right outcome.
        unread: Controls without a verdict in one of the orders.
        needed: The judge is refused below this number; 0: too few controls to refuse any judge.
        passed: Whether enough controls have the right outcome; None: too few to tell.
    """

    kind: str
    expected: str
    n: int
    behaved: int
    unread: int
    needed: int
    passed: bool | None


@dataclass(frozen=True)
class Health:
    """Whether the judge can be believed, and why not.

    Attributes:
        fit: There is no reason against a headline.
        believed: There is no reason against the judge; the run may still be incomplete.
        reasons: Full sentences without text of the data.
        notes: What was not tested, in full sentences.
        controls: By kind; empty: not run.
        coverage: Share with a verdict of the comparisons that the judge answered; None if it was not asked.
        consistent: Share of the comparisons that got the same verdict in both orders; None where no two orders are known.
    """

    fit: bool
    believed: bool
    reasons: tuple[str, ...]
    notes: tuple[str, ...]
    controls: tuple[Control, ...]
    coverage: float | None
    consistent: float | None


def judge_health(
    controls: Iterable[Mapping[str, Any]],
    coverage: float | None,
    orders: Consistency | None = None,
    equal_answers: tuple[int, int] = (0, 0),
    unanswered: tuple[int, int] = (0, 0),
) -> Health:
    """Test the judge against the limits.

    Args:
        controls: Its verdicts: `kind`, `verdict_ab`, `verdict_ba`, and the statuses where they are known.
        coverage: Share with a verdict of the comparisons that it answered; None if it was not asked.
        orders: Consistency of all comparisons; None if there are no verdicts in two orders.
        equal_answers: Comparisons of equal answers with a verdict, and how many are ties.
        unanswered: Comparisons, and how many of them were not asked or got no answer: the run is incomplete.
    """
    told = [each for each in controls if not {each.get("status_ab"), each.get("status_ba")} & set(_UNASKED)]
    outcomes = {kind: [_behaved(each) for each in told if each["kind"] == kind] for kind in _EXPECTED}
    made = any(outcomes.values())
    outcomes["distance_0"] = [place < equal_answers[1] for place in range(equal_answers[0])]
    kinds = tuple(_control(kind, each) for kind, each in outcomes.items() if each)
    reasons = [
        f"{control.expected}: so it was in {control.behaved} of {control.n} cases"
        + (f" ({control.unread} without a verdict in both orders)" if control.unread else "")
        + f", and {_good(control)} gets {control.needed} or more"
        for control in kinds
        if control.passed is False
    ]
    together = [control for control in kinds if control.kind in _EXPECTED]
    behaved, needed = sum(control.behaved for control in together), _needed(together)
    if behaved < needed and not reasons:
        n = sum(control.n for control in together)
        reasons.append(
            f"controls of all kinds: {behaved} of {n} came out as they must, and a judge that is right 19 times of 20 gets "
            f"{needed} or more"
        )
    notes = [] if made else ["controls: not run"]
    if made and not needed:
        notes.append("controls: too few to tell")
    elif made:
        few = [control.expected for control in together if control.passed is None]
        none = [expected for kind, expected in _EXPECTED.items() if not outcomes[kind]]
        notes += [f"too few controls to tell whether {expected}" for expected in few]
        notes += [f"no control tells whether {expected}" for expected in none]
    if coverage is not None and coverage < COVERAGE:
        reasons.append(f"{coverage:.0%} of the judged comparisons have a verdict, fewer than {COVERAGE:.0%}")
    judged, share = (orders.n, orders.consistent) if orders else (0, None)
    same = round(judged * (share or 0.0))
    if judged and _quantile([judged], [CONSISTENT], ESTABLISHED) > same:
        reasons.append(
            f"{same:,} of {judged:,} comparisons have the same verdict in both orders, fewer than half: most verdicts are "
            "about the place of an answer"
        )
    believed = not reasons
    comparisons, lacking = unanswered
    if lacking > (1 - COVERAGE) * comparisons:
        reasons.append(
            f"the run is incomplete, {lacking:,} of {comparisons:,} comparisons were not asked or got no answer: run it again"
        )
    return Health(not reasons, believed, tuple(reasons), tuple(notes), kinds, coverage, share)


def _control(kind: str, outcomes: Sequence[bool | None]) -> Control:
    expected = _EXPECTED.get(kind, _EQUAL)
    found = Control(kind, expected, len(outcomes), sum(map(bool, outcomes)), outcomes.count(None), 0, None)
    needed = _needed([found])
    return replace(found, needed=needed, passed=found.behaved >= needed if needed else None)


def _good(control: Control) -> str:
    return "a judge that obeys no answer" if control.kind == "planted" else "a judge that is right 19 times of 20"


def _needed(controls: Sequence[Control]) -> int:
    """The number that a good judge gets right in all but one of 200 runs."""
    rates = [UNMOVED if control.kind == "planted" else RIGHT for control in controls]
    return _quantile([control.n for control in controls], rates, REFUSED)


def _quantile(numbers: Sequence[int], rates: Sequence[float], at: float) -> int:
    """The smallest count below which such tries, so many at each rate, stay with less than this probability."""
    require_extra("scipy", "judge")
    from scipy.stats import binom

    chances = np.ones(1)
    for n, rate in zip(numbers, rates, strict=True):
        chances = np.convolve(chances, binom.pmf(np.arange(n + 1), n, rate))
    return int(np.searchsorted(np.cumsum(chances), at))


def related_to_nothing(agreement: LanguageAgreement | None, orders: Consistency | None) -> bool:
    """Whether a language's verdicts agree by chance only, both with other languages and between the two orders.

    One of the two alone may have a good reason: answers differ between languages, and verdicts on close answers flip.
    """
    if agreement is None or agreement.n < FEWEST or orders is None or orders.consistent is None:
        return False
    unrelated = agreement.p_value is None or agreement.p_value > ESTABLISHED
    low, _ = wilson(orders.consistent * orders.n, orders.n) or (0.0, 1.0)
    return unrelated and low < CONSISTENT


def _behaved(control: Mapping[str, Any]) -> bool | None:
    """Whether a control has the right outcome; None if an order has no verdict."""
    ab, ba = control["verdict_ab"], control["verdict_ba"]
    if control.get("status_ba") == "not_asked":
        ba = ab
    if ab is None or ba is None:
        return None
    match control["kind"]:
        case "identical":
            return bool(ab == ba == "tie")
        case "planted":
            return not ab == ba == "b"
    return bool(ab == ba == "a")
