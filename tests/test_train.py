"""Training, with real parts: tiny random Llamas that learn on the CPU in seconds."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict, disable_progress_bars, enable_progress_bars
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from test_chat import CHATML, LLAMA3, byte_level
from test_transformers import make_model
from transformers import AutoModelForCausalLM, TrainerCallback
from typer.testing import CliRunner

from midb import Booster, ColumnError
from midb.cli import app
from midb.generators import Sampling, TransformersGenerator
from midb.generators.adapter import read_record
from midb.schema import as_pairs
from midb.train import LoraRecipe, last_checkpoint, lora_trainer, preview
from midb.train.log import read_log

RAW = {"instruction": "raw_instruction", "input": "raw_input", "response": "raw_response"}


def edits(n, **more):
    rows = [
        {
            "raw_instruction": f"Sum {i}?", "raw_input": "", "raw_response": f"{i}",
            "instruction": f"Sum {i}?", "input": "", "response": f"It is {i}." + "!" * (i % 3), **more,
        }
        for i in range(n)
    ]  # fmt: skip
    return Dataset.from_list(rows)


def recipe(model, folder, **changes):
    """Small and quick, every step logged, nothing filtered."""
    own = {
        "model": model, "output_dir": str(folder), "k": None, "prompt": "Edit:", "r": 4, "lora_alpha": 8, "max_steps": 3,
        "learning_rate": 1e-2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "logging_steps": 1,
    }  # fmt: skip
    return LoraRecipe(**{**own, **changes})


def trained(edits_, recipe_, **how):
    trainer = lora_trainer(edits_, recipe_, **how)
    trainer.train()
    return trainer


def losses(folder):
    names = ("step", "loss", "grad_norm", "learning_rate", "num_tokens", "epoch")
    return [{name: entry[name] for name in names} for entry in read_log(folder) if "loss" in entry]


def weights(folder):
    return Path(folder, "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module", autouse=True)
def _no_bars():
    disable_progress_bars()
    yield
    enable_progress_bars()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(make_model(tmp_path_factory.mktemp("models") / "tiny", layers=1))


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A trainer that has learnt four edits by heart."""
    folder = tmp_path_factory.mktemp("learned")
    base = make_model(folder / "base", hidden=64)
    settings = {"r": 16, "lora_alpha": 16, "max_steps": 55, "logging_steps": 20}
    return trained(edits(4, language="en"), recipe(str(base), folder / "out", save_steps=45, **settings))


def boosted(folder, merge=True):
    """What a booster says to the four raw pairs."""
    booster = Booster.from_pretrained(folder)
    generator = replace(booster.generator, sampling=Sampling(max_tokens=60), merge=merge)
    return replace(booster, generator=generator).map(as_pairs(edits(4), columns=RAW))


# --- what comes out ---------------------------------------------------------------------------------------------------


def test_a_booster_learns_its_edits_and_says_them_again(learned):
    logged = [entry["loss"] for entry in losses(learned.args.output_dir)]
    assert logged[-1] < 0.2 < 2 < logged[0]
    edited = boosted(learned.args.output_dir)
    assert edited["boost_status"] == ["boosted"] * 4
    assert edited["response"] == edits(4)["response"]
    base = replace(
        Booster.from_pretrained(learned.model.peft_config["default"].base_model_name_or_path), prompt="Edit:"
    )
    base = replace(base, generator=replace(base.generator, sampling=Sampling(max_tokens=60)))
    untrained = base.map(as_pairs(edits(4), columns=RAW))
    assert untrained["boost_status"] == ["rejected"] * 4


def test_merged_and_beside_the_weights_an_adapter_says_the_same(learned):
    said = ["response", "boost_status", "boost_completion_tokens"]
    merged, beside = (boosted(learned.args.output_dir, merge).select_columns(said) for merge in (True, False))
    assert merged[:] == beside[:]


def test_a_checkpoint_is_a_booster_too(learned):
    checkpoint = Path(learned.args.output_dir, "checkpoint-45")
    assert read_record(checkpoint) == replace(read_record(learned.args.output_dir), metrics={})
    assert boosted(checkpoint)["boost_status"] == ["boosted"] * 4


