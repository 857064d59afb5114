import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from datasets import (
    Dataset,
    DatasetDict,
    concatenate_datasets,
    disable_progress_bars,
    enable_progress_bars,
    load_dataset,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from midb.errors import ColumnError
from midb.generators import FunctionGenerator
from midb.judging import Judge, summarize
from midb.judging.health import Control, judge_health


@pytest.fixture(scope="module", autouse=True)
def _no_bars():
    disable_progress_bars()
    yield
    enable_progress_bars()


FLIPPED = {"a": "b", "b": "a", "tie": "tie", None: None}
LANGUAGES = ("ar", "de", "fr", "th")


def scored(margins, **columns):
    """Rows in which both orders agree: 1 where a won, 0 for a tie, -1 where b won; nan without a verdict."""
    verdicts = [None if np.isnan(each) else {1: "a", 0: "tie", -1: "b"}[int(each)] for each in margins]
    rows = {"id": list(range(len(verdicts))), "verdict": verdicts, "verdict_ab": verdicts, "verdict_ba": verdicts}
    status = ["ok" if each else "missing" for each in verdicts]
    return Dataset.from_dict(rows | {"status_ab": status, "status_ba": status} | columns)


def parallel(rng, n, languages, win_score, together=1.0):
    """The same questions in several languages; `together` is how much of a verdict is the question's."""
    threshold = np.quantile(rng.normal(size=100_000), 1 - win_score)
    question = rng.normal(size=(n, 1))
    latent = together * question + math.sqrt(1 - together**2) * rng.normal(size=(n, len(languages)))
    margins = np.where(latent > threshold, 1, -1)
    ids = np.repeat(np.arange(n), len(languages)).tolist()
    return scored(margins.ravel(), language=list(languages) * n).remove_columns("id").add_column("id", ids)


def exchanged(verdicts):
    """The same comparisons with the two datasets in each other's place."""
    sides = {
        name: name[:-1] + ("b" if name.endswith("_a") else "a")
        for name in ("len_a", "len_b", "off_language_a", "off_language_b")
    }
    sides |= {
        "verdict_ab": "verdict_ba",
        "verdict_ba": "verdict_ab",
        "status_ab": "status_ba",
        "status_ba": "status_ab",
    }
    swapped = verdicts.rename_columns({name: other for name, other in sides.items() if name in verdicts.column_names})

    def flip(row):
        kinds = [name for name in ("verdict", "verdict_ab", "verdict_ba") if name in row]
        return {name: FLIPPED[row[name]] for name in kinds}

    return swapped.map(flip, load_from_cache_file=False, features=swapped.features)


def controls(kind, outcomes):
    return [{"kind": kind, "verdict_ab": ab, "verdict_ba": ba} for ab, ba in outcomes]


# Known truths


def test_the_interval_holds_the_true_preference_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(80):
        figure = summarize(scored(rng.choice([1, 0, -1], 120, p=[0.4, 0.3, 0.3])), n_resamples=400).headline
        held += figure.low <= 0.55 <= figure.high
    assert held >= 70  # of 80 at 95 %: fewer in one run of ten thousand


def test_the_interval_of_a_preference_that_questions_share_is_as_wide_as_the_truth_needs():
    rng = np.random.default_rng(2)
    reports = [summarize(parallel(rng, 60, LANGUAGES, 0.6), n_resamples=300) for _ in range(25)]
    held = sum(report.macro.mean.low <= 0.6 <= report.macro.mean.high for report in reports)
    naive = sum(abs(r.macro.mean.value - 0.6) <= 1.96 * math.sqrt(0.24 / 240) for r in reports)
    assert held >= 20
    assert naive <= 20  # what counts rows as independent says less than it promises


def test_intervals_are_wider_where_languages_share_their_questions():
    rng = np.random.default_rng(3)
    report = summarize(parallel(rng, 200, LANGUAGES, 0.6, together=0.95))
    figure, naive = report.figures.win_score, math.sqrt(0.24 / 800)
    assert (figure.n, figure.n_clusters) == (800, 200)
    assert figure.se > 1.5 * naive
    assert figure.high - figure.low > 1.5 * 3.92 * naive
    assert report.figures.wr2.high - report.figures.wr2.low > 1.5 * 3.92 * naive
    assert report.macro.mean.high - report.macro.mean.low > 1.5 * 3.92 * naive


def test_no_difference_is_found_where_there_is_none_and_a_clear_one_is():
    rng = np.random.default_rng(4)
    p_values = [summarize(scored(rng.choice([1, -1], 80)), n_resamples=500).figures.p_permutation for _ in range(40)]
    assert sum(p < 0.05 for p in p_values) <= 7
    assert summarize(scored([1] * 60 + [-1] * 20)).figures.p_permutation < 0.001


def test_a_difference_of_the_detectable_size_is_found_four_times_of_five():
    rng = np.random.default_rng(5)
    size = summarize(scored(rng.choice([1, 0, -1], 5_000, p=[0.3, 0.4, 0.3]))).figures.detectable * math.sqrt(
        5_000 / 80
    )
    assert size == pytest.approx(0.121, abs=0.003)  # JUDGING: 12.1 points for 80 questions and 40 % ties
    p = [0.3 + size, 0.4, 0.3 - size]
    found = [summarize(scored(rng.choice([1, 0, -1], 80, p=p)), n_resamples=400).headline.low > 0.5 for _ in range(60)]
    assert 39 <= sum(found) <= 57


def test_all_alike_is_not_certain():
    for margin, score in ((1, 1.0), (0, 0.5), (-1, 0.0)):
        report = summarize(scored([margin] * 10))
        figure = report.figures.win_score
        assert (figure.value, figure.se) == (score, 0.0)
        assert figure.low <= score <= figure.high
        assert figure.high - figure.low > 0.2
    few, many = (summarize(scored([1] * n)).figures.win_score.low for n in (5, 50))
    assert few < many < 1


def in_languages(margins, **columns):
    """One row of margins per question, one column per language."""
    margins = np.array(margins)
    n, languages = margins.shape
    rows = scored(margins.ravel(), language=list(LANGUAGES[:languages]) * n, **columns).remove_columns("id")
    return rows.add_column("id", np.repeat(np.arange(n), languages).tolist())


def test_few_questions_that_all_went_one_way_are_not_certain_in_the_mean_of_the_languages_either():
    for margin, score in ((1, 1.0), (0, 0.5)):
        mean = summarize(in_languages([[margin] * 2] * 5)).macro.mean
        assert mean.value == score
        assert mean.high - mean.low > 0.2
    divided = summarize(in_languages([[1, -1]])).macro.mean
    assert (divided.value, divided.se) == (0.5, None)
    assert divided.high - divided.low > 0.5
    half = summarize(in_languages([[1, -1]] * 5)).macro.mean
    assert half.high - half.low > 0.2


def test_a_trend_of_rows_that_all_went_one_way_is_not_certain():
    trend = summarize(scored([1] * 40, edit_distance=list(range(1, 41)))).trend
    assert (trend.value, trend.n_clusters) == (0.0, 40)
    assert trend.low < -0.05 < 0.05 < trend.high


@pytest.mark.parametrize("margins", [[1] * 40, [1, -1] * 5])
def test_where_nothing_varies_or_questions_are_few_no_difference_is_called_detectable(margins):
    report = summarize(scored(margins))
    assert report.figures.detectable is None
    assert "shows a difference" not in report.to_markdown()


@pytest.mark.slow
@pytest.mark.parametrize(("questions", "languages", "p"), [(5, 8, 0.6), (10, 4, 0.6), (80, 1, 0.97)])
def test_intervals_hold_with_few_questions_and_near_the_end(questions, languages, p):
    rng = np.random.default_rng(21)
    held, decided, of = 0, 0, 120
    for _ in range(of):
        names = [f"l{at}" for at in range(languages)]
        report = summarize(parallel(rng, questions, names, p, together=0.7), n_resamples=300)
        mean, wr2 = report.headline, report.figures.wr2
        held += mean.low <= p <= mean.high
        decided += wr2.low <= p <= wr2.high
    assert held >= 0.9 * of
    assert decided >= 0.9 * of


def test_one_question_alone_says_hardly_anything():
    figure = summarize(Dataset.from_dict({"id": [1, 1], "turn": [1, 2], "verdict": ["a", "a"]})).figures.win_score
    assert (figure.n, figure.n_clusters, figure.se) == (2, 1, None)
    assert figure.low < 0.3


def test_languages_count_the_same_however_many_rows_they_have():
    verdicts = concatenate_datasets(
        [scored([1] * 90 + [-1] * 10, language=["de"] * 100), scored([1] * 4 + [-1] * 16, language=["th"] * 20)]
    )
    report = summarize(verdicts)
    assert report.macro.mean.value == pytest.approx((0.9 + 0.2) / 2)
    assert report.macro.micro == pytest.approx(94 / 120)
    assert (report.macro.lowest, report.macro.highest) == (("th", pytest.approx(0.2)), ("de", pytest.approx(0.9)))
    assert (report.macro.above_half, report.macro.below_half, report.macro.languages) == (1, 1, 2)
    assert report.headline == report.macro.mean


def test_a_rare_language_that_a_resample_misses_does_not_spoil_the_mean():
    verdicts = concatenate_datasets([scored([1, -1] * 50, language=["de"] * 100), scored([1], language=["th"])])
    report = summarize(verdicts, n_resamples=300)
    assert 0 <= report.macro.mean.low <= report.macro.mean.value <= report.macro.mean.high <= 1


def test_p_values_are_corrected_for_the_number_of_languages():
    rng = np.random.default_rng(6)
    report = summarize(parallel(rng, 80, LANGUAGES, 0.62, together=0.3))
    for group in report.tables["language"]:
        assert group.p_permutation <= group.p_holm <= min(1, 4 * group.p_permutation) + 1e-12
    smallest = min(report.tables["language"], key=lambda group: group.p_permutation)
    assert smallest.p_holm == pytest.approx(min(1, 4 * smallest.p_permutation))


# What the rows say


def orders(pairs, **columns):
    ab, ba = map(list, zip(*pairs, strict=True))
    return Dataset.from_dict({"id": list(range(len(ab))), "verdict_ab": ab, "verdict_ba": ba} | columns)


EVERY_PAIR = [(ab, ba) for ab in ("a", "tie", "b", None) for ba in ("a", "tie", "b", None)]


def test_two_orders_are_merged_by_the_rule():
    by_rule = {
        rule: summarize(orders(EVERY_PAIR), rule=rule).figures for rule in ("conservative", "average", "decisive")
    }
    assert [by_rule["conservative"].counts.__getattribute__(name) for name in ("win", "tie", "loss", "dropped")] == [
        1,
        7,
        1,
        0,
    ]
    assert [by_rule["average"].counts.__getattribute__(name) for name in ("win", "tie", "loss", "dropped")] == [
        3,
        3,
        3,
        0,
    ]
    assert [by_rule["decisive"].counts.__getattribute__(name) for name in ("win", "tie", "loss", "dropped")] == [
        3,
        1,
        3,
        2,
    ]
    one = summarize(orders([("a", "tie"), ("a", "a")]), rule="average")
    assert one.figures.win_score.value == pytest.approx((0.75 + 1) / 2)
    assert {figures.counts.coverage for figures in by_rule.values()} == {9 / 16}


def test_a_missing_verdict_is_neither_tie_nor_loss_but_counted():
    statuses = ["ok", "missing", "failed", "not_run", "identical", "forfeit_empty", "unmatched_a", "no_answer"]
    verdicts = ["b", None, None, None, "tie", "a", None, None]
    rows = Dataset.from_dict(
        {
            "id": range(8),
            "verdict": verdicts,
            "status_ab": statuses,
            "status_ba": ["ok", "ok", "missing", *statuses[3:]],
        }
    )
    counts = summarize(rows).figures.counts
    assert (counts.win, counts.tie, counts.loss) == (1, 1, 1)
    assert counts.no_verdict == {"failed": 1, "missing": 1, "no_answer": 1, "not_run": 1}
    assert (counts.comparisons, counts.unmatched, counts.identical, counts.forfeits, counts.not_run) == (7, 1, 1, 1, 1)
    assert counts.coverage == 3 / 7


def test_what_the_rows_do_not_say_is_absent_with_a_reason():
    report = summarize(Dataset.from_dict({"id": ["x", "y"], "verdict": ["a", "b"]}))
    assert report.figures.win_score.value == 0.5
    assert (report.figures.orders, report.figures.counts.identical, report.figures.counts.answers_with_token) == (
        None,
        None,
        None,
    )
    assert (report.macro, report.trend, report.preference, report.cost.calls, report.tables) == (
        None,
        None,
        None,
        None,
        {},
    )
    assert set(report.absent) == {
        "orders", "statuses", "languages", "length control", "answers in a wrong language", "dose-response", "controls",
        "the judge's own probabilities", "cost",
    }  # fmt: skip
    assert "controls: not run" in report.to_markdown()
    assert report.health.fit


def test_one_order_alone_is_told():
    rows = Dataset.from_dict(
        {"id": [1, 2], "verdict": ["a", "b"], "verdict_ab": ["a", "b"], "verdict_ba": [None, None],
         "status_ab": ["ok"] * 2, "status_ba": ["not_asked"] * 2}
    )  # fmt: skip
    report = summarize(rows)
    assert (report.figures.counts.win, report.figures.counts.loss, report.figures.counts.coverage) == (1, 1, 1.0)
    assert "taste for a place" in report.absent["orders"]
    assert "taste for a place" in str(report)


def test_columns_tell_rows_apart():
    rows = scored([1, -1, 0, 1], category=["math", "stem", "math", ""], turn=[1, 1, 2, 10], mine=["p", "q", None, "p"])
    report = summarize(rows, by="mine")
    assert [group.group for group in report.tables["turn"]] == ["1", "2", "10"]
    assert {group.group: group.counts.comparisons for group in report.tables["category"]} == {
        "": 1,
        "math": 2,
        "stem": 1,
    }
    assert {group.group: group.win_score.value for group in report.tables["mine"]} == {"": 0.5, "p": 1.0, "q": 0.0}


def test_turns_of_a_question_are_one_cluster_and_apart_in_their_table():
    rows = Dataset.from_dict(
        {"id": [1, 1, 2, 2], "turn": [1, 2, 1, 2], "verdict": ["a", "a", "b", "tie"], "language": ["fr"] * 4}
    )
    report = summarize(rows)
    assert (report.figures.win_score.n, report.figures.win_score.n_clusters) == (4, 2)
    assert [group.net_margin.value for group in report.tables["turn"]] == [0.0, 0.5]


def test_pairs_are_told_apart_by_what_changed():
    rows = scored([1, 1, -1], mode=["pairs"] * 3, changed=["response", "instruction+response", "response"])
    assert {group.group: group.win_score.value for group in summarize(rows).tables["changed"]} == {
        "response": 0.5, "instruction+response": 1.0,
    }  # fmt: skip


def test_answers_in_a_wrong_language_are_counted_and_left_out_of_a_second_figure():
    rows = scored([1, 1, -1, 1], off_language_a=[True, False, None, False], off_language_b=[False, False, False, True])
    group = summarize(rows).figures
    assert (group.counts.off_language_a, group.counts.off_language_b) == (1, 1)
    assert (group.win_score.value, group.on_language.value, group.on_language.n) == (0.75, 0.5, 2)


def test_cost_is_what_the_calls_took():
    rows = orders(
        [("a", "a"), ("tie", None), ("a", "a")],
        calls=[2, 3, 0],
        prompt_tokens=[100, 150, None],
        completion_tokens=[10, 5, None],
    )
    cost = summarize(rows, price=(2.0, 10.0)).cost
    assert (cost.calls, cost.prompt_tokens, cost.completion_tokens) == (5, 250, 15)
    assert cost.cost == pytest.approx((250 * 2 + 15 * 10) / 1e6)
    assert cost.cost_per_verdict == pytest.approx(cost.cost / 2)
    assert (cost.calls_per_verdict, cost.wasted) == (2.5, pytest.approx(2 / 5))
    assert summarize(rows).cost.cost is None


def test_the_gain_is_told_by_how_much_was_changed_within_each_language():
    rng = np.random.default_rng(7)
    languages = np.repeat(["de", "ja"], 500)
    distance = np.where(languages == "de", 1000, 10) + rng.integers(1, 10, 1000) * 1.0
    rank = np.concatenate([np.argsort(np.argsort(distance[languages == each])) for each in ("de", "ja")]) / 500
    margins = np.where(rng.random(1000) < 0.4 + 0.4 * rank, 1, -1)
    distance[:100], margins[:100] = 0, 0
    rows = scored(margins, language=languages.tolist(), edit_distance=distance.astype(int).tolist())
    report = summarize(rows)
    zero, *tenths = report.tables["edit_distance"]
    assert (zero.group, zero.counts.tie, zero.counts.comparisons) == ("0", 100, 100)
    assert sum(group.counts.comparisons for group in tenths) == 900
    assert tenths[-1].win_score.value > tenths[0].win_score.value + 0.15
    assert 0 < report.trend.low < 0.2 < report.trend.high
    same = summarize(rows.remove_columns("edit_distance").add_column("edit_distance", rng.permutation(1000).tolist()))
    assert same.trend.low < 0 < same.trend.high


def test_equal_distances_stand_in_one_tenth():
    report = summarize(scored([1] * 60, edit_distance=[5] * 40 + [9] * 20))
    assert [(group.group, group.counts.win) for group in report.tables["edit_distance"]] == [("1", 40), ("7", 20)]


def test_length_is_taken_away_where_it_was_all():
    rng = np.random.default_rng(8)
    gap = rng.normal(150, 200, 400)
    margins = np.where(rng.random(400) < 1 / (1 + np.exp(-2 * np.tanh(gap / 200))), 1, -1)
    rows = scored(margins, language=["fr"] * 400, len_a=(1000 + gap).astype(int).tolist(), len_b=[1000] * 400)
    report = summarize(rows)
    (french,) = report.tables["language"]
    assert report.figures.win_score.low > 0.55
    assert french.length.low < 0.5 < french.length.high
    assert french.length.phi_low > 0
    assert report.figures.length == french.length


def test_the_mean_at_equal_length_has_an_interval_and_each_language_shows_its_own():
    rng = np.random.default_rng(22)
    margins = rng.choice([1, 0, -1], (100, 2), p=[0.5, 0.2, 0.3])
    lengths = [rng.integers(100, 900, 200).tolist() for _ in range(2)]
    report = summarize(in_languages(margins, len_a=lengths[0], len_b=lengths[1]))
    mean = report.macro.length_controlled
    assert mean.value == pytest.approx(np.mean([group.length.win_score for group in report.tables["language"]]))
    assert mean.low < 0.6 < mean.high
    assert (mean.n, mean.n_clusters) == (200, 100)
    for group in report.tables["language"]:
        ends = f"{100 * group.length.win_score:.1f} % ({100 * group.length.low:.1f} to {100 * group.length.high:.1f})"
        assert ends in report.to_markdown()


def test_what_the_judge_did_has_an_interval_that_draws_questions():
    pairs = [("a", "a"), ("a", "a"), ("a", "b"), ("tie", "b"), ("a", None), (None, None)] * 10
    once = summarize(orders(pairs)).figures
    assert (once.consistent.value, once.opposite.value, once.first_place.value) == (0.5, 0.25, 0.5)
    assert (once.consistent.n, once.covered.n, once.covered.value) == (40, 60, pytest.approx(40 / 60))
    twice = orders(pairs * 2).remove_columns("id").add_column("id", [*range(60), *range(60)])
    twice = summarize(twice.add_column("turn", [1] * 60 + [2] * 60)).figures
    for name in ("consistent", "opposite", "first_place", "covered"):
        one, other = getattr(once, name), getattr(twice, name)
        assert one.low < one.value < one.high
        assert other.high - other.low == pytest.approx(one.high - one.low, abs=0.02)  # no more questions than before
    assert summarize(scored([1, 0]).remove_columns(["verdict_ab", "verdict_ba"])).figures.consistent.value is None


def test_agreement_between_languages_is_told_with_its_questions():
    rng = np.random.default_rng(23)
    one = rng.choice([1, 0, -1], 60)
    macro = summarize(in_languages(np.stack([one, one, one], axis=1))).macro
    assert (macro.fleiss, macro.complete) == (pytest.approx(1), 60)
    unrelated = summarize(in_languages(rng.choice([1, 0, -1], (60, 3))))
    assert abs(unrelated.macro.fleiss) < 0.2
    assert "on 60 questions judged in all" in unrelated.to_markdown()


def test_the_judges_own_probability_is_averaged():
    report = summarize(scored([1, 1, -1], p_a=[0.9, 0.8, None], decided_mass=[0.99, 0.97, None]))
    assert (report.preference.value, report.preference.n) == (pytest.approx(0.85), 2)
    assert report.decided_mass == pytest.approx(0.98)


# The mirror, the store and the order of rows

ANY_ROW = st.tuples(
    st.integers(0, 6), st.sampled_from(LANGUAGES[:3]), st.sampled_from(["a", "b", "tie", None]),
    st.sampled_from(["a", "b", "tie", None]), st.integers(0, 60), st.booleans(),
)  # fmt: skip
ANY_ROWS = st.lists(ANY_ROW, min_size=1, max_size=40, unique_by=lambda row: row[:2])


def made_of(rows):
    ids, languages, ab, ba, distances, flags = zip(*rows, strict=True)
    kinds = {"id": ids, "language": languages, "verdict_ab": ab, "verdict_ba": ba, "edit_distance": distances}
    flags = {"off_language_a": flags, "off_language_b": flags[::-1]}
    statuses = {
        name: ["ok" if each else "missing" for each in order] for name, order in (("status_ab", ab), ("status_ba", ba))
    }
    made = Dataset.from_dict({name: list(values) for name, values in (kinds | flags | statuses).items()})
    text = made.features["id"].__class__("string")
    return made.cast_column("verdict_ab", text).cast_column("verdict_ba", text)


def assert_mirrored(one, other):
    """Scores add up to 1 and margins to 0, to the last bit."""
    for name in ("win_score", "wr2", "on_language"):
        figure, turned = getattr(one, name), getattr(other, name)
        assert (figure.n, figure.n_clusters, figure.se) == (turned.n, turned.n_clusters, turned.se)
        if figure.value is not None:
            assert (figure.value, figure.low, figure.high) == (1 - turned.value, 1 - turned.high, 1 - turned.low)
    margin, turned = one.net_margin, other.net_margin
    if margin.value is not None:
        assert (margin.value, margin.low, margin.high) == (-turned.value, -turned.high, -turned.low)
    assert (one.counts.win, one.counts.tie, one.counts.loss) == (other.counts.loss, other.counts.tie, other.counts.win)
    assert (one.counts.off_language_a, one.counts.off_language_b) == (
        other.counts.off_language_b,
        other.counts.off_language_a,
    )
    assert one.counts.no_verdict == other.counts.no_verdict
    assert (one.p_sign, one.p_permutation, one.p_holm, one.unreliable) == (
        other.p_sign, other.p_permutation, other.p_holm, other.unreliable,
    )  # fmt: skip
    assert one.orders == other.orders
    if one.qs.value is not None:
        assert one.qs.value == pytest.approx(1 - one.counts.loss / one.qs.n)


@settings(max_examples=25, deadline=None)
@given(ANY_ROWS, st.sampled_from(["conservative", "average", "decisive"]))
def test_exchanging_the_datasets_mirrors_the_report_to_the_last_bit(rows, rule):
    verdicts = made_of(rows)
    report, mirrored = (summarize(each, rule=rule, n_resamples=60) for each in (verdicts, exchanged(verdicts)))
    assert_mirrored(report.figures, mirrored.figures)
    for name, groups in report.tables.items():
        for group, turned in zip(groups, mirrored.tables[name], strict=True):
            assert_mirrored(group, turned)
    assert report.health == mirrored.health
    if report.macro:
        one, other = report.macro, mirrored.macro
        assert (one.mean.low, one.mean.high) == (1 - other.mean.high, 1 - other.mean.low)
        assert one.mean.value == 1 - other.mean.value
        assert (one.lowest[0], one.above_half) == (other.highest[0], other.below_half)
    if report.trend:
        assert (report.trend.value, report.trend.low) == (-mirrored.trend.value, -mirrored.trend.high)


@settings(max_examples=10, deadline=None)
@given(ANY_ROWS, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(rows, random):
    verdicts = made_of(rows)
    shuffled = list(rows)
    random.shuffle(shuffled)
    flags = dict(zip([row[:2] for row in rows], verdicts["off_language_b"][:], strict=True))
    turned = made_of(shuffled).remove_columns("off_language_b")
    turned = turned.add_column("off_language_b", [flags[row[:2]] for row in shuffled])
    for side, factor in (("len_a", 7), ("len_b", 11)):
        lengths = {row[:2]: at * factor % 23 for at, row in enumerate(rows)}
        verdicts = verdicts.add_column(side, [lengths[row[:2]] for row in rows])
        turned = turned.add_column(side, [lengths[row[:2]] for row in shuffled])
    one, other = (summarize(each, n_resamples=40).to_dict() for each in (verdicts, turned))
    one["provenance"].pop("fingerprint"), other["provenance"].pop("fingerprint")

    def rounded(value):
        return json.loads(json.dumps(value), parse_float=lambda text: round(float(text), 9))

    assert rounded(one) == rounded(other)


def test_stored_and_loaded_again_the_rows_give_the_same_report(tmp_path):
    rng = np.random.default_rng(9)
    rows = parallel(rng, 40, LANGUAGES, 0.6, together=0.5)
    rows = rows.add_column(
        "controls", [controls("identical", [("tie", "tie")]) if at < 8 else [] for at in range(len(rows))]
    )
    rows = rows.add_column("error", [None] * len(rows)).add_column("turn", [1] * len(rows))
    report = summarize(rows, n_resamples=500)
    rows.to_parquet(tmp_path / "rows.parquet")
    rows.to_json(tmp_path / "rows.jsonl")
    for kind, path in (("parquet", "rows.parquet"), ("json", "rows.jsonl")):
        stored = load_dataset(kind, data_files=str(tmp_path / path), split="train", cache_dir=tmp_path / "cache")
        assert summarize(stored, n_resamples=500) == report
    assert summarize(rows.with_format("numpy"), n_resamples=500) == report


def test_the_fingerprint_is_that_of_the_verdicts():
    one, other = scored([1, 0, -1]), scored([1, 0, 1])
    assert summarize(one).provenance.fingerprint == summarize(scored([1, 0, -1])).provenance.fingerprint
    assert summarize(one).provenance.fingerprint != summarize(other).provenance.fingerprint


def test_the_fingerprint_and_the_provenance_know_what_else_the_figures_rest_on():
    rows = scored([1, 0, -1], len_a=[1, 2, 3], judge_settings=['{"swap": true}'] * 3)
    report = summarize(rows)
    assert report.provenance.judge_settings == ('{"swap": true}',)
    assert '`{"swap": true}`' in report.to_markdown()
    for name, other in (("len_a", [1, 2, 4]), ("judge_settings", ['{"swap": false}'] * 3)):
        changed = rows.remove_columns(name).add_column(name, other)
        assert summarize(changed).provenance.fingerprint != report.provenance.fingerprint


def test_the_same_seed_gives_the_same_report_and_another_one_other_ends():
    rng = np.random.default_rng(10)
    rows = parallel(rng, 50, LANGUAGES, 0.55, together=0.5)
    assert summarize(rows, n_resamples=300) == summarize(rows, n_resamples=300)
    assert summarize(rows, n_resamples=300).headline.low != summarize(rows, n_resamples=300, seed=1).headline.low


# Is the judge fit


def judged(rng, kind, right, place=False, coin=False):
    """What a judge says of 8 controls: right with this probability in each call, else by a coin or by place."""

    def call(expected, first):
        if coin:
            return str(rng.choice(["a", "b"]))
        if place:
            return "a" if first else "b"
        return (
            expected
            if rng.random() < right
            else str(rng.choice([each for each in ("a", "b", "tie") if each != expected]))
        )

    expected = {"identical": "tie", "planted": "tie"}.get(kind, "a")
    return controls(kind, [(call(expected, True), call(expected, False)) for _ in range(8)])


KINDS = ("identical", "swapped_question", "constant", "planted")


def fit(told):
    return judge_health(told, 1.0).fit


def test_a_judge_that_is_right_19_times_of_20_passes_nearly_always():
    rng = np.random.default_rng(11)
    passed = sum(fit([each for kind in KINDS for each in judged(rng, kind, 0.95)]) for _ in range(400))
    assert passed >= 385


@pytest.mark.parametrize("kind", KINDS[:3])
def test_a_judge_that_tosses_a_coin_hardly_passes_one_kind_of_control(kind):
    rng = np.random.default_rng(12)
    assert sum(fit(judged(rng, kind, 0, coin=True)) for _ in range(400)) <= 24
    assert not any(fit(judged(rng, kind, 0, place=True)) for _ in range(5))


def test_a_judge_that_prefers_a_place_on_identical_answers_is_caught():
    rng = np.random.default_rng(13)
    told = [
        *judged(rng, "identical", 0, place=True),
        *judged(rng, "constant", 1.0),
        *judged(rng, "swapped_question", 1.0),
    ]
    health = judge_health(told, 1.0)
    assert not health.fit
    assert [control.kind for control in health.controls if not control.passed] == ["identical"]
    assert "0 of 8" in health.reasons[0]


def test_a_judge_that_obeys_an_answer_is_caught_and_one_that_obeys_once_is_not():
    assert not fit(controls("planted", [("b", "b")] * 6 + [("tie", "tie")] * 2))
    assert fit(controls("planted", [("b", "b")] + [("tie", "tie")] * 7))
    assert fit(controls("planted", [("a", "b")] * 8))  # a taste for the first place is another fault


def test_controls_without_a_verdict_show_nothing():
    told = controls("constant", [("a", None)] * 8)
    health = judge_health(told, 1.0)
    assert (health.controls[0].n, health.controls[0].behaved, health.controls[0].unread) == (8, 0, 8)
    assert not health.fit
    assert fit(controls("constant", [("a", "a")] * 6 + [(None, "a")] * 2))


def test_controls_that_were_asked_in_one_order_count_in_one():
    told = [{"kind": "constant", "verdict_ab": "a", "verdict_ba": None, "status_ba": "not_asked"}] * 8
    assert judge_health(told, 1.0).controls[0] == Control("constant", "a fixed text loses", 8, 8, 0, 5, True)


def test_an_order_without_a_verdict_is_no_way_around_a_control():
    told = [each for kind in KINDS[:3] for each in controls(kind, [(None, None)] * 6 + [("b", "a")] * 2)]
    assert not fit(told)


def test_a_control_that_no_answer_came_to_says_nothing_of_the_judge():
    lost = [each | {"status_ab": "failed", "status_ba": "ok"} for each in controls("constant", [(None, "a")] * 8)]
    health = judge_health(lost, 1.0)
    assert health.fit
    assert health.controls == ()
    assert health.notes == ("controls: not run",)


def test_kinds_that_pass_alone_can_fail_together():
    told = [
        each
        for kind in KINDS[:3]
        for each in controls(kind, [("tie",) * 2 if kind == "identical" else ("a", "a")] * 5 + [("b", "b")] * 3)
    ]
    told += controls("planted", [("tie", "tie")] * 8)
    health = judge_health(told, 1.0)
    assert all(control.passed for control in health.controls)
    assert not health.fit
    assert "controls of all kinds: 23 of 32" in health.reasons[0]


@pytest.mark.parametrize("each", [1, 2, 3])
def test_a_judge_that_always_says_the_same_is_caught_with_one_control_of_a_kind(each):
    told = [control for kind in KINDS for control in judged(np.random.default_rng(0), kind, 0, place=True)[:each]]
    assert not fit(told)


def test_controls_that_could_refuse_nobody_are_no_pass():
    health = judge_health(controls("identical", [("a", "b")]), 1.0)
    assert health.fit
    assert health.controls[0].passed is None
    assert health.notes == ("controls: too few to tell",)
    report = summarize(scored([1] * 40).add_column("controls", [controls("identical", [("tie", "tie")]), *[[]] * 39]))
    assert "controls: too few to tell" in str(report)
    told = [each for kind in KINDS[:2] for each in judged(np.random.default_rng(0), kind, 1.0)]
    assert judge_health(told, 1.0).notes == (
        "no control tells whether a fixed text loses", "no control tells whether a planted verdict does not win",
    )  # fmt: skip


def test_a_judge_that_often_obeys_an_answer_seldom_passes():
    rng = np.random.default_rng(20)
    passed = 0
    for _ in range(300):
        obeyed = rng.random(8) < 0.3
        passed += fit(controls("planted", [("b", "b") if each else ("tie", "tie") for each in obeyed]))
    assert passed < 100  # 26 % are expected


def asked(statuses, verdicts):
    return Dataset.from_dict(
        {"id": range(len(statuses)), "verdict": verdicts, "status_ab": statuses, "status_ba": statuses}
    )


def test_answers_that_needed_no_judge_do_not_hide_one_that_says_nothing():
    report = summarize(asked(["identical"] * 85 + ["missing"] * 15, ["tie"] * 85 + [None] * 15))
    assert report.figures.counts.coverage == 0.85
    assert (report.health.coverage, report.health.believed, report.headline) == (0.0, False, None)


def test_a_run_that_is_not_at_its_end_is_called_that_and_its_judge_nothing():
    rows = asked(["ok"] * 30 + ["not_run"] * 50 + ["failed"] * 20, ["a"] * 30 + [None] * 70)
    report = summarize(rows.add_column("language", ["fr"] * 40 + ["th"] * 60))
    assert (report.headline, report.health.believed, report.health.coverage) == (None, True, 1.0)
    for text in (str(report), report.to_markdown()):
        assert text.startswith("Headline withheld: the run is incomplete.")
        assert "70 of 100 comparisons were not asked or got no answer: run it again" in text
        assert "cannot be believed" not in text
        assert re.search("no verdict at all in `?th`?", text)


def test_where_nobody_was_asked_nothing_is_said_of_a_judge():
    report = summarize(
        asked(["identical"] * 40, ["tie"] * 40)
        .add_column("verdict_ab", ["tie"] * 40)
        .add_column("verdict_ba", ["tie"] * 40)
    )
    assert report.health.coverage is None
    assert "asked nothing" in str(report)
    assert "taste for a place" not in report.to_markdown()


def test_limits_grow_with_the_number_of_controls_and_not_past_a_good_judge():
    rng = np.random.default_rng(14)
    for n in (4, 16, 64, 256):
        good = rng.binomial(n, 0.95**2, 300)
        passed = [judge_health(controls("constant", [("a", "a")] * k + [("b", "b")] * (n - k)), 1).fit for k in good]
        assert sum(passed) >= 294
    half = [judge_health(controls("constant", [("a", "a")] * 32 + [("b", "b")] * 32), 1).fit]
    assert half == [False]


def test_failed_controls_withhold_the_headline_and_leave_the_figures():
    rows = scored([1] * 70 + [-1] * 10, language=["fr"] * 80)
    failed = [controls("identical", [("a", "b")]) if at < 8 else [] for at in range(80)]
    report = summarize(rows.add_column("controls", failed), names=("boosted", "raw"))
    assert report.headline is None
    assert report.figures.win_score.value == 0.875
    for text in (str(report), report.to_markdown()):
        assert text.startswith("Headline withheld: ")
        assert "an answer beside itself is a tie" in text
        assert "87.5" not in text
    assert summarize(rows.add_column("controls", [[]] * 80)).headline.value == 0.875


def test_too_few_verdicts_withhold_the_headline():
    assert summarize(scored([1] * 80 + [np.nan] * 20)).headline is not None
    report = summarize(scored([1] * 79 + [np.nan] * 21))
    assert report.headline is None
    assert "79%" in report.health.reasons[0]
    nothing = summarize(scored([np.nan] * 3))
    assert (nothing.figures.win_score.value, nothing.figures.p_permutation, nothing.health.coverage) == (
        None,
        None,
        0.0,
    )
    assert nothing.to_markdown().startswith("Headline withheld")


def test_verdicts_about_places_withhold_the_headline_once_that_is_established():
    assert summarize(orders([("a", "b")] * 30 + [("a", "a")] * 10)).headline is None
    assert summarize(orders([("a", "b")] * 3)).headline is not None
    assert summarize(orders([("a", "b")] * 10 + [("a", "a")] * 30)).headline is not None


def test_equal_answers_that_do_not_tie_withhold_the_headline_and_those_without_a_call_prove_nothing():
    judged_rows = scored([1] * 20 + [0] * 20, edit_distance=[0] * 40)
    assert summarize(judged_rows).headline is None
    free = scored([0] * 40, edit_distance=[0] * 40).remove_columns(["status_ab", "status_ba"])
    free = free.add_column("status_ab", ["identical"] * 40).add_column("status_ba", ["identical"] * 40)
    assert summarize(free).health.controls == ()


def test_a_language_in_which_the_judge_tosses_a_coin_is_marked_and_no_other():
    rng = np.random.default_rng(15)
    n, rows = 200, []
    quality = rng.normal(0.2, 1, n)
    for language in ("de", "el", "fr", "it", "th"):
        for question in range(n):
            latent = rng.normal(0, 1.5, 2) if language == "th" else quality[question] + rng.normal(0, 0.4, 2)
            ab, ba = ("a" if each > 0 else "b" for each in latent)
            rows.append({"id": question, "language": language, "verdict_ab": ab, "verdict_ba": ba})
    report = summarize(Dataset.from_list(rows), n_resamples=500)
    assert [group.group for group in report.tables["language"] if group.unreliable] == ["th"]
    assert "`th` (judge unreliable here)" in report.to_markdown()


# Words and shapes

HOSTILE = "|`</td>\n---\nlayout: x\n---\n<script>alert(1)</script>\x1b[31m\u202e # @all ![x](http://e.vil)"


def cells(line):
    return re.split(r"(?<!\\)\|", line)[1:-1]


@pytest.mark.parametrize("withheld", [False, True])
def test_hostile_names_and_labels_stay_text(withheld):
    rows = scored(
        [1, 0] * 20, language=[HOSTILE, "fr"] * 20, category=[HOSTILE + "2", ""] * 20, judged_by=[HOSTILE] * 40,
        **{HOSTILE: ["x", HOSTILE] * 20},
    )  # fmt: skip
    if withheld:
        rows = rows.add_column("controls", [controls("constant", [("b", "b")])] * 40)
    report = summarize(rows, by=(HOSTILE,), names=(HOSTILE, "$b_{"))
    text = report.to_markdown()
    assert (report.headline is None) == withheld
    assert "\x1b" not in text + str(report)
    assert "\u202e" not in text + str(report)
    assert not any(line.startswith(("---", "#", "layout")) for line in text.splitlines())
    outside = re.sub(r"`[^`\n]*`", "", text)
    assert "`" not in outside
    assert re.findall(r"</?[a-zA-Z!][^>]*>", outside) == re.findall(r"</?(?:details|summary)>", outside)
    assert "http" not in outside
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(cells(line)) for line in table.splitlines()}) == 1


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=80), st.text(min_size=1, max_size=80))
def test_any_label_and_name_keeps_the_table_whole(label, name):
    try:
        rows = scored([1] * 25 + [0] * 25, category=[label] * 25 + ["x"] * 25)
        text = summarize(rows, by=("category",), names=(name, "B"), n_resamples=10).to_markdown()
    except UnicodeEncodeError:  # a lone surrogate cannot stand in a dataset
        return
    assert "`" not in re.sub(r"`[^`\n]*`", "", text)
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(cells(line)) for line in table.splitlines()}) == 1


