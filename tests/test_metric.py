"""The `evaluate` modules load offline, from an installed wheel too, and say what midb.judging says."""

import json
import os
import random
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import evaluate
import pytest
from datasets import Dataset

import midb
from midb import metric
from midb.generators import Completion, FunctionGenerator
from midb.judging import Judge, summarize
from midb.judging.agreement import agreement

HOUSE = Path(midb.__file__).parent
NAMES = ("judge_agreement", "pairwise_judge")
FOLDER = {"README.md", "app.py", "requirements.txt", "tests.py"}
OFFLINE = {"HF_EVALUATE_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
QUESTIONS = ["Capital of France?", "2 + 2?", "Which river?", "Which colour?"]
A = ["Paris, on the Seine.", "Four.", "I do not know at all.", "Blue."]
B = ["Paris.", "4", "The Nile.", "It is blue, like the sky."]


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """Load one of our modules; what evaluate writes goes to a folder of the test's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", True)
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", tmp_path_factory.mktemp("modules"))
        cache = str(tmp_path_factory.mktemp("cache"))
        yield lambda name, **how: evaluate.load(metric.path(name), cache_dir=cache, **how)


@pytest.fixture(scope="module")
def judge_metric(load):
    return load("pairwise_judge")


@pytest.fixture(scope="module")
def agreement_metric(load):
    return load("judge_agreement")


def prefers_longer(messages):
    """A judge that is easy to see through, and blind to places."""
    text = messages[-1]["content"]
    first, second = (
        len(text.split(f"[The Start of Assistant {side}’s Answer]")[1].split("[The End")[0]) for side in "AB"
    )
    return "[[1]]" if first > second else "[[2]]" if second > first else "[[0]]"


def many(n: int = 60, languages: tuple[str, ...] = ("fr", "ja")) -> dict:
    """Answers and verdicts of our own, the same questions in each language."""
    draw = random.Random(7)
    rows = [(language, question) for language in languages for question in range(n)]
    return {
        "questions": [f"{question} in {language}?" for language, question in rows],
        "predictions": ["x" * draw.randint(1, 50) for _ in rows],
        "references": ["y" * draw.randint(1, 50) for _ in rows],
        "verdicts": [
            None if draw.random() < 0.1 else (draw.choice("aab") or "a", draw.choice(["a", "b", "tie"])) for _ in rows
        ],
        "languages": [language for language, _ in rows],
        "question_ids": [question for _, question in rows],
    }


def test_a_module_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(ValueError, match="judge_agreement and pairwise_judge"):
        metric.path("bleu")


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A wheel of this tree, unpacked."""
    source, out = tmp_path_factory.mktemp("source") / "midb", tmp_path_factory.mktemp("wheel")
    elsewhere = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "build", "tests", "benchmarks", "examples")
    shutil.copytree(HOUSE.parent, source, ignore=elsewhere)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(out), "."]
    subprocess.run(command, cwd=source, check=True)
    [wheel] = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(out / "site")
    return out / "site"


