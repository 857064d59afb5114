import asyncio
import base64
import gzip
import html
import json
import multiprocessing
import os
import pickle
import re
import shutil
import signal
import socketserver
import ssl
import subprocess
import sys
import threading
import time
import urllib.parse
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from email.utils import formatdate

import pytest
from fake_openai import FakeOpenAI
from hypothesis import given, settings
from hypothesis import strategies as st

from midb.errors import GenerationError
from midb.generators import Completion, OpenAIGenerator, Sampling
from midb.generators.wire import mask, one_line, read_reply, redirect_message, reply_limit, retry_after, served_model

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
    assert retry_after({"retry-after": "3"}) == 3
    assert retry_after({"retry-after-ms": "250", "retry-after": "3"}) == 0.25
    assert 8 < retry_after({"retry-after": formatdate(time.time() + 10, usegmt=True)}) <= 10
    assert retry_after({"retry-after": formatdate(time.time() - 10, usegmt=True)}) == 0
    assert retry_after({"retry-after": "86400"}) == 120
    for nonsense in ("", "soon", "-1", "nan", "inf", "1.2.3", "Mon, 99 Foo 2026 00:00:00 GMT", "²", "9" * 400):
        assert retry_after({"retry-after": nonsense}) in (None, 120)
    assert retry_after({}) is None


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


def test_a_fork_builds_its_own_endpoint_and_leaves_the_parents_alone(server):
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


def test_threads_that_start_together_share_one_endpoint(server):
    generator, together = ask(server), threading.Barrier(8)
    with ThreadPoolExecutor(8) as pool:
        engines = set(pool.map(lambda _: together.wait() >= 0 and generator._endpoint(), range(8)))
    assert len(engines) == 1


def test_only_fields_are_pickled(server):
    generator = ask(server, concurrency=3, api_key=KEY)
    generator.generate(rows(1))
    again = pickle.loads(pickle.dumps(generator))
    assert again == generator
    assert again.api_key == KEY  # workers need it
    assert "endpoint" in generator.__dict__
    assert "endpoint" not in again.__dict__


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


@contextmanager
def raw_server(respond, context=None):
    """A server that answers each request with what `respond(head)` yields, for as long as the client listens.

    Gives its port and the number of bytes that it could send for each request.
    """
    sent = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            head = b"".join(iter(self.rfile.readline, b"\r\n")).decode()
            found = re.search(r"(?i)content-length: (\d+)", head)
            self.rfile.read(int(found[1]) if found else 0)
            sent.append(0)
            place = len(sent) - 1
            try:
                for part in respond(head):
                    self.wfile.write(part)
                    sent[place] += len(part)
            except OSError:
                pass

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

        def get_request(self):
            connection, address = super().get_request()
            return (context.wrap_socket(connection, server_side=True) if context else connection), address

        def handle_error(self, *_):
            pass

    with Server(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=[0.01])
        thread.start()
        yield running.server_address[1], sent
        running.shutdown()
        thread.join()


def whole(body, *headers, status="200 OK"):
    lines = [f"HTTP/1.1 {status}", "Connection: close", f"Content-Length: {len(body)}", *headers]
    return ["\r\n".join(lines).encode() + b"\r\n\r\n" + body]


PLAIN_LIST = {"data": [{"id": "tiny", "object": "model", "created": 1, "owned_by": "library"}]}


def vllm(root, name="tiny", **more):
    """What vLLM lists; what changes between starts is never the same."""
    started = {"created": time.time_ns(), "permission": [{"id": f"modelperm-{time.time_ns()}"}], "max_model_len": 4096}
    return {"id": name, "object": "model", "owned_by": "vllm", "root": root, "parent": None} | started | more


@contextmanager
def telling(told):
    """A server that says `told`, JSON or a status by path, and has no chats; gives its port."""

    def respond(head):
        said = told.get(head.split()[1], 404)
        return whole(json.dumps(said).encode(), status=f"{said if isinstance(said, int) else 200} X")

    with raw_server(respond) as (port, _):
        yield port