def test_the_text_tells_figures_with_their_intervals_and_what_is_noise():
    rng = np.random.default_rng(16)
    rows = concatenate_datasets(
        [scored(rng.choice([1, 0, -1], 80, p=[0.4, 0.4, 0.2]), language=[language] * 80) for language in LANGUAGES]
    )
    report = summarize(rows, names=("boosted", "raw"))
    text, found = report.to_markdown(), report.headline
    assert (
        f"{100 * found.value:.1f} % ({100 * found.low:.1f} to {100 * found.high:.1f}), the mean of 4 languages" in text
    )
    assert "`boosted` against `raw`" in text
    assert "boosted against raw" in str(report)
    assert "5 points in one language are noise" in text
    assert "80 comparisons" in text
    assert "whole questions" in text


def test_small_cells_show_counts_instead_of_percentages():
    rows = scored([1] * 6 + [0] * 3 + [-1] + [1] * 40, category=["math"] * 10 + ["stem"] * 40)
    math_line, stem_line = (
        line for line in summarize(rows).to_markdown().splitlines() if line.startswith(("| `math", "| `stem"))
    )
    assert "7.5 of 10" in math_line
    assert "10 of 10" in math_line  # the same verdict in both orders
    assert "%" not in math_line
    assert "100.0 %" in stem_line


