"""Whole journeys with real parts: the published rows, a real server, a sick server, processes that are killed."""

import random
import signal
import subprocess
import sys
from collections import Counter
from contextlib import closing
from itertools import islice

import pytest
from datasets import Dataset
from fake_openai import FakeOpenAI
from test_transformers import make_model

from midb import Booster, release
from midb.generators import Journal, OpenAIGenerator, Sampling, TransformersGenerator

FAULTS = ["429:0", "500", "hang", "reset", "broken", "empty", "null", "html", "400", "length", "ok"]


# What one kill may lose of 32 in flight: those, and as many answers that wait to be stored or are being stored.
UNDER_WAY = 2 * 32


def rows(n, word=""):
    return Dataset.from_dict(
        {
            "id": [f"r{i}" for i in range(n)],
            "instruction": [f"Domanda numero {i}{word}: perché il cielo è blu?" for i in range(n)],
            "response": [f"Perché la luce si diffonde nell'aria, risposta {i}." for i in range(n)],
        }
    )


def test_a_sick_server_leaves_every_row_a_status_and_a_healed_one_is_asked_only_for_what_failed(tmp_path):
    dataset = rows(110)
    marks = [f" [[{fault}]]" for fault in FAULTS] * 10
    dataset = dataset.map(lambda row, i: {"instruction": row["instruction"] + marks[i]}, with_indices=True)
    with FakeOpenAI() as server:
        generator = OpenAIGenerator("m", base_url=server.url, concurrency=40, timeout=1.0, max_retries=1)
        booster = Booster(generator=Journal(generator, tmp_path / "j"))
        first = booster.map(dataset)
        assert first["id"] == dataset["id"]
        reasons = Counter((row["boost_status"], row["boost_reason"].split(":")[0]) for row in first)
        assert reasons == {
            ("failed", "http_429"): 10, ("failed", "http_500"): 10, ("failed", "timeout"): 10, ("failed", "connection"): 10,
            ("failed", "broken_reply"): 20, ("failed", "empty_reply"): 20, ("failed", "http_400"): 10,
            ("rejected", "truncated"): 10, ("boosted", ""): 10,
        }  # fmt: skip
        failed = [row["instruction"] for row in first if row["boost_status"] == "failed"]
        server.get("heal")
        server.get("reset")
        second = booster.map(dataset)
        asked = server.get("asked")
        assert len(asked) == len(failed) == 90
        assert all(any(text in prompt for prompt in asked) for text in failed)
        assert Counter(second["boost_status"]) == {"boosted": 100, "rejected": 10}
        server.get("reset")
        booster.map(dataset)
        assert server.get("stats")["requests"] == 0


BOOST = """
import sys
from datasets import disable_progress_bars, load_dataset
from midb import Booster
from midb.generators import Journal, OpenAIGenerator
disable_progress_bars()
url, source, journal, out = sys.argv[1:]
ds = load_dataset("parquet", data_files=source, split="train")
edits = Booster(generator=Journal(OpenAIGenerator("m", base_url=url, concurrency=32), journal)).map(ds, batch_size=512)
edits.to_parquet(out)
"""


