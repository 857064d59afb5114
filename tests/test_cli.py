import csv
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict, load_from_disk
from fake_openai import FakeOpenAI
from test_evaluation_sets import mt_bench
from test_release import published
from typer.testing import CliRunner

from midb.cli import app
from midb.cli.options import Asked
from midb.files import read_dataset
from midb.prompts import PROMPT

ROWS = [
    {"id": "007", "language": "it", "instruction": "Perché il cielo è blu?", "input": "", "response": "Perché la luce si diffonde nell'aria.", "when": "2024-01-02T03:04:05"},
    {"id": "008", "language": "fr", "instruction": "Pourquoi NA ?", "input": "NA", "response": "Parce que c'est ainsi, tout simplement.", "when": "2024-01-02"},
]  # fmt: skip
PAIR_AND_MORE = {"id", "language", "instruction", "input", "response", "when"}


@pytest.fixture(scope="module")
def server():
    with FakeOpenAI() as fake:
        yield fake


@pytest.fixture(autouse=True)
def _calm(server, monkeypatch, tmp_path):
    server.get("reset")
    server.get("heal")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


def midb(*arguments):
    return CliRunner().invoke(app, [str(each) for each in arguments])


def jsonl(path, rows=ROWS):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_file_is_boosted_into_a_file_with_every_other_value_as_it_was(server, tmp_path):
    out = tmp_path / "out.jsonl"
    said = midb("boost", jsonl(tmp_path / "in.jsonl"), "--model", "m", "--base-url", server.url, "--out", out)
    assert said.exit_code == 0, said.output
    rows = read(out)
    assert [row["response"] for row in rows] == [row["response"] + " (2026)" for row in ROWS]
    assert [{name: row[name] for name in ("id", "language", "when")} for row in rows] == [
        {name: row[name] for name in ("id", "language", "when")} for row in ROWS
    ]
    assert [row["boosted_by"] for row in rows] == ["m", "m"]
    assert (tmp_path / "in.jsonl.journal").exists()
    assert "boosted" in said.stderr


def test_the_same_command_again_asks_nothing(server, tmp_path):
    arguments = (
        "boost",
        jsonl(tmp_path / "in.jsonl"),
        "--model",
        "m",
        "--base-url",
        server.url,
        "--out",
        tmp_path / "out.jsonl",
    )
    assert [midb(*arguments).exit_code, midb(*arguments).exit_code] == [0, 0]
    assert server.get("stats")["requests"] == 2


@pytest.mark.parametrize("ending", ["csv", "parquet", "json"])
def test_every_kind_of_file_keeps_the_text_it_holds(server, tmp_path, ending):
    source, out = tmp_path / f"in.{ending}", tmp_path / f"out.{ending}"
    if ending == "csv":
        with source.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ROWS[0])
            writer.writeheader()
            writer.writerows(ROWS)
    elif ending == "parquet":
        Dataset.from_list(ROWS).to_parquet(source)
    else:
        source.write_text(json.dumps(ROWS, ensure_ascii=False), encoding="utf-8")
    said = midb("boost", source, "--model", "m", "--base-url", server.url, "--out", out)
    assert said.exit_code == 0, said.output
    if ending == "csv":
        rows = list(csv.DictReader(out.open(newline="", encoding="utf-8")))
    else:
        rows = (
            json.loads(out.read_text(encoding="utf-8"))
            if ending == "json"
            else Dataset.from_parquet(str(out)).to_list()
        )
    assert [
        {
            name: row[f"raw_{name}"] if name in ("instruction", "input", "response") else row[name]
            for name in PAIR_AND_MORE
        }
        for row in rows
    ] == ROWS


def test_a_saved_folder_with_splits_is_boosted_into_a_folder(server, tmp_path):
    DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS[:1])).save_to_disk(tmp_path / "in")
    arguments = ["boost", tmp_path / "in", "--model", "m", "--base-url", server.url, "--out"]
    assert midb(*arguments, tmp_path / "out").exit_code == 0
    assert midb(*arguments, tmp_path / "out").exit_code == 0  # and once more over itself
    assert {name: len(split) for name, split in load_from_disk(tmp_path / "out").items()} == {"train": 2, "test": 1}
    assert midb(*arguments, tmp_path / "one.jsonl", "--split", "test").exit_code == 0
    refused = midb(*arguments, tmp_path / "two.jsonl")
    assert refused.exit_code == 1
    assert "--split" in refused.stderr


