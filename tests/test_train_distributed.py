"""Training in several processes, shared by DeepSpeed or not: real processes on the CPU that talk over gloo."""

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file
from test_train import RAW, edits, losses, recipe, trained, weights
from test_transformers import make_model

from midb import Booster
from midb.generators import Sampling
from midb.generators.adapter import read_record
from midb.schema import as_pairs
from midb.train import last_checkpoint, lora_trainer

ZERO = Path(__file__).parents[1] / "examples/deepspeed"
BIN = Path(sys.executable).parent
ENVIRONMENT = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


def require_deepspeed():
    """Skip where DeepSpeed cannot run: without GPUs it compiles what its processes share memory through."""
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed; run: pip install 'midb[deepspeed]'")
    for tool in ("c++", "ninja"):
        if shutil.which(tool, path=ENVIRONMENT["PATH"]) is None:  # ninja comes with DeepSpeed, beside Python
            pytest.skip(f"there is no {tool}, with which DeepSpeed builds what it needs on a CPU")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(make_model(tmp_path_factory.mktemp("models") / "tiny", layers=1))


def settings(model, **changes):
    """With r=16 each matrix of the adapter is large enough for ZeRO-3 to split it."""
    batch = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "num_train_epochs": 3, "max_steps": -1}
    return recipe(model, None, **{"r": 16, **batch, **changes})


def begin(given, rows, folder, how, processes=2):
    """Start a training as its user would; what it says goes to a file beside the folder."""
    data, file = folder.with_suffix(".jsonl"), folder.with_suffix(".yaml")
    edits(rows).to_json(data)
    file.write_text(json.dumps({**given.to_dict(), "output_dir": None, "dataset": str(data)}))  # JSON is YAML
    call = [BIN / "accelerate", "launch", how, "--num_processes", str(processes), "--main_process_port", "0"]
    with folder.with_suffix(".log").open("a") as log:
        return subprocess.Popen(
            [*call, "-m", "midb", "train", file, "--out", folder], stdout=log, stderr=log,
            env=ENVIRONMENT,
        )  # fmt: skip


def finish(process, folder):
    assert process.wait() == 0, folder.with_suffix(".log").read_text()[-5000:]


def wait_for(path, process):
    while not path.exists():
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.02)
            pytest.fail(f"it ended before there was {path}")


def kill(process):
    """As when the power goes: the launcher first, so that nobody tells its processes."""
    family = psutil.Process(process.pid).children(recursive=True)
    for each in (process, *family):
        each.kill()
    process.wait()
    psutil.wait_procs(family)


def steps(folder):
    return sorted(int(path.name.partition("-")[2]) for path in folder.glob("checkpoint-*"))


def boosts(folder):
    booster = Booster.from_pretrained(folder)
    booster = replace(booster, generator=replace(booster.generator, sampling=Sampling(max_tokens=20)))
    edited = booster.map(as_pairs(edits(2), columns=RAW))
    assert {"failed"}.isdisjoint(edited["boost_status"])
    assert min(edited["boost_completion_tokens"]) > 0


@pytest.mark.slow
@pytest.mark.parametrize("how", ["--multi_gpu", "--use_deepspeed"])
def test_two_processes_learn_what_one_learns_with_twice_the_accumulation(model, tmp_path, how):
    if how == "--use_deepspeed":
        require_deepspeed()
    given = settings(model, deepspeed=str(ZERO / "zero3.json") if how == "--use_deepspeed" else None)
    finish(begin(given, 16, tmp_path / "two", how), tmp_path / "two")
    alone = settings(model, gradient_accumulation_steps=4, output_dir=str(tmp_path / "one"))
    trained(edits(16), alone)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == 6
    for expected, found in zip(one, two, strict=True):  # float32, and sums in another order
        assert found == pytest.approx(expected, rel=1e-4)
    expected, found = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    assert {name: each.shape for name, each in found.items()} == {name: each.shape for name, each in expected.items()}
    assert read_record(tmp_path / "two").batch == {"processes": 2, "per_device": 2, "accumulated": 2}
    boosts(tmp_path / "two")
    said = (tmp_path / "two.log").read_text()
    assert said.count("trained 6 steps") == said.count("fingerprint") == 1