def kill_and_resume(tmp_path, n, kills, latency):
    """Kill a boost at random moments; say what was asked again although it was in the journal. Ends with a whole run."""
    dice = random.Random(n)
    source, journal = tmp_path / "in.parquet", tmp_path / "boost.journal"
    dataset = rows(n)
    dataset.to_parquet(source)
    with FakeOpenAI(latency=latency) as server:
        generator = OpenAIGenerator("m", base_url=server.url)
        questions = Booster(generator=generator).preview(dataset, n)
        texts = [messages[-1]["content"] for messages in questions]
        known, asked_again, wasted = set(), set(), 0
        for _ in range(kills):
            server.get("reset")
            child = subprocess.Popen(
                [sys.executable, "-c", BOOST, server.url, str(source), str(journal), str(tmp_path / "never.parquet")]
            )
            goal = dice.randint(1, max(2, (n - len(known)) // 4))
            server.wait_until(lambda stats, goal=goal: stats["answered"] >= goal, seconds=60)
            child.send_signal(signal.SIGKILL)
            child.wait()
            asked = {text for text, (count, _) in server.get("asked").items() if count}
            asked_again |= asked & known
            before = len(known)
            known = journaled(Journal(generator, journal), questions, texts)
            wasted += len(asked) - (len(known) - before)
        server.get("reset")
        command = [sys.executable, "-c", BOOST, server.url, str(source), str(journal), str(tmp_path / "out.parquet")]
        subprocess.run(command, check=True)
        asked_again |= set(server.get("asked")) & known
        plain = [*command[:5], str(tmp_path / "other.journal"), str(tmp_path / "plain.parquet")]
        subprocess.run(plain, check=True)
    resumed, uninterrupted = (Dataset.from_parquet(str(tmp_path / f"{name}.parquet")) for name in ("out", "plain"))
    return resumed, uninterrupted, asked_again, wasted


def journaled(journal, questions, texts):
    """The prompts whose answers are in the file: a journal yields those first, and asks nobody before it is read on."""
    import sqlite3

    with closing(sqlite3.connect(journal.place)) as database:
        [count] = database.execute("SELECT count(*) FROM completions").fetchone()
    return {texts[position] for position, _ in islice(journal.stream(questions), count)}


def test_a_killed_boost_goes_on_where_it_was(tmp_path):
    resumed, uninterrupted, asked_again, wasted = kill_and_resume(tmp_path, n=300, kills=2, latency=0.01)
    assert resumed[:] == uninterrupted[:]
    assert set(resumed["boost_status"]) == {"boosted"}
    assert asked_again == set()
    assert wasted <= 2 * UNDER_WAY


@pytest.mark.slow
def test_twenty_kills_lose_nothing_and_pay_for_nothing_twice(tmp_path):
    resumed, uninterrupted, asked_again, wasted = kill_and_resume(tmp_path, n=2000, kills=20, latency=0.02)
    assert resumed[:] == uninterrupted[:]
    assert resumed["id"] == [f"r{i}" for i in range(2000)]
    assert asked_again == set()
    assert wasted <= 20 * UNDER_WAY


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("language", ["French", "Japanese", "Arabic"])
def test_the_published_raw_rows_pass_through_a_real_server_whole(shared, tmp_path, language):
    raw = published_raw(shared, language)
    with FakeOpenAI() as server:
        edits = Booster(generator=Journal(OpenAIGenerator("m", base_url=server.url), tmp_path / "j")).map(raw)
        assert server.get("stats")["requests"] <= 2301
    whole(raw, edits)
    assert edits["boost_status"][:].count("boosted") > 2200


@pytest.mark.slow
@pytest.mark.shared
def test_the_published_raw_rows_pass_through_a_local_model_whole(shared, tmp_path):
    tiny = make_model(tmp_path / "tiny", context=32_768)
    generator = TransformersGenerator(str(tiny), sampling=Sampling(max_tokens=4), batch_size=16)
    for language in ("French", "Japanese", "Arabic"):
        raw = published_raw(shared, language)
        edits = Booster(generator=Journal(generator, tmp_path / "j")).map(raw)
        whole(raw, edits)
        assert sum(filter(None, edits["boost_completion_tokens"])) > 0


def published_raw(shared, language):
    edits = release.load_training(shared / "data/midb", [language])
    raw = edits.select_columns(
        ["id", "language", "raw_instruction", "raw_input", "raw_response", "published_distance", "repair"]
    )
    return raw.rename_columns({f"raw_{name}": name for name in ("instruction", "input", "response")})


def whole(raw, edits):
    """Every row, in order, with the caller's columns and raw text as they were, and a status."""
    assert edits["id"] == raw["id"]
    assert (
        edits.select_columns(["language", "published_distance", "repair"])[:]
        == raw.select_columns(["language", "published_distance", "repair"])[:]
    )
    for name in ("instruction", "input", "response"):
        assert edits[f"raw_{name}"] == raw[name]
    assert set(edits["boost_status"]) <= {"boosted", "unchanged", "rejected", "failed"}