def test_failed_rows_end_with_their_own_exit_code_and_heal_on_the_next_run(tmp_path):
    rows = [ROWS[0], {**ROWS[1], "instruction": "Pourquoi [[400]] ?"}]
    with FakeOpenAI() as sick:
        arguments = (
            "boost",
            jsonl(tmp_path / "in.jsonl", rows),
            "--model",
            "m",
            "--base-url",
            sick.url,
            "--out",
            tmp_path / "out.jsonl",
        )
        said = midb(*arguments)
        assert said.exit_code == 3
        assert "1 rows failed" in said.stderr
        assert [row["boost_status"] for row in read(tmp_path / "out.jsonl")] == ["boosted", "failed"]
        sick.get("heal")
        assert midb(*arguments).exit_code == 0
        assert [row["boost_status"] for row in read(tmp_path / "out.jsonl")] == ["boosted", "boosted"]
        assert sick.get("stats")["requests"] == 3


def test_a_refused_key_is_one_line_that_does_not_show_it(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    with FakeOpenAI() as locked:
        locked.get("fault/401")
        said = midb(
            "boost",
            jsonl(tmp_path / "in.jsonl"),
            "--model",
            "m",
            "--base-url",
            locked.url,
            "--out",
            tmp_path / "out.jsonl",
        )
    assert said.exit_code == 4
    assert "key" in said.stderr
    assert "Traceback" not in said.output + said.stderr
    assert "sk-very-secret" not in said.output + said.stderr
    assert not (tmp_path / "out.jsonl").exists()


def test_a_dry_run_prints_what_would_be_sent_and_calls_nothing(server, tmp_path):
    said = midb(
        "boost",
        jsonl(tmp_path / "in.jsonl"),
        "--model",
        "m",
        "--base-url",
        server.url,
        "--out",
        tmp_path / "out.jsonl",
        "--dry-run",
    )
    assert said.exit_code == 0
    sent = [json.loads(line) for line in said.stdout.splitlines()]
    assert [each["model"] for each in sent] == ["m", "m"]
    assert (
        sent[1]["messages"][0]["content"]
        == f"{PROMPT}\n<|instruction|>Pourquoi NA ?\n<|input|>NA\n<|response|>Parce que c'est ainsi, tout simplement."
    )
    assert server.get("stats")["requests"] == 0
    midb("boost", tmp_path / "in.jsonl", "--model", "m", "--base-url", server.url, "--out", tmp_path / "out.jsonl")
    assert server.get("stats")["last"]["messages"] in [each["messages"] for each in sent]


def test_an_adapter_is_asked_as_in_its_training_unless_the_caller_says_otherwise(tmp_path):
    """A record is enough for a dry run: nothing is loaded."""
    from midb.generators.adapter import AdapterRecord

    own = {"prompt": "Mend:", "tags": ("<|a|>", "<|b|>", "<|c|>"), "chat_hash": "", "model": "base", "parity": False}
    AdapterRecord(rendering="plain", **own).write(tmp_path / "booster")
    arguments = ("boost", jsonl(tmp_path / "in.jsonl"), "--out", tmp_path / "out.jsonl", "--dry-run")

    def asked(*more):
        said = midb(*arguments, *more)
        assert said.exit_code == 0, said.output
        return json.loads(said.stdout.splitlines()[1])["messages"][0]["content"]

    answer = ROWS[1]["response"]
    assert asked("--model", tmp_path / "booster") == f"Mend:\n<|a|>Pourquoi NA ?\n<|b|>NA\n<|c|>{answer}"
    assert asked("--model", tmp_path / "booster", "--prompt", "Do:").startswith("Do:\n<|a|>Pourquoi")
    assert asked("--model", "m", "--base-url", "http://x").startswith(f"{PROMPT}\n<|instruction|>")


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here, and would load the model")
def test_the_engine_that_is_named_is_the_one_that_is_taken(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text('{"model_type": "llama"}')
    arguments = ("boost", jsonl(tmp_path / "in.jsonl"), "--model", tmp_path / "model", "--out", tmp_path / "out.jsonl")
    assert "pip install 'midb[vllm]'" in midb(*arguments, "--engine", "vllm").stderr
    assert "vllm" not in midb(*arguments).stderr  # no GPU, and so transformers, which finds no weights


def test_a_preview_shows_the_first_messages(tmp_path):
    said = midb("preview", jsonl(tmp_path / "in.jsonl"), "-n", 1)
    assert said.exit_code == 0
    assert "<|instruction|>Perché il cielo è blu?\n<|input|>\n<|response|>" in said.stdout
    assert "Pourquoi" not in said.stdout


def test_filter_keeps_the_farthest_of_each_language(tmp_path):
    rows = [
        {"language": language, "instruction": "i", "output": "a", "revised_output": "a" + "b" * n}
        for n in range(1, 5)
        for language in ("it", "fr")
    ]
    out = tmp_path / "kept.jsonl"
    said = midb("filter", jsonl(tmp_path / "in.jsonl", rows), "-k", 2, "--out", out)
    assert said.exit_code == 0, said.output
    assert sorted((row["language"], row["edit_distance"]) for row in read(out)) == [
        ("fr", 3),
        ("fr", 4),
        ("it", 3),
        ("it", 4),
    ]
    assert "kept 4 of 8" in said.stderr
    assert midb("filter", tmp_path / "in.jsonl", "-k", 0.25, "--out", out).exit_code == 0
    assert len(read(out)) == 2
    assert midb("filter", tmp_path / "in.jsonl", "-k", "many", "--out", out).exit_code == 2
    refused = midb("filter", tmp_path / "in.jsonl", "-k", 2, "--by", "tongue", "--out", out)
    assert (refused.exit_code, "--pooled" in refused.stderr) == (1, True)


def test_data_writes_the_published_edits_as_one_clean_file(tmp_path):
    folder = tmp_path / "MIDB_train"
    folder.mkdir()
    for name in ("French", "Italian"):
        (folder / f"{name}.json").write_text(json.dumps(published()))
    out = tmp_path / "experts.parquet"
    said = midb("data", folder, "--languages", "French,it", "--out", out)
    assert said.exit_code == 0, said.output
    assert Counter(Dataset.from_parquet(str(out))["language"]) == {"fr": 2301, "it": 2301}
    assert "4,602 edits" in said.stderr
    refused = midb("data", folder, "--languages", "Klingon!", "--out", out)
    assert (refused.exit_code, "Traceback" in refused.stderr) == (1, False)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere.jsonl", "--out", "o.jsonl"], "there is no nowhere.jsonl"),
        (["in.jsonl", "--out", "in.jsonl"], "is the source"),
        (["in.jsonl", "--out", "o.xlsx"], "unknown ending"),
        (["in.jsonl", "--out", "missing/o.jsonl"], "make it"),
        (["in.jsonl", "--out", "full"], "other things in it"),
        (["in.jsonl", "--out", "o.jsonl", "--columns", "instruction=nope"], "nope"),
        (["odd.jsonl", "--out", "o.jsonl"], "--columns instruction=...,response=..."),
        (["broken.jsonl", "--out", "o.jsonl"], "line 2: not JSON"),
        (["latin.csv", "--out", "o.jsonl"], "latin.csv is not UTF-8"),
        (["empty.jsonl", "--out", "o.jsonl"], "holds no rows"),
        (["header.csv", "--out", "o.jsonl"], "holds no rows"),
        (["mixed.jsonl", "--out", "o.jsonl"], "do not agree"),
        (["saved/train", "--out", "saved"], "is the source or holds it"),
        (["odd.txt", "--out", "o.jsonl"], "convert it"),
    ],
)
def test_a_mistake_is_told_before_anything_is_called(server, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    jsonl(Path("in.jsonl"))
    jsonl(Path("odd.jsonl"), [{"text": "x"}])
    Path("odd.txt").write_text("x")
    Path("broken.jsonl").write_text('{"instruction": "a", "response": "b"}\n{"instruction": \n')
    Path("latin.csv").write_bytes("instruction,response\n\xe9,\xe9\n".encode("latin-1"))
    Path("empty.jsonl").write_text("\n")
    Path("header.csv").write_text("instruction,response\n")
    jsonl(Path("mixed.jsonl"), [{"instruction": "a", "response": "b"}, {"instruction": "a", "response": {"c": 1}}])
    DatasetDict(train=Dataset.from_list(ROWS)).save_to_disk("saved")
    Path("full").mkdir()
    Path("full/precious.txt").write_text("x")
    said = midb("boost", *arguments, "--model", "m", "--base-url", server.url)
    assert said.exit_code == 1
    assert says in said.stderr
    assert server.get("stats")["requests"] == 0
    assert Path("full/precious.txt").exists()


@pytest.mark.parametrize(
    ("command", "row", "says"),
    [
        ("boost", {"text": "x"}, "say which column is which: --columns instruction=...,response=..."),
        ("boost", {"instruction": "a", "response": None}, "row 0: response is null; drop such rows first"),
        (
            "boost",
            {name: "a" for side in ("", "raw_") for name in (f"{side}instruction", f"{side}input", f"{side}response")},
            "say which side to boost: --columns instruction=raw_instruction,input=raw_input,response=raw_response",
        ),
        ("answer", {"text": "x"}, "say which it is, e.g. --columns question=text"),
        ("answer", {"question": "x", "answers": ["y"]}, "remove them to ask again, or rename them to keep both"),
        ("filter", {"instruction": "a", "response": "b"}, "name the column that holds the revised text: --columns response=..."),
        ("judge", {"question": "a", "answer": "b"}, "name it with --on, or number the rows"),
    ],
)
def test_an_error_names_options_and_not_python(tmp_path, command, row, says):
    source = jsonl(tmp_path / "in.jsonl", [row])
    asked = ("-k", 1) if command == "filter" else ("--model", "m", "--base-url", "http://x", "--dry-run")
    said = midb(command, source, *([source] if command == "judge" else []), *asked, "--out", tmp_path / "out.jsonl")
    assert said.exit_code == 1, said.output
    line = next(line for line in said.stderr.splitlines() if line.startswith("midb: "))
    assert line.endswith(says)


def test_wrong_usage_has_its_own_exit_code(tmp_path):
    source = jsonl(tmp_path / "in.jsonl")
    for wrong in (
        ["--base-url", "http://x/v1", "--api-key-env", "NO_SUCH_KEY"],
        ["--columns", "instruction"],
        ["--fields", "nonsense"],
        ["--concurrency", "0"],
    ):
        assert midb("boost", source, "--model", "m", "--out", tmp_path / "o.jsonl", *wrong).exit_code == 2


def test_a_preview_cannot_command_the_terminal(tmp_path):
    said = midb(
        "preview", jsonl(tmp_path / "in.jsonl", [{"instruction": "\x1b]0;pwned\x07", "response": "a\tb\u202e"}])
    )
    assert "\\x1b]0;pwned\\x07" in said.stdout
    assert not set("\x1b\x07\u202e") & set(said.stdout)


def test_a_hub_dataset_is_boosted_onto_the_hub(server, tmp_path):
    hub = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("fakehub.py")), "--port", "0", "--root", str(tmp_path / "hub")],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        address = hub.stdout.readline().strip()
        env = {
            **os.environ,
            "HF_ENDPOINT": address,
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": "hf_test",
            "HF_HOME": str(tmp_path / "home"),
        }
        env.pop("HF_HUB_OFFLINE", None)

        def run(*arguments):
            return subprocess.run(
                [sys.executable, *map(str, arguments)], env=env, capture_output=True, text=True, cwd=tmp_path
            )

        push = f"from datasets import Dataset; Dataset.from_list({ROWS!r}).push_to_hub('tester/raw', config_name='it', split='test')"
        assert run("-c", push).returncode == 0
        said = run(
            "-m",
            "midb",
            "boost",
            "tester/raw",
            "--config",
            "it",
            "--split",
            "test",
            "--model",
            "m",
            "--base-url",
            server.url,
            "--out",
            "hf://datasets/tester/boosted",
        )
        assert said.returncode == 0, said.stderr
        assert (
            run("-m", "midb", "preview", "hf://datasets/tester/boosted", "--config", "it").returncode == 1
        )  # edits: refused
        look = "from datasets import load_dataset; ds = load_dataset('tester/boosted', 'it'); print({k: v['boost_status'][:] for k, v in ds.items()})"
        assert run("-c", look).stdout.strip() == "{'test': ['boosted', 'boosted']}"
        missing = run("-m", "midb", "preview", "tester/nothing")
        assert (missing.returncode, "Traceback" in missing.stderr) == (1, False)
    finally:
        hub.kill()
        hub.wait()
        hub.stdout.close()


