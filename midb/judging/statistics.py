"""Standard errors, one bootstrap for all groups, intervals, tests and corrections.

Knows scores and questions; no dataset, no judge and no report. A score is 1 where a won, 0.5 for a tie, 0 where b won, or a
preference in between; None, a row without a verdict, is left out and never counts as a tie. The question is the cluster: its
turns and languages were judged on the same task and are not independent. scipy and statsmodels are imported when needed.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

SCORE = {"a": 1.0, "tie": 0.5, "b": 0.0}
# Cells of a matrix of resamples that are held at a time: 8 MB of floats, whatever the number of questions.
CHUNK_CELLS = 2**20
LEVEL, Z = 0.95, 1.959963984540054  # of every interval, and the normal quantile that belongs to it


@dataclass(frozen=True)
class Figure:
    """A rate with its 95 % interval. None where there is nothing to compute it from.

    The interval is a percentile bootstrap of questions, each with all its languages and turns. It is widened for few questions
    (Student's t) and where nearly all of them went the same way (Wilson's bound): see `widened`.

    Attributes:
        value: As a share, 0.5 for half.
        low: Lower end.
        high: Upper end.
        se: Standard error, clustered by question; None below two questions.
        n: Comparisons that it counts.
        n_clusters: Questions that they belong to.
    """

    value: float | None
    low: float | None
    high: float | None
    se: float | None
    n: int
    n_clusters: int


NOTHING = Figure(None, None, None, None, 0, 0)


def by_cluster(
    scores: Sequence[float | None], clusters: Sequence[Hashable]
) -> tuple["NDArray[np.float64]", "NDArray[np.float64]"]:
    """Sum and number of the scores of each cluster, in order of first appearance.

    Args:
        scores: One per row; None is left out, but its cluster keeps its place.
        clusters: The question of each row.
    """
    row_of = {name: at for at, name in enumerate(dict.fromkeys(clusters))}
    values = np.array(scores, float)
    known = ~np.isnan(values)
    rows = np.array([row_of[name] for name in clusters], int)[known]
    sums, counts = np.zeros((2, len(row_of)))
    np.add.at(sums, rows, values[known])
    np.add.at(counts, rows, 1)
    return sums, counts


def clustered_se(scores: Sequence[float | None], clusters: Sequence[Hashable] | None = None) -> float | None:
    """Standard error of the mean score, clustered; None below two clusters.

    Args:
        scores: One per row; None is left out.
        clusters: The question of each row; None makes each row its own cluster.

    Source: The sandwich estimate of a mean, as statsmodels computes it for `cov_type="cluster"` without its small-sample
    correction. Miller (arXiv 2411.00640) differs by n / (n - 1) on the diagonal.
    """
    sums, counts = by_cluster(scores, range(len(scores)) if clusters is None else clusters)
    seen = counts > 0
    sums, counts = sums[seen], counts[seen]
    if len(sums) < 2:
        return None
    residuals = sums - counts * (sums.sum() / counts.sum())
    return float(np.sqrt((residuals**2).sum()) / counts.sum())


def resamples(n_clusters: int, n_resamples: int, seed: int) -> Iterator["NDArray[np.float64]"]:
    """Draw clusters with replacement: yields chunks of the matrix of counts, one resample per row and one cluster per column."""
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

    A question that is drawn twice counts twice in every language. A mean over the columns of a row is therefore a draw of the
    mean over all languages.

    Args:
        sums: Sum of the scores of each cluster (row) in each group (column).
        counts: How many scores that are.
        n_resamples: Rows of the result.
        seed: The same seed gives the same draws.

    Returns:
        One row per resample, one column per group; nan where the resample has no score of the group.
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


def interval(draws: "ArrayLike", *, defined: float = 0.0) -> tuple[float, float] | None:
    """95 % percentile interval of the draws that are numbers.

    Args:
        draws: Draws of one figure; nan is a resample in which it is not defined.
        defined: None where fewer than this share of the draws are numbers.
    """
    draws = np.asarray(draws, float)
    known = draws[~np.isnan(draws)]
    if not len(known) or len(known) < defined * len(draws):
        return None
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def few_clusters(n_clusters: int) -> float:
    """Factor by which a bootstrap interval of so few clusters is too short: Student's t, and sqrt(G / (G - 1))."""
    from scipy.stats import t

    if n_clusters < 2:
        return 1.0
    return float(t.ppf(0.975, n_clusters - 1)) / Z * (n_clusters / (n_clusters - 1)) ** 0.5


