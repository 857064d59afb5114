"""The numbers behind every rate: counts, standard errors, one bootstrap for all groups at once, tests and corrections.

Knows verdicts, scores and questions; no dataset, no judge and no report. A score is 1 where a won, 0.5 for a tie, 0 where
b won, or a preference in between; None, a row without a verdict, is left out and never counts as a tie. The question is the
cluster: its turns and languages were judged on the same task and are not independent.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from midb.errors import require_extra

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

SCORE = {"a": 1.0, "tie": 0.5, "b": 0.0}
# Cells of a matrix of resamples that are held at a time: 8 MB of floats, whatever the number of questions.
CHUNK_CELLS = 2**20
Z = 1.959963984540054  # of a 95 % interval


class Counts(NamedTuple):
    """How often a won, tied and lost; every rate follows from the three, and is None where it would divide by zero.

    Source: WR1, WR2 and QS are CoachLM's.
    """

    win: int
    tie: int
    loss: int

    @classmethod
    def of(cls, verdicts: Iterable[str | None]) -> "Counts":
        """Count verdicts; None is no verdict and counts nowhere."""
        found = Counter(verdicts)
        return cls(found["a"], found["tie"], found["b"])

    @property
    def n(self) -> int:
        """How many verdicts there are."""
        return self.win + self.tie + self.loss

    @property
    def win_score(self) -> float | None:
        """Wins and half the ties, of all: 0.5 is no difference."""
        return (self.win + self.tie / 2) / self.n if self.n else None

    @property
    def wr1(self) -> float | None:
        """CoachLM's name for the win score."""
        return self.win_score

    @property
    def wr2(self) -> float | None:
        """Wins of the decided ones; None if all are ties."""
        decided = self.win + self.loss
        return self.win / decided if decided else None

    @property
    def qs(self) -> float | None:
        """Share that is at least as good."""
        return (self.win + self.tie) / self.n if self.n else None

    @property
    def net_margin(self) -> float | None:
        """Wins less losses, of all: 0 is no difference."""
        return (self.win - self.loss) / self.n if self.n else None


class ClusterTable(NamedTuple):
    """Sums and numbers of scores, one row per cluster and one column per group, both in order of first appearance."""

    sums: "NDArray[np.float64]"
    counts: "NDArray[np.float64]"
    clusters: list[Hashable]
    groups: list[Hashable]


def cluster_table(
    scores: Sequence[float | None], clusters: Sequence[Hashable], groups: Sequence[Hashable] | None = None
) -> ClusterTable:
    """Bring scores into the form that `joint_bootstrap` reads.

    Args:
        scores: One per row; None is left out, but its cluster and its group keep their place.
        clusters: The question of each row.
        groups: The group of each row, such as its language; None is one group.
    """
    row_of = {name: at for at, name in enumerate(dict.fromkeys(clusters))}
    column_of = {name: at for at, name in enumerate([None] if groups is None else dict.fromkeys(groups))}
    values = np.array(scores, float)
    known = ~np.isnan(values)
    rows = np.array([row_of[name] for name in clusters], int)[known]
    columns = np.array([column_of[name] for name in groups], int)[known] if groups is not None else np.zeros_like(rows)
    sums, counts = np.zeros((2, len(row_of), len(column_of)))
    np.add.at(sums, (rows, columns), values[known])
    np.add.at(counts, (rows, columns), 1)
    return ClusterTable(sums, counts, list(row_of), list(column_of))


def clustered_se(
    scores: Sequence[float | None], clusters: Sequence[Hashable] | None = None, *, small_sample: bool = False
) -> float | None:
    """Standard error of the mean score when the scores of one cluster go together; None below two clusters.

    Args:
        scores: One per row; None is left out.
        clusters: The question of each row; None takes every row for itself.
        small_sample: Multiply by sqrt(G / (G - 1)) for G clusters. For rows of their own that is the usual sd / sqrt(n).

    Source: The sandwich estimate of a mean, as statsmodels computes it for `cov_type="cluster"`; Miller (arXiv 2411.00640)
    differs from it by n / (n - 1) on the diagonal.
    """
    table = cluster_table(scores, range(len(scores)) if clusters is None else clusters)
    seen = table.counts[:, 0] > 0
    sums, counts = table.sums[seen, 0], table.counts[seen, 0]
    if len(sums) < 2:
        return None
    residuals = sums - counts * (sums.sum() / counts.sum())
    correction = len(sums) / (len(sums) - 1) if small_sample else 1.0
    return float(np.sqrt(correction * (residuals**2).sum()) / counts.sum())


def resamples(n_clusters: int, n_resamples: int, seed: int) -> Iterator["NDArray[np.float64]"]:
    """Draw clusters with replacement: chunks of a matrix that says how often each resample (row) holds each cluster."""
    rng = np.random.default_rng(seed)
    chunk = max(1, CHUNK_CELLS // max(1, n_clusters))
    for start in range(0, n_resamples, chunk):
        rows = min(chunk, n_resamples - start)
        drawn = rng.integers(0, n_clusters, (rows, n_clusters)) + n_clusters * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape).astype(float)


