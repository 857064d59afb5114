"""A judge's health: the figures are those of the tools they come from, and none of them flatters a judge that knows nothing."""

import json
import random
from collections import Counter
from itertools import combinations, product
from pathlib import Path
from statistics import stdev

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midb.judging.agreement import (
    ORDER,
    against_people,
    agreement,
    allocate_labels,
    calibrated_rate,
    cross_language,
    fleiss_kappa,
    order_consistency,
    prediction_powered,
)

VECTORS = {
    vector["id"]: vector
    for vector in json.loads(Path(__file__).with_name("judging_vectors.json").read_text(encoding="utf-8"))
}
FIRST = {1: "a", 2: "b", 0: "tie", None: None}  # a was shown first
SECOND = {1: "b", 2: "a", 0: "tie", None: None}

verdict = st.sampled_from(["a", "b", "tie", None])
pairs = st.lists(st.tuples(verdict, verdict), max_size=60)


@pytest.fixture(scope="module")
def derived(shared):
    vectors = json.loads((shared / "vectors" / "judging_derived.json").read_text(encoding="utf-8"))["vectors"]
    return {vector["id"]: vector for vector in vectors}


def close(value, tolerance=1e-9):
    return pytest.approx(value, abs=tolerance, rel=0)


def named(labels):
    return [FIRST[label] for label in labels]


def turned(verdicts):
    return [{"a": "b", "b": "a"}.get(v, v) for v in verdicts]


# With itself


def test_order_consistency_is_judgelms():
    given, expected = VECTORS["judgelm_60"]["input"], VECTORS["judgelm_60"]["expected"]
    ab, ba = named(given["sequential"]), [SECOND[label] for label in given["reversed_swapped"]]
    found = order_consistency(ab, ba)
    assert found.n == expected["total_num"]
    assert found.consistent == close(expected["consistency"])
    assert found.first == close(expected["perfer_before_rate"])
    assert found.second == close(expected["perfer_after_rate"])
    assert found.first - found.second == close(expected["delta_bias"])
    assert found.opposite + found.mixed == close(expected["total_bias"])
    assert agreement(ab, named(given["gold"])).share == close(expected["accuracy"])


@pytest.mark.shared
@pytest.mark.parametrize("name", ["pos_gpt35", "pos_gemini"])
def test_position_bias_is_that_of_shi_et_al(derived, name):
    rows, expected = derived[name]["input"]["rows"], derived[name]["expected"]

    def consistency(of):
        return order_consistency(*zip(*[(FIRST[one], SECOND[two]) for *_, one, two in of], strict=True))

    found = consistency(rows)
    assert found.consistent == close(expected["positional_consistency"])
    assert found.second * found.n == close(expected["recency"])
    assert found.first * found.n == close(expected["primacy"])
    groups = [consistency([row for row in rows if tuple(row[1:3]) == key]) for key in {tuple(row[1:3]) for row in rows}]
    assert sum(group.preference or 0 for group in groups) / len(groups) == close(expected["mean_preference_score"])
    for model, figures in expected["per_model"].items():
        of_model = consistency([row for row in rows if row[2] == model])
        counts = [of_model.first * of_model.n, of_model.second * of_model.n]
        assert counts == close([figures["primacy"], figures["recency"]])
        assert of_model.preference == close(figures["mean_preference"])


@given(pairs)
def test_the_shares_of_consistency_add_up_and_know_no_dataset(found):
    ab, ba = [x for x, _ in found], [y for _, y in found]
    ours, other = order_consistency(ab, ba), order_consistency(turned(ba), turned(ab))
    assert (ours.pairs, ours.n) == (len(found), sum(None not in pair for pair in found))
    if not ours.n:
        assert ours[2:] == (None,) * 6
        return
    assert ours.consistent + ours.opposite + ours.mixed == close(1)
    assert ours.first + ours.second == close(ours.opposite + ours.mixed)
    assert -1 <= ours.preference <= 1
    # Datasets exchanged: what was the ba order is now the ab order, and everything else stays.
    assert other == close(ours)


def test_a_judge_that_always_takes_the_first_place_is_seen():
    found = order_consistency(["a"] * 8, ["b"] * 8)
    assert (found.consistent, found.opposite, found.first, found.preference) == (0, 1, 1, -1)


# Two or more raters


def test_a_weighted_kappa_takes_a_tie_as_half_way():
    vector = VECTORS["kappa_small_public"]
    a, b = named(vector["input"]["a"]), named(vector["input"]["b"])
    assert agreement(a, b).kappa() == close(vector["expected"]["nominal"])
    assert agreement(a, b).kappa("linear") == close(vector["expected"]["linear"])


def test_the_share_of_the_same_verdict_is_evaluates_exact_match():
    given, expected = VECTORS["evaluate_60"]["input"], VECTORS["evaluate_60"]["expected"]
    found = agreement(named(given["predictions1"]), named(given["predictions2"]))
    assert found.share == close(expected["exact_match"], 1e-6)