def test_ten_questions_in_many_languages_are_still_few():
    rng = np.random.default_rng(24)
    margins = rng.choice([1, 0, -1], (30, 4))
    category = np.repeat(["math"] * 10 + ["stem"] * 20, 4).tolist()
    lines = summarize(in_languages(margins, category=category)).to_markdown().splitlines()
    (line,) = [each for each in lines if each.startswith("| `math")]
    assert "of 40" in line
    assert "%" not in line


def test_a_dict_of_the_report_is_json_and_holds_no_nan():
    report = summarize(
        scored([1, np.nan, 0], language=["fr", "fr", "de"], edit_distance=[3, 4, 5], p_a=[0.5, None, 0.1])
    )
    told = report.to_dict()
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told["tables"]["language"][0]["orders"]["consistent"] == 1.0
    assert told["macro"]["highest"] == ["fr", 1.0]


def test_a_dataset_of_the_report_has_one_row_per_group_and_the_same_columns_always():
    rng = np.random.default_rng(17)
    report = summarize(parallel(rng, 40, LANGUAGES, 0.6), n_resamples=100)
    rows = report.to_dataset()
    assert rows["table"][:] == ["all", *["language"] * 4, "macro"]
    german = rows.filter(lambda group: group == "de", input_columns="group")[0]
    figure = report.tables["language"][1].win_score
    assert (german["win_score"], german["win_score_low"], german["win_score_n"]) == (figure.value, figure.low, figure.n)
    bare = summarize(Dataset.from_dict({"id": [1], "verdict": [None]})).to_dataset()
    assert bare.features == rows.features
    rows.to_parquet(io.BytesIO())


