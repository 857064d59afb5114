"""The numbers are those of the tools they come from, and have the symmetries that a comparison of two sides must have."""

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midb.judging.statistics import (
    SCORE,
    by_cluster,
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

VECTORS = {
    vector["id"]: vector
    for vector in json.loads(Path(__file__).with_name("judging_vectors.json").read_text(encoding="utf-8"))
}

verdicts = st.lists(st.sampled_from(["a", "b", "tie", None]), max_size=60)
p_values = st.lists(st.none() | st.floats(0, 1), max_size=20)


@pytest.fixture(scope="module")
def derived(shared):
    vectors = json.loads((shared / "vectors" / "judging_derived.json").read_text(encoding="utf-8"))["vectors"]
    return {vector["id"]: vector for vector in vectors}


def close(value, tolerance=1e-9):
    return pytest.approx(value, abs=tolerance, rel=0)


def mean(scores):
    sums, counts = by_cluster(scores, range(len(scores)))
    return sums.sum() / counts.sum()


def corrected_se(scores, clusters=None):
    """With the usual small-sample correction; for rows of their own that is sd / sqrt(n)."""
    names = range(len(scores)) if clusters is None else clusters
    n = len({name for name, score in zip(names, scores, strict=True) if score is not None})
    return clustered_se(scores, clusters) * (n / (n - 1)) ** 0.5


def bootstrapped(scores, clusters, **options):
    return joint_bootstrap(*(each[:, None] for each in by_cluster(scores, clusters)), **options)[:, 0]


# Means


def alpaca_eval(preferences):
    """Its preferences (1 the baseline, 2 the model, 0 and 1.5 a draw) as scores of the model; others are dropped."""
    drawn = [1.5 if p == 0 else p for p in preferences]
    return [None if p is None or not 1 <= p <= 2 else p - 1 for p in drawn]


def alpaca_eval_metrics(preferences):
    scores = alpaca_eval(preferences)
    known = sum(score is not None for score in scores)
    return {"win_rate": 100 * mean(scores), "standard_error": 100 * corrected_se(scores), "n_total": known}


@pytest.mark.parametrize("name", ["ae_wr_small", "ae_wr_small_nan"])
def test_preferences_are_averaged_as_alpaca_eval_does(name):
    vector = VECTORS[name]
    found = alpaca_eval_metrics(vector["input"]["preference"])
    assert found == close({figure: vector["expected"][figure] for figure in found}, vector["tol"])


@pytest.mark.shared
@pytest.mark.parametrize("name", ["ae_wr_805", "ae_wr_129", "lc_min_805_a", "lc_noreg_300"])
def test_published_preferences_give_the_published_win_rates(derived, name):
    vector = derived[name]
    found = alpaca_eval_metrics(vector["input"]["preference"])
    assert found == close({figure: vector["expected"][figure] for figure in found}, 1e-6)


@pytest.mark.shared
def test_published_preferences_give_the_published_win_rates_of_each_category(derived):
    vector = derived["ae_subset"]
    preferences = iter(vector["input"]["preference"])
    for name, n in vector["input"]["category_runs"]:
        found = alpaca_eval_metrics([next(preferences) for _ in range(n)])
        assert found == close(vector["expected"][name], vector["tol"])


# Errors and the bootstrap


def test_clustered_errors_are_those_of_statsmodels_and_miller():
    vector = VECTORS["cluster_40x4"]
    questions, languages, scores = zip(*vector["input"]["rows"], strict=True)
    expected = vector["expected"]
    naive, se, own = corrected_se(scores), clustered_se(scores, questions), clustered_se(scores)
    assert naive == close(expected["se_naive"])
    assert se == close(expected["se_clustered"])
    assert corrected_se(scores, questions) == close(expected["se_clustered_with_correction"])
    assert (naive**2 + se**2 - own**2) ** 0.5 == close(expected["se_miller"])
    assert (se / own) ** 2 == close(expected["design_effect"])
    assert mean(scores) == close(expected["mean"])
    for language, figures in expected["per_language"].items():
        of_language = [score for score, other in zip(scores, languages, strict=True) if str(other) == language]
        assert [mean(of_language), corrected_se(of_language), len(of_language)] == close(figures)


def test_the_bootstrap_of_questions_is_as_wide_as_the_clustered_error():
    questions, _, scores = zip(*VECTORS["cluster_40x4"]["input"]["rows"], strict=True)
    draws = bootstrapped(scores, questions)
    assert draws.std() == close(clustered_se(scores, questions), 0.001)
    assert interval(draws) == close(tuple(VECTORS["cluster_40x4"]["expected"]["ci95"]), 0.005)


def test_one_resample_serves_all_groups():
    rng = np.random.default_rng(3)
    sums = rng.integers(0, 3, (50, 1)) / 2 * np.ones((1, 4))
    draws = joint_bootstrap(sums, np.ones((50, 4)), n_resamples=500)
    assert (draws == draws[:, :1]).all()
    assert draws.std() > 0


def test_the_bootstrap_depends_on_the_seed_alone():
    first, again, other = (bootstrapped([1, 0, 0.5, 1, 0, 1], [1, 2, 3, 4, 5, 6], seed=seed) for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()


def test_a_group_that_a_resample_misses_has_no_score_in_it():
    sums, counts = [[1, 0], [0, 1], [0, 0], [0, 0]], [[1, 0], [0, 1], [0, 0], [0, 1]]
    thai, german = joint_bootstrap(sums, counts, n_resamples=1_000).T
    assert 0.2 < np.isnan(thai).mean() < 0.4  # (3/4)^4
    assert set(thai[~np.isnan(thai)]) == {1.0}
    assert interval(thai) == (1.0, 1.0)
    assert interval(thai, defined=0.95) is None
    assert interval(german) == (0.0, 1.0)


def test_nothing_to_resample_gives_no_interval():
    assert interval(bootstrapped([], [], n_resamples=10)) is None
    assert clustered_se([], []) is None
    assert clustered_se([1, 0], ["same", "same"]) is None
    assert detectable(None) is None


@settings(max_examples=30)
@given(verdicts.filter(lambda found: any(found)), st.data())
def test_a_mean_lies_between_the_ends_of_its_interval_and_both_in_0_1(found, data):
    questions = data.draw(st.lists(st.integers(0, 9), min_size=len(found), max_size=len(found)))
    low, high = interval(bootstrapped([SCORE.get(v) for v in found], questions, n_resamples=500))
    assert 0 <= low <= high <= 1


def test_eighty_questions_with_two_ties_in_five_show_a_difference_of_twelve_points():
    scores = [0.5] * 32 + [1.0] * 24 + [0.0] * 24
    assert detectable(clustered_se(scores)) == close(0.121, 0.001)


# Tests


def test_wilsons_interval():
    vector = VECTORS["prop_ci_public"]
    for counted, expected in zip(vector["input"], vector["expected"], strict=True):
        assert list(wilson(*counted)) == close(expected["wilson"])


@given(st.integers(0, 5_000), st.integers(0, 5_000))
def test_wilsons_interval_lies_in_0_1_around_the_share(successes, failures):
    if not successes + failures:
        assert wilson(0, 0) is None
        return
    low, high = wilson(successes, successes + failures)
    assert 0 <= low <= successes / (successes + failures) + 1e-12
    assert successes / (successes + failures) - 1e-12 <= high <= 1


def test_the_sign_test_is_mcnemars_exact_test():
    vector = VECTORS["sign_mcnemar_public"]
    for counted, expected in zip(vector["input"], vector["expected"], strict=True):
        assert sign_test(*counted) == close(expected["sign_test_p"])
        assert sign_test(*counted) == close(expected["mcnemar_exact_p"])


@given(st.integers(0, 300), st.integers(0, 300))
def test_the_sign_test_knows_no_side(wins, losses):
    assert sign_test(wins, losses) == sign_test(losses, wins)
    assert 0 <= sign_test(wins, losses) <= 1


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([-1, -0.5, 0, 0.5, 1]), max_size=40))
def test_the_permutation_test_knows_no_side_and_no_zero(sums):
    p = permutation_test(sums, n_resamples=300)
    assert 0 < p <= 1
    assert p == permutation_test([-s for s in sums], n_resamples=300)
    assert p == permutation_test([0.0, *sums, 0.0], n_resamples=300)