def many(path, count=23, **more):
    """Questions that a server answers one by one, no two alike."""
    return jsonl(
        path, [{"id": n, "instruction": f"Perché {n} ?", "response": f"Perché {n}.", **more} for n in range(count)]
    )


def boost(server, source, *options):
    return ("boost", source, "--model", "m", "--base-url", server.url, *options)


def test_the_default_journal_belongs_to_the_source_so_that_another_out_asks_nothing(server, tmp_path, monkeypatch):
    source, elsewhere = many(tmp_path / "in.jsonl", 3), tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert midb(*boost(server, source, "--out", tmp_path / "one.jsonl")).exit_code == 0
    monkeypatch.chdir(elsewhere)
    assert midb(*boost(server, source, "--out", "two.parquet", "--fields", "response")).exit_code == 0
    assert server.get("stats")["requests"] == 3
    assert (tmp_path / "in.jsonl.journal").exists()
    assert [path.name for path in elsewhere.iterdir()] == ["two.parquet"]
    source.rename(tmp_path / "other.jsonl")
    assert midb(*boost(server, tmp_path / "other.jsonl", "--out", "three.jsonl", "--no-journal")).exit_code == 0
    assert server.get("stats")["requests"] == 6
    assert not (tmp_path / "other.jsonl.journal").exists()