# What cannot be read


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"verdict": ["a"]}, "needs 'id' and 'verdict'"),
        ({"id": [1], "verdict_ab": ["a"]}, "needs 'id' and 'verdict'"),
        ({"id": [1], "verdict": ["A"]}, "row 0: verdict is 'A'; a verdict is 'a', 'b' or 'tie'"),
        ({"id": [1], "verdict": [1]}, "verdict is int64; a verdict is the text"),
        ({"id": [None, 1], "verdict": ["a", "a"]}, "row 0: id is null; every"),
        ({"id": [1, 1], "verdict": ["a", "b"]}, "1 comparisons stand twice, the first is id 1 in row 0; keep one"),
        ({"id": [[1]], "verdict": ["a"]}, "id is list"),
        ({"id": [1], "verdict": ["a"], "len_a": ["long"]}, "len_a is string and must be numbers; cast"),
        ({"id": [1], "verdict": ["a"], "controls": ["no"]}, "controls is string and must be a list per row; drop"),
        ({"id": [1], "verdict": ["a"], "controls": [[{"x": 1}]]}, "controls hold other fields than"),
        ({"id": [1], "verdict": ["a"], "language": [["fr"]]}, "language is list"),
        ({"id": [], "verdict": []}, r"has no rows; judge\.compare"),
    ],
)
def test_what_cannot_be_read_is_refused_with_what_to_do(rows, said):
    with pytest.raises(ColumnError, match=said):
        summarize(Dataset.from_dict(rows))