def identity(told, host="127.0.0.1", **settings):
    """The identity that a generator finds at a server that says this, on a port that changes."""
    with telling({"/v1/models": {"data": told}} if isinstance(told, list) else told) as port:
        return OpenAIGenerator("tiny", base_url=f"http://{host}:{port}/v1", **settings).identity()


def test_identity_is_what_is_served_at_any_port_and_host_name_and_not_how_it_is_asked():
    hub = identity([vllm("org/model")])
    assert hub == identity(
        [vllm("org/model", max_model_len=512)], host="localhost", api_key=KEY, concurrency=3, timeout=9
    )
    assert hub == identity([vllm("org/model"), vllm("org/other", "other")], sampling=Sampling(temperature=1))
    folder = identity([vllm("/models/llm")])
    assert folder == identity([vllm("/models/llm")], host="localhost")
    others = [
        identity([vllm("org/other")]),
        identity([vllm("/models/other")]),
        identity([vllm("org/adapter", parent="base"), vllm("org/model", "base")]),
        identity([vllm("org/adapter", parent="base"), vllm("org/other", "base")]),
        identity([vllm("org/model")], extra_body={"top_k": 5}),
    ]
    assert len({hub, folder, *others}) == 7


def test_a_path_on_another_host_is_another_model_and_a_hub_id_is_the_same_anywhere():
    def served(root, base_url):
        return served_model({"data": [vllm(root)]}, "tiny", base_url, {})

    assert served("org/model", "http://a:8000/v1") == served("org/model", "https://b/v1")
    assert served("/models/llm", "http://A:8000/v1") == served("/models/llm", "https://a./v1")
    assert served("/models/llm", "http://a:8000/v1") != served("/models/llm", "http://b:8000/v1")
    assert served("./model", "http://a/v1") != served("./model", "http://b/v1")


LLAMACPP = {
    "/v1/models": {
        "data": [{"id": "any.gguf", "owned_by": "llamacpp", "meta": {"n_params": 7, "n_vocab": 5, "n_ctx": 512}}]
    },
    "/props": {"model_path": "/models/any.gguf", "chat_template": "{{ it }}", "total_slots": 1},
    "/lora-adapters": [{"id": 0, "path": "/adapters/a.gguf", "scale": 1.0}],
}


def test_llama_cpp_is_told_apart_by_shape_file_template_and_adapters():
    one = identity(LLAMACPP)
    later = {"/props": LLAMACPP["/props"] | {"total_slots": 9, "build_info": "b2"}}
    assert identity(LLAMACPP | later) == one
    others = [
        {"/v1/models": {"data": [LLAMACPP["/v1/models"]["data"][0] | {"meta": {"n_params": 8}}]}},
        {"/props": LLAMACPP["/props"] | {"model_path": "/tuned/any.gguf"}},
        {"/props": LLAMACPP["/props"] | {"chat_template": "other"}},
        {"/lora-adapters": []},
    ]
    assert len({one, *(identity(LLAMACPP | other) for other in others)}) == 5


def test_sglang_is_told_apart_by_what_it_loaded_as_its_list_only_repeats_the_name():
    listed = {"/v1/models": {"data": [{"id": "tiny", "root": "tiny", "owned_by": "sglang", "max_model_len": 4096}]}}

    def loaded(path):
        return identity(listed | {"/get_model_info": {"model_path": path}})

    assert loaded("org/a") == loaded("org/a")
    assert loaded("org/a") != loaded("org/b")
    assert identity(listed) != identity(listed)  # one that does not tell