@pytest.mark.parametrize(("wins", "losses"), [(5, 0), (9, 2), (8, 3), (4, 4)])
def test_few_questions_of_equal_weight_are_permuted_exactly(wins, losses):
    assert permutation_test([0.5] * wins + [-0.5] * losses) == close(sign_test(wins, losses))


def test_many_questions_of_equal_weight_are_permuted_by_chance():
    assert permutation_test([0.5] * 47 + [-0.5] * 29) == close(sign_test(47, 29), 0.01)


def test_differences_of_two_systems_have_the_error_the_interval_and_the_p_value_of_scipy():
    vector = VECTORS["paired_120"]
    a, b = vector["input"]["score_a"], vector["input"]["score_b"]
    differences, expected = [x - y for x, y in zip(a, b, strict=True)], vector["expected"]
    assert mean(differences) == close(expected["diff"])
    assert corrected_se(differences) == close(expected["se_paired"])
    assert list(interval(bootstrapped(differences, range(120)))) == close(expected["boot_ci"], 0.02)
    assert permutation_test(differences) == close(expected["permutation_p"], 0.01)
    assert math.hypot(corrected_se(a), corrected_se(b)) == close(expected["se_unpaired"])


def test_p_values_are_corrected_as_statsmodels_does():
    vector = VECTORS["multi_16_public"]
    assert holm(vector["input"]) == close(vector["expected"]["holm"])