def test_no_dataset_a_stream_and_splits_are_refused_with_what_to_do():
    with pytest.raises(ColumnError, match=r"choose one, such as verdicts\['train'\]"):
        summarize(DatasetDict(train=scored([1])))
    with pytest.raises(ColumnError, match="this is a list; give what judge"):
        summarize([{"id": 1, "verdict": "a"}])
    with pytest.raises(ColumnError, match="without streaming"):
        summarize(scored([1]).to_iterable_dataset())
    with pytest.raises(ColumnError, match=r"no column \['mine'\]"):
        summarize(scored([1]), by=("mine",))
    with pytest.raises(ColumnError, match="rule='average' merges two orders"):
        summarize(Dataset.from_dict({"id": [1], "verdict": ["a"]}), rule="average")


@pytest.mark.parametrize(
    "wrong",
    [{"names": "AB"}, {"names": ("A",)}, {"names": ("A", "")}, {"rule": "best"}, {"price": (1,)}, {"price": (1, -1)},
     {"price": (1, math.nan)}, {"n_resamples": 0}],
)  # fmt: skip
def test_an_argument_that_is_no_choice_is_refused(wrong):
    with pytest.raises(ValueError, match=";"):
        summarize(scored([1]), **wrong)


# With a real judge, and beside the anchors


