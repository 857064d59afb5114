"""What an adapter says about itself, on disk and on the Hub."""

import json
import os
import shutil
import subprocess
import sys

import fakehub
import pytest
from test_transformers import make_adapter, make_model

from midb import Booster
from midb.generators import Sampling, TransformersGenerator
from midb.generators.adapter import ADAPTER_FILE, AdapterRecord, read_record
from midb.generators.weights import adapter_hash, adapter_record

TAGS = ("<|a|>", "<|b|>", "<|c|>")
RECORD = AdapterRecord(
    rendering="template", chat_hash="0" * 16, prompt="Édite :\n", tags=TAGS, parity=False, model="org/base",
    recipe={"r": 8, "seed": 42, "target_modules": ["q_proj"], "rendering": "auto", "logging_steps": 10, "dataset": "a"},
    data={"fingerprint": "f" * 16, "rows": 5}, batch={"processes": 1, "per_device": 4, "accumulated": 2},
    metrics={"loss": 0.5}, versions={"midb": "0.1.0"},
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(make_model(tmp_path_factory.mktemp("models") / "base"))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, model):
    """An adapter with a record of its own prompt and tags."""
    folder = make_adapter(tmp_path_factory.mktemp("adapters") / "booster", model)
    chat = TransformersGenerator(model)._chat
    AdapterRecord(**{**vars(RECORD), "chat_hash": chat.hash(), "model": "base"}).write(folder)
    return str(folder)


def test_a_record_is_read_as_it_was_written(tmp_path):
    RECORD.write(tmp_path / "new")
    assert read_record(tmp_path / "new") == RECORD
    assert [path.name for path in (tmp_path / "new").iterdir()] == [ADAPTER_FILE]
    assert read_record(tmp_path) is None


def test_only_what_changes_the_weights_makes_another_training(tmp_path):
    def other(**changes):
        return RECORD.differences(AdapterRecord(**{**vars(RECORD), **changes}))

    RECORD.write(tmp_path)
    assert RECORD.differences(read_record(tmp_path)) == []
    assert other(metrics={}, versions={}, recipe={**RECORD.recipe, "logging_steps": 1, "dataset": "b"}) == []
    assert other(recipe={**RECORD.recipe, "rendering": "template"}) == []  # what "auto" was anyway
    assert other(data={"fingerprint": "f" * 16, "rows": 6}) == []
    assert other(recipe={**RECORD.recipe, "seed": 1}) == ["seed: 42 instead of 1"]
    assert other(rendering="plain", prompt="p") == [
        "rendering: 'template' instead of 'plain'",
        "prompt: 'Édite :\\n' instead of 'p'",
    ]
    assert other(data={}) == ["data: 'ffffffffffffffff' instead of None"]
    assert len(other(batch={**RECORD.batch, "processes": 2}, model="org/other", tags=("a", "b", "c"))) == 3


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text[:40], r"booster\.json is broken .* restore it, or delete it and pass rendering= yourself"),
        (lambda text: "[]", "is broken"),
        (lambda text: "null", "is broken"),
        (lambda text: text.replace('"prompt"', '"promt"'), "is broken .*prompt"),
        (lambda text: text.replace('"tags": [', '"tags": null, "x": ['), "is broken"),
        (lambda text: text.replace('"format": 1', '"format": 2'), "has format 2, and this midb reads 1; upgrade midb"),
    ],
)
def test_a_record_that_cannot_be_read_says_what_to_do(tmp_path, adapter, change, says):
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    text = (folder / ADAPTER_FILE).read_text(encoding="utf-8")
    assert change(text) != text
    (folder / ADAPTER_FILE).write_text(change(text), encoding="utf-8")
    with pytest.raises(ValueError, match=says):
        Booster.from_pretrained(folder)
    (folder / ADAPTER_FILE).write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="is broken"):
        Booster.from_pretrained(folder)


def test_what_a_later_midb_adds_to_a_record_is_passed_over(tmp_path):
    RECORD.write(tmp_path)
    said = json.loads((tmp_path / ADAPTER_FILE).read_text())
    (tmp_path / ADAPTER_FILE).write_text(json.dumps({**said, "new": 1}))
    assert read_record(tmp_path) == RECORD


def test_an_adapter_without_a_record_is_asked_as_any_model(tmp_path, model):
    folder = make_adapter(tmp_path / "plain", model)
    assert adapter_record(str(folder)) is None
    booster = Booster.from_pretrained(folder)
    assert (booster.prompt, booster.tags) == (Booster(generator=booster.generator).prompt, booster.tags)
    assert booster.generator._chat.hash() == TransformersGenerator(model)._chat.hash()


def test_a_record_is_no_part_of_what_an_adapter_answers(tmp_path, adapter):
    """Metrics and versions may be written anew; a journal goes on. How it is asked is in the booster's identity."""
    folder = shutil.copytree(adapter, tmp_path / "again")
    AdapterRecord(**{**vars(read_record(folder)), "metrics": {"loss": 9.0}}).write(folder)
    one, other = (Booster.from_pretrained(each) for each in (adapter, folder))
    assert adapter_hash(adapter) == adapter_hash(str(folder))
    assert one.generator.identity() == other.generator.identity()
    AdapterRecord(**{**vars(read_record(folder)), "prompt": "Another"}).write(folder)
    changed = Booster.from_pretrained(folder)
    assert changed.made()["boost_identity"] != one.made()["boost_identity"]


def test_the_record_of_an_adapter_on_the_hub_is_fetched_with_it(tmp_path, model, adapter):
    server, _, address = fakehub.start(str(tmp_path / "hub"))
    for name, source in (("base", model), ("booster", adapter)):
        folder = shutil.copytree(source, tmp_path / name)
        config = folder / "adapter_config.json"
        if config.exists():
            config.write_text(config.read_text().replace(model, "tester/base"))
    script = """
from huggingface_hub import HfApi
from midb import Booster
from midb.generators.weights import adapter_folder, adapter_record
from midb.generators import Sampling
import os
for name in ("base", "booster"):
    HfApi().create_repo(f"tester/{name}")
    HfApi().upload_folder(repo_id=f"tester/{name}", folder_path=name)
assert adapter_record("tester/base") is None
booster = Booster.from_pretrained("tester/booster")
[answer] = booster.generator.generate([[{"role": "user", "content": "Hi"}]], Sampling(max_tokens=4))
print((booster.prompt, booster.tags, booster.generator._chat.rendering, answer.text, booster.generator.name))
print(sorted(os.listdir(adapter_folder("tester/booster"))))
"""
    env = {**os.environ, "HF_ENDPOINT": address, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_test"}
    env["HF_HOME"] = str(tmp_path / "home")
    env.pop("HF_HUB_OFFLINE", None)
    try:
        said = subprocess.run([sys.executable, "-c", script], env=env, cwd=tmp_path, capture_output=True, text=True)
        assert said.returncode == 0, said.stderr
    finally:
        server.shutdown()
        server.server_close()
    local = Booster.from_pretrained(adapter).generator
    answer = local.generate([[{"role": "user", "content": "Hi"}]], Sampling(max_tokens=4))[0].text
    expected = ("Édite :\n", TAGS, "template", answer, "tester/base+tester/booster")
    lines = said.stdout.strip().splitlines()[-2:]
    assert lines[0] == str(expected)
    assert lines[1] == str(["adapter_config.json", "adapter_model.safetensors", ADAPTER_FILE])
