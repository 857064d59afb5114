import asyncio
import json
import multiprocessing
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from email.utils import formatdate

import pytest
from fake_openai import FakeOpenAI
from hypothesis import given
from hypothesis import strategies as st

from midb.errors import GenerationError
from midb.generators import Completion, OpenAIGenerator, Sampling
from midb.generators.openai import _read, _retry_after

KEY = "sk-not-for-anybodys-eyes"


@pytest.fixture(scope="module")
def process():
    with FakeOpenAI() as server:
        yield server


@pytest.fixture
def server(process):
    process.get("fault/none-after-1000000000")  # no fault but those in the prompts
    process.get("reset")
    return process


def ask(server, **settings):
    return OpenAIGenerator("tiny", base_url=server.url, **settings)


def chats(*texts):
    return [[{"role": "user", "content": text}] for text in texts]


def rows(count):
    return chats(*(f"row {number}" for number in range(count)))


def test_every_prompt_is_answered_in_its_place_with_its_counts(server):
    completions = ask(server, concurrency=7).generate(rows(50))
    assert [completion.text for completion in completions] == [f"REVISED: row {number}" for number in range(50)]
    assert completions[0] == Completion("REVISED: row 0", "stop", prompt_tokens=1, completion_tokens=100)
    assert server.get("stats")["max_in_flight"] <= 7


def test_no_prompts_are_no_requests(server):
    assert ask(server).generate([]) == []
    assert server.get("stats")["requests"] == 0


def test_sampling_crosses_the_wire_and_what_is_unset_does_not(server):
    generator = ask(server, sampling=Sampling(temperature=0.5, top_p=0.9, max_tokens=7))
    generator.generate(chats("a"))
    sent = server.get("stats")["last"]
    assert (sent["temperature"], sent["top_p"], sent["max_tokens"], sent["model"]) == (0.5, 0.9, 7, "tiny")
    assert not {"seed", "logprobs", "top_logprobs"} & sent.keys()
    [completion] = generator.generate(chats("a"), Sampling(seed=40, index=2, logprobs=3))
    sent = server.get("stats")["last"]
    assert (sent["seed"], sent["logprobs"], sent["top_logprobs"], sent["temperature"]) == (42, True, 3, 0.0)
    assert completion.logprobs["content"][0]["logprob"] == -0.5


def test_extra_body_adds_fields_and_takes_them_out(server):
    ask(server, extra_body={"max_tokens": None, "max_completion_tokens": 9, "top_k": 5}).generate(chats("a"))
    sent = server.get("stats")["last"]
    assert "max_tokens" not in sent
    assert (sent["max_completion_tokens"], sent["top_k"]) == (9, 5)


HEALING = [
    "500",
    "503",
    "408",
    "409",
    "429:0.1",
    "reset",
    "garbage",
    "broken",
    "html",
    "list",
    "error",
    "empty",
    "null",
]


@pytest.mark.parametrize("fault", HEALING)
def test_a_fault_that_heals_is_asked_again_and_only_until_it_is_answered(server, fault):
    [completion] = ask(server).generate(chats(f"[[{fault},ok]]"))
    assert completion.error is None
    tries = server.get("asked")[f"[[{fault},ok]]"][0]
    assert tries == 2


@pytest.mark.parametrize(
    ("fault", "code", "tries"),
    [
        ("400", "http_400", 1),
        ("413", "http_413", 1),
        ("422", "http_422", 1),
        ("500", "http_500", 5),
        ("429", "http_429", 5),
        ("hang", "timeout", 5),
        ("trickle", "timeout", 5),
        ("broken", "broken_reply", 3),
        ("html", "broken_reply", 3),
        ("tool", "broken_reply", 3),
        ("empty", "empty_reply", 3),
        ("null", "empty_reply", 3),
    ],
)
def test_a_row_that_never_works_fails_alone_after_the_tries_it_is_worth(server, fault, code, tries, monkeypatch):
    monkeypatch.setattr("midb.generators.openai.LONGEST_BACKOFF", 0.01)
    text = f"[[{fault}]]"
    well, sick = ask(server, max_retries=4, timeout=0.5, concurrency=1).generate(chats("well", text))
    assert (sick.text, sick.finish_reason, sick.error.partition(":")[0]) == ("", "error", code)
    assert well.text == "REVISED: well"
    assert server.get("asked")[text][0] == tries


