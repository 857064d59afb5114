import json
import multiprocessing
import os
import pickle
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from fake_openai import FakeOpenAI

from midb.errors import MidbError
from midb.generators import Completion, FunctionGenerator, Journal, OpenAIGenerator, Sampling

SAMPLED = Sampling(temperature=0.7, index=1)


def chats(*texts):
    return [[{"role": "user", "content": text}] for text in texts]


def rows(count):
    return chats(*(f"row {number}" for number in range(count)))


class Counter:
    """A model that remembers what it was asked; `sick` prompts fail."""

    def __init__(self, sick=()):
        self.asked, self.sick = [], set(sick)

    def __call__(self, messages):
        text = messages[-1]["content"]
        self.asked.append(text)
        if text in self.sick:
            return Completion("", "error", error="http_500: sick")
        return Completion(f"{text}!", "length", 3, 4, logprobs={"content": [{"token": "\ud83d", "logprob": -0.1}]})


def journal(tmp_path, model=None):
    return Journal(FunctionGenerator(model or Counter(), name="model"), tmp_path / "answers.journal")


def kept(path):
    with sqlite3.connect(path) as database:
        found = {text for (text,) in database.execute("SELECT text FROM completions")}
    database.close()
    return found


def test_what_was_answered_once_is_the_same_and_not_asked_again(tmp_path):
    model = Counter()
    first = journal(tmp_path, model).generate(rows(1200))
    again = journal(tmp_path, model).generate(rows(1201))
    assert again[:1200] == first
    assert model.asked == [f"row {number}" for number in range(1201)]


def test_each_answer_is_on_disk_before_anyone_sees_it(tmp_path):
    memory = journal(tmp_path)
    for position, completion in memory.stream(rows(20)):
        assert completion.text in kept(memory.path)
        assert len(kept(memory.path)) == position + 1


def test_known_answers_come_before_any_question_is_asked(tmp_path):
    model = Counter()
    journal(tmp_path, model).generate(chats("b", "d"))
    running = journal(tmp_path, model).stream(chats("a", "b", "c", "d"))
    assert {next(running)[0], next(running)[0]} == {1, 3}
    assert model.asked == ["b", "d"]
    assert [position for position, _ in running] == [0, 2]


def test_a_failure_is_handed_on_and_asked_again_by_the_next_run(tmp_path):
    model = Counter(sick=["b"])
    assert journal(tmp_path, model).generate(chats("a", "b"))[1].error == "http_500: sick"
    model.sick.clear()
    assert journal(tmp_path, model).generate(chats("a", "b"))[1].text == "b!"
    assert model.asked == ["a", "b", "b"]


def test_the_same_question_twice_in_one_call_is_asked_once(tmp_path):
    model = Counter()
    completions = journal(tmp_path, model).generate(chats("a", "b", "a", "a"))
    assert [completion.text for completion in completions] == ["a!", "b!", "a!", "a!"]
    assert model.asked == ["a", "b"]
    assert [completion.text for completion in journal(tmp_path, model).generate(chats("a", "a"))] == ["a!", "a!"]


def test_another_sampling_or_identity_or_message_is_another_question(tmp_path):
    model = Counter()
    memory = journal(tmp_path, model)
    memory.generate(chats("a"))
    memory.generate(chats("a"), SAMPLED)
    memory.generate(chats("a"), Sampling(temperature=0.7, index=2))
    Journal(FunctionGenerator(model, name="other"), memory.path).generate(chats("a"))
    memory.generate([[{"role": "system", "content": "a"}]])
    assert len(model.asked) == 5
    memory.generate(chats("a"), SAMPLED)
    assert len(model.asked) == 5


def test_it_goes_by_the_inner_generators_name_and_identity(tmp_path):
    memory = journal(tmp_path)
    assert (memory.name, memory.identity()) == ("model", memory.generator.identity())