@pytest.mark.parametrize(
    "says",
    [
        404,
        401,
        501,
        PLAIN_LIST,
        [],
        {"data": 7},
        {"data": [7, None]},
        {"data": [vllm(None)]},
        {"data": [vllm("")]},
        {"data": [vllm("org/a", "one"), vllm("org/b", "other")]},
        LLAMACPP["/v1/models"],
        "text",
    ],
)
def test_where_a_server_does_not_tell_the_address_counts(says):
    with telling({"/v1/models": says}) as port, telling({"/v1/models": says}) as elsewhere:
        here = OpenAIGenerator("tiny", base_url=f"http://127.0.0.1:{port}/v1")
        for same in (f"http://localhost:{port}/v1/", f"HTTP://LOCALHOST:{port}/v1"):
            assert replace(here, base_url=same).identity() == here.identity()
        assert replace(here, extra_body={"a": 1}).identity() != here.identity()
        assert replace(here, base_url=f"http://127.0.0.1:{elsewhere}/v1").identity() != here.identity()


def test_what_is_served_is_asked_once_and_not_for_each_call(server):
    generator, together = ask(server, concurrency=4), threading.Barrier(8)
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: together.wait() >= 0 and generator.identity(), range(8)))) == 1
    for _ in range(3):
        generator.generate(rows(5))
        generator.identity()
    stats = server.get("stats")
    assert stats["read"] == {"/v1/models": 1}
    assert stats["requests"] == 15
    assert "identity" not in pickle.loads(pickle.dumps(generator)).__dict__


def test_a_word_of_ones_own_replaces_the_question_and_the_address(server):
    one = ask(server, served="model, revision 3")
    assert one.identity() == OpenAIGenerator("tiny", base_url="http://gone.invalid/v1", served=one.served).identity()
    assert one.identity() != replace(one, served="model, revision 4").identity()
    assert one.settings() == {"engine": "openai", "model": "tiny", "served": "model, revision 3"}
    assert server.get("stats")["read"] == {}


def test_what_is_declared_takes_no_request_and_tells_addresses_apart(monkeypatch):
    monkeypatch.setattr(OpenAIGenerator, "_endpoint", None)
    generator = OpenAIGenerator("tiny", base_url="http://localhost:80/v1", extra_body={"b": KEY, "a": 1})
    for same in ("http://127.0.0.1/v1", "http://127.0.0.9:80/v1/", "http://[::1]/v1", "http://0.0.0.0/v1"):
        assert replace(generator, base_url=same, api_key=KEY, concurrency=3).declared() == generator.declared()
    changed = [{"model": "x"}, {"base_url": "http://localhost:81/v1"}, {"extra_body": {}}, {"served": "x"}]
    changed += [
        {"base_url": "https://localhost:80/v1"},
        {"base_url": "http://localhost/v2"},
        {"base_url": "http://a/v1"},
    ]
    assert len({generator.declared(), *(replace(generator, **each).declared() for each in changed)}) == 8
    assert generator.settings() == {"engine": "openai", "model": "tiny", "extra_body": ["a", "b"]}
    assert generator.name == "tiny"
    assert hash(generator) != hash(replace(generator, model="other"))


@pytest.mark.parametrize("status", [503, 429, 0])
def test_a_server_that_cannot_be_asked_what_it_serves_is_an_error_with_a_way_out(status, monkeypatch):
    monkeypatch.setattr("midb.generators.openai.LONGEST_BACKOFF", 0.01)
    with FakeOpenAI(told={"/v1/models": status}) as server:
        if not status:
            server.kill()
        with pytest.raises(
            GenerationError, match=r"/models does not tell what is served \(.*; see .* served='"
        ) as raised:
            ask(server, api_key=KEY).identity()
        assert KEY not in str(raised.value)
        if status:
            assert server.get("stats")["read"] == {"/v1/models": 3}


def test_a_prompt_is_pulled_when_a_slot_is_free_and_not_before(server):
    pulled = []

    def prompts():
        for number in range(40):
            pulled.append(number)
            yield from chats(
                f"[[hang]] {number}" if number < 2 else f"row {number}" if number < 20 else f"[[hang]] {number}"
            )

    running = ask(server, concurrency=3).stream(prompts())
    first = [next(running)[0] for _ in range(18)]
    assert sorted(first) == list(range(2, 20))
    server.wait_until(lambda stats: stats["in_flight"] == 3)
    assert pulled == list(range(21))
    assert server.get("stats")["requests"] == 21
    server.get("heal")
    finished = list(running)
    assert sorted(position for position, _ in finished) == [0, 1, *range(20, 40)]
    assert all(each.text.endswith(f"[[hang]] {position}") for position, each in finished)


