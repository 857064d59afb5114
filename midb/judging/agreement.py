"""Agreement of a judge: between its two orders, with other languages, with people; and scores corrected by people's labels.

Knows verdicts ("a", "b", "tie", None for none) and statistics; no dataset, no prompt and no report. Every figure is None
where it is not defined, such as the kappa of a rater who always gives the same verdict.
"""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from midb.errors import require_extra
from midb.judging.statistics import SCORE, Z, by_cluster, interval, joint_bootstrap

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

ORDER = ("a", "tie", "b")  # the order that weighted kappas need
CODE = {verdict: at for at, verdict in enumerate(ORDER)}


# With itself


class Consistency(NamedTuple):
    """How swapping the two answers changed the verdicts; shares of the `n` pairs with a verdict in both orders."""

    pairs: int
    n: int
    consistent: float | None
    opposite: float | None  # a in one order and b in the other
    mixed: float | None  # a tie in one order only
    first: float | None  # leans to what stood first; JudgeLM's "prefer before"
    second: float | None
    preference: float | None  # Shi et al.'s score: -1 always the first place, 1 always the second


def order_consistency(verdicts_ab: Sequence[str | None], verdicts_ba: Sequence[str | None]) -> Consistency:
    """Compare the verdicts of the two orders, both in terms of the datasets a and b.

    Args:
        verdicts_ab: Verdicts with a shown first.
        verdicts_ba: Verdicts on the same pairs with b shown first.

    Source: JudgeLM's consistency and bias; Shi et al.'s preference score (arXiv 2406.07791), which is the difference of
    those who lean to the second and to the first place over all pairs, those without a verdict included.
    """
    # An a with a shown first speaks for the first place, and so does a b with b shown first.
    leans = [
        SCORE[ab] - SCORE[ba]
        for ab, ba in zip(verdicts_ab, verdicts_ba, strict=True)
        if ab is not None and ba is not None
    ]
    found = Counter("mixed" if abs(lean) == 0.5 else "opposite" if lean else "consistent" for lean in leans)
    first, second = sum(lean > 0 for lean in leans), sum(lean < 0 for lean in leans)

    def share(count: int) -> float | None:
        return count / len(leans) if leans else None

    return Consistency(
        pairs=len(verdicts_ab),
        n=len(leans),
        consistent=share(found["consistent"]),
        opposite=share(found["opposite"]),
        mixed=share(found["mixed"]),
        first=share(first),
        second=share(second),
        preference=(second - first) / len(verdicts_ab) if leans else None,
    )


# Two or more raters


@dataclass(frozen=True)
class Agreement:
    """Agreement of two raters on the pairs that both judged; the second is the reference, if one of them is."""

    confusion: tuple[tuple[int, ...], ...]  # rows: the reference, columns: the first rater, both in the order a, tie, b
    low: float | None = None
    high: float | None = None

    @property
    def n(self) -> int:
        """Pairs that both judged."""
        return sum(map(sum, self.confusion))

    @property
    def agreed(self) -> int:
        """Pairs with the same verdict."""
        return sum(row[at] for at, row in enumerate(self.confusion))

    @property
    def share(self) -> float | None:
        """Share of the same verdict: the accuracy against a reference."""
        return self.agreed / self.n if self.n else None

    def kappa(self, weights: Literal["linear"] | None = None) -> float | None:
        """Cohen's kappa: agreement beyond chance; None where a rater always says the same.

        Args:
            weights: `linear` takes a tie as half way between a and b, so that a for b is the worse mistake.
        """
        require_extra("statsmodels", "judge")
        from statsmodels.stats.inter_rater import cohens_kappa

        if _constant(self.confusion):
            return None
        return float(cohens_kappa(self.confusion, wt=weights, return_results=False))