@pytest.mark.shared
def test_annotators_and_judges_agree_as_published(derived):
    given, expected = derived["pandalm_0_400"]["input"], derived["pandalm_0_400"]["expected"]
    raters = {name: named(labels) for name, labels in given.items()}
    for one, other in combinations(["a1", "a2", "a3"], 2):
        with_ties = agreement(raters[one], raters[other])
        without = agreement(raters[one], raters[other], ties=False)
        assert with_ties.kappa() == close(expected[f"cohen_{one}_{other}"])
        assert with_ties.share == close(expected[f"raw_agreement_{one}_{other}"])
        assert without.share == close(expected[f"agreement_without_ties_{one}_{other}"])
        assert without.n == expected[f"n_without_ties_{one}_{other}"]
    people = [raters[name] for name in ("a1", "a2", "a3")]
    votes = [Counter(three) for three in zip(*people, strict=True)]
    assert fleiss_kappa(np.array([[vote[v] for v in ORDER] for vote in votes])) == close(expected["fleiss"])
    majority = [(vote.most_common(1)[0][0] if max(vote.values()) > 1 else None) for vote in votes]
    judges = {
        "panda_vs_majority": raters["panda"],
        "gpt_failures_as_ties_vs_majority": [v or "tie" for v in raters["gpt"]],
        "gpt_failures_dropped_vs_majority": raters["gpt"],
    }
    for name, judge in judges.items():
        found = agreement(judge, majority)
        assert found.n == expected[name]["n"]
        assert found.share == close(expected[name]["accuracy"])
        assert found.kappa() == close(expected[name]["cohen"])
        published = [1, 0, 2]  # tie, a, b
        assert [[found.confusion[i][j] for j in published] for i in published] == expected[name]["confusion"]


def test_no_kappa_for_a_rater_who_always_says_the_same():
    assert agreement(["a", "a"], ["a", "a"]).kappa() is None
    assert agreement(["a", "a", "a"], ["a", "b", "tie"]).kappa("linear") is None
    assert agreement([], []).kappa() is None
    for table in ([[3, 0, 0], [3, 0, 0]], [[1, 0, 0], [0, 1, 0]], []):
        assert fleiss_kappa(np.array(table)) is None


@given(pairs)
def test_agreement_is_mutual_and_a_perfect_one_has_kappa_one(found):
    one, other = [x for x, _ in found], [y for _, y in found]
    ours, theirs = agreement(one, other), agreement(other, one)
    assert (ours.n, ours.agreed) == (theirs.n, theirs.agreed)
    assert (ours.kappa() is None) == (theirs.kappa() is None)
    assert ours.kappa() is None or ours.kappa() == close(theirs.kappa())
    assert agreement(one, one).kappa() in (None, close(1))
    assert agreement(one, other, ties=False).n == sum(pair in product("ab", "ab") for pair in found)


def test_the_interval_of_an_agreement_widens_when_its_pairs_are_of_few_questions():
    rng = random.Random(5)
    one = [rng.choice(ORDER) for _ in range(20)] * 6
    other = [v if rng.random() < 0.7 else rng.choice(ORDER) for v in one[:20]] * 6
    apart = agreement(one, other, clusters=range(120))
    together = agreement(one, other, clusters=list(range(20)) * 6)
    assert apart.low < apart.share < apart.high
    assert together.high - together.low > 2 * (apart.high - apart.low)
    assert agreement(one, other).low is None
    assert agreement([], [], clusters=[]).share is None


# With the other languages


def test_a_rater_against_the_others_agrees_as_in_alpaca_eval():
    vector = VECTORS["ae_agreement_public"]

    def compare(questions):
        rows = [(at, f"annotator {of}", FIRST[v]) for at, item in enumerate(questions) for of, v in enumerate(item)]
        return [language.share for language in cross_language(*zip(*rows, strict=True)).languages.values()]

    shares, expected = compare(vector["input"]), vector["expected"]["one_vs_3"]
    assert sum(shares) / len(shares) == close(expected["score"])
    assert stdev(shares) / len(shares) ** 0.5 == close(expected["sem_annotators"])
    of_items = [compare([item]) for item in vector["input"]]
    means = [sum(shares) / len(shares) for shares in of_items]
    assert stdev(means) / len(means) ** 0.5 == close(expected["sem_samples"])


def sixteen(unrelated=(), n=80, noise=0.25, seed=1):
    """Verdicts on parallel questions: each language repeats the truth with noise, unrelated ones know nothing of it."""
    rng = random.Random(seed)
    truth = [rng.choice(ORDER) for _ in range(n)]
    for language in (f"l{at}" for at in range(16)):
        for question, v in enumerate(truth):
            guess = language in unrelated or rng.random() < noise
            yield question, language, rng.choice(ORDER) if guess else v