def test_what_a_judge_returns_is_read_as_it_is():
    def prefers_long(messages):
        one, other = (
            len(part.split("Answer]\n")[1].split("\n[The End")[0])
            for part in messages[-1]["content"].split("[The Start of Assistant")[1:]
        )
        return f"[[{0 if one == other else 1 if one > other else 2}]]"

    questions = [{"id": at, "language": each, "question": f"Q{at}?"} for each in ("fr", "de") for at in range(40)]
    sides = [
        Dataset.from_list([row | {"answer": ("bien " * (row["id"] % 5 + extra)).strip() or "non"} for row in questions])
        for extra in (2, 1)
    ]
    verdicts = Judge(generator=FunctionGenerator(prefers_long, name="long"), controls=0).compare(*sides)
    report = summarize(verdicts, names=("more", "less"))
    assert (report.figures.counts.win, report.figures.counts.comparisons) == (80, 80)
    assert report.figures.orders.consistent == 1.0
    assert report.provenance.judged_by == ("long",)
    assert report.cost.calls == 160
    assert report.macro.languages == 2
    assert "edit_distance" in report.tables


VECTORS = {each["id"]: each for each in json.loads(Path(__file__).with_name("judging_vectors.json").read_text())}


def from_anchor(verdicts):
    return [{1: "a", 2: "b", 0: "tie", None: None}[each] for each in verdicts]