def test_a_journal_goes_to_the_working_folder_where_the_source_has_none_or_cannot_be_written(tmp_path, monkeypatch):
    asked = Asked(model="m")
    assert asked.place("owner/name") == asked.place("hf://datasets/owner/name") == "owner-name.journal"
    source = jsonl(tmp_path / "in.jsonl")
    assert asked.place(str(source)) == str(tmp_path / "in.jsonl.journal")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert asked.place(str(source)) == "in.jsonl.journal"


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_parts_share_a_journal_and_the_command_without_a_part_puts_them_together(server, tmp_path, kind):
    command = boost(server, many(tmp_path / "in.jsonl"), "--journal", tmp_path / "journal")
    command = (*command, "--stream") if kind == "stream" else command
    for part, total in (("2/3", 8 if kind == "file" else 7), ("0/3", 15), ("1/3", 23), ("30/31", 23)):
        said = midb(*command, "--shard", part)
        assert said.exit_code == 0, said.output
        assert "the same command without --shard puts the rows together" in said.stderr
        assert server.get("stats")["requests"] == total
    assert midb(*command, "--shard", "1/3", "--out", tmp_path / "part.jsonl").exit_code == 0
    assert len(read(tmp_path / "part.jsonl")) == 8
    assert midb(*command, "--out", tmp_path / "out.parquet").exit_code == 0
    assert Dataset.from_parquet(str(tmp_path / "out.parquet"))["id"][:] == list(range(23))
    assert server.get("stats")["requests"] == 23


