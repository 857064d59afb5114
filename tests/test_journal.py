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
from dataclasses import dataclass, field, replace

import pytest
from fake_openai import FakeOpenAI

from midb.errors import GenerationError, MidbError
from midb.generators import Completion, FunctionGenerator, Journal, OpenAIGenerator, Sampling
from midb.generators.journal import _in_order

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
        assert completion.text in kept(memory.place)
        assert len(kept(memory.place)) == position + 1


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
    Journal(FunctionGenerator(model, name="other"), memory.place).generate(chats("a"))
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
    assert kept(memory.place) == {"a", "b"}


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
    assert kept(memory.place) == set(seen)
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


def older_journal(path):
    Journal(Plain(), path).generate(chats("a"))
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 1")
    database.close()


UNUSABLE = {
    "a text file": lambda path: path.write_text("not a database, but long enough to be looked at " * 100),
    "somebody else's database": other_database,
    "a newer journal": newer_journal,
    "an older journal": older_journal,
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
        resource.setrlimit(resource.RLIMIT_FSIZE, (800_000, 800_000))
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
    assert set(heard[:-1]) <= kept(memory.place)


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
    assert len(kept(memory.place)) == 60


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
    with sqlite3.connect(memory.place) as database:
        database.row_factory = sqlite3.Row
        [row] = map(dict, database.execute("SELECT * FROM completions"))
    database.close()
    assert len(row.pop("key")) == 32
    assert row.pop("created") > 1.7e9
    assert row.pop("sent") is None
    assert json.loads(row.pop("logprobs"))["content"][0]["logprob"] == -0.1
    assert row == {
        "name": "model",
        "identity": memory.identity(),
        "text": "a!",
        "finish_reason": "length",
        "prompt_tokens": 3,
        "completion_tokens": 4,
    }


class Writer:
    """A model that has `words` to say to everything, and is cut after `max_tokens` of them."""

    def __init__(self, words=5):
        self.words, self.asked = words, []

    def generator(self, most=None, reason="length"):
        def write(messages):
            self.asked.append(most)
            cut = most is not None and self.words > most
            text = " ".join(["word"] * (most if cut else self.words))
            return Completion(text, reason if cut else "stop", 3, len(text.split()))

        sampling = Sampling() if most is None else Sampling(max_tokens=most)
        return Fixed(FunctionGenerator(write, name="writer", sampling=sampling))


@dataclass(frozen=True)
class Fixed:
    """Another generator under an identity that does not depend on its function's constants."""

    inner: FunctionGenerator
    yields: tuple[int, ...] | None = None
    name: str = "fixed"

    @property
    def sampling(self):
        return self.inner.sampling

    def identity(self):
        return "fixed"

    def generate(self, prompts, sampling=None):
        return self.inner.generate(prompts, sampling)

    def stream(self, prompts, sampling=None):
        for position, completion in self.inner.stream(prompts, sampling):
            for _ in range(2 if position == self.yields else 1):
                yield position, completion


def test_a_higher_max_tokens_asks_only_for_answers_that_were_cut(tmp_path):
    place, short, long = tmp_path / "a.journal", Writer(words=5), Writer(words=50)
    for model, text in ((short, "short"), (long, "long")):
        for most in (10, 10, 20, 100, 1000):
            [answer] = Journal(model.generator(most), place).generate(chats(text))
            assert answer.completion_tokens == min(model.words, most)
    assert short.asked == [10]
    assert long.asked == [10, 20, 100]


def test_a_lower_max_tokens_serves_no_answer_that_is_too_long_for_it(tmp_path):
    place, model = tmp_path / "a.journal", Writer(words=50)
    for most in (100, 10, 10, 50, 49, 100):
        [answer] = Journal(model.generator(most), place).generate(chats("a"))
        assert answer.completion_tokens == min(50, most)
    assert model.asked == [100, 10, 49]
    model.words = 5  # a model that draws another answer, which ends where the first one was too long
    assert Journal(model.generator(20), place).generate(chats("a"))[0].completion_tokens == 5
    assert Journal(model.generator(20), place).generate(chats("a"))[0].completion_tokens == 5
    assert Journal(model.generator(100), place).generate(chats("a"))[0].completion_tokens == 50
    assert model.asked == [100, 10, 49, 20]


def test_the_sampling_of_a_call_and_the_same_sampling_of_the_generator_are_one_question(tmp_path):
    place, model = tmp_path / "a.journal", Writer()
    Journal(model.generator(20), place).generate(chats("a"))
    Journal(model.generator(30), place).generate(chats("a"), Sampling(max_tokens=20))
    assert model.asked == [20]
    Journal(model.generator(20), place).generate(chats("a"), SAMPLED)
    assert model.asked == [20, 20]


@pytest.mark.parametrize("reason", ["content_filter", "abort", "error"])
def test_an_ending_that_is_no_answer_is_asked_again(tmp_path, reason):
    place, model = tmp_path / "a.journal", Writer(words=50)
    for _ in range(2):
        assert Journal(model.generator(10, reason), place).generate(chats("a"))[0].finish_reason == reason
    assert len(model.asked) == 2
    assert kept(place) == set()


def test_an_engine_that_yields_an_answer_twice_gives_it_once(tmp_path):
    generator = replace(Writer().generator(), yields=1)
    finished = list(Journal(generator, tmp_path / "a.journal").stream(chats("a", "b", "c", "b")))
    assert [position for position, _ in finished] == [0, 1, 3, 2]


def workers(place):
    with sqlite3.connect(place) as database:
        found = database.execute("SELECT rank, pid FROM workers ORDER BY rank").fetchall()
    database.close()
    return found


def test_each_rank_begins_as_far_from_the_others_as_it_can():
    firsts = [_in_order(list(range(16)), rank)[:2] for rank in range(8)]
    assert firsts == [[0, 1], [15, 14], [8, 9], [7, 6], [4, 5], [3, 2], [12, 13], [11, 10]]
    assert all(sorted(_in_order(list(range(5)), rank)) == list(range(5)) for rank in range(40))


def test_calls_at_the_same_time_begin_at_different_ends_and_sign_off(tmp_path):
    model = Counter()
    memory = journal(tmp_path, model)
    running, given = [memory.stream(rows(16)) for _ in range(8)], {number: [] for number in range(8)}
    for number, each in enumerate(running):
        while len(model.asked) <= number:  # first come the answers of those before
            given[number] += [next(each)]
    assert model.asked[:3] == ["row 0", "row 15", "row 8"]
    assert len(set(model.asked)) == 8
    assert workers(memory.place) == [(rank, os.getpid()) for rank in range(8)]
    running[1].close()
    running[5].close()
    with sqlite3.connect(memory.place) as database:
        child = subprocess.Popen(["true"])
        child.wait()
        database.execute("UPDATE workers SET pid = ? WHERE rank = 0", [child.pid])  # as one that was killed
    database.close()
    late = memory.stream(rows(20))
    assert len(list(late)) == 20  # everything, each row from whoever answered it
    assert [rank for rank, _ in workers(memory.place)] == [2, 3, 4, 6, 7]
    for number in (0, 2, 3, 4, 6, 7):
        assert sorted(position for position, _ in [*given[number], *running[number]]) == list(range(16))
    assert workers(memory.place) == []
    assert sorted(model.asked) == sorted(f"row {number}" for number in range(20))


def test_what_another_process_answers_meanwhile_is_not_asked(tmp_path):
    def model(messages):
        asked.append(messages[0]["content"])
        if len(asked) == 3:
            other.generate(rows(10)[5:9])
        return messages[0]["content"]

    asked = []
    memory, other = (Journal(FunctionGenerator(model, name="m"), tmp_path / "a.journal") for _ in range(2))
    finished = dict(memory.stream(rows(10)))
    assert sorted(asked) == [f"row {number}" for number in range(10)]
    assert [finished[number].text for number in range(10)] == sorted(asked)
    assert [number for number in range(10) if finished[number].remembered] == [5, 6, 7, 8]


def test_it_says_what_it_remembers_and_asks_and_makes_nothing(tmp_path):
    place, model = tmp_path / "a.journal", Writer(words=50)
    memory = Journal(model.generator(100), place)
    assert memory.remembers(chats("a", "b")) == [False, False]
    assert not place.exists()
    memory.generate(chats("a", "c"))
    Journal(model.generator(10), place).generate(chats("b"))
    assert memory.remembers(chats("a", "b", "c", "a")) == [True, False, True, True]
    assert memory.remembers(chats("a", "b"), Sampling(max_tokens=10)) == [False, True]
    assert memory.remembers(chats("a", "b"), Sampling(max_tokens=60)) == [True, False]
    assert memory.remembers(chats("a"), Sampling(max_tokens=100, index=1)) == [False]
    assert memory.remembers([]) == []
    assert len(model.asked) == 3


@dataclass
class Remote:
    """A server that says what it serves, while it lives."""

    serves: str = "one"
    lives: bool = True
    name: str = "model"
    asked: list = field(default_factory=list)

    def declared(self):
        return "address"

    def identity(self):
        if not self.lives:
            raise GenerationError("nobody answers at the address; start the server")
        return self.serves

    def generate(self, prompts, sampling=None):
        self.identity()
        self.asked += prompts
        return [Completion(f"{self.serves} {prompt[0]['content']}") for prompt in prompts]


def check_gone(place):
    first = Journal(Remote(), place).generate(rows(5))
    gone = Journal(Remote(lives=False), place)
    assert gone.generate(rows(5)) == first
    assert gone.identity() == "one"
    assert gone.remembers(rows(6)) == [True] * 5 + [False]
    with pytest.raises(GenerationError, match=r"start the server$"):
        gone.generate(rows(6))
    Journal(Remote(serves="two"), place).generate(rows(1))
    with pytest.raises(GenerationError, match="start the server; the journal holds answers of 2 different models"):
        gone.generate(rows(5))


def test_finished_work_of_a_server_that_is_gone_can_be_read(tmp_path):
    with pytest.raises(GenerationError, match=r"start the server$"):
        Journal(Remote(lives=False), tmp_path / "a.journal").identity()
    assert list(tmp_path.iterdir()) == []
    check_gone(tmp_path / "a.journal")


ASKING = """if True:
    import sys
    from midb.generators import Journal, OpenAIGenerator
    url, place, start, count, window = sys.argv[1:6]
    memory = Journal(OpenAIGenerator("tiny", base_url=url, concurrency=int(window)), place)
    chats = [[{"role": "user", "content": f"row {number}"}] for number in range(int(start), int(start) + int(count))]
    print("ready", flush=True)
    sys.stdin.readline()
    for position, completion in memory.stream(chats):
        print(position, completion.text, flush=True)
"""


def asking(server, place, start, count, window):
    """A process that is ready to ask, and waits for a line."""
    arguments = [server.url, str(place), str(start), str(count), str(window)]
    command = [sys.executable, "-W", "error", "-c", ASKING, *arguments]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    return child


def go(child):
    child.stdin.write("go\n")
    child.stdin.flush()


def said(child):
    """What a process that ended well answered."""
    text = child.communicate(timeout=100)[0]
    assert child.returncode == 0
    return {int(position): answer for position, _, answer in (line.partition(" ") for line in text.splitlines())}


@pytest.mark.parametrize("window", [8, 64])
def test_two_processes_with_the_same_rows_ask_each_once(tmp_path, window):
    with FakeOpenAI(latency=0.02) as server:
        children = [asking(server, tmp_path / "a.journal", 0, 150, window) for _ in range(2)]
        for child in children:
            go(child)
        expected = {number: f"REVISED: row {number}" for number in range(150)}
        assert [said(child) for child in children] == [expected] * 2
        assert server.get("stats")["requests"] == 150


def test_a_password_in_the_place_is_refused_and_not_repeated(tmp_path):
    for place in ("s3://KEY:SEC/RET@bucket/run", "sftp://me:SECRET@host/run", "ftp://:SECRET@host"):
        with pytest.raises(ValueError, match="holds a password; take it out") as error:
            Journal(Plain(), place)
        assert "RET" not in str(error.value)
    for place in ("sftp://host:22/home/a@b", "sftp://me@host/run", "s3://bucket/a:b", "s3://bucket:1/x", "C:/a:b@c"):
        assert Journal(Plain(), place).place == place