@pytest.mark.parametrize(
    ("shape", "text", "finish_reason"),
    [
        ("length", "REVISED: [[length]]", "length"),
        ("parts", "two parts", "stop"),
        ("nothought", "", "length"),
        ("surrogate", "cut �", "stop"),
        ("nousage", "REVISED: [[nousage]]", "stop"),
    ],
)
def test_an_answer_of_an_odd_shape_is_an_answer(server, shape, text, finish_reason):
    [completion] = ask(server).generate(chats(f"[[{shape}]]"))
    assert (completion.text, completion.finish_reason, completion.error) == (text, finish_reason, None)
    assert (completion.prompt_tokens is None) == (shape == "nousage")


@pytest.mark.parametrize("status", [401, 402, 403, 404, 405])
def test_what_all_requests_get_is_raised_at_once(server, status):
    server.get(f"fault/{status}")
    with pytest.raises(GenerationError, match=rf"http_{status}.*; check") as raised:
        ask(server, concurrency=2, api_key=KEY).generate(rows(50))
    assert server.get("stats")["requests"] <= 2 + 1  # the window and the canary
    assert KEY not in str(raised.value)


@pytest.mark.parametrize("status", [401, 402, 403, 404, 405])
@pytest.mark.parametrize("place", [0, 30, 59])
def test_what_one_row_gets_is_that_rows_failure(server, status, place):
    sick = f"[[{status}]]"
    texts = [f"row {number}" for number in range(60)]
    texts[place] = sick
    completions = ask(server, concurrency=4).generate(chats(*texts))
    failed = {number: each.error.partition(":")[0] for number, each in enumerate(completions) if each.error}
    assert failed == {place: f"http_{status}"}
    [again] = ask(server).generate(chats(sick))
    assert again.error.startswith(f"http_{status}: ")
    assert server.get("asked")[sick][0] == 2  # once a run: a refusal is not retried


def test_the_canary_is_one_tiny_request_of_the_same_model(server):
    ask(server, extra_body={"top_k": 5}, sampling=Sampling(temperature=0.5, logprobs=2)).generate(chats("[[403]]"))
    stats = server.get("stats")
    assert stats["requests"] == 2
    assert stats["last"] == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 1,
        "temperature": 0.5,
        "top_p": 1.0,
        "top_k": 5,
    }


@pytest.mark.parametrize("fault", ["403", "500"])
def test_rows_that_all_fail_before_a_server_that_lives_are_failed_rows_at_the_price_of_few_canaries(
    server, fault, monkeypatch
):
    monkeypatch.setattr("midb.generators.openai.LONGEST_BACKOFF", 0.01)
    texts = [f"[[{fault}]] {number}" for number in range(100)]
    completions = ask(server, concurrency=4, max_retries=1).generate(chats(*texts))
    assert {completion.error.partition(":")[0] for completion in completions} == {f"http_{fault}"}
    assert 1 <= server.get("asked")["Hi"][0] <= 1 + 100 / 8


@pytest.mark.parametrize("fault", ["null", "broken"])
def test_a_server_that_answers_nonsense_is_not_dead(server, fault, monkeypatch):
    monkeypatch.setattr("midb.generators.openai.LONGEST_BACKOFF", 0.01)
    completions = ask(server, concurrency=4).generate(chats(*(f"[[{fault}]] {number}" for number in range(40))))
    assert all(completion.error for completion in completions)
    assert "Hi" not in server.get("asked")


def test_a_key_that_expires_midway_raises_after_all_that_was_answered_came_out(server):
    server.get("fault/401-after-50")
    finished, answered = ask(server, concurrency=4).stream(rows(500)), 0
    with pytest.raises(GenerationError, match=r"refused \(http_401.*; check"):
        answered += sum(completion.error is None for _, completion in finished)
    stats = server.get("stats")
    assert stats["answered"] >= 50
    assert stats["requests"] <= stats["answered"] + 8 + 4 + 1