def test_a_stream_goes_to_a_folder_in_pieces(server, tmp_path):
    command = boost(server, many(tmp_path / "in.jsonl"), "--stream", "--out", tmp_path / "parts/", "--limit", 20)
    said = midb(*command)
    assert said.exit_code == 0, said.output
    assert "20 rows: boosted 20" in said.stderr
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == ["_SUCCESS", "part-00000.parquet"]
    assert [row["id"] for row in read_dataset(str(tmp_path / "parts"), stream=True)] == list(range(20))
    assert midb(*command[:-2]).exit_code == 0
    assert len(read_dataset(str(tmp_path / "parts"))) == 23
    assert server.get("stats")["requests"] == 23


def test_a_file_has_the_split_that_is_asked_for_and_no_configuration(server, tmp_path):
    command = boost(server, many(tmp_path / "in.jsonl"), "--out", tmp_path / "out.jsonl")
    assert midb(*command, "--split", "train[:2]+train[-1:]").exit_code == 0
    assert [row["id"] for row in read(tmp_path / "out.jsonl")] == [0, 1, 22]
    assert server.get("stats")["requests"] == 3
    for wrong, says in (("--split=test", "there is train"), ("--config=fr", "leave out --config fr")):
        said = midb(*command, wrong)
        assert (said.exit_code, says in said.stderr) == (1, True)
    assert server.get("stats")["requests"] == 3


