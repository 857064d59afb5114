"""A ranking of three or more systems, from verdicts on pairs of them.

Knows verdicts, pairs of names and questions; the fit is evalica's. For two systems the fitted probability is their win score.
Judge all pairs: with one baseline only, the order depends on the baseline.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from midb.errors import ColumnError, require_extra
from midb.judging.statistics import SCORE, interval, resamples

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

    Points = NDArray[np.float64]  # [i, j]: wins of i over j, and half their ties

DEFINED = 0.95  # share of the resamples that must have a finite score; with fewer, the others are no fair sample


class Counts(NamedTuple):
    """How often a system won, tied and lost."""

    win: int
    tie: int
    loss: int


@dataclass(frozen=True)
class System:
    """One system's place: Bradley-Terry score and mean win rate over its opponents, with their 95 % intervals.

    The scores have a geometric mean of 1; only their ratios mean something, s / (s + t) being the probability of a win.
    """

    name: str
    score: float | None
    score_low: float | None
    score_high: float | None
    win_rate: float | None
    low: float | None
    high: float | None
    counts: Counts


@dataclass(frozen=True)
class Ranking:
    """Systems from best to worst, the probability that the row's system wins over the column's, and notes."""

    systems: tuple[System, ...]
    win_probability: Mapping[str, Mapping[str, float | None]]
    no_verdict: int
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain values that JSON knows."""
        systems = [asdict(system) | {"counts": system.counts._asdict()} for system in self.systems]
        probability = {name: dict(row) for name, row in self.win_probability.items()}
        return {
            "systems": systems, "win_probability": probability, "no_verdict": self.no_verdict, "notes": list(self.notes)
        }  # fmt: skip

    def to_markdown(self) -> str:
        """Two tables, the order and the win probabilities in percent, and the notes."""
        header = ["", "system", "score", "95 %", "mean win rate", "95 %", "win", "tie", "loss"]
        order = [
            [
                str(place), each.name, _number(each.score), _range(each.score_low, each.score_high),
                _number(each.win_rate, 100), _range(each.low, each.high, 100), *map(str, each.counts),
            ]
            for place, each in enumerate(self.systems, 1)
        ]  # fmt: skip
        names = [each.name for each in self.systems]
        chances = [[one, *(_number(self.win_probability[one][other], 100) for other in names)] for one in names]
        notes = "".join(f"- {note}\n" for note in self.notes)
        return "\n".join(filter(None, [_table(header, order), _table(["wins over (%)", *names], chances), notes]))


def rank(
    verdicts: Mapping[tuple[str, str], "Dataset | Sequence[str | None]"],
    *,
    ids: Mapping[tuple[str, str], Sequence[Hashable]] | None = None,
    n_resamples: int = 1_000,
    seed: int = 0,
) -> Ranking:
    """Rank systems by the verdicts on pairs of them.

    Reads: of a dataset `verdict`, and `id` where it is there.

    A system that never loses, or never wins, has no finite score: it is ranked above, or below, those that have one. The mean
    win rate is always given.

    Args:
        verdicts: For a pair of names its verdicts in terms of that pair ("a" is the first name): what `Judge.compare`
            returned, or plain values. A pair may occur in both directions. None is no verdict and is not counted.
        ids: The question of each verdict, where they are plain values. If all questions are known, the intervals come from
            resampling them, for all pairs at once; otherwise there are none.
        n_resamples: Resamples of questions; the whole fit is repeated in each.
        seed: The same seed gives the same intervals.

    Raises:
        ColumnError: A dataset has no column `verdict`.
        ValueError: A system meets itself, there is no verdict, or a pair has more or fewer ids than verdicts.

    Source: evalica's `bradley_terry` and `average_win_rate`; ties count half to both sides.
    """
    require_extra("evalica", "judge")
    battles = {pair: _battles(pair, rows, (ids or {}).get(pair)) for pair, rows in verdicts.items()}
    found = [(pair, verdict, row) for pair, cast in battles.items() for verdict, row in cast if verdict is not None]
    if not found:
        raise ValueError("there is no verdict to rank by; judge pairs of systems first: Judge.compare(ds_a, ds_b)")
    names = list(dict.fromkeys(name for pair, *_ in found for name in pair))
    clustered = all(row is not None for *_, row in found)
    row_of = {row: at for at, row in enumerate(dict.fromkeys(row for *_, row in found))}
    of = {name: at for at, name in enumerate(names)}
    points = np.zeros((len(row_of), len(names), len(names)))
    for (a, b), verdict, row in found:
        points[row_of[row], of[a], of[b]] += SCORE[verdict]
        points[row_of[row], of[b], of[a]] += 1 - SCORE[verdict]
    total = points.sum(0)

    above, level, below, notes = _levels(total, names)
    unknown = dict.fromkeys(name for pair in battles for name in pair if name not in of)
    notes += [f"{name} has no verdict and is left out" for name in unknown]
    rates = _mean_win_rates(total)
    scores = np.full(len(names), np.nan)
    if _comparable(total[np.ix_(level, level)]):
        scores[level] = _bradley_terry(total[np.ix_(level, level)])
    places = [*above, *sorted(level, key=lambda at: (-(_known(scores[at]) or 0), -rates[at])), *below]
    score_draws, rate_draws = _draws(points, level, n_resamples if clustered else 0, seed)
    counts = _counts(names, found)

    def system(at: int) -> System:
        score_low, score_high = interval(score_draws[:, at], defined=DEFINED) or (None, None)
        low, high = interval(rate_draws[:, at]) or (None, None)
        score, rate = _known(scores[at]), _known(rates[at])
        return System(names[at], score, score_low, score_high, rate, low, high, counts[names[at]])

    return Ranking(
        systems=tuple(map(system, places)),
        win_probability={
            names[i]: {names[j]: 0.5 if i == j else _known(scores[i] / (scores[i] + scores[j])) for j in places}
            for i in places
        },
        no_verdict=sum(map(len, battles.values())) - len(found),
        notes=tuple(notes),
    )