def test_no_prompt_is_pulled_after_the_iterator_is_closed(server):
    pulled = []

    def prompts():
        while True:
            pulled.append(threading.current_thread().name)
            yield from rows(1)

    running = ask(server, concurrency=4).stream(prompts())
    next(running)
    running.close()
    count = len(pulled)
    server.wait_until(lambda stats: stats["in_flight"] == 0)
    ask(server).generate(rows(100))
    assert len(pulled) == count
    assert set(pulled) == {"midb-openai"}


@pytest.mark.parametrize("kind", [ValueError, GenerationError, KeyboardInterrupt, GeneratorExit, ExceptionGroup])
def test_what_the_prompts_raise_reaches_the_caller_after_all_that_was_answered(server, kind):
    error = kind("no more", [ValueError()]) if kind is ExceptionGroup else kind("no more")

    def prompts():
        yield from rows(10)
        raise error

    generator, answered = ask(server, concurrency=4), []
    with pytest.raises(kind) as raised:
        answered.extend(position for position, _ in generator.stream(prompts()))
    assert raised.value is error
    assert sorted(answered) == list(range(10))
    assert generator.generate(rows(1))[0].error is None


def test_prompts_without_an_end_in_sight_or_a_length_are_streamed(server):
    assert list(ask(server).stream(iter([]))) == []
    assert server.get("stats")["requests"] == 0
    running = ask(server, concurrency=2).stream(rows(1)[0] for _ in iter(int, 1))
    assert [next(running)[1].error for _ in range(50)] == [None] * 50
    running.close()


def test_prompts_that_come_slowly_do_not_make_the_server_look_dead(server, monkeypatch):
    monkeypatch.setattr("midb.generators.openai.LONGEST_BACKOFF", 0.01)
    running = ask(server, max_retries=1).stream(iter(chats("[[500]]", "[[500]] b", "c")))
    assert sorted((position, completion.error is None) for position, completion in running) == [
        (0, False),
        (1, False),
        (2, True),
    ]


def one_row(port, **settings):
    settings = {"max_retries": 0, "concurrency": 1} | settings
    return OpenAIGenerator("tiny", base_url=f"http://127.0.0.1:{port}/v1", **settings).generate(rows(1))[0]


def endless(*headers, status="200 OK", part=b" " * 65536):
    yield "\r\n".join([f"HTTP/1.1 {status}", *headers]).encode() + b"\r\n\r\n"
    while True:
        yield part


LIMIT = 4 * 2**20
ANSWER = json.dumps({"choices": [{"message": {"content": "an answer"}, "finish_reason": "stop"}]}).encode()


@pytest.mark.parametrize("headers", [[], ["Content-Encoding: gzip"], ["Content-Encoding: br"]])
def test_a_reply_without_an_end_is_cut_off_at_the_limit(headers, monkeypatch):
    monkeypatch.setattr("midb.generators.openai.LONGEST_BACKOFF", 0.01)
    part = os.urandom(65536) if headers else b" " * 65536
    with raw_server(lambda _: endless(*headers, part=part)) as (port, sent):
        completion = one_row(port, max_retries=6)
    assert completion.error == f"broken_reply: the reply is larger than {LIMIT} bytes"
    assert len(sent) == 3
    assert all(LIMIT - 2**16 <= each < 16 * LIMIT for each in sent), sent  # sockets buffer some MB more


