"""A journal that many machines share. A machine is a process with a temporary folder of its own."""

import json
import multiprocessing
import os
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
import warnings

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_openai import FakeOpenAI
from test_journal import ASKING, Counter, Remote, Writer, chats, check_gone, go, rows, said

from midb.errors import MidbError
from midb.generators import Completion, FunctionGenerator, Journal, segments
from midb.generators.segments import Index, put


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """Go to another machine; a test begins on one of its own."""

    def go_to(name):
        (tmp_path / name).mkdir(exist_ok=True)
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / name))

    go_to("first")
    return go_to


@pytest.fixture
def place(tmp_path):
    return f"{tmp_path}/shared/"


def shared(place, model=None):
    return Journal(FunctionGenerator(model or Counter(), name="model"), place)


def found(place, end=".parquet"):
    return sorted(name for name in os.listdir(place) if name.endswith(end))


def test_what_one_machine_has_answered_another_does_not_ask(machine, place):
    model = Counter()
    first = shared(place, model).generate(rows(20))
    machine("second")
    assert shared(place, model).remembers(rows(21)) == [True] * 20 + [False]
    again = shared(place, model).generate(rows(21))
    assert again[:20] == first
    assert [each.remembered for each in again] == [True] * 20 + [False]
    assert model.asked == [f"row {number}" for number in range(21)]


def test_a_folder_that_exists_and_a_url_are_shared_too(machine, tmp_path):
    (tmp_path / "there").mkdir()
    for place in (tmp_path / "there", f"file://{tmp_path}/url", "memory://bucket/run"):
        model = Counter()
        for name in ("one", "two"):
            machine(name)
            assert len(shared(place, model).generate(chats("a", "b"))) == 2
        assert model.asked == ["a", "b"]
    assert found(tmp_path / "there")
    assert fsspec.filesystem("memory").glob("memory://bucket/run/*.parquet")


def test_one_machine_sees_its_own_answers_before_they_are_sent(place):
    model = Counter()
    running = shared(place, model).stream(rows(5))
    next(running)
    assert shared(place, model).remembers(rows(2)) == [True, False]
    assert found(place) == []
    assert len(list(running)) == 4
    assert len(found(place)) == 1


def test_a_cut_answer_and_one_that_ended_are_told_apart_on_another_machine(machine, place):
    short, long = Writer(words=5), Writer(words=50)
    for number, most in enumerate((10, 20, 100, 10, 1000)):
        machine(f"machine {number}")
        for model, text in ((short, "short"), (long, "long")):
            assert Journal(model.generator(most), place).generate(chats(text))[0].completion_tokens == min(
                model.words, most
            )
    assert short.asked == [10]
    assert long.asked == [10, 20, 100]


def test_any_text_comes_back_as_it_was(machine, place):
    strange = ["", "\0null\0", "ぁ\u202eא\n\r\t", "🦊" * 1000]
    memory = Journal(FunctionGenerator(lambda messages: messages[0]["content"], name="echo"), place)
    first = memory.generate(chats(*strange))
    machine("second")
    assert [(each.text, each.remembered) for each in memory.generate(chats(*strange))] == [
        (text, True) for text in strange
    ]
    assert first == memory.generate(chats(*strange))
    [row] = pq.read_table(f"{place}{found(place)[0]}").slice(1, 1).to_pylist()
    assert (row["finish_reason"], row["name"], row["identity"], len(row["key"])) == (
        "stop",
        "echo",
        memory.identity(),
        32,
    )


def test_segments_are_sent_while_a_call_goes_on_and_others_see_them(machine, place, monkeypatch):
    def model(messages):
        asked.append(messages[0]["content"])
        if len(asked) == 6:
            machine("second")
            other.generate(rows(10)[7:9])
            machine("first")
        return messages[0]["content"]

    monkeypatch.setattr(segments, "SEND", 0)
    asked = []
    memory, other = (Journal(FunctionGenerator(model, name="m"), place) for _ in range(2))
    finished = dict(memory.stream(rows(10)))
    assert sorted(asked) == [f"row {number}" for number in range(10)]
    assert [finished[number].remembered for number in (6, 7, 8, 9)] == [False, True, True, False]
    assert len(found(place)) == 10