@dataclass(frozen=True)
class Plain:
    """Knows `generate` only."""

    name: str = "plain"

    def identity(self):
        return "plain"

    def generate(self, prompts, sampling=None):
        return [Completion(prompt[-1]["content"]) for prompt in prompts]


def test_a_generator_that_does_not_stream_is_remembered_too(tmp_path):
    memory = Journal(Plain(), tmp_path / "plain.journal")
    assert [completion.text for completion in memory.generate(chats("a", "b"))] == ["a", "b"]
    assert kept(memory.path) == {"a", "b"}


def test_any_text_comes_back_as_it_was(tmp_path):
    strange = ["", "\0null\0", "ぁ\u202eא\n\r\t", "🦊" * 1000, "'; DROP TABLE completions; --"]
    memory = Journal(FunctionGenerator(lambda messages: messages[0]["content"], name="echo"), tmp_path / "a.journal")
    for _ in range(2):
        assert [completion.text for completion in memory.generate(chats(*strange))] == strange
    memory.generate(chats("half a pair \ud83d".encode("utf-16", "surrogatepass").decode("utf-16", "replace")))


def test_a_reader_who_stops_keeps_what_came(tmp_path):
    memory = journal(tmp_path)
    running = memory.stream(rows(100))
    seen = [next(running)[1].text for _ in range(7)]
    running.close()
    assert kept(memory.path) == set(seen)
    assert len(memory.generate(rows(100))) == 100


def test_the_answer_that_is_kept_is_the_one_that_is_given(tmp_path):
    def model(messages):
        answer = next(answers)
        if answer == "late":
            memory.generate([messages])  # as another process would, meanwhile
        return answer

    answers = iter(["late", "early"])
    memory = Journal(FunctionGenerator(model, name="model"), tmp_path / "a.journal")
    for _ in range(2):
        assert memory.generate(chats("a")) == [Completion("early")]


def test_half_a_surrogate_pair_is_kept_as_what_comes_back(tmp_path):
    memory = Journal(FunctionGenerator(lambda messages: "a\ud83d", name="model"), tmp_path / "a.journal")
    assert memory.generate(chats("a")) == memory.generate(chats("a")) == [Completion("a\ufffd")]


@pytest.mark.parametrize("concurrency", [4, 64])
def test_a_rerun_asks_only_the_rows_that_the_server_never_answers_and_ends(tmp_path, concurrency, monkeypatch):
    monkeypatch.setattr("midb.generators.openai.LONGEST_BACKOFF", 0.01)
    sick = [f"[[{fault}]] {number}" for fault in ("500", "null") for number in range(10)]
    with FakeOpenAI() as server:
        generator = OpenAIGenerator("tiny", base_url=server.url, concurrency=concurrency, max_retries=2)
        memory = Journal(generator, tmp_path / "a.journal")
        first = memory.generate(rows(90) + chats(*sick))
        assert [completion.error is None for completion in first] == [True] * 90 + [False] * 20
        for _ in range(2):
            server.get("reset")
            assert memory.generate(rows(90) + chats(*sick)) == first
            assert server.get("asked").keys() - {"Hi"} == set(sick)


def test_a_row_that_is_refused_fails_alone_in_every_run(tmp_path):
    with FakeOpenAI() as server:
        memory = Journal(OpenAIGenerator("tiny", base_url=server.url, concurrency=4), tmp_path / "a.journal")
        for _ in range(3):
            completions = memory.generate([*chats("[[403]]"), *rows(50)])
            assert completions[0].error.startswith("http_403: ")
            assert all(completion.error is None for completion in completions[1:])
        assert server.get("asked")["[[403]]"][0] == 3


def other_database(path):
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE somebody_elses (x)")
    database.close()


def newer_journal(path):
    Journal(Plain(), path).generate(chats("a"))
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()


