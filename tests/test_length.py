"""The length-controlled score is that of AlpacaEval's model, turns with its sides, and takes away length and nothing else."""

import json
import math
import random
from statistics import stdev

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midb.judging.length import length_controlled
from midb.judging.statistics import NOTHING

UNDETERMINED = (None,) * 6


@pytest.fixture(scope="module")
def derived(shared):
    vectors = json.loads((shared / "vectors" / "judging_derived.json").read_text(encoding="utf-8"))["vectors"]
    return {vector["id"]: vector for vector in vectors}


def close(value, tolerance=1e-9):
    return pytest.approx(value, abs=tolerance, rel=0)


def controlled(scores, len_a, len_b, questions=None, **options):
    """The result of one language; without questions each row is one."""
    (found,), _ = length_controlled([(scores, len_a, len_b, questions or range(len(scores)))], **options)
    return found


def rows(n, judge, seed=0, longer=0.5):
    """Scores, lengths and questions: a is the longer one in a share of the rows, and the judge sees who it is."""
    rng = random.Random(seed)
    lengths = [
        (200 + rng.randrange(400), 200) if rng.random() < longer else (200, 200 + rng.randrange(400)) for _ in range(n)
    ]
    len_a, len_b = zip(*lengths, strict=True)
    return [judge(rng, a - b) for a, b in lengths], len_a, len_b, list(range(n))


def fair(rng, gap):
    return rng.choices([1, 0.5, 0], [5, 2, 3])[0]


def taste(gap, scale=250):
    """How sure a judge is of a who looks at nothing but the length."""
    return 1 / (1 + math.exp(-3 * math.tanh(gap / scale)))


def fond_of_length(rng, gap):
    return float(rng.random() < taste(gap))


judged = st.builds(
    rows,
    st.integers(30, 90),
    st.sampled_from([fair, fond_of_length]),
    seed=st.integers(0, 10**6),
    longer=st.sampled_from([0.2, 0.5, 0.7]),
)


@settings(max_examples=30, deadline=None)
@given(judged)
def test_exchanging_the_sides_turns_the_result_exactly(data):
    scores, len_a, len_b, questions = data
    ours = controlled(scores, len_a, len_b, questions, n_resamples=200)
    theirs = controlled([1 - s for s in scores], len_b, len_a, questions, n_resamples=200)
    assert ours.n == theirs.n == len(scores)
    if ours.win_score is None:
        assert theirs[:6] == UNDETERMINED
        return
    assert 0 < ours.win_score < 1
    assert ours.win_score + theirs.win_score == close(1, 1e-12)
    assert ours.phi == theirs.phi
    assert (ours.low is None) == (theirs.low is None)
    if ours.low is not None:
        assert [ours.low, ours.high] == close([1 - theirs.high, 1 - theirs.low], 1e-12)
        assert [ours.phi_low, ours.phi_high] == close([theirs.phi_low, theirs.phi_high], 1e-12)
        assert ours.low <= ours.high


def test_the_same_answers_score_one_half():
    found = controlled([0.5] * 40, [300] * 40, [300] * 40)
    assert (found.win_score, found.phi, found.n) == (0.5, None, 40)
    assert 0.5 - found.low == close(found.high - 0.5)
    assert 0.02 < found.high - 0.5 < 0.1  # forty ties are no proof that there is nothing else


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([0, 0.5, 1]), min_size=20, max_size=60), st.integers(1, 500), st.integers(0, 10**6))
def test_where_length_tells_nothing_the_score_is_the_plain_one(scores, gap, seed):
    # Every score is met once with a longer and once with a shorter answer.
    shuffled = [(score, sign * gap) for score in scores for sign in (1, -1)]
    random.Random(seed).shuffle(shuffled)
    found = controlled(
        [s for s, _ in shuffled], [1_000 + g for _, g in shuffled], [1_000] * len(shuffled), n_resamples=50
    )
    if len(set(scores)) == 1 and scores[0] != 0.5:
        assert found[:6] == UNDETERMINED
        return
    assert found.win_score == close(sum(scores) / len(scores))
    assert found.phi == close(0)


def test_a_judge_that_does_not_look_at_length_keeps_its_score():
    scores, *lengths = rows(800, fair, seed=4, longer=0.6)
    found = controlled(scores, *lengths)
    assert found.win_score == close(sum(scores) / 800, 0.01)
    assert found.phi_low < 0 < found.phi_high
    assert found.low < 0.6 < found.high


def test_a_judge_that_looks_at_nothing_but_length_says_nothing_of_the_systems():
    scores, *lengths = rows(800, fond_of_length, seed=6, longer=0.9)
    found = controlled(scores, *lengths)
    assert sum(scores) / 800 > 0.7
    assert found.low < 0.5 < found.high
    assert found.phi_low > 2
    # Told as preferences, without the luck of the draw.
    gaps = [a - b for a, b in zip(*lengths[:2], strict=True)]
    sure = controlled([taste(gap, stdev(gaps)) for gap in gaps], *lengths)
    assert (sure.win_score, sure.phi) == close((0.5, 3))


