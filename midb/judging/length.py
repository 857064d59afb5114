"""The win score that a would have if its answers were as long as those of b.

Knows scores, lengths and questions. Judges like long answers, so a score is read beside this one. It does not detect a system
that games the judge, such as an answer that says nothing: the controls do. Lengths are compared within one language only.
"""

import math
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from midb.judging.statistics import CHUNK_CELLS, NOTHING, Figure, by_cluster, interval, resamples, widened

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

FEWEST = 30  # rows; below, two coefficients say nothing
DEFINED = 0.95  # share of the resamples that must have a fit; with fewer, the others are no fair sample
STEPS, LONGEST_STEP, CONVERGED = 50, 2.0, 1e-9  # of Newton's method, on the scale of log odds


class LengthControl(NamedTuple):
    """The length-controlled win score of a, and the judge's taste for length, each with its 95 % interval.

    `phi` is the log odds that a gains by an answer that is longer by far: above 0 the judge likes long answers. It is None
    where all pairs are equally long; all are None below 30 rows, and where length or dataset predict every verdict.
    """

    win_score: float | None
    low: float | None
    high: float | None
    phi: float | None
    phi_low: float | None
    phi_high: float | None
    n: int


def length_controlled(
    languages: Sequence[tuple[Sequence[float | None], Sequence[float], Sequence[float], Sequence[Hashable]]],
    *,
    n_resamples: int = 1_000,
    seed: int = 0,
) -> tuple[list[LengthControl], Figure]:
    """Fit P(a wins) = sigmoid(theta + phi * tanh(gap / sd(gap))) to each language, and remove the length term.

    The fit has no penalty: a penalty can set `phi` to 0 and so switch the control off. Exchanging the sides mirrors the
    result exactly. It removes a preference that grows with the gap and levels off; of a judge that asks only which answer is
    longer, by however little, a part remains. A resample of the questions is the same in all languages, so the mean of the
    languages in a resample is a draw of their mean.

    Args:
        languages: For each: scores (1, 0.5, 0, or a preference in between; None is left out), lengths in characters of what
            a and b showed, and questions.
        n_resamples: Resamples of questions; all fits are repeated in each.
        seed: The same seed gives the same intervals.

    Returns:
        One result per language, and the mean of those that have a score, each counting the same.

    Source: The model of AlpacaEval's length-controlled win rate (arXiv 2404.04475), without its term for questions.
    """
    fits = [_Language(*language) for language in languages]
    told = [fit for fit in fits if not math.isnan(fit.theta)]
    if not told:
        return [fit.control() for fit in fits], NOTHING
    questions = {name: at for at, name in enumerate(sorted({name for fit in fits for name in fit.questions}, key=repr))}
    for weights in resamples(len(questions), n_resamples, seed):
        for fit in told:
            fit.draw(weights[:, [questions[name] for name in fit.questions]])
    controls = [fit.control() for fit in fits]
    draws = np.stack([_win_score(np.concatenate(fit.draws, axis=1)[0]) for fit in told])
    known = ~np.isnan(draws)
    means = np.where(known, draws, 0).sum(0) / np.where(known.any(0), known.sum(0), np.nan)
    score = math.fsum(control.win_score or 0.0 for control in controls) / len(told)
    by_question: dict[Hashable, list[float]] = {}
    for fit in told:
        for name, value in zip(fit.questions, fit.centred.tolist(), strict=True):
            by_question.setdefault(name, []).append(value)
    low = high = None
    ends = interval(means, defined=DEFINED)
    if ends and all(control.low is not None for control in controls if control.win_score is not None):
        low, high = _widened(score, ends, [math.fsum(values) / len(values) for values in by_question.values()])
    return controls, Figure(score, low, high, None, sum(len(fit.centred) for fit in told), len(by_question))