@pytest.mark.parametrize("name", NAMES)
def test_an_installed_module_has_all_its_files_and_its_example_runs_offline(installed, tmp_path, name):
    folder = installed / "midb/metric" / name
    assert {each.name for each in folder.iterdir()} == {*FOLDER, f"{name}.py"}
    script = (
        "import doctest, evaluate, midb, sys\n"
        "from midb import metric\n"
        f"module = evaluate.load(metric.path({name!r}))\n"
        "example = doctest.DocTestParser().get_doctest(module.inputs_description, {}, 'example', None, 0)\n"
        "result = doctest.DocTestRunner().run(example)\n"
        "print(midb.__file__, result.failed, result.attempted > 3)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, **OFFLINE, "PYTHONPATH": str(installed), "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.split()[-3:] == [str(installed / "midb/__init__.py"), "0", "True"], said.stdout


@pytest.mark.parametrize("name", NAMES)
def test_a_module_returns_what_its_own_cases_say(load, name):
    cases: dict = {}
    exec((Path(metric.path(name)) / "tests.py").read_text(), cases)
    module = load(name)
    for case in cases["test_cases"]:
        result = module.compute(**{key: value for key, value in case.items() if key != "result"})
        assert {key: result[key] for key in case["result"]} == pytest.approx(case["result"])


@pytest.mark.parametrize("name", NAMES)
def test_a_card_is_one_that_the_hub_reads(name):
    import yaml

    _, header, body = (Path(metric.path(name)) / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    card = yaml.safe_load(header)
    assert (card["sdk"], card["app_file"]) == ("gradio", "app.py")
    assert set(card["tags"]) == {"evaluate", "metric" if name == "pairwise_judge" else "comparison"}
    assert "## Limits" in body


def test_stored_verdicts_give_the_numbers_of_summarize(judge_metric):
    rows = many()
    result = judge_metric.compute(**rows, seed=3, n_resamples=500)
    orders = [each or (None, None) for each in rows["verdicts"]]
    report = summarize(
        Dataset.from_dict(
            {
                "id": rows["question_ids"],
                "language": rows["languages"],
                "verdict_ab": [ab for ab, _ in orders],
                "verdict_ba": [ba for _, ba in orders],
                "len_a": [len(text) for text in rows["predictions"]],
                "len_b": [len(text) for text in rows["references"]],
            }
        ),
        seed=3,
        n_resamples=500,
    )
    counts = report.figures.counts
    assert (result["win"], result["tie"], result["loss"]) == (counts.win, counts.tie, counts.loss)
    assert (result["n"], result["no_verdict"]) == (120, sum(counts.no_verdict.values()))
    assert result["win_score"] == report.figures.win_score.value
    assert result["win_score_ci"] == [report.figures.win_score.low, report.figures.win_score.high]
    assert result["p_value"] == report.figures.p_permutation
    assert result["consistency"] == report.figures.orders.consistent
    assert result["macro_win_score"] == report.macro.mean.value
    assert result["lc_win_score"] == report.macro.length_controlled.value
    assert set(result["by_language"]) == {"fr", "ja"}
    for group in report.tables["language"]:
        assert result["by_language"][group.group]["win_score"] == group.win_score.value
        assert result["by_language"][group.group]["lc_win_score"] == group.length.win_score


def test_the_same_input_gives_the_same_output(judge_metric):
    assert judge_metric.compute(**many(), n_resamples=200) == judge_metric.compute(**many(), n_resamples=200)


def test_exchanging_the_systems_mirrors_the_result(judge_metric):
    rows = many()
    swap = {"a": "b", "b": "a", "tie": "tie", None: None}
    mirrored = {**rows, "predictions": rows["references"], "references": rows["predictions"]}
    mirrored["verdicts"] = [each and (swap[each[1]], swap[each[0]]) for each in rows["verdicts"]]
    one, other = (judge_metric.compute(**each, n_resamples=200) for each in (rows, mirrored))
    assert one["win_score"] == pytest.approx(1 - other["win_score"])
    assert (one["win"], one["loss"], one["consistency"]) == (other["loss"], other["win"], other["consistency"])


def test_all_codings_of_a_verdict_mean_the_same(judge_metric):
    rows = {"predictions": A, "references": B, "questions": QUESTIONS}
    words = judge_metric.compute(**rows, verdicts=["a", "b", "tie", None])
    assert judge_metric.compute(**rows, verdicts=[1, 2, 0, None]) == words
    pairs = judge_metric.compute(**rows, verdicts=[("a", 1), ["b", "b"], (0, "tie"), (None, "a")])
    assert (pairs["win"], pairs["tie"], pairs["loss"], pairs["no_verdict"]) == (1, 1, 1, 1)
    assert (words["consistency"], pairs["consistency"]) == (None, 1.0)


def test_a_function_a_generator_and_a_judge_are_asked_in_both_orders(judge_metric):
    rows = {"predictions": A, "references": B, "questions": QUESTIONS}
    asked = []
    by_function = judge_metric.compute(**rows, judge=lambda messages: asked.append(1) or prefers_longer(messages))
    assert len(asked) >= 8
    assert (by_function["win"], by_function["tie"], by_function["loss"]) == (3, 0, 1)
    assert by_function["consistency"] == 1.0
    generator = FunctionGenerator(prefers_longer)
    judge = Judge(generator=generator, controls=0)
    side = Dataset.from_dict({"id": range(4), "turns": [[text] for text in QUESTIONS]})
    verdicts = judge.compare(*(side.add_column("answers", [[text] for text in answers]) for answers in (A, B)))
    score = summarize(verdicts).figures.win_score.value
    for each in (generator, judge):
        assert judge_metric.compute(**rows, judge=each)["win_score"] == score == 0.75
    by_rows = judge_metric.compute(**rows, verdicts=verdicts)
    assert by_rows == judge_metric.compute(**rows, judge=judge)


def test_strict_reaches_the_judge(judge_metric):
    rows = {"predictions": A, "references": B, "questions": QUESTIONS}
    judge = Judge(generator=FunctionGenerator(lambda messages: "[[A]]"), controls=0)
    assert judge_metric.compute(**rows, judge=judge)["no_verdict"] == 0
    assert judge_metric.compute(**rows, judge=judge, strict=True)["no_verdict"] == 4
    assert judge_metric.compute(**rows, judge=lambda messages: "[[A]]", strict=True)["coverage"] == 0.0


def test_returned_verdicts_give_the_result_again(judge_metric):
    rows = {"predictions": [*A, "", "same"], "references": [*B, "text", "same"], "questions": [*QUESTIONS, "?", "!"]}

    def judge(messages):
        river = any("Which river" in message["content"] for message in messages)
        return Completion("no idea") if river else prefers_longer(messages)

    asked = Judge(generator=FunctionGenerator(judge), controls=0)
    first = judge_metric.compute(**rows, judge=asked, return_verdicts=True)
    stored = first.pop("verdicts")
    assert stored == [["a", "a"], ["a", "a"], None, ["b", "b"], "b", "tie"]
    again = judge_metric.compute(**rows, verdicts=json.loads(json.dumps(stored)), return_verdicts=True)
    assert "controls: not run" in again["judge_doubts"]  # so nobody takes "fit" for a test that was passed
    assert again.pop("verdicts") == stored
    for result in (first, again):  # stored verdicts do not say which needed no judge, and so what share it left open
        del result["judge_fit"], result["judge_doubts"]
    assert again == first


def test_a_row_that_cannot_be_judged_costs_no_other(judge_metric):
    asked = []
    result = judge_metric.compute(
        predictions=[None, "Four.", "Long answer.", "x", []],
        references=["Paris.", None, "Short.", "y", "z"],
        questions=[*QUESTIONS[:3], None, "Who?"],
        judge=Judge(generator=FunctionGenerator(lambda m: asked.append(1) or prefers_longer(m)), controls=0),
    )
    assert (result["win"], result["no_verdict"], result["n"], result["coverage"]) == (1, 4, 5, 0.2)
    assert result["judge_fit"]  # it judged what there was to judge
    assert len(asked) == 2


def test_turns_are_compared_each_for_itself(judge_metric):
    rows = {
        "predictions": [["one", "two"], "alone", ["first", None]],
        "references": [["uno", "dos"], "solo", ["primo", "secondo"]],
        "questions": [["q1", "q2"], "q", ["p1", "p2"]],
    }
    result = judge_metric.compute(**rows, verdicts=["a", "b", "tie", "a", None])
    assert (result["win"], result["tie"], result["loss"], result["no_verdict"]) == (2, 1, 1, 1)
    with pytest.raises(ValueError, match="3 verdicts for 5 comparisons"):
        judge_metric.compute(**rows, verdicts=["a", "b", "tie"])
    with pytest.raises(ValueError, match="row 1 has 1 turns and 2 answers"):
        judge_metric.compute(
            predictions=["a", ["b", "c"]], references=["a", "b"], questions=["q", "r"], verdicts=[1, 2]
        )


def test_references_are_shown_to_the_judge(judge_metric):
    seen = []
    judge_metric.compute(
        predictions=A[:2],
        references=B[:2],
        questions=QUESTIONS[:2],
        references_gold=["PARIS-GOLD", None],
        judge=Judge(generator=FunctionGenerator(lambda m: seen.append(m[-1]["content"]) or "[[1]]"), controls=0),
    )
    assert ["PARIS-GOLD" in text for text in seen] == [True, True, False, False]


def test_length_control_can_be_left_out(judge_metric):
    rows = many(languages=("fr",))
    assert isinstance(judge_metric.compute(**rows, n_resamples=100)["lc_win_score"], float)
    assert judge_metric.compute(**rows, n_resamples=100, length_control=False)["lc_win_score"] is None
    bare = Dataset.from_dict({"id": range(len(rows["questions"])), "verdict": ["a"] * len(rows["questions"])})
    rows = {name: rows[name] for name in ("predictions", "references", "questions")}
    assert judge_metric.compute(**rows, verdicts=bare, n_resamples=100, length_control=False)["win_score"] == 1.0


def test_categories_become_a_table(judge_metric):
    rows = {"predictions": A, "references": B, "questions": QUESTIONS, "verdicts": ["a", "a", "b", "tie"]}
    table = judge_metric.compute(**rows, categories=["geo", "math", "geo", "art"])["by_category"]
    assert {name: group["n"] for name, group in table.items()} == {"art": 1, "geo": 2, "math": 1}
    assert table["geo"]["win_score"] == 0.5


def test_a_result_is_saved_as_json_and_flat_but_for_its_tables(judge_metric, tmp_path):
    result = judge_metric.compute(**many(), categories=["x"] * 120, n_resamples=100)
    evaluate.save(tmp_path / "result.json", **result)
    assert json.loads((tmp_path / "result.json").read_text())["win_score"] == result["win_score"]
    nested = {name for name, value in result.items() if isinstance(value, dict)}
    assert nested == {"by_language", "by_category"}
    plain = (float, int, bool, str, type(None))
    for name, value in result.items():
        if name not in nested:
            assert all(type(each) in plain for each in (value if name.endswith("_ci") else [value])), name


def test_rows_add_up_over_batches_and_a_faulty_row_costs_none(load):
    module = load("pairwise_judge", keep_in_memory=True)
    module.add(prediction=None, reference=B[0], questions=QUESTIONS[0])
    module.add_batch(predictions=A[1:], references=B[1:], questions=QUESTIONS[1:])
    for faulty in (
        {"predictions": [3]},
        {"predictions": ["a", "b"]},
        {"predictions": [["a", "b"]]},
        {"predictions": None},
    ):
        with pytest.raises(ValueError, match=r"row 0|give one per row|one of each per row"):
            module.add_batch(**{"references": ["a"], "questions": ["q"], **faulty})
    assert module.compute(verdicts=[None, "a", "b", "tie"])["n"] == 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"verdicts": None}, "judge=Judge.*or verdicts"),
        ({"judge": prefers_longer}, "both a judge"),
        ({"judge": "gpt", "verdicts": None}, "'gpt' is a name"),
        ({"verdicts": ["a"]}, "1 verdicts for 4 comparisons"),
        ({"verdicts": ["a", "b", "c", "tie"]}, "verdict 2 is 'c'"),
        ({"verdicts": ["a", "b", ("a", "b", "a"), "tie"]}, "verdict 2 is"),
        ({"languages": ["fr"]}, "1 languages for 4 rows"),
        ({"question_ids": [1]}, "1 ids for 4 rows"),
        ({"references": B[:2]}, "4 predictions, 2 references, 4 questions"),
        ({"references": None}, "references is None"),
        ({"predictions": [1, 2, 3, 4]}, "row 0: predictions is 1"),
        ({"predictions": [], "references": [], "questions": [], "verdicts": []}, "there are no rows"),
        ({"verdicts": Dataset.from_dict({"id": [1], "verdict": ["a"]})}, "1 questions and there are 4 rows"),
        ({"verdicts": Dataset.from_dict({"id": [1], "verdict": ["a"]}), "languages": ["fr"] * 4}, "leave that out"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_said(load, change, said):
    rows = {"predictions": A, "references": B, "questions": QUESTIONS, "verdicts": ["a", "b", "tie", None]}
    with pytest.raises(ValueError, match=said):
        load("pairwise_judge").compute(**{**rows, **change})


def test_agreement_is_that_of_midb(agreement_metric):
    draw = random.Random(3)
    ones, others = ([draw.choice(["a", "b", "tie", None]) for _ in range(200)] for _ in range(2))
    languages = [draw.choice(["fr", "ja"]) for _ in ones]
    result = agreement_metric.compute(predictions1=ones, predictions2=others, languages=languages, n_resamples=200)
    expected = agreement(ones, others, clusters=list(range(200)), n_resamples=200)
    assert (result["agreement"], result["n"]) == (expected.share, expected.n)
    assert result["agreement_ci"] == [expected.low, expected.high]
    assert result["agreement_without_ties"] == agreement(ones, others, ties=False).share
    assert result["kappa"] == expected.kappa()
    assert result["n"] + result["no_verdict"] == 200
    assert sum(table["n"] for table in result["by_language"].values()) == result["n"]
    json.dumps(result, allow_nan=False)


def test_agreement_takes_gaps_anywhere_and_refuses_what_is_no_verdict(agreement_metric):
    result = agreement_metric.compute(predictions1=[None, 1, 2, 0], predictions2=["a", "a", "b", None])
    assert (result["agreement"], result["n"], result["no_verdict"]) == (1.0, 2, 2)
    agreement_metric.add(predictions1=None, predictions2="a")
    agreement_metric.add_batch(predictions1=["a"], predictions2=["b"])
    assert agreement_metric.compute()["agreement"] == 0.0
    for wrong, said in (
        ({"predictions1": ["c"], "predictions2": ["a"]}, "row 0: predictions1 is 'c'"),
        ({"predictions1": ["a"], "predictions2": [True]}, "row 0: predictions2 is True"),
        ({"predictions1": ["a"]}, "predictions2 is missing"),
        ({"predictions1": [], "predictions2": []}, "there are no verdicts"),
        ({"predictions1": ["a"], "predictions2": ["a"], "languages": []}, "languages has 0 rows"),
    ):
        with pytest.raises(ValueError, match=said):
            agreement_metric.compute(**wrong)