def test_the_folder_is_whole_and_tells_nothing_of_this_machine(learned):
    folder = Path(learned.args.output_dir)
    files = {path.name for path in folder.iterdir() if path.is_file()}
    assert files == {
        "adapter_config.json", "adapter_model.safetensors", "booster.json", "trainer_log.jsonl", "loss.png",
        "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
    }  # fmt: skip
    base = str(folder.parent / "base")
    config = (folder / "adapter_config.json").read_text()
    assert json.loads(config)["base_model_name_or_path"] == base
    states = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}  # of no use to a booster
    for path in folder.rglob("*"):
        if path.is_file() and path.name not in states:
            content = path.read_bytes().replace(json.dumps(base).encode(), b"")
            assert not re.search(rb"/tmp|/home|/root|" + str(folder.parent).encode(), content), path.name
    assert (folder / "loss.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_record_says_how_it_was_trained(learned):
    record = read_record(learned.args.output_dir)
    given = learned_recipe = LoraRecipe(**record.recipe)
    assert (given.r, given.seed, given.prompt, given.model, given.dtype) == (16, 42, "Edit:", "base", "float32")
    assert learned_recipe.output_dir is None
    assert (record.model, record.rendering, record.prompt, record.parity) == ("base", "template", "Edit:", False)
    assert record.batch == {"processes": 1, "per_device": 4, "accumulated": 1}
    seen = preview(edits(4, language="en"), replace(given, model=str(Path(learned.args.output_dir).parent / "base")))
    assert record.data["fingerprint"] == seen.tokens.fingerprint
    assert record.data["languages"] == {"en": 4}
    assert (record.data["rows"], record.data["kept"], record.data["completion_tokens"]) == (
        4, 4, seen.tokens.counts.completion_tokens,
    )  # fmt: skip
    assert record.metrics["steps"] == 55
    assert record.metrics["loss"] == losses(learned.args.output_dir)[-1]["loss"]
    assert set(record.versions) == {"midb", "trl", "peft", "transformers", "torch"}


def test_every_step_is_in_the_log_even_where_the_last_are_fewer_than_a_line(learned):
    assert [entry["step"] for entry in losses(learned.args.output_dir)] == [20, 40, 45, 55]  # and where a checkpoint is


# --- what is asked is what was trained --------------------------------------------------------------------------------

TOKENIZERS = {
    "template": byte_level(["<|im_start|>", "<|im_end|>"], template=CHATML, eos_token="<|im_end|>"),
    "llama3": byte_level(LLAMA3, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>"),
    "plain": byte_level(["<|endoftext|>"], eos_token="<|endoftext|>"),
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def rendered(request, tmp_path_factory):
    """A trainer of each rendering, and the name of that."""
    folder = tmp_path_factory.mktemp(request.param)
    base = make_model(folder / "base", layers=1, tokenizer=TOKENIZERS[request.param])
    chosen = "plain" if request.param == "plain" else "auto"  # nothing but a recipe can know of that one
    return trained(edits(4), recipe(str(base), folder / "out", rendering=chosen)), request.param


def test_a_booster_asks_token_for_token_what_it_was_trained_on(rendered):
    trainer, rendering = rendered
    record = read_record(trainer.args.output_dir)
    booster = Booster.from_pretrained(trainer.args.output_dir)
    chat = booster.generator._chat
    assert record.rendering == chat.rendering == rendering
    assert (booster.prompt, booster.tags) == (record.prompt, record.tags)
    asked = booster.preview(as_pairs(edits(4), columns=RAW), 4)
    for row, messages in zip(trainer.train_dataset, asked, strict=True):
        prompt = [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label == -100]
        answer = [label for label in row["labels"] if label != -100]
        assert chat.encode(messages) == prompt
        assert row["input_ids"] == prompt + answer
        assert answer[-1] in chat.stop_ids
        assert set(answer[:-1]).isdisjoint(chat.stop_ids)
    assert booster.generator.generate(asked, Sampling(max_tokens=2))[0].error is None


def test_a_base_that_renders_otherwise_is_refused_unless_the_caller_says_how(rendered, tmp_path):
    trainer, rendering = rendered
    base = trainer.model.peft_config["default"].base_model_name_or_path
    tokenizer = TransformersGenerator(base, rendering=rendering)._chat.tokenizer
    other, explicit = str(tmp_path / "other"), rendering
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(other)
    if rendering == "template":
        tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>\n", "<|im_end|>")
    elif rendering == "plain":
        tokenizer.eos_token = "!"
    else:
        tokenizer.chat_template, explicit = CHATML, "template"  # this alone changes nothing: it was trained with llama3
    tokenizer.save_pretrained(other)
    asking = TransformersGenerator(other, trainer.args.output_dir)
    if rendering == "llama3":
        assert asking._chat.rendering == "llama3"
    else:
        with pytest.raises(
            ValueError, match=r"was trained with the rendering .* or pass rendering= to go on regardless"
        ):
            asking.generate([[{"role": "user", "content": "x"}]])
    with pytest.warns(UserWarning, match="may be much worse than in training"):
        assert replace(asking, rendering=explicit)._chat.rendering == explicit


# --- the recipe arrives -----------------------------------------------------------------------------------------------


def test_the_numbers_of_the_recipe_are_those_of_the_trainer(model, tmp_path):
    given = recipe(
        model, tmp_path, max_steps=25, r=6, lora_alpha=3, lora_dropout=0.25, learning_rate=3e-3, warmup_ratio=0.11,
        adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-7, weight_decay=0.1, max_grad_norm=0.5, seed=7, save_steps=9,
        save_total_limit=3, global_batch_size=12, target_modules=("q_proj", "down_proj"), gradient_checkpointing=False,
    )  # fmt: skip
    trainer = lora_trainer(edits(4), given)
    args, lora = trainer.args, trainer.model.peft_config["default"]
    assert (lora.r, lora.lora_alpha, lora.lora_dropout, lora.target_modules) == (6, 3, 0.25, {"q_proj", "down_proj"})
    assert (lora.use_rslora, lora.use_dora, lora.modules_to_save, lora.bias) == (False, False, None, "none")
    assert (args.max_grad_norm, args.seed, args.data_seed, args.save_steps) == (0.5, 7, 7, 9)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (4, 3)
    assert not args.gradient_checkpointing
    trainer.create_optimizer_and_scheduler(25)
    [group, _] = trainer.optimizer.param_groups
    assert isinstance(trainer.optimizer, torch.optim.AdamW)
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.8, 0.95), 1e-7, 0.1)
    trainer.optimizer.zero_grad()
    rates = []
    for _ in range(26):
        rates.append(trainer.lr_scheduler.get_last_lr()[0])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    warm = math.ceil(0.11 * 25)  # 3 steps, and not 2
    expected = [step / warm for step in range(warm)]
    expected += [0.5 * (1 + math.cos(math.pi * (step - warm) / (25 - warm))) for step in range(warm, 26)]
    assert rates == pytest.approx([3e-3 * each for each in expected], abs=1e-12)
    assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}