class _Language:
    """The fit of one language, and of its resamples."""

    def __init__(
        self,
        scores: Sequence[float | None],
        len_a: Sequence[float],
        len_b: Sequence[float],
        questions: Sequence[Hashable],
    ) -> None:
        values = np.array(scores, float)
        known = np.flatnonzero(~np.isnan(values)).tolist()
        self.questions = [questions[at] for at in known]
        self.centred = values[known] - 0.5  # exactly opposite for the two sides, and so is all that follows
        self.gaps = (np.array(len_a, float) - np.array(len_b, float))[known]
        self.draws: list[NDArray[np.float64]] = []
        n = len(known)
        self.theta, self.phi = (
            (float(each[0]) for each in _fit(self.centred, self.gaps, np.ones((1, n))))
            if n >= FEWEST
            else (math.nan, math.nan)
        )

    def draw(self, weights: "NDArray[np.float64]") -> None:
        """Repeat the fit; a row of weights says how often a resample holds each row."""
        seen = weights.any(axis=1)
        found = np.full((2, len(weights)), np.nan)
        for part in np.array_split(np.flatnonzero(seen), math.ceil(weights.size / CHUNK_CELLS)):
            found[:, part] = _fit(self.centred, self.gaps, weights[part])
        self.draws.append(found)

    def control(self) -> LengthControl:
        n = len(self.centred)
        if math.isnan(self.theta):
            return LengthControl(None, None, None, None, None, None, n)
        theta, phi = np.concatenate(self.draws, axis=1)
        score, low, high = float(_win_score(self.theta)), None, None
        if ends := interval(_win_score(theta), defined=DEFINED):
            sums, counts = by_cluster(self.centred.tolist(), self.questions)
            low, high = _widened(score, ends, (sums / counts).tolist())
        if not self.gaps.any():
            return LengthControl(score, low, high, None, None, None, n)
        phi_low, phi_high = interval(phi, defined=DEFINED) or (None, None)
        return LengthControl(score, low, high, self.phi, phi_low, phi_high, n)


def _widened(score: float, ends: tuple[float, float], means: Sequence[float]) -> tuple[float, float]:
    """As of a plain win score; around one half, so that the other side's interval is the mirrored one."""
    low, high = widened(score - 0.5, (ends[0] - 0.5, ends[1] - 0.5), means, (-0.5, 0.5))
    return 0.5 + low, 0.5 + high


def _win_score(theta: "ArrayLike") -> "NDArray[np.float64]":
    return 0.5 + np.tanh(np.asarray(theta) / 2) / 2


def _fit(
    centred: "NDArray[np.float64]", gaps: "NDArray[np.float64]", weights: "NDArray[np.float64]"
) -> tuple["NDArray[np.float64]", "NDArray[np.float64]"]:
    """Theta and phi of one fit per row of `weights`; nan where the data do not determine them.

    Args:
        centred: Scores less 0.5.
        gaps: Length of a less length of b.
        weights: How often each fit (row) holds each observation (column).
    """
    theta, phi = np.full((2, len(weights)), np.nan)
    terms, determined = _length_terms(centred, gaps, weights)
    active = np.flatnonzero(determined)
    theta[active] = phi[active] = 0.0
    for _ in range(STEPS):
        w, x = weights[active], terms[active]
        half = np.tanh((theta[active, None] + phi[active, None] * x) / 2) / 2
        residual, curvature = w * (centred - half), w * (0.25 - half**2)
        g0, g1 = residual.sum(1), np.einsum("ij,ij->i", residual, x)
        curved = curvature * x
        h00, h01, h11 = curvature.sum(1), curved.sum(1), np.einsum("ij,ij->i", curved, x)
        h11 = np.where(h11 > 0, h11, 1)  # without any gap the length has nothing to explain and phi stays 0
        determinant = h00 * h11 - h01**2
        with np.errstate(divide="ignore", invalid="ignore"):
            step = np.array([h11 * g0 - h01 * g1, h00 * g1 - h01 * g0]) / determinant
        largest = np.abs(step).max(0)
        step *= np.minimum(1, LONGEST_STEP / np.maximum(largest, CONVERGED))
        theta[active] += step[0]
        phi[active] += step[1]
        active = active[~(largest < CONVERGED)]
        if not len(active):
            break
    theta[active] = phi[active] = np.nan
    return theta, phi


def _length_terms(
    centred: "NDArray[np.float64]", gaps: "NDArray[np.float64]", weights: "NDArray[np.float64]"
) -> tuple["NDArray[np.float64]", "NDArray[np.bool_]"]:
    """The length term of every observation in every fit, and which of the fits have a finite solution.

    There is none where a threshold on the gap parts what a has won, even in part, from what it has lost.
    """
    held = weights > 0

    def ends(of: "NDArray[np.bool_]") -> tuple["NDArray[np.float64]", "NDArray[np.float64]"]:
        return np.where(held & of, gaps, np.inf).min(1), np.where(held & of, gaps, -np.inf).max(1)

    shortest, longest = ends(np.ones_like(gaps, bool))
    won_from, won_to = ends(centred > -0.5)
    lost_from, lost_to = ends(centred < 0.5)
    parted = (won_to <= lost_from) | (lost_to <= won_from)
    both = np.isfinite(won_from) & np.isfinite(lost_from)
    equally_long = (shortest == longest) & (shortest == 0)
    determined = (both & equally_long) | ((shortest < longest) & ~parted)

    around = gaps - gaps.mean()
    n = weights.sum(1)
    spread = np.sqrt(np.maximum(0, weights @ around**2 - (weights @ around) ** 2 / n) / np.maximum(1, n - 1))
    terms = np.tanh(gaps / np.where(shortest < longest, spread, 1)[:, None])
    return terms, determined
