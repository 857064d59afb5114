"""Systems are ranked as evalica, FastChat and Arena-Hard rank them, and one without a finite score says so in words."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from midb.errors import ColumnError
from midb.judging.ranking import rank
from midb.judging.statistics import joint_bootstrap
from midb.judging.verdict import merge, unswap

VECTORS = {
    vector["id"]: vector
    for vector in json.loads(Path(__file__).with_name("judging_vectors.json").read_text(encoding="utf-8"))
}
VERDICT = {1: "a", 2: "b", 0: "tie", None: None}

cast = st.lists(st.sampled_from(["a", "b", "tie", None]), max_size=12)


@pytest.fixture(scope="module")
def derived(shared):
    vectors = json.loads((shared / "vectors" / "judging_derived.json").read_text(encoding="utf-8"))["vectors"]
    return {vector["id"]: vector for vector in vectors}


def close(value, tolerance=1e-9):
    return pytest.approx(value, abs=tolerance, rel=0)


def by_pair(battles):
    verdicts = {}
    for x, y, verdict in battles:
        verdicts.setdefault((x, y), []).append(verdict)
    return verdicts


def evalicas(vector):
    given = vector["input"]
    return by_pair(zip(given["xs"], given["ys"], map(VERDICT.get, given["winners"]), strict=True))


def meets(ranking, vector):
    expected, tolerance = vector["expected"], vector["tol"]
    scores = {system.name: system.score for system in ranking.systems}
    assert scores == close(expected["bradley_terry"], tolerance)
    assert {s.name: s.win_rate for s in ranking.systems} == close(expected["average_win_rate"], tolerance)
    assert {s.name: s.counts.win + s.counts.tie / 2 for s in ranking.systems} == close(expected["counting"], tolerance)
    assert list(scores) == sorted(scores, key=lambda name: -scores[name])
    for name, row in expected["bt_pairwise"].items():
        assert ranking.win_probability[name] == close(row, tolerance)


def win_score(counts):
    return (counts.win + counts.tie / 2) / sum(counts)


def test_two_systems_are_ranked_by_their_win_score_as_evalica_does():
    ranking = rank(evalicas(VECTORS["ev_two"]))
    meets(ranking, VECTORS["ev_two"])
    assert ranking.win_probability["midb"]["raw"] == close(win_score(ranking.systems[0].counts), 1e-6)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["ev_simple", "ev_food"])
def test_several_systems_are_ranked_as_evalica_does(derived, name):
    meets(rank(evalicas(derived[name])), derived[name])


def test_the_interval_of_a_mean_win_rate_is_evalicas():
    vector = VECTORS["ev_boot_awr"]
    verdicts = evalicas(vector)
    ranking = rank(verdicts, ids={pair: range(len(found)) for pair, found in verdicts.items()})
    for system in ranking.systems:
        expected = {end: vector["expected"][end][system.name] for end in ("point", "low", "high")}
        assert system.win_rate == close(expected["point"], vector["tol"]["point"])
        assert [system.low, system.high] == close(
            [expected["low"], expected["high"]], vector["tol"]["interval_other_rng"]
        )


def test_counts_over_all_pairs_are_fastchats():
    vector = VECTORS["fc_all_pairs_12q"]
    ranking = rank(by_pair(
        (a, b, merge(VERDICT[first], unswap(VERDICT[swapped])))
        for _, a, b, first, swapped in vector["input"]["rows"]
    ))  # fmt: skip
    for system in ranking.systems:
        c, expected = system.counts, vector["expected"][system.name]
        found = {"win": c.win, "loss": c.loss, "tie": c.tie, "win_rate": c.win / sum(c), "loss_rate": c.loss / sum(c)}
        assert {**found, "win_rate_adjusted": win_score(c)} == close(expected, 1e-12)


# Arena-Hard: labels of two games, the baseline shown first in game 1; a strong label is several battles.


def arena_battles(given, strong, whole):
    """Question, model and verdict for the model; `whole` drops both games of a row that lacks one label."""
    for question, model, *games in given["rows"]:
        if whole and None in games:
            continue
        for label, first in zip(games, ("b", "a"), strict=True):
            if label is not None:
                shown_first = {"A": first, "B": unswap(first)}.get(label[0] if "=" not in label else "", "tie")
                yield from [(question, model, shown_first)] * (strong if len(label) == 4 else 1)


@pytest.mark.parametrize("name", ["ah1_two_models", "ah1_three_w1"])
def test_elo_and_win_rates_are_arena_hards(name):
    given, expected, tolerance = (VECTORS[name][part] for part in ("input", "expected", "tol"))
    battles = list(arena_battles(given, given["multiplier"], whole=False))
    baseline = given["baseline"]
    verdicts = by_pair((model, baseline, verdict) for _, model, verdict in battles)
    assert len(battles) == expected["n_battles"]
    labels = {"model_b": "a", "model_a": "b", "tie": "tie"}
    for counted, n in expected["battles"].items():
        model, label = counted.split("|")
        assert verdicts[model, baseline].count(labels[label]) == n
    # It resamples battles: each is a question of its own here.
    ranking = rank(verdicts, ids={pair: [(*pair, at) for at in range(len(v))] for pair, v in verdicts.items()})
    scores = {system.name: system.score for system in ranking.systems}
    elo = {model: 1000 + 400 * math.log10(score / scores[baseline]) for model, score in scores.items()}
    assert elo == close(expected["elo"], tolerance["elo"])
    percent = {model: 100 * row[baseline] for model, row in ranking.win_probability.items()}
    assert percent == close(expected["win_rate_pct"], tolerance["win_rate_pct"])
    for system in ranking.systems:
        if system.name != baseline:  # whose mean is over all of the models
            ends = [100 * system.low, 100 * system.high]
            published = [expected[f"bootstrap_{end}_pct"][system.name] for end in ("lower", "upper")]
            assert ends == close(published, tolerance["bootstrap"])


@pytest.mark.parametrize("name", ["ah2_two", "ah2_one"])
def test_scores_and_win_rates_are_those_of_arena_hard_2(name):
    given, expected, tolerance = (VECTORS[name][part] for part in ("input", "expected", "tol"))
    battles = list(arena_battles(given, given["weight"], whole=True))
    ranking = rank(by_pair((model, given["baseline"], verdict) for _, model, verdict in battles))
    chances = {model: row[given["baseline"]] for model, row in ranking.win_probability.items()}
    assert chances == close(expected["bt_winrate"], tolerance["bt_winrate"])
    counts = {system.name: system.counts for system in ranking.systems}
    for model, figures in expected["per_model"].items():
        assert sum(counts[model]) == figures["n_scores"]
        assert win_score(counts[model]) == close(figures["mean_score"], tolerance["mean_score"])
        scores = [{"a": 1, "tie": 0.5, "b": 0}[verdict] for _, of, verdict in battles if of == model]
        draws = joint_bootstrap([[score] for score in scores], [[1]] * len(scores))[:, 0]  # it resamples battles
        published = [figures[point] for point in ("boot_mean", "q05", "q95")]
        assert [draws.mean(), *np.quantile(draws, [0.05, 0.95])] == close(published, tolerance["boot"])


# Our own


def three(n=60):
    verdicts = {
        ("best", "good"): ["a", "tie", "a", "b"] * (n // 4),
        ("good", "poor"): ["a", "a", "tie", "b", None] * (n // 5),
        ("poor", "best"): ["b", "b", "a"] * (n // 3),
    }
    return verdicts, {pair: list(range(len(found))) for pair, found in verdicts.items()}


def test_a_ranking_of_stored_verdicts_is_that_of_plain_ones():
    verdicts, ids = three()
    stored = {
        pair: Dataset.from_dict({"id": ids[pair], "language": ["de"] * len(found), "verdict": found})
        for pair, found in verdicts.items()
    }
    ranking = rank(verdicts, ids=ids)
    assert rank(stored) == ranking
    assert [system.name for system in ranking.systems] == ["best", "good", "poor"]
    assert ranking.no_verdict == 12
    assert all(s.score_low < s.score < s.score_high and s.low < s.win_rate < s.high for s in ranking.systems)


def test_without_questions_there_is_an_order_and_no_interval():
    verdicts, ids = three()
    for some in (None, {pair: ids[pair] for pair in list(ids)[:2]}):
        for with_ids, without in zip(rank(verdicts, ids=ids).systems, rank(verdicts, ids=some).systems, strict=True):
            assert (without.name, without.score, without.win_rate) == (with_ids.name, with_ids.score, with_ids.win_rate)
            assert (without.score_low, without.score_high, without.low, without.high) == (None,) * 4


def test_a_question_counts_once_however_often_it_was_judged():
    verdicts, ids = three()
    once = rank(verdicts, ids=ids).systems
    languages = rank(
        {pair: found * 16 for pair, found in verdicts.items()}, ids={p: v * 16 for p, v in ids.items()}
    ).systems
    for end in ("low", "high"):
        assert [getattr(s, end) for s in languages] == close([getattr(s, end) for s in once])


def test_the_direction_of_a_pair_does_not_matter():
    verdicts, _ = three()
    turned = {(b, a): [unswap(v) for v in found] for (a, b), found in verdicts.items()}
    halves = {pair: found[:20] for pair, found in verdicts.items()} | {
        pair: found[20:] for pair, found in turned.items()
    }
    for other, ours in ((rank(found), rank(verdicts)) for found in (turned, halves)):
        assert [(s.name, s.counts) for s in other.systems] == [(s.name, s.counts) for s in ours.systems]
        assert [s.score for s in other.systems] == close([s.score for s in ours.systems])


def test_who_never_loses_or_never_wins_has_a_place_and_no_score():
    verdicts, ids = three()
    ranking = rank({**verdicts, ("null", "good"): ["b"] * 9, ("star", "best"): ["a"] * 9, ("star", "null"): ["a"] * 9})
    assert [system.name for system in ranking.systems] == ["star", "best", "good", "poor", "null"]
    assert [system.score is None for system in ranking.systems] == [True, False, False, False, True]
    assert [system.score for system in ranking.systems[1:4]] == [s.score for s in rank(verdicts, ids=ids).systems]
    assert ranking.systems[0].win_rate == 1
    assert ranking.win_probability["star"]["best"] is None
    assert ranking.notes == (
        "star never loses to those ranked below: no finite score",
        "null never wins against those ranked above: no finite score",
    )


def test_a_clean_sweep_is_an_order_without_any_score():
    ranking = rank(
        {("a", "b"): ["a"], ("b", "c"): ["a"], ("a", "c"): ["a"]},
        ids={("a", "b"): [1], ("b", "c"): [1], ("a", "c"): [1]},
    )
    assert [(s.name, s.score, s.win_rate, s.low, s.high) for s in ranking.systems] == [
        ("a", None, 1, 1, 1), ("b", None, 0.5, 0.5, 0.5), ("c", None, 0, 0, 0),
    ]  # fmt: skip
    assert "b has no opponent between" in ranking.notes[-1]


def test_groups_that_never_met_or_never_lost_to_each_other_are_named():
    apart = rank({("a", "b"): ["a", "b"], ("c", "d"): ["a", "a", "b"]})
    assert [system.name for system in apart.systems] == ["c", "a", "b", "d"]
    assert {system.score for system in apart.systems} == {None}
    assert apart.notes[0].startswith("a, b, c, d: no finite scores")


def test_a_system_without_a_verdict_is_left_out_and_named():
    ranking = rank({("a", "b"): ["a", "b", "tie"], ("a", "ghost"): [None, None]})
    assert [system.name for system in ranking.systems] == ["a", "b"]
    assert ranking.no_verdict == 2
    assert ranking.notes == ("ghost has no verdict and is left out",)


def test_one_rare_loss_leaves_too_many_resamples_without_a_score_for_an_interval():
    star, other = rank({("star", "other"): ["a"] * 19 + ["b"]}, ids={("star", "other"): range(20)}).systems
    assert star.score == close(math.sqrt(19), 1e-6)
    assert star.score_low is star.score_high is other.score_low is None
    assert star.low < 0.95 < star.high == 1


@pytest.mark.parametrize(
    ("verdicts", "ids", "error", "message"),
    [
        ({("a", "a"): ["a"]}, None, ValueError, "'a' meets itself"),
        ({("a", "b"): [None]}, None, ValueError, "no verdict to rank by"),
        ({}, None, ValueError, "no verdict to rank by"),
        ({("a", "b"): ["a", "b"]}, {("a", "b"): [1]}, ValueError, "2 verdicts and 1 ids"),
        (
            {("a", "b"): Dataset.from_dict({"id": [1], "winner": ["a"]})},
            None,
            ColumnError,
            "no column verdict .found: id, winner",
        ),
    ],
)
def test_what_cannot_be_ranked_is_refused(verdicts, ids, error, message):
    with pytest.raises(error, match=message):
        rank(verdicts, ids=ids)


def test_a_ranking_is_json_and_markdown():
    verdicts, ids = three()
    ranking = rank({**verdicts, ("good", "nu|l"): ["a"] * 5}, ids={**ids, ("good", "nu|l"): range(5)})
    stored = json.loads(json.dumps(ranking.to_dict(), allow_nan=False))
    assert stored["systems"][0]["name"] == "best"
    assert stored["systems"][0]["counts"] == {"win": 70, "tie": 15, "loss": 35}
    assert stored["systems"][-1]["score"] is stored["win_probability"]["good"]["nu|l"] is None
    order, chances, notes = ranking.to_markdown().split("\n\n")
    for table, columns in ((order, 9), (chances, 5)):
        assert {line.count("|") for line in table.splitlines()} == {columns + 1}
        assert len(table.splitlines()) == 2 + 4
    assert notes == "- nu|l never wins against those ranked above: no finite score\n"


@settings(max_examples=40, deadline=None)
@given(st.fixed_dictionaries({("x", "y"): cast, ("y", "z"): cast, ("x", "z"): cast, ("z", "w"): cast}))
def test_every_system_with_a_verdict_has_a_place_and_no_figure_is_other_than_finite(verdicts):
    known = {name for pair, found in verdicts.items() for name in pair if any(found)}
    if not known:
        return
    ids = {pair: range(len(found)) for pair, found in verdicts.items()}
    ranking = rank(verdicts, ids=ids, n_resamples=20)
    json.dumps(ranking.to_dict(), allow_nan=False)
    assert {system.name for system in ranking.systems} == known
    scores = [system.score for system in ranking.systems if system.score is not None]
    assert scores == sorted(scores, reverse=True)
    assert not scores or math.prod(scores) == close(1, 1e-6)
    for system in ranking.systems:
        assert 0 <= system.low <= system.high <= 1
        for other, chance in ranking.win_probability[system.name].items():
            assert chance is None or chance + ranking.win_probability[other][system.name] == close(1)