def _battles(
    pair: tuple[str, str], rows: "Dataset | Sequence[str | None]", ids: Sequence[Hashable] | None
) -> list[tuple[str | None, Hashable]]:
    if pair[0] == pair[1]:
        raise ValueError(f"{pair[0]!r} meets itself; name two systems for each set of verdicts")
    from datasets import Dataset

    if not isinstance(rows, Dataset):
        cast: Sequence[str | None] = rows
    elif "verdict" not in (columns := rows.column_names):
        raise ColumnError(f"{pair}: no column verdict (found: {', '.join(columns)}); give what Judge.compare returned")
    else:
        cast = list(rows["verdict"])
        ids = list(rows["id"]) if "id" in columns else ids
    if ids is not None and len(ids) != len(cast):
        raise ValueError(f"{pair}: {len(cast)} verdicts and {len(ids)} ids; give the question of each verdict")
    return list(zip(cast, [None] * len(cast) if ids is None else ids, strict=True))


def _counts(names: Iterable[str], found: Iterable[tuple[tuple[str, str], str, Hashable]]) -> dict[str, Counts]:
    cast = {name: dict.fromkeys(("a", "tie", "b"), 0) for name in names}
    for (a, b), verdict, _ in found:
        cast[a][verdict] += 1
        cast[b][{"a": "b", "b": "a"}.get(verdict, verdict)] += 1
    return {name: Counts(*given.values()) for name, given in cast.items()}


def _levels(points: "Points", names: Sequence[str]) -> tuple[list[int], list[int], list[int], list[str]]:
    """Remove systems that never lose or never win until there are none: those above, the rest, those below, and notes."""
    above: list[int] = []
    below: list[int] = []
    level, notes = list(range(len(names))), []
    while len(level) > 1:
        inner = points[np.ix_(level, level)]
        top = [at for at, lost in zip(level, inner.sum(0), strict=True) if not lost]
        low = [at for at, won in zip(level, inner.sum(1), strict=True) if not won and at not in top]
        if not top and not low:
            break
        notes += [f"{names[at]} never loses to those ranked below: no finite score" for at in top]
        notes += [f"{names[at]} never wins against those ranked above: no finite score" for at in low]
        above, below = above + top, low + below
        level = [at for at in level if at not in top and at not in low]
    if len(level) == 1:
        notes.append(f"{names[level[0]]} has no opponent between those ranked above and below: no finite score")
    elif level and not _comparable(points[np.ix_(level, level)]):
        notes.append(
            f"{', '.join(names[at] for at in level)}: no finite scores, because some of them never lose to the others or "
            "never met them; ranked by their mean win rates"
        )
    return above, level, below, notes


def _comparable(points: "Points") -> bool:
    """Whether wins lead from every system to every other, which is when all have a finite score."""
    reached = np.eye(len(points), dtype=bool) | (points > 0)
    for _ in range(len(points).bit_length()):
        reached = reached @ reached
    return len(points) > 1 and bool(reached.all())


def _bradley_terry(points: "Points") -> "NDArray[np.float64]":
    from evalica import Winner, bradley_terry

    winners, losers = np.nonzero(points)
    fit = bradley_terry(
        winners.tolist(), losers.tolist(), [Winner.X] * len(winners),
        weights=points[winners, losers].tolist(), tolerance=1e-10, limit=100_000,
    )  # fmt: skip
    return fit.scores.sort_index().to_numpy()


def _mean_win_rates(points: "Points") -> "NDArray[np.float64]":
    """Mean over the opponents that were met, of the share of points against each."""
    met = points + points.T
    shares = np.divide(points, met, out=np.zeros_like(points), where=met > 0)
    opponents = (met > 0).sum(1)
    return np.divide(shares.sum(1), opponents, out=np.full(len(points), np.nan), where=opponents > 0)


def _draws(points: "Points", level: list[int], n_resamples: int, seed: int) -> tuple["Points", "Points"]:
    """Scores and mean win rates in every resample of the questions; nan for a score that is not finite."""
    scores, rates = np.full((2, n_resamples, points.shape[1]), np.nan)
    flat, at = points.reshape(len(points), -1), 0
    for weights in resamples(len(points), n_resamples, seed):
        for drawn in (weights @ flat).reshape(-1, *points.shape[1:]):
            rates[at] = _mean_win_rates(drawn)
            if _comparable(inner := drawn[np.ix_(level, level)]):
                scores[at, level] = _bradley_terry(inner)
            at += 1
    return scores, rates


def _known(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |\n" for cells in lines)


def _number(value: float | None, factor: float = 1) -> str:
    return "–" if value is None else f"{factor * value:.{1 if factor == 100 else 2}f}"


def _range(low: float | None, high: float | None, factor: float = 1) -> str:
    return "–" if low is None else f"{_number(low, factor)} to {_number(high, factor)}"