@pytest.mark.slow
def test_killed_and_terminated_pairs_of_processes_lose_nothing(model, tmp_path):
    require_deepspeed()
    given = settings(
        model, deepspeed=str(ZERO / "zero3.json"), max_steps=24, save_steps=4, save_total_limit=3, lora_dropout=0.1,
        gradient_accumulation_steps=1, gradient_checkpointing=False,
    )  # fmt: skip
    whole, out = tmp_path / "whole", tmp_path / "out"
    finish(begin(given, 30, whole, "--use_deepspeed"), whole)
    killed = begin(given, 30, out, "--use_deepspeed")
    wait_for(out / "checkpoint-4/booster.json", killed)
    kill(killed)
    assert 4 <= steps(out)[-1] < 24
    terminated = begin(given, 30, out, "--use_deepspeed")
    wait_for(out / "checkpoint-8/booster.json", terminated)
    terminated.terminate()
    assert terminated.wait() != 0
    assert not (out / "adapter_config.json").exists()
    assert last_checkpoint(out) == str(out / f"checkpoint-{steps(out)[-1]}")
    assert steps(out)[-1] < 24
    finish(begin(given, 30, out, "--use_deepspeed"), out)
    assert losses(out) == losses(whole)  # to the last bit: two numbers have one sum
    assert weights(out) == weights(whole)
    boosts(out)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_one_process_under_deepspeed_trains_and_is_not_given_a_step_too_many(model, tmp_path, stage):
    require_deepspeed()
    given = settings(model, max_steps=5, lr_scheduler_type="constant")
    trained(edits(16), replace(given, output_dir=str(tmp_path / "plain")))
    out, shared = tmp_path / "out", replace(given, deepspeed=str(ZERO / f"zero{stage}.json"))
    finish(begin(shared, 16, out, "--use_deepspeed", 1), out)
    for expected, found in zip(losses(tmp_path / "plain"), losses(out), strict=True):
        assert found == pytest.approx(expected, rel=1e-4)
    boosts(out)
    finished = weights(out), read_record(out), losses(out)
    (out / "adapter_model.safetensors").unlink()  # as if it had been killed on the way to its end
    replace(finished[1], metrics={}).write(out)
    finish(begin(shared, 16, out, "--use_deepspeed", 1), out)
    assert (weights(out), read_record(out), losses(out)) == finished


@pytest.mark.slow
def test_every_process_stops_where_the_first_finds_the_checkpoint_of_another_training(model, tmp_path):
    given = settings(model, max_steps=2, gradient_accumulation_steps=1)
    trained(edits(4), replace(given, seed=1, output_dir=str(tmp_path / "other"), save_steps=1))
    (tmp_path / "script.py").write_text(f"""
import os, shutil
from pathlib import Path
from datasets import Dataset
from midb.train import LoraRecipe, lora_trainer
trainer = lora_trainer(Dataset.from_list({edits(8).to_list()}), LoraRecipe(**{given.to_dict()}), output_dir="out")
if trainer.is_world_process_zero():
    shutil.copytree("other/checkpoint-1", "out/checkpoint-1")
try:
    trainer.train()
except ValueError as error:
    Path(os.environ["RANK"]).write_text(str(error))
""")
    call = [
        BIN / "accelerate",
        "launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--main_process_port",
        "0",
        "script.py",
    ]
    subprocess.run(call, cwd=tmp_path, env=ENVIRONMENT, check=True)
    first, second = ((tmp_path / rank).read_text() for rank in "01")
    assert first == second
    assert "out holds another training (checkpoint-1: seed: 42 instead of 1" in first
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["checkpoint-1"]


def test_a_checkpoint_to_which_a_process_still_writes_is_passed_over(model, tmp_path):
    trained(edits(4), settings(model, output_dir=str(tmp_path), max_steps=4, save_steps=2))
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")
    (tmp_path / "checkpoint-4/booster.json").unlink()  # the last file, which waits for every process
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")


def test_deepspeed_without_a_launcher_says_how_to_launch_it(model, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    given = settings(model, deepspeed=str(ZERO / "zero2.json"))
    with pytest.raises(ValueError, match="accelerate launch --use_deepspeed"):
        lora_trainer(edits(4), given)