def test_a_server_that_is_not_there_is_an_error_and_not_failed_rows(monkeypatch):
    monkeypatch.setattr("midb.generators.openai.LONGEST_BACKOFF", 0.01)
    with FakeOpenAI() as gone:
        pass
    with pytest.raises(GenerationError, match=r"3 requests in a row .*\(connection: .*; see that the server runs"):
        ask(gone, max_retries=2).generate(rows(3))


def test_an_endpoint_that_dies_raises_after_all_that_was_answered_came_out(server, monkeypatch):
    monkeypatch.setattr("midb.generators.openai.LONGEST_BACKOFF", 0.01)
    server.get("fault/503-after-50")
    answered = []
    finished = ask(server, concurrency=16, max_retries=2).stream(rows(500))
    with pytest.raises(GenerationError, match=r"16 requests in a row got no answer .*http_503"):
        answered.extend(position for position, completion in finished if completion.error is None)
    stats = server.get("stats")
    assert len(answered) == stats["answered"] >= 50
    assert stats["requests"] < 50 + 5 * 16 * 3


def test_a_call_too_small_for_a_window_finds_a_dead_endpoint_too(server, monkeypatch):
    monkeypatch.setattr("midb.generators.openai.LONGEST_BACKOFF", 0.01)
    server.get("fault/503")
    with pytest.raises(GenerationError, match=r"2 requests in a row got no answer .*http_503"):
        ask(server, max_retries=1).generate(rows(2))


def test_a_handful_of_rows_that_break_the_server_are_failed_rows(server, monkeypatch):
    monkeypatch.setattr("midb.generators.openai.LONGEST_BACKOFF", 0.01)
    completions = ask(server, max_retries=1).generate(chats(*["[[500]]"] * 7))
    assert {completion.error.partition(":")[0] for completion in completions} == {"http_500"}


def test_the_wait_that_the_server_asks_for_is_kept(server):
    begun = time.monotonic()
    ask(server).generate(chats("[[429:0.7,ok]]"))
    assert time.monotonic() - begun >= 0.7


def test_retry_after_is_read_in_all_its_forms_and_within_reason():
    assert _retry_after({"retry-after": "3"}) == 3
    assert _retry_after({"retry-after-ms": "250", "retry-after": "3"}) == 0.25
    assert 8 < _retry_after({"retry-after": formatdate(time.time() + 10, usegmt=True)}) <= 10
    assert _retry_after({"retry-after": formatdate(time.time() - 10, usegmt=True)}) == 0
    assert _retry_after({"retry-after": "86400"}) == 120
    for nonsense in ("", "soon", "-1", "nan", "inf", "1.2.3", "Mon, 99 Foo 2026 00:00:00 GMT", "²", "9" * 400):
        assert _retry_after({"retry-after": nonsense}) in (None, 120)
    assert _retry_after({}) is None


def test_a_rate_limited_row_waits_without_using_up_its_tries_while_others_get_through():
    limited = "[[" + "429:0.05," * 8 + "ok]]"
    with FakeOpenAI(latency=0.01) as server:
        completions = ask(server, concurrency=3, max_retries=1).generate(chats(limited) + rows(300))
    assert completions[0].error is None


def test_stragglers_hold_up_their_own_rows_only_and_the_window_stays_full(server):
    slow = [f"[[hang]] {number}" for number in range(10)]
    running = ask(server, concurrency=6).stream(chats(*slow[:3]) + rows(60) + chats(*slow[3:]))
    finished = [next(running)[0] for _ in range(60)]  # would never return if a chunk waited for its slowest row
    assert sorted(finished) == list(range(3, 63))
    # Full again: the three from the beginning, and three more where the quick ones were.
    stats = server.wait_until(lambda stats: stats["in_flight"] == 6)
    assert stats["requests"] == 66
    server.get("heal")
    assert sorted(position for position, _ in running) == [0, 1, 2, *range(63, 70)]
    assert server.get("stats")["max_in_flight"] == 6