def test_the_rows_of_a_step_are_spread_over_the_processes(model, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    seen = preview(
        edits(50), recipe(model, tmp_path, max_steps=-1, global_batch_size=16, per_device_train_batch_size=2)
    )
    assert seen.steps == 4  # 13 rows a process, 7 batches of 2, accumulated by 2
    with pytest.raises(ValueError, match=r"global_batch_size=12 is no multiple of 4 processes × .*=2; change either"):
        preview(edits(5), recipe(model, tmp_path, global_batch_size=12, per_device_train_batch_size=2))


def test_the_loss_is_over_the_answer_and_its_end_and_begins_with_what_the_base_model_says(model, tmp_path):
    trainer = trained(edits(3), recipe(model, tmp_path, max_steps=1))
    base, total, count = AutoModelForCausalLM.from_pretrained(model), 0.0, 0
    tokenizer = TOKENIZERS["template"]
    for row in trainer.train_dataset:
        ids = torch.tensor([row["input_ids"]])
        start = row["labels"].index(next(label for label in row["labels"] if label != -100))
        answer = tokenizer.decode(row["input_ids"][start:])
        assert re.fullmatch(r"<\|instruction\|>Sum \d\?\n<\|input\|>\n<\|response\|>It is \d\.!*<\|im_end\|>", answer)
        assert row["labels"][start:] == row["input_ids"][start:]
        likely = base(ids).logits[0].log_softmax(-1)
        total -= sum(likely[place - 1, ids[0, place]].item() for place in range(start, ids.shape[1]))
        count += ids.shape[1] - start
    assert losses(tmp_path)[0]["loss"] == pytest.approx(total / count, abs=1e-4)
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(3)])
    assert batch["labels"].shape[1] % 8 == 0
    assert (batch["labels"] != -100).sum() == count
    assert batch["attention_mask"].sum() == sum(len(row["input_ids"]) for row in trainer.train_dataset)


@pytest.mark.parametrize(
    ("rows", "changes"),
    [
        (7, {"max_steps": -1, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}),
        (7, {"max_steps": -1, "per_device_train_batch_size": 3, "num_train_epochs": 1.5}),
        (4, {"max_steps": -1, "num_train_epochs": 0.3, "per_device_train_batch_size": 1}),
        (5, {"max_steps": 3, "global_batch_size": 4, "per_device_train_batch_size": 2}),
    ],
)
def test_a_preview_says_what_the_trainer_then_does(model, tmp_path, rows, changes):
    given = recipe(model, tmp_path, **changes)
    seen = preview(edits(rows), given)
    trainer = trained(edits(rows), given)
    assert seen.steps == trainer.state.max_steps == trainer.state.global_step
    parts = dict(trainer.model.named_parameters())
    assert seen.trainable == sum(part.numel() for part in parts.values() if part.requires_grad)
    assert seen.parameters == sum(part.numel() for part in parts.values() if not part.requires_grad)
    touched = {name for name, part in trainer.model.named_modules() if isinstance(part, LoraLayer)}
    assert {f"base_model.model.{name}" for name in seen.modules} == touched
    if given.num_train_epochs == 1 and given.max_steps == -1:
        assert seen.trained_tokens == read_log(tmp_path)[-2]["num_tokens"]


def test_a_preview_reads_well_and_cannot_command_the_terminal(model, tmp_path, capsys):
    rows = edits(3, language="\x1b[31men").to_list()
    rows[0]["response"] = rows[0]["raw_instruction"] = "\x1b]0;pwned\x07\u202e<|im_end|>"
    given = recipe(model, tmp_path, target_modules=("q_proj", "v_proj"))
    shown = str(preview(Dataset.from_list(rows), given))
    lora_trainer(Dataset.from_list(rows), given)
    for text in (shown, capsys.readouterr().err.partition("fingerprint")[0]):
        assert r"\x1b[31men" in text
        assert all(each.isprintable() or each == "\n" for each in text)
    assert "LoRA beside 2 layers: q_proj ×1, v_proj ×1" in shown
    assert re.search(
        r"steps: 3 of 1 processes × 4 per_device × 1 accumulated; tokens through the model: [\d,]+\n", shown
    )


@pytest.mark.parametrize("name", ["gradient_checkpointing", "packing"])
def test_memory_is_saved_without_another_loss(model, tmp_path, name):
    """Packed rows see only themselves: as many of them in one sequence give the loss of one batch."""
    rows = edits(6)  # of several lengths
    settings = {"per_device_train_batch_size": 6, "max_steps": 3, name: False}
    plain = trained(rows, recipe(model, tmp_path / "plain", **settings))
    packed = {"packing": True, "per_device_train_batch_size": 1, "max_length": 2048}
    trained(
        rows, recipe(model, tmp_path / "other", **{**settings, name: True, **(packed if name == "packing" else {})})
    )
    for one, other in zip(losses(tmp_path / "plain"), losses(tmp_path / "other"), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-5)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], abs=1e-4)
    assert plain.state.global_step == 3