@pytest.mark.shared
def test_groups_of_published_judgments_have_the_intervals_and_tests_computed_by_hand(derived):
    vector = derived["pandalm_pairs_a"]
    by_pair = {}
    for pair, label in vector["input"]:
        by_pair.setdefault(pair, Counter())[label] += 1
    p = holm([sign_test(by_pair[pair][1], by_pair[pair][2]) for pair in sorted(by_pair)])
    for pair, corrected in zip(sorted(by_pair), p, strict=True):
        won, lost, expected = by_pair[pair][1], by_pair[pair][2], vector["expected"][pair]
        assert list(wilson(won, won + lost)) == close(expected["wilson"])
        assert (sign_test(won, lost), corrected) == close((expected["sign_p"], expected["p_holm"]))


@settings(max_examples=25, deadline=None)
@given(p_values)
def test_a_correction_keeps_the_order_and_the_gaps_and_never_lowers_a_p_value(found):
    corrected = holm(found)
    pairs = [(p, c) for p, c in zip(found, corrected, strict=True) if p is not None]
    assert [c is None for c in corrected] == [p is None for p in found]
    assert all(p <= c + 1e-12 <= 1 + 2e-12 for p, c in pairs)
    assert [c for _, c in sorted(pairs)] == sorted(c for _, c in pairs)


# Few clusters


@pytest.mark.parametrize(("wins", "losses"), [(20, 1), (30, 10), (57, 3), (40, 0)])
def test_what_was_not_seen_of_wins_and_losses_is_wilsons(wins, losses):
    low, high = wilson(wins, wins + losses)
    down, up = unseen([1.0] * wins + [0.0] * losses, (0, 1))
    assert wins / (wins + losses) - down == pytest.approx(low)
    assert up == 0 or up <= high


def test_a_wide_spread_has_shown_what_there_is():
    rng = np.random.default_rng(0)
    means = rng.random(200)
    assert max(unseen(means, (0, 1))) < 1.96 * means.std() / 200**0.5 * 1.3
    assert few_clusters(5) == pytest.approx(2.776 / 1.960 * 1.25**0.5, abs=0.001)
    assert 1 < few_clusters(80) < 1.03
    assert widened(0.5, (0.4, 0.6), [0.5], (0, 1)) == pytest.approx((0.5 - 0.5 * 0.793, 0.5 + 0.5 * 0.793), abs=0.01)