def test_a_reader_who_stops_pays_for_no_more(server):
    running = ask(server, concurrency=4).stream([*rows(1), *chats("[[hang]] a", "[[hang]] b", "[[hang]] c")])
    assert next(running)[0] == 0
    server.wait_until(lambda stats: stats["in_flight"] == 3)
    running.close()
    server.wait_until(lambda stats: stats["in_flight"] == 0)


def test_a_reader_who_pauses_is_waited_for(server):
    running = ask(server, concurrency=4).stream(rows(2000))
    next(running)
    time.sleep(0.5)
    assert server.get("stats")["requests"] <= 1 + 4 + 64 + 4
    assert len(list(running)) == 1999


def test_it_works_inside_a_running_event_loop(server):
    async def notebook():
        return ask(server).generate(rows(3))

    assert [completion.error for completion in asyncio.run(notebook())] == [None] * 3


def test_a_fork_builds_its_own_engine_and_leaves_the_parents_alone(server):
    generator = ask(server)
    assert generator.generate(rows(2))[1].error is None
    with multiprocessing.get_context("fork").Pool(2) as pool:
        both = pool.map(_forked, [generator, generator])
    assert both == ["REVISED: row 0"] * 2
    child = multiprocessing.get_context("fork").Process(target=generator.generate, args=[rows(2)])  # not even pickled
    child.start()
    child.join(20)
    assert child.exitcode == 0
    assert generator.generate(rows(2))[1].error is None


def _forked(generator):
    return generator.generate(rows(1))[0].text


def test_threads_that_start_together_share_one_engine(server):
    generator, together = ask(server), threading.Barrier(8)
    with ThreadPoolExecutor(8) as pool:
        engines = set(pool.map(lambda _: together.wait() >= 0 and generator._engine(), range(8)))
    assert len(engines) == 1


def test_only_fields_are_pickled(server):
    generator = ask(server, concurrency=3, api_key=KEY)
    generator.generate(rows(1))
    again = pickle.loads(pickle.dumps(generator))
    assert again == generator
    assert again.api_key == KEY  # workers need it
    assert "engine" in generator.__dict__
    assert "engine" not in again.__dict__


def test_the_key_is_sent_and_shown_nowhere(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY + "-env")
    for generator in (ask(server), ask(server, api_key=KEY)):
        assert KEY not in repr(generator)
        [refused] = generator.generate(chats("[[400]]"))  # this server says the key in its message
        assert refused.error == "http_400: 400 for the key Bearer [key]"
        server.get("fault/401")
        with pytest.raises(GenerationError) as raised:
            generator.generate(rows(1))
        assert KEY not in str(raised.value)
        server.get("fault/none-after-1000000000")
    assert server.get("stats")["authorizations"] == [f"Bearer {KEY}", f"Bearer {KEY}-env"]
    monkeypatch.delenv("OPENAI_API_KEY")
    assert ask(server).generate(rows(1))[0].error is None  # a local server wants none
    with pytest.raises(GenerationError, match="check OPENAI_API_KEY") as raised:
        ask(server, api_key="sk-\nx").generate(rows(1))
    assert "sk-" not in str(raised.value)


def test_identity_is_what_is_asked_and_not_how():
    generator = OpenAIGenerator("tiny", base_url="http://Localhost:8000/v1")
    same = replace(
        generator, base_url="http://localhost:8000/v1/", api_key=KEY, concurrency=3, timeout=1, max_retries=0
    )
    assert same.identity() == generator.identity()
    assert generator.name == "tiny"
    assert hash(generator) != hash(replace(generator, model="other"))
    others = [
        replace(generator, model="other"),
        replace(generator, base_url="http://localhost:8001/v1"),
        replace(generator, sampling=Sampling(temperature=1)),
        replace(generator, extra_body={"top_k": 5}),
    ]
    assert len({each.identity() for each in [generator, *others]}) == 5