def test_a_run_says_what_it_will_take_and_what_it_spent_and_keeps_to_its_budget(server, tmp_path):
    out = tmp_path / "out.jsonl"
    command = boost(server, many(tmp_path / "in.jsonl"), "--out", out, "--price", "1,2,USD", "--max-tokens", 100)
    said = midb(*command, "--max-cost", "0.001")
    assert said.exit_code == 3, said.output
    left = [row["boost_status"] for row in read(out)].count("not_run")
    assert 0 < left < 23
    assert server.get("stats")["requests"] == 23 - left
    assert "\n23 rows, 23 calls, about " in said.stderr
    assert (
        f"midb: the budget of 0.00100 USD ended the run: {left} of 23 rows were not asked; the same command with a higher "
        "--max-cost goes on from here"
    ) in said.stderr
    again = midb(*command, "--max-cost", "1")
    assert again.exit_code == 0
    assert f"({23 - left} remembered)" in again.stderr
    assert "USD spent" in again.stderr
    assert server.get("stats")["requests"] == 23


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("in.jsonl", "is the source"),
        ("out.csv", "csv cannot hold"),
        ("out.json", "cannot hold"),
        ("no/o.jsonl", "make it"),
    ],
)
def test_a_dry_run_says_too_what_cannot_be_written(server, tmp_path, monkeypatch, out, says):
    monkeypatch.chdir(tmp_path)
    many(Path("in.jsonl"))
    rows = [{"instruction": "a", "response": "b", "raw": b"x", "more": {"a": 1}}]
    Dataset.from_list(rows).to_parquet("in.parquet")
    command = boost(server, "in.parquet" if "out" in out else "in.jsonl", "--out", out)
    for more in ((), ("--dry-run",)):
        said = midb(*command, *more)
        assert (said.exit_code, says in said.stderr, said.stdout) == (1, True, "")
    assert server.get("stats")["requests"] == 0


def test_a_dry_run_ends_with_an_estimate(server, tmp_path):
    said = midb(
        *boost(server, many(tmp_path / "in.jsonl"), "--dry-run", "--price", "1,2", "--shard", "0/2", "--journal", "j")
    )
    assert said.exit_code == 0, said.output
    assert len(said.stdout.splitlines()) == 11
    assert "\n11 rows, 11 calls, about " in said.stderr
    assert "at most" in said.stderr


def test_questions_are_answered_turn_by_turn(server, tmp_path):
    rows = [{"id": n, "language": "fr", "turns": [f"Un {n} ?", f"Deux {n} ?"]} for n in range(3)]
    out = tmp_path / "answers.jsonl"
    command = ("answer", jsonl(tmp_path / "in.jsonl", rows), "--model", "m", "--base-url", server.url, "--out", out)
    said = midb(*command, "--price", "1,1")
    assert said.exit_code == 0, said.output
    assert "3 rows, 6 calls" in said.stderr
    assert [(row["answer_status"], len(row["answers"]), row["answered_by"]) for row in read(out)] == [
        ("answered", 2, "m")
    ] * 3
    assert midb(*command).exit_code == 0
    assert server.get("stats")["requests"] == 6
    refused = midb(*command, "--languages", "fr")
    assert (refused.exit_code, server.get("stats")["requests"]) == (2, 6)