@pytest.mark.parametrize(
    ("encoding", "compress"),
    [
        ("gzip", gzip.compress),
        ("x-gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("Deflate", lambda data: zlib.compress(data, wbits=-15)),
    ],
)
def test_a_compressed_reply_is_read_and_a_bomb_is_not(encoding, compress):
    header = f"Content-Encoding: {encoding}"
    with raw_server(lambda _: whole(compress(ANSWER), header)) as (port, _):
        assert one_row(port).text == "an answer"
    bomb = compress(ANSWER[:-1] + b" " * 80 * 2**20)
    assert len(bomb) < 2**17
    with raw_server(lambda _: whole(bomb, header)) as (port, _):
        before = peak()
        assert one_row(port).error == f"broken_reply: the reply is larger than {LIMIT} bytes"
        assert peak() - before < 40 * 2**20


def peak():
    """The most memory that this process has had, in bytes."""
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1])


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip", "gzip, gzip"])
def test_a_reply_that_cannot_be_decompressed_is_broken(encoding):
    with raw_server(lambda _: whole(b"\x1f\x8b no", f"Content-Encoding: {encoding}")) as (port, _):
        completion = one_row(port)
    assert re.match(
        f"broken_reply: the reply has an encoding that was not asked for or is broken: {encoding}$", completion.error
    )


def test_an_error_without_an_end_is_read_as_far_as_it_is_shown():
    with raw_server(lambda _: endless(status="400 Bad", part=b"sorry " * 1000)) as (port, sent):
        completion = one_row(port)
    assert completion.error.startswith("http_400: sorry sorry")
    assert len(completion.error) < 250
    assert sent[0] < 2**23


def test_the_limit_grows_with_what_was_asked_for():
    assert reply_limit({"max_tokens": 2048}) == LIMIT
    assert reply_limit({"max_tokens": 100_000}) > 20e6
    assert reply_limit({"max_tokens": None, "max_completion_tokens": 100_000}) == reply_limit({"max_tokens": 100_000})
    assert reply_limit({"max_tokens": 32768, "logprobs": True, "top_logprobs": 20}) > 32768 * 21 * 512
    big = json.dumps({"choices": [{"message": {"content": "x" * (LIMIT + 1)}}]}).encode()
    with raw_server(lambda _: whole(big)) as (port, _):
        assert len(one_row(port, sampling=Sampling(max_tokens=2**16)).text) == LIMIT + 1


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary", "308 Permanent"])
def test_a_redirect_is_refused_and_carries_nothing_to_the_other_host(server, status):
    place = f"Location: http://localhost:{server.port}/{KEY}/v1/chat/completions"
    with (
        raw_server(lambda _: whole(b"", place, status=status)) as (port, sent),
        pytest.raises(GenerationError, match=r"redirects to http://localhost:\d+, another host; give its") as raised,
    ):
        one_row(port, api_key=KEY)
    assert KEY not in str(raised.value)
    assert len(sent) == 2  # the row and the canary
    assert server.get("stats")["requests"] == 0


def test_a_redirect_names_the_address_and_nothing_that_could_be_secret():
    def said(location):
        return redirect_message(location, "http://a.com/v1/chat/completions")

    assert (
        said("https://a.com/v1/chat/completions")
        == "the server redirects to https://a.com/v1; give that address as base_url"
    )
    assert "redirects to http://a.com/api/v1;" in said("/api/v1/chat/completions?key=secret")
    assert "redirects to https://b.org:81, another host;" in said("https://me:secret@B.org:81/secret?secret#secret")
    assert "redirects to http://[::1], another host;" in said("//[::1]/x")
    for nonsense in ("", "http://[", "http://a:b", "http://", "mailto:x"):
        assert "base_url" in said(nonsense)


def test_a_redirect_of_one_row_is_that_rows_failure():
    def respond(head):
        moved = next(turns)
        return whole(b"", "Location: http://other.example/", status="307 No") if moved else whole(ANSWER)

    turns = iter([True, False, False])
    with raw_server(respond) as (port, _):
        first, second = OpenAIGenerator("tiny", base_url=f"http://127.0.0.1:{port}/v1", concurrency=1).generate(rows(2))
    assert first.error.startswith("http_307: the server redirects to http://other.example, another host")
    assert second.text == "an answer"


