"""Is the judge fit to be believed? Its controls, its two orders and its coverage, against stated limits.

Knows counts; not what was compared. A judge that fails has its headline withheld, so the limits are exact: they refuse what
is hardly possible for a good judge, at any number of controls, rather than what falls below a round share.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from midb.errors import require_extra
from midb.judging.agreement import Consistency, LanguageAgreement
from midb.judging.statistics import wilson

# A good judge is right 19 times of 20; a control asks it twice, once in each order.
RIGHT = 0.95**2
# Such a judge fails one kind of control in one run of 200 at most, so four kinds in one of 50. With 8 of a kind it needs 5:
# a judge that tosses a coin for each verdict gets there in 3 runs of 100 per kind, one that prefers a place never.
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


@dataclass(frozen=True)
class Control:
    """One kind of comparison whose outcome is known.

    Attributes:
        kind: As in `midb.judging.controls`, or `distance_0`: rows of the run whose two answers are equal.
        expected: What a judge that is right says, in words.
        n: How many were read in both orders.
        behaved: How many of these came out as they must.
        unread: How many gave no verdict in an order.
        needed: With fewer than this the judge is refused.
        passed: Whether enough of them came out as they must.
    """

    kind: str
    expected: str
    n: int
    behaved: int
    unread: int
    needed: int
    passed: bool


@dataclass(frozen=True)
class Health:
    """Whether the judge can be believed, and why not.

    Attributes:
        fit: There is no reason against it.
        reasons: Whole sentences, none of which quotes the data.
        controls: By kind; empty: not run.
        coverage: Share of the comparisons with a verdict.
        consistent: Share of the comparisons that got the same verdict in both orders; None where no two orders are known.
    """

    fit: bool
    reasons: tuple[str, ...]
    controls: tuple[Control, ...]
    coverage: float
    consistent: float | None


def judge_health(
    controls: Iterable[Mapping[str, Any]], coverage: float, orders: tuple[int, int], equal_answers: tuple[int, int]
) -> Health:
    """Hold the judge against the limits.

    Args:
        controls: What it said of each: `kind`, `verdict_ab`, `verdict_ba`, and `status_ba` where there was one order.
        coverage: Share of the comparisons with a verdict.
        orders: Comparisons with a verdict in both orders, and how many of them with the same.
        equal_answers: Comparisons of equal answers with a verdict, and how many are ties.
    """
    require_extra("scipy", "judge")
    from scipy.stats import binom

    told = list(controls)
    outcomes = {kind: [_behaved(each) for each in told if each["kind"] == kind] for kind in _EXPECTED}
    outcomes["distance_0"] = [place < equal_answers[1] for place in range(equal_answers[0])]
    kinds = []
    for kind, each in outcomes.items():
        if not each:
            continue
        read = [outcome for outcome in each if outcome is not None]
        needed = int(binom.ppf(REFUSED, len(read), RIGHT)) if read else 1
        behaved, unread = sum(read), len(each) - len(read)
        expected = _EXPECTED.get(kind, _EQUAL)
        kinds.append(Control(kind, expected, len(read), behaved, unread, needed, behaved >= needed))
    reasons = [
        f"{control.expected}: so it was in {control.behaved} of {control.n} cases, and a judge that is right 19 times of "
        f"20 gets {control.needed} or more"
        if control.n
        else f"{control.expected}: none of the {control.unread} controls has a verdict in both orders"
        for control in kinds
        if not control.passed
    ]
    if coverage < COVERAGE:
        reasons.append(f"{coverage:.0%} of the comparisons have a verdict, fewer than {COVERAGE:.0%}")
    judged, same = orders
    if judged and binom.cdf(same, judged, CONSISTENT) < ESTABLISHED:
        reasons.append(
            f"{same:,} of {judged:,} comparisons have the same verdict in both orders, fewer than half: most verdicts are "
            "about the place of an answer"
        )
    return Health(not reasons, tuple(reasons), tuple(kinds), coverage, same / judged if judged else None)


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
