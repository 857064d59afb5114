"""The numbers are those of the tools they come from, and have the symmetries that a comparison of two sides must have."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midb.judging.statistics import (
    SCORE,
    Counts,
    benjamini_hochberg,
    cluster_table,
    clustered_se,
    detectable,
    few_clusters,
    holm,
    interval,
    joint_bootstrap,
    mid_p,
    paired_difference,
    permutation_test,
    sign_test,
    unseen,
    widened,
    wilcoxon_test,
    wilson,
)
from midb.judging.verdict import merge

VECTORS = {
    vector["id"]: vector
    for vector in json.loads(Path(__file__).with_name("judging_vectors.json").read_text(encoding="utf-8"))
}
FIRST = {1: "a", 2: "b", 0: "tie", None: None}  # a was shown first
SECOND = {1: "b", 2: "a", 0: "tie", None: None}

verdicts = st.lists(st.sampled_from(["a", "b", "tie", None]), max_size=60)
counts = st.builds(Counts, *[st.integers(0, 10_000)] * 3)
p_values = st.lists(st.none() | st.floats(0, 1), max_size=20)


@pytest.fixture(scope="module")
def derived(shared):
    vectors = json.loads((shared / "vectors" / "judging_derived.json").read_text(encoding="utf-8"))["vectors"]
    return {vector["id"]: vector for vector in vectors}


def close(value, tolerance=1e-9):
    return pytest.approx(value, abs=tolerance, rel=0)


def conservative(first, swapped):
    return [merge(FIRST[ab], SECOND[ba]) for ab, ba in zip(first, swapped, strict=True)]


# Counts


@pytest.mark.parametrize("name", ["fc_wr_80", "fc_wr_37"])
def test_counts_and_rates_are_fastchats(name):
    given, expected = VECTORS[name]["input"], VECTORS[name]["expected"]
    found = Counts.of(conservative(given["verdicts_game1"], given["verdicts_game2_swapped"]))
    assert (found.win, found.tie, found.loss) == (expected["win"], expected["tie"], expected["loss"])
    assert found.n == expected["n_used"] == len(given["verdicts_game1"]) - expected["n_dropped"]
    assert found.win / found.n == close(expected["win_rate"], 1e-12)
    assert found.loss / found.n == close(expected["loss_rate"], 1e-12)
    assert found.win_score == close(expected["win_rate_adjusted"], 1e-12)


def alpaca_eval(preferences):
    """Its preferences (1 the baseline, 2 the model, 0 and 1.5 a draw) as scores of the model; others are dropped."""
    drawn = [1.5 if p == 0 else p for p in preferences]
    return [None if p is None or not 1 <= p <= 2 else p - 1 for p in drawn]


def alpaca_eval_metrics(preferences):
    scores = alpaca_eval(preferences)
    table = cluster_table(scores, range(len(scores)))
    decided = Counts.of(None if s is None else "a" if s > 0.5 else "b" if s < 0.5 else "tie" for s in scores)
    # Rounded, a preference of 0.5 is a draw for it, although its other figures drop it.
    rounded = Counts.of({0: "tie", 1: "b", 2: "a"}.get(0 if p in (None, 1.5) else round(p)) for p in preferences if p)
    zeros = Counts.of("tie" for p in preferences if p == 0)
    return {
        "win_rate": 100 * table.sums.sum() / table.counts.sum(),
        "standard_error": 100 * clustered_se(scores, small_sample=True),
        "n_wins": decided.win,
        "n_wins_base": decided.loss,
        "n_draws": decided.tie,
        "n_total": decided.n,
        "discrete_win_rate": 100 * Counts(rounded.win, rounded.tie + zeros.tie, rounded.loss).win_score,
    }


@pytest.mark.parametrize("name", ["ae_wr_small", "ae_wr_small_nan"])
def test_preferences_are_averaged_as_alpaca_eval_does(name):
    vector = VECTORS[name]
    assert alpaca_eval_metrics(vector["input"]["preference"]) == close(vector["expected"], vector["tol"])


@pytest.mark.shared
@pytest.mark.parametrize("name", ["ae_wr_805", "ae_wr_129", "lc_min_805_a", "lc_noreg_300"])
def test_published_preferences_give_the_published_win_rates(derived, name):
    vector = derived[name]
    found = alpaca_eval_metrics(vector["input"]["preference"])
    assert found == close({figure: vector["expected"][figure] for figure in found}, 1e-6)


@pytest.mark.shared
def test_published_preferences_give_the_published_win_rates_of_each_category(derived):
    vector = derived["ae_subset"]
    scores = alpaca_eval(vector["input"]["preference"])
    groups = [name for name, n in vector["input"]["category_runs"] for _ in range(n)]
    table = cluster_table(scores, range(len(scores)), groups)
    for at, name in enumerate(table.groups):
        of_group = [score for score, group in zip(scores, groups, strict=True) if group == name]
        assert {
            "win_rate": 100 * table.sums[:, at].sum() / table.counts[:, at].sum(),
            "standard_error": 100 * clustered_se(of_group, small_sample=True),
            "n_total": table.counts[:, at].sum(),
        } == close(vector["expected"][name], vector["tol"])


@pytest.mark.shared
def test_the_three_rates_are_those_in_coachlms_table(derived):
    vector = derived["coachlm_wr_public"]
    for row, printed in zip(vector["input"], vector["expected"], strict=True):
        found = Counts(row["win"], row["tie"], row["loss"])
        assert {"WR1": found.wr1, "WR2": found.wr2, "QS": found.qs} == close(printed, vector["tol"])


@pytest.mark.shared
def test_groups_of_published_judgments_have_the_counts_intervals_and_tests_computed_by_hand(derived):
    vector = derived["pandalm_pairs_a"]
    by_pair = {}
    for pair, label in vector["input"]:
        by_pair.setdefault(pair, []).append(FIRST[label])
    found = {pair: Counts.of(labels) for pair, labels in sorted(by_pair.items())}
    p = [sign_test(c.win, c.loss) for c in found.values()]
    for (pair, c), sign_p, by_holm, by_bh in zip(found.items(), p, holm(p), benjamini_hochberg(p), strict=True):
        expected = vector["expected"][pair]
        assert list(wilson(c.win, c.win + c.loss)) == close(expected.pop("wilson"))
        rates = {"win_rate_adjusted": c.win_score, "sign_p": sign_p, "p_holm": by_holm, "p_bh": by_bh}
        assert {"win": c.win, "loss": c.loss, "tie": c.tie, **rates} == close(expected)


@given(verdicts)
def test_the_score_of_a_over_b_and_of_b_over_a_make_one(found):
    turned = Counts.of({"a": "b", "b": "a"}.get(v, v) for v in found)
    ours = Counts.of(found)
    assert ours.n == turned.n == sum(v is not None for v in found)
    if ours.n:
        assert ours.win_score + turned.win_score == close(1)
        assert ours.net_margin == close(-turned.net_margin)


@given(counts)
def test_the_rates_say_the_same_in_other_words(c):
    if not c.n:
        assert (c.win_score, c.wr2, c.qs, c.net_margin) == (None,) * 4
        return
    assert c.win_score == c.wr1 == close(0.5 + c.net_margin / 2)
    assert (c.wr2 is None) == (c.tie == c.n)
    assert c.win_score <= c.qs <= 1


# Errors and the bootstrap


def test_clustered_errors_are_those_of_statsmodels_and_miller():
    vector = VECTORS["cluster_40x4"]
    questions, languages, scores = zip(*vector["input"]["rows"], strict=True)
    expected, n = vector["expected"], len(scores)
    se, own = clustered_se(scores, questions), clustered_se(scores)
    naive, corrected = clustered_se(scores, small_sample=True), clustered_se(scores, questions, small_sample=True)
    assert naive == close(expected["se_naive"])
    assert se == close(expected["se_clustered"])
    assert corrected == close(expected["se_clustered_with_correction"])
    assert (naive**2 + se**2 - own**2) ** 0.5 == close(expected["se_miller"])
    assert (se / own) ** 2 == close(expected["design_effect"])
    table = cluster_table(scores, questions, languages)
    means = table.sums.sum(0) / table.counts.sum(0)
    assert (n, len(table.clusters)) == (expected["n"], expected["n_clusters"])
    assert table.sums.sum() / table.counts.sum() == close(expected["mean"])
    assert means.mean() == close(expected["macro_mean_over_languages"])
    for at, language in enumerate(table.groups):
        of_language = [score for score, other in zip(scores, languages, strict=True) if other == language]
        found = [means[at], clustered_se(of_language, small_sample=True), len(of_language)]
        assert found == close(expected["per_language"][str(language)])
    normal = [expected["mean"] - 1.96 * se, expected["mean"] + 1.96 * se]
    assert normal == close(expected["ci95"], 1e-5)


def test_the_bootstrap_of_questions_is_as_wide_as_the_clustered_error():
    questions, _, scores = zip(*VECTORS["cluster_40x4"]["input"]["rows"], strict=True)
    table = cluster_table(scores, questions)
    draws = joint_bootstrap(table.sums, table.counts)
    assert draws.std() == close(clustered_se(scores, questions), 0.001)
    assert interval(draws[:, 0]) == close(tuple(VECTORS["cluster_40x4"]["expected"]["ci95"]), 0.005)


def test_one_resample_serves_all_groups():
    rng = np.random.default_rng(3)
    sums = rng.integers(0, 3, (50, 1)) / 2 * np.ones((1, 4))
    draws = joint_bootstrap(sums, np.ones((50, 4)), n_resamples=500)
    assert (draws == draws[:, :1]).all()
    assert draws.std() > 0


def test_the_bootstrap_depends_on_the_seed_alone():
    table = cluster_table([1, 0, 0.5, 1, 0, 1], [1, 2, 3, 4, 5, 6])
    first, again, other = (joint_bootstrap(table.sums, table.counts, seed=seed) for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()


def test_a_group_that_a_resample_misses_has_no_score_in_it():
    table = cluster_table([1, 1, None, 0], [1, 2, 3, 4], ["th", "de", "th", "de"])
    draws = joint_bootstrap(table.sums, table.counts, n_resamples=1_000)
    thai, german = draws.T
    assert 0.2 < np.isnan(thai).mean() < 0.4  # (3/4)^4
    assert set(thai[~np.isnan(thai)]) == {1.0}
    assert interval(thai) == (1.0, 1.0)
    assert interval(thai, defined=0.95) is None
    assert interval(german) == (0.0, 1.0)


def test_nothing_to_resample_gives_no_interval():
    table = cluster_table([], [])
    assert interval(joint_bootstrap(table.sums, table.counts, n_resamples=10)[:, 0]) is None
    assert clustered_se([], []) is None
    assert clustered_se([1, 0], ["same", "same"]) is None
    assert detectable(None) is None


@settings(max_examples=30)
@given(verdicts.filter(lambda found: any(found)), st.data())
def test_a_mean_lies_between_the_ends_of_its_interval_and_both_in_0_1(found, data):
    questions = data.draw(st.lists(st.integers(0, 9), min_size=len(found), max_size=len(found)))
    table = cluster_table([SCORE.get(v) for v in found], questions)
    low, high = interval(joint_bootstrap(table.sums, table.counts, n_resamples=500)[:, 0], level=0.99)
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
        assert mid_p(*counted) == close(expected["mid_p"])


@given(st.integers(0, 300), st.integers(0, 300))
def test_the_sign_tests_know_no_side(wins, losses):
    assert sign_test(wins, losses) == sign_test(losses, wins)
    assert mid_p(wins, losses) == mid_p(losses, wins)
    assert 0 <= mid_p(wins, losses) <= sign_test(wins, losses) + 1e-12 <= 1 + 2e-12


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


def test_p_values_are_corrected_as_statsmodels_does():
    vector = VECTORS["multi_16_public"]
    assert holm(vector["input"]) == close(vector["expected"]["holm"])
    assert benjamini_hochberg(vector["input"]) == close(vector["expected"]["benjamini_hochberg"])


@settings(max_examples=25, deadline=None)
@given(p_values)
def test_a_correction_keeps_the_order_and_the_gaps_and_never_lowers_a_p_value(found):
    stricter, milder = holm(found), benjamini_hochberg(found)
    for corrected in (stricter, milder):
        pairs = [(p, c) for p, c in zip(found, corrected, strict=True) if p is not None]
        assert [c is None for c in corrected] == [p is None for p in found]
        assert all(p <= c + 1e-12 <= 1 + 2e-12 for p, c in pairs)
        assert [c for _, c in sorted(pairs)] == sorted(c for _, c in pairs)
    assert all(h is None or h >= b - 1e-12 for h, b in zip(stricter, milder, strict=True))


# Two systems against one baseline


def test_a_paired_difference_is_scipys():
    vector = VECTORS["paired_120"]
    a, b = vector["input"]["score_a"], vector["input"]["score_b"]
    expected = vector["expected"]
    found = paired_difference(a, b)
    assert (found.n, found.n_clusters) == (120, 120)
    assert found.mean_a == close(expected["mean_a"])
    assert found.mean_b == close(expected["mean_b"])
    assert found.difference == close(expected["diff"])
    assert found.se == close(expected["se_paired"])
    assert [found.low, found.high] == close(expected["boot_ci"], 0.02)
    assert found.p_value == close(expected["permutation_p"], 0.01)
    se_a, se_b = clustered_se(a, small_sample=True), clustered_se(b, small_sample=True)
    assert (se_a**2 + se_b**2) ** 0.5 == close(expected["se_unpaired"])
    assert (se_a**2 + se_b**2 - found.se**2) / (2 * se_a * se_b) == close(expected["corr"])
    differences = [x - y for x, y in zip(a, b, strict=True)]
    assert wilcoxon_test(differences) == close(expected["wilcoxon_pratt_p"])
    assert wilcoxon_test(differences, zeros="wilcox") == close(expected["wilcoxon_p"])


def test_the_signed_rank_test_is_that_of_evaluate():
    given, expected = VECTORS["evaluate_60"]["input"], VECTORS["evaluate_60"]["expected"]
    differences = np.float32(given["floats1"]) - np.float32(given["floats2"])
    assert wilcoxon_test(differences, zeros="wilcox") == close(expected["wilcoxon"]["p"], 1e-6)
    assert wilcoxon_test([0.0, 0.0]) is None


def test_a_paired_difference_of_a_question_counts_once_whatever_its_languages():
    a, b = VECTORS["paired_120"]["input"].values()
    once = paired_difference(a, b)
    sixteen = paired_difference(a * 16, b * 16, list(range(120)) * 16)
    assert (sixteen.n, sixteen.n_clusters) == (1920, 120)
    assert sixteen.se == close(once.se)
    assert (sixteen.low, sixteen.high) == close((once.low, once.high))
    assert sixteen.p_value == once.p_value


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(*[st.sampled_from([0, 0.5, 1, None])] * 2), max_size=30))
def test_a_paired_difference_turns_with_its_sides(pairs):
    a, b = [x for x, _ in pairs], [y for _, y in pairs]
    ours, turned = paired_difference(a, b, n_resamples=200), paired_difference(b, a, n_resamples=200)
    assert ours.n == turned.n == sum(None not in pair for pair in pairs)
    if ours.n < 2:
        assert ours.difference is ours.se is ours.p_value is None
        return
    assert ours.difference == close(-turned.difference)
    assert ours.p_value == turned.p_value
    assert (ours.low, ours.high) == close((-turned.high, -turned.low))


# Few clusters


@pytest.mark.parametrize(("wins", "losses"), [(20, 1), (30, 10), (57, 3), (40, 0)])
def test_what_was_not_seen_of_wins_and_losses_is_wilsons(wins, losses):
    low, high = wilson(wins, wins + losses)
    down, up = unseen([1.0] * wins + [0.0] * losses)
    assert wins / (wins + losses) - down == pytest.approx(low)
    assert up == 0 or up <= high


def test_a_wide_spread_has_shown_what_there_is():
    rng = np.random.default_rng(0)
    means = rng.random(200)
    assert max(unseen(means)) < 1.96 * means.std() / 200**0.5 * 1.3
    assert few_clusters(5) == pytest.approx(2.776 / 1.960 * 1.25**0.5, abs=0.001)
    assert 1 < few_clusters(80) < 1.03
    assert widened(0.5, (0.4, 0.6), [0.5]) == pytest.approx((0.5 - 0.5 * 0.793, 0.5 + 0.5 * 0.793), abs=0.01)
