"""Verdict rows → figures: rates with their intervals, for all rows, for each language, and for how much was changed.

Knows arrays and statistics; no dataset and no words. Every rate is computed as a margin (wins less losses) and converted to a
score at the end: exchanging the two sides flips the sign of a margin exactly, so the exchanged report is an exact mirror.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from midb.judging.agreement import Consistency, CrossLanguage, LanguageAgreement, cross_language, order_consistency
from midb.judging.health import related_to_nothing
from midb.judging.length import LengthControl, length_controlled
from midb.judging.rows import Rows
from midb.judging.statistics import (
    NOTHING,
    SCORE,
    Figure,
    clustered_se,
    detectable,
    few_clusters,
    holm,
    interval,
    joint_bootstrap,
    permutation_test,
    sign_test,
    unseen,
    widened,
    wilson,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Mask = NDArray[np.bool_]

DISTANCE = "edit_distance"
DECILES = 10
FEW = 20  # questions; up to so many a share says less than the counts, and no error can be estimated well
FEWEST_CHANGED = 30  # rows for a dose-response: three in a decile


@dataclass(frozen=True)
class Tally:
    """Counts of the comparisons by outcome; None where the rows lack the columns.

    Attributes:
        comparisons: Rows with both sides; unmatched rows do not count.
        win: Better in dataset a. With rule `average`: leaning to it.
        tie: Equal.
        loss: Better in dataset b.
        dropped: Opposite verdicts, which the rule `decisive` leaves out.
        no_verdict: Status → rows without a verdict.
        identical: Ties without a call, because the answers are equal.
        forfeits: Wins without a call, because one answer is empty.
        unmatched: Rows that only one dataset has.
        not_run: Left out because the budget was spent; counted in `no_verdict` too.
        answers_with_token: Rows in which an answer contains a verdict token.
        off_language_a: Answers of a that are not in the language of their row.
        off_language_b: Answers of b likewise.
        coverage: Share of the comparisons with a verdict; None for none of none.
    """

    comparisons: int
    win: int
    tie: int
    loss: int
    dropped: int
    no_verdict: dict[str, int]
    identical: int | None
    forfeits: int | None
    unmatched: int | None
    not_run: int | None
    answers_with_token: int | None
    off_language_a: int | None
    off_language_b: int | None
    coverage: float | None


@dataclass(frozen=True)
class Group:
    """The rows with one value of a column: counts and figures, all of dataset a.

    Attributes:
        group: The value; empty where it is unknown, or for all rows.
        counts: Its comparisons by outcome.
        win_score: Wins and half the ties (CoachLM's WR1).
        net_margin: Wins less losses; MIDB's published figure.
        wr2: Wins of the decided ones, with Wilson's interval, widened where questions repeat and are few.
        qs: Share that is at least as good.
        p_sign: Exact sign test over questions.
        p_permutation: Sign flips over questions.
        p_holm: `p_permutation` with Holm's correction over the languages.
        detectable: Smallest true difference of the win score that is found with power 80 %; None for few questions.
        covered: Share with a verdict of the comparisons that the judge answered.
        consistent: Share with the same verdict in both orders, of those with a verdict in both.
        opposite: Share in which one order says a and the other b.
        first_place: Share that prefers the answer shown first less the share that prefers the second: 0 is no position bias.
        orders: Consistency of the verdicts when the two answers change places.
        agreement: Agreement of a language's verdicts with those of the other languages on the same question.
        unreliable: The judge's verdicts in this language agree neither with each other nor with other languages.
        on_language: Win score without answers in a wrong language.
        length: Win score if both answers were as long.
    """

    group: str
    counts: Tally
    win_score: Figure
    net_margin: Figure
    wr2: Figure
    qs: Figure
    p_sign: float | None
    p_permutation: float | None
    p_holm: float | None
    detectable: float | None
    covered: Figure
    consistent: Figure
    opposite: Figure
    first_place: Figure
    orders: Consistency | None
    agreement: LanguageAgreement | None = None
    unreliable: bool = False
    on_language: Figure | None = None
    length: LengthControl | None = None


@dataclass(frozen=True)
class Macro:
    """The languages together, each counting the same; those without a verdict are left out.

    Attributes:
        mean: Mean of their win scores; the interval draws questions, in all languages at once.
        micro: The win score of all rows, in which a language with more rows counts more.
        lowest: The language with the lowest win score, and that.
        highest: Likewise.
        above_half: Languages whose interval lies above one half.
        below_half: Languages whose interval lies below.
        languages: How many there are.
        length_controlled: Mean of the win scores at equal length, over the languages that have one.
        fleiss: Fleiss' kappa of the languages' verdicts on the same question: 0 is chance.
        complete: How many questions, with their turns, have a verdict in every language: those that it reads.
    """

    mean: Figure
    micro: float | None
    lowest: tuple[str, float]
    highest: tuple[str, float]
    above_half: int
    below_half: int
    languages: int
    length_controlled: Figure | None
    fleiss: float | None
    complete: int


class Figures:
    """All figures of a report. One bootstrap serves them all: a resample of the questions is the same in every group.

    Attributes:
        tables: `all` (one group), each column, and `edit_distance` with `halves` where there is a dose-response.
    """

    def __init__(self, rows: Rows, columns: Sequence[str], seed: int, n_resamples: int) -> None:
        self.rows, self.seed, self.n_resamples = rows, seed, n_resamples
        numbers = rows.numbers
        wrong = [numbers[name] == 1 for name in ("off_language_a", "off_language_b") if name in numbers]
        self.on_language = ~np.logical_or.reduce(wrong) if wrong else None
        self.parts = {"all": [("", np.ones(len(rows.margin), bool))], **{name: _parts(rows, name) for name in columns}}
        self.parts |= _by_distance(rows)
        margins = [np.where(part, rows.margin, np.nan) for parts in self.parts.values() for _, part in parts]
        at_least = [np.where(np.isnan(each), np.nan, np.where(each < 0, -1.0, 1.0)) for each in margins]
        kept = [] if self.on_language is None else [np.where(self.on_language, each, np.nan) for each in margins]
        ofjudge = [
            [np.where(part, each, np.nan) for parts in self.parts.values() for _, part in parts]
            for each in _habits(rows)
        ]
        self.values = [margins, at_least, *ofjudge, *([kept] if kept else [])]
        draws = self._draws([each for kind in self.values for each in kind])
        self.tables: dict[str, list[Group]] = {}
        self.draws: dict[str, Floats] = {}
        start = 0
        for table, parts in self.parts.items():
            places = range(start, start + len(parts))
            self.draws[table] = draws[:, places]
            self.tables[table] = [
                self._group(name, part, at, draws[:, at :: len(margins)])
                for at, (name, part) in zip(places, parts, strict=True)
            ]
            start += len(parts)

    def _group(self, name: str, part: "Mask", at: int, draws: "Floats") -> Group:
        margin, at_least, covered, same, opposite, lean, *kept = (kind[at] for kind in self.values)
        win_score = self._score(margin, draws[:, 0])
        by_question = self._sums(margin)
        known = win_score.n > 0
        return Group(
            group=name,
            counts=_tally(self.rows, part),
            win_score=win_score,
            net_margin=self._figure(margin, draws[:, 0]),
            wr2=self._decided(margin),
            qs=self._score(at_least, draws[:, 1]),
            p_sign=sign_test(int((by_question > 0).sum()), int((by_question < 0).sum())) if known else None,
            p_permutation=permutation_test(by_question / 2, n_resamples=self.n_resamples, seed=self.seed)
            if known
            else None,
            p_holm=None,
            detectable=detectable(win_score.se) if win_score.n_clusters > FEW else None,
            covered=self._score(covered, draws[:, 2]),
            consistent=self._score(same, draws[:, 3]),
            opposite=self._score(opposite, draws[:, 4]),
            first_place=self._figure(lean, draws[:, 5]),
            orders=self._orders(part),
            on_language=self._score(kept[0], draws[:, 6]) if kept else None,
        )

    def languages(self) -> tuple[list[Group], Macro | None]:
        """The figures of each language, what they say of each other, and their mean."""
        corrected = holm([each.p_permutation if each.group else None for each in self.tables["language"]])
        across = self._across()
        lengths, mean = self.lengths([each for each in self.parts["language"] if each[0]])
        groups = []
        for group, p_holm in zip(self.tables["language"], corrected, strict=True):
            name = group.group
            found = across.languages.get(name) if across else None
            length = lengths.get(name)
            odd = related_to_nothing(found, group.orders)
            groups.append(replace(group, p_holm=p_holm, agreement=found, unreliable=odd, length=length))
        told = [at for at, group in enumerate(groups) if group.group and group.win_score.value is not None]
        if len(told) < 2 or across is None:
            return groups, None
        return groups, self._macro([groups[at] for at in told], self.draws["language"][:, told], mean, across)

    def _macro(self, groups: list[Group], draws: "Floats", length: Figure | None, across: CrossLanguage) -> Macro:
        overall, known = self.tables["all"][0], ~np.isnan(draws)
        # A rare language may miss in a resample, and in the rarest case all of them.
        means = np.where(known, draws, 0).sum(axis=1) / np.where(known.any(axis=1), known.sum(axis=1), np.nan)
        margin = sum(group.net_margin.value or 0.0 for group in groups) / len(groups)
        codes, names = self.rows.groups["language"]
        told = np.array([bool(name) for name in names])[codes]
        by_question = self._means(np.where(told, self.rows.margin, np.nan))
        low, high = widened(margin, _mirrored(means), by_question, (-1.0, 1.0))
        scores = [(group.group, group.win_score.value or 0.0) for group in groups]
        ends = [(group.win_score.low, group.win_score.high) for group in groups]
        return Macro(
            mean=Figure(
                _as_score(margin), _as_score(low), _as_score(high),
                float(np.nanstd(means)) / 2 if len(by_question) > 1 else None,
                sum(group.win_score.n for group in groups), len(by_question),
            ),
            micro=overall.win_score.value,
            lowest=min(scores, key=lambda each: each[1]),
            highest=max(scores, key=lambda each: each[1]),
            above_half=sum(low is not None and low > 0.5 for low, _ in ends),
            below_half=sum(high is not None and high < 0.5 for _, high in ends),
            languages=len(groups),
            length_controlled=length,
            fleiss=across.fleiss,
            complete=across.complete,
        )  # fmt: skip

    def lengths(self, parts: Sequence[tuple[str, "Mask"]]) -> tuple[dict[str, LengthControl], Figure | None]:
        """Win score at equal length of each part, and their mean; a part is one language, as lengths have no other measure."""
        told = {name: rows for name, part in parts if (rows := self._length_rows(part))}
        controls, mean = length_controlled(list(told.values()), seed=self.seed)
        return dict(zip(told, controls, strict=True)), mean if mean.n else None

    def _length_rows(self, part: "Mask") -> tuple[list[float], list[float], list[float], list[int]] | None:
        numbers = self.rows.numbers
        if "len_a" not in numbers or "len_b" not in numbers:
            return None
        known = part & ~np.isnan(self.rows.margin + numbers["len_a"] + numbers["len_b"])
        at = self._sorted(np.flatnonzero(known))
        scores, len_a, len_b = 0.5 + self.rows.margin[at] / 2, numbers["len_a"][at], numbers["len_b"][at]
        return scores.tolist(), len_a.tolist(), len_b.tolist(), self.rows.question[at].tolist()

    def trend(self) -> Figure | None:
        """What the more changed half gains over the less changed one."""
        if "halves" not in self.tables:
            return None
        lower, upper = (each.net_margin for each in self.tables["halves"])
        if lower.value is None or upper.value is None:
            return None
        draws, difference = self.draws["halves"], upper.value - lower.value
        values = [np.where(part, self.rows.margin, np.nan) for _, part in self.parts["halves"]]
        means = self._means(np.where(np.isnan(values[0]), values[1], values[0]))
        (low_down, low_up), (up_down, up_up) = (unseen(self._means(each), (-1.0, 1.0)) for each in values)
        ends = _mirrored(draws[:, 1] - draws[:, 0])
        low, high = widened(
            difference, ends, means, (-2.0, 2.0), (math.hypot(up_down, low_up), math.hypot(up_up, low_down))
        )
        se = float(np.nanstd(draws[:, 1] - draws[:, 0])) / 2
        return Figure(difference / 2, low / 2, high / 2, se, upper.n + lower.n, len(means))

    def preference(self) -> Figure | None:
        """Mean of the judge's own probability that a is better."""
        p_a = self.rows.numbers.get("p_a")
        return None if p_a is None else self._score(2 * p_a - 1, self._draws([2 * p_a - 1])[:, 0])

    def coverage(self) -> float | None:
        """Share with a verdict of the comparisons that the judge answered; the others tell nothing of it."""
        answered = self.rows.answered
        return float(self.rows.has_verdict[answered].mean()) if answered.any() else None

    def judged_equal_answers(self) -> tuple[int, int]:
        """Equal answers that the judge was shown, in the first turn, and how many it called a tie."""
        distance = self.rows.numbers.get(DISTANCE)
        if distance is None:
            return 0, 0
        shown = (distance == 0) & (self.rows.status == "ok")
        if "turn" in self.rows.groups:  # equal second answers may follow unequal first ones
            codes, names = self.rows.groups["turn"]
            shown &= np.isin(codes, [at for at, name in enumerate(names) if name in ("", "1")])
        return int(shown.sum()), int((self.rows.margin[shown] == 0).sum())

    def _figure(self, values: "Floats", draws: "Floats") -> Figure:
        """Mean of values in [-1, 1]."""
        known = ~np.isnan(values)
        questions = self.rows.question[known]
        n, n_clusters = int(known.sum()), len(np.unique(questions))
        if not n:
            return NOTHING
        mean = float(values[known].mean())
        low, high = widened(mean, _mirrored(draws), self._means(values), (-1.0, 1.0))
        return Figure(mean, low, high, clustered_se(values[known].tolist(), questions.tolist()), n, n_clusters)

    def _score(self, values: "Floats", draws: "Floats") -> Figure:
        """The same as a score in [0, 1]."""
        found = self._figure(values, draws)
        if found.value is None or found.low is None or found.high is None:
            return found
        se = None if found.se is None else found.se / 2
        return Figure(
            _as_score(found.value), _as_score(found.low), _as_score(found.high), se, found.n, found.n_clusters
        )

    def _decided(self, margin: "Floats") -> Figure:
        """Wins of the decided ones; Wilson's interval counts questions that repeat for less (Kish's design effect).

        That effect is itself uncertain where questions are few, which Student's t makes up for.
        """
        decided = np.sign(margin[np.abs(margin) > 0])
        questions = self.rows.question[np.abs(margin) > 0]
        n, n_clusters = len(decided), len(np.unique(questions))
        if not n:
            return NOTHING
        mean = float(decided.mean())
        se, naive = clustered_se(decided.tolist(), questions.tolist()), clustered_se(decided.tolist())
        effect = max(1.0, (se / naive) ** 2) if se and naive and n_clusters < n else n / n_clusters
        if 1 < n_clusters < n:
            effect = min(n, effect * few_clusters(n_clusters) ** 2)
        low, high = wilson(max((decided > 0).sum(), (decided < 0).sum()) / effect, n / effect) or (0.0, 1.0)
        low, high = 1 - (1 - low), 1 - (1 - high)  # so that the mirrored interval is this one's mirror to the last bit
        if mean < 0:
            low, high = 1 - high, 1 - low
        return Figure(_as_score(mean), low, high, None if se is None else se / 2, n, n_clusters)

    def _draws(self, columns: Sequence["Floats"]) -> "Floats":
        """Bootstrapped means of each column of values."""
        sums = np.stack([self._sums(values) for values in columns], axis=1)
        counts = np.stack([self._sums(np.where(np.isnan(values), np.nan, 1.0)) for values in columns], axis=1)
        return joint_bootstrap(sums, counts, n_resamples=self.n_resamples, seed=self.seed)

    def _sums(self, values: "Floats") -> "Floats":
        """Sum over each question."""
        known = ~np.isnan(values)
        return np.bincount(self.rows.question[known], values[known], int(self.rows.question.max()) + 1).astype(float)

    def _means(self, values: "Floats") -> "Floats":
        """Mean of each question that has one."""
        counts = self._sums(np.where(np.isnan(values), np.nan, 1.0))
        return self._sums(values)[counts > 0] / counts[counts > 0]

    def _orders(self, part: "Mask") -> Consistency | None:
        if self.rows.orders is None:
            return None
        places = np.flatnonzero(part & self.rows.asked).tolist()
        ab, ba = ([order[at] for at in places] for order in self.rows.orders)
        return order_consistency(ab, ba)

    def _across(self) -> CrossLanguage | None:
        codes, names = self.rows.groups["language"]
        known = ~np.isnan(self.rows.margin) & np.array([bool(name) for name in names])[codes]
        if len(np.unique(codes[known])) < 2:
            return None
        at = self._sorted(np.flatnonzero(known))
        verdicts = np.array(["b", "tie", "a"], object)[np.sign(self.rows.margin[at]).astype(int) + 1]
        told = [names[code] for code in codes[at].tolist()]
        shared = self.rows.shared[at].tolist()
        return cross_language(shared, told, verdicts.tolist(), n_resamples=self.n_resamples, seed=self.seed)

    def _sorted(self, places: "NDArray[np.int64]") -> "NDArray[np.int64]":
        """By question, since what is drawn elsewhere depends on the order in which questions come."""
        return places[np.argsort(self.rows.shared[places], kind="stable")]


def _habits(rows: Rows) -> list["Floats"]:
    """Per row, 1 or -1: has a verdict, the same in both orders, opposite, and prefers the first place (1) or the second (-1)."""
    nothing = np.full(len(rows.margin), np.nan)
    covered = np.where(rows.answered, np.where(rows.has_verdict, 1.0, -1.0), nothing)
    if rows.orders is None:
        return [covered, nothing, nothing, nothing]
    ab, ba = (np.array([np.nan if each is None else SCORE[each] for each in order]) for order in rows.orders)
    lean = ab - ba  # an a with a shown first speaks for the first place, and so does a b with b shown first
    same, opposite = (
        np.where(np.isnan(lean), np.nan, np.where(found, 1.0, -1.0)) for found in (lean == 0, np.abs(lean) == 1)
    )
    return [covered, same, opposite, np.sign(lean)]


def _parts(rows: Rows, column: str) -> list[tuple[str, "Mask"]]:
    codes, values = rows.groups[column]
    return [(value, codes == code) for code, value in enumerate(values)]


def _by_distance(rows: Rows) -> dict[str, list[tuple[str, "Mask"]]]:
    """Tenths of each language by how much was changed, equal answers apart, and the two halves."""
    distance = rows.numbers.get(DISTANCE)
    if distance is None:
        return {}
    equal = (distance == 0) | (rows.status == "identical")
    changed = ~equal & ~np.isnan(distance) & ~np.isnan(rows.margin)
    if changed.sum() < FEWEST_CHANGED:
        return {}
    decile = np.zeros(len(distance), int)
    languages = rows.groups["language"][0] if "language" in rows.groups else np.zeros(len(distance), int)
    for language in np.unique(languages):
        here = changed & (languages == language)
        ordered = np.sort(distance[here])  # equal distances share a decile
        decile[here] = 1 + np.searchsorted(ordered, distance[here]) * DECILES // max(1, len(ordered))
    tenths = [(str(at), decile == at) for at in range(1, DECILES + 1)]
    halves = [("lower", changed & (decile <= DECILES // 2)), ("upper", decile > DECILES // 2)]
    unchanged = [("0", equal)] if equal.any() else []
    return {DISTANCE: [*unchanged, *(each for each in tenths if each[1].any())], "halves": halves}


def _tally(rows: Rows, part: "Mask") -> Tally:
    status, margin, numbers = rows.status[part], rows.margin[part], rows.numbers
    alone = np.isin(status, ("unmatched_a", "unmatched_b"))
    without = status[~alone & ~rows.has_verdict[part]].tolist()
    no_verdict = {each: without.count(each) for each in sorted(set(without))}
    comparisons = int((~alone).sum())

    def status_count(*names: str) -> int | None:
        return int(np.isin(status, names).sum()) if rows.has_status else None

    def count(name: str) -> int | None:
        return int((numbers[name][part] == 1).sum()) if name in numbers else None

    return Tally(
        comparisons=comparisons,
        win=int((margin > 0).sum()),
        tie=int((margin == 0).sum()),
        loss=int((margin < 0).sum()),
        dropped=int((rows.has_verdict[part] & np.isnan(margin)).sum()),
        no_verdict=no_verdict,
        identical=status_count("identical"),
        forfeits=status_count("forfeit_empty"),
        unmatched=status_count("unmatched_a", "unmatched_b"),
        not_run=status_count("not_run"),
        answers_with_token=count("token_in_answer"),
        off_language_a=count("off_language_a"),
        off_language_b=count("off_language_b"),
        coverage=int(rows.has_verdict[part].sum()) / comparisons if comparisons else None,
    )


def _as_score(margin: float) -> float:
    """From [-1, 1] to [0, 1], so that the scores of two opposite margins add up to 1 exactly."""
    larger = 0.5 + abs(margin) / 2
    return larger if margin >= 0 else 1 - larger


def _mirrored(draws: "Floats") -> tuple[float, float]:
    """A percentile interval that is the exact mirror of that of the negated draws; interpolation alone is off by a bit."""
    low, high = interval(draws) or (-1.0, 1.0)
    other_low, other_high = interval(-draws) or (-1.0, 1.0)
    return (low - other_high) / 2, (high - other_low) / 2