def joint_bootstrap(
    sums: "ArrayLike", counts: "ArrayLike", *, n_resamples: int = 10_000, seed: int = 0
) -> "NDArray[np.float64]":
    """Mean score of every group in every resample of the clusters; one resample serves all groups.

    So a question that was drawn twice counts twice in every language, and a mean or a minimum over the columns of a row is
    itself a draw: that is how a figure over all languages gets its interval.

    Args:
        sums: Sum of the scores of each cluster (row) in each group (column).
        counts: How many scores that are.
        n_resamples: Rows of the result.
        seed: The same seed gives the same draws.

    Returns:
        One row per resample, one column per group; nan where the resample holds nothing of the group.
    """
    sums, counts = np.asarray(sums, float), np.asarray(counts, float)
    draws = np.full((n_resamples, sums.shape[1]), np.nan)
    if not len(sums):
        return draws
    start = 0
    for weights in resamples(len(sums), n_resamples, seed):
        totals = weights @ counts
        part = draws[start : start + len(weights)]
        np.divide(weights @ sums, totals, out=part, where=totals > 0)
        start += len(weights)
    return draws


def interval(draws: "ArrayLike", level: float = 0.95, *, defined: float = 0.0) -> tuple[float, float] | None:
    """Percentile interval of the draws that are numbers.

    Args:
        draws: Draws of one figure; nan is a resample in which it is not defined.
        level: Share of the draws between the ends.
        defined: None where fewer than this share of the draws are numbers.
    """
    draws = np.asarray(draws, float)
    known = draws[~np.isnan(draws)]
    if not len(known) or len(known) < defined * len(draws):
        return None
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def few_clusters(n_clusters: int) -> float:
    """By how much an interval from the spread of so many clusters is too short: Student's t, and G for G - 1."""
    require_extra("scipy", "judge")
    from scipy.stats import t

    if n_clusters < 2:
        return 1.0
    return float(t.ppf(0.975, n_clusters - 1)) / Z * (n_clusters / (n_clusters - 1)) ** 0.5


def widened(
    value: float,
    ends: tuple[float, float],
    cluster_means: "ArrayLike",
    bounds: tuple[float, float] = (0.0, 1.0),
    least: tuple[float, float] | None = None,
) -> tuple[float, float]:
    """A bootstrap interval that still holds with few clusters, and where nearly all of them are alike.

    A resample of few clusters varies too little, so both ends are moved away from the value by `few_clusters`; and it draws
    nothing that was not seen, so each end is at least as far as `unseen` says.

    Args:
        value: What was observed.
        ends: Percentile interval of its draws.
        cluster_means: Mean score of each cluster.
        bounds: Lowest and highest possible value.
        least: How far the ends are at least; None is `unseen` of the clusters.
    """
    means = np.asarray(cluster_means, float)
    factor = few_clusters(len(means))
    down, up = unseen(means, bounds) if least is None else least
    low = value - max(factor * (value - ends[0]), down)
    high = value + max(factor * (ends[1] - value), up)
    return max(bounds[0], low), min(bounds[1], high)


def unseen(cluster_means: "ArrayLike", bounds: tuple[float, float] = (0.0, 1.0)) -> tuple[float, float]:
    """How much lower and higher a mean may be for clusters unlike most, of which there happened to be few or none.

    The share of the clusters below the median one may be larger, by Wilson's bound, and these lie as far below it as those
    that were seen, of which one more is supposed at the very end of the scale; likewise above. Of nothing but wins and losses
    that is Wilson's interval.
    """
    means = np.asarray(cluster_means, float)
    middle = float(np.median(means))

    def reach(deviations: "NDArray[np.float64]", furthest: float) -> float:
        apart = deviations[deviations > 0]
        more = (wilson(len(apart), len(means)) or (0.0, 1.0))[1] - len(apart) / len(means)
        return more * (float(np.sort(apart).sum()) + furthest) / (len(apart) + 1)

    return reach(middle - means, middle - bounds[0]), reach(means - middle, bounds[1] - middle)


def detectable(se: float | None) -> float | None:
    """The smallest true difference that a two-sided test at 5 % finds in 80 % of such runs; None where nothing varies."""
    return 2.8 * se if se else None


def wilson(successes: float, n: float) -> tuple[float, float] | None:
    """Wilson's 95 % interval of a share; None for none of none."""
    require_extra("statsmodels", "judge")
    from statsmodels.stats.proportion import proportion_confint

    if not n:
        return None
    low, high = proportion_confint(successes, n, method="wilson")
    return max(0.0, float(low)), min(1.0, float(high))