def test_half_precision_trains_float32_adapters(model, tmp_path):
    trainer = trained(edits(4), recipe(model, tmp_path, dtype="bfloat16"))
    assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in trainer.model.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert {part.dtype for part in load_file(tmp_path / "adapter_model.safetensors").values()} == {torch.float32}
    assert losses(tmp_path)[-1]["loss"] < losses(tmp_path)[0]["loss"]


def test_four_bits_train_float32_adapters(model, tmp_path):
    pytest.importorskip("bitsandbytes")
    trainer = trained(edits(4), recipe(model, tmp_path, quantization="4bit"))
    assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}
    assert any(p.dtype == torch.uint8 for p in trainer.model.parameters())
    assert losses(tmp_path)[-1]["loss"] < losses(tmp_path)[0]["loss"]
    assert boosted(tmp_path).num_rows == 4


def test_edits_held_out_are_measured_with_every_checkpoint(model, tmp_path):
    trained(edits(4), recipe(model, tmp_path, save_steps=2), eval_edits=edits(6).select([4, 5]))
    measured = [(entry["step"], entry["eval_loss"]) for entry in read_log(tmp_path) if "eval_loss" in entry]
    assert [step for step, _ in measured] == [2, 3]
    assert read_record(tmp_path).metrics["eval_loss"] == measured[-1][1]


def test_long_rows_are_left_out_cut_or_refused_as_the_recipe_says(model, tmp_path, capsys):
    rows = edits(3).to_list()
    rows[1]["response"] = "far too long " * 30
    rows, given = Dataset.from_list(rows), recipe(model, tmp_path, max_length=200, max_steps=1)
    trainer = lora_trainer(rows, given)
    assert len(trainer.train_dataset) == 2
    assert "longer than 200 tokens: 1 (row 1)" in capsys.readouterr().err
    cut = lora_trainer(rows, replace(given, overlong="cut")).train_dataset
    assert [len(row["input_ids"]) == 200 for row in cut] == [False, True, False]
    with pytest.raises(ValueError, match="overlong='leave_out' trains without them"):
        lora_trainer(rows, replace(given, overlong="refuse"))
    with pytest.raises(ValueError, match="none of 3 rows fits max_length=20"):
        lora_trainer(rows, replace(given, max_length=20))


def test_the_filters_of_the_recipe_are_per_language(model, tmp_path):
    rows = [{**row, "language": language} for language in ("it", "fr") for row in edits(5).to_list()]
    rows[3]["response"] = rows[9]["response"] = "Another text altogether"
    given = recipe(model, tmp_path)
    kept = preview(Dataset.from_list(rows), replace(given, k=2)).tokens
    assert {language: counts.kept for language, counts in kept.languages.items()} == {"it": 2, "fr": 2}
    some = preview(Dataset.from_list(rows), replace(given, k=0.8, max_rows=3)).tokens
    assert {language: counts.kept for language, counts in some.languages.items()} == {"it": 3, "fr": 3}
    assert preview(edits(5), replace(given, max_rows=2)).tokens.counts.kept == 2


def test_only_edits_that_stand_are_learnt_from_and_the_others_are_counted(model, tmp_path, capsys):
    rows = [
        {**row, "boost_status": status, "language": "en"}
        for row, status in zip(
            edits(8).to_list(),
            ["rejected", "boosted", "failed", "unchanged", "boosted", "not_run", "boosted", None],
            strict=True,
        )
    ]
    given, boosted_rows = recipe(model, tmp_path, max_steps=1), Dataset.from_list(rows)
    said = "left out by boost_status: 1 failed, 1 not_run, 1 rejected, 1 unchanged"
    seen = preview(boosted_rows, given)
    assert seen.tokens.not_standing == {"failed": 1, "not_run": 1, "rejected": 1, "unchanged": 1}
    assert (seen.tokens.counts.rows, seen.tokens.counts.kept) == (4, 4)
    assert said in str(seen)
    stands = boosted_rows.select([1, 4, 6, 7]).remove_columns("boost_status")  # null is the status of an expert's edit
    assert seen.tokens.fingerprint == preview(stands, given).tokens.fingerprint
    assert preview(boosted_rows, replace(given, k=0.5)).tokens.counts.kept == 2
    assert preview(boosted_rows, replace(given, k=8, statuses="boosted, unchanged")).tokens.counts.kept == 5
    assert preview(boosted_rows, replace(given, statuses=("unchanged",), max_rows=1)).tokens.counts.kept == 1
    assert capsys.readouterr().err == ""  # said in the report, and not twice
    trainer = lora_trainer(boosted_rows, given, eval_edits=boosted_rows.select([0, 1]))
    assert (len(trainer.train_dataset), len(trainer.eval_dataset)) == (4, 1)
    report = capsys.readouterr().err
    assert said in report
    assert "left out by boost_status: 1 rejected\n" in report
    with pytest.raises(ValueError, match=r"no edit stands \(left out by boost_status: 1 failed, 1 rejected\)"):
        preview(boosted_rows.select([0, 2]), given)


# --- again, and on ----------------------------------------------------------------------------------------------------


class At(TrainerCallback):
    """Does something at the end of one step."""

    def __init__(self, step, do):
        self.step, self.do = step, do

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.do(control)


def crash(control):
    raise RuntimeError("crash")