def test_a_proxy_of_the_environment_is_used_and_its_password_is_shown_nowhere(server, monkeypatch):
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    generator = OpenAIGenerator("tiny", base_url="http://model.invalid/v1", max_retries=0)
    monkeypatch.setenv("http_proxy", f"127.0.0.1:{server.port}")
    assert generator.generate(rows(1))[0].text == "REVISED: row 0"
    monkeypatch.setenv("no_proxy", "model.invalid")
    with pytest.raises(GenerationError, match="connection"):
        replace(generator).generate(rows(1))
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("http_proxy", f"http://me:{KEY}@127.0.0.1:9")
    with pytest.raises(GenerationError, match="connection") as raised:
        replace(generator).generate(rows(1))
    assert KEY not in str(raised.value)
    monkeypatch.setenv("http_proxy", f"socks5://me:{KEY}@127.0.0.1:9")
    with pytest.raises(GenerationError, match=r"no http proxy; set NO_PROXY=model\.invalid") as raised:
        replace(generator).generate(rows(1))
    assert KEY not in str(raised.value)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_a_certificate_that_is_not_trusted_ends_the_connection(tmp_path, monkeypatch):
    made = ["-days", "2", "-nodes", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "certificate")]
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", *made, *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate", tmp_path / "key")
    with raw_server(lambda _: whole(ANSWER), context) as (port, sent):
        generator = OpenAIGenerator("tiny", base_url=f"https://localhost:{port}/v1", max_retries=0)
        with pytest.raises(GenerationError, match="CERTIFICATE_VERIFY_FAILED"):
            generator.generate(rows(1))
        assert sent == []
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate"))
        assert replace(generator).generate(rows(1))[0].text == "an answer"


def test_a_request_is_what_the_openai_package_sends(server):
    import openai

    sampling = Sampling(temperature=0.5, top_p=0.9, max_tokens=7, seed=1, logprobs=2)
    ask(server, sampling=sampling, api_key=KEY).generate(rows(1))
    ours = server.get("stats")
    server.get("reset")
    client = openai.OpenAI(base_url=server.url, api_key=KEY)
    how = {"temperature": 0.5, "top_p": 0.9, "max_tokens": 7, "seed": 1, "logprobs": True, "top_logprobs": 2}
    client.chat.completions.create(model="tiny", messages=rows(1)[0], **how)
    theirs = server.get("stats")
    assert (ours["last"], ours["authorizations"]) == (theirs["last"], theirs["authorizations"])


def test_the_organization_and_the_project_of_the_environment_are_sent_and_no_cookie(monkeypatch):
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-1")
    heads = []
    with raw_server(lambda head: heads.append(head) or whole(ANSWER, "Set-Cookie: a=b")) as (port, _):
        OpenAIGenerator("tiny", base_url=f"http://127.0.0.1:{port}/v1", concurrency=1).generate(rows(2))
    assert "OpenAI-Organization: org-1" in heads[1]
    assert "OpenAI-Project: proj-1" in heads[1]
    assert "Cookie" not in heads[1]


def quoted(key):
    return "".join(f"%{ord(letter):02x}" if letter.isalnum() else urllib.parse.quote(letter, safe="") for letter in key)


SPELLED = {
    "plain": lambda key: key,
    "upper": str.upper,
    "quoted": lambda key: urllib.parse.quote(key, safe=""),
    "quoted in lower case": lambda key: urllib.parse.quote(key, safe="").lower(),
    "quoted in all letters": quoted,
    "quoted twice": lambda key: urllib.parse.quote(quoted(key), safe=""),
    "in JSON": lambda key: json.dumps(key)[1:-1],
    "in JSON twice": lambda key: json.dumps(json.dumps(key)[1:-1])[1:-1],
    "escaped": lambda key: "".join(f"\\u{ord(letter):04X}" for letter in key),
    "with slashes": lambda key: json.dumps(key)[1:-1].replace("/", "\\/"),
    "in HTML": html.escape,
    "split": lambda key: "\n ".join(key),
    "split in JSON": lambda key: "\\r\\n".join(key),
    "split by controls": lambda key: "\0".join(key),
    "base64 0": lambda key: base64.b64encode(key.encode()).decode(),
    "base64 1": lambda key: base64.b64encode(b"x" + key.encode() + b"tail").decode(),
    "base64 2": lambda key: base64.urlsafe_b64encode(b"xy" + key.encode() + b"z").decode(),
    "base64 of a header": lambda key: base64.b64encode(f"Bearer {key}\n".encode()).decode(),
    "base64 in lines": lambda key: base64.encodebytes(b"user:" + key.encode() * 2).decode(),
}
# A bearer token (RFC 6750) holds no backslash, which may belong to what is around the key.
KEYS = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="\\"), min_size=4, max_size=80)