def damaged(path, change):
    content = bytearray(path.read_bytes())
    path.write_bytes(change(content))


def fewer(path):
    table = pq.read_table(path)
    pq.write_table(table.slice(0, 3), path)  # which keeps what the file says of itself


def another_format(path):
    table = pq.read_table(path)
    says = json.loads(pq.read_metadata(path).metadata[b"midb"]) | {"format": 99}
    pq.write_table(table.replace_schema_metadata({"midb": json.dumps(says)}), path)


def other_columns(path):
    says = pq.read_metadata(path).metadata[b"midb"]
    pq.write_table(pa.table({"key": [1] * 10}).replace_schema_metadata({"midb": says}), path)


DAMAGES = {
    "cut": lambda path: damaged(path, lambda content: content[: len(content) // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "a text page": lambda path: damaged(path, lambda content: content[:60] + bytes([content[60] ^ 1]) + content[61:]),
    "not Parquet": lambda path: path.write_text("hello\x1b[31m"),
    "another program's": lambda path: pq.write_table(pa.table({"key": [b"x"]}), path),
    "fewer answers than it says": fewer,
    "another format": another_format,
    "other columns": other_columns,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_segment_that_is_not_whole_is_named_and_its_answers_are_asked_again(machine, tmp_path, place, kind):
    model = Counter()
    first = shared(place, model).generate(rows(10))
    machine("second")
    shared(place, model).generate(rows(15))
    name = found(place)[0]
    DAMAGES[kind](tmp_path / "shared" / name)
    machine("third")
    with pytest.warns(UserWarning, match=f"'{name}' in the journal .* is no whole segment") as told:
        again = shared(place, model).generate(rows(15))
    assert len(told) == 1
    assert str(told[0].message).isprintable()
    assert again[:10] == first
    assert [each.remembered for each in again] == [False] * 10 + [True] * 5
    assert model.asked[15:] == [f"row {number}" for number in range(10)]
    machine("fourth")
    with pytest.warns(UserWarning, match="no whole segment"):
        assert shared(place, model).generate(rows(15)) == again
    assert len(model.asked) == 25


def test_no_flipped_byte_of_a_segment_makes_a_wrong_answer(tmp_path, place, machine):
    first = shared(place).generate(rows(4))
    path = tmp_path / "shared" / found(place)[0]
    content = path.read_bytes()
    for at in range(0, len(content), 37):
        path.write_bytes(content[:at] + bytes([content[at] ^ (1 << at % 8)]) + content[at + 1 :])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            place_of_call = segments.Shared(place, Index(), create=False)
            place_of_call.path.unlink()
            texts = dict(content_keys(content))
            for key, completion in place_of_call.find(list(texts), 2048):
                assert completion.text == texts[key], at
            place_of_call.database.close()
    assert len(first) == 4


def content_keys(content):
    table = pq.read_table(pa.BufferReader(content))
    return zip(table["key"].to_pylist(), table["text"].to_pylist(), strict=True)


def test_of_two_answers_the_oldest_is_served_everywhere(machine, place, monkeypatch):
    class Drawn:
        def __init__(self):
            self.count = 0

        def __call__(self, messages):
            self.count += 1
            if self.count == 1:
                machine("second")
                memory.generate(chats("a"))
                machine("first")
            return f"draw {self.count}"

    memory = shared(place, Drawn())
    assert memory.generate(chats("a")) == [Completion("draw 2")]
    for number in range(3):
        machine(f"later {number}")
        assert shared(place, memory.generator.function).generate(chats("a")) == [Completion("draw 2")]


def test_a_store_that_takes_nothing_now_gets_it_later(machine, place, monkeypatch):
    def full(files, path, content):
        if path.endswith(".parquet"):
            raise OSError(28, "No space left on device")
        put(files, path, content)

    model = Counter()
    with monkeypatch.context() as sick:
        sick.setattr(segments, "put", full)
        with pytest.warns(
            UserWarning, match="takes no answers now .*No space.* stay in .*the next run on this machine"
        ):
            assert len(shared(place, model).generate(rows(3))) == 3
    assert found(place) == []
    shared(place, model).generate(rows(3))
    assert len(found(place)) == 1
    machine("second")
    shared(place, model).generate(rows(3))
    assert len(model.asked) == 3


def test_a_full_disk_leaves_no_half_file(tmp_path):
    def fill():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        with pytest.raises(OSError, match="too large"):
            put(fsspec.filesystem("file"), f"{tmp_path}/folder/a.parquet", b"x" * 100_000)
        os._exit(7)

    (tmp_path / "folder").mkdir()
    child = multiprocessing.get_context("fork").Process(target=fill)
    child.start()
    child.join()
    assert child.exitcode == 7
    assert os.listdir(tmp_path / "folder") == []


def test_the_file_on_a_machine_is_for_its_user_alone(tmp_path, place, machine):
    shared(place).generate(chats("a"))
    [folder] = (tmp_path / "first").iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    machine("second")
    (tmp_path / "second" / folder.name).symlink_to(folder)
    with pytest.raises(MidbError, match="belongs to another user, or others may"):
        shared(place).generate(chats("b"))
    machine("third")
    (tmp_path / "third" / folder.name).mkdir(mode=0o755)
    with pytest.raises(MidbError, match="belongs to another user, or others may"):
        shared(place).generate(chats("b"))


def test_sent_answers_are_forgotten_on_the_machine_that_has_sent_them(place, monkeypatch, machine):
    model = Counter()
    monkeypatch.setattr(segments, "FORGET", -1)
    memory = shared(place, model)
    memory.generate(rows(5))
    memory.generate(rows(6))
    monkeypatch.setattr(segments.Memory, "find", lambda self, keys, limit: iter(()))  # what is not in the file
    assert len(memory.generate(rows(6))) == 6
    assert len(model.asked) == 6


def test_asking_what_is_remembered_makes_nothing(place, tmp_path):
    assert shared(place).remembers(rows(2)) == [False, False]
    assert shared(f"memory://{tmp_path}").remembers(rows(2)) == [False, False]
    assert not os.path.exists(place)
    assert list((tmp_path / "first").iterdir()) == []


def test_finished_work_of_a_server_that_is_gone_can_be_read(place):
    check_gone(place)


def test_two_models_of_one_address_are_told_apart_on_another_machine(machine, place):
    for model in ("one", "two"):
        machine(model)
        assert Journal(Remote(serves=model), place).generate(chats("a"))[0].text == f"{model} a"


def test_a_place_that_cannot_be_used_is_refused_before_a_request(tmp_path, machine):
    model = Counter()
    (tmp_path / "file").write_text("")
    for place, why in (
        (f"{tmp_path}/file/below/", "cannot be used: NotADirectoryError"),
        ("nowhere://bucket/run", "cannot be used: .*whose fsspec library is installed"),
    ):
        with pytest.raises(MidbError, match=why):
            shared(place, model).generate(chats("a"))
    assert model.asked == []


def test_machines_at_the_same_time_begin_at_different_ends_and_sign_off(machine, place):
    model, running = Counter(), []
    for number in range(4):
        machine(f"machine {number}")
        running.append(shared(place, model).stream(rows(16)))
        next(running[-1])
    assert model.asked == ["row 0", "row 15", "row 8", "row 7"]
    assert [name.split(".")[1] for name in sorted(os.listdir(place)) if name.startswith("worker.")] == list("0123")
    for number in (2, 1, 0, 3):
        machine(f"machine {number}")
        running[number].close()
    assert [name for name in os.listdir(place) if name.startswith("worker.")] == []
    put(
        fsspec.filesystem("file"), f"{place}worker.0.1700000000.{'0' * 32}", b""
    )  # of a process that was killed long ago
    machine("late")
    next(shared(place, model).stream(rows(17)[16:] + rows(20)[18:]))
    assert model.asked[4:] == ["row 16"]


def test_it_travels_to_another_process(place):
    memory = shared(place)
    memory.generator.function.asked = []
    memory.generate(rows(3))
    again = pickle.loads(pickle.dumps(memory))
    assert vars(again).keys() == {"generator", "place"}
    assert again.remembers(rows(3)) == [True] * 3
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.map(memory.remembers, [rows(3)]) == [[True] * 3]


def test_the_index_finds_every_key_among_many_and_takes_few_bytes():
    index, drawn = Index(), np.random.default_rng(0)
    keys = drawn.integers(0, 1 << 63, (100, 500), dtype=np.uint64)
    keys[7, 3] = keys[60, 4] = keys[0, 0]  # three answers under one start of a key
    for number, some in enumerate(keys):
        index.names.append(f"{number:03}")
        index.add(some, np.arange(500, dtype=np.uint64) | np.uint64(number << 32))
    held = sum(array.nbytes for run in index.runs for array in run)
    assert held == 16 * keys.size
    assert len(index.runs) < 6
    wanted = [int(keys[number, 9]).to_bytes(8, "little") + b"rest" for number in range(100)] + [b"unknown "]
    places = index.locate(wanted, 2048)
    assert {key: number for key, (number, _) in places.items()} == {
        key: number for number, key in enumerate(wanted[:-1])
    }
    one = int(keys[0, 0]).to_bytes(8, "little")
    assert sorted(index.candidates([one])) == [(one, 0, 0), (one, 7, 3), (one, 60, 4)]
    index.bad.add(0)
    assert index.locate([one], 2048) == {one: (7, one)}


def test_a_key_that_only_begins_alike_is_asked_and_not_waited_for(machine, place, monkeypatch):
    model = Counter()
    shared(place, model).generate(chats("a"))
    machine("second")
    monkeypatch.setattr(Index, "locate", lambda self, keys, limit: {key: (0, key) for key in keys})
    assert shared(place, model).generate(chats("b"))[0].text == "b!"
    assert model.asked == ["a", "b"]


def on_machine(server, place, folder, count, window=8):
    """A process on a machine of its own that is ready to ask `count` rows."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-W", "error", "-c", ASKING, server.url, str(place), "0", str(count), str(window)]
    child = subprocess.Popen(
        command, env=os.environ | {"TMPDIR": str(folder)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "ready\n"
    return child


@pytest.mark.parametrize("machines", [1, 3])
def test_of_three_processes_one_is_killed_and_comes_back_and_a_fourth_asks_nothing(tmp_path, place, machines):
    count, window = 240, 4
    expected = {number: f"REVISED: row {number}" for number in range(count)}
    folders = [tmp_path / f"machine {number % machines}" for number in range(3)]
    with FakeOpenAI(latency=0.02) as server:
        children = [on_machine(server, place, folder, count, window) for folder in folders]
        for child in children:
            go(child)
        for _ in range(10):
            children[2].stdout.readline()
        children[2].kill()
        children[2].communicate()
        assert [said(child) for child in children[:2]] == [expected] * 2
        if machines == 1:  # and again what the killed one had in flight, or answered and not stored
            assert count <= server.get("stats")["requests"] <= count + 3 * window
        before = server.get("asked")
        for folder in (folders[2], tmp_path / "fourth"):
            late = on_machine(server, place, folder, count, window)
            go(late)
            assert said(late) == expected
            assert server.get("asked") == before


def test_a_killed_machine_asks_only_what_it_had_not_been_answered_and_sends_the_rest(tmp_path, place):
    with FakeOpenAI(latency=0.005) as server:
        child = on_machine(server, place, tmp_path / "a", 200)
        go(child)
        seen = [child.stdout.readline() for _ in range(50)]
        child.kill()
        seen += child.stdout.readlines()
        child.communicate()
        answered = {line.strip().partition(" ")[2].removeprefix("REVISED: ") for line in seen if line.endswith("\n")}
        assert found(place) == []  # it had sent nothing yet
        server.get("reset")
        back = on_machine(server, place, tmp_path / "a", 200)
        go(back)
        assert len(said(back)) == 200
        assert not answered & server.get("asked").keys()
        server.get("reset")
        other = on_machine(server, place, tmp_path / "b", 200)
        go(other)
        assert len(said(other)) == 200
        assert server.get("asked") == {}
