import csv
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict, load_from_disk
from fake_openai import FakeOpenAI
from test_release import published
from typer.testing import CliRunner

from midb.cli import app
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
    assert (tmp_path / "out.jsonl.journal").exists()
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
        (["in.jsonl", "--out", "missing/o.jsonl"], "there is no folder"),
        (["in.jsonl", "--out", "full"], "other things in it"),
        (["in.jsonl", "--out", "o.jsonl", "--columns", "instruction=nope"], "nope"),
        (["odd.jsonl", "--out", "o.jsonl"], "--columns instruction=question"),
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
            "midb.cli",
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
            run("-m", "midb.cli", "preview", "hf://datasets/tester/boosted", "--config", "it").returncode == 1
        )  # edits: refused
        look = "from datasets import load_dataset; ds = load_dataset('tester/boosted', 'it'); print({k: v['boost_status'][:] for k, v in ds.items()})"
        assert run("-c", look).stdout.strip() == "{'test': ['boosted', 'boosted']}"
        missing = run("-m", "midb.cli", "preview", "tester/nothing")
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


def test_with_a_ledger_the_same_command_asks_only_for_what_failed_and_keeps_no_journal(server, tmp_path):
    rows = [{**ROWS[0], "instruction": f"Perché {n} ?" + " [[400]]" * (n == 4)} for n in range(7)]
    out, source = tmp_path / "out.jsonl", jsonl(tmp_path / "in.jsonl", rows)
    with FakeOpenAI() as sick:
        command = boost(sick, source, "--out", out, "--ledger", tmp_path / "ledger", "--rows-per-shard", 3)
        said = midb(*command)
        assert said.exit_code == 3, said.output
        assert [row["boost_status"] for row in read(out)].count("failed") == 1
        gathered = midb(*command, "--gather")
        assert gathered.exit_code == 3
        assert "the same command without --gather asks again" in gathered.stderr
        assert sick.get("stats")["requests"] == 7  # nobody was asked again
        sick.get("heal")
        assert midb(*command).exit_code == 0
        assert sick.get("stats")["requests"] == 7 + 1
    assert [row["boost_status"] for row in read(out)] == ["boosted"] * 7
    assert len(list((tmp_path / "ledger").glob("*.parquet"))) == 3
    assert not list(tmp_path.glob("*.journal"))


def test_shares_are_done_one_by_one_and_the_call_without_a_share_gathers_them(server, tmp_path):
    source, ledger = many(tmp_path / "in.jsonl"), tmp_path / "ledger"
    command = boost(server, source, "--ledger", ledger, "--rows-per-shard", 4)
    for job in (2, 0, 1):
        said = midb(*command, "--shard", f"{job}/3")
        assert said.exit_code == 0, said.output
        if job == 0:
            early = midb(*command, "--gather", "--out", tmp_path / "out.parquet")
            assert (early.exit_code, (tmp_path / "out.parquet").exists()) == (1, False)
            assert "2 of 6 shards are not in" in early.stderr
        assert "the same command without --shard gathers" in said.stderr
    assert server.get("stats")["requests"] == 23
    assert midb(*command, "--shard", "6/7").exit_code == 0  # a job that no range is left for
    assert midb(*command, "--out", tmp_path / "out.parquet").exit_code == 0
    assert Dataset.from_parquet(str(tmp_path / "out.parquet"))["id"][:] == list(range(23))
    assert server.get("stats")["requests"] == 23


def test_each_split_of_a_folder_has_its_own_part_of_the_ledger(server, tmp_path):
    DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS[:1])).save_to_disk(tmp_path / "in")
    command = boost(server, tmp_path / "in", "--ledger", tmp_path / "ledger")
    assert "2 shards, 0 of them whole; 3 rows would be asked" in midb(*command, "--dry-run").stdout
    assert midb(*command, "--out", tmp_path / "out").exit_code == 0
    assert {name: len(split) for name, split in load_from_disk(tmp_path / "out").items()} == {"train": 2, "test": 1}
    assert "2 shards, 2 of them whole; 0 rows would be asked" in midb(*command, "--dry-run").stdout


def test_a_dry_run_on_a_ledger_says_what_is_left_and_writes_nothing(server, tmp_path):
    source, ledger = many(tmp_path / "in.jsonl"), tmp_path / "ledger"
    command = boost(server, source, "--ledger", ledger, "--rows-per-shard", 4)
    assert midb(*command, "--dry-run").stdout == "6 shards, 0 of them whole; 23 rows would be asked\n"
    assert not ledger.exists()
    midb(*command, "--shard", "1/3")
    assert midb(*command, "--dry-run").stdout == "6 shards, 2 of them whole; 15 rows would be asked\n"
    assert midb(*command, "--dry-run", "--shard", "1/3").stdout == "2 shards, 2 of them whole; 0 rows would be asked\n"
    assert midb(*command, "--dry-run", "--fields", "response").stdout.endswith("23 rows would be asked\n")
    assert server.get("stats")["requests"] == 8


@pytest.mark.parametrize(
    ("out", "ledger"), [("run", "run"), ("run", "run/ledger"), ("out", "in"), ("out", "in/ledger")]
)
def test_a_ledger_lies_neither_where_the_result_goes_nor_in_the_source(server, tmp_path, monkeypatch, out, ledger):
    monkeypatch.chdir(tmp_path)  # the one would be replaced by the result, the other read as rows
    Dataset.from_list(ROWS).save_to_disk("in")
    said = midb(*boost(server, "in", "--out", out, "--ledger", ledger))
    assert (said.exit_code, "give the ledger a folder of its own" in said.stderr) == (1, True), said.output
    assert server.get("stats")["requests"] == 0