@pytest.mark.parametrize("spelling", SPELLED)
@settings(max_examples=50)
@given(KEYS)
def test_a_key_is_masked_however_a_server_writes_it(spelling, key):
    spelled = SPELLED[spelling](key)
    shown = one_line(f"wrong key: <{spelled}> (401)", [key])
    if "base64" not in spelling:
        assert shown == "wrong key: <[key]> (401)"
    else:  # what is left encodes the text around the key, which is at most "Bearer " and "tail"
        left = shown.removeprefix("wrong key: <").removesuffix("> (401)").replace("[key]", "").replace(" ", "")
        assert len(left.rstrip("=")) <= len(base64.b64encode(b"Bearer tail").rstrip(b"="))


@given(KEYS, st.text(), st.text())
def test_a_key_is_masked_in_any_text(key, before, after):
    shown = mask(f"{before} {key} {after}", key)
    assert key not in shown.replace("[key]", "\n")


@pytest.mark.parametrize("key", ["abcd", "sk-1234", "k!y"])
def test_a_short_key_is_masked_too(server, key):
    [refused] = ask(server, api_key=f" {key} ").generate(chats("[[400]]"))
    assert refused.error == "http_400: 400 for the key Bearer [key]"
    assert server.get("stats")["authorizations"] == [f"Bearer {key}"]


def test_a_key_of_few_letters_leaves_the_words_that_hold_it():
    assert one_line("no max, see 'x' or x", ["x"]) == "no max, see '[key]' or [key]"
    assert one_line("base64 eA== of it", ["x"]) == "base64 [key]== of it"
    assert one_line("nothing here", []) == "nothing here"


@pytest.mark.parametrize("filling", ["x" * 150, " ", "\n", KEY + " "])
def test_a_key_at_the_edge_of_what_is_searched_is_not_shown_in_part(filling):
    for place in range(4000 - len(KEY), 4000 + 9 * len(KEY)):
        text = (filling * 5000)[:place] + KEY + " " * 1000
        assert "sk-not" not in one_line(text, [KEY])


def test_blank_keys_are_no_keys(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", " ")
    assert ask(server, api_key="\n").generate(rows(1))[0].error is None
    assert server.get("stats")["authorizations"] == ["Bearer none"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"base_url": url}
        for url in (
            "localhost:8000",
            "ftp://a/v1",
            "http://",
            "http://me:secret@a/v1",
            "http://a?key=secret",
            "http://a:b/secret",
            "http://[secret",
            "http://a:0",
        )
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
        said = read_reply(json.dumps(reply).encode())
        if isinstance(said, Completion):
            said.text.encode()
            assert isinstance(said.prompt_tokens, int | None)
        else:
            assert said[0] in ("broken_reply", "empty_reply")


@pytest.mark.parametrize("count", [True, -1, 2**63, 1.5, "7", None])
def test_a_token_count_that_is_none_is_left_out(count):
    reply = {"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": count, "completion_tokens": 2**62}}
    assert read_reply(json.dumps(reply).encode()) == Completion("a", completion_tokens=2**62)


@given(st.binary())
def test_no_bytes_are_too_strange_to_be_read(data):
    assert read_reply(data)[0] == "broken_reply"


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