@pytest.mark.parametrize(
    "wrong",
    [
        {"base_url": url}
        for url in ("localhost:8000", "ftp://a/v1", "http://", "http://me:secret@a/v1", "http://a?key=secret")
    ]
    + [{"concurrency": 0}, {"timeout": 0}, {"max_retries": -1}],
)
def test_settings_that_cannot_work_are_refused_before_any_work(wrong):
    with pytest.raises(ValueError, match="; ") as raised:
        OpenAIGenerator("tiny", **wrong)
    assert "secret" not in str(raised.value)


NAMES = st.sampled_from(["choices", "message", "content", "usage", "error", "text"])
PLAIN = st.none() | st.booleans() | st.floats() | st.text(st.characters())  # half surrogates included


@given(st.recursive(PLAIN, lambda inner: st.lists(inner) | st.dictionaries(NAMES, inner)))
def test_no_json_is_too_strange_to_be_read(value):
    nearly = {"choices": [{"message": value, "finish_reason": value}], "usage": value}
    nearer = {"choices": [{"message": {"content": value}, "logprobs": value}], "usage": {"prompt_tokens": value}}
    for reply in (value, nearly, nearer):
        said = _read(json.dumps(reply).encode())
        if isinstance(said, Completion):
            said.text.encode()
            assert isinstance(said.prompt_tokens, int | None)
        else:
            assert said[0] in ("broken_reply", "empty_reply")


@pytest.mark.parametrize("count", [True, -1, 2**63, 1.5, "7", None])
def test_a_token_count_that_is_none_is_left_out(count):
    reply = {"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": count, "completion_tokens": 2**62}}
    assert _read(json.dumps(reply).encode()) == Completion("a", completion_tokens=2**62)


@given(st.binary())
def test_no_bytes_are_too_strange_to_be_read(data):
    assert _read(data)[0] == "broken_reply"


def script(text, *arguments):
    return subprocess.Popen(
        [sys.executable, "-X", "dev", "-W", "error", "-c", text, *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_script_ends_without_a_leak_even_with_requests_in_flight(server):
    text = """if True:
        import sys
        from midb.generators import OpenAIGenerator
        generator = OpenAIGenerator("tiny", base_url=sys.argv[1], concurrency=4)
        chats = [[{"role": "user", "content": text}] for text in ["a", "b", "[[hang]] 1", "[[hang]] 2"]]
        unread = generator.stream(chats)
        print(next(unread)[1].text)
    """
    said, complaints = (child := script(text, server.url)).communicate(timeout=60)
    assert (child.returncode, complaints) == (0, "")
    assert said.startswith("REVISED")


def test_ctrl_c_ends_a_call_that_hangs(server):
    text = """if True:
        import sys
        from midb.generators import OpenAIGenerator
        OpenAIGenerator("tiny", base_url=sys.argv[1]).generate([[{"role": "user", "content": "[[hang]]"}]])
    """
    child = script(text, server.url)
    server.wait_until(lambda stats: stats["in_flight"] == 1, seconds=60)
    child.send_signal(signal.SIGINT)
    _, complaints = child.communicate(timeout=60)
    assert "KeyboardInterrupt" in complaints
    assert "Warning" not in complaints
    server.wait_until(lambda stats: stats["in_flight"] == 0)


@pytest.mark.slow
def test_a_hostile_server_costs_each_sick_row_and_no_other(server, monkeypatch):
    monkeypatch.setattr("midb.generators.openai.LONGEST_BACKOFF", 0.05)
    faults = [
        "400",
        "422",
        "500,ok",
        "429:0.05,ok",
        "reset,ok",
        "broken,ok",
        "empty,null,ok",
        "garbage,ok",
        "broken",
        "null",
        "length",
        "parts",
    ]
    texts = [
        f"row {number}" + (f" [[{faults[number // 10 % len(faults)]}]]" if number % 10 == 0 else "")
        for number in range(4000)
    ]
    completions = ask(server, concurrency=32).generate(chats(*texts))
    for number, completion in enumerate(completions):
        fault = faults[number // 10 % len(faults)] if number % 10 == 0 else ""
        assert (completion.error is None) == (fault not in ("400", "422", "broken", "null")), (number, completion)
    asked = server.get("asked")
    assert all(asked[text][0] == 1 for number, text in enumerate(texts) if number % 10)