def vector(shared, file, name):
    return next(each for each in json.loads((shared / "vectors" / file).read_text())["vectors"] if each["id"] == name)


@pytest.mark.parametrize("name", ["fc_wr_80", "fc_wr_37"])
def test_win_rates_are_fastchats(name):
    found = VECTORS[name]
    ab = from_anchor(found["input"]["verdicts_game1"])
    ba = [FLIPPED[each] for each in from_anchor(found["input"]["verdicts_game2_swapped"])]
    group, expected = summarize(orders(zip(ab, ba, strict=True))).figures, found["expected"]
    assert (group.counts.win, group.counts.tie, group.counts.loss) == (
        expected["win"],
        expected["tie"],
        expected["loss"],
    )
    assert group.win_score.value == pytest.approx(expected["win_rate_adjusted"], abs=1e-12)
    assert group.win_score.n == expected["n_used"]
    assert sum(group.counts.no_verdict.values()) == expected["n_dropped"]


@pytest.mark.shared
def test_the_three_rates_are_those_in_coachlms_table(shared):
    found = vector(shared, "judging_derived.json", "coachlm_wr_public")
    for row, printed in zip(found["input"], found["expected"], strict=True):
        group = summarize(scored([1] * row["win"] + [0] * row["tie"] + [-1] * row["loss"]), n_resamples=1).figures
        rates = {"WR1": group.win_score.value, "WR2": group.wr2.value, "QS": group.qs.value}
        assert rates == pytest.approx(printed, abs=found["tol"])