def widened(
    value: float,
    ends: tuple[float, float],
    cluster_means: "ArrayLike",
    bounds: tuple[float, float],
    least: tuple[float, float] | None = None,
) -> tuple[float, float]:
    """Widen a bootstrap interval, so that it covers with few clusters and where nearly all of them are equal.

    Resamples of few clusters vary too little, so `few_clusters` moves both ends away from the value. A resample contains no
    value that was not observed, so each end is at least as far away as `unseen`.

    Args:
        value: The observed mean.
        ends: Percentile interval of its draws.
        cluster_means: Mean score of each cluster.
        bounds: Lowest and highest possible value.
        least: Smallest distances of the ends; None is `unseen` of the clusters.
    """
    means = np.asarray(cluster_means, float)
    factor = few_clusters(len(means))
    down, up = unseen(means, bounds) if least is None else least
    low = value - max(factor * (value - ends[0]), down)
    high = value + max(factor * (ends[1] - value), up)
    return max(bounds[0], low), min(bounds[1], high)


def unseen(cluster_means: "ArrayLike", bounds: tuple[float, float]) -> tuple[float, float]:
    """How much lower and higher a mean may be because of clusters unlike most that the sample has few or none of.

    The share of the clusters below the median is raised to Wilson's upper bound. Their distance from it is the mean of the
    observed distances and of one more cluster at the end of the scale; likewise above. For wins and losses alone, this is
    Wilson's interval.
    """
    means = np.asarray(cluster_means, float)
    middle = float(np.median(means))

    def reach(deviations: "NDArray[np.float64]", furthest: float) -> float:
        apart = deviations[deviations > 0]
        more = (wilson(len(apart), len(means)) or (0.0, 1.0))[1] - len(apart) / len(means)
        return more * (float(np.sort(apart).sum()) + furthest) / (len(apart) + 1)

    return reach(middle - means, middle - bounds[0]), reach(means - middle, bounds[1] - middle)


def detectable(se: float | None) -> float | None:
    """Smallest true difference that a two-sided test at 5 % finds with power 80 %; None without variance."""
    return 2.8 * se if se else None


def wilson(successes: float, n: float) -> tuple[float, float] | None:
    """Wilson's 95 % interval of a share; None for none of none."""
    from statsmodels.stats.proportion import proportion_confint

    if not n:
        return None
    low, high = proportion_confint(successes, n, method="wilson")
    return max(0.0, float(low)), min(1.0, float(high))


def sign_test(wins: int, losses: int) -> float:
    """Exact two-sided p-value of no difference, without ties. It equals McNemar's exact test."""
    from scipy.stats import binomtest

    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def permutation_test(cluster_sums: "ArrayLike", *, n_resamples: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value of no difference, by flipping the sign of each question's sum of (score - 0.5).

    Args:
        cluster_sums: One sum per question; sums of zero have no effect.
        n_resamples: Random flips; if there are no more flips than this, all are tried and the p-value is exact.
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


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's correction of the p-values (family-wise error); None stays None and is not counted."""
    from statsmodels.stats.multitest import multipletests

    known = [p for p in p_values if p is not None]
    adjusted = iter(multipletests(known, method="holm")[1].tolist() if known else [])
    return [None if p is None else next(adjusted) for p in p_values]