def test_a_language_whose_verdicts_are_unrelated_stands_out():
    found = cross_language(*zip(*sixteen(unrelated=["l3", "l8"]), strict=True))
    assert found.complete == 80
    for language, figures in found.languages.items():
        if language in ("l3", "l8"):
            assert figures.low < figures.chance < figures.high
            assert figures.p_value > 0.05
        else:
            assert figures.low > 0.6
            assert figures.p_value < 1e-6
            assert figures.kappa > 0.5
    assert 0.3 < found.fleiss < 0.7


def test_gaps_leave_questions_out_and_no_majority_counts_for_nobody():
    rows = [
        (1, "de", "a"), (1, "th", "a"), (1, "ja", "b"),
        (2, "de", "a"), (2, "th", "b"), (2, "ja", None),
        (3, "de", "tie"), (3, "th", None),
    ]  # fmt: skip
    found = cross_language(*zip(*rows, strict=True))
    assert found.complete == 1
    # Question 1: the others of de and of th are divided; question 2: one other each; question 3: nobody else.
    assert {language: (f.n, f.share) for language, f in found.languages.items()} == {
        "de": (1, 0.0), "th": (1, 0.0), "ja": (1, 0.0),
    }  # fmt: skip
    assert cross_language([1, 2], ["de", "de"], ["a", "b"]).languages["de"] == (0, *[None] * 6)
    assert cross_language([], [], []).fleiss is None


def test_two_verdicts_on_one_question_are_refused():
    with pytest.raises(ValueError, match=r"question 7 has several verdicts in 'th'; name the turn"):
        cross_language([7, 7, 7], ["de", "th", "th"], ["a", "a", "b"])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(verdict, min_size=3, max_size=3), max_size=12))
def test_cross_language_agreement_knows_no_side(questions):
    rows = [(at, language, v) for at, three in enumerate(questions) for language, v in zip("xyz", three, strict=True)]
    at, languages, verdicts = zip(*rows, strict=True) if rows else ((), (), ())
    ours = cross_language(at, languages, verdicts, n_resamples=50)
    other = cross_language(at, languages, turned(verdicts), n_resamples=50)
    for language, figures in ours.languages.items():
        assert figures == tuple(f if f is None else close(f) for f in other.languages[language])
        assert figures.share is None or 0 <= figures.low <= figures.high <= 1


# With people


def test_agreement_with_people_is_fastchats_in_both_set_ups():
    given, expected = VECTORS["fc_agree_6q"]["input"], VECTORS["fc_agree_6q"]["expected"]

    def keyed(rows):
        """Votes on the pair in its alphabetical order, whichever way it was shown; an inconsistent tie is a tie."""
        votes = {}
        for question, turn, a, b, winner, *_ in rows:
            v = {"model_a": "a", "model_b": "b"}.get(winner, "tie")
            votes.setdefault((turn, question, *sorted((a, b))), []).extend([v] if a < b else turned([v]))
        return votes

    judge = {key: vote for key, (vote,) in keyed(given["judge"]).items()}
    people = keyed(given["human"])
    for turn, (name, ties) in product((1, 2), (("with", True), ("without", False))):
        of_turn = {key: cast for key, cast in people.items() if key[0] == turn}
        found = against_people(judge, of_turn, ties=ties)
        for who, figures in (("judge", found.judge), ("human", found.people)):
            assert [figures.agreed, figures.n] == expected[f"turn{turn}_{who}_human_{name}_ties"]


def test_a_rate_is_corrected_by_labels_as_published():
    vector = VECTORS["calibrated_rate_public"]
    for row, expected in zip(vector["input"], vector["expected"], strict=True):
        rates = {"specificity": row["q0"], "sensitivity": row["q1"]}
        found = calibrated_rate(row["p"], row["n"], **rates, n_negative=row["m0"], n_positive=row["m1"])
        assert found.score == close(expected["theta"])
        assert [found.low, found.high] == close(expected["ci95"])
        assert list(allocate_labels(row["m0"] + row["m1"], row["p"], **rates)) == expected["allocation"]


def test_a_judge_no_better_than_chance_cannot_be_corrected():
    found = calibrated_rate(0.6, 100, specificity=0.4, sensitivity=0.6, n_negative=20, n_positive=20)
    assert found == (None, None, None)


def test_a_score_is_corrected_by_labels_as_ppi_does():
    given, expected = VECTORS["ppi_public"]["input"], VECTORS["ppi_public"]["expected"]
    scores = given["human"], given["judge_on_labelled"], given["judge_on_rest"]
    for name, tuned in (("ppi_lam1", False), ("ppi_tuned", True)):
        found = prediction_powered(*scores, tuned=tuned)
        assert found.score == close(expected[name], 1e-6)
        assert [found.low, found.high] == close(expected[f"{name}_ci95"], 1e-6)
    assert prediction_powered([1], [1], given["judge_on_rest"]) == (None, None, None)


def test_labels_weigh_all_where_the_judge_says_the_same_of_everything():
    found = prediction_powered([1, 0, 0.5, 1], [0.5] * 4, [0.5] * 10)
    assert found.score == close(0.625)