def test_with_a_ledger_too_what_cannot_be_boosted_is_refused_before_it_is_made(server, tmp_path):
    source, ledger = many(tmp_path / "in.jsonl", boosted_by="somebody"), tmp_path / "ledger"
    said = midb(*boost(server, source, "--ledger", ledger, "--shard", "0/2"))
    assert (said.exit_code, "which a boost writes" in said.stderr) == (1, True)
    assert not ledger.exists()


@pytest.mark.slow
def test_an_array_of_jobs_loses_what_a_killed_one_had_in_hand_and_nothing_is_asked_twice(tmp_path):
    count, size, jobs, in_flight = 90, 5, 3, 8
    source, ledger, out = many(tmp_path / "in.jsonl", count), tmp_path / "ledger", tmp_path / "out.jsonl"
    with FakeOpenAI(latency=0.2) as slow:
        whole = boost(slow, source, "--ledger", ledger, "--rows-per-shard", size, "--concurrency", in_flight)

        def start(*options):
            command = [sys.executable, "-m", "midb.cli", *map(str, (*whole, *options))]
            return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

        def finished():
            return [int(path.name[:12]) for path in ledger.glob("*.parquet")]

        array = [start("--shard", f"{job}/{jobs}") for job in range(jobs)]
        slow.wait_until(lambda _: any(start // size % jobs == 1 for start in finished()), 120)  # its first of six
        array[1].kill()
        assert [job.communicate() and job.returncode for job in array] == [0, -9, 0]
        assert set(finished()) < set(range(0, count, size))
        again = start("--shard", f"1/{jobs}")
        assert (again.communicate()[1][-500:], again.returncode)[1] == 0
        asked = {text: times for text, (times, _) in slow.get("asked").items()}
        assert len(asked) == count
        assert sum(asked.values()) - count <= size  # the one range that the killed job had in hand
        gathering = start("--out", out)
        assert (gathering.communicate()[1][-500:], gathering.returncode)[1] == 0
        assert slow.get("stats")["requests"] == sum(asked.values())
    assert [row["id"] for row in read(out)] == list(range(count))
    assert {row["boost_status"] for row in read(out)} == {"boosted"}


@pytest.mark.slow
def test_ctrl_c_on_a_cluster_says_so_and_the_same_command_goes_on(tmp_path):
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    count, size, workers = 100, 5, 2
    source, ledger, out = many(tmp_path / "in.jsonl", count), tmp_path / "ledger", tmp_path / "out.jsonl"
    with FakeOpenAI(latency=0.2) as slow:
        options = ("--ledger", ledger, "--rows-per-shard", size, "--workers", workers, "--concurrency", 2, "--out", out)
        command = [sys.executable, "-m", "midb.cli", *map(str, boost(slow, source, *options))]
        how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
        first = subprocess.Popen(command, **how)
        slow.wait_until(lambda _: any(ledger.glob("*.parquet")), 120)
        os.killpg(first.pid, signal.SIGINT)  # as a terminal does: to the workers too
        said = first.communicate()[1]
        assert (first.returncode, "Traceback" in said) == (130, False), said[-2000:]
        assert not out.exists()
        kept = len(list(ledger.glob("*.parquet")))
        assert 0 < kept < count // size
        again = subprocess.Popen(command, **how)
        assert (again.communicate()[1][-2000:], again.returncode)[1] == 0
        assert slow.get("stats")["requests"] <= count + (workers + 1) * size
    assert [row["id"] for row in read(out)] == list(range(count))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["--ledger", "l", "--shard", "0/2", "--out", "o.jsonl"], "leave --out to the last call"),
        (["--ledger", "l", "--shard", "2/2"], "with i from 0 to n - 1"),
        (["--ledger", "l", "--shard", "-1/2"], "with i from 0 to n - 1"),
        (["--ledger", "l", "--shard", "half"], "with i from 0 to n - 1"),
        (["--ledger", "l"], "give --out"),
        (["--shard", "0/2"], "need --ledger"),
        (["--out", "o.jsonl", "--rows-per-shard", "9"], "need --ledger"),
        (["--out", "o.jsonl", "--gather"], "need --ledger"),
        (["--out", "o.jsonl", "--workers", "2"], "need --ledger"),
        (["--out", "o.jsonl", "--ledger", "l", "--gpus", "1"], "say how many"),
        (["--out", "o.jsonl", "--ledger", "l", "--workers", "0"], "workers"),
        (["--out", "o.jsonl", "--ledger", "l", "--rows-per-shard", "0"], "rows-per-shard"),
    ],
)
def test_options_of_a_ledger_that_do_not_go_together_are_wrong_usage(tmp_path, monkeypatch, wrong, says):
    monkeypatch.chdir(tmp_path)
    said = midb("boost", many(Path("in.jsonl")), "--model", "m", "--base-url", "http://x", *wrong)
    sentence = " ".join(said.stderr.translate(dict.fromkeys(map(ord, "│╭╮╰╯─"), " ")).split())  # out of its box
    assert (said.exit_code, says in sentence) == (2, True), said.stderr
    assert not Path("l").exists()