UNUSABLE = {
    "a text file": lambda path: path.write_text("not a database, but long enough to be looked at " * 100),
    "somebody else's database": other_database,
    "a newer journal": newer_journal,
    "a folder": lambda path: path.mkdir(),
    "below a file": lambda path: path.parent.rmdir() or path.parent.write_text(""),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_a_file_that_cannot_be_a_journal_is_refused_before_a_request(tmp_path, kind):
    path = tmp_path / "folder" / "answers.journal"
    path.parent.mkdir()
    UNUSABLE[kind](path)
    model = Counter()
    with pytest.raises(MidbError, match=r"answers.journal cannot be used: .*; give a path on a local disk"):
        Journal(FunctionGenerator(model, name="model"), path).generate(chats("a"))
    assert model.asked == []
    if kind == "somebody else's database":
        with sqlite3.connect(path) as database:
            assert database.execute("SELECT name FROM sqlite_master").fetchall() == [("somebody_elses",)]
        database.close()


def test_a_missing_folder_is_made(tmp_path):
    Journal(Plain(), str(tmp_path / "new" / "folder" / "a.journal")).generate(chats("a"))
    assert kept(tmp_path / "new" / "folder" / "a.journal") == {"a"}


def test_a_full_disk_is_an_error_and_what_was_seen_is_kept(tmp_path):
    def fill():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
        try:
            for _, completion in memory.stream(rows(2000)):
                seen.send(completion.text)
        except MidbError as error:
            seen.send(error)
        seen.close()

    memory = journal(tmp_path, lambda messages: messages[0]["content"] + "x" * 1000)
    told, seen = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=fill)
    child.start()
    seen.close()
    heard = []
    while not heard or isinstance(heard[-1], str):
        heard.append(told.recv())
    child.join()
    assert "cannot be used" in str(heard[-1])
    assert len(heard) > 20
    assert set(heard[:-1]) <= kept(memory.path)


