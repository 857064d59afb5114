"""The commands `judge` and `report`, against a server whose judge loves the first place."""

import json

import pytest
from datasets import Dataset
from test_cli import _calm, jsonl, midb, read, server  # noqa: F401  (fixtures)

ROWS = [{"id": number, "language": "fr", "question": f"JUDGE {number} ?"} for number in range(5)]


def answered(path, word):
    return jsonl(path, [row | {"answer": f"{word} {row['id']}"} for row in ROWS])


def run(server, tmp_path, *options):  # noqa: F811
    a, b = answered(tmp_path / "ours.jsonl", "oui"), answered(tmp_path / "theirs.jsonl", "non")
    out = tmp_path / "verdicts.jsonl"
    return out, midb("judge", a, b, "--model", "m", "--base-url", server.url, "--out", out, *options)


def test_two_files_are_judged_into_a_third_and_a_rerun_asks_nobody(server, tmp_path):  # noqa: F811
    out, said = run(server, tmp_path, "--controls", 1, "--price", "1,2")
    assert said.exit_code == 0, said.output
    rows = read(out)
    assert [row["id"] for row in rows] == list(range(5))
    assert {(row["verdict"], row["verdict_ab"], row["verdict_ba"]) for row in rows} == {("tie", "a", "b")}
    assert "5 comparisons" in said.output
    requests = server.get("stats")["requests"]
    assert requests == 2 * (5 + 4) - 1  # the same answer twice is one question in both orders
    assert run(server, tmp_path, "--controls", 1)[1].exit_code == 0
    assert server.get("stats")["requests"] == requests


def test_a_dry_run_prints_every_call_and_sends_none(server, tmp_path):  # noqa: F811
    out, said = run(server, tmp_path, "--controls", 0, "--dry-run")
    lines = [json.loads(line) for line in said.stdout.splitlines()]
    assert len(lines) == 10
    assert "oui 0" in lines[0]["messages"][1]["content"]
    assert (lines[0]["model"], lines[0]["max_tokens"]) == ("m", 2048)
    assert server.get("stats")["requests"] == 0
    assert not out.exists()


def test_a_spent_budget_is_said_by_the_exit_code_and_the_same_command_goes_on(server, tmp_path):  # noqa: F811
    out, said = run(server, tmp_path, "--controls", 0, "--price", "1,1", "--max-cost", "0.0000001")
    assert said.exit_code == 3
    assert "5 of 5 rows were not asked; the same command with a higher --max-cost goes on from here" in said.output
    assert {row["status_ab"] for row in read(out)} == {"not_run"}
    assert run(server, tmp_path, "--controls", 0)[1].exit_code == 0
    assert {row["status_ab"] for row in read(out)} == {"ok"}


def test_edits_alone_are_judged_against_their_raw_side(server, tmp_path):  # noqa: F811
    edit = {
        "instruction": "JUDGE",
        "input": "",
        "response": "b",
        "raw_instruction": "JUDGE",
        "raw_input": "",
        "raw_response": "a",
    }
    edits = jsonl(tmp_path / "edits.jsonl", [edit, edit | {"response": "a"}])
    out = tmp_path / "judged.parquet"
    said = midb("judge", edits, "--model", "m", "--base-url", server.url, "--out", out, "--controls", 0)
    assert said.exit_code == 0, said.output
    assert Dataset.from_parquet(str(out))["status_ab"][:] == ["ok", "identical"]


def test_a_report_is_written_from_the_verdicts_alone(server, tmp_path):  # noqa: F811
    out, _ = run(server, tmp_path, "--controls", 1)
    requests = server.get("stats")["requests"]
    shown = midb("report", out, "--names", "ours,theirs")
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.startswith("Headline withheld")
    assert "0 of 5 comparisons have the same verdict in both orders" in shown.stdout
    files = [tmp_path / name for name in ("report.md", "report.json", "report.png")]
    assert midb("report", out, "--out", files[0], "--plot", files[2]).exit_code == 0
    assert midb("report", out, "--out", files[1]).exit_code == 0
    assert json.loads(files[1].read_text())["figures"]["counts"]["tie"] == 5
    assert files[2].read_bytes().startswith(b"\x89PNG")
    assert server.get("stats")["requests"] == requests


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--price", "cheap"), "'cheap' is not two numbers"),
        (("--max-cost", "1"), "--max-cost needs --price"),
        (("--on", "nr"), "lacks an id in 'nr'"),
        (("--out", "verdicts.csv"), "csv cannot hold the columns"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_sent(server, tmp_path, options, says):  # noqa: F811
    _, said = run(server, tmp_path, *options)
    assert said.exit_code in (1, 2)
    assert says in " ".join(said.output.replace("│", "").split())
    assert server.get("stats")["requests"] == 0


def test_a_report_of_something_else_says_what_is_missing(tmp_path):
    said = midb("report", jsonl(tmp_path / "x.jsonl", [{"id": 1, "text": "x"}]))
    assert said.exit_code == 1
    assert "verdict" in said.output
