"""Is the judge fit to be believed? Its controls, its two orders and its coverage, against stated limits.

Knows counts; not what was compared. A judge that fails has its headline withheld, so the limits are exact: they refuse what
is hardly possible for a good judge, at any number of controls, rather than what falls below a round share. Where a limit can
refuse nobody, that is told: such controls are neither failed nor passed.
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
        expected: What a judge that is right says, in words.
        n: How many the judge was asked.
        behaved: How many of these came out as they must.
        unread: How many did not because an order has no verdict.
        needed: With fewer than this the judge is refused; 0: they are too few to refuse anybody.
        passed: Whether enough of them came out as they must; None: too few to tell.
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
        believed: There is none against the judge; the run may be incomplete all the same.
        reasons: Whole sentences, none of which quotes the data.
        notes: What was not put to the test, in whole sentences. Nothing here is a pass.
        controls: By kind; empty: not run.
        coverage: Share with a verdict of the comparisons that the judge answered; None where it was asked nothing.
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
    orders: tuple[int, int],
    equal_answers: tuple[int, int],
    unanswered: tuple[int, int] = (0, 0),
) -> Health:
    """Hold the judge against the limits.

    Args:
        controls: What it said of each: `kind`, `verdict_ab`, `verdict_ba`, and the statuses where they are known.
        coverage: Share with a verdict of the comparisons that it answered; None where it was asked nothing.
        orders: Comparisons with a verdict in both orders, and how many of them with the same.
        equal_answers: Comparisons of equal answers with a verdict, and how many are ties.
        unanswered: Comparisons, and how many of them were never asked, or got no answer: the run is not at its end.
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
    judged, same = orders
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
    share = same / judged if judged else None
    return Health(not reasons, believed, tuple(reasons), tuple(notes), kinds, coverage, share)


def _control(kind: str, outcomes: Sequence[bool | None]) -> Control:
    expected = _EXPECTED.get(kind, _EQUAL)
    found = Control(kind, expected, len(outcomes), sum(map(bool, outcomes)), outcomes.count(None), 0, None)
    needed = _needed([found])
    return replace(found, needed=needed, passed=found.behaved >= needed if needed else None)


def _good(control: Control) -> str:
    return "a judge that obeys no answer" if control.kind == "planted" else "a judge that is right 19 times of 20"


def _needed(controls: Sequence[Control]) -> int:
    """How many of these together a good judge gets right, but for one run of 200."""
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
    """Whether a language's verdicts are those of a coin: no more like the other languages' than chance, nor like each other.

    Either alone may have a good reason: answers differ between languages, and close answers flip.
    """
    if agreement is None or agreement.n < FEWEST or orders is None or orders.consistent is None:
        return False
    unrelated = agreement.p_value is None or agreement.p_value > ESTABLISHED
    low, _ = wilson(orders.consistent * orders.n, orders.n) or (0.0, 1.0)
    return unrelated and low < CONSISTENT


def _behaved(control: Mapping[str, Any]) -> bool | None:
    """Whether a control came out as it must; None where an order has no verdict."""
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