@pytest.fixture(scope="module")
def dropped(model, tmp_path_factory):
    """A recipe with chance in it, several epochs, and what comes out when nothing interrupts it."""
    folder = tmp_path_factory.mktemp("whole")
    given = recipe(
        model, folder, max_steps=8, save_steps=3, lora_dropout=0.2, per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
    )  # fmt: skip
    trained(edits(10), given)
    return given


def same(dropped, folder):
    assert losses(folder) == losses(dropped.output_dir)
    assert weights(folder) == weights(dropped.output_dir)
    finished, expected = read_record(folder), read_record(dropped.output_dir)
    assert (finished.metrics, finished.differences(expected)) == (expected.metrics, [])


def test_the_same_recipe_gives_the_same_adapter_whatever_drew_numbers_before(dropped, tmp_path):
    torch.manual_seed(1)
    trainer = lora_trainer(edits(10), replace(dropped, output_dir=str(tmp_path)))
    torch.manual_seed(2)  # as another trainer would, built in between
    trainer.train()
    same(dropped, tmp_path)
    other = lora_trainer(edits(10), replace(dropped, seed=1, output_dir=str(tmp_path / "other")))
    other.train()
    assert losses(tmp_path / "other")[0] != losses(tmp_path)[0]


@pytest.mark.parametrize("saved", [3, pytest.param(6, marks=pytest.mark.slow)])
def test_a_training_that_crashed_goes_on_as_if_nothing_had_been(dropped, tmp_path, saved):
    given = replace(dropped, output_dir=str(tmp_path))
    trainer = lora_trainer(edits(10), given)
    trainer.add_callback(At(saved + 2, crash))
    with pytest.raises(RuntimeError, match="crash"):
        trainer.train()
    assert [entry["step"] for entry in read_log(tmp_path)][-1] == saved + 1
    unfinished = tmp_path / "checkpoint-7"
    unfinished.mkdir(exist_ok=True)
    (unfinished / "trainer_state.json").write_text('{"global_step": 7')
    assert last_checkpoint(tmp_path) == str(tmp_path / f"checkpoint-{saved}")
    lora_trainer(edits(10), given).train(resume_from_checkpoint=last_checkpoint(tmp_path))
    same(dropped, tmp_path)


@pytest.mark.slow
def test_a_line_of_the_log_that_spans_a_checkpoint_is_the_same_after_it(dropped, tmp_path):
    given = replace(dropped, logging_steps=2, output_dir=str(tmp_path / "whole"))
    trained(edits(10), given)
    begun = replace(given, output_dir=str(tmp_path / "begun"))
    trainer = lora_trainer(edits(10), begun)
    trainer.add_callback(At(5, crash))
    with pytest.raises(RuntimeError, match="crash"):
        trainer.train()
    lora_trainer(edits(10), begun).train(resume_from_checkpoint=last_checkpoint(begun.output_dir))
    assert [entry["step"] for entry in losses(given.output_dir)] == [2, 3, 4, 6, 8]
    assert losses(begun.output_dir) == losses(given.output_dir)


def test_a_training_told_to_stop_leaves_a_checkpoint_and_goes_on_as_if_nothing_had_been(dropped, tmp_path):
    given, before = replace(dropped, output_dir=str(tmp_path)), signal.getsignal(signal.SIGTERM)
    trainer = lora_trainer(edits(10), given)
    assert signal.getsignal(signal.SIGTERM) == before  # a trainer that does not train takes no signals
    for step in (3, 4):  # the second as from a launcher that hears of it too
        trainer.add_callback(At(step, lambda control: os.kill(os.getpid(), signal.SIGTERM)))
    trainer.train()
    assert signal.getsignal(signal.SIGTERM) == before
    assert trainer.state.global_step == 4
    assert not (tmp_path / "adapter_config.json").exists()
    assert read_record(tmp_path / "checkpoint-4") == read_record(tmp_path)
    lora_trainer(edits(10), given).train(resume_from_checkpoint=last_checkpoint(tmp_path))
    same(dropped, tmp_path)