def test_published_questions_are_answered_by_name(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, code in (("French", "fr"), ("Japanese", "ja")):
        path = tmp_path / "files/mt_bench" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(mt_bench(code)))
    command = ("answer", "mt-bench", "--files", tmp_path / "files", "--model", "m", "--base-url", server.url)
    said = midb(*command, "--languages", "fr", "--limit", 2, "--out", "a.jsonl")
    assert said.exit_code == 0, said.output
    assert [row["language"] for row in read(Path("a.jsonl"))] == ["fr", "fr"]
    assert Path("mt-bench.journal").exists()
    assert midb(*command, "--split", "test", "--out", "a.jsonl").exit_code == 2


@pytest.mark.slow
def test_an_array_of_jobs_loses_what_a_killed_one_had_in_flight_and_nothing_is_asked_twice(tmp_path):
    count, jobs, in_flight = 90, 3, 8
    source, out = many(tmp_path / "in.jsonl", count), tmp_path / "out.jsonl"
    with FakeOpenAI(latency=0.2) as slow:
        whole = boost(slow, source, "--journal", tmp_path / "journal", "--concurrency", in_flight)

        def start(*options):
            command = [sys.executable, "-m", "midb", *map(str, (*whole, *options))]
            return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

        array = [start("--shard", f"{job}/{jobs}") for job in range(jobs)]
        slow.wait_until(lambda stats: stats["requests"] > count // 3, 120)
        array[1].kill()
        assert [job.communicate() and job.returncode for job in array] == [0, -9, 0]
        again = start("--shard", f"1/{jobs}")
        assert (again.communicate()[1][-500:], again.returncode)[1] == 0
        asked = {text: times for text, (times, _) in slow.get("asked").items()}
        assert len(asked) == count
        assert sum(asked.values()) - count <= in_flight
        gathering = start("--out", out)
        assert (gathering.communicate()[1][-500:], gathering.returncode)[1] == 0
        assert slow.get("stats")["requests"] == sum(asked.values())
    assert [row["id"] for row in read(out)] == list(range(count))
    assert {row["boost_status"] for row in read(out)} == {"boosted"}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["--journal", "j", "--shard", "2/2"], "with i from 0 to n - 1"),
        (["--journal", "j", "--shard", "-1/2"], "with i from 0 to n - 1"),
        (["--journal", "j", "--shard", "half"], "with i from 0 to n - 1"),
        (["--journal", "j"], "give --out"),
        (["--shard", "0/2"], "--shard needs --journal"),
        (["--journal", "j", "--no-journal", "--out", "o.jsonl"], "exclude each other"),
        (["--out", "o.jsonl", "--max-cost", "1"], "--max-cost needs --price"),
        (["--out", "o.jsonl", "--price", "cheap"], "'cheap' is not two numbers"),
        (["--out", "o.jsonl", "--price", "1,-2"], "'1,-2' is not two numbers"),
        (["--out", "o.jsonl", "--price", "1,2,USD,3"], "is not two numbers"),
    ],
)
@pytest.mark.parametrize("command", ["boost", "answer", "judge"])
def test_options_that_do_not_go_together_are_wrong_usage(tmp_path, monkeypatch, command, wrong, says):
    monkeypatch.chdir(tmp_path)
    said = midb(command, many(Path("in.jsonl")), "--model", "m", "--base-url", "http://x", *wrong)
    sentence = " ".join(said.stderr.translate(dict.fromkeys(map(ord, "│╭╮╰╯─"), " ")).split())  # out of its box
    assert (said.exit_code, says in sentence) == (2, True), said.stderr
    assert not Path("j").exists()


def test_a_journal_and_an_out_of_one_place_are_refused(server, tmp_path):
    source = many(tmp_path / "in.jsonl")
    said = midb(*boost(server, source, "--out", tmp_path / "x.jsonl", "--journal", tmp_path / "x.jsonl"))
    assert (said.exit_code, "lie in one place" in said.stderr) == (1, True)


@pytest.mark.parametrize("command", ["boost", "answer", "judge"])
def test_commands_that_ask_have_the_same_options_in_the_same_groups(command):
    shown = CliRunner(env={"COLUMNS": "200"}).invoke(app, [command, "--help"]).stdout
    for title in ("Who answers", "Money", "Memory and parts", "Rows"):
        assert f"╭─ {title} " in shown
    for field in fields(Asked):
        assert f"--{field.name.replace('_', '-')} " in shown