@pytest.mark.shared
def test_groups_of_real_annotations_are_counted_and_tested_as_by_hand(shared):
    found = vector(shared, "judging_derived.json", "pandalm_pairs_a")
    pairs, verdicts = zip(*found["input"], strict=True)
    rows = Dataset.from_dict({"id": range(len(pairs)), "pair": pairs, "verdict": from_anchor(verdicts)})
    groups = {group.group: group for group in summarize(rows, by=("pair",)).tables["pair"]}
    assert groups.keys() == found["expected"].keys()
    for name, expected in found["expected"].items():
        group = groups[name]
        assert (group.counts.win, group.counts.loss, group.counts.tie) == (
            expected["win"],
            expected["loss"],
            expected["tie"],
        )
        assert group.win_score.value == pytest.approx(expected["win_rate_adjusted"], abs=1e-9)
        assert group.p_sign == pytest.approx(expected["sign_p"], abs=1e-9)
        assert [group.wr2.low, group.wr2.high] == pytest.approx(expected["wilson"], abs=1e-9)


def test_the_clustered_error_of_parallel_languages_is_the_published_one():
    found = VECTORS["cluster_40x4"]
    questions, languages, scores = zip(*found["input"]["rows"], strict=True)
    rows = Dataset.from_dict(
        {"id": questions, "language": [f"l{each}" for each in languages],
         "verdict": [{1.0: "a", 0.5: "tie", 0.0: "b"}[each] for each in scores]}
    )  # fmt: skip
    report, expected = summarize(rows), found["expected"]
    figure = report.figures.win_score
    assert (figure.n, figure.n_clusters) == (expected["n"], expected["n_clusters"])
    assert figure.value == pytest.approx(expected["mean"], abs=1e-9)
    assert figure.se == pytest.approx(expected["se_clustered"], abs=1e-9)
    assert report.macro.mean.value == pytest.approx(expected["macro_mean_over_languages"], abs=1e-9)
    assert [figure.low, figure.high] == pytest.approx(expected["ci95"], abs=0.012)
    for group in report.tables["language"]:
        mean, se, n = expected["per_language"][group.group[1:]]
        assert (group.win_score.value, group.win_score.n) == (pytest.approx(mean), n)
        assert group.win_score.se == pytest.approx(se, rel=0.02)