@pytest.mark.slow
def test_a_training_killed_after_its_last_step_is_not_given_one_more(dropped, tmp_path):
    given = replace(dropped, output_dir=str(tmp_path), lr_scheduler_type="constant")
    trainer = trained(edits(10), given)
    finished, record, log = weights(tmp_path), read_record(tmp_path), losses(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    again = lora_trainer(edits(10), given)
    again.train(resume_from_checkpoint=last_checkpoint(tmp_path))
    assert (weights(tmp_path), read_record(tmp_path), losses(tmp_path)) == (finished, record, log)
    assert again.state.global_step == trainer.state.global_step == 8


TIMES = {
    "equal": lambda step: 2**32,
    "reversed": lambda step: 2**32 - 1000 * step,
    "far apart": lambda step: 1000 * step,
}


def set_times(folder, times):
    """As a file system or another machine's clock may have it: none of them is what this machine's clock says."""
    for path in Path(folder).glob("checkpoint-*"):
        time_of_it = TIMES[times](int(path.name.partition("-")[2]))
        for each in (*path.iterdir(), path):
            os.utime(each, (time_of_it, time_of_it))


def content(folder):
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def other_than(given):
    return replace(given, seed=given.seed + 1)


@pytest.mark.parametrize("times", TIMES)
def test_a_training_does_not_begin_in_the_folder_of_another(dropped, tmp_path, times):
    early = lora_trainer(edits(10), replace(other_than(dropped), output_dir=str(tmp_path)))
    shutil.copytree(dropped.output_dir, tmp_path, dirs_exist_ok=True)
    set_times(tmp_path, times)
    before = content(tmp_path)
    says = r"holds another training \(seed: 43 instead of 42\); give another output_dir .*--restart"
    with pytest.raises(ValueError, match=says):
        lora_trainer(edits(10), replace(other_than(dropped), output_dir=str(tmp_path)))
    with pytest.raises(ValueError, match=says):  # nor where the other one came in the meantime
        early.train()
    assert content(tmp_path) == before
    trained(edits(10), replace(dropped, output_dir=str(tmp_path)))  # the same one may begin again
    same(dropped, tmp_path)


@pytest.mark.parametrize("times", TIMES)
def test_a_checkpoint_of_another_training_is_passed_over(dropped, tmp_path, times):
    given = replace(other_than(dropped), output_dir=str(tmp_path / "out"))
    trainer = lora_trainer(edits(10), given)
    trainer.add_callback(At(4, crash))
    with pytest.raises(RuntimeError, match="crash"):
        trainer.train()
    foreign = tmp_path / "out/checkpoint-8"
    shutil.copytree(Path(dropped.output_dir, "checkpoint-8"), foreign)
    set_times(tmp_path / "out", times)
    before = content(tmp_path)
    assert last_checkpoint(given.output_dir) == str(tmp_path / "out/checkpoint-3")
    with pytest.raises(ValueError, match=r"holds another training \(checkpoint-8: seed: 43 instead of 42\)"):
        lora_trainer(edits(10), given)
    with pytest.raises(ValueError, match="checkpoint-8: seed"):
        trainer.train(resume_from_checkpoint=last_checkpoint(given.output_dir))
    assert content(tmp_path) == before
    foreign.rename(tmp_path / "moved away")
    (tmp_path / "out/booster.json").unlink()  # as when only its checkpoint was copied there
    lora_trainer(edits(10), given).train(resume_from_checkpoint=last_checkpoint(given.output_dir))
    assert last_checkpoint(given.output_dir) == str(foreign)  # its own now
    assert losses(given.output_dir)[-1]["step"] == 8


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("limit", [1, 2])
def test_the_checkpoints_that_stay_are_the_last_by_step_whatever_their_file_times(model, tmp_path, times, limit):
    given = recipe(model, tmp_path, max_steps=4, save_steps=1, save_total_limit=limit)
    trainer = lora_trainer(edits(4), given)
    stayed = []
    for step in (1, 2, 3, 4):
        trainer.add_callback(
            At(step, lambda control: (set_times(tmp_path, times), stayed.append(checkpoints(tmp_path))))
        )
    trainer.train()
    stayed.append(checkpoints(tmp_path))
    assert stayed == [list(range(1, step + 1))[-limit:] for step in range(5)]
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")


def checkpoints(folder):
    return sorted(int(path.name.partition("-")[2]) for path in Path(folder).glob("checkpoint-*"))


def first_on_save(trainer, do):
    """Does something when a checkpoint is written, before its folder is a booster."""

    class OnSave(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            do(Path(args.output_dir, f"checkpoint-{state.global_step}"))

    trainer.callback_handler.callbacks.insert(0, OnSave())


def test_a_kill_while_the_only_checkpoint_is_replaced_leaves_the_one_before(model, tmp_path):
    trainer = lora_trainer(edits(4), recipe(model, tmp_path, save_steps=1, save_total_limit=1))
    first_on_save(trainer, lambda checkpoint: checkpoint.name == "checkpoint-2" and crash(None))
    with pytest.raises(RuntimeError, match="crash"):
        trainer.train()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1")


def test_a_checkpoint_that_was_deleted_is_not_made_again(model, tmp_path):
    trainer = lora_trainer(edits(4), recipe(model, tmp_path, save_steps=1, save_total_limit=None))
    first_on_save(trainer, lambda checkpoint: checkpoint.name == "checkpoint-2" and shutil.rmtree(checkpoint))
    trainer.train()
    assert checkpoints(tmp_path) == [1, 3]


def test_a_folder_that_is_only_a_record_is_no_checkpoint(dropped, tmp_path):
    shutil.copytree(dropped.output_dir, tmp_path, dirs_exist_ok=True)
    read_record(tmp_path).write(tmp_path / "checkpoint-9")
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-8")


def test_the_best_checkpoint_stays_and_is_loaded_at_the_end(model, tmp_path):
    given = recipe(model, tmp_path, save_steps=1, save_total_limit=2, max_steps=5)
    trainer = lora_trainer(edits(4), given, eval_edits=edits(4))
    trainer.args.load_best_model_at_end = True
    trainer.args.metric_for_best_model, trainer.args.greater_is_better = (
        "eval_loss",
        True,
    )  # the worst, which is the first
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-1")
    assert checkpoints(tmp_path) == [1, 5]
    assert weights(tmp_path) == weights(tmp_path / "checkpoint-1")


def test_the_base_model_can_be_measured_before_it_is_trained(model, tmp_path):
    trainer = lora_trainer(edits(4), recipe(model, tmp_path), eval_edits=edits(2))
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    log = read_log(tmp_path)
    assert trainer.evaluate()["eval_loss"] < before
    assert read_log(tmp_path) == log  # what is measured outside of the training is no part of it


def test_a_callback_that_ends_a_training_early_leaves_a_booster(model, tmp_path):
    def enough(control):
        control.should_training_stop = True

    trainer = lora_trainer(edits(4), recipe(model, tmp_path, max_steps=9))
    trainer.add_callback(At(2, enough))
    trainer.train()
    assert read_record(tmp_path).metrics["steps"] == 2
    assert (tmp_path / "adapter_model.safetensors").exists()


def test_a_training_may_run_beside_the_main_thread(model, tmp_path):
    thread = threading.Thread(target=lambda: trained(edits(4), recipe(model, tmp_path, max_steps=1)))
    thread.start()
    thread.join()
    assert read_record(tmp_path).metrics["steps"] == 1


# --- a caller's mistakes, before weights load -------------------------------------------------------------------------


def without_weights(model, folder):
    return shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors"))


def test_a_mistake_is_told_before_weights_load(model, tmp_path):
    """The folder holds no weights: whatever came later would be another error."""
    given = recipe(str(without_weights(model, tmp_path / "bare")), tmp_path / "out")
    rows = edits(4)
    for wrong, error, says in [
        ((rows.to_iterable_dataset(), given), TypeError, r"edits are a IterableDataset; give one stored split"),
        ((DatasetDict(train=rows), given), TypeError, r"edits are a DatasetDict; .* dataset\['train'\]"),
        ((rows.to_list(), given), TypeError, "edits are a list"),
        ((rows.remove_columns("raw_input"), given), ColumnError, r"no column raw_input .* midb\.as_edits"),
        ((rows.remove_columns("raw_input"), replace(given, k=2)), ColumnError, r"no column raw_input .* midb\.as_edits"),
        ((rows.select([]), given), ValueError, "there is no row to train on"),
        ((rows, replace(given, target_modules=("q_proj", "query_key_value"))), ValueError, r"no modules named query_key_value; it has down_proj, .*v_proj"),
        ((rows, replace(given, target_modules=("lm_head",))), ValueError, "no modules named lm_head"),
        ((rows, replace(given, deepspeed="nowhere.json")), FileNotFoundError, r"deepspeed='nowhere\.json' is no file"),
        ((rows, replace(given, rendering="llama3")), ValueError, "no Llama 3 header tokens"),
        ((rows, replace(given, model="./nowhere")), FileNotFoundError, "no folder './nowhere'"),
    ]:  # fmt: skip
        with pytest.raises(error, match=says):
            lora_trainer(*wrong)
    with pytest.raises(TypeError, match="eval_edits are a DatasetDict"):
        lora_trainer(rows, given, eval_edits=DatasetDict(train=rows))
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="dtype='float16' needs a GPU"):
            lora_trainer(rows, replace(given, dtype="float16"))
    with pytest.raises(OSError, match=r"model\.safetensors"):
        lora_trainer(rows, given)
    assert not (tmp_path / "out").exists()


def test_an_adapter_is_not_trained_on(learned, tmp_path):
    with pytest.raises(ValueError, match="is an adapter; train on its base model"):
        preview(edits(4), recipe(learned.args.output_dir, tmp_path))


@pytest.mark.parametrize(("module", "extra"), [("trl", "train"), ("matplotlib", "train"), ("bitsandbytes", "qlora")])
def test_a_part_that_is_not_installed_is_named_with_its_extra(model, tmp_path, module, extra):
    script = f"""
import importlib.machinery, sys
find = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = lambda name, *where: None if name == {module!r} else find(name, *where)
from datasets import Dataset
from midb.train import LoraRecipe, lora_trainer
edits = Dataset.from_list([dict.fromkeys(("raw_instruction", "raw_response", "instruction", "response"), "text")])
try:
    lora_trainer(edits, LoraRecipe(model={model!r}, quantization="4bit"))
except ImportError as error:
    print(type(error).__name__, error, {module!r} in sys.modules)
"""
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert said.stdout == f"MissingExtraError {module} is not installed; run: pip install 'midb[{extra}]' False\n"


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def command(model, tmp_path):
    """Runs `midb train` on a file of edits; keyword arguments change the recipe's file."""
    path, file = tmp_path / "edits.jsonl", tmp_path / "recipe.yaml"
    edits(6).to_json(path)
    given = {**recipe(model, tmp_path / "out").to_dict(), "dataset": str(path)}

    def run(*arguments, **changes):
        file.write_text(json.dumps({**given, **changes}))  # JSON is YAML
        return CliRunner().invoke(app, ["train", str(file), *map(str, arguments)])

    return run


def test_the_command_trains_once_and_goes_on_only_with_the_same_training(command, tmp_path):
    out = tmp_path / "out"
    said = command(max_steps=4)
    assert said.exit_code == 0, said.output
    assert f"trained 4 steps; use it: midb boost SOURCE --model {out} --out OUT" in said.stderr
    assert read_record(out).recipe["dataset"] == "edits.jsonl"
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    again = command(max_steps=4, logging_steps=9, gradient_checkpointing=False)
    assert (again.exit_code, "is fully trained" in again.stderr) == (0, True)
    edits(6, language="it").select(range(5)).to_json(tmp_path / "others.jsonl")
    for other, says in (
        (command(max_steps=4, seed=1), "seed: 1 instead of 42"),
        (command("--edits", tmp_path / "others.jsonl", max_steps=4), "data: "),
        (command(max_steps=4, prompt="Mend:"), "prompt: 'Mend:' instead of 'Edit:'"),
    ):
        assert other.exit_code == 1
        assert f"{out} holds another training" in other.stderr
        assert says in other.stderr
        assert "--restart" in other.stderr
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_a_restart_takes_the_old_training_away_and_nothing_else(command, tmp_path):
    assert command(max_steps=4, save_steps=3, save_total_limit=None).exit_code == 0
    out = tmp_path / "out"
    assert {path.name for path in out.glob("checkpoint-*")} == {"checkpoint-3", "checkpoint-4"}
    (out / "checkpoint-notes").mkdir()
    (out / "mine.txt").write_text("mine")
    said = command("--restart", max_steps=2, seed=1)
    assert said.exit_code == 0, said.output
    assert {path.name for path in out.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-notes"}
    assert (out / "mine.txt").exists()
    assert [entry["step"] for entry in losses(out)] == [1, 2]
    (out / "booster.json").write_text("{")  # nor is a broken record in the way of one
    assert command(max_steps=2).exit_code == 1
    assert command("--restart", max_steps=2).exit_code == 0


def test_the_command_writes_over_no_model_that_it_did_not_train(command, model, tmp_path):
    for foreign in (model, str(tmp_path / "trl")):
        Path(foreign, "checkpoint-5").mkdir(parents=True, exist_ok=True)
        for more in ([], ["--restart"]):
            said = command("--out", foreign, *more)
            assert (said.exit_code, f"{foreign} holds a model that midb did not train" in said.stderr) == (1, True)
        Path(foreign, "checkpoint-5").rmdir()


def test_the_command_says_which_rows_are_left_out(command, tmp_path):
    rows = [{**row, "boost_status": "boosted" if at < 4 else "unchanged"} for at, row in enumerate(edits(6).to_list())]
    Dataset.from_list(rows).to_json(tmp_path / "edits.jsonl")
    assert "left out by boost_status: 2 unchanged" in command("--dry-run").stdout
    assert "boost_status" not in command("--dry-run", statuses=["boosted", "unchanged"]).stdout
    said = command("--dry-run", statuses="bosted")
    assert (said.exit_code, "statuses: ('bosted',) cannot be used; give some of boosted, " in said.stderr) == (1, True)


def test_a_dry_run_needs_no_weights_and_leaves_nothing(command, model, tmp_path):
    bare = without_weights(model, tmp_path / "bare")
    said = command("--dry-run", "--model", bare)
    assert said.exit_code == 0, said.output
    for line in (
        r"trained  '<'",
        r"trained  '<\|im_end\|>'",
        r"steps: 3 of 1 processes",
        r"LoRA beside 7 layers: q_proj ×1",
        "6     6  ",
    ):
        assert re.search(line, said.stdout), line
    assert not (tmp_path / "out").exists()
    wrong = command("--model", bare, target_modules=["q_proj", "dense"])
    assert (wrong.exit_code, "no modules named dense; it has down_proj" in wrong.stderr) == (1, True)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"dataset": None}, "names no dataset"),
        ({"dataset": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"dataset": "splits"}, "splits has the splits train, test"),
        ({"model": "./nowhere"}, "no folder './nowhere'"),
        ({"lerning_rate": 1}, "did you mean learning_rate"),
    ],
)
def test_the_commands_mistakes_are_one_line(command, tmp_path, monkeypatch, changes, says):
    monkeypatch.chdir(tmp_path)
    DatasetDict(train=edits(2), test=edits(2)).save_to_disk("splits")
    said = command(**changes)
    assert (said.exit_code, says in said.stderr, "Traceback" in said.output) == (1, True, False), said.output