def sign_test(wins: int, losses: int) -> float:
    """Exact two-sided p-value of no difference; ties say nothing. It is McNemar's exact test as well."""
    require_extra("scipy", "judge")
    from scipy.stats import binomtest

    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def mid_p(wins: int, losses: int) -> float:
    """The sign test with half the weight on what was observed: less cautious, and nearer to its nominal level."""
    require_extra("scipy", "judge")
    from scipy.stats import binom

    fewer, n = min(wins, losses), wins + losses
    return min(1.0, float(2 * binom.cdf(fewer, n, 0.5) - binom.pmf(fewer, n, 0.5)))


def permutation_test(cluster_sums: "ArrayLike", *, n_resamples: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value of no difference: each question's sum of (score - 0.5) may as well have the other sign.

    Args:
        cluster_sums: One sum per question; sums of zero change nothing.
        n_resamples: Random flips; where no more than that many are possible, all are tried and the value is exact.
        seed: The same seed gives the same value.
    """
    sums = np.asarray(cluster_sums, float)
    sums = sums[sums != 0]
    observed = abs(sums.sum()) - 1e-9 * np.abs(sums).sum()  # a sum that differs only by rounding is as large
    if 2 ** len(sums) <= n_resamples:
        flips = (np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums))) & 1
        return float(np.mean(np.abs(sums.sum() - 2 * flips @ sums) >= observed))
    rng = np.random.default_rng(seed)
    chunk, hits = max(1, CHUNK_CELLS // len(sums)), 0
    for start in range(0, n_resamples, chunk):
        flips = rng.integers(0, 2, (min(chunk, n_resamples - start), len(sums)), dtype=np.int8)
        hits += int((np.abs(sums.sum() - 2 * flips.astype(float) @ sums) >= observed).sum())
    return (1 + hits) / (1 + n_resamples)


def wilcoxon_test(differences: "ArrayLike", *, zeros: Literal["pratt", "wilcox"] = "pratt") -> float | None:
    """Signed-rank test of paired differences, normal approximation; None where all are zero.

    Args:
        differences: One per question.
        zeros: `pratt` ranks the zeros too, which are many among verdicts; `wilcox` drops them first, as scipy and
            `evaluate` do.
    """
    require_extra("scipy", "judge")
    from scipy.stats import wilcoxon

    differences = np.asarray(differences, float)
    if not differences.any():
        return None
    return float(wilcoxon(differences, zero_method=zeros, method="asymptotic").pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """P-values that hold for all the questions asked together (family-wise error); None stays None and is not counted."""
    return _adjusted(p_values, "holm")


def benjamini_hochberg(p_values: Sequence[float | None]) -> list[float | None]:
    """P-values that bound the share of false ones among the findings; None stays None and is not counted."""
    return _adjusted(p_values, "fdr_bh")


def _adjusted(p_values: Sequence[float | None], method: str) -> list[float | None]:
    require_extra("statsmodels", "judge")
    from statsmodels.stats.multitest import multipletests

    known = [p for p in p_values if p is not None]
    adjusted = iter(multipletests(known, method=method)[1].tolist() if known else [])
    return [None if p is None else next(adjusted) for p in p_values]


@dataclass(frozen=True)
class PairedDifference:
    """Two systems that were scored on the same questions; None where fewer than two questions have both scores."""

    n: int
    n_clusters: int
    mean_a: float | None
    mean_b: float | None
    difference: float | None
    se: float | None
    low: float | None
    high: float | None
    p_value: float | None


def paired_difference(
    a: Sequence[float | None],
    b: Sequence[float | None],
    clusters: Sequence[Hashable] | None = None,
    *,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> PairedDifference:
    """Compare two systems that met the same baseline on the same questions, question by question.

    The error of the difference is that of the paired differences: where one system does well the other often does too, and
    the intervals of the two say nothing about it.

    Args:
        a: Scores of one system against the baseline; a row without either score is left out.
        b: Scores of the other, in the same order.
        clusters: The question of each row; None takes every row for itself.
        n_resamples: Of the bootstrap (percentile interval) and of the permutation test.
        seed: The same seed gives the same result.
    """
    both = np.array([a, b], float)
    kept = np.flatnonzero(~np.isnan(both).any(axis=0)).tolist()
    names = kept if clusters is None else [clusters[at] for at in kept]
    differences = both[0, kept] - both[1, kept]
    table = cluster_table(differences.tolist(), names)
    if len(table.clusters) < 2:
        return PairedDifference(len(kept), len(table.clusters), None, None, None, None, None, None, None)
    draws = joint_bootstrap(table.sums, table.counts, n_resamples=n_resamples, seed=seed)
    low, high = interval(draws) or (None, None)
    return PairedDifference(
        n=len(kept),
        n_clusters=len(table.clusters),
        mean_a=float(both[0, kept].mean()),
        mean_b=float(both[1, kept].mean()),
        difference=float(differences.mean()),
        se=clustered_se(differences.tolist(), names, small_sample=True),
        low=low,
        high=high,
        p_value=permutation_test(table.sums[:, 0], n_resamples=n_resamples, seed=seed),
    )
