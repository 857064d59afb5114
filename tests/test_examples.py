"""The examples do what they say: run as their own text says, on a tiny random model and data of the published shape."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import load_dataset
from hub_process import at_hub
from huggingface_hub import HfApi
from test_chat import LLAMA3, byte_level
from test_release import published, write
from test_train import losses
from test_train_distributed import ENVIRONMENT, require_deepspeed
from test_transformers import make_model

from midb import Booster
from midb.generators.adapter import read_record

HOUSE = Path(__file__).parents[1]
EXAMPLES = HOUSE / "examples"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """It has Llama 3's header tokens and no template, as the published base model."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = byte_level(LLAMA3, bos_token=LLAMA3[0], eos_token=LLAMA3[1])
    return str(make_model(folder, context=4096, tokenizer=tokenizer))


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """A folder as the published repository's, with one language."""
    folder = tmp_path_factory.mktemp("published")
    write(folder / "data/MIDB_train", "French", published())
    return str(folder)


def run(*call):
    done = subprocess.run(list(map(str, call)), capture_output=True, text=True, cwd=HOUSE, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-5000:]
    return done.stdout


def commands(example):
    """The commands in an example's head, less the remarks behind them."""
    lines = re.findall(r"^(?:#  +)?((?:python|accelerate|pip|bash) .+?)(?:  .*)?$", example.read_text(), re.MULTILINE)
    return [line for line in lines if f"examples/{example.name}" in line]


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.*")), ids=lambda path: path.name)
def test_an_example_is_short_and_says_how_to_run_it(example):
    assert len(example.read_text().splitlines()) <= 60
    assert commands(example)


def test_a_process_that_vllm_starts_can_read_the_ray_example_and_boosts_nothing():
    pytest.importorskip("ray")
    assert "main" in runpy.run_path(str(EXAMPLES / "boost_with_ray.py"), run_name="__mp_main__")


@pytest.mark.slow
def test_the_published_edits_train_a_booster(model, release, tmp_path):
    out = tmp_path / "out"
    call = ("--model", model, "--edits", release, "--languages", "French", "-k", 12, "--out", out)
    said = run(sys.executable, EXAMPLES / "train_published.py", *call)
    assert "steps: 2 of " in said
    record = read_record(out)
    assert (record.data["languages"], record.rendering, record.recipe["r"]) == ({"fr": 12}, "llama3", 64)
    assert record.metrics["steps"] == 2


@pytest.mark.slow
def test_own_revisions_train_a_booster_that_then_boosts(model, tmp_path):
    out = tmp_path / "out"
    said = run(sys.executable, EXAMPLES / "train_own.py", "--model", model, "--out", out, "--epochs", 1)
    assert re.search(r"Explain why the sky is blue\.\n  before: Because of the ocean\.\n  \w+: ", said)
    assert read_record(out).data["kept"] == 12


@pytest.mark.slow
def test_several_processes_share_the_published_training(model, release, tmp_path):
    require_deepspeed()
    out = tmp_path / "out"
    (command,) = commands(EXAMPLES / "train_many_gpus.yaml")
    assert command.startswith("accelerate launch --use_deepspeed --num_processes 4 ")
    call = command.replace("--num_processes 4", "--num_processes 2 --main_process_port 0").split()
    run(Path(sys.executable).with_name(call[0]), *call[1:], "--model", model, "--edits", release, "--out", out)
    record = read_record(out)
    assert record.data["languages"] == {"fr": 720}
    assert record.batch == {"processes": 2, "per_device": 4, "accumulated": 4}
    assert record.recipe["deepspeed"] == "zero3.json"
    assert record.metrics["steps"] == 23
    assert losses(out)[-1]["loss"] < losses(out)[0]["loss"]


@at_hub
def tell_the_whole_story(model, out):
    """In the process whose Hub is on this machine."""
    HfApi().create_repo("tester/tiny", exist_ok=True)
    HfApi().upload_folder(repo_id="tester/tiny", folder_path=model)
    place = Path(sys.executable).parent
    environment = {
        **os.environ,
        **ENVIRONMENT,
        "MODEL": "tester/tiny",
        "OUT": str(out),
        "PATH": f"{place}:{os.environ['PATH']}",
    }
    environment["HF_ENDPOINT"] = os.environ["HF_ENDPOINT"]
    script = str(EXAMPLES / "speedrun.sh")
    shown = subprocess.run(["bash", script, "tester"], capture_output=True, text=True, env=environment)
    assert shown.returncode == 0, shown.stderr[-5000:] + shown.stdout[-2000:]
    assert not HfApi().repo_exists("tester/speedrun-boosted", repo_type="dataset")
    sent = subprocess.run(["bash", script, "tester", "--send"], capture_output=True, text=True, env=environment)
    assert sent.returncode == 0, sent.stderr[-5000:]
    assert len(load_dataset("tester/speedrun-boosted", "all", split="train")) == 8
    assert Booster.from_pretrained("tester/speedrun-booster").generator.adapter
    assert HfApi().repo_exists("tester/pairwise_judge", repo_type="space")
    assert Path(out, "report.md").read_text().startswith("Headline withheld")
    assert Path(out, "report.png").exists()


@pytest.mark.slow
def test_the_speedrun_tells_the_whole_story(tmp_path_factory, tmp_path):
    tell_the_whole_story(
        model=str(make_model(tmp_path_factory.mktemp("base") / "tiny", context=4096)), out=str(tmp_path)
    )