def test_as_a_module_mistakes_are_one_line_too(tmp_path):
    said = subprocess.run([sys.executable, "-m", "midb", "train", "nowhere.yaml"], capture_output=True, text=True)
    assert (said.returncode, said.stderr) == (
        1,
        "midb: there is no file nowhere.yaml; give the path of a recipe, a YAML file\n",
    )


@pytest.mark.slow
def test_killed_and_terminated_processes_lose_nothing(model, tmp_path):
    edits(30).to_json(tmp_path / "edits.jsonl")
    given = recipe(
        model, None, dataset=str(tmp_path / "edits.jsonl"), max_steps=80, save_steps=5, save_total_limit=3, lora_dropout=0.1,
    ).to_dict()  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps({**given, "output_dir": None}))

    def begin(folder):
        call = [sys.executable, "-m", "midb", "train", str(tmp_path / "recipe.yaml"), "--out", str(folder)]
        return subprocess.Popen(call, stderr=subprocess.PIPE, text=True)

    def wait_for(path, process):
        while not path.exists():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)

    whole = begin(tmp_path / "whole")
    assert "trained 80 steps" in whole.communicate()[1]
    out = tmp_path / "out"
    killed = begin(out)
    wait_for(out / "checkpoint-10/trainer_state.json", killed)
    killed.kill()
    killed.communicate()
    terminated = begin(out)
    wait_for(out / "checkpoint-30/trainer_state.json", terminated)
    terminated.terminate()
    _, said = terminated.communicate()
    assert terminated.returncode == 130, said
    assert "the same command resumes" in said
    assert not (out / "adapter_config.json").exists()
    stopped_at = max(int(path.name.partition("-")[2]) for path in out.glob("checkpoint-*"))
    assert 30 <= stopped_at < 80
    last = begin(out)
    said = last.communicate()[1]
    assert last.returncode == 0, said
    assert losses(out) == losses(tmp_path / "whole")
    assert weights(out) == weights(tmp_path / "whole")
    done = begin(out)
    assert "is fully trained" in done.communicate()[1]
    assert done.returncode == 0