def agreement(
    a: Sequence[str | None],
    b: Sequence[str | None],
    *,
    ties: bool = True,
    clusters: Sequence[Hashable] | None = None,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> Agreement:
    """Compare two raters on the same pairs.

    Args:
        a: Verdicts of one rater, such as the judge.
        b: Verdicts of the other on the same pairs, such as people; None of either leaves the pair out.
        ties: FastChat's first set-up, in which chance agrees on 1 pair in 3; False is the second, which leaves out a pair
            if either verdict is a tie, and in which chance agrees on 1 in 2.
        clusters: The question of each pair: `low` and `high` are then the ends of a bootstrap interval of the share.
        n_resamples: Of the bootstrap.
        seed: The same seed gives the same interval.
    """
    rows = range(len(a)) if clusters is None else clusters
    known = [
        (one, other, row)
        for one, other, row in zip(a, b, rows, strict=True)
        if one is not None and other is not None and (ties or "tie" not in (one, other))
    ]
    table = np.zeros((3, 3), int)
    for one, other, _ in known:
        table[CODE[other], CODE[one]] += 1
    ends = None
    if clusters is not None and known:
        same = by_cluster([float(one == other) for one, other, _ in known], [row for *_, row in known])
        sums, counts = (each[:, None] for each in same)
        ends = interval(joint_bootstrap(sums, counts, n_resamples=n_resamples, seed=seed)[:, 0])
    return Agreement(tuple(map(tuple, table.tolist())), *(ends or (None, None)))


def _constant(table: "ArrayLike") -> bool:
    counts = np.asarray(table)
    return min((counts.sum(0) > 0).sum(), (counts.sum(1) > 0).sum()) < 2


def fleiss_kappa(counts: "NDArray[np.int_]") -> float | None:
    """Fleiss' kappa; None without a question or a second rater, and where all always say the same.

    Args:
        counts: How many raters gave each question (row) each verdict (column); every question by as many raters.
    """
    from statsmodels.stats.inter_rater import fleiss_kappa as kappa

    if not counts.size or counts.sum(1).max() < 2 or (counts.sum(0) > 0).sum() < 2:
        return None
    return float(kappa(counts))


# With the other languages


class LanguageAgreement(NamedTuple):
    """Agreement of one language's verdicts with the others', on the questions where the others have a majority."""

    n: int
    share: float | None
    low: float | None  # of the share, by a bootstrap of questions
    high: float | None
    chance: float | None  # the share that unrelated verdicts with the same frequencies would reach
    kappa: float | None  # 0 is chance
    p_value: float | None  # one-sided, of no more agreement than chance


class CrossLanguage(NamedTuple):
    """Agreement of the verdicts on translations of one question: over all languages, and each against the others."""

    complete: int  # questions with a verdict in every language: those that Fleiss' kappa reads
    fleiss: float | None
    languages: dict[str, LanguageAgreement]


def cross_language(
    questions: Sequence[Hashable],
    languages: Sequence[str],
    verdicts: Sequence[str | None],
    *,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> CrossLanguage:
    """Compare the verdicts of each language with the majority of the others, question by question.

    The questions are translations of each other. If the verdicts of a language are unrelated to those of the others, the
    judge may be unreliable in it, or the answers may differ: read the figure beside the consistency of the two orders.

    Args:
        questions: What the languages share: an id, or an id with its turn.
        languages: The language of each row.
        verdicts: The merged verdict of each row; None is left out.
        n_resamples: Of the bootstrap.
        seed: The same seed gives the same intervals.

    Raises:
        ValueError: A language has two verdicts on one question.
    """
    rows = {name: at for at, name in enumerate(dict.fromkeys(questions))}
    columns = {name: at for at, name in enumerate(dict.fromkeys(languages))}
    votes = np.zeros((len(rows), len(columns), 3), int)
    for question, language, verdict in zip(questions, languages, verdicts, strict=True):
        if verdict is not None:
            votes[rows[question], columns[language], CODE[verdict]] += 1
    if len(twice := np.argwhere(votes.sum(2) > 1)):
        at, of = twice[0]
        raise ValueError(
            f"question {list(rows)[at]!r} has several verdicts in {list(columns)[of]!r}; "
            "name the turn or the repetition too, so that each is a question of its own: (id, turn)"
        )
    others = votes.sum(1, keepdims=True) - votes
    most = others.max(2, keepdims=True, initial=0)
    majority = (others == most) & (most > 0)
    judged = votes.sum(2) > 0
    counted = judged & (majority.sum(2) == 1)
    same = (votes * majority).sum(2) * counted
    draws = joint_bootstrap(same, counted, n_resamples=n_resamples, seed=seed)
    complete = votes[judged.all(axis=1)].sum(1)
    return CrossLanguage(
        complete=len(complete),
        fleiss=fleiss_kappa(complete),
        languages={
            language: _against_majority(votes[counted[:, at], at].T @ majority[counted[:, at], at], draws[:, at])
            for language, at in columns.items()
        },
    )


def _against_majority(table: "ArrayLike", draws: "ArrayLike") -> LanguageAgreement:
    from statsmodels.stats.inter_rater import cohens_kappa

    counts = np.asarray(table)
    n = int(counts.sum())
    low, high = interval(draws) or (None, None)
    if not n:
        return LanguageAgreement(0, None, None, None, None, None, None)
    kappa = p_value = None
    if not _constant(counts):
        found = cohens_kappa(counts)
        kappa, p_value = float(found.kappa), float(found.pvalue_one_sided)
    share, chance = np.trace(counts) / n, counts.sum(0) @ counts.sum(1) / n**2
    return LanguageAgreement(n, float(share), low, high, float(chance), kappa, p_value)


# With people


class PeopleAgreement(NamedTuple):
    """Agreement of the judge with people, and of people with each other, which bounds the first."""

    judge: Agreement
    people: Agreement


def against_people(
    verdicts: Mapping[Hashable, str | None], votes: Mapping[Hashable, Sequence[str | None]], *, ties: bool = True
) -> PeopleAgreement:
    """Compare a judge with every person who voted on the same comparison, and these people with each other.

    Args:
        verdicts: The judge's merged verdict on each comparison.
        votes: The votes of people on each comparison, in the same terms.
        ties: Whether ties count; see `agreement`.

    Source: FastChat's agreement on MT-bench, in both of its set-ups.
    """
    judged = [(verdicts[key], vote) for key, cast in votes.items() if key in verdicts for vote in cast]
    paired = [pair for cast in votes.values() for pair in combinations(cast, 2)]
    return PeopleAgreement(
        *(agreement([x for x, _ in pairs], [y for _, y in pairs], ties=ties) for pairs in (judged, paired))
    )


class Calibrated(NamedTuple):
    """A score as people would have given it, with its 95 % interval."""

    score: float | None
    low: float | None
    high: float | None


def calibrated_rate(
    rate: float, n: int, *, specificity: float, sensitivity: float, n_negative: int, n_positive: int
) -> Calibrated:
    """Correct a judge's win rate for its mistakes on pairs that people labelled (Rogan and Gladen).

    There are two outcomes here, so ties are to be dropped or split before; `prediction_powered` takes them as they are.

    Args:
        rate: Share of the `n` judged pairs that the judge calls a win.
        n: How many pairs the judge judged.
        specificity: Share of the labelled losses that the judge calls a loss.
        sensitivity: Share of the labelled wins that the judge calls a win.
        n_negative: How many losses were labelled.
        n_positive: How many wins were labelled.

    Returns:
        All None for a judge that is no better than chance.

    Source: Lee et al., arXiv 2511.21140.
    """
    if specificity + sensitivity <= 1:
        return Calibrated(None, None, None)

    def corrected(p: float, q0: float, q1: float) -> float:
        return (p + q0 - 1) / (q0 + q1 - 1)

    # The interval adds pseudo-observations (Agresti and Coull) and shifts the centre by what they move.
    p, q0, q1 = (
        (n * rate + Z**2 / 2) / (n + Z**2),
        (n_negative * specificity + 1) / (n_negative + 2),
        (n_positive * sensitivity + 1) / (n_positive + 2),
    )
    centre = corrected(p, q0, q1)
    of_losses, of_wins = q0 * (1 - q0) / (n_negative + 2), q1 * (1 - q1) / (n_positive + 2)
    shift = 2 * Z**2 * (centre * of_wins - (1 - centre) * of_losses)
    variance = p * (1 - p) / (n + Z**2) + (1 - centre) ** 2 * of_losses + centre**2 * of_wins
    half = Z * variance**0.5 / (q0 + q1 - 1)
    low, mid, high = (
        min(1.0, max(0.0, value))
        for value in (centre + shift - half, corrected(rate, specificity, sensitivity), centre + shift + half)
    )
    return Calibrated(mid, low, high)


def allocate_labels(
    total: int, rate: float, *, specificity: float, sensitivity: float, pilot: int = 10
) -> tuple[int, int]:
    """Numbers of losses and of wins to label, so that the interval of `calibrated_rate` is shortest.

    Args:
        total: Number of labels to collect.
        rate: Share that the judge calls a win.
        specificity: As found on the first `pilot` labelled losses.
        sensitivity: As found on the first `pilot` labelled wins.
        pilot: Number of each that is labelled already; the result is at least as large.

    Source: Lee et al., arXiv 2511.21140.
    """
    if not rate:
        return pilot, total - pilot
    mistakes = (pilot * (1 - specificity) + 1) / (pilot * (1 - sensitivity) + 1)
    wins = total / (1 + (1 / rate - 1) * mistakes**0.5)
    wins = max(pilot, round(min(total - pilot, wins)))
    return total - wins, wins


def prediction_powered(people: "ArrayLike", judge: "ArrayLike", rest: "ArrayLike", *, tuned: bool = True) -> Calibrated:
    """Win score as people would give it: the judge's score on the unlabelled pairs, corrected by its mean error on the labelled.

    Args:
        people: Scores by people on the labelled pairs: 1, 0.5 or 0.
        judge: The judge's scores on the same pairs.
        rest: The judge's scores on the unlabelled pairs.
        tuned: Weight the judge by its covariance with people; False gives it the weight 1.

    Returns:
        All None below two labels, or below two pairs of the rest.

    Source: Angelopoulos et al., arXiv 2301.09633 and 2311.01453 (tuned); the mean's closed form, as in ppi-python.
    """
    y, f, g = (np.asarray(scores, float) for scores in (people, judge, rest))
    if len(y) < 2 or len(g) < 2:
        return Calibrated(None, None, None)
    trust = 1.0
    if tuned:
        spread = np.concatenate([f, g]).var(ddof=1) * (1 + len(y) / len(g))
        trust = float(np.clip(((y - y.mean()) * (f - f.mean())).mean() / spread, 0, 1)) if spread else 0.0
    score = float(trust * g.mean() + (y - trust * f).mean())
    half = Z * float(np.sqrt(trust**2 * g.var() / len(g) + (y - trust * f).var() / len(y)))
    return Calibrated(score, score - half, score + half)