@pytest.mark.parametrize(
    ("scores", "gaps"),
    [
        ([1, 0, 0.5] * 9, [5, -7, 3] * 9),  # 27 rows
        ([1.0] * 40, [5, -7] * 20),  # a always wins
        ([1.0, 0.0] * 20, [5, -7] * 20),  # the longer answer always wins
        ([1.0, 0.5, 0.0, 0.5] * 10, [5, 0, -7, 0] * 10),  # and of equally long answers neither
        ([1, 0, 0.5, 1] * 10, [100] * 40),  # always as much longer: length and system are one
        ([None] * 40, [5, -7] * 20),
        ([], []),
    ],
)
def test_what_the_rows_do_not_determine_is_none(scores, gaps):
    found = controlled(scores, gaps, [0] * len(gaps))
    assert found[:6] == UNDETERMINED
    assert found.n == sum(score is not None for score in scores)


def test_rows_without_a_verdict_are_left_out():
    scores, len_a, len_b, questions = rows(60, fair, seed=2)
    gaps = [None, *scores[:30], None, *scores[30:]]
    found = controlled(
        gaps, [9_999, *len_a[:30], 0, *len_a[30:]], [0, *len_b[:30], 9_999, *len_b[30:]],
        ["x", *questions[:30], "y", *questions[30:]],
    )  # fmt: skip
    assert found == controlled(scores, len_a, len_b, questions)


def test_the_interval_resamples_questions_and_not_rows():
    scores, len_a, len_b, questions = rows(100, fair, seed=1)
    once = controlled(scores, len_a, len_b, questions)
    fourfold = [part * 4 for part in (scores, list(len_a), list(len_b))]
    together, apart = controlled(*fourfold, questions * 4), controlled(*fourfold)
    assert together.high - together.low == close(once.high - once.low, 0.01)
    assert apart.high - apart.low < 0.6 * (once.high - once.low)
    assert together == controlled(*fourfold, questions * 4)
    assert together != controlled(*fourfold, questions * 4, seed=1)


@pytest.mark.parametrize("name", [int, str, lambda at: (at, f"turn {at}"), lambda at: at if at % 2 else f"q{at}"])
def test_the_order_of_the_rows_does_not_matter(name):
    scores, len_a, len_b, questions = rows(60, fair, seed=9)
    told = list(zip(scores, len_a, len_b, map(name, [at // 2 for at in questions]), strict=True))
    shuffled = random.Random(0).sample(told, len(told))
    ours, theirs = (controlled(*zip(*each, strict=True)) for each in (told, shuffled))
    assert ours[:6] == close(list(theirs[:6]))


def test_the_mean_of_the_languages_draws_a_question_in_all_of_them_at_once():
    together = rows(150, fair, seed=3)
    controls, twice = length_controlled([together, together])
    assert controls[0] == controls[1] == controlled(*together)
    assert [twice.value, twice.low, twice.high] == close(list(controls[0][:3]))
    assert (twice.n, twice.n_clusters) == (300, 150)
    elsewhere = [*rows(150, fair, seed=4)[:3], list(range(1_000, 1_150))]
    _, apart = length_controlled([together, elsewhere])
    assert apart.high - apart.low < 0.85 * (twice.high - twice.low)
    (_, none), alone = length_controlled([together, ([1.0] * 5, [1] * 5, [2] * 5, range(5))])
    assert none.win_score is None
    assert alone.value == controls[0].win_score
    assert length_controlled([]) == ([], NOTHING)


def test_few_losses_leave_too_many_resamples_without_a_fit_for_an_interval():
    _, len_a, len_b, questions = rows(60, fair, seed=3)
    found = controlled([0.0, 0.0, *[1.0] * 58], [10, *len_a[1:]], len_b, questions)
    assert found.win_score is not None
    assert found.low is found.high is found.phi_low is found.phi_high is None


# AlpacaEval


@pytest.mark.shared
def test_our_fit_is_the_unpenalised_one_of_statsmodels(derived):
    vector = derived["lc_min_805_a"]
    given, check = vector["input"], vector["independent_check"]
    scores = [p - 1 for p in given["preference"]]
    found = controlled(scores, given["len_2"], given["len_1"])
    assert 100 * found.win_score == close(check["length_controlled_winrate"], 1e-6)
    assert -found.phi == close(check["coefficients"][0], 1e-6)  # its gap is baseline less model
    assert 100 * found.win_score == close(vector["expected"]["length_controlled_winrate"], 0.15)
    assert found.low < found.win_score < found.high


def test_a_weak_taste_for_length_among_few_rows_is_controlled():
    # A fit with AlpacaEval's penalty sets this coefficient to exactly 0.
    judged = rows(60, lambda rng, gap: float(rng.random() < 0.08 + 0.06 * (gap > 0)), seed=11)
    assert abs(controlled(*judged).phi) > 0.1