def test_it_pickles_with_its_file_and_works_in_a_fork_and_in_threads(tmp_path):
    memory = Journal(Plain(), tmp_path / "a.journal")
    running = memory.stream(rows(3))
    next(running)  # a connection is open while the others work
    with multiprocessing.get_context("fork").Pool(2) as pool:
        answers = pool.map(memory.generate, [rows(50), rows(50)])
    threads = [threading.Thread(target=memory.generate, args=[rows(60)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(running)) == 2
    assert answers[0] == answers[1] == memory.generate(rows(50))
    assert pickle.loads(pickle.dumps(memory)) == memory
    assert len(kept(memory.path)) == 60


SHARED = """if True:
    import sys
    from midb.generators import FunctionGenerator, Journal
    path, me, count, step = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    memory = Journal(FunctionGenerator(lambda messages: messages[0]["content"] + me, name="model"), path)
    print("ready", flush=True)
    sys.stdin.readline()
    chats = [[{"role": "user", "content": f"row {number} "}] for number in range(count)]
    for start in range(0, count, step):
        memory.generate(chats[start : start + step])
"""


def shared_by(processes, path, count, step):
    """Start real processes at the same moment on one file, return what they complain about."""
    arguments = [str(path), str(count), str(step)]
    children = [
        subprocess.Popen(
            [sys.executable, "-X", "dev", "-W", "error", "-c", SHARED, arguments[0], str(me), *arguments[1:]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for me in range(processes)
    ]
    for child in children:
        assert child.stdout.readline() == "ready\n"
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    return [child.communicate(timeout=300)[1] for child in children]


def test_two_processes_share_one_file(tmp_path):
    # Small calls: the file is opened, its log folded in and removed again and again, which is where locks meet.
    assert shared_by(2, tmp_path / "a.journal", count=300, step=3) == ["", ""]
    assert {text.rpartition(" ")[0] for text in kept(tmp_path / "a.journal")} == {f"row {n}" for n in range(300)}
    assert len(kept(tmp_path / "a.journal")) == 300


def test_whoever_opens_a_new_file_at_the_same_moment_waits(tmp_path):
    together = threading.Barrier(4)

    def first(number):
        together.wait()
        return Journal(Plain(), tmp_path / f"{number}.journal").generate(chats("a"))

    with ThreadPoolExecutor(4) as pool:
        for number in range(150):
            assert list(pool.map(first, [number] * 4)) == [[Completion("a")]] * 4


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 50, 3000])
def test_six_processes_share_one_file(tmp_path, step):
    assert shared_by(6, tmp_path / "a.journal", count=3000, step=step) == [""] * 6
    assert len(kept(tmp_path / "a.journal")) == 3000


BOOSTING = """if True:
    import sys
    from midb.generators import Journal, OpenAIGenerator
    memory = Journal(OpenAIGenerator("tiny", base_url=sys.argv[1], concurrency=16), sys.argv[2])
    chats = [[{"role": "user", "content": f"row {number}"}] for number in range(int(sys.argv[3]))]
    for position, completion in memory.stream(chats):
        print(completion.text, flush=True)
"""


def killed_run(server, path, count, lines):
    """Run in a child, kill it without warning after it has printed so many answers; return all that it printed."""
    arguments = [server.url, str(path), str(count)]
    child = subprocess.Popen([sys.executable, "-c", BOOSTING, *arguments], stdout=subprocess.PIPE, text=True)
    seen = [child.stdout.readline() for _ in range(lines)]
    os.kill(child.pid, signal.SIGKILL)
    seen += child.stdout.readlines()
    child.wait()
    child.stdout.close()
    return {line.strip() for line in seen if line.endswith("\n")}


def check_kills(tmp_path, kills, count):
    path, seen = tmp_path / "killed.journal", set()
    with FakeOpenAI(latency=0.002) as server:
        for _ in range(kills):
            seen |= killed_run(server, path, count, lines=random.randint(1, count // kills))
            safe = kept(path)
            assert seen <= safe
        asked = server.get("asked")
        server.get("reset")
        completions = Journal(OpenAIGenerator("tiny", base_url=server.url, concurrency=16), path).generate(rows(count))
        assert [completion.text for completion in completions] == [f"REVISED: row {number}" for number in range(count)]
        again = set(server.get("asked"))
        assert again == {f"row {number}" for number in range(count)} - {text.removeprefix("REVISED: ") for text in safe}
        # Only what was in flight at a kill was ever answered twice.
        twice = [text for text in asked if asked[text][0] + (text in again) > 1]
        assert len(twice) <= kills * (16 + 64 + 16)


def test_a_kill_loses_nothing_that_was_seen(tmp_path):
    check_kills(tmp_path, kills=2, count=400)


@pytest.mark.slow
def test_many_kills_lose_nothing_that_was_seen(tmp_path):
    check_kills(tmp_path, kills=20, count=8000)


def test_a_run_leaves_no_open_file_behind(tmp_path):
    text = """if True:
        import sys
        from midb.generators import FunctionGenerator, Journal
        memory = Journal(FunctionGenerator(lambda messages: "a", name="model"), sys.argv[1])
        unread = memory.stream([[{"role": "user", "content": text}] for text in "abc"])
        next(unread)
        memory.generate([[{"role": "user", "content": "d"}]])
    """
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", text, str(tmp_path / "a.journal")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_journal_says_what_it_holds(tmp_path):
    memory = journal(tmp_path)
    memory.generate(chats("a"))
    with sqlite3.connect(memory.path) as database:
        database.row_factory = sqlite3.Row
        [row] = map(dict, database.execute("SELECT * FROM completions"))
    database.close()
    assert len(row.pop("key")) == 32
    assert row.pop("created") > 1.7e9
    assert json.loads(row.pop("logprobs"))["content"][0]["logprob"] == -0.1
    assert row == {
        "name": "model",
        "identity": memory.identity(),
        "text": "a!",
        "finish_reason": "length",
        "prompt_tokens": 3,
        "completion_tokens": 4,
    }
